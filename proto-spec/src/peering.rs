//! How two brokers come to know each other: the descriptor that one hands to the other's admin, and the
//! words with which they take a connection as their link.
//!
//! A descriptor is self-signed: it proves nothing but that its key's holder wrote it. An admin compares the
//! key out of band, once; from then on that key stands for the organisation, and whatever else changes
//! (endpoints, TLS keys) it says in descriptors that it signs.

use crate::admission::{Judge, Me, Received};
use crate::envelope::Kind;
use crate::identity::{Audience, Org, Speaker};
use crate::limits::{CAPABILITIES_MAX, ENVELOPE_BYTES_MAX, PEER_ENDPOINTS_MAX};
use crate::message::{LinkAttach, LinkRole, PeerDescriptor};
use crate::refusal::Refusal;
use crate::signature::{Digest, PublicKey};
use crate::succession::{Succession, successors};
use crate::time::Timestamp;

/// The TLS exporter label of a link (RFC 8446, section 7.5), with an empty context and 32 bytes.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-fem-link-v1";
/// Characters of an endpoint: a host name has at most 253.
const ENDPOINT_CHARS_MAX: usize = 260;

/// A `peerDescriptor` whose signature is that of the key it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    body: PeerDescriptor,
    text: String,
    at: Timestamp,
}

impl Descriptor {
    /// Reads a descriptor: from a file, or from the other end of a link.
    ///
    /// # Errors
    ///
    /// What [`Received::parse`] refuses; [`Refusal::UnknownType`]; [`Refusal::InvalidBody`] where it names
    /// another organisation than its signer, or more than it may; [`Refusal::BadSignature`].
    pub fn read(text: &str) -> Result<Self, Refusal> {
        let text = text.trim();
        let received = Received::parse(text.as_bytes().to_vec().into(), ENVELOPE_BYTES_MAX)?;
        let envelope = received.envelope();
        if envelope.kind() != Kind::PeerDescriptor {
            return Err(Refusal::UnknownType(envelope.kind().to_string()));
        }
        let body: PeerDescriptor = envelope.read_body()?;
        if *envelope.speaker() != Speaker::Broker(body.org.clone()) {
            return Err(Refusal::InvalidBody(
                "`org` is another organisation than the signer's".into(),
            ));
        }
        if body.endpoints.len().max(body.channels.len()) > PEER_ENDPOINTS_MAX {
            return Err(Refusal::InvalidBody(format!(
                "more than {PEER_ENDPOINTS_MAX} endpoints or TLS keys"
            )));
        }
        if body.asks.len() > CAPABILITIES_MAX {
            return Err(Refusal::InvalidBody(format!(
                "it asks for more than {CAPABILITIES_MAX} patterns"
            )));
        }
        body.endpoints
            .iter()
            .try_for_each(|one| check_endpoint(one))?;
        received.verify_with(body.key)?;
        Ok(Self {
            at: received.envelope().ts(),
            body,
            text: text.to_owned(),
        })
    }

    /// What it says.
    #[must_use]
    pub fn body(&self) -> &PeerDescriptor {
        &self.body
    }

    /// The envelope.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// When it was signed: a later one replaces it.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        self.at
    }
}

/// Checks that a text is `host:port`, where the host is a name, an IPv4 address or an IPv6 address in brackets.
///
/// # Errors
///
/// [`Refusal::InvalidBody`].
pub fn check_endpoint(text: &str) -> Result<(), Refusal> {
    let fits = text.rsplit_once(':').is_some_and(|(host, port)| {
        let inner = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let is_address = inner.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
        let of_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
        let is_name = !host.is_empty() && host.bytes().all(of_name);
        (is_address || is_name) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if fits && text.len() <= ENDPOINT_CHARS_MAX {
        Ok(())
    } else {
        Err(Refusal::InvalidBody(format!(
            "{text:?} is not an endpoint: write host:port"
        )))
    }
}

/// What the other end of a connection has to prove to be our peer.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Which peer.
    pub org: &'a Org,
    /// The key that stands for it.
    pub key: &'a PublicKey,
    /// Which end it is.
    pub role: LinkRole,
    /// This connection's exporter value.
    pub exporter: &'a Digest,
    /// The public key of the certificate that it showed.
    pub channel: &'a Digest,
}

/// A peer that proved who it is.
#[derive(Debug, Clone)]
pub struct Greeted {
    /// What it says about itself.
    pub descriptor: Descriptor,
    /// Its broker's key: the one that stands for it, or one that follows from that.
    pub key: PublicKey,
    /// Bytes of an envelope that it takes of agents.
    pub envelope_bytes_max: usize,
}

impl Expected<'_> {
    /// Checks a `linkAttach`: said by the peer's key, or by one that follows from it, to our broker, about this very connection, whose
    /// certificate is one that the peer names. The exporter value is of one connection only, so nothing that
    /// was said on another fits here, and no nonce is needed.
    ///
    /// # Errors
    ///
    /// [`Refusal::BadSignature`], [`Refusal::WrongAudience`], [`Refusal::Stale`], [`Refusal::UnknownType`],
    /// and [`Refusal::Denied`] where role, connection or certificate are others.
    pub fn check(&self, bytes: bytes::Bytes, judge: &Judge<'_>) -> Result<Greeted, Refusal> {
        let received = Received::parse(bytes, ENVELOPE_BYTES_MAX)?;
        let envelope = received.envelope();
        if envelope.kind() != Kind::LinkAttach {
            return Err(Refusal::UnknownType(envelope.kind().to_string()));
        }
        let said: LinkAttach = envelope.read_body()?;
        // The chain begins with the key that was accepted, and proves itself.
        let followed = successors(self.key, &said.successions, self.org);
        let keys = std::iter::once(self.key).chain(followed.iter().map(Succession::to));
        let mut speaks = keys.filter(|key| received.verify_with(**key).is_ok());
        let key = *speaks.next().ok_or(Refusal::BadSignature)?;
        let denied = |why: &str| Err(Refusal::Denied(why.into()));
        if *envelope.speaker() != Speaker::Broker(self.org.clone()) {
            return denied("another organisation on this link");
        }
        match (envelope.to(), judge.me) {
            (Some(Audience::Broker(to)), Me::Broker(me)) if to == me => {}
            (to, _) => return Err(Refusal::WrongAudience(to.cloned())),
        }
        let apart = judge.now.distance(envelope.ts());
        if apart > judge.skew {
            return Err(Refusal::Stale(apart, judge.skew));
        }
        if said.role != self.role || said.exporter != *self.exporter {
            return denied("a word about another connection");
        }
        let descriptor = Descriptor::read(&said.descriptor)?;
        if descriptor.body.org != *self.org || descriptor.body.key != key {
            return denied("another broker's descriptor");
        }
        if !descriptor.body.channels.contains(self.channel) {
            return denied("a certificate that the peer's descriptor does not name");
        }
        Ok(Greeted {
            descriptor,
            key,
            envelope_bytes_max: usize::try_from(said.envelope_bytes_max).unwrap_or(usize::MAX),
        })
    }
}
