//! Which keys this agent takes for its broker's: the one that it was configured with, and what follows
//! from it.
//!
//! A broker's key names the next one before that signs anything, and the next one agrees. So an agent that
//! is attached hears of it in time; one that slept asks `/.well-known/fem` how it went on, and believes of
//! that what leads on from the key that it has. The first word under a next key makes that one the agent's.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use proto_spec::admission::{BrokerSaid, Vouched};
use proto_spec::limits::{BROKER_KEYS_MAX, CREDENTIAL_VALIDITY};
use proto_spec::succession::{Succession, successors};
use proto_spec::{AgentId, PublicKey, Received, Refusal, Timestamp};

/// The broker signs with another key, which follows from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewBrokerKey {
    /// What the agent had so far.
    pub old: PublicKey,
    /// What it has from here on: to be kept as `broker_key` before the old one is retired.
    pub new: PublicKey,
}

/// Whoever keeps the new key.
pub(crate) type Keep = Arc<dyn Fn(NewBrokerKey) + Send + Sync>;

/// The broker's keys, as far as this agent knows them.
pub(crate) struct BrokerKeys {
    me: AgentId,
    known: RwLock<Known>,
    keep: Option<Keep>,
}

struct Known {
    /// The one that the broker signs with.
    pinned: PublicKey,
    /// Those that follow it, and sign nothing yet as far as we have heard.
    next: Vec<Succession>,
    /// Those before it, until what they signed has run out: words that crossed with the change.
    before: Vec<(PublicKey, Timestamp)>,
}

impl BrokerKeys {
    pub(crate) fn new(me: AgentId, pinned: PublicKey, keep: Option<Keep>) -> Self {
        let known = Known {
            pinned,
            next: Vec::new(),
            before: Vec::new(),
        };
        Self {
            me,
            known: RwLock::new(known),
            keep,
        }
    }

    /// The key that the broker signs with.
    pub(crate) fn pinned(&self) -> PublicKey {
        self.read(|known| known.pinned)
    }

    /// The broker's own word.
    ///
    /// # Errors
    ///
    /// Those of [`BrokerSaid::check`].
    pub(crate) fn said(&self, received: Received, now: Timestamp) -> Result<BrokerSaid, Refusal> {
        let said = BrokerSaid::check(received, &self.believed(now), &self.me)?;
        self.heard(said.by(), now);
        Ok(said)
    }

    /// The broker's word for another agent; `theirs` is the broker's time, of which `apart` is not known.
    ///
    /// # Errors
    ///
    /// Those of [`Vouched::check`].
    pub(crate) fn vouched(
        &self,
        credential: Bytes,
        theirs: Timestamp,
        apart: Duration,
        now: Timestamp,
    ) -> Result<Vouched, Refusal> {
        let vouched = Vouched::check(credential, &self.believed(now), &self.me, theirs, apart)?;
        self.heard(vouched.by(), now);
        Ok(vouched)
    }

    /// Takes over which keys follow ours, oldest first. An older word never replaces a newer one.
    pub(crate) fn learn(&self, statements: &[String]) {
        if statements.is_empty() {
            return;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let found = successors(&known.pinned, statements, self.me.org());
        let age = |chain: &[Succession]| chain.first().map(|one| (one.said(), chain.len()));
        if age(&found) > age(&known.next) {
            known.next = found;
        }
    }

    /// The one that we have first: it nearly always fits.
    fn believed(&self, now: Timestamp) -> Vec<PublicKey> {
        self.read(|known| {
            let next = known.next.iter().map(|one| *one.to());
            let before = known.before.iter().filter(|(_, until)| *until > now);
            std::iter::once(known.pinned)
                .chain(next)
                .chain(before.map(|(key, _)| *key))
                .collect()
        })
    }

    /// The broker has signed with this key: if it is a next one, it is ours from here on.
    fn heard(&self, by: &PublicKey, now: Timestamp) {
        let is_next = |known: &Known| known.next.iter().position(|one| one.to() == by);
        if self.read(|known| is_next(known).is_none()) {
            return;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        // Another word may have come first.
        let Some(at) = is_next(&known) else { return };
        let old = std::mem::replace(&mut known.pinned, *by);
        let passed: Vec<_> = known.next.drain(..=at).map(|one| *one.to()).collect();
        let until = now.later(CREDENTIAL_VALIDITY);
        let out = std::iter::once(old).chain(passed.into_iter().filter(|key| key != by));
        known.before.extend(out.map(|key| (key, until)));
        known.before.retain(|(_, until)| *until > now);
        let surplus = known.before.len().saturating_sub(BROKER_KEYS_MAX);
        known.before.drain(..surplus);
        drop(known);
        tracing::warn!(
            agent = %self.me,
            old = %old.fingerprint(),
            new = %by.fingerprint(),
            "the broker goes on under another key, which follows from the configured one"
        );
        if let Some(keep) = &self.keep {
            keep(NewBrokerKey { old, new: *by });
        }
    }

    fn read<T>(&self, read: impl FnOnce(&Known) -> T) -> T {
        read(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proto_spec::message::{Challenge, Succession as Statement};
    use proto_spec::{Digest, Draft, Kind, SigningKey, Speaker};
    use serde::Serialize;

    use super::*;

    const WINDOW_MS: u64 = CREDENTIAL_VALIDITY.as_millis() as u64;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_ms(ms)
    }

    fn say(by: u8, kind: Kind, ts: u64, body: &impl Serialize) -> Bytes {
        let draft = Draft {
            kind,
            agent: &"broker@acme".parse().unwrap(),
            to: None,
            ts: at(ts),
            nonce: "0123456789abcdef",
            re: None,
            token: None,
            deadline: None,
            via: None,
            body,
        };
        draft.seal(&key(by)).unwrap().bytes
    }

    fn succession(from: u8, to: u8, ts: u64) -> String {
        let broker: Speaker = "broker@acme".parse().unwrap();
        let (to, nonce) = (key(to), "0123456789abcdef");
        let follows = key(from).public();
        let accept = proto_spec::succession::accept(
            &broker,
            &broker.clone().into(),
            &to,
            follows,
            nonce,
            at(ts),
        );
        let body = Statement {
            accept: accept.unwrap(),
        };
        String::from_utf8(say(from, Kind::Succession, ts, &body).to_vec()).unwrap()
    }

    struct World {
        keys: BrokerKeys,
        kept: Arc<Mutex<Vec<NewBrokerKey>>>,
    }

    impl World {
        fn new() -> Self {
            let kept = Arc::new(Mutex::new(Vec::new()));
            let keeper = Arc::clone(&kept);
            let keep: Keep = Arc::new(move |new| keeper.lock().unwrap().push(new));
            let me = "fs@acme".parse().unwrap();
            Self {
                keys: BrokerKeys::new(me, key(1).public(), Some(keep)),
                kept,
            }
        }

        /// Whether a word of the key of this seed is believed.
        fn believes(&self, by: u8, now: u64) -> bool {
            let challenge = Digest([7; 32]);
            let word = say(by, Kind::Challenge, now, &Challenge { challenge });
            let received = Received::parse(word, 4_096).unwrap();
            self.keys.said(received, at(now)).is_ok()
        }
    }

    #[test]
    fn the_first_word_under_the_next_key_makes_it_ours_and_the_old_one_runs_out() {
        let world = World::new();
        assert!(!world.believes(2, 0));
        world.keys.learn(&[succession(1, 2, 0)]);
        assert!(world.believes(1, 1) && world.keys.pinned() == key(1).public());
        assert!(world.believes(2, 2) && world.keys.pinned() == key(2).public());
        let [old, new] = [key(1).public(), key(2).public()];
        assert_eq!(*world.kept.lock().unwrap(), [NewBrokerKey { old, new }]);
        assert!(
            world.believes(1, 1 + WINDOW_MS),
            "what crossed with the change"
        );
        assert!(!world.believes(1, 2 + WINDOW_MS));
        // And the old one leads nowhere any more.
        world.keys.learn(&[succession(1, 9, 5)]);
        assert!(!world.believes(9, 6));
    }

    #[test]
    fn who_slept_through_several_keys_is_led_to_the_last() {
        let world = World::new();
        world.keys.learn(&[
            succession(1, 2, 0),
            succession(2, 3, 1),
            succession(3, 4, 2),
        ]);
        assert!(world.believes(3, 10));
        assert_eq!(world.keys.pinned(), key(3).public());
        assert!(world.believes(4, 11), "prepared, and activated since");
        assert_eq!(world.kept.lock().unwrap().len(), 2);
    }

    #[test]
    fn a_statement_that_does_not_begin_with_our_key_teaches_nothing() {
        let world = World::new();
        world.keys.learn(&[succession(2, 3, 0)]);
        world.keys.learn(&["{}".into(), String::new()]);
        assert!(!world.believes(2, 1) && !world.believes(3, 1));
    }

    #[test]
    fn a_key_that_was_prepared_and_dropped_is_replaced_by_the_next_one() {
        let world = World::new();
        world.keys.learn(&[succession(1, 2, 10)]);
        world.keys.learn(&[succession(1, 3, 20)]);
        // An older word comes again.
        world.keys.learn(&[succession(1, 2, 10)]);
        assert!(!world.believes(2, 30) && world.believes(3, 30));
    }
}
