//! `agent approve`, `deny`, `revoke`: what an admin decides about agents.

use proto_spec::message::{
    Ack, AgentApprove, AgentDeny, AgentRecord, AgentRevoke, PendingRecord, Struck,
};
use proto_spec::{Kind, Name, Pattern, PublicKey};
use serde_json::json;

use super::{fetch, in_words};
use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::output::Output;
use crate::request::{self, unexpected};
use crate::time::{self, When};

/// Approves a request, with what you choose to grant; what was asked for is only shown
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  fem-cli agent approve files --fingerprint 9f2c:… --capability 'report.*'")]
pub(super) struct Approve {
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
pub(super) struct Which {
    /// The key's fingerprint, as `agent register` printed it for the developer
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
    /// The key itself: base64 or did:key
    #[arg(long)]
    key: Option<PublicKey>,
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

pub(super) async fn approve(chosen: &Chosen, output: Output, args: Approve) -> Outcome {
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

pub(super) async fn deny(
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

pub(super) async fn revoke(
    chosen: &Chosen,
    output: Output,
    name: Name,
    reason: Option<String>,
) -> Outcome {
    let body = AgentRevoke {
        name: name.clone(),
        reason,
        dry_run: false,
    };
    match request::act(&chosen.agent()?, Kind::AdminAgentRevoke, &body).await? {
        Ack::Revoked(Struck { ids, .. }) => output.give(&json!({"revoked": name, "ids": ids}), || {
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
}
