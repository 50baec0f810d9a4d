//! What admins of two organisations do to become peers, and what they take back.

use serde_json::Value;

use crate::org::{Org, offline};

/// Two organisations; globex can be dialled.
struct Two {
    acme: Org,
    globex: Org,
}

impl Two {
    fn new() -> Self {
        let globex = Org::of("globex");
        let endpoints = format!("endpoints = [\"{}\"]", globex.address());
        Self {
            acme: Org::new(),
            globex: globex.reconfigured("federation", &endpoints),
        }
    }

    /// Two organisations whose admins accepted each other's file.
    fn peers() -> Self {
        let two = Self::new();
        // The one that is dialled first, or the other's first attempt would fail.
        two.accept(&two.globex, &two.acme);
        two.accept(&two.acme, &two.globex);
        two
    }

    /// `of`'s file, by its path.
    fn invite(of: &Org, more: &str) -> String {
        let path = of.dir.path().join("invitation.peer").display().to_string();
        of.admin(0, &format!("peer invite --out {path}{more}"));
        path
    }

    fn accept(&self, at: &Org, of: &Org) {
        let (file, key) = (Self::invite(of, ""), of.admin(0, "peer key"));
        at.admin(
            0,
            &format!("peer accept {file} --fingerprint {}", key.trim()),
        );
    }
}

#[test]
fn a_file_is_shown_and_becomes_a_peer_only_with_its_fingerprint() {
    let two = Two::new();
    let file = Two::invite(&two.globex, " --asks files.read --expires 2d");
    let acme = &two.acme;
    let shown = acme.admin(6, &format!("peer accept {file}"));
    for said in [
        "peer         globex",
        &format!("endpoints    {}", two.globex.address()),
        "asks for     files.read",
        "(in 47h)",
        "Nothing was done",
    ] {
        assert!(shown.contains(said), "{said} in {shown}");
    }
    assert_eq!(acme.asked("peer list"), serde_json::json!([]));
    let own = acme.admin(0, "peer key");
    acme.admin(
        4,
        &format!("peer accept {file} --fingerprint {}", own.trim()),
    );
    let key = two.globex.asked("peer key")["key"].clone();
    let accept = format!("peer accept {file} --key {}", key.as_str().unwrap());
    acme.admin(3, &format!("{accept} --endpoint 127.0.0.1:1"));
    acme.admin(2, &format!("{accept} --endpoint 127.0.0.1:1 --no-endpoint"));
    assert_eq!(acme.asked("peer list"), serde_json::json!([]));
    acme.admin(0, &format!("{accept} --no-endpoint"));
    let peer = acme.asked("peer show globex");
    assert_eq!(peer["endpoints"], serde_json::json!([]));
    acme.admin(0, &accept);
    let shown = acme.admin(0, "peer show globex");
    assert!(
        shown.contains(&format!("dialled at   {}", two.globex.address())),
        "{shown}"
    );
    acme.admin(1, &format!("peer invite --out {file}"));
    acme.admin(1, "peer accept acme/broker.toml");
    acme.admin(4, "peer show initech");
    acme.admin(4, "peer pause initech");
}

#[test]
fn an_invitation_goes_to_standard_output_and_who_compares_what_to_standard_error() {
    let org = Org::new();
    let text = org.admin(0, "peer invite --asks files.*");
    let said = proto_spec::peering::Descriptor::read(&text).unwrap();
    assert_eq!(said.body().asks.len(), 1);
    let printed = org.asked("peer invite");
    assert_eq!(printed["fingerprint"], said.body().key.fingerprint());
    org.admin(3, "peer invite --expires 2020-01-01T00:00:00Z");
}

#[test]
fn an_agent_calls_across_when_both_admins_said_yes_and_no_longer_when_one_takes_it_back() {
    let two = Two::peers();
    let (acme, globex) = (&two.acme, &two.globex);
    let _files = acme.serve(acme.dir.path());
    globex.join("ada");
    let granted = acme.admin(
        0,
        &format!(
            "peer grant globex files.read --agents files --where path·under·{} --expires 1d",
            acme.dir.path().display()
        ),
    );
    for said in [
        "with tools of files",
        "only if path under",
        "'peer.acme.files.read'",
    ] {
        assert!(granted.contains(said), "{said} in {granted}");
    }
    let call = "--context ada.toml call files@acme files.read --arg path=/none";
    globex.admin(0, "token issue ada --capability peer.acme.files.*");
    globex.wait_for_provider(call);
    globex.run(3, call);
    let listed = globex.run(0, "--context ada.toml tools");
    assert!(
        listed.contains("files@acme") && listed.contains("FROM"),
        "{listed}"
    );
    let tools = globex.json("--context ada.toml tools");
    assert_eq!(tools[0]["via"], serde_json::json!(["acme"]));
    let path = acme.dir.path().join("acme/join.toml");
    let inside = call.replace("/none", &path.display().to_string());
    assert!(globex.run(0, &inside).contains("broker_key"));
    let looked = acme.admin(0, "peer doctor globex");
    for said in [
        "link             up",
        "granted here     files.read",
        "version 1",
    ] {
        assert!(looked.contains(said), "{said} in {looked}");
    }
    let looked = globex.admin(0, "peer doctor acme");
    assert!(looked.contains("granted there    1 tools"), "{looked}");
    assert!(looked.contains("ada"), "{looked}");
    acme.admin(0, "peer pause globex");
    globex.run(5, &inside);
    let looked = acme.admin(0, "peer doctor globex");
    assert!(looked.contains("→ fem-cli peer resume globex"), "{looked}");
    acme.admin(0, "peer resume globex");
    globex.wait_for_provider(&inside);
    globex.run(0, &inside);
    let shown = acme.admin(0, "peer list");
    assert!(
        shown.contains("globex") && shown.contains("files.read"),
        "{shown}"
    );
    let id = acme.asked("peer show globex")["grants"][0]["id"].clone();
    acme.admin(0, &format!("token revoke {}", id.as_str().unwrap()));
    let after = globex.run_any(&inside);
    assert!([3, 5].contains(&after), "{after}");
    acme.admin(0, "peer remove globex");
    assert_eq!(acme.asked("peer list"), serde_json::json!([]));
}

#[test]
fn a_peer_and_its_grant_wait_for_a_second_admin_where_two_are_needed() {
    let two = Two::new();
    two.acme
        .run(6, "agent register second --context acme/join.toml");
    two.acme.admin(0, "agent approve second --full-admin");
    let acme = two
        .acme
        .reconfigured("approval", "two_admins = [\"files.*\"]");
    let file = Two::invite(&two.globex, " --asks files.read");
    let second = |exit: i32, line: &str| acme.run(exit, &format!("--context second.toml {line}"));
    let key = two.globex.admin(0, "peer key");
    let agree = |said: &str| {
        let listed = second(0, "proposal list");
        assert!(listed.contains(said), "{said} in {listed}");
        let waiting: Value = serde_json::from_str(&second(0, "proposal list --json")).unwrap();
        second(
            0,
            &format!("proposal approve {}", waiting[0]["id"].as_str().unwrap()),
        )
    };
    let accept = format!(
        "peer accept {file} --no-endpoint --fingerprint {}",
        key.trim()
    );
    acme.admin(6, &accept);
    assert!(agree("take globex with key").contains("Accepted globex"));
    acme.admin(6, "peer grant globex files.read --depth 1");
    assert!(agree("passed on through 1").contains("Take it back"));
}

#[test]
fn init_names_where_other_organisations_reach_the_broker() {
    let dir = tempfile::tempdir().unwrap();
    let init = |exit: i32, endpoint: &str| {
        offline(
            dir.path(),
            exit,
            &["init", "acme", "--endpoint", endpoint],
            "",
        )
    };
    init(2, "broker.acme.example");
    init(0, "broker.acme.example:7443");
    let written = std::fs::read_to_string(dir.path().join("acme/broker.toml")).unwrap();
    assert!(written.contains("\nendpoints = [\"broker.acme.example:7443\"]\n"));
}

#[test]
fn the_peers_doctor_says_what_to_do_about_each_thing_that_is_wrong() {
    let two = Two::new();
    two.accept(&two.acme, &two.globex);
    let looked = two.acme.admin(1, "peer doctor globex");
    for said in [
        &format!("{} answers", two.globex.address()),
        "ok    broker key",
        "fail  link",
        "→ fem-cli peer grant globex PATTERN",
    ] {
        assert!(looked.contains(said), "{said} in {looked}");
    }
    assert!(!looked.contains("granted there"), "nobody knows: {looked}");
    let Two { acme, globex } = two;
    let endpoint = globex.address();
    drop(globex);
    let looked = acme.admin(1, "peer doctor globex --json");
    let looked: Value = serde_json::from_str(&looked).unwrap();
    assert_eq!(looked[0]["health"], "fail");
    assert!(looked[0]["seen"].as_str().unwrap().starts_with(&endpoint));
    acme.admin(4, "peer doctor initech");
}
