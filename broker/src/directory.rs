//! Who offers what: pure; answers discovery with exactly what the asker could call.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use proto_spec::admission::Authority as _;
use proto_spec::capability::{Arguments, Pattern, Question, Token};
use proto_spec::message::{DiscoverTools, DiscoveredTool, Tool, ToolsDiscovered};
use proto_spec::{AgentId, Authorized, Capability, Org, PublicKey, Refusal, Timestamp};

use crate::pipeline::Standing;
use crate::routing::{may_offer, under_peer};
use crate::state::State;

/// Tools on one page unless fewer are asked for, and at most.
const PAGE: usize = 1_000;
/// Bytes of tools after which a page ends.
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
    now: Timestamp,
) -> Result<ToolsDiscovered, Refusal> {
    let query: DiscoverTools = asker.envelope().read_body()?;
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
    let mut page = Page::default();
    let mut all = offers(&query, after, standing.state());
    beyond(&query, after, standing.state(), now, &mut all);
    for (position, offer) in all {
        if page.asked >= PAGE_ASKED {
            return Ok(page.followed());
        }
        let required = Pattern::from(offer.required);
        let question = Question {
            tool: Some(offer.tool.name.as_str()),
            provider: Some(&offer.provider),
            arguments: Arguments::Unknown,
            trust: standing.trust(asker.agent().org(), &required),
            ..Question::plain(&required, asker.agent(), now)
        };
        let permits = |token: &&Arc<Token>| {
            page.asked += usize::from(!token.is_standard());
            !standing.barred(token, &required) && token.permits(&question).is_ok()
        };
        if let Some(token) = held.iter().find(permits) {
            if page.tools.len() >= limit || page.bytes >= PAGE_BYTES {
                return Ok(page.followed());
            }
            page.bytes += weight(&offer.tool);
            let mut checks = offer.checks;
            checks.extend(argument_checks(token));
            page.tools.push(DiscoveredTool {
                agent: offer.provider,
                key: offer.key,
                tool: (*offer.tool).clone(),
                checks,
                via: offer.via,
            });
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
    pub(crate) tool: Arc<Tool>,
    /// What calling it from here requires.
    pub(crate) required: Capability,
    /// What its owner says about arguments.
    checks: Vec<String>,
    via: Vec<Org>,
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
                    tool,
                    checks: Vec::new(),
                    via: Vec::new(),
                };
                found.insert(position, offer);
            }
        }
    }
    found
}

/// Adds what peers advertise. That their side permits it is in the advert; whether ours does is asked as for
/// any tool.
fn beyond(
    query: &DiscoverTools,
    after: &str,
    state: &State,
    now: Timestamp,
    found: &mut BTreeMap<String, Offer>,
) {
    for link in state.links.all() {
        for advertised in link.tools(now) {
            let DiscoveredTool {
                agent,
                key,
                tool,
                checks,
                via: behind,
            } = &advertised.tool;
            let name = Pattern::from(tool.name.clone());
            let is_asked = query.agent.as_ref().is_none_or(|only| only == agent)
                && query.tools.as_ref().is_none_or(|only| only.covers(&name));
            let position = format!("{} {agent}", tool.name);
            let Ok(required) = under_peer(&link.org, tool.required()) else {
                continue;
            };
            if is_asked && *position > *after {
                let mut via = vec![link.org.clone()];
                via.extend(behind.iter().cloned());
                let offer = Offer {
                    provider: agent.clone(),
                    key: *key,
                    tool: Arc::new(tool.clone()),
                    required,
                    checks: checks.clone(),
                    via,
                };
                // By its owner's own link, where there are two ways.
                match found.entry(position) {
                    Entry::Vacant(slot) => drop(slot.insert(offer)),
                    Entry::Occupied(mut slot) if offer.via.len() < slot.get().via.len() => {
                        slot.insert(offer);
                    }
                    Entry::Occupied(_) => {}
                }
            }
        }
    }
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

/// About how many bytes a tool takes in an answer.
pub(crate) fn weight(tool: &Tool) -> usize {
    let raw = [&tool.input_schema, &tool.output_schema, &tool.annotations];
    let raw: usize = raw.into_iter().flatten().map(|raw| raw.get().len()).sum();
    raw + tool.description.as_ref().map_or(0, String::len) + 256
}

/// What a call will have to satisfy that discovery could not ask.
pub(crate) fn argument_checks(token: &Token) -> Vec<String> {
    token
        .checks()
        .filter(|check| check.names_arguments())
        .map(ToString::to_string)
        .collect()
}
