//! WebSocket sessions: challenge, attach, then envelopes both ways. One task owns a connection; what
//! is ready to be written goes out in one write.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use proto_spec::limits::CHALLENGE_VALIDITY;
use proto_spec::message::Challenge;
use proto_spec::{Digest, Kind};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::http::plain;
use super::{Client, Phase, Seat, reached};
use crate::calls::Place;
use crate::pipeline::{Core, Door, Step};
use crate::state::sessions::Session;

/// An idle session is pinged so often, and closed when it has said nothing for two of these.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long a session may take to read what is written to it.
const WRITE_MAX: Duration = Duration::from_secs(30);
/// Messages read, and messages written, before the other side has its turn.
const BATCH: usize = 64;
/// Ten thousand idle sessions are cheap: buffers begin small.
const BUFFER_BYTES: usize = 4 << 10;

type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// Answers the upgrade request; the session goes on by itself.
pub(super) fn upgrade(
    core: Arc<Core>,
    mut request: Request<Incoming>,
    client: Client,
    phase: watch::Receiver<Phase>,
    seat: Arc<Seat>,
) -> Response<Full<Bytes>> {
    let headers = request.headers();
    let says = |name, value: &str| {
        headers
            .get(name)
            .and_then(|found| found.to_str().ok())
            .is_some_and(|found| {
                found
                    .split(',')
                    .any(|part| part.trim().eq_ignore_ascii_case(value))
            })
    };
    let key = headers.get(SEC_WEBSOCKET_KEY).cloned();
    let is_upgrade = request.version() == Version::HTTP_11
        && says(UPGRADE, "websocket")
        && says(CONNECTION, "upgrade")
        && says(SEC_WEBSOCKET_VERSION, "13");
    let (true, Some(key)) = (is_upgrade, key) else {
        let mut reply = plain(
            StatusCode::UPGRADE_REQUIRED,
            "a WebSocket (RFC 6455, version 13) is opened here\n",
        );
        reply
            .headers_mut()
            .insert(UPGRADE, HeaderValue::from_static("websocket"));
        reply
            .headers_mut()
            .insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return reply;
    };
    let accept = derive_accept_key(key.as_bytes());
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrading.await else {
            return;
        };
        // Back to the bare TLS stream: the HTTP machinery and its buffers are not needed any more.
        let Ok(parts) = upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>() else {
            return;
        };
        let limit = core.config.limits.envelope_bytes_max;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES)
            // A frame holds an envelope and a credential at most; what a slow reader leaves is bounded.
            .max_write_buffer_size(2 * limit + 64 * 1024)
            .max_message_size(Some(limit))
            .max_frame_size(Some(limit));
        let stream = parts.io.into_inner();
        let socket = WebSocketStream::from_partially_read(
            stream,
            parts.read_buf.to_vec(),
            Role::Server,
            Some(config),
        )
        .await;
        run(&core, socket, client, phase).await;
        drop(seat);
    });
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Ok(value) = HeaderValue::from_str(&accept) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, value);
    }
    reply
}

async fn run(core: &Core, mut socket: Socket, client: Client, phase: watch::Receiver<Phase>) {
    let (outbox, queue) = mpsc::channel(core.config.limits.outbox_max);
    let Some(session) = attach(core, &mut socket, client, outbox).await else {
        let _ = timeout(
            WRITE_MAX,
            socket.close(Some(close_frame(CloseCode::Policy, "not attached"))),
        )
        .await;
        return;
    };
    let why = converse(core, &mut socket, &session, queue, phase).await;
    core.state.sessions.detach(&session);
    Place {
        core,
        now: core.clock.now(),
    }
    .session_gone(&session);
    tracing::info!(agent = %session.agent(), session = session.id(), why = why.says(), "detached");
    let _ = timeout(WRITE_MAX, socket.close(why.frame())).await;
}

/// Challenges the connection, and takes the one `attach` that answers in time.
async fn attach(
    core: &Core,
    socket: &mut Socket,
    client: Client,
    outbox: mpsc::Sender<Bytes>,
) -> Option<Arc<Session>> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).ok()?;
    let challenge = Digest(random);
    let said = core.voice.say(
        Kind::Challenge,
        None,
        None,
        &Challenge { challenge },
        core.clock.now(),
    );
    send(socket, said.bytes).await.ok()?;
    let message = timeout(CHALLENGE_VALIDITY, next_envelope(socket))
        .await
        .ok()
        .flatten()?;
    match core
        .attach(message, challenge, client.channel(), outbox)
        .await
    {
        Ok((session, ack)) => match send(socket, ack).await {
            Ok(()) => Some(session),
            Err(_) => {
                core.state.sessions.detach(&session);
                None
            }
        },
        Err(answer) => {
            let _ = send(socket, answer.envelope).await;
            None
        }
    }
}

async fn next_envelope(socket: &mut Socket) -> Option<Bytes> {
    loop {
        match socket.next().await {
            Some(Ok(message)) if message.is_ping() || message.is_pong() => {}
            Some(Ok(message)) if message.is_text() || message.is_binary() => {
                return Some(message.into_data());
            }
            _ => return None,
        }
    }
}

/// Why a conversation ended.
enum Ended {
    ByClient,
    Silent,
    TooSlow,
    TooLarge,
    Closed,
    Stopping,
}

impl Ended {
    fn says(&self) -> &'static str {
        match self {
            Self::ByClient => "the client closed",
            Self::Silent => "it did not answer a ping",
            Self::TooSlow => "it did not read",
            Self::TooLarge => "it sent more than an envelope may hold",
            Self::Closed => "its key is no longer good, or its queue was full",
            Self::Stopping => "the broker stops",
        }
    }

    fn frame(&self) -> Option<CloseFrame> {
        let code = match self {
            Self::ByClient => return None,
            Self::Silent | Self::Closed | Self::TooSlow => CloseCode::Policy,
            Self::TooLarge => CloseCode::Size,
            Self::Stopping => CloseCode::Restart,
        };
        Some(close_frame(code, self.says()))
    }
}

fn close_frame(code: CloseCode, reason: &'static str) -> CloseFrame {
    CloseFrame {
        code,
        reason: reason.into(),
    }
}

async fn converse(
    core: &Core,
    socket: &mut Socket,
    session: &Arc<Session>,
    mut queue: mpsc::Receiver<Bytes>,
    mut phase: watch::Receiver<Phase>,
) -> Ended {
    let door = Door::Session(Arc::clone(session));
    let mut ping = interval(PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ping.reset();
    let mut heard = true;
    loop {
        let ended = tokio::select! {
            message = socket.next() => {
                heard = true;
                read(core, socket, &door, message).await
            }
            Some(first) = queue.recv() => {
                feed(socket, session, first, &mut queue).await
            }
            _ = ping.tick() => {
                if !std::mem::take(&mut heard) {
                    return Ended::Silent;
                }
                // A session that is idle answers this; one that is not has been heard.
                feed_message(socket, Message::Ping(Bytes::new())).await
            }
            () = session.closed() => return Ended::Closed,
            () = reached(Phase::Stopping, &mut phase) => return Ended::Stopping,
        };
        if let Err(ended) = ended {
            return ended;
        }
        match timeout(WRITE_MAX, socket.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ended::ByClient,
            Err(_) => return Ended::TooSlow,
        }
    }
}

/// Handles a message and those that are ready behind it; answers are fed, not flushed.
async fn read(
    core: &Core,
    socket: &mut Socket,
    door: &Door,
    first: Option<Result<Message, Error>>,
) -> Result<(), Ended> {
    let mut message = first;
    let mut handled = 0;
    loop {
        let bytes = match message {
            Some(Ok(message)) if message.is_text() || message.is_binary() => message.into_data(),
            Some(Ok(message)) if message.is_close() => return Err(Ended::ByClient),
            Some(Ok(_)) => Bytes::new(),
            Some(Err(Error::Capacity(_))) => return Err(Ended::TooLarge),
            Some(Err(_)) | None => return Err(Ended::ByClient),
        };
        if !bytes.is_empty() {
            let answer = match core.handle(bytes, door).await {
                Ok(Step::Say(envelope)) => Some(envelope),
                Ok(Step::Order(order, agent, id)) => {
                    Some(core.settle(order, agent, id).await.envelope)
                }
                Ok(Step::Wait(..) | Step::Nothing) => None,
                Err(answer) => Some(answer.envelope),
            };
            if let Some(envelope) = answer {
                feed_message(socket, Message::Binary(envelope)).await?;
            }
        }
        // What is taken off the socket is handled: at the end of a batch nothing more is taken.
        handled += 1;
        if handled == BATCH {
            return Ok(());
        }
        match socket.next().now_or_never() {
            Some(next) => message = next,
            None => return Ok(()),
        }
    }
}

/// Feeds what waits for this session, as much as is ready.
async fn feed(
    socket: &mut Socket,
    session: &Session,
    first: Bytes,
    queue: &mut mpsc::Receiver<Bytes>,
) -> Result<(), Ended> {
    let (mut next, mut fed) = (Some(first), 0);
    while let Some(message) = next {
        session.taken(&message);
        feed_message(socket, Message::Binary(message)).await?;
        fed += 1;
        // At the end of a batch nothing more is taken off the queue.
        next = if fed < BATCH {
            queue.try_recv().ok()
        } else {
            None
        };
    }
    Ok(())
}

async fn feed_message(socket: &mut Socket, message: Message) -> Result<(), Ended> {
    match timeout(WRITE_MAX, socket.feed(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Ended::ByClient),
        Err(_) => Err(Ended::TooSlow),
    }
}

async fn send(socket: &mut Socket, bytes: Bytes) -> Result<(), Ended> {
    match timeout(WRITE_MAX, socket.send(Message::Binary(bytes))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Ended::ByClient),
        Err(_) => Err(Ended::TooSlow),
    }
}
