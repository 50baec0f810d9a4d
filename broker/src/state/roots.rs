//! The keys that this organisation's tokens are rooted in: one issues, the others are accepted.

use std::sync::Arc;

use arc_swap::ArcSwap;
use proto_spec::PublicKey;

use super::keys::{Held, Keys};
use crate::change::Change;

/// All root keys.
#[derive(Debug, Default)]
pub struct Roots {
    life: Keys,
    keys: ArcSwap<Vec<PublicKey>>,
}

impl Roots {
    /// What tokens may be rooted in, the active key first.
    #[must_use]
    pub fn keys(&self) -> Arc<Vec<PublicKey>> {
        self.keys.load_full()
    }

    /// Each with what it is for.
    #[must_use]
    pub fn life(&self) -> &Keys {
        &self.life
    }

    /// Takes a change over; says whether it was about root keys.
    pub(super) fn apply(&self, change: &Change) -> bool {
        match change {
            Change::Founded { root: key, at, .. } | Change::RootActivated { key, at, .. } => {
                self.life.activate(*key, *at);
            }
            Change::RootPrepared { key, at, .. } => self.life.prepare(*key, *at),
            Change::RootRetired { key, .. } => self.life.retire(key),
            _ => return false,
        }
        self.accept();
        true
    }

    pub(super) fn image(&self) -> Vec<Held> {
        // `keys` are those of `life`.
        let Self { life, keys: _ } = self;
        life.all()
    }

    pub(super) fn load(&self, held: Vec<Held>) {
        self.life.load(held);
        self.accept();
    }

    fn accept(&self) {
        let keys = self.life.all().iter().map(|held| held.key).collect();
        self.keys.store(Arc::new(keys));
    }
}
