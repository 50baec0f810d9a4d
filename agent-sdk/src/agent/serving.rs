//! Serving tools until told to stop.

use std::future::Future;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use proto_spec::message::OfferTools;
use proto_spec::{AgentId, Code, Kind};

use super::receivers::Receivers;
use super::{Agent, Inner};
use crate::error::{Error, Result};
use crate::line::{Hold, Line};
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
        let mut serving = Serving::begin(receivers, line, &provider, self.id())?;
        let hold = line.hold();
        tokio::select! {
            ended = self.offering(&hold, &provider) => ended,
            () = shutdown => {
                // Also where the first offer is still on its way: the broker may have taken it.
                if let Some(session) = line.living() {
                    drain(&session, &provider).await;
                    serving.offers = false;
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

/// One `serve` at a time; its tools are gone when it ends, and with them what they hold.
struct Serving<'a> {
    receivers: &'a Receivers,
    line: &'a Line,
    /// Whether the broker may still believe that we serve.
    offers: bool,
}

impl<'a> Serving<'a> {
    fn begin(
        receivers: &'a Receivers,
        line: &'a Line,
        provider: &Arc<Provider>,
        me: &AgentId,
    ) -> Result<Self> {
        let mut slot = receivers
            .provider
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if slot.is_some() {
            return Err(Error::AlreadyServing(me.clone()));
        }
        *slot = Some(Arc::clone(provider));
        Ok(Self {
            receivers,
            line,
            offers: true,
        })
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
        let session = self.line.living();
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
