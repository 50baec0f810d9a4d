//! A warm call of a module that does nothing, in the `wasm` profile and by wasmtime alone.
//!
//! `cargo bench -p agent-sdk --features wasm --bench wasm_call`. Both in turns, in one run; the best of
//! each is taken, for what else the machine does is not the module's.

use std::time::{Duration, Instant};

use agent_sdk::sandbox::{Profile, Wanted, WasmSandbox};
use wasmtime::{Engine, Linker, Module, Store};

const ROUNDS: usize = 20;
const CALLS: u32 = 2_000;

/// `(module (memory (export "memory") 1) (func (export "_start")))`.
const NOTHING: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x05\x03\x01\0\x01\
    \x07\x13\x02\x06_start\0\0\x06memory\x02\0\x0a\x04\x01\x02\0\x0b";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let wanted = Wanted {
        profile: Profile::Wasm,
        ..Wanted::default()
    };
    let sandbox = WasmSandbox::open(wanted.check().map_err(|problems| problems.join("; "))?)?;
    let prepared = sandbox.prepare(NOTHING)?;
    let engine = Engine::default();
    let bare = Linker::new(&engine).instantiate_pre(&Module::from_binary(&engine, NOTHING)?)?;
    let (mut ours, mut theirs) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for _ in 0..CALLS {
            drop(sandbox.run(&prepared, b""));
        }
        ours = ours.min(begun.elapsed());
        let begun = Instant::now();
        for _ in 0..CALLS {
            let mut store = Store::new(&engine, ());
            let instance = bare.instantiate(&mut store)?;
            instance
                .get_typed_func::<(), ()>(&mut store, "_start")?
                .call(&mut store, ())?;
        }
        theirs = theirs.min(begun.elapsed());
    }
    println!("warm call in the profile {:>8.2?}", ours / CALLS);
    println!("bare call of wasmtime    {:>8.2?}", theirs / CALLS);
    println!("ratio {:.2}", ours.as_secs_f64() / theirs.as_secs_f64());
    Ok(())
}
