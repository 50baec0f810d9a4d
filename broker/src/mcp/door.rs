//! `/mcp` and `/mcp/<agent>`, and what tells a client without a token what is missing (RFC 6750, RFC 9728).

use std::sync::Arc;
use std::time::Duration;

use agent_sdk::mcp::gateway::{Body, Scope};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Request, Response, StatusCode};
use proto_spec::Refusal;
use serde_json::json;
use tokio::sync::SemaphorePermit;

use super::Mcp;
use super::caller::Bearer;
use crate::config::Mcp as Config;
use crate::pipeline::Core;

/// What is read of a request that is refused.
const SPILT_BYTES_MAX: usize = 64 << 10;
/// And how long it may take to come.
const SPILT_MAX: Duration = Duration::from_secs(2);

/// Serves one request for `/mcp` or what lies below it. Where MCP is not configured there is nothing here.
pub async fn answer(
    mcp: &Mcp,
    core: &Arc<Core>,
    request: Request<Incoming>,
) -> Option<Response<Body>> {
    let config = core.config.mcp.as_ref()?;
    let rest = request
        .uri()
        .path()
        .strip_prefix("/mcp")
        .unwrap_or_default();
    let scope = Scope::of_path(rest, &core.state.org);
    let (head, body) = request.into_parts();
    let admitted = match scope {
        None => Err(Box::new(text(StatusCode::NOT_FOUND, "no such agent\n"))),
        Some(scope) => admitted(mcp, core, config, &head, &body).map(|known| (scope, known)),
    };
    let (scope, (upstream, room)) = match admitted {
        Ok(admitted) => admitted,
        Err(refused) => {
            spill(body).await;
            return Some(*refused);
        }
    };
    // As long as the body is read: whoever reads it whole has done with it.
    let body = body.map_frame(move |frame| {
        let _until_then = &room;
        frame
    });
    let request = Request::from_parts(head, body);
    Some(mcp.gateway.serve(request, Arc::new(upstream), scope).await)
}

/// Who asks, and room for what they say; or the answer to those who may not.
fn admitted<'core>(
    mcp: &Mcp,
    core: &'core Arc<Core>,
    config: &Config,
    head: &Parts,
    body: &Incoming,
) -> Result<(Bearer, SemaphorePermit<'core>), Box<Response<Body>>> {
    let Some(token) = bearer_text(&head.headers) else {
        return Err(Box::new(unauthorized(config, None)));
    };
    let upstream = mcp.bearer(core, config, token).map_err(|refusal| {
        core.metrics.refused(refusal.code());
        tracing::info!(code = refusal.code().as_str(), reason = ?refusal.to_string(), "bearer refused");
        Box::new(match &refusal {
            Refusal::Busy(_) | Refusal::Internal => unavailable(&refusal),
            _ => unauthorized(config, Some(&refusal)),
        })
    })?;
    let room = core.room_for_body(body.size_hint().exact());
    let room = room.map_err(|why| Box::new(unavailable(&why)))?;
    Ok((upstream, room))
}

fn unavailable(why: &Refusal) -> Response<Body> {
    text(StatusCode::SERVICE_UNAVAILABLE, why.message())
}

/// Reads what comes with a request that is refused, so much and for so long: there are clients of HTTP/2 that lose
/// an answer to what they have not said yet.
async fn spill(mut body: Incoming) {
    let spilt = async {
        let mut left = SPILT_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    let _ = tokio::time::timeout(SPILT_MAX, spilt).await;
}

fn bearer_text(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

/// 401 as RFC 6750 and RFC 9728 have it: where to read what is missing, and what was wrong with what was shown.
fn unauthorized(config: &Config, why: Option<&Refusal>) -> Response<Body> {
    let mut says = format!("Bearer resource_metadata=\"{}\"", config.metadata_url());
    if let Some(refusal) = why {
        let code = refusal.code().as_str();
        says.push_str(&format!(
            ", error=\"invalid_token\", error_description=\"{code}\""
        ));
    }
    let told = match why {
        Some(refusal) => refusal.message(),
        None => "a bearer token is needed: `fem-cli mcp token` of an admin makes one".into(),
    };
    let mut reply = text(StatusCode::UNAUTHORIZED, told + "\n");
    if let Ok(value) = HeaderValue::from_str(&says) {
        reply.headers_mut().insert(WWW_AUTHENTICATE, value);
    }
    reply
}

/// The metadata of the protected resource (RFC 9728). It names no authorisation server: an admin issues the
/// tokens.
pub fn metadata(core: &Core) -> Option<Response<Body>> {
    let config = core.config.mcp.as_ref()?;
    let shown = json!({
        "resource": config.resource,
        "resource_name": format!("FEM broker of {}", core.state.org),
        "bearer_methods_supported": ["header"],
    });
    let mut reply = Response::new(full(shown.to_string()));
    let json = HeaderValue::from_static("application/json");
    reply.headers_mut().insert(CONTENT_TYPE, json);
    Some(reply)
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut reply = Response::new(full(text));
    *reply.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    reply.headers_mut().insert(CONTENT_TYPE, plain);
    reply
}

fn full(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).boxed_unsync()
}
