//! Events across: who of ours listens at a peer, who of a peer's listens here, and what each hears.
//!
//! A topic of globex's is called `peer.globex.TOPIC` here, and listening to it takes a right under `peer.`
//! from our own admin. The peer asks its own grants, for that very agent, at every event.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use proto_spec::admission::KeyBook;
use proto_spec::capability::{Claims, Token};
use proto_spec::limits::{
    CLOCK_SKEW_MAX, INTRODUCTION_VALIDITY, LISTENERS_MAX, RELAY_TOKENS_MAX, SUBSCRIPTIONS_MAX,
    WORD_BYTES_MAX,
};
use proto_spec::message::{Listener, PeerEvent, PeerTopics};
use proto_spec::{
    AgentId, Audience, Digest, Kind, Pattern, PublicKey, Received, Refusal, Speaker, Timestamp,
};

use super::telling::{changed, say};
use crate::calls::Place;
use crate::conversation::Ended;
use crate::pipeline::Core;
use crate::state::links::{Hearer, Held, Link, Written};
use crate::state::room::leaves_enough;

/// Events that one word may say were lost: more is as bad.
const MISSED_MAX: u64 = 1 << 20;
/// Between two looks at who listens.
const PAUSE: Duration = Duration::from_millis(50);
/// Bytes of listeners in one word.
const TOPICS_BYTES: usize = WORD_BYTES_MAX / 2;
/// After how long listeners are introduced anew: their tokens hold for twice that.
const RENEW: Duration = Duration::from_secs(INTRODUCTION_VALIDITY.as_secs() / 2 - 60);

/// Tells a peer who of our agents listens to its topics, until the link has to end.
pub(super) async fn tell_topics(core: &Core, link: &Link) -> Ended {
    let mut listening = core.state.sessions.listening();
    let mut granted = link.granted();
    let mut told = None;
    loop {
        listening.borrow_and_update();
        granted.borrow_and_update();
        let wanted = wanted(core, link);
        let grants: Vec<Digest> = link.held().iter().map(|held| held.id).collect();
        let is_due = told.as_ref().is_none_or(|(had, by, until)| {
            *had != wanted || *by != grants || core.clock.now() >= *until
        });
        if is_due {
            let now = core.clock.now();
            let listeners = wanted
                .iter()
                .filter_map(|((agent, key), topics)| introduce(core, link, agent, key, topics, now))
                .take(LISTENERS_MAX);
            let listeners = within(listeners);
            let is_first = told.is_none();
            told = Some((wanted, grants, now.later(RENEW)));
            let topics = PeerTopics { listeners };
            if !(is_first && topics.listeners.is_empty()) {
                // Behind what waits already, not on top of it.
                link.settled().await;
                if let Err(ended) = say(core, link, Kind::PeerTopics, &topics) {
                    return ended;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            () = changed(&mut listening) => {}
            () = changed(&mut granted) => {}
            () = tokio::time::sleep(RENEW) => {}
        }
    }
}

/// Those that fit into one word: who subscribes to too much is not told of, and nobody's link ends of it.
fn within(listeners: impl Iterator<Item = Listener>) -> Vec<Listener> {
    let mut used = 0;
    let fits = |one: &Listener| {
        let bytes = Written::of(one).bytes;
        let fits = leaves_enough(0, bytes, used, TOPICS_BYTES);
        used += if fits { bytes } else { 0 };
        fits
    };
    listeners.filter(fits).collect()
}

type Wanted = BTreeMap<(AgentId, [u8; 32]), Vec<Pattern>>;

/// Who of ours is subscribed to topics of this peer, to which, as they are called there.
fn wanted(core: &Core, link: &Link) -> Wanted {
    let mut wanted = Wanted::new();
    for session in core.state.sessions.all() {
        let subscriptions = session.subscriptions();
        let there = subscriptions.iter().filter_map(|one| {
            let (org, there) = one.topics.of_peer()?;
            (org == link.org).then_some(there)
        });
        let slot = (session.agent().clone(), *session.key().as_bytes());
        for topics in there {
            wanted.entry(slot.clone()).or_default().push(topics);
        }
    }
    for topics in wanted.values_mut() {
        topics.sort();
        topics.dedup();
        topics.truncate(SUBSCRIPTIONS_MAX);
    }
    wanted
}

/// One of our agents, with tokens that may permit it to listen there.
fn introduce(
    core: &Core,
    link: &Link,
    agent: &AgentId,
    key: &[u8; 32],
    topics: &[Pattern],
    now: Timestamp,
) -> Option<Listener> {
    let key = PublicKey::from_bytes(key).ok()?;
    let rights: Vec<Pattern> = topics
        .iter()
        .filter_map(|topics| topics.under("event.subscribe").ok())
        .collect();
    let may_permit = |held: &&Held| {
        let said = Claims::read(&held.token).ok();
        said.is_some_and(|said| {
            let mut all = said.capabilities().iter();
            all.any(|one| rights.iter().any(|right| one.overlap(right).is_some()))
        })
    };
    let held = link.held();
    let grants = held.iter().filter(may_permit).map(|held| held.id);
    let grants: Vec<Digest> = grants.take(RELAY_TOKENS_MAX).collect();
    let until = now.later(INTRODUCTION_VALIDITY);
    let make = |held: &Held| core.voice.introduce(&held.token, agent, &key, until);
    let tokens = link.introduce(agent, &key, &grants, now.later(RENEW), make);
    Some(Listener {
        agent: agent.clone(),
        topics: topics.to_vec(),
        tokens: tokens.ok()?.iter().map(ToString::to_string).collect(),
    })
}

/// Those of a peer's listeners that its broker may introduce.
///
/// # Errors
///
/// [`Refusal::InvalidBody`] beyond the bounds, [`Refusal::NotHolder`] for an agent that is not the peer's to
/// introduce, and those of opening a token.
pub(super) fn introduced(
    said: PeerTopics,
    link: &Link,
    core: &Core,
) -> Result<Vec<Hearer>, Refusal> {
    if said.listeners.len() > LISTENERS_MAX {
        return Err(Refusal::InvalidBody("more than 1,024 listeners".into()));
    }
    let now = core.clock.now();
    let hearer = |one: Listener| {
        if one.topics.len() > SUBSCRIPTIONS_MAX || one.tokens.len() > RELAY_TOKENS_MAX {
            return Err(Refusal::InvalidBody("a listener beyond its bounds".into()));
        }
        let open = |text: &String| -> Result<Arc<Token>, Refusal> {
            let token = core.state.tokens.open(text, &core.state.roots)?;
            let is_its = token.introduces(&link.org, &link.key)? == &one.agent;
            let holds_long = token.expires() > now.later(INTRODUCTION_VALIDITY + CLOCK_SKEW_MAX);
            match is_its && !holds_long && *one.agent.org() != core.state.org {
                true => Ok(token),
                false => Err(Refusal::NotHolder("it introduces another, or for too long")),
            }
        };
        // One that was revoked meanwhile, or rooted in a key that retired, is no fault of the peer's.
        let tokens = one.tokens.iter().map(open);
        let tokens = tokens.filter(|opened| !matches!(opened, Err(Refusal::TokenInvalid(_))));
        Ok(Hearer {
            tokens: tokens.collect::<Result<_, _>>()?,
            agent: one.agent,
            topics: one.topics,
        })
    };
    said.listeners.into_iter().map(hearer).collect()
}

/// The key that a peer certifies for an emitter.
struct Certified(PublicKey);

impl KeyBook for Certified {
    fn key_of(&self, _: &Speaker) -> Option<PublicKey> {
        Some(self.0)
    }
}

/// Takes an event of a peer's agent, and gives it to those of ours that the peer names and our own admins let
/// hear it.
///
/// # Errors
///
/// [`Refusal::Denied`] for what is not the peer's own event, [`Refusal::BadSignature`], [`Refusal::Replayed`]
/// and the other refusals of what is not fresh.
pub(super) fn hear_event(
    said: PeerEvent,
    link: &Link,
    core: &Core,
    now: Timestamp,
) -> Result<(), Refusal> {
    let place = Place { core, now };
    if core.state.trust.is_revoked(&link.org) {
        return Err(Refusal::Denied("an event of one that is revoked".into()));
    }
    if said.listeners.len() > LISTENERS_MAX {
        return Err(Refusal::InvalidBody("more than 1,024 listeners".into()));
    }
    let listeners: HashSet<AgentId> = said.listeners.into_iter().collect();
    let bytes = Bytes::from(said.event);
    let received = Received::parse(bytes, core.config.limits.envelope_bytes_max)?;
    let share_max = core.config.limits.nonces_per_peer_max;
    let nonces = core.state.replay.peer(&link.org, share_max);
    let verified = received.verify(&Certified(said.key))?;
    let event = verified.admit_event(&link.neighbour(), &core.judge(now), &nonces)?;
    let Some(Audience::Topic(org, topic)) = event.envelope().to() else {
        return Err(Refusal::Denied("what is no event".into()));
    };
    let Ok(topic) = topic.under(&format!("peer.{org}")) else {
        return Err(Refusal::InvalidBody("a topic has too many segments".into()));
    };
    core.state
        .links
        .note_key(&link.org, event.agent(), event.key());
    if said.missed > 0 {
        let mut told = HashSet::new();
        for (session, _) in core.state.sessions.subscribers(&topic) {
            if listeners.contains(session.agent()) && told.insert(session.id()) {
                let missed = said.missed.min(MISSED_MAX);
                session.missed().fetch_add(missed, Ordering::Relaxed);
            }
        }
    }
    place.give_out(&event, &topic, |agent| listeners.contains(agent));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_subscribes_to_too_much_is_not_told_of_and_the_word_stays_within_its_bound() {
        let listener = |n: usize, bytes: usize| Listener {
            agent: format!("x{n}@acme").parse().unwrap(),
            topics: Vec::new(),
            tokens: vec!["t".repeat(bytes)],
        };
        let greedy = (0..10).map(|n| listener(n, 300_000));
        let told = within(greedy.chain([listener(10, 1_000)]));
        assert!(told.len() < 11 && told.iter().any(|one| one.agent.name().to_string() == "x10"));
        assert!(Written::of(&PeerTopics { listeners: told }).bytes < WORD_BYTES_MAX);
    }
}
