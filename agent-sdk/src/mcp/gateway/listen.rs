//! Hearing of changes: of what the caller may call, which this gateway sees itself, and of what agents notify.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use proto_spec::AgentId;
use proto_spec::message::DiscoveredTool;
use tokio::sync::watch;

use super::answering::Voice;
use super::catalogue::{Catalogue, Scope};
use super::era::{LEVEL_KEY, SUBSCRIPTION_KEY};
use super::fault::{Fault, shown};
use super::guest::{Asked, Guest, required};
use super::memory;
use super::upstream::{Outgoing, Step};
use super::uris;
use crate::mcp::rpc::{Id, Object};

const METHOD: &str = "subscriptions/listen";
const TOOLS: &str = "notifications/tools/list_changed";
const PROMPTS: &str = "notifications/prompts/list_changed";
const RESOURCES: &str = "notifications/resources/list_changed";
const UPDATED: &str = "notifications/resources/updated";
const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";

/// Before an agent is listened to again.
const AGAIN: Duration = Duration::from_secs(2);

/// What a client wants to hear of.
#[derive(Debug, Clone, Default)]
struct Wanted {
    tools: bool,
    prompts: bool,
    resources: bool,
    uris: BTreeSet<String>,
}

impl Wanted {
    fn of(filter: &Object) -> Self {
        let wants = |name| filter.read(name).unwrap_or(false);
        Self {
            tools: wants("toolsListChanged"),
            prompts: wants("promptsListChanged"),
            resources: wants("resourcesListChanged"),
            uris: filter.read("resourceSubscriptions").unwrap_or_default(),
        }
    }

    /// As a filter, of what one agent is to notify or of what the client will hear.
    fn filter(&self) -> Object {
        let mut filter = Object::default();
        for (name, wants) in [
            ("toolsListChanged", self.tools),
            ("promptsListChanged", self.prompts),
            ("resourcesListChanged", self.resources),
        ] {
            if wants {
                filter.put(name, &true);
            }
        }
        if !self.uris.is_empty() {
            filter.put("resourceSubscriptions", &self.uris);
        }
        filter
    }

    /// What of it will be heard, where there is only this.
    fn honoured(mut self, catalogue: &Catalogue) -> Self {
        let listens = catalogue.answers(METHOD);
        self.prompts &= listens && catalogue.answers("prompts/list");
        self.resources &= listens && catalogue.answers("resources/list");
        if !listens {
            self.uris.clear();
        }
        self
    }

    /// What of it is `agent`'s, by the names that it knows.
    fn of_agent(&self, agent: &AgentId, scope: &Scope) -> Self {
        let own = |uri: &String| match scope {
            Scope::One(_) => Some(uri.clone()),
            Scope::All => {
                let (owner, own) = uris::inward(uri)?;
                (owner == *agent).then(|| own.to_owned())
            }
        };
        Self {
            uris: self.uris.iter().filter_map(own).collect(),
            ..self.clone()
        }
    }

    /// Whether this is something the client wants to hear.
    fn wants(&self, method: &str, params: &Object) -> bool {
        match method {
            TOOLS => self.tools,
            PROMPTS => self.prompts,
            RESOURCES => self.resources,
            // A server may say so of what lies below what was asked for.
            UPDATED => !self.uris.is_empty() && params.has("uri"),
            _ => false,
        }
    }

    fn is_nothing(&self) -> bool {
        self.filter().is_empty()
    }
}

/// Where notifications go.
struct Ear<'a> {
    voice: &'a Voice,
    /// The subscription that they belong to, where there are such.
    subscription: Option<&'a Id>,
}

impl Ear<'_> {
    async fn tell(&self, method: &str, mut params: Object) {
        let mut meta = params.object("_meta").unwrap_or_default();
        match self.subscription {
            Some(id) => meta.put(SUBSCRIPTION_KEY, id),
            None => drop(meta.take(SUBSCRIPTION_KEY)),
        }
        match meta.is_empty() {
            true => drop(params.take("_meta")),
            false => params.put("_meta", &meta),
        }
        self.voice.notify(method, params).await;
    }
}

impl Guest {
    /// `subscriptions/listen`: never answered but with why it ended.
    pub(super) async fn listen(&self, asked: &Asked, voice: &Voice) -> Result<Object, Fault> {
        let mut wanted = Wanted::of(&required(&asked.params, "notifications")?);
        let bytes = memory::bytes_of(&wanted.uris);
        if wanted.uris.len() > self.bounds.subscriptions || bytes > memory::WATCHED_BYTES_MAX {
            return Err(Fault::busy("subscriptions"));
        }
        let catalogue = self.catalogue().await?;
        wanted = wanted.honoured(&catalogue);
        let ear = Ear {
            voice,
            subscription: Some(&asked.id),
        };
        let mut told = Object::default();
        told.put("notifications", &wanted.filter());
        ear.tell(ACKNOWLEDGED, told).await;
        self.hear(wanted, None, catalogue, &ear).await
    }

    /// Tells a legacy client of all changes, and of the resources that it is subscribed to.
    pub(super) async fn hear_all(
        &self,
        voice: &Voice,
        watched: watch::Receiver<BTreeSet<String>>,
    ) -> Result<Object, Fault> {
        let catalogue = self.catalogue().await?;
        let wanted = Wanted {
            tools: true,
            prompts: true,
            resources: true,
            uris: watched.borrow().clone(),
        };
        let ear = Ear {
            voice,
            subscription: None,
        };
        self.hear(wanted, Some(watched), catalogue, &ear).await
    }

    /// Tells of changes until the caller may not look any more.
    async fn hear(
        &self,
        mut wanted: Wanted,
        mut watched: Option<watch::Receiver<BTreeSet<String>>>,
        mut catalogue: Arc<Catalogue>,
        ear: &Ear<'_>,
    ) -> Result<Object, Fault> {
        let mut changes = self.upstream.changes();
        let mut shown = catalogue.fingerprint();
        let mut heard: BTreeSet<AgentId> = BTreeSet::new();
        let mut agents: FuturesUnordered<BoxFuture<'_, AgentId>> = FuturesUnordered::new();
        loop {
            for tool in catalogue.answering(METHOD).take(self.bounds.agents) {
                let theirs = wanted.of_agent(&tool.agent, &self.scope);
                if !theirs.is_nothing() && heard.insert(tool.agent.clone()) {
                    agents.push(Box::pin(self.hear_agent(tool.clone(), theirs, ear)));
                }
            }
            tokio::select! {
                Some(agent) = agents.next() => drop(heard.remove(&agent)),
                () = changed(&mut changes) => {}
                () = changed_if(&mut watched) => {
                    if let Some(watched) = &watched {
                        wanted.uris = watched.borrow().clone();
                    }
                    agents.clear();
                    heard.clear();
                    continue;
                }
                // Nobody says when a right to look expires.
                () = self.clock.sleep(self.bounds.listen) => {}
            }
            // Changes come in swarms, and each look is a whole list.
            self.clock.sleep(self.bounds.settle).await;
            changes.mark_unchanged();
            catalogue = self.catalogue().await?;
            let fingerprint = catalogue.fingerprint();
            if std::mem::replace(&mut shown, fingerprint) != fingerprint && wanted.tools {
                ear.tell(TOOLS, Object::default()).await;
            }
        }
    }

    /// Tells what one agent notifies, until its call ends.
    async fn hear_agent(&self, tool: DiscoveredTool, wanted: Wanted, ear: &Ear<'_>) -> AgentId {
        let mut arguments = Object::default();
        arguments.put("notifications", &wanted.filter());
        let mut meta = self.meta_of_own(ear.voice);
        meta.take(LEVEL_KEY);
        let mut rest = Object::default();
        rest.put("_meta", &meta);
        let call = Outgoing {
            to: tool.agent.clone(),
            tool: tool.tool.name.clone(),
            arguments: Some(arguments.raw()),
            mcp: Some(rest.raw()),
            progress: true,
            deadline: Some(self.bounds.listen),
        };
        match self.upstream.call(call).await {
            Ok(mut ongoing) => {
                while let Step::Progress(progress) = ongoing.next().await {
                    let said = progress
                        .data
                        .and_then(|said| Object::parse(said.get()).ok());
                    let said = said.unwrap_or_default();
                    let method: String = said.read("method").unwrap_or_default();
                    let mut params = said.object("params").unwrap_or_default();
                    if wanted.wants(&method, &params) {
                        if self.scope == Scope::All {
                            uris::name_owner(&tool.agent, &method, &mut params);
                        }
                        ear.tell(&method, params).await;
                    }
                }
            }
            Err(why) => {
                tracing::debug!(agent = %tool.agent, why = ?shown(&why), "it does not notify");
            }
        }
        self.clock.sleep(AGAIN).await;
        tool.agent
    }
}

async fn changed(changes: &mut watch::Receiver<()>) {
    if changes.changed().await.is_err() {
        // Nobody says so any more.
        std::future::pending::<()>().await;
    }
}

async fn changed_if(watched: &mut Option<watch::Receiver<BTreeSet<String>>>) {
    let is_changed = match watched {
        Some(watched) => watched.changed().await.is_ok(),
        None => false,
    };
    if !is_changed {
        std::future::pending::<()>().await;
    }
}
