//! How long a revocation takes with a thousand agents attached, beside one bare `fdatasync` of the same
//! run; and that after the acknowledgement not one envelope of the revoked is accepted.
//!
//! `cargo bench -p tests --bench revocation`

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use proto_spec::message::Ack;
use proto_spec::{AgentId, Code, Kind, SigningKey};
use serde_json::{Value, json};
use tests::lab::{Actor, code_of, to_broker, wall_clock as now};
use tests::measure::percentile;
use tests::site::Site;
use tests::wire::{Posting, Socket};

const ATTACHED: u64 = 1_000;
const REVOKED: usize = 400;

fn main() -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<()> {
    let limits = "pending_max = 100000\nnonces_per_network_max = 4096";
    let site = Site::with_nonces(limits, 1 << 20, 65_536)?;
    let admin = &site.admin;
    let broker = site.start()?;
    let line = site.line(&broker)?;
    let mut door = line.open().await?;
    let mut agents: Vec<(Actor, Socket)> = Vec::new();
    for n in 0..ATTACHED {
        let mut seed = [7; 32];
        seed[..8].copy_from_slice(&n.to_le_bytes());
        let id: AgentId = format!("agent-{n}@acme").parse()?;
        let actor = Actor {
            id,
            key: SigningKey::from_seed(&seed),
        };
        let key = actor.key.public();
        if n > 0 && n % 100 == 0 {
            // One address has so many requests waiting, and no more.
            door = line.open().await?;
        }
        ask(
            &mut door,
            &actor,
            Kind::RegisterAgent,
            &json!({"pubkey": key}),
        )
        .await?;
        let body = json!({"name": actor.id.name(), "key": key, "capabilities": []});
        ask(&mut door, admin, Kind::AdminAgentApprove, &body).await?;
        let socket = actor.attach(&line, now()).await?;
        agents.push((actor, socket));
    }
    let mut took = Vec::new();
    let mut syncs = Vec::new();
    let mut file = tempfile::tempfile_in(site.at("data"))?;
    for n in 0..REVOKED {
        let (actor, socket) = &mut agents[n % ATTACHED as usize];
        let body = json!({"agent": actor.id.name(), "capabilities": ["event.emit.build"], "checks": [], "record": true});
        let Ack::Issued { id, .. } = ask(&mut door, admin, Kind::AdminTokenIssue, &body).await?
        else {
            bail!("no grant");
        };
        let topic = "topic:acme/build".parse()?;
        let emit = || actor.seal(Kind::EmitEvent, &topic, now(), &json!({"data": 1}));
        socket.send(emit()?.bytes).await?;
        if socket.hear().await?.said()?.kind() != Kind::Ack {
            bail!("the grant does not hold");
        }
        let body = json!({"ids": [id]});
        let sealed = admin.seal(Kind::AdminTokenRevoke, &to_broker()?, now(), &body)?;
        let begun = Instant::now();
        let reply = door.post("/fem", sealed.bytes).await?;
        took.push(begun.elapsed());
        if reply.status != 200 {
            bail!("not revoked: {:?}", reply.body);
        }
        socket.send(emit()?.bytes).await?;
        let heard = socket.hear().await?.said()?;
        if code_of(&heard)? != Code::Denied {
            bail!("accepted after the acknowledgement");
        }
        file.write_all(&[0; 4_096])?;
        let begun = Instant::now();
        file.sync_data()?;
        syncs.push(begun.elapsed());
    }
    let (p50, p99) = (percentile(&mut took, 50), percentile(&mut took, 99));
    let (floor50, floor99) = (percentile(&mut syncs, 50), percentile(&mut syncs, 99));
    println!(
        "{REVOKED} revocations, {ATTACHED} agents attached: p50 {:.2} ms, p99 {:.2} ms; one fdatasync: p50 {:.2} ms, p99 {:.2} ms; beyond it at p99: {:.2} ms (goal 5)",
        ms(p50),
        ms(p99),
        ms(floor50),
        ms(floor99),
        ms(p99) - ms(floor99),
    );
    Ok(())
}

async fn ask(door: &mut Posting, by: &Actor, kind: Kind, body: &Value) -> Result<Ack> {
    let sealed = by.seal(kind, &to_broker()?, now(), body)?;
    let envelope = door.post("/fem", sealed.bytes).await?.envelope()?;
    if envelope.kind() != Kind::Ack {
        bail!("{kind}: {}", envelope.body());
    }
    Ok(envelope.read_body()?)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
