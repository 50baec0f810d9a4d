//! `peer invite`: the file by which another organisation's admin takes us as a peer.

use std::path::PathBuf;

use proto_spec::message::{Ack, PeerDescriptor, PeerInvite};
use proto_spec::peering::Descriptor;
use proto_spec::{Kind, Pattern};
use serde_json::json;

use super::accept::said;
use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::files::{self, Readers, quoted};
use crate::output::{Output, note};
use crate::request::{self, unexpected};
use crate::time::{self, When};
use crate::token_file;

/// Writes the signed file with which another organisation's admin accepts this one
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Nothing in the file is secret, and whoever has it can do nothing with it but read who you are. Hand it
over in any way; tell the fingerprint over another one.

Examples:
  fem-cli peer invite > acme.peer
  fem-cli peer invite --asks 'files.read' --expires 7d --out acme.peer")]
pub(super) struct Invite {
    /// What your agents would like to do there, as a proposal: files.read; may be repeated
    #[arg(long, value_name = "PATTERN")]
    asks: Vec<Pattern>,
    /// Until when it may be accepted: 2026-12-31T18:00:00Z, or from now: 7d [default: 7d]
    #[arg(long, value_name = "TIME")]
    expires: Option<When>,
    /// Where to write it [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) async fn run(args: Invite, chosen: &Chosen, output: Output) -> Outcome {
    if let Some(out) = &args.out {
        token_file::check_is_new(out)?;
    }
    let body = PeerInvite {
        asks: args.asks,
        expires: args.expires.map(|when| when.from(time::now())),
    };
    let text = match request::act(&chosen.agent()?, Kind::AdminPeerInvite, &body).await? {
        Ack::PeerInvited { descriptor } => descriptor,
        other => return Err(unexpected(&other)),
    };
    let descriptor = Descriptor::read(&text)
        .map_err(|why| Failure::fault(format!("what the broker signed is no invitation: {why}")))?;
    let invited = descriptor.body();
    if let Some(out) = &args.out {
        files::create(out, format!("{text}\n").as_bytes(), Readers::All)?;
        let value = json!({"file": out, "peer": invited, "fingerprint": invited.key.fingerprint()});
        return output.give(&value, || {
            let file = quoted(out);
            let next = next(invited);
            format!("Wrote {file}:\n{}\n{next}", said(invited))
        });
    }
    let value = json!({"descriptor": text, "fingerprint": invited.key.fingerprint()});
    output.give(&value, || text.clone())?;
    if !output.json {
        note(&next(invited));
    }
    Ok(())
}

fn next(invited: &PeerDescriptor) -> String {
    let nowhere = match invited.endpoints.is_empty() {
        true => {
            "\nIt names no endpoint: your broker dials, theirs waits. To be dialled, name your own in \
             broker.toml,\n[federation] endpoints, and invite again."
        }
        false => "",
    };
    format!(
        "Tell the other admin your fingerprint over another channel: {}{nowhere}",
        invited.key.fingerprint()
    )
}
