//! Calls in the name of an agent whose key the broker keeps: signed here, and handled like every other.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use agent_sdk::Progress;
use agent_sdk::mcp::gateway::{
    Catalogue, Failure, Gathered, Ongoing, Outgoing, Scope, Step, Upstream,
};
use agent_sdk::mcp::rpc::RpcError;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lru::LruCache;
use proto_spec::capability::Token;
use proto_spec::message::{DiscoverTools, ToolCall, ToolCancel, ToolProgress, ToolResult};
use proto_spec::refusal::ErrorBody;
use proto_spec::{
    AgentId, Audience, Code, Digest, Draft, Envelope, Kind, Refusal, Sealed, SigningKey, Speaker,
    VIA_MCP,
};
use serde::Serialize;
use tokio::sync::{mpsc, watch};

use super::steps::{Steps, Waiting, steps};
use super::{Seen, check};
use crate::inside::{Inside, delivered};
use crate::locks::lock;
use crate::pipeline::{Core, Door, Step as Handled};
use crate::state::calls::Answer;
use crate::state::outbox::Queued;
use crate::state::registry::grant_id;
use crate::state::sessions::Session;

/// Catalogues that one agent's session remembers, and for how long.
const FOUND: NonZeroUsize = NonZeroUsize::new(16).unwrap();
const FOUND_MAX: Duration = Duration::from_secs(1);

/// The session of a kept agent: as long as somebody speaks through it.
#[derive(Debug)]
pub(super) struct Kept {
    core: Arc<Core>,
    key: SigningKey,
    speaker: Speaker,
    session: Inside,
    calls: Mutex<HashMap<Digest, Steps>>,
    changes: watch::Receiver<()>,
    found: Mutex<LruCache<(Digest, Scope), Found>>,
}

/// What was found, while it is as it was.
#[derive(Debug)]
struct Found {
    seen: Seen,
    at: Instant,
    catalogue: Arc<Catalogue>,
}

impl Found {
    /// Grants end and peers' adverts change without a word of this broker's own.
    fn is_current(&self) -> bool {
        self.seen.is_current() && self.at.elapsed() < FOUND_MAX
    }
}

impl Kept {
    /// Attaches the agent within this process.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] where the agent has as many sessions as it may.
    pub(super) fn attach(
        core: &Arc<Core>,
        agent: AgentId,
        key: SigningKey,
        changes: watch::Receiver<()>,
    ) -> Result<Arc<Self>, Refusal> {
        let (session, queue) = Inside::attach(core, agent.clone(), key.public())?;
        let listening = Arc::clone(&session);
        let kept = Arc::new(Self {
            core: Arc::clone(core),
            key,
            speaker: Speaker::Agent(agent),
            session,
            calls: Mutex::default(),
            found: Mutex::new(LruCache::new(FOUND)),
            changes,
        });
        tokio::spawn(listen(Arc::downgrade(&kept), listening, queue));
        Ok(kept)
    }

    /// Whether it still takes part: its key is good.
    pub(super) fn is_open(&self) -> bool {
        !self.session.is_closed()
    }

    fn say<B: Serialize>(
        &self,
        kind: Kind,
        to: &Audience,
        re: Option<Digest>,
        deadline: Option<Duration>,
        body: &B,
    ) -> Result<Sealed, Refusal> {
        let mut random = [0_u8; 16];
        getrandom::fill(&mut random).map_err(|_| Refusal::Internal)?;
        let draft = Draft {
            kind,
            agent: &self.speaker,
            to: Some(to),
            ts: self.core.clock.now(),
            nonce: &URL_SAFE_NO_PAD.encode(random),
            re,
            token: None,
            deadline: deadline.map(|deadline| (deadline.as_millis() as u64).max(1)),
            via: Some(VIA_MCP),
            body,
        };
        draft.seal(&self.key).map_err(|_| Refusal::Internal)
    }

    fn door(self: &Arc<Self>, bearer: &Arc<Token>) -> Door {
        Door::Bearer(Arc::clone(&self.session), Arc::clone(bearer))
    }

    /// Gives what came over the session to the call that it is about.
    fn take(&self, message: Bytes) {
        let Some(envelope) = delivered(message) else {
            return;
        };
        let bytes_max = envelope.len();
        let Ok(envelope) = Envelope::parse(envelope, bytes_max) else {
            return;
        };
        let Some(id) = envelope.re() else { return };
        let Some(step) = step_of(&envelope) else {
            return;
        };
        let is_last = matches!(step, Step::Answer(_));
        let mut calls = lock(&self.calls);
        if let Some(steps) = calls.get(&id) {
            steps.put(step, bytes_max);
        }
        if is_last {
            calls.remove(&id);
        }
    }
}

/// Takes what comes for a kept agent until its session ends.
async fn listen(kept: Weak<Kept>, session: Arc<Session>, mut queue: mpsc::Receiver<Queued>) {
    loop {
        let turn = tokio::select! {
            turn = queue.recv() => turn,
            () = session.closed() => None,
        };
        let (Some(turn), Some(kept)) = (turn, kept.upgrade()) else {
            break;
        };
        for message in session.taken(turn) {
            kept.take(message);
        }
    }
    session.close();
    if let Some(kept) = kept.upgrade() {
        // Those who wait learn it from their channel's end.
        lock(&kept.calls).clear();
    }
}

/// What an envelope means for the call that it is about.
fn step_of(envelope: &Envelope) -> Option<Step> {
    let broken = || Step::Answer(Err(failure(&Refusal::Internal)));
    Some(match envelope.kind() {
        Kind::ToolProgress => {
            let body: ToolProgress<'_> = envelope.read_body().ok()?;
            Step::Progress(Progress {
                done: body.progress,
                total: body.total,
                message: body.message.map(Into::into),
                data: body.data.map(ToOwned::to_owned),
            })
        }
        Kind::ToolResult => match envelope.read_body::<ToolResult<'_>>() {
            Ok(ToolResult {
                result: Some(result),
                error: None,
            }) => Step::Answer(Ok(result.to_owned())),
            Ok(ToolResult {
                result: None,
                error: Some(error),
            }) => Step::Answer(Err(Failure {
                code: error.code.into(),
                message: error.message.into(),
                data: error.data.map(ToOwned::to_owned),
                is_tools: true,
            })),
            _ => broken(),
        },
        Kind::Error => Step::Answer(Err(refused(envelope))),
        _ => return None,
    })
}

fn failure(refusal: &Refusal) -> Failure {
    Failure {
        code: refusal.code().as_str().into(),
        message: refusal.message(),
        data: None,
        is_tools: false,
    }
}

/// The broker's signed refusal, as the caller's side reads it.
fn refused(envelope: &Envelope) -> Failure {
    match envelope.read_body::<ErrorBody>() {
        Ok(body) => Failure {
            code: body.code,
            message: body.message,
            data: None,
            is_tools: false,
        },
        Err(why) => failure(&why),
    }
}

/// The same, of one that is the answer to what was just said.
fn refused_at_once(answer: Answer) -> Failure {
    let bytes_max = answer.envelope.len();
    let answer = Envelope::parse(answer.envelope, bytes_max);
    answer.map_or_else(|why| failure(&why), |envelope| refused(&envelope))
}

/// One bearer token's calls through its agent's session.
#[derive(Debug, Clone)]
pub(super) struct Bearer {
    kept: Arc<Kept>,
    agent: AgentId,
    token: Arc<Token>,
}

impl Bearer {
    pub(super) fn new(kept: Arc<Kept>, agent: AgentId, token: Arc<Token>) -> Self {
        Self { kept, agent, token }
    }

    async fn make(&self, call: Outgoing) -> Result<Box<dyn Ongoing>, RpcError> {
        let body = ToolCall {
            tool: call.tool.as_str().into(),
            arguments: call.arguments.as_deref(),
            progress: call.progress,
            unsigned: None,
            mcp: call.mcp.as_deref(),
        };
        let to = Audience::from(call.to.clone());
        let said = self
            .kept
            .say(Kind::ToolCall, &to, None, call.deadline, &body)
            .map_err(|why| told(&why))?;
        let (steps, waiting) = steps();
        lock(&self.kept.calls).insert(said.id, steps.clone());
        let mut made = Made {
            bearer: self.clone(),
            to,
            id: said.id,
            waiting,
            is_over: false,
        };
        let door = self.kept.door(&self.token);
        match self.kept.core.handle(said.bytes, &door).await {
            Ok(Handled::Nothing) => {}
            Ok(_) => return Err(told(&Refusal::Internal)),
            Err(answer) => {
                steps.put(Step::Answer(Err(refused_at_once(answer))), 0);
                made.is_over = true;
            }
        }
        Ok(Box::new(made))
    }

    async fn found(&self, scope: &Scope) -> Result<Arc<Catalogue>, RpcError> {
        let core = &self.kept.core;
        let config = core.config.mcp.as_ref();
        let config = config.ok_or_else(|| told(&Refusal::Internal))?;
        check(core, config, &self.token).map_err(|why| told(&why))?;
        let place = (grant_id(&self.token), scope.clone());
        if let Some(found) = lock(&self.kept.found)
            .get(&place)
            .filter(|found| found.is_current())
        {
            return Ok(Arc::clone(&found.catalogue));
        }
        let (seen, at) = (Seen::of(&core.state), Instant::now());
        let gathered = self.gathered(scope).await?;
        let catalogue = Arc::new(Catalogue::of(gathered));
        let found = Found {
            seen,
            at,
            catalogue: Arc::clone(&catalogue),
        };
        lock(&self.kept.found).put(place, found);
        Ok(catalogue)
    }

    async fn gathered(&self, scope: &Scope) -> Result<Gathered, RpcError> {
        let broker = Audience::Broker(self.agent.org().clone());
        let mut wanted = DiscoverTools {
            agent: scope.only().cloned(),
            ..DiscoverTools::default()
        };
        let mut all = Gathered::new(scope, self.agent.org());
        loop {
            let said = self
                .kept
                .say(Kind::DiscoverTools, &broker, None, None, &wanted)
                .map_err(|why| told(&why))?;
            let door = self.kept.door(&self.token);
            let page = match self.kept.core.handle(said.bytes, &door).await {
                Ok(Handled::Found(page)) => page,
                Ok(_) => return Err(told(&Refusal::Internal)),
                Err(answer) => return Err(RpcError::from(&refused_at_once(answer))),
            };
            all.take(page.tools);
            match page.next {
                Some(next) if wanted.after.as_ref() != Some(&next) => wanted.after = Some(next),
                _ => return Ok(all),
            }
        }
    }
}

fn told(why: &Refusal) -> RpcError {
    RpcError::from(&failure(why))
}

impl Upstream for Bearer {
    fn agent(&self) -> &AgentId {
        &self.agent
    }

    fn credential(&self) -> Option<Digest> {
        Some(grant_id(&self.token))
    }

    fn catalogue<'a>(
        &'a self,
        scope: &'a Scope,
    ) -> BoxFuture<'a, Result<Arc<Catalogue>, RpcError>> {
        self.found(scope).boxed()
    }

    fn call(&self, call: Outgoing) -> BoxFuture<'_, Result<Box<dyn Ongoing>, RpcError>> {
        self.make(call).boxed()
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.kept.changes.clone()
    }
}

/// A call under way. Dropping it cancels it.
struct Made {
    bearer: Bearer,
    to: Audience,
    id: Digest,
    waiting: Waiting,
    is_over: bool,
}

impl Ongoing for Made {
    fn next(&mut self) -> BoxFuture<'_, Step> {
        async move {
            let lost = || {
                Step::Answer(Err(Failure {
                    code: Code::OutcomeUnknown.as_str().into(),
                    message: "the agent's key is no longer good".into(),
                    data: None,
                    is_tools: false,
                }))
            };
            let step = self.waiting.next().await.unwrap_or_else(lost);
            self.is_over |= matches!(step, Step::Answer(_));
            step
        }
        .boxed()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let kept = &self.bearer.kept;
        lock(&kept.calls).remove(&self.id);
        if self.is_over {
            return;
        }
        let body = ToolCancel {
            reason: Some("the caller no longer waits".into()),
        };
        let said = kept.say(Kind::ToolCancel, &self.to, Some(self.id), None, &body);
        let (Ok(said), Ok(runtime)) = (said, tokio::runtime::Handle::try_current()) else {
            return;
        };
        let (core, door) = (Arc::clone(&kept.core), kept.door(&self.bearer.token));
        runtime.spawn(async move { drop(core.handle(said.bytes, &door).await) });
    }
}
