//! What is said of trust: between brokers, to admins, and what follows from it.

use serde::{Deserialize, Serialize};

use crate::capability::Pattern;
use crate::identity::Org;
use crate::signature::PublicKey;
use crate::time::Timestamp;

/// How far one organisation trusts another: 0, not at all, to 100, as itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8")]
pub struct Trust(u8);

impl Trust {
    /// Not at all.
    pub const NONE: Self = Self(0);
    /// As itself.
    pub const FULL: Self = Self(100);

    /// The number, 0 to 100.
    #[must_use]
    pub const fn percent(self) -> u8 {
        self.0
    }
}

/// Not a number from 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("trust is a whole number from 0 to 100")]
pub struct BadTrust;

impl TryFrom<u8> for Trust {
    type Error = BadTrust;
    fn try_from(percent: u8) -> Result<Self, BadTrust> {
        if percent <= Self::FULL.0 {
            Ok(Self(percent))
        } else {
            Err(BadTrust)
        }
    }
}

impl std::fmt::Display for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// `trustStatement`: what the organisation whose broker signs it thinks of another. It says the same to
/// everybody, so it has no `to`, and whoever has it may pass it on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustStatement {
    /// Of whom.
    pub trustee: Org,
    /// How far; 0 takes back what was said before.
    pub trust: Trust,
    /// It counts only for what one of these covers; at most 16, and for everything when there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Pattern>,
    /// Replaces what the signer said about this trustee with a lower one. The time in milliseconds serves.
    pub seq: u64,
    /// Counts until just before; at most 90 days after the envelope's `ts`.
    pub expires: Timestamp,
}

/// `trustNews`: what a peer's broker knows of trust and tells: what its own organisation states and what
/// its own peers do. The first on a link says all; each after it says what changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustNews {
    /// Whom it vouches for, and under which key: its own peers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub introduced: Vec<Introduced>,
    /// For whom no longer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withdrawn: Vec<Org>,
    /// `trustStatement` envelopes as text: as their makers signed them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub statements: Vec<String>,
}

/// An organisation that a peer vouches for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Introduced {
    /// Which.
    pub org: Org,
    /// The key of its broker, as the peer knows it.
    pub key: PublicKey,
}

/// `admin.trust.state`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustState {
    /// Of whom.
    pub trustee: Org,
    /// How far; 0 takes back what was stated before.
    pub trust: Trust,
    /// For what; for everything when there is none. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Pattern>,
    /// Until when; 90 days from now where it does not say, and at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// `admin.trust.decide`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustDecide {
    /// About whom.
    pub org: Org,
    /// What; without it, it is left to what is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
}

/// `admin.trust.show`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustShow {
    /// Who trusts.
    pub from: Org,
    /// Whom.
    pub to: Org,
    /// For what; without it, in general.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<Pattern>,
}

/// What this organisation states of another, as admins see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrustRecord {
    /// Of whom.
    pub trustee: Org,
    /// How far.
    pub trust: Trust,
    /// For what; for everything when there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Pattern>,
    /// Until when.
    pub expires: Timestamp,
}

/// What an admin decided about another organisation, as admins see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrustDecided {
    /// About whom.
    pub org: Org,
    /// What.
    pub decision: Decision,
}

/// Where an organisation stands: what an admin decided, or else what its score says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// An admin decided that nothing of it counts.
    Revoked,
    /// A score below [`Level::PARTNER`], or none.
    External,
    /// A score from [`Level::PARTNER`].
    Partner,
    /// A score from [`Level::TRUSTED`].
    Trusted,
    /// This organisation itself, or a peer that an admin decided to treat alike.
    System,
}

impl Level {
    /// From this score on an organisation is trusted: nobody is by hearsay of three hops, which is worth
    /// 64 at most.
    pub const TRUSTED: u8 = 75;
    /// From this score on an organisation is a partner.
    pub const PARTNER: u8 = 40;

    /// What a score alone says.
    #[must_use]
    pub fn of(score: Option<&Score>) -> Self {
        match score.map(|score| score.value) {
            Some(Self::TRUSTED..) => Self::Trusted,
            Some(Self::PARTNER..) => Self::Partner,
            _ => Self::External,
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Revoked => "revoked",
            Self::External => "external",
            Self::Partner => "partner",
            Self::Trusted => "trusted",
            Self::System => "system",
        })
    }
}

/// What an admin decided about an organisation. It is told to nobody, and nothing that is said prevails
/// over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Decision {
    /// As this organisation itself: 100. It needs to be a peer, or it has no effect.
    System,
    /// Whatever is said, no path is worth more when it reaches this organisation. A statement of one's
    /// own recommends and can be surpassed by hearsay; this cannot.
    AtMost(Trust),
    /// It has no score, and no path leads through it.
    Revoked,
}

/// How far one organisation trusts another, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// 1 to 100: that of the best path. What is worth less than 1 is no score at all.
    pub value: u8,
    /// How far whoever made the path's last statement is trusted to make it: 100 for what one says
    /// oneself, 80 for what somebody fully trusted says. Never less than `value`.
    pub confidence: u8,
    /// The best first, at most 8. Where two are worth the same: the more confident, then the shorter, then
    /// by name. None where an organisation is asked about itself.
    pub paths: Vec<Path>,
}

/// A chain of statements that leads from one organisation to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// 1 to 3, each beginning where the one before ends.
    pub hops: Vec<Hop>,
    /// What it is worth, rounded down.
    pub value: u8,
    /// As that of a [`Score`].
    pub confidence: u8,
}

/// One statement of a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Who says it.
    pub trustor: Org,
    /// Of whom.
    pub trustee: Org,
    /// How far.
    pub trust: Trust,
    /// For what; for everything when there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Pattern>,
    /// Until when; nothing where an admin decided it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// A part of a trust graph that fits on a page, to be drawn with [`Self::dot`] or [`Self::svg`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// One line above it.
    pub caption: String,
    /// At most 40, nearest first.
    pub nodes: Vec<Node>,
    /// At most 120, between these nodes.
    pub arrows: Vec<Arrow>,
    /// Organisations for which there was no place.
    pub nodes_left_out: usize,
    /// Statements between the nodes for which there was no place.
    pub arrows_left_out: usize,
}

/// An organisation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Which.
    pub org: Org,
    /// Its score as the picture's first organisation sees it.
    pub value: Option<u8>,
    /// How it stands by that score, and by what the home organisation decided.
    pub level: Level,
    /// How many statements away it is: the column in which it is drawn.
    pub hops: u8,
}

/// A statement that counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrow {
    /// Who says it.
    pub trustor: Org,
    /// Of whom.
    pub trustee: Org,
    /// How far.
    pub trust: Trust,
    /// Whether it is part of the best path to whom the picture is about.
    pub best: bool,
}
