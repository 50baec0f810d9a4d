//! The life of root keys: prepared, active, retiring, retired. Both are accepted while they overlap.

use std::path::{Path, PathBuf};

use proto_spec::message::{Ack, RootAct};
use proto_spec::{AgentId, PublicKey, Refusal, SigningKey};

use super::admin::{Nothing, read};
use super::scope::By;
use super::tokens::entropy;
use super::{Decision, Desk, answer, change};
use crate::change::Change;
use crate::state::State;
use crate::state::roots::Stage;

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
        if self
            .state
            .roots
            .all()
            .iter()
            .any(|root| root.stage == Stage::Prepared)
        {
            return Err(Refusal::Conflict("a root key is prepared already".into()));
        }
        let next = SigningKey::from_seed(&entropy()?);
        let path = file_of(&self.config.root_key, &next.public());
        crate::keyfile::create(&path, &next).map_err(|error| {
            tracing::error!(%error, path = %path.display(), "the next root key was not written");
            Refusal::StorageFull("the key file cannot be written".into())
        })?;
        let prepared = Change::RootPrepared {
            key: next.public(),
            by: by.first.clone(),
            at: self.clock.now(),
        };
        Ok(change(prepared, shown))
    }

    pub(super) fn activate_root(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let RootAct { key } = read(body)?;
        self.check_is_full(by)?;
        match self.state.roots.find(&key).map(|root| root.stage) {
            Some(Stage::Prepared) => {}
            Some(_) => {
                return Err(Refusal::Conflict(
                    "this root key was activated before".into(),
                ));
            }
            None => return Err(Refusal::NotFound("root key".into())),
        }
        load(&self.config.root_key, &key).map_err(|why| Refusal::Conflict(why.to_string()))?;
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
        let RootAct { key } = read(body)?;
        self.check_is_full(by)?;
        match self.state.roots.find(&key).map(|root| root.stage) {
            Some(Stage::Active) => {
                return Err(Refusal::Conflict(
                    "this root key is active: activate another first".into(),
                ));
            }
            Some(_) => {}
            None => return Err(Refusal::NotFound("root key".into())),
        }
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
            match load(&self.config.root_key, key) {
                Ok(root) => self.root = root,
                // It was there when the act was decided: issuing stops being accepted, and says so.
                Err(error) => tracing::error!(%error, "the active root key cannot be loaded"),
            }
        }
    }
}

fn shown(state: &State) -> Ack {
    Ack::Roots {
        roots: state.roots.records(),
    }
}

/// The file of a root key that this broker made, beside the configured one.
fn file_of(configured: &Path, key: &PublicKey) -> PathBuf {
    configured.with_file_name(format!("root-{}.pem", key.fingerprint().replace(':', "")))
}

/// The root key `key`, from the configured file or from the one that this broker made.
///
/// # Errors
///
/// When neither holds it.
pub(crate) fn load(configured: &Path, key: &PublicKey) -> anyhow::Result<SigningKey> {
    let made = file_of(configured, key);
    for path in [configured, &made] {
        if let Ok(found) = crate::keyfile::load(path)
            && found.public() == *key
        {
            return Ok(found);
        }
    }
    anyhow::bail!(
        "the root key {} is neither in {} nor in {}",
        key.fingerprint(),
        configured.display(),
        made.display()
    )
}
