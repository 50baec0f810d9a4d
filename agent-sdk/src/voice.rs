//! What this agent says: drafts become signed envelopes here, and only here its key is used.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proto_spec::{AgentId, Audience, Digest, Draft, Kind, PublicKey, Sealed, Speaker, Timestamp};
use serde::Serialize;

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::keyfile::Key;

/// Who speaks, with which key, at what time.
pub(crate) struct Voice {
    id: AgentId,
    speaker: Speaker,
    broker: Audience,
    key: Key,
    clock: Arc<dyn Clock>,
}

/// What is said besides the body.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Header<'a> {
    pub(crate) re: Option<Digest>,
    pub(crate) token: Option<&'a str>,
    pub(crate) deadline: Option<Duration>,
}

impl Header<'_> {
    pub(crate) fn about(re: Digest) -> Self {
        Self {
            re: Some(re),
            ..Self::default()
        }
    }
}

impl Voice {
    pub(crate) fn new(id: AgentId, key: Key, clock: Arc<dyn Clock>) -> Self {
        let broker = Audience::Broker(id.org().clone());
        Self {
            speaker: Speaker::Agent(id.clone()),
            id,
            broker,
            key,
            clock,
        }
    }

    pub(crate) fn id(&self) -> &AgentId {
        &self.id
    }

    /// The agent's own broker, as an audience.
    pub(crate) fn broker(&self) -> &Audience {
        &self.broker
    }

    pub(crate) fn public(&self) -> PublicKey {
        self.key.public()
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Signs an envelope of this moment, with a nonce of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Unsendable`] where the body cannot be written as JSON.
    pub(crate) fn say<B: Serialize + ?Sized>(
        &self,
        kind: Kind,
        to: &Audience,
        header: Header<'_>,
        body: &B,
    ) -> Result<Sealed> {
        let mut random = [0_u8; 16];
        getrandom::fill(&mut random)
            .map_err(|why| Error::Unsendable(format!("no randomness from the system: {why}")))?;
        let draft = Draft {
            kind,
            agent: &self.speaker,
            to: Some(to),
            ts: self.clock.now(),
            nonce: &URL_SAFE_NO_PAD.encode(random),
            re: header.re,
            token: header.token,
            deadline: header.deadline.map(in_ms),
            via: None,
            body,
        };
        draft
            .seal(self.key.signing())
            .map_err(|why| Error::Unsendable(why.to_string()))
    }
}

/// A deadline of less than a millisecond is one millisecond: zero has no spelling on the wire.
fn in_ms(deadline: Duration) -> u64 {
    u64::try_from(deadline.as_millis())
        .unwrap_or(u64::MAX)
        .max(1)
}
