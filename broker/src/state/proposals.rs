//! Acts that wait for a second admin.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use proto_spec::{Digest, Name, Refusal, Timestamp};

use super::snapshot::stored;
use crate::change::Change;
use crate::locks::lock;

/// Acts that may wait at once.
const WAITING_MAX: usize = 256;

/// An act as one admin ordered it.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// By which the second admin names it.
    pub id: Digest,
    /// The envelope's type.
    pub act: String,
    /// The envelope's body.
    pub body: String,
    /// Who ordered it.
    pub by: Name,
    /// When.
    pub at: Timestamp,
    /// Until when it waits.
    pub expires: Timestamp,
}
stored!(Waiting {
    id,
    act,
    body,
    by,
    at,
    expires
});

/// Durable: an acknowledged proposal is not lost.
#[derive(Debug, Default)]
pub struct Proposals {
    waiting: Mutex<BTreeMap<Digest, Waiting>>,
}

impl Proposals {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Waiting>> {
        lock(&self.waiting)
    }

    /// What waits now, oldest first.
    #[must_use]
    pub fn waiting(&self, now: Timestamp) -> Vec<Waiting> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.retain(|one| one.expires > now);
        all.sort_by_key(|one| (one.at, one.id));
        all
    }

    /// One that waits.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotFound`].
    pub fn find(&self, id: &Digest, now: Timestamp) -> Result<Waiting, Refusal> {
        let found = self.lock().get(id).filter(|one| one.expires > now).cloned();
        found.ok_or_else(|| Refusal::NotFound(format!("proposal {id}")))
    }

    /// Whether one more may wait.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`].
    pub fn check_room(&self, now: Timestamp) -> Result<(), Refusal> {
        if self.waiting(now).len() < WAITING_MAX {
            Ok(())
        } else {
            Err(Refusal::Busy(
                "the list of acts that wait for a second admin",
            ))
        }
    }

    pub(super) fn image(&self) -> Vec<Waiting> {
        let Self { waiting } = self;
        lock(waiting).values().cloned().collect()
    }

    pub(super) fn load(&self, waiting: Vec<Waiting>) {
        *self.lock() = waiting.into_iter().map(|one| (one.id, one)).collect();
    }

    pub(super) fn apply(&self, change: &Change) {
        match change {
            Change::Proposed {
                id,
                act,
                body,
                by,
                at,
                expires,
            } => {
                let mut waiting = self.lock();
                waiting.retain(|_, one| one.expires > *at);
                let one = Waiting {
                    id: *id,
                    act: act.clone(),
                    body: body.clone(),
                    by: by.clone(),
                    at: *at,
                    expires: *expires,
                };
                waiting.insert(*id, one);
            }
            Change::ProposalClosed { id, .. } => {
                self.lock().remove(id);
            }
            _ => {}
        }
    }
}
