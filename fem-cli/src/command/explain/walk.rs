//! The stages of admission, one after the other, with what is known offline.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto_spec::admission::{Authority, Fresh, Judge, KeyBook, Me, Nonces, Permit, Received};
use proto_spec::capability::{Token, decode_text};
use proto_spec::identity::{AgentId, Audience, Speaker};
use proto_spec::{Capability, Digest, Envelope, Kind, Org, PublicKey, Refusal, Timestamp, limits};

/// One stage of admission, and how it went.
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) result: Step,
}

pub(super) enum Step {
    Passed(String),
    Skipped(String),
    Stopped(Refusal),
}

/// The one key that was given on the command line.
struct OneKey(PublicKey);

impl KeyBook for OneKey {
    fn key_of(&self, _: &Speaker) -> Option<PublicKey> {
        Some(self.0)
    }
}

/// Offline, nothing is on record and nothing was seen before; only a token can be opened.
pub(super) struct Offline {
    pub(super) root: Option<PublicKey>,
}

impl Authority for Offline {
    fn granted(&self, _: &AgentId) -> Arc<[Arc<Token>]> {
        Arc::default()
    }
    fn open(&self, text: &str) -> Result<Arc<Token>, Refusal> {
        Token::open(&decode_text(text)?, self.root.as_slice()).map(Arc::new)
    }
    fn alive(&self, _: &Token) -> Result<(), Refusal> {
        Ok(())
    }
    fn barred(&self, _: &Token, _: &proto_spec::Pattern) -> bool {
        false
    }
    fn required_for(&self, _: &AgentId, tool: &Capability) -> Result<Vec<Capability>, Refusal> {
        Ok(vec![tool.clone()])
    }
    fn was_delivered_here(&self, _: &Digest, _: &Audience) -> bool {
        false
    }
    fn was_called_from_here(&self, _: &Digest, _: &AgentId, _: &Audience) -> bool {
        false
    }
}

impl Nonces for Offline {
    fn remember(&self, _: &PublicKey, _: &str, _: Timestamp, _: Timestamp) -> Result<(), Refusal> {
        Ok(())
    }
}

/// What the command line knows of a broker.
pub(super) struct Bench {
    pub(super) key: Option<PublicKey>,
    pub(super) offline: Offline,
    pub(super) org: Option<Org>,
    pub(super) skew: Duration,
    pub(super) now: Timestamp,
}

impl Bench {
    /// The stages in a broker's order. Gives the envelope if it is one at all.
    pub(super) fn walk(&self, bytes: Bytes, stages: &mut Vec<Stage>) -> Option<Envelope> {
        let received = match Received::parse(bytes, limits::ENVELOPE_BYTES_MAX) {
            Ok(received) => received,
            Err(refusal) => {
                stages.push(Stage {
                    name: "received",
                    result: Step::Stopped(refusal),
                });
                return None;
            }
        };
        let envelope = received.envelope().clone();
        let form = "strict JSON; every header member is in its form".into();
        stages.push(Stage {
            name: "received",
            result: Step::Passed(form),
        });
        for (name, result) in self.believe(received) {
            stages.push(Stage { name, result });
        }
        Some(envelope)
    }

    /// From `Received` to `Authorized`, as far as it comes.
    fn believe(&self, received: Received) -> Vec<(&'static str, Step)> {
        let Some(key) = self.key.or_else(|| own_key(received.envelope())) else {
            return vec![(
                "verified",
                Step::Skipped("give --key, the sender's public key".into()),
            )];
        };
        let verified = match received.verify(&OneKey(key)) {
            Ok(verified) => verified,
            Err(refusal) => return vec![("verified", Step::Stopped(refusal))],
        };
        let by = format!(
            "signed by {}; identity {}",
            key.fingerprint(),
            verified.id()
        );
        let mut steps = vec![("verified", Step::Passed(by))];
        let Some(org) = &self.org else {
            let why = "give --org, the organisation of the broker that judges".into();
            steps.push(("fresh", Step::Skipped(why)));
            return steps;
        };
        let judge = Judge {
            me: Me::Broker(org),
            skew: self.skew,
            now: self.now,
        };
        match verified.admit(&judge, &self.offline) {
            Ok(fresh) => {
                let why = format!(
                    "meant for {org}, and of its time; only the broker knows if the nonce is new"
                );
                steps.push(("fresh", Step::Passed(why)));
                steps.push(("authorized", self.authorize(fresh, &judge)));
            }
            Err(refusal) => steps.push(("fresh", Step::Stopped(refusal))),
        }
        steps
    }

    fn authorize(&self, fresh: Fresh, judge: &Judge<'_>) -> Step {
        if fresh.envelope().kind() == Kind::RegisterAgent {
            return Step::Passed("a registration: an admin decides".into());
        }
        let has_token = fresh.envelope().token().is_some();
        if has_token && self.offline.root.is_none() {
            return Step::Skipped("give --root-key to check the token that it carries".into());
        }
        match fresh.authorize(&self.offline, judge) {
            Ok(authorized) => Step::Passed(match authorized.permit() {
                Permit::Held { capability, .. } => {
                    format!(
                        "its token permits {capability}; only the broker knows if it is revoked"
                    )
                }
                _ => "its own key is enough for this".into(),
            }),
            Err(Refusal::Denied(needed)) if !has_token => Step::Skipped(format!(
                "needs a grant on record for {needed}; only the broker knows"
            )),
            Err(Refusal::NoSuchCall) => {
                Step::Skipped("belongs to a call in flight; only the broker knows those".into())
            }
            Err(refusal) => Step::Stopped(refusal),
        }
    }
}

/// A registration brings its key along.
fn own_key(envelope: &Envelope) -> Option<PublicKey> {
    let brings = envelope.kind() == Kind::RegisterAgent;
    let body = brings.then(|| envelope.read_body::<proto_spec::message::RegisterAgent>());
    body?.ok().map(|body| body.pubkey)
}

impl Stage {
    pub(super) fn stopped(&self) -> Option<&Refusal> {
        match &self.result {
            Step::Stopped(refusal) => Some(refusal),
            _ => None,
        }
    }

    pub(super) fn to_json(&self) -> serde_json::Value {
        match &self.result {
            Step::Passed(why) => {
                serde_json::json!({"stage": self.name, "result": "passed", "why": why})
            }
            Step::Skipped(why) => {
                serde_json::json!({"stage": self.name, "result": "skipped", "why": why})
            }
            Step::Stopped(refusal) => serde_json::json!({
                "stage": self.name, "result": "stopped", "code": refusal.code().as_str(), "why": refusal.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proto_spec::{Audience, Draft, SigningKey};

    use super::*;

    const NOW: Timestamp = Timestamp::from_ms(1_800_000_000_000);

    fn stopped_at(
        bytes: &[u8],
        key: Option<PublicKey>,
        now: Timestamp,
    ) -> Option<(&'static str, String)> {
        let mut stages = Vec::new();
        let offline = Offline { root: None };
        let bench = Bench {
            key,
            offline,
            org: "acme".parse().ok(),
            skew: limits::CLOCK_SKEW_MAX,
            now,
        };
        let _ = bench.walk(Bytes::copy_from_slice(bytes), &mut stages);
        let stage = stages.iter().find(|stage| stage.stopped().is_some())?;
        Some((stage.name, stage.stopped()?.code().to_string()))
    }

    #[test]
    fn an_envelope_is_followed_to_the_stage_where_it_stops() {
        let key = SigningKey::from_seed(&[1; 32]);
        let draft = Draft {
            kind: Kind::DiscoverTools,
            agent: &"fs@acme".parse().unwrap(),
            to: Some(&Audience::Broker("acme".parse().unwrap())),
            ts: NOW,
            nonce: "0123456789abcdef",
            re: None,
            token: None,
            deadline: None,
            via: None,
            body: &serde_json::json!({}),
        };
        let sealed = draft.seal(&key).unwrap().bytes;
        let other = SigningKey::from_seed(&[2; 32]).public();
        let stop = |name, code: &str| Some((name, code.to_owned()));
        assert_eq!(stopped_at(&sealed, Some(key.public()), NOW), None);
        assert_eq!(stopped_at(&sealed, None, NOW), None);
        assert_eq!(stopped_at(b"{", None, NOW), stop("received", "MALFORMED"));
        assert_eq!(
            stopped_at(&sealed, Some(other), NOW),
            stop("verified", "NOT_AUTHENTIC")
        );
        let late = NOW.later(Duration::from_secs(301));
        assert_eq!(
            stopped_at(&sealed, Some(key.public()), late),
            stop("fresh", "STALE")
        );
    }
}
