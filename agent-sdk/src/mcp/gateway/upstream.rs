//! What a gateway makes calls through: an agent of this SDK, or a broker for whoever showed it a bearer token.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use proto_spec::{AgentId, Capability, Code, Digest};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::catalogue::{Catalogue, Scope};
use crate::mcp::rpc::RpcError;

/// Makes calls in the name of one agent. What it may do is decided anew at every call.
pub trait Upstream: Send + Sync + 'static {
    /// In whose name.
    fn agent(&self) -> &AgentId;

    /// Which of its agent's credentials it shows, where one can have several.
    fn credential(&self) -> Option<Digest> {
        None
    }

    /// What it may call now, as clients at `scope` see it. Every request asks: what was made before is given again
    /// while nothing has changed.
    fn catalogue<'a>(&'a self, scope: &'a Scope)
    -> BoxFuture<'a, Result<Arc<Catalogue>, RpcError>>;

    /// Makes a call. Dropping what it gives cancels the call.
    fn call(&self, call: Outgoing) -> BoxFuture<'_, Result<Box<dyn Ongoing>, RpcError>>;

    /// Is set anew whenever [`Upstream::catalogue`] may give something else than before.
    fn changes(&self) -> watch::Receiver<()>;
}

/// A call that is to be made.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Whom to call.
    pub to: AgentId,
    /// Which tool.
    pub tool: Capability,
    /// An object.
    pub arguments: Option<Box<RawValue>>,
    /// Of a request to an MCP server: its parameters beside the arguments, an object.
    pub mcp: Option<Box<RawValue>>,
    /// Whether progress and other notifications are wanted.
    pub progress: bool,
    /// How long an answer is waited for.
    pub deadline: Option<Duration>,
}

/// A call that was made.
pub trait Ongoing: Send {
    /// What comes next. After the answer nothing does.
    fn next(&mut self) -> BoxFuture<'_, Step>;
}

/// What comes of a call.
#[derive(Debug)]
pub enum Step {
    /// How far it is.
    Progress(crate::Progress),
    /// The tool's result, or why there is none.
    Answer(Result<Box<RawValue>, Failure>),
}

/// Why a call has no result.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The tool's own code, or a broker's ([`crate::Code`]).
    pub code: String,
    /// For people.
    pub message: String,
    /// What the tool added.
    pub data: Option<Box<RawValue>>,
    /// Whether the tool said so; else a broker did, or nobody answered.
    pub is_tools: bool,
}

/// A broker refused. The code is in the range that MCP leaves to implementations; FEM's own code is `fem` in
/// the error's data.
pub(super) const REFUSED: i64 = -32_000;

impl From<&Failure> for RpcError {
    /// What a broker refused, as a client of MCP is told it.
    fn from(refused: &Failure) -> Self {
        let code: Option<Code> = refused.code.parse().ok();
        let retryable = code.is_some_and(Code::is_retryable);
        let data = json!({"fem": refused.code, "retryable": retryable});
        Self::new(REFUSED, refused.message.clone()).with(&data)
    }
}

/// [`Upstream`]s are shared by the requests of one client.
pub type Shared = Arc<dyn Upstream>;
