//! `token issue`: grants capabilities to an agent, on record or as a token in a file.

use std::path::{Path, PathBuf};

use proto_spec::capability::Check;
use proto_spec::message::{Ack, TokenIssue};
use proto_spec::{Kind, Name, Pattern, Timestamp};
use serde_json::json;

use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::files::quoted;
use crate::output::{Output, join};
use crate::request::{self, unexpected};
use crate::time::{self, When};
use crate::token_file;

/// Grants capabilities to an agent: on record at the broker, or as a token with --out
#[derive(Debug, clap::Args)]
#[command(after_help = "\
--where reads: ARGUMENT under /DIRECTORY, ARGUMENT == VALUE (also != < <= > >=),
ARGUMENT starts with TEXT, ends with TEXT, contains TEXT, ARGUMENT in A, B, C.
Each must hold at every call; an argument that is missing refuses the call.

Examples:
  fem-cli token issue researcher --capability files.read --where 'path under /srv/reports' --expires 7d
  fem-cli token issue researcher --capability 'files.*' --calls 100 --out researcher.token")]
pub(crate) struct Issue {
    /// To whom: an agent's name
    name: Name,
    /// What it may do: files.read, files.*; may be repeated
    #[arg(long = "capability", value_name = "PATTERN", required = true)]
    capabilities: Vec<Pattern>,
    /// A condition on the call's arguments; may be repeated
    #[arg(long = "where", value_name = "CONDITION", value_parser = condition)]
    conditions: Vec<Conditions>,
    /// Until when: 2026-12-31T18:00:00Z, or from now: 7d [default: the broker's]
    #[arg(long, value_name = "TIME")]
    expires: Option<When>,
    /// From when: 2026-12-01T08:00:00Z, or from now: 2h [default: at once]
    #[arg(long, value_name = "TIME")]
    not_before: Option<When>,
    /// How many calls it permits, in all; the broker counts them [default: no bound]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    calls: Option<u32>,
    /// In which sandbox the tool has to run
    #[arg(long, value_name = "KIND")]
    sandbox: Option<String>,
    /// Hand the token out as a file (0600) for its holder, instead of keeping the grant on record
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The checks that one `--where` stands for.
#[derive(Debug, Clone)]
pub(crate) struct Conditions(Vec<Check>);

/// Reads one `--where`.
pub(crate) fn condition(clause: &str) -> Result<Conditions, String> {
    Check::where_clause(clause)
        .map(Conditions)
        .map_err(|e| e.to_string())
}

/// All checks, in the order in which they were given.
pub(crate) fn checks(conditions: Vec<Conditions>) -> Vec<Check> {
    conditions
        .into_iter()
        .flat_map(|conditions| conditions.0)
        .collect()
}

/// All checks, as a message has them.
pub(crate) fn written(conditions: Vec<Conditions>) -> Vec<String> {
    let checks = checks(conditions);
    checks.iter().map(ToString::to_string).collect()
}

pub(super) async fn run(args: Issue, chosen: &Chosen, output: Output) -> Outcome {
    let now = time::now();
    if let Some(out) = &args.out {
        token_file::check_is_new(out)?;
    }
    let body = TokenIssue {
        agent: args.name,
        capabilities: args.capabilities,
        expires: args.expires.map(|when| when.from(now)),
        not_before: args.not_before.map(|when| when.from(now)),
        checks: written(args.conditions),
        sandbox: args.sandbox,
        calls: args.calls,
        record: args.out.is_none(),
    };
    let (admin, out) = (chosen.agent()?, args.out.as_deref());
    let ack = request::grant(&admin, output, Kind::AdminTokenIssue, &body, out).await?;
    given(ack, &body, out, output)
}

/// Says what was issued, by one admin or with a second, and writes what was handed out.
pub(crate) fn given(ack: Ack, body: &TokenIssue, out: Option<&Path>, output: Output) -> Outcome {
    let Ack::Issued { id, token, expires } = ack else {
        return Err(unexpected(&ack));
    };
    let value = json!({"id": id, "expires": time::show(expires), "file": out});
    let (name, what) = (&body.agent, terms(body, expires));
    let Some(out) = out else {
        return output.give(&value, || {
            format!("{name} may do {what}.\nid  {id}\nTake it back: fem-cli token revoke {id}")
        });
    };
    let token = token
        .ok_or_else(|| Failure::fault("the broker issued the token but did not hand it out"))?;
    token_file::write(out, &token)?;
    output.give(&value, || {
        format!(
            "Wrote {file}: a token for {what}.\nid  {id}\n\
             Give the file to {name} over a channel that you trust; it works with {name}'s key only.\n\
             Use it: fem-cli call AGENT TOOL --token {file}\n\
             Take it back: fem-cli token revoke {id}",
            file = quoted(out),
        )
    })
}

/// What, how often, from when and until when.
fn terms(body: &TokenIssue, expires: Timestamp) -> String {
    let now = time::now();
    let calls = body
        .calls
        .map_or(String::new(), |n| format!(", {n} calls at most"));
    let from = body.not_before.map_or(String::new(), |at| {
        format!(", from {}", time::show_from(at, now))
    });
    format!(
        "{}{calls}{from}, until {}",
        join(&body.capabilities),
        time::show_from(expires, now)
    )
}
