//! Other people's programs where a sandboxed server sees them: under names outside of `/tmp`, `/run` and
//! `/work`, of which the box has its own, wherever they are installed.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::Result;
use tempfile::TempDir;

use crate::mcp::toolbox::{Npm, Python};

/// A folder that the box can be given, with what was installed in it. It goes when dropped.
#[derive(Debug)]
pub struct Shelf {
    folder: TempDir,
}

impl Shelf {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// When there is no room for it.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir_in("/var/tmp")?;
        // Where root starts the box, it is another user.
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
        Ok(Self { folder })
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A folder in it that every user may read and change.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn room(&self, name: &str) -> Result<PathBuf> {
        let room = self.folder().join(name);
        fs::create_dir(&room)?;
        fs::set_permissions(&room, PermissionsExt::from_mode(0o777))?;
        Ok(room)
    }

    /// npm's packages, as they are seen from here.
    ///
    /// # Errors
    ///
    /// When they cannot be put here.
    pub fn npm(&self, name: &str, npm: &Npm) -> Result<Npm> {
        Ok(npm.seen_at(&self.put(name, npm.folder())?))
    }

    /// PyPI's packages, as they are seen from here.
    ///
    /// # Errors
    ///
    /// When they cannot be put here.
    pub fn python(&self, name: &str, python: &Python) -> Result<Python> {
        Ok(python.seen_at(&self.put(name, python.folder())?))
    }

    fn put(&self, name: &str, what: &Path) -> Result<PathBuf> {
        let place = self.folder().join(name);
        symlink(what, &place)?;
        Ok(place)
    }
}
