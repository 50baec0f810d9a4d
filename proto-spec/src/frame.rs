//! Deliveries: a short header and the envelope's bytes as they came. The header grants nothing.
//!
//! A frame is the byte `0xfe`, then fields: one byte of tag, four bytes of length (big endian), that
//! many bytes. The envelope is the last field. An envelope begins with `{`, so no message on a
//! connection can be taken for the other.

use bytes::{BufMut as _, Bytes, BytesMut};

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
        let mut out = BytesMut::with_capacity(11 + word.1.len() + self.envelope.len());
        out.put_u8(FRAME);
        for (tag, bytes) in [word, (ENVELOPE, &*self.envelope)] {
            out.put_u8(tag);
            // Both are bounded by the largest envelope, 16 MiB.
            out.put_u32(bytes.len() as u32);
            out.put_slice(bytes);
        }
        out.freeze()
    }

    /// Reads a frame. Its parts share the memory of `bytes`.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotStrictJson`] where it is not one: an unknown tag, a missing part, a wrong length.
    pub fn decode(mut bytes: Bytes) -> Result<Self, Refusal> {
        let broken = || Refusal::NotStrictJson("not a delivery frame".into());
        if bytes.first() != Some(&FRAME) {
            return Err(broken());
        }
        let mut rest = bytes.split_off(1);
        let mut vouching = None;
        loop {
            if rest.len() < 5 {
                return Err(broken());
            }
            let head = rest.split_to(5);
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if rest.len() < length {
                return Err(broken());
            }
            let part = rest.split_to(length);
            match head[0] {
                CREDENTIAL if vouching.is_none() => vouching = Some(Vouching::Full(part)),
                CREDENTIAL_ID if vouching.is_none() => {
                    let id = part.as_ref().try_into().map_err(|_| broken())?;
                    vouching = Some(Vouching::Known(Digest(id)));
                }
                ENVELOPE if rest.is_empty() => {
                    let vouching = vouching.ok_or_else(broken)?;
                    return Ok(Self {
                        vouching,
                        envelope: part,
                    });
                }
                _ => return Err(broken()),
            }
        }
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
}
