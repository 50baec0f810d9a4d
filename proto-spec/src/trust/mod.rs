//! How far organisations trust each other: what they say, what follows from it, and a picture of it.
//!
//! Reading order: `statement` (what one organisation says of another), this file (what is believed and
//! kept of it), `score` (what follows along paths), `picture` (what of it is shown), `dot`,
//! `layout` and `svg` (how).
//!
//! Three rules keep a swarm of invented organisations worthless. A score is that of the best single
//! path, never a sum: Cheng and Friedman (*Sybilproof Reputation Mechanisms*, 2005) show that a maximum
//! over paths which lose with every hop is proof against invented identities, and that what treats all
//! alike, as EigenTrust's sums do, is not. A path reaches an organisation that no admin added as a peer
//! only by way of one that introduced it, and so is never worth more than what that one could have said
//! itself. And what such an organisation says fills its introducer's room, not its own.

use std::collections::{BTreeMap, BTreeSet};

use crate::capability::Pattern;
use crate::identity::Org;
use crate::limits::{
    TRUST_DECISIONS_MAX, TRUST_INTRODUCTIONS_MAX, TRUST_PEERS_MAX, TRUST_STATEMENTS_MAX,
    TRUST_STATEMENTS_PER_MAKER_MAX,
};
use crate::refusal::Refusal;
use crate::time::Timestamp;

mod dot;
mod layout;
mod picture;
mod score;
mod statement;
mod svg;

pub use crate::message::{Arrow, Decision, Hop, Level, Node, Path, Picture, Score};
pub use statement::Statement;

/// What became of a statement that was not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It counts from here on.
    Taken,
    /// It was known.
    Known,
    /// Its maker signed something else under the same number: neither counts, until it says more.
    Contradicted,
}

/// Who said what of whom, whom we know and through whom, and what our own admins decided.
///
/// What is asked of it depends on what was put in, never on the order, as long as no bound is met.
#[derive(Debug, Clone)]
pub struct TrustGraph {
    home: Org,
    /// Whom an admin added, and whose keys each of them vouches for.
    peers: BTreeMap<Org, BTreeSet<Org>>,
    decisions: BTreeMap<Org, Decision>,
    /// By who says it, then of whom. What expired stays while an older statement could come back.
    said: BTreeMap<Org, BTreeMap<Org, Statement>>,
}

impl TrustGraph {
    /// What `home` knows before anybody has said anything.
    #[must_use]
    pub fn new(home: Org) -> Self {
        Self {
            home,
            peers: BTreeMap::new(),
            decisions: BTreeMap::new(),
            said: BTreeMap::new(),
        }
    }

    /// Whose graph it is.
    #[must_use]
    pub fn home(&self) -> &Org {
        &self.home
    }

    /// An admin added `org` as a peer: its key is known, whoever else introduced it.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] at [`TRUST_PEERS_MAX`]; [`Refusal::Conflict`] for the home organisation.
    pub fn add_peer(&mut self, org: Org) -> Result<(), Refusal> {
        self.is_another(&org)?;
        if !self.peers.contains_key(&org) && self.peers.len() >= TRUST_PEERS_MAX {
            return Err(Refusal::Busy("the list of peers"));
        }
        self.peers.entry(org).or_default();
        Ok(())
    }

    /// `org` is no longer a peer, and nobody is known through it. What it said stays on record until it is
    /// forgotten, so that nothing older can come back with it.
    pub fn remove_peer(&mut self, org: &Org) {
        self.peers.remove(org);
    }

    /// The peer `by` vouches for the key of `org`.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] at [`TRUST_INTRODUCTIONS_MAX`] of one peer; [`Refusal::Denied`] where `by` is no
    /// peer; [`Refusal::Conflict`] for itself and for the home organisation.
    pub fn introduce(&mut self, by: &Org, org: Org) -> Result<(), Refusal> {
        self.is_another(&org)?;
        let Some(introduced) = self.peers.get_mut(by) else {
            return Err(Refusal::Denied(format!("an introduction by {by}")));
        };
        if *by == org {
            return Err(Refusal::Conflict(format!("{by} introduces itself")));
        }
        if !introduced.contains(&org) && introduced.len() >= TRUST_INTRODUCTIONS_MAX {
            return Err(Refusal::Busy("the list of whom a peer introduced"));
        }
        introduced.insert(org);
        Ok(())
    }

    /// The peer `by` no longer vouches for `org`.
    pub fn withdraw(&mut self, by: &Org, org: &Org) {
        if let Some(introduced) = self.peers.get_mut(by) {
            introduced.remove(org);
        }
    }

    /// An admin decides about `org`, or with `None` leaves it to what is said.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] at [`TRUST_DECISIONS_MAX`]; [`Refusal::Conflict`] for the home organisation.
    pub fn decide(&mut self, org: Org, decision: Option<Decision>) -> Result<(), Refusal> {
        self.is_another(&org)?;
        let Some(decision) = decision else {
            self.decisions.remove(&org);
            return Ok(());
        };
        if !self.decisions.contains_key(&org) && self.decisions.len() >= TRUST_DECISIONS_MAX {
            return Err(Refusal::Busy("the list of decisions about trust"));
        }
        self.decisions.insert(org, decision);
        Ok(())
    }

    /// Takes a statement whose signature was verified. The latest of one maker about one organisation is
    /// the one that counts; `trust` 0 takes back.
    ///
    /// # Errors
    ///
    /// Nothing that counts is changed.
    ///
    /// - [`Refusal::Stale`]: it is signed ahead of `now` by more than clocks may differ, or so long ago
    ///   that what it replaced may be forgotten.
    /// - [`Refusal::Denied`]: nobody whom we know vouches for its maker's key.
    /// - [`Refusal::Conflict`]: its maker has said something later.
    /// - [`Refusal::Busy`]: about an organisation of which its maker has not spoken before, and the maker
    ///   with all whom its introducers introduced has [`TRUST_STATEMENTS_PER_MAKER_MAX`] on record, or all
    ///   others together [`TRUST_STATEMENTS_MAX`]. What is on record can still be replaced and taken back.
    pub fn insert(&mut self, statement: Statement, now: Timestamp) -> Result<Heard, Refusal> {
        statement.is_of_this_time(now)?;
        let room = self.room_of(statement.trustor())?;
        let (trustor, trustee) = (statement.trustor().clone(), statement.trustee().clone());
        let of_maker = self.said.get_mut(&trustor);
        if let Some(kept) = of_maker.and_then(|said| said.get_mut(&trustee)) {
            return kept.hear(statement);
        }
        room.is_left()?;
        let of_maker = self.said.entry(trustor).or_default();
        of_maker.insert(trustee, statement);
        Ok(Heard::Taken)
    }

    /// Forgets what has expired and cannot be replaced by anything that still holds. To be called now
    /// and then: what has expired counts for nothing, but fills its maker's room until then.
    pub fn forget(&mut self, now: Timestamp) {
        for said in self.said.values_mut() {
            said.retain(|_, statement| !statement.is_forgettable(now));
        }
        self.said.retain(|_, said| !said.is_empty());
    }

    /// Where `org` stands, for what `capability` permits.
    #[must_use]
    pub fn level(&self, org: &Org, capability: Option<&Pattern>, now: Timestamp) -> Level {
        self.standing(org, self.score(&self.home, org, capability, now).as_ref())
    }

    /// What was decided about `org`, or else what its score says.
    fn standing(&self, org: &Org, score: Option<&Score>) -> Level {
        match self.decisions.get(org) {
            _ if *org == self.home => Level::System,
            Some(Decision::Revoked) => Level::Revoked,
            Some(Decision::System) if self.peers.contains_key(org) => Level::System,
            _ => Level::of(score),
        }
    }

    /// Puts back what [`Self::statements`] gave, when it is asked for nothing else yet: what was on record
    /// needs neither room nor an introduction.
    pub fn put_back(&mut self, statement: Statement) {
        let of_maker = self.said.entry(statement.trustor().clone()).or_default();
        of_maker.insert(statement.trustee().clone(), statement);
    }

    /// Forgets all that `maker` said: its key was not its own.
    pub fn forget_maker(&mut self, maker: &Org) {
        self.said.remove(maker);
    }

    /// Whether an admin decided that nothing of `org` counts.
    #[must_use]
    pub fn is_revoked(&self, org: &Org) -> bool {
        self.decisions.get(org) == Some(&Decision::Revoked)
    }

    /// What admins decided, by organisation.
    pub fn decisions(&self) -> impl Iterator<Item = (&Org, Decision)> {
        self.decisions
            .iter()
            .map(|(org, decision)| (org, *decision))
    }

    /// When the next statement ends that still counts: until then, and while nothing is put in, every
    /// score stays what it is.
    #[must_use]
    pub fn next_end(&self, now: Timestamp) -> Option<Timestamp> {
        let ends = self.statements().map(|statement| statement.said().expires);
        ends.filter(|end| *end > now).min()
    }

    /// What is on record that `trustor` says of `trustee`, whether it counts or not.
    #[must_use]
    pub fn statement(&self, trustor: &Org, trustee: &Org) -> Option<&Statement> {
        self.said.get(trustor)?.get(trustee)
    }

    /// Every statement on record, whether it counts or not: by who says it, then of whom.
    pub fn statements(&self) -> impl Iterator<Item = &Statement> {
        self.said.values().flat_map(BTreeMap::values)
    }

    fn is_another(&self, org: &Org) -> Result<(), Refusal> {
        if *org == self.home {
            return Err(Refusal::Conflict(format!("{org} is this organisation")));
        }
        Ok(())
    }

    /// How much room is left for what `maker` says: its own, or that of the roomiest peer that introduced
    /// it. The home organisation's own word is never in the way of others, nor they in its.
    fn room_of(&self, maker: &Org) -> Result<Room, Refusal> {
        let of = |org: &Org| self.said.get(org).map_or(0, BTreeMap::len);
        if *maker == self.home {
            return Ok(Room {
                makers: of(maker),
                all: 0,
            });
        }
        let behind = |(peer, introduced): (&Org, &BTreeSet<Org>)| {
            let strangers = introduced
                .iter()
                .filter(|org| !self.peers.contains_key(*org));
            of(peer) + strangers.map(of).sum::<usize>()
        };
        let peers = self.peers.iter();
        let makers = match self.peers.get_key_value(maker) {
            Some(peer) => Some(behind(peer)),
            None => peers
                .filter(|peer| peer.1.contains(maker))
                .map(behind)
                .min(),
        };
        let others = self.said.iter().filter(|(org, _)| **org != self.home);
        Ok(Room {
            makers: makers
                .ok_or_else(|| Refusal::Denied(format!("a statement of {maker}, a stranger,")))?,
            all: others.map(|(_, said)| said.len()).sum(),
        })
    }
}

/// How many statements are on record where another one would be.
struct Room {
    makers: usize,
    all: usize,
}

impl Room {
    fn is_left(&self) -> Result<(), Refusal> {
        if self.makers >= TRUST_STATEMENTS_PER_MAKER_MAX {
            return Err(Refusal::Busy("the room for one peer's statements of trust"));
        }
        if self.all >= TRUST_STATEMENTS_MAX {
            return Err(Refusal::Busy("the room for statements of trust"));
        }
        Ok(())
    }
}
