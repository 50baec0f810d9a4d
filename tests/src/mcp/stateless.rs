//! Requests as a client of 2026-07-28 makes them, and what is answered.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::http::request::Builder;
use hyper::{Request, Response};
use serde_json::{Value, json};

/// A request that stands for itself, as a message.
#[must_use]
pub fn message(method: &str, mut params: Value) -> Value {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

/// A request that stands for itself, with a bearer token or without.
///
/// # Errors
///
/// When the path or the token cannot stand in a request.
pub fn request(
    path: &str,
    token: Option<&str>,
    method: &str,
    params: Value,
) -> Result<Request<Full<Bytes>>> {
    let message = message(method, params);
    let mut request = post(path, token)
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", method);
    if let Some(name) = message["params"]["name"].as_str() {
        request = request.header("mcp-name", name);
    }
    Ok(request.body(Full::new(message.to_string().into()))?)
}

/// A POST as clients of every revision make it.
pub(super) fn post(path: &str, token: Option<&str>) -> Builder {
    let request = Request::post(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream");
    match token {
        Some(token) => request.header("authorization", format!("Bearer {token}")),
        None => request,
    }
}

/// The JSON of an answer, also where it came as the last event of a stream.
///
/// # Errors
///
/// When it has none.
pub fn read(reply: &Response<Bytes>) -> Result<Value> {
    let text = std::str::from_utf8(reply.body())?;
    let last = text.lines().rfind(|line| line.starts_with("data: {"));
    let json = last.map_or(text, |line| &line["data: ".len()..]);
    serde_json::from_str(json).with_context(|| text.to_owned())
}
