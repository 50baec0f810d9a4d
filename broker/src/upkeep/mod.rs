//! What an operator does to a data directory: back it up, put a backup back, verify it, and
//! find the way back in when no admin is left.
//!
//! One process at a time has the journal, so a running broker does it itself: it listens on a socket
//! in its data directory ([`socket`]) that only its own user can reach.

mod backup;
mod recovery;
mod restore;
pub mod socket;

use std::fs::File;
use std::path::Path;

use anyhow::Context as _;

use crate::journal::{JournalError, Summary, inspect};

pub use backup::back_up;
pub use recovery::Recovery;
pub use restore::restore;

/// Verifies the journal of `data`: asks the broker that runs on it, or reads the files.
///
/// # Errors
///
/// [`JournalError::Damaged`] with the first record that does not fit; and when it cannot be read.
pub fn verify(data: &Path) -> Result<Summary, JournalError> {
    match socket::ask(data, &socket::Question::Verify) {
        Ok(Some(answer)) => answer.into_result(),
        Ok(None) => inspect(data, &mut |_| {}),
        Err(error) => Err(JournalError::Read(format!("{error:#}"))),
    }
}

/// Makes what a folder lists durable.
fn sync_folder(folder: &Path) -> anyhow::Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("syncing {}", folder.display()))
}

fn entropy<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

/// Makes a data directory, unless it is there.
pub(crate) fn make_data(data: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .with_context(|| format!("making the data directory {}", data.display()))
}

fn make_private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().mode(0o700).create(folder)
}

#[cfg(test)]
mod tests;
