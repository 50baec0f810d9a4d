//! What happens to an envelope: parse → verify → admit → authorize → perform → answer.
//!
//! [`Core::decide`] is everything up to the first effect. It is not `async`, so nothing can wait in the
//! middle of a decision.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto_spec::admission::{Authority, Judge, KeyBook, Me, Permit, Presented};
use proto_spec::capability::Token;
use proto_spec::frame::Relay;
use proto_spec::limits::{CAPABILITIES_MAX, SUBSCRIPTIONS_MAX, TOOL_SEGMENTS_MAX, TOOLS_MAX};
use proto_spec::message::{
    Ack, AdvertisedTool, Attach, Basis, OfferTools, PeerDescriptor, PeerInvite, ToolsDiscovered,
    Topics,
};
use proto_spec::{
    AgentId, Audience, Authorized, Capability, Digest, Envelope, Kind, Newcomer, Org, Pattern,
    PublicKey, Received, Refusal, Speaker, Timestamp,
};
use tokio::sync::{SemaphorePermit, mpsc, oneshot};

use crate::calls::{Called, Place};
use crate::clock::Clock;
use crate::config::Config;
use crate::directory;
use crate::metrics::Metrics;
use crate::registrar::{Order, Origin, Registrar};
use crate::routing::{full_name, may_offer, under_peer, ways};
use crate::state::State;
use crate::state::budgets::Need;
use crate::state::calls::{Answer, InFlight, Party, Reply};
use crate::state::links::Link;
use crate::state::outbox::Queued;
use crate::state::sessions::{Session, Subscription};
use crate::tls::Certificates;
use crate::voice::Voice;

/// The age of a view that nobody has: beyond every bound.
const NO_VIEW: Duration = Duration::from_millis(u32::MAX as u64);
/// How long a descriptor may be accepted where its admin does not say.
const INVITATION: Duration = Duration::from_secs(7 * 86_400);
/// How often one call may find its budget's reserve used up by others.
const RESERVES_MAX: usize = 8;
/// Bytes of an `offerTools`: it is kept for as long as its session lives.
const OFFER_BYTES_MAX: usize = 1 << 20;
/// Different tools that all sessions of one agent offer together: whoever looks at offers looks at all.
const TOOLS_PER_AGENT_MAX: usize = 2 * TOOLS_MAX;
/// Bytes of a `registerAgent`: it is kept until an admin decides, and anybody may send one.
const REGISTER_BYTES_MAX: usize = 16 << 10;

/// How long a sender that runs ahead waits for one settlement of its ceiling, and for how many: the
/// first may have begun before the sender asked.
const SETTLE_MAX: Duration = Duration::from_secs(1);
const SETTLE_ROUNDS: u32 = 2;

/// By which door an envelope came.
#[derive(Debug, Clone)]
pub enum Door {
    /// One request, one answer; with the network it came from and its address, for people.
    Post {
        /// Newcomers of one network share a part of the replay window.
        network: u64,
        /// Shown to admins.
        address: String,
    },
    /// As [`Door::Post`], in the words of an older agent.
    Older {
        /// As there.
        network: u64,
        /// As there.
        address: String,
    },
    /// A WebSocket connection that is not attached yet: only an `attach` may come.
    Threshold,
    /// An attached session.
    Session(Arc<Session>),
    /// The session of an agent whose key this broker keeps, by whoever showed this token.
    Bearer(Arc<Session>, Arc<Token>),
    /// A peer's link; with what else is in the frame that the envelope came in.
    Link(Arc<Link>, Arc<Carried>),
}

/// What a frame of a link carries beside the envelope.
#[derive(Debug, Default)]
pub struct Carried {
    /// Tokens of our own root, opened.
    pub tokens: Vec<Presented>,
    /// Tokens for the broker after us.
    pub onward: Vec<Bytes>,
    /// Where it says that it has been.
    pub visited: Vec<Org>,
    /// How old it says that the view of its home's dead keys was by which it was let through.
    pub age: Option<Duration>,
}

impl Carried {
    /// How old the view of `home`'s dead keys is by which a call of its agent comes over `link`: ours of the
    /// peer, and before that the peer's of the home. What a third's peer does not say is no view at all.
    #[must_use]
    pub fn age(&self, link: &Link, home: &Org, now: Timestamp) -> Duration {
        let before = match self.age {
            Some(age) => age,
            None if *home == link.org => Duration::ZERO,
            None => NO_VIEW,
        };
        link.age(now) + before
    }
}

impl Door {
    /// Who is at the other end, if a call's answer goes back there.
    #[must_use]
    pub fn party(&self) -> Option<Party> {
        match self {
            Self::Session(session) | Self::Bearer(session, _) => {
                Some(Party::Session(Arc::clone(session)))
            }
            Self::Link(link, _) => Some(Party::Link(Arc::clone(link))),
            _ => None,
        }
    }

    /// From which peer it comes, if from one.
    #[must_use]
    pub fn peer(&self) -> Option<&Org> {
        match self {
            Self::Link(link, _) => Some(&link.org),
            _ => None,
        }
    }

    /// Whom an answer of ours is for, about what `agent` signed.
    fn audience(&self, agent: &AgentId) -> Audience {
        match self.party() {
            Some(party) => party.audience(agent),
            None => agent.clone().into(),
        }
    }
}

/// What a broker does with envelopes, and all that it needs for it.
#[derive(Debug)]
pub struct Core {
    /// What it runs with.
    pub config: Config,
    /// Its time.
    pub clock: Arc<Clock>,
    /// What it knows.
    pub state: Arc<State>,
    /// What it says.
    pub voice: Arc<Voice>,
    /// Who changes durable state.
    pub registrar: Registrar,
    /// What it counts.
    pub metrics: Metrics,
    /// The certificate that new connections see.
    pub certificates: Arc<Certificates>,
    /// Public keys of TLS terminators that clients may see instead of ours, as SPKI digests.
    pub channels: Vec<Digest>,
    /// The broker's credentials for providers, for callers by POST.
    pub post_credentials: crate::calls::PostCredentials,
    /// KiB of request bodies that may be in memory at once.
    pub bodies: tokio::sync::Semaphore,
}

impl Core {
    /// Room for a request's body of so many bytes, as many as there may be where it does not say, until what
    /// this gives is dropped: bodies share one budget of memory, and what is being read counts as if it were
    /// there.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] where there is none.
    pub fn room_for_body(&self, stated: Option<u64>) -> Result<SemaphorePermit<'_>, Refusal> {
        let max = self.config.limits.envelope_bytes_max as u64;
        let bytes = stated.unwrap_or(max).min(max);
        let kib = u32::try_from(bytes.div_ceil(1_024)).unwrap_or(u32::MAX);
        let room = self.bodies.try_acquire_many(kib);
        room.map_err(|_| Refusal::Busy("the memory for request bodies"))
    }
}

/// What passed admission.
#[derive(Debug)]
pub enum Decided {
    /// A key asks to become an agent.
    Newcomer(Box<Newcomer>),
    /// Its sender may do what it asks.
    Authorized(Box<Authorized>),
}

/// What did not, how far it came, and whom to tell.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// Where it stopped.
    pub stage: &'static str,
    /// The sender, if its signature verified.
    pub sender: Option<AgentId>,
    /// Whom to tell, about which envelope. Without it the answer is for nobody in particular.
    pub tell: Option<(Audience, Digest)>,
    /// What it said it was.
    pub kind: Option<Kind>,
    /// From which peer it came, if from one.
    pub peer: Option<Org>,
}

/// What is to be done after a decision was carried out.
#[derive(Debug)]
pub enum Step {
    /// Say this on the connection that the envelope came by.
    Say(Bytes),
    /// A POST waits for its call's answer.
    Wait(Digest, oneshot::Receiver<Answer>),
    /// The registrar has to decide.
    Order(Order, AgentId, Digest),
    /// What a kept agent could call. It is told within this process, where nothing has to be signed.
    Found(ToolsDiscovered),
    /// The answer comes later, or there is none.
    Nothing,
}

/// How far carrying a decision out came.
enum Performed {
    Done(Step),
    /// Nothing was done: calls of a budget have to be made durable first.
    Reserve(Box<Authorized>, Need),
}

/// The authority on record, asked on behalf of one door.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    state: &'a State,
    now: Timestamp,
    connection: Option<u64>,
    bearer: Option<(&'a Token, &'a [Pattern])>,
}

impl<'a> Standing<'a> {
    /// On behalf of no connection.
    #[must_use]
    pub fn of(state: &'a State, now: Timestamp) -> Self {
        Self {
            state,
            now,
            connection: None,
            bearer: None,
        }
    }

    /// What the broker knows.
    #[must_use]
    pub fn state(&self) -> &'a State {
        self.state
    }
}

impl Authority for Standing<'_> {
    fn granted(&self, agent: &AgentId) -> Arc<[Arc<Token>]> {
        let agent = self.state.registry.agent(agent.name());
        agent.map_or_else(Arc::default, |agent| self.state.granted(&agent))
    }
    fn open(&self, text: &str) -> Result<Arc<Token>, Refusal> {
        self.state.tokens.open(text, &self.state.roots)
    }
    fn alive(&self, token: &Token) -> Result<(), Refusal> {
        self.state.alive(token)
    }
    fn bearer(&self) -> Option<&Token> {
        self.bearer.map(|(token, _)| token)
    }
    fn is_for_bearers(&self, required: &Pattern) -> bool {
        let ok = self.bearer.map_or(&[][..], |(_, ok)| ok);
        ok.iter().any(|pattern| pattern.covers(required))
    }
    fn barred(&self, token: &Token, required: &Pattern) -> bool {
        self.state.revocations.is_barred(token.issued(), required)
    }
    fn is_spent(&self, grant: &Token) -> bool {
        self.state.budgets.is_spent(grant)
    }
    fn trust(&self, org: &Org, required: &Pattern) -> Option<u8> {
        self.state.trust.score(org, required, self.now)
    }
    fn required_for(
        &self,
        provider: &AgentId,
        tool: &Capability,
    ) -> Result<Vec<Capability>, Refusal> {
        if *provider.org() == self.state.org {
            return Ok(vec![
                match self.state.sessions.offer(provider.name(), tool) {
                    Some(offer) => offer.required().clone(),
                    None => tool.clone(),
                },
            ]);
        }
        let ways = ways(provider, tool, self.state, self.now);
        let required = |(link, tool): &(Arc<Link>, Arc<AdvertisedTool>)| {
            under_peer(&link.org, tool.tool.tool.required())
        };
        match ways[..] {
            // Not known here: whoever may call it may learn that nobody serves it.
            [] => Ok(vec![under_peer(provider.org(), tool)?]),
            _ => ways.iter().map(required).collect(),
        }
    }
    fn was_delivered_here(&self, call: &Digest, caller: &Audience) -> bool {
        self.connection
            .is_some_and(|one| self.state.calls.was_delivered(call, one, caller))
    }
    fn was_called_from_here(&self, call: &Digest, agent: &AgentId, provider: &Audience) -> bool {
        self.connection
            .is_some_and(|one| self.state.calls.was_made(call, one, agent, provider))
    }
}

/// The keys of our agents, save for those of older ones: they are good for what such agents say.
impl KeyBook for State {
    fn key_of(&self, speaker: &Speaker) -> Option<PublicKey> {
        key_of(self, speaker, false)
    }
}

/// The keys of our older agents.
struct OlderKeys<'a>(&'a State);

impl KeyBook for OlderKeys<'_> {
    fn key_of(&self, speaker: &Speaker) -> Option<PublicKey> {
        key_of(self.0, speaker, true)
    }
}

fn key_of(state: &State, speaker: &Speaker, older: bool) -> Option<PublicKey> {
    let agent = speaker.agent().filter(|agent| *agent.org() == state.org)?;
    let agent = state.registry.agent(agent.name())?;
    (agent.older.is_some() == older).then(|| agent.key.key())
}

/// The keys that a peer's link speaks for: callers that its tokens introduce, or that made a call in flight,
/// providers that it certified, and its broker.
struct Relayed<'a> {
    state: &'a State,
    link: &'a Link,
    tokens: &'a [Presented],
    about: Option<Digest>,
}

impl KeyBook for Relayed<'_> {
    fn key_of(&self, speaker: &Speaker) -> Option<PublicKey> {
        let agent = match speaker {
            Speaker::Broker(org) => return (*org == self.link.org).then_some(self.link.key),
            // Nobody else speaks for our agents.
            Speaker::Agent(agent) if *agent.org() == self.state.org => return None,
            Speaker::Agent(agent) => agent,
        };
        let introduced = self.tokens.iter().find_map(|(token, _)| {
            let is_theirs = token.introduces(&self.link.org, &self.link.key) == Ok(agent);
            token.holder().copied().filter(|_| is_theirs)
        });
        let called = || {
            let caller = |call: &InFlight| {
                let is_theirs = call.caller == *agent
                    && matches!(&call.reply, Reply::Party(at) if at.id() == self.link.id());
                call.token.holder().copied().filter(|_| is_theirs)
            };
            self.state.calls.look(&self.about?, caller).flatten()
        };
        let known = introduced
            .or_else(called)
            .or_else(|| self.link.key_of(agent));
        known.filter(|key| !self.link.is_dead(key))
    }
}

impl Core {
    pub(crate) fn judge(&self, now: Timestamp) -> Judge<'_> {
        Judge {
            me: Me::Broker(&self.state.org),
            skew: self.config.limits.skew(),
            now,
        }
    }

    fn standing<'a>(&'a self, door: &'a Door) -> Standing<'a> {
        Standing {
            state: &self.state,
            now: self.clock.now(),
            connection: door.party().map(|party| party.id()),
            bearer: match (door, &self.config.mcp) {
                (Door::Bearer(_, token), Some(mcp)) => Some((token, &mcp.bearer_ok)),
                _ => None,
            },
        }
    }

    /// Everything up to the first effect, save that the nonce is used up.
    ///
    /// # Errors
    ///
    /// [`Refused`] says at which stage it stopped, and why.
    pub fn decide(
        &self,
        bytes: Bytes,
        door: &Door,
        now: Timestamp,
    ) -> Result<Decided, Box<Refused>> {
        let judge = self.judge(now);
        let mut stopped = Refused {
            refusal: Refusal::Internal,
            stage: "parse",
            sender: None,
            tell: None,
            kind: None,
            peer: door.peer().cloned(),
        };
        let received = match self.read(bytes, door) {
            Ok(received) => received,
            Err(refusal) => return Err(Box::new(Refused { refusal, ..stopped })),
        };
        let kind = received.envelope().kind();
        stopped.kind = Some(kind);
        stopped.stage = "verify";
        if let Err(refusal) = fits_door(&received, door) {
            return Err(Box::new(Refused { refusal, ..stopped }));
        }
        let clock = match self.clock.behind() {
            Some(alarm) => Err(Refusal::Clock(alarm.to_string())),
            None => Ok(()),
        };
        if let (Kind::RegisterAgent, Door::Post { network, .. } | Door::Older { network, .. }) =
            (kind, door)
        {
            if let Err(refusal) = clock {
                return Err(Box::new(Refused { refusal, ..stopped }));
            }
            let nonces = self
                .state
                .replay
                .newcomers(*network, self.config.limits.nonces_per_network_max);
            let newcomer = received.introduce(&judge, &nonces);
            let newcomer = newcomer.map_err(|refusal| Box::new(Refused { refusal, ..stopped }))?;
            return Ok(Decided::Newcomer(Box::new(newcomer)));
        }
        if let (Door::Link(link, _), Kind::ToolCall) = (door, kind) {
            if link.is_closed() {
                let refusal = Refusal::Unavailable("a link that ends".into());
                return Err(Box::new(Refused { refusal, ..stopped }));
            }
            let home = received.envelope().speaker().org();
            let revoked = [&link.org, home].into_iter();
            if let Some(org) = revoked
                .into_iter()
                .find(|org| self.state.trust.is_revoked(org))
            {
                let refusal = Refusal::Denied(format!("a call of {org}, which is revoked,"));
                return Err(Box::new(Refused { refusal, ..stopped }));
            }
        }
        let about = received.envelope().re();
        let verified = match door {
            Door::Link(link, carried) => received.verify(&Relayed {
                state: &self.state,
                link,
                // Who answers is known already.
                tokens: match kind {
                    Kind::ToolCall => &carried.tokens,
                    _ => &[],
                },
                about,
            }),
            Door::Older { .. } => received.verify(&OlderKeys(&self.state)),
            _ => received.verify(&*self.state),
        };
        let verified = match verified {
            Ok(verified) => verified,
            Err(refusal) => return Err(Box::new(Refused { refusal, ..stopped })),
        };
        stopped.sender = verified.envelope().speaker().agent().cloned();
        if let Some(agent) = &stopped.sender {
            stopped.tell = Some((door.audience(agent), verified.id()));
        }
        if let (Door::Link(link, carried), Kind::ToolCall) = (door, kind) {
            let home = verified.envelope().speaker().org();
            let age = carried.age(link, home, now);
            if age > self.config.federation.stale_after() {
                let refusal = Refusal::RevocationsStale {
                    org: home.clone(),
                    age,
                };
                return Err(Box::new(Refused { refusal, ..stopped }));
            }
        }
        stopped.stage = "admit";
        // An admin's act is judged by time like any other: nobody can talk a wrong clock right.
        if let Err(refusal) = clock {
            return Err(Box::new(Refused { refusal, ..stopped }));
        }
        let fresh = match door {
            Door::Link(link, _) => {
                let share_max = self.config.limits.nonces_per_peer_max;
                verified.admit(&judge, &self.state.replay.peer(&link.org, share_max))
            }
            _ => verified.admit(&judge, &self.state.replay),
        };
        let fresh = match fresh {
            Ok(fresh) => fresh,
            Err(refusal) => return Err(Box::new(Refused { refusal, ..stopped })),
        };
        stopped.stage = "authorize";
        let standing = self.standing(door);
        let authorized = match door {
            Door::Link(link, carried) => {
                fresh.authorize_relayed(&link.neighbour(), &carried.tokens, &standing, &judge)
            }
            _ => fresh.authorize(&standing, &judge),
        };
        match authorized {
            Ok(authorized) => Ok(Decided::Authorized(Box::new(authorized))),
            Err(refusal) => Err(Box::new(Refused { refusal, ..stopped })),
        }
    }

    /// Bytes that came by `door`, as what is said there.
    fn read(&self, bytes: Bytes, door: &Door) -> Result<Received, Refusal> {
        let (bytes_max, state) = (self.config.limits.envelope_bytes_max, &*self.state);
        match door {
            Door::Older { .. } if self.config.compat.fep_go => {
                let full_name = |agent: &AgentId, bare: &str| full_name(agent, bare, state);
                Received::parse_older(bytes, bytes_max, &state.org, full_name)
            }
            Door::Older { .. } => Err(Refusal::OlderAgents),
            _ => Received::parse(bytes, bytes_max),
        }
    }

    /// The part of it that waits for nothing.
    ///
    /// # Errors
    ///
    /// [`Refusal`] where the world stands against it: no route, a full queue, a body that does not fit.
    fn perform(
        &self,
        act: Box<Authorized>,
        door: &Door,
        now: Timestamp,
    ) -> Result<Performed, Refusal> {
        if act.envelope().kind() == Kind::ToolCall {
            return Ok(match (Place { core: self, now }).call(&act, door)? {
                Called::Done(step) => Performed::Done(step),
                Called::Reserve(need) => Performed::Reserve(act, need),
            });
        }
        self.act(*act, door, now).map(Performed::Done)
    }

    fn act(&self, act: Authorized, door: &Door, now: Timestamp) -> Result<Step, Refusal> {
        let place = Place { core: self, now };
        match (act.envelope().kind(), door) {
            (Kind::ToolResult, _) => place.result(&act).map(|()| Step::Nothing),
            (Kind::ToolProgress, _) => place.progress(&act).map(|()| Step::Nothing),
            (Kind::ToolInput, _) => place.input(&act).map(|()| Step::Nothing),
            (Kind::ToolCancel, _) => place.cancelled(&act).map(|()| Step::Nothing),
            (Kind::OfferTools, Door::Session(session)) => self.offer(&act, session, now),
            (Kind::DiscoverTools, _) => {
                let bytes_max = self.config.limits.envelope_bytes_max;
                let found = directory::discover(&act, &self.standing(door), bytes_max, now)?;
                if let Door::Bearer(..) = door {
                    return Ok(Step::Found(found));
                }
                let to = act.agent().clone().into();
                let said = self.voice.say(
                    Kind::ToolsDiscovered,
                    Some(&to),
                    Some(act.id()),
                    &found,
                    now,
                );
                Ok(Step::Say(said.bytes))
            }
            (Kind::EmitEvent, _) => {
                place.emit(&act)?;
                Ok(self.ack(&act, &Ack::Emitted, now))
            }
            (Kind::Subscribe | Kind::Unsubscribe, Door::Session(session)) => {
                self.subscribe(&act, session, now)
            }
            (Kind::AdminPeerInvite, _) => self.invite(&act, now),
            (Kind::Revoke | Kind::RotateKey, _) => Ok(order(act)),
            (kind, _) if kind.is_admin() => Ok(order(act)),
            (kind, _) => Err(Refusal::UnknownType(kind.to_string())),
        }
    }

    /// Who we are, in our own words, for another organisation's admin or its broker: this broker's TLS key is
    /// `channel`.
    #[must_use]
    pub fn descriptor(&self, channel: Digest, asks: Vec<Pattern>, expires: Timestamp) -> String {
        let mut channels = vec![channel];
        channels.extend(self.channels.iter().filter(|other| **other != channel));
        let body = PeerDescriptor {
            org: self.state.org.clone(),
            key: self.voice.public(),
            endpoints: self.config.federation.endpoints.clone(),
            channels,
            asks,
            expires,
        };
        let now = self.clock.now();
        let said = self.voice.say(Kind::PeerDescriptor, None, None, &body, now);
        String::from_utf8_lossy(&said.bytes).into_owned()
    }

    /// Signs the file with which another organisation's admin makes us its peer. What is in it is public;
    /// the act is the admin's all the same, who answers for the endpoints.
    fn invite(&self, act: &Authorized, now: Timestamp) -> Result<Step, Refusal> {
        let PeerInvite { asks, expires } = act.envelope().read_body()?;
        if asks.len() > CAPABILITIES_MAX {
            return Err(Refusal::InvalidBody(format!(
                "more than {CAPABILITIES_MAX} patterns"
            )));
        }
        let expires = expires.unwrap_or_else(|| now.later(INVITATION));
        if expires <= now {
            return Err(Refusal::InvalidBody("`expires` lies in the past".into()));
        }
        let channel = self.certificates.current().channel;
        let descriptor = self.descriptor(channel, asks, expires);
        Ok(self.ack(act, &Ack::PeerInvited { descriptor }, now))
    }

    fn ack(&self, act: &Authorized, ack: &Ack, now: Timestamp) -> Step {
        Step::Say(
            self.voice
                .ack(&act.agent().clone().into(), act.id(), ack, now),
        )
    }

    fn offer(&self, act: &Authorized, session: &Session, now: Timestamp) -> Result<Step, Refusal> {
        let body: OfferTools = act.envelope().read_body()?;
        let count = body.tools.len();
        if count > TOOLS_MAX {
            return Err(Refusal::InvalidBody(format!("more than {TOOLS_MAX} tools")));
        }
        let bytes = act.envelope().bytes().len();
        if bytes > OFFER_BYTES_MAX {
            return Err(Refusal::TooLarge(bytes, OFFER_BYTES_MAX));
        }
        let agent = self
            .state
            .registry
            .agent(act.agent().name())
            .ok_or(Refusal::Internal)?;
        let mut seen = HashSet::new();
        for tool in &body.tools {
            let denied = |why| Err(Refusal::OfferDenied(tool.name.to_string(), why));
            if tool.name.is_reserved() || tool.required().is_reserved() {
                return denied("its first segment belongs to the protocol");
            }
            if tool.name.segments().max(tool.required().segments()) > TOOL_SEGMENTS_MAX {
                return denied("more than 12 segments");
            }
            if !may_offer(&agent, &tool.name) || !may_offer(&agent, tool.required()) {
                return denied("it lies outside the agent's approved prefixes");
            }
            if !seen.insert(&tool.name) {
                return denied("it is offered twice");
            }
        }
        let mut names: HashSet<Capability> = seen.into_iter().cloned().collect();
        for other in self.state.sessions.of(act.agent().name()) {
            if other.id() != session.id() {
                names.extend(other.offers().iter().map(|tool| tool.name.clone()));
            }
        }
        if names.len() > TOOLS_PER_AGENT_MAX {
            return Err(Refusal::Busy("the agent's share of tools"));
        }
        self.state.sessions.set_offers(session, body.tools);
        Ok(self.ack(
            act,
            &Ack::Offered {
                tools: count as u64,
            },
            now,
        ))
    }

    fn subscribe(
        &self,
        act: &Authorized,
        session: &Arc<Session>,
        now: Timestamp,
    ) -> Result<Step, Refusal> {
        let body: Topics = act.envelope().read_body()?;
        let mut all = Vec::clone(&session.subscriptions());
        all.retain(|one| !body.topics.contains(&one.topics));
        if act.envelope().kind() == Kind::Subscribe {
            let token = match act.permit() {
                Permit::Held {
                    token,
                    basis: Basis::Token,
                    ..
                } => token.clone(),
                _ => None,
            };
            let mut asked = body.topics;
            asked.sort();
            asked.dedup();
            all.extend(asked.into_iter().map(|topics| Subscription {
                topics,
                token: token.clone(),
            }));
        }
        if all.len() > SUBSCRIPTIONS_MAX {
            return Err(Refusal::Busy("the session's list of topics"));
        }
        all.sort_by(|a, b| a.topics.cmp(&b.topics));
        let topics = all.iter().map(|one| one.topics.clone()).collect();
        self.state.sessions.subscribe(session, all);
        Ok(self.ack(act, &Ack::Subscribed { topics }, now))
    }

    /// [`Core::decide`], and once more where the sender's ceiling had to be made durable first: only
    /// whoever runs ahead of the broker's clock waits for a disk.
    async fn decide_durably(&self, bytes: Bytes, door: &Door) -> Result<Decided, Box<Refused>> {
        let mut decided = self.decide(bytes.clone(), door, self.clock.now());
        let mut settled = None;
        while matches!(&decided, Err(refused) if refused.refusal == Refusal::Ahead) {
            match &mut settled {
                // Listening begins before the question is put again: no settlement is missed.
                None => settled = Some((self.state.replay.settled(), SETTLE_ROUNDS)),
                Some((_, 0)) => break,
                Some((settled, rounds)) => {
                    *rounds -= 1;
                    let _ = tokio::time::timeout(SETTLE_MAX, settled.changed()).await;
                }
            }
            decided = self.decide(bytes.clone(), door, self.clock.now());
        }
        decided
    }

    /// One envelope from a POST or an attached session: decided, carried out, and if need be answered.
    ///
    /// # Errors
    ///
    /// The signed refusal.
    pub async fn handle(&self, bytes: Bytes, door: &Door) -> Result<Step, Answer> {
        let begun = Instant::now();
        let decided = self.decide_durably(bytes.clone(), door).await;
        match decided {
            Ok(Decided::Newcomer(newcomer)) => {
                self.metrics.accepted(Kind::RegisterAgent);
                let (agent, id) = (newcomer.agent().clone(), newcomer.id());
                let from = match door {
                    Door::Post { address, network } | Door::Older { address, network } => Origin {
                        network: *network,
                        address: address.clone(),
                    },
                    _ => Origin::default(),
                };
                Ok(Step::Order(Order::Register(newcomer, from), agent, id))
            }
            Ok(Decided::Authorized(act)) => {
                let (kind, sender) = (act.envelope().kind(), (act.agent().clone(), act.id()));
                self.metrics.accepted(kind);
                if let (Some(peer), Kind::ToolCall) = (door.peer(), kind) {
                    self.state.links.note_key(peer, act.agent(), act.key());
                }
                let done = self.carry_out(*act, door).await;
                let peer = door.peer().map(tracing::field::display);
                tracing::debug!(agent = %sender.0, peer, r#type = %kind, us = begun.elapsed().as_micros() as u64, "accepted");
                done.map_err(|refusal| {
                    let refused = Refused {
                        refusal,
                        stage: "perform",
                        tell: Some((door.audience(&sender.0), sender.1)),
                        sender: Some(sender.0),
                        kind: Some(kind),
                        peer: door.peer().cloned(),
                    };
                    self.refuse(&refused, begun)
                })
            }
            Err(mut refused) => {
                // A link proves who is at its other end, and that one has a caller who waits.
                if let (Door::Link(link, _), None) = (door, &refused.tell) {
                    refused.tell = told_to(link, bytes);
                }
                Err(self.refuse(&refused, begun))
            }
        }
    }

    /// Carries a decision out. A call that draws on a budget may have to wait for calls to be reserved.
    async fn carry_out(&self, act: Authorized, door: &Door) -> Result<Step, Refusal> {
        let mut act = Box::new(act);
        for _ in 0..RESERVES_MAX {
            match self.perform(act, door, self.clock.now())? {
                Performed::Done(step) => return Ok(step),
                // Others may be faster and use up what is reserved here.
                Performed::Reserve(same, need) => {
                    self.registrar.reserve(need, same.agent().name()).await?;
                    act = same;
                }
            }
        }
        Err(Refusal::Busy("the budget's reserve"))
    }

    /// An envelope that came in a frame of a peer's link.
    ///
    /// # Errors
    ///
    /// The signed refusal, for the peer's broker.
    pub async fn handle_relayed(&self, relay: Relay, link: &Arc<Link>) -> Result<Step, Answer> {
        let opened = relay.tokens.iter().map(|token| {
            let text = std::str::from_utf8(token)
                .map_err(|_| Refusal::TokenMalformed("not base64url without padding".into()))?;
            let token = self.state.tokens.open(text, &self.state.roots)?;
            Ok((token, Arc::from(text)))
        });
        match opened.collect::<Result<Vec<Presented>, Refusal>>() {
            Ok(tokens) => {
                let carried = Carried {
                    tokens,
                    onward: relay.onward,
                    visited: relay.visited,
                    age: relay.age,
                };
                let door = Door::Link(Arc::clone(link), Arc::new(carried));
                self.handle(relay.envelope, &door).await
            }
            Err(refusal) => Err(self.refuse(
                &Refused {
                    refusal,
                    stage: "open",
                    sender: None,
                    tell: told_to(link, relay.envelope),
                    kind: Some(Kind::ToolCall),
                    peer: Some(link.org.clone()),
                },
                Instant::now(),
            )),
        }
    }

    /// Has the registrar decide, and says what came of it.
    pub async fn settle(&self, order: Order, agent: AgentId, id: Digest) -> Answer {
        let begun = Instant::now();
        let kind = match &order {
            Order::Register(..) => Kind::RegisterAgent,
            Order::Act(act) => act.envelope().kind(),
            Order::Reserve(..) => Kind::ToolCall,
            Order::Rekey(_) => Kind::LinkAttach,
            Order::Hear(..) => Kind::TrustNews,
        };
        match self.registrar.order(order).await {
            Ok(ack) => {
                tracing::info!(%agent, r#type = %kind, "done");
                let envelope = self.voice.ack(&agent.into(), id, &ack, self.clock.now());
                Answer {
                    envelope,
                    credential: None,
                    status: 200,
                }
            }
            Err(refusal) => self.refuse(
                &Refused {
                    refusal,
                    stage: "registrar",
                    tell: Some((agent.clone().into(), id)),
                    sender: Some(agent),
                    kind: Some(kind),
                    peer: None,
                },
                begun,
            ),
        }
    }

    /// Takes a connection as its agent's session.
    ///
    /// # Errors
    ///
    /// The signed refusal to send before the connection closes.
    pub async fn attach(
        &self,
        bytes: Bytes,
        challenge: Digest,
        channel: Digest,
        outbox: mpsc::Sender<Queued>,
    ) -> Result<(Arc<Session>, Bytes), Answer> {
        let begun = Instant::now();
        let refuse = |refused: &Refused| self.refuse(refused, begun);
        let Decided::Authorized(act) = self
            .decide_durably(bytes, &Door::Threshold)
            .await
            .map_err(|refused| refuse(&refused))?
        else {
            return Err(refuse(&Refused {
                refusal: Refusal::Internal,
                stage: "attach",
                sender: None,
                tell: None,
                kind: None,
                peer: None,
            }));
        };
        let sender = (act.agent().clone(), act.id());
        let attached = self
            .admit_session(&act, challenge, channel, outbox)
            .map_err(|refusal| {
                refuse(&Refused {
                    refusal,
                    stage: "attach",
                    tell: Some((sender.0.clone().into(), sender.1)),
                    sender: Some(sender.0.clone()),
                    kind: Some(Kind::Attach),
                    peer: None,
                })
            })?;
        self.metrics.accepted(Kind::Attach);
        tracing::info!(agent = %act.agent(), session = attached.id(), "attached");
        let agent = self.state.registry.agent(act.agent().name());
        let ack = Ack::Attached {
            roots: self.state.roots.keys().to_vec(),
            envelope_bytes_max: self.config.limits.envelope_bytes_max as u64,
            clock_skew_max_ms: self.config.limits.clock_skew_max_ms,
            prefixes: agent
                .map(|agent| agent.prefixes.clone())
                .unwrap_or_default(),
            successions: self.state.broker_keys.successions(),
        };
        let ack = self.voice.ack(
            &act.agent().clone().into(),
            act.id(),
            &ack,
            self.clock.now(),
        );
        Ok((attached, ack))
    }

    fn admit_session(
        &self,
        act: &Authorized,
        challenge: Digest,
        channel: Digest,
        outbox: mpsc::Sender<Queued>,
    ) -> Result<Arc<Session>, Refusal> {
        let body: Attach = act.envelope().read_body()?;
        if body.challenge != challenge {
            return Err(Refusal::Denied(
                "an attach that answers another challenge".into(),
            ));
        }
        if !self.channels.contains(&body.channel) && body.channel != channel {
            return Err(Refusal::Denied(
                "an attach over another certificate than this broker's".into(),
            ));
        }
        let session = self
            .state
            .sessions
            .attach(act.agent().clone(), *act.key(), outbox)?;
        // The key may have been revoked between the decision and here; whoever revokes looks after us.
        if self.state.key_of(&Speaker::Agent(act.agent().clone())) != Some(*act.key()) {
            self.state.sessions.detach(&session);
            return Err(Refusal::UnknownAgent(act.agent().clone()));
        }
        Ok(session)
    }

    /// The signed answer to what was refused; one line in the log.
    pub fn refuse(&self, refused: &Refused, begun: Instant) -> Answer {
        let code = refused.refusal.code();
        self.metrics.refused(code);
        let agent = refused.sender.as_ref().map(ToString::to_string);
        tracing::info!(
            agent = agent.as_deref().unwrap_or("-"),
            peer = refused.peer.as_ref().map(tracing::field::display),
            r#type = refused.kind.map_or("-", Kind::as_str),
            stage = refused.stage,
            code = code.as_str(),
            // Debug of a string escapes control characters: what a sender wrote never reaches a line raw.
            reason = ?refused.refusal.to_string(),
            us = begun.elapsed().as_micros() as u64,
            "refused"
        );
        let to = refused.tell.as_ref().map(|(to, id)| (to, *id));
        let envelope = self.voice.error(to, &refused.refusal, self.clock.now());
        Answer {
            envelope,
            credential: None,
            status: code.http_status(),
        }
    }
}

/// Whom a refusal of what came in a frame is for, and about what.
fn told_to(link: &Link, bytes: Bytes) -> Option<(Audience, Digest)> {
    let bytes_max = bytes.len();
    let envelope = Envelope::parse(bytes, bytes_max).ok()?;
    let id = proto_spec::wire::identity(&envelope.signed_bytes());
    Some((Audience::Broker(link.org.clone()), id))
}

fn order(act: Authorized) -> Step {
    let (agent, id) = (act.agent().clone(), act.id());
    Step::Order(Order::Act(Box::new(act)), agent, id)
}

/// What may come by which door, before any work is spent on it.
fn fits_door(received: &Received, door: &Door) -> Result<(), Refusal> {
    let envelope = received.envelope();
    let kind = envelope.kind();
    if kind.is_brokers() || kind == Kind::AcceptKey {
        return Err(Refusal::UnknownType(kind.to_string()));
    }
    match door {
        Door::Link(..) if kind.travels() => Ok(()),
        Door::Link(..) => Err(Refusal::UnknownType(kind.to_string())),
        Door::Threshold if kind == Kind::Attach => Ok(()),
        Door::Threshold => Err(Refusal::SessionRequired(kind.as_str())),
        // Only what the broker signs itself for a kept agent comes by this door.
        Door::Bearer(..) => Ok(()),
        Door::Session(session) => match envelope.speaker() {
            Speaker::Agent(agent) if agent != session.agent() => {
                Err(Refusal::NotThisSession(agent.clone()))
            }
            _ if matches!(kind, Kind::Attach | Kind::RegisterAgent) => {
                Err(Refusal::UnknownType(kind.to_string()))
            }
            _ => Ok(()),
        },
        Door::Post { .. } | Door::Older { .. } => match kind {
            Kind::RegisterAgent if envelope.bytes().len() > REGISTER_BYTES_MAX => Err(
                Refusal::TooLarge(envelope.bytes().len(), REGISTER_BYTES_MAX),
            ),
            Kind::Attach
            | Kind::OfferTools
            | Kind::ToolResult
            | Kind::ToolProgress
            | Kind::ToolCancel
            | Kind::ToolInput
            | Kind::Subscribe
            | Kind::Unsubscribe => Err(Refusal::SessionRequired(kind.as_str())),
            _ => Ok(()),
        },
    }
}
