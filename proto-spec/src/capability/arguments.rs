//! The arguments of a call as facts: `arg`, `path` and `odd_arg`.
//!
//! Nothing is left out silently. What has no fact of its own (a long string, a fraction, null) is at
//! least an `odd_arg`, so that *every value below this pointer is a path* can be asked; and it is
//! remembered, because a check that only forbids values would pass what it cannot see.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::limits::{ARGUMENT_FACTS_MAX, ARGUMENT_STRING_MAX};

/// An argument's value that checks can compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scalar {
    Integer(i64),
    Text(String),
    Bool(bool),
}

/// What a call's arguments say, under RFC 6901 pointers from the arguments object.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ArgumentFacts {
    pub args: Vec<(String, Scalar)>,
    /// Absolute paths that mean what they spell.
    pub paths: Vec<(String, String)>,
    /// Where a value stands that is not such a path.
    pub odd: Vec<String>,
    /// Some value is no `arg`: checks that only forbid cannot see it.
    pub has_unseen: bool,
}

impl ArgumentFacts {
    /// Reads the JSON text of a call's `arguments`.
    ///
    /// # Errors
    ///
    /// Says why checks over these arguments cannot be decided: not an object, a member twice, or more
    /// values than become facts.
    pub(super) fn of(json: &str) -> Result<Self, &'static str> {
        let mut facts = Self::default();
        if !json.trim_start().starts_with('{') {
            return Err("they are not an object");
        }
        let mut reader = serde_json::Deserializer::from_str(json);
        let below = Below {
            pointer: String::new(),
            facts: &mut facts,
        };
        let read = below.deserialize(&mut reader).and_then(|()| reader.end());
        read.map_err(|_| "not strict JSON, or more values than are looked at")?;
        Ok(facts)
    }

    fn leaf(&mut self, pointer: String, value: Option<Scalar>) -> Result<(), &'static str> {
        if self.paths.len() + self.odd.len() >= ARGUMENT_FACTS_MAX {
            return Err("too many values");
        }
        match &value {
            Some(Scalar::Text(text)) if is_plain_path(text) => {
                self.paths.push((pointer.clone(), text.clone()));
            }
            _ => self.odd.push(pointer.clone()),
        }
        match value {
            Some(value) => self.args.push((pointer, value)),
            None => self.has_unseen = true,
        }
        Ok(())
    }
}

/// Whether `text` is an absolute path in which every segment is a name: nothing in it can climb,
/// vanish or be another separator.
pub(super) fn is_plain_path(text: &str) -> bool {
    let name = |segment: &str| !matches!(segment, "" | "." | "..");
    match text.strip_prefix('/') {
        Some("") => true,
        Some(rest) => !rest.contains(['\0', '\\']) && rest.split('/').all(name),
        None => false,
    }
}

/// Walks the value at `pointer`.
struct Below<'a> {
    pointer: String,
    facts: &'a mut ArgumentFacts,
}

impl<'de> DeserializeSeed<'de> for Below<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Below<'_> {
    fn leaf<E: serde::de::Error>(self, value: Option<Scalar>) -> Result<(), E> {
        self.facts.leaf(self.pointer, value).map_err(E::custom)
    }

    fn child<E: serde::de::Error>(&mut self, token: &str) -> Result<Below<'_>, E> {
        let token = token.replace('~', "~0").replace('/', "~1");
        let pointer = format!("{}/{token}", self.pointer);
        if pointer.len() > ARGUMENT_STRING_MAX {
            return Err(E::custom("a pointer too long to be a fact"));
        }
        let facts = &mut *self.facts;
        Ok(Below { pointer, facts })
    }
}

/// The largest integer below which every JSON reader sees the same number.
const EXACT: f64 = 9_007_199_254_740_992.0;

impl<'de> Visitor<'de> for Below<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.leaf(Some(Scalar::Bool(value)))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.leaf(Some(Scalar::Integer(value)))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.leaf(i64::try_from(value).ok().map(Scalar::Integer))
    }

    /// `1.0` and `1e0` are the integer 1 to most readers, so they are to checks.
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        let whole = value.fract() == 0.0 && value.abs() < EXACT;
        self.leaf(whole.then_some(Scalar::Integer(value as i64)))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        let short = value.len() <= ARGUMENT_STRING_MAX;
        self.leaf(short.then(|| Scalar::Text(value.into())))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.leaf(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        let mut index = 0_usize;
        while items
            .next_element_seed(self.child(&index.to_string())?)?
            .is_some()
        {
            index += 1;
        }
        if index == 0 { self.leaf(None) } else { Ok(()) }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(name) = members.next_key::<String>()? {
            members.next_value_seed(self.child(&name)?)?;
            if !seen.insert(name) {
                return Err(A::Error::custom("a member twice"));
            }
        }
        // A call without arguments has no values; elsewhere an empty object is one.
        let is_value = seen.is_empty() && !self.pointer.is_empty();
        if is_value { self.leaf(None) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_absolute_and_every_segment_is_a_name() {
        for good in ["/", "/srv", "/srv/reports/q3.csv", "/...", "/a b", "/ä"] {
            assert!(is_plain_path(good), "{good}");
        }
        for odd in [
            "",
            "srv",
            "./srv",
            "//",
            "//srv",
            "/srv/",
            "/srv//x",
            "/srv/.",
            "/srv/./x",
            "/..",
            "/srv/../etc",
            "/srv\\..\\etc",
            "/srv/x\0",
            "C:\\x",
            "file:///srv",
        ] {
            assert!(!is_plain_path(odd), "{odd:?}");
        }
    }

    #[test]
    fn every_value_is_a_path_or_odd_and_numbers_mean_what_they_are_worth() {
        let facts = ArgumentFacts::of(
            r#"{"a/b~":"/srv/x","n":1e2,"f":0.5,"z":null,"l":[true,{}],"big":18446744073709551615}"#,
        )
        .unwrap();
        assert_eq!(facts.paths, [("/a~1b~0".to_owned(), "/srv/x".to_owned())]);
        assert_eq!(facts.odd, ["/n", "/f", "/z", "/l/0", "/l/1", "/big"]);
        let args: Vec<_> = facts
            .args
            .iter()
            .map(|(pointer, _)| pointer.as_str())
            .collect();
        assert_eq!(args, ["/a~1b~0", "/n", "/l/0"]);
        assert_eq!(facts.args[1].1, Scalar::Integer(100));
        assert!(facts.has_unseen);
    }

    #[test]
    fn arguments_beyond_the_bounds_cannot_be_checked() {
        let many = |n: usize| format!("{{\"l\":[{}]}}", vec!["1"; n].join(","));
        assert!(ArgumentFacts::of(&many(ARGUMENT_FACTS_MAX)).is_ok());
        assert!(ArgumentFacts::of(&many(ARGUMENT_FACTS_MAX + 1)).is_err());
        let named = |n: usize| format!("{{\"{}\":1}}", "k".repeat(n));
        assert!(ArgumentFacts::of(&named(ARGUMENT_STRING_MAX - 1)).is_ok());
        assert!(ArgumentFacts::of(&named(ARGUMENT_STRING_MAX)).is_err());
        for bad in [
            "[]",
            "1",
            "{",
            "{\"a\":1,\"a\":2}",
            "{\"a\":{\"b\":1,\"\\u0062\":2}}",
            "{}x",
        ] {
            assert!(ArgumentFacts::of(bad).is_err(), "{bad}");
        }
        assert_eq!(ArgumentFacts::of(" {}").unwrap(), ArgumentFacts::default());
        let long = format!("{{\"s\":\"{}\"}}", "x".repeat(ARGUMENT_STRING_MAX + 1));
        let facts = ArgumentFacts::of(&long).unwrap();
        assert!(facts.has_unseen && facts.args.is_empty() && facts.odd == ["/s"]);
    }
}
