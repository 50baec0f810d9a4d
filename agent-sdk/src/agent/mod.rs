//! The paved path: an agent registers, calls, serves, listens.
//!
//! Here is what an agent is made of and how it asks its broker; `registering`, `calling`, `serving` and
//! `listening` are what it does.

mod calling;
mod listening;
mod receivers;
mod registering;
mod serving;

use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;
use proto_spec::message::Ack;
use proto_spec::{AgentId, Audience, Envelope, Kind, PublicKey};
use serde::Serialize;

use crate::broker_keys::BrokerKeys;
use crate::call::{CallOptions, is_stale};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::keyfile::Key;
use crate::line::Line;
use crate::link::Link;
use crate::link::http::Poster;
use crate::post::{Reply, exchange};
use crate::seen::{NONCES_MAX, Seen};
use crate::session::{Core, Receiver, expect};
use crate::voice::{Header, Voice};
use receivers::Receivers;
pub use registering::{RegisterOptions, Registration};
pub use serving::{Offered, Serving};

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

impl Agent {
    /// An agent with this configuration. Connects when there is something to say.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where the CA's certificates cannot be used.
    pub fn new(config: Config) -> Result<Self> {
        let link = Link::new(config.broker, &config.roots, config.connect_timeout)?;
        let voice = Voice::new(config.agent, config.key, config.clock);
        let me = voice.id().clone();
        let core = Arc::new(Core {
            link,
            voice,
            broker: BrokerKeys::new(me, config.broker_key, config.keep),
        });
        let start = core.now();
        let window = || Ok::<_, Error>(Seen::new(random()?, start, NONCES_MAX));
        let receivers = Arc::new(Receivers::new(window()?, window()?));
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

    /// The key under which it believes its broker: the configured one, or what followed it since.
    #[must_use]
    pub fn broker_key(&self) -> PublicKey {
        self.inner.core.broker.pinned()
    }

    /// Its organisation's broker, as the audience of acts.
    #[must_use]
    pub fn broker(&self) -> &Audience {
        self.inner.core.voice.broker()
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

    /// Attaches the session now instead of with the first `serve`, `subscribe` or `call_with`.
    ///
    /// # Errors
    ///
    /// Those of attaching.
    pub async fn attach(&self) -> Result<()> {
        self.inner.line.session().await.map(drop)
    }

    /// Posts `bytes` as they are, and gives back status and body as they came: for tests and for
    /// looking closely. Nothing is signed and nothing is believed. Waits as long as a call without a
    /// deadline of its own does.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`], [`Error::Tls`], [`Error::OutcomeUnknown`] and [`Error::Deadline`].
    pub async fn send_raw(&self, bytes: impl Into<Bytes>) -> Result<(u16, Bytes)> {
        let Inner { core, poster, .. } = &*self.inner;
        let patience = CallOptions::default().patience();
        tokio::select! {
            posted = poster.post(&core.link, bytes.into()) => {
                posted.map(|posted| (posted.status, posted.body))
            }
            () = core.voice.clock().sleep(patience) => Err(Error::Deadline(patience)),
        }
    }

    /// What it takes for the time.
    #[cfg(feature = "mcp")]
    pub(crate) fn clock(&self) -> &dyn crate::Clock {
        self.inner.core.voice.clock()
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

fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|why| Error::Config(vec![format!("no randomness from the system: {why}")]))?;
    Ok(bytes)
}
