//! How long a revocation takes to bite across organisations: ten brokers in a ring, each linked with the two
//! beside it, a hundred agents each, all attached and calling one and two hops away.
//!
//! `cargo bench -p tests --bench revocation_ring [-- small]`; `small` is five brokers with ten agents. The
//! brokers are the real binary, each in a process of its own; agents and providers live in this one, and
//! every pair of neighbours is joined by a cable of it.
//!
//! Whoever is revoked calls without pause when it happens. Measured is from the acknowledgement to when the
//! last execution of a call of theirs is written down: that includes what this process takes to read it. A
//! call that was *made* after the acknowledgement and executed is counted by itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures_util::future::{join_all, try_join_all};
use proto_spec::{AgentId, Audience, Digest, Kind, SigningKey};
use serde_json::json;
use tests::cable::{Cable, Loss};
use tests::house::House;
use tests::lab::{Actor, wall_clock};
use tests::load::enrol;
use tests::measure::percentile;
use tests::site::{Site, free};
use tests::wire::{Heard, Socket};
use tests::witness::{Executions, Running, keep_serving, one, outcome};

/// `stale_after_ms` of every broker.
const BOUND: Duration = Duration::from_secs(10);
/// An agent that is not in a hurry calls so often, now one hop away, now two.
const AMBLE: Duration = Duration::from_secs(2);
/// Calls that one in a hurry has in flight.
const IN_FLIGHT: usize = 4;
/// How many of them come through before their caller is revoked.
const WARM: usize = 20;
/// How long after a revocation executions are still waited for.
const AFTER: Duration = Duration::from_secs(2);
/// Before somebody in a hurry calls again who was refused.
const REFUSED: Duration = Duration::from_millis(100);

/// How large it is.
#[derive(Debug, Clone, Copy)]
struct Size {
    brokers: usize,
    agents: usize,
    /// Revocations of keys, for each distance.
    keys: usize,
    /// Revocations of grants.
    grants: usize,
    /// How long a cable carries nothing, and how many keys die meanwhile at either end.
    partition: Duration,
    cut_off: usize,
}

fn main() -> Result<()> {
    let is_small = std::env::args().any(|arg| arg == "small");
    let size = if is_small {
        Size {
            brokers: 5,
            agents: 10,
            keys: 5,
            grants: 5,
            partition: Duration::from_secs(15),
            cut_off: 2,
        }
    } else {
        Size {
            brokers: 10,
            agents: 100,
            keys: 150,
            grants: 50,
            partition: Duration::from_secs(60),
            cut_off: 20,
        }
    };
    broker::telemetry::raise_descriptor_limit();
    tokio::runtime::Runtime::new()?.block_on(run(size))
}

/// An agent that is attached and calls now and then.
struct Ambler {
    actor: Arc<Actor>,
    _running: Running,
}

/// The organisations, each with its agents, and the cable over which the one after it dials it.
struct Ring {
    houses: Vec<House>,
    cables: Vec<Cable>,
    agents: Vec<Vec<Ambler>>,
    executions: Executions,
    _providers: Vec<Running>,
}

fn name(at: usize) -> String {
    format!("org-{at}")
}

impl Ring {
    async fn open(size: Size) -> Result<Self> {
        let limits = "pending_max = 100000\nnonces_per_network_max = 65536";
        let (mut houses, mut cables) = (Vec::new(), Vec::new());
        for at in 0..size.brokers {
            let listen = free()?;
            let cable = Cable::to(listen).await?;
            let site = Site::of(&name(at), limits)?.nonces(1 << 21, 1 << 20)?;
            let bound = format!("stale_after_ms = {}", BOUND.as_millis());
            houses.push(House::open(site.reachable_by(
                listen,
                cable.address(),
                &bound,
            )?)?);
            cables.push(cable);
        }
        let mut ring = Self {
            houses,
            cables,
            agents: Vec::new(),
            executions: Executions::default(),
            _providers: Vec::new(),
        };
        for at in 0..size.brokers {
            let provider = ring.houses[at].agent("fs", 2, &[]).await?;
            let line = ring.houses[at].line.clone();
            let serving = keep_serving(line, provider, ring.executions.clone());
            ring._providers.push(serving);
            ring.houses[ring.beside(at, 1)]
                .join(&ring.houses[at])
                .await?;
        }
        for at in 0..size.brokers {
            for way in [1, -1] {
                ring.grant(at, way).await?;
            }
        }
        for at in 0..size.brokers {
            for way in [1, -1] {
                ring.until_advertised(at, way).await?;
            }
            let agents = (0..size.agents).map(|n| ring.ambler(at, n));
            ring.agents.push(try_join_all(agents).await?);
        }
        Ok(ring)
    }

    /// The organisation so many steps further round.
    fn beside(&self, at: usize, steps: isize) -> usize {
        (at as isize + steps).rem_euclid(self.houses.len() as isize) as usize
    }

    /// Has an organisation let the agents of the one beside it, and those behind that, use its tools, and
    /// its own tools and those of the one on its other side be used through it.
    async fn grant(&self, at: usize, way: isize) -> Result<Digest> {
        let (to, other) = (name(self.beside(at, way)), name(self.beside(at, -way)));
        let tools = ["fs.*".to_owned(), format!("peer.{other}.fs.*")];
        let body = json!({"org": to, "capabilities": tools, "depth": 1});
        self.houses[at].grant(body).await
    }

    /// Waits until an organisation knows the tools of the one beside it and of the one behind that.
    async fn until_advertised(&self, at: usize, way: isize) -> Result<()> {
        let org = name(self.beside(at, way));
        self.houses[at].until(&org, |peer| peer.tools == 2).await
    }

    /// The provider so many steps further round.
    fn provider(&self, at: usize, steps: isize) -> Result<Audience> {
        Ok(format!("fs@{}", name(self.beside(at, steps))).parse()?)
    }

    async fn ambler(&self, at: usize, number: usize) -> Result<Ambler> {
        let house = &self.houses[at];
        let id: AgentId = format!("agent-{number}@{}", name(at)).parse()?;
        let key = SigningKey::from_seed(&Digest::of(id.to_string().as_bytes()).0);
        let actor = Arc::new(Actor { id, key });
        let mut may = Vec::new();
        for way in [1, -1] {
            let (near, far) = (name(self.beside(at, way)), name(self.beside(at, 2 * way)));
            may.push(format!("peer.{near}.fs.*"));
            may.push(format!("peer.{near}.peer.{far}.fs.*"));
        }
        let may: Vec<&str> = may.iter().map(String::as_str).collect();
        enrol(&house.line, house.admin(), &actor, &may).await?;
        let line = house.line.clone();
        let (caller, to) = (
            Arc::clone(&actor),
            [self.provider(at, 1)?, self.provider(at, -2)?],
        );
        let _running = Running::spawn(async move {
            // Not all at the same moment.
            tokio::time::sleep(AMBLE.mul_f64((number % 100) as f64 / 100.0)).await;
            let mut turns = to.iter().cycle();
            // It ends when its key dies.
            while let Ok(mut session) = caller.attach(&line, wall_clock()).await {
                while let Some(Ok(call)) = turns.next().map(|to| one(&caller, to)) {
                    if outcome(&mut session, &call).await.is_none() {
                        break;
                    }
                    tokio::time::sleep(AMBLE).await;
                }
            }
        });
        Ok(Ambler { actor, _running })
    }
}

/// An agent that calls without pause, and when it made each call.
struct Hurried {
    actor: Arc<Actor>,
    made: Arc<Mutex<HashMap<Digest, Instant>>>,
    executions: Executions,
    _running: Running,
}

impl Hurried {
    /// Begins, and waits until calls come through.
    async fn begin(ring: &Ring, at: usize, number: usize, steps: isize) -> Result<Self> {
        let actor = Arc::clone(&ring.agents[at][number].actor);
        let (line, to) = (ring.houses[at].line.clone(), ring.provider(at, steps)?);
        let made = Arc::new(Mutex::new(HashMap::new()));
        let (caller, calls) = (Arc::clone(&actor), Arc::clone(&made));
        let _running = Running::spawn(async move {
            while let Ok(session) = caller.attach(&line, wall_clock()).await {
                let _ = hurry(session, &caller, &to, &calls).await;
            }
        });
        let hurried = Self {
            actor,
            made,
            executions: ring.executions.clone(),
            _running,
        };
        let warm = async {
            while hurried.executed().len() < WARM {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let warm = tokio::time::timeout(Duration::from_secs(60), warm).await;
        warm.with_context(|| format!("{} calls in vain", hurried.actor.id))?;
        Ok(hurried)
    }

    /// Its calls that were executed: when, and when they were made.
    fn executed(&self) -> Vec<(Instant, Instant)> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.executions.of(&self.actor.id).into_iter();
        all.filter_map(|(at, id)| Some((at, *made.get(&id)?)))
            .collect()
    }

    /// What was executed of it after a moment: how long after, at most, and how much of it was even made
    /// after.
    fn since(&self, moment: Instant) -> (Duration, usize) {
        let executed = self.executed();
        let late = executed
            .iter()
            .map(|(at, _)| at.saturating_duration_since(moment));
        let made_after = executed.iter().filter(|(_, made)| *made > moment);
        (late.max().unwrap_or_default(), made_after.count())
    }
}

async fn hurry(
    mut session: Socket,
    caller: &Actor,
    to: &Audience,
    made: &Mutex<HashMap<Digest, Instant>>,
) -> Result<()> {
    let mut in_flight = 0;
    loop {
        while in_flight < IN_FLIGHT {
            let call = one(caller, to)?;
            made.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(call.id, Instant::now());
            session.send(call.bytes).await?;
            in_flight += 1;
        }
        match session.hear().await? {
            Heard::Delivered { .. } => in_flight -= 1,
            Heard::Said(said) => {
                in_flight -= usize::from(said.re().is_some());
                tokio::time::sleep(REFUSED).await;
            }
            Heard::Closed => bail!("closed"),
        }
    }
}

/// What several revocations came to.
#[derive(Default)]
struct Figures {
    late: Vec<Duration>,
    made_after: usize,
}

impl Figures {
    fn add(&mut self, (late, made_after): (Duration, usize)) {
        self.late.push(late);
        self.made_after += made_after;
    }

    fn print(&mut self, what: &str, after: &str) {
        println!(
            "{what}: {} times, last execution after {after}: {}; made after it and executed: {}",
            self.late.len(),
            spread(&mut self.late),
            self.made_after
        );
    }
}

fn spread(times: &mut [Duration]) -> String {
    let ms = |percent, times: &mut [Duration]| percentile(times, percent).as_secs_f64() * 1e3;
    let (p50, p99, max) = (ms(50, times), ms(99, times), ms(100, times));
    format!("p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms")
}

async fn run(size: Size) -> Result<()> {
    let ring = Ring::open(size).await?;
    println!(
        "{} brokers in a ring, {} agents each, all attached, each calling every {} s",
        size.brokers,
        size.agents,
        AMBLE.as_secs()
    );
    let rounds = 2 * size.keys / size.brokers;
    keys(&ring, size, rounds).await?;
    grants(&ring, size).await?;
    partition(&ring, size, rounds).await?;
    ring.executions.check_none_twice()
}

/// Agents' keys die at their home: in each round one of every organisation.
async fn keys(ring: &Ring, size: Size, rounds: usize) -> Result<()> {
    let mut hops = [Figures::default(), Figures::default()];
    for round in 0..rounds {
        let strike = async |at: usize| {
            let far = (at + round) % 2;
            let steps = [1, 2][far] * [1, -1][round / 2 % 2];
            let hurried = Hurried::begin(ring, at, round, steps).await?;
            let name = hurried.actor.id.name();
            ring.houses[at].revoke_agent(name.as_str()).await?;
            let acknowledged = Instant::now();
            tokio::time::sleep(AFTER).await;
            anyhow::Ok((far, hurried.since(acknowledged)))
        };
        for struck in join_all((0..size.brokers).map(strike)).await {
            let (far, figure) = struck?;
            hops[far].add(figure);
        }
    }
    for (figures, hops) in hops.iter_mut().zip(["one hop", "two hops"]) {
        let what = format!("key revoked at its home, caller {hops} away");
        figures.print(&what, "the acknowledgement");
    }
    Ok(())
}

/// Owners revoke what they granted the organisation beside them, and grant it anew.
async fn grants(ring: &Ring, size: Size) -> Result<()> {
    let mut hops = [Figures::default(), Figures::default()];
    for n in 0..size.grants {
        let (at, way) = (n % size.brokers, [1, -1][n / size.brokers % 2]);
        let (near, far) = (ring.beside(at, way), ring.beside(at, 2 * way));
        let last = size.agents - 1;
        let callers = [
            Hurried::begin(ring, near, last, -way).await?,
            Hurried::begin(ring, far, last, -2 * way).await?,
        ];
        let peers = ring.houses[at].peers().await?;
        let peer = peers.iter().find(|peer| peer.org.as_str() == name(near));
        let grants = &peer.context("a peer")?.grants;
        let ids: Vec<Digest> = grants.iter().map(|grant| grant.id).collect();
        let body = json!({"ids": ids});
        ring.houses[at].ask(Kind::AdminTokenRevoke, body).await?;
        let acknowledged = Instant::now();
        tokio::time::sleep(AFTER).await;
        for (figures, caller) in hops.iter_mut().zip(&callers) {
            figures.add(caller.since(acknowledged));
        }
        ring.grant(at, way).await?;
        ring.until_advertised(near, -way).await?;
        ring.until_advertised(far, -way).await?;
    }
    for (figures, hops) in hops.iter_mut().zip(["one hop", "two hops"]) {
        let what = format!("grant revoked by its owner, caller {hops} away");
        figures.print(&what, "the acknowledgement");
    }
    Ok(())
}

/// The cable between the first two carries nothing for a while, and keys die meanwhile.
async fn partition(ring: &Ring, size: Size, first: usize) -> Result<()> {
    let each = size.cut_off + size.cut_off / 2;
    // Over the cable; over it and on; and over it at last.
    let relations = [
        (1, first, -1),
        (1, first + each, -2),
        (2 % size.brokers, first, -2),
    ];
    let (mut struck, mut others) = (Vec::new(), Vec::new());
    for (at, first, steps) in relations {
        for n in first..first + size.cut_off {
            struck.push((at, Hurried::begin(ring, at, n, steps).await?));
        }
        for n in first + size.cut_off..first + each {
            others.push(Hurried::begin(ring, at, n, steps).await?);
        }
    }
    let parted = Instant::now();
    ring.cables[0].part(Loss::Late);
    let pause = size.partition / struck.len() as u32;
    let mut revoked = Vec::new();
    for (n, (at, hurried)) in struck.iter().enumerate() {
        let name = hurried.actor.id.name();
        ring.houses[*at].revoke_agent(name.as_str()).await?;
        revoked.push(Instant::now());
        let next = parted + pause * (n as u32 + 1);
        tokio::time::sleep_until(next.into()).await;
    }
    let all = || struck.iter().map(|(_, one)| one).chain(&others);
    let last = all().map(|one| one.since(parted).0).max();
    println!(
        "{} s without network: last execution {:.1} s after it was gone (the bound: {} s)",
        size.partition.as_secs(),
        last.unwrap_or_default().as_secs_f64(),
        BOUND.as_secs()
    );
    let healed = Instant::now();
    ring.cables[0].heal();
    let again = |one: &Hurried| {
        let all = one.executed().into_iter();
        all.map(|(at, _)| at).filter(|at| *at > healed).min()
    };
    let waiting = async {
        while !others.iter().all(|one| again(one).is_some()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    waited.context("it does not heal")?;
    tokio::time::sleep(AFTER).await;
    let mut figures = Figures::default();
    for ((_, hurried), revoked) in struck.iter().zip(revoked) {
        figures.add((hurried.since(healed).0, hurried.since(revoked).1));
    }
    let what = "keys revoked meanwhile";
    figures.print(what, "the network is back");
    let mut back: Vec<Duration> = others
        .iter()
        .filter_map(|one| Some(again(one)? - healed))
        .collect();
    println!(
        "{} other callers are served again after: {}",
        back.len(),
        spread(&mut back)
    );
    Ok(())
}
