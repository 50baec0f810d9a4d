//! How a key becomes an agent, and how it stops being one.

use proto_spec::message::{Ack, RegisterAgent};
use proto_spec::{Code, Kind, SigningKey};
use serde_json::json;
use tests::lab::{Actor, Lab, patterns, to_broker};
use tests::wire::Heard;

use crate::refused;

fn code_of_failure(error: &anyhow::Error) -> String {
    error.to_string()
}

#[tokio::test]
async fn a_stranger_always_gets_the_same_pending() {
    let lab = Lab::start().await.unwrap();
    lab.agent("fs", 2, &["x.*"]).await.unwrap();
    for actor in [
        Actor::new("fs", 9).unwrap(),
        Actor::new("new", 10).unwrap(),
        Actor::new("root-admin", 11).unwrap(),
    ] {
        assert!(matches!(lab.register(&actor).await.unwrap(), Ack::Pending));
        assert!(
            matches!(lab.register(&actor).await.unwrap(), Ack::Pending),
            "again the same"
        );
    }
}

#[tokio::test]
async fn what_an_agent_asks_for_is_a_request_and_never_a_grant() {
    let lab = Lab::start().await.unwrap();
    let actor = Actor::new("greedy", 2).unwrap();
    let body = RegisterAgent {
        pubkey: actor.key.public(),
        capabilities: patterns(&["*", "admin.*"]).unwrap(),
        prefixes: patterns(&["other.*"]).unwrap(),
        enrolment: None,
        note: None,
    };
    lab.ask(&actor, Kind::RegisterAgent, &body).await.unwrap();
    lab.approve(&actor, &["fs.read"]).await.unwrap();
    let Ack::Registered {
        capabilities,
        prefixes,
    } = lab.register(&actor).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(capabilities, patterns(&["fs.read"]).unwrap());
    assert_eq!(prefixes, patterns(&["greedy.*"]).unwrap());
}

#[tokio::test]
async fn a_taken_name_becomes_a_pending_key_change() {
    let lab = Lab::start().await.unwrap();
    let old = lab.agent("fs", 2, &["x.y"]).await.unwrap();
    let mut attached = lab.attach(&old).await.unwrap();
    let new = Actor::new("fs", 9).unwrap();
    assert!(matches!(lab.register(&new).await.unwrap(), Ack::Pending));
    let Ack::Agent { agent, pending } = lab
        .ask(&lab.admin, Kind::AdminAgentShow, &json!({"name": "fs"}))
        .await
        .unwrap()
    else {
        panic!()
    };
    assert_eq!(agent.unwrap().key, old.key.public(), "nothing changed yet");
    assert!(pending[0].key_change);
    lab.approve(&new, &["x.y"]).await.unwrap();
    assert!(
        matches!(attached.hear().await.unwrap(), Heard::Closed),
        "the old key's session ends"
    );
    assert!(lab.attach(&old).await.is_err());
    lab.attach(&new).await.unwrap();
}

#[tokio::test]
async fn a_restart_with_the_same_key_is_not_a_new_registration() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &["x.y"]).await.unwrap();
    assert!(matches!(
        lab.register(&fs).await.unwrap(),
        Ack::Registered { .. }
    ));
    let Ack::Agents { pending, .. } = lab
        .ask(&lab.admin, Kind::AdminAgentList, &json!({}))
        .await
        .unwrap()
    else {
        panic!()
    };
    assert!(pending.is_empty());
}

#[tokio::test]
async fn a_revoked_key_never_registers_again() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &["x.y"]).await.unwrap();
    let mut attached = lab.attach(&fs).await.unwrap();
    lab.ask(&lab.admin, Kind::AdminAgentRevoke, &json!({"name": "fs"}))
        .await
        .unwrap();
    assert!(matches!(attached.hear().await.unwrap(), Heard::Closed));
    let call = fs.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
    assert_eq!(
        refused(&lab.post(call.bytes).await.unwrap()),
        Code::NotAuthentic
    );
    let renamed = Actor {
        id: "other@acme".parse().unwrap(),
        key: SigningKey::from_seed(&[2; 32]),
    };
    for actor in [&fs, &renamed] {
        let error = lab.register(actor).await.unwrap_err();
        assert!(code_of_failure(&error).contains("DENIED"), "{error}");
    }
    let lab = lab.restart().await.unwrap();
    assert!(lab.register(&fs).await.is_err(), "nor after a restart");
}

#[tokio::test]
async fn a_denied_request_hears_the_admins_reason() {
    let lab = Lab::start().await.unwrap();
    let actor = Actor::new("fs", 2).unwrap();
    lab.register(&actor).await.unwrap();
    let body = json!({"name": "fs", "key": actor.key.public(), "reason": "ask Ada first"});
    lab.ask(&lab.admin, Kind::AdminAgentDeny, &body)
        .await
        .unwrap();
    assert!(code_of_failure(&lab.register(&actor).await.unwrap_err()).contains("ask Ada first"));
}

#[tokio::test]
async fn an_enrolment_token_registers_within_its_ceiling_and_counts_its_uses() {
    let lab = Lab::start().await.unwrap();
    let body = json!({"name": "build-*", "ceiling": ["code.*"], "uses": 2});
    let Ack::Issued {
        token: Some(token), ..
    } = lab
        .ask(&lab.admin, Kind::AdminEnrolIssue, &body)
        .await
        .unwrap()
    else {
        panic!()
    };
    let enrol = |actor: &Actor| RegisterAgent {
        pubkey: actor.key.public(),
        capabilities: patterns(&["code.run", "shell.run"]).unwrap(),
        prefixes: Vec::new(),
        enrolment: Some(token.clone()),
        note: None,
    };
    let outsider = Actor::new("outsider", 9).unwrap();
    assert!(
        lab.ask(&outsider, Kind::RegisterAgent, &enrol(&outsider))
            .await
            .is_err(),
        "another name"
    );
    for (name, seed) in [("build-1", 2), ("build-2", 3)] {
        let actor = Actor::new(name, seed).unwrap();
        let ack = lab
            .ask(&actor, Kind::RegisterAgent, &enrol(&actor))
            .await
            .unwrap();
        let Ack::Registered { capabilities, .. } = ack else {
            panic!("{ack:?}")
        };
        assert_eq!(
            capabilities,
            patterns(&["code.run"]).unwrap(),
            "asked ∩ ceiling"
        );
    }
    let third = Actor::new("build-3", 4).unwrap();
    let error = lab
        .ask(&third, Kind::RegisterAgent, &enrol(&third))
        .await
        .unwrap_err();
    assert!(code_of_failure(&error).contains("TOKEN_REVOKED"), "{error}");
}

#[tokio::test]
async fn a_key_is_followed_by_another_only_when_both_sign() {
    let lab = Lab::start().await.unwrap();
    let old = lab.agent("caller", 2, &["fs.*"]).await.unwrap();
    let fs = lab.agent("fs", 3, &[]).await.unwrap();
    let _provider = lab.provide(&fs, &["fs.read"]).await.unwrap();
    let new = Actor::new("caller", 9).unwrap();
    let accept = |signer: &Actor, follows: &Actor| {
        let body = json!({"pubkey": new.key.public(), "follows": follows.key.public()});
        let sealed = signer
            .seal(Kind::AcceptKey, &to_broker().unwrap(), lab.now(), &body)
            .unwrap();
        json!({"accept": String::from_utf8(sealed.bytes.to_vec()).unwrap()})
    };
    assert!(
        lab.ask(&old, Kind::RotateKey, &accept(&old, &old))
            .await
            .is_err(),
        "the new key did not sign"
    );
    assert!(
        lab.ask(&old, Kind::RotateKey, &accept(&new, &fs))
            .await
            .is_err(),
        "it follows another"
    );
    lab.ask(&old, Kind::RotateKey, &accept(&new, &old))
        .await
        .unwrap();
    let call = old.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
    assert_eq!(
        refused(&lab.post(call.bytes).await.unwrap()),
        Code::NotAuthentic
    );
    let Ack::Registered { capabilities, .. } = lab.register(&new).await.unwrap() else {
        panic!()
    };
    assert_eq!(
        capabilities,
        patterns(&["fs.*"]).unwrap(),
        "its grants were issued anew"
    );
}

#[tokio::test]
async fn an_admin_grants_nothing_beyond_its_own_scope() {
    let lab = Lab::start().await.unwrap();
    let limited = Actor::new("builder-admin", 2).unwrap();
    lab.register(&limited).await.unwrap();
    let body = json!({
        "name": "builder-admin", "key": limited.key.public(),
        "capabilities": ["admin.agent.*", "admin.token.issue"],
        "admin": {"grantable": ["code.*"], "names": ["build-*"]},
    });
    lab.ask(&lab.admin, Kind::AdminAgentApprove, &body)
        .await
        .unwrap();
    let mine = Actor::new("build-1", 3).unwrap();
    let other = Actor::new("fs", 4).unwrap();
    lab.register(&mine).await.unwrap();
    lab.register(&other).await.unwrap();
    let approve = |actor: &Actor, capability: &str| json!({"name": actor.id.name(), "key": actor.key.public(), "capabilities": [capability]});
    for (body, why) in [
        (approve(&other, "code.run"), "another name"),
        (approve(&mine, "shell.run"), "another capability"),
        (approve(&mine, "*"), "a wider one"),
    ] {
        let error = lab
            .ask(&limited, Kind::AdminAgentApprove, &body)
            .await
            .unwrap_err();
        assert!(code_of_failure(&error).contains("DENIED"), "{why}: {error}");
    }
    lab.ask(
        &limited,
        Kind::AdminAgentApprove,
        &approve(&mine, "code.run"),
    )
    .await
    .unwrap();
    let revoke = json!({"ids": [proto_spec::Digest([1; 32])]});
    assert!(
        lab.ask(&limited, Kind::Revoke, &revoke).await.is_err(),
        "an act it was not given"
    );
    let last = lab
        .ask(
            &lab.admin,
            Kind::AdminAgentRevoke,
            &json!({"name": "root-admin"}),
        )
        .await;
    assert!(
        code_of_failure(&last.unwrap_err()).contains("CONFLICT"),
        "the last full admin stays"
    );
}

#[tokio::test]
async fn agents_grants_and_revocations_survive_a_restart() {
    let lab = Lab::start().await.unwrap();
    let keeps = lab.agent("keeps", 2, &[]).await.unwrap();
    let loses = lab.agent("loses", 3, &[]).await.unwrap();
    let mut ids = Vec::new();
    for name in ["keeps", "loses"] {
        let body =
            json!({"agent": name, "capabilities": ["fs.read"], "checks": [], "record": true});
        let Ack::Issued { id, .. } = lab
            .ask(&lab.admin, Kind::AdminTokenIssue, &body)
            .await
            .unwrap()
        else {
            panic!()
        };
        ids.push(id);
    }
    lab.ask(&lab.admin, Kind::Revoke, &json!({"ids": [ids[1]]}))
        .await
        .unwrap();
    let lab = lab.restart().await.unwrap();
    let fs = lab.agent("fs", 4, &[]).await.unwrap();
    let mut provider = lab.provide(&fs, &["fs.read"]).await.unwrap();
    let refused_call = loses.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
    assert_eq!(
        refused(&lab.post(refused_call.bytes).await.unwrap()),
        Code::Denied
    );
    let call = keeps.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
    let (reply, ()) = tokio::join!(lab.post(call.bytes), async {
        let delivered = provider.hear().await.unwrap().delivered().unwrap();
        provider
            .send(lab.result(&fs, &delivered, &json!(1)).unwrap().bytes)
            .await
            .unwrap();
    });
    assert_eq!(reply.unwrap().status, 200);
}

#[tokio::test]
async fn a_grant_is_revoked_under_its_old_id_after_its_key_was_rotated() {
    let lab = Lab::start().await.unwrap();
    let old = lab.agent("caller", 2, &[]).await.unwrap();
    let fs = lab.agent("fs", 3, &[]).await.unwrap();
    let _provider = lab.provide(&fs, &["fs.read"]).await.unwrap();
    let body =
        json!({"agent": "caller", "capabilities": ["fs.read"], "checks": [], "record": true});
    let issued = lab
        .ask(&lab.admin, Kind::AdminTokenIssue, &body)
        .await
        .unwrap();
    let Ack::Issued { id, .. } = issued else {
        panic!()
    };
    let new = Actor::new("caller", 9).unwrap();
    let consent = json!({"pubkey": new.key.public(), "follows": old.key.public()});
    let accept = new
        .seal(Kind::AcceptKey, &to_broker().unwrap(), lab.now(), &consent)
        .unwrap();
    let body = json!({"accept": String::from_utf8(accept.bytes.to_vec()).unwrap()});
    lab.ask(&old, Kind::RotateKey, &body).await.unwrap();
    lab.ask(&lab.admin, Kind::Revoke, &json!({"ids": [id]}))
        .await
        .unwrap();
    let call = new.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
    assert_eq!(refused(&lab.post(call.bytes).await.unwrap()), Code::Denied);
}

#[tokio::test]
async fn an_admin_is_not_disarmed_by_one_of_a_narrower_scope_nor_the_last_one_by_an_approval() {
    let lab = Lab::start().await.unwrap();
    let limited = Actor::new("limited", 2).unwrap();
    lab.register(&limited).await.unwrap();
    let body = json!({
        "name": "limited", "key": limited.key.public(), "capabilities": ["admin.agent.*"],
        "admin": {"grantable": ["code.*"], "names": ["*"]},
    });
    lab.ask(&lab.admin, Kind::AdminAgentApprove, &body)
        .await
        .unwrap();
    let disarm = json!({
        "name": "root-admin", "key": lab.admin.key.public(), "capabilities": [],
        "admin": {"grantable": [], "names": []},
    });
    let error = lab
        .ask(&limited, Kind::AdminAgentApprove, &disarm)
        .await
        .unwrap_err();
    assert!(code_of_failure(&error).contains("DENIED"), "{error}");
    let error = lab
        .ask(
            &limited,
            Kind::AdminAgentRevoke,
            &json!({"name": "root-admin"}),
        )
        .await;
    assert!(code_of_failure(&error.unwrap_err()).contains("DENIED"));
    let error = lab
        .ask(&lab.admin, Kind::AdminAgentApprove, &disarm)
        .await
        .unwrap_err();
    assert!(code_of_failure(&error).contains("CONFLICT"), "{error}");
}

#[tokio::test]
async fn another_organisations_agent_is_not_registered_here() {
    let lab = Lab::start().await.unwrap();
    let actor = Actor {
        id: "fs@globex".parse().unwrap(),
        key: SigningKey::from_seed(&[7; 32]),
    };
    let error = lab.register(&actor).await.unwrap_err();
    assert!(
        code_of_failure(&error).contains("WRONG_AUDIENCE"),
        "{error}"
    );
}

#[tokio::test]
async fn a_worthless_enrolment_token_does_not_tell_which_names_exist() {
    let lab = Lab::start().await.unwrap();
    lab.agent("known", 2, &[]).await.unwrap();
    let mut answers = Vec::new();
    for (seed, name) in (9..).zip(["known", "unknown"]) {
        let actor = Actor::new(name, seed).unwrap();
        let body = json!({"pubkey": actor.key.public(), "enrolment": "AAAA"});
        let refused = lab
            .ask(&actor, Kind::RegisterAgent, &body)
            .await
            .unwrap_err();
        answers.push(refused.to_string());
    }
    assert_eq!(answers[0], answers[1]);
}
