//! What must always be so, whatever happens: a plain book of what was done and acknowledged, and the
//! questions that are put to it at every step.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use proto_spec::{Digest, PublicKey};

use crate::network::{Index, Moment};

/// An invariant that does not hold, and where that was seen.
pub(crate) type Broken = String;

pub(crate) const ONCE: &str = "no call is delivered twice";
pub(crate) const SIGNED: &str = "nothing is delivered that its agent did not sign";
pub(crate) const ON_RECORD: &str = "what was acknowledged is on record";
pub(crate) const REVOKED: &str = "what is revoked permits nothing from its acknowledgement on";
pub(crate) const DEAD: &str = "a dead key is dead at every peer within the bound";
pub(crate) const STALE: &str = "no call is taken from a peer whose dead keys are not known";
pub(crate) const ANSWERED: &str = "no answer is taken that its provider did not sign";
pub(crate) const WORKS: &str = "what should work works once the network does";

/// How old the view of a peer's dead keys may be: what every broker here is configured to. Two views in a row, each
/// a head and an answer to it old, fit in it.
pub(crate) const STALE_AFTER: Duration = Duration::from_secs(6);

/// What an owner's admin granted a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grant {
    /// Tools of its own; with whether they may be passed on.
    Own { onward: bool },
    /// Passage to another's tools.
    Through(Index),
}

/// A peer as its owner's admin left it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Peering {
    pub(crate) is_paused: bool,
    pub(crate) grants: Vec<Grant>,
}

/// An agent as its admin left it.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) key: PublicKey,
    pub(crate) is_registered: bool,
    pub(crate) is_granted: bool,
}

/// A call that an agent signed.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) home: Index,
    pub(crate) caller: &'static str,
    pub(crate) key: PublicKey,
    pub(crate) owner: Index,
    pub(crate) deliveries: u32,
    pub(crate) ended: Option<Ended>,
}

/// How a call ended for its caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    Answered,
    Refused(String),
}

/// By which link a call came.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) peer: Index,
    /// Up to when the reader knows what died there.
    pub(crate) known_up_to: Moment,
    pub(crate) told: Vec<PublicKey>,
    /// Whether a peer's own broker said it when it was due, and not an adversary later.
    pub(crate) is_honest: bool,
}

/// The book.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) agents: BTreeMap<(Index, &'static str), Standing>,
    pub(crate) peerings: BTreeMap<(Index, Index), Peering>,
    pub(crate) calls: HashMap<Digest, Call>,
    pub(crate) results: HashSet<Digest>,
    /// Keys that died, where and when.
    pub(crate) dead: HashMap<PublicKey, (Index, Moment)>,
    /// Who was told of which.
    aware: HashSet<(Index, PublicKey)>,
    /// Grants that died, where.
    pub(crate) struck: Vec<(Index, Digest)>,
    pub(crate) seen: Seen,
}

/// What a run was made of: one that shows nothing proves nothing.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    pub(crate) counts: BTreeMap<String, u64>,
    /// How long after its acknowledgement a revocation was known at another broker, over a link that was well
    /// all the while, and otherwise.
    pub(crate) calm_ms: Vec<u64>,
    pub(crate) rough_ms: Vec<u64>,
    /// The latest that a call of a dead key was taken elsewhere.
    pub(crate) late_ms: u64,
}

impl Seen {
    pub(crate) fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    /// For people.
    pub(crate) fn told(&self) -> String {
        let spread = |all: &[u64]| {
            let mut all = all.to_vec();
            all.sort_unstable();
            let part =
                |part: usize| all.get((all.len() * part / 100).min(all.len().saturating_sub(1)));
            format!(
                "{} deaths; median {:?}, 99 % {:?}, longest {:?}",
                all.len(),
                part(50),
                part(99),
                all.last()
            )
        };
        let counts = self
            .counts
            .iter()
            .map(|(what, count)| format!("{count:>8}  {what}"));
        format!(
            "{}\nms from a revocation's acknowledgement until another broker knew it, its link well: {}\n\
             with cuts and crashes between: {}\nlatest call of a dead key that was taken: {} ms",
            counts.collect::<Vec<_>>().join("\n"),
            spread(&self.calm_ms),
            spread(&self.rough_ms),
            self.late_ms
        )
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            *self.counts.entry(what.clone()).or_default() += count;
        }
        self.calm_ms.extend(&other.calm_ms);
        self.rough_ms.extend(&other.rough_ms);
        self.late_ms = self.late_ms.max(other.late_ms);
    }
}

/// Says that an invariant does not hold.
pub(crate) fn broken(invariant: &str, what: impl std::fmt::Display) -> Result<(), Broken> {
    Err(format!("broken: {invariant}: {what}"))
}

impl Oracle {
    /// A broker took a call: from its own agent, or over a link.
    pub(crate) fn taken(
        &mut self,
        at: Index,
        id: &Digest,
        way: Option<&Way>,
        now: Moment,
    ) -> Result<(), Broken> {
        let Some(call) = self.calls.get(id) else {
            return broken(SIGNED, format!("org{at} took {id}"));
        };
        let what = format!("org{at} took {id} of {}@org{}", call.caller, call.home);
        let death = self.dead.get(&call.key).map(|(_, died)| *died);
        let Some(way) = way else {
            let standing = &self.agents[&(call.home, call.caller)];
            if call.home != at {
                return broken(SIGNED, format!("{what} at home"));
            }
            if death.is_some() {
                return broken(REVOKED, format!("{what} under a dead key"));
            }
            if !standing.is_registered || !standing.is_granted {
                return broken(REVOKED, format!("{what}, who may not"));
            }
            return Ok(());
        };
        let peer = way.peer;
        if call.home == at {
            return broken(SIGNED, format!("{what} from org{peer}"));
        }
        let is_theirs = call.home == peer;
        let permits = |grant: &Grant| match grant {
            Grant::Own { onward } => call.owner == at && (is_theirs || *onward),
            Grant::Through(owner) => call.owner == *owner && call.owner != at,
        };
        let peering = self.peerings.get(&(at, peer));
        if !peering.is_some_and(|peering| peering.grants.iter().any(permits)) {
            return broken(
                REVOKED,
                format!("{what} from org{peer}, which is not granted it"),
            );
        }
        let unknown_for = now.saturating_sub(way.known_up_to);
        if unknown_for > STALE_AFTER {
            return broken(
                STALE,
                format!("{what} from org{peer}, unheard of for {unknown_for:?}"),
            );
        }
        if way.told.contains(&call.key) {
            return broken(
                DEAD,
                format!("{what} though org{peer} had told of its death"),
            );
        }
        let Some(died) = death else {
            return Ok(());
        };
        let late = now - died;
        // What an adversary between holds back has the same bound where the home's own link tells of deaths;
        // behind a third it has only that of the tokens.
        let bound = match (is_theirs, way.is_honest) {
            (true, _) => STALE_AFTER,
            (false, true) => 2 * STALE_AFTER,
            (false, false) => return Ok(()),
        };
        if late > bound {
            return broken(DEAD, format!("{what} {late:?} after its key was revoked"));
        }
        self.seen.late_ms = self.seen.late_ms.max(late.as_millis() as u64);
        self.seen.count("a dead key's call within the bound");
        Ok(())
    }

    /// A provider was given a call.
    pub(crate) fn delivered(&mut self, at: Index, id: &Digest) -> Result<(), Broken> {
        let Some(call) = self.calls.get_mut(id).filter(|call| call.owner == at) else {
            return broken(SIGNED, format!("org{at} delivered {id}"));
        };
        call.deliveries += 1;
        if call.deliveries > 1 {
            return broken(ONCE, format!("{id} at org{at}"));
        }
        self.seen.count("delivered");
        Ok(())
    }

    /// A caller took an answer.
    pub(crate) fn answered(&mut self, call: &Digest, result: &Digest) -> Result<(), Broken> {
        if !self.results.contains(result) {
            return broken(ANSWERED, format!("{result} about {call}"));
        }
        self.end(call, Ended::Answered);
        Ok(())
    }

    pub(crate) fn end(&mut self, call: &Digest, how: Ended) {
        let what = match &how {
            Ended::Answered => "answered".into(),
            Ended::Refused(code) => format!("refused: {code}"),
        };
        if let Some(call) = self.calls.get_mut(call) {
            call.ended.get_or_insert(how);
            self.seen.count(what);
        }
    }

    /// A key died, at its home, and everybody there was told so.
    pub(crate) fn died(&mut self, key: PublicKey, home: Index, now: Moment) {
        self.dead.insert(key, (home, now));
        self.seen.count("keys revoked");
    }

    /// How many brokers were told of this death.
    pub(crate) fn aware_of(&self, key: &PublicKey) -> usize {
        self.aware.iter().filter(|(_, known)| known == key).count()
    }

    /// A neighbour was told of deaths, over a link that is well since then.
    pub(crate) fn told(
        &mut self,
        reader: Index,
        keys: &[PublicKey],
        now: Moment,
        well_since: Option<Moment>,
    ) {
        for key in keys {
            if let Some((home, died)) = self.dead.get(key)
                && *home != reader
                && self.aware.insert((reader, *key))
            {
                let took = (now - *died).as_millis() as u64;
                match well_since.is_some_and(|since| since <= *died) {
                    true => self.seen.calm_ms.push(took),
                    false => self.seen.rough_ms.push(took),
                }
            }
        }
    }
}
