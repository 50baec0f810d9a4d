//! Which organisations are peers, and what each is granted here.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, RwLock};

use proto_spec::capability::{Token, decode_text};
use proto_spec::limits::TRUST_PEERS_MAX;
use proto_spec::{Digest, Org, Pattern, PublicKey, Timestamp};
use tokio::sync::watch;

use super::snapshot::{Sink, Source, Stored, stored};
use crate::change::Change;
use crate::locks::{read, write};

/// Peers that one broker has.
pub const PEERS_MAX: usize = TRUST_PEERS_MAX;

/// Another organisation, as an admin took it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Which.
    pub org: Org,
    /// The key that stands for it.
    pub key: PublicKey,
    /// Where its link is dialled: what an admin allowed, and nothing else.
    pub endpoints: Vec<String>,
    /// What it asked for.
    pub asks: Vec<Pattern>,
    /// Whether an admin keeps its link down.
    pub is_paused: bool,
    /// Since when.
    pub since: Timestamp,
    /// What its agents may do here, oldest first.
    pub grants: Vec<Arc<PeerGrant>>,
}
stored!(Peer {
    org,
    key,
    endpoints,
    asks,
    is_paused,
    since,
    grants
});

impl Peer {
    /// Somebody who says that it is `org`, and could prove it with `key` only.
    #[must_use]
    pub fn unproven(org: Org, key: PublicKey) -> Self {
        Self {
            org,
            key,
            endpoints: Vec::new(),
            asks: Vec::new(),
            is_paused: false,
            since: Timestamp::default(),
            grants: Vec::new(),
        }
    }
}

/// One grant of a peer.
#[derive(Debug)]
pub struct PeerGrant {
    /// By which it is listed and revoked.
    pub id: Digest,
    /// The unsealed token: the peer's broker delegates from it, and is handed it at every attach.
    pub text: String,
    opened: OnceLock<Option<Arc<Token>>>,
}

impl PeerGrant {
    fn new(id: Digest, text: String) -> Self {
        Self {
            id,
            text,
            opened: OnceLock::new(),
        }
    }

    /// The token, opened when it is first asked for. One that does not open grants nothing.
    #[must_use]
    pub fn token(&self, roots: &[PublicKey]) -> Option<Arc<Token>> {
        let open = || {
            let opened = decode_text(&self.text).and_then(|it| Token::open_unsealed(&it, roots));
            opened
                .inspect_err(
                    |why| tracing::error!(id = %self.id, %why, "a peer's grant cannot be used"),
                )
                .ok()
                .map(Arc::new)
        };
        self.opened.get_or_init(open).clone()
    }
}

impl Stored for Arc<PeerGrant> {
    fn put(&self, to: &mut Sink) {
        let PeerGrant {
            id,
            text,
            // Opened again when it is asked for.
            opened: _,
        } = &**self;
        id.put(to);
        text.put(to);
    }

    fn take(from: &mut Source) -> std::io::Result<Self> {
        let (id, text) = Stored::take(from)?;
        Ok(Self::new(PeerGrant::new(id, text)))
    }
}

/// All peers, by organisation.
#[derive(Debug)]
pub struct Peers {
    all: RwLock<BTreeMap<Org, Arc<Peer>>>,
    changed: watch::Sender<()>,
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            all: RwLock::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Peers {
    /// The peer of this name.
    #[must_use]
    pub fn find(&self, org: &Org) -> Option<Arc<Peer>> {
        read(&self.all).get(org).cloned()
    }

    /// All of them, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Peer>> {
        read(&self.all).values().cloned().collect()
    }

    /// Says when peers, or what they are granted, changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn change(&self, org: &Org, act: impl FnOnce(&mut Peer)) {
        let mut all = write(&self.all);
        if let Some(peer) = all.get_mut(org) {
            let mut next = Peer::clone(peer);
            act(&mut next);
            *peer = Arc::new(next);
        }
        drop(all);
        self.changed.send_replace(());
    }

    pub(super) fn image(&self) -> Vec<Peer> {
        let Self { all, changed: _ } = self;
        read(all).values().map(|peer| Peer::clone(peer)).collect()
    }

    pub(super) fn load(&self, peers: Vec<Peer>) {
        let peers = peers.into_iter();
        *write(&self.all) = peers
            .map(|peer| (peer.org.clone(), Arc::new(peer)))
            .collect();
    }

    /// Takes revoked grants away.
    pub(super) fn drop_grants(&self, ids: &[Digest]) {
        for peer in self.all() {
            if peer.grants.iter().any(|grant| ids.contains(&grant.id)) {
                self.change(&peer.org, |peer| {
                    peer.grants.retain(|grant| !ids.contains(&grant.id));
                });
            }
        }
    }

    /// Takes a change over.
    pub(super) fn apply(&self, change: &Change) {
        match change {
            Change::PeerAdded {
                org,
                key,
                endpoints,
                asks,
                at,
                ..
            } => {
                let peer = Peer {
                    org: org.clone(),
                    key: *key,
                    endpoints: endpoints.clone(),
                    asks: asks.clone(),
                    is_paused: false,
                    since: *at,
                    grants: Vec::new(),
                };
                let mut all = write(&self.all);
                // Accepted anew with other endpoints: what it was granted stays, and that it is paused.
                let peer = match all.get(org) {
                    Some(before) => Peer {
                        grants: before.grants.clone(),
                        is_paused: before.is_paused,
                        ..peer
                    },
                    None => peer,
                };
                all.insert(org.clone(), Arc::new(peer));
                drop(all);
                self.changed.send_replace(());
            }
            Change::PeerPaused { org, paused, .. } => {
                self.change(org, |peer| peer.is_paused = *paused);
            }
            Change::PeerRemoved { org, .. } => {
                write(&self.all).remove(org);
                self.changed.send_replace(());
            }
            Change::PeerReissued { org, key, .. } => self.change(org, |peer| peer.key = *key),
            Change::PeerGranted { id, org, token, .. } => {
                let grant = PeerGrant::new(*id, token.clone());
                self.change(org, |peer| peer.grants.push(Arc::new(grant)));
            }
            _ => {}
        }
    }
}
