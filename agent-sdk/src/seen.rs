//! The agent's own replay window: what its broker delivers a second time does not run a second time.

use std::sync::{Mutex, PoisonError};

use proto_spec::admission::Nonces;
use proto_spec::limits::CLOCK_SKEW_MAX;
use proto_spec::replay::{ReplayWindow, Tag};
use proto_spec::{PublicKey, Refusal, Timestamp};

use crate::clock::Offset;

/// Nonces remembered at once: ten minutes of 1,700 calls and events a second, in about 32 MB.
pub(crate) const NONCES_MAX: usize = 1 << 20;

/// The nonces of everything that was delivered to this agent and could be delivered again.
pub(crate) struct Seen {
    secret: [u8; 32],
    /// By our own clock.
    start: Timestamp,
    /// By the broker's, so none before there is a session that tells it.
    window: Mutex<Option<ReplayWindow>>,
    nonces_max: usize,
}

/// The window, as it is used by what comes over one session.
pub(crate) struct SeenBy<'a> {
    seen: &'a Seen,
    broker_clock: Offset,
}

impl Seen {
    /// Remembers nothing yet. What was signed before `start` may have been run by this agent's
    /// predecessor, which left no record: it is refused as stale, and its caller signs anew.
    pub(crate) fn new(secret: [u8; 32], start: Timestamp, nonces_max: usize) -> Self {
        Self {
            secret,
            start,
            window: Mutex::new(None),
            nonces_max,
        }
    }

    pub(crate) fn by(&self, broker_clock: Offset) -> SeenBy<'_> {
        SeenBy {
            seen: self,
            broker_clock,
        }
    }
}

impl Nonces for SeenBy<'_> {
    fn remember(
        &self,
        key: &PublicKey,
        nonce: &str,
        ts: Timestamp,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let seen = self.seen;
        let tag = Tag::of(&seen.secret, key, nonce);
        // Nothing that can panic runs under this lock.
        let mut window = seen.window.lock().unwrap_or_else(PoisonError::into_inner);
        let start = self.broker_clock.at(seen.start);
        let window = window.get_or_insert_with(|| ReplayWindow::new(start));
        window.expire(now, CLOCK_SKEW_MAX);
        if window.len() >= seen.nonces_max {
            return Err(Refusal::Busy("this agent's replay window"));
        }
        window.remember(tag, ts)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto_spec::SigningKey;

    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_ms(1_000_000_000_000 + secs * 1_000)
    }

    fn seen(nonces_max: usize) -> (Seen, PublicKey) {
        (
            Seen::new([1; 32], at(0), nonces_max),
            SigningKey::from_seed(&[2; 32]).public(),
        )
    }

    fn same_clock() -> Offset {
        Offset::of(at(0), at(0))
    }

    #[test]
    fn a_full_window_refuses_instead_of_forgetting() {
        let (seen, key) = seen(2);
        let seen = seen.by(same_clock());
        seen.remember(&key, "one", at(1), at(1)).unwrap();
        seen.remember(&key, "two", at(1), at(1)).unwrap();
        let full = seen.remember(&key, "three", at(1), at(1));
        assert!(matches!(full, Err(Refusal::Busy(_))));
        let later = at(1).later(CLOCK_SKEW_MAX + Duration::from_secs(120));
        seen.remember(&key, "three", later, later).unwrap();
    }

    #[test]
    fn what_was_signed_before_the_agent_started_is_refused() {
        let (seen, key) = seen(9);
        let seen = seen.by(same_clock());
        let early = at(0).earlier(Duration::from_millis(1));
        assert_eq!(
            seen.remember(&key, "one", early, at(0)),
            Err(Refusal::BelowFloor)
        );
        seen.remember(&key, "one", at(0), at(0)).unwrap();
        assert_eq!(
            seen.remember(&key, "one", at(0), at(0)),
            Err(Refusal::Replayed)
        );
    }

    #[test]
    fn an_agent_started_when_its_brokers_clock_says_so() {
        let minutes = |n: u64| at(n * 60);
        for (broker, ours) in [(4, 0), (0, 4)] {
            let secret = [1; 32];
            let seen = Seen::new(secret, minutes(ours), 9);
            let key = SigningKey::from_seed(&[2; 32]).public();
            let seen = seen.by(Offset::of(minutes(broker), minutes(ours)));
            let now = minutes(broker);
            let early = now.earlier(Duration::from_millis(1));
            assert_eq!(
                seen.remember(&key, "one", early, now),
                Err(Refusal::BelowFloor)
            );
            seen.remember(&key, "one", now, now).unwrap();
        }
    }
}
