//! The life of root keys: prepared, active, retiring, retired. Both are accepted while they overlap.

use proto_spec::message::Ack;
use proto_spec::{AgentId, Refusal};

use super::admin::{Nothing, read};
use super::keys::Purpose;
use super::scope::By;
use super::{Decision, Desk, answer, change};
use crate::change::Change;
use crate::state::State;

/// Grants that one record issues anew when a root key retires.
const REISSUED_MAX: usize = 256;

impl Desk {
    pub(super) fn list_roots(&self, body: &str) -> Result<Decision, Refusal> {
        let _: Nothing = read(body)?;
        Ok(answer(shown(&self.state)))
    }

    /// Makes the next root key, in a file beside the configured one. Verifiers learn it now; tokens are
    /// rooted in it when it is activated.
    pub(super) fn prepare_root(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let _: Nothing = read(body)?;
        self.check_is_full(by)?;
        let next = Purpose::Root.prepare(self.state.roots.life(), &self.config.root_key)?;
        let prepared = Change::RootPrepared {
            key: next.public(),
            by: by.first.clone(),
            at: self.clock.now(),
        };
        Ok(change(prepared, shown))
    }

    pub(super) fn activate_root(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        self.check_is_full(by)?;
        let (life, file) = (self.state.roots.life(), &self.config.root_key);
        let key = Purpose::Root.to_activate(life, file, body)?;
        let activated = Change::RootActivated {
            key,
            by: by.first.clone(),
            at: self.clock.now(),
        };
        Ok(change(activated, shown))
    }

    /// Issues anew what is on record under the active root, and accepts nothing of the old one any more.
    /// Tokens that were handed out under it are dead.
    pub(super) fn retire_root(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        self.check_is_full(by)?;
        let key = Purpose::Root.to_retire(self.state.roots.life(), body)?;
        let at = self.clock.now();
        let mut changes = Vec::new();
        let active = self.root.public();
        if self.state.roots.keys().first() != Some(&active) {
            return Err(Refusal::Conflict(
                "the active root key is not loaded: restart the broker with its file in place"
                    .into(),
            ));
        }
        for agent in self.state.registry.agents_after(None) {
            let id = AgentId::new(agent.name.clone(), self.state.org.clone());
            let tokens = self.state.granted(&agent);
            let old = tokens.iter().filter(|token| token.root() != &active);
            let grants = old
                .map(|token| self.anew(token, &id, agent.key.key()))
                .collect::<Result<Vec<_>, _>>()?;
            for some in grants.chunks(REISSUED_MAX) {
                changes.push(Change::Reissued {
                    name: agent.name.clone(),
                    grants: some.to_vec(),
                    at,
                });
            }
        }
        for peer in self.state.peers.all() {
            changes.extend(self.reissue_peer(&peer, peer.key)?);
        }
        changes.push(Change::RootRetired {
            key,
            by: by.first.clone(),
            at,
        });
        let report = |state: &State| Some(shown(state));
        Ok(Decision::Change(changes, Box::new(report)))
    }

    /// Signs with the active root from the next act on.
    pub(super) fn take_root(&mut self, change: &Change) {
        if let Change::RootActivated { key, .. } = change {
            match Purpose::Root.load(&self.config.root_key, key) {
                Ok(root) => self.root = root,
                // It was there when the act was decided: issuing stops being accepted, and says so.
                Err(error) => tracing::error!(%error, "the active root key cannot be loaded"),
            }
        }
    }
}

fn shown(state: &State) -> Ack {
    Ack::Roots {
        roots: state.roots.life().records(),
    }
}
