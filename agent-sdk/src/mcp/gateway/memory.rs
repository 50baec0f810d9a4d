//! What is remembered of a legacy session beside its id, which says all that is lasting: here is what ends with
//! this process. A client that is back after a restart has its session; what it subscribed to, its log level, its
//! requests under way and its questions are gone.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::AbortHandle;
use proto_spec::Timestamp;
use serde_json::value::RawValue;
use tokio::sync::{oneshot, watch};

use super::fault::Fault;
use crate::mcp::rpc::{INVALID_REQUEST, Id, RpcError};

/// What a client answered to a question.
pub(super) type Reply = Result<Box<RawValue>, RpcError>;

/// Log messages that a client gets which never said which it wants, as servers of its time do it.
const LEVEL_DEFAULT: &str = "info";
/// The levels that there are, least first.
const LEVELS: [&str; 8] = [
    "debug",
    "info",
    "notice",
    "warning",
    "error",
    "critical",
    "alert",
    "emergency",
];

/// One session's.
#[derive(Debug)]
pub(super) struct Memory {
    level: Mutex<&'static str>,
    watched: watch::Sender<BTreeSet<String>>,
    questions: Mutex<HashMap<Id, oneshot::Sender<Reply>>>,
    running: Mutex<HashMap<Id, AbortHandle>>,
    next: AtomicU64,
    used: AtomicU64,
    ended: watch::Sender<bool>,
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// Questions are numbered from `now` on, so that an answer to one from before a restart answers none.
    pub(super) fn new(now: Timestamp) -> Arc<Self> {
        Arc::new(Self {
            level: Mutex::new(LEVEL_DEFAULT),
            watched: watch::Sender::default(),
            questions: Mutex::default(),
            running: Mutex::default(),
            next: AtomicU64::new(now.as_ms().saturating_mul(1_000)),
            used: AtomicU64::new(now.as_ms()),
            ended: watch::Sender::default(),
        })
    }

    pub(super) fn level(&self) -> &'static str {
        *held(&self.level)
    }

    /// Sets which log messages are wanted; false where there is no such level.
    pub(super) fn set_level(&self, wanted: &str) -> bool {
        let level = LEVELS.into_iter().find(|level| *level == wanted);
        if let Some(level) = level {
            *held(&self.level) = level;
        }
        level.is_some()
    }

    /// Which resources the client wants to hear of.
    pub(super) fn watched(&self) -> watch::Receiver<BTreeSet<String>> {
        self.watched.subscribe()
    }

    /// # Errors
    ///
    /// Where there are `most` already.
    pub(super) fn watch(&self, uri: String, most: usize) -> Result<(), Fault> {
        let mut is_full = false;
        self.watched.send_if_modified(|watched| {
            is_full = watched.len() >= most && !watched.contains(&uri);
            !is_full && watched.insert(uri)
        });
        match is_full {
            true => Err(Fault::busy("subscriptions")),
            false => Ok(()),
        }
    }

    pub(super) fn unwatch(&self, uri: &str) {
        self.watched.send_if_modified(|watched| watched.remove(uri));
    }

    /// A question that is about to be asked: its id, and what waits for its answer.
    ///
    /// # Errors
    ///
    /// Where `most` wait already.
    pub(super) fn question(
        self: &Arc<Self>,
        most: usize,
    ) -> Result<(Id, impl Future<Output = Option<Reply>> + use<>), Fault> {
        let mut questions = held(&self.questions);
        if questions.len() >= most {
            return Err(Fault::busy("questions to the client"));
        }
        let id = Id::number(self.next.fetch_add(1, Ordering::Relaxed));
        let (answer, waiting) = oneshot::channel();
        questions.insert(id.clone(), answer);
        let forget = Forget {
            memory: Arc::clone(self),
            id: id.clone(),
        };
        Ok((id, async move {
            let reply = waiting.await.ok();
            drop(forget);
            reply
        }))
    }

    /// Takes a client's answer. What nobody asked, or nobody waits for any more, changes nothing.
    pub(super) fn answered(&self, id: &Id, reply: Reply) {
        if let Some(waiting) = held(&self.questions).remove(id) {
            let _ = waiting.send(reply);
        }
    }

    /// Says that a request is under way, until what it gives is dropped.
    ///
    /// # Errors
    ///
    /// Where one with this id is under way already.
    pub(super) fn started(self: &Arc<Self>, id: &Id, abort: AbortHandle) -> Result<Running, Fault> {
        let mut running = held(&self.running);
        if running.contains_key(id) {
            return Err(Fault::new(
                INVALID_REQUEST,
                "a request with this id is under way",
            ));
        }
        running.insert(id.clone(), abort);
        Ok(Running {
            memory: Arc::clone(self),
            id: id.clone(),
        })
    }

    /// Ends a request that is under way; it is not answered then.
    pub(super) fn cancel(&self, id: &Id) {
        if let Some(abort) = held(&self.running).remove(id) {
            abort.abort();
        }
    }

    /// Ends the session, and all that is under way in it.
    pub(super) fn end(&self) {
        for (_, abort) in held(&self.running).drain() {
            abort.abort();
        }
        self.end_listening();
    }

    /// Ends the session's streams; requests go on.
    pub(super) fn end_listening(&self) {
        self.ended.send_replace(true);
    }

    pub(super) fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Done when the session is over.
    pub(super) fn over(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut ended = self.ended.subscribe();
        async move {
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }

    pub(super) fn touch(&self, now: Timestamp) {
        self.used.store(now.as_ms(), Ordering::Relaxed);
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(super) struct Running {
    memory: Arc<Memory>,
    id: Id,
}

impl Drop for Running {
    fn drop(&mut self) {
        held(&self.memory.running).remove(&self.id);
    }
}

struct Forget {
    memory: Arc<Memory>,
    id: Id,
}

impl Drop for Forget {
    fn drop(&mut self) {
        held(&self.memory.questions).remove(&self.id);
    }
}

/// Of all sessions, by their ids.
#[derive(Debug)]
pub(super) struct Memories {
    most: usize,
    all: Mutex<HashMap<String, Arc<Memory>>>,
}

impl Memories {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            all: Mutex::default(),
        }
    }

    /// What is remembered of the session with this id, nothing at first.
    pub(super) fn of(&self, id: &str, now: Timestamp) -> Arc<Memory> {
        let mut all = held(&self.all);
        if let Some(memory) = all.get(id) {
            memory.touch(now);
            return Arc::clone(memory);
        }
        if all.len() >= self.most {
            let idle = all.iter().min_by_key(|(_, memory)| {
                // One that somebody uses goes last.
                (Arc::strong_count(memory) > 1, memory.used())
            });
            if let Some(id) = idle.map(|(id, _)| id.clone()) {
                all.remove(&id);
            }
        }
        let memory = Memory::new(now);
        all.insert(id.to_owned(), Arc::clone(&memory));
        memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_ms(ms)
    }

    #[test]
    fn beyond_the_bound_the_session_that_was_used_longest_ago_is_forgotten() {
        let memories = Memories::new(2);
        for (id, now) in [("a", 1), ("b", 2), ("a", 3)] {
            memories.of(id, at(now)).set_level("error");
        }
        memories.of("c", at(4));
        assert_eq!(memories.of("a", at(5)).level(), "error");
        assert_eq!(memories.of("b", at(6)).level(), LEVEL_DEFAULT);
    }

    #[tokio::test]
    async fn a_question_is_answered_once_and_a_dropped_one_leaves_nothing() {
        let memory = Memory::new(at(1));
        let (id, waiting) = memory.question(1).unwrap();
        assert!(memory.question(1).is_err());
        memory.answered(&Id::number(7), Ok(RawValue::NULL.to_owned()));
        memory.answered(&id, Ok(RawValue::TRUE.to_owned()));
        memory.answered(&id, Ok(RawValue::NULL.to_owned()));
        assert_eq!(waiting.await.unwrap().unwrap().get(), "true");
        drop(memory.question(1).unwrap());
        assert!(memory.question(1).is_ok());
    }

    #[test]
    fn subscriptions_are_bounded_and_one_more_of_the_same_is_none() {
        let memory = Memory::new(at(1));
        assert!(memory.watch("a".into(), 1).is_ok());
        assert!(memory.watch("a".into(), 1).is_ok());
        assert!(memory.watch("b".into(), 1).is_err());
        memory.unwatch("a");
        assert!(memory.watch("b".into(), 1).is_ok());
    }
}
