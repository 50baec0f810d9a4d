//! Calls in flight: to which session each was delivered, and where its answer goes.

use std::collections::HashSet;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use proto_spec::capability::Token;
use proto_spec::{AgentId, Audience, Digest, Pattern, PublicKey, Refusal, Timestamp};
use tokio::sync::oneshot;

use super::links::Link;
use super::outbox::Outbox;
use super::room::{Guest, Seat};
use super::sessions::Session;

/// What a POST gets back.
#[derive(Debug)]
pub struct Answer {
    /// One envelope.
    pub envelope: Bytes,
    /// The broker's credential for a provider that signed it.
    pub credential: Option<Bytes>,
    /// The HTTP status.
    pub status: u16,
}

/// At the other end of a connection: an agent of ours, or a peer's broker.
#[derive(Debug, Clone)]
pub enum Party {
    /// One of an agent's sessions.
    Session(Arc<Session>),
    /// The link of a peer.
    Link(Arc<Link>),
}

impl Party {
    /// The key that attached it.
    #[must_use]
    pub fn key(&self) -> &PublicKey {
        match self {
            Self::Session(session) => session.key(),
            Self::Link(link) => &link.key,
        }
    }

    /// Whom the broker's own word about a call of `agent` is for.
    #[must_use]
    pub fn audience(&self, agent: &AgentId) -> Audience {
        match self {
            Self::Session(_) => agent.clone().into(),
            Self::Link(link) => Audience::Broker(link.org.clone()),
        }
    }
}

impl Deref for Party {
    type Target = Outbox;
    fn deref(&self) -> &Outbox {
        match self {
            Self::Session(session) => session,
            Self::Link(link) => link,
        }
    }
}

/// Where the answer to a call goes.
#[derive(Debug)]
pub enum Reply {
    /// To the request that waits for it.
    Post(oneshot::Sender<Answer>),
    /// Where the call came from.
    Party(Party),
}

/// One call that was delivered and not answered.
#[derive(Debug)]
pub struct InFlight {
    /// Who called.
    pub caller: AgentId,
    /// Where the answer goes.
    pub reply: Reply,
    /// Whose tool.
    pub provider: AgentId,
    /// To which of its sessions, or towards it over which link, it was delivered.
    pub at: Party,
    /// What permitted it.
    pub token: Arc<Token>,
    /// The bearer token for which the broker signed it, if it did.
    pub bearer: Option<Arc<Token>>,
    /// Which capability that was used for.
    pub required: Pattern,
    /// Whether that was a grant on record.
    pub on_record: bool,
    /// When it was received.
    pub received: Timestamp,
    /// When its caller stops waiting.
    pub deadline: Timestamp,
    /// Whether the caller wants progress.
    pub progress: bool,
    /// What it takes of the links that it crosses.
    pub seats: Vec<Seat>,
}

impl InFlight {
    /// As whom it takes room on the way to its provider.
    #[must_use]
    pub fn towards_provider(&self) -> Guest {
        towards_provider(&self.caller, &self.reply)
    }

    /// As whom it takes room on the way back.
    #[must_use]
    pub fn towards_caller(&self) -> Guest {
        match &self.reply {
            Reply::Party(Party::Link(link)) => link.guest(&self.caller),
            _ => Guest::Agent(self.caller.clone()),
        }
    }
}

/// As whom a call takes room on the way to its provider: those who come through a peer share.
#[must_use]
pub fn towards_provider(caller: &AgentId, reply: &Reply) -> Guest {
    match reply {
        Reply::Party(Party::Link(from)) => Guest::Through(from.org.clone()),
        _ => Guest::Agent(caller.clone()),
    }
}

/// What a revocation strikes.
#[derive(Debug, Default)]
pub struct Blow {
    ids: HashSet<Digest>,
    keys: HashSet<PublicKey>,
    bar: Option<(Vec<Pattern>, Timestamp)>,
}

impl Blow {
    /// These blocks.
    #[must_use]
    pub fn ids(ids: &[Digest]) -> Self {
        Self::default().with_ids(ids)
    }

    /// And these blocks.
    #[must_use]
    pub fn with_ids(mut self, ids: &[Digest]) -> Self {
        self.ids.extend(ids);
        self
    }

    /// These keys.
    pub fn keys(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        Self {
            keys: keys.into_iter().collect(),
            ..Self::default()
        }
    }

    /// What was issued up to `before`, for what lies under these patterns.
    #[must_use]
    pub fn bar(under: &[Pattern], before: Timestamp) -> Self {
        Self {
            bar: Some((under.to_vec(), before)),
            ..Self::default()
        }
    }

    /// Whether this key dies.
    #[must_use]
    pub fn strikes_key(&self, key: &PublicKey) -> bool {
        self.keys.contains(key)
    }

    /// Whether a call in flight loses what it stands on.
    #[must_use]
    pub fn strikes(&self, call: &InFlight) -> bool {
        let mut tokens = std::iter::once(&call.token).chain(&call.bearer);
        self.strikes_key(call.at.key())
            || tokens.any(|token| self.strikes_token(token, &call.required))
    }

    fn strikes_token(&self, token: &Token, required: &Pattern) -> bool {
        let is_barred = |(under, before): &(Vec<Pattern>, Timestamp)| {
            let is_old = token.issued().as_secs() <= before.as_secs();
            is_old && under.iter().any(|bar| bar.overlap(required).is_some())
        };
        token.holders().iter().any(|key| self.strikes_key(key))
            || token
                .blocks()
                .iter()
                .any(|one| self.ids.contains(&one.id().0))
            || self.bar.as_ref().is_some_and(is_barred)
    }
}

/// All calls in flight, by identity.
#[derive(Debug)]
pub struct Calls {
    by_id: DashMap<Digest, InFlight>,
    /// How many each caller has in flight by POST; a session counts its own.
    posted: DashMap<AgentId, usize>,
    max: usize,
    posted_max: usize,
    count: std::sync::atomic::AtomicUsize,
}

impl Calls {
    pub(super) fn new(max: usize, posted_max: usize) -> Self {
        Self {
            by_id: DashMap::new(),
            posted: DashMap::new(),
            max,
            posted_max,
            count: std::sync::atomic::AtomicUsize::new(0),
        }
    }

    /// Notes a call, before it is delivered.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] when as many are in flight as there may be, or as its caller may have by POST.
    pub fn begin(&self, id: Digest, call: InFlight) -> Result<(), Refusal> {
        if self.count.load(Ordering::Relaxed) >= self.max {
            return Err(Refusal::Busy("the broker's table of calls"));
        }
        match self.by_id.entry(id) {
            // The nonce window makes this impossible; a second answer path must not replace the first.
            Entry::Occupied(_) => Err(Refusal::Replayed),
            Entry::Vacant(slot) => {
                match &call.reply {
                    Reply::Party(caller) => {
                        caller.made().fetch_add(1, Ordering::Relaxed);
                    }
                    Reply::Post(_) => {
                        let mut posted = self.posted.entry(call.caller.clone()).or_default();
                        if *posted >= self.posted_max {
                            return Err(Refusal::Busy("the caller's share of calls"));
                        }
                        *posted += 1;
                    }
                }
                call.at.outstanding().fetch_add(1, Ordering::Relaxed);
                self.count.fetch_add(1, Ordering::Relaxed);
                slot.insert(call);
                Ok(())
            }
        }
    }

    /// Takes a call out: whoever gets it answers it, and nobody else can.
    #[must_use]
    pub fn end(&self, id: &Digest) -> Option<InFlight> {
        self.end_if(id, |_| true)
    }

    /// Takes a call out if it is the one that is meant.
    #[must_use]
    pub fn end_if(&self, id: &Digest, meant: impl FnOnce(&InFlight) -> bool) -> Option<InFlight> {
        let (_, call) = self.by_id.remove_if(id, |_, call| meant(call))?;
        self.count.fetch_sub(1, Ordering::Relaxed);
        call.at.outstanding().fetch_sub(1, Ordering::Relaxed);
        match &call.reply {
            Reply::Party(caller) => {
                caller.made().fetch_sub(1, Ordering::Relaxed);
            }
            Reply::Post(_) => {
                if let Some(mut posted) = self.posted.get_mut(&call.caller) {
                    *posted -= 1;
                }
                self.posted
                    .remove_if(&call.caller, |_, posted| *posted == 0);
            }
        }
        Some(call)
    }

    /// Looks at a call.
    pub fn look<T>(&self, id: &Digest, look: impl FnOnce(&InFlight) -> T) -> Option<T> {
        self.by_id.get(id).map(|call| look(&call))
    }

    /// Whether this call was delivered to this connection by order of `caller`.
    #[must_use]
    pub fn was_delivered(&self, id: &Digest, connection: u64, caller: &Audience) -> bool {
        self.look(id, |call| {
            call.at.id() == connection
                && matches!(caller, Audience::Agent(agent) if *agent == call.caller)
        })
        .unwrap_or(false)
    }

    /// Whether `agent` made this call to `provider` over this connection.
    #[must_use]
    pub fn was_made(
        &self,
        id: &Digest,
        connection: u64,
        agent: &AgentId,
        provider: &Audience,
    ) -> bool {
        self.look(id, |call| {
            matches!(&call.reply, Reply::Party(caller) if caller.id() == connection)
                && call.caller == *agent
                && matches!(provider, Audience::Agent(agent) if *agent == call.provider)
        })
        .unwrap_or(false)
    }

    /// The identities of the calls that `meant` picks, sorted: what happens to them happens in the same order
    /// every time. Looks at every call in flight.
    #[must_use]
    pub fn which(&self, meant: impl Fn(&InFlight) -> bool) -> Vec<Digest> {
        let picked = self.by_id.iter().filter(|entry| meant(entry.value()));
        let mut picked: Vec<Digest> = picked.map(|entry| *entry.key()).collect();
        picked.sort_unstable();
        picked
    }

    /// How many are in flight.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use proto_spec::message::LinkRole;

    use super::*;
    use crate::state::links::Bounds;

    #[test]
    fn who_comes_through_a_peer_shares_what_one_agent_may_have() {
        let link = |peer: &str| {
            let (outbox, _) = Outbox::of_link(8, 1_024);
            let key = proto_spec::SigningKey::from_seed(&[1; 32]).public();
            let bounds = Bounds {
                calls_max: 8,
                envelope_bytes_max: 1_024,
            };
            let (org, role) = (peer.parse().unwrap(), LinkRole::Dials);
            Arc::new(Link::new(
                outbox,
                org,
                key,
                role,
                Timestamp::default(),
                bounds,
            ))
        };
        let agent = |text: &str| text.parse::<AgentId>().unwrap();
        let (from, to) = (link("acme"), link("initech"));
        let acmes = Reply::Party(Party::Link(Arc::clone(&from)));
        // On the way there; whoever they say they are.
        let mut seats = Vec::new();
        for n in 0..8 {
            let guest = towards_provider(&agent(&format!("x{n}@acme")), &acmes);
            seats.extend(to.calls_to.take(&guest, 1));
        }
        assert_eq!(seats.len(), 4);
        let (answer, _) = oneshot::channel();
        let own = towards_provider(&agent("own@globex"), &Reply::Post(answer));
        assert!(to.calls_to.take(&own, 1).is_some());
        // And where they come in: acme's own agents each by itself, those behind it together.
        assert_ne!(from.guest(&agent("x@acme")), from.guest(&agent("y@acme")));
        assert_eq!(from.guest(&agent("x@hooli")), from.guest(&agent("y@hooli")));
    }
}
