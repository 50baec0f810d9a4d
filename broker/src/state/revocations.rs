//! What is dead: keys, token blocks by their revocation ids, and whole capabilities up to a time.

use arc_swap::ArcSwap;
use dashmap::DashSet;
use proto_spec::capability::Token;
use proto_spec::{Digest, Pattern, PublicKey, Refusal, Timestamp};

/// Patterns that may be barred at once; a later bar on the same pattern replaces the earlier.
pub const BARS_MAX: usize = 1_024;

/// Looked up at every use of a token. Nothing is ever taken out.
#[derive(Debug, Default)]
pub struct Revocations {
    ids: DashSet<Digest>,
    keys: DashSet<PublicKey>,
    bars: ArcSwap<Vec<Bar>>,
}

/// What was issued up to `before` (in seconds) permits nothing under `under`.
#[derive(Debug, Clone)]
struct Bar {
    under: Pattern,
    before: u64,
}

impl Revocations {
    pub(super) fn revoke(&self, ids: &[Digest]) {
        for id in ids {
            self.ids.insert(*id);
        }
    }

    pub(super) fn revoke_key(&self, key: PublicKey) {
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
