//! Peers: taken by an admin, granted to by an admin, and let go.

use std::time::Duration;

use proto_spec::capability::{Check, Claims, PeerTerms, decode_text, encode_text, issue};
use proto_spec::limits::{HOPS_MAX, PEER_GRANTS_MAX};
use proto_spec::message::{Ack, PeerAdd, PeerGrant, PeerName, PeerRecord};
use proto_spec::peering::{Descriptor, check_endpoint};
use proto_spec::{Digest, Kind, Name, NamePattern, Org, PublicKey, Refusal, Timestamp};

use super::admin::{Nothing, read};
use super::scope::By;
use super::showing::token_record;
use super::tokens::{bad_terms, entropy, parse_checks};
use super::{Decision, Desk, Rekey, answer, change};
use crate::change::Change;
use crate::state::State;
use crate::state::peers::{PEERS_MAX, Peer};

impl Desk {
    pub(super) fn list_peers(&self, body: &str) -> Result<Decision, Refusal> {
        let _: Nothing = read(body)?;
        Ok(answer(self.seen().shown(&self.state, None)))
    }

    /// Takes another organisation as a peer. Its key stays what it is: another key is another peer, and
    /// takes the admin's word that the one before is gone.
    pub(super) fn add_peer(&self, text: &str, by: &By) -> Result<Decision, Refusal> {
        let body: PeerAdd = read(text)?;
        self.check_is_full(by)?;
        let descriptor = Descriptor::read(&body.descriptor)?;
        let said = descriptor.body();
        let at = self.clock.now();
        if said.key != body.key {
            return Err(Refusal::Conflict(
                "the descriptor names another key than the one that was compared".into(),
            ));
        }
        if said.org == self.state.org {
            return Err(Refusal::Conflict("this is our own descriptor".into()));
        }
        if said.expires <= at || descriptor.at() > at.later(self.config.limits.skew()) {
            return Err(Refusal::Conflict(
                "the descriptor has expired, or is not of this time: ask for a new one".into(),
            ));
        }
        // What a peer names is never dialled unless an admin says so.
        for endpoint in &body.endpoints {
            check_endpoint(endpoint)?;
            if !said.endpoints.contains(endpoint) {
                return Err(Refusal::InvalidBody(format!(
                    "{endpoint} is not among the descriptor's endpoints"
                )));
            }
        }
        let known = self.state.peers.find(&said.org);
        match known {
            Some(peer) if peer.key != said.key => {
                return Err(Refusal::Conflict(format!(
                    "{} is a peer under another key: remove it first",
                    said.org
                )));
            }
            None if self.state.peers.all().len() >= PEERS_MAX => {
                return Err(Refusal::Busy("the list of peers"));
            }
            _ => {}
        }
        if let Some(proposed) = self.takes_two(Kind::AdminPeerAdd, text, by, &said.asks)? {
            return Ok(proposed);
        }
        let added = Change::PeerAdded {
            org: said.org.clone(),
            key: said.key,
            endpoints: body.endpoints,
            asks: said.asks.clone(),
            by: by.first.clone(),
            at,
        };
        let org = said.org.clone();
        let seen = self.seen();
        Ok(change(added, move |state| seen.shown(state, Some(&org))))
    }

    pub(super) fn pause_peer(
        &self,
        body: &str,
        by: &By,
        paused: bool,
    ) -> Result<Decision, Refusal> {
        let PeerName { org } = read(body)?;
        self.check_is_full(by)?;
        self.peer(&org)?;
        let change_ = Change::PeerPaused {
            org: org.clone(),
            paused,
            by: by.first.clone(),
            at: self.clock.now(),
        };
        let seen = self.seen();
        Ok(change(change_, move |state| seen.shown(state, Some(&org))))
    }

    pub(super) fn remove_peer(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let PeerName { org } = read(body)?;
        self.check_is_full(by)?;
        let peer = self.peer(&org)?;
        let removed = Change::PeerRemoved {
            org,
            ids: peer.grants.iter().map(|grant| grant.id).collect(),
            by: by.first.clone(),
            at: self.clock.now(),
        };
        let seen = self.seen();
        Ok(change(removed, move |state| seen.shown(state, None)))
    }

    /// Grants a peer's agents something here. The token goes to the peer's broker, over its link.
    pub(super) fn grant_peer(&self, text: &str, by: &By) -> Result<Decision, Refusal> {
        let body: PeerGrant = read(text)?;
        self.check_grantable(by, &body.capabilities)?;
        let peer = self.peer(&body.org)?;
        if peer.grants.len() >= PEER_GRANTS_MAX {
            return Err(Refusal::Busy("the peer's list of grants"));
        }
        if body.capabilities.is_empty() {
            return Err(Refusal::InvalidBody(
                "a grant needs at least one capability".into(),
            ));
        }
        if body.depth as usize >= HOPS_MAX {
            return Err(Refusal::InvalidBody("`depth` is 0 or 1".into()));
        }
        let at = self.clock.now();
        let expires = self.end_of(body.expires, at, true)?;
        let mut texts = body.checks.clone();
        texts.extend(only_providers(&body.agents, &self.state.org));
        let checks: Vec<Check> = parse_checks(&texts)?;
        let given = &body.capabilities;
        if let Some(proposed) = self.takes_two(Kind::AdminPeerGrant, text, by, given)? {
            return Ok(proposed);
        }
        let terms = PeerTerms {
            peer: body.org,
            holder: peer.key,
            capabilities: body.capabilities.clone(),
            issued: self.state.revocations.after_bars(at),
            expires,
            checks,
            depth: body.depth,
        };
        let granted = self.granted(&terms, texts, None, by.first.clone(), at)?;
        let Change::PeerGranted { id, .. } = granted else {
            return Err(Refusal::Internal);
        };
        Ok(change(granted, move |_| Ack::Issued {
            id,
            token: None,
            expires,
        }))
    }

    /// A peer's broker has another key: the token that it delegates from has to name that one.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] where it changes its key too often: each time its grants are on record anew.
    pub(super) fn rekey_peer(&mut self, rekey: &Rekey) -> Result<Decision, Refusal> {
        let Rekey { org, from, to } = rekey;
        let peer = self.peer(org)?;
        if peer.key == *to {
            return Ok(Decision::Nothing);
        }
        if peer.key != *from {
            return Err(Refusal::Conflict(format!("{org} has another key by now")));
        }
        if !self.rekeys.take(org, 1, self.clock.now()) {
            return Err(Refusal::Busy("the peer's share of changes of its key"));
        }
        let changes = self.reissue_peer(&peer, *to)?;
        Ok(Decision::Change(changes, Box::new(|_| None)))
    }

    /// Issues a peer's grants anew, under the root that is active, to this key.
    pub(super) fn reissue_peer(&self, peer: &Peer, key: PublicKey) -> Result<Vec<Change>, Refusal> {
        let at = self.clock.now();
        let mut changes = vec![Change::PeerReissued {
            org: peer.org.clone(),
            key,
            ids: peer.grants.iter().map(|grant| grant.id).collect(),
            at,
        }];
        for grant in &peer.grants {
            let record = self.state.registry.issued_by_id(&grant.id);
            let record = record.ok_or(Refusal::Internal)?;
            if record.expires <= at || self.state.revocations.is_revoked(&grant.id) {
                continue;
            }
            let said = Claims::read(&decode_text(&grant.text)?)?;
            let terms = PeerTerms {
                peer: peer.org.clone(),
                holder: key,
                capabilities: record.capabilities.clone(),
                // What was barred stays barred.
                issued: said.issued(),
                expires: record.expires,
                checks: parse_checks(&record.checks)?,
                depth: said.depth(),
            };
            let by = record.issuer.clone().ok_or(Refusal::Internal)?;
            let follows = Some(grant.id);
            changes.push(self.granted(&terms, record.checks.clone(), follows, by, at)?);
        }
        Ok(changes)
    }

    /// Mints a peer's grant, and says what is to be put on record.
    fn granted(
        &self,
        terms: &PeerTerms,
        checks: Vec<String>,
        follows: Option<Digest>,
        by: Name,
        at: Timestamp,
    ) -> Result<Change, Refusal> {
        let token = issue::peer(&self.root, &self.state.org, terms, entropy()?)
            .map_err(|error| bad_terms(&error))?;
        Ok(Change::PeerGranted {
            id: self.id_of_unsealed(&token)?,
            follows,
            org: terms.peer.clone(),
            holder: terms.holder,
            capabilities: terms.capabilities.clone(),
            checks,
            depth: terms.depth,
            expires: terms.expires,
            token: encode_text(&token),
            by,
            at,
        })
    }

    fn seen(&self) -> Seen {
        Seen {
            now: self.clock.now(),
            stale_after: self.config.federation.stale_after(),
        }
    }

    fn peer(&self, org: &Org) -> Result<std::sync::Arc<Peer>, Refusal> {
        let found = self.state.peers.find(org);
        found.ok_or_else(|| Refusal::NotFound(format!("peer {org}")))
    }
}

/// The condition that only these agents' tools are called.
fn only_providers(agents: &[NamePattern], org: &Org) -> Option<String> {
    let each = agents
        .iter()
        .map(|name| match name.as_str().strip_suffix('*') {
            // Names of other organisations begin alike.
            Some(prefix) => {
                format!("provider($p), $p.starts_with(\"{prefix}\"), $p.ends_with(\"@{org}\")")
            }
            None => format!("provider(\"{name}@{org}\")"),
        });
    let each: Vec<String> = each.collect();
    (!each.is_empty()).then(|| format!("check if {}", each.join(" or ")))
}

/// When peers are looked at, and how old what they say may be.
#[derive(Clone, Copy)]
struct Seen {
    now: Timestamp,
    stale_after: Duration,
}

impl Seen {
    /// Peers as admins see them: all, or one.
    fn shown(self, state: &State, only: Option<&Org>) -> Ack {
        let peers = state.peers.all();
        let peers = peers
            .iter()
            .filter(|peer| only.is_none_or(|org| *org == peer.org));
        Ack::Peers {
            peers: peers.map(|peer| self.record(state, peer)).collect(),
        }
    }

    fn record(self, state: &State, peer: &Peer) -> PeerRecord {
        let link = state.links.of(&peer.org);
        let grants = peer.grants.iter();
        let grants = grants.filter_map(|grant| state.registry.issued_by_id(&grant.id));
        PeerRecord {
            org: peer.org.clone(),
            key: peer.key,
            fingerprint: peer.key.fingerprint(),
            endpoints: peer.endpoints.clone(),
            link: match (&link, peer.is_paused) {
                (_, true) => "paused",
                (Some(_), _) => "up",
                (None, _) => "down",
            }
            .into(),
            trouble: match &link {
                Some(_) => None,
                None => state.links.trouble(&peer.org),
            },
            revocations_age_ms: link
                .as_ref()
                .and_then(|link| link.known_age(self.now))
                .and_then(|age| age.as_millis().try_into().ok()),
            revocations_age_max_ms: self.stale_after.as_millis().try_into().unwrap_or(u64::MAX),
            channels: link
                .as_ref()
                .map(|link| link.channels.clone())
                .unwrap_or_default(),
            tools: link.as_ref().map_or(0, |link| link.tool_count() as u64),
            grants: grants.map(|record| token_record(state, &record)).collect(),
            asks: peer.asks.clone(),
            since: peer.since,
        }
    }
}
