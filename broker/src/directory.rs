//! Who offers what: pure; answers discovery with exactly what the asker could call.

use std::collections::BTreeMap;

use proto_spec::admission::Authority as _;
use proto_spec::capability::{Arguments, Pattern, Question, Token};
use proto_spec::message::{DiscoverTools, DiscoveredTool, ToolsDiscovered};
use proto_spec::{Authorized, Refusal, Timestamp};

use crate::pipeline::Standing;

/// Tools on one page unless fewer are asked for, and at most.
const PAGE: usize = 1_000;

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
    let mut found = BTreeMap::new();
    for session in standing.state().sessions.all() {
        let provider = session.agent();
        if query.agent.as_ref().is_some_and(|only| only != provider) {
            continue;
        }
        for tool in session.offers() {
            let name = Pattern::from(tool.name.clone());
            if query.tools.as_ref().is_some_and(|only| !only.covers(&name)) {
                continue;
            }
            let required = Pattern::from(tool.required().clone());
            let question = Question {
                tool: Some(tool.name.as_str()),
                provider: Some(provider),
                arguments: Arguments::Unknown,
                ..Question::plain(&required, asker.agent(), now)
            };
            let Some(token) = held.iter().find(|token| token.permits(&question).is_ok()) else {
                continue;
            };
            let shown = DiscoveredTool {
                agent: provider.clone(),
                key: *session.key(),
                tool: (*tool).clone(),
                checks: argument_checks(token),
            };
            found.insert(format!("{} {}", tool.name, provider), shown);
        }
    }
    let limit = query.limit.map_or(PAGE, usize::from).clamp(1, PAGE);
    let after = query.after.unwrap_or_default();
    let mut rest = found
        .into_iter()
        .filter(|(position, _)| *position > after)
        .peekable();
    let mut tools = Vec::new();
    let mut last = String::new();
    for (position, tool) in rest.by_ref().take(limit) {
        last = position;
        tools.push(tool);
    }
    let next = rest.peek().is_some().then_some(last);
    Ok(ToolsDiscovered { tools, next })
}

/// What a call will have to satisfy that discovery could not ask.
fn argument_checks(token: &Token) -> Vec<String> {
    token
        .checks()
        .filter(|check| check.names_arguments())
        .map(ToString::to_string)
        .collect()
}
