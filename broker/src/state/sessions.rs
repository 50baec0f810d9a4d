//! Who is connected now: a name's attached sessions, what each offers, and what waits for it.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use lru::LruCache;
use proto_spec::capability::Token;
use proto_spec::message::{Basis, Tool};
use proto_spec::{AgentId, Capability, Digest, Name, Pattern, PublicKey, Refusal, Timestamp};
use tokio::sync::{mpsc, watch};

use super::outbox::{Outbox, Queued};
use crate::locks::lock;

/// What a credential is about; the recipient is the session that remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CredentialKey {
    /// Who speaks.
    pub subject: AgentId,
    /// Under which key.
    pub key: PublicKey,
    /// For a call: the tool, the capability it requires, and what permitted it, by which trust score; and
    /// whether it is an older agent's.
    pub call: Option<Permitted>,
}

/// A tool, the capability it requires, and what permitted it, by which trust score; and whether an older agent
/// calls.
type Permitted = (
    Capability,
    Capability,
    Basis,
    Option<Digest>,
    Option<u8>,
    bool,
);

/// Credentials that one connection has carried: identity and expiry.
pub type Credentials = LruCache<CredentialKey, (Digest, Timestamp)>;

const CREDENTIALS: NonZeroUsize = NonZeroUsize::new(1_024).unwrap();

/// A subscription, and the token that permitted it where that was not the record.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Which topics.
    pub topics: Pattern,
    /// Asked again at every event.
    pub token: Option<Arc<Token>>,
}

/// One attached connection of an agent.
#[derive(Debug)]
pub struct Session {
    agent: AgentId,
    key: PublicKey,
    outbox: Outbox,
    offers: ArcSwap<HashMap<Capability, Arc<Tool>>>,
    subscriptions: ArcSwap<Vec<Subscription>>,
    missed: AtomicU64,
    credentials: Mutex<Credentials>,
}

impl Session {
    /// Whose it is.
    #[must_use]
    pub fn agent(&self) -> &AgentId {
        &self.agent
    }
    /// The key that attached it.
    #[must_use]
    pub fn key(&self) -> &PublicKey {
        &self.key
    }
    /// The tool of this name, if it offers it.
    #[must_use]
    pub fn offer(&self, tool: &Capability) -> Option<Arc<Tool>> {
        self.offers.load().get(tool).cloned()
    }
    /// All that it offers.
    #[must_use]
    pub fn offers(&self) -> Vec<Arc<Tool>> {
        self.offers.load().values().cloned().collect()
    }
    /// What it is subscribed to.
    #[must_use]
    pub fn subscriptions(&self) -> Arc<Vec<Subscription>> {
        self.subscriptions.load_full()
    }
    /// Events it was too slow to take, since the last notice.
    #[must_use]
    pub fn missed(&self) -> &AtomicU64 {
        &self.missed
    }

    /// Does something with the credentials that this connection has carried. What is decided and
    /// sent inside is in order with every other delivery.
    pub fn with_credentials<T>(&self, act: impl FnOnce(&mut Credentials) -> T) -> T {
        act(&mut lock(&self.credentials))
    }
}

impl Deref for Session {
    type Target = Outbox;
    fn deref(&self) -> &Outbox {
        &self.outbox
    }
}

/// The attached sessions of every agent.
#[derive(Debug)]
pub struct Sessions {
    by_name: DashMap<Name, Vec<Arc<Session>>>,
    /// Who is subscribed to exactly this pattern. A topic looks up the few patterns that cover it.
    by_topic: DashMap<Pattern, Vec<Arc<Session>>>,
    per_agent_max: usize,
    queued_bytes_max: usize,
    offers: watch::Sender<()>,
    /// Who listens to peers' topics changed.
    listening: watch::Sender<()>,
}

impl Sessions {
    pub(super) fn new(per_agent_max: usize, queued_bytes_max: usize) -> Self {
        Self {
            by_name: DashMap::new(),
            by_topic: DashMap::new(),
            per_agent_max,
            queued_bytes_max,
            offers: watch::Sender::new(()),
            listening: watch::Sender::new(()),
        }
    }

    /// Attaches a session.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] when the agent has as many as it may.
    pub fn attach(
        &self,
        agent: AgentId,
        key: PublicKey,
        outbox: mpsc::Sender<Queued>,
    ) -> Result<Arc<Session>, Refusal> {
        let mut entry = self.by_name.entry(agent.name().clone()).or_default();
        if entry.len() >= self.per_agent_max {
            return Err(Refusal::Busy("the agent's share of sessions"));
        }
        let session = Arc::new(Session {
            agent,
            key,
            outbox: Outbox::new(outbox, self.queued_bytes_max),
            offers: ArcSwap::default(),
            subscriptions: ArcSwap::default(),
            missed: AtomicU64::new(0),
            // Unbounded at first: a bounded cache reserves its whole table, and most sessions idle.
            credentials: Mutex::new(LruCache::unbounded()),
        });
        entry.push(Arc::clone(&session));
        Ok(session)
    }

    /// Replaces what a session is subscribed to. A topic that it keeps misses no event meanwhile.
    pub fn subscribe(&self, session: &Arc<Session>, subscriptions: Vec<Subscription>) {
        let before = session.subscriptions();
        let has =
            |all: &[Subscription], topics: &Pattern| all.iter().any(|one| one.topics == *topics);
        for new in &subscriptions {
            if !has(&before, &new.topics) {
                let mut entry = self.by_topic.entry(new.topics.clone()).or_default();
                entry.push(Arc::clone(session));
            }
        }
        session.subscriptions.store(Arc::new(subscriptions));
        let after = session.subscriptions();
        for old in before.iter().filter(|old| !has(&after, &old.topics)) {
            if let Some(mut entry) = self.by_topic.get_mut(&old.topics) {
                entry.retain(|other| other.id() != session.id());
            }
            self.by_topic
                .remove_if(&old.topics, |_, sessions| sessions.is_empty());
        }
        let all = before.iter().chain(after.iter());
        if all
            .map(|one| &one.topics)
            .any(|topics| topics.of_peer().is_some())
        {
            self.listening.send_replace(());
        }
    }

    /// Says when other agents than before listen to topics of peers.
    #[must_use]
    pub fn listening(&self) -> watch::Receiver<()> {
        self.listening.subscribe()
    }

    /// Every subscription that covers a topic, with its session. A session may have several: whoever
    /// serves them gives each session one copy.
    #[must_use]
    pub fn subscribers(&self, topic: &Capability) -> Vec<(Arc<Session>, Subscription)> {
        let mut found = Vec::new();
        for pattern in Pattern::from(topic.clone()).covered_by() {
            let Some(entry) = self.by_topic.get(&pattern) else {
                continue;
            };
            for session in entry.iter() {
                let subscriptions = session.subscriptions();
                if let Some(one) = subscriptions.iter().find(|one| one.topics == pattern) {
                    found.push((Arc::clone(session), one.clone()));
                }
            }
        }
        found
    }

    /// Says when what is offered may have changed.
    #[must_use]
    pub fn offers(&self) -> watch::Receiver<()> {
        self.offers.subscribe()
    }

    /// Replaces what a session offers.
    pub fn set_offers(&self, session: &Session, tools: Vec<Tool>) {
        let tools = tools.into_iter();
        let tools = tools.map(|tool| (tool.name.clone(), Arc::new(tool)));
        let tools: HashMap<_, _> = tools.collect();
        let before = session.offers.swap(Arc::new(tools));
        // Whoever hears of it makes whole lists anew.
        if !are_same(&before, &session.offers.load()) {
            self.offers_changed();
        }
    }

    /// Notes that something else is offered than before.
    pub fn offers_changed(&self) {
        self.offers.send_replace(());
    }

    /// Takes a session out.
    pub fn detach(&self, session: &Arc<Session>) {
        self.subscribe(session, Vec::new());
        let name = session.agent.name();
        if let Some(mut entry) = self.by_name.get_mut(name) {
            entry.retain(|other| other.id() != session.id());
        }
        self.by_name
            .remove_if(name, |_, sessions| sessions.is_empty());
        if !session.offers.load().is_empty() {
            self.offers_changed();
        }
    }

    /// The sessions of an agent.
    #[must_use]
    pub fn of(&self, name: &Name) -> Vec<Arc<Session>> {
        self.by_name
            .get(name)
            .map(|entry| entry.clone())
            .unwrap_or_default()
    }

    /// Of the agent's sessions that offer the tool and `serves` takes, the one with the fewest calls outstanding.
    #[must_use]
    pub fn least_loaded(
        &self,
        name: &Name,
        tool: &Capability,
        serves: impl Fn(&Session, &Tool) -> bool,
    ) -> Option<(Arc<Session>, Arc<Tool>)> {
        let sessions = self.by_name.get(name)?;
        sessions
            .iter()
            .filter_map(|session| Some((session, session.offer(tool)?)))
            .filter(|(session, tool)| serves(session, tool))
            .min_by_key(|(session, _)| session.outstanding().load(Ordering::Relaxed))
            .map(|(session, tool)| (Arc::clone(session), tool))
    }

    /// Some session's offer of this tool, whichever.
    #[must_use]
    pub fn offer(&self, name: &Name, tool: &Capability) -> Option<Arc<Tool>> {
        self.by_name
            .get(name)?
            .iter()
            .find_map(|session| session.offer(tool))
    }

    /// Every session, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Session>> {
        self.by_name
            .iter()
            .flat_map(|entry| entry.value().clone())
            .collect()
    }

    /// How many are attached.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.iter().map(|entry| entry.len()).sum()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

/// Keeps a session's memory of credentials within its bound.
pub fn trim(credentials: &mut Credentials) {
    while credentials.len() > CREDENTIALS.get() {
        credentials.pop_lru();
    }
}

fn are_same(
    some: &HashMap<Capability, Arc<Tool>>,
    others: &HashMap<Capability, Arc<Tool>>,
) -> bool {
    let text = |tool: &Tool| serde_json::to_vec(tool).ok();
    let is_same = |one: &Arc<Tool>, other: &Arc<Tool>| text(one) == text(other);
    some.len() == others.len()
        && some
            .iter()
            .all(|(name, one)| others.get(name).is_some_and(|other| is_same(one, other)))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn attached(sessions: &Sessions, queue: usize) -> (Arc<Session>, mpsc::Receiver<Queued>) {
        let (outbox, queue) = mpsc::channel(queue);
        let key = proto_spec::SigningKey::from_seed(&[1; 32]).public();
        let agent = "fs@acme".parse().unwrap();
        (sessions.attach(agent, key, outbox).unwrap(), queue)
    }

    #[test]
    fn a_queue_is_full_by_messages_or_by_bytes_and_one_message_always_fits() {
        let sessions = Sessions::new(8, 100);
        let message = |bytes| Bytes::from(vec![0; bytes]);
        let (session, mut queue) = attached(&sessions, 3);
        session.send(message(1_000)).unwrap();
        assert!(session.send(message(1)).is_err());
        drop(session.taken(queue.try_recv().unwrap()));
        session.send(message(60)).unwrap();
        assert!(session.send(message(41)).is_err());
        session.send(message(40)).unwrap();
        drop(session.taken(queue.try_recv().unwrap()));
        drop(session.taken(queue.try_recv().unwrap()));
        for _ in 0..3 {
            session.send(message(1)).unwrap();
        }
        assert!(session.send(message(1)).is_err());
    }

    #[test]
    fn a_detached_session_is_neither_routed_to_nor_told_of_events() {
        let sessions = Sessions::new(8, 100);
        let (session, _queue) = attached(&sessions, 3);
        let topics = |text: &str| Subscription {
            topics: text.parse().unwrap(),
            token: None,
        };
        let tool = r#"{"name":"fs.read"}"#;
        sessions.set_offers(&session, vec![serde_json::from_str(tool).unwrap()]);
        sessions.subscribe(&session, vec![topics("build.*"), topics("deploy.*")]);
        sessions.subscribe(&session, vec![topics("build.*")]);
        let topic = "build.done".parse().unwrap();
        assert_eq!(sessions.subscribers(&topic).len(), 1);
        assert_eq!(
            sessions.subscribers(&"deploy.done".parse().unwrap()).len(),
            0
        );
        sessions.detach(&session);
        assert_eq!(sessions.subscribers(&topic).len(), 0);
        let name = session.agent().name();
        let tool = "fs.read".parse().unwrap();
        assert!(sessions.least_loaded(name, &tool, |_, _| true).is_none());
        assert!(sessions.is_empty() && sessions.by_topic.is_empty());
    }

    #[test]
    fn an_offer_of_the_same_tools_is_no_news() {
        let sessions = Sessions::new(1, 1_000);
        let (session, _queue) = attached(&sessions, 1);
        let offers = sessions.offers();
        let is_news = |tools: serde_json::Value| {
            let mut offers = offers.clone();
            offers.mark_unchanged();
            sessions.set_offers(&session, serde_json::from_value(tools).unwrap());
            offers.has_changed().unwrap()
        };
        let tools = serde_json::json!([{"name": "fs.a"}, {"name": "fs.b", "description": "d"}]);
        assert!(is_news(tools.clone()));
        assert!(!is_news(tools));
        assert!(is_news(
            serde_json::json!([{"name": "fs.a"}, {"name": "fs.b"}])
        ));
        assert!(is_news(serde_json::json!([{"name": "fs.a"}])));
    }
}
