//! Every bound of a gateway, and who is where in it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto_spec::AgentId;
use proto_spec::limits::ENVELOPE_BYTES;

use super::fault::Fault;

/// What a gateway takes. Beyond a bound a client is refused; what was taken is served to its end.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of one message of a client.
    pub message_bytes: usize,
    /// How long a message may take to arrive.
    pub arrival: Duration,
    /// Requests under way, of all callers together.
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
            requests: 4_096,
            requests_per_caller: 128,
            streams: 1_024,
            streams_per_caller: 32,
            sessions: 4_096,
            session: Duration::from_secs(86_400),
            subscriptions: 256,
            call: Duration::from_secs(600),
            lookup: Duration::from_secs(15),
            question: Duration::from_secs(600),
            questions: 32,
            rounds: 16,
            page: 1_000,
            agents: 64,
            listen: Duration::from_secs(3_600),
            drain: Duration::from_secs(5),
            keep_alive: Duration::from_secs(15),
            patience: Duration::from_secs(5),
        }
    }
}

/// Places of one kind: so many in all, so many for each caller.
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
    by: HashMap<AgentId, usize>,
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

    /// A place for `caller`, free again when it is dropped.
    ///
    /// # Errors
    ///
    /// Where all are taken, or all of this caller's.
    pub(super) fn take(self: &Arc<Self>, caller: &AgentId) -> Result<Place, Fault> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs = taken.by.get(caller).copied().unwrap_or_default();
        if taken.all >= self.all || theirs >= self.each {
            return Err(Fault::busy(self.what));
        }
        taken.all += 1;
        taken.by.insert(caller.clone(), theirs + 1);
        Ok(Place {
            of: Arc::clone(self),
            caller: caller.clone(),
        })
    }
}

/// A place that is taken.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<Places>,
    caller: AgentId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        match taken.by.get_mut(&self.caller) {
            Some(theirs) if *theirs > 1 => *theirs -= 1,
            _ => drop(taken.by.remove(&self.caller)),
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
        let first = places.take(&ada).unwrap();
        let _second = places.take(&ada).unwrap();
        assert!(places.take(&ada).is_err());
        let _third = places.take(&bob).unwrap();
        assert!(places.take(&bob).is_err());
        drop(first);
        let _again = places.take(&bob).unwrap();
        assert!(places.take(&ada).is_err());
    }
}
