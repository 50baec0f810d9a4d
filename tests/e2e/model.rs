//! Random histories of a broker, after each act compared with what a reader of SPEC.md expects.
//!
//! [`reference`] says what should be; this file orders it and looks. `FEM_SEED` repeats a history (the
//! first of `FEM_HISTORIES`, 30 unless set), and a failure prints it with all that was done.

#[path = "model/reference.rs"]
mod reference;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto_spec::capability::{Narrowing, Token, decode_text, encode_text, issue};
use proto_spec::message::Ack;
use proto_spec::{Code, Digest, Kind, PublicKey, SigningKey, Timestamp};
use reference::{Agent, Answer, Block, Budget, By, Enrolment, Issued, Key, Model, Ms};
use serde::Serialize;
use serde_json::{Value, json};
use tests::lab::{Actor, Extra, Lab, ROOT_SEED, code_of, to_broker};
use tests::wire::{Heard, Posting, Socket};
use tokio::task::JoinSet;

/// Acts in a history.
const ACTS: usize = 60;
/// Calls that are compared after each act.
const PROBES: usize = 6;
/// The only one who is never struck, and so always can strike.
const ROOT: &str = "root-admin";
const SECOND: &str = "second";
const AGENTS: [&str; 4] = ["alice", "bob", "carol", SECOND];
const BUILDS: [&str; 2] = ["build-1", "build-2"];
/// Two that are served, and one that nobody offers.
const TOOLS: [&str; 3] = ["fs.read", "fs.write.all", "fs.gone"];
const PATTERNS: [&str; 6] = ["*", "fs.*", "fs.read", "fs.write.*", "fs.gone", "db.*"];
const RESERVED: [&str; 6] = [
    "admin.*", "event.*", "peer.*", "mcp.*", "enrol.*", "broker.*",
];
const FOREVER: Ms = Ms::MAX;

/// Xorshift: the same choices from the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[self.below(all.len())])
    }

    fn patterns(&mut self) -> Vec<String> {
        let count = 1 + self.below(2);
        let picked = (0..count).map(|_| PATTERNS[self.below(PATTERNS.len())]);
        let picked: BTreeSet<_> = picked.map(str::to_owned).collect();
        picked.into_iter().collect()
    }
}

/// A token that was handed out or made from one; an agent's grant on record has no text.
struct Held {
    id: Digest,
    unsealed: Option<String>,
}

struct World {
    seed: u64,
    lab: Lab,
    posting: Posting,
    fs: Actor,
    /// Keeps the provider busy; no act of a history is about it.
    busy: Actor,
    provider: Socket,
    model: Model,
    dice: Dice,
    /// Beside `model.blocks`.
    held: Vec<Held>,
    /// Beside `model.enrolments`: ids and texts.
    enrolments: Vec<(Digest, String)>,
    /// Every key that a name has ever used.
    keys: BTreeMap<&'static str, Vec<Key>>,
    roots: Vec<PublicKey>,
    next_key: Key,
    history: Vec<String>,
}

fn key_of(seed: Key) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn actor(name: &str, key: Key) -> Actor {
    Actor::new(name, key).unwrap()
}

fn patterns(texts: &[String]) -> Vec<proto_spec::Pattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

async fn provide(lab: &Lab, fs: &Actor) -> (Posting, Socket) {
    let socket = lab.provide(fs, &TOOLS[..2]).await.unwrap();
    (lab.line.open().await.unwrap(), socket)
}

impl World {
    async fn start(seed: u64) -> Self {
        // One call at a time, so that a second one comes back and its budget with it.
        let lab = Lab::with_limits("calls_max = 1").await.unwrap();
        let fs = lab.agent("fs", 2, &[]).await.unwrap();
        let busy = lab.agent("busy", 3, &["fs.*"]).await.unwrap();
        let (posting, provider) = provide(&lab, &fs).await;
        let mut world = Self {
            seed,
            posting,
            fs,
            busy,
            provider,
            model: Model::default(),
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            held: Vec::new(),
            enrolments: Vec::new(),
            keys: BTreeMap::new(),
            roots: vec![SigningKey::from_seed(&ROOT_SEED).public()],
            next_key: 10,
            history: Vec::new(),
            lab,
        };
        world.look_at_the_clock();
        let founder = Agent {
            key: 1,
            by: By::Admin(ROOT),
            came_in: None,
        };
        world.model.agents.insert(ROOT, founder);
        world.keys.insert(ROOT, vec![1]);
        let founding = world.issued(ROOT, ROOT, vec!["*".into(), "admin.*".into()], true);
        world.put(founding, Digest([0; 32]), None);
        for name in AGENTS {
            let key = world.fresh_key(name);
            world.register(name, key).await;
            world.approve(ROOT, name, key).await;
        }
        world
    }

    fn look_at_the_clock(&mut self) {
        self.model.now = self.lab.now().as_ms();
    }

    fn fresh_key(&mut self, name: &'static str) -> Key {
        self.next_key += 1;
        self.keys.entry(name).or_default().push(self.next_key);
        self.next_key
    }

    fn note(&mut self, what: impl std::fmt::Display) {
        let at = self.model.now % 10_000_000;
        self.history.push(format!("{at:>8} {what}"));
    }

    fn check(&self, right: bool, what: &str) {
        let (seed, history) = (self.seed, self.history.join("\n"));
        assert!(right, "{history}\n{what}\nFEM_SEED={seed} FEM_HISTORIES=1");
    }

    /// Orders something and compares only whether it is done.
    async fn order(
        &mut self,
        (name, key): (&'static str, Key),
        kind: Kind,
        body: &impl Serialize,
        should: bool,
    ) -> Option<Ack> {
        self.note(format!("{name}#{key}: {kind} {}", json!(body)));
        let done = self.lab.ask(&actor(name, key), kind, body).await;
        if let Err(error) = &done {
            self.note(format!("  refused: {error}"));
        }
        self.check(done.is_ok() == should, &format!("model: done is {should}"));
        done.ok()
    }

    /// What an admin issues now, if nothing else is said.
    fn issued(
        &self,
        by: &'static str,
        to: &'static str,
        covers: Vec<String>,
        approval: bool,
    ) -> Block {
        Block {
            parent: None,
            holder: self.model.agents.get(to).map_or(0, |agent| agent.key),
            covers,
            from: 0,
            until: FOREVER,
            budget: None,
            revoked: false,
            issued: Some(Issued {
                subject: to,
                issuer: Some(by),
                second: self.model.issuing_second(),
                record: true,
                approval,
                root: self.model.active_root,
                barred: Vec::new(),
            }),
        }
    }

    fn put(&mut self, block: Block, id: Digest, unsealed: Option<String>) {
        self.model.blocks.push(block);
        self.held.push(Held { id, unsealed });
    }

    // --- acts ------------------------------------------------------------------------------------

    async fn act(&mut self) {
        let second = self.model.agents.get(SECOND).map(|agent| agent.key);
        let admin = match second {
            Some(_) if self.dice.one_in(3) => SECOND,
            _ => ROOT,
        };
        let name = AGENTS[self.dice.below(AGENTS.len())];
        match self.dice.below(40) {
            0..3 => {
                let old = self.keys[name].clone();
                let key = match self.dice.one_in(3) {
                    true => self.dice.of(&old).unwrap(),
                    false => self.fresh_key(name),
                };
                self.register(name, key).await;
            }
            3..8 => {
                let name = match self.dice.one_in(4) {
                    true => BUILDS[self.dice.below(2)],
                    false => name,
                };
                let all = self.keys.get(name).cloned().unwrap_or_default();
                let waits: Vec<Key> = all
                    .iter()
                    .copied()
                    .filter(|key| self.may_be_approved(name, *key))
                    .collect();
                let key = match self.dice.of(&waits) {
                    Some(key) => key,
                    None if !all.is_empty() && self.dice.one_in(4) => self.dice.of(&all).unwrap(),
                    None => {
                        let key = self.fresh_key(name);
                        self.register(name, key).await;
                        key
                    }
                };
                self.approve(admin, name, key).await;
            }
            8..14 => self.issue(admin, name).await,
            14..19 => self.lengthen(),
            19..21 => self.rotate(name).await,
            21..24 => self.revoke_block(admin).await,
            24..26 => self.revoke_own().await,
            26..28 => self.strike(name, admin).await,
            28..30 => self.bar(admin).await,
            30 => self.change_roots(admin).await,
            31..33 => self.enrol_issue(admin).await,
            33..36 => self.enrol().await,
            36..39 => {
                let ms = [300, 700, 1_000, 4_000, 20_000, 130_000][self.dice.below(6)];
                self.note(format!("{ms} ms pass"));
                self.lab
                    .broker
                    .core()
                    .clock
                    .advance(Duration::from_millis(ms));
                self.look_at_the_clock();
            }
            // Nothing happens, and is looked at.
            _ => {}
        }
    }

    fn may_be_approved(&self, name: &'static str, key: Key) -> bool {
        let is_known = self.model.is_agents(name, key) || self.model.pending.contains(&(name, key));
        is_known && !self.model.dead_keys.contains(&key)
    }

    fn admin_key(&self, admin: &str) -> Key {
        self.model.agents[admin].key
    }

    fn may_admin(&self, admin: &str) -> bool {
        self.model
            .may(admin, self.admin_key(admin), "admin.token.issue")
    }

    async fn register(&mut self, name: &'static str, key: Key) {
        let body = json!({"pubkey": key_of(key).public()});
        let should = !self.model.dead_keys.contains(&key);
        let done = self
            .order((name, key), Kind::RegisterAgent, &body, should)
            .await;
        let is_agent = self.model.is_agents(name, key);
        if let Some(ack) = done {
            let is_registered = matches!(ack, Ack::Registered { .. });
            self.check(is_registered == is_agent, "registered");
            if !is_agent {
                self.model.pending.insert((name, key));
            }
        }
    }

    async fn approve(&mut self, admin: &'static str, name: &'static str, key: Key) {
        if name == admin {
            return;
        }
        let mut covers = self.dice.patterns();
        let lasts = self.dice.one_in(4).then(|| self.model.now + 60_000);
        let mut body = json!({"name": name, "key": key_of(key).public()});
        if name == SECOND {
            let all: Vec<&str> = RESERVED.into_iter().chain(["*"]).collect();
            covers.extend(RESERVED.map(String::from));
            body["admin"] = json!({"grantable": all, "names": ["*"]});
        }
        body["capabilities"] = json!(covers);
        if let Some(until) = lasts.filter(|_| name != SECOND) {
            body["expires"] = json!(until);
        }
        let should = self.may_admin(admin) && self.may_be_approved(name, key);
        let by = (admin, self.admin_key(admin));
        if self
            .order(by, Kind::AdminAgentApprove, &body, should)
            .await
            .is_none()
        {
            return;
        }
        self.model.approve(name, key, By::Admin(admin));
        let mut block = self.issued(admin, name, covers, true);
        block.until = lasts.filter(|_| name != SECOND).unwrap_or(FOREVER);
        let id = self.approval_id(name);
        self.put(block, id, None);
    }

    fn approval_id(&self, name: &str) -> Digest {
        let registry = &self.lab.broker.core().state.registry;
        let agent = registry.agent(&name.parse().unwrap()).unwrap();
        agent.approval.unwrap_or(Digest([0; 32]))
    }

    fn budget(&mut self) -> Option<Budget> {
        let calls = 1 + self.dice.below(4) as u32;
        self.dice.one_in(2).then_some(Budget {
            at_least: calls,
            at_most: calls,
        })
    }

    async fn issue(&mut self, admin: &'static str, name: &'static str) {
        let covers = self.dice.patterns();
        let mut block = self.issued(admin, name, covers.clone(), false);
        let record = self.dice.one_in(2);
        block.issued.as_mut().unwrap().record = record;
        block.budget = self.budget();
        let mut body = json!({"agent": name, "capabilities": covers, "record": record});
        if let Some(budget) = block.budget {
            body["calls"] = json!(budget.at_most);
        }
        if self.dice.one_in(3) {
            block.until = self.model.now + 90_000;
            body["expires"] = json!(block.until);
        }
        if self.dice.one_in(4) {
            block.from = self.model.now + 5_000;
            body["not_before"] = json!(block.from);
        }
        let should = self.may_admin(admin) && self.model.agents.contains_key(name);
        let by = (admin, self.admin_key(admin));
        if let Some(Ack::Issued { id, token, .. }) =
            self.order(by, Kind::AdminTokenIssue, &body, should).await
        {
            self.put(block, id, token);
        }
    }

    /// Every token in somebody's hand.
    fn handed(&self) -> Vec<usize> {
        (0..self.held.len())
            .filter(|at| self.held[*at].unsealed.is_some())
            .collect()
    }

    /// A holder narrows a token for itself or hands it on: nobody else learns of it.
    fn lengthen(&mut self) {
        let Some(parent) = self.dice.of(&self.handed()) else {
            return;
        };
        let unsealed = decode_text(self.held[parent].unsealed.as_ref().unwrap()).unwrap();
        let holder = self.model.blocks[parent].holder;
        let to = AGENTS[self.dice.below(AGENTS.len())];
        let to = self.model.agents.get(to).map(|agent| agent.key);
        let next = to.filter(|_| !self.dice.one_in(4));
        let covers = if self.dice.one_in(2) {
            self.dice.patterns()
        } else {
            Vec::new()
        };
        let lasts = self.dice.one_in(3).then(|| self.model.now + 60_000);
        let budget = next.and_then(|_| self.budget());
        let narrowing = Narrowing {
            only: patterns(&covers),
            expires: lasts.map(Timestamp::from_ms),
            checks: Vec::new(),
            calls: budget.map(|budget| budget.at_most),
            agent: None,
        };
        let entropy = [self.held.len() as u8; 32];
        let longer = match next {
            Some(next) => {
                let next = key_of(next).public();
                issue::delegate(&unsealed, &key_of(holder), &next, &narrowing, entropy)
            }
            None => issue::attenuate(&unsealed, &narrowing, entropy),
        };
        // A narrowing that nothing could use is not made.
        let Ok(longer) = longer else { return };
        let sealed = issue::seal(&longer).unwrap();
        let token = Token::open(&sealed, &self.roots).unwrap();
        let id = token.blocks().last().unwrap().id().0;
        let made = self.held.len();
        self.note(format!("#{holder} lengthens {parent} to {made}: holder {next:?} only {covers:?} until {lasts:?} calls {budget:?}"));
        let block = Block {
            parent: Some(parent),
            holder: next.unwrap_or(holder),
            covers,
            from: 0,
            until: lasts.unwrap_or(FOREVER),
            budget,
            revoked: false,
            issued: None,
        };
        self.put(block, id, Some(encode_text(&longer)));
    }

    async fn rotate(&mut self, name: &'static str) {
        let Some(from) = self.model.agents.get(name).map(|agent| agent.key) else {
            return;
        };
        let to = self.fresh_key(name);
        let consent = json!({"pubkey": key_of(to).public(), "follows": key_of(from).public()});
        let accept = actor(name, to)
            .seal(
                Kind::AcceptKey,
                &to_broker().unwrap(),
                self.lab.now(),
                &consent,
            )
            .unwrap();
        let body = json!({"accept": std::str::from_utf8(&accept.bytes).unwrap()});
        self.note(format!("{name} rotates #{from} to #{to}"));
        self.order((name, from), Kind::RotateKey, &body, true).await;
        self.model.rotate(name, to);
    }

    async fn revoke_block(&mut self, admin: &'static str) {
        let should = self.may_admin(admin);
        let by = (admin, self.admin_key(admin));
        if self.dice.one_in(6) && !self.enrolments.is_empty() {
            let at = self.dice.below(self.enrolments.len());
            let body = json!({"ids": [self.enrolments[at].0]});
            self.order(by, Kind::AdminTokenRevoke, &body, should).await;
            self.model.enrolments[at].revoked |= should;
            return;
        }
        // The first is the founder's own.
        let at = 1 + self.dice.below(self.held.len() - 1);
        self.note(format!("revoking {at}"));
        let body = json!({"ids": [self.held[at].id]});
        self.order(by, Kind::AdminTokenRevoke, &body, should).await;
        self.model.blocks[at].revoked |= should;
    }

    /// Somebody who holds a token, or does not, revokes a block of it.
    async fn revoke_own(&mut self) {
        let Some(last) = self.dice.of(&self.handed()) else {
            return;
        };
        let name = AGENTS[self.dice.below(AGENTS.len())];
        let Some(key) = self.model.agents.get(name).map(|agent| agent.key) else {
            return;
        };
        let mut at = last;
        while let Some(parent) = self.model.blocks[at].parent
            && self.dice.one_in(2)
        {
            at = parent;
        }
        let should = self.model.held(at, key);
        let rooted = !self
            .model
            .retired_roots
            .contains(&self.model.issued(last).root);
        if !rooted {
            // SPEC does not say whether a token that is dead anyway can be shown.
            return;
        }
        self.note(format!("{name} revokes {at} by {last}"));
        let body = json!({"ids": [self.held[at].id], "token": self.sealed(last)});
        self.order((name, key), Kind::Revoke, &body, should).await;
        self.model.blocks[at].revoked |= should;
    }

    async fn strike(&mut self, name: &'static str, admin: &'static str) {
        let name = if self.dice.one_in(4) {
            BUILDS[self.dice.below(2)]
        } else {
            name
        };
        // Nobody strikes itself.
        let admin = if name == SECOND { ROOT } else { admin };
        let is_agent = self.model.agents.contains_key(name);
        let should = self.may_admin(admin) && is_agent;
        // Of an agent that is gone a quarantine strikes what flows from it; the model forgets the gone.
        let is_quarantine = self.dice.one_in(2) && is_agent;
        let kind = match is_quarantine {
            true => Kind::AdminAgentQuarantine,
            false => Kind::AdminAgentRevoke,
        };
        let by = (admin, self.admin_key(admin));
        let done = self.order(by, kind, &json!({"name": name}), should).await;
        match done {
            Some(_) if is_quarantine => self.model.quarantine(name),
            Some(_) => self.model.revoke_agent(name),
            None => {}
        }
    }

    async fn bar(&mut self, admin: &'static str) {
        let under = PATTERNS[1 + self.dice.below(PATTERNS.len() - 1)];
        let before = self
            .dice
            .one_in(2)
            .then(|| self.model.now - [1_000, 5_000, 60_000][self.dice.below(3)]);
        let mut body = json!({"under": [under]});
        if let Some(before) = before {
            body["before"] = json!(before);
        }
        let should = self.may_admin(admin);
        let by = (admin, self.admin_key(admin));
        if self
            .order(by, Kind::AdminTokenRevoke, &body, should)
            .await
            .is_some()
        {
            self.model.bar(under, before.map(|ms| ms / 1000));
            // The bar struck this one too.
            self.lab.approve(&self.busy, &["fs.*"]).await.unwrap();
        }
    }

    /// Prepares and activates the next root key; retires the one before at once, or never.
    async fn change_roots(&mut self, admin: &'static str) {
        let should = self.may_admin(admin);
        let by = (admin, self.admin_key(admin));
        let prepared = self
            .order(by, Kind::AdminRootPrepare, &json!({}), should)
            .await;
        let Some(Ack::Roots { roots }) = prepared else {
            return;
        };
        let next = roots
            .iter()
            .find(|root| root.state == "prepared")
            .unwrap()
            .key;
        self.order(by, Kind::AdminRootActivate, &json!({"key": next}), true)
            .await;
        self.roots.push(next);
        let before = std::mem::replace(&mut self.model.active_root, self.roots.len() - 1);
        if self.dice.one_in(2) {
            let old = json!({"key": self.roots[before]});
            self.order(by, Kind::AdminRootRetire, &old, true).await;
            self.model.retired_roots.insert(before);
        }
    }

    async fn enrol_issue(&mut self, admin: &'static str) {
        let ceiling = self.dice.patterns();
        let uses = 1 + self.dice.below(2) as u32;
        let until = self.model.now + 200_000;
        let body = json!({"name": "build-*", "ceiling": ceiling, "uses": uses, "expires": until});
        let should = self.may_admin(admin);
        let by = (admin, self.admin_key(admin));
        let done = self.order(by, Kind::AdminEnrolIssue, &body, should).await;
        if let Some(Ack::Issued { id, token, .. }) = done {
            self.enrolments.push((id, token.unwrap()));
            self.model.enrolments.push(Enrolment {
                issuer: admin,
                ceiling,
                uses,
                until,
                second: self.model.issuing_second(),
                root: self.model.active_root,
                revoked: false,
                barred: Vec::new(),
            });
        }
    }

    async fn enrol(&mut self) {
        if self.enrolments.is_empty() {
            return;
        }
        let at = self.dice.below(self.enrolments.len());
        let name = BUILDS[self.dice.below(2)];
        let key = self.fresh_key(name);
        let asked = TOOLS[self.dice.below(TOOLS.len())].to_owned();
        let body = json!({"pubkey": key_of(key).public(), "capabilities": [asked],
            "enrolment": self.enrolments[at].1});
        let is_taken = self.model.agents.contains_key(name);
        let opens = self.model.opens(at);
        let done = self
            // A worthless token is refused under every name, or it would tell which names exist.
            .order((name, key), Kind::RegisterAgent, &body, opens)
            .await;
        match done {
            Some(Ack::Registered { capabilities, .. }) => {
                self.check(!is_taken, "a taken name is not enrolled");
                self.model.enrolments[at].uses -= 1;
                self.model.approve(name, key, By::Enrolment(at));
                let given = self.model.given(at, &asked);
                self.check(
                    capabilities.len() == usize::from(given),
                    "asked within the ceiling",
                );
                if given {
                    let mut block = self.issued(ROOT, name, vec![asked], true);
                    block.issued.as_mut().unwrap().issuer = None;
                    let id = self.approval_id(name);
                    self.put(block, id, None);
                }
            }
            Some(_) => {
                self.check(is_taken, "a free name is enrolled at once");
                self.model.pending.insert((name, key));
            }
            None => {}
        }
    }

    // --- calls -----------------------------------------------------------------------------------

    fn sealed(&self, at: usize) -> String {
        let unsealed = decode_text(self.held[at].unsealed.as_ref().unwrap()).unwrap();
        encode_text(&issue::seal(&unsealed).unwrap())
    }

    /// Somebody with a key of its own calls something, with or without a token, and the answer is one
    /// that the model allows.
    async fn probe(&mut self) {
        let all: Vec<&'static str> = self.keys.keys().copied().collect();
        let handed = self.handed();
        let token = self.dice.of(&handed).filter(|_| !self.dice.one_in(3));
        let mut name = all[self.dice.below(all.len())];
        let mut key = self.dice.of(&self.keys[name].clone()).unwrap();
        if !self.dice.one_in(6) {
            // Most often the right one: the holder's, or the one on record.
            let holder = token.map(|at| self.model.blocks[at].holder);
            let right = self
                .model
                .agents
                .iter()
                .find(|(_, agent)| Some(agent.key) == holder);
            (name, key) = match (right, self.model.agents.get(name)) {
                (Some((name, agent)), _) => (*name, agent.key),
                (None, Some(agent)) => (name, agent.key),
                (None, None) => (name, key),
            };
        }
        let tool = TOOLS[self.dice.below(TOOLS.len())];
        let is_busy = tool == TOOLS[0] && self.dice.one_in(5);
        let reached = match (tool == TOOLS[2], is_busy) {
            (true, _) => Answer::Refused(Code::Unavailable),
            (_, true) => Answer::Refused(Code::Busy),
            _ => Answer::Answered,
        };
        let allowed = self.model.answers((name, key), tool, token, reached);
        let got = self.call(name, key, tool, token, is_busy).await;
        self.note(format!("  {name}#{key} calls {tool} by {token:?}: {got:?}"));
        self.check(
            allowed.contains(&got),
            &format!("the model allows {allowed:?}"),
        );
        self.model.called(name, key, tool, token, got);
    }

    async fn call(
        &mut self,
        name: &str,
        key: Key,
        tool: &str,
        token: Option<usize>,
        is_busy: bool,
    ) -> Answer {
        let extra = Extra {
            token: token.map(|at| self.sealed(at)),
            ..Extra::default()
        };
        let to = "fs@acme".parse().unwrap();
        let (now, body) = (self.lab.now(), json!({"tool": tool, "arguments": {}}));
        let sealed = actor(name, key)
            .seal_with(Kind::ToolCall, &to, now, &body, &extra)
            .unwrap();
        // The provider is kept busy by a call that is made before.
        let occupied = match is_busy {
            true => Some(self.occupy().await),
            false => None,
        };
        let Self {
            lab,
            posting,
            fs,
            provider,
            ..
        } = self;
        let mut posted = std::pin::pin!(posting.post("/fem", sealed.bytes));
        let reply = loop {
            tokio::select! {
                reply = &mut posted => break reply.unwrap(),
                heard = provider.hear() => answer(lab, fs, provider, heard.unwrap()).await,
            }
        };
        if let Some((first, waiting)) = occupied {
            answer(lab, fs, provider, first).await;
            assert_eq!(waiting.await.unwrap(), 200);
        }
        match reply.status {
            200 => Answer::Answered,
            _ => Answer::Refused(code_of(&reply.envelope().unwrap()).unwrap()),
        }
    }

    async fn occupy(&mut self) -> (Heard, tokio::task::JoinHandle<u16>) {
        let call = self
            .busy
            .call("fs", TOOLS[1], &json!({}), self.lab.now())
            .unwrap();
        let line = self.lab.line.clone();
        let waiting =
            tokio::spawn(async move { line.post("/fem", call.bytes).await.unwrap().status });
        loop {
            let heard = self.provider.hear().await.unwrap();
            if matches!(heard, Heard::Delivered { .. }) {
                return (heard, waiting);
            }
        }
    }

    async fn restarted(mut self) -> Self {
        self.note("the broker starts anew");
        drop(self.posting);
        self.lab = self.lab.restart().await.unwrap();
        self.model.pending.clear();
        (self.posting, self.provider) = provide(&self.lab, &self.fs).await;
        self
    }
}

/// What else a provider hears, such as new root keys, asks for nothing.
async fn answer(lab: &Lab, fs: &Actor, provider: &mut Socket, heard: Heard) {
    if let Ok(call) = heard.delivered() {
        let result: Value = json!(1);
        let result = lab.result(fs, &call, &result).unwrap();
        provider.send(result.bytes).await.unwrap();
    }
}

async fn history(seed: u64) {
    let mut world = World::start(seed).await;
    for _ in 0..ACTS {
        match world.dice.one_in(25) {
            true => world = Box::pin(world.restarted()).await,
            false => world.act().await,
        }
        for _ in 0..PROBES {
            world.probe().await;
        }
    }
    world.lab.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_answers_as_a_plain_reading_of_the_specification_does() {
    let number = |name: &str, usual: u64| {
        let text = std::env::var(name).ok();
        text.map_or(usual, |text| text.parse().unwrap())
    };
    let (first, many) = (number("FEM_SEED", 1), number("FEM_HISTORIES", 30));
    let mut left = first..first + many;
    let mut running = JoinSet::new();
    let mut failed = 0;
    loop {
        while running.len() < 2
            && let Some(seed) = left.next()
        {
            running.spawn(history(seed));
        }
        match running.join_next().await {
            Some(ended) => failed += u64::from(ended.is_err()),
            None => break,
        }
    }
    assert_eq!(failed, 0, "of {many} histories; each is printed above");
}
