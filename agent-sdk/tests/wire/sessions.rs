//! Attaching, and attaching again.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use agent_sdk::proto_spec::{Refusal, SigningKey};
use agent_sdk::{Agent, Call, Code, Error, Kind, RegisterOptions, Tool};

use crate::clock::TestClock;
use crate::fake::{FakeBroker, Person, code, soon};

fn nothing() -> Tool {
    Tool::new(
        "fs.nothing",
        |_call: Call, _args: serde_json::Value| async { Ok(()) },
    )
}

#[tokio::test]
async fn an_agent_refuses_a_broker_with_another_key() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let attaching = tokio::spawn(async move { agent.attach().await });
    let mut peer = broker.connection().await;
    let other = Person::new("broker@acme", 99);
    broker.shown.lock().unwrap().key = other.key.public();
    peer.challenge(&other).await;
    peer.closed().await;
    let why = attaching.await.unwrap().unwrap_err();
    assert!(matches!(why, Error::NotTheBroker { .. }));
    // Who is to mend it by hand needs both.
    for key in [&broker.voice.key, &other.key] {
        let fingerprint = key.public().fingerprint();
        assert!(why.to_string().contains(&fingerprint), "{why}");
    }
}

#[tokio::test]
async fn an_agent_refuses_another_organisations_broker() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let attaching = tokio::spawn(async move { agent.attach().await });
    let mut peer = broker.connection().await;
    // The very same key, speaking for another organisation.
    peer.challenge(&Person::new("broker@globex", 1)).await;
    peer.closed().await;
    assert!(matches!(
        attaching.await.unwrap(),
        Err(Error::NotTheBroker { .. })
    ));
}

#[tokio::test]
async fn a_server_of_another_ca_gets_nothing() {
    let broker = FakeBroker::start().await;
    let other = FakeBroker::start().await;
    // The other's CA, this one's address.
    let url = broker.config("fs@acme", 10).build().unwrap();
    let config = other.config("fs@acme", 10).broker(
        format!("{url:?}")
            .split(" at ")
            .nth(1)
            .unwrap()
            .trim_end_matches(')')
            .to_owned(),
    );
    let agent = Agent::new(config.build().unwrap()).unwrap();
    assert!(matches!(agent.attach().await, Err(Error::Tls { .. })));
    let posted = agent.register(RegisterOptions::default()).await;
    assert!(matches!(posted, Err(Error::Tls { .. })));
}

#[tokio::test]
async fn an_agent_that_nobody_answers_can_say_so() {
    let config = FakeBroker::start()
        .await
        .config("fs@acme", 10)
        .broker("https://127.0.0.1:1");
    let agent = Agent::new(config.build().unwrap()).unwrap();
    let error = agent.attach().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_retryable());
}

#[tokio::test]
async fn attaching_answers_this_connections_challenge_and_names_the_servers_key() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let attaching = tokio::spawn(async move { agent.attach().await.map(|()| agent) });
    let mut peer = broker.connection().await;
    let (attach, body) = peer.challenged().await;
    assert_eq!(body.channel, broker.channel);
    let key = SigningKey::from_seed(&[10; 32]).public();
    assert!(key.verifies(&attach.signed_bytes(), attach.signature()));
    peer.ack(&attach, &broker.welcome()).await;
    attaching.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_answer_to_another_attach_does_not_attach() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let attaching = tokio::spawn(async move { agent.attach().await });
    let mut peer = broker.connection().await;
    let (attach, _) = peer.challenged().await;
    let other = Person::new("fs@acme", 10).say(Kind::Attach, attach.to().unwrap(), None, &());
    let voice = Person::new("broker@acme", 1);
    let word = voice.say(
        Kind::Ack,
        &attach.speaker().clone().into(),
        Some(other.id),
        &broker.welcome(),
    );
    peer.send(word.bytes).await;
    assert!(matches!(
        attaching.await.unwrap(),
        Err(Error::Unexpected(_))
    ));
}

#[tokio::test]
async fn serving_ends_where_the_broker_does_not_know_the_agent() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let serving = tokio::spawn(async move { agent.serve([nothing()]).await });
    let mut peer = broker.connection().await;
    let (attach, _) = peer.challenged().await;
    peer.refuse(&attach, &Refusal::BadSignature).await;
    let error = serving.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(Code::NotAuthentic));
    assert!(error.to_string().contains("register"), "{error}");
}

#[tokio::test]
async fn serving_ends_where_the_offer_is_denied() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let serving = tokio::spawn(async move { agent.serve([nothing()]).await });
    let mut peer = broker.attached().await;
    let offer = peer.receive().await;
    peer.refuse(
        &offer,
        &Refusal::OfferDenied("fs.nothing".into(), "outside"),
    )
    .await;
    assert_eq!(code(serving.await.unwrap()), Some(Code::OfferDenied));
}

#[tokio::test]
async fn a_lost_session_is_attached_again_after_a_wait_and_offers_again() {
    let mut broker = FakeBroker::start().await;
    let clock = TestClock::new();
    let config = broker
        .config("fs@acme", 10)
        .clock(clock.clone())
        .build()
        .unwrap();
    let agent = Agent::new(config).unwrap();
    let serving = tokio::spawn(async move { agent.serve([nothing()]).await });
    for _ in 0..3 {
        drop(broker.serving().await);
        clock.somebody_sleeps().await;
        clock.advance(Duration::from_secs(1));
    }
    broker.serving().await;
    assert!(!serving.is_finished());
}

#[tokio::test]
async fn a_broker_that_is_busy_or_gone_is_tried_again() {
    let mut broker = FakeBroker::start().await;
    let clock = TestClock::new();
    let config = broker
        .config("fs@acme", 10)
        .clock(clock.clone())
        .build()
        .unwrap();
    let agent = Agent::new(config).unwrap();
    tokio::spawn(async move { agent.serve([nothing()]).await });
    let mut peer = broker.connection().await;
    let (attach, _) = peer.challenged().await;
    peer.refuse(&attach, &Refusal::Busy("sessions")).await;
    clock.somebody_sleeps().await;
    clock.advance(Duration::from_secs(1));
    drop(broker.connection().await);
    clock.somebody_sleeps().await;
    clock.advance(Duration::from_secs(1));
    broker.serving().await;
}

#[tokio::test]
async fn one_session_is_shared_by_all_that_an_agent_does() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let serving = agent.clone();
    tokio::spawn(async move { serving.serve([nothing()]).await });
    let mut peer = broker.serving().await;
    agent.attach().await.unwrap();
    let calling = agent.clone();
    tokio::spawn(async move { calling.call::<()>("other@acme", "other.tool", &()).await });
    assert_eq!(peer.receive().await.kind(), Kind::ToolCall);
    assert!(!broker.has_post());
}

#[tokio::test]
async fn an_agent_serves_once_at_a_time_and_again_after() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let first = agent.clone();
    let serving = tokio::spawn(async move {
        first
            .serve_until([nothing()], async { drop(stopped.await) })
            .await
    });
    let mut peer = broker.serving().await;
    assert!(matches!(
        agent.serve([nothing()]).await,
        Err(Error::AlreadyServing(_))
    ));
    stop.send(()).unwrap();
    let back = peer.receive().await;
    peer.ack(&back, &agent_sdk::Ack::Offered { tools: 0 }).await;
    soon("the end", serving).await.unwrap().unwrap();
    tokio::spawn(async move { agent.serve([nothing()]).await });
    assert_eq!(peer.receive().await.kind(), Kind::OfferTools);
}

#[tokio::test]
async fn dropping_the_agent_closes_its_session() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let attaching = tokio::spawn(async move { agent.attach().await.map(|()| agent) });
    let mut peer = broker.attached().await;
    drop(attaching.await.unwrap().unwrap());
    peer.closed().await;
}

/// Attaches once more on the very thread, and in the very moment, in which it is woken: no other
/// schedule has a new attempt begin closer to the end of the one before.
struct AttachesWhenWoken {
    agent: Agent,
    attaching: Mutex<Option<Attaching>>,
}

type Attaching = Pin<Box<dyn Future<Output = agent_sdk::Result<()>> + Send>>;

fn attaching(agent: &Agent) -> Attaching {
    let agent = agent.clone();
    Box::pin(async move { agent.attach().await })
}

impl Wake for AttachesWhenWoken {
    fn wake(self: Arc<Self>) {
        let mut again = attaching(&self.agent);
        let mut slot = self.attaching.lock().unwrap();
        if slot.is_none()
            && again
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
                .is_pending()
        {
            *slot = Some(again);
        }
    }
}

#[tokio::test]
async fn an_attempt_that_begins_as_another_ends_is_the_only_one_and_has_its_own_end() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let witness = Arc::new(AttachesWhenWoken {
        agent: agent.clone(),
        attaching: Mutex::default(),
    });
    let mut first = attaching(&agent);
    let waker = Waker::from(Arc::clone(&witness));
    assert!(
        first
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    drop(broker.connection().await);
    let mut peer = broker.connection().await;
    let again = witness.attaching.lock().unwrap().take();
    let again = tokio::spawn(again.unwrap());
    let (attach, _) = peer.challenged().await;
    peer.ack(&attach, &broker.welcome()).await;
    again.await.unwrap().unwrap();
    // Whoever asks from here on shares that session.
    agent.attach().await.unwrap();
    let calling = agent.clone();
    tokio::spawn(async move { calling.call::<()>("other@acme", "other.tool", &()).await });
    assert_eq!(peer.receive().await.kind(), Kind::ToolCall);
}

#[tokio::test]
async fn a_session_that_nobody_needs_any_more_is_not_attached_again() {
    let mut broker = FakeBroker::start().await;
    let clock = TestClock::new();
    let config = broker.config("fs@acme", 10).clock(clock.clone());
    let agent = Agent::new(config.build().unwrap()).unwrap();
    let serves = agent.clone();
    let serving = tokio::spawn(async move { serves.serve([nothing()]).await });
    drop(broker.serving().await);
    clock.somebody_sleeps().await;
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    clock.advance(Duration::from_secs(60));
    let asking = tokio::spawn(async move { agent.register(RegisterOptions::default()).await });
    let post = broker.post().await;
    assert!(!broker.has_connection());
    drop(post);
    asking.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn an_offer_is_done_when_the_broker_has_taken_it_and_not_before() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let mut offering = Box::pin(agent.offer([nothing()]));
    let mut taken = None;
    let mut peer = tokio::select! {
        _ = &mut offering => panic!("nobody has taken it"),
        peer = async {
            let mut peer = broker.attached().await;
            taken = Some(peer.receive().await);
            peer
        } => peer,
    };
    let offer = taken.unwrap();
    assert_eq!(offer.kind(), Kind::OfferTools);
    peer.ack(&offer, &agent_sdk::Ack::Offered { tools: 1 })
        .await;
    let serving = soon("the offer", offering).await.unwrap();
    assert!(matches!(
        agent.offer([nothing()]).await,
        Err(Error::AlreadyServing(_))
    ));

    // It is served before anybody runs it, and dropping it takes it back.
    let me = Person::new("me@acme", 20);
    let call = peer.calls(&me, "fs.nothing", "{}").await;
    assert_eq!(peer.receive().await.re(), Some(call));
    drop(serving);
    let back = peer.receive().await;
    assert_eq!(
        (back.kind(), back.body()),
        (Kind::OfferTools, r#"{"tools":[]}"#)
    );
}

#[tokio::test]
async fn what_was_offered_is_offered_again_once_it_runs_and_its_session_was_lost() {
    let mut broker = FakeBroker::start().await;
    let clock = TestClock::new();
    let config = broker.config("fs@acme", 10).clock(clock.clone());
    let agent = Agent::new(config.build().unwrap()).unwrap();
    let offering = tokio::spawn(async move { agent.offer([nothing()]).await });
    let peer = broker.serving().await;
    let serving = offering.await.unwrap().unwrap();
    drop(peer);
    clock.somebody_sleeps().await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(serving.run_until(async { drop(stopped.await) }));
    clock.advance(Duration::from_secs(1));
    let mut peer = broker.serving().await;
    stop.send(()).unwrap();
    let back = peer.receive().await;
    peer.ack(&back, &agent_sdk::Ack::Offered { tools: 0 }).await;
    soon("the end", running).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_offer_that_is_denied_says_so() {
    let mut broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let offering = tokio::spawn(async move { agent.offer([nothing()]).await.map(drop) });
    let mut peer = broker.attached().await;
    let offer = peer.receive().await;
    let refusal = Refusal::OfferDenied("fs.nothing".into(), "outside");
    peer.refuse(&offer, &refusal).await;
    assert_eq!(code(offering.await.unwrap()), Some(Code::OfferDenied));
}
