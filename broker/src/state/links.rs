//! Which peers are connected now, what each advertises, and what it lets our agents do there.

use std::collections::HashMap;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use dashmap::DashMap;
use lru::LruCache;
use proto_spec::admission::Neighbour;
use proto_spec::capability::Token;
use proto_spec::limits::{ADVERTISED_BYTES_MAX, ADVERTISED_TOOL_BYTES_MAX, RELAY_TOKENS_MAX};
use proto_spec::message::{Advert, AdvertisedTool, DiscoveredTool, LinkRole, RevocationHead};
use proto_spec::{AgentId, Capability, Digest, Org, Pattern, PublicKey, Refusal, Timestamp};
use serde::Serialize;
use tokio::sync::watch;

use super::outbox::Outbox;
use super::revocations::REMEMBERED;
use super::room::{Guest, Room};
use crate::locks::{lock, read, write};

/// A link of this age is not given up for one that the other side dialled at the same time.
const YOUNG: Duration = Duration::from_secs(10);
/// A link over which nothing of the peer's was heard for so long is used only where there is no other.
pub const SILENT: Duration = Duration::from_secs(3);
/// Agents whose tokens for one peer's tools are kept.
const INTRODUCED: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();

/// Dead keys of one peer that are known at once.
const DEAD_MAX: usize = 65_536;

/// What a peer granted our broker, to delegate from.
#[derive(Debug, Clone)]
pub struct Held {
    /// By which adverts name it.
    pub id: Digest,
    /// The unsealed token.
    pub token: Vec<u8>,
    /// Through how many further organisations it may be passed on.
    pub depth: usize,
}

/// Whose token it is, under which key, and from which of the peer's grants.
type Introduced = (AgentId, PublicKey, Digest);

/// How much one link carries.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Calls in flight to the peer, and from it.
    pub calls_max: usize,
    /// Bytes of an envelope that the peer takes of agents, as it says itself.
    pub envelope_bytes_max: usize,
}

/// The attached connection to one peer's broker.
pub struct Link {
    outbox: Outbox,
    /// Which peer.
    pub org: Org,
    /// Its broker's key.
    pub key: PublicKey,
    /// Which end the peer is.
    pub role: LinkRole,
    /// When it was attached.
    pub since: Timestamp,
    /// The TLS keys that the peer named when it was attached, for people to compare.
    pub channels: Vec<Digest>,
    /// Room for calls in flight to the peer.
    pub calls_to: Arc<Room>,
    /// Room for calls in flight from it.
    pub calls_from: Arc<Room>,
    envelope_bytes_max: usize,
    held: ArcSwap<Vec<Held>>,
    directory: RwLock<Directory>,
    introductions: Mutex<LruCache<Introduced, (Arc<str>, Timestamp)>>,
    view: Mutex<View>,
    listeners: ArcSwap<Vec<Hearer>>,
    granted: watch::Sender<()>,
    missed: AtomicU64,
}

/// An agent of the peer's that listens to topics here.
#[derive(Debug)]
pub struct Hearer {
    /// Which.
    pub agent: AgentId,
    /// To what.
    pub topics: Vec<Pattern>,
    /// In which the peer's broker introduces it. Asked again at every event.
    pub tokens: Vec<Arc<Token>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("org", &self.org)
            .finish_non_exhaustive()
    }
}

impl Deref for Link {
    type Target = Outbox;
    fn deref(&self) -> &Outbox {
        &self.outbox
    }
}

impl Link {
    /// A link that was just attached.
    #[must_use]
    pub fn new(
        outbox: Outbox,
        org: Org,
        key: PublicKey,
        role: LinkRole,
        since: Timestamp,
        bounds: Bounds,
    ) -> Self {
        Self {
            outbox,
            org,
            key,
            role,
            since,
            channels: Vec::new(),
            calls_to: Room::new(bounds.calls_max),
            calls_from: Room::new(bounds.calls_max),
            envelope_bytes_max: bounds.envelope_bytes_max,
            held: ArcSwap::default(),
            directory: RwLock::default(),
            introductions: Mutex::new(LruCache::new(INTRODUCED)),
            view: Mutex::new(View::at(since)),
            listeners: ArcSwap::default(),
            granted: watch::Sender::new(()),
            missed: AtomicU64::new(0),
        }
    }

    /// As whom an agent takes room of what comes from the peer or goes back to it: those behind it share.
    #[must_use]
    pub fn guest(&self, caller: &AgentId) -> Guest {
        match caller.org() == &self.org {
            true => Guest::Agent(caller.clone()),
            false => Guest::Through(caller.org().clone()),
        }
    }

    /// Queues what an agent signed, in its share.
    ///
    /// # Errors
    ///
    /// [`Refusal::TooLarge`] where the peer said that it takes no such envelope; those of
    /// [`Outbox::send_for`].
    pub fn relay(&self, guest: &Guest, envelope: &Bytes, frame: Bytes) -> Result<(), Refusal> {
        if envelope.len() > self.envelope_bytes_max {
            return Err(Refusal::TooLarge(envelope.len(), self.envelope_bytes_max));
        }
        self.send_for(guest, frame)
    }

    /// The peer, as what it says is judged.
    #[must_use]
    pub fn neighbour(&self) -> Neighbour<'_> {
        Neighbour {
            org: &self.org,
            key: &self.key,
        }
    }

    /// Replaces what the peer grants us. Tokens made from what is gone are forgotten.
    pub fn hold(&self, held: Vec<Held>) {
        let keeps = |id: &Digest| held.iter().any(|one| one.id == *id);
        let mut made = lock(&self.introductions);
        let gone: Vec<Introduced> = made
            .iter()
            .filter(|((_, _, id), _)| !keeps(id))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            made.pop(&key);
        }
        drop(made);
        self.held.store(Arc::new(held));
        self.granted.send_replace(());
    }

    /// Says when the peer grants us something else than before.
    #[must_use]
    pub fn granted(&self) -> watch::Receiver<()> {
        self.granted.subscribe()
    }

    /// What the peer grants us.
    #[must_use]
    pub fn held(&self) -> Arc<Vec<Held>> {
        self.held.load_full()
    }

    /// Sealed tokens with which an agent of ours may call what `grants` permit, base64url, best first. Made
    /// by `make` where there is none that holds until `fresh`; it also says until when what it makes holds.
    ///
    /// # Errors
    ///
    /// [`Refusal::Unavailable`] where the peer's grants have not come.
    pub fn introduce(
        &self,
        agent: &AgentId,
        key: &PublicKey,
        grants: &[Digest],
        fresh: Timestamp,
        make: impl Fn(&Held) -> Option<(Arc<str>, Timestamp)>,
    ) -> Result<Vec<Arc<str>>, Refusal> {
        let held = self.held();
        let mut tokens = Vec::new();
        for id in grants.iter().take(RELAY_TOKENS_MAX) {
            let slot = (agent.clone(), *key, *id);
            let mut made = lock(&self.introductions);
            let known = made.get(&slot).filter(|(_, until)| *until > fresh);
            if let Some((token, _)) = known {
                tokens.push(Arc::clone(token));
                continue;
            }
            drop(made);
            let from = held.iter().find(|one| one.id == *id);
            if let Some((token, until)) = from.and_then(&make) {
                lock(&self.introductions).put(slot, (Arc::clone(&token), until));
                tokens.push(token);
            }
        }
        if tokens.is_empty() {
            return Err(Refusal::Unavailable(format!("a grant of {}", self.org)));
        }
        Ok(tokens)
    }

    /// Replaces who of the peer's listens here.
    pub fn set_listeners(&self, listeners: Vec<Hearer>) {
        self.listeners.store(Arc::new(listeners));
    }

    /// Who of the peer's listens here.
    #[must_use]
    pub fn listeners(&self) -> Arc<Vec<Hearer>> {
        self.listeners.load_full()
    }

    /// Events that the peer was too slow to take, since the last that it took.
    #[must_use]
    pub fn missed(&self) -> &AtomicU64 {
        &self.missed
    }

    /// Takes a head over, and gives the keys that are dead from now on.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidBody`] where it does not follow the one before it or echoes a time that we never
    /// said; [`Refusal::Busy`] beyond 65,536 keys.
    pub fn see(&self, head: RevocationHead, now: Timestamp) -> Result<Vec<PublicKey>, Refusal> {
        lock(&self.view).take(head, now)
    }

    /// The peer's newest time that we have, for it to measure by.
    #[must_use]
    pub fn tick(&self) -> Option<Timestamp> {
        lock(&self.view).tick
    }

    /// How old our view of the peer's dead keys is, once there is one.
    #[must_use]
    pub fn known_age(&self, now: Timestamp) -> Option<Duration> {
        let view = lock(&self.view);
        (view.seq > 0).then(|| now.distance(view.fresh))
    }

    /// How old our view of the peer's dead keys is.
    #[must_use]
    pub fn age(&self, now: Timestamp) -> Duration {
        now.distance(lock(&self.view).fresh)
    }

    /// Whether the peer said that this key is dead.
    #[must_use]
    pub fn is_dead(&self, key: &PublicKey) -> bool {
        lock(&self.view).dead.contains_key(key)
    }

    /// Takes an advert over, and says whether there is anything else to call than before.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidBody`] where it does not follow the one before it, holds for longer than an hour,
    /// tells of what does not lie behind the peer, of a tool beyond [`ADVERTISED_TOOL_BYTES_MAX`], or gives
    /// one agent two keys; [`Refusal::Busy`] beyond `tools_max` tools or [`ADVERTISED_BYTES_MAX`]. Then
    /// nothing of it is taken.
    pub fn learn(
        &self,
        me: &Org,
        advert: Advert,
        tools_max: usize,
        now: Timestamp,
    ) -> Result<bool, Refusal> {
        write(&self.directory).take(&self.org, me, advert, tools_max, now)
    }

    /// A tool that the peer advertises.
    #[must_use]
    pub fn tool(
        &self,
        provider: &AgentId,
        tool: &Capability,
        now: Timestamp,
    ) -> Option<Arc<AdvertisedTool>> {
        let directory = read(&self.directory);
        let found = directory.tools.get(provider)?.get(tool)?;
        (directory.expires > now).then(|| Arc::clone(&found.tool))
    }

    /// All tools that the peer advertises.
    #[must_use]
    pub fn tools(&self, now: Timestamp) -> Vec<Arc<AdvertisedTool>> {
        let directory = read(&self.directory);
        if directory.expires <= now {
            return Vec::new();
        }
        let all = directory.tools.values().flat_map(HashMap::values);
        all.map(|known| Arc::clone(&known.tool)).collect()
    }

    /// How many tools the peer advertises.
    #[must_use]
    pub fn tool_count(&self) -> usize {
        read(&self.directory).count
    }

    /// The key that the peer certifies for an agent of its own.
    #[must_use]
    pub fn key_of(&self, agent: &AgentId) -> Option<PublicKey> {
        let directory = read(&self.directory);
        directory
            .tools
            .get(agent)?
            .values()
            .next()
            .map(|known| known.tool.tool.key)
    }
}

/// What we know of one peer's dead keys.
#[derive(Debug)]
pub struct View {
    seq: u64,
    /// By our clock: what the peer had revoked by then has come; nothing before its first head.
    fresh: Timestamp,
    /// When its link came up: what it says first was said after that.
    since: Timestamp,
    /// By the peer's clock.
    tick: Option<Timestamp>,
    /// Until when each has to be known.
    dead: HashMap<PublicKey, Timestamp>,
}

impl View {
    fn at(since: Timestamp) -> Self {
        Self {
            seq: 0,
            fresh: Timestamp::default(),
            since,
            tick: None,
            dead: HashMap::new(),
        }
    }

    /// Takes a head over, whole or not at all.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidBody`] where it does not follow the one before it or echoes a time that we never
    /// said; [`Refusal::Busy`] beyond [`DEAD_MAX`] keys.
    fn take(&mut self, head: RevocationHead, now: Timestamp) -> Result<Vec<PublicKey>, Refusal> {
        let bad = |why: &str| Err(Refusal::InvalidBody(format!("a head {why}")));
        if head.seq != self.seq + 1 {
            return bad("that does not follow the one before it");
        }
        if head.echo.is_some_and(|echo| echo > now) {
            return bad("with a time that we never said");
        }
        self.dead.retain(|_, until| *until > now);
        if self.dead.len() + head.dead.len() > DEAD_MAX {
            return Err(Refusal::Busy("the list of a peer's dead keys"));
        }
        let until = now.later(REMEMBERED);
        let known = &mut self.dead;
        let keys = head.dead.into_iter();
        let dead = keys
            .filter(|key| known.insert(*key, until).is_none())
            .collect();
        self.seq = head.seq;
        let echo = head.echo.unwrap_or_default();
        self.fresh = self.fresh.max(echo).max(self.since);
        self.tick = self.tick.max(Some(head.tick));
        Ok(dead)
    }
}

/// A tool as it is written: its true size, and what tells it from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// All of it.
    pub bytes: usize,
    digest: Digest,
}

impl Written {
    /// How this is written.
    #[must_use]
    pub fn of(tool: &impl Serialize) -> Self {
        let text = serde_json::to_vec(tool);
        Self {
            // What cannot be written fits nowhere.
            bytes: text.as_ref().map_or(usize::MAX, Vec::len),
            digest: Digest::of(&text.unwrap_or_default()),
        }
    }

    /// The size alone.
    #[must_use]
    pub fn size(tool: &impl Serialize) -> usize {
        let mut counted = Counted(0);
        let written = serde_json::to_writer(&mut counted, tool);
        written.map_or(usize::MAX, |()| counted.0)
    }
}

/// Counts what is written to it.
struct Counted(usize);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Known {
    tool: Arc<AdvertisedTool>,
    written: Written,
}

/// What one peer advertises on one link.
#[derive(Debug, Default)]
pub struct Directory {
    tools: HashMap<AgentId, HashMap<Capability, Known>>,
    count: usize,
    bytes: usize,
    seq: u64,
    expires: Timestamp,
}

/// Whose tool, and which.
type Slot<'a> = (&'a AgentId, &'a Capability);

impl Directory {
    /// Takes an advert of `owner` over, whole or not at all: see [`Link::learn`].
    fn take(
        &mut self,
        owner: &Org,
        me: &Org,
        mut advert: Advert,
        tools_max: usize,
        now: Timestamp,
    ) -> Result<bool, Refusal> {
        let bad = |why: &str| Err(Refusal::InvalidBody(format!("an advert {why}")));
        if advert.seq != self.seq + 1 {
            return bad("that does not follow the one before it");
        }
        if advert.expires > now.later(Duration::from_secs(3_600)) {
            return bad("that would hold for longer than an hour");
        }
        if !advert
            .tools
            .iter()
            .all(|one| is_on_its_way(&one.tool, owner, me))
        {
            return bad("of a tool that does not lie behind the peer");
        }
        for one in &mut advert.tools {
            one.grants.truncate(RELAY_TOKENS_MAX);
            one.onward.truncate(RELAY_TOKENS_MAX);
        }
        let mut keys: HashMap<&AgentId, PublicKey> = HashMap::new();
        let mut coming: HashMap<Slot<'_>, Written> = HashMap::new();
        for one in &advert.tools {
            let agent = &one.tool.agent;
            if *keys.entry(agent).or_insert(one.tool.key) != one.tool.key {
                return bad("that gives one agent two keys");
            }
            let written = Written::of(one);
            if written.bytes > ADVERTISED_TOOL_BYTES_MAX {
                return bad("of a tool that is too large");
            }
            coming.insert((agent, &one.tool.tool.name), written);
        }
        let going = self.going(&advert, &keys, &coming);
        let bytes =
            |of: &HashMap<Slot<'_>, Written>| of.values().map(|one| one.bytes).sum::<usize>();
        let count_after = self.count - going.len() + coming.len();
        let bytes_after = self.bytes - bytes(&going) + bytes(&coming);
        if count_after > tools_max || bytes_after > ADVERTISED_BYTES_MAX {
            return Err(Refusal::Busy("the peer's share of the directory"));
        }
        let was_expired = self.expires <= now && self.count > 0;
        let is_news = going != coming || was_expired;
        let going: Vec<(AgentId, Capability)> = going
            .into_keys()
            .map(|(agent, tool)| (agent.clone(), tool.clone()))
            .collect();
        let written: Vec<Written> = advert
            .tools
            .iter()
            .map(|one| coming[&slot_of(one)])
            .collect();
        for (agent, tool) in &going {
            self.tools.get_mut(agent).map(|tools| tools.remove(tool));
        }
        for (tool, written) in advert.tools.into_iter().zip(written) {
            let tools = self.tools.entry(tool.tool.agent.clone()).or_default();
            let (name, tool) = (tool.tool.tool.name.clone(), Arc::new(tool));
            tools.insert(name, Known { tool, written });
        }
        self.tools.retain(|_, tools| !tools.is_empty());
        self.count = count_after;
        self.bytes = bytes_after;
        self.seq = advert.seq;
        self.expires = advert.expires;
        Ok(is_news)
    }

    /// What is known and will not be as it is: what is gone, what comes anew, and all of an agent that comes
    /// under another key, since what that one offered is not this one's.
    fn going<'a>(
        &'a self,
        advert: &'a Advert,
        keys: &HashMap<&'a AgentId, PublicKey>,
        coming: &HashMap<Slot<'a>, Written>,
    ) -> HashMap<Slot<'a>, Written> {
        let known = |(agent, tool): Slot<'a>| {
            let known = self.tools.get(agent)?.get(tool)?;
            Some(((agent, tool), known.written))
        };
        let gone = advert.gone.iter().map(|(agent, tool)| (agent, tool));
        let mut going: HashMap<_, _> = gone
            .chain(coming.keys().copied())
            .filter_map(known)
            .collect();
        for (agent, key) in keys {
            let Some((agent, tools)) = self.tools.get_key_value(*agent) else {
                continue;
            };
            if tools.values().any(|one| one.tool.tool.key != *key) {
                going.extend(
                    tools
                        .iter()
                        .map(|(tool, known)| ((agent, tool), known.written)),
                );
            }
        }
        going
    }
}

fn slot_of(tool: &AdvertisedTool) -> Slot<'_> {
    (&tool.tool.agent, &tool.tool.tool.name)
}

/// Whether a peer may advertise this: a tool of its own agents, or one behind another organisation, and never
/// one that we would be asked for ourselves.
fn is_on_its_way(tool: &DiscoveredTool, peer: &Org, me: &Org) -> bool {
    match &tool.via[..] {
        [] => tool.agent.org() == peer,
        // What is behind it requires, at the peer, a right to use that organisation.
        [one] => {
            let required = Pattern::from(tool.tool.required().clone());
            let is_under = required.of_peer().is_some_and(|(org, _)| org == *one);
            one == tool.agent.org() && one != peer && one != me && is_under
        }
        _ => false,
    }
}

/// The attached links.
#[derive(Debug)]
pub struct Links {
    by_org: DashMap<Org, Arc<Link>>,
    trouble: DashMap<Org, String>,
    /// Agents by way of peers, and their keys: for longer than a link lasts.
    known: Mutex<LruCache<(Org, AgentId), PublicKey>>,
    changed: watch::Sender<()>,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            by_org: DashMap::new(),
            trouble: DashMap::new(),
            known: Mutex::new(LruCache::new(INTRODUCED)),
            changed: watch::Sender::new(()),
        }
    }
}

impl Links {
    /// Takes a link that was attached. The one that was there closes, unless both sides dialled at once and
    /// it is the one to keep: then both keep what the organisation of the lesser name dialled.
    ///
    /// # Errors
    ///
    /// [`Refusal::Conflict`]: the one that is there stays.
    pub fn attach(&self, me: &Org, link: Arc<Link>) -> Result<(), Refusal> {
        let is_kept = |one: &Link| (one.role == LinkRole::Dials) == (one.org < *me);
        let mut entry = self.by_org.entry(link.org.clone());
        if let dashmap::Entry::Occupied(before) = &mut entry {
            let is_young = link.since.distance(before.get().since) < YOUNG;
            if is_young && is_kept(before.get()) && !is_kept(&link) {
                return Err(Refusal::Conflict("there is a link already".into()));
            }
            before.get().close();
        }
        entry.insert(link);
        self.changed.send_replace(());
        Ok(())
    }

    /// Takes a link out, if it is still the one of its peer.
    pub fn detach(&self, link: &Link) {
        let is_it = |_: &Org, one: &Arc<Link>| one.id() == link.id();
        self.by_org.remove_if(&link.org, is_it);
        self.changed.send_replace(());
    }

    /// The link to a peer, if it is up.
    #[must_use]
    pub fn of(&self, org: &Org) -> Option<Arc<Link>> {
        self.by_org.get(org).map(|link| Arc::clone(&link))
    }

    /// Notes under which key an agent is known by way of a peer, and says so where that is another than
    /// before: it is the peer's word alone.
    pub fn note_key(&self, peer: &Org, agent: &AgentId, key: &PublicKey) {
        let slot = (peer.clone(), agent.clone());
        let before = lock(&self.known).put(slot, *key);
        if before.is_some_and(|before| before != *key) {
            tracing::warn!(%peer, %agent, key = %key.fingerprint(), "a peer's agent has another key than before");
        }
    }

    /// Notes why a peer's link is down, and says whether that is another reason than before.
    pub fn note_trouble(&self, org: &Org, why: &str) -> bool {
        let before = self.trouble.insert(org.clone(), why.to_owned());
        before.is_none_or(|before| before != why)
    }

    /// Why a peer's link went down, or did not come up, the last time.
    #[must_use]
    pub fn trouble(&self, org: &Org) -> Option<String> {
        self.trouble.get(org).map(|why| why.clone())
    }

    /// All that are up, by organisation: of two ways to one tool, the same is advertised every time.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Link>> {
        let mut all: Vec<_> = self.by_org.iter().map(|link| Arc::clone(&link)).collect();
        all.sort_unstable_by(|a, b| a.org.cmp(&b.org));
        all
    }

    /// Says when a link came up or went down.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_ages_from_the_time_that_the_peer_echoes() {
        let at = |seconds| Timestamp::from_ms(1_000_000 + seconds * 1_000);
        let mut view = View::at(at(0));
        let head = |seq, echo: Option<u64>| RevocationHead {
            seq,
            dead: Vec::new(),
            tick: at(500),
            echo: echo.map(at),
        };
        // What is said and echoes nothing newer makes nothing younger, however often it comes.
        view.take(head(1, None), at(5)).unwrap();
        view.take(head(2, Some(4)), at(6)).unwrap();
        view.take(head(3, Some(2)), at(30)).unwrap();
        assert_eq!((view.fresh, view.tick), (at(4), Some(at(500))));
        assert!(view.take(head(3, Some(30)), at(31)).is_err(), "twice");
        assert!(view.take(head(4, Some(32)), at(31)).is_err(), "ahead");
        assert_eq!(view.fresh, at(4));
    }

    /// A tool of globex's `x`, of about so many bytes: in the checks, which are the heaviest to pass on.
    fn offered(name: &str, bytes: usize) -> AdvertisedTool {
        let tool = serde_json::json!({ "name": name });
        AdvertisedTool {
            tool: DiscoveredTool {
                agent: "x@globex".parse().unwrap(),
                key: proto_spec::SigningKey::from_seed(&[1; 32]).public(),
                tool: serde_json::from_value(tool).unwrap(),
                checks: vec!["c".repeat(bytes)],
                via: Vec::new(),
                unsigned: None,
            },
            grants: Vec::new(),
            onward: Vec::new(),
        }
    }

    fn heard(
        directory: &mut Directory,
        tools: Vec<AdvertisedTool>,
        gone: &[&str],
    ) -> Result<bool, Refusal> {
        let now = Timestamp::from_ms(1_000_000);
        let slot = |name: &&str| ("x@globex".parse().unwrap(), name.parse().unwrap());
        let advert = Advert {
            seq: directory.seq + 1,
            tools,
            gone: gone.iter().map(slot).collect(),
            expires: now.later(Duration::from_secs(60)),
        };
        let org = |text: &str| text.parse::<Org>().unwrap();
        directory.take(&org("globex"), &org("acme"), advert, 3_000, now)
    }

    #[test]
    fn an_advert_is_news_only_where_it_changes_something() {
        let mut directory = Directory::default();
        let mut is_news = |tools, gone: &[&str]| heard(&mut directory, tools, gone).unwrap();
        assert!(!is_news(vec![], &[]));
        assert!(is_news(vec![offered("t.a", 1)], &[]));
        assert!(!is_news(vec![offered("t.a", 1)], &[]));
        assert!(!is_news(vec![], &["t.b"]));
        assert!(!is_news(vec![offered("t.a", 1)], &["t.a"]));
        assert!(is_news(vec![offered("t.a", 2)], &[]));
        assert!(is_news(vec![], &["t.a"]));
    }

    #[test]
    fn a_peers_tools_are_bounded_by_their_true_size() {
        let mut directory = Directory::default();
        let large = vec![offered("t.a", ADVERTISED_TOOL_BYTES_MAX)];
        assert!(matches!(
            heard(&mut directory, large, &[]),
            Err(Refusal::InvalidBody(_))
        ));
        let each = 60_000;
        let room = ADVERTISED_BYTES_MAX / (each + 1_000);
        let all = (0..room).map(|n| offered(&format!("t.n{n}"), each));
        heard(&mut directory, all.collect(), &[]).unwrap();
        let before = directory.bytes;
        let more = |n: usize| (0..n).map(|n| offered(&format!("u.n{n}"), each)).collect();
        assert!(matches!(
            heard(&mut directory, more(10), &[]),
            Err(Refusal::Busy(_))
        ));
        assert_eq!(
            (directory.count, directory.bytes),
            (room, before),
            "nothing of it is taken"
        );
        // What goes in the same advert makes room.
        let gone: Vec<String> = (0..10).map(|n| format!("t.n{n}")).collect();
        let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
        heard(&mut directory, more(10), &gone).unwrap();
        assert_eq!((directory.count, directory.bytes), (room, before));
        let all: Vec<String> = (0..room).map(|n| format!("t.n{n}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        heard(&mut directory, vec![], &all).unwrap();
        assert_eq!(directory.count, 10);
    }

    #[test]
    fn of_two_links_that_were_dialled_at_once_both_sides_keep_the_same() {
        let org = |text: &str| text.parse::<Org>().unwrap();
        let key = proto_spec::SigningKey::from_seed(&[1; 32]).public();
        let link = |peer: &str, role, seconds: u64| {
            let (queue, _) = tokio::sync::mpsc::channel(1);
            let since = Timestamp::from_ms(seconds * 1_000);
            let outbox = Outbox::new(queue, 1);
            let bounds = Bounds {
                calls_max: 1,
                envelope_bytes_max: 1,
            };
            Arc::new(Link::new(outbox, org(peer), key, role, since, bounds))
        };
        // What acme dialled stays, at acme, where globex listens, and at globex, where acme dials.
        for (me, peer, kept, other) in [
            ("acme", "globex", LinkRole::Listens, LinkRole::Dials),
            ("globex", "acme", LinkRole::Dials, LinkRole::Listens),
        ] {
            for order in [[kept, other], [other, kept]] {
                let links = Links::default();
                for role in order {
                    let _ = links.attach(&org(me), link(peer, role, 100));
                }
                let stays = links.of(&org(peer)).unwrap();
                assert_eq!(stays.role, kept, "{me} {order:?}");
            }
            // A peer that comes again after a while has lost the one before.
            let links = Links::default();
            links.attach(&org(me), link(peer, kept, 100)).unwrap();
            links.attach(&org(me), link(peer, other, 200)).unwrap();
            assert_eq!(links.of(&org(peer)).unwrap().role, other);
        }
    }
}
