//! Both eras over a pair of streams.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agent_sdk::mcp::gateway::Upstream;
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, ReadHalf, WriteHalf,
};

use crate::fake::{Place, answer, bounded, modern, native, note, place, request, served};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// The client's end.
struct Client {
    write: WriteHalf<DuplexStream>,
    read: BufReader<ReadHalf<DuplexStream>>,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Client {
    fn of(place: &Place) -> Self {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (gateway, scope) = (place.gateway.clone(), place.scope.clone());
        let upstream: Arc<dyn Upstream> = place.fake.clone();
        let server = tokio::spawn(async move {
            let (input, output) = tokio::io::split(theirs);
            gateway.stdio(input, output, upstream, scope).await
        });
        let (read, write) = tokio::io::split(ours);
        Self {
            write,
            read: BufReader::new(read),
            server,
        }
    }

    async fn say(&mut self, text: &str) {
        self.write.write_all(text.as_bytes()).await.unwrap();
        self.write.write_all(b"\n").await.unwrap();
    }

    async fn send(&mut self, message: &Value) {
        self.say(&message.to_string()).await;
    }

    async fn hear(&mut self) -> Value {
        let mut line = String::new();
        let read = self.read.read_line(&mut line);
        let read = tokio::time::timeout(PATIENCE, read).await;
        read.expect("a message within the time").unwrap();
        serde_json::from_str(&line).unwrap_or_else(|why| panic!("{line:?}: {why}"))
    }

    /// Closes its side, and waits for the server to end.
    async fn close(mut self) {
        self.write.shutdown().await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, self.server).await;
        ended.expect("its end within the time").unwrap().unwrap();
    }

    async fn begin(&mut self) -> Value {
        let capabilities = json!({"roots": {}});
        let params = json!({"protocolVersion": "2025-06-18", "capabilities": capabilities});
        self.send(&json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}))
            .await;
        let told = self.hear().await;
        self.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))
            .await;
        told["result"].clone()
    }
}

fn ask(id: u64, method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

#[tokio::test]
async fn both_eras_are_spoken_on_one_pair_of_streams() {
    let place = place(vec![native("calc@acme", "calc.add")], |_| {
        vec![answer(&json!(3))]
    });
    let mut client = Client::of(&place);
    client.send(&ask(1, "tools/list", &json!({}))).await;
    assert_eq!(
        client.hear().await["error"]["code"],
        -32602,
        "neither era yet"
    );
    client
        .send(&modern("tools/call", json!({"name": "calc__add"})))
        .await;
    assert_eq!(client.hear().await["result"]["resultType"], "complete");
    assert_eq!(client.begin().await["protocolVersion"], "2025-06-18");
    client
        .send(&ask(2, "tools/call", &json!({"name": "calc__add"})))
        .await;
    let told = client.hear().await;
    assert_eq!(
        (&told["id"], &told["result"]["resultType"]),
        (&json!(2), &Value::Null)
    );
    client.send(&modern("tools/list", json!({}))).await;
    assert_eq!(
        client.hear().await["result"]["tools"][0]["name"],
        "calc__add"
    );
    client.close().await;
}

#[tokio::test]
async fn what_is_no_message_is_answered_and_the_next_is_served() {
    let bounds = agent_sdk::mcp::gateway::Bounds {
        message_bytes: 1_000,
        ..Default::default()
    };
    let place = bounded(bounds, Vec::new(), |_| Vec::new());
    let mut client = Client::of(&place);
    for (said, code) in [
        ("{", -32700),
        ("[]", -32600),
        ("{\"jsonrpc\":\"2.0\",\"id\":{}}", -32600),
        (&"x".repeat(5_000), -32600),
    ] {
        client.say(said).await;
        assert_eq!(client.hear().await["error"]["code"], code, "{said}");
    }
    client.say("").await;
    client.send(&modern("server/discover", json!({}))).await;
    assert!(client.hear().await["result"]["supportedVersions"].is_array());
}

#[tokio::test]
async fn a_question_is_answered_on_the_same_streams() {
    let place = place(vec![served("fs@acme", "fs.read", "read")], |call| {
        let mcp: Value = serde_json::from_str(call.mcp.as_ref().unwrap().get()).unwrap();
        let ask = json!({"resultType": "input_required", "inputRequests": {"r": {"method": "roots/list"}}});
        match mcp["inputResponses"]["r"]["roots"].is_array() {
            true => vec![answer(&json!({"content": []}))],
            false => vec![answer(&ask)],
        }
    });
    let mut client = Client::of(&place);
    client.begin().await;
    client
        .send(&ask(1, "tools/call", &json!({"name": "fs__read"})))
        .await;
    let question = client.hear().await;
    assert_eq!(question["method"], "roots/list");
    let reply = json!({"jsonrpc": "2.0", "id": question["id"], "result": {"roots": []}});
    client.send(&reply).await;
    assert_eq!(client.hear().await["result"], json!({"content": []}));
}

#[tokio::test]
async fn a_client_of_either_era_cancels_by_a_notification() {
    let place = place(vec![native("calc@acme", "calc.add")], |_| Vec::new());
    let mut client = Client::of(&place);
    client.begin().await;
    let call = json!({"name": "calc__add"});
    for (round, request) in [
        modern("tools/call", call.clone()),
        ask(1, "tools/call", &call),
    ]
    .iter()
    .enumerate()
    {
        client.send(request).await;
        client.send(request).await;
        assert_eq!(
            client.hear().await["error"]["code"],
            -32600,
            "its id is under way"
        );
        client.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})).await;
        client.send(&ask(9, "ping", &json!({}))).await;
        assert_eq!(
            client.hear().await["id"],
            9,
            "a cancelled request is not answered"
        );
        while place.fake.cancelled.load(Ordering::Relaxed) <= round {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn both_eras_hear_of_changes() {
    let place = place(
        vec![
            request("fs@acme", "subscriptions/listen"),
            request("fs@acme", "resources/list"),
        ],
        |_| vec![note("notifications/resources/list_changed", &json!({}))],
    );
    let mut client = Client::of(&place);
    client
        .send(&modern(
            "subscriptions/listen",
            json!({"notifications": {"toolsListChanged": true}}),
        ))
        .await;
    assert_eq!(
        client.hear().await["method"],
        "notifications/subscriptions/acknowledged"
    );
    client.begin().await;
    assert_eq!(
        client.hear().await["method"],
        "notifications/resources/list_changed"
    );
    place.fake.comes(native("fs@acme", "fs.a"));
    let both = [client.hear().await, client.hear().await];
    assert!(
        both.iter()
            .all(|said| said["method"] == "notifications/tools/list_changed"),
        "{both:?}"
    );
    let tagged = both
        .iter()
        .filter(|said| !said["params"]["_meta"].is_null());
    assert_eq!(tagged.count(), 1);
    client.close().await;
}
