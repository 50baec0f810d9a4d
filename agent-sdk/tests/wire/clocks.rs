//! Clocks that differ: what the broker says about time is judged by the broker's clock.

use std::time::Duration;

use agent_sdk::proto_spec::message::Credential;
use agent_sdk::{Agent, Call, Error, Kind, Timestamp, Tool};

use crate::clock::TestClock;
use crate::fake::{FakeBroker, Peer, Person, asking, credential_of, now, permit_for, said};

const MINUTE: Duration = Duration::from_secs(60);

/// By how many minutes a clock is fast, or slow where that is negative.
type Fast = i32;

fn shown(fast: Fast) -> Timestamp {
    let apart = MINUTE * fast.unsigned_abs();
    if fast < 0 {
        now().earlier(apart)
    } else {
        now().later(apart)
    }
}

/// A provider that has run for `age` before it attached, and its broker, whose clock is right.
async fn provider(fast: Fast, age: Duration) -> (FakeBroker, Peer) {
    let mut broker = FakeBroker::start().await;
    let clock = TestClock::showing(shown(fast).earlier(age));
    let config = broker.config("fs@acme", 10).clock(clock.clone());
    let agent = Agent::new(config.build().unwrap()).unwrap();
    clock.advance(age);
    let echo = Tool::new("fs.echo", |_: Call, args: serde_json::Value| async move {
        Ok(args)
    });
    tokio::spawn(async move { agent.serve([echo]).await });
    let peer = broker.serving().await;
    (broker, peer)
}

/// A call by somebody whose clock is `fast`.
async fn call(peer: &mut Peer, fast: Fast, credential: impl Fn(&Person) -> Credential) {
    let me = Person::new("me@acme", 20);
    let body = asking("fs.echo", r#"{"a":1}"#);
    let to = peer.agent().clone();
    let call = me.say_at(shown(fast), Kind::ToolCall, Some(&to), None, None, &body);
    peer.deliver(&credential(&me), &call).await;
}

fn permit(me: &Person) -> Credential {
    permit_for(me, &"fs@acme".parse().unwrap(), "fs.echo")
}

fn done() -> Result<String, String> {
    Ok(r#"{"a":1}"#.into())
}

#[tokio::test]
async fn a_provider_accepts_whom_its_broker_accepts_whatever_its_own_clock_says() {
    for fast in [-4, 0, 4] {
        let (_broker, mut peer) = provider(fast, MINUTE * 20).await;
        for (caller, gets) in [
            (-4, done()),
            (0, done()),
            (4, done()),
            (-6, Err("STALE".into())),
            (6, Err("STALE".into())),
        ] {
            call(&mut peer, caller, permit).await;
            let answer = said(&peer.receive().await);
            assert_eq!(
                answer, gets,
                "provider {fast}, caller {caller} minutes fast"
            );
        }
    }
}

#[tokio::test]
async fn a_credential_lives_and_dies_by_its_brokers_clock() {
    for fast in [-4, 0, 4] {
        let (_broker, mut peer) = provider(fast, MINUTE * 20).await;
        let until = |minutes| {
            move |me: &Person| Credential {
                expires: shown(minutes),
                ..permit(me)
            }
        };
        call(&mut peer, 0, until(1)).await;
        assert_eq!(said(&peer.receive().await), done(), "{fast} minutes fast");
        // Nobody is vouched for, so nobody is answered: the next answer is the next call's.
        call(&mut peer, -6, until(-1)).await;
        call(&mut peer, 0, permit).await;
        assert_eq!(said(&peer.receive().await), done(), "{fast} minutes fast");
    }
}

#[tokio::test]
async fn a_provider_whose_clock_is_fast_takes_calls_as_soon_as_it_serves() {
    let (_broker, mut peer) = provider(4, Duration::ZERO).await;
    call(&mut peer, 0, permit).await;
    assert_eq!(said(&peer.receive().await), done());
}

#[tokio::test]
async fn an_agent_does_not_attach_to_a_broker_whose_clock_is_not_near_its_own() {
    for fast in [-6, 6] {
        let mut broker = FakeBroker::start().await;
        let agent = broker.agent("fs@acme", 10);
        let attaching = tokio::spawn(async move { agent.attach().await });
        let mut peer = broker.connection().await;
        let (attach, _) = peer.challenged().await;
        peer.ack_at(shown(fast), &attach, &broker.welcome()).await;
        let attached = attaching.await.unwrap();
        assert!(matches!(attached, Err(Error::Clocks { .. })), "{fast}");
    }
}

#[tokio::test]
async fn a_caller_by_post_believes_what_may_be_alive_by_its_brokers_clock() {
    for (fast, expires, believed) in [(4, 1, true), (-4, 5, true), (4, -2, false)] {
        let mut broker = FakeBroker::start().await;
        let clock = TestClock::showing(shown(fast));
        let config = broker.config("me@acme", 10).clock(clock);
        let agent = Agent::new(config.build().unwrap()).unwrap();
        let me = agent.id().clone().into();
        let asking =
            tokio::spawn(async move { agent.call::<u32>("fs@acme", "fs.count", &()).await });
        let post = broker.post().await;
        let fs = Person::new("fs@acme", 20);
        let credential = Credential {
            expires: shown(expires),
            ..credential_of(&fs)
        };
        let word = broker.credential(&me, &credential);
        let body = serde_json::json!({"result": 7});
        let answer = fs.say(Kind::ToolResult, &me, Some(post.id()), &body);
        post.answer(200, Some(&word), answer.bytes);
        match asking.await.unwrap() {
            Ok(7) => assert!(believed, "{fast} {expires}"),
            Err(Error::Unproven { .. }) => assert!(!believed, "{fast} {expires}"),
            other => panic!("{other:?}"),
        }
    }
}
