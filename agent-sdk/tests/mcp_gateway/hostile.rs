//! What nobody well-meaning sends: every request is answered in bounded time, and none takes the next one down.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use proptest::prelude::*;
use serde_json::json;

use crate::fake::{Place, answer, modern, native, place, request, served};

fn all() -> Place {
    let tools = vec![
        native("calc@acme", "calc.add"),
        served("fs@acme", "fs.read", "read"),
        request("fs@acme", "resources/list"),
        request("fs@acme", "resources/read"),
        request("fs@acme", "prompts/list"),
        request("fs@acme", "completion/complete"),
    ];
    place(tools, |_| {
        vec![answer(
            &json!({"prompts": [{"name": 1}], "resources": 7, "content": {}}),
        )]
    })
}

/// Text that is nearly a message: pieces of one, cut and put together.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::sample::select(vec![
        r#"{"jsonrpc":"2.0","#,
        r#""id":1,"#,
        r#""id":null,"#,
        r#""id":1e400,"#,
        r#""method":"tools/call","#,
        r#""method":"initialize","#,
        r#""method":"resources/read","#,
        r#""method":"completion/complete","#,
        r#""params":{"name":"calc__add","arguments":{}}"#,
        r#""params":{"protocolVersion":"2025-11-25","capabilities":[]}"#,
        r#""params":{"uri":"fem:fs@acme/x","ref":{"type":"ref/prompt","name":""}}"#,
        r#""params":{"_meta":{"io.modelcontextprotocol/protocolVersion":7}}"#,
        r#""params":[]"#,
        r#""result":{},"#,
        r#""error":{"code":1,"message":""}"#,
        "}",
        "]",
        "\u{0}",
        "[[[[[[[[",
    ]);
    let text = prop::collection::vec(pieces, 0..8).prop_map(|pieces| pieces.concat().into_bytes());
    prop_oneof![4 => text, 1 => prop::collection::vec(any::<u8>(), 0..64)]
}

fn headers() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let name = prop::sample::select(vec![
        "mcp-protocol-version",
        "mcp-method",
        "mcp-name",
        "mcp-session-id",
        "mcp-param-x",
        "origin",
        "accept",
        "content-type",
        "last-event-id",
    ]);
    let value = prop_oneof![
        Just("2026-07-28".to_owned()),
        Just("2025-11-25".to_owned()),
        Just("tools/call".to_owned()),
        Just("calc__add".to_owned()),
        Just("=?base64?!?=".to_owned()),
        Just("*/*".to_owned()),
        Just("application/json; charset=x".to_owned()),
        "[ -~]{0,40}",
    ];
    prop::collection::vec((name, value), 0..5)
}

proptest! {
    #[test]
    fn whatever_comes_is_answered_and_the_next_request_is_served(
        method in prop::sample::select(vec!["POST", "GET", "DELETE", "PUT", "OPTIONS"]),
        headers in headers(),
        body in nearly(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let place = all();
            let mut hostile = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap());
            if headers.iter().all(|(name, _)| *name != "content-type") {
                hostile = hostile.header("content-type", "application/json");
            }
            hostile = hostile.uri("/mcp").header("host", "here");
            for (name, value) in &headers {
                hostile = hostile.header(*name, value);
            }
            let hostile = hostile.body(Full::new(Bytes::from(body))).unwrap();
            let patience = std::time::Duration::from_secs(10);
            let heard = tokio::time::timeout(patience, place.send(hostile)).await.unwrap();
            prop_assert!(!heard.status().is_server_error(), "{}", heard.status());
            let next = place.ask("tools/call", json!({"name": "calc__add"})).await;
            prop_assert_eq!(next.status(), 200);
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_server_that_answers_with_anything_at_all_is_an_error_to_the_client_and_no_more() {
    for odd in [
        json!(null),
        json!([]),
        json!("x"),
        json!({"resultType": 7}),
        json!({"content": [{"uri": 1}, 2]}),
    ] {
        let told = odd.clone();
        let tools = vec![
            served("fs@acme", "fs.read", "read"),
            request("fs@acme", "prompts/list"),
        ];
        let place = place(tools, move |_| vec![answer(&told)]);
        for (method, params) in [
            ("tools/call", json!({"name": "fs__read"})),
            ("prompts/list", json!({})),
        ] {
            let (status, said) = place.ask(method, params).await.one().await;
            assert_eq!(status, 200, "{odd}");
            assert!(
                said["result"].is_object() || said["error"]["code"] == -32603,
                "{odd}: {said}"
            );
        }
    }
}

#[tokio::test]
async fn a_message_as_deep_or_as_often_named_as_one_likes_is_refused() {
    let place = all();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let twice = r#"{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":1,"x":2}}"#;
    for body in [deep, twice.to_owned(), "null".into(), String::new()] {
        let heard = place.send(place.post(&[], body)).await;
        assert_eq!(heard.status(), 400);
    }
    let mut call = modern("tools/call", json!({"name": "calc__add"}));
    call["params"]["arguments"] = json!([1]);
    let headers = [
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "calc__add"),
    ];
    let (_, said) = place
        .send(place.post(&headers, call.to_string()))
        .await
        .one()
        .await;
    assert_eq!(said["error"]["code"], -32602);
}
