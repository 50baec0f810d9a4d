//! Every lie that a broker could tell a provider, and that no tool runs for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agent_sdk::proto_spec::capability::{Check, Terms, encode_text, issue};
use agent_sdk::proto_spec::frame::Vouching;
use agent_sdk::proto_spec::message::{Basis, Credential, CredentialPermit};
use agent_sdk::proto_spec::{Sealed, SigningKey};
use agent_sdk::{Agent, AgentId, Call, Kind, Tool};

use crate::fake::{FakeBroker, Peer, Person, asking, now, permit_for, said};

struct Scene {
    broker: FakeBroker,
    peer: Peer,
    me: Person,
    fs: AgentId,
    ran: Arc<AtomicU32>,
    _agent: Agent,
}

/// What one lie gets.
#[derive(Debug, Clone, Copy)]
enum Gets {
    /// No answer: nobody is proven to have asked.
    Nothing,
    Code(&'static str),
}

impl Scene {
    async fn new() -> Self {
        let mut broker = FakeBroker::start().await;
        let agent = broker.agent("fs@acme", 10);
        let ran = Arc::new(AtomicU32::new(0));
        let (runs, serving) = (Arc::clone(&ran), agent.clone());
        tokio::spawn(async move {
            let counts = |name: &str| {
                let runs = Arc::clone(&runs);
                Tool::new(name, move |_: Call, _: serde_json::Value| {
                    let runs = Arc::clone(&runs);
                    async move { Ok(runs.fetch_add(1, Ordering::SeqCst) + 1) }
                })
            };
            serving
                .serve([
                    counts("fs.read"),
                    counts("fs.write").capability("fs.writers"),
                ])
                .await
        });
        let peer = broker.serving().await;
        let (me, fs) = (Person::new("me@acme", 20), "fs@acme".parse().unwrap());
        Self {
            broker,
            peer,
            me,
            fs,
            ran,
            _agent: agent,
        }
    }

    fn read(&self) -> Sealed {
        self.me.say(
            Kind::ToolCall,
            self.peer.agent(),
            None,
            &asking("fs.read", r#"{"path":"/a"}"#),
        )
    }

    fn permit(&self) -> Credential {
        permit_for(&self.me, &self.fs, "fs.read")
    }

    fn permitting(&self, change: impl FnOnce(&mut CredentialPermit)) -> Credential {
        let mut credential = self.permit();
        change(credential.permit.as_mut().unwrap());
        credential
    }

    async fn lie(&mut self, what: &str, credential: &Credential, call: &Sealed, gets: Gets) {
        let word = self.broker.credential(self.peer.agent(), credential);
        self.lie_by(what, Vouching::Full(word.bytes), call, gets)
            .await;
    }

    /// The tool does not run; the honest call after it does.
    async fn lie_by(&mut self, what: &str, vouching: Vouching, call: &Sealed, gets: Gets) {
        let before = self.ran.load(Ordering::SeqCst);
        self.peer.frame(vouching, call.bytes.clone()).await;
        if let Gets::Code(code) = gets {
            let answer = self.peer.receive().await;
            assert_eq!(
                (said(&answer), answer.re()),
                (Err(code.into()), Some(call.id)),
                "{what}"
            );
        }
        let honest = self.read();
        self.peer.deliver(&self.permit(), &honest).await;
        let answer = self.peer.receive().await;
        assert_eq!(answer.re(), Some(honest.id), "{what}");
        assert_eq!(
            said(&answer),
            Ok((before + 1).to_string()),
            "{what}: the tool ran"
        );
    }
}

#[tokio::test]
async fn a_provider_checks_again_what_its_broker_checked() {
    use Gets::{Code, Nothing};
    let mut scene = Scene::new().await;
    let thief = Person::new("thief@acme", 30);
    let minute = Duration::from_secs(60);
    let to_me = scene.peer.agent().clone();

    // The broker's word.
    let (permit, call) = (scene.permit(), scene.read());
    let forged = Person::new("broker@acme", 99).say(Kind::Credential, &to_me, None, &permit);
    scene
        .lie_by(
            "signed by another",
            Vouching::Full(forged.bytes),
            &call,
            Nothing,
        )
        .await;
    let other_org = Person::new("broker@globex", 1).say(Kind::Credential, &to_me, None, &permit);
    scene
        .lie_by(
            "another organisation's",
            Vouching::Full(other_org.bytes),
            &call,
            Nothing,
        )
        .await;
    let by_agent = Person::new("me@acme", 20).say(Kind::Credential, &to_me, None, &permit);
    scene
        .lie_by(
            "the caller's own word",
            Vouching::Full(by_agent.bytes),
            &call,
            Nothing,
        )
        .await;
    let for_other = scene.broker.credential(&thief.to(), &permit);
    scene
        .lie_by(
            "for another provider",
            Vouching::Full(for_other.bytes),
            &call,
            Nothing,
        )
        .await;
    let unknown = agent_sdk::Digest([5; 32]);
    scene
        .lie_by("never carried", Vouching::Known(unknown), &call, Nothing)
        .await;
    let no_word = scene.broker.voice.say(Kind::Ack, &to_me, None, &permit);
    scene
        .lie_by(
            "not a credential",
            Vouching::Full(no_word.bytes),
            &call,
            Nothing,
        )
        .await;
    let expired = Credential {
        expires: now().earlier(minute),
        ..scene.permit()
    };
    scene.lie("expired", &expired, &call, Nothing).await;

    // Who speaks.
    let other_key = Credential {
        key: thief.key.public(),
        ..scene.permit()
    };
    scene
        .lie(
            "another key than the envelope's",
            &other_key,
            &call,
            Nothing,
        )
        .await;
    let other_name = Credential {
        subject: thief.id(),
        ..scene.permit()
    };
    scene
        .lie("another agent's key", &other_name, &call, Nothing)
        .await;
    let body = asking("fs.read", "{}");
    let by_thief = thief.say(Kind::ToolCall, &to_me, None, &body);
    scene
        .lie(
            "another agent's envelope",
            &scene.permit(),
            &by_thief,
            Nothing,
        )
        .await;
    let text = String::from_utf8(scene.read().bytes.to_vec()).unwrap();
    let tampered = Sealed {
        bytes: text.replace("/a", "/b").into(),
        id: call.id,
    };
    scene
        .lie("tampered arguments", &scene.permit(), &tampered, Nothing)
        .await;

    // For whom, when, and whether again.
    let elsewhere = scene.me.say(Kind::ToolCall, &thief.to(), None, &body);
    scene
        .lie(
            "for another agent",
            &scene.permit(),
            &elsewhere,
            Code("WRONG_AUDIENCE"),
        )
        .await;
    for ts in [now().earlier(minute * 6), now().later(minute * 6)] {
        let call = scene
            .me
            .say_at(ts, Kind::ToolCall, Some(&to_me), None, None, &body);
        scene
            .lie("not of this time", &scene.permit(), &call, Code("STALE"))
            .await;
    }
    let before_start = now().earlier(minute);
    let call = scene.me.say_at(
        before_start,
        Kind::ToolCall,
        Some(&to_me),
        None,
        None,
        &body,
    );
    scene
        .lie(
            "from before this agent started",
            &scene.permit(),
            &call,
            Code("STALE"),
        )
        .await;
    let once = scene.read();
    scene.peer.deliver(&scene.permit(), &once).await;
    said(&scene.peer.receive().await).unwrap();
    scene
        .lie("a second time", &scene.permit(), &once, Code("REPLAYED"))
        .await;

    // What is permitted.
    let denied = Code("DENIED");
    let none = Credential {
        permit: None,
        ..scene.permit()
    };
    scene.lie("nothing", &none, &scene.read(), denied).await;
    let other = scene.permitting(|permit| permit.provider = thief.id());
    scene
        .lie("another provider", &other, &scene.read(), denied)
        .await;
    let other = scene.permitting(|permit| permit.tool = "fs.write".parse().unwrap());
    scene
        .lie("another tool", &other, &scene.read(), denied)
        .await;
    let other = scene.permitting(|permit| permit.capability = "fs.other".parse().unwrap());
    scene
        .lie("another capability", &other, &scene.read(), denied)
        .await;
    let write = scene
        .me
        .say(Kind::ToolCall, &to_me, None, &asking("fs.write", "{}"));
    let by_name = permit_for(&scene.me, &scene.fs, "fs.write");
    scene
        .lie(
            "the tool's name where it requires another capability",
            &by_name,
            &write,
            denied,
        )
        .await;
    let absent = scene
        .me
        .say(Kind::ToolCall, &to_me, None, &asking("fs.absent", "{}"));
    let permit = permit_for(&scene.me, &scene.fs, "fs.absent");
    scene
        .lie("a tool that is not served", &permit, &absent, denied)
        .await;
    let by_token = scene.permitting(|permit| permit.basis = Basis::Token);
    scene
        .lie(
            "a token that is not there",
            &by_token,
            &scene.read(),
            denied,
        )
        .await;
}

/// A grant of `root` to `holder`: `fs.*`, under `/srv` only.
fn grant(root: u8, holder: &Person) -> String {
    let terms = Terms {
        agent: holder.id(),
        holder: holder.key.public(),
        capabilities: vec!["fs.*".parse().unwrap()],
        issued: now().earlier(Duration::from_secs(60)),
        not_before: None,
        expires: now().later(Duration::from_secs(3_600)),
        checks: Check::where_clause("path under /srv").unwrap(),
        sandbox: None,
        calls: None,
    };
    let root = SigningKey::from_seed(&[root; 32]);
    let token = issue::grant(&root, &"acme".parse().unwrap(), &terms, [7; 32]).unwrap();
    encode_text(&issue::seal(&token).unwrap())
}

#[tokio::test]
async fn a_provider_checks_tokens_and_their_conditions_itself() {
    use Gets::Code;
    let mut scene = Scene::new().await;
    let thief = Person::new("thief@acme", 30);
    let to_me = scene.peer.agent().clone();
    let call = |path: &str, token: Option<&str>, scene: &Scene| {
        let body = asking("fs.read", &format!(r#"{{"path":"{path}"}}"#));
        scene
            .me
            .say_at(now(), Kind::ToolCall, Some(&to_me), None, token, &body)
    };
    let mine = grant(2, &scene.me);
    let by_token = scene.permitting(|permit| permit.basis = Basis::Token);
    let by_grant = scene.permitting(|permit| permit.grant = Some(mine.clone()));

    let outside = call("/etc/passwd", Some(&mine), &scene);
    scene
        .lie(
            "outside the token's paths",
            &by_token,
            &outside,
            Code("DENIED"),
        )
        .await;
    let outside = call("/etc/passwd", None, &scene);
    scene
        .lie(
            "outside the grant's paths",
            &by_grant,
            &outside,
            Code("DENIED"),
        )
        .await;
    let foreign = call("/srv/a", Some(&grant(3, &scene.me)), &scene);
    scene
        .lie(
            "a token of another root",
            &by_token,
            &foreign,
            Code("TOKEN_INVALID"),
        )
        .await;
    let stolen = call("/srv/a", Some(&grant(2, &thief)), &scene);
    scene
        .lie("another's token", &by_token, &stolen, Code("NOT_HOLDER"))
        .await;
    let lent = scene.permitting(|permit| permit.grant = Some(grant(2, &thief)));
    scene
        .lie(
            "another's grant",
            &lent,
            &call("/srv/a", None, &scene),
            Code("NOT_HOLDER"),
        )
        .await;
    let unused = call("/srv/a", Some(&mine), &scene);
    scene
        .lie(
            "a token beside the record",
            &scene.permit(),
            &unused,
            Code("DENIED"),
        )
        .await;

    for (credential, token) in [(&by_token, Some(&*mine)), (&by_grant, None)] {
        let inside = call("/srv/a", token, &scene);
        scene.peer.deliver(credential, &inside).await;
        said(&scene.peer.receive().await).unwrap();
    }
}

#[tokio::test]
async fn a_broken_frame_is_ignored_and_the_session_goes_on() {
    let mut scene = Scene::new().await;
    for bytes in [
        &b"\xfe"[..],
        b"\xfe\x00\x00\x00\x00\x02{}",
        b"{",
        b"",
        b"hello",
        b"\xff\xff",
    ] {
        scene.peer.send(bytes::Bytes::copy_from_slice(bytes)).await;
    }
    let honest = scene.read();
    scene.peer.deliver(&scene.permit(), &honest).await;
    assert_eq!(said(&scene.peer.receive().await), Ok("1".into()));
}
