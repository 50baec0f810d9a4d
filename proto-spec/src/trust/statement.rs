//! What one organisation says of another.

use serde::{Deserialize, Serialize};

use crate::capability::Pattern;
use crate::envelope::{Envelope, Kind};
use crate::identity::{Org, Speaker};
use crate::limits::{
    CLOCK_SKEW_MAX, INTEGER_MAX, TRUST_CONDITIONS_MAX, TRUST_STATEMENT_BYTES_MAX,
    TRUST_VALIDITY_MAX,
};
use crate::message::{Trust, TrustStatement};
use crate::refusal::Refusal;
use crate::signature::PublicKey;
use crate::time::Timestamp;

use super::Heard;

/// A [`TrustStatement`] within its bounds, and whose it is. What is serialised of it is for whoever keeps it
/// between two starts; what comes off the wire goes through [`Self::open`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    trustor: Org,
    at: Timestamp,
    said: TrustStatement,
}

impl Statement {
    /// Takes a `trustStatement` as its maker's broker signed it, whoever passed it on. Neither its age nor
    /// its nonce is looked at: a statement is meant to be kept, and its number says which one counts.
    ///
    /// # Errors
    ///
    /// [`Refusal::TooLarge`], [`Refusal::UnknownType`] for another type, [`Refusal::Denied`] where no
    /// broker says it, [`Refusal::WrongAudience`] where it is for somebody, [`Refusal::BadSignature`], and
    /// those of [`Self::new`].
    pub fn open(envelope: &Envelope, key: &PublicKey) -> Result<Self, Refusal> {
        let bytes = envelope.bytes().len();
        if bytes > TRUST_STATEMENT_BYTES_MAX {
            return Err(Refusal::TooLarge(bytes, TRUST_STATEMENT_BYTES_MAX));
        }
        if envelope.kind() != Kind::TrustStatement {
            return Err(Refusal::UnknownType(envelope.kind().to_string()));
        }
        let Speaker::Broker(trustor) = envelope.speaker() else {
            return Err(Refusal::Denied("an agent's word of trust".into()));
        };
        if envelope.to().is_some() {
            return Err(Refusal::WrongAudience(envelope.to().cloned()));
        }
        if !key.verifies(&envelope.signed_bytes(), envelope.signature()) {
            return Err(Refusal::BadSignature);
        }
        Self::new(trustor.clone(), envelope.ts(), envelope.read_body()?)
    }

    /// What `trustor` signed at `at`, by whoever verified that before: what comes off the wire goes
    /// through [`Self::open`].
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidBody`] where it is about its own maker, has too many conditions, a number beyond
    /// what JSON readers agree on, or does not end after `at` and within [`TRUST_VALIDITY_MAX`] of it.
    pub fn new(trustor: Org, at: Timestamp, said: TrustStatement) -> Result<Self, Refusal> {
        let wrong = |why: &str| Err(Refusal::InvalidBody(why.into()));
        if said.trustee == trustor {
            return wrong("`trustee` is whoever says it");
        }
        if said.capabilities.len() > TRUST_CONDITIONS_MAX {
            return wrong("more than 16 `capabilities`");
        }
        if said.seq >= INTEGER_MAX {
            return wrong("`seq` is not below 2^53");
        }
        if said.expires <= at || said.expires > at.later(TRUST_VALIDITY_MAX) {
            return wrong("`expires` is not within 90 days after `ts`");
        }
        Ok(Self { trustor, at, said })
    }

    /// Who says it.
    #[must_use]
    pub fn trustor(&self) -> &Org {
        &self.trustor
    }

    /// Of whom.
    #[must_use]
    pub fn trustee(&self) -> &Org {
        &self.said.trustee
    }

    /// When it was signed, by its maker's clock; on record, the latest of those that it replaced.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// What was said.
    #[must_use]
    pub fn said(&self) -> &TrustStatement {
        &self.said
    }

    /// Whether it says anything at `now` about what `capability` permits. What counts only under some
    /// condition says nothing where nobody asks about a capability.
    #[must_use]
    pub fn counts(&self, capability: Option<&Pattern>, now: Timestamp) -> bool {
        let said = &self.said;
        let is_meant = |asked| {
            said.capabilities
                .iter()
                .any(|pattern| pattern.covers(asked))
        };
        said.trust > Trust::NONE
            && now < said.expires
            && (said.capabilities.is_empty() || capability.is_some_and(is_meant))
    }

    /// Whether it is neither from the future nor so old that one that it replaced may be forgotten.
    pub(super) fn is_of_this_time(&self, now: Timestamp) -> Result<(), Refusal> {
        if self.at > now.later(CLOCK_SKEW_MAX) {
            return Err(Refusal::Stale(now.distance(self.at), CLOCK_SKEW_MAX));
        }
        if self.is_forgettable(now) {
            return Err(Refusal::Stale(now.distance(self.at), TRUST_VALIDITY_MAX));
        }
        Ok(())
    }

    /// Whether it has expired, and everything that was signed before it.
    pub(super) fn is_forgettable(&self, now: Timestamp) -> bool {
        self.at.later(TRUST_VALIDITY_MAX) <= now
    }

    /// Hears another of the same maker about the same organisation. Which of the two came first makes no
    /// difference to what counts afterwards.
    pub(super) fn hear(&mut self, other: Self) -> Result<Heard, Refusal> {
        // A maker's clock may go back: what is replaced is remembered as such all the same.
        self.at = self.at.max(other.at);
        let (kept, new) = (&mut self.said, other.said);
        if new.seq < kept.seq {
            return Err(Refusal::Conflict(format!(
                "{} said number {} of {}, later than {}",
                self.trustor, kept.seq, kept.trustee, new.seq
            )));
        }
        if new.seq > kept.seq {
            *kept = new;
            return Ok(Heard::Taken);
        }
        if *kept == new {
            return Ok(Heard::Known);
        }
        *kept = TrustStatement {
            trust: Trust::NONE,
            capabilities: Vec::new(),
            expires: Timestamp::default(),
            ..new
        };
        Ok(Heard::Contradicted)
    }
}
