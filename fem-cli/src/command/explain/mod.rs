//! `explain`: takes an envelope through admission, offline, and says where it stops and why.

mod walk;

use std::path::PathBuf;
use std::time::Duration;

use proto_spec::{Envelope, Org, Timestamp};
use serde_json::json;

use self::walk::{Bench, Offline, Stage, Step};

use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::output::{Output, Paint, escape};
use crate::time::{self, When};
use crate::token_file::root_key;

/// Takes an envelope through a broker's checks, offline: at which does it stop, and why?
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  fem-cli explain refused.json --key acme/files.pub --org acme --now 2026-11-22T10:00:00Z
Needs no broker. What it does not know it says: nonces that were used, grants on record.")]
pub(crate) struct Explain {
    /// The envelope: a file, or - for standard input; one line end after it is not part of it
    file: PathBuf,
    /// The sender's public key: base64, did:key, or a file with one
    #[arg(long, value_name = "KEY-or-FILE")]
    key: Option<String>,
    /// The organisation's root key, to check a token that the envelope carries
    #[arg(long, value_name = "KEY-or-FILE")]
    root_key: Option<String>,
    /// In whose broker's name to judge [default: the context's organisation]
    #[arg(long)]
    org: Option<Org>,
    /// At which time [default: now]
    #[arg(long, value_name = "TIME")]
    now: Option<When>,
    /// How far a clock may be off
    #[arg(long, value_name = "TIME", value_parser = time::duration, default_value = "5m")]
    skew: Duration,
}

pub(crate) fn run(args: &Explain, chosen: &Chosen, output: Output) -> Outcome {
    let mut bytes = files::read(&args.file)?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    let typed = |key: &Option<String>| {
        key.as_deref()
            .map(root_key)
            .transpose()
            .map_err(Failure::usage)
    };
    let (key, root) = (typed(&args.key)?, typed(&args.root_key)?);
    let org = match &args.org {
        Some(org) => Some(org.clone()),
        None => chosen
            .context()
            .ok()
            .and_then(|context| context.org().ok().cloned()),
    };
    let now = args
        .now
        .map_or_else(time::now, |when| when.from(time::now()));
    let judge = Bench {
        key,
        offline: Offline { root },
        org,
        skew: args.skew,
        now,
    };
    let mut stages = Vec::new();
    let shown = judge.walk(bytes.into(), &mut stages);
    let value = json!({
        "envelope": shown.as_ref().map(header),
        "stages": stages.iter().map(Stage::to_json).collect::<Vec<_>>(),
    });
    output.give(&value, || told(shown.as_ref(), &stages, now))?;
    match stages.iter().find_map(Stage::stopped) {
        Some(refusal) => Err(
            Failure::refused(refusal.code(), format!("it stops here: {refusal}"))
                .next(refusal.code().meaning()),
        ),
        None => Ok(()),
    }
}

fn header(envelope: &Envelope) -> serde_json::Value {
    json!({
        "type": envelope.kind().as_str(),
        "agent": envelope.speaker().to_string(),
        "to": envelope.to().map(ToString::to_string),
        "ts": time::show(envelope.ts()),
        "nonce": envelope.nonce(),
        "re": envelope.re(),
        "token": envelope.token().is_some(),
        "deadline_ms": envelope.deadline().map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        "bytes": envelope.bytes().len(),
    })
}

fn told(envelope: Option<&Envelope>, stages: &[Stage], now: Timestamp) -> String {
    let paint = Paint::stdout();
    let mut text = String::new();
    if let Some(envelope) = envelope {
        let to = envelope.to().map_or("nobody".into(), ToString::to_string);
        text.push_str(&format!(
            "{} from {} to {to}, {} bytes, signed {}\n\n",
            envelope.kind(),
            envelope.speaker(),
            envelope.bytes().len(),
            time::show_from(envelope.ts(), now),
        ));
    }
    for stage in stages {
        let (mark, why) = match &stage.result {
            Step::Passed(why) => (paint.good("passed "), why.clone()),
            Step::Skipped(why) => (paint.faint("skipped"), why.clone()),
            Step::Stopped(refusal) => (
                paint.bad("stopped"),
                format!("{}: {refusal}", refusal.code()),
            ),
        };
        text.push_str(&format!("{mark}  {:<10}  {}\n", stage.name, escape(&why)));
    }
    text
}
