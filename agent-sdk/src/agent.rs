//! The paved path: an agent registers, calls, serves, listens.

use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use proto_spec::admission::{BrokerSaid, Vouched};
use proto_spec::message::{
    self, AcceptKey, Ack, DiscoverTools, DiscoveredTool, EmitEvent, OfferTools, RegisterAgent,
    RotateKey, ToolsDiscovered,
};
use proto_spec::{
    AgentId, Audience, Capability, Code, Draft, Envelope, Kind, Pattern, PublicKey, Received,
    Speaker,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};

use crate::call::{CallHandle, CallOptions, Question, is_stale, raw_result, typed};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::events::{Hearers, Missed, Subscription};
use crate::keyfile::Key;
use crate::line::{Hold, Line};
use crate::link::Link;
use crate::link::backoff::Backoff;
use crate::link::http::Poster;
use crate::post::{Reply, exchange};
use crate::seen::{NONCES_MAX, Seen};
use crate::serve::Provider;
use crate::session::{Core, Receiver, Session, expect};
use crate::tool::Tool;
use crate::voice::{Header, Voice};

/// How long calls that run may finish after `serve_until` was told to stop.
const DRAIN: Duration = Duration::from_secs(30);
/// Tools that one `discover` collects at most.
const DISCOVERED_MAX: usize = 100_000;
/// Between two questions whether an admin has decided.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// An agent of an organisation, and its way to the organisation's broker. Cheap to clone; all clones
/// share one session.
#[derive(Clone)]
pub struct Agent {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    poster: Poster,
    line: Arc<Line>,
    receivers: Arc<Receivers>,
    calls_at_once: usize,
}

/// What an agent asks for when it registers. It is a request: an admin, or the enrolment token,
/// decides what of it is granted.
#[derive(Debug, Clone, Default)]
pub struct RegisterOptions {
    /// What it would like to be granted.
    pub capabilities: Vec<Pattern>,
    /// Under which it would like to offer tools; its own name when empty.
    pub prefixes: Vec<Pattern>,
    /// An enrolment token (base64url), which decides at once.
    pub enrolment: Option<String>,
    /// For the admin who decides; at most 256 characters.
    pub note: Option<String>,
}

/// What came of registering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registration {
    /// An admin has to decide. Tell them the key's fingerprint, and ask again.
    Pending,
    /// This name and key are an agent.
    Registered {
        /// What it is granted on record.
        capabilities: Vec<Pattern>,
        /// Under which it may offer tools.
        prefixes: Vec<Pattern>,
    },
}

impl Agent {
    /// An agent with this configuration. Connects when there is something to say.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where the CA's certificates cannot be used.
    pub fn new(config: Config) -> Result<Self> {
        let link = Link::new(config.broker, &config.roots, config.connect_timeout)?;
        let voice = Voice::new(config.agent, config.key, config.clock);
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)
            .map_err(|why| Error::Config(vec![format!("no randomness from the system: {why}")]))?;
        let seen = Arc::new(Seen::new(secret, voice.now(), NONCES_MAX));
        let core = Arc::new(Core {
            link,
            voice,
            broker_key: config.broker_key,
        });
        let receivers = Arc::new(Receivers {
            provider: RwLock::new(None),
            hearers: Arc::default(),
            seen,
        });
        let line = Arc::new(Line::new(
            Arc::clone(&core),
            Arc::clone(&receivers) as Arc<dyn Receiver>,
        ));
        let inner = Inner {
            core,
            poster: Poster::default(),
            line,
            receivers,
            calls_at_once: config.calls_at_once,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// An agent as the environment says: [`Config::from_env`].
    ///
    /// # Errors
    ///
    /// Those of [`Config::from_env`] and [`Agent::new`].
    pub fn from_env() -> Result<Self> {
        Self::new(Config::from_env()?)
    }

    /// Who it is.
    #[must_use]
    pub fn id(&self) -> &AgentId {
        self.inner.core.voice.id()
    }

    /// Its public key. Its `fingerprint()` is what an admin compares.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.inner.core.voice.public()
    }

    /// Its key, to delegate tokens with.
    #[must_use]
    pub fn key(&self) -> &Key {
        self.inner.core.voice.key()
    }

    /// Its organisation's broker, as the audience of acts.
    #[must_use]
    pub fn broker(&self) -> &Audience {
        self.inner.core.voice.broker()
    }

    /// Asks to become an agent, or whether it is one: asking again changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with `DENIED` where an admin said no, and those of [`Agent::request`].
    pub async fn register(&self, options: RegisterOptions) -> Result<Registration> {
        let body = RegisterAgent {
            pubkey: self.public_key(),
            capabilities: options.capabilities,
            prefixes: options.prefixes,
            enrolment: options.enrolment,
            note: options.note,
        };
        match self
            .request(Kind::RegisterAgent, self.broker().clone(), &body)
            .await?
        {
            Ack::Pending => Ok(Registration::Pending),
            Ack::Registered {
                capabilities,
                prefixes,
            } => Ok(Registration::Registered {
                capabilities,
                prefixes,
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// Registers, and waits until an admin has decided, through lost connections too. Give it a
    /// deadline with `tokio::time::timeout` where nobody may come.
    ///
    /// # Errors
    ///
    /// What no waiting mends.
    pub async fn register_and_wait(&self, options: RegisterOptions) -> Result<Registration> {
        let clock = self.inner.core.voice.clock();
        let mut backoff = Backoff::default();
        loop {
            match self.register(options.clone()).await {
                Ok(Registration::Pending) => clock.sleep(ASK_AGAIN).await,
                // Registering twice is registering once, so a lost answer is asked for again.
                Err(why) if why.is_retryable() || matches!(why, Error::OutcomeUnknown(_)) => {
                    tracing::warn!(%why, "registering again");
                    clock
                        .sleep(backoff.failed(getrandom::u64().unwrap_or(u64::MAX)))
                        .await;
                }
                decided => return decided,
            }
        }
    }

    /// Calls a tool and waits for its answer: over the session if there is one, else by POST.
    ///
    /// ```no_run
    /// # async fn example(agent: agent_sdk::Agent) -> agent_sdk::Result<()> {
    /// let answer: String =
    ///     agent.call("hello@acme", "hello.greet", &serde_json::json!({"name": "Ada"})).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Tool`] where the tool says why not, [`Error::Refused`] where the broker does,
    /// [`Error::OutcomeUnknown`] where the connection was lost: the call is not repeated.
    pub async fn call<T: DeserializeOwned>(
        &self,
        to: impl Display,
        tool: &str,
        arguments: &(impl Serialize + ?Sized),
    ) -> Result<T> {
        typed(
            &self
                .call_raw(to, tool, arguments, &CallOptions::default())
                .await?,
        )
    }

    /// Like [`Agent::call`], with options, and with the answer as JSON.
    ///
    /// # Errors
    ///
    /// Those of [`Agent::call`].
    pub async fn call_raw(
        &self,
        to: impl Display,
        tool: &str,
        arguments: &(impl Serialize + ?Sized),
        options: &CallOptions,
    ) -> Result<Box<RawValue>> {
        let question = Question::new(agent_named(to)?, tool, arguments)?;
        let mut outcome = self.call_once(&question, options).await;
        if is_stale(&outcome) {
            outcome = self.call_once(&question, options).await;
        }
        outcome
    }

    async fn call_once(&self, question: &Question, options: &CallOptions) -> Result<Box<RawValue>> {
        let Inner {
            core, poster, line, ..
        } = &*self.inner;
        if let Some(session) = line.living() {
            return question.ask(line, &session, options).await?.raw().await;
        }
        let call = question.sign(&core.voice, options)?;
        let posted = Box::pin(exchange(core, poster, call, Some(&question.provider)));
        let reply = tokio::select! {
            reply = posted => reply?,
            // Dropping the request closes it, which cancels the call.
            () = core.voice.clock().sleep(options.patience()) => {
                return Err(Error::Deadline(options.patience()));
            }
        };
        match reply {
            Reply::Answer(answer) => raw_result(&answer),
            Reply::Word(envelope) => Err(Error::Unexpected(format!("`{}`", envelope.kind()))),
        }
    }

    /// Calls a tool and stays in touch: progress, input, cancelling. Attaches a session if there is
    /// none.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`] where nothing was sent, and those of attaching.
    pub async fn call_with(
        &self,
        to: impl Display,
        tool: &str,
        arguments: &(impl Serialize + ?Sized),
        options: CallOptions,
    ) -> Result<CallHandle> {
        let question = Question::new(agent_named(to)?, tool, arguments)?;
        let session = self.inner.line.session().await?;
        question.ask(&self.inner.line, &session, &options).await
    }

    /// Which tools this agent could call; all pages of them.
    ///
    /// # Errors
    ///
    /// Those of [`Agent::request`].
    pub async fn discover(&self, wanted: DiscoverTools) -> Result<Vec<DiscoveredTool>> {
        let mut wanted = wanted;
        let mut found = Vec::new();
        loop {
            let envelope = self
                .ask(Kind::DiscoverTools, self.broker(), &wanted)
                .await?;
            let page: ToolsDiscovered = expect(&envelope, Kind::ToolsDiscovered)?;
            found.extend(page.tools);
            match page.next {
                Some(next)
                    if wanted.after.as_ref() != Some(&next) && found.len() < DISCOVERED_MAX =>
                {
                    wanted.after = Some(next);
                }
                _ => return Ok(found),
            }
        }
    }

    /// Tells whoever is subscribed that something happened.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where `topic` is none; [`Error::Refused`] without `event.emit.<topic>`.
    pub async fn emit(&self, topic: impl Display, data: &(impl Serialize + ?Sized)) -> Result<()> {
        let topic: Capability = parsed("topic", topic)?;
        let to = Audience::Topic(self.id().org().clone(), topic);
        let data = to_raw_value(data).map_err(|why| Error::Unsendable(why.to_string()))?;
        match self
            .request(Kind::EmitEvent, to, &EmitEvent { data: &data })
            .await?
        {
            Ack::Emitted => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Listens to topics: `build.done`, `build.*`. Goes on across lost sessions.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where a pattern is none; [`Error::Refused`] without
    /// `event.subscribe.<pattern>`; those of attaching.
    pub async fn subscribe(
        &self,
        topics: impl IntoIterator<Item = impl Display>,
    ) -> Result<Subscription> {
        let topics: Result<Vec<Pattern>> = topics
            .into_iter()
            .map(|topic| parsed("topic", topic))
            .collect();
        Subscription::begin(&self.inner.line, &self.inner.receivers.hearers, topics?).await
    }

    /// Any act that the broker answers with an `ack`: admin acts, `revoke`, ….
    ///
    /// # Errors
    ///
    /// [`Error::Refused`]; [`Error::OutcomeUnknown`] where the connection was lost after sending.
    pub async fn request(
        &self,
        kind: Kind,
        to: Audience,
        body: &(impl Serialize + ?Sized),
    ) -> Result<Ack> {
        expect(&self.ask(kind, &to, body).await?, Kind::Ack)
    }

    /// Makes `new` this agent's key: the old one signs this, the new one agrees, and from the
    /// broker's answer on only the new one is this agent. Save `new` first, and go on with an
    /// [`Agent`] that has it.
    ///
    /// # Errors
    ///
    /// Those of [`Agent::request`]. Where the outcome is unknown, `register` with either key tells.
    pub async fn rotate_key(&self, new: &Key) -> Result<()> {
        let voice = &self.inner.core.voice;
        let mut nonce = [0_u8; 16];
        getrandom::fill(&mut nonce)
            .map_err(|why| Error::Unsendable(format!("no randomness from the system: {why}")))?;
        let accept = Draft {
            kind: Kind::AcceptKey,
            agent: &Speaker::Agent(self.id().clone()),
            to: Some(self.broker()),
            ts: voice.now(),
            nonce: &format!("{:032x}", u128::from_be_bytes(nonce)),
            re: None,
            token: None,
            deadline: None,
            body: &AcceptKey {
                pubkey: new.public(),
                follows: self.public_key(),
            },
        };
        let accept = accept
            .seal(new.signing())
            .map_err(|why| Error::Unsendable(why.to_string()))?;
        let accept = String::from_utf8_lossy(&accept.bytes).into_owned();
        match self
            .request(
                Kind::RotateKey,
                self.broker().clone(),
                &RotateKey { accept },
            )
            .await?
        {
            Ack::Rotated { key } if key == new.public() => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Serves `tools` until something ends it that no waiting mends. Lost sessions are attached again.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where a tool cannot be offered, [`Error::Refused`] where the broker does not
    /// take the offer or the agent, [`Error::AlreadyServing`].
    pub async fn serve(&self, tools: impl IntoIterator<Item = Tool>) -> Result<()> {
        self.serve_until(tools, std::future::pending()).await
    }

    /// Like [`Agent::serve`], until `shutdown` is done: then nothing is offered any more, and calls
    /// that run have half a minute to finish.
    ///
    /// # Errors
    ///
    /// Those of [`Agent::serve`].
    pub async fn serve_until(
        &self,
        tools: impl IntoIterator<Item = Tool>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<()> {
        let Inner {
            line,
            receivers,
            calls_at_once,
            ..
        } = &*self.inner;
        let tools = tools.into_iter().collect();
        let provider = Arc::new(Provider::new(
            tools,
            Arc::clone(&receivers.seen),
            *calls_at_once,
        )?);
        let _serving = Serving::begin(receivers, &provider, self.id())?;
        let hold = line.hold();
        tokio::select! {
            ended = self.offering(&hold, &provider) => ended,
            () = shutdown => {
                // Also where the first offer is still on its way: the broker may have taken it.
                if let Some(session) = line.living() {
                    drain(&session, &provider).await;
                }
                Ok(())
            }
        }
    }

    /// Offers the provider's tools on each new session. Ends only with an error.
    async fn offering(&self, hold: &Hold, provider: &Provider) -> Result<()> {
        let mut backoff = Backoff::default();
        loop {
            let session = hold.session().await?;
            let offer = provider.offer();
            match session.ask(Kind::OfferTools, self.broker(), &offer).await {
                Ok(_) => {
                    tracing::info!(agent = %self.id(), tools = offer.tools.len(), "serving");
                    backoff.reset();
                    session.end().await;
                }
                // The session was lost: the next one is offered to.
                Err(_) if session.has_ended() => {}
                Err(why) if why.is_retryable() || why.code() == Some(Code::OutcomeUnknown) => {
                    tracing::warn!(%why, "offering again");
                    let wait = backoff.failed(getrandom::u64().unwrap_or(u64::MAX));
                    self.inner.core.voice.clock().sleep(wait).await;
                }
                Err(why) => return Err(why),
            }
        }
    }

    /// Attaches the session now instead of with the first `serve`, `subscribe` or `call_with`.
    ///
    /// # Errors
    ///
    /// Those of attaching.
    pub async fn attach(&self) -> Result<()> {
        self.inner.line.session().await.map(drop)
    }

    /// Posts `bytes` as they are, and gives back status and body as they came: for tests and for
    /// looking closely. Nothing is signed and nothing is believed.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`], [`Error::Tls`] and [`Error::OutcomeUnknown`].
    pub async fn send_raw(&self, bytes: impl Into<Bytes>) -> Result<(u16, Bytes)> {
        let posted = self
            .inner
            .poster
            .post(&self.inner.core.link, bytes.into())
            .await?;
        Ok((posted.status, posted.body))
    }

    async fn ask(
        &self,
        kind: Kind,
        to: &Audience,
        body: &(impl Serialize + ?Sized),
    ) -> Result<Envelope> {
        let mut outcome = self.ask_once(kind, to, body).await;
        if is_stale(&outcome) {
            outcome = self.ask_once(kind, to, body).await;
        }
        outcome
    }

    async fn ask_once(
        &self,
        kind: Kind,
        to: &Audience,
        body: &(impl Serialize + ?Sized),
    ) -> Result<Envelope> {
        let Inner { core, poster, .. } = &*self.inner;
        let envelope = core.voice.say(kind, to, Header::default(), body)?;
        let posted = Box::pin(exchange(core, poster, envelope, None));
        match tokio::time::timeout(core.link.timeout() * 2, posted).await {
            Ok(reply) => match reply? {
                Reply::Word(envelope) => Ok(envelope),
                Reply::Answer(_) => Err(Error::Unexpected("an agent's words".into())),
            },
            Err(_) => Err(Error::OutcomeUnknown(
                "the broker did not answer in time".into(),
            )),
        }
    }
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Agent({} at {})",
            self.id(),
            self.inner.core.link.endpoint()
        )
    }
}

/// Takes the offer back, and lets calls that run finish. The session must live until they have: their
/// answers are taken from it alone.
async fn drain(session: &Session, provider: &Provider) {
    let broker = session.voice().broker();
    let nothing = OfferTools { tools: Vec::new() };
    let drained = async {
        if let Err(why) = session.ask(Kind::OfferTools, broker, &nothing).await {
            tracing::debug!(%why, "the offer was not taken back");
        }
        provider.drained().await;
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("calls were still running, and are stopped");
    }
}

/// Who in this agent hears what the session brings.
struct Receivers {
    provider: RwLock<Option<Arc<Provider>>>,
    hearers: Arc<Hearers>,
    seen: Arc<Seen>,
}

impl Receivers {
    fn provider(&self) -> Option<Arc<Provider>> {
        self.provider
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Receiver for Receivers {
    fn delivered(&self, session: &Arc<Session>, vouched: &Arc<Vouched>, received: Received) {
        if received.envelope().kind() == Kind::EmitEvent {
            let heard = self
                .hearers
                .delivered(session, vouched, received, &self.seen);
            if let Err(why) = heard {
                tracing::warn!(emitter = %vouched.credential().subject, code = %why.code(), %why, "event refused");
            }
            return;
        }
        match self.provider() {
            Some(provider) => provider.delivered(session, vouched, received),
            None => {
                tracing::warn!(kind = %received.envelope().kind(), "delivery to an agent that does not serve")
            }
        }
    }

    fn said(&self, said: &BrokerSaid) {
        let envelope = said.envelope();
        if envelope.kind() == Kind::Event {
            if let Ok(event) = envelope.read_body::<message::Event>() {
                self.hearers.missed(Missed {
                    count: event.missed,
                    reconnected: false,
                });
            }
        } else if let Some(provider) = self.provider() {
            provider.said(said);
        }
    }

    fn ended(&self) {
        if let Some(provider) = self.provider() {
            provider.stop();
        }
    }
}

/// One `serve` at a time; its tools are gone when it ends, and with them what they hold.
struct Serving<'a> {
    receivers: &'a Receivers,
}

impl<'a> Serving<'a> {
    fn begin(receivers: &'a Receivers, provider: &Arc<Provider>, me: &AgentId) -> Result<Self> {
        let mut slot = receivers
            .provider
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if slot.is_some() {
            return Err(Error::AlreadyServing(me.clone()));
        }
        *slot = Some(Arc::clone(provider));
        Ok(Self { receivers })
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let provider = self
            .receivers
            .provider
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(provider) = provider {
            provider.stop();
        }
    }
}

fn agent_named(to: impl Display) -> Result<AgentId> {
    parsed("recipient", to)
}

fn parsed<T: std::str::FromStr>(what: &str, text: impl Display) -> Result<T>
where
    T::Err: Display,
{
    let text = text.to_string();
    text.parse()
        .map_err(|why: T::Err| Error::Config(vec![format!("{what} {text:?}: {why}")]))
}

fn unexpected(ack: &Ack) -> Error {
    let status = serde_json::to_value(ack).ok();
    let status = status
        .as_ref()
        .and_then(|ack| ack["status"].as_str())
        .unwrap_or("something else");
    Error::Unexpected(format!("`ack` with status {status:?}"))
}
