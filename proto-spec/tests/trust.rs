//! Trust between organisations: claims, laws against a plain reading of the rules, and vectors.
//!
//! `vectors/trust.json` is made here from seeds, and read back as a stranger would, from the file alone.
//! `FEM_BLESS=1` rewrites it; without, a difference fails.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failing test panics")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use proto_spec::capability::Question;
use proto_spec::limits::{
    CLOCK_SKEW_MAX, ENVELOPE_BYTES, PICTURE_ARROWS_MAX, PICTURE_NODES_MAX, TRUST_DECISIONS_MAX,
    TRUST_INTRODUCTIONS_MAX, TRUST_PATHS_MAX, TRUST_PEERS_MAX, TRUST_STATEMENTS_MAX,
    TRUST_STATEMENTS_PER_MAKER_MAX, TRUST_VALIDITY_MAX,
};
use proto_spec::message::{Trust, TrustStatement};
use proto_spec::trust::{Decision, Heard, Level, Picture, Score, Statement, TrustGraph};
use proto_spec::{
    Code, Digest, Draft, Envelope, Kind, Org, Pattern, PublicKey, Refusal, Sealed, SigningKey,
    Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

mod fixture;
use fixture::{at, key, laws, question, where_token};

const NOW: u64 = 1_750_000_000_000;
const HOUR: u64 = 3_600_000;

fn now() -> Timestamp {
    at(NOW)
}

fn org(name: &str) -> Org {
    name.parse().unwrap()
}

fn trust(percent: u8) -> Trust {
    percent.try_into().unwrap()
}

fn says(trustee: &str, percent: u8) -> TrustStatement {
    TrustStatement {
        trustee: org(trustee),
        trust: trust(percent),
        capabilities: Vec::new(),
        seq: 1,
        expires: at(NOW + HOUR),
    }
}

fn signed(trustor: &str, said: TrustStatement) -> Statement {
    Statement::new(org(trustor), now(), said).unwrap()
}

/// The graph of `acme`, which has these peers, and these words `trustor > trustee percent`.
fn graph(peers: &str, words: &[&str]) -> TrustGraph {
    let mut graph = TrustGraph::new(org("acme"));
    for peer in peers.split_whitespace() {
        graph.add_peer(org(peer)).unwrap();
    }
    for word in words {
        say(&mut graph, word);
    }
    graph
}

fn say(graph: &mut TrustGraph, word: &str) {
    let [trustor, ">", trustee, percent] = word.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{word}");
    };
    let statement = signed(trustor, says(trustee, percent.parse().unwrap()));
    assert_eq!(graph.insert(statement, now()), Ok(Heard::Taken), "{word}");
}

fn score(graph: &TrustGraph, to: &str) -> Option<Score> {
    graph.score(&org("acme"), &org(to), None, now())
}

fn value(graph: &TrustGraph, to: &str) -> u8 {
    score(graph, to).map_or(0, |score| score.value)
}

// ---- The claims of SPEC.md.

#[test]
fn a_direct_statement_counts_whole_and_every_further_hop_costs_a_fifth() {
    let graph = graph("b c d", &["acme > b 90", "b > c 80", "c > d 100"]);
    let shown = |to| {
        let score = score(&graph, to).unwrap();
        (score.value, score.confidence, score.paths[0].to_string())
    };
    assert_eq!(shown("b"), (90, 100, "acme -90-> b = 90".into()));
    assert_eq!(shown("c"), (57, 72, "acme -90-> b -80-> c = 57".into()));
    let path = "acme -90-> b -80-> c -100-> d = 46";
    assert_eq!(shown("d"), (46, 46, path.into()));
}

#[test]
fn nothing_counts_beyond_three_hops() {
    let words = ["acme > b 100", "b > c 100", "c > d 100", "d > e 100"];
    let graph = graph("b c d e", &words);
    assert_eq!(
        ["b", "c", "d", "e"].map(|to| value(&graph, to)),
        [100, 80, 64, 0]
    );
}

#[test]
fn what_is_worth_less_than_one_is_no_score() {
    let graph = graph("b c", &["acme > b 1", "b > c 100"]);
    assert_eq!(value(&graph, "b"), 1);
    assert_eq!(score(&graph, "c"), None);
}

#[test]
fn the_best_single_path_counts_and_paths_are_never_summed() {
    let words = [
        "acme > b 50",
        "acme > c 60",
        "acme > d 55",
        "b > e 100",
        "c > e 90",
        "d > e 100",
    ];
    let graph = graph("b c d e", &words);
    let score = score(&graph, "e").unwrap();
    assert_eq!(score.value, 44);
    let paths: Vec<String> = score.paths.iter().map(ToString::to_string).collect();
    assert_eq!(
        paths,
        [
            "acme -55-> d -100-> e = 44",
            "acme -60-> c -90-> e = 43",
            "acme -50-> b -100-> e = 40",
        ]
    );
}

#[test]
fn a_ring_of_trust_ends_and_raises_nobody() {
    let open = ["acme > b 50", "b > c 100", "c > d 100"];
    let ring = ["d > b 100", "d > acme 100", "c > b 100", "b > acme 100"];
    let without = graph("b c d", &open);
    let with = graph("b c d", &[&open[..], &ring[..]].concat());
    for to in ["b", "c", "d"] {
        assert_eq!(value(&with, to), value(&without, to), "{to}");
    }
    assert_eq!(value(&with, "acme"), 100);
}

#[test]
fn a_condition_counts_only_for_what_it_covers() {
    let mut graph = graph("b c", &["b > c 100"]);
    let capabilities = vec!["fs.*".parse().unwrap()];
    let said = TrustStatement {
        capabilities,
        ..says("b", 90)
    };
    graph.insert(signed("acme", said), now()).unwrap();
    let ask = |to, what: Option<&str>| {
        let what: Option<Pattern> = what.map(|what| what.parse().unwrap());
        graph
            .score(&org("acme"), &org(to), what.as_ref(), now())
            .map(|score| score.value)
    };
    assert_eq!(ask("b", Some("fs.read")), Some(90));
    assert_eq!(ask("c", Some("fs.read")), Some(72));
    for what in [Some("net.get"), Some("fs"), None] {
        assert_eq!((ask("b", what), ask("c", what)), (None, None), "{what:?}");
    }
}

#[test]
fn a_statement_counts_until_just_before_its_end() {
    let graph = graph("b", &["acme > b 90"]);
    let ask = |ms| graph.score(&org("acme"), &org("b"), None, at(ms)).is_some();
    assert!(ask(NOW + HOUR - 1));
    assert!(!ask(NOW + HOUR));
}

#[test]
fn a_later_statement_replaces_and_an_earlier_one_is_refused() {
    let mut graph = graph("b", &[]);
    let said = |seq, percent| {
        signed(
            "acme",
            TrustStatement {
                seq,
                ..says("b", percent)
            },
        )
    };
    assert_eq!(graph.insert(said(5, 40), now()), Ok(Heard::Taken));
    assert_eq!(graph.insert(said(5, 40), now()), Ok(Heard::Known));
    assert_eq!(graph.insert(said(7, 60), now()), Ok(Heard::Taken));
    let refused = graph.insert(said(5, 40), now()).unwrap_err();
    assert_eq!((refused.code(), value(&graph, "b")), (Code::Conflict, 60));
    assert_eq!(graph.insert(said(8, 0), now()), Ok(Heard::Taken));
    assert_eq!(score(&graph, "b"), None, "0 takes back");
}

#[test]
fn two_statements_under_one_number_count_for_nothing() {
    let mut graph = graph("b", &["acme > b 90"]);
    let said = |seq, percent| {
        signed(
            "acme",
            TrustStatement {
                seq,
                ..says("b", percent)
            },
        )
    };
    for percent in [30, 90, 30] {
        assert_eq!(
            graph.insert(said(1, percent), now()),
            Ok(Heard::Contradicted)
        );
        assert_eq!(score(&graph, "b"), None);
    }
    graph.insert(said(2, 50), now()).unwrap();
    assert_eq!(value(&graph, "b"), 50);
}

#[test]
fn what_was_replaced_does_not_come_back_when_its_successor_has_expired() {
    let mut graph = graph("b", &[]);
    let longest = at(NOW).later(TRUST_VALIDITY_MAX);
    let first = signed(
        "acme",
        TrustStatement {
            expires: longest,
            ..says("b", 90)
        },
    );
    let second = TrustStatement {
        seq: 2,
        ..says("b", 10)
    };
    graph.insert(first.clone(), now()).unwrap();
    graph.insert(signed("acme", second), now()).unwrap();
    for later in [NOW + HOUR, longest.as_ms() - 1, longest.as_ms()] {
        graph.forget(at(later));
        let refused = graph.insert(first.clone(), at(later)).unwrap_err().code();
        assert!(
            [Code::Conflict, Code::Stale].contains(&refused),
            "{refused}"
        );
        assert_eq!(graph.score(&org("acme"), &org("b"), None, at(later)), None);
    }
    assert_eq!(
        graph.statements().count(),
        0,
        "nothing is kept that cannot matter"
    );
}

#[test]
fn a_statement_from_the_future_or_from_long_ago_is_stale() {
    let mut graph = graph("b", &[]);
    let mut at_time = |ts: Timestamp| {
        let said = TrustStatement {
            expires: ts.later(Duration::from_secs(1)),
            ..says("b", 50)
        };
        let statement = Statement::new(org("acme"), ts, said).unwrap();
        graph
            .insert(statement, now())
            .map_err(|refused| refused.code())
            .is_ok()
    };
    let ms = Duration::from_millis(1);
    assert!(!at_time(now().later(CLOCK_SKEW_MAX + ms)));
    assert!(!at_time(now().earlier(TRUST_VALIDITY_MAX)));
    assert!(
        at_time(now().earlier(TRUST_VALIDITY_MAX - ms)),
        "it may replace what still counts"
    );
}

#[test]
fn an_organisation_is_reached_only_by_way_of_who_introduced_it() {
    let words = ["acme > x 100", "acme > y 100", "y > s 100", "acme > s 100"];
    let mut graph = graph("x y", &words);
    assert_eq!(score(&graph, "s"), None, "nobody answers for its key");
    graph.introduce(&org("x"), org("s")).unwrap();
    assert_eq!(score(&graph, "s"), None, "x does, and says nothing of it");
    say(&mut graph, "x > s 50");
    assert_eq!(
        value(&graph, "s"),
        40,
        "what y and acme say of the name is not about x's key"
    );
    say(&mut graph, "x > y 100");
    assert_eq!(value(&graph, "s"), 64, "behind x, y's word of it counts");
    graph.withdraw(&org("x"), &org("s"));
    graph.introduce(&org("y"), org("s")).unwrap();
    assert_eq!(value(&graph, "s"), 80);
    graph.add_peer(org("s")).unwrap();
    assert_eq!(value(&graph, "s"), 100, "an admin compared its key");
    graph.remove_peer(&org("s"));
    graph.remove_peer(&org("y"));
    assert_eq!(score(&graph, "s"), None);
}

#[test]
fn a_stranger_says_nothing_and_introduces_nobody() {
    let mut graph = graph("x", &[]);
    let word = signed("s", says("b", 100));
    let refused = graph.insert(word.clone(), now()).unwrap_err();
    assert_eq!(refused.code(), Code::Denied);
    let refused = graph.introduce(&org("s"), org("b")).unwrap_err();
    assert_eq!(refused.code(), Code::Denied);
    graph.introduce(&org("x"), org("s")).unwrap();
    assert_eq!(graph.insert(word, now()), Ok(Heard::Taken));
    let refused = graph.introduce(&org("s"), org("b")).unwrap_err();
    assert_eq!(refused.code(), Code::Denied, "only peers introduce");
}

#[test]
fn a_swarm_fills_its_introducers_room_only() {
    let mut graph = graph("x y", &[]);
    let mut taken = 0;
    for i in 0..TRUST_INTRODUCTIONS_MAX {
        let name = format!("s{i}");
        graph.introduce(&org("x"), org(&name)).unwrap();
        for trustee in ["a", "b"] {
            let heard = graph.insert(signed(&name, says(trustee, 100)), now());
            taken += usize::from(heard.is_ok());
            let full = Refusal::Busy("the room for one peer's statements of trust");
            assert!(heard.is_ok() || heard == Err(full));
        }
    }
    assert_eq!(taken, TRUST_STATEMENTS_PER_MAKER_MAX);
    let refused = graph.introduce(&org("x"), org("more")).unwrap_err();
    assert_eq!(refused.code(), Code::Busy);
    let refused = graph.insert(signed("x", says("y", 1)), now()).unwrap_err();
    assert_eq!(refused.code(), Code::Busy, "x has spent its own room");
    say(&mut graph, "y > a 100");
    say(&mut graph, "acme > x 100");
}

#[test]
fn at_its_bound_the_graph_refuses_what_is_new_and_takes_what_replaces() {
    let mut graph = full_graph();
    assert_eq!(graph.statements().count(), TRUST_STATEMENTS_MAX);
    let refused = graph
        .insert(signed("p200", says("p0", 1)), now())
        .unwrap_err();
    assert_eq!(refused.code(), Code::Busy);
    let later = TrustStatement {
        seq: 2,
        ..says("p1", 0)
    };
    assert_eq!(graph.insert(signed("p0", later), now()), Ok(Heard::Taken));
    say(&mut graph, "acme > p0 100");
    let refused = graph.add_peer(org("more")).unwrap_err();
    assert_eq!(refused.code(), Code::Busy);
    for i in 0..TRUST_DECISIONS_MAX {
        graph
            .decide(org(&format!("d{i}")), Some(Decision::Revoked))
            .unwrap();
    }
    let refused = graph
        .decide(org("more"), Some(Decision::Revoked))
        .unwrap_err();
    assert_eq!(refused.code(), Code::Busy);
    graph.decide(org("d0"), Some(Decision::System)).unwrap();
    graph.decide(org("d0"), None).unwrap();
    graph.decide(org("more"), Some(Decision::Revoked)).unwrap();
    graph.forget(now().later(TRUST_VALIDITY_MAX));
    assert_eq!(graph.statements().count(), 0);
}

/// As many peers as there may be, and as many statements, of few enough of them that many lie close together:
/// each about the peers that follow it in a ring.
fn full_graph() -> TrustGraph {
    let mut graph = TrustGraph::new(org("acme"));
    for i in 0..TRUST_PEERS_MAX {
        graph.add_peer(org(&format!("p{i}"))).unwrap();
    }
    let peers = TRUST_PEERS_MAX / 4;
    for nth in 0..TRUST_STATEMENTS_MAX {
        let (i, step) = (nth % peers, 1 + nth / peers);
        say(&mut graph, &format!("p{i} > p{} 100", (i + step) % peers));
    }
    graph
}

#[test]
fn nobody_decides_about_adds_or_introduces_the_home_organisation() {
    let mut graph = graph("x", &[]);
    let home = || org("acme");
    let refusals = [
        graph.add_peer(home()),
        graph.introduce(&org("x"), home()),
        graph.introduce(&org("x"), org("x")),
        graph.decide(home(), Some(Decision::Revoked)),
    ];
    for refused in refusals {
        assert_eq!(refused.unwrap_err().code(), Code::Conflict);
    }
}

#[test]
fn an_admins_decision_prevails_over_what_is_said() {
    let mut graph = graph("b c", &["acme > b 60", "b > c 100", "acme > c 20"]);
    assert_eq!(value(&graph, "c"), 48, "hearsay surpasses a recommendation");
    graph
        .decide(org("c"), Some(Decision::AtMost(trust(20))))
        .unwrap();
    assert_eq!(value(&graph, "c"), 20);
    graph.decide(org("c"), None).unwrap();
    graph.decide(org("b"), Some(Decision::Revoked)).unwrap();
    assert_eq!((score(&graph, "b"), value(&graph, "c")), (None, 20));
    graph.decide(org("b"), Some(Decision::System)).unwrap();
    assert_eq!((value(&graph, "b"), value(&graph, "c")), (100, 80));
    assert_eq!(score(&graph, "b").unwrap().paths.len(), 1);
    graph
        .decide(org("b"), Some(Decision::AtMost(trust(10))))
        .unwrap();
    assert_eq!(
        (value(&graph, "b"), value(&graph, "c")),
        (10, 20),
        "nor does its word carry further"
    );
}

#[test]
fn levels_follow_from_decisions_and_score() {
    let words = ["acme > b 75", "acme > c 74", "acme > d 40", "acme > e 39"];
    let mut graph = graph("b c d e", &words);
    let level = |graph: &TrustGraph, name| graph.level(&org(name), None, now());
    let expected = [
        ("acme", Level::System),
        ("b", Level::Trusted),
        ("c", Level::Partner),
        ("d", Level::Partner),
        ("e", Level::External),
        ("nobody", Level::External),
    ];
    for (name, expected) in expected {
        assert_eq!(level(&graph, name), expected, "{name}");
    }
    for (name, decision, expected) in [
        ("e", Decision::System, Level::System),
        ("nobody", Decision::System, Level::External),
        ("b", Decision::Revoked, Level::Revoked),
        ("c", Decision::AtMost(trust(10)), Level::External),
    ] {
        graph.decide(org(name), Some(decision)).unwrap();
        assert_eq!(level(&graph, name), expected, "{name}");
    }
}

#[test]
fn a_score_is_what_a_check_on_trust_compares() {
    let graph = graph("b c", &["acme > b 80", "b > c 100"]);
    let token = where_token("check if trust($s), $s >= 64");
    let required = "fs.read".parse().unwrap();
    let permits = |to| {
        let trust = score(&graph, to).map(|score| score.value);
        token
            .permits(&Question {
                trust,
                ..question(&required)
            })
            .is_ok()
    };
    assert!(permits("c"));
    assert!(!permits("nobody"), "no score is not a score of 0");
}

fn broker_key(name: &str) -> SigningKey {
    key(Digest::of(format!("broker@{name}").as_bytes()).0)
}

/// A statement as it goes on the wire.
fn sealed(trustor: &str, body: &impl Serialize) -> Sealed {
    draft(
        &format!("broker@{trustor}"),
        None,
        Kind::TrustStatement,
        body,
        &broker_key(trustor),
    )
}

fn draft(
    agent: &str,
    to: Option<&str>,
    kind: Kind,
    body: &impl Serialize,
    key: &SigningKey,
) -> Sealed {
    let to = to.map(|to| to.parse().unwrap());
    let draft = Draft {
        kind,
        agent: &agent.parse().unwrap(),
        to: to.as_ref(),
        ts: now(),
        nonce: "9f2c6d1e8a7b4c30",
        re: None,
        token: None,
        deadline: None,
        via: None,
        body,
    };
    draft.seal(key).unwrap()
}

fn opened(bytes: impl Into<Bytes>, key: &PublicKey) -> Result<Statement, Refusal> {
    Statement::open(&Envelope::parse(bytes.into(), ENVELOPE_BYTES)?, key)
}

#[test]
fn a_trust_statement_is_taken_only_as_its_makers_broker_signed_it() {
    let (b, public) = (broker_key("b"), broker_key("b").public());
    let body = says("c", 90);
    let statement = opened(sealed("b", &body).bytes, &public).unwrap();
    assert_eq!((statement.trustor(), statement.said()), (&org("b"), &body));
    let code = |sealed: Sealed| opened(sealed.bytes, &public).unwrap_err().code();
    let kind = Kind::TrustStatement;
    assert_eq!(code(sealed("x", &body)), Code::NotAuthentic);
    assert_eq!(code(draft("fs@b", None, kind, &body, &b)), Code::Denied);
    assert_eq!(
        code(draft("broker@b", Some("broker@acme"), kind, &body, &b)),
        Code::WrongAudience
    );
    assert_eq!(
        code(draft("broker@b", None, Kind::Roots, &body, &b)),
        Code::UnknownType
    );
    let long = vec!["a".repeat(64); 64].join(".");
    assert_eq!(
        code(sealed("b", &json!({ "capabilities": [long] }))),
        Code::TooLarge
    );
}

#[test]
fn a_statement_outside_its_bounds_is_an_invalid_body() {
    for (member, value) in [
        ("trust", json!(101)),
        ("trust", json!(-1)),
        ("trust", json!(50.0)),
        ("trustee", json!("b")),
        ("trustee", json!("B")),
        ("capabilities", json!(vec!["fs.*"; 17])),
        ("capabilities", json!(["fs*"])),
        ("seq", json!(1_u64 << 53)),
        ("expires", json!(NOW)),
        ("expires", json!(NOW + 90 * 24 * HOUR + 1)),
        ("more", json!(1)),
    ] {
        let mut body = serde_json::to_value(says("c", 90)).unwrap();
        body[member] = value;
        let refused = opened(sealed("b", &body).bytes, &broker_key("b").public()).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidBody, "{body}");
    }
}

// ---- Pictures.

/// Some thirty organisations: partners, whom they know, and a swarm that has introduced itself.
fn federation() -> TrustGraph {
    let peers: Vec<String> = (0..9).map(|i| format!("partner-{i}")).collect();
    let mut graph = graph(&peers.join(" "), &[]);
    for (i, peer) in peers.iter().enumerate() {
        say(&mut graph, &format!("acme > {peer} {}", 95 - 9 * i));
        say(
            &mut graph,
            &format!("{peer} > partner-{} {}", (i + 3) % 9, 40 + 5 * i),
        );
        for n in 0..2 {
            let name = format!("supplier-{}", 2 * i + n);
            graph.introduce(&org(peer), org(&name)).unwrap();
            say(&mut graph, &format!("{peer} > {name} {}", 90 - 10 * i));
        }
        if i > 5 {
            graph.introduce(&org(peer), org("initech")).unwrap();
            say(&mut graph, &format!("supplier-{} > initech 70", 2 * i));
        }
    }
    graph
        .decide(org("partner-0"), Some(Decision::System))
        .unwrap();
    graph
        .decide(org("partner-8"), Some(Decision::Revoked))
        .unwrap();
    graph
}

#[test]
fn a_picture_shows_the_best_path_and_who_is_near() {
    let graph = federation();
    let (acme, initech) = (org("acme"), org("initech"));
    let picture = graph.picture(&acme, Some(&initech), None, now());
    assert_eq!(picture.caption, "Trust of acme in initech");
    let best: Vec<String> = picture
        .arrows
        .iter()
        .filter(|arrow| arrow.best)
        .map(|arrow| format!("{} {}", arrow.trustor, arrow.trustee))
        .collect();
    assert_eq!(
        best,
        [
            "acme partner-6",
            "partner-6 supplier-12",
            "supplier-12 initech"
        ]
    );
    assert_eq!(picture.nodes.len(), 27);
    assert_eq!((picture.nodes_left_out, picture.arrows_left_out), (0, 0));
    let revoked = picture
        .nodes
        .iter()
        .find(|node| node.level == Level::Revoked)
        .unwrap();
    assert_eq!((revoked.org.as_str(), revoked.value), ("partner-8", None));
    assert_eq!(
        picture.svg(),
        graph.picture(&acme, Some(&initech), None, now()).svg()
    );
    assert_eq!(
        picture.svg().matches("<g>").count(),
        picture.nodes.len() + picture.arrows.len()
    );
    assert_eq!(picture.dot().matches("->").count(), picture.arrows.len());
    keep_for_looking_at("federation", &picture);
}

/// With `FEM_PICTURES` set to a folder, leaves the picture there.
#[expect(
    clippy::disallowed_methods,
    reason = "whoever wants to look says where"
)]
fn keep_for_looking_at(name: &str, picture: &Picture) {
    if let Some(folder) = std::env::var_os("FEM_PICTURES") {
        let file = |ending| PathBuf::from(&folder).join(format!("{name}.{ending}"));
        std::fs::write(file("svg"), picture.svg()).unwrap();
        std::fs::write(file("dot"), picture.dot()).unwrap();
    }
}

#[test]
fn a_picture_has_a_page_and_says_what_is_left_out() {
    let mut graph = full_graph();
    say(&mut graph, "acme > p0 100");
    let far = org("p100");
    let picture = graph.picture(&org("acme"), Some(&far), None, now());
    assert_eq!(picture.nodes.len(), PICTURE_NODES_MAX);
    assert_eq!(picture.arrows.len(), PICTURE_ARROWS_MAX);
    assert!(picture.nodes_left_out > 0 && picture.arrows_left_out > 0);
    assert!(picture.svg().contains("Not shown: "));
    assert!(picture.dot().contains("Not shown: "));
    keep_for_looking_at("full", &picture);
}

#[test]
fn a_picture_that_came_over_the_wire_is_drawn_whatever_it_says() {
    let picture: Picture = serde_json::from_value(json!({
        "caption": "</title><script>alert(\"1\")</script>\u{0}\u{ffff}",
        "nodes": [
            {"org": "a", "level": "system", "value": 255, "hops": 255},
            {"org": "a", "level": "revoked", "value": null, "hops": 0},
        ],
        "arrows": [
            {"trustor": "a", "trustee": "nobody", "trust": 1, "best": true},
            {"trustor": "a", "trustee": "a", "trust": 100, "best": true},
        ],
        "nodes_left_out": usize::MAX,
        "arrows_left_out": 1,
    }))
    .unwrap();
    let (svg, dot) = (picture.svg(), picture.dot());
    assert!(!svg.contains("<script") && !svg.contains('\u{0}') && !svg.contains('\u{ffff}'));
    assert!(dot.contains(r#"alert(\"1\")"#));
}

// ---- Laws, against a plain reading of the rules.

const NAMES: [&str; 8] = ["acme", "x", "y", "z", "s", "t", "u", "v"];

/// Everything that a graph is made of, as numbers into [`NAMES`].
#[derive(Debug, Clone)]
struct World {
    peers: BTreeSet<usize>,
    introduced: Vec<(usize, usize)>,
    decisions: BTreeMap<usize, u8>,
    words: Vec<(usize, usize, TrustStatement)>,
}

impl World {
    fn graph(&self) -> TrustGraph {
        let mut graph = TrustGraph::new(org("acme"));
        for peer in &self.peers {
            graph.add_peer(org(NAMES[*peer])).unwrap();
        }
        for (by, whom) in &self.introduced {
            let _ = graph.introduce(&org(NAMES[*by]), org(NAMES[*whom]));
        }
        for (whom, decision) in &self.decisions {
            let decision = match decision {
                0 => Decision::Revoked,
                100 => Decision::System,
                percent => Decision::AtMost(trust(*percent)),
            };
            graph.decide(org(NAMES[*whom]), Some(decision)).unwrap();
        }
        for (trustor, _, said) in &self.words {
            let _ = graph.insert(signed(NAMES[*trustor], said.clone()), now());
        }
        graph
    }

    /// What counts of what one says of another, told without the code under test.
    fn word(&self, trustor: usize, trustee: usize, what: Option<&Pattern>) -> u128 {
        if trustor == 0 && self.decisions.get(&trustee) == Some(&100) {
            return 100;
        }
        let of = |(a, b, _): &&(usize, usize, TrustStatement)| (*a, *b) == (trustor, trustee);
        let said: Vec<_> = self.words.iter().filter(of).map(|word| &word.2).collect();
        let last = said.iter().map(|said| said.seq).max();
        let said: Vec<_> = said.iter().filter(|said| Some(said.seq) == last).collect();
        let Some(first) = said.first() else { return 0 };
        let covers = |p: &Pattern| what.is_some_and(|what| what.covered_by().any(|by| by == *p));
        let counts = said.iter().all(|other| other == first)
            && first.expires > now()
            && (first.capabilities.is_empty() || first.capabilities.iter().any(covers));
        if counts {
            u128::from(first.trust.percent())
        } else {
            0
        }
    }

    fn may_stand(&self, path: &[usize]) -> bool {
        path.iter().enumerate().all(|(i, node)| {
            let by =
                |by: &usize| self.peers.contains(by) && self.introduced.contains(&(*by, *node));
            i == 0 || *node == 0 || self.peers.contains(node) || path[..i].iter().any(by)
        })
    }

    /// The value of the best path, by trying them all.
    fn value(&self, to: usize, what: Option<&Pattern>) -> u128 {
        let middle: Vec<Vec<usize>> = (0..NAMES.len())
            .flat_map(|a| (0..NAMES.len()).map(move |b| vec![a, b]))
            .chain((0..NAMES.len()).map(|a| vec![a]))
            .chain([vec![]])
            .collect();
        let worth = |middle: &Vec<usize>| {
            let path: Vec<usize> = [&[0], &middle[..], &[to]].concat();
            let distinct: BTreeSet<_> = path.iter().collect();
            if distinct.len() < path.len() || !self.may_stand(&path) {
                return 0;
            }
            // In units of 10^-12 of a percent.
            let mut value = 125 * 10_u128.pow(12);
            for hop in path.windows(2) {
                value = value * 80 / 100 * self.word(hop[0], hop[1], what) / 100;
                let cap = self.decisions.get(&hop[1]).copied().unwrap_or(100);
                value = value.min(u128::from(cap) * 10_u128.pow(12));
            }
            value / 10_u128.pow(12)
        };
        middle.iter().map(worth).max().unwrap()
    }
}

fn statement(seqs: u64) -> impl Strategy<Value = (usize, usize, TrustStatement)> {
    let percent = prop_oneof![1 => Just(0), 3 => Just(100), 6 => 1_u8..=100];
    let capabilities = proptest::sample::select(vec![
        vec![],
        vec![],
        vec!["fs.*"],
        vec!["fs.read", "net.get"],
    ]);
    let expires = proptest::sample::select(vec![NOW + HOUR, NOW + HOUR, NOW + HOUR, NOW]);
    let pair = (0..NAMES.len(), 1..NAMES.len());
    (pair, percent, capabilities, 0..seqs, expires).prop_map(
        |((trustor, step), percent, capabilities, seq, expires)| {
            let trustee = (trustor + step) % NAMES.len();
            // What has expired was signed before now, by whoever signs everything at now.
            let expires = at(expires).later(Duration::from_millis(1));
            let capabilities = fixture::patterns(&capabilities);
            let said = TrustStatement {
                capabilities,
                seq,
                expires,
                ..says(NAMES[trustee], percent)
            };
            (trustor, trustee, said)
        },
    )
}

fn world(seqs: u64) -> impl Strategy<Value = World> {
    let peers = proptest::collection::btree_set(1..NAMES.len(), 1..5);
    let introduced = proptest::collection::vec((1..NAMES.len(), 1..NAMES.len()), 0..8);
    let decision = prop_oneof![Just(0_u8), Just(100), 1_u8..100];
    let decisions = proptest::collection::btree_map(1..NAMES.len(), decision, 0..3);
    let words = proptest::collection::vec(statement(seqs), 0..40);
    (peers, introduced, decisions, words).prop_map(
        |(peers, mut introduced, decisions, mut words)| {
            introduced.retain(|(by, whom)| by != whom && peers.contains(by));
            let known = |org: &usize| {
                *org == 0 || peers.contains(org) || introduced.iter().any(|(_, whom)| whom == org)
            };
            words.retain(|(trustor, _, _)| known(trustor));
            World {
                peers,
                introduced,
                decisions,
                words,
            }
        },
    )
}

fn values(graph: &TrustGraph, what: Option<&Pattern>) -> Vec<u8> {
    let of = |to: &&str| {
        let score = graph.score(&org("acme"), &org(to), what, now());
        score.map_or(0, |score| score.value)
    };
    NAMES.iter().map(of).collect()
}

fn is_nowhere_above(lower: &[u8], upper: &[u8]) -> bool {
    lower.iter().zip(upper).all(|(lower, upper)| lower <= upper)
}

fn fs_read() -> Option<Pattern> {
    Some("fs.read".parse().unwrap())
}

proptest! {
    #![proptest_config(laws(512))]

    #[test]
    fn a_score_is_that_of_the_best_path_found_by_trying_them_all(world in world(3)) {
        let graph = world.graph();
        for what in [None, fs_read()] {
            for (to, name) in NAMES.iter().enumerate().skip(1) {
                let score = graph.score(&org("acme"), &org(name), what.as_ref(), now());
                let value = score.as_ref().map_or(0, |score| u128::from(score.value));
                prop_assert_eq!(value, world.value(to, what.as_ref()), "{} {:?}", name, what);
                let Some(score) = score else { continue };
                prop_assert!(score.value <= score.confidence && score.paths.len() <= TRUST_PATHS_MAX);
                prop_assert!(score.paths.is_sorted_by(|a, b| a.value >= b.value && a != b));
                for path in &score.paths {
                    prop_assert!((1..=3).contains(&path.hops.len()));
                    prop_assert_eq!(&path.hops.last().unwrap().trustee, &org(name));
                    let follows = |pair: &[proto_spec::trust::Hop]| pair[0].trustee == pair[1].trustor;
                    prop_assert!(path.hops.windows(2).all(follows));
                }
            }
        }
    }

    #[test]
    fn one_hop_more_never_raises(world in world(1), by in 1..NAMES.len(), percent in 0_u8..=100) {
        let mut graph = world.graph();
        graph.add_peer(org("far")).unwrap();
        let _ = graph.insert(signed(NAMES[by], says("far", percent)), now());
        let (near, far) = (value(&graph, NAMES[by]), value(&graph, "far"));
        prop_assert!(u16::from(far) * 100 <= (u16::from(near) + 1) * 80, "{} {}", near, far);
    }

    #[test]
    fn taking_back_or_revoking_never_raises(world in world(1), which: prop::sample::Index) {
        prop_assume!(!world.words.is_empty());
        let (trustor, trustee, said) = which.get(&world.words).clone();
        let before = world.graph();
        let mut taken_back = before.clone();
        let zero = TrustStatement { trust: Trust::NONE, seq: 2, ..said };
        taken_back.insert(signed(NAMES[trustor], zero), now()).unwrap();
        let mut revoked = before.clone();
        revoked.decide(org(NAMES[trustee]), Some(Decision::Revoked)).unwrap_or(());
        let mut parted = before.clone();
        parted.remove_peer(&org(NAMES[trustee]));
        for what in [None, fs_read()] {
            let before = values(&before, what.as_ref());
            for after in [&taken_back, &revoked, &parted] {
                prop_assert!(is_nowhere_above(&values(after, what.as_ref()), &before));
            }
        }
    }

    #[test]
    fn the_order_in_which_things_were_said_does_not_matter(
        (world, shuffled) in world(3).prop_flat_map(|world| {
            let shuffled = Just(world.words.clone()).prop_shuffle();
            (Just(world), shuffled)
        })
    ) {
        let (one, other) = (world.graph(), World { words: shuffled, ..world }.graph());
        for what in [None, fs_read()] {
            for to in NAMES {
                let ask = |graph: &TrustGraph| graph.score(&org("acme"), &org(to), what.as_ref(), now());
                prop_assert_eq!(ask(&one), ask(&other), "{}", to);
            }
        }
    }

    /// The swarm is `s` to `v`: it says what it likes, and whoever likes it says so too.
    #[test]
    fn a_swarm_behind_a_peer_gains_nothing_that_the_peer_could_not_say_alone(mut world in world(1)) {
        const SWARM: std::ops::Range<usize> = 4..8;
        world.peers.retain(|peer| !SWARM.contains(peer));
        world.peers.insert(1);
        world.introduced.retain(|(_, whom)| !SWARM.contains(whom));
        world.introduced.extend(SWARM.map(|sybil| (1, sybil)));
        let mut alone = world.clone();
        alone.words.retain(|(trustor, _, _)| *trustor != 1 && !SWARM.contains(trustor));
        alone.words.extend((2..NAMES.len()).map(|whom| (1, whom, says(NAMES[whom], 100))));
        for what in [None, fs_read()] {
            let with = values(&world.graph(), what.as_ref());
            prop_assert!(is_nowhere_above(&with, &values(&alone.graph(), what.as_ref())));
        }
    }

    #[test]
    fn a_picture_is_of_what_there_is(world in world(2), to in 0..NAMES.len()) {
        let graph = world.graph();
        let picture = graph.picture(&org("acme"), Some(&org(NAMES[to])), None, now());
        let names: BTreeSet<_> = picture.nodes.iter().map(|node| &node.org).collect();
        prop_assert_eq!(names.len(), picture.nodes.len());
        for arrow in &picture.arrows {
            prop_assert!(names.contains(&arrow.trustor) && names.contains(&arrow.trustee));
        }
        prop_assert_eq!(picture.svg().matches("<path").count(), 2 * picture.arrows.len());
        let read: Picture = serde_json::from_value(serde_json::to_value(&picture).unwrap()).unwrap();
        prop_assert_eq!(read, picture);
    }
}

// ---- vectors/trust.json

#[derive(Debug, Serialize, Deserialize)]
struct Vectors {
    about: Vec<String>,
    statements: Vec<StatementCase>,
    graphs: Vec<GraphCase>,
}

/// A statement by itself, and the verdict on it.
#[derive(Debug, Serialize, Deserialize)]
struct StatementCase {
    name: String,
    sealed: String,
    public_key: PublicKey,
    verdict: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct GraphCase {
    name: String,
    home: Org,
    now_ms: u64,
    peers: Vec<Org>,
    /// By whom, and whom.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    introduced: Vec<(Org, Org)>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    decisions: BTreeMap<Org, Decision>,
    /// Envelopes, in the order in which they come.
    statements: Vec<Inserted>,
    questions: Vec<Asked>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Inserted {
    sealed: String,
    /// `taken`, `known`, `contradicted`, or the code with which it is refused.
    verdict: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    from: Org,
    to: Org,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    capability: Option<Pattern>,
    level: Level,
    /// Nothing where there is none.
    score: Option<Score>,
}

fn text(sealed: &Sealed) -> String {
    String::from_utf8(sealed.bytes.to_vec()).unwrap()
}

fn statement_cases() -> Vec<StatementCase> {
    let body = serde_json::to_value(says("initech", 90)).unwrap();
    let with = |member: &str, value: Value| {
        let mut body = body.clone();
        body[member] = value;
        sealed("globex", &body)
    };
    let globex = broker_key("globex");
    let kind = Kind::TrustStatement;
    let cases = [
        ("plain", sealed("globex", &body)),
        (
            "with conditions",
            with("capabilities", json!(["fs.*", "net.get"])),
        ),
        ("taken back", with("trust", json!(0))),
        ("refused: above 100", with("trust", json!(101))),
        ("refused: about its maker", with("trustee", json!("globex"))),
        (
            "refused: for longer than 90 days",
            with("expires", json!(NOW + 90 * 24 * HOUR + 1)),
        ),
        ("refused: ends when it begins", with("expires", json!(NOW))),
        ("refused: a number of 2^53", with("seq", json!(1_u64 << 53))),
        ("refused: an unknown member", with("note", json!(""))),
        (
            "refused: an agent's",
            draft("fs@globex", None, kind, &body, &globex),
        ),
        (
            "refused: for somebody",
            draft("broker@globex", Some("broker@acme"), kind, &body, &globex),
        ),
        (
            "refused: signed by another",
            draft("broker@globex", None, kind, &body, &broker_key("initech")),
        ),
    ];
    let case = |(name, sealed): (&str, Sealed)| StatementCase {
        name: name.into(),
        verdict: verdict(&opened(sealed.bytes.clone(), &globex.public())),
        sealed: text(&sealed),
        public_key: globex.public(),
    };
    cases.into_iter().map(case).collect()
}

fn verdict<T>(result: &Result<T, Refusal>) -> String {
    result
        .as_ref()
        .map_or_else(|refused| refused.code().to_string(), |_| "ok".into())
}

fn heard(result: &Result<Heard, Refusal>) -> String {
    match result {
        Ok(Heard::Taken) => "taken".into(),
        Ok(Heard::Known) => "known".into(),
        Ok(Heard::Contradicted) => "contradicted".into(),
        Err(refused) => refused.code().to_string(),
    }
}

impl GraphCase {
    /// Puts everything in, and hands each verdict to `each`.
    fn build(&self, mut each: impl FnMut(&Inserted, String)) -> TrustGraph {
        let mut graph = TrustGraph::new(self.home.clone());
        for peer in &self.peers {
            graph.add_peer(peer.clone()).unwrap();
        }
        for (by, whom) in &self.introduced {
            graph.introduce(by, whom.clone()).unwrap();
        }
        for (whom, decision) in &self.decisions {
            graph.decide(whom.clone(), Some(*decision)).unwrap();
        }
        for inserted in &self.statements {
            let envelope = Envelope::parse(inserted.sealed.clone().into(), ENVELOPE_BYTES).unwrap();
            let key = broker_key(envelope.speaker().org().as_str()).public();
            let statement = Statement::open(&envelope, &key).unwrap();
            each(inserted, heard(&graph.insert(statement, at(self.now_ms))));
        }
        graph
    }

    /// Fills in what this code answers.
    fn answered(mut self) -> Self {
        let mut verdicts = Vec::new();
        let graph = self.build(|_, verdict| verdicts.push(verdict));
        for (inserted, verdict) in self.statements.iter_mut().zip(verdicts) {
            inserted.verdict = verdict;
        }
        let now = at(self.now_ms);
        for asked in &mut self.questions {
            let what = asked.capability.as_ref();
            asked.score = graph.score(&asked.from, &asked.to, what, now);
            asked.level = graph.level(&asked.to, what, now);
        }
        self
    }
}

/// `words` are `trustor > trustee percent`, with `#n` for another number than 1 and `for pattern`.
fn case(name: &str, peers: &str, introduced: &str, words: &[&str], asked: &[&str]) -> GraphCase {
    let statement = |word: &&str| {
        let (word, what) = word.split_once(" for ").unwrap_or((*word, ""));
        let (word, seq) = word.split_once(" #").unwrap_or((word, "1"));
        let [trustor, ">", trustee, percent] = word.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{word}");
        };
        let said = TrustStatement {
            seq: seq.parse().unwrap(),
            capabilities: what
                .split_whitespace()
                .map(|what| what.parse().unwrap())
                .collect(),
            ..says(trustee, percent.parse().unwrap())
        };
        let sealed = text(&sealed(trustor, &said));
        Inserted {
            sealed,
            verdict: String::new(),
        }
    };
    let question = |asked: &&str| {
        let (to, what) = asked
            .split_once(" for ")
            .map_or((*asked, None), |(to, what)| (to, Some(what)));
        Asked {
            from: org("acme"),
            to: org(to),
            capability: what.map(|what| what.parse().unwrap()),
            level: Level::External,
            score: None,
        }
    };
    let introduction = |pair: &str| {
        let (by, whom) = pair.split_once('>').unwrap();
        (org(by), org(whom))
    };
    GraphCase {
        name: name.into(),
        home: org("acme"),
        now_ms: NOW,
        peers: peers.split_whitespace().map(org).collect(),
        introduced: introduced.split_whitespace().map(introduction).collect(),
        decisions: BTreeMap::new(),
        statements: words.iter().map(statement).collect(),
        questions: asked.iter().map(question).collect(),
    }
}

fn graph_cases() -> Vec<GraphCase> {
    let chain = ["acme > b 90", "b > c 80", "c > d 100", "d > e 100"];
    let decided = |name: &str, decision| {
        let mut case = case(
            name,
            "b c",
            "",
            &["acme > b 60", "b > c 100", "acme > c 20"],
            &["b", "c"],
        );
        case.decisions.insert(org("b"), decision);
        case
    };
    let mut expired = case("expired", "b", "", &["acme > b 90"], &["b"]);
    expired.now_ms = NOW + HOUR;
    let cases = [
        case(
            "a chain",
            "b c d e",
            "",
            &chain,
            &["acme", "b", "c", "d", "e", "nobody"],
        ),
        case(
            "several paths",
            "b c d e",
            "",
            &[
                "acme > b 50",
                "acme > c 60",
                "acme > d 55",
                "b > e 100",
                "c > e 90",
                "d > e 100",
            ],
            &["e"],
        ),
        case(
            "a ring",
            "b c d",
            "",
            &[
                "acme > b 50",
                "b > c 100",
                "c > d 100",
                "d > b 100",
                "c > b 100",
            ],
            &["b", "c", "d"],
        ),
        case(
            "conditions",
            "b c",
            "",
            &["acme > b 90 for fs.*", "b > c 100 for fs.read net.get"],
            &[
                "b",
                "b for fs.write",
                "c for fs.read",
                "c for fs.write",
                "c for net.get",
            ],
        ),
        case(
            "replaced, refused, taken back and contradicted",
            "b c d",
            "",
            &[
                "acme > b 50 #5",
                "acme > b 60 #7",
                "acme > b 90 #6",
                "acme > c 90",
                "acme > c 0 #2",
                "acme > d 90",
                "acme > d 90",
                "acme > d 80",
                "acme > d 90",
            ],
            &["b", "c", "d"],
        ),
        case(
            "known through x only",
            "x y",
            "x>s",
            &[
                "acme > x 100",
                "acme > y 100",
                "acme > s 100",
                "y > s 100",
                "x > s 50",
                "s > y 100",
                "t > y 100",
            ],
            &["s", "y", "t"],
        ),
        case(
            "behind x, another's word counts",
            "x y",
            "x>s",
            &["acme > x 100", "x > y 100", "y > s 100"],
            &["s"],
        ),
        expired,
        decided("decided: system", Decision::System),
        decided("decided: at most 10", Decision::AtMost(trust(10))),
        decided("decided: revoked", Decision::Revoked),
    ];
    cases.into_iter().map(GraphCase::answered).collect()
}

fn vectors() -> Vectors {
    let about = [
        "Trust between organisations, as SPEC.md says in Trust. The seed of a broker's key is the SHA-256 of broker@org.",
        "statements: each is opened with public_key; verdict is `ok` or a code.",
        "graphs: what the home organisation knows: peers, introductions (by whom, whom), decisions, and the statements in the order in which they come, each with its verdict.",
        "questions: score is null where there is none; level is how `to` stands with the home organisation.",
    ];
    Vectors {
        about: about.map(Into::into).into(),
        statements: statement_cases(),
        graphs: graph_cases(),
    }
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors/trust.json")
}

#[expect(clippy::disallowed_methods, reason = "a test reads its vectors")]
fn kept() -> String {
    std::fs::read_to_string(path()).unwrap_or_default()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "whoever blesses says so")]
fn the_trust_vectors_are_made_anew_and_do_not_differ() {
    let made = serde_json::to_string_pretty(&vectors()).unwrap() + "\n";
    if std::env::var_os("FEM_BLESS").is_some() {
        std::fs::write(path(), &made).unwrap();
    }
    assert!(
        kept() == made,
        "vectors/trust.json differs: look at what FEM_BLESS=1 changes"
    );
}

#[test]
fn the_trust_vectors_hold_for_a_reader_who_has_only_the_file() {
    let vectors: Vectors = serde_json::from_str(&kept()).unwrap();
    for case in &vectors.statements {
        let opened = opened(case.sealed.clone(), &case.public_key);
        assert_eq!(verdict(&opened), case.verdict, "{}", case.name);
    }
    for case in &vectors.graphs {
        let graph = case.build(|inserted, verdict| {
            assert_eq!(
                verdict, inserted.verdict,
                "{}: {}",
                case.name, inserted.sealed
            );
        });
        for asked in &case.questions {
            let (what, now) = (asked.capability.as_ref(), at(case.now_ms));
            let score = graph.score(&asked.from, &asked.to, what, now);
            assert_eq!(score, asked.score, "{}: {asked:?}", case.name);
            assert_eq!(
                graph.level(&asked.to, what, now),
                asked.level,
                "{}: {asked:?}",
                case.name
            );
        }
    }
}
