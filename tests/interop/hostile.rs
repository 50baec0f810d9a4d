//! Servers that mean harm: first that each does what it says, for a habit that breaks down itself would prove
//! nothing; then what comes of it behind `fem-cli mcp wrap` and a broker.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use agent_sdk::{Agent, CallOptions, Config, DiscoverTools, Error};
use futures_util::{StreamExt as _, stream};
use proto_spec::AgentId;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use tests::by_hand::fem_cli;
use tests::mcp::house::House;
use tests::mcp::process::output;
use tests::mcp::servers::{command, hostile};
use tests::mcp::stateless;
use tests::wire::PATIENCE;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

/// What a habit is given that does not end with its input, and what is read of one that says more and more.
const HEARING: Duration = Duration::from_secs(1);
const HEARD_MAX: u64 = 1 << 20;

const DIALOGUE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}
{"jsonrpc":"2.0","method":"notifications/initialized"}
{"jsonrpc":"2.0","id":2,"method":"tools/list"}
{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"echo","arguments":{"message":"heard"}}}
{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"misbehave"}}
"#;

/// What a server with this habit says, up to a bound, and what it says to standard error.
async fn said(habit: &str) -> (String, String) {
    let mut command = command(&hostile(habit)).unwrap();
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Who ends at once does not read it.
    let _ = stdin.write_all(DIALOGUE.as_bytes()).await;
    drop(stdin);
    let (mut heard, mut complained) = (vec![0], Vec::new());
    let mut stdout = child.stdout.take().unwrap().take(HEARD_MAX);
    let mut stderr = child.stderr.take().unwrap().take(HEARD_MAX);
    // Python may take its time to start; from the first byte on, it is the habit that does.
    let begun = timeout(PATIENCE, stdout.read(&mut heard)).await;
    heard.truncate(begun.map_or(0, Result::unwrap));
    let _ = timeout(HEARING, stdout.read_to_end(&mut heard)).await;
    child.start_kill().unwrap();
    let _ = timeout(HEARING, stderr.read_to_end(&mut complained)).await;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(heard), text(complained))
}

/// The habits, if there is a Python that could have them.
async fn habits() -> Option<Vec<String>> {
    match output(&mut command(&hostile("habits")).unwrap(), PATIENCE).await {
        Ok(habits) => {
            let name = |line: &str| line.split_once(": ").unwrap().0.to_owned();
            Some(habits.lines().map(name).collect())
        }
        Err(_) => {
            eprintln!("left out: hostile servers, because there is no Python");
            None
        }
    }
}

#[tokio::test]
async fn every_habit_is_shown_and_none_breaks_down_over_it() {
    let silent = ["mute", "dies-at-start", "dies-at-hello"];
    for habit in habits().await.unwrap_or_default() {
        let (heard, complained) = said(&habit).await;
        assert!(!complained.contains("Traceback"), "{habit}: {complained}");
        let is_silent = silent.contains(&habit.as_str());
        assert_eq!(heard.is_empty(), is_silent, "{habit}: {heard}");
    }
}

/// What comes of a habit. After each but the first the next call is answered as if nothing had been.
enum Outcome {
    /// The command ends, and says this.
    NoServer(&'static str),
    /// These tools are offered, of all that it lists.
    Offers(&'static [&'static str]),
    /// The call has this text in its result.
    Says(&'static str),
    /// The call has no result, but this code.
    Fails(&'static str),
    /// The call has no result in time.
    Silent,
}

use Outcome::{Fails, NoServer, Offers, Says, Silent};

const BOTH: Outcome = Offers(&["echo", "misbehave"]);

/// Two of these names would be `echo`, and five `a_b`.
const NAMES: Outcome = Offers(&[
    "A_B",
    "__",
    "__31mred__0m",
    "__________________________________________________________p-D0o8",
    "______etc_passwd",
    "__b",
    "a-b",
    "echo__echo",
    "line_break",
    "misbehave",
    "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn_IwsHdJ",
    "other__echo",
    "right_left",
    "tools_call",
    "zero_width",
]);

const OUTCOMES: [(&str, Outcome); 53] = [
    ("names", NAMES),
    ("names-of-no-text", BOTH),
    ("descriptions", Offers(&["echo", "lure", "misbehave"])),
    ("many-tools", NoServer("bytes")),
    ("endless-pages", NoServer("more than 64 pages")),
    ("same-page", NoServer("more than 64 pages")),
    ("long-pages", NoServer("more than 4194304 bytes")),
    ("changing-tools", Offers(&["echo", "misbehave", "shifty"])),
    ("schema-deep", BOTH),
    ("schema-huge", NoServer("bytes")),
    ("schema-remote", BOTH),
    ("schema-regex", Offers(&["echo", "misbehave", "regex"])),
    (
        "schema-circle",
        Offers(&["circle", "echo", "fork", "misbehave"]),
    ),
    ("schema-of-no-object", BOTH),
    ("out-of-order", Silent),
    ("twice", Says("first")),
    ("never", Silent),
    ("foreign-answers", Says("done")),
    ("huge-answer", Fails("SERVER_LOST")),
    ("deep-answer", Fails("MCP_ERROR")),
    ("invalid-utf8", Fails("MCP_ERROR")),
    ("half-a-character", Fails("MCP_ERROR")),
    ("endless-line", Fails("SERVER_LOST")),
    ("half-line", Silent),
    ("no-json", Says("done")),
    ("batch", Silent),
    ("both", Fails("MCP_ERROR")),
    ("odd-results", Says("text")),
    ("odd-errors", Fails("MCP_ERROR")),
    ("flood", Says("done")),
    ("endless-flood", Silent),
    ("backwards", Says("done")),
    ("asks-early", Says("done")),
    ("asks-idle", Says("done")),
    ("asks-undeclared", Says("done")),
    ("asks-without-end", Fails("SERVER_LOST")),
    ("asks-at-length", Says("done")),
    ("asks-for-secrets", Says("done")),
    ("asks-with-our-ids", Says("done")),
    ("stderr", Says("done")),
    ("dies-at-start", NoServer("standard output")),
    ("dies-at-hello", NoServer("standard output")),
    ("dies-mid-call", Fails("SERVER_LOST")),
    ("dies-mid-line", Fails("SERVER_LOST")),
    ("dies-after-answer", Says("farewell")),
    ("mute", NoServer("said nothing")),
    // What listed its tools is another process than that which is called.
    ("deaf", Says("done")),
    ("lingers", Says("done")),
    ("leaves-a-child", Says("content")),
    ("closes-output", Silent),
    ("hangs", Silent),
    ("odd-version", NoServer("1999-12-31")),
    ("looks-around", Says("environment")),
];

/// How long a call may take whose server does not answer, and one whose server does.
const SHORT: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(30);
/// Habits that are shown at once.
const AT_ONCE: usize = 4;
/// Questions that a caller is asked at once.
const ASKED_MAX: usize = 16;

/// An organisation where whoever is called `h-…` may become an agent, and `ada` calls them.
struct Site {
    acme: House,
    ada: Agent,
}

/// A habit behind an agent.
struct Wrap {
    child: Child,
    agent: String,
    _stderr: ChildStderr,
}

impl Site {
    fn new() -> Self {
        let acme = House::open("acme").unwrap();
        acme.0.join("ada --capability *").unwrap();
        let enrol = "enrol issue h-* --ceiling h.none --uses 100 --out enrol";
        acme.0.admin(enrol).unwrap();
        let ada = Config::from_file(acme.0.folder().join("ada.toml")).unwrap();
        let ada = Agent::new(ada).unwrap();
        Self { acme, ada }
    }

    /// A habit behind the agent `h-HABIT`, or what the command said instead.
    async fn wrap(&self, habit: &str) -> Result<Wrap, String> {
        self.wrap_with(habit, &[]).await
    }

    async fn wrap_with(&self, habit: &str, options: &[&str]) -> Result<Wrap, String> {
        let agent = format!("h-{habit}");
        let mut command = Command::from(fem_cli(self.acme.0.folder()).unwrap());
        command.args(["mcp", "wrap", "--name", &agent, "--enrol", "enrol"]);
        command.args(["--context", "acme/join.toml"]).args(options);
        command.arg("--").args(hostile(habit));
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.kill_on_drop(true).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let mut said = String::new();
        stdout.read_line(&mut said).await.unwrap();
        if said.is_empty() {
            let mut why = String::new();
            stderr.read_to_string(&mut why).await.unwrap();
            assert_eq!(child.wait().await.unwrap().code(), Some(1), "{why}");
            return Err(why);
        }
        Ok(Wrap {
            child,
            agent,
            _stderr: stderr,
        })
    }

    /// A call's result or its code; `mcp` is said beside what every caller says.
    async fn call(
        &self,
        wrap: &Wrap,
        tool: &str,
        arguments: &Value,
        (deadline, mcp): (Duration, &Value),
    ) -> Result<Value, String> {
        let to: AgentId = format!("{}@acme", wrap.agent).parse().unwrap();
        let mut said = mcp.clone();
        said["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
        said["_meta"]["progressToken"] = json!(1);
        let options = CallOptions {
            mcp: Some(to_raw_value(&said).unwrap()),
            deadline: Some(deadline),
            ..CallOptions::default()
        };
        let tool = format!("{}.{tool}", wrap.agent);
        match self.ada.call_raw(&to, &tool, arguments, &options).await {
            Ok(result) => Ok(serde_json::from_str(result.get()).unwrap()),
            Err(Error::Tool { code, .. }) => Err(code),
            Err(Error::Refused { code, .. }) => Err(code.to_string()),
            Err(other) => Err(format!("{other:?}")),
        }
    }

    /// What the next call comes to.
    async fn echo(&self, wrap: &Wrap) -> Result<(), String> {
        let message = "as if nothing had been";
        let arguments = json!({"message": message});
        let echo = self
            .call(wrap, "echo", &arguments, (LONG, &json!({})))
            .await;
        match echo {
            Ok(result) if result["content"][0]["text"] == message => Ok(()),
            other => Err(format!("the next call: {}", short(&other))),
        }
    }

    /// As a caller who can be asked, and declines.
    async fn declining(&self, wrap: &Wrap) -> Result<Value, String> {
        let able = json!({"elicitation": {}, "sampling": {}, "roots": {}});
        let mut mcp = json!({"_meta": {"io.modelcontextprotocol/clientCapabilities": able}});
        loop {
            let result = self
                .call(wrap, "misbehave", &json!({}), (LONG, &mcp))
                .await?;
            if result["resultType"] != "input_required" {
                return Ok(result);
            }
            let asked = result["inputRequests"].as_object().unwrap();
            assert!(asked.len() <= ASKED_MAX, "{}", asked.len());
            let decline = |key: &String| (key.clone(), json!({"action": "decline"}));
            mcp["inputResponses"] = asked.keys().map(decline).collect();
            mcp["requestState"] = result["requestState"].clone();
        }
    }

    async fn offered(&self, wrap: &Wrap) -> BTreeSet<String> {
        let of = DiscoverTools {
            agent: Some(format!("{}@acme", wrap.agent).parse().unwrap()),
            ..DiscoverTools::default()
        };
        let found = self.ada.discover(of).await.unwrap();
        let names = found.iter().map(|found| found.tool.name.as_str());
        let own = names.filter_map(|name| name.split_once('.').map(|(_, own)| own.to_owned()));
        own.filter(|name| !name.starts_with("mcp.")).collect()
    }

    /// Shows a habit, and gives what was not as expected.
    async fn show(&self, habit: &str, outcome: &Outcome) -> Option<String> {
        let shown = self.shown(habit, outcome).await;
        shown.err().map(|why| format!("{habit}: {why}"))
    }

    async fn shown(&self, habit: &str, outcome: &Outcome) -> Result<(), String> {
        let wrap = match (self.wrap(habit).await, outcome) {
            (Err(why), NoServer(expected)) if why.contains(expected) => return Ok(()),
            (Err(why), _) => return Err(format!("no server: {why}")),
            (Ok(_), NoServer(_)) => return Err("it serves".into()),
            (Ok(wrap), _) => wrap,
        };
        if let Offers(expected) = outcome {
            let offered = self.offered(&wrap).await;
            if !offered.iter().eq(expected.iter()) {
                return Err(format!("offers {offered:?}"));
            }
            // One that clashes with another is not offered.
            if !expected.contains(&"echo") {
                return wrap.stop().await;
            }
        } else {
            self.echo(&wrap).await?;
            let deadline = match outcome {
                Silent => SHORT,
                _ => LONG,
            };
            let how = (deadline, &json!({}));
            outcome.fits(&self.call(&wrap, "misbehave", &json!({}), how).await)?;
            if habit.starts_with("asks-") {
                outcome.fits(&self.declining(&wrap).await)?;
            }
        }
        let mut next = self.echo(&wrap).await;
        if habit.starts_with("dies-after") || habit.starts_with("leaves") {
            // What was sent to it before its end was heard is lost with it.
            next = match next {
                Err(why) if why.contains("SERVER_LOST") => self.echo(&wrap).await,
                other => other,
            };
        }
        next?;
        wrap.stop().await
    }
}

impl Outcome {
    fn fits(&self, came: &Result<Value, String>) -> Result<(), String> {
        let fits = match (came, self) {
            (Ok(result), Says(expected)) => result.to_string().contains(expected),
            (Err(code), Fails(expected)) => code == expected,
            (Err(code), Silent) => code == "SERVER_SILENT" || code == "DEADLINE",
            _ => false,
        };
        match fits {
            true => Ok(()),
            false => Err(format!("the call: {}", short(came))),
        }
    }
}

impl Wrap {
    /// Told to stop, it ends well, whatever its server does.
    async fn stop(mut self) -> Result<(), String> {
        let id = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), Signal::TERM).unwrap();
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(status) if status.as_ref().unwrap().success() => Ok(()),
            other => Err(format!("it does not stop: {other:?}")),
        }
    }
}

fn short(came: &Result<Value, String>) -> String {
    format!("{came:?}").chars().take(300).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_habit_a_server_has_its_call_ends_as_documented_and_the_next_is_unharmed() {
    let Some(habits) = habits().await else { return };
    let all: Vec<&str> = OUTCOMES.iter().map(|(habit, _)| *habit).collect();
    assert_eq!(all, habits, "every habit has an outcome");
    let site = Site::new();
    // Those that take their time come last in the table.
    let shown =
        stream::iter(OUTCOMES.iter().rev()).map(|(habit, outcome)| site.show(habit, outcome));
    let shown = shown.buffer_unordered(AT_ONCE);
    let failed: Vec<String> = shown.filter_map(async |why| why).collect().await;
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_answered_in_another_order_have_each_their_own_answer() {
    if habits().await.is_none() {
        return;
    }
    let site = Site::new();
    let wrap = site.wrap("out-of-order").await.unwrap();
    let one = async |n: u64| {
        let none = json!({});
        let came = site
            .call(&wrap, "misbehave", &json!({"n": n}), (LONG, &none))
            .await;
        came.unwrap()["content"][0]["text"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (first, second) = tokio::join!(one(1), one(2));
    assert_eq!([first, second], [r#"{"n": 1}"#, r#"{"n": 2}"#]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boxed_server_sees_nothing_of_its_keeper_but_what_it_was_given() {
    if habits().await.is_none() {
        return;
    }
    let site = Site::new();
    let given = ["--env", "GIVEN=this"];
    let wrap = site.wrap_with("looks-around", &given).await.unwrap();
    let seen = site
        .call(&wrap, "misbehave", &json!({}), (LONG, &json!({})))
        .await;
    let seen = seen.unwrap()["content"][0]["text"]
        .as_str()
        .unwrap()
        .to_owned();
    let seen: Value = serde_json::from_str(&seen).unwrap();
    assert_eq!(
        seen["environment"],
        json!({"GIVEN": "this", "HOME": "/work", "LANG": "C.UTF-8", "PATH": "/usr/local/bin:/usr/bin:/bin", "TMPDIR": "/work"})
    );
    assert_eq!(seen["folder"], "/work");
    for (descriptor, what) in seen["files"].as_object().unwrap() {
        let is_own = what.as_str().unwrap().starts_with("/proc/");
        assert!(
            is_own || ["0", "1", "2"].contains(&descriptor.as_str()),
            "{seen}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn holding_arguments_against_a_hostile_schema_takes_no_longer_than_the_call_may() {
    if habits().await.is_none() {
        return;
    }
    let site = Site::new();
    let nested = (0..50).fold(json!({}), |inner, _| json!({"a": inner}));
    for (habit, tool, arguments, outcome) in [
        (
            "schema-regex",
            "regex",
            json!({"a": "a".repeat(50_000) + "!"}),
            Fails("INVALID_ARGUMENTS"),
        ),
        (
            "schema-circle",
            "fork",
            nested.clone(),
            Fails("INVALID_ARGUMENTS"),
        ),
        ("schema-circle", "fork", json!({"a": {}}), Says("done")),
        ("schema-circle", "circle", nested, Says("done")),
    ] {
        let wrap = site.wrap(habit).await.unwrap();
        let came = site.call(&wrap, tool, &arguments, (LONG, &json!({}))).await;
        outcome.fits(&came).unwrap();
        site.echo(&wrap).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_server_answers_a_client_is_answered_in_json_rpc() {
    if habits().await.is_none() {
        return;
    }
    let site = Site::new();
    let token = site.acme.token("*").unwrap();
    for (habit, answers) in [("odd-results", 8), ("odd-errors", 6)] {
        let _wrap = site.wrap(habit).await.unwrap();
        for _ in 0..answers {
            let path = format!("/mcp/h-{habit}");
            let call = json!({"name": "misbehave", "arguments": {}});
            let call = stateless::request(&path, Some(&token), "tools/call", call).unwrap();
            let mut posting = site.acme.line().unwrap().open().await.unwrap();
            let reply = posting.ask(call).await.unwrap();
            let said = stateless::read(&reply).unwrap();
            assert_eq!((&said["jsonrpc"], &said["id"]), (&json!("2.0"), &json!(1)));
            let error = &said["error"];
            let is_error = error["code"].is_i64() && error["message"].is_string();
            assert!(said["result"].is_object() != is_error, "{said}");
        }
    }
}
