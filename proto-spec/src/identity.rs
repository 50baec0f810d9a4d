//! Names: `name@org`, and who an envelope is meant for.
//!
//! A name is checked once, where it is parsed; whoever holds one of these types holds a valid name.
//! Nothing is normalised: a name that would need it is refused.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::{NAME_CHARS_MAX, ORG_CHARS_MAX};

/// First segments that belong to the protocol: no agent is called so and no tool lies under them.
pub const RESERVED: [&str; 6] = ["admin", "broker", "peer", "event", "enrol", "mcp"];

/// Whether `segment` belongs to the protocol.
#[must_use]
pub fn is_reserved(segment: &str) -> bool {
    RESERVED.contains(&segment)
}

/// Why a text is not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// Agent names.
    #[error(
        "an agent's name is 1 to 64 of a-z 0-9 . _ -, begins and ends with a letter or digit, has no two dots in a row and no reserved first segment"
    )]
    Name,
    /// Organisations.
    #[error(
        "an organisation's name is 1 to 63 of a-z 0-9 -, and begins and ends with a letter or digit"
    )]
    Org,
    /// `name@org`.
    #[error("an agent is written name@org")]
    Agent,
    /// The `to` of an envelope.
    #[error("an audience is name@org, broker@org or topic:org/name")]
    Audience,
    /// Name patterns.
    #[error("a name pattern is a name, a prefix followed by *, or * alone")]
    Pattern,
}

fn is_edge(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn check_name(text: &str) -> Result<(), BadName> {
    let bytes = text.as_bytes();
    let inner = |b: &u8| is_edge(*b) || matches!(b, b'.' | b'_' | b'-');
    let ok = (1..=NAME_CHARS_MAX).contains(&bytes.len())
        && bytes.first().is_some_and(|b| is_edge(*b))
        && bytes.last().is_some_and(|b| is_edge(*b))
        && bytes.iter().all(inner)
        && !text.contains("..")
        && !text.split('.').next().is_some_and(is_reserved);
    if ok { Ok(()) } else { Err(BadName::Name) }
}

fn check_org(text: &str) -> Result<(), BadName> {
    let bytes = text.as_bytes();
    let ok = (1..=ORG_CHARS_MAX).contains(&bytes.len())
        && bytes.first().is_some_and(|b| is_edge(*b))
        && bytes.last().is_some_and(|b| is_edge(*b))
        && bytes.iter().all(|b| is_edge(*b) || *b == b'-');
    if ok { Ok(()) } else { Err(BadName::Org) }
}

/// Gives a checked text newtype its common face: parse, show, serialise as a string.
macro_rules! text_newtype {
    ($name:ident, $check:expr) => {
        impl $name {
            /// The text, as it stands on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                $check(text)?;
                Ok(Self(text.into()))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// An agent's name inside its organisation: `fs`, `build-7`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);
text_newtype!(Name, check_name);

/// An organisation: `acme`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Org(Arc<str>);
text_newtype!(Org, check_org);

/// Which agents an admin may act on: `build-7`, `build-*`, `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamePattern(Arc<str>);
text_newtype!(NamePattern, check_name_pattern);

fn check_name_pattern(text: &str) -> Result<(), BadName> {
    let inner = |b: u8| is_edge(b) || matches!(b, b'.' | b'_' | b'-');
    match text.strip_suffix('*') {
        Some(prefix) if prefix.len() < NAME_CHARS_MAX && prefix.bytes().all(inner) => Ok(()),
        Some(_) => Err(BadName::Pattern),
        None => check_name(text).map_err(|_| BadName::Pattern),
    }
}

impl NamePattern {
    /// Whether `name` is meant.
    #[must_use]
    pub fn matches(&self, name: &Name) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => name.as_str().starts_with(prefix),
            None => *self.0 == *name.0,
        }
    }

    /// Whether every name that `other` means is meant here too.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => other.0.starts_with(prefix),
            None => self == other,
        }
    }
}

/// An agent: `fs@acme`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId {
    name: Name,
    org: Org,
}

impl AgentId {
    /// The agent `name` of `org`.
    #[must_use]
    pub fn new(name: Name, org: Org) -> Self {
        Self { name, org }
    }

    /// Its name inside its organisation.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Its organisation.
    #[must_use]
    pub fn org(&self) -> &Org {
        &self.org
    }
}

/// Who says something: an agent, or an organisation's broker itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Speaker {
    /// `fs@acme`
    Agent(AgentId),
    /// `broker@acme`
    Broker(Org),
}

/// Who says something, as far as the reader knows. Of an agent that came through another organisation than
/// its own, that one vouches for the name: `x@acme via globex` is not `x@acme`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller {
    /// Its name.
    pub agent: AgentId,
    /// Through which organisation, where that is another one than its own and the reader's.
    pub via: Option<Org>,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.via {
            Some(org) => write!(f, "{} via {org}", self.agent),
            None => self.agent.fmt(f),
        }
    }
}

/// Who an envelope is meant for: its `to`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Audience {
    /// `fs@acme`
    Agent(AgentId),
    /// `broker@acme`
    Broker(Org),
    /// `topic:acme/build.done`
    Topic(Org, crate::capability::Capability),
}

fn split_at_sign(text: &str) -> Result<(&str, &str), BadName> {
    text.split_once('@').ok_or(BadName::Agent)
}

impl FromStr for AgentId {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        let (name, org) = split_at_sign(text)?;
        Ok(Self {
            name: name.parse()?,
            org: org.parse()?,
        })
    }
}

impl FromStr for Speaker {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        match split_at_sign(text)? {
            ("broker", org) => Ok(Self::Broker(org.parse()?)),
            _ => Ok(Self::Agent(text.parse()?)),
        }
    }
}

impl FromStr for Audience {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        if let Some(topic) = text.strip_prefix("topic:") {
            let (org, name) = topic.split_once('/').ok_or(BadName::Audience)?;
            let name = name.parse().map_err(|_| BadName::Audience)?;
            return Ok(Self::Topic(org.parse()?, name));
        }
        Ok(match text.parse()? {
            Speaker::Agent(agent) => Self::Agent(agent),
            Speaker::Broker(org) => Self::Broker(org),
        })
    }
}

impl Audience {
    /// The organisation whose broker is to act on it.
    #[must_use]
    pub fn org(&self) -> &Org {
        match self {
            Self::Agent(agent) => agent.org(),
            Self::Broker(org) | Self::Topic(org, _) => org,
        }
    }
}

impl Speaker {
    /// The organisation it belongs to.
    #[must_use]
    pub fn org(&self) -> &Org {
        match self {
            Self::Agent(agent) => agent.org(),
            Self::Broker(org) => org,
        }
    }

    /// The agent, if it is not the broker that speaks.
    #[must_use]
    pub fn agent(&self) -> Option<&AgentId> {
        match self {
            Self::Agent(agent) => Some(agent),
            Self::Broker(_) => None,
        }
    }
}

impl From<AgentId> for Audience {
    fn from(agent: AgentId) -> Self {
        Self::Agent(agent)
    }
}

impl From<Speaker> for Audience {
    fn from(speaker: Speaker) -> Self {
        match speaker {
            Speaker::Agent(agent) => Self::Agent(agent),
            Speaker::Broker(org) => Self::Broker(org),
        }
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.org)
    }
}

impl fmt::Display for Speaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(agent) => agent.fmt(f),
            Self::Broker(org) => write!(f, "broker@{org}"),
        }
    }
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(agent) => agent.fmt(f),
            Self::Broker(org) => write!(f, "broker@{org}"),
            Self::Topic(org, name) => write!(f, "topic:{org}/{name}"),
        }
    }
}

/// Serialises as the text that [`fmt::Display`] shows and [`FromStr`] reads.
macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(crate) use serde_as_text;
serde_as_text!(AgentId, Speaker, Audience);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_grammar_and_nothing_is_normalised() {
        for good in ["a", "7", "fs", "build-7", "a.b_c-d", &"x".repeat(64)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "A",
            "-a",
            "a-",
            ".a",
            "a.",
            "a..b",
            "a b",
            "ä",
            "a@b",
            "broker",
            "admin",
            "admin.x",
            "peer.y",
            "event",
            "enrol",
            "mcp",
            &"x".repeat(65),
            "a\n",
            "a/b",
            "_a",
        ] {
            assert_eq!(bad.parse::<Name>(), Err(BadName::Name), "{bad:?}");
        }
        for good in ["acme", "a", "a-b", "0"] {
            assert!(good.parse::<Org>().is_ok(), "{good}");
        }
        for bad in ["", "a.b", "A", "-a", "a-", "a_b", &"x".repeat(64)] {
            assert_eq!(bad.parse::<Org>(), Err(BadName::Org), "{bad:?}");
        }
    }

    #[test]
    fn an_audience_is_an_agent_a_broker_or_a_topic() {
        for good in ["fs@acme", "broker@acme", "topic:acme/build.done"] {
            assert_eq!(good.parse::<Audience>().unwrap().to_string(), good);
        }
        for bad in [
            "fs",
            "fs@",
            "@acme",
            "fs@acme@x",
            "topic:acme",
            "topic:acme/",
            "broker",
            "",
        ] {
            assert!(bad.parse::<Audience>().is_err(), "{bad:?}");
        }
        assert!(
            "broker@acme".parse::<AgentId>().is_err(),
            "the broker is not an agent"
        );
    }

    #[test]
    fn a_name_pattern_is_a_prefix_of_characters() {
        let build: NamePattern = "build-*".parse().unwrap();
        assert!(build.matches(&"build-7".parse().unwrap()));
        assert!(!build.matches(&"builder".parse().unwrap()));
        let all: NamePattern = "*".parse().unwrap();
        assert!(all.contains(&build) && !build.contains(&all));
        assert!("a*b".parse::<NamePattern>().is_err());
    }
}
