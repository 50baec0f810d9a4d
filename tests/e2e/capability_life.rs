//! The life of a capability: two admins, budgets, who holds what, and taking it back.

use std::time::Duration;

use proto_spec::capability::{Narrowing, decode_text, encode_text, issue};
use proto_spec::message::{Ack, Struck};
use proto_spec::{Code, Digest, Kind, PublicKey};
use serde_json::{Value, json};
use tests::lab::{Actor, Extra, Lab, code_of, hears_refusal, to_broker};
use tests::wire::Socket;

use crate::refused;

pub(super) async fn admin(lab: &Lab, name: &str, seed: u8) -> Actor {
    let actor = Actor::of(lab.org(), name, seed).unwrap();
    lab.register(&actor).await.unwrap();
    let all = [
        "*", "admin.*", "event.*", "peer.*", "mcp.*", "enrol.*", "broker.*",
    ];
    let body = json!({
        "name": name, "key": actor.key.public(), "capabilities": all,
        "admin": {"grantable": all, "names": ["*"]},
    });
    let done = lab
        .ask(&lab.admin, Kind::AdminAgentApprove, &body)
        .await
        .unwrap();
    if let Ack::Proposed { .. } = done {
        panic!("{name} needs two admins");
    }
    actor
}

async fn issue_to(lab: &Lab, agent: &str, body: Value) -> (Digest, Option<String>) {
    let mut all = json!({"agent": agent, "checks": []});
    all.as_object_mut()
        .unwrap()
        .extend(body.as_object().unwrap().clone());
    match lab
        .ask(&lab.admin, Kind::AdminTokenIssue, &all)
        .await
        .unwrap()
    {
        Ack::Issued { id, token, .. } => (id, token),
        other => panic!("{other:?}"),
    }
}

fn struck(ack: Ack) -> Struck {
    match ack {
        Ack::Revoked(struck) | Ack::WouldRevoke(struck) => struck,
        other => panic!("{other:?}"),
    }
}

/// Makes a call by POST and has the provider answer it, or gives the refusal.
async fn call(lab: &Lab, caller: &Actor, provider: &mut Provider, token: Option<&str>) -> Code {
    let extra = Extra {
        token: token.map(str::to_owned),
        ..Extra::default()
    };
    let body = json!({"tool": "fs.read", "arguments": {}});
    let to = "fs@acme".parse().unwrap();
    let sealed = caller
        .seal_with(Kind::ToolCall, &to, lab.now(), &body, &extra)
        .unwrap();
    let line = lab.line.clone();
    let mut answered = tokio::spawn(async move { line.post("/fem", sealed.bytes).await.unwrap() });
    tokio::select! {
        reply = &mut answered => refused(&reply.unwrap()),
        heard = provider.socket.hear() => {
            let delivered = heard.unwrap().delivered().unwrap();
            let result = lab.result(&provider.actor, &delivered, &json!(1)).unwrap();
            provider.socket.send(result.bytes).await.unwrap();
            assert_eq!(answered.await.unwrap().status, 200);
            Code::Cancelled
        }
    }
}

/// What [`call`] gives for a call that was answered: no refusal of a call is this one here.
const ANSWERED: Code = Code::Cancelled;

struct Provider {
    actor: Actor,
    socket: Socket,
}

async fn provider(lab: &Lab) -> Provider {
    let actor = lab.agent("fs", 2, &[]).await.unwrap();
    let socket = lab.provide(&actor, &["fs.read"]).await.unwrap();
    Provider { actor, socket }
}

fn delegated(token: &str, holder: &Actor, next: &PublicKey, calls: Option<u32>) -> String {
    let narrowing = Narrowing {
        calls,
        ..Narrowing::default()
    };
    let unsealed = decode_text(token).unwrap();
    let longer = issue::delegate(&unsealed, &holder.key, next, &narrowing, [7; 32]).unwrap();
    encode_text(&longer)
}

fn sealed(unsealed: &str) -> String {
    encode_text(&issue::seal(&decode_text(unsealed).unwrap()).unwrap())
}

#[tokio::test]
async fn what_the_configuration_names_takes_two_admins() {
    let lab = Lab::with_limits("[approval]\ntwo_admins = [\"shell.*\"]")
        .await
        .unwrap();
    let all = |lab: &Lab| lab.broker.core().state.proposals.waiting(lab.now());
    let first = lab.agent("runner", 3, &[]).await.unwrap();
    // A second admin takes two admins itself, since it may grant shell.*: made before it was named.
    let body =
        json!({"agent": "runner", "capabilities": ["shell.run"], "checks": [], "record": true});
    let proposed = lab
        .ask(&lab.admin, Kind::AdminTokenIssue, &body)
        .await
        .unwrap();
    let Ack::Proposed { id, .. } = proposed else {
        panic!("{proposed:?}")
    };
    assert_eq!(all(&lab).len(), 1);
    let agree = json!({"id": id});
    let own = lab
        .ask(&lab.admin, Kind::AdminProposalApprove, &agree)
        .await;
    assert!(
        own.unwrap_err().to_string().contains("DENIED"),
        "nobody agrees with herself"
    );
    // An admin of narrower scope is no second opinion on what lies beyond it.
    let narrow = Actor::new("narrow", 4).unwrap();
    lab.register(&narrow).await.unwrap();
    let body = json!({"name": "narrow", "key": narrow.key.public(), "capabilities": ["admin.*"],
        "admin": {"grantable": ["code.*"], "names": ["*"]}});
    lab.ask(&lab.admin, Kind::AdminAgentApprove, &body)
        .await
        .unwrap();
    let beyond = lab.ask(&narrow, Kind::AdminProposalApprove, &agree).await;
    assert!(beyond.unwrap_err().to_string().contains("DENIED"));
    // It outlives a restart; then it is dropped, and done by nobody.
    let lab = lab.restart().await.unwrap();
    assert_eq!(all(&lab).len(), 1);
    let list = async |by: &Actor| match lab
        .ask(by, Kind::AdminProposalList, &json!({}))
        .await
        .unwrap()
    {
        Ack::Proposals { proposals } => proposals,
        other => panic!("{other:?}"),
    };
    assert!(
        list(&narrow).await.is_empty(),
        "others' acts are not its business"
    );
    let dropped = lab.ask(&narrow, Kind::AdminProposalDeny, &agree).await;
    assert!(dropped.unwrap_err().to_string().contains("DENIED"));
    let proposals = list(&lab.admin).await;
    assert_eq!(
        (proposals[0].id, proposals[0].act.as_str()),
        (id, "admin.token.issue")
    );
    lab.ask(&lab.admin, Kind::AdminProposalDeny, &agree)
        .await
        .unwrap();
    assert!(all(&lab).is_empty());
    let agent = lab
        .broker
        .core()
        .state
        .registry
        .agent(first.id.name())
        .unwrap();
    assert!(agent.capabilities().is_empty());
}

#[tokio::test]
async fn a_proposal_is_done_once_when_another_full_admin_agrees_and_expires_otherwise() {
    let lab = Lab::start().await.unwrap();
    let second = admin(&lab, "second", 3).await;
    lab.agent("runner", 4, &[]).await.unwrap();
    let lab = lab
        .reconfigured("[approval]\ntwo_admins = [\"shell.*\"]")
        .await
        .unwrap();
    let body =
        json!({"agent": "runner", "capabilities": ["shell.run"], "checks": [], "record": true});
    let propose = async || match lab
        .ask(&lab.admin, Kind::AdminTokenIssue, &body)
        .await
        .unwrap()
    {
        Ack::Proposed { id, .. } => id,
        other => panic!("{other:?}"),
    };
    let id = propose().await;
    let done = lab
        .ask(&second, Kind::AdminProposalApprove, &json!({"id": id}))
        .await
        .unwrap();
    assert!(matches!(done, Ack::Issued { .. }), "{done:?}");
    let again = lab
        .ask(&second, Kind::AdminProposalApprove, &json!({"id": id}))
        .await;
    assert!(again.unwrap_err().to_string().contains("NOT_FOUND"));
    let stale = propose().await;
    lab.broker.core().clock.advance(Duration::from_secs(86_401));
    let late = lab
        .ask(&second, Kind::AdminProposalApprove, &json!({"id": stale}))
        .await;
    assert!(late.unwrap_err().to_string().contains("NOT_FOUND"));
    let runner = "runner".parse().unwrap();
    let agent = lab.broker.core().state.registry.agent(&runner).unwrap();
    assert_eq!(agent.grants.records().len(), 1, "one grant, once");
}

#[tokio::test]
async fn a_request_that_nobody_decides_expires() {
    let lab = Lab::start().await.unwrap();
    let stranger = Actor::new("late", 3).unwrap();
    lab.register(&stranger).await.unwrap();
    lab.broker
        .core()
        .clock
        .advance(Duration::from_secs(7 * 86_400 + 1));
    let approved = lab.approve(&stranger, &["fs.read"]).await;
    assert!(approved.unwrap_err().to_string().contains("NOT_FOUND"));
    lab.register(&stranger).await.unwrap();
    lab.approve(&stranger, &["fs.read"]).await.unwrap();
}

#[tokio::test]
async fn a_budget_allows_so_many_calls_and_a_restart_adds_none() {
    let lab = Lab::start().await.unwrap();
    let mut fs = provider(&lab).await;
    let caller = lab.agent("caller", 3, &[]).await.unwrap();
    issue_to(
        &lab,
        "caller",
        json!({"capabilities": ["fs.*"], "record": true, "calls": 20}),
    )
    .await;
    for n in 0..3 {
        assert_eq!(
            call(&lab, &caller, &mut fs, None).await,
            ANSWERED,
            "call {n}"
        );
    }
    // Killed or stopped: what was reserved and not used is lost, and nothing is added.
    let Provider { actor, .. } = fs;
    let lab = lab.restart().await.unwrap();
    let socket = lab.provide(&actor, &["fs.read"]).await.unwrap();
    let mut fs = Provider { actor, socket };
    let mut more = 0;
    while call(&lab, &caller, &mut fs, None).await == ANSWERED {
        more += 1;
    }
    assert_eq!(call(&lab, &caller, &mut fs, None).await, Code::BudgetSpent);
    // Blocks of 20 / 8 = 2: of four that were reserved, three were used.
    assert_eq!(more, 16);
}

#[tokio::test]
async fn a_delegates_budget_and_its_delegators_are_both_drawn_on() {
    let lab = Lab::start().await.unwrap();
    let mut fs = provider(&lab).await;
    let holder = lab.agent("holder", 3, &[]).await.unwrap();
    let delegate = lab.agent("delegate", 4, &[]).await.unwrap();
    let (id, token) = issue_to(
        &lab,
        "holder",
        json!({"capabilities": ["fs.*"], "record": false, "calls": 5}),
    )
    .await;
    let token = token.unwrap();
    let passed = sealed(&delegated(&token, &holder, &delegate.key.public(), Some(2)));
    let own = sealed(&token);
    for _ in 0..2 {
        assert_eq!(
            call(&lab, &delegate, &mut fs, Some(&passed)).await,
            ANSWERED
        );
    }
    assert_eq!(
        call(&lab, &delegate, &mut fs, Some(&passed)).await,
        Code::BudgetSpent
    );
    for _ in 0..3 {
        assert_eq!(call(&lab, &holder, &mut fs, Some(&own)).await, ANSWERED);
    }
    assert_eq!(
        call(&lab, &holder, &mut fs, Some(&own)).await,
        Code::BudgetSpent
    );
    let Ack::Tree { nodes, .. } = lab
        .ask(
            &lab.admin,
            Kind::AdminTokenTree,
            &json!({"agent": "holder"}),
        )
        .await
        .unwrap()
    else {
        panic!()
    };
    let shown: Vec<_> = nodes
        .iter()
        .filter(|node| node.kind != "approval")
        .map(|node| {
            (
                node.kind.as_str(),
                node.agent.as_ref().map(ToString::to_string),
                node.calls_left,
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("grant", Some("holder".into()), Some(0)),
            ("delegation", Some("delegate".into()), Some(0)),
        ]
    );
    assert_eq!(
        nodes
            .iter()
            .find(|node| node.kind == "delegation")
            .unwrap()
            .parent,
        Some(id)
    );
}

#[tokio::test]
async fn a_grant_whose_budget_is_spent_does_not_stand_in_the_way_of_another() {
    let lab = Lab::start().await.unwrap();
    let mut fs = provider(&lab).await;
    let caller = lab.agent("caller", 3, &[]).await.unwrap();
    for calls in [1, 2] {
        let grant = json!({"capabilities": ["fs.*"], "record": true, "calls": calls});
        issue_to(&lab, "caller", grant).await;
    }
    for _ in 0..3 {
        assert_eq!(call(&lab, &caller, &mut fs, None).await, ANSWERED);
    }
    assert_eq!(call(&lab, &caller, &mut fs, None).await, Code::BudgetSpent);
}

#[tokio::test]
async fn a_call_that_is_not_delivered_costs_no_budget() {
    let lab = Lab::start().await.unwrap();
    let caller = lab.agent("caller", 3, &[]).await.unwrap();
    issue_to(
        &lab,
        "caller",
        json!({"capabilities": ["fs.*"], "record": true, "calls": 1}),
    )
    .await;
    let actor = lab.agent("fs", 2, &[]).await.unwrap();
    let nobody = caller.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
    assert_eq!(
        refused(&lab.post(nobody.bytes).await.unwrap()),
        Code::Unavailable
    );
    let socket = lab.provide(&actor, &["fs.read"]).await.unwrap();
    let mut fs = Provider { actor, socket };
    assert_eq!(call(&lab, &caller, &mut fs, None).await, ANSWERED);
    assert_eq!(call(&lab, &caller, &mut fs, None).await, Code::BudgetSpent);
}

#[tokio::test]
async fn calls_in_flight_end_when_what_permitted_them_is_revoked_and_both_sides_are_told() {
    let lab = Lab::start().await.unwrap();
    let mut fs = provider(&lab).await;
    let caller = lab.agent("caller", 3, &[]).await.unwrap();
    let (id, _) = issue_to(
        &lab,
        "caller",
        json!({"capabilities": ["fs.*"], "record": true}),
    )
    .await;
    let mut session = lab.attach(&caller).await.unwrap();
    let sent = caller.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
    session.send(sent.bytes).await.unwrap();
    fs.socket.hear().await.unwrap().delivered().unwrap();
    let dry = json!({"ids": [id], "dry_run": true});
    let would = struck(
        lab.ask(&lab.admin, Kind::AdminTokenRevoke, &dry)
            .await
            .unwrap(),
    );
    assert_eq!((would.tokens, would.calls), (1, 1));
    assert_eq!(
        lab.broker.core().state.calls.len(),
        1,
        "a dry run does nothing"
    );
    let done = struck(
        lab.ask(&lab.admin, Kind::AdminTokenRevoke, &json!({"ids": [id]}))
            .await
            .unwrap(),
    );
    assert_eq!(done, would);
    assert_eq!(
        hears_refusal(&mut session).await.unwrap(),
        Code::TokenRevoked
    );
    let told = fs.socket.hear().await.unwrap().said().unwrap();
    assert_eq!((told.kind(), told.re()), (Kind::ToolCancel, Some(sent.id)));
}

#[tokio::test]
async fn a_capability_is_taken_from_all_that_was_issued_up_to_a_time_and_from_nothing_else() {
    let lab = Lab::start().await.unwrap();
    let mut fs = provider(&lab).await;
    let caller = lab
        .agent("caller", 3, &["fs.*", "event.emit.build"])
        .await
        .unwrap();
    let (_, token) = issue_to(
        &lab,
        "caller",
        json!({"capabilities": ["fs.read"], "record": false}),
    )
    .await;
    let token = sealed(&token.unwrap());
    assert_eq!(call(&lab, &caller, &mut fs, None).await, ANSWERED);
    let bar = |dry_run| json!({"under": ["fs.*"], "dry_run": dry_run});
    let would = struck(
        lab.ask(&lab.admin, Kind::AdminTokenRevoke, &bar(true))
            .await
            .unwrap(),
    );
    assert_eq!(
        would.tokens, 3,
        "two approvals, the admin's among them, and the token that was handed out"
    );
    assert_eq!(call(&lab, &caller, &mut fs, None).await, ANSWERED);
    lab.ask(&lab.admin, Kind::AdminTokenRevoke, &bar(false))
        .await
        .unwrap();
    assert_eq!(call(&lab, &caller, &mut fs, None).await, Code::Denied);
    assert_eq!(
        call(&lab, &caller, &mut fs, Some(&token)).await,
        Code::TokenRevoked
    );
    let topic = "topic:acme/build".parse().unwrap();
    let event = caller
        .seal(Kind::EmitEvent, &topic, lab.now(), &json!({"data": 1}))
        .unwrap();
    assert_eq!(
        lab.post(event.bytes).await.unwrap().status,
        200,
        "the rest of it stays"
    );
    // What is issued from then on, in the same second, is not struck.
    lab.approve(&caller, &["fs.*"]).await.unwrap();
    assert_eq!(call(&lab, &caller, &mut fs, None).await, ANSWERED);
    let lab = lab.restart().await.unwrap();
    let Provider { actor, .. } = fs;
    let socket = lab.provide(&actor, &["fs.read"]).await.unwrap();
    let mut fs = Provider { actor, socket };
    assert_eq!(
        call(&lab, &caller, &mut fs, Some(&token)).await,
        Code::TokenRevoked
    );
    assert_eq!(call(&lab, &caller, &mut fs, None).await, ANSWERED);
}

#[tokio::test]
async fn a_bar_strikes_what_was_issued_since_another_bar_in_the_same_second() {
    let lab = Lab::start().await.unwrap();
    let mut fs = provider(&lab).await;
    let caller = lab.agent("caller", 3, &["fs.*"]).await.unwrap();
    for _ in 0..3 {
        let bar = json!({"under": ["fs.*"]});
        lab.ask(&lab.admin, Kind::AdminTokenRevoke, &bar)
            .await
            .unwrap();
        assert_eq!(call(&lab, &caller, &mut fs, None).await, Code::Denied);
        lab.approve(&caller, &["fs.*"]).await.unwrap();
        assert_eq!(call(&lab, &caller, &mut fs, None).await, ANSWERED);
    }
}

#[tokio::test]
async fn a_bar_on_admin_acts_never_leaves_the_organisation_without_an_admin() {
    let lab = Lab::start().await.unwrap();
    let all = json!({"under": ["*", "admin.*"]});
    let refused = lab
        .ask(&lab.admin, Kind::AdminTokenRevoke, &all)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("CONFLICT"), "{refused}");
    lab.broker.core().clock.advance(Duration::from_secs(10));
    let before = lab.now();
    lab.broker.core().clock.advance(Duration::from_secs(10));
    admin(&lab, "second", 3).await;
    let all = json!({"under": ["*", "admin.*"], "before": before});
    lab.ask(&lab.admin, Kind::AdminTokenRevoke, &all)
        .await
        .unwrap();
    let old = lab.ask(&lab.admin, Kind::AdminAgentList, &json!({})).await;
    assert!(old.unwrap_err().to_string().contains("DENIED"));
}

#[tokio::test]
async fn quarantine_strikes_an_agent_with_all_that_flows_from_it_in_one_act() {
    let lab = Lab::start().await.unwrap();
    let mut fs = provider(&lab).await;
    let rogue = admin(&lab, "rogue", 3).await;
    // What the rogue admin did: approved one, enrolled another, issued to a third.
    let approved = Actor::new("approved", 4).unwrap();
    lab.register(&approved).await.unwrap();
    let body = json!({"name": "approved", "key": approved.key.public(), "capabilities": ["fs.*"]});
    lab.ask(&rogue, Kind::AdminAgentApprove, &body)
        .await
        .unwrap();
    let body = json!({"name": "enrolled-*", "ceiling": ["fs.*"], "uses": 3});
    let Ack::Issued {
        token: enrolment, ..
    } = lab.ask(&rogue, Kind::AdminEnrolIssue, &body).await.unwrap()
    else {
        panic!()
    };
    let enrol = async |name: &str, seed| {
        let actor = Actor::new(name, seed).unwrap();
        let body = json!({"pubkey": actor.key.public(), "capabilities": ["fs.read"], "enrolment": enrolment});
        (lab.ask(&actor, Kind::RegisterAgent, &body).await, actor)
    };
    let (done, enrolled) = enrol("enrolled-1", 5).await;
    done.unwrap();
    let third = lab.agent("third", 6, &[]).await.unwrap();
    let body = json!({"agent": "third", "capabilities": ["fs.read"], "checks": [], "record": true});
    lab.ask(&rogue, Kind::AdminTokenIssue, &body).await.unwrap();
    for actor in [&approved, &enrolled, &third] {
        assert_eq!(call(&lab, actor, &mut fs, None).await, ANSWERED);
    }
    let mut open = lab.attach(&enrolled).await.unwrap();
    let dry = json!({"name": "rogue", "dry_run": true});
    let would = struck(
        lab.ask(&lab.admin, Kind::AdminAgentQuarantine, &dry)
            .await
            .unwrap(),
    );
    let names: Vec<_> = would.agents.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["approved", "enrolled-1", "rogue"]);
    assert_eq!(would.sessions, 1);
    for actor in [&approved, &enrolled, &third] {
        assert_eq!(call(&lab, actor, &mut fs, None).await, ANSWERED);
    }
    let order = json!({"name": "rogue", "reason": "its laptop was stolen"});
    lab.ask(&lab.admin, Kind::AdminAgentQuarantine, &order)
        .await
        .unwrap();
    for (actor, code) in [
        (&approved, Code::NotAuthentic),
        (&enrolled, Code::NotAuthentic),
        (&rogue, Code::NotAuthentic),
        (&third, Code::Denied),
    ] {
        assert_eq!(call(&lab, actor, &mut fs, None).await, code, "{}", actor.id);
    }
    assert!(matches!(
        open.hear().await.unwrap(),
        tests::wire::Heard::Closed
    ));
    assert!(
        enrol("enrolled-2", 7).await.0.is_err(),
        "the enrolment token is dead"
    );
    assert_eq!(
        call(&lab, &fs_caller(&lab).await, &mut fs, None).await,
        ANSWERED,
        "nobody else is struck"
    );
    let lab = lab.restart().await.unwrap();
    let back = lab.register(&approved).await;
    assert!(
        back.unwrap_err().to_string().contains("laptop"),
        "a dead key hears why, and stays dead"
    );
}

async fn fs_caller(lab: &Lab) -> Actor {
    lab.agent("bystander", 8, &["fs.read"]).await.unwrap()
}

#[tokio::test]
async fn quarantine_strikes_the_enrolment_token_of_an_agent_that_an_admin_approved_since() {
    let lab = Lab::start().await.unwrap();
    let body = json!({"name": "build-*", "ceiling": ["fs.*"], "uses": 3});
    let issued = lab.ask(&lab.admin, Kind::AdminEnrolIssue, &body).await;
    let Ack::Issued {
        token: enrolment, ..
    } = issued.unwrap()
    else {
        panic!()
    };
    let enrol = async |name: &str, seed| {
        let actor = Actor::new(name, seed).unwrap();
        let body = json!({"pubkey": actor.key.public(), "enrolment": enrolment});
        let done = lab.ask(&actor, Kind::RegisterAgent, &body).await;
        done.map(|_| actor)
    };
    let rogue = enrol("build-1", 3).await.unwrap();
    enrol("build-2", 4).await.unwrap();
    lab.approve(&rogue, &["fs.read"]).await.unwrap();
    let order = json!({"name": "build-1"});
    let done = lab
        .ask(&lab.admin, Kind::AdminAgentQuarantine, &order)
        .await;
    assert_eq!(struck(done.unwrap()).agents.len(), 1, "not its siblings");
    assert!(enrol("build-3", 5).await.is_err(), "the token is dead");
}

#[tokio::test]
async fn quarantine_spares_the_last_full_admin_and_whoever_orders_it() {
    let lab = Lab::start().await.unwrap();
    let second = admin(&lab, "second", 3).await;
    // The first admin approved the second: striking the first would strike whoever orders it.
    let order = json!({"name": "root-admin"});
    let refused = lab
        .ask(&second, Kind::AdminAgentQuarantine, &order)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("CONFLICT"), "{refused}");
    let own = lab
        .ask(
            &second,
            Kind::AdminAgentQuarantine,
            &json!({"name": "second"}),
        )
        .await;
    assert!(own.unwrap_err().to_string().contains("CONFLICT"));
}

#[tokio::test]
async fn root_keys_overlap_and_a_retired_one_is_worth_nothing() {
    let lab = Lab::start().await.unwrap();
    let mut fs = provider(&lab).await;
    let caller = lab.agent("caller", 3, &["fs.read"]).await.unwrap();
    let (_, old) = issue_to(
        &lab,
        "caller",
        json!({"capabilities": ["fs.read"], "record": false}),
    )
    .await;
    let old = sealed(&old.unwrap());
    let roots = async |lab: &Lab, kind, body: Value| match lab
        .ask(&lab.admin, kind, &body)
        .await
        .unwrap()
    {
        Ack::Roots { roots } => roots,
        other => panic!("{other:?}"),
    };
    let prepared = roots(&lab, Kind::AdminRootPrepare, json!({})).await;
    let [first, next] = [prepared[0].key, prepared[1].key];
    assert_eq!(
        (prepared[0].state.as_str(), prepared[1].state.as_str()),
        ("active", "prepared")
    );
    let told = fs.socket.hear().await.unwrap().said().unwrap();
    assert_eq!(
        told.kind(),
        Kind::Roots,
        "who is attached learns of it at once"
    );
    let early = lab
        .ask(&lab.admin, Kind::AdminRootRetire, &json!({"key": first}))
        .await;
    assert!(
        early.unwrap_err().to_string().contains("CONFLICT"),
        "the active key cannot retire"
    );
    roots(&lab, Kind::AdminRootActivate, json!({"key": next})).await;
    fs.socket.hear().await.unwrap().said().unwrap();
    let (_, new) = issue_to(
        &lab,
        "caller",
        json!({"capabilities": ["fs.read"], "record": false}),
    )
    .await;
    let new = sealed(&new.unwrap());
    for token in [None, Some(old.as_str()), Some(new.as_str())] {
        assert_eq!(call(&lab, &caller, &mut fs, token).await, ANSWERED);
    }
    let Provider { actor, .. } = fs;
    let lab = lab.restart().await.unwrap();
    let left = roots(&lab, Kind::AdminRootRetire, json!({"key": first})).await;
    assert_eq!(left.len(), 1);
    let socket = lab.provide(&actor, &["fs.read"]).await.unwrap();
    let mut fs = Provider { actor, socket };
    assert_eq!(
        call(&lab, &caller, &mut fs, Some(&old)).await,
        Code::TokenInvalid
    );
    assert_eq!(call(&lab, &caller, &mut fs, Some(&new)).await, ANSWERED);
    assert_eq!(
        call(&lab, &caller, &mut fs, None).await,
        ANSWERED,
        "what is on record was issued anew"
    );
    let lab = lab.restart().await.unwrap();
    let Provider { actor, .. } = fs;
    let socket = lab.provide(&actor, &["fs.read"]).await.unwrap();
    let mut fs = Provider { actor, socket };
    assert_eq!(call(&lab, &caller, &mut fs, None).await, ANSWERED);
}

#[tokio::test]
async fn an_admin_reads_the_configuration_and_no_secret_is_in_it() {
    let lab = Lab::start().await.unwrap();
    let Ack::Config { config } = lab
        .ask(&lab.admin, Kind::AdminConfigRead, &json!({}))
        .await
        .unwrap()
    else {
        panic!()
    };
    assert_eq!(config["org"], "acme");
    assert_eq!(config["limits"]["deadline_ms"], 60_000);
    assert!(!config.to_string().contains("PRIVATE"));
    let caller = lab.agent("caller", 3, &["fs.*"]).await.unwrap();
    let sealed = caller.seal(
        Kind::AdminConfigRead,
        &to_broker().unwrap(),
        lab.now(),
        &json!({}),
    );
    let reply = lab.post(sealed.unwrap().bytes).await.unwrap();
    assert_eq!(code_of(&reply.envelope().unwrap()).unwrap(), Code::Denied);
}

#[tokio::test]
async fn what_was_handed_out_is_shown_dead_when_its_key_or_its_root_is() {
    let lab = Lab::start().await.unwrap();
    let names = ["revoked", "rotated", "kept"];
    for (seed, name) in (3..).zip(names) {
        lab.agent(name, seed, &[]).await.unwrap();
        issue_to(
            &lab,
            name,
            json!({"capabilities": ["fs.read"], "record": false}),
        )
        .await;
    }
    let shown = async || {
        let nothing = json!({});
        let ask = |kind| lab.ask(&lab.admin, kind, &nothing);
        let Ack::Tokens { tokens, .. } = ask(Kind::AdminTokenList).await.unwrap() else {
            panic!()
        };
        let Ack::Tree { nodes, .. } = ask(Kind::AdminTokenTree).await.unwrap() else {
            panic!()
        };
        let dead = |name: &str| {
            let token = tokens
                .iter()
                .find(|one| one.kind == "grant" && one.subject == name);
            let id = token.unwrap().id;
            let node = nodes.iter().find(|node| node.id == id).unwrap();
            assert_eq!(node.revoked, token.unwrap().revoked, "{name}");
            node.revoked
        };
        names.map(dead)
    };
    assert_eq!(shown().await, [false; 3]);
    let dry = json!({"name": "revoked", "dry_run": true});
    let would = struck(
        lab.ask(&lab.admin, Kind::AdminAgentRevoke, &dry)
            .await
            .unwrap(),
    );
    assert_eq!(would.tokens, 1, "what was handed out dies with the key");
    lab.ask(
        &lab.admin,
        Kind::AdminAgentRevoke,
        &json!({"name": "revoked"}),
    )
    .await
    .unwrap();
    let new = Actor::new("rotated", 40).unwrap();
    lab.register(&new).await.unwrap();
    lab.approve(&new, &[]).await.unwrap();
    assert_eq!(shown().await, [true, true, false]);
    let first = lab.broker.core().state.roots.life().all()[0].key;
    let act = async |kind, body: Value| lab.ask(&lab.admin, kind, &body).await.unwrap();
    act(Kind::AdminRootPrepare, json!({})).await;
    let next = lab.broker.core().state.roots.life().all()[1].key;
    act(Kind::AdminRootActivate, json!({"key": next})).await;
    assert_eq!(shown().await, [true, true, false]);
    act(Kind::AdminRootRetire, json!({"key": first})).await;
    assert_eq!(shown().await, [true; 3]);
}

#[tokio::test]
async fn an_admin_takes_nothing_back_from_one_of_a_wider_scope() {
    let lab = Lab::start().await.unwrap();
    admin(&lab, "second", 3).await;
    let narrow = Actor::new("narrow", 4).unwrap();
    lab.register(&narrow).await.unwrap();
    let body = json!({"name": "narrow", "key": narrow.key.public(), "capabilities": ["admin.*"],
        "admin": {"grantable": ["code.*"], "names": ["*"]}});
    lab.ask(&lab.admin, Kind::AdminAgentApprove, &body)
        .await
        .unwrap();
    let Ack::Tokens { tokens, .. } = lab
        .ask(&narrow, Kind::AdminTokenList, &json!({}))
        .await
        .unwrap()
    else {
        panic!()
    };
    for token in tokens.iter().filter(|one| one.subject != "narrow") {
        for (kind, body) in [
            (Kind::AdminTokenRevoke, json!({"ids": [token.id]})),
            (Kind::Revoke, json!({"ids": [token.id]})),
        ] {
            let refused = lab.ask(&narrow, kind, &body).await.unwrap_err();
            assert!(refused.to_string().contains("NOT_FOUND"), "{refused}");
        }
    }
}

#[tokio::test]
async fn two_revocations_at_once_leave_a_full_admin() {
    let lab = Lab::start().await.unwrap();
    let second = admin(&lab, "second", 3).await;
    let ids = |name: &str| {
        let agent = lab
            .broker
            .core()
            .state
            .registry
            .agent(&name.parse().unwrap());
        agent.unwrap().approval.unwrap()
    };
    let order = |by: &Actor, id| {
        let sealed = by.seal(
            Kind::Revoke,
            &to_broker().unwrap(),
            lab.now(),
            &json!({"ids": [id]}),
        );
        let (line, bytes) = (lab.line.clone(), sealed.unwrap().bytes);
        tokio::spawn(async move { line.post("/fem", bytes).await.unwrap().status })
    };
    let (one, other) = (
        order(&lab.admin, ids("second")),
        order(&second, ids("root-admin")),
    );
    let done = [one.await.unwrap(), other.await.unwrap()];
    assert_eq!(
        done.iter().filter(|status| **status == 200).count(),
        1,
        "{done:?}"
    );
}

#[tokio::test]
async fn quarantine_finds_what_flows_through_an_admin_who_is_gone() {
    let lab = Lab::start().await.unwrap();
    let rogue = admin(&lab, "rogue", 3).await;
    let below = Actor::new("below", 4).unwrap();
    lab.register(&below).await.unwrap();
    let body = json!({"name": "below", "key": below.key.public(), "capabilities": ["admin.*"],
        "admin": {"grantable": ["fs.*"], "names": ["*"]}});
    lab.ask(&rogue, Kind::AdminAgentApprove, &body)
        .await
        .unwrap();
    let last = Actor::new("last", 5).unwrap();
    lab.register(&last).await.unwrap();
    let body = json!({"name": "last", "key": last.key.public(), "capabilities": ["fs.*"]});
    lab.ask(&below, Kind::AdminAgentApprove, &body)
        .await
        .unwrap();
    for name in ["below", "rogue"] {
        lab.ask(&lab.admin, Kind::AdminAgentRevoke, &json!({"name": name}))
            .await
            .unwrap();
    }
    let order = json!({"name": "rogue"});
    let done = struck(
        lab.ask(&lab.admin, Kind::AdminAgentQuarantine, &order)
            .await
            .unwrap(),
    );
    let names: Vec<_> = done.agents.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["last"]);
}
