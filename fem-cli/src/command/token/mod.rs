//! `token`: issues grants, narrows them, passes them on, reads them and revokes them.

mod inspect;
pub(super) mod issue;
mod narrow;
mod revoke;
mod verify;

use proto_spec::Timestamp;
use proto_spec::message::TokenRecord;
use serde_json::json;

use crate::command::wait_for;
use crate::connect::Chosen;
use crate::failure::Outcome;
use crate::output::{self, Output, Table, join};
use crate::request;
use crate::time;
use crate::words;

/// Issues, reads, narrows, delegates and revokes capabilities
#[derive(Debug, clap::Args)]
pub(crate) struct Token {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    Issue(issue::Issue),
    Inspect(inspect::Inspect),
    Attenuate(narrow::Attenuate),
    Delegate(narrow::Delegate),
    Verify(verify::Verify),
    List(List),
    Revoke(revoke::Revoke),
}

/// Lists what was issued, to whom, and whether it is revoked
#[derive(Debug, clap::Args)]
struct List {
    /// Only what was issued to this agent, or for these names
    #[arg(long, value_name = "NAME")]
    to: Option<String>,
    /// Only the ids of what is in force, one a line: for `token revoke`
    #[arg(long, conflicts_with = "json")]
    ids: bool,
}

pub(crate) fn run(args: Token, chosen: &Chosen, output: Output) -> Outcome {
    match args.act {
        Act::Issue(args) => wait_for(issue::run(args, chosen, output)),
        Act::Inspect(args) => inspect::run(&args, chosen, output),
        Act::Attenuate(args) => narrow::attenuate(args, output),
        Act::Delegate(args) => narrow::delegate(args, chosen, output),
        Act::Verify(args) => verify::run(&args, chosen, output),
        Act::List(args) => wait_for(list(args, chosen, output)),
        Act::Revoke(args) => wait_for(revoke::run(args, chosen, output)),
    }
}

async fn list(args: List, chosen: &Chosen, output: Output) -> Outcome {
    let mut tokens = request::tokens(&chosen.agent()?).await?;
    let now = time::now();
    if let Some(to) = &args.to {
        tokens.retain(|token| token.subject == *to);
    }
    if args.ids {
        tokens.retain(|token| !token.revoked && token.expires > now);
        let ids: Vec<String> = tokens.iter().map(|token| token.id.to_string()).collect();
        return output::print(&ids.join("\n"));
    }
    output.list(&json!(tokens), || {
        let mut table = Table::new(
            &["id", "to", "may do", "only if", "until", "by", "state"],
            "Nothing is issued. Issue a grant: fem-cli token issue NAME --capability PATTERN",
        );
        for token in &tokens {
            let mut conditions = words::conditions_of_text(&token.checks);
            if let Some(at) = token.not_before {
                conditions.push(format!("from {} on", time::show(at)));
            }
            table.row([
                &token.id.to_string(),
                &token.subject,
                &join(&token.capabilities),
                &conditions.join("; "),
                &time::show(token.expires),
                &token
                    .issuer
                    .as_ref()
                    .map_or_else(String::new, ToString::to_string),
                &state(token, now),
            ]);
        }
        table
    })
}

/// What has become of it, and how much of it is left.
fn state(token: &TokenRecord, now: Timestamp) -> String {
    if token.revoked {
        return "revoked".into();
    }
    if token.expires <= now {
        return "expired".into();
    }
    let kind = match (token.kind.as_str(), token.record) {
        ("grant", true) => "on record",
        ("grant", false) => "handed out",
        (kind, _) => kind,
    };
    let uses = token.uses_left.map(|n| format!(", {n} uses left"));
    let calls = token.calls_left.map(|n| format!(", {n} calls left"));
    let left = [uses, calls].into_iter().flatten();
    std::iter::once(kind.to_owned()).chain(left).collect()
}
