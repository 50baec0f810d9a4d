//! Who offers what: pure; answers discovery with exactly what the asker could call.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto_spec::admission::Authority as _;
use proto_spec::capability::{Arguments, Pattern, Question, Token};
use proto_spec::message::{DiscoverTools, DiscoveredTool, Tool, ToolsDiscovered};
use proto_spec::{Authorized, Refusal, Timestamp};

use crate::pipeline::Standing;
use crate::routing::may_offer;
use crate::state::State;
use crate::state::sessions::Session;

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
    for (position, offer) in offers(&query, after, standing.state()) {
        if page.asked >= PAGE_ASKED {
            return Ok(page.followed());
        }
        let required = Pattern::from(offer.tool.required().clone());
        let question = Question {
            tool: Some(offer.tool.name.as_str()),
            provider: Some(offer.session.agent()),
            arguments: Arguments::Unknown,
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
            page.tools.push(DiscoveredTool {
                agent: offer.session.agent().clone(),
                key: *offer.session.key(),
                tool: (*offer.tool).clone(),
                checks: argument_checks(token),
            });
        }
        page.last = position;
    }
    Ok(ToolsDiscovered {
        tools: page.tools,
        next: None,
    })
}

struct Offer {
    session: Arc<Session>,
    tool: Arc<Tool>,
}

/// What is offered and asked about, each tool of each provider once, in order, from after `after`.
fn offers(query: &DiscoverTools, after: &str, state: &State) -> BTreeMap<String, Offer> {
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
                let session = Arc::clone(&session);
                found.insert(position, Offer { session, tool });
            }
        }
    }
    found
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
fn weight(tool: &Tool) -> usize {
    let raw = [&tool.input_schema, &tool.output_schema, &tool.annotations];
    let raw: usize = raw.into_iter().flatten().map(|raw| raw.get().len()).sum();
    raw + tool.description.as_ref().map_or(0, String::len) + 256
}

/// What a call will have to satisfy that discovery could not ask.
fn argument_checks(token: &Token) -> Vec<String> {
    token
        .checks()
        .filter(|check| check.names_arguments())
        .map(ToString::to_string)
        .collect()
}
