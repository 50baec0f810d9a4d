//! `peer grant`: lets the agents of another organisation call tools here.

use proto_spec::message::{Ack, PeerGrant};
use proto_spec::{Kind, NamePattern, Org, Pattern};
use serde_json::json;

use crate::command::token::issue::{Conditions, condition, written};
use crate::connect::Chosen;
use crate::failure::Outcome;
use crate::output::{Output, join};
use crate::request::{self, unexpected};
use crate::time::{self, When};
use crate::words;

/// Lets a peer's agents call tools here; which of its agents, its own admin decides
#[derive(Debug, clap::Args)]
#[command(after_help = "\
They see exactly the tools that they may call. Take a grant back: fem-cli token revoke ID
--where reads as that of `fem-cli token issue`.

Examples:
  fem-cli peer grant globex 'files.*' --agents files --expires 30d
  fem-cli peer grant globex files.read --where 'path under /srv/shared'")]
pub(crate) struct Grant {
    /// To which peer
    org: Org,
    /// What its agents may do: files.read, 'files.*'
    #[arg(value_name = "PATTERN", required = true)]
    capabilities: Vec<Pattern>,
    /// Only with these agents' tools: files, 'build-*'; may be repeated [default: everybody's]
    #[arg(long, value_name = "NAMES")]
    agents: Vec<NamePattern>,
    /// A condition on the call's arguments; may be repeated
    #[arg(long = "where", value_name = "CONDITION", value_parser = condition)]
    conditions: Vec<Conditions>,
    /// Through how many further organisations it may be passed on
    #[arg(long, value_name = "N", default_value_t = 0)]
    depth: u32,
    /// Until when: 2026-12-31T18:00:00Z, or from now: 7d [default: the longest that the broker grants]
    #[arg(long, value_name = "TIME")]
    expires: Option<When>,
}

pub(super) async fn run(args: Grant, chosen: &Chosen, output: Output) -> Outcome {
    let body = PeerGrant {
        org: args.org,
        capabilities: args.capabilities,
        agents: args.agents,
        checks: written(args.conditions),
        depth: args.depth,
        expires: args.expires.map(|when| when.from(time::now())),
    };
    let admin = chosen.agent()?;
    let ack = request::grant(&admin, output, Kind::AdminPeerGrant, &body, None).await?;
    given(&ack, &body, admin.id().org(), output)
}

/// Says what was granted, by one admin or with a second, and what the other side does next.
pub(crate) fn given(ack: &Ack, body: &PeerGrant, own: &Org, output: Output) -> Outcome {
    let Ack::Issued { id, expires, .. } = ack else {
        return Err(unexpected(ack));
    };
    output.give(&json!({"id": id, "expires": time::show(*expires)}), || {
        let until = time::show_from(*expires, time::now());
        let theirs = body.capabilities.iter();
        let theirs: Vec<_> = theirs
            .map(|one| format!("--capability 'peer.{own}.{one}'"))
            .collect();
        format!(
            "{}, until {until}.\nid  {id}\n\
             There, an admin lets an agent use it: fem-cli token issue NAME {}\n\
             Take it back: fem-cli token revoke {id}",
            in_words(body),
            join(&theirs),
        )
    })
}

/// To whom, what and on which conditions; without the end.
pub(crate) fn in_words(body: &PeerGrant) -> String {
    let mut parts = vec![format!(
        "{}'s agents may do {}",
        body.org,
        join(&body.capabilities)
    )];
    if !body.agents.is_empty() {
        parts.push(format!("with tools of {}", join(&body.agents)));
    }
    let conditions = words::conditions_of_text(&body.checks);
    parts.extend(conditions.iter().map(|one| format!("only if {one}")));
    if body.depth > 0 {
        let depth = body.depth;
        parts.push(format!(
            "passed on through {depth} further organisations at most"
        ));
    }
    parts.join("; ")
}
