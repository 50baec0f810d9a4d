//! `enrol`: lets agents register by themselves, within bounds.

use std::path::PathBuf;

use proto_spec::identity::NamePattern;
use proto_spec::message::{Ack, EnrolIssue};
use proto_spec::{Kind, Pattern};

use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::files::quoted;
use crate::output::Output;
use crate::request::{self, unexpected};
use crate::time::{self, When};
use crate::token_file;

/// Issues enrolment tokens, with which agents register without waiting for an admin
#[derive(Debug, clap::Args)]
pub(crate) struct Enrol {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    Issue(Issue),
}

/// Issues an enrolment token; whoever has the file can use it, so hand it over as a secret
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  fem-cli enrol issue 'build-*' --ceiling 'repo.*' --uses 20 --expires 1d --out build.enrol")]
struct Issue {
    /// Which names may register with it: build-7, build-*
    names: NamePattern,
    /// An agent gets what it asks for within these; may be repeated
    #[arg(long, value_name = "PATTERN")]
    ceiling: Vec<Pattern>,
    /// Under which names they may ask to offer tools; may be repeated [default: their own]
    #[arg(long = "prefix", value_name = "PATTERN")]
    prefixes: Vec<Pattern>,
    /// How many agents may register with it [default: 1]
    #[arg(long, value_name = "N")]
    uses: Option<u32>,
    /// Until when: 2026-12-31T18:00:00Z, or from now: 1d [default: the broker's]
    #[arg(long, value_name = "TIME")]
    expires: Option<When>,
    /// Where to write it (0600)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) async fn run(args: Enrol, chosen: &Chosen, output: Output) -> Outcome {
    let Act::Issue(args) = args.act;
    if args.out.exists() {
        return Err(Failure::fault(format!(
            "{} exists, and is never overwritten",
            args.out.display()
        ))
        .next("name another file with --out; nothing was issued"));
    }
    let now = time::now();
    let body = EnrolIssue {
        name: args.names.clone(),
        ceiling: args.ceiling,
        prefixes: args.prefixes,
        uses: args.uses,
        expires: args.expires.map(|when| when.from(now)),
    };
    match request::act(&chosen.agent()?, Kind::AdminEnrolIssue, &body).await? {
        Ack::Issued {
            id,
            token: Some(token),
            expires,
        } => {
            token_file::write(&args.out, &token)?;
            let value =
                serde_json::json!({"id": id, "expires": time::show(expires), "file": args.out});
            output.give(&value, || {
                let file = quoted(&args.out);
                format!(
                    "Wrote {file}: lets {} register, until {}.\nid  {id}\n\
                     Use it: fem-cli agent register NAME --enrol {file}\n\
                     Take it back: fem-cli token revoke {id}",
                    args.names,
                    time::show_from(expires, now),
                )
            })
        }
        other => Err(unexpected(&other)),
    }
}
