//! What a broker refuses, with which code, and that refusing changes nothing.

use std::time::Duration;

use bytes::Bytes;
use proto_spec::capability::{Check, Narrowing, Terms, decode_text, encode_text, issue};
use proto_spec::message::{Ack, Attach, Challenge};
use proto_spec::{Code, Digest, Kind, PublicKey, SigningKey, Timestamp};
use serde_json::{Value, json};
use tests::lab::{Actor, Extra, Lab, ROOT_SEED, code_of, hears_refusal, org, patterns, to_broker};
use tests::wire::{Heard, Socket};

use crate::refused;

/// A lab with a provider that serves `fs.read`, and a caller that may call it.
struct World {
    lab: Lab,
    fs: Actor,
    caller: Actor,
    provider: Socket,
}

impl World {
    async fn new() -> Self {
        let lab = Lab::start().await.unwrap();
        let fs = lab.agent("fs", 2, &[]).await.unwrap();
        let caller = lab.agent("caller", 3, &["fs.*"]).await.unwrap();
        let provider = lab.provide(&fs, &["fs.read"]).await.unwrap();
        Self {
            lab,
            fs,
            caller,
            provider,
        }
    }

    fn call(&self) -> String {
        let sealed = self
            .caller
            .call("fs", "fs.read", &json!({"path": "/a"}), self.lab.now())
            .unwrap();
        String::from_utf8(sealed.bytes.to_vec()).unwrap()
    }

    /// The same call, signed after its text was changed.
    fn resigned(&self, change: impl Fn(&str) -> String) -> Bytes {
        let sealed = self.call();
        let envelope = proto_spec::Envelope::parse(sealed.into(), 1 << 20).unwrap();
        let signed = change(std::str::from_utf8(&envelope.signed_bytes()).unwrap());
        let signature = self.caller.key.sign(signed.as_bytes());
        proto_spec::wire::splice(signed.as_bytes(), &signature).into()
    }

    async fn post(&self, bytes: impl Into<Bytes>) -> Code {
        refused(&self.lab.post(bytes).await.unwrap())
    }

    /// A call that has to come through.
    async fn calls_through(&mut self, bytes: Bytes) {
        let (reply, ()) = tokio::join!(self.lab.line.post("/fem", bytes), async {
            let delivered = self.provider.hear().await.unwrap().delivered().unwrap();
            let result = self.lab.result(&self.fs, &delivered, &json!(1)).unwrap();
            self.provider.send(result.bytes).await.unwrap();
        });
        let reply = reply.unwrap();
        assert_eq!(reply.status, 200, "{:?}", reply.body);
    }
}

#[tokio::test]
async fn what_is_not_strict_json_is_malformed() {
    let mut world = World::new().await;
    let call = world.call();
    let body = r#""body":{"#;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("not JSON", b"hello".to_vec()),
        ("empty", Vec::new()),
        ("an array", b"[]".to_vec()),
        (
            "byte order mark",
            [b"\xef\xbb\xbf", call.as_bytes()].concat(),
        ),
        ("trailing bytes", format!("{call} x").into_bytes()),
        ("trailing newline", format!("{call}\n").into_bytes()),
        ("leading space", format!(" {call}").into_bytes()),
        (
            "not UTF-8",
            call.replace("/a", "\u{1}")
                .into_bytes()
                .iter()
                .map(|b| if *b == 1 { 0xff } else { *b })
                .collect(),
        ),
        (
            "duplicate key in the body",
            world
                .resigned(|t| t.replace(body, r#""body":{"x":1,"x":2,"#))
                .to_vec(),
        ),
        (
            "duplicate behind an escape",
            world
                .resigned(|t| t.replace("\"path\":", "\"p\\u0061th\":0,\"path\":"))
                .to_vec(),
        ),
        (
            "lone surrogate",
            world.resigned(|t| t.replace("/a", "\\ud800")).to_vec(),
        ),
        (
            "too deep",
            world
                .resigned(|t| t.replace("\"/a\"", &format!("{}{}", "[".repeat(62), "]".repeat(62))))
                .to_vec(),
        ),
        (
            "unknown header member",
            world
                .resigned(|t| t.replace(body, r#""x":1,"body":{"#))
                .to_vec(),
        ),
        (
            "escaped header name",
            world
                .resigned(|t| t.replace("\"nonce\"", "\"n\\u006fnce\""))
                .to_vec(),
        ),
        (
            "missing nonce",
            world
                .resigned(|t| t.replace("\"nonce\":", "\"via\":"))
                .to_vec(),
        ),
        (
            "doubled ts",
            world
                .resigned(|t| t.replace(body, &format!("\"ts\":1,{body}")))
                .to_vec(),
        ),
        (
            "ts as a string",
            world
                .resigned(|t| t.replace("\"ts\":1800000000000", "\"ts\":\"1800000000000\""))
                .to_vec(),
        ),
        (
            "ts as a float",
            world
                .resigned(|t| t.replace("\"ts\":1800000000000", "\"ts\":1.8e12"))
                .to_vec(),
        ),
        (
            "body as a list",
            world
                .resigned(|t| format!("{}\"body\":[]}}", &t[..t.find("\"body\"").unwrap()]))
                .to_vec(),
        ),
        (
            "short nonce",
            world.resigned(|t| t.replace("lab-nonce-0", "x")).to_vec(),
        ),
        (
            "control character in a header value",
            world
                .resigned(|t| t.replace("caller@acme", "caller@ac\u{7f}me"))
                .to_vec(),
        ),
        (
            "misspelled sig",
            call.replace("\"sig\"", "\"Sig\"").into_bytes(),
        ),
        (
            "doubled sig",
            call.replace(
                ",\"sig\"",
                &format!(",\"sig\":\"{}==\",\"sig\"", "A".repeat(86)),
            )
            .into_bytes(),
        ),
        (
            "no sig",
            proto_spec::Envelope::parse(call.clone().into(), 1 << 20)
                .unwrap()
                .signed_bytes(),
        ),
    ];
    for (why, bytes) in cases {
        assert_eq!(world.post(bytes).await, Code::Malformed, "{why}");
    }
    let nested = world.resigned(|text| text.replace("\"/a\"", "{\"sig\":\"inner\"}"));
    world.calls_through(nested).await;
    let first = proto_spec::Envelope::parse(world.call().into(), 1 << 20).unwrap();
    let sig = &call[call.find(",\"sig\":").unwrap() + 1..call.len() - 1];
    let signed = String::from_utf8(first.signed_bytes()).unwrap();
    assert_eq!(
        world.post(format!("{{{sig},{}", &signed[1..])).await,
        Code::Malformed,
        "sig first"
    );
}

#[tokio::test]
async fn every_flipped_byte_of_a_signed_envelope_is_refused() {
    let mut world = World::new().await;
    let call = world.call();
    for at in 0..call.len() {
        let mut forged = call.clone().into_bytes();
        forged[at] ^= 0x01;
        let code = world.post(forged).await;
        let expected = [
            Code::Malformed,
            Code::NotAuthentic,
            Code::UnknownType,
            Code::Stale,
            Code::WrongAudience,
        ];
        assert!(expected.contains(&code), "byte {at}: {code}");
    }
    // None of these forgeries used up the nonce.
    world.calls_through(call.into()).await;
}

#[tokio::test]
async fn a_forged_envelope_does_not_use_up_the_nonce() {
    let mut world = World::new().await;
    let call = world.call();
    assert_eq!(
        world.post(call.replace("/a", "/b")).await,
        Code::NotAuthentic
    );
    world.calls_through(call.clone().into()).await;
    assert_eq!(world.post(call).await, Code::Replayed);
}

#[tokio::test]
async fn moving_sig_changes_no_identity() {
    let mut world = World::new().await;
    let call = world.call();
    let at = call.find(",\"sig\":").unwrap();
    let sig = call[at..call.len() - 1].to_owned();
    world.calls_through(call.clone().into()).await;
    let body = call.find(",\"body\"").unwrap();
    let moved = format!("{}{sig}{}}}", &call[..body], &call[body..at]);
    assert_eq!(world.post(moved).await, Code::Replayed);
}

#[tokio::test]
async fn a_timestamp_outside_the_window_on_either_side_is_stale() {
    let mut world = World::new().await;
    let now = world.lab.now();
    let five = Duration::from_secs(300);
    let ms = Duration::from_millis(1);
    for ts in [
        now.earlier(five + ms),
        now.later(five + ms),
        Timestamp::from_ms(0),
    ] {
        let call = world.caller.call("fs", "fs.read", &json!({}), ts).unwrap();
        assert_eq!(world.post(call.bytes).await, Code::Stale, "{ts:?}");
    }
    for ts in [now.earlier(five), now.later(five)] {
        let call = world.caller.call("fs", "fs.read", &json!({}), ts).unwrap();
        world.calls_through(call.bytes).await;
    }
}

#[tokio::test]
async fn a_stranger_cannot_tell_unknown_agent_from_wrong_signature() {
    let world = World::new().await;
    let ghost = Actor::new("ghost", 9).unwrap();
    let impostor = Actor::new("caller", 9).unwrap();
    let mut answers = Vec::new();
    for actor in [&ghost, &impostor] {
        let call = actor
            .call("fs", "fs.read", &json!({}), world.lab.now())
            .unwrap();
        let reply = world.lab.post(call.bytes).await.unwrap();
        assert_eq!(refused(&reply), Code::NotAuthentic);
        let envelope = reply.envelope().unwrap();
        assert_eq!(
            (envelope.to(), envelope.re()),
            (None, None),
            "there is no verified sender to name"
        );
        answers.push(envelope.body().to_owned());
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test]
async fn what_is_meant_for_another_broker_is_refused_and_stays_usable_there() {
    let world = World::new().await;
    // A call goes on to another organisation, where it may; another kind of envelope does not.
    for (to, code) in [
        ("fs@globex", Code::Denied),
        ("broker@globex", Code::WrongAudience),
        ("topic:globex/x", Code::WrongAudience),
    ] {
        let sealed = world.caller.seal(
            Kind::ToolCall,
            &to.parse().unwrap(),
            world.lab.now(),
            &json!({"tool": "fs.read"}),
        );
        assert_eq!(world.post(sealed.unwrap().bytes).await, code, "{to}");
    }
    let nobody = world.resigned(|text| text.replace("\"to\":\"fs@acme\",", ""));
    assert_eq!(world.post(nobody).await, Code::WrongAudience);
    let version = world.resigned(|text| text.replace("{\"type\"", "{\"v\":2,\"type\""));
    assert_eq!(world.post(version).await, Code::UnsupportedVersion);
}

#[tokio::test]
async fn types_that_are_unknown_or_a_brokers_to_say_are_refused() {
    let world = World::new().await;
    for kind in [
        "nonsense",
        "credential",
        "ack",
        "error",
        "event",
        "challenge",
        "toolsDiscovered",
        "acceptKey",
        "ToolCall",
    ] {
        let bytes = world.resigned(|text| text.replace("\"toolCall\"", &format!("\"{kind}\"")));
        assert_eq!(world.post(bytes).await, Code::UnknownType, "{kind}");
    }
}

/// One test for every type: none passes with a signature that is not its sender's.
#[tokio::test]
async fn every_type_refuses_a_wrong_signature() {
    let world = World::new().await;
    let impostor = Actor {
        id: world.caller.id.clone(),
        key: SigningKey::from_seed(&[0x77; 32]),
    };
    for kind in Kind::ALL.iter().filter(|kind| !kind.is_brokers()) {
        let extra = Extra {
            re: Some(Digest([1; 32])),
            ..Extra::default()
        };
        let body = match kind {
            Kind::RegisterAgent => json!({"pubkey": world.caller.key.public()}),
            _ => json!({}),
        };
        let sealed = impostor
            .seal_with(*kind, &to_broker().unwrap(), world.lab.now(), &body, &extra)
            .unwrap();
        let code = world.post(sealed.bytes).await;
        let expected = [Code::NotAuthentic, Code::SessionRequired, Code::UnknownType];
        assert!(expected.contains(&code), "{kind}: {code}");
    }
    // Over a session the types that need one get as far as their signature.
    let mut session = world.lab.attach(&world.caller).await.unwrap();
    for kind in Kind::ALL.iter().filter(|kind| !kind.is_brokers()) {
        if matches!(kind, Kind::Attach | Kind::RegisterAgent | Kind::AcceptKey) {
            continue;
        }
        let extra = Extra {
            re: Some(Digest([1; 32])),
            ..Extra::default()
        };
        let sealed = impostor
            .seal_with(
                *kind,
                &to_broker().unwrap(),
                world.lab.now(),
                &json!({}),
                &extra,
            )
            .unwrap();
        session.send(sealed.bytes).await.unwrap();
        assert_eq!(
            hears_refusal(&mut session).await.unwrap(),
            Code::NotAuthentic,
            "{kind}"
        );
    }
}

#[tokio::test]
async fn what_needs_a_session_is_refused_over_post() {
    let world = World::new().await;
    for kind in [
        Kind::Attach,
        Kind::OfferTools,
        Kind::ToolResult,
        Kind::ToolProgress,
        Kind::ToolCancel,
        Kind::ToolInput,
        Kind::Subscribe,
        Kind::Unsubscribe,
    ] {
        let extra = Extra {
            re: Some(Digest([1; 32])),
            ..Extra::default()
        };
        let sealed = world.caller.seal_with(
            kind,
            &to_broker().unwrap(),
            world.lab.now(),
            &json!({}),
            &extra,
        );
        assert_eq!(
            world.post(sealed.unwrap().bytes).await,
            Code::SessionRequired,
            "{kind}"
        );
    }
}

#[tokio::test]
async fn a_session_speaks_for_one_agent() {
    let world = World::new().await;
    let mut session = world.lab.attach(&world.caller).await.unwrap();
    let other = world
        .fs
        .call("fs", "fs.read", &json!({}), world.lab.now())
        .unwrap();
    session.send(other.bytes).await.unwrap();
    assert_eq!(
        hears_refusal(&mut session).await.unwrap(),
        Code::NotAuthentic
    );
}

#[tokio::test]
async fn a_challenge_is_good_for_its_own_connection_only() {
    let world = World::new().await;
    let (mut first, channel) = world.lab.line.websocket().await.unwrap();
    let (mut second, _) = world.lab.line.websocket().await.unwrap();
    let challenge: Challenge = first
        .hear()
        .await
        .unwrap()
        .said()
        .unwrap()
        .read_body()
        .unwrap();
    second.hear().await.unwrap();
    let body = Attach {
        challenge: challenge.challenge,
        channel,
    };
    let attach = world
        .caller
        .seal(Kind::Attach, &to_broker().unwrap(), world.lab.now(), &body)
        .unwrap();
    second.send(attach.bytes).await.unwrap();
    assert_eq!(hears_refusal(&mut second).await.unwrap(), Code::Denied);
    assert!(matches!(second.hear().await.unwrap(), Heard::Closed));
}

#[tokio::test]
async fn an_agent_that_saw_another_certificate_is_refused() {
    let world = World::new().await;
    let (mut socket, _) = world.lab.line.websocket().await.unwrap();
    let challenge: Challenge = socket
        .hear()
        .await
        .unwrap()
        .said()
        .unwrap()
        .read_body()
        .unwrap();
    let body = Attach {
        challenge: challenge.challenge,
        channel: Digest([7; 32]),
    };
    let attach = world
        .caller
        .seal(Kind::Attach, &to_broker().unwrap(), world.lab.now(), &body)
        .unwrap();
    socket.send(attach.bytes).await.unwrap();
    assert_eq!(hears_refusal(&mut socket).await.unwrap(), Code::Denied);
    assert!(matches!(socket.hear().await.unwrap(), Heard::Closed));
}

#[tokio::test]
async fn before_it_is_attached_a_connection_may_say_nothing_else() {
    let world = World::new().await;
    let (mut socket, _) = world.lab.line.websocket().await.unwrap();
    socket.hear().await.unwrap();
    socket.send(world.call()).await.unwrap();
    assert_eq!(
        hears_refusal(&mut socket).await.unwrap(),
        Code::SessionRequired
    );
    assert!(matches!(socket.hear().await.unwrap(), Heard::Closed));
}

#[tokio::test]
async fn an_oversized_body_is_refused_before_it_is_buffered() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let lab = Lab::with_limits("envelope_bytes_max = 4096").await.unwrap();
    let reply = lab.post(vec![b'{'; 5_000]).await.unwrap();
    assert_eq!(refused(&reply), Code::TooLarge);
    // A stated length is enough: not one byte of the body is sent.
    let mut stream = lab.line.connect().await.unwrap();
    let head = "POST /fem HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 64];
    let read = tokio::time::timeout(tests::wire::PATIENCE, stream.read(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(String::from_utf8_lossy(&answer[..read]).starts_with("HTTP/1.1 413"));
}

#[tokio::test]
async fn a_tool_outside_the_prefixes_is_not_offered() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &["*"]).await.unwrap();
    let mut session = lab.attach(&fs).await.unwrap();
    for tools in [
        &["fs.read", "shell.run"][..],
        &["admin.x"],
        &["filesystem.read"],
        &["fs.read", "fs.read"],
    ] {
        let said = lab.offer(&fs, &mut session, tools).await.unwrap();
        assert_eq!(code_of(&said).unwrap(), Code::OfferDenied, "{tools:?}");
    }
    let call = caller.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
    assert_eq!(
        refused(&lab.post(call.bytes).await.unwrap()),
        Code::Unavailable,
        "nothing was taken"
    );
}

#[tokio::test]
async fn every_answer_of_the_broker_is_signed_and_names_what_it_answers() {
    let world = World::new().await;
    let broker = world.lab.broker_key();
    let query = world
        .caller
        .seal(
            Kind::DiscoverTools,
            &to_broker().unwrap(),
            world.lab.now(),
            &json!({}),
        )
        .unwrap();
    let forbidden = world
        .fs
        .call("fs", "fs.read", &json!({}), world.lab.now())
        .unwrap();
    for (actor, sealed) in [(&world.caller, query), (&world.fs, forbidden)] {
        let envelope = world
            .lab
            .post(sealed.bytes)
            .await
            .unwrap()
            .envelope()
            .unwrap();
        assert!(broker.verifies(&envelope.signed_bytes(), envelope.signature()));
        assert_eq!(envelope.re(), Some(sealed.id));
        assert_eq!(envelope.to().unwrap().to_string(), actor.id.to_string());
        assert_eq!(envelope.speaker().to_string(), "broker@acme");
    }
    let envelope = world
        .lab
        .post("nonsense")
        .await
        .unwrap()
        .envelope()
        .unwrap();
    assert!(broker.verifies(&envelope.signed_bytes(), envelope.signature()));
}

#[tokio::test]
async fn refusals_change_nothing() {
    let world = World::new().await;
    let list = |lab: &Lab| {
        let registry = &lab.broker.core().state.registry;
        let mut all = Vec::new();
        for agent in registry.agents_after(None) {
            let (key, grants) = (agent.key.key(), agent.grants.records());
            all.push(format!(
                "{} {key} {:?} {grants:?}",
                agent.name, agent.prefixes
            ));
        }
        registry.each_issued(None, |record| {
            all.push(format!("{record:?}"));
            true
        });
        all.push(lab.broker.core().state.calls.len().to_string());
        all
    };
    let before = list(&world.lab);
    for (kind, body) in [
        (
            Kind::AdminAgentApprove,
            json!({"name": "caller", "key": world.caller.key.public(), "capabilities": ["*"]}),
        ),
        (Kind::AdminAgentRevoke, json!({"name": "fs"})),
        (
            Kind::AdminTokenIssue,
            json!({"agent": "caller", "capabilities": ["*"], "checks": [], "record": true}),
        ),
        (Kind::Revoke, json!({"ids": [Digest([1; 32])]})),
        (
            Kind::AdminEnrolIssue,
            json!({"name": "*", "ceiling": ["*"]}),
        ),
    ] {
        let sealed = world
            .caller
            .seal(kind, &to_broker().unwrap(), world.lab.now(), &body)
            .unwrap();
        assert_eq!(world.post(sealed.bytes).await, Code::Denied, "{kind}");
    }
    let wrong =
        json!({"agent": "caller", "capabilities": ["*"], "checks": ["nonsense"], "record": true});
    let sealed = world
        .lab
        .admin
        .seal(
            Kind::AdminTokenIssue,
            &to_broker().unwrap(),
            world.lab.now(),
            &wrong,
        )
        .unwrap();
    assert_eq!(world.post(sealed.bytes).await, Code::InvalidBody);
    assert_eq!(list(&world.lab), before);
}

// --- tokens -----------------------------------------------------------------------------------------

fn mint(
    root: &SigningKey,
    holder: PublicKey,
    capabilities: &[&str],
    expires: Timestamp,
) -> Vec<u8> {
    let terms = Terms {
        agent: "caller@acme".parse().unwrap(),
        holder,
        capabilities: patterns(capabilities).unwrap(),
        issued: tests::lab::START,
        not_before: None,
        expires,
        checks: Vec::new(),
        sandbox: None,
        calls: None,
    };
    issue::grant(root, &org().unwrap(), &terms, [7; 32]).unwrap()
}

fn with_token(world: &World, actor: &Actor, token: String, arguments: &Value) -> Bytes {
    let to = "fs@acme".parse().unwrap();
    let extra = Extra {
        token: Some(token),
        ..Extra::default()
    };
    let body = json!({"tool": "fs.read", "arguments": arguments});
    actor
        .seal_with(Kind::ToolCall, &to, world.lab.now(), &body, &extra)
        .unwrap()
        .bytes
}

fn sealed(token: &[u8]) -> String {
    encode_text(&issue::seal(token).unwrap())
}

#[tokio::test]
async fn a_presented_token_replaces_the_record_and_adds_nothing() {
    let mut world = World::new().await;
    let root = SigningKey::from_seed(&ROOT_SEED);
    let later = world.lab.now().later(Duration::from_secs(3_600));
    let own = mint(&root, world.caller.key.public(), &["fs.read"], later);
    world
        .calls_through(with_token(&world, &world.caller, sealed(&own), &json!({})))
        .await;
    let narrower = mint(&root, world.caller.key.public(), &["other.*"], later);
    let call = with_token(&world, &world.caller, sealed(&narrower), &json!({}));
    assert_eq!(
        world.post(call).await,
        Code::Denied,
        "although the record would permit it"
    );
}

#[tokio::test]
async fn tokens_that_are_foreign_expired_unsealed_or_anothers_are_told_apart() {
    let mut world = World::new().await;
    let root = SigningKey::from_seed(&ROOT_SEED);
    let foreign = SigningKey::from_seed(&[0x66; 32]);
    let me = world.caller.key.public();
    let now = world.lab.now();
    let later = now.later(Duration::from_secs(3_600));
    let good = mint(&root, me, &["fs.read"], later);
    let cases = [
        (
            sealed(&mint(&foreign, me, &["fs.read"], later)),
            Code::TokenInvalid,
        ),
        (
            sealed(&mint(
                &root,
                me,
                &["fs.read"],
                now.later(Duration::from_secs(1)),
            )),
            Code::TokenExpired,
        ),
        (encode_text(&good), Code::TokenUnsealed),
        (
            sealed(&mint(&root, world.fs.key.public(), &["fs.read"], later)),
            Code::NotHolder,
        ),
        ("AAAA".into(), Code::TokenMalformed),
        ("x".repeat(10_000), Code::TokenMalformed),
    ];
    world
        .lab
        .broker
        .core()
        .clock
        .advance(Duration::from_secs(2));
    for (token, code) in cases {
        let call = with_token(&world, &world.caller, token, &json!({}));
        let reply = world.lab.post(call).await.unwrap();
        let found = refused(&reply);
        let too_long = code == Code::TokenMalformed && found == Code::Malformed;
        assert!(found == code || too_long, "{found} instead of {code}");
    }
    world
        .calls_through(with_token(&world, &world.caller, sealed(&good), &json!({})))
        .await;
}

#[tokio::test]
async fn a_delegate_calls_with_its_own_key_and_a_revocation_of_its_block_bites_at_once() {
    let mut world = World::new().await;
    let delegate = world.lab.agent("delegate", 5, &[]).await.unwrap();
    let root = SigningKey::from_seed(&ROOT_SEED);
    let later = world.lab.now().later(Duration::from_secs(3_600));
    let own = mint(&root, world.caller.key.public(), &["fs.*"], later);
    let narrowing = Narrowing {
        only: patterns(&["fs.read"]).unwrap(),
        ..Narrowing::default()
    };
    let passed = issue::delegate(
        &own,
        &world.caller.key,
        &delegate.key.public(),
        &narrowing,
        [8; 32],
    )
    .unwrap();
    let passed = sealed(&passed);
    world
        .calls_through(with_token(&world, &delegate, passed.clone(), &json!({})))
        .await;
    let call = with_token(&world, &world.caller, passed.clone(), &json!({}));
    assert_eq!(
        world.post(call).await,
        Code::NotHolder,
        "who passed it on cannot present it"
    );
    let token =
        proto_spec::capability::Token::open(&decode_text(&passed).unwrap(), &[root.public()])
            .unwrap();
    let id = token.blocks()[1].id().0;
    let body = json!({"ids": [id], "token": passed});
    let stranger = world.lab.ask(&world.fs, Kind::Revoke, &body).await;
    assert!(stranger.is_err(), "who never held it revokes nothing");
    world
        .lab
        .ask(&world.caller, Kind::Revoke, &body)
        .await
        .unwrap();
    let call = with_token(&world, &delegate, passed, &json!({}));
    assert_eq!(world.post(call).await, Code::TokenRevoked);
    world
        .calls_through(with_token(&world, &world.caller, sealed(&own), &json!({})))
        .await;
}

#[tokio::test]
async fn a_grant_on_record_with_conditions_holds_them_against_the_arguments() {
    let mut world = World::new().await;
    let limited = world.lab.agent("limited", 5, &[]).await.unwrap();
    let checks: Vec<String> = Check::where_clause("path under /srv/reports")
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    let body =
        json!({"agent": "limited", "capabilities": ["fs.read"], "checks": checks, "record": true});
    let Ack::Issued { id, .. } = world
        .lab
        .ask(&world.lab.admin, Kind::AdminTokenIssue, &body)
        .await
        .unwrap()
    else {
        panic!()
    };
    let call = |path: Value| {
        limited
            .call("fs", "fs.read", &json!({"path": path}), world.lab.now())
            .unwrap()
            .bytes
    };
    let good = call(json!("/srv/reports/q3.txt"));
    let bad: Vec<Bytes> = [
        json!("/srv/other"),
        json!("/srv/reports/../secret"),
        json!("srv/reports/a"),
        json!("/srv/reportsx"),
        json!("/srv/reports//a"),
        json!(7),
        json!(["/srv/reports/a", "/etc/passwd"]),
        json!(null),
    ]
    .map(&call)
    .to_vec();
    for bytes in bad {
        assert_eq!(world.post(bytes).await, Code::Denied);
    }
    world.calls_through(good).await;
    let missing = limited
        .call("fs", "fs.read", &json!({}), world.lab.now())
        .unwrap()
        .bytes;
    assert_eq!(world.post(missing).await, Code::Denied);
    let again = limited
        .call(
            "fs",
            "fs.read",
            &json!({"path": "/srv/reports/a"}),
            world.lab.now(),
        )
        .unwrap()
        .bytes;
    world
        .lab
        .ask(&world.lab.admin, Kind::Revoke, &json!({"ids": [id]}))
        .await
        .unwrap();
    assert_eq!(
        world.post(again).await,
        Code::Denied,
        "revoked, for the next envelope"
    );
}

#[tokio::test]
async fn a_revocation_bites_on_an_open_connection() {
    let mut world = World::new().await;
    let holder = world.lab.agent("holder", 5, &[]).await.unwrap();
    let body =
        json!({"agent": "holder", "capabilities": ["fs.read"], "checks": [], "record": true});
    let Ack::Issued { id, .. } = world
        .lab
        .ask(&world.lab.admin, Kind::AdminTokenIssue, &body)
        .await
        .unwrap()
    else {
        panic!()
    };
    let mut session = world.lab.attach(&holder).await.unwrap();
    session
        .send(
            holder
                .call("fs", "fs.read", &json!({}), world.lab.now())
                .unwrap()
                .bytes,
        )
        .await
        .unwrap();
    let delivered = world.provider.hear().await.unwrap().delivered().unwrap();
    world
        .provider
        .send(
            world
                .lab
                .result(&world.fs, &delivered, &json!(1))
                .unwrap()
                .bytes,
        )
        .await
        .unwrap();
    session.hear().await.unwrap().delivered().unwrap();
    world
        .lab
        .ask(&world.lab.admin, Kind::Revoke, &json!({"ids": [id]}))
        .await
        .unwrap();
    session
        .send(
            holder
                .call("fs", "fs.read", &json!({}), world.lab.now())
                .unwrap()
                .bytes,
        )
        .await
        .unwrap();
    assert_eq!(hears_refusal(&mut session).await.unwrap(), Code::Denied);
}

#[tokio::test]
async fn an_admin_act_is_never_authorised_by_a_token() {
    let world = World::new().await;
    let root = SigningKey::from_seed(&ROOT_SEED);
    let later = world.lab.now().later(Duration::from_secs(3_600));
    for actor in [&world.caller, &world.lab.admin] {
        let token = sealed(&mint(&root, actor.key.public(), &["admin.*"], later));
        let extra = Extra {
            token: Some(token),
            ..Extra::default()
        };
        let sealed = actor.seal_with(
            Kind::AdminAgentList,
            &to_broker().unwrap(),
            world.lab.now(),
            &json!({}),
            &extra,
        );
        assert_eq!(world.post(sealed.unwrap().bytes).await, Code::Denied);
    }
}

#[tokio::test]
async fn discovery_shows_exactly_what_could_be_called() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let db = lab.agent("db", 3, &[]).await.unwrap();
    let _fs = lab.provide(&fs, &["fs.read", "fs.write"]).await.unwrap();
    let _db = lab.provide(&db, &["db.query"]).await.unwrap();
    let some = lab.agent("some", 4, &["fs.read", "db.*"]).await.unwrap();
    let none = lab.agent("none", 5, &[]).await.unwrap();
    for (asker, query, expected) in [
        (&some, json!({}), vec!["db.query", "fs.read"]),
        (&some, json!({"tools": "fs.*"}), vec!["fs.read"]),
        (&some, json!({"agent": "db@acme"}), vec!["db.query"]),
        (&none, json!({}), vec![]),
    ] {
        let sealed = asker
            .seal(
                Kind::DiscoverTools,
                &to_broker().unwrap(),
                lab.now(),
                &query,
            )
            .unwrap();
        let envelope = lab.post(sealed.bytes).await.unwrap().envelope().unwrap();
        assert_eq!(envelope.kind(), Kind::ToolsDiscovered);
        let found: Value = serde_json::from_str(envelope.body()).unwrap();
        let names: Vec<&str> = found["tools"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, expected, "{query}");
    }
    let first = some
        .seal(
            Kind::DiscoverTools,
            &to_broker().unwrap(),
            lab.now(),
            &json!({"limit": 1}),
        )
        .unwrap();
    let page: Value = serde_json::from_str(
        lab.post(first.bytes)
            .await
            .unwrap()
            .envelope()
            .unwrap()
            .body(),
    )
    .unwrap();
    let next = some.seal(
        Kind::DiscoverTools,
        &to_broker().unwrap(),
        lab.now(),
        &json!({"limit": 1, "after": page["next"]}),
    );
    let page: Value = serde_json::from_str(
        lab.post(next.unwrap().bytes)
            .await
            .unwrap()
            .envelope()
            .unwrap()
            .body(),
    )
    .unwrap();
    assert_eq!(page["tools"][0]["name"], "fs.read");
    assert_eq!(page["next"], Value::Null);
}
