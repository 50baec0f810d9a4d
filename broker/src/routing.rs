//! Where a call goes: pure, from what was authorised and who is attached.

use std::sync::Arc;

use proto_spec::admission::Permit;
use proto_spec::message::{Tool, ToolCall};
use proto_spec::{Audience, Authorized, Capability, Pattern, Refusal};

use crate::state::State;
use crate::state::registry::Agent;
use crate::state::sessions::Session;

/// Where a call goes.
#[derive(Debug)]
pub struct Route {
    /// Whose tool.
    pub provider: Arc<Agent>,
    /// Which of its sessions.
    pub session: Arc<Session>,
    /// Which tool.
    pub tool: Arc<Tool>,
    /// Whether the caller wants progress.
    pub progress: bool,
}

/// Picks the session that serves an authorised `toolCall`.
///
/// # Errors
///
/// [`Refusal::Denied`] where the provider does not exist or may not offer such a tool, which looks
/// like a forbidden call; [`Refusal::Unavailable`] where nobody who offers it is attached.
pub fn choose(call: &Authorized, state: &State) -> Result<Route, Refusal> {
    let body: ToolCall<'_> = call.envelope().read_body()?;
    let Some(Audience::Agent(to)) = call.envelope().to() else {
        return Err(Refusal::WrongAudience(call.envelope().to().cloned()));
    };
    let name: Capability = body
        .tool
        .parse()
        .map_err(|_| Refusal::InvalidBody("`tool` is not a tool's name".into()))?;
    let denied = || Refusal::Denied(format!("{name} of {to}"));
    let provider = state.registry.agent(to.name()).ok_or_else(denied)?;
    let Permit::Held { capability, .. } = call.permit() else {
        return Err(denied());
    };
    if !may_offer(&provider, &name) {
        return Err(denied());
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
        provider,
        session,
        tool,
        progress: body.progress,
    })
}

/// Whether an agent's approval lets it offer a tool, or require a capability, of this name.
#[must_use]
pub fn may_offer(agent: &Agent, name: &Capability) -> bool {
    let name = Pattern::from(name.clone());
    agent.prefixes.iter().any(|prefix| prefix.covers(&name))
}
