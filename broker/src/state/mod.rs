//! Derived state: views in memory, rebuilt from the journal, or from a [`snapshot`] and the records
//! after it. The request path reads these and nothing else, so it stays synchronous.

pub mod broker_keys;
pub mod budgets;
pub mod calls;
pub mod ceilings;
pub mod charter;
pub mod key;
pub mod keys;
pub mod links;
pub mod outbox;
pub mod peers;
pub mod pending;
pub mod proposals;
pub mod recoveries;
pub mod registry;
pub mod replay;
pub mod revocations;
pub mod room;
pub mod roots;
pub mod sessions;
pub mod snapshot;
pub mod tokens;
pub mod trust;

use std::sync::Arc;

use proto_spec::capability::Token;
use proto_spec::{Name, Org, PublicKey, Refusal};
use tokio::sync::watch;

use crate::change::Change;
use crate::config::Limits;
use broker_keys::BrokerKeys;
use budgets::Budgets;
use calls::Calls;
use charter::Charter;
use key::KeyId;
use links::Links;
use peers::Peers;
use pending::Pending;
use proposals::Proposals;
use recoveries::Recoveries;
use registry::{Agent, Record, Registry};
use replay::Replay;
use revocations::Revocations;
use roots::Roots;
use sessions::Sessions;
use snapshot::Image;
use tokens::Tokens;
use trust::TrustBook;

/// All that a broker knows. Durable parts are written by [`State::apply`] only, save at a start.
#[derive(Debug)]
pub struct State {
    /// Whose broker this is.
    pub org: Org,
    /// Durable: what it began with.
    pub charter: Charter,
    /// Durable: the keys that this broker signs with, or did.
    pub broker_keys: BrokerKeys,
    /// Durable: the keys that this organisation's tokens are rooted in.
    pub roots: Roots,
    /// Durable: who is registered, with which key and grants.
    pub registry: Registry,
    /// Durable: whom the recovery key named.
    pub recoveries: Recoveries,
    /// Durable: what is dead.
    pub revocations: Revocations,
    /// Durable: which organisations are peers.
    pub peers: Peers,
    /// Durable: what is said and decided about trust.
    pub trust: TrustBook,
    /// Durable: how many calls are left.
    pub budgets: Budgets,
    /// Durable: acts that wait for a second admin.
    pub proposals: Proposals,
    /// Tokens that were opened before.
    pub tokens: Tokens,
    /// Requests that wait for an admin; durable is which were turned down.
    pub pending: Pending,
    /// Which peers are connected now.
    pub links: Links,
    /// Who is connected now.
    pub sessions: Sessions,
    /// Calls in flight.
    pub calls: Calls,
    /// Each nonce once.
    pub replay: Replay,
    /// Set anew with every durable change that is taken over.
    pub changed: watch::Sender<()>,
}

/// Whether changes are being read back, or made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taking {
    /// From the journal, at the start.
    Back,
    /// As they are made.
    On,
}

/// A change on record that this broker cannot take over: the start stops.
#[derive(Debug, thiserror::Error)]
#[error("a change on record does not fit this broker: {0}")]
pub struct Misfit(pub String);

impl State {
    /// State before any change.
    #[must_use]
    pub fn new(org: Org, limits: &Limits, replay: Replay) -> Self {
        Self {
            charter: Charter::default(),
            broker_keys: BrokerKeys::default(),
            roots: Roots::default(),
            registry: Registry::default(),
            recoveries: Recoveries::default(),
            revocations: Revocations::default(),
            peers: Peers::default(),
            trust: TrustBook::new(org.clone()),
            org,
            budgets: Budgets::default(),
            proposals: Proposals::default(),
            tokens: Tokens::default(),
            pending: Pending::new(limits),
            links: Links::default(),
            sessions: Sessions::new(limits.sessions_per_agent_max, limits.outbox_bytes_max),
            calls: Calls::new(limits.calls_max, limits.calls_per_session_max),
            replay,
            changed: watch::Sender::new(()),
        }
    }

    /// Whether something that was issued is worth nothing any more.
    #[must_use]
    pub fn is_dead(&self, record: &Record) -> bool {
        let is_off_record = record.text.is_some()
            && record.subject.agent().is_some_and(|name| {
                let agent = self.registry.agent(name);
                !agent.is_some_and(|agent| agent.has_grant(&record.id))
            });
        let has_dead_key = |key: &KeyId| self.revocations.is_key_dead(key);
        let has_no_root = |root: &KeyId| !self.roots.keys().iter().any(|key| root == key);
        is_off_record
            || self.revocations.is_revoked(&record.id)
            || record.holder.as_ref().is_some_and(has_dead_key)
            || record.root.as_ref().is_some_and(has_no_root)
    }

    /// Whether a token is good for anything: its root is accepted, and nothing in its chain is dead.
    ///
    /// # Errors
    ///
    /// [`Refusal::TokenRevoked`] names what is dead.
    pub fn alive(&self, token: &Token) -> Result<(), Refusal> {
        if !self.roots.keys().contains(token.root()) {
            return Err(Refusal::TokenRevoked("its root key".into()));
        }
        self.revocations.alive(token)
    }

    /// The grants on record of an agent.
    #[must_use]
    pub fn granted(&self, agent: &Agent) -> Arc<[Arc<Token>]> {
        agent.grants.tokens(&self.roots.keys())
    }

    /// All that is durable, as a snapshot holds it. What is large is shared, not copied; no call waits.
    #[must_use]
    pub fn image(&self) -> Image {
        let Self {
            charter,
            broker_keys,
            roots,
            registry,
            recoveries,
            revocations,
            peers,
            trust,
            budgets,
            proposals,
            pending,
            // Not durable, or kept elsewhere.
            org: _,
            tokens: _,
            links: _,
            sessions: _,
            calls: _,
            replay: _,
            changed: _,
        } = self;
        Image {
            charter: charter.written(),
            broker_keys: broker_keys.image(),
            recoveries: recoveries.image(),
            roots: roots.image(),
            registry: registry.image(),
            revocations: revocations.image(),
            peers: peers.image(),
            trust: trust.image(),
            budgets: budgets.image(),
            proposals: proposals.image(),
            denied: pending.image(),
        }
    }

    /// Whether this agent's key on record is this one.
    #[must_use]
    pub fn has_key(&self, name: &Name, key: &PublicKey) -> bool {
        let agent = self.registry.agent(name);
        agent.is_some_and(|agent| agent.key == *key)
    }

    /// Takes over all that was durable, before any change: the other writer of durable state.
    pub fn load(&self, image: Image) {
        let Image {
            charter,
            broker_keys,
            roots,
            registry,
            recoveries,
            revocations,
            peers,
            trust,
            budgets,
            proposals,
            denied,
        } = image;
        self.charter.load(charter);
        self.broker_keys.load(broker_keys);
        self.recoveries.load(recoveries);
        self.roots.load(roots);
        self.registry.load(registry);
        self.revocations.load(revocations);
        self.trust
            .load(trust, peers.iter().map(|peer| (peer.org.clone(), peer.key)));
        self.peers.load(peers);
        self.budgets.load(budgets);
        self.proposals.load(proposals);
        self.pending.load(denied);
    }

    /// Takes over a durable change: the only writer of durable state but for [`State::load`].
    ///
    /// # Errors
    ///
    /// [`Misfit`] where the change names another organisation, or somebody said it who may not. When it
    /// comes from the registrar it was made by this broker, and fits.
    pub fn apply(&self, change: &Change, taking: Taking) -> Result<(), Misfit> {
        if let Change::Founded { org, .. } = change
            && *org != self.org
        {
            return Err(Misfit(format!(
                "the journal is {org}'s, the configuration {}'s",
                self.org
            )));
        }
        self.recoveries.apply(&self.org, change)?;
        self.broker_keys.apply(&self.org, change)?;
        let at = change.at();
        match change {
            Change::AgentRevoked { name, key, .. } => {
                self.revocations.revoke_key(key.into(), at);
                self.registry.remove(name);
            }
            Change::Quarantined { agents, ids, .. } => {
                for (name, key) in agents {
                    self.revocations.revoke_key(key.into(), at);
                    self.registry.remove(name);
                }
                self.revocations.revoke(ids);
                self.registry.drop_grants(ids);
                self.peers.drop_grants(ids);
            }
            Change::PeerRemoved { ids, .. } | Change::PeerReissued { ids, .. } => {
                self.revocations.revoke(ids);
                self.peers.drop_grants(ids);
            }
            Change::Revoked { ids, .. } => {
                self.revocations.revoke(ids);
                self.registry.drop_grants(ids);
                self.peers.drop_grants(ids);
            }
            Change::Barred { under, before, .. } => self.revocations.bar(under, *before),
            Change::Rotated { from, grants, .. } => {
                self.revocations.revoke_key(from.into(), at);
                self.budgets.reissued(grants);
            }
            Change::Reissued { grants, .. } => self.budgets.reissued(grants),
            Change::Reserved { block, calls, .. } => {
                self.budgets.reserve(*block, *calls, taking == Taking::Back);
            }
            Change::Approved { name, key, .. } | Change::Enrolled { name, key, .. } => {
                // The key before this one is out: whatever it holds or delegated is dead with it.
                if let Some(before) = self.registry.agent(name).filter(|agent| agent.key != *key) {
                    self.revocations.revoke_key(before.key.id(), at);
                }
            }
            _ => {}
        }
        self.peers.apply(change);
        self.trust.apply(change);
        self.charter.apply(change);
        self.pending.apply(change);
        self.proposals.apply(change);
        let root = self.roots.keys().first().copied();
        self.registry.apply(change, root);
        if self.roots.apply(change) {
            // Opened under other roots.
            self.tokens.forget();
        }
        Ok(())
    }
}
