//! What admins and agents do, and what the book says of it.

use std::collections::BTreeSet;

use broker::pipeline::Core;
use proto_spec::message::Ack;
use proto_spec::{Audience, Digest, Kind, SigningKey};
use serde_json::{Value, json};
use tests::lab::{Actor, Extra};

use crate::agents::{same, short};
use crate::network::Index;
use crate::oracle::{Broken, Call, Ended, Grant, Peering, Standing};
use crate::world::{Event, World};

/// Who calls, and may call others' tools; and who may call only at home.
pub(crate) const CALLERS: [&str; 2] = ["x", "y"];
/// What every `fs` serves.
pub(crate) const TOOLS: [&str; 2] = ["fs.read", "fs.write"];

impl World {
    pub(crate) fn neighbours(&self, house: Index) -> Vec<Index> {
        let of = |(a, b): &(Index, Index)| match (*a == house, *b == house) {
            (true, _) => Some(*b),
            (_, true) => Some(*a),
            _ => None,
        };
        self.edges.iter().filter_map(of).collect()
    }

    pub(crate) fn admin(&mut self, house: Index, kind: Kind, body: &Value) -> Result<Ack, String> {
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
    pub(crate) fn capabilities(&self, house: Index, name: &str) -> Vec<String> {
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

    pub(crate) fn approve(&mut self, house: Index, name: &'static str, key: SigningKey) {
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

    pub(crate) fn add_peer(&mut self, owner: Index, peer: Index, is_dialled: bool) {
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
    pub(crate) fn grant(&mut self, owner: Index, peer: Index) {
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

    pub(crate) fn let_through(&mut self, owner: Index, peer: Index, other: Index) {
        let pattern = format!("peer.org{other}.fs.*");
        let body = json!({"org": format!("org{peer}"), "capabilities": [pattern]});
        self.grant_one(owner, peer, &body, Grant::Through(other));
    }

    pub(crate) fn grant_one(&mut self, owner: Index, peer: Index, body: &Value, grant: Grant) {
        if self.admin(owner, Kind::AdminPeerGrant, body).is_ok() {
            let peering = self.oracle.peerings.get_mut(&(owner, peer)).unwrap();
            peering.grants.push(grant);
        }
    }

    pub(crate) fn call_somebody(&mut self, house: Index) -> Result<(), Broken> {
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
    pub(crate) fn call(
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
        let within = Extra {
            deadline: Some([3_000, 8_000, 20_000][self.dice.below(3)]),
            ..Extra::default()
        };
        let call = self.seal(house, &actor, Kind::ToolCall, &to, &body, within);
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
    pub(crate) fn revoke_calling_agent(&mut self, house: Index) -> Result<(), Broken> {
        if self.dice.one_in(2) {
            for peer in self.neighbours(house) {
                self.call(house, "x", peer, "fs.read", false)?;
            }
        }
        self.revoke_agent(house);
        Ok(())
    }

    pub(crate) fn revoke_agent(&mut self, house: Index) {
        let standing = self.oracle.agents[&(house, "x")].clone();
        let done = self.admin(house, Kind::AdminAgentRevoke, &json!({"name": "x"}));
        if done.is_ok() {
            let standing_ = self.oracle.agents.get_mut(&(house, "x")).unwrap();
            standing_.is_registered = false;
            standing_.is_granted = false;
            self.oracle.died(standing.key, house, self.now);
        }
    }

    pub(crate) fn revoke_grants_of_an_agent(&mut self, house: Index) {
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

    pub(crate) fn rotate_agent(&mut self, house: Index) {
        let before = same(&self.houses[house].agents["x"].actor);
        let next = Actor {
            id: before.id.clone(),
            key: SigningKey::from_seed(&self.dice.seed()),
        };
        let consent = json!({"pubkey": next.key.public(), "follows": before.key.public()});
        let to = before.broker();
        let accept = self.seal(
            house,
            &next,
            Kind::AcceptKey,
            &to,
            &consent,
            Extra::default(),
        );
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

    pub(crate) fn peer_of(&mut self, house: Index) -> Option<Index> {
        let near = self.neighbours(house);
        self.dice.pick(&near)
    }

    pub(crate) fn ids_of_grants(&self, core: &Core, peer: Index) -> Vec<Digest> {
        let peer = core.state.peers.find(&self.houses[peer].org);
        peer.map(|peer| peer.grants.iter().map(|grant| grant.id).collect())
            .unwrap_or_default()
    }

    /// Revokes all that a peer is granted.
    pub(crate) fn strip_peer(&mut self, house: Index) {
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

    pub(crate) fn grant_again(&mut self, house: Index) {
        let Some(peer) = self.peer_of(house) else {
            return;
        };
        let peering = self.oracle.peerings.get(&(house, peer));
        if peering.is_some_and(|peering| peering.grants.is_empty()) {
            self.grant(house, peer);
        }
    }

    pub(crate) fn pause_or_resume(&mut self, house: Index) {
        let Some(peer) = self.peer_of(house) else {
            return;
        };
        let Some(peering) = self.oracle.peerings.get(&(house, peer)) else {
            return;
        };
        let pauses = !peering.is_paused;
        self.pause(house, peer, pauses);
    }

    pub(crate) fn pause(&mut self, house: Index, peer: Index, pauses: bool) {
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

    pub(crate) fn remove_or_add(&mut self, house: Index) {
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

    pub(crate) fn rotate_broker(&mut self, house: Index) {
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
    pub(crate) fn make_good(&mut self, house: Index) {
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
}
