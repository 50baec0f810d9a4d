//! TLS 1.3 and nothing else, against the configured CA; and which key the server showed.

use std::sync::Arc;

use proto_spec::Digest;
use rustls::pki_types::CertificateDer;
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::endpoint::Endpoint;
use crate::error::{Error, Result};

pub(crate) type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;

/// What to speak over the connection (ALPN).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Protocols {
    /// HTTP/2, or HTTP/1.1 where the server has no better.
    Any,
    /// HTTP/1.1: a WebSocket begins with its upgrade.
    Http1,
}

/// Connects to servers that the CA vouches for.
pub(crate) struct Connector {
    any: TlsConnector,
    http1: TlsConnector,
}

impl Connector {
    pub(crate) fn new(roots: &[CertificateDer<'static>]) -> Result<Self> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store
                .add(root.clone())
                .map_err(|why| Error::Config(vec![format!("a certificate of `ca_file`: {why}")]))?;
        }
        let store = Arc::new(store);
        Ok(Self {
            any: connector(&store, &[b"h2", b"http/1.1"])?,
            http1: connector(&store, &[b"http/1.1"])?,
        })
    }

    /// Connects; returns the stream and its channel: SHA-256 of the DER SubjectPublicKeyInfo of the
    /// certificate that the server showed. Someone in the middle has another key, and the broker
    /// refuses an `attach` that names it.
    pub(crate) async fn connect(
        &self,
        endpoint: &Endpoint,
        protocols: Protocols,
    ) -> Result<(TlsStream, Digest)> {
        let broker = endpoint.to_string();
        let unreachable = |why: std::io::Error| Error::Unreachable {
            broker: broker.clone(),
            why: why.to_string(),
        };
        let tcp = TcpStream::connect(endpoint.address())
            .await
            .map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let connector = match protocols {
            Protocols::Any => &self.any,
            Protocols::Http1 => &self.http1,
        };
        let stream = connector
            .connect(endpoint.name(), tcp)
            .await
            .map_err(|why| {
                // A handshake that ends early is a broker that goes down, not one that lies.
                match why
                    .get_ref()
                    .is_some_and(|inner| inner.is::<rustls::Error>())
                {
                    true => Error::Tls {
                        broker: broker.clone(),
                        why: why.to_string(),
                    },
                    false => unreachable(why),
                }
            })?;
        let channel = channel(&stream).ok_or_else(|| Error::Tls {
            broker: broker.clone(),
            why: "the server showed no certificate that can be read".into(),
        })?;
        Ok((stream, channel))
    }
}

fn channel(stream: &TlsStream) -> Option<Digest> {
    let (_, connection) = stream.get_ref();
    let certificate = connection.peer_certificates()?.first()?;
    let key = ParsedCertificate::try_from(certificate)
        .ok()?
        .subject_public_key_info();
    Some(Digest::of(&key))
}

fn connector(roots: &Arc<RootCertStore>, alpn: &[&[u8]]) -> Result<TlsConnector> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|why| Error::Config(vec![format!("TLS 1.3: {why}")]))?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(TlsConnector::from(Arc::new(config)))
}
