//! One link: both ends prove who they are on this very connection, then each tells and hears.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use proto_spec::limits::CHALLENGE_VALIDITY;
use proto_spec::message::{LinkAttach, LinkRole};
use proto_spec::peering::{EXPORTER_LABEL, Expected};
use proto_spec::{Audience, Digest, Kind, Org, PublicKey};
use rustls::ConnectionCommon;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::{client, server};
use tokio_tungstenite::WebSocketStream;

use super::hearing::Attached;
use super::telling::{TICK, tell};
use crate::calls::Place;
use crate::conversation::{Ended, Stream, close, converse, next, send, turn_away};
use crate::phase::Phase;
use crate::pipeline::Core;
use crate::registrar::Rekey;
use crate::state::links::Link;
use crate::state::outbox::Outbox;
use crate::state::peers::Peer;
use crate::tls::channel_of;

/// In which header of its upgrade request a broker says whose it is.
pub const ORG_HEADER: &str = "fem-org";

/// So many heads in a row may not come: then a link is not one any more, whatever TCP believes of it.
const MISSED_MAX: u32 = 5;

/// What tells this connection from every other, and by which TLS keys its ends are known.
#[derive(Debug, Clone, Copy)]
pub struct Binding {
    /// Our end.
    role: LinkRole,
    /// The TLS exporter value.
    exporter: Digest,
    /// The public key of our certificate.
    ours: Digest,
    /// The public key of theirs.
    theirs: Digest,
}

impl Binding {
    /// Of a connection that we took, with the certificate whose key is `ours`.
    ///
    /// # Errors
    ///
    /// When the client showed no certificate.
    pub fn of_server(stream: &server::TlsStream<TcpStream>, ours: Digest) -> anyhow::Result<Self> {
        Self::of(stream.get_ref().1, LinkRole::Listens, ours)
    }

    /// Of a connection that we opened, with the certificate whose key is `ours`.
    ///
    /// # Errors
    ///
    /// When the server showed no certificate.
    pub fn of_client(stream: &client::TlsStream<TcpStream>, ours: Digest) -> anyhow::Result<Self> {
        Self::of(stream.get_ref().1, LinkRole::Dials, ours)
    }

    fn of<Side>(
        tls: &ConnectionCommon<Side>,
        role: LinkRole,
        ours: Digest,
    ) -> anyhow::Result<Self> {
        let certificates: Option<&[CertificateDer<'_>]> = tls.peer_certificates();
        let leaf = certificates.and_then(<[_]>::first);
        let theirs = channel_of(leaf.context("it showed no certificate")?)?;
        let exporter = tls.export_keying_material([0; 32], EXPORTER_LABEL, None)?;
        Ok(Self {
            role,
            exporter: Digest(exporter),
            ours,
            theirs,
        })
    }
}

/// Attaches a connection as the link of `peer`, and serves it until it ends.
///
/// # Errors
///
/// Why it was not attached.
pub async fn run<S: Stream>(
    core: &Arc<Core>,
    mut socket: WebSocketStream<S>,
    peer: &Peer,
    binding: Binding,
    phase: watch::Receiver<Phase>,
) -> anyhow::Result<Ended> {
    let greeting = timeout(CHALLENGE_VALIDITY, greet(core, &mut socket, peer, &binding));
    let attached = match greeting.await.unwrap_or_else(|_| bail_late()) {
        Ok(key) => settle(core, peer, key)
            .await
            .and_then(|()| attach(core, &peer.org, key, &binding)),
        Err(why) => Err(why),
    };
    let (link, queue) = match attached {
        Ok(attached) => attached,
        Err(why) => {
            tracing::info!(peer = %peer.org, why = format!("{why:#}"), "no link");
            turn_away(&mut socket).await;
            return Err(why);
        }
    };
    tracing::info!(peer = %peer.org, link = link.id(), role = ?binding.role, "linked");
    let hears = Attached {
        core,
        link: Arc::clone(&link),
        heard: AtomicBool::new(true),
    };
    let why = tokio::select! {
        why = converse(&mut socket, &hears, queue, phase) => why,
        why = tell(core, &link) => why,
        why = silence(&hears.heard) => why,
    };
    core.state.links.detach(&link);
    Place {
        core,
        now: core.clock.now(),
    }
    .connection_gone(&link);
    tracing::info!(peer = %peer.org, link = link.id(), why = why.says(), "unlinked");
    close(&mut socket, why).await;
    Ok(why)
}

/// Ends once nothing has come for as long as five heads take. A connection whose network is gone says
/// nothing about it, and one that is being written to is not read.
async fn silence(heard: &AtomicBool) -> Ended {
    let mut missed = 0;
    while missed < MISSED_MAX {
        sleep(TICK).await;
        missed = match heard.swap(false, Ordering::Relaxed) {
            true => 0,
            false => missed + 1,
        };
    }
    Ended::Silent
}

fn bail_late() -> anyhow::Result<PublicKey> {
    bail!("it did not say who it is in time")
}

/// Both ends say who they are. The one that listens begins: what it says is no secret, and whoever dials
/// must not be asked who it is by somebody else than its peer.
async fn greet<S: Stream>(
    core: &Core,
    socket: &mut WebSocketStream<S>,
    peer: &Peer,
    binding: &Binding,
) -> anyhow::Result<PublicKey> {
    let ours = said(core, peer, binding);
    if binding.role == LinkRole::Listens {
        send(socket, ours.clone()).await.map_err(gone)?;
    }
    let theirs = next(socket).await.context("it went away")?;
    let expected = Expected {
        org: &peer.org,
        key: &peer.key,
        role: binding.role.other(),
        exporter: &binding.exporter,
        channel: &binding.theirs,
    };
    let greeted = expected
        .check(theirs, &core.judge(core.clock.now()))
        .context("it does not prove to be that peer")?;
    if binding.role == LinkRole::Dials {
        send(socket, ours).await.map_err(gone)?;
    }
    Ok(greeted.key)
}

/// Puts on record that a peer's broker goes on under another key: what it was granted is issued to that one.
async fn settle(core: &Core, peer: &Peer, key: PublicKey) -> anyhow::Result<()> {
    if key != peer.key {
        let rekey = Rekey {
            org: peer.org.clone(),
            from: peer.key,
            to: key,
        };
        core.registrar.rekey(rekey).await?;
        tracing::warn!(peer = %peer.org, key = %key.fingerprint(), "a peer's broker goes on under another key");
    }
    Ok(())
}

fn gone(why: Ended) -> anyhow::Error {
    anyhow::anyhow!(why.says())
}

fn said(core: &Core, peer: &Peer, binding: &Binding) -> Bytes {
    let now = core.clock.now();
    let body = LinkAttach {
        role: binding.role,
        exporter: binding.exporter,
        descriptor: core.descriptor(binding.ours, Vec::new(), now),
        successions: core.state.broker_keys.successions(),
    };
    let to = Audience::Broker(peer.org.clone());
    core.voice
        .say(Kind::LinkAttach, Some(&to), None, &body, now)
        .bytes
}

type Queue = mpsc::Receiver<Bytes>;

fn attach(
    core: &Core,
    org: &Org,
    key: PublicKey,
    binding: &Binding,
) -> anyhow::Result<(Arc<Link>, Queue)> {
    let limits = &core.config.limits;
    let (queue, waiting) = mpsc::channel(limits.calls_per_peer_max.max(limits.outbox_max));
    let outbox = Outbox::new(queue, limits.outbox_bytes_max);
    let role = binding.role.other();
    let link = Link::new(outbox, org.clone(), key, role, core.clock.now());
    let link = Arc::new(link);
    core.state
        .links
        .attach(&core.state.org, Arc::clone(&link))?;
    // An admin may have paused or removed it meanwhile; whoever does looks for links after the change.
    let still = core.state.peers.find(org);
    if still.is_none_or(|still| still.is_paused || still.key != key) {
        core.state.links.detach(&link);
        bail!("it is no peer any more, or paused");
    }
    Ok((link, waiting))
}
