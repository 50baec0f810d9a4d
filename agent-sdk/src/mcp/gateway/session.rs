//! Legacy sessions. Their id is their state, sealed: whoever has it can say nothing else, this process need
//! not remember it, and another process with the same secret knows it too.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use proto_spec::{AgentId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::catalogue::Scope;
use super::era::{Client, Era, LEGACY};
use super::fault::Fault;
use crate::mcp::rpc::Object;

/// Characters of an id.
const ID_CHARS_MAX: usize = 4 << 10;
/// What the key is for: one secret may serve for other things too.
const PURPOSE: &[u8] = b"fem mcp session v1";

/// The key under which sessions are sealed.
pub(super) struct Seal(hmac::Key);

/// A session, as its id says.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// The revision that it is held in.
    pub(super) version: String,
    /// What the client said of itself.
    pub(super) client: Client,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    caller: AgentId,
    /// Of one agent, or of all.
    only: Option<AgentId>,
    version: String,
    capabilities: Object,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    info: Option<Box<RawValue>>,
    until: Timestamp,
    /// Two sessions of one client are two.
    nonce: u64,
}

impl Seal {
    pub(super) fn new(secret: &[u8; 32]) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived = hmac::sign(&root, PURPOSE);
        Self(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }

    /// The id of a session of `caller` that begins at `now`, of visible ASCII.
    ///
    /// # Errors
    ///
    /// Where the client says more of itself than fits.
    pub(super) fn id(
        &self,
        session: &Session,
        caller: &AgentId,
        scope: &Scope,
        (now, lasts): (Timestamp, Duration),
    ) -> Result<String, Fault> {
        // The id is in a header of each request.
        session.client.check_size()?;
        let Client {
            info, capabilities, ..
        } = &session.client;
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|_| {
            Fault::new(
                crate::mcp::rpc::INTERNAL_ERROR,
                "no randomness from the system",
            )
        })?;
        let state = State {
            caller: caller.clone(),
            only: scope.only().cloned(),
            version: session.version.clone(),
            capabilities: capabilities.clone(),
            info: info.clone(),
            until: now.later(lasts),
            nonce: u64::from_ne_bytes(nonce),
        };
        let state = BASE64.encode(serde_json::to_vec(&state).unwrap_or_default());
        let tag = hmac::sign(&self.0, state.as_bytes());
        Ok(format!("{state}.{}", BASE64.encode(tag)))
    }

    /// The session with this id, and when it is over, if it is one of `caller` at this place.
    pub(super) fn open(
        &self,
        id: &str,
        caller: &AgentId,
        scope: &Scope,
        now: Timestamp,
    ) -> Option<(Session, Timestamp)> {
        if id.len() > ID_CHARS_MAX {
            return None;
        }
        let (state, tag) = id.split_once('.')?;
        let tag = BASE64.decode(tag).ok()?;
        hmac::verify(&self.0, state.as_bytes(), &tag).ok()?;
        let state: State = serde_json::from_slice(&BASE64.decode(state).ok()?).ok()?;
        let is_theirs = state.caller == *caller && state.only.as_ref() == scope.only();
        let is_spoken = LEGACY.contains(&state.version.as_str());
        let session = Session {
            version: state.version,
            client: Client {
                era: Era::Legacy,
                info: state.info,
                capabilities: state.capabilities,
            },
        };
        (is_theirs && is_spoken && now < state.until).then_some((session, state.until))
    }
}

#[cfg(test)]
mod tests {
    use super::super::era::SAID_BYTES_MAX;
    use super::*;
    use crate::mcp::rpc::INVALID_PARAMS;

    const LASTS: Duration = Duration::from_secs(60);

    fn session(capabilities: &str) -> Session {
        Session {
            version: LEGACY[0].into(),
            client: Client {
                era: Era::Legacy,
                info: Some(RawValue::from_string(r#"{"name":"c"}"#.into()).unwrap()),
                capabilities: Object::parse(capabilities).unwrap(),
            },
        }
    }

    fn now(after: u64) -> Timestamp {
        Timestamp::from_ms(1_800_000_000_000 + after)
    }

    fn ada() -> AgentId {
        "ada@acme".parse().unwrap()
    }

    fn sealed() -> (Seal, String) {
        let seal = Seal::new(&[1; 32]);
        let id = seal
            .id(
                &session(r#"{"roots":{}}"#),
                &ada(),
                &Scope::All,
                (now(0), LASTS),
            )
            .unwrap();
        (seal, id)
    }

    #[test]
    fn a_session_is_known_to_every_process_with_the_secret() {
        let (_, id) = sealed();
        assert!(
            id.bytes().all(|b| b.is_ascii_graphic()) && id.len() < 1_024,
            "{id}"
        );
        let opened = Seal::new(&[1; 32]).open(&id, &ada(), &Scope::All, now(59_999));
        let (opened, until) = opened.unwrap();
        assert_eq!(until, now(60_000));
        assert_eq!(opened.version, "2025-11-25");
        assert!(opened.client.capabilities.has("roots"));
        assert_eq!(opened.client.info.unwrap().get(), r#"{"name":"c"}"#);
    }

    #[test]
    fn a_session_is_nobody_elses_nowhere_else_and_ends() {
        let (seal, id) = sealed();
        let (bob, fs) = ("bob@acme".parse().unwrap(), "fs@acme".parse().unwrap());
        assert!(seal.open(&id, &bob, &Scope::All, now(1)).is_none());
        assert!(seal.open(&id, &ada(), &Scope::One(fs), now(1)).is_none());
        assert!(seal.open(&id, &ada(), &Scope::All, now(60_000)).is_none());
        assert!(
            Seal::new(&[2; 32])
                .open(&id, &ada(), &Scope::All, now(1))
                .is_none()
        );
    }

    #[test]
    fn a_changed_id_is_no_session() {
        let (seal, id) = sealed();
        for at in 0..id.len() {
            let mut changed = id.clone().into_bytes();
            changed[at] ^= 1;
            let changed = String::from_utf8(changed).unwrap();
            assert!(
                seal.open(&changed, &ada(), &Scope::All, now(1)).is_none(),
                "{at}"
            );
        }
        for wrong in ["", ".", "a.b", &id[1..], &"x".repeat(ID_CHARS_MAX + 1)] {
            assert!(seal.open(wrong, &ada(), &Scope::All, now(1)).is_none());
        }
    }

    #[test]
    fn a_client_that_says_too_much_of_itself_gets_no_session() {
        let long = format!(
            r#"{{"experimental":{{"a":"{}"}}}}"#,
            "x".repeat(SAID_BYTES_MAX)
        );
        let refused = Seal::new(&[1; 32]).id(&session(&long), &ada(), &Scope::All, (now(0), LASTS));
        assert_eq!(refused.unwrap_err().error.code, INVALID_PARAMS);
    }
}
