//! Envelopes as data and as laws: where the signature lies, what it covers, and what is no envelope.
//!
//! `vectors/envelopes.json` is made here from seeds, and read back as a stranger would, from the
//! file alone. `FEM_BLESS=1` rewrites it; without, a difference fails.

#![expect(clippy::unwrap_used, reason = "a failing test panics")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use biscuit_auth::format::schema;
use bytes::Bytes;
use proptest::prelude::*;
use proto_spec::admission::{Judge, KeyBook, Me, Nonces};
use proto_spec::capability::Narrowing;
use proto_spec::capability::issue::attenuate;
use proto_spec::limits::{CLOCK_SKEW_MAX, DEPTH_MAX, ENVELOPE_BYTES};
use proto_spec::wire::{self, Cut, SIG_MEMBER_BYTES, members};
use proto_spec::{
    Code, Digest, Draft, Envelope, Kind, PublicKey, Received, Refusal, Signature, SigningKey,
    Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

mod fixture;
use fixture::{ALICE, HOLDER, ROOT, container, delegated, hex, key, mint, only, sealed, terms};

const NOW: u64 = 1_750_000_000_000;

// ---- Sealing by hand, as an implementation in another language would.

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

fn sig_member(signature: &Signature) -> String {
    format!(",\"sig\":\"{}\"", STANDARD.encode(signature.0))
}

/// Puts `member` behind the member number `after` of `signed`.
fn insert(signed: &[u8], after: usize, member: &str) -> Vec<u8> {
    let at = members(signed).unwrap()[after].value.end;
    [&signed[..at], member.as_bytes(), &signed[at..]].concat()
}

/// Signs, and puts `sig` behind the member number `after`.
fn seal_after(signed: &[u8], after: usize, key: &SigningKey) -> Vec<u8> {
    insert(signed, after, &sig_member(&key.sign(signed)))
}

/// Signs, and puts `sig` last, whatever it is that is signed.
fn seal_last(signed: &[u8], key: &SigningKey) -> Vec<u8> {
    wire::splice(signed, &key.sign(signed))
}

// ---- Judging, from bytes to verdict.

/// Knows the one key of a vector, and takes every nonce.
struct Stranger(PublicKey);

impl KeyBook for Stranger {
    fn key_of(&self, _: &proto_spec::Speaker) -> Option<PublicKey> {
        Some(self.0)
    }
}

impl Nonces for Stranger {
    fn remember(&self, _: &PublicKey, _: &str, _: Timestamp, _: Timestamp) -> Result<(), Refusal> {
        Ok(())
    }
}

/// What the broker of `acme` says, whose clock shows `now`: the identity, or why not.
fn judge(case: &Case) -> Result<Digest, Refusal> {
    let key: PublicKey = case.public_key.parse()?;
    let org = fixture::org();
    let judge = Judge {
        me: Me::Broker(&org),
        skew: CLOCK_SKEW_MAX,
        now: Timestamp::from_ms(case.now),
    };
    let bytes = unhex(&case.sealed_hex).into();
    let fresh = Received::parse(bytes, case.bytes_max)?
        .verify(&Stranger(key))?
        .admit(&judge, &Stranger(key))?;
    assert_eq!(fresh.envelope().signed_bytes(), unhex(&case.signed_hex));
    Ok(fresh.id())
}

// ---- The vectors.

#[derive(Serialize, Deserialize)]
struct Vectors {
    about: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Case {
    name: String,
    /// The requirement of SPEC.md that it shows.
    rule: String,
    seed_hex: String,
    public_key: String,
    /// What was signed.
    signed_hex: String,
    /// What is received: as text where it is UTF-8, and always as bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed: Option<String>,
    sealed_hex: String,
    bytes_max: usize,
    now: u64,
    /// `ok`, or the code of the refusal.
    verdict: String,
    /// Of what is `ok`.
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<Digest>,
}

/// Collects cases. What a case does not say is as in [`Made::case`].
#[derive(Default)]
struct Made(Vec<Case>);

impl Made {
    fn case(&mut self, rule: &str, name: &str, verdict: &str, signed: &[u8], sealed: &[u8]) {
        let seed = HOLDER;
        self.0.push(Case {
            name: name.into(),
            rule: rule.into(),
            seed_hex: hex(&seed),
            public_key: key(seed).public().to_string(),
            signed_hex: hex(signed),
            sealed: String::from_utf8(sealed.into()).ok(),
            sealed_hex: hex(sealed),
            bytes_max: ENVELOPE_BYTES,
            now: NOW,
            verdict: verdict.into(),
            identity: (verdict == "ok").then(|| wire::identity(signed)),
        });
    }

    /// Signed as it stands, with `sig` last.
    fn signed(&mut self, rule: &str, name: &str, verdict: &str, signed: impl AsRef<[u8]>) {
        let signed = signed.as_ref();
        let sealed = seal_last(signed, &key(HOLDER));
        self.case(rule, name, verdict, signed, &sealed);
    }

    /// The plain envelope, properly signed, and then changed.
    fn changed(&mut self, rule: &str, name: &str, verdict: &str, change: fn(String) -> String) {
        let signed = plain();
        let sealed = seal_last(signed.as_bytes(), &key(HOLDER));
        let sealed = change(String::from_utf8(sealed).unwrap());
        self.case(rule, name, verdict, signed.as_bytes(), sealed.as_bytes());
    }

    fn last(&mut self) -> &mut Case {
        self.0.last_mut().unwrap()
    }
}

/// The plain envelope with one member's text replaced.
fn plain_but(old: &str, new: &str) -> String {
    let plain = plain();
    assert!(plain.contains(old), "{old}");
    plain.replacen(old, new, 1)
}

fn plain() -> String {
    format!(
        r#"{{"type":"toolCall","agent":"researcher@acme","to":"fs@acme","ts":{NOW},"nonce":"9f2c6d1e8a7b4c30","body":{{"tool":"fs.read_file","arguments":{{"path":"/srv/a"}}}}}}"#
    )
}

/// The plain envelope with `members` in front of its body.
fn plain_with(members: &str) -> String {
    plain_but(r#""body""#, &format!(r#"{members},"body""#))
}

fn plain_with_body(body: &str) -> String {
    let plain = plain();
    let at = plain.find(r#""body":"#).unwrap();
    format!(r#"{}"body":{body}}}"#, &plain[..at])
}

fn nested(levels: usize) -> String {
    let (open, close) = ("[".repeat(levels - 2), "]".repeat(levels - 2));
    plain_with_body(&format!(r#"{{"a":{open}{close}}}"#))
}

/// One of each type with a body that fits it; `to` and `re` where the type wants them.
fn one_of_each_type() -> Vec<(Kind, &'static str, Value)> {
    let id = Digest::of(b"a call");
    let pubkey = key(HOLDER).public();
    vec![
        (
            Kind::RegisterAgent,
            "broker@acme",
            json!({"pubkey": pubkey, "capabilities": ["fs.read"], "note": "build host 7"}),
        ),
        (
            Kind::Attach,
            "broker@acme",
            json!({"challenge": id, "channel": id}),
        ),
        (
            Kind::OfferTools,
            "broker@acme",
            json!({"tools": [{"name": "fs.read_file", "inputSchema": {"type": "object"}}]}),
        ),
        (
            Kind::DiscoverTools,
            "broker@acme",
            json!({"tools": "fs.*", "limit": 10}),
        ),
        (Kind::ToolResult, "fs@acme", json!({"result": {"size": 4}})),
        (
            Kind::ToolProgress,
            "fs@acme",
            json!({"seq": 1, "message": "half"}),
        ),
        (Kind::ToolCancel, "fs@acme", json!({"reason": "enough"})),
        (
            Kind::EmitEvent,
            "topic:acme/build.done",
            json!({"data": {"ok": true}}),
        ),
        (
            Kind::Subscribe,
            "broker@acme",
            json!({"topics": ["build.*"]}),
        ),
        (Kind::Revoke, "broker@acme", json!({"ids": [id]})),
        (
            Kind::AdminAgentDeny,
            "broker@acme",
            json!({"name": "x", "key": pubkey}),
        ),
    ]
}

fn valid(made: &mut Made) {
    made.signed("S-1", "a call with sig last", "ok", plain());
    for (kind, to, body) in one_of_each_type() {
        let draft = Draft {
            kind,
            agent: &"researcher@acme".parse().unwrap(),
            to: Some(&to.parse().unwrap()),
            ts: Timestamp::from_ms(NOW),
            nonce: "9f2c6d1e8a7b4c30",
            re: kind.needs_re().then(|| Digest::of(b"a call")),
            token: None,
            deadline: None,
            via: None,
            body: &body,
        };
        let signed = serde_json::to_vec(&draft).unwrap();
        made.signed("E-8", &format!("a {kind}"), "ok", signed);
    }
    for (after, name) in [(0, "behind type"), (4, "before the body")] {
        let signed = plain();
        let sealed = seal_after(signed.as_bytes(), after, &key(HOLDER));
        let name = format!("the same call with sig {name}: the same identity");
        made.case("S-4", &name, "ok", signed.as_bytes(), &sealed);
    }
    let spaced = plain()
        .replace(r#"","#, "\" ,\r\n\t")
        .replace("{", "{ ")
        .replace("}", " }");
    made.signed("E-1", "whitespace between members", "ok", &spaced);
    let sealed = seal_after(spaced.as_bytes(), 2, &key(HOLDER));
    made.case(
        "S-1",
        "whitespace on both sides of sig, none inside",
        "ok",
        spaced.as_bytes(),
        &sealed,
    );
    let unusual = r#"{"tool":"fs.read_file","arguments":{"\u0070ath":"/\u00e4\u2028\ud83d\ude00<>&\\ \"","ö":"日本 😀","n":[1e-3,-0,1.5E+10,9007199254740993]}}"#;
    made.signed(
        "S-1",
        "escapes, Unicode and odd numbers in the body stay as they are written",
        "ok",
        plain_with_body(unusual),
    );
    let inner = sig_member(&key(ALICE).sign(b"x"));
    made.signed(
        "S-1",
        "a sig inside the body is the body's",
        "ok",
        plain_with_body(&format!(
            r#"{{"tool":"fs.read_file","arguments":{{"a":1{inner}}}}}"#
        )),
    );
    made.signed(
        "S-1",
        "a sig spelled out in a string of the body is the string's",
        "ok",
        plain_with_body(
            r#"{"tool":"fs.read_file","arguments":{"a":"}\\\",\"sig\":\"AAAA\"} \\"}}"#,
        ),
    );
    made.signed(
        "E-4",
        "every optional header member",
        "ok",
        plain_with(
            r#""v":1,"deadline":86400000,"via":"mcp","trace":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01""#,
        ),
    );
    made.signed("E-3", "64 levels", "ok", nested(DEPTH_MAX));
    made.signed(
        "R-1",
        "five minutes old",
        "ok",
        plain_but(&NOW.to_string(), &(NOW - 300_000).to_string()),
    );
    made.signed(
        "R-1",
        "five minutes ahead",
        "ok",
        plain_but(&NOW.to_string(), &(NOW + 300_000).to_string()),
    );
}

fn refused_by_form(made: &mut Made) {
    const BAD: &str = "MALFORMED";
    made.changed("E-1", "a byte order mark", BAD, |s| format!("\u{feff}{s}"));
    made.changed("E-1", "a space in front", BAD, |s| format!(" {s}"));
    made.changed("E-1", "a line feed behind", BAD, |s| format!("{s}\n"));
    made.changed("E-1", "a second brace behind", BAD, |s| format!("{s}}}"));
    made.changed("E-1", "an array of one", BAD, |s| format!("[{s}]"));
    for (name, body) in [
        ("a comment", r#"{"a":/**/1}"#),
        ("a trailing comma", r#"{"a":1,}"#),
        ("NaN", r#"{"a":NaN}"#),
        ("a lone surrogate", r#"{"a":"\ud800"}"#),
        ("a number beyond a double", r#"{"a":1e999}"#),
        ("brackets that do not match", r#"{"a":[1}]}"#),
        ("a control character in a string", "{\"a\":\"\u{1}\"}"),
    ] {
        made.signed("E-1", name, BAD, plain_with_body(body));
    }
    let mut latin1 = plain().into_bytes();
    let at = latin1.len() - 5;
    latin1[at] = 0xe4;
    made.signed("E-1", "a byte that is not UTF-8", BAD, latin1);
    for (name, body) in [
        ("a name twice in the body", r#"{"a":1,"a":1}"#),
        (
            "a name twice deep in the body, once escaped",
            r#"{"a":[{"b":1,"\u0062":2}]}"#,
        ),
    ] {
        made.signed("E-2", name, BAD, plain_with_body(body));
    }
    made.signed("E-3", "65 levels", BAD, nested(DEPTH_MAX + 1));
    for (name, text) in [
        ("an unknown member", plain_with(r#""x":1"#)),
        ("an escaped name", plain_but(r#""type""#, r#""typ\u0065""#)),
        ("a name in capitals", plain_but(r#""type""#, r#""Type""#)),
        ("a member twice", plain_with(r#""to":"fs@acme""#)),
        ("no nonce", plain_but(r#","nonce":"9f2c6d1e8a7b4c30""#, "")),
        (
            "a short nonce",
            plain_but("9f2c6d1e8a7b4c30", "9f2c6d1e8a7b4c3"),
        ),
        (
            "a space in the nonce",
            plain_but("9f2c6d1e8a7b4c30", "9f2c6d1e 8a7b4c30"),
        ),
        ("a body that is no object", plain_with_body("null")),
        ("a null where a string goes", plain_with(r#""via":null"#)),
        (
            "a toolResult without re",
            plain_but("toolCall", "toolResult"),
        ),
        ("a deadline of nothing", plain_with(r#""deadline":0"#)),
        (
            "a deadline beyond a day",
            plain_with(r#""deadline":86400001"#),
        ),
    ] {
        made.signed("E-4", name, BAD, text);
    }
    made.signed(
        "E-5",
        "an escape in a header string",
        BAD,
        plain_but("researcher@acme", r"researcher\u0040acme"),
    );
    made.signed(
        "E-5",
        "a control character in a header string",
        BAD,
        plain_with("\"via\":\"a\tb\""),
    );
    for (name, ts) in [
        ("a fraction", "1750000000000.0"),
        ("an exponent", "175e10"),
        ("a leading zero", "01750000000000"),
        ("a sign", "-1750000000000"),
        ("2^53", "9007199254740992"),
        ("a string", "\"1750000000000\""),
    ] {
        let text = plain_but(&NOW.to_string(), ts);
        made.signed("E-6", &format!("ts as {name}"), BAD, text);
    }
    made.signed("E-7", "a byte too many", "TOO_LARGE", plain());
    let length = made.last().sealed_hex.len() / 2;
    made.last().bytes_max = length - 1;
    made.signed(
        "E-8",
        "version 2",
        "UNSUPPORTED_VERSION",
        plain_with(r#""v":2"#),
    );
    made.signed(
        "E-8",
        "an unknown type",
        "UNKNOWN_TYPE",
        plain_but("toolCall", "toolcall"),
    );
    for (name, agent) in [
        ("capitals", "Researcher@acme"),
        ("no organisation", "researcher"),
        ("a reserved segment", "admin.x@acme"),
        ("two dots in a row", "a..b@acme"),
        ("nothing", ""),
    ] {
        let text = plain_but("researcher@acme", agent);
        made.signed("N-1", &format!("a name with {name}"), BAD, text);
    }
}

fn refused_by_signature(made: &mut Made) {
    const BAD: &str = "MALFORMED";
    const FORGED: &str = "NOT_AUTHENTIC";
    made.case("S-1", "no sig", BAD, plain().as_bytes(), plain().as_bytes());
    made.changed("S-1", "sig twice", BAD, |s| {
        let at = s.find(r#","sig""#).unwrap();
        let member = &s[at..at + SIG_MEMBER_BYTES];
        s.replace(member, &member.repeat(2))
    });
    made.changed("S-1", "sig first", BAD, |s| {
        let at = s.find(r#","sig""#).unwrap();
        let member = s[at..at + SIG_MEMBER_BYTES].to_owned();
        let rest = s.replace(&member, "");
        format!("{{{},{}", &member[1..], &rest[1..])
    });
    made.changed("S-1", "a space behind sig's comma", BAD, |s| {
        s.replace(r#","sig""#, r#", "sig""#)
    });
    made.changed("S-1", "a space before sig's colon", BAD, |s| {
        s.replace(r#""sig":"#, r#""sig" :"#)
    });
    made.changed("S-1", "a space behind sig's colon", BAD, |s| {
        s.replace(r#""sig":"#, r#""sig": "#)
    });
    made.changed("S-1", "an escaped letter in sig's name", BAD, |s| {
        s.replace(r#""sig""#, r#""si\u0067""#)
    });
    made.changed("S-1", "sig without padding", BAD, |s| {
        s.replace("==\"", "\"")
    });
    made.changed("S-1", "sig with unused bits set", BAD, |s| {
        let at = s.rfind("==\"").unwrap();
        let last = s.as_bytes()[at - 1];
        format!("{}{}{}", &s[..at - 1], char::from(last + 1), &s[at..])
    });
    // One whose signature has a character in which the two alphabets differ.
    let (signed, sealed) = (0..10)
        .map(|n| plain_but("9f2c6d1e8a7b4c30", &format!("9f2c6d1e8a7b4c3{n}")))
        .map(|signed| (sig_member(&key(HOLDER).sign(signed.as_bytes())), signed))
        .find(|(member, _)| member.contains('/'))
        .map(|(member, signed)| {
            let member = member.replace('/', "_").replace('+', "-");
            let sealed = insert(signed.as_bytes(), 5, &member);
            (signed, sealed)
        })
        .unwrap();
    made.case("S-1", "sig as base64url", BAD, signed.as_bytes(), &sealed);
    made.changed("S-2", "another body than was signed", FORGED, |s| {
        s.replace("/srv/a", "/srv/b")
    });
    made.changed("S-2", "a space that was not signed", FORGED, |s| {
        s.replace(r#","to""#, r#", "to""#)
    });
    let signed = plain().into_bytes();
    let others = seal_last(&signed, &key(ALICE));
    made.case("S-2", "another key", FORGED, &signed, &others);
    let above = wire::splice(&signed, &plus_order(&key(HOLDER).sign(&signed)));
    made.case("S-2", "s above the group order", FORGED, &signed, &above);
    let constant = wire::splice(&signed, &Signature(identity_point()));
    made.case("N-2", "a key of small order", "BAD_KEY", &signed, &constant);
    made.last().public_key = STANDARD.encode(&identity_point()[..32]);
    made.last().seed_hex = String::new();
    made.case(
        "N-2",
        "a key encoded a second way",
        "BAD_KEY",
        &signed,
        &constant,
    );
    made.last().public_key = STANDARD.encode(twice_encoded());
    made.last().seed_hex = String::new();
    for (name, ts) in [
        ("older than five minutes", NOW - 300_001),
        ("further ahead than five minutes", NOW + 300_001),
    ] {
        let text = plain_but(&NOW.to_string(), &ts.to_string());
        made.signed("R-1", name, "STALE", text);
    }
}

/// The identity point, and as a signature: R the identity, s zero. Under the identity as key it fits
/// every message.
fn identity_point() -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    bytes
}

/// The identity with y = p + 1.
fn twice_encoded() -> [u8; 32] {
    let mut bytes = [0xff; 32];
    bytes[0] = 0xee;
    bytes[31] = 0x7f;
    bytes
}

/// The same signature with the group order added to `s`: the equation holds as before.
fn plus_order(signature: &Signature) -> Signature {
    let order = unhex("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
    let mut bytes = signature.0;
    let mut carry = 0;
    for (byte, add) in bytes[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        *byte = (sum & 0xff) as u8;
        carry = sum >> 8;
    }
    Signature(bytes)
}

fn vectors() -> Vectors {
    let mut made = Made::default();
    valid(&mut made);
    refused_by_form(&mut made);
    refused_by_signature(&mut made);
    let about = [
        "Envelopes as they arrive at the broker of `acme`, whose clock shows `now` and which takes at most `bytes_max` bytes.",
        "`public_key` is the key on record for the sender, `seed_hex` its RFC 8032 seed (empty where nobody has one).",
        "`signed_hex` is what was signed; where the verdict is `ok`, it is also what the cut leaves of `sealed_hex`, and its SHA-256 is `identity`.",
        "A key that is refused where it enters gives BAD_KEY, whatever the envelope.",
    ];
    Vectors {
        about: about.map(String::from).to_vec(),
        cases: made.0,
    }
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors/envelopes.json")
}

#[expect(clippy::disallowed_methods, reason = "a test reads its vectors")]
fn kept() -> String {
    std::fs::read_to_string(path()).unwrap_or_default()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "whoever blesses says so")]
fn the_envelope_vectors_are_made_anew_and_do_not_differ() {
    let made = serde_json::to_string_pretty(&vectors()).unwrap() + "\n";
    if std::env::var_os("FEM_BLESS").is_some() {
        std::fs::write(path(), &made).unwrap();
    }
    assert!(
        kept() == made,
        "vectors/envelopes.json differs: look at what FEM_BLESS=1 changes"
    );
}

#[test]
fn the_envelope_vectors_hold_for_a_reader_who_has_only_the_file() {
    let vectors: Vectors = serde_json::from_str(&kept()).unwrap();
    for case in &vectors.cases {
        let verdict = judge(case);
        let code = verdict
            .as_ref()
            .map_or_else(|refusal| refusal.code().to_string(), |_| String::from("ok"));
        assert_eq!(code, case.verdict, "{}: {verdict:?}", case.name);
        assert_eq!(verdict.ok(), case.identity, "{}", case.name);
        if let Some(text) = &case.sealed {
            assert_eq!(hex(text.as_bytes()), case.sealed_hex, "{}", case.name);
        }
        if let Ok(seed) = unhex(&case.seed_hex).try_into() {
            assert_eq!(key(seed).public().to_string(), case.public_key);
        }
    }
    let names: BTreeSet<_> = vectors.cases.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), vectors.cases.len(), "a name stands twice");
    let shown: BTreeSet<_> = vectors.cases.iter().map(|case| &*case.rule).collect();
    for rule in [
        "E-1", "E-2", "E-3", "E-4", "E-5", "E-6", "E-7", "E-8", "S-1", "S-2", "S-4", "N-1", "N-2",
        "R-1",
    ] {
        assert!(shown.contains(rule), "no vector shows {rule}");
    }
}

// ---- The claims of SPEC.md.

fn parse(bytes: impl Into<Bytes>) -> Result<Envelope, Refusal> {
    Envelope::parse(bytes.into(), ENVELOPE_BYTES)
}

/// The signed bytes, if `bytes` are an envelope that `key` signed.
fn verified(bytes: Vec<u8>, key: &PublicKey) -> Option<Vec<u8>> {
    let envelope = parse(bytes).ok()?;
    let signed = envelope.signed_bytes();
    key.verifies(&signed, envelope.signature())
        .then_some(signed)
}

#[test]
fn the_sig_member_has_one_spelling() {
    let signed = plain().into_bytes();
    for after in 0..members(&signed).unwrap().len() {
        let sealed = seal_after(&signed, after, &key(HOLDER));
        let at = parse(sealed.clone()).unwrap();
        assert_eq!(at.signed_bytes(), signed);
        let start = members(&signed).unwrap()[after].value.end;
        for inside in 1..SIG_MEMBER_BYTES {
            for white in [" ", "\t", "\n", "\r"] {
                let (head, tail) = sealed.split_at(start + inside);
                let spaced = [head, white.as_bytes(), tail].concat();
                let code = parse(spaced).unwrap_err().code();
                assert_eq!(code, Code::Malformed, "{white:?} at {inside}");
            }
        }
    }
    // Nothing that could be found by searching is taken for the member itself.
    let decoy = plain_with_body(&format!(r#"{{"a":1{}}}"#, sig_member(&Signature([0; 64]))));
    assert_eq!(
        Cut::find(decoy.as_bytes(), &members(decoy.as_bytes()).unwrap()),
        Err(Refusal::MissingMember("sig"))
    );
}

#[test]
fn moving_sig_changes_no_identity() {
    let signed = plain().into_bytes();
    for after in 0..members(&signed).unwrap().len() {
        let sealed = seal_after(&signed, after, &key(HOLDER));
        let cut = verified(sealed, &key(HOLDER).public()).unwrap();
        assert_eq!(wire::identity(&cut), wire::identity(&signed));
    }
}

#[test]
fn header_members_are_a_closed_list() {
    let code = |text: String| {
        parse(seal_last(text.as_bytes(), &key(HOLDER)))
            .map(|_| ())
            .map_err(|refusal| refusal.code())
    };
    assert_eq!(code(plain()), Ok(()));
    let required = ["type", "agent", "ts", "nonce", "body"];
    for name in ["type", "agent", "to", "ts", "nonce", "body"] {
        let quoted = format!("\"{name}\"");
        let first = name.chars().next().unwrap();
        let escaped = quoted.replacen(first, &format!("\\u{:04x}", u32::from(first)), 1);
        for other in [escaped, quoted.to_uppercase(), format!("\"{name} \"")] {
            assert_eq!(code(plain_but(&quoted, &other)), Err(Code::Malformed));
        }
        let all = members(plain().as_bytes()).unwrap();
        let member = all
            .iter()
            .find(|m| plain()[m.name.clone()] == *name)
            .unwrap();
        let twice = format!(
            "{},{quoted}:{}",
            quoted_rest(&plain()),
            &plain()[member.value.clone()]
        );
        assert_eq!(code(twice + "}"), Err(Code::Malformed), "{name} twice");
        let without = plain()
            .replacen(
                &format!("{quoted}:{}", &plain()[member.value.clone()]),
                "",
                1,
            )
            .replace(",,", ",")
            .replace("{,", "{")
            .replace(",}", "}");
        let wanted = if required.contains(&name) {
            Err(Code::Malformed)
        } else {
            Ok(())
        };
        assert_eq!(code(without), wanted, "without {name}");
    }
    for value in [
        "null",
        "1",
        "true",
        "[]",
        "{}",
        r#""a\tb""#,
        "\"a\u{7f}b\"",
        r#""\u0061""#,
    ] {
        for name in ["re", "token", "via", "trace"] {
            let text = plain_with(&format!("\"{name}\":{value}"));
            assert_eq!(code(text), Err(Code::Malformed), "{name} as {value}");
        }
    }
    for value in [
        "null",
        "\"1\"",
        "1.0",
        "1e0",
        "-1",
        "+1",
        "01",
        "",
        "9007199254740992",
        "1x",
    ] {
        for name in ["v", "deadline"] {
            let text = plain_with(&format!("\"{name}\":{value}"));
            assert_eq!(code(text), Err(Code::Malformed), "{name} as {value}");
        }
    }
    for version in ["0", "2", "9007199254740991"] {
        let text = plain_with(&format!("\"v\":{version}"));
        assert_eq!(code(text), Err(Code::UnsupportedVersion));
    }
    for name in ["x", "", "sig2", "Sig", "body\0"] {
        let text = plain_with(&format!("{}:1", json!(name)));
        assert_eq!(code(text), Err(Code::Malformed), "{name:?}");
    }
    let unknown = plain_but("toolCall", "toolCall2");
    assert_eq!(code(unknown), Err(Code::UnknownType));
}

/// An object's text without its closing brace.
fn quoted_rest(object: &str) -> &str {
    object.strip_suffix('}').unwrap()
}

#[test]
fn only_strict_signatures_verify() {
    let holder = key(HOLDER);
    let message = plain().into_bytes();
    let good = holder.sign(&message);
    assert!(holder.public().verifies(&message, &good));
    assert!(!holder.public().verifies(&message, &plus_order(&good)));
    assert!(
        !holder
            .public()
            .verifies(&message, &Signature(identity_point()))
    );
    assert!(!key(ALICE).public().verifies(&message, &good));
    for bit in 0..512 {
        let mut other = good;
        other.0[bit / 8] ^= 1 << (bit % 8);
        assert!(!holder.public().verifies(&message, &other), "bit {bit}");
    }
    let [weak, twice] = [identity_point()[..32].try_into().unwrap(), twice_encoded()];
    assert!(PublicKey::from_bytes(&weak).is_err());
    assert!(PublicKey::from_bytes(&twice).is_err());
}

/// What each signature of a sealed token was made over, and by whose key: the payloads of the
/// Biscuit specification, put together again.
fn payloads(token: &schema::Biscuit, root: PublicKey) -> Vec<(PublicKey, Vec<u8>, Signature)> {
    let key_of =
        |key: &schema::PublicKey| PublicKey::from_bytes(&key.key[..].try_into().unwrap()).unwrap();
    let signature_of = |bytes: &[u8]| Signature(bytes.try_into().unwrap());
    let next = |block: &schema::SignedBlock| {
        [
            &block.next_key.algorithm.to_le_bytes()[..],
            &block.next_key.key,
        ]
        .concat()
    };
    let mut found = Vec::new();
    let mut signer = root;
    let mut previous: Option<&schema::SignedBlock> = None;
    for block in std::iter::once(&token.authority).chain(&token.blocks) {
        let mut payload = Vec::new();
        if let Some(version) = block.version.filter(|version| *version > 0) {
            payload.extend(b"\0BLOCK\0\0VERSION\0");
            payload.extend(version.to_le_bytes());
            payload.extend(b"\0PAYLOAD\0");
            payload.extend(&block.block);
            payload.extend(b"\0ALGORITHM\0");
            payload.extend(block.next_key.algorithm.to_le_bytes());
            payload.extend(b"\0NEXTKEY\0");
            payload.extend(&block.next_key.key);
            if let Some(previous) = previous {
                payload.extend(b"\0PREVSIG\0");
                payload.extend(&previous.signature);
            }
            if let Some(external) = &block.external_signature {
                payload.extend(b"\0EXTERNALSIG\0");
                payload.extend(&external.signature);
            }
        } else {
            payload.extend(&block.block);
            payload.extend(next(block));
        }
        found.push((signer, payload, signature_of(&block.signature)));
        if let (Some(external), Some(previous)) = (&block.external_signature, previous) {
            let mut payload = b"\0EXTERNAL\0\0VERSION\0".to_vec();
            payload.extend(1_u32.to_le_bytes());
            payload.extend(b"\0PAYLOAD\0");
            payload.extend(&block.block);
            payload.extend(b"\0PREVSIG\0");
            payload.extend(&previous.signature);
            let by = key_of(&external.public_key);
            found.push((by, payload, signature_of(&external.signature)));
        }
        signer = key_of(&block.next_key);
        previous = Some(block);
    }
    let Some(schema::proof::Content::FinalSignature(seal)) = &token.proof.content else {
        return found;
    };
    let last = previous.unwrap();
    let payload = [&last.block[..], &next(last), &last.signature].concat();
    found.push((signer, payload, signature_of(seal)));
    found
}

#[test]
fn nothing_that_a_key_signs_can_be_taken_for_something_else() {
    // An envelope: whoever parses one has seen that what was signed begins with a brace.
    for (kind, _, _) in one_of_each_type() {
        let draft = Draft {
            kind,
            agent: &"researcher@acme".parse().unwrap(),
            to: None,
            ts: Timestamp::from_ms(NOW),
            nonce: "9f2c6d1e8a7b4c30",
            re: Some(Digest::of(b"a call")),
            token: None,
            deadline: None,
            via: None,
            body: &json!({}),
        };
        let envelope = parse(draft.seal(&key(HOLDER)).unwrap().bytes).unwrap();
        assert_eq!(envelope.signed_bytes()[0], b'{');
    }
    // A token with every kind of block: by the root, by nobody, by its holder; and its seal.
    let attenuated = attenuate(&mint(&terms(&["fs.*"])), &only(&["fs.read"]), [5; 32]).unwrap();
    let token = delegated(&attenuated, HOLDER, ALICE, &only(&["fs.read"]));
    // A block that brings no string of its own begins with its version.
    let sooner = Narrowing {
        expires: Some(fixture::at(fixture::ISSUED + 60_000)),
        ..Narrowing::default()
    };
    let ending = attenuate(&attenuated, &sooner, [6; 32]).unwrap();
    let mut first_bytes = BTreeSet::new();
    for token in [
        sealed(&mint(&terms(&["fs.*"]))),
        sealed(&ending),
        sealed(&token),
    ] {
        let token = container(&token);
        let payloads = payloads(&token, key(ROOT).public());
        let delegations = token
            .blocks
            .iter()
            .filter(|b| b.external_signature.is_some());
        assert_eq!(payloads.len(), 2 + token.blocks.len() + delegations.count());
        for (by, payload, signature) in payloads {
            assert!(by.verifies(&payload, &signature), "{}", hex(&payload));
            assert!(members(&payload).is_err(), "{}", hex(&payload));
            first_bytes.insert(payload[0]);
        }
    }
    // The tag of a block's first field, symbols or version; and the marks of the later format.
    assert_eq!(first_bytes, BTreeSet::from([0x00, 0x0a, 0x18]));
}

// ---- Laws.

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|x| serde_json::Number::from_f64(x).map_or(Value::Null, Value::from)),
        any::<String>().prop_map(Value::from),
        Just(Value::from("\",\"sig\":\"")),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            object(inner),
        ]
    })
}

fn object(inner: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    let name = prop_oneof![any::<String>(), Just(String::from("sig"))];
    prop::collection::btree_map(name, inner, 0..4)
        .prop_map(|map| Value::Object(map.into_iter().collect()))
}

/// An envelope's signed bytes, with or without whitespace.
fn signed_bytes() -> impl Strategy<Value = Vec<u8>> {
    (object(json_value()), any::<bool>()).prop_map(|(body, wide)| {
        let value = json!({
            "type": "toolCall", "agent": "researcher@acme", "to": "fs@acme", "ts": NOW,
            "nonce": "9f2c6d1e8a7b4c30", "body": body,
        });
        if wide {
            serde_json::to_vec_pretty(&value).unwrap()
        } else {
            serde_json::to_vec(&value).unwrap()
        }
    })
}

proptest! {
    #[test]
    fn what_is_sealed_is_what_is_verified(signed in signed_bytes(), after in 0_usize..6) {
        let sealed = seal_after(&signed, after, &key(HOLDER));
        let cut = verified(sealed, &key(HOLDER).public());
        prop_assert_eq!(cut.as_ref(), Some(&signed));
        prop_assert_eq!(cut.map(|cut| wire::identity(&cut)), Some(Digest::of(&signed)));
    }

    #[test]
    fn no_changed_byte_verifies(
        signed in signed_bytes(),
        after in 0_usize..6,
        at: prop::sample::Index,
        flip in 1_u8..,
    ) {
        let mut sealed = seal_after(&signed, after, &key(HOLDER));
        let at = at.index(sealed.len());
        sealed[at] ^= flip;
        prop_assert_eq!(verified(sealed, &key(HOLDER).public()), None);
    }

    #[test]
    fn any_bytes_are_refused_or_parsed_and_never_panic(bytes: Vec<u8>, text in "[{}\\[\\]\",:\\\\a0 ]{0,40}") {
        for bytes in [bytes, text.into_bytes()] {
            if let Ok(found) = members(&bytes) {
                let _ = Cut::find(&bytes, &found);
            }
            prop_assert!(parse(bytes).is_err());
        }
    }
}
