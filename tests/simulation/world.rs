//! Brokers, agents and the network between them, on one thread and in virtual time: what is due next
//! happens, then every broker that it concerns does all that it can.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use broker::calls::Place;
use broker::conversation::{Hears as _, PING_EVERY};
use broker::federation::dial::{CONNECT_MAX, LASTING, is_dialled};
use broker::federation::hearing::Attached;
use broker::federation::link::{Binding, Greeting, gone};
use broker::federation::telling::{Heads, PAUSE, REFRESH, TICK, Terms};
use broker::pipeline::{Door, Step};
use broker::state::calls::Answer;
use bytes::Bytes;
use futures_util::FutureExt as _;
use proto_spec::frame::{RELAY, Relay};
use proto_spec::limits::CHALLENGE_VALIDITY;
use proto_spec::message::{Ack, Attach, LinkRole, RevocationHead};
use proto_spec::refusal::ErrorBody;
use proto_spec::{Audience, Digest, Envelope, Kind, Org, Sealed};
use serde::Serialize;
use serde_json::{Value, json};
use tests::lab::{Actor, Extra};
use tokio::sync::{mpsc, oneshot};

use crate::dice::Dice;
use crate::house::{Agent, Heard, House, Line, posted, said};
use crate::network::{Conn, End, House as Index, Linked, Moment, Parcel, Phase, Source, Weather};
use crate::oracle::{Broken, Ended, Oracle, Way};

/// How often a broker looks at deadlines here.
const LOOK: Duration = Duration::from_millis(250);
/// How often nonces are dropped that can no longer be replayed.
const WINDOW: Duration = Duration::from_secs(10);
/// Frames that an adversary remembers.
const RECORDED_MAX: usize = 256;
const ENVELOPE_BYTES: usize = 1 << 20;
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
    Ping(u64, usize),
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
    Answer(Index, &'static str, Envelope),
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
    posted: Vec<(Index, u64, Digest, oneshot::Receiver<Answer>)>,
    due: BTreeMap<(Moment, u64), Event>,
    said: u64,
    next: u64,
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

    fn move_to(&mut self, now: Moment) {
        if now > self.now {
            self.now = now;
            for house in &mut self.houses {
                house.run_to(now);
            }
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), Broken> {
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
            Event::Ping(conn, end) => {
                if let Some(linked) = self.linked(conn, end) {
                    if !std::mem::take(&mut linked.heard) {
                        return self.close(conn, end, "silence");
                    }
                    self.plan(PING_EVERY, Event::Ping(conn, end));
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
                if looks % (WINDOW.as_millis() / LOOK.as_millis()) == 0 {
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

    fn runs(&self, house: Index, run: u64) -> bool {
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

    // Brokers.

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
            if core.state.changed.notified().now_or_never().is_some() {
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

    fn settle_end(&mut self, conn: u64, end: usize) -> Result<(), Broken> {
        match self.conns.get(&conn).map(|conn| conn.ends[end].house) {
            Some(house) => self.settle(house),
            None => Ok(()),
        }
    }

    fn settle_sessions(&mut self, house: Index) -> Result<bool, Broken> {
        let core = self.houses[house].core().unwrap();
        let brokers = self.houses[house].broker_keys();
        let now = self.houses[house].time(self.now);
        let mut heard = Vec::new();
        let mut lost = Vec::new();
        for (name, agent) in &mut self.houses[house].agents {
            let Some(line) = &mut agent.line else {
                continue;
            };
            while let Ok(bytes) = line.queue.try_recv() {
                line.session.taken(&bytes);
                heard.push((*name, line.hear(bytes, &agent.actor.id, &brokers, now)));
            }
            if line.session.closed().now_or_never().is_some() {
                lost.push(*name);
            }
        }
        let is_any = !heard.is_empty() || !lost.is_empty();
        for (name, heard) in heard {
            self.heard(house, name, heard)?;
        }
        for name in lost {
            let agent = self.houses[house].agents.get_mut(name).unwrap();
            let line = agent.line.take().unwrap();
            core.state.sessions.detach(&line.session);
            let now = core.clock.now();
            Place { core: &core, now }.connection_gone(&line.session);
            let after = self.dice.ms(20, 1_500);
            self.plan(after, Event::Return(house, name));
        }
        Ok(is_any)
    }

    fn heard(&mut self, house: Index, name: &'static str, heard: Heard) -> Result<(), Broken> {
        match heard {
            Heard::Call(call) => {
                let id = id_of(&call);
                self.note(format_args!("{name}@org{house} is called: {}", short(&id)));
                self.oracle.delivered(house, &id)?;
                // Some never answer.
                if self.is_over || !self.dice.one_in(12) {
                    let most = [200, 2_000, 15_000][self.dice.below(3)];
                    let most = if self.is_over { 200 } else { most };
                    let after = self.dice.ms(0, most);
                    self.plan(after, Event::Answer(house, name, call));
                }
            }
            Heard::Result(result) => {
                let about = result.re().unwrap();
                let id = id_of(&result);
                let is_provider = self.oracle.calls.get(&about).is_some_and(|call| {
                    let provider = &self.houses[call.owner].agents["fs"].actor.id;
                    call.home == house && result.speaker().agent() == Some(provider)
                });
                // What is not about a call of its own the agent leaves aside.
                if is_provider {
                    self.note(format_args!("{} is answered", short(&about)));
                    self.oracle.answered(&about, &id)?;
                }
            }
            Heard::Refused(about, code) => {
                self.note(format_args!("{} is refused: {code}", short(&about)));
                self.oracle.end(&about, Ended::Refused(code));
            }
            Heard::Other => {}
        }
        Ok(())
    }

    fn settle_posts(&mut self, house: Index) -> Result<bool, Broken> {
        let run = self.houses[house].run;
        let mut answers = Vec::new();
        self.posted.retain_mut(|(at, of, call, waiting)| {
            if *at != house || *of != run {
                return true;
            }
            match waiting.try_recv() {
                Ok(answer) => {
                    answers.push((*call, answer));
                    false
                }
                Err(oneshot::error::TryRecvError::Empty) => true,
                Err(oneshot::error::TryRecvError::Closed) => false,
            }
        });
        let is_any = !answers.is_empty();
        for (call, answer) in answers {
            let caller = self.oracle.calls[&call].caller;
            let brokers = self.houses[house].broker_keys();
            let now = self.houses[house].time(self.now);
            let me = &self.houses[house].agents[caller].actor.id;
            let heard = posted(answer, me, &brokers, now);
            self.heard(house, caller, heard)?;
        }
        Ok(is_any)
    }

    // Links.

    fn linked(&mut self, conn: u64, end: usize) -> Option<&mut Linked> {
        self.conns.get_mut(&conn)?.ends[end].up()
    }

    fn settle_links(&mut self, house: Index) -> Result<bool, Broken> {
        let mut is_any = false;
        let ends: Vec<(u64, usize)> = self
            .conns
            .iter()
            .flat_map(|(id, conn)| (0..2).map(|end| (*id, end, conn.ends[end].house)))
            .filter(|(_, _, at)| *at == house)
            .map(|(id, end, _)| (id, end))
            .collect();
        for (id, end) in ends {
            let Some(linked) = self.linked(id, end) else {
                continue;
            };
            if linked.died.has_changed().unwrap() {
                self.say_head(id, end);
                is_any = true;
            }
            let now = self.now;
            let Some(linked) = self.linked(id, end) else {
                continue;
            };
            if linked.peers.has_changed().unwrap() || linked.offers.has_changed().unwrap() {
                linked.peers.borrow_and_update();
                linked.offers.borrow_and_update();
                linked.terms_plan += 1;
                let plan = linked.terms_plan;
                let after = (linked.terms_at + PAUSE).saturating_sub(now);
                self.plan(after, Event::Terms(id, end, plan));
            }
            is_any |= self.send_queued(id, end);
            let is_closed = |linked: &mut Linked| linked.link.closed().now_or_never().is_some();
            if self.linked(id, end).is_some_and(is_closed) {
                self.close(id, end, "our own word")?;
                is_any = true;
            }
        }
        Ok(is_any)
    }

    /// Gives the network what waits for it.
    fn send_queued(&mut self, id: u64, end: usize) -> bool {
        let mut is_any = false;
        loop {
            let Some(conn) = self.conns.get_mut(&id) else {
                return is_any;
            };
            if !conn.pipes[end].has_room() {
                return is_any;
            }
            let Some(linked) = conn.ends[end].up() else {
                return is_any;
            };
            let Ok(bytes) = linked.queue.try_recv() else {
                return is_any;
            };
            linked.link.taken(&bytes);
            is_any = true;
            let (from, to) = (conn.ends[end].house, conn.ends[1 - end].house);
            if bytes.first() == Some(&RELAY) {
                self.recorded.push_back((from, to, bytes.clone()));
                if self.recorded.len() > RECORDED_MAX {
                    self.recorded.pop_front();
                }
                let is_own_call = self.call_in(&bytes).is_some_and(|(_, home)| home == from);
                if !self.is_over && is_own_call && self.dice.one_in(25) {
                    let after = self.dice.ms(0, 60_000);
                    self.note(format_args!(
                        "a call from org{from} to org{to} is held back"
                    ));
                    self.oracle.seen.count("calls held back");
                    self.plan(after, Event::LetOut(from, to, bytes));
                    continue;
                }
            }
            self.put(id, end, Parcel::Message(bytes, Source::Broker));
        }
    }

    /// The identity and the home of the call in a frame.
    fn call_in(&self, frame: &Bytes) -> Option<(Digest, Index)> {
        let relay = Relay::decode(frame.clone()).ok()?;
        let envelope = Envelope::parse(relay.envelope, ENVELOPE_BYTES).ok()?;
        let is_call = envelope.kind() == Kind::ToolCall;
        let id = id_of(&envelope);
        let call = self.oracle.calls.get(&id);
        is_call.then_some((id, call.map_or(usize::MAX, |call| call.home)))
    }

    pub(crate) fn put(&mut self, id: u64, end: usize, parcel: Parcel) {
        let latency = self.weather.latency(&mut self.dice);
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let arrives = conn.pipes[end].put(parcel, self.now + latency);
        self.plan(arrives - self.now, Event::Arrive(id, end));
    }

    /// What waited for the network to heal arrives.
    fn flow(&mut self) {
        let waiting: Vec<(u64, usize, usize)> = self
            .conns
            .iter()
            .flat_map(|(id, conn)| (0..2).map(|end| (*id, end, conn.pipes[end].len())))
            .collect();
        for (id, end, count) in waiting {
            let after = self.weather.latency(&mut self.dice);
            for _ in 0..count {
                self.plan(after, Event::Arrive(id, end));
            }
        }
    }

    fn arrive(&mut self, id: u64, from: usize) -> Result<(), Broken> {
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&id) else {
            return Ok(());
        };
        let (sender, reader) = (conn.ends[from].house, conn.ends[1 - from].house);
        if !self.weather.passes(sender, reader) {
            return Ok(());
        }
        let Some(parcel) = conn.pipes[from].take(now) else {
            return Ok(());
        };
        let to = 1 - from;
        let has_room = self.settle_after_taking(id, from);
        match (parcel, &conn_phase(&self.conns, id, to)) {
            (_, At::Nowhere) => has_room,
            (Parcel::End, _) => self.close(id, to, "the other end closed"),
            (Parcel::Message(bytes, _), At::Greeting) => self.greet(id, to, bytes),
            (Parcel::Message(bytes, source), At::Up) => self.hear(id, to, bytes, source),
        }
    }

    /// What waited for room has some.
    fn settle_after_taking(&mut self, id: u64, end: usize) -> Result<(), Broken> {
        self.send_queued(id, end);
        Ok(())
    }

    fn hear(&mut self, id: u64, end: usize, bytes: Bytes, source: Source) -> Result<(), Broken> {
        let now = self.now;
        let conn = self.conns.get_mut(&id).unwrap();
        let (house, peer) = (conn.ends[end].house, conn.ends[1 - end].house);
        let linked = conn.ends[end].up().unwrap();
        linked.heard = true;
        let link = Arc::clone(&linked.link);
        let way = Way {
            peer,
            known_up_to: linked.known_up_to,
            told: linked.told.clone(),
            is_honest: source == Source::Broker,
        };
        let call = match bytes.first() == Some(&RELAY) {
            true => self.call_in(&bytes).map(|(id, _)| id),
            false => {
                self.note_word(id, end, &bytes);
                None
            }
        };
        let core = self.houses[house].core().unwrap();
        let attached = Attached { core: &core, link };
        let answer = self.houses[house].finish(attached.hear(bytes));
        drop(core);
        if let Some(call) = call {
            match &answer {
                None => {
                    self.note(format_args!(
                        "org{house} takes {} from org{peer}",
                        short(&call)
                    ));
                    self.oracle.taken(house, &call, Some(&way), now)?;
                }
                Some(answer) => self.note_refusal(house, answer),
            }
        }
        if let Some(answer) = answer {
            self.put(id, end, Parcel::Message(answer, Source::Broker));
        }
        self.settle(house)
    }

    fn note_refusal(&mut self, house: Index, answer: &Bytes) {
        if let Heard::Refused(call, code) = said(answer.clone()) {
            self.note(format_args!("org{house} refuses {}: {code}", short(&call)));
            self.oracle.seen.count(format!("at a peer: {code}"));
        }
    }

    /// Keeps book of what a head says.
    fn note_word(&mut self, id: u64, end: usize, bytes: &Bytes) {
        let word = Envelope::parse(bytes.clone(), ENVELOPE_BYTES).unwrap();
        if word.kind() != Kind::RevocationHead {
            return;
        }
        let head: RevocationHead = word.read_body().unwrap();
        let conn = self.conns.get_mut(&id).unwrap();
        let reader = conn.ends[end].house;
        let said = conn.heads_said[1 - end].pop_front();
        let begun = conn.begun;
        if let Some(linked) = conn.ends[end].up() {
            linked.known_up_to = linked.known_up_to.max(said.unwrap_or_default());
            linked.told.extend(&head.dead);
        }
        let well = self.calm_since.map(|since| since.max(begun));
        self.oracle.told(reader, &head.dead, self.now, well);
    }

    fn say_head(&mut self, id: u64, end: usize) {
        let now = self.now;
        let Some(house) = self.conns.get(&id).map(|conn| conn.ends[end].house) else {
            return;
        };
        let core = self.houses[house].core().unwrap();
        let Some(linked) = self.linked(id, end) else {
            return;
        };
        linked.died.borrow_and_update();
        let head = linked.heads.next(&core, &linked.link, core.clock.now());
        linked.head_plan += 1;
        let plan = linked.head_plan;
        let is_sent = linked.link.send(head).is_ok();
        if !is_sent {
            linked.link.close();
        }
        let conn = self.conns.get_mut(&id).unwrap();
        conn.heads_said[end].push_back(now);
        self.plan(TICK, Event::Head(id, end, plan));
    }

    fn say_terms(&mut self, id: u64, end: usize) {
        let now = self.now;
        let house = self.conns[&id].ends[end].house;
        let core = self.houses[house].core().unwrap();
        let Some(linked) = self.linked(id, end) else {
            return;
        };
        linked.peers.borrow_and_update();
        linked.offers.borrow_and_update();
        linked.terms_at = now;
        linked.terms_plan += 1;
        let plan = linked.terms_plan;
        let words = linked.terms.next(&core, &linked.link, core.clock.now());
        let is_said =
            words.is_some_and(|words| words.into_iter().all(|word| linked.link.send(word).is_ok()));
        if !is_said {
            linked.link.close();
        }
        self.plan(PAUSE + REFRESH, Event::Terms(id, end, plan));
    }

    fn greet(&mut self, id: u64, end: usize, theirs: Bytes) -> Result<(), Broken> {
        let conn = &self.conns[&id];
        let (house, other) = (conn.ends[end].house, conn.ends[1 - end].house);
        let binding = conn.ends[end].binding;
        let core = self.houses[house].core().unwrap();
        let peer = core.state.peers.find(&self.houses[other].org);
        let Some(peer) = peer else {
            return self.close(id, end, "no peer");
        };
        let greeting = Greeting {
            core: &core,
            peer: &peer,
            binding,
        };
        let key = match greeting.believe(theirs) {
            Ok(key) => key,
            Err(why) => return self.close(id, end, &format!("{why:#}")),
        };
        if binding.role == LinkRole::Dials {
            let ours = greeting.ours();
            self.put(id, end, Parcel::Message(ours, Source::Broker));
        }
        let attached = self.houses[house].finish(greeting.attach(key));
        let (link, queue) = match attached {
            Ok(attached) => attached,
            Err(why) => return self.close(id, end, &format!("{why:#}")),
        };
        self.note(format_args!("org{house} is linked to org{other}"));
        let state = &core.state;
        let linked = Linked {
            link,
            queue,
            heads: Heads::default(),
            head_plan: 0,
            terms: Terms::default(),
            terms_plan: 0,
            terms_at: self.now,
            died: state.revocations.deaths(),
            peers: state.peers.changes(),
            offers: state.sessions.offers(),
            heard: true,
            known_up_to: self.now,
            told: Vec::new(),
        };
        self.conns.get_mut(&id).unwrap().ends[end].phase = Phase::Up(Box::new(linked));
        self.say_head(id, end);
        self.say_terms(id, end);
        self.plan(PING_EVERY, Event::Ping(id, end));
        self.settle(house)
    }

    pub(crate) fn close(&mut self, id: u64, end: usize, why: &str) -> Result<(), Broken> {
        let Some(conn) = self.conns.get_mut(&id) else {
            return Ok(());
        };
        let (house, other) = (conn.ends[end].house, conn.ends[1 - end].house);
        let begun = conn.begun;
        let phase = std::mem::replace(&mut conn.ends[end].phase, Phase::Closed);
        if matches!(phase, Phase::Closed) {
            return Ok(());
        }
        self.note(format_args!(
            "org{house} closes its link to org{other}: {why}"
        ));
        let core = self.houses[house].core().unwrap();
        if let Phase::Up(linked) = phase {
            gone(&core, &linked.link);
        }
        drop(core);
        self.put(id, end, Parcel::End);
        if end == 0 {
            if let Some(dialer) = self.houses[house].dialers.get_mut(&other)
                && self.now - begun > LASTING
            {
                dialer.backoff.reset();
            }
            self.dial_again(house, other);
        }
        self.forget_if_closed(id);
        self.settle(house)
    }

    fn forget_if_closed(&mut self, id: u64) {
        let is_closed = |conn: &Conn| {
            conn.ends
                .iter()
                .all(|end| matches!(end.phase, Phase::Closed))
        };
        if self.conns.get(&id).is_some_and(is_closed) {
            self.conns.remove(&id);
        }
    }

    // Dialling.

    /// Begins to dial what has to be dialled.
    fn look_at_peers(&mut self, house: Index) {
        let Some(core) = self.houses[house].core() else {
            return;
        };
        let run = self.houses[house].run;
        for peer in core.state.peers.all() {
            if !is_dialled(&peer) || core.state.links.of(&peer.org).is_some() {
                continue;
            }
            let other = self.index(&peer.org);
            let dialer = self.houses[house].dialers.entry(other).or_default();
            if !std::mem::replace(&mut dialer.is_busy, true) {
                self.plan(Duration::ZERO, Event::Dial(house, other, run));
            }
        }
    }

    fn dial(&mut self, house: Index, other: Index, run: u64) -> Result<(), Broken> {
        if !self.runs(house, run) {
            return Ok(());
        }
        let core = self.houses[house].core().unwrap();
        let peer = core.state.peers.find(&self.houses[other].org);
        let is_wanted = peer.is_some_and(|peer| is_dialled(&peer))
            && core.state.links.of(&self.houses[other].org).is_none();
        if !is_wanted {
            self.houses[house].dialers.entry(other).or_default().is_busy = false;
            return Ok(());
        }
        let trip = self.weather.latency(&mut self.dice);
        let is_through = self.weather.passes(house, other) && self.weather.passes(other, house);
        match is_through {
            true => self.plan(trip * 4, Event::Connect(house, other, run)),
            false => self.plan(CONNECT_MAX, Event::NotConnected(house, other, run)),
        }
        Ok(())
    }

    fn connect(&mut self, house: Index, other: Index, run: u64) -> Result<(), Broken> {
        if !self.runs(house, run) {
            return Ok(());
        }
        let listener = self.houses[other].core();
        let peer = listener.as_ref().and_then(|core| {
            let peer = core.state.peers.find(&self.houses[house].org);
            peer.filter(|peer| !peer.is_paused)
        });
        let (Some(core), Some(peer)) = (listener, peer) else {
            self.dial_again(house, other);
            return Ok(());
        };
        let dialler = self.houses[house].core().unwrap();
        let exporter = Digest::of(format!("{} {}", self.seed, self.next).as_bytes());
        let channel = |core: &broker::pipeline::Core| core.certificates.current().channel;
        let (ours, theirs) = (channel(&dialler), channel(&core));
        let end = |house, role, ours, theirs| End {
            house,
            binding: Binding {
                role,
                exporter,
                ours,
                theirs,
            },
            phase: Phase::Greeting,
        };
        let dials = end(house, LinkRole::Dials, ours, theirs);
        let listens = end(other, LinkRole::Listens, theirs, ours);
        let greeting = Greeting {
            core: &core,
            peer: &peer,
            binding: listens.binding,
        };
        let said = greeting.ours();
        self.next += 1;
        let id = self.next;
        let conn = Conn {
            ends: [dials, listens],
            pipes: Default::default(),
            heads_said: Default::default(),
            begun: self.now,
        };
        self.conns.insert(id, conn);
        self.put(id, 1, Parcel::Message(said, Source::Broker));
        self.plan(CHALLENGE_VALIDITY, Event::GreetingIsLate(id));
        Ok(())
    }

    fn dial_again(&mut self, house: Index, other: Index) {
        let random = self.dice.next();
        let run = self.houses[house].run;
        let dialer = self.houses[house].dialers.entry(other).or_default();
        let pause = dialer.backoff.failed(random);
        dialer.is_busy = true;
        self.plan(pause, Event::Dial(house, other, run));
    }

    // Agents.

    fn nonce(&mut self) -> String {
        self.said += 1;
        format!("simulated-{:016}", self.said)
    }

    /// Has an agent sign something.
    pub(crate) fn seal(
        &mut self,
        house: Index,
        actor: &Actor,
        kind: Kind,
        to: &Audience,
        body: &impl Serialize,
        re: Option<Digest>,
        deadline: Option<u64>,
    ) -> Sealed {
        let extra = Extra {
            nonce: Some(self.nonce()),
            re,
            token: None,
            deadline,
        };
        let now = self.houses[house].time(self.now);
        actor.seal_with(kind, to, now, body, &extra).unwrap()
    }

    fn attach(&mut self, house: Index, name: &'static str) -> Result<(), Broken> {
        let Some(core) = self.houses[house].core() else {
            return Ok(());
        };
        let standing = &self.oracle.agents[&(house, name)];
        let agent = &self.houses[house].agents[name];
        if !standing.is_registered || agent.line.is_some() {
            return Ok(());
        }
        let actor = same(&agent.actor);
        let challenge = Digest(self.dice.seed());
        let channel = core.certificates.current().channel;
        let body = Attach { challenge, channel };
        let to = actor.broker();
        let sealed = self.seal(house, &actor, Kind::Attach, &to, &body, None, None);
        let (outbox, queue) = mpsc::channel(core.config.limits.outbox_max);
        let attached =
            self.houses[house].finish(core.attach(sealed.bytes, challenge, channel, outbox));
        let Ok((session, _)) = attached else {
            panic!("{name}@org{house} cannot attach");
        };
        let line = Line::new(session, queue);
        self.houses[house].agents.get_mut(name).unwrap().line = Some(line);
        if name == "fs" {
            let body = json!({"tools": [{"name": "fs.read"}, {"name": "fs.write"}]});
            let offer = self.seal(house, &actor, Kind::OfferTools, &to, &body, None, None);
            self.speak(house, name, offer.bytes).unwrap();
        }
        self.settle(house)
    }

    /// An agent says something on its session.
    ///
    /// # Errors
    ///
    /// The code with which it is refused.
    pub(crate) fn speak(
        &mut self,
        house: Index,
        name: &'static str,
        bytes: Bytes,
    ) -> Result<(), String> {
        let line = self.houses[house].agents[name].line.as_ref();
        let Some(line) = line else {
            return Err("NO_SESSION".into());
        };
        let door = Door::Session(Arc::clone(&line.session));
        let core = self.houses[house].core().unwrap();
        let done = self.houses[house].finish(core.handle(bytes, &door));
        match done {
            Ok(_) => Ok(()),
            Err(answer) => Err(code_of(answer)),
        }
    }

    /// An envelope comes by POST.
    ///
    /// # Errors
    ///
    /// The code with which it is refused.
    pub(crate) fn post(&mut self, house: Index, sealed: &Sealed) -> Result<Option<Ack>, String> {
        let door = Door::Post {
            network: 1,
            address: "simulated".into(),
        };
        let core = self.houses[house].core().unwrap();
        let done = self.houses[house].finish(core.handle(sealed.bytes.clone(), &door));
        match done {
            Ok(Step::Say(bytes)) => Ok(ack(bytes)),
            Ok(Step::Order(order, agent, id)) => {
                let answer = self.houses[house].finish(core.settle(order, agent, id));
                match answer.status {
                    200 => Ok(ack(answer.envelope)),
                    _ => Err(code_of(answer)),
                }
            }
            Ok(Step::Wait(call, waiting)) => {
                let run = self.houses[house].run;
                self.posted.push((house, run, call, waiting));
                Ok(None)
            }
            Ok(Step::Nothing) => Ok(None),
            Err(answer) => Err(code_of(answer)),
        }
    }

    /// An agent asks its broker for something, by POST.
    ///
    /// # Errors
    ///
    /// The code with which it is refused.
    pub(crate) fn ask(
        &mut self,
        house: Index,
        actor: &Actor,
        kind: Kind,
        body: &Value,
    ) -> Result<Ack, String> {
        let sealed = self.seal(house, actor, kind, &actor.broker(), body, None, None);
        let ack = self.post(house, &sealed)?;
        Ok(ack.unwrap())
    }

    fn answer(&mut self, house: Index, name: &'static str, call: &Envelope) -> Result<(), Broken> {
        if self.houses[house].agents[name].line.is_none() {
            return Ok(());
        }
        let actor = same(&self.houses[house].agents[name].actor);
        let caller = Audience::from(call.speaker().clone());
        let re = Some(id_of(call));
        let body = json!({"result": {"said": self.said}});
        let result = self.seal(house, &actor, Kind::ToolResult, &caller, &body, re, None);
        self.oracle.results.insert(result.id);
        let _ = self.speak(house, name, result.bytes);
        self.settle(house)
    }

    /// Puts bytes on a connection between these two, if there is one.
    pub(crate) fn inject(&mut self, from: Index, to: Index, bytes: Bytes) {
        let found = self.conns.iter().find_map(|(id, conn)| {
            let end = (0..2).find(|end| conn.ends[*end].house == from)?;
            let is_way = conn.ends[1 - end].house == to;
            let is_up = matches!(conn.ends[end].phase, Phase::Up(_));
            (is_way && is_up).then_some((*id, end))
        });
        if let Some((id, end)) = found {
            self.oracle.seen.count("frames by an adversary");
            self.put(id, end, Parcel::Message(bytes, Source::Adversary));
        }
    }

    /// A new agent, or an old one under another key.
    pub(crate) fn agent(&mut self, house: Index, name: &'static str, actor: Actor) {
        let agents = &mut self.houses[house].agents;
        agents.insert(name, Agent { actor, line: None });
    }
}

/// Where a message arrives.
enum At {
    Greeting,
    Up,
    Nowhere,
}

fn conn_phase(conns: &BTreeMap<u64, Conn>, id: u64, end: usize) -> At {
    match conns.get(&id).map(|conn| &conn.ends[end].phase) {
        Some(Phase::Greeting) => At::Greeting,
        Some(Phase::Up(_)) => At::Up,
        Some(Phase::Closed) | None => At::Nowhere,
    }
}

pub(crate) fn id_of(envelope: &Envelope) -> Digest {
    Digest::of(&envelope.signed_bytes())
}

pub(crate) fn short(id: &Digest) -> String {
    id.to_string().chars().take(8).collect()
}

pub(crate) fn same(actor: &Actor) -> Actor {
    Actor {
        id: actor.id.clone(),
        key: proto_spec::SigningKey::from_seed(actor.key.seed()),
    }
}

fn ack(bytes: Bytes) -> Option<Ack> {
    let envelope = Envelope::parse(bytes, ENVELOPE_BYTES).ok()?;
    envelope.read_body().ok()
}

fn code_of(answer: Answer) -> String {
    let envelope = Envelope::parse(answer.envelope, ENVELOPE_BYTES).unwrap();
    let body: ErrorBody = envelope.read_body().unwrap();
    body.code.to_string()
}
