//! A call on its way to another broker: with the tokens that permit it there, which our broker makes for its
//! own agents, and passes on for a peer's.

use std::sync::Arc;

use bytes::Bytes;
use proto_spec::frame::Relay;
use proto_spec::limits::{HOPS_MAX, INTRODUCTION_VALIDITY};
use proto_spec::{Authorized, Digest, Org, Refusal, Timestamp};

use crate::pipeline::Carried;
use crate::routing::Route;
use crate::state::links::{Held, Link};
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
    route: &Route,
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
        tokens: tokens(&route.grants)?,
        onward: match &route.onward[..] {
            [] => Vec::new(),
            onward => tokens(onward)?,
        },
        visited: vec![me.clone()],
        envelope: call.envelope().bytes().clone(),
    };
    Ok(relay.encode())
}

/// A call of a peer's agent to what lies behind us. Our part was to permit it; what permits it there came with
/// it.
///
/// # Errors
///
/// [`Refusal::Denied`] where it would go in a circle, or has come too far.
pub fn pass_call(
    me: &Org,
    link: &Link,
    call: &Authorized,
    carried: &Carried,
) -> Result<Bytes, Refusal> {
    let visited = &carried.visited;
    let is_circle = visited.contains(me) || visited.contains(&link.org);
    if is_circle || call.agent().org() == &link.org || visited.len() >= HOPS_MAX {
        return Err(Refusal::Denied("a call that goes in a circle".into()));
    }
    let mut visited = visited.clone();
    visited.push(me.clone());
    let relay = Relay {
        tokens: carried.onward.clone(),
        onward: Vec::new(),
        visited,
        envelope: call.envelope().bytes().clone(),
    };
    Ok(relay.encode())
}
