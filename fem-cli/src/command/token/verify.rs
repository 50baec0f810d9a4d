//! `token verify`: whether a token would be taken, as far as that can be known offline.

use std::path::PathBuf;

use proto_spec::capability::{Arguments, Capability, Proof, Question, Token};
use proto_spec::identity::AgentId;
use proto_spec::{Pattern, PublicKey, Refusal, Timestamp};
use serde_json::{Value, json};

use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::files::quoted;
use crate::output::Output;
use crate::time;
use crate::token_file;

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
pub(super) fn root(named: Option<&str>, chosen: &Chosen) -> Outcome<Option<PublicKey>> {
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

/// The token, with its signatures checked.
fn open(bytes: &[u8], root: Option<PublicKey>) -> Outcome<Token> {
    let root = root.ok_or_else(|| {
        Failure::usage("a token is verified with the organisation's root key").next(
            "give --root-key; `init` writes it to ORG/keys/root.pub, and an admin can tell you",
        )
    })?;
    token_file::open(bytes, &root)
        .map_err(|refusal| Failure::refused(refusal.code(), refusal.to_string()))
}

pub(super) fn run(args: &Verify, chosen: &Chosen, output: Output) -> Outcome {
    let bytes = token_file::read(&args.file)?;
    let refused = |refusal: Refusal| Failure::refused(refusal.code(), refusal.to_string());
    let token = open(&bytes, root(args.root_key.as_deref(), chosen)?)?;
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
            caller: Some(&self.caller),
            via: None,
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
