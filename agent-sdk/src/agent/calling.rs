//! Calling other agents' tools, and finding out which.

use std::fmt::Display;

use proto_spec::message::{DiscoverTools, DiscoveredTool, ToolsDiscovered};
use proto_spec::{AgentId, Kind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::{Agent, Inner, parsed};
use crate::call::{CallHandle, CallOptions, Question, is_stale, raw_result, typed};
use crate::error::{Error, Result};
use crate::post::{Reply, exchange};
use crate::session::expect;

/// Tools that one `discover` collects at most.
const DISCOVERED_MAX: usize = 100_000;

impl Agent {
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
            match question.ask(line, &session, options).await {
                // The session ended before anything was sent.
                Err(Error::Unreachable { .. }) => {}
                asked => return asked?.raw().await,
            }
        }
        let call = question.sign(&core.voice, options)?;
        let answerer = question.answerer(options);
        let posted = Box::pin(exchange(core, poster, call, Some(&answerer)));
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
        let mut found = Vec::new();
        self.discover_pages(wanted, |page| found.extend(page))
            .await?;
        Ok(found)
    }

    /// The same page by page, for whoever does not keep all of it.
    pub(crate) async fn discover_pages(
        &self,
        mut wanted: DiscoverTools,
        mut take: impl FnMut(Vec<DiscoveredTool>),
    ) -> Result<()> {
        let mut found = 0;
        loop {
            let envelope = self
                .ask(Kind::DiscoverTools, self.broker(), &wanted)
                .await?;
            let page: ToolsDiscovered = expect(&envelope, Kind::ToolsDiscovered)?;
            found += page.tools.len();
            take(page.tools);
            match page.next {
                Some(next) if wanted.after.as_ref() != Some(&next) && found < DISCOVERED_MAX => {
                    wanted.after = Some(next);
                }
                _ => return Ok(()),
            }
        }
    }
}

fn agent_named(to: impl Display) -> Result<AgentId> {
    parsed("recipient", to)
}
