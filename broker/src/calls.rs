//! The life of a call: delivered, fed, answered once, or ended by deadline, cancellation or loss.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use lru::LruCache;
use proto_spec::admission::{Authority as _, Permit};
use proto_spec::capability::{Question, Token};
use proto_spec::limits::CREDENTIAL_VALIDITY;
use proto_spec::message::{Basis, EmitEvent, Event, ToolCancel, ToolResult, VIA_FEP};
use proto_spec::refusal::ErrorBody;
use proto_spec::{
    AgentId, Audience, Authorized, Capability, Digest, Kind, PublicKey, Refusal, Timestamp,
};
use tokio::sync::oneshot;

use crate::delivery::{about_call, about_sender, deliver, permit_of, relay, vouch};
use crate::locks::lock;
use crate::pipeline::{Core, Door, Standing, Step};
use crate::routing::{self, Route, Way};
use crate::state::budgets::{Need, Spent};
use crate::state::calls::{Answer, InFlight, Party, Reply, towards_provider};
use crate::state::links::Link;
use crate::state::outbox::Outbox;
use crate::state::registry::grant_id;
use crate::state::room::{Guest, Seat};
use crate::state::sessions::{CredentialKey, Session, Subscription};
use crate::transit::{pass_call, relay_call, tell_event};

/// One moment of a broker: what it does with a call now.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The broker.
    pub core: &'a Core,
    /// The moment.
    pub now: Timestamp,
}

/// How far making a call came.
#[derive(Debug)]
pub enum Called {
    /// It is delivered.
    Done(Step),
    /// Nothing was done: calls of its budget have to be made durable first.
    Reserve(Need),
}

impl Place<'_> {
    /// Delivers a call to one session of its provider.
    ///
    /// # Errors
    ///
    /// Those of [`routing::choose`], and [`Refusal::Busy`] at every bound.
    pub fn call(&self, call: &Authorized, door: &Door) -> Result<Called, Refusal> {
        let core = self.core;
        let limits = &core.config.limits;
        let route = routing::choose(call, &core.state, self.now)?;
        let party = route.way.party();
        let (reply, waiting) = match door.party() {
            Some(caller) => (Reply::Party(caller), None),
            None => {
                let (answer, answered) = oneshot::channel();
                (Reply::Post(answer), Some(answered))
            }
        };
        let guest = towards_provider(call.agent(), &reply);
        let seats = self.seats(call.agent(), &guest, &reply, &party)?;
        let patience = call
            .envelope()
            .deadline()
            .unwrap_or_else(|| limits.deadline());
        // `routing::choose` gave no route to a call that stands on nothing.
        let Permit::Held {
            token: Some(token),
            capability,
            basis,
            ..
        } = call.permit()
        else {
            return Err(Refusal::Internal);
        };
        let budgets = &core.state.budgets;
        if let Spent::Reserve(need) = budgets.spend(token)? {
            return Ok(Called::Reserve(need));
        }
        let in_flight = InFlight {
            token: Arc::clone(token),
            bearer: match door {
                Door::Bearer(_, bearer) => Some(Arc::clone(bearer)),
                _ => None,
            },
            required: capability.clone(),
            on_record: *basis == Basis::Record,
            caller: call.agent().clone(),
            reply,
            provider: route.provider.clone(),
            at: party,
            received: self.now,
            deadline: self.now.later(patience),
            progress: route.progress,
            seats,
        };
        core.state
            .calls
            .begin(call.id(), in_flight)
            .inspect_err(|_| budgets.give_back(token))?;
        // What permitted it may have been revoked since it was decided. Whoever revokes looks for calls
        // after the change; this looks for the change after the call is listed: one of the two sees it.
        let is_struck = core
            .state
            .calls
            .look(&call.id(), |call| self.is_struck(call));
        // A peer's agent is known by the token alone.
        let is_known = *basis == Basis::Peer || core.state.has_key(call.agent().name(), call.key());
        let delivered = if is_struck != Some(false) || !is_known {
            Err(Refusal::TokenRevoked("what permitted this call".into()))
        } else {
            self.deliver_call(call, &guest, &route, door)
        };
        if let Err(refusal) = delivered {
            drop(core.state.calls.end(&call.id()));
            budgets.give_back(token);
            return Err(refusal);
        }
        Ok(Called::Done(match waiting {
            Some(answered) => Step::Wait(call.id(), answered),
            None => Step::Nothing,
        }))
    }

    /// What a call takes of the sessions and links at its two ends.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] where a session has as many calls as it may, or a link has too few left for others.
    fn seats(
        &self,
        caller: &AgentId,
        guest: &Guest,
        reply: &Reply,
        to: &Party,
    ) -> Result<Vec<Seat>, Refusal> {
        let max = self.core.config.limits.calls_per_session_max;
        let is_full = |calls: &AtomicUsize| calls.load(Ordering::Relaxed) >= max;
        let provider = Refusal::Busy("the provider's share of calls");
        let mut seats = Vec::new();
        match to {
            Party::Session(session) if is_full(session.outstanding()) => return Err(provider),
            Party::Session(_) => {}
            Party::Link(link) => {
                seats.push(link.calls_to.take(guest, 1).ok_or(provider)?);
            }
        }
        let own = Refusal::Busy("the caller's share of calls");
        match reply {
            Reply::Party(Party::Session(session)) if is_full(session.made()) => return Err(own),
            Reply::Party(Party::Link(link)) => {
                seats.push(link.calls_from.take(&link.guest(caller), 1).ok_or(own)?);
            }
            _ => {}
        }
        Ok(seats)
    }

    fn deliver_call(
        &self,
        call: &Authorized,
        guest: &Guest,
        route: &Route,
        door: &Door,
    ) -> Result<(), Refusal> {
        let core = self.core;
        let bytes = call.envelope().bytes();
        match &route.way {
            Way::Session(session, tool) => {
                let permit = || permit_of(call, &route.provider, tool, &core.state);
                let about = about_call(call, tool);
                deliver(&core.voice, session, about, permit, bytes, self.now)
            }
            Way::Link(link, tool) => {
                // Its heads are the probes: no call has to find out whether it is there again.
                if link.age(self.now) > core.config.federation.stale_after() {
                    let org = &link.org;
                    return Err(Refusal::Unavailable(format!("{org}, which is silent,")));
                }
                let frame = match door {
                    Door::Link(from, carried) => {
                        let age = carried.age(from, call.agent().org(), self.now);
                        pass_call(&core.state.org, link, call, carried, age)?
                    }
                    _ => relay_call(&core.voice, &core.state.org, link, call, tool, self.now)?,
                };
                link.relay(guest, bytes, frame)
            }
        }
    }

    /// Hands on what an agent signed about a call, in the room of `guest`.
    fn hand(&self, to: &Party, guest: &Guest, said: &Authorized) -> Result<(), Refusal> {
        let bytes = said.envelope().bytes();
        match to {
            Party::Session(session) => {
                let about = about_sender(said);
                deliver(&self.core.voice, session, about, || None, bytes, self.now)
            }
            Party::Link(link) => link.relay(guest, bytes, relay(bytes)),
        }
    }

    /// Gives a provider's result to the caller, as it came.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoSuchCall`] when the call has just ended another way.
    pub fn result(&self, result: &Authorized) -> Result<(), Refusal> {
        let call = self.end(result)?;
        let elapsed = self.now.distance(call.received);
        self.core.metrics.answered(elapsed.as_millis() as u64);
        match call.reply {
            Reply::Post(waiting) => {
                let credential = self.core.post_credentials.get(self, &call.caller, result);
                let envelope = result.envelope().bytes().clone();
                // A caller that went away has cancelled; its request's end says so elsewhere.
                let _ = waiting.send(Answer {
                    envelope,
                    credential: Some(credential),
                    status: 200,
                });
            }
            Reply::Party(ref caller) => {
                let handed = self.hand(caller, &call.towards_caller(), result);
                if let (Err(why), Some(id)) = (handed, result.envelope().re()) {
                    self.lose(id, call, &why);
                }
            }
        }
        Ok(())
    }

    fn end(&self, answer: &Authorized) -> Result<InFlight, Refusal> {
        let id = answer.envelope().re().ok_or(Refusal::NoSuchCall)?;
        self.core
            .state
            .calls
            .end_if(&id, |call| call.provider == *answer.agent())
            .ok_or(Refusal::NoSuchCall)
    }

    /// A result that finds no room is never dropped in silence. A session that does not read closes, and its
    /// agent learns that something was lost. A link is others' too: there it is this call that ends so.
    fn lose(&self, id: Digest, call: InFlight, why: &Refusal) {
        match (&call.reply, why) {
            (Reply::Party(Party::Session(session)), _) => {
                tracing::info!(to = %call.caller, "closed: its queue is full and it does not read");
                session.close();
            }
            (_, Refusal::TooLarge(..)) => self.answer(id, call, why),
            _ => self.answer(id, call, &Refusal::OutcomeUnknown),
        }
    }

    /// Passes on how far a call is; a caller by POST, or one that did not ask, does not hear it. Nor does one
    /// whose room is half full: progress is dropped before an answer is.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoSuchCall`] when the call has just ended.
    pub fn progress(&self, progress: &Authorized) -> Result<(), Refusal> {
        let id = progress.envelope().re().ok_or(Refusal::NoSuchCall)?;
        let listener = self.core.state.calls.look(&id, |call| match &call.reply {
            Reply::Party(caller) if call.progress => Some((caller.clone(), call.towards_caller())),
            _ => None,
        });
        if let Some((caller, guest)) = listener.ok_or(Refusal::NoSuchCall)?
            && caller.has_to_spare(&guest)
        {
            let _ = self.hand(&caller, &guest, progress);
        }
        Ok(())
    }

    /// Passes a caller's further input on to its provider.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoSuchCall`] when the call has just ended, [`Refusal::Busy`].
    pub fn input(&self, input: &Authorized) -> Result<(), Refusal> {
        let id = input.envelope().re().ok_or(Refusal::NoSuchCall)?;
        let provider = self.core.state.calls.look(&id, |call| {
            let guest = call.towards_provider();
            (call.at.clone(), guest)
        });
        let (provider, guest) = provider.ok_or(Refusal::NoSuchCall)?;
        self.hand(&provider, &guest, input)
    }

    /// Ends a call as its caller wishes; the provider hears it in the caller's own words.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoSuchCall`] when the call has just ended.
    pub fn cancelled(&self, cancel: &Authorized) -> Result<(), Refusal> {
        let id = cancel.envelope().re().ok_or(Refusal::NoSuchCall)?;
        let call = self.core.state.calls.end(&id).ok_or(Refusal::NoSuchCall)?;
        if self
            .hand(&call.at, &call.towards_provider(), cancel)
            .is_err()
        {
            // It cannot be told through a full queue; its answer will find no call.
            tracing::info!(provider = %call.provider, "a provider's queue is full and it was not told of a cancellation");
        }
        self.answer(id, call, &Refusal::Cancelled);
        Ok(())
    }

    /// Ends a call by the broker's own decision: tells the caller why and the provider to stop.
    pub fn end_call(&self, id: Digest, refusal: &Refusal) {
        let Some(call) = self.core.state.calls.end(&id) else {
            return;
        };
        let to = call.at.audience(&call.provider);
        let body = ToolCancel {
            reason: Some(refusal.to_string()),
        };
        let said = self
            .core
            .voice
            .say(Kind::ToolCancel, Some(&to), Some(id), &body, self.now);
        let _ = call.at.send_for(&call.towards_provider(), said.bytes);
        self.answer(id, call, refusal);
    }

    /// Whether a call has lost what permitted it.
    fn is_struck(&self, call: &InFlight) -> bool {
        let state = &self.core.state;
        let token = &call.token;
        let agent = state.registry.agent(call.caller.name());
        let is_off_record =
            call.on_record && !agent.is_some_and(|agent| agent.has_grant(&grant_id(token)));
        let is_of_revoked = |party: &Party| match party {
            Party::Link(link) => state.trust.is_revoked(&link.org),
            Party::Session(_) => false,
        };
        let is_revoked = state.trust.is_revoked(call.caller.org())
            || matches!(&call.reply, Reply::Party(party) if is_of_revoked(party));
        let is_dead = |token: &Arc<Token>| {
            state.alive(token).is_err()
                || state.revocations.is_barred(token.issued(), &call.required)
        };
        is_off_record || is_revoked || is_dead(token) || call.bearer.iter().any(is_dead)
    }

    /// Ends every call that has lost what permitted it; both sides are told.
    pub fn end_struck_calls(&self) {
        let state = &self.core.state;
        for id in state.calls.which(|call| self.is_struck(call)) {
            let why = "what permitted this call was revoked";
            self.end_call(id, &Refusal::TokenRevoked(why.into()));
        }
    }

    /// Ends a call as a peer's broker says: the one before it on the way, which cancels it, or the one
    /// after it, which refused it.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoSuchCall`] where there is none that this link has to do with.
    pub fn ended_by_peer(
        &self,
        link: &Link,
        id: &Digest,
        why: Option<&Refusal>,
    ) -> Result<(), Refusal> {
        let calls = &self.core.state.calls;
        let Some(refusal) = why else {
            let is_theirs = |call: &InFlight| matches!(&call.reply, Reply::Party(caller) if caller.id() == link.id());
            let is_theirs = calls.look(id, is_theirs).unwrap_or_default();
            return if is_theirs {
                self.end_call(*id, &Refusal::Cancelled);
                Ok(())
            } else {
                Err(Refusal::NoSuchCall)
            };
        };
        self.failed(link, id, refusal)
    }

    /// Ends a call that was delivered over this connection, without a result.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoSuchCall`] where it was not, or has ended.
    pub fn failed(&self, at: &Outbox, id: &Digest, why: &Refusal) -> Result<(), Refusal> {
        let call = self.delivered_at(at, id)?;
        self.answer(*id, call, why);
        Ok(())
    }

    /// Gives a caller of ours what an older agent answered over this connection, in the broker's words: nobody
    /// else signs them.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoSuchCall`] where there is no such call any more.
    pub fn bridged(&self, at: &Outbox, id: &Digest, said: &ToolResult<'_>) -> Result<(), Refusal> {
        let call = self.delivered_at(at, id)?;
        let (core, to) = (self.core, Audience::from(call.caller.clone()));
        let envelope = core
            .voice
            .say_via(
                Some(VIA_FEP),
                Kind::ToolResult,
                Some(&to),
                Some(*id),
                said,
                self.now,
            )
            .bytes;
        let max = core.config.limits.envelope_bytes_max;
        if envelope.len() > max {
            self.answer(*id, call, &Refusal::TooLarge(envelope.len(), max));
            return Ok(());
        }
        let elapsed = self.now.distance(call.received);
        core.metrics.answered(elapsed.as_millis() as u64);
        match call.reply {
            Reply::Post(waiting) => {
                let _ = waiting.send(Answer {
                    envelope,
                    credential: None,
                    status: 200,
                });
            }
            Reply::Party(ref caller) => {
                if let Err(why) = caller.say(envelope) {
                    self.lose(*id, call, &why);
                }
            }
        }
        Ok(())
    }

    fn delivered_at(&self, at: &Outbox, id: &Digest) -> Result<InFlight, Refusal> {
        let calls = &self.core.state.calls;
        let call = calls.end_if(id, |call| call.at.id() == at.id());
        call.ok_or(Refusal::NoSuchCall)
    }

    /// Ends every call that a peer's agents of these keys made.
    pub fn end_calls_of(&self, link: &Link, dead: &[PublicKey]) {
        // A peer may name 65,536 keys, and every call in flight is looked at.
        let dead: HashSet<&PublicKey> = dead.iter().collect();
        let made = |call: &InFlight| {
            matches!(&call.reply, Reply::Party(caller) if caller.id() == link.id())
                && call.token.holder().is_some_and(|key| dead.contains(key))
        };
        for id in self.core.state.calls.which(made) {
            let why = "the caller's key was revoked";
            self.end_call(id, &Refusal::TokenRevoked(why.into()));
        }
    }

    /// Ends every call of a connection that is gone.
    pub fn connection_gone(&self, connection: &Outbox) {
        let calls = &self.core.state.calls;
        for id in calls.which(|call| call.at.id() == connection.id()) {
            if let Some(call) = calls.end(&id) {
                self.answer(id, call, &Refusal::OutcomeUnknown);
            }
        }
        let made = |call: &InFlight| matches!(&call.reply, Reply::Party(caller) if caller.id() == connection.id());
        for id in calls.which(made) {
            self.end_call(id, &Refusal::Cancelled);
        }
    }

    /// Ends every call whose caller has stopped waiting.
    pub fn expire_calls(&self) {
        for id in self
            .core
            .state
            .calls
            .which(|call| call.deadline <= self.now)
        {
            let waited = self
                .core
                .state
                .calls
                .look(&id, |call| self.now.distance(call.received));
            self.end_call(id, &Refusal::Deadline(waited.unwrap_or_default()));
        }
    }

    /// Tells a caller that its call ended without a result.
    fn answer(&self, id: Digest, call: InFlight, refusal: &Refusal) {
        let code = refusal.code();
        self.core.metrics.refused(code);
        tracing::info!(
            agent = %call.caller,
            r#type = "toolCall",
            stage = "deliver",
            code = code.as_str(),
            reason = ?refusal.to_string(),
            provider = %call.provider,
            "refused"
        );
        let to = match &call.reply {
            Reply::Post(_) => call.caller.clone().into(),
            Reply::Party(caller) => caller.audience(&call.caller),
        };
        let body = ErrorBody::from(refusal);
        let envelope = self
            .core
            .voice
            .say(Kind::Error, Some(&to), Some(id), &body, self.now)
            .bytes;
        match call.reply {
            Reply::Post(waiting) => {
                let _ = waiting.send(Answer {
                    envelope,
                    credential: None,
                    status: code.http_status(),
                });
            }
            Reply::Party(caller) => {
                if caller.say(envelope).is_err() {
                    caller.close();
                }
            }
        }
    }

    /// Gives an event of an agent of ours to every session that is subscribed and still may be, at most once
    /// each, and to every peer whose agents may hear it.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidBody`] and [`Refusal::WrongAudience`].
    pub fn emit(&self, event: &Authorized) -> Result<(), Refusal> {
        let _: EmitEvent<'_> = event.envelope().read_body()?;
        let Some(Audience::Topic(_, topic)) = event.envelope().to() else {
            return Err(Refusal::WrongAudience(event.envelope().to().cloned()));
        };
        self.give_out(event, topic, |_| true);
        for link in self.core.state.links.all() {
            tell_event(self.core, &link, event, topic, self.now);
        }
        Ok(())
    }

    /// Gives an event to the sessions that are subscribed to `topic`, as it is called here, and still may be.
    pub fn give_out(
        &self,
        event: &Authorized,
        topic: &Capability,
        is_meant: impl Fn(&AgentId) -> bool,
    ) {
        let mut served = HashSet::new();
        for (session, subscription) in self.core.state.sessions.subscribers(topic) {
            let is_one = is_meant(session.agent()) && self.may_hear(&session, &subscription);
            if !is_one || !served.insert(session.id()) {
                continue;
            }
            self.report_missed(&session);
            let bytes = event.envelope().bytes();
            let voice = &self.core.voice;
            if deliver(
                voice,
                &session,
                about_sender(event),
                || None,
                bytes,
                self.now,
            )
            .is_err()
            {
                session.missed().fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Tells a session how many events it was too slow to take, as soon as its queue has room.
    fn report_missed(&self, session: &Session) {
        let missed = session.missed().swap(0, Ordering::Relaxed);
        if missed > 0 {
            let to = Audience::from(session.agent().clone());
            let said =
                self.core
                    .voice
                    .say(Kind::Event, Some(&to), None, &Event { missed }, self.now);
            if session.send(said.bytes).is_err() {
                session.missed().fetch_add(missed, Ordering::Relaxed);
            }
        }
    }

    /// Tells every session what it missed: the last gap must not wait for the next event.
    pub fn report_all_missed(&self) {
        for session in self.core.state.sessions.all() {
            if session.missed().load(Ordering::Relaxed) > 0 {
                self.report_missed(&session);
            }
        }
    }

    /// Whether a subscription is still permitted: asked at every event, so a revocation bites at once.
    fn may_hear(&self, session: &Session, subscription: &Subscription) -> bool {
        let Ok(required) = subscription.topics.to_subscribe() else {
            return false;
        };
        let question = Question::plain(&required, session.agent(), self.now);
        let standing = Standing::of(&self.core.state, self.now);
        let permits =
            |token: &Token| !standing.barred(token, &required) && token.permits(&question).is_ok();
        match &subscription.token {
            Some(token) => standing.alive(token).is_ok() && permits(token),
            None => standing
                .granted(session.agent())
                .iter()
                .any(|token| token.holder() == Some(session.key()) && permits(token)),
        }
    }
}

/// The caller, the provider, and the provider's key.
type WordFor = (AgentId, AgentId, PublicKey, PublicKey);

/// The broker's words for providers to callers by POST, so that not every answer is signed anew.
pub struct PostCredentials {
    known: Mutex<LruCache<WordFor, (Bytes, Timestamp)>>,
}

impl std::fmt::Debug for PostCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PostCredentials")
    }
}

impl Default for PostCredentials {
    fn default() -> Self {
        const KEPT: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();
        Self {
            known: Mutex::new(LruCache::new(KEPT)),
        }
    }
}

impl PostCredentials {
    fn get(&self, place: &Place<'_>, caller: &AgentId, result: &Authorized) -> Bytes {
        // Who was told of no other key of ours must not be given a word of the one before.
        let ours = place.core.voice.public();
        let slot = (caller.clone(), result.agent().clone(), *result.key(), ours);
        let half = place.now.later(CREDENTIAL_VALIDITY / 2);
        if let Some((bytes, expires)) = lock(&self.known).get(&slot)
            && *expires > half
        {
            return bytes.clone();
        }
        let about = CredentialKey {
            subject: result.agent().clone(),
            key: *result.key(),
            call: None,
        };
        let said = vouch(
            &place.core.voice,
            &caller.clone().into(),
            &about,
            None,
            place.now,
        );
        lock(&self.known).put(
            slot,
            (said.bytes.clone(), place.now.later(CREDENTIAL_VALIDITY)),
        );
        said.bytes
    }
}
