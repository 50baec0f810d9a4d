//! Connections between brokers: what is said arrives in order, late, or, where nothing gets through, not
//! before something does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use broker::federation::link::{Binding, Queue, Silence};
use broker::federation::telling::{Heads, Terms};
use broker::state::links::Link;
use bytes::Bytes;
use proto_spec::PublicKey;
use tokio::sync::watch;

use crate::dice::Dice;

/// What a connection holds of one direction while nothing gets through: what else is said waits in the
/// broker.
const HELD_BYTES: usize = 64 << 10;

/// Which broker.
pub(crate) type Index = usize;
/// Virtual time since the beginning.
pub(crate) type Moment = Duration;

/// What is on its way.
#[derive(Debug)]
pub(crate) enum Parcel {
    /// A message, and whether an adversary put it there.
    Message(Bytes, Source),
    /// The other end has closed.
    End,
}

/// Whose word a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The broker at the other end.
    Broker,
    /// Somebody who got hold of its end of the connection.
    Adversary,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    on_its_way: VecDeque<(Moment, Parcel)>,
    bytes: usize,
    newest: Moment,
}

impl Pipe {
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < HELD_BYTES
    }

    /// Puts something in that would arrive at `arrives`; says when it does.
    pub(crate) fn put(&mut self, parcel: Parcel, arrives: Moment) -> Moment {
        if let Parcel::Message(bytes, _) = &parcel {
            self.bytes += bytes.len();
        }
        self.newest = self.newest.max(arrives);
        self.on_its_way.push_back((self.newest, parcel));
        self.newest
    }

    /// What has arrived by `now`.
    pub(crate) fn take(&mut self, now: Moment) -> Option<Parcel> {
        let is_here = self.on_its_way.front().is_some_and(|(at, _)| *at <= now);
        let (_, parcel) = is_here.then(|| self.on_its_way.pop_front()).flatten()?;
        if let Parcel::Message(bytes, _) = &parcel {
            self.bytes -= bytes.len();
        }
        Some(parcel)
    }

    pub(crate) fn len(&self) -> usize {
        self.on_its_way.len()
    }
}

/// How far one end of a connection is.
#[derive(Debug)]
pub(crate) enum Phase {
    /// It waits for the other end to say who it is.
    Greeting,
    /// It is a link.
    Up(Box<Linked>),
    /// It is gone.
    Closed,
}

/// An attached end, with what its broker has told the other.
#[derive(Debug)]
pub(crate) struct Linked {
    pub(crate) link: Arc<Link>,
    pub(crate) queue: Queue,
    pub(crate) heads: Heads,
    /// Which of the planned heads is to be said: earlier plans are void.
    pub(crate) head_plan: u64,
    pub(crate) terms: Terms,
    pub(crate) terms_plan: u64,
    pub(crate) terms_at: Moment,
    pub(crate) died: watch::Receiver<()>,
    pub(crate) peers: watch::Receiver<()>,
    pub(crate) offers: watch::Receiver<()>,
    pub(crate) heard: bool,
    pub(crate) silence: Silence,
    /// Up to when we know what died at the other end.
    pub(crate) known_up_to: Moment,
    /// Which keys we were told are dead.
    pub(crate) told: Vec<PublicKey>,
}

/// One end.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) house: Index,
    pub(crate) binding: Binding,
    pub(crate) phase: Phase,
}

impl End {
    pub(crate) fn up(&mut self) -> Option<&mut Linked> {
        match &mut self.phase {
            Phase::Up(linked) => Some(linked),
            _ => None,
        }
    }
}

/// A connection; end 0 dialled.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) ends: [End; 2],
    /// By which end speaks.
    pub(crate) pipes: [Pipe; 2],
    /// When the heads were said that have not arrived, by which end said them.
    pub(crate) heads_said: [VecDeque<Moment>; 2],
    pub(crate) begun: Moment,
}

/// How late things arrive, and where nothing gets through.
#[derive(Debug)]
pub(crate) struct Weather {
    latency_ms: u64,
    cut: BTreeMap<(Index, Index), u32>,
}

impl Weather {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        Self {
            latency_ms: [2, 20, 80, 200][dice.below(4)],
            cut: BTreeMap::new(),
        }
    }

    pub(crate) fn is_always_late(&mut self, by: Duration) {
        self.latency_ms = by.as_millis() as u64;
    }

    pub(crate) fn latency(&self, dice: &mut Dice) -> Duration {
        dice.ms(
            self.latency_ms / 2,
            self.latency_ms + self.latency_ms / 4 + 2,
        )
    }

    pub(crate) fn passes(&self, from: Index, to: Index) -> bool {
        !self.cut.contains_key(&(from, to))
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.cut.is_empty()
    }

    /// Where nothing gets through, and for how many reasons.
    pub(crate) fn all_cut(&self) -> Vec<((Index, Index), usize)> {
        let all = self.cut.iter();
        all.map(|(way, times)| (*way, *times as usize)).collect()
    }

    pub(crate) fn cut(&mut self, ways: &[(Index, Index)]) {
        for way in ways {
            *self.cut.entry(*way).or_default() += 1;
        }
    }

    pub(crate) fn heal(&mut self, ways: &[(Index, Index)]) {
        for way in ways {
            if let Some(cuts) = self.cut.get_mut(way) {
                *cuts -= 1;
                if *cuts == 0 {
                    self.cut.remove(way);
                }
            }
        }
    }
}
