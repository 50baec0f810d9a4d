//! A call across two brokers against one inside an organisation, in the same run: CPU of all brokers
//! together, and median latency.
//!
//! `cargo bench -p tests --bench federated_call`. The brokers are the real binary, each in a process of its
//! own; CPU time is what the kernel accounts to them. Two brokers verify four signatures and one verifies
//! two, and the link is one TLS connection more each way.

use std::sync::Arc;

use anyhow::Result;
use proto_spec::Audience;
use serde_json::json;
use tests::house::House;
use tests::load::{call, provide, serve};
use tests::measure::{cpu, median};
use tests::site::Site;

const CALLS: usize = 20_000;
const ALONE: usize = 2_000;
const ROUNDS: usize = 3;
/// So many connections of callers, with so many calls in flight on each.
const SHAPES: [(usize, usize); 2] = [(8, 16), (64, 1)];

fn main() -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(run())
}

fn open(org: &str) -> Result<House> {
    let limits = "nonces_per_peer_max = 4000000";
    let site = Site::of(org, limits)?.nonces(4_000_000, 4_000_000)?;
    House::open(site.reachable()?)
}

async fn run() -> Result<()> {
    let (acme, globex) = (open("acme")?, open("globex")?);
    acme.join(&globex).await?;
    let grant = json!({"org": "acme", "capabilities": ["fs.*"]});
    globex.grant(grant).await?;
    let fs = globex.agent("fs", 2, &[]).await?;
    let near = globex.agent("near", 3, &["fs.*"]).await?;
    let far = acme.agent("far", 4, &["peer.globex.fs.*"]).await?;
    let (near, far) = (Arc::new(near), Arc::new(far));
    let provider = provide(&globex.line, &fs).await?;
    let serving = tokio::spawn(async move { serve(provider, &fs, |_| {}).await });
    acme.until("globex", |peer| peer.tools > 0).await?;
    let to: Audience = "fs@globex".parse()?;
    let brokers = || -> Result<f64> {
        Ok((cpu(acme.broker()?.id())? + cpu(globex.broker()?.id())?).as_secs_f64())
    };
    for shape in SHAPES {
        let (mut inside, mut across) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            for (line, caller, costs) in [
                (&globex.line, &near, &mut inside),
                (&acme.line, &far, &mut across),
            ] {
                let before = brokers()?;
                call(line, caller, &to, shape, CALLS).await?;
                costs.push((brokers()? - before) * 1e6 / CALLS as f64);
            }
        }
        let (inside, across) = (median(inside), median(across));
        println!(
            "callers {} × {} in flight: {inside:.1} µs of broker CPU a call inside, {across:.1} µs across: {:.2} ×",
            shape.0,
            shape.1,
            across / inside
        );
    }
    let (mut inside, mut across) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        inside.push(call(&globex.line, &near, &to, (1, 1), ALONE).await? * 1e6);
        across.push(call(&acme.line, &far, &to, (1, 1), ALONE).await? * 1e6);
    }
    let (inside, across) = (median(inside), median(across));
    println!(
        "one at a time: median {inside:.0} µs inside, {across:.0} µs across: {:.2} ×",
        across / inside
    );
    serving.abort();
    Ok(())
}
