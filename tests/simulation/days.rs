//! What happens in a run: people grant and revoke, agents call, adversaries say again what others said,
//! and the network and the brokers fail. In the end all heals, and everything that should work has to.

use std::collections::BTreeSet;
use std::time::Duration;

use broker::pipeline::Core;
use bytes::Bytes;
use proto_spec::frame::Relay;
use proto_spec::message::Ack;
use proto_spec::{Audience, Digest, Envelope, Kind, SigningKey};
use serde_json::{Value, json};
use tests::lab::Actor;

use crate::house::House;
use crate::network::House as Index;
use crate::oracle::{Broken, Call, Ended, Grant, ON_RECORD, Peering, Standing, WORKS};
use crate::world::{Down, Event, World, id_of, same, short};

/// How far clocks are apart at most.
const APART: Duration = Duration::from_secs(240);
/// For how long things go wrong.
const TROUBLE: Duration = Duration::from_secs(120);
/// How soon after that everything has to work: a dialler waits half a minute at most.
const HEALED: Duration = Duration::from_secs(100);
/// How long the last calls may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Who calls, and may call others' tools; and who may call only at home.
const CALLERS: [&str; 2] = ["x", "y"];
const TOOLS: [&str; 2] = ["fs.read", "fs.write"];

fn ring(count: usize) -> Vec<(Index, Index)> {
    (0..count).map(|a| (a, (a + 1) % count)).collect()
}

/// Two brokers, one of whose clocks is four minutes behind the other's, on a network that never fails: every
/// call is answered, whenever it is made.
pub(crate) fn far_apart() -> Result<World, String> {
    let mut world = World::new(1);
    let lived = world.live_apart();
    lived.map_err(|broken| format!("{}\n{broken}", world.shown()))?;
    Ok(world)
}

/// Ten brokers in a ring, 200 ms from each other, each of which revokes the key of an agent: how long it takes
/// the nine others to know, in milliseconds, sorted.
pub(crate) fn around_a_ring() -> Result<Vec<u64>, String> {
    let mut world = World::new(1);
    let lived = world.live_in_a_ring();
    lived.map_err(|broken| format!("{}\n{broken}", world.shown()))?;
    let mut took = world.oracle.seen.calm_ms;
    took.sort_unstable();
    Ok(took)
}

/// Runs one seed.
pub(crate) fn run(seed: u64) -> Result<World, String> {
    let mut world = World::new(seed);
    match world.live() {
        Ok(()) => Ok(world),
        Err(broken) => Err(format!("{}\n{broken}\nFEM_SEED={seed}", world.shown())),
    }
}

impl World {
    fn live(&mut self) -> Result<(), Broken> {
        self.found_any()?;
        (0..self.houses.len()).try_for_each(|house| self.settle(house))?;
        self.plan(Duration::from_secs(2), Event::Act);
        self.run_until(TROUBLE)?;
        self.heal_everything()?;
        let end = self.now + HEALED;
        let mut wrong = self.what_does_not_work();
        while wrong.is_some() && self.now < end {
            self.run_until(self.now + Duration::from_secs(1))?;
            wrong = self.what_does_not_work();
        }
        if let Some(wrong) = wrong {
            return Err(format!("broken: {WORKS}: {wrong}"));
        }
        self.call_everything()?;
        (0..self.houses.len()).try_for_each(|house| self.check_record(house))
    }

    fn live_apart(&mut self) -> Result<(), Broken> {
        self.is_over = true;
        self.found(&[Duration::ZERO, APART], vec![(0, 1)])?;
        self.all_grant_all()?;
        for _ in 0..60 {
            self.run_until(self.now + Duration::from_secs(10))?;
            let calls =
                [(0, 1), (1, 0)].map(|(from, to)| self.call(from, "x", to, "fs.read", false));
            self.run_until(self.now + Duration::from_secs(2))?;
            for call in calls {
                let call = &self.oracle.calls[&call?];
                if call.ended != Some(Ended::Answered) {
                    return Err(format!("broken: {WORKS}: {:?}", call.ended));
                }
            }
        }
        Ok(())
    }

    fn live_in_a_ring(&mut self) -> Result<(), Broken> {
        self.is_over = true;
        self.weather.is_always_late(Duration::from_millis(200));
        let clocks = [0, 240, 120, 60, 180, 0, 240, 30, 210, 90].map(Duration::from_secs);
        self.found(&clocks, ring(clocks.len()))?;
        self.all_grant_all()?;
        let quiet = Duration::from_secs(30);
        self.run_until(quiet)?;
        if let Some(wrong) = self.what_does_not_work() {
            return Err(wrong);
        }
        for house in 0..clocks.len() {
            let key = self.oracle.agents[&(house, "x")].key;
            self.revoke_agent(house);
            self.settle(house)?;
            self.run_until(self.now + Duration::from_secs(2))?;
            let aware = self.oracle.aware_of(&key);
            if aware != clocks.len() - 1 {
                return Err(format!("broken: {WORKS}: {aware} brokers know of a death"));
            }
        }
        Ok(())
    }

    /// Neighbours are peers, and let each other's agents and those behind them do everything.
    fn all_grant_all(&mut self) -> Result<(), Broken> {
        for (a, b) in self.edges.clone() {
            self.add_peer(a, b, true);
            self.add_peer(b, a, false);
        }
        for (a, b) in self.edges.clone() {
            for (owner, peer) in [(a, b), (b, a)] {
                let own =
                    json!({"org": format!("org{peer}"), "capabilities": ["fs.*"], "depth": 1});
                self.grant_one(owner, peer, &own, Grant::Own { onward: true });
                let others = self.neighbours(owner).into_iter();
                for other in others.filter(|other| *other != peer) {
                    self.let_through(owner, peer, other);
                }
            }
        }
        (0..self.houses.len()).try_for_each(|house| self.settle(house))
    }

    // The beginning.

    fn found_any(&mut self) -> Result<(), Broken> {
        let count = [3, 3, 3, 4, 4, 5, 5, 6, 8, 10][self.dice.below(10)];
        // A ring, a chain, or a star.
        let edges = match self.dice.below(4) {
            0 | 1 => ring(count),
            2 => (1..count).map(|a| (a - 1, a)).collect(),
            _ => (1..count).map(|a| (0, a)).collect(),
        };
        let ahead = APART.as_millis() as u64 + 1;
        let clocks: Vec<_> = (0..count).map(|_| self.dice.ms(0, ahead)).collect();
        self.found(&clocks, edges)?;
        for (a, b) in self.edges.clone() {
            // One side dials, or both.
            let dials = self.dice.below(3);
            self.add_peer(a, b, dials != 1);
            self.add_peer(b, a, dials != 0);
            self.grant(a, b);
            self.grant(b, a);
        }
        Ok(())
    }

    /// Brokers whose clocks are so far ahead, with their agents; with whom each will be a peer.
    fn found(&mut self, clocks: &[Duration], edges: Vec<(Index, Index)>) -> Result<(), Broken> {
        self.edges = edges;
        for (number, ahead) in clocks.iter().enumerate() {
            self.houses.push(House::found(number, *ahead));
        }
        for house in 0..clocks.len() {
            self.start(house)?;
            for name in ["fs", "x", "y"] {
                let key = SigningKey::from_seed(&self.dice.seed());
                self.approve(house, name, key);
                self.plan(Duration::from_millis(100), Event::Return(house, name));
            }
        }
        Ok(())
    }

    fn neighbours(&self, house: Index) -> Vec<Index> {
        let of = |(a, b): &(Index, Index)| match (*a == house, *b == house) {
            (true, _) => Some(*b),
            (_, true) => Some(*a),
            _ => None,
        };
        self.edges.iter().filter_map(of).collect()
    }

    fn admin(&mut self, house: Index, kind: Kind, body: &Value) -> Result<Ack, String> {
        let admin = same(&self.houses[house].admin);
        let done = self.ask(house, &admin, kind, body);
        // Ids and keys of tokens are as random as ever.
        let told = ["org", "name", "agent", "capabilities", "depth"];
        let told = told.map(|member| body.get(member).map(Value::to_string));
        let told = told.into_iter().flatten().collect::<Vec<_>>().join(" ");
        let how = done.as_ref().map_or_else(|code| code.as_str(), |_| "done");
        self.note(format_args!("org{house} {kind} {told}: {how}"));
        done
    }

    /// What an agent of this name is granted.
    fn capabilities(&self, house: Index, name: &str) -> Vec<String> {
        match name {
            "fs" => Vec::new(),
            "x" => {
                let peers = self.neighbours(house).into_iter();
                let peers = peers.map(|peer| format!("peer.org{peer}.*"));
                peers.chain(["fs.*".to_owned()]).collect()
            }
            _ => vec!["fs.*".into()],
        }
    }

    fn approve(&mut self, house: Index, name: &'static str, key: SigningKey) {
        let id = format!("{name}@org{house}").parse().unwrap();
        let actor = Actor { id, key };
        let public = actor.key.public();
        let body = json!({"pubkey": public});
        self.ask(house, &actor, Kind::RegisterAgent, &body).unwrap();
        let capabilities = self.capabilities(house, name);
        let admin = same(&self.houses[house].admin);
        let body = json!({"name": name, "key": public, "capabilities": capabilities});
        self.ask(house, &admin, Kind::AdminAgentApprove, &body)
            .unwrap();
        self.note(format_args!("{name}@org{house} is approved"));
        let standing = Standing {
            key: public,
            is_registered: true,
            is_granted: true,
        };
        self.oracle.agents.insert((house, name), standing);
        self.agent(house, name, actor);
    }

    fn add_peer(&mut self, owner: Index, peer: Index, is_dialled: bool) {
        if !self.is_up(peer) {
            return;
        }
        let Ok(Ack::PeerInvited { descriptor }) =
            self.admin(peer, Kind::AdminPeerInvite, &json!({}))
        else {
            panic!("no descriptor");
        };
        let key = self.houses[peer].core().unwrap().voice.public();
        let endpoints: Vec<String> = is_dialled
            .then(|| format!("org{peer}.test:7443"))
            .into_iter()
            .collect();
        let body = json!({"descriptor": descriptor, "key": key, "endpoints": endpoints});
        if self.admin(owner, Kind::AdminPeerAdd, &body).is_ok() {
            self.oracle
                .peerings
                .insert((owner, peer), Peering::default());
        }
    }

    /// Grants a peer tools of the owner's, and passage to the owner's other peers.
    fn grant(&mut self, owner: Index, peer: Index) {
        let onward = self.dice.one_in(2);
        let body = json!({"org": format!("org{peer}"), "capabilities": ["fs.*"], "depth": u8::from(onward)});
        self.grant_one(owner, peer, &body, Grant::Own { onward });
        let others = self.neighbours(owner).into_iter();
        for other in others.filter(|other| *other != peer).take(3) {
            if self.dice.one_in(2) {
                self.let_through(owner, peer, other);
            }
        }
    }

    fn let_through(&mut self, owner: Index, peer: Index, other: Index) {
        let pattern = format!("peer.org{other}.fs.*");
        let body = json!({"org": format!("org{peer}"), "capabilities": [pattern]});
        self.grant_one(owner, peer, &body, Grant::Through(other));
    }

    fn grant_one(&mut self, owner: Index, peer: Index, body: &Value, grant: Grant) {
        if self.admin(owner, Kind::AdminPeerGrant, body).is_ok() {
            let peering = self.oracle.peerings.get_mut(&(owner, peer)).unwrap();
            peering.grants.push(grant);
        }
    }

    // What is done.

    pub(crate) fn act(&mut self) -> Result<(), Broken> {
        if self.is_over {
            return Ok(());
        }
        let after = self.dice.ms(20, 700);
        self.plan(after, Event::Act);
        let house = self.dice.below(self.houses.len());
        let choice = self.dice.below(100);
        // The weather asks nobody.
        if choice < 4 {
            self.trouble();
            return Ok(());
        }
        if !self.is_up(house) {
            return Ok(());
        }
        match choice {
            4..=61 => self.call_somebody(house)?,
            62..=77 => self.attack()?,
            78..=79 => self.revoke_calling_agent(house)?,
            80 => self.revoke_grants_of_an_agent(house),
            81..=82 => self.rotate_agent(house),
            83..=84 => self.strip_peer(house),
            85..=88 => self.grant_again(house),
            89..=90 => self.pause_or_resume(house),
            91 => self.remove_or_add(house),
            92 => self.rotate_broker(house),
            _ => self.make_good(house),
        }
        self.settle(house)
    }

    fn trouble(&mut self) {
        let count = self.houses.len();
        let long = self.dice.ms(500, 75_000);
        let a = self.dice.below(count);
        match self.dice.below(8) {
            0..=1 => {
                // A part of all is cut off.
                let inside: BTreeSet<Index> = (0..count).filter(|_| self.dice.one_in(3)).collect();
                let all = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
                let ways: Vec<_> = all
                    .filter(|(a, b)| inside.contains(a) != inside.contains(b))
                    .collect();
                self.cut(ways, long);
            }
            2..=3 => {
                let Some(b) = self.dice.pick(&self.neighbours(a)) else {
                    return;
                };
                self.cut(vec![(a, b)], long);
            }
            4 => {
                let Some(b) = self.dice.pick(&self.neighbours(a)) else {
                    return;
                };
                self.cut(vec![(a, b), (b, a)], long);
            }
            5..=6 => {
                let how = match self.dice.one_in(3) {
                    true => Down::Gone,
                    false => Down::Killed,
                };
                let down = self.dice.ms(50, 15_000);
                self.plan(Duration::ZERO, Event::Crash(a, how));
                self.plan(down, Event::Start(a));
            }
            _ => {
                // Every broker, one after the other.
                let every = self.dice.ms(500, 4_000);
                for house in 0..count {
                    let at = every * house as u32;
                    let down = self.dice.ms(50, 1_500);
                    self.plan(at, Event::Crash(house, Down::Killed));
                    self.plan(at + down, Event::Start(house));
                }
            }
        }
    }

    fn cut(&mut self, ways: Vec<(Index, Index)>, long: Duration) {
        self.note(format_args!("nothing passes {ways:?}"));
        self.oracle.seen.count("cuts");
        self.weather.cut(&ways);
        self.reconsider_calm();
        self.plan(long, Event::Heal(ways));
    }

    fn call_somebody(&mut self, house: Index) -> Result<(), Broken> {
        let near = self.neighbours(house);
        let owner = match self.dice.below(10) {
            0..=2 => Some(house),
            3..=6 => self.dice.pick(&near),
            _ => {
                let next = self.dice.pick(&near).map(|next| self.neighbours(next));
                self.dice.pick(&next.unwrap_or_default())
            }
        };
        let name = CALLERS[usize::from(self.dice.one_in(5))];
        let tool = TOOLS[self.dice.below(TOOLS.len())];
        let by_post = self.dice.one_in(4);
        self.call(house, name, owner.unwrap_or(house), tool, by_post)
            .map(drop)
    }

    /// An agent calls; gives the call's identity.
    fn call(
        &mut self,
        house: Index,
        name: &'static str,
        owner: Index,
        tool: &str,
        by_post: bool,
    ) -> Result<Digest, Broken> {
        let actor = same(&self.houses[house].agents[name].actor);
        let to: Audience = format!("fs@org{owner}").parse().unwrap();
        let body = json!({"tool": tool, "arguments": {}});
        let deadline = [3_000, 8_000, 20_000][self.dice.below(3)];
        let call = self.seal(
            house,
            &actor,
            Kind::ToolCall,
            &to,
            &body,
            None,
            Some(deadline),
        );
        self.note(format_args!(
            "{name}@org{house} calls {tool} of org{owner}: {}",
            short(&call.id)
        ));
        let known = Call {
            home: house,
            caller: name,
            key: actor.key.public(),
            owner,
            deliveries: 0,
            ended: None,
        };
        self.oracle.calls.insert(call.id, known);
        self.oracle.seen.count("calls");
        let done = match by_post {
            true => self.post(house, &call).map(drop),
            false => self.speak(house, name, call.bytes),
        };
        match done {
            Ok(()) => self.oracle.taken(house, &call.id, None, self.now)?,
            Err(code) => {
                self.note(format_args!(
                    "{} is refused at home: {code}",
                    short(&call.id)
                ));
                self.oracle.end(&call.id, Ended::Refused(code));
            }
        }
        self.settle(house)?;
        Ok(call.id)
    }

    /// Often while a call of its agent is on its way.
    fn revoke_calling_agent(&mut self, house: Index) -> Result<(), Broken> {
        if self.dice.one_in(2) {
            for peer in self.neighbours(house) {
                self.call(house, "x", peer, "fs.read", false)?;
            }
        }
        self.revoke_agent(house);
        Ok(())
    }

    fn revoke_agent(&mut self, house: Index) {
        let standing = self.oracle.agents[&(house, "x")].clone();
        let done = self.admin(house, Kind::AdminAgentRevoke, &json!({"name": "x"}));
        if done.is_ok() {
            let standing_ = self.oracle.agents.get_mut(&(house, "x")).unwrap();
            standing_.is_registered = false;
            standing_.is_granted = false;
            self.oracle.died(standing.key, house, self.now);
        }
    }

    fn revoke_grants_of_an_agent(&mut self, house: Index) {
        let core = self.houses[house].core().unwrap();
        let name = CALLERS[self.dice.below(2)];
        let Some(agent) = core.state.registry.agent(&name.parse().unwrap()) else {
            return;
        };
        let ids: Vec<Digest> = agent.grants.records().iter().map(|one| one.id).collect();
        if ids.is_empty() {
            return;
        }
        let body = json!({"ids": ids});
        if self.admin(house, Kind::AdminTokenRevoke, &body).is_ok() {
            self.oracle
                .agents
                .get_mut(&(house, name))
                .unwrap()
                .is_granted = false;
            self.oracle.struck.extend(ids.iter().map(|id| (house, *id)));
        }
    }

    fn rotate_agent(&mut self, house: Index) {
        let before = same(&self.houses[house].agents["x"].actor);
        let next = Actor {
            id: before.id.clone(),
            key: SigningKey::from_seed(&self.dice.seed()),
        };
        let consent = json!({"pubkey": next.key.public(), "follows": before.key.public()});
        let to = before.broker();
        let accept = self.seal(house, &next, Kind::AcceptKey, &to, &consent, None, None);
        let body = json!({"accept": std::str::from_utf8(&accept.bytes).unwrap()});
        let done = self.ask(house, &before, Kind::RotateKey, &body);
        self.note(format_args!(
            "x@org{house} rotates its key: {}",
            done.is_ok()
        ));
        if done.is_ok() {
            let standing = self.oracle.agents.get_mut(&(house, "x")).unwrap();
            standing.key = next.key.public();
            let old = before.key.public();
            self.oracle.died(old, house, self.now);
            self.houses[house].agents.get_mut("x").unwrap().actor = next;
        }
    }

    fn peer_of(&mut self, house: Index) -> Option<Index> {
        let near = self.neighbours(house);
        self.dice.pick(&near)
    }

    fn ids_of_grants(&self, core: &Core, peer: Index) -> Vec<Digest> {
        let peer = core.state.peers.find(&self.houses[peer].org);
        peer.map(|peer| peer.grants.iter().map(|grant| grant.id).collect())
            .unwrap_or_default()
    }

    /// Revokes all that a peer is granted.
    fn strip_peer(&mut self, house: Index) {
        let Some(peer) = self.peer_of(house) else {
            return;
        };
        let core = self.houses[house].core().unwrap();
        let ids = self.ids_of_grants(&core, peer);
        if ids.is_empty() {
            return;
        }
        let body = json!({"ids": ids});
        if self.admin(house, Kind::AdminTokenRevoke, &body).is_ok() {
            let peering = self.oracle.peerings.get_mut(&(house, peer)).unwrap();
            peering.grants.clear();
            self.oracle.struck.extend(ids.iter().map(|id| (house, *id)));
            self.oracle.seen.count("grants of peers revoked");
        }
    }

    fn grant_again(&mut self, house: Index) {
        let Some(peer) = self.peer_of(house) else {
            return;
        };
        let peering = self.oracle.peerings.get(&(house, peer));
        if peering.is_some_and(|peering| peering.grants.is_empty()) {
            self.grant(house, peer);
        }
    }

    fn pause_or_resume(&mut self, house: Index) {
        let Some(peer) = self.peer_of(house) else {
            return;
        };
        let Some(peering) = self.oracle.peerings.get(&(house, peer)) else {
            return;
        };
        let pauses = !peering.is_paused;
        self.pause(house, peer, pauses);
    }

    fn pause(&mut self, house: Index, peer: Index, pauses: bool) {
        let kind = match pauses {
            true => Kind::AdminPeerPause,
            false => Kind::AdminPeerResume,
        };
        let body = json!({"org": format!("org{peer}")});
        if self.admin(house, kind, &body).is_ok() {
            let peering = self.oracle.peerings.get_mut(&(house, peer)).unwrap();
            peering.is_paused = pauses;
        }
    }

    fn remove_or_add(&mut self, house: Index) {
        let Some(peer) = self.peer_of(house) else {
            return;
        };
        if !self.oracle.peerings.contains_key(&(house, peer)) {
            self.add_peer(house, peer, true);
            if self.oracle.peerings.contains_key(&(house, peer)) {
                self.grant(house, peer);
            }
            return;
        }
        let core = self.houses[house].core().unwrap();
        let ids = self.ids_of_grants(&core, peer);
        let body = json!({"org": format!("org{peer}")});
        if self.admin(house, Kind::AdminPeerRemove, &body).is_ok() {
            self.oracle.peerings.remove(&(house, peer));
            self.oracle.struck.extend(ids.iter().map(|id| (house, *id)));
        }
    }

    fn rotate_broker(&mut self, house: Index) {
        let core = self.houses[house].core().unwrap();
        let before: BTreeSet<_> = self.houses[house].broker_keys().into_iter().collect();
        if self
            .admin(house, Kind::AdminBrokerPrepare, &json!({}))
            .is_err()
        {
            return;
        }
        let after = self.houses[house].broker_keys();
        let next = after.into_iter().find(|key| !before.contains(key)).unwrap();
        drop(core);
        let body = json!({"key": next});
        if self.admin(house, Kind::AdminBrokerActivate, &body).is_ok() {
            self.oracle.seen.count("broker keys rotated");
        }
    }

    /// Gives agents back what they lost.
    fn make_good(&mut self, house: Index) {
        for name in CALLERS {
            let standing = self.oracle.agents[&(house, name)].clone();
            if !standing.is_registered {
                let key = SigningKey::from_seed(&self.dice.seed());
                self.approve(house, name, key);
                let after = self.dice.ms(1, 500);
                self.plan(after, Event::Return(house, name));
            } else if !standing.is_granted {
                let body = json!({
                    "agent": name,
                    "capabilities": self.capabilities(house, name),
                    "checks": [],
                    "record": true,
                });
                if self.admin(house, Kind::AdminTokenIssue, &body).is_ok() {
                    self.oracle
                        .agents
                        .get_mut(&(house, name))
                        .unwrap()
                        .is_granted = true;
                }
            }
        }
    }

    // Adversaries.

    fn attack(&mut self) -> Result<(), Broken> {
        let all: Vec<_> = self.recorded.iter().cloned().collect();
        let Some((from, to, frame)) = self.dice.pick(&all) else {
            return Ok(());
        };
        match self.dice.below(6) {
            // The same again where it went before.
            0 | 1 => self.inject(from, to, frame),
            // On another link.
            2 => {
                let (a, b) = self.dice.pick(&self.edges.clone()).unwrap();
                let (from, to) = match self.dice.one_in(2) {
                    true => (a, b),
                    false => (b, a),
                };
                self.inject(from, to, frame);
            }
            // Where no link is needed, or as the agent's own.
            3 | 4 => return self.say_again(&frame),
            _ => self.forge_answer()?,
        }
        Ok(())
    }

    fn say_again(&mut self, frame: &Bytes) -> Result<(), Broken> {
        let Ok(relay) = Relay::decode(frame.clone()) else {
            return Ok(());
        };
        let envelope = Envelope::parse(relay.envelope, 1 << 20).unwrap();
        let id = id_of(&envelope);
        let Some(call) = self.oracle.calls.get(&id).cloned() else {
            return Ok(());
        };
        let at = match self.dice.one_in(2) {
            true => call.home,
            false => self.dice.below(self.houses.len()),
        };
        if !self.is_up(at) {
            return Ok(());
        }
        self.oracle.seen.count("envelopes by an adversary");
        let bytes = envelope.bytes().clone();
        let said = match self.dice.one_in(2) {
            true => self.post(at, &proto_spec::Sealed { bytes, id }).map(drop),
            false => self.speak(at, call.caller, bytes),
        };
        if said.is_ok() {
            // What was never delivered may be now, once; the book knows.
            self.note(format_args!("org{at} takes {} again", short(&id)));
            self.oracle.taken(at, &id, None, self.now)?;
        }
        self.settle(at)
    }

    /// Somebody who is not the provider answers a call.
    fn forge_answer(&mut self) -> Result<(), Broken> {
        let mut open: Vec<_> = self
            .oracle
            .calls
            .iter()
            .filter(|(_, call)| call.ended.is_none() && call.deliveries > 0)
            .map(|(id, call)| (*id, call.clone()))
            .collect();
        open.sort_by_key(|(id, _)| *id);
        let Some((id, call)) = self.dice.pick(&open) else {
            return Ok(());
        };
        let owner = call.owner;
        let provider = self.houses[owner].agents["fs"].actor.id.clone();
        let to = self.houses[call.home].agents[call.caller].actor.id.clone();
        let is_own_key = self.dice.one_in(2);
        let liar = match is_own_key {
            // Another agent in its own name, or in the provider's.
            true => same(&self.houses[owner].agents["y"].actor),
            false => Actor {
                id: provider,
                key: SigningKey::from_seed(&self.dice.seed()),
            },
        };
        let body = json!({"result": "forged"});
        let forged = self.seal(
            owner,
            &liar,
            Kind::ToolResult,
            &to.into(),
            &body,
            Some(id),
            None,
        );
        self.oracle.seen.count("forged answers");
        if self.is_up(owner) {
            let _ = self.speak(owner, "y", forged.bytes.clone());
            self.settle(owner)?;
        }
        let frame = Relay {
            envelope: forged.bytes,
            ..Relay::default()
        };
        let near = self.neighbours(call.home);
        if let Some(from) = self.dice.pick(&near) {
            self.inject(from, call.home, frame.encode());
        }
        Ok(())
    }

    // What has to be so.

    /// What was acknowledged is in the record of a broker.
    pub(crate) fn check_record(&self, house: Index) -> Result<(), Broken> {
        let Some(core) = self.houses[house].core() else {
            return Ok(());
        };
        let state = &core.state;
        let lost = |what: String| Err(format!("broken: {ON_RECORD}: org{house}: {what}"));
        for ((at, name), standing) in &self.oracle.agents {
            if *at != house {
                continue;
            }
            let agent = state.registry.agent(&name.parse().unwrap());
            let has_key = agent
                .as_ref()
                .is_some_and(|agent| agent.key == standing.key);
            if has_key != standing.is_registered {
                return lost(format!("{name}'s registration"));
            }
            let grants = agent.map_or(0, |agent| agent.grants.records().len());
            if *name != "fs" && (grants > 0) != standing.is_granted {
                return lost(format!("{name} has {grants} grants"));
            }
        }
        for (key, (home, _)) in &self.oracle.dead {
            if *home == house && !state.revocations.is_key_revoked(key) {
                return lost(format!("the death of {}", key.fingerprint()));
            }
        }
        for (at, id) in &self.oracle.struck {
            if *at == house && !state.revocations.is_revoked(id) {
                return lost(format!("the revocation of {id}"));
            }
        }
        for peer in self.neighbours(house) {
            let known = state.peers.find(&self.houses[peer].org);
            let wanted = self.oracle.peerings.get(&(house, peer));
            let found = known.map(|known| (known.is_paused, known.grants.len()));
            let wanted = wanted.map(|wanted| (wanted.is_paused, wanted.grants.len()));
            if found != wanted {
                return lost(format!("org{peer} is {found:?} and not {wanted:?}"));
            }
        }
        Ok(())
    }

    fn heal_everything(&mut self) -> Result<(), Broken> {
        self.note("everything heals");
        self.is_over = true;
        for house in 0..self.houses.len() {
            self.start(house)?;
        }
        // What is cut heals when its time comes, or at once.
        let cut = self.weather.all_cut();
        for (way, times) in cut {
            self.plan(Duration::ZERO, Event::Heal(vec![way; times]));
        }
        for house in 0..self.houses.len() {
            self.make_good(house);
            for peer in self.neighbours(house) {
                if self
                    .oracle
                    .peerings
                    .get(&(house, peer))
                    .is_some_and(|one| one.is_paused)
                {
                    self.pause(house, peer, false);
                }
            }
            self.settle(house)?;
        }
        Ok(())
    }

    /// Which tools `house` should see over the link of `peer`, by what their admins did.
    fn visible(&self, house: Index, peer: Index) -> BTreeSet<String> {
        let grants = |owner, to| {
            let peering = self.oracle.peerings.get(&(owner, to));
            peering.map_or(Vec::new(), |peering| peering.grants.clone())
        };
        let of = |owner: Index| TOOLS.map(|tool| format!("{tool} fs@org{owner}"));
        let mut seen = BTreeSet::new();
        for grant in grants(peer, house) {
            match grant {
                Grant::Own { .. } => seen.extend(of(peer)),
                Grant::Through(owner) => {
                    let is_onward = |grant: &Grant| *grant == Grant::Own { onward: true };
                    let is_linked = self.is_peering(peer, owner);
                    if is_linked && owner != house && grants(owner, peer).iter().any(is_onward) {
                        seen.extend(of(owner));
                    }
                }
            }
        }
        seen
    }

    fn is_peering(&self, a: Index, b: Index) -> bool {
        let peerings = &self.oracle.peerings;
        peerings.contains_key(&(a, b)) && peerings.contains_key(&(b, a)) && self.is_dialled(a, b)
    }

    fn is_dialled(&self, a: Index, b: Index) -> bool {
        let dials = |from: Index, to: Index| {
            let core = self.houses[from].core();
            let peer = core.and_then(|core| core.state.peers.find(&self.houses[to].org));
            peer.is_some_and(|peer| !peer.endpoints.is_empty())
        };
        dials(a, b) || dials(b, a)
    }

    fn what_does_not_work(&self) -> Option<String> {
        if !self.weather.is_calm() {
            return Some("the network is not healed".into());
        }
        for (number, house) in self.houses.iter().enumerate() {
            if house.agents.values().any(|agent| agent.line.is_none()) {
                return Some(format!("an agent of org{number} is not attached"));
            }
        }
        for (a, b) in &self.edges {
            for (house, peer) in [(*a, *b), (*b, *a)] {
                if !self.is_peering(house, peer) {
                    continue;
                }
                let core = self.houses[house].core()?;
                let Some(link) = core.state.links.of(&self.houses[peer].org) else {
                    return Some(format!("org{house} has no link to org{peer}"));
                };
                let tools = link.tools(core.clock.now());
                let tools: BTreeSet<String> = tools
                    .iter()
                    .map(|one| format!("{} {}", one.tool.tool.name, one.tool.agent))
                    .collect();
                let wanted = self.visible(house, peer);
                if tools != wanted {
                    return Some(format!(
                        "org{house} sees {tools:?} of org{peer} and not {wanted:?}"
                    ));
                }
                let age = link.age(core.clock.now());
                if age > Duration::from_secs(3) {
                    return Some(format!("org{house} last heard of org{peer} {age:?} ago"));
                }
            }
        }
        None
    }

    /// Every tool that an agent may call answers; what it may not call is refused.
    fn call_everything(&mut self) -> Result<(), Broken> {
        let mut made = Vec::new();
        for house in 0..self.houses.len() {
            let mut owners = BTreeSet::from([house]);
            for peer in self.neighbours(house) {
                let seen = match self.is_peering(house, peer) {
                    true => self.visible(house, peer),
                    false => BTreeSet::new(),
                };
                let owner = |owner: &Index| seen.contains(&format!("fs.read fs@org{owner}"));
                owners.extend((0..self.houses.len()).filter(owner));
            }
            for owner in 0..self.houses.len() {
                let by_post = self.dice.one_in(4);
                let call = self.call(house, "x", owner, "fs.read", by_post)?;
                made.push((call, owners.contains(&owner)));
            }
        }
        self.run_until(self.now + PATIENCE)?;
        for (id, should) in made {
            let call = &self.oracle.calls[&id];
            let did = call.ended == Some(Ended::Answered);
            if did != should {
                return Err(format!(
                    "broken: {WORKS}: {} of x@org{} to org{} ended with {:?}",
                    short(&id),
                    call.home,
                    call.owner,
                    call.ended
                ));
            }
            self.oracle.seen.count(match should {
                true => "answered in the end",
                false => "refused in the end",
            });
        }
        Ok(())
    }
}
