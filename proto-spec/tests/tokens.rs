//! What tokens promise, attack by attack. Where an attacker's token is needed that our own issuer will
//! not make, it is made with the engine's builder, or byte by byte.

#![expect(
    clippy::disallowed_methods,
    reason = "tests read files and measure; the core does neither"
)]
#![expect(clippy::expect_used, reason = "a failing test panics")]

use biscuit_auth::builder::BlockBuilder;
use biscuit_auth::format::schema;
use biscuit_auth::{Biscuit, UnverifiedBiscuit};
use prost::Message as _;
use proto_spec::capability::issue::{attenuate, bearer, delegate, enrolment, grant, seal};
use proto_spec::capability::{
    Arguments, Check, Claims, Narrowing, Question, RevocationId, Terms, Token, TokenKind,
    decode_text, encode_text, permits,
};
use proto_spec::limits::{TOKEN_BLOCKS_MAX, TOKEN_BYTES_MAX};
use proto_spec::{Code, Digest, Refusal, Timestamp};

mod fixture;
use fixture::*;

// ---- Tokens ------------------------------------------------------------------------------------

#[test]
fn a_grant_says_what_its_terms_say() {
    let mut terms = terms(&["fs.*", "net.get"]);
    terms.calls = Some(7);
    terms.sandbox = Some("wasm".into());
    terms.not_before = Some(Timestamp::from_ms(ISSUED + 5_000));
    let token = open(&sealed(&mint(&terms))).unwrap();
    assert_eq!(token.kind(), TokenKind::Grant);
    assert_eq!(token.org().as_str(), "acme");
    assert_eq!(token.agent().and_then(|s| s.agent()), Some(&researcher()));
    assert_eq!(token.holder(), Some(&key(HOLDER).public()));
    assert_eq!(token.capabilities(), patterns(&["fs.*", "net.get"]));
    assert_eq!(
        (token.issued(), token.expires()),
        (terms.issued, terms.expires)
    );
    assert_eq!(token.not_before(), terms.not_before);
    assert_eq!((token.calls(), token.sandbox()), (Some(7), Some("wasm")));
    assert!(token.is_standard() && token.is_sealed());
    assert!(
        !format!("{token:?}").contains("fs."),
        "a token's content is not logged"
    );
}

#[test]
fn only_a_root_of_the_organisation_makes_tokens() {
    let bytes = sealed(&mint(&terms(&["fs.*"])));
    let (old, new) = (key(ROOT).public(), key([9; 32]).public());
    assert!(
        Token::open(&bytes, &[new, old]).is_ok(),
        "while roots overlap"
    );
    for roots in [&[new][..], &[], &[key(HOLDER).public()]] {
        let refusal = Token::open(&bytes, roots).unwrap_err();
        assert_eq!(refusal.code(), Code::TokenInvalid);
    }
}

#[test]
fn what_a_token_says_is_read_without_a_root_and_permits_nothing() {
    let token = delegated(&mint(&terms(&["fs.*"])), HOLDER, ALICE, &only(&["fs.read"]));
    for bytes in [token.clone(), sealed(&token)] {
        let (said, opened) = (
            Claims::read(&bytes).unwrap(),
            Token::open_unsealed(&bytes, &roots()).unwrap(),
        );
        let ids = |claims: &Claims| -> Vec<_> {
            let blocks = claims.blocks().iter();
            blocks.map(|b| (b.id(), b.signer().copied())).collect()
        };
        assert_eq!(ids(&said), ids(&opened));
        assert_eq!(said.holders(), opened.holders());
        assert_eq!(said.capabilities(), opened.capabilities());
        assert_eq!(said.expires(), opened.expires());
        assert_eq!(said.is_sealed(), opened.is_sealed());
        assert!(!format!("{said:?}").contains("fs."));
    }
    // Anybody can write this: it is read, and is no token.
    let mut forged = container(&sealed(&token));
    forged.authority.signature[0] ^= 1;
    let forged = forged.encode_to_vec();
    assert!(Claims::read(&forged).is_ok());
    assert_eq!(code(&forged), Code::TokenInvalid);
    // The gate and the chain of holders come before any signature.
    assert_eq!(
        Claims::read(&forged[1..]).unwrap_err().code(),
        Code::TokenMalformed
    );
    let stolen = third_party(&token, BOB, &holder_fact([40; 32]));
    assert_eq!(Claims::read(&stolen).unwrap_err().code(), Code::NotHolder);
}

#[test]
fn a_token_holds_from_its_beginning_to_just_before_its_end() {
    let mut terms = terms(&["fs.*"]);
    terms.not_before = Some(Timestamp::from_ms(ISSUED + 10_000));
    let standard = open(&sealed(&mint(&terms))).unwrap();
    terms.checks = vec!["check if true".parse().unwrap()];
    let by_engine = open(&sealed(&mint(&terms))).unwrap();
    assert!(!by_engine.is_standard());
    for token in [standard, by_engine] {
        for (ms, code) in [
            (ISSUED + 9_999, Some(Code::TokenExpired)),
            (ISSUED + 10_000, None),
            (EXPIRES - 1, None),
            (EXPIRES, Some(Code::TokenExpired)),
        ] {
            let now = Timestamp::from_ms(ms);
            let asked = "fs.read".parse().unwrap();
            let answer = token.permits(&Question {
                now,
                ..question(&asked)
            });
            assert_eq!(answer.err().map(|r| r.code()), code, "{ms}");
        }
    }
}

#[test]
fn each_kind_of_token_states_exactly_its_facts() {
    let holder = format!("hex:{}", hex(key(HOLDER).public().as_bytes()));
    let end = "check if time($t), $t < 2030-01-01T00:00:00Z";
    let base = format!("org(\"acme\"); issued(2025-01-01T00:00:00Z); {end};");
    let grant = format!("{base} kind(\"grant\"); agent(\"a@acme\"); holder({holder});");
    let peer = format!("{base} kind(\"peer\"); agent(\"broker@globex\"); holder({holder});");
    let enrol = format!("{base} kind(\"enrol\"); name(\"build-*\"); uses(3);");
    let mcp = format!("{base} kind(\"mcp\"); agent(\"a@acme\"); aud(\"https://acme/mcp\");");
    for good in [
        format!("{grant} capability(\"fs.*\");"),
        format!("{grant} capability(\"*\"); capability(\"admin.*\"); sandbox(\"wasm\"); calls(3);"),
        format!("{peer} capability(\"fs.*\"); capability(\"event.emit.x\");"),
        format!("{enrol} ceiling(\"fs.*\"); prefix(\"fs.*\");"),
        format!("{mcp} capability(\"fs.*\");"),
    ] {
        assert!(
            open(&minted(&good)).is_ok(),
            "{good}: {:?}",
            open(&minted(&good))
        );
    }
    let weak = format!("hex:01{}", "00".repeat(31));
    for bad in [
        grant.clone(),
        format!("{base} agent(\"a@acme\"); holder({holder}); capability(\"a\");"),
        format!("{grant} kind(\"peer\"); capability(\"a\");"),
        format!("{grant} org(\"globex\"); capability(\"a\");"),
        format!("{grant} capability(\"file*\");"),
        format!("{grant} capability(\"a\", \"b\");"),
        format!("{grant} capability(3);"),
        format!(
            "{grant} capability(\"a\"); holder(hex:{});",
            hex(key(ROOT).public().as_bytes())
        ),
        format!("{grant} capability(\"a\"); aud(\"x\");"),
        format!("{grant} capability(\"a\"); right(\"a\");"),
        format!("{grant} capability(\"a\"); covers(\"b\");"),
        format!("{grant} capability(\"a\"); capability(\"b\") <- org($o);"),
        format!("{grant} capability(\"a\"); calls(0);"),
        format!("{grant} capability(\"a\"); calls(4294967296);"),
        format!("{grant} capability(\"a\"); sandbox(\"none\");"),
        format!(
            "{base} kind(\"grant\"); agent(\"a@globex\"); holder({holder}); capability(\"a\");"
        ),
        format!("{base} kind(\"grant\"); agent(\"a@acme\"); holder({weak}); capability(\"a\");"),
        format!("{base} kind(\"grant\"); agent(\"a@acme\"); holder(hex:00); capability(\"a\");"),
        format!("{base} kind(\"root\"); agent(\"a@acme\"); holder({holder}); capability(\"a\");"),
        format!("{grant} capability(\"a\");").replace(end, "check if true"),
        format!("{grant} capability(\"a\");")
            .replace(end, "check if time($t), $t <= 2030-01-01T00:00:00Z"),
        format!("{peer} capability(\"fs.*\");").replace("globex", "acme"),
        format!("{peer} capability(\"admin.x\");"),
        format!("{peer} capability(\"fs.*\"); calls(3);"),
        format!("{enrol} ceiling(\"broker.*\");"),
        format!("{enrol} ceiling(\"fs.*\"); prefix(\"event.*\");"),
        format!("{enrol} ceiling(\"fs.*\"); prefix(\"fs.\");"),
        format!("{enrol} ceiling(\"fs.*\"); holder({holder});"),
        format!("{enrol} ceiling(\"fs.*\"); capability(\"fs.*\");"),
        format!("{mcp} capability(\"fs.*\"); holder({holder});"),
    ] {
        let refusal = open(&minted(&bad)).expect_err(&bad);
        assert_eq!(refusal.code(), Code::TokenMalformed, "{bad}: {refusal}");
    }
}

#[test]
fn what_is_presented_is_sealed() {
    let token = mint(&terms(&["fs.*"]));
    assert_eq!(open(&token).unwrap_err(), Refusal::TokenUnsealed);
    assert!(Token::open_unsealed(&token, &roots()).is_ok());
    assert!(open(&sealed(&token)).is_ok());
    assert!(
        seal(&sealed(&token)).is_err(),
        "and nothing can be appended"
    );
    assert!(attenuate(&sealed(&token), &Narrowing::default(), [3; 32]).is_err());
}

#[test]
fn a_sealed_token_cannot_be_cut() {
    let parent = mint(&terms(&["fs.*"]));
    let child = attenuate(&parent, &only(&["fs.read"]), [3; 32]).unwrap();
    let mut cut = container(&sealed(&child));
    cut.blocks.pop();
    assert_eq!(code(&cut.encode_to_vec()), Code::TokenInvalid);
    // With the seal of the parent, or the last block's signature, in place of the child's.
    cut.proof = container(&sealed(&parent)).proof;
    assert!(
        open(&cut.encode_to_vec()).is_ok(),
        "the parent itself, as its holder sealed it"
    );
    let mut longer = container(&sealed(&child));
    longer.proof = container(&sealed(&parent)).proof;
    assert_eq!(code(&longer.encode_to_vec()), Code::TokenInvalid);
}

#[test]
fn a_delegation_cut_out_and_appended_anew_keeps_its_revocation_id() {
    let parent = mint(&terms(&["fs.*"]));
    let child = delegated(&parent, HOLDER, ALICE, &Narrowing::default());
    let narrowed = attenuate(&child, &only(&["fs.read"]), [4; 32]).unwrap();
    let honest = open(&sealed(&narrowed)).unwrap();
    // Whoever has the parent unsealed has the secret to put the delegation after it once more.
    let block = container(&narrowed).blocks[0].clone();
    let external = block.external_signature.unwrap();
    let contents = schema::ThirdPartyBlockContents {
        payload: block.block,
        external_signature: external,
    };
    let again = UnverifiedBiscuit::from(&parent).unwrap();
    let again = again
        .append_third_party_with_keypair(&contents.encode_to_vec(), engine_key([77; 32]))
        .unwrap();
    let again = again.seal().unwrap().to_vec().unwrap();
    let forged = open(&again).unwrap();
    assert_ne!(
        container(&again).blocks[0].signature,
        container(&narrowed).blocks[0].signature
    );
    assert_eq!(forged.blocks()[1].id(), honest.blocks()[1].id());
}

#[test]
fn a_revocation_id_is_the_digest_of_the_signature_that_answers_for_the_block() {
    let token = delegated(
        &mint(&terms(&["fs.*"])),
        HOLDER,
        ALICE,
        &Narrowing::default(),
    );
    let token = attenuate(&token, &only(&["fs.read"]), [5; 32]).unwrap();
    let raw = container(&token);
    let opened = open(&sealed(&token)).unwrap();
    let ids: Vec<Digest> = opened.blocks().iter().map(|block| block.id().0).collect();
    let external = raw.blocks[0].external_signature.clone().unwrap().signature;
    let signatures = [
        &raw.authority.signature,
        &external,
        &raw.blocks[1].signature,
    ];
    assert_eq!(ids, signatures.map(|signature| Digest::of(signature)));
    let again: RevocationId = opened.blocks()[1].id().to_string().parse().unwrap();
    assert_eq!(again, opened.blocks()[1].id());
}

#[test]
fn a_block_is_revoked_by_who_held_the_token_when_it_was_made_or_before() {
    let token = delegated(
        &mint(&terms(&["fs.*"])),
        HOLDER,
        ALICE,
        &Narrowing::default(),
    );
    let token = delegated(&token, ALICE, BOB, &Narrowing::default());
    let token = attenuate(&token, &only(&["fs.read"]), [5; 32]).unwrap();
    let token = open(&sealed(&token)).unwrap();
    let (holder, alice, bob) = (key(HOLDER).public(), key(ALICE).public(), key(BOB).public());
    let by: Vec<_> = token
        .blocks()
        .iter()
        .map(|b| token.holder_of(&b.id()).unwrap())
        .collect();
    assert_eq!(
        by,
        [
            &[holder][..],
            &[holder],
            &[holder, alice],
            &[holder, alice, bob]
        ]
    );
    let other = open(&sealed(&mint(&terms(&["net.*"])))).unwrap();
    assert_eq!(other.holder_of(&token.blocks()[0].id()), None);
}

#[test]
fn bearer_tokens_are_presented_by_no_key_and_delegated_by_nobody() {
    let enrol = enrolment(
        &key(ROOT),
        &org(),
        &build_agents(),
        at(ISSUED),
        at(EXPIRES),
        [2; 32],
    )
    .unwrap();
    let mcp = bearer(&key(ROOT), &org(), &mcp_terms(), [2; 32]).unwrap();
    for bytes in [&enrol, &mcp] {
        let token = open(bytes).unwrap();
        assert!(token.holders().is_empty());
        let refusal = token.presented_by(&key(HOLDER).public()).unwrap_err();
        assert_eq!(refusal.code(), Code::NotHolder);
    }
    assert_eq!(open(&enrol).unwrap().enrolment(), Some(&build_agents()));
    assert_eq!(open(&mcp).unwrap().audience(), Some("https://acme/mcp"));
    let asked = "fs.read".parse().unwrap();
    assert!(
        open(&enrol).unwrap().permits(&question(&asked)).is_err(),
        "it grants nothing itself"
    );
    assert!(open(&mcp).unwrap().permits(&question(&asked)).is_ok());
    // Unsealed, as only the root's owner could have left it.
    let code = format!(
        "{} kind(\"mcp\"); agent(\"a@acme\"); aud(\"x\"); capability(\"fs.*\");",
        BASE
    );
    let token = third_party(&unsealed(&code), HOLDER, &holder_fact(ALICE));
    assert_eq!(code_of(&token), Code::TokenMalformed);
}

#[test]
fn the_text_of_a_token_is_bounded_before_it_is_decoded() {
    let token = sealed(&mint(&terms(&["fs.*"])));
    assert_eq!(decode_text(&encode_text(&token)).unwrap(), token);
    for bad in [
        "=",
        "a b",
        "ab+/",
        "YQ==",
        "YR",
        &"A".repeat(TOKEN_BYTES_MAX * 2),
    ] {
        assert_eq!(
            decode_text(bad).unwrap_err().code(),
            Code::TokenMalformed,
            "{bad:.9}"
        );
    }
}

#[test]
fn a_peers_token_is_not_presented_at_an_agents_door() {
    let holder = holder_fact(HOLDER);
    let code =
        format!("{BASE} kind(\"peer\"); agent(\"broker@globex\"); {holder} capability(\"fs.*\");");
    let token = open(&minted(&code)).unwrap();
    let refusal = token.presented_by(&key(HOLDER).public()).unwrap_err();
    assert_eq!(
        (token.kind(), refusal.code()),
        (TokenKind::Peer, Code::NotHolder)
    );
}

// ---- Capabilities and conditions ----------------------------------------------------------------

#[test]
fn a_prefix_is_whole_segments() {
    for (held, asked, permitted) in [
        ("file.*", "file.read", true),
        ("file.*", "file.read.logs", true),
        ("file.*", "file", false),
        ("file.*", "filesystem.read", false),
        ("file.read", "file.read.logs", false),
        ("*", "file.read", true),
        ("*", "admin.token.revoke", false),
        ("*", "broker.x", false),
        ("*", "peer.globex.fs.read", false),
        ("*", "event.emit.x", false),
        ("*", "enrol.x", false),
        ("*", "mcp.x", false),
        ("event.*", "event.emit.x", true),
    ] {
        for checks in [vec![], vec!["check if true".parse().unwrap()]] {
            let token = open(&sealed(&mint(&Terms {
                checks,
                ..terms(&[held])
            })))
            .unwrap();
            assert_eq!(asks(&token, asked).is_ok(), permitted, "{held} {asked}");
        }
        assert_eq!(
            record(&[held], &[], asked).is_ok(),
            permitted,
            "on record: {held} {asked}"
        );
    }
}

#[test]
fn narrowing_only_takes_away() {
    let token = mint(&terms(&["fs.*", "net.get"]));
    let narrower = attenuate(&token, &only(&["fs.read.*", "net.get"]), [3; 32]).unwrap();
    let narrower = attenuate(&narrower, &only(&["fs.*"]), [4; 32]).unwrap();
    let token = open(&sealed(&narrower)).unwrap();
    assert!(token.is_standard());
    for (asked, permitted) in [("fs.read.x", true), ("fs.write", false), ("net.get", false)] {
        assert_eq!(asks(&token, asked).is_ok(), permitted, "{asked}");
    }
    let impossible = attenuate(&mint(&terms(&["fs.*"])), &only(&["net.get"]), [3; 32]);
    assert!(
        impossible.is_err(),
        "what would leave nothing is an error when it is written"
    );
}

#[test]
fn a_narrowing_that_no_call_could_use_is_an_error_that_says_what_to_do() {
    let mut terms = terms(&["fs.*", "net.get"]);
    terms.not_before = Some(at(ISSUED + 600_000));
    terms.checks = Check::where_clause("path under /srv/reports").unwrap();
    let token = attenuate(&mint(&terms), &only(&["fs.read.*", "fs.list"]), [3; 32]).unwrap();
    let until = |ms| Narrowing {
        expires: Some(at(ms)),
        ..Narrowing::default()
    };
    let given = |clause: &str| Narrowing {
        checks: Check::where_clause(clause).unwrap(),
        ..Narrowing::default()
    };
    for (narrowing, why) in [
        (only(&["other.*"]), "keep some of fs.read.*, fs.list"),
        (only(&["net.get"]), "net.get overlaps nothing"),
        (only(&["fs.list", "fs.write"]), "fs.write overlaps nothing"),
        (given("check if covers(\"net.get\")"), "would leave nothing"),
        (until(ISSUED), "before it is issued"),
        (until(ISSUED + 600_000), "before it begins"),
        (until(u64::MAX), "9999"),
        (given("path under /srv/other"), "besides what holds already"),
        (given("path == /etc/passwd"), "besides what holds already"),
        (
            given("check if time($t), $t < 2025-06-15T15:10:00Z"),
            "leave it out",
        ),
    ] {
        let error = attenuate(&token, &narrowing, [4; 32]).expect_err(why);
        assert!(error.to_string().contains(why), "{why}: {error}");
        let alice = key(ALICE).public();
        let error = delegate(&token, &key(HOLDER), &alice, &narrowing, [4; 32]).expect_err(why);
        assert!(error.to_string().contains(why), "{why}: {error}");
    }
    for narrowing in [
        only(&["fs.*"]),
        only(&["fs.read.x"]),
        until(ISSUED + 601_000),
        given("path under /srv/reports/q3"),
        given("depth <= 3"),
    ] {
        attenuate(&token, &narrowing, [4; 32]).unwrap();
    }
}

#[test]
fn a_delegation_that_cannot_be_made_says_why() {
    let token = delegated(&mint(&terms(&["fs.*"])), HOLDER, ALICE, &only(&[]));
    let error = |token: &[u8], from, to: [u8; 32]| {
        let next = key(to).public();
        let made = delegate(token, &key(from), &next, &only(&[]), [4; 32]);
        made.expect_err("it cannot be made").to_string()
    };
    let of = |seed| key(seed).public().fingerprint();
    let not_held = error(&token, BOB, [40; 32]);
    assert!(
        not_held.contains(&of(ALICE)) && not_held.contains(&of(BOB)),
        "{not_held}"
    );
    for held in [HOLDER, ALICE] {
        let again = error(&token, ALICE, held);
        assert!(
            again.contains(&of(held)) && again.contains("new to it"),
            "{again}"
        );
    }
    assert!(error(&sealed(&token), ALICE, BOB).contains("is sealed"));
    let mut longest = token;
    for _ in 2..TOKEN_BLOCKS_MAX {
        longest = attenuate(&longest, &only(&["fs.*"]), [5; 32]).unwrap();
    }
    assert!(error(&longest, ALICE, BOB).contains("has 8 blocks"));
    assert!(seal(&longest).is_ok());
}

#[test]
fn an_earlier_end_wins_and_a_later_one_does_not() {
    for (end, wins) in [(EXPIRES - 60_000, true), (EXPIRES + 60_000, false)] {
        let narrowing = Narrowing {
            expires: Some(at(end)),
            ..Narrowing::default()
        };
        let token = attenuate(&mint(&terms(&["fs.*"])), &narrowing, [3; 32]).unwrap();
        let token = open(&sealed(&token)).unwrap();
        assert_eq!(token.expires(), at(if wins { end } else { EXPIRES }));
    }
}

#[test]
fn conditions_ask_about_caller_provider_tool_trust_and_proof() {
    for (check, permitted) in [
        ("check if tool(\"fs.read_file\")", true),
        ("check if tool($t), $t.starts_with(\"net.\")", false),
        (
            "check if caller(\"researcher@acme\"), provider(\"fs@acme\")",
            true,
        ),
        ("check if provider(\"other@acme\")", false),
        ("check if trust($s), $s >= 50", true),
        ("check if trust($s), $s > 60", false),
        ("check if proof(\"key\")", true),
        ("check if proof(\"bearer\")", false),
        ("reject if proof(\"bearer\")", true),
        ("check if agent($a), caller($a)", true),
        ("check if holder($h), $h === hex:00", false),
        (
            "check all covers($c), $c.starts_with(\"fs\") || $c == \"*\"",
            true,
        ),
        ("check if covers(\"fs.*\") or tool(\"x\")", true),
        ("check if issued($i), time($t), $i < $t", true),
    ] {
        let checks: Vec<Check> = vec![check.parse().unwrap()];
        let token = open(&sealed(&mint(&Terms {
            checks: checks.clone(),
            ..terms(&["fs.*"])
        })))
        .unwrap();
        assert_eq!(asks(&token, "fs.read").is_ok(), permitted, "{check}");
        if !check.contains("agent(") && !check.contains("issued(") && !check.contains("covers") {
            assert_eq!(
                record(&["fs.*"], &checks, "fs.read").is_ok(),
                permitted,
                "on record: {check}"
            );
        }
    }
}

#[test]
fn a_denial_is_denied_whatever_failed() {
    let checks = vec!["check if arg(\"/n\", $v), $v <= 5".parse().unwrap()];
    let token = open(&sealed(&mint(&Terms {
        checks,
        ..terms(&["fs.*"])
    })))
    .unwrap();
    for (arguments, denied) in [
        ("{\"n\":5}", false),
        ("{\"n\":6}", true),
        ("{\"n\":\"5\"}", true),
        ("{\"n\":5.5}", true),
        ("{\"n\":5.0}", false),
        ("{\"n\":null}", true),
        ("{}", true),
        ("{\"m\":[1,2]}", true),
    ] {
        let answer = with_arguments(&token, Arguments::Json(arguments));
        let expected = if denied { Err(Code::Denied) } else { Ok(()) };
        assert_eq!(answer.map_err(|r| r.code()), expected, "{arguments}");
    }
}

// ---- Conditions on arguments ----------------------------------------------------------------------

#[test]
fn a_path_constraint_holds_for_paths_that_mean_what_they_spell() {
    let token = where_token("path under /srv/reports");
    for (arguments, permitted) in [
        (r#"{"path":"/srv/reports"}"#, true),
        (r#"{"path":"/srv/reports/q3.csv"}"#, true),
        (
            r#"{"path":"/srv/reports/q3.csv","mode":"r","n":7,"deep":{"x":null}}"#,
            true,
        ),
        (r#"{"path":["/srv/reports/a","/srv/reports/b"]}"#, true),
        (r#"{"path":"\/srv\u002freports"}"#, true),
        (r#"{"path":"/srv/reports2/x"}"#, false),
        (r#"{"path":"/srv/report"}"#, false),
        (r#"{"path":"/srv"}"#, false),
        (r#"{"path":"/srv/reports/"}"#, false),
        (r#"{"path":"/srv/reports/../secret"}"#, false),
        (r#"{"path":"/srv/reports/./x"}"#, false),
        (r#"{"path":"/srv/reports//x"}"#, false),
        (r#"{"path":"//srv/reports"}"#, false),
        (r#"{"path":"srv/reports/x"}"#, false),
        (r#"{"path":"./x"}"#, false),
        (r#"{"path":"/srv/reports\\..\\x"}"#, false),
        (r#"{"path":"/srv/reports/x\u0000.png"}"#, false),
        (r#"{"path":7}"#, false),
        (r#"{"path":true}"#, false),
        (r#"{"path":null}"#, false),
        (r#"{"path":{}}"#, false),
        (r#"{"path":[]}"#, false),
        (r#"{"path":["/srv/reports/a","/etc/passwd"]}"#, false),
        (r#"{"path":["/srv/reports/a",3]}"#, false),
        (r#"{"path":["/srv/reports/a",{"b":"../c"}]}"#, false),
        (r#"{"Path":"/srv/reports/x"}"#, false),
        (r#"{"path2":"/srv/reports/x"}"#, false),
        (r#"{"":{"path":"/srv/reports/x"}}"#, false),
        (r#"{}"#, false),
    ] {
        let answer = with_arguments(&token, Arguments::Json(arguments));
        assert_eq!(answer.is_ok(), permitted, "{arguments}: {answer:?}");
        let checks = Check::where_clause("path under /srv/reports").unwrap();
        let asked = "fs.read".parse().unwrap();
        let q = Question {
            arguments: Arguments::Json(arguments),
            ..question(&asked)
        };
        let on_record = permits(&patterns(&["fs.*"]), &checks, &q);
        assert_eq!(on_record.is_ok(), permitted, "on record: {arguments}");
    }
    let root = where_token("path under /");
    assert!(with_arguments(&root, Arguments::Json(r#"{"path":"/etc/passwd"}"#)).is_ok());
    assert!(with_arguments(&root, Arguments::Json(r#"{"path":"etc/passwd"}"#)).is_err());
}

#[test]
fn a_clause_on_a_value_decides_as_it_reads() {
    for (clause, arguments, permitted) in [
        ("mode == r", r#"{"mode":"r"}"#, true),
        ("mode == r", r#"{"mode":"rw"}"#, false),
        ("mode == r", r#"{}"#, false),
        ("mode != w", r#"{"mode":"r"}"#, true),
        ("mode != w", r#"{"mode":3}"#, true),
        ("mode != w", r#"{"mode":"w"}"#, false),
        ("mode != w", r#"{}"#, false),
        ("n in 1, 2", r#"{"n":2}"#, true),
        ("n in 1, 2", r#"{"n":2.0}"#, true),
        ("n in 1, 2", r#"{"n":"2"}"#, false),
        ("o.d < 3", r#"{"o":{"d":2}}"#, true),
        ("o.d < 3", r#"{"o":{"d":3}}"#, false),
        ("u starts with https://a/", r#"{"u":"https://a/b"}"#, true),
        ("u starts with https://a/", r#"{"u":"https://ab"}"#, false),
        (
            "u starts with https://a/",
            r#"{"u":["https://a/b"]}"#,
            false,
        ),
        ("u ends with .csv", r#"{"u":"x.csv"}"#, true),
        ("u contains \"a b\"", r#"{"u":"xa bx"}"#, true),
        ("u contains \"a b\"", r#"{"u":7}"#, false),
    ] {
        let answer = with_arguments(&where_token(clause), Arguments::Json(arguments));
        assert_eq!(
            answer.is_ok(),
            permitted,
            "{clause} {arguments}: {answer:?}"
        );
    }
}

#[test]
fn arguments_that_cannot_be_looked_at_are_refused_only_where_they_matter() {
    let many = format!(
        "{{\"path\":\"/srv/x\",\"l\":[{}]}}",
        vec!["1"; 40].join(",")
    );
    let long = format!("{{\"path\":\"/srv/x\",\"text\":\"{}\"}}", "x".repeat(5_000));
    let constrained = where_token("path under /srv");
    let forbids = where_token("reject if arg(\"/text\", \"secret\")");
    let indifferent = where_token("check if tool(\"fs.read_file\")");
    let code = |token: &Token, arguments| with_arguments(token, arguments).err().map(|r| r.code());
    let uncheckable = Some(Code::ArgsUncheckable);
    assert_eq!(code(&constrained, Arguments::Sealed), uncheckable);
    assert_eq!(code(&constrained, Arguments::Json(&many)), uncheckable);
    assert_eq!(
        code(
            &constrained,
            Arguments::Json("{\"path\":\"/srv/x\",\"path\":\"/etc\"}")
        ),
        uncheckable
    );
    assert_eq!(
        code(&constrained, Arguments::Json("[\"/srv/x\"]")),
        uncheckable
    );
    assert_eq!(
        code(&constrained, Arguments::Json(&long)),
        None,
        "the long text is not its business"
    );
    assert_eq!(
        code(&forbids, Arguments::Json(&long)),
        uncheckable,
        "it would pass what it cannot see"
    );
    assert_eq!(code(&constrained, Arguments::None), Some(Code::Denied));
    assert_eq!(
        code(&constrained, Arguments::Unknown),
        None,
        "for discovery"
    );
    for arguments in [
        Arguments::Sealed,
        Arguments::Json(&many),
        Arguments::Json("x"),
        Arguments::None,
    ] {
        assert_eq!(code(&indifferent, arguments), None);
    }
}

// ---- The chain of holders --------------------------------------------------------------------------

#[test]
fn only_the_last_holder_presents_a_token() {
    let token = mint(&terms(&["fs.*"]));
    let holders = |bytes: &[u8]| {
        let token = open(&sealed(bytes)).unwrap();
        [HOLDER, ALICE, BOB].map(|seed| token.presented_by(&key(seed).public()).is_ok())
    };
    assert_eq!(holders(&token), [true, false, false]);
    let token = delegated(&token, HOLDER, ALICE, &Narrowing::default());
    assert_eq!(holders(&token), [false, true, false]);
    let token = delegated(&token, ALICE, BOB, &only(&["fs.read"]));
    assert_eq!(holders(&token), [false, false, true]);
    let opened = open(&sealed(&token)).unwrap();
    assert_eq!(
        opened.holders(),
        [HOLDER, ALICE, BOB].map(|seed| key(seed).public())
    );
    assert!(asks(&opened, "fs.read").is_ok() && asks(&opened, "fs.write").is_err());
}

#[test]
fn a_budget_hangs_on_the_block_that_states_it() {
    let token = mint(&Terms {
        calls: Some(9),
        ..terms(&["fs.*"])
    });
    let five = Narrowing {
        calls: Some(5),
        ..Narrowing::default()
    };
    let token = open(&sealed(&delegated(&token, HOLDER, ALICE, &five))).unwrap();
    let ids = [token.blocks()[0].id(), token.blocks()[1].id()];
    assert_eq!(
        token.budgets().collect::<Vec<_>>(),
        [(ids[0], 9), (ids[1], 5)]
    );
    assert!(
        attenuate(&mint(&terms(&["a"])), &five, [3; 32]).is_err(),
        "only a delegation has one"
    );
}

#[test]
fn a_delegation_is_signed_by_the_holder_before_it() {
    let token = mint(&terms(&["fs.*"]));
    assert!(
        delegate(
            &token,
            &key(ALICE),
            &key(BOB).public(),
            &Narrowing::default(),
            [3; 32]
        )
        .is_err()
    );
    // Made with the engine, which signs for anyone.
    let stolen = third_party(&token, ALICE, &holder_fact(ALICE));
    assert_eq!(code_of(&stolen), Code::NotHolder);
    let to_alice = delegated(&token, HOLDER, ALICE, &Narrowing::default());
    let behind_her_back = third_party(&to_alice, HOLDER, &holder_fact(BOB));
    assert_eq!(code_of(&behind_her_back), Code::NotHolder);
}

#[test]
fn no_key_occurs_twice_in_a_chain() {
    let token = mint(&terms(&["fs.*"]));
    let back = delegated(&token, HOLDER, ALICE, &Narrowing::default());
    assert!(
        delegate(
            &back,
            &key(ALICE),
            &key(HOLDER).public(),
            &Narrowing::default(),
            [3; 32]
        )
        .is_err()
    );
    let back = third_party(&back, ALICE, &holder_fact(HOLDER));
    assert_eq!(code_of(&back), Code::NotHolder);
    assert_eq!(
        code_of(&third_party(&token, HOLDER, &holder_fact(HOLDER))),
        Code::NotHolder
    );
}

#[test]
fn a_delegation_states_one_holder_and_nothing_that_grants() {
    let token = mint(&terms(&["fs.*"]));
    let alice = holder_fact(ALICE);
    assert!(open(&sealed(&third_party(&token, HOLDER, &alice))).is_ok());
    for code in [
        "check if true;".to_owned(),
        format!("{alice} {}", holder_fact(BOB)),
        format!("{alice} calls(3); calls(4);"),
        format!("{alice} capability(\"*\");"),
        format!("{alice} covers(\"*\");"),
        format!("{alice} org(\"acme\");"),
        format!("{alice} agent(\"x@acme\");"),
        format!("{alice} capability($c) <- covers($c);"),
        "holder(hex:00);".to_owned(),
        "holder(\"alice\");".to_owned(),
        format!("holder(hex:{});", "00".repeat(32)),
        format!("{alice} check if covers(\"fs.*\") trusting previous;"),
    ] {
        let refused = open(&sealed_by_hand(&third_party(&token, HOLDER, &code)));
        assert_eq!(
            refused.expect_err(&code).code(),
            Code::TokenMalformed,
            "{code}"
        );
    }
}

#[test]
fn a_block_that_nobody_signed_for_carries_only_checks() {
    let token = mint(&terms(&["fs.*"]));
    for code in [
        holder_fact(ALICE),
        "capability(\"*\");".into(),
        "calls(3);".into(),
        "covers(\"fs.*\");".into(),
        "arg(\"/path\", \"/srv\");".into(),
        "capability($c) <- covers($c);".into(),
        "check if covers(\"fs.*\") trusting authority;".into(),
    ] {
        let longer = first_party(&token, &code);
        assert_eq!(code_of(&longer), Code::TokenMalformed, "{code}");
    }
}

#[test]
fn what_one_block_states_never_answers_for_another() {
    // A delegate's own facts are seen by the delegate's own checks, and by no other.
    let token = mint(&Terms {
        checks: vec!["check if calls($n), $n == 3".parse().unwrap()],
        ..terms(&["fs.*"])
    });
    let child = third_party(&token, HOLDER, &format!("{} calls(3);", holder_fact(ALICE)));
    assert!(asks(&open(&sealed(&child)).unwrap(), "fs.read").is_err());
    // The same delegation spliced after another parent does not verify.
    let (one, two) = (mint(&terms(&["fs.*"])), mint_with(&terms(&["*"]), [8; 32]));
    let narrow = delegated(&one, HOLDER, ALICE, &only(&["fs.read"]));
    let mut spliced = container(&two);
    spliced.blocks = container(&narrow).blocks;
    spliced.proof = container(&narrow).proof;
    let spliced = spliced.encode_to_vec();
    assert_eq!(
        Token::open_unsealed(&spliced, &roots()).unwrap_err().code(),
        Code::TokenInvalid
    );
}

#[test]
fn a_third_partys_strings_are_its_own() {
    // Both tables begin at the same number; some of these are in every table already.
    let words = [
        "read", "admin", "path", "time", "query", "fs", "grant", "holder",
    ];
    let held: Vec<String> = words.iter().map(|w| format!("x.{w}")).collect();
    let held: Vec<&str> = held
        .iter()
        .map(String::as_str)
        .chain(["read", "path.time"])
        .collect();
    let token = mint(&terms(&held));
    let code = format!(
        "{} check if covers(\"read\") or covers(\"x.holder\") or tool(\"grant\");",
        holder_fact(ALICE)
    );
    let token = open(&sealed(&third_party(&token, HOLDER, &code))).unwrap();
    for (asked, permitted) in [
        ("read", true),
        ("x.holder", true),
        ("x.read", false),
        ("path.time", false),
    ] {
        assert_eq!(asks(&token, asked).is_ok(), permitted, "{asked}");
    }
    assert_eq!(
        token.blocks()[1].checks()[0].to_string(),
        "check if covers(\"read\") or covers(\"x.holder\") or tool(\"grant\")"
    );
    assert_eq!(token.holder(), Some(&key(ALICE).public()));
}

#[test]
fn every_string_has_one_place_in_the_tables() {
    let token = mint(&terms(&["fs.*"]));
    let tampered = |change: fn(&mut schema::Block)| {
        let engine = Biscuit::from(&token, engine_key(ROOT).public()).unwrap();
        let longer = engine
            .append_with_keypair(
                &engine_key([6; 32]),
                BlockBuilder::new().code("check if tool(\"zz\")").unwrap(),
            )
            .unwrap();
        let raw = container(&longer.to_vec().unwrap());
        let mut block = schema::Block::decode(raw.blocks[0].block.as_slice()).unwrap();
        change(&mut block);
        raw_append(&token, &block.encode_to_vec())
    };
    assert!(open(&sealed_by_hand(&tampered(|_| {}))).is_ok());
    for change in [
        (|b: &mut schema::Block| b.symbols.push("read".into())) as fn(&mut schema::Block),
        |b| b.symbols.push("zz".into()),
        |b| b.symbols.push("grant".into()),
        |b| b.symbols.clear(),
        |b| b.symbols.push("x".repeat(2_000)),
        |b| b.symbols.extend((0..300).map(|i| format!("s{i}"))),
        |b| b.context = Some("note".into()),
        |b| b.version = Some(7),
        |b| b.version = Some(2),
        |b| b.version = None,
        |b| {
            b.public_keys.push(schema::PublicKey {
                algorithm: 0,
                key: vec![1; 32],
            });
        },
        |b| {
            b.scope.push(schema::Scope {
                content: Some(schema::scope::Content::ScopeType(1)),
            });
        },
        |b| b.checks[0].queries.clear(),
        |b| b.checks[0].kind = Some(3),
        |b| b.checks[0].queries[0].body.clear(),
        |b| b.checks[0].queries[0].head = b.checks[0].queries[0].body[0].clone(),
        |b| b.checks[0].queries[0].body[0].terms[0].content = None,
        |b| b.checks[0].queries[0].body[0].name = 9_999,
    ] {
        assert_eq!(code_of(&tampered(change)), Code::TokenMalformed);
    }
}

// ---- The gate ----------------------------------------------------------------------------------------

/// Refused before any signature is looked at: the same token with its root's signature ruined is
/// refused for the same reason.
fn gate_refuses(token: &[u8], code: Code) {
    let sealed = sealed_by_hand(token);
    let mut ruined = container(&sealed);
    ruined.authority.signature = vec![0; 64];
    for bytes in [sealed, ruined.encode_to_vec()] {
        let before = std::time::Instant::now();
        let refusal = open(&bytes).expect_err("the gate refuses it");
        assert_eq!(refusal.code(), code, "{refusal}");
        assert!(before.elapsed().as_millis() < 50, "{refusal}");
    }
}

#[test]
fn datalog_bombs_are_refused_before_anything_is_run() {
    let token = mint(&terms(&["fs.*"]));
    let join = |atom: &str, n: usize| {
        let atoms: Vec<_> = (0..n).map(|i| atom.replace('#', &i.to_string())).collect();
        format!("check if {}, 1 == 2;", atoms.join(", "))
    };
    // The six-way join of 60 facts that burns seconds in 674 bytes: its facts alone are refused.
    let facts: String = (0..60).map(|i| format!("f({i});")).collect();
    gate_refuses(
        &first_party(&token, &format!("{facts} {}", join("f($v#)", 6))),
        Code::TokenMalformed,
    );
    let facts: String = (0..60).map(|i| format!("f({i});")).collect();
    let mine = format!("{} {facts} {}", holder_fact(ALICE), join("f($v#)", 6));
    gate_refuses(&third_party(&token, HOLDER, &mine), Code::TokenMalformed);
    // Over the facts that the authoriser gives.
    gate_refuses(
        &first_party(&token, &join("arg($p#, $v#)", 2)),
        Code::TokenTooCostly,
    );
    gate_refuses(
        &first_party(&token, &join("covers($v#)", 3)),
        Code::TokenTooCostly,
    );
    gate_refuses(
        &first_party(&token, &join("path($p#, $v#)", 8)),
        Code::TokenTooCostly,
    );
    // Over the facts that the authority block holds.
    let many: Vec<String> = (0..64).map(|i| format!("c{i}")).collect();
    let many = mint(&terms(&many.iter().map(String::as_str).collect::<Vec<_>>()));
    gate_refuses(
        &first_party(&many, &join("capability($v#)", 2)),
        Code::TokenTooCostly,
    );
    // Nothing but checks, many of them.
    let checks: String = (0..40)
        .map(|i| format!("check if arg($p, $v), $v != {i};"))
        .collect();
    gate_refuses(&first_party(&token, &checks), Code::TokenTooCostly);
    // Spread over blocks.
    let mut longer = token;
    for n in 0..6 {
        let checks: String = (0..5)
            .map(|i| format!("check if arg($p, $v), $v != {};", n * 10 + i))
            .collect();
        longer = first_party(&longer, &checks);
    }
    gate_refuses(&longer, Code::TokenTooCostly);
}

#[test]
fn the_language_of_checks_has_nothing_that_runs_long() {
    let token = mint(&terms(&["fs.*"]));
    let deep = format!(
        "check if tool($t), {}$t == \"a\"{};",
        "($t != \"b\" && ".repeat(7),
        ")".repeat(7)
    );
    for code in [
        "check if tool($t), $t.matches(\"(a+)+$\");",
        "check if tool($t), [1, 2].any($x -> $x == 1);",
        "check if tool($t), {\"a\", \"b\"}.all($x -> $x == $t);",
        "check if tool($t), {\"a\", \"b\"}.contains($t);",
        "check if tool($t), $t.length() < 5;",
        "check if tool($t), $t.type() == \"string\";",
        "check if tool($t), $t + $t == \"aa\";",
        "check if trust($t), $t * 2 > 5;",
        "check if trust($t), $t | 2 == 5;",
        "check if tool($t), $t.extern::f();",
        "check if (true === 12).try_or(true);",
        "check if tool($t), null == $t;",
        "check if authority(\"x\");",
        "rule($t) <- tool($t);",
        "reject if tool(\"a\") or tool(\"b\");",
        &deep,
    ] {
        gate_refuses(&first_party(&token, code), Code::TokenMalformed);
    }
    let operators = |n: usize| {
        let more = " || $t == \"a\"".repeat(n / 2);
        format!("check if tool($t), $t != \"b\"{more};")
    };
    assert!(open(&sealed_by_hand(&first_party(&token, &operators(62)))).is_ok());
    gate_refuses(&first_party(&token, &operators(64)), Code::TokenMalformed);
    let atoms = |n: usize| format!("check if {};", vec!["tool($t)"; n].join(", "));
    assert!(open(&sealed_by_hand(&first_party(&token, &atoms(8)))).is_ok());
    gate_refuses(&first_party(&token, &atoms(9)), Code::TokenMalformed);
}

#[test]
fn closures_nested_deeper_than_a_decoder_can_go_are_refused_and_not_followed() {
    for depth in [7, 40, 500] {
        let mut op = schema::Op {
            content: Some(schema::op::Content::Value(schema::Term {
                content: Some(schema::term::Content::Bool(true)),
            })),
        };
        for _ in 0..depth {
            let closure = schema::OpClosure {
                params: Vec::new(),
                ops: vec![op],
            };
            op = schema::Op {
                content: Some(schema::op::Content::Closure(closure)),
            };
        }
        let query = schema::Rule {
            head: schema::Predicate {
                name: 27,
                terms: Vec::new(),
            },
            body: Vec::new(),
            expressions: vec![schema::Expression { ops: vec![op] }],
            scope: Vec::new(),
        };
        let block = schema::Block {
            version: Some(6),
            checks: vec![schema::Check {
                queries: vec![query],
                kind: None,
            }],
            ..schema::Block::default()
        };
        let longer = raw_append(&mint(&terms(&["fs.*"])), &block.encode_to_vec());
        assert_eq!(code_of(&longer), Code::TokenMalformed, "{depth}");
    }
}

#[test]
fn a_failing_check_cannot_be_made_long_to_print() {
    let word = "x".repeat(1_000);
    let query = vec![format!("$t == \"{word}\""); 20].join(" || ");
    gate_refuses(
        &first_party(
            &mint(&terms(&["fs.*"])),
            &format!("check if tool($t), {query};"),
        ),
        Code::TokenMalformed,
    );
}

#[test]
fn a_token_has_at_most_eight_blocks_and_eight_kibibytes() {
    let mut token = mint(&terms(&["fs.*"]));
    for seed in 0..TOKEN_BLOCKS_MAX as u8 - 1 {
        token = attenuate(&token, &only(&["fs.*"]), [seed + 20; 32]).unwrap();
    }
    assert_eq!(
        open(&sealed(&token)).unwrap().blocks().len(),
        TOKEN_BLOCKS_MAX
    );
    assert!(attenuate(&token, &only(&["fs.*"]), [40; 32]).is_err());
    gate_refuses(
        &first_party(&token, "check if covers(\"fs.*\");"),
        Code::TokenMalformed,
    );
    let long: Vec<String> = (0..64)
        .map(|i| format!("{i:02}{}", "x".repeat(62)))
        .collect();
    let segments = |s: &String| format!("{s}.{s}.{s}");
    let long: Vec<String> = long.iter().map(segments).collect();
    let long: Vec<&str> = long.iter().map(String::as_str).collect();
    assert!(grant(&key(ROOT), &org(), &terms(&long[..30]), [2; 32]).is_ok());
    assert!(
        grant(&key(ROOT), &org(), &terms(&long), [2; 32]).is_err(),
        "an error when it is made"
    );
    assert_eq!(code(&vec![0; TOKEN_BYTES_MAX + 1]), Code::TokenMalformed);
}

#[test]
fn a_token_has_one_encoding_and_one_kind_of_key() {
    let good = sealed(&delegated(
        &mint(&terms(&["fs.*"])),
        HOLDER,
        ALICE,
        &Narrowing::default(),
    ));
    let trailing = [&good[..], &[0x78, 0x01]].concat();
    assert_eq!(code(&trailing), Code::TokenMalformed);
    for change in [
        (|t: &mut schema::Biscuit| t.root_key_id = Some(1)) as fn(&mut schema::Biscuit),
        |t| t.authority.version = Some(0),
        |t| t.authority.version = Some(2),
        |t| t.authority.next_key.algorithm = 1,
        |t| t.authority.next_key.key.push(0),
        |t| t.authority.signature.push(0),
        |t| t.authority.external_signature = t.blocks[0].external_signature.clone(),
        |t| t.authority.block.extend([0x78, 0x01]),
        |t| t.blocks[0].version = None,
        |t| {
            t.blocks[0]
                .external_signature
                .as_mut()
                .unwrap()
                .public_key
                .algorithm = 1;
        },
        |t| {
            t.blocks[0]
                .external_signature
                .as_mut()
                .unwrap()
                .signature
                .truncate(10);
        },
        |t| t.blocks[0].external_signature = None,
        |t| t.proof.content = None,
    ] {
        let mut token = container(&good);
        change(&mut token);
        assert_eq!(code(&token.encode_to_vec()), Code::TokenMalformed);
    }
    for garbage in [
        &b""[..],
        b"{}",
        &[0xff; 64],
        &good[1..],
        &good[..good.len() - 1],
    ] {
        assert_eq!(code(garbage), Code::TokenMalformed);
    }
}

#[test]
fn four_path_constraints_fit_into_a_token() {
    let clauses = |n: usize| {
        let each =
            (0..n).map(|i| Check::where_clause(&format!("p{i} under /srv/reports")).unwrap());
        let checks = each.flatten().collect();
        grant(
            &key(ROOT),
            &org(),
            &Terms {
                checks,
                ..terms(&["fs.*"])
            },
            [2; 32],
        )
    };
    assert!(clauses(4).is_ok());
    assert!(clauses(5).is_err());
}

/// Joined pair by pair, three alike in each of forty lists would be 3^40.
#[test]
fn a_token_with_many_lists_of_capabilities_is_narrowed_at_once() {
    let list = "check if covers(\"fs.*\") or covers(\"fs.*\") or covers(\"fs.read.*\")";
    let mut terms = terms(&["fs.*"]);
    terms.checks = vec![list.parse().unwrap(); 40];
    let token = attenuate(&mint(&terms), &only(&["fs.read.a"]), [3; 32]).unwrap();
    assert!(attenuate(&token, &only(&["fs.read.b"]), [4; 32]).is_err());
}

#[test]
fn what_we_issue_passes_our_own_gate_or_is_an_error() {
    let bad = |change: fn(&mut Terms)| {
        let mut terms = terms(&["fs.*"]);
        change(&mut terms);
        grant(&key(ROOT), &org(), &terms, [2; 32])
            .map(drop)
            .unwrap_err()
            .to_string()
    };
    for (error, why) in [
        (bad(|t| t.capabilities.clear()), "capability is missing"),
        (
            bad(|t| t.capabilities.push(t.capabilities[0].clone())),
            "stated twice",
        ),
        (bad(|t| t.expires = t.issued), "before it is issued"),
        (bad(|t| t.expires = Timestamp::from_ms(u64::MAX)), "9999"),
        (bad(|t| t.not_before = Some(t.expires)), "before it begins"),
        (bad(|t| t.calls = Some(0)), "calls"),
        (bad(|t| t.sandbox = Some("vm".into())), "sandbox"),
        (
            bad(|t| t.checks = vec!["check if covers(\"net.*\")".parse().unwrap()]),
            "would leave nothing",
        ),
        (
            bad(|t| {
                t.checks = ["n < 3", "n >= 3"]
                    .iter()
                    .flat_map(|clause| Check::where_clause(clause).unwrap())
                    .collect();
            }),
            "no call can meet both",
        ),
        (
            bad(|t| t.agent = "a@globex".parse().unwrap()),
            "names an agent",
        ),
        (
            bad(|t| {
                t.checks = (0..9)
                    .flat_map(|i| Check::where_clause(&format!("p{i} under /srv")).unwrap())
                    .collect();
            }),
            "units",
        ),
    ] {
        assert!(error.contains(why), "{error}");
    }
}
