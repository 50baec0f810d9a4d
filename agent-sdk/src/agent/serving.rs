//! Serving tools until told to stop.
//!
//! [`Agent::serve`] is the short way. [`Agent::offer`] is the same in two steps, for those who must
//! know when callers can find them: whoever holds what it gives serves already.

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use proto_spec::message::OfferTools;
use proto_spec::{Code, Kind};

use super::{Agent, Inner};
use crate::error::{Error, Result};
use crate::line::Hold;
use crate::link::backoff::Backoff;
use crate::serve::Provider;
use crate::session::Session;
use crate::tool::Tool;
use crate::voice::Header;

/// How long calls that run may finish after `serve_until` was told to stop.
const DRAIN: Duration = Duration::from_secs(30);

const NOTHING: OfferTools = OfferTools { tools: Vec::new() };

impl Agent {
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
        Serving::begin(self, tools)?.run_until(shutdown).await
    }

    /// Offers `tools`, and waits until the broker has taken them: from then on callers find them, and
    /// their calls are served. Waits through every failure that may pass; give it a deadline with
    /// `tokio::time::timeout` where that may be long.
    ///
    /// ```no_run
    /// # async fn example(agent: agent_sdk::Agent, tools: Vec<agent_sdk::Tool>) -> agent_sdk::Result<()> {
    /// let serving = agent.offer(tools).await?;
    /// println!("ready");
    /// serving.run().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Agent::serve`].
    pub async fn offer(&self, tools: impl IntoIterator<Item = Tool>) -> Result<Serving> {
        let mut serving = Serving::begin(self, tools)?;
        serving.offer().await?;
        Ok(serving)
    }
}

/// Tools that the broker has taken ([`Agent::offer`]). One at a time for each agent.
///
/// Calls are served while this lives. [`Serving::run`] also offers the tools again where the session
/// was lost: until it is called, nobody does. Dropping this takes the offer back, and stops the calls
/// that run.
pub struct Serving {
    agent: Agent,
    provider: Arc<Provider>,
    hold: Hold,
    /// The session whose broker has taken the offer.
    taken: Option<Arc<Session>>,
    /// Whether the broker may still believe that we serve.
    offers: bool,
}

impl Serving {
    /// What is offered, to put something else in its place while [`Serving::run`] runs.
    #[must_use]
    pub fn offered(&self) -> Offered {
        Offered {
            provider: Arc::clone(&self.provider),
        }
    }

    /// Serves until something ends it that no waiting mends. Lost sessions are attached again.
    ///
    /// # Errors
    ///
    /// Those of [`Agent::serve`].
    pub async fn run(self) -> Result<()> {
        self.run_until(std::future::pending()).await
    }

    /// Like [`Serving::run`], until `shutdown` is done: then nothing is offered any more, and calls
    /// that run have half a minute to finish.
    ///
    /// # Errors
    ///
    /// Those of [`Agent::serve`].
    pub async fn run_until(mut self, shutdown: impl Future<Output = ()>) -> Result<()> {
        tokio::select! {
            Err(why) = self.keep_offering() => return Err(why),
            () = shutdown => {}
        }
        // Also where the first offer is still on its way: the broker may have taken it.
        if let Some(session) = self.agent.inner.line.living() {
            drain(&session, &self.provider).await;
            self.offers = false;
        }
        Ok(())
    }

    fn begin(agent: &Agent, tools: impl IntoIterator<Item = Tool>) -> Result<Self> {
        let Inner {
            line,
            receivers,
            calls_at_once,
            ..
        } = &*agent.inner;
        let tools = tools.into_iter().collect();
        let provider = Provider::new(tools, Arc::clone(&receivers.seen), *calls_at_once)?;
        let provider = Arc::new(provider);
        let mut slot = receivers
            .provider
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if slot.is_some() {
            return Err(Error::AlreadyServing(agent.id().clone()));
        }
        *slot = Some(Arc::clone(&provider));
        Ok(Self {
            agent: agent.clone(),
            provider,
            hold: line.hold(),
            taken: None,
            offers: true,
        })
    }

    /// Offers the tools on each new session, and when they are others. Ends only with an error.
    async fn keep_offering(&mut self) -> Result<Infallible> {
        loop {
            if let Some(session) = &self.taken {
                tokio::select! {
                    () = session.end() => {}
                    () = self.provider.replaced() => {}
                }
            }
            self.offer().await?;
        }
    }

    /// Offers the tools until a broker has taken them.
    async fn offer(&mut self) -> Result<()> {
        let agent = &self.agent;
        let offer = self.provider.offer();
        let mut backoff = Backoff::default();
        loop {
            let session = self.hold.session().await?;
            match session.ask(Kind::OfferTools, agent.broker(), &offer).await {
                Ok(_) => {
                    tracing::info!(agent = %agent.id(), tools = offer.tools.len(), "serving");
                    self.taken = Some(session);
                    return Ok(());
                }
                // The session was lost: the next one is offered to.
                Err(_) if session.has_ended() => {}
                Err(why) if why.is_retryable() || why.code() == Some(Code::OutcomeUnknown) => {
                    tracing::warn!(%why, "offering again");
                    let wait = backoff.failed(getrandom::u64().unwrap_or(u64::MAX));
                    agent.inner.core.voice.clock().sleep(wait).await;
                }
                Err(why) => return Err(why),
            }
        }
    }
}

/// What a [`Serving`] offers.
#[derive(Clone)]
pub struct Offered {
    provider: Arc<Provider>,
}

impl Offered {
    /// Serves `tools` in the place of those before, and has [`Serving::run`] offer them. Calls that run are
    /// not disturbed.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where a tool cannot be offered: then nothing has changed.
    pub fn replace(&self, tools: impl IntoIterator<Item = Tool>) -> Result<()> {
        self.provider.replace(tools.into_iter().collect())
    }
}

impl std::fmt::Debug for Offered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Offered({} tools)", self.provider.offer().tools.len())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let Inner {
            line, receivers, ..
        } = &*self.agent.inner;
        let provider = receivers
            .provider
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let session = line.living();
        if let Some(provider) = provider {
            provider.stop(session.as_ref());
        }
        if let Some(session) = session.filter(|_| self.offers) {
            let voice = session.voice();
            let said = voice.say(
                Kind::OfferTools,
                voice.broker(),
                Header::default(),
                &NOTHING,
            );
            // Where the queue is full, calls that still come are not answered.
            let _ = said.and_then(|envelope| session.try_tell(envelope));
        }
    }
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Serving({} tools of {})",
            self.provider.offer().tools.len(),
            self.agent.id()
        )
    }
}

/// Takes the offer back, and lets calls that run finish. The session must live until they have: their
/// answers are taken from it alone.
async fn drain(session: &Session, provider: &Provider) {
    let broker = session.voice().broker();
    let drained = async {
        if let Err(why) = session.ask(Kind::OfferTools, broker, &NOTHING).await {
            tracing::debug!(%why, "the offer was not taken back");
        }
        provider.drained().await;
    };
    tokio::select! {
        () = drained => {}
        () = session.voice().clock().sleep(DRAIN) => {
            tracing::warn!("calls were still running, and are stopped");
        }
    }
}
