//! The keys that the broker signs with, one after another, and what leads from each to the next.

use std::sync::Mutex;

use proto_spec::succession::Succession;
use proto_spec::{Org, PublicKey};

use super::Misfit;
use super::keys::{Held, Keys};
use super::snapshot::stored;
use crate::change::Change;
use crate::locks::lock;

/// The broker's keys. One signs; whoever has an older one that is not retired is led to it.
#[derive(Debug, Default)]
pub struct BrokerKeys {
    life: Keys,
    chain: Mutex<Vec<Link>>,
}

/// A key said which one follows it.
#[derive(Debug, Clone)]
pub(super) struct Link {
    from: PublicKey,
    to: PublicKey,
    statement: String,
}
stored!(Link {
    from,
    to,
    statement
});

/// All of it, as a snapshot holds it.
#[derive(Debug, Default)]
pub(super) struct Image {
    life: Vec<Held>,
    chain: Vec<Link>,
}
stored!(Image { life, chain });

impl BrokerKeys {
    /// Each with what it is for.
    #[must_use]
    pub fn life(&self) -> &Keys {
        &self.life
    }

    /// The statements that lead from the oldest key that is not retired to the newest, in this order.
    #[must_use]
    pub fn successions(&self) -> Vec<String> {
        let chain = lock(&self.chain);
        chain.iter().map(|link| link.statement.clone()).collect()
    }

    /// The key that named this one, unless that is retired.
    #[must_use]
    pub fn predecessor(&self, key: &PublicKey) -> Option<PublicKey> {
        let chain = lock(&self.chain);
        chain
            .iter()
            .find(|link| link.to == *key)
            .map(|link| link.from)
    }

    pub(super) fn image(&self) -> Image {
        let Self { life, chain } = self;
        Image {
            life: life.all(),
            chain: lock(chain).clone(),
        }
    }

    pub(super) fn load(&self, image: Image) {
        let Image { life, chain } = image;
        self.life.load(life);
        *lock(&self.chain) = chain;
    }

    /// Takes a change over.
    ///
    /// # Errors
    ///
    /// [`Misfit`] where a key is said to follow the active one and that one did not say so.
    pub(super) fn apply(&self, org: &Org, change: &Change) -> Result<(), Misfit> {
        match change {
            Change::Founded { broker, at, .. } => self.life.activate(*broker, *at),
            Change::BrokerKeyPrepared {
                key,
                succession,
                at,
                ..
            } => {
                let link = self.link(org, succession)?;
                if link.to != *key {
                    return Err(Misfit("a succession names another key".into()));
                }
                lock(&self.chain).push(link);
                self.life.prepare(*key, *at);
            }
            Change::BrokerKeyActivated { key, at, .. } => self.life.activate(*key, *at),
            Change::BrokerKeyRetired { key, .. } => {
                lock(&self.chain).retain(|link| link.from != *key && link.to != *key);
                self.life.retire(key);
            }
            _ => {}
        }
        Ok(())
    }

    fn link(&self, org: &Org, statement: &str) -> Result<Link, Misfit> {
        let from = self
            .life
            .active()
            .ok_or_else(|| Misfit("a succession before the organisation".into()))?;
        let said = Succession::check(statement, &from, org)
            .map_err(|why| Misfit(format!("a succession of the broker's key: {why}")))?;
        Ok(Link {
            from,
            to: *said.to(),
            statement: statement.into(),
        })
    }
}
