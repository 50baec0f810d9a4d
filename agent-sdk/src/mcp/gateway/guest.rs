//! One request of one client, answered: which agent it is for, the call that it becomes, and what comes back.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::HeaderMap;
use proto_spec::AgentId;
use proto_spec::message::DiscoveredTool;
use serde_json::value::RawValue;

use super::answering::{Outcome, Voice};
use super::bounds::Bounds;
use super::catalogue::{Catalogue, Scope};
use super::definition;
use super::era::{
    CAPABILITIES_KEY, Client, Era, INFO_KEY, LEVEL_KEY, MODERN, SERVER_KEY, TASKS, VERSION_KEY,
    supported,
};
use super::fault::{Fault, shown};
use super::headers;
use super::lists;
use super::notes::Notes;
use super::outcome::{is_question, of_failed_tool, of_tool, shaped};
use super::upstream::{Failure, Outgoing, Shared, Step};
use super::uris;
use crate::Clock;
use crate::mcp::rpc::{
    INTERNAL_ERROR, INVALID_PARAMS, Id, METHOD_NOT_FOUND, MISSING_CAPABILITY, Object, RpcError,
};
use crate::mcp::{BESIDE, MCP_ERROR};

/// Requests that go to an agent as they are, if it answers them.
const RELAYED: [&str; 6] = [
    "prompts/list",
    "prompts/get",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "completion/complete",
];
/// The same, of modern clients of one agent: a task is known to nobody but its server.
const TASK_REQUESTS: [&str; 3] = ["tasks/get", "tasks/update", "tasks/cancel"];

/// A client where it is: in whose name it calls, what it sees, how it speaks.
#[derive(Clone)]
pub(super) struct Guest {
    pub(super) upstream: Shared,
    pub(super) scope: Scope,
    pub(super) client: Client,
    pub(super) bounds: Bounds,
    pub(super) clock: Arc<dyn Clock>,
}

/// A request of a client.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: Id,
    pub(super) method: String,
    pub(super) params: Object,
    /// Where it came by HTTP and headers have to say the same as its body.
    pub(super) headers: Option<HeaderMap>,
}

/// A call that a request becomes.
struct Errand<'a> {
    tool: &'a DiscoveredTool,
    arguments: Option<Box<RawValue>>,
    /// The request's other parameters.
    rest: Object,
    deadline: Duration,
}

impl Guest {
    /// Answers a request. What is to be said before the answer goes to `voice`.
    pub(super) async fn answer(&self, asked: &Asked, voice: &Voice) -> Outcome {
        let result = self.result(asked, voice).await?;
        Ok(shaped(self.client.era, &asked.method, result)?.raw())
    }

    async fn result(&self, asked: &Asked, voice: &Voice) -> Result<Object, Fault> {
        let params = &asked.params;
        let is_modern = self.client.era == Era::Modern;
        match asked.method.as_str() {
            "server/discover" if is_modern => self.discover().await,
            "subscriptions/listen" if is_modern => self.listen(asked, voice).await,
            "ping" if !is_modern => Ok(Object::default()),
            "logging/setLevel" if !is_modern => set_level(params, voice),
            "resources/subscribe" if !is_modern => self.subscribe(params, voice).await,
            "resources/unsubscribe" if !is_modern => unsubscribe(params, voice),
            "tools/list" => self.list_tools(params).await,
            "tools/call" => self.call_tool(asked, voice).await,
            method if RELAYED.contains(&method) => self.relay(asked, voice).await,
            method if is_modern && TASK_REQUESTS.contains(&method) && self.is_one() => {
                self.relay(asked, voice).await
            }
            method => Err(Fault::no_method(method)),
        }
    }

    fn is_one(&self) -> bool {
        self.scope != Scope::All
    }

    /// What the caller may call at this moment.
    pub(super) async fn catalogue(&self) -> Result<Arc<Catalogue>, Fault> {
        Ok(self.upstream.catalogue(&self.scope).await?)
    }

    async fn list_tools(&self, params: &Object) -> Result<Object, Fault> {
        let catalogue = self.catalogue().await?;
        let after = lists::cursor(params)?;
        let (tools, next) =
            definition::page(&catalogue, &self.scope, after.as_deref(), self.bounds.page);
        Ok(lists::page("tools", &tools, next.as_deref()))
    }

    async fn call_tool(&self, asked: &Asked, voice: &Voice) -> Result<Object, Fault> {
        let name: String = required(&asked.params, "name")?;
        let catalogue = self.catalogue().await?;
        let unknown = || Fault::new(INVALID_PARAMS, format!("there is no tool {name:.128?}"));
        let tool = &catalogue.tool(&name).ok_or_else(unknown)?.tool;
        let arguments = asked.params.get("arguments");
        if arguments.is_some_and(|arguments| !arguments.get().starts_with('{')) {
            return Err(Fault::new(INVALID_PARAMS, "`arguments` is an object"));
        }
        if let Some(headers) = &asked.headers {
            headers::check_params(headers, tool.tool.input_schema.as_deref(), arguments)?;
        }
        let mut rest = asked.params.clone();
        rest.take("name");
        let arguments = rest.take("arguments");
        let errand = Errand {
            tool,
            arguments,
            rest,
            deadline: self.bounds.call,
        };
        match self.converse(errand, voice).await? {
            Ok(result) if tool.tool.mcp.is_none() => Ok(of_tool(&result)),
            Ok(result) => self.of_server(tool, "tools/call", &result),
            Err(failure) if failure.is_tools && failure.code != MCP_ERROR => {
                Ok(of_failed_tool(&failure))
            }
            Err(failure) => Err(Fault::of_call(&failure, tool.tool.required())),
        }
    }

    /// A request that is an agent's to answer.
    async fn relay(&self, asked: &Asked, voice: &Voice) -> Result<Object, Fault> {
        let catalogue = self.catalogue().await?;
        let method = asked.method.as_str();
        if !catalogue.answers(method) {
            return Err(Fault::no_method(method));
        }
        let mut params = asked.params.clone();
        let agent = match &self.scope {
            Scope::One(agent) => agent.clone(),
            Scope::All => match method {
                "prompts/list" => return self.list_prompts(&catalogue, &params).await,
                "resources/list" => {
                    return self.list(&catalogue, method, "resources", &params).await;
                }
                "resources/templates/list" => {
                    return self
                        .list(&catalogue, method, "resourceTemplates", &params)
                        .await;
                }
                _ => self.meant(&catalogue, method, &mut params).await?,
            },
        };
        let tool = catalogue.request(&agent, method);
        let tool = tool.ok_or_else(|| Fault::no_method(method))?;
        let result = self.ask(tool, params, self.bounds.call, voice).await?;
        self.of_server(tool, method, &result)
    }

    /// Whom a request among many agents is for. In `params` their own name takes the place of the public one.
    async fn meant(
        &self,
        catalogue: &Catalogue,
        method: &str,
        params: &mut Object,
    ) -> Result<AgentId, Fault> {
        match method {
            "prompts/get" => self.whose_prompt(catalogue, params, "name").await,
            "resources/read" => whose_resource(params),
            "completion/complete" => {
                let mut about: Object = required(params, "ref")?;
                let is_prompt = about.read::<String>("type").as_deref() == Some("ref/prompt");
                let agent = match is_prompt {
                    true => self.whose_prompt(catalogue, &mut about, "name").await?,
                    false => whose_resource(&mut about)?,
                };
                params.put("ref", &about);
                Ok(agent)
            }
            _ => Err(Fault::no_method(method)),
        }
    }

    /// Makes the call that a request other than `tools/call` is.
    pub(super) async fn ask(
        &self,
        tool: &DiscoveredTool,
        mut params: Object,
        deadline: Duration,
        voice: &Voice,
    ) -> Result<Box<RawValue>, Fault> {
        let rest = params.take_all(|name| BESIDE.contains(&name));
        let errand = Errand {
            tool,
            arguments: Some(params.raw()),
            rest,
            deadline,
        };
        let answered = self.converse(errand, voice).await?;
        answered.map_err(|failure| Fault::of_call(&failure, tool.tool.required()))
    }

    /// Calls, and as often as questions come back calls again with the client's answers, where the client
    /// expects to be asked in mid-call.
    async fn converse(
        &self,
        mut errand: Errand<'_>,
        voice: &Voice,
    ) -> Result<Result<Box<RawValue>, Failure>, Fault> {
        for _ in 0..self.bounds.rounds {
            let answer = self.once(&errand, voice).await?;
            let questions = match &answer {
                Ok(result) if self.client.era == Era::Legacy && errand.tool.tool.mcp.is_some() => {
                    Object::parse(result.get()).ok().filter(is_question)
                }
                _ => None,
            };
            let Some(mut questions) = questions else {
                return Ok(answer);
            };
            self.say_who_asks(&errand.tool.agent, &mut questions);
            let answers = self.put(&questions, voice).await?;
            errand.rest.put("inputResponses", &answers);
            match questions.take("requestState") {
                Some(state) => errand.rest.set("requestState", state),
                None => drop(errand.rest.take("requestState")),
            }
        }
        let why = format!(
            "the call came back with questions {} times",
            self.bounds.rounds
        );
        Err(Fault::new(INTERNAL_ERROR, why))
    }

    async fn once(
        &self,
        errand: &Errand<'_>,
        voice: &Voice,
    ) -> Result<Result<Box<RawValue>, Failure>, Fault> {
        let tool = errand.tool;
        let mut rest = errand.rest.clone();
        let meta = self.meta(rest.object("_meta"), voice);
        rest.put("_meta", &meta);
        let mut notes = Notes::of(tool, &meta, &self.scope);
        let call = Outgoing {
            to: tool.agent.clone(),
            tool: tool.tool.name.clone(),
            arguments: errand.arguments.clone(),
            mcp: tool.tool.mcp.as_ref().map(|_| rest.raw()),
            progress: notes.are_wanted(),
            deadline: Some(errand.deadline),
        };
        let mut ongoing = self.upstream.call(call).await?;
        loop {
            match ongoing.next().await {
                Step::Answer(answer) => return Ok(answer),
                Step::Progress(progress) => {
                    if let Some((method, params)) = notes.note(progress) {
                        voice.notify(&method, params).await;
                    }
                }
            }
        }
    }

    /// The `_meta` of a request to an agent. A task is polled at its server, which among many is not known.
    pub(super) fn meta(&self, sent: Option<Object>, voice: &Voice) -> Object {
        let mut meta = self.client.meta(sent, voice.level());
        if !self.is_one()
            && let Some(mut capabilities) = meta.object(CAPABILITIES_KEY)
            && let Some(mut extensions) = capabilities.object("extensions")
            && extensions.take(TASKS).is_some()
        {
            capabilities.put("extensions", &extensions);
            meta.put(CAPABILITIES_KEY, &capabilities);
        }
        meta
    }

    /// Asks the client what a server wants to know: all at once, and no more than the client declared.
    async fn put(&self, questions: &Object, voice: &Voice) -> Result<Object, Fault> {
        let requests = questions.object("inputRequests").unwrap_or_default();
        let mut waiting = Vec::new();
        for (key, request) in requests.iter() {
            let request = Object::parse(request.get()).unwrap_or_default();
            let method: String = required(&request, "method")?;
            if !self.client.answers(&method) {
                let why = format!("the tool asks {method:.64?}, which the client did not declare");
                return Err(Fault::new(MISSING_CAPABILITY, why));
            }
            let params = request.object("params").unwrap_or_default();
            let reply = voice.ask(&method, params, self.bounds.questions).await?;
            let reply = reply.ok_or_else(|| Fault::new(INTERNAL_ERROR, "the client is gone"))?;
            waiting.push(async move { (key, reply.await) });
        }
        let all = join_all(waiting);
        let late = self.clock.sleep(self.bounds.question);
        let replies = tokio::select! {
            replies = all => replies,
            () = late => return Err(Fault::new(INTERNAL_ERROR, "the client did not answer in time")),
        };
        let answered = |(key, reply): (&str, Option<_>)| match reply {
            Some(Ok(answer)) => Ok((key.to_owned(), answer)),
            Some(Err(why)) => {
                let said = "the client answered the tool's question with an error";
                Err(Fault::from(RpcError::new(INTERNAL_ERROR, said).with(&why)))
            }
            None => Err(Fault::new(INTERNAL_ERROR, "the question was given up")),
        };
        replies.into_iter().map(answered).collect()
    }

    /// What an MCP server answered, as this client has to read it.
    pub(super) fn of_server(
        &self,
        tool: &DiscoveredTool,
        method: &str,
        result: &RawValue,
    ) -> Result<Object, Fault> {
        let mut result = Object::parse(result.get()).map_err(|_| {
            Fault::new(
                INTERNAL_ERROR,
                format!("{} answered with no object", tool.agent),
            )
        })?;
        match is_question(&result) {
            true => self.say_who_asks(&tool.agent, &mut result),
            false if !self.is_one() => uris::name_owner(&tool.agent, method, &mut result),
            false => {}
        }
        Ok(result)
    }

    /// Among many agents, has what people are asked begin with who asks it: one could ask in another's name.
    fn say_who_asks(&self, agent: &AgentId, questions: &mut Object) {
        let Some(mut requests) = questions.object("inputRequests").filter(|_| !self.is_one())
        else {
            return;
        };
        for (key, request) in questions.object("inputRequests").unwrap_or_default().iter() {
            let mut request = Object::parse(request.get()).unwrap_or_default();
            let mut params = request.object("params").unwrap_or_default();
            if request.read::<String>("method").as_deref() == Some("elicitation/create") {
                let message: String = params.read("message").unwrap_or_default();
                params.put("message", &format!("{agent} asks: {message}"));
                request.put("params", &params);
                requests.set(key, request.raw());
            }
        }
        questions.put("inputRequests", &requests);
    }

    /// What this place is: one agent's server as it says itself, or all that can be done here.
    pub(super) async fn discover(&self) -> Result<Object, Fault> {
        let catalogue = self.catalogue().await?;
        let said = self.said_of_itself(&catalogue).await;
        let is_made = said.is_none();
        let mut told = said.unwrap_or_default();
        told.put("supportedVersions", &supported());
        let capabilities = capabilities(&catalogue, told.object("capabilities"), &self.scope);
        told.put("capabilities", &capabilities);
        if is_made {
            let name = match &self.scope {
                Scope::All => "fem".to_owned(),
                Scope::One(agent) => agent.to_string(),
            };
            let server = serde_json::json!({"name": name, "version": env!("CARGO_PKG_VERSION")});
            told.put("_meta", &serde_json::json!({SERVER_KEY: server}));
        }
        Ok(told)
    }

    /// What the server behind the one agent here says of itself, where it is one and may be asked.
    async fn said_of_itself(&self, catalogue: &Catalogue) -> Option<Object> {
        let agent = self.scope.only()?;
        let tool = catalogue.request(agent, "server/discover")?;
        let voice = Voice::mute();
        let mut params = Object::default();
        params.put("_meta", &self.meta_of_own(&voice));
        let said = self.ask(tool, params, self.bounds.lookup, &voice).await;
        said.inspect_err(
            |why| tracing::warn!(%agent, why = ?shown(&why.error), "its server does not say what it is"),
        )
        .ok()
        .and_then(|said| Object::parse(said.get()).ok())
    }

    /// The `_meta` of a request that no client sent.
    pub(super) fn meta_of_own(&self, voice: &Voice) -> Object {
        let mut meta = Object::default();
        meta.put(VERSION_KEY, MODERN);
        if let Some(info) = &self.client.info {
            meta.set(INFO_KEY, info.clone());
        }
        meta.put(CAPABILITIES_KEY, &self.client.capabilities);
        let mut meta = self.meta(Some(meta), voice);
        meta.take(LEVEL_KEY);
        meta
    }

    async fn subscribe(&self, params: &Object, voice: &Voice) -> Result<Object, Fault> {
        let uri: String = required(params, "uri")?;
        let catalogue = self.catalogue().await?;
        if !catalogue.answers("subscriptions/listen") {
            return Err(Fault::no_method("resources/subscribe"));
        }
        if let Some(memory) = voice.memory() {
            memory.watch(uri, self.bounds.subscriptions)?;
        }
        Ok(Object::default())
    }
}

fn unsubscribe(params: &Object, voice: &Voice) -> Result<Object, Fault> {
    let uri: String = required(params, "uri")?;
    if let Some(memory) = voice.memory() {
        memory.unwatch(&uri);
    }
    Ok(Object::default())
}

fn set_level(params: &Object, voice: &Voice) -> Result<Object, Fault> {
    let level: String = required(params, "level")?;
    match voice.memory().is_none_or(|memory| memory.set_level(&level)) {
        true => Ok(Object::default()),
        false => Err(Fault::new(INVALID_PARAMS, "there is no such level")),
    }
}

fn whose_resource(params: &mut Object) -> Result<AgentId, Fault> {
    let uri: String = required(params, "uri")?;
    let (agent, own) = uris::inward(&uri).ok_or_else(|| {
        let why = "a resource's URI is as `resources/list` shows it: fem:<agent>@<org>/<uri>";
        Fault::new(INVALID_PARAMS, why)
    })?;
    params.put("uri", own);
    Ok(agent)
}

/// A parameter that has to be there.
pub(super) fn required<T: serde::de::DeserializeOwned>(
    params: &Object,
    name: &str,
) -> Result<T, Fault> {
    let missing = || {
        Fault::new(
            INVALID_PARAMS,
            format!("`{name}` is missing or of another type"),
        )
    };
    params.read(name).ok_or_else(missing)
}

/// What a server can do, limited to what is answered here, and where it does not say so itself all of that.
fn capabilities(catalogue: &Catalogue, said: Option<Object>, scope: &Scope) -> Object {
    let listens = catalogue.answers("subscriptions/listen");
    let is_said = said.is_some();
    let mut all = said.unwrap_or_default();
    // Whatever its server does not notice, a gateway does.
    let mut tools = all.object("tools").unwrap_or_default();
    tools.put("listChanged", &true);
    all.put("tools", &tools);
    for (name, method) in [
        ("prompts", "prompts/list"),
        ("resources", "resources/list"),
        ("completions", "completion/complete"),
    ] {
        if !catalogue.answers(method) {
            all.take(name);
        } else if !all.has(name) {
            all.put(name, &Object::default());
        }
    }
    for (name, member) in [
        ("prompts", "listChanged"),
        ("resources", "listChanged"),
        ("resources", "subscribe"),
    ] {
        if let Some(mut capability) = all.object(name) {
            let is_offered = listens && (!is_said || capability.read(member).unwrap_or(false));
            match is_offered {
                true => capability.put(member, &true),
                false => drop(capability.take(member)),
            }
            all.put(name, &capability);
        }
    }
    if *scope == Scope::All && catalogue.answers("server/discover") {
        all.put("logging", &Object::default());
    }
    // Tasks of an earlier revision are not what these are.
    all.take("tasks");
    if !catalogue.answers("tasks/get")
        && let Some(mut extensions) = all.object("extensions")
        && extensions.take(TASKS).is_some()
    {
        all.put("extensions", &extensions);
    }
    all
}

/// Whether an error says that a method is not answered: for lists, that is an empty one.
pub(super) fn is_no_method(fault: &Fault) -> bool {
    fault.error.code == METHOD_NOT_FOUND
}
