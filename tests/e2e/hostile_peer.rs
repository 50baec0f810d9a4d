//! What a peer may try, and what comes of it: a code, an end of its own link, and nothing for anybody else.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::FutureExt as _;
use proto_spec::capability::{encode_text, issue};
use proto_spec::frame::Relay;
use proto_spec::message::{
    Ack, Advert, AdvertisedTool, DiscoveredTool, RevocationHead, ToolsDiscovered,
};
use proto_spec::{Code, Digest, Envelope, Kind, SigningKey};
use serde_json::{Value, json};
use tests::lab::{Actor, Lab, code_of, hears_refusal, tool};
use tests::peer::{Hand, Linked, certificate};
use tests::wire::Socket;

use crate::federation::until;

/// acme, its `fs`, and globex in a test's hand, granted `fs.*`.
pub(super) struct Scene {
    pub(super) acme: Lab,
    fs: Actor,
    serving: Socket,
    pub(super) globex: Hand,
}

pub(super) async fn add(lab: &Lab, hand: &Hand) {
    let body = json!({
        "descriptor": hand.descriptor(lab.now()).unwrap(),
        "key": hand.key.public(),
    });
    let added = lab.ask(&lab.admin, Kind::AdminPeerAdd, &body).await;
    assert!(matches!(added.unwrap(), Ack::Peers { .. }));
}

async fn grant(lab: &Lab, org: &str) -> Digest {
    grant_with(lab, json!({"org": org, "capabilities": ["fs.*"]})).await
}

async fn grant_with(lab: &Lab, body: Value) -> Digest {
    match lab
        .ask(&lab.admin, Kind::AdminPeerGrant, &body)
        .await
        .unwrap()
    {
        Ack::Issued { id, .. } => id,
        other => panic!("{other:?}"),
    }
}

impl Scene {
    pub(super) async fn begin() -> Self {
        Self::with_limits("").await
    }

    pub(super) async fn with_limits(limits: &str) -> Self {
        let acme = Lab::with_limits(limits).await.unwrap();
        let fs = acme.agent("fs", 2, &[]).await.unwrap();
        let serving = acme.provide(&fs, &["fs.read"]).await.unwrap();
        let globex = Hand::new("globex", 0x61).unwrap();
        add(&acme, &globex).await;
        grant(&acme, "globex").await;
        Self {
            acme,
            fs,
            serving,
            globex,
        }
    }

    pub(super) fn agent(&self, name: &str, org: &str, seed: u8) -> Actor {
        Actor::of(&org.parse().unwrap(), name, seed).unwrap()
    }

    fn call(&self, caller: &Actor) -> proto_spec::Sealed {
        caller
            .call("fs@acme", "fs.read", &json!({}), self.acme.now())
            .unwrap()
    }

    /// That an honest call of globex still comes through, on a new link.
    async fn goes_on(&mut self) {
        let mut link = self.globex.linked(&self.acme).await.unwrap();
        let grant = link.granted(1).await.unwrap().remove(0);
        let caller = self.agent("honest", "globex", 0x77);
        let token = self
            .globex
            .introduce(&grant, &caller, self.acme.now())
            .unwrap();
        let call = self.call(&caller);
        link.relay(&call.bytes, vec![token]).await.unwrap();
        // What the link before left in flight is cancelled.
        let delivered = self.serving.delivery().await.unwrap();
        let result = self.acme.result(&self.fs, &delivered, &json!(1)).unwrap();
        self.serving.send(result.bytes.clone()).await.unwrap();
        let frame = link.frame().await.unwrap().unwrap();
        assert_eq!(frame.envelope, result.bytes);
    }
}

/// What the broker says about a call that was relayed.
pub(super) async fn refusal(link: &mut Linked, call: Digest) -> Code {
    let word = link.word(Kind::Error).await.unwrap().unwrap();
    assert_eq!(word.re(), Some(call));
    code_of(&word).unwrap()
}

#[tokio::test]
async fn a_peer_that_forges_its_own_agents_or_borrows_anothers_token_is_refused() {
    let mut scene = Scene::begin().await;
    let mut link = scene.globex.linked(&scene.acme).await.unwrap();
    let grant = link.granted(1).await.unwrap().remove(0);
    let now = scene.acme.now();
    let (x, y) = (
        scene.agent("x", "globex", 0x71),
        scene.agent("y", "globex", 0x72),
    );
    let token = scene.globex.introduce(&grant, &x, now).unwrap();
    // x's name under y's key.
    let forged = Actor {
        id: x.id.clone(),
        key: SigningKey::from_seed(&[0x72; 32]),
    };
    let call = scene.call(&forged);
    link.relay(&call.bytes, vec![token.clone()]).await.unwrap();
    assert_eq!(refusal(&mut link, call.id).await, Code::NotAuthentic);
    // y with x's token.
    let call = scene.call(&y);
    link.relay(&call.bytes, vec![token.clone()]).await.unwrap();
    assert_eq!(refusal(&mut link, call.id).await, Code::NotAuthentic);
    // Nobody introduced x.
    let call = scene.call(&x);
    link.relay(&call.bytes, Vec::new()).await.unwrap();
    assert_eq!(refusal(&mut link, call.id).await, Code::NotAuthentic);
    // The same call twice.
    let call = scene.call(&x);
    link.relay(&call.bytes, vec![token.clone()]).await.unwrap();
    scene.serving.hear().await.unwrap().delivered().unwrap();
    link.relay(&call.bytes, vec![token]).await.unwrap();
    assert_eq!(refusal(&mut link, call.id).await, Code::Replayed);
    scene.goes_on().await;
}

#[tokio::test]
async fn a_peer_speaks_for_no_other_organisation_and_for_none_of_ours() {
    let mut scene = Scene::begin().await;
    let mut link = scene.globex.linked(&scene.acme).await.unwrap();
    let grant = link.granted(1).await.unwrap().remove(0);
    let now = scene.acme.now();
    for (name, org) in [("x", "initech"), ("fs", "acme")] {
        let other = scene.agent(name, org, 0x73);
        assert!(
            scene.globex.introduce(&grant, &other, now).is_err(),
            "no such token can be made with our tools"
        );
    }
    // What one of our own agents signs, sent by a peer.
    let call = scene.call(&scene.acme.agent("own", 5, &["fs.*"]).await.unwrap());
    link.relay(&call.bytes, Vec::new()).await.unwrap();
    assert_eq!(refusal(&mut link, call.id).await, Code::NotAuthentic);
    // A token of globex's own root.
    let terms = issue_terms(&scene);
    let root = SigningKey::from_seed(&[0x55; 32]);
    let foreign = issue::peer(&root, &"acme".parse().unwrap(), &terms, [3; 32]).unwrap();
    let x = scene.agent("x", "globex", 0x71);
    let token = scene
        .globex
        .introduce(&encode_text(&foreign), &x, now)
        .unwrap();
    let call = scene.call(&x);
    link.relay(&call.bytes, vec![token]).await.unwrap();
    assert_eq!(refusal(&mut link, call.id).await, Code::TokenInvalid);
    scene.goes_on().await;
}

fn issue_terms(scene: &Scene) -> proto_spec::capability::PeerTerms {
    let now = scene.acme.now();
    proto_spec::capability::PeerTerms {
        peer: "globex".parse().unwrap(),
        holder: scene.globex.key.public(),
        capabilities: vec!["fs.*".parse().unwrap()],
        issued: now,
        expires: now.later(Duration::from_secs(3_600)),
        checks: Vec::new(),
        depth: 0,
    }
}

#[tokio::test]
async fn a_peers_token_is_worth_nothing_outside_its_own_link() {
    let scene = Scene::begin().await;
    let mut link = scene.globex.linked(&scene.acme).await.unwrap();
    let grant = link.granted(1).await.unwrap().remove(0);
    let now = scene.acme.now();
    // Presented at /fem by an agent of ours whose key the peer introduced.
    let own = scene.acme.agent("own", 5, &[]).await.unwrap();
    let borrowed = Actor {
        id: "own@globex".parse().unwrap(),
        key: SigningKey::from_seed(own.key.seed()),
    };
    let token = scene.globex.introduce(&grant, &borrowed, now).unwrap();
    let extra = tests::lab::Extra {
        token: Some(String::from_utf8(token.to_vec()).unwrap()),
        ..tests::lab::Extra::default()
    };
    let to = "fs@acme".parse().unwrap();
    let body = json!({"tool": "fs.read"});
    let call = own
        .seal_with(Kind::ToolCall, &to, now, &body, &extra)
        .unwrap();
    let reply = scene.acme.post(call.bytes).await.unwrap();
    let code = code_of(&reply.envelope().unwrap()).unwrap();
    assert!(
        matches!(code, Code::TokenMalformed | Code::NotHolder),
        "{code}"
    );
    // And on another peer's link.
    let initech = Hand::new("initech", 0x62).unwrap();
    add(&scene.acme, &initech).await;
    let mut other = initech.linked(&scene.acme).await.unwrap();
    let x = scene.agent("x", "globex", 0x71);
    let token = scene.globex.introduce(&grant, &x, now).unwrap();
    let call = scene.call(&x);
    other.relay(&call.bytes, vec![token]).await.unwrap();
    assert_eq!(refusal(&mut other, call.id).await, Code::NotAuthentic);
}

#[tokio::test]
async fn nobody_becomes_a_peer_by_knocking_and_no_link_outlives_what_proves_it() {
    let mut scene = Scene::begin().await;
    // Not a peer at all; and a peer's name without its certificate looks the same as far as it goes.
    let stranger = Hand::new("hooli", 0x63).unwrap();
    let mut link = stranger.link(&scene.acme).await.unwrap();
    link.closes().await.unwrap();
    // The peer's name under another key.
    let thief = Hand {
        key: SigningKey::from_seed(&[0x64; 32]),
        ..Hand::new("globex", 0x61).unwrap()
    };
    let mut link = thief.link(&scene.acme).await.unwrap();
    link.closes().await.unwrap();
    // What was said on another connection.
    let (_, exporter) = scene
        .globex
        .knock(&scene.acme, &scene.globex.tls)
        .await
        .unwrap();
    let (mut wire, _) = scene
        .globex
        .knock(&scene.acme, &scene.globex.tls)
        .await
        .unwrap();
    wire.send(scene.globex.attach(&scene.acme, exporter).unwrap())
        .await
        .unwrap();
    assert!(wire.next().await.unwrap().is_none(), "it is closed");
    // A certificate that its descriptor does not name.
    let other = certificate().unwrap();
    let (mut wire, exporter) = scene.globex.knock(&scene.acme, &other).await.unwrap();
    wire.send(scene.globex.attach(&scene.acme, exporter).unwrap())
        .await
        .unwrap();
    assert!(wire.next().await.unwrap().is_none(), "it is closed");
    // A new certificate that it does name is a rotation, and needs no admin.
    scene.globex.tls = other;
    scene.goes_on().await;
}

pub(super) fn advertised(agent: &Actor, name: &str) -> AdvertisedTool {
    AdvertisedTool {
        tool: DiscoveredTool {
            agent: agent.id.clone(),
            key: agent.key.public(),
            tool: tool(name).unwrap(),
            checks: Vec::new(),
            via: Vec::new(),
            unsigned: None,
        },
        grants: Vec::new(),
        onward: Vec::new(),
    }
}

#[tokio::test]
async fn an_advert_that_lies_or_is_beyond_its_bound_ends_the_link_and_is_not_taken() {
    let mut scene = Scene::begin().await;
    let now = scene.acme.now();
    let expires = now.later(Duration::from_secs(300));
    let own = scene.agent("x", "globex", 0x71);
    let other = scene.agent("x", "initech", 0x71);
    let ours = scene.agent("fs", "acme", 0x71);
    let first = |tools: Vec<AdvertisedTool>| Advert {
        seq: 1,
        tools,
        gone: Vec::new(),
        expires,
    };
    let crowd = (0..10_001).map(|n| advertised(&own, &format!("x.t{n}")));
    let twice = Actor {
        id: own.id.clone(),
        key: SigningKey::from_seed(&[0x72; 32]),
    };
    let heavy = |name: &str, bytes: usize| {
        let mut tool = advertised(&own, name);
        tool.tool.checks = vec!["c".repeat(bytes)];
        tool
    };
    let through_us = |via: &[&str]| {
        let mut tool = advertised(&other, "x.a");
        tool.tool.via = via.iter().map(|org| org.parse().unwrap()).collect();
        tool
    };
    let bad = [
        first(vec![advertised(&other, "x.a")]),
        first(vec![advertised(&ours, "fs.read")]),
        first(vec![through_us(&["hooli"])]),
        first(vec![through_us(&["hooli", "initech"])]),
        first(vec![advertised(&own, "x.a"), advertised(&twice, "x.b")]),
        first(crowd.collect()),
        first(vec![heavy("x.a", 65_536)]),
        Advert {
            seq: 2,
            ..first(Vec::new())
        },
        Advert {
            expires: now.later(Duration::from_secs(86_400)),
            ..first(Vec::new())
        },
    ];
    for advert in bad {
        let mut link = scene.globex.linked(&scene.acme).await.unwrap();
        link.say(Kind::Advert, None, &advert).await.unwrap();
        link.closes().await.unwrap();
        let links = &scene.acme.broker.core().state.links;
        let known = links.of(&scene.globex.org).map(|link| link.tool_count());
        assert!(matches!(known, None | Some(0)));
    }
    scene.goes_on().await;
}

#[tokio::test]
async fn a_head_that_lies_ends_the_link_and_dead_keys_that_are_not_its_own_strike_nobody_elses() {
    let mut scene = Scene::begin().await;
    let now = scene.acme.now();
    let head = RevocationHead {
        seq: 1,
        dead: Vec::new(),
        tick: now,
        echo: None,
    };
    let bad = [
        RevocationHead {
            seq: 2,
            ..head.clone()
        },
        RevocationHead {
            echo: Some(now.later(Duration::from_secs(60))),
            ..head.clone()
        },
    ];
    for head in bad {
        let mut link = scene.globex.link(&scene.acme).await.unwrap();
        link.say(Kind::RevocationHead, None, &head).await.unwrap();
        link.closes().await.unwrap();
    }
    // It says that our own agent's key, and our own broker's, are dead.
    let own = scene.acme.agent("own", 5, &["fs.*"]).await.unwrap();
    let mut link = scene.globex.link(&scene.acme).await.unwrap();
    let dead = vec![
        own.key.public(),
        scene.fs.key.public(),
        scene.acme.broker_key(),
    ];
    link.say(Kind::RevocationHead, None, &RevocationHead { dead, ..head })
        .await
        .unwrap();
    let seen = || {
        let links = &scene.acme.broker.core().state.links;
        links
            .of(&scene.globex.org)
            .is_some_and(|link| link.is_dead(&own.key.public()))
    };
    while !seen() {
        tokio::task::yield_now().await;
    }
    let mut calling = scene.acme.attach(&own).await.unwrap();
    let call = scene.call(&own);
    calling.send(call.bytes).await.unwrap();
    let delivered = scene.serving.hear().await.unwrap().delivered().unwrap();
    let result = scene.acme.result(&scene.fs, &delivered, &json!(1)).unwrap();
    scene.serving.send(result.bytes).await.unwrap();
    calling.hear().await.unwrap().delivered().unwrap();
    scene.goes_on().await;
}

/// globex, serving a tool of its `x` that it granted to acme.
pub(super) async fn serves(scene: &Scene, name: &str) -> (Linked, Actor) {
    let provider = scene.agent("x", "globex", 0x71);
    let root = SigningKey::from_seed(&[0x55; 32]);
    let terms = proto_spec::capability::PeerTerms {
        peer: "acme".parse().unwrap(),
        holder: scene.acme.broker_key(),
        ..issue_terms(scene)
    };
    let granted = issue::peer(&root, &scene.globex.org, &terms, [3; 32]).unwrap();
    let said = proto_spec::capability::Claims::read(&granted).unwrap();
    let mut tool = advertised(&provider, name);
    tool.grants = vec![said.blocks()[0].id().0];
    let mut link = scene.globex.linked(&scene.acme).await.unwrap();
    let tokens = json!({"tokens": [encode_text(&granted)]});
    link.say(Kind::PeerTokens, None, &tokens).await.unwrap();
    let advert = Advert {
        seq: 1,
        tools: vec![tool],
        gone: Vec::new(),
        expires: scene.acme.now().later(Duration::from_secs(300)),
    };
    link.say(Kind::Advert, None, &advert).await.unwrap();
    let links = &scene.acme.broker.core().state.links;
    until("the tool is known", || {
        let link = links.of(&scene.globex.org);
        link.is_some_and(|link| link.tool_count() == 1)
    })
    .await;
    (link, provider)
}

#[tokio::test]
async fn an_answer_is_taken_only_over_the_link_to_which_the_call_was_given() {
    let scene = Scene::begin().await;
    let now = scene.acme.now();
    let provider = scene.agent("x", "globex", 0x71);
    let (mut link, _) = serves(&scene, "x.a").await;
    let own = ["peer.globex.x.a"];
    let own = scene.acme.agent("own", 5, &own).await.unwrap();
    let mut calling = scene.acme.attach(&own).await.unwrap();
    let call = own.call("x@globex", "x.a", &json!({}), now).unwrap();
    calling.send(call.bytes.clone()).await.unwrap();
    let frame = link.frame().await.unwrap().unwrap();
    assert_eq!((frame.envelope, frame.tokens.len()), (call.bytes, 1));
    let extra = tests::lab::Extra {
        re: Some(call.id),
        ..tests::lab::Extra::default()
    };
    let to = own.id.clone().into();
    let body = json!({"result": 1});
    let result = |by: &Actor| {
        let made = by.seal_with(Kind::ToolResult, &to, now, &body, &extra);
        made.unwrap()
    };
    // By another peer, in the provider's own words; by this peer, in another agent's.
    let initech = Hand::new("initech", 0x62).unwrap();
    add(&scene.acme, &initech).await;
    let mut other = initech.linked(&scene.acme).await.unwrap();
    let true_one = result(&provider);
    other.relay(&true_one.bytes, Vec::new()).await.unwrap();
    assert_eq!(refusal(&mut other, true_one.id).await, Code::NotAuthentic);
    let another = result(&scene.agent("y", "globex", 0x72));
    link.relay(&another.bytes, Vec::new()).await.unwrap();
    assert_eq!(refusal(&mut link, another.id).await, Code::NotAuthentic);
    link.relay(&true_one.bytes, Vec::new()).await.unwrap();
    let heard = calling.delivery().await.unwrap();
    assert_eq!(heard.bytes(), &true_one.bytes);
}

#[tokio::test]
async fn a_word_that_is_another_brokers_or_no_brokers_ends_the_link() {
    let mut scene = Scene::begin().await;
    let now = scene.acme.now();
    let to = scene.acme.admin.broker();
    let initech = Hand::new("initech", 0x62).unwrap();
    let words: Vec<bytes::Bytes> = vec![
        initech
            .say(
                Kind::PeerTokens,
                Some(&to),
                None,
                &json!({"tokens": []}),
                now,
            )
            .unwrap()
            .bytes,
        scene
            .globex
            .say(Kind::Ack, Some(&to), None, &json!({}), now)
            .unwrap()
            .bytes,
        scene
            .globex
            .say(Kind::PeerTokens, None, None, &json!({"tokens": []}), now)
            .unwrap()
            .bytes,
        scene
            .globex
            .say(
                Kind::PeerTokens,
                Some(&to),
                None,
                &json!({"tokens": ["AAAA"]}),
                now,
            )
            .unwrap()
            .bytes,
        bytes::Bytes::from_static(b"{}"),
        bytes::Bytes::from_static(&[0xfd, 9, 0, 0, 0, 0]),
    ];
    for word in words {
        let mut link = scene.globex.linked(&scene.acme).await.unwrap();
        link.send(word).await.unwrap();
        link.closes().await.unwrap();
    }
    scene.goes_on().await;
}

#[tokio::test]
async fn only_what_an_admin_allowed_is_dialled() {
    let scene = Scene::begin().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let initech = Hand::new("initech", 0x62).unwrap();
    let now = scene.acme.now();
    let body: Value = serde_json::from_str(&initech.descriptor(now).unwrap()).unwrap();
    let mut said = body["body"].clone();
    said["endpoints"] = json!([address]);
    let descriptor = initech
        .say(Kind::PeerDescriptor, None, None, &said, now)
        .unwrap();
    let text = String::from_utf8(descriptor.bytes.to_vec()).unwrap();
    let add_with = async |endpoints: Value| {
        let body = json!({
            "descriptor": text, "key": initech.key.public(), "endpoints": endpoints,
        });
        scene
            .acme
            .ask(&scene.acme.admin, Kind::AdminPeerAdd, &body)
            .await
    };
    // Not one of the descriptor's; not an endpoint; and none.
    assert!(add_with(json!(["127.0.0.1:1"])).await.is_err());
    assert!(add_with(json!(["http://127.0.0.1/"])).await.is_err());
    add_with(json!([])).await.unwrap();
    // Another, added after it, is dialled: whoever dials has been past the first.
    let (hooli, allowed) = (Hand::new("hooli", 0x63).unwrap(), "127.0.0.1:0");
    let other = tokio::net::TcpListener::bind(allowed).await.unwrap();
    let allowed = other.local_addr().unwrap().to_string();
    said["org"] = json!("hooli");
    said["key"] = json!(hooli.key.public());
    said["endpoints"] = json!([allowed]);
    let descriptor = hooli
        .say(Kind::PeerDescriptor, None, None, &said, now)
        .unwrap();
    let body = json!({
        "descriptor": String::from_utf8(descriptor.bytes.to_vec()).unwrap(),
        "key": hooli.key.public(), "endpoints": [allowed],
    });
    let added = scene.acme.ask(&scene.acme.admin, Kind::AdminPeerAdd, &body);
    added.await.unwrap();
    other.accept().await.unwrap();
    assert!(listener.accept().now_or_never().is_none(), "not dialled");
    add_with(json!([address])).await.unwrap();
    listener.accept().await.unwrap();
}

#[tokio::test]
async fn a_peer_has_a_bound_of_calls_in_flight_and_others_have_theirs() {
    let limits = "calls_per_peer_max = 4";
    let acme = Lab::with_limits(limits).await.unwrap();
    let fs = acme.agent("fs", 2, &[]).await.unwrap();
    let mut serving = acme.provide(&fs, &["fs.read"]).await.unwrap();
    let (globex, initech) = (
        Hand::new("globex", 0x61).unwrap(),
        Hand::new("initech", 0x62).unwrap(),
    );
    for hand in [&globex, &initech] {
        add(&acme, hand).await;
        grant(&acme, hand.org.as_str()).await;
    }
    let call = async |hand: &Hand, name: &str, link: &mut Linked, grant: &str| {
        let caller = Actor::of(&hand.org, name, 0x71).unwrap();
        let token = hand.introduce(grant, &caller, acme.now()).unwrap();
        let call = caller
            .call("fs@acme", "fs.read", &json!({}), acme.now())
            .unwrap();
        link.relay(&call.bytes, vec![token]).await.unwrap();
        call.id
    };
    let mut flood = globex.linked(&acme).await.unwrap();
    let held = flood.granted(1).await.unwrap().remove(0);
    // Nobody of them takes more than is left for the others.
    for (name, is_taken) in [
        ("greedy", true),
        ("greedy", true),
        ("greedy", false),
        ("late", true),
        ("late", false),
        ("last", true),
        ("beyond", false),
    ] {
        let id = call(&globex, name, &mut flood, &held).await;
        match is_taken {
            true => drop(serving.hear().await.unwrap().delivered().unwrap()),
            false => assert_eq!(refusal(&mut flood, id).await, Code::Busy, "{name}"),
        }
    }
    let mut other = initech.linked(&acme).await.unwrap();
    let held = other.granted(1).await.unwrap().remove(0);
    call(&initech, "x", &mut other, &held).await;
    serving.hear().await.unwrap().delivered().unwrap();
}

#[tokio::test]
async fn no_call_is_taken_before_the_first_head_of_its_link() {
    let mut scene = Scene::begin().await;
    let mut link = scene.globex.link(&scene.acme).await.unwrap();
    let grant = link.granted(1).await.unwrap().remove(0);
    let x = scene.agent("x", "globex", 0x71);
    let token = scene
        .globex
        .introduce(&grant, &x, scene.acme.now())
        .unwrap();
    let call = scene.call(&x);
    link.relay(&call.bytes, vec![token.clone()]).await.unwrap();
    assert_eq!(refusal(&mut link, call.id).await, Code::RevocationsStale);
    let head = link.head();
    link.say(Kind::RevocationHead, None, &head).await.unwrap();
    let call = scene.call(&x);
    link.relay(&call.bytes, vec![token]).await.unwrap();
    scene.serving.hear().await.unwrap().delivered().unwrap();
}

#[tokio::test]
async fn an_introduction_holds_for_ten_minutes_at_most() {
    let scene = Scene::begin().await;
    let mut link = scene.globex.linked(&scene.acme).await.unwrap();
    let grant = link.granted(1).await.unwrap().remove(0);
    let x = scene.agent("x", "globex", 0x71);
    let later = scene.acme.now().later(Duration::from_secs(600));
    let token = scene.globex.introduce(&grant, &x, later).unwrap();
    let call = scene.call(&x);
    link.relay(&call.bytes, vec![token]).await.unwrap();
    assert_eq!(refusal(&mut link, call.id).await, Code::NotHolder);
}

#[tokio::test]
async fn a_stranger_cannot_tell_who_is_a_peer() {
    let scene = Scene::begin().await;
    let (acme, globex) = (&scene.acme, &scene.globex);
    let stranger = Hand::new("hooli", 0x63).unwrap();
    // Under its own name, and under a peer's: each is greeted alike, and closed alike.
    let borrowed = Hand {
        key: SigningKey::from_seed(&[0x64; 32]),
        ..Hand::new("globex", 0x61).unwrap()
    };
    for hand in [&stranger, &borrowed] {
        let (mut wire, exporter) = hand.knock(acme, &hand.tls).await.unwrap();
        wire.send(hand.attach(acme, exporter).unwrap())
            .await
            .unwrap();
        assert!(wire.next().await.unwrap().is_none(), "it is closed");
    }
    // And a peer that is paused looks like a stranger to itself.
    let body = json!({"org": "globex"});
    let paused = acme.ask(&acme.admin, Kind::AdminPeerPause, &body).await;
    paused.unwrap();
    let mut link = globex.link(acme).await.unwrap();
    link.closes().await.unwrap();
}

#[tokio::test]
async fn a_peers_event_is_its_own_agents_on_its_own_topic_and_comes_once() {
    let scene = Scene::begin().await;
    let acme = &scene.acme;
    let right = ["peer.globex.event.subscribe.*", "event.subscribe.*"];
    let own = acme.agent("own", 5, &right).await.unwrap();
    let mut hears = acme.attach(&own).await.unwrap();
    let body = json!({"topics": ["peer.globex.build.*", "build.*"]});
    let asked = own.seal(Kind::Subscribe, &own.broker(), acme.now(), &body);
    hears.send(asked.unwrap().bytes).await.unwrap();
    hears.hear().await.unwrap().said().unwrap();
    let mut link = scene.globex.linked(acme).await.unwrap();
    let event = |by: &Actor, to: &str, n: u64| {
        let to = to.parse().unwrap();
        let made = by.seal(Kind::EmitEvent, &to, acme.now(), &json!({"data": n}));
        String::from_utf8(made.unwrap().bytes.to_vec()).unwrap()
    };
    let (ci, far) = (
        scene.agent("ci", "globex", 0x71),
        scene.agent("ci", "initech", 0x71),
    );
    let ours = scene.agent("ci", "acme", 0x71);
    let honest = event(&ci, "topic:globex/build.done", 1);
    let words = [
        event(&ours, "topic:acme/build.done", 2),
        event(&ours, "topic:globex/build.done", 3),
        event(&far, "topic:globex/build.done", 4),
        event(&ci, "topic:acme/build.done", 5),
        event(&ci, "topic:initech/build.done", 6),
        honest.clone(),
        honest.clone(),
        event(&ci, "topic:globex/build.done", 7),
    ];
    for event in &words {
        let said = json!({"for": [own.id], "key": ci.key.public(), "event": event});
        link.say(Kind::PeerEvent, None, &said).await.unwrap();
    }
    // Under another key than the one that the peer says.
    let said = json!({"for": [own.id], "key": own.key.public(), "event": honest});
    link.say(Kind::PeerEvent, None, &said).await.unwrap();
    // For somebody who does not listen.
    let last = event(&ci, "topic:globex/build.last", 8);
    for who in ["fs@acme", "own@acme"] {
        let said = json!({"for": [who], "key": ci.key.public(), "event": last});
        link.say(Kind::PeerEvent, None, &said).await.unwrap();
    }
    for expected in [&words[5], &words[7]] {
        let heard = hears.hear().await.unwrap().delivered().unwrap();
        assert_eq!(heard.bytes(), expected.as_bytes());
    }
    let late = event(&ci, "topic:globex/build.last", 9);
    let said = json!({"for": [own.id], "key": ci.key.public(), "event": late});
    link.say(Kind::PeerEvent, None, &said).await.unwrap();
    let heard = hears.hear().await.unwrap().delivered().unwrap();
    assert_eq!(heard.bytes(), late.as_bytes());
}

#[tokio::test]
async fn a_link_over_which_nothing_comes_any_more_ends_by_itself() {
    let mut scene = Scene::begin().await;
    let mut link = scene.globex.link(&scene.acme).await.unwrap();
    // It reads what is said to it, and says nothing: not even what is dead.
    link.closes().await.unwrap();
    let links = &scene.acme.broker.core().state.links;
    assert!(links.of(&scene.globex.org).is_none());
    scene.goes_on().await;
}

#[tokio::test]
async fn a_call_through_a_third_is_as_old_as_that_ones_view_of_the_home_and_ours_of_it_together() {
    let mut scene = Scene::begin().await;
    let initech = Hand::new("initech", 0x62).unwrap();
    let body = json!({"org": "globex", "capabilities": ["fs.*"], "depth": 1});
    grant_with(&scene.acme, body).await;
    let mut link = scene.globex.linked(&scene.acme).await.unwrap();
    let held = link.granted(2).await.unwrap();
    let x = scene.agent("x", "initech", 0x71);
    let now = scene.acme.now();
    // One of the two may go on.
    let passed = held.iter().filter_map(|grant| {
        let grant = scene.globex.pass_on(grant, &initech).ok()?;
        initech.introduce(&grant, &x, now).ok()
    });
    let tokens: Vec<_> = passed.collect();
    let seconds = Duration::from_secs;
    // The bound is 10 s.
    for (ours, theirs, is_taken) in [
        (0, None, false),
        (0, Some(11), false),
        (0, Some(9), true),
        (5, Some(6), false),
        (0, Some(4), true),
    ] {
        scene.acme.broker.core().clock.advance(seconds(ours));
        let call = scene.call(&x);
        let relay = Relay {
            tokens: tokens.clone(),
            visited: vec![initech.org.clone(), scene.globex.org.clone()],
            age: theirs.map(seconds),
            envelope: call.bytes.clone(),
            ..Relay::default()
        };
        link.pass(&relay).await.unwrap();
        if is_taken {
            let delivered = scene.serving.delivery().await.unwrap();
            assert_eq!(delivered.bytes(), &call.bytes, "{ours} {theirs:?}");
        } else {
            assert_eq!(refusal(&mut link, call.id).await, Code::RevocationsStale);
        }
    }
}

/// What comes of calls over a link: so many results, and these codes for the others.
async fn outcomes(link: &mut Linked, mut calls: HashSet<Digest>) -> (usize, Vec<Code>) {
    let (mut results, mut codes) = (0, Vec::new());
    while !calls.is_empty() {
        let said = link.heard().await.unwrap().expect("the link is up");
        let ended = said.re().is_some_and(|id| calls.remove(&id));
        match said.kind() {
            Kind::ToolResult if ended => results += 1,
            Kind::Error if ended => codes.push(code_of(&said).unwrap()),
            _ => {}
        }
    }
    (results, codes)
}

#[tokio::test]
async fn results_that_find_no_room_on_a_link_end_their_own_calls_and_nobody_elses() {
    let limits = "envelope_bytes_max = 2097152\noutbox_bytes_max = 4194304";
    let mut scene = Scene::with_limits(limits).await;
    let mut link = scene.globex.linked(&scene.acme).await.unwrap();
    let grant = link.granted(1).await.unwrap().remove(0);
    let now = scene.acme.now();
    let greedy = scene.agent("greedy", "globex", 0x71);
    let token = scene.globex.introduce(&grant, &greedy, now).unwrap();
    let (mut calls, mut delivered) = (HashSet::new(), Vec::new());
    for _ in 0..32 {
        let call = scene.call(&greedy);
        link.relay(&call.bytes, vec![token.clone()]).await.unwrap();
        delivered.push(scene.serving.delivery().await.unwrap());
        calls.insert(call.id);
    }
    // More than the link takes while globex does not read.
    let large = json!("x".repeat(1 << 20));
    for call in &delivered {
        let result = scene.acme.result(&scene.fs, call, &large).unwrap();
        scene.serving.send(result.bytes).await.unwrap();
    }
    let in_flight = &scene.acme.broker.core().state.calls;
    until("all are answered", || in_flight.is_empty()).await;
    let (results, codes) = outcomes(&mut link, calls).await;
    assert!(results > 0 && !codes.is_empty(), "{results} {codes:?}");
    assert!(codes.iter().all(|code| *code == Code::OutcomeUnknown));
    // It is the same link, and another's call goes through.
    let honest = scene.agent("honest", "globex", 0x77);
    let token = scene.globex.introduce(&grant, &honest, now).unwrap();
    let call = scene.call(&honest);
    link.relay(&call.bytes, vec![token]).await.unwrap();
    let delivered = scene.serving.delivery().await.unwrap();
    let result = scene.acme.result(&scene.fs, &delivered, &json!(1)).unwrap();
    scene.serving.send(result.bytes).await.unwrap();
    let ended = outcomes(&mut link, [call.id].into()).await;
    assert_eq!(ended, (1, Vec::new()));
}

#[tokio::test]
async fn an_agent_that_fills_a_link_is_busy_and_others_and_the_broker_are_heard() {
    let limits = "envelope_bytes_max = 2097152\noutbox_bytes_max = 4194304";
    let scene = Scene::with_limits(limits).await;
    let (mut link, _) = serves(&scene, "x.a").await;
    let mut sessions = Vec::new();
    for (name, seed) in [("greedy", 5), ("late", 6)] {
        let agent = ["peer.globex.x.a"];
        let agent = scene.acme.agent(name, seed, &agent).await.unwrap();
        let socket = scene.acme.attach(&agent).await.unwrap();
        sessions.push((agent, socket));
    }
    let call = |agent: &Actor, bytes: usize| {
        let body = json!({"large": "x".repeat(bytes)});
        let call = agent.call("x@globex", "x.a", &body, scene.acme.now());
        call.unwrap()
    };
    let in_flight = &scene.acme.broker.core().state.calls;
    let (greedy, calling) = &mut sessions[0];
    let mut taken = 0;
    let refused = loop {
        calling.send(call(greedy, 1 << 20).bytes).await.unwrap();
        let heard = async {
            until("it is taken", || in_flight.len() > taken).await;
            None
        };
        let heard = tokio::select! {
            refused = hears_refusal(calling) => Some(refused.unwrap()),
            taken = heard => taken,
        };
        match heard {
            Some(code) => break code,
            None => taken += 1,
        }
    };
    assert_eq!(refused, Code::Busy);
    let (late, calling) = &mut sessions[1];
    let small = call(late, 1_000);
    calling.send(small.bytes.clone()).await.unwrap();
    until("it is taken", || in_flight.len() > taken).await;
    // globex begins to read: all that was taken is there, the broker's words among it.
    let (mut frames, mut heads) = (Vec::new(), 0);
    while frames.last() != Some(&small.bytes) {
        let bytes = link.bytes().await.unwrap().expect("the link is up");
        match Relay::decode(bytes.clone()) {
            Ok(relay) => frames.push(relay.envelope),
            Err(_) => {
                let word = Envelope::parse(bytes, 1 << 24).unwrap();
                heads += usize::from(word.kind() == Kind::RevocationHead);
            }
        }
    }
    assert_eq!(frames.len(), taken + 1);
    assert!(heads > 0);
}

#[tokio::test]
async fn progress_that_finds_no_room_is_dropped_and_the_answer_comes() {
    let limits = "outbox_max = 16\ncalls_per_session_max = 16";
    let mut scene = Scene::with_limits(limits).await;
    let own = scene.acme.agent("own", 5, &["fs.*"]).await.unwrap();
    let mut calling = scene.acme.attach(&own).await.unwrap();
    let now = scene.acme.now();
    let (to, back) = ("fs@acme".parse().unwrap(), own.id.clone().into());
    let body = json!({"tool": "fs.read", "progress": true});
    let call = own.seal(Kind::ToolCall, &to, now, &body).unwrap();
    calling.send(call.bytes).await.unwrap();
    let delivered = scene.serving.delivery().await.unwrap();
    let about = tests::lab::Extra {
        re: Some(call.id),
        ..tests::lab::Extra::default()
    };
    const SENT: u64 = 400;
    for seq in 1..=SENT {
        let body = json!({"seq": seq, "message": "x".repeat(64 << 10)});
        let kind = Kind::ToolProgress;
        let said = scene.fs.seal_with(kind, &back, now, &body, &about);
        scene.serving.send(said.unwrap().bytes).await.unwrap();
    }
    let result = scene.acme.result(&scene.fs, &delivered, &json!(1)).unwrap();
    scene.serving.send(result.bytes.clone()).await.unwrap();
    let in_flight = &scene.acme.broker.core().state.calls;
    until("it is answered", || in_flight.is_empty()).await;
    let mut heard = 0;
    while calling.delivery().await.unwrap().bytes() != &result.bytes {
        heard += 1;
    }
    assert!((1..SENT).contains(&heard), "{heard}");
}

#[tokio::test]
async fn what_the_next_broker_does_not_take_ends_one_call_and_no_link() {
    let mut scene = Scene::with_limits("envelope_bytes_max = 65536").await;
    scene.globex.envelope_bytes_max = 4_096;
    let (mut link, _) = serves(&scene, "x.a").await;
    let grant = link.granted(1).await.unwrap().remove(0);
    let now = scene.acme.now();
    // A call that is too large for globex.
    let own = ["peer.globex.x.a"];
    let own = scene.acme.agent("own", 5, &own).await.unwrap();
    let mut calling = scene.acme.attach(&own).await.unwrap();
    let large = json!({"large": "x".repeat(8_192)});
    let call = own.call("x@globex", "x.a", &large, now).unwrap();
    calling.send(call.bytes).await.unwrap();
    assert_eq!(hears_refusal(&mut calling).await.unwrap(), Code::TooLarge);
    // A result that is.
    let x = scene.agent("y", "globex", 0x72);
    let token = scene.globex.introduce(&grant, &x, now).unwrap();
    let call = scene.call(&x);
    link.relay(&call.bytes, vec![token.clone()]).await.unwrap();
    let delivered = scene.serving.delivery().await.unwrap();
    let result = scene.acme.result(&scene.fs, &delivered, &large).unwrap();
    scene.serving.send(result.bytes).await.unwrap();
    assert_eq!(refusal(&mut link, call.id).await, Code::TooLarge);
    // A call that is too large for acme, and was sent all the same.
    let large = json!({"large": "x".repeat(65_536)});
    let call = x.call("fs@acme", "fs.read", &large, now).unwrap();
    link.relay(&call.bytes, vec![token.clone()]).await.unwrap();
    assert_eq!(
        code_of(&link.word(Kind::Error).await.unwrap().unwrap()).unwrap(),
        Code::TooLarge
    );
    // A word that is larger than what acme takes of agents.
    let head = RevocationHead {
        seq: 2,
        dead: (0..2_000_u16)
            .map(|n| {
                let mut seed = [7; 32];
                seed[..2].copy_from_slice(&n.to_le_bytes());
                SigningKey::from_seed(&seed).public()
            })
            .collect(),
        tick: now,
        echo: None,
    };
    link.say(Kind::RevocationHead, None, &head).await.unwrap();
    let call = scene.call(&x);
    link.relay(&call.bytes, vec![token]).await.unwrap();
    scene.serving.delivery().await.unwrap();
}

#[tokio::test]
async fn what_peers_say_of_their_tools_breaks_no_page_of_discovery() {
    let scene = Scene::with_limits("envelope_bytes_max = 65536").await;
    let own = scene.agent("x", "globex", 0x71);
    let mut link = scene.globex.link(&scene.acme).await.unwrap();
    let tools = (0..20).map(|n| {
        let mut tool = advertised(&own, &format!("x.t{n}"));
        tool.tool.checks = vec!["c".repeat(50_000)];
        tool
    });
    let advert = Advert {
        seq: 1,
        tools: tools.collect(),
        gone: Vec::new(),
        expires: scene.acme.now().later(Duration::from_secs(300)),
    };
    link.say(Kind::Advert, None, &advert).await.unwrap();
    let links = &scene.acme.broker.core().state.links;
    until("the tools are known", || {
        let link = links.of(&scene.globex.org);
        link.is_some_and(|link| link.tool_count() == 20)
    })
    .await;
    let asker = scene
        .acme
        .agent("own", 5, &["peer.globex.*"])
        .await
        .unwrap();
    let mut asking = scene.acme.attach(&asker).await.unwrap();
    let (mut found, mut after) = (0, None);
    loop {
        let body = json!({ "after": after });
        let ask = asker.seal(
            Kind::DiscoverTools,
            &asker.broker(),
            scene.acme.now(),
            &body,
        );
        asking.send(ask.unwrap().bytes).await.unwrap();
        let page = asking.hear().await.unwrap().said().unwrap();
        assert!(page.bytes().len() < 70_000, "{}", page.bytes().len());
        let page: ToolsDiscovered = page.read_body().unwrap();
        found += page.tools.len();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, 20);
}
