//! What an agent runs with: who it is, its key, and the one broker that it believes.
//!
//! It comes from a context file, the environment, or a [`Builder`]; all problems come out at once.
//! Holding a [`Config`] means that every value in it was checked. The broker's key and its CA come
//! from here and never from the network.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto_spec::{AgentId, PublicKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Deserialize;

use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};
use crate::keyfile::{Key, Passphrase};

/// Calls that one agent serves at the same time unless configured otherwise.
pub const CALLS_AT_ONCE: usize = 256;
/// How long a connection to the broker may take, TLS and attaching included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What an agent runs with.
pub struct Config {
    pub(crate) agent: AgentId,
    pub(crate) broker: Endpoint,
    pub(crate) broker_key: PublicKey,
    pub(crate) roots: Vec<CertificateDer<'static>>,
    pub(crate) key: Key,
    pub(crate) calls_at_once: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Config {
    /// Starts from nothing.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Reads a context file, as `fem-cli` writes it. Paths in it are relative to the file.
    ///
    /// ```toml
    /// agent = "hello@acme"
    /// broker = "https://127.0.0.1:7443"
    /// broker_key = "…"                     # base64; from your admin, not from the network
    /// ca_file = "tls/ca.pem"
    /// key_file = "keys/hello.pem"
    /// # passphrase_file = "keys/hello.pass"  # where the key is encrypted
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::File`] where it cannot be read, [`Error::Config`] with every problem in it.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Written::read(path.as_ref())?.checked()
    }

    /// Reads the context file in `FEM_CONTEXT`, if it is set; then `FEM_AGENT`, `FEM_BROKER`,
    /// `FEM_BROKER_KEY`, `FEM_CA_FILE`, `FEM_KEY_FILE`, `FEM_AGENT_PRIVATE_KEY` and
    /// `FEM_KEY_PASSPHRASE_FILE`, each in place of what the file says.
    ///
    /// # Errors
    ///
    /// [`Error::File`] and [`Error::Config`], as for [`Config::from_file`].
    pub fn from_env() -> Result<Self> {
        Written::from_env(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))?
            .checked()
    }

    /// Who the agent is.
    #[must_use]
    pub fn agent(&self) -> &AgentId {
        &self.agent
    }

    /// Its public key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    /// Its key, to sign tokens and envelopes of one's own with.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Config({} at {})", self.agent, self.broker)
    }
}

/// Where a broker listens: always TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

impl Endpoint {
    /// For [`tokio::net::TcpStream::connect`].
    pub(crate) fn address(&self) -> (&str, u16) {
        (
            self.host.trim_start_matches('[').trim_end_matches(']'),
            self.port,
        )
    }

    /// As it stands in a URI and in `Host`.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// What the server's certificate has to be for.
    pub(crate) fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }
}

impl std::str::FromStr for Endpoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("`broker` is {text:?}, and has to look like https://127.0.0.1:7443");
        let uri: http::Uri = text.parse().map_err(|_| shape())?;
        let bare = uri.path() == "/" && uri.query().is_none();
        match (uri.scheme_str(), uri.host(), uri.authority()) {
            (Some("https"), Some(host), Some(authority))
                if bare && !authority.as_str().contains('@') =>
            {
                let inner = host
                    .trim_start_matches('[')
                    .trim_end_matches(']')
                    .to_owned();
                let name = ServerName::try_from(inner).map_err(|_| shape())?;
                Ok(Self {
                    host: host.to_owned(),
                    port: uri.port_u16().unwrap_or(443),
                    name,
                })
            }
            _ => Err(shape()),
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "https://{}:{}", self.host, self.port)
    }
}

/// Builds a [`Config`] in code.
#[derive(Default)]
pub struct Builder {
    written: Written,
    ca_pem: Option<Vec<u8>>,
    key: Option<Key>,
    calls_at_once: Option<usize>,
    connect_timeout: Option<Duration>,
    clock: Option<Arc<dyn Clock>>,
}

impl Builder {
    /// `name@org`.
    #[must_use]
    pub fn agent(mut self, agent: impl Into<String>) -> Self {
        self.written.agent = Some(agent.into());
        self
    }

    /// `https://host:port`.
    #[must_use]
    pub fn broker(mut self, url: impl Into<String>) -> Self {
        self.written.broker = Some(url.into());
        self
    }

    /// The broker's public key, base64 or `did:key`.
    #[must_use]
    pub fn broker_key(mut self, key: impl Into<String>) -> Self {
        self.written.broker_key = Some(key.into());
        self
    }

    /// The CA that vouches for the broker's TLS certificate, as a PEM file.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.written.ca_file = Some(path.into());
        self
    }

    /// The same CA, as the text of a PEM.
    #[must_use]
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca_pem = Some(pem.into());
        self
    }

    /// The agent's key file.
    #[must_use]
    pub fn key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.written.key_file = Some(path.into());
        self
    }

    /// The passphrase file of an encrypted key file.
    #[must_use]
    pub fn passphrase_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.written.passphrase_file = Some(path.into());
        self
    }

    /// The agent's key itself.
    #[must_use]
    pub fn key(mut self, key: Key) -> Self {
        self.key = Some(key);
        self
    }

    /// How many calls the agent serves at once; further ones are told `BUSY`. 256 when absent.
    #[must_use]
    pub fn calls_at_once(mut self, calls: usize) -> Self {
        self.calls_at_once = Some(calls);
        self
    }

    /// How long connecting and attaching may take. 10 s when absent.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// What to take for the time; the machine's clock when absent.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] with every problem, [`Error::File`] for a key file that is refused.
    pub fn build(self) -> Result<Config> {
        let mut config = self.written.check(self.key, self.ca_pem)?;
        config.calls_at_once = self.calls_at_once.unwrap_or(config.calls_at_once).max(1);
        config.connect_timeout = self.connect_timeout.unwrap_or(config.connect_timeout);
        config.clock = self.clock.unwrap_or(config.clock);
        Ok(config)
    }
}

/// What somebody wrote. Nothing in it is checked.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    agent: Option<String>,
    broker: Option<String>,
    broker_key: Option<String>,
    ca_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
    #[serde(skip)]
    key_text: Option<zeroize::Zeroizing<String>>,
}

impl Written {
    fn read(path: &Path) -> Result<Self> {
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

    fn from_env(env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
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

    fn checked(self) -> Result<Config> {
        self.check(None, None)
    }

    fn check(self, key: Option<Key>, ca_pem: Option<Vec<u8>>) -> Result<Config> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const CA: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    fn key() -> String {
        Key::from_seed(&[1; 32]).public().to_string()
    }

    #[test]
    fn every_problem_comes_out_at_once() {
        let built = Config::builder()
            .agent("Nobody")
            .broker("http://x")
            .broker_key("x")
            .build();
        let why = built.unwrap_err().to_string();
        for name in [
            "`agent`",
            "`broker`",
            "`broker_key`",
            "`ca_file`",
            "`key_file`",
        ] {
            assert!(why.contains(name), "{name} is not in: {why}");
        }
        let why = Config::builder().build().unwrap_err().to_string();
        for name in [
            "FEM_AGENT",
            "FEM_BROKER",
            "FEM_BROKER_KEY",
            "FEM_CA_FILE",
            "FEM_KEY_FILE",
        ] {
            assert!(why.contains(name), "{name} is not in: {why}");
        }
    }

    #[test]
    fn a_broker_is_reached_by_tls_or_not_at_all() {
        for bad in [
            "http://a:1",
            "a:1",
            "https://a:1/x",
            "https://u@a:1",
            "https://",
            "ws://a",
            "https://a?b",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
        for (good, address) in [
            ("https://127.0.0.1:7443", ("127.0.0.1", 7443)),
            ("https://[::1]:7443/", ("::1", 7443)),
            ("https://broker.acme.example", ("broker.acme.example", 443)),
        ] {
            assert_eq!(good.parse::<Endpoint>().unwrap().address(), address);
        }
    }

    #[test]
    fn paths_in_a_context_file_are_relative_to_it_and_the_environment_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), CA).unwrap();
        Key::from_seed(&[1; 32])
            .save(folder.path().join("key.pem"))
            .unwrap();
        let path = folder.path().join("context.toml");
        let text = format!(
            "agent = \"fs@acme\"\nbroker = \"https://127.0.0.1:7443\"\nbroker_key = \"{}\"\nca_file = \"ca.pem\"\nkey_file = \"key.pem\"\n",
            key()
        );
        std::fs::write(&path, text).unwrap();
        let config = Config::from_file(&path).unwrap();
        assert_eq!(config.agent().to_string(), "fs@acme");
        assert_eq!(config.public_key().to_string(), key());

        let context = path.display().to_string();
        let seed = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
        let env = |name: &str| match name {
            "FEM_CONTEXT" => Some(context.clone()),
            "FEM_AGENT" => Some("other@acme".into()),
            "FEM_AGENT_PRIVATE_KEY" => Some(seed.into()),
            _ => None,
        };
        let config = Written::from_env(&env).unwrap().checked().unwrap();
        assert_eq!(config.agent().to_string(), "other@acme");
        assert_eq!(config.public_key(), Key::from_seed(&[2; 32]).public());
    }

    #[test]
    fn an_unknown_line_of_a_context_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("context.toml");
        std::fs::write(&path, "agnet = \"fs@acme\"\n").unwrap();
        let why = Config::from_file(&path).unwrap_err().to_string();
        assert!(why.contains("agnet"), "{why}");
    }

    #[test]
    fn a_configuration_does_not_show_its_key() {
        let config = Config::builder()
            .agent("fs@acme")
            .broker("https://127.0.0.1:7443")
            .broker_key(key())
            .ca_pem(CA)
            .key(Key::from_seed(&[1; 32]))
            .build()
            .unwrap();
        assert_eq!(
            format!("{config:?}"),
            "Config(fs@acme at https://127.0.0.1:7443)"
        );
    }
}
