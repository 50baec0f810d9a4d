//! Register, approve, issue, rotate, revoke: the only code that appends [`Change`]s.
//!
//! One thread takes the orders: check each against the state, make the changes durable, take them over
//! into the state, answer. What was acknowledged is on disk and in force. Orders that do not depend on
//! each other share a sync.

mod admin;
mod agents;
mod bearers;
mod broker_keys;
mod keys;
mod peers;
mod revoking;
mod roots;
mod scope;
mod showing;
mod tokens;
mod trust;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use proto_spec::admission::Permit;
use proto_spec::limits::CAPABILITIES_MAX;
use proto_spec::message::{Ack, TrustNews};
use proto_spec::{
    Authorized, Kind, Name, Newcomer, Org, Pattern, PublicKey, Refusal, SigningKey, Timestamp,
};
use tokio::sync::{mpsc, oneshot};

use crate::change::Change;
use crate::clock::Clock;
use crate::config::Config;
use crate::journal::{Journal, JournalError};
use crate::kept::KeptKeys;
use crate::state::budgets::Need;
use crate::state::snapshot::Snapshots;
use crate::state::{State, Taking};
use crate::voice::Voice;
pub(crate) use keys::Purpose;
use scope::By;
pub(crate) use tokens::first_admin;

/// Orders that may wait for the registrar.
const QUEUE: usize = 1_024;
/// How long the grant of an approval holds when the admin does not say.
const APPROVAL_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Changes that one sync makes durable.
const GROUP_MAX: usize = 256;
/// What an agent may do of its own right within a minute: revocations, key rotations.
const OWN_ACTS_MAX: usize = 60;
/// How often calls of budgets may be reserved for it within a minute.
const RESERVES_MAX: usize = 1_200;
/// Statements and introductions of one peer that change what is on record, within an hour: each is a
/// record for ever.
const TRUST_NEWS_MAX: usize = 1_024;
/// How often a peer's broker may go on under another key within an hour.
const REKEYS_MAX: usize = 4;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
/// Characters of a note or a reason.
const NOTE_CHARS_MAX: usize = 256;

/// Something that needs the registrar: it changes durable state, or reads it as one whole.
#[derive(Debug)]
pub enum Order {
    /// A key asks to become an agent; with the network address it asked from.
    Register(Box<Newcomer>, Origin),
    /// An authorised `revoke`, `rotateKey` or admin act.
    Act(Box<Authorized>),
    /// A call draws on a budget whose reserve is used up.
    Reserve(Need, Name),
    /// A peer's broker goes on under another key, which it proved.
    Rekey(Box<Rekey>),
    /// A peer told news of trust.
    Hear(Org, Box<TrustNews>),
}

/// How a peer's broker goes on.
#[derive(Debug)]
pub struct Rekey {
    /// Which peer.
    pub org: Org,
    /// Its key as it is on record.
    pub from: PublicKey,
    /// Its next key.
    pub to: PublicKey,
}

/// Where a newcomer asked from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Newcomers of one network share what may wait.
    pub network: u64,
    /// For people.
    pub address: String,
}

impl Order {
    /// Whether what it comes to is the same before and after the changes that wait with it.
    fn commutes(&self) -> bool {
        match self {
            Self::Register(..) | Self::Reserve(..) | Self::Rekey(_) | Self::Hear(..) => false,
            Self::Act(act) => matches!(
                act.envelope().kind(),
                Kind::AdminTokenIssue | Kind::AdminEnrolIssue
            ),
        }
    }
}

type Job = (Order, Asker);
/// Whoever waits for what comes of an order: an acknowledgement, save for a reservation.
type Asker = oneshot::Sender<Result<Option<Ack>, Refusal>>;

/// What a desk signs with.
#[derive(Debug)]
pub struct Secrets {
    /// The active root key of tokens.
    pub root: SigningKey,
    /// The keys of agents that only show bearer tokens, where such come.
    pub kept: Option<Arc<KeptKeys>>,
}

/// The way to the registrar's thread.
#[derive(Debug, Clone)]
pub struct Registrar {
    queue: mpsc::Sender<Job>,
}

impl Registrar {
    /// The way to a desk, and the desk.
    #[must_use]
    pub fn new(
        state: Arc<State>,
        journal: Box<dyn Journal>,
        secrets: Secrets,
        voice: Arc<Voice>,
        clock: Arc<Clock>,
        config: Config,
        snapshots: Snapshots,
    ) -> (Self, Desk) {
        let Secrets { root, kept } = secrets;
        let (queue, jobs) = mpsc::channel(QUEUE);
        let desk = Desk {
            jobs,
            snapshots,
            journal,
            state,
            root,
            voice,
            clock,
            config,
            kept,
            own_acts: Shares::new(OWN_ACTS_MAX, MINUTE),
            reserves: Shares::new(RESERVES_MAX, MINUTE),
            news: Shares::new(TRUST_NEWS_MAX, HOUR),
            rekeys: Shares::new(REKEYS_MAX, HOUR),
        };
        (Self { queue }, desk)
    }

    /// Has an order carried out.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] when too many wait, and whatever refuses the order.
    pub async fn order(&self, order: Order) -> Result<Ack, Refusal> {
        self.have(order).await?.ok_or(Refusal::Internal)
    }

    /// Has calls of a budget made durable, so that they can be spent.
    ///
    /// # Errors
    ///
    /// [`Refusal::BudgetSpent`], [`Refusal::Busy`], [`Refusal::StorageFull`].
    pub async fn reserve(&self, need: Need, caller: &Name) -> Result<(), Refusal> {
        let order = Order::Reserve(need, caller.clone());
        self.have(order).await.map(drop)
    }

    /// Has a peer's grants issued anew, to the key that follows its broker's.
    ///
    /// # Errors
    ///
    /// [`Refusal::Conflict`] where the peer is not on record under `from`, [`Refusal::Busy`],
    /// [`Refusal::StorageFull`].
    pub async fn rekey(&self, rekey: Rekey) -> Result<(), Refusal> {
        self.have(Order::Rekey(Box::new(rekey))).await.map(drop)
    }

    /// Has a peer's news of trust put on record, as far as they change anything.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] beyond the peer's share or when too many wait, [`Refusal::StorageFull`].
    pub async fn hear(&self, from: &Org, news: TrustNews) -> Result<(), Refusal> {
        let order = Order::Hear(from.clone(), Box::new(news));
        self.have(order).await.map(drop)
    }

    async fn have(&self, order: Order) -> Result<Option<Ack>, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.queue
            .try_send((order, answer))
            .map_err(|_| Refusal::Busy("the registrar's queue"))?;
        answered.await.map_err(|_| Refusal::Internal)?
    }
}

/// A registrar that panicked may have made something durable that is not in force: a broker that went on
/// without it would serve what was revoked. So it ends, and starts again from its journal.
struct EndOfAll;

impl Drop for EndOfAll {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the registrar panicked: the broker ends");
            std::process::abort();
        }
    }
}

/// What an order comes to.
enum Decision {
    /// Nothing durable: this is the answer.
    Answer(Box<Ack>),
    /// Nothing to do, and nothing to say.
    Nothing,
    /// These are to be made durable and taken over, all or none; then the state as it is gives the answer.
    Change(Vec<Change>, Report),
}

/// Says what was done, when it is.
type Report = Box<dyn FnOnce(&State) -> Option<Ack> + Send>;

fn answer(ack: Ack) -> Decision {
    Decision::Answer(Box::new(ack))
}

fn change(change: Change, report: impl FnOnce(&State) -> Ack + Send + 'static) -> Decision {
    Decision::Change(vec![change], Box::new(|state| Some(report(state))))
}

/// Changes that were decided and wait to be durable, with whom to tell.
type Waiting = (Vec<Change>, Report, Asker);

/// Where orders are decided, one after the other: the only writer of the journal.
pub struct Desk {
    jobs: mpsc::Receiver<Job>,
    // Dropped in this order: none is being written any more when the journal is another's to open, and
    // nobody waits for it while a large state is taken down.
    snapshots: Snapshots,
    journal: Box<dyn Journal>,
    state: Arc<State>,
    root: SigningKey,
    voice: Arc<Voice>,
    clock: Arc<Clock>,
    config: Config,
    /// Keys of agents that only show bearer tokens.
    kept: Option<Arc<KeptKeys>>,
    /// Revocations and rotations of agents, of their own right.
    own_acts: Shares<Name>,
    /// How often calls were reserved for them.
    reserves: Shares<Name>,
    /// What peers told of trust.
    news: Shares<Org>,
    /// How often peers' brokers went on under another key.
    rekeys: Shares<Org>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk")
            .field("org", &self.config.org)
            .finish_non_exhaustive()
    }
}

impl Desk {
    /// Works on a thread of its own, which ends when the last [`Registrar`] is dropped.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn start(mut self) -> std::io::Result<std::thread::JoinHandle<()>> {
        let thread = std::thread::Builder::new().name("registrar".into());
        thread.spawn(move || {
            self.keep_snapshot();
            let _fatal = EndOfAll;
            while let Some(first) = self.jobs.blocking_recv() {
                self.work(first);
            }
        })
    }

    /// Does the orders that wait, on the caller's own thread.
    pub fn catch_up(&mut self) {
        if let Ok(first) = self.jobs.try_recv() {
            self.work(first);
        }
    }

    /// Does this order and those that wait, with one sync for as many changes as do not depend on each other.
    fn work(&mut self, first: Job) {
        let mut waiting: Vec<Waiting> = Vec::new();
        let mut next = Some(first);
        while let Some((order, answer)) = next {
            // What is decided next may depend on what is decided and not in force.
            if !order.commutes() {
                self.commit(&mut waiting);
            }
            // Whoever asked may be gone; what was ordered is done all the same.
            match self.decide(order) {
                Ok(Decision::Change(changes, report)) => {
                    let alone = !changes.iter().all(Change::commutes);
                    waiting.push((changes, report, answer));
                    if alone || waiting.len() == GROUP_MAX {
                        self.commit(&mut waiting);
                    }
                }
                Ok(Decision::Answer(ack)) => drop(answer.send(Ok(Some(*ack)))),
                Ok(Decision::Nothing) => drop(answer.send(Ok(None))),
                Err(refusal) => drop(answer.send(Err(refusal))),
            }
            next = self.jobs.try_recv().ok();
        }
        self.commit(&mut waiting);
    }

    fn decide(&mut self, order: Order) -> Result<Decision, Refusal> {
        match order {
            Order::Register(newcomer, from) => self.register(&newcomer, &from),
            Order::Act(act) => self.act(&act),
            Order::Reserve(need, caller) => self.reserve(need, &caller),
            Order::Rekey(rekey) => self.rekey_peer(&rekey),
            Order::Hear(from, news) => self.hear_trust(from, &news),
        }
    }

    fn act(&mut self, act: &Authorized) -> Result<Decision, Refusal> {
        // Decided before it waited here: the key, and what it may, can have changed meanwhile.
        let agent = self.state.registry.agent(act.agent().name());
        if agent.is_none_or(|agent| agent.key != *act.key()) {
            return Err(Refusal::UnknownAgent(act.agent().clone()));
        }
        let (name, kind) = (act.agent().name(), act.envelope().kind());
        match (kind, act.permit()) {
            (Kind::Revoke, Permit::Held { .. }) => self.check_may(name, Kind::AdminTokenRevoke)?,
            (kind, _) if kind.is_admin() => self.check_may(name, kind)?,
            _ => {}
        }
        match kind {
            Kind::Revoke => self.revoke(act),
            Kind::RotateKey => self.rotate(act),
            kind => self.administer(kind, act.envelope().body(), &By::one(name)),
        }
    }

    fn reserve(&mut self, need: Need, caller: &Name) -> Result<Decision, Refusal> {
        // What was decided before it waited here may be dead, or go on under another id.
        let current = self.state.registry.with_successors(&[need.block]);
        if current.len() > 1 || self.state.revocations.is_revoked(&need.block) {
            return Err(Refusal::TokenRevoked(format!("block {}", need.block)));
        }
        let now = self.clock.now();
        if !self.reserves.take(caller, 1, now) {
            return Err(Refusal::Busy("the agent's share of reservations"));
        }
        let Some(calls) = self.state.budgets.to_reserve(need)? else {
            return Ok(Decision::Nothing);
        };
        let reserved = Change::Reserved {
            block: need.block,
            calls,
            at: now,
        };
        Ok(Decision::Change(vec![reserved], Box::new(|_| None)))
    }

    /// What needs no admin costs a sync and a record for ever all the same: so many, and no more.
    fn count_own_act(&mut self, name: &Name) -> Result<(), Refusal> {
        if self.own_acts.take(name, 1, self.clock.now()) {
            Ok(())
        } else {
            Err(Refusal::Busy(
                "the agent's share of revocations and rotations",
            ))
        }
    }

    /// Makes changes durable, then takes them over, then answers. In this order: what is in force is on
    /// disk, and what was acknowledged is in force.
    fn commit(&mut self, waiting: &mut Vec<Waiting>) {
        if waiting.is_empty() {
            return;
        }
        let changes: Vec<&Change> = waiting.iter().flat_map(|(changes, ..)| changes).collect();
        let appended = self.journal.append(&changes).map_err(|error| {
            tracing::error!(%error, "changes were not made");
            match error {
                JournalError::Write(why) => Refusal::StorageFull(why),
                _ => Refusal::Internal,
            }
        });
        for (changes, report, answer) in waiting.drain(..) {
            let mut take = || changes.iter().try_for_each(|change| self.take_over(change));
            let done = appended.clone().and_then(|()| take());
            drop(answer.send(done.map(|()| report(&self.state))));
        }
        self.keep_snapshot();
    }

    /// Where nothing is decided and not taken over.
    fn keep_snapshot(&mut self) {
        self.snapshots.keep(&self.state, self.journal.head());
    }

    fn take_over(&mut self, change: &Change) -> Result<(), Refusal> {
        self.state.apply(change, Taking::On).map_err(|error| {
            tracing::error!(%error, "a durable change was not taken over");
            Refusal::Internal
        })?;
        self.take_root(change);
        self.take_broker_key(change);
        self.close_sessions_that_lost_their_key(change);
        self.close_link_of(change);
        self.state.changed.send_replace(());
        Ok(())
    }

    /// Nothing crosses from here on: what is still read of its connection finds it closed.
    fn close_link_of(&self, change: &Change) {
        let org = match change {
            Change::PeerPaused {
                org, paused: true, ..
            }
            | Change::PeerRemoved { org, .. } => org,
            _ => return,
        };
        if let Some(link) = self.state.links.of(org) {
            self.state.links.detach(&link);
            link.close();
        }
    }

    fn close_sessions_that_lost_their_key(&self, change: &Change) {
        let names: Vec<&Name> = match change {
            Change::AgentRevoked { name, .. }
            | Change::Approved { name, .. }
            | Change::Enrolled { name, .. }
            | Change::Rotated { name, .. } => vec![name],
            Change::Quarantined { agents, .. } => agents.iter().map(|(name, _)| name).collect(),
            _ => return,
        };
        for name in names {
            let agent = self.state.registry.agent(name);
            for session in self.state.sessions.of(name) {
                if agent
                    .as_ref()
                    .is_none_or(|agent| agent.key != *session.key())
                {
                    // Out of every list first: nothing is routed to it while its connection closes.
                    self.state.sessions.detach(&session);
                    session.close();
                }
            }
        }
    }
}

/// What each did of its own right within a window of time: so much, and no more.
struct Shares<K> {
    window: Duration,
    max: usize,
    used: HashMap<K, (Timestamp, usize)>,
}

impl<K: Hash + Eq + Clone> Shares<K> {
    fn new(max: usize, window: Duration) -> Self {
        Self {
            window,
            max,
            used: HashMap::new(),
        }
    }

    /// Counts so many more of `who`, unless they are too many.
    fn take(&mut self, who: &K, count: usize, now: Timestamp) -> bool {
        let window = self.window;
        self.used
            .retain(|_, (begun, _)| now.distance(*begun) < window);
        let (_, used) = self.used.entry(who.clone()).or_insert((now, 0));
        let is_within = *used + count <= self.max;
        *used += if is_within { count } else { 0 };
        is_within
    }
}

fn bound(what: &str, text: Option<&str>) -> Result<(), Refusal> {
    match text {
        Some(text) if text.chars().count() > NOTE_CHARS_MAX => Err(Refusal::InvalidBody(format!(
            "`{what}` has more than {NOTE_CHARS_MAX} characters"
        ))),
        _ => Ok(()),
    }
}

fn check_count(patterns: &[Pattern]) -> Result<(), Refusal> {
    if patterns.len() > CAPABILITIES_MAX {
        return Err(Refusal::InvalidBody(format!(
            "more than {CAPABILITIES_MAX} patterns"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_refused_when_it_is_used_up_and_whole_again_after_its_window() {
        let mut shares = Shares::new(3, MINUTE);
        let at = |s: u64| Timestamp::from_ms(1_000_000 + s * 1_000);
        assert!(shares.take(&"a", 2, at(0)));
        assert!(!shares.take(&"a", 2, at(1)), "as a whole or not at all");
        assert!(shares.take(&"a", 1, at(59)));
        assert!(!shares.take(&"a", 1, at(59)));
        assert!(shares.take(&"b", 3, at(59)), "others have their own");
        assert!(shares.take(&"a", 3, at(60)));
    }
}
