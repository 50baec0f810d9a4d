//! Puts a backup into an empty data directory.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use proto_spec::Org;

use super::{entropy, make_data, make_private, sync_folder};
use crate::change::Change;
use crate::journal::{Summary, copy, inspect};
use crate::state::replay;

/// In the order in which they are put in place: with the journal it is a data directory.
const FILES: [&str; 3] = ["replay.window", "journal.head", "journal.redb"];

/// Verifies the backup and copies it into `data`, which is empty or does not exist.
///
/// What was signed before the broker's next start is not accepted again: the nonces of then are not in
/// any backup.
///
/// # Errors
///
/// When the backup is damaged, another organisation's or none, or `data` holds anything.
pub fn restore(backup: &Path, org: &Org, data: &Path) -> anyhow::Result<Summary> {
    if !backup.join("journal.head").is_file() {
        bail!("{} is no backup: it has no journal.head", backup.display());
    }
    let mut founded = None;
    inspect(backup, &mut |change| {
        if let Change::Founded { org, .. } = change {
            founded.get_or_insert(org);
        }
    })
    .context("the backup cannot be used")?;
    match founded {
        Some(founded) if founded == *org => {}
        Some(founded) => bail!("the backup is {founded}'s, the configuration {org}'s"),
        None => bail!("the backup holds no organisation"),
    }
    make_empty(data)?;
    let unfinished = data.join(format!(".restore.{:08x}", u32::from_ne_bytes(entropy()?)));
    make_private(&unfinished)?;
    let placed = fill(backup, &unfinished).and_then(|summary| {
        place(&unfinished, data)?;
        Ok(summary)
    });
    let _ = std::fs::remove_dir_all(&unfinished);
    placed
}

/// Makes `data`, or sees that nothing is in it. It may be a mount point, so it is never replaced.
fn make_empty(data: &Path) -> anyhow::Result<()> {
    make_data(data)?;
    let held: Vec<PathBuf> = std::fs::read_dir(data)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    // A new file system has this folder.
    match held.iter().find(|path| !path.ends_with("lost+found")) {
        None => Ok(()),
        Some(found) => bail!(
            "{} is not empty: it has {}. Move what it holds away; it is never overwritten",
            data.display(),
            found.display()
        ),
    }
}

fn fill(backup: &Path, folder: &Path) -> anyhow::Result<Summary> {
    let summary = copy(backup, folder)?;
    replay::leave_unknown(folder, entropy()?)?;
    sync_folder(folder)?;
    Ok(summary)
}

fn place(from: &Path, data: &Path) -> anyhow::Result<()> {
    for name in FILES {
        std::fs::rename(from.join(name), data.join(name))
            .with_context(|| format!("moving {name} to {}", data.display()))?;
    }
    sync_folder(data)
}
