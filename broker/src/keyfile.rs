//! The broker's key files: PKCS#8 PEM, readable by its user only.

use std::path::Path;

use anyhow::Context as _;
use proto_spec::SigningKey;

/// Reads a key.
///
/// # Errors
///
/// When the file cannot be read, others can read it, or it is not an Ed25519 key in PKCS#8 PEM.
pub(crate) fn load(path: &Path) -> anyhow::Result<SigningKey> {
    let key =
        agent_sdk::Key::load(path).with_context(|| format!("the key file {}", path.display()))?;
    Ok(SigningKey::from_seed(key.signing().seed()))
}
