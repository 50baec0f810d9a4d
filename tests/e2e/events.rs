//! Topics: who may emit, who may hear, and what a slow subscriber learns.

use proto_spec::message::{Ack, Event};
use proto_spec::{Code, Kind};
use serde_json::{Value, json};
use tests::lab::{Actor, Lab, hears_refusal, to_broker};
use tests::wire::{Heard, Socket};

use crate::refused;

async fn subscribe(lab: &Lab, actor: &Actor, socket: &mut Socket, topics: Value) -> Ack {
    let body = json!({ "topics": topics });
    let sealed = actor
        .seal(Kind::Subscribe, &to_broker().unwrap(), lab.now(), &body)
        .unwrap();
    socket.send(sealed.bytes).await.unwrap();
    socket
        .hear()
        .await
        .unwrap()
        .said()
        .unwrap()
        .read_body()
        .unwrap()
}

async fn emit(lab: &Lab, actor: &Actor, topic: &str, data: &Value) -> tests::wire::Reply {
    let to = format!("topic:acme/{topic}").parse().unwrap();
    lab.post(
        actor
            .seal(Kind::EmitEvent, &to, lab.now(), &json!({"data": data}))
            .unwrap()
            .bytes,
    )
    .await
    .unwrap()
}

async fn hears(socket: &mut Socket, data: &str) {
    let envelope = socket.hear().await.unwrap().delivered().unwrap();
    assert_eq!(envelope.speaker().to_string(), "emitter@acme");
    assert!(
        envelope.body().contains(&format!("\"data\":{data}")),
        "once each: {}",
        envelope.body()
    );
}

#[tokio::test]
async fn an_event_reaches_those_who_may_hear_it_as_its_emitter_signed_it() {
    let lab = Lab::start().await.unwrap();
    let emitter = lab
        .agent("emitter", 2, &["event.emit.build.*"])
        .await
        .unwrap();
    let listener = lab
        .agent("listener", 3, &["event.subscribe.build.*"])
        .await
        .unwrap();
    let mut all = lab.attach(&listener).await.unwrap();
    let mut one = lab.attach(&listener).await.unwrap();
    subscribe(&lab, &listener, &mut all, json!(["build.*", "build.done"])).await;
    subscribe(&lab, &listener, &mut one, json!(["build.failed"])).await;
    assert_eq!(
        emit(&lab, &emitter, "build.done", &json!(1)).await.status,
        200
    );
    assert_eq!(
        emit(&lab, &emitter, "build.failed", &json!(2)).await.status,
        200
    );
    for expected in ["1", "2"] {
        hears(&mut all, expected).await;
    }
    hears(&mut one, "2").await;
    assert_eq!(
        refused(&emit(&lab, &emitter, "deploy.done", &json!(3)).await),
        Code::Denied
    );
    assert_eq!(
        refused(&emit(&lab, &listener, "build.done", &json!(3)).await),
        Code::Denied
    );
}

#[tokio::test]
async fn subscribing_needs_the_capability_for_the_whole_pattern() {
    let lab = Lab::start().await.unwrap();
    let listener = lab
        .agent("listener", 3, &["event.subscribe.build.*", "*"])
        .await
        .unwrap();
    let mut socket = lab.attach(&listener).await.unwrap();
    for topics in [
        json!(["*"]),
        json!(["build.*", "deploy.done"]),
        json!(["build"]),
    ] {
        let body = json!({ "topics": topics });
        let sealed = listener
            .seal(Kind::Subscribe, &to_broker().unwrap(), lab.now(), &body)
            .unwrap();
        socket.send(sealed.bytes).await.unwrap();
        assert_eq!(
            hears_refusal(&mut socket).await.unwrap(),
            Code::Denied,
            "{topics}"
        );
    }
}

#[tokio::test]
async fn a_revoked_right_to_hear_ends_with_the_next_event() {
    let lab = Lab::start().await.unwrap();
    let emitter = lab.agent("emitter", 2, &["event.emit.*"]).await.unwrap();
    let listener = lab.agent("listener", 3, &[]).await.unwrap();
    let body = json!({"agent": "listener", "capabilities": ["event.subscribe.*"], "checks": [], "record": true});
    let Ack::Issued { id, .. } = lab
        .ask(&lab.admin, Kind::AdminTokenIssue, &body)
        .await
        .unwrap()
    else {
        panic!()
    };
    let mut socket = lab.attach(&listener).await.unwrap();
    subscribe(&lab, &listener, &mut socket, json!(["build.*"])).await;
    emit(&lab, &emitter, "build.done", &json!(1)).await;
    socket.hear().await.unwrap().delivered().unwrap();
    lab.ask(&lab.admin, Kind::Revoke, &json!({"ids": [id]}))
        .await
        .unwrap();
    emit(&lab, &emitter, "build.done", &json!(2)).await;
    // The next thing it hears is the answer to its own question, and nothing of the event.
    let query = listener
        .seal(
            Kind::DiscoverTools,
            &to_broker().unwrap(),
            lab.now(),
            &json!({}),
        )
        .unwrap();
    socket.send(query.bytes).await.unwrap();
    assert_eq!(
        socket.hear().await.unwrap().said().unwrap().kind(),
        Kind::ToolsDiscovered
    );
}

#[tokio::test]
async fn a_slow_subscriber_is_told_how_many_events_it_missed() {
    let lab = Lab::with_limits("outbox_max = 8\ncalls_per_session_max = 8")
        .await
        .unwrap();
    let emitter = lab.agent("emitter", 2, &["event.emit.*"]).await.unwrap();
    let listener = lab
        .agent("listener", 3, &["event.subscribe.*"])
        .await
        .unwrap();
    let mut slow = lab.attach(&listener).await.unwrap();
    subscribe(&lab, &listener, &mut slow, json!(["x.*"])).await;
    // Big enough that neither the sockets' buffers nor the queue hold them all while it does not read.
    let mut from = lab.attach(&emitter).await.unwrap();
    let big = "x".repeat(1 << 20);
    let to = "topic:acme/x.y".parse().unwrap();
    for _ in 0..40 {
        let sealed = emitter
            .seal(Kind::EmitEvent, &to, lab.now(), &json!({"data": big}))
            .unwrap();
        from.send(sealed.bytes).await.unwrap();
        assert_eq!(
            from.hear().await.unwrap().said().unwrap().kind(),
            Kind::Ack,
            "the emitter is not slowed down"
        );
    }
    let (mut heard, mut missed) = (0, 0);
    while heard + missed < 40 {
        match slow.hear().await.unwrap() {
            Heard::Delivered { .. } => heard += 1,
            Heard::Said(envelope) => {
                assert_eq!(envelope.kind(), Kind::Event);
                missed += envelope.read_body::<Event>().unwrap().missed;
            }
            Heard::Closed => panic!("a slow subscriber stays attached"),
        }
    }
    assert!(
        missed > 0 && heard + missed == 40,
        "{heard} heard, {missed} missed"
    );
}
