//! JSON-RPC 2.0 messages as MCP has them. What lies in them stays the JSON that was sent.
//!
//! Source: JSON-RPC 2.0 Specification; MCP 2025-11-25 and 2026-07-28, *Base protocol*. Batches, which MCP
//! removed in 2025-06-18, are not messages here.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

/// It was no JSON.
pub const PARSE_ERROR: i64 = -32_700;
/// It was no message.
pub const INVALID_REQUEST: i64 = -32_600;
/// Nobody answers this method.
pub const METHOD_NOT_FOUND: i64 = -32_601;
/// The parameters do not fit.
pub const INVALID_PARAMS: i64 = -32_602;
/// It went wrong on this side.
pub const INTERNAL_ERROR: i64 = -32_603;

/// The revision of MCP is none that is spoken there.
pub const UNSUPPORTED_VERSION: i64 = -32_022;
/// The client did not declare what it asks for, or would be asked.
pub const MISSING_CAPABILITY: i64 = -32_021;

/// A JSON object: its members in the order in which they came, their values as they were sent.
#[derive(Debug, Clone, Default)]
pub struct Object(Vec<(String, Box<RawValue>)>);

impl Object {
    /// Reads the text of an object.
    ///
    /// # Errors
    ///
    /// Where it is no JSON object, or has a member twice.
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }

    /// The value of a member.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&RawValue> {
        let (_, value) = self.0.iter().find(|(member, _)| member == name)?;
        Some(value)
    }

    /// The value of a member, if it is there and a `T`.
    #[must_use]
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.get(name)?.get()).ok()
    }

    /// The object that a member is, if it is there and one.
    #[must_use]
    pub fn object(&self, name: &str) -> Option<Self> {
        self.read(name)
    }

    /// Whether there is such a member.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Sets a member: in its place if it was there, else as the last.
    pub fn set(&mut self, name: &str, value: Box<RawValue>) {
        match self.0.iter_mut().find(|(member, _)| member == name) {
            Some((_, had)) => *had = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// Sets a member to what `value` is as JSON. What cannot be written as JSON becomes `null`.
    pub fn put(&mut self, name: &str, value: &(impl Serialize + ?Sized)) {
        let value = to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned());
        self.set(name, value);
    }

    /// Takes a member out.
    pub fn take(&mut self, name: &str) -> Option<Box<RawValue>> {
        let at = self.0.iter().position(|(member, _)| member == name)?;
        Some(self.0.remove(at).1)
    }

    /// Takes out all members that have such a name.
    pub fn take_all(&mut self, is_such: impl Fn(&str) -> bool) -> Self {
        let members = std::mem::take(&mut self.0).into_iter();
        let (taken, left) = members.partition(|(name, _)| is_such(name));
        self.0 = left;
        Self(taken)
    }

    /// Adds the members of another object.
    ///
    /// # Errors
    ///
    /// The name of one that both have; then nothing is added.
    pub fn join(&mut self, other: Self) -> Result<(), String> {
        let own: HashSet<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        let mut names = other.0.iter().map(|(name, _)| name);
        if let Some(both) = names.find(|name| own.contains(name.as_str())) {
            return Err(both.clone());
        }
        self.0.extend(other.0);
        Ok(())
    }

    /// The members in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.0.iter().map(|(name, value)| (name.as_str(), &**value))
    }

    /// Whether it has no member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether two members have one name: compared one by one while they are few, hashed with a random key beyond.
    fn has_twins(&self) -> bool {
        const FEW: usize = 12;
        let names = || self.0.iter().map(|(name, _)| name.as_str());
        match self.0.len() {
            ..=FEW => names()
                .enumerate()
                .any(|(at, name)| names().take(at).any(|before| before == name)),
            _ => {
                let mut seen = HashSet::with_capacity(self.0.len());
                !names().all(|name| seen.insert(name))
            }
        }
    }

    /// As JSON.
    #[must_use]
    pub fn raw(&self) -> Box<RawValue> {
        to_raw_value(self).unwrap_or_else(|_| RawValue::NULL.to_owned())
    }
}

impl FromIterator<(String, Box<RawValue>)> for Object {
    /// The first of members with one name counts.
    fn from_iter<I: IntoIterator<Item = (String, Box<RawValue>)>>(members: I) -> Self {
        let mut seen = HashSet::new();
        let members = members.into_iter();
        Self(
            members
                .filter(|(name, _)| seen.insert(name.clone()))
                .collect(),
        )
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut object = Object::default();
                while let Some(member) = map.next_entry()? {
                    object.0.push(member);
                }
                match object.has_twins() {
                    true => Err(A::Error::custom("a member stands twice")),
                    false => Ok(object),
                }
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// The id of a request: a string or an integer, as its sender wrote it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Id(Box<str>);

impl Id {
    /// An integer.
    #[must_use]
    pub fn number(number: u64) -> Self {
        Self(number.to_string().into())
    }

    /// What it is as JSON.
    #[must_use]
    pub fn as_json(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw = RawValue::from_string(self.0.to_string()).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let text = raw.get();
        let is_integer = text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok();
        match is_integer || text.starts_with('"') {
            true => Ok(Self(text.into())),
            false => Err(D::Error::custom("an id is a string or an integer")),
        }
    }
}

/// Why a request was not answered with a result.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct RpcError {
    /// Which.
    pub code: i64,
    /// For people.
    pub message: String,
    /// More, as it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
}

impl RpcError {
    /// Without data.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            data: None,
        }
    }

    /// Adds what programs can read.
    #[must_use]
    pub fn with(mut self, data: &(impl Serialize + ?Sized)) -> Self {
        self.data = to_raw_value(data).ok();
        self
    }
}

/// One message, either way.
#[derive(Debug, Clone)]
pub enum Message {
    /// Somebody waits for its answer.
    Request {
        /// By which the answer names it.
        id: Id,
        /// What is asked.
        method: String,
        /// With which parameters; empty where there were none.
        params: Object,
    },
    /// Nobody waits.
    Notification {
        /// What it is about.
        method: String,
        /// Its parameters; empty where there were none.
        params: Object,
    },
    /// The answer to a request.
    Response {
        /// Whose; none where the request could not be read.
        id: Option<Id>,
        /// Its result, as it was sent, or why there is none.
        outcome: Result<Box<RawValue>, RpcError>,
    },
}

#[derive(Deserialize)]
struct Read {
    jsonrpc: String,
    // `null` is what an answer to what could not be read has, and no request may.
    #[serde(default)]
    id: Option<Id>,
    method: Option<String>,
    params: Option<Object>,
    result: Option<Box<RawValue>>,
    error: Option<RpcError>,
}

#[derive(Serialize)]
struct Written<'a> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a Object>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a RpcError>,
}

impl Message {
    /// Reads a message. Its size is for whoever read it to bound.
    ///
    /// # Errors
    ///
    /// [`PARSE_ERROR`] where it is no JSON in UTF-8, [`INVALID_REQUEST`] where it is no message.
    pub fn parse(bytes: &[u8]) -> Result<Self, RpcError> {
        let not_json = |why: &dyn fmt::Display| RpcError::new(PARSE_ERROR, why.to_string());
        let text = std::str::from_utf8(bytes).map_err(|why| not_json(&why))?;
        let bad = |why: &str| RpcError::new(INVALID_REQUEST, why);
        let read: Read = serde_json::from_str(text).map_err(|why| {
            // Members that do not fit are another error than no JSON, which may come behind them.
            match serde_json::from_str::<&RawValue>(text) {
                Ok(_) => bad(&why.to_string()),
                Err(why) => not_json(&why),
            }
        })?;
        if read.jsonrpc != "2.0" {
            return Err(bad("`jsonrpc` is \"2.0\""));
        }
        match (read.method, read.id, read.result, read.error) {
            (Some(method), id, None, None) => {
                let params = read.params.unwrap_or_default();
                Ok(match id {
                    Some(id) => Self::Request { id, method, params },
                    None => Self::Notification { method, params },
                })
            }
            (None, Some(id), Some(result), None) => Ok(Self::Response {
                id: Some(id),
                outcome: Ok(result),
            }),
            (None, id, None, Some(error)) => Ok(Self::Response {
                id,
                outcome: Err(error),
            }),
            _ => Err(bad("neither a request nor the answer to one")),
        }
    }

    /// The answer to a request.
    #[must_use]
    pub fn answer(id: Id, outcome: Result<Box<RawValue>, RpcError>) -> Self {
        Self::Response {
            id: Some(id),
            outcome,
        }
    }

    /// As one line of JSON, without its end: what was sent over several lines is one, as stdio needs it.
    #[must_use]
    pub fn line(&self) -> String {
        let none = Written {
            jsonrpc: "2.0",
            id: None,
            method: None,
            params: None,
            result: None,
            error: None,
        };
        let some = |params: &Object| !params.is_empty();
        let written = match self {
            Self::Request { id, method, params } => Written {
                id: Some(id),
                method: Some(method),
                params: some(params).then_some(params),
                ..none
            },
            Self::Notification { method, params } => Written {
                method: Some(method),
                params: some(params).then_some(params),
                ..none
            },
            Self::Response { id, outcome } => Written {
                id: id.as_ref(),
                result: outcome.as_deref().ok(),
                error: outcome.as_ref().err(),
                ..none
            },
        };
        let text = serde_json::to_string(&written).unwrap_or_default();
        let has = |end: u8| text.as_bytes().contains(&end);
        match has(b'\n') || has(b'\r') {
            // Between tokens only: in a string JSON has them escaped.
            true => text.replace(['\n', '\r'], " "),
            false => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Message, RpcError> {
        Message::parse(text.as_bytes())
    }

    #[test]
    fn what_was_sent_is_relayed_as_it_was() {
        for text in [
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"z":1.0,"a":18446744073709551615,"m":{"y":1e5,"b":"\u00e9"}}}"#,
            r#"{"jsonrpc":"2.0","id":"a\"b","method":"ping"}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/x","params":{"_meta":{"b":1,"a":2}}}"#,
            r#"{"jsonrpc":"2.0","id":-7,"result":{"content":[{"type":"new","x":null}]}}"#,
            r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32042,"message":"m","data":[1]}}"#,
        ] {
            assert_eq!(parsed(text).unwrap().line(), text);
        }
    }

    #[test]
    fn what_was_sent_over_several_lines_is_one() {
        let text = "{\"jsonrpc\":\"2.0\",\"id\":1,\r\n\"result\":{\n\"a\":\t\"\\n\"}}";
        let line = parsed(text).unwrap().line();
        assert!(!line.contains(['\n', '\r']), "{line}");
        assert!(line.contains("\"\\n\""));
    }

    #[test]
    fn what_is_no_message_is_told_from_what_is_no_json() {
        for (text, code) in [
            ("", PARSE_ERROR),
            ("{", PARSE_ERROR),
            (r#"{"jsonrpc":"2.0"} x"#, PARSE_ERROR),
            (r#"{"jsonrpc":2.0,"method":x}"#, PARSE_ERROR),
            ("[]", INVALID_REQUEST),
            ("1", INVALID_REQUEST),
            (r#"{"jsonrpc":"1.0","id":1,"method":"a"}"#, INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1}"#, INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":{},"method":"a"}"#, INVALID_REQUEST),
            (
                r#"{"jsonrpc":"2.0","id":1.5,"method":"a"}"#,
                INVALID_REQUEST,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"a","params":[]}"#,
                INVALID_REQUEST,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":1,"x":2}}"#,
                INVALID_REQUEST,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"result":1,"error":{"code":1,"message":""}}"#,
                INVALID_REQUEST,
            ),
        ] {
            assert_eq!(parsed(text).unwrap_err().code, code, "{text}");
        }
        assert_eq!(Message::parse(b"\xff").unwrap_err().code, PARSE_ERROR);
    }

    #[test]
    fn no_member_stands_twice_among_few_or_many() {
        for more in [0, 100] {
            let members: Vec<String> = (0..=more).map(|n| format!("\"m{n}\":{n}")).collect();
            let members = members.join(",");
            assert!(Object::parse(&format!("{{{members}}}")).is_ok());
            assert!(Object::parse(&format!("{{{members},\"\\u006d0\":1}}")).is_err());
        }
    }

    #[test]
    fn an_object_keeps_its_order_when_a_member_changes() {
        let mut object = Object::parse(r#"{"b":1,"a":2}"#).unwrap();
        object.put("b", "x");
        object.put("c", &[1]);
        assert_eq!(object.raw().get(), r#"{"b":"x","a":2,"c":[1]}"#);
        assert_eq!(object.take("a").unwrap().get(), "2");
        assert!(!object.has("a"));
    }
}
