//! What is remembered of a legacy session beside its id, which says all that is lasting: here is what ends with
//! this process. A client that is back after a restart has its session; what it subscribed to, its log level, its
//! requests under way and its questions are gone.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::AbortHandle;
use proto_spec::{AgentId, Timestamp};
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

/// Bytes of the URIs that one client is subscribed to, in all.
pub(super) const WATCHED_BYTES_MAX: usize = 64 << 10;

/// Bytes of URIs.
pub(super) fn bytes_of(uris: &BTreeSet<String>) -> usize {
    uris.iter().map(String::len).sum()
}

/// One session's.
#[derive(Debug)]
pub(super) struct Memory {
    level: Mutex<&'static str>,
    watched: watch::Sender<BTreeSet<String>>,
    questions: Mutex<HashMap<Id, oneshot::Sender<Reply>>>,
    running: Mutex<HashMap<Id, AbortHandle>>,
    next: AtomicU64,
    used: AtomicU64,
    /// When the session is over.
    until: Timestamp,
    ended: watch::Sender<bool>,
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// Questions are numbered from `now` on, so that an answer to one from before a restart answers none.
    /// The session lasts `until` then.
    pub(super) fn new(now: Timestamp, until: Timestamp) -> Arc<Self> {
        Arc::new(Self {
            level: Mutex::new(LEVEL_DEFAULT),
            watched: watch::Sender::default(),
            questions: Mutex::default(),
            running: Mutex::default(),
            next: AtomicU64::new(now.as_ms().saturating_mul(1_000)),
            used: AtomicU64::new(now.as_ms()),
            until,
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
    /// Where there are `most` already, or more of [`WATCHED_BYTES_MAX`] than it needs.
    pub(super) fn watch(&self, uri: String, most: usize) -> Result<(), Fault> {
        let mut is_full = false;
        self.watched.send_if_modified(|watched| {
            let bytes = bytes_of(watched) + uri.len();
            is_full =
                (watched.len() >= most || bytes > WATCHED_BYTES_MAX) && !watched.contains(&uri);
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

    /// How long the session lasts from `now` on.
    pub(super) fn left(&self, now: Timestamp) -> Duration {
        Duration::from_millis(self.until.as_ms().saturating_sub(now.as_ms()))
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
    each: usize,
    all: Mutex<HashMap<String, Kept>>,
}

#[derive(Debug)]
struct Kept {
    caller: AgentId,
    memory: Arc<Memory>,
}

impl Memories {
    /// Of so many sessions in all, and so many of one caller.
    pub(super) fn new(most: usize, each: usize) -> Self {
        Self {
            most,
            each,
            all: Mutex::default(),
        }
    }

    /// What is remembered of the session with this id, which `caller` has `until` then; nothing at first.
    pub(super) fn of(
        &self,
        id: &str,
        caller: &AgentId,
        until: Timestamp,
        now: Timestamp,
    ) -> Arc<Memory> {
        let mut all = held(&self.all);
        if let Some(kept) = all.get(id) {
            kept.memory.touch(now);
            return Arc::clone(&kept.memory);
        }
        all.retain(|_, kept| now < kept.memory.until);
        let theirs = |kept: &Kept| kept.caller == *caller;
        if all.values().filter(|kept| theirs(kept)).count() >= self.each {
            forget_one(&mut all, theirs);
        } else if all.len() >= self.most {
            forget_one(&mut all, |_| true);
        }
        let memory = Memory::new(now, until);
        let kept = Kept {
            caller: caller.clone(),
            memory: Arc::clone(&memory),
        };
        all.insert(id.to_owned(), kept);
        memory
    }
}

/// Forgets the one of these that was not used for longest; one that somebody uses goes last.
fn forget_one(all: &mut HashMap<String, Kept>, among: impl Fn(&Kept) -> bool) {
    let idle = all
        .iter()
        .filter(|(_, kept)| among(kept))
        .min_by_key(|(_, kept)| (Arc::strong_count(&kept.memory) > 1, kept.memory.used()));
    if let Some(id) = idle.map(|(id, _)| id.clone()) {
        all.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LASTS: u64 = 1_000;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_ms(ms)
    }

    fn of(memories: &Memories, id: &str, caller: &str, now: u64) -> Arc<Memory> {
        memories.of(id, &caller.parse().unwrap(), at(now + LASTS), at(now))
    }

    #[test]
    fn beyond_the_bound_the_session_that_was_used_longest_ago_is_forgotten() {
        let memories = Memories::new(2, 2);
        for (id, now) in [("a", 1), ("b", 2), ("a", 3)] {
            of(&memories, id, "ada@acme", now).set_level("error");
        }
        of(&memories, "c", "ada@acme", 4);
        assert_eq!(of(&memories, "a", "ada@acme", 5).level(), "error");
        assert_eq!(of(&memories, "b", "ada@acme", 6).level(), LEVEL_DEFAULT);
    }

    #[test]
    fn a_caller_with_many_sessions_has_its_own_forgotten() {
        let memories = Memories::new(4, 2);
        of(&memories, "bobs", "bob@acme", 1).set_level("error");
        for at in 2..10 {
            of(&memories, &at.to_string(), "ada@acme", at);
        }
        assert_eq!(of(&memories, "bobs", "bob@acme", 10).level(), "error");
        assert_eq!(held(&memories.all).len(), 3);
    }

    #[test]
    fn a_session_that_is_over_is_forgotten() {
        let memories = Memories::new(4, 4);
        of(&memories, "a", "ada@acme", 1);
        of(&memories, "b", "ada@acme", 1 + LASTS);
        assert_eq!(held(&memories.all).len(), 1);
    }

    #[tokio::test]
    async fn a_question_is_answered_once_and_a_dropped_one_leaves_nothing() {
        let memory = Memory::new(at(1), at(2));
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
        let memory = Memory::new(at(1), at(2));
        assert!(memory.watch("a".into(), 1).is_ok());
        assert!(memory.watch("a".into(), 1).is_ok());
        assert!(memory.watch("b".into(), 1).is_err());
        memory.unwatch("a");
        assert!(memory.watch("b".into(), 1).is_ok());
    }

    #[test]
    fn subscriptions_have_so_many_bytes_in_all() {
        let memory = Memory::new(at(1), at(2));
        let half = |name: &str| name.repeat(WATCHED_BYTES_MAX / 2);
        assert!(memory.watch(half("a"), 9).is_ok());
        assert!(memory.watch(half("b"), 9).is_ok());
        assert!(memory.watch("c".into(), 9).is_err());
        assert!(memory.watch(half("a"), 9).is_ok());
    }
}
