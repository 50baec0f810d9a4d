//! Ed25519 (RFC 8032) over the bytes as sent; strict, and only here.
//!
//! `verify_strict` refuses small-order keys and non-canonical encodings, so no two verifiers differ
//! on a signature. A key is checked where it enters: whoever holds a [`PublicKey`] holds a good one.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::Signer as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

use crate::identity::serde_as_text;

/// An Ed25519 public key that is canonical and not of small order.
#[derive(Clone, Copy)]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

/// Why 32 bytes are not a usable public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Not the right shape.
    #[error("a public key is 32 bytes in standard base64, or a did:key")]
    Encoding,
    /// Not the one encoding of a point.
    #[error("the public key is not the canonical encoding of a point")]
    NotCanonical,
    /// One signature would fit every message.
    #[error("the public key is of small order: one signature would fit every message")]
    SmallOrder,
}

/// The multicodec prefix of an Ed25519 public key, as `did:key` wants it.
const ED25519_PUB: [u8; 2] = [0xed, 0x01];

impl PublicKey {
    /// Checks 32 bytes: decompress, recompress, compare, refuse small order.
    ///
    /// # Errors
    ///
    /// [`BadKey`] says which of these failed.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, BadKey> {
        let key =
            ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| BadKey::NotCanonical)?;
        if key.to_edwards().compress().as_bytes() != bytes {
            return Err(BadKey::NotCanonical);
        }
        if key.is_weak() {
            return Err(BadKey::SmallOrder);
        }
        Ok(Self(key))
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Whether `signature` was made by this key over exactly `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        self.0.verify_strict(message, &signature).is_ok()
    }

    /// Compares equal for the same key only: the first 128 bits of its SHA-256, for people to compare.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let digest = Digest::of(self.as_bytes());
        let hex: Vec<String> = digest.0[..16]
            .chunks(2)
            .map(|pair| format!("{:02x}{:02x}", pair[0], pair[1]))
            .collect();
        hex.join(":")
    }

    /// As a W3C `did:key`.
    #[must_use]
    pub fn did(&self) -> String {
        let mut bytes = ED25519_PUB.to_vec();
        bytes.extend_from_slice(self.as_bytes());
        format!("did:key:z{}", base58(&bytes))
    }
}

impl FromStr for PublicKey {
    type Err = BadKey;
    fn from_str(text: &str) -> Result<Self, BadKey> {
        let bytes = match text.strip_prefix("did:key:z") {
            Some(rest) => unbase58(rest)
                .and_then(|bytes| bytes.strip_prefix(&ED25519_PUB).map(<[u8]>::to_vec))
                .ok_or(BadKey::Encoding)?,
            None => STANDARD.decode(text).map_err(|_| BadKey::Encoding)?,
        };
        Self::from_bytes(bytes.as_slice().try_into().map_err(|_| BadKey::Encoding)?)
    }
}

/// Standard base64, as the wire carries keys.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}
impl Eq for PublicKey {}
impl PartialOrd for PublicKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for PublicKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}
impl Hash for PublicKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

/// A key that signs. It is wiped from memory when dropped and never shown.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// The key of a 32-byte seed (RFC 8032, section 5.1.5).
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The seed, for writing a key file and for the token engine. Handle it as the secret it is.
    #[must_use]
    pub fn seed(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// What others verify with.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs exactly `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.public())
    }
}

/// The 64 bytes of an Ed25519 signature. Holding one says nothing about its being right.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

/// The text is not 64 bytes of standard base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a signature is 88 characters of standard base64")]
pub struct BadSignature;

impl FromStr for Signature {
    type Err = BadSignature;
    fn from_str(text: &str) -> Result<Self, BadSignature> {
        let bytes = STANDARD.decode(text).map_err(|_| BadSignature)?;
        bytes.try_into().map(Self).map_err(|_| BadSignature)
    }
}

/// Standard base64, as the wire carries signatures.
impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A SHA-256. An envelope's identity is the digest of its signed bytes; on the wire base64url without padding.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

/// The text is not 32 bytes of base64url without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id, or another digest, is 43 characters of base64url")]
pub struct BadDigest;

impl Digest {
    /// The SHA-256 of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }
}

impl FromStr for Digest {
    type Err = BadDigest;
    fn from_str(text: &str) -> Result<Self, BadDigest> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BadDigest)?;
        bytes.try_into().map(Self).map_err(|_| BadDigest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

serde_as_text!(PublicKey, Digest, Signature);

const BASE58: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// Base58 as Bitcoin and multibase write it; quadratic, and fine for the 34 bytes of a key.
fn base58(bytes: &[u8]) -> String {
    let mut digits: Vec<u32> = Vec::new();
    for byte in bytes {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            carry += *digit << 8;
            *digit = carry % 58;
            carry /= 58;
        }
        while carry > 0 {
            digits.push(carry % 58);
            carry /= 58;
        }
    }
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let ones = std::iter::repeat_n('1', zeros);
    ones.chain(
        digits
            .iter()
            .rev()
            .map(|digit| char::from(BASE58[*digit as usize])),
    )
    .collect()
}

fn unbase58(text: &str) -> Option<Vec<u8>> {
    if text.len() > 64 {
        return None;
    }
    let mut bytes: Vec<u32> = Vec::new();
    for character in text.bytes() {
        let mut carry = BASE58.iter().position(|c| *c == character)? as u32;
        for byte in &mut bytes {
            carry += *byte * 58;
            *byte = carry & 0xff;
            carry >>= 8;
        }
        while carry > 0 {
            bytes.push(carry & 0xff);
            carry >>= 8;
        }
    }
    let zeros = text.bytes().take_while(|c| *c == b'1').count();
    let mut out = vec![0; zeros];
    out.extend(bytes.iter().rev().map(|byte| *byte as u8));
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_print_as_base64_and_did_key_and_read_back() {
        // The did:key method specification's own example of an Ed25519 key.
        let did = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK";
        let key: PublicKey = did.parse().unwrap();
        assert_eq!(key.did(), did);
        assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
        assert!(
            "did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme"
                .parse::<PublicKey>()
                .is_err()
        );
    }

    #[test]
    fn small_order_and_non_canonical_keys_are_refused_where_they_enter() {
        let mut identity = [0_u8; 32];
        identity[0] = 1;
        assert_eq!(PublicKey::from_bytes(&identity), Err(BadKey::SmallOrder));
        // y = p + 1 encodes the identity a second time.
        let mut again = [0xff_u8; 32];
        again[0] = 0xee;
        again[31] = 0x7f;
        assert_eq!(PublicKey::from_bytes(&again), Err(BadKey::NotCanonical));
    }
}
