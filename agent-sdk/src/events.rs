//! Events: what others emit on topics, at most once, with word of what was missed.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use proto_spec::admission::Vouched;
use proto_spec::message::{EmitEvent, Topics};
use proto_spec::{AgentId, Audience, Capability, Kind, Pattern, Received, Refusal, Timestamp};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::{Error, Result};
use crate::line::{Hold, Line};
use crate::seen::Seen;
use crate::session::Session;
use crate::voice::Header;

/// Events of one subscription that wait to be looked at; more are missed, and counted.
const EVENTS_WAITING: usize = 256;

/// What a subscription brings.
#[derive(Debug, Clone)]
pub enum Event {
    /// Somebody emitted this; signed by them.
    Emitted(Emitted),
    /// Some were missed here.
    Missed(Missed),
}

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Emitted {
    /// What it is about; a topic of another organisation's is `peer.ORG.TOPIC`.
    pub topic: Capability,
    /// Who says so.
    pub from: AgentId,
    /// When it was signed, by the emitter's clock.
    pub at: Timestamp,
    /// What happened.
    pub data: Box<RawValue>,
}

impl Emitted {
    /// What happened, as a `T`.
    ///
    /// # Errors
    ///
    /// [`Error::Answer`] where it is not one.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(self.data.get()).map_err(|why| Error::Answer(why.to_string()))
    }
}

/// What is known about what was missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Missed {
    /// So many at least: those that the broker or this agent had no room for.
    pub count: u64,
    /// The session was lost in between: any number more.
    pub reconnected: bool,
}

/// Everybody in this agent who listens.
#[derive(Default)]
pub(crate) struct Hearers(Mutex<Vec<Arc<Hearer>>>);

struct Hearer {
    topics: Vec<Pattern>,
    events: mpsc::Sender<Result<Event>>,
    /// Not zero while the queue was full: then what follows is missed too, so that order holds.
    missed: Mutex<Missed>,
}

impl Hearers {
    /// An event as its emitter signed it.
    ///
    /// # Errors
    ///
    /// What the event was refused with; nobody hears it then.
    pub(crate) fn delivered(
        &self,
        session: &Session,
        vouched: &Vouched,
        received: Received,
        seen: &Seen,
    ) -> Result<(), Refusal> {
        let judge = session.judge();
        let event = received
            .verify(vouched)?
            .admit(&judge, &seen.by(session.broker_clock()))?
            .accept_event(vouched, &judge)?;
        let envelope = event.envelope();
        let Some(Audience::Topic(org, topic)) = envelope.to() else {
            return Err(Refusal::WrongAudience(envelope.to().cloned()));
        };
        let topic = match org == session.voice().id().org() {
            true => topic.clone(),
            false => topic
                .under(&format!("peer.{org}"))
                .map_err(|why| Refusal::InvalidBody(why.to_string()))?,
        };
        let body: EmitEvent<'_> = envelope.read_body()?;
        let emitted = Emitted {
            topic: topic.clone(),
            from: event.agent().clone(),
            at: envelope.ts(),
            data: body.data.to_owned(),
        };
        let topic = Pattern::from(topic);
        for hearer in self
            .all()
            .iter()
            .filter(|h| h.topics.iter().any(|p| p.covers(&topic)))
        {
            hearer.hear(emitted.clone());
        }
        Ok(())
    }

    /// The broker says how many events this session was too slow for.
    pub(crate) fn missed(&self, missed: Missed) {
        for hearer in self.all().iter() {
            hearer.miss(missed);
        }
    }

    fn all(&self) -> MutexGuard<'_, Vec<Arc<Hearer>>> {
        // Nothing that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hearer {
    fn hear(&self, emitted: Emitted) {
        let mut missed = self.missed();
        let room = *missed == Missed::default()
            && self.events.try_send(Ok(Event::Emitted(emitted))).is_ok();
        if !room {
            missed.count = missed.count.saturating_add(1);
        }
    }

    fn miss(&self, more: Missed) {
        let mut missed = self.missed();
        let room =
            *missed == Missed::default() && self.events.try_send(Ok(Event::Missed(more))).is_ok();
        if !room {
            missed.count = missed.count.saturating_add(more.count);
            missed.reconnected |= more.reconnected;
        }
    }

    /// What was missed after all that waits, if anything was.
    fn take_missed(&self) -> Option<Missed> {
        let missed = std::mem::take(&mut *self.missed());
        (missed != Missed::default()).then_some(missed)
    }

    fn missed(&self) -> MutexGuard<'_, Missed> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A subscription that lives across lost sessions. Dropping it ends it.
///
/// It is a [`Stream`]; an error is its last item, and says why the broker no longer lets this agent
/// listen.
pub struct Subscription {
    events: mpsc::Receiver<Result<Event>>,
    hearer: Arc<Hearer>,
    hearers: Arc<Hearers>,
    line: Arc<Line>,
    listening: JoinHandle<()>,
}

impl Subscription {
    /// Subscribes, and goes on doing so on every new session.
    pub(crate) async fn begin(
        line: &Arc<Line>,
        hearers: &Arc<Hearers>,
        topics: Vec<Pattern>,
    ) -> Result<Self> {
        let (sender, events) = mpsc::channel(EVENTS_WAITING);
        let hearer = Arc::new(Hearer {
            topics,
            events: sender,
            missed: Mutex::default(),
        });
        // Listening before asking: the first event may come before the broker's answer.
        hearers.all().push(Arc::clone(&hearer));
        let mut subscription = Self {
            events,
            hearer: Arc::clone(&hearer),
            hearers: Arc::clone(hearers),
            line: Arc::clone(line),
            listening: tokio::spawn(async {}),
        };
        let hold = line.hold();
        let session = line.session().await?;
        ask(&session, Kind::Subscribe, hearer.topics.clone()).await?;
        subscription.listening = tokio::spawn(listen(hold, session, hearer));
        Ok(subscription)
    }

    /// The next event, or word of what was missed. None after an error.
    pub async fn next(&mut self) -> Option<Result<Event>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Event>>> {
        if let Ok(waiting) = self.events.try_recv() {
            return Poll::Ready(Some(waiting));
        }
        if let Some(missed) = self.hearer.take_missed() {
            return Poll::Ready(Some(Ok(Event::Missed(missed))));
        }
        let event = ready!(self.events.poll_recv(context));
        if matches!(event, Some(Err(_))) {
            self.events.close();
        }
        Poll::Ready(event)
    }
}

impl Stream for Subscription {
    type Item = Result<Event>;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(context)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.listening.abort();
        let mut all = self.hearers.all();
        all.retain(|other| !Arc::ptr_eq(other, &self.hearer));
        let still = |topic: &Pattern| all.iter().any(|other| other.topics.contains(topic));
        let topics: Vec<_> = self
            .hearer
            .topics
            .iter()
            .filter(|topic| !still(topic))
            .cloned()
            .collect();
        drop(all);
        let Some(session) = self.line.living().filter(|_| !topics.is_empty()) else {
            return;
        };
        let voice = session.voice();
        let said = voice.say(
            Kind::Unsubscribe,
            voice.broker(),
            Header::default(),
            &Topics { topics },
        );
        // What comes nevertheless finds nobody who listens.
        let _ = said.and_then(|envelope| session.try_tell(envelope));
    }
}

async fn ask(session: &Session, kind: Kind, topics: Vec<Pattern>) -> Result<()> {
    let broker = session.voice().broker();
    session
        .ask(kind, broker, &Topics { topics })
        .await
        .map(drop)
}

/// Subscribes again on each new session, until the broker refuses for good.
async fn listen(hold: Hold, mut session: Arc<Session>, hearer: Arc<Hearer>) {
    loop {
        session.end().await;
        let again = async {
            loop {
                session = hold.session().await?;
                match ask(&session, Kind::Subscribe, hearer.topics.clone()).await {
                    Ok(()) => return Ok(()),
                    Err(Error::Refused {
                        code,
                        message,
                        retryable: false,
                    }) => {
                        return Err(Error::Refused {
                            code,
                            message,
                            retryable: false,
                        });
                    }
                    Err(why) => {
                        tracing::warn!(%why, "subscribing again");
                        session.voice().clock().sleep(AGAIN).await;
                    }
                }
            }
        };
        if let Err(why) = again.await {
            let _ = hearer.events.send(Err(why)).await;
            return;
        }
        hearer.miss(Missed {
            count: 0,
            reconnected: true,
        });
    }
}

/// Between two attempts to subscribe on a living session.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(1);
