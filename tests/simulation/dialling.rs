//! How links come up: one side dials, tries again, and both say who they are.

use std::time::Duration;

use broker::federation::dial::{ANSWER_MAX, PAUSE_MAX, is_dialled};
use broker::federation::link::{Binding, Greeting};
use proto_spec::Digest;
use proto_spec::limits::CHALLENGE_VALIDITY;
use proto_spec::message::LinkRole;

use crate::network::{Conn, End, Index, Parcel, Phase, Source};
use crate::oracle::Broken;
use crate::world::{Event, World};

impl World {
    /// Begins to dial what has to be dialled.
    pub(crate) fn look_at_peers(&mut self, house: Index) {
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

    pub(crate) fn dial(&mut self, house: Index, other: Index, run: u64) -> Result<(), Broken> {
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
            false => self.plan(ANSWER_MAX, Event::NotConnected(house, other, run)),
        }
        Ok(())
    }

    pub(crate) fn connect(&mut self, house: Index, other: Index, run: u64) -> Result<(), Broken> {
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

    pub(crate) fn dial_again(&mut self, house: Index, other: Index) {
        let random = self.dice.next();
        let run = self.houses[house].run;
        let dialer = self.houses[house].dialers.entry(other).or_default();
        let pause = dialer.backoff.failed(random).min(PAUSE_MAX);
        dialer.is_busy = true;
        self.plan(pause, Event::Dial(house, other, run));
    }

    /// Somebody who dials, or is going to, and is not linked by it.
    pub(crate) fn who_dials(&self) -> Option<(Index, Index)> {
        let is_linked = |house: Index, peer: Index| {
            self.conns.values().any(|conn| {
                let is_theirs = conn.ends[0].house == house && conn.ends[1].house == peer;
                let is_up = |end: &End| matches!(end.phase, Phase::Up(_));
                is_theirs && conn.ends.iter().all(is_up)
            })
        };
        let busy = self.houses.iter().enumerate().flat_map(|(house, it)| {
            let busy = it.dialers.iter().filter(|(_, dialer)| dialer.is_busy);
            busy.map(move |(peer, _)| (house, *peer))
        });
        busy.into_iter()
            .filter(|(house, peer)| self.is_peering(*house, *peer))
            .find(|(house, peer)| !is_linked(*house, *peer))
    }
}
