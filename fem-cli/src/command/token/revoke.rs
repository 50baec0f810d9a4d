//! `token revoke`: by id, or by the token itself for whoever holds it.

use std::path::PathBuf;

use proto_spec::capability::Claims;
use proto_spec::message::{self, Ack, Struck};
use proto_spec::{Digest, Kind};

use crate::args::MARK;
use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, join};
use crate::request::{self, unexpected};
use crate::token_file;

/// Revokes grants and tokens: in force for the next message, also on open connections
#[derive(Debug, clap::Args)]
#[command(
    after_help = "\
An admin revokes by id: see `fem-cli token list` and `token inspect`.
Whoever holds a token revokes it, and all that was delegated from it, with --token FILE.",
    disable_help_flag = true
)]
pub(crate) struct Revoke {
    /// Revocation ids
    #[arg(
        value_name = "ID",
        required_unless_present = "token",
        value_parser = revocation_id
    )]
    ids: Vec<Digest>,
    /// The token that shows that you hold, or held, what you revoke
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// For the record
    #[arg(long)]
    reason: Option<String>,
}

/// An id as it is typed, or as [`crate::args`] marked it.
fn revocation_id(text: &str) -> Result<Digest, String> {
    let id = text.strip_prefix(MARK).unwrap_or(text);
    id.parse()
        .map_err(|e: proto_spec::signature::BadDigest| e.to_string())
}

/// The id of the block that was added last: revoking it ends this very token. Whether the token is genuine
/// is for the broker to find out.
fn last_id(bytes: &[u8]) -> Outcome<Digest> {
    let said = Claims::read(bytes).map_err(|r| Failure::refused(r.code(), r.to_string()))?;
    let last = said.blocks().last().map(|block| block.id().0);
    last.ok_or_else(|| Failure::fault("the token has no block"))
}

pub(super) async fn run(args: Revoke, chosen: &Chosen, output: Output) -> Outcome {
    let (ids, token) = match &args.token {
        None => (args.ids, None),
        Some(file) => {
            let bytes = token_file::read(file)?;
            let ids = if args.ids.is_empty() {
                vec![last_id(&bytes)?]
            } else {
                args.ids
            };
            (ids, Some(token_file::presentable(file)?))
        }
    };
    let body = message::Revoke {
        ids,
        token,
        reason: args.reason,
    };
    match request::act(&chosen.agent()?, Kind::Revoke, &body).await? {
        Ack::Revoked(Struck { ids, .. }) if ids.is_empty() => Err(Failure::not_found(
            "nothing was revoked: all of it was revoked before",
        )),
        Ack::Revoked(Struck { ids, .. }) => {
            output.give(&serde_json::json!({"revoked": ids}), || {
                format!(
                    "Revoked {}. It holds from the next message on, also on open connections.",
                    join(&ids)
                )
            })
        }
        other => Err(unexpected(&other)),
    }
}
