//! What was executed, and what callers were told: written down where it happens, for whoever has to show
//! afterwards that nothing happened twice or too late.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use proto_spec::{AgentId, Audience, Code, Digest, Envelope, Kind, Sealed};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::lab::{Actor, code_of, wall_clock};
use crate::load::{provide, serve};
use crate::wire::{Heard, Line, PATIENCE, Socket};

/// Before a connection that was lost is made again.
const AGAIN: Duration = Duration::from_millis(50);
/// How long a caller waits for its answer before it asks again with the same bytes.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// A call, and when it was executed.
type Executed = (Instant, Digest);

/// The calls that providers were given, by caller.
#[derive(Debug, Default, Clone)]
pub struct Executions(Arc<Mutex<HashMap<AgentId, Vec<Executed>>>>);

impl Executions {
    /// Notes a call.
    pub fn note(&self, call: &Envelope) {
        if let Some(caller) = call.speaker().agent() {
            let one = (Instant::now(), Digest::of(&call.signed_bytes()));
            lock(&self.0).entry(caller.clone()).or_default().push(one);
        }
    }

    /// The calls of one caller, and when each was executed.
    #[must_use]
    pub fn of(&self, caller: &AgentId) -> Vec<Executed> {
        lock(&self.0).get(caller).cloned().unwrap_or_default()
    }

    /// When an agent's last call was executed.
    #[must_use]
    pub fn last_of(&self, caller: &AgentId) -> Option<Instant> {
        self.of(caller).iter().map(|(at, _)| *at).max()
    }

    /// Whether a call was executed.
    #[must_use]
    pub fn has(&self, call: &Digest) -> bool {
        lock(&self.0).values().flatten().any(|(_, id)| id == call)
    }

    /// That no envelope was executed more than once.
    ///
    /// # Errors
    ///
    /// When one was.
    pub fn check_none_twice(&self) -> Result<()> {
        let mut seen = HashSet::new();
        let all = lock(&self.0);
        match all.values().flatten().find(|(_, id)| !seen.insert(*id)) {
            Some((_, id)) => bail!("{id} was executed twice"),
            None => Ok(()),
        }
    }
}

/// What a task wrote that panicked is true all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A task that ends when this is dropped.
#[derive(Debug)]
pub struct Running(JoinHandle<()>);

impl Running {
    /// Starts a task.
    pub fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Has a provider of `fs.read` answer whatever comes, and come back whenever its broker does.
#[must_use]
pub fn keep_serving(line: Line, fs: Actor, executions: Executions) -> Running {
    Running::spawn(async move {
        loop {
            if let Ok(session) = provide(&line, &fs).await {
                // It ends with its connection.
                let _ = serve(session, &fs, |call| executions.note(call)).await;
            }
            sleep(AGAIN).await;
        }
    })
}

/// When a call came to what: nothing is a result, else the code of its refusal.
type Told = (Instant, Option<Code>);

/// What callers were told, newest last.
#[derive(Debug, Default, Clone)]
pub struct Answers(Arc<Mutex<Vec<Told>>>);

impl Answers {
    fn note(&self, code: Option<Code>) {
        lock(&self.0).push((Instant::now(), code));
    }

    /// How many calls of those made since `from` came to this: nothing is a result.
    #[must_use]
    pub fn count(&self, from: Instant, code: Option<Code>) -> usize {
        let all = lock(&self.0);
        all.iter()
            .filter(|(at, told)| *at >= from && *told == code)
            .count()
    }

    /// Waits until so many calls more came to this.
    ///
    /// # Errors
    ///
    /// When they do not.
    pub async fn until(&self, count: usize, code: Option<Code>) -> Result<()> {
        let from = Instant::now();
        let waiting = async {
            while self.count(from, code) < count {
                sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(PATIENCE, waiting).await.is_err() {
            let all = lock(&self.0);
            let last = all.iter().rev().take(5).collect::<Vec<_>>();
            bail!("not {count} times {code:?}, but {last:?}");
        }
        Ok(())
    }
}

/// Has a caller make one call after the other, whatever becomes of them. What was not answered, or not for
/// certain, it sends again as it was, as a client would that hopes for the best.
#[must_use]
pub fn keep_calling(line: Line, caller: Arc<Actor>, to: Audience, answers: Answers) -> Running {
    Running::spawn(async move {
        let mut unsure: Option<Sealed> = None;
        loop {
            let Ok(mut session) = caller.attach(&line, wall_clock()).await else {
                sleep(AGAIN).await;
                continue;
            };
            while let Ok(call) = unsure.take().map_or_else(|| one(&caller, &to), Ok) {
                let told = outcome(&mut session, &call).await;
                let is_unsure = matches!(told, None | Some(Some(Code::OutcomeUnknown)));
                unsure = is_unsure.then_some(call);
                match told {
                    Some(code) => answers.note(code),
                    None => break,
                }
                if told != Some(None) {
                    sleep(AGAIN).await;
                }
            }
        }
    })
}

/// A call of `fs.read`.
///
/// # Errors
///
/// Never: it serialises.
pub fn one(caller: &Actor, to: &Audience) -> Result<Sealed> {
    let body = json!({"tool": "fs.read", "arguments": {}});
    caller.seal(Kind::ToolCall, to, wall_clock(), &body)
}

/// What a call comes to: nothing where that did not come, else the code of a refusal, if it was one.
pub async fn outcome(session: &mut Socket, call: &Sealed) -> Option<Option<Code>> {
    let asking = async {
        session.send(call.bytes.clone()).await.ok()?;
        loop {
            match session.hear().await.ok()? {
                Heard::Delivered { envelope, .. } if envelope.re() == Some(call.id) => {
                    return Some(None);
                }
                Heard::Said(said) if said.re() == Some(call.id) => {
                    return Some(Some(code_of(&said).ok()?));
                }
                Heard::Closed => return None,
                _ => {}
            }
        }
    };
    timeout(ANSWER_MAX, asking).await.ok()?
}
