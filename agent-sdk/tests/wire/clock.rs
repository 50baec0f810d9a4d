//! A clock that a test moves.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agent_sdk::{Clock, Timestamp};
use tokio::sync::watch;

use crate::fake::{now, soon};

/// Stands still until it is moved; at the real time of its making unless it is set.
pub(crate) struct TestClock {
    now: watch::Sender<Timestamp>,
    asleep: AtomicUsize,
}

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Self::showing(now())
    }

    pub(crate) fn showing(shown: Timestamp) -> Arc<Self> {
        Arc::new(Self {
            now: watch::Sender::new(shown),
            asleep: AtomicUsize::new(0),
        })
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.now.send_modify(|now| *now = now.later(by));
    }

    /// Waits until somebody sleeps.
    pub(crate) async fn somebody_sleeps(&self) {
        let asleep = async {
            while self.asleep.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        };
        soon("somebody going to sleep", asleep).await;
    }
}

struct Asleep<'a>(&'a AtomicUsize);

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        *self.now.borrow()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let until = self.now().later(duration);
        let mut watched = self.now.subscribe();
        Box::pin(async move {
            self.asleep.fetch_add(1, Ordering::SeqCst);
            let _asleep = Asleep(&self.asleep);
            let _ = watched.wait_for(|now| *now >= until).await;
        })
    }
}
