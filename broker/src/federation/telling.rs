//! What we tell a peer: what it is granted, and which tools of ours its agents may call.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use proto_spec::limits::PEER_GRANTS_MAX;
use proto_spec::message::{PeerTokens, RevocationHead};
use proto_spec::{Audience, Digest, Kind, Org, Timestamp};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::advert::{Told, tools_for};
use super::events::tell_topics;
use super::trust::tell_trust;
use crate::conversation::Ended;
use crate::pipeline::Core;
use crate::state::links::Link;

/// How often is looked whether adverts have to be told anew, where nothing else is looked at.
pub const REFRESH: Duration = Duration::from_secs(100);
/// Between two looks at what changed: many changes at once are told once.
pub const PAUSE: Duration = Duration::from_millis(50);
/// However long a look and its telling took, the next one does not wait for longer.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How long a token holds that we pass on from another peer.
const PASSED_ON_VALIDITY: Duration = Duration::from_secs(3_600);
/// How often a head is said.
pub const TICK: Duration = Duration::from_secs(1);

/// Tells a peer what is, and then what changes, until the link has to end.
pub(super) async fn tell(core: &Core, link: &Link) -> Ended {
    tokio::select! {
        // No call is taken, and none is given, before the first head.
        biased;
        ended = tell_heads(core, link) => ended,
        ended = tell_terms(core, link) => ended,
        ended = tell_trust(core, link) => ended,
        ended = tell_topics(core, link) => ended,
    }
}

/// Every second, and at once when a key dies: what a peer's agents are refused for depends on it, so the
/// peer refuses them when it does not come.
async fn tell_heads(core: &Core, link: &Link) -> Ended {
    let mut died = core.state.revocations.deaths();
    let mut heads = Heads::default();
    loop {
        died.borrow_and_update();
        let head = heads.next(core, link, core.clock.now());
        // Peers refuse our agents' calls when it is late.
        if link.say_first(head).is_err() {
            return Ended::TooSlow;
        }
        tokio::select! {
            () = changed(&mut died) => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

async fn tell_terms(core: &Core, link: &Link) -> Ended {
    let mut peers = core.state.peers.changes();
    let mut offers = core.state.sessions.offers();
    let mut trust = core.state.trust.changes();
    let mut terms = Terms::default();
    loop {
        let begun = Instant::now();
        // What changes from here on is looked at in the next round.
        peers.borrow_and_update();
        offers.borrow_and_update();
        trust.borrow_and_update();
        let Some(words) = terms.next(core, link, core.clock.now()) else {
            return Ended::Closed;
        };
        for word in words {
            // One at a time, as fast as the peer reads: what agents offer never fills the room for words.
            link.settled().await;
            if link.say(word).is_err() {
                return Ended::TooSlow;
            }
        }
        tokio::time::sleep(pause_after(begun.elapsed())).await;
        tokio::select! {
            () = changed(&mut peers) => {}
            () = changed(&mut offers) => {}
            () = changed(&mut trust) => {}
            () = tokio::time::sleep(REFRESH) => {}
        }
    }
}

/// How long nothing is looked at after a look and its telling took so long: what others change again and again
/// takes a tenth of a link's time.
fn pause_after(took: Duration) -> Duration {
    (took * 9).clamp(PAUSE, PAUSE_MAX)
}

/// Says something to the peer's broker. A word that finds no room ends the link: what comes after depends on
/// it, and only a peer that does not read leaves none.
pub(super) fn say(
    core: &Core,
    link: &Link,
    kind: Kind,
    body: &impl Serialize,
) -> Result<(), Ended> {
    let said = word(core, link, kind, body, core.clock.now());
    link.say(said).map_err(|_| Ended::TooSlow)
}

/// Which keys of ours are dead, as far as the peer was told on one link.
#[derive(Debug, Default)]
pub struct Heads {
    seq: u64,
    told: u64,
}

impl Heads {
    /// The next head; the first says all that a peer could still need.
    pub fn next(&mut self, core: &Core, link: &Link, now: Timestamp) -> Bytes {
        let (dead, all) = core.state.revocations.deaths_after(self.told, now);
        self.told = all;
        self.seq += 1;
        let head = RevocationHead {
            seq: self.seq,
            dead,
            tick: now,
            echo: link.tick(),
        };
        word(core, link, Kind::RevocationHead, &head, now)
    }
}

/// What the peer is granted and may call, as far as it was told on one link.
#[derive(Debug, Default)]
pub struct Terms {
    told: Told,
    given: Option<PeerTokens>,
    passed: PassedOn,
}

impl Terms {
    /// The words that bring the peer from what it knows to what is; none where it knows that. Nothing at all
    /// where the link has to end, because its other end is no peer any more, paused, or under another key.
    pub fn next(&mut self, core: &Core, link: &Link, now: Timestamp) -> Option<Vec<Bytes>> {
        let peer = core.state.peers.find(&link.org);
        let peer = peer.filter(|peer| !peer.is_paused && peer.key == link.key)?;
        let tools = tools_for(&peer, &core.state, now);
        let onward = tools.values().filter_map(|tool| {
            let owner = tool.tool.via.first()?;
            Some(tool.onward.iter().map(move |id| (owner, id)))
        });
        self.passed.renew(core, link, onward.flatten(), now);
        let given = PeerTokens {
            tokens: peer.grants.iter().map(|grant| grant.text.clone()).collect(),
            onward: self.passed.texts(),
        };
        let mut words = Vec::new();
        if self.given.as_ref() != Some(&given) {
            words.push(word(core, link, Kind::PeerTokens, &given, now));
            self.given = Some(given);
        }
        for advert in self.told.next(tools, now) {
            words.push(word(core, link, Kind::Advert, &advert, now));
        }
        Some(words)
    }
}

/// A word for the peer's broker.
fn word(core: &Core, link: &Link, kind: Kind, body: &impl Serialize, now: Timestamp) -> Bytes {
    let to = Audience::Broker(link.org.clone());
    core.voice.say(kind, Some(&to), None, body, now).bytes
}

/// What others granted us and we pass on to one peer: each made anew before it ends.
#[derive(Debug, Default)]
struct PassedOn(BTreeMap<Digest, (String, Timestamp)>);

impl PassedOn {
    /// Has exactly these, each with half of its time left.
    fn renew<'a>(
        &mut self,
        core: &Core,
        to: &Link,
        wanted: impl Iterator<Item = (&'a Org, &'a Digest)>,
        now: Timestamp,
    ) {
        let wanted = wanted.map(|(owner, id)| (*id, owner));
        let wanted: BTreeMap<Digest, &Org> = wanted.take(PEER_GRANTS_MAX).collect();
        self.0.retain(|id, (_, until)| {
            wanted.contains_key(id) && now.later(PASSED_ON_VALIDITY / 2) < *until
        });
        for (id, owner) in wanted {
            if self.0.contains_key(&id) {
                continue;
            }
            // An id is what a token says: another peer's may say the same.
            let held = core.state.links.of(owner).and_then(|link| {
                let held = link.held();
                held.iter().find(|one| one.id == id).cloned()
            });
            let until = now.later(PASSED_ON_VALIDITY);
            let made = held.and_then(|held| core.voice.pass_on(&held.token, &to.key, until));
            if let Some(text) = made {
                self.0.insert(id, (text, until));
            }
        }
    }

    fn texts(&self) -> Vec<String> {
        self.0.values().map(|(text, _)| text.clone()).collect()
    }
}

/// Returns at the next change; never once nobody can change it any more.
pub(super) async fn changed(what: &mut watch::Receiver<()>) {
    if what.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn telling_takes_a_tenth_of_a_links_time_and_never_waits_for_long() {
        let ms = Duration::from_millis;
        assert_eq!(pause_after(ms(0)), PAUSE);
        assert_eq!(pause_after(ms(100)), ms(900));
        assert_eq!(pause_after(ms(60_000)), PAUSE_MAX);
    }
}
