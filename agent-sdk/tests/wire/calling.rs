//! Calls over a session, from their caller's side.

use std::time::Duration;

use agent_sdk::proto_spec::frame::Vouching;
use agent_sdk::proto_spec::message::{Credential, ToolCall};
use agent_sdk::proto_spec::{Envelope, Refusal, Sealed};
use agent_sdk::{Agent, CallHandle, CallOptions, Code, Digest, Error, Kind, Unsigned};
use serde_json::json;

use crate::clock::TestClock;
use crate::fake::{
    FakeBroker, Peer, Person, code, credential_of, json as raw, now, signed_by, soon,
};

struct Scene {
    broker: FakeBroker,
    peer: Peer,
    agent: Agent,
    fs: Person,
    clock: std::sync::Arc<TestClock>,
}

impl Scene {
    async fn new() -> Self {
        let mut broker = FakeBroker::start().await;
        let clock = TestClock::new();
        let config = broker
            .config("me@acme", 10)
            .clock(clock.clone())
            .build()
            .unwrap();
        let agent = Agent::new(config).unwrap();
        let attaching = agent.clone();
        let attaching = tokio::spawn(async move { attaching.attach().await });
        let peer = broker.attached().await;
        attaching.await.unwrap().unwrap();
        Self {
            broker,
            peer,
            agent,
            fs: Person::new("fs@acme", 20),
            clock,
        }
    }

    async fn call(&mut self) -> (CallHandle, Envelope) {
        let options = CallOptions {
            progress: true,
            ..CallOptions::default()
        };
        let arguments = json!({"path": "/"});
        let call = self
            .agent
            .call_with("fs@acme", "fs.count", &arguments, options);
        let handle = call.await.unwrap();
        let envelope = self.peer.receive().await;
        assert_eq!(handle.id(), Digest::of(&envelope.signed_bytes()));
        (handle, envelope)
    }

    fn answers(&self, call: Digest, result: impl std::fmt::Display) -> Sealed {
        let body = raw(&format!(r#"{{"result":{result}}}"#));
        self.fs
            .say(Kind::ToolResult, self.peer.agent(), Some(call), &body)
    }
}

#[tokio::test]
async fn a_call_is_signed_once_and_answered_by_its_provider() {
    let mut scene = Scene::new().await;
    let (handle, call) = scene.call().await;
    assert!(signed_by(&call, 10));
    assert_eq!(call.to().unwrap().to_string(), "fs@acme");
    let body: ToolCall<'_> = call.read_body().unwrap();
    assert_eq!((&*body.tool, body.progress), ("fs.count", true));
    let answer = scene.answers(handle.id(), 7);
    scene.peer.deliver(&credential_of(&scene.fs), &answer).await;
    assert_eq!(handle.result::<u32>().await.unwrap(), 7);
}

#[tokio::test]
async fn a_tool_that_answers_nothing_has_answered() {
    let mut scene = Scene::new().await;
    for _ in 0..2 {
        let (handle, _) = scene.call().await;
        let answer = scene.answers(handle.id(), "null");
        scene.peer.deliver(&credential_of(&scene.fs), &answer).await;
        handle.result::<()>().await.unwrap();
    }
}

/// None of these ends the call; the honest answer that follows does.
#[tokio::test]
async fn a_caller_takes_a_result_only_from_the_agent_it_called() {
    let mut scene = Scene::new().await;
    let thief = Person::new("thief@acme", 30);
    let impostor = Person::new("fs@acme", 30);
    let stranger = Person::new("fs@globex", 20);
    let other_caller = Person::new("other@acme", 40);
    let (handle, call) = scene.call().await;
    let (id, me) = (handle.id(), scene.peer.agent().clone());
    let lie = raw(r#"{"result":666}"#);
    let fs = credential_of(&scene.fs);

    // Another agent, truly certified, answers.
    let by_thief = thief.say(Kind::ToolResult, &me, Some(id), &lie);
    scene.peer.deliver(&credential_of(&thief), &by_thief).await;
    // Somebody else's key under the provider's name.
    let by_impostor = impostor.say(Kind::ToolResult, &me, Some(id), &lie);
    scene.peer.deliver(&fs, &by_impostor).await;
    // The provider's key under another name.
    scene
        .peer
        .deliver(&fs, &stranger.say(Kind::ToolResult, &me, Some(id), &lie))
        .await;
    // A credential that somebody else signed for the impostor's key.
    let forged = Person::new("broker@acme", 99).say(
        Kind::Credential,
        &me,
        None,
        &Credential {
            key: impostor.key.public(),
            ..fs.clone()
        },
    );
    let vouching = Vouching::Full(forged.bytes);
    scene.peer.frame(vouching, by_impostor.bytes.clone()).await;
    // A credential of the past.
    let expired = Credential {
        expires: now().earlier(Duration::from_secs(3_600)),
        ..fs.clone()
    };
    scene.peer.deliver(&expired, &scene.answers(id, 666)).await;
    // A credential for another agent to rely on.
    let for_other = scene.broker.credential(&other_caller.to(), &fs);
    let vouching = Vouching::Full(for_other.bytes);
    scene
        .peer
        .frame(vouching, scene.answers(id, 666).bytes)
        .await;
    // The provider's own answer, to another call or to another caller.
    let elsewhere = scene
        .fs
        .say(Kind::ToolResult, &me, Some(Digest([3; 32])), &lie);
    scene.peer.deliver(&fs, &elsewhere).await;
    let to_other = scene
        .fs
        .say(Kind::ToolResult, &other_caller.to(), Some(id), &lie);
    scene.peer.deliver(&fs, &to_other).await;
    // One digit changed on the way.
    let mut tampered = scene.answers(id, 661);
    let text = String::from_utf8(tampered.bytes.to_vec())
        .unwrap()
        .replace("661", "666");
    tampered.bytes = text.into();
    scene.peer.deliver(&fs, &tampered).await;
    // The caller's own call, played back.
    let echo = Sealed {
        bytes: call.bytes().clone(),
        id,
    };
    scene.peer.deliver(&fs, &echo).await;
    // Somebody else says that the broker refused.
    let no = proto_spec::refusal::ErrorBody::from(&Refusal::Cancelled);
    let not_broker = Person::new("broker@acme", 99).say(Kind::Error, &me, Some(id), &no);
    scene.peer.send(not_broker.bytes).await;

    scene.peer.deliver(&fs, &scene.answers(id, 7)).await;
    assert_eq!(handle.result::<u32>().await.unwrap(), 7);
}

#[tokio::test]
async fn a_caller_takes_no_unsigned_answer_that_it_did_not_ask_for() {
    let mut scene = Scene::new().await;
    let fep = Some(Unsigned::Fep);
    for (accept_unsigned, via, is_taken) in [
        (fep, Some("fep"), true),
        (fep, None, false),
        (fep, Some("mcp"), false),
        (None, Some("fep"), false),
    ] {
        let options = CallOptions {
            accept_unsigned,
            ..CallOptions::default()
        };
        let arguments = json!({});
        let call = scene
            .agent
            .call_with("fs@acme", "fs.count", &arguments, options);
        let handle = call.await.unwrap();
        let call = scene.peer.receive().await;
        assert_eq!(
            call.body().contains(r#""unsigned":"fep""#),
            accept_unsigned.is_some()
        );
        let me = scene.peer.agent().clone();
        // Only the broker says this.
        let stranger = Person::new("broker@acme", 99).bridged(&me, handle.id(), Some("fep"));
        scene.peer.send(stranger.bytes).await;
        let said = scene.broker.voice.bridged(&me, handle.id(), via);
        scene.peer.send(said.bytes).await;
        match handle.result::<u32>().await {
            Ok(7) => assert!(is_taken),
            Err(Error::Unproven { .. }) => assert!(!is_taken),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_credential_that_has_expired_since_vouches_for_nothing() {
    let mut scene = Scene::new().await;
    let me = scene.peer.agent().clone();
    let word = scene.broker.credential(&me, &credential_of(&scene.fs));
    let (first, _) = scene.call().await;
    let answer = scene.answers(first.id(), 1);
    scene
        .peer
        .frame(Vouching::Full(word.bytes), answer.bytes)
        .await;
    assert_eq!(first.result::<u32>().await.unwrap(), 1);

    let (second, _) = scene.call().await;
    scene.clock.advance(Duration::from_secs(301));
    let answer = scene.answers(second.id(), 2);
    scene
        .peer
        .frame(Vouching::Known(word.id), answer.bytes)
        .await;
    let later = now().later(Duration::from_secs(900));
    let fresh = Credential {
        expires: later,
        ..credential_of(&scene.fs)
    };
    scene
        .peer
        .deliver(&fresh, &scene.answers(second.id(), 3))
        .await;
    assert_eq!(second.result::<u32>().await.unwrap(), 3);
}

#[tokio::test]
async fn progress_comes_in_order_and_nothing_of_it_twice() {
    let mut scene = Scene::new().await;
    let (mut handle, _) = scene.call().await;
    let fs = credential_of(&scene.fs);
    let me = scene.peer.agent().clone();
    for seq in [1, 2, 2, 1, 4] {
        let body = raw(&format!(r#"{{"seq":{seq},"message":"{seq}"}}"#));
        let progress = scene
            .fs
            .say(Kind::ToolProgress, &me, Some(handle.id()), &body);
        scene.peer.deliver(&fs, &progress).await;
    }
    let answer = scene.answers(handle.id(), 7);
    scene.peer.deliver(&fs, &answer).await;
    let mut seen = vec![];
    while let Some(progress) = soon("progress", handle.progress()).await {
        seen.push(progress.message.unwrap());
    }
    assert_eq!(seen, ["1", "2", "4"]);
    assert_eq!(handle.result::<u32>().await.unwrap(), 7);
}

#[tokio::test]
async fn progress_that_nobody_looks_at_delays_no_result() {
    let mut scene = Scene::new().await;
    let (handle, _) = scene.call().await;
    let fs = credential_of(&scene.fs);
    let me = scene.peer.agent().clone();
    for seq in 1..=200 {
        let progress = scene.fs.say(
            Kind::ToolProgress,
            &me,
            Some(handle.id()),
            &json!({"seq": seq}),
        );
        scene.peer.deliver(&fs, &progress).await;
    }
    let answer = scene.answers(handle.id(), 7);
    scene.peer.deliver(&fs, &answer).await;
    assert_eq!(handle.result::<u32>().await.unwrap(), 7);
}

#[tokio::test]
async fn a_connection_lost_in_mid_call_is_an_unknown_outcome_and_no_second_call() {
    let mut scene = Scene::new().await;
    let (handle, _) = scene.call().await;
    drop(scene.peer);
    assert_eq!(
        code(handle.result::<u32>().await),
        Some(Code::OutcomeUnknown)
    );
    assert!(!scene.broker.has_post());
}

#[tokio::test]
async fn cancelling_tells_the_broker_about_that_call() {
    let mut scene = Scene::new().await;
    let (handle, call) = scene.call().await;
    handle.cancel(Some("enough")).await.unwrap();
    let cancel = scene.peer.receive().await;
    assert_eq!(
        (cancel.kind(), cancel.re()),
        (Kind::ToolCancel, Some(handle.id()))
    );
    assert_eq!(cancel.to(), call.to());
    scene.peer.refuse(&call, &Refusal::Cancelled).await;
    assert_eq!(code(handle.result::<u32>().await), Some(Code::Cancelled));
}

#[tokio::test]
async fn a_call_that_is_dropped_is_cancelled() {
    let mut scene = Scene::new().await;
    let (handle, _) = scene.call().await;
    let id = handle.id();
    drop(handle);
    let cancel = scene.peer.receive().await;
    assert_eq!((cancel.kind(), cancel.re()), (Kind::ToolCancel, Some(id)));
}

#[tokio::test]
async fn an_answered_call_is_not_cancelled() {
    let mut scene = Scene::new().await;
    let (handle, _) = scene.call().await;
    let answer = scene.answers(handle.id(), 7);
    scene.peer.deliver(&credential_of(&scene.fs), &answer).await;
    handle.result::<u32>().await.unwrap();
    let (_handle, next) = scene.call().await;
    assert_eq!(next.kind(), Kind::ToolCall);
}

#[tokio::test]
async fn input_goes_to_the_provider_of_the_call() {
    let mut scene = Scene::new().await;
    let (handle, _) = scene.call().await;
    handle.input(&json!({"yes": true})).await.unwrap();
    let input = scene.peer.receive().await;
    assert_eq!(
        (input.kind(), input.re()),
        (Kind::ToolInput, Some(handle.id()))
    );
    assert_eq!(input.body(), r#"{"input":{"yes":true}}"#);
}

#[tokio::test]
async fn a_tools_own_error_is_told_apart_from_the_brokers() {
    let mut scene = Scene::new().await;
    let (handle, _) = scene.call().await;
    let body = json!({"error": {"code": "NO_SUCH_FILE", "message": "no /x", "data": [1]}});
    let me = scene.peer.agent().clone();
    let answer = scene
        .fs
        .say(Kind::ToolResult, &me, Some(handle.id()), &body);
    scene.peer.deliver(&credential_of(&scene.fs), &answer).await;
    match handle.result::<u32>().await {
        Err(Error::Tool { code, data, .. }) => {
            assert_eq!((&*code, data.unwrap().get()), ("NO_SUCH_FILE", "[1]"));
        }
        other => panic!("{other:?}"),
    }
    let (handle, call) = scene.call().await;
    scene.peer.refuse(&call, &Refusal::Denied("x".into())).await;
    assert_eq!(code(handle.result::<u32>().await), Some(Code::Denied));
}

#[tokio::test]
async fn a_stale_call_was_delivered_to_nobody_and_is_signed_anew_once() {
    let mut scene = Scene::new().await;
    let calling = scene.agent.clone();
    let answer = tokio::spawn(async move { calling.call::<u32>("fs@acme", "fs.count", &()).await });
    let first = scene.peer.receive().await;
    scene.peer.refuse(&first, &Refusal::BelowFloor).await;
    let second = scene.peer.receive().await;
    assert_ne!(first.nonce(), second.nonce());
    let answers = scene.answers(Digest::of(&second.signed_bytes()), 7);
    scene
        .peer
        .deliver(&credential_of(&scene.fs), &answers)
        .await;
    assert_eq!(answer.await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn a_broker_that_says_nothing_ends_a_call_by_its_deadline() {
    let mut scene = Scene::new().await;
    let (handle, _) = scene.call().await;
    let answer = tokio::spawn(handle.result::<u32>());
    scene.clock.somebody_sleeps().await;
    scene.clock.advance(Duration::from_secs(65));
    assert_eq!(code(answer.await.unwrap()), Some(Code::Deadline));
    let cancel = scene.peer.receive().await;
    assert_eq!(cancel.kind(), Kind::ToolCancel);
}

#[tokio::test]
async fn what_the_broker_would_not_take_is_not_sent() {
    let mut scene = Scene::new().await;
    let long = json!({"text": "x".repeat(2 << 20)});
    let refused = scene.agent.call::<u32>("fs@acme", "fs.count", &long).await;
    assert!(matches!(refused, Err(Error::Unsendable(_))));
    let no_object = scene
        .agent
        .call::<u32>("fs@acme", "fs.count", &[1, 2])
        .await;
    assert!(matches!(no_object, Err(Error::Unsendable(_))));
    let nobody = scene.agent.call::<u32>("fs", "fs.count", &()).await;
    assert!(matches!(nobody, Err(Error::Config(_))));
    let (_handle, next) = scene.call().await;
    assert_eq!(next.kind(), Kind::ToolCall);
}

#[tokio::test]
async fn a_broker_that_says_nothing_ends_the_wait_for_progress_too() {
    let mut scene = Scene::new().await;
    let (mut handle, _) = scene.call().await;
    let waiting = tokio::spawn(async move { handle.progress().await.is_none() });
    scene.clock.somebody_sleeps().await;
    scene.clock.advance(Duration::from_secs(65));
    assert!(soon("the end", waiting).await.unwrap());
    assert_eq!(scene.peer.receive().await.kind(), Kind::ToolCancel);
}
