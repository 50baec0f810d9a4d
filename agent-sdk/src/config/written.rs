//! What somebody wrote, in a file or in the environment, and how it is checked: all of it at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto_spec::{AgentId, PublicKey};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;

use super::{CALLS_AT_ONCE, CONNECT_TIMEOUT, Config};
use crate::clock::SystemClock;
use crate::error::{Error, Result};
use crate::keyfile::{Key, Passphrase};

/// What somebody wrote. Nothing in it is checked.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    pub(super) agent: Option<String>,
    pub(super) broker: Option<String>,
    pub(super) broker_key: Option<String>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) passphrase_file: Option<PathBuf>,
    #[serde(skip)]
    key_text: Option<zeroize::Zeroizing<String>>,
}

impl Written {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|why| Error::file(path, format!("cannot be read: {why}")))?;
        let mut written: Self = toml::from_str(&text)
            .map_err(|why| Error::file(path, format!("is not a context file: {why}")))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let Self {
            ca_file,
            key_file,
            passphrase_file,
            ..
        } = &mut written;
        for file in [ca_file, key_file, passphrase_file].into_iter().flatten() {
            *file = folder.join(&*file);
        }
        Ok(written)
    }

    pub(super) fn from_env(env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let mut written = match env("FEM_CONTEXT") {
            Some(path) => Self::read(Path::new(&path))?,
            None => Self::default(),
        };
        let over = |slot: &mut Option<String>, name| *slot = env(name).or(slot.take());
        over(&mut written.agent, "FEM_AGENT");
        over(&mut written.broker, "FEM_BROKER");
        over(&mut written.broker_key, "FEM_BROKER_KEY");
        let over = |slot: &mut Option<PathBuf>, name| {
            *slot = env(name).map(PathBuf::from).or(slot.take());
        };
        over(&mut written.ca_file, "FEM_CA_FILE");
        over(&mut written.key_file, "FEM_KEY_FILE");
        over(&mut written.passphrase_file, "FEM_KEY_PASSPHRASE_FILE");
        written.key_text = env("FEM_AGENT_PRIVATE_KEY").map(Into::into);
        Ok(written)
    }

    pub(super) fn checked(self) -> Result<Config> {
        self.check(None, None)
    }

    pub(super) fn check(self, key: Option<Key>, ca_pem: Option<Vec<u8>>) -> Result<Config> {
        let mut problems = Vec::new();
        let agent = required(
            &mut problems,
            self.agent.as_deref(),
            "agent",
            "FEM_AGENT",
            |text| {
                text.parse::<AgentId>()
                    .map_err(|why| format!("`agent` is {text:?}: {why}"))
            },
        );
        let broker = required(
            &mut problems,
            self.broker.as_deref(),
            "broker",
            "FEM_BROKER",
            str::parse,
        );
        let broker_key = required(
            &mut problems,
            self.broker_key.as_deref(),
            "broker_key",
            "FEM_BROKER_KEY",
            |text| {
                text.parse::<PublicKey>()
                    .map_err(|why| format!("`broker_key`: {why}"))
            },
        );
        let roots = note(&mut problems, roots(self.ca_file.as_deref(), ca_pem));
        let key = match key {
            Some(key) => Some(key),
            None => note(&mut problems, self.read_key()),
        };
        match (agent, broker, broker_key, roots, key) {
            (Some(agent), Some(broker), Some(broker_key), Some(roots), Some(key))
                if problems.is_empty() =>
            {
                Ok(Config {
                    agent,
                    broker,
                    broker_key,
                    keep: None,
                    roots,
                    key,
                    calls_at_once: CALLS_AT_ONCE,
                    connect_timeout: CONNECT_TIMEOUT,
                    clock: Arc::new(SystemClock),
                })
            }
            _ => Err(Error::Config(problems)),
        }
    }

    fn read_key(&self) -> Result<Key, String> {
        let passphrase = self
            .passphrase_file
            .as_deref()
            .map(Passphrase::load)
            .transpose();
        let passphrase = passphrase.map_err(|error| error.to_string())?;
        if let Some(text) = &self.key_text {
            return Key::from_text(text, passphrase.as_ref())
                .map_err(|why| format!("FEM_AGENT_PRIVATE_KEY: {why}"));
        }
        let path = self.key_file.as_deref().ok_or(
            "`key_file` is missing: name the agent's key in the context file, in FEM_KEY_FILE or in FEM_AGENT_PRIVATE_KEY",
        )?;
        match &passphrase {
            // A key file that is not encrypted may stand beside a passphrase for another.
            Some(passphrase) => Key::load_encrypted(path, passphrase),
            None => Key::load(path),
        }
        .map_err(|error| error.to_string())
    }
}

/// Fails closed: without a CA of its own an agent trusts no server, not those of the system.
fn roots(
    file: Option<&Path>,
    pem: Option<Vec<u8>>,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let (pem, from) = match (pem, file) {
        (Some(pem), _) => (pem, "the CA".to_owned()),
        (None, Some(path)) => {
            let from = path.display().to_string();
            (
                std::fs::read(path).map_err(|why| format!("{from}: cannot be read: {why}"))?,
                from,
            )
        }
        (None, None) => {
            return Err("`ca_file` is missing: name the PEM of the CA that made the broker's certificate, in the context file or in FEM_CA_FILE".into());
        }
    };
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match roots {
        Ok(roots) if !roots.is_empty() => Ok(roots),
        _ => Err(format!("{from}: holds no PEM certificate")),
    }
}

fn required<T>(
    problems: &mut Vec<String>,
    text: Option<&str>,
    name: &str,
    variable: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let missing = || format!("`{name}` is missing: set it in the context file, or {variable}");
    note(problems, text.ok_or_else(missing).and_then(read))
}

fn note<T>(problems: &mut Vec<String>, result: Result<T, String>) -> Option<T> {
    result.map_err(|problem| problems.push(problem)).ok()
}
