//! `kill -9` at random moments, under load of admin acts and calls, with the real binary: nothing that
//! was acknowledged is lost, nothing is half done, no replay and no revoked token is accepted.
//!
//! `FEM_SEED` repeats a run's choices, `FEM_CRASH_ROUNDS` says how many kills (50 unless set).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proto_spec::capability::{decode_text, encode_text, issue};
use proto_spec::message::{AcceptKey, Ack, AgentRecord, Struck};
use proto_spec::{AgentId, Code, Digest, Kind, PublicKey, SigningKey};
use serde_json::{Value, json};
use tests::lab::{Actor, Extra, code_of, to_broker, wall_clock as now};
use tests::site::Site;
use tests::wire::{Line, Posting, Reply, Socket};
use tokio::sync::Notify;

/// Admin acts and calls at once.
const WORKERS: u64 = 4;
/// Registrations by the one enrolment token, and calls by the one budget, of the whole run.
const USES: u32 = 40;
const CALLS: u32 = 60;

/// What the harness knows of something that it ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    No,
    /// Ordered, and killed before there was an answer: either, but one of the two.
    Doubt,
    Yes,
}

#[derive(Debug)]
struct Grant {
    capability: String,
    id: Option<Digest>,
    issued: Known,
    revoked: Known,
}

#[derive(Debug)]
struct Handed {
    agent: String,
    key: u64,
    token: String,
    revoked: Known,
}

#[derive(Debug)]
struct Member {
    /// The key of the harness's last certain knowledge, and the one that may have followed it.
    key: u64,
    next: Option<u64>,
    base: Vec<String>,
    is_enrolled: bool,
    joined: Known,
    revoked: Known,
    grants: Vec<Grant>,
    /// Somebody is at work on it.
    is_busy: bool,
}

/// What must be so after a start.
#[derive(Debug, Default)]
struct Model {
    members: BTreeMap<String, Member>,
    handed: Vec<Handed>,
    accepted: Vec<Bytes>,
    /// Who certainly came in by the enrolment token.
    enrolled: BTreeSet<String>,
    budget_used: u32,
}

/// Choices that a seed repeats (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

fn key(n: u64) -> SigningKey {
    let mut seed = [0x5a; 32];
    seed[..8].copy_from_slice(&n.to_le_bytes());
    SigningKey::from_seed(&seed)
}

fn actor(name: &str, n: u64) -> Actor {
    let id: AgentId = format!("{name}@acme").parse().unwrap();
    Actor { id, key: key(n) }
}

fn same(actor: &Actor) -> Actor {
    Actor {
        id: actor.id.clone(),
        key: SigningKey::from_seed(actor.key.seed()),
    }
}

struct World {
    line: Line,
    admin: Actor,
    enrolment: String,
    model: Arc<Mutex<Model>>,
    counter: Arc<AtomicU64>,
    acknowledged: AtomicU64,
    progress: Notify,
    /// Connections that nobody uses just then.
    idle: Mutex<Vec<Posting>>,
}

/// No answer: the broker was killed.
#[derive(Debug)]
struct Killed;

impl World {
    async fn send(&self, bytes: Bytes) -> Result<Reply, Killed> {
        let idle = self.idle.lock().unwrap().pop();
        let mut posting = match idle {
            Some(posting) => posting,
            None => self.line.open().await.map_err(|_| Killed)?,
        };
        let reply = posting.post("/fem", bytes).await.map_err(|_| Killed)?;
        self.idle.lock().unwrap().push(posting);
        Ok(reply)
    }

    async fn post(&self, bytes: Bytes) -> Result<proto_spec::Envelope, Killed> {
        let reply = self.send(bytes.clone()).await?;
        let envelope = reply.envelope().map_err(|_| Killed)?;
        if reply.status == 200 {
            self.model.lock().unwrap().accepted.push(bytes);
        }
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.progress.notify_one();
        Ok(envelope)
    }

    async fn ask(&self, by: &Actor, kind: Kind, body: &Value) -> Result<Ack, Killed> {
        let sealed = by.seal(kind, &to_broker().unwrap(), now(), body).unwrap();
        let envelope = self.post(sealed.bytes).await?;
        assert_eq!(envelope.kind(), Kind::Ack, "{kind}: {}", envelope.body());
        Ok(envelope.read_body().unwrap())
    }

    fn fresh(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes a member that is certainly there, so that no other worker touches it meanwhile.
    fn take(&self, dice: &mut Dice) -> Option<(String, u64)> {
        let mut model = self.model.lock().unwrap();
        let live: Vec<_> = model
            .members
            .iter_mut()
            .filter(|(_, one)| one.joined == Known::Yes && one.revoked == Known::No && !one.is_busy)
            .collect();
        let count = live.len() as u64;
        let (name, member) = live.into_iter().nth(dice.below(count.max(1)) as usize)?;
        member.is_busy = true;
        Some((name.clone(), member.key))
    }

    fn change<T>(&self, name: &str, change: impl FnOnce(&mut Member) -> T) -> T {
        change(self.model.lock().unwrap().members.get_mut(name).unwrap())
    }

    /// One act, whichever the dice say.
    async fn act(&self, dice: &mut Dice) -> Result<(), Killed> {
        let turn = dice.below(10);
        if turn < 3 {
            return self.join(dice.below(2) == 0).await;
        }
        if turn == 9 {
            return self.call().await;
        }
        let Some((name, key)) = self.take(dice) else {
            return self.join(false).await;
        };
        match turn {
            3 | 4 => self.grant(&name).await?,
            5 => self.take_back(&name).await?,
            6 => self.rotate(&name, key).await?,
            7 => self.hand_out(&name, key).await?,
            _ => self.strike(&name).await?,
        }
        self.change(&name, |member| member.is_busy = false);
        Ok(())
    }

    async fn join(&self, by_enrolment: bool) -> Result<(), Killed> {
        let n = self.fresh();
        let base = vec![format!("base.n{n}")];
        let member = |is_enrolled| Member {
            key: n,
            next: None,
            base: base.clone(),
            is_enrolled,
            joined: Known::Doubt,
            revoked: Known::No,
            grants: Vec::new(),
            is_busy: true,
        };
        let enrolled = format!("enrolled-{n}");
        let is_enrolled = by_enrolment && {
            let mut model = self.model.lock().unwrap();
            let used = model.members.values().filter(|one| one.is_enrolled).count();
            let is_left = used < USES as usize;
            if is_left {
                model.members.insert(enrolled.clone(), member(true));
            }
            is_left
        };
        let name = if is_enrolled {
            enrolled
        } else {
            format!("agent-{n}")
        };
        let newcomer = actor(&name, n);
        let pubkey = newcomer.key.public();
        if is_enrolled {
            let body = json!({"pubkey": pubkey, "capabilities": base, "enrolment": self.enrolment});
            self.ask(&newcomer, Kind::RegisterAgent, &body).await?;
            self.model.lock().unwrap().enrolled.insert(name.clone());
        } else {
            self.ask(&newcomer, Kind::RegisterAgent, &json!({"pubkey": pubkey}))
                .await?;
            self.model
                .lock()
                .unwrap()
                .members
                .insert(name.clone(), member(false));
            let body = json!({"name": name, "key": pubkey, "capabilities": base});
            self.ask(&self.admin, Kind::AdminAgentApprove, &body)
                .await?;
        }
        self.change(&name, |member| {
            member.joined = Known::Yes;
            member.is_busy = false;
        });
        Ok(())
    }

    async fn grant(&self, name: &str) -> Result<(), Killed> {
        let capability = format!("extra.n{}", self.fresh());
        let body =
            json!({"agent": name, "capabilities": [capability], "checks": [], "record": true});
        let grant = Grant {
            capability,
            id: None,
            issued: Known::Doubt,
            revoked: Known::No,
        };
        self.change(name, |member| member.grants.push(grant));
        let Ack::Issued { id, .. } = self.ask(&self.admin, Kind::AdminTokenIssue, &body).await?
        else {
            panic!()
        };
        self.change(name, |member| {
            let grant = member.grants.last_mut().unwrap();
            (grant.id, grant.issued) = (Some(id), Known::Yes);
        });
        Ok(())
    }

    async fn take_back(&self, name: &str) -> Result<(), Killed> {
        let found = self.change(name, |member| {
            let live = |one: &Grant| one.revoked == Known::No && one.id.is_some();
            let at = member.grants.iter().position(live)?;
            member.grants[at].revoked = Known::Doubt;
            Some((at, member.grants[at].id?))
        });
        let Some((at, id)) = found else { return Ok(()) };
        self.ask(&self.admin, Kind::AdminTokenRevoke, &json!({"ids": [id]}))
            .await?;
        self.change(name, |member| member.grants[at].revoked = Known::Yes);
        Ok(())
    }

    async fn rotate(&self, name: &str, old: u64) -> Result<(), Killed> {
        let new = self.fresh();
        let (before, after) = (actor(name, old), actor(name, new));
        let accept = AcceptKey {
            pubkey: after.key.public(),
            follows: before.key.public(),
        };
        let accept = after
            .seal(Kind::AcceptKey, &to_broker().unwrap(), now(), &accept)
            .unwrap();
        self.change(name, |member| member.next = Some(new));
        let body = json!({"accept": std::str::from_utf8(&accept.bytes).unwrap()});
        self.ask(&before, Kind::RotateKey, &body).await?;
        self.change(name, |member| {
            (member.key, member.next) = (new, None);
            // Issued anew, under ids that the harness does not know.
            member.grants.iter_mut().for_each(|grant| grant.id = None);
        });
        Ok(())
    }

    async fn hand_out(&self, name: &str, key: u64) -> Result<(), Killed> {
        let body =
            json!({"agent": name, "capabilities": ["fs.read"], "checks": [], "record": false});
        let Ack::Issued { id, token, .. } =
            self.ask(&self.admin, Kind::AdminTokenIssue, &body).await?
        else {
            panic!()
        };
        let token = encode_text(&issue::seal(&decode_text(&token.unwrap()).unwrap()).unwrap());
        let at = {
            let mut model = self.model.lock().unwrap();
            model.handed.push(Handed {
                agent: name.into(),
                key,
                token: token.clone(),
                revoked: Known::No,
            });
            model.handed.len() - 1
        };
        let code = self.present(&actor(name, key), &token).await?;
        assert_ne!(code, Some(Code::TokenRevoked));
        if id.0[0] % 2 == 0 {
            self.model.lock().unwrap().handed[at].revoked = Known::Doubt;
            self.ask(&self.admin, Kind::AdminTokenRevoke, &json!({"ids": [id]}))
                .await?;
            self.model.lock().unwrap().handed[at].revoked = Known::Yes;
            let code = self.present(&actor(name, key), &token).await?;
            assert_eq!(code, Some(Code::TokenRevoked), "for the very next envelope");
        }
        Ok(())
    }

    /// Calls with a token; gives the refusal's code.
    async fn present(&self, caller: &Actor, token: &str) -> Result<Option<Code>, Killed> {
        let extra = Extra {
            token: Some(token.into()),
            ..Extra::default()
        };
        let (to, body) = ("fs@acme".parse().unwrap(), json!({"tool": "fs.read"}));
        let sealed = caller
            .seal_with(Kind::ToolCall, &to, now(), &body, &extra)
            .unwrap();
        Ok(code_of(&self.post(sealed.bytes).await?).ok())
    }

    async fn strike(&self, name: &str) -> Result<(), Killed> {
        self.change(name, |member| member.revoked = Known::Doubt);
        let ack = self
            .ask(&self.admin, Kind::AdminAgentRevoke, &json!({"name": name}))
            .await?;
        assert!(matches!(ack, Ack::Revoked(Struck { .. })));
        self.change(name, |member| member.revoked = Known::Yes);
        Ok(())
    }

    /// Spends a call of the one budget.
    async fn call(&self) -> Result<(), Killed> {
        let spender = actor("spender", 0);
        let sealed = spender.call("fs", "fs.read", &json!({}), now()).unwrap();
        self.post(sealed.bytes).await.map(drop)
    }
}

/// Answers every call, and counts those of the budget.
async fn provide(model: Arc<Mutex<Model>>, provider: Arc<Actor>, mut socket: Socket) {
    while let Ok(heard) = socket.hear().await {
        let Ok(call) = heard.delivered() else { return };
        let caller = call.speaker().agent().unwrap().clone();
        if caller.name().as_str() == "spender" {
            model.lock().unwrap().budget_used += 1;
        }
        let extra = Extra {
            re: Some(Digest::of(&call.signed_bytes())),
            ..Extra::default()
        };
        let result = provider
            .seal_with(
                Kind::ToolResult,
                &caller.into(),
                now(),
                &json!({"result": 1}),
                &extra,
            )
            .unwrap();
        if socket.send(result.bytes).await.is_err() {
            return;
        }
    }
}

/// Compares what the broker says after a start with what must be so, and settles what was in doubt.
async fn verify(world: &World) {
    let (Ok(observed), Ok(uses_left)) = (list(world).await, uses_left(world).await) else {
        panic!("killed while nobody kills")
    };
    let accepted = std::mem::take(&mut world.model.lock().unwrap().accepted);
    // The last of the life before: what was read before the kill is a replay for ever.
    for bytes in accepted.iter().rev().take(24) {
        let reply = world.send(bytes.clone()).await.unwrap();
        assert_ne!(reply.status, 200, "a replay was accepted: {bytes:?}");
    }
    let (mut dead, mut enrolled) = (Vec::new(), BTreeSet::new());
    {
        let mut model = world.model.lock().unwrap();
        let known: BTreeSet<_> = model.members.keys().cloned().collect();
        for name in observed.keys() {
            assert!(known.contains(name), "{name} came from nowhere");
        }
        for (name, member) in &mut model.members {
            member.is_busy = false;
            let seen = observed.get(name);
            let may_be_there = member.joined != Known::No && member.revoked != Known::Yes;
            let must_be_there = member.joined == Known::Yes && member.revoked == Known::No;
            assert!(seen.is_none() || may_be_there, "{name} is back: {member:?}");
            assert!(
                seen.is_some() || !must_be_there,
                "{name} is lost: {member:?}"
            );
            let Some(seen) = seen else {
                // Never joined, or revoked; of one in doubt both come to the same.
                if member.joined == Known::Doubt {
                    member.joined = Known::No;
                } else {
                    member.revoked = Known::Yes;
                    dead.push((name.clone(), member.key));
                }
                continue;
            };
            (member.joined, member.revoked) = (Known::Yes, Known::No);
            settle_key(name, member, &seen.key);
            settle_grants(name, member, seen);
            if member.is_enrolled {
                enrolled.insert(name.clone());
            }
        }
        model.enrolled.extend(enrolled);
        let used = model.enrolled.len() as u32;
        assert_eq!(used + uses_left, USES, "every use counts exactly once");
        model
            .members
            .retain(|_, member| member.joined == Known::Yes);
        assert!(
            model.budget_used <= CALLS,
            "{} calls of {CALLS}",
            model.budget_used
        );
    }
    for (name, key) in dead.iter().rev().take(4) {
        let body = json!({});
        let to = to_broker().unwrap();
        let sealed = actor(name, *key)
            .seal(Kind::DiscoverTools, &to, now(), &body)
            .unwrap();
        let reply = world.send(sealed.bytes).await.unwrap();
        assert_eq!(reply.status, 401, "{name} is revoked and was heard");
    }
    verify_tokens(world).await;
}

fn settle_key(name: &str, member: &mut Member, seen: &PublicKey) {
    let is = |n: u64| key(n).public() == *seen;
    let new = member.next.take().filter(|new| is(*new));
    assert!(
        new.is_some() || is(member.key),
        "{name} has a key that it never had"
    );
    if let Some(new) = new {
        member.key = new;
        member.grants.iter_mut().for_each(|grant| grant.id = None);
    }
}

fn settle_grants(name: &str, member: &mut Member, seen: &AgentRecord) {
    let mut held: BTreeSet<String> = seen.capabilities.iter().map(ToString::to_string).collect();
    for capability in &member.base {
        assert!(
            held.remove(capability),
            "{name} lost {capability} of its approval"
        );
    }
    member.grants.retain_mut(|grant| {
        let is_held = held.remove(&grant.capability);
        let (issued, revoked) = (grant.issued, grant.revoked);
        assert!(
            !is_held || (issued != Known::No && revoked != Known::Yes),
            "{name} holds {grant:?} again"
        );
        assert!(
            is_held || issued != Known::Yes || revoked != Known::No,
            "{name} lost {grant:?}"
        );
        (grant.issued, grant.revoked) = (Known::Yes, Known::No);
        is_held
    });
    assert!(held.is_empty(), "{name} holds {held:?}, which nobody gave");
}

async fn verify_tokens(world: &World) {
    let samples: Vec<_> = {
        let model = world.model.lock().unwrap();
        let all = model.handed.iter().enumerate().rev().take(8);
        // Of a key that was rotated away a token is dead for another reason.
        let is_holders = |one: &Handed| {
            let member = model.members.get(&one.agent);
            member.is_some_and(|member| member.key == one.key && member.revoked == Known::No)
        };
        all.filter(|(_, one)| is_holders(one))
            .map(|(at, one)| {
                (
                    at,
                    actor(&one.agent, one.key),
                    one.token.clone(),
                    one.revoked,
                )
            })
            .collect()
    };
    for (at, holder, token, revoked) in samples {
        let Ok(code) = world.present(&holder, &token).await else {
            panic!("killed while nobody kills")
        };
        let is_revoked = code == Some(Code::TokenRevoked);
        let found = if is_revoked { Known::Yes } else { Known::No };
        assert!(
            revoked == Known::Doubt || revoked == found,
            "{}: {revoked:?}, {code:?}",
            holder.id
        );
        world.model.lock().unwrap().handed[at].revoked = found;
    }
}

/// Every agent but the standing ones.
async fn list(world: &World) -> Result<BTreeMap<String, AgentRecord>, Killed> {
    let (mut all, mut after) = (BTreeMap::new(), Value::Null);
    loop {
        let body = if after.is_null() {
            json!({})
        } else {
            json!({"after": after})
        };
        let Ack::Agents { agents, next, .. } =
            world.ask(&world.admin, Kind::AdminAgentList, &body).await?
        else {
            panic!()
        };
        all.extend(agents.into_iter().map(|one| (one.name.to_string(), one)));
        match next {
            Some(next) => after = json!(next),
            None => break,
        }
    }
    for standing in ["root-admin", "fs", "spender"] {
        all.remove(standing).unwrap();
    }
    Ok(all)
}

/// Registrations that the enrolment token has left.
async fn uses_left(world: &World) -> Result<u32, Killed> {
    // It was issued before all that comes later: it is on the first page.
    let ack = world
        .ask(&world.admin, Kind::AdminTokenList, &json!({}))
        .await?;
    let Ack::Tokens { tokens, .. } = ack else {
        panic!()
    };
    let found = tokens.iter().find(|one| one.kind == "enrol").unwrap();
    Ok(found.uses_left.unwrap())
}

/// Sets the organisation up: a provider, an agent with a budget, an enrolment token.
async fn found() -> (Site, String) {
    // Many more newcomers knock here than in ten minutes of anybody's life.
    let limits = "pending_max = 1000000\nnonces_per_network_max = 60000";
    let site = Site::with_nonces(limits, 1 << 20, 65_536).unwrap();
    let broker = site.start().unwrap();
    let world = World {
        line: site.line(&broker).unwrap(),
        admin: same(&site.admin),
        enrolment: String::new(),
        model: Arc::default(),
        counter: Arc::default(),
        acknowledged: AtomicU64::new(0),
        progress: Notify::new(),
        idle: Mutex::default(),
    };
    let done = |result: Result<Ack, Killed>| result.unwrap();
    for one in [actor("fs", 0xf5), actor("spender", 0)] {
        let key = one.key.public();
        done(
            world
                .ask(&one, Kind::RegisterAgent, &json!({"pubkey": key}))
                .await,
        );
        let body = json!({"name": one.id.name(), "key": key, "capabilities": []});
        done(
            world
                .ask(&world.admin, Kind::AdminAgentApprove, &body)
                .await,
        );
    }
    let body = json!({"agent": "spender", "capabilities": ["fs.*"], "checks": [], "record": true, "calls": CALLS});
    done(world.ask(&world.admin, Kind::AdminTokenIssue, &body).await);
    let body = json!({"name": "enrolled-*", "ceiling": ["base.*"], "uses": USES});
    let Ack::Issued { token, .. } =
        done(world.ask(&world.admin, Kind::AdminEnrolIssue, &body).await)
    else {
        panic!()
    };
    broker.kill().unwrap();
    (site, token.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_nothing_revoked_comes_back_over_many_kills() {
    let number = |name: &str, usual: u64| {
        let text = std::env::var(name).ok();
        text.map_or(usual, |text| text.parse().unwrap())
    };
    let (seed, rounds) = (
        number("FEM_SEED", 0x5eed_fe11),
        number("FEM_CRASH_ROUNDS", 50),
    );
    println!("FEM_SEED={seed} FEM_CRASH_ROUNDS={rounds}");
    let (site, enrolment) = found().await;
    let (model, counter) = (
        Arc::<Mutex<Model>>::default(),
        Arc::new(AtomicU64::new(1_000)),
    );
    let mut dice = Dice(seed | 1);
    let mut acknowledged = 0;
    for round in 0..=rounds {
        let broker = site.start().unwrap();
        let world = Arc::new(World {
            line: site.line(&broker).unwrap(),
            admin: same(&site.admin),
            enrolment: enrolment.clone(),
            model: Arc::clone(&model),
            counter: Arc::clone(&counter),
            acknowledged: AtomicU64::new(0),
            progress: Notify::new(),
            idle: Mutex::default(),
        });
        verify(&world).await;
        if round == rounds {
            break;
        }
        let provider = Arc::new(actor("fs", 0xf5));
        let mut socket = provider.attach(&world.line, now()).await.unwrap();
        let offer = json!({"tools": [{"name": "fs.read"}]});
        let offer = provider
            .seal(Kind::OfferTools, &to_broker().unwrap(), now(), &offer)
            .unwrap();
        socket.send(offer.bytes).await.unwrap();
        socket.hear().await.unwrap().said().unwrap();
        let serving = tokio::spawn(provide(Arc::clone(&model), provider, socket));
        // Killed as soon as so many answers came, with whatever else is under way just then.
        let moment = world.acknowledged.load(Ordering::Relaxed) + 1 + dice.below(60);
        let mut workers = tokio::task::JoinSet::new();
        for n in 0..WORKERS {
            let (world, mut dice) = (Arc::clone(&world), Dice((seed ^ (round << 8 | n)) | 1));
            workers.spawn(async move { while world.act(&mut dice).await.is_ok() {} });
        }
        while world.acknowledged.load(Ordering::Relaxed) < moment {
            world.progress.notified().await;
        }
        broker.kill().unwrap();
        while let Some(ended) = workers.join_next().await {
            ended.unwrap_or_else(|error| panic!("FEM_SEED={seed}, round {round}: {error}"));
        }
        serving.abort();
        acknowledged += world.acknowledged.load(Ordering::Relaxed);
    }
    let model = model.lock().unwrap();
    println!(
        "{rounds} kills, {acknowledged} answers; {} agents, {} tokens handed out, {} calls of the budget",
        model.members.len(),
        model.handed.len(),
        model.budget_used
    );
}
