//! Agents that answer as a test says, and a client of the gateway before them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_sdk::mcp::gateway::{
    Allowed, Body, Bounds, Catalogue, Failure, Gateway, Gathered, Ongoing, Outgoing, Scope, Step,
    Upstream,
};
use agent_sdk::mcp::rpc::{Message, RpcError};
use agent_sdk::proto_spec::SigningKey;
use agent_sdk::{AgentId, Clock, DiscoveredTool, Progress, Timestamp};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use tokio::sync::watch;

/// A clock that stands still: what waits for long waits for ever, a moment is over at once.
pub(crate) struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_ms(1_800_000_000_000)
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            if duration >= Duration::from_secs(1) {
                std::future::pending::<()>().await;
            }
            tokio::task::yield_now().await;
        })
    }
}

/// What a call comes to: progress, and then an answer, or none.
pub(crate) type Script = Vec<Step>;

type Acts = Box<dyn Fn(&Outgoing) -> Script + Send + Sync>;

/// Agents, and what was asked of them.
pub(crate) struct Fake {
    me: AgentId,
    pub(crate) tools: Mutex<Vec<DiscoveredTool>>,
    /// How often somebody looked at all tools.
    pub(crate) looks: AtomicUsize,
    acts: Acts,
    pub(crate) calls: Mutex<Vec<Outgoing>>,
    /// Calls that were given up before their answer.
    pub(crate) cancelled: Arc<AtomicUsize>,
    pub(crate) changes: watch::Sender<()>,
}

impl Fake {
    /// One tool more is offered, and said so.
    pub(crate) fn comes(&self, tool: DiscoveredTool) {
        self.tools.lock().unwrap().push(tool);
        self.changes.send_replace(());
    }
}

impl Upstream for Fake {
    fn agent(&self) -> &AgentId {
        &self.me
    }

    fn catalogue<'a>(
        &'a self,
        scope: &'a Scope,
    ) -> BoxFuture<'a, Result<Arc<Catalogue>, RpcError>> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        let tools = self.tools.lock().unwrap().clone();
        let mut gathered = Gathered::new(scope, self.me.org());
        gathered.take(tools);
        let catalogue = Catalogue::of(gathered);
        Box::pin(async move { Ok(Arc::new(catalogue)) })
    }

    fn call(&self, call: Outgoing) -> BoxFuture<'_, Result<Box<dyn Ongoing>, RpcError>> {
        let steps = (self.acts)(&call).into();
        self.calls.lock().unwrap().push(call);
        let ongoing = Played {
            steps,
            is_over: false,
            cancelled: Arc::clone(&self.cancelled),
        };
        Box::pin(async move { Ok(Box::new(ongoing) as Box<dyn Ongoing>) })
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}

struct Played {
    steps: VecDeque<Step>,
    is_over: bool,
    cancelled: Arc<AtomicUsize>,
}

impl Ongoing for Played {
    fn next(&mut self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            match self.steps.pop_front() {
                Some(step) => {
                    self.is_over = matches!(step, Step::Answer(_));
                    step
                }
                None => std::future::pending().await,
            }
        })
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        if !self.is_over {
            self.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

pub(crate) fn answer(result: &Value) -> Step {
    Step::Answer(Ok(to_raw_value(result).unwrap()))
}

pub(crate) fn fails(code: &str, data: &Value, is_tools: bool) -> Step {
    Step::Answer(Err(Failure {
        code: code.into(),
        message: "no".into(),
        data: Some(to_raw_value(data).unwrap()),
        is_tools,
    }))
}

/// A notification of an MCP server in mid-call.
pub(crate) fn note(method: &str, params: &Value) -> Step {
    Step::Progress(Progress {
        data: Some(to_raw_value(&json!({"method": method, "params": params})).unwrap()),
        ..Progress::default()
    })
}

/// A tool that speaks no MCP.
pub(crate) fn native(agent: &str, name: &str) -> DiscoveredTool {
    offered(&json!({"agent": agent, "name": name, "description": "d"}))
}

/// A tool of an MCP server.
pub(crate) fn served(agent: &str, name: &str, original: &str) -> DiscoveredTool {
    let mcp = json!({"method": "tools/call", "definition": {"name": original, "x": 1}});
    offered(&json!({"agent": agent, "name": name, "inputSchema": {"type": "object"}, "mcp": mcp}))
}

/// What an MCP server answers beside tools.
pub(crate) fn request(agent: &str, method: &str) -> DiscoveredTool {
    let (name, _) = agent.split_once('@').unwrap();
    let name = format!("{name}.mcp.{}", method.replace('/', "."));
    offered(&json!({"agent": agent, "name": name, "mcp": {"method": method}}))
}

pub(crate) fn offered(written: &Value) -> DiscoveredTool {
    let mut written = written.clone();
    written["key"] = json!(SigningKey::from_seed(&[7; 32]).public());
    serde_json::from_value(written).unwrap()
}

/// A gateway, the agents behind it, and who comes to it.
pub(crate) struct Place {
    pub(crate) gateway: Gateway,
    pub(crate) fake: Arc<Fake>,
    pub(crate) scope: Scope,
    pub(crate) host: &'static str,
}

pub(crate) fn allowed() -> Allowed {
    Allowed {
        hosts: vec!["here".into()],
        origins: Vec::new(),
    }
}

/// `/mcp` for `ada@acme`.
pub(crate) fn place(
    tools: Vec<DiscoveredTool>,
    acts: impl Fn(&Outgoing) -> Script + Send + Sync + 'static,
) -> Place {
    let bounds = Bounds {
        settle: Duration::ZERO,
        ..Bounds::default()
    };
    bounded(bounds, tools, acts)
}

pub(crate) fn bounded(
    bounds: Bounds,
    tools: Vec<DiscoveredTool>,
    acts: impl Fn(&Outgoing) -> Script + Send + Sync + 'static,
) -> Place {
    let fake = Fake {
        me: "ada@acme".parse().unwrap(),
        tools: Mutex::new(tools),
        looks: AtomicUsize::new(0),
        acts: Box::new(acts),
        calls: Mutex::default(),
        cancelled: Arc::default(),
        changes: watch::Sender::default(),
    };
    Place {
        gateway: Gateway::new(&[9; 32], Arc::new(Still), allowed(), bounds),
        fake: Arc::new(fake),
        scope: Scope::All,
        host: "here",
    }
}

impl Place {
    /// `/mcp/<agent>`.
    pub(crate) fn of(mut self, agent: &str) -> Self {
        self.scope = Scope::One(agent.parse().unwrap());
        self
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Heard {
        let upstream: Arc<dyn Upstream> = self.fake.clone();
        let response = self.gateway.serve(request, upstream, self.scope.clone());
        Heard(response.await)
    }

    pub(crate) fn post(
        &self,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::post("/mcp")
            .header("host", self.host)
            .header("accept", "application/json, text/event-stream")
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(body.into())).unwrap()
    }

    /// A modern request, with everything that it needs.
    pub(crate) async fn ask(&self, method: &str, params: Value) -> Heard {
        let name = ["name", "uri", "taskId"]
            .iter()
            .find_map(|name| params[*name].as_str());
        let mut headers = vec![
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", method),
        ];
        if let Some(name) = name {
            headers.push(("mcp-name", name));
        }
        let body = modern(method, params.clone()).to_string();
        self.send(self.post(&headers, body)).await
    }

    /// Its result, where there is one.
    pub(crate) async fn result(&self, method: &str, params: Value) -> Value {
        let said = self.ask(method, params).await.all().await.pop().unwrap();
        assert!(said["error"].is_null(), "{said}");
        said["result"].clone()
    }
}

/// A modern request's body.
pub(crate) fn modern(method: &str, mut params: Value) -> Value {
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let own = params["_meta"].take();
    params["_meta"] = meta;
    if let Some(own) = own.as_object() {
        params["_meta"].as_object_mut().unwrap().extend(own.clone());
    }
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

/// An answer.
pub(crate) struct Heard(pub(crate) Response<Body>);

impl Heard {
    pub(crate) fn status(&self) -> StatusCode {
        self.0.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.0.headers()
    }

    pub(crate) fn is_stream(&self) -> bool {
        self.headers()["content-type"] == "text/event-stream"
    }

    /// The next event of a stream.
    pub(crate) async fn event(&mut self) -> Option<Value> {
        let frame = self
            .0
            .body_mut()
            .frame()
            .await?
            .unwrap()
            .into_data()
            .unwrap();
        let text = String::from_utf8(frame.to_vec()).unwrap();
        let data = text
            .strip_prefix("event: message\ndata: ")
            .unwrap_or_else(|| panic!("{text:?}"));
        Some(parsed(data.strip_suffix("\n\n").unwrap()))
    }

    /// All messages: the one of JSON, or those of the stream.
    pub(crate) async fn all(mut self) -> Vec<Value> {
        let mut all = Vec::new();
        if self.is_stream() {
            while let Some(event) = self.event().await {
                all.push(event);
            }
            return all;
        }
        let bytes = self.0.into_body().collect().await.unwrap().to_bytes();
        vec![parsed(std::str::from_utf8(&bytes).unwrap())]
    }

    /// The one message, and its status.
    pub(crate) async fn one(self) -> (u16, Value) {
        let status = self.status().as_u16();
        let mut all = self.all().await;
        assert_eq!(all.len(), 1, "{all:?}");
        (status, all.remove(0))
    }
}

fn parsed(text: &str) -> Value {
    Message::parse(text.as_bytes()).expect("a message of JSON-RPC");
    serde_json::from_str(text).unwrap()
}

pub(crate) fn step(progress: Progress) -> Step {
    Step::Progress(progress)
}
