//! `token attenuate` and `token delegate`: narrow a token, or pass it on, without asking anybody.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_sdk::{Key, Passphrase};
use proto_spec::capability::{BadTerms, Claims, Narrowing, encode_text, issue};
use proto_spec::{Pattern, PublicKey, Timestamp};
use serde_json::json;

use super::issue::{Conditions, checks, condition};
use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::files::quoted;
use crate::output::Output;
use crate::time::{self, When};
use crate::token_file;

/// Narrows a token; offline, needs no broker and no key
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  fem-cli token attenuate my.token --only files.read --expires 1h --out narrow.token
What is added can only take away. To pass a token on to another key: fem-cli token delegate.")]
pub(crate) struct Attenuate {
    /// The token, unsealed, as it was handed out; - for standard input
    file: PathBuf,
    /// Where to write the narrowed token (0600); - prints it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    less: Less,
}

/// Passes a token on to another key, narrowed; offline, signed with its holder's key
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fem-cli token delegate my.token --to did:key:z6Mk… --only files.read --for 1h --out theirs.token
  fem-cli token delegate my.token --to KEY --calls 10 --where 'path under /srv/q3' --out theirs.token
What comes out works with the other key only. With a copy of it you can take it back:
  fem-cli token revoke --token theirs.token")]
pub(crate) struct Delegate {
    /// The token, unsealed, as it was handed out; - for standard input
    file: PathBuf,
    /// The next holder's public key: did:key or base64
    #[arg(long, value_name = "KEY")]
    to: PublicKey,
    /// Where to write the delegated token (0600); - prints it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    less: Less,
    /// How many calls the next holder may make in all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    calls: Option<u32>,
    /// The key file of the current holder [default: the context's]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// What is taken away.
#[derive(Debug, clap::Args)]
struct Less {
    /// Keep only what this covers; may be repeated
    #[arg(long, value_name = "PATTERN")]
    only: Vec<Pattern>,
    /// A further condition on the call's arguments; see `token issue --help`
    #[arg(long = "where", value_name = "CONDITION", value_parser = condition)]
    conditions: Vec<Conditions>,
    /// An earlier end: 2026-12-31T18:00:00Z, or from now: 1h
    #[arg(long, value_name = "TIME")]
    expires: Option<When>,
    /// An earlier end, so long from now: 1h, 30m
    #[arg(long = "for", value_name = "LENGTH", value_parser = time::duration, conflicts_with = "expires")]
    lasting: Option<Duration>,
}

impl Less {
    fn is_nothing(&self) -> bool {
        let ends = self.expires.is_some() || self.lasting.is_some();
        self.only.is_empty() && self.conditions.is_empty() && !ends
    }

    /// What it comes to for a token that says `said`.
    fn narrowing(self, said: &Claims, now: Timestamp) -> Outcome<Narrowing> {
        let own = said.expires();
        if now >= own {
            return Err(Failure::fault(format!(
                "the token has ended: {}",
                time::show_from(own, now)
            ))
            .next("ask whoever gave it for a new one"));
        }
        let end = self.lasting.map(When::In).or(self.expires);
        let expires = end.map(|end| end.from(now));
        if let Some(at) = expires.filter(|at| at.as_secs() > own.as_secs()) {
            return Err(Failure::fault(format!(
                "{} is after the token's own end, {}: an end can only be brought forward",
                time::show(at),
                time::show_from(own, now)
            ))
            .next("give an earlier end, or none to keep the token's own"));
        }
        if let Some(at) = expires.filter(|at| *at <= now) {
            return Err(Failure::fault(format!(
                "it would have ended already: {}",
                time::show_from(at, now)
            ))
            .next("give a time that is still to come, or a length: --for 1h"));
        }
        Ok(Narrowing {
            only: self.only,
            expires,
            checks: checks(self.conditions),
            calls: None,
            agent: None,
        })
    }
}

pub(super) fn attenuate(args: Attenuate, output: Output) -> Outcome {
    if args.less.is_nothing() {
        return Err(Failure::usage("nothing would be narrowed")
            .next("give --only, --where, --expires or --for"));
    }
    let (token, said) = read(&args.file)?;
    let narrowing = args.less.narrowing(&said, time::now())?;
    let narrower = issue::attenuate(&token, &narrowing, token_file::entropy()?);
    hand_out(narrower, &args.file, &args.out, None, output)
}

pub(super) fn delegate(args: Delegate, chosen: &Chosen, output: Output) -> Outcome {
    let (token, said) = read(&args.file)?;
    let narrowing = Narrowing {
        calls: args.calls,
        ..args.less.narrowing(&said, time::now())?
    };
    let key = holder_key(args.key, chosen)?;
    let entropy = token_file::entropy()?;
    let theirs = issue::delegate(&token, key.signing(), &args.to, &narrowing, entropy);
    hand_out(theirs, &args.file, &args.out, Some(&args.to), output)
}

fn read(file: &Path) -> Outcome<(Vec<u8>, Claims)> {
    let token = token_file::read(file)?;
    let said = Claims::read(&token).map_err(|r| Failure::refused(r.code(), r.to_string()))?;
    Ok((token, said))
}

fn hand_out(
    made: Result<Vec<u8>, BadTerms>,
    from: &Path,
    out: &Path,
    holder: Option<&PublicKey>,
    output: Output,
) -> Outcome {
    let made = made.map_err(|e| {
        Failure::fault(e.to_string()).next(format!("fem-cli token inspect {}", quoted(from)))
    })?;
    let token = encode_text(&made);
    if out == Path::new("-") {
        return output.give(&json!({"token": token, "holder": holder}), || token.clone());
    }
    token_file::write(out, &token)?;
    output.give(&json!({"file": out, "holder": holder}), || {
        let whose = match holder {
            Some(next) => format!("\nOnly the key {} can use it.", next.fingerprint()),
            None => String::new(),
        };
        let file = quoted(out);
        format!("Wrote {file}.{whose}\nRead it: fem-cli token inspect {file}")
    })
}

fn holder_key(file: Option<PathBuf>, chosen: &Chosen) -> Outcome<Key> {
    let missing = || {
        Failure::usage("delegating needs the current holder's key").next(
            "give --key FILE, or --context with the context of the agent that holds the token",
        )
    };
    if let Some(file) = file {
        return Ok(Key::load(file)?);
    }
    if chosen.name().is_none() && chosen.file().is_err() {
        return Err(missing());
    }
    let context = chosen.context()?;
    let file = context.key_file.ok_or_else(missing)?;
    match context.passphrase_file {
        Some(passphrase) => Ok(Key::load_encrypted(file, &Passphrase::load(&passphrase)?)?),
        None => Ok(Key::load(file)?),
    }
}
