//! Links: what brokers say over them, and what comes of what arrives.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use broker::conversation::Hears as _;
use broker::federation::dial::LASTING;
use broker::federation::hearing::Attached;
use broker::federation::link::{Greeting, Silence, gone};
use broker::federation::telling::{Heads, PAUSE, REFRESH, TICK, Terms};
use bytes::Bytes;
use futures_util::FutureExt as _;
use proto_spec::frame::{RELAY, Relay};
use proto_spec::message::{LinkRole, RevocationHead};
use proto_spec::{Digest, Envelope, Kind};

use crate::agents::{id_of, short};
use crate::house::{Heard, said};
use crate::network::{Conn, Index, Linked, Parcel, Phase, Source};
use crate::oracle::{Broken, Way};
use crate::world::{ENVELOPE_BYTES, Event, World};

/// Frames that an adversary remembers.
const RECORDED_MAX: usize = 256;

impl World {
    pub(crate) fn linked(&mut self, conn: u64, end: usize) -> Option<&mut Linked> {
        self.conns.get_mut(&conn)?.ends[end].up()
    }

    pub(crate) fn settle_links(&mut self, house: Index) -> Result<bool, Broken> {
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
    pub(crate) fn send_queued(&mut self, id: u64, end: usize) -> bool {
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
            let Ok(turn) = linked.queue.try_recv() else {
                return is_any;
            };
            let messages: Vec<Bytes> = linked.link.taken(turn).collect();
            is_any = true;
            for bytes in messages {
                self.send_one(id, end, bytes);
            }
        }
    }

    fn send_one(&mut self, id: u64, end: usize, bytes: Bytes) {
        let ends = &self.conns[&id].ends;
        let (from, to) = (ends[end].house, ends[1 - end].house);
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
                return;
            }
        }
        self.put(id, end, Parcel::Message(bytes, Source::Broker));
    }

    /// The identity and the home of the call in a frame.
    pub(crate) fn call_in(&self, frame: &Bytes) -> Option<(Digest, Index)> {
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
    pub(crate) fn flow(&mut self) {
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

    pub(crate) fn arrive(&mut self, id: u64, from: usize) -> Result<(), Broken> {
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
        // What waited for room has some.
        self.send_queued(id, from);
        match (parcel, &conn_phase(&self.conns, id, to)) {
            (_, At::Nowhere) => Ok(()),
            (Parcel::End, _) => self.close(id, to, "the other end closed"),
            (Parcel::Message(bytes, _), At::Greeting) => self.greet(id, to, bytes),
            (Parcel::Message(bytes, source), At::Up) => self.hear(id, to, bytes, source),
        }
    }

    pub(crate) fn hear(
        &mut self,
        id: u64,
        end: usize,
        bytes: Bytes,
        source: Source,
    ) -> Result<(), Broken> {
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
        let attached = Attached {
            core: &core,
            link,
            heard: AtomicBool::new(true),
        };
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

    pub(crate) fn note_refusal(&mut self, house: Index, answer: &Bytes) {
        if let Heard::Refused(call, code) = said(answer.clone()) {
            self.note(format_args!("org{house} refuses {}: {code}", short(&call)));
            self.oracle.seen.count(format!("at a peer: {code}"));
        }
    }

    /// Keeps book of what a head says.
    pub(crate) fn note_word(&mut self, id: u64, end: usize, bytes: &Bytes) {
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

    pub(crate) fn say_head(&mut self, id: u64, end: usize) {
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
        let is_sent = linked.link.say_first(head).is_ok();
        if !is_sent {
            linked.link.close();
        }
        let conn = self.conns.get_mut(&id).unwrap();
        conn.heads_said[end].push_back(now);
        self.plan(TICK, Event::Head(id, end, plan));
    }

    pub(crate) fn say_terms(&mut self, id: u64, end: usize) {
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
            words.is_some_and(|words| words.into_iter().all(|word| linked.link.say(word).is_ok()));
        if !is_said {
            linked.link.close();
        }
        self.plan(PAUSE + REFRESH, Event::Terms(id, end, plan));
    }

    pub(crate) fn greet(&mut self, id: u64, end: usize, theirs: Bytes) -> Result<(), Broken> {
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
        let greeted = match greeting.believe(theirs) {
            Ok(greeted) => greeted,
            Err(why) => return self.close(id, end, &format!("{why:#}")),
        };
        if binding.role == LinkRole::Dials {
            let ours = greeting.ours();
            self.put(id, end, Parcel::Message(ours, Source::Broker));
        }
        let attached = self.houses[house].finish(greeting.attach(&greeted));
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
            silence: Silence::default(),
            known_up_to: self.now,
            told: Vec::new(),
        };
        self.conns.get_mut(&id).unwrap().ends[end].phase = Phase::Up(Box::new(linked));
        self.say_head(id, end);
        self.say_terms(id, end);
        self.plan(TICK, Event::Listen(id, end));
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

    pub(crate) fn forget_if_closed(&mut self, id: u64) {
        let is_closed = |conn: &Conn| {
            conn.ends
                .iter()
                .all(|end| matches!(end.phase, Phase::Closed))
        };
        if self.conns.get(&id).is_some_and(is_closed) {
            self.conns.remove(&id);
        }
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
}

/// Where a message arrives.
pub(crate) enum At {
    Greeting,
    Up,
    Nowhere,
}

pub(crate) fn conn_phase(conns: &BTreeMap<u64, Conn>, id: u64, end: usize) -> At {
    match conns.get(&id).map(|conn| &conn.ends[end].phase) {
        Some(Phase::Greeting) => At::Greeting,
        Some(Phase::Up(_)) => At::Up,
        Some(Phase::Closed) | None => At::Nowhere,
    }
}
