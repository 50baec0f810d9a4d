//! Tokens as data: the vectors of this protocol, and the Biscuit project's own samples.
//!
//! `vectors/tokens.json` is made here from seeds, and read back as a stranger would, from the file alone.
//! `FEM_BLESS=1` rewrites it; without, a difference fails.

#![expect(
    clippy::disallowed_methods,
    reason = "tests read files and measure; the core does neither"
)]
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a failing test panics"
)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use biscuit_auth::builder::Term;
use biscuit_auth::datalog::{ExternFunc, RunLimits};
use biscuit_auth::{Algorithm, AuthorizerBuilder, Biscuit, UnverifiedBiscuit};
use proto_spec::capability::issue::{attenuate, bearer, enrolment, seal};
use proto_spec::capability::{
    Arguments, Check, Narrowing, Proof, Question, RevocationId, Terms, Token, decode_text,
    encode_text,
};
use proto_spec::{PublicKey, Refusal, SigningKey, Timestamp};
use serde::{Deserialize, Serialize};

mod fixture;
use fixture::*;

// ---- vectors/tokens.json ----------------------------------------------------------------------------

#[derive(Debug, Serialize, Deserialize)]
struct Vectors {
    about: Vec<String>,
    /// What each seed is for: 32 bytes, hexadecimal.
    seeds: HashMap<String, String>,
    root: PublicKey,
    tokens: Vec<TokenCase>,
    clauses: Vec<ClauseCase>,
}

#[derive(Debug, Serialize, Deserialize)]
struct TokenCase {
    name: String,
    blocks: Vec<BlockCase>,
    /// base64url
    token: String,
    /// `OK`, or the code with which it is refused before anything is asked.
    open: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    revocation_ids: Vec<RevocationId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    holders: Vec<PublicKey>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    questions: Vec<QuestionCase>,
}

#[derive(Debug, Serialize, Deserialize)]
struct BlockCase {
    /// As the engine prints it, for issuers in other languages to make the same.
    datalog: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    delegated_by: Option<PublicKey>,
}

#[derive(Debug, Serialize, Deserialize)]
struct QuestionCase {
    required: String,
    now_ms: u64,
    proof: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool: Option<String>,
    caller: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trust: Option<u8>,
    /// The JSON text of `arguments`; `null` when they are sealed.
    arguments: Option<String>,
    answer: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct ClauseCase {
    clause: String,
    /// Nothing when the clause is an error.
    checks: Option<Vec<String>>,
}

fn verdict<T>(result: &Result<T, Refusal>) -> String {
    match result {
        Ok(_) => "OK".into(),
        Err(refusal) => refusal.code().to_string(),
    }
}

fn blocks_of(token: &[u8]) -> Vec<BlockCase> {
    let Ok(parsed) = UnverifiedBiscuit::from(token) else {
        return Vec::new();
    };
    let keys = parsed.external_public_keys();
    let each = keys
        .into_iter()
        .enumerate()
        .map(|(index, signer)| BlockCase {
            datalog: parsed.print_block_source(index).unwrap_or_default(),
            delegated_by: signer.map(|key| {
                PublicKey::from_bytes(&key.to_bytes().try_into().expect("an Ed25519 key")).unwrap()
            }),
        });
    each.collect()
}

fn case(name: &str, token: &[u8], questions: &[(&str, u64, Arguments<'_>)]) -> TokenCase {
    let opened = open(token);
    let ask = |(required, now, arguments): &(&str, u64, Arguments<'_>)| {
        let pattern = required.parse().unwrap();
        let q = Question {
            now: at(*now),
            arguments: *arguments,
            ..question(&pattern)
        };
        QuestionCase {
            required: (*required).into(),
            now_ms: *now,
            proof: "key".into(),
            tool: q.tool.map(Into::into),
            caller: q.caller.map(ToString::to_string).unwrap_or_default(),
            provider: q.provider.map(ToString::to_string),
            trust: q.trust,
            arguments: match arguments {
                Arguments::Json(json) => Some((*json).into()),
                _ => None,
            },
            answer: verdict(&opened.as_ref().expect(name).permits(&q)),
        }
    };
    TokenCase {
        name: name.into(),
        blocks: blocks_of(token),
        token: encode_text(token),
        open: verdict(&opened),
        questions: questions.iter().map(ask).collect(),
        revocation_ids: opened
            .iter()
            .flat_map(|t| t.blocks())
            .map(|b| b.id())
            .collect(),
        holders: opened.iter().flat_map(|t| t.holders()).copied().collect(),
    }
}

const NOW: u64 = ISSUED + 60_000;
const NONE: Arguments<'_> = Arguments::Json("{}");

fn token_cases() -> Vec<TokenCase> {
    let plain = mint(&terms(&["fs.*", "net.get"]));
    let alice = delegated(
        &plain,
        HOLDER,
        ALICE,
        &Narrowing {
            calls: Some(5),
            ..only(&["fs.read"])
        },
    );
    let bob = delegated(
        &alice,
        ALICE,
        BOB,
        &Narrowing {
            expires: Some(at(NOW + 1_000)),
            ..only(&[])
        },
    );
    let narrowed = attenuate(&plain, &only(&["fs.read.*"]), [3; 32]).unwrap();
    let with = |clause: &str| {
        let checks = Check::where_clause(clause).unwrap();
        sealed(&mint(&Terms {
            checks,
            ..terms(&["fs.*"])
        }))
    };
    let mut cut = container(&sealed(&narrowed));
    cut.blocks.clear();
    let join = "check if arg($a, $b), arg($c, $d), arg($e, $f), 1 == 2;";
    let times: Vec<_> = [ISSUED - 1, NOW, EXPIRES - 1, EXPIRES]
        .map(|t| ("fs.read", t, NONE))
        .into();
    let reach: Vec<_> = [
        "fs.read",
        "fs.read.x",
        "fs",
        "fsx.read",
        "net.get",
        "net.get.x",
        "fs.*",
        "*",
    ]
    .map(|required| (required, NOW, NONE))
    .into();
    let json = |texts: &'static [&'static str]| -> Vec<_> {
        texts
            .iter()
            .map(|text| ("fs.read", NOW, Arguments::Json(text)))
            .collect()
    };
    let root_only = mint(&terms(&["*"]));
    vec![
        case("a grant: what it covers", &sealed(&plain), &reach),
        case("a grant: when it holds", &sealed(&plain), &times),
        case(
            "star reaches no reserved segment",
            &sealed(&root_only),
            &[
                "a.b",
                "admin.x",
                "broker.x",
                "peer.globex.a",
                "event.emit.a",
                "enrol.a",
                "mcp.a",
            ]
            .map(|r| (r, NOW, NONE)),
        ),
        case(
            "a grant with every statement",
            &sealed(&mint(&Terms {
                calls: Some(7),
                sandbox: Some("wasm".into()),
                not_before: Some(at(NOW)),
                ..terms(&["fs.*"])
            })),
            &[("fs.read", NOW - 1_000, NONE), ("fs.read", NOW, NONE)],
        ),
        case(
            "an enrolment token",
            &enrolment(
                &key(ROOT),
                &org(),
                &build_agents(),
                at(ISSUED),
                at(EXPIRES),
                [2; 32],
            )
            .unwrap(),
            &[],
        ),
        case(
            "an mcp bearer token",
            &bearer(&key(ROOT), &org(), &mcp_terms(), [2; 32]).unwrap(),
            &[("fs.read", NOW, NONE)],
        ),
        case("narrowed to a prefix", &sealed(&narrowed), &reach),
        case("delegated, with a budget", &sealed(&alice), &reach),
        case(
            "delegated twice, the second for a second",
            &sealed(&bob),
            &[
                ("fs.read", NOW, NONE),
                ("fs.read", NOW + 1_000, NONE),
                ("net.get", NOW, NONE),
            ],
        ),
        case(
            "path under a directory",
            &with("path under /srv/reports"),
            &[
                json(&[
                    "{\"path\":\"/srv/reports/q3\"}",
                    "{\"path\":\"/srv/reports\"}",
                    "{\"path\":\"/srv/reports2\"}",
                    "{\"path\":\"/srv/reports/../x\"}",
                    "{\"path\":\"/srv//reports\"}",
                    "{\"path\":\"srv/reports/x\"}",
                    "{\"path\":[\"/srv/reports/a\",\"/srv/reports/b\"]}",
                    "{\"path\":[\"/srv/reports/a\",\"/x\"]}",
                    "{\"path\":7}",
                    "{}",
                    "{\"path\":\"/srv/reports/a\",\"path\":\"/x\"}",
                ]),
                vec![("fs.read", NOW, Arguments::Sealed)],
            ]
            .concat(),
        ),
        case(
            "a number at most",
            &with("size <= 100"),
            &json(&[
                "{\"size\":100}",
                "{\"size\":100.0}",
                "{\"size\":1e2}",
                "{\"size\":101}",
                "{\"size\":99.5}",
                "{\"size\":\"9\"}",
                "{}",
            ]),
        ),
        case(
            "a value forbidden",
            &with("reject if arg(\"/mode\", \"w\")"),
            &json(&[
                "{\"mode\":\"r\"}",
                "{\"mode\":\"w\"}",
                "{}",
                "{\"mode\":null}",
            ]),
        ),
        case(
            "trust at least",
            &with("check if trust($t), $t >= 50"),
            &[("fs.read", NOW, NONE)],
        ),
        case("refused: not sealed", &plain, &[]),
        case(
            "refused: cut after sealing",
            &prost::Message::encode_to_vec(&cut),
            &[],
        ),
        case(
            "refused: another root's",
            &sealed(
                &proto_spec::capability::issue::grant(&key(BOB), &org(), &terms(&["*"]), [2; 32])
                    .unwrap(),
            ),
            &[],
        ),
        case(
            "refused: delegated by somebody who does not hold it",
            &sealed_by_hand(&third_party(&plain, ALICE, &holder_fact(BOB))),
            &[],
        ),
        case(
            "refused: delegated back to a key of the chain",
            &sealed_by_hand(&third_party(&alice, ALICE, &holder_fact(HOLDER))),
            &[],
        ),
        case(
            "refused: a delegation to two",
            &sealed_by_hand(&third_party(
                &plain,
                HOLDER,
                &format!("{} {}", holder_fact(ALICE), holder_fact(BOB)),
            )),
            &[],
        ),
        case(
            "refused: a delegation that grants",
            &sealed_by_hand(&third_party(
                &plain,
                HOLDER,
                &format!("{} capability(\"*\");", holder_fact(ALICE)),
            )),
            &[],
        ),
        case(
            "refused: a fact that nobody signed for",
            &sealed_by_hand(&first_party(&plain, "capability(\"*\");")),
            &[],
        ),
        case(
            "refused: a rule",
            &sealed_by_hand(&first_party(&plain, "capability($c) <- covers($c);")),
            &[],
        ),
        case(
            "refused: a scope",
            &sealed_by_hand(&first_party(
                &plain,
                "check if covers(\"fs.*\") trusting authority;",
            )),
            &[],
        ),
        case(
            "refused: a join",
            &sealed_by_hand(&first_party(&plain, join)),
            &[],
        ),
        case(
            "refused: a regular expression",
            &sealed_by_hand(&first_party(
                &plain,
                "check if tool($t), $t.matches(\"a\");",
            )),
            &[],
        ),
        case(
            "refused: a closure with a parameter",
            &sealed_by_hand(&first_party(
                &plain,
                "check if tool($t), [1].any($x -> $x == 1);",
            )),
            &[],
        ),
        case(
            "refused: two kinds",
            &minted(&format!(
                "{BASE} kind(\"grant\"); kind(\"peer\"); agent(\"a@acme\"); {} capability(\"a\");",
                holder_fact(HOLDER)
            )),
            &[],
        ),
        case(
            "refused: no end",
            &minted(&format!(
                "org(\"acme\"); issued(2025-06-15T15:06:40Z); kind(\"grant\"); agent(\"a@acme\"); {} capability(\"a\");",
                holder_fact(HOLDER)
            )),
            &[],
        ),
    ]
}

fn clause_cases() -> Vec<ClauseCase> {
    let clauses = [
        "path under /srv/reports",
        "path under /srv/reports/",
        "/a~1b under /",
        "mode == r",
        "mode == \"a b\"",
        "mode != w",
        "size <= 100",
        "options.depth < 3",
        "url starts with https://a/",
        "name ends with .csv",
        "name contains \"a \\\"b\\\"\"",
        "mode in r, \"w\", 3, true",
        "reject if proof(\"bearer\")",
        "path under srv",
        "path under /srv/../etc",
        "size < \"100\"",
        "mode in",
        "mode starts with \"\"",
        "check if arg(\"mode\", \"r\")",
        "mode ~ r",
    ];
    let each = clauses.map(|clause| ClauseCase {
        clause: clause.into(),
        checks: Check::where_clause(clause)
            .ok()
            .map(|c| c.iter().map(ToString::to_string).collect()),
    });
    each.into()
}

fn vectors() -> Vectors {
    let seeds = [
        ("root", ROOT),
        ("holder", HOLDER),
        ("alice", ALICE),
        ("bob", BOB),
        ("authority block's next key", [2; 32]),
    ];
    Vectors {
        about: [
            "Tokens of the FEM protocol, as SPEC.md says in Tokens, Holder chain, Token gate and Argument constraints.",
            "seeds: Ed25519 seeds in hexadecimal. The next key after a delegation is the SHA-256 of the delegator's seed and the delegate's; every other next key is a seed of equal bytes.",
            "tokens: open is the verdict of a verifier that trusts root; questions are put to tokens that open. arguments is the JSON text of the call's arguments, null when they are sealed.",
            "clauses: what --where compiles to; null when it is an error.",
        ].map(Into::into).into(),
        seeds: seeds.iter().map(|(name, seed)| ((*name).to_owned(), hex(seed))).collect(),
        root: key(ROOT).public(),
        tokens: token_cases(),
        clauses: clause_cases(),
    }
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/tokens.json")
}

#[test]
fn the_vectors_are_what_this_code_makes() {
    // By way of `Value`, whose members are sorted, so that the file does not depend on a hash table.
    let made = serde_json::to_value(vectors()).unwrap();
    let made = serde_json::to_string_pretty(&made).unwrap() + "\n";
    if std::env::var_os("FEM_BLESS").is_some() {
        std::fs::write(path(), &made).unwrap();
    }
    let kept = std::fs::read_to_string(path()).unwrap_or_default();
    assert!(
        kept == made,
        "vectors/tokens.json differs: look at what FEM_BLESS=1 changes"
    );
}

#[test]
fn the_vectors_hold_for_a_reader_who_has_only_the_file() {
    let vectors: Vectors = serde_json::from_str(&std::fs::read_to_string(path()).unwrap()).unwrap();
    for case in &vectors.tokens {
        let opened =
            decode_text(&case.token).and_then(|bytes| Token::open(&bytes, &[vectors.root]));
        assert_eq!(verdict(&opened), case.open, "{}", case.name);
        let Ok(token) = opened else { continue };
        let ids: Vec<_> = token.blocks().iter().map(|block| block.id()).collect();
        assert_eq!(
            (ids, token.holders()),
            (case.revocation_ids.clone(), &case.holders[..])
        );
        for q in &case.questions {
            let required = q.required.parse().unwrap();
            let (caller, provider) = (
                q.caller.parse().unwrap(),
                q.provider.as_ref().map(|p| p.parse().unwrap()),
            );
            let answer = token.permits(&Question {
                required: &required,
                tool: q.tool.as_deref(),
                caller: Some(&caller),
                via: None,
                provider: provider.as_ref(),
                now: Timestamp::from_ms(q.now_ms),
                trust: q.trust,
                proof: if q.proof == "key" {
                    Proof::Key
                } else {
                    Proof::Bearer
                },
                arguments: q
                    .arguments
                    .as_deref()
                    .map_or(Arguments::Sealed, Arguments::Json),
            });
            assert_eq!(verdict(&answer), q.answer, "{}: {q:?}", case.name);
        }
    }
    for case in &vectors.clauses {
        let checks = Check::where_clause(&case.clause).ok();
        let checks = checks.map(|c| c.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(checks, case.checks, "{}", case.clause);
    }
}

#[test]
fn the_same_terms_and_entropy_make_the_same_token() {
    assert_eq!(mint(&terms(&["a"])), mint(&terms(&["a"])));
    assert_ne!(mint(&terms(&["a"])), mint_with(&terms(&["a"]), [3; 32]));
    let token = seal(&mint(&terms(&["a"]))).unwrap();
    assert_eq!(token, seal(&mint(&terms(&["a"]))).unwrap());
}

// ---- The Biscuit project's samples ------------------------------------------------------------------

/// A folder of test suites, which are not part of this repository.
fn suites() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/suites");
    std::env::var_os("FEM_SUITES").map_or_else(beside, PathBuf::from)
}

/// What the engine says to each sample, and what the gate says, with its reason. The gate refuses all of
/// them: none states what a token of this protocol states. What matters is that each reason is a
/// rule of SPEC.md, and that no verdict changes unseen.
fn samples_table() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/biscuit_samples.txt")
}

#[test]
fn the_biscuit_samples_get_the_verdicts_that_are_written_down() {
    let folder = suites().join("biscuit-samples");
    let Ok(samples) = std::fs::read_to_string(folder.join("samples.json")) else {
        println!("left out: there is no {}", folder.display());
        return;
    };
    let samples: serde_json::Value = serde_json::from_str(&samples).unwrap();
    let root = samples["root_public_key"].as_str().unwrap();
    let engine_root = biscuit_auth::PublicKey::from_bytes_hex(root, Algorithm::Ed25519).unwrap();
    let our_root = PublicKey::from_bytes(&engine_root.to_bytes().try_into().unwrap()).unwrap();
    let mut table = String::new();
    for sample in samples["testcases"].as_array().unwrap() {
        let file = sample["filename"].as_str().unwrap();
        let bytes = std::fs::read(folder.join(file)).unwrap();
        let gate = match Token::open_unsealed(&bytes, &[our_root]) {
            Ok(_) => "admitted".into(),
            Err(refusal) => format!("{} {refusal}", refusal.code()),
        };
        for (name, validation) in sample["validations"].as_object().unwrap() {
            let answer = engine(
                &bytes,
                engine_root,
                validation["authorizer_code"].as_str().unwrap(),
            );
            let expected = validation["result"]
                .get("Ok")
                .and_then(serde_json::Value::as_u64);
            assert_eq!(
                answer.as_ref().ok().map(|p| *p as u64),
                expected,
                "{file} {name}: {answer:?}"
            );
            let verdict = if answer.is_ok() { "allows" } else { "denies" };
            table.push_str(&format!("{file:<44} {name:<40} {verdict}  {gate}\n"));
        }
    }
    if std::env::var_os("FEM_BLESS").is_some() {
        std::fs::write(samples_table(), &table).unwrap();
    }
    assert_eq!(table, std::fs::read_to_string(samples_table()).unwrap());
}

fn engine(
    bytes: &[u8],
    root: biscuit_auth::PublicKey,
    code: &str,
) -> Result<usize, biscuit_auth::error::Token> {
    let token = Biscuit::from(bytes, root)?;
    let limits = RunLimits {
        max_time: Duration::from_secs(10),
        ..RunLimits::default()
    };
    let function = |left: Term, right: Option<Term>| match right {
        Some(right) if left == right => Ok(Term::Str("equal strings".into())),
        Some(_) => Ok(Term::Str("different strings".into())),
        None => Ok(left),
    };
    let functions = HashMap::from([("test".to_owned(), ExternFunc::new(Arc::new(function)))]);
    let authorizer = AuthorizerBuilder::new()
        .code(code)?
        .set_limits(limits)
        .set_extern_funcs(functions);
    authorizer.build(&token)?.authorize()
}

#[test]
fn keys_read_from_the_vectors_are_those_of_their_seeds() {
    let vectors: Vectors = serde_json::from_str(&std::fs::read_to_string(path()).unwrap()).unwrap();
    let seed = |name: &str| {
        let text = &vectors.seeds[name];
        let bytes = (0..32).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap());
        SigningKey::from_seed(&bytes.collect::<Vec<_>>().try_into().unwrap())
    };
    assert_eq!(seed("root").public(), vectors.root);
    assert_eq!(vectors.tokens[0].holders, [seed("holder").public()]);
}
