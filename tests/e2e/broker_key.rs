//! The broker's own key is replaced, and no agent is locked out before the old one is retired.

use std::sync::{Arc, Mutex};

use agent_sdk::{Agent, Call, Config, Error, NewBrokerKey, Tool};
use proto_spec::limits::BROKER_KEYS_MAX;
use proto_spec::message::{Ack, KeyRecord};
use proto_spec::succession::{Succession, successors};
use proto_spec::{Audience, Code, Kind, PublicKey, SigningKey};
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use tests::binaries::Process;
use tests::lab::{Lab, org};
use tests::site::Site;
use tests::wire::Reply;
use tokio::sync::Notify;

use crate::refused;

async fn keys(lab: &Lab, kind: Kind, body: Value) -> anyhow::Result<Vec<KeyRecord>> {
    match lab.ask(&lab.admin, kind, &body).await? {
        Ack::BrokerKeys { keys } => Ok(keys),
        other => panic!("{other:?}"),
    }
}

async fn prepared(lab: &Lab) -> PublicKey {
    let keys = keys(lab, Kind::AdminBrokerPrepare, json!({})).await;
    keys.unwrap()[1].key
}

fn states(keys: &[KeyRecord]) -> Vec<&str> {
    keys.iter().map(|one| one.state.as_str()).collect()
}

/// An admin's answer, for whose key signed it.
async fn answered(lab: &Lab) -> Reply {
    let to = Audience::Broker(org().unwrap());
    let list = lab
        .admin
        .seal(Kind::AdminBrokerList, &to, lab.now(), &json!({}));
    lab.post(list.unwrap().bytes).await.unwrap()
}

fn is_signed_by(reply: &Reply, key: &PublicKey) -> bool {
    let envelope = reply.envelope().unwrap();
    key.verifies(&envelope.signed_bytes(), envelope.signature())
}

#[tokio::test]
async fn a_broker_key_is_told_before_it_signs_and_a_restart_goes_on_in_every_phase() {
    let lab = Lab::start().await.unwrap();
    let first = lab.broker_key();
    let mut attached = lab.attach(&lab.admin).await.unwrap();
    let next = prepared(&lab).await;
    let told = attached.hear().await.unwrap().said().unwrap();
    let text = std::str::from_utf8(told.bytes()).unwrap();
    let named = Succession::check(text, &first, &org().unwrap()).unwrap();
    assert_eq!(*named.to(), next);
    let again = keys(&lab, Kind::AdminBrokerPrepare, json!({})).await;
    assert!(again.unwrap_err().to_string().contains("CONFLICT"));
    let lab = lab.restart().await.unwrap();
    assert!(is_signed_by(&answered(&lab).await, &first), "only prepared");

    let early = keys(&lab, Kind::AdminBrokerRetire, json!({"key": first})).await;
    assert!(
        early.unwrap_err().to_string().contains("CONFLICT"),
        "it signs"
    );
    let now = keys(&lab, Kind::AdminBrokerActivate, json!({"key": next})).await;
    assert_eq!(states(&now.unwrap()), ["active", "retiring"]);
    assert!(is_signed_by(&answered(&lab).await, &next));
    let lab = lab.restart().await.unwrap();
    assert!(is_signed_by(&answered(&lab).await, &next));
    let offered = lab.broker.core().state.broker_keys.successions();
    let led = successors(&first, &offered, &org().unwrap());
    assert_eq!(*led[0].to(), next);

    let left = keys(&lab, Kind::AdminBrokerRetire, json!({"key": first})).await;
    assert_eq!(states(&left.unwrap()), ["active"]);
    let lab = lab.restart().await.unwrap();
    assert!(is_signed_by(&answered(&lab).await, &next));
    assert!(lab.broker.core().state.broker_keys.successions().is_empty());
}

#[tokio::test]
async fn broker_keys_are_bounded_and_retire_oldest_first() {
    let lab = Lab::start().await.unwrap();
    let mut made = vec![lab.broker_key()];
    while made.len() < BROKER_KEYS_MAX {
        let next = prepared(&lab).await;
        let done = keys(&lab, Kind::AdminBrokerActivate, json!({"key": next})).await;
        done.unwrap();
        made.push(next);
    }
    let full = keys(&lab, Kind::AdminBrokerPrepare, json!({})).await;
    assert!(full.unwrap_err().to_string().contains("retire the oldest"));
    let chain = lab.broker.core().state.broker_keys.successions();
    let led = successors(&made[0], &chain, &org().unwrap());
    assert_eq!(led.last().unwrap().to(), made.last().unwrap());
    let middle = keys(&lab, Kind::AdminBrokerRetire, json!({"key": made[1]})).await;
    let why = middle.unwrap_err().to_string();
    assert!(why.contains(&made[0].fingerprint()), "{why}");
    for key in &made[..2] {
        let done = keys(&lab, Kind::AdminBrokerRetire, json!({ "key": key })).await;
        done.unwrap();
    }
    // One that was prepared and is not wanted is dropped, and nobody is led to it any more.
    let dropped = prepared(&lab).await;
    let done = keys(&lab, Kind::AdminBrokerRetire, json!({"key": dropped})).await;
    assert_eq!(done.unwrap().len(), BROKER_KEYS_MAX - 2);
    let chain = lab.broker.core().state.broker_keys.successions();
    let led = successors(&made[2], &chain, &org().unwrap());
    assert_eq!(led.last().unwrap().to(), made.last().unwrap());
}

#[tokio::test]
async fn only_a_full_admin_replaces_the_brokers_key() {
    let lab = Lab::start().await.unwrap();
    let limited = tests::lab::Actor::new("limited", 3).unwrap();
    lab.register(&limited).await.unwrap();
    let body = json!({"name": "limited", "key": limited.key.public(), "capabilities": ["admin.*"],
        "admin": {"grantable": ["fs.*"], "names": ["*"]}});
    lab.ask(&lab.admin, Kind::AdminAgentApprove, &body)
        .await
        .unwrap();
    let to = Audience::Broker(org().unwrap());
    let order = limited.seal(Kind::AdminBrokerPrepare, &to, lab.now(), &json!({}));
    let reply = lab.post(order.unwrap().bytes).await.unwrap();
    assert_eq!(refused(&reply), Code::Denied);
}

/// An organisation with a real broker, whose address stays, and agents that know its key of some time.
struct Acme {
    site: Site,
    broker: Option<Process>,
}

type Kept = Arc<Mutex<Vec<NewBrokerKey>>>;

impl Acme {
    fn new() -> Self {
        let site = Site::new("").unwrap();
        let broker = site.start().unwrap();
        let path = site.at("broker.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replacen("127.0.0.1:0", &broker.address.to_string(), 1);
        std::fs::write(path, text).unwrap();
        Self {
            site,
            broker: Some(broker),
        }
    }

    fn first_key(&self) -> PublicKey {
        let key = agent_sdk::Key::load(self.site.at("broker.pem")).unwrap();
        key.public()
    }

    /// The broker is killed and comes back.
    fn restart(&mut self) {
        self.broker.take().unwrap().kill().unwrap();
        self.broker = Some(self.site.start().unwrap());
    }

    fn agent(&self, name: &str, seed: u8, pinned: PublicKey) -> (Agent, Kept) {
        let kept = Kept::default();
        let keeper = Arc::clone(&kept);
        let config = Config::builder()
            .agent(format!("{name}@acme"))
            .broker(format!("https://{}", self.broker.as_ref().unwrap().address))
            .broker_key(pinned.to_string())
            .ca_file(self.site.at("ca.pem"))
            .key(agent_sdk::Key::from_seed(&[seed; 32]))
            .build()
            .unwrap()
            .on_broker_key(move |new| keeper.lock().unwrap().push(new));
        (Agent::new(config).unwrap(), kept)
    }

    /// An agent that an admin approved.
    async fn approved(&self, admin: &Agent, name: &str, seed: u8, may: &[&str]) -> (Agent, Kept) {
        let (agent, kept) = self.agent(name, seed, self.first_key());
        agent.register(Default::default()).await.unwrap();
        let body = json!({"name": name, "key": agent.public_key(), "capabilities": may});
        let broker = admin.broker().clone();
        admin
            .request(Kind::AdminAgentApprove, broker, &body)
            .await
            .unwrap();
        (agent, kept)
    }
}

async fn act(admin: &Agent, kind: Kind, body: Value) -> Vec<KeyRecord> {
    match admin.request(kind, admin.broker().clone(), &body).await {
        Ok(Ack::BrokerKeys { keys }) => keys,
        other => panic!("{other:?}"),
    }
}

async fn read(caller: &Agent) -> agent_sdk::Result<String> {
    caller
        .call("fs@acme", "fs.read", &json!({"wait": false}))
        .await
}

#[derive(serde::Deserialize)]
struct Read {
    wait: bool,
}

#[tokio::test]
async fn an_agent_that_slept_is_led_to_the_brokers_key_until_the_old_one_is_retired() {
    let mut acme = Acme::new();
    let first = acme.first_key();
    let (admin, _) = acme.agent("root-admin", 1, first);
    let (fs, fs_kept) = acme.approved(&admin, "fs", 2, &[]).await;
    let (caller, kept) = acme.approved(&admin, "caller", 3, &["fs.read"]).await;
    let (begun, released) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let tool = {
        let (begun, released) = (Arc::clone(&begun), Arc::clone(&released));
        Tool::raw(
            "fs.read",
            &json!({"type": "object"}),
            move |_: Call, arguments| {
                let (begun, released) = (Arc::clone(&begun), Arc::clone(&released));
                async move {
                    let read: Read = serde_json::from_str(arguments.get()).unwrap();
                    if read.wait {
                        begun.notify_one();
                        released.notified().await;
                    }
                    Ok(to_raw_value("read")?)
                }
            },
        )
    };
    let serving = tokio::spawn({
        let fs = fs.clone();
        async move { fs.serve([tool]).await }
    });
    while read(&caller).await.is_err() {
        tokio::task::yield_now().await;
    }

    let next = act(&admin, Kind::AdminBrokerPrepare, json!({})).await[1].key;
    acme.restart();
    while read(&caller).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert!(
        kept.lock().unwrap().is_empty(),
        "the old key signs as before"
    );

    // A call that is under way when the other key takes over ends well.
    let waiting = tokio::spawn({
        let caller = caller.clone();
        async move {
            let arguments = json!({"wait": true});
            caller
                .call::<String>("fs@acme", "fs.read", &arguments)
                .await
        }
    });
    begun.notified().await;
    act(&admin, Kind::AdminBrokerActivate, json!({"key": next})).await;
    assert_eq!(admin.broker_key(), next, "the answer itself came under it");
    released.notify_one();
    assert_eq!(waiting.await.unwrap().unwrap(), "read");
    let change = NewBrokerKey {
        old: first,
        new: next,
    };
    assert_eq!(*kept.lock().unwrap(), [change]);
    // The provider kept its session, was told under the new key, and believes callers as before.
    assert_eq!(read(&caller).await.unwrap(), "read");
    while fs_kept.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(*fs_kept.lock().unwrap(), [change]);

    acme.restart();
    for pinned in [first, next] {
        // By POST, and by session.
        let (back, kept) = acme.agent("caller", 3, pinned);
        while read(&back).await.is_err() {
            tokio::task::yield_now().await;
        }
        let (attaching, _) = acme.agent("caller", 3, pinned);
        attaching.attach().await.unwrap();
        assert_eq!((back.broker_key(), attaching.broker_key()), (next, next));
        assert_eq!(kept.lock().unwrap().len(), usize::from(pinned == first));
    }
    act(&admin, Kind::AdminBrokerRetire, json!({"key": first})).await;
    assert_eq!(read(&caller).await.unwrap(), "read", "who followed goes on");
    let (late, _) = acme.agent("caller", 3, first);
    for why in [read(&late).await.map(drop), late.attach().await] {
        let why = why.unwrap_err();
        assert!(matches!(why, Error::NotTheBroker { .. }), "{why}");
        for key in [first, next] {
            assert!(why.to_string().contains(&key.fingerprint()), "{why}");
        }
    }
    // The old file can go when the configuration names the one that the broker made.
    let made = format!("broker-{}.pem", next.fingerprint().replace(':', ""));
    let text = std::fs::read_to_string(acme.site.at("broker.toml")).unwrap();
    let text = text.replace("broker = \"broker.pem\"", &format!("broker = \"{made}\""));
    std::fs::write(acme.site.at("broker.toml"), text).unwrap();
    std::fs::remove_file(acme.site.at("broker.pem")).unwrap();
    acme.restart();
    let (by_hand, _) = acme.agent("caller", 3, next);
    by_hand.attach().await.unwrap();
    serving.abort();
}

#[tokio::test]
async fn nothing_that_a_broker_shows_makes_an_agent_believe_another_key() {
    let acme = Acme::new();
    let stranger = SigningKey::from_seed(&[77; 32]).public();
    let (agent, kept) = acme.agent("root-admin", 1, stranger);
    let why = agent.attach().await.unwrap_err();
    assert!(matches!(why, Error::NotTheBroker { .. }), "{why}");
    assert_eq!(agent.broker_key(), stranger);
    assert!(kept.lock().unwrap().is_empty());
}
