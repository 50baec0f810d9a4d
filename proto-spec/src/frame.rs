//! Deliveries: a short header and the envelope's bytes as they came. The header grants nothing.
//!
//! A frame is the byte `0xfe`, then fields: one byte of tag, four bytes of length (big endian), that
//! many bytes. The envelope is the last field. An envelope begins with `{`, so no message on a
//! connection can be taken for the other.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::identity::Org;
use crate::limits::{HOPS_MAX, RELAY_TOKENS_MAX};
use crate::refusal::Refusal;
use crate::signature::Digest;

/// What every frame begins with.
pub const FRAME: u8 = 0xfe;

const ENVELOPE: u8 = 0;
const CREDENTIAL: u8 = 1;
const CREDENTIAL_ID: u8 = 2;

/// The broker's word for who speaks: in full the first time on a connection, then by its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vouching {
    /// A whole `credential` envelope.
    Full(Bytes),
    /// The identity of one that this connection has carried.
    Known(Digest),
}

/// An envelope as the broker delivers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Who speaks, says the broker.
    pub vouching: Vouching,
    /// The envelope, byte for byte as it was signed.
    pub envelope: Bytes,
}

impl Frame {
    /// As it goes on the wire.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let word: (u8, &[u8]) = match &self.vouching {
            Vouching::Full(bytes) => (CREDENTIAL, bytes),
            Vouching::Known(id) => (CREDENTIAL_ID, &id.0),
        };
        encode(FRAME, &[word, (ENVELOPE, &*self.envelope)])
    }

    /// Reads a frame. Its parts share the memory of `bytes`.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotStrictJson`] where it is not one: an unknown tag, a missing part, a wrong length.
    pub fn decode(bytes: Bytes) -> Result<Self, Refusal> {
        let mut fields = Fields::of(FRAME, bytes)?;
        let mut vouching = None;
        while let Some((tag, part)) = fields.next()? {
            match tag {
                CREDENTIAL if vouching.is_none() => vouching = Some(Vouching::Full(part)),
                CREDENTIAL_ID if vouching.is_none() => {
                    let id = part.as_ref().try_into().map_err(|_| broken())?;
                    vouching = Some(Vouching::Known(Digest(id)));
                }
                ENVELOPE if fields.are_over() => {
                    let vouching = vouching.ok_or_else(broken)?;
                    return Ok(Self {
                        vouching,
                        envelope: part,
                    });
                }
                _ => return Err(broken()),
            }
        }
        Err(broken())
    }
}

/// What every frame of a link between brokers begins with.
pub const RELAY: u8 = 0xfd;

const TOKEN: u8 = 3;
const ONWARD: u8 = 4;
const VISITED: u8 = 5;
const AGE: u8 = 6;

/// An agent's envelope on its way between brokers, with what its home broker adds. Only the tokens prove
/// anything: where it has been, and how old a view is, are the neighbour's claims.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relay {
    /// Sealed tokens of the recipient's own root for whoever signed the envelope, base64url; with a call.
    pub tokens: Vec<Bytes>,
    /// The same for the broker after it.
    pub onward: Vec<Bytes>,
    /// Organisations that it has come through.
    pub visited: Vec<Org>,
    /// With a call that is passed on: how old the view of its home's dead keys was by which it was let
    /// through. To the millisecond; more than 49 days count as 49 days.
    pub age: Option<Duration>,
    /// The envelope, byte for byte as it was signed.
    pub envelope: Bytes,
}

impl Relay {
    /// As it goes on the wire.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let tokens = self.tokens.iter().map(|token| (TOKEN, &**token));
        let onward = self.onward.iter().map(|token| (ONWARD, &**token));
        let visited = self.visited.iter();
        let visited = visited.map(|org| (VISITED, org.as_str().as_bytes()));
        let age = self.age.map(|age| age.as_millis());
        let age = age.map(|age| u32::try_from(age).unwrap_or(u32::MAX).to_be_bytes());
        let age = age.iter().map(|age| (AGE, &age[..]));
        let envelope = std::iter::once((ENVELOPE, &*self.envelope));
        let fields = tokens.chain(onward).chain(visited);
        let fields = fields.chain(age).chain(envelope);
        encode(RELAY, &fields.collect::<Vec<_>>())
    }

    /// Reads a frame. Its parts share the memory of `bytes`.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotStrictJson`] where it is not one: an unknown tag, too many parts, a wrong length.
    pub fn decode(bytes: Bytes) -> Result<Self, Refusal> {
        let mut relay = Self::default();
        let mut fields = Fields::of(RELAY, bytes)?;
        while let Some((tag, part)) = fields.next()? {
            match tag {
                TOKEN if relay.tokens.len() < RELAY_TOKENS_MAX => relay.tokens.push(part),
                ONWARD if relay.onward.len() < RELAY_TOKENS_MAX => relay.onward.push(part),
                VISITED if relay.visited.len() < HOPS_MAX => {
                    let org = std::str::from_utf8(&part).map_err(|_| broken())?;
                    relay.visited.push(org.parse().map_err(|_| broken())?);
                }
                AGE if relay.age.is_none() => {
                    let age = part.as_ref().try_into().map_err(|_| broken())?;
                    relay.age = Some(Duration::from_millis(u32::from_be_bytes(age).into()));
                }
                ENVELOPE if fields.are_over() => {
                    relay.envelope = part;
                    return Ok(relay);
                }
                _ => return Err(broken()),
            }
        }
        Err(broken())
    }
}

fn broken() -> Refusal {
    Refusal::NotStrictJson("not a frame of this protocol".into())
}

fn encode(first: u8, fields: &[(u8, &[u8])]) -> Bytes {
    let length: usize = fields.iter().map(|(_, bytes)| 5 + bytes.len()).sum();
    let mut out = BytesMut::with_capacity(1 + length);
    out.put_u8(first);
    for (tag, bytes) in fields {
        out.put_u8(*tag);
        // Each is bounded by the largest envelope, 16 MiB.
        out.put_u32(bytes.len() as u32);
        out.put_slice(bytes);
    }
    out.freeze()
}

/// The fields of a frame, one after the other.
struct Fields(Bytes);

impl Fields {
    fn of(first: u8, mut bytes: Bytes) -> Result<Self, Refusal> {
        if bytes.first() != Some(&first) {
            return Err(broken());
        }
        Ok(Self(bytes.split_off(1)))
    }

    fn are_over(&self) -> bool {
        self.0.is_empty()
    }

    fn next(&mut self) -> Result<Option<(u8, Bytes)>, Refusal> {
        if self.are_over() {
            return Ok(None);
        }
        if self.0.len() < 5 {
            return Err(broken());
        }
        let head = self.0.split_to(5);
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if self.0.len() < length {
            return Err(broken());
        }
        Ok(Some((head[0], self.0.split_to(length))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_gives_back_exactly_the_bytes_that_went_in() {
        for vouching in [
            Vouching::Full(Bytes::from_static(b"{\"type\":\"credential\"}")),
            Vouching::Known(Digest([7; 32])),
        ] {
            let frame = Frame {
                vouching,
                envelope: Bytes::from_static(b"{}"),
            };
            assert_eq!(Frame::decode(frame.encode()).unwrap(), frame);
        }
    }

    #[test]
    fn a_frame_that_is_cut_padded_or_unknown_in_any_part_is_refused() {
        let frame = Frame {
            vouching: Vouching::Known(Digest([7; 32])),
            envelope: Bytes::from_static(b"{}"),
        };
        let good = frame.encode();
        for length in 0..good.len() {
            assert!(Frame::decode(good.slice(..length)).is_err(), "{length}");
        }
        let mut longer = good.to_vec();
        longer.push(0);
        assert!(Frame::decode(longer.into()).is_err());
        let mut unknown = good.to_vec();
        unknown[1] = 9;
        assert!(Frame::decode(unknown.into()).is_err());
    }

    #[test]
    fn a_relay_gives_back_exactly_what_went_in_and_takes_no_more_parts_than_it_may() {
        let relay = Relay {
            tokens: vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")],
            onward: vec![Bytes::from_static(b"next")],
            visited: vec!["acme".parse().unwrap()],
            age: Some(Duration::from_millis(70_000)),
            envelope: Bytes::from_static(b"{}"),
        };
        let good = relay.encode();
        assert_eq!(Relay::decode(good.clone()).unwrap(), relay);
        for length in 0..good.len() {
            assert!(Relay::decode(good.slice(..length)).is_err(), "{length}");
        }
        let crowded = Relay {
            tokens: vec![Bytes::from_static(b"t"); RELAY_TOKENS_MAX + 1],
            ..relay
        };
        assert!(Relay::decode(crowded.encode()).is_err());
    }
}
