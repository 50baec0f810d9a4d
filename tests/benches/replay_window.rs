//! The replay window with 6,000,000 live nonces: memory of each, and what an insert costs at every fill.
//!
//! `cargo bench -p tests --bench replay_window`. The window is the broker's own, with its file.

use std::time::{Duration, Instant};

use anyhow::Result;
use broker::state::replay::Replay;
use proto_spec::admission::Nonces as _;
use proto_spec::{Refusal, SigningKey, Timestamp};
use tests::measure::{median, resident_kib};

const NONCES: usize = 6_000_000;
const STEPS: usize = 12;

/// This thread's CPU time: what an insert costs by itself, whatever else the machine is doing.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let skew = Duration::from_secs(300);
    let now = Timestamp::from_ms(1_800_000_000_000);
    // Headroom of 5 %: nonces are spread over shards by a hash, and each shard owns whole segments.
    let room = NONCES + NONCES / 20;
    let (window, _) = Replay::open(folder.path(), room, room, skew, [7; 32], now)?;
    let keys: Vec<_> = (0..64)
        .map(|n| SigningKey::from_seed(&[n; 32]).public())
        .collect();
    let me = std::process::id();
    let before = resident_kib(me)?;
    let mut worst = Duration::ZERO;
    let mut costs = Vec::new();
    println!(
        "{:>10}  {:>8}  {:>10}  {:>8}",
        "live", "ns each", "worst µs", "B each"
    );
    for step in 0..STEPS {
        let begun = Instant::now();
        let mut slowest = Duration::ZERO;
        for n in step * NONCES / STEPS..(step + 1) * NONCES / STEPS {
            // Anywhere in the ten minutes that a window spans, as in a steady state.
            let ts = now
                .earlier(skew)
                .later(Duration::from_millis((n as u64 * 7_919) % 599_999));
            let nonce = format!("bench-nonce-{n:012}");
            let one = cpu_time();
            let key = &keys[n % keys.len()];
            if window.remember(key, &nonce, ts, now) == Err(Refusal::Ahead) {
                window.settle(now)?;
                window.remember(key, &nonce, ts, now)?;
            }
            slowest = slowest.max(cpu_time().saturating_sub(one));
        }
        let live = (step + 1) * NONCES / STEPS;
        let each = begun.elapsed().as_secs_f64() * 1e9 / (NONCES / STEPS) as f64;
        let bytes = (resident_kib(me)? - before) as f64 * 1024.0 / live as f64;
        println!(
            "{live:>10}  {each:>8.0}  {:>10.0}  {bytes:>8.1}",
            slowest.as_secs_f64() * 1e6
        );
        worst = worst.max(slowest);
        costs.push(each);
    }
    let begun = Instant::now();
    window.expire(now.later(skew));
    println!(
        "\ndropping what has expired: {:.2} ms",
        begun.elapsed().as_secs_f64() * 1e3
    );
    let (first, last) = (
        median(costs[..3].to_vec()),
        median(costs[STEPS - 3..].to_vec()),
    );
    println!(
        "insert at the end against the beginning: {:.2} ×; worst insert {:.2} ms of CPU",
        last / first,
        worst.as_secs_f64() * 1e3
    );
    Ok(())
}
