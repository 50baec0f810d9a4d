//! Two organisations: peering, exposure, calls across, discovery, and taking it back.

use std::time::Duration;

use proto_spec::frame::Relay;
use std::sync::Arc;

use proto_spec::capability::Token;
use proto_spec::message::{Ack, PeerRecord, RevocationHead, ToolsDiscovered};
use proto_spec::{Code, Digest, Kind, Org};
use serde_json::json;
use tests::lab::{Actor, Extra, Lab, code_of, hears_refusal};
use tests::peer::Hand;
use tests::wire::{PATIENCE, Socket};

/// Two organisations whose brokers are peers of each other, linked.
pub(super) struct Pair {
    pub(super) acme: Lab,
    pub(super) globex: Lab,
}

/// Has `lab`'s admin sign its descriptor.
pub(super) async fn invite(lab: &Lab) -> String {
    let invited = lab.ask(&lab.admin, Kind::AdminPeerInvite, &json!({})).await;
    match invited.unwrap() {
        Ack::PeerInvited { descriptor } => descriptor,
        other => panic!("{other:?}"),
    }
}

/// Has `lab`'s admin take the organisation of this descriptor as a peer.
pub(super) async fn accept(lab: &Lab, other: &Lab, descriptor: &str) -> Vec<PeerRecord> {
    let said = proto_spec::peering::Descriptor::read(descriptor).unwrap();
    let body = json!({
        "descriptor": descriptor,
        "key": other.broker_key(),
        "endpoints": said.body().endpoints,
    });
    peers(
        lab.ask(&lab.admin, Kind::AdminPeerAdd, &body)
            .await
            .unwrap(),
    )
}

fn peers(ack: Ack) -> Vec<PeerRecord> {
    match ack {
        Ack::Peers { peers } => peers,
        other => panic!("{other:?}"),
    }
}

/// Waits until what another task brings about is so.
pub(super) async fn until(what: &str, is: impl Fn() -> bool) {
    let waiting = async {
        while !is() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("{what}"));
}

impl Pair {
    pub(super) async fn linked() -> Self {
        let globex = Lab::of("globex", "").await.unwrap();
        // Only one side needs to be reachable.
        let acme = Lab::start().await.unwrap();
        let globex = globex.reachable().await.unwrap();
        let (ours, theirs) = (invite(&acme).await, invite(&globex).await);
        accept(&globex, &acme, &ours).await;
        accept(&acme, &globex, &theirs).await;
        let pair = Self { acme, globex };
        pair.until_linked().await;
        pair
    }

    pub(super) async fn until_linked(&self) {
        let has = |lab: &Lab, org: &Org| lab.broker.core().state.links.of(org).is_some();
        until("both links are up", || {
            has(&self.acme, self.globex.org()) && has(&self.globex, self.acme.org())
        })
        .await;
    }

    /// Grants acme's agents something at globex.
    pub(super) async fn grant(&self, more: serde_json::Value) -> Digest {
        let mut body = json!({"org": "acme", "capabilities": ["fs.*"]});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let granted = self
            .globex
            .ask(&self.globex.admin, Kind::AdminPeerGrant, &body)
            .await;
        match granted.unwrap() {
            Ack::Issued { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until acme has heard of so many tools of globex.
    pub(super) async fn until_advertised(&self, tools: usize) {
        let link = || self.acme.broker.core().state.links.of(self.globex.org());
        let now = self.acme.now();
        until("adverts", || {
            link().is_some_and(|link| link.tools(now).len() == tools)
        })
        .await;
    }
}

/// globex's `fs`, serving `fs.read`.
pub(super) async fn provider(pair: &Pair) -> (Actor, Socket) {
    let actor = pair.globex.agent("fs", 2, &[]).await.unwrap();
    let socket = pair.globex.provide(&actor, &["fs.read"]).await.unwrap();
    (actor, socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_crosses_two_brokers_in_the_callers_own_words_and_comes_back_in_the_providers() {
    let pair = Pair::linked().await;
    let (fs, mut serving) = provider(&pair).await;
    pair.grant(json!({})).await;
    let caller = pair
        .acme
        .agent("x", 3, &["peer.globex.fs.*"])
        .await
        .unwrap();
    pair.until_advertised(1).await;
    let mut calling = pair.acme.attach(&caller).await.unwrap();
    let call = caller
        .call(
            "fs@globex",
            "fs.read",
            &json!({"path": "/a"}),
            pair.acme.now(),
        )
        .unwrap();
    calling.send(call.bytes.clone()).await.unwrap();
    let delivered = serving.hear().await.unwrap().delivered().unwrap();
    assert_eq!(delivered.bytes(), &call.bytes, "byte for byte");
    let result = pair
        .globex
        .result(&fs, &delivered, &json!({"text": "hello"}))
        .unwrap();
    serving.send(result.bytes.clone()).await.unwrap();
    let answered = calling.hear().await.unwrap().delivered().unwrap();
    assert_eq!(answered.bytes(), &result.bytes, "byte for byte");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_have_to_say_yes_and_discovery_shows_exactly_what_may_be_called() {
    let pair = Pair::linked().await;
    let (_fs, _serving) = provider(&pair).await;
    let found = async |caller: &Actor| {
        let sealed = caller
            .seal(
                Kind::DiscoverTools,
                &caller.broker(),
                pair.acme.now(),
                &json!({}),
            )
            .unwrap();
        let reply = pair
            .acme
            .post(sealed.bytes)
            .await
            .unwrap()
            .envelope()
            .unwrap();
        let found: ToolsDiscovered = reply.read_body().unwrap();
        let names = found
            .tools
            .iter()
            .map(|one| format!("{} {:?}", one.agent, one.via));
        names.collect::<Vec<_>>()
    };
    let call = async |caller: &Actor| {
        let mut calling = pair.acme.attach(caller).await.unwrap();
        let call = caller
            .call("fs@globex", "fs.read", &json!({}), pair.acme.now())
            .unwrap();
        calling.send(call.bytes).await.unwrap();
        hears_refusal(&mut calling).await.unwrap()
    };
    let entitled = pair
        .acme
        .agent("x", 3, &["peer.globex.fs.*"])
        .await
        .unwrap();
    let other = pair.acme.agent("y", 4, &["*"]).await.unwrap();
    // globex has granted nothing.
    assert_eq!(call(&entitled).await, Code::Unavailable);
    assert!(found(&entitled).await.is_empty());
    pair.grant(json!({})).await;
    pair.until_advertised(1).await;
    assert_eq!(found(&entitled).await, ["fs@globex [Org(\"globex\")]"]);
    // acme has granted nothing: all tools are not those of others.
    assert_eq!(call(&other).await, Code::Denied);
    assert!(found(&other).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_grant_of_a_peer_permits_nothing_from_then_on_and_ends_calls_in_flight() {
    let pair = Pair::linked().await;
    let (_fs, mut serving) = provider(&pair).await;
    let grant = pair.grant(json!({})).await;
    let caller = pair.acme.agent("x", 3, &["peer.globex.*"]).await.unwrap();
    pair.until_advertised(1).await;
    let mut calling = pair.acme.attach(&caller).await.unwrap();
    let call = async |calling: &mut Socket| {
        let call = caller
            .call("fs@globex", "fs.read", &json!({}), pair.acme.now())
            .unwrap();
        calling.send(call.bytes).await.unwrap();
    };
    call(&mut calling).await;
    serving.hear().await.unwrap().delivered().unwrap();
    let body = json!({"ids": [grant]});
    pair.globex
        .ask(&pair.globex.admin, Kind::AdminTokenRevoke, &body)
        .await
        .unwrap();
    assert_eq!(
        hears_refusal(&mut calling).await.unwrap(),
        Code::TokenRevoked
    );
    assert_eq!(
        serving.hear().await.unwrap().said().unwrap().kind(),
        Kind::ToolCancel
    );
    pair.until_advertised(0).await;
    call(&mut calling).await;
    assert_eq!(
        hears_refusal(&mut calling).await.unwrap(),
        Code::Unavailable
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_input_and_cancellation_cross_as_they_do_at_home() {
    let pair = Pair::linked().await;
    let (fs, mut serving) = provider(&pair).await;
    pair.grant(json!({})).await;
    let caller = pair.acme.agent("x", 3, &["peer.globex.*"]).await.unwrap();
    pair.until_advertised(1).await;
    let mut calling = pair.acme.attach(&caller).await.unwrap();
    let body = json!({"tool": "fs.read", "arguments": {}, "progress": true});
    let to = "fs@globex".parse().unwrap();
    let call = caller
        .seal(Kind::ToolCall, &to, pair.acme.now(), &body)
        .unwrap();
    calling.send(call.bytes.clone()).await.unwrap();
    let delivered = serving.hear().await.unwrap().delivered().unwrap();
    let about = Extra {
        re: Some(call.id),
        ..Extra::default()
    };
    let back = delivered.speaker().clone().into();
    let progress = fs
        .seal_with(
            Kind::ToolProgress,
            &back,
            pair.globex.now(),
            &json!({"seq": 1}),
            &about,
        )
        .unwrap();
    serving.send(progress.bytes.clone()).await.unwrap();
    let heard = calling.hear().await.unwrap().delivered().unwrap();
    assert_eq!(heard.bytes(), &progress.bytes);
    for (kind, body) in [
        (Kind::ToolInput, json!({"input": 1})),
        (Kind::ToolCancel, json!({})),
    ] {
        let said = caller
            .seal_with(kind, &to, pair.acme.now(), &body, &about)
            .unwrap();
        calling.send(said.bytes.clone()).await.unwrap();
        let heard = serving.hear().await.unwrap().delivered().unwrap();
        assert_eq!(heard.bytes(), &said.bytes);
    }
    assert_eq!(hears_refusal(&mut calling).await.unwrap(), Code::Cancelled);
    until("no call is left", || {
        let calls = |lab: &Lab| lab.broker.core().state.calls.is_empty();
        calls(&pair.acme) && calls(&pair.globex)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_its_own_organisation_revokes_is_dead_at_the_peer_too() {
    let pair = Pair::linked().await;
    let (_fs, mut serving) = provider(&pair).await;
    pair.grant(json!({})).await;
    let caller = pair.acme.agent("x", 3, &["peer.globex.*"]).await.unwrap();
    pair.until_advertised(1).await;
    let mut calling = pair.acme.attach(&caller).await.unwrap();
    let call = caller
        .call("fs@globex", "fs.read", &json!({}), pair.acme.now())
        .unwrap();
    calling.send(call.bytes).await.unwrap();
    serving.hear().await.unwrap().delivered().unwrap();
    let body = json!({"name": "x"});
    let revoke = pair
        .acme
        .ask(&pair.acme.admin, Kind::AdminAgentRevoke, &body);
    revoke.await.unwrap();
    let told = serving.hear().await.unwrap().said().unwrap();
    assert_eq!(told.kind(), Kind::ToolCancel);
    let key = caller.key.public();
    let link = pair
        .globex
        .broker
        .core()
        .state
        .links
        .of(pair.acme.org())
        .unwrap();
    until("the key is known to be dead", || link.is_dead(&key)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_peer_is_not_linked_and_a_removed_one_holds_nothing_when_it_is_added_again() {
    let pair = Pair::linked().await;
    let (_fs, _serving) = provider(&pair).await;
    pair.grant(json!({})).await;
    pair.until_advertised(1).await;
    let name = json!({"org": "acme"});
    let ask = async |kind| {
        let done = pair.globex.ask(&pair.globex.admin, kind, &name).await;
        peers(done.unwrap())
    };
    let linked = || {
        let state = &pair.acme.broker.core().state;
        state.links.of(pair.globex.org()).is_some()
    };
    assert_eq!(ask(Kind::AdminPeerPause).await[0].link, "paused");
    until("the link goes down", || !linked()).await;
    ask(Kind::AdminPeerResume).await;
    until("the link comes up", linked).await;
    pair.until_advertised(1).await;
    assert!(ask(Kind::AdminPeerRemove).await.is_empty());
    until("the link goes down", || !linked()).await;
    let ours = invite(&pair.acme).await;
    let peers = accept(&pair.globex, &pair.acme, &ours).await;
    assert!(peers[0].grants.is_empty());
    pair.until_linked().await;
    pair.until_advertised(0).await;
}

/// acme, globex between, and initech, whose `fs` serves `fs.read`.
pub(super) async fn chain(depth: u32) -> (Pair, Lab, Actor, Socket) {
    let pair = Pair::linked().await;
    let initech = Lab::of("initech", "").await.unwrap();
    let (theirs, ours) = (invite(&pair.globex).await, invite(&initech).await);
    accept(&pair.globex, &initech, &ours).await;
    accept(&initech, &pair.globex, &theirs).await;
    let body = json!({"org": "globex", "capabilities": ["fs.*"], "depth": depth});
    let granted = initech.ask(&initech.admin, Kind::AdminPeerGrant, &body);
    granted.await.unwrap();
    let fs = initech.agent("fs", 7, &[]).await.unwrap();
    let serving = initech.provide(&fs, &["fs.read"]).await.unwrap();
    let link = || pair.globex.broker.core().state.links.of(initech.org());
    let now = pair.globex.now();
    until("initech's advert", || {
        link().is_some_and(|link| link.tools(now).len() == 1)
    })
    .await;
    (pair, initech, fs, serving)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_through_a_third_organisation_where_both_neighbours_allow_it() {
    let (pair, initech, fs, mut serving) = chain(1).await;
    pair.grant(json!({"capabilities": ["peer.initech.fs.*"]}))
        .await;
    pair.until_advertised(1).await;
    let needed = "peer.globex.peer.initech.fs.read";
    let caller = pair.acme.agent("x", 3, &[needed]).await.unwrap();
    let mut calling = pair.acme.attach(&caller).await.unwrap();
    let call = caller
        .call("fs@initech", "fs.read", &json!({}), pair.acme.now())
        .unwrap();
    calling.send(call.bytes.clone()).await.unwrap();
    let delivered = serving.hear().await.unwrap().delivered().unwrap();
    assert_eq!(delivered.bytes(), &call.bytes);
    let result = initech.result(&fs, &delivered, &json!("far")).unwrap();
    serving.send(result.bytes.clone()).await.unwrap();
    let answered = calling.hear().await.unwrap().delivered().unwrap();
    assert_eq!(answered.bytes(), &result.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_owner_does_not_let_be_passed_on_is_not_advertised_behind_a_peer() {
    let (pair, _initech, _fs, _serving) = chain(0).await;
    pair.grant(json!({"capabilities": ["peer.initech.fs.*", "fs.*"]}))
        .await;
    // What globex offers itself comes after what lies behind it, had that been told.
    let (_own, _socket) = provider(&pair).await;
    pair.until_advertised(1).await;
    let link = pair
        .acme
        .broker
        .core()
        .state
        .links
        .of(pair.globex.org())
        .unwrap();
    let tools = link.tools(pair.acme.now());
    assert_eq!(tools[0].tool.agent.to_string(), "fs@globex");
}

/// What a call of acme's `x` comes to, through whatever link there is by then.
pub(super) async fn calls(pair: &Pair, caller: &Actor, fs: &Actor, serving: &mut Socket) {
    let mut calling = pair.acme.attach(caller).await.unwrap();
    let call = caller
        .call("fs@globex", "fs.read", &json!({}), pair.acme.now())
        .unwrap();
    calling.send(call.bytes).await.unwrap();
    let delivered = serving.delivery().await.unwrap();
    let result = pair.globex.result(fs, &delivered, &json!(1)).unwrap();
    serving.send(result.bytes).await.unwrap();
    calling.hear().await.unwrap().delivered().unwrap();
}

/// acme's broker goes on under another key, until globex knows it.
async fn go_on_under_another_key(pair: &Pair) {
    let before = pair.acme.broker_key();
    let ask = async |kind, body: serde_json::Value| {
        let done = pair.acme.ask(&pair.acme.admin, kind, &body).await;
        done.unwrap()
    };
    ask(Kind::AdminBrokerPrepare, json!({})).await;
    let prepared = pair.acme.broker.core().state.broker_keys.life().all();
    let next = prepared.iter().find(|held| held.key != before).unwrap().key;
    ask(Kind::AdminBrokerActivate, json!({"key": next})).await;
    let known = || {
        let peers = &pair.globex.broker.core().state.peers;
        peers.find(pair.acme.org()).map(|peer| peer.key)
    };
    until("globex knows the next key", || known() == Some(next)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_on_under_another_key_stays_a_peer_without_another_file() {
    let pair = Pair::linked().await;
    let (fs, mut serving) = provider(&pair).await;
    let old = pair.grant(json!({})).await;
    let caller = pair.acme.agent("x", 3, &["peer.globex.*"]).await.unwrap();
    pair.until_advertised(1).await;
    calls(&pair, &caller, &fs, &mut serving).await;
    // acme's broker, which holds the grant, gets another key.
    go_on_under_another_key(&pair).await;
    pair.until_linked().await;
    let link = || {
        let state = &pair.acme.broker.core().state;
        state.links.of(pair.globex.org())
    };
    until("the grant is issued anew", || {
        link().is_some_and(|link| {
            let held = link.held();
            held.len() == 1 && held[0].id != old
        })
    })
    .await;
    pair.until_advertised(1).await;
    calls(&pair, &caller, &fs, &mut serving).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peers_grants_outlive_the_root_key_that_they_were_issued_under() {
    let pair = Pair::linked().await;
    let (fs, mut serving) = provider(&pair).await;
    let old = pair.grant(json!({})).await;
    let caller = pair.acme.agent("x", 3, &["peer.globex.*"]).await.unwrap();
    pair.until_advertised(1).await;
    let globex = &pair.globex;
    let root = globex.broker.core().state.roots.keys()[0];
    let ask = async |kind, body: serde_json::Value| {
        let done = globex.ask(&globex.admin, kind, &body).await;
        done.unwrap()
    };
    ask(Kind::AdminRootPrepare, json!({})).await;
    let all = globex.broker.core().state.roots.keys();
    let next = *all.iter().find(|key| **key != root).unwrap();
    ask(Kind::AdminRootActivate, json!({"key": next})).await;
    ask(Kind::AdminRootRetire, json!({"key": root})).await;
    let link = pair
        .acme
        .broker
        .core()
        .state
        .links
        .of(globex.org())
        .unwrap();
    until("the grant is issued anew", || {
        let held = link.held();
        held.len() == 1 && held[0].id != old
    })
    .await;
    pair.until_advertised(1).await;
    calls(&pair, &caller, &fs, &mut serving).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_and_what_they_are_granted_outlive_a_restart() {
    let pair = Pair::linked().await;
    let (_fs, _serving) = provider(&pair).await;
    pair.grant(json!({})).await;
    let caller = pair.acme.agent("x", 3, &["peer.globex.*"]).await.unwrap();
    pair.until_advertised(1).await;
    let Pair { acme, globex } = pair;
    let pair = Pair {
        globex: globex.restart().await.unwrap(),
        acme: acme.restart().await.unwrap(),
    };
    pair.until_linked().await;
    let fs = Actor::of(pair.globex.org(), "fs", 2).unwrap();
    let mut serving = pair.globex.provide(&fs, &["fs.read"]).await.unwrap();
    pair.until_advertised(1).await;
    calls(&pair, &caller, &fs, &mut serving).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_was_issued_anew_is_revoked_under_either_id() {
    let pair = Pair::linked().await;
    let old = pair.grant(json!({})).await;
    go_on_under_another_key(&pair).await;
    pair.until_linked().await;
    let held = || {
        let links = &pair.acme.broker.core().state.links;
        links.of(pair.globex.org()).map(|link| link.held())
    };
    until("it is issued anew", || {
        held().is_some_and(|held| held.len() == 1 && held[0].id != old)
    })
    .await;
    let body = json!({"ids": [old]});
    let revoked = pair
        .globex
        .ask(&pair.globex.admin, Kind::AdminTokenRevoke, &body);
    revoked.await.unwrap();
    until("it is gone", || held().is_some_and(|held| held.is_empty())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_quarantined_admin_granted_does_not_come_back_with_its_peers_next_key() {
    let pair = Pair::linked().await;
    let globex = &pair.globex;
    let rogue = super::capability_life::admin(globex, "rogue", 8).await;
    let body = json!({"org": "acme", "capabilities": ["fs.*"]});
    let granted = globex.ask(&rogue, Kind::AdminPeerGrant, &body).await;
    assert!(matches!(granted.unwrap(), Ack::Issued { .. }));
    let order = json!({"name": "rogue"});
    let done = globex.ask(&globex.admin, Kind::AdminAgentQuarantine, &order);
    done.await.unwrap();
    let left = || {
        let peers = &globex.broker.core().state.peers;
        peers.find(pair.acme.org()).unwrap().grants.len()
    };
    assert_eq!(left(), 0);
    go_on_under_another_key(&pair).await;
    assert_eq!(left(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_peer_that_is_accepted_anew_stays_paused() {
    let pair = Pair::linked().await;
    let body = json!({"org": "globex"});
    let paused = pair.acme.ask(&pair.acme.admin, Kind::AdminPeerPause, &body);
    paused.await.unwrap();
    let descriptor = invite(&pair.globex).await;
    let peers = accept(&pair.acme, &pair.globex, &descriptor).await;
    assert_eq!(peers[0].link, "paused");
}

/// Subscribes an attached agent.
async fn subscribe(lab: &Lab, actor: &Actor, socket: &mut Socket, topics: &str) -> Option<Code> {
    let body = json!({"topics": [topics]});
    let asked = actor.seal(Kind::Subscribe, &actor.broker(), lab.now(), &body);
    socket.send(asked.unwrap().bytes).await.unwrap();
    let said = socket.hear().await.unwrap().said().unwrap();
    (said.kind() == Kind::Error).then(|| code_of(&said).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_crosses_to_those_that_both_sides_let_hear_it_and_to_nobody_else() {
    let pair = Pair::linked().await;
    let emitter = pair.globex.agent("ci", 2, &["event.emit.*"]).await.unwrap();
    let (right, topics) = ("peer.globex.event.subscribe.build.*", "peer.globex.build.*");
    let may = pair.acme.agent("may", 3, &[right]).await.unwrap();
    let other = pair
        .acme
        .agent("other", 4, &["*", "event.*"])
        .await
        .unwrap();
    let mut hears = pair.acme.attach(&may).await.unwrap();
    let mut deaf = pair.acme.attach(&other).await.unwrap();
    let acme = &pair.acme;
    assert_eq!(subscribe(acme, &may, &mut hears, topics).await, None);
    let code = subscribe(acme, &other, &mut deaf, topics).await;
    assert_eq!(code, Some(Code::Denied), "its own admin does not let it");
    assert_eq!(subscribe(acme, &other, &mut deaf, "*").await, None);
    let emit = async |topic: &str, n: u64| {
        let to = format!("topic:globex/{topic}").parse().unwrap();
        let body = json!({"data": n});
        let event = emitter.seal(Kind::EmitEvent, &to, pair.globex.now(), &body);
        let event = event.unwrap();
        pair.globex.post(event.bytes.clone()).await.unwrap();
        event.bytes
    };
    // globex has granted nothing: what is emitted now is heard by nobody there.
    emit("build.done", 1).await;
    let id = pair
        .grant(json!({"capabilities": ["event.subscribe.build.*"]}))
        .await;
    let core = pair.globex.broker.core();
    let listens = || {
        let alive = |token: &Arc<Token>| core.state.revocations.alive(token).is_ok();
        let link = core.state.links.of(pair.acme.org());
        link.is_some_and(|link| {
            let listeners = link.listeners();
            listeners.iter().any(|one| one.tokens.iter().any(alive))
        })
    };
    until("globex knows who listens", listens).await;
    emit("secret.done", 2).await;
    let third = emit("build.done", 3).await;
    let heard = hears.hear().await.unwrap().delivered().unwrap();
    assert_eq!(
        heard.bytes(),
        &third,
        "byte for byte, and the first that it may hear"
    );
    // Taken back by its owner: at once, whatever the other side has been told.
    let body = json!({"ids": [id]});
    let revoked = pair
        .globex
        .ask(&pair.globex.admin, Kind::AdminTokenRevoke, &body);
    revoked.await.unwrap();
    emit("build.done", 4).await;
    pair.grant(json!({"capabilities": ["event.subscribe.build.*"]}))
        .await;
    until("it is introduced anew", listens).await;
    let last = emit("build.done", 5).await;
    let heard = hears.hear().await.unwrap().delivered().unwrap();
    assert_eq!(heard.bytes(), &last);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_passes_a_call_on_says_how_old_its_view_of_the_home_is_and_ends_what_went_on_from_it() {
    // acme's broker is in a test's hand; globex, which would take views that are minutes old, passes on.
    let globex = Lab::of("globex", "").await.unwrap();
    let lines = "[federation]\nstale_after_ms = 600000";
    let globex = globex.reconfigured(lines).await.unwrap();
    let initech = Lab::of("initech", "").await.unwrap();
    let initech = initech.reachable().await.unwrap();
    let (ours, theirs) = (invite(&globex).await, invite(&initech).await);
    accept(&initech, &globex, &ours).await;
    accept(&globex, &initech, &theirs).await;
    let grant = async |lab: &Lab, body| {
        let granted = lab.ask(&lab.admin, Kind::AdminPeerGrant, &body).await;
        granted.unwrap();
    };
    let fs = initech.agent("fs", 7, &[]).await.unwrap();
    let mut serving = initech.provide(&fs, &["fs.read"]).await.unwrap();
    grant(
        &initech,
        json!({"org": "globex", "capabilities": ["fs.*"], "depth": 1}),
    )
    .await;
    let acme = Hand::new("acme", 0x61).unwrap();
    let body = json!({
        "descriptor": acme.descriptor(globex.now()).unwrap(),
        "key": acme.key.public(),
    });
    let added = globex.ask(&globex.admin, Kind::AdminPeerAdd, &body).await;
    added.unwrap();
    grant(
        &globex,
        json!({"org": "acme", "capabilities": ["peer.initech.fs.*"]}),
    )
    .await;
    let mut link = acme.linked(&globex).await.unwrap();
    let held = link.tokens(|said| !said.onward.is_empty()).await.unwrap();
    let x = Actor::of(&acme.org, "x", 0x71).unwrap();
    let made = |grants: &[String]| {
        let now = globex.now();
        let made = grants.iter().map(|grant| acme.introduce(grant, &x, now));
        made.collect::<Result<Vec<_>, _>>().unwrap()
    };
    let call = || {
        let call = x.call("fs@initech", "fs.read", &json!({}), initech.now());
        let call = call.unwrap();
        let relay = Relay {
            tokens: made(&held.tokens),
            onward: made(&held.onward),
            visited: vec![acme.org.clone()],
            envelope: call.bytes.clone(),
            ..Relay::default()
        };
        (relay, call)
    };
    let (relay, sent) = call();
    link.pass(&relay).await.unwrap();
    let delivered = serving.delivery().await.unwrap();
    assert_eq!(delivered.bytes(), &sent.bytes);
    // acme says nothing for a while, by globex's clock; initech hears from globex all the time.
    globex.broker.core().clock.advance(Duration::from_secs(20));
    let (relay, sent) = call();
    link.pass(&relay).await.unwrap();
    let refused = link.word(Kind::Error).await.unwrap().unwrap();
    assert_eq!(refused.re(), Some(sent.id));
    assert_eq!(code_of(&refused).unwrap(), Code::RevocationsStale);
    // What acme itself says of its agents ends what went on from globex, and the provider is told.
    let head = RevocationHead {
        seq: 2,
        dead: vec![x.key.public()],
        ..link.head()
    };
    link.say(Kind::RevocationHead, None, &head).await.unwrap();
    let told = serving.hear().await.unwrap().said().unwrap();
    assert_eq!(told.kind(), Kind::ToolCancel);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_advert_holds_until_the_next_for_a_peer_whose_clock_is_four_minutes_ahead() {
    let pair = Pair::linked().await;
    let ahead = Duration::from_secs(240);
    pair.acme.broker.core().clock.advance(ahead);
    let (_fs, _serving) = provider(&pair).await;
    pair.grant(json!({})).await;
    pair.until_advertised(1).await;
    // It is told anew after 100 s.
    let later = pair.acme.now().later(Duration::from_secs(110));
    let link = pair.acme.broker.core().state.links.of(pair.globex.org());
    assert_eq!(link.unwrap().tools(later).len(), 1);
}

/// Their clocks tell different hours, so neither believes a word of the other: no link stands.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_was_away_for_an_hour_comes_back_to_what_is_in_force_by_then() {
    let pair = Pair::linked().await;
    let (fs, mut serving) = provider(&pair).await;
    pair.grant(json!({})).await;
    let right = ["peer.globex.*"];
    let stays = pair.acme.agent("stays", 3, &right).await.unwrap();
    let goes = pair.acme.agent("goes", 4, &right).await.unwrap();
    pair.until_advertised(1).await;
    calls(&pair, &goes, &fs, &mut serving).await;
    let hour = Duration::from_hours(1);
    let (acme, globex) = (&pair.acme, &pair.globex);
    let linked = |lab: &Lab, org: &Org| lab.broker.core().state.links.of(org);
    acme.broker.core().clock.advance(hour);
    until("the link ends", || linked(acme, globex.org()).is_none()).await;
    let revoke = json!({"name": "goes"});
    let revoked = acme.ask(&acme.admin, Kind::AdminAgentRevoke, &revoke).await;
    revoked.unwrap();
    globex.broker.core().clock.advance(hour);
    pair.until_linked().await;
    pair.until_advertised(1).await;
    calls(&pair, &stays, &fs, &mut serving).await;
    until("globex knows which key died", || {
        linked(globex, acme.org()).is_some_and(|link| link.is_dead(&goes.key.public()))
    })
    .await;
}
