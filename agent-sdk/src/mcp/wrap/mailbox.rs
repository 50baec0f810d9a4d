//! What comes of one request, in the order in which it came: notifications and questions, then one outcome.
//!
//! Bounded in number and bytes. A notification that finds it full is dropped and counted; the outcome
//! always has its place.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::value::RawValue;
use tokio::sync::Notify;

use crate::mcp::rpc::{Id, Object, RpcError};

/// Messages that wait for one request's caller.
pub(super) const WAITING_MAX: usize = 1_024;
/// Their bytes.
pub(super) const WAITING_BYTES_MAX: usize = 8 << 20;

/// What a server says while it works on a request.
#[derive(Debug)]
pub(super) enum Said {
    /// A notification.
    Notification {
        /// Which.
        method: String,
        /// As it was sent.
        params: Object,
    },
    /// It wants to know something before it goes on.
    Question(Question),
}

/// What a server asks its client.
#[derive(Debug)]
pub(super) struct Question {
    /// By which the server knows its answer.
    pub(super) id: Id,
    /// `elicitation/create` …
    pub(super) method: String,
    /// As they were sent.
    pub(super) params: Object,
}

impl Question {
    /// How much is asked.
    pub(super) fn bytes(&self) -> usize {
        self.method.len() + self.params.raw().get().len()
    }
}

/// How a request ends.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    /// The server's answer.
    Answered(Result<Box<RawValue>, RpcError>),
    /// There will be none: why.
    Lost(String),
    /// There will be none before somebody logs in: what to do.
    Barred(String),
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Next {
    Said(Said),
    Over(Outcome),
}

#[derive(Debug, Default)]
pub(super) struct Mailbox {
    state: Mutex<State>,
    /// One waits at most: whoever made the request.
    woken: Notify,
}

#[derive(Debug, Default)]
struct State {
    said: VecDeque<(Said, usize)>,
    bytes: usize,
    dropped: u64,
    outcome: Option<Outcome>,
}

impl Mailbox {
    /// Puts in what was said in `bytes` bytes. Not where there is no room, or after the outcome.
    pub(super) fn put(&self, said: Said, bytes: usize) -> bool {
        let mut state = self.state();
        let fits = state.said.len() < WAITING_MAX && state.bytes + bytes <= WAITING_BYTES_MAX;
        if !fits || state.outcome.is_some() {
            state.dropped += 1;
            return false;
        }
        state.bytes += bytes;
        state.said.push_back((said, bytes));
        drop(state);
        self.woken.notify_one();
        true
    }

    /// Ends it. The first outcome counts.
    pub(super) fn end(&self, outcome: Outcome) {
        self.state().outcome.get_or_insert(outcome);
        self.woken.notify_one();
    }

    /// What comes next; after the outcome, the outcome again.
    pub(super) async fn next(&self) -> Next {
        loop {
            if let Some(next) = self.now() {
                return next;
            }
            self.woken.notified().await;
        }
    }

    /// What is there already.
    pub(super) fn now(&self) -> Option<Next> {
        let mut state = self.state();
        if let Some((said, bytes)) = state.said.pop_front() {
            state.bytes -= bytes;
            return Some(Next::Said(said));
        }
        state.outcome.clone().map(Next::Over)
    }

    /// How much did not fit.
    pub(super) fn dropped(&self) -> u64 {
        self.state().dropped
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(method: &str) -> Said {
        Said::Notification {
            method: method.into(),
            params: Object::default(),
        }
    }

    #[test]
    fn a_flood_is_dropped_and_counted_and_the_outcome_still_comes_last() {
        let mailbox = Mailbox::default();
        let put = (0..WAITING_MAX + 5).filter(|_| mailbox.put(note("n"), 1));
        assert_eq!(put.count(), WAITING_MAX);
        mailbox.end(Outcome::Lost("gone".into()));
        mailbox.end(Outcome::Answered(Err(RpcError::new(1, "late"))));
        assert!(!mailbox.put(note("late"), 1));
        for _ in 0..WAITING_MAX {
            assert!(matches!(mailbox.now(), Some(Next::Said(_))));
        }
        assert!(matches!(mailbox.now(), Some(Next::Over(Outcome::Lost(_)))));
        assert_eq!(mailbox.dropped(), 6);
    }

    #[test]
    fn what_waits_is_bounded_in_bytes() {
        let mailbox = Mailbox::default();
        assert!(mailbox.put(note("n"), WAITING_BYTES_MAX));
        assert!(!mailbox.put(note("n"), 1));
        mailbox.now().unwrap();
        assert!(mailbox.put(note("n"), 1));
    }
}
