//! Where a call goes: pure, from what was authorised and who is attached.

use std::sync::Arc;

use proto_spec::admission::Permit;
use proto_spec::message::{AdvertisedTool, Tool, ToolCall, Unsigned, VIA_FEP, full_names};
use proto_spec::{AgentId, Audience, Authorized, Capability, Org, Pattern, Refusal, Timestamp};

use crate::state::State;
use crate::state::calls::Party;
use crate::state::links::{Link, SILENT};
use crate::state::registry::Agent;
use crate::state::sessions::Session;

/// Where a call goes.
#[derive(Debug)]
pub struct Route {
    /// Whose tool.
    pub provider: AgentId,
    /// By which connection.
    pub way: Way,
    /// Whether the caller wants progress.
    pub progress: bool,
}

/// By which connection a provider is reached, and its tool as it is offered there.
#[derive(Debug)]
pub enum Way {
    /// One of its sessions.
    Session(Arc<Session>, Arc<Tool>),
    /// The link of a peer.
    Link(Arc<Link>, Arc<AdvertisedTool>),
}

impl Way {
    /// Who is at the other end.
    #[must_use]
    pub fn party(&self) -> Party {
        match self {
            Self::Session(session, _) => Party::Session(Arc::clone(session)),
            Self::Link(link, _) => Party::Link(Arc::clone(link)),
        }
    }
}

/// Picks the session, or the peer's link, by which an authorised `toolCall` reaches its provider.
///
/// # Errors
///
/// [`Refusal::Denied`] where the provider does not exist or may not offer such a tool, which looks
/// like a forbidden call; [`Refusal::Unavailable`] where nobody who offers it is attached.
pub fn choose(call: &Authorized, state: &State, now: Timestamp) -> Result<Route, Refusal> {
    let body = ToolCall::of(call.envelope())?;
    let Some(Audience::Agent(to)) = call.envelope().to() else {
        return Err(Refusal::WrongAudience(call.envelope().to().cloned()));
    };
    let name: Capability = body
        .tool
        .parse()
        .map_err(|_| Refusal::InvalidBody("`tool` is not a tool's name".into()))?;
    let denied = || Refusal::Denied(format!("{name} of {to}"));
    let Permit::Held { capability, .. } = call.permit() else {
        return Err(denied());
    };
    if *to.org() != state.org {
        let mut ways = ways(to, &name, state, now).into_iter();
        let is_permitted = |(link, tool): &(Arc<Link>, Arc<AdvertisedTool>)| {
            let required = under_peer(&link.org, tool.tool.tool.required());
            required.is_ok_and(|required| Pattern::from(required) == *capability)
        };
        let (link, tool) = ways
            .find(is_permitted)
            .ok_or_else(|| Refusal::Unavailable(format!("{name} of {to}")))?;
        return Ok(Route {
            provider: to.clone(),
            way: Way::Link(link, tool),
            progress: body.progress,
        });
    }
    let provider = state.registry.agent(to.name()).ok_or_else(denied)?;
    if !may_offer(&provider, &name) {
        return Err(denied());
    }
    if provider.older.is_some() {
        takes_unsigned(call, &body, state)?;
    }
    // Only a session that asks for exactly what was permitted: instances may differ in that.
    let serves = |session: &Session, tool: &Tool| {
        provider.key == *session.key()
            && Pattern::from(tool.required().clone()) == *capability
            && may_offer(&provider, tool.required())
    };
    let (session, tool) = state
        .sessions
        .least_loaded(to.name(), &name, serves)
        .ok_or_else(|| Refusal::Unavailable(name.to_string()))?;
    Ok(Route {
        provider: to.clone(),
        way: Way::Session(session, tool),
        progress: body.progress,
    })
}

/// Whether a call may go to an older agent, whose answer nobody signs.
///
/// # Errors
///
/// [`Refusal::Unavailable`] for another organisation's agent; [`Refusal::Conflict`] where the caller did not
/// say that it takes such an answer, for nothing is done whose result would be thrown away, and where the grant
/// demands a sandbox, which such an agent cannot say that it runs in.
fn takes_unsigned(call: &Authorized, body: &ToolCall<'_>, state: &State) -> Result<(), Refusal> {
    if *call.agent().org() != state.org {
        return Err(Refusal::Unavailable(format!("{} over a link", body.tool)));
    }
    if let Permit::Held {
        token: Some(token), ..
    } = call.permit()
        && token.sandbox().is_some()
    {
        return Err(Refusal::Conflict(format!(
            "{} is served by an older agent, and the grant demands a sandbox",
            body.tool
        )));
    }
    match body.unsigned {
        Some(Unsigned::Fep) => Ok(()),
        None => Err(Refusal::Conflict(format!(
            "{} is served by an older agent, which signs no answer: who calls it has to say that this \
             is taken (`unsigned`: `{VIA_FEP}`)",
            body.tool
        ))),
    }
}

/// The full name of what an older caller calls `bare` at `provider`: as it is offered; else as it might be.
#[must_use]
pub fn full_name(provider: &AgentId, bare: &str, state: &State) -> Option<Capability> {
    let names: Vec<Capability> = full_names(provider.name(), bare).collect();
    let agent = state.registry.agent(provider.name());
    let is_offered = |name: &&Capability| state.sessions.offer(provider.name(), name).is_some();
    let may_be = |name: &&Capability| agent.as_ref().is_some_and(|agent| may_offer(agent, name));
    let found = names.iter().find(is_offered);
    found
        .or_else(|| names.iter().find(may_be))
        .or(names.first())
        .cloned()
}

/// Ways that are looked at to one tool.
const WAYS_MAX: usize = 4;

/// The links over which a peer's tool may be called, and the tool as it is advertised there, the best first:
/// those of whom something was heard lately, then the shortest, then by name. At most four.
#[must_use]
pub fn ways(
    provider: &AgentId,
    tool: &Capability,
    state: &State,
    now: Timestamp,
) -> Vec<(Arc<Link>, Arc<AdvertisedTool>)> {
    let over = |link: Arc<Link>| {
        let tool = link.tool(provider, tool, now)?;
        let leads_through = !tool.tool.via.is_empty() && state.trust.is_revoked(&link.org);
        (!leads_through).then_some((link, tool))
    };
    let mut ways: Vec<_> = state.links.all().into_iter().filter_map(over).collect();
    ways.sort_by_cached_key(|(link, tool)| rank(link, tool, now));
    ways.truncate(WAYS_MAX);
    ways
}

/// How good a way is: the least is the best.
fn rank(link: &Link, tool: &AdvertisedTool, now: Timestamp) -> (bool, usize, Org) {
    let is_silent = link.age(now) > SILENT;
    (is_silent, tool.tool.via.len(), link.org.clone())
}

/// What an agent of ours must hold to use what `required` covers at a peer: both sides say yes.
///
/// # Errors
///
/// [`Refusal::Denied`] where that would be too long for a capability.
pub fn under_peer(peer: &Org, required: &Capability) -> Result<Capability, Refusal> {
    let text = format!("peer.{peer}.{required}");
    text.parse().map_err(|_| Refusal::Denied(text))
}

/// Whether an agent's approval lets it offer a tool, or require a capability, of this name.
#[must_use]
pub fn may_offer(agent: &Agent, name: &Capability) -> bool {
    let name = Pattern::from(name.clone());
    agent.prefixes.iter().any(|prefix| prefix.covers(&name))
}
