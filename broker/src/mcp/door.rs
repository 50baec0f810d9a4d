//! `/mcp` and `/mcp/<agent>`, and what tells a client without a token what is missing (RFC 6750, RFC 9728).

use std::sync::Arc;

use agent_sdk::mcp::gateway::{Body, Scope};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Request, Response, StatusCode};
use proto_spec::Refusal;
use serde_json::json;

use super::Mcp;
use crate::config::Mcp as Config;
use crate::pipeline::Core;

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
    let Some(scope) = Scope::of_path(rest, &core.state.org) else {
        return Some(text(StatusCode::NOT_FOUND, "no such agent\n"));
    };
    let Some(token) = bearer_text(&request) else {
        return Some(unauthorized(config, None));
    };
    let upstream = match mcp.bearer(core, config, token) {
        Ok(upstream) => upstream,
        Err(refusal) => {
            core.metrics.refused(refusal.code());
            tracing::info!(code = refusal.code().as_str(), reason = ?refusal.to_string(), "bearer refused");
            return Some(match &refusal {
                Refusal::Busy(_) | Refusal::Internal => {
                    text(StatusCode::SERVICE_UNAVAILABLE, refusal.message())
                }
                _ => unauthorized(config, Some(&refusal)),
            });
        }
    };
    let room = match core.room_for_body(request.body().size_hint().exact()) {
        Ok(room) => room,
        Err(refusal) => return Some(text(StatusCode::SERVICE_UNAVAILABLE, refusal.message())),
    };
    // As long as the body is read: whoever reads it whole has done with it.
    let request = request.map(|body| {
        body.map_frame(move |frame| {
            let _until_then = &room;
            frame
        })
    });
    Some(mcp.gateway.serve(request, Arc::new(upstream), scope).await)
}

fn bearer_text(request: &Request<Incoming>) -> Option<&str> {
    let value = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
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
