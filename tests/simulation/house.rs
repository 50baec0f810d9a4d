//! One organisation: its broker, made of the parts that `fem-broker` runs, and its agents.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use agent_sdk::Backoff;
use broker::clock::Clock;
use broker::pipeline::Core;
use broker::state::calls::Answer;
use broker::state::outbox::Queued;
use broker::state::sessions::Session;
use broker::{Config, Parts};
use bytes::Bytes;
use futures_util::FutureExt as _;
use proto_spec::admission::Vouched;
use proto_spec::frame::{FRAME, Frame, Vouching};
use proto_spec::refusal::ErrorBody;
use proto_spec::{AgentId, Digest, Envelope, Kind, Org, PublicKey, Received, Timestamp};
use tempfile::TempDir;
use tests::lab::{Actor, START, organisation};
use tokio::sync::{mpsc, watch};

use crate::network::{Index, Moment};
use crate::oracle::STALE_AFTER;

/// No broker's clock is behind the founding of its organisation.
const BEGIN: Duration = Duration::from_secs(3_600);
/// Envelopes of the simulation are small.
const ENVELOPE_BYTES: usize = 1 << 20;

/// What keeps the link to one peer up.
#[derive(Debug, Default)]
pub(crate) struct Dialer {
    pub(crate) backoff: Backoff,
    /// It dials, waits until it may, or serves the connection that it made.
    pub(crate) is_busy: bool,
}

/// One organisation.
#[derive(Debug)]
pub(crate) struct House {
    pub(crate) org: Org,
    pub(crate) admin: Actor,
    pub(crate) agents: BTreeMap<&'static str, Agent>,
    pub(crate) dialers: BTreeMap<Index, Dialer>,
    pub(crate) parts: Option<Parts>,
    changes: Option<watch::Receiver<()>>,
    /// Which start of its broker this is.
    pub(crate) run: u64,
    folder: TempDir,
    begin: Timestamp,
    ran_to: Moment,
}

impl House {
    /// Writes the files of one whose clock is so far ahead of the slowest that there may be.
    pub(crate) fn found(number: Index, ahead: Duration) -> Self {
        // Where there is memory that looks like a disk, its syncs cost nothing.
        let memory = std::path::Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let folder = folder.unwrap();
        let org: Org = format!("org{number}").parse().unwrap();
        let admin = Actor::of(&org, "root-admin", 1).unwrap();
        let text = organisation(folder.path(), &admin, "").unwrap();
        let stale = STALE_AFTER.as_millis();
        let text = format!(
            "{text}[federation]\nendpoints = [\"{org}.test:7443\"]\nstale_after_ms = {stale}\n"
        );
        std::fs::write(folder.path().join("broker.toml"), text).unwrap();
        let begin = START.later(BEGIN + ahead);
        Self {
            org,
            admin,
            agents: BTreeMap::new(),
            dialers: BTreeMap::new(),
            parts: None,
            changes: None,
            run: 0,
            folder,
            begin,
            ran_to: Duration::ZERO,
        }
    }

    /// Its clock.
    pub(crate) fn time(&self, now: Moment) -> Timestamp {
        self.begin.later(now)
    }

    pub(crate) fn start(&mut self, now: Moment) {
        let mut config = Config::load(&self.folder.path().join("broker.toml")).unwrap();
        config.limits.nonces_max = 8_192;
        config.limits.nonces_per_sender_max = 2_048;
        config.limits.nonces_per_peer_max = 4_096;
        let clock = Clock::manual(self.time(now));
        let parts = Parts::of(config, clock).unwrap();
        self.changes = Some(parts.core.state.changed.subscribe());
        self.parts = Some(parts);
        self.ran_to = now;
        self.run += 1;
    }

    /// What it had in memory is gone.
    pub(crate) fn crash(&mut self) {
        for agent in self.agents.values_mut() {
            agent.line = None;
        }
        self.dialers.clear();
        self.parts = None;
    }

    pub(crate) fn core(&self) -> Option<Arc<Core>> {
        self.parts.as_ref().map(|parts| Arc::clone(&parts.core))
    }

    /// Whether its broker took over a durable change since this was asked last.
    pub(crate) fn has_changed(&mut self) -> bool {
        let changes = self.changes.as_mut();
        changes.is_some_and(|changes| changes.changed().now_or_never().is_some())
    }

    /// Has its clock say `now`.
    pub(crate) fn run_to(&mut self, now: Moment) {
        if let Some(parts) = &self.parts {
            parts.core.clock.advance(now - self.ran_to);
            self.ran_to = now;
        }
    }

    /// Has its broker finish something: what waits for its registrar or its disk, they do at once.
    pub(crate) fn finish<T>(&mut self, work: impl Future<Output = T>) -> T {
        let parts = self.parts.as_mut().unwrap();
        let mut work = pin!(work);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..16 {
            if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
                return done;
            }
            parts.desk.catch_up();
            let replay = &parts.core.state.replay;
            replay.settle(parts.core.clock.now()).unwrap();
        }
        panic!("a broker waits for what nobody brings about")
    }

    /// The keys that its agents believe.
    pub(crate) fn broker_keys(&self) -> Vec<PublicKey> {
        let parts = self.parts.as_ref().unwrap();
        let life = parts.core.state.broker_keys.life();
        life.all().iter().map(|held| held.key).collect()
    }
}

/// An agent, and its session while it has one.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) actor: Actor,
    pub(crate) line: Option<Line>,
}

/// An attached session, from the agent's side.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) session: Arc<Session>,
    pub(crate) queue: mpsc::Receiver<Queued>,
    vouched: HashMap<Digest, Vouched>,
}

/// What an agent makes of what its broker sends.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A call, to be answered.
    Call(Envelope),
    /// What another says about a call, under the key that the broker vouches for.
    Result(Envelope),
    /// A call ended without a result.
    Refused(Digest, String),
    /// Anything else.
    Other,
}

impl Line {
    pub(crate) fn new(session: Arc<Session>, queue: mpsc::Receiver<Queued>) -> Self {
        Self {
            session,
            queue,
            vouched: HashMap::new(),
        }
    }

    pub(crate) fn hear(
        &mut self,
        bytes: Bytes,
        me: &AgentId,
        brokers: &[PublicKey],
        now: Timestamp,
    ) -> Heard {
        if bytes.first() != Some(&FRAME) {
            return said(bytes);
        }
        let frame = Frame::decode(bytes).unwrap();
        let id = match &frame.vouching {
            Vouching::Known(id) => *id,
            Vouching::Full(word) => {
                let apart = Duration::from_secs(10);
                let vouched = Vouched::check(word.clone(), brokers, me, now, apart).unwrap();
                let id = vouched.id();
                self.vouched.insert(id, vouched);
                id
            }
        };
        let vouched = &self.vouched[&id];
        vouched.alive(now.earlier(Duration::from_secs(10))).unwrap();
        let received = Received::parse(frame.envelope, ENVELOPE_BYTES).unwrap();
        // The broker delivers nothing that is not signed by whom it vouches for.
        let verified = received.verify(vouched).unwrap();
        let envelope = verified.envelope().clone();
        match envelope.kind() {
            Kind::ToolCall => Heard::Call(envelope),
            Kind::ToolResult => Heard::Result(envelope),
            _ => Heard::Other,
        }
    }
}

/// What an agent makes of the answer to a POST.
pub(crate) fn posted(answer: Answer, me: &AgentId, brokers: &[PublicKey], now: Timestamp) -> Heard {
    let Some(word) = answer.credential else {
        return said(answer.envelope);
    };
    let vouched = Vouched::check(word, brokers, me, now, Duration::ZERO).unwrap();
    let received = Received::parse(answer.envelope, ENVELOPE_BYTES).unwrap();
    Heard::Result(received.verify(&vouched).unwrap().envelope().clone())
}

/// What a broker says itself.
pub(crate) fn said(bytes: Bytes) -> Heard {
    let envelope = Envelope::parse(bytes, ENVELOPE_BYTES).unwrap();
    match (envelope.kind(), envelope.re()) {
        (Kind::Error, Some(re)) => {
            let body: ErrorBody = envelope.read_body().unwrap();
            Heard::Refused(re, body.code)
        }
        _ => Heard::Other,
    }
}
