//! The file that keeps an authorisation: its owner's alone, written as a whole or not at all, and by one at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto_spec::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::client::Client;
use super::scopes::Scopes;
use super::secret::{Secret, revealed};
use super::terms::Terms;
use super::token::Given;
use crate::keyfile::read_private;
use crate::mcp::address::Address;

/// Bytes of the file: a few tokens, each with its bound.
const FILE_BYTES_MAX: u64 = 128 << 10;
/// How long one waits for another who has the file, and how often it is looked at.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// The form of the file. One of another form is not read.
const FORM: u32 = 1;

/// What is in the file.
#[derive(Serialize, Deserialize)]
pub(crate) struct Kept {
    form: u32,
    /// What a person decided.
    pub(crate) terms: Terms,
    /// What the server wanted since, which nobody has agreed to yet.
    #[serde(default, skip_serializing_if = "Scopes::is_empty")]
    pub(crate) wanted: Scopes,
    pub(crate) authorisation: Authorisation,
}

/// An authorisation at one resource, by one server that gives such, for one client.
#[derive(Serialize, Deserialize)]
pub(crate) struct Authorisation {
    pub(crate) resource: Address,
    pub(crate) issuer: Address,
    /// Where the next token is asked for.
    pub(crate) token_endpoint: Address,
    /// With which algorithms a client may sign there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) algorithms: Option<Vec<String>>,
    pub(crate) client: Client,
    /// For what it was asked.
    pub(crate) asked: Scopes,
    /// For what it was given.
    pub(crate) granted: Scopes,
    #[serde(default, with = "revealed", skip_serializing_if = "Option::is_none")]
    pub(crate) access_token: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_ms: Option<u64>,
    #[serde(default, with = "revealed", skip_serializing_if = "Option::is_none")]
    pub(crate) refresh_token: Option<Secret>,
}

impl Authorisation {
    /// Takes a token in place of the one that was there. What it does not bring anew stays as it was.
    pub(crate) fn take(&mut self, given: Given) {
        self.access_token = Some(given.access);
        self.expires_ms = given.expires.map(Timestamp::as_ms);
        self.granted = given.scopes;
        self.refresh_token = given.refresh.or_else(|| self.refresh_token.take());
    }
}

impl Kept {
    pub(crate) fn new(terms: Terms, authorisation: Authorisation) -> Self {
        Self {
            form: FORM,
            terms,
            wanted: Scopes::default(),
            authorisation,
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// Where it is none of ours, or others can read it.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = read_private(path, FILE_BYTES_MAX).map_err(|why| why.to_string())?;
        let kept: Self = serde_json::from_str(&text).map_err(|why| {
            // Where, and never what: it may be a secret.
            format!(
                "{shown} holds no authorisation (line {}, {:?})",
                why.line(),
                why.classify()
            )
        })?;
        match kept.form {
            FORM => Ok(kept),
            other => Err(format!(
                "{shown} is of the form {other}; this program knows {FORM}"
            )),
        }
    }

    /// Writes it in place of what is there: after a crash the one or the other is there.
    ///
    /// # Errors
    ///
    /// Where it cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map(Zeroizing::new);
        let text = text.map_err(|why| why.to_string())?;
        let new = beside(path)?;
        let written = (|| {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, path)?;
            File::open(folder(path))?.sync_all()
        })();
        written.map_err(|why: std::io::Error| {
            let _ = std::fs::remove_file(&new);
            format!("{} cannot be written: {why}", path.display())
        })
    }
}

/// Who may change a file, until it is dropped.
pub(crate) struct Turn {
    #[expect(dead_code, reason = "held until the file was changed")]
    file: File,
}

impl Turn {
    /// Waits for it. Nobody else reads and then writes the file meanwhile: what a token is renewed with is often
    /// good once, and whoever shows it a second time loses the authorisation.
    ///
    /// # Errors
    ///
    /// Where there is no file, or another keeps it for a minute.
    pub(crate) async fn at(path: &Path) -> Result<Self, String> {
        let waiting = async {
            loop {
                match Self::now(path) {
                    Ok(Some(turn)) => return Ok(turn),
                    Ok(None) => tokio::time::sleep(LOCK_PAUSE).await,
                    Err(why) => return Err(format!("{}: {why}", path.display())),
                }
            }
        };
        tokio::time::timeout(LOCK_PATIENCE, waiting)
            .await
            .unwrap_or_else(|_| Err(format!("another program keeps {}", path.display())))
    }

    fn now(path: &Path) -> std::io::Result<Option<Self>> {
        let file = File::open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(why)) => return Err(why),
        }
        // Who had it before may have put another in its place.
        let (ours, there) = (file.metadata()?, std::fs::metadata(path)?);
        let is_there = (ours.dev(), ours.ino()) == (there.dev(), there.ino());
        Ok(is_there.then_some(Self { file }))
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// A name that nobody else takes, in the same folder.
fn beside(path: &Path) -> Result<PathBuf, String> {
    let name = path.file_name().ok_or("the file has no name")?;
    let noise = getrandom::u64().map_err(|why| format!("no randomness from the system: {why}"))?;
    Ok(folder(path).join(format!(".{}.{noise:016x}", name.display())))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::mcp::login::terms::{Known, Means};

    pub(crate) fn kept() -> Kept {
        let address = |text: &str| text.parse().unwrap();
        let client = Known {
            id: "fem".into(),
            proof: None,
        };
        let terms = Terms {
            server: address("https://x.example/mcp"),
            means: Means::Person {
                client: Some(client),
                document: None,
                redirect: None,
            },
            issuer: None,
            scopes: Scopes::default(),
            ca_file: None,
        };
        let authorisation = Authorisation {
            resource: address("https://x.example/mcp"),
            issuer: address("https://a.example"),
            token_endpoint: address("https://a.example/token"),
            algorithms: None,
            client: Client {
                id: Some("fem".into()),
                showing: crate::mcp::login::client::Showing::Name,
                secret: None,
            },
            asked: "a b".parse().unwrap(),
            granted: "a".parse().unwrap(),
            access_token: Secret::new("t1".into()).ok(),
            expires_ms: Some(60_000),
            refresh_token: Secret::new("r1".into()).ok(),
        };
        Kept::new(terms, authorisation)
    }

    #[test]
    fn what_is_kept_is_its_owners_alone_and_is_there_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.auth");
        kept().write(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        let mut read = Kept::read(&path).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(read.terms, kept().terms);
        let held = |kept: &Kept| kept.authorisation.access_token.as_ref().unwrap().copy();
        assert!(held(&read).is(&held(&kept())));
        read.authorisation.access_token = Secret::new("t2".into()).ok();
        read.write(&path).unwrap();
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing lies beside it"
        );
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(Kept::read(&path).is_err());
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_refused_without_showing_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.auth");
        kept().write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for bad in [
            "hunter2".to_owned(),
            text.replace("\"t1\"", "\"hunter 2\""),
            text.replace("\"t1\"", "hunter2"),
            text.replace("\"form\": 1", "\"form\": 2"),
        ] {
            std::fs::write(&path, bad).unwrap();
            let Err(why) = Kept::read(&path) else {
                panic!()
            };
            assert!(!why.contains("hunter"), "{why}");
        }
    }

    #[test]
    fn a_token_brings_what_it_brings_and_leaves_the_rest() {
        let mut authorisation = kept().authorisation;
        authorisation.take(Given {
            access: Secret::new("t2".into()).unwrap_or_else(|why| panic!("{why}")),
            expires: None,
            refresh: None,
            scopes: "b".parse().unwrap(),
        });
        assert_eq!(authorisation.access_token.unwrap().reveal(), "t2");
        assert_eq!(authorisation.refresh_token.unwrap().reveal(), "r1");
        assert_eq!(
            (authorisation.expires_ms, authorisation.granted.to_string()),
            (None, "b".into())
        );
    }

    #[tokio::test]
    async fn a_file_is_changed_by_one_at_a_time_also_when_another_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.auth");
        assert!(Turn::at(&path).await.is_err(), "there is none");
        kept().write(&path).unwrap();
        let first = Turn::at(&path).await.unwrap_or_else(|why| panic!("{why}"));
        assert!(Turn::now(&path).unwrap().is_none());
        let second = tokio::spawn({
            let path = path.clone();
            async move { Turn::at(&path).await.map(|_| Kept::read(&path)) }
        });
        let mut changed = kept();
        changed.wanted = "c".parse().unwrap();
        changed.write(&path).unwrap();
        drop(first);
        let Ok(Ok(read)) = second.await.unwrap() else {
            panic!()
        };
        assert_eq!(read.wanted.to_string(), "c");
    }
}
