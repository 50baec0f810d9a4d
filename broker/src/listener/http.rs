//! HTTP/1.1 and HTTP/2: one envelope in, one signed envelope out.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_sdk::mcp::gateway::Body;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use proto_spec::message::WellKnown;
use proto_spec::{Digest, Refusal};
use tokio::sync::watch;

use super::reading::Unread;
use super::{Client, Seat, Stream, ws};
use crate::calls::Place;
use crate::compat;
use crate::config::METADATA;
use crate::conversation::WRITE_MAX;
use crate::mcp::{self, Mcp};
use crate::phase::{Phase, reached};
use crate::pipeline::{Core, Door, Refused, Step};
use crate::state::calls::Answer;

/// How long a client may take to send a request's head, and how long then its body.
const HEAD_MAX: Duration = Duration::from_secs(10);
const BODY_MAX: Duration = Duration::from_secs(30);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// How long an HTTP/2 connection may stay without a request.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Requests that one HTTP/2 connection may have open.
const STREAMS_MAX: u32 = 64;

/// How long answers may take to be read when the broker stops.
const STOP_MAX: Duration = Duration::from_secs(2);

/// Serves one connection until it ends, nobody asks or reads any more, or until its requests are done after a
/// stop.
pub(super) async fn serve(
    core: Arc<Core>,
    mcp: Option<Arc<Mcp>>,
    stream: Stream,
    client: Client,
    phase: watch::Receiver<Phase>,
    seat: Seat,
) {
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let seat = Arc::new(seat);
    let life = Life {
        requests: watch::Sender::default(),
        unread: Unread::default(),
        phase,
    };
    let service = {
        let life = life.clone();
        service_fn(move |request| {
            let (core, mcp, phase, seat) = (
                Arc::clone(&core),
                mcp.clone(),
                life.phase.clone(),
                Arc::clone(&seat),
            );
            let (open, unread) = (Open::count(&life.requests), life.unread.clone());
            async move {
                let reply = answer(core, mcp, request, client, phase, seat).await;
                Ok::<_, Infallible>(reply.map(|body| unread.answer(body, open)))
            }
        })
    };
    let io = TokioIo::new(stream);
    let ended = if is_h2 {
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .serve_connection(io, service);
        life.spend(connection, |connection| connection.graceful_shutdown())
            .await
    } else {
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            // Also the time between two requests.
            .header_read_timeout(HEAD_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(io, service)
            .with_upgrades();
        life.spend(connection, |connection| connection.graceful_shutdown())
            .await
    };
    if let Err(error) = ended {
        tracing::debug!(client = %client.address(), error = ?error.to_string(), "connection ended");
    }
}

/// What a connection's end depends on.
#[derive(Clone)]
struct Life {
    requests: watch::Sender<Requests>,
    unread: Unread,
    phase: watch::Receiver<Phase>,
}

impl Life {
    /// Serves a connection until it ends. It takes no more requests when none came for long, and when the broker
    /// stops; it is dropped when its client does not read, or keeps it open then.
    async fn spend<C: Future<Output = hyper::Result<()>>>(
        mut self,
        connection: C,
        shut_down: impl FnOnce(Pin<&mut C>),
    ) -> hyper::Result<()> {
        let mut connection = pin!(connection);
        let unread = self.unread.clone();
        let requests = self.requests.subscribe();
        let served = async {
            tokio::select! {
                ended = connection.as_mut() => return ended,
                () = idle(requests.clone()) => {}
                () = reached(Phase::Stopping, &mut self.phase) => {}
            }
            shut_down(connection.as_mut());
            let stopped = async {
                reached(Phase::Stopping, &mut self.phase).await;
                tokio::time::sleep(STOP_MAX).await;
            };
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = idle(requests) => Ok(()),
                () = stopped => Ok(()),
            }
        };
        tokio::select! {
            ended = served => ended,
            () = unread.stuck(WRITE_MAX) => Ok(()),
        }
    }
}

/// Requests of one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Requests {
    begun: u64,
    open: u32,
}

/// A request that is open until its answer was read.
#[derive(Default)]
pub(super) struct Open(watch::Sender<Requests>);

impl Open {
    fn count(requests: &watch::Sender<Requests>) -> Self {
        requests.send_modify(|now| {
            now.begun += 1;
            now.open += 1;
        });
        Self(requests.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0
            .send_modify(|now| now.open = now.open.saturating_sub(1));
    }
}

/// Returns when a connection has had no request for [`IDLE_MAX`]: pings alone do not keep a place.
async fn idle(requests: watch::Receiver<Requests>) {
    quiet(requests, || tokio::time::sleep(IDLE_MAX)).await;
}

/// Returns when a whole `patience` passed with no request open or begun.
async fn quiet<Patience: Future<Output = ()>>(
    mut requests: watch::Receiver<Requests>,
    patience: impl Fn() -> Patience,
) {
    loop {
        let is_open = requests.borrow_and_update().open > 0;
        tokio::select! {
            biased;
            _ = requests.changed() => {}
            () = patience(), if !is_open => return,
        }
    }
}

type Reply = Response<Full<Bytes>>;
/// What may also be a stream.
type Streamed = Response<Body>;

async fn answer(
    core: Arc<Core>,
    mcp: Option<Arc<Mcp>>,
    request: Request<Incoming>,
    client: Client,
    phase: watch::Receiver<Phase>,
    seat: Arc<Seat>,
) -> Streamed {
    let path = request.uri().path();
    if path == "/mcp" || path.starts_with("/mcp/") {
        let answered = match mcp {
            Some(mcp) => mcp::answer(&mcp, &core, request).await,
            None => None,
        };
        return answered.unwrap_or_else(|| whole(nothing_here()));
    }
    if path.starts_with(METADATA) && request.method() == Method::GET {
        return mcp::metadata(&core).unwrap_or_else(|| whole(nothing_here()));
    }
    whole(match (request.method(), path) {
        (&Method::POST, "/fem" | "/" | "/fep") => post(&core, request, client).await,
        (&Method::GET, "/fem/ws") => ws::upgrade(core, request, client, phase, seat),
        (&Method::GET, "/fem/link") => ws::upgrade_link(core, request, client, phase, seat),
        (&Method::GET, "/.well-known/fem") => well_known(&core),
        (_, "/fem" | "/" | "/fep") => not_allowed("POST"),
        (_, "/fem/ws" | "/.well-known/fem") => not_allowed("GET"),
        _ => nothing_here(),
    })
}

fn whole(reply: Reply) -> Streamed {
    reply.map(BodyExt::boxed_unsync)
}

pub(super) fn nothing_here() -> Reply {
    plain(
        StatusCode::NOT_FOUND,
        "nothing here; envelopes go to POST /fem\n",
    )
}

async fn post(core: &Core, request: Request<Incoming>, client: Client) -> Reply {
    let begun = Instant::now();
    let is_base = request.uri().path() != "/fem";
    let bytes = match read_body(core, request).await {
        Ok(bytes) => bytes,
        Err(refusal) => {
            let refused = Refused {
                refusal,
                stage: "read",
                sender: None,
                tell: None,
                kind: None,
                peer: None,
            };
            return envelope(core.refuse(&refused, begun));
        }
    };
    let (network, address) = (client.network(), client.address());
    // Older agents know the base URL alone.
    if is_base && compat::is_older(&bytes) {
        let door = Door::Older { network, address };
        let answer = handled(core, bytes.clone(), &door).await;
        return envelope(compat::answer(core, &bytes, &answer));
    }
    envelope(handled(core, bytes, &Door::Post { network, address }).await)
}

/// What comes of one request.
async fn handled(core: &Core, bytes: Bytes, door: &Door) -> Answer {
    match core.handle(bytes, door).await {
        Ok(Step::Say(envelope)) => Answer {
            envelope,
            credential: None,
            status: 200,
        },
        Ok(Step::Wait(id, waiting)) => {
            // Dropped with this future when the client closes the request, which cancels the call.
            let guard = CancelOnDrop { core, id: Some(id) };
            let answer = waiting.await;
            guard.answered();
            answer.unwrap_or_else(|_| internal(core))
        }
        Ok(Step::Order(order, agent, id)) => core.settle(order, agent, id).await,
        Ok(Step::Found(_) | Step::Nothing) => internal(core),
        Err(answer) => answer,
    }
}

fn internal(core: &Core) -> Answer {
    let refused = Refused {
        refusal: Refusal::Internal,
        stage: "answer",
        sender: None,
        tell: None,
        kind: None,
        peer: None,
    };
    core.refuse(&refused, Instant::now())
}

struct CancelOnDrop<'a> {
    core: &'a Core,
    id: Option<Digest>,
}

impl CancelOnDrop<'_> {
    fn answered(mut self) {
        self.id = None;
    }
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let now = self.core.clock.now();
            Place {
                core: self.core,
                now,
            }
            .end_call(id, &Refusal::Cancelled);
        }
    }
}

/// Reads a body within its bound: refused by its stated length before a byte of it is buffered, and by
/// its real one as soon as that is over.
async fn read_body(core: &Core, request: Request<Incoming>) -> Result<Bytes, Refusal> {
    let max = core.config.limits.envelope_bytes_max;
    let body = request.into_body();
    let stated = body.size_hint().lower();
    if stated > max as u64 {
        return Err(Refusal::TooLarge(
            usize::try_from(stated).unwrap_or(usize::MAX),
            max,
        ));
    }
    let _room = core.room_for_body(body.size_hint().exact())?;
    let read = Limited::new(body, max).collect();
    match tokio::time::timeout(BODY_MAX, read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Refusal::TooLarge(max + 1, max))
        }
        Ok(Err(_)) => Err(Refusal::NotStrictJson("the body ended early".into())),
        Err(_) => Err(Refusal::NotStrictJson(
            "the body did not come in time".into(),
        )),
    }
}

fn envelope(answer: Answer) -> Reply {
    let mut reply = Response::new(Full::new(answer.envelope));
    *reply.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(credential) = answer.credential
        && let Ok(value) = HeaderValue::from_str(&URL_SAFE_NO_PAD.encode(credential))
    {
        headers.insert("fem-credential", value);
    }
    reply
}

fn well_known(core: &Core) -> Reply {
    let limits = &core.config.limits;
    let shown = WellKnown {
        org: core.state.org.clone(),
        key: core.voice.public(),
        versions: vec![1],
        post: "/fem".into(),
        websocket: "/fem/ws".into(),
        envelope_bytes_max: limits.envelope_bytes_max as u64,
        clock_skew_max_ms: limits.clock_skew_max_ms,
        now: core.clock.now(),
        successions: core.state.broker_keys.successions(),
    };
    let body = serde_json::to_vec(&shown).unwrap_or_default();
    envelope(Answer {
        envelope: body.into(),
        credential: None,
        status: 200,
    })
}

pub(super) fn plain(status: StatusCode, text: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(text.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    reply
}

fn not_allowed(method: &'static str) -> Reply {
    let mut reply = plain(StatusCode::METHOD_NOT_ALLOWED, "another method\n");
    reply
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(method));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_idle_only_while_no_request_is_open() {
        let requests = watch::Sender::new(Requests::default());
        let open = Open::count(&requests);
        // Patience is over whenever it is asked for: only an open request holds it off.
        let waiting = tokio::spawn(quiet(requests.subscribe(), || std::future::ready(())));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(open);
        waiting.await.unwrap();
        // And what begins meanwhile begins the patience anew.
        let (asked, patience) = (
            std::cell::Cell::new(0),
            Arc::new(tokio::sync::Notify::new()),
        );
        let wait = quiet(requests.subscribe(), || {
            asked.set(asked.get() + 1);
            let patience = Arc::clone(&patience);
            async move { patience.notified().await }
        });
        let act = async {
            tokio::task::yield_now().await;
            drop(Open::count(&requests));
            tokio::task::yield_now().await;
            patience.notify_waiters();
        };
        tokio::join!(wait, act);
        assert_eq!(asked.get(), 2);
    }
}
