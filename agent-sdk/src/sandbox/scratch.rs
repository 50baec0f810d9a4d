//! A folder on disk, for a program that cannot have one in memory: made for it, and removed with
//! whatever a hostile program made of it.
//!
//! Such a program may nest folders deeper than there are descriptors or stack, and close them to their
//! owner. So nothing here recurses, no name is followed further than one step, and what is nested is
//! lifted to the top before it is removed: four descriptors do for any depth.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use super::folder::Folder;

/// How many files and folders are removed before the rest is left, and named in the log: twice what a
/// policy may allow, and some seconds of work.
const STEPS_MAX: usize = 2 << 20;

/// A folder of its own for one program. Dropping it removes it, on a thread that may wait.
#[derive(Debug)]
pub(super) struct Scratch(Option<Removal>);

/// Removes the folder when it is dropped, by whomever.
#[derive(Debug)]
struct Removal(PathBuf);

impl Scratch {
    /// An empty folder that only `owner` may enter, or else this user; open already, because its owner
    /// may close it.
    pub(super) fn new(owner: Option<u32>) -> io::Result<(Self, Folder)> {
        let path = std::env::temp_dir().join(format!("fem-work-{}", noise()?));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        let scratch = Self(Some(Removal(path.clone())));
        let folder = Folder::open(&path)?;
        if owner.is_some() {
            chown(&path, owner, owner)?;
        }
        Ok((scratch, folder))
    }

    pub(super) fn path(&self) -> Option<PathBuf> {
        self.0.as_ref().map(|removal| removal.0.clone())
    }

    /// Removes it, and waits until that is done.
    pub(super) async fn remove(mut self) {
        let removal = self.0.take();
        let _ = tokio::task::spawn_blocking(move || drop(removal)).await;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A runtime that ends before it comes to this drops it, which removes the folder as well.
        if let (Some(removal), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn_blocking(move || drop(removal));
        }
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        let removed = opened(CWD, &self.0)
            .and_then(|top| Sweep::of(top, STEPS_MAX)?.run())
            .and_then(|()| std::fs::remove_dir(&self.0));
        if let Err(why) = removed {
            let folder = self.0.display();
            tracing::error!(%folder, %why, "what a program left is not removed, and lies there");
        }
    }
}

/// The removal of all that is in a folder.
struct Sweep {
    top: OwnedFd,
    /// How many more files and folders may be looked at.
    steps: usize,
    /// What no program has guessed, for the names of what is lifted.
    noise: String,
    lifted: usize,
}

impl Sweep {
    fn of(top: OwnedFd, steps: usize) -> io::Result<Self> {
        Ok(Self {
            top,
            steps,
            noise: noise()?,
            lifted: 0,
        })
    }

    /// # Errors
    ///
    /// The system refuses something, or the steps are used up. What was not reached is left.
    fn run(mut self) -> io::Result<()> {
        // What is lifted while a folder is read may be shown or not, so the last look finds nothing.
        let mut any = true;
        while any {
            any = false;
            for entry in Dir::read_from(&self.top)? {
                let entry = entry?;
                if is_entry(entry.file_name()) {
                    any = true;
                    self.remove(entry.file_name())?;
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self, name: &CStr) -> io::Result<()> {
        if self.is_gone(None, name)? {
            return Ok(());
        }
        let folder = opened(&self.top, name)?;
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let below = entry.file_name();
            if is_entry(below) && !self.is_gone(Some(&folder), below)? {
                // Only what may be written to can be moved.
                opened(&folder, below)?;
                self.lifted += 1;
                let name = format!(".{}-{}", self.noise, self.lifted);
                let new = RenameFlags::NOREPLACE;
                rustix::fs::renameat_with(&folder, below, &self.top, name, new)?;
            }
        }
        // Where not all of it was shown, the next look begins again.
        self.is_gone(None, name).map(drop)
    }

    /// Whether it could be removed at once, being no folder or an empty one. Without `folder` it is at
    /// the top.
    fn is_gone(&mut self, folder: Option<&OwnedFd>, name: &CStr) -> io::Result<bool> {
        let left = self.steps.checked_sub(1);
        self.steps = left.ok_or_else(|| io::Error::other("there is too much of it"))?;
        let folder = folder.unwrap_or(&self.top);
        let unlinked = match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR),
            other => other,
        };
        match unlinked {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY) => Ok(false),
            Err(why) => Err(why.into()),
        }
    }
}

fn is_entry(name: &CStr) -> bool {
    name != c"." && name != c".."
}

/// A folder and no link to one, made its owner's to read and to change.
fn opened(above: impl AsFd, name: impl Arg) -> io::Result<OwnedFd> {
    let only = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::openat(above, name, OFlags::PATH | only, Mode::empty())?;
    // What is open as a place only has its mode set through its name in /proc. Should that be refused,
    // the next line says so.
    let named = format!("/proc/self/fd/{}", place.as_raw_fd());
    let _ = rustix::fs::chmodat(CWD, named, Mode::RWXU, AtFlags::empty());
    Ok(rustix::fs::openat(
        &place,
        c".",
        OFlags::RDONLY | only,
        Mode::empty(),
    )?)
}

fn noise() -> io::Result<String> {
    let mut noise = [0; 8];
    getrandom::fill(&mut noise).map_err(io::Error::other)?;
    Ok(format!("{:016x}", u64::from_ne_bytes(noise)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `depth` folders, each in the one before, with a file and a link out of it in each.
    fn nested(depth: usize) -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let top = opened(CWD, dir.path()).unwrap();
        let mut at = rustix::io::dup(&top).unwrap();
        for _ in 0..depth {
            rustix::fs::symlinkat("/etc", &at, "link").unwrap();
            rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::empty())
                .unwrap();
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            let below = opened(&at, "d").unwrap();
            rustix::fs::fchmod(&at, Mode::empty()).unwrap();
            at = below;
        }
        (dir, top)
    }

    fn entries(folder: &OwnedFd) -> usize {
        let all = Dir::read_from(folder).unwrap().map(Result::unwrap);
        all.filter(|one| is_entry(one.file_name())).count()
    }

    #[test]
    fn folders_nested_deeper_than_descriptors_are_removed() {
        let (dir, top) = nested(2_000);
        Sweep::of(opened(CWD, dir.path()).unwrap(), STEPS_MAX)
            .unwrap()
            .run()
            .unwrap();
        assert_eq!(entries(&top), 0);
        assert!(std::path::Path::new("/etc").exists());
    }

    #[test]
    fn what_is_too_much_to_remove_is_an_error_and_stays() {
        let (dir, top) = nested(100);
        let sweep = |steps| {
            Sweep::of(opened(CWD, dir.path()).unwrap(), steps)
                .unwrap()
                .run()
        };
        assert!(sweep(100).is_err());
        assert!(entries(&top) > 0);
        sweep(1_000).unwrap();
        assert_eq!(entries(&top), 0);
    }
}
