//! Why a request was not answered with a result, and which HTTP status says so.

use http::StatusCode;
use proto_spec::{Capability, Code};
use serde_json::json;

use super::upstream::{Failure, REFUSED};
use crate::mcp::MCP_ERROR;
use crate::mcp::rpc::{
    INTERNAL_ERROR, INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, MISSING_CAPABILITY,
    PARSE_ERROR, RpcError, UNSUPPORTED_VERSION,
};
use crate::mcp::words::beginning;
use crate::tool::INVALID_ARGUMENTS;

/// Headers and body contradict each other.
pub(super) const HEADER_MISMATCH: i64 = -32_020;

/// An error as it goes to the client.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    /// What is said in JSON-RPC.
    pub(super) error: RpcError,
    /// What is said in HTTP, where nothing was sent before it.
    pub(super) status: StatusCode,
    /// The capability for want of which it was refused.
    pub(super) lacks: Option<Capability>,
}

/// Characters of others' words in a line of the log.
const SHOWN_CHARS_MAX: usize = 256;

/// What others said went wrong, for the log, where it is to be written with `?`: it may hold anything.
pub(super) fn shown(why: &RpcError) -> String {
    beginning(&why.to_string(), SHOWN_CHARS_MAX)
}

impl From<RpcError> for Fault {
    fn from(error: RpcError) -> Self {
        let status = match error.code {
            METHOD_NOT_FOUND => StatusCode::NOT_FOUND,
            PARSE_ERROR | INVALID_REQUEST => StatusCode::BAD_REQUEST,
            HEADER_MISMATCH | MISSING_CAPABILITY | UNSUPPORTED_VERSION => StatusCode::BAD_REQUEST,
            // MCP names no other: the request was understood, and this is its answer.
            _ => StatusCode::OK,
        };
        Self {
            error,
            status,
            lacks: None,
        }
    }
}

impl Fault {
    pub(super) fn new(code: i64, message: impl Into<String>) -> Self {
        RpcError::new(code, message).into()
    }

    /// Nobody answers this method here.
    pub(super) fn no_method(method: &str) -> Self {
        Self::new(
            METHOD_NOT_FOUND,
            format!("nobody answers {method:.128?} here"),
        )
    }

    /// The request itself is wrong.
    pub(super) fn bad_request(error: RpcError) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            ..error.into()
        }
    }

    /// A bound of this gateway is reached.
    pub(super) fn busy(what: &str) -> Self {
        let data = json!({"fem": Code::Busy, "retryable": true});
        let error = RpcError::new(REFUSED, format!("too many {what}: try again later"));
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            ..error.with(&data).into()
        }
    }

    /// Why a call that requires `capability` has no result. What an MCP server said is passed on.
    pub(super) fn of_call(failure: &Failure, capability: &Capability) -> Self {
        if !failure.is_tools {
            return refused(failure, capability);
        }
        let said = failure.data.as_deref();
        if failure.code == MCP_ERROR
            && let Some(Ok(error)) = said.map(|data| serde_json::from_str::<RpcError>(data.get()))
        {
            return error.into();
        }
        let code = match failure.code.as_str() {
            INVALID_ARGUMENTS => INVALID_PARAMS,
            _ => INTERNAL_ERROR,
        };
        RpcError::new(code, failure.message.clone())
            .with(&json!({"tool": failure.code, "data": said}))
            .into()
    }
}

/// What a broker refused. Where the caller lacks the capability, MCP names the status.
fn refused(failure: &Failure, capability: &Capability) -> Fault {
    let fault = Fault::from(RpcError::from(failure));
    match failure.code.parse() {
        Ok(Code::Denied) => Fault {
            status: StatusCode::FORBIDDEN,
            lacks: Some(capability.clone()),
            ..fault
        },
        _ => fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_said_is_one_short_line_of_the_log() {
        let said = format!("no\n2026-11-22 INFO all is well{}", "\u{1b}".repeat(10_000));
        let shown = format!("{:?}", shown(&RpcError::new(1, said)));
        assert!(shown.is_ascii() && !shown.contains(['\n', '\u{1b}']));
        assert!(shown.len() < 2_000);
    }
}
