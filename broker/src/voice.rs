//! What the broker itself says: every word of it is an envelope signed with its key.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use proto_spec::capability::{BadTerms, Claims, Narrowing, encode_text, issue};
use proto_spec::message::{Ack, Succession};
use proto_spec::refusal::ErrorBody;
use proto_spec::succession::accept;
use proto_spec::{
    AgentId, Audience, Digest, Draft, Kind, Org, PublicKey, Refusal, Sealed, SigningKey, Speaker,
    Timestamp,
};
use serde::Serialize;

/// The broker's key, which another may follow, and what makes its nonces unique.
#[derive(Debug)]
pub struct Voice {
    key: ArcSwap<SigningKey>,
    speaker: Speaker,
    run: u64,
    said: AtomicU64,
}

impl Voice {
    /// The voice of `broker@org`. `run` tells this run's nonces from every other's.
    #[must_use]
    pub fn new(key: SigningKey, org: Org, run: u64) -> Self {
        Self {
            key: ArcSwap::from_pointee(key),
            speaker: Speaker::Broker(org),
            run,
            said: AtomicU64::new(0),
        }
    }

    /// What others verify with.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.key.load().public()
    }

    /// The key itself, for what is no envelope.
    pub(crate) fn key(&self) -> Arc<SigningKey> {
        self.key.load_full()
    }

    /// Signs with `key` from here on.
    pub fn go_on_under(&self, key: SigningKey) {
        self.key.store(Arc::new(key));
    }

    /// Says that `next` follows the key that signs this, with the consent of `next` in it: a `succession`
    /// envelope, as text.
    ///
    /// # Errors
    ///
    /// [`Refusal::Internal`] where a body does not serialise.
    pub fn name_successor(&self, next: &SigningKey, now: Timestamp) -> Result<String, Refusal> {
        let broker = Audience::from(self.speaker.clone());
        let accept = accept(
            &self.speaker,
            &broker,
            next,
            self.public(),
            &self.nonce(),
            now,
        )
        .map_err(|_| Refusal::Internal)?;
        let said = self.say(Kind::Succession, None, None, &Succession { accept }, now);
        String::from_utf8(said.bytes.into()).map_err(|_| Refusal::Internal)
    }

    fn nonce(&self) -> String {
        let said = self.said.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{said:016x}", self.run)
    }

    /// Signs one envelope.
    #[must_use]
    pub fn say<B: Serialize>(
        &self,
        kind: Kind,
        to: Option<&Audience>,
        re: Option<Digest>,
        body: &B,
        now: Timestamp,
    ) -> Sealed {
        self.say_via(None, kind, to, re, body, now)
    }

    /// Signs one envelope with what another said, who came `via` a bridge.
    #[must_use]
    pub fn say_via<B: Serialize>(
        &self,
        via: Option<&str>,
        kind: Kind,
        to: Option<&Audience>,
        re: Option<Digest>,
        body: &B,
        now: Timestamp,
    ) -> Sealed {
        let nonce = self.nonce();
        let draft = Draft {
            kind,
            agent: &self.speaker,
            to,
            ts: now,
            nonce: &nonce,
            re,
            token: None,
            deadline: None,
            via,
            body,
        };
        draft.seal(&self.key.load()).unwrap_or_else(|error| {
            // Bodies are our own types, whose serialisation cannot fail; an empty answer would hide a bug.
            tracing::error!(%error, "a body of the broker's own does not serialise");
            Sealed {
                bytes: Bytes::new(),
                id: Digest([0; 32]),
            }
        })
    }

    /// A sealed token, base64url, with which an agent of ours may do what a peer granted our broker: made
    /// from the unsealed grant, by a block in which our key names the agent and its key. Also until when it
    /// holds: `until`, or the grant's own end where that comes first.
    #[must_use]
    pub fn introduce(
        &self,
        grant: &[u8],
        agent: &AgentId,
        key: &PublicKey,
        until: Timestamp,
    ) -> Option<(Arc<str>, Timestamp)> {
        let made = || -> Result<_, BadTerms> {
            let narrowing = Narrowing {
                expires: Some(until),
                agent: Some(agent.clone()),
                ..Narrowing::default()
            };
            issue::seal(&issue::delegate(
                grant,
                &self.key(),
                key,
                &narrowing,
                entropy()?,
            )?)
        };
        match made() {
            Ok(sealed) => {
                let end = Claims::read(&sealed).map_or(until, |said| said.expires());
                Some((encode_text(&sealed).into(), end))
            }
            Err(why) => {
                tracing::warn!(%agent, %why, "a peer's grant cannot be delegated from");
                None
            }
        }
    }

    /// What another organisation granted us, passed on to a peer whose broker's key is `key`: unsealed, for it
    /// introduces its own agents.
    #[must_use]
    pub fn pass_on(&self, grant: &[u8], key: &PublicKey, until: Timestamp) -> Option<String> {
        let narrowing = Narrowing {
            expires: Some(until),
            ..Narrowing::default()
        };
        let made = entropy()
            .and_then(|entropy| issue::delegate(grant, &self.key(), key, &narrowing, entropy));
        made.inspect_err(|why| tracing::warn!(%why, "a grant cannot be passed on"))
            .ok()
            .map(|token| encode_text(&token))
    }

    /// An acknowledgement.
    #[must_use]
    pub fn ack(&self, to: &Audience, re: Digest, ack: &Ack, now: Timestamp) -> Bytes {
        self.say(Kind::Ack, Some(to), Some(re), ack, now).bytes
    }

    /// An error; without audience where there was no verified sender.
    #[must_use]
    pub fn error(
        &self,
        to: Option<(&Audience, Digest)>,
        refusal: &Refusal,
        now: Timestamp,
    ) -> Bytes {
        let body = ErrorBody::from(refusal);
        self.say(
            Kind::Error,
            to.map(|(to, _)| to),
            to.map(|(_, re)| re),
            &body,
            now,
        )
        .bytes
    }
}

fn entropy() -> Result<[u8; 32], BadTerms> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|why| BadTerms::Engine(why.to_string()))?;
    Ok(bytes)
}
