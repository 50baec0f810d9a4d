//! Conditions that no call can meet, alone or together: an error when they are written.
//!
//! Otherwise they would be a denial that nobody can explain, much later. Only what is cheap to see is seen:
//! a contradiction that is missed is denied at the call, and nothing that some call could meet is refused.

use std::collections::BTreeMap;

use super::super::arguments::is_plain_path;
use super::{Atom, BadCheck, Binary, Check, Kind, Op, Query, Term, Value};
use crate::limits::DEPTH_MAX;

/// Members and elements that lead to an argument at most: the envelope, its body and the arguments object
/// are three levels of the depth that an envelope may have.
const POINTER_STEPS_MAX: usize = DEPTH_MAX - 2;

/// Refuses `new` checks of which some call could not meet every one, besides those `held` already.
///
/// # Errors
///
/// [`BadCheck`] names the one or two that contradict.
pub(in super::super) fn can_hold(held: &[&Check], new: &[Check]) -> Result<(), BadCheck> {
    let held = conditions(held);
    let new_ones = conditions(&new.iter().collect::<Vec<_>>());
    for check in new {
        check.names_what_can_be_there()?;
    }
    for (index, one) in new_ones.iter().enumerate() {
        if !one.is_possible() {
            return Err(BadCheck(format!(
                "no call can meet {}: correct it, or leave it out",
                one.shown
            )));
        }
        if let Some(other) = new_ones[..index]
            .iter()
            .find(|other| !one.agrees_with(other))
        {
            return Err(BadCheck(format!(
                "no call can meet both {} and {}: leave one of them out",
                other.shown, one.shown
            )));
        }
        if let Some(before) = held.iter().find(|before| !one.agrees_with(before)) {
            return Err(BadCheck(format!(
                "no call can meet {} besides what holds already, {}: leave it out",
                one.shown, before.shown
            )));
        }
    }
    Ok(())
}

/// One check, or the checks of one `under` clause: each of its alternatives as what it demands.
struct Condition<'a> {
    shown: String,
    alternatives: Vec<Vec<Demand<'a>>>,
}

/// What is demanded of one value of the call.
#[derive(Debug, Clone)]
struct Demand<'a> {
    of: Subject<'a>,
    what: What<'a>,
}

/// A value that every call has at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Subject<'a> {
    /// The argument at a pointer.
    Argument(&'a str),
    /// What a predicate says that holds once: `tool`, `trust`, …
    Fact(&'static str),
    /// Nothing: what is demanded holds or does not, whatever the call.
    Nothing,
}

#[derive(Debug, Clone)]
enum What<'a> {
    Compare(Binary, &'a Value),
    /// Is an absolute path without empty, `.` and `..` segments.
    Path,
    /// Is such a path, and this directory or in it.
    Under(String),
    Never,
}

impl Condition<'_> {
    fn is_possible(&self) -> bool {
        self.alternatives.iter().any(|one| is_possible(one, &[]))
    }

    fn agrees_with(&self, other: &Self) -> bool {
        let with = |one: &Vec<Demand<'_>>| {
            let others = other.alternatives.iter();
            others.into_iter().any(|another| is_possible(one, another))
        };
        self.alternatives.iter().any(with)
    }
}

/// The checks that demand something, as [`Condition`]s.
fn conditions<'a>(checks: &[&'a Check]) -> Vec<Condition<'a>> {
    let mut found = Vec::new();
    let mut rest = checks;
    while let [first, after @ ..] = rest {
        if let Some((condition, length)) = under(rest) {
            found.push(condition);
            rest = &rest[length..];
            continue;
        }
        if first.kind != Kind::Reject {
            found.push(Condition {
                shown: first.to_string(),
                alternatives: first.queries.iter().map(demands).collect(),
            });
        }
        rest = after;
    }
    found
}

/// `path under /srv`, where the list begins with exactly the checks that it stands for.
fn under<'a>(checks: &[&'a Check]) -> Option<(Condition<'a>, usize)> {
    let outside = checks.get(1)?.queries.first()?;
    let constant = |expression: usize| match outside.expressions.get(expression)?.get(1)? {
        Op::Value(Term::Value(Value::Text(text))) => Some(text.as_str()),
        _ => None,
    };
    let (pointer, directory) = (constant(0)?, constant(1)?);
    let meant = Check::path_under(pointer, directory).ok()?;
    let is_meant = checks.len() >= meant.len() && meant.iter().zip(checks).all(|(a, b)| a == *b);
    let demand = Demand {
        of: Subject::Argument(pointer),
        what: What::Under(directory.into()),
    };
    let condition = Condition {
        shown: format!("{pointer} under {directory}"),
        alternatives: vec![vec![demand]],
    };
    is_meant.then_some((condition, meant.len()))
}

impl Check {
    fn names_what_can_be_there(&self) -> Result<(), BadCheck> {
        let atoms = self.queries.iter().flat_map(|query| &query.atoms);
        for pointer in atoms.filter_map(Atom::pointer) {
            if pointer.matches('/').count() > POINTER_STEPS_MAX {
                return Err(BadCheck(format!(
                    "no envelope is as deep as {pointer}: at most {POINTER_STEPS_MAX} steps lead to an argument"
                )));
            }
        }
        Ok(())
    }
}

impl Atom {
    /// The pointer to the one argument that it asks about.
    fn pointer(&self) -> Option<&str> {
        match (self.predicate.name, self.terms.first()) {
            ("arg" | "path" | "odd_arg", Some(Term::Value(Value::Text(text)))) => Some(text),
            _ => None,
        }
    }

    /// What it asks about that has one value, and how that value is written here.
    fn single(&self) -> Option<(Subject<'_>, &Term)> {
        match (self.predicate.name, self.terms.as_slice()) {
            ("arg" | "path", [_, value]) => Some((Subject::Argument(self.pointer()?), value)),
            (name @ ("time" | "tool" | "caller" | "provider" | "trust" | "proof"), [value]) => {
                Some((Subject::Fact(name), value))
            }
            _ => None,
        }
    }
}

// ------------------------------------------------------------------------------------------------
// What a query demands.

fn demands(query: &Query) -> Vec<Demand<'_>> {
    let mut demands = Vec::new();
    let mut bound: BTreeMap<&str, Vec<Subject<'_>>> = BTreeMap::new();
    for atom in &query.atoms {
        let Some((of, value)) = atom.single() else {
            continue;
        };
        if atom.predicate.name == "path" {
            let what = What::Path;
            demands.push(Demand { of, what });
        }
        match value {
            Term::Variable(name) => bound.entry(name).or_default().push(of),
            Term::Value(value) => {
                let what = What::Compare(Binary::Equal, value);
                demands.push(Demand { of, what });
            }
        }
    }
    for comparison in query.expressions.iter().flat_map(|ops| conjuncts(ops)) {
        let (name, operator, value) = match comparison {
            [Op::Value(Term::Value(Value::Bool(false)))] => {
                let (of, what) = (Subject::Nothing, What::Never);
                demands.push(Demand { of, what });
                continue;
            }
            [
                Op::Value(Term::Variable(name)),
                Op::Value(Term::Value(value)),
                Op::Binary(operator),
            ] => (name, *operator, value),
            [
                Op::Value(Term::Value(value)),
                Op::Value(Term::Variable(name)),
                Op::Binary(operator),
            ] => match operator.turned() {
                Some(operator) => (name, operator, value),
                None => continue,
            },
            _ => continue,
        };
        for of in bound.get(name.as_str()).into_iter().flatten() {
            let what = What::Compare(operator, value);
            demands.push(Demand { of: *of, what });
        }
    }
    demands
}

/// The parts of `a && b && c`.
fn conjuncts(ops: &[Op]) -> Vec<&[Op]> {
    match ops {
        [inner @ .., Op::Parens] => conjuncts(inner),
        [left @ .., Op::Closure(right), Op::Binary(Binary::And)] => {
            let mut parts = conjuncts(left);
            parts.extend(conjuncts(right));
            parts
        }
        one => vec![one],
    }
}

impl Binary {
    /// The operator that says the same with its sides exchanged.
    fn turned(self) -> Option<Self> {
        Some(match self {
            Self::Less => Self::Greater,
            Self::Greater => Self::Less,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::GreaterOrEqual => Self::LessOrEqual,
            Self::Equal | Self::NotEqual | Self::StrictEqual | Self::StrictNotEqual => self,
            Self::Contains | Self::StartsWith | Self::EndsWith | Self::And | Self::Or => {
                return None;
            }
        })
    }
}

// ------------------------------------------------------------------------------------------------
// Whether one value can be all that is demanded of it.

fn is_possible(some: &[Demand<'_>], more: &[Demand<'_>]) -> bool {
    let mut by_subject: BTreeMap<Subject<'_>, Vec<&What<'_>>> = BTreeMap::new();
    for demand in some.iter().chain(more) {
        by_subject.entry(demand.of).or_default().push(&demand.what);
    }
    by_subject.iter().all(|(of, whats)| can_be(*of, whats))
}

fn can_be(of: Subject<'_>, whats: &[&What<'_>]) -> bool {
    let fits = |value: &Value| whats.iter().all(|what| what.accepts(value));
    if let Some(value) = whats.iter().find_map(|what| what.only_value()) {
        return fits(value) && of.may_have(value);
    }
    if of == Subject::Fact("proof") {
        return ["key", "bearer"]
            .iter()
            .any(|proof| fits(&Value::Text((*proof).into())));
    }
    let numbers = whats.iter().filter_map(|what| what.range());
    let all = match of {
        Subject::Fact("trust") => (0, 100),
        _ => (i64::MIN, i64::MAX),
    };
    let range = numbers
        .clone()
        .fold(all, |(low, high), (from, to)| (low.max(from), high.min(to)));
    let is_text = whats.iter().any(|what| what.is_of_text());
    let types_agree = !(is_text && numbers.count() > 0);
    let beginnings: Vec<&str> = whats.iter().filter_map(|what| what.beginning()).collect();
    let is_path = whats
        .iter()
        .any(|what| matches!(what, What::Path | What::Under(_)));
    !whats.iter().any(|what| matches!(what, What::Never))
        && range.0 <= range.1
        && types_agree
        && all_pairs(&beginnings, |a, b| a.starts_with(b) || b.starts_with(a))
        && all_pairs(whats, What::has_room_with)
        && (!is_path || beginnings.iter().all(|text| begins_a_path(text)))
}

fn all_pairs<T: Copy>(items: &[T], agree: impl Fn(T, T) -> bool) -> bool {
    let mut rest = items;
    while let [first, after @ ..] = rest {
        if !after.iter().all(|other| agree(*first, *other)) {
            return false;
        }
        rest = after;
    }
    true
}

/// Whether some plain path begins with `text`.
fn begins_a_path(text: &str) -> bool {
    match text.rsplit_once('/') {
        Some((directory, name)) => {
            (directory.is_empty() || is_plain_path(directory)) && !name.contains(['\0', '\\'])
        }
        None => text.is_empty(),
    }
}

fn is_under(path: &str, directory: &str) -> bool {
    let inside = path.strip_prefix(directory.trim_end_matches('/'));
    inside.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Subject<'_> {
    fn may_have(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Fact("trust"), Value::Integer(score)) => (0..=100).contains(score),
            (Self::Fact("proof"), Value::Text(proof)) => matches!(proof.as_str(), "key" | "bearer"),
            _ => true,
        }
    }
}

impl<'a> What<'a> {
    fn only_value(&self) -> Option<&'a Value> {
        match self {
            Self::Compare(Binary::Equal | Binary::StrictEqual, value) => Some(value),
            _ => None,
        }
    }

    fn accepts(&self, value: &Value) -> bool {
        let text = match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        };
        match self {
            Self::Never => false,
            Self::Path => text.is_some_and(is_plain_path),
            Self::Under(directory) => {
                text.is_some_and(|text| is_plain_path(text) && is_under(text, directory))
            }
            Self::Compare(operator, with) => match (operator, text, with) {
                (Binary::Equal | Binary::StrictEqual, ..) => value == *with,
                (Binary::NotEqual | Binary::StrictNotEqual, ..) => value != *with,
                (Binary::StartsWith, Some(text), Value::Text(part)) => text.starts_with(part),
                (Binary::EndsWith, Some(text), Value::Text(part)) => text.ends_with(part),
                (Binary::Contains, Some(text), Value::Text(part)) => text.contains(part),
                (Binary::And | Binary::Or, ..) => true,
                _ => match (number(value), self.range()) {
                    (Some(number), Some((low, high))) => (low..=high).contains(&number),
                    _ => false,
                },
            },
        }
    }

    /// The numbers or dates that satisfy it, where only such can. None satisfy `(1, 0)`.
    fn range(&self) -> Option<(i64, i64)> {
        let Self::Compare(operator, value) = self else {
            return None;
        };
        let at = number(value)?;
        Some(match operator {
            Binary::Less => at.checked_sub(1).map_or((1, 0), |last| (i64::MIN, last)),
            Binary::LessOrEqual => (i64::MIN, at),
            Binary::Greater => at.checked_add(1).map_or((1, 0), |first| (first, i64::MAX)),
            Binary::GreaterOrEqual => (at, i64::MAX),
            _ => return None,
        })
    }

    fn is_of_text(&self) -> bool {
        match self {
            Self::Path | Self::Under(_) => true,
            Self::Compare(operator, _) => matches!(
                operator,
                Binary::StartsWith | Binary::EndsWith | Binary::Contains
            ),
            Self::Never => false,
        }
    }

    /// What the text has to begin with.
    fn beginning(&self) -> Option<&str> {
        match self {
            Self::Compare(Binary::StartsWith, Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Whether the directories of two, if both name one, have anything in common.
    fn has_room_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Under(one), Self::Under(other)) => is_under(one, other) || is_under(other, one),
            _ => true,
        }
    }
}

/// Integers and dates on one scale; a subject has only one of them.
fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(integer) => Some(*integer),
        Value::Date(seconds) => i64::try_from(*seconds).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads clauses without looking at what they demand.
    fn read(clauses: &[&str]) -> Vec<Check> {
        let read = |clause: &&str| -> Vec<Check> {
            match clause.split_once(" under ") {
                Some((field, directory)) => Check::path_under(&format!("/{field}"), directory)
                    .unwrap()
                    .into(),
                None => vec![clause.parse().unwrap()],
            }
        };
        clauses.iter().flat_map(read).collect()
    }

    fn answer(clauses: &[&str]) -> Result<(), String> {
        let checks = read(clauses);
        let together = can_hold(&[], &checks).map_err(|e| e.0);
        // One after the other, as a narrowing is added to a token, is the same.
        let (last, before) = clauses.split_last().unwrap();
        let before = read(before);
        let added = can_hold(&before.iter().collect::<Vec<_>>(), &read(&[last]));
        assert_eq!(together.is_ok(), added.is_ok(), "{clauses:?}");
        together
    }

    #[test]
    fn conditions_that_no_call_can_meet_together_are_an_error() {
        for clauses in [
            &["check if arg(\"/n\", $v), $v < 3, $v > 5"][..],
            &["check if arg(\"/n\", $v), $v < 3 && 5 < $v"],
            &[
                "check if arg(\"/n\", $v), $v <= 3",
                "check if arg(\"/n\", $v), $v >= 4",
            ],
            &[
                "check if arg(\"/n\", $v), $v <= 3",
                "check if arg(\"/n\", 4)",
            ],
            &[
                "check if arg(\"/n\", $v), $v <= 3",
                "check if arg(\"/n\", \"3\")",
            ],
            &[
                "check if arg(\"/n\", $v), $v <= 3",
                "check if arg(\"/n\", $v), $v.contains(\"3\")",
            ],
            &[
                "check if arg(\"/m\", \"r\")",
                "check if arg(\"/m\", $v), $v != \"r\"",
            ],
            &[
                "check if arg(\"/m\", 1) or arg(\"/m\", 2)",
                "check if arg(\"/m\", 3) or arg(\"/m\", 4)",
            ],
            &[
                "check if arg(\"/u\", $v), $v.starts_with(\"a\")",
                "check if arg(\"/u\", $v), $v.starts_with(\"b\")",
            ],
            &["p under /srv/a", "p under /srv/b"],
            &["p under /srv/a", "p under /srv/ab"],
            &["p under /srv", "check if arg(\"/p\", \"/etc\")"],
            &["p under /srv", "check if arg(\"/p\", \"srv\")"],
            &["p under /srv", "check if arg(\"/p\", $v), $v > 3"],
            &["check if path(\"/p\", \"/srv/../etc\")"],
            &["check if path(\"/p\", $v), $v.starts_with(\"srv/\")"],
            &["check if path(\"/p\", $v), $v.starts_with(\"/srv/../\")"],
            &["check if trust($s), $s > 100"],
            &["check if trust(101)"],
            &["check if proof(\"token\")"],
            &["check if proof($p), $p.starts_with(\"x\")"],
            &["check if tool(\"a\")", "check if tool(\"b\")"],
            &[
                "check if time($t), $t < 2026-01-01T00:00:00Z",
                "check if time($t), $t >= 2026-01-01T00:00:00Z",
            ],
            &["check if false"],
            &["check if tool($t), false"],
        ] {
            let error = answer(clauses).expect_err(&clauses.join(" and "));
            assert!(error.contains("leave"), "it says what to do: {error}");
        }
        let deep = format!(
            "check if arg(\"{}\", 1)",
            "/a".repeat(POINTER_STEPS_MAX + 1)
        );
        assert!(answer(&[&deep]).is_err());
    }

    #[test]
    fn conditions_that_some_call_meets_are_left_alone() {
        for clauses in [
            &["check if arg(\"/n\", $v), $v < 5, $v > 3"][..],
            &["check if arg(\"/n\", $v), $v < 3 || $v > 5"],
            &[
                "check if arg(\"/n\", $v), $v <= 3",
                "check if arg(\"/k\", $v), $v >= 4",
            ],
            &[
                "check if arg(\"/n\", $v), $v <= 3",
                "check if arg(\"/n\", 3)",
            ],
            &[
                "check if arg(\"/m\", 1) or arg(\"/m\", 2)",
                "check if arg(\"/m\", 2) or arg(\"/m\", 4)",
            ],
            &[
                "check if arg(\"/n\", $v), $v < 3 or arg(\"/n\", \"all\")",
                "check if arg(\"/n\", \"all\")",
            ],
            &["check if arg($p, 1)", "check if arg($p, 2)"],
            &["check if path($p, \"/a\")", "check if path($p, \"/b\")"],
            &["p under /srv", "p under /srv/a"],
            &["p under /", "p under /srv/a"],
            &["p under /srv", "q under /etc"],
            &["p under /srv", "check if arg(\"/p\", \"/srv/a\")"],
            &["check if path(\"/p\", $v), $v.starts_with(\"/srv/.\")"],
            &["check if trust($s), $s >= 100"],
            &["check if proof(\"key\")", "reject if proof(\"bearer\")"],
            &["reject if tool(\"a\")", "reject if tool(\"b\")"],
            &["check if covers($a), covers($b), $a != $b"],
            &["check if true"],
        ] {
            assert_eq!(answer(clauses), Ok(()), "{clauses:?}");
        }
        let deep = format!("check if arg(\"{}\", 1)", "/a".repeat(POINTER_STEPS_MAX));
        assert_eq!(answer(&[&deep]), Ok(()));
    }
}
