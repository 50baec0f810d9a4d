//! What has to be so: after every start, and in the end.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::agents::short;
use crate::network::Index;
use crate::oracle::{Broken, Ended, Grant, ON_RECORD, WORKS, broken};
use crate::people::TOOLS;
use crate::world::World;

/// How long the last calls may take.
const PATIENCE: Duration = Duration::from_secs(10);

impl World {
    /// What was acknowledged is in the record of a broker.
    pub(crate) fn check_record(&self, house: Index) -> Result<(), Broken> {
        let Some(core) = self.houses[house].core() else {
            return Ok(());
        };
        let state = &core.state;
        let lost = |what: String| broken(ON_RECORD, format!("org{house}: {what}"));
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

    /// Which tools `house` should see over the link of `peer`, by what their admins did.
    pub(crate) fn visible(&self, house: Index, peer: Index) -> BTreeSet<String> {
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

    pub(crate) fn is_peering(&self, a: Index, b: Index) -> bool {
        let peerings = &self.oracle.peerings;
        peerings.contains_key(&(a, b)) && peerings.contains_key(&(b, a)) && self.is_dialled(a, b)
    }

    pub(crate) fn is_dialled(&self, a: Index, b: Index) -> bool {
        let dials = |from: Index, to: Index| {
            let core = self.houses[from].core();
            let peer = core.and_then(|core| core.state.peers.find(&self.houses[to].org));
            peer.is_some_and(|peer| !peer.endpoints.is_empty())
        };
        dials(a, b) || dials(b, a)
    }

    pub(crate) fn what_does_not_work(&self) -> Option<String> {
        if !self.weather.is_calm() {
            return Some("the network is not healed".into());
        }
        for (number, house) in self.houses.iter().enumerate() {
            if house.agents.values().any(|agent| agent.line.is_none()) {
                return Some(format!("an agent of org{number} is not attached"));
            }
        }
        // Two that dial each other at once keep one link, and end what is in flight on the other.
        if let Some((house, peer)) = self.who_dials() {
            return Some(format!("org{house} is dialling org{peer}"));
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
    pub(crate) fn call_everything(&mut self) -> Result<(), Broken> {
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
                let what = format!(
                    "{} of x@org{} to org{} ended with {:?}",
                    short(&id),
                    call.home,
                    call.owner,
                    call.ended
                );
                return broken(WORKS, what);
            }
            self.oracle.seen.count(match should {
                true => "answered in the end",
                false => "refused in the end",
            });
        }
        Ok(())
    }
}
