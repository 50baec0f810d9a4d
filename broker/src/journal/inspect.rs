//! Looks at a journal that nobody has open, and changes nothing.

use std::io::ErrorKind;
use std::mem::ManuallyDrop;
use std::panic::AssertUnwindSafe;
use std::path::Path;

use redb::{Database, ReadTransaction, ReadableDatabase as _};

use super::embedded::{self, CACHE_BYTES, read, summarise};
use super::overlay::Overlay;
use super::{Change, Head, JournalError, Summary, mark};

/// Walks the journal of `data` as [`inspect`] does, without reading what the records say.
///
/// # Errors
///
/// As [`inspect`].
pub(super) fn check(data: &Path) -> Result<Head, JournalError> {
    look(data, |transaction, mark| {
        embedded::follow(transaction, mark)
    })
}

/// As [`check`], and gives what each record after `since` says.
///
/// # Errors
///
/// As [`inspect`], and [`JournalError::Elsewhere`].
pub(super) fn give(
    data: &Path,
    since: Head,
    each: &mut dyn FnMut(Change),
) -> Result<Head, JournalError> {
    look(data, |transaction, mark| {
        embedded::follow_giving(transaction, mark, since, each)
    })
}

/// Walks the journal of `data`: the engine's checksums, the chain, and that nothing is missing behind
/// its mark. An unfinished transaction is no damage: the engine undoes it.
///
/// # Errors
///
/// [`JournalError::Damaged`] with the first record that does not fit, [`JournalError::Newer`], and
/// [`JournalError::Read`] where there is none, or another process has it.
pub fn inspect(data: &Path, each: &mut dyn FnMut(Change)) -> Result<Summary, JournalError> {
    look(data, |transaction, mark| summarise(transaction, mark, each))
}

fn look<T>(
    data: &Path,
    walk: impl FnOnce(&ReadTransaction, Option<Head>) -> Result<T, JournalError>,
) -> Result<T, JournalError> {
    let mark = mark::read(data)?;
    let checked = open(data, true).and_then(|database| {
        let transaction = database.begin_read().map_err(read)?;
        walk(&transaction, mark)
    });
    match checked {
        // The engine says only that something does not verify. The chain says where.
        Err(JournalError::Read(why)) => Err(first_damage(data).unwrap_or(JournalError::Read(why))),
        checked => checked,
    }
}

/// Copies the journal of `data`, which nobody has open, into the empty folder `to`, durably.
///
/// # Errors
///
/// As [`inspect`], and [`JournalError::Write`] where the copy cannot be written.
pub fn copy(data: &Path, to: &Path) -> Result<Summary, JournalError> {
    embedded::copy(&open(data, true)?, mark::read(data)?, to)
}

fn open(data: &Path, checked: bool) -> Result<Database, JournalError> {
    let path = data.join("journal.redb");
    let overlay = Overlay::open(&path).map_err(|error| match error.kind() {
        ErrorKind::ResourceBusy => JournalError::InUse(path.display().to_string()),
        _ => JournalError::Read(format!("{}: {error}", path.display())),
    })?;
    Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(checked)
        .create_with_backend(overlay)
        .map_err(read)
}

/// Which record a damage is in, where the engine can still find its way to it.
fn first_damage(data: &Path) -> Option<JournalError> {
    // The engine may panic on a page that it would not have taken for one of its own, and again when it
    // closes the file: so it is never told to. What leaks is the memory of a process that stops here.
    let walk = || {
        let database = ManuallyDrop::new(open(data, false).ok()?);
        let transaction = ManuallyDrop::new(database.begin_read().ok()?);
        match summarise(&transaction, None, &mut |_| {}) {
            Err(damaged @ JournalError::Damaged { .. }) => Some(damaged),
            _ => None,
        }
    };
    std::panic::catch_unwind(AssertUnwindSafe(walk))
        .ok()
        .flatten()
}
