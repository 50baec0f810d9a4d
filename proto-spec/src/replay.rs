//! Each nonce once: the replay window.
//!
//! An accepted (key, nonce) is remembered for as long as its timestamp could still be accepted.
//! Nothing is evicted early: a full window refuses new envelopes rather than forget an old one. What
//! has been dropped leaves a floor behind, below which nothing is accepted, whatever the clock does.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

use sha2::Digest as _;

use crate::refusal::Refusal;
use crate::signature::PublicKey;
use crate::time::Timestamp;

/// How much time one bucket spans. Whole buckets are dropped, so this is how much longer than
/// necessary a nonce may be remembered.
pub const BUCKET_SPAN: Duration = Duration::from_secs(60);

/// 128 bits that stand for (key, nonce): a SHA-256 under a secret of this window, so that nobody can
/// choose nonces that collide or that crowd one part of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag(u128);

impl Tag {
    /// The tag of `nonce` under `key`.
    #[must_use]
    pub fn of(secret: &[u8; 32], key: &PublicKey, nonce: &str) -> Self {
        let mut hash = sha2::Sha256::new();
        hash.update(secret);
        hash.update(key.as_bytes());
        hash.update(nonce.as_bytes());
        let digest: [u8; 32] = hash.finalize().into();
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        Self(u128::from_le_bytes(half))
    }

    /// As written to a window file.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// As read from a window file.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }

    /// Which of `shards` it belongs to; independent of the bits that a table inside a shard uses.
    #[must_use]
    pub const fn shard(self, shards: usize) -> usize {
        ((self.0 >> 96) as usize) % shards
    }
}

/// Tags are uniformly distributed already: hashing them again would only cost.
#[derive(Default)]
struct TagHasher(u64);

impl Hasher for TagHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }
    fn write_u128(&mut self, tag: u128) {
        self.0 = tag as u64;
    }
}

type Tags = HashSet<Tag, BuildHasherDefault<TagHasher>>;

/// The nonces that could still be replayed. One owner; a broker keeps many, by [`Tag::shard`].
#[derive(Debug, Default)]
pub struct ReplayWindow {
    buckets: BTreeMap<u64, Tags>,
    floor: Timestamp,
}

impl ReplayWindow {
    /// An empty window that accepts nothing signed before `floor`.
    #[must_use]
    pub fn new(floor: Timestamp) -> Self {
        Self {
            buckets: BTreeMap::new(),
            floor,
        }
    }

    /// Which bucket a timestamp belongs to.
    #[must_use]
    pub const fn bucket_of(ts: Timestamp) -> u64 {
        ts.as_ms() / BUCKET_SPAN.as_millis() as u64
    }

    /// Remembers a tag the first time it is seen. The caller has already refused a `ts` that is not
    /// fresh; every bucket is searched, at most eleven of them, so the cost does not grow with fill.
    ///
    /// # Errors
    ///
    /// [`Refusal::Replayed`] when it is remembered already, [`Refusal::BelowFloor`] when it is so old
    /// that it may have been forgotten.
    pub fn remember(&mut self, tag: Tag, ts: Timestamp) -> Result<(), Refusal> {
        if ts < self.floor {
            return Err(Refusal::BelowFloor);
        }
        if self.buckets.values().any(|tags| tags.contains(&tag)) {
            return Err(Refusal::Replayed);
        }
        self.buckets
            .entry(Self::bucket_of(ts))
            .or_default()
            .insert(tag);
        Ok(())
    }

    /// Takes back what was remembered last, when what had to follow it failed.
    pub fn forget(&mut self, tag: Tag, ts: Timestamp) {
        if let Some(tags) = self.buckets.get_mut(&Self::bucket_of(ts)) {
            tags.remove(&tag);
        }
    }

    /// Drops whole buckets whose every timestamp is more than `skew` before `now`, and raises the
    /// floor above them. Returns the dropped buckets' numbers.
    pub fn expire(&mut self, now: Timestamp, skew: Duration) -> Vec<u64> {
        let oldest = Self::bucket_of(now.earlier(skew));
        let kept = self.buckets.split_off(&oldest);
        let dropped = std::mem::replace(&mut self.buckets, kept);
        let start = Timestamp::from_ms(oldest.saturating_mul(BUCKET_SPAN.as_millis() as u64));
        self.floor = self.floor.max(start);
        dropped.into_keys().collect()
    }

    /// Nothing signed before this is accepted.
    #[must_use]
    pub fn floor(&self) -> Timestamp {
        self.floor
    }

    /// How many nonces are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buckets.values().map(HashSet::len).sum()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKEW: Duration = Duration::from_secs(300);

    fn tag(n: u8) -> Tag {
        Tag::from_bytes([n; 16])
    }

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_ms(1_000_000_000_000 + secs * 1_000)
    }

    #[test]
    fn a_nonce_is_remembered_for_as_long_as_its_timestamp_could_be_accepted() {
        let mut window = ReplayWindow::default();
        window.remember(tag(1), at(300)).unwrap();
        // The last instant at which a verifier accepts ts 300 is 600.
        window.expire(at(600), SKEW);
        assert_eq!(window.remember(tag(1), at(300)), Err(Refusal::Replayed));
        window.expire(at(700), SKEW);
        assert_eq!(window.remember(tag(1), at(300)), Err(Refusal::BelowFloor));
    }

    #[test]
    fn a_clock_that_jumps_back_does_not_reopen_what_was_dropped() {
        let mut window = ReplayWindow::default();
        window.remember(tag(1), at(0)).unwrap();
        window.expire(at(3_600), SKEW);
        window.expire(at(0), SKEW);
        assert_eq!(window.remember(tag(1), at(0)), Err(Refusal::BelowFloor));
    }

    #[test]
    fn a_nonce_is_used_up_whatever_timestamp_it_comes_with() {
        let mut window = ReplayWindow::default();
        window.remember(tag(1), at(0)).unwrap();
        assert_eq!(window.remember(tag(1), at(0)), Err(Refusal::Replayed));
        assert_eq!(window.remember(tag(1), at(200)), Err(Refusal::Replayed));
        assert_eq!(window.len(), 1);
    }
}
