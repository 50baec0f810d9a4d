//! MCP clients that can only show a bearer token: what it opens, where, until when, and for whom.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response};
use proto_spec::message::Ack;
use proto_spec::{Code, Digest, Kind, VIA_MCP};
use serde_json::{Value, json};
use tests::lab::{Actor, Extra, Lab, code_of};
use tests::mcp::stateless;
use tests::wire::{PATIENCE, Socket};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const RESOURCE: &str = "https://localhost/mcp";

async fn lab() -> Lab {
    let lab = Lab::start().await.unwrap();
    let lines = format!("[mcp]\nresource = \"{RESOURCE}\"\nbearer_ok = [\"fs.*\"]");
    lab.reconfigured(&lines).await.unwrap()
}

async fn keep(lab: &Lab, name: &str, capabilities: &[&str]) -> Ack {
    let body = json!({"name": name, "capabilities": capabilities});
    lab.ask(&lab.admin, Kind::AdminBearerKeep, &body)
        .await
        .unwrap()
}

async fn issue(lab: &Lab, name: &str, capabilities: &[&str]) -> (Digest, String) {
    let body = json!({"agent": name, "capabilities": capabilities});
    match lab
        .ask(&lab.admin, Kind::AdminBearerIssue, &body)
        .await
        .unwrap()
    {
        Ack::Issued { id, token, .. } => (id, token.unwrap()),
        other => panic!("{other:?}"),
    }
}

fn request(path: &str, token: Option<&str>, method: &str, params: Value) -> Request<Full<Bytes>> {
    stateless::request(path, token, method, params).unwrap()
}

fn read(reply: &Response<Bytes>) -> Value {
    stateless::read(reply).unwrap()
}

async fn ask(lab: &Lab, request: Request<Full<Bytes>>) -> Response<Bytes> {
    lab.line.open().await.unwrap().ask(request).await.unwrap()
}

async fn names(lab: &Lab, token: &str) -> Vec<String> {
    let reply = ask(lab, request("/mcp", Some(token), "tools/list", json!({}))).await;
    let reply = read(&reply);
    let tools = reply["result"]["tools"].as_array();
    let tools = tools.unwrap_or_else(|| panic!("{reply}"));
    let name = |tool: &Value| tool["name"].as_str().unwrap().to_owned();
    tools.iter().map(name).collect()
}

/// Answers the next call, after a look at it.
async fn answer(lab: &Lab, fs: &Actor, socket: &mut Socket, look: impl FnOnce(&Value)) {
    let call = socket.delivery().await.unwrap();
    look(&serde_json::from_slice(call.bytes()).unwrap());
    let result = lab.result(fs, &call, &json!({"text": "hi"})).unwrap();
    socket.send(result.bytes).await.unwrap();
}

fn call(token: &str, name: &str) -> Request<Full<Bytes>> {
    let params = json!({"name": name, "arguments": {"path": "/a"}});
    request("/mcp", Some(token), "tools/call", params)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bearer_sees_and_calls_what_token_record_and_operator_permit() {
    let lab = lab().await;
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let mut serving = lab
        .provide(&fs, &["fs.read", "fs.write", "fs.list"])
        .await
        .unwrap();
    keep(&lab, "desk", &["fs.read", "fs.list", "admin.*"]).await;
    let (_, token) = issue(&lab, "desk", &["fs.read", "fs.write", "admin.*"]).await;
    assert_eq!(names(&lab, &token).await, ["fs__read"]);
    let look = |call: &Value| {
        assert_eq!(call["via"], VIA_MCP);
        assert_eq!(call["agent"], "desk@acme");
        assert_eq!(call["body"]["arguments"], json!({"path": "/a"}));
        assert!(call.get("token").is_none(), "the secret stays here: {call}");
    };
    let (reply, ()) = tokio::join!(
        ask(&lab, call(&token, "fs__read")),
        answer(&lab, &fs, &mut serving, look),
    );
    assert_eq!(reply.status(), 200);
    assert_eq!(
        read(&reply)["result"]["structuredContent"],
        json!({"text": "hi"})
    );
    let reply = ask(&lab, call(&token, "fs__write")).await;
    assert!(read(&reply).get("error").is_some(), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_a_client_is_told_what_is_missing() {
    let lab = lab().await;
    let list = |token: Option<&str>| request("/mcp", token, "tools/list", json!({}));
    let says = |reply: &Response<Bytes>| {
        let header = reply.headers().get("www-authenticate");
        header
            .map(|value| value.to_str().unwrap().to_owned())
            .unwrap_or_default()
    };
    let url = "https://localhost/.well-known/oauth-protected-resource/mcp";
    let none = ask(&lab, list(None)).await;
    assert_eq!(none.status(), 401);
    assert_eq!(says(&none), format!("Bearer resource_metadata=\"{url}\""));
    let bad = ask(&lab, list(Some("nonsense"))).await;
    assert_eq!(bad.status(), 401);
    assert!(
        says(&bad).contains("error=\"invalid_token\""),
        "{}",
        says(&bad)
    );
    let metadata = Request::get("/.well-known/oauth-protected-resource/mcp")
        .header("host", "localhost")
        .body(Full::default())
        .unwrap();
    let metadata = ask(&lab, metadata).await;
    assert_eq!(metadata.status(), 200);
    assert_eq!(read(&metadata)["resource"], RESOURCE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bearer_token_is_good_at_mcp_and_nowhere_else() {
    let lab = lab().await;
    keep(&lab, "desk", &["fs.*"]).await;
    let (_, token) = issue(&lab, "desk", &["fs.*"]).await;
    let fs = lab.agent("fs", 2, &["fs.*"]).await.unwrap();
    // As a grant: it has no holder.
    let extra = Extra {
        token: Some(token.clone()),
        ..Extra::default()
    };
    let said = fs.seal_with(
        Kind::ToolCall,
        &"fs@acme".parse().unwrap(),
        lab.now(),
        &json!({"tool": "fs.read"}),
        &extra,
    );
    let reply = lab.post(said.unwrap().bytes).await.unwrap();
    assert_eq!(
        code_of(&reply.envelope().unwrap()).unwrap(),
        Code::TokenMalformed
    );
    // Where the broker is another resource.
    let moved = lab;
    assert_eq!(names(&moved, &token).await, Vec::<String>::new());
    let lines = std::fs::read_to_string(moved.file()).unwrap();
    std::fs::write(
        moved.file(),
        lines.replace(RESOURCE, "https://elsewhere/mcp"),
    )
    .unwrap();
    let moved = moved.restart().await.unwrap();
    let reply = ask(
        &moved,
        request("/mcp", Some(&token), "tools/list", json!({})),
    )
    .await;
    assert_eq!(reply.status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_cannot_say_that_it_shows_a_bearer_token() {
    let lab = lab().await;
    let fs = lab.agent("fs", 2, &["fs.*"]).await.unwrap();
    let _serving = lab.provide(&fs, &["fs.read"]).await.unwrap();
    for (kind, to, body) in [
        (Kind::ToolCall, "fs@acme", json!({"tool": "fs.read"})),
        (Kind::DiscoverTools, "broker@acme", json!({})),
    ] {
        let extra = Extra {
            via: Some(VIA_MCP),
            ..Extra::default()
        };
        let said = fs.seal_with(kind, &to.parse().unwrap(), lab.now(), &body, &extra);
        let reply = lab.post(said.unwrap().bytes).await.unwrap();
        assert_eq!(
            code_of(&reply.envelope().unwrap()).unwrap(),
            Code::NotHolder,
            "{kind}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_bearer_token_ends_its_calls_in_flight() {
    let lab = lab().await;
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let mut serving = lab.provide(&fs, &["fs.read"]).await.unwrap();
    keep(&lab, "desk", &["fs.*"]).await;
    let (id, token) = issue(&lab, "desk", &["fs.*"]).await;
    let (_, other) = issue(&lab, "desk", &["fs.*"]).await;
    let revoke = async {
        serving.delivery().await.unwrap();
        let body = json!({"ids": [id]});
        lab.ask(&lab.admin, Kind::AdminTokenRevoke, &body)
            .await
            .unwrap();
    };
    let (reply, ()) = tokio::join!(ask(&lab, call(&token, "fs__read")), revoke);
    let reply = read(&reply);
    assert!(reply.to_string().contains("TOKEN_REVOKED"), "{reply}");
    let reply = ask(&lab, call(&token, "fs__read")).await;
    assert_eq!(reply.status(), 401);
    // The agent's other tokens live on.
    assert_eq!(names(&lab, &other).await, ["fs__read"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_that_is_kept_again_has_another_key_and_old_tokens_stay_dead() {
    let lab = lab().await;
    let key = |ack: Ack| match ack {
        Ack::Agent {
            agent: Some(agent), ..
        } => agent.key,
        other => panic!("{other:?}"),
    };
    let first = key(keep(&lab, "desk", &["fs.*"]).await);
    assert_eq!(
        key(keep(&lab, "desk", &["fs.read"]).await),
        first,
        "narrowed, not another"
    );
    let (_, token) = issue(&lab, "desk", &["fs.*"]).await;
    names(&lab, &token).await;
    let body = json!({"name": "desk"});
    lab.ask(&lab.admin, Kind::AdminAgentRevoke, &body)
        .await
        .unwrap();
    let reply = ask(&lab, request("/mcp", Some(&token), "tools/list", json!({}))).await;
    assert_eq!(reply.status(), 401);
    assert_ne!(key(keep(&lab, "desk", &["fs.*"]).await), first);
    let reply = ask(&lab, request("/mcp", Some(&token), "tools/list", json!({}))).await;
    assert_eq!(
        reply.status(),
        401,
        "what was issued for the agent that was revoked"
    );
    let lab = lab.restart().await.unwrap();
    let (_, token) = issue(&lab, "desk", &["fs.*"]).await;
    assert_eq!(names(&lab, &token).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_listens_does_not_keep_a_broker_from_a_clean_stop() {
    let lab = lab().await;
    keep(&lab, "desk", &["fs.*"]).await;
    let (_, token) = issue(&lab, "desk", &["fs.*"]).await;
    let wanted = json!({"notifications": {"toolsListChanged": true}});
    let (head, body) = request("/mcp", Some(&token), "subscriptions/listen", wanted).into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let mut text = format!("POST /mcp HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in &head.headers {
        text.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    let mut stream = lab.line.connect().await.unwrap();
    stream
        .write_all(format!("{text}\r\n").as_bytes())
        .await
        .unwrap();
    stream.write_all(&body).await.unwrap();
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("acknowledged") {
        assert_ne!(stream.read_buf(&mut heard).await.unwrap(), 0);
    }
    let rest = tokio::spawn(async move {
        stream.read_to_end(&mut heard).await.unwrap();
        heard
    });
    lab.restart().await.unwrap();
    let heard = tokio::time::timeout(PATIENCE, rest).await.unwrap().unwrap();
    assert!(heard.ends_with(b"\r\n0\r\n\r\n"), "its last chunk");
}

/// Whether a bearer token opens anything.
async fn is_good(lab: &Lab, token: &str) -> bool {
    let reply = ask(lab, request("/mcp", Some(token), "tools/list", json!({}))).await;
    reply.status() == 200
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bearer_token_stays_dead_whatever_key_its_agent_had_when_it_was_revoked() {
    let mut lab = lab().await;
    let revoke = async |lab: &Lab| {
        let body = json!({"name": "desk"});
        let revoked = lab.ask(&lab.admin, Kind::AdminAgentRevoke, &body).await;
        revoked.unwrap();
    };
    // Its agent is revoked while `/mcp` is closed.
    keep(&lab, "desk", &["fs.*"]).await;
    let (_, token) = issue(&lab, "desk", &["fs.*"]).await;
    assert!(is_good(&lab, &token).await);
    let text = std::fs::read_to_string(lab.file()).unwrap();
    let (closed, _) = text.split_once("[mcp]").unwrap();
    std::fs::write(lab.file(), closed).unwrap();
    lab = lab.restart().await.unwrap();
    revoke(&lab).await;
    let lines = format!("[mcp]\nresource = \"{RESOURCE}\"\nbearer_ok = [\"fs.*\"]");
    lab = lab.reconfigured(&lines).await.unwrap();
    keep(&lab, "desk", &["fs.*"]).await;
    assert!(!is_good(&lab, &token).await);
    // Its agent has a key of its own when it is revoked.
    let (_, token) = issue(&lab, "desk", &["fs.*"]).await;
    assert!(is_good(&lab, &token).await);
    let own = Actor::new("desk", 9).unwrap();
    lab.register(&own).await.unwrap();
    lab.approve(&own, &["fs.*"]).await.unwrap();
    assert!(!is_good(&lab, &token).await);
    revoke(&lab).await;
    keep(&lab, "desk", &["fs.*"]).await;
    assert!(!is_good(&lab, &token).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_key_of_its_own_is_not_kept_and_gets_no_bearer_token() {
    let lab = lab().await;
    lab.agent("fs", 2, &["fs.*"]).await.unwrap();
    for (kind, body) in [
        (
            Kind::AdminBearerKeep,
            json!({"name": "fs", "capabilities": []}),
        ),
        (
            Kind::AdminBearerIssue,
            json!({"agent": "fs", "capabilities": ["fs.*"]}),
        ),
    ] {
        let why = lab.ask(&lab.admin, kind, &body).await.unwrap_err();
        assert!(why.to_string().contains("CONFLICT"), "{why}");
    }
    keep(&lab, "desk", &["fs.*"]).await;
    let body = json!({"agent": "desk", "capabilities": ["fs.*"], "expires": lab.now().later(std::time::Duration::from_secs(86_401))});
    let why = lab
        .ask(&lab.admin, Kind::AdminBearerIssue, &body)
        .await
        .unwrap_err();
    assert!(why.to_string().contains("INVALID_BODY"), "{why}");
}
