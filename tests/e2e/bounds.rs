//! Every bound has an answer: what one sender takes is not missing for another.

use std::time::Duration;

use proto_spec::admission::Authority as _;
use proto_spec::message::{AcceptKey, Ack, OfferTools, Tool};
use proto_spec::{Code, Kind, SigningKey};
use serde_json::{Value, json};
use tests::lab::{Actor, Lab, code_of, hears_refusal, to_broker, tool};
use tests::wire::{Heard, PATIENCE};
use tokio::io::AsyncWriteExt as _;

use crate::refused;

#[tokio::test]
async fn request_bodies_share_one_budget_of_memory() {
    let limits = "envelope_bytes_max = 1048576\nbodies_bytes_max = 1048576";
    let lab = Lab::with_limits(limits).await.unwrap();
    let answer = async || refused(&lab.post(b"{}".as_slice()).await.unwrap());
    assert_eq!(answer().await, Code::Malformed);
    let mut greedy = lab.line.connect().await.unwrap();
    let head = "POST /fem HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1048576\r\n\r\n{";
    greedy.write_all(head.as_bytes()).await.unwrap();
    let taken = async { while answer().await != Code::Busy {} };
    tokio::time::timeout(PATIENCE, taken).await.unwrap();
    drop(greedy);
    let given_back = async { while answer().await != Code::Malformed {} };
    tokio::time::timeout(PATIENCE, given_back).await.unwrap();
}

#[tokio::test]
async fn a_bearers_request_bodies_take_of_the_same_budget() {
    let limits = "envelope_bytes_max = 1048576\nbodies_bytes_max = 1048576";
    let lab = Lab::with_limits(limits).await.unwrap();
    let mcp = "[mcp]\nresource = \"https://localhost/mcp\"\nbearer_ok = [\"fs.*\"]";
    let lab = lab.reconfigured(mcp).await.unwrap();
    let (name, capabilities) = ("desk", ["fs.*"]);
    let keep = json!({"name": name, "capabilities": capabilities});
    lab.ask(&lab.admin, Kind::AdminBearerKeep, &keep)
        .await
        .unwrap();
    let issue = json!({"agent": name, "capabilities": capabilities});
    let issued = lab.ask(&lab.admin, Kind::AdminBearerIssue, &issue).await;
    let Ok(Ack::Issued {
        token: Some(token), ..
    }) = issued
    else {
        panic!("{issued:?}")
    };
    let mut greedy = lab.line.connect().await.unwrap();
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: 1048576\r\n\r\n{{"
    );
    greedy.write_all(head.as_bytes()).await.unwrap();
    let answer = async || refused(&lab.post(b"{}".as_slice()).await.unwrap());
    let taken = async { while answer().await != Code::Busy {} };
    tokio::time::timeout(PATIENCE, taken).await.unwrap();
    drop(greedy);
    let given_back = async { while answer().await != Code::Malformed {} };
    tokio::time::timeout(PATIENCE, given_back).await.unwrap();
}

#[tokio::test]
async fn a_caller_has_a_share_of_calls_by_post() {
    let lab = Lab::with_limits("calls_per_session_max = 2").await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let greedy = lab.agent("greedy", 3, &["fs.*"]).await.unwrap();
    let other = lab.agent("other", 4, &["fs.*"]).await.unwrap();
    // Two instances, so that the provider's own share is not what ends first.
    let mut providers = [
        lab.provide(&fs, &["fs.read"]).await.unwrap(),
        lab.provide(&fs, &["fs.read"]).await.unwrap(),
    ];
    let call = |actor: &Actor| actor.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
    let post = |actor: &Actor| {
        let (line, bytes) = (lab.line.clone(), call(actor).bytes);
        tokio::spawn(async move { line.post("/fem", bytes).await.unwrap() })
    };
    let mut waiting = Vec::new();
    for provider in &mut providers {
        let answered = post(&greedy);
        waiting.push((
            answered,
            provider.hear().await.unwrap().delivered().unwrap(),
        ));
    }
    let beyond = lab.post(call(&greedy).bytes).await.unwrap();
    assert_eq!(refused(&beyond), Code::Busy);
    let others = post(&other);
    let [first, second] = &mut providers;
    let delivered = tokio::select! {
        heard = first.hear() => heard.unwrap().delivered().unwrap(),
        heard = second.hear() => heard.unwrap().delivered().unwrap(),
    };
    let said = delivered.speaker().agent().unwrap().clone();
    assert_eq!(said, other.id);
    drop(others);
    for ((answered, delivered), provider) in waiting.into_iter().zip(&mut providers) {
        let result = lab.result(&fs, &delivered, &json!(1)).unwrap();
        provider.send(result.bytes).await.unwrap();
        assert_eq!(answered.await.unwrap().status, 200);
    }
    let again = post(&greedy);
    let [first, second] = &mut providers;
    // The other caller gave up, which its provider may hear of first.
    let served = async {
        loop {
            let heard =
                tokio::select! { heard = first.hear() => heard, heard = second.hear() => heard };
            if heard
                .unwrap()
                .delivered()
                .is_ok_and(|call| call.kind() == Kind::ToolCall)
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, served).await.unwrap();
    drop(again);
}

#[tokio::test]
async fn an_agent_rotates_its_key_so_often_a_minute_and_no_more() {
    let lab = Lab::start().await.unwrap();
    let mut actor = lab.agent("spinner", 2, &[]).await.unwrap();
    let mut refusals = Vec::new();
    for seed in 100..165_u8 {
        let next = SigningKey::from_seed(&[seed; 32]);
        let accept = AcceptKey {
            pubkey: next.public(),
            follows: actor.key.public(),
        };
        let successor = Actor {
            key: next,
            id: actor.id.clone(),
        };
        let accept = successor
            .seal(Kind::AcceptKey, &to_broker().unwrap(), lab.now(), &accept)
            .unwrap();
        let body = json!({"accept": std::str::from_utf8(&accept.bytes).unwrap()});
        match lab.ask(&actor, Kind::RotateKey, &body).await {
            Ok(Ack::Rotated { .. }) => actor = successor,
            Ok(other) => panic!("{other:?}"),
            Err(error) => refusals.push(error.to_string()),
        }
    }
    assert_eq!(refusals.len(), 5);
    assert!(
        refusals.iter().all(|why| why.contains("BUSY")),
        "{refusals:?}"
    );
    lab.broker.core().clock.advance(Duration::from_secs(61));
    let accept = AcceptKey {
        pubkey: SigningKey::from_seed(&[200; 32]).public(),
        follows: actor.key.public(),
    };
    let successor = Actor::new("spinner", 200).unwrap();
    let accept = successor
        .seal(Kind::AcceptKey, &to_broker().unwrap(), lab.now(), &accept)
        .unwrap();
    let body = json!({"accept": std::str::from_utf8(&accept.bytes).unwrap()});
    lab.ask(&actor, Kind::RotateKey, &body).await.unwrap();
}

#[tokio::test]
async fn what_was_ordered_under_a_key_is_not_done_once_that_key_is_dead() {
    let lab = Lab::start().await.unwrap();
    let second = Actor::new("second", 2).unwrap();
    lab.register(&second).await.unwrap();
    let body = json!({
        "name": "second", "key": second.key.public(), "capabilities": ["admin.*"],
        "admin": {"grantable": ["*"], "names": ["*"]},
    });
    lab.ask(&lab.admin, Kind::AdminAgentApprove, &body)
        .await
        .unwrap();
    let target = lab.agent("target", 3, &[]).await.unwrap();
    let body = json!({"agent": target.id.name(), "capabilities": ["fs.read"], "record": true});
    let order = second
        .seal(
            Kind::AdminTokenIssue,
            &to_broker().unwrap(),
            lab.now(),
            &body,
        )
        .unwrap();
    // Admitted and authorised; then, while it waits, its admin is revoked.
    let core = lab.broker.core();
    let door = broker::pipeline::Door::Post {
        network: 1,
        address: "192.0.2.1".into(),
    };
    let Ok(broker::pipeline::Step::Order(order, agent, id)) = core.handle(order.bytes, &door).await
    else {
        panic!()
    };
    lab.ask(
        &lab.admin,
        Kind::AdminAgentRevoke,
        &json!({"name": "second"}),
    )
    .await
    .unwrap();
    let answer = core.settle(order, agent, id).await;
    let envelope = proto_spec::Envelope::parse(answer.envelope, 1 << 20).unwrap();
    assert_eq!(code_of(&envelope).unwrap(), Code::NotAuthentic);
    let standing = broker::pipeline::Standing::of(&core.state, core.clock.now());
    assert!(
        standing.granted(&target.id).is_empty(),
        "nothing was issued"
    );
}

#[tokio::test]
async fn one_address_has_a_share_of_the_pending_requests() {
    let lab = Lab::start().await.unwrap();
    let knock = async |n: u8| {
        lab.register(&Actor::new(&format!("new-{n}"), n).unwrap())
            .await
    };
    for n in 10..138 {
        assert!(matches!(knock(n).await.unwrap(), Ack::Pending));
    }
    assert!(knock(138).await.unwrap_err().to_string().contains("BUSY"));
    assert!(
        matches!(knock(10).await.unwrap(), Ack::Pending),
        "asking again takes no more"
    );
}

#[tokio::test]
async fn an_offer_is_bounded_and_a_page_of_discovery_ends_where_it_grows_large() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &["fs.*"]).await.unwrap();
    let described = |name: String, bytes: usize| {
        let mut tool = tool(&name).unwrap();
        tool.description = Some("x".repeat(bytes));
        tool
    };
    let offer = async |actor: &Actor, socket: &mut tests::wire::Socket, tools: Vec<Tool>| {
        let body = OfferTools { tools };
        let sealed = actor.seal(Kind::OfferTools, &to_broker().unwrap(), lab.now(), &body);
        socket.send(sealed.unwrap().bytes).await.unwrap();
        socket.hear().await.unwrap().said().unwrap().kind()
    };
    let mut session = lab.attach(&fs).await.unwrap();
    let too_large = vec![described("fs.big".into(), 2 << 20)];
    assert_eq!(offer(&fs, &mut session, too_large).await, Kind::Error);
    let tools = (0..8)
        .map(|n| described(format!("fs.t{n}"), 100_000))
        .collect();
    assert_eq!(offer(&fs, &mut session, tools).await, Kind::Ack);
    let more = lab.agent("more", 4, &[]).await.unwrap();
    let mut second = lab.attach(&more).await.unwrap();
    let tools = (0..8)
        .map(|n| described(format!("more.t{n}"), 100_000))
        .collect();
    assert_eq!(offer(&more, &mut second, tools).await, Kind::Ack);
    lab.approve(&caller, &["fs.*", "more.*"]).await.unwrap();
    let (mut after, mut pages) = (Value::Null, Vec::new());
    loop {
        let query = match &after {
            Value::Null => json!({}),
            after => json!({"after": after}),
        };
        let asked = caller.seal(
            Kind::DiscoverTools,
            &to_broker().unwrap(),
            lab.now(),
            &query,
        );
        let reply = lab.post(asked.unwrap().bytes).await.unwrap();
        let page: Value = serde_json::from_str(reply.envelope().unwrap().body()).unwrap();
        pages.push(page["tools"].as_array().unwrap().len());
        after = page["next"].clone();
        if after.is_null() {
            break;
        }
    }
    assert_eq!(pages, [10, 6]);
}

#[tokio::test]
async fn an_admin_lets_no_agent_offer_what_lies_beyond_its_own_scope() {
    let lab = Lab::start().await.unwrap();
    let limited = Actor::new("builder-admin", 2).unwrap();
    lab.register(&limited).await.unwrap();
    let body = json!({
        "name": "builder-admin", "key": limited.key.public(), "capabilities": ["admin.*"],
        "admin": {"grantable": ["code.*"], "names": ["build-*"]},
    });
    lab.ask(&lab.admin, Kind::AdminAgentApprove, &body)
        .await
        .unwrap();
    let mine = Actor::new("build-1", 3).unwrap();
    lab.register(&mine).await.unwrap();
    let approve = |prefix: &str| json!({"name": "build-1", "key": mine.key.public(), "capabilities": [], "prefixes": [prefix]});
    let enrol =
        |prefix: &str| json!({"name": "build-*", "ceiling": ["code.*"], "prefixes": [prefix]});
    for (prefix, is_permitted) in [("fs.*", false), ("code.*", true), ("code.fast.*", true)] {
        let approved = lab
            .ask(&limited, Kind::AdminAgentApprove, &approve(prefix))
            .await;
        assert_eq!(approved.is_ok(), is_permitted, "{prefix}");
        let issued = lab
            .ask(&limited, Kind::AdminEnrolIssue, &enrol(prefix))
            .await;
        assert_eq!(issued.is_ok(), is_permitted, "{prefix}");
    }
    let own = approve("build-1.*");
    lab.ask(&limited, Kind::AdminAgentApprove, &own)
        .await
        .unwrap();
}

#[tokio::test]
async fn before_it_is_attached_a_connection_takes_what_an_attach_needs() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let (mut stranger, _) = lab.line.websocket().await.unwrap();
    stranger.hear().await.unwrap().said().unwrap();
    // The rest may find the connection closed.
    let _ = stranger.send(vec![b' '; 1 << 20]).await;
    assert!(
        matches!(stranger.hear().await.unwrap(), Heard::Closed),
        "nothing of it was looked at"
    );
    // Once attached it takes an envelope.
    let mut session = lab.attach(&fs).await.unwrap();
    session.send(vec![b' '; 1 << 20]).await.unwrap();
    assert_eq!(hears_refusal(&mut session).await.unwrap(), Code::Malformed);
}
