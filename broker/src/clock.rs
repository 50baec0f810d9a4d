//! The broker's time: the wall clock of its start, carried on by CLOCK_BOOTTIME.
//!
//! `Instant` stops while the machine is suspended, and the wall clock can be stepped: neither may
//! reopen a replay window or revive an expired token.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto_spec::Timestamp;

/// Where time comes from.
#[derive(Debug)]
pub struct Clock {
    start: Timestamp,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Boot { at_start: Duration },
    Manual { elapsed_ms: AtomicU64 },
}

fn boot_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn machine() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let start = Timestamp::from_ms(since.as_millis() as u64);
        Self {
            start,
            source: Source::Boot {
                at_start: boot_time(),
            },
        }
    }

    /// A clock that stands still until it is told otherwise: tests bring their own time.
    #[must_use]
    pub fn manual(start: Timestamp) -> Self {
        Self {
            start,
            source: Source::Manual {
                elapsed_ms: AtomicU64::new(0),
            },
        }
    }

    /// Moves a manual clock on; does nothing to the machine's.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual { elapsed_ms } = &self.source {
            elapsed_ms.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
        }
    }

    /// When it was made.
    #[must_use]
    pub fn start(&self) -> Timestamp {
        self.start
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.start.later(match &self.source {
            Source::Boot { at_start } => boot_time().saturating_sub(*at_start),
            Source::Manual { elapsed_ms } => {
                Duration::from_millis(elapsed_ms.load(Ordering::Relaxed))
            }
        })
    }
}
