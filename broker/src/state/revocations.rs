//! What is dead: keys, token blocks by their revocation ids, and whole capabilities up to a time.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use arc_swap::ArcSwap;
use dashmap::DashSet;
use proto_spec::capability::Token;
use proto_spec::limits::{CLOCK_SKEW_MAX, INTRODUCTION_VALIDITY};
use proto_spec::{Digest, Pattern, PublicKey, Refusal, Timestamp};
use tokio::sync::watch;

use crate::locks::lock;

use super::key::KeyId;
use super::snapshot::stored;

/// Patterns that may be barred at once; a later bar on the same pattern replaces the earlier.
pub const BARS_MAX: usize = 1_024;
/// For how long peers are told of a dead key: no token that introduces it holds longer, by any clock.
pub const REMEMBERED: Duration =
    Duration::from_secs(INTRODUCTION_VALIDITY.as_secs() + 2 * CLOCK_SKEW_MAX.as_secs());

/// Looked up at every use of a token. Nothing is ever taken out.
#[derive(Debug, Default)]
pub struct Revocations {
    ids: DashSet<Digest>,
    keys: DashSet<KeyId>,
    /// Keys in the order in which they died, for peers: as far back as one of their tokens could hold.
    recent: Mutex<Recent>,
    deaths: watch::Sender<()>,
    bars: ArcSwap<Vec<Bar>>,
}

/// Keys that died, oldest first.
#[derive(Debug, Default)]
struct Recent {
    /// How many are forgotten.
    gone: u64,
    keys: VecDeque<(Timestamp, KeyId)>,
}

impl Recent {
    /// Lets go of those that no token introduces any more.
    fn forget(&mut self, now: Timestamp) {
        let oldest = now.earlier(REMEMBERED);
        while self.keys.front().is_some_and(|(died, _)| *died < oldest) {
            self.keys.pop_front();
            self.gone += 1;
        }
    }
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
    recent: Vec<(Timestamp, KeyId)>,
    bars: Vec<Bar>,
}
stored!(Image {
    ids,
    keys,
    recent,
    bars
});

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
        let Self {
            ids,
            keys,
            recent,
            // Nobody listens yet.
            deaths: _,
            bars,
        } = self;
        Image {
            recent: lock(recent).keys.iter().copied().collect(),
            ids: ids.iter().map(|id| *id).collect(),
            keys: keys.iter().map(|key| *key).collect(),
            bars: Vec::clone(&bars.load()),
        }
    }

    /// Fills what is empty.
    pub(super) fn load(&self, image: Image) {
        let Image {
            ids,
            keys,
            recent,
            bars,
        } = image;
        lock(&self.recent).keys = recent.into();
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

    pub(super) fn revoke_key(&self, key: KeyId, at: Timestamp) {
        if self.keys.insert(key) {
            let mut recent = lock(&self.recent);
            recent.keys.push_back((at, key));
            recent.forget(at);
            drop(recent);
            self.deaths.send_replace(());
        }
    }

    /// Says when a key dies.
    #[must_use]
    pub fn deaths(&self) -> watch::Receiver<()> {
        self.deaths.subscribe()
    }

    /// Keys that died lately, without the first `told` of all that ever died; and how many that makes.
    #[must_use]
    pub fn deaths_after(&self, told: u64, now: Timestamp) -> (Vec<PublicKey>, u64) {
        let mut recent = lock(&self.recent);
        recent.forget(now);
        let skip = usize::try_from(told.saturating_sub(recent.gone)).unwrap_or(usize::MAX);
        let keys: Vec<_> = recent
            .keys
            .iter()
            .skip(skip)
            .map(|(_, key)| key.key())
            .collect();
        (keys, recent.gone + recent.keys.len() as u64)
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
