//! A backup: a data directory of its own, with the journal and without the replay window.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{entropy, make_private, socket, sync_folder};
use crate::journal::{Embedded, Reader, Summary};
use crate::state::replay;

/// Copies the journal of `data` into `target`, which does not exist: the broker that runs on it does,
/// or, where none runs, this process.
///
/// # Errors
///
/// When there is no journal, it is damaged, or `target` exists or cannot be written.
pub fn back_up(data: &Path, target: &Path) -> anyhow::Result<Summary> {
    // The broker has another working directory.
    let target = std::path::absolute(target)?;
    let question = socket::Question::BackUp {
        target: target.clone(),
    };
    match socket::ask(data, &question)? {
        Some(answer) => Ok(answer.into_result()?),
        None => {
            if !data.join("journal.redb").exists() {
                bail!("{} holds no journal", data.display());
            }
            copy(&Embedded::open(data)?.reader(), &target)
        }
    }
}

/// Writes a backup beside `target`, syncs it, and moves it there: there is never half a backup, and
/// never one in place of another.
pub(super) fn copy(reader: &Reader, target: &Path) -> anyhow::Result<Summary> {
    if target.exists() {
        bail!("{} exists, and is never overwritten", target.display());
    }
    let unfinished = Unfinished::beside(target)?;
    let summary = reader.copy(&unfinished.0)?;
    // Its window is not copied: it would be old at once. Whoever starts from the backup knows nothing.
    replay::leave_unknown(&unfinished.0, entropy()?)?;
    sync_folder(&unfinished.0)?;
    unfinished.finish(target)?;
    Ok(summary)
}

/// A folder that is removed unless it is finished.
struct Unfinished(PathBuf);

impl Unfinished {
    fn beside(target: &Path) -> anyhow::Result<Self> {
        let name = target
            .file_name()
            .with_context(|| format!("{} is no name for a backup", target.display()))?;
        let mark = u32::from_ne_bytes(entropy()?);
        let path = target.with_file_name(format!(".{}.{mark:08x}", name.display()));
        make_private(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }

    fn finish(self, target: &Path) -> anyhow::Result<()> {
        renameat_with(CWD, &self.0, CWD, target, RenameFlags::NOREPLACE)
            .with_context(|| format!("moving the backup to {}", target.display()))?;
        sync_folder(target.parent().unwrap_or(Path::new("/")))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After it was moved there is nothing here.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
