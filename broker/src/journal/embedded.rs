//! The default journal: one redb file, synced before an append returns.
//!
//! After a failed write the engine refuses everything until the file is opened again, so this does
//! that: a disk that was full and has room again needs no restart. What was refused and reached the
//! disk all the same is undone before anybody can read it.

use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, RwLock};

use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _, StorageError,
    TableDefinition,
};

use super::inspect::{check, give};
use super::mark::{self, Mark};
use super::{Change, FORMAT, Head, Journal, JournalError, Summary};
use crate::locks;

const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Records that one thread passes to the other at once, and how many such batches wait.
const BATCH: usize = 512;
const BATCHES: usize = 8;
/// Pages that the engine keeps in memory: records are read once, at the start.
pub(super) const CACHE_BYTES: usize = 16 << 20;

/// Records in `journal.redb` of a data directory.
#[derive(Debug)]
pub struct Embedded {
    file: Arc<Engine>,
    mark: Mark,
    head: Head,
}

/// Reads what is durable beside an [`Embedded`] that goes on appending.
#[derive(Debug, Clone)]
pub struct Reader {
    file: Arc<Engine>,
}

/// The open file; closed after a failed write until it can be opened again.
#[derive(Debug)]
struct Engine {
    path: PathBuf,
    database: RwLock<Option<Database>>,
}

pub(super) fn read(error: impl std::fmt::Display) -> JournalError {
    JournalError::Read(error.to_string())
}

fn write(error: impl std::fmt::Display) -> JournalError {
    JournalError::Write(error.to_string())
}

impl Engine {
    fn with<T>(
        &self,
        act: impl FnOnce(&Database) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        match &*locks::read(&self.database) {
            Some(database) => act(database),
            None => Err(JournalError::Read("closed after a failed write".into())),
        }
    }

    /// Closes the file and opens it again: what a failed write left behind `head` is undone.
    fn reopen(&self, head: Head) -> Result<(), JournalError> {
        let mut database = locks::write(&self.database);
        // Only one may have it open.
        drop(database.take());
        let opened = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .open(&self.path)
            .map_err(write)?;
        undo_unacknowledged(&opened, head)?;
        *database = Some(opened);
        Ok(())
    }
}

/// A commit whose last sync failed may be on disk all the same. It was refused, so it goes.
fn undo_unacknowledged(database: &Database, head: Head) -> Result<(), JournalError> {
    if last(&database.begin_read().map_err(write)?)? == head {
        return Ok(());
    }
    let transaction = database.begin_write().map_err(write)?;
    {
        let mut table = transaction.open_table(RECORDS).map_err(write)?;
        table.retain_in(head.next.., |_, _| false).map_err(write)?;
    }
    transaction.commit().map_err(write)
}

impl Embedded {
    /// Opens the journal of `data`, which exists, or begins one. One process at a time.
    ///
    /// # Errors
    ///
    /// [`JournalError::Damaged`] where a record does not fit, and nothing was changed;
    /// [`JournalError::Read`] where it cannot be opened or another process has it,
    /// [`JournalError::Newer`] where a later version wrote it.
    pub fn open(data: &Path) -> Result<Self, JournalError> {
        Self::open_after(data, || check(data))
    }

    /// As [`Embedded::open`], and gives every change in order on the way: what they say is read once.
    /// Whoever uses them discards them where this fails.
    ///
    /// # Errors
    ///
    /// As [`Embedded::open`].
    pub fn open_giving(data: &Path, each: &mut dyn FnMut(Change)) -> Result<Self, JournalError> {
        Self::open_giving_since(data, Head::START, each)
    }

    /// As [`Embedded::open_giving`], for whoever knows what the records up to `since` say: the chain is
    /// followed through all of them, and only those after it are read.
    ///
    /// # Errors
    ///
    /// As [`Embedded::open`], and [`JournalError::Elsewhere`] where its chain does not pass through
    /// `since`: nothing was given then.
    pub fn open_giving_since(
        data: &Path,
        since: Head,
        each: &mut dyn FnMut(Change),
    ) -> Result<Self, JournalError> {
        Self::open_after(data, || give(data, since, each))
    }

    fn open_after(
        data: &Path,
        look: impl FnOnce() -> Result<Head, JournalError>,
    ) -> Result<Self, JournalError> {
        let path = data.join("journal.redb");
        let length = std::fs::metadata(&path).map_or(0, |found| found.len());
        let mark = mark::read(data)?;
        let checked = if length > 0 {
            // Before the engine may repair anything.
            look()?
        } else {
            expect(Head::START, mark, None)?;
            Head::START
        };
        let database = begin(&path)?;
        let head = last(&database.begin_read().map_err(read)?)?;
        if head != checked {
            return Err(JournalError::Damaged {
                number: head.next,
                why: "the engine found another end than the chain has".into(),
            });
        }
        Ok(Self {
            mark: Mark::open(data, head).map_err(read)?,
            file: Arc::new(Engine {
                path,
                database: RwLock::new(Some(database)),
            }),
            head,
        })
    }

    /// A way to read it that goes on to work while this appends.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader {
            file: Arc::clone(&self.file),
        }
    }

    fn try_append(&self, changes: &[&Change]) -> Result<Head, JournalError> {
        self.file.with(|database| {
            // redb's default durability syncs on commit: when this returns, the records are on disk.
            let transaction = database.begin_write().map_err(write)?;
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
            Ok(head)
        })
    }
}

impl Journal for Embedded {
    fn append(&mut self, changes: &[&Change]) -> Result<(), JournalError> {
        let is_open = locks::read(&self.file.database).is_some();
        if !is_open {
            self.file.reopen(self.head)?;
        }
        match self.try_append(changes) {
            Ok(head) => {
                self.head = head;
                if let Err(error) = self.mark.set(head) {
                    tracing::warn!(%error, "the journal's mark stays behind: a lost end may not be seen");
                }
                Ok(())
            }
            Err(error) => {
                if let Err(error) = self.file.reopen(self.head) {
                    tracing::error!(%error, "the journal stays closed until it can be opened again");
                }
                Err(error)
            }
        }
    }

    fn replay(&mut self, each: &mut dyn FnMut(Change)) -> Result<(), JournalError> {
        let head = self.file.with(|database| {
            let transaction = database.begin_read().map_err(read)?;
            walk(&transaction, None, &mut |change, _| each(change))
        })?;
        self.head = head;
        Ok(())
    }

    fn head(&self) -> Head {
        self.head
    }
}

impl Reader {
    /// Walks the chain as it is at this moment.
    ///
    /// # Errors
    ///
    /// As [`inspect`](super::inspect()).
    pub fn inspect(&self) -> Result<Summary, JournalError> {
        self.file.with(|database| {
            let transaction = database.begin_read().map_err(read)?;
            summarise(&transaction, None, &mut |_| {})
        })
    }

    /// Writes the journal as it is at this moment into the empty folder `to`, durably.
    ///
    /// # Errors
    ///
    /// As [`inspect`](super::inspect()), and [`JournalError::Write`] where the copy cannot be written.
    pub fn copy(&self, to: &Path) -> Result<Summary, JournalError> {
        self.file.with(|database| copy(database, None, to))
    }
}

/// Opens the file, or makes it.
fn begin(path: &Path) -> Result<Database, JournalError> {
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create(path)
        .map_err(read)?;
    let transaction = database.begin_write().map_err(read)?;
    let is_new = {
        let mut meta = transaction.open_table(META).map_err(read)?;
        transaction.open_table(RECORDS).map_err(read)?;
        let format = meta.get("format").map_err(read)?.map(|value| value.value());
        if format.is_none() {
            meta.insert("format", FORMAT).map_err(read)?;
        }
        check_format(format)?;
        format.is_none()
    };
    if is_new {
        transaction.commit().map_err(read)?;
    } else {
        transaction.abort().map_err(read)?;
    }
    Ok(database)
}

fn check_format(format: Option<u64>) -> Result<(), JournalError> {
    match format {
        Some(found) if found > FORMAT => Err(JournalError::Newer(found)),
        _ => Ok(()),
    }
}

/// Writes all records of `from` into a journal of its own.
pub(super) fn copy(
    from: &Database,
    mark: Option<Head>,
    to: &Path,
) -> Result<Summary, JournalError> {
    let transaction = from.begin_read().map_err(read)?;
    let copied = begin(&to.join("journal.redb"))?;
    let writing = copied.begin_write().map_err(write)?;
    let mut summary = Summary::NOTHING;
    let head = {
        let mut table = writing.open_table(RECORDS).map_err(write)?;
        let mut failed = None;
        let head = walk(&transaction, mark, &mut |change, record| {
            let inserted = table.insert(summary.records, record);
            if let Err(error) = inserted {
                failed.get_or_insert(write(error));
            }
            summary.count(&change);
        })?;
        failed.map_or(Ok(head), Err)?
    };
    writing.commit().map_err(write)?;
    copied.close().map_err(write)?;
    Mark::open(to, head).map_err(write)?;
    summary.head = head.last;
    Ok(summary)
}

/// Walks all records, and sums them up.
pub(super) fn summarise(
    transaction: &ReadTransaction,
    mark: Option<Head>,
    each: &mut dyn FnMut(Change),
) -> Result<Summary, JournalError> {
    let mut summary = Summary::NOTHING;
    let head = walk(transaction, mark, &mut |change, _| {
        summary.count(&change);
        each(change);
    })?;
    summary.head = head.last;
    Ok(summary)
}

/// The head after the last record, from that record alone.
fn last(transaction: &ReadTransaction) -> Result<Head, JournalError> {
    let table = transaction.open_table(RECORDS).map_err(read)?;
    let Some((number, record)) = table.last().map_err(read)? else {
        return Ok(Head::START);
    };
    let (number, record) = (number.value(), record.value());
    let mut before = Head {
        next: number,
        ..Head::START
    };
    let previous = record.get(..32).unwrap_or_default();
    if previous.len() == before.last.0.len() {
        before.last.0.copy_from_slice(previous);
    }
    before.follow(number, record).map(|(_, head)| head)
}

/// Checks every record against its predecessor, and gives the head after the last.
pub(super) fn follow(
    transaction: &ReadTransaction,
    mark: Option<Head>,
) -> Result<Head, JournalError> {
    each(transaction, mark, |head, number, record| {
        head.follow(number, record).map(|(_, next)| next)
    })
}

/// As [`follow`], and gives what each record after `since` says. One thread reads and hashes while the
/// other parses and gives.
pub(super) fn follow_giving(
    transaction: &ReadTransaction,
    mark: Option<Head>,
    since: Head,
    give: &mut dyn FnMut(Change),
) -> Result<Head, JournalError> {
    let (batches, waiting) = sync_channel::<Vec<(u64, Vec<u8>)>>(BATCHES);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut batch = Vec::with_capacity(BATCH);
            let head = each(transaction, mark, |head, number, record| {
                let (payload, next) = head.follow(number, record)?;
                if next.next == since.next && next != since {
                    return Err(JournalError::Elsewhere(since.next));
                }
                if number < since.next {
                    return Ok(next);
                }
                batch.push((number, payload.to_vec()));
                if batch.len() == BATCH {
                    // The other side listens until this one ends.
                    let _ = batches.send(std::mem::take(&mut batch));
                }
                Ok(next)
            });
            let _ = batches.send(batch);
            head
        });
        let mut damaged = None;
        for (number, payload) in waiting.into_iter().flatten() {
            match serde_json::from_slice(&payload) {
                Ok(change) => give(change),
                Err(error) => {
                    let why = error.to_string();
                    damaged.get_or_insert(JournalError::Damaged { number, why });
                }
            }
        }
        let head = reader
            .join()
            .map_err(|_| JournalError::Read("reading it panicked".into()))?;
        // What comes first in the journal is told first.
        match (damaged, head) {
            (Some(damaged), Ok(_)) => Err(damaged),
            (None, Ok(head)) if head.next < since.next => Err(JournalError::Elsewhere(since.next)),
            (_, head) => head,
        }
    })
}

/// Gives every record that fits its predecessor, and the head after the last.
fn walk(
    transaction: &ReadTransaction,
    mark: Option<Head>,
    give: &mut dyn FnMut(Change, &[u8]),
) -> Result<Head, JournalError> {
    each(transaction, mark, |head, number, record| {
        let (change, next) = head.read(number, record)?;
        give(change, record);
        Ok(next)
    })
}

fn each(
    transaction: &ReadTransaction,
    mark: Option<Head>,
    mut after: impl FnMut(Head, u64, &[u8]) -> Result<Head, JournalError>,
) -> Result<Head, JournalError> {
    let meta = transaction.open_table(META).map_err(read)?;
    check_format(meta.get("format").map_err(read)?.map(|value| value.value()))?;
    let table = transaction.open_table(RECORDS).map_err(read)?;
    let mut head = Head::START;
    let mut marked = mark.filter(|mark| *mark == Head::START);
    for entry in table.iter().map_err(|error| unreadable(head, &error))? {
        let (number, record) = entry.map_err(|error| unreadable(head, &error))?;
        head = after(head, number.value(), record.value())?;
        if mark.is_some_and(|mark| mark.next == head.next) {
            marked = Some(head);
        }
    }
    expect(head, mark, marked)?;
    Ok(head)
}

/// Checks that a journal whose head is `head`, and was `then` at the mark's number, has all that the
/// mark says it had.
fn expect(head: Head, mark: Option<Head>, then: Option<Head>) -> Result<(), JournalError> {
    match mark {
        Some(mark) if mark.next > head.next => Err(JournalError::Damaged {
            number: head.next,
            why: format!(
                "it is missing: the journal had {} records (journal.head)",
                mark.next
            ),
        }),
        Some(mark) if mark.next > 0 && then != Some(mark) => Err(JournalError::Damaged {
            number: mark.next - 1,
            why: "it is not the record that was acknowledged (journal.head)".into(),
        }),
        _ => Ok(()),
    }
}

fn unreadable(head: Head, error: &StorageError) -> JournalError {
    match error {
        StorageError::Corrupted(why) => JournalError::Damaged {
            number: head.next,
            why: why.clone(),
        },
        error => read(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{change, times, what_was_appended_replays_in_order};
    use super::super::inspect;
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

    /// Alters what is on disk behind the journal's back.
    fn alter(data: &Path, act: impl FnOnce(&redb::WriteTransaction)) {
        let database = Database::open(data.join("journal.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        act(&transaction);
        transaction.commit().unwrap();
    }

    /// A journal of four records; the mark is after the last.
    fn four() -> tempfile::TempDir {
        let data = tempfile::tempdir().unwrap();
        let mut journal = Embedded::open(data.path()).unwrap();
        for n in 1..=4 {
            journal.append(&[&change(n)]).unwrap();
        }
        data
    }

    /// The record at which both the start and the inspection stop.
    #[track_caller]
    fn damaged(data: &Path) -> u64 {
        let position = |error: JournalError| match error {
            JournalError::Damaged { number, .. } => number,
            error => panic!("{error}"),
        };
        let before = std::fs::read(data.join("journal.redb")).unwrap();
        let inspected = position(inspect(data, &mut |_| {}).unwrap_err());
        let opened = position(Embedded::open(data).unwrap_err());
        assert_eq!(inspected, opened);
        let after = std::fs::read(data.join("journal.redb")).unwrap();
        assert!(before == after, "a damaged journal is left as it is");
        opened
    }

    #[test]
    fn a_record_that_was_removed_or_altered_stops_the_start_with_its_position() {
        let data = four();
        alter(data.path(), |transaction| {
            let mut table = transaction.open_table(RECORDS).unwrap();
            table.remove(1).unwrap();
        });
        assert_eq!(damaged(data.path()), 1);
        let data = four();
        alter(data.path(), |transaction| {
            let mut table = transaction.open_table(RECORDS).unwrap();
            let mut record = table.get(1).unwrap().unwrap().value().to_vec();
            let reason = record.windows(7).position(|at| at == b"because").unwrap();
            record[reason] = b'B';
            table.insert(1, record.as_slice()).unwrap();
        });
        assert_eq!(damaged(data.path()), 2, "its successor names another");
    }

    #[test]
    fn a_lost_or_replaced_end_stops_the_start() {
        let data = four();
        alter(data.path(), |transaction| {
            let mut table = transaction.open_table(RECORDS).unwrap();
            table.remove(3).unwrap();
        });
        assert_eq!(damaged(data.path()), 3);
        let data = four();
        let other = tempfile::tempdir().unwrap();
        let mut journal = Embedded::open(other.path()).unwrap();
        journal
            .append(
                &(5..=9)
                    .map(change)
                    .collect::<Vec<_>>()
                    .iter()
                    .collect::<Vec<_>>(),
            )
            .unwrap();
        drop(journal);
        std::fs::copy(
            other.path().join("journal.redb"),
            data.path().join("journal.redb"),
        )
        .unwrap();
        assert_eq!(damaged(data.path()), 3);
        std::fs::remove_file(data.path().join("journal.redb")).unwrap();
        assert!(
            Embedded::open(data.path()).is_err(),
            "nor does it begin anew"
        );
        assert!(!data.path().join("journal.redb").exists());
    }

    #[test]
    fn a_flipped_byte_is_found_wherever_it_lies_or_does_no_harm() {
        let closed = four();
        let running = four();
        let journal = Embedded::open(running.path()).unwrap();
        let killed = tempfile::tempdir().unwrap();
        for name in ["journal.redb", "journal.head"] {
            std::fs::copy(running.path().join(name), killed.path().join(name)).unwrap();
        }
        drop(journal);
        // After a kill the engine takes a last transaction that does not verify for unfinished.
        for data in [closed.path(), killed.path()] {
            let path = data.join("journal.redb");
            let whole = std::fs::read(&path).unwrap();
            let written = (0..whole.len()).filter(|at| whole[*at] != 0);
            let mut stopped = 0;
            for at in written.step_by(11) {
                let mut spoilt = whole.clone();
                spoilt[at] ^= 0x10;
                std::fs::write(&path, &spoilt).unwrap();
                let mut times = Vec::new();
                match inspect(data, &mut |change| times.push(change.at().as_ms())) {
                    Ok(_) => assert_eq!(times, [1, 2, 3, 4], "byte {at}"),
                    Err(_) => stopped += 1,
                }
            }
            assert!(stopped > 50, "only {stopped} were noticed");
        }
    }

    #[test]
    fn a_truncated_file_stops_the_start_and_stays_as_it_is() {
        for part in [3, 2] {
            let data = four();
            let path = data.path().join("journal.redb");
            let whole = std::fs::read(&path).unwrap();
            let cut = &whole[..whole.len() / part];
            std::fs::write(&path, cut).unwrap();
            Embedded::open(data.path()).unwrap_err();
            assert!(std::fs::read(&path).unwrap() == cut);
        }
    }

    #[test]
    fn a_mark_that_stayed_behind_is_no_damage() {
        let data = four();
        let before = std::fs::read(data.path().join("journal.head")).unwrap();
        let mut journal = Embedded::open(data.path()).unwrap();
        journal.append(&[&change(5)]).unwrap();
        drop(journal);
        std::fs::write(data.path().join("journal.head"), before).unwrap();
        assert_eq!(
            times(&mut Embedded::open(data.path()).unwrap()),
            [1, 2, 3, 4, 5]
        );
    }

    #[test]
    fn what_was_refused_and_reached_the_disk_is_gone_when_the_file_is_open_again() {
        let data = four();
        let mut journal = Embedded::open(data.path()).unwrap();
        let (record, _) = journal.head.record(&change(5)).unwrap();
        let reached = journal.file.with(|database| {
            let transaction = database.begin_write().map_err(write)?;
            let mut table = transaction.open_table(RECORDS).map_err(write)?;
            table.insert(4, record.as_slice()).map_err(write)?;
            drop(table);
            transaction.commit().map_err(write)
        });
        reached.unwrap();
        assert_eq!(journal.reader().inspect().unwrap().records, 5);
        journal.file.reopen(journal.head).unwrap();
        assert_eq!(journal.reader().inspect().unwrap().records, 4);
        journal.append(&[&change(6)]).unwrap();
        assert_eq!(times(&mut journal), [1, 2, 3, 4, 6]);
    }

    #[test]
    fn what_follows_a_head_is_given_and_what_lies_before_it_is_followed() {
        let data = four();
        let mut heads = vec![Head::START];
        for n in 1..=4 {
            let (_, next) = heads[n as usize - 1].record(&change(n)).unwrap();
            heads.push(next);
        }
        let since = |since: Head| {
            let mut seen = Vec::new();
            Embedded::open_giving_since(data.path(), since, &mut |change| {
                seen.push(change.at().as_ms());
            })
            .map(|journal| (journal.head().next, seen))
        };
        for (n, head) in heads.iter().enumerate() {
            let after: Vec<u64> = (n as u64 + 1..=4).collect();
            assert_eq!(since(*head).unwrap(), (4, after));
        }
        let (_, newer) = heads[4].record(&change(5)).unwrap();
        let foreign = Head {
            next: 2,
            ..heads[3]
        };
        for head in [newer, foreign] {
            let refused = since(head);
            assert!(matches!(refused, Err(JournalError::Elsewhere(n)) if n == head.next));
        }
        alter(data.path(), |transaction| {
            transaction.open_table(RECORDS).unwrap().remove(1).unwrap();
        });
        for head in &heads {
            let stopped = since(*head);
            assert!(matches!(
                stopped,
                Err(JournalError::Damaged { number: 1, .. })
            ));
        }
    }

    #[test]
    fn a_journal_is_one_process_at_a_time() {
        let data = four();
        let _open = Embedded::open(data.path()).unwrap();
        let error = inspect(data.path(), &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("open in another process"), "{error}");
        assert!(Embedded::open(data.path()).is_err());
    }

    #[test]
    fn a_copy_is_made_while_the_journal_goes_on() {
        let data = four();
        let mut journal = Embedded::open(data.path()).unwrap();
        let reader = journal.reader();
        let copy = tempfile::tempdir().unwrap();
        let summary = reader.copy(copy.path()).unwrap();
        journal.append(&[&change(5)]).unwrap();
        assert_eq!(summary.records, 4);
        assert_eq!(inspect(copy.path(), &mut |_| {}).unwrap(), summary);
        assert_eq!(reader.inspect().unwrap().records, 5);
    }

    #[test]
    fn a_data_directory_of_a_later_version_is_refused() {
        let data = tempfile::tempdir().unwrap();
        drop(Embedded::open(data.path()).unwrap());
        alter(data.path(), |transaction| {
            let mut meta = transaction.open_table(META).unwrap();
            meta.insert("format", FORMAT + 1).unwrap();
        });
        assert!(matches!(
            Embedded::open(data.path()),
            Err(JournalError::Newer(_))
        ));
    }
}
