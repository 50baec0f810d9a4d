//! Every bound of a gateway, and who is where in it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto_spec::limits::ENVELOPE_BYTES;
use proto_spec::{AgentId, Digest};

use super::fault::Fault;
use super::upstream::Upstream;

/// What a gateway takes. Beyond a bound a client is refused; what was taken is served to its end.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of one message of a client.
    pub message_bytes: usize,
    /// How long a message may take to arrive.
    pub arrival: Duration,
    /// Messages that are arriving, of all callers together.
    pub arriving: usize,
    /// Messages that are arriving of one caller.
    pub arriving_per_caller: usize,
    /// Requests under way, of all callers together; an answer that its client has not read is under way.
    pub requests: usize,
    /// Requests under way of one caller.
    pub requests_per_caller: usize,
    /// Streams of notifications that are open, of all callers together.
    pub streams: usize,
    /// Streams of notifications of one caller.
    pub streams_per_caller: usize,
    /// Legacy sessions of which something is remembered here. Beyond it those are forgotten first that were
    /// not used for longest: what they subscribed to and their log level, never the session.
    pub sessions: usize,
    /// The same of one caller, of whose sessions one is forgotten beyond it.
    pub sessions_per_caller: usize,
    /// How long a legacy session lasts, after which a client begins anew.
    pub session: Duration,
    /// Resources that one client may be subscribed to.
    pub subscriptions: usize,
    /// How long a tool may take to answer.
    pub call: Duration,
    /// How long what is asked on the way to an answer may take: lists, and what a server is.
    pub lookup: Duration,
    /// How long a legacy client may take to answer a server's question.
    pub question: Duration,
    /// Questions to a legacy client that wait for its answers.
    pub questions: usize,
    /// How often a call may come back with questions, before it is given up.
    pub rounds: usize,
    /// Entries on one page of a list.
    pub page: usize,
    /// Agents whose prompts, resources and notifications come together at `/mcp`; the first in the order of
    /// their names.
    pub agents: usize,
    /// Between a change and the look at what it is, for whoever listens.
    pub settle: Duration,
    /// How long one call to an agent listens for its notifications, before another one does.
    pub listen: Duration,
    /// How long requests may finish whose client closed its side of a pair of streams.
    pub drain: Duration,
    /// After so long without a word a stream gets a comment, which keeps it open.
    pub keep_alive: Duration,
    /// After so long without a word an answer becomes a stream, which can be kept open.
    pub patience: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            message_bytes: ENVELOPE_BYTES,
            arrival: Duration::from_secs(30),
            arriving: 1_024,
            arriving_per_caller: 64,
            requests: 4_096,
            requests_per_caller: 128,
            streams: 1_024,
            streams_per_caller: 32,
            sessions: 4_096,
            sessions_per_caller: 256,
            session: Duration::from_secs(86_400),
            subscriptions: 256,
            call: Duration::from_secs(600),
            lookup: Duration::from_secs(15),
            question: Duration::from_secs(600),
            questions: 32,
            rounds: 16,
            page: 1_000,
            agents: 64,
            settle: Duration::from_secs(1),
            listen: Duration::from_secs(3_600),
            drain: Duration::from_secs(5),
            keep_alive: Duration::from_secs(15),
            patience: Duration::from_secs(5),
        }
    }
}

/// Places of one kind: so many in all, so many for each caller, and half of these for each of its credentials
/// where it has several: whoever has one of them leaves some to the others.
#[derive(Debug)]
pub(super) struct Places {
    what: &'static str,
    all: usize,
    each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by: HashMap<Holder, usize>,
}

/// Who has places.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Holder {
    Caller(AgentId),
    Credential(Digest),
}

impl Places {
    pub(super) fn new(what: &'static str, all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self {
            what,
            all,
            each,
            taken: Mutex::default(),
        })
    }

    /// A place for `caller`, which shows this credential, free again when the last who has it drops it.
    ///
    /// # Errors
    ///
    /// Where all are taken, or all of this caller's or of this credential.
    pub(super) fn take(
        self: &Arc<Self>,
        caller: &AgentId,
        credential: Option<Digest>,
    ) -> Result<Arc<Place>, Fault> {
        let shared = credential.map(|one| (Holder::Credential(one), self.each.div_ceil(2)));
        let own = (Holder::Caller(caller.clone()), self.each);
        let wanted: Vec<(Holder, usize)> = std::iter::once(own).chain(shared).collect();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |holder| taken.by.get(holder).copied().unwrap_or_default();
        if taken.all >= self.all || wanted.iter().any(|(holder, most)| has(holder) >= *most) {
            return Err(Fault::busy(self.what));
        }
        taken.all += 1;
        let holders: Vec<Holder> = wanted.into_iter().map(|(holder, _)| holder).collect();
        for holder in &holders {
            *taken.by.entry(holder.clone()).or_default() += 1;
        }
        drop(taken);
        Ok(Arc::new(Place {
            of: Arc::clone(self),
            holders,
        }))
    }

    /// A place for whoever calls through `upstream`.
    ///
    /// # Errors
    ///
    /// As [`Places::take`].
    pub(super) fn take_for(self: &Arc<Self>, upstream: &dyn Upstream) -> Result<Arc<Place>, Fault> {
        self.take(upstream.agent(), upstream.credential())
    }
}

/// A place that is taken.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<Places>,
    holders: Vec<Holder>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        for holder in &self.holders {
            match taken.by.get_mut(holder) {
                Some(theirs) if *theirs > 1 => *theirs -= 1,
                _ => drop(taken.by.remove(holder)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_cannot_take_every_place_and_leaves_what_it_took() {
        let places = Places::new("requests", 3, 2);
        let (ada, bob) = ("ada@acme".parse().unwrap(), "bob@acme".parse().unwrap());
        let first = places.take(&ada, None).unwrap();
        let _second = places.take(&ada, None).unwrap();
        assert!(places.take(&ada, None).is_err());
        let _third = places.take(&bob, None).unwrap();
        assert!(places.take(&bob, None).is_err());
        drop(first);
        let _again = places.take(&bob, None).unwrap();
        assert!(places.take(&ada, None).is_err());
    }

    #[test]
    fn one_of_a_callers_credentials_leaves_half_of_its_places_to_the_others() {
        let places = Places::new("requests", 100, 4);
        let (ada, [one, other]) = (
            "ada@acme".parse().unwrap(),
            [Digest([1; 32]), Digest([2; 32])],
        );
        let taken = [(); 2].map(|()| places.take(&ada, Some(one)).unwrap());
        assert!(places.take(&ada, Some(one)).is_err());
        let _others = [(); 2].map(|()| places.take(&ada, Some(other)).unwrap());
        assert!(places.take(&ada, None).is_err());
        drop(taken);
        assert!(places.take(&ada, Some(one)).is_ok());
    }
}
