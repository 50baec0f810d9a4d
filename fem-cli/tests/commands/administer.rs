//! What admins decide: approving, issuing, taking back, and who holds what.

use agent_sdk::Key;
use serde_json::Value;

use crate::org::{Org, fem, mode, offline};

#[test]
fn a_dry_run_says_what_revoking_or_quarantine_strikes_and_does_nothing() {
    let org = Org::new();
    org.join("ada");
    org.admin(
        0,
        "enrol issue build-* --ceiling repo.* --uses 2 --out b.enrol",
    );
    for name in ["build-1", "build-2"] {
        org.run(
            0,
            &format!(
                "agent register {name} --enrol b.enrol --context acme/join.toml --want repo.read"
            ),
        );
    }
    let would = org.admin(0, "agent revoke ada --dry-run");
    assert!(
        would.contains("Nothing was done") && would.contains("agents    1: ada"),
        "{would}"
    );
    org.run(0, "--context ada.toml tools");
    let would = org.asked("agent quarantine build-1 --dry-run");
    assert_eq!(would["struck"]["agents"], serde_json::json!(["build-1"]));
    org.run(0, "--context build-1.toml tools");
    let done = org.admin(0, "agent quarantine build-1 --reason stolen");
    assert!(
        done.contains("agents    1: build-1") && done.contains("grants    2: "),
        "{done}"
    );
    org.run(3, "--context build-1.toml tools");
    org.run(0, "--context build-2.toml tools");
    org.run(
        3,
        "agent register build-3 --enrol b.enrol --context acme/join.toml --want repo.read",
    );
    org.admin(3, "agent quarantine administrator");
}

#[test]
fn what_was_issued_up_to_a_time_is_revoked_by_pattern_and_admin_acts_stay() {
    let org = Org::new();
    org.join("ada");
    let id =
        org.asked("token issue ada --capability files.read --capability report.add")["id"].clone();
    org.admin(2, "token revoke --dry-run");
    org.admin(
        2,
        &format!("token revoke {} --under files.*", id.as_str().unwrap()),
    );
    org.admin(2, "token revoke --before soon");
    let would = org.asked("token revoke --under files.* --dry-run");
    let struck = would["would_revoke"].as_array().unwrap();
    assert!(
        struck.contains(&id) && struck.len() == 2,
        "and the admin's `*`: {would}"
    );
    let past = org.asked("token revoke --under files.* --before 1h --dry-run");
    assert_eq!(past["struck"]["tokens"], 0);
    org.admin(0, "token revoke --under files.*");
    org.admin(0, "token revoke --before 1s");
    let would = org.asked(&format!("token revoke {} --dry-run", id.as_str().unwrap()));
    assert_eq!(would["would_revoke"][0], id);
    org.admin(0, "agent list");
}

#[test]
fn a_listing_says_what_is_left_of_a_grant_from_when_it_holds_and_who_issued_it() {
    let org = Org::new();
    org.join("ada");
    org.admin(
        0,
        "token issue ada --capability files.read --calls 3 --not-before 2099-01-01T00:00:00Z --expires 2099-02-01T00:00:00Z",
    );
    org.admin(2, "token issue ada --capability files.read --calls 0");
    let listed = org.admin(0, "token list");
    for said in [
        "approval",
        "on record, 3 calls left",
        "from 2099-01-01T00:00:00Z on",
        "administrator",
    ] {
        assert!(listed.contains(said), "{said} in {listed}");
    }
}

#[test]
fn the_tree_shows_a_delegation_once_it_was_presented_and_marks_what_is_revoked() {
    let org = Org::new();
    let _files = org.serve(org.dir.path());
    org.join("ada");
    org.join("helper");
    org.admin(
        0,
        "token issue ada --capability files.* --calls 9 --out a.token",
    );
    let did = org.run(0, "--context helper.toml agent key");
    let did = did.trim();
    org.run(
        0,
        &format!("--context ada.toml token delegate a.token --to {did} --only files.read --calls 2 --out h.token"),
    );
    let before = org.admin(0, "grants tree ada");
    assert!(
        before.contains("9 calls left") && !before.contains("helper"),
        "{before}"
    );
    assert!(
        before.contains("known only when they were presented here"),
        "{before}"
    );
    let call = "--context helper.toml call files@acme files.read --arg path=/none --token h.token";
    org.wait_for_provider(call);
    org.run(7, call);
    let drawn = org.admin(0, "grants tree ada");
    assert!(
        drawn.contains("passed on to helper; only files.read;"),
        "{drawn}"
    );
    org.run(0, "--context ada.toml token revoke --token h.token");
    let drawn = org.admin(0, "grants tree");
    assert!(drawn.contains("REVOKED passed on to helper"), "{drawn}");
    assert!(org.asked("grants tree ada").as_array().unwrap().len() >= 2);
    assert_eq!(
        org.admin(0, "grants tree nobody"),
        "Nothing was issued to nobody.\n"
    );
}

#[test]
fn an_enrolment_token_is_its_owners_alone_and_good_for_one_agent_if_nothing_else_is_said() {
    let org = Org::new();
    let wrote = org.admin(
        0,
        "enrol issue build-* --ceiling repo.* --expires 1d --out b.enrol",
    );
    assert!(wrote.contains("once"), "{wrote}");
    assert_eq!(mode(&org.dir.path().join("b.enrol")), 0o600);
    org.admin(1, "enrol issue build-* --ceiling repo.* --out b.enrol");
    org.admin(
        2,
        "enrol issue build-* --ceiling repo.* --uses 0 --out c.enrol",
    );
    let unbounded = ["enrol", "issue", "build-*", "--out", "c.enrol"];
    let unbounded = offline(org.dir.path(), 2, &unbounded, "");
    assert!(unbounded.contains("--ceiling <PATTERN>"), "{unbounded}");
    let register =
        |name: &str| format!("agent register {name} --enrol b.enrol --context acme/join.toml");
    org.run(3, &register("other"));
    org.run(0, &register("build-1"));
    org.run(3, &register("build-2"));
}

#[test]
fn what_takes_two_admins_says_what_the_second_one_types() {
    let org = Org::new();
    org.join("runner");
    org.run(6, "agent register second --context acme/join.toml");
    org.admin(0, "agent approve second --full-admin");
    let org = org.reconfigured("approval", "two_admins = [\"shell.*\"]");
    let second = |exit: i32, line: &str| org.run(exit, &format!("--context second.toml {line}"));
    let told = org.admin(
        6,
        "token issue runner --capability shell.run --calls 5 --out r.token",
    );
    let order = told
        .lines()
        .find(|line| line.contains("proposal approve"))
        .unwrap();
    let order = order.trim().strip_prefix("fem-cli ").unwrap();
    assert!(order.ends_with(" --out r.token"), "{told}");
    assert!(!org.dir.path().join("r.token").exists());
    let listed = second(0, "proposal list");
    for said in [
        "administrator",
        "runner may do shell.run, handed out",
        "5 calls at most",
    ] {
        assert!(listed.contains(said), "{said} in {listed}");
    }
    org.admin(3, order);
    second(2, order.strip_suffix(" --out r.token").unwrap());
    second(0, order);
    assert_eq!(mode(&org.dir.path().join("r.token")), 0o600);
    second(4, &order.replace("r.token", "s.token"));
    let proposed = org.admin(6, "token issue runner --capability shell.run --json");
    let proposed: Value = serde_json::from_str(&proposed).unwrap();
    let id = proposed["id"].as_str().unwrap();
    second(2, &format!("proposal approve {id} --out x.token"));
    second(0, &format!("proposal deny {id}"));
    assert!(second(0, "proposal list").contains("Nothing waits"));
    org.run(6, "agent register shell --context acme/join.toml");
    org.admin(6, "agent approve shell --capability shell.*");
    let id = second(0, "proposal list --json");
    let id: Value = serde_json::from_str(&id).unwrap();
    let done = second(
        0,
        &format!("proposal approve {}", id[0]["id"].as_str().unwrap()),
    );
    assert!(done.contains("Approved shell."), "{done}");
    org.admin(6, "enrol issue sh-* --ceiling shell.* --out e.enrol");
    let id: Value = serde_json::from_str(&second(0, "proposal list --json")).unwrap();
    second(
        0,
        &format!(
            "proposal approve {} --out e.enrol",
            id[0]["id"].as_str().unwrap()
        ),
    );
    assert_eq!(mode(&org.dir.path().join("e.enrol")), 0o600);
}

#[test]
fn an_admin_with_bounds_grants_within_them() {
    let org = Org::new();
    org.join("build-1");
    org.run(6, "agent register ops --context acme/join.toml");
    org.admin(2, "agent approve ops --over build-*");
    org.admin(
        0,
        "agent approve ops --capability admin.* --may-grant repo.* --over build-*",
    );
    org.run(
        0,
        "--context ops.toml token issue build-1 --capability repo.read",
    );
    org.run(
        3,
        "--context ops.toml token issue build-1 --capability files.read",
    );
    org.run(
        3,
        "--context ops.toml token issue ops --capability repo.read",
    );
}

#[test]
fn a_root_key_is_followed_by_the_next_and_its_tokens_die_when_it_retires() {
    let org = Org::new();
    let _files = org.serve(org.dir.path());
    org.join("ada");
    org.admin(0, "token issue ada --capability files.* --out old.token");
    org.admin(4, "root activate");
    org.admin(4, "root retire");
    let told = org.admin(0, "root prepare");
    let file = told
        .split_whitespace()
        .find(|word| word.starts_with("root-"))
        .unwrap();
    let file = org
        .dir
        .path()
        .join("acme/keys")
        .join(file.trim_end_matches(','));
    assert_eq!(mode(&file), 0o600, "{told}");
    org.admin(3, "root prepare");
    org.admin(0, "root activate");
    let roots = org.asked("root list");
    assert_eq!(
        (roots[0]["state"].as_str(), roots[1]["state"].as_str()),
        (Some("active"), Some("retiring"))
    );
    org.admin(0, "token issue ada --capability files.* --out new.token");
    let call = |token: &str| {
        format!("--context ada.toml call files@acme files.read --arg path=/none --token {token}")
    };
    org.wait_for_provider(&call("old.token"));
    org.run(7, &call("old.token"));
    org.run(7, &call("new.token"));
    let old = roots[1]["key"].as_str().unwrap();
    org.admin(0, &format!("root retire {old}"));
    org.run(3, &call("old.token"));
    org.run(7, &call("new.token"));
    let org = org.reconfigured("limits", "");
    assert_eq!(org.asked("root list").as_array().unwrap().len(), 1);
}

#[test]
fn contexts_follow_the_brokers_key_until_the_old_one_is_retired() {
    let org = Org::new();
    org.join("ada");
    org.join("late");
    let at = |name: &str| org.dir.path().join(name);
    let named = |name: &str| {
        let text = std::fs::read_to_string(at(name)).unwrap();
        let line = text.lines().find(|line| line.starts_with("broker_key"));
        line.unwrap().to_owned()
    };
    let first = named("acme/admin.toml");
    org.admin(4, "broker-key activate");
    let told = org.admin(0, "broker-key prepare");
    let file = told
        .split_whitespace()
        .find(|word| word.starts_with("broker-") && word.contains(".pem"))
        .unwrap();
    let file = at("acme/keys").join(file.trim_end_matches(','));
    assert_eq!(mode(&file), 0o600, "{told}");
    org.run(0, "--context ada.toml tools");
    assert_eq!(named("ada.toml"), first, "it signs nothing yet");
    org.admin(0, "broker-key activate");
    let next = named("acme/admin.toml");
    assert_ne!(next, first, "the command that activated it follows at once");
    assert_eq!(named("ada.toml"), first);
    let doctor = org.run(0, "--context ada.toml doctor");
    assert!(
        doctor.contains("as the one in the context says"),
        "{doctor}"
    );
    let words = ["--context", "ada.toml", "tools"];
    let done = fem(org.dir.path(), &words).output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("ada.toml has it"), "{said}");
    assert_eq!(named("ada.toml"), next);
    // A new agent starts from what was handed out before.
    org.join("new");
    assert_eq!(named("new.toml"), next);
    org.admin(0, "broker-key retire");
    let keys = org.asked("broker-key list");
    assert_eq!(keys.as_array().unwrap().len(), 1);
    let done = fem(org.dir.path(), &["--context", "late.toml", "tools"])
        .output()
        .unwrap();
    let said = crate::org::told(&done);
    assert!(said.contains("get the new one from an admin"), "{said}");
    assert_eq!(
        named("late.toml"),
        first,
        "nothing is written that does not follow"
    );
    org.run(0, "--context ada.toml tools");
}

#[test]
fn an_admin_reads_the_configuration_as_it_is_written() {
    let org = Org::new();
    let shown = org.admin(0, "config show");
    for line in [
        "org = \"acme\"",
        "[limits]",
        "deadline_ms = 60000",
        "two_admins = []",
    ] {
        assert!(
            shown.lines().any(|shown| shown == line),
            "{line} in {shown}"
        );
    }
    assert_eq!(org.asked("config show")["limits"]["deadline_ms"], 60_000);
    org.join("ada");
    org.run(3, "--context ada.toml config show");
}

#[test]
fn an_agent_goes_on_under_a_new_key_wherever_the_change_was_interrupted() {
    let org = Org::new();
    org.join("ada");
    let at = |name: &str| org.dir.path().join(name);
    let original = std::fs::read(at("ada.toml")).unwrap();
    org.run(0, "--context ada.toml agent rotate-key");
    assert_eq!(mode(&at("ada.key2.pem")), 0o600);
    org.run(0, "--context ada.toml tools");
    // Stopped after the broker took the key, before the context named it.
    std::fs::write(at("ada.toml"), &original).unwrap();
    org.run(3, "--context ada.toml tools");
    org.run(0, "--context ada.toml agent rotate-key");
    org.run(0, "--context ada.toml tools");
    // Stopped after the new key was written, before the broker heard of it.
    Key::generate().unwrap().save(at("ada.key3.pem")).unwrap();
    org.run(0, "--context ada.toml agent rotate-key");
    assert!(
        std::fs::read_to_string(at("ada.toml"))
            .unwrap()
            .contains("ada.key3.pem")
    );
    org.run(0, "--context ada.toml tools");
}

#[test]
fn completions_know_the_nouns() {
    let dir = tempfile::tempdir().unwrap();
    let script = offline(dir.path(), 0, &["completions", "bash"], "");
    for noun in [
        "grants",
        "proposal",
        "root",
        "config",
        "quarantine",
        "rotate-key",
        "peer",
        "invite",
    ] {
        assert!(script.contains(noun), "{noun}");
    }
}
