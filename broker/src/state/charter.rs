//! What an organisation began with, whom its recovery key named and nobody gave anything, and the newest
//! time on record.

use std::sync::{Mutex, MutexGuard};

use proto_spec::{Name, Org, PublicKey, Timestamp};

use super::recoveries::Named;
use super::snapshot::stored;
use crate::change::Change;
use crate::locks::lock;

/// What [`Change::Founded`] says.
#[derive(Debug, Clone)]
pub struct Founded {
    /// Whose journal it is.
    pub org: Org,
    /// The first admin.
    pub admin: Name,
    /// The first admin's key.
    pub admin_key: PublicKey,
}
stored!(Founded {
    org,
    admin,
    admin_key
});

/// As it is on record.
#[derive(Debug, Clone, Default)]
pub struct Written {
    /// Nothing before the first record.
    pub founded: Option<Founded>,
    /// Whether anybody was ever approved: the first admin is the first.
    pub has_admin: bool,
    /// Whom the recovery key named and the next start gives everything.
    pub recovered: Vec<Named>,
    /// The newest time on record.
    pub newest: Timestamp,
}
stored!(Written {
    founded,
    has_admin,
    recovered,
    newest
});

/// Durable: what a start has to know before it serves anybody.
#[derive(Debug, Default)]
pub struct Charter {
    written: Mutex<Written>,
}

impl Charter {
    fn lock(&self) -> MutexGuard<'_, Written> {
        lock(&self.written)
    }

    /// What is on record.
    #[must_use]
    pub fn written(&self) -> Written {
        self.lock().clone()
    }

    pub(super) fn load(&self, written: Written) {
        *self.lock() = written;
    }

    pub(super) fn apply(&self, change: &Change) {
        let mut written = self.lock();
        written.newest = change.newest(written.newest);
        match change {
            Change::Founded {
                org,
                broker: _,
                root: _,
                recovery: _,
                admin,
                admin_key,
                at: _,
            } => {
                written.founded.get_or_insert(Founded {
                    org: org.clone(),
                    admin: admin.clone(),
                    admin_key: *admin_key,
                });
            }
            Change::Approved { name, key, .. } => {
                written.has_admin = true;
                written
                    .recovered
                    .retain(|one| (&one.admin, &one.key) != (name, key));
            }
            Change::Recovered {
                admin,
                admin_key,
                proof: _,
                at,
            } => written.recovered.push(Named {
                admin: admin.clone(),
                key: *admin_key,
                at: *at,
            }),
            _ => {}
        }
    }
}
