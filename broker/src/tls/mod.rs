//! TLS 1.3 and nothing else.

mod certificates;
mod pinned;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use proto_spec::Digest;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub use certificates::{Certificates, Pair};
use pinned::AnyKey;

/// Reads a certificate and its key, for both sides of TLS 1.3, X25519MLKEM768 preferred (the crate's
/// order). As a server: ALPN `h2` and `http/1.1`; a client that offers no ALPN is served HTTP/1.1, and one
/// may show a certificate, whose key then is known and nothing else about it. As a client, to peers: the
/// server's key is known in the same way. Whose key that is, `linkAttach` says.
///
/// # Errors
///
/// When a file cannot be read, is not PEM, or key and certificate do not belong together.
pub fn read(certificate: &Path, key: &Path) -> anyhow::Result<Pair> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("reading the certificate {}", certificate.display()))?;
    let leaf = chain
        .first()
        .with_context(|| format!("{} holds no certificate", certificate.display()))?;
    let channel = channel_of(leaf)?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("reading the key {}", key.display()))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let any_key = Arc::new(AnyKey::new(&provider));
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::clone(&any_key) as _)
        .with_single_cert(chain.clone(), key.clone_key())
        .context("the certificate and its key do not belong together")?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Early data could be replayed by whoever recorded it.
    server.max_early_data_size = 0;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(any_key)
        .with_client_auth_cert(chain, key)
        .context("the certificate and its key do not belong together")?;
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    client.resumption = Resumption::disabled();
    Ok(Pair {
        tls: Arc::new(server),
        client: Arc::new(client),
        channel,
    })
}

/// The SHA-256 of a certificate's DER SubjectPublicKeyInfo.
///
/// # Errors
///
/// When it is not an X.509 certificate.
pub fn channel_of(certificate: &CertificateDer<'_>) -> anyhow::Result<Digest> {
    let parsed = ParsedCertificate::try_from(certificate).context("not an X.509 certificate")?;
    Ok(Digest::of(&parsed.subject_public_key_info()))
}
