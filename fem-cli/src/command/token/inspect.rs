//! `token inspect`: what a token says, block by block. Offline, and without a root key if need be.

use std::path::Path;

use proto_spec::capability::{Block, Claims, decode_text};
use proto_spec::{PublicKey, Timestamp};
use serde_json::{Value, json};

use super::verify::root;
use crate::connect::Chosen;
use crate::failure::{Exit, Failure, Outcome};
use crate::output::{Output, escape, join};
use crate::time;
use crate::token_file;
use crate::words;

/// Shows every block of a token in plain words, with its revocation id; offline
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fem-cli token inspect my.token
  fem-cli token inspect my.token --root-key acme/keys/root.pub
Without a root key it shows what the token says; whether that is genuine is not known then.
An unsealed token is a secret: name its file, or pipe it in, rather than writing it out.")]
pub(crate) struct Inspect {
    /// A file, - for standard input, or the token's text itself
    #[arg(value_name = "FILE|-|TEXT")]
    token: String,
    /// The organisation's root key: base64, did:key, or a file such as ORG/keys/root.pub
    /// [default: keys/root.pub beside the context, if it is there]
    #[arg(long, value_name = "KEY-or-FILE")]
    root_key: Option<String>,
}

pub(super) fn run(args: &Inspect, chosen: &Chosen, output: Output) -> Outcome {
    let bytes = given(&args.token)?;
    let said = Claims::read(&bytes).map_err(|r| Failure::refused(r.code(), r.to_string()))?;
    let signed = match root(args.root_key.as_deref(), chosen)? {
        None => Signed::NotChecked,
        Some(root) => match token_file::open(&bytes, &root) {
            Ok(_) => Signed::By(root),
            Err(refusal) => Signed::Wrongly(root, refusal.to_string()),
        },
    };
    let now = time::now();
    let checks = checks(&said, &signed, now);
    output.give(&as_json(&said, &checks), || {
        in_words(&said, &signed, &checks, now)
    })?;
    match signed {
        Signed::Wrongly(..) => Err(Failure::told(Exit::Refused)),
        Signed::By(_) | Signed::NotChecked => Ok(()),
    }
}

/// Characters that a token has at least: two keys and two signatures alone come to as many.
const TEXT_CHARS_MIN: usize = 256;

/// The bytes of the token that was named, or written out.
fn given(token: &str) -> Outcome<Vec<u8>> {
    let path = Path::new(token);
    if token == "-" || path.exists() {
        return token_file::read(path);
    }
    match decode_text(token) {
        Ok(bytes) if token.len() >= TEXT_CHARS_MIN => Ok(bytes),
        _ => Err(
            Failure::not_found("this is neither a file that exists nor the text of a token").next(
                "name the file, pipe the token into `fem-cli token inspect -`, or write all of it",
            ),
        ),
    }
}

/// Whether a root stands for what the token says.
enum Signed {
    By(PublicKey),
    /// Not under this key, or not at all.
    Wrongly(PublicKey, String),
    NotChecked,
}

/// One thing that a verifier looks at, and what came of it here.
struct Look {
    check: &'static str,
    /// Nothing where it was left out.
    is_good: Option<bool>,
    told: String,
}

fn checks(said: &Claims, signed: &Signed, now: Timestamp) -> Vec<Look> {
    let look = |check, is_good, told: &str| Look {
        check,
        is_good,
        told: told.into(),
    };
    let signature = match signed {
        Signed::By(root) => (
            Some(true),
            format!("every one fits, under the root key {}", root.fingerprint()),
        ),
        Signed::Wrongly(root, why) => (
            Some(false),
            format!("WRONG under the root key {}: {why}", root.fingerprint()),
        ),
        Signed::NotChecked => (
            None,
            "not checked, no root key given (--root-key)".to_owned(),
        ),
    };
    let time = if now >= said.expires() {
        (false, "it has ended")
    } else if said.not_before().is_some_and(|from| now < from) {
        (false, "it does not hold yet")
    } else {
        (true, "it holds now, by this machine's clock")
    };
    vec![
        look("form and cost", Some(true), "the gate lets it through"),
        look(
            "holders",
            Some(true),
            "each delegation names the holder before it as its signer",
        ),
        look("root signature", signature.0, &signature.1),
        look("time", Some(time.0), time.1),
        look("revocation", None, "not asked, needs a broker"),
        look(
            "conditions",
            None,
            "not asked, needs a call (fem-cli token verify)",
        ),
    ]
}

fn as_json(said: &Claims, checks: &[Look]) -> Value {
    let key =
        |key: &PublicKey| json!({"did": key.did(), "fingerprint": key.fingerprint(), "key": key});
    let block = |block: &Block| {
        json!({
            "id": block.id(),
            "signer": block.signer().map(key),
            "holder": block.holder().map(key),
            "calls": block.calls(),
            "checks": block.checks(),
            "conditions": words::conditions(block.checks()),
        })
    };
    let look = |look: &Look| json!({"check": look.check, "made": look.is_good.is_some(), "good": look.is_good, "told": look.told});
    json!({
        "kind": said.kind().as_str(),
        "org": said.org(),
        "agent": said.agent(),
        "holder": said.holder().map(key),
        "capabilities": said.capabilities(),
        "enrolment": said.enrolment().map(|enrolment| json!({
            "name": enrolment.name,
            "ceiling": enrolment.ceiling,
            "prefixes": enrolment.prefixes,
            "uses": enrolment.uses,
        })),
        "audience": said.audience(),
        "issued": time::show(said.issued()),
        "expires": time::show(said.expires()),
        "not_before": said.not_before().map(time::show),
        "sandbox": said.sandbox(),
        "sealed": said.is_sealed(),
        "blocks": said.blocks().iter().map(block).collect::<Vec<_>>(),
        "checks": checks.iter().map(look).collect::<Vec<_>>(),
    })
}

fn in_words(said: &Claims, signed: &Signed, checks: &[Look], now: Timestamp) -> String {
    let mut text = String::new();
    if matches!(signed, Signed::Wrongly(..)) {
        text.push_str(
            "NOT GENUINE under the root key that was given; this is only what it says:\n",
        );
    }
    let to = said.agent().map(|agent| format!(", issued to {agent}"));
    text.push_str(&format!(
        "A token of kind {}, of {}{}\n",
        said.kind().as_str(),
        said.org(),
        to.unwrap_or_default(),
    ));
    line(&mut text, "issued", &time::show_from(said.issued(), now));
    if let Some(from) = said.not_before() {
        line(&mut text, "from", &time::show_from(from, now));
    }
    line(&mut text, "until", &time::show_from(said.expires(), now));
    if let Some(holder) = said.holder() {
        line(&mut text, "holder", &key_in_words(holder));
    }
    let form = if said.is_sealed() {
        "sealed: nothing can be appended"
    } else {
        "unsealed: its holder can narrow it and pass it on; keep it secret"
    };
    line(&mut text, "form", form);
    for (number, block) in said.blocks().iter().enumerate() {
        text.push_str(&block_in_words(said, number, block));
    }
    text.push('\n');
    for look in checks {
        text.push_str(&format!("{}: {}\n", look.check, escape(&look.told)));
    }
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    text.push_str(&format!("  {name:<9} {}\n", escape(value)));
}

fn key_in_words(key: &PublicKey) -> String {
    format!("{} ({})", key.did(), key.fingerprint())
}

fn block_in_words(said: &Claims, number: usize, block: &Block) -> String {
    let mut text = match (number, block.signer()) {
        (0, _) => "\nBlock 0, what the organisation's root grants\n".to_owned(),
        (_, Some(_)) => format!("\nBlock {number}, a delegation\n"),
        (_, None) => format!("\nBlock {number}, a narrowing\n"),
    };
    let mut line = |name: &str, value: &str| line(&mut text, name, value);
    line("id", &block.id().to_string());
    if let Some(signer) = block.signer() {
        line("signed by", &key_in_words(signer));
    }
    if number == 0 {
        if let Some(enrolment) = said.enrolment() {
            line("names", enrolment.name.as_str());
            line("ceiling", &join(&enrolment.ceiling));
            line("offers", &join(&enrolment.prefixes));
            line("uses", &format!("at most {}", enrolment.uses));
        } else {
            line("grants", &join(said.capabilities()));
        }
        if let Some(audience) = said.audience() {
            line("shown at", audience);
        }
        if let Some(sandbox) = said.sandbox() {
            line("sandbox", sandbox);
        }
    }
    if let Some(holder) = block.holder() {
        line("holder", &key_in_words(holder));
    }
    if let Some(calls) = block.calls() {
        line("calls", &format!("at most {calls}"));
    }
    for condition in words::conditions(block.checks()) {
        line("only if", &condition);
    }
    text
}
