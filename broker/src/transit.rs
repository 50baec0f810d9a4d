//! A call on its way to another broker: with the tokens that permit it there, which our broker makes for its
//! own agents, and passes on for a peer's.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto_spec::frame::Relay;
use proto_spec::limits::{HOPS_MAX, INTRODUCTION_VALIDITY};
use proto_spec::message::AdvertisedTool;
use proto_spec::{Authorized, Digest, Org, Refusal, Timestamp};

use crate::pipeline::Carried;
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
