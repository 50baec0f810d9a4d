//! Register, approve, issue, rotate, revoke: the only code that appends [`Change`]s.
//!
//! One thread takes the orders: check each against the state, make the changes durable, take them over
//! into the state, answer. What was acknowledged is on disk and in force. Orders that do not depend on
//! each other share a sync.

mod agents;
mod scope;
mod tokens;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proto_spec::admission::Permit;
use proto_spec::limits::CAPABILITIES_MAX;
use proto_spec::message::Ack;
use proto_spec::{Authorized, Kind, Name, Newcomer, Pattern, Refusal, SigningKey, Timestamp};
use tokio::sync::{mpsc, oneshot};

use crate::change::Change;
use crate::clock::Clock;
use crate::config::Limits;
use crate::journal::{Journal, JournalError};
use crate::state::State;
pub(crate) use tokens::first_admin;

/// Orders that may wait for the registrar.
const QUEUE: usize = 1_024;
/// How long the grant of an approval holds when the admin does not say.
const APPROVAL_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Records on one page of a list.
const PAGE: usize = 500;
/// Changes that one sync makes durable.
const GROUP_MAX: usize = 256;
/// What an agent may do of its own right within a minute: revocations, key rotations.
const OWN_ACTS_MAX: u32 = 60;
const OWN_ACTS_WINDOW: Duration = Duration::from_secs(60);
/// Characters of a note or a reason.
const NOTE_CHARS_MAX: usize = 256;

/// Something that needs the registrar: it changes durable state, or reads it as one whole.
#[derive(Debug)]
pub enum Order {
    /// A key asks to become an agent; with the network address it asked from.
    Register(Box<Newcomer>, String),
    /// An authorised `revoke`, `rotateKey` or admin act.
    Act(Box<Authorized>),
}

impl Order {
    /// Whether what it comes to is the same before and after the changes that wait with it.
    fn commutes(&self) -> bool {
        match self {
            Self::Register(..) => false,
            Self::Act(act) => matches!(
                act.envelope().kind(),
                Kind::Revoke | Kind::AdminTokenIssue | Kind::AdminEnrolIssue
            ),
        }
    }
}

type Job = (Order, oneshot::Sender<Result<Ack, Refusal>>);

/// The way to the registrar's thread.
#[derive(Debug, Clone)]
pub struct Registrar {
    queue: mpsc::Sender<Job>,
}

impl Registrar {
    /// Starts the thread. It ends when the last `Registrar` is dropped.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn start(
        state: Arc<State>,
        journal: Box<dyn Journal>,
        root: SigningKey,
        clock: Arc<Clock>,
        limits: Limits,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (queue, mut jobs) = mpsc::channel::<Job>(QUEUE);
        let mut desk = Desk {
            state,
            journal,
            root,
            clock,
            limits,
            own_acts: HashMap::new(),
        };
        let thread = std::thread::Builder::new()
            .name("registrar".into())
            .spawn(move || {
                while let Some(first) = jobs.blocking_recv() {
                    desk.work(first, &mut jobs);
                }
            })?;
        Ok((Self { queue }, thread))
    }

    /// Has an order carried out.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] when too many wait, and whatever refuses the order.
    pub async fn order(&self, order: Order) -> Result<Ack, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.queue
            .try_send((order, answer))
            .map_err(|_| Refusal::Busy("the registrar's queue"))?;
        answered.await.map_err(|_| Refusal::Internal)?
    }
}

/// What an order comes to.
enum Decision {
    /// Nothing durable: this is the answer.
    Answer(Ack),
    /// This is to be made durable and taken over; then the state as it is gives the answer.
    Change(Box<Change>, Report),
}

/// Says what was done, when it is.
type Report = Box<dyn FnOnce(&State) -> Ack + Send>;

fn change(change: Change, report: impl FnOnce(&State) -> Ack + Send + 'static) -> Decision {
    Decision::Change(Box::new(change), Box::new(report))
}

/// A change that was decided and waits to be durable, with whom to tell.
type Waiting = (Box<Change>, Report, oneshot::Sender<Result<Ack, Refusal>>);

struct Desk {
    state: Arc<State>,
    journal: Box<dyn Journal>,
    root: SigningKey,
    clock: Arc<Clock>,
    limits: Limits,
    /// What agents did of their own right within the last [`OWN_ACTS_WINDOW`].
    own_acts: HashMap<Name, (Timestamp, u32)>,
}

impl Desk {
    /// Does the orders that wait, with one sync for as many changes as do not depend on each other.
    fn work(&mut self, first: Job, jobs: &mut mpsc::Receiver<Job>) {
        let mut waiting: Vec<Waiting> = Vec::new();
        let mut next = Some(first);
        while let Some((order, answer)) = next {
            // What is decided next may depend on what is decided and not in force.
            if !order.commutes() {
                self.commit(&mut waiting);
            }
            // Whoever asked may be gone; what was ordered is done all the same.
            match self.decide(order) {
                Ok(Decision::Change(change, report)) => {
                    let alone = !change.commutes();
                    waiting.push((change, report, answer));
                    if alone || waiting.len() == GROUP_MAX {
                        self.commit(&mut waiting);
                    }
                }
                Ok(Decision::Answer(ack)) => drop(answer.send(Ok(ack))),
                Err(refusal) => drop(answer.send(Err(refusal))),
            }
            next = jobs.try_recv().ok();
        }
        self.commit(&mut waiting);
    }

    fn decide(&mut self, order: Order) -> Result<Decision, Refusal> {
        match order {
            Order::Register(newcomer, from) => self.register(&newcomer, &from),
            Order::Act(act) => self.act(&act),
        }
    }

    fn act(&mut self, act: &Authorized) -> Result<Decision, Refusal> {
        // Decided before it waited here: the key, and what it may, can have changed meanwhile.
        let agent = self.state.registry.agent(act.agent().name());
        if agent.is_none_or(|agent| agent.key != *act.key()) {
            return Err(Refusal::UnknownAgent(act.agent().clone()));
        }
        self.check_still_holds(act)?;
        match act.envelope().kind() {
            Kind::Revoke => self.revoke(act),
            Kind::RotateKey => self.rotate(act),
            Kind::AdminAgentList => self.list_agents(act),
            Kind::AdminAgentShow => self.show(act),
            Kind::AdminAgentApprove => self.approve(act),
            Kind::AdminAgentDeny => self.deny(act),
            Kind::AdminAgentRevoke => self.revoke_agent(act),
            Kind::AdminTokenIssue => self.issue(act),
            Kind::AdminTokenList => self.list_tokens(act),
            Kind::AdminEnrolIssue => self.issue_enrolment(act),
            kind => Err(Refusal::UnknownType(kind.to_string())),
        }
    }

    /// Asks again what permitted an act that is done by a grant on record.
    fn check_still_holds(&self, act: &Authorized) -> Result<(), Refusal> {
        let Permit::Held {
            token: Some(token), ..
        } = act.permit()
        else {
            return Ok(());
        };
        self.state
            .revocations
            .alive(token)
            .map_err(|_| Refusal::Denied(act.envelope().kind().to_string()))
    }

    /// What needs no admin costs a sync and a record for ever all the same: so many, and no more.
    fn count_own_act(&mut self, name: &Name) -> Result<(), Refusal> {
        let now = self.clock.now();
        self.own_acts
            .retain(|_, (begun, _)| now.distance(*begun) < OWN_ACTS_WINDOW);
        let (_, count) = self.own_acts.entry(name.clone()).or_insert((now, 0));
        if *count >= OWN_ACTS_MAX {
            return Err(Refusal::Busy(
                "the agent's share of revocations and rotations",
            ));
        }
        *count += 1;
        Ok(())
    }

    /// Makes changes durable, then takes them over, then answers. In this order: what is in force is on
    /// disk, and what was acknowledged is in force.
    fn commit(&mut self, waiting: &mut Vec<Waiting>) {
        if waiting.is_empty() {
            return;
        }
        let changes: Vec<&Change> = waiting.iter().map(|(change, ..)| &**change).collect();
        let appended = self.journal.append(&changes).map_err(|error| {
            tracing::error!(%error, "changes were not made");
            match error {
                JournalError::Write(why) => Refusal::StorageFull(why),
                _ => Refusal::Internal,
            }
        });
        for (change, report, answer) in waiting.drain(..) {
            let done = appended.clone().and_then(|()| self.take_over(&change));
            drop(answer.send(done.map(|()| report(&self.state))));
        }
    }

    fn take_over(&self, change: &Change) -> Result<(), Refusal> {
        self.state.apply(change).map_err(|error| {
            tracing::error!(%error, "a durable change was not taken over");
            Refusal::Internal
        })?;
        self.close_sessions_that_lost_their_key(change);
        Ok(())
    }

    fn close_sessions_that_lost_their_key(&self, change: &Change) {
        let (Change::AgentRevoked { name, .. }
        | Change::Approved { name, .. }
        | Change::Enrolled { name, .. }
        | Change::Rotated { name, .. }) = change
        else {
            return;
        };
        let key = self.state.registry.agent(name).map(|agent| agent.key);
        for session in self.state.sessions.of(name) {
            if Some(*session.key()) != key {
                // Out of every list first: nothing is routed to it while its connection closes.
                self.state.sessions.detach(&session);
                session.close();
            }
        }
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

/// One page of what is sorted by `position`, beginning after `after`.
fn page<T>(
    all: impl Iterator<Item = T>,
    position: impl Fn(&T) -> String,
    after: Option<String>,
) -> (Vec<T>, Option<String>) {
    let after = after.unwrap_or_default();
    let mut rest = all
        .filter(|one| after.is_empty() || position(one) > after)
        .peekable();
    let page: Vec<T> = rest.by_ref().take(PAGE).collect();
    let next = rest.peek().and(page.last()).map(position);
    (page, next)
}
