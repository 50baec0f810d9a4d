//! One link: both ends prove who they are on this very connection, then each tells and hears.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use proto_spec::limits::CHALLENGE_VALIDITY;
use proto_spec::message::{LinkAttach, LinkRole};
use proto_spec::peering::{EXPORTER_LABEL, Expected, Greeted};
use proto_spec::{Audience, Digest, Kind, PublicKey};
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
use crate::phase::{Phase, reached};
use crate::pipeline::Core;
use crate::registrar::Rekey;
use crate::state::links::{Bounds, Link};
use crate::state::outbox::{Outbox, Queued};
use crate::state::peers::Peer;
use crate::threshold::Threshold;
use crate::tls::channel_of;

/// In which header of its upgrade request a broker says whose it is.
pub const ORG_HEADER: &str = "fem-org";

/// So many heads in a row may not come: then a link is not one any more, whatever TCP believes of it.
const MISSED_MAX: u32 = 5;

/// What tells this connection from every other, and by which TLS keys its ends are known.
#[derive(Debug, Clone, Copy)]
pub struct Binding {
    /// Our end.
    pub role: LinkRole,
    /// The TLS exporter value.
    pub exporter: Digest,
    /// The public key of our certificate.
    pub ours: Digest,
    /// The public key of theirs.
    pub theirs: Digest,
}

impl Binding {
    /// Of a connection that we took, with the certificate whose key is `ours`.
    ///
    /// # Errors
    ///
    /// When the client showed no certificate.
    pub fn of_server<S>(stream: &server::TlsStream<S>, ours: Digest) -> anyhow::Result<Self> {
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
    mut socket: WebSocketStream<Threshold<S>>,
    peer: &Peer,
    binding: Binding,
    mut phase: watch::Receiver<Phase>,
) -> anyhow::Result<Ended> {
    let greeting = Greeting {
        core,
        peer,
        binding,
    };
    let greeted = tokio::select! {
        greeted = timeout(CHALLENGE_VALIDITY, greet(&greeting, &mut socket)) => {
            greeted.unwrap_or_else(|_| bail_late())
        }
        () = reached(Phase::Stopping, &mut phase) => Err(anyhow!("the broker stops")),
    };
    let attached = match greeted {
        Ok(greeted) => greeting.attach(&greeted).await,
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
    socket.get_mut().open();
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
    gone(core, &link);
    tracing::info!(peer = %peer.org, link = link.id(), why = why.says(), "unlinked");
    close(&mut socket, why).await;
    Ok(why)
}

/// Takes a link out whose connection has ended, with the calls that hang on it.
pub fn gone(core: &Core, link: &Link) {
    core.state.links.detach(link);
    let now = core.clock.now();
    Place { core, now }.connection_gone(link);
}

/// How long nothing has come, in heads that the other end should have said.
#[derive(Debug, Default)]
pub struct Silence {
    missed: u32,
}

impl Silence {
    /// Looks once in a [`TICK`]: whether the link is lost. A connection whose network is gone says nothing
    /// about it, and one that is being written to is not read.
    pub fn is_too_long(&mut self, was_heard: bool) -> bool {
        self.missed = match was_heard {
            true => 0,
            false => self.missed + 1,
        };
        self.missed >= MISSED_MAX
    }
}

async fn silence(heard: &AtomicBool) -> Ended {
    let mut silence = Silence::default();
    loop {
        sleep(TICK).await;
        if silence.is_too_long(heard.swap(false, Ordering::Relaxed)) {
            return Ended::Silent;
        }
    }
}

fn bail_late() -> anyhow::Result<Greeted> {
    bail!("it did not say who it is in time")
}

/// Both ends say who they are. The one that listens begins: what it says is no secret, and whoever dials
/// must not be asked who it is by somebody else than its peer.
async fn greet<S: Stream>(
    greeting: &Greeting<'_>,
    socket: &mut WebSocketStream<S>,
) -> anyhow::Result<Greeted> {
    let went = |why: Ended| anyhow::anyhow!(why.says());
    let ours = greeting.ours();
    if greeting.binding.role == LinkRole::Listens {
        send(socket, ours.clone()).await.map_err(went)?;
    }
    let theirs = next(socket).await.context("it went away")?;
    let greeted = greeting.believe(theirs)?;
    if greeting.binding.role == LinkRole::Dials {
        send(socket, ours).await.map_err(went)?;
    }
    Ok(greeted)
}

/// What waits for the other end of a link.
pub type Queue = mpsc::Receiver<Queued>;

/// A connection that is to become the link of a peer.
#[derive(Debug)]
pub struct Greeting<'a> {
    /// Whose broker greets.
    pub core: &'a Core,
    /// Who has to be at the other end.
    pub peer: &'a Peer,
    /// On which connection.
    pub binding: Binding,
}

impl Greeting<'_> {
    /// What we say about ourselves.
    #[must_use]
    pub fn ours(&self) -> Bytes {
        let Self {
            core,
            peer,
            binding,
        } = self;
        let now = core.clock.now();
        let body = LinkAttach {
            role: binding.role,
            exporter: binding.exporter,
            descriptor: core.descriptor(binding.ours, Vec::new(), now),
            successions: core.state.broker_keys.successions(),
            envelope_bytes_max: core.config.limits.envelope_bytes_max as u64,
        };
        let to = Audience::Broker(peer.org.clone());
        core.voice
            .say(Kind::LinkAttach, Some(&to), None, &body, now)
            .bytes
    }

    /// The peer's broker, by what it says about itself.
    ///
    /// # Errors
    ///
    /// Where that does not prove it to be our peer, on this very connection.
    pub fn believe(&self, theirs: Bytes) -> anyhow::Result<Greeted> {
        let expected = Expected {
            org: &self.peer.org,
            key: &self.peer.key,
            role: self.binding.role.other(),
            exporter: &self.binding.exporter,
            channel: &self.binding.theirs,
        };
        let judge = self.core.judge(self.core.clock.now());
        expected
            .check(theirs, &judge)
            .context("it does not prove to be that peer")
    }

    /// Takes the connection as the link of the peer that was greeted.
    ///
    /// # Errors
    ///
    /// Where another link is the one to keep, the peer was paused or removed meanwhile, or its next key
    /// cannot be put on record.
    pub async fn attach(&self, greeted: &Greeted) -> anyhow::Result<(Arc<Link>, Queue)> {
        let key = greeted.key;
        self.settle(key).await?;
        let Self {
            core,
            peer,
            binding,
        } = self;
        let limits = &core.config.limits;
        let messages_max = limits.calls_per_peer_max.max(limits.outbox_max);
        let (outbox, waiting) = Outbox::of_link(messages_max, limits.outbox_bytes_max);
        let bounds = Bounds {
            calls_max: limits.calls_per_peer_max,
            envelope_bytes_max: greeted.envelope_bytes_max,
        };
        let (org, role) = (peer.org.clone(), binding.role.other());
        let mut link = Link::new(outbox, org, key, role, core.clock.now(), bounds);
        link.channels
            .clone_from(&greeted.descriptor.body().channels);
        let link = Arc::new(link);
        core.state
            .links
            .attach(&core.state.org, Arc::clone(&link))?;
        // An admin may have paused or removed it meanwhile; whoever does looks for links after the change.
        let still = core.state.peers.find(&peer.org);
        if still.is_none_or(|still| still.is_paused || still.key != key) {
            core.state.links.detach(&link);
            bail!("it is no peer any more, or paused");
        }
        Ok((link, waiting))
    }

    /// Puts on record that a peer's broker goes on under another key: what it was granted is issued to that
    /// one.
    async fn settle(&self, key: PublicKey) -> anyhow::Result<()> {
        let Self { core, peer, .. } = self;
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
}
