//! `peer accept`: takes another organisation as a peer, by the file that its admin handed over.

use std::path::PathBuf;

use proto_spec::Kind;
use proto_spec::message::{Ack, PeerAdd, PeerDescriptor};
use proto_spec::peering::Descriptor;
use serde_json::json;

use super::in_words;
use crate::connect::Chosen;
use crate::failure::{Exit, Failure, Outcome};
use crate::files::{self, quoted};
use crate::named_key::Which;
use crate::output::{Output, join};
use crate::request::{self, unexpected};
use crate::time;

/// Takes another organisation as a peer, once you compared its fingerprint
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without a fingerprint it only shows what the file says. Ask the other admin, over another channel than
the one that brought the file, what `fem-cli peer key` prints there.
Your broker dials none but the endpoints that you accept here; one side that dials is enough.

Examples:
  fem-cli peer accept globex.peer
  fem-cli peer accept globex.peer --fingerprint 9f2c:…
  fem-cli peer accept globex.peer --fingerprint 9f2c:… --endpoint broker.globex.example:7443")]
pub(super) struct Accept {
    /// What the other organisation's `peer invite` wrote; - for standard input
    file: PathBuf,
    #[command(flatten)]
    which: Which,
    /// Dial this one of its endpoints; may be repeated [default: all that the file names]
    #[arg(long = "endpoint", value_name = "HOST:PORT")]
    endpoints: Vec<String>,
    /// Dial none of them: wait until it dials
    #[arg(long, conflicts_with = "endpoints")]
    no_endpoint: bool,
}

pub(super) async fn run(args: Accept, chosen: &Chosen, output: Output) -> Outcome {
    let file = quoted(&args.file);
    let descriptor = Descriptor::read(&files::read_text(&args.file)?).map_err(|why| {
        Failure::fault(format!("{file} is not what `peer invite` writes: {why}"))
            .next("have it sent again, as a file")
    })?;
    let asking = descriptor.body();
    if !args.which.is_named() {
        return unconfirmed(asking, &file, output);
    }
    if !args.which.may_be(&asking.key) {
        return Err(Failure::not_found(format!(
            "{file} is of another key: {}",
            asking.key.fingerprint()
        ))
        .next("do not accept what you cannot compare; ask the other admin"));
    }
    let endpoints = match (args.no_endpoint, args.endpoints.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => asking.endpoints.clone(),
        (false, false) => args.endpoints,
    };
    let body = PeerAdd {
        descriptor: descriptor.text().into(),
        key: asking.key,
        endpoints,
    };
    let admin = chosen.agent()?;
    let ack = request::grant(&admin, output, Kind::AdminPeerAdd, &body, None).await?;
    accepted(&ack, output)
}

fn unconfirmed(asking: &PeerDescriptor, file: &str, output: Output) -> Outcome {
    let value = json!({
        "status": "unconfirmed", "peer": asking, "fingerprint": asking.key.fingerprint(),
    });
    output.give(&value, || {
        format!(
            "{}\nNothing was done. If {org}'s admin tells you this fingerprint, over another channel than the\n\
             one that brought the file (`fem-cli peer key` prints it there):\n  \
             fem-cli peer accept {file} --fingerprint HEX",
            said(asking),
            org = asking.org,
        )
    })?;
    Err(Failure::told(Exit::Pending))
}

/// Who it is, how it is dialled, and what it would like.
pub(super) fn said(peer: &PeerDescriptor) -> String {
    format!(
        "peer         {}\nkey          {}\nfingerprint  {}\nendpoints    {}\nasks for     {}\naccept by    {}\n",
        peer.org,
        peer.key,
        peer.key.fingerprint(),
        join(&peer.endpoints),
        join(&peer.asks),
        time::show_from(peer.expires, time::now()),
    )
}

/// Says who was accepted, by one admin or with a second.
pub(crate) fn accepted(ack: &Ack, output: Output) -> Outcome {
    let peer = match ack {
        Ack::Peers { peers } => peers.first(),
        _ => None,
    };
    let peer = peer.ok_or_else(|| unexpected(ack))?;
    output.give(peer, || {
        let org = &peer.org;
        let so_far = match peer.grants.is_empty() {
            true => " Nothing is permitted yet.",
            false => "",
        };
        format!(
            "Accepted {org}.{so_far}\n\n{}\n\
             See whether the brokers connect:  fem-cli peer doctor {org}\n\
             Let its agents call tools here:   fem-cli peer grant {org} PATTERN\n\
             Let an agent of yours call its:   fem-cli token issue NAME --capability 'peer.{org}.PATTERN'",
            in_words(peer)
        )
    })
}

/// What a second admin agrees to, on one line; nothing where the act cannot be read.
pub(crate) fn in_short(body: &PeerAdd) -> Option<String> {
    let descriptor = Descriptor::read(&body.descriptor).ok()?;
    let asking = descriptor.body();
    Some(format!(
        "take {} with key {} as a peer; dial {}; it asks for {}",
        asking.org,
        body.key.fingerprint(),
        join(&body.endpoints),
        join(&asking.asks)
    ))
}
