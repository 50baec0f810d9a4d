//! What a peer is told about our tools: pure. The rule that decides is the one that decides calls.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use proto_spec::capability::{Arguments, Pattern, Proof, Question, Token};
use proto_spec::limits::{CLOCK_SKEW_MAX, RELAY_TOKENS_MAX};
use proto_spec::message::{Advert, AdvertisedTool, DiscoverTools, DiscoveredTool, Tool};
use proto_spec::{AgentId, Capability, Digest, Timestamp};

use super::telling::REFRESH;
use crate::directory::{argument_checks, offers, weight};
use crate::routing::under_peer;
use crate::state::State;
use crate::state::links::Link;
use crate::state::peers::Peer;
use crate::state::registry::grant_id;

/// How long an advert holds by our clock: until it was told anew twice, by whatever clock its reader has.
const VALIDITY: Duration = Duration::from_secs(4 * REFRESH.as_secs() + CLOCK_SKEW_MAX.as_secs());
/// Bytes of tools in one advert, about.
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
            trust: state
                .trust
                .score(&peer.org, required, now)
                .filter(|_| asks_trust),
            proof: Proof::Key,
            arguments: Arguments::Unknown,
        };
        let permits = |token: &&Arc<Token>| {
            !state.revocations.is_barred(token.issued(), required)
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
        let required = Pattern::from(offer.required);
        let Some((grants, checks)) = permitting(&required, &offer.tool, &offer.provider) else {
            continue;
        };
        let place = (offer.provider.clone(), offer.tool.name.clone());
        let tool = DiscoveredTool {
            agent: offer.provider,
            key: offer.key,
            tool: (*offer.tool).clone(),
            checks,
            via: Vec::new(),
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
    for link in state.links.all() {
        for known in link.tools(now) {
            let (agent, tool) = (&known.tool.agent, &known.tool.tool);
            let onward = behind(&link, &known, peer);
            let Ok(required) = under_peer(&link.org, tool.required()) else {
                continue;
            };
            if onward.is_empty() {
                continue;
            }
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

/// Which of our own grants at the owner of a tool may be passed on to `peer`; none where none may, or
/// where the tool lies behind the owner of the link itself, or is the peer's own.
fn behind(link: &Link, known: &AdvertisedTool, peer: &Peer) -> Vec<Digest> {
    let is_own = known.tool.via.is_empty();
    if !is_own || link.org == peer.org {
        return Vec::new();
    }
    let held = link.held();
    let goes_on = |id: &&Digest| held.iter().any(|one| one.id == **id && one.depth > 0);
    known.grants.iter().filter(goes_on).copied().collect()
}

/// What one peer has been told on one link.
#[derive(Debug, Default)]
pub(super) struct Told {
    seq: u64,
    tools: HashMap<Place, Digest>,
    /// When the peer was last told until when all of it holds.
    at: Timestamp,
}

impl Told {
    /// The adverts that bring the peer from what it knows to `tools`; none where it knows that, and for long
    /// enough. This depends on the time and not on who asks: a broker on which something changes more often
    /// than that must tell it anew all the same.
    pub(super) fn next(&mut self, tools: Tools, now: Timestamp) -> Vec<Advert> {
        let expires = now.later(VALIDITY);
        let digest =
            |tool: &AdvertisedTool| Digest::of(&serde_json::to_vec(tool).unwrap_or_default());
        let gone = self
            .tools
            .keys()
            .filter(|place| !tools.contains_key(*place));
        let gone: Vec<Place> = gone.cloned().collect();
        for place in &gone {
            self.tools.remove(place);
        }
        let mut adverts = vec![Advert {
            seq: 0,
            tools: Vec::new(),
            gone,
            expires,
        }];
        let mut bytes = 0;
        for (place, tool) in tools {
            let digest = digest(&tool);
            if self.tools.insert(place, digest) == Some(digest) {
                continue;
            }
            bytes += weight(&tool.tool.tool);
            if bytes > ADVERT_BYTES {
                bytes = 0;
                adverts.push(Advert {
                    seq: 0,
                    tools: Vec::new(),
                    gone: Vec::new(),
                    expires,
                });
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
