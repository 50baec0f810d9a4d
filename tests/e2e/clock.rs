//! Time inside a broker: a machine's clock that is set reopens nothing, and locks nobody out.

use std::time::Duration;

use bytes::Bytes;
use proto_spec::{Code, Kind, Timestamp};
use serde_json::json;
use tests::lab::{Actor, Lab, START, to_broker};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::refused;

const HOUR: Duration = Duration::from_secs(3_600);
const WINDOW: Duration = Duration::from_secs(300);

/// What monitoring sees.
async fn ops(lab: &Lab, path: &str) -> String {
    let mut stream = TcpStream::connect(lab.broker.ops_address()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// An admin's harmless act, signed at `ts`.
fn act(actor: &Actor, ts: Timestamp) -> Bytes {
    let to = to_broker().unwrap();
    let sealed = actor.seal(Kind::AdminAgentList, &to, ts, &json!({}));
    sealed.unwrap().bytes
}

/// The code of the answer, if it is a refusal.
async fn refusal(lab: &Lab, bytes: Bytes) -> Option<Code> {
    let reply = lab.post(bytes).await.unwrap();
    (reply.status != 200).then(|| refused(&reply))
}

#[tokio::test]
async fn a_wall_clock_that_jumps_raises_the_alarm_and_reopens_nothing_and_locks_nobody_out() {
    let lab = Lab::start().await.unwrap();
    let clock = &lab.broker.core().clock;
    let used = act(&lab.admin, lab.now());
    assert_eq!(refusal(&lab, used.clone()).await, None);
    for wall in [START.later(HOUR), START.earlier(HOUR)] {
        clock.set_wall(wall);
        let ready = ops(&lab, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        assert!(ready.contains("CLOCK"), "{ready}");
        let metrics = ops(&lab, "/metrics").await;
        assert!(metrics.contains("fem_clock_alarm 1\n"), "{metrics}");
        assert!(metrics.contains("fem_clock_departure_ms 3600000\n"));
        assert_eq!(refusal(&lab, used.clone()).await, Some(Code::Replayed));
        assert_eq!(
            refusal(&lab, act(&lab.admin, wall)).await,
            Some(Code::Stale)
        );
        assert_eq!(refusal(&lab, act(&lab.admin, lab.now())).await, None);
    }
    clock.set_wall(START);
    assert!(ops(&lab, "/readyz").await.ends_with("ready\n"));
    assert!(ops(&lab, "/metrics").await.contains("fem_clock_alarm 0\n"));
}

#[tokio::test]
async fn a_wall_clock_that_is_set_back_revives_neither_what_expired_nor_what_was_revoked() {
    let lab = Lab::start().await.unwrap();
    lab.agent("fs", 2, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &[]).await.unwrap();
    let gone = lab.agent("gone", 4, &["fs.read"]).await.unwrap();
    let minute = Duration::from_secs(60);
    let grant = json!({
        "agent": "caller", "capabilities": ["fs.read"], "expires": lab.now().later(minute), "record": true,
    });
    lab.ask(&lab.admin, Kind::AdminTokenIssue, &grant)
        .await
        .unwrap();
    let call = async |actor: &Actor| {
        let call = actor.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
        refusal(&lab, call.bytes).await.unwrap()
    };
    // Nobody serves it: whoever may call is told so.
    assert_eq!(call(&caller).await, Code::Unavailable);
    assert_eq!(call(&gone).await, Code::Unavailable);
    let revoke = json!({"name": "gone"});
    lab.ask(&lab.admin, Kind::AdminAgentRevoke, &revoke)
        .await
        .unwrap();
    lab.broker.core().clock.advance(minute * 2);
    let expired = call(&caller).await;
    assert_ne!(expired, Code::Unavailable);
    lab.broker.core().clock.set_wall(START);
    assert_eq!(call(&caller).await, expired);
    assert_eq!(call(&gone).await, Code::NotAuthentic);
}

#[tokio::test]
async fn a_start_behind_the_records_waits_until_the_operator_accepts_the_clock() {
    let lab = Lab::start().await.unwrap();
    let used = act(&lab.admin, lab.now());
    assert_eq!(refusal(&lab, used.clone()).await, None);
    let back = START.earlier(HOUR);
    let lab = lab.restart_at(back, false).await.unwrap();
    for ts in [back, START] {
        assert_eq!(refusal(&lab, act(&lab.admin, ts)).await, Some(Code::Clock));
    }
    let newcomer = Actor::new("newcomer", 7).unwrap();
    let asked = lab.register(&newcomer).await.unwrap_err().to_string();
    assert!(asked.contains("CLOCK"), "{asked}");
    let attached = lab.attach(&lab.admin).await.unwrap_err().to_string();
    assert!(attached.contains("CLOCK"), "{attached}");
    let ready = ops(&lab, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(ready.contains("--accept-clock"), "{ready}");

    let lab = lab.restart_at(back, true).await.unwrap();
    assert!(ops(&lab, "/readyz").await.ends_with("ready\n"));
    // What the right clock may have accepted once is refused for a window.
    assert_eq!(
        refusal(&lab, act(&lab.admin, lab.now())).await,
        Some(Code::Stale)
    );
    // It is on record: the next start does not wait.
    let lab = lab.restart_at(back.later(WINDOW * 2), false).await.unwrap();
    assert_eq!(refusal(&lab, act(&lab.admin, lab.now())).await, None);
    // When the time comes in which the other clock accepted, its envelopes stay refused.
    let lab = lab.restart_at(START, false).await.unwrap();
    assert_eq!(refusal(&lab, used).await, Some(Code::Stale));
}

#[tokio::test]
async fn a_start_behind_the_records_goes_on_when_the_clock_was_set_right() {
    let lab = Lab::start().await.unwrap();
    let used = act(&lab.admin, lab.now());
    assert_eq!(refusal(&lab, used.clone()).await, None);
    let lab = lab.restart_at(START.earlier(HOUR), false).await.unwrap();
    assert_eq!(refusal(&lab, used.clone()).await, Some(Code::Clock));
    lab.broker
        .core()
        .clock
        .set_wall(START.later(Duration::from_secs(30)));
    assert!(ops(&lab, "/readyz").await.ends_with("ready\n"));
    assert_eq!(refusal(&lab, used).await, Some(Code::Replayed));
    assert_eq!(refusal(&lab, act(&lab.admin, lab.now())).await, None);
}

#[tokio::test]
async fn a_start_a_few_seconds_behind_the_records_does_not_wait() {
    let lab = Lab::start().await.unwrap();
    let used = act(&lab.admin, lab.now());
    assert_eq!(refusal(&lab, used.clone()).await, None);
    let slow = START.earlier(Duration::from_secs(4));
    let lab = lab.restart_at(slow, false).await.unwrap();
    assert_eq!(refusal(&lab, used).await, Some(Code::Replayed));
    assert_eq!(refusal(&lab, act(&lab.admin, lab.now())).await, None);
}

#[tokio::test]
async fn a_sender_that_runs_ahead_is_answered_as_soon_as_its_ceiling_is_durable() {
    let lab = Lab::start().await.unwrap();
    for ahead in [4, 100, 290, 299] {
        let ts = lab.now().later(Duration::from_secs(ahead));
        assert_eq!(refusal(&lab, act(&lab.admin, ts)).await, None, "{ahead}");
    }
    // And a broker that was idle for an hour takes the first envelope after it.
    lab.broker.core().clock.advance(HOUR);
    assert_eq!(refusal(&lab, act(&lab.admin, lab.now())).await, None);
}
