//! How one key follows another: the old one names it, the new one agrees.
//!
//! An agent's key is followed by `rotateKey`, a broker's by `succession`. Either holds a whole `acceptKey`
//! of the new key, so that nobody can name as its successor a key that it does not have.
//!
//! A [`Succession`] is worth what the key is worth that signed it: whoever reads one begins with a key that
//! it was given, never with one that the network names.

use crate::admission::Received;
use crate::envelope::{Draft, Kind};
use crate::identity::{Audience, Org, Speaker};
use crate::limits::{BROKER_KEYS_MAX, SUCCESSION_BYTES_MAX};
use crate::message::{self, AcceptKey};
use crate::refusal::Refusal;
use crate::signature::{PublicKey, SigningKey};
use crate::time::Timestamp;

/// The `acceptKey` by which `new` agrees to follow `follows` as the key of `speaker`.
///
/// # Errors
///
/// Never for a body of this type; the serialiser's all the same.
pub fn accept(
    speaker: &Speaker,
    broker: &Audience,
    new: &SigningKey,
    follows: PublicKey,
    nonce: &str,
    now: Timestamp,
) -> Result<String, serde_json::Error> {
    let accept = Draft {
        kind: Kind::AcceptKey,
        agent: speaker,
        to: Some(broker),
        ts: now,
        nonce,
        re: None,
        token: None,
        deadline: None,
        via: None,
        body: &AcceptKey {
            pubkey: new.public(),
            follows,
        },
    };
    Ok(String::from_utf8_lossy(&accept.seal(new)?.bytes).into_owned())
}

/// The key that agreed to follow `follows` as the key of `speaker`, and when.
///
/// # Errors
///
/// [`Refusal::InvalidBody`] where it is no such `acceptKey`, or another's; [`Refusal::BadSignature`] where
/// the new key did not sign it.
pub(crate) fn consent(
    accept: String,
    speaker: &Speaker,
    broker: &Audience,
    follows: &PublicKey,
) -> Result<(PublicKey, Timestamp), Refusal> {
    let wrong = |why: &str| Refusal::InvalidBody(format!("`accept` {why}"));
    let accept = Received::parse(accept.into(), SUCCESSION_BYTES_MAX)?;
    let envelope = accept.envelope();
    if envelope.kind() != Kind::AcceptKey {
        return Err(wrong("is not an acceptKey"));
    }
    if envelope.speaker() != speaker || envelope.to() != Some(broker) {
        return Err(wrong("is another's, or for another broker"));
    }
    let consent: AcceptKey = envelope.read_body()?;
    if consent.follows != *follows || consent.pubkey == *follows {
        return Err(wrong("follows another key"));
    }
    accept.verify_with(consent.pubkey)?;
    Ok((consent.pubkey, envelope.ts()))
}

/// A key of a broker named the next, which agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Succession {
    to: PublicKey,
    said: Timestamp,
}

impl Succession {
    /// Checks a `succession` of the broker of `org` against the key that it begins with. It has no age: an
    /// agent may have slept for as long as it likes.
    ///
    /// # Errors
    ///
    /// [`Refusal::BadSignature`] where this key did not sign it, or the next key its consent;
    /// [`Refusal::UnknownType`], [`Refusal::WrongAudience`] and [`Refusal::InvalidBody`] where it is
    /// something else; those of [`Received::parse`].
    pub fn check(text: &str, from: &PublicKey, org: &Org) -> Result<Self, Refusal> {
        let statement = Received::parse(text.to_owned().into(), SUCCESSION_BYTES_MAX)?;
        let envelope = statement.envelope();
        let broker = Speaker::Broker(org.clone());
        if envelope.kind() != Kind::Succession {
            return Err(Refusal::UnknownType(envelope.kind().to_string()));
        }
        if *envelope.speaker() != broker {
            return Err(Refusal::BadSignature);
        }
        if envelope.to().is_some() {
            return Err(Refusal::WrongAudience(envelope.to().cloned()));
        }
        statement.verify_with(*from)?;
        let body: message::Succession = envelope.read_body()?;
        let (to, _) = consent(body.accept, &broker, &broker.clone().into(), from)?;
        Ok(Self {
            to,
            said: envelope.ts(),
        })
    }

    /// The next key.
    #[must_use]
    pub fn to(&self) -> &PublicKey {
        &self.to
    }

    /// When the old key named it.
    #[must_use]
    pub fn said(&self) -> Timestamp {
        self.said
    }
}

/// The keys that follow `pinned`, one after another, by statements that are given oldest first. What does
/// not lead on is passed over; of more than [`BROKER_KEYS_MAX`] the rest is not looked at.
#[must_use]
pub fn successors(pinned: &PublicKey, statements: &[String], org: &Org) -> Vec<Succession> {
    let mut known = vec![*pinned];
    let mut found = Vec::new();
    for statement in statements.iter().take(BROKER_KEYS_MAX) {
        let last = found.last().map_or(pinned, Succession::to);
        match Succession::check(statement, last, org) {
            // A circle leads nowhere.
            Ok(next) if !known.contains(&next.to) => {
                known.push(next.to);
                found.push(next);
            }
            _ => {}
        }
    }
    found
}
