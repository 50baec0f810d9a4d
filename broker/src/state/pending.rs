//! Requests that wait for an admin. They reserve nothing, are bounded, and live in memory: an agent
//! that still wants in asks again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto_spec::message::{PendingRecord, RegisterAgent};
use proto_spec::{Name, PublicKey, Refusal, Timestamp};

use crate::change::Change;

/// Requests that one network address may have waiting, so that no stranger fills the list.
const PER_ADDRESS_MAX: usize = 128;

/// What was asked, by (name, key); and what was turned down.
#[derive(Debug)]
pub struct Pending {
    max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: HashMap<(Name, PublicKey), PendingRecord>,
    denied: HashMap<(Name, PublicKey), Option<String>>,
}

impl Pending {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a request, or that it was made again.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] when too many wait.
    pub fn ask(
        &self,
        name: &Name,
        request: &RegisterAgent,
        from: &str,
        at: Timestamp,
    ) -> Result<(), Refusal> {
        let mut inner = self.lock();
        let slot = (name.clone(), request.pubkey);
        if inner.waiting.len() >= self.max && !inner.waiting.contains_key(&slot) {
            return Err(Refusal::Busy("the list of pending requests"));
        }
        let from_there = inner
            .waiting
            .values()
            .filter(|one| one.from == from)
            .count();
        if from_there >= PER_ADDRESS_MAX && !inner.waiting.contains_key(&slot) {
            return Err(Refusal::Busy("this address's share of pending requests"));
        }
        inner.waiting.insert(
            slot,
            PendingRecord {
                name: name.clone(),
                key: request.pubkey,
                fingerprint: request.pubkey.fingerprint(),
                capabilities: request.capabilities.clone(),
                prefixes: request.prefixes.clone(),
                note: request.note.clone(),
                from: from.into(),
                at,
                key_change: false,
            },
        );
        Ok(())
    }

    /// Whether an admin turned this very (name, key) down, and with which reason.
    #[must_use]
    pub fn denied(&self, name: &Name, key: &PublicKey) -> Option<Option<String>> {
        self.lock().denied.get(&(name.clone(), *key)).cloned()
    }

    /// What waits, by name; of one name only if given.
    #[must_use]
    pub fn waiting(&self, name: Option<&Name>) -> Vec<PendingRecord> {
        let mut all: Vec<_> = self
            .lock()
            .waiting
            .values()
            .filter(|record| name.is_none_or(|name| record.name == *name))
            .cloned()
            .collect();
        all.sort_by(|a, b| (&a.name, a.key).cmp(&(&b.name, b.key)));
        all
    }

    pub(super) fn apply(&self, change: &Change) {
        let mut inner = self.lock();
        match change {
            Change::Approved { name, key, .. } | Change::Enrolled { name, key, .. } => {
                let slot = (name.clone(), *key);
                inner.waiting.remove(&slot);
                inner.denied.remove(&slot);
            }
            Change::Denied {
                name, key, reason, ..
            } => {
                let slot = (name.clone(), *key);
                inner.waiting.remove(&slot);
                inner.denied.insert(slot, reason.clone());
            }
            Change::AgentRevoked {
                name, key, reason, ..
            } => {
                inner.denied.insert((name.clone(), *key), reason.clone());
            }
            _ => {}
        }
    }
}
