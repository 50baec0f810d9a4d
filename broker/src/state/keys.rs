//! Keys of one purpose, and how one takes over from another: prepared, active, retiring, retired.

use std::sync::Mutex;

use proto_spec::message::KeyRecord;
use proto_spec::{PublicKey, Timestamp};

use super::snapshot::{Sink, Source, Stored, stored, torn};
use crate::locks::lock;

/// What a key is for, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It signs.
    Active,
    /// Made known, so that everybody has it before its first signature comes.
    Prepared,
    /// It signed before, and what it signed is accepted until it is retired.
    Retiring,
}

impl Stage {
    fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Prepared => "prepared",
            Self::Retiring => "retiring",
        }
    }
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
            _ => Err(torn("a key is for nothing")),
        }
    }
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// The key.
    pub key: PublicKey,
    /// What it is for.
    pub stage: Stage,
    /// Since when.
    pub since: Timestamp,
}
stored!(Held { key, stage, since });

/// All keys of one purpose, active first.
#[derive(Debug, Default)]
pub struct Keys(Mutex<Vec<Held>>);

impl Keys {
    /// All, active first.
    #[must_use]
    pub fn all(&self) -> Vec<Held> {
        lock(&self.0).clone()
    }

    /// The one that signs.
    #[must_use]
    pub fn active(&self) -> Option<PublicKey> {
        self.in_stage(Stage::Active)
    }

    /// The first one in this stage.
    #[must_use]
    pub fn in_stage(&self, stage: Stage) -> Option<PublicKey> {
        let all = lock(&self.0);
        all.iter()
            .find(|held| held.stage == stage)
            .map(|held| held.key)
    }

    /// What this key is for, if it is one of them.
    #[must_use]
    pub fn stage_of(&self, key: &PublicKey) -> Option<Stage> {
        let all = lock(&self.0);
        all.iter()
            .find(|held| held.key == *key)
            .map(|held| held.stage)
    }

    /// As admins see them.
    #[must_use]
    pub fn records(&self) -> Vec<KeyRecord> {
        let shown = |held: Held| KeyRecord {
            key: held.key,
            state: held.stage.as_str().into(),
            since: held.since,
        };
        self.all().into_iter().map(shown).collect()
    }

    pub(super) fn load(&self, held: Vec<Held>) {
        *lock(&self.0) = held;
    }

    /// A key was made.
    pub(super) fn prepare(&self, key: PublicKey, at: Timestamp) {
        self.put(key, Stage::Prepared, at);
    }

    /// A key signs from here on; the one before it retires.
    pub(super) fn activate(&self, key: PublicKey, at: Timestamp) {
        for held in lock(&self.0).iter_mut() {
            if held.stage == Stage::Active {
                (held.stage, held.since) = (Stage::Retiring, at);
            }
        }
        self.put(key, Stage::Active, at);
    }

    /// A key is nothing any more.
    pub(super) fn retire(&self, key: &PublicKey) {
        lock(&self.0).retain(|held| held.key != *key);
    }

    fn put(&self, key: PublicKey, stage: Stage, since: Timestamp) {
        let mut all = lock(&self.0);
        all.retain(|held| held.key != key);
        all.push(Held { key, stage, since });
        all.sort_by_key(|held| held.stage);
    }
}
