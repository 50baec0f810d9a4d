//! Tokens that were opened before: gate, signatures and chain are checked once for the same bytes.
//!
//! What is kept is only what the bytes alone decide. Revocation, expiry and presenter are looked up
//! at every use.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use proto_spec::capability::{Token, decode_text};
use proto_spec::{Digest, PublicKey, Refusal};

const SHARDS: usize = 16;
const PER_SHARD: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();

/// A bounded cache by the SHA-256 of a token's text.
#[derive(Debug)]
pub struct Tokens {
    shards: Vec<Mutex<LruCache<Digest, Arc<Token>>>>,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS)
                .map(|_| Mutex::new(LruCache::new(PER_SHARD)))
                .collect(),
        }
    }
}

impl Tokens {
    /// Opens a presented token, or remembers that it did.
    ///
    /// # Errors
    ///
    /// Those of [`Token::open`]. A refusal is not remembered: it cost no more than it has to.
    pub fn open(&self, text: &str, roots: &[PublicKey]) -> Result<Arc<Token>, Refusal> {
        let key = Digest::of(text.as_bytes());
        let shard = &self.shards[usize::from(key.0[0]) % SHARDS];
        if let Some(token) = shard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
        {
            return Ok(Arc::clone(token));
        }
        let token = Arc::new(Token::open(&decode_text(text)?, roots)?);
        shard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .put(key, Arc::clone(&token));
        Ok(token)
    }
}
