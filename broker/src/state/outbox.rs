//! What waits to be written to a connection, and how many calls hang on it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proto_spec::Refusal;
use tokio::sync::{Notify, mpsc};

use super::room::{Guest, Room, Seat};
use crate::locks::lock;

/// Tells every outbox of this run from every other.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Bytes of our own words that wait on one link, beside what agents say: more than the largest of each kind.
const WORDS_BYTES_MAX: usize = 8 << 20;
/// And how many of them.
const WORDS_MAX: usize = 16_384;

/// A bounded queue towards one connection.
#[derive(Debug)]
pub struct Outbox {
    id: u64,
    queue: mpsc::Sender<Queued>,
    queued_bytes: AtomicUsize,
    queued_bytes_max: usize,
    /// Of a link: the room of the agents that speak over it, and what a message takes beside its bytes.
    shared: Option<(Arc<Room>, usize)>,
    words: Mutex<Words>,
    said: Notify,
    outstanding: AtomicUsize,
    made: AtomicUsize,
    closed: Notify,
    is_closed: AtomicBool,
}

/// Our own words that wait on a link.
#[derive(Debug, Default)]
struct Words {
    bytes: usize,
    count: usize,
    /// Those that go before all else.
    urgent: VecDeque<Bytes>,
}

/// One turn of an outbox's queue: see [`Outbox::taken`].
#[derive(Debug)]
pub struct Queued {
    /// Nothing where the turn is an urgent word's, which may have gone out before.
    message: Option<Bytes>,
    takes: Takes,
}

/// Whose room a message takes.
#[derive(Debug)]
enum Takes {
    /// So many bytes of the one reader's.
    Whole(usize),
    /// A share of a link.
    Share(Seat),
    /// Our own words'.
    Words,
}

impl Outbox {
    /// The outbox in front of `queue`, for so many bytes: all of it for whoever is at the other end.
    #[must_use]
    pub fn new(queue: mpsc::Sender<Queued>, queued_bytes_max: usize) -> Self {
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            queue,
            queued_bytes: AtomicUsize::new(0),
            queued_bytes_max,
            shared: None,
            words: Mutex::default(),
            said: Notify::new(),
            outstanding: AtomicUsize::new(0),
            made: AtomicUsize::new(0),
            closed: Notify::new(),
            is_closed: AtomicBool::new(false),
        }
    }

    /// The outbox of a link, which agents share, for so many of their messages and bytes; with room of its own
    /// for our words.
    #[must_use]
    pub fn of_link(messages_max: usize, queued_bytes_max: usize) -> (Self, mpsc::Receiver<Queued>) {
        // One message may find its room empty whatever it takes.
        let (queue, waiting) = mpsc::channel(messages_max + 1 + WORDS_MAX);
        let around = queued_bytes_max.div_ceil(messages_max);
        let shared = Some((Room::new(queued_bytes_max), around));
        let outbox = Self {
            shared,
            ..Self::new(queue, queued_bytes_max)
        };
        (outbox, waiting)
    }

    /// Told apart from every other of this broker's run.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Calls delivered to its connection and not answered.
    #[must_use]
    pub fn outstanding(&self) -> &AtomicUsize {
        &self.outstanding
    }

    /// Calls made by its connection and not answered.
    #[must_use]
    pub fn made(&self) -> &AtomicUsize {
        &self.made
    }

    /// Queues a message for the one at the other end.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] when the queue is full, by messages or by bytes, or the connection is closing.
    pub fn send(&self, message: Bytes) -> Result<(), Refusal> {
        let bytes = message.len();
        let before = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        // One message always fits, whatever its size: an empty queue is never full.
        let fits = before == 0 || before + bytes <= self.queued_bytes_max;
        if !fits || self.push(Some(message), Takes::Whole(bytes)).is_err() {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Refusal::Busy("the recipient's queue"));
        }
        Ok(())
    }

    /// Queues what an agent signed, or what is about it, in the agent's share of a link.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] when that is used up, or the connection is closing.
    pub fn send_for(&self, guest: &Guest, message: Bytes) -> Result<(), Refusal> {
        let Some((room, around)) = &self.shared else {
            return self.send(message);
        };
        let seat = room
            .take(guest, message.len() + around)
            .ok_or(Refusal::Busy("the agent's share of the link"))?;
        self.push(Some(message), Takes::Share(seat))
    }

    /// Whether there is room for what may be lost: it never takes the last of what an answer needs.
    #[must_use]
    pub fn has_to_spare(&self, guest: &Guest) -> bool {
        match &self.shared {
            Some((room, _)) => room.has_to_spare(guest),
            None => {
                2 * self.queued_bytes.load(Ordering::Relaxed) < self.queued_bytes_max
                    && 2 * self.queue.capacity() > self.queue.max_capacity()
            }
        }
    }

    /// Queues a word of ours, behind what agents said before it; on a link in room of its own.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] when so much waits that the other end cannot be reading, or the connection is closing.
    pub fn say(&self, word: Bytes) -> Result<(), Refusal> {
        if self.shared.is_none() {
            return self.send(word);
        }
        let mut words = lock(&self.words);
        words.admit(&word)?;
        let pushed = self.push(Some(word.clone()), Takes::Words);
        if pushed.is_err() {
            words.leave(&word);
        }
        pushed
    }

    /// As [`Outbox::say`] on a link, before all that waits: what the other end waits for by the second.
    ///
    /// # Errors
    ///
    /// As [`Outbox::say`].
    pub fn say_first(&self, word: Bytes) -> Result<(), Refusal> {
        let mut words = lock(&self.words);
        words.admit(&word)?;
        let pushed = self.push(None, Takes::Words);
        match &pushed {
            Ok(()) => words.urgent.push_back(word),
            Err(_) => words.leave(&word),
        }
        pushed
    }

    fn push(&self, message: Option<Bytes>, takes: Takes) -> Result<(), Refusal> {
        let queued = Queued { message, takes };
        let pushed = self.queue.try_send(queued);
        pushed.map_err(|_| Refusal::Busy("the recipient's queue"))
    }

    /// What goes out at a turn of the queue, in this order. Its room is free again.
    pub fn taken(&self, turn: Queued) -> impl Iterator<Item = Bytes> + use<> {
        let Queued { message, takes } = turn;
        let is_word = match takes {
            Takes::Whole(bytes) => {
                self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                false
            }
            Takes::Share(seat) => {
                drop(seat);
                false
            }
            Takes::Words => true,
        };
        let mut words = lock(&self.words);
        let urgent = std::mem::take(&mut words.urgent);
        let own = message.iter().filter(|_| is_word);
        urgent.iter().chain(own).for_each(|word| words.leave(word));
        if words.count == 0 {
            self.said.notify_waiters();
        }
        drop(words);
        urgent.into_iter().chain(message)
    }

    /// Returns when no word of ours waits: what can wait is said one word at a time.
    pub async fn settled(&self) {
        loop {
            let said = self.said.notified();
            if lock(&self.words).count == 0 {
                return;
            }
            said.await;
        }
    }

    /// Ends it: its connection closes.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.closed.notify_one();
    }

    /// Whether [`Outbox::close`] was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Returns when [`Outbox::close`] was called.
    pub async fn closed(&self) {
        self.closed.notified().await;
    }
}

impl Words {
    fn admit(&mut self, word: &Bytes) -> Result<(), Refusal> {
        // One always fits.
        let fits = self.count == 0
            || (self.count < WORDS_MAX && self.bytes + word.len() <= WORDS_BYTES_MAX);
        if !fits {
            return Err(Refusal::Busy("the room for our own words"));
        }
        self.count += 1;
        self.bytes += word.len();
        Ok(())
    }

    fn leave(&mut self, word: &Bytes) {
        self.count -= 1;
        self.bytes -= word.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(name: &str) -> Guest {
        Guest::Agent(format!("{name}@acme").parse().unwrap())
    }

    fn bytes(of: u8, count: usize) -> Bytes {
        vec![of; count].into()
    }

    fn fill(outbox: &Outbox, name: &str, each: usize) -> usize {
        let is_queued = || outbox.send_for(&guest(name), bytes(b'a', each)).is_ok();
        std::iter::from_fn(|| is_queued().then_some(())).count()
    }

    #[test]
    fn agents_take_no_room_of_one_another_and_none_of_our_words() {
        for each in [1, 1_000, 100_000] {
            let (outbox, mut queue) = Outbox::of_link(64, 1 << 20);
            assert!(fill(&outbox, "greedy", each) > 0);
            for name in ["late", "later"] {
                assert!(fill(&outbox, name, each) > 0, "{name}");
            }
            for _ in 0..WORDS_MAX {
                outbox.say(bytes(b'w', 100)).unwrap();
            }
            assert!(outbox.say(bytes(b'w', 1)).is_err(), "its room has a bound");
            while let Ok(turn) = queue.try_recv() {
                assert_eq!(outbox.taken(turn).count(), 1);
            }
            assert!(fill(&outbox, "greedy", each) > 0, "all room is free again");
            outbox.say(bytes(b'w', 1)).unwrap();
        }
    }

    #[test]
    fn what_is_urgent_goes_before_all_that_waits_and_our_other_words_keep_their_place() {
        let (outbox, mut queue) = Outbox::of_link(64, 1 << 20);
        outbox.send_for(&guest("x"), bytes(b'1', 1)).unwrap();
        outbox.say(bytes(b'2', 1)).unwrap();
        outbox.say_first(bytes(b'0', 1)).unwrap();
        outbox.send_for(&guest("x"), bytes(b'3', 1)).unwrap();
        let mut out = Vec::new();
        while let Ok(turn) = queue.try_recv() {
            out.extend(outbox.taken(turn).flatten());
        }
        assert_eq!(out, b"0123");
        // Where nothing waits it is a turn of its own.
        outbox.say_first(bytes(b'0', 1)).unwrap();
        let out = outbox.taken(queue.try_recv().unwrap());
        assert_eq!(out.flatten().collect::<Vec<u8>>(), b"0");
    }

    #[test]
    fn progress_leaves_room_for_the_answer() {
        let (outbox, _queue) = Outbox::of_link(1_000, 1 << 20);
        let progress = || {
            let fits = outbox.has_to_spare(&guest("x"));
            fits.then(|| outbox.send_for(&guest("x"), bytes(b'p', 1_000)).unwrap())
        };
        let sent = std::iter::from_fn(progress).count();
        assert!(sent > 100);
        outbox.send_for(&guest("x"), bytes(b'r', 100_000)).unwrap();
    }

    #[tokio::test]
    async fn what_can_wait_is_told_when_the_word_before_it_is_written() {
        let (outbox, mut queue) = Outbox::of_link(64, 1 << 20);
        outbox.settled().await;
        outbox.say(bytes(b'w', 1)).unwrap();
        let written = AtomicUsize::new(0);
        let told = async {
            outbox.settled().await;
            assert_eq!(written.load(Ordering::Relaxed), 1);
        };
        let writes = async {
            tokio::task::yield_now().await;
            written.store(1, Ordering::Relaxed);
            drop(outbox.taken(queue.try_recv().unwrap()));
        };
        tokio::join!(told, writes);
    }
}
