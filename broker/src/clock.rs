//! The broker's time: the wall clock of its start, carried on by CLOCK_BOOTTIME.
//!
//! `Instant` stops while the machine is suspended, and the wall clock can be stepped: neither may
//! reopen a replay window or revive an expired token. So the wall clock is read once, and afterwards
//! only watched: where it departs, that is an [`Alarm`], and the broker goes on by its own time.
//!
//! The one exception is a start behind what the broker's own records say. Then nothing is accepted,
//! so nothing is lost by following the wall clock until it has caught up.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto_spec::Timestamp;

/// How far the wall clock may depart, and a start lie behind the records, without an alarm.
pub const DEPARTURE_MAX: Duration = Duration::from_secs(5);

/// Where time comes from.
#[derive(Debug)]
pub struct Clock {
    /// The time when nothing had elapsed yet, in milliseconds.
    began_ms: AtomicU64,
    /// The newest time on record that a start was behind of; 0 when it was not.
    awaited_ms: AtomicU64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Boot {
        at_start: Duration,
    },
    Manual {
        elapsed_ms: AtomicU64,
        wall_ms: AtomicU64,
    },
}

/// What is wrong with the machine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// It is behind the newest time on record: no envelope is judged by it.
    Behind {
        /// The clock.
        now: Timestamp,
        /// The records.
        newest: Timestamp,
    },
    /// It was set while the broker ran, which goes on by its own time.
    Departed {
        /// The broker's time.
        now: Timestamp,
        /// The clock.
        wall: Timestamp,
    },
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Behind { now, newest } => write!(
                f,
                "this machine's clock is {} s behind the broker's records: set it; or, if it is right, stop the broker and start it with --accept-clock",
                now.distance(*newest).as_secs()
            ),
            Self::Departed { now, wall } => write!(
                f,
                "this machine's clock was set {} by {} s; the broker goes on by its own time until it is restarted",
                if wall > now { "ahead" } else { "back" },
                now.distance(*wall).as_secs()
            ),
        }
    }
}

fn boot_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

fn wall_time() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_ms(since.as_millis() as u64)
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn machine() -> Self {
        let at_start = boot_time();
        Self::from(wall_time(), Source::Boot { at_start })
    }

    /// A clock that stands still until it is told otherwise: tests bring their own time.
    #[must_use]
    pub fn manual(start: Timestamp) -> Self {
        let source = Source::Manual {
            elapsed_ms: AtomicU64::new(0),
            wall_ms: AtomicU64::new(start.as_ms()),
        };
        Self::from(start, source)
    }

    fn from(start: Timestamp, source: Source) -> Self {
        Self {
            began_ms: AtomicU64::new(start.as_ms()),
            awaited_ms: AtomicU64::new(0),
            source,
        }
    }

    /// Moves a manual clock on, and its wall clock with it; does nothing to the machine's.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual {
            elapsed_ms,
            wall_ms,
        } = &self.source
        {
            elapsed_ms.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
            wall_ms.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
        }
    }

    /// Sets a manual clock's wall clock, as an operator or NTP does; does nothing to the machine's.
    pub fn set_wall(&self, to: Timestamp) {
        if let Source::Manual { wall_ms, .. } = &self.source {
            wall_ms.store(to.as_ms(), Ordering::Relaxed);
        }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let began = Timestamp::from_ms(self.began_ms.load(Ordering::Relaxed));
        began.later(self.elapsed())
    }

    fn elapsed(&self) -> Duration {
        match &self.source {
            Source::Boot { at_start } => boot_time().saturating_sub(*at_start),
            Source::Manual { elapsed_ms, .. } => {
                Duration::from_millis(elapsed_ms.load(Ordering::Relaxed))
            }
        }
    }

    fn wall(&self) -> Timestamp {
        match &self.source {
            Source::Boot { .. } => wall_time(),
            Source::Manual { wall_ms, .. } => Timestamp::from_ms(wall_ms.load(Ordering::Relaxed)),
        }
    }

    /// How far the wall clock is from this one.
    #[must_use]
    pub fn departure(&self) -> Duration {
        self.wall().distance(self.now())
    }

    /// Judges nothing by this clock while it is behind `newest`, the newest time on record.
    pub fn await_time(&self, newest: Timestamp) {
        if is_behind(self.now(), newest) {
            self.awaited_ms.store(newest.as_ms(), Ordering::Relaxed);
        }
    }

    /// Whether nothing may be judged by this clock yet, and why. Where the wall clock has caught up
    /// with the records, it is followed, and judging begins.
    #[must_use]
    pub fn behind(&self) -> Option<Alarm> {
        let newest = match self.awaited_ms.load(Ordering::Acquire) {
            0 => return None,
            ms => Timestamp::from_ms(ms),
        };
        let wall = self.wall();
        if is_behind(wall, newest) {
            return Some(Alarm::Behind { now: wall, newest });
        }
        let began = wall.earlier(self.elapsed());
        self.began_ms.store(began.as_ms(), Ordering::Relaxed);
        self.awaited_ms.store(0, Ordering::Release);
        None
    }

    /// What is wrong with the machine's clock, if anything.
    #[must_use]
    pub fn alarm(&self) -> Option<Alarm> {
        self.behind().or_else(|| {
            let (now, wall) = (self.now(), self.wall());
            (now.distance(wall) > DEPARTURE_MAX).then_some(Alarm::Departed { now, wall })
        })
    }
}

/// Whether `now` is further before `newest` than clocks that are kept in time ever are.
#[must_use]
pub fn is_behind(now: Timestamp, newest: Timestamp) -> bool {
    now.later(DEPARTURE_MAX) < newest
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_ms(1_800_000_000_000);

    #[test]
    fn a_wall_clock_that_departs_by_more_than_five_seconds_raises_an_alarm_and_is_not_followed() {
        let clock = Clock::manual(NOW);
        for (wall, alarms) in [
            (NOW.later(DEPARTURE_MAX), false),
            (NOW.earlier(DEPARTURE_MAX), false),
            (NOW.later(DEPARTURE_MAX * 2), true),
            (NOW.earlier(DEPARTURE_MAX * 2), true),
            (NOW, false),
        ] {
            clock.set_wall(wall);
            assert_eq!(clock.alarm().is_some(), alarms, "{wall:?}");
            assert_eq!(clock.now(), NOW);
        }
    }

    #[test]
    fn a_clock_behind_the_records_is_followed_only_until_it_has_caught_up() {
        let clock = Clock::manual(NOW);
        let newest = NOW.later(Duration::from_secs(3_600));
        clock.await_time(newest);
        assert_eq!(clock.behind(), Some(Alarm::Behind { now: NOW, newest }));
        clock.set_wall(newest);
        assert_eq!((clock.behind(), clock.now()), (None, newest));
        clock.set_wall(NOW);
        assert!(matches!(clock.alarm(), Some(Alarm::Departed { .. })));
        assert_eq!((clock.behind(), clock.now()), (None, newest));
    }

    #[test]
    fn the_machines_clock_agrees_with_itself() {
        assert_eq!(Clock::machine().alarm(), None);
    }
}
