//! An organisation's files for the real binaries: `broker.toml` starts its broker, as often as a test
//! likes.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tempfile::TempDir;

use crate::binaries::Process;
use crate::lab::{Actor, organisation};
use crate::wire::Line;

/// A loopback address that nobody listens at, of a port that no outgoing connection is given: a broker that
/// is started anew finds it free.
///
/// # Errors
///
/// When there is none.
pub fn free() -> Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = (std::process::id() % 200) as u16 * 100;
    for _ in 0..20_000 {
        let port = 10_000 + begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return Ok(listener.local_addr()?);
        }
    }
    bail!("no free port")
}

/// An organisation's files, and its first admin.
#[derive(Debug)]
pub struct Site {
    folder: TempDir,
    /// Who may do everything.
    pub admin: Actor,
}

impl Site {
    /// A site with these lines under `[limits]`, and a small replay window.
    ///
    /// # Errors
    ///
    /// When the files cannot be written.
    pub fn new(limits: &str) -> Result<Self> {
        Self::of("acme", limits)
    }

    /// As [`Site::new`], of another organisation than `acme`.
    ///
    /// # Errors
    ///
    /// When the name is not one, or the files cannot be written.
    pub fn of(org: &str, limits: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let admin = Actor::of(&org.parse()?, "root-admin", 1)?;
        organisation(folder.path(), &admin, limits)?;
        Ok(Self { folder, admin })
    }

    /// Has its broker listen where other organisations' brokers dial: at a port that is free now.
    ///
    /// # Errors
    ///
    /// When the files cannot be written.
    pub fn reachable(self) -> Result<Self> {
        let free = free()?;
        self.reachable_by(free, free, "")
    }

    /// Has its broker listen at `listen` and say that it is reached at `endpoint`, with these lines more
    /// under `[federation]`.
    ///
    /// # Errors
    ///
    /// When the files cannot be written.
    pub fn reachable_by(
        self,
        listen: SocketAddr,
        endpoint: SocketAddr,
        federation: &str,
    ) -> Result<Self> {
        let text = std::fs::read_to_string(self.at("broker.toml"))?;
        let listens = format!("listen = \"{listen}\"");
        let text = text.replace("listen = \"127.0.0.1:0\"", &listens);
        let text = format!("{text}[federation]\nendpoints = [\"{endpoint}\"]\n{federation}\n");
        std::fs::write(self.at("broker.toml"), text)?;
        Ok(self)
    }

    /// A site whose replay window is as large as a long run needs.
    ///
    /// # Errors
    ///
    /// When the files cannot be written.
    pub fn with_nonces(limits: &str, nonces_max: usize, per_sender_max: usize) -> Result<Self> {
        Self::new(limits)?.nonces(nonces_max, per_sender_max)
    }

    /// Gives it a replay window of this size.
    ///
    /// # Errors
    ///
    /// When the files cannot be written.
    pub fn nonces(self, nonces_max: usize, per_sender_max: usize) -> Result<Self> {
        let site = self;
        let text = std::fs::read_to_string(site.at("broker.toml"))?;
        let text = text
            .replace(
                "nonces_per_sender_max = 65536",
                &format!("nonces_per_sender_max = {per_sender_max}"),
            )
            .replace("nonces_max = 65536", &format!("nonces_max = {nonces_max}"));
        std::fs::write(site.at("broker.toml"), text)?;
        Ok(site)
    }

    /// Where its files are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// One of its files.
    #[must_use]
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts its broker.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(&self) -> Result<Process> {
        Process::start(&self.at("broker.toml"))
    }

    /// A line to a broker that runs on it.
    ///
    /// # Errors
    ///
    /// When its certificate authority cannot be read.
    pub fn line(&self, broker: &Process) -> Result<Line> {
        Line::new(broker.address, &self.authority()?)
    }

    /// The authority that its broker's certificate is from.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn authority(&self) -> Result<CertificateDer<'static>> {
        Ok(CertificateDer::from_pem_file(self.at("ca.pem"))?)
    }
}
