//! The life of a call.

use proto_spec::message::{Credential, ToolResult};
use proto_spec::{Code, Digest, Kind};
use serde_json::json;
use tests::lab::{Extra, Lab, hears_refusal};
use tests::site::Site;
use tests::wire::Heard;

use crate::refused;

#[tokio::test]
async fn a_call_arrives_byte_for_byte_as_it_was_signed() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &["fs.read"]).await.unwrap();
    let mut provider = lab.provide(&fs, &["fs.read"]).await.unwrap();
    let call = caller
        .call(
            "fs",
            "fs.read",
            &json!({"path": "/a\u{2028}", "n": 9007199254740993_u64}),
            lab.now(),
        )
        .unwrap();
    let posted = lab.post(call.bytes.clone());
    let served = async {
        let Heard::Delivered {
            envelope,
            credential,
        } = provider.hear().await.unwrap()
        else {
            panic!()
        };
        assert_eq!(envelope.bytes(), &call.bytes);
        let word: Credential = credential.read_body().unwrap();
        assert_eq!(
            (word.subject, word.key),
            (caller.id.clone(), caller.key.public())
        );
        assert_eq!(word.permit.unwrap().capability.as_str(), "fs.read");
        let result = lab
            .result(&fs, &envelope, &json!({"text": "hello"}))
            .unwrap();
        provider.send(result.bytes.clone()).await.unwrap();
        result
    };
    let (reply, result) = tokio::join!(posted, served);
    let reply = reply.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.body, result.bytes,
        "the answer is the provider's own envelope"
    );
    assert!(
        reply.credential.is_some(),
        "the caller is told whose key that is"
    );
}

#[tokio::test]
async fn a_call_over_a_session_is_answered_on_it_with_the_providers_credential() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &["fs.*"]).await.unwrap();
    let mut provider = lab.provide(&fs, &["fs.read"]).await.unwrap();
    let mut session = lab.attach(&caller).await.unwrap();
    for round in 0..3 {
        let call = caller
            .call("fs", "fs.read", &json!({"round": round}), lab.now())
            .unwrap();
        session.send(call.bytes).await.unwrap();
        let delivered = provider.hear().await.unwrap().delivered().unwrap();
        provider
            .send(lab.result(&fs, &delivered, &json!(round)).unwrap().bytes)
            .await
            .unwrap();
        let Heard::Delivered {
            envelope,
            credential,
        } = session.hear().await.unwrap()
        else {
            panic!()
        };
        assert_eq!(envelope.re(), Some(call.id));
        let result: ToolResult<'_> = envelope.read_body().unwrap();
        assert_eq!(result.result.unwrap().get(), round.to_string());
        assert_eq!(
            credential.read_body::<Credential>().unwrap().key,
            fs.key.public()
        );
    }
}

#[tokio::test]
async fn an_unknown_recipient_looks_like_a_forbidden_one() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let _provider = lab.provide(&fs, &["fs.read"]).await.unwrap();
    let nobody = lab.agent("nobody", 3, &["other.*"]).await.unwrap();
    let all = lab.agent("all", 4, &["*"]).await.unwrap();
    let mut answers = Vec::new();
    for (caller, provider, tool) in [
        (&nobody, "fs", "fs.read"),
        (&nobody, "ghost", "fs.read"),
        (&nobody, "ghost", "ghost.read"),
        (&all, "ghost", "ghost.read"),
        (&all, "fs", "ghost.read"),
    ] {
        let call = caller.call(provider, tool, &json!({}), lab.now()).unwrap();
        let reply = lab.post(call.bytes).await.unwrap();
        assert_eq!(refused(&reply), Code::Denied, "{provider} {tool}");
        answers.push(reply.envelope().unwrap().body().to_owned());
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "the same words: {answers:?}");
}

#[tokio::test]
async fn a_grant_of_file_star_does_not_reach_filesystem() {
    let lab = Lab::start().await.unwrap();
    let provider = lab.agent("filesystem", 2, &[]).await.unwrap();
    let _session = lab.provide(&provider, &["filesystem.read"]).await.unwrap();
    let caller = lab.agent("caller", 3, &["file.*"]).await.unwrap();
    let call = caller
        .call("filesystem", "filesystem.read", &json!({}), lab.now())
        .unwrap();
    assert_eq!(refused(&lab.post(call.bytes).await.unwrap()), Code::Denied);
}

#[tokio::test]
async fn a_provider_that_is_gone_is_unavailable() {
    let lab = Lab::start().await.unwrap();
    lab.agent("fs", 2, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &["fs.*"]).await.unwrap();
    let call = caller.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
    assert_eq!(
        refused(&lab.post(call.bytes).await.unwrap()),
        Code::Unavailable
    );
}

#[tokio::test]
async fn a_provider_that_is_lost_in_mid_call_is_outcome_unknown() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &["fs.*"]).await.unwrap();
    let mut provider = lab.provide(&fs, &["fs.read"]).await.unwrap();
    let call = caller.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
    let (reply, ()) = tokio::join!(lab.post(call.bytes), async {
        provider.hear().await.unwrap().delivered().unwrap();
        drop(provider);
    });
    let reply = reply.unwrap();
    assert_eq!(refused(&reply), Code::OutcomeUnknown);
    assert_eq!(reply.envelope().unwrap().re(), Some(call.id));
}

#[tokio::test]
async fn a_provider_that_is_too_slow_is_a_deadline() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &["fs.*"]).await.unwrap();
    let mut provider = lab.provide(&fs, &["fs.read"]).await.unwrap();
    let to = "fs@acme".parse().unwrap();
    let extra = Extra {
        deadline: Some(5_000),
        ..Extra::default()
    };
    let call = caller
        .seal_with(
            Kind::ToolCall,
            &to,
            lab.now(),
            &json!({"tool": "fs.read"}),
            &extra,
        )
        .unwrap();
    let (reply, told) = tokio::join!(lab.post(call.bytes), async {
        let delivered = provider.hear().await.unwrap().delivered().unwrap();
        lab.broker
            .core()
            .clock
            .advance(std::time::Duration::from_secs(6));
        let told = provider.hear().await.unwrap().said().unwrap();
        // Too late: the call has ended.
        provider
            .send(lab.result(&fs, &delivered, &json!(1)).unwrap().bytes)
            .await
            .unwrap();
        assert_eq!(
            hears_refusal(&mut provider).await.unwrap(),
            Code::NoSuchCall
        );
        told
    });
    assert_eq!(refused(&reply.unwrap()), Code::Deadline);
    assert_eq!((told.kind(), told.re()), (Kind::ToolCancel, Some(call.id)));
}

#[tokio::test]
async fn a_cancelled_call_ends_at_once_and_the_provider_is_told() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &["fs.*"]).await.unwrap();
    let mut provider = lab.provide(&fs, &["fs.read"]).await.unwrap();
    let mut session = lab.attach(&caller).await.unwrap();
    let call = caller.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
    session.send(call.bytes).await.unwrap();
    let delivered = provider.hear().await.unwrap().delivered().unwrap();
    let to = "fs@acme".parse().unwrap();
    let extra = Extra {
        re: Some(call.id),
        ..Extra::default()
    };
    let cancel = caller
        .seal_with(Kind::ToolCancel, &to, lab.now(), &json!({}), &extra)
        .unwrap();
    session.send(cancel.bytes.clone()).await.unwrap();
    let heard = session.hear().await.unwrap().said().unwrap();
    assert_eq!(heard.re(), Some(call.id));
    assert_eq!(tests::lab::code_of(&heard).unwrap(), Code::Cancelled);
    let told = provider.hear().await.unwrap().delivered().unwrap();
    assert_eq!(told.bytes(), &cancel.bytes, "in the caller's own words");
    provider
        .send(lab.result(&fs, &delivered, &json!(1)).unwrap().bytes)
        .await
        .unwrap();
    assert_eq!(
        hears_refusal(&mut provider).await.unwrap(),
        Code::NoSuchCall
    );
}

#[tokio::test]
async fn closing_the_post_cancels_the_call() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &["fs.*"]).await.unwrap();
    let mut provider = lab.provide(&fs, &["fs.read"]).await.unwrap();
    let call = caller.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
    let line = lab.line.clone();
    let bytes = call.bytes.clone();
    let posting = tokio::spawn(async move { line.post("/fem", bytes).await });
    provider.hear().await.unwrap().delivered().unwrap();
    posting.abort();
    let told = provider.hear().await.unwrap().said().unwrap();
    assert_eq!((told.kind(), told.re()), (Kind::ToolCancel, Some(call.id)));
}

#[tokio::test]
async fn a_result_is_taken_only_from_the_session_that_got_the_call() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let other = lab.agent("other", 4, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &["fs.*"]).await.unwrap();
    let mut provider = lab.provide(&fs, &["fs.read"]).await.unwrap();
    let mut twin = lab.attach(&fs).await.unwrap();
    let mut stranger = lab.attach(&other).await.unwrap();
    let call = caller.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
    let (reply, ()) = tokio::join!(lab.post(call.bytes), async {
        let delivered = provider.hear().await.unwrap().delivered().unwrap();
        stranger
            .send(
                lab.result(&other, &delivered, &json!("forged"))
                    .unwrap()
                    .bytes,
            )
            .await
            .unwrap();
        assert_eq!(
            hears_refusal(&mut stranger).await.unwrap(),
            Code::NoSuchCall
        );
        twin.send(lab.result(&fs, &delivered, &json!("twin")).unwrap().bytes)
            .await
            .unwrap();
        assert_eq!(hears_refusal(&mut twin).await.unwrap(), Code::NoSuchCall);
        provider
            .send(lab.result(&fs, &delivered, &json!("right")).unwrap().bytes)
            .await
            .unwrap();
        provider
            .send(lab.result(&fs, &delivered, &json!("twice")).unwrap().bytes)
            .await
            .unwrap();
        assert_eq!(
            hears_refusal(&mut provider).await.unwrap(),
            Code::NoSuchCall
        );
    });
    assert!(String::from_utf8_lossy(&reply.unwrap().body).contains("right"));
    let extra = Extra {
        re: Some(Digest([9; 32])),
        ..Extra::default()
    };
    let to = "caller@acme".parse().unwrap();
    let never = fs
        .seal_with(
            Kind::ToolResult,
            &to,
            lab.now(),
            &json!({"result": 1}),
            &extra,
        )
        .unwrap();
    provider.send(never.bytes).await.unwrap();
    assert_eq!(
        hears_refusal(&mut provider).await.unwrap(),
        Code::NoSuchCall
    );
}

#[tokio::test]
async fn calls_are_spread_over_instances_by_outstanding_load() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &["fs.*"]).await.unwrap();
    let mut instances = [
        lab.provide(&fs, &["fs.read"]).await.unwrap(),
        lab.provide(&fs, &["fs.read"]).await.unwrap(),
        lab.provide(&fs, &["fs.read"]).await.unwrap(),
    ];
    let mut session = lab.attach(&caller).await.unwrap();
    for _ in 0..9 {
        let call = caller.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
        session.send(call.bytes).await.unwrap();
    }
    // None is answered, so each instance has exactly a third of them.
    for instance in &mut instances {
        for _ in 0..3 {
            instance.hear().await.unwrap().delivered().unwrap();
        }
    }
}

#[tokio::test]
async fn a_full_queue_is_busy() {
    let lab = Lab::with_limits("outbox_max = 4\ncalls_per_session_max = 4")
        .await
        .unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &["fs.*"]).await.unwrap();
    let mut provider = lab.provide(&fs, &["fs.read"]).await.unwrap();
    let mut session = lab.attach(&caller).await.unwrap();
    for _ in 0..4 {
        session
            .send(
                caller
                    .call("fs", "fs.read", &json!({}), lab.now())
                    .unwrap()
                    .bytes,
            )
            .await
            .unwrap();
    }
    let beyond = caller.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
    session.send(beyond.bytes).await.unwrap();
    let heard = session.hear().await.unwrap().said().unwrap();
    assert_eq!(
        (tests::lab::code_of(&heard).unwrap(), heard.re()),
        (Code::Busy, Some(beyond.id))
    );
    // What was taken is delivered, and its answer makes room.
    let delivered = provider.hear().await.unwrap().delivered().unwrap();
    provider
        .send(lab.result(&fs, &delivered, &json!(1)).unwrap().bytes)
        .await
        .unwrap();
    session.hear().await.unwrap().delivered().unwrap();
    session
        .send(
            caller
                .call("fs", "fs.read", &json!({}), lab.now())
                .unwrap()
                .bytes,
        )
        .await
        .unwrap();
    for _ in 0..4 {
        provider.hear().await.unwrap().delivered().unwrap();
    }
}

#[tokio::test]
async fn progress_and_input_reach_only_the_call_they_belong_to() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &["fs.*"]).await.unwrap();
    let mut provider = lab.provide(&fs, &["fs.read"]).await.unwrap();
    let mut session = lab.attach(&caller).await.unwrap();
    let mut bystander = lab.attach(&caller).await.unwrap();
    let to = "fs@acme".parse().unwrap();
    let body = json!({"tool": "fs.read", "progress": true});
    let call = caller.seal(Kind::ToolCall, &to, lab.now(), &body).unwrap();
    session.send(call.bytes).await.unwrap();
    provider.hear().await.unwrap().delivered().unwrap();
    let extra = Extra {
        re: Some(call.id),
        ..Extra::default()
    };
    let back = "caller@acme".parse().unwrap();
    for seq in 1..=3 {
        let body = json!({"seq": seq, "progress": 0.5});
        let progress = fs
            .seal_with(Kind::ToolProgress, &back, lab.now(), &body, &extra)
            .unwrap();
        provider.send(progress.bytes).await.unwrap();
    }
    for seq in 1..=3 {
        let heard = session.hear().await.unwrap().delivered().unwrap();
        assert!(heard.body().contains(&format!("\"seq\":{seq}")), "in order");
    }
    let input = caller
        .seal_with(
            Kind::ToolInput,
            &to,
            lab.now(),
            &json!({"input": "yes"}),
            &extra,
        )
        .unwrap();
    bystander.send(input.bytes.clone()).await.unwrap();
    assert_eq!(
        hears_refusal(&mut bystander).await.unwrap(),
        Code::NoSuchCall
    );
    let input = caller
        .seal_with(
            Kind::ToolInput,
            &to,
            lab.now(),
            &json!({"input": "yes"}),
            &extra,
        )
        .unwrap();
    session.send(input.bytes.clone()).await.unwrap();
    assert_eq!(
        provider.hear().await.unwrap().delivered().unwrap().bytes(),
        &input.bytes
    );
}

#[tokio::test]
async fn a_burst_of_calls_loses_none() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &["fs.*"]).await.unwrap();
    let mut provider = lab.provide(&fs, &["fs.read"]).await.unwrap();
    let mut session = lab.attach(&caller).await.unwrap();
    let calls: Vec<_> = (0..500)
        .map(|n| {
            caller
                .call("fs", "fs.read", &json!({"n": n}), lab.now())
                .unwrap()
        })
        .collect();
    session
        .send_together(calls.iter().map(|call| call.bytes.clone()))
        .await
        .unwrap();
    let mut results = Vec::new();
    for call in &calls {
        let delivered = provider.hear().await.unwrap().delivered().unwrap();
        assert_eq!(delivered.bytes(), &call.bytes, "in order");
        results.push(lab.result(&fs, &delivered, &json!(1)).unwrap().bytes);
    }
    provider.send_together(results).await.unwrap();
    for call in &calls {
        assert_eq!(
            session.hear().await.unwrap().delivered().unwrap().re(),
            Some(call.id)
        );
    }
}

#[tokio::test]
async fn a_call_goes_only_to_an_instance_that_requires_what_was_permitted() {
    let lab = Lab::start().await.unwrap();
    let fs = lab.agent("fs", 2, &[]).await.unwrap();
    let caller = lab.agent("caller", 3, &["fs.low"]).await.unwrap();
    let mut instances = Vec::new();
    for required in ["fs.low", "fs.high"] {
        let mut socket = lab.attach(&fs).await.unwrap();
        let body = json!({"tools": [{"name": "fs.read", "capability": required}]});
        let to = tests::lab::to_broker().unwrap();
        let offer = fs.seal(Kind::OfferTools, &to, lab.now(), &body).unwrap();
        socket.send(offer.bytes).await.unwrap();
        assert_eq!(
            socket.hear().await.unwrap().said().unwrap().kind(),
            Kind::Ack
        );
        instances.push(socket);
    }
    let mut session = lab.attach(&caller).await.unwrap();
    // Unanswered calls pile up on the first instance; the second stays idle all the same.
    for _ in 0..4 {
        let call = caller.call("fs", "fs.read", &json!({}), lab.now()).unwrap();
        session.send(call.bytes).await.unwrap();
        let Heard::Delivered { credential, .. } = instances[0].hear().await.unwrap() else {
            panic!()
        };
        let word: Credential = credential.read_body().unwrap();
        assert_eq!(word.permit.unwrap().capability.as_str(), "fs.low");
    }
}

#[tokio::test]
async fn a_tool_that_gives_back_nothing_is_a_call_that_was_answered() {
    let site = Site::new("").unwrap();
    let broker = site.start().unwrap();
    let agent = |name: &str, seed: u8| {
        let key = agent_sdk::Key::load(site.at("broker.pem")).unwrap();
        let config = agent_sdk::Config::builder()
            .agent(format!("{name}@acme"))
            .broker(format!("https://{}", broker.address))
            .broker_key(key.public().to_string())
            .ca_file(site.at("ca.pem"))
            .key(agent_sdk::Key::from_seed(&[seed; 32]));
        agent_sdk::Agent::new(config.build().unwrap()).unwrap()
    };
    let (admin, fs, caller) = (agent("root-admin", 1), agent("fs", 2), agent("caller", 3));
    for (name, agent, may) in [("fs", &fs, vec![]), ("caller", &caller, vec!["fs.clear"])] {
        agent.register(Default::default()).await.unwrap();
        let body = json!({"name": name, "key": agent.public_key(), "capabilities": may});
        let to = admin.broker().clone();
        let done = admin.request(Kind::AdminAgentApprove, to, &body).await;
        done.unwrap();
    }
    let clear = |_: agent_sdk::Call, _: serde_json::Value| async { Ok(()) };
    let tools = [agent_sdk::Tool::new("fs.clear", clear)];
    let serving = tokio::spawn(fs.offer(tools).await.unwrap().run());
    let answer = caller.call::<()>("fs@acme", "fs.clear", &json!({})).await;
    answer.unwrap();
    serving.abort();
}
