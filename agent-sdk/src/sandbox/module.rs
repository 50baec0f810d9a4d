//! What a WebAssembly module may be, looked at before anything is compiled: a compiler cannot be stopped
//! in the middle, and ten kilobytes can keep it busy for many minutes.
//!
//! What costs is not length. At every place where ways of control meet, the compiler has to say where
//! each variable is: so branches times variables is what is bounded, and how deep loops lie in loops.

use wasmtime::wasmparser::{FunctionBody, Operator, Parser, Payload, TypeSectionReader};

/// The longest module.
pub const MODULE_BYTES_MAX: usize = 1 << 20;
/// Functions of a module.
const FUNCTIONS_MAX: usize = 10_000;
/// The longest function.
const FUNCTION_BYTES_MAX: usize = 64 << 10;
/// Local variables of a function.
const LOCALS_MAX: usize = 1_000;
/// Loops within loops.
const LOOPS_DEEP_MAX: usize = 100;
/// Branches times variables, of one function: the compiler's time grows with the square of it.
const FUNCTION_WORK_MAX: usize = 30_000;
/// The same, of all functions together.
const MODULE_WORK_MAX: usize = 1_000_000;
/// Variables that every function has, without a name.
const UNNAMED: usize = 16;

/// Looks at how much there is to compile, in one pass.
///
/// # Errors
///
/// Which bound it exceeds, or that it is no module.
pub(super) fn measure(module: &[u8]) -> Result<(), String> {
    at_most(module.len(), MODULE_BYTES_MAX, "bytes")?;
    let (mut functions, mut work, mut widest) = (0, 0, 0);
    for part in Parser::new(0).parse_all(module) {
        match part.map_err(|why| why.to_string())? {
            Payload::TypeSection(types) => widest = widest_of(types)?,
            Payload::CodeSectionEntry(body) => {
                functions += 1;
                at_most(functions, FUNCTIONS_MAX, "functions")?;
                work += work_of(&body, widest)?;
                at_most(work, MODULE_WORK_MAX, "branches times variables")?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn at_most(many: usize, most: usize, what: &str) -> Result<(), String> {
    match many > most {
        true => Err(format!("{many} {what}, at most {most}")),
        false => Ok(()),
    }
}

/// Values that go in and out by the widest type. Blocks have types too, so any of them may be anywhere.
fn widest_of(types: TypeSectionReader<'_>) -> Result<usize, String> {
    let mut widest = 0;
    for one in types.into_iter_err_on_gc_types() {
        let one = one.map_err(|why| why.to_string())?;
        widest = widest.max(one.params().len() + one.results().len());
    }
    Ok(widest)
}

/// Branches times variables.
fn work_of(body: &FunctionBody<'_>, widest: usize) -> Result<usize, String> {
    let wrong = |why: wasmtime::wasmparser::BinaryReaderError| why.to_string();
    at_most(
        body.range().len(),
        FUNCTION_BYTES_MAX,
        "bytes of a function",
    )?;
    let mut locals = 0_usize;
    for group in body.get_locals_reader().map_err(wrong)? {
        locals = locals.saturating_add(group.map_err(wrong)?.0 as usize);
    }
    at_most(locals, LOCALS_MAX, "local variables of a function")?;
    let (mut branches, mut around, mut loops) = (0, Vec::new(), 0);
    for operator in body.get_operators_reader().map_err(wrong)? {
        let operator = operator.map_err(wrong)?;
        branches += branches_of(&operator);
        match operator {
            Operator::Loop { .. } | Operator::Block { .. } | Operator::If { .. } => {
                let is_loop = matches!(operator, Operator::Loop { .. });
                loops += usize::from(is_loop);
                around.push(is_loop);
                at_most(loops, LOOPS_DEEP_MAX, "loops within loops")?;
            }
            Operator::End => loops -= usize::from(around.pop().unwrap_or(false)),
            _ => {}
        }
    }
    let work = branches * (locals + widest + UNNAMED);
    at_most(
        work,
        FUNCTION_WORK_MAX,
        "branches times variables of a function",
    )?;
    Ok(work)
}

/// Ways of control that part or meet there.
fn branches_of(operator: &Operator<'_>) -> usize {
    match operator {
        Operator::Block { .. }
        | Operator::Loop { .. }
        | Operator::If { .. }
        | Operator::Else
        | Operator::Br { .. }
        | Operator::BrIf { .. }
        | Operator::CallIndirect { .. }
        | Operator::ReturnCallIndirect { .. }
        | Operator::TableGet { .. } => 1,
        Operator::BrTable { targets } => targets.len() as usize + 1,
        _ => 0,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn number(mut value: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value > 0x7f {
            bytes.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    fn sized(bytes: &[u8]) -> Vec<u8> {
        [&number(bytes.len()), bytes].concat()
    }

    fn section(id: u8, many: usize, body: &[u8]) -> Vec<u8> {
        [vec![id], sized(&[&number(many), body].concat())].concat()
    }

    /// A module of functions without arguments, each given as its locals and its code; the first is
    /// `_start`.
    pub(in super::super) fn of_functions(bodies: &[Vec<u8>]) -> Vec<u8> {
        let many = bodies.len();
        let code: Vec<u8> = bodies.iter().flat_map(|body| sized(body)).collect();
        [
            b"\0asm\x01\0\0\0".to_vec(),
            section(1, 1, &[0x60, 0, 0]),
            section(3, many, &vec![0; many]),
            section(5, 1, &[0, 1]),
            section(7, 1, b"\x06_start\0\0"),
            section(10, many, &code),
        ]
        .concat()
    }

    /// `depth` blocks in each other, left from everywhere, and `locals` variables that are others each
    /// way: the slowest that is known for its length.
    fn tangle(locals: usize, depth: usize) -> Vec<u8> {
        let load = |at: usize| [&[0x41, 0, 0x28, 2][..], &number(at * 4)].concat();
        let mut body = [&[1][..], &number(locals), &[0x7f]].concat();
        body.extend([0x02, 0x40].repeat(depth));
        for out in 0..depth {
            body.extend([load(out), vec![0x0d], number(out)].concat());
        }
        for local in 0..locals {
            body.extend([load(local), vec![0x21], number(local)].concat());
        }
        body.extend(vec![0x0b; depth]);
        for local in 0..locals {
            body.extend([&[0x41, 0, 0x20][..], &number(local), &[0x36, 2, 0]].concat());
        }
        body.push(0x0b);
        body
    }

    /// So many functions of the slowest sort that is taken.
    pub(in super::super) fn slowest(many: usize) -> Vec<u8> {
        of_functions(&vec![tangle(114, 114); many])
    }

    const NOTHING: &[u8] = &[0, 0x0b];

    /// `many` locals of `i32`, and then nothing.
    fn with_locals(many: usize) -> Vec<u8> {
        [&[1][..], &number(many), &[0x7f, 0x0b]].concat()
    }

    /// A loop in a loop in a loop …
    fn loops(depth: usize) -> Vec<u8> {
        let (open, shut) = ([0x03, 0x40].repeat(depth), vec![0x0b; depth]);
        [vec![0], open, shut, vec![0x0b]].concat()
    }

    #[test]
    fn what_would_take_long_to_compile_is_refused_before_it_is_compiled() {
        let said = |module: &[u8]| measure(module).unwrap_err();
        let many = vec![NOTHING.to_vec(); FUNCTIONS_MAX];
        measure(&of_functions(&many)).unwrap();
        let more = [many, vec![NOTHING.to_vec()]].concat();
        assert!(said(&of_functions(&more)).contains("10001 functions"));

        let nops = |many: usize| [vec![0], vec![1; many], vec![0x0b]].concat();
        measure(&of_functions(&[nops(FUNCTION_BYTES_MAX - 2)])).unwrap();
        let long = nops(FUNCTION_BYTES_MAX - 1);
        assert!(said(&of_functions(&[long])).contains("bytes of a function"));

        measure(&of_functions(&[with_locals(LOCALS_MAX)])).unwrap();
        let more = with_locals(LOCALS_MAX + 1);
        assert!(said(&of_functions(&[more])).contains("local"));
        let two_groups = [2, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x7f, 1, 0x7f, 0x0b];
        assert!(said(&of_functions(&[two_groups.into()])).contains("local"));

        measure(&of_functions(&[loops(LOOPS_DEEP_MAX)])).unwrap();
        let deeper = loops(LOOPS_DEEP_MAX + 1);
        assert!(said(&of_functions(&[deeper])).contains("loops within"));

        measure(&slowest(33)).unwrap();
        assert!(said(&slowest(34)).contains("branches times variables"));
        assert!(said(&of_functions(&[tangle(116, 115)])).contains("of a function"));
        assert!(said(&vec![0; MODULE_BYTES_MAX + 1]).contains("1048577 bytes"));
        assert!(measure(b"\0asm").is_err());
    }
}
