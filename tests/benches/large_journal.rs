//! An organisation with a million grants and a million revocations: how long a start takes, and what a
//! warm authorisation costs beside one of an organisation with a hundred of each.
//!
//! `cargo bench -p tests --bench large_journal`. The journal is made first, which takes longer than all
//! that is measured. The floor of a start is reading the journal's file once.

use std::io::Read as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use broker::change::Change;
use broker::clock::Clock;
use broker::journal::{Embedded, Journal as _};
use broker::pipeline::Standing;
use broker::{Broker, Config};
use proto_spec::admission::Authority as _;
use proto_spec::capability::{Pattern, Question, Terms, Token, encode_text, issue};
use proto_spec::{AgentId, Digest, SigningKey};
use tests::lab::{Actor, START, organisation};
use tests::measure::{cpu, resident_kib};

/// Grants of one agent.
const EACH: usize = 4;
/// Revocation ids in one record.
const IDS: usize = 64;
/// Changes in one transaction.
const GROUP: usize = 20_000;
/// Agents that are asked about.
const ASKED: usize = 20;
const QUESTIONS: usize = 200_000;
/// The word by which this is told to measure one start only.
const FROM_SNAPSHOT: &str = "from-snapshot";
/// How long writing a snapshot may take.
const SNAPSHOT_MAX: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let words: Vec<_> = std::env::args_os().collect();
    if let [_, word, folder] = words.as_slice()
        && word == FROM_SNAPSHOT
    {
        let runtime = tokio::runtime::Runtime::new()?;
        let broker = runtime.block_on(start(Path::new(folder), "snapshot"))?;
        runtime.block_on(broker.stop());
        return Ok(());
    }
    let mut cost = Vec::new();
    for grants in [100, 1_000_000] {
        let folder = tempfile::tempdir()?;
        write_journal(folder.path(), grants)?;
        let file = folder.path().join("data/journal.redb");
        let begun = Instant::now();
        let mut bytes = Vec::new();
        std::fs::File::open(&file)?.read_to_end(&mut bytes)?;
        let floor = begun.elapsed();
        drop(bytes);
        println!(
            "{grants} grants, {grants} revocations: reading the file of {} MiB {:.2} s",
            std::fs::metadata(&file)?.len() >> 20,
            floor.as_secs_f64(),
        );
        let runtime = tokio::runtime::Runtime::new()?;
        let broker = runtime.block_on(start(folder.path(), "whole journal"))?;
        cost.push(authorise(&broker, grants)?);
        let is_large = grants == 1_000_000;
        if is_large {
            await_snapshot(folder.path())?;
        }
        runtime.block_on(broker.stop());
        if is_large {
            // In a process of its own: what the first start took is not counted with it.
            let status = Command::new(std::env::current_exe()?)
                .arg(FROM_SNAPSHOT)
                .arg(folder.path())
                .status()?;
            ensure!(status.success(), "the start from the snapshot failed");
        }
    }
    println!(
        "warm authorisation: {:.3} µs with 100, {:.3} µs with 1,000,000: {:.2} ×",
        cost[0],
        cost[1],
        cost[1] / cost[0]
    );
    Ok(())
}

/// Starts the broker of `folder`, and prints what it cost.
async fn start(folder: &Path, from: &str) -> Result<Broker> {
    let (before, begun) = (cpu(std::process::id())?, Instant::now());
    let config = Config::load(&folder.join("broker.toml"))?;
    let clock = Clock::manual(START.later(Duration::from_secs(60)));
    let broker = Broker::start_at(config, clock).await?;
    println!(
        "start from the {from}: {:.2} s, {:.2} s of CPU; {} MiB resident",
        begun.elapsed().as_secs_f64(),
        (cpu(std::process::id())? - before).as_secs_f64(),
        resident_kib(std::process::id())? >> 10,
    );
    Ok(broker)
}

/// The start from the whole journal has the broker write one.
fn await_snapshot(folder: &Path) -> Result<()> {
    let begun = Instant::now();
    while !folder.join("data/snapshot").exists() {
        if begun.elapsed() > SNAPSHOT_MAX {
            bail!("no snapshot was written");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// µs for one question about a grant on record that was asked about before.
fn authorise(broker: &Broker, grants: usize) -> Result<f64> {
    let state = &broker.core().state;
    let now = broker.core().clock.now();
    let standing = Standing::of(state, now);
    let agents = grants / EACH;
    let asked: Vec<AgentId> = (0..ASKED)
        .map(|n| Ok(format!("agent-{}@acme", n * agents / ASKED).parse()?))
        .collect::<Result<_>>()?;
    let required: Pattern = "fs.read".parse()?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let begun = Instant::now();
        for n in 0..QUESTIONS {
            let agent = &asked[n % ASKED];
            let question = Question::plain(&required, agent, now);
            let granted = standing.granted(agent);
            let token = granted.first().context("a grant")?;
            state.revocations.alive(token)?;
            token.permits(&question)?;
        }
        best = best.min(begun.elapsed().as_secs_f64() * 1e6 / QUESTIONS as f64);
    }
    Ok(best)
}

fn write_journal(folder: &Path, grants: usize) -> Result<()> {
    let admin = Actor::new("root-admin", 1)?;
    organisation(folder, &admin, "")?;
    let root = SigningKey::from_seed(&tests::lab::ROOT_SEED);
    let at = START.later(Duration::from_secs(1));
    let expires = at.later(Duration::from_secs(30 * 86_400));
    let mut journal = Embedded::open(&folder.join("data"))?;
    let mut waiting: Vec<Change> = Vec::new();
    let mut put = |change: Option<Change>| -> Result<()> {
        let is_end = change.is_none();
        waiting.extend(change);
        if is_end || waiting.len() == GROUP {
            journal.append(&waiting.iter().collect::<Vec<_>>())?;
            waiting.clear();
        }
        Ok(())
    };
    let agents = grants / EACH;
    // Only those that are asked about have a real token; the others' sleep, and are as long.
    let mut sleeping = String::new();
    for n in 0..agents {
        let name: proto_spec::Name = format!("agent-{n}").parse()?;
        let mut seed = [9; 32];
        seed[..8].copy_from_slice(&(n as u64).to_le_bytes());
        // A public key costs a multiplication; one that nobody signs with may be any point.
        let is_asked = n % (agents / ASKED).max(1) == 0;
        let key = SigningKey::from_seed(&seed).public();
        put(Some(Change::Approved {
            name: name.clone(),
            key,
            grant: None,
            capabilities: Vec::new(),
            expires,
            prefixes: vec![format!("{name}.*").parse()?],
            admin: None,
            older: None,
            by: admin.id.name().clone(),
            at,
        }))?;
        for k in 0..EACH {
            let (id, text) = if is_asked || sleeping.is_empty() {
                let terms = Terms {
                    agent: AgentId::new(name.clone(), "acme".parse()?),
                    holder: key,
                    capabilities: vec!["fs.*".parse()?],
                    issued: at,
                    not_before: None,
                    expires,
                    checks: Vec::new(),
                    sandbox: None,
                    calls: None,
                };
                let sealed = issue::seal(&issue::grant(
                    &root,
                    &"acme".parse()?,
                    &terms,
                    [k as u8; 32],
                )?)?;
                let token = Token::open(&sealed, &[root.public()])?;
                sleeping = encode_text(&sealed);
                (token.blocks()[0].id().0, sleeping.clone())
            } else {
                (
                    Digest::of(format!("grant {n} {k}").as_bytes()),
                    sleeping.clone(),
                )
            };
            put(Some(Change::Issued {
                id,
                agent: name.clone(),
                capabilities: vec!["fs.*".parse()?],
                checks: Vec::new(),
                not_before: None,
                expires,
                calls: None,
                record: Some(text),
                by: admin.id.name().clone(),
                at,
            }))?;
        }
    }
    for n in 0..grants.div_ceil(IDS) {
        let id = |k| Digest::of(format!("revoked {n} {k}").as_bytes());
        put(Some(Change::Revoked {
            ids: (0..IDS).map(id).collect(),
            reason: None,
            by: admin.id.name().clone(),
            at,
        }))?;
    }
    put(None)
}
