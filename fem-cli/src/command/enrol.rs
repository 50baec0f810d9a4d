//! `enrol`: lets agents register by themselves, within bounds.

use std::path::{Path, PathBuf};

use proto_spec::identity::NamePattern;
use proto_spec::message::{Ack, EnrolIssue};
use proto_spec::{Kind, Pattern};

use crate::connect::Chosen;
use crate::failure::Outcome;
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
    /// What they may do: each gets what it asks for within these; may be repeated. An agent that only serves
    /// asks for nothing, whatever stands here
    #[arg(long, value_name = "PATTERN", required = true)]
    ceiling: Vec<Pattern>,
    /// Under which names they may ask to offer tools; may be repeated [default: their own]
    #[arg(long = "prefix", value_name = "PATTERN")]
    prefixes: Vec<Pattern>,
    /// How many agents may register with it [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
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
    token_file::check_is_new(&args.out)?;
    let body = EnrolIssue {
        name: args.names,
        ceiling: args.ceiling,
        prefixes: args.prefixes,
        uses: args.uses,
        expires: args.expires.map(|when| when.from(time::now())),
    };
    let (admin, kind) = (chosen.agent()?, Kind::AdminEnrolIssue);
    let ack = request::grant(&admin, output, kind, &body, Some(&args.out)).await?;
    given(ack, &body, &args.out, output)
}

/// Writes what was issued, by one admin or with a second, and says how it is used.
pub(crate) fn given(ack: Ack, body: &EnrolIssue, out: &Path, output: Output) -> Outcome {
    let Ack::Issued {
        id,
        token: Some(token),
        expires,
    } = ack
    else {
        return Err(unexpected(&ack));
    };
    token_file::write(out, &token)?;
    let value = serde_json::json!({"id": id, "expires": time::show(expires), "file": out});
    output.give(&value, || {
        let file = quoted(out);
        let uses = match body.uses.unwrap_or(1) {
            1 => "once".into(),
            n => format!("{n} times"),
        };
        format!(
            "Wrote {file}: lets {} register, {uses}, until {}.\nid  {id}\n\
             Use it: fem-cli agent register NAME --enrol {file}\n\
             Take it back: fem-cli token revoke {id}",
            body.name,
            time::show_from(expires, time::now()),
        )
    })
}
