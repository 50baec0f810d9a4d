//! What we tell a peer: what it is granted, and which tools of ours its agents may call.

use std::collections::BTreeMap;
use std::time::Duration;

use proto_spec::limits::{CLOCK_SKEW_MAX, PEER_GRANTS_MAX};
use proto_spec::message::{PeerTokens, RevocationHead};
use proto_spec::{Audience, Digest, Kind, Org, Timestamp};
use serde::Serialize;
use tokio::sync::watch;

use super::advert::{Told, tools_for};
use super::events::tell_topics;
use super::trust::tell_trust;
use crate::conversation::Ended;
use crate::pipeline::Core;
use crate::state::links::Link;

/// How long an advert holds: also for a peer whose clock is as far ahead as it may be, until the next.
const VALIDITY: Duration = Duration::from_secs(300 + CLOCK_SKEW_MAX.as_secs());
/// How often it is told anew that it still holds.
const REFRESH: Duration = Duration::from_secs(100);
/// Between two looks at what changed: many changes at once are told once.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a token holds that we pass on from another peer.
const PASSED_ON_VALIDITY: Duration = Duration::from_secs(3_600);
/// How often a head is said.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// Tells a peer what is, and then what changes, until the link has to end.
pub(super) async fn tell(core: &Core, link: &Link) -> Ended {
    tokio::select! {
        // No call is taken, and none is given, before the first head.
        biased;
        ended = tell_heads(core, link) => ended,
        ended = tell_tools(core, link) => ended,
        ended = tell_trust(core, link) => ended,
        ended = tell_topics(core, link) => ended,
    }
}

/// Which keys of ours are dead, every second and at once when one dies: what a peer's agents are refused
/// for depends on it, so the peer refuses them when it does not come.
async fn tell_heads(core: &Core, link: &Link) -> Ended {
    let mut died = core.state.revocations.deaths();
    let mut told = 0;
    for seq in 1.. {
        died.borrow_and_update();
        let now = core.clock.now();
        let (dead, all) = core.state.revocations.deaths_after(told, now);
        told = all;
        let head = RevocationHead {
            seq,
            dead,
            tick: now,
            echo: link.tick(),
        };
        if let Err(ended) = say(core, link, Kind::RevocationHead, &head) {
            return ended;
        }
        tokio::select! {
            () = changed(&mut died) => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
    Ended::Closed
}

async fn tell_tools(core: &Core, link: &Link) -> Ended {
    let mut peers = core.state.peers.changes();
    let mut offers = core.state.sessions.offers();
    let mut trust = core.state.trust.changes();
    let mut told = Told::default();
    let mut given = None;
    let mut passed = PassedOn::default();
    loop {
        // What changes from here on is looked at in the next round.
        peers.borrow_and_update();
        offers.borrow_and_update();
        trust.borrow_and_update();
        let peer = core.state.peers.find(&link.org);
        let Some(peer) = peer.filter(|peer| !peer.is_paused && peer.key == link.key) else {
            return Ended::Closed;
        };
        let now = core.clock.now();
        let tools = tools_for(&peer, &core.state, now);
        let tokens: Vec<String> = peer.grants.iter().map(|grant| grant.text.clone()).collect();
        passed.renew(
            core,
            link,
            tools
                .values()
                .filter_map(|tool| {
                    let owner = tool.tool.via.first()?;
                    Some(tool.onward.iter().map(move |id| (owner, id)))
                })
                .flatten(),
            now,
        );
        let body = PeerTokens {
            tokens,
            onward: passed.texts(),
        };
        if given.as_ref() != Some(&body) {
            if let Err(ended) = say(core, link, Kind::PeerTokens, &body) {
                return ended;
            }
            given = Some(body);
        }
        for advert in told.next(tools, now.later(VALIDITY)) {
            if let Err(ended) = say(core, link, Kind::Advert, &advert) {
                return ended;
            }
        }
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            () = changed(&mut peers) => {}
            () = changed(&mut offers) => {}
            () = changed(&mut trust) => {}
            () = tokio::time::sleep(REFRESH) => told.refresh(),
        }
    }
}

/// Says something to the peer's broker. A word that finds no room ends the link: what comes after depends on it.
pub(super) fn say(
    core: &Core,
    link: &Link,
    kind: Kind,
    body: &impl Serialize,
) -> Result<(), Ended> {
    let to = Audience::Broker(link.org.clone());
    let now = core.clock.now();
    let said = core.voice.say(kind, Some(&to), None, body, now);
    link.send(said.bytes).map_err(|_| Ended::TooSlow)
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
