//! One call: from what FEM delivers to a request to the server, and back.
//!
//! A server of 2026-07-28 is sent what the caller sent. A legacy one is spoken to in its own way: what it asks in
//! mid-call becomes the call's result, and the call that brings the answers goes on with the same request.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use proto_spec::Digest;
use proto_spec::limits::DEADLINE_DEFAULT;
use serde_json::value::{RawValue, to_raw_value};
use tokio::time::Instant;

use super::connection::Exchange;
use super::desk::Wants;
use super::hear::carried;
use super::mailbox::{Next, Outcome, Question, Said};
use super::parked::Whose;
use super::pool::{Key, Lease, NoServer};
use super::schema::Schema;
use super::server::Era;
use super::tasks::{self, TASK_REQUESTS, TASKS};
use super::{
    Inner, MODERN, SERVER_BUSY, SERVER_LOGIN_NEEDED, SERVER_LOST, SERVER_SILENT, client_info,
};
use crate::incoming::{Call, Progress};
use crate::mcp::rpc::{INVALID_PARAMS, Object, RpcError};
use crate::mcp::{BESIDE, MCP_ERROR};
use crate::tool::{INVALID_ARGUMENTS, ToolError};

/// Members of `_meta` that only servers of 2026-07-28 know.
const PREFIX: &str = "io.modelcontextprotocol/";
/// What a client can be asked, by the capability that says so.
const QUESTIONS: [(&str, &str); 3] = [
    ("elicitation", "elicitation/create"),
    ("roots", "roots/list"),
    ("sampling", "sampling/createMessage"),
];

/// The one request whose answer may be a task.
const CALL: &str = "tools/call";
/// What those capabilities say more of: how people are asked, and what models are given.
const ELICITATION: [&str; 2] = ["form", "url"];
const SAMPLING: [&str; 2] = ["tools", "context"];
/// Questions of one call that its caller is told of at once.
const ASKED_MAX: usize = 16;
/// Bytes of one, and of those together but for the last.
const ASKED_BYTES_MAX: usize = 1 << 20;

/// Which request a tool of ours is.
pub(super) enum Target {
    /// `tools/call` of this tool, whose arguments are held against its schema.
    Tool { name: String, schema: Arc<Schema> },
    /// Any other request.
    Method(&'static str),
}

/// A request to a legacy server under way, with the connection that it has for itself.
pub(super) struct Talk {
    // First the request is taken back, then the connection is free.
    exchange: Exchange,
    lease: Lease,
    token: Option<Box<RawValue>>,
    asked: Vec<(String, Question)>,
    asked_bytes: usize,
}

impl Talk {
    /// Keeps a question for the caller, if it is not too long to be told.
    async fn ask(&mut self, question: Question) {
        let bytes = question.bytes();
        if bytes > ASKED_BYTES_MAX {
            let error = RpcError::new(INVALID_PARAMS, "this is more than can be asked");
            return self.exchange.answer(&question, Err(error)).await;
        }
        self.asked_bytes += bytes;
        let key = format!("q{}", self.asked.len() + 1);
        self.asked.push((key, question));
    }

    fn has_asked_enough(&self) -> bool {
        self.asked.len() >= ASKED_MAX || self.asked_bytes >= ASKED_BYTES_MAX
    }
}

impl Target {
    fn method(&self) -> &str {
        match self {
            Self::Tool { .. } => CALL,
            Self::Method(method) => method,
        }
    }

    /// The request's parameters: what FEM says apart, together again.
    ///
    /// # Errors
    ///
    /// `rest` says what only the tool and the arguments of the call may say: those were decided about.
    fn params(&self, arguments: Box<RawValue>, rest: Object) -> Result<Object, String> {
        let mut params = match self {
            Self::Tool { name, .. } => {
                let mut params = Object::default();
                params.put("name", name);
                params.set("arguments", arguments);
                params
            }
            Self::Method(method) => {
                let strange = rest.iter().find(|(name, _)| !BESIDE.contains(name));
                if let Some((name, _)) = strange {
                    return Err(format!(
                        "`mcp`: {name:?} of {method} belongs into the arguments"
                    ));
                }
                Object::parse(arguments.get()).map_err(|why| why.to_string())?
            }
        };
        let joined = params.join(rest);
        joined.map_err(|both| format!("`mcp`: {both:?} is said by the call itself"))?;
        Ok(params)
    }
}

/// Makes the request that a call is.
///
/// # Errors
///
/// [`INVALID_ARGUMENTS`] before anything was sent; [`MCP_ERROR`] with the server's own error;
/// [`SERVER_BUSY`], [`SERVER_LOST`], [`SERVER_SILENT`].
pub(super) async fn relay(
    inner: &Inner,
    target: &Target,
    mut call: Call,
    arguments: Box<RawValue>,
) -> Result<Box<RawValue>, ToolError> {
    if let Target::Tool { schema, .. } = target {
        schema.check(&arguments).map_err(|problems| {
            let places: Vec<String> = problems
                .iter()
                .map(|one| format!("{:?}: {}", one.pointer, one.message))
                .collect();
            ToolError::new(INVALID_ARGUMENTS, places.join("; ")).with(&problems)
        })?;
    }
    let whose = Whose {
        caller: call.caller().to_string(),
        tool: call.tool().to_string(),
        arguments: Digest::of(arguments.get().as_bytes()),
    };
    let invalid = |why: String| ToolError::new(INVALID_ARGUMENTS, why);
    let rest = call.mcp().map(|raw| Object::parse(raw.get())).transpose();
    let rest = rest.map_err(|why| invalid(format!("`mcp`: {why}")))?;
    let patience = call.deadline().unwrap_or(DEADLINE_DEFAULT);
    let params = target.params(arguments, rest.unwrap_or_default());
    let mut params = params.map_err(invalid)?;
    let caller = whose.caller.clone();
    let task = inner.may_ask(&caller, target.method(), &mut params)?;
    let answered = async {
        match (inner.pool.era(), target) {
            (Era::Modern, _) => modern(inner, target, params, &mut call).await,
            (Era::Legacy, Target::Method("server/discover")) => Ok(inner.discovered()),
            (Era::Legacy, _) => {
                legacy(inner, target.method(), params, whose, &mut call, patience).await
            }
        }
    };
    let answered = tokio::time::timeout(patience, answered).await;
    let answered = answered.unwrap_or_else(|_| Err(silent(patience)));
    match task {
        Some(task) => inner.told_of(&caller, &task, answered),
        None if target.method() == CALL => inner.begun(&caller, answered?),
        None => answered,
    }
}

async fn modern(
    inner: &Inner,
    target: &Target,
    mut params: Object,
    call: &mut Call,
) -> Result<Box<RawValue>, ToolError> {
    let mut meta = params.object("_meta").unwrap_or_default();
    let own = [
        ("protocolVersion", to_raw_value(MODERN).unwrap_or_default()),
        ("clientInfo", client_info()),
        ("clientCapabilities", Object::default().raw()),
    ];
    for (name, value) in own {
        let name = format!("{PREFIX}{name}");
        if !meta.has(&name) {
            meta.set(&name, value);
        }
    }
    let token = token(&meta, call);
    let wants = Wants {
        owner: call.caller().to_string(),
        logs: meta.has(&format!("{PREFIX}logLevel")),
        questions: Vec::new(),
        is_endless: matches!(target, Target::Method("subscriptions/listen")),
        begins_task: matches!(target, Target::Tool { .. }),
    };
    let labels = match target {
        Target::Tool { schema, .. } => schema.labels(params.get("arguments")),
        Target::Method(_) => Vec::new(),
    };
    let method = target.method();
    let lease = inner
        .pool
        .take(&inner.key(&wants.owner, &Object::default()), false)
        .await
        .map_err(|why| no_server(&why))?;
    let connection = &lease.server.connection;
    let exchange = connection.request(method, wants, labels, |id| {
        if token.is_some() {
            meta.put("progressToken", &id);
        }
        params.put("_meta", &meta);
        params
    });
    let exchange = exchange.await;
    loop {
        match exchange.next().await {
            // It was told that nobody can be asked.
            Next::Said(Said::Question(_)) => {}
            Next::Said(Said::Notification { method, params }) => {
                pass_on(call, method, params, token.as_deref()).await;
            }
            Next::Over(outcome) => return told(&lease, outcome),
        }
    }
}

async fn legacy(
    inner: &Inner,
    method: &str,
    mut params: Object,
    whose: Whose,
    call: &mut Call,
    patience: Duration,
) -> Result<Box<RawValue>, ToolError> {
    let answers = params.take("inputResponses");
    if let Some(state) = params.take("requestState") {
        let handle: String = serde_json::from_str(state.get()).unwrap_or_default();
        let parked = inner.parked.take(&handle, &whose);
        let talk = parked.ok_or_else(|| {
            mcp_error(&RpcError::new(
                INVALID_PARAMS,
                "this `requestState` is not one that waits: it was used, or is too old, or another's, or of other arguments",
            ))
        })?;
        let answers = answers.and_then(|raw| Object::parse(raw.get()).ok());
        return resume(inner, whose, *talk, &answers.unwrap_or_default(), call).await;
    }
    let mut meta = params.object("_meta").unwrap_or_default();
    let capabilities = declared(&meta);
    let level: Option<String> = meta.read("io.modelcontextprotocol/logLevel");
    meta.take_all(|name| name.starts_with(PREFIX));
    let token = token(&meta, call);
    let key = inner.key(&whose.caller, &bridged(&capabilities));
    let wants = Wants {
        owner: whose.caller.clone(),
        logs: level.is_some(),
        questions: QUESTIONS
            .iter()
            .filter(|(name, _)| capabilities.has(name))
            .map(|(_, method)| *method)
            .collect(),
        is_endless: false,
        begins_task: method == CALL,
    };
    if method == "subscriptions/listen" {
        return super::listen::listen(inner, &key, &params, call).await;
    }
    let alone = !wants.questions.is_empty();
    let lease = inner
        .pool
        .take(&key, alone)
        .await
        .map_err(|why| no_server(&why))?;
    if let Some(level) = level {
        lease.server.log_from(&level, patience).await;
    }
    params.take("_meta");
    let connection = lease.server.connection.clone();
    let exchange = connection.request(method, wants, Vec::new(), |id| {
        if token.is_some() {
            meta.put("progressToken", &id);
        }
        if !meta.is_empty() {
            params.put("_meta", &meta);
        }
        params
    });
    let talk = Talk {
        exchange: exchange.await,
        lease,
        token,
        asked: Vec::new(),
        asked_bytes: 0,
    };
    go_on(inner, whose, talk, call).await
}

/// Brings the answers to what was asked; what is still open is asked again.
async fn resume(
    inner: &Inner,
    whose: Whose,
    mut talk: Talk,
    answers: &Object,
    call: &mut Call,
) -> Result<Box<RawValue>, ToolError> {
    let mut open = Vec::new();
    for (key, question) in std::mem::take(&mut talk.asked) {
        // Every answer is an object; what is not one answers nothing.
        match answers.object(&key) {
            Some(answer) => talk.exchange.answer(&question, Ok(answer.raw())).await,
            None => open.push((key, question)),
        }
    }
    talk.asked = open;
    match talk.asked.is_empty() {
        true => {
            talk.asked_bytes = 0;
            go_on(inner, whose, talk, call).await
        }
        false => park(inner, whose, talk),
    }
}

/// Passes on what the server says, until it answers or asks.
async fn go_on(
    inner: &Inner,
    whose: Whose,
    mut talk: Talk,
    call: &mut Call,
) -> Result<Box<RawValue>, ToolError> {
    let mut came = VecDeque::from([talk.exchange.next().await]);
    while let Some(next) = came.pop_front() {
        match next {
            Next::Said(Said::Notification { method, params }) => {
                pass_on(call, method, params, talk.token.as_deref()).await;
            }
            Next::Said(Said::Question(question)) => talk.ask(question).await,
            Next::Over(outcome) => return told(&talk.lease, outcome),
        }
        // What it asks beyond that waits until these are answered.
        if talk.has_asked_enough() {
            break;
        }
        // What it asks at once is told at once.
        came.extend(talk.exchange.now());
        if came.is_empty() && talk.asked.is_empty() {
            came.push_back(talk.exchange.next().await);
        }
    }
    park(inner, whose, talk)
}

/// Parks a call that has questions: they are its result.
fn park(inner: &Inner, whose: Whose, talk: Talk) -> Result<Box<RawValue>, ToolError> {
    let mut requests = Object::default();
    for (key, question) in &talk.asked {
        let mut request = Object::default();
        request.put("method", &question.method);
        request.put("params", &question.params);
        requests.put(key, &request);
    }
    carried(&requests.raw()).map_err(|why| mcp_error(&why))?;
    let Some(handle) = inner.parked.park(whose, Box::new(talk)) else {
        return Err(ToolError::new(
            SERVER_BUSY,
            "too many calls wait for their callers' answers",
        ));
    };
    let mut result = Object::default();
    result.put("resultType", "input_required");
    result.put("inputRequests", &requests);
    result.put("requestState", &handle);
    Ok(result.raw())
}

/// The caller's progress token, if it wants progress. One who speaks no MCP has none, and is given one.
fn token(meta: &Object, call: &Call) -> Option<Box<RawValue>> {
    let own = || {
        let wants = call.mcp().is_none() && call.wants_progress();
        wants.then(|| to_raw_value(&call.id().to_string()).unwrap_or_default())
    };
    meta.get("progressToken")
        .map(ToOwned::to_owned)
        .or_else(own)
}

/// Tells the caller what the server said. Progress has the caller's own token.
pub(super) async fn pass_on(
    call: &mut Call,
    method: String,
    mut params: Object,
    token: Option<&RawValue>,
) {
    let mut progress = Progress::default();
    if method == "notifications/progress" {
        let Some(token) = token else { return };
        params.set("progressToken", token.to_owned());
        progress.done = params.read("progress");
        progress.total = params.read("total");
        progress.message = params.read("message");
    }
    let mut data = Object::default();
    data.put("method", &method);
    data.put("params", &params);
    match carried(&data.raw()) {
        Ok(()) => call.progress(progress.with(&data)).await,
        Err(why) => tracing::debug!(%why, "a notification is dropped"),
    }
}

impl Inner {
    /// Holds the tasks that a request is about against who asks: the one of a request about one task.
    ///
    /// # Errors
    ///
    /// The task is none that the caller began; or there is no room to remember one, which the server might begin.
    fn may_ask(
        &self,
        caller: &str,
        method: &str,
        params: &mut Object,
    ) -> Result<Option<String>, ToolError> {
        let now = Instant::now();
        let is_own = |id: &String| self.tasks.is_of(self.home(caller), id, caller, now);
        if TASK_REQUESTS.contains(&method) {
            // What is the caller's own is between the caller and the server, which may demand that it is declared.
            let id = params.read::<String>("taskId").filter(is_own);
            let refusal = || match knows_tasks(params) {
                true => tasks::unknown(),
                false => tasks::undeclared(),
            };
            return id.map(Some).ok_or_else(|| mcp_error(&refusal()));
        }
        if let Some(mut wanted) = params.object("notifications")
            && method == "subscriptions/listen"
            && wanted.has("taskIds")
        {
            let ids: Vec<String> = wanted.read("taskIds").unwrap_or_default();
            let own: Vec<String> = ids.into_iter().filter(is_own).collect();
            wanted.put("taskIds", &own);
            params.put("notifications", &wanted);
        }
        if method == CALL && knows_tasks(params) && !self.tasks.make_room(caller, now) {
            let why = "too many of your tasks run, or wait to be asked about";
            return Err(ToolError::new(SERVER_BUSY, why));
        }
        Ok(None)
    }

    /// Notes what the server said of a task of this caller's.
    fn told_of(
        &self,
        caller: &str,
        task: &str,
        answered: Result<Box<RawValue>, ToolError>,
    ) -> Result<Box<RawValue>, ToolError> {
        let is_over = match &answered {
            Ok(said) => tasks::is_end(said),
            Err(why) => is_invalid(why),
        };
        if is_over {
            self.tasks.over(self.home(caller), task);
        }
        answered
    }

    /// Holds back a task that it was not noted of that it is its beginner's.
    ///
    /// # Errors
    ///
    /// [`SERVER_LOST`] where there was no room: nobody could ask about it.
    fn begun(&self, caller: &str, result: Box<RawValue>) -> Result<Box<RawValue>, ToolError> {
        let Some(id) = tasks::begun(&result) else {
            return Ok(result);
        };
        match self
            .tasks
            .is_of(self.home(caller), &id, caller, Instant::now())
        {
            true => Ok(result),
            false => Err(ToolError::new(
                SERVER_LOST,
                "the server began a task, and there was no room to remember whose",
            )),
        }
    }
}

/// The outcome of a request, as a tool's.
fn told(lease: &Lease, outcome: Outcome) -> Result<Box<RawValue>, ToolError> {
    match outcome {
        Outcome::Answered(answer) => {
            lease.works();
            let answer = answer.and_then(|result| carried(&result).map(|()| result));
            answer.map_err(|error| mcp_error(&error))
        }
        Outcome::Lost(why) => Err(lost(&why)),
        Outcome::Barred(why) => Err(barred(&why)),
    }
}

impl Key {
    /// A connection on which nobody has state.
    pub(super) fn everybody() -> Self {
        Self {
            owner: String::new(),
            capabilities: "{}".into(),
        }
    }
}

/// What a request's `_meta` says that the client can do.
fn declared(meta: &Object) -> Object {
    let said = meta.object("io.modelcontextprotocol/clientCapabilities");
    said.unwrap_or_default()
}

/// Whether a request says that its answer may be a task.
fn knows_tasks(params: &Object) -> bool {
    let capabilities = declared(&params.object("_meta").unwrap_or_default());
    let extensions = capabilities.object("extensions").unwrap_or_default();
    params.has("task") || extensions.has(TASKS)
}

/// Of a client's capabilities those that a legacy server's questions need.
fn bridged(capabilities: &Object) -> Object {
    let mut kept = Object::default();
    for (name, _) in QUESTIONS {
        let Some(said) = capabilities.object(name) else {
            continue;
        };
        // Whatever else a client says there would be another connection for each way of saying it.
        let mut known = Object::default();
        for kind in ELICITATION
            .iter()
            .chain(&SAMPLING)
            .filter(|kind| said.has(kind))
        {
            known.put(kind, &Object::default());
        }
        kept.put(name, &known);
    }
    kept
}

/// Every capability that can be bridged: what a server is looked at with.
pub(super) fn every_capability() -> Box<RawValue> {
    let mut all = Object::default();
    for (name, _) in QUESTIONS {
        all.put(name, &Object::default());
    }
    let mut elicitation = Object::default();
    for kind in &ELICITATION {
        elicitation.put(kind, &Object::default());
    }
    all.put("elicitation", &elicitation);
    all.raw()
}

pub(super) fn mcp_error(error: &RpcError) -> ToolError {
    let told = match &error.data {
        // Its data may be what cannot go on.
        Some(data) if carried(data).is_err() => &RpcError::new(error.code, error.message.clone()),
        _ => error,
    };
    ToolError::new(MCP_ERROR, told.message.clone()).with(told)
}

/// Whether it is a server's error about what was asked: of a task that it knows no more, say.
fn is_invalid(error: &ToolError) -> bool {
    let said = error.data.as_ref().filter(|_| error.code == MCP_ERROR);
    let said = said.and_then(|said| Object::parse(said.get()).ok());
    said.is_some_and(|said| said.read("code") == Some(INVALID_PARAMS))
}

fn silent(patience: Duration) -> ToolError {
    let ms = patience.as_millis();
    ToolError::new(
        SERVER_SILENT,
        format!("the server did not answer within {ms} ms"),
    )
}

/// What a caller is told of a server that is gone. Why it is may name paths, addresses and what else there is of
/// this machine: that is the log's.
pub(super) fn lost(why: &str) -> ToolError {
    tracing::warn!(why, "a call is lost at the MCP server");
    let told = "the server was gone before it answered: it may or may not have acted";
    ToolError::new(SERVER_LOST, told)
}

/// What a caller is told where somebody has to log in: not how, which is for whoever runs this.
fn barred(why: &str) -> ToolError {
    tracing::info!(why, "a call is refused until somebody has logged in");
    let told = "whoever runs this agent has to log in at its server first";
    ToolError::new(SERVER_LOGIN_NEEDED, told)
}

pub(super) fn no_server(why: &NoServer) -> ToolError {
    match why {
        NoServer::Busy(_) | NoServer::Share(_) => ToolError::new(SERVER_BUSY, why.to_string()),
        NoServer::LoginNeeded(why) => barred(why),
        NoServer::Silent(why) => {
            tracing::warn!(why, "the MCP server cannot be spoken to");
            let told = "the server cannot be spoken to: it did not start, or does not answer";
            ToolError::new(SERVER_LOST, told)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.into()).unwrap()
    }

    fn params(target: &Target, arguments: &str, rest: &str) -> Result<String, String> {
        let params = target.params(raw(arguments), Object::parse(rest).unwrap())?;
        Ok(params.raw().get().to_owned())
    }

    #[test]
    fn what_was_decided_about_is_said_by_the_call_alone() {
        let tool = Target::Tool {
            name: "read".into(),
            schema: Arc::new(Schema::read(&raw(r#"{"type":"object"}"#)).unwrap()),
        };
        let rest = r#"{"_meta":{},"new":1}"#;
        assert_eq!(
            params(&tool, r#"{"path":"/a"}"#, rest).unwrap(),
            r#"{"name":"read","arguments":{"path":"/a"},"_meta":{},"new":1}"#
        );
        for rest in [r#"{"name":"write"}"#, r#"{"_meta":{},"arguments":{}}"#] {
            assert!(params(&tool, r#"{"path":"/a"}"#, rest).is_err(), "{rest}");
        }
        let read = Target::Method("resources/read");
        let rest = r#"{"_meta":{},"requestState":"x"}"#;
        assert_eq!(
            params(&read, r#"{"uri":"a:"}"#, rest).unwrap(),
            r#"{"uri":"a:","_meta":{},"requestState":"x"}"#
        );
        for (arguments, rest) in [
            (r#"{"uri":"a:"}"#, r#"{"uri":"b:"}"#),
            ("{}", r#"{"uri":"b:"}"#),
            (r#"{"_meta":1}"#, r#"{"_meta":{}}"#),
        ] {
            assert!(params(&read, arguments, rest).is_err(), "{rest}");
        }
    }
}
