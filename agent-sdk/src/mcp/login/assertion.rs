//! The statement by which a client with a key shows who it is: a JWT that it signs for one authorisation server.
//!
//! Source: RFC 7523 §3, RFC 7518 §3.

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pkcs8::der::SecretDocument;
use proto_spec::Timestamp;
use serde_json::json;

use super::secret::Secret;
use crate::keyfile::{KEY_FILE_BYTES_MAX, read_private};
use crate::mcp::address::Address;

/// How long a statement is good: it is shown at once.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// A private key, by what it signs with.
enum Key {
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
    Rs256(Box<RsaKeyPair>),
}

/// States for `issuer` that the client `id` asks.
///
/// # Errors
///
/// Where the file holds no key that signs so, or others can read it; or the server knows its algorithm not.
pub(crate) fn statement(
    key_file: &Path,
    algorithms: Option<&[String]>,
    id: &str,
    issuer: &Address,
    now: Timestamp,
) -> Result<Secret, String> {
    let pem = read_private(key_file, KEY_FILE_BYTES_MAX).map_err(|why| why.to_string())?;
    let key = Key::read(&pem).map_err(|why| format!("{}: {why}", key_file.display()))?;
    let algorithm = key.algorithm();
    if algorithms.is_some_and(|known| known.iter().all(|one| one != algorithm)) {
        return Err(format!(
            "{issuer} takes no statement that is signed with {algorithm}"
        ));
    }
    let mut noise = [0; 16];
    getrandom::fill(&mut noise).map_err(|why| format!("no randomness from the system: {why}"))?;
    let claims = json!({
        "iss": id,
        "sub": id,
        "aud": issuer,
        "jti": URL_SAFE_NO_PAD.encode(noise),
        "iat": now.as_secs(),
        "exp": now.later(GOOD_FOR).as_secs(),
    });
    let header = json!({"alg": algorithm, "typ": "JWT"});
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = key.sign(signed.as_bytes())?;
    Secret::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

impl Key {
    fn read(pem: &str) -> Result<Self, String> {
        let (label, document) = SecretDocument::from_pem(pem.trim())
            .map_err(|_| "not a private key in PKCS#8 (PEM)".to_owned())?;
        if label != "PRIVATE KEY" {
            return Err(format!("holds a {label}, not a PRIVATE KEY"));
        }
        let der = document.as_bytes();
        if let Ok(key) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der) {
            return Ok(Self::Es256(key));
        }
        if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            return Ok(Self::EdDsa(key));
        }
        match RsaKeyPair::from_pkcs8(der) {
            Ok(key) => Ok(Self::Rs256(Box::new(key))),
            Err(_) => Err("no key of P-256, Ed25519 or RSA".into()),
        }
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Es256(_) => "ES256",
            Self::EdDsa(_) => "EdDSA",
            Self::Rs256(_) => "RS256",
        }
    }

    fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let failed = |_| "the key does not sign".to_owned();
        let dice = SystemRandom::new();
        match self {
            Self::Es256(key) => key
                .sign(&dice, bytes)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(failed),
            Self::EdDsa(key) => Ok(key.sign(bytes).as_ref().to_vec()),
            Self::Rs256(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &dice, bytes, &mut signature)
                    .map(|()| signature)
                    .map_err(failed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use aws_lc_rs::encoding::AsDer as _;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, KeyPair as _, UnparsedPublicKey};
    use pkcs8::der::pem::LineEnding;

    use super::*;

    fn file(folder: &Path, der: &[u8]) -> std::path::PathBuf {
        let pem = SecretDocument::try_from(der)
            .unwrap()
            .to_pem("PRIVATE KEY", LineEnding::LF);
        let path = folder.join("key.pem");
        std::fs::write(&path, pem.unwrap().as_bytes()).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    }

    fn state(path: &Path, algorithms: Option<&[String]>) -> Result<String, String> {
        let issuer = "https://a.example".parse().unwrap();
        let now = Timestamp::from_ms(1_700_000_000_000);
        let stated = statement(path, algorithms, "fem", &issuer, now)?;
        Ok(stated.reveal().to_owned())
    }

    #[test]
    fn a_statement_is_for_one_server_and_a_minute_and_is_signed() {
        let folder = tempfile::tempdir().unwrap();
        let es256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let path = file(folder.path(), es256.to_pkcs8v1().unwrap().as_ref());
        let stated = state(&path, Some(&["RS256".into(), "ES256".into()])).unwrap();
        let (signed, signature) = stated.rsplit_once('.').unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let part = |text: &str| -> serde_json::Value {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap()
        };
        assert_eq!(part(header), json!({"alg": "ES256", "typ": "JWT"}));
        let claims = part(claims);
        assert_eq!(
            (&claims["iss"], &claims["sub"]),
            (&json!("fem"), &json!("fem"))
        );
        assert_eq!(claims["aud"], "https://a.example");
        assert_eq!(claims["exp"], 1_700_000_060);
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, es256.public_key().as_ref());
        key.verify(signed.as_bytes(), &signature).unwrap();
        assert_ne!(state(&path, None).unwrap(), stated, "no two are alike");
        assert!(state(&path, Some(&["RS256".into()])).is_err());
    }

    #[test]
    fn keys_of_three_kinds_sign_and_others_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let ed = Ed25519KeyPair::generate().unwrap();
        let path = file(folder.path(), ed.to_pkcs8v1().unwrap().as_ref());
        let stated = state(&path, None).unwrap();
        let (signed, signature) = stated.rsplit_once('.').unwrap();
        let key = UnparsedPublicKey::new(&ED25519, ed.public_key().as_ref());
        key.verify(
            signed.as_bytes(),
            &URL_SAFE_NO_PAD.decode(signature).unwrap(),
        )
        .unwrap();
        let rsa = RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let path = file(folder.path(), rsa.as_der().unwrap().as_ref());
        assert!(state(&path, Some(&["RS256".into()])).is_ok());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(state(&path, None).is_err(), "others can read it");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&path, "no key").unwrap();
        assert!(state(&path, None).is_err());
    }
}
