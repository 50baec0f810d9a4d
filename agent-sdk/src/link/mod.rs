//! The way to a broker: TLS 1.3, and over it HTTP for single envelopes and WebSocket for sessions.
//!
//! Nothing here knows what an envelope means. [`Link`] opens connections; [`http`] posts; [`ws`]
//! carries messages both ways; [`backoff`] says how long to wait before the next attempt.

pub(crate) mod backoff;
pub(crate) mod http;
mod tls;
pub(crate) mod ws;

use std::time::Duration;

use proto_spec::Digest;
use rustls_pki_types::CertificateDer;

use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
pub(crate) use tls::Protocols;
use tls::TlsStream;

/// Where one broker is, and whom to believe that it is there.
pub(crate) struct Link {
    endpoint: Endpoint,
    timeout: Duration,
    tls: tls::Connector,
}

impl Link {
    /// Prepares to connect; opens nothing yet.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where the CA's certificates cannot be used.
    pub(crate) fn new(
        endpoint: Endpoint,
        roots: &[CertificateDer<'static>],
        timeout: Duration,
    ) -> Result<Self> {
        Ok(Self {
            endpoint,
            timeout,
            tls: tls::Connector::new(roots)?,
        })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A TLS connection, and the channel: the digest of the key that the server showed.
    pub(crate) async fn connect(&self, protocols: Protocols) -> Result<(TlsStream, Digest)> {
        let connecting = self.tls.connect(&self.endpoint, protocols);
        match tokio::time::timeout(self.timeout, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(self.unreachable(format!("not within {} ms", self.timeout.as_millis()))),
        }
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> Error {
        Error::Unreachable {
            broker: self.endpoint.to_string(),
            why: why.to_string(),
        }
    }
}
