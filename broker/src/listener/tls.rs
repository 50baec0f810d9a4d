//! TLS 1.3 and nothing else.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use proto_spec::Digest;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::ParsedCertificate;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Builds the server's side: TLS 1.3, X25519MLKEM768 preferred (the crate's order), ALPN `h2` and
/// `http/1.1`; a client that offers no ALPN is served HTTP/1.1. Also gives the channel: the SHA-256 of
/// the certificate's SubjectPublicKeyInfo.
///
/// # Errors
///
/// When a file cannot be read, is not PEM, or key and certificate do not belong together.
pub fn server(certificate: &Path, key: &Path) -> anyhow::Result<(ServerConfig, Digest)> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("reading the certificate {}", certificate.display()))?;
    let leaf = chain
        .first()
        .with_context(|| format!("{} holds no certificate", certificate.display()))?;
    let channel = channel_of(leaf)?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("reading the key {}", key.display()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the certificate and its key do not belong together")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Early data could be replayed by whoever recorded it.
    config.max_early_data_size = 0;
    Ok((config, channel))
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
