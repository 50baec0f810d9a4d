//! The certificate that new connections see. It is read again when its files change; connections that
//! are open stay, each bound to the certificate that it was made under.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use proto_spec::Digest;
use rustls::{ClientConfig, ServerConfig};

use super::read;
use crate::locks::lock;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What a new connection is made with.
#[derive(Debug)]
pub struct Pair {
    /// The server's side of TLS.
    pub tls: Arc<ServerConfig>,
    /// Our side towards peers.
    pub client: Arc<ClientConfig>,
    /// The SHA-256 of the certificate's public key.
    pub channel: Digest,
}

/// A certificate and its key, from their files.
#[derive(Debug)]
pub struct Certificates {
    certificate: PathBuf,
    key: PathBuf,
    current: ArcSwap<Pair>,
    looked: Mutex<Looked>,
}

#[derive(Debug)]
struct Looked {
    /// Of the files that were last tried, whether they were good or not.
    tried: Stamps,
    /// Of the files at the last look.
    last: Stamps,
}

/// What tells one version of both files from another.
type Stamps = [Option<(u64, i64, i64, u64)>; 2];

impl Certificates {
    /// Reads both files.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, is not PEM, or the two do not belong together.
    pub fn load(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let stamps = [stamp(certificate), stamp(key)];
        Ok(Self {
            current: ArcSwap::from_pointee(read(certificate, key)?),
            certificate: certificate.into(),
            key: key.into(),
            looked: Mutex::new(Looked {
                tried: stamps,
                last: stamps,
            }),
        })
    }

    /// What a new connection is made with.
    #[must_use]
    pub fn current(&self) -> Arc<Pair> {
        self.current.load_full()
    }

    /// Reads the files again. A pair that is no good leaves the one before in force, and one error in
    /// the log.
    pub fn reload(&self) {
        let tried = self.stamps();
        lock(&self.looked).tried = tried;
        match read(&self.certificate, &self.key) {
            Ok(pair) => {
                tracing::info!(channel = %pair.channel, "new connections see the certificate that was read");
                self.current.store(Arc::new(pair));
            }
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "the certificate was not taken: the one before stays in force"
            ),
        }
    }

    /// Reads the files again when they changed, and not while they do: the certificate is written
    /// before its key, or after it.
    fn look(&self) {
        let now = self.stamps();
        let settled = {
            let mut looked = lock(&self.looked);
            let last = std::mem::replace(&mut looked.last, now);
            last == now && looked.tried != now
        };
        if settled {
            self.reload();
        }
    }

    fn stamps(&self) -> Stamps {
        [stamp(&self.certificate), stamp(&self.key)]
    }

    /// Looks at the files until it is dropped.
    pub async fn watch(self: Arc<Self>) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        loop {
            tick.tick().await;
            let certificates = Arc::clone(&self);
            // A file system may take its time.
            let _ = tokio::task::spawn_blocking(move || certificates.look()).await;
        }
    }
}

fn stamp(path: &Path) -> Option<(u64, i64, i64, u64)> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["localhost".into()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        std::fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    }

    fn load(folder: &Path) -> Certificates {
        Certificates::load(&folder.join("cert.pem"), &folder.join("key.pem")).unwrap()
    }

    #[test]
    fn a_new_pair_is_taken_when_it_has_stood_still_for_one_look() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path());
        let certificates = load(folder.path());
        let first = certificates.current().channel;
        certificates.look();
        write(folder.path());
        certificates.look();
        assert_eq!(certificates.current().channel, first);
        certificates.look();
        assert_ne!(certificates.current().channel, first);
    }

    #[test]
    fn a_pair_that_does_not_fit_is_tried_once_and_leaves_the_old_in_force() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(folder.path());
        write(other.path());
        let certificates = load(folder.path());
        let first = certificates.current();
        std::fs::copy(other.path().join("key.pem"), folder.path().join("key.pem")).unwrap();
        certificates.look();
        certificates.look();
        assert!(Arc::ptr_eq(&certificates.current(), &first));
        let looked = certificates.looked.lock().unwrap();
        assert_eq!(looked.tried, looked.last, "no look tries it again");
        drop(looked);
        std::fs::copy(
            other.path().join("cert.pem"),
            folder.path().join("cert.pem"),
        )
        .unwrap();
        certificates.look();
        certificates.look();
        assert_ne!(certificates.current().channel, first.channel);
    }
}
