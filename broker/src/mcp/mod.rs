//! MCP clients' way in, for those that have no key of their own: a bearer token stands for an agent whose key the
//! broker keeps. What they ask is signed here and goes through the pipeline like everything else.
//!
//! A client with a key of its own runs `fem-cli mcp serve` instead, and is an agent like any other.

mod caller;
mod door;
mod steps;

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_sdk::mcp::gateway::{Allowed, Bounds, Gateway};
use dashmap::DashMap;
use proto_spec::capability::{Token, TokenKind};
use proto_spec::{AgentId, Name, Refusal, Speaker, Timestamp};
use tokio::sync::watch;

use caller::{Bearer, Kept};
pub use door::{answer, metadata};

use crate::clock::Clock;
use crate::config::Mcp as Config;
use crate::kept::KeptKeys;
use crate::locks::lock;
use crate::pipeline::Core;
use crate::state::State;

/// How often tools are looked at again for those who listen: grants end without a word of anybody's.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Those who listen hear of changes no oftener: each time they all make their lists anew.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// What serves MCP clients.
#[derive(Debug)]
pub struct Mcp {
    keys: Arc<KeptKeys>,
    gateway: Gateway,
    kept: DashMap<Name, Arc<Kept>>,
    changes: Mutex<Option<watch::Receiver<()>>>,
}

impl Mcp {
    /// With its sessions sealed under a secret that is the same after a restart.
    #[must_use]
    pub fn new(
        keys: Arc<KeptKeys>,
        config: &Config,
        clock: &Arc<Clock>,
        message_bytes: usize,
    ) -> Self {
        let allowed = Allowed {
            hosts: config.hosts(),
            origins: config.origins.clone(),
        };
        let bounds = Bounds {
            message_bytes,
            ..Bounds::default()
        };
        let clock = Arc::new(BrokersClock(Arc::clone(clock)));
        let gateway = Gateway::new(&keys.secret("sessions"), clock, allowed, bounds);
        Self {
            keys,
            gateway,
            kept: DashMap::new(),
            changes: Mutex::default(),
        }
    }

    /// Whom a bearer token lets speak, and the way to speak.
    ///
    /// # Errors
    ///
    /// Every `Token…` refusal; [`Refusal::TokenInvalid`] too where it is for another resource, or its agent is
    /// none whose key is kept here; [`Refusal::Busy`].
    fn bearer(&self, core: &Arc<Core>, config: &Config, text: &str) -> Result<Bearer, Refusal> {
        let token = core.state.tokens.open(text, &core.state.roots)?;
        let agent = check(core, config, &token)?;
        let kept = self.kept_session(core, &agent)?;
        Ok(Bearer::new(kept, agent, token))
    }

    /// Ends the streams of all clients, so that their connections close.
    pub(crate) fn end_streams(&self) {
        self.gateway.end_streams();
    }

    /// Ends the sessions of all kept agents: each holds on to the broker.
    pub(crate) fn end(&self) {
        self.kept.clear();
    }

    fn kept_session(&self, core: &Arc<Core>, agent: &AgentId) -> Result<Arc<Kept>, Refusal> {
        let entry = self.kept.get(agent.name()).map(|kept| Arc::clone(&kept));
        if let Some(kept) = entry.filter(|kept| kept.is_open()) {
            return Ok(kept);
        }
        let known = core.state.registry.agent(agent.name());
        let key = known.and_then(|known| self.keys.find(agent.name(), &known.key.key()));
        let key = key.ok_or_else(|| Refusal::TokenInvalid("no key of its agent is kept".into()))?;
        let changes = self.changes(core);
        let mut entry = self.kept.entry(agent.name().clone());
        if let dashmap::Entry::Occupied(there) = &mut entry
            && there.get().is_open()
        {
            return Ok(Arc::clone(there.get()));
        }
        let kept = Kept::attach(core, agent.clone(), key, changes)?;
        entry.insert(Arc::clone(&kept));
        Ok(kept)
    }

    /// Is set anew when tools may have changed; looked after from the first request on.
    fn changes(&self, core: &Arc<Core>) -> watch::Receiver<()> {
        let mut changes = lock(&self.changes);
        changes.get_or_insert_with(|| follow(core)).clone()
    }
}

/// What a list of tools depends on, save time and what peers advertise.
#[derive(Debug)]
struct Seen([watch::Receiver<()>; 3]);

impl Seen {
    fn of(state: &State) -> Self {
        Self([
            state.changed.subscribe(),
            state.sessions.offers(),
            state.links.changes(),
        ])
    }

    /// Whether nothing has changed since.
    fn is_current(&self) -> bool {
        let [changed, offers, links] = &self.0;
        let has = |receiver: &watch::Receiver<()>| receiver.has_changed().unwrap_or(true);
        !has(changed) && !has(offers) && !has(links)
    }

    async fn changed(&mut self) {
        let [changed, offers, links] = &mut self.0;
        tokio::select! {
            _ = changed.changed() => {}
            _ = offers.changed() => {}
            _ = links.changed() => {}
        }
    }
}

/// The broker's time. It is waited for as everywhere in the broker.
struct BrokersClock(Arc<Clock>);

impl agent_sdk::Clock for BrokersClock {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(duration))
    }
}

fn follow(core: &Arc<Core>) -> watch::Receiver<()> {
    let (sender, receiver) = watch::channel(());
    let mut seen = Seen::of(&core.state);
    let core = Arc::downgrade(core);
    tokio::spawn(async move {
        while core.strong_count() > 0 && !sender.is_closed() {
            tokio::select! {
                () = seen.changed() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
            sender.send_replace(());
            tokio::time::sleep(TOLD_EVERY).await;
        }
    });
    receiver
}

/// Whose bearer token it is, if it is one for this resource and holds now. What it permits is decided with each
/// call.
fn check(core: &Core, config: &Config, token: &Token) -> Result<AgentId, Refusal> {
    let now = core.clock.now();
    let invalid = |why: &str| Refusal::TokenInvalid(why.into());
    if token.kind() != TokenKind::Mcp {
        return Err(invalid("no bearer token for `/mcp`"));
    }
    if token.audience() != Some(config.resource.as_str()) {
        return Err(invalid("it is for another resource"));
    }
    if token.expires() <= now || token.not_before().is_some_and(|from| from > now) {
        return Err(Refusal::TokenExpired);
    }
    core.state.alive(token)?;
    let agent = token.agent().and_then(Speaker::agent);
    let ours = agent.filter(|agent| *agent.org() == core.state.org);
    ours.cloned()
        .ok_or_else(|| invalid("it names no agent of this organisation"))
}
