//! Time, brought in as an argument: what an agent signs with, judges by, and waits on.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto_spec::Timestamp;

/// What an agent takes for the time. Tests bring their own and need not sleep.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock.
    fn now(&self) -> Timestamp;

    /// Done when `duration` has passed.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// The machine's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        // Before 1970 every broker refuses us as stale, which is the right message.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// How far another clock is from ours.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Offset {
    Ahead(Duration),
    Behind(Duration),
}

impl Offset {
    /// Of a clock that shows `theirs` when ours shows `ours`.
    pub(crate) fn of(theirs: Timestamp, ours: Timestamp) -> Self {
        let apart = theirs.distance(ours);
        if theirs > ours {
            Self::Ahead(apart)
        } else {
            Self::Behind(apart)
        }
    }

    /// What the other clock shows when ours shows `ours`.
    pub(crate) fn at(self, ours: Timestamp) -> Timestamp {
        match self {
            Self::Ahead(apart) => ours.later(apart),
            Self::Behind(apart) => ours.earlier(apart),
        }
    }
}
