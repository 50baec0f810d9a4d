//! Room that many share. One law for all of it: nobody takes more than is left free for the others. Whoever
//! is alone has half; of any number of greedy ones each has the same part, and as much stays free.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use proto_spec::{AgentId, Org};

use crate::locks::lock;

/// Who takes room.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Guest {
    /// One agent: our own, or one of the peer whose link it is.
    Agent(AgentId),
    /// All agents of another organisation together, which come through: their names are its to invent.
    Through(Org),
}

/// Whether one that has `own` may take so much more of a room of `max`, of which `used` is taken. An empty
/// room has a seat for anything.
#[must_use]
pub fn leaves_enough(own: usize, more: usize, used: usize, max: usize) -> bool {
    used == 0 || own + more <= max.saturating_sub(used)
}

/// A room of so much.
#[derive(Debug)]
pub struct Room {
    max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by: HashMap<Guest, usize>,
}

impl Room {
    /// An empty room of `max`.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            taken: Mutex::default(),
        })
    }

    /// A seat of this size for a guest, until it is dropped; none where that would leave less for the others
    /// than the guest has.
    #[must_use]
    pub fn take(self: &Arc<Self>, guest: &Guest, size: usize) -> Option<Seat> {
        let mut taken = lock(&self.taken);
        let own = taken.by.get(guest).copied().unwrap_or_default();
        if !leaves_enough(own, size, taken.all, self.max) {
            return None;
        }
        taken.all += size;
        taken.by.insert(guest.clone(), own + size);
        drop(taken);
        Some(Seat {
            room: Arc::clone(self),
            guest: guest.clone(),
            size,
        })
    }

    /// Whether a guest has less than half of what it could: room for what may be lost.
    #[must_use]
    pub fn has_to_spare(&self, guest: &Guest) -> bool {
        let taken = lock(&self.taken);
        let own = taken.by.get(guest).copied().unwrap_or_default();
        2 * own < self.max.saturating_sub(taken.all)
    }
}

/// A seat in a room, given back when it is dropped.
#[derive(Debug)]
pub struct Seat {
    room: Arc<Room>,
    guest: Guest,
    size: usize,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = lock(&self.room.taken);
        taken.all -= self.size;
        if let Some(own) = taken.by.get_mut(&self.guest) {
            *own -= self.size;
            if *own == 0 {
                taken.by.remove(&self.guest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(name: &str) -> Guest {
        Guest::Agent(format!("{name}@acme").parse().unwrap())
    }

    fn fill(room: &Arc<Room>, name: &str) -> Vec<Seat> {
        std::iter::from_fn(|| room.take(&guest(name), 1)).collect()
    }

    #[test]
    fn nobody_takes_more_than_is_left_for_others_however_many_are_greedy() {
        let room = Room::new(100);
        let first = fill(&room, "a");
        assert_eq!(first.len(), 50);
        let second = fill(&room, "b");
        assert_eq!(second.len(), 25, "it came late");
        let mut seats = vec![first, second];
        for n in 0..4 {
            seats.push(fill(&room, &format!("late-{n}")));
            assert!(!seats.last().unwrap().is_empty(), "{n}");
        }
        drop(seats);
        assert!(lock(&room.taken).by.is_empty());
        assert_eq!(lock(&room.taken).all, 0);
    }

    #[test]
    fn an_empty_room_has_a_seat_for_anything() {
        let room = Room::new(100);
        let seat = room.take(&guest("a"), 1_000).unwrap();
        assert!(room.take(&guest("b"), 1).is_none());
        drop(seat);
        assert!(room.take(&guest("b"), 1).is_some());
    }
}
