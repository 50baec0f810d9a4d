//! What is dead: keys, and token blocks by their revocation ids.

use dashmap::DashSet;
use proto_spec::capability::Token;
use proto_spec::{Digest, PublicKey, Refusal};

/// Looked up at every use of a token. Nothing is ever taken out.
#[derive(Debug, Default)]
pub struct Revocations {
    ids: DashSet<Digest>,
    keys: DashSet<PublicKey>,
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
