//! `agent`: asks to become one, and decides who does.

pub(super) mod decide;
pub(super) mod register;
mod rotate;

use proto_spec::message::{Ack, AgentRecord, AgentShow, OlderRecord, PendingRecord};
use proto_spec::{Kind, Name};
use serde_json::json;

use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::named_key::Which;
use crate::output::{Output, Table, escape, join};
use crate::request::{self, unexpected};
use crate::time;

/// Registers agents, and decides about them
#[derive(Debug, clap::Args)]
pub(crate) struct Agent {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    Register(register::Register),
    /// Lists agents, and requests that wait for a decision
    List,
    /// Shows one agent, and requests under its name
    Show {
        /// Whom
        name: Name,
    },
    Approve(decide::Approve),
    /// Denies a request; nothing becomes of it
    Deny {
        /// Whom
        name: Name,
        #[command(flatten)]
        which: Which,
        /// What the agent is told
        #[arg(long)]
        reason: Option<String>,
    },
    /// Revokes an agent: its key, its grants and its sessions, at once and for good
    Revoke(decide::Strike),
    /// Revokes an agent with all that flows from it: whom it approved, enrolled and issued to
    Quarantine(decide::Strike),
    /// Prints the public key of this context's agent: for whoever delegates a token to it
    Key,
    RotateKey(rotate::RotateKey),
}

pub(crate) async fn run(args: Agent, chosen: &Chosen, output: Output) -> Outcome {
    match args.act {
        Act::Register(args) => register::run(args, chosen, output).await,
        Act::List => list(chosen, output).await,
        Act::Show { name } => show(chosen, output, name).await,
        Act::Approve(args) => decide::approve(chosen, output, args).await,
        Act::Deny {
            name,
            which,
            reason,
        } => decide::deny(chosen, output, name, &which, reason).await,
        Act::Revoke(args) => decide::revoke(chosen, output, args).await,
        Act::Quarantine(args) => decide::quarantine(chosen, output, args).await,
        Act::Key => key(chosen, output),
        Act::RotateKey(args) => rotate::run(args, chosen, output).await,
    }
}

/// Needs no broker: the key is here.
fn key(chosen: &Chosen, output: Output) -> Outcome {
    let agent = chosen.agent()?;
    let key = agent.public_key();
    let value = json!({
        "agent": agent.id(), "key": key, "did": key.did(), "fingerprint": key.fingerprint(),
    });
    output.give(&value, || key.did())
}

async fn list(chosen: &Chosen, output: Output) -> Outcome {
    let (agents, pending) = request::agents(&chosen.agent()?).await?;
    let value = json!({"agents": agents, "pending": pending});
    output.give(&value, || {
        format!("{}{}", agent_table(&agents), pending_table(&pending))
    })
}

/// What an older agent says of itself.
fn told(older: &OlderRecord) -> String {
    let endpoint = match (&older.endpoint, older.allowed) {
        (Some(endpoint), true) => format!("called at {endpoint}"),
        (Some(endpoint), false) => {
            format!("not called: {endpoint} is not in the broker's [compat] endpoints")
        }
        (None, _) => "not called: it names no endpoint".into(),
    };
    format!("older agent, {endpoint}, with {}", older.tools.join(", "))
}

fn agent_table(agents: &[AgentRecord]) -> Table {
    let mut table = Table::new(
        &["agent", "sessions", "may do", "may offer", "fingerprint"],
        "No agents.\n",
    );
    for agent in agents {
        table.row([
            agent.name.as_str(),
            &agent.sessions.to_string(),
            &join(&agent.capabilities),
            &format!(
                "{}{}",
                join(&agent.prefixes),
                agent
                    .older
                    .as_deref()
                    .map(told)
                    .map_or_else(String::new, |told| format!("; {told}"))
            ),
            &agent.fingerprint,
        ]);
    }
    table
}

fn pending_table(pending: &[PendingRecord]) -> String {
    if pending.is_empty() {
        return String::new();
    }
    let mut table = Table::new(
        &[
            "pending",
            "asks to do",
            "asks to offer",
            "from",
            "fingerprint",
            "note",
        ],
        "",
    );
    for request in pending {
        let change = if request.key_change {
            " (another key)"
        } else {
            ""
        };
        table.row([
            &format!("{}{change}", request.name),
            &join(&request.capabilities),
            &request
                .older
                .as_deref()
                .map_or_else(|| join(&request.prefixes), told),
            &request.from,
            &request.fingerprint,
            request.note.as_deref().unwrap_or_default(),
        ]);
    }
    format!(
        "\n{table}\nDecide: fem-cli agent approve NAME --fingerprint HEX --capability PATTERN, or agent deny NAME\n"
    )
}

async fn fetch(
    agent: &agent_sdk::Agent,
    name: &Name,
) -> Outcome<(Option<AgentRecord>, Vec<PendingRecord>)> {
    match request::act(
        agent,
        Kind::AdminAgentShow,
        &AgentShow { name: name.clone() },
    )
    .await?
    {
        Ack::Agent { agent, pending } => Ok((agent, pending)),
        other => Err(unexpected(&other)),
    }
}

async fn show(chosen: &Chosen, output: Output, name: Name) -> Outcome {
    let (agent, pending) = fetch(&chosen.agent()?, &name).await?;
    if agent.is_none() && pending.is_empty() {
        return Err(
            Failure::not_found(format!("nobody is called {name}, and nobody asks to be"))
                .next("see `fem-cli agent list`"),
        );
    }
    let value = json!({"agent": agent, "pending": pending});
    output.give(&value, || {
        let agent = agent.as_ref().map(in_words).unwrap_or_default();
        format!("{agent}{}", pending_table(&pending))
    })
}

fn in_words(agent: &AgentRecord) -> String {
    let admin = agent.admin.as_ref().map_or(String::new(), |scope| {
        format!(
            "may grant    {}\nto           {}\n",
            join(&scope.grantable),
            join(&scope.names)
        )
    });
    let older = agent.older.as_deref().map_or_else(String::new, |older| {
        format!("speaks       as an {}\n", escape(&told(older)))
    });
    format!(
        "agent        {}\nkey          {}\nfingerprint  {}\nmay do       {}\nmay offer    {}\n{admin}{older}sessions     {}\nsince        {}\n",
        agent.name,
        agent.key,
        escape(&agent.fingerprint),
        join(&agent.capabilities),
        join(&agent.prefixes),
        agent.sessions,
        time::show_from(agent.since, time::now()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(seed: u8) -> PendingRecord {
        let key = proto_spec::SigningKey::from_seed(&[seed; 32]).public();
        PendingRecord {
            name: "fs".parse().unwrap(),
            key,
            fingerprint: key.fingerprint(),
            capabilities: Vec::new(),
            prefixes: Vec::new(),
            note: Some("approve me\x1b[2J".into()),
            from: "127.0.0.1".into(),
            at: proto_spec::Timestamp::from_ms(0),
            key_change: seed == 2,
            older: None,
        }
    }

    #[test]
    fn a_strangers_note_cannot_write_to_the_admins_terminal() {
        let shown = pending_table(&[request(2)]);
        assert!(
            shown.contains(r"approve me\u{1b}[2J") && shown.contains("(another key)"),
            "{shown}"
        );
    }
}
