//! The way back in when no admin is left: the recovery key, offline, on a stopped broker's journal.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use proto_spec::{Name, Org, PublicKey, SigningKey, Timestamp};

use crate::change::{Change, recovery_statement};
use crate::config::Limits;
use crate::journal::{Embedded, Journal as _};
use crate::state::replay::Replay;
use crate::state::{State, Taking};

/// A stopped broker's journal, and who proved to be entitled to name an admin.
#[derive(Debug)]
pub struct Recovery<'a> {
    journal: Embedded,
    state: State,
    key: &'a SigningKey,
}

impl<'a> Recovery<'a> {
    /// Opens the journal of `data` for whoever has its organisation's recovery key.
    ///
    /// # Errors
    ///
    /// When the broker runs, the journal is damaged or holds no organisation, or the key is not the one
    /// with which the organisation was founded.
    pub fn begin(data: &Path, key: &'a SigningKey) -> anyhow::Result<Self> {
        if !data.join("journal.redb").exists() {
            bail!("{} holds no journal", data.display());
        }
        let (mut state, mut misfit) = (None, None);
        let journal = Embedded::open_giving(data, &mut |change| {
            if let Change::Founded { org, .. } = &change {
                state.get_or_insert_with(|| known(org.clone()));
            }
            let taken = state
                .as_ref()
                .map(|state| state.apply(&change, Taking::Back));
            if let Some(Err(error)) = taken {
                misfit.get_or_insert(error);
            }
        })
        .context("the broker must be stopped for this")?;
        if let Some(error) = misfit {
            return Err(error.into());
        }
        let state = state.context("the journal holds no organisation")?;
        match state.recoveries.key() {
            Some(recovery) if recovery == key.public() => Ok(Self {
                journal,
                state,
                key,
            }),
            Some(recovery) => bail!(
                "this is not the recovery key of {}: that one is {}",
                state.org,
                recovery.fingerprint()
            ),
            None => bail!("the journal names no recovery key"),
        }
    }

    /// Whose broker it is.
    #[must_use]
    pub fn org(&self) -> &Org {
        &self.state.org
    }

    /// Whether this key may become the key of `admin`.
    ///
    /// # Errors
    ///
    /// When the key is revoked, or another agent's: one key has one name.
    pub fn check(&self, admin: &Name, key: &PublicKey) -> anyhow::Result<()> {
        let shown = key.fingerprint();
        if self.state.revocations.is_key_revoked(key) {
            bail!("the key {shown} is revoked, and never comes back: make a new one");
        }
        let named = self.state.recoveries.named();
        let waits = named.into_iter().find(|one| one.key == *key);
        let owner = self
            .state
            .registry
            .owner(key)
            .or(waits.map(|one| one.admin));
        match owner {
            Some(owner) if owner != *admin => bail!(
                "the key {shown} is {owner}'s, and one key has one name: name {owner} with --admin, or make a new key"
            ),
            _ => Ok(()),
        }
    }

    /// Puts on record that this key is an admin's. At its next start the broker gives it everything,
    /// says so in its log, and takes its key from whoever had the name before.
    ///
    /// # Errors
    ///
    /// Those of [`Recovery::check`], and when the journal cannot be written.
    pub fn admit(
        mut self,
        admin: &Name,
        admin_key: PublicKey,
        now: Timestamp,
    ) -> anyhow::Result<()> {
        self.check(admin, &admin_key)?;
        let statement = recovery_statement(self.org(), admin, &admin_key, now);
        let recovered = Change::Recovered {
            admin: admin.clone(),
            admin_key,
            proof: self.key.sign(&statement),
            at: now,
        };
        // What a start would not take over is not written.
        self.state.apply(&recovered, Taking::On)?;
        self.journal.append(&[&recovered])?;
        Ok(())
    }
}

/// State to look things up in: nothing is ever admitted by it, so its window has no room.
fn known(org: Org) -> State {
    State::new(
        org,
        &Limits::default(),
        Replay::in_memory(0, 0, Duration::ZERO, [0; 32]),
    )
}
