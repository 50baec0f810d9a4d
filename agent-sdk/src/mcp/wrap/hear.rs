//! From a server's bytes to a message, and which parts of one FEM can carry.

use proto_spec::limits::DEPTH_MAX;
use proto_spec::wire::check_strict;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::mcp::rpc::{INTERNAL_ERROR, Message, RpcError};

/// How deep a part of a message may nest: around it come the envelope, its body, and a tool error or what is
/// progress.
const PART_DEPTH_MAX: usize = DEPTH_MAX - 5;

/// What a server's bytes are.
#[derive(Debug)]
pub(super) enum Heard {
    /// A message.
    Message(Message),
    /// The answer to this request, which cannot go on: why.
    Spoilt(u64, RpcError),
    /// Nothing that concerns anybody: why.
    Junk(String),
}

#[derive(Deserialize)]
struct Loose {
    id: u64,
    method: Option<IgnoredAny>,
}

/// Reads one message.
pub(super) fn hear(bytes: &[u8]) -> Heard {
    let why = match std::str::from_utf8(bytes) {
        Err(why) => why.to_string(),
        Ok(_) => match Message::parse(bytes) {
            Ok(message) => return Heard::Message(message),
            Err(why) => why.message,
        },
    };
    match serde_json::from_str(&String::from_utf8_lossy(bytes)) {
        Ok(Loose { id, method: None }) => {
            let message = format!("the server's answer cannot be read: {why}");
            Heard::Spoilt(id, RpcError::new(INTERNAL_ERROR, message))
        }
        _ => Heard::Junk(why),
    }
}

/// Whether FEM can carry a part of a message: envelopes are stricter than JSON.
///
/// # Errors
///
/// Why not: it nests too deep, or a name stands twice in one of its objects.
pub(super) fn carried(part: &RawValue) -> Result<(), RpcError> {
    check_strict(part.get(), PART_DEPTH_MAX).map_err(|why| {
        RpcError::new(
            INTERNAL_ERROR,
            format!("what the server said cannot be carried: {why}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_cannot_be_read_ends_its_call() {
        for bytes in [
            &b"{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{\"a\":\"\xff\"}}"[..],
            br#"{"jsonrpc":"2.0","id":7,"result":{},"error":{"code":1,"message":""}}"#,
            br#"{"jsonrpc":"1.0","id":7,"result":{}}"#,
        ] {
            assert!(matches!(hear(bytes), Heard::Spoilt(7, _)), "{bytes:?}");
        }
    }

    #[test]
    fn what_an_envelope_could_not_hold_is_not_carried() {
        let nested = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        for (text, is_carried) in [
            (nested(PART_DEPTH_MAX), true),
            (nested(PART_DEPTH_MAX + 1), false),
            (nested(10_000), false),
            (r#"{"a":{"b":1,"b":2}}"#.into(), false),
            (r#"{"a":18446744073709551615}"#.into(), true),
        ] {
            let part = RawValue::from_string(text);
            assert_eq!(part.is_ok_and(|part| carried(&part).is_ok()), is_carried);
        }
    }

    #[test]
    fn what_is_no_message_is_nobodys() {
        for bytes in [
            &b"Server is listening"[..],
            b"",
            b"{}",
            b"[1]",
            b"\xff\xfe",
            br#"{"jsonrpc":"2.0","method":"n","params":{"a":1,"a":2}}"#,
        ] {
            assert!(matches!(hear(bytes), Heard::Junk(_)), "{bytes:?}");
        }
    }
}
