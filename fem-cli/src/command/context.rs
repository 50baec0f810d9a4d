//! `context`: which brokers this user works with, and as whom.

use std::path::PathBuf;

use proto_spec::PublicKey;
use proto_spec::identity::AgentId;
use serde_json::json;

use crate::connect::Chosen;
use crate::context::{self, Context, Store};
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::output::{Output, Table, escape};

/// Lists, shows, adds and chooses contexts: a broker, and a key by reference
#[derive(Debug, clap::Args)]
pub(crate) struct Contexts {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// Lists the stored contexts
    List,
    /// Shows a context: the one named, else the one in use
    Show {
        /// A stored context's name, or a file
        name: Option<String>,
    },
    /// Chooses the context that is used where none is named
    Use {
        /// A stored context's name
        name: String,
    },
    /// Stores a context under a name
    Add(Box<Add>),
}

#[derive(Debug, clap::Args)]
struct Add {
    /// How to call it
    name: String,
    /// Take everything from this context file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["agent", "broker", "broker_key", "ca_file", "key"])]
    from: Option<PathBuf>,
    /// As whom: name@org
    #[arg(long, required_unless_present = "from")]
    agent: Option<AgentId>,
    /// The broker's address: https://host:port
    #[arg(long, value_name = "URL", required_unless_present = "from")]
    broker: Option<String>,
    /// What the broker signs with, as the organisation told you: base64 or did:key
    #[arg(long, value_name = "KEY", required_unless_present = "from")]
    broker_key: Option<PublicKey>,
    /// The certificate authority that the broker's certificate comes from
    #[arg(long, value_name = "FILE", required_unless_present = "from")]
    ca_file: Option<PathBuf>,
    /// The agent's key file; it stays where it is
    #[arg(long, value_name = "FILE", required_unless_present = "from")]
    key: Option<PathBuf>,
}

pub(crate) fn run(args: Contexts, chosen: &Chosen, output: Output) -> Outcome {
    match args.act {
        Act::List => list(output),
        Act::Show { name } => show(name.as_deref().or(chosen.name()), output),
        Act::Use { name } => {
            Store::of_user()?.use_by_default(&name)?;
            output.give(&json!({"current": name}), || {
                format!("Using {name} from here on.")
            })
        }
        Act::Add(add) => {
            let (name, context) = read(*add)?;
            Store::of_user()?.add(&name, &context)?;
            output.give(&json!({"added": name}), || {
                format!("Added {name}.\nNext: fem-cli context use {name}")
            })
        }
    }
}

fn list(output: Output) -> Outcome {
    let store = Store::of_user()?;
    let current = store.current();
    let read = |name: String| {
        let context = Context::load(&store.path_of(&name));
        (current.as_ref() == Some(&name), name, context)
    };
    let all: Vec<_> = store.names().into_iter().map(read).collect();
    let values: Vec<_> = all
        .iter()
        .map(|(current, name, context)| match context {
            Ok(context) => json!({"name": name, "current": current, "context": context}),
            Err(problem) => {
                json!({"name": name, "current": current, "problem": problem.to_string()})
            }
        })
        .collect();
    output.list(&values, || {
        let mut table = Table::new(
            &["", "name", "agent", "broker"],
            "No context is stored. Add one: fem-cli context add NAME --from acme/admin.toml",
        );
        for (current, name, context) in &all {
            let mark = if *current { "*" } else { " " };
            match context {
                Ok(c) => table.row([mark, name, &shown(c.agent.as_ref()), &c.broker]),
                Err(problem) => table.row([mark, name, "cannot be read", &problem.to_string()]),
            }
        }
        table
    })
}

fn shown(agent: Option<&AgentId>) -> String {
    agent.map(ToString::to_string).unwrap_or_default()
}

fn show(named: Option<&str>, output: Output) -> Outcome {
    let path = context::find(named)?;
    let context = Context::load(&path)?;
    output.give(&context, || {
        let file = |path: &Option<PathBuf>| {
            path.as_ref().map_or("-".into(), |path| escape(&path.display().to_string()))
        };
        format!(
            "file        {}\nagent       {}\nbroker      {}\nbroker key  {} ({})\nca file     {}\nkey file    {}",
            escape(&path.display().to_string()),
            shown(context.agent.as_ref()),
            escape(&context.broker),
            context.broker_key,
            context.broker_key.fingerprint(),
            file(&context.ca_file),
            file(&context.key_file),
        )
    })
}

fn read(add: Add) -> Outcome<(String, Context)> {
    if let Some(from) = &add.from {
        return Ok((add.name, Context::load(from)?));
    }
    let missing =
        || Failure::usage("a context needs --agent, --broker, --broker-key, --ca-file and --key");
    let context = Context {
        agent: Some(add.agent.ok_or_else(missing)?),
        org: None,
        broker: add.broker.ok_or_else(missing)?,
        broker_key: add.broker_key.ok_or_else(missing)?,
        ca_file: Some(files::absolute(&add.ca_file.ok_or_else(missing)?)),
        key_file: Some(files::absolute(&add.key.ok_or_else(missing)?)),
        passphrase_file: None,
    };
    Ok((add.name, context))
}
