//! Ground truth: an append-only log of [`Change`]s. The only storage seam.
//!
//! Each record carries its number and its predecessor's hash, so a log that lost, doubled or altered
//! a record does not replay. A chain cannot show that its end is gone: for that the head is marked in
//! a file beside it, `journal.head`.

mod embedded;
mod inspect;
mod mark;
mod memory;
mod overlay;

pub use embedded::{Embedded, Reader};
pub use inspect::{copy, inspect};
pub use memory::Memory;

use proto_spec::{Digest, Timestamp};
use serde::{Deserialize, Serialize};

use crate::change::Change;

/// The format of the data directory. A newer one is refused.
pub const FORMAT: u64 = 1;

/// Why the journal could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Nothing was appended.
    #[error("the journal cannot be written: {0}")]
    Write(String),
    /// The start stops here.
    #[error("the journal cannot be read: {0}")]
    Read(String),
    /// The start stops here: restore a backup.
    #[error(
        "record {number} of the journal is damaged: {why}. Nothing was changed. \
         Keep the data directory, and put a backup in its place: `fem-broker restore BACKUP CONFIG`"
    )]
    Damaged {
        /// The first record that does not fit; the first is 0.
        number: u64,
        /// What is wrong with it.
        why: String,
    },
    /// One process at a time.
    #[error("{0} is open in another process: is the broker running?")]
    InUse(String),
    /// Asked for what follows a head that it never had.
    #[error("the journal does not pass through record {0} as it was")]
    Elsewhere(u64),
    /// The broker that was asked did not do it.
    #[error("{0}")]
    Refused(String),
    /// Written by a later version.
    #[error(
        "the data directory has format {0}, this broker knows {FORMAT}: use the version that wrote it"
    )]
    Newer(u64),
}

/// An append-only log of changes.
pub trait Journal: Send {
    /// Makes changes durable, all or none, in order. What has been appended is never lost.
    ///
    /// # Errors
    ///
    /// [`JournalError::Write`]: nothing was appended.
    fn append(&mut self, changes: &[&Change]) -> Result<(), JournalError>;

    /// Gives every change in order.
    ///
    /// # Errors
    ///
    /// [`JournalError::Damaged`] with the position of the first record that does not fit.
    fn replay(&mut self, each: &mut dyn FnMut(Change)) -> Result<(), JournalError>;

    /// Where its chain stands.
    fn head(&self) -> Head;
}

/// What a journal holds, as far as its chain says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// How many records.
    pub records: u64,
    /// When the first was made.
    pub first: Option<Timestamp>,
    /// When the last was made.
    pub last: Option<Timestamp>,
    /// The hash of the last record, which stands for all of them.
    pub head: Digest,
}

impl Summary {
    const NOTHING: Self = Self {
        records: 0,
        first: None,
        last: None,
        head: Head::START.last,
    };

    fn count(&mut self, change: &Change) {
        self.records += 1;
        self.first.get_or_insert(change.at());
        self.last = Some(change.at());
    }
}

/// Where the chain of records stands: the next number, and the hash of the last record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The number that the next record will have.
    pub(crate) next: u64,
    /// The hash of the last record, which stands for all before it too.
    pub(crate) last: Digest,
}

impl Head {
    /// Before the first record.
    pub const START: Self = Self {
        next: 0,
        last: Digest([0; 32]),
    };

    /// The record that holds `change` after this head, and the head after it.
    fn record(self, change: &Change) -> Result<(Vec<u8>, Self), serde_json::Error> {
        let mut record = self.last.0.to_vec();
        serde_json::to_writer(&mut record, change)?;
        let head = self.after(&record);
        Ok((record, head))
    }

    fn after(self, record: &[u8]) -> Self {
        let mut hashed = self.next.to_be_bytes().to_vec();
        hashed.extend_from_slice(record);
        Self {
            next: self.next + 1,
            last: Digest::of(&hashed),
        }
    }

    /// Checks that `record` follows this head, and gives what it holds.
    fn read(self, number: u64, record: &[u8]) -> Result<(Change, Self), JournalError> {
        let (payload, next) = self.follow(number, record)?;
        let change = serde_json::from_slice(payload).map_err(|error| JournalError::Damaged {
            number,
            why: error.to_string(),
        })?;
        Ok((change, next))
    }

    /// Checks that `record` follows this head, and gives its bytes without the chain's.
    fn follow(self, number: u64, record: &[u8]) -> Result<(&[u8], Self), JournalError> {
        let damaged = |why: &str| JournalError::Damaged {
            number,
            why: why.into(),
        };
        if number != self.next {
            return Err(JournalError::Damaged {
                number: self.next,
                why: format!("it is missing; the next on record is {number}"),
            });
        }
        let (previous, payload) = record
            .split_at_checked(32)
            .ok_or_else(|| damaged("too short"))?;
        if previous != self.last.0 {
            return Err(damaged("it does not carry its predecessor's hash"));
        }
        Ok((payload, self.after(record)))
    }
}

#[cfg(test)]
pub(crate) mod conformance {
    //! What every journal must do.

    use super::*;
    use proto_spec::{SigningKey, Timestamp};

    pub(crate) fn change(n: u64) -> Change {
        Change::Denied {
            name: format!("agent-{n}").parse().unwrap(),
            key: SigningKey::from_seed(&[n as u8; 32]).public(),
            reason: Some("because".into()),
            by: "root".parse().unwrap(),
            at: Timestamp::from_ms(n),
        }
    }

    pub(crate) fn times(journal: &mut dyn Journal) -> Vec<u64> {
        let mut seen = Vec::new();
        journal
            .replay(&mut |change| seen.push(change.at().as_ms()))
            .unwrap();
        seen
    }

    pub(crate) fn what_was_appended_replays_in_order(journal: &mut dyn Journal) {
        assert_eq!(times(journal), Vec::<u64>::new());
        journal.append(&[&change(1), &change(2)]).unwrap();
        journal.append(&[]).unwrap();
        journal.append(&[&change(3)]).unwrap();
        assert_eq!(times(journal), [1, 2, 3]);
        journal.append(&[&change(4)]).unwrap();
        assert_eq!(times(journal), [1, 2, 3, 4]);
    }
}
