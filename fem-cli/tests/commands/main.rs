//! The commands as people type them, against a broker of their own.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, and says where"
)]

mod administer;
mod federate;
mod messages;
mod org;

use std::time::Duration;

use agent_sdk::Key;
use proto_spec::capability::{Check, Claims, Narrowing, Terms, decode_text, encode_text, issue};
use proto_spec::limits::TOKEN_BLOCKS_MAX;
use proto_spec::{SigningKey, Timestamp};
use serde_json::Value;

use crate::org::{Org, fem, offline, told};

#[test]
fn the_demo_keeps_its_promises_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let shown = fem(dir.path(), &["demo"])
        .env("TMPDIR", dir.path())
        .output()
        .unwrap();
    let text = told(&shown);
    assert!(shown.status.success(), "{text}");
    for claim in [
        "NOT_AUTHENTIC",
        "DENIED",
        "researcher got the file: “Q3 revenue",
        "analyst got the file: “Q3 revenue",
        "the very next call of analyst",
        "expectations held",
    ] {
        assert!(text.contains(claim), "{claim} in {text}");
    }
    assert!(
        !text.contains('\x1b'),
        "no colour where there is no terminal"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_agent_is_approved_by_its_fingerprint_and_revoked_for_good() {
    let org = Org::new();
    let asked: Value = {
        let text = org.run(6, "agent register fs --context acme/join.toml --json");
        serde_json::from_str(&text).unwrap()
    };
    let fingerprint = asked["fingerprint"].as_str().unwrap();
    let wrong = "0000:0000:0000:0000:0000:0000:0000:0000";
    org.run(
        4,
        &format!("--context acme/admin.toml agent approve fs --fingerprint {wrong}"),
    );
    org.run(
        0,
        &format!("--context acme/admin.toml agent approve fs --fingerprint {fingerprint}"),
    );
    org.run(0, "agent register fs --context acme/join.toml");
    assert_eq!(org.json("--context fs.toml tools"), serde_json::json!([]));
    org.run(
        0,
        "--context acme/admin.toml doctor --config acme/broker.toml",
    );
    org.run(0, "--context acme/admin.toml agent revoke fs");
    org.run(3, "--context fs.toml tools");
}

#[test]
fn a_grant_on_record_permits_what_it_says_until_it_is_revoked() {
    let org = Org::new();
    let srv = org.dir.path().canonicalize().unwrap().join("srv");
    std::fs::create_dir_all(srv.join("reports")).unwrap();
    std::fs::write(srv.join("reports/a.txt"), "hello").unwrap();
    let _files = org.serve(&srv);
    org.join("researcher");
    org.run(0, "context add acme --from acme/admin.toml");
    org.run(0, "context use acme");
    let reports = srv.join("reports").display().to_string();
    let issue =
        format!("token issue researcher --capability files.read --where path·under·{reports}");
    let id = org.json(&issue)["id"].as_str().unwrap().to_owned();
    let read = |path: &str| {
        format!("--context researcher.toml call files@acme files.read --arg path={reports}/{path}")
    };
    org.wait_for_provider(&read("a.txt"));
    assert_eq!(org.run(0, &read("a.txt")), "hello\n");
    assert_eq!(org.json(&read("a.txt")), "hello");
    org.run(7, &read("missing.txt"));
    org.run(3, &read("../a.txt"));
    let listed = org.json("token list");
    assert!(
        listed
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one["id"] == id.as_str()),
        "{listed}"
    );
    assert!(
        org.run(0, "token list")
            .contains(&format!("path under {reports}"))
    );
    assert_eq!(
        org.run(0, "token list --to researcher --ids"),
        format!("{id}\n")
    );
    org.run(0, &format!("token revoke {id}"));
    assert_eq!(org.run(0, "token list --to researcher --ids"), "");
    org.run(3, &read("a.txt"));
}

#[test]
fn a_token_is_narrowed_offline_and_revoked_by_its_holder() {
    let org = Org::new();
    let _files = org.serve(org.dir.path());
    org.join("researcher");
    org.run(
        0,
        "--context acme/admin.toml token issue researcher --capability files.* --out r.token",
    );
    let root = "--root-key acme/keys/root.pub";
    org.run(2, "token attenuate r.token --out n.token");
    org.run(1, "token attenuate r.token --expires 9999d --out n.token");
    org.run(
        0,
        "token attenuate r.token --only files.read --expires 1h --out n.token",
    );
    org.run(1, "token attenuate r.token --only other.read --out x.token");
    assert!(
        org.run(0, &format!("token inspect n.token {root}"))
            .contains("only files.read")
    );
    org.run(
        0,
        &format!("token verify n.token {root} --capability files.read"),
    );
    org.run(
        3,
        &format!("token verify n.token {root} --capability files.delete"),
    );
    org.run(
        3,
        "token verify n.token --root-key GZspS+HyZcZfo2JEL9vOkYmRGbQaXddQZ/D7M9jmMh8=",
    );
    let call = |token: &str| {
        format!(
            "--context researcher.toml call files@acme files.read --arg path=/none --token {token}"
        )
    };
    org.wait_for_provider(&call("n.token"));
    org.run(7, &call("n.token"));
    org.run(
        3,
        "--context files.toml call files@acme files.read --arg path=/none --token n.token",
    );
    org.run(0, "--context researcher.toml token revoke --token n.token");
    org.run(3, &call("n.token"));
    org.run(7, &call("r.token"));
}

/// A token of `files.*` for the key numbered 11, passed on to the key numbered 12: as text.
fn delegated_token(issued: Timestamp) -> (String, String) {
    let key = |seed: u8| SigningKey::from_seed(&[seed; 32]);
    let terms = Terms {
        agent: "researcher@acme".parse().unwrap(),
        holder: key(11).public(),
        capabilities: vec!["files.*".parse().unwrap()],
        issued,
        not_before: Some(issued),
        expires: issued.later(Duration::from_secs(86_400)),
        checks: Check::where_clause("path under /srv").unwrap(),
        sandbox: None,
        calls: Some(9),
    };
    let org = "acme".parse().unwrap();
    let own = issue::grant(&key(1), &org, &terms, [2; 32]).unwrap();
    let narrowing = Narrowing {
        only: vec!["files.read".parse().unwrap()],
        checks: vec!["check if trust($t), $t >= 50".parse().unwrap()],
        calls: Some(5),
        ..Narrowing::default()
    };
    let theirs = issue::delegate(&own, &key(11), &key(12).public(), &narrowing, [3; 32]).unwrap();
    (encode_text(&own), encode_text(&theirs))
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap())
}

#[test]
fn a_token_is_read_without_a_context_or_a_root_key() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (_, token) = delegated_token(now());
    std::fs::write(dir.join("t.token"), format!("{token}\n")).unwrap();
    let shown = offline(dir, 0, &["token", "inspect", "t.token"], "");
    let (alice, bob) = (
        SigningKey::from_seed(&[11; 32]).public(),
        SigningKey::from_seed(&[12; 32]).public(),
    );
    for said in [
        "kind grant, of acme, issued to researcher@acme",
        &format!("signed by {} ({})", alice.did(), alice.fingerprint()),
        &format!("holder    {} ({})", bob.did(), bob.fingerprint()),
        "grants    files.*",
        "only if   path under /srv",
        "only if   only files.read",
        "only if   check if trust($t), $t >= 50",
        "calls     at most 9",
        "calls     at most 5",
        "root signature: not checked, no root key given",
        "revocation: not asked, needs a broker",
    ] {
        assert!(shown.contains(said), "{said} in {shown}");
    }
    for (words, input) in [
        (&["token", "inspect", "-"][..], token.as_str()),
        (&["token", "inspect", &token], ""),
    ] {
        assert_eq!(offline(dir, 0, words, input), shown);
    }
    let root = SigningKey::from_seed(&[1; 32]).public().to_string();
    let wrong = alice.to_string();
    let genuine = offline(
        dir,
        0,
        &["token", "inspect", "t.token", "--root-key", &root],
        "",
    );
    assert!(
        genuine.contains("root signature: every one fits"),
        "{genuine}"
    );
    let forged = offline(
        dir,
        3,
        &["token", "inspect", "t.token", "--root-key", &wrong],
        "",
    );
    assert!(forged.starts_with("NOT GENUINE"), "{forged}");
    let json = offline(dir, 0, &["token", "inspect", "t.token", "--json"], "");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["blocks"][1]["signer"]["did"], alice.did());
    assert_eq!(json["blocks"][1]["calls"], 5);
    assert_eq!(json["checks"][2]["check"], "root signature");
    assert_eq!(json["checks"][2]["made"], false);
    offline(dir, 4, &["token", "inspect", "missing.token"], "");
    offline(dir, 3, &["token", "inspect", "-"], "AAAA");
}

#[test]
fn a_delegation_that_cannot_be_made_is_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (own, theirs) = delegated_token(now());
    let sealed = encode_text(&issue::seal(&decode_text(&own).unwrap()).unwrap());
    let (old, _) = delegated_token(Timestamp::from_ms(1_700_000_000_000));
    for (name, text) in [
        ("own", &own),
        ("theirs", &theirs),
        ("sealed", &sealed),
        ("old", &old),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
    for (name, seed) in [("alice.pem", 11), ("bob.pem", 12)] {
        Key::from_seed(&[seed; 32]).save(dir.join(name)).unwrap();
    }
    let did = |seed: u8| SigningKey::from_seed(&[seed; 32]).public().did();
    let delegate = |exit: i32, token: &str, to: u8, more: &[&str]| {
        let to = did(to);
        let words = [
            &["token", "delegate", token, "--to", &to, "--out", "-"],
            more,
        ]
        .concat();
        offline(dir, exit, &words, "")
    };
    let alice: &[&str] = &["--key", "alice.pem"];
    for (told, why) in [
        (delegate(2, "own", 13, &[]), "give --key FILE"),
        (
            delegate(1, "own", 13, &["--key", "bob.pem"]),
            "only it can delegate it",
        ),
        (delegate(1, "theirs", 13, alice), "only it can delegate it"),
        (delegate(1, "own", 11, alice), "new to it"),
        (
            delegate(1, "theirs", 11, &["--key", "bob.pem"]),
            "new to it",
        ),
        (delegate(1, "sealed", 13, alice), "is sealed"),
        (delegate(1, "old", 13, alice), "has ended"),
        (
            delegate(1, "own", 13, &[alice, &["--for", "2d"]].concat()),
            "after the token's own end",
        ),
        (
            delegate(1, "own", 13, &[alice, &["--only", "net.*"]].concat()),
            "keep some of files.*",
        ),
        (
            delegate(
                1,
                "own",
                13,
                &[alice, &["--where", "path under /etc"]].concat(),
            ),
            "besides what holds already",
        ),
        (
            delegate(
                2,
                "own",
                13,
                &[alice, &["--where", "path under srv/.."]].concat(),
            ),
            "absolute path",
        ),
        (
            delegate(2, "own", 13, &[alice, &["--calls", "0"]].concat()),
            "--calls",
        ),
    ] {
        assert!(told.contains(why), "{why} in {told}");
    }
    let mut longest = decode_text(&own).unwrap();
    let narrowing = Narrowing {
        only: vec!["files.*".parse().unwrap()],
        ..Narrowing::default()
    };
    for _ in 1..TOKEN_BLOCKS_MAX {
        longest = issue::attenuate(&longest, &narrowing, [4; 32]).unwrap();
    }
    std::fs::write(dir.join("longest"), encode_text(&longest)).unwrap();
    assert!(delegate(1, "longest", 13, alice).contains("has 8 blocks"));
    let made = delegate(
        0,
        "own",
        13,
        &[alice, &["--for", "1h", "--calls", "5"]].concat(),
    );
    let said = Claims::read(&decode_text(made.trim()).unwrap()).unwrap();
    assert_eq!(said.holder().unwrap().did(), did(13));
    assert!(!said.is_sealed());
}

#[test]
fn a_delegated_token_is_used_by_its_new_holder_and_taken_back_by_the_one_before() {
    let org = Org::new();
    let _files = org.serve(org.dir.path());
    org.join("researcher");
    org.join("helper");
    org.run(
        0,
        "--context acme/admin.toml token issue researcher --capability files.* --out r.token",
    );
    let helper = org.json("--context helper.toml context show helper.toml");
    let key = Key::load(org.dir.path().join(helper["key_file"].as_str().unwrap())).unwrap();
    let did = key.public().did();
    org.run(
        0,
        &format!("--context researcher.toml token delegate r.token --to {did} --only files.read --for 1h --calls 5 --out h.token"),
    );
    let call = |who: &str, tool: &str| {
        format!("--context {who}.toml call files@acme {tool} --arg path=/none --token h.token")
    };
    org.wait_for_provider(&call("helper", "files.read"));
    org.run(7, &call("helper", "files.read"));
    org.run(3, &call("helper", "files.delete"));
    org.run(3, &call("researcher", "files.read"));
    org.run(0, "--context researcher.toml token revoke --token h.token");
    org.run(3, &call("helper", "files.read"));
}

#[test]
fn an_enrolment_token_registers_so_many_agents_at_once() {
    let org = Org::new();
    org.run(0, "--context acme/admin.toml enrol issue build-* --ceiling repo.* --uses 1 --expires 1d --out b.enrol");
    let register = |name: &str| {
        format!("agent register {name} --enrol b.enrol --context acme/join.toml --want repo.read")
    };
    org.run(0, &register("build-1"));
    org.run(3, &register("build-2"));
}
