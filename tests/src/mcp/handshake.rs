//! Requests as a client of 2025-11-25 makes them: in a session that begins with a handshake.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};

use crate::mcp::stateless::post;
use crate::wire::Posting;

/// The first message of a client, which can be asked nothing.
#[must_use]
pub fn hello() -> Value {
    let params = json!({
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    });
    message("initialize", &params)
}

/// What a client says once it was answered.
#[must_use]
pub fn ready() -> Value {
    json!({"jsonrpc": "2.0", "method": "notifications/initialized"})
}

/// A request in a session, as a message.
#[must_use]
pub fn message(method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

/// A session over HTTP.
#[derive(Debug)]
pub struct Session {
    path: String,
    token: Option<String>,
    id: String,
}

impl Session {
    /// Begins a session, with a bearer token or without.
    ///
    /// # Errors
    ///
    /// When the server does not give one.
    pub async fn begin(posting: &mut Posting, path: &str, token: Option<&str>) -> Result<Self> {
        let request = post(path, token).body(Full::new(hello().to_string().into()))?;
        let reply = posting.ask(request).await?;
        let id = reply.headers().get("mcp-session-id");
        let id = id.with_context(|| format!("no session: {reply:?}"))?;
        let session = Self {
            path: path.to_owned(),
            token: token.map(str::to_owned),
            id: id.to_str()?.to_owned(),
        };
        let reply = posting.ask(session.posted(&ready())?).await?;
        ensure!(reply.status() == 202, "{reply:?}");
        Ok(session)
    }

    /// A request in it.
    ///
    /// # Errors
    ///
    /// When the path, the token or the session's id cannot stand in a request.
    pub fn request(&self, method: &str, params: &Value) -> Result<Request<Full<Bytes>>> {
        self.posted(&message(method, params))
    }

    fn posted(&self, message: &Value) -> Result<Request<Full<Bytes>>> {
        let request = post(&self.path, self.token.as_deref())
            .header("mcp-protocol-version", "2025-11-25")
            .header("mcp-session-id", &self.id);
        Ok(request.body(Full::new(message.to_string().into()))?)
    }
}
