//! Requests that wait for an admin. They reserve nothing, are bounded, expire, and live in memory: an
//! agent that still wants in asks again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use proto_spec::message::{Older, PendingRecord, RegisterAgent};
use proto_spec::{Name, PublicKey, Refusal, Timestamp};

use crate::change::Change;
use crate::config::Limits;
use crate::locks::lock;

/// Requests that one network may have waiting, so that no stranger fills the list.
const PER_NETWORK_MAX: usize = 128;

/// Denials that are remembered. Whoever was denied before all of these is a stranger again.
const DENIED_MAX: usize = 65_536;

/// What was asked, by (name, key); and what was turned down.
#[derive(Debug)]
pub struct Pending {
    max: usize,
    lifetime: Duration,
    inner: Mutex<Inner>,
}

/// A request that was turned down, with the reason given.
pub type Denied = ((Name, PublicKey), Option<String>);

#[derive(Debug, Default)]
struct Inner {
    waiting: HashMap<(Name, PublicKey), PendingRecord>,
    /// Which network each came from, and what it told of itself where an older agent asks.
    asked: HashMap<(Name, PublicKey), (u64, Option<Older>)>,
    denied: HashMap<(Name, PublicKey), Option<String>>,
    /// In the order in which they were denied.
    denied_order: VecDeque<(Name, PublicKey)>,
}

impl Inner {
    fn deny(&mut self, slot: (Name, PublicKey), reason: Option<String>) {
        self.waiting.remove(&slot);
        if self.denied.insert(slot.clone(), reason).is_none() {
            self.denied_order.push_back(slot);
        }
        while self.denied_order.len() > DENIED_MAX {
            if let Some(oldest) = self.denied_order.pop_front() {
                self.denied.remove(&oldest);
            }
        }
    }
}

impl Pending {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            max: limits.pending_max,
            lifetime: Duration::from_secs(limits.pending_lifetime_s),
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Notes a request, or that it was made again.
    ///
    /// # Errors
    ///
    /// [`Refusal::Conflict`] where one that asks for something else waits under this key: what an admin looks at
    /// does not change before it is approved. [`Refusal::Busy`] when too many wait.
    pub fn ask(
        &self,
        name: &Name,
        request: &RegisterAgent,
        older: Option<&Older>,
        network: u64,
        from: &str,
        at: Timestamp,
    ) -> Result<(), Refusal> {
        let mut inner = self.lock();
        let slot = (name.clone(), request.pubkey);
        inner
            .waiting
            .retain(|_, one| at <= one.at.later(self.lifetime));
        if let (Some(before), Some((_, told))) = (inner.waiting.get(&slot), inner.asked.get(&slot))
            && !(asks_the_same(before, request) && told.as_ref() == older)
        {
            let why = "another request waits under this key, until it is decided or expires";
            return Err(Refusal::Conflict(why.into()));
        }
        if inner.waiting.len() >= self.max && !inner.waiting.contains_key(&slot) {
            return Err(Refusal::Busy("the list of pending requests"));
        }
        let Inner { waiting, asked, .. } = &mut *inner;
        asked.retain(|slot, _| waiting.contains_key(slot));
        let from_there = asked.values().filter(|(from, _)| *from == network).count();
        if from_there >= PER_NETWORK_MAX && !waiting.contains_key(&slot) {
            return Err(Refusal::Busy("this network's share of pending requests"));
        }
        asked.insert(slot.clone(), (network, older.cloned()));
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
                older: None,
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
    pub fn waiting(&self, name: Option<&Name>, now: Timestamp) -> Vec<PendingRecord> {
        let mut all: Vec<_> = self
            .lock()
            .waiting
            .values()
            .filter(|record| name.is_none_or(|name| record.name == *name))
            .filter(|record| now <= record.at.later(self.lifetime))
            .cloned()
            .collect();
        all.sort_by(|a, b| (&a.name, a.key).cmp(&(&b.name, b.key)));
        all
    }

    /// What a key that waits told of itself, if an older agent asks; nothing at all if it does not wait.
    #[must_use]
    pub fn asked(&self, name: &Name, key: &PublicKey, now: Timestamp) -> Option<Option<Older>> {
        let inner = self.lock();
        let slot = (name.clone(), *key);
        let record = inner.waiting.get(&slot)?;
        let waits = now <= record.at.later(self.lifetime);
        waits.then(|| inner.asked.get(&slot).and_then(|(_, older)| older.clone()))
    }

    /// How many wait, and wait too long.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was turned down, in that order.
    pub(super) fn image(&self) -> Vec<Denied> {
        let Inner {
            denied,
            denied_order,
            // Not durable.
            waiting: _,
            asked: _,
        } = &*self.lock();
        let reason = |slot| denied.get(slot).cloned().flatten();
        let all = denied_order.iter();
        all.map(|slot| (slot.clone(), reason(slot))).collect()
    }

    pub(super) fn load(&self, denied: Vec<Denied>) {
        let mut inner = self.lock();
        for (slot, reason) in denied {
            inner.deny(slot, reason);
        }
    }

    pub(super) fn apply(&self, change: &Change) {
        let mut inner = self.lock();
        match change {
            Change::Approved { name, key, .. } | Change::Enrolled { name, key, .. } => {
                let slot = (name.clone(), *key);
                inner.waiting.remove(&slot);
                if inner.denied.remove(&slot).is_some() {
                    inner.denied_order.retain(|one| *one != slot);
                }
            }
            Change::Denied {
                name, key, reason, ..
            } => {
                inner.deny((name.clone(), *key), reason.clone());
            }
            Change::AgentRevoked {
                name, key, reason, ..
            } => inner.deny((name.clone(), *key), reason.clone()),
            Change::Quarantined { agents, reason, .. } => {
                for slot in agents {
                    inner.deny(slot.clone(), reason.clone());
                }
            }
            _ => {}
        }
    }
}

fn asks_the_same(waiting: &PendingRecord, request: &RegisterAgent) -> bool {
    waiting.capabilities == request.capabilities
        && waiting.prefixes == request.prefixes
        && waiting.note == request.note
}

#[cfg(test)]
mod tests {
    use proto_spec::SigningKey;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_admin_looks_at_is_not_exchanged_until_it_expires() {
        let pending = Pending::new(&Limits::default());
        let name: Name = "coder".parse().unwrap();
        let key = SigningKey::from_seed(&[1; 32]).public();
        let ask = |capabilities: &[&str], endpoint: &str, at: Timestamp| {
            let request = json!({"pubkey": key, "capabilities": capabilities});
            let request: RegisterAgent = serde_json::from_value(request).unwrap();
            let older: Older =
                serde_json::from_value(json!({"endpoint": endpoint, "tools": []})).unwrap();
            pending.ask(&name, &request, Some(&older), 1, "here", at)
        };
        let (now, lifetime) = (Timestamp::from_ms(1_800_000_000_000), pending.lifetime);
        ask(&["fs.*"], "http://a/", now).unwrap();
        ask(&["fs.*"], "http://a/", now).unwrap();
        for (capabilities, endpoint) in [("fs.*", "http://b/"), ("git.*", "http://a/")] {
            let refused = ask(&[capabilities], endpoint, now);
            assert!(matches!(refused, Err(Refusal::Conflict(_))));
        }
        let after = now.later(lifetime).later(Duration::from_millis(1));
        ask(&["git.*"], "http://b/", after).unwrap();
    }
}
