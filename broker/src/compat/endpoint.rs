//! One call of an older agent: JSON-RPC over plain HTTP, to a listed endpoint and the address it led to.
//!
//! What is at the other end is believed in nothing: its head, its body and its patience are bounded, it leads
//! nowhere else, and what it answers is strict JSON or nothing.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use proto_spec::limits::DEPTH_MAX;
use proto_spec::message::{ToolError, ToolResult};
use proto_spec::wire::check_strict;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::compat_endpoint::{Endpoint, Endpoints};
use crate::state::room::{Guest, Room};

/// How long finding an endpoint's address and connecting to it may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Bytes of an answer's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// What a probe asks: whatever is answered, something lives there.
const PROBE: &str = r#"{"jsonrpc":"2.0","method":"ping","id":0}"#;

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// Nothing was asked.
    NotAsked(String),
    /// It was asked, and may have done anything.
    Lost(String),
    /// It answered, with more bytes than these.
    TooLong(usize),
}

/// The one who is asked, within which bounds.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// Where.
    pub endpoint: &'a Endpoint,
    /// What addresses that may lead to.
    pub endpoints: &'a Endpoints,
}

impl Line<'_> {
    /// Calls a tool by its bare name, and gives the bytes of what comes back: at most `bytes_max`, for which
    /// `room` has to have that many KiB for this agent. Waits for as long as the other end takes: whoever calls
    /// this has a deadline.
    ///
    /// # Errors
    ///
    /// [`Failure`] says what is known then.
    pub async fn call(
        &self,
        id: u64,
        tool: &str,
        arguments: &RawValue,
        bytes_max: usize,
        room: (&Arc<Room>, &Guest),
    ) -> Result<Bytes, Failure> {
        let params = json!({"name": tool, "arguments": arguments});
        let asks = json!({"jsonrpc": "2.0", "method": "tools/call", "params": params, "id": id});
        // Aborted with this future: the connection ends with the call.
        let mut driver = JoinSet::new();
        let answer = self.post(asks.to_string().into(), &mut driver).await?;
        if answer.status() != StatusCode::OK {
            return Err(Failure::Lost(format!("HTTP {}", answer.status())));
        }
        collect(answer.into_body(), bytes_max, room).await
    }

    /// Whether anything answers there.
    pub async fn probe(&self, patience: Duration) -> bool {
        let mut driver = JoinSet::new();
        let asked = self.post(Bytes::from_static(PROBE.as_bytes()), &mut driver);
        matches!(timeout(patience, asked).await, Ok(Ok(_)))
    }

    async fn post(
        &self,
        body: Bytes,
        driver: &mut JoinSet<()>,
    ) -> Result<Response<Incoming>, Failure> {
        let lost = |why: hyper::Error| Failure::Lost(why.to_string());
        let stream = timeout(CONNECT_MAX, self.connect()).await;
        let stream = stream.unwrap_or_else(|_| Err("no connection in time".into()));
        let stream = TokioIo::new(stream.map_err(Failure::NotAsked)?);
        let (mut client, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(stream)
            .await
            .map_err(|why| Failure::NotAsked(why.to_string()))?;
        driver.spawn(async move { drop(connection.await) });
        let request = Request::post(self.endpoint.path())
            .header(HOST, self.endpoint.authority())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|why| Failure::NotAsked(why.to_string()))?;
        client.send_request(request).await.map_err(lost)
    }

    /// Asked once where the name leads; what is connected to is that address.
    async fn connect(&self) -> Result<TcpStream, String> {
        let found = self
            .endpoint
            .resolve()
            .await
            .map_err(|why| why.to_string())?;
        let address = found.into_iter().find(|one| self.endpoints.lets(*one));
        let address = address.ok_or("it leads to no address that is listed, or of the internet")?;
        TcpStream::connect(address)
            .await
            .map_err(|why| why.to_string())
    }
}

async fn collect<B>(
    mut body: B,
    bytes_max: usize,
    (room, agent): (&Arc<Room>, &Guest),
) -> Result<Bytes, Failure>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut all = BytesMut::new();
    let mut seats = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|why| Failure::Lost(why.to_string()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if all.len() + data.len() > bytes_max {
            return Err(Failure::TooLong(bytes_max));
        }
        let kib = (all.len() + data.len()).div_ceil(1_024) - all.len().div_ceil(1_024);
        let seat = room.take(agent, kib);
        seats.push(seat.ok_or_else(|| Failure::Lost("no room for the answer".into()))?);
        all.extend_from_slice(&data);
    }
    Ok(all.freeze())
}

#[derive(Deserialize)]
struct Answer<'a> {
    id: u64,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<AnsweredError<'a>>,
}

#[derive(Deserialize)]
struct AnsweredError<'a> {
    code: i64,
    #[serde(borrow, default)]
    message: Cow<'a, str>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

/// `null` is a result too.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// What was answered to the call `id`, as a tool's result.
///
/// # Errors
///
/// [`Failure::Lost`] for what is no strict JSON-RPC answer to it.
pub fn read(answer: &[u8], id: u64) -> Result<ToolResult<'_>, Failure> {
    let lost = |why: &str| Failure::Lost(why.into());
    let text = std::str::from_utf8(answer).map_err(|_| lost("not UTF-8"))?;
    // As deep as the envelope around it lets it be.
    check_strict(text, DEPTH_MAX - 1).map_err(|why| Failure::Lost(why.to_string()))?;
    let said: Answer<'_> =
        serde_json::from_str(text).map_err(|why| Failure::Lost(why.to_string()))?;
    if said.id != id {
        return Err(lost("an answer to another call"));
    }
    match (said.result, said.error) {
        (result, Some(error)) if result.is_none_or(|raw| raw.get() == "null") => Ok(ToolResult {
            result: None,
            error: Some(ToolError {
                code: error.code.to_string().into(),
                message: error.message,
                data: error.data,
            }),
        }),
        (Some(result), None) => Ok(ToolResult {
            result: Some(result),
            error: None,
        }),
        _ => Err(lost("not one of result and error")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_result_or_an_error_of_the_call_that_was_made() {
        let result = |text: &str| {
            let read = read(text.as_bytes(), 7).ok()?;
            match read.error {
                Some(error) => Some(format!("{} {}", error.code, error.message)),
                None => read.result.map(|raw| raw.get().to_owned()),
            }
        };
        for (text, said) in [
            (
                r#"{"id":7,"jsonrpc":"2.0","result":{"output":"x"}}"#,
                r#"{"output":"x"}"#,
            ),
            (r#"{"id":7,"result":null}"#, "null"),
            (
                r#"{"id":7,"result":null,"error":{"code":-32000,"message":"no"}}"#,
                "-32000 no",
            ),
            (
                r#"{"id":7,"error":{"code":1,"message":"no","data":[]}}"#,
                "1 no",
            ),
        ] {
            assert_eq!(result(text).as_deref(), Some(said), "{text}");
        }
        let deep = format!(
            r#"{{"id":7,"result":{}{}}}"#,
            "[".repeat(64),
            "]".repeat(64)
        );
        for text in [
            r#"{"id":8,"result":1}"#,
            r#"{"id":"7","result":1}"#,
            r#"{"result":1}"#,
            r#"{"id":7}"#,
            r#"{"id":7,"error":null}"#,
            r#"{"id":7,"result":1,"error":{"code":1,"message":"no"}}"#,
            r#"{"id":7,"result":1,"result":2}"#,
            r#"{"id":7,"result":"#,
            "",
            "<html>",
            &deep,
        ] {
            assert_eq!(result(text), None, "{text}");
        }
        assert!(read(b"{\"id\":7,\"result\":\"\xff\"}", 7).is_err());
    }

    #[tokio::test]
    async fn one_agents_answers_leave_room_for_anothers() {
        let room = Room::new(8);
        let guest = |name: &str| Guest::Agent(format!("{name}@acme").parse().unwrap());
        let read = async |name: &str, kib: usize| {
            let body = Full::new(Bytes::from(vec![b' '; kib << 10]));
            collect(body, 64 << 10, (&room, &guest(name))).await
        };
        let _others = room.take(&guest("a"), 4).unwrap();
        assert!(matches!(read("a", 1).await, Err(Failure::Lost(_))));
        assert_eq!(read("b", 2).await.unwrap().len(), 2 << 10);
    }
}
