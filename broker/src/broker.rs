//! Builds the parts of a broker, owns their tasks, and drains them.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use proto_spec::message::Roots;
use proto_spec::{AgentId, Kind, Name, Org, PublicKey, SigningKey, Timestamp};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::calls::Place;
use crate::change::Change;
use crate::clock::{Clock, is_behind};
use crate::compat;
use crate::config::Config;
use crate::federation::dial;
use crate::journal::{Embedded, Journal, Reader};
use crate::kept::KeptKeys;
use crate::listener::{self, Room};
use crate::mcp::Mcp;
use crate::metrics::Metrics;
use crate::phase::Phase;
use crate::pipeline::Core;
use crate::registrar::{Desk, Purpose, Registrar, Secrets, first_admin};
use crate::state::replay::{Ended, Replay};
use crate::state::snapshot::{Snapshots, read_back};
use crate::state::{State, Taking};
use crate::tls::Certificates;
use crate::upkeep;
use crate::voice::Voice;

/// How often deadlines are looked at: how late a `DEADLINE` may come.
const DEADLINE_TICK: Duration = Duration::from_millis(50);
/// How long connections have to close once they are told.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// How often nonces are dropped that can no longer be replayed.
const WINDOW_TICK: Duration = Duration::from_secs(10);
/// How often the replay ceilings are looked at.
const CEILING_TICK: Duration = Duration::from_secs(1);
/// How often the machine's clock is looked at.
const CLOCK_TICK: Duration = Duration::from_secs(1);
/// Between two syncs of the replay ceilings.
const SETTLE_PAUSE: Duration = Duration::from_millis(50);

/// A running broker.
#[derive(Debug)]
pub struct Broker {
    core: Arc<Core>,
    address: SocketAddr,
    ops_address: SocketAddr,
    phase: watch::Sender<Phase>,
    room: Arc<Room>,
    mcp: Option<Arc<Mcp>>,
    tasks: JoinSet<()>,
    registrar: std::thread::JoinHandle<()>,
    _lock: Lock,
}

/// What an organisation begins with.
#[derive(Debug, Clone)]
pub struct Founding {
    /// Its name.
    pub org: Org,
    /// The broker's key.
    pub broker: PublicKey,
    /// The key that its tokens are rooted in.
    pub root: PublicKey,
    /// The key that is kept offline for recovery.
    pub recovery: PublicKey,
    /// The first admin.
    pub admin: Name,
    /// The first admin's key.
    pub admin_key: PublicKey,
}

/// Begins an organisation's journal in `data`, which is made if need be.
///
/// # Errors
///
/// When there is a journal already, or it cannot be written.
pub fn found(data: &Path, founding: &Founding, now: Timestamp) -> anyhow::Result<()> {
    upkeep::make_data(data)?;
    let mut records = 0_u64;
    let mut journal = Embedded::open_giving(data, &mut |_| records += 1)?;
    if records > 0 {
        bail!("{} holds an organisation already", data.display());
    }
    let Founding {
        org,
        broker,
        root,
        recovery,
        admin,
        admin_key,
    } = founding.clone();
    journal.append(&[&Change::Founded {
        org,
        broker,
        root,
        recovery,
        admin,
        admin_key,
        at: now,
    }])?;
    Ok(())
}

/// Takes the operator's word that it is `now`, where a start would wait because it is behind what is on
/// record: the next start does not. For a broker that is stopped. Says how far behind it was.
///
/// This cannot be an admin's envelope: an envelope is judged by time too, so an admin with a right clock
/// could not talk to a broker with a wrong one. Whoever may start the broker sets its clock anyway.
///
/// # Errors
///
/// When the journal or the replay window cannot be read or written, or a broker runs on them.
pub fn accept_clock(config: &Config, now: Timestamp) -> anyhow::Result<Option<Duration>> {
    let _lock = lock(&config.data)?;
    let mut was = Timestamp::default();
    let mut journal = Embedded::open_giving(&config.data, &mut |change| was = change.newest(was))?;
    let seen = Replay::newest(&config.data)?;
    if is_behind(now, seen) {
        Replay::disown(&config.data, config.limits.skew(), now)?;
    }
    was = was.max(seen);
    if !is_behind(now, was) {
        return Ok(None);
    }
    // Last: what is killed before this waits again, and is accepted again.
    journal.append(&[&Change::ClockAccepted { was, at: now }])?;
    Ok(Some(now.distance(was)))
}

/// What a broker is made of, before anything runs: nobody can connect, and nothing is done by itself.
#[derive(Debug)]
pub struct Parts {
    /// What it does with envelopes.
    pub core: Arc<Core>,
    /// Where its orders are decided.
    pub desk: Desk,
    kept: Option<Arc<KeptKeys>>,
    reader: Reader,
    lock: Lock,
}

impl Parts {
    /// Reads the state back from the data directory, and opens the replay window.
    ///
    /// # Errors
    ///
    /// When a file is missing, damaged or readable by others, or the journal is another organisation's.
    pub fn of(config: Config, clock: Clock) -> anyhow::Result<Self> {
        let clock = Arc::new(clock);
        let certificates = Certificates::load(&config.certificate, &config.certificate_key)?;
        let certificates = Arc::new(certificates);
        upkeep::make_data(&config.data)?;
        let lock = lock(&config.data)?;
        let Restored {
            journal,
            state,
            root: root_key,
            broker: broker_key,
            newest,
            since,
        } = restore(&config, clock.now())?;
        let reader = journal.reader();
        let state = Arc::new(state);
        clock.await_time(newest);
        let mut run = [0; 8];
        getrandom::fill(&mut run)?;
        let run = u64::from_be_bytes(run);
        let voice = Arc::new(Voice::new(broker_key, config.org.clone(), run));
        let kept = match &config.mcp {
            Some(_) => Some(Arc::new(KeptKeys::beside(&config.root_key, &config.org)?)),
            None => None,
        };
        let (registrar, desk) = Registrar::new(
            Arc::clone(&state),
            Box::new(journal),
            Secrets {
                root: root_key,
                kept: kept.clone(),
            },
            Arc::clone(&voice),
            Arc::clone(&clock),
            config.clone(),
            Snapshots::new(config.data.clone(), Arc::clone(&voice), since),
        );
        let channels = config.channels.clone();
        let bodies_kib = config.limits.bodies_bytes_max / 1_024;
        let core = Arc::new(Core {
            voice,
            config,
            clock,
            state,
            registrar,
            metrics: Metrics::default(),
            certificates,
            channels,
            post_credentials: crate::calls::PostCredentials::default(),
            bodies: tokio::sync::Semaphore::new(bodies_kib),
        });
        Ok(Self {
            core,
            desk,
            kept,
            reader,
            lock,
        })
    }
}

impl Broker {
    /// Starts a broker: reads its state back, opens its replay window, and listens.
    ///
    /// # Errors
    ///
    /// When a file is missing, damaged or readable by others, the journal is another organisation's, or
    /// an address is taken.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        Self::start_at(config, Clock::machine()).await
    }

    /// As [`Broker::start`], with a clock of the caller's: tests bring their own time.
    ///
    /// # Errors
    ///
    /// As [`Broker::start`].
    pub async fn start_at(config: Config, clock: Clock) -> anyhow::Result<Self> {
        let Parts {
            core,
            desk,
            kept,
            reader,
            lock,
        } = Parts::of(config, clock)?;
        let registrar = desk.start()?;
        let config = &core.config;
        let listener = bind(config.listen, "listen").await?;
        let ops = bind(config.ops, "ops").await?;
        let (address, ops_address) = (listener.local_addr()?, ops.local_addr()?);
        let phase = watch::Sender::new(Phase::Serving);
        let limits = &core.config.limits;
        let room = Room::new(limits.connections_max, limits.connections_per_network_max);
        let mut tasks = JoinSet::new();
        let mcp = kept.zip(config.mcp.as_ref()).map(|(kept, mcp)| {
            let message_bytes = limits.envelope_bytes_max;
            Arc::new(Mcp::new(kept, mcp, &core.clock, message_bytes))
        });
        tasks.spawn(listener::accept(
            Arc::clone(&core),
            mcp.clone(),
            listener,
            Arc::clone(&core.certificates),
            Arc::clone(&room),
            phase.subscribe(),
        ));
        tasks.spawn(listener::ops::accept(
            Arc::clone(&core),
            ops,
            phase.subscribe(),
        ));
        tasks.spawn(dial::keep(Arc::clone(&core), phase.subscribe()));
        if core.config.compat.fep_go {
            tasks.spawn(compat::keep(Arc::clone(&core)));
        }
        tasks.spawn(keep_time(Arc::clone(&core)));
        tasks.spawn(Arc::clone(&core.certificates).watch());
        tasks.spawn(keep_window(Arc::clone(&core)));
        tasks.spawn(follow_changes(Arc::clone(&core)));
        tasks.spawn(keep_ceilings(Arc::clone(&core)));
        tasks.spawn(watch_clock(Arc::clone(&core)));
        match upkeep::socket::listen(&core.config.data) {
            Ok(listener) => drop(tasks.spawn(upkeep::socket::serve(listener, reader))),
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "no control socket: backups need the broker stopped"
            ),
        }
        tracing::info!(org = %core.state.org, %address, ops = %ops_address, "ready");
        Ok(Self {
            core,
            address,
            ops_address,
            phase,
            room,
            mcp,
            tasks,
            registrar,
            _lock: lock,
        })
    }

    /// Where agents connect; of use where the configuration says port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where health and metrics are.
    #[must_use]
    pub fn ops_address(&self) -> SocketAddr {
        self.ops_address
    }

    /// Has new connections see the certificate as its files are; those that are open stay.
    pub fn reload_certificates(&self) {
        self.core.certificates.reload();
    }

    /// What it knows and does, for benches and tests in the same process.
    #[must_use]
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Stops: takes no more connections, lets calls in flight finish within `drain_ms`, closes what is
    /// connected, and marks the replay window complete when nothing can be accepted any more.
    pub async fn stop(mut self) {
        let core = Arc::clone(&self.core);
        let drain = Duration::from_millis(core.config.limits.drain_ms);
        tracing::info!(calls = core.state.calls.len(), "stopping");
        self.phase.send_replace(Phase::Draining);
        let drained = tokio::time::timeout(drain, async {
            while !core.state.calls.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let _ = drained.await;
        self.phase.send_replace(Phase::Stopping);
        if let Some(mcp) = &self.mcp {
            mcp.end_streams();
        }
        let closed = tokio::time::timeout(CLOSE_MAX, self.room.empty()).await;
        self.tasks.shutdown().await;
        if let Some(mcp) = &self.mcp {
            mcp.end();
        }
        match closed {
            Ok(()) => core.state.replay.close(),
            // What still runs could use a nonce after the mark. Without it a start after a reboot waits.
            Err(_) => {
                tracing::warn!(
                    "connections did not close: the replay window is not marked complete"
                );
            }
        }
        let thread = self.registrar;
        drop((core, self.core));
        // The registrar ends when the last connection that could order something is gone.
        let _ = tokio::time::timeout(
            Duration::from_secs(1),
            tokio::task::spawn_blocking(move || thread.join()),
        )
        .await;
    }
}

async fn bind(address: SocketAddr, name: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{name}: {address} cannot be listened on"))
}

/// Keeps two brokers from one data directory. Ends also when this is killed.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a process that was just forked has the file for a moment longer.
        let _ = self.0.unlock();
    }
}

fn lock(data: &Path) -> anyhow::Result<Lock> {
    let path = data.join("lock");
    let file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => bail!("another broker runs on {}", data.display()),
        Err(TryLockError::Error(error)) => Err(error).context("locking the data directory"),
    }
}

/// What a start reads back.
struct Restored {
    journal: Embedded,
    state: State,
    root: SigningKey,
    /// What the broker signs with.
    broker: SigningKey,
    /// The newest time on record.
    newest: Timestamp,
    /// The number of the first record that no snapshot has.
    since: u64,
}

/// State as the journal has it, by way of a snapshot if there is one. The first start of an organisation
/// gives its first admin everything.
fn restore(config: &Config, now: Timestamp) -> anyhow::Result<Restored> {
    let newest = Replay::newest(&config.data)?;
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)?;
    let limits = &config.limits;
    let (replay, ended) = Replay::open(
        &config.data,
        limits.nonces_max,
        limits.nonces_per_sender_max,
        limits.skew(),
        secret,
        now,
    )?;
    if ended == Ended::PowerLost {
        tracing::warn!(
            "the machine went down under this broker, or its data is a backup's: what each sender signed up to its ceiling is refused as STALE"
        );
    }
    let state = State::new(config.org.clone(), limits, replay);
    let has_file = |key: &PublicKey| Purpose::Broker.load(&config.broker_key, key).is_ok();
    let (mut journal, since) = read_back(&config.data, &state, has_file)?;
    let charter = state.charter.written();
    let Some(founded) = charter.founded else {
        bail!(
            "{} holds no organisation: make one with `fem-cli init {}`",
            config.data.display(),
            config.org
        );
    };
    let org = &config.org;
    if founded.org != *org {
        bail!(
            "the journal is {}'s, the configuration {org}'s",
            founded.org
        );
    }
    let active = state.broker_keys.life().active();
    let active = active.context("the journal names no broker key")?;
    let broker = Purpose::Broker.load(&config.broker_key, &active)?;
    let active = state.roots.life().active();
    let active = active.context("the journal names no root key")?;
    let root = Purpose::Root.load(&config.root_key, &active)?;
    let mut give_all = |admin: Name, key: PublicKey| -> anyhow::Result<()> {
        let admin = AgentId::new(admin, org.clone());
        let issued = state.revocations.after_bars(now);
        let change = first_admin(&root, &admin, key, issued, now)?;
        journal.append(&[&change])?;
        Ok(state.apply(&change, Taking::Back)?)
    };
    if !charter.has_admin && charter.recovered.is_empty() {
        give_all(founded.admin, founded.admin_key)?;
    }
    for one in charter.recovered {
        tracing::warn!(admin = %one.admin, key = %one.key.fingerprint(), at_ms = one.at.as_ms(), "RECOVERY: the recovery key named this admin, who is given everything");
        give_all(one.admin, one.key)?;
    }
    Ok(Restored {
        journal,
        state,
        root,
        broker,
        newest: newest.max(charter.newest),
        since,
    })
}

/// Ends calls whose deadline has passed, and tells sessions what they missed.
async fn keep_time(core: Arc<Core>) {
    let mut tick = tokio::time::interval(DEADLINE_TICK);
    loop {
        tick.tick().await;
        let place = Place {
            core: &core,
            now: core.clock.now(),
        };
        place.expire_calls();
        place.report_all_missed();
    }
}

/// After each durable change: ends the calls that it struck, and tells everybody of new root keys. A word
/// under a new key of the broker is what makes that key an agent's: so it is told again under each.
async fn follow_changes(core: Arc<Core>) {
    let tellable = || (core.state.roots.keys(), core.voice.public());
    let mut told = tellable();
    let mut changes = core.state.changed.subscribe();
    // What was taken over before is looked at too.
    changes.mark_changed();
    while changes.changed().await.is_ok() {
        let now = core.clock.now();
        Place { core: &core, now }.end_struck_calls();
        let current = tellable();
        if current != told {
            tell_roots(&core, &current.0, now);
            told = current;
        }
    }
}

fn tell_roots(core: &Core, roots: &[PublicKey], now: Timestamp) {
    let said = Roots {
        roots: roots.to_vec(),
    };
    for session in core.state.sessions.all() {
        let to = session.agent().clone().into();
        let said = core.voice.say(Kind::Roots, Some(&to), None, &said, now);
        if session.send(said.bytes).is_err() {
            // It learns them when it attaches again.
            session.close();
        }
    }
}

async fn keep_window(core: Arc<Core>) {
    let mut tick = tokio::time::interval(WINDOW_TICK);
    loop {
        tick.tick().await;
        core.state.replay.expire(core.clock.now());
    }
}

/// Raises the ceilings: every second, if need be, and at once for whoever runs ahead and waits.
async fn keep_ceilings(core: Arc<Core>) {
    let mut tick = tokio::time::interval(CEILING_TICK);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = core.state.replay.asked() => {}
        }
        let settling = Arc::clone(&core);
        let settled =
            tokio::task::spawn_blocking(move || settling.state.replay.settle(settling.clock.now()));
        if let Ok(Err(error)) = settled.await {
            tracing::error!(%error, "the replay ceilings cannot be made durable");
        }
        // However many senders run ahead, and however they do it: the disk syncs no more often.
        tokio::time::sleep(SETTLE_PAUSE).await;
    }
}

/// Says once what is wrong with the machine's clock, and once that it is right again.
async fn watch_clock(core: Arc<Core>) {
    let mut tick = tokio::time::interval(CLOCK_TICK);
    let mut raised = false;
    loop {
        tick.tick().await;
        match core.clock.alarm() {
            Some(alarm) if !raised => tracing::warn!(code = "CLOCK", "{alarm}"),
            None if raised => tracing::info!("the machine's clock agrees with the broker's time"),
            _ => {}
        }
        raised = core.clock.alarm().is_some();
    }
}
