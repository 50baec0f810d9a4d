//! How long to wait before the next attempt to connect: exponential, full jitter, bounded. Pure.

use std::time::Duration;

/// The bound of the first wait.
pub(crate) const FIRST: Duration = Duration::from_millis(200);
/// No wait is longer.
pub(crate) const LONGEST: Duration = Duration::from_secs(30);

/// Counts attempts that failed in a row.
#[derive(Debug, Default, Clone, Copy)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait after one more failure: anything from nothing to the bound, which doubles
    /// with each failure. `random` is uniform; agents that lost the same broker at the same moment do
    /// not come back at the same moment.
    #[must_use]
    pub fn failed(&mut self, random: u64) -> Duration {
        let bound = FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(random as f64 / u64::MAX as f64)
    }

    /// Starts anew: an attempt succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_start_anew_after_success() {
        let mut backoff = Backoff::default();
        let bounds: Vec<_> = (0..40).map(|_| backoff.failed(u64::MAX)).collect();
        assert_eq!(bounds[..4], [1, 2, 4, 8].map(|n| FIRST * n));
        assert_eq!(bounds[39], LONGEST);
        backoff.reset();
        assert_eq!(backoff.failed(u64::MAX), FIRST);
    }

    #[test]
    fn jitter_takes_any_share_of_the_wait() {
        assert_eq!(Backoff::default().failed(0), Duration::ZERO);
        let half = Backoff::default().failed(u64::MAX / 2);
        assert!(half > FIRST / 3 && half < FIRST * 2 / 3);
    }
}
