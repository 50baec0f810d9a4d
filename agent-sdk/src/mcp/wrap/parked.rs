//! Calls that wait for what their callers know: each under a handle that is random, used once, its caller's
//! alone, and forgotten after a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proto_spec::Digest;
use tokio::task::AbortHandle;

/// Calls that wait at once, of all callers and of one.
const PARKED_MAX: usize = 64;
const PARKED_OF_ONE_MAX: usize = 16;
/// How long a call waits: a person reads the question and decides.
pub(super) const PARKED_FOR: Duration = Duration::from_secs(300);

/// Whose a parked call is: who asked for what. All of it was decided about when it was asked, so whoever
/// goes on with something else has been permitted something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whose {
    pub(super) caller: String,
    pub(super) tool: String,
    pub(super) arguments: Digest,
}

/// Calls that wait.
pub(super) struct Parked<T> {
    waiting: Arc<Mutex<HashMap<String, Waiting<T>>>>,
    patience: Duration,
}

struct Waiting<T> {
    whose: Whose,
    /// Until it is taken.
    call: Option<T>,
    forget: AbortHandle,
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        self.forget.abort();
    }
}

impl<T: Send + 'static> Parked<T> {
    /// Calls that wait for `patience`.
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            waiting: Arc::default(),
            patience,
        }
    }

    /// Parks a call: its handle. None where too many wait.
    pub(super) fn park(&self, whose: Whose, call: T) -> Option<String> {
        let mut noise = [0; 32];
        getrandom::fill(&mut noise).ok()?;
        let handle = URL_SAFE_NO_PAD.encode(noise);
        let mut waiting = self.waiting();
        let of_one = waiting
            .values()
            .filter(|one| one.whose.caller == whose.caller);
        if waiting.len() >= PARKED_MAX || of_one.count() >= PARKED_OF_ONE_MAX {
            return None;
        }
        let forget = tokio::spawn({
            let (all, handle, patience) =
                (Arc::downgrade(&self.waiting), handle.clone(), self.patience);
            async move {
                tokio::time::sleep(patience).await;
                let Some(all) = all.upgrade() else { return };
                let forgotten = all
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&handle);
                if let Some(forgotten) = forgotten {
                    tracing::info!(
                        caller = forgotten.whose.caller,
                        tool = forgotten.whose.tool,
                        "a call whose questions were not answered is given up"
                    );
                }
            }
        });
        let forget = forget.abort_handle();
        waiting.insert(
            handle.clone(),
            Waiting {
                whose,
                call: Some(call),
                forget,
            },
        );
        Some(handle)
    }

    /// Takes the call of this handle, where it is theirs. Another's stays.
    pub(super) fn take(&self, handle: &str, whose: &Whose) -> Option<T> {
        let mut waiting = self.waiting();
        waiting.get(handle).filter(|one| one.whose == *whose)?;
        waiting.remove(handle)?.call.take()
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Waiting<T>>> {
        // Nothing that can panic runs under this lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(caller: &str) -> Whose {
        Whose {
            caller: caller.into(),
            tool: "fs.ask".into(),
            arguments: Digest::of(b"{}"),
        }
    }

    #[tokio::test]
    async fn a_parked_call_is_taken_once_and_by_its_caller_for_the_same_tool_alone() {
        let parked = Parked::new(PARKED_FOR);
        let handle = parked.park(whose("ada"), 1).unwrap();
        let other = Whose {
            tool: "fs.other".into(),
            ..whose("ada")
        };
        assert_eq!(parked.take(&handle, &whose("bob")), None);
        assert_eq!(parked.take(&handle, &other), None);
        let other = Whose {
            arguments: Digest::of(br#"{"path":"/other"}"#),
            ..whose("ada")
        };
        assert_eq!(parked.take(&handle, &other), None);
        assert_eq!(parked.take(&format!("{handle}x"), &whose("ada")), None);
        assert_eq!(parked.take(&handle, &whose("ada")), Some(1));
        assert_eq!(parked.take(&handle, &whose("ada")), None);
    }

    #[tokio::test]
    async fn a_call_that_nobody_continues_is_given_up() {
        let parked = Parked::new(Duration::from_millis(1));
        let handle = parked.park(whose("ada"), 1).unwrap();
        let given_up = async {
            while !parked.waiting().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        let limit = Duration::from_secs(30);
        assert!(tokio::time::timeout(limit, given_up).await.is_ok());
        assert_eq!(parked.take(&handle, &whose("ada")), None);
    }

    #[tokio::test]
    async fn so_many_calls_wait_of_one_caller_and_of_all() {
        let parked = Parked::new(PARKED_FOR);
        for _ in 0..PARKED_OF_ONE_MAX {
            assert!(parked.park(whose("ada"), 1).is_some());
        }
        assert!(parked.park(whose("ada"), 1).is_none());
        for n in PARKED_OF_ONE_MAX..PARKED_MAX {
            assert!(parked.park(whose(&format!("bob{n}")), 1).is_some());
        }
        assert!(parked.park(whose("eve"), 1).is_none());
    }
}
