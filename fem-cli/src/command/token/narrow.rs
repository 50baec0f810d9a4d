//! `token attenuate`: narrows a token, or passes it on, without asking anybody.

use std::path::PathBuf;

use agent_sdk::Key;
use proto_spec::capability::{BadTerms, Narrowing, encode_text, issue};
use proto_spec::{Pattern, PublicKey};

use super::issue::{Conditions, checks, condition};
use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::files::quoted;
use crate::output::Output;
use crate::time::{self, When};
use crate::token_file;

/// Narrows a token, or delegates it to another key; offline, needs no broker
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fem-cli token attenuate my.token --only files.read --expires 1h --out narrow.token
  fem-cli token attenuate my.token --to KEY --calls 10 --where 'path under /srv/q3' --out theirs.token
What is added can only take away. With --to, the token is the other key's from then on.")]
pub(crate) struct Attenuate {
    /// The token, unsealed, as it was handed out
    file: PathBuf,
    /// Where to write the narrowed token (0600)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Keep only what this covers; may be repeated
    #[arg(long, value_name = "PATTERN")]
    only: Vec<Pattern>,
    /// A further condition on the call's arguments; see `token issue --help`
    #[arg(long = "where", value_name = "CONDITION", value_parser = condition)]
    conditions: Vec<Conditions>,
    /// An earlier end: 2026-12-31T18:00:00Z, or from now: 1h
    #[arg(long, value_name = "TIME")]
    expires: Option<When>,
    /// Delegate: the next holder's public key, base64 or did:key
    #[arg(long, value_name = "KEY")]
    to: Option<PublicKey>,
    /// How many calls the next holder may make in all
    #[arg(long, value_name = "N", requires = "to")]
    calls: Option<u32>,
    /// The key file of the current holder, where the context does not name it
    #[arg(long, value_name = "FILE", requires = "to")]
    key: Option<PathBuf>,
}

pub(super) fn run(args: Attenuate, chosen: &Chosen, output: Output) -> Outcome {
    let token = token_file::read(&args.file)?;
    let now = time::now();
    let narrowing = Narrowing {
        only: args.only,
        expires: args.expires.map(|when| when.from(now)),
        checks: checks(args.conditions),
        calls: args.calls,
    };
    let nothing =
        narrowing.only.is_empty() && narrowing.expires.is_none() && narrowing.checks.is_empty();
    let longer = match &args.to {
        None if nothing => {
            return Err(Failure::usage("nothing would be narrowed")
                .next("give --only, --where, --expires, or --to KEY"));
        }
        None => issue::attenuate(&token, &narrowing, token_file::entropy()?),
        Some(next) => {
            let key = holder_key(args.key, chosen)?;
            issue::delegate(
                &token,
                key.signing(),
                next,
                &narrowing,
                token_file::entropy()?,
            )
        }
    };
    let longer = longer.map_err(|e: BadTerms| {
        Failure::fault(e.to_string()).next(format!("fem-cli token inspect {}", quoted(&args.file)))
    })?;
    token_file::write(&args.out, &encode_text(&longer))?;
    output.give(
        &serde_json::json!({"file": args.out, "holder": args.to}),
        || {
            let whose = match &args.to {
                Some(next) => format!("\nOnly the key {} can use it.", next.fingerprint()),
                None => String::new(),
            };
            let file = quoted(&args.out);
            format!("Wrote {file}.{whose}\nRead it: fem-cli token inspect {file}")
        },
    )
}

fn holder_key(file: Option<PathBuf>, chosen: &Chosen) -> Outcome<Key> {
    let file = match file {
        Some(file) => file,
        None => chosen.context()?.key_file.ok_or_else(|| {
            Failure::usage("delegating needs the current holder's key").next("give --key FILE")
        })?,
    };
    Ok(Key::load(file)?)
}
