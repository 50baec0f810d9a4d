//! Trust between organisations: stated, told on, taken back, asked by a grant, and what a peer may not say.

use proto_spec::capability::Pattern;
use proto_spec::limits::{TRUST_STATEMENTS_PER_MAKER_MAX, TRUST_VALIDITY_MAX};
use proto_spec::message::{Ack, Introduced, Trust, TrustNews, TrustStatement};
use proto_spec::trust::Level;
use proto_spec::{Code, Kind, Org, Timestamp};
use serde_json::{Value, json};
use tests::lab::{Lab, hears_refusal};
use tests::peer::{Hand, Linked};

use super::federation::{Pair, calls, chain, provider, until};
use super::hostile_peer::add;

async fn ask(lab: &Lab, kind: Kind, body: Value) -> Ack {
    lab.ask(&lab.admin, kind, &body).await.unwrap()
}

async fn state(lab: &Lab, trustee: &str, trust: u8) {
    let body = json!({"trustee": trustee, "trust": trust});
    ask(lab, Kind::AdminTrustState, body).await;
}

async fn decide(lab: &Lab, org: &str, decision: Value) {
    let body = json!({"org": org, "decision": decision});
    ask(lab, Kind::AdminTrustDecide, body).await;
}

/// How far `lab` trusts another, and where that one stands.
async fn shown(lab: &Lab, to: &str) -> (Option<u8>, Level) {
    let body = json!({"from": lab.org(), "to": to});
    match ask(lab, Kind::AdminTrustShow, body).await {
        Ack::Trust { score, level, .. } => (score.map(|score| score.value), level),
        other => panic!("{other:?}"),
    }
}

/// As a decision has it.
fn score(lab: &Lab, to: &str) -> Option<u8> {
    let any: Pattern = "fs.read".parse().unwrap();
    let to: Org = to.parse().unwrap();
    lab.broker.core().state.trust.score(&to, &any, lab.now())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_states_its_peers_and_their_peers_know_until_it_is_taken_back() {
    let (pair, initech, _fs, _serving) = chain(0).await;
    let (acme, globex) = (&pair.acme, &pair.globex);
    state(acme, "globex", 90).await;
    assert_eq!(shown(acme, "globex").await, (Some(90), Level::Trusted));
    assert_eq!(shown(acme, "initech").await, (None, Level::External));
    state(globex, "initech", 80).await;
    until("acme hears of initech", || {
        score(acme, "initech") == Some(57)
    })
    .await;
    assert_eq!(shown(acme, "initech").await, (Some(57), Level::Partner));
    // Whom nobody introduces is nobody, however much is said of it.
    state(&initech, "hooli", 100).await;
    state(globex, "initech", 0).await;
    until("acme hears that it is taken back", || {
        score(acme, "initech").is_none()
    })
    .await;
    state(globex, "initech", 100).await;
    until("acme hears again", || score(acme, "initech") == Some(72)).await;
    assert_eq!(score(acme, "hooli"), None);
    decide(acme, "initech", json!({"atMost": 30})).await;
    assert_eq!(shown(acme, "initech").await.0, Some(30));
    decide(acme, "globex", json!("revoked")).await;
    assert_eq!(shown(acme, "globex").await, (None, Level::Revoked));
    assert_eq!(shown(acme, "initech").await.0, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_asks_for_trust_permits_what_the_score_allows_and_discovery_shows_the_same() {
    let pair = Pair::linked().await;
    let (fs, mut serving) = provider(&pair).await;
    let caller = pair.acme.agent("x", 3, &["peer.globex.*"]).await.unwrap();
    pair.grant(json!({"checks": ["check if trust($s), $s >= 60"]}))
        .await;
    state(&pair.globex, "acme", 59).await;
    pair.until_advertised(0).await;
    state(&pair.globex, "acme", 60).await;
    pair.until_advertised(1).await;
    calls(&pair, &caller, &fs, &mut serving).await;
    // It is told of it, and refused, until it hears that it is told of it no more.
    let refused = async || {
        let mut calling = pair.acme.attach(&caller).await.unwrap();
        let call = caller
            .call("fs@globex", "fs.read", &json!({}), pair.acme.now())
            .unwrap();
        calling.send(call.bytes).await.unwrap();
        hears_refusal(&mut calling).await.unwrap()
    };
    state(&pair.globex, "acme", 20).await;
    assert!(matches!(refused().await, Code::Denied | Code::Unavailable));
    pair.until_advertised(0).await;
    assert_eq!(refused().await, Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organisation_that_an_admin_revoked_calls_nothing_and_is_told_of_nothing() {
    let pair = Pair::linked().await;
    let (fs, mut serving) = provider(&pair).await;
    let caller = pair.acme.agent("x", 3, &["peer.globex.*"]).await.unwrap();
    pair.grant(json!({})).await;
    pair.until_advertised(1).await;
    calls(&pair, &caller, &fs, &mut serving).await;
    decide(&pair.globex, "acme", json!("revoked")).await;
    let mut calling = pair.acme.attach(&caller).await.unwrap();
    let call = caller
        .call("fs@globex", "fs.read", &json!({}), pair.acme.now())
        .unwrap();
    calling.send(call.bytes).await.unwrap();
    let code = hears_refusal(&mut calling).await.unwrap();
    assert!(matches!(code, Code::Denied | Code::Unavailable), "{code:?}");
    pair.until_advertised(0).await;
    decide(&pair.globex, "acme", Value::Null).await;
    pair.until_advertised(1).await;
    calls(&pair, &caller, &fs, &mut serving).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_and_heard_of_trust_outlives_a_restart() {
    let (pair, _initech, _fs, _serving) = chain(0).await;
    state(&pair.acme, "globex", 90).await;
    state(&pair.globex, "initech", 80).await;
    decide(&pair.acme, "hooli", json!("revoked")).await;
    until("acme hears", || score(&pair.acme, "initech") == Some(57)).await;
    let Pair { acme, globex } = pair;
    // Nobody is there to say it again.
    drop(globex);
    let acme = acme.restart().await.unwrap();
    assert_eq!(shown(&acme, "initech").await, (Some(57), Level::Partner));
    assert_eq!(shown(&acme, "hooli").await.1, Level::Revoked);
}

/// A statement as the broker of `maker` signs it.
fn statement(maker: &Hand, trustee: &str, trust: u8, seq: u64, at: Timestamp) -> String {
    let said = TrustStatement {
        trustee: trustee.parse().unwrap(),
        trust: Trust::try_from(trust).unwrap(),
        capabilities: Vec::new(),
        seq,
        expires: at.later(TRUST_VALIDITY_MAX),
    };
    let sealed = maker.say(Kind::TrustStatement, None, None, &said, at);
    String::from_utf8(sealed.unwrap().bytes.to_vec()).unwrap()
}

fn introduced(one: &Hand) -> Introduced {
    Introduced {
        org: one.org.clone(),
        key: one.key.public(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_speaks_of_trust_for_itself_and_for_those_whose_keys_it_vouches_for() {
    let acme = Lab::start().await.unwrap();
    let hand = |org: &str, seed| Hand::new(org, seed).unwrap();
    let (globex, hooli) = (hand("globex", 0x61), hand("hooli", 0x62));
    let (initech, false_initech) = (hand("initech", 0x63), hand("initech", 0x64));
    add(&acme, &globex).await;
    add(&acme, &hooli).await;
    state(&acme, "globex", 100).await;
    state(&acme, "hooli", 10).await;
    let now = acme.now();
    let mut link = globex.linked(&acme).await.unwrap();
    let news = TrustNews {
        introduced: vec![introduced(&initech)],
        statements: vec![
            statement(&globex, "initech", 100, 1, now),
            statement(&initech, "umbrella", 100, 1, now),
            // In others' names: ours, another peer's, one that nobody vouches for.
            statement(&hand("acme", 0x61), "umbrella", 100, 1, now),
            statement(&hand("hooli", 0x61), "umbrella", 100, 1, now),
            statement(&hand("stranger", 0x61), "umbrella", 100, 1, now),
        ],
        ..TrustNews::default()
    };
    link.say(Kind::TrustNews, None, &news).await.unwrap();
    until("it is heard", || score(&acme, "initech") == Some(80)).await;
    assert_eq!(score(&acme, "umbrella"), None, "nobody introduced it");
    // Another peer, hardly trusted, says that initech has another key, and speaks in its name.
    let mut other = hooli.linked(&acme).await.unwrap();
    let usurped = TrustNews {
        introduced: vec![
            introduced(&false_initech),
            introduced(&hand("umbrella", 0x65)),
        ],
        statements: vec![
            statement(&false_initech, "umbrella", 100, 2, now),
            statement(&false_initech, "hooli", 100, 2, now),
            statement(&hooli, "umbrella", 90, 1, now),
        ],
        ..TrustNews::default()
    };
    other.say(Kind::TrustNews, None, &usurped).await.unwrap();
    until("it is heard", || score(&acme, "umbrella").is_some()).await;
    // By hooli's own word, and by no other: 10 · ⅘ · 90/100.
    assert_eq!(score(&acme, "umbrella"), Some(7));
    assert_eq!(
        score(&acme, "hooli"),
        Some(10),
        "not by a forged word of initech's"
    );
    // What initech said does not come back with a lower number, whoever brings it.
    let news = TrustNews {
        statements: vec![statement(&globex, "initech", 0, 2, now)],
        ..TrustNews::default()
    };
    link.say(Kind::TrustNews, None, &news).await.unwrap();
    until("it is taken back", || score(&acme, "initech").is_none()).await;
    let news = TrustNews {
        statements: vec![
            statement(&globex, "initech", 100, 1, now),
            statement(&globex, "umbrella", 50, 3, now),
        ],
        ..TrustNews::default()
    };
    link.say(Kind::TrustNews, None, &news).await.unwrap();
    until("what came with it is heard", || {
        score(&acme, "umbrella") == Some(7) && acme_knows(&acme, &globex, 2)
    })
    .await;
    assert_eq!(score(&acme, "initech"), None);
}

/// Whether so many statements of one are on record.
fn acme_knows(acme: &Lab, maker: &Hand, count: usize) -> bool {
    let told = acme
        .broker
        .core()
        .state
        .trust
        .tellable(acme.org(), acme.now());
    let of_maker = told.others.keys().filter(|(org, _)| *org == maker.org);
    of_maker.count() == count
}

/// globex introduces victim under a key of its own and speaks for it, until the true one is known.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_under_another_key_is_not_a_peers_own_once_it_is_one() {
    let acme = Lab::start().await.unwrap();
    let hand = |org: &str, seed| Hand::new(org, seed).unwrap();
    let globex = hand("globex", 0x61);
    let (victim, forged) = (hand("victim", 0x62), hand("victim", 0x63));
    add(&acme, &globex).await;
    state(&acme, "globex", 50).await;
    state(&acme, "victim", 100).await;
    let now = acme.now();
    let mut link = globex.linked(&acme).await.unwrap();
    let news = TrustNews {
        introduced: vec![introduced(&forged)],
        statements: vec![
            statement(&globex, "victim", 100, 1, now),
            statement(&forged, "globex", 100, 1 << 50, now),
        ],
        ..TrustNews::default()
    };
    link.say(Kind::TrustNews, None, &news).await.unwrap();
    until("it is heard", || acme_knows(&acme, &globex, 1)).await;
    add(&acme, &victim).await;
    assert_eq!(score(&acme, "globex"), Some(50), "the forged word is gone");
    // And the true one is not kept from saying something.
    let mut its = victim.linked(&acme).await.unwrap();
    let news = TrustNews {
        statements: vec![statement(&victim, "globex", 90, 1, now)],
        ..TrustNews::default()
    };
    its.say(Kind::TrustNews, None, &news).await.unwrap();
    until("its own word counts", || score(&acme, "globex") == Some(72)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_floods_with_statements_fills_its_own_room_only_and_can_still_take_back() {
    let acme = Lab::start().await.unwrap();
    let (globex, hooli) = (
        Hand::new("globex", 0x61).unwrap(),
        Hand::new("hooli", 0x62).unwrap(),
    );
    add(&acme, &globex).await;
    add(&acme, &hooli).await;
    state(&acme, "globex", 100).await;
    state(&acme, "hooli", 100).await;
    let now = acme.now();
    let mut other = hooli.linked(&acme).await.unwrap();
    let mut link = globex.linked(&acme).await.unwrap();
    let say = async |link: &mut Linked, statements: Vec<String>| {
        let news = TrustNews {
            statements,
            ..TrustNews::default()
        };
        link.say(Kind::TrustNews, None, &news).await.unwrap();
    };
    let known = statement(&globex, "org-0", 50, 1, now);
    say(&mut link, vec![known]).await;
    for round in 0_u64..24 {
        let trustee = |n: u64| format!("org-{}", 1 + (round * 64 + n) % 400);
        let statements = (0..64).map(|n| statement(&globex, &trustee(n), 50, round + 1, now));
        say(&mut link, statements.collect()).await;
    }
    say(&mut other, vec![statement(&hooli, "globex", 50, 1, now)]).await;
    until("others are heard", || acme_knows(&acme, &hooli, 1)).await;
    let graph = || {
        let told = acme.broker.core().state.trust.tellable(acme.org(), now);
        let place = ("globex".parse().unwrap(), "org-0".parse().unwrap());
        told.others.get(&place).cloned()
    };
    // Its share is used up: it raises nothing more, and takes back what it likes.
    let raised = statement(&globex, "org-0", 60, 100, now);
    let lowered = statement(&globex, "org-0", 0, 101, now);
    say(&mut link, vec![raised.clone()]).await;
    say(&mut link, vec![lowered.clone()]).await;
    until("it is taken back", || {
        graph().is_some_and(|text| *text == *lowered)
    })
    .await;
    assert!(acme_knows(&acme, &globex, TRUST_STATEMENTS_PER_MAKER_MAX));
}
