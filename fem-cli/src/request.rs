//! Acts that the broker acknowledges, as commands send them.

use proto_spec::message::{Ack, AgentRecord, List, PendingRecord, TokenRecord};
use proto_spec::{Audience, Kind};
use serde::Serialize;

use crate::failure::{Exit, Failure, Outcome};

/// Pages that a listing follows before it gives up: a broker that never ends one is broken.
const PAGES_MAX: usize = 10_000;

/// Sends one act to the broker.
pub(crate) async fn act(
    agent: &agent_sdk::Agent,
    kind: Kind,
    body: &impl Serialize,
) -> Outcome<Ack> {
    let to = Audience::Broker(agent.id().org().clone());
    Ok(agent.request(kind, to, body).await?)
}

/// The broker said yes to something else than what was asked.
pub(crate) fn unexpected(ack: &Ack) -> Failure {
    let status = serde_json::to_value(ack).ok();
    let status = status.as_ref().and_then(|ack| ack.get("status")?.as_str());
    Failure::new(
        Exit::Fault,
        format!(
            "the broker answered {:?}",
            status.unwrap_or("something else")
        ),
    )
    .next("is the broker of the same version as this command?")
}

/// Every agent and every pending request.
pub(crate) async fn agents(
    agent: &agent_sdk::Agent,
) -> Outcome<(Vec<AgentRecord>, Vec<PendingRecord>)> {
    let (mut all, mut waiting, mut after) = (Vec::new(), Vec::new(), None);
    for _ in 0..PAGES_MAX {
        match act(agent, Kind::AdminAgentList, &List { after }).await? {
            Ack::Agents {
                agents,
                pending,
                next,
            } => {
                all.extend(agents);
                waiting.extend(pending);
                if next.is_none() {
                    return Ok((all, waiting));
                }
                after = next;
            }
            other => return Err(unexpected(&other)),
        }
    }
    Err(Failure::fault("the broker's listing does not end"))
}

/// Everything that was issued.
pub(crate) async fn tokens(agent: &agent_sdk::Agent) -> Outcome<Vec<TokenRecord>> {
    let (mut all, mut after) = (Vec::new(), None);
    for _ in 0..PAGES_MAX {
        match act(agent, Kind::AdminTokenList, &List { after }).await? {
            Ack::Tokens { tokens, next } => {
                all.extend(tokens);
                if next.is_none() {
                    return Ok(all);
                }
                after = next;
            }
            other => return Err(unexpected(&other)),
        }
    }
    Err(Failure::fault("the broker's listing does not end"))
}
