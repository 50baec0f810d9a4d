//! Older agents are called: for each that can be, the broker holds a session in its place.
//!
//! Such a session is routed to like any other. What is delivered to it goes on to the agent's endpoint, one
//! connection a call, and ends when the call does. It lives while the endpoint answers probes, for such an
//! agent never speaks again after it registered.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proto_spec::limits::ENVELOPE_BYTES_MAX;
use proto_spec::message::{Older, Tool, ToolCall, full_names};
use proto_spec::{AgentId, Capability, Digest, Envelope, Kind, Name, Refusal, wire};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::endpoint::{Failure, Line, read};
use crate::calls::Place;
use crate::compat_endpoint::Endpoint;
use crate::inside::{Inside, delivered};
use crate::pipeline::Core;
use crate::routing::{full_name, may_offer};
use crate::state::outbox::Queued;
use crate::state::registry::Agent;
use crate::state::room::{Guest, Room};
use crate::state::sessions::Session;

/// How often an endpoint is probed, and how long it may take to answer.
const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBE_MAX: Duration = Duration::from_secs(3);
/// Probes that may fail one after the other.
const MISSED_MAX: u32 = 3;
/// How soon an endpoint that does not answer is probed again.
const RETRY: Duration = Duration::from_secs(1);
/// Calls of one older agent at once; further ones are told `BUSY`.
const CALLS_AT_ONCE: usize = 16;
/// KiB of all older agents' answers that are being read, of which one has no more than it leaves to the others.
const ANSWERS_KIB: usize = 64 << 10;

/// What all bridges share.
struct Shared {
    core: Arc<Core>,
    answers: Arc<Room>,
    /// The JSON-RPC id of the next call.
    next: AtomicU64,
}

/// Keeps a bridge for each older agent that is on record with a listed endpoint.
pub async fn keep(core: Arc<Core>) {
    let shared = Arc::new(Shared {
        core: Arc::clone(&core),
        answers: Room::new(ANSWERS_KIB),
        next: AtomicU64::new(1),
    });
    let mut tasks = JoinSet::new();
    let mut kept: HashMap<Name, (Arc<Agent>, AbortHandle)> = HashMap::new();
    let mut changes = core.state.changed.subscribe();
    loop {
        let agents = core.state.registry.older();
        kept.retain(|name, (before, task)| {
            let now = agents.iter().find(|agent| agent.name == *name);
            let stays = now.is_some_and(|now| is_called_alike(before, now));
            if !stays {
                task.abort();
            }
            stays
        });
        for agent in agents {
            if kept.contains_key(&agent.name) {
                continue;
            }
            if let Some(bridge) = Bridge::of(&shared, &agent) {
                let task = tasks.spawn(Arc::new(bridge).run());
                kept.insert(agent.name.clone(), (agent, task));
            }
        }
        while tasks.try_join_next().is_some() {}
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn is_called_alike(before: &Agent, now: &Agent) -> bool {
    before.key.id() == now.key.id() && before.prefixes == now.prefixes && before.older == now.older
}

/// The way to one older agent.
struct Bridge {
    shared: Arc<Shared>,
    agent: Arc<Agent>,
    endpoint: Endpoint,
    tools: Vec<Tool>,
    /// By which bare name the agent is called for each.
    bare: HashMap<Capability, String>,
}

impl Bridge {
    /// The way to an agent whose endpoint is listed, and of whose tools some lie within its prefixes.
    fn of(shared: &Arc<Shared>, agent: &Arc<Agent>) -> Option<Self> {
        let older = agent.older.as_deref()?;
        let endpoints = &shared.core.config.compat.endpoints;
        let endpoint = endpoints.find(older.endpoint.as_deref()?)?.clone();
        let offered = offered(agent, older);
        let bare = offered
            .iter()
            .map(|(tool, bare)| (tool.name.clone(), bare.clone()));
        let bare: HashMap<_, _> = bare.collect();
        let tools: Vec<Tool> = offered.into_iter().map(|(tool, _)| tool).collect();
        (!tools.is_empty()).then(|| Self {
            shared: Arc::clone(shared),
            agent: Arc::clone(agent),
            endpoint,
            tools,
            bare,
        })
    }

    fn line(&self) -> Line<'_> {
        Line {
            endpoint: &self.endpoint,
            endpoints: &self.shared.core.config.compat.endpoints,
        }
    }

    fn attach(&self) -> Result<(Inside, mpsc::Receiver<Queued>), Refusal> {
        let core = &self.shared.core;
        let agent = AgentId::new(self.agent.name.clone(), core.state.org.clone());
        Inside::attach(core, agent, self.agent.key.key())
    }

    async fn run(self: Arc<Self>) {
        loop {
            if self.line().probe(PROBE_MAX).await
                && let Ok((session, queue)) = self.attach()
            {
                self.offer(&session, self.tools.clone());
                self.serve(&session, queue).await;
            }
            sleep(RETRY).await;
        }
    }

    /// Serves what is delivered until the session is closed. While the endpoint is silent nothing is offered;
    /// calls that run go on, for they have a connection each that tells.
    async fn serve(self: &Arc<Self>, session: &Arc<Session>, mut queue: mpsc::Receiver<Queued>) {
        let mut calls = JoinSet::new();
        let mut running: HashMap<Digest, AbortHandle> = HashMap::new();
        let mut tick = interval(PROBE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut probes = JoinSet::new();
        let mut missed = 0_u32;
        loop {
            tokio::select! {
                () = session.closed() => return,
                queued = queue.recv() => {
                    let Some(queued) = queued else { return };
                    for message in session.taken(queued) {
                        match self.heard(message) {
                            Some(Heard::Call(asked)) if calls.len() < CALLS_AT_ONCE => {
                                let (bridge, session) = (Arc::clone(self), Arc::clone(session));
                                let id = asked.id;
                                running.insert(id, calls.spawn(async move {
                                    bridge.call(&session, asked).await;
                                    id
                                }));
                            }
                            Some(Heard::Call(Asked { id, .. })) => {
                                let full = Refusal::Busy("the older agent's share of calls");
                                let _ = self.place().failed(session, &id, &full);
                            }
                            // The connection closes, which is all that such an agent can be told.
                            Some(Heard::Cancel(id)) => {
                                if let Some(call) = running.remove(&id) {
                                    call.abort();
                                }
                            }
                            None => {}
                        }
                    }
                }
                Some(ended) = calls.join_next() => {
                    if let Ok(id) = ended {
                        running.remove(&id);
                    }
                }
                _ = tick.tick(), if probes.is_empty() => {
                    let bridge = Arc::clone(self);
                    probes.spawn(async move { bridge.line().probe(PROBE_MAX).await });
                }
                Some(answered) = probes.join_next() => {
                    let before = missed;
                    missed = if matches!(answered, Ok(true)) { 0 } else { missed.saturating_add(1) };
                    if missed == MISSED_MAX {
                        self.offer(session, Vec::new());
                    } else if missed == 0 && before >= MISSED_MAX {
                        self.offer(session, self.tools.clone());
                    }
                }
            }
        }
    }

    /// Offers these tools from here on, or none.
    fn offer(&self, session: &Session, tools: Vec<Tool>) {
        let (agent, endpoint) = (&self.agent.name, self.endpoint.as_str());
        tracing::info!(%agent, endpoint, tools = tools.len(), "what an older agent offers");
        self.shared.core.state.sessions.set_offers(session, tools);
    }

    fn place(&self) -> Place<'_> {
        let core = &*self.shared.core;
        let now = core.clock.now();
        Place { core, now }
    }

    /// What was delivered: a call in a frame, or that one is given up.
    fn heard(&self, message: Bytes) -> Option<Heard> {
        let envelope = self.parse(delivered(message)?)?;
        match envelope.kind() {
            Kind::ToolCall => self.asked(&envelope).map(Heard::Call),
            Kind::ToolCancel => envelope.re().map(Heard::Cancel),
            _ => None,
        }
    }

    /// It was let through by this broker: it parses, as the one or as the other.
    fn parse(&self, bytes: Bytes) -> Option<Envelope> {
        let state = &self.shared.core.state;
        if !Envelope::may_be_older(&bytes) {
            return Envelope::parse(bytes, ENVELOPE_BYTES_MAX).ok();
        }
        let full_name = |agent: &AgentId, bare: &str| full_name(agent, bare, state);
        Envelope::parse_older(bytes, ENVELOPE_BYTES_MAX, &state.org, full_name).ok()
    }

    fn asked(&self, envelope: &Envelope) -> Option<Asked> {
        let body = ToolCall::of(envelope).ok()?;
        let tool: Capability = body.tool.parse().ok()?;
        let limits = &self.shared.core.config.limits;
        Some(Asked {
            id: wire::identity(&envelope.signed_bytes()),
            tool: self.bare.get(&tool)?.clone(),
            arguments: match body.arguments {
                Some(raw) => raw.to_owned(),
                None => RawValue::from_string("{}".into()).ok()?,
            },
            patience: envelope.deadline().unwrap_or_else(|| limits.deadline()),
        })
    }

    /// Asks the agent, and tells what came of it. A call whose deadline passes first is ended elsewhere.
    async fn call(&self, session: &Session, asked: Asked) {
        let shared = &self.shared;
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let bytes_max = shared.core.config.limits.envelope_bytes_max;
        let (line, guest) = (self.line(), Guest::Agent(session.agent().clone()));
        let asking = line.call(
            id,
            &asked.tool,
            &asked.arguments,
            bytes_max,
            (&shared.answers, &guest),
        );
        let Ok(answered) = timeout(asked.patience, asking).await else {
            return;
        };
        let told = match &answered {
            Ok(answer) => match read(answer, id) {
                Ok(said) => self.place().bridged(session, &asked.id, &said),
                Err(why) => self.fail(session, &asked.id, &why),
            },
            Err(why) => self.fail(session, &asked.id, why),
        };
        if told.is_err() {
            tracing::debug!(agent = %self.agent.name, "answered when nobody waited any more");
        }
    }

    fn fail(&self, session: &Session, id: &Digest, why: &Failure) -> Result<(), Refusal> {
        let agent = &self.agent.name;
        let endpoint = self.endpoint.as_str();
        tracing::info!(%agent, endpoint, ?why, "a call of an older agent has no answer");
        let refusal = match why {
            Failure::NotAsked(_) => Refusal::Unavailable(format!("{agent}, an older agent,")),
            Failure::Lost(_) => Refusal::OutcomeUnknown,
            Failure::TooLong(max) => Refusal::TooLarge(max + 1, *max),
        };
        self.place().failed(session, id, &refusal)
    }
}

/// What is delivered to a bridge.
enum Heard {
    Call(Asked),
    Cancel(Digest),
}

/// A call, as the agent is asked.
struct Asked {
    id: Digest,
    tool: String,
    arguments: Box<RawValue>,
    patience: Duration,
}

/// The tools of an older agent that lie within its prefixes, each with its bare name.
fn offered(agent: &Agent, older: &Older) -> Vec<(Tool, String)> {
    let mut found: Vec<(Tool, String)> = Vec::new();
    for tool in &older.tools {
        let is_free = |name: &Capability| found.iter().all(|(known, _)| known.name != *name);
        let mut names = full_names(&agent.name, &tool.name);
        let name = names.find(|name| may_offer(agent, name) && is_free(name));
        let schema = tool
            .schema
            .clone()
            .and_then(|text| RawValue::from_string(text).ok());
        if let Some(name) = name {
            let offer = Tool {
                name,
                capability: None,
                description: tool.description.clone(),
                input_schema: schema,
                output_schema: None,
                annotations: None,
                mcp: None,
            };
            found.push((offer, tool.name.clone()));
        }
    }
    found
}
