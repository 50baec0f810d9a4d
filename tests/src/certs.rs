//! A certificate authority for one run.

use std::path::Path;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;

/// Writes `cert.pem` and `key.pem` for loopback into `folder`, and gives the authority's certificate.
///
/// # Errors
///
/// When the folder cannot be written.
pub fn write(folder: &Path) -> Result<CertificateDer<'static>> {
    let authority_key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // OpenSSL takes a certificate for self-signed whose subject and issuer have the same name.
    params
        .distinguished_name
        .push(DnType::CommonName, "the tests' authority");
    let authority = params.self_signed(&authority_key)?;
    let issuer = Issuer::new(params, authority_key);
    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()])?;
    leaf.use_authority_key_identifier_extension = true;
    let leaf = leaf.signed_by(&key, &issuer)?;
    std::fs::write(folder.join("cert.pem"), leaf.pem())?;
    std::fs::write(folder.join("key.pem"), key.serialize_pem())?;
    std::fs::write(folder.join("ca.pem"), authority.pem())?;
    Ok(authority.der().clone())
}
