//! `proposal`: acts that take two admins, and wait for the second.

use std::path::{Path, PathBuf};

use proto_spec::message::{
    Ack, AgentApprove, BearerIssue, BearerKeep, EnrolIssue, PeerAdd, PeerGrant, Proposal,
    ProposalRecord, TokenIssue,
};
use proto_spec::{Digest, Kind, Timestamp};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::args;
use crate::command::agent::decide;
use crate::command::token::issue;
use crate::command::{enrol, mcp, peer};
use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, Table, join};
use crate::request::{self, unexpected};
use crate::time;
use crate::token_file;
use crate::words;

/// Lists acts that wait for a second admin, and decides about them
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Which acts take two admins stands in the broker's configuration: [approval] two_admins.
Nobody agrees to a proposal of their own, and both admins must be entitled to the act.")]
pub(crate) struct Proposals {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// Lists acts that wait for a second admin
    List,
    Approve(Approve),
    /// Drops an act that waits; nothing becomes of it
    Deny {
        /// Which, as `proposal list` shows it
        #[arg(value_parser = args::id)]
        id: Digest,
    },
}

/// Agrees to another admin's act: it is done at once
#[derive(Debug, clap::Args)]
struct Approve {
    /// Which, as `proposal list` shows it
    #[arg(value_parser = args::id)]
    id: Digest,
    /// Where to write the token (0600), if the act hands one out
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) async fn run(args: Proposals, chosen: &Chosen, output: Output) -> Outcome {
    match args.act {
        Act::List => list(chosen, output).await,
        Act::Approve(args) => approve(args, chosen, output).await,
        Act::Deny { id } => deny(id, chosen, output).await,
    }
}

async fn list(chosen: &Chosen, output: Output) -> Outcome {
    let proposals = request::proposals(&chosen.agent()?).await?;
    output.list(&proposals, || {
        let mut table = Table::new(
            &["id", "by", "what", "waits until"],
            "Nothing waits for a second admin.",
        );
        for one in &proposals {
            table.row([
                &one.id.to_string(),
                one.by.as_str(),
                &Proposed::of(one).in_words(),
                &time::show(one.expires),
            ]);
        }
        table
    })
}

async fn approve(args: Approve, chosen: &Chosen, output: Output) -> Outcome {
    let admin = chosen.agent()?;
    let waiting = request::proposals(&admin).await?;
    let meant = waiting.iter().find(|one| one.id == args.id);
    let proposed = meant.map(Proposed::of).ok_or_else(|| {
        Failure::not_found(format!("no proposal {} waits", args.id))
            .next("see `fem-cli proposal list`; a proposal is done once, dropped, or expires")
    })?;
    check_out(&proposed, args.out.as_deref())?;
    let ack = request::act(
        &admin,
        Kind::AdminProposalApprove,
        &Proposal { id: args.id },
    )
    .await?;
    match (proposed, args.out) {
        (Proposed::Approve(_), _) => decide::approved(ack, output),
        (Proposed::Issue(body), out) => issue::given(ack, &body, out.as_deref(), output),
        (Proposed::Enrol(body), Some(out)) => enrol::given(ack, &body, &out, output),
        (Proposed::Keep(body), _) => mcp::kept(&ack, &body, output),
        (Proposed::Bearer(body), Some(out)) => mcp::token_given(ack, &body, &out, output),
        (Proposed::Peer(_), _) => peer::accepted(&ack, output),
        (Proposed::PeerGrant(body), _) => peer::grant::given(&ack, &body, admin.id().org(), output),
        _ => output.give(&ack, || "Done.".into()),
    }
}

/// A token is shown once, to the admin who agrees: without a file for it, it would be lost.
fn check_out(proposed: &Proposed, out: Option<&Path>) -> Outcome {
    match (proposed.hands_out(), out) {
        (true, None) => Err(Failure::usage(
            "this hands out a token, and the broker shows it once, to you",
        )
        .next("say where to write it: --out FILE")),
        (false, Some(_)) => Err(Failure::usage(
            "--out is for a token, and this hands out none",
        )),
        (_, Some(out)) => token_file::check_is_new(out),
        (_, None) => Ok(()),
    }
}

async fn deny(id: Digest, chosen: &Chosen, output: Output) -> Outcome {
    let body = Proposal { id };
    match request::act(&chosen.agent()?, Kind::AdminProposalDeny, &body).await? {
        Ack::DeniedRequest => output.give(&json!({"denied": id}), || format!("Dropped {id}.")),
        other => Err(unexpected(&other)),
    }
}

/// An act that waits, read as what it is.
enum Proposed {
    Approve(Box<AgentApprove>),
    Issue(TokenIssue),
    Enrol(EnrolIssue),
    Keep(BearerKeep),
    Bearer(BearerIssue),
    /// As the second admin reads it.
    Peer(String),
    PeerGrant(PeerGrant),
    /// One that this command does not know, as it was sent.
    Other(String),
}

impl Proposed {
    fn of(record: &ProposalRecord) -> Self {
        fn read<T: DeserializeOwned>(record: &ProposalRecord) -> Option<T> {
            serde_json::from_value(record.body.clone()).ok()
        }
        let is = |kind: Kind| record.act == kind.as_str();
        let known = if is(Kind::AdminAgentApprove) {
            read(record).map(|body| Self::Approve(Box::new(body)))
        } else if is(Kind::AdminTokenIssue) {
            read(record).map(Self::Issue)
        } else if is(Kind::AdminEnrolIssue) {
            read(record).map(Self::Enrol)
        } else if is(Kind::AdminBearerKeep) {
            read(record).map(Self::Keep)
        } else if is(Kind::AdminBearerIssue) {
            read(record).map(Self::Bearer)
        } else if is(Kind::AdminPeerAdd) {
            let body: Option<PeerAdd> = read(record);
            body.as_ref().and_then(peer::in_short).map(Self::Peer)
        } else if is(Kind::AdminPeerGrant) {
            read(record).map(Self::PeerGrant)
        } else {
            None
        };
        known.unwrap_or_else(|| Self::Other(format!("{} {}", record.act, record.body)))
    }

    fn hands_out(&self) -> bool {
        match self {
            Self::Issue(body) => !body.record,
            Self::Enrol(_) | Self::Bearer(_) => true,
            _ => false,
        }
    }

    /// All that the second admin agrees to, on one line.
    fn in_words(&self) -> String {
        match self {
            Self::Approve(body) => approval(body),
            Self::Issue(body) => grant(body),
            Self::Enrol(body) => enrolment(body),
            Self::Keep(body) => keeping(body),
            Self::Bearer(body) => bearer(body),
            Self::PeerGrant(body) => peer_grant(body),
            Self::Peer(text) | Self::Other(text) => text.clone(),
        }
    }
}

fn approval(body: &AgentApprove) -> String {
    let mut parts = vec![
        format!("approve {} with key {}", body.name, body.key.fingerprint()),
        format!("may do {}", join(&body.capabilities)),
    ];
    if let Some(prefixes) = &body.prefixes {
        parts.push(format!("may offer {}", join(prefixes)));
    }
    if let Some(scope) = &body.admin {
        let (grantable, names) = (join(&scope.grantable), join(&scope.names));
        parts.push(format!("an admin who may grant {grantable} to {names}"));
    }
    parts.extend(body.endpoint.iter().map(|at| format!("called at {at}")));
    parts.extend(until(body.expires));
    parts.join("; ")
}

fn grant(body: &TokenIssue) -> String {
    let how = match body.record {
        true => "on record",
        false => "handed out as a token",
    };
    let mut parts = vec![format!(
        "{} may do {}, {how}",
        body.agent,
        join(&body.capabilities)
    )];
    let conditions = words::conditions_of_text(&body.checks);
    parts.extend(conditions.iter().map(|one| format!("only if {one}")));
    parts.extend(body.calls.map(|n| format!("{n} calls at most")));
    parts.extend(body.sandbox.iter().map(|kind| format!("in sandbox {kind}")));
    parts.extend(body.not_before.map(|at| format!("from {}", time::show(at))));
    parts.extend(until(body.expires));
    parts.join("; ")
}

fn keeping(body: &BearerKeep) -> String {
    let mut parts = vec![format!(
        "{} may do {}, by whoever shows a bearer token for it",
        body.name,
        join(&body.capabilities)
    )];
    parts.extend(until(body.expires));
    parts.join("; ")
}

fn bearer(body: &BearerIssue) -> String {
    let what = join(&body.capabilities);
    let mut parts = vec![format!("a bearer token lets {} do {what}", body.agent)];
    let conditions = words::conditions_of_text(&body.checks);
    parts.extend(conditions.iter().map(|one| format!("only if {one}")));
    parts.extend(until(body.expires));
    parts.join("; ")
}

fn enrolment(body: &EnrolIssue) -> String {
    let mut parts = vec![
        format!("let {} enrol by themselves", body.name),
        format!("within {}", join(&body.ceiling)),
        format!("{} uses", body.uses.unwrap_or(1)),
    ];
    if !body.prefixes.is_empty() {
        parts.push(format!("may offer {}", join(&body.prefixes)));
    }
    parts.extend(until(body.expires));
    parts.join("; ")
}

fn peer_grant(body: &PeerGrant) -> String {
    let parts = std::iter::once(peer::grant::in_words(body));
    parts
        .chain(until(body.expires))
        .collect::<Vec<_>>()
        .join("; ")
}

fn until(expires: Option<Timestamp>) -> Option<String> {
    expires.map(|at| format!("until {}", time::show(at)))
}
