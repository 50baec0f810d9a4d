//! One condition of a token: a Datalog check, in the small language that the gate lets through.
//!
//! The language is conjunctive queries over the predicates of [`PREDICATES`] with comparisons. It is
//! typed: every check here either has an answer that does not depend on the order in which facts are
//! found, or is refused when it is read. The engine iterates over hash tables with random seeds and
//! stops at the first error, so an untyped comparison could pass on one broker and fail on the next.

mod contradiction;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use biscuit_auth::builder::Convert as _;
use biscuit_auth::datalog::SymbolTable;
use biscuit_auth::format::{convert, schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::pattern::Pattern;
use crate::identity::serde_as_text;
use crate::limits::{
    ARGUMENT_FACTS_MAX, ARGUMENT_STRING_MAX, SEGMENTS_MAX, TOKEN_ATOMS_MAX, TOKEN_BYTES_MAX,
    TOKEN_CLOSURES_MAX, TOKEN_COST_MAX, TOKEN_OPERATORS_MAX,
};
use crate::time::{DATE_MAX, rfc3339};

pub(super) use contradiction::can_hold;

/// Why a text or a block's bytes are not a check that a token may carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadCheck(pub(super) String);

fn bad<T>(why: impl Into<String>) -> Result<T, BadCheck> {
    Err(BadCheck(why.into()))
}

/// A condition of a token: one Datalog check that the gate admits. Shown and read as Datalog text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    kind: Kind,
    queries: Vec<Query>,
}

/// How a check's queries decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `check if`: some query matches.
    If,
    /// `check all`: all that match satisfy the comparisons, and something matches.
    All,
    /// `reject if`: its one query does not match.
    Reject,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Query {
    atoms: Vec<Atom>,
    expressions: Vec<Vec<Op>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Atom {
    predicate: &'static Predicate,
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Term {
    Variable(String),
    Value(Value),
}

/// A constant, in a check or in a block's fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Integer(i64),
    Text(String),
    /// Seconds since the epoch.
    Date(u64),
    Bytes(Vec<u8>),
    Bool(bool),
}

/// Postfix, as the token carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    Value(Term),
    Not,
    Parens,
    Binary(Binary),
    Closure(Vec<Op>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binary {
    Less,
    Greater,
    LessOrEqual,
    GreaterOrEqual,
    /// `===`: both sides have one type.
    StrictEqual,
    StrictNotEqual,
    /// `==`: sides of different types differ.
    Equal,
    NotEqual,
    Contains,
    StartsWith,
    EndsWith,
    And,
    Or,
}

/// What a term of a predicate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Integer,
    Text,
    Date,
    Bytes,
    Bool,
    /// The value of an argument: an integer, a text or a boolean, known only at the call.
    Scalar,
}

/// A predicate that checks may ask about.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Predicate {
    name: &'static str,
    terms: &'static [Type],
    most: Most,
}

/// How many facts of a predicate there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Most {
    /// Given by the authoriser: at most so many, and at most one for each first term.
    Given(usize),
    /// Stated by the authority block: as many as it holds.
    Stated,
}

const fn given(name: &'static str, terms: &'static [Type], most: usize) -> Predicate {
    let most = Most::Given(most);
    Predicate { name, terms, most }
}

const fn stated(name: &'static str, terms: &'static [Type]) -> Predicate {
    let most = Most::Stated;
    Predicate { name, terms, most }
}

/// Every predicate that a check may name: what the authoriser gives, then what an authority block states.
static PREDICATES: [Predicate; 23] = [
    given("time", &[Type::Date], 1),
    given("tool", &[Type::Text], 1),
    given("caller", &[Type::Text], 1),
    given("provider", &[Type::Text], 1),
    given("trust", &[Type::Integer], 1),
    given("proof", &[Type::Text], 1),
    given("covers", &[Type::Text], SEGMENTS_MAX + 1),
    given("arg", &[Type::Text, Type::Scalar], ARGUMENT_FACTS_MAX),
    given("path", &[Type::Text, Type::Text], ARGUMENT_FACTS_MAX),
    given("odd_arg", &[Type::Text], ARGUMENT_FACTS_MAX),
    stated("kind", &[Type::Text]),
    stated("org", &[Type::Text]),
    stated("issued", &[Type::Date]),
    stated("agent", &[Type::Text]),
    stated("holder", &[Type::Bytes]),
    stated("capability", &[Type::Text]),
    stated("sandbox", &[Type::Text]),
    stated("calls", &[Type::Integer]),
    stated("aud", &[Type::Text]),
    stated("name", &[Type::Text]),
    stated("ceiling", &[Type::Text]),
    stated("prefix", &[Type::Text]),
    stated("uses", &[Type::Integer]),
];

/// How often each predicate is stated by the blocks that a check can see.
pub(super) type Counts = BTreeMap<String, usize>;

/// A check whose answer is a table lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standard {
    /// `check if time($t), $t < …`, in seconds since the epoch.
    Before(u64),
    /// `check if time($t), $t >= …`
    NotBefore(u64),
    /// `check if covers("…") or covers("…")`
    Only(Vec<Pattern>),
}

// ------------------------------------------------------------------------------------------------
// What a check says of itself.

impl Check {
    /// Whether it asks about the arguments of the call.
    #[must_use]
    pub fn names_arguments(&self) -> bool {
        self.asks(|name| matches!(name, "arg" | "path" | "odd_arg"))
    }

    /// Whether it asks who calls.
    #[must_use]
    pub fn names_caller(&self) -> bool {
        self.asks(|name| name == "caller")
    }

    /// Whether it holds unless an argument says otherwise, so that a value left out would pass it.
    pub(super) fn holds_without_argument(&self) -> bool {
        self.kind != Kind::If && self.asks(|name| name == "arg")
    }

    /// Whether it is a time limit, as the terms of every token state one.
    #[must_use]
    pub fn is_time_limit(&self) -> bool {
        matches!(
            self.standard(),
            Some(Standard::Before(_) | Standard::NotBefore(_))
        )
    }

    /// Whether it asks about trust, so that whoever checks it needs a score.
    #[must_use]
    pub fn names_trust(&self) -> bool {
        self.asks(|name| name == "trust")
    }

    fn asks(&self, of: impl Fn(&str) -> bool) -> bool {
        let mut atoms = self.queries.iter().flat_map(|query| &query.atoms);
        atoms.any(|atom| of(atom.predicate.name))
    }

    /// What it is when a table can answer it.
    pub(super) fn standard(&self) -> Option<Standard> {
        if self.kind != Kind::If {
            return None;
        }
        if let [query] = self.queries.as_slice()
            && let Some(bound) = query.time_bound()
        {
            return Some(bound);
        }
        let patterns = self.queries.iter().map(Query::only_covers);
        Some(Standard::Only(patterns.collect::<Option<_>>()?))
    }

    /// Bytes of all strings in it, each as often as it stands there. A symbol is written once and used
    /// often; the engine spells out checks that fail.
    pub(super) fn text_bytes(&self) -> usize {
        let atoms = self.queries.iter().flat_map(|query| &query.atoms);
        let terms = atoms.flat_map(|atom| &atom.terms).map(Term::text_bytes);
        let expressions = self.queries.iter().flat_map(|query| &query.expressions);
        terms.sum::<usize>() + expressions.map(|ops| text_bytes(ops)).sum::<usize>()
    }

    /// What it may cost at most, in units of about 0.6 µs, where the blocks it sees state `counts`.
    pub(super) fn cost(&self, counts: &Counts) -> u64 {
        let queries = self.queries.iter();
        queries.fold(0, |sum, query| sum.saturating_add(query.cost(counts)))
    }
}

impl Query {
    fn time_bound(&self) -> Option<Standard> {
        let ([atom], [expression]) = (self.atoms.as_slice(), self.expressions.as_slice()) else {
            return None;
        };
        let ("time", [Term::Variable(bound)]) = (atom.predicate.name, atom.terms.as_slice()) else {
            return None;
        };
        match expression.as_slice() {
            [
                Op::Value(Term::Variable(used)),
                Op::Value(Term::Value(Value::Date(date))),
                Op::Binary(operator),
            ] if used == bound => match operator {
                Binary::Less => Some(Standard::Before(*date)),
                Binary::GreaterOrEqual => Some(Standard::NotBefore(*date)),
                _ => None,
            },
            _ => None,
        }
    }

    fn only_covers(&self) -> Option<Pattern> {
        match (self.atoms.as_slice(), self.expressions.as_slice()) {
            ([atom], []) if atom.predicate.name == "covers" => match atom.terms.as_slice() {
                [Term::Value(Value::Text(pattern))] => pattern.parse().ok(),
                _ => None,
            },
            _ => None,
        }
    }

    /// Four units for starting, three for each predicate, one for each combination of facts that the join
    /// looks at, and for each full match its comparisons.
    fn cost(&self, counts: &Counts) -> u64 {
        let mut matches: u64 = 1;
        let mut units: u64 = 4;
        for atom in &self.atoms {
            matches = matches.saturating_mul(atom.most(counts));
            units = units.saturating_add(matches).saturating_add(3);
        }
        let weight = self.expressions.iter().map(|ops| weight(ops, 1)).sum();
        units.saturating_add(matches.saturating_mul(weight) / 16)
    }

    /// Whether at most one combination of facts can match, whatever the call.
    fn is_single(&self) -> bool {
        self.atoms.iter().all(Atom::is_single)
    }
}

/// What one match's comparisons cost, in sixteenths of a unit. Closures are copied at every level.
fn weight(ops: &[Op], level: u64) -> u64 {
    let one = |op: &Op| match op {
        Op::Value(_) => level,
        Op::Not | Op::Parens => level,
        Op::Binary(Binary::Contains | Binary::StartsWith | Binary::EndsWith) => 4 * level,
        Op::Binary(_) => 2 * level,
        Op::Closure(ops) => 2 * level + weight(ops, level + 1),
    };
    ops.iter().map(one).sum()
}

fn text_bytes(ops: &[Op]) -> usize {
    let of = |op: &Op| match op {
        Op::Value(term) => term.text_bytes(),
        Op::Closure(ops) => text_bytes(ops),
        Op::Not | Op::Parens | Op::Binary(_) => 0,
    };
    ops.iter().map(of).sum()
}

impl Term {
    fn text_bytes(&self) -> usize {
        match self {
            Self::Variable(name) | Self::Value(Value::Text(name)) => name.len(),
            Self::Value(Value::Bytes(bytes)) => bytes.len(),
            Self::Value(_) => 0,
        }
    }
}

impl Atom {
    /// How many facts may match it; never less than one, because looking costs too.
    fn most(&self, counts: &Counts) -> u64 {
        if self.is_single() {
            return 1;
        }
        let most = match self.predicate.most {
            Most::Given(most) => most,
            Most::Stated => counts.get(self.predicate.name).copied().unwrap_or_default(),
        };
        (most as u64).max(1)
    }

    fn is_single(&self) -> bool {
        let keyed = matches!(self.terms.first(), Some(Term::Value(_)));
        keyed || self.predicate.most == Most::Given(1)
    }
}

// ------------------------------------------------------------------------------------------------
// Reading: from a block's bytes. There is no other way to make one.

impl Check {
    /// Reads a check from a block, whose symbols `symbols` resolves.
    pub(super) fn decode(check: &schema::Check, symbols: &SymbolTable) -> Result<Self, BadCheck> {
        let kind = match check.kind {
            None | Some(0) => Kind::If,
            Some(1) => Kind::All,
            Some(2) => Kind::Reject,
            _ => return bad("a check of no known kind"),
        };
        if check.queries.is_empty() {
            return bad("a check without a query");
        }
        // The engine lets `reject if a or b` pass when either does not match, which is not what it says.
        if kind == Kind::Reject && check.queries.len() > 1 {
            return bad("reject if … or …: write two checks");
        }
        let read = |query| Query::decode(query, symbols);
        let queries = check.queries.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { kind, queries })
    }
}

impl Query {
    fn decode(query: &schema::Rule, symbols: &SymbolTable) -> Result<Self, BadCheck> {
        if !query.scope.is_empty() {
            return bad("a check with a scope of its own");
        }
        if symbols.get_symbol(query.head.name) != Some("query") || !query.head.terms.is_empty() {
            return bad("a check whose query has a head of its own");
        }
        if query.body.is_empty() && query.expressions.is_empty() {
            return bad("a query that asks nothing");
        }
        if query.body.len() > TOKEN_ATOMS_MAX {
            return bad(format!("a query of more than {TOKEN_ATOMS_MAX} predicates"));
        }
        let atoms = query.body.iter().map(|atom| Atom::decode(atom, symbols));
        let atoms = atoms.collect::<Result<Vec<_>, _>>()?;
        let mut operators = 0;
        let expressions = query.expressions.iter();
        let expressions =
            expressions.map(|e| decode_ops(&e.ops, symbols, TOKEN_CLOSURES_MAX, &mut operators));
        let query = Self {
            atoms,
            expressions: expressions.collect::<Result<_, _>>()?,
        };
        query.check_types()?;
        Ok(query)
    }
}

impl Atom {
    fn decode(atom: &schema::Predicate, symbols: &SymbolTable) -> Result<Self, BadCheck> {
        let name = symbol(atom.name, symbols)?;
        let Some(predicate) = PREDICATES.iter().find(|known| known.name == name) else {
            return bad(format!("a check may not ask about {name:?}"));
        };
        if atom.terms.len() != predicate.terms.len() {
            return bad(format!(
                "{name} has {} terms: a check with {} can never match",
                predicate.terms.len(),
                atom.terms.len()
            ));
        }
        let terms = atom.terms.iter().map(|term| Term::decode(term, symbols));
        let atom = Self {
            predicate,
            terms: terms.collect::<Result<_, _>>()?,
        };
        atom.check_constants()?;
        Ok(atom)
    }

    /// A constant that no fact can hold would make a check that never matches, and a `reject` that never rejects.
    fn check_constants(&self) -> Result<(), BadCheck> {
        let name = self.predicate.name;
        for (term, wanted) in self.terms.iter().zip(self.predicate.terms) {
            if let Term::Value(value) = term
                && value.of_type().meet(*wanted).is_none()
            {
                return bad(format!("{name} never holds {value}"));
            }
        }
        match (name, self.terms.first()) {
            ("covers", Some(Term::Value(Value::Text(text))))
                if text.parse::<Pattern>().is_err() =>
            {
                bad(format!("{text:?} is not a pattern of capabilities"))
            }
            ("arg" | "path" | "odd_arg", Some(Term::Value(Value::Text(text))))
                if !is_pointer(text) =>
            {
                bad(format!(
                    "{text:?} is not a JSON pointer below the arguments"
                ))
            }
            _ => Ok(()),
        }
    }
}

/// Whether `text` is an RFC 6901 pointer to something inside the arguments object.
pub(super) fn is_pointer(text: &str) -> bool {
    let mut tail = text;
    while let Some(at) = tail.find('~') {
        tail = &tail[at + 1..];
        if !tail.starts_with(['0', '1']) {
            return false;
        }
    }
    text.starts_with('/') && text.len() <= ARGUMENT_STRING_MAX
}

impl Term {
    fn decode(term: &schema::Term, symbols: &SymbolTable) -> Result<Self, BadCheck> {
        if let Some(schema::term::Content::Variable(name)) = &term.content {
            let name = symbol(u64::from(*name), symbols)?;
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if name.is_empty() || name.len() > 64 || !name.bytes().all(word) {
                return bad("a variable whose name is not 1 to 64 of A-Z a-z 0-9 _");
            }
            return Ok(Self::Variable(name.into()));
        }
        Value::decode(term, symbols).map(Self::Value)
    }
}

impl Value {
    /// Reads a constant: in a block's fact, or in a check.
    pub(super) fn decode(term: &schema::Term, symbols: &SymbolTable) -> Result<Self, BadCheck> {
        use schema::term::Content;
        Ok(match &term.content {
            Some(Content::Integer(integer)) => Self::Integer(*integer),
            Some(Content::String(index)) => Self::Text(symbol(*index, symbols)?.into()),
            Some(Content::Date(seconds)) if *seconds <= DATE_MAX => Self::Date(*seconds),
            Some(Content::Date(_)) => return bad("a date after the year 9999"),
            Some(Content::Bytes(bytes)) => Self::Bytes(bytes.clone()),
            Some(Content::Bool(bool)) => Self::Bool(*bool),
            Some(Content::Variable(_)) => return bad("a variable where only a constant may stand"),
            Some(Content::Set(_) | Content::Null(_) | Content::Array(_) | Content::Map(_))
            | None => return bad("sets, arrays, maps and null do not occur in tokens"),
        })
    }

    fn of_type(&self) -> Type {
        match self {
            Self::Integer(_) => Type::Integer,
            Self::Text(_) => Type::Text,
            Self::Date(_) => Type::Date,
            Self::Bytes(_) => Type::Bytes,
            Self::Bool(_) => Type::Bool,
        }
    }
}

fn symbol(index: u64, symbols: &SymbolTable) -> Result<&str, BadCheck> {
    symbols
        .get_symbol(index)
        .ok_or_else(|| BadCheck(format!("symbol {index} is not in this block's table")))
}

fn decode_ops(
    ops: &[schema::Op],
    symbols: &SymbolTable,
    closures: usize,
    operators: &mut usize,
) -> Result<Vec<Op>, BadCheck> {
    use schema::op::Content;
    let mut read = Vec::with_capacity(ops.len());
    for op in ops {
        read.push(match &op.content {
            Some(Content::Value(term)) => Op::Value(Term::decode(term, symbols)?),
            Some(Content::Unary(unary)) => match (unary.kind, unary.ffi_name) {
                (0, None) => Op::Not,
                (1, None) => Op::Parens,
                _ => return bad("of the unary operators only ! and parentheses may occur"),
            },
            Some(Content::Binary(binary)) => Op::Binary(Binary::decode(binary)?),
            Some(Content::Closure(closure)) if !closure.params.is_empty() => {
                return bad("a closure with a parameter");
            }
            Some(Content::Closure(_)) if closures == 0 => {
                return bad(format!("&& and || nested deeper than {TOKEN_CLOSURES_MAX}"));
            }
            Some(Content::Closure(closure)) => {
                Op::Closure(decode_ops(&closure.ops, symbols, closures - 1, operators)?)
            }
            None => return bad("an empty operation"),
        });
        if matches!(read.last(), Some(Op::Not | Op::Parens | Op::Binary(_))) {
            *operators += 1;
        }
        if *operators > TOKEN_OPERATORS_MAX {
            return bad(format!(
                "a query of more than {TOKEN_OPERATORS_MAX} operators"
            ));
        }
    }
    Ok(read)
}

impl Binary {
    fn decode(binary: &schema::OpBinary) -> Result<Self, BadCheck> {
        use schema::op_binary::Kind;
        Ok(match (Kind::from_i32(binary.kind), binary.ffi_name) {
            (Some(Kind::LessThan), None) => Self::Less,
            (Some(Kind::GreaterThan), None) => Self::Greater,
            (Some(Kind::LessOrEqual), None) => Self::LessOrEqual,
            (Some(Kind::GreaterOrEqual), None) => Self::GreaterOrEqual,
            (Some(Kind::Equal), None) => Self::StrictEqual,
            (Some(Kind::NotEqual), None) => Self::StrictNotEqual,
            (Some(Kind::HeterogeneousEqual), None) => Self::Equal,
            (Some(Kind::HeterogeneousNotEqual), None) => Self::NotEqual,
            (Some(Kind::Contains), None) => Self::Contains,
            (Some(Kind::Prefix), None) => Self::StartsWith,
            (Some(Kind::Suffix), None) => Self::EndsWith,
            (Some(Kind::LazyAnd), None) => Self::And,
            (Some(Kind::LazyOr), None) => Self::Or,
            (Some(kind), _) => return bad(format!("operator {kind:?} may not occur in a token")),
            (None, _) => return bad("an operator of no known kind"),
        })
    }
}

// ------------------------------------------------------------------------------------------------
// Types: no check that is let through can end in an engine error that depends on the order of facts.

impl Type {
    /// The type that is both, or nothing when no value is.
    fn meet(self, other: Self) -> Option<Self> {
        match (self, other) {
            (one, two) if one == two => Some(one),
            (Self::Scalar, known @ (Self::Integer | Self::Text | Self::Bool))
            | (known @ (Self::Integer | Self::Text | Self::Bool), Self::Scalar) => Some(known),
            _ => None,
        }
    }
}

/// What stands on the stack while a postfix expression is read.
enum Slot {
    Of(Type),
    /// A closure that yields a boolean.
    Later,
}

impl Query {
    fn check_types(&self) -> Result<(), BadCheck> {
        let mut variables = BTreeMap::new();
        for atom in &self.atoms {
            for (term, wanted) in atom.terms.iter().zip(atom.predicate.terms) {
                if let Term::Variable(name) = term {
                    let had = variables.insert(name.as_str(), *wanted);
                    let Some(both) = had.map_or(Some(*wanted), |had| had.meet(*wanted)) else {
                        return bad(format!("${name} would have to be of two types at once"));
                    };
                    variables.insert(name, both);
                }
            }
        }
        let typing = Typing {
            variables,
            is_single: self.is_single(),
        };
        self.expressions
            .iter()
            .try_for_each(|ops| typing.is_boolean(ops))
    }
}

struct Typing<'a> {
    variables: BTreeMap<&'a str, Type>,
    /// Whether at most one combination of facts matches, so that a wrong type is always the same refusal.
    is_single: bool,
}

impl Typing<'_> {
    fn is_boolean(&self, ops: &[Op]) -> Result<(), BadCheck> {
        let mut stack = Vec::new();
        for op in ops {
            let slot = self.step(op, &mut stack)?;
            stack.push(slot);
        }
        match stack.as_slice() {
            [Slot::Of(found)] => self.expect(*found, Type::Bool),
            _ => bad("an expression that does not come to one value"),
        }
    }

    fn step(&self, op: &Op, stack: &mut Vec<Slot>) -> Result<Slot, BadCheck> {
        let mut pop = || match stack.pop() {
            Some(Slot::Of(found)) => Ok(found),
            Some(Slot::Later) | None => bad("an operator without its operands"),
        };
        Ok(Slot::Of(match op {
            Op::Value(Term::Variable(name)) => match self.variables.get(name.as_str()) {
                Some(found) => *found,
                None => return bad(format!("${name} is compared but never bound")),
            },
            Op::Value(Term::Value(value)) => value.of_type(),
            Op::Parens => pop()?,
            Op::Not => {
                self.expect(pop()?, Type::Bool)?;
                Type::Bool
            }
            Op::Closure(ops) => {
                self.is_boolean(ops)?;
                return Ok(Slot::Later);
            }
            Op::Binary(Binary::And | Binary::Or) => {
                let Some(Slot::Later) = stack.pop() else {
                    return bad("&& or || without its right side");
                };
                let Some(Slot::Of(left)) = stack.pop() else {
                    return bad("&& or || without its left side");
                };
                self.expect(left, Type::Bool)?;
                Type::Bool
            }
            Op::Binary(operator) => {
                let (right, left) = (pop()?, pop()?);
                self.compare(*operator, left, right)?;
                Type::Bool
            }
        }))
    }

    fn expect(&self, found: Type, wanted: Type) -> Result<(), BadCheck> {
        match found.meet(wanted) {
            Some(_) if found == wanted || self.is_single => Ok(()),
            Some(_) => bad(
                "the value of an argument has a type only at the call: name the argument by a constant pointer, alone or with predicates that hold once, or compare with == and !=",
            ),
            None => bad(format!(
                "{found:?} where {wanted:?} is needed: this never holds"
            )),
        }
    }

    fn compare(&self, operator: Binary, left: Type, right: Type) -> Result<(), BadCheck> {
        let both = |wanted| {
            self.expect(left, wanted)?;
            self.expect(right, wanted)
        };
        match operator {
            Binary::Contains | Binary::StartsWith | Binary::EndsWith => both(Type::Text),
            Binary::And | Binary::Or => both(Type::Bool),
            Binary::Less | Binary::Greater | Binary::LessOrEqual | Binary::GreaterOrEqual => {
                let dates = left == Type::Date || right == Type::Date;
                both(if dates { Type::Date } else { Type::Integer })
            }
            Binary::Equal | Binary::NotEqual if left.meet(right).is_some() => Ok(()),
            Binary::StrictEqual | Binary::StrictNotEqual if left == right => {
                self.expect(left, left)
            }
            Binary::StrictEqual | Binary::StrictNotEqual if left.meet(right).is_some() => {
                self.expect(Type::Scalar, Type::Text)
            }
            _ => bad(format!("{left:?} is never equal to {right:?}")),
        }
    }
}

// ------------------------------------------------------------------------------------------------
// Text: Datalog, as the engine's own parser reads it.

/// Deepest nesting of brackets that is given to the engine's recursive parser.
const TEXT_DEPTH_MAX: usize = 32;

/// Whether the recursive parser can be given this without running out of stack.
fn is_shallow(text: &str) -> bool {
    let (mut depth, mut deepest, mut negations, mut quoted, mut escaped) =
        (0_usize, 0, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'(' | b'{' | b'[' => depth += 1,
            b')' | b'}' | b']' => depth = depth.saturating_sub(1),
            b'!' => negations += 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest <= TEXT_DEPTH_MAX && negations <= 2 * TOKEN_OPERATORS_MAX
}

/// Reads one Datalog check: `check if …`, `check all …` or `reject if …`.
///
/// # Errors
///
/// [`BadCheck`]: it does not parse, the gate would refuse it, it can never match, or it alone costs
/// more than a token may.
impl FromStr for Check {
    type Err = BadCheck;
    fn from_str(text: &str) -> Result<Self, BadCheck> {
        if text.len() > TOKEN_BYTES_MAX || !is_shallow(text) {
            return bad("too long, or nested too deeply");
        }
        let parsed: biscuit_auth::builder::Check = text
            .parse()
            .map_err(|e| BadCheck(format!("not a Datalog check: {e}")))?;
        parsed
            .validate_parameters()
            .map_err(|_| BadCheck("a parameter in braces".into()))?;
        let scoped = parsed.queries.iter().any(|query| !query.scopes.is_empty());
        if scoped {
            return bad("a check with a scope of its own");
        }
        let mut symbols = SymbolTable::new();
        let proto = convert::token_check_to_proto_check(&parsed.convert(&mut symbols));
        let check = Self::decode(&proto, &symbols)?;
        match check.cost(&Counts::new()) {
            cost if cost > TOKEN_COST_MAX => bad(format!("could cost {cost} units")),
            _ => Ok(check),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::If => "check if ",
            Kind::All => "check all ",
            Kind::Reject => "reject if ",
        })?;
        join(f, &self.queries, " or ")
    }
}

fn join<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T], by: &str) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(by)?;
        }
        item.fmt(f)?;
    }
    Ok(())
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let atoms = self.atoms.iter().map(ToString::to_string);
        let expressions = self.expressions.iter().map(|ops| infix(ops));
        join(f, &atoms.chain(expressions).collect::<Vec<_>>(), ", ")
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.predicate.name)?;
        join(f, &self.terms, ", ")?;
        f.write_str(")")
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "${name}"),
            Self::Value(value) => value.fmt(f),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(integer) => integer.fmt(f),
            Self::Text(text) => {
                let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
                write!(f, "\"{}\"", escaped.replace('\n', "\\n"))
            }
            Self::Date(seconds) => f.write_str(&rfc3339(*seconds)),
            Self::Bytes(bytes) => {
                f.write_str("hex:")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Self::Bool(bool) => bool.fmt(f),
        }
    }
}

impl fmt::Display for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Less => "<",
            Self::Greater => ">",
            Self::LessOrEqual => "<=",
            Self::GreaterOrEqual => ">=",
            Self::StrictEqual => "===",
            Self::StrictNotEqual => "!==",
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Contains => "contains",
            Self::StartsWith => "starts_with",
            Self::EndsWith => "ends_with",
            Self::And => "&&",
            Self::Or => "||",
        })
    }
}

/// How tightly an infix text binds, so that parentheses are written where the bytes have none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Binding {
    Or,
    And,
    Comparison,
    Not,
    Tight,
}

fn infix(ops: &[Op]) -> String {
    let mut stack: Vec<(String, Binding)> = Vec::new();
    for op in ops {
        let item = match op {
            Op::Value(term) => (term.to_string(), Binding::Tight),
            Op::Closure(ops) => infix_with_binding(ops),
            Op::Parens => (
                format!("({})", pop(&mut stack, Binding::Or)),
                Binding::Tight,
            ),
            Op::Not => (
                format!("!{}", pop(&mut stack, Binding::Tight)),
                Binding::Not,
            ),
            Op::Binary(operator) => {
                let (own, left_min, right_min) = match operator {
                    Binary::Or => (Binding::Or, Binding::Or, Binding::And),
                    Binary::And => (Binding::And, Binding::And, Binding::Comparison),
                    Binary::Contains | Binary::StartsWith | Binary::EndsWith => {
                        (Binding::Tight, Binding::Tight, Binding::Or)
                    }
                    _ => (Binding::Comparison, Binding::Not, Binding::Not),
                };
                let right = pop(&mut stack, right_min);
                let left = pop(&mut stack, left_min);
                let text = match own {
                    Binding::Tight => format!("{left}.{operator}({right})"),
                    _ => format!("{left} {operator} {right}"),
                };
                (text, own)
            }
        };
        stack.push(item);
    }
    pop(&mut stack, Binding::Or)
}

fn infix_with_binding(ops: &[Op]) -> (String, Binding) {
    let binding = match ops.last() {
        Some(Op::Binary(Binary::Or)) => Binding::Or,
        Some(Op::Binary(Binary::And)) => Binding::And,
        Some(Op::Binary(Binary::Contains | Binary::StartsWith | Binary::EndsWith)) => {
            Binding::Tight
        }
        Some(Op::Binary(_)) => Binding::Comparison,
        Some(Op::Not) => Binding::Not,
        _ => Binding::Tight,
    };
    (infix(ops), binding)
}

fn pop(stack: &mut Vec<(String, Binding)>, at_least: Binding) -> String {
    match stack.pop() {
        Some((text, binding)) if binding >= at_least => text,
        Some((text, _)) => format!("({text})"),
        None => String::new(),
    }
}

serde_as_text!(Check);

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Check, String> {
        text.parse().map_err(|e: BadCheck| e.0)
    }

    #[test]
    fn a_check_is_shown_as_text_that_reads_back_as_itself() {
        for text in [
            "check if covers(\"file.read.*\") or covers(\"file.list\")",
            "check if time($t), $t < 2030-01-01T00:00:00Z",
            "check if arg(\"/mode\", $m), $m == \"a\\\"b\\\\c\\nd\" || $m == 3 || $m == true",
            "check all path($p, $v), !($p == \"/path\" || $p.starts_with(\"/path/\")) || $v == \"/a\"",
            "reject if odd_arg($p), $p == \"/x\" && ($p != \"/y\" || !($p.contains(\"z\")))",
            "check if holder($h), $h !== hex:00ff",
            "check if trust($s), proof(\"key\"), $s >= 50",
            "check if true",
        ] {
            let read = check(text).unwrap();
            assert_eq!(read.to_string(), text);
            assert_eq!(check(&read.to_string()).unwrap(), read);
        }
    }

    #[test]
    fn a_check_that_can_never_match_is_an_error_when_it_is_written() {
        for (text, why) in [
            ("check if covers(\"file*\")", "not a pattern"),
            ("check if resource(\"x\")", "may not ask about"),
            ("check if tool(\"x\", \"y\")", "has 1 terms"),
            ("check if trust(\"high\")", "never holds"),
            ("check if arg(\"mode\", \"r\")", "not a JSON pointer"),
            ("check if arg(\"/a~2\", \"r\")", "not a JSON pointer"),
            ("check if tool($t), $t < 3", "never holds"),
            ("check if tool($t), $t == 3", "never equal"),
            ("check if tool($t), trust($t)", "two types at once"),
            ("check if tool($t), $u == \"x\"", "never bound"),
            ("check if {a} == 1", "parameter"),
            ("check if tool($t), $t.matches(\"a\")", "Regex"),
            ("check if tool($t), {\"a\", \"b\"}.contains($t)", "sets"),
            ("check if tool($t), $t.length() == 3", "unary operators"),
            ("check if trust($t), $t + 1 == 3", "Add"),
            ("check if tool($t) trusting previous", "scope"),
            ("check if [1, 2].any($p -> $p > 1)", "sets, arrays"),
            ("reject if tool(\"a\") or tool(\"b\")", "two checks"),
            ("check if arg($p, $v), $v <= 5", "constant pointer"),
            (
                "check if arg(\"/a\", $v), path($p, $w), $v <= 5",
                "constant pointer",
            ),
        ] {
            let error = check(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn text_cannot_exhaust_the_stack_of_the_recursive_parser() {
        let deep = |open: &str, close: &str, n: usize| {
            format!("check if {}true{}", open.repeat(n), close.repeat(n))
        };
        let small_stack = std::thread::Builder::new().stack_size(512 << 10);
        let texts = [
            deep("(", ")", 32),
            deep("(", ")", 3_000),
            deep("!", "", 128),
            deep("!", "", 8_000),
        ];
        let run = move || texts.iter().map(|t| check(t).is_ok()).collect::<Vec<_>>();
        let read = small_stack.spawn(run).unwrap().join().unwrap();
        assert!(!read[1] && !read[3], "{read:?}");
    }
}
