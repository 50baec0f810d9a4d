//! What is dead: keys, token blocks by their revocation ids, and whole capabilities up to a time.

use arc_swap::ArcSwap;
use dashmap::DashSet;
use proto_spec::capability::Token;
use proto_spec::{Digest, Pattern, PublicKey, Refusal, Timestamp};

use super::key::KeyId;
use super::snapshot::stored;

/// Patterns that may be barred at once; a later bar on the same pattern replaces the earlier.
pub const BARS_MAX: usize = 1_024;

/// Looked up at every use of a token. Nothing is ever taken out.
#[derive(Debug, Default)]
pub struct Revocations {
    ids: DashSet<Digest>,
    keys: DashSet<KeyId>,
    bars: ArcSwap<Vec<Bar>>,
}

/// What was issued up to `before` (in seconds) permits nothing under `under`.
#[derive(Debug, Clone)]
struct Bar {
    under: Pattern,
    before: u64,
}
stored!(Bar { under, before });

/// What [`Revocations`] hold.
#[derive(Debug, Default)]
pub struct Image {
    ids: Vec<Digest>,
    keys: Vec<KeyId>,
    bars: Vec<Bar>,
}
stored!(Image { ids, keys, bars });

impl Image {
    pub(super) fn sort(&mut self) {
        self.ids.sort_unstable();
        self.keys.sort_unstable();
    }
}

impl Revocations {
    /// How many ids and keys are dead.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len() + self.keys.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn image(&self) -> Image {
        let Self { ids, keys, bars } = self;
        Image {
            ids: ids.iter().map(|id| *id).collect(),
            keys: keys.iter().map(|key| *key).collect(),
            bars: Vec::clone(&bars.load()),
        }
    }

    /// Fills what is empty.
    pub(super) fn load(&self, image: Image) {
        let Image { ids, keys, bars } = image;
        self.revoke(&ids);
        for key in keys {
            self.keys.insert(key);
        }
        self.bars.store(bars.into());
    }

    pub(super) fn revoke(&self, ids: &[Digest]) {
        for id in ids {
            self.ids.insert(*id);
        }
    }

    pub(super) fn revoke_key(&self, key: KeyId) {
        self.keys.insert(key);
    }

    pub(super) fn bar(&self, under: &[Pattern], before: Timestamp) {
        let mut bars = Vec::clone(&self.bars.load());
        for pattern in under {
            let before = before.as_secs();
            match bars.iter_mut().find(|bar| bar.under == *pattern) {
                Some(bar) => bar.before = bar.before.max(before),
                None => bars.push(Bar {
                    under: pattern.clone(),
                    before,
                }),
            }
        }
        self.bars.store(bars.into());
    }

    /// Whether so many patterns more can be barred.
    #[must_use]
    pub fn has_room(&self, more: usize) -> bool {
        self.bars.load().len() + more <= BARS_MAX
    }

    /// Whether what was issued at `issued` no longer permits what needs `required`.
    #[must_use]
    pub fn is_barred(&self, issued: Timestamp, required: &Pattern) -> bool {
        let bars = self.bars.load();
        bars.iter()
            .any(|bar| issued.as_secs() <= bar.before && bar.under.overlap(required).is_some())
    }

    /// The first moment from `now` on whose second is after every bar: what is issued then is not barred.
    #[must_use]
    pub fn after_bars(&self, now: Timestamp) -> Timestamp {
        let newest = self.bars.load().iter().map(|bar| bar.before).max();
        match newest {
            Some(before) if before >= now.as_secs() => Timestamp::from_ms((before + 1) * 1_000),
            _ => now,
        }
    }

    /// Whether this key can never come back.
    #[must_use]
    pub fn is_key_revoked(&self, key: &PublicKey) -> bool {
        self.is_key_dead(&key.into())
    }

    /// As [`Revocations::is_key_revoked`].
    #[must_use]
    pub fn is_key_dead(&self, key: &KeyId) -> bool {
        self.keys.contains(key)
    }

    /// Whether this block is dead.
    #[must_use]
    pub fn is_revoked(&self, id: &Digest) -> bool {
        self.ids.contains(id)
    }

    /// Checks every block and every key of a token's chain.
    ///
    /// # Errors
    ///
    /// [`Refusal::TokenRevoked`] names what is dead.
    pub fn alive(&self, token: &Token) -> Result<(), Refusal> {
        if let Some(block) = token
            .blocks()
            .iter()
            .find(|block| self.is_revoked(&block.id().0))
        {
            return Err(Refusal::TokenRevoked(format!("block {}", block.id())));
        }
        match token.holders().iter().find(|key| self.is_key_revoked(key)) {
            Some(key) => Err(Refusal::TokenRevoked(format!("key {}", key.fingerprint()))),
            None => Ok(()),
        }
    }
}
