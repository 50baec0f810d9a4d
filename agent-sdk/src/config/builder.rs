//! A configuration made in code.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Config;
use super::written::Written;
use crate::clock::Clock;
use crate::error::Result;
use crate::keyfile::Key;

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

    /// How many calls the agent serves at once; further ones are told `BUSY`. 256 when absent. One caller's
    /// are never more than are left for others: half of them, if nobody else calls.
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
    /// [`crate::Error::Config`] with every problem, [`crate::Error::File`] for a key file that is refused.
    pub fn build(self) -> Result<Config> {
        let mut config = self.written.check(self.key, self.ca_pem)?;
        config.calls_at_once = self.calls_at_once.unwrap_or(config.calls_at_once).max(1);
        config.connect_timeout = self.connect_timeout.unwrap_or(config.connect_timeout);
        config.clock = self.clock.unwrap_or(config.clock);
        Ok(config)
    }
}
