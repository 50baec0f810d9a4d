//! A file that the engine may open, repair and write to without changing it.
//!
//! Whoever looks at a damaged journal must not alter it: the engine's repair would drop what it
//! cannot read.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Result};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use crate::locks::lock;

const BLOCK: u64 = 4_096;

/// What is written stays in memory: some pages at most.
#[derive(Debug)]
pub(super) struct Overlay {
    file: File,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    /// The length as the engine sees it.
    len: u64,
    /// What of the file is still seen: it may have been cut.
    visible: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Overlay {
    /// Opens a file that no other process writes.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(ErrorKind::ResourceBusy.into());
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let len = file.metadata()?.len();
        Ok(Self {
            file,
            written: Mutex::new(Written {
                len,
                visible: len,
                blocks: BTreeMap::new(),
            }),
        })
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        lock(&self.written)
    }

    /// A block as it would be read: zeros where there is nothing.
    fn block(&self, written: &Written, number: u64) -> Result<Vec<u8>> {
        if let Some(block) = written.blocks.get(&number) {
            return Ok(block.clone());
        }
        let mut block = vec![0; BLOCK as usize];
        let seen = written.visible.saturating_sub(number * BLOCK).min(BLOCK) as usize;
        self.file
            .read_exact_at(&mut block[..seen], number * BLOCK)?;
        Ok(block)
    }
}

/// The blocks that `length` bytes at `offset` lie in: number, where in the block, where in the bytes.
fn blocks(
    offset: u64,
    length: usize,
) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = (at % BLOCK) as usize;
        let count = (length - done).min(BLOCK as usize - within);
        let range = done..done + count;
        done += count;
        (count > 0).then_some((at / BLOCK, within, range))
    })
}

impl redb::StorageBackend for Overlay {
    fn len(&self) -> Result<u64> {
        Ok(self.written().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let written = self.written();
        if offset.saturating_add(out.len() as u64) > written.len {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        for (number, within, range) in blocks(offset, out.len()) {
            let block = self.block(&written, number)?;
            let count = range.len();
            out[range].copy_from_slice(&block[within..within + count]);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut written = self.written();
        written.len = len;
        written.visible = written.visible.min(len);
        written.blocks.retain(|number, _| number * BLOCK < len);
        Ok(())
    }

    fn sync_data(&self) -> Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut written = self.written();
        for (number, within, range) in blocks(offset, data.len()) {
            let mut block = self.block(&written, number)?;
            block[within..within + range.len()].copy_from_slice(&data[range]);
            written.blocks.insert(number, block);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use redb::StorageBackend as _;

    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_the_file_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        let overlay = Overlay::open(&path).unwrap();
        overlay.write(4_090, &[1; 12]).unwrap();
        overlay.set_len(20_000).unwrap();
        let mut all = vec![9; 20_000];
        overlay.read(0, &mut all).unwrap();
        assert_eq!(
            all[4_089..4_103],
            [7, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 7]
        );
        assert_eq!((all[9_999], all[10_000], all[19_999]), (7, 0, 0));
        assert!(overlay.read(19_999, &mut [0; 2]).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), vec![7; 10_000]);
    }

    #[test]
    fn what_was_cut_off_does_not_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        let overlay = Overlay::open(&path).unwrap();
        overlay.set_len(5_000).unwrap();
        overlay.set_len(10_000).unwrap();
        let mut byte = [9];
        overlay.read(4_999, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        overlay.read(5_000, &mut byte).unwrap();
        assert_eq!(byte, [0]);
    }
}
