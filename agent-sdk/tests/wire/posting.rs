//! What goes by POST.

use agent_sdk::proto_spec::refusal::ErrorBody;
use agent_sdk::proto_spec::{Refusal, Sealed};
use agent_sdk::{
    Ack, Agent, Code, DiscoverTools, Error, Kind, RegisterOptions, Registration, Result,
};
use serde_json::json;

use crate::clock::TestClock;
use crate::fake::{Alpn, FakeBroker, Person, Post, code, credential_of, json as raw, now, soon};

fn registering(agent: &Agent) -> tokio::task::JoinHandle<Result<Registration>> {
    let agent = agent.clone();
    tokio::spawn(async move { agent.register(RegisterOptions::default()).await })
}

fn acked(broker: &FakeBroker, post: &Post, ack: &Ack) -> Sealed {
    broker
        .voice
        .say(Kind::Ack, &post.from(), Some(post.id()), ack)
}

fn refused(broker: &FakeBroker, post: &Post, refusal: &Refusal) -> Sealed {
    broker.voice.say(
        Kind::Error,
        &post.from(),
        Some(post.id()),
        &ErrorBody::from(refusal),
    )
}

#[tokio::test]
async fn registering_says_what_the_broker_decided() {
    for alpn in [Alpn::Http2, Alpn::Http1] {
        let mut broker = FakeBroker::speaking(alpn).await;
        let agent = broker.agent("fs@acme", 10);
        let answer = registering(&agent);
        let post = broker.post().await;
        assert_eq!(post.envelope.kind(), Kind::RegisterAgent);
        let ack = acked(&broker, &post, &Ack::Pending);
        post.answer(200, None, ack.bytes);
        assert_eq!(answer.await.unwrap().unwrap(), Registration::Pending);
    }
}

#[tokio::test]
async fn waiting_for_an_admin_goes_on_until_there_is_a_decision() {
    let mut broker = FakeBroker::start().await;
    let clock = TestClock::new();
    let agent = Agent::new(
        broker
            .config("fs@acme", 10)
            .clock(clock.clone())
            .build()
            .unwrap(),
    )
    .unwrap();
    let waiting =
        tokio::spawn(async move { agent.register_and_wait(RegisterOptions::default()).await });
    for _ in 0..2 {
        let post = broker.post().await;
        let ack = acked(&broker, &post, &Ack::Pending);
        post.answer(200, None, ack.bytes);
        clock.somebody_sleeps().await;
        clock.advance(std::time::Duration::from_secs(60));
    }
    let post = broker.post().await;
    let ack = acked(
        &broker,
        &post,
        &Ack::Registered {
            capabilities: vec![],
            prefixes: vec![],
        },
    );
    post.answer(200, None, ack.bytes);
    assert!(matches!(
        waiting.await.unwrap(),
        Ok(Registration::Registered { .. })
    ));
}

#[tokio::test]
async fn a_posted_answer_of_another_key_or_to_another_question_is_not_believed() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let liar = Person::new("broker@acme", 99);

    let answer = registering(&agent);
    let post = broker.post().await;
    let forged = liar.say(Kind::Ack, &post.from(), Some(post.id()), &Ack::Pending);
    post.answer(200, None, forged.bytes);
    assert!(matches!(
        answer.await.unwrap(),
        Err(Error::NotTheBroker { .. })
    ));

    let answer = registering(&agent);
    let post = broker.post().await;
    let to = post.from();
    let other = broker.voice.say(
        Kind::Ack,
        &to,
        Some(liar.say(Kind::Ack, &to, None, &()).id),
        &Ack::Pending,
    );
    post.answer(200, None, other.bytes);
    assert!(matches!(answer.await.unwrap(), Err(Error::Unproven { .. })));

    let answer = registering(&agent);
    let post = broker.post().await;
    let unaddressed =
        broker
            .voice
            .say_at(now(), Kind::Ack, None, Some(post.id()), None, &Ack::Pending);
    post.answer(200, None, unaddressed.bytes);
    assert!(matches!(answer.await.unwrap(), Err(Error::Unproven { .. })));

    let answer = registering(&agent);
    broker
        .post()
        .await
        .answer(502, None, "<html>bad gateway</html>".into());
    assert!(matches!(
        answer.await.unwrap(),
        Err(Error::OutcomeUnknown(_))
    ));
}

#[tokio::test]
async fn a_stranger_reads_why_it_is_refused() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let answer = registering(&agent);
    let post = broker.post().await;
    let body = ErrorBody::from(&Refusal::BadSignature);
    let word = broker
        .voice
        .say_at(now(), Kind::Error, None, None, None, &body);
    post.answer(401, None, word.bytes);
    assert_eq!(code(answer.await.unwrap()), Some(Code::NotAuthentic));
}

#[tokio::test]
async fn what_is_stale_is_signed_anew_once() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let answer = registering(&agent);
    let mut nonces = vec![];
    for _ in 0..2 {
        let post = broker.post().await;
        nonces.push(post.envelope.nonce().to_owned());
        let stale = refused(&broker, &post, &Refusal::BelowFloor);
        post.answer(401, None, stale.bytes);
    }
    assert_ne!(nonces[0], nonces[1]);
    assert_eq!(code(answer.await.unwrap()), Some(Code::Stale));
    assert!(!broker.has_post());
}

#[tokio::test]
async fn a_posted_call_takes_its_answer_only_with_the_brokers_word_for_the_key() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("me@acme", 10);
    let fs = Person::new("fs@acme", 20);
    let thief = Person::new("thief@acme", 30);
    let me: agent_sdk::Audience = agent.id().clone().into();
    let word =
        |subject: &Person, broker: &FakeBroker| broker.credential(&me, &credential_of(subject));
    let forged_word =
        Person::new("broker@acme", 99).say(Kind::Credential, &me, None, &credential_of(&fs));
    for case in 0..5 {
        let calling = agent.clone();
        let answer = tokio::spawn(async move {
            calling
                .call::<u32>("fs@acme", "fs.count", &json!({"path": "/"}))
                .await
        });
        let post = broker.post().await;
        let result = raw(r#"{"result":7}"#);
        let honest = fs.say(Kind::ToolResult, &me, Some(post.id()), &result);
        let by_thief = thief.say(Kind::ToolResult, &me, Some(post.id()), &result);
        let (credential, body) = match case {
            0 => (Some(word(&fs, &broker)), honest.bytes),
            1 => (None, honest.bytes),
            2 => (Some(forged_word.clone()), honest.bytes),
            3 => (Some(word(&thief, &broker)), by_thief.bytes),
            _ => (Some(word(&thief, &broker)), honest.bytes),
        };
        post.answer(200, credential.as_ref(), body);
        match answer.await.unwrap() {
            Ok(7) => assert_eq!(case, 0),
            Err(Error::Unproven { from, .. }) if case > 0 => assert_eq!(from, "fs@acme"),
            other => panic!("case {case}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_posted_call_whose_connection_is_lost_is_not_repeated() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("me@acme", 10);
    let calling = agent.clone();
    let answer =
        tokio::spawn(async move { calling.call::<u32>("fs@acme", "fs.count", &json!({})).await });
    drop(broker.post().await);
    assert_eq!(code(answer.await.unwrap()), Some(Code::OutcomeUnknown));
    assert!(!broker.has_post());
}

#[tokio::test]
async fn giving_up_a_posted_call_closes_its_request() {
    for alpn in [Alpn::Http2, Alpn::Http1] {
        let mut broker = FakeBroker::speaking(alpn).await;
        let agent = broker.agent("me@acme", 10);
        let answer =
            tokio::spawn(async move { agent.call::<u32>("fs@acme", "fs.count", &json!({})).await });
        let mut post = broker.post().await;
        answer.abort();
        soon("the end of the request", post.answer.closed()).await;
    }
}

#[tokio::test]
async fn a_posted_call_takes_no_unsigned_answer_that_it_did_not_ask_for() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("me@acme", 10);
    for accept_unsigned in [None, Some(agent_sdk::Unsigned::Fep)] {
        let options = agent_sdk::CallOptions {
            accept_unsigned,
            ..Default::default()
        };
        let calling = agent.clone();
        let answer = tokio::spawn(async move {
            let arguments = json!({});
            calling
                .call_raw("fs@acme", "fs.count", &arguments, &options)
                .await
        });
        let post = broker.post().await;
        let said = broker.voice.bridged(&post.from(), post.id(), Some("fep"));
        post.answer(200, None, said.bytes);
        match answer.await.unwrap() {
            Ok(result) => assert_eq!((accept_unsigned.is_some(), result.get()), (true, "7")),
            Err(Error::Unproven { .. }) => assert!(accept_unsigned.is_none()),
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_deadline_beyond_a_day_is_not_sent() {
    let broker = FakeBroker::start().await;
    let options = agent_sdk::CallOptions {
        deadline: Some(std::time::Duration::from_secs(86_401)),
        ..Default::default()
    };
    let agent = broker.agent("me@acme", 10);
    let refused = agent
        .call_raw("fs@acme", "fs.count", &json!({}), &options)
        .await;
    assert!(matches!(refused, Err(Error::Unsendable(_))));
}

#[tokio::test]
async fn a_call_that_nobody_answers_ends_by_its_deadline() {
    let mut broker = FakeBroker::start().await;
    let clock = TestClock::new();
    let agent = Agent::new(
        broker
            .config("me@acme", 10)
            .clock(clock.clone())
            .build()
            .unwrap(),
    )
    .unwrap();
    let answer =
        tokio::spawn(async move { agent.call::<u32>("fs@acme", "fs.count", &json!({})).await });
    let mut post = broker.post().await;
    assert_eq!(
        post.envelope.deadline(),
        Some(std::time::Duration::from_secs(60))
    );
    clock.somebody_sleeps().await;
    clock.advance(std::time::Duration::from_secs(65));
    assert!(matches!(answer.await.unwrap(), Err(Error::Deadline(_))));
    soon("the end of the request", post.answer.closed()).await;
}

#[tokio::test]
async fn discovery_follows_every_page() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("me@acme", 10);
    let key = agent.public_key();
    let asking = tokio::spawn(async move { agent.discover(DiscoverTools::default()).await });
    let mut afters = vec![];
    for (name, next) in [("fs.a", Some("page2")), ("fs.b", None)] {
        let post = broker.post().await;
        let wanted: DiscoverTools = post.envelope.read_body().unwrap();
        afters.push(wanted.after);
        let tool = json!({"agent": "fs@acme", "key": key, "name": name, "inputSchema": {}});
        let page = json!({"tools": [tool], "next": next});
        let word = broker
            .voice
            .say(Kind::ToolsDiscovered, &post.from(), Some(post.id()), &page);
        post.answer(200, None, word.bytes);
    }
    assert_eq!(afters, [None, Some("page2".to_owned())]);
    let found = asking.await.unwrap().unwrap();
    let names: Vec<_> = found.iter().map(|found| found.tool.name.as_str()).collect();
    assert_eq!(names, ["fs.a", "fs.b"]);
}

#[tokio::test]
async fn an_event_is_emitted_to_its_topic() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("me@acme", 10);
    let emitting =
        tokio::spawn(async move { agent.emit("build.done", &json!({"ok": true})).await });
    let post = broker.post().await;
    assert_eq!(
        post.envelope.to().unwrap().to_string(),
        "topic:acme/build.done"
    );
    assert_eq!(post.envelope.body(), r#"{"data":{"ok":true}}"#);
    let ack = acked(&broker, &post, &Ack::Emitted);
    post.answer(200, None, ack.bytes);
    emitting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_new_key_agrees_to_follow_the_old_one() {
    use agent_sdk::proto_spec::{Envelope, message::AcceptKey, message::RotateKey};
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("me@acme", 10);
    let old = agent.public_key();
    let new = agent_sdk::Key::from_seed(&[11; 32]);
    let (key, public) = (agent_sdk::Key::from_seed(&[11; 32]), new.public());
    let rotating = tokio::spawn(async move { agent.rotate_key(&key).await });
    let post = broker.post().await;
    let body: RotateKey = post.envelope.read_body().unwrap();
    let accept = Envelope::parse(body.accept.into_bytes().into(), 1 << 16).unwrap();
    let consent: AcceptKey = accept.read_body().unwrap();
    assert_eq!((consent.pubkey, consent.follows), (public, old));
    assert!(public.verifies(&accept.signed_bytes(), accept.signature()));
    let ack = acked(&broker, &post, &Ack::Rotated { key: public });
    post.answer(200, None, ack.bytes);
    rotating.await.unwrap().unwrap();
}

#[tokio::test]
async fn raw_bytes_go_and_come_as_they_are() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("me@acme", 10);
    let bytes = Person::new("me@acme", 10)
        .say(Kind::Attach, agent.broker(), None, &json!({}))
        .bytes;
    let sent = bytes.clone();
    let asking = tokio::spawn(async move { agent.send_raw(sent).await });
    let post = broker.post().await;
    assert_eq!(post.envelope.bytes(), &bytes);
    post.answer(426, None, "anything".into());
    assert_eq!(asking.await.unwrap().unwrap(), (426, "anything".into()));
}

#[tokio::test]
async fn raw_bytes_that_nobody_answers_are_not_waited_for_without_end() {
    let mut broker = FakeBroker::start().await;
    let clock = TestClock::new();
    let config = broker.config("me@acme", 10).clock(clock.clone());
    let agent = Agent::new(config.build().unwrap()).unwrap();
    let bytes = Person::new("me@acme", 10)
        .say(Kind::Attach, agent.broker(), None, &json!({}))
        .bytes;
    let asking = tokio::spawn(async move { agent.send_raw(bytes).await });
    let _unanswered = broker.post().await;
    clock.somebody_sleeps().await;
    clock.advance(std::time::Duration::from_secs(65));
    let asked = soon("the end", asking).await.unwrap();
    assert!(matches!(asked, Err(Error::Deadline(_))));
}
