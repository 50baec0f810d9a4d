//! Two organisations: peering, exposure, calls across, discovery, and taking it back.

use proto_spec::message::{Ack, PeerRecord, ToolsDiscovered};
use proto_spec::{Code, Digest, Kind, Org};
use serde_json::json;
use tests::lab::{Actor, Lab, hears_refusal};
use tests::wire::{PATIENCE, Socket};

/// Two organisations whose brokers are peers of each other, linked.
struct Pair {
    acme: Lab,
    globex: Lab,
}

/// Has `lab`'s admin sign its descriptor.
async fn invite(lab: &Lab) -> String {
    let invited = lab.ask(&lab.admin, Kind::AdminPeerInvite, &json!({})).await;
    match invited.unwrap() {
        Ack::PeerInvited { descriptor } => descriptor,
        other => panic!("{other:?}"),
    }
}

/// Has `lab`'s admin take the organisation of this descriptor as a peer.
async fn accept(lab: &Lab, other: &Lab, descriptor: &str) -> Vec<PeerRecord> {
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
async fn until(what: &str, is: impl Fn() -> bool) {
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
    async fn linked() -> Self {
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

    async fn until_linked(&self) {
        let has = |lab: &Lab, org: &Org| lab.broker.core().state.links.of(org).is_some();
        until("both links are up", || {
            has(&self.acme, self.globex.org()) && has(&self.globex, self.acme.org())
        })
        .await;
    }

    /// Grants acme's agents something at globex.
    async fn grant(&self, more: serde_json::Value) -> Digest {
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
    async fn until_advertised(&self, tools: usize) {
        let link = || self.acme.broker.core().state.links.of(self.globex.org());
        let now = self.acme.now();
        until("adverts", || {
            link().is_some_and(|link| link.tools(now).len() == tools)
        })
        .await;
    }
}

/// globex's `fs`, serving `fs.read`.
async fn provider(pair: &Pair) -> (Actor, Socket) {
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
