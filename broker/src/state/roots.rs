//! The keys that this organisation's tokens are rooted in: one issues, the others are accepted.

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use proto_spec::message::RootRecord;
use proto_spec::{PublicKey, Timestamp};

use super::snapshot::{Sink, Source, Stored, stored, torn};
use crate::change::Change;
use crate::locks::lock;

/// What a root key is for, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Tokens are rooted in it.
    Active,
    /// Accepted, so that every verifier knows it before the first token comes.
    Prepared,
    /// Accepted, until it is retired.
    Retiring,
}

impl Stored for Stage {
    fn put(&self, to: &mut Sink) {
        let number: u8 = match self {
            Self::Active => 0,
            Self::Prepared => 1,
            Self::Retiring => 2,
        };
        number.put(to);
    }

    fn take(from: &mut Source) -> std::io::Result<Self> {
        match u8::take(from)? {
            0 => Ok(Self::Active),
            1 => Ok(Self::Prepared),
            2 => Ok(Self::Retiring),
            _ => Err(torn("a root key is for nothing")),
        }
    }
}

/// One root key.
#[derive(Debug, Clone, Copy)]
pub struct Root {
    /// The key.
    pub key: PublicKey,
    /// What it is for.
    pub stage: Stage,
    /// Since when.
    pub since: Timestamp,
}
stored!(Root { key, stage, since });

/// All root keys, active first.
#[derive(Debug, Default)]
pub struct Roots {
    all: Mutex<Vec<Root>>,
    keys: ArcSwap<Vec<PublicKey>>,
}

impl Roots {
    /// What tokens may be rooted in, the active key first.
    #[must_use]
    pub fn keys(&self) -> Arc<Vec<PublicKey>> {
        self.keys.load_full()
    }

    /// All, active first.
    #[must_use]
    pub fn all(&self) -> Vec<Root> {
        lock(&self.all).clone()
    }

    /// The one of this key.
    #[must_use]
    pub fn find(&self, key: &PublicKey) -> Option<Root> {
        self.all().into_iter().find(|root| root.key == *key)
    }

    /// As admins see them.
    #[must_use]
    pub fn records(&self) -> Vec<RootRecord> {
        let shown = |root: Root| RootRecord {
            key: root.key,
            state: match root.stage {
                Stage::Active => "active",
                Stage::Prepared => "prepared",
                Stage::Retiring => "retiring",
            }
            .into(),
            since: root.since,
        };
        self.all().into_iter().map(shown).collect()
    }

    pub(super) fn image(&self) -> Vec<Root> {
        // `keys` are those of `all`.
        let Self { all, keys: _ } = self;
        lock(all).clone()
    }

    pub(super) fn load(&self, roots: Vec<Root>) {
        self.accept(&roots);
        *lock(&self.all) = roots;
    }

    fn accept(&self, roots: &[Root]) {
        let keys = roots.iter().map(|root| root.key).collect();
        self.keys.store(Arc::new(keys));
    }

    /// Takes a change over; says whether it was about root keys.
    pub(super) fn apply(&self, change: &Change) -> bool {
        let mut all = lock(&self.all);
        let mut put = |key: PublicKey, stage, since| {
            all.retain(|root| root.key != key);
            all.push(Root { key, stage, since });
        };
        match change {
            Change::Founded { root, at, .. } => put(*root, Stage::Active, *at),
            Change::RootPrepared { key, at, .. } => put(*key, Stage::Prepared, *at),
            Change::RootActivated { key, at, .. } => {
                put(*key, Stage::Active, *at);
                for root in all.iter_mut().filter(|root| root.key != *key) {
                    if root.stage == Stage::Active {
                        (root.stage, root.since) = (Stage::Retiring, *at);
                    }
                }
            }
            Change::RootRetired { key, .. } => all.retain(|root| root.key != *key),
            _ => return false,
        }
        all.sort_by_key(|root| root.stage);
        self.accept(&all);
        true
    }
}
