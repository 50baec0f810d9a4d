//! Derived state: views in memory, rebuilt by replaying the journal. The request path reads these
//! and nothing else, so it stays synchronous.

pub mod calls;
pub mod pending;
pub mod registry;
pub mod replay;
pub mod revocations;
pub mod sessions;
pub mod tokens;

use std::sync::Arc;

use proto_spec::capability::Token;
use proto_spec::{Org, PublicKey, Refusal};

use crate::change::Change;
use crate::config::Config;
use calls::Calls;
use pending::Pending;
use registry::Registry;
use replay::Replay;
use revocations::Revocations;
use sessions::Sessions;
use tokens::Tokens;

/// All that a broker knows. Durable parts are written by [`State::apply`] only.
#[derive(Debug)]
pub struct State {
    /// Whose broker this is.
    pub org: Org,
    /// The keys that this organisation's tokens are rooted in, active first.
    pub roots: Vec<PublicKey>,
    /// Durable: who is registered, with which key and grants.
    pub registry: Registry,
    /// Durable: what is dead.
    pub revocations: Revocations,
    /// Tokens that were opened before.
    pub tokens: Tokens,
    /// Requests that wait for an admin.
    pub pending: Pending,
    /// Who is connected now.
    pub sessions: Sessions,
    /// Calls in flight.
    pub calls: Calls,
    /// Each nonce once.
    pub replay: Replay,
}

/// A change on record that this broker cannot take over: the start stops.
#[derive(Debug, thiserror::Error)]
#[error("a change on record does not fit this broker: {0}")]
pub struct Misfit(pub String);

impl State {
    /// State before any change.
    #[must_use]
    pub fn new(config: &Config, root: PublicKey, replay: Replay) -> Self {
        Self {
            org: config.org.clone(),
            roots: vec![root],
            registry: Registry::default(),
            revocations: Revocations::default(),
            tokens: Tokens::default(),
            pending: Pending::new(config.limits.pending_max),
            sessions: Sessions::new(
                config.limits.sessions_per_agent_max,
                config.limits.outbox_bytes_max,
            ),
            calls: Calls::new(config.limits.calls_max, config.limits.calls_per_session_max),
            replay,
        }
    }

    /// Takes over a durable change: the only writer of durable state.
    ///
    /// # Errors
    ///
    /// [`Misfit`] where the change names keys or tokens that are not this organisation's. When it
    /// comes from the registrar it was made by this broker, and fits.
    pub fn apply(&self, change: &Change) -> Result<(), Misfit> {
        match change {
            Change::Founded { org, root, .. } => {
                if *org != self.org {
                    return Err(Misfit(format!(
                        "the journal is {org}'s, the configuration {}'s",
                        self.org
                    )));
                }
                if !self.roots.contains(root) {
                    return Err(Misfit(
                        "the root key of the configuration is not the journal's".into(),
                    ));
                }
            }
            Change::Denied { .. } | Change::Recovered { .. } => {}
            Change::AgentRevoked { name, key, .. } => {
                self.revocations.revoke_key(*key);
                self.registry.remove(name);
            }
            Change::Revoked { ids, .. } => {
                self.revocations.revoke(ids);
                self.registry.drop_grants(ids);
            }
            Change::Rotated { from, .. } => self.revocations.revoke_key(*from),
            Change::Approved { name, key, .. } | Change::Enrolled { name, key, .. } => {
                // The key before this one is out: whatever it holds or delegated is dead with it.
                if let Some(before) = self.registry.agent(name).filter(|agent| agent.key != *key) {
                    self.revocations.revoke_key(before.key);
                }
            }
            Change::Issued { .. } | Change::EnrolmentIssued { .. } => {}
        }
        self.pending.apply(change);
        self.registry.apply(change, |text| self.open(text))
    }

    fn open(&self, text: &str) -> Result<Arc<Token>, Misfit> {
        let open = || -> Result<Token, Refusal> {
            Token::open(&proto_spec::capability::decode_text(text)?, &self.roots)
        };
        open()
            .map(Arc::new)
            .map_err(|refusal| Misfit(refusal.to_string()))
    }
}
