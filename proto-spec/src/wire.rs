//! The strict edges of JSON: where the `sig` member lies, and which documents are JSON to us at all.
//!
//! A signature covers the envelope's exact bytes with the `sig` member cut out. The cut is found by
//! walking the members of the outermost object, never by search: a body may contain anything. No
//! canonicalisation exists, so none can be got wrong.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::refusal::Refusal;
use crate::signature::{Digest, Signature};

/// Padding required and unused bits zero, so that one signature has one spelling.
const SIGNATURE_BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

const SIG_PREFIX: &[u8; 8] = b",\"sig\":\"";
const SIG_CHARS: usize = 88;
/// What is cut out: `,"sig":"`, 88 characters, `"`.
pub const SIG_MEMBER_BYTES: usize = SIG_PREFIX.len() + SIG_CHARS + 1;

/// Members of an outermost object that are looked at: a few more than the header has names.
const MEMBERS_MAX: usize = 32;

/// One member of the outermost object: where its name (without quotes) and its value lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Between the quotes of the name.
    pub name: Range<usize>,
    /// The value, without surrounding whitespace.
    pub value: Range<usize>,
}

/// Walks the members of the outermost object, in order. Works on bytes that may not be UTF-8 or not
/// be JSON further in: values are skipped by their brackets and quotes only.
///
/// # Errors
///
/// [`Refusal::NotStrictJson`] where the outermost object itself is broken, or where anything but its
/// closing brace ends the bytes.
pub fn members(bytes: &[u8]) -> Result<Vec<Member>, Refusal> {
    let mut walk = Walk { bytes, at: 0 };
    walk.expect(b'{', "the first byte is not {")?;
    let mut found = Vec::with_capacity(12);
    walk.whitespace();
    if walk.peek() == Some(b'}') {
        walk.at += 1;
        return walk.end(found);
    }
    loop {
        walk.whitespace();
        let name = walk.string()?;
        walk.whitespace();
        walk.expect(b':', "a member's name is not followed by a colon")?;
        walk.whitespace();
        let start = walk.at;
        walk.value()?;
        found.push(Member {
            name: name.start + 1..name.end - 1,
            value: start..walk.at,
        });
        walk.whitespace();
        if found.len() > MEMBERS_MAX {
            return Err(broken("more members than a header has"));
        }
        match walk.next() {
            Some(b',') => {}
            Some(b'}') => return walk.end(found),
            _ => return Err(broken("a member is not followed by , or }")),
        }
    }
}

fn broken(why: &str) -> Refusal {
    Refusal::NotStrictJson(why.into())
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, byte: u8, why: &str) -> Result<(), Refusal> {
        if self.next() == Some(byte) {
            Ok(())
        } else {
            Err(broken(why))
        }
    }

    fn whitespace(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn end(&self, found: Vec<Member>) -> Result<Vec<Member>, Refusal> {
        if self.at == self.bytes.len() {
            Ok(found)
        } else {
            Err(broken("bytes follow the closing }"))
        }
    }

    /// The range of a string, quotes included.
    fn string(&mut self) -> Result<Range<usize>, Refusal> {
        let start = self.at;
        self.expect(b'"', "a member's name is not a string")?;
        loop {
            match self.next() {
                Some(b'"') => return Ok(start..self.at),
                Some(b'\\') => self.at += 1,
                Some(_) => {}
                None => return Err(broken("a string does not end")),
            }
        }
    }

    fn value(&mut self) -> Result<(), Refusal> {
        match self.peek() {
            Some(b'"') => self.string().map(|_| ()),
            Some(b'{' | b'[') => self.nested(),
            _ => {
                while !matches!(
                    self.peek(),
                    None | Some(b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r')
                ) {
                    self.at += 1;
                }
                Ok(())
            }
        }
    }

    fn nested(&mut self) -> Result<(), Refusal> {
        let mut depth = 0_usize;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.string()?;
                    continue;
                }
                Some(b'{' | b'[') => depth += 1,
                Some(b'}' | b']') => depth -= 1,
                Some(_) => {}
                None => return Err(broken("an object or array does not end")),
            }
            self.at += 1;
            if depth == 0 {
                return Ok(());
            }
        }
    }
}

/// The `sig` member: what it claims, and where it is cut out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The claimed signature.
    pub signature: Signature,
    /// Where the comma before `"sig"` stands; [`SIG_MEMBER_BYTES`] bytes are cut from here.
    pub at: usize,
}

impl Cut {
    /// Finds the cut among `members` of `bytes`.
    ///
    /// # Errors
    ///
    /// [`Refusal::MissingMember`], [`Refusal::DuplicateMember`], and [`Refusal::BadSigMember`] where it
    /// is not exactly the 97 bytes that a signer splices in.
    pub fn find(bytes: &[u8], members: &[Member]) -> Result<Self, Refusal> {
        let mut found = members
            .iter()
            .filter(|member| &bytes[member.name.clone()] == b"sig");
        let member = found.next().ok_or(Refusal::MissingMember("sig"))?;
        if found.next().is_some() {
            return Err(Refusal::DuplicateMember("sig"));
        }
        let at = member
            .value
            .end
            .checked_sub(SIG_MEMBER_BYTES)
            .ok_or(Refusal::BadSigMember)?;
        let text = bytes[at..member.value.end]
            .strip_prefix(SIG_PREFIX)
            .and_then(|rest| rest.strip_suffix(b"\""))
            .ok_or(Refusal::BadSigMember)?;
        let mut signature = [0; 64];
        // The engine wants room for its estimate, which is two bytes more than what comes out.
        let mut room = [0; 66];
        let decoded = SIGNATURE_BASE64.decode_slice(text, &mut room);
        if decoded != Ok(64) {
            return Err(Refusal::BadSigMember);
        }
        signature.copy_from_slice(&room[..64]);
        Ok(Self {
            signature: Signature(signature),
            at,
        })
    }

    /// The bytes that were signed: `bytes` without the member.
    #[must_use]
    pub fn signed_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        let mut signed = Vec::with_capacity(bytes.len() - SIG_MEMBER_BYTES);
        signed.extend_from_slice(&bytes[..self.at]);
        signed.extend_from_slice(&bytes[self.at + SIG_MEMBER_BYTES..]);
        signed
    }
}

/// Splices a signature into what was signed, as its last member. The inverse of the cut.
///
/// `signed` is an object with at least one member.
#[must_use]
pub fn splice(signed: &[u8], signature: &Signature) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(signed.len() + SIG_MEMBER_BYTES);
    let end = signed.len().saturating_sub(1);
    sealed.extend_from_slice(&signed[..end]);
    sealed.extend_from_slice(SIG_PREFIX);
    sealed.extend_from_slice(SIGNATURE_BASE64.encode(signature.0).as_bytes());
    sealed.push(b'"');
    sealed.extend_from_slice(&signed[end..]);
    sealed
}

/// An envelope's identity: the SHA-256 of what was signed.
#[must_use]
pub fn identity(signed: &[u8]) -> Digest {
    Digest::of(signed)
}

/// Checks that `text` is one JSON value by RFC 8259 and nothing looser: no duplicate names at any
/// depth (compared after unescaping), no lone surrogates, no numbers beyond a double, at most
/// `depth` levels of nesting.
///
/// # Errors
///
/// [`Refusal::NotStrictJson`] says where and why.
pub fn check_strict(text: &str, depth: usize) -> Result<(), Refusal> {
    let mut reader = serde_json::Deserializer::from_str(text);
    Strict { depth }
        .deserialize(&mut reader)
        .and_then(|()| reader.end())
        .map_err(|error| Refusal::NotStrictJson(error.to_string()))
}

/// Walks a value without keeping it.
#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Self { depth }),
            None => Err(E::custom("nested too deep")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while seq.next_element_seed(inner)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        let mut seen = Names::default();
        while let Some(name) = map.next_key_seed(NameSeed)? {
            if !seen.insert(name) {
                return Err(A::Error::custom("a name stands twice in one object"));
            }
            map.next_value_seed(inner)?;
        }
        Ok(())
    }
}

/// A member's name, borrowed where it has no escapes.
struct NameSeed;

impl<'de> DeserializeSeed<'de> for NameSeed {
    type Value = std::borrow::Cow<'de, str>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for NameSeed {
    type Value = std::borrow::Cow<'de, str>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }
    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(name.into())
    }
    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(name.to_owned().into())
    }
}

/// The names of one object: compared one by one while they are few, hashed with a random key beyond.
#[derive(Default)]
struct Names<'de> {
    few: Vec<std::borrow::Cow<'de, str>>,
    many: HashSet<std::borrow::Cow<'de, str>>,
}

impl<'de> Names<'de> {
    const FEW: usize = 12;

    fn insert(&mut self, name: std::borrow::Cow<'de, str>) -> bool {
        if self.few.len() < Self::FEW {
            let new = !self.few.contains(&name);
            self.few.push(name);
            return new;
        }
        if self.many.is_empty() {
            self.many.extend(self.few.iter().cloned());
        }
        self.many.insert(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_names_are_found_at_any_depth_and_behind_escapes() {
        for bad in [
            r#"{"a":1,"a":2}"#,
            r#"{"x":[{"a":1,"\u0061":2}]}"#,
            r#"{"a":{"b":{"c":1,"c":1}}}"#,
            r#"{"":1,"":1}"#,
        ] {
            assert!(check_strict(bad, 64).is_err(), "{bad}");
        }
        let many: Vec<String> = (0..40).map(|i| format!("\"k{i}\":{i}")).collect();
        assert!(check_strict(&format!("{{{}}}", many.join(",")), 64).is_ok());
        assert!(check_strict(&format!("{{{},\"k3\":0}}", many.join(",")), 64).is_err());
        assert!(check_strict(&format!("{{{},\"k39\":0}}", many.join(",")), 64).is_err());
    }

    #[test]
    fn depth_is_bounded_exactly() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(check_strict(&nested(64), 64).is_ok());
        assert!(check_strict(&nested(65), 64).is_err());
        assert!(check_strict(&nested(100_000), 64).is_err());
    }

    #[test]
    fn what_a_signer_splices_in_is_what_a_verifier_cuts_out() {
        let signed = br#"{"type":"x","body":{"sig":"inner"}}"#;
        let sealed = splice(signed, &Signature([7; 64]));
        let cut = Cut::find(&sealed, &members(&sealed).unwrap()).unwrap();
        assert_eq!(cut.signature, Signature([7; 64]));
        assert_eq!(cut.signed_bytes(&sealed), signed);
    }
}
