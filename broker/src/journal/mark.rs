//! The mark beside the journal: how far it had come, so that a lost end is seen.
//!
//! A chain that lost its last records is a shorter chain, and fits. The engine also drops its last
//! transaction when a page of it does not verify after a crash, because it takes it for unfinished.
//! The mark is written after a commit and is never ahead of what is durable, so a journal that ends
//! before it has lost something. It is not synced: after a loss of power it may be behind, which only
//! means that it shows less.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{Head, JournalError};

/// One line of fixed length, within one sector: it is there as a whole or not at all.
const BYTES: usize = 20 + 1 + 43 + 1;

/// `journal.head` of a data directory.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
}

fn path(data: &Path) -> PathBuf {
    data.join("journal.head")
}

impl Mark {
    /// Opens the mark of `data` to be moved, or makes one that stands at `head`.
    pub(super) fn open(data: &Path, head: Head) -> std::io::Result<Self> {
        let path = path(data);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        let mark = Self { file };
        mark.set(head)?;
        mark.file.sync_all()?;
        Ok(mark)
    }

    /// Moves the mark to `head`.
    pub(super) fn set(&self, head: Head) -> std::io::Result<()> {
        let line = format!("{:020} {}\n", head.next, head.last);
        debug_assert_eq!(line.len(), BYTES);
        self.file.write_all_at(line.as_bytes(), 0)
    }
}

/// Where the mark of `data` stands, if it has one.
///
/// # Errors
///
/// [`JournalError::Read`] where it cannot be read or is not a mark.
pub(super) fn read(data: &Path) -> Result<Option<Head>, JournalError> {
    let path = path(data);
    let failed =
        |why: &dyn std::fmt::Display| JournalError::Read(format!("{}: {why}", path.display()));
    let mut text = String::new();
    match File::open(&path) {
        Ok(file) => file
            .take(BYTES as u64 + 1)
            .read_to_string(&mut text)
            .map_err(|error| failed(&error))?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    // A first start that was killed in between left it empty.
    if text.is_empty() {
        return Ok(None);
    }
    let head = text.strip_suffix('\n').and_then(|line| {
        let (next, last) = line.split_once(' ')?;
        Some(Head {
            next: next.parse().ok()?,
            last: last.parse().ok()?,
        })
    });
    head.map(Some).ok_or_else(|| {
        failed(&"not the mark of a journal. If the journal is known to be whole, remove this file")
    })
}
