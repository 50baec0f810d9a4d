//! Tokens that were opened before: gate, signatures and chain are checked once for the same bytes.
//!
//! What is kept is only what the bytes and the organisation's root keys decide. Expiry and presenter are looked at
//! with every call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto_spec::capability::{Token, decode_text};
use proto_spec::{Digest, PublicKey, Refusal, Timestamp};

/// Bytes of token text that are answered for: what was parsed from it is a small multiple. At it all is forgotten,
/// and opened again.
const BYTES_MAX: usize = 1 << 20;

/// The tokens that were presented over one session.
pub(crate) struct Tokens(Mutex<Known>);

struct Known {
    /// What tokens may be rooted in, and when the broker said so.
    roots: Arc<[PublicKey]>,
    said: Timestamp,
    opened: HashMap<Digest, Arc<Token>>,
    bytes: usize,
}

impl Tokens {
    /// Tokens that are rooted in these keys, until the broker names others.
    pub(crate) fn of(roots: Vec<PublicKey>) -> Self {
        Self(Mutex::new(Known {
            roots: roots.into(),
            said: Timestamp::default(),
            opened: HashMap::new(),
            bytes: 0,
        }))
    }

    /// Takes what the broker said at `said`: tokens are rooted in these keys. An older word never replaces a
    /// newer one.
    pub(crate) fn root_in(&self, roots: Vec<PublicKey>, said: Timestamp) {
        let mut known = self.known();
        if said >= known.said {
            known.forget();
            known.roots = roots.into();
            known.said = said;
        }
    }

    /// Opens a presented token, or remembers that it did.
    ///
    /// # Errors
    ///
    /// Those of [`Token::open`]. A refusal is not remembered.
    pub(crate) fn open(&self, text: &str) -> Result<Arc<Token>, Refusal> {
        let id = Digest::of(text.as_bytes());
        let roots = {
            let known = self.known();
            if let Some(token) = known.opened.get(&id) {
                return Ok(Arc::clone(token));
            }
            Arc::clone(&known.roots)
        };
        let token = Arc::new(Token::open(&decode_text(text)?, &roots)?);
        let mut known = self.known();
        // The keys may have changed meanwhile: what was opened under others is not kept.
        if Arc::ptr_eq(&known.roots, &roots) {
            if known.bytes + text.len() > BYTES_MAX {
                known.forget();
            }
            known.bytes += text.len();
            known.opened.insert(id, Arc::clone(&token));
        }
        Ok(token)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn forget(&mut self) {
        self.opened.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use proto_spec::SigningKey;
    use proto_spec::capability::issue::{grant, seal};
    use proto_spec::capability::{Terms, encode_text};

    use super::*;

    const ROOT: [u8; 32] = [1; 32];

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_ms(1_750_000_000_000 + ms)
    }

    fn roots(seed: [u8; 32]) -> Vec<PublicKey> {
        vec![SigningKey::from_seed(&seed).public()]
    }

    /// A token like no other, as it is presented.
    fn token(nth: u8) -> String {
        let terms = Terms {
            agent: "ada@acme".parse().unwrap(),
            holder: SigningKey::from_seed(&[9; 32]).public(),
            capabilities: vec!["fs.*".parse().unwrap()],
            issued: at(0),
            not_before: None,
            expires: at(3_600_000),
            checks: Vec::new(),
            sandbox: None,
            calls: None,
        };
        let root = SigningKey::from_seed(&ROOT);
        let granted = grant(&root, &"acme".parse().unwrap(), &terms, [nth; 32]).unwrap();
        encode_text(&seal(&granted).unwrap())
    }

    #[test]
    fn a_token_is_opened_once_and_not_after_its_root_is_none_any_more() {
        let (tokens, text) = (Tokens::of(roots(ROOT)), token(1));
        let first = tokens.open(&text).unwrap();
        assert!(Arc::ptr_eq(&first, &tokens.open(&text).unwrap()));
        tokens.root_in(roots([2; 32]), at(2));
        assert!(tokens.open(&text).is_err());
        tokens.root_in(roots(ROOT), at(1));
        assert!(tokens.open(&text).is_err(), "the older word came later");
    }

    #[test]
    fn at_the_bound_all_is_forgotten_and_opened_again() {
        let (tokens, text) = (Tokens::of(roots(ROOT)), token(1));
        let first = tokens.open(&text).unwrap();
        tokens.known().bytes = BYTES_MAX;
        tokens.open(&token(2)).unwrap();
        assert_eq!(tokens.known().opened.len(), 1);
        assert!(!Arc::ptr_eq(&first, &tokens.open(&text).unwrap()));
    }
}
