//! Brokers, agents and the network between them, on one thread and in virtual time: what is due next
//! happens, then every broker that it concerns does all that it can.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use broker::calls::Place;
use broker::federation::telling::TICK;
use broker::state::calls::Answer;
use bytes::Bytes;
use proto_spec::{Digest, Envelope, Org};
use tokio::sync::oneshot;

use crate::dice::Dice;
use crate::house::House;
use crate::network::{Conn, Index, Moment, Parcel, Phase, Weather};
use crate::oracle::{Broken, Oracle};

/// How often a broker looks at deadlines here.
const LOOK: Duration = Duration::from_millis(250);
/// How often nonces are dropped that can no longer be replayed.
const WINDOW: Duration = Duration::from_secs(10);
/// Bytes of an envelope here, at most.
pub(crate) const ENVELOPE_BYTES: usize = 1 << 20;
/// Lines of a trace that a failure shows.
const SHOWN: usize = 60;

/// What happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// Something may have arrived that this end of a connection said.
    Arrive(u64, usize),
    /// One end of a connection says its next head.
    Head(u64, usize, u64),
    /// It looks at what the other end has to know.
    Terms(u64, usize, u64),
    /// It looks whether anything came lately.
    Listen(u64, usize),
    GreetingIsLate(u64),
    /// A broker dials a peer: tries to, does.
    Dial(Index, Index, u64),
    Connect(Index, Index, u64),
    NotConnected(Index, Index, u64),
    /// A broker of this run looks at deadlines.
    Look(Index, u64),
    Start(Index),
    Crash(Index, Down),
    Heal(Vec<(Index, Index)>),
    /// An agent attaches again.
    Return(Index, &'static str),
    Answer(Index, &'static str, Box<Envelope>),
    /// An adversary lets out what it held back.
    LetOut(Index, Index, Bytes),
    /// The next of what people, agents, adversaries and the weather do.
    Act,
}

/// How a broker goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Down {
    /// Its process is killed: the system closes its connections.
    Killed,
    /// Its machine is off the network: nobody hears of it.
    Gone,
}

/// Everything.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) dice: Dice,
    pub(crate) now: Moment,
    pub(crate) houses: Vec<House>,
    pub(crate) edges: Vec<(Index, Index)>,
    pub(crate) weather: Weather,
    pub(crate) calm_since: Option<Moment>,
    pub(crate) oracle: Oracle,
    pub(crate) conns: BTreeMap<u64, Conn>,
    /// What went over links: from whom to whom.
    pub(crate) recorded: VecDeque<(Index, Index, Bytes)>,
    /// Nothing goes wrong any more.
    pub(crate) is_over: bool,
    pub(crate) trace: Vec<String>,
    pub(crate) posted: Vec<(Index, u64, Digest, oneshot::Receiver<Answer>)>,
    due: BTreeMap<(Moment, u64), Event>,
    pub(crate) said: u64,
    pub(crate) next: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let weather = Weather::new(&mut dice);
        Self {
            seed,
            weather,
            dice,
            now: Duration::ZERO,
            houses: Vec::new(),
            edges: Vec::new(),
            calm_since: Some(Duration::ZERO),
            oracle: Oracle::default(),
            conns: BTreeMap::new(),
            recorded: VecDeque::new(),
            is_over: false,
            trace: Vec::new(),
            posted: Vec::new(),
            due: BTreeMap::new(),
            said: 0,
            next: 0,
        }
    }

    pub(crate) fn note(&mut self, what: impl std::fmt::Display) {
        self.trace
            .push(format!("{:>9.3} s  {what}", self.now.as_secs_f64()));
    }

    /// The end of the trace.
    pub(crate) fn shown(&self) -> String {
        let from = self.trace.len().saturating_sub(SHOWN);
        self.trace[from..].join("\n")
    }

    pub(crate) fn plan(&mut self, after: Duration, event: Event) {
        self.next += 1;
        self.due.insert((self.now + after, self.next), event);
    }

    /// Has everything happen that is due by `until`.
    pub(crate) fn run_until(&mut self, until: Moment) -> Result<(), Broken> {
        while let Some(entry) = self.due.first_entry()
            && entry.key().0 <= until
        {
            let ((at, _), event) = entry.remove_entry();
            self.move_to(at);
            self.happen(event)?;
        }
        self.move_to(until);
        Ok(())
    }

    pub(crate) fn move_to(&mut self, now: Moment) {
        if now > self.now {
            self.now = now;
            for house in &mut self.houses {
                house.run_to(now);
            }
        }
    }

    pub(crate) fn happen(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Arrive(conn, from) => self.arrive(conn, from),
            Event::Head(conn, end, plan) => {
                let linked = self.linked(conn, end);
                if linked.is_some_and(|linked| linked.head_plan == plan) {
                    self.say_head(conn, end);
                    return self.settle_end(conn, end);
                }
                Ok(())
            }
            Event::Terms(conn, end, plan) => {
                let linked = self.linked(conn, end);
                if linked.is_some_and(|linked| linked.terms_plan == plan) {
                    self.say_terms(conn, end);
                    return self.settle_end(conn, end);
                }
                Ok(())
            }
            Event::Listen(conn, end) => {
                if let Some(linked) = self.linked(conn, end) {
                    if linked
                        .silence
                        .is_too_long(std::mem::take(&mut linked.heard))
                    {
                        return self.close(conn, end, "silence");
                    }
                    self.plan(TICK, Event::Listen(conn, end));
                }
                Ok(())
            }
            Event::GreetingIsLate(conn) => {
                for end in 0..2 {
                    let is_late = |conn: &Conn| matches!(conn.ends[end].phase, Phase::Greeting);
                    if self.conns.get(&conn).is_some_and(is_late) {
                        self.close(conn, end, "no greeting")?;
                    }
                }
                Ok(())
            }
            Event::Dial(house, peer, run) => self.dial(house, peer, run),
            Event::Connect(house, peer, run) => self.connect(house, peer, run),
            Event::NotConnected(house, peer, run) => {
                if self.runs(house, run) {
                    self.dial_again(house, peer);
                }
                Ok(())
            }
            Event::Look(house, run) => {
                let Some(core) = self.houses[house].core().filter(|_| self.runs(house, run)) else {
                    return Ok(());
                };
                let now = core.clock.now();
                let place = Place { core: &core, now };
                place.expire_calls();
                place.report_all_missed();
                let looks = self.now.as_millis() / LOOK.as_millis();
                if looks.is_multiple_of(WINDOW.as_millis() / LOOK.as_millis()) {
                    core.state.replay.expire(now);
                    core.state.replay.settle(now).unwrap();
                }
                drop(core);
                self.plan(LOOK, Event::Look(house, run));
                self.settle(house)
            }
            Event::Start(house) => self.start(house),
            Event::Crash(house, how) => {
                if !self.is_over {
                    self.crash(house, how);
                }
                Ok(())
            }
            Event::Heal(ways) => {
                self.note(format_args!("healed {ways:?}"));
                self.weather.heal(&ways);
                self.reconsider_calm();
                self.flow();
                Ok(())
            }
            Event::Return(house, name) => self.attach(house, name),
            Event::Answer(house, name, call) => self.answer(house, name, &call),
            Event::LetOut(from, to, bytes) => {
                self.inject(from, to, bytes);
                Ok(())
            }
            Event::Act => self.act(),
        }
    }

    pub(crate) fn runs(&self, house: Index, run: u64) -> bool {
        self.houses[house].parts.is_some() && self.houses[house].run == run
    }

    pub(crate) fn is_up(&self, house: Index) -> bool {
        self.houses[house].parts.is_some()
    }

    pub(crate) fn index(&self, org: &Org) -> Index {
        let index = self.houses.iter().position(|house| house.org == *org);
        index.unwrap()
    }

    /// Notes whether anything is wrong with the network or a broker.
    pub(crate) fn reconsider_calm(&mut self) {
        let all_up = (0..self.houses.len()).all(|house| self.is_up(house));
        self.calm_since = match (self.weather.is_calm() && all_up, self.calm_since) {
            (true, since) => since.or(Some(self.now)),
            (false, _) => None,
        };
    }

    pub(crate) fn start(&mut self, house: Index) -> Result<(), Broken> {
        if self.is_up(house) {
            return Ok(());
        }
        self.note(format_args!("org{house} starts"));
        let now = self.now;
        self.houses[house].start(now);
        self.reconsider_calm();
        self.check_record(house)?;
        let run = self.houses[house].run;
        self.plan(LOOK, Event::Look(house, run));
        let names: Vec<_> = self.houses[house].agents.keys().copied().collect();
        for name in names {
            let after = self.dice.ms(20, 1_500);
            self.plan(after, Event::Return(house, name));
        }
        self.settle(house)
    }

    pub(crate) fn crash(&mut self, house: Index, how: Down) {
        if !self.is_up(house) {
            return;
        }
        self.note(format_args!("org{house} crashes: {how:?}"));
        self.oracle.seen.count("crashes");
        let mut closed = Vec::new();
        for (id, conn) in &mut self.conns {
            for end in 0..2 {
                let it = &mut conn.ends[end];
                if it.house == house && !matches!(it.phase, Phase::Closed) {
                    it.phase = Phase::Closed;
                    closed.push((*id, end));
                }
            }
        }
        for (conn, end) in closed {
            if how == Down::Killed {
                self.put(conn, end, Parcel::End);
            }
            self.forget_if_closed(conn);
        }
        self.houses[house].crash();
        self.posted.retain(|(at, ..)| *at != house);
        self.reconsider_calm();
    }

    /// Has a broker do all that it can at this moment, and everybody who hears it.
    pub(crate) fn settle(&mut self, house: Index) -> Result<(), Broken> {
        for _ in 0..64 {
            let Some(core) = self.houses[house].core() else {
                return Ok(());
            };
            let mut is_quiet = true;
            if self.houses[house].has_changed() {
                let now = core.clock.now();
                Place { core: &core, now }.end_struck_calls();
                is_quiet = false;
            }
            drop(core);
            is_quiet &= !self.settle_sessions(house)?;
            is_quiet &= !self.settle_links(house)?;
            is_quiet &= !self.settle_posts(house)?;
            if is_quiet {
                self.look_at_peers(house);
                return Ok(());
            }
        }
        panic!("org{house} does not come to rest")
    }

    pub(crate) fn settle_end(&mut self, conn: u64, end: usize) -> Result<(), Broken> {
        match self.conns.get(&conn).map(|conn| conn.ends[end].house) {
            Some(house) => self.settle(house),
            None => Ok(()),
        }
    }
}
