//! An attached session: what is asked finds its answer, what is delivered is passed on.
//!
//! Everything that comes in is one of two things. A plain envelope is the broker's own word and is
//! believed under the configured key, or one that follows from it, alone. A frame holds what another agent signed, and the broker's
//! credential for that agent's key; only both together are believed. Answers are matched by the
//! identity of what they answer, and each identity waits in one place.

mod attach;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto_spec::admission::{Answer, BrokerSaid, Judge, Me, Vouched};
use proto_spec::frame::{FRAME, Frame};
use proto_spec::limits::{CLOCK_SKEW_MAX, ENVELOPE_BYTES_MAX};
use proto_spec::message::{self, WellKnown, full_names};
use proto_spec::refusal::ErrorBody;
use proto_spec::{
    AgentId, Audience, Digest, Envelope, Kind, PublicKey, Received, Refusal, Sealed, Timestamp,
};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::broker_keys::BrokerKeys;
use crate::call::Answerer;
use crate::clock::Offset;
use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::link::Link;
use crate::link::http::well_known;
use crate::link::ws::{self, Queue, Source};
use crate::tokens::Tokens;
use crate::voice::{Header, Voice};
pub(crate) use attach::Terms;
use attach::shake_hands;
use waiting::{Everybody, Outgoing, Place, Turned, WAITING_MAX, Waiting};

/// Progress of one call that waits for its caller to look. More is dropped; `seq` shows the gap.
const PROGRESS_WAITING: usize = 64;

/// Refusals that wait for a place in a full queue.
const SOON_MAX: usize = 1_024;

/// The broker that this agent believes, and who the agent is.
pub(crate) struct Core {
    pub(crate) link: Link,
    pub(crate) voice: Voice,
    pub(crate) broker: BrokerKeys,
}

/// What a session passes on: what others say to this agent.
pub(crate) trait Receiver: Send + Sync {
    /// Another agent's envelope, and the broker's word for who that is.
    fn delivered(&self, session: &Arc<Session>, vouched: &Arc<Vouched>, received: Received);
    /// What the broker says without having been asked.
    fn said(&self, said: &BrokerSaid);
    /// The session has ended.
    fn ended(&self);
}

/// A living connection that is this agent's.
pub(crate) struct Session {
    core: Arc<Core>,
    queue: Queue,
    terms: Terms,
    tokens: Tokens,
    waiting: Everybody,
    ended: watch::Sender<bool>,
    /// Places for what is said by [`Session::tell_soon`].
    soon: Arc<Semaphore>,
}

/// A call that was sent, from its caller's side.
pub(crate) struct Sent {
    pub(crate) id: Digest,
    pub(crate) progress: mpsc::Receiver<Answer>,
    pub(crate) result: oneshot::Receiver<Result<Answer>>,
}

impl Session {
    /// Connects, answers the broker's challenge, and is told that the connection is ours.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`], [`Error::Tls`], [`Error::NotTheBroker`] and [`Error::Refused`].
    pub(crate) async fn attach(core: &Arc<Core>) -> Result<(Arc<Self>, Source)> {
        let (mut source, mut sink, channel) = ws::open(&core.link).await?;
        let attaching = shake_hands(core, &mut source, &mut sink, channel);
        let terms = tokio::time::timeout(core.link.timeout(), attaching).await;
        let terms =
            terms.unwrap_or_else(|_| Err(core.closed("the broker does not attach us in time")))?;
        let session = Self {
            core: Arc::clone(core),
            queue: sink.into_queue(),
            tokens: Tokens::of(terms.roots.clone()),
            terms,
            waiting: Everybody::new(),
            ended: watch::Sender::new(false),
            soon: Arc::new(Semaphore::new(SOON_MAX)),
        };
        Ok((Arc::new(session), source))
    }

    /// Reads until the connection ends; then everybody who waits learns that their answer is lost.
    pub(crate) async fn read(self: &Arc<Self>, mut source: Source, receiver: &dyn Receiver) {
        // The end is told also when this future is dropped.
        let _end = End {
            session: self,
            receiver,
        };
        let mut credentials = Credentials::default();
        while let Some(bytes) = source.next_or_dead(&self.queue).await {
            let taken = match bytes.first() {
                Some(&FRAME) => self.take_frame(bytes, &mut credentials, receiver),
                _ => self.take_word(bytes, receiver),
            };
            match taken {
                Ok(()) => {}
                Err(Refusal::Busy(what)) => {
                    return tracing::warn!(what, "session ended by us: a bound was reached");
                }
                Err(why) => tracing::warn!(code = %why.code(), %why, "delivery not believed"),
            }
        }
    }

    /// The broker's own word: an answer, or something it tells us.
    fn take_word(&self, bytes: Bytes, receiver: &dyn Receiver) -> Result<(), Refusal> {
        let received = Received::parse(bytes, ENVELOPE_BYTES_MAX)?;
        let said = self.core.broker.said(received, self.core.now())?;
        let envelope = said.envelope();
        // What answers something is for us by name; without that it could be another's answer.
        let re = envelope.re().filter(|_| envelope.to().is_some());
        let waiting = match (envelope.kind(), re) {
            (Kind::Ack | Kind::Error | Kind::ToolsDiscovered | Kind::ToolResult, Some(re)) => {
                self.waiting.take(&re).map(|waiting| (waiting, re))
            }
            _ => None,
        };
        match waiting {
            Some((Waiting::Question(answer), _)) => {
                let _ = answer.send(refusal_in(envelope).map_or_else(|| Ok(envelope.clone()), Err));
            }
            Some((Waiting::Call(call), id)) => {
                let word = call.answerer.word(said, &id);
                let _ = call.result.send(word);
            }
            None if envelope.kind() == Kind::Roots => self.take_roots(envelope)?,
            None if envelope.kind() == Kind::Succession => {
                self.core.broker.learn(&[text(envelope)]);
            }
            None => receiver.said(&said),
        }
        Ok(())
    }

    /// The organisation's root keys have changed.
    fn take_roots(&self, envelope: &Envelope) -> Result<(), Refusal> {
        let message::Roots { roots } = envelope.read_body()?;
        self.tokens.root_in(roots, envelope.ts());
        Ok(())
    }

    /// This organisation's tokens, as they are presented to this agent.
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// What another agent signed.
    fn take_frame(
        self: &Arc<Self>,
        bytes: Bytes,
        credentials: &mut Credentials,
        receiver: &dyn Receiver,
    ) -> Result<(), Refusal> {
        let frame = Frame::decode(bytes)?;
        let (ours, core) = (self.core.now(), &self.core);
        let theirs = self.broker_clock().at(ours);
        let check = |bytes| core.broker.vouched(bytes, theirs, Duration::ZERO, ours);
        let vouched = credentials.resolve(&frame.vouching, check, theirs)?;
        let received = received(frame.envelope, &vouched)?;
        let envelope = received.envelope();
        match (envelope.kind(), envelope.re()) {
            (Kind::ToolProgress, Some(call)) => self.take_progress(received, &vouched, call),
            (Kind::ToolResult, Some(call)) => self.take_result(received, &vouched, call),
            _ => {
                receiver.delivered(self, &vouched, received);
                Ok(())
            }
        }
    }

    fn take_progress(
        &self,
        received: Received,
        vouched: &Vouched,
        call: Digest,
    ) -> Result<(), Refusal> {
        let answer = self.answer(received, vouched, call)?;
        self.waiting.progress(&call, answer);
        Ok(())
    }

    /// What does not prove to be the provider's answer leaves the call waiting: whoever can slip in
    /// a forgery must not be able to end a call with it.
    fn take_result(
        &self,
        received: Received,
        vouched: &Vouched,
        call: Digest,
    ) -> Result<(), Refusal> {
        let answer = self.answer(received, vouched, call)?;
        if let Some(Waiting::Call(outgoing)) = self.waiting.take(&call) {
            let _ = outgoing.result.send(Ok(answer));
        }
        Ok(())
    }

    /// Checks that this is an answer to `call`, by the agent that was called.
    fn answer(
        &self,
        received: Received,
        vouched: &Vouched,
        call: Digest,
    ) -> Result<Answer, Refusal> {
        let provider = self.waiting.provider_of(&call).ok_or(Refusal::NoSuchCall)?;
        Answer::check(received, vouched, &provider, self.core.voice.id(), &call)
    }

    /// Asks the broker and waits for its word.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], and [`Error::OutcomeUnknown`] where the session ended first.
    pub(crate) async fn ask<B: Serialize + ?Sized>(
        &self,
        kind: Kind,
        to: &Audience,
        body: &B,
    ) -> Result<Envelope> {
        let question = self.core.voice.say(kind, to, Header::default(), body)?;
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting::Question(answer);
        // Given up here when it is late, or when the question is dropped.
        let _place = self.send_waiting(question, waiting).await?;
        match tokio::time::timeout(self.core.link.timeout(), answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::OutcomeUnknown(
                "the session ended before the answer".into(),
            )),
            Err(_) => Err(Error::OutcomeUnknown(
                "the broker did not answer in time".into(),
            )),
        }
    }

    /// Sends a call; its answer comes by what is returned.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`] where it was not sent.
    pub(crate) async fn call(&self, call: Sealed, answerer: Answerer) -> Result<Sent> {
        let (progress, progressing) = mpsc::channel(PROGRESS_WAITING);
        let (result, resulting) = oneshot::channel();
        let id = call.id;
        let waiting = Waiting::Call(Outgoing {
            answerer,
            progress,
            result,
        });
        self.send_waiting(call, waiting).await?.stay();
        Ok(Sent {
            id,
            progress: progressing,
            result: resulting,
        })
    }

    /// Says something that needs no answer.
    pub(crate) async fn tell(&self, envelope: Sealed) -> Result<()> {
        self.queue
            .send(envelope.bytes)
            .await
            .map_err(|_| self.not_sent())
    }

    /// Like [`Session::tell`], for those who must not wait. What does not fit is not sent.
    pub(crate) fn try_tell(&self, envelope: Sealed) -> Result<()> {
        self.queue
            .try_send(envelope.bytes)
            .map_err(|_| self.not_sent())
    }

    /// Says something from where waiting is not possible: at once, or in a task where the queue is
    /// full. There is a bound to those tasks too; at it, what was to be said is not said.
    pub(crate) fn tell_soon(self: &Arc<Self>, envelope: Sealed) -> Result<()> {
        let Err(_) = self.queue.try_send(envelope.bytes.clone()) else {
            return Ok(());
        };
        let place = Arc::clone(&self.soon).try_acquire_owned();
        match (tokio::runtime::Handle::try_current(), place) {
            (Ok(runtime), Ok(place)) => {
                let queue = self.queue.clone();
                runtime.spawn(async move {
                    let _ = queue.send(envelope.bytes).await;
                    drop(place);
                });
                Ok(())
            }
            _ => Err(self.not_sent()),
        }
    }

    /// Sends what is to be answered. Whoever drops the place that is given back does not wait for the
    /// answer any more; so does what is dropped before it was sent, for nobody will answer it.
    async fn send_waiting(&self, envelope: Sealed, waiting: Waiting) -> Result<Place<'_>> {
        if envelope.bytes.len() > self.terms.envelope_bytes_max {
            return Err(too_long(
                envelope.bytes.len(),
                self.terms.envelope_bytes_max,
            ));
        }
        let place = self
            .waiting
            .wait(envelope.id, waiting)
            .map_err(|turned| match turned {
                Turned::Ended => self.not_sent(),
                Turned::Full => Error::Busy(WAITING_MAX),
            })?;
        self.queue
            .send(envelope.bytes)
            .await
            .map_err(|_| self.not_sent())?;
        Ok(place)
    }

    /// The caller of `id` no longer wants its answer.
    pub(crate) fn forget(&self, id: &Digest) {
        drop(self.waiting.take(id));
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.terms
    }

    pub(crate) fn voice(&self) -> &Voice {
        &self.core.voice
    }

    /// The clock by which everything that comes over this session is judged. Its callers were judged
    /// by it too, so whom the broker accepts the agent accepts.
    pub(crate) fn broker_clock(&self) -> Offset {
        self.terms.broker_clock
    }

    /// Judges what others signed for this agent, at this moment.
    pub(crate) fn judge(&self) -> Judge<'_> {
        Judge {
            me: Me::Agent(self.core.voice.id()),
            skew: self.terms.skew,
            now: self.broker_clock().at(self.core.now()),
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Done when the session has ended.
    pub(crate) async fn end(&self) {
        // The sender lives as long as `self`: waiting cannot fail.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    fn not_sent(&self) -> Error {
        self.core.closed("the session has ended")
    }
}

impl Core {
    pub(crate) fn closed(&self, why: &str) -> Error {
        Error::Unreachable {
            broker: self.link.endpoint().to_string(),
            why: why.into(),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.voice.now()
    }

    /// The broker's own word, where there is time to find out that its key was followed by another.
    ///
    /// # Errors
    ///
    /// [`Error::NotTheBroker`].
    pub(crate) async fn believe(&self, word: Bytes) -> Result<BrokerSaid> {
        let check = || {
            let received = Received::parse(word.clone(), ENVELOPE_BYTES_MAX)?;
            self.broker.said(received, self.now())
        };
        match check() {
            Err(Refusal::BadSignature) => {
                let shown = self.catch_up().await;
                check().map_err(|why| self.not_the_broker(why, shown))
            }
            checked => checked.map_err(|why| self.not_the_broker(why, None)),
        }
    }

    /// The broker's word for another agent, where no session tells the broker's time. Where the clocks differ
    /// by no more than is permitted, it is within that of ours.
    ///
    /// # Errors
    ///
    /// [`Error::NotTheBroker`] where the broker says itself that it has another key. The inner ones, those
    /// of [`Vouched::check`], are about this word alone.
    pub(crate) async fn vouched(&self, credential: Bytes) -> Result<Result<Vouched, Refusal>> {
        let check = || {
            let now = self.now();
            self.broker
                .vouched(credential.clone(), now, CLOCK_SKEW_MAX, now)
        };
        let vouched = check();
        if !matches!(vouched, Err(Refusal::BadSignature)) {
            return Ok(vouched);
        }
        let shown = self.catch_up().await;
        match check() {
            Err(why @ Refusal::BadSignature)
                if shown.is_some_and(|key| key != self.broker.pinned()) =>
            {
                Err(self.not_the_broker(why, shown))
            }
            vouched => Ok(vouched),
        }
    }

    /// Asks how the broker's keys followed one another. What it says is believed as far as it leads on from
    /// the key that we have; the key that it claims is for people to compare.
    pub(crate) async fn catch_up(&self) -> Option<PublicKey> {
        let asked = tokio::time::timeout(self.link.timeout(), well_known(&self.link)).await;
        let shown: WellKnown = serde_json::from_slice(&asked.ok()?.ok()?).ok()?;
        self.broker.learn(&shown.successions);
        Some(shown.key)
    }

    fn not_the_broker(&self, why: Refusal, shown: Option<PublicKey>) -> Error {
        Error::NotTheBroker {
            why,
            configured: self.broker.pinned().fingerprint(),
            shown: shown.map(|key| key.fingerprint()),
        }
    }
}

/// Tells the end of a session, whichever way it ends.
struct End<'a> {
    session: &'a Session,
    receiver: &'a dyn Receiver,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        let waiting = self.session.waiting.close();
        self.session.ended.send_replace(true);
        self.receiver.ended();
        // Dropping them tells those who wait.
        drop(waiting);
    }
}

/// What another agent signed. Whether it may be in an older agent's words is the broker's to say, as is the full
/// name of the tool that one calls by a shorter name.
fn received(bytes: Bytes, vouched: &Vouched) -> Result<Received, Refusal> {
    let older = vouched.credential().permit.as_ref().filter(|one| one.older);
    let Some(permit) = older else {
        return Received::parse(bytes, ENVELOPE_BYTES_MAX);
    };
    let full_name = |agent: &AgentId, bare: &str| {
        full_names(agent.name(), bare).find(|name| *name == permit.tool)
    };
    let org = permit.provider.org();
    Received::parse_older(bytes, ENVELOPE_BYTES_MAX, org, full_name)
}

/// The broker's refusal, if that is what the envelope is.
pub(crate) fn refusal_in(envelope: &Envelope) -> Option<Error> {
    if envelope.kind() != Kind::Error {
        return None;
    }
    Some(match envelope.read_body::<ErrorBody>() {
        Ok(body) => Error::refused(body),
        Err(why) => Error::Unexpected(format!("an `error` without a code ({why})")),
    })
}

/// The body of an envelope of the broker that has to be of one kind.
pub(crate) fn expect<T: serde::de::DeserializeOwned>(envelope: &Envelope, kind: Kind) -> Result<T> {
    if envelope.kind() != kind {
        return Err(Error::Unexpected(format!("`{}`", envelope.kind())));
    }
    envelope
        .read_body()
        .map_err(|why| Error::Unexpected(format!("`{kind}`: {why}")))
}

/// A whole envelope as text: it was parsed, so it is UTF-8.
fn text(envelope: &Envelope) -> String {
    String::from_utf8_lossy(envelope.bytes()).into_owned()
}

pub(crate) fn too_long(bytes: usize, most: usize) -> Error {
    Error::Unsendable(format!("{bytes} bytes, and the broker takes {most}"))
}
