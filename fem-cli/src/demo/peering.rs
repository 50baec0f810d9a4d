//! How the two organisations of the demo become peers, and what each lets the other do.

use std::time::Duration;

use proto_spec::message::{Ack, PeerAdd, PeerGrant, PeerRecord, TokenIssue};
use proto_spec::peering::Descriptor;
use proto_spec::{Digest, Kind};
use serde_json::json;

use super::house::House;
use super::stage::{ANALYST, FILES, conditions, name};
use crate::failure::{Failure, Outcome};
use crate::request::unexpected;
use crate::time;

/// How long two brokers may take to find each other. Only broken ones take so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The admin of `of` has a file signed that says who it is.
pub(super) async fn invite(of: &House) -> Outcome<Descriptor> {
    match of.act(Kind::AdminPeerInvite, &json!({})).await? {
        Ack::PeerInvited { descriptor } => {
            Descriptor::read(&descriptor).map_err(|why| Failure::fault(why.to_string()))
        }
        other => Err(unexpected(&other)),
    }
}

/// The admin of `at` takes the organisation of a file as a peer, and lets its broker dial it or not.
pub(super) async fn accept(at: &House, file: &Descriptor, dials: bool) -> Outcome {
    let said = file.body();
    let endpoints = match dials {
        true => said.endpoints.clone(),
        false => Vec::new(),
    };
    let body = PeerAdd {
        descriptor: file.text().into(),
        key: said.key,
        endpoints,
    };
    match at.act(Kind::AdminPeerAdd, &body).await? {
        Ack::Peers { .. } => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// Asks a broker about its one peer until it is as it has to be.
pub(super) async fn until(at: &House, is: impl Fn(&PeerRecord) -> bool) -> Outcome {
    let asking = async {
        loop {
            match at.act(Kind::AdminPeerList, &json!({})).await? {
                Ack::Peers { peers } if peers.iter().any(&is) => return Ok(()),
                Ack::Peers { .. } => {}
                other => return Err(unexpected(&other)),
            }
        }
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(done) => done,
        Err(_) => Err(Failure::fault("the two brokers do not find each other")),
    }
}

/// The owner of the files lets `to`'s agents read them within `bounds`.
pub(super) async fn grant(owner: &House, to: &House, bounds: &str) -> Outcome<Digest> {
    let body = PeerGrant {
        org: name(to.org)?,
        capabilities: vec![name("files.read")?],
        agents: vec![name(FILES)?],
        checks: conditions(bounds)?,
        depth: 0,
        expires: Some(time::now().later(Duration::from_secs(3_600))),
    };
    Ok(owner.grant(Kind::AdminPeerGrant, &body).await?.0)
}

/// The analyst's own admin lets it use what `owner` grants.
pub(super) async fn permit(at: &House, owner: &House) -> Outcome {
    let body = TokenIssue {
        calls: None,
        agent: name(ANALYST)?,
        capabilities: vec![name(&format!("peer.{}.files.read", owner.org))?],
        expires: None,
        not_before: None,
        checks: Vec::new(),
        sandbox: None,
        record: true,
    };
    at.grant(Kind::AdminTokenIssue, &body).await.map(|_| ())
}
