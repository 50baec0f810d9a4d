//! Secrets, and where they are: in memory they are wiped, and nothing shows them.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::keyfile::read_private;

/// Bytes of a secret.
pub(crate) const SECRET_BYTES_MAX: usize = 16 << 10;

/// A token, or what a client proves itself with: one word that a header can say.
pub(crate) struct Secret(Zeroizing<String>);

impl Secret {
    /// # Errors
    ///
    /// Where it is empty, too long, or not all visible ASCII.
    pub(crate) fn new(text: String) -> Result<Self, String> {
        let text = Zeroizing::new(text);
        let is_word = text.bytes().all(|b| b.is_ascii_graphic());
        match is_word && (1..=SECRET_BYTES_MAX).contains(&text.len()) {
            true => Ok(Self(text)),
            false => Err("is not one word of visible ASCII".into()),
        }
    }

    /// For whoever sends or keeps it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    pub(crate) fn copy(&self) -> Self {
        Self(self.0.clone())
    }
}

/// How a secret stands in the one file that keeps it.
pub(super) mod revealed {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::Secret;

    pub(in crate::mcp::login) fn serialize<S: Serializer>(
        secret: &Option<Secret>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match secret {
            Some(secret) => serializer.serialize_some(secret.reveal()),
            None => serializer.serialize_none(),
        }
    }

    pub(in crate::mcp::login) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Secret>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        let secret = text.map(Secret::new).transpose();
        // Without the text itself, which an error would show.
        secret.map_err(|why| serde::de::Error::custom(format!("a secret {why}")))
    }
}

/// Where a secret is that somebody else looks after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A file that only its owner can read.
    File(PathBuf),
    /// A variable of this process.
    Variable(String),
}

impl Place {
    /// What stands there, at most 16 KiB of a file.
    ///
    /// # Errors
    ///
    /// Where there is nothing, or others can read the file.
    pub fn text(&self) -> Result<Zeroizing<String>, String> {
        match self {
            Self::File(path) => {
                let text = read_private(path, SECRET_BYTES_MAX as u64);
                text.map_err(|why| why.to_string())
            }
            Self::Variable(name) => {
                let text = std::env::var(name);
                let text = text.map_err(|_| format!("the variable {name:?} is not set"))?;
                Ok(Zeroizing::new(text))
            }
        }
    }

    /// The secret as it is there.
    ///
    /// # Errors
    ///
    /// As [`Self::text`], and where it is not one word that a header can say.
    pub(crate) fn read(&self) -> Result<Secret, String> {
        let text = self.text()?;
        Secret::new(text.trim().to_owned()).map_err(|why| format!("the secret in {self} {why}"))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_that_others_can_read_or_that_no_header_can_say_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let read = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            Place::File(path.clone()).read()
        };
        assert_eq!(
            read("hunter2\n", 0o600)
                .unwrap_or_else(|_| panic!())
                .reveal(),
            "hunter2"
        );
        for (text, mode) in [
            ("hunter2", 0o644),
            ("", 0o600),
            ("hunter 2", 0o600),
            ("hunter2\u{e9}", 0o600),
        ] {
            let Err(why) = read(text, mode) else {
                panic!("{text}")
            };
            assert!(!why.contains("hunter"), "{why}");
        }
        assert!(Place::Variable("FEM_NOT_SET".into()).read().is_err());
    }
}
