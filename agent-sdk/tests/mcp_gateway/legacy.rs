//! The revisions that begin with `initialize`, over HTTP.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use agent_sdk::mcp::gateway::{Bounds, Gateway};
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::fake::{
    Heard, Place, Still, allowed, answer, bounded, native, note, place, request, served,
};

const ALL: &str = r#"{"sampling":{},"elicitation":{},"roots":{"listChanged":true}}"#;

fn message(method: &str, params: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 5, "method": method, "params": params}).to_string()
}

/// Begins a session, and gives its id.
async fn begin(place: &Place, version: &str) -> (String, Value) {
    let capabilities: Value = serde_json::from_str(ALL).unwrap();
    let client = json!({"name": "old", "version": "1"});
    let params =
        json!({"protocolVersion": version, "capabilities": capabilities, "clientInfo": client});
    let heard = place
        .send(place.post(&[], message("initialize", &params)))
        .await;
    assert_eq!(heard.status(), 200);
    let id = heard.headers()["mcp-session-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let (_, said) = heard.one().await;
    let begun = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(send(place, &id, begun).await.status(), 202);
    (id, said["result"].clone())
}

async fn send(place: &Place, session: &str, body: &str) -> Heard {
    place
        .send(place.post(&[("mcp-session-id", session)], body.to_owned()))
        .await
}

async fn ask(place: &Place, session: &str, method: &str, params: &Value) -> Heard {
    send(place, session, &message(method, params)).await
}

async fn result(place: &Place, session: &str, method: &str, params: &Value) -> Value {
    let said = ask(place, session, method, params)
        .await
        .all()
        .await
        .pop()
        .unwrap();
    assert!(said["error"].is_null(), "{said}");
    said["result"].clone()
}

fn stream(session: &str, method: &str) -> Request<Full<bytes::Bytes>> {
    let request = Request::builder()
        .method(method)
        .uri("/mcp")
        .header("host", "here");
    let request = request
        .header("mcp-session-id", session)
        .header("accept", "text/event-stream");
    request.body(Full::default()).unwrap()
}

fn fs(
    acts: impl Fn(&agent_sdk::mcp::gateway::Outgoing) -> crate::fake::Script + Send + Sync + 'static,
) -> Place {
    place(vec![served("fs@acme", "fs.read", "read")], acts)
}

#[tokio::test]
async fn every_legacy_revision_is_spoken_and_another_becomes_the_newest() {
    let place = fs(|_| Vec::new());
    for (wanted, spoken) in [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("1999-01-01", "2025-11-25"),
    ] {
        let (id, told) = begin(&place, wanted).await;
        assert_eq!(told["protocolVersion"], spoken);
        assert_eq!(told["capabilities"]["tools"]["listChanged"], true);
        assert!(told["serverInfo"]["name"].is_string() && told["resultType"].is_null());
        assert!(id.bytes().all(|b| b.is_ascii_graphic()));
    }
}

#[tokio::test]
async fn a_legacy_result_has_nothing_of_a_later_revision() {
    let place = fs(|_| vec![answer(&json!({"content": [], "resultType": "complete"}))]);
    let (id, _) = begin(&place, "2025-11-25").await;
    assert_eq!(result(&place, &id, "ping", &json!({})).await, json!({}));
    assert_eq!(
        result(&place, &id, "logging/setLevel", &json!({"level": "error"})).await,
        json!({})
    );
    let call = json!({"name": "fs__read", "arguments": {}});
    assert_eq!(
        result(&place, &id, "tools/call", &call).await,
        json!({"content": []})
    );
    let list = result(&place, &id, "tools/list", &json!({})).await;
    assert_eq!(
        list.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["tools"]
    );
}

#[tokio::test]
async fn an_error_is_200_to_whoever_looks_for_it_in_the_body() {
    let place = fs(|_| Vec::new());
    let (id, _) = begin(&place, "2025-06-18").await;
    for (method, code) in [
        ("no/such", -32601),
        ("server/discover", -32601),
        ("prompts/list", -32601),
    ] {
        let (status, said) = ask(&place, &id, method, &json!({})).await.one().await;
        assert_eq!(
            (status, said["error"]["code"].as_i64()),
            (200, Some(code)),
            "{method}"
        );
    }
}

#[tokio::test]
async fn a_server_is_told_in_the_modern_manner_what_the_session_began_with() {
    let place = fs(|_| vec![answer(&json!({"content": []}))]);
    let (id, _) = begin(&place, "2025-11-25").await;
    let call = json!({"name": "fs__read", "_meta": {"progressToken": 3, "own": 1}});
    result(&place, &id, "tools/call", &call).await;
    result(&place, &id, "logging/setLevel", &json!({"level": "error"})).await;
    result(&place, &id, "tools/call", &call).await;
    let calls = place.fake.calls.lock().unwrap();
    let meta = |at: usize| {
        let mcp: Value = serde_json::from_str(calls[at].mcp.as_ref().unwrap().get()).unwrap();
        mcp["_meta"].clone()
    };
    let key = |name: &str| format!("io.modelcontextprotocol/{name}");
    let first = meta(0);
    assert_eq!(first[key("protocolVersion")], "2026-07-28");
    assert_eq!(first[key("clientInfo")]["name"], "old");
    assert_eq!(
        first[key("clientCapabilities")].to_string(),
        serde_json::from_str::<Value>(ALL).unwrap().to_string()
    );
    assert_eq!(first[key("logLevel")], "info");
    assert_eq!(
        (&first["progressToken"], &first["own"]),
        (&json!(3), &json!(1))
    );
    assert_eq!(meta(1)[key("logLevel")], "error");
}

#[tokio::test]
async fn a_session_survives_a_restart_and_is_nobody_elses() {
    let mut place = fs(|_| vec![answer(&json!({"content": []}))]);
    let (id, _) = begin(&place, "2025-11-25").await;
    let again =
        |secret: u8| Gateway::new(&[secret; 32], Arc::new(Still), allowed(), Bounds::default());
    place.gateway = again(9);
    assert_eq!(
        ask(&place, &id, "tools/list", &json!({})).await.status(),
        200
    );
    place.gateway = again(8);
    assert_eq!(
        ask(&place, &id, "tools/list", &json!({})).await.status(),
        404
    );
    place.gateway = again(9);
    let elsewhere = place.of("fs@acme");
    assert_eq!(
        ask(&elsewhere, &id, "tools/list", &json!({}))
            .await
            .status(),
        404
    );
    assert_eq!(
        ask(&elsewhere, "x", "tools/list", &json!({}))
            .await
            .status(),
        404
    );
    let none = elsewhere.post(&[], message("tools/list", &json!({})));
    assert_eq!(elsewhere.send(none).await.status(), 400);
}

#[tokio::test]
async fn a_session_that_was_ended_is_not_known_any_more() {
    let place = fs(|_| Vec::new());
    let (id, _) = begin(&place, "2025-11-25").await;
    let mut heard = place.send(stream(&id, "GET")).await;
    assert_eq!(place.send(stream(&id, "DELETE")).await.status(), 204);
    assert!(heard.event().await.is_none());
    assert_eq!(ask(&place, &id, "ping", &json!({})).await.status(), 404);
    assert_eq!(place.send(stream(&id, "GET")).await.status(), 404);
}

#[tokio::test]
async fn a_question_comes_in_mid_call_and_its_answer_goes_on_with_the_call() {
    let place = fs(|call| {
        let mcp: Value = serde_json::from_str(call.mcp.as_ref().unwrap().get()).unwrap();
        let ask = |method: &str| json!({"method": method, "params": {"message": "may I?"}});
        match (mcp["requestState"].as_str(), &mcp["inputResponses"]) {
            (None, Value::Null) => vec![
                note(
                    "notifications/message",
                    &json!({"level": "info", "data": "x"}),
                ),
                answer(&json!({
                    "resultType": "input_required", "requestState": "one",
                    "inputRequests": {"e": ask("elicitation/create"), "r": ask("roots/list")},
                })),
            ],
            (Some("one"), answers)
                if *answers == json!({"e": {"action": "accept"}, "r": {"roots": []}}) =>
            {
                vec![answer(
                    &json!({"resultType": "input_required", "inputRequests": {"s": ask("sampling/createMessage")}}),
                )]
            }
            (None, answers) if *answers == json!({"s": {"model": "m"}}) => {
                vec![answer(
                    &json!({"resultType": "complete", "content": ["done"]}),
                )]
            }
            other => panic!("{other:?}"),
        }
    });
    let (id, _) = begin(&place, "2025-06-18").await;
    let mut heard = ask(&place, &id, "tools/call", &json!({"name": "fs__read"})).await;
    assert_eq!(
        heard.event().await.unwrap()["method"],
        "notifications/message"
    );
    let reply = async |question: &Value, result: Value| {
        let body = json!({"jsonrpc": "2.0", "id": question["id"], "result": result});
        assert_eq!(send(&place, &id, &body.to_string()).await.status(), 202);
    };
    let (first, second) = (heard.event().await.unwrap(), heard.event().await.unwrap());
    assert_eq!(first["params"], json!({"message": "fs@acme asks: may I?"}));
    assert_eq!(second["params"], json!({"message": "may I?"}));
    reply(&second, json!({"roots": []})).await;
    reply(&first, json!({"action": "accept"})).await;
    let third = heard.event().await.unwrap();
    assert_eq!(third["method"], "sampling/createMessage");
    reply(&third, json!({"model": "m"})).await;
    let last = heard.event().await.unwrap();
    assert_eq!(
        (&last["id"], &last["result"]),
        (&json!(5), &json!({"content": ["done"]}))
    );
    assert!(heard.event().await.is_none());
}

#[tokio::test]
async fn a_client_is_asked_nothing_that_it_did_not_declare_and_not_for_ever() {
    let asks = |method: &'static str| {
        fs(move |_| {
            let requests = json!({"k": {"method": method, "params": {}}});
            vec![answer(
                &json!({"resultType": "input_required", "inputRequests": requests}),
            )]
        })
    };
    let place = asks("tools/call");
    let (id, _) = begin(&place, "2025-11-25").await;
    let (_, said) = ask(&place, &id, "tools/call", &json!({"name": "fs__read"}))
        .await
        .one()
        .await;
    assert_eq!(said["error"]["code"], -32021);
    let place = asks("roots/list");
    let (id, _) = begin(&place, "2025-11-25").await;
    let mut heard = ask(&place, &id, "tools/call", &json!({"name": "fs__read"})).await;
    let mut rounds = 0;
    let end = loop {
        let said = heard.event().await.unwrap();
        if said["method"].is_null() {
            break said;
        }
        rounds += 1;
        let body = json!({"jsonrpc": "2.0", "id": said["id"], "result": {}}).to_string();
        send(&place, &id, &body).await;
    };
    assert_eq!(rounds, Bounds::default().rounds);
    assert_eq!(end["error"]["code"], -32603);
}

#[tokio::test]
async fn losing_the_stream_cancels_nothing_and_a_notification_does() {
    let place = fs(|_| vec![note("notifications/progress", &json!({"progress": 1}))]);
    let (id, _) = begin(&place, "2025-11-25").await;
    let call = json!({"name": "fs__read", "_meta": {"progressToken": 1}});
    let mut heard = ask(&place, &id, "tools/call", &call).await;
    heard.event().await.unwrap();
    drop(heard);
    tokio::task::yield_now().await;
    assert_eq!(place.fake.cancelled.load(Ordering::Relaxed), 0);
    let again = ask(&place, &id, "tools/call", &call).await.one().await.1;
    assert_eq!(again["error"]["code"], -32600, "its id is under way");
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":5}}"#;
    send(&place, &id, cancel).await;
    while place.fake.cancelled.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let mut heard = ask(&place, &id, "tools/call", &call).await;
    heard.event().await.unwrap();
    send(&place, &id, cancel).await;
    assert!(
        heard.event().await.is_none(),
        "a cancelled request is not answered"
    );
}

#[tokio::test]
async fn a_stream_tells_of_changes_and_of_resources_that_were_subscribed_to() {
    let tools = vec![
        request("fs@acme", "subscriptions/listen"),
        request("fs@acme", "resources/list"),
    ];
    let place = place(tools, |call| {
        let arguments: Value =
            serde_json::from_str(call.arguments.as_ref().unwrap().get()).unwrap();
        match arguments["notifications"]["resourceSubscriptions"].as_array() {
            None => Vec::new(),
            Some(uris) => vec![note(
                "notifications/resources/updated",
                &json!({"uri": uris[0]}),
            )],
        }
    });
    let (id, told) = begin(&place, "2025-11-25").await;
    assert_eq!(
        told["capabilities"]["resources"],
        json!({"listChanged": true, "subscribe": true})
    );
    let mut heard = place.send(stream(&id, "GET")).await;
    assert!(heard.is_stream());
    let watched = json!({"uri": "fem:fs@acme/test://w"});
    assert_eq!(
        result(&place, &id, "resources/subscribe", &watched).await,
        json!({})
    );
    let updated = heard.event().await.unwrap();
    assert_eq!(updated["params"], watched);
    place.fake.comes(native("fs@acme", "fs.a"));
    assert_eq!(
        heard.event().await.unwrap()["method"],
        "notifications/tools/list_changed"
    );
    assert_eq!(
        result(&place, &id, "resources/unsubscribe", &watched).await,
        json!({})
    );
}

#[tokio::test]
async fn a_client_without_a_session_has_no_stream() {
    let place = fs(|_| Vec::new());
    let request = Request::get("/mcp")
        .header("host", "here")
        .body(Full::default())
        .unwrap();
    let heard = place.send(request).await;
    assert_eq!(heard.status(), 405);
    assert_eq!(heard.headers()["allow"], "GET, POST, DELETE");
}

#[tokio::test]
async fn subscriptions_and_questions_of_a_session_are_bounded() {
    let bounds = Bounds {
        subscriptions: 1,
        questions: 1,
        ..Bounds::default()
    };
    let tools = vec![
        served("fs@acme", "fs.read", "read"),
        request("fs@acme", "subscriptions/listen"),
    ];
    let place = bounded(bounds, tools, |_| {
        let ask = json!({"method": "roots/list"});
        vec![answer(
            &json!({"resultType": "input_required", "inputRequests": {"a": ask, "b": ask}}),
        )]
    });
    let (id, _) = begin(&place, "2025-11-25").await;
    for (uri, status) in [("a", 200), ("a", 200), ("b", 429)] {
        let heard = ask(&place, &id, "resources/subscribe", &json!({"uri": uri})).await;
        assert_eq!(heard.status(), status, "{uri}");
    }
    let heard = ask(&place, &id, "tools/call", &json!({"name": "fs__read"})).await;
    let all = heard.all().await;
    assert_eq!(all.last().unwrap()["error"]["data"]["fem"], "BUSY");
}
