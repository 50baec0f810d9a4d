//! What an authorisation is for. Pure.
//!
//! Source: RFC 6749 §3.3.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Scopes of one authorisation, and bytes of all together.
const SCOPES_MAX: usize = 256;
const SCOPES_BYTES_MAX: usize = 8 << 10;

/// A set of scopes, which only the server that names them understands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scopes(BTreeSet<String>);

impl Scopes {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `other` has nothing that is not here.
    pub(crate) fn cover(&self, other: &Self) -> bool {
        other.0.is_subset(&self.0)
    }

    /// These and those.
    ///
    /// # Errors
    ///
    /// Where they are too many.
    pub fn with(mut self, more: &Self) -> Result<Self, String> {
        self.0.extend(more.0.iter().cloned());
        self.checked()
    }

    fn checked(self) -> Result<Self, String> {
        let bytes: usize = self.0.iter().map(|scope| scope.len() + 1).sum();
        match self.0.len() <= SCOPES_MAX && bytes <= SCOPES_BYTES_MAX {
            true => Ok(self),
            false => Err(format!("more than {SCOPES_MAX} scopes")),
        }
    }
}

impl FromStr for Scopes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let is_of_scope = |b: u8| b.is_ascii_graphic() && !b"\"\\".contains(&b);
        let scopes = text.split(' ').filter(|scope| !scope.is_empty());
        let scopes = scopes.map(|scope| match scope.bytes().all(is_of_scope) {
            true => Ok(scope.to_owned()),
            false => Err("a scope has only visible ASCII, without quotes".to_owned()),
        });
        Self(scopes.collect::<Result<_, _>>()?).checked()
    }
}

impl TryFrom<String> for Scopes {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Scopes> for String {
    fn from(scopes: Scopes) -> Self {
        scopes.to_string()
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut scopes = self.0.iter();
        if let Some(first) = scopes.next() {
            f.write_str(first)?;
        }
        scopes.try_for_each(|scope| write!(f, " {scope}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(text: &str) -> Scopes {
        text.parse().unwrap()
    }

    #[test]
    fn scopes_are_a_set() {
        assert_eq!(scopes("b a  b").to_string(), "a b");
        assert_eq!(scopes("").to_string(), "");
        let both = scopes("a b").with(&scopes("b c")).unwrap();
        assert_eq!(both, scopes("a b c"));
        assert!(both.cover(&scopes("c")) && both.cover(&scopes("")));
        assert!(!scopes("a").cover(&both));
    }

    #[test]
    fn scopes_are_bounded_and_plain() {
        for bad in ["a\"", "a\\b", "\u{1b}[2J", "é"] {
            assert!(bad.parse::<Scopes>().is_err(), "{bad:?}");
        }
        let many = |from: usize| {
            let scopes: Vec<String> = (from..from + SCOPES_MAX).map(|n| format!("s{n}")).collect();
            scopes.join(" ")
        };
        let full = scopes(&many(0));
        assert!(full.clone().with(&scopes("s0")).is_ok());
        assert!(full.with(&scopes("x")).is_err());
        assert!("x".repeat(SCOPES_BYTES_MAX).parse::<Scopes>().is_err());
    }
}
