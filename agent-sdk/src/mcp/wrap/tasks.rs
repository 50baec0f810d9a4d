//! Whose the tasks are that a server has begun: known to who began them, and to nobody else.
//!
//! A server that many callers reach over one connection, or that is one for all connections, cannot tell them apart,
//! and an id is no secret: it stands in logs and in models' contexts. So every id is held against this before the
//! server sees it. What is not remembered is unknown, also to who began it: a start of this process forgets all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto_spec::Digest;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use tokio::time::Instant;

use crate::mcp::rpc::{INVALID_PARAMS, MISSING_CAPABILITY, Object, RpcError};

/// The extension whose tasks these are.
pub(super) const TASKS: &str = "io.modelcontextprotocol/tasks";
/// What names the task that a message is about.
const RELATED: &str = "io.modelcontextprotocol/related-task";
/// Requests about one task.
pub(super) const TASK_REQUESTS: [&str; 3] = ["tasks/get", "tasks/update", "tasks/cancel"];

/// Tasks that are remembered, of all callers together. No organisation has more than are left for others, and no
/// agent more than are left for its organisation.
const TASKS_MAX: usize = 4_096;
/// A task that nobody asked about for so long may be forgotten for another's sake.
const ABANDONED_AFTER: Duration = Duration::from_secs(86_400);

/// Which server knows a task: whose, where each caller has one of its own, else nobody's.
pub(super) type Home = str;

/// Who began which task.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    known: Mutex<HashMap<(Box<Home>, Digest), Task>>,
}

#[derive(Debug)]
struct Task {
    owner: String,
    /// Its owner was told how it ended.
    is_over: bool,
    /// When its owner last asked about it.
    used: Instant,
}

impl Task {
    fn may_go(&self, now: Instant) -> bool {
        self.is_over || now.duration_since(self.used) >= ABANDONED_AFTER
    }
}

impl Tasks {
    /// Remembers who began a task. A server that gives an id again has forgotten the task that had it. Not where
    /// there is no room: those go first that ended or are asked about no more, and no others.
    #[must_use]
    pub(super) fn begin(&self, home: &Home, id: &str, owner: &str, now: Instant) -> bool {
        let mut known = self.known();
        if !make_room(&mut known, owner, now) {
            return false;
        }
        let task = Task {
            owner: owner.to_owned(),
            is_over: false,
            used: now,
        };
        known.insert(place(home, id), task);
        true
    }

    /// Makes room for a task that somebody may begin. Whether there is.
    pub(super) fn make_room(&self, owner: &str, now: Instant) -> bool {
        make_room(&mut self.known(), owner, now)
    }

    /// Whether somebody began this task.
    pub(super) fn is_of(&self, home: &Home, id: &str, owner: &str, now: Instant) -> bool {
        let mut known = self.known();
        let task = known.get_mut(&place(home, id));
        let own = task.filter(|task| task.owner == owner);
        own.map(|task| task.used = now).is_some()
    }

    /// Its owner was told how it ended; it may be asked about for as long as there is room.
    pub(super) fn over(&self, home: &Home, id: &str) {
        if let Some(task) = self.known().get_mut(&place(home, id)) {
            task.is_over = true;
        }
    }

    /// The server of this home is gone: the next one may give the same ids to others.
    pub(super) fn forget(&self, home: &Home) {
        self.known().retain(|(at, _), _| **at != *home);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<(Box<Home>, Digest), Task>> {
        // Nothing that can panic runs under this lock.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tasks of one home: what its connections know.
#[derive(Debug, Clone, Default)]
pub(super) struct AtHome {
    pub(super) all: Arc<Tasks>,
    pub(super) home: Box<Home>,
}

impl AtHome {
    /// Remembers who began a task, where there is room.
    pub(super) fn begin(&self, id: &str, owner: &str) {
        if !self.all.begin(&self.home, id, owner, Instant::now()) {
            tracing::warn!("there is no room to remember whose task was begun");
        }
    }

    /// Whether what is about this task is for this owner. It is not their asking about it.
    pub(super) fn is_of(&self, id: &str, owner: &str) -> bool {
        let known = self.all.known();
        let task = known.get(&place(&self.home, id));
        task.is_some_and(|task| task.owner == owner)
    }

    /// Whether a task of somebody else's may still say something.
    pub(super) fn has_others(&self, owner: &str) -> bool {
        let known = self.all.known();
        let mut open = known.iter().filter(|(_, task)| !task.is_over);
        open.any(|((home, _), task)| *home == self.home && task.owner != owner)
    }
}

fn place(home: &Home, id: &str) -> (Box<Home>, Digest) {
    (home.into(), Digest::of(id.as_bytes()))
}

/// Makes room for one more of `owner`'s, if there is none: of their own tasks where they have their share, else of
/// their organisation's where that has.
fn make_room<K: Clone + Eq + std::hash::Hash>(
    known: &mut HashMap<K, Task>,
    owner: &str,
    now: Instant,
) -> bool {
    let is_own = |task: &Task| task.owner == owner;
    let is_orgs = |task: &Task| org(&task.owner) == org(owner);
    let (mut own, mut orgs) = (0_usize, 0_usize);
    for task in known.values().filter(|task| is_orgs(task)) {
        orgs += 1;
        own += usize::from(is_own(task));
    }
    let left = TASKS_MAX - known.len();
    let left_for_org = left.saturating_sub(orgs);
    let makes_room: &dyn Fn(&Task) -> bool = match (own, orgs) {
        (1.., _) if own >= left_for_org => &is_own,
        (_, 1..) if left_for_org == 0 => &is_orgs,
        _ if left > 0 => return true,
        _ => &|_| true,
    };
    let may_go = known
        .iter()
        .filter(|(_, task)| task.may_go(now) && makes_room(task));
    let first = may_go.min_by_key(|(_, task)| task.used);
    let first = first.map(|(place, _)| place.clone());
    first.is_some_and(|place| known.remove(&place).is_some())
}

/// Whose agent an owner is: an organisation vouches for its agents, and may name as many as it likes.
fn org(owner: &str) -> &str {
    owner.split_once('@').map_or(owner, |(_, org)| org)
}

/// What is said to a client that asks about tasks, and did not say that it knows what they are.
pub(super) fn undeclared() -> RpcError {
    let data = to_raw_value(&json!({"requiredCapabilities": {"extensions": {TASKS: {}}}}));
    RpcError {
        data: data.ok(),
        ..RpcError::new(MISSING_CAPABILITY, "the client did not declare tasks")
    }
}

/// What is said of a task that does not exist, or is another's.
pub(super) fn unknown() -> RpcError {
    RpcError::new(INVALID_PARAMS, "there is no such task")
}

/// The task that a result is the beginning of: in the manner of the extension, or of 2025-11-25.
pub(super) fn begun(result: &RawValue) -> Option<String> {
    // Few are, and reading one may cost as much as all else that is done with it.
    if !result.get().contains("taskId") {
        return None;
    }
    let result = Object::parse(result.get()).ok()?;
    match result.read::<String>("resultType").as_deref() {
        Some("task") => result.read("taskId"),
        _ => result.object("task")?.read("taskId"),
    }
}

/// Whether it tells how a task is, and nothing else.
pub(super) fn is_told(method: &str) -> bool {
    method == "notifications/tasks" || method.starts_with("notifications/tasks/")
}

/// The task that a notification or a question is about, if about one. Where that cannot be read it is one that nobody
/// has.
pub(super) fn named(method: &str, params: &Object) -> Option<String> {
    let id = |said: &Object| said.read("taskId").unwrap_or_default();
    if is_told(method) {
        return Some(id(params));
    }
    let meta = params.object("_meta")?;
    let related = || meta.object(RELATED).unwrap_or_default();
    meta.has(RELATED).then(|| id(&related()))
}

/// Whether what a server says of a task is how it ended.
pub(super) fn is_end(said: &RawValue) -> bool {
    let said = Object::parse(said.get()).unwrap_or_default();
    let status: String = said.read("status").unwrap_or_default();
    matches!(status.as_str(), "completed" | "failed" | "cancelled")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(tasks: &Tasks, owner: &str, ids: std::ops::Range<usize>, now: Instant) -> usize {
        let ids = ids.map(|n| format!("{owner}-{n}"));
        ids.take_while(|id| tasks.begin("", id, owner, now)).count()
    }

    #[test]
    fn a_task_is_known_to_who_began_it_at_the_server_that_did() {
        let (tasks, now) = (Tasks::default(), Instant::now());
        assert!(tasks.begin("", "t", "ada", now));
        assert!(tasks.is_of("", "t", "ada", now));
        for (home, id, owner) in [("", "t", "bob"), ("", "u", "ada"), ("ada", "t", "ada")] {
            assert!(!tasks.is_of(home, id, owner, now), "{home} {id} {owner}");
        }
        assert!(tasks.begin("", "t", "bob", now), "given again");
        assert!(tasks.is_of("", "t", "bob", now) && !tasks.is_of("", "t", "ada", now));
    }

    #[test]
    fn nobody_has_more_tasks_than_are_left_for_others() {
        let (tasks, now) = (Tasks::default(), Instant::now());
        let begin = |owner: &str| begin(&tasks, owner, 0..TASKS_MAX, now);
        let eves = begin("eve@evil");
        assert_eq!(eves.div_ceil(3), TASKS_MAX.div_ceil(9));
        assert!(!tasks.make_room("eve@evil", now));
        assert!(tasks.make_room("bob@evil", now));
        assert!((1..eves).contains(&begin("bob@evil")));
        assert!(tasks.is_of("", "eve@evil-0", "eve@evil", now));
    }

    #[test]
    fn an_organisation_has_no_more_tasks_than_are_left_for_others_whatever_agents_it_names() {
        let (tasks, now) = (Tasks::default(), Instant::now());
        let owners = (0..32).map(|n| format!("eve{n}@evil"));
        let all: usize = owners
            .map(|owner| begin(&tasks, &owner, 0..TASKS_MAX, now))
            .sum();
        assert_eq!(all, TASKS_MAX / 2);
        assert!(!tasks.make_room("eve32@evil", now));
        assert!(begin(&tasks, "ada@acme", 0..TASKS_MAX, now) >= TASKS_MAX / 8);
        tasks.over("", "eve0@evil-0");
        assert!(tasks.make_room("eve32@evil", now), "of its organisation's");
    }

    #[test]
    fn a_server_that_is_started_anew_has_no_tasks_and_others_keep_theirs() {
        let (tasks, now) = (Tasks::default(), Instant::now());
        assert!(tasks.begin("", "t", "ada", now) && tasks.begin("bob", "t", "bob", now));
        tasks.forget("");
        assert!(!tasks.is_of("", "t", "ada", now) && tasks.is_of("bob", "t", "bob", now));
    }

    #[test]
    fn a_task_that_there_is_no_room_for_takes_no_others_place() {
        let (tasks, now) = (Tasks::default(), Instant::now());
        assert!(tasks.begin("", "t", "ada", now));
        begin(&tasks, "eve", 0..TASKS_MAX, now);
        assert!(!tasks.begin("", "t", "eve", now));
        assert!(tasks.is_of("", "t", "ada", now));
    }

    #[test]
    fn only_what_ended_or_was_abandoned_makes_room() {
        let (tasks, now) = (Tasks::default(), Instant::now());
        let share = begin(&tasks, "ada", 0..TASKS_MAX, now);
        tasks.over("", "ada-7");
        assert!(tasks.is_of("", "ada-7", "ada", now), "while there is room");
        assert!(tasks.begin("", "new", "ada", now));
        assert!(!tasks.is_of("", "ada-7", "ada", now));
        assert!(!tasks.begin("", "newer", "ada", now));
        let later = now + ABANDONED_AFTER;
        assert!(tasks.is_of("", "ada-0", "ada", later));
        assert_eq!(begin(&tasks, "ada", share..share * 3, later), share - 1);
        assert!(tasks.is_of("", "ada-0", "ada", later));
    }

    #[test]
    fn a_result_that_begins_a_task_names_it_in_either_manner() {
        for (text, id) in [
            (
                r#"{"resultType":"task","taskId":"a","status":"working"}"#,
                Some("a"),
            ),
            (r#"{"task":{"taskId":"b"}}"#, Some("b")),
            (r#"{"resultType":"complete","taskId":"c"}"#, None),
            (r#"{"content":[{"text":"taskId"}]}"#, None),
            (r#"{"resultType":"task","taskId":7}"#, None),
        ] {
            let result = RawValue::from_string(text.into()).unwrap();
            assert_eq!(begun(&result).as_deref(), id, "{text}");
        }
    }
}
