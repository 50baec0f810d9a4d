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

/// Writes a key to a new file, and has it on disk when it returns.
///
/// # Errors
///
/// When the file exists, or cannot be written.
pub(crate) fn create(path: &Path, key: &SigningKey) -> anyhow::Result<()> {
    let secret = agent_sdk::Key::from_seed(key.seed());
    secret
        .save(path)
        .with_context(|| format!("the key file {}", path.display()))?;
    std::fs::File::open(path)?.sync_all()?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    std::fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(())
}
