//! `peer`: other organisations whose agents and ours may call each other's tools.

mod accept;
mod doctor;
pub(super) mod grant;
mod invite;

use proto_spec::message::{Ack, PeerName, PeerRecord};
use proto_spec::{Kind, Org};
use serde::Serialize;
use serde_json::json;

use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, Table, escape, join};
use crate::request::{self, unexpected};
use crate::time;
use crate::words;

pub(super) use accept::{accepted, in_short};

/// Peers: other organisations whose agents may call tools here, and the other way round
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Two organisations become peers when the admins of both accept the other's file:
  fem-cli peer invite --out acme.peer      at acme; hand the file to globex's admin, in any way
  fem-cli peer accept acme.peer            at globex, with the fingerprint that acme's admin tells
and the same the other way round. Being a peer permits nothing by itself: whoever owns a tool grants
(`peer grant`), and the caller's own admin lets an agent use it (`token issue`).")]
pub(crate) struct Peer {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    Invite(invite::Invite),
    /// Prints the fingerprint of this organisation's broker key: for the other admin, who compares it
    Key,
    Accept(accept::Accept),
    /// Lists peers, whether their links are up, and what they are granted
    List,
    /// Shows one peer, with its grants
    Show(Which),
    Grant(grant::Grant),
    /// Looks for what is wrong between here and a peer, and says what to do about it
    #[command(after_help = "\
The peer's endpoints are looked at from this machine, which need not be the broker's.")]
    Doctor(Which),
    /// Takes a peer's link down, and keeps it down; its grants stay
    Pause(Which),
    /// Lets a paused peer's link come up again
    Resume(Which),
    /// Ends it: the link is closed, and what the peer was granted here is dead
    Remove(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Which organisation
    org: Org,
}

pub(crate) async fn run(args: Peer, chosen: &Chosen, output: Output) -> Outcome {
    match args.act {
        Act::Invite(args) => invite::run(args, chosen, output).await,
        Act::Key => key(chosen, output),
        Act::Accept(args) => accept::run(args, chosen, output).await,
        Act::List => list(chosen, output).await,
        Act::Show(which) => show(chosen, output, &which.org).await,
        Act::Grant(args) => grant::run(args, chosen, output).await,
        Act::Doctor(which) => doctor::run(chosen, output, &which.org).await,
        Act::Pause(which) => pause(chosen, output, which.org).await,
        Act::Resume(which) => resume(chosen, output, which.org).await,
        Act::Remove(which) => remove(chosen, output, which.org).await,
    }
}

/// Needs no broker: the context has the key.
fn key(chosen: &Chosen, output: Output) -> Outcome {
    let context = chosen.context()?;
    let key = context.broker_key;
    let value = json!({"org": context.org()?, "key": key, "fingerprint": key.fingerprint()});
    output.give(&value, || key.fingerprint())
}

async fn list(chosen: &Chosen, output: Output) -> Outcome {
    let peers = all(&chosen.agent()?).await?;
    output.list(&peers, || {
        let mut table = Table::new(
            &["peer", "link", "may do here", "their tools", "fingerprint"],
            "No peers. Accept another organisation's file: fem-cli peer accept FILE",
        );
        for peer in &peers {
            table.row([
                peer.org.as_str(),
                &peer.link,
                &granted(peer),
                &peer.tools.to_string(),
                &peer.fingerprint,
            ]);
        }
        table
    })
}

/// All that a peer's agents may do here by what is in force.
fn granted(peer: &PeerRecord) -> String {
    let now = time::now();
    let grants = peer.grants.iter();
    let grants = grants.filter(|grant| !grant.revoked && grant.expires > now);
    let patterns: Vec<_> = grants.flat_map(|grant| &grant.capabilities).collect();
    join(&patterns)
}

async fn show(chosen: &Chosen, output: Output, org: &Org) -> Outcome {
    let peer = find(&chosen.agent()?, org).await?;
    output.give(&peer, || in_words(&peer))
}

async fn pause(chosen: &Chosen, output: Output, org: Org) -> Outcome {
    let peer = one(&chosen.agent()?, Kind::AdminPeerPause, &PeerName { org }).await?;
    output.give(&peer, || {
        let org = &peer.org;
        format!("Paused {org}: no call crosses. Its grants stay.\nGo on: fem-cli peer resume {org}")
    })
}

async fn resume(chosen: &Chosen, output: Output, org: Org) -> Outcome {
    let peer = one(&chosen.agent()?, Kind::AdminPeerResume, &PeerName { org }).await?;
    output.give(&peer, || {
        let org = &peer.org;
        format!("The link to {org} may come up again.\nLook: fem-cli peer show {org}")
    })
}

async fn remove(chosen: &Chosen, output: Output, org: Org) -> Outcome {
    let body = PeerName { org: org.clone() };
    peers(&chosen.agent()?, Kind::AdminPeerRemove, &body).await?;
    output.give(&json!({"removed": org}), || {
        format!(
            "Removed {org}: its link is closed, and what it was granted here is dead.\n\
             What your agents hold for it (peer.{org}.…) stays on record, and leads nowhere."
        )
    })
}

/// Every peer.
async fn all(admin: &agent_sdk::Agent) -> Outcome<Vec<PeerRecord>> {
    peers(admin, Kind::AdminPeerList, &json!({})).await
}

async fn find(admin: &agent_sdk::Agent, org: &Org) -> Outcome<PeerRecord> {
    let found = all(admin).await?.into_iter().find(|peer| peer.org == *org);
    found.ok_or_else(|| {
        Failure::not_found(format!("{org} is no peer")).next("see `fem-cli peer list`")
    })
}

/// The peer that an act was about, as it is after it.
async fn one(admin: &agent_sdk::Agent, kind: Kind, body: &PeerName) -> Outcome<PeerRecord> {
    let found = peers(admin, kind, body).await?.into_iter().next();
    found.ok_or_else(|| Failure::fault("the broker does not say what became of the peer"))
}

async fn peers(
    admin: &agent_sdk::Agent,
    kind: Kind,
    body: &impl Serialize,
) -> Outcome<Vec<PeerRecord>> {
    match request::act(admin, kind, body).await? {
        Ack::Peers { peers } => Ok(peers),
        other => Err(unexpected(&other)),
    }
}

fn in_words(peer: &PeerRecord) -> String {
    let trouble = peer.trouble.as_ref();
    let trouble = trouble.map_or(String::new(), |why| format!(" ({})", escape(why)));
    format!(
        "peer         {}\nkey          {}\nfingerprint  {}\ndialled at   {}\nlink         {}{trouble}\n\
         asked for    {}\ntheir tools  {}\nsince        {}\n\n{}",
        peer.org,
        peer.key,
        escape(&peer.fingerprint),
        join(&peer.endpoints),
        escape(&peer.link),
        join(&peer.asks),
        peer.tools,
        time::show_from(peer.since, time::now()),
        grant_table(peer),
    )
}

fn grant_table(peer: &PeerRecord) -> Table {
    let mut table = Table::new(
        &["granted here", "only if", "until", "by", "id"],
        "Nothing is granted to it here. Grant: fem-cli peer grant ORG PATTERN",
    );
    for grant in &peer.grants {
        let issuer = grant.issuer.as_ref();
        table.row([
            &join(&grant.capabilities),
            &words::conditions_of_text(&grant.checks).join("; "),
            &time::show(grant.expires),
            &issuer.map_or_else(String::new, ToString::to_string),
            &grant.id.to_string(),
        ]);
    }
    table
}
