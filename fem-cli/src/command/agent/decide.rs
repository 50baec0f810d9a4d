//! `agent approve`, `deny`, `revoke`, `quarantine`: what an admin decides about agents.

use proto_spec::identity::RESERVED;
use proto_spec::message::{
    Ack, AdminScope, AgentApprove, AgentDeny, AgentRecord, AgentRevoke, PendingRecord,
};
use proto_spec::{Kind, Name, NamePattern, Pattern, PublicKey};
use serde_json::json;

use super::{fetch, in_words};
use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::named_key::Which;
use crate::output::Output;
use crate::request::{self, unexpected};
use crate::struck;
use crate::time::{self, When};

/// Approves a request, with what you choose to grant; what was asked for is only shown
#[derive(Debug, clap::Args)]
#[command(after_help = "\
An admin holds admin acts as capabilities, and may grant what --may-grant covers, to --over.

Examples:
  fem-cli agent approve files --fingerprint 9f2c:… --capability 'report.*'
  fem-cli agent approve ops --capability 'admin.*' --may-grant 'build.*' --over 'build-*'")]
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
    /// Where an older agent is called, as `agent show` says: you approve the place with the key
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    #[command(flatten)]
    admin: Admin,
}

/// What makes an agent an admin.
#[derive(Debug, clap::Args)]
struct Admin {
    /// What it may grant to others; may be repeated
    #[arg(long, value_name = "PATTERN")]
    may_grant: Vec<Pattern>,
    /// On whom it may act; may be repeated [default: '*']
    #[arg(long, value_name = "NAMES", requires = "may_grant")]
    over: Vec<NamePattern>,
    /// Make it an admin without bounds: every capability, everything grantable, to everyone
    #[arg(long, conflicts_with_all = ["may_grant", "over", "capabilities"])]
    full_admin: bool,
}

impl Admin {
    /// The scope that was asked for, if any, and the capabilities that go with it.
    fn scope(self, capabilities: Vec<Pattern>) -> Outcome<(Option<AdminScope>, Vec<Pattern>)> {
        let everyone: NamePattern = "*"
            .parse()
            .map_err(|_| Failure::fault("every name is no name pattern"))?;
        if self.full_admin {
            let all = everything()?;
            let scope = AdminScope {
                grantable: all.clone(),
                names: vec![everyone],
            };
            return Ok((Some(scope), all));
        }
        let scope = (!self.may_grant.is_empty()).then(|| AdminScope {
            grantable: self.may_grant,
            names: match self.over.is_empty() {
                true => vec![everyone],
                false => self.over,
            },
        });
        Ok((scope, capabilities))
    }
}

/// Patterns that together cover every capability: `*` leaves out what belongs to the protocol.
pub(crate) fn everything() -> Outcome<Vec<Pattern>> {
    let reserved = RESERVED.iter().map(|segment| format!("{segment}.*"));
    let all = reserved.chain(["*".into()]).map(|text| text.parse());
    all.collect::<Result<_, _>>()
        .map_err(|_| Failure::fault("a reserved segment is no pattern"))
}

/// The one request that is meant. A key is never picked for the admin where there are several.
fn chosen_request<'a>(
    pending: &'a [PendingRecord],
    which: &Which,
    name: &Name,
) -> Outcome<&'a PendingRecord> {
    let meant = |request: &&PendingRecord| which.may_be(&request.key);
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
    let (key, endpoint) = match (&existing, pending.is_empty()) {
        (Some(agent), true) => {
            let on_record = agent.older.as_ref().and_then(|one| one.endpoint.clone());
            (known_key(agent, &args.which)?, args.endpoint.or(on_record))
        }
        _ => {
            let request = chosen_request(&pending, &args.which, &args.name)?;
            if args.endpoint.is_none() {
                check_no_endpoint(request)?;
            }
            (request.key, args.endpoint)
        }
    };
    let (scope, capabilities) = args.admin.scope(args.capabilities)?;
    let body = AgentApprove {
        name: args.name.clone(),
        key,
        capabilities,
        prefixes: (!args.prefixes.is_empty()).then_some(args.prefixes),
        overlap: args.overlap,
        expires: args.expires.map(|when| when.from(time::now())),
        admin: scope,
        endpoint,
    };
    let ack = request::grant(&admin, output, Kind::AdminAgentApprove, &body, None).await?;
    approved(ack, output)
}

/// A place is never picked for the admin: until it is approved, whoever has the key may ask with another.
fn check_no_endpoint(request: &PendingRecord) -> Outcome {
    let older = request.older.as_ref();
    match older.and_then(|one| one.endpoint.as_deref()) {
        None => Ok(()),
        Some(endpoint) => Err(Failure::usage(format!(
            "{} asks to be called at {endpoint}, and you did not say where it may be",
            request.name
        ))
        .next("if that is its place, approve it with --endpoint")),
    }
}

/// Says who was approved, by one admin or with a second.
pub(crate) fn approved(ack: Ack, output: Output) -> Outcome {
    match ack {
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
    if which.may_be(&agent.key) {
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

/// Whom to revoke.
#[derive(Debug, clap::Args)]
pub(super) struct Strike {
    /// Whom
    name: Name,
    /// For the record
    #[arg(long)]
    reason: Option<String>,
    /// Only say what it would strike
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn revoke(chosen: &Chosen, output: Output, args: Strike) -> Outcome {
    let done = "Its key never registers again, and its next message is refused.";
    strike(chosen, output, Kind::AdminAgentRevoke, args, done).await
}

pub(super) async fn quarantine(chosen: &Chosen, output: Output, args: Strike) -> Outcome {
    let done = "None of these keys registers again. What flowed from it is dead: whom it approved and \
                enrolled, what it issued, and the enrolment token by which it came in.";
    strike(chosen, output, Kind::AdminAgentQuarantine, args, done).await
}

async fn strike(chosen: &Chosen, output: Output, kind: Kind, args: Strike, done: &str) -> Outcome {
    let name = args.name.clone();
    let body = AgentRevoke {
        name: args.name,
        reason: args.reason,
        dry_run: args.dry_run,
    };
    match request::act(&chosen.agent()?, kind, &body).await? {
        Ack::Revoked(struck) => output.give(&json!({"revoked": name, "struck": struck}), || {
            format!("Struck {name}.\n{}\n{done}", struck::in_words(&struck))
        }),
        Ack::WouldRevoke(struck) => {
            output.give(&json!({"would_revoke": name, "struck": struck}), || {
                format!(
                    "Nothing was done. It would strike:\n{}",
                    struck::in_words(&struck)
                )
            })
        }
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
            older: None,
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
