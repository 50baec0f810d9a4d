//! What nobody well-meaning sends: every request is answered in bounded time, and none takes the next one down.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use agent_sdk::mcp::gateway::{Bounds, Upstream};
use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request};
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fake::{Place, Script, answer, bounded, modern, native, place, request, served};

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
            let patience = Duration::from_secs(10);
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

/// A list whose every page says that there is another; `entries` are on the page that comes after so many.
fn endless(entries: impl Fn(usize) -> Value + Send + Sync + 'static) -> Place {
    let asked = AtomicUsize::new(0);
    place(vec![request("fs@acme", "resources/list")], move |_| {
        let page = asked.fetch_add(1, Ordering::Relaxed);
        let (resources, next) = (entries(page), format!("{page}"));
        vec![answer(&json!({"resources": resources, "nextCursor": next}))]
    })
}

#[tokio::test]
async fn a_list_ends_with_the_page_that_brings_nothing_new() {
    for (entries, pages) in [(json!([]), 1), (json!([{"uri": "a"}, {"uri": "b"}]), 2)] {
        let place = endless(move |_| entries.clone());
        place.result("resources/list", json!({})).await;
        assert_eq!(place.fake.calls.lock().unwrap().len(), pages);
    }
}

#[tokio::test]
async fn one_agents_list_has_so_many_bytes_and_no_more() {
    let long = "x".repeat(300 << 10);
    let place = endless(move |page| json!([{"uri": page.to_string(), "name": long}]));
    let list = place.result("resources/list", json!({})).await;
    assert_eq!(list["resources"].as_array().unwrap().len(), 3);
    assert_eq!(place.fake.calls.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn an_agent_that_never_ends_its_list_keeps_no_other_from_being_listed() {
    let bounds = Bounds {
        lookup: Duration::from_millis(1),
        ..Bounds::default()
    };
    let tools = ["a@acme", "b@acme"].map(|agent| request(agent, "resources/list"));
    let place = bounded(bounds, tools.into(), |call| match call.to.name().as_str() {
        "a" => Script::new(),
        _ => vec![answer(&json!({"resources": [{"uri": "b"}]}))],
    });
    let list = place.result("resources/list", json!({})).await;
    assert_eq!(list["resources"][0]["uri"], "fem:b@acme/b");
}

#[tokio::test]
async fn a_client_that_says_too_much_of_itself_reaches_nobody() {
    let place = all();
    for (key, said) in [
        ("clientInfo", json!({"name": "x".repeat(2 << 10)})),
        ("clientCapabilities", json!({"x": "x".repeat(2 << 10)})),
    ] {
        let meta = json!({format!("io.modelcontextprotocol/{key}"): said});
        let heard = place.ask("prompts/list", json!({"_meta": meta})).await;
        let (status, said) = heard.one().await;
        assert_eq!((status, &said["error"]["code"]), (400, &json!(-32602)));
    }
    assert!(place.fake.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_message_that_is_arriving_has_a_place_before_it_is_there() {
    let bounds = Bounds {
        arriving_per_caller: 1,
        ..Bounds::default()
    };
    let place = bounded(bounds, Vec::new(), |_| Script::new());
    let never = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
    let request = place.post(&[], "").map(|_| never);
    let upstream: Arc<dyn Upstream> = place.fake.clone();
    let mut arriving = pin!(place.gateway.serve(request, upstream, place.scope.clone()));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(arriving.as_mut().poll(&mut cx).is_pending());
    let heard = place.ask("tools/list", json!({})).await;
    assert_eq!(heard.status(), 429);
}

#[tokio::test]
async fn an_answer_that_its_client_does_not_read_keeps_its_place() {
    let bounds = Bounds {
        requests_per_caller: 1,
        ..Bounds::default()
    };
    let place = bounded(bounds, Vec::new(), |_| Script::new());
    let unread = place.ask("tools/list", json!({})).await;
    assert_eq!(place.ask("tools/list", json!({})).await.status(), 429);
    unread.all().await;
    assert_eq!(place.ask("tools/list", json!({})).await.status(), 200);
}
