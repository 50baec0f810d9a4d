//! The way to an HTTP server: TLS 1.3, or plain to this machine. Nothing is followed to anywhere else.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::net::TcpStream;

use super::address::Address;
use crate::error::Error;
use crate::link::{Link, Protocols};

/// How long connecting may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// A connection on which requests are made.
pub(crate) type Sender = SendRequest<Full<Bytes>>;

/// Whom to believe who a server is; this system's authorities where there are none.
pub type Roots = Option<Vec<CertificateDer<'static>>>;

/// How a server is reached.
pub(crate) enum Way {
    /// By TLS 1.3.
    Tls(Box<Link>),
    /// On this machine.
    Plain(IpAddr, u16),
}

impl Way {
    /// The way to `address`.
    ///
    /// # Errors
    ///
    /// Where there are no roots that can be used.
    pub(crate) fn to(address: &Address, roots: &Roots) -> Result<Self, String> {
        if let Some(here) = address.here() {
            return Ok(Self::Plain(here, address.origin().port()));
        }
        let endpoint = format!("https://{}", address.authority()).parse()?;
        let link = match roots {
            Some(roots) => Link::new(endpoint, roots, CONNECT_PATIENCE),
            None => Link::new(endpoint, &system_roots()?, CONNECT_PATIENCE),
        };
        Ok(Self::Tls(Box::new(link.map_err(|why| why.to_string())?)))
    }

    /// A new connection.
    ///
    /// # Errors
    ///
    /// Why there is none, within ten seconds.
    pub(crate) async fn dial(&self) -> Result<Sender, String> {
        tokio::time::timeout(CONNECT_PATIENCE, self.connect())
            .await
            .unwrap_or_else(|_| Err("it cannot be reached in time".into()))
    }

    async fn connect(&self) -> Result<Sender, String> {
        match self {
            Self::Tls(link) => {
                let (stream, _) =
                    link.connect(Protocols::Http1)
                        .await
                        .map_err(|why| match why {
                            Error::Unreachable { why, .. } | Error::Tls { why, .. } => why,
                            other => other.to_string(),
                        })?;
                speak(TokioIo::new(stream)).await
            }
            Self::Plain(address, port) => {
                let stream = TcpStream::connect((*address, *port)).await;
                let stream = stream.map_err(|why| format!("it cannot be reached: {why}"))?;
                stream.set_nodelay(true).map_err(|why| why.to_string())?;
                speak(TokioIo::new(stream)).await
            }
        }
    }
}

async fn speak<I>(io: I) -> Result<Sender, String>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(io).await.map_err(|why| why.to_string())?;
    // Ends by itself when its sender is dropped or the server closes.
    tokio::spawn(async move {
        if let Err(why) = connection.await {
            tracing::debug!(%why, "a connection to an MCP server ended");
        }
    });
    Ok(sender)
}

/// Whom a file (PEM) says to believe; this system's authorities where there is no file.
///
/// # Errors
///
/// Where it cannot be read, or holds no certificate.
pub fn roots(file: Option<&Path>) -> Result<Roots, String> {
    let Some(file) = file else { return Ok(None) };
    let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
    let all = CertificateDer::pem_file_iter(file).map_err(|why| wrong(&why))?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(|why| wrong(&why))?;
    match all.is_empty() {
        true => Err(wrong(&"holds no certificate")),
        false => Ok(Some(all)),
    }
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>, String> {
    let loaded = rustls_native_certs::load_native_certs();
    // Some of a system's may be none that rustls understands.
    let usable =
        |root: &CertificateDer<'static>| rustls::RootCertStore::empty().add(root.clone()).is_ok();
    let roots: Vec<_> = loaded.certs.into_iter().filter(usable).collect();
    match roots.is_empty() {
        true => Err("this system has no certificate authorities: name one with --ca".into()),
        false => Ok(roots),
    }
}
