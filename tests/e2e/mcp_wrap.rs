//! `fem-cli mcp wrap`: an MCP server's tools are an agent's, for those who may call them; what the server
//! does wrong hurts nobody but itself.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use agent_sdk::{Agent, CallHandle, CallOptions, Config, Error, Progress};
use rustix::process::Signal;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use tests::by_hand::{ByHand, fem, fem_cli};
use tests::mcp::shelf::Shelf;

const FIXTURE: &str = include_str!("mcp/server.py");

/// An organisation with the agent `fs`, which is the fixture, and two who may call it.
pub(super) struct Site {
    pub(super) acme: ByHand,
}

/// `fem-cli mcp wrap`, killed when dropped.
pub(super) struct Wrap {
    child: Child,
    /// What it says of itself when it serves.
    pub(super) said: String,
    log: mpsc::Receiver<String>,
}

impl Drop for Wrap {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Site {
    pub(super) fn new() -> Self {
        let acme = ByHand::open("acme").unwrap();
        for agent in ["fs", "ada --capability fs.*", "bob --capability fs.*"] {
            acme.join(agent).unwrap();
        }
        Self { acme }
    }

    fn command(&self, options: &str, server: &[&str]) -> Command {
        let mut command = fem_cli(self.acme.folder()).unwrap();
        command.args(["mcp", "wrap", "--context", "fs.toml"]);
        command.args(options.split_whitespace());
        // The box need not see where the tests are.
        command.args(["--", "python3", "-I", "-c", FIXTURE]);
        command
            .args(server)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Wraps the fixture, and waits until it is offered.
    fn wrap(&self, options: &str, server: &[&str]) -> Wrap {
        Wrap::start(self.command(options, server))
    }

    pub(super) fn agent(&self, name: &str) -> Agent {
        let file = self.acme.folder().join(format!("{name}.toml"));
        Agent::new(Config::from_file(file).unwrap()).unwrap()
    }
}

impl Wrap {
    /// Waits until it says what it offers.
    pub(super) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (sender, log) = mpsc::channel();
        let stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut said = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut said).unwrap();
        let wrap = Self { child, said, log };
        assert!(
            !wrap.said.is_empty(),
            "{:?}",
            wrap.log.iter().collect::<Vec<_>>()
        );
        wrap
    }

    /// Waits until the log has a line with these words.
    pub(super) fn logs(&self, words: &[&str]) {
        let has = |line: &String| words.iter().all(|word| line.contains(word));
        let until = std::time::Instant::now() + Duration::from_secs(30);
        let mut seen = Vec::new();
        while let Ok(line) = self.log.recv_timeout(until - std::time::Instant::now()) {
            if has(&line) {
                return;
            }
            seen.push(line);
        }
        panic!("the log does not say {words:?}: {seen:#?}");
    }

    pub(super) fn stop(mut self) -> i32 {
        let id = i32::try_from(self.child.id()).unwrap();
        let id = rustix::process::Pid::from_raw(id).unwrap();
        rustix::process::kill_process(id, Signal::TERM).unwrap();
        self.child.wait().unwrap().code().unwrap()
    }
}

/// What a caller says beside the arguments.
fn meta(more: &Value) -> Value {
    let mut meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    for (name, value) in more.as_object().unwrap() {
        meta[name] = value.clone();
    }
    json!({"_meta": meta})
}

fn options(mcp: &Value) -> CallOptions {
    CallOptions {
        mcp: Some(to_raw_value(mcp).unwrap()),
        deadline: Some(Duration::from_secs(30)),
        progress: true,
        ..CallOptions::default()
    }
}

pub(super) async fn call(agent: &Agent, tool: &str, arguments: Value) -> Result<Value, Error> {
    call_with(agent, tool, arguments, &meta(&json!({}))).await
}

async fn call_with(
    agent: &Agent,
    tool: &str,
    arguments: Value,
    mcp: &Value,
) -> Result<Value, Error> {
    let raw = agent
        .call_raw("fs@acme", tool, &arguments, &options(mcp))
        .await?;
    Ok(serde_json::from_str(raw.get()).unwrap())
}

pub(super) fn text(result: &Value) -> &str {
    result["content"][0]["text"].as_str().unwrap()
}

pub(super) fn code(outcome: Result<Value, Error>) -> String {
    match outcome {
        Err(Error::Tool { code, .. }) => code,
        Err(Error::Refused { code, .. }) => code.to_string(),
        other => panic!("{other:?}"),
    }
}

/// A call's progress, and its result.
async fn followed(
    agent: &Agent,
    tool: &str,
    arguments: Value,
    mcp: &Value,
) -> (Vec<Progress>, Result<Box<RawValue>, Error>) {
    let mut call = agent
        .call_with("fs@acme", tool, &arguments, options(mcp))
        .await
        .unwrap();
    let mut progress = Vec::new();
    while let Some(step) = call.progress().await {
        progress.push(step);
    }
    (progress, call.raw().await)
}

#[tokio::test]
async fn a_servers_tools_are_an_agents_and_are_called_in_either_era() {
    let site = Site::new();
    let ada = site.agent("ada");
    for era in ["legacy", "modern"] {
        let wrap = site.wrap("", &[era]);
        assert!(wrap.said.contains("fixture 1.0"), "{}", wrap.said);
        assert!(wrap.said.contains("boxed"), "{}", wrap.said);
        let echoed = call(&ada, "fs.echo", json!({"text": "hello"}))
            .await
            .unwrap();
        assert_eq!(text(&echoed), "hello", "{era}");
        let found = ada
            .discover(agent_sdk::DiscoverTools::default())
            .await
            .unwrap();
        let echo = found
            .iter()
            .find(|found| found.tool.name.as_str() == "fs.echo")
            .unwrap();
        assert_eq!(
            echo.tool.annotations.as_ref().unwrap().get(),
            r#"{"readOnlyHint":true,"odd":18446744073709551615}"#
        );
        let request = echo.tool.mcp.as_ref().unwrap();
        assert_eq!(request.method, "tools/call");
        assert_eq!(
            request.definition.as_ref().unwrap().get(),
            r#"{"name":"echo"}"#
        );
        let methods = |name: &str| found.iter().any(|found| found.tool.name.as_str() == name);
        assert!(methods("fs.mcp.resources.read") && !methods("fs.mcp.tasks.get"));
        let discovered = call(&ada, "fs.mcp.server.discover", json!({}))
            .await
            .unwrap();
        assert_eq!(discovered["resultType"], "complete");
        let info = &discovered["_meta"]["io.modelcontextprotocol/serverInfo"];
        assert_eq!(info["odd"], json!([1]));
        let read = call(&ada, "fs.mcp.resources.read", json!({"uri": "test://one"}));
        assert_eq!(read.await.unwrap()["contents"][0]["uri"], "test://one");
        let dotted = call(&ada, "fs.dotted_name_with_odd_", json!({}))
            .await
            .unwrap();
        assert!(text(&dotted).contains("dotted.name/with odd\u{1b}"));
        assert_eq!(wrap.stop(), 0);
    }
}

#[tokio::test]
async fn what_was_sent_arrives_as_it_was_both_ways() {
    let site = Site::new();
    let ada = site.agent("ada");
    for era in ["legacy", "modern"] {
        let _wrap = site.wrap("", &[era]);
        let mcp = options(&meta(&json!({})));
        let raw = ada.call_raw("fs@acme", "fs.raw", &json!({}), &mcp).await;
        let expected = r#"{"z":1,"content":[{"type":"odd","n":18446744073709551615,"f":1.50,"e":"\u00e9"}],"a":{"y":1,"b":2},"structuredContent":{"k":[1e5]}}"#;
        assert_eq!(raw.unwrap().get(), expected, "{era}");
        let arguments = RawValue::from_string(
            r#"{"z":1,"n":18446744073709551615,"f":1.50,"a":{"y":[1e5],"b":"\u00e9"}}"#.into(),
        )
        .unwrap();
        let odd = options(&meta(&json!({"com.example/odd": {"z": 1, "a": 2}})));
        let whole = ada.call_raw("fs@acme", "fs.whole", &arguments, &odd).await;
        let whole: Value = serde_json::from_str(whole.unwrap().get()).unwrap();
        let line = text(&whole);
        let sent = format!(
            r#""params":{{"name":"whole","arguments":{},"_meta":{{"#,
            arguments.get()
        );
        assert!(line.contains(&sent), "{era}: {line}");
        assert!(
            line.contains(r#""com.example/odd":{"a":2,"z":1}"#),
            "{line}"
        );
        let knows_the_caller = line.contains("io.modelcontextprotocol/clientInfo");
        assert_eq!(knows_the_caller, era == "modern", "{line}");
    }
}

#[tokio::test]
async fn progress_comes_complete_in_order_and_under_the_callers_token() {
    let site = Site::new();
    let ada = site.agent("ada");
    for era in ["legacy", "modern"] {
        let _wrap = site.wrap("", &[era]);
        for token in [json!("a token"), json!(7)] {
            let asked = meta(&json!({"progressToken": token}));
            let (progress, result) = followed(&ada, "fs.steps", json!({"n": 20}), &asked).await;
            assert_eq!(progress.len(), 20, "{era}");
            for (at, step) in progress.iter().enumerate() {
                let n = at as f64 + 1.0;
                assert_eq!((step.done, step.total), (Some(n), Some(20.0)));
                assert_eq!(step.message.as_deref(), Some("step"));
                let data: Value = serde_json::from_str(step.data.as_ref().unwrap().get()).unwrap();
                assert_eq!(data["method"], "notifications/progress");
                assert_eq!(data["params"]["progressToken"], token);
                assert_eq!(data["params"]["odd"], json!([at]));
            }
            assert!(result.is_ok());
        }
        let (none, result) = followed(&ada, "fs.steps", json!({}), &meta(&json!({}))).await;
        assert!(none.is_empty() && result.is_ok());
        let native = CallOptions {
            progress: true,
            ..CallOptions::default()
        };
        let native = ada
            .call_with("fs@acme", "fs.steps", &json!({}), native)
            .await;
        let mut native = native.unwrap();
        let mut steps = 0;
        while native.progress().await.is_some() {
            steps += 1;
        }
        assert_eq!(steps, 20, "{era}: who speaks no MCP has progress too");
    }
}

#[tokio::test]
async fn log_messages_come_to_those_who_ask_and_at_their_level() {
    let site = Site::new();
    let ada = site.agent("ada");
    for era in ["legacy", "modern"] {
        let _wrap = site.wrap("", &[era]);
        let (silent, _) = followed(&ada, "fs.log", json!({}), &meta(&json!({}))).await;
        assert!(silent.is_empty(), "{era}");
        let asked = meta(&json!({"io.modelcontextprotocol/logLevel": "error"}));
        let (said, result) = followed(&ada, "fs.log", json!({}), &asked).await;
        assert_eq!(
            said.len(),
            3,
            "{era}: the server decides what is above the level"
        );
        let result: Value = serde_json::from_str(result.unwrap().get()).unwrap();
        if era == "legacy" {
            assert_eq!(text(&result), "error", "the level was set before the call");
        }
    }
}

#[tokio::test]
async fn an_error_keeps_its_code_and_data() {
    let site = Site::new();
    let ada = site.agent("ada");
    for era in ["legacy", "modern"] {
        let _wrap = site.wrap("", &[era]);
        let Err(Error::Tool {
            code,
            message,
            data,
        }) = call(&ada, "fs.fail", json!({})).await
        else {
            panic!()
        };
        assert_eq!((code.as_str(), message.as_str()), ("MCP_ERROR", "it fails"));
        let expected = r#"{"code":-32042,"message":"it fails","data":{"why":[1,{"b":1,"a":2}]}}"#;
        assert_eq!(
            data.unwrap().get().replace(": ", ":").replace(", ", ","),
            expected
        );
    }
}

#[test]
fn a_tool_that_says_that_it_failed_is_printed_and_ends_the_command_as_a_tools_error() {
    let site = Site::new();
    for era in ["legacy", "modern"] {
        let _wrap = site.wrap("", &[era]);
        for json in [&[][..], &["--json"]] {
            let call = ["call", "fs@acme", "fs.go_wrong", "--context", "ada.toml"];
            let (code, said) = fem(site.acme.folder(), &[&call[..], json].concat()).unwrap();
            assert!(
                code == 7 && said.contains("it went wrong"),
                "{code}: {said}"
            );
        }
    }
}

#[tokio::test]
async fn arguments_that_do_not_fit_never_reach_the_server() {
    let site = Site::new();
    let ada = site.agent("ada");
    let _wrap = site.wrap("", &["legacy"]);
    for bad in [json!({}), json!({"text": 1})] {
        let Err(Error::Tool { code, data, .. }) = call(&ada, "fs.echo", bad).await else {
            panic!()
        };
        assert_eq!(code, "INVALID_ARGUMENTS");
        let problems: Value = serde_json::from_str(data.unwrap().get()).unwrap();
        assert!(problems[0]["pointer"].is_string());
    }
}

#[tokio::test]
async fn what_stands_beside_the_arguments_never_stands_for_them() {
    let site = Site::new();
    let ada = site.agent("ada");
    let _wrap = site.wrap("", &["legacy"]);
    for (tool, beside) in [
        ("fs.echo", json!({"name": "add"})),
        ("fs.echo", json!({"arguments": {"text": "another"}})),
        ("fs.mcp.resources.read", json!({"uri": "test://other"})),
    ] {
        let arguments = json!({"text": "mine", "uri": "test://mine"});
        let mut mcp = meta(&json!({}));
        mcp.as_object_mut()
            .unwrap()
            .extend(beside.as_object().unwrap().clone());
        let outcome = call_with(&ada, tool, arguments, &mcp).await;
        assert_eq!(code(outcome), "INVALID_ARGUMENTS", "{tool} {beside}");
    }
}

/// A call that runs, for as long as somebody waits for it.
async fn slow_call(agent: &Agent) -> CallHandle {
    let asked = meta(&json!({"progressToken": 1}));
    let mut slow = agent
        .call_with("fs@acme", "fs.slow", &json!({}), options(&asked))
        .await
        .unwrap();
    assert!(slow.progress().await.is_some(), "it runs");
    slow
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_cancelled_at_the_server() {
    let site = Site::new();
    let ada = site.agent("ada");
    for era in ["legacy", "modern"] {
        let _wrap = site.wrap("", &[era]);
        let slow = slow_call(&ada).await;
        drop(slow);
        let mut cancelled = String::from("[]");
        for _ in 0..200 {
            let told = call(&ada, "fs.was_cancelled", json!({})).await.unwrap();
            cancelled = text(&told).to_owned();
            if cancelled != "[]" {
                break;
            }
        }
        assert_ne!(cancelled, "[]", "{era}");
    }
}

#[tokio::test]
async fn a_legacy_servers_question_is_a_result_that_its_caller_alone_can_go_on_from_once() {
    let site = Site::new();
    let (ada, bob) = (site.agent("ada"), site.agent("bob"));
    let _wrap = site.wrap("", &["legacy"]);
    let able =
        json!({"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}, "sampling": {}}});
    let able = meta(&able);
    let asked = call_with(&ada, "fs.elicit", json!({}), &able)
        .await
        .unwrap();
    assert_eq!(asked["resultType"], "input_required");
    let (key, request) = asked["inputRequests"]
        .as_object()
        .unwrap()
        .iter()
        .next()
        .unwrap();
    assert_eq!(request["method"], "elicitation/create");
    assert_eq!(request["params"]["message"], "Who?");
    let answered = |state: &Value| {
        let mut retry = able.clone();
        retry["inputResponses"] = json!({key: {"action": "accept", "content": {"name": "Ada"}}});
        retry["requestState"] = state.clone();
        retry
    };
    let state = &asked["requestState"];
    // Another caller, another tool, another handle.
    for (who, tool, state) in [
        (&bob, "fs.elicit", state.clone()),
        (&ada, "fs.both_questions", state.clone()),
        (
            &ada,
            "fs.elicit",
            json!(format!("{}-x", state.as_str().unwrap())),
        ),
        (&ada, "fs.elicit", json!(7)),
    ] {
        let refused = call_with(who, tool, json!({}), &answered(&state)).await;
        assert_eq!(code(refused), "MCP_ERROR");
    }
    // What answers nothing is asked again, under another handle.
    let mut nothing = answered(state);
    nothing["inputResponses"] = json!({"other": {}, key: 12345});
    let again = call_with(&ada, "fs.elicit", json!({}), &nothing)
        .await
        .unwrap();
    assert_eq!(again["resultType"], "input_required");
    let used = call_with(&ada, "fs.elicit", json!({}), &answered(state)).await;
    assert_eq!(code(used), "MCP_ERROR");
    let done = call_with(
        &ada,
        "fs.elicit",
        json!({}),
        &answered(&again["requestState"]),
    )
    .await;
    let said: Value = serde_json::from_str(text(&done.unwrap())).unwrap();
    assert_eq!(said["content"]["name"], "Ada");
    // Two rounds, and a caller who cannot be asked.
    let first = call_with(&ada, "fs.both_questions", json!({}), &able)
        .await
        .unwrap();
    let second = call_with(
        &ada,
        "fs.both_questions",
        json!({}),
        &answered(&first["requestState"]),
    )
    .await
    .unwrap();
    assert_eq!(
        second["inputRequests"]["q1"]["method"],
        "sampling/createMessage"
    );
    assert_ne!(first["requestState"], second["requestState"]);
    let cannot = call(&ada, "fs.elicit", json!({})).await.unwrap();
    assert!(text(&cannot).contains("-32601"), "{cannot}");
}

#[tokio::test]
async fn a_modern_servers_question_passes_as_it_is() {
    let site = Site::new();
    let ada = site.agent("ada");
    let _wrap = site.wrap("", &["modern"]);
    let asked = call(&ada, "fs.elicit", json!({})).await.unwrap();
    assert_eq!(asked["requestState"], "state 1");
    let mut retry = meta(&json!({}));
    retry["inputResponses"] = json!({"who": {"action": "accept"}});
    retry["requestState"] = json!("state 1");
    let done = call_with(&ada, "fs.elicit", json!({}), &retry)
        .await
        .unwrap();
    assert_eq!(text(&done), r#"{"action": "accept"}"#);
}

#[tokio::test]
async fn what_a_legacy_server_keeps_is_its_callers_alone_unless_it_is_shared() {
    let site = Site::new();
    let (ada, bob) = (site.agent("ada"), site.agent("bob"));
    let count = async |agent: &Agent| {
        let counted = call(agent, "fs.count", json!({})).await.unwrap();
        text(&counted).to_owned()
    };
    let wrap = site.wrap("", &["legacy"]);
    assert_eq!(
        [count(&ada).await, count(&ada).await, count(&bob).await],
        ["1", "2", "1"]
    );
    drop(wrap);
    let _wrap = site.wrap("--shared", &["legacy"]);
    assert_eq!(
        [count(&ada).await, count(&ada).await, count(&bob).await],
        ["1", "2", "3"]
    );
}

#[tokio::test]
async fn a_modern_server_is_one_for_all_callers_unless_they_are_kept_apart() {
    let site = Site::new();
    let (ada, bob) = (site.agent("ada"), site.agent("bob"));
    let count = async |agent: &Agent| {
        let counted = call(agent, "fs.count", json!({})).await.unwrap();
        text(&counted).to_owned()
    };
    let wrap = site.wrap("", &["modern"]);
    assert_eq!([count(&ada).await, count(&bob).await], ["1", "2"]);
    drop(wrap);
    let wrap = site.wrap("--apart", &["modern", "tasks"]);
    assert_eq!(
        [count(&ada).await, count(&ada).await, count(&bob).await],
        ["1", "2", "1"]
    );
    only_who_began_a_task_knows_it(&site).await;
    drop(wrap);
    let _wrap = site.wrap("--apart --children 2", &["modern"]);
    let slow = slow_call(&ada).await;
    assert_eq!(code(call(&bob, "fs.count", json!({})).await), "SERVER_BUSY");
    drop(slow);
}

#[test]
fn a_terminal_that_goes_away_ends_a_server_that_has_not_started_yet() {
    let acme = ByHand::open("acme").unwrap();
    acme.join("fs").unwrap();
    // It says nothing, heeds no end of its input, and tells by which descriptor it is seen to live.
    let lives = acme.folder().join("lives");
    rustix::fs::mkfifoat(rustix::fs::CWD, &lives, 0o600.into()).unwrap();
    let server = format!("echo > {0}; exec sleep 600 > {0}", lives.display());
    let mut command = fem_cli(acme.folder()).unwrap();
    command.args("mcp wrap --context fs.toml --without-box -- sh -c".split(' '));
    let mut wrap = command.arg(server).spawn().unwrap();
    let mut heard = BufReader::new(std::fs::File::open(&lives).unwrap());
    heard.read_line(&mut String::new()).unwrap();
    let id = rustix::process::Pid::from_child(&wrap);
    rustix::process::kill_process(id, Signal::HUP).unwrap();
    assert!(wrap.wait().unwrap().success());
    // Comes back when nobody is left who could write.
    assert_eq!(heard.read_line(&mut String::new()).unwrap(), 0);
}

#[tokio::test]
async fn a_server_that_dies_in_mid_call_is_started_again() {
    let site = Site::new();
    let ada = site.agent("ada");
    for era in ["legacy", "modern"] {
        let wrap = site.wrap("", &[era]);
        let slow = ada
            .call_with(
                "fs@acme",
                "fs.never",
                &json!({}),
                options(&meta(&json!({}))),
            )
            .await
            .unwrap();
        assert_eq!(
            code(call(&ada, "fs.die", json!({})).await),
            "SERVER_LOST",
            "{era}"
        );
        let Err(Error::Tool { code, .. }) = slow.raw().await else {
            panic!()
        };
        assert_eq!(code, "SERVER_LOST", "whoever waits is told");
        let echoed = call(&ada, "fs.echo", json!({"text": "again"}))
            .await
            .unwrap();
        assert_eq!(text(&echoed), "again");
        wrap.logs(&["exited 3", r"\\u{1b}[2J"]);
    }
}

#[tokio::test]
async fn what_a_hostile_server_prints_harms_nobody_but_its_own_call() {
    let site = Site::new();
    let ada = site.agent("ada");
    for era in ["legacy", "modern"] {
        let _wrap = site.wrap("", &[era]);
        for (tool, expected) in [
            ("fs.not_utf8", "MCP_ERROR"),
            ("fs.two_names", "MCP_ERROR"),
            ("fs.too_deep", "MCP_ERROR"),
            ("fs.huge", "SERVER_LOST"),
            ("fs.endless", "SERVER_LOST"),
        ] {
            assert_eq!(
                code(call(&ada, tool, json!({})).await),
                expected,
                "{era} {tool}"
            );
            let echoed = call(&ada, "fs.echo", json!({"text": "fine"}))
                .await
                .unwrap();
            assert_eq!(text(&echoed), "fine", "after {tool}");
        }
        for tool in ["fs.twice", "fs.garbage"] {
            let told = call(&ada, tool, json!({})).await.unwrap();
            assert!(matches!(text(&told), "first" | "fine"));
        }
        let asked = meta(&json!({"progressToken": 1}));
        let (flood, result) = followed(&ada, "fs.flood", json!({}), &asked).await;
        assert!(result.is_ok() && flood.len() <= 20_000, "{}", flood.len());
        let one = |n: u64| {
            let ada = ada.clone();
            async move {
                call(&ada, "fs.out_of_order", json!({"n": n}))
                    .await
                    .unwrap()
            }
        };
        let (first, second, third) = tokio::join!(one(1), one(2), one(3));
        assert_eq!([text(&first), text(&second), text(&third)], ["1", "2", "3"]);
        let mut short = options(&meta(&json!({})));
        short.deadline = Some(Duration::from_millis(300));
        let never = ada
            .call_raw("fs@acme", "fs.never", &json!({}), &short)
            .await;
        let never = never.map(|raw| json!(raw.get()));
        assert!(matches!(code(never).as_str(), "DEADLINE" | "SERVER_SILENT"));
    }
}

#[tokio::test]
async fn tools_that_cannot_be_offered_are_left_out_with_the_reason() {
    let site = Site::new();
    let ada = site.agent("ada");
    let wrap = site.wrap("", &["legacy", "clash", "schemas"]);
    for words in [
        ["\"a.b\"", "\"a_b\""],
        ["bomb_array", "object"],
        ["bomb_deep", "deep"],
        ["bomb_header", "header"],
        ["bomb_large", "bytes"],
        ["bomb_none", "schema"],
        ["bomb_pattern", "schema is none"],
        ["bomb_remote", "example.invalid"],
    ] {
        wrap.logs(&words);
    }
    let found = ada
        .discover(agent_sdk::DiscoverTools::default())
        .await
        .unwrap();
    let names: Vec<&str> = found.iter().map(|found| found.tool.name.as_str()).collect();
    assert!(names.contains(&"fs.echo"));
    assert!(
        !names
            .iter()
            .any(|name| name.contains("bomb") || *name == "fs.a_b")
    );
    let long = names
        .iter()
        .find(|name| name.starts_with("fs.long_x"))
        .unwrap();
    assert_eq!(long.len(), "fs.".len() + 64);
    let called = call(&ada, long, json!({})).await.unwrap();
    assert!(text(&called).ends_with(&"x".repeat(300)));
}

#[tokio::test]
async fn a_list_that_changed_is_offered_anew_without_disturbing_calls() {
    let site = Site::new();
    let ada = site.agent("ada");
    for era in ["legacy", "modern"] {
        let _wrap = site.wrap("--shared", &[era]);
        let running = slow_call(&ada).await;
        let has_extra = async || {
            let found = ada
                .discover(agent_sdk::DiscoverTools::default())
                .await
                .unwrap();
            found
                .iter()
                .any(|found| found.tool.name.as_str() == "fs.extra")
        };
        assert!(!has_extra().await);
        // Whoever listens to a server of 2026-07-28 may only have begun to.
        let until = std::time::Instant::now() + Duration::from_secs(30);
        while !has_extra().await {
            assert!(
                std::time::Instant::now() < until,
                "{era}: the list is as it was"
            );
            call(&ada, "fs.change", json!({})).await.unwrap();
        }
        let extra = call(&ada, "fs.extra", json!({})).await.unwrap();
        assert!(text(&extra).contains("extra"));
        call(&ada, "fs.finish", json!({})).await.unwrap();
        let finished: Value = running.result().await.unwrap();
        assert_eq!(text(&finished), "finished");
    }
}

#[tokio::test]
async fn a_caller_hears_what_a_legacy_server_says_about_no_request() {
    let site = Site::new();
    let ada = site.agent("ada");
    let _wrap = site.wrap("", &["legacy"]);
    let wanted = json!({"notifications": {
        "toolsListChanged": true, "promptsListChanged": true, "resourceSubscriptions": ["test://one"],
    }});
    let mut listening = ada
        .call_with(
            "fs@acme",
            "fs.mcp.subscriptions.listen",
            &wanted,
            options(&meta(&json!({}))),
        )
        .await
        .unwrap();
    let mut heard = async || {
        let step = listening.progress().await.unwrap();
        serde_json::from_str::<Value>(step.data.unwrap().get()).unwrap()
    };
    let first = heard().await;
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
    assert_eq!(
        first["params"]["notifications"],
        json!({"toolsListChanged": true, "resourceSubscriptions": ["test://one"]})
    );
    call(&ada, "fs.touch", json!({})).await.unwrap();
    call(&ada, "fs.change", json!({})).await.unwrap();
    let second = heard().await;
    assert_eq!(second["method"], "notifications/resources/updated");
    assert_eq!(second["params"]["uri"], "test://one");
    assert_eq!(heard().await["method"], "notifications/tools/list_changed");
}

#[tokio::test]
async fn a_subscription_at_a_legacy_server_ends_with_the_last_who_listens() {
    let site = Site::new();
    let ada = site.agent("ada");
    let _wrap = site.wrap("", &["legacy"]);
    let listen = async || {
        let wanted = json!({"notifications": {"resourceSubscriptions": ["test://one"]}});
        let mcp = options(&meta(&json!({})));
        let tool = "fs.mcp.subscriptions.listen";
        let mut listening = ada.call_with("fs@acme", tool, &wanted, mcp).await.unwrap();
        listening.progress().await.unwrap();
        listening
    };
    let subscribed = async || {
        let told = call(&ada, "fs.subscribed", json!({})).await.unwrap();
        text(&told).to_owned()
    };
    let (first, mut second) = (listen().await, listen().await);
    assert_eq!(subscribed().await, "['test://one']", "asked for once");
    drop(first);
    call(&ada, "fs.touch", json!({})).await.unwrap();
    assert!(second.progress().await.is_some());
    assert_eq!(subscribed().await, "['test://one']");
    drop(second);
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while subscribed().await != "[]" {
        assert!(std::time::Instant::now() < until, "it is still subscribed");
    }
    let _again = listen().await;
    assert_eq!(subscribed().await, "['test://one']");
}

#[tokio::test]
async fn at_the_bound_of_children_a_call_is_told_that_all_are_in_use() {
    let site = Site::new();
    let (ada, bob) = (site.agent("ada"), site.agent("bob"));
    let _wrap = site.wrap("--children 2", &["legacy"]);
    let slow = slow_call(&ada).await;
    assert_eq!(code(call(&bob, "fs.count", json!({})).await), "SERVER_BUSY");
    drop(slow);
    let mut outcome = call(&bob, "fs.count", json!({})).await;
    for _ in 0..200 {
        if outcome.is_ok() {
            break;
        }
        outcome = call(&bob, "fs.count", json!({})).await;
    }
    assert_eq!(text(&outcome.unwrap()), "1", "the idle one made room");
}

#[test]
fn a_server_that_does_not_start_or_speak_ends_the_command_with_the_reason() {
    let site = Site::new();
    for (server, why) in [("dies", "standard output"), ("pages", "pages")] {
        let ended = site.command("", &["legacy", server]).output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains(why), "{said}");
    }
}

#[tokio::test]
async fn why_a_server_does_not_start_is_for_the_log_and_not_for_callers() {
    let site = Site::new();
    let (ada, folder) = (site.agent("ada"), site.acme.folder());
    let script = folder.join("secret-place.sh");
    let run = "#!/bin/sh\nexec python3 -I -c \"$FIXTURE\" legacy\n";
    std::fs::write(&script, run).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = fem_cli(folder).unwrap();
    command.args(["mcp", "wrap", "--context", "fs.toml", "--without-box"]);
    command.args(["--env", "FIXTURE", "--"]).arg(&script);
    command.env("FIXTURE", FIXTURE);
    let wrap = Wrap::start({
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    });
    std::fs::remove_file(&script).unwrap();
    let Err(Error::Tool {
        code,
        message,
        data,
    }) = call(&ada, "fs.count", json!({})).await
    else {
        panic!()
    };
    assert_eq!((code.as_str(), data.is_none()), ("SERVER_LOST", true));
    assert!(message.contains("cannot be spoken to"), "{message}");
    for detail in ["secret-place", "No such file", "os error", "/"] {
        assert!(!message.contains(detail), "{message}");
    }
    wrap.logs(&["secret-place.sh", "No such file"]);
}

#[tokio::test]
async fn a_server_may_ask_out_of_turn_print_a_banner_and_stay_when_told_to_go() {
    let site = Site::new();
    let ada = site.agent("ada");
    let wrap = site.wrap("", &["legacy", "banner", "early", "strict", "stays"]);
    let echoed = call(&ada, "fs.echo", json!({"text": "fine"}))
        .await
        .unwrap();
    assert_eq!(text(&echoed), "fine");
    assert_eq!(wrap.stop(), 0);
}

#[tokio::test]
async fn the_box_hides_what_was_not_opened_and_without_one_it_says_so() {
    let site = Site::new();
    let wrap = site.wrap("--without-box", &["legacy"]);
    assert!(wrap.said.contains("WITHOUT a box"), "{}", wrap.said);
    drop(wrap);
    let mut command = fem_cli(site.acme.folder()).unwrap();
    command.args([
        "mcp",
        "wrap",
        "--context",
        "fs.toml",
        "--",
        "cat",
        "/etc/passwd",
    ]);
    let ended = command.output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(
        said.contains("No such file") && !said.contains("root:"),
        "{said}"
    );
}

#[test]
fn what_cannot_be_opened_to_a_server_is_named_with_what_to_do() {
    let site = Site::new();
    for (options, server, expected) in [
        ("--read /srv/none", "ls", "cannot open /srv/none"),
        ("--read /tmp/none", "ls", "/tmp of its own"),
        ("", "no-such-server", "no program \"no-such-server\""),
        ("", "no-such-server", "--run (for programs)"),
    ] {
        let mut command = fem_cli(site.acme.folder()).unwrap();
        command.args(["mcp", "wrap", "--context", "fs.toml"]);
        command
            .args(options.split_whitespace())
            .args(["--", server]);
        let ended = command.output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(!ended.status.success() && said.contains(expected), "{said}");
        assert!(!said.contains("--without-namespaces"), "{said}");
    }
}

/// The fixture as a server that is reached by HTTP, and its port.
struct Listening {
    child: Child,
    port: u16,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Listening {
    fn start(era: &str) -> Self {
        Self::with(&[era])
    }

    fn with(words: &[&str]) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", FIXTURE]).args(words).arg("http");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let port = line.trim().parse().unwrap();
        Self { child, port }
    }
}

impl Site {
    fn reach(&self, server: &Listening) -> Wrap {
        let token = self.acme.folder().join("token.txt");
        std::fs::write(&token, "Bearer secret\n").unwrap();
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
        let mut command = fem_cli(self.acme.folder()).unwrap();
        let url = format!("http://127.0.0.1:{}/mcp", server.port);
        command.args(["mcp", "wrap", "--context", "fs.toml", "--url", &url]);
        command
            .args(["--header", "Authorization=@token.txt"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Wrap::start(command)
    }
}

#[tokio::test]
async fn a_server_that_is_reached_by_http_is_wrapped_in_either_era() {
    let site = Site::new();
    let ada = site.agent("ada");
    for era in ["legacy", "modern"] {
        let server = Listening::start(era);
        let wrap = site.reach(&server);
        assert!(wrap.said.contains("127.0.0.1"), "{}", wrap.said);
        for words in ["hello", " odd \u{e9} "] {
            let echoed = call(&ada, "fs.echo", json!({"text": words})).await.unwrap();
            assert_eq!(text(&echoed), words, "{era}");
        }
        let asked = meta(&json!({"progressToken": "t"}));
        let (progress, result) = followed(&ada, "fs.steps", json!({"n": 20}), &asked).await;
        let done: Vec<_> = progress.iter().filter_map(|step| step.done).collect();
        assert_eq!(done, (1..=20).map(f64::from).collect::<Vec<_>>());
        assert!(result.is_ok());
        let plain = call(&ada, "fs.mcp.prompts.get", json!({"name": "p"}))
            .await
            .unwrap();
        assert_eq!(plain["plain"], true, "an answer need not be a stream");
        assert_eq!(code(call(&ada, "fs.cut", json!({})).await), "SERVER_LOST");
        assert_eq!(code(call(&ada, "fs.fail", json!({})).await), "MCP_ERROR");
    }
}

#[tokio::test]
async fn a_legacy_server_reached_by_http_asks_has_sessions_and_tells_of_changes() {
    let site = Site::new();
    let ada = site.agent("ada");
    let server = Listening::start("legacy");
    let _wrap = site.reach(&server);
    let able = meta(&json!({"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}}));
    let asked = call_with(&ada, "fs.elicit", json!({}), &able)
        .await
        .unwrap();
    let mut retry = able.clone();
    retry["inputResponses"] = json!({"q1": {"action": "decline"}});
    retry["requestState"] = asked["requestState"].clone();
    let done = call_with(&ada, "fs.elicit", json!({}), &retry)
        .await
        .unwrap();
    assert!(text(&done).contains("decline"));
    assert_eq!(code(call(&ada, "fs.gone", json!({})).await), "SERVER_LOST");
    let again = call(&ada, "fs.echo", json!({"text": "a new session"}))
        .await
        .unwrap();
    assert_eq!(text(&again), "a new session");
}

/// What is said to one who asks about a task that is not theirs: of one that there is not.
async fn unknown_task(agent: &Agent, method: &str, task: &str) -> (String, String, Option<String>) {
    let tool = format!("fs.mcp.tasks.{method}");
    match call(agent, &tool, json!({"taskId": task})).await {
        Err(Error::Tool {
            code,
            message,
            data,
        }) => (code, message, data.map(|data| data.get().to_owned())),
        other => panic!("{method} {task}: {other:?}"),
    }
}

/// Both know the id, and the server would answer either.
async fn only_who_began_a_task_knows_it(site: &Site) {
    let (ada, bob) = (site.agent("ada"), site.agent("bob"));
    let begun = call(&ada, "fs.begin", json!({"text": "adas"})).await;
    let begun = begun.unwrap();
    let task = begun["taskId"]
        .as_str()
        .or(begun["task"]["taskId"].as_str());
    let task = task.unwrap();
    for method in ["get", "update", "cancel"] {
        let others = unknown_task(&bob, method, task).await;
        assert_eq!(others, unknown_task(&bob, method, "no-such").await);
        assert_eq!(others, unknown_task(&ada, method, "no-such").await);
    }
    let get = async || call(&ada, "fs.mcp.tasks.get", json!({"taskId": task})).await;
    assert_eq!(text(&get().await.unwrap()["result"]), "adas");
    let cancelled = call(&ada, "fs.mcp.tasks.cancel", json!({"taskId": task})).await;
    assert!(cancelled.is_ok());
    assert_eq!(code(get().await), "MCP_ERROR", "the server's own answer");
}

#[tokio::test]
async fn a_task_is_its_beginners_alone_and_no_task_to_others() {
    let site = Site::new();
    for (options, era) in [("", "modern"), ("--shared", "legacy"), ("", "legacy")] {
        let _wrap = site.wrap(options, &[era, "tasks"]);
        only_who_began_a_task_knows_it(&site).await;
    }
    for era in ["modern", "legacy"] {
        let server = Listening::with(&[era, "tasks"]);
        let _wrap = site.reach(&server);
        only_who_began_a_task_knows_it(&site).await;
    }
}

#[tokio::test]
async fn who_listens_hears_of_their_own_tasks_only() {
    let site = Site::new();
    let (ada, bob) = (site.agent("ada"), site.agent("bob"));
    let _wrap = site.wrap("", &["modern", "tasks"]);
    let begun = call(&ada, "fs.begin", json!({"text": "adas"})).await;
    let task = begun.unwrap()["taskId"].clone();
    for (who, heard) in [(&ada, json!([task])), (&bob, json!([]))] {
        let wanted = json!({"notifications": {"taskIds": [task, "no-such"]}});
        let mcp = options(&meta(&json!({})));
        let listen = "fs.mcp.subscriptions.listen";
        let listening = who.call_with("fs@acme", listen, &wanted, mcp).await;
        let first = listening.unwrap().progress().await.unwrap();
        let first: Value = serde_json::from_str(first.data.unwrap().get()).unwrap();
        assert_eq!(first["params"]["notifications"], json!({"taskIds": heard}));
    }
}

#[tokio::test]
async fn a_legacy_servers_stream_that_breaks_off_goes_on_where_the_server_says() {
    let site = Site::new();
    let ada = site.agent("ada");
    let server = Listening::start("legacy");
    let wrap = site.reach(&server);
    let began = std::time::Instant::now();
    let later = call(&ada, "fs.later", json!({})).await.unwrap();
    assert_eq!(text(&later), "later");
    let left_alone = began.elapsed();
    assert!(left_alone >= Duration::from_millis(300), "{left_alone:?}");
    assert_eq!(
        code(call(&ada, "fs.cut_again", json!({})).await),
        "SERVER_LOST"
    );
    drop(wrap);
    // The revision without sessions has nothing that goes on.
    let server = Listening::start("modern");
    let _wrap = site.reach(&server);
    assert_eq!(code(call(&ada, "fs.later", json!({})).await), "SERVER_LOST");
}

#[test]
fn a_url_that_would_send_secrets_over_an_open_line_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for url in [
        "http://192.0.2.1/mcp",
        "ftp://127.0.0.1/",
        "https://user:secret@127.0.0.1/",
    ] {
        let wrap = [
            "mcp",
            "wrap",
            "--name",
            "fs",
            "--context",
            "none.toml",
            "--url",
        ];
        let words = [&wrap[..], &[url]].concat();
        let (code, _) = fem(folder.path(), &words).unwrap();
        assert_ne!(code, 0, "{url}");
    }
}

#[tokio::test]
async fn what_is_opened_of_the_box_is_open_and_nothing_else() {
    let site = Site::new();
    let ada = site.agent("ada");
    let outside = Shelf::new().unwrap();
    let [read, write] = ["read", "write"].map(|name| outside.room(name).unwrap());
    for folder in [&read, &write] {
        std::fs::write(folder.join("there"), "there").unwrap();
    }
    let tried = async |what: &str| {
        let paths = json!({"read": read, "write": write});
        let tried = call(&ada, "fs.reach", json!({"what": what, "paths": paths})).await;
        text(&tried.unwrap()).to_owned()
    };
    let wrap = site.wrap("", &["legacy"]);
    for what in ["read", "change", "socket"] {
        assert_ne!(
            tried(what).await,
            "done",
            "{what}: nothing is open by default"
        );
    }
    drop(wrap);
    let opened = format!(
        "--net --read {} --write {}",
        read.display(),
        write.display()
    );
    let wrap = site.wrap(&opened, &["legacy"]);
    for words in ["NETWORK", "CHANGES", "reads"] {
        assert!(wrap.said.contains(words), "{}", wrap.said);
    }
    for (what, expected) in [
        ("read", true),
        ("change", true),
        ("change_read", false),
        ("socket", true),
        ("listen", false),
        ("unix", false),
    ] {
        let said = tried(what).await;
        assert_eq!(said == "done", expected, "{what}: {said}");
    }
    assert_eq!(std::fs::read_to_string(write.join("new")).unwrap(), "new");
}
