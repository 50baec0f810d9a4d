//! Keys that the broker keeps for agents that can only show a bearer token.
//!
//! None is stored: each is derived from one secret file beside the root key, by the agent's name and a
//! generation. Which generation an agent has is seen from the key on record; one that was revoked never comes
//! back, so the next keeping of that name takes the next.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use aws_lc_rs::hmac;
use proto_spec::{Name, Org, PublicKey, SigningKey};

/// Keys that one name may have had here, one after the other.
const GENERATIONS_MAX: u32 = 64;

/// Derives the keys of an organisation's kept agents.
pub struct KeptKeys {
    secret: SigningKey,
    org: Org,
}

impl KeptKeys {
    /// Reads the secret, or makes one where there is none.
    ///
    /// # Errors
    ///
    /// When its file cannot be read or written, or others can read it.
    pub fn beside(root_key: &Path, org: &Org) -> anyhow::Result<Self> {
        let path = file_beside(root_key);
        let secret = if path.exists() {
            crate::keyfile::load(&path)?
        } else {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).context("no randomness from the system")?;
            let made = SigningKey::from_seed(&seed);
            crate::keyfile::create(&path, &made)?;
            made
        };
        Ok(Self {
            secret,
            org: org.clone(),
        })
    }

    /// The agent's key, where `public` is one that was derived for that name.
    #[must_use]
    pub fn find(&self, name: &Name, public: &PublicKey) -> Option<SigningKey> {
        let mut all = (0..GENERATIONS_MAX).map(|generation| self.derive(name, generation));
        all.find(|key| key.public() == *public)
    }

    /// The key for keeping `name` from here on: the first that is not `dead`.
    #[must_use]
    pub fn next(&self, name: &Name, dead: impl Fn(&PublicKey) -> bool) -> Option<SigningKey> {
        let mut all = (0..GENERATIONS_MAX).map(|generation| self.derive(name, generation));
        all.find(|key| !dead(&key.public()))
    }

    /// A secret of this broker's for something else than a key, which `what` names.
    #[must_use]
    pub fn secret(&self, what: &str) -> [u8; 32] {
        self.prf(&["secret", what])
    }

    /// No part holds a line break, so each input reads in one way only.
    fn derive(&self, name: &Name, generation: u32) -> SigningKey {
        let generation = generation.to_string();
        SigningKey::from_seed(&self.prf(&["key", name.as_str(), &generation]))
    }

    fn prf(&self, parts: &[&str]) -> [u8; 32] {
        // HMAC-SHA-256 (RFC 2104) under a key of 32 random bytes.
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret.seed());
        let input = format!("fem kept 1\n{}\n{}", self.org, parts.join("\n"));
        let mut output = [0; 32];
        output.copy_from_slice(hmac::sign(&key, input.as_bytes()).as_ref());
        output
    }
}

impl std::fmt::Debug for KeptKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeptKeys")
    }
}

/// Where the secret lies: beside the key that tokens are rooted in.
fn file_beside(root_key: &Path) -> PathBuf {
    root_key.with_file_name("mcp.pem")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_differ_by_name_generation_and_secret_and_are_the_same_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root.pem");
        let org: Org = "acme".parse().unwrap();
        let keys = KeptKeys::beside(&root, &org).unwrap();
        let name = |text: &str| text.parse::<Name>().unwrap();
        let first = keys.next(&name("claude"), |_| false).unwrap();
        let public = first.public();
        let second = keys.next(&name("claude"), |key| *key == public).unwrap();
        let other = keys.next(&name("claude2"), |_| false).unwrap();
        let all: HashSet<_> = [&first, &second, &other].map(|key| *key.seed()).into();
        assert_eq!(all.len(), 3);

        let again = KeptKeys::beside(&root, &org).unwrap();
        assert!(again.find(&name("claude"), &second.public()).is_some());
        assert!(again.find(&name("claude2"), &second.public()).is_none());
        assert_eq!(again.secret("sessions"), keys.secret("sessions"));
        assert_ne!(again.secret("sessions"), keys.secret("session"));
    }

    #[test]
    fn a_name_whose_keys_are_all_dead_is_kept_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeptKeys::beside(&folder.path().join("root.pem"), &"acme".parse().unwrap());
        assert!(
            keys.unwrap()
                .next(&"x".parse().unwrap(), |_| true)
                .is_none()
        );
    }
}
