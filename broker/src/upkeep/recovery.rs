//! The way back in when no admin is left: the recovery key, offline, on a stopped broker's journal.

use std::path::Path;

use anyhow::{Context as _, bail};
use proto_spec::{Name, Org, PublicKey, SigningKey, Timestamp};

use crate::change::Change;
use crate::journal::{Embedded, Journal as _};

/// A stopped broker's journal, and who proved to be entitled to name an admin.
#[derive(Debug)]
pub struct Recovery {
    journal: Embedded,
    org: Org,
    key: PublicKey,
}

impl Recovery {
    /// Opens the journal of `data` for whoever has its organisation's recovery key.
    ///
    /// # Errors
    ///
    /// When the broker runs, the journal is damaged or holds no organisation, or the key is not the one
    /// with which the organisation was founded.
    pub fn begin(data: &Path, key: &SigningKey) -> anyhow::Result<Self> {
        if !data.join("journal.redb").exists() {
            bail!("{} holds no journal", data.display());
        }
        let mut founded = None;
        let journal = Embedded::open_giving(data, &mut |change| {
            if let Change::Founded { org, recovery, .. } = change {
                founded.get_or_insert((org, recovery));
            }
        })
        .context("the broker must be stopped for this")?;
        let (org, recovery) = founded.context("the journal holds no organisation")?;
        if recovery != key.public() {
            bail!(
                "this is not the recovery key of {org}: that one is {}",
                recovery.fingerprint()
            );
        }
        Ok(Self {
            journal,
            org,
            key: recovery,
        })
    }

    /// Whose broker it is.
    #[must_use]
    pub fn org(&self) -> &Org {
        &self.org
    }

    /// Puts on record that this key is an admin's. At its next start the broker gives it everything,
    /// says so in its log, and takes its key from whoever had the name before.
    ///
    /// # Errors
    ///
    /// When the journal cannot be written.
    pub fn admit(
        mut self,
        admin: &Name,
        admin_key: PublicKey,
        now: Timestamp,
    ) -> anyhow::Result<()> {
        self.journal.append(&[&Change::Recovered {
            admin: admin.clone(),
            admin_key,
            recovery: self.key,
            at: now,
        }])?;
        Ok(())
    }
}
