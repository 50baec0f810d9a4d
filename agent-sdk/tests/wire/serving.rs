//! Calls from their provider's side: running, progress, input, cancelling, ending.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent_sdk::proto_spec::frame::Vouching;
use agent_sdk::proto_spec::message::ToolProgress;
use agent_sdk::{Agent, Call, Digest, Kind, Progress, Tool, ToolError};
use serde_json::json;
use tokio::sync::Notify;

use crate::clock::TestClock;
use crate::fake::{FakeBroker, Peer, Person, asking, permit_for, said, signed_by, soon};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Add {
    a: i64,
    b: i64,
}

fn tools(dropped: &Arc<AtomicBool>, held: &Arc<Notify>) -> Vec<Tool> {
    let (dropped, held) = (Arc::clone(dropped), Arc::clone(held));
    vec![
        Tool::new(
            "fs.add",
            |_: Call, args: Add| async move { Ok(args.a + args.b) },
        ),
        Tool::new("fs.panic", |_: Call, _: serde_json::Value| async move {
            if true {
                panic!("on purpose")
            };
            Ok(())
        }),
        Tool::new("fs.fail", |_: Call, _: serde_json::Value| async move {
            Ok("x".parse::<u32>()?)
        }),
        Tool::new("fs.refuse", |_: Call, _: serde_json::Value| async move {
            Err::<(), _>(ToolError::new("NO_SUCH_FILE", "no /x"))
        }),
        Tool::new(
            "fs.count",
            |mut call: Call, _: serde_json::Value| async move {
                for n in 1..=3 {
                    call.progress(Progress::of(f64::from(n), 3.0)).await;
                }
                Ok(call.caller().to_string())
            },
        ),
        Tool::new(
            "fs.ask",
            |mut call: Call, _: serde_json::Value| async move {
                call.progress(Progress::saying("which?")).await;
                call.input::<String>().await
            },
        ),
        Tool::new("fs.long", |_: Call, _: serde_json::Value| async {
            Ok("x".repeat(2 << 20))
        }),
        Tool::new("fs.hold", move |_: Call, _: serde_json::Value| {
            let (dropped, held) = (Dropped(Arc::clone(&dropped)), Arc::clone(&held));
            async move {
                held.notified().await;
                drop(dropped);
                Ok("held")
            }
        }),
        Tool::new("fs.caged", |_: Call, _: serde_json::Value| async { Ok(()) }).sandboxed("wasm"),
    ]
}

struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Scene {
    broker: FakeBroker,
    peer: Peer,
    me: Person,
    dropped: Arc<AtomicBool>,
    held: Arc<Notify>,
    clock: Arc<TestClock>,
    serving: tokio::task::JoinHandle<agent_sdk::Result<()>>,
    stop: Arc<Notify>,
}

impl Scene {
    async fn new() -> Self {
        let mut broker = FakeBroker::start().await;
        let clock = TestClock::new();
        let config = broker
            .config("fs@acme", 10)
            .calls_at_once(3)
            .clock(clock.clone());
        let agent = Agent::new(config.build().unwrap()).unwrap();
        let (dropped, held, stop) = (Arc::default(), Arc::default(), Arc::new(Notify::new()));
        let (tools, stopped) = (tools(&dropped, &held), Arc::clone(&stop));
        let serving = tokio::spawn(async move {
            agent
                .serve_until(tools, async move { stopped.notified().await })
                .await
        });
        let peer = broker.serving().await;
        let me = Person::new("me@acme", 20);
        Self {
            broker,
            peer,
            me,
            dropped,
            held,
            clock,
            serving,
            stop,
        }
    }

    async fn ask(&mut self, tool: &str, arguments: &str) -> Result<String, String> {
        let call = self.peer.calls(&self.me, tool, arguments).await;
        let answer = self.peer.receive().await;
        assert_eq!(answer.re(), Some(call));
        assert_eq!(answer.to().unwrap(), &self.me.to());
        assert!(signed_by(&answer, 10));
        said(&answer)
    }

    /// Still serves.
    async fn lives(&mut self) {
        assert_eq!(self.ask("fs.add", r#"{"a":2,"b":3}"#).await, Ok("5".into()));
    }

    async fn was_dropped(&self) {
        let dropped = async {
            while !self.dropped.load(Ordering::SeqCst) {
                tokio::task::yield_now().await;
            }
        };
        soon("dropping the tool's future", dropped).await;
    }
}

#[tokio::test]
async fn a_tool_runs_and_its_answer_is_signed_for_its_caller() {
    let mut scene = Scene::new().await;
    scene.lives().await;
    scene.lives().await;
}

#[tokio::test]
async fn arguments_that_do_not_fit_never_reach_the_tool() {
    let mut scene = Scene::new().await;
    for arguments in [
        "{}",
        r#"{"a":1}"#,
        r#"{"a":"1","b":2}"#,
        r#"{"a":1.5,"b":2}"#,
    ] {
        assert_eq!(
            scene.ask("fs.add", arguments).await,
            Err("INVALID_ARGUMENTS".into())
        );
    }
    scene.lives().await;
}

#[tokio::test]
async fn a_tool_that_panics_ends_its_own_call_and_nothing_else() {
    let mut scene = Scene::new().await;
    assert_eq!(
        scene.ask("fs.panic", "{}").await,
        Err("TOOL_PANICKED".into())
    );
    scene.lives().await;
}

#[tokio::test]
async fn a_tools_errors_reach_its_caller() {
    let mut scene = Scene::new().await;
    assert_eq!(
        scene.ask("fs.refuse", "{}").await,
        Err("NO_SUCH_FILE".into())
    );
    assert_eq!(scene.ask("fs.fail", "{}").await, Err("TOOL_FAILED".into()));
    assert_eq!(
        scene.ask("fs.long", "{}").await,
        Err("RESULT_TOO_LARGE".into())
    );
}

#[tokio::test]
async fn progress_is_numbered_and_comes_before_the_result_and_only_where_it_is_wanted() {
    let mut scene = Scene::new().await;
    let body = json!({"tool": "fs.count", "progress": true});
    let call = scene
        .me
        .say(Kind::ToolCall, scene.peer.agent(), None, &body);
    let fs = "fs@acme".parse().unwrap();
    scene
        .peer
        .deliver(&permit_for(&scene.me, &fs, "fs.count"), &call)
        .await;
    for n in 1..=3 {
        let progress = scene.peer.receive().await;
        assert_eq!(
            (progress.kind(), progress.re()),
            (Kind::ToolProgress, Some(call.id))
        );
        let body: ToolProgress<'_> = progress.read_body().unwrap();
        assert_eq!((body.seq, body.progress), (n, Some(n as f64)));
    }
    assert_eq!(said(&scene.peer.receive().await), Ok("\"me@acme\"".into()));
    assert_eq!(scene.ask("fs.count", "{}").await, Ok("\"me@acme\"".into()));
}

#[tokio::test]
async fn more_calls_than_places_are_told_to_come_later() {
    let mut scene = Scene::new().await;
    let busy = Err("BUSY".to_owned());
    let (you, late) = (Person::new("you@acme", 21), Person::new("late@acme", 22));
    for _ in 0..2 {
        scene.peer.calls(&scene.me, "fs.hold", "{}").await;
    }
    // The last place is left for others.
    assert_eq!(scene.ask("fs.add", r#"{"a":2,"b":3}"#).await, busy);
    scene.peer.calls(&you, "fs.hold", "{}").await;
    scene.peer.calls(&late, "fs.hold", "{}").await;
    assert_eq!(said(&scene.peer.receive().await), busy);
    scene.held.notify_waiters();
    for _ in 0..3 {
        assert_eq!(said(&scene.peer.receive().await), Ok("\"held\"".into()));
    }
    scene.lives().await;
}

#[tokio::test]
async fn a_caller_that_cancels_drops_the_tools_future() {
    let mut scene = Scene::new().await;
    let call = scene.peer.calls(&scene.me, "fs.hold", "{}").await;
    scene.lives().await;
    let cancel = scene
        .me
        .say(Kind::ToolCancel, scene.peer.agent(), Some(call), &json!({}));
    scene
        .peer
        .deliver(
            &permit_for(&scene.me, &"fs@acme".parse().unwrap(), "fs.hold"),
            &cancel,
        )
        .await;
    scene.was_dropped().await;
    scene.lives().await;
}

#[tokio::test]
async fn a_broker_that_gives_a_call_up_drops_the_tools_future() {
    let mut scene = Scene::new().await;
    let call = scene.peer.calls(&scene.me, "fs.hold", "{}").await;
    scene.lives().await;
    let cancel =
        scene
            .broker
            .voice
            .say(Kind::ToolCancel, scene.peer.agent(), Some(call), &json!({}));
    scene.peer.send(cancel.bytes).await;
    scene.was_dropped().await;
}

#[tokio::test]
async fn only_its_caller_cancels_or_feeds_a_call() {
    let mut scene = Scene::new().await;
    let thief = Person::new("thief@acme", 30);
    let call = scene.peer.calls(&scene.me, "fs.hold", "{}").await;
    let permit = permit_for(&thief, &"fs@acme".parse().unwrap(), "fs.hold");
    let cancel = thief.say(Kind::ToolCancel, scene.peer.agent(), Some(call), &json!({}));
    scene.peer.deliver(&permit, &cancel).await;
    let forged = Person::new("me@acme", 30).say(
        Kind::ToolCancel,
        scene.peer.agent(),
        Some(call),
        &json!({}),
    );
    scene
        .peer
        .deliver(
            &permit_for(&scene.me, &"fs@acme".parse().unwrap(), "fs.hold"),
            &forged,
        )
        .await;
    let not_broker = Person::new("broker@acme", 99).say(
        Kind::ToolCancel,
        scene.peer.agent(),
        Some(call),
        &json!({}),
    );
    scene.peer.send(not_broker.bytes).await;
    // All of that was read, and the call runs on.
    scene.lives().await;
    assert!(!scene.dropped.load(Ordering::SeqCst));
    scene.held.notify_waiters();
    assert_eq!(said(&scene.peer.receive().await), Ok("\"held\"".into()));
}

#[tokio::test]
async fn input_reaches_the_running_tool() {
    let mut scene = Scene::new().await;
    let body = json!({"tool": "fs.ask", "progress": true});
    let call = scene
        .me
        .say(Kind::ToolCall, scene.peer.agent(), None, &body);
    let permit = permit_for(&scene.me, &"fs@acme".parse().unwrap(), "fs.ask");
    scene.peer.deliver(&permit, &call).await;
    assert_eq!(scene.peer.receive().await.kind(), Kind::ToolProgress);
    let input = scene.me.say(
        Kind::ToolInput,
        scene.peer.agent(),
        Some(call.id),
        &json!({"input": "this"}),
    );
    scene.peer.deliver(&permit, &input).await;
    assert_eq!(said(&scene.peer.receive().await), Ok("\"this\"".into()));
}

#[tokio::test]
async fn a_credential_is_known_by_its_identity_on_its_own_connection() {
    let mut scene = Scene::new().await;
    let fs = scene.peer.agent().clone();
    let permit = permit_for(&scene.me, &"fs@acme".parse().unwrap(), "fs.add");
    let word = scene.broker.credential(&fs, &permit);
    let arguments = asking("fs.add", r#"{"a":2,"b":3}"#);
    for vouching in [Vouching::Full(word.bytes.clone()), Vouching::Known(word.id)] {
        let call = scene.me.say(Kind::ToolCall, &fs, None, &arguments);
        scene.peer.frame(vouching, call.bytes).await;
        assert_eq!(said(&scene.peer.receive().await), Ok("5".into()));
    }
    drop(scene.peer);
    scene.clock.somebody_sleeps().await;
    scene.clock.advance(Duration::from_secs(1));
    scene.peer = scene.broker.serving().await;
    let call = scene.me.say(Kind::ToolCall, &fs, None, &arguments);
    scene.peer.frame(Vouching::Known(word.id), call.bytes).await;
    // Nobody is vouched for, so nobody is answered: the next answer is the next call's.
    scene.lives().await;
}

#[tokio::test]
async fn a_lost_connection_drops_what_nobody_will_take_the_answer_of() {
    let mut scene = Scene::new().await;
    scene.peer.calls(&scene.me, "fs.hold", "{}").await;
    scene.lives().await;
    drop(scene.peer);
    let dropped = Arc::clone(&scene.dropped);
    let waiting = async {
        while !dropped.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    };
    soon("dropping the tool's future", waiting).await;
}

#[tokio::test]
async fn stopping_takes_the_offer_back_and_lets_calls_finish() {
    let mut scene = Scene::new().await;
    let call = scene.peer.calls(&scene.me, "fs.hold", "{}").await;
    scene.lives().await;
    scene.stop.notify_one();
    let back = scene.peer.receive().await;
    assert_eq!(
        (back.kind(), back.body()),
        (Kind::OfferTools, r#"{"tools":[]}"#)
    );
    scene
        .peer
        .ack(&back, &agent_sdk::Ack::Offered { tools: 0 })
        .await;
    scene.held.notify_waiters();
    let answer = scene.peer.receive().await;
    assert_eq!(
        (answer.re(), said(&answer)),
        (Some(call), Ok("\"held\"".into()))
    );
    soon("the end", scene.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn stopping_does_not_wait_for_ever() {
    let mut scene = Scene::new().await;
    let call = scene.peer.calls(&scene.me, "fs.hold", "{}").await;
    scene.lives().await;
    scene.stop.notify_one();
    let back = scene.peer.receive().await;
    scene
        .peer
        .ack(&back, &agent_sdk::Ack::Offered { tools: 0 })
        .await;
    scene.clock.somebody_sleeps().await;
    scene.clock.advance(Duration::from_secs(30));
    let answer = scene.peer.receive().await;
    assert_eq!(
        (answer.re(), said(&answer)),
        (Some(call), Err("TOOL_STOPPED".into()))
    );
    soon("the end", scene.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn every_call_beyond_the_places_is_told_so_however_many_come_at_once() {
    let mut scene = Scene::new().await;
    for _ in 0..3 {
        scene.peer.calls(&scene.me, "fs.hold", "{}").await;
    }
    for _ in 0..500 {
        scene.peer.calls(&scene.me, "fs.hold", "{}").await;
    }
    for _ in 0..500 {
        assert_eq!(said(&scene.peer.receive().await), Err("BUSY".into()));
    }
}

#[tokio::test]
async fn a_provider_that_is_dropped_in_mid_call_says_so_and_takes_its_offer_back() {
    let mut scene = Scene::new().await;
    let call = scene.peer.calls(&scene.me, "fs.hold", "{}").await;
    scene.lives().await;
    scene.serving.abort();
    let answer = scene.peer.receive().await;
    assert_eq!(
        (answer.re(), said(&answer)),
        (Some(call), Err("TOOL_STOPPED".into()))
    );
    let back = scene.peer.receive().await;
    assert_eq!(
        (back.kind(), back.body()),
        (Kind::OfferTools, r#"{"tools":[]}"#)
    );
}

#[tokio::test]
async fn a_grant_that_demands_a_sandbox_is_run_by_no_tool_outside_it() {
    let mut scene = Scene::new().await;
    let fs = "fs@acme".parse().unwrap();
    for (tool, demand, expected) in [
        ("fs.add", "wasm", Err("SANDBOX_REQUIRED".to_owned())),
        ("fs.caged", "process", Err("SANDBOX_REQUIRED".to_owned())),
        ("fs.caged", "wasm", Ok("null".to_owned())),
    ] {
        let mut credential = permit_for(&scene.me, &fs, tool);
        credential.permit.as_mut().unwrap().sandbox = Some(demand.into());
        let call = scene.me.say(
            Kind::ToolCall,
            scene.peer.agent(),
            None,
            &asking(tool, "{}"),
        );
        scene.peer.deliver(&credential, &call).await;
        assert_eq!(
            said(&scene.peer.receive().await),
            expected,
            "{tool} in {demand}"
        );
    }
}

#[tokio::test]
async fn what_cannot_be_offered_is_said_before_anything_is_sent() {
    let broker = FakeBroker::start().await;
    let agent = broker.agent("fs@acme", 10);
    let tool = |name: &str| Tool::new(name, |_: Call, _: Add| async { Ok(Digest([0; 32])) });
    let error = agent
        .serve([tool("admin.x"), tool("fs.a"), tool("fs.a"), tool("no name")])
        .await
        .unwrap_err()
        .to_string();
    for part in ["admin.x", "twice", "no name"] {
        assert!(error.contains(part), "{error}");
    }
}
