//! What the box costs: processor time of a program that does nothing, in the box and plainly.
//!
//! `cargo bench -p tests --bench sandboxed_spawn`. The measure is a plain start of this very program,
//! which is also the box's helper, ending at once. What no box can cost less than is the same namespaces
//! with nothing in them, made by `unshare(1)`, a small program of C. All are taken in turns, in one run.

use std::process::Command;
use std::time::{Duration, Instant};

use agent_sdk::sandbox::{self, Sandbox, Wanted};
use anyhow::{Context as _, Result, anyhow};

const ROUNDS: usize = 10;
const EACH: usize = 40;
const PLAIN: &str = "plain";
const NAMESPACES: [&str; 9] = [
    "--user", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "true",
];

fn main() -> Result<()> {
    sandbox::init();
    if std::env::args().nth(1).as_deref() == Some(PLAIN) {
        return Ok(());
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let policy = Wanted::default()
        .check()
        .map_err(|problems| anyhow!(problems.join("; ")))?;
    let sandbox = runtime.block_on(Sandbox::open(policy))?;
    let [mut plain, mut bare, mut boxed] = [Spent::default(); 3];
    for _ in 0..ROUNDS {
        plain.add(|| {
            Command::new("/proc/self/exe").arg(PLAIN).status()?;
            Ok(())
        })?;
        bare.add(|| {
            Command::new("unshare").args(NAMESPACES).status()?;
            Ok(())
        })?;
        boxed.add(|| {
            runtime.block_on(sandbox.run(sandbox::Command::new("true")))?;
            Ok(())
        })?;
    }
    let calls = (ROUNDS * EACH) as u32;
    for (name, spent) in [
        ("plain start of the helper", plain),
        ("no-op in bare namespaces", bare),
        ("no-op in the box", boxed),
    ] {
        println!(
            "{name:<28} cpu {:>8.2?}  wall {:>8.2?}",
            spent.cpu / calls,
            spent.wall / calls
        );
    }
    for (name, floor) in [("plain start", plain), ("bare namespaces", bare)] {
        let ratio = boxed.cpu.as_secs_f64() / floor.cpu.as_secs_f64();
        println!("ratio of cpu to the {name} {ratio:.2}");
    }
    Ok(())
}

/// Processor time of all children, and time.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    cpu: Duration,
    wall: Duration,
}

impl Spent {
    fn add(&mut self, mut one: impl FnMut() -> Result<()>) -> Result<()> {
        let (cpu, begun) = (children()?, Instant::now());
        for _ in 0..EACH {
            one()?;
        }
        self.wall += begun.elapsed();
        self.cpu += children()? - cpu;
        Ok(())
    }
}

/// What all that came from this process has used: those that are gone, and the helper that forks, with
/// those of its own that are gone. Ticks of 10 ms.
fn children() -> Result<Duration> {
    let alive = std::fs::read_dir("/proc/self/task")?.map(|thread| {
        let ids = std::fs::read_to_string(thread?.path().join("children"))?;
        ids.split_whitespace()
            .map(|id| ticks(id, &[11, 12, 13, 14]))
            .sum::<Result<u64>>()
    });
    let alive: u64 = alive.sum::<Result<u64>>()?;
    Ok(Duration::from_millis(
        (ticks("self", &[13, 14])? + alive) * 10,
    ))
}

/// Some times of a process, by where `proc(5)` has them after its name.
fn ticks(process: &str, fields: &[usize]) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let rest = stat.rsplit_once(") ").context("a stat line")?.1;
    let all: Vec<&str> = rest.split(' ').collect();
    fields.iter().map(|at| Ok(all[*at].parse::<u64>()?)).sum()
}
