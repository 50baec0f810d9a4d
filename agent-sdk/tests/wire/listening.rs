//! Events.

use std::time::Duration;

use agent_sdk::proto_spec::frame::Vouching;
use agent_sdk::proto_spec::message::{self, Topics};
use agent_sdk::proto_spec::{Envelope, Refusal, Sealed};
use agent_sdk::{Ack, Agent, Audience, Code, Event, Kind, Missed, Subscription};
use serde_json::json;

use crate::clock::TestClock;
use crate::fake::{FakeBroker, Peer, Person, code, credential_of, soon};

struct Scene {
    broker: FakeBroker,
    peer: Peer,
    agent: Agent,
    ci: Person,
    clock: std::sync::Arc<TestClock>,
}

async fn take_subscription(peer: &mut Peer) -> Envelope {
    let asked = peer.receive().await;
    let Topics { topics } = asked.read_body().unwrap();
    peer.ack(&asked, &Ack::Subscribed { topics }).await;
    asked
}

impl Scene {
    async fn new() -> (Self, Subscription) {
        let mut broker = FakeBroker::start().await;
        let clock = TestClock::new();
        let config = broker
            .config("me@acme", 10)
            .clock(clock.clone())
            .build()
            .unwrap();
        let agent = Agent::new(config).unwrap();
        let subscribing = agent.clone();
        let subscribing = tokio::spawn(async move { subscribing.subscribe(["build.*"]).await });
        let mut peer = broker.attached().await;
        assert_eq!(
            take_subscription(&mut peer).await.body(),
            r#"{"topics":["build.*"]}"#
        );
        let events = subscribing.await.unwrap().unwrap();
        (
            Self {
                broker,
                peer,
                agent,
                ci: Person::new("ci@acme", 20),
                clock,
            },
            events,
        )
    }

    fn event(&self, topic: &str, n: u32) -> Sealed {
        let topic: Audience = format!("topic:acme/{topic}").parse().unwrap();
        self.ci
            .say(Kind::EmitEvent, &topic, None, &json!({"data": n}))
    }

    async fn emit(&mut self, topic: &str, n: u32) {
        let event = self.event(topic, n);
        self.peer.deliver(&credential_of(&self.ci), &event).await;
    }
}

async fn number(events: &mut Subscription) -> u32 {
    match soon("an event", events.next()).await.unwrap().unwrap() {
        Event::Emitted(emitted) => emitted.read().unwrap(),
        Event::Missed(missed) => panic!("{missed:?}"),
    }
}

async fn gap(events: &mut Subscription) -> Missed {
    match soon("a gap", events.next()).await.unwrap().unwrap() {
        Event::Missed(missed) => missed,
        Event::Emitted(emitted) => panic!("{emitted:?}"),
    }
}

#[tokio::test]
async fn an_event_is_heard_as_its_emitter_signed_it() {
    let (mut scene, mut events) = Scene::new().await;
    scene.emit("build.done", 7).await;
    match soon("an event", events.next()).await.unwrap().unwrap() {
        Event::Emitted(event) => {
            assert_eq!(
                (event.from, event.topic.as_str()),
                (scene.ci.id(), "build.done")
            );
            assert_eq!(event.data.get(), "7");
        }
        Event::Missed(missed) => panic!("{missed:?}"),
    }
}

#[tokio::test]
async fn an_event_that_is_forged_replayed_or_not_asked_for_is_not_heard() {
    let (mut scene, mut events) = Scene::new().await;
    let once = scene.event("build.done", 1);
    scene.peer.deliver(&credential_of(&scene.ci), &once).await;
    scene.peer.deliver(&credential_of(&scene.ci), &once).await;
    let forged = Person::new("ci@acme", 30);
    let topic: Audience = "topic:acme/build.done".parse().unwrap();
    let event = forged.say(Kind::EmitEvent, &topic, None, &json!({"data": 666}));
    scene.peer.deliver(&credential_of(&scene.ci), &event).await;
    let elsewhere: Audience = "topic:globex/build.done".parse().unwrap();
    let event = scene
        .ci
        .say(Kind::EmitEvent, &elsewhere, None, &json!({"data": 666}));
    scene.peer.deliver(&credential_of(&scene.ci), &event).await;
    let word = Person::new("broker@acme", 99).say(
        Kind::Credential,
        scene.peer.agent(),
        None,
        &credential_of(&forged),
    );
    let event = forged.say(Kind::EmitEvent, &topic, None, &json!({"data": 666}));
    scene
        .peer
        .frame(Vouching::Full(word.bytes), event.bytes)
        .await;
    scene.emit("deploy.done", 666).await;
    scene.emit("build.done", 2).await;
    assert_eq!(
        (number(&mut events).await, number(&mut events).await),
        (1, 2)
    );
}

#[tokio::test]
async fn a_slow_listener_learns_how_many_events_it_missed() {
    let (mut scene, mut events) = Scene::new().await;
    for n in 0..300 {
        scene.emit("build.done", n).await;
    }
    let word = scene.broker.voice.say(
        Kind::Event,
        scene.peer.agent(),
        None,
        &message::Event { missed: 5 },
    );
    scene.peer.send(word.bytes).await;
    // All of it has been read when the answer to this is there.
    let agent = scene.agent.clone();
    let second = tokio::spawn(async move { agent.subscribe(["other"]).await });
    take_subscription(&mut scene.peer).await;
    let _second = second.await.unwrap().unwrap();
    for n in 0..256 {
        assert_eq!(number(&mut events).await, n);
    }
    assert_eq!(
        gap(&mut events).await,
        Missed {
            count: 44 + 5,
            reconnected: false
        }
    );
    scene.emit("build.done", 999).await;
    assert_eq!(number(&mut events).await, 999);
}

#[tokio::test]
async fn a_subscription_lives_across_a_lost_session_and_says_so() {
    let (mut scene, mut events) = Scene::new().await;
    drop(scene.peer);
    scene.clock.somebody_sleeps().await;
    scene.clock.advance(Duration::from_secs(1));
    scene.peer = scene.broker.attached().await;
    take_subscription(&mut scene.peer).await;
    assert_eq!(
        gap(&mut events).await,
        Missed {
            count: 0,
            reconnected: true
        }
    );
    scene.emit("build.done", 3).await;
    assert_eq!(number(&mut events).await, 3);
}

#[tokio::test]
async fn a_subscription_that_is_dropped_is_taken_back() {
    let (mut scene, events) = Scene::new().await;
    drop(events);
    let back = scene.peer.receive().await;
    assert_eq!(
        (back.kind(), back.body()),
        (Kind::Unsubscribe, r#"{"topics":["build.*"]}"#)
    );
}

#[tokio::test]
async fn a_refused_subscription_is_an_error() {
    let (mut scene, _events) = Scene::new().await;
    let agent = scene.agent.clone();
    let subscribing = tokio::spawn(async move { agent.subscribe(["secret"]).await.map(drop) });
    let asked = scene.peer.receive().await;
    scene
        .peer
        .refuse(&asked, &Refusal::Denied("x".into()))
        .await;
    assert_eq!(code(subscribing.await.unwrap()), Some(Code::Denied));
}
