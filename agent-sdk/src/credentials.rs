//! The broker's words that one connection has carried: in full the first time, then by identity.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use proto_spec::admission::Vouched;
use proto_spec::frame::Vouching;
use proto_spec::{Digest, Refusal, Timestamp};

/// Credentials of one connection that may be alive at once. Each lives five minutes at most.
const CREDENTIALS_MAX: usize = 1 << 16;

/// What the broker vouched for on this connection.
#[derive(Default)]
pub(crate) struct Credentials {
    known: HashMap<Digest, Arc<Vouched>>,
}

impl Credentials {
    /// The credential that a frame carries or names. It is checked when it arrives, by `check`, and its
    /// expiry at every use; `now` is the broker's time.
    ///
    /// # Errors
    ///
    /// Those of [`Vouched::check`]; [`Refusal::Stale`] for one that has expired since;
    /// [`Refusal::Denied`] for one that this connection has not carried; [`Refusal::Busy`] where more
    /// live ones arrived than we keep: then the connection is of no more use, for the broker will
    /// name what we do not have.
    pub(crate) fn resolve(
        &mut self,
        vouching: &Vouching,
        check: impl FnOnce(Bytes) -> Result<Vouched, Refusal>,
        now: Timestamp,
    ) -> Result<Arc<Vouched>, Refusal> {
        let vouched = match vouching {
            Vouching::Full(bytes) => {
                let vouched = Arc::new(check(bytes.clone())?);
                self.make_room(now)?;
                self.known.insert(vouched.id(), Arc::clone(&vouched));
                vouched
            }
            Vouching::Known(id) => self.known.get(id).cloned().ok_or_else(|| {
                Refusal::Denied("a credential that this connection has not carried".into())
            })?,
        };
        vouched.alive(now)?;
        Ok(vouched)
    }

    fn make_room(&mut self, now: Timestamp) -> Result<(), Refusal> {
        if self.known.len() < CREDENTIALS_MAX {
            return Ok(());
        }
        self.known.retain(|_, vouched| vouched.alive(now).is_ok());
        if self.known.len() < CREDENTIALS_MAX {
            Ok(())
        } else {
            Err(Refusal::Busy("the store of credentials"))
        }
    }
}
