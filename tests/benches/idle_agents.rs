//! Resident memory of a broker for each idle attached agent.
//!
//! `cargo bench -p tests --bench idle_agents [-- N]`, 10,000 unless said otherwise. Each agent has a key
//! and a session of its own and offers one tool. The sessions live in this process.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use proto_spec::message::OfferTools;
use proto_spec::{Kind, SigningKey};
use serde_json::json;
use tests::lab::{Actor, to_broker, tool, wall_clock as now};
use tests::measure::resident_kib;
use tests::site::Site;
use tests::wire::{Line, Socket};

fn main() -> Result<()> {
    let agents = std::env::args()
        .skip(1)
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(10_000);
    broker::telemetry::raise_descriptor_limit();
    tokio::runtime::Runtime::new()?.block_on(run(agents))
}

async fn run(agents: usize) -> Result<()> {
    // Newcomers have a sixteenth of the window: here they are all there is.
    let site = Site::with_nonces("nonces_per_network_max = 65536", 1 << 20, 65_536)?;
    let admin = &site.admin;
    let broker = site.start()?;
    let line = site.line(&broker)?;
    // Agents come in by an enrolment token, a hundred at a time.
    let body = json!({"name": "*", "ceiling": ["x.*"], "uses": agents});
    let sealed = admin.seal(Kind::AdminEnrolIssue, &to_broker()?, now(), &body)?;
    let issued: serde_json::Value =
        serde_json::from_str(line.post("/fem", sealed.bytes).await?.envelope()?.body())?;
    let token = Arc::new(issued["token"].as_str().unwrap_or_default().to_owned());
    let mut actors = Vec::new();
    for first in (0..agents).step_by(64) {
        let batch =
            (first..agents.min(first + 64)).map(|n| register(line.clone(), n, Arc::clone(&token)));
        for actor in futures_util::future::join_all(batch).await {
            actors.push(actor?);
        }
    }
    let before = resident_kib(broker.id())?;
    let mut sessions = Vec::new();
    for batch in actors.chunks(64) {
        for session in
            futures_util::future::join_all(batch.iter().map(|actor| attach(&line, actor))).await
        {
            sessions.push(session?);
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = resident_kib(broker.id())?;
    println!(
        "{} attached agents: {:.1} KiB of resident memory each ({before} KiB registered and not attached, {after} KiB attached)",
        sessions.len(),
        (after - before) as f64 / sessions.len() as f64,
    );
    Ok(())
}

async fn register(line: Line, n: usize, token: Arc<String>) -> Result<Actor> {
    let mut seed = [0x51; 32];
    seed[..8].copy_from_slice(&n.to_le_bytes());
    let actor = Actor {
        id: format!("idle-{n}@acme").parse()?,
        key: SigningKey::from_seed(&seed),
    };
    let body = json!({"pubkey": actor.key.public(), "enrolment": *token});
    let reply = line
        .post(
            "/fem",
            actor
                .seal(Kind::RegisterAgent, &to_broker()?, now(), &body)?
                .bytes,
        )
        .await?;
    if reply.status != 200 {
        bail!("{:?}", reply.body);
    }
    Ok(actor)
}

async fn attach(line: &Line, actor: &Actor) -> Result<Socket> {
    let mut socket = actor.attach(line, now()).await?;
    let tools = vec![tool(&format!("{}.work", actor.id.name()))?];
    socket
        .send(
            actor
                .seal(
                    Kind::OfferTools,
                    &to_broker()?,
                    now(),
                    &OfferTools { tools },
                )?
                .bytes,
        )
        .await?;
    socket.hear().await?.said()?;
    Ok(socket)
}
