//! Calls in the name of an agent of this SDK, signed with its own key.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use proto_spec::message::DiscoverTools;
use proto_spec::{AgentId, Code, Digest, Timestamp};
use tokio::sync::{Mutex, watch};

use super::catalogue::{Catalogue, Scope};
use super::gathered::Gathered;
use super::upstream::{Failure, Ongoing, Outgoing, Step, Upstream};
use crate::mcp::rpc::RpcError;
use crate::{Agent, CallHandle, CallOptions, Error};

/// How long what was discovered is taken for what there is: a client asks several things at once.
const FRESH: Duration = Duration::from_secs(1);
/// How often discovery is looked at again while somebody wants to hear of changes.
const LOOK: Duration = Duration::from_secs(5);

/// An agent, for whoever speaks MCP.
#[derive(Debug)]
pub struct ThroughAgent {
    agent: Agent,
    changes: watch::Sender<()>,
    found: Mutex<Option<Found>>,
}

#[derive(Debug)]
struct Found {
    at: Timestamp,
    scope: Scope,
    catalogue: Arc<Catalogue>,
    digest: Digest,
}

impl ThroughAgent {
    /// Calls through `agent`.
    #[must_use]
    pub fn new(agent: Agent) -> Self {
        Self {
            agent,
            changes: watch::Sender::default(),
            found: Mutex::default(),
        }
    }

    /// Looks again every few seconds at what may be called, as long as anybody wants to hear of changes.
    /// Ends only by being dropped: run it beside what serves the client, with the place that this is for.
    pub async fn watch(&self, scope: &Scope) {
        loop {
            self.agent.clock().sleep(LOOK).await;
            if self.changes.receiver_count() > 0 {
                // A broker that cannot be asked says nothing new.
                let _ = self.look(scope, &mut *self.found.lock().await).await;
            }
        }
    }

    /// Asks the broker, and says so where it is not what was `found` before.
    async fn look(
        &self,
        scope: &Scope,
        found: &mut Option<Found>,
    ) -> Result<Arc<Catalogue>, Error> {
        let wanted = DiscoverTools {
            agent: scope.only().cloned(),
            ..DiscoverTools::default()
        };
        let mut gathered = Gathered::new(scope, self.agent.id().org());
        let take = |page| gathered.take(page);
        self.agent.discover_pages(wanted, take).await?;
        let digest = Digest::of(&serde_json::to_vec(&gathered.tools).unwrap_or_default());
        let catalogue = Arc::new(Catalogue::of(gathered));
        let before = found.replace(Found {
            at: self.agent.clock().now(),
            scope: scope.clone(),
            catalogue: Arc::clone(&catalogue),
            digest,
        });
        if before.is_some_and(|before| before.scope == *scope && before.digest != digest) {
            self.changes.send_replace(());
        }
        Ok(catalogue)
    }
}

impl Upstream for ThroughAgent {
    fn agent(&self) -> &AgentId {
        self.agent.id()
    }

    fn catalogue<'a>(
        &'a self,
        scope: &'a Scope,
    ) -> BoxFuture<'a, Result<Arc<Catalogue>, RpcError>> {
        Box::pin(async move {
            // Held while the broker is asked: whoever comes meanwhile takes that answer.
            let mut found = self.found.lock().await;
            let now = self.agent.clock().now();
            if let Some(found) = &*found
                && found.scope == *scope
                && now.distance(found.at) < FRESH
            {
                return Ok(Arc::clone(&found.catalogue));
            }
            let catalogue = self.look(scope, &mut found).await;
            catalogue.map_err(|why| RpcError::from(&failure(why)))
        })
    }

    fn call(&self, call: Outgoing) -> BoxFuture<'_, Result<Box<dyn Ongoing>, RpcError>> {
        Box::pin(async move {
            let options = CallOptions {
                deadline: call.deadline,
                progress: call.progress,
                mcp: call.mcp,
                ..CallOptions::default()
            };
            let (to, tool) = (&call.to, call.tool.as_str());
            let called = self
                .agent
                .call_with(to, tool, &call.arguments, options)
                .await;
            Ok(Box::new(match called {
                Ok(handle) => Called::Running(handle),
                Err(why) => Called::Over(Some(failure(why))),
            }) as Box<dyn Ongoing>)
        })
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}

/// A call that was made, or could not be.
#[derive(Debug)]
enum Called {
    Running(CallHandle),
    Over(Option<Failure>),
}

impl Ongoing for Called {
    fn next(&mut self) -> BoxFuture<'_, Step> {
        Box::pin(async move {
            if let Self::Running(handle) = self
                && let Some(progress) = handle.progress().await
            {
                return Step::Progress(progress);
            }
            match std::mem::replace(self, Self::Over(None)) {
                Self::Running(handle) => Step::Answer(handle.raw().await.map_err(failure)),
                Self::Over(Some(failure)) => Step::Answer(Err(failure)),
                // Nothing comes after an answer.
                Self::Over(None) => std::future::pending().await,
            }
        })
    }
}

fn failure(why: Error) -> Failure {
    match why {
        Error::Tool {
            code,
            message,
            data,
        } => Failure {
            code,
            message,
            data,
            is_tools: true,
        },
        other => {
            let nobody = match other {
                Error::Unreachable { .. } | Error::Tls { .. } => Code::Unavailable,
                _ => Code::Internal,
            };
            Failure {
                code: other.code().unwrap_or(nobody).to_string(),
                message: other.to_string(),
                data: None,
                is_tools: false,
            }
        }
    }
}
