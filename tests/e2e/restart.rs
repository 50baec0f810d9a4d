//! What survives `kill -9`, with the real binary.

use proto_spec::{Code, Kind};
use serde_json::json;
use tests::lab::{Actor, code_of, to_broker, wall_clock as now};
use tests::site::Site;
use tests::wire::Line;

#[tokio::test]
async fn a_nonce_stays_used_after_kill_9() {
    let site = Site::new("").unwrap();
    let admin = &site.admin;
    let broker = site.start().unwrap();
    let line = site.line(&broker).unwrap();
    let mut sent = Vec::new();
    for _ in 0..50 {
        let sealed = admin
            .seal(
                Kind::AdminAgentList,
                &to_broker().unwrap(),
                now(),
                &json!({}),
            )
            .unwrap();
        assert_eq!(
            line.post("/fem", sealed.bytes.clone())
                .await
                .unwrap()
                .status,
            200
        );
        sent.push(sealed.bytes);
    }
    broker.kill().unwrap();
    let broker = site.start().unwrap();
    let line = site.line(&broker).unwrap();
    for bytes in sent {
        let reply = line.post("/fem", bytes).await.unwrap();
        assert_eq!(code_of(&reply.envelope().unwrap()).unwrap(), Code::Replayed);
    }
    let sealed = admin
        .seal(
            Kind::AdminAgentList,
            &to_broker().unwrap(),
            now(),
            &json!({}),
        )
        .unwrap();
    assert_eq!(
        line.post("/fem", sealed.bytes).await.unwrap().status,
        200,
        "and a new one is taken"
    );
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let site = Site::new("").unwrap();
    let admin = &site.admin;
    let broker = site.start().unwrap();
    let line = site.line(&broker).unwrap();
    let agent = Actor::new("fs", 2).unwrap();
    let ask = async |line: &Line, actor: &Actor, kind: Kind, body: serde_json::Value| {
        let sealed = actor
            .seal(kind, &to_broker().unwrap(), now(), &body)
            .unwrap();
        line.post("/fem", sealed.bytes).await.unwrap()
    };
    let key = agent.key.public();
    ask(&line, &agent, Kind::RegisterAgent, json!({"pubkey": key})).await;
    let body = json!({"name": "fs", "key": key, "capabilities": ["x.y"]});
    assert_eq!(
        ask(&line, admin, Kind::AdminAgentApprove, body)
            .await
            .status,
        200
    );
    broker.kill().unwrap();
    let broker = site.start().unwrap();
    let line = site.line(&broker).unwrap();
    let reply = ask(&line, &agent, Kind::RegisterAgent, json!({"pubkey": key})).await;
    assert!(
        String::from_utf8_lossy(&reply.body).contains("registered"),
        "{:?}",
        reply.body
    );
    assert_eq!(
        ask(&line, admin, Kind::AdminAgentRevoke, json!({"name": "fs"}))
            .await
            .status,
        200
    );
    broker.kill().unwrap();
    let broker = site.start().unwrap();
    let line = site.line(&broker).unwrap();
    let reply = ask(&line, &agent, Kind::RegisterAgent, json!({"pubkey": key})).await;
    assert_eq!(
        code_of(&reply.envelope().unwrap()).unwrap(),
        Code::Denied,
        "revoked stays revoked"
    );
}

#[tokio::test]
async fn control_characters_never_reach_a_log_line_raw() {
    let site = Site::new("").unwrap();
    let admin = &site.admin;
    let log = site.at("log");
    let mut broker = std::process::Command::new(tests::binaries::path("fem-broker").unwrap());
    broker
        .arg(site.at("broker.toml"))
        .env("FEM_LOG", "debug")
        .stdout(std::process::Stdio::piped())
        .stderr(std::fs::File::create(&log).unwrap());
    let mut child = tests::binaries::apart(&mut broker).spawn().unwrap();
    let mut ready = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(child.stdout.take().unwrap()),
        &mut ready,
    )
    .unwrap();
    let address = ready.split_whitespace().nth(1).unwrap().parse().unwrap();
    let line = Line::new(address, &site.authority().unwrap()).unwrap();
    let evil = "x\n2026 INFO forged\u{1b}[31m\u{202e}\r";
    for (kind, body) in [
        (Kind::AdminAgentList, json!({ evil: 1 })),
        (
            Kind::AdminTokenIssue,
            json!({"agent": "a", "capabilities": [], "checks": [evil], "record": true}),
        ),
        (Kind::AdminAgentShow, json!({ "name": evil })),
        (
            Kind::RegisterAgent,
            json!({"pubkey": admin.key.public(), "note": evil, evil: 2}),
        ),
    ] {
        let sealed = admin
            .seal(kind, &to_broker().unwrap(), now(), &body)
            .unwrap();
        line.post("/fem", sealed.bytes).await.unwrap();
    }
    let raw = format!("{{\"type\":\"{evil}\",\"{evil}\":1}}");
    line.post("/fem", raw).await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let logged = std::fs::read_to_string(&log).unwrap();
    assert!(logged.contains("refused"), "{logged}");
    assert!(
        !logged
            .lines()
            .any(|line| line.starts_with("2026 INFO forged")),
        "{logged}"
    );
    assert!(
        !logged
            .chars()
            .any(|c| c.is_control() && c != '\n' || c == '\u{202e}'),
        "{logged:?}"
    );
}
