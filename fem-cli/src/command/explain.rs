//! `explain`: takes an envelope through admission, offline, and says where it stops and why.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto_spec::admission::{Authority, Fresh, Judge, KeyBook, Me, Nonces, Permit, Received};
use proto_spec::capability::{Token, decode_text};
use proto_spec::identity::{AgentId, Audience, Speaker};
use proto_spec::{Capability, Digest, Envelope, Kind, Org, PublicKey, Refusal, Timestamp, limits};
use serde_json::json;

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

/// One stage of admission, and how it went.
struct Stage {
    name: &'static str,
    result: Step,
}

enum Step {
    Passed(String),
    Skipped(String),
    Stopped(Refusal),
}

/// The one key that was given on the command line.
struct OneKey(PublicKey);

impl KeyBook for OneKey {
    fn key_of(&self, _: &Speaker) -> Option<PublicKey> {
        Some(self.0)
    }
}

/// Offline, nothing is on record and nothing was seen before; only a token can be opened.
struct Offline {
    root: Option<PublicKey>,
}

impl Authority for Offline {
    fn granted(&self, _: &AgentId) -> Arc<[Arc<Token>]> {
        Arc::default()
    }
    fn open(&self, text: &str) -> Result<Arc<Token>, Refusal> {
        Token::open(&decode_text(text)?, self.root.as_slice()).map(Arc::new)
    }
    fn alive(&self, _: &Token) -> Result<(), Refusal> {
        Ok(())
    }
    fn required_for(&self, _: &AgentId, tool: &Capability) -> Capability {
        tool.clone()
    }
    fn was_delivered_here(&self, _: &Digest, _: &Audience) -> bool {
        false
    }
    fn was_called_from_here(&self, _: &Digest, _: &AgentId, _: &Audience) -> bool {
        false
    }
}

impl Nonces for Offline {
    fn remember(&self, _: &PublicKey, _: &str, _: Timestamp, _: Timestamp) -> Result<(), Refusal> {
        Ok(())
    }
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

/// What the command line knows of a broker.
struct Bench {
    key: Option<PublicKey>,
    offline: Offline,
    org: Option<Org>,
    skew: Duration,
    now: Timestamp,
}

impl Bench {
    /// The stages in a broker's order. Gives the envelope if it is one at all.
    fn walk(&self, bytes: Bytes, stages: &mut Vec<Stage>) -> Option<Envelope> {
        let received = match Received::parse(bytes, limits::ENVELOPE_BYTES_MAX) {
            Ok(received) => received,
            Err(refusal) => {
                stages.push(Stage {
                    name: "received",
                    result: Step::Stopped(refusal),
                });
                return None;
            }
        };
        let envelope = received.envelope().clone();
        let form = "strict JSON; every header member is in its form".into();
        stages.push(Stage {
            name: "received",
            result: Step::Passed(form),
        });
        for (name, result) in self.believe(received) {
            stages.push(Stage { name, result });
        }
        Some(envelope)
    }

    /// From `Received` to `Authorized`, as far as it comes.
    fn believe(&self, received: Received) -> Vec<(&'static str, Step)> {
        let Some(key) = self.key.or_else(|| own_key(received.envelope())) else {
            return vec![(
                "verified",
                Step::Skipped("give --key, the sender's public key".into()),
            )];
        };
        let verified = match received.verify(&OneKey(key)) {
            Ok(verified) => verified,
            Err(refusal) => return vec![("verified", Step::Stopped(refusal))],
        };
        let by = format!(
            "signed by {}; identity {}",
            key.fingerprint(),
            verified.id()
        );
        let mut steps = vec![("verified", Step::Passed(by))];
        let Some(org) = &self.org else {
            let why = "give --org, the organisation of the broker that judges".into();
            steps.push(("fresh", Step::Skipped(why)));
            return steps;
        };
        let judge = Judge {
            me: Me::Broker(org),
            skew: self.skew,
            now: self.now,
        };
        match verified.admit(&judge, &self.offline) {
            Ok(fresh) => {
                let why = format!(
                    "meant for {org}, and of its time; only the broker knows if the nonce is new"
                );
                steps.push(("fresh", Step::Passed(why)));
                steps.push(("authorized", self.authorize(fresh, &judge)));
            }
            Err(refusal) => steps.push(("fresh", Step::Stopped(refusal))),
        }
        steps
    }

    fn authorize(&self, fresh: Fresh, judge: &Judge<'_>) -> Step {
        if fresh.envelope().kind() == Kind::RegisterAgent {
            return Step::Passed("a registration: an admin decides".into());
        }
        let has_token = fresh.envelope().token().is_some();
        if has_token && self.offline.root.is_none() {
            return Step::Skipped("give --root-key to check the token that it carries".into());
        }
        match fresh.authorize(&self.offline, judge) {
            Ok(authorized) => Step::Passed(match authorized.permit() {
                Permit::Held { capability, .. } => {
                    format!(
                        "its token permits {capability}; only the broker knows if it is revoked"
                    )
                }
                _ => "its own key is enough for this".into(),
            }),
            Err(Refusal::Denied(needed)) if !has_token => Step::Skipped(format!(
                "needs a grant on record for {needed}; only the broker knows"
            )),
            Err(Refusal::NoSuchCall) => {
                Step::Skipped("belongs to a call in flight; only the broker knows those".into())
            }
            Err(refusal) => Step::Stopped(refusal),
        }
    }
}

/// A registration brings its key along.
fn own_key(envelope: &Envelope) -> Option<PublicKey> {
    let brings = envelope.kind() == Kind::RegisterAgent;
    let body = brings.then(|| envelope.read_body::<proto_spec::message::RegisterAgent>());
    body?.ok().map(|body| body.pubkey)
}

impl Stage {
    fn stopped(&self) -> Option<&Refusal> {
        match &self.result {
            Step::Stopped(refusal) => Some(refusal),
            _ => None,
        }
    }

    fn to_json(&self) -> serde_json::Value {
        match &self.result {
            Step::Passed(why) => json!({"stage": self.name, "result": "passed", "why": why}),
            Step::Skipped(why) => json!({"stage": self.name, "result": "skipped", "why": why}),
            Step::Stopped(refusal) => json!({
                "stage": self.name, "result": "stopped", "code": refusal.code().as_str(), "why": refusal.to_string(),
            }),
        }
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

#[cfg(test)]
mod tests {
    use proto_spec::{Audience, Draft, SigningKey};

    use super::*;

    const NOW: Timestamp = Timestamp::from_ms(1_800_000_000_000);

    fn stopped_at(
        bytes: &[u8],
        key: Option<PublicKey>,
        now: Timestamp,
    ) -> Option<(&'static str, String)> {
        let mut stages = Vec::new();
        let offline = Offline { root: None };
        let bench = Bench {
            key,
            offline,
            org: "acme".parse().ok(),
            skew: limits::CLOCK_SKEW_MAX,
            now,
        };
        let _ = bench.walk(Bytes::copy_from_slice(bytes), &mut stages);
        let stage = stages.iter().find(|stage| stage.stopped().is_some())?;
        Some((stage.name, stage.stopped()?.code().to_string()))
    }

    #[test]
    fn an_envelope_is_followed_to_the_stage_where_it_stops() {
        let key = SigningKey::from_seed(&[1; 32]);
        let draft = Draft {
            kind: Kind::DiscoverTools,
            agent: &"fs@acme".parse().unwrap(),
            to: Some(&Audience::Broker("acme".parse().unwrap())),
            ts: NOW,
            nonce: "0123456789abcdef",
            re: None,
            token: None,
            deadline: None,
            body: &json!({}),
        };
        let sealed = draft.seal(&key).unwrap().bytes;
        let other = SigningKey::from_seed(&[2; 32]).public();
        let stop = |name, code: &str| Some((name, code.to_owned()));
        assert_eq!(stopped_at(&sealed, Some(key.public()), NOW), None);
        assert_eq!(stopped_at(&sealed, None, NOW), None);
        assert_eq!(stopped_at(b"{", None, NOW), stop("received", "MALFORMED"));
        assert_eq!(
            stopped_at(&sealed, Some(other), NOW),
            stop("verified", "NOT_AUTHENTIC")
        );
        let late = NOW.later(Duration::from_secs(301));
        assert_eq!(
            stopped_at(&sealed, Some(key.public()), late),
            stop("fresh", "STALE")
        );
    }
}
