//! Who offers what: pure; answers discovery with exactly what the asker could call.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use proto_spec::admission::{Authority as _, borne, permits};
use proto_spec::capability::{Arguments, Pattern, Proof, Question, Token};
use proto_spec::message::{
    AdvertisedTool, DiscoverTools, DiscoveredTool, Tool, ToolsDiscovered, Unsigned,
};
use proto_spec::{AgentId, Authorized, Capability, Org, PublicKey, Refusal, Timestamp};

use crate::pipeline::Standing;
use crate::routing::{may_offer, under_peer, ways};
use crate::state::State;
use crate::state::links::{Link, Written};

/// Tools on one page unless fewer are asked for, and at most.
const PAGE: usize = 1_000;
/// Bytes of tools on one page, of which there is always one.
const PAGE_BYTES: usize = 1 << 20;
/// Questions to the Datalog engine after which a page ends: some 100 µs each.
const PAGE_ASKED: usize = 256;

/// Answers an authorised `discoverTools`. The rule that decides is the one that decides calls.
///
/// # Errors
///
/// [`Refusal::InvalidBody`] and, where a token is presented, all `Token…` refusals.
pub fn discover(
    asker: &Authorized,
    standing: &Standing<'_>,
    envelope_bytes_max: usize,
    now: Timestamp,
) -> Result<ToolsDiscovered, Refusal> {
    let query = DiscoverTools::of(asker.envelope())?;
    if asker.envelope().proof() == Proof::Bearer && standing.bearer().is_none() {
        return Err(Refusal::NotHolder("it was shown no bearer token"));
    }
    let held = match asker.envelope().token() {
        Some(text) => {
            let token = standing.open(text)?;
            token.presented_by(asker.key())?;
            standing.alive(&token)?;
            vec![token].into()
        }
        None => standing.granted(asker.agent()),
    };
    let after = query.after.as_deref().unwrap_or_default();
    let limit = query.limit.map_or(PAGE, usize::from).clamp(1, PAGE);
    let bytes_max = PAGE_BYTES.min(envelope_bytes_max);
    let mut page = Page::default();
    let own = offers(&query, after, standing.state());
    let own = own
        .into_iter()
        .map(|(position, offer)| (position, Place::Here(Box::new(offer))));
    let mut all = beyond(&query, after, standing.state(), now);
    all.extend(own);
    for (position, place) in all {
        if page.asked >= PAGE_ASKED {
            return Ok(page.followed());
        }
        let ways = place.ways(standing.state(), now);
        let permitted = ways.into_iter().find_map(|offer| {
            let required = Pattern::from(offer.required.clone());
            let question = Question {
                tool: Some(offer.tool.name.as_str()),
                provider: Some(&offer.provider),
                arguments: Arguments::Unknown,
                proof: asker.envelope().proof(),
                ..Question::plain(&required, asker.agent(), now)
            };
            if let Some(bearer) = standing.bearer() {
                page.asked += usize::from(!bearer.is_standard());
                borne(standing, bearer, &question).ok()?;
            }
            let may = |token: &&Arc<Token>| {
                page.asked += usize::from(!token.is_standard());
                !standing.barred(token, &required) && permits(standing, token, &question).is_ok()
            };
            let token = held.iter().find(may)?;
            Some((offer, token))
        });
        if let Some((offer, token)) = permitted {
            let mut checks = offer.tool.checks().to_vec();
            checks.extend(argument_checks(token));
            let tool = DiscoveredTool {
                tool: Tool::clone(&offer.tool),
                agent: offer.provider,
                key: offer.key,
                checks,
                via: offer.via,
                unsigned: offer.unsigned,
            };
            let bytes = page.bytes.saturating_add(Written::size(&tool));
            let is_full = page.tools.len() >= limit || bytes > bytes_max;
            if is_full && !page.tools.is_empty() {
                return Ok(page.followed());
            }
            page.bytes = bytes;
            page.tools.push(tool);
        }
        page.last = position;
    }
    Ok(ToolsDiscovered {
        tools: page.tools,
        next: None,
    })
}

/// A tool that somebody offers.
pub(crate) struct Offer {
    pub(crate) provider: AgentId,
    pub(crate) key: PublicKey,
    pub(crate) tool: Offered,
    /// What calling it from here requires.
    pub(crate) required: Capability,
    via: Vec<Org>,
    /// What a caller has to take, where its provider is an older agent.
    pub(crate) unsigned: Option<Unsigned>,
}

/// Where a tool is known from. It is copied only for whom it is shown.
pub(crate) enum Offered {
    /// One of our sessions offers it.
    Here(Arc<Tool>),
    /// A peer advertises it.
    Beyond(Arc<AdvertisedTool>),
}

impl Offered {
    /// What its owner says about arguments.
    fn checks(&self) -> &[String] {
        match self {
            Self::Here(_) => &[],
            Self::Beyond(known) => &known.tool.checks,
        }
    }
}

impl Deref for Offered {
    type Target = Tool;
    fn deref(&self) -> &Tool {
        match self {
            Self::Here(tool) => tool,
            Self::Beyond(known) => &known.tool.tool,
        }
    }
}

/// What is offered and asked about, each tool of each provider once, in order, from after `after`.
pub(crate) fn offers(query: &DiscoverTools, after: &str, state: &State) -> BTreeMap<String, Offer> {
    let mut found = BTreeMap::new();
    for session in state.sessions.all() {
        let provider = session.agent();
        if query.agent.as_ref().is_some_and(|only| only != provider) {
            continue;
        }
        let Some(agent) = state.registry.agent(provider.name()) else {
            continue;
        };
        for tool in session.offers() {
            let name = Pattern::from(tool.name.clone());
            let is_asked = query.tools.as_ref().is_none_or(|only| only.covers(&name));
            // The approval may have been narrowed since it was offered: a call would be refused.
            let is_allowed = may_offer(&agent, &tool.name) && may_offer(&agent, tool.required());
            let position = format!("{} {provider}", tool.name);
            if is_asked && is_allowed && *position > *after {
                let offer = Offer {
                    provider: provider.clone(),
                    key: *session.key(),
                    required: tool.required().clone(),
                    tool: Offered::Here(tool),
                    via: Vec::new(),
                    unsigned: agent.older.as_ref().map(|_| Unsigned::Fep),
                };
                found.insert(position, offer);
            }
        }
    }
    found
}

/// Where a tool is.
enum Place {
    Here(Box<Offer>),
    /// Somewhere behind peers.
    Beyond(AgentId, Capability),
}

impl Place {
    /// The tool by every way that leads there, the best first.
    fn ways(self, state: &State, now: Timestamp) -> Vec<Offer> {
        match self {
            Self::Here(offer) => vec![*offer],
            Self::Beyond(agent, tool) => {
                let ways = ways(&agent, &tool, state, now);
                let offers = ways.iter().filter_map(|(link, tool)| by_way(link, tool));
                offers.collect()
            }
        }
    }
}

/// What peers advertise and is asked about. That their side permits it is in the advert; whether ours does is
/// asked as for any tool.
fn beyond(
    query: &DiscoverTools,
    after: &str,
    state: &State,
    now: Timestamp,
) -> BTreeMap<String, Place> {
    let mut found = BTreeMap::new();
    for link in state.links.all() {
        for advertised in link.tools(now) {
            let DiscoveredTool { agent, tool, .. } = &advertised.tool;
            let name = Pattern::from(tool.name.clone());
            let is_asked = query.agent.as_ref().is_none_or(|only| only == agent)
                && query.tools.as_ref().is_none_or(|only| only.covers(&name));
            let position = format!("{} {agent}", tool.name);
            if is_asked && *position > *after {
                found.insert(position, Place::Beyond(agent.clone(), tool.name.clone()));
            }
        }
    }
    found
}

/// What a peer advertises, as it is offered here.
fn by_way(link: &Link, advertised: &Arc<AdvertisedTool>) -> Option<Offer> {
    let DiscoveredTool {
        agent,
        key,
        tool,
        via: behind,
        ..
    } = &advertised.tool;
    let via = std::iter::once(&link.org).chain(behind);
    Some(Offer {
        provider: agent.clone(),
        key: *key,
        required: under_peer(&link.org, tool.required()).ok()?,
        tool: Offered::Beyond(Arc::clone(advertised)),
        via: via.cloned().collect(),
        unsigned: None,
    })
}

/// One page as it fills.
#[derive(Default)]
struct Page {
    tools: Vec<DiscoveredTool>,
    bytes: usize,
    /// How often the engine was asked.
    asked: usize,
    /// Up to where it was looked.
    last: String,
}

impl Page {
    fn followed(self) -> ToolsDiscovered {
        ToolsDiscovered {
            tools: self.tools,
            next: Some(self.last),
        }
    }
}

/// What a call will have to satisfy that discovery could not ask.
pub(crate) fn argument_checks(token: &Token) -> Vec<String> {
    token
        .checks()
        .filter(|check| check.names_arguments())
        .map(ToString::to_string)
        .collect()
}
