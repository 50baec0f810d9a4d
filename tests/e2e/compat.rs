//! Older Go agents: a fake one by hand, raw TLS and HTTP/1.1 towards the broker, a raw HTTP endpoint of its own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent_sdk::{CallOptions, Config, Error, Key, Tool, Unsigned};
use proto_spec::message::{Ack, AgentRecord, PendingRecord};
use proto_spec::{Code, Kind, SigningKey};
use serde_json::{Value, json};
use tests::binaries::Process;
use tests::by_hand::fem;
use tests::lab::{Actor, Lab, wall_clock};
use tests::load;
use tests::peer::Hand;
use tests::site::{Site, free};
use tests::wire::{Line, PATIENCE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::federation::until;
use crate::hostile_peer::{add, refusal};
use crate::refused;

/// An older agent: a bare name, a key, and the way to its broker.
struct Go {
    name: String,
    key: SigningKey,
}

/// What a request to a broker or an endpoint holds, or an answer.
struct Http {
    first_line: String,
    head: String,
    body: Vec<u8>,
}

async fn read_http(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Http> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(read[..end].to_vec()).unwrap();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.parse::<usize>().unwrap())
    });
    let mut body = read.split_off(end + 4);
    while body.len() < length.unwrap_or_default() {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Http {
        first_line: head.lines().next().unwrap().to_owned(),
        head,
        body,
    })
}

impl Go {
    fn new(name: &str, seed: u8) -> Self {
        Self {
            name: name.into(),
            key: SigningKey::from_seed(&[seed; 32]),
        }
    }

    /// As the Go implementation signs: five members in its order, then `sig` before `body`.
    fn seal(&self, kind: &str, body: &Value) -> Vec<u8> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let n = LAST.fetch_add(1, Ordering::Relaxed);
        let nonce = format!("{:019}", n + 1_732_220_000_000_000_000);
        self.seal_with(kind, body, &nonce, wall_clock().as_ms())
    }

    fn seal_with(&self, kind: &str, body: &Value, nonce: &str, ts: u64) -> Vec<u8> {
        let name = &self.name;
        let head = format!(r#"{{"type":"{kind}","agent":"{name}","ts":{ts},"nonce":"{nonce}""#);
        let signed = format!(r#"{head},"body":{body}}}"#);
        let sig = self.key.sign(signed.as_bytes());
        let sealed = proto_spec::wire::splice(signed.as_bytes(), &sig);
        // Where it is spliced in does not matter to a verifier; where Go writes it is here.
        let sealed = String::from_utf8(sealed.to_vec()).unwrap();
        let at = sealed.rfind(r#","sig":""#).unwrap();
        let member = sealed[at..at + 97].to_owned();
        let cut = sealed.replace(&member, "");
        cut.replacen(&head, &format!("{head}{member}"), 1).into()
    }

    fn registration(&self, endpoint: Option<&str>) -> Value {
        let tool = |name: &str| json!({"name": name, "description": "Runs.", "inputSchema": null});
        let mut body = json!({
            "pubkey": self.key.public(),
            "capabilities": ["code.execute", "shell.run"],
            "bodyDefinition": {
                "name": "default-coder-body",
                "environment": "local-dev",
                "capabilities": ["code.execute", "shell.run"],
                "mcpTools": [tool("code.execute"), tool("shell.run")],
            },
            "environmentType": "local-dev",
        });
        if let Some(endpoint) = endpoint {
            body["mcpEndpoint"] = endpoint.into();
        }
        body
    }
}

/// POSTs to the base URL as Go's client does: no ALPN, HTTP/1.1.
async fn post(line: &Line, envelope: &[u8]) -> (u16, Value) {
    post_to(line, "/", envelope).await
}

async fn post_to(line: &Line, at: &str, envelope: &[u8]) -> (u16, Value) {
    let mut stream = line.connect().await.unwrap();
    let head = format!(
        "POST {at} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
         Content-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n",
        envelope.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(envelope).await.unwrap();
    let answer = timeout(PATIENCE, read_http(&mut stream)).await.unwrap();
    let answer = answer.unwrap();
    let status = answer.first_line.split(' ').nth(1).unwrap();
    (
        status.parse().unwrap(),
        serde_json::from_slice(&answer.body).unwrap(),
    )
}

/// How an endpoint answers a `tools/call`.
#[derive(Clone, Copy)]
enum Manner {
    Honest,
    Failing,
    Silent,
    Huge,
    NotJson,
    Twice,
    Redirect,
    HangsUp,
}

/// An older agent's endpoint.
struct Endpoint {
    address: SocketAddr,
    /// What it was asked: the arguments of each call.
    asked: mpsc::UnboundedReceiver<Value>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Endpoint {
    fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    async fn open(address: SocketAddr, manner: Manner) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, asked) = mpsc::unbounded_channel();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, manner, tell.clone()));
            }
        });
        Self {
            address,
            asked,
            accepting,
        }
    }

    async fn next(&mut self) -> Value {
        timeout(PATIENCE, self.asked.recv()).await.unwrap().unwrap()
    }
}

async fn serve(mut stream: TcpStream, manner: Manner, tell: mpsc::UnboundedSender<Value>) {
    let Some(request) = read_http(&mut stream).await else {
        return;
    };
    assert_eq!(request.first_line, "POST /mcp HTTP/1.1");
    assert!(request.head.to_lowercase().contains("host: 127.0.0.1:"));
    let asked: Value = serde_json::from_slice(&request.body).unwrap();
    let answer = |status: &str, body: &str| {
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    if asked["method"] != "tools/call" {
        let _ = stream
            .write_all(answer("400 Bad Request", "no").as_bytes())
            .await;
        return;
    }
    assert!(asked["id"].is_u64() && asked["jsonrpc"] == "2.0");
    let (id, params) = (&asked["id"], &asked["params"]);
    assert!(["code.execute", "shell.run"].contains(&params["name"].as_str().unwrap()));
    let output = params["arguments"]["command"].clone();
    let _ = tell.send(params["arguments"].clone());
    let good = json!({"id": id, "jsonrpc": "2.0", "result": {"output": output}});
    let bad = json!({"id": id, "jsonrpc": "2.0", "error": {"code": -32000, "message": "exit 1", "data": {"n": 1}}});
    let text = match manner {
        Manner::Honest => answer("200 OK", &good.to_string()),
        Manner::Failing => answer("200 OK", &bad.to_string()),
        Manner::NotJson => answer("200 OK", "{\"id\":"),
        Manner::Twice => answer("200 OK", &good.to_string().replacen('{', "{\"id\":1,", 1)),
        Manner::Redirect => format!(
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{}/mcp\r\nContent-Length: 0\r\n\r\n",
            stream.local_addr().unwrap()
        ),
        Manner::HangsUp => return,
        Manner::Silent => {
            // Until the other end gives up, which it is held to.
            let _ = stream.read_u8().await;
            let _ = tell.send(json!("hung up"));
            return;
        }
        Manner::Huge => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 100 << 20);
            let _ = stream.write_all(head.as_bytes()).await;
            let block = vec![b' '; 1 << 20];
            let mut sent = 0_u64;
            while sent < 100 && stream.write_all(&block).await.is_ok() {
                sent += 1;
            }
            let _ = tell.send(json!({ "mib": sent }));
            return;
        }
    };
    let _ = stream.write_all(text.as_bytes()).await;
}

/// An organisation whose broker is the real one.
struct Acme {
    site: Site,
    line: Line,
    broker: Option<Process>,
}

impl Acme {
    fn new(compat: &str) -> Self {
        let site = Site::new("").unwrap();
        let toml = site.at("broker.toml");
        let text = std::fs::read_to_string(&toml).unwrap();
        std::fs::write(&toml, format!("{text}\n[compat]\n{compat}\n")).unwrap();
        let broker = site.start().unwrap();
        let line = site.line(&broker).unwrap();
        Self {
            site,
            line,
            broker: Some(broker),
        }
    }

    /// With older agents, who are called at these places.
    fn speaking(endpoints: &[String]) -> Self {
        Self::new(&format!("fep_go = true\nendpoints = {endpoints:?}"))
    }

    /// Starts it anew with another configuration.
    fn restart(&mut self, edit: impl Fn(String) -> String) {
        self.broker.take().unwrap().stop().unwrap();
        let toml = self.site.at("broker.toml");
        let text = std::fs::read_to_string(&toml).unwrap();
        std::fs::write(&toml, edit(text)).unwrap();
        let broker = self.site.start().unwrap();
        self.line = self.site.line(&broker).unwrap();
        self.broker = Some(broker);
    }

    async fn ask(&self, kind: Kind, body: Value) -> anyhow::Result<Ack> {
        load::ask(&self.line, &self.site.admin, kind, &body).await
    }

    async fn show(&self, name: &str) -> (Option<AgentRecord>, Vec<PendingRecord>) {
        match self.ask(Kind::AdminAgentShow, json!({"name": name})).await {
            Ok(Ack::Agent { agent, pending }) => (agent, pending),
            Ok(other) => panic!("{other:?}"),
            Err(_) => (None, Vec::new()),
        }
    }

    /// Approves what waits, as it is shown.
    async fn approve(&self, go: &Go, capabilities: &[&str]) -> anyhow::Result<Ack> {
        let (_, pending) = self.show(&go.name).await;
        let asked = pending.iter().find(|one| one.key == go.key.public());
        let older = asked.and_then(|one| one.older.as_ref());
        let endpoint = older.and_then(|one| one.endpoint.as_deref());
        self.approve_at(go, endpoint, capabilities).await
    }

    async fn approve_at(
        &self,
        go: &Go,
        endpoint: Option<&str>,
        capabilities: &[&str],
    ) -> anyhow::Result<Ack> {
        let body = json!({
            "name": go.name, "key": go.key.public(), "capabilities": capabilities, "endpoint": endpoint,
        });
        self.ask(Kind::AdminAgentApprove, body).await
    }

    /// Registers and approves an older agent.
    async fn enrol(&self, go: &Go, endpoint: Option<&str>, capabilities: &[&str]) {
        let (status, said) = post(
            &self.line,
            &go.seal("registerAgent", &go.registration(endpoint)),
        )
        .await;
        assert_eq!((status, &said), (200, &json!({"status": "pending"})));
        self.approve(go, capabilities).await.unwrap();
    }

    /// Waits until an agent's tools can be called, or cannot any more.
    async fn until_served(&self, name: &str, is_served: bool) {
        let waiting = async {
            while self.show(name).await.0.is_some_and(|one| one.sessions > 0) != is_served {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap();
    }

    /// An agent of our own.
    async fn sdk(&self, name: &str, seed: u8, capabilities: &[&str]) -> agent_sdk::Agent {
        let admin = &self.site.admin;
        load::agent(&self.line, admin, name, seed, capabilities)
            .await
            .unwrap();
        let well_known = self.well_known().await;
        let config = Config::builder()
            .agent(format!("{name}@acme"))
            .broker(format!("https://{}", self.line.address))
            .broker_key(well_known["key"].as_str().unwrap())
            .ca_file(self.site.at("ca.pem"))
            .key(Key::from_seed(&[seed; 32]))
            .build()
            .unwrap();
        agent_sdk::Agent::new(config).unwrap()
    }

    async fn well_known(&self) -> Value {
        let mut stream = self.line.connect().await.unwrap();
        let asks = b"GET /.well-known/fem HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(asks).await.unwrap();
        let answer = read_http(&mut stream).await.unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn accepting() -> CallOptions {
    CallOptions {
        accept_unsigned: Some(Unsigned::Fep),
        ..CallOptions::default()
    }
}

/// A broker with one approved older agent, `coder`, whose endpoint answers so; and a caller of it.
async fn scene(manner: Manner) -> (Acme, Go, Endpoint, agent_sdk::Agent) {
    let endpoint = Endpoint::open(local(), manner).await;
    let acme = Acme::speaking(&[endpoint.url()]);
    let go = Go::new("coder", 20);
    acme.enrol(&go, Some(&endpoint.url()), &[]).await;
    acme.until_served("coder", true).await;
    let ada = acme.sdk("ada", 30, &["coder.*"]).await;
    (acme, go, endpoint, ada)
}

async fn call(ada: &agent_sdk::Agent, options: &CallOptions) -> Result<Value, Error> {
    let arguments = json!({"command": "echo hello"});
    let raw = ada
        .call_raw("coder@acme", "coder.code.execute", &arguments, options)
        .await?;
    Ok(serde_json::from_str(raw.get()).unwrap())
}

fn code_of(error: &Error) -> String {
    match error {
        Error::Refused { code, .. } => code.to_string(),
        Error::OutcomeUnknown(_) => "OUTCOME_UNKNOWN".into(),
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn an_older_agent_registers_is_approved_and_is_called() {
    let mut endpoint = Endpoint::open(local(), Manner::Honest).await;
    let acme = Acme::speaking(&[endpoint.url()]);
    let go = Go::new("coder", 20);
    let envelope = go.seal("registerAgent", &go.registration(Some(&endpoint.url())));
    let (status, said) = post(&acme.line, &envelope).await;
    assert_eq!((status, said), (200, json!({"status": "pending"})));
    let (_, pending) = acme.show("coder").await;
    let told = pending[0].older.as_ref().unwrap();
    assert_eq!(told.endpoint, Some(endpoint.url()));
    assert!(told.allowed && told.tools == ["code.execute", "shell.run"]);
    acme.approve(&go, &[]).await.unwrap();
    acme.until_served("coder", true).await;
    let (status, said) = post(
        &acme.line,
        &go.seal("registerAgent", &go.registration(Some(&endpoint.url()))),
    )
    .await;
    assert_eq!((status, said), (200, json!({"status": "registered"})));
    let ada = acme.sdk("ada", 30, &["coder.code.*"]).await;
    let found = ada.discover(Default::default()).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].tool.name.as_str(), "coder.code.execute");
    assert_eq!(found[0].unsigned, Some(Unsigned::Fep));
    // By POST, and over a session.
    let output = json!({"output": "echo hello"});
    assert_eq!(call(&ada, &accepting()).await.unwrap(), output);
    assert_eq!(endpoint.next().await, json!({"command": "echo hello"}));
    let arguments = json!({"command": "ls"});
    let handle = ada.call_with("coder@acme", "coder.code.execute", &arguments, accepting());
    let said: Value = handle.await.unwrap().result().await.unwrap();
    assert_eq!(said, json!({"output": "ls"}));
    // What it was not granted it may not call here either.
    let options = accepting();
    let shell = ada.call_raw("coder@acme", "coder.shell.run", &arguments, &options);
    assert_eq!(code_of(&shell.await.unwrap_err()), "DENIED");
}

#[tokio::test]
async fn an_unsigned_answer_reaches_only_who_said_that_it_takes_one() {
    let (acme, _go, mut endpoint, ada) = scene(Manner::Honest).await;
    let refused = call(&ada, &CallOptions::default()).await.unwrap_err();
    assert_eq!(code_of(&refused), "CONFLICT", "{refused}");
    let arguments = json!({"command": "ls"});
    let handle = ada
        .call_with(
            "coder@acme",
            "coder.code.execute",
            &arguments,
            CallOptions::default(),
        )
        .await
        .unwrap();
    assert_eq!(code_of(&handle.raw().await.unwrap_err()), "CONFLICT");
    call(&ada, &accepting()).await.unwrap();
    // Nor is anything asked of it that it cannot promise.
    let bob = acme.sdk("bob", 31, &[]).await;
    let boxed = json!({
        "agent": "bob", "capabilities": ["coder.*"], "checks": [], "sandbox": "wasm", "record": true,
    });
    acme.ask(Kind::AdminTokenIssue, boxed).await.unwrap();
    let refused = call(&bob, &accepting()).await.unwrap_err();
    assert_eq!(code_of(&refused), "CONFLICT", "{refused}");
    // Nothing was done for those who would not have taken the answer.
    assert_eq!(endpoint.next().await, json!({"command": "echo hello"}));
    assert!(endpoint.asked.try_recv().is_err());
    drop(acme);
}

#[tokio::test]
async fn a_failing_command_is_the_tools_own_error_with_its_code_and_data() {
    let (_acme, _go, _endpoint, ada) = scene(Manner::Failing).await;
    let Err(Error::Tool {
        code,
        message,
        data,
    }) = call(&ada, &accepting()).await
    else {
        panic!()
    };
    assert_eq!((code.as_str(), message.as_str()), ("-32000", "exit 1"));
    assert_eq!(data.unwrap().get(), r#"{"n":1}"#);
}

#[tokio::test]
async fn an_endpoint_that_lies_ends_its_call_and_nothing_else() {
    for (manner, code) in [
        (Manner::NotJson, "OUTCOME_UNKNOWN"),
        (Manner::Twice, "OUTCOME_UNKNOWN"),
        (Manner::Redirect, "OUTCOME_UNKNOWN"),
        (Manner::HangsUp, "OUTCOME_UNKNOWN"),
        (Manner::Huge, "TOO_LARGE"),
    ] {
        let (acme, _go, mut endpoint, ada) = scene(manner).await;
        for _ in 0..2 {
            let refused = call(&ada, &accepting()).await.unwrap_err();
            assert_eq!(code_of(&refused), code, "{refused}");
            assert_eq!(endpoint.next().await, json!({"command": "echo hello"}));
            if let Manner::Huge = manner {
                let mib = endpoint.next().await["mib"].as_u64().unwrap();
                assert!(mib < 32, "{mib} MiB were read");
            }
        }
        // A redirect is not followed.
        assert!(endpoint.asked.try_recv().is_err());
        assert!(acme.show("coder").await.0.is_some());
    }
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_a_deadline_and_the_endpoint_is_let_go() {
    let (_acme, _go, mut endpoint, ada) = scene(Manner::Silent).await;
    let options = CallOptions {
        deadline: Some(Duration::from_millis(300)),
        ..accepting()
    };
    let late = call(&ada, &options).await.unwrap_err();
    assert_eq!(code_of(&late), "DEADLINE");
    assert_eq!(endpoint.next().await, json!({"command": "echo hello"}));
    assert_eq!(endpoint.next().await, json!("hung up"));
    // Cancelling lets go too.
    let arguments = json!({});
    let handle = ada.call_with("coder@acme", "coder.code.execute", &arguments, accepting());
    let handle = handle.await.unwrap();
    assert_eq!(endpoint.next().await, json!({}));
    drop(handle);
    assert_eq!(endpoint.next().await, json!("hung up"));
}

#[tokio::test]
async fn an_older_agent_that_hears_more_calls_than_it_may_is_busy() {
    let (_acme, _go, mut endpoint, ada) = scene(Manner::Silent).await;
    let arguments = json!({});
    let mut handles = Vec::new();
    for _ in 0..16 {
        let handle = ada.call_with("coder@acme", "coder.code.execute", &arguments, accepting());
        handles.push(handle.await.unwrap());
        endpoint.next().await;
    }
    let full = call(&ada, &accepting()).await.unwrap_err();
    assert_eq!(code_of(&full), "BUSY");
    drop(handles.pop());
    assert_eq!(endpoint.next().await, json!("hung up"));
    let handle = ada.call_with("coder@acme", "coder.code.execute", &arguments, accepting());
    let _handle = handle.await.unwrap();
    assert_eq!(endpoint.next().await, json!({}));
}

#[tokio::test]
async fn an_endpoint_that_is_not_on_the_list_is_never_connected_to() {
    let mut listed = Endpoint::open(local(), Manner::Honest).await;
    let by_name = format!("http://localhost:{}/mcp", listed.address.port());
    let mut other = Endpoint::open(local(), Manner::Honest).await;
    // A name that leads to an address which the list does not name.
    let hidden = format!("http://localhost:{}/mcp", other.address.port());
    let acme = Acme::speaking(&[listed.url(), hidden.clone()]);
    for (name, seed, endpoint) in [
        ("other", 21, Some(other.url())),
        ("by-name", 22, Some(by_name)),
        ("hidden", 23, Some(hidden)),
        ("none", 24, None),
    ] {
        let go = Go::new(name, seed);
        acme.enrol(&go, endpoint.as_deref(), &[]).await;
        let (agent, _) = acme.show(name).await;
        let told = agent.unwrap().older.unwrap();
        assert_eq!((told.endpoint, told.allowed), (endpoint, name == "hidden"));
    }
    let good = Go::new("coder", 25);
    acme.enrol(&good, Some(&listed.url()), &[]).await;
    acme.until_served("coder", true).await;
    let ada = acme
        .sdk("ada", 30, &["other.*", "by-name.*", "hidden.*", "coder.*"])
        .await;
    for name in ["other", "by-name", "hidden"] {
        let (to, tool) = (format!("{name}@acme"), format!("{name}.code.execute"));
        let refused = ada.call_raw(to, &tool, &json!({}), &accepting()).await;
        assert_eq!(code_of(&refused.unwrap_err()), "UNAVAILABLE", "{name}");
    }
    call(&ada, &accepting()).await.unwrap();
    listed.next().await;
    assert!(listed.asked.try_recv().is_err() && other.asked.try_recv().is_err());
}

#[tokio::test]
async fn an_older_agent_that_starts_again_comes_with_another_key_that_waits_for_an_admin() {
    let (acme, old, _endpoint, ada) = scene(Manner::Honest).await;
    let (_, url) = (&old, acme.show("coder").await.0.unwrap().older.unwrap());
    let new = Go::new("coder", 21);
    let asks = new.seal("registerAgent", &new.registration(url.endpoint.as_deref()));
    let (status, said) = post(&acme.line, &asks).await;
    assert_eq!((status, said), (200, json!({"status": "pending"})));
    let (agent, pending) = acme.show("coder").await;
    assert_eq!(agent.unwrap().key, old.key.public(), "nothing changed yet");
    assert!(pending[0].key_change && pending[0].key == new.key.public());
    call(&ada, &accepting()).await.unwrap();
    acme.approve(&new, &[]).await.unwrap();
    assert_eq!(acme.show("coder").await.0.unwrap().key, new.key.public());
    let query = json!({"query": {"capabilities": null}, "requestId": "r"});
    let (status, said) = post(&acme.line, &old.seal("discoverTools", &query)).await;
    assert_eq!(
        (status, said["code"].as_str()),
        (401, Some("NOT_AUTHENTIC"))
    );
    acme.until_served("coder", true).await;
    call(&ada, &accepting()).await.unwrap();
    // Nobody else is called there: who may call one would reach the other.
    let thief = Go::new("thief", 22);
    let asks = thief.registration(url.endpoint.as_deref());
    assert_eq!(
        post(&acme.line, &thief.seal("registerAgent", &asks))
            .await
            .0,
        200
    );
    let error = acme.approve(&thief, &[]).await.unwrap_err();
    assert!(error.to_string().contains("CONFLICT"), "{error}");
    // The same key with another endpoint waits as well.
    let moved = new.seal(
        "registerAgent",
        &new.registration(Some("http://10.0.0.1:80/mcp")),
    );
    assert_eq!(
        post(&acme.line, &moved).await,
        (200, json!({"status": "pending"}))
    );
    let (agent, pending) = acme.show("coder").await;
    assert_eq!(agent.unwrap().older.unwrap(), url);
    assert!(!pending[0].key_change && pending.len() == 1);
}

#[tokio::test]
async fn an_endpoint_that_the_admin_was_not_shown_is_not_approved() {
    let (acme, go, endpoint, _ada) = scene(Manner::Honest).await;
    let seen = endpoint.url();
    let moved = "http://10.0.0.1:80/mcp";
    let asks = go.seal("registerAgent", &go.registration(Some(moved)));
    assert_eq!(post(&acme.line, &asks).await.0, 200);
    for shown in [Some(seen.as_str()), None] {
        let error = acme.approve_at(&go, shown, &["fs.*"]).await.unwrap_err();
        assert!(error.to_string().contains("CONFLICT"), "{error}");
    }
    let endpoint_of = |agent: Option<AgentRecord>| agent.unwrap().older.unwrap().endpoint;
    let (agent, pending) = acme.show("coder").await;
    assert_eq!((endpoint_of(agent), pending.len()), (Some(seen), 1));
    acme.approve_at(&go, Some(moved), &[]).await.unwrap();
    let (agent, pending) = acme.show("coder").await;
    assert_eq!((endpoint_of(agent), pending.len()), (Some(moved.into()), 0));
    // What nobody asked for is not approved either, and its grants alone are renewed as it stands.
    acme.approve_at(&go, None, &["fs.*"]).await.unwrap_err();
    acme.approve_at(&go, Some(moved), &["fs.*"]).await.unwrap();
}

#[tokio::test]
async fn an_older_agent_finds_and_calls_what_it_may() {
    let (acme, _go, mut endpoint, _ada) = scene(Manner::Honest).await;
    let caller = Go::new("caller-1", 40);
    let empty = json!({"query": {"capabilities": null}, "requestId": "r-1"});
    acme.enrol(&caller, None, &["coder.code.*", "fs.*"]).await;
    let fs = acme.sdk("fs", 31, &[]).await;
    let read = Tool::raw("fs.read", &json!({}), |_, arguments| async move {
        let arguments: Value = serde_json::from_str(arguments.get()).unwrap();
        Ok(serde_json::value::to_raw_value(&arguments["path"])?)
    });
    let _serving = fs.offer([read]).await.unwrap();
    let (status, said) = post(&acme.line, &caller.seal("discoverTools", &empty)).await;
    assert_eq!(status, 200, "{said}");
    let ids: Vec<_> = said["tools"].as_array().unwrap().iter().collect();
    assert_eq!((ids.len(), said["totalResults"].as_u64()), (2, Some(2)));
    assert_eq!(
        (&said["hasMore"], &said["requestId"]),
        (&json!(false), &json!("r-1"))
    );
    assert_eq!(ids[0]["agentId"], "coder");
    assert_eq!(ids[0]["environmentType"], "local-dev");
    assert_eq!(ids[0]["mcpTools"][0]["name"], "coder.code.execute");
    assert_eq!(ids[0]["mcpTools"].as_array().unwrap().len(), 1);
    assert_eq!(ids[0]["mcpEndpoint"], "", "calls go through the broker");
    for member in ["lastSeen", "averageResponseTime", "trustScore"] {
        assert!(ids[0]["metadata"][member].is_number(), "{said}");
    }
    // Cut by what it asks for.
    for (query, count) in [
        (json!({"capabilities": ["code.*"]}), 1),
        (json!({"capabilities": ["fs.read"]}), 1),
        (json!({"capabilities": ["nothing"]}), 0),
        (json!({"capabilities": [], "environmentType": "cloud"}), 0),
        (json!({"capabilities": null, "maxResults": 1}), 1),
    ] {
        let body = json!({"query": query, "requestId": "r"});
        let (status, said) = post(&acme.line, &caller.seal("discoverTools", &body)).await;
        assert_eq!(status, 200);
        assert_eq!(said["tools"].as_array().unwrap().len(), count, "{query}");
    }
    // An older agent by its bare name, our own by either.
    for (tool, parameters, result) in [
        (
            "coder/code.execute",
            json!({"command": "a"}),
            json!({"output": "a"}),
        ),
        (
            "coder/coder.code.execute",
            json!({"command": "b"}),
            json!({"output": "b"}),
        ),
        ("fs/read", json!({"path": "/x"}), json!("/x")),
        ("fs/fs.read", json!({"path": "/y"}), json!("/y")),
    ] {
        let body = json!({"tool": tool, "parameters": parameters, "requestId": "r-2"});
        let (status, said) = post(&acme.line, &caller.seal("toolCall", &body)).await;
        let wanted = json!({
            "status": "processing", "success": true, "requestId": "r-2", "result": result,
        });
        assert_eq!((status, said), (200, wanted), "{tool}");
    }
    endpoint.next().await;
    // Permission is asked as of every call.
    for tool in [
        "coder/shell.run",
        "nobody/x.y",
        "root-admin/admin.agent.list",
    ] {
        let body = json!({"tool": tool, "parameters": {}, "requestId": "r"});
        let (status, said) = post(&acme.line, &caller.seal("toolCall", &body)).await;
        assert!([403, 422].contains(&status), "{tool}: {said}");
        assert_eq!(said["status"], "error");
    }
    for tool in ["x", "coder", "coder/", "/x", "fs@globex/fs.read"] {
        let body = json!({"tool": tool, "parameters": {}, "requestId": "r"});
        let (status, said) = post(&acme.line, &caller.seal("toolCall", &body)).await;
        assert_eq!(
            (status, said["code"].as_str()),
            (422, Some("INVALID_BODY")),
            "{tool}"
        );
    }
}

#[tokio::test]
async fn an_older_agent_passes_the_same_gate() {
    let acme = Acme::speaking(&[]);
    let go = Go::new("coder", 20);
    let register = go.registration(None);
    let now = wall_clock().as_ms();
    let is_refused = async |envelope: Vec<u8>, status: u16, code: &str| {
        let said = post(&acme.line, &envelope).await;
        assert_eq!(
            (said.0, said.1["code"].as_str()),
            (status, Some(code)),
            "{}",
            said.1
        );
    };
    let nonce = "1732219999999999999";
    // Signed by another key than it introduces; later than now; too large; no agent's to say.
    let mut forged = Go::new("coder", 21);
    let claims = go.registration(None);
    is_refused(forged.seal("registerAgent", &claims), 401, "NOT_AUTHENTIC").await;
    forged.name = "Coder".into();
    is_refused(forged.seal("registerAgent", &claims), 400, "MALFORMED").await;
    let early = go.seal_with("registerAgent", &register, nonce, now + 400_000);
    is_refused(early, 401, "STALE").await;
    is_refused(
        go.seal_with("registerAgent", &register, "short", now),
        400,
        "MALFORMED",
    )
    .await;
    let mut large = register.clone();
    large["metadata"] = json!({"x": "x".repeat(20_000)});
    is_refused(go.seal("registerAgent", &large), 413, "TOO_LARGE").await;
    for kind in [
        "emitEvent",
        "revoke",
        "embodimentUpdate",
        "admin.agent.list",
        "attach",
    ] {
        is_refused(go.seal(kind, &json!({})), 400, "UNKNOWN_TYPE").await;
    }
    let query = json!({"query": {}, "requestId": "r"});
    is_refused(go.seal("discoverTools", &query), 401, "NOT_AUTHENTIC").await;
    acme.enrol(&go, None, &["x.*"]).await;
    let asks = go.seal_with("discoverTools", &query, nonce, wall_clock().as_ms());
    assert_eq!(post(&acme.line, &asks).await.0, 200);
    is_refused(asks, 409, "REPLAYED").await;
    // Its key says nothing in another way, and another agent's key nothing in this one.
    let actor = Actor::new("coder", 20).unwrap();
    let modern = actor.seal(
        Kind::DiscoverTools,
        &actor.broker(),
        wall_clock(),
        &json!({}),
    );
    let reply = acme.line.post("/fem", modern.unwrap().bytes).await.unwrap();
    assert_eq!(refused(&reply), Code::NotAuthentic);
    let admin = Go {
        name: "root-admin".into(),
        key: SigningKey::from_seed(&[1; 32]),
    };
    is_refused(admin.seal("discoverTools", &query), 401, "NOT_AUTHENTIC").await;
    // Nowhere but at the base URL is it read so, and nobody makes it an admin.
    let reply = acme
        .line
        .post("/fem", go.seal("discoverTools", &query))
        .await;
    assert_eq!(refused(&reply.unwrap()), Code::Malformed);
    let error = acme.approve(&go, &["admin.*"]).await.unwrap_err();
    assert!(error.to_string().contains("CONFLICT"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_without_the_mode_speaks_with_no_older_agent_and_calls_none() {
    let (mut acme, go, _endpoint, ada) = scene(Manner::Honest).await;
    drop(ada);
    acme.restart(|text| text.replace("fep_go = true", "fep_go = false"));
    let query = json!({"query": {}, "requestId": "r"});
    for envelope in [
        go.seal("discoverTools", &query),
        Go::new("new", 50).seal("registerAgent", &go.registration(None)),
    ] {
        let (status, said) = post(&acme.line, &envelope).await;
        assert_eq!(
            (status, said["code"].as_str()),
            (400, Some("UNSUPPORTED_VERSION")),
            "{said}"
        );
    }
    assert!(acme.show("new").await.1.is_empty());
    let ada = acme.sdk("grace", 31, &["coder.*"]).await;
    let refused = call(&ada, &accepting()).await.unwrap_err();
    assert_eq!(code_of(&refused), "UNAVAILABLE");
    // What was enrolled is marked on record: the mode on again, it goes on.
    acme.restart(|text| text.replace("fep_go = false", "fep_go = true"));
    acme.until_served("coder", true).await;
    assert_eq!(
        post(&acme.line, &go.seal("discoverTools", &query)).await.0,
        200
    );
}

#[tokio::test]
async fn an_older_agent_that_does_not_answer_is_not_called_until_it_does_again() {
    let address = free().unwrap();
    let url = format!("http://{address}/mcp");
    let acme = Acme::speaking(std::slice::from_ref(&url));
    let go = Go::new("coder", 20);
    acme.enrol(&go, Some(&url), &[]).await;
    let ada = acme.sdk("ada", 30, &["coder.*"]).await;
    let refused = call(&ada, &accepting()).await.unwrap_err();
    assert_eq!(code_of(&refused), "UNAVAILABLE");
    let endpoint = Endpoint::open(address, Manner::Honest).await;
    acme.until_served("coder", true).await;
    call(&ada, &accepting()).await.unwrap();
    endpoint.accepting.abort();
    until_offers(&ada, 0).await;
    let refused = call(&ada, &accepting()).await.unwrap_err();
    assert_eq!(code_of(&refused), "UNAVAILABLE");
    let _endpoint = Endpoint::open(address, Manner::Honest).await;
    until_offers(&ada, 2).await;
    call(&ada, &accepting()).await.unwrap();
}

/// Waits until so many tools are found.
async fn until_offers(ada: &agent_sdk::Agent, count: usize) {
    let waiting = async {
        while ada.discover(Default::default()).await.unwrap().len() != count {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap();
}

#[tokio::test]
async fn nothing_of_an_older_agent_crosses_a_link() {
    let mut endpoint = Endpoint::open(local(), Manner::Honest).await;
    let lines = format!(
        "[compat]\nfep_go = true\nendpoints = [\"{}\"]",
        endpoint.url()
    );
    let acme = Lab::start().await.unwrap();
    let acme = acme.reconfigured(&lines).await.unwrap();
    let now = acme.now();
    let seal = |go: &Go, kind: &str, body: &Value, n: u64| {
        go.seal_with(kind, body, &format!("{n:019}"), now.as_ms())
    };
    let go = Go::new("coder", 20);
    let asks = seal(
        &go,
        "registerAgent",
        &go.registration(Some(&endpoint.url())),
        1,
    );
    assert_eq!(post(&acme.line, &asks).await.0, 200);
    let body = json!({
        "name": "coder", "key": go.key.public(), "capabilities": ["fs.*"], "endpoint": endpoint.url(),
    });
    acme.ask(&acme.admin, Kind::AdminAgentApprove, &body)
        .await
        .unwrap();
    let sessions = &acme.broker.core().state.sessions;
    until("it is called", || !sessions.is_empty()).await;
    let globex = Hand::new("globex", 0x61).unwrap();
    add(&acme, &globex).await;
    let granted = json!({"org": "globex", "capabilities": ["coder.*"]});
    acme.ask(&acme.admin, Kind::AdminPeerGrant, &granted)
        .await
        .unwrap();
    let mut link = globex.linked(&acme).await.unwrap();
    let grant = link.granted(1).await.unwrap().remove(0);
    let advert = link.word(Kind::Advert).await.unwrap().unwrap();
    assert!(!advert.body().contains("coder"), "{}", advert.body());
    let bea = Actor::of(&"globex".parse().unwrap(), "bea", 0x71).unwrap();
    let token = globex.introduce(&grant, &bea, now).unwrap();
    let to = "coder@acme".parse().unwrap();
    let body = json!({"tool": "coder.code.execute", "unsigned": "fep"});
    let call = bea.seal(Kind::ToolCall, &to, now, &body).unwrap();
    link.relay(&call.bytes, vec![token.clone()]).await.unwrap();
    assert_eq!(refusal(&mut link, call.id).await, Code::Unavailable);
    // Nor does what an older agent says, by whichever key.
    let older = Go::new("bea", 0x71);
    let body = json!({"tool": "coder/code.execute", "parameters": {}});
    let call = seal(&older, "toolCall", &body, 2);
    link.relay(&call.into(), vec![token]).await.unwrap();
    let word = link.word(Kind::Error).await.unwrap().unwrap();
    assert_eq!(tests::lab::code_of(&word).unwrap(), Code::Malformed);
    let body = json!({"tool": "x@globex/fs.read", "parameters": {}});
    let (status, said) = post(&acme.line, &seal(&go, "toolCall", &body, 3)).await;
    assert_eq!((status, said["code"].as_str()), (422, Some("INVALID_BODY")));
    assert!(endpoint.asked.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_sees_that_an_agent_is_an_older_one_and_where_it_is_called() {
    let (acme, _go, endpoint, _ada) = scene(Manner::Honest).await;
    let (folder, well_known) = (acme.site.folder(), acme.well_known().await);
    let context = |agent: &str, seed: u8| {
        let key = format!("{agent}.pem");
        Key::from_seed(&[seed; 32]).save(folder.join(&key)).unwrap();
        let text = format!(
            "agent = \"{agent}@acme\"\nbroker = \"https://{}\"\nbroker_key = {}\nca_file = \"ca.pem\"\nkey_file = \"{key}\"\n",
            acme.line.address, well_known["key"]
        );
        std::fs::write(folder.join(format!("{agent}.toml")), text).unwrap();
    };
    context("root-admin", 1);
    context("ada", 30);
    let new = Go::new("coder", 21);
    let asks = new.seal("registerAgent", &new.registration(Some(&endpoint.url())));
    assert_eq!(post(&acme.line, &asks).await.0, 200);
    for act in [&["agent", "list"][..], &["agent", "show", "coder"]] {
        let (_, said) = fem(folder, &[act, &["--context", "root-admin.toml"]].concat()).unwrap();
        assert!(said.contains("(another key)"), "{said}");
        let told = format!("older agent, called at {}", endpoint.url());
        assert_eq!(said.matches(&told).count(), 2, "{said}");
    }
    let print = new.key.public().fingerprint();
    let approve = |more: &[&str]| {
        let approve = ["agent", "approve", "coder", "--fingerprint", &print];
        let context = ["--context", "root-admin.toml"];
        fem(folder, &[&approve[..], more, &context].concat()).unwrap()
    };
    // The endpoint is approved like the key: in the admin's own words.
    let (code, said) = approve(&[]);
    assert!(code == 2 && said.contains("--endpoint"), "{said}");
    let (code, said) = approve(&["--endpoint", "http://10.0.0.1:80/mcp"]);
    assert!(code == 3 && said.contains("another endpoint"), "{said}");
    let (code, said) = approve(&["--endpoint", &endpoint.url()]);
    assert_eq!(code, 0, "{said}");
    acme.until_served("coder", true).await;
    let arg = [
        "call",
        "coder@acme",
        "coder.code.execute",
        "--arg",
        "command=ls",
    ];
    let (code, said) = fem(folder, &[&arg[..], &["--context", "ada.toml"]].concat()).unwrap();
    assert!(code != 0 && said.contains("signs no answer"), "{said}");
    let accept = ["--accept-unsigned", "fep", "--context", "ada.toml"];
    let (code, said) = fem(folder, &[&arg[..], &accept].concat()).unwrap();
    assert!(code == 0 && said.contains("\"output\": \"ls\""), "{said}");
    let (_, said) = fem(folder, &["tools", "--context", "ada.toml"]).unwrap();
    assert!(said.contains("--accept-unsigned fep"), "{said}");
}
