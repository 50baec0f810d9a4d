//! Where WebSockets begin: agents' sessions (challenge, attach), and peers' links.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use proto_spec::limits::{ATTACH_BYTES_MAX, CHALLENGE_VALIDITY, LINK_ATTACH_BYTES_MAX};
use proto_spec::message::Challenge;
use proto_spec::{Digest, Kind, Org};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::http::plain;
use super::{Client, Seat, Stream};
use crate::calls::Place;
use crate::conversation::{self, Hears, bounds, close, converse, link_bounds, send, turn_away};
use crate::federation::link::{self, Binding};
use crate::phase::{Phase, reached};
use crate::pipeline::{Core, Door, Step};
use crate::state::outbox::{Outbox, Queued};
use crate::state::peers::Peer;
use crate::state::sessions::Session;
use crate::threshold::Threshold;

type Socket = WebSocketStream<Threshold<Stream>>;
type Reply = Response<Full<Bytes>>;

/// Answers the upgrade request; the session goes on by itself.
pub(super) fn upgrade(
    core: Arc<Core>,
    mut request: Request<Incoming>,
    client: Client,
    phase: watch::Receiver<Phase>,
    seat: Arc<Seat>,
) -> Reply {
    let (reply, upgrading) = match handshake(&mut request) {
        Ok(accepted) => accepted,
        Err(reply) => return *reply,
    };
    tokio::spawn(async move {
        let limit = core.config.limits.envelope_bytes_max;
        if let Some(socket) = socket(upgrading, bounds(limit, limit), ATTACH_BYTES_MAX).await {
            run(&core, socket, client, phase).await;
        }
        drop(seat);
    });
    reply
}

/// Answers a request for a link. Whoever names an organisation that is no peer, or paused, sees what a
/// stranger sees who names a peer: who our peers are is nobody's business.
pub(super) fn upgrade_link(
    core: Arc<Core>,
    mut request: Request<Incoming>,
    client: Client,
    phase: watch::Receiver<Phase>,
    seat: Arc<Seat>,
) -> Reply {
    let org = request.headers().get(link::ORG_HEADER);
    let org = org.and_then(|value| value.to_str().ok()?.parse::<Org>().ok());
    let Some(org) = org else {
        return super::http::nothing_here();
    };
    let peer = core.state.peers.find(&org);
    let peer = peer.filter(|peer| !peer.is_paused);
    // Nobody else signs with our own key, so nobody proves to be this one.
    let peer = peer.unwrap_or_else(|| Arc::new(Peer::unproven(org, core.voice.public())));
    let (reply, upgrading) = match handshake(&mut request) {
        Ok(accepted) => accepted,
        Err(reply) => return *reply,
    };
    tokio::spawn(async move {
        let bounds = link_bounds(core.config.limits.envelope_bytes_max);
        if let Some(socket) = socket(upgrading, bounds, LINK_ATTACH_BYTES_MAX).await {
            match Binding::of_server(socket.get_ref().get_ref(), client.channel()) {
                Ok(binding) => link::run(&core, socket, &peer, binding, phase).await.ok(),
                Err(why) => {
                    tracing::info!(peer = %peer.org, %why, "no link");
                    None
                }
            };
        }
        drop(seat);
    });
    reply
}

/// The answer that accepts a WebSocket, or says what is wrong with the request.
fn handshake(request: &mut Request<Incoming>) -> Result<(Reply, OnUpgrade), Box<Reply>> {
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
        return Err(Box::new(reply));
    };
    let accept = derive_accept_key(key.as_bytes());
    let upgrading = hyper::upgrade::on(request);
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Ok(value) = HeaderValue::from_str(&accept) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, value);
    }
    Ok((reply, upgrading))
}

/// Back to the bare TLS stream: the HTTP machinery and its buffers are not needed any more. Until somebody is
/// attached it takes `attach_bytes_max`.
async fn socket(
    upgrading: OnUpgrade,
    bounds: WebSocketConfig,
    attach_bytes_max: usize,
) -> Option<Socket> {
    let upgraded = upgrading.await.ok()?;
    let parts = upgraded.downcast::<TokioIo<Stream>>().ok()?;
    let stream = Threshold::new(parts.io.into_inner(), attach_bytes_max);
    let read = parts.read_buf.to_vec();
    let (role, bounds) = (Role::Server, Some(bounds));
    Some(WebSocketStream::from_partially_read(stream, read, role, bounds).await)
}

/// What comes from an agent's session goes through the pipeline.
struct Speaks<'a> {
    core: &'a Core,
    session: &'a Session,
    door: Door,
}

impl Hears for Speaks<'_> {
    fn outbox(&self) -> &Outbox {
        self.session
    }

    async fn hear(&self, message: Bytes) -> Option<Bytes> {
        match self.core.handle(message, &self.door).await {
            Ok(Step::Say(envelope)) => Some(envelope),
            Ok(Step::Order(order, agent, id)) => {
                Some(self.core.settle(order, agent, id).await.envelope)
            }
            Ok(Step::Wait(..) | Step::Found(_) | Step::Nothing) => None,
            Err(answer) => Some(answer.envelope),
        }
    }
}

async fn run(core: &Core, mut socket: Socket, client: Client, mut phase: watch::Receiver<Phase>) {
    let (outbox, queue) = mpsc::channel(core.config.limits.outbox_max);
    let Some(session) = attach(core, &mut socket, client, outbox, &mut phase).await else {
        return turn_away(&mut socket).await;
    };
    socket.get_mut().open();
    let speaks = Speaks {
        core,
        session: &session,
        door: Door::Session(Arc::clone(&session)),
    };
    let why = converse(&mut socket, &speaks, queue, phase).await;
    core.state.sessions.detach(&session);
    Place {
        core,
        now: core.clock.now(),
    }
    .connection_gone(&session);
    tracing::info!(agent = %session.agent(), session = session.id(), why = why.says(), "detached");
    close(&mut socket, why).await;
}

/// Challenges the connection, and takes the one `attach` that answers in time.
async fn attach(
    core: &Core,
    socket: &mut Socket,
    client: Client,
    outbox: mpsc::Sender<Queued>,
    phase: &mut watch::Receiver<Phase>,
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
    let answered = tokio::select! {
        answered = timeout(CHALLENGE_VALIDITY, conversation::next(socket)) => answered,
        () = reached(Phase::Stopping, phase) => return None,
    };
    let message = answered.ok().flatten()?;
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
