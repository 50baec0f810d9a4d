//! What an agent believes of its broker and of its peer, told as the lies that it sees through.

#![expect(clippy::unwrap_used, reason = "a failing test panics")]

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto_spec::admission::{Answer, Authority, Judge, KeyBook, Me, Nonces, Vouched};
use proto_spec::capability::{Check, Terms, Token, decode_text, encode_text};
use proto_spec::limits::{BROKER_KEYS_MAX, CLOCK_SKEW_MAX, ENVELOPE_BYTES};
use proto_spec::message::{Basis, Credential, CredentialPermit};
use proto_spec::succession::{Succession, accept, successors};
use proto_spec::{
    AgentId, Audience, Authorized, Capability, Code, Digest, Draft, Kind, PublicKey, Received,
    Refusal, Sealed, SigningKey, Speaker, Timestamp,
};
use serde_json::{Value, json};

mod fixture;
use fixture::{ALICE, BOB, HOLDER, ISSUED, ROOT, at, key, mint, only, org, roots, sealed, terms};

const BROKER: [u8; 32] = [21; 32];
const FS: [u8; 32] = [22; 32];
const NOW: u64 = ISSUED + 60_000;
const TICK: u64 = 1_000;

fn agent(text: &str) -> AgentId {
    text.parse().unwrap()
}

fn fs() -> AgentId {
    agent("fs@acme")
}

fn researcher() -> AgentId {
    agent("researcher@acme")
}

fn capability(text: &str) -> Capability {
    text.parse().unwrap()
}

/// Seals `body` as it stands.
fn seal(
    signer: [u8; 32],
    (speaker, to): (&str, &str),
    kind: Kind,
    re: Option<Digest>,
    body: &Value,
) -> Sealed {
    let draft = Draft {
        kind,
        agent: &speaker.parse::<Speaker>().unwrap(),
        to: Some(&to.parse::<Audience>().unwrap()),
        ts: at(NOW),
        nonce: "0123456789abcdef",
        re,
        token: None,
        deadline: None,
        via: None,
        body,
    };
    draft.seal(&key(signer)).unwrap()
}

// ---- The credential.

/// A broker's word for `subject`, who signs with `signer`.
fn word_for(subject: &str, signer: [u8; 32]) -> Value {
    json!({"subject": subject, "key": key(signer).public(), "expires": NOW + TICK})
}

fn credential(signer: [u8; 32], names: (&str, &str), body: &Value) -> Bytes {
    seal(signer, names, Kind::Credential, None, body).bytes
}

fn believed(bytes: Bytes, now: u64) -> Result<Vouched, Refusal> {
    believed_within(Duration::ZERO, bytes, now)
}

fn believed_within(apart: Duration, bytes: Bytes, now: u64) -> Result<Vouched, Refusal> {
    Vouched::check(
        bytes,
        &[key(BROKER).public()],
        &researcher(),
        at(now),
        apart,
    )
}

#[test]
fn a_credential_is_believed_only_from_ones_own_broker() {
    let names = ("broker@acme", "researcher@acme");
    let word = word_for("fs@acme", FS);
    let good = credential(BROKER, names, &word);
    let vouched = believed(good.clone(), NOW).unwrap();
    assert_eq!(vouched.credential().key, key(FS).public());
    believed(good.clone(), NOW + TICK).unwrap();

    let refused = |bytes: Bytes, now: u64| believed(bytes, now).unwrap_err().code();
    assert_eq!(
        refused(good.clone(), NOW + TICK + 1),
        Code::Stale,
        "expired"
    );
    let apart = Duration::from_millis(7);
    believed_within(apart, good.clone(), NOW + TICK + 7).unwrap();
    believed_within(apart, good, NOW + TICK + 8).unwrap_err();
    for (why, signer, names, code) in [
        ("another key", BOB, names, Code::NotAuthentic),
        (
            "another organisation's broker",
            BROKER,
            ("broker@other", "researcher@acme"),
            Code::NotAuthentic,
        ),
        (
            "an agent, even under the broker's key",
            BROKER,
            ("fs@acme", "researcher@acme"),
            Code::NotAuthentic,
        ),
        (
            "for another agent",
            BROKER,
            ("broker@acme", "fs@acme"),
            Code::WrongAudience,
        ),
        (
            "for a topic",
            BROKER,
            ("broker@acme", "topic:acme/build"),
            Code::WrongAudience,
        ),
    ] {
        assert_eq!(
            refused(credential(signer, names, &word), NOW),
            code,
            "{why}"
        );
    }
    let other_type = seal(BROKER, names, Kind::Ack, None, &word).bytes;
    assert_eq!(refused(other_type, NOW), Code::UnknownType);
    let mut weak = word;
    weak["key"] = json!("AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    assert_eq!(
        refused(credential(BROKER, names, &weak), NOW),
        Code::InvalidBody,
        "a key under which everything verifies"
    );
}

// ---- The caller.

#[test]
fn a_caller_takes_a_result_only_from_the_agent_it_called() {
    let call = Digest::of(b"the call");
    let names = ("broker@acme", "researcher@acme");
    let check = |word: Value, bytes: Bytes| {
        let vouched = believed(credential(BROKER, names, &word), NOW).unwrap();
        Received::parse(bytes, ENVELOPE_BYTES)
            .and_then(|said| Answer::check(said, &vouched, &fs(), &researcher(), &call))
            .map(|answer| answer.id())
            .map_err(|refusal| refusal.code())
    };
    let word = || word_for("fs@acme", FS);
    let done = json!({"result": 4});
    let answer = |signer, names, kind, re| seal(signer, names, kind, Some(re), &done);

    let back = ("fs@acme", "researcher@acme");
    for kind in [Kind::ToolResult, Kind::ToolProgress] {
        let good = answer(FS, back, kind, call);
        assert_eq!(check(word(), good.bytes), Ok(good.id));
    }
    for (why, signer, names, kind, re, code) in [
        (
            "another key",
            BOB,
            back,
            Kind::ToolResult,
            call,
            Code::NotAuthentic,
        ),
        (
            "another agent",
            BOB,
            ("bob@acme", "researcher@acme"),
            Kind::ToolResult,
            call,
            Code::NotAuthentic,
        ),
        (
            "another name under the same key",
            FS,
            ("bob@acme", "researcher@acme"),
            Kind::ToolResult,
            call,
            Code::NotAuthentic,
        ),
        (
            "the broker",
            BROKER,
            ("broker@acme", "researcher@acme"),
            Kind::ToolResult,
            call,
            Code::NotAuthentic,
        ),
        (
            "for another caller",
            FS,
            ("fs@acme", "bob@acme"),
            Kind::ToolResult,
            call,
            Code::WrongAudience,
        ),
        (
            "of another call",
            FS,
            back,
            Kind::ToolResult,
            Digest::of(b"another call"),
            Code::NoSuchCall,
        ),
        (
            "not an answer",
            FS,
            back,
            Kind::ToolCancel,
            call,
            Code::NoSuchCall,
        ),
    ] {
        let bytes = answer(signer, names, kind, re).bytes;
        assert_eq!(check(word(), bytes), Err(code), "{why}");
    }
    // The broker vouches for somebody else, who duly answers: it is not who was called.
    let bytes = answer(BOB, ("bob@acme", "researcher@acme"), Kind::ToolResult, call).bytes;
    assert_eq!(
        check(word_for("bob@acme", BOB), bytes),
        Err(Code::NotAuthentic)
    );
}

// ---- The provider.

/// Each nonce once, for ever.
#[derive(Default)]
struct Remembered(RefCell<HashSet<(PublicKey, String)>>);

impl Nonces for Remembered {
    fn remember(
        &self,
        key: &PublicKey,
        nonce: &str,
        _: Timestamp,
        _: Timestamp,
    ) -> Result<(), Refusal> {
        if self.0.borrow_mut().insert((*key, nonce.into())) {
            Ok(())
        } else {
            Err(Refusal::Replayed)
        }
    }
}

/// A call as its caller signs it, and what the broker says of it.
struct Delivery {
    broker: SigningKey,
    said_to: Audience,
    word: Credential,
    signer: SigningKey,
    to: Audience,
    tool: &'static str,
    arguments: Value,
    token: Option<String>,
    /// What becomes of the caller's bytes on the way.
    tamper: fn(String) -> String,
    vouched_at: u64,
    now: u64,
}

/// As an honest broker delivers it: `researcher` reads `/srv/a` at `fs`, by a grant on record.
fn honest() -> Delivery {
    Delivery {
        broker: key(BROKER),
        said_to: fs().into(),
        word: Credential {
            subject: researcher(),
            key: key(HOLDER).public(),
            expires: at(NOW + TICK),
            permit: Some(CredentialPermit {
                provider: fs(),
                tool: capability("fs.read_file"),
                capability: capability("fs.read"),
                basis: Basis::Record,
                trust: None,
                grant: None,
                sandbox: None,
                older: false,
            }),
        },
        signer: key(HOLDER),
        to: fs().into(),
        tool: "fs.read_file",
        arguments: json!({"path": "/srv/a"}),
        token: None,
        tamper: |bytes| bytes,
        vouched_at: NOW,
        now: NOW,
    }
}

impl Delivery {
    fn permit(&mut self) -> &mut CredentialPermit {
        self.word.permit.as_mut().unwrap()
    }

    /// By a token in the envelope instead of the record.
    fn by_token(&mut self, token: &[u8]) {
        self.permit().basis = Basis::Token;
        self.token = Some(encode_text(token));
    }

    /// What `fs` says to it.
    fn is_taken_by_fs(&self, nonces: &Remembered) -> Result<Authorized, Refusal> {
        let said = Draft {
            kind: Kind::Credential,
            agent: &Speaker::Broker(org()),
            to: Some(&self.said_to),
            ts: at(self.vouched_at),
            nonce: "fedcba9876543210",
            re: None,
            token: None,
            deadline: None,
            via: None,
            body: &self.word,
        };
        let call = Draft {
            kind: Kind::ToolCall,
            agent: &Speaker::Agent(researcher()),
            to: Some(&self.to),
            ts: at(NOW),
            nonce: "0123456789abcdef",
            re: None,
            token: self.token.as_deref(),
            deadline: None,
            via: None,
            body: &json!({"tool": self.tool, "arguments": self.arguments}),
        };
        let said = said.seal(&self.broker).unwrap().bytes;
        let call = call.seal(&self.signer).unwrap().bytes;
        let call = (self.tamper)(String::from_utf8(call.into()).unwrap());

        let me = fs();
        let judge = Judge {
            me: Me::Agent(&me),
            skew: CLOCK_SKEW_MAX,
            now: at(self.now),
        };
        let required = |tool: &Capability| {
            let offers = ["fs.read_file", "fs.stat"].contains(&tool.as_str());
            offers.then(|| capability("fs.read"))
        };
        let open = |text: &str| Token::open(&decode_text(text)?, &roots()).map(Arc::new);
        let vouched = Vouched::check(
            said,
            &[key(BROKER).public()],
            &me,
            at(self.vouched_at),
            Duration::ZERO,
        )?;
        Received::parse(call.into(), ENVELOPE_BYTES)?
            .verify(&vouched)?
            .admit(&judge, nonces)?
            .authorize_delivered(&vouched, open, required, &judge)
    }
}

/// A grant that holds for `/srv` only.
fn beneath_srv() -> Vec<u8> {
    mint(&Terms {
        checks: Check::where_clause("path under /srv").unwrap(),
        ..terms(&["fs.*"])
    })
}

/// The same grant in the hands of `holder`.
fn held_by(holder: [u8; 32]) -> Vec<u8> {
    sealed(&mint(&Terms {
        holder: key(holder).public(),
        ..terms(&["fs.*"])
    }))
}

#[test]
fn a_provider_takes_what_an_honest_broker_delivers() {
    let by_record = honest();
    let mut by_grant = honest();
    by_grant.permit().grant = Some(encode_text(&sealed(&beneath_srv())));
    let mut by_token = honest();
    by_token.by_token(&sealed(&beneath_srv()));
    let mut without_arguments_that_matter = honest();
    without_arguments_that_matter.arguments = json!({});
    for delivery in [by_record, by_grant, by_token, without_arguments_that_matter] {
        let taken = delivery.is_taken_by_fs(&Remembered::default()).unwrap();
        assert_eq!(*taken.agent(), researcher());
        assert_eq!(*taken.key(), key(HOLDER).public());
    }
}

#[test]
fn a_provider_checks_a_condition_on_trust_by_its_brokers_word() {
    let asks = Check::where_clause("check if trust($s), $s >= 60").unwrap();
    let grant = sealed(&mint(&Terms {
        checks: asks,
        ..terms(&["fs.*"])
    }));
    for (trust, is_taken) in [(Some(60), true), (Some(59), false), (None, false)] {
        let mut delivery = honest();
        delivery.permit().grant = Some(encode_text(&grant));
        delivery.permit().trust = trust;
        let taken = delivery.is_taken_by_fs(&Remembered::default());
        assert_eq!(taken.is_ok(), is_taken, "{trust:?}");
    }
}

type Lie = (&'static str, fn(&mut Delivery), Code);

/// What the broker's credential says about who and what.
const LIES_OF_THE_CREDENTIAL: &[Lie] = &[
    (
        "signed by somebody else",
        |d| d.broker = key(BOB),
        Code::NotAuthentic,
    ),
    (
        "said to another provider",
        |d| d.said_to = "db@acme".parse().unwrap(),
        Code::WrongAudience,
    ),
    (
        "about another agent",
        |d| d.word.subject = agent("alice@acme"),
        Code::NotAuthentic,
    ),
    (
        "naming another key",
        |d| d.word.key = key(ALICE).public(),
        Code::NotAuthentic,
    ),
    (
        "expired when it comes",
        |d| d.word.expires = at(NOW - 1),
        Code::Stale,
    ),
    (
        "expired since it came",
        |d| {
            d.word.expires = at(NOW - 1);
            d.vouched_at = NOW - TICK;
        },
        Code::Denied,
    ),
    ("without a permit", |d| d.word.permit = None, Code::Denied),
    (
        "permitting another provider",
        |d| d.permit().provider = agent("db@acme"),
        Code::Denied,
    ),
    (
        "permitting another tool",
        |d| d.permit().tool = capability("fs.stat"),
        Code::Denied,
    ),
    (
        "permitting another capability than the tool requires",
        |d| d.permit().capability = capability("fs.list"),
        Code::Denied,
    ),
    (
        "permitting a tool that the provider does not have",
        |d| {
            d.tool = "fs.format";
            d.permit().tool = capability("fs.format");
        },
        Code::Denied,
    ),
];

/// What the broker says about grants and tokens.
const LIES_OF_THE_GRANT: &[Lie] = &[
    (
        "basis token where there is none",
        |d| d.permit().basis = Basis::Token,
        Code::Denied,
    ),
    (
        "basis record where there is a token",
        |d| d.token = Some(encode_text(&held_by(HOLDER))),
        Code::Denied,
    ),
    (
        "a token of another holder",
        |d| d.by_token(&held_by(ALICE)),
        Code::NotHolder,
    ),
    (
        "a grant of another holder",
        |d| d.permit().grant = Some(encode_text(&held_by(ALICE))),
        Code::NotHolder,
    ),
    (
        "a token that its holder delegated away",
        |d| {
            let delegated = fixture::delegated(&beneath_srv(), HOLDER, ALICE, &only(&["fs.*"]));
            d.by_token(&sealed(&delegated));
        },
        Code::NotHolder,
    ),
    (
        "arguments that the grant's condition forbids",
        |d| {
            d.permit().grant = Some(encode_text(&sealed(&beneath_srv())));
            d.arguments = json!({"path": "/etc/shadow"});
        },
        Code::Denied,
    ),
    (
        "arguments that the token's condition forbids",
        |d| {
            d.by_token(&sealed(&beneath_srv()));
            d.arguments = json!({"path": "/srv/../etc/shadow"});
        },
        Code::Denied,
    ),
    (
        "a grant for something else",
        |d| d.permit().grant = Some(encode_text(&sealed(&mint(&terms(&["db.*"]))))),
        Code::Denied,
    ),
    (
        "a token of another root",
        |d| {
            let token =
                proto_spec::capability::issue::grant(&key(BOB), &org(), &terms(&["fs.*"]), [2; 32]);
            d.by_token(&sealed(&token.unwrap()));
        },
        Code::TokenInvalid,
    ),
    (
        "a token that is not sealed",
        |d| d.by_token(&beneath_srv()),
        Code::TokenUnsealed,
    ),
    (
        "a token that has expired",
        |d| {
            let token = mint(&Terms {
                expires: at(ISSUED + TICK),
                ..terms(&["fs.*"])
            });
            d.by_token(&sealed(&token));
        },
        Code::TokenExpired,
    ),
    (
        "a bearer token, which no key presents",
        |d| {
            let token = proto_spec::capability::issue::bearer(
                &key(ROOT),
                &org(),
                &fixture::mcp_terms(),
                [2; 32],
            );
            d.by_token(&token.unwrap());
        },
        Code::TokenMalformed,
    ),
];

/// What the broker does to the caller's envelope.
const LIES_OF_THE_DELIVERY: &[Lie] = &[
    (
        "arguments changed on the way",
        |d| d.tamper = |text| text.replace("/srv/a", "/srv/b"),
        Code::NotAuthentic,
    ),
    (
        "signed by somebody else",
        |d| d.signer = key(ALICE),
        Code::NotAuthentic,
    ),
    (
        "meant for another provider",
        |d| d.to = "db@acme".parse().unwrap(),
        Code::WrongAudience,
    ),
    (
        "meant for the broker",
        |d| d.to = "broker@acme".parse().unwrap(),
        Code::WrongAudience,
    ),
    (
        "kept back for longer than the window",
        |d| {
            let late = CLOCK_SKEW_MAX.as_millis() as u64 + 1;
            d.now = NOW + late;
            d.word.expires = at(NOW + late);
        },
        Code::Stale,
    ),
];

#[test]
fn a_provider_checks_again_what_its_broker_checked() {
    let lies = [
        LIES_OF_THE_CREDENTIAL,
        LIES_OF_THE_GRANT,
        LIES_OF_THE_DELIVERY,
    ];
    for (why, lie, code) in lies.concat() {
        let mut delivery = honest();
        lie(&mut delivery);
        let refusal = delivery.is_taken_by_fs(&Remembered::default()).unwrap_err();
        assert_eq!(refusal.code(), code, "{why}: {refusal}");
    }
    let nonces = Remembered::default();
    honest().is_taken_by_fs(&nonces).unwrap();
    let again = honest().is_taken_by_fs(&nonces).unwrap_err();
    assert_eq!(again, Refusal::Replayed, "delivered twice");
}

#[test]
fn a_forged_delivery_does_not_use_up_the_nonce() {
    let nonces = Remembered::default();
    let mut forged = honest();
    forged.signer = key(ALICE);
    forged.is_taken_by_fs(&nonces).unwrap_err();
    honest().is_taken_by_fs(&nonces).unwrap();
}

// ---- What is not an agent's to say.

/// A broker that knows one key and has granted nothing.
struct NothingGranted;

impl KeyBook for NothingGranted {
    fn key_of(&self, _: &Speaker) -> Option<PublicKey> {
        Some(key(HOLDER).public())
    }
}

impl Authority for NothingGranted {
    fn granted(&self, _: &AgentId) -> Arc<[Arc<Token>]> {
        Arc::new([])
    }
    fn open(&self, _: &str) -> Result<Arc<Token>, Refusal> {
        Err(Refusal::TokenUnsealed)
    }
    fn alive(&self, _: &Token) -> Result<(), Refusal> {
        Ok(())
    }
    fn barred(&self, _: &Token, _: &proto_spec::Pattern) -> bool {
        false
    }
    fn required_for(&self, _: &AgentId, tool: &Capability) -> Result<Vec<Capability>, Refusal> {
        Ok(vec![tool.clone()])
    }
    fn was_delivered_here(&self, _: &Digest, _: &Audience) -> bool {
        false
    }
    fn was_called_from_here(&self, _: &Digest, _: &AgentId, _: &Audience) -> bool {
        false
    }
}

#[test]
fn what_brokers_say_is_not_an_agents_to_say() {
    let org = org();
    let judge = Judge {
        me: Me::Broker(&org),
        skew: Duration::from_secs(1),
        now: at(NOW),
    };
    let names = ("researcher@acme", "broker@acme");
    let code = |kind: Kind, names| {
        let sealed = seal(HOLDER, names, kind, Some(Digest::of(b"")), &json!({}));
        Received::parse(sealed.bytes, ENVELOPE_BYTES)
            .and_then(|received| received.verify(&NothingGranted))
            .and_then(|verified| verified.admit(&judge, &Remembered::default()))
            .and_then(|fresh| fresh.authorize(&NothingGranted, &judge))
            .map_err(|refusal| refusal.code())
            .map(|_| ())
    };
    for kind in Kind::ALL.iter().filter(|kind| kind.is_brokers()) {
        assert_eq!(code(*kind, names), Err(Code::UnknownType), "{kind}");
    }
    for kind in [Kind::RegisterAgent, Kind::AcceptKey] {
        assert_eq!(code(kind, names), Err(Code::UnknownType), "{kind}");
    }
    for kind in Kind::ALL {
        let brokers = ("broker@acme", "broker@acme");
        assert_eq!(code(*kind, brokers), Err(Code::Denied), "{kind}");
    }
}

// ---- A broker's key, and the next.

const NONCE: &str = "9f2c6d1e8a7b4c30";

/// The key of this seed names that one, which agrees.
fn succession(from: [u8; 32], to: [u8; 32]) -> String {
    let broker: Speaker = "broker@acme".parse().unwrap();
    let follows = key(from).public();
    let accept = accept(
        &broker,
        &broker.clone().into(),
        &key(to),
        follows,
        NONCE,
        at(NOW),
    );
    named(from, &json!({"accept": accept.unwrap()}))
}

fn named(by: [u8; 32], body: &Value) -> String {
    let draft = Draft {
        kind: Kind::Succession,
        agent: &"broker@acme".parse().unwrap(),
        to: None,
        ts: at(NOW),
        nonce: NONCE,
        re: None,
        token: None,
        deadline: None,
        via: None,
        body,
    };
    String::from_utf8(draft.seal(&key(by)).unwrap().bytes.to_vec()).unwrap()
}

#[test]
fn a_succession_is_signed_by_the_old_key_and_the_new_one() {
    let check = |text: &str| Succession::check(text, &key(BROKER).public(), &org());
    let good = succession(BROKER, ALICE);
    assert_eq!(*check(&good).unwrap().to(), key(ALICE).public());
    // By another key, for another organisation, or changed on the way.
    assert!(Succession::check(&good, &key(BOB).public(), &org()).is_err());
    let globex = "globex".parse().unwrap();
    assert!(Succession::check(&good, &key(BROKER).public(), &globex).is_err());
    let flipped = good.replace(&NOW.to_string(), &(NOW + 1).to_string());
    assert_ne!(flipped, good);
    assert_eq!(check(&flipped).unwrap_err().code(), Code::NotAuthentic);
    // A consent that the new key did not sign, that follows another key, or is an agent's.
    let broker: Speaker = "broker@acme".parse().unwrap();
    let agreed = |speaker: &Speaker, follows: [u8; 32]| {
        let follows = key(follows).public();
        accept(
            speaker,
            &broker.clone().into(),
            &key(ALICE),
            follows,
            NONCE,
            at(NOW),
        )
        .unwrap()
    };
    let unsigned = agreed(&broker, BROKER).replace(
        &key(ALICE).public().to_string(),
        &key(FS).public().to_string(),
    );
    let agents: Speaker = "fs@acme".parse().unwrap();
    for accept in [
        unsigned,
        agreed(&broker, BOB),
        agreed(&agents, BROKER),
        good,
        "{}".into(),
    ] {
        assert!(check(&named(BROKER, &json!({"accept": accept}))).is_err());
    }
    let itself = succession(BROKER, BROKER);
    assert!(check(&itself).is_err());
}

#[test]
fn a_chain_of_successions_leads_on_from_the_pinned_key_alone() {
    let chain = [
        succession(BROKER, ALICE),
        succession(ALICE, BOB),
        succession(BOB, BROKER),
    ];
    let led = |pinned: [u8; 32], chain: &[String]| -> Vec<PublicKey> {
        let found = successors(&key(pinned).public(), chain, &org());
        found.iter().map(|one| *one.to()).collect()
    };
    assert_eq!(
        led(BROKER, &chain),
        [key(ALICE).public(), key(BOB).public()]
    );
    assert_eq!(
        led(ALICE, &chain),
        [key(BOB).public(), key(BROKER).public()]
    );
    assert!(
        led(FS, &chain).is_empty(),
        "from a key that the chain does not know"
    );
    assert!(
        led(BROKER, &chain[1..2]).is_empty(),
        "whose beginning is not offered"
    );
    let padding = vec!["{}".to_owned(); BROKER_KEYS_MAX];
    assert!(led(BROKER, &[padding, chain.to_vec()].concat()).is_empty());
}
