//! Load for benches of the real binaries: agents that sign by hand, a provider that answers everything,
//! callers with so many calls in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use proto_spec::frame::Frame;
use proto_spec::message::{Ack, OfferTools, RegisterAgent};
use proto_spec::{Audience, Digest, Envelope, Kind};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::lab::{Actor, Extra, nonce, tool, wall_clock as now};
use crate::wire::{Line, Socket};

/// Arguments, and a result, that make an envelope of about 1 KiB.
#[must_use]
pub fn padding() -> Value {
    json!({"path": "/srv/reports/q3.txt", "text": "x".repeat(680)})
}

/// Posts an act to the actor's own broker, and takes its acknowledgement.
///
/// # Errors
///
/// When it is refused.
pub async fn ask(line: &Line, actor: &Actor, kind: Kind, body: &impl Serialize) -> Result<Ack> {
    let sealed = actor.seal(kind, &actor.broker(), now(), body)?;
    let reply = line.post("/fem", sealed.bytes).await?;
    if reply.status != 200 {
        bail!("{:?}", reply.body);
    }
    Ok(reply.envelope()?.read_body()?)
}

/// Registers an agent of the admin's organisation, and has it approved with these capabilities.
///
/// # Errors
///
/// When either is refused.
pub async fn agent(
    line: &Line,
    admin: &Actor,
    name: &str,
    seed: u8,
    capabilities: &[&str],
) -> Result<Actor> {
    let actor = Actor::of(admin.id.org(), name, seed)?;
    enrol(line, admin, &actor, capabilities).await?;
    Ok(actor)
}

/// As [`agent`], of one that has its key already.
///
/// # Errors
///
/// When either is refused.
pub async fn enrol(line: &Line, admin: &Actor, actor: &Actor, capabilities: &[&str]) -> Result<()> {
    let request = RegisterAgent {
        pubkey: actor.key.public(),
        capabilities: Vec::new(),
        prefixes: Vec::new(),
        enrolment: None,
        note: None,
    };
    ask(line, actor, Kind::RegisterAgent, &request).await?;
    let (name, key) = (actor.id.name(), actor.key.public());
    let approval = json!({"name": name, "key": key, "capabilities": capabilities});
    ask(line, admin, Kind::AdminAgentApprove, &approval).await?;
    Ok(())
}

/// Attaches a session that offers `fs.read`.
///
/// # Errors
///
/// When it is refused.
pub async fn provide(line: &Line, fs: &Actor) -> Result<Socket> {
    let mut provider = fs.attach(line, now()).await?;
    let offer = OfferTools {
        tools: vec![tool("fs.read")?],
    };
    let offer = fs.seal(Kind::OfferTools, &fs.broker(), now(), &offer)?;
    provider.send(offer.bytes).await?;
    provider.hear().await?.said()?;
    Ok(provider)
}

/// Answers every call, after `executes` was told of it; answers that are ready together go out together.
///
/// # Errors
///
/// When the connection fails.
pub async fn serve(provider: Socket, fs: &Actor, executes: impl Fn(&Envelope)) -> Result<()> {
    let mut socket = provider.into_inner();
    let text = padding();
    while let Some(message) = socket.next().await {
        let mut message = Some(message);
        while let Some(next) = message.take() {
            let bytes = next?.into_data();
            if bytes.first() == Some(&proto_spec::frame::FRAME) {
                let call = Envelope::parse(Frame::decode(bytes)?.envelope, 1 << 20)?;
                executes(&call);
                let extra = Extra {
                    re: Some(Digest::of(&call.signed_bytes())),
                    ..Extra::default()
                };
                let to = call.speaker().clone().into();
                let result = fs.seal_with(
                    Kind::ToolResult,
                    &to,
                    now(),
                    &json!({"result": text}),
                    &extra,
                )?;
                socket.feed(Message::Binary(result.bytes)).await?;
            }
            message = socket.next().now_or_never().flatten();
        }
        socket.flush().await?;
    }
    Ok(())
}

/// Makes `count` calls of `fs.read` over so many connections, with so many in flight on each; gives the
/// median of their latencies in seconds.
///
/// # Errors
///
/// When one is refused.
pub async fn call(
    line: &Line,
    caller: &Arc<Actor>,
    to: &Audience,
    (connections, each): (usize, usize),
    count: usize,
) -> Result<f64> {
    let left = Arc::new(AtomicUsize::new(count));
    let mut sockets = Vec::new();
    for _ in 0..connections {
        sockets.push(caller.attach(line, now()).await?.into_inner());
    }
    let arguments = padding();
    let mut tasks = Vec::new();
    for mut socket in sockets {
        let (left, caller) = (Arc::clone(&left), Arc::clone(caller));
        let (arguments, to) = (arguments.clone(), to.clone());
        tasks.push(tokio::spawn(async move {
            let mut in_flight = 0;
            let mut took = Vec::new();
            loop {
                let begun = Instant::now();
                while in_flight < each && take(&left) {
                    let body = json!({"tool": "fs.read", "arguments": arguments});
                    let extra = Extra {
                        nonce: Some(nonce()),
                        ..Extra::default()
                    };
                    let call = caller.seal_with(Kind::ToolCall, &to, now(), &body, &extra)?;
                    socket.feed(Message::Binary(call.bytes)).await?;
                    in_flight += 1;
                }
                if in_flight == 0 {
                    return Ok::<_, anyhow::Error>(took);
                }
                socket.flush().await?;
                let mut next = Some(socket.next().await.context("closed")?);
                while let Some(message) = next {
                    let bytes = message?.into_data();
                    match bytes.first() {
                        Some(&proto_spec::frame::FRAME) => {
                            in_flight -= 1;
                            took.push(begun.elapsed().as_secs_f64());
                        }
                        Some(_) => bail!("refused: {}", String::from_utf8_lossy(&bytes)),
                        None => {}
                    }
                    next = socket.next().now_or_never().flatten();
                }
            }
        }));
    }
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await??);
    }
    Ok(crate::measure::median(took))
}

/// Takes one of what is left.
#[must_use]
pub fn take(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
        .is_ok()
}
