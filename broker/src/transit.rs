//! What is on its way to another broker. A call goes with the tokens that permit it there, which our broker
//! makes for its own agents, and passes on for a peer's; an event, for those that our grants let hear it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use proto_spec::admission;
use proto_spec::capability::{Question, Token};
use proto_spec::frame::Relay;
use proto_spec::limits::{HOPS_MAX, INTRODUCTION_VALIDITY, WORD_BYTES_MAX};
use proto_spec::message::{AdvertisedTool, PeerEvent};
use proto_spec::{
    AgentId, Audience, Authorized, Capability, Digest, Kind, Org, Pattern, Refusal, Timestamp,
};

use crate::pipeline::{Carried, Core, Standing};
use crate::state::links::{Hearer, Held, Link};
use crate::state::room::Guest;
use crate::voice::Voice;

/// A call of our own agent, with tokens in which our broker introduces it.
///
/// # Errors
///
/// [`Refusal::Unavailable`] where the peer's grants have not come or none can be delegated from.
pub fn relay_call(
    voice: &Voice,
    me: &Org,
    link: &Link,
    call: &Authorized,
    tool: &AdvertisedTool,
    now: Timestamp,
) -> Result<Bytes, Refusal> {
    let fresh = now.later(INTRODUCTION_VALIDITY / 2);
    let until = now.later(INTRODUCTION_VALIDITY);
    let make = |held: &Held| voice.introduce(&held.token, call.agent(), call.key(), until);
    let tokens = |grants: &[Digest]| -> Result<Vec<Bytes>, Refusal> {
        let made = link.introduce(call.agent(), call.key(), grants, fresh, make)?;
        let copied = |token: &Arc<str>| Bytes::copy_from_slice(token.as_bytes());
        Ok(made.iter().map(copied).collect())
    };
    let relay = Relay {
        tokens: tokens(&tool.grants)?,
        onward: match &tool.onward[..] {
            [] => Vec::new(),
            onward => tokens(onward)?,
        },
        visited: vec![me.clone()],
        age: None,
        envelope: call.envelope().bytes().clone(),
    };
    Ok(relay.encode())
}

/// A call of a peer's agent to what lies behind us. Our part was to permit it, by a view of its home's dead
/// keys of this age; what permits it there came with it.
///
/// # Errors
///
/// [`Refusal::Denied`] where it would go in a circle, or has come too far.
pub fn pass_call(
    me: &Org,
    link: &Link,
    call: &Authorized,
    carried: &Carried,
    age: Duration,
) -> Result<Bytes, Refusal> {
    let visited = one_more(me, &link.org, call.agent().org(), &carried.visited)?;
    let relay = Relay {
        tokens: carried.onward.clone(),
        onward: Vec::new(),
        visited,
        age: Some(age),
        envelope: call.envelope().bytes().clone(),
    };
    Ok(relay.encode())
}

/// Where a call has been once it is passed on to `next`.
fn one_more(me: &Org, next: &Org, home: &Org, visited: &[Org]) -> Result<Vec<Org>, Refusal> {
    let is_circle = [me, next].iter().any(|org| visited.contains(org)) || home == next;
    if is_circle || visited.len() >= HOPS_MAX {
        return Err(Refusal::Denied("a call that goes in a circle".into()));
    }
    Ok(visited.iter().chain([me]).cloned().collect())
}

/// Questions to the Datalog engine for one event and one peer: some 100 µs each.
const ASKED_MAX: usize = 64;

/// Passes an event of ours on to a peer, for those of its agents that listen and may.
pub(crate) fn tell_event(
    core: &Core,
    link: &Link,
    event: &Authorized,
    topic: &Capability,
    now: Timestamp,
) {
    let hearers = link.listeners();
    if hearers.is_empty() {
        return;
    }
    let Ok(required) = Pattern::from(topic.clone()).under("event.subscribe") else {
        return;
    };
    let topic = Pattern::from(topic.clone());
    let listens = |one: &&Hearer| one.topics.iter().any(|topics| topics.covers(&topic));
    let mut asked = 0;
    let may = |one: &&Hearer| {
        let mut tokens = one.tokens.iter();
        tokens.any(|token| {
            asked += usize::from(!token.is_standard());
            // An emitter waits for this: whoever comes with too many conditions goes without.
            asked <= ASKED_MAX && permits(core, link, token, &one.agent, &required, now)
        })
    };
    let listeners = hearers.iter().filter(listens).filter(may);
    let listeners: Vec<AgentId> = listeners.map(|one| one.agent.clone()).collect();
    if listeners.is_empty() {
        return;
    }
    let missed = link.missed().swap(0, Ordering::Relaxed);
    let said = PeerEvent {
        listeners,
        key: *event.key(),
        event: String::from_utf8_lossy(event.envelope().bytes()).into_owned(),
        missed,
    };
    let is_told = !link.is_closed()
        && link.age(now) <= core.config.federation.stale_after()
        && relay_event(core, link, event, &said, now).is_ok();
    if !is_told {
        link.missed().fetch_add(missed + 1, Ordering::Relaxed);
    }
}

/// Queues an event in its emitter's share of the link: the word is ours, and how many there are is not.
fn relay_event(
    core: &Core,
    link: &Link,
    event: &Authorized,
    said: &PeerEvent,
    now: Timestamp,
) -> Result<(), Refusal> {
    let to = Audience::Broker(link.org.clone());
    let word = core
        .voice
        .say(Kind::PeerEvent, Some(&to), None, said, now)
        .bytes;
    if word.len() > WORD_BYTES_MAX {
        return Err(Refusal::TooLarge(word.len(), WORD_BYTES_MAX));
    }
    let emitter = Guest::Agent(event.agent().clone());
    link.relay(&emitter, event.envelope().bytes(), word)
}

/// The rule that decides calls, asked for one who listens.
fn permits(
    core: &Core,
    link: &Link,
    token: &Token,
    agent: &AgentId,
    required: &Pattern,
    now: Timestamp,
) -> bool {
    let state = &core.state;
    if token.holder().is_none_or(|key| link.is_dead(key))
        || state.trust.is_revoked(&link.org)
        || state.trust.is_revoked(agent.org())
        || state.revocations.is_barred(token.issued(), required)
        || state.alive(token).is_err()
    {
        return false;
    }
    let question = Question {
        via: (*agent.org() != link.org).then_some(&link.org),
        ..Question::plain(required, agent, now)
    };
    admission::permits(&Standing::of(state, now), token, &question).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_never_goes_in_a_circle() {
        let org = |text: &str| text.parse::<Org>().unwrap();
        let all = |texts: &[&str]| texts.iter().map(|text| org(text)).collect::<Vec<_>>();
        let goes = |next: &str, home: &str, visited: &[&str]| {
            one_more(&org("globex"), &org(next), &org(home), &all(visited))
        };
        let on = goes("initech", "acme", &["acme"]);
        assert_eq!(on.unwrap(), all(&["acme", "globex"]));
        for (next, home, visited) in [
            // Back to where it began, by what the path says or by whose call it is.
            ("acme", "acme", &["acme"][..]),
            ("acme", "acme", &[]),
            ("hooli", "acme", &["hooli"]),
            // Through here before.
            ("initech", "acme", &["acme", "globex"]),
            // Too far.
            ("initech", "acme", &["acme", "hooli"]),
        ] {
            assert!(goes(next, home, visited).is_err(), "{next} {visited:?}");
        }
    }
}
