//! `fem-cli mcp serve`: whoever speaks MCP calls what an agent may call, through the broker.

use std::process::Stdio;
use std::time::Duration;

use agent_sdk::{Agent, Call, Config, McpRequest, Progress, Serving, Tool, ToolError};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use tests::binaries::{apart, path};
use tests::by_hand::ByHand;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// An organisation with two providers, and `ada`, who may call some of what they offer.
struct Site {
    acme: ByHand,
    serving: tokio::task::JoinSet<agent_sdk::Result<()>>,
}

/// Tools of FEM's own.
fn calc() -> Vec<Tool> {
    let add = |mut call: Call, arguments: Box<RawValue>| async move {
        call.progress(Progress::of(1.0, 2.0)).await;
        let arguments: Value = serde_json::from_str(arguments.get())?;
        let sum = arguments["a"].as_i64().zip(arguments["b"].as_i64());
        let (a, b) = sum.ok_or_else(|| ToolError::new("NO_NUMBERS", "give a and b"))?;
        Ok(to_raw_value(&json!({"sum": a + b}))?)
    };
    let secret = |_: Call, _: Box<RawValue>| async { Ok(to_raw_value("secret")?) };
    let schema = json!({"type": "object"});
    vec![
        Tool::raw("calc.add", &schema, add).describe("Adds"),
        Tool::raw("calc.secret", &schema, secret),
    ]
}

/// Tools as a wrapped MCP server has them: a call's result is what its request is answered with.
fn server() -> Vec<Tool> {
    let request = |method: &str, definition: Option<Value>| McpRequest {
        method: method.into(),
        definition: definition.map(|said| to_raw_value(&said).unwrap()),
    };
    let schema = json!({"type": "object"});
    let echo = |mut call: Call, arguments: Box<RawValue>| async move {
        let mcp: Value = serde_json::from_str(call.mcp().unwrap().get())?;
        for n in 1..=20 {
            let params = json!({"progressToken": "its own", "progress": n});
            let said = json!({"method": "notifications/progress", "params": params});
            call.progress(Progress::default().with(&said)).await;
        }
        if mcp["inputResponses"].is_null() && arguments.get().contains("ask") {
            let ask = json!({"method": "elicitation/create", "params": {"message": "who?"}});
            let asked = json!({"resultType": "input_required", "requestState": "s", "inputRequests": {"who": ask}});
            return Ok(to_raw_value(&asked)?);
        }
        let text = format!(
            r#"{{"content":[],"z":{},"a":18446744073709551615,"answers":{}}}"#,
            arguments.get(),
            mcp["inputResponses"]
        );
        Ok(RawValue::from_string(text)?)
    };
    let fails = |_: Call, _: Box<RawValue>| async {
        let error = json!({"code": -32042, "message": "not here", "data": {"u": 1}});
        Err(ToolError::new("MCP_ERROR", "not here").with(&error))
    };
    let discover = |_: Call, _: Box<RawValue>| async {
        let server =
            json!({"io.modelcontextprotocol/serverInfo": {"name": "files", "version": "7"}});
        Ok(to_raw_value(
            &json!({"capabilities": {"tools": {}}, "instructions": "read me", "_meta": server}),
        )?)
    };
    let call = |name: &str| request("tools/call", Some(json!({"name": name, "icons": []})));
    vec![
        Tool::raw("fs.echo", &schema, echo).mcp(call("e.cho")),
        Tool::raw("fs.fails", &schema, fails).mcp(call("fails")),
        Tool::raw("fs.mcp.server.discover", &schema, discover)
            .mcp(request("server/discover", None)),
    ]
}

impl Site {
    async fn new() -> Self {
        let acme = ByHand::open("acme").unwrap();
        let at = acme.folder();
        for agent in ["calc", "fs", "ada --capability calc.add --capability fs.*"] {
            acme.join(agent).unwrap();
        }
        let mut serving = tokio::task::JoinSet::new();
        for (name, tools) in [("calc", calc()), ("fs", server())] {
            let config = Config::from_file(at.join(format!("{name}.toml"))).unwrap();
            let offered = Agent::new(config).unwrap().offer(tools).await;
            serving.spawn(offered.map(Serving::run).unwrap());
        }
        Self { acme, serving }
    }

    fn client(&self, more: &[&str]) -> Client {
        let mut command = tokio::process::Command::new(path("fem-cli").unwrap());
        command
            .args(["mcp", "serve", "--context", "ada.toml"])
            .args(more);
        apart(command.as_std_mut());
        let mut child = command
            .current_dir(self.acme.folder())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Client {
            write: child.stdin.take().unwrap(),
            read: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }
}

/// What started the server, and speaks with it.
struct Client {
    write: ChildStdin,
    read: BufReader<ChildStdout>,
    child: Child,
}

impl Client {
    async fn send(&mut self, message: &Value) {
        self.write
            .write_all(format!("{message}\n").as_bytes())
            .await
            .unwrap();
    }

    async fn hear(&mut self) -> String {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.read.read_line(&mut line)).await;
        read.expect("a message in time").unwrap();
        line
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.send(&json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}))
            .await;
        serde_json::from_str(&self.hear().await).unwrap()
    }

    async fn modern(&mut self, method: &str, mut params: Value) -> Value {
        let own = params["_meta"].take();
        params["_meta"] = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        if let Some(own) = own.as_object() {
            params["_meta"].as_object_mut().unwrap().extend(own.clone());
        }
        self.ask(method, params).await
    }

    async fn begin(&mut self) -> Value {
        let capabilities = json!({"elicitation": {}});
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": capabilities});
        let told = self.ask("initialize", params).await;
        self.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))
            .await;
        told["result"].clone()
    }

    /// Closes its side: the server ends, and all it wrote was messages.
    async fn close(mut self) {
        drop(self.write);
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        assert!(ended.expect("its end in time").unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_mcp_sees_what_the_agent_may_call_and_calls_it() {
    let mut site = Site::new().await;
    let mut client = site.client(&[]);
    let list = client.modern("tools/list", json!({})).await;
    let names: Vec<&Value> = list["result"]["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| &tool["name"])
        .collect();
    assert_eq!(
        json!(names),
        json!(["calc__add", "fs__echo", "fs__fails"]),
        "calc.secret is not hers"
    );

    let sum = json!({"name": "calc__add", "arguments": {"a": 1, "b": 2}, "_meta": {"progressToken": "p"}});
    let progress = client.modern("tools/call", sum).await;
    assert_eq!(
        progress["params"],
        json!({"progressToken": "p", "progress": 1.0, "total": 2.0})
    );
    let told: Value = serde_json::from_str(&client.hear().await).unwrap();
    assert_eq!(told["result"]["structuredContent"], json!({"sum": 3}));
    let no = client
        .modern("tools/call", json!({"name": "calc__add"}))
        .await;
    assert_eq!(no["result"]["isError"], true);
    assert_eq!(
        no["result"]["content"][0]["text"],
        "NO_NUMBERS: give a and b"
    );
    let unknown = client
        .modern("tools/call", json!({"name": "calc__secret"}))
        .await;
    assert_eq!(unknown["error"]["code"], -32602);
    let failed = client
        .modern("tools/call", json!({"name": "fs__fails"}))
        .await;
    assert_eq!(
        failed["error"],
        json!({"code": -32042, "message": "not here", "data": {"u": 1}})
    );
    client.close().await;
    site.serving.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_answers_comes_as_it_was_after_all_of_its_progress_in_order() {
    let site = Site::new().await;
    let mut client = site.client(&["--agent", "fs@acme"]);
    let found = client.modern("server/discover", json!({})).await;
    assert_eq!(found["result"]["instructions"], "read me");
    let list = client.modern("tools/list", json!({})).await;
    assert_eq!(
        list["result"]["tools"][0],
        json!({"name": "e.cho", "icons": [], "inputSchema": {"type": "object"}})
    );
    let call = json!({"name": "e.cho", "arguments": {"b": 1}, "_meta": {"progressToken": 5}});
    let mut said = client.modern("tools/call", call).await;
    for n in 1..=20 {
        assert_eq!(said["params"], json!({"progressToken": 5, "progress": n}));
        let line = client.hear().await;
        if n == 20 {
            let expected = r#""content":[],"z":{"b":1},"a":18446744073709551615,"answers":null"#;
            assert!(line.contains(expected), "{line}");
        }
        said = serde_json::from_str(&line).unwrap();
    }
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_client_is_asked_in_mid_call_what_a_modern_one_answers_with_the_next() {
    let site = Site::new().await;
    let mut client = site.client(&["--agent", "fs@acme"]);
    let told = client.begin().await;
    assert_eq!(told["serverInfo"], json!({"name": "files", "version": "7"}));
    let call = json!({"name": "e.cho", "arguments": {"ask": true}});
    let question = client.ask("tools/call", call.clone()).await;
    assert_eq!(question["method"], "elicitation/create");
    assert_eq!(question["params"], json!({"message": "who?"}));
    client
        .send(&json!({"jsonrpc": "2.0", "id": question["id"], "result": {"action": "accept"}}))
        .await;
    let told: Value = serde_json::from_str(&client.hear().await).unwrap();
    assert_eq!(
        told["result"]["answers"],
        json!({"who": {"action": "accept"}})
    );

    let asked = client.modern("tools/call", call.clone()).await;
    assert_eq!(
        asked["result"]["inputRequests"]["who"]["method"],
        "elicitation/create"
    );
    let mut again = call;
    again["requestState"] = asked["result"]["requestState"].clone();
    again["inputResponses"] = json!({"who": 1});
    let told = client.modern("tools/call", again).await;
    assert_eq!(told["result"]["answers"], json!({"who": 1}));
    assert_eq!(told["result"]["resultType"], "complete");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hears_that_its_tools_changed() {
    let site = Site::new().await;
    let mut client = site.client(&[]);
    client.begin().await;
    // What was approved after that is seen at the next look.
    let listed = client.ask("tools/list", json!({})).await;
    assert_eq!(listed["result"]["tools"].as_array().unwrap().len(), 3);
    site.acme
        .admin("token issue ada --capability calc.secret")
        .unwrap();
    let changed: Value = serde_json::from_str(&client.hear().await).unwrap();
    assert_eq!(changed["method"], "notifications/tools/list_changed");
    let listed = client.ask("tools/list", json!({})).await;
    assert_eq!(listed["result"]["tools"].as_array().unwrap().len(), 4);
    client.close().await;
}
