//! A gateway over HTTP: what comes in by POST is answered with JSON, or with a stream of events where something
//! is said before the answer.
//!
//! A modern request stands for itself; closing its stream cancels it. A legacy one is in a session, goes on when
//! its stream is lost, and is cancelled by a notification.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, SizeHint};
use tokio::sync::watch;

use super::allowed::permits;
use super::answering::{Answering, Outcome, Said};
use super::bounds::Place;
use super::era::{Client, Era, LEGACY, MODERN, VERSION_KEY};
use super::fault::Fault;
use super::guest::{Asked, Guest};
use super::headers::{self, VERSION_HEADER};
use super::memory::Memory;
use super::session::Session;
use super::{Gateway, Scope, Shared, initialize};
use crate::mcp::rpc::{
    INTERNAL_ERROR, INVALID_PARAMS, INVALID_REQUEST, Id, Message, Object, RpcError,
};

/// What an answer's body is.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Which legacy session a request belongs to.
const SESSION_HEADER: HeaderName = HeaderName::from_static("mcp-session-id");
const EVENTS: &str = "text/event-stream";
const JSON: &str = "application/json";
/// A line that readers of events pass over.
const COMMENT: &str = ":\n\n";

/// An answer that is made already.
type Done<T> = Result<T, Box<Response<Body>>>;

/// Who comes, and where.
#[derive(Clone)]
struct Visit {
    upstream: Shared,
    scope: Scope,
}

impl Gateway {
    /// Answers one request of a client that calls through `upstream`, at the place `scope`. What proves who
    /// the client is (a bearer token, a connection) is for whoever calls this to have checked.
    pub async fn serve<B>(
        &self,
        request: Request<B>,
        upstream: Shared,
        scope: Scope,
    ) -> Response<Body>
    where
        B: hyper::body::Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        if !permits(&self.0.allowed, &head) {
            return refusal(
                StatusCode::FORBIDDEN,
                "this `Host` or `Origin` is not one of this place",
            );
        }
        let visit = Visit { upstream, scope };
        let answered = match head.method {
            Method::POST => self.post(head.headers, body, visit).await,
            Method::GET => self.notifications(&head.headers, visit),
            Method::DELETE => self.end(&head.headers, &visit),
            _ => Err(Box::new(not_allowed())),
        };
        answered.unwrap_or_else(|done| *done)
    }

    async fn post<B>(&self, headers: HeaderMap, body: B, visit: Visit) -> Done<Response<Body>>
    where
        B: hyper::body::Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let arriving = self.0.arriving.take_for(&*visit.upstream);
        let arriving = arriving.map_err(|fault| failed(None, &fault, Era::Modern))?;
        // Before any refusal: there are clients of HTTP/2 that lose an answer to what they have not said yet.
        let bytes = self.receive(body).await?;
        if !is(&headers, JSON) {
            return Err(Box::new(refusal(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "a message is application/json",
            )));
        }
        let message =
            Message::parse(&bytes).map_err(|why| failed(None, &why.into(), Era::Modern))?;
        drop((bytes, arriving));
        match message {
            Message::Request { id, method, params } => {
                if !accepts(&headers, &[JSON, EVENTS]) {
                    let why = "an answer is application/json or text/event-stream: accept both";
                    return Err(Box::new(refusal(StatusCode::NOT_ACCEPTABLE, why)));
                }
                let era = era_of(&headers, &params);
                let asked = Asked {
                    id: id.clone(),
                    method,
                    params,
                    headers: None,
                };
                let answered = match era {
                    Era::Modern => self.modern(headers, asked, visit).await,
                    Era::Legacy if asked.method == "initialize" => {
                        self.initialize(&asked, visit).await
                    }
                    Era::Legacy => {
                        let (session, memory) = self.session(&headers, &visit)?;
                        self.legacy(asked, visit, session, memory).await
                    }
                };
                answered.map_err(|fault| failed(Some(id), &fault, era))
            }
            Message::Notification { method, params } => {
                // Of a modern client there is none that changes anything.
                if era_of(&headers, &params) == Era::Legacy {
                    let (_, memory) = self.session(&headers, &visit)?;
                    heard(&memory, &method, &params);
                }
                Ok(empty(StatusCode::ACCEPTED))
            }
            Message::Response { id, outcome } => {
                let (_, memory) = self.session(&headers, &visit)?;
                if let Some(id) = id {
                    memory.answered(&id, outcome);
                }
                Ok(empty(StatusCode::ACCEPTED))
            }
        }
    }

    async fn receive<B>(&self, body: B) -> Done<Bytes>
    where
        B: hyper::body::Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let bounds = &self.0.bounds;
        let whole = Box::pin(Limited::new(body, bounds.message_bytes).collect());
        let received = tokio::select! {
            received = whole => received,
            () = self.0.clock.sleep(bounds.arrival) => {
                return Err(Box::new(refusal(StatusCode::REQUEST_TIMEOUT, "the message did not arrive in time")));
            }
        };
        match received {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(why) if why.is::<LengthLimitError>() => {
                let why = format!("a message has {} bytes at most", bounds.message_bytes);
                Err(Box::new(refusal(StatusCode::PAYLOAD_TOO_LARGE, &why)))
            }
            Err(_) => Err(Box::new(refusal(
                StatusCode::BAD_REQUEST,
                "the message did not arrive whole",
            ))),
        }
    }

    async fn modern(
        &self,
        headers: HeaderMap,
        mut asked: Asked,
        visit: Visit,
    ) -> Result<Response<Body>, Fault> {
        let client = Client::of_request(&asked.params);
        // What says nothing of itself is not compared with its headers.
        if !matches!(&client, Err(fault) if fault.error.code == INVALID_PARAMS) {
            headers::check_version(&headers, &asked.params)?;
        }
        let client = client?;
        headers::check(&headers, &asked.method, &asked.params)?;
        let places = match asked.method.as_str() {
            "subscriptions/listen" => &self.0.streams,
            _ => &self.0.requests,
        };
        let place = places.take_for(&*visit.upstream)?;
        asked.headers = Some(headers);
        let id = asked.id.clone();
        let guest = self.guest(visit, client);
        let answering = Answering::new(None, Some(place), |voice| async move {
            Some(guest.answer(&asked, &voice).await)
        });
        Ok(self.respond(answering, id, Era::Modern).await)
    }

    async fn initialize(&self, asked: &Asked, visit: Visit) -> Result<Response<Body>, Fault> {
        let caller = visit.upstream.agent().clone();
        let place = self.0.requests.take_for(&*visit.upstream)?;
        let session = initialize::session(&asked.params)?;
        let scope = visit.scope.clone();
        let times = (self.0.clock.now(), self.0.bounds.session);
        let id = self.0.seal.id(&session, &caller, &scope, times)?;
        let guest = self.guest(visit, session.client.clone());
        let told = initialize::result(&guest, &session.version).await?;
        let mut response = json(
            StatusCode::OK,
            &Message::answer(asked.id.clone(), Ok(told.raw())),
        );
        let id = HeaderValue::try_from(id);
        let id = id.map_err(|_| Fault::new(INTERNAL_ERROR, "the session has no id"))?;
        response.headers_mut().insert(SESSION_HEADER, id);
        Ok(held(response, Some(place)))
    }

    /// The session that a request says it belongs to, and what is remembered of it.
    fn session(&self, headers: &HeaderMap, visit: &Visit) -> Done<(Session, Arc<Memory>)> {
        let Some(id) = headers.get(SESSION_HEADER) else {
            let why = "`Mcp-Session-Id` is missing: `initialize` gives it";
            let error = RpcError::new(INVALID_REQUEST, why);
            return Err(failed(None, &error.into(), Era::Modern));
        };
        let now = self.0.clock.now();
        let open = |id| {
            let caller = visit.upstream.agent();
            let (session, until) = self.0.seal.open(id, caller, &visit.scope, now)?;
            let memory = self.0.memories.of(id, caller, until, now);
            (!memory.has_ended()).then_some((session, memory))
        };
        let unknown = || {
            Box::new(refusal(
                StatusCode::NOT_FOUND,
                "there is no such session: begin anew",
            ))
        };
        id.to_str().ok().and_then(open).ok_or_else(unknown)
    }

    async fn legacy(
        &self,
        asked: Asked,
        visit: Visit,
        session: Session,
        memory: Arc<Memory>,
    ) -> Result<Response<Body>, Fault> {
        let place = self.0.requests.take_for(&*visit.upstream)?;
        let its = Some(Arc::clone(&place));
        let id = asked.id.clone();
        let (abort, registration) = AbortHandle::new_pair();
        let running = memory.started(&id, abort)?;
        let guest = self.guest(visit, session.client);
        // On a task of its own: losing the stream is not cancelling. It ends with its call, which has a
        // deadline, and the place that it has bounds how many there are.
        let answering = Answering::new(Some(memory), its, |voice| {
            let work = async move {
                let answer = guest.answer(&asked, &voice).await;
                drop((running, place));
                answer
            };
            let task = tokio::spawn(Abortable::new(work, registration));
            async move { task.await.ok()?.ok() }
        });
        Ok(self.respond(answering, id, Era::Legacy).await)
    }

    /// The stream on which a legacy client hears what belongs to no request.
    fn notifications(&self, headers: &HeaderMap, visit: Visit) -> Done<Response<Body>> {
        if !headers.contains_key(SESSION_HEADER) {
            return Err(Box::new(not_allowed()));
        }
        if !accepts(headers, &[EVENTS]) {
            return Err(Box::new(refusal(
                StatusCode::NOT_ACCEPTABLE,
                "these are text/event-stream",
            )));
        }
        let (session, memory) = self.session(headers, &visit)?;
        let place = self.0.streams.take_for(&*visit.upstream);
        let place = place.map_err(|fault| failed(None, &fault, Era::Legacy))?;
        let guest = self.guest(visit, session.client);
        let left = memory.left(self.0.clock.now());
        let answering =
            Answering::new(Some(Arc::clone(&memory)), Some(place), |voice| async move {
                tokio::select! {
                    _ = guest.hear_all(&voice, memory.watched()) => None,
                    () = memory.over() => None,
                    () = guest.clock.sleep(left) => None,
                }
            });
        Ok(self.stream(None, answering, None))
    }

    /// Ends a legacy session. What another process remembers of it ends when it expires.
    fn end(&self, headers: &HeaderMap, visit: &Visit) -> Done<Response<Body>> {
        if !headers.contains_key(SESSION_HEADER) {
            return Err(Box::new(not_allowed()));
        }
        let (_, memory) = self.session(headers, visit)?;
        memory.end();
        Ok(empty(StatusCode::NO_CONTENT))
    }

    fn guest(&self, visit: Visit, client: Client) -> Guest {
        Guest {
            upstream: visit.upstream,
            scope: visit.scope,
            client,
            bounds: self.0.bounds,
            clock: Arc::clone(&self.0.clock),
        }
    }

    /// An answer that comes first is one; where something is said before it, or nothing for long, there is a
    /// stream. So that an error has its status, nothing is begun before.
    async fn respond(&self, mut answering: Answering, id: Id, era: Era) -> Response<Body> {
        let patience = self.0.bounds.patience;
        match answering.within(&*self.0.clock, patience).await {
            Some(Some(Said::Answer(answer))) => held(answered(id, answer, era), answering.place()),
            Some(Some(first @ Said::Message(_))) => self.stream(Some(first), answering, Some(id)),
            // A cancelled request is not answered; its stream ends.
            Some(None) | None => self.stream(None, answering, Some(id)),
        }
    }

    fn stream(&self, first: Option<Said>, answering: Answering, id: Option<Id>) -> Response<Body> {
        struct State {
            first: Option<Said>,
            answering: Answering,
            id: Option<Id>,
            clock: Arc<dyn crate::Clock>,
            is_over: watch::Receiver<bool>,
        }
        let state = State {
            first,
            answering,
            id,
            clock: Arc::clone(&self.0.clock),
            is_over: self.0.is_over.subscribe(),
        };
        let keep_alive = self.0.bounds.keep_alive;
        let events = stream::unfold(state, move |mut state| async move {
            let said = match state.first.take() {
                Some(first) => Some(Some(first)),
                None => tokio::select! {
                    biased;
                    _ = state.is_over.wait_for(|is_over| *is_over) => return None,
                    said = state.answering.within(&*state.clock, keep_alive) => said,
                },
            };
            let event = match said {
                None => COMMENT.to_owned(),
                Some(said) => event(&message(said?, state.id.clone())?),
            };
            Some((Ok(Frame::data(Bytes::from(event))), state))
        });
        let mut response = Response::new(StreamBody::new(events).boxed_unsync());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(EVENTS));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // Proxies are not to wait until there is more.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }
}

/// What a legacy client says without wanting an answer.
pub(super) fn heard(memory: &Memory, method: &str, params: &Object) {
    if method == "notifications/cancelled"
        && let Some(id) = params.read::<Id>("requestId")
    {
        memory.cancel(&id);
    }
}

/// A request that says of itself in which revision it is, is modern; so is one whose header says none of the
/// legacy revisions.
fn era_of(headers: &HeaderMap, params: &Object) -> Era {
    let says = params
        .object("_meta")
        .is_some_and(|meta| meta.has(VERSION_KEY));
    let header = headers
        .get(VERSION_HEADER)
        .map(|version| version.to_str().unwrap_or(MODERN).trim());
    match says || header.is_some_and(|version| !LEGACY.contains(&version)) {
        true => Era::Modern,
        false => Era::Legacy,
    }
}

fn is(headers: &HeaderMap, wanted: &str) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next());
    kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case(wanted))
}

/// Whether all of these are accepted; a client that does not say accepts everything.
fn accepts(headers: &HeaderMap, wanted: &[&str]) -> bool {
    if !headers.contains_key(ACCEPT) {
        return true;
    }
    let ranges = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|range| range.to_str().ok());
    let ranges: Vec<String> = ranges
        .flat_map(|ranges| ranges.split(','))
        .filter_map(|range| Some(range.split(';').next()?.trim().to_ascii_lowercase()))
        .collect();
    wanted.iter().all(|kind| {
        let (group, _) = kind.split_once('/').unwrap_or((kind, ""));
        let any = ["*/*".to_owned(), format!("{group}/*"), (*kind).to_owned()];
        ranges.iter().any(|range| any.contains(range))
    })
}

fn message(said: Said, id: Option<Id>) -> Option<Message> {
    match (said, id) {
        (Said::Message(message), _) => Some(message),
        (Said::Answer(answer), Some(id)) => {
            Some(Message::answer(id, answer.map_err(|fault| fault.error)))
        }
        (Said::Answer(_), None) => None,
    }
}

fn event(message: &Message) -> String {
    format!("event: message\ndata: {}\n\n", message.line())
}

fn answered(id: Id, answer: Outcome, era: Era) -> Response<Body> {
    match answer {
        Ok(result) => json(StatusCode::OK, &Message::answer(id, Ok(result))),
        Err(fault) => *failed(Some(id), &fault, era),
    }
}

/// An error with its status. Legacy revisions know statuses for few; their clients look for errors in what
/// is 200.
fn failed(id: Option<Id>, fault: &Fault, era: Era) -> Box<Response<Body>> {
    let is_legacys = matches!(
        fault.status,
        StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS
    );
    let status = match era {
        Era::Legacy if !is_legacys => StatusCode::OK,
        _ => fault.status,
    };
    let message = Message::Response {
        id,
        outcome: Err(fault.error.clone()),
    };
    let mut response = json(status, &message);
    if let Some(capability) = &fault.lacks {
        let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{capability}\"");
        if let Ok(challenge) = HeaderValue::try_from(challenge) {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
    }
    Box::new(response)
}

/// An answer that is under way until its body is read or given up.
fn held(response: Response<Body>, place: Option<Arc<Place>>) -> Response<Body> {
    response.map(|body| {
        Held {
            body,
            _place: place,
        }
        .boxed_unsync()
    })
}

struct Held {
    body: Body,
    _place: Option<Arc<Place>>,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn json(status: StatusCode, message: &Message) -> Response<Body> {
    let mut response = Response::new(Full::from(message.line()).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What is refused before it is read.
fn refusal(status: StatusCode, why: &str) -> Response<Body> {
    let outcome = Err(RpcError::new(INVALID_REQUEST, why));
    json(status, &Message::Response { id: None, outcome })
}

fn not_allowed() -> Response<Body> {
    let why = "messages come by POST; GET and DELETE are for sessions";
    let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, why);
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("GET, POST, DELETE"));
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::default().boxed_unsync());
    *response.status_mut() = status;
    response
}
