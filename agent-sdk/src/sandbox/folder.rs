//! A folder that somebody else may fill with anything, read and written through its descriptor.
//!
//! No path is compared as text. The kernel resolves every name beneath the folder and follows no link
//! (`openat2`), so a folder that turns into a link in between leads nowhere. What is not a plain file
//! of bounded size is refused after it was opened, by what it is and not by what it is called.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use serde::Serialize;

/// How deep folders are looked into.
const DEPTH_MAX: usize = 16;

/// A folder, whatever is in it.
#[derive(Debug)]
pub struct Folder(OwnedFd);

/// Something in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Where, below the folder. Shown with everything replaced that is not UTF-8.
    pub path: String,
    /// Its length in bytes; none for what is no plain file, and cannot be read.
    pub bytes: Option<u64>,
}

impl Folder {
    /// A folder of this machine.
    ///
    /// # Errors
    ///
    /// When it is none, or may not be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    pub(super) const fn of(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Reads a plain file of at most `most` bytes.
    ///
    /// # Errors
    ///
    /// There is none beneath the folder, a link leads to it, it is no plain file, or it is longer.
    pub fn read(&self, path: &str, most: u64) -> io::Result<Vec<u8>> {
        // Without O_NONBLOCK a FIFO would hold us until somebody writes to it.
        let file = self.beneath(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
        let found = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("not a plain file"));
        }
        let mut bytes = Vec::new();
        File::from(file)
            .take(most.saturating_add(1))
            .read_to_end(&mut bytes)?;
        match bytes.len() as u64 > most {
            true => Err(io::Error::other(format!("longer than {most} bytes"))),
            false => Ok(bytes),
        }
    }

    /// Writes a file whole, or not at all. Folders on the way are made.
    ///
    /// # Errors
    ///
    /// The path leads out of the folder or over a link, or the system refuses.
    pub fn write(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let path = plain(path)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let above = self.made(path.parent().unwrap_or(Path::new("")))?;
        if let Ok(found) = rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW)
            && FileType::from_raw_mode(found.st_mode) != FileType::RegularFile
        {
            return Err(io::Error::other("there is something else of that name"));
        }
        let mut noise = [0; 8];
        getrandom::fill(&mut noise).map_err(io::Error::other)?;
        let beside = format!(".fem-{:016x}", u64::from_ne_bytes(noise));
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&above, &*beside, flags, Mode::from(0o644))?;
        let mut file = File::from(file);
        let written = file
            .write_all(bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| Ok(rustix::fs::renameat(&above, &*beside, &above, name)?));
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&above, &*beside, AtFlags::empty());
        }
        written
    }

    /// All that is in it, in order; at most `most` entries.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or holds more.
    pub fn list(&self, most: usize) -> io::Result<Vec<Entry>> {
        let mut found = Vec::new();
        self.look(Path::new(""), 0, most, &mut found)?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    fn look(
        &self,
        below: &Path,
        depth: usize,
        most: usize,
        found: &mut Vec<Entry>,
    ) -> io::Result<()> {
        let opened = match below.as_os_str().is_empty() {
            true => self.0.try_clone()?,
            false => self.resolve(below, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?,
        };
        for entry in Dir::read_from(&opened)? {
            let entry = entry?;
            let name: &std::ffi::OsStr =
                std::os::unix::ffi::OsStrExt::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            if found.len() == most {
                return Err(io::Error::other(format!("more than {most} entries")));
            }
            let path = below.join(name);
            let stat = rustix::fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Directory && depth < DEPTH_MAX {
                // One that its maker closed to us is shown and not looked into.
                let _ = self.look(&path, depth + 1, most, found);
                continue;
            }
            let bytes =
                (kind == FileType::RegularFile).then(|| u64::try_from(stat.st_size).unwrap_or(0));
            found.push(Entry {
                path: path.to_string_lossy().into_owned(),
                bytes,
            });
        }
        Ok(())
    }

    /// The folder at `path` below this one, made where it is missing.
    fn made(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut at = self.0.try_clone()?;
        for name in path.components() {
            match rustix::fs::mkdirat(&at, name.as_os_str(), Mode::from(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(why) => return Err(why.into()),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            at = rustix::fs::openat(&at, name.as_os_str(), flags, Mode::empty())?;
        }
        Ok(at)
    }

    fn beneath(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        self.resolve(&plain(path)?, flags, mode)
    }

    fn resolve(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let only = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        loop {
            // The kernel gives up, for now, where somebody renames in between.
            match openat2(&self.0, path, flags, mode, only) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }
}

/// A path of names only. What the kernel would refuse is said in words here; it decides all the same.
fn plain(path: &str) -> io::Result<PathBuf> {
    let given = Path::new(path);
    let named = given
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    match named && !path.is_empty() && !path.ends_with('/') {
        true => Ok(given.to_owned()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a path of names below the folder",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        (dir, folder)
    }

    #[test]
    fn what_is_written_is_read_and_listed() {
        let (_dir, folder) = folder();
        folder.write("a/b/c.txt", b"one").unwrap();
        folder.write("a/b/c.txt", b"two").unwrap();
        assert_eq!(folder.read("a/b/c.txt", 3).unwrap(), b"two");
        let listed = folder.list(10).unwrap();
        assert_eq!(
            listed,
            [Entry {
                path: "a/b/c.txt".into(),
                bytes: Some(3)
            }]
        );
    }

    #[test]
    fn no_path_leads_out_of_a_folder() {
        let (dir, folder) = folder();
        symlink("/etc", dir.path().join("etc")).unwrap();
        symlink("/etc/passwd", dir.path().join("passwd")).unwrap();
        symlink("..", dir.path().join("up")).unwrap();
        for path in [
            "../x",
            "/etc/passwd",
            "passwd",
            "etc/passwd",
            "up/x",
            "a/../../x",
            "",
            ".",
            "a/",
            "a\0b",
        ] {
            assert!(folder.read(path, 1 << 20).is_err(), "{path:?}");
            assert!(folder.write(path, b"x").is_err(), "{path:?}");
        }
    }

    #[test]
    fn planted_fifos_links_and_huge_sparse_files_are_refused() {
        let (dir, folder) = folder();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o644), 0).unwrap();
        File::create(dir.path().join("sparse"))
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        symlink("/etc/passwd", dir.path().join("link")).unwrap();
        for name in ["fifo", "sparse", "link"] {
            assert!(folder.read(name, 1 << 20).is_err(), "{name}");
        }
        let listed = folder.list(10).unwrap();
        assert_eq!(
            listed.iter().filter(|entry| entry.bytes.is_none()).count(),
            2
        );
        assert!(folder.list(2).is_err());
    }

    #[test]
    fn a_folder_that_turns_into_a_link_and_back_leaks_nothing() {
        let (dir, folder) = folder();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("f"), "secret").unwrap();
        let (at, away) = (dir.path().join("d"), dir.path().join("away"));
        folder.write("d/f", b"plain").unwrap();
        symlink(outside.path(), &away).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let swap = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(CWD, &at, CWD, &away, swap).unwrap();
                }
            });
            let opened = (0..100_000).filter_map(|_| folder.read("d/f", 64).ok());
            assert!(opened.into_iter().all(|bytes| bytes == b"plain"));
            done.store(true, Ordering::Relaxed);
        });
    }
}
