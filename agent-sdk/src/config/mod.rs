//! What an agent runs with: who it is, its key, and the one broker that it believes.
//!
//! It comes from a context file, the environment, or a [`Builder`]; all problems come out at once.
//! Holding a [`Config`] means that every value in it was checked. The broker's key and its CA come
//! from here and never from the network, save for a key that this one names as its successor.

mod builder;
mod written;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto_spec::{AgentId, PublicKey};
use rustls_pki_types::CertificateDer;

use crate::broker_keys::{Keep, NewBrokerKey};
use crate::clock::Clock;
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::keyfile::Key;
pub use builder::Builder;
use written::Written;

/// Calls that one agent serves at the same time unless configured otherwise.
pub const CALLS_AT_ONCE: usize = 256;
/// How long a connection to the broker may take, TLS and attaching included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What an agent runs with.
pub struct Config {
    pub(crate) agent: AgentId,
    pub(crate) broker: Endpoint,
    pub(crate) broker_key: PublicKey,
    pub(crate) keep: Option<Keep>,
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
    /// [`crate::Error::File`] where it cannot be read, [`crate::Error::Config`] with every problem in it.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Written::read(path.as_ref())?.checked()
    }

    /// Reads the context file in `FEM_CONTEXT`, if it is set; then `FEM_AGENT`, `FEM_BROKER`,
    /// `FEM_BROKER_KEY`, `FEM_CA_FILE`, `FEM_KEY_FILE`, `FEM_AGENT_PRIVATE_KEY` and
    /// `FEM_KEY_PASSPHRASE_FILE`, each in place of what the file says.
    ///
    /// # Errors
    ///
    /// [`crate::Error::File`] and [`crate::Error::Config`], as for [`Config::from_file`].
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

    /// Has `keep` called when the broker goes on under another key that follows from the configured one:
    /// so that it can be kept for the next start, in place of the old `broker_key`. An agent that starts
    /// with the old one is led to the new one until an admin retires the old; after that it has to be
    /// configured by hand ([`crate::Error::NotTheBroker`]).
    ///
    /// Called once for each new key, on the task that reads from the broker: write a file, and return.
    /// Without it the change stands in the log only.
    #[must_use]
    pub fn on_broker_key(mut self, keep: impl Fn(NewBrokerKey) + Send + Sync + 'static) -> Self {
        self.keep = Some(Arc::new(keep));
        self
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
