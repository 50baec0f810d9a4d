//! Tokens that were opened before: gate, signatures and chain are checked once for the same bytes.
//!
//! What is kept is only what the bytes alone decide. Revocation, expiry and presenter are looked up
//! at every use.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use lru::LruCache;
use proto_spec::capability::{Token, decode_text};
use proto_spec::{Digest, Refusal};

use super::roots::Roots;
use crate::locks::lock;

const SHARDS: usize = 16;
/// Bytes of token text that a shard answers for: what was parsed from it is a small multiple.
const SHARD_BYTES: usize = 4 << 20;

#[derive(Debug)]
struct Shard {
    known: LruCache<Digest, (usize, Arc<Token>)>,
    bytes: usize,
}

/// A cache by the SHA-256 of a token's text, bounded by the bytes of what was presented.
#[derive(Debug)]
pub struct Tokens {
    shards: Vec<Mutex<Shard>>,
    /// How often all was forgotten: what was opened before is not kept after.
    generation: AtomicU64,
}

impl Default for Tokens {
    fn default() -> Self {
        let shard = || Shard {
            known: LruCache::unbounded(),
            bytes: 0,
        };
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
            generation: AtomicU64::new(0),
        }
    }
}

impl Tokens {
    /// Forgets all.
    pub fn forget(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.known.clear();
            shard.bytes = 0;
        }
    }

    /// Every token that was presented lately.
    pub fn each(&self, mut visit: impl FnMut(&Token)) {
        for shard in &self.shards {
            let shard = lock(shard);
            shard.known.iter().for_each(|(_, (_, token))| visit(token));
        }
    }

    /// Opens a presented token, or remembers that it did.
    ///
    /// # Errors
    ///
    /// Those of [`Token::open`]. A refusal is not remembered: it cost no more than it has to.
    pub fn open(&self, text: &str, roots: &Roots) -> Result<Arc<Token>, Refusal> {
        let key = Digest::of(text.as_bytes());
        let shard = &self.shards[usize::from(key.0[0]) % SHARDS];
        if let Some((_, token)) = lock(shard).known.get(&key) {
            return Ok(Arc::clone(token));
        }
        let generation = self.generation.load(Ordering::SeqCst);
        let token = Arc::new(Token::open(&decode_text(text)?, &roots.keys())?);
        let mut shard = lock(shard);
        if self.generation.load(Ordering::SeqCst) == generation {
            shard.keep(key, text.len(), &token);
        }
        Ok(token)
    }
}

impl Shard {
    fn keep(&mut self, key: Digest, bytes: usize, token: &Arc<Token>) {
        if let Some((before, _)) = self.known.put(key, (bytes, Arc::clone(token))) {
            self.bytes -= before;
        }
        self.bytes += bytes;
        while self.bytes > SHARD_BYTES
            && let Some((_, (oldest, _))) = self.known.pop_lru()
        {
            self.bytes -= oldest;
        }
    }
}
