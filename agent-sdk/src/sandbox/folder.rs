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

/// How deep folders are looked into, and files are made.
const DEPTH_MAX: usize = 16;
/// The longest path, in bytes.
const PATH_BYTES_MAX: usize = 1_024;
/// The longest name in a path, in bytes: the kernel's own bound.
const NAME_BYTES_MAX: usize = 255;

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

/// What is in a folder, as far as was looked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// In order.
    pub entries: Vec<Entry>,
    /// Why some are missing, where some are.
    pub cut: Option<String>,
}

impl Listing {
    /// Nothing was seen.
    pub(super) fn unknown(why: &impl std::fmt::Display) -> Self {
        Self {
            entries: Vec::new(),
            cut: Some(format!("cannot be listed: {why}")),
        }
    }
}

/// What may still be listed.
struct Looking {
    found: Vec<Entry>,
    left: usize,
    most: usize,
    bytes_left: usize,
}

impl Looking {
    fn at(&mut self, path: &Path) -> io::Result<()> {
        let (most, length) = (self.most, path.as_os_str().len());
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| io::Error::other(format!("there are more than {most}")))?;
        self.bytes_left = self
            .bytes_left
            .checked_sub(length)
            .ok_or_else(|| io::Error::other("their names are too long"))?;
        Ok(())
    }

    fn add(&mut self, path: &Path, bytes: Option<u64>) {
        self.found.push(Entry {
            path: path.to_string_lossy().into_owned(),
            bytes,
        });
    }
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

    /// Another hold of the same one.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub(super) fn again(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
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
            true => Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("longer than {most} bytes"),
            )),
            false => Ok(bytes),
        }
    }

    /// Writes a file whole, or not at all. Folders on the way are made.
    ///
    /// # Errors
    ///
    /// The path leads out of the folder or over a link, is longer than 1,024 bytes, has more than 16 names
    /// or one of more than 255 bytes ([`io::ErrorKind::InvalidFilename`]; no folder was made), or the
    /// system refuses.
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

    /// What is in it, in order: at most `most` files and folders are looked at, whose names have at most
    /// `names_bytes` together. Folders are not shown themselves.
    #[must_use]
    pub fn list(&self, most: usize, names_bytes: usize) -> Listing {
        let mut looking = Looking {
            found: Vec::new(),
            left: most,
            most,
            bytes_left: names_bytes,
        };
        let looked = self.look(Path::new(""), 0, &mut looking);
        let mut entries = looking.found;
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Listing {
            entries,
            cut: looked.err().map(|why| why.to_string()),
        }
    }

    fn look(&self, below: &Path, depth: usize, looking: &mut Looking) -> io::Result<()> {
        let opened = match below.as_os_str().is_empty() {
            true => self.0.try_clone()?,
            false => match self.resolve(below, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
                // One that its maker closed to us is shown and not looked into.
                Err(_) => {
                    looking.add(below, None);
                    return Ok(());
                }
                opened => opened?,
            },
        };
        for entry in Dir::read_from(&opened)? {
            let entry = entry?;
            let name: &std::ffi::OsStr =
                std::os::unix::ffi::OsStrExt::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let path = below.join(name);
            looking.at(&path)?;
            let stat = rustix::fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if depth < DEPTH_MAX => self.look(&path, depth + 1, looking)?,
                FileType::RegularFile => {
                    looking.add(&path, Some(u64::try_from(stat.st_size).unwrap_or(0)));
                }
                _ => looking.add(&path, None),
            }
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
    let long = path.len() > PATH_BYTES_MAX
        || path.split('/').count() > DEPTH_MAX
        || path.split('/').any(|name| name.len() > NAME_BYTES_MAX);
    if long {
        return Err(io::Error::new(
            io::ErrorKind::InvalidFilename,
            format!(
                "at most {DEPTH_MAX} names of at most {NAME_BYTES_MAX} bytes, {PATH_BYTES_MAX} in all"
            ),
        ));
    }
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
        let listed = folder.list(10, 100);
        assert_eq!(listed.cut, None);
        assert_eq!(
            listed.entries,
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
        let listed = folder.list(10, 100).entries;
        assert_eq!(
            listed.iter().filter(|entry| entry.bytes.is_none()).count(),
            2
        );
    }

    #[test]
    fn a_list_that_is_cut_says_so_whatever_it_is_cut_by() {
        let (dir, folder) = folder();
        for name in ["a/b/one", "a/two", "three"] {
            folder.write(name, b"").unwrap();
        }
        // Two folders and three files.
        assert_eq!(folder.list(5, 100).cut, None);
        let few = folder.list(4, 100);
        assert!(few.cut.unwrap().contains("more than 4") && few.entries.len() < 3);
        assert!(folder.list(5, 10).cut.unwrap().contains("names"));
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        assert!(folder.list(5, 100).cut.is_some(), "empty folders count");
    }

    #[test]
    fn a_path_that_is_too_long_or_too_deep_is_refused_and_makes_no_folder() {
        let (dir, folder) = folder();
        let deep = |names: usize| vec!["d"; names].join("/");
        let long = "n".repeat(NAME_BYTES_MAX);
        for path in [
            deep(DEPTH_MAX + 1),
            format!("a/{long}n"),
            [&*long; 5].join("/"),
        ] {
            let refused = folder.write(&path, b"x").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidFilename, "{path}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        folder.write(&deep(DEPTH_MAX), b"x").unwrap();
        folder.write(&long, b"x").unwrap();
        assert_eq!(folder.list(100, 1_000).entries.len(), 2);
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
