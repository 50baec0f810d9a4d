//! Questions in: every call that the broker delivers is checked again, then its tool runs.
//!
//! What the broker says about a caller is its credential; what the caller says is its own signed
//! envelope. A tool runs only for an [`Authorized`], which proto-spec makes from both, never from one.
//! A refusal is answered once the caller's signature is verified. What does not get so far is logged
//! and not answered: there is nobody proven to answer to.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use futures_util::FutureExt as _;
use futures_util::future::{AbortHandle, abortable};
use proto_spec::admission::{BrokerSaid, Permit, Vouched};
use proto_spec::limits::TOOLS_MAX;
use proto_spec::message::{self, ToolCall, ToolInput};
use proto_spec::refusal::ErrorBody;
use proto_spec::{AgentId, Authorized, Capability, Digest, Kind, Received, Refusal};
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::answer::Asker;
use crate::error::{Error, Result};
use crate::incoming::{Call, Reporter};
use crate::seen::Seen;
use crate::session::Session;
use crate::tool::{SANDBOX_REQUIRED, TOOL_PANICKED, TOOL_STOPPED, Tool, ToolError};

/// Inputs of one running call that wait for its tool; more are dropped with a warning.
const INPUTS_WAITING: usize = 16;

/// The tools that an agent serves, and the calls that run.
pub(crate) struct Provider {
    tools: RwLock<HashMap<Capability, Served>>,
    /// Whether they are others than those that were offered.
    replaced: Notify,
    seen: Arc<Seen>,
    places: Arc<Semaphore>,
    calls_at_once: u32,
    running: Mutex<HashMap<Digest, Running>>,
}

struct Served {
    tool: Tool,
    offer: message::Tool,
}

/// A call that runs: whose it is, and how it is reached.
struct Running {
    caller: AgentId,
    inputs: mpsc::Sender<Box<RawValue>>,
    task: AbortHandle,
}

impl Provider {
    /// # Errors
    ///
    /// [`Error::Config`] with every tool that cannot be offered.
    pub(crate) fn new(tools: Vec<Tool>, seen: Arc<Seen>, calls_at_once: usize) -> Result<Self> {
        let calls_at_once =
            u32::try_from(calls_at_once.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        Ok(Self {
            tools: RwLock::new(checked(tools)?),
            replaced: Notify::new(),
            seen,
            places: Arc::new(Semaphore::new(calls_at_once as usize)),
            calls_at_once,
            running: Mutex::default(),
        })
    }

    /// Serves `tools` in the place of those before. Calls that run are not disturbed.
    ///
    /// # Errors
    ///
    /// Those of [`Provider::new`]; then nothing has changed.
    pub(crate) fn replace(&self, tools: Vec<Tool>) -> Result<()> {
        let served = checked(tools)?;
        *self.tools.write().unwrap_or_else(PoisonError::into_inner) = served;
        self.replaced.notify_one();
        Ok(())
    }

    /// Done when the tools are others than those that were offered.
    pub(crate) async fn replaced(&self) {
        self.replaced.notified().await;
    }

    fn tools(&self) -> RwLockReadGuard<'_, HashMap<Capability, Served>> {
        self.tools.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is offered to the broker.
    pub(crate) fn offer(&self) -> message::OfferTools {
        let mut tools: Vec<_> = self
            .tools()
            .values()
            .map(|served| served.offer.clone())
            .collect();
        tools.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        message::OfferTools { tools }
    }

    /// A call, or what concerns one, as another agent signed it.
    pub(crate) fn delivered(
        self: &Arc<Self>,
        session: &Arc<Session>,
        vouched: &Vouched,
        received: Received,
    ) {
        let kind = received.envelope().kind();
        let done = match kind {
            Kind::ToolCall => self.call(session, vouched, received),
            Kind::ToolCancel | Kind::ToolInput => self.afterthought(session, vouched, received),
            other => Err(Refusal::UnknownType(other.to_string())),
        };
        if let Err(why) = done {
            tracing::warn!(caller = %vouched.credential().subject, %kind, code = %why.code(), %why, "delivery refused");
        }
    }

    /// The broker gives up a call: its deadline passed, or its caller is gone.
    pub(crate) fn said(&self, said: &BrokerSaid) {
        let envelope = said.envelope();
        match (envelope.kind(), envelope.re()) {
            (Kind::ToolCancel, Some(call)) => self.cancel(&call),
            (Kind::Error, Some(_)) => {
                let code = envelope.read_body::<ErrorBody>().map(|body| body.code);
                tracing::debug!(
                    code = code.unwrap_or_default(),
                    "the broker did not take what we said"
                );
            }
            _ => {}
        }
    }

    /// Stops everything that runs, and says so to those who wait, where there is still a session to
    /// say it over.
    pub(crate) fn stop(&self, session: Option<&Arc<Session>>) {
        let all: Vec<_> = self.running().drain().collect();
        for (call, running) in all {
            running.task.abort();
            if let Some(session) = session {
                let why = "the provider stopped in mid-call: it may or may not have acted";
                let asker = Asker {
                    call,
                    caller: running.caller.into(),
                };
                asker.answer_at_once(session, &ToolError::new(TOOL_STOPPED, why));
            }
        }
    }

    /// Done when nothing runs; nothing new begins from here on.
    pub(crate) async fn drained(&self) {
        if self.places.acquire_many(self.calls_at_once).await.is_ok() {
            self.places.close();
        }
    }

    fn call(
        self: &Arc<Self>,
        session: &Arc<Session>,
        vouched: &Vouched,
        received: Received,
    ) -> Result<(), Refusal> {
        let verified = received.verify(vouched)?;
        let asker = Asker::of(verified.id(), verified.envelope());
        let judge = session.judge();
        let required = |tool: &Capability| Some(self.tools().get(tool)?.offer.required().clone());
        let authorized = verified
            .admit(&judge, &self.seen.by(session.broker_clock()))
            .and_then(|fresh| {
                let open = |text: &str| session.tokens().open(text);
                fresh.authorize_delivered(vouched, open, required, &judge)
            })
            .and_then(|authorized| {
                let place = self.place(authorized.agent())?;
                Ok((authorized, place))
            });
        match authorized {
            Ok((authorized, place)) => self.begin(session, vouched, &authorized, asker, place),
            Err(why) => {
                let error = ToolError::new(why.code().as_str(), why.message());
                asker.answer_at_once(session, &error);
                Err(why)
            }
        }
    }

    /// A place for one call more; nobody has more than are left for others.
    fn place(&self, caller: &AgentId) -> Result<OwnedSemaphorePermit, Refusal> {
        let busy = Refusal::Busy("this agent");
        let running = self.running();
        let own = running.values().filter(|one| one.caller == *caller).count();
        if own > 0 && own >= self.places.available_permits() {
            return Err(busy);
        }
        drop(running);
        let places = Arc::clone(&self.places);
        places.try_acquire_owned().map_err(|_| busy)
    }

    /// Runs the tool in a task of its own. Aborting the task drops the tool's future.
    fn begin(
        self: &Arc<Self>,
        session: &Arc<Session>,
        vouched: &Vouched,
        authorized: &Authorized,
        asker: Asker,
        place: OwnedSemaphorePermit,
    ) -> Result<(), Refusal> {
        let envelope = authorized.envelope();
        let body = ToolCall::of(envelope)?;
        let name: Capability = body
            .tool
            .parse()
            .map_err(|_| Refusal::UnknownType("tool".into()))?;
        let Some(tool) = self.tools().get(&name).map(|served| served.tool.clone()) else {
            return Err(Refusal::NoSuchCall);
        };
        let demands = demanded_sandboxes(vouched, authorized);
        let runs_in = tool.sandbox();
        let missing = demands
            .iter()
            .flatten()
            .find(|demand| runs_in != Some(**demand));
        if let Some(missing) = missing {
            let runs_in = runs_in.unwrap_or("none");
            let why =
                format!("the grant demands the sandbox {missing}; this tool runs in {runs_in}");
            asker.answer_at_once(session, &ToolError::new(SANDBOX_REQUIRED, why));
            return Ok(());
        }
        let arguments = body.arguments.map_or_else(empty_object, ToOwned::to_owned);
        let (inputs, waiting) = mpsc::channel(INPUTS_WAITING);
        let caller = authorized.agent().clone();
        let call = Call {
            id: authorized.id(),
            caller: authorized.caller().clone(),
            tool: name,
            capability: capability(authorized),
            deadline: envelope.deadline(),
            sandbox: demands
                .iter()
                .flatten()
                .next()
                .map(|demand| (*demand).to_owned()),
            mcp: body.mcp.map(ToOwned::to_owned),
            inputs: waiting,
            reporter: Reporter {
                to: body
                    .progress
                    .then(|| (Arc::clone(session), asker.caller.clone())),
                seq: 0,
            },
        };
        let session = Arc::clone(session);
        let ending = Ending {
            provider: Arc::clone(self),
            call: authorized.id(),
            _place: place,
        };
        let (run, task) = abortable(async move {
            let _ending = ending;
            // A tool that panics ends its own call and nothing else; what it left half done is its
            // own, for nothing of ours is lent to it mutably.
            let started = AssertUnwindSafe(async move { tool.start(call, arguments).await });
            let outcome = started.catch_unwind().await;
            let outcome =
                outcome.unwrap_or_else(|_| Err(ToolError::new(TOOL_PANICKED, "the tool panicked")));
            asker.answer(&session, outcome).await;
        });
        let running = Running {
            caller,
            inputs,
            task,
        };
        // It stands among those that run before it can end, which takes it out again: a runtime that
        // shuts down drops it here and now.
        self.running().insert(authorized.id(), running);
        tokio::spawn(run);
        Ok(())
    }

    /// `toolCancel` and `toolInput` are the caller's alone.
    fn afterthought(
        &self,
        session: &Session,
        vouched: &Vouched,
        received: Received,
    ) -> Result<(), Refusal> {
        let seen = self.seen.by(session.broker_clock());
        let fresh = received.verify(vouched)?.admit(&session.judge(), &seen)?;
        let envelope = fresh.envelope();
        let call = envelope.re().ok_or(Refusal::NoSuchCall)?;
        let running = self.running();
        let theirs = running.get(&call).ok_or(Refusal::NoSuchCall)?;
        if envelope.speaker().agent() != Some(&theirs.caller) {
            return Err(Refusal::Denied("the call is another agent's".into()));
        }
        match envelope.kind() {
            Kind::ToolCancel => {
                drop(running);
                self.cancel(&call);
            }
            _ => {
                let body: ToolInput<'_> = envelope.read_body()?;
                theirs
                    .inputs
                    .try_send(body.input.to_owned())
                    .map_err(|_| Refusal::Busy("the call's inputs"))?;
            }
        }
        Ok(())
    }

    fn cancel(&self, call: &Digest) {
        if let Some(running) = self.running().remove(call) {
            running.task.abort();
            tracing::info!(%call, caller = %running.caller, "call cancelled");
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Digest, Running>> {
        // Nothing that can panic runs under this lock.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tools by their names.
///
/// # Errors
///
/// [`Error::Config`] with every tool that cannot be offered.
fn checked(tools: Vec<Tool>) -> Result<HashMap<Capability, Served>> {
    let mut problems = Vec::new();
    let mut served = HashMap::new();
    for tool in tools {
        match tool.offer() {
            Ok(offer) => {
                let name = offer.name.clone();
                if served
                    .insert(name.clone(), Served { tool, offer })
                    .is_some()
                {
                    problems.push(format!("tool \"{name}\" is given twice"));
                }
            }
            Err(problem) => problems.push(problem),
        }
    }
    if served.len() > TOOLS_MAX {
        problems.push(format!(
            "{} tools, and an agent offers at most {TOOLS_MAX}",
            served.len()
        ));
    }
    if !problems.is_empty() {
        return Err(Error::Config(problems));
    }
    Ok(served)
}

/// Takes a call out of those that run, and frees its place, whichever way it ends.
struct Ending {
    provider: Arc<Provider>,
    call: Digest,
    _place: OwnedSemaphorePermit,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.provider.running().remove(&self.call);
    }
}

/// The broker's word and the token's own: a demand in either counts.
fn demanded_sandboxes<'a>(
    vouched: &'a Vouched,
    authorized: &'a Authorized,
) -> [Option<&'a str>; 2] {
    let word = vouched
        .credential()
        .permit
        .as_ref()
        .and_then(|permit| permit.sandbox.as_deref());
    let token = match authorized.permit() {
        Permit::Held {
            token: Some(token), ..
        } => token.sandbox(),
        _ => None,
    };
    [word, token]
}

fn capability(authorized: &Authorized) -> String {
    match authorized.permit() {
        Permit::Held { capability, .. } => capability.to_string(),
        Permit::Own | Permit::Delivered => String::new(),
    }
}

fn empty_object() -> Box<RawValue> {
    to_raw_value(&serde_json::Map::new()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
