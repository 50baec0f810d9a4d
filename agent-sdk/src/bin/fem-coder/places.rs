//! Places for programs that run at once, of which no caller gets more than a share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_sdk::ToolError;
use agent_sdk::proto_spec::Caller;

/// Programs that run at once.
const AT_ONCE: usize = 8;
/// Of one caller, so that nobody keeps all others out.
const OF_ONE_CALLER: usize = AT_ONCE / 2;

/// All places are taken.
const BUSY: &str = "BUSY";
/// The caller's own share is taken.
const TOO_MANY_CALLS: &str = "TOO_MANY_CALLS";

/// All places. Cloning it gives another hold of the same ones.
#[derive(Clone, Default)]
pub(crate) struct Places(Arc<Mutex<HashMap<Caller, usize>>>);

impl Places {
    /// # Errors
    ///
    /// [`TOO_MANY_CALLS`] where the caller has its share, [`BUSY`] where nobody gets any.
    pub(crate) fn take(&self, caller: &Caller) -> Result<Place, ToolError> {
        let mut taken = self.taken();
        let theirs = taken.get(caller).copied().unwrap_or(0);
        if theirs == OF_ONE_CALLER {
            let why = format!("{theirs} of your programs run: wait until one has ended");
            return Err(ToolError::new(TOO_MANY_CALLS, why));
        }
        if taken.values().sum::<usize>() == AT_ONCE {
            let why = format!("{AT_ONCE} programs run, and no more at once: try again");
            return Err(ToolError::new(BUSY, why));
        }
        taken.insert(caller.clone(), theirs + 1);
        Ok(Place {
            places: self.clone(),
            caller: caller.clone(),
        })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Caller, usize>> {
        // Nothing that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place, until it is dropped.
pub(crate) struct Place {
    places: Places,
    caller: Caller,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(theirs) = taken.get_mut(&self.caller) {
            *theirs -= 1;
            if *theirs == 0 {
                taken.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str) -> Caller {
        let agent = name.parse().unwrap();
        Caller { agent, via: None }
    }

    fn refused(places: &Places, name: &str) -> String {
        format!("{:?}", places.take(&caller(name)).err().unwrap())
    }

    #[test]
    fn no_caller_takes_more_than_half_of_the_places() {
        let places = Places::default();
        let take = |name: &str| places.take(&caller(name)).unwrap();
        let mut adas: Vec<_> = (0..OF_ONE_CALLER).map(|_| take("ada@acme")).collect();
        assert!(refused(&places, "ada@acme").contains(TOO_MANY_CALLS));
        let bobs: Vec<_> = (0..OF_ONE_CALLER).map(|_| take("bob@acme")).collect();
        assert!(refused(&places, "eve@acme").contains(BUSY));
        adas.pop();
        drop(take("eve@acme"));
        drop((adas, bobs));
        assert!(places.taken().is_empty());
    }
}
