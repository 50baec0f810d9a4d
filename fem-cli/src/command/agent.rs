//! `agent`: asks to become one, and decides who does.

use proto_spec::message::{
    Ack, AgentApprove, AgentDeny, AgentRecord, AgentRevoke, AgentShow, PendingRecord,
};
use proto_spec::{Kind, Name, Pattern, PublicKey};
use serde_json::json;

use crate::command::register;
use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, Table, escape, join};
use crate::request::{self, unexpected};
use crate::time::{self, When};

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
    Approve(Approve),
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
    Revoke {
        /// Whom
        name: Name,
        /// For the record
        #[arg(long)]
        reason: Option<String>,
    },
}

/// Approves a request, with what you choose to grant; what was asked for is only shown
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  fem-cli agent approve files --fingerprint 9f2c:… --capability 'report.*'")]
struct Approve {
    /// Whom
    name: Name,
    #[command(flatten)]
    which: Which,
    /// What the agent may do: file.read, file.*; may be repeated; without any it may only serve
    #[arg(long = "capability", value_name = "PATTERN")]
    capabilities: Vec<Pattern>,
    /// Under which names it may offer tools; may be repeated [default: NAME.*]
    #[arg(long = "prefix", value_name = "PATTERN")]
    prefixes: Vec<Pattern>,
    /// Approve prefixes even where they overlap another agent's
    #[arg(long)]
    overlap: bool,
    /// Until when it holds: 2026-12-31T18:00:00Z, or from now: 90d
    #[arg(long, value_name = "TIME")]
    expires: Option<When>,
}

/// Which key is meant, where several wait under one name. Compare it with what the agent's developer
/// tells you, not with what the request says.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Which {
    /// The key's fingerprint, as `agent register` printed it for the developer
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
    /// The key itself: base64 or did:key
    #[arg(long)]
    key: Option<PublicKey>,
}

pub(crate) async fn run(args: Agent, chosen: &Chosen, output: Output) -> Outcome {
    match args.act {
        Act::Register(args) => register::run(args, chosen, output).await,
        Act::List => list(chosen, output).await,
        Act::Show { name } => show(chosen, output, name).await,
        Act::Approve(args) => approve(chosen, output, args).await,
        Act::Deny {
            name,
            which,
            reason,
        } => deny(chosen, output, name, &which, reason).await,
        Act::Revoke { name, reason } => revoke(chosen, output, name, reason).await,
    }
}

async fn list(chosen: &Chosen, output: Output) -> Outcome {
    let (agents, pending) = request::agents(&chosen.agent()?).await?;
    let value = json!({"agents": agents, "pending": pending});
    output.give(&value, || {
        format!("{}{}", agent_table(&agents), pending_table(&pending))
    })
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
            &join(&agent.prefixes),
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
            &join(&request.prefixes),
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
    format!(
        "agent        {}\nkey          {}\nfingerprint  {}\nmay do       {}\nmay offer    {}\n{admin}sessions     {}\nsince        {}\n",
        agent.name,
        agent.key,
        escape(&agent.fingerprint),
        join(&agent.capabilities),
        join(&agent.prefixes),
        agent.sessions,
        time::show_from(agent.since, time::now()),
    )
}

/// The one request that is meant. A key is never picked for the admin where there are several.
fn chosen_request<'a>(
    pending: &'a [PendingRecord],
    which: &Which,
    name: &Name,
) -> Outcome<&'a PendingRecord> {
    let plain = |text: &str| text.replace(':', "").to_ascii_lowercase();
    let meant = |request: &&PendingRecord| match (&which.fingerprint, &which.key) {
        (Some(fingerprint), _) => plain(fingerprint) == plain(&request.key.fingerprint()),
        (_, Some(key)) => request.key == *key,
        _ => true,
    };
    let found: Vec<_> = pending.iter().filter(meant).collect();
    match (found.as_slice(), pending.len()) {
        ([one], _) => Ok(one),
        ([], 0) => Err(Failure::not_found(format!("nobody waits to become {name}"))
            .next("the agent asks first: fem-cli agent register NAME; see `fem-cli agent list`")),
        ([], _) => Err(
            Failure::not_found(format!("no request under {name} has that key")).next(format!(
                "do not approve what you cannot compare; see `fem-cli agent show {name}`"
            )),
        ),
        _ => Err(Failure::usage(format!(
            "{} requests wait under {name}, each with its own key",
            found.len()
        ))
        .next("ask the agent's developer for the fingerprint, and give it with --fingerprint")),
    }
}

async fn approve(chosen: &Chosen, output: Output, args: Approve) -> Outcome {
    let admin = chosen.agent()?;
    let (existing, pending) = fetch(&admin, &args.name).await?;
    let key = match (&existing, pending.is_empty()) {
        (Some(agent), true) => known_key(agent, &args.which)?,
        _ => chosen_request(&pending, &args.which, &args.name)?.key,
    };
    let body = AgentApprove {
        name: args.name.clone(),
        key,
        capabilities: args.capabilities,
        prefixes: (!args.prefixes.is_empty()).then_some(args.prefixes),
        overlap: args.overlap,
        expires: args.expires.map(|when| when.from(time::now())),
        admin: None,
    };
    match request::act(&admin, Kind::AdminAgentApprove, &body).await? {
        Ack::Agent {
            agent: Some(agent),
            pending,
        } => output.give(&json!({"agent": agent, "pending": pending}), || {
            format!("Approved {}.\n\n{}", agent.name, in_words(&agent))
        }),
        other => Err(unexpected(&other)),
    }
}

/// Approving an agent anew replaces what its approval grants; its key stays.
fn known_key(agent: &AgentRecord, which: &Which) -> Outcome<PublicKey> {
    let plain = |text: &str| text.replace(':', "").to_ascii_lowercase();
    let fits = which.key.is_none_or(|key| key == agent.key)
        && which
            .fingerprint
            .as_ref()
            .is_none_or(|f| plain(f) == plain(&agent.key.fingerprint()));
    if fits {
        return Ok(agent.key);
    }
    Err(Failure::not_found(format!(
        "{} is an agent with another key, and no request has that one",
        agent.name
    ))
    .next(format!("see `fem-cli agent show {}`", agent.name)))
}

async fn deny(
    chosen: &Chosen,
    output: Output,
    name: Name,
    which: &Which,
    reason: Option<String>,
) -> Outcome {
    let admin = chosen.agent()?;
    let (_, pending) = fetch(&admin, &name).await?;
    let key = chosen_request(&pending, which, &name)?.key;
    let body = AgentDeny {
        name: name.clone(),
        key,
        reason,
    };
    match request::act(&admin, Kind::AdminAgentDeny, &body).await? {
        Ack::DeniedRequest => output.give(&json!({"denied": name, "key": key}), || {
            format!("Denied {name} with key {}.", key.fingerprint())
        }),
        other => Err(unexpected(&other)),
    }
}

async fn revoke(chosen: &Chosen, output: Output, name: Name, reason: Option<String>) -> Outcome {
    let body = AgentRevoke {
        name: name.clone(),
        reason,
    };
    match request::act(&chosen.agent()?, Kind::AdminAgentRevoke, &body).await? {
        Ack::Revoked { ids } => output.give(&json!({"revoked": name, "ids": ids}), || {
            format!(
                "Revoked {name}. Its key never registers again, and its next message is refused."
            )
        }),
        other => Err(unexpected(&other)),
    }
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
        }
    }

    fn which(fingerprint: Option<String>, key: Option<PublicKey>) -> Which {
        Which { fingerprint, key }
    }

    #[test]
    fn of_several_requests_none_is_picked_for_the_admin() {
        let name: Name = "fs".parse().unwrap();
        let two = [request(1), request(2)];
        let pick = |w: &Which| chosen_request(&two, w, &name).map(|r| r.key);
        assert!(pick(&which(None, None)).is_err());
        assert_eq!(
            pick(&which(Some(two[1].fingerprint.to_uppercase()), None)).unwrap(),
            two[1].key
        );
        assert_eq!(
            pick(&which(Some(two[0].fingerprint.replace(':', "")), None)).unwrap(),
            two[0].key
        );
        assert_eq!(pick(&which(None, Some(two[0].key))).unwrap(), two[0].key);
        assert!(pick(&which(Some(two[0].fingerprint[..20].into()), None)).is_err());
        let one = [request(1)];
        assert!(chosen_request(&one, &which(None, None), &name).is_ok());
        assert!(chosen_request(&one, &which(None, Some(two[1].key)), &name).is_err());
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
