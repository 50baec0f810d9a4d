//! Connections to one server, each of one owner: a legacy server keeps state between requests, and no
//! caller is to see another's.
//!
//! Bounded in number. Nobody uses more than is left for others. Where there is no room for one more, the one that was idle for longest ends; where none
//! is idle, there is none. A server that keeps dying is started again with growing waits, which are its owner's own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::value::RawValue;
use tokio::sync::{OnceCell, broadcast};
use tokio::time::Instant;

use super::connection::Unanswered;
use super::desk::{House, NEWS_MAX, News};
use super::server::{Era, Server, Source};
use super::tasks::{AtHome, Home, Tasks};
use crate::link::backoff::{Backoff, LONGEST};
use crate::mcp::rpc::Object;

/// Owners whose servers died, each of whom waits alone. Whose die beyond that wait together.
const PACES_MAX: usize = 1_024;

/// A server, once it was greeted; whoever needs it waits for that.
type Starting = Arc<OnceCell<Arc<Server>>>;

/// Whose a connection is, and what the client on it can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// Empty: nobody's in particular.
    pub(super) owner: String,
    /// The client's capabilities: an object.
    pub(super) capabilities: Box<str>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum NoServer {
    /// All are in use.
    #[error("all {0} connections to the server are in use, one of them to hear what it offers")]
    Busy(usize),
    /// The others are left for other callers.
    #[error(
        "your calls use {0} connections to the server already, and the rest is left for others"
    )]
    Share(usize),
    /// It does not start, or does not speak.
    #[error("the server cannot be spoken to: {0}")]
    Silent(String),
    /// Somebody has to log in first: what to do.
    #[error("{0}")]
    LoginNeeded(String),
}

impl From<String> for NoServer {
    fn from(why: String) -> Self {
        Self::Silent(why)
    }
}

impl From<&str> for NoServer {
    fn from(why: &str) -> Self {
        Self::Silent(why.into())
    }
}

impl From<Unanswered> for NoServer {
    fn from(why: Unanswered) -> Self {
        match why {
            Unanswered::Barred(why) => Self::LoginNeeded(why),
            other => Self::Silent(other.to_string()),
        }
    }
}

/// Connections to one server.
pub(super) struct Pool {
    source: Source,
    era: Era,
    most: usize,
    slots: Mutex<Slots>,
    paces: Mutex<Paces>,
    news: Mutex<HashMap<String, broadcast::WeakSender<News>>>,
    #[expect(dead_code, reason = "held so that what is nobody's has one sender")]
    common: broadcast::Sender<News>,
    tasks: Arc<Tasks>,
}

#[derive(Default)]
struct Slots {
    last: u64,
    all: Vec<Slot>,
}

struct Slot {
    id: u64,
    key: Key,
    /// Empty while it starts.
    server: Starting,
    uses: usize,
    exclusive: bool,
    /// Counts up: the smallest was idle for longest.
    used: u64,
}

/// When each owner's next connection may be started: whose servers die delays nobody else. Pure.
#[derive(Default)]
struct Paces {
    of: HashMap<String, Pace>,
}

struct Pace {
    backoff: Backoff,
    not_before: Instant,
}

impl Paces {
    /// A connection of this owner's did not start, or died.
    fn failed(&mut self, owner: &str, now: Instant, random: u64) {
        if self.of.len() >= PACES_MAX {
            // Who has not come back for so long begins anew.
            self.of.retain(|_, pace| now < pace.not_before + LONGEST);
        }
        let owner = self.whose(owner).to_owned();
        let pace = self.of.entry(owner).or_insert(Pace {
            backoff: Backoff::default(),
            not_before: now,
        });
        pace.not_before = now + pace.backoff.failed(random);
    }

    /// A connection of this owner's works.
    fn works(&mut self, owner: &str) {
        self.of.remove(owner);
    }

    fn not_before(&self, owner: &str) -> Option<Instant> {
        let pace = self.of.get(self.whose(owner))?;
        Some(pace.not_before)
    }

    /// Whose pace an owner has: where there is no place for one of their own, nobody's.
    fn whose<'a>(&self, owner: &'a str) -> &'a str {
        match self.of.contains_key(owner) || self.of.len() < PACES_MAX {
            true => owner,
            false => "",
        }
    }
}

impl Pool {
    /// At most `most` connections to a server of this era; none yet. `first` is the house of those that are
    /// nobody's.
    pub(super) fn new(source: Source, era: Era, most: usize, first: House) -> Self {
        let common = (String::new(), first.news.downgrade());
        Self {
            common: first.news,
            tasks: first.tasks.all,
            source,
            era,
            most,
            slots: Mutex::default(),
            paces: Mutex::default(),
            news: Mutex::new(HashMap::from([common])),
        }
    }

    pub(super) fn era(&self) -> Era {
        self.era
    }

    /// Which server knows the tasks that are begun over an owner's connections: each leads to a process of its own, or
    /// all to one server elsewhere.
    pub(super) fn home<'a>(&self, owner: &'a str) -> &'a Home {
        match self.source {
            Source::Program(_) => owner,
            Source::Site(_) => "",
        }
    }

    /// Puts in a connection that exists.
    pub(super) fn adopt(self: &Arc<Self>, key: Key, server: Server) -> Lease {
        let server = Arc::new(server);
        let cell = Arc::new(OnceCell::new_with(Some(Arc::clone(&server))));
        let owner = key.owner.clone();
        let id = self.slots().push(key, cell, false);
        Lease {
            place: Place {
                pool: Arc::clone(self),
                id,
                owner,
            },
            server,
        }
    }

    /// A connection of this key, for one call alone or for several at once. Starts one where there is none, and
    /// where the one that is there does not hear any more.
    ///
    /// # Errors
    ///
    /// [`NoServer`].
    pub(super) async fn take(
        self: &Arc<Self>,
        key: &Key,
        exclusive: bool,
    ) -> Result<Lease, NoServer> {
        let lease = self.seat(key, exclusive).await?;
        if lease.server.connection.hears().await {
            return Ok(lease);
        }
        drop(lease);
        self.seat(key, exclusive).await
    }

    async fn seat(self: &Arc<Self>, key: &Key, exclusive: bool) -> Result<Lease, NoServer> {
        let (id, cell) = self.place(key, exclusive)?;
        // From here on whoever drops it frees it.
        let place = Place {
            pool: Arc::clone(self),
            id,
            owner: key.owner.clone(),
        };
        let server = Arc::clone(cell.get_or_try_init(|| self.start(key)).await?);
        Ok(Lease { place, server })
    }

    /// Whoever listens to this is told what its owner's connections say about no request.
    pub(super) fn news(&self, owner: &str) -> broadcast::Sender<News> {
        let mut all = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = all.get(owner).and_then(broadcast::WeakSender::upgrade) {
            return there;
        }
        all.retain(|_, sender| sender.upgrade().is_some());
        let sender = broadcast::Sender::new(NEWS_MAX);
        all.insert(owner.to_owned(), sender.downgrade());
        sender
    }

    /// All connections that live now.
    pub(super) fn living(&self, owner: &str) -> Vec<Arc<Server>> {
        let slots = self.slots();
        let own = slots.all.iter().filter(|slot| slot.key.owner == owner);
        own.filter_map(|slot| slot.server.get().cloned())
            .filter(|server| !server.connection.is_over())
            .collect()
    }

    /// Ends all connections, and waits until they have ended.
    pub(super) async fn end(&self) {
        let all = std::mem::take(&mut self.slots().all);
        let servers = all.iter().filter_map(|slot| slot.server.get());
        futures_util::future::join_all(servers.map(|server| server.connection.end())).await;
    }

    /// Finds a place, or makes one, and counts its use.
    fn place(&self, key: &Key, exclusive: bool) -> Result<(u64, Starting), NoServer> {
        let mut slots = self.slots();
        for owner in slots.bury() {
            self.failed(&owner);
        }
        if let Some(slot) = slots.fitting(key, exclusive) {
            slot.uses += 1;
            slot.exclusive = exclusive;
            return Ok((slot.id, Arc::clone(&slot.server)));
        }
        let (own, all) = slots.used(&key.owner);
        if !key.owner.is_empty() && own > 0 && own >= self.most.saturating_sub(all) {
            return Err(NoServer::Share(own));
        }
        if slots.all.len() >= self.most && !slots.evict(&key.owner) {
            return Err(NoServer::Busy(self.most));
        }
        let cell = Arc::default();
        let id = slots.push(key.clone(), Arc::clone(&cell), exclusive);
        Ok((id, cell))
    }

    async fn start(&self, key: &Key) -> Result<Arc<Server>, NoServer> {
        let not_before = self.paces().not_before(&key.owner);
        if let Some(not_before) = not_before {
            tokio::time::sleep_until(not_before).await;
        }
        let capabilities = RawValue::from_string(key.capabilities.to_string())
            .unwrap_or_else(|_| Object::default().raw());
        let house = House {
            news: self.news(&key.owner),
            tasks: AtHome {
                all: Arc::clone(&self.tasks),
                home: self.home(&key.owner).into(),
            },
        };
        let is_anew = matches!(self.source, Source::Program(_));
        if is_anew && self.living(&key.owner).is_empty() {
            self.tasks.forget(&house.tasks.home);
        }
        let met = Server::greet(&self.source, self.era, &capabilities, &house).await;
        if met.is_err() {
            self.failed(&key.owner);
        }
        met.map(Arc::new)
    }

    fn failed(&self, owner: &str) {
        let random = getrandom::u64().unwrap_or(u64::MAX);
        self.paces().failed(owner, Instant::now(), random);
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        // Nothing that can panic runs under these locks.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paces(&self) -> MutexGuard<'_, Paces> {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn push(&mut self, key: Key, server: Starting, exclusive: bool) -> u64 {
        self.last += 1;
        self.all.push(Slot {
            id: self.last,
            key,
            server,
            uses: 1,
            exclusive,
            used: self.last,
        });
        self.last
    }

    /// Takes out the connections that are over; whose they were. Their calls have been told already.
    fn bury(&mut self) -> Vec<String> {
        let over = self.all.extract_if(.., |slot| {
            let server = slot.server.get();
            server.is_some_and(|server| server.connection.is_over())
        });
        over.map(|slot| slot.key.owner).collect()
    }

    /// The one of this key that was used last.
    fn fitting(&mut self, key: &Key, exclusive: bool) -> Option<&mut Slot> {
        let fitting = self.all.iter_mut().filter(|slot| {
            let is_free = slot.uses == 0 || !(exclusive || slot.exclusive);
            slot.key == *key && is_free
        });
        fitting.max_by_key(|slot| slot.used)
    }

    /// How many are in use: of this owner, and of all.
    fn used(&self, owner: &str) -> (usize, usize) {
        let used = || self.all.iter().filter(|slot| slot.uses > 0);
        let own = used().filter(|slot| slot.key.owner == owner);
        (own.count(), used().count())
    }

    /// Ends the one that was idle for longest, one of this owner first. Whether one was.
    fn evict(&mut self, owner: &str) -> bool {
        let all = self.all.iter().enumerate();
        let idle = all.filter(|(_, slot)| slot.uses == 0);
        let Some((at, _)) = idle.min_by_key(|(_, slot)| (slot.key.owner != owner, slot.used))
        else {
            return false;
        };
        // Dropping it ends it.
        self.all.remove(at);
        true
    }
}

/// A connection that is in use.
pub(super) struct Lease {
    place: Place,
    pub(super) server: Arc<Server>,
}

impl Lease {
    /// The server did what it was asked: its owner's next start need not wait.
    pub(super) fn works(&self) {
        self.place.pool.paces().works(&self.place.owner);
    }
}

/// A use of a slot, until it is dropped.
struct Place {
    pool: Arc<Pool>,
    id: u64,
    owner: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut slots = self.pool.slots();
        slots.last += 1;
        let now = slots.last;
        if let Some(at) = slots.all.iter().position(|slot| slot.id == self.id) {
            let slot = &mut slots.all[at];
            slot.uses -= 1;
            slot.used = now;
            if slot.uses == 0 && !slot.server.initialized() {
                // It never started.
                slots.all.remove(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(owner: &str) -> Key {
        Key {
            owner: owner.into(),
            capabilities: "{}".into(),
        }
    }

    fn slots(uses: &[(&str, usize)]) -> Slots {
        let mut slots = Slots::default();
        for (owner, uses) in uses {
            slots.push(key(owner), Arc::default(), false);
            slots.all.last_mut().unwrap().uses = *uses;
        }
        slots
    }

    #[test]
    fn one_whose_servers_die_delays_nobody_else() {
        let (mut paces, now) = (Paces::default(), Instant::now());
        let wait = |paces: &Paces, owner: &str| {
            let until = paces.not_before(owner);
            until.map_or(0, |until| until.duration_since(now).as_millis())
        };
        for _ in 0..3 {
            paces.failed("eve", now, u64::MAX);
        }
        assert_eq!((wait(&paces, "eve"), wait(&paces, "ada")), (800, 0));
        paces.works("ada");
        assert_eq!(wait(&paces, "eve"), 800);
        paces.works("eve");
        assert_eq!(wait(&paces, "eve"), 0);
    }

    #[test]
    fn beyond_the_bound_of_paces_who_fails_waits_with_others_and_none_is_forgotten() {
        let (mut paces, now) = (Paces::default(), Instant::now());
        for n in 0..PACES_MAX + 10 {
            paces.failed(&format!("eve{n}"), now, u64::MAX);
        }
        assert_eq!(paces.of.len(), PACES_MAX + 1);
        assert_eq!(
            paces.not_before("eve0"),
            Some(now + Duration::from_millis(200))
        );
        assert_eq!(paces.not_before("ada"), Some(now + LONGEST));
        let later = now + LONGEST * 3;
        paces.failed("ada", later, u64::MAX);
        assert_eq!(paces.of.len(), 1);
    }

    #[test]
    fn the_one_that_was_idle_for_longest_ends_first_and_one_in_use_never() {
        let mut slots = slots(&[("a", 1), ("b", 0), ("c", 0), ("d", 0)]);
        assert!(slots.evict("c"), "its own first");
        assert!(slots.all.iter().all(|slot| slot.key != key("c")));
        assert!(slots.evict("a") && slots.evict("a"));
        assert_eq!(slots.all[0].key, key("a"));
        assert!(!slots.evict("a"));
    }

    #[test]
    fn a_connection_is_shared_by_its_owners_calls_but_not_while_one_has_it_to_itself() {
        let mut slots = slots(&[("a", 1)]);
        assert!(slots.fitting(&key("b"), false).is_none());
        assert!(slots.fitting(&key("a"), true).is_none());
        slots.fitting(&key("a"), false).unwrap().exclusive = true;
        assert!(slots.fitting(&key("a"), false).is_none());
        slots.all[0].uses = 0;
        assert!(slots.fitting(&key("a"), false).is_some());
    }
}
