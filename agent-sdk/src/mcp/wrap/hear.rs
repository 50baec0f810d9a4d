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

/// How many bytes of an over-long message are looked at, at either end.
const ENVELOPE_BYTES_MAX: usize = 256;

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

/// Which request a message answers that is too long to be read, by its first and its last bytes. Servers
/// write the number before the result or after all else; what lies within a result has its quotes escaped
/// or its object closed before the message ends.
pub(super) fn answered(first: &[u8], last: &[u8]) -> Option<u64> {
    let compact = |bytes: &[u8]| -> Vec<u8> {
        let plain = bytes.iter().filter(|byte| !byte.is_ascii_whitespace());
        plain.copied().collect()
    };
    let number = |bytes: &[u8]| -> Option<(u64, usize)> {
        let digits = bytes
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        let number = std::str::from_utf8(&bytes[..digits]).ok()?.parse().ok()?;
        Some((number, digits))
    };
    let first = compact(first.get(..ENVELOPE_BYTES_MAX).unwrap_or(first));
    let body = first.strip_prefix(b"{")?;
    let body = body.strip_prefix(br#""jsonrpc":"2.0","#).unwrap_or(body);
    if let Some(rest) = body.strip_prefix(br#""id":"#)
        && let Some((id, digits)) = number(rest)
    {
        return rest[digits..].starts_with(b",").then_some(id);
    }
    let last = compact(&last[last.len().saturating_sub(ENVELOPE_BYTES_MAX)..]);
    let last = last.strip_suffix(b"}")?;
    let last = last.strip_suffix(br#","jsonrpc":"2.0""#).unwrap_or(last);
    let at = last.iter().rposition(|byte| *byte == b':')? + 1;
    let (id, digits) = number(&last[at..])?;
    (last[..at].ends_with(br#","id":"#) && at + digits == last.len()).then_some(id)
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
    fn an_answer_too_long_to_be_read_is_known_by_either_end() {
        for (first, last, id) in [
            (r#"{"jsonrpc":"2.0","id":7,"result":{"#, "}}", Some(7)),
            (r#"{ "id": 7, "jsonrpc": "2.0", "res"#, "}}", Some(7)),
            (
                r#"{"result":{"id":1,"#,
                r#"},"jsonrpc":"2.0","id":7}"#,
                Some(7),
            ),
            (r#"{"result":{"#, r#"x"},"id":7,"jsonrpc":"2.0"}"#, Some(7)),
            (r#"{"result":{"#, r#""a":1,"id":7}}"#, None),
            (r#"{"result":{"#, r#""id":7}"#, None),
            (r#"{"jsonrpc":"2.0","id":"7","result":"#, "}}", None),
            (
                r#"{"jsonrpc":"2.0","method":"n","params":{"id":7,"#,
                "}}",
                None,
            ),
            ("xxxx", "xxxx", None),
            ("", "", None),
        ] {
            assert_eq!(
                answered(first.as_bytes(), last.as_bytes()),
                id,
                "{first} {last}"
            );
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
