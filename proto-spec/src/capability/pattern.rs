//! `file.read.*`: what a right is called, and which rights a pattern covers.
//!
//! *Covers* is a join over whole segments, never string matching: [`Pattern::covered_by`] lists
//! every pattern that permits a thing, and a grant permits it when it names one of them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::identity::{Org, is_reserved, serde_as_text};
use crate::limits::{SEGMENT_CHARS_MAX, SEGMENTS_MAX};

/// Why a text is not a capability or a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a capability is 1 to 16 segments of A-Z a-z 0-9 _ -, each at most 64, joined by dots; a pattern may end in .* or be * alone"
)]
pub struct BadPattern;

/// One thing that can be permitted: `file.read.logs`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability(Arc<str>);

/// Things that can be permitted: `file.read` (itself alone), `file.*` (all below), `*` (all tools).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(Arc<str>);

fn segments_are_good(text: &str) -> bool {
    let good = |segment: &str| {
        (1..=SEGMENT_CHARS_MAX).contains(&segment.len())
            && segment
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    text.split('.').count() <= SEGMENTS_MAX && text.split('.').all(good)
}

fn first_segment(text: &str) -> &str {
    text.split('.').next().unwrap_or_default()
}

impl Capability {
    /// The text, as it stands on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How many segments it has.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.0.split('.').count()
    }

    /// Whether it lies under a segment that belongs to the protocol, which `*` does not reach.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        is_reserved(first_segment(&self.0))
    }

    /// The capability `prefix.self`, as `event.emit.` stands before a topic.
    ///
    /// # Errors
    ///
    /// [`BadPattern`] when the two together have too many segments, or `prefix` is not one.
    pub fn under(&self, prefix: &str) -> Result<Self, BadPattern> {
        format!("{prefix}.{self}").parse()
    }
}

impl Pattern {
    /// The text, as it stands on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Every pattern that covers all of `self`, itself first: for `file.read.logs` also
    /// `file.read.*`, `file.*` and, unless the first segment is reserved, `*`. At most 17.
    ///
    /// These are the `covers(…)` facts that a token's policy joins with.
    pub fn covered_by(&self) -> impl Iterator<Item = Pattern> + '_ {
        let body = self
            .0
            .strip_suffix('*')
            .map_or(&*self.0, |prefix| prefix.trim_end_matches('.'));
        let own = std::iter::once(self.clone());
        let above = body
            .char_indices()
            .rev()
            .filter(|(_, c)| *c == '.')
            .map(|(dot, _)| Pattern(format!("{}.*", &body[..dot]).into()));
        // `a.*` is covered by `*`, and `*` itself is its own first entry.
        let all =
            (!is_reserved(first_segment(body)) && &*self.0 != "*").then(|| Pattern("*".into()));
        own.chain(above).chain(all)
    }

    /// Whether everything that `other` means is meant here too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        if self == other {
            return true;
        }
        match &*self.0 {
            "*" => !is_reserved(first_segment(&other.0)),
            text => text.strip_suffix('*').is_some_and(|prefix| {
                // `prefix` ends in a dot, so this compares whole segments.
                other.0.len() > prefix.len() && other.0.starts_with(prefix)
            }),
        }
    }

    /// What both mean: the narrower of the two, or nothing where they have nothing in common.
    #[must_use]
    pub fn overlap<'a>(&'a self, other: &'a Self) -> Option<&'a Self> {
        if self.covers(other) {
            Some(other)
        } else {
            other.covers(self).then_some(self)
        }
    }

    /// Whether this is or lies under a segment that belongs to the protocol.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        is_reserved(first_segment(&self.0))
    }

    /// Of a pattern under `peer.ORG.`, as this organisation calls what is another's: whose, and what it is
    /// called there. `peer.globex.build.*` is globex's `build.*`.
    #[must_use]
    pub fn of_peer(&self) -> Option<(Org, Self)> {
        let (org, rest) = self.0.strip_prefix("peer.")?.split_once('.')?;
        Some((org.parse().ok()?, rest.parse().ok()?))
    }

    /// The right that listening to these topics takes: `event.subscribe.` and they, or at a peer
    /// `peer.ORG.event.subscribe.` and what they are called there.
    ///
    /// # Errors
    ///
    /// [`BadPattern`] when that has too many segments, or they are of no one peer.
    pub fn to_subscribe(&self) -> Result<Self, BadPattern> {
        match self.of_peer() {
            Some((org, there)) => there.under(&format!("peer.{org}.event.subscribe")),
            None if first_segment(&self.0) == "peer" => Err(BadPattern),
            None => self.under("event.subscribe"),
        }
    }

    /// The pattern `prefix.self`, as `event.subscribe.` stands before a topic pattern.
    ///
    /// # Errors
    ///
    /// [`BadPattern`] when the two together have too many segments, or `prefix` is not one.
    pub fn under(&self, prefix: &str) -> Result<Self, BadPattern> {
        format!("{prefix}.{self}").parse()
    }
}

impl FromStr for Capability {
    type Err = BadPattern;
    fn from_str(text: &str) -> Result<Self, BadPattern> {
        if segments_are_good(text) {
            Ok(Self(text.into()))
        } else {
            Err(BadPattern)
        }
    }
}

impl FromStr for Pattern {
    type Err = BadPattern;
    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let ok = match text.strip_suffix(".*") {
            Some(prefix) => segments_are_good(prefix),
            None => text == "*" || segments_are_good(text),
        };
        if ok {
            Ok(Self(text.into()))
        } else {
            Err(BadPattern)
        }
    }
}

impl From<Capability> for Pattern {
    fn from(capability: Capability) -> Self {
        Self(capability.0)
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

serde_as_text!(Capability, Pattern);

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(pattern: &str, other: &str) -> bool {
        pattern
            .parse::<Pattern>()
            .unwrap()
            .covers(&other.parse().unwrap())
    }

    #[test]
    fn a_pattern_covers_whole_segments_below_it_and_nothing_else() {
        for (pattern, other, expected) in [
            ("file.*", "file.read", true),
            ("file.*", "file.read.logs", true),
            ("file.*", "file", false),
            ("file.*", "filesystem.read", false),
            ("file.read", "file.read", true),
            ("file.read", "file.read.logs", false),
            ("file.*", "file.read.*", true),
            ("file.read.*", "file.*", false),
            ("*", "file.*", true),
            ("file.*", "*", false),
            ("*", "*", true),
        ] {
            assert_eq!(covers(pattern, other), expected, "{pattern} {other}");
        }
    }

    #[test]
    fn star_means_all_tools_and_nothing_that_belongs_to_the_protocol() {
        for reserved in crate::identity::RESERVED {
            assert!(!covers("*", &format!("{reserved}.x")), "{reserved}");
            assert!(!covers("*", &format!("{reserved}.*")), "{reserved}");
            assert!(
                covers(&format!("{reserved}.*"), &format!("{reserved}.x")),
                "{reserved}"
            );
        }
    }

    #[test]
    fn what_covers_a_capability_is_a_finite_list() {
        let list = |text: &str| -> Vec<String> {
            text.parse::<Pattern>()
                .unwrap()
                .covered_by()
                .map(|p| p.to_string())
                .collect()
        };
        assert_eq!(
            list("file.read.logs"),
            ["file.read.logs", "file.read.*", "file.*", "*"]
        );
        assert_eq!(
            list("admin.agent.list"),
            ["admin.agent.list", "admin.agent.*", "admin.*"]
        );
        assert_eq!(list("file.read.*"), ["file.read.*", "file.*", "*"]);
        assert_eq!(list("*"), ["*"]);
        let longest = vec!["a"; SEGMENTS_MAX].join(".");
        assert_eq!(list(&longest).len(), 17);
    }

    #[test]
    fn the_grammar_of_capabilities_has_one_wildcard_at_the_end() {
        for bad in [
            "", ".", "a.", ".a", "a..b", "*a", "a*", "a.*.b", "**", "*.*", "a b", "ä", "a/b",
        ] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad:?}");
        }
        assert!("a.*".parse::<Capability>().is_err());
        assert!(
            vec!["a"; SEGMENTS_MAX + 1]
                .join(".")
                .parse::<Capability>()
                .is_err()
        );
        assert!(
            "x".repeat(SEGMENT_CHARS_MAX + 1)
                .parse::<Capability>()
                .is_err()
        );
    }
}
