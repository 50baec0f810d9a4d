//! What a peer may try with tools behind it, with calls through it, and with what it says of others' keys.

use std::time::Duration;

use broker::voice::Voice;
use proto_spec::message::{Advert, AdvertisedTool, RevocationHead, ToolsDiscovered};
use proto_spec::{Code, Kind, SigningKey};
use serde_json::json;
use tests::lab::{Actor, Lab, hears_refusal};
use tests::peer::{Hand, Linked, certificate};

use super::federation::until;
use super::hostile_peer::{Scene, add, advertised};

/// A tool of initech's, as a peer in front of it advertises it.
fn behind(provider: &Actor, tool: &str, requires: &str) -> AdvertisedTool {
    let mut tool = advertised(provider, tool);
    tool.tool.via = vec![provider.id.org().clone()];
    tool.tool.tool.capability = Some(requires.parse().unwrap());
    tool
}

async fn advertise(link: &mut Linked, lab: &Lab, tools: Vec<AdvertisedTool>) {
    let advert = Advert {
        seq: 1,
        tools,
        gone: Vec::new(),
        expires: lab.now().later(Duration::from_secs(300)),
    };
    link.say(Kind::Advert, None, &advert).await.unwrap();
}

async fn until_known(lab: &Lab, hand: &Hand) {
    let links = &lab.broker.core().state.links;
    let known = || {
        links
            .of(&hand.org)
            .is_some_and(|link| link.tool_count() == 1)
    };
    until("its advert", known).await;
}

#[tokio::test]
async fn what_lies_behind_a_peer_requires_the_right_to_go_through_it() {
    let scene = Scene::begin().await;
    let far = scene.agent("db", "initech", 0x71);
    for requires in ["chat.say", "peer.hooli.db.query", "db.query"] {
        let mut link = scene.globex.linked(&scene.acme).await.unwrap();
        let tools = vec![behind(&far, "db.query", requires)];
        advertise(&mut link, &scene.acme, tools).await;
        link.closes().await.unwrap();
    }
    let mut link = scene.globex.linked(&scene.acme).await.unwrap();
    let tools = vec![behind(&far, "db.query", "peer.initech.db.query")];
    advertise(&mut link, &scene.acme, tools).await;
    until_known(&scene.acme, &scene.globex).await;
}

#[tokio::test]
async fn a_way_that_the_caller_may_not_use_is_not_in_the_way_of_one_that_it_may() {
    let scene = Scene::begin().await;
    let acme = &scene.acme;
    // Its name comes before globex.
    let hostile = Hand::new("aaa", 0x62).unwrap();
    add(acme, &hostile).await;
    let far = scene.agent("db", "initech", 0x71);
    let tools = || vec![behind(&far, "db.query", "peer.initech.db.query")];
    let mut wrong = hostile.linked(acme).await.unwrap();
    advertise(&mut wrong, acme, tools()).await;
    let mut right = scene.globex.linked(acme).await.unwrap();
    advertise(&mut right, acme, tools()).await;
    until_known(acme, &hostile).await;
    until_known(acme, &scene.globex).await;
    let caller = acme
        .agent("own", 5, &["peer.globex.peer.initech.*"])
        .await
        .unwrap();
    let ask = caller.seal(
        Kind::DiscoverTools,
        &caller.broker(),
        acme.now(),
        &json!({}),
    );
    let reply = acme.post(ask.unwrap().bytes).await.unwrap();
    let found: ToolsDiscovered = reply.envelope().unwrap().read_body().unwrap();
    let ways: Vec<_> = found.tools.iter().map(|one| one.via[0].as_str()).collect();
    assert_eq!(ways, ["globex"]);
    let mut calling = acme.attach(&caller).await.unwrap();
    let call = caller.call("db@initech", "db.query", &json!({}), acme.now());
    calling.send(call.unwrap().bytes).await.unwrap();
    // No grant came with the adverts: the way that it may use is the one that says so.
    assert_eq!(
        hears_refusal(&mut calling).await.unwrap(),
        Code::Unavailable
    );
    let other = acme.agent("other", 6, &["peer.globex.db.*"]).await.unwrap();
    let mut calling = acme.attach(&other).await.unwrap();
    let call = other.call("db@initech", "db.query", &json!({}), acme.now());
    calling.send(call.unwrap().bytes).await.unwrap();
    assert_eq!(hears_refusal(&mut calling).await.unwrap(), Code::Denied);
}

#[tokio::test]
async fn keys_that_a_peer_says_are_dead_are_told_to_nobody_else() {
    let scene = Scene::begin().await;
    let acme = &scene.acme;
    let initech = Hand::new("initech", 0x62).unwrap();
    add(acme, &initech).await;
    let mut hears = initech.linked(acme).await.unwrap();
    let stranger = scene.agent("x", "hooli", 0x71);
    let mut says = scene.globex.link(acme).await.unwrap();
    let head = RevocationHead {
        dead: vec![stranger.key.public()],
        ..says.head()
    };
    says.say(Kind::RevocationHead, None, &head).await.unwrap();
    let links = &acme.broker.core().state.links;
    let is_seen = || {
        let link = links.of(&scene.globex.org);
        link.is_some_and(|link| link.is_dead(&stranger.key.public()))
    };
    until("the head is taken", is_seen).await;
    let own = acme.agent("own", 5, &[]).await.unwrap();
    let revoke = json!({"name": "own"});
    let revoked = acme.ask(&acme.admin, Kind::AdminAgentRevoke, &revoke).await;
    revoked.unwrap();
    let dead = loop {
        let word = hears.word(Kind::RevocationHead).await.unwrap().unwrap();
        let head: RevocationHead = word.read_body().unwrap();
        if !head.dead.is_empty() {
            break head.dead;
        }
    };
    assert_eq!(dead, [own.key.public()]);
}

/// A caller says anew what its home broker calls stale: it was delivered to nobody. A peer may lie.
#[tokio::test]
async fn a_peer_that_calls_a_call_stale_has_it_made_no_second_time() {
    let scene = Scene::begin().await;
    let acme = &scene.acme;
    let (mut link, _granted) = super::hostile_peer::serves(&scene, "x.a").await;
    let own = acme.agent("own", 5, &["peer.globex.x.a"]).await.unwrap();
    let mut calling = acme.attach(&own).await.unwrap();
    let call = own.call("x@globex", "x.a", &json!({}), acme.now()).unwrap();
    calling.send(call.bytes).await.unwrap();
    link.frame().await.unwrap().unwrap();
    let stale = json!({"code": "STALE", "message": "say it again", "retryable": true});
    link.say(Kind::Error, Some(call.id), &stale).await.unwrap();
    assert_eq!(
        hears_refusal(&mut calling).await.unwrap(),
        Code::Unavailable
    );
}

#[tokio::test]
async fn the_key_that_a_peer_had_before_is_nobodys() {
    let scene = Scene::begin().await;
    let (acme, old) = (&scene.acme, &scene.globex);
    let mut new = Hand::new("globex", 0x66).unwrap();
    new.tls = certificate().unwrap();
    let now = acme.now();
    let voice = Voice::new(SigningKey::from_seed(old.key.seed()), old.org.clone(), 7);
    let succession = voice.name_successor(&new.key, now).unwrap();
    let (mut wire, exporter) = new.knock(acme, &new.tls).await.unwrap();
    let attach = new.attach_after(acme, exporter, vec![succession]).unwrap();
    wire.send(attach).await.unwrap();
    let peers = &acme.broker.core().state.peers;
    let is_known = || peers.find(&old.org).unwrap().key == new.key.public();
    until("the next key is on record", is_known).await;
    let mut link = old.link(acme).await.unwrap();
    link.closes().await.unwrap();
}

/// Half of a message, and no more: whoever waits for the rest waits five seconds.
#[tokio::test]
async fn a_peer_that_stalls_in_the_middle_of_a_message_loses_its_link() {
    let scene = Scene::begin().await;
    let mut link = scene.globex.linked(&scene.acme).await.unwrap();
    link.begin(b"{\"type\":\"advert\",").await.unwrap();
    link.closes().await.unwrap();
}
