//! `token inspect` and `token verify`: what a token says, and whether it would be taken. Offline.

use std::path::PathBuf;

use proto_spec::capability::{Arguments, Block, Capability, Proof, Question, Token};
use proto_spec::identity::AgentId;
use proto_spec::{Digest, Pattern, PublicKey, Refusal, Timestamp};
use serde_json::{Value, json};

use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::files::quoted;
use crate::output::{Output, escape, join};
use crate::time;
use crate::token_file;
use crate::words;

/// Shows every block of a token in plain words, with its revocation id; offline
#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// The token
    file: PathBuf,
    /// The organisation's root key: base64, did:key, or a file such as ORG/keys/root.pub
    /// [default: keys/root.pub beside the context]
    #[arg(long, value_name = "KEY-or-FILE")]
    root_key: Option<String>,
}

/// Checks a token against a root key, and against a call if you name one; offline
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fem-cli token verify my.token --root-key acme/keys/root.pub
  fem-cli token verify my.token --capability files.read --args-json '{\"path\":\"/srv/a\"}'
What cannot be checked offline is said: whether the token is revoked.")]
pub(crate) struct Verify {
    /// The token
    file: PathBuf,
    /// The organisation's root key: base64, did:key, or a file such as ORG/keys/root.pub
    /// [default: keys/root.pub beside the context]
    #[arg(long, value_name = "KEY-or-FILE")]
    root_key: Option<String>,
    /// The key that would present it: base64 or did:key
    #[arg(long, value_name = "KEY")]
    holder: Option<PublicKey>,
    /// Would it permit this?
    #[arg(long, value_name = "CAPABILITY")]
    capability: Option<Capability>,
    /// … with these arguments: a JSON object
    #[arg(long, value_name = "JSON", requires = "capability")]
    args_json: Option<String>,
    /// … of this agent's tool
    #[arg(long, value_name = "NAME@ORG", requires = "capability")]
    provider: Option<AgentId>,
    /// … at this time [default: now]
    #[arg(long, value_name = "TIME")]
    at: Option<time::When>,
}

/// The root key that was named, or the one that `init` wrote beside the context.
fn root(named: Option<&str>, chosen: &Chosen) -> Outcome<Option<PublicKey>> {
    if let Some(named) = named {
        return token_file::root_key(named)
            .map(Some)
            .map_err(Failure::usage);
    }
    let beside = chosen
        .file()
        .ok()
        .and_then(|file| Some(file.parent()?.join("keys/root.pub")));
    Ok(beside.and_then(|file| token_file::root_key(file.to_str()?).ok()))
}

/// The id of the block that was added last: revoking it ends this very token.
pub(super) fn last_id(bytes: &[u8], root_key: Option<&str>, chosen: &Chosen) -> Outcome<Digest> {
    let (token, _) = look(bytes, root(root_key, chosen)?)?;
    let last = token.blocks().last().map(|block| block.id().0);
    last.ok_or_else(|| Failure::fault("the token has no block"))
}

/// The token, with its signatures checked.
fn look(bytes: &[u8], root: Option<PublicKey>) -> Outcome<(Token, PublicKey)> {
    let root = root.ok_or_else(|| {
        Failure::usage("a token is read with the organisation's root key").next(
            "give --root-key; `init` writes it to ORG/keys/root.pub, and an admin can tell you",
        )
    })?;
    match token_file::open(bytes, &root) {
        Ok(token) => Ok((token, root)),
        Err(refusal) => Err(Failure::refused(refusal.code(), refusal.to_string())),
    }
}

pub(super) fn inspect(args: &Inspect, chosen: &Chosen, output: Output) -> Outcome {
    let bytes = token_file::read(&args.file)?;
    let (token, root) = look(&bytes, root(args.root_key.as_deref(), chosen)?)?;
    let now = time::now();
    output.give(&as_json(&token, &root), || in_words(&token, &root, now))
}

fn as_json(token: &Token, root: &PublicKey) -> Value {
    let block = |block: &Block| {
        json!({
            "id": block.id().to_string(),
            "signer": block.signer(),
            "holder": block.holder(),
            "calls": block.calls(),
            "checks": block.checks().iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    };
    json!({
        "kind": token.kind().as_str(),
        "org": token.org(),
        "agent": token.agent().map(ToString::to_string),
        "capabilities": token.capabilities(),
        "issued": time::show(token.issued()),
        "expires": time::show(token.expires()),
        "not_before": token.not_before().map(time::show),
        "sandbox": token.sandbox(),
        "sealed": token.is_sealed(),
        "signatures_checked_under": root,
        "blocks": token.blocks().iter().map(block).collect::<Vec<_>>(),
    })
}

fn in_words(token: &Token, root: &PublicKey, now: Timestamp) -> String {
    let mut text = format!(
        "A {} of {}{}\n",
        token.kind().as_str(),
        token.org(),
        token
            .agent()
            .map(|agent| format!(", issued to {agent}"))
            .unwrap_or_default(),
    );
    let mut line =
        |name: &str, value: &str| text.push_str(&format!("  {name:<9} {}\n", escape(value)));
    line("issued", &time::show_from(token.issued(), now));
    if let Some(from) = token.not_before() {
        line("from", &time::show_from(from, now));
    }
    line("until", &time::show_from(token.expires(), now));
    let form = if token.is_sealed() {
        "sealed: nothing can be appended"
    } else {
        "unsealed: its holder can narrow it and pass it on; keep it secret"
    };
    line("form", form);
    for (number, block) in token.blocks().iter().enumerate() {
        text.push_str(&block_in_words(token, number, block));
    }
    text.push_str("\nChecked: the form and cost of every block, and that each delegation was made by the holder before it\n");
    text.push_str(&format!(
        "Checked: every signature, under the root key {}\n",
        root.fingerprint()
    ));
    text.push_str("Not checked: whether it is revoked (only the broker knows), and what a call would make of its conditions (token verify)\n");
    text
}

fn block_in_words(token: &Token, number: usize, block: &Block) -> String {
    let mut text = match (number, block.signer()) {
        (0, _) => "\nBlock 0, what the organisation's root grants\n".to_owned(),
        (_, Some(signer)) => format!(
            "\nBlock {number}, a delegation by the key {}\n",
            signer.fingerprint()
        ),
        (_, None) => format!("\nBlock {number}, a narrowing\n"),
    };
    let mut line =
        |name: &str, value: &str| text.push_str(&format!("  {name:<9} {}\n", escape(value)));
    line("id", &block.id().to_string());
    if number == 0 {
        line("grants", &join(token.capabilities()));
        if let Some(enrolment) = token.enrolment() {
            line("names", enrolment.name.as_str());
            line("ceiling", &join(&enrolment.ceiling));
            line("offers", &join(&enrolment.prefixes));
            line("uses", &enrolment.uses.to_string());
        }
        if let Some(sandbox) = token.sandbox() {
            line("sandbox", sandbox);
        }
    }
    if let Some(holder) = block.holder() {
        line("holder", &format!("{} ({holder})", holder.fingerprint()));
    }
    if let Some(calls) = block.calls() {
        line("calls", &format!("at most {calls}"));
    }
    for condition in words::conditions(block.checks()) {
        line("only if", &condition);
    }
    text
}

pub(super) fn verify(args: &Verify, chosen: &Chosen, output: Output) -> Outcome {
    let bytes = token_file::read(&args.file)?;
    let refused = |refusal: Refusal| Failure::refused(refusal.code(), refusal.to_string());
    let (token, _) = look(&bytes, root(args.root_key.as_deref(), chosen)?)?;
    let now = args.at.map_or_else(time::now, |at| at.from(time::now()));
    let mut made = vec!["form and cost", "signatures", "chain of holders", "time"];
    if now >= token.expires() || token.not_before().is_some_and(|from| now < from) {
        return Err(refused(Refusal::TokenExpired));
    }
    if let Some(holder) = &args.holder {
        token.presented_by(holder).map_err(refused)?;
        made.push("holder");
    }
    if let Some(capability) = &args.capability {
        let asked = question(&token, capability, args)?;
        token
            .permits(&asked.ask(args, now))
            .map_err(|refusal| match refusal {
                Refusal::Denied(_) => Failure::refused(
                    refusal.code(),
                    format!("the token does not permit {capability} with these arguments"),
                )
                .next(format!(
                    "fem-cli token inspect {} shows its conditions",
                    quoted(&args.file)
                )),
                other => refused(other),
            })?;
        made.push("permission");
    }
    let value = json!({"verified": true, "checked": made, "not_checked": ["revocation"]});
    output.give(&value, || {
        format!("Good until {}.\nChecked: {}.\nNot checked: whether it is revoked; only the broker knows.",
            time::show_from(token.expires(), now), made.join(", "))
    })
}

/// What a question borrows.
struct Asked {
    required: Pattern,
    caller: AgentId,
}

fn question(token: &Token, capability: &Capability, args: &Verify) -> Outcome<Asked> {
    if let Some(json) = &args.args_json {
        serde_json::from_str::<serde_json::Map<String, Value>>(json)
            .map_err(|e| Failure::usage(format!("--args-json is not a JSON object: {e}")))?;
    }
    let caller = token.agent().and_then(|speaker| speaker.agent().cloned());
    let caller = caller.ok_or_else(|| {
        Failure::usage("this token is not issued to an agent; it permits no call")
    })?;
    Ok(Asked {
        required: Pattern::from(capability.clone()),
        caller,
    })
}

impl Asked {
    fn ask<'a>(&'a self, args: &'a Verify, now: Timestamp) -> Question<'a> {
        Question {
            required: &self.required,
            tool: args.capability.as_ref().map(Capability::as_str),
            caller: &self.caller,
            provider: args.provider.as_ref(),
            now,
            trust: None,
            proof: Proof::Key,
            arguments: args
                .args_json
                .as_deref()
                .map_or(Arguments::None, Arguments::Json),
        }
    }
}
