//! What the doctors look at from outside: one TLS 1.3 connection and `/.well-known/fem`. Nothing that is
//! learnt here is trusted by itself; it is compared with what the context says.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto_spec::message::WellKnown;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::certificate;
use crate::failure::Outcome;
use crate::files::{self, Readers};

/// How long the broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read at most.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// What one connection showed.
pub(crate) struct Seen {
    /// `TLSv1_3`.
    pub(crate) tls: String,
    /// `X25519MLKEM768`.
    pub(crate) exchange: String,
    /// The server's own certificate.
    pub(crate) certificate: Vec<u8>,
    /// What the broker says about itself.
    pub(crate) well_known: Result<WellKnown, String>,
}

/// At which step a connection failed, and why.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The address makes no sense.
    Address(String),
    /// Nobody listens there.
    Reach(String),
    /// Whoever listens is not believed, or speaks no TLS 1.3.
    Tls(String),
}

/// Whom a connection is made with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trust<'a> {
    /// Whoever this file's authority, and no other, vouches for.
    Authority(&'a Path),
    /// Anybody, as a broker connects to another's: what counts is said and compared afterwards.
    AnyKey,
}

/// Connects to `url`.
pub(crate) async fn look(url: &str, trust: Trust<'_>) -> Result<Seen, Trouble> {
    let (host, port) = address(url)
        .ok_or_else(|| Trouble::Address(format!("{url:?} is not https://host:port")))?;
    let name = ServerName::try_from(host.clone()).map_err(|e| Trouble::Address(e.to_string()))?;
    let config = match trust {
        Trust::Authority(ca_file) => trusting(ca_file).map(Arc::new),
        Trust::AnyKey => as_a_broker().map_err(|failure| failure.to_string()),
    };
    let config = config.map_err(Trouble::Tls)?;
    let connect = TcpStream::connect((host.as_str(), port));
    let tcp = match tokio::time::timeout(PATIENCE, connect).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(Trouble::Reach(error.to_string())),
        Err(_) => return Err(Trouble::Reach("no answer".into())),
    };
    let connector = tokio_rustls::TlsConnector::from(config);
    let mut tls = match tokio::time::timeout(PATIENCE, connector.connect(name, tcp)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return Err(Trouble::Tls(error.to_string())),
        Err(_) => return Err(Trouble::Tls("the handshake does not end".into())),
    };
    let (_, state) = tls.get_ref();
    let seen = |text: Option<String>| text.unwrap_or_else(|| "unknown".into());
    let version = seen(
        state
            .protocol_version()
            .map(|version| format!("{version:?}")),
    );
    let exchange = seen(
        state
            .negotiated_key_exchange_group()
            .map(|group| format!("{:?}", group.name())),
    );
    let certificate = state
        .peer_certificates()
        .and_then(<[_]>::first)
        .map(|der| der.to_vec());
    let asking = well_known(&mut tls, &host, port);
    let well_known = match tokio::time::timeout(PATIENCE, asking).await {
        Ok(answer) => answer.map_err(|failure| failure.to_string()),
        Err(_) => Err("no answer to GET /.well-known/fem".into()),
    };
    Ok(Seen {
        tls: version,
        exchange,
        certificate: certificate.unwrap_or_default(),
        well_known,
    })
}

/// Host and port of `https://host:port`; brackets around an IPv6 address fall away.
fn address(url: &str) -> Option<(String, u16)> {
    let rest = url.strip_prefix("https://")?.trim_end_matches('/');
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (rest, 443),
    };
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    (!host.is_empty() && !host.contains('/')).then(|| (host.to_owned(), port))
}

fn trusting(ca_file: &Path) -> Result<rustls::ClientConfig, String> {
    let pem = std::fs::read(ca_file).map_err(|e| format!("{}: {e}", ca_file.display()))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| format!("{}: {e}", ca_file.display()))?;
        roots
            .add(certificate)
            .map_err(|e| format!("{}: {e}", ca_file.display()))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// A broker's own side of a connection to another's, with a certificate that nobody knows: enough to see
/// which key is shown.
fn as_a_broker() -> Outcome<Arc<rustls::ClientConfig>> {
    let made = certificate::development("doctor", &["localhost".into()], jiff::Timestamp::now())?;
    let folder = tempfile::tempdir()?;
    let (chain, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    files::create(&chain, made.certificate.as_bytes(), Readers::All)?;
    files::create(&key, made.key.as_bytes(), Readers::Owner)?;
    Ok(broker::tls::read(&chain, &key)?.client)
}

async fn well_known(
    tls: &mut tokio_rustls::client::TlsStream<TcpStream>,
    host: &str,
    port: u16,
) -> Outcome<WellKnown> {
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let request = format!(
        "GET /.well-known/fem HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    );
    tls.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // A server that ends without a TLS goodbye has answered all the same.
    let _ = tls.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await;
    Ok(body(&answer)?)
}

/// The JSON object in an HTTP/1.1 answer that ends with the connection.
fn body(answer: &[u8]) -> Result<WellKnown, serde_json::Error> {
    let start = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .map_or(answer.len(), |at| at + 4);
    serde_json::from_slice(&answer[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_brokers_address_is_a_host_and_a_port() {
        for (url, host, port) in [
            ("https://127.0.0.1:7443", "127.0.0.1", 7443),
            ("https://broker.example/", "broker.example", 443),
            ("https://[2001:db8::1]:7443", "2001:db8::1", 7443),
            ("https://[::1]", "::1", 443),
        ] {
            assert_eq!(address(url), Some((host.to_owned(), port)), "{url}");
        }
        for url in ["http://x:1", "https://", "https://x:port", "https://x/y:1"] {
            assert_eq!(address(url), None, "{url}");
        }
    }
}
