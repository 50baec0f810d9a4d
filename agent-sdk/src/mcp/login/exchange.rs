//! Asking the servers that are named while somebody logs in: one connection a request, bounded in time and bytes,
//! and nothing is followed to anywhere else.

use std::time::Duration;

use ::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use ::http::{Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};

use super::challenge::Challenge;
use super::scopes::Scopes;
use super::token::{self, Denied, Given};
use crate::clock::{Clock as _, SystemClock};
use crate::mcp::address::Address;
use crate::mcp::way::{Roots, Way};

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// How long one answer may take, connecting included.
const PATIENCE: Duration = Duration::from_secs(30);

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
const BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");

/// Whoever asks.
pub(super) struct Web {
    roots: Roots,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Web {
    /// Believes who servers are by `roots`.
    pub(super) fn new(roots: Roots) -> Self {
        Self { roots }
    }

    /// The first document that is at one of these places.
    ///
    /// # Errors
    ///
    /// Where there is none, or one of those before it does not answer.
    pub(super) async fn first(&self, places: &[Address]) -> Result<Bytes, String> {
        for place in places {
            let request = Request::builder().header(ACCEPT, JSON);
            let answer = self.ask(place, request, Bytes::new()).await?;
            match answer.status {
                status if status.is_success() && is_of(&answer.headers, "json") => {
                    return Ok(answer.body);
                }
                // Some servers answer whatever they are asked with the same page.
                status if status.is_success() || status.is_client_error() => {}
                status => return Err(format!("{place} answers {status}, and is not followed")),
            }
        }
        let places: Vec<&str> = places.iter().map(Address::as_str).collect();
        Err(format!("nothing is said at {}", places.join(" or ")))
    }

    /// Registers a client: what is answered.
    ///
    /// # Errors
    ///
    /// Where it is refused.
    pub(super) async fn register(&self, place: &Address, client: String) -> Result<Bytes, String> {
        let request = Request::builder()
            .method(Method::POST)
            .header(CONTENT_TYPE, JSON)
            .header(ACCEPT, JSON);
        let answer = self.ask(place, request, client.into()).await?;
        match answer.status.is_success() {
            true => Ok(answer.body),
            false => {
                let why = token::shown(&String::from_utf8_lossy(&answer.body));
                Err(format!(
                    "{place} registers no client: {} {why}",
                    answer.status
                ))
            }
        }
    }

    /// Asks for a token.
    ///
    /// # Errors
    ///
    /// [`Denied`].
    pub(super) async fn token(
        &self,
        place: &Address,
        asked: token::Request,
        scopes: &Scopes,
    ) -> Result<Given, Denied> {
        let mut request = Request::builder()
            .method(Method::POST)
            .header(CONTENT_TYPE, FORM)
            .header(ACCEPT, JSON);
        if let Some(shown) = asked.authorization {
            request = request.header(AUTHORIZATION, shown);
        }
        let form = Bytes::copy_from_slice(asked.form.as_bytes());
        let answer = self.ask(place, request, form).await;
        let answer = answer.map_err(Denied::Other)?;
        if answer.status.is_server_error() || answer.status.is_redirection() {
            let why = format!("{place} answers {}", answer.status);
            return Err(Denied::Other(why));
        }
        let is_success = answer.status.is_success();
        token::read(is_success, &answer.body, scopes, SystemClock.now())
    }

    /// What an MCP server wants of somebody who shows nothing. Nothing where it says nothing of that.
    ///
    /// # Errors
    ///
    /// Where it does not answer.
    pub(super) async fn challenge(
        &self,
        server: &Address,
        question: String,
    ) -> Result<Option<Challenge>, String> {
        let request = Request::builder()
            .method(Method::POST)
            .header(CONTENT_TYPE, JSON)
            .header(ACCEPT, BOTH)
            .header("mcp-protocol-version", crate::mcp::MODERN)
            .header("mcp-method", "server/discover");
        let answer = self.ask(server, request, question.into()).await?;
        let wants = answer.status == StatusCode::UNAUTHORIZED;
        Ok(wants.then(|| Challenge::of(&answer.headers).unwrap_or_default()))
    }

    async fn ask(
        &self,
        place: &Address,
        request: ::http::request::Builder,
        body: Bytes,
    ) -> Result<Answer, String> {
        let failed = |why: String| format!("{place}: {why}");
        let asked = async {
            let mut sender = Way::to(place, &self.roots)?.dial().await?;
            let request = request
                .uri(place.target())
                .header(HOST, place.authority())
                .body(Full::new(body))
                .map_err(|why| why.to_string())?;
            let answer = sender.send_request(request).await;
            let (head, body) = answer.map_err(|why| why.to_string())?.into_parts();
            // A stream says nothing here, and need not end.
            let body = match is_of(&head.headers, "event-stream") {
                true => Bytes::new(),
                false => Limited::new(body, ANSWER_BYTES_MAX)
                    .collect()
                    .await
                    .map_err(|why| why.to_string())?
                    .to_bytes(),
            };
            Ok(Answer {
                status: head.status,
                headers: head.headers,
                body,
            })
        };
        tokio::time::timeout(PATIENCE, asked)
            .await
            .unwrap_or_else(|_| Err("no answer in time".into()))
            .map_err(failed)
    }
}

/// Whether what comes is of a kind.
fn is_of(headers: &HeaderMap, kind: &str) -> bool {
    let said = headers
        .get(CONTENT_TYPE)
        .and_then(|said| said.to_str().ok());
    let said = said.and_then(|said| said.split(';').next());
    said.is_some_and(|said| said.trim_end().ends_with(kind))
}
