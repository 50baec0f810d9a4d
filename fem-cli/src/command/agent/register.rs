//! `agent register`: makes an agent's key and asks the broker to take it as an agent.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_sdk::{Agent, Key, RegisterOptions, Registration};
use proto_spec::identity::AgentId;
use proto_spec::{Name, Pattern, PublicKey};
use serde_json::json;

use crate::connect::{Chosen, agent_of};
use crate::context::Context;
use crate::failure::{Exit, Failure, Outcome};
use crate::files::{absolute, quoted};
use crate::output::{Output, join, note};
use crate::time;
use crate::token_file;

/// Asks the broker to take a key as an agent; makes the key if there is none
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The context says which broker: ORG/join.toml, as an admin hands it out, is enough.
Asking grants nothing: an admin decides, or an enrolment token did already.
Run it again to see what was decided; with --wait it does that itself.

Example:
  fem-cli agent register files --context acme/join.toml --want 'report.*' --wait")]
pub(super) struct Register {
    /// How the agent is to be called
    name: Name,
    /// What it would like to be granted; may be repeated
    #[arg(long = "want", value_name = "PATTERN")]
    wants: Vec<Pattern>,
    /// Under which names it would like to offer tools; may be repeated [default: NAME.*]
    #[arg(long = "prefix", value_name = "PATTERN")]
    prefixes: Vec<Pattern>,
    /// For the admin who decides
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// An enrolment token: registers at once, within its bounds
    #[arg(long, value_name = "FILE")]
    enrol: Option<PathBuf>,
    /// Wait until an admin has approved
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "TIME", value_parser = time::duration, default_value = "1h", requires = "wait")]
    timeout: Duration,
    /// The agent's key file; made if it is absent [default: NAME.pem]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Where to write the agent's own context [default: NAME.toml]
    #[arg(long, value_name = "FILE")]
    context_out: Option<PathBuf>,
}

pub(super) async fn run(args: Register, chosen: &Chosen, output: Output) -> Outcome {
    let own = Own::of(
        &args.name,
        args.key.as_deref(),
        args.context_out.as_deref(),
        chosen,
    )?;
    let Own {
        agent,
        id,
        key,
        context_file,
    } = own;
    let request = request(&args)?;
    let mut answer = agent.register(request.clone()).await?;
    if args.wait && matches!(answer, Registration::Pending) {
        note(&pending(&id, &key, CALLER));
        note("Waiting for an admin; end with Ctrl-C, nothing is lost.");
        answer = wait(&agent, request, args.timeout).await?;
    }
    match answer {
        Registration::Registered { capabilities, prefixes } => output.give(
            &json!({"agent": id, "status": "registered", "key": key, "capabilities": capabilities, "prefixes": prefixes, "context": context_file}),
            || {
                format!(
                    "{id} is registered.\nmay do     {}\nmay offer  {}\ncontext    {file}\n\
                     Next: fem-cli --context {file} tools",
                    join(&capabilities),
                    join(&prefixes),
                    file = quoted(&context_file),
                )
            },
        ),
        Registration::Pending => {
            let value = json!({
                "agent": id, "status": "pending", "key": key, "fingerprint": key.fingerprint(), "context": context_file,
            });
            output.give(&value, || {
                format!(
                    "{}\nThen see what was decided: run this again, or\n  fem-cli --context {} tools",
                    pending(&id, &key, CALLER),
                    quoted(&context_file),
                )
            })?;
            Err(Failure::told(Exit::Pending))
        }
    }
}

/// An agent with a key and a context of its own, each made where it was absent.
pub(crate) struct Own {
    pub(crate) agent: Agent,
    pub(crate) id: AgentId,
    pub(crate) key: PublicKey,
    pub(crate) context_file: PathBuf,
}

impl Own {
    /// The agent `name` at the broker of the chosen context, with these files or `NAME.pem` and `NAME.toml`.
    pub(crate) fn of(
        name: &Name,
        key_file: Option<&Path>,
        context_file: Option<&Path>,
        chosen: &Chosen,
    ) -> Outcome<Self> {
        let broker = chosen.context()?;
        let id = AgentId::new(name.clone(), broker.org()?.clone());
        let named = |file: Option<&Path>, kind: &str| {
            file.map_or_else(|| format!("{name}.{kind}").into(), Path::to_owned)
        };
        let key_file: PathBuf = named(key_file, "pem");
        let context_file: PathBuf = named(context_file, "toml");
        let context = Context {
            agent: Some(id.clone()),
            org: None,
            key_file: Some(absolute(&key_file)),
            passphrase_file: None,
            ..broker
        };
        let key = key_at(&key_file)?;
        let context = keep(context, &context_file)?;
        Ok(Self {
            agent: agent_of(&context, &context_file)?,
            id,
            key,
            context_file,
        })
    }
}

/// The key in a file, or a new one in it.
fn key_at(path: &Path) -> Outcome<PublicKey> {
    if path.exists() {
        return Ok(Key::load(path)?.public());
    }
    let key = Key::generate()?;
    key.save(path)?;
    Ok(key.public())
}

/// Writes the context, unless it stands there. One that is there may have followed the broker's key further
/// than what this agent starts from.
fn keep(context: Context, path: &Path) -> Outcome<Context> {
    if !path.exists() {
        return context.save(path).map(|()| context);
    }
    let there = Context::load(path)?;
    let expected = Context {
        broker_key: there.broker_key,
        ..context
    };
    if there == expected {
        return Ok(there);
    }
    Err(
        Failure::fault(format!("{} exists and says something else", path.display()))
            .next("name another file with --context-out"),
    )
}

fn request(args: &Register) -> Outcome<RegisterOptions> {
    let enrolment = args
        .enrol
        .as_deref()
        .map(token_file::presentable)
        .transpose()?;
    Ok(RegisterOptions {
        capabilities: args.wants.clone(),
        prefixes: args.prefixes.clone(),
        note: args.note.clone(),
        enrolment,
    })
}

/// What an admin adds who approves an agent that is to call others.
const CALLER: &str = " --capability PATTERN";

/// What to tell whom; `more` is what else the admin decides.
pub(crate) fn pending(id: &AgentId, key: &PublicKey, more: &str) -> String {
    let name = id.name();
    let fingerprint = key.fingerprint();
    format!(
        "{id} is pending: an admin has to approve its key.\n  fingerprint  {fingerprint}\n\
         Tell an admin the fingerprint, over a channel that you both trust. The admin runs:\n  \
         fem-cli agent approve {name} --fingerprint {fingerprint}{more}"
    )
}

async fn wait(agent: &Agent, request: RegisterOptions, timeout: Duration) -> Outcome<Registration> {
    match tokio::time::timeout(timeout, agent.register_and_wait(request)).await {
        Ok(decided) => Ok(decided?),
        Err(_) => Ok(Registration::Pending),
    }
}
