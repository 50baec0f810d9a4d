//! The stateless revision 2026-07-28 over HTTP.

use std::sync::atomic::Ordering;

use agent_sdk::mcp::gateway::Bounds;
use futures_util::FutureExt as _;
use serde_json::{Value, json};

use crate::fake::{
    Place, Script, answer, fails, modern, native, note, offered, place, request, served,
};

fn texts(result: &Value) -> Script {
    vec![answer(result)]
}

fn filesystem() -> Place {
    let tools = vec![
        served("fs@acme", "fs.read", "read"),
        native("calc@acme", "calc.add"),
        native("calc@globex", "calc.add"),
    ];
    place(tools, |_| {
        texts(&json!({"content": [], "structuredContent": {"z": 1, "a": 2}}))
    })
}

#[tokio::test]
async fn a_list_shows_exactly_what_the_caller_may_call_in_one_order() {
    let place = filesystem();
    let names = |list: &Value| {
        let tools = list["tools"].as_array().unwrap().iter();
        tools
            .map(|tool| tool["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let list = place.result("tools/list", json!({})).await;
    let theirs = "globex_calc__add___hjg6r7qtlt7y";
    assert_eq!(names(&list), ["calc__add", "fs__read", theirs]);
    assert_eq!(list["cacheScope"], "private");
    assert_eq!(list["resultType"], "complete");
    assert!(list["ttlMs"].is_u64());
    place.fake.tools.lock().unwrap().reverse();
    place.fake.tools.lock().unwrap().pop();
    let list = place.result("tools/list", json!({})).await;
    assert_eq!(names(&list), ["calc__add", theirs]);
}

#[tokio::test]
async fn a_list_of_many_comes_in_pages_whose_cursors_say_nothing() {
    let bounds = Bounds {
        page: 2,
        ..Default::default()
    };
    let tools = (0..5)
        .map(|n| native("a@acme", &format!("a.t{n}")))
        .collect();
    let place = crate::fake::bounded(bounds, tools, |_| Vec::new());
    let (mut seen, mut cursor) = (Vec::new(), Value::Null);
    loop {
        let params = match &cursor {
            Value::Null => json!({}),
            cursor => json!({"cursor": cursor}),
        };
        let list = place.result("tools/list", params).await;
        seen.extend(
            list["tools"]
                .as_array()
                .unwrap()
                .iter()
                .map(|tool| tool["name"].clone()),
        );
        cursor = list["nextCursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(
        json!(seen),
        json!(["a__t0", "a__t1", "a__t2", "a__t3", "a__t4"])
    );
    let (_, said) = place
        .ask("tools/list", json!({"cursor": "?"}))
        .await
        .one()
        .await;
    assert_eq!(said["error"]["code"], -32602);
}

#[tokio::test]
async fn a_call_reaches_the_tool_of_that_public_name_with_all_that_was_sent() {
    let place = filesystem();
    let sent = json!({
        "name": "fs__read", "arguments": {"z": 1, "a": 18446744073709551615_u64},
        "requestState": "s", "inputResponses": {"k": 1}, "new": [1],
    });
    let result = place.result("tools/call", sent).await;
    assert_eq!(result["structuredContent"].to_string(), r#"{"a":2,"z":1}"#);
    let calls = place.fake.calls.lock().unwrap();
    let call = &calls[0];
    assert_eq!(
        (call.to.to_string(), call.tool.as_str()),
        ("fs@acme".into(), "fs.read")
    );
    assert_eq!(
        call.arguments.as_ref().unwrap().get(),
        r#"{"a":18446744073709551615,"z":1}"#
    );
    let mcp: Value = serde_json::from_str(call.mcp.as_ref().unwrap().get()).unwrap();
    assert_eq!(mcp["requestState"], "s");
    assert_eq!(mcp["inputResponses"], json!({"k": 1}));
    assert_eq!(mcp["new"], json!([1]));
    assert!(mcp["name"].is_null() && mcp["arguments"].is_null());
    assert_eq!(
        mcp["_meta"]["io.modelcontextprotocol/protocolVersion"],
        "2026-07-28"
    );
}

#[tokio::test]
async fn a_name_is_looked_up_and_never_taken_apart() {
    let place = filesystem();
    for name in [
        "fs.read",
        "read",
        "calc__add2",
        "globex_fs__read",
        "secret__tool",
        "",
    ] {
        let (_, said) = place
            .ask("tools/call", json!({"name": name}))
            .await
            .one()
            .await;
        assert_eq!(said["error"]["code"], -32602, "{name}");
    }
    assert!(place.fake.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn one_agent_shows_its_tools_under_their_own_names_and_nothing_added() {
    let place = filesystem().of("fs@acme");
    let list = place.result("tools/list", json!({})).await;
    assert_eq!(
        list["tools"],
        json!([{"name": "read", "x": 1, "inputSchema": {"type": "object"}}])
    );
    place.result("tools/call", json!({"name": "read"})).await;
    assert_eq!(place.fake.calls.lock().unwrap()[0].tool.as_str(), "fs.read");
}

#[tokio::test]
async fn a_tool_of_fem_answers_as_text_and_says_no_as_a_result() {
    let place = place(vec![native("calc@acme", "calc.add")], |_| {
        texts(&json!({"sum": 3}))
    });
    let result = place
        .result("tools/call", json!({"name": "calc__add"}))
        .await;
    assert_eq!(result["structuredContent"], json!({"sum": 3}));
    assert_eq!(result["content"][0]["text"], r#"{"sum":3}"#);
    assert!(place.fake.calls.lock().unwrap()[0].mcp.is_none());

    let no = crate::fake::place(vec![native("calc@acme", "calc.add")], |_| {
        vec![fails("TOO_BIG", &json!({"most": 9}), true)]
    });
    let result = no.result("tools/call", json!({"name": "calc__add"})).await;
    assert_eq!(result["isError"], true);
    assert_eq!(result["content"][0]["text"], "TOO_BIG: no");
    assert_eq!(
        result["_meta"]["fem/error"],
        json!({"code": "TOO_BIG", "data": {"most": 9}})
    );
}

#[tokio::test]
async fn a_servers_error_comes_as_it_was_with_its_status() {
    for (error, status) in [
        (
            json!({"code": -32042, "message": "m", "data": {"u": 1}}),
            200,
        ),
        (
            json!({"code": -32021, "message": "m", "data": {"requiredCapabilities": {"sampling": {}}}}),
            400,
        ),
        (
            json!({"code": -32602, "message": "m", "data": {"uri": "x"}}),
            200,
        ),
        (json!({"code": -32601, "message": "m"}), 404),
    ] {
        let told = error.clone();
        let place = place(vec![served("fs@acme", "fs.read", "read")], move |_| {
            vec![fails("MCP_ERROR", &told, true)]
        });
        let (code, said) = place
            .ask("tools/call", json!({"name": "fs__read"}))
            .await
            .one()
            .await;
        assert_eq!((code, &said["error"]), (status, &error));
    }
}

#[tokio::test]
async fn a_brokers_refusal_has_its_code_and_a_missing_capability_is_403() {
    for (code, status, retryable) in [
        ("DENIED", 403, false),
        ("BUSY", 200, true),
        ("UNAVAILABLE", 200, true),
    ] {
        let place = place(vec![served("fs@acme", "fs.read", "read")], move |_| {
            vec![fails(code, &Value::Null, false)]
        });
        let heard = place.ask("tools/call", json!({"name": "fs__read"})).await;
        let challenge = heard.headers().get("www-authenticate").cloned();
        let (told, said) = heard.one().await;
        assert_eq!(told, status, "{code}");
        assert_eq!(
            said["error"]["data"],
            json!({"fem": code, "retryable": retryable})
        );
        let expected = r#"Bearer error="insufficient_scope", scope="fs.read""#;
        assert_eq!(
            challenge.is_some_and(|said| said == expected),
            status == 403
        );
    }
}

/// The one table that most gateways fail: which status belongs to which error.
#[tokio::test]
async fn every_error_of_the_protocol_has_its_status() {
    let place = filesystem();
    let version = "io.modelcontextprotocol/protocolVersion";
    let capabilities = "io.modelcontextprotocol/clientCapabilities";
    let info = "io.modelcontextprotocol/clientInfo";
    let ask = |method: &str| modern(method, json!({"name": "fs__read"}));
    let without = |member: &str| {
        let mut body = ask("server/discover");
        body["params"]["_meta"]
            .as_object_mut()
            .unwrap()
            .remove(member);
        body
    };
    let bare = json!({"jsonrpc": "2.0", "id": 1, "method": "server/discover"});
    let mut unknown = ask("server/discover");
    unknown["params"]["_meta"][version] = json!("v999.0.0");
    let (now, v999) = ("2026-07-28", "v999.0.0");
    let discover = ("server/discover", "");
    let call = ("tools/call", "fs__read");
    for (why, body, header_version, (method, name), status, code) in [
        ("no _meta", bare, now, discover, 400, -32602),
        ("no version", without(version), now, discover, 400, -32602),
        (
            "no capabilities",
            without(capabilities),
            now,
            discover,
            400,
            -32602,
        ),
        ("no info", without(info), now, discover, 200, 0),
        (
            "another version in the header",
            ask("server/discover"),
            "2025-11-25",
            discover,
            400,
            -32020,
        ),
        (
            "no version in the header",
            ask("server/discover"),
            "",
            discover,
            400,
            -32020,
        ),
        (
            "an unknown version",
            unknown.clone(),
            v999,
            discover,
            400,
            -32022,
        ),
        (
            "an unknown version, another in the header",
            unknown,
            now,
            discover,
            400,
            -32020,
        ),
        (
            "no method in the header",
            ask("tools/call"),
            now,
            ("", "fs__read"),
            400,
            -32020,
        ),
        (
            "another method",
            ask("tools/call"),
            now,
            ("tools/list", "fs__read"),
            400,
            -32020,
        ),
        (
            "another case",
            ask("tools/call"),
            now,
            ("TOOLS/CALL", "fs__read"),
            400,
            -32020,
        ),
        (
            "no name",
            ask("tools/call"),
            now,
            ("tools/call", ""),
            400,
            -32020,
        ),
        (
            "another name",
            ask("tools/call"),
            now,
            ("tools/call", "calc__add"),
            400,
            -32020,
        ),
        (
            "spaces around a name",
            ask("tools/call"),
            now,
            ("tools/call", "  fs__read "),
            200,
            0,
        ),
        ("all well", ask("tools/call"), now, call, 200, 0),
        (
            "an unknown method",
            ask("a/b"),
            now,
            ("a/b", ""),
            404,
            -32601,
        ),
        (
            "initialize",
            ask("initialize"),
            now,
            ("initialize", ""),
            404,
            -32601,
        ),
        ("ping", ask("ping"), now, ("ping", ""), 404, -32601),
        (
            "a level",
            ask("logging/setLevel"),
            now,
            ("logging/setLevel", ""),
            404,
            -32601,
        ),
        (
            "subscribe",
            ask("resources/subscribe"),
            now,
            ("resources/subscribe", ""),
            404,
            -32601,
        ),
        (
            "unsubscribe",
            ask("resources/unsubscribe"),
            now,
            ("resources/unsubscribe", ""),
            404,
            -32601,
        ),
        (
            "tasks/list",
            ask("tasks/list"),
            now,
            ("tasks/list", ""),
            404,
            -32601,
        ),
        (
            "tasks/result",
            ask("tasks/result"),
            now,
            ("tasks/result", ""),
            404,
            -32601,
        ),
        (
            "prompts that nobody has",
            ask("prompts/list"),
            now,
            ("prompts/list", ""),
            404,
            -32601,
        ),
    ] {
        let all = [
            ("mcp-protocol-version", header_version),
            ("Mcp-Method", method),
            ("MCP-NAME", name),
        ];
        let headers: Vec<_> = all
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .collect();
        let (told, said) = place
            .send(place.post(&headers, body.to_string()))
            .await
            .one()
            .await;
        assert_eq!(told, status, "{why}: {said}");
        assert_eq!(
            said["error"]["code"].as_i64().unwrap_or_default(),
            code,
            "{why}: {said}"
        );
        assert_eq!(said["id"], 1, "{why}");
        if code == -32022 {
            assert_eq!(said["error"]["data"]["requested"], "v999.0.0");
            assert_eq!(said["error"]["data"]["supported"][0], "2026-07-28");
        }
    }
}

#[tokio::test]
async fn a_strangers_page_or_name_is_refused_before_anything_is_read() {
    let mut place = filesystem();
    place.host = "evil.example.com";
    let heard = place.ask("server/discover", json!({})).await;
    assert_eq!(heard.status(), 403);
    place.host = "here";
    let body = modern("server/discover", json!({})).to_string();
    let page = place.post(&[("origin", "http://evil.example.com")], body);
    assert_eq!(place.send(page).await.status(), 403);
}

#[tokio::test]
async fn what_a_server_says_comes_in_order_before_its_answer_under_the_callers_token() {
    let place = place(vec![served("fs@acme", "fs.read", "read")], |_| {
        let progress = |n: u64| json!({"progressToken": "another's", "progress": n, "x": n});
        let mut script: Script = (1..=20)
            .map(|n| note("notifications/progress", &progress(n)))
            .collect();
        script.insert(
            3,
            note(
                "notifications/message",
                &json!({"level": "info", "data": "l"}),
            ),
        );
        script.insert(4, note("notifications/cancelled", &json!({"requestId": 1})));
        script.insert(5, note("roots/list", &json!({})));
        script.push(answer(&json!({"content": []})));
        script
    });
    let params = json!({"name": "fs__read", "_meta": {"progressToken": "mine"}});
    let heard = place.ask("tools/call", params).await;
    assert!(heard.is_stream());
    assert_eq!(heard.headers()["x-accel-buffering"], "no");
    let all = heard.all().await;
    assert_eq!(
        all.len(),
        21,
        "no log message was wanted, nothing else is the server's to say"
    );
    for (n, said) in (1..=20).zip(&all) {
        assert_eq!(
            said["params"],
            json!({"progressToken": "mine", "progress": n, "x": n})
        );
    }
    assert_eq!(all[20]["result"]["resultType"], "complete");
    let level = json!({"io.modelcontextprotocol/logLevel": "info"});
    let heard = place
        .ask("tools/call", json!({"name": "fs__read", "_meta": level}))
        .await;
    let methods: Vec<Value> = heard
        .all()
        .await
        .iter()
        .map(|said| said["method"].clone())
        .collect();
    assert_eq!(json!(methods), json!(["notifications/message", null]));
}

#[tokio::test]
async fn progress_of_a_tool_of_fem_grows_whatever_it_says() {
    let place = place(vec![native("calc@acme", "calc.add")], |_| {
        let step = |done| {
            crate::fake::step(agent_sdk::Progress {
                done,
                ..Default::default()
            })
        };
        vec![
            step(Some(2.0)),
            step(Some(1.0)),
            step(None),
            answer(&json!(1)),
        ]
    });
    let params = json!({"name": "calc__add", "_meta": {"progressToken": 7}});
    let all = place.ask("tools/call", params).await.all().await;
    let done: Vec<f64> = all[..3]
        .iter()
        .map(|said| said["params"]["progress"].as_f64().unwrap())
        .collect();
    assert_eq!(done, [2.0, 3.0, 4.0]);
    assert_eq!(all[0]["params"]["progressToken"], 7);
}

#[tokio::test]
async fn closing_the_stream_cancels_the_call() {
    let place = place(vec![served("fs@acme", "fs.read", "read")], |_| {
        vec![note("notifications/progress", &json!({"progress": 1}))]
    });
    let params = json!({"name": "fs__read", "_meta": {"progressToken": 1}});
    let mut heard = place.ask("tools/call", params).await;
    assert!(heard.event().await.is_some());
    assert_eq!(place.fake.cancelled.load(Ordering::Relaxed), 0);
    drop(heard);
    assert_eq!(place.fake.cancelled.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_question_is_the_result_of_a_modern_call_as_the_server_put_it() {
    let asked = json!({
        "resultType": "input_required", "requestState": "s\u{e9}",
        "inputRequests": {
            "b": {"method": "elicitation/create", "params": {"message": "bob@acme: may I?"}}, "a": {},
        },
    });
    let tools = || vec![served("fs@acme", "fs.read", "read")];
    let told = asked.clone();
    let one = place(tools(), move |_| texts(&told)).of("fs@acme");
    let result = one.result("tools/call", json!({"name": "read"})).await;
    assert_eq!(result, asked);
    // Among many agents it says who asks, whatever the server says.
    let told = asked.clone();
    let many = place(tools(), move |_| texts(&told));
    let result = many.result("tools/call", json!({"name": "fs__read"})).await;
    let mut expected = asked;
    expected["inputRequests"]["b"]["params"]["message"] = json!("fs@acme asks: bob@acme: may I?");
    assert_eq!(result, expected);
}

#[tokio::test]
async fn a_parameter_that_a_schema_wants_in_a_header_is_compared() {
    let schema =
        json!({"type": "object", "properties": {"r": {"type": "string", "x-mcp-header": "R"}}});
    let mcp = json!({"method": "tools/call", "definition": {"name": "read"}});
    let tool =
        offered(&json!({"agent": "fs@acme", "name": "fs.read", "inputSchema": schema, "mcp": mcp}));
    let place = place(vec![tool], |_| texts(&json!({"content": []})));
    let body = modern(
        "tools/call",
        json!({"name": "fs__read", "arguments": {"r": "eu"}}),
    )
    .to_string();
    let base = [
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "fs__read"),
    ];
    for (said, status) in [(Some("eu"), 200), (Some("us"), 400), (None, 400)] {
        let mut headers = base.to_vec();
        headers.extend(said.map(|said| ("Mcp-Param-R", said)));
        let heard = place.send(place.post(&headers, body.clone())).await;
        assert_eq!(heard.status(), status, "{said:?}");
    }
}

#[tokio::test]
async fn an_agent_says_itself_what_it_is_and_only_what_is_answered_is_promised() {
    let said = json!({
        "supportedVersions": ["2025-11-25"], "instructions": "read me",
        "capabilities": {
            "tools": {}, "prompts": {"listChanged": true}, "resources": {"subscribe": true},
            "logging": {}, "extensions": {"io.modelcontextprotocol/tasks": {}, "x/y": {}}, "new": {},
        },
        "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "s", "version": "1"}},
    });
    let told = said.clone();
    let tools = vec![
        request("fs@acme", "server/discover"),
        request("fs@acme", "resources/list"),
    ];
    let place = place(tools, move |_| texts(&told)).of("fs@acme");
    let found = place.result("server/discover", json!({})).await;
    assert_eq!(found["instructions"], "read me");
    assert_eq!(found["_meta"], said["_meta"]);
    assert_eq!(found["supportedVersions"][0], "2026-07-28");
    let expected = json!({
        "tools": {"listChanged": true}, "resources": {}, "logging": {},
        "extensions": {"x/y": {}}, "new": {},
    });
    assert_eq!(found["capabilities"], expected);
}

#[tokio::test]
async fn resources_of_many_are_read_at_the_agent_that_listed_them() {
    let tools = vec![
        request("a@acme", "resources/list"),
        request("a@acme", "resources/read"),
        request("b@acme", "resources/list"),
        request("b@acme", "resources/read"),
    ];
    let place = place(tools, |call| match call.tool.as_str().ends_with("list") {
        true => texts(&json!({"resources": [{"uri": "file:///same", "name": "n"}]})),
        false => {
            texts(&json!({"contents": [{"uri": "file:///same", "text": call.to.to_string()}]}))
        }
    });
    let list = place.result("resources/list", json!({})).await;
    let uris: Vec<&str> = list["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["uri"].as_str().unwrap())
        .collect();
    assert_eq!(uris, ["fem:a@acme/file:///same", "fem:b@acme/file:///same"]);
    let read = place
        .result("resources/read", json!({"uri": uris[1]}))
        .await;
    assert_eq!(
        read["contents"],
        json!([{"uri": uris[1], "text": "b@acme"}])
    );
    let calls = place.fake.calls.lock().unwrap();
    let arguments: Value =
        serde_json::from_str(calls.last().unwrap().arguments.as_ref().unwrap().get()).unwrap();
    assert_eq!(arguments, json!({"uri": "file:///same"}));
}

#[tokio::test]
async fn prompts_of_many_have_public_names_and_go_back_under_their_own() {
    let tools = ["a@acme", "b@globex"].iter().flat_map(|agent| {
        [
            request(agent, "prompts/list"),
            request(agent, "prompts/get"),
            request(agent, "completion/complete"),
        ]
    });
    let place = place(tools.collect(), |call| {
        match call.tool.as_str().ends_with("list") {
            true => texts(&json!({"prompts": [{"name": "ask me", "arguments": []}]})),
            false => texts(&json!({"messages": []})),
        }
    });
    let list = place.result("prompts/list", json!({})).await;
    let (ours, theirs) = (
        "a__ask_me___ngubehjwwdi2",
        "globex_b__ask_me___y3mb33ekljez",
    );
    assert_eq!(list["prompts"][0]["name"], ours);
    assert_eq!(list["prompts"][0]["title"], "ask me");
    assert_eq!(list["prompts"][1]["name"], theirs);
    place.result("prompts/get", json!({"name": theirs})).await;
    let reference = json!({"ref": {"type": "ref/prompt", "name": ours}, "argument": {}});
    place.result("completion/complete", reference).await;
    let calls = place.fake.calls.lock().unwrap();
    let went: Vec<(String, &str)> = calls
        .iter()
        .filter(|call| !call.tool.as_str().ends_with("list"))
        .map(|call| (call.to.to_string(), call.arguments.as_ref().unwrap().get()))
        .collect();
    assert_eq!(went[0], ("b@globex".into(), r#"{"name":"ask me"}"#));
    assert_eq!(went[1].0, "a@acme");
    assert!(went[1].1.contains(r#""name":"ask me""#), "{}", went[1].1);
}

#[tokio::test]
async fn a_listener_hears_at_once_that_it_is_heard_and_then_only_what_it_wants() {
    let tools = vec![
        request("fs@acme", "subscriptions/listen"),
        request("fs@acme", "prompts/list"),
        native("fs@acme", "fs.a"),
    ];
    let place = place(tools, |_| {
        vec![
            note(
                "notifications/subscriptions/acknowledged",
                &json!({"notifications": {}}),
            ),
            note("notifications/prompts/list_changed", &json!({})),
            note("notifications/resources/list_changed", &json!({})),
            note("notifications/message", &json!({"level": "info"})),
        ]
    })
    .of("fs@acme");
    let wanted = json!({"notifications": {"toolsListChanged": true, "promptsListChanged": true, "resourcesListChanged": true}});
    let mut heard = place.ask("subscriptions/listen", wanted).await;
    let key = "io.modelcontextprotocol/subscriptionId";
    let first = heard.event().await.unwrap();
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
    assert_eq!(
        first["params"]["notifications"],
        json!({"toolsListChanged": true, "promptsListChanged": true})
    );
    assert_eq!(first["params"]["_meta"][key], 1);
    let prompts = heard.event().await.unwrap();
    assert_eq!(prompts["method"], "notifications/prompts/list_changed");
    assert_eq!(prompts["params"]["_meta"][key], 1);
    place.fake.changes.send_replace(());
    place.fake.comes(native("fs@acme", "fs.b"));
    let tools = heard.event().await.unwrap();
    assert_eq!(tools["method"], "notifications/tools/list_changed");
    assert_eq!(place.fake.cancelled.load(Ordering::Relaxed), 0);
    drop(heard);
    assert_eq!(place.fake.cancelled.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn whoever_listens_looks_at_changes_when_they_settled() {
    // A second is for ever here: nobody looks at what changes within one.
    let place = crate::fake::bounded(Bounds::default(), Vec::new(), |_| Vec::new());
    let wanted = json!({"notifications": {"toolsListChanged": true}});
    let mut heard = place.ask("subscriptions/listen", wanted).await;
    heard.event().await.unwrap();
    for n in 0..10 {
        place.fake.comes(native("fs@acme", &format!("fs.t{n}")));
        assert!(heard.event().now_or_never().is_none());
    }
    assert_eq!(place.fake.looks.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn all_streams_end_when_the_gateway_does() {
    let place = place(Vec::new(), |_| Vec::new());
    let wanted = || place.ask("subscriptions/listen", json!({"notifications": {}}));
    let mut before = wanted().await;
    before.event().await.unwrap();
    place.gateway.end_streams();
    assert!(before.event().await.is_none());
    let mut after = wanted().await;
    after.event().await.unwrap();
    assert!(after.event().await.is_none());
}

#[tokio::test]
async fn tasks_are_of_one_agent_and_a_client_of_many_is_not_offered_them() {
    let tools = || {
        vec![
            served("fs@acme", "fs.read", "read"),
            request("fs@acme", "tasks/get"),
        ]
    };
    let many = place(tools(), |_| texts(&json!({"content": []})));
    let capabilities = json!({"extensions": {"io.modelcontextprotocol/tasks": {}, "x/y": {}}});
    let meta = json!({"io.modelcontextprotocol/clientCapabilities": capabilities});
    many.result("tools/call", json!({"name": "fs__read", "_meta": meta}))
        .await;
    let seen: Value = serde_json::from_str(
        many.fake.calls.lock().unwrap()[0]
            .mcp
            .as_ref()
            .unwrap()
            .get(),
    )
    .unwrap();
    let seen = &seen["_meta"]["io.modelcontextprotocol/clientCapabilities"]["extensions"];
    assert_eq!(*seen, json!({"x/y": {}}));
    assert_eq!(
        many.ask("tasks/get", json!({"taskId": "t"})).await.status(),
        404
    );
    let one = place(tools(), |_| {
        texts(&json!({"taskId": "t", "status": "working"}))
    })
    .of("fs@acme");
    assert_eq!(
        one.result("tasks/get", json!({"taskId": "t"})).await["status"],
        "working"
    );
}

#[tokio::test]
async fn bounds_are_refused_in_so_many_words() {
    let bounds = Bounds {
        message_bytes: 1_000,
        streams_per_caller: 1,
        ..Default::default()
    };
    let place = crate::fake::bounded(bounds, vec![native("a@acme", "a.t")], |_| Vec::new());
    let long = place.post(&[], "x".repeat(1_001));
    assert_eq!(place.send(long).await.status(), 413);
    let listen = || {
        place.ask(
            "subscriptions/listen",
            json!({"notifications": {"toolsListChanged": true}}),
        )
    };
    let first = listen().await;
    assert!(first.is_stream());
    let (status, said) = listen().await.one().await;
    assert_eq!(
        (status, &said["error"]["data"]["fem"]),
        (429, &json!("BUSY"))
    );
    drop(first);
    assert!(listen().await.is_stream());
}
