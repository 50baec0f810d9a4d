//! What root keys and the broker's own keys have in common: the steps of their life, and their files.

use std::path::{Path, PathBuf};

use proto_spec::message::KeyAct;
use proto_spec::{PublicKey, Refusal, SigningKey};

use super::admin::read;
use super::tokens::entropy;
use crate::state::keys::{Keys, Stage};

/// What a key is for: in messages, and in the name of its file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// Tokens are rooted in it.
    Root,
    /// The broker signs what it says with it.
    Broker,
}

impl Purpose {
    fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Broker => "broker",
        }
    }

    /// The file of a key that this broker made, beside the configured one.
    fn file_of(self, configured: &Path, key: &PublicKey) -> PathBuf {
        let fingerprint = key.fingerprint().replace(':', "");
        configured.with_file_name(format!("{}-{fingerprint}.pem", self.as_str()))
    }

    /// The key `key`, from the configured file or from the one that this broker made.
    ///
    /// # Errors
    ///
    /// When neither holds it.
    pub(crate) fn load(self, configured: &Path, key: &PublicKey) -> anyhow::Result<SigningKey> {
        let made = self.file_of(configured, key);
        for path in [configured, &made] {
            if let Ok(found) = crate::keyfile::load(path)
                && found.public() == *key
            {
                return Ok(found);
            }
        }
        anyhow::bail!(
            "the {} key {} is neither in {} nor in {}",
            self.as_str(),
            key.fingerprint(),
            configured.display(),
            made.display()
        )
    }

    /// Makes a key, in a file beside the configured one, unless one is prepared already.
    pub(super) fn prepare(self, keys: &Keys, configured: &Path) -> Result<SigningKey, Refusal> {
        if keys.in_stage(Stage::Prepared).is_some() {
            return Err(self.conflict("is prepared already"));
        }
        let next = SigningKey::from_seed(&entropy()?);
        let path = self.file_of(configured, &next.public());
        crate::keyfile::create(&path, &next).map_err(|error| {
            tracing::error!(%error, path = %path.display(), "the next key was not written");
            Refusal::StorageFull("the key file cannot be written".into())
        })?;
        Ok(next)
    }

    /// The prepared key that `body` names, whose file is there.
    pub(super) fn to_activate(
        self,
        keys: &Keys,
        configured: &Path,
        body: &str,
    ) -> Result<PublicKey, Refusal> {
        let KeyAct { key } = read(body)?;
        match keys.stage_of(&key) {
            Some(Stage::Prepared) => {}
            Some(_) => return Err(self.conflict("was activated before")),
            None => return Err(self.not_found()),
        }
        self.load(configured, &key)
            .map_err(|why| Refusal::Conflict(why.to_string()))?;
        Ok(key)
    }

    /// The key that `body` names, which does not sign.
    pub(super) fn to_retire(self, keys: &Keys, body: &str) -> Result<PublicKey, Refusal> {
        let KeyAct { key } = read(body)?;
        match keys.stage_of(&key) {
            Some(Stage::Active) => Err(self.conflict("is active: activate another first")),
            Some(_) => Ok(key),
            None => Err(self.not_found()),
        }
    }

    fn conflict(self, why: &str) -> Refusal {
        Refusal::Conflict(format!("a {} key {why}", self.as_str()))
    }

    fn not_found(self) -> Refusal {
        Refusal::NotFound(format!("{} key", self.as_str()))
    }
}
