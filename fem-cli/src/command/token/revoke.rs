//! `token revoke`: by id, by what was issued up to a time, or by the token itself for whoever holds it.

use std::path::PathBuf;

use proto_spec::capability::Claims;
use proto_spec::message::{self, Ack, TokenRevoke};
use proto_spec::{Digest, Kind, Pattern, Timestamp};

use crate::args;
use crate::command::agent::decide::everything;
use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::output::Output;
use crate::request::{self, unexpected};
use crate::struck;
use crate::time;
use crate::token_file;

/// Revokes grants and tokens: in force for the next message, also on open connections
#[derive(Debug, clap::Args)]
#[command(after_help = "\
An admin revokes by id: see `fem-cli token list`, `grants tree` and `token inspect`.
Whoever holds a token revokes it, and all that was delegated from it, with --token FILE.
With --under, whatever was issued up to --before permits nothing under these patterns any more, and
keeps the rest; --before alone means everything but admin acts. What is issued later is not touched.

Examples:
  fem-cli token revoke --under 'files.*' --dry-run
  fem-cli token revoke --before 2026-11-22T10:00:00Z --reason 'backup was stolen'")]
pub(crate) struct Revoke {
    /// Revocation ids
    #[arg(
        value_name = "ID",
        required_unless_present_any = ["token", "under", "before"],
        conflicts_with_all = ["under", "before"],
        value_parser = args::id
    )]
    ids: Vec<Digest>,
    /// The token that shows that you hold, or held, what you revoke
    #[arg(long, value_name = "FILE", conflicts_with_all = ["under", "before", "dry_run"])]
    token: Option<PathBuf>,
    /// Everything under this that was issued so far: files.*; may be repeated
    #[arg(long, value_name = "PATTERN")]
    under: Vec<Pattern>,
    /// Up to when: 2026-11-22T10:00:00Z, or so long ago: 2h [default: now]
    #[arg(long, value_name = "TIME", value_parser = time::past)]
    before: Option<Timestamp>,
    /// For the record
    #[arg(long)]
    reason: Option<String>,
    /// Only say what it would strike
    #[arg(long)]
    dry_run: bool,
}

/// The id of the block that was added last: revoking it ends this very token. Whether the token is genuine
/// is for the broker to find out.
fn last_id(bytes: &[u8]) -> Outcome<Digest> {
    let said = Claims::read(bytes).map_err(|r| Failure::refused(r.code(), r.to_string()))?;
    let last = said.blocks().last().map(|block| block.id().0);
    last.ok_or_else(|| Failure::fault("the token has no block"))
}

/// Everything but admin acts: an admin who takes back all that was issued can go on.
fn all_but_admin_acts() -> Outcome<Vec<Pattern>> {
    let mut all = everything()?;
    all.retain(|pattern| pattern.as_str() != "admin.*");
    Ok(all)
}

pub(super) async fn run(args: Revoke, chosen: &Chosen, output: Output) -> Outcome {
    let agent = chosen.agent()?;
    let ack = match &args.token {
        Some(file) => {
            let bytes = token_file::read(file)?;
            let ids = match args.ids.is_empty() {
                true => vec![last_id(&bytes)?],
                false => args.ids,
            };
            let body = message::Revoke {
                ids,
                token: Some(token_file::presentable(file)?),
                reason: args.reason,
            };
            request::act(&agent, Kind::Revoke, &body).await?
        }
        None => {
            let under = match args.ids.is_empty() && args.under.is_empty() {
                true => all_but_admin_acts()?,
                false => args.under,
            };
            let body = TokenRevoke {
                ids: args.ids,
                under,
                before: args.before,
                reason: args.reason,
                dry_run: args.dry_run,
            };
            request::act(&agent, Kind::AdminTokenRevoke, &body).await?
        }
    };
    match ack {
        Ack::Revoked(struck) => output.give(
            &serde_json::json!({"revoked": struck.ids, "struck": struck}),
            || {
                format!(
                    "Revoked.\n{}\nIt holds from the next message on, also on open connections.",
                    struck::in_words(&struck)
                )
            },
        ),
        Ack::WouldRevoke(struck) => output.give(
            &serde_json::json!({"would_revoke": struck.ids, "struck": struck}),
            || {
                format!(
                    "Nothing was done. It would strike:\n{}",
                    struck::in_words(&struck)
                )
            },
        ),
        other => Err(unexpected(&other)),
    }
}
