//! Keys that are kept in great numbers: by their bytes, which is all that comparing takes.

use std::sync::OnceLock;

use proto_spec::PublicKey;

use super::snapshot::{Sink, Source, Stored, stored};

/// The bytes of a public key, in a sixth of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId {
    bytes: [u8; 32],
}
stored!(KeyId { bytes });

impl KeyId {
    /// The key itself.
    #[must_use]
    #[expect(
        clippy::expect_used,
        reason = "it is made of a key, or read from what this broker signed"
    )]
    pub fn key(&self) -> PublicKey {
        PublicKey::from_bytes(&self.bytes).expect("what was made of a key gives it back")
    }
}

impl From<&PublicKey> for KeyId {
    fn from(key: &PublicKey) -> Self {
        Self {
            bytes: *key.as_bytes(),
        }
    }
}

impl PartialEq<PublicKey> for KeyId {
    fn eq(&self, key: &PublicKey) -> bool {
        self.bytes == *key.as_bytes()
    }
}

/// A key that sleeps until something is verified with it: a start computes no points.
#[derive(Debug, Clone)]
pub struct Sleeping {
    id: KeyId,
    awake: OnceLock<Box<PublicKey>>,
}

impl Sleeping {
    /// Its bytes.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The key, awake from here on.
    #[must_use]
    pub fn key(&self) -> PublicKey {
        **self.awake.get_or_init(|| Box::new(self.id.key()))
    }
}

impl From<KeyId> for Sleeping {
    fn from(id: KeyId) -> Self {
        let awake = OnceLock::new();
        Self { id, awake }
    }
}

impl From<&PublicKey> for Sleeping {
    fn from(key: &PublicKey) -> Self {
        KeyId::from(key).into()
    }
}

impl Stored for Sleeping {
    fn put(&self, to: &mut Sink) {
        self.id.put(to);
    }

    fn take(from: &mut Source) -> std::io::Result<Self> {
        KeyId::take(from).map(Self::from)
    }
}

impl PartialEq<PublicKey> for Sleeping {
    fn eq(&self, key: &PublicKey) -> bool {
        self.id == *key
    }
}
