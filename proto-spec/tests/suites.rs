//! What others found out, held against us: Wycheproof, ed25519-speccheck, JSONTestSuite, and
//! envelopes that another implementation sealed.
//!
//! The suites are not in this repository. They are looked for at `$FEM_SUITES` and
//! `$FEM_GO_VECTORS`, else in `../shared` beside the workspace; what is absent is left out aloud.

#![expect(clippy::unwrap_used, reason = "a failing test panics")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proto_spec::admission::{Judge, KeyBook, Me, Nonces};
use proto_spec::limits::{CLOCK_SKEW_MAX, DEPTH_MAX, ENVELOPE_BYTES};
use proto_spec::message::full_names;
use proto_spec::signature::BadKey;
use proto_spec::wire::{Cut, check_strict, members};
use proto_spec::{AgentId, Kind, PublicKey, Received, Refusal, Signature, Speaker, Timestamp};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Where `variable` says, else `default` under the workspace's `../shared`; `None` when nothing is
/// there, which is said.
#[expect(
    clippy::disallowed_methods,
    reason = "a test may look for what it tests against"
)]
fn found(variable: &str, default: &str) -> Option<PathBuf> {
    let beside = || {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../shared")
            .join(default)
    };
    let path = std::env::var_os(variable).map_or_else(beside, PathBuf::from);
    if path.exists() {
        return Some(path);
    }
    println!("left out: {} (set {variable})", path.display());
    None
}

fn suite(name: &str) -> Option<PathBuf> {
    let path = found("FEM_SUITES", "suites")?.join(name);
    assert!(path.exists(), "{} is missing", path.display());
    Some(path)
}

#[expect(clippy::disallowed_methods, reason = "a test reads its suite")]
fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn read_json<T: DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&read(path)).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

/// Whether we take `signature` over `message` under `key`, all three as they come.
fn accepts(key: &str, message: &str, signature: &str) -> bool {
    let key = unhex(key).try_into().ok();
    let key = key.and_then(|bytes| PublicKey::from_bytes(&bytes).ok());
    let signature = unhex(signature).try_into().ok().map(Signature);
    match (key, signature) {
        (Some(key), Some(signature)) => key.verifies(&unhex(message), &signature),
        _ => false,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wycheproof {
    test_groups: Vec<WycheproofGroup>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WycheproofGroup {
    public_key: WycheproofKey,
    tests: Vec<WycheproofCase>,
}

#[derive(Deserialize)]
struct WycheproofKey {
    pk: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WycheproofCase {
    tc_id: u32,
    msg: String,
    sig: String,
    result: String,
}

#[test]
fn wycheproof_finds_no_signature_that_we_take_or_refuse_wrongly() {
    let Some(path) = suite("wycheproof/ed25519_test.json") else {
        return;
    };
    let cases: Wycheproof = read_json(&path);
    let mut counts = BTreeMap::new();
    for group in &cases.test_groups {
        for case in &group.tests {
            let accepted = accepts(&group.public_key.pk, &case.msg, &case.sig);
            let wanted = case.result == "valid";
            assert_eq!(accepted, wanted, "tcId {}", case.tc_id);
            *counts.entry(case.result.as_str()).or_insert(0) += 1;
        }
    }
    assert_eq!(counts, BTreeMap::from([("invalid", 63), ("valid", 88)]));
}

#[derive(Deserialize)]
struct SpeccheckCase {
    message: String,
    pub_key: String,
    signature: String,
}

/// Twelve signatures on which implementations differ. A strict one takes the fourth alone.
#[test]
fn where_ed25519_implementations_differ_we_are_the_strict_one() {
    let Some(path) = suite("ed25519-speccheck/cases.json") else {
        return;
    };
    let cases: Vec<SpeccheckCase> = read_json(&path);
    let verdicts: String = cases
        .iter()
        .map(
            |case| match accepts(&case.pub_key, &case.message, &case.signature) {
                true => 'V',
                false => 'X',
            },
        )
        .collect();
    assert_eq!(verdicts, "XXXVXXXXXXXX");
}

/// Bytes to verdict, as an envelope's body is judged: UTF-8 first, then strict JSON.
fn strict(bytes: &[u8]) -> Result<(), Refusal> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| Refusal::NotStrictJson("not UTF-8".into()))?;
    check_strict(text, DEPTH_MAX)
}

/// The files of one folder of JSONTestSuite with our verdict on each. Judged on a stack of 256 KiB:
/// some nest a hundred thousand deep, and whoever recursed there would die here.
fn judged(folder: &str) -> Option<BTreeMap<String, Result<(), Refusal>>> {
    let folder = suite("json-test-suite")?.join(folder);
    let judge = move || {
        let entries = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap());
        let verdict = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().unwrap();
            (name, strict(&read(&entry.path())))
        };
        entries.map(verdict).collect()
    };
    let thread = std::thread::Builder::new().stack_size(256 << 10);
    Some(thread.spawn(judge).unwrap().join().unwrap())
}

/// RFC 8259 leaves these to the reader; we take them, because a double holds them all, if only
/// roughly. Every other `i_` is refused: beyond a double, not UTF-8, lone surrogates, deeper than 64.
const LEFT_TO_THE_READER_AND_TAKEN: [&str; 5] = [
    "i_number_double_huge_neg_exp.json",
    "i_number_real_underflow.json",
    "i_number_too_big_neg_int.json",
    "i_number_too_big_pos_int.json",
    "i_number_very_big_negative_int.json",
];

/// RFC 8259 only advises against these; we refuse them (E-2): of two members of one name one reader
/// believes the first and another the last, so one signature would say two things.
const VALID_JSON_THAT_WE_REFUSE: [&str; 2] = [
    "y_object_duplicated_key.json",
    "y_object_duplicated_key_and_value.json",
];

#[test]
fn json_is_what_the_json_test_suite_says_without_names_that_stand_twice() {
    let Some(verdicts) = judged("test_parsing") else {
        return;
    };
    let of = |class: &str, taken: bool| -> Vec<&str> {
        verdicts
            .iter()
            .filter(|(name, verdict)| name.starts_with(class) && verdict.is_ok() == taken)
            .map(|(name, _)| name.as_str())
            .collect()
    };
    assert_eq!(of("y_", false), VALID_JSON_THAT_WE_REFUSE);
    assert_eq!(of("n_", true), [""; 0]);
    assert_eq!(of("i_", true), LEFT_TO_THE_READER_AND_TAKEN);
    let counts = [of("y_", true), of("n_", false), of("i_", false)].map(|names| names.len());
    assert_eq!(counts, [93, 188, 30]);
    assert_eq!(verdicts.len(), 318);
}

#[test]
fn documents_that_readers_understand_differently_are_refused() {
    let Some(verdicts) = judged("test_transform") else {
        return;
    };
    let refused: Vec<&str> = verdicts
        .iter()
        .filter(|(_, verdict)| verdict.is_err())
        .map(|(name, _)| name.as_str())
        .collect();
    // Names are compared as they are: a composed and a decomposed letter are two names.
    assert_eq!(
        refused,
        [
            "object_same_key_different_values.json",
            "object_same_key_same_value.json",
            "object_same_key_unclear_values.json",
            "string_1_escaped_invalid_codepoint.json",
            "string_1_invalid_codepoint.json",
            "string_2_escaped_invalid_codepoints.json",
            "string_2_invalid_codepoints.json",
            "string_3_escaped_invalid_codepoints.json",
            "string_3_invalid_codepoints.json",
        ]
    );
}

#[derive(Deserialize)]
struct GoEnvelope {
    name: String,
    class: String,
    pubkey_hex: String,
    signed_hex: String,
    sealed_hex: String,
}

/// What cut and verification alone say; names, nonces and times are not looked at.
#[derive(Debug, PartialEq)]
enum CutVerdict {
    BadKey(BadKey),
    Refused,
    Verified { signed: Vec<u8> },
}

fn cut_and_verify(envelope: &GoEnvelope) -> CutVerdict {
    let key = unhex(&envelope.pubkey_hex).try_into().unwrap();
    let key = match PublicKey::from_bytes(&key) {
        Ok(key) => key,
        Err(why) => return CutVerdict::BadKey(why),
    };
    let sealed = unhex(&envelope.sealed_hex);
    let cut = members(&sealed).and_then(|members| Cut::find(&sealed, &members));
    match cut.map(|cut| (cut.signature, cut.signed_bytes(&sealed))) {
        Ok((signature, signed)) if key.verifies(&signed, &signature) => {
            CutVerdict::Verified { signed }
        }
        _ => CutVerdict::Refused,
    }
}

/// Every nonce is new.
struct AllNew;

impl Nonces for AllNew {
    fn remember(&self, _: &PublicKey, _: &str, _: Timestamp, _: Timestamp) -> Result<(), Refusal> {
        Ok(())
    }
}

struct Key(PublicKey);

impl KeyBook for Key {
    fn key_of(&self, _: &Speaker) -> Option<PublicKey> {
        Some(self.0)
    }
}

/// What a broker that speaks with older agents makes of an envelope, up to its nonce.
fn admit_older(envelope: &GoEnvelope) -> Result<(), Refusal> {
    let org = "acme".parse().unwrap();
    let key = PublicKey::from_bytes(&unhex(&envelope.pubkey_hex).try_into().unwrap());
    let full_name = |agent: &AgentId, bare: &str| full_names(agent.name(), bare).last();
    let bytes = unhex(&envelope.sealed_hex).into();
    let received = Received::parse_older(bytes, ENVELOPE_BYTES, &org, full_name)?;
    let judge = Judge {
        me: Me::Broker(&org),
        skew: CLOCK_SKEW_MAX,
        now: Timestamp::from_ms(1_795_300_159_779),
    };
    match received.envelope().kind() {
        Kind::RegisterAgent => received.introduce(&judge, &AllNew).map(drop),
        _ => {
            let verified = received.verify(&Key(key.map_err(Refusal::BadKey)?))?;
            verified.admit(&judge, &AllNew).map(drop)
        }
    }
}

/// Of what an older agent may say, what is named, signed and made unique as ours has to be, is taken.
#[test]
fn go_vectors_are_admitted_as_older_agents_envelopes_or_refused() {
    let Some(path) = found("FEM_GO_VECTORS", "vectors/go-envelopes.jsonl") else {
        return;
    };
    let text = String::from_utf8(read(&path)).unwrap();
    let mut taken = Vec::new();
    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines() {
        let envelope: GoEnvelope = serde_json::from_str(line).unwrap();
        match admit_older(&envelope) {
            Ok(()) => taken.push(envelope.name),
            Err(why) => *refused.entry(why.code().as_str()).or_default() += 1,
        }
    }
    assert_eq!(taken, ["registerAgent-as-fem-coder", "toolCall"]);
    assert_eq!(refused.values().sum::<usize>(), 39, "{refused:?}");
    assert!(refused.contains_key("NOT_AUTHENTIC") && refused.contains_key("MALFORMED"));
}

#[test]
fn go_vectors_get_the_verdict_of_their_class() {
    let Some(path) = found("FEM_GO_VECTORS", "vectors/go-envelopes.jsonl") else {
        return;
    };
    let text = String::from_utf8(read(&path)).unwrap();
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let envelope: GoEnvelope = serde_json::from_str(line).unwrap();
        let wanted = match envelope.class.as_str() {
            "valid" | "quirk" => CutVerdict::Verified {
                signed: unhex(&envelope.signed_hex),
            },
            "weak-key" => CutVerdict::BadKey(BadKey::SmallOrder),
            _ => CutVerdict::Refused,
        };
        assert_eq!(cut_and_verify(&envelope), wanted, "{}", envelope.name);
        *counts.entry(envelope.class).or_insert(0) += 1;
    }
    let counts: Vec<_> = counts.iter().map(|(c, n)| (c.as_str(), *n)).collect();
    assert_eq!(
        counts,
        [
            ("malleable", 6),
            ("quirk", 1),
            ("tampered", 12),
            ("valid", 21),
            ("weak-key", 1)
        ]
    );
}
