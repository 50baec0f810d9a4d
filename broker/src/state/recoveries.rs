//! Who may name an admin when none is left, and whom it has named.

use std::sync::Mutex;

use proto_spec::{Name, Org, PublicKey, Signature, Timestamp};

use super::Misfit;
use super::snapshot::stored;
use crate::change::{Change, recovery_statement};
use crate::locks::lock;

/// The recovery key, and what it said so far. A journal is no better guarded than its disk; what gives
/// somebody everything is believed by its signature alone.
#[derive(Debug, Default)]
pub struct Recoveries(Mutex<Known>);

/// All of it, as a snapshot holds it too.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    key: Option<PublicKey>,
    named: Vec<Named>,
}
stored!(Known { key, named });

/// An admin that the recovery key named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Under which name.
    pub admin: Name,
    /// With which key.
    pub key: PublicKey,
    /// When.
    pub at: Timestamp,
}
stored!(Named { admin, key, at });

impl Recoveries {
    /// The key that may name an admin, once the organisation is founded.
    #[must_use]
    pub fn key(&self) -> Option<PublicKey> {
        lock(&self.0).key
    }

    /// All that it named, oldest first.
    #[must_use]
    pub fn named(&self) -> Vec<Named> {
        lock(&self.0).named.clone()
    }

    pub(super) fn image(&self) -> Known {
        lock(&self.0).clone()
    }

    pub(super) fn load(&self, known: Known) {
        *lock(&self.0) = known;
    }

    /// Takes a change over.
    ///
    /// # Errors
    ///
    /// [`Misfit`] where the recovery key did not sign what is on record, or it stands there twice: whoever
    /// can write the journal could give an admin that was revoked since everything anew.
    pub(super) fn apply(&self, org: &Org, change: &Change) -> Result<(), Misfit> {
        let mut known = lock(&self.0);
        match change {
            Change::Founded { recovery, .. } => {
                known.key.get_or_insert(*recovery);
            }
            Change::Recovered {
                admin,
                admin_key,
                proof,
                at,
            } => {
                let said = Named {
                    admin: admin.clone(),
                    key: *admin_key,
                    at: *at,
                };
                check(&known, org, &said, proof)?;
                known.named.push(said);
            }
            _ => {}
        }
        Ok(())
    }
}

fn check(known: &Known, org: &Org, said: &Named, proof: &Signature) -> Result<(), Misfit> {
    let statement = recovery_statement(org, &said.admin, &said.key, said.at);
    if !known.key.is_some_and(|key| key.verifies(&statement, proof)) {
        return Err(Misfit(format!(
            "a recovery that names {} is not signed by {org}'s recovery key",
            said.admin
        )));
    }
    if known.named.contains(said) {
        return Err(Misfit(format!(
            "the recovery that names {} stands there twice",
            said.admin
        )));
    }
    Ok(())
}
