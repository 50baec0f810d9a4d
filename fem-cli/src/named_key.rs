//! The key that a person means, by its fingerprint or itself.

use proto_spec::PublicKey;

/// Which key is meant. Compare it with what its owner tells you over another channel, not with what came
/// together with the key.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub(crate) struct Which {
    /// The key's fingerprint, as its owner told it to you over another channel
    #[arg(long, value_name = "HEX")]
    pub(crate) fingerprint: Option<String>,
    /// The key itself: base64 or did:key
    #[arg(long)]
    pub(crate) key: Option<PublicKey>,
}

impl Which {
    /// Whether a key was named at all.
    pub(crate) fn is_named(&self) -> bool {
        self.fingerprint.is_some() || self.key.is_some()
    }

    /// Whether this key can be meant: it is the one that was named, or none was.
    pub(crate) fn may_be(&self, key: &PublicKey) -> bool {
        match (&self.fingerprint, &self.key) {
            (Some(fingerprint), _) => is_fingerprint(fingerprint, key),
            (_, Some(named)) => named == key,
            (None, None) => true,
        }
    }
}

/// Whether a text is the whole fingerprint of a key, however it was typed.
pub(crate) fn is_fingerprint(text: &str, key: &PublicKey) -> bool {
    let plain = |text: &str| text.replace(':', "").to_ascii_lowercase();
    plain(text) == plain(&key.fingerprint())
}
