//! Acts that the broker acknowledges, as commands send them.

use std::path::Path;

use proto_spec::message::{
    Ack, AgentRecord, List, PendingRecord, ProposalRecord, TokenRecord, TokenTree, TreeNode,
};
use proto_spec::{Audience, Code, Digest, Kind, Name, Timestamp};
use serde::Serialize;
use serde_json::json;

use crate::failure::{Exit, Failure, Outcome};
use crate::files::quoted;
use crate::output::Output;
use crate::time;

/// Pages that a listing follows before it gives up: a broker that never ends one is broken.
const PAGES_MAX: usize = 10_000;

/// Sends one act to the broker. An admin's act is refused to everybody else, who may have chosen a context of
/// her own by mistake.
pub(crate) async fn act(
    agent: &agent_sdk::Agent,
    kind: Kind,
    body: &impl Serialize,
) -> Outcome<Ack> {
    let to = Audience::Broker(agent.id().org().clone());
    match agent.request(kind, to, body).await {
        Err(why) if kind.is_admin() && why.code() == Some(Code::Denied) => {
            let me = agent.id();
            Err(Failure::from(why).next(format!(
                "{me} may not do {kind}, or not this far: choose the context of an admin who may, as with --context ORG/admin.toml"
            )))
        }
        done => Ok(done?),
    }
}

/// Sends an act that grants. Where it takes a second admin, says what to tell that admin, and ends as
/// pending; `out` is the file that its token is meant for.
pub(crate) async fn grant(
    agent: &agent_sdk::Agent,
    output: Output,
    kind: Kind,
    body: &impl Serialize,
    out: Option<&Path>,
) -> Outcome<Ack> {
    match act(agent, kind, body).await? {
        Ack::Proposed { id, expires } => Err(proposed(output, &id, expires, out)?),
        done => Ok(done),
    }
}

fn proposed(
    output: Output,
    id: &Digest,
    expires: Timestamp,
    out: Option<&Path>,
) -> Outcome<Failure> {
    let value = json!({"status": "proposed", "id": id, "expires": time::show(expires)});
    output.give(&value, || {
        let file = out.map_or(String::new(), |out| format!(" --out {}", quoted(out)));
        let whose = match out {
            Some(_) => "\nWhoever agrees gets the token, in that file, and hands it on.",
            None => "",
        };
        format!(
            "Proposed; nothing is granted yet: this takes two admins.\n\
             Tell another admin, who has until {}:\n  \
             fem-cli proposal approve {id}{file}{whose}",
            time::show_from(expires, time::now()),
        )
    })?;
    Ok(Failure::told(Exit::Pending))
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

/// Every act that waits for a second admin.
pub(crate) async fn proposals(agent: &agent_sdk::Agent) -> Outcome<Vec<ProposalRecord>> {
    match act(agent, Kind::AdminProposalList, &json!({})).await? {
        Ack::Proposals { proposals } => Ok(proposals),
        other => Err(unexpected(&other)),
    }
}

/// All that was issued, or all that was issued to one agent, with what is known below it.
pub(crate) async fn tree(agent: &agent_sdk::Agent, of: Option<&Name>) -> Outcome<Vec<TreeNode>> {
    let (mut all, mut after) = (Vec::new(), None);
    for _ in 0..PAGES_MAX {
        let body = TokenTree {
            agent: of.cloned(),
            after,
        };
        match act(agent, Kind::AdminTokenTree, &body).await? {
            Ack::Tree { nodes, next } => {
                all.extend(nodes);
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
