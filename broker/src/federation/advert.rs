//! What a peer is told about our tools: pure. The rule that decides is the one that decides calls.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use proto_spec::capability::{Arguments, Pattern, Proof, Question, Token};
use proto_spec::limits::{
    ADVERTISED_BYTES_MAX, ADVERTISED_TOOL_BYTES_MAX, ADVERTISED_TOOLS_MAX, CLOCK_SKEW_MAX,
    RELAY_TOKENS_MAX,
};
use proto_spec::message::{Advert, AdvertisedTool, DiscoverTools, DiscoveredTool, Tool};
use proto_spec::{AgentId, Capability, Digest, Timestamp};

use super::telling::REFRESH;
use crate::directory::{argument_checks, offers};
use crate::routing::under_peer;
use crate::state::State;
use crate::state::links::{Link, Written};
use crate::state::peers::Peer;
use crate::state::registry::grant_id;
use crate::state::room::leaves_enough;

/// How long an advert holds by our clock: until it was told anew twice, by whatever clock its reader has.
const VALIDITY: Duration = Duration::from_secs(4 * REFRESH.as_secs() + CLOCK_SKEW_MAX.as_secs());
/// Questions to the Datalog engine for one look, some 100 µs each: a link says and hears nothing meanwhile. What
/// is not asked about is not advertised.
const ASKED_MAX: usize = 4_096;
/// Bytes of tools in one advert.
const ADVERT_BYTES: usize = 512 << 10;

type Place = (AgentId, Capability);
type Tools = BTreeMap<Place, AdvertisedTool>;

/// The tools that a peer's agents may call here: what is offered and some grant of the peer permits. What
/// only a call can tell, who calls and with which arguments, counts as satisfied.
pub(super) fn tools_for(peer: &Peer, state: &State, now: Timestamp) -> Tools {
    if state.trust.is_revoked(&peer.org) {
        return Tools::new();
    }
    let roots = state.roots.keys();
    let grants = peer.grants.iter().filter_map(|grant| grant.token(&roots));
    let mut grants: Vec<Arc<Token>> = grants
        .filter(|token| state.revocations.alive(token).is_ok())
        .collect();
    // What a table answers is the cheapest to use.
    grants.sort_by_key(|token| !token.is_standard());
    let asked = Cell::new(0);
    let asks_trust = grants.iter().any(|token| token.names_trust());
    // The grants that permit a tool, and what the best of them says about arguments.
    let permitting = |required: &Pattern, tool: &Tool, provider: &AgentId| {
        let question = Question {
            required,
            tool: Some(tool.name.as_str()),
            caller: None,
            via: None,
            provider: Some(provider),
            now,
            trust: asks_trust
                .then(|| state.trust.score(&peer.org, required, now))
                .flatten(),
            proof: Proof::Key,
            arguments: Arguments::Unknown,
        };
        let permits = |token: &&Arc<Token>| {
            asked.set(asked.get() + usize::from(!token.is_standard()));
            asked.get() <= ASKED_MAX
                && !state.revocations.is_barred(token.issued(), required)
                && token.permits(&question).is_ok()
        };
        let all: Vec<_> = grants
            .iter()
            .filter(permits)
            .take(RELAY_TOKENS_MAX)
            .collect();
        let checks = argument_checks(all.first()?);
        let ids: Vec<Digest> = all.iter().map(|token| grant_id(token)).collect();
        Some((ids, checks))
    };
    let mut tools = Tools::new();
    for offer in offers(&DiscoverTools::default(), "", state).into_values() {
        // Nobody vouches to another organisation for an answer that its provider did not sign.
        if offer.unsigned.is_some() {
            continue;
        }
        let required = Pattern::from(offer.required);
        let Some((grants, checks)) = permitting(&required, &offer.tool, &offer.provider) else {
            continue;
        };
        let place = (offer.provider.clone(), offer.tool.name.clone());
        let tool = DiscoveredTool {
            agent: offer.provider,
            key: offer.key,
            tool: Tool::clone(&offer.tool),
            checks,
            via: Vec::new(),
            unsigned: None,
        };
        let onward = Vec::new();
        tools.insert(
            place,
            AdvertisedTool {
                tool,
                grants,
                onward,
            },
        );
    }
    // Nothing leads through one that is revoked.
    let leads_on = |link: &&Arc<Link>| link.org != peer.org && !state.trust.is_revoked(&link.org);
    for link in state.links.all().iter().filter(leads_on) {
        let passable = passable(link);
        // Nearly nothing is passed on: what costs is asked of the rest alone.
        if passable.is_empty() {
            continue;
        }
        for known in link.tools(now) {
            let (agent, tool) = (&known.tool.agent, &known.tool.tool);
            let onward = behind(&known, &passable);
            if onward.is_empty() {
                continue;
            }
            let Ok(required) = under_peer(&link.org, tool.required()) else {
                continue;
            };
            let pattern = Pattern::from(required.clone());
            let Some((grants, checks)) = permitting(&pattern, tool, agent) else {
                continue;
            };
            let place = (agent.clone(), tool.name.clone());
            let mut tool = known.tool.clone();
            tool.tool.capability = Some(required);
            tool.checks.extend(checks);
            tool.via = vec![link.org.clone()];
            tools.entry(place).or_insert(AdvertisedTool {
                tool,
                grants,
                onward,
            });
        }
    }
    tools
}

/// Which of our own grants at the owner of a link may be passed on.
fn passable(link: &Link) -> HashSet<Digest> {
    let held = link.held();
    let passable = held.iter().filter(|one| one.depth > 0);
    passable.map(|one| one.id).collect()
}

/// By which of these a tool is called that is passed on; none where none permits it, or where it lies behind
/// its link's owner in turn.
fn behind(known: &AdvertisedTool, passable: &HashSet<Digest>) -> Vec<Digest> {
    let is_own = known.tool.via.is_empty();
    let grants = known
        .grants
        .iter()
        .filter(|id| is_own && passable.contains(*id));
    grants.copied().collect()
}

/// What of these a peer takes: none that is too large, and of all together no more than it has room for.
/// Whose tools are many leave as much for the others as they take themselves.
fn fitting(tools: Tools) -> BTreeMap<Place, (AdvertisedTool, Written)> {
    let mut fitting = BTreeMap::new();
    let mut own: HashMap<AgentId, (usize, usize)> = HashMap::new();
    let (all, mut bytes) = (tools.len(), 0);
    for (place, tool) in tools {
        let written = Written::of(&tool);
        let (own_tools, own_bytes) = own.entry(place.0.clone()).or_default();
        let fits = written.bytes <= ADVERTISED_TOOL_BYTES_MAX
            && leaves_enough(*own_bytes, written.bytes, bytes, ADVERTISED_BYTES_MAX)
            && leaves_enough(*own_tools, 1, fitting.len(), ADVERTISED_TOOLS_MAX);
        if fits {
            *own_tools += 1;
            *own_bytes += written.bytes;
            bytes += written.bytes;
            fitting.insert(place, (tool, written));
        }
    }
    if fitting.len() < all {
        tracing::warn!(
            left_out = all - fitting.len(),
            "tools that are too large, or too many, are not advertised"
        );
    }
    fitting
}

/// What one peer has been told on one link.
#[derive(Debug, Default)]
pub(super) struct Told {
    seq: u64,
    tools: HashMap<Place, Written>,
    /// When the peer was last told until when all of it holds.
    at: Timestamp,
}

impl Told {
    /// The adverts that bring the peer from what it knows to `tools`, as far as they fit; none where it knows
    /// that, and for long enough. This depends on the time and not on who asks: a broker on which something
    /// changes more often than that must tell it anew all the same. Between any two of them the peer has to
    /// hold no more than before the first or after the last.
    pub(super) fn next(&mut self, tools: Tools, now: Timestamp) -> Vec<Advert> {
        let expires = now.later(VALIDITY);
        let tools = fitting(tools);
        let is_gone = |place: &Place| !tools.contains_key(place);
        let gone: Vec<Place> = self
            .tools
            .keys()
            .filter(|place| is_gone(place))
            .cloned()
            .collect();
        for place in &gone {
            self.tools.remove(place);
        }
        let mut changed = Vec::new();
        for (place, (tool, written)) in tools {
            let before = self.tools.insert(place, written);
            if before != Some(written) {
                let before = before.map_or(0, |before| before.bytes);
                changed.push((written.bytes as i64 - before as i64, written.bytes, tool));
            }
        }
        // What shrinks makes room for what grows.
        changed.sort_by_key(|(growth, ..)| *growth);
        let advert = |gone| Advert {
            seq: 0,
            tools: Vec::new(),
            gone,
            expires,
        };
        let mut adverts = vec![advert(gone)];
        let mut bytes = 0;
        for (_, more, tool) in changed {
            bytes += more;
            if bytes > ADVERT_BYTES {
                bytes = more;
                adverts.push(advert(Vec::new()));
            }
            if let Some(advert) = adverts.last_mut() {
                advert.tools.push(tool);
            }
        }
        let says_nothing = |advert: &Advert| advert.tools.is_empty() && advert.gone.is_empty();
        let is_due = self.seq == 0 || self.at.later(REFRESH) <= now;
        if !is_due && adverts.iter().all(says_nothing) {
            return Vec::new();
        }
        self.at = now;
        for advert in &mut adverts {
            self.seq += 1;
            advert.seq = self.seq;
        }
        adverts
    }
}

#[cfg(test)]
mod tests {
    use proto_spec::SigningKey;

    use super::*;

    const EXPIRES: Timestamp = Timestamp::from_ms(1_000_000);

    fn tools(all: &[(&str, &str, usize)]) -> Tools {
        let tool = |(agent, name, bytes): &(&str, &str, usize)| {
            let agent: AgentId = agent.parse().unwrap();
            let text = serde_json::json!({"name": name, "description": "x".repeat(*bytes)});
            let tool: Tool = serde_json::from_value(text).unwrap();
            let place = (agent.clone(), tool.name.clone());
            let tool = DiscoveredTool {
                agent,
                key: SigningKey::from_seed(&[1; 32]).public(),
                tool,
                checks: Vec::new(),
                via: Vec::new(),
                unsigned: None,
            };
            let (grants, onward) = (Vec::new(), Vec::new());
            (
                place,
                AdvertisedTool {
                    tool,
                    grants,
                    onward,
                },
            )
        };
        all.iter().map(tool).collect()
    }

    #[test]
    fn a_tool_that_a_peer_would_not_take_is_left_out() {
        let large = ADVERTISED_TOOL_BYTES_MAX;
        let mut told = Told::default();
        let adverts = told.next(
            tools(&[("a@acme", "t.a", 100), ("a@acme", "t.b", large)]),
            EXPIRES,
        );
        assert_eq!(adverts.len(), 1);
        assert_eq!(adverts[0].tools.len(), 1);
        // One that grows beyond it is gone.
        let adverts = told.next(tools(&[("a@acme", "t.a", large)]), EXPIRES);
        assert_eq!((adverts[0].tools.len(), adverts[0].gone.len()), (0, 1));
    }

    #[test]
    fn whose_tools_are_many_leave_room_for_others_and_adverts_hold_so_many_bytes() {
        let names: Vec<String> = (0..600).map(|n| format!("t.n{n}")).collect();
        let mut all: Vec<(&str, &str, usize)> = names
            .iter()
            .map(|name| ("greedy@acme", name.as_str(), 60_000))
            .collect();
        all.push(("late@acme", "t.a", 60_000));
        let adverts = Told::default().next(tools(&all), EXPIRES);
        let told = || adverts.iter().flat_map(|advert| &advert.tools);
        let late = told()
            .filter(|one| one.tool.agent.to_string() == "late@acme")
            .count();
        assert_eq!(late, 1);
        assert!((100..200).contains(&told().count()), "{}", told().count());
        for advert in &adverts {
            assert!(serde_json::to_vec(advert).unwrap().len() < ADVERT_BYTES + 1_024);
        }
    }

    #[test]
    fn what_shrinks_is_told_before_what_grows() {
        let mut told = Told::default();
        told.next(
            tools(&[("a@acme", "t.a", 10), ("a@acme", "t.b", 5_000)]),
            EXPIRES,
        );
        let adverts = told.next(
            tools(&[("a@acme", "t.a", 5_000), ("a@acme", "t.b", 10)]),
            EXPIRES,
        );
        let names: Vec<_> = adverts[0]
            .tools
            .iter()
            .map(|one| one.tool.tool.name.to_string())
            .collect();
        assert_eq!(names, ["t.b", "t.a"]);
    }
}
