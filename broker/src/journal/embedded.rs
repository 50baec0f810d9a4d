//! The default journal: one redb file, synced before an append returns.

use std::path::Path;

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::{Change, FORMAT, Head, Journal, JournalError};

const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Records in `journal.redb` of a data directory.
#[derive(Debug)]
pub struct Embedded {
    database: Database,
    head: Head,
}

fn read(error: impl std::fmt::Display) -> JournalError {
    JournalError::Read(error.to_string())
}

fn write(error: impl std::fmt::Display) -> JournalError {
    JournalError::Write(error.to_string())
}

impl Embedded {
    /// Opens the journal of `data`, which exists, or begins one. One process at a time.
    ///
    /// # Errors
    ///
    /// [`JournalError::Read`] where it cannot be opened or another process has it,
    /// [`JournalError::Newer`] where a later version wrote it.
    pub fn open(data: &Path) -> Result<Self, JournalError> {
        let database = Database::create(data.join("journal.redb")).map_err(read)?;
        let transaction = database.begin_write().map_err(read)?;
        {
            let mut meta = transaction.open_table(META).map_err(read)?;
            let format = meta.get("format").map_err(read)?.map(|value| value.value());
            match format {
                Some(found) if found > FORMAT => return Err(JournalError::Newer(found)),
                Some(_) => {}
                None => {
                    meta.insert("format", FORMAT).map_err(read)?;
                }
            }
            transaction.open_table(RECORDS).map_err(read)?;
        }
        transaction.commit().map_err(read)?;
        let mut journal = Self {
            database,
            head: Head::START,
        };
        journal.replay(&mut |_| {})?;
        Ok(journal)
    }
}

impl Journal for Embedded {
    fn append(&mut self, changes: &[&Change]) -> Result<(), JournalError> {
        // redb's default durability syncs on commit: when this returns, the records are on disk.
        let transaction = self.database.begin_write().map_err(write)?;
        let mut head = self.head;
        {
            let mut table = transaction.open_table(RECORDS).map_err(write)?;
            for change in changes {
                let (record, after) = head.record(change).map_err(write)?;
                table.insert(head.next, record.as_slice()).map_err(write)?;
                head = after;
            }
        }
        transaction.commit().map_err(write)?;
        self.head = head;
        Ok(())
    }

    fn replay(&mut self, each: &mut dyn FnMut(Change)) -> Result<(), JournalError> {
        let transaction = self.database.begin_read().map_err(read)?;
        let table = transaction.open_table(RECORDS).map_err(read)?;
        let mut head = Head::START;
        for entry in table.iter().map_err(read)? {
            let (number, record) = entry.map_err(read)?;
            let (change, next) = head.read(number.value(), record.value())?;
            head = next;
            each(change);
        }
        self.head = head;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{change, times, what_was_appended_replays_in_order};
    use super::*;

    #[test]
    fn the_embedded_journal_conforms_and_survives_reopening() {
        let data = tempfile::tempdir().unwrap();
        let mut journal = Embedded::open(data.path()).unwrap();
        what_was_appended_replays_in_order(&mut journal);
        drop(journal);
        let mut journal = Embedded::open(data.path()).unwrap();
        journal.append(&[&change(5)]).unwrap();
        assert_eq!(times(&mut journal), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_record_that_was_altered_or_lost_stops_the_start_with_its_position() {
        for spoil in [0, 1] {
            let data = tempfile::tempdir().unwrap();
            let mut journal = Embedded::open(data.path()).unwrap();
            journal
                .append(&[&change(1), &change(2), &change(3)])
                .unwrap();
            let transaction = journal.database.begin_write().unwrap();
            {
                let mut table = transaction.open_table(RECORDS).unwrap();
                if spoil == 0 {
                    table.remove(1).unwrap();
                } else {
                    let mut record = table.get(1).unwrap().unwrap().value().to_vec();
                    *record.last_mut().unwrap() ^= 1;
                    table.insert(1, record.as_slice()).unwrap();
                }
            }
            transaction.commit().unwrap();
            drop(journal);
            let error = Embedded::open(data.path()).unwrap_err().to_string();
            assert!(
                error.contains(if spoil == 0 { "record 1" } else { "record" }),
                "{error}"
            );
        }
    }

    #[test]
    fn a_data_directory_of_a_later_version_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let journal = Embedded::open(data.path()).unwrap();
        let transaction = journal.database.begin_write().unwrap();
        transaction
            .open_table(META)
            .unwrap()
            .insert("format", FORMAT + 1)
            .unwrap();
        transaction.commit().unwrap();
        drop(journal);
        assert!(matches!(
            Embedded::open(data.path()),
            Err(JournalError::Newer(_))
        ));
    }
}
