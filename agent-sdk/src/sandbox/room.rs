//! The room that a program sees: a root of its own with `/usr`, a few devices, its own processes, and
//! an empty folder. Everything else of the machine has no name in it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, mount_remount, move_mount, open_tree, unmount,
};

use super::confine::{Place, Rights};
use super::policy::{Network, Wanted};

/// Where a program's own folder is.
pub(super) const WORK: &str = "/work";

/// What is kept of the room.
pub(super) struct Room {
    /// The program's folder.
    pub(super) work: OwnedFd,
    /// Every process in the box, shown to its keeper alone.
    pub(super) processes: OwnedFd,
    /// What of this machine is in it.
    pub(super) places: Vec<Place<OwnedFd>>,
}

/// Not a layer, but what the policy names.
pub(super) const FILES: &str = "files of the policy";

/// Which layer could not be had, and what the kernel said.
pub(super) struct Missing(pub(super) &'static str, pub(super) io::Error);

/// Says which layer an error belongs to.
pub(super) fn of<E: Into<io::Error>>(layer: &'static str) -> impl Fn(E) -> Missing {
    move |why| Missing(layer, why.into())
}

/// A part of this machine that goes into the room.
struct Part {
    tree: OwnedFd,
    target: PathBuf,
    rights: Rights,
}

const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// What programs of `/usr` need of the rest: links to it, and the list of libraries.
const LINKS: [&str; 7] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32"];
const USED: [&str; 2] = ["/etc/alternatives", "/etc/ld.so.cache"];

/// Builds the room and moves into it. The mount namespace is already the caller's own.
///
/// # Errors
///
/// Which layer this kernel does not give us.
pub(super) fn build(wanted: &Wanted) -> Result<Room, Missing> {
    let mounts = of("mounts");
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(&mounts)?;
    let parts = parts(wanted).map_err(of(FILES))?;
    let hidden = [("subset", "pid"), ("hidepid", "invisible")];
    let own_processes = filesystem("proc", &hidden, MountAttrFlags::MOUNT_ATTR_RDONLY)
        .map_err(of("a /proc of its own"))?;
    let processes = filesystem("proc", &[], MountAttrFlags::MOUNT_ATTR_RDONLY)
        .map_err(of("a /proc of its own"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let processes = rustix::fs::openat(processes, ".", flags, Mode::empty()).map_err(&mounts)?;
    let size = wanted.disk_bytes.to_string();
    let files = wanted.disk_files.to_string();
    let limits = [("size", &*size), ("nr_inodes", &*files), ("mode", "0700")];
    let work = filesystem("tmpfs", &limits, MountAttrFlags::empty())
        .map_err(of("a folder of bounded size"))?;

    let limits = [("size", "1m"), ("nr_inodes", "1024"), ("mode", "0755")];
    let root = filesystem("tmpfs", &limits, MountAttrFlags::empty()).map_err(&mounts)?;
    let places: Vec<_> = parts
        .iter()
        .filter(|part| part.rights != Rights::Device)
        .map(|part| (part.target.clone(), part.rights))
        .collect();
    furnish(&root, &parts, &own_processes, &work).map_err(of("mounts"))?;
    // `/` over `/`: the old root ends up below the new one, and is then let go.
    rustix::process::pivot_root(".", ".").map_err(of("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(of("pivot_root"))?;
    still(&places).map_err(of("mounts"))?;
    let still = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount("/", still, "").map_err(&mounts)?;
    rustix::process::chdir(WORK).map_err(&mounts)?;
    let work = rustix::fs::openat(CWD, WORK, flags, Mode::empty()).map_err(&mounts)?;
    let parts = parts.into_iter();
    Ok(Room {
        work,
        processes,
        places: parts.map(|part| Place(part.tree, part.rights)).collect(),
    })
}

/// A file system that nobody else has, not mounted anywhere yet.
fn filesystem(
    name: &str,
    options: &[(&str, &str)],
    also: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    // Nothing that a program writes itself can be run.
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | also;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

fn clone_of(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags)
}

/// What every program may reach, where it exists.
pub(super) fn shared_paths() -> Vec<(PathBuf, Rights)> {
    let links = LINKS
        .iter()
        .map(|name| (Path::new("/").join(name), Rights::Run));
    let used = USED.iter().map(|path| (PathBuf::from(path), Rights::Read));
    let devices = DEVICES
        .iter()
        .map(|name| (Path::new("/dev").join(name), Rights::Device));
    let usr = std::iter::once((PathBuf::from("/usr"), Rights::Run));
    usr.chain(links).chain(used).chain(devices).collect()
}

/// What a program needs to find others over the network, and to know who they are.
pub(super) fn network_paths(wanted: &Wanted) -> impl Iterator<Item = &'static Path> {
    let needed: &[&str] = match wanted.network {
        Network::Closed => &[],
        Network::Open => &[
            "/etc/resolv.conf",
            "/etc/hosts",
            "/etc/nsswitch.conf",
            "/etc/ssl/certs",
        ],
    };
    needed.iter().map(Path::new)
}

/// Takes hold of everything that goes into the room, while the machine's own paths still lead there.
fn parts(wanted: &Wanted) -> io::Result<Vec<Part>> {
    let mut parts = Vec::new();
    let mut add = |path: &Path, rights| -> io::Result<()> {
        let tree =
            clone_of(path).map_err(|why| io::Error::other(format!("{}: {why}", path.display())))?;
        parts.push(Part {
            tree,
            target: path.to_owned(),
            rights,
        });
        Ok(())
    };
    for (path, rights) in shared_paths() {
        // Links into `/usr` are made anew.
        if path
            .symlink_metadata()
            .is_ok_and(|found| !found.is_symlink())
        {
            add(&path, rights)?;
        }
    }
    for path in &wanted.files.run {
        add(path, Rights::Run)?;
    }
    for path in &wanted.files.read {
        add(path, Rights::Read)?;
    }
    for path in &wanted.files.write {
        add(path, Rights::Own)?;
    }
    for path in network_paths(wanted) {
        if path.exists() {
            add(path, Rights::Read)?;
        }
    }
    Ok(parts)
}

/// Mounts the root over `/proc`, which every machine has, and fills it. Ends in the new root.
fn furnish(root: &OwnedFd, parts: &[Part], processes: &OwnedFd, work: &OwnedFd) -> io::Result<()> {
    for name in LINKS {
        if let Ok(target) = std::fs::read_link(Path::new("/").join(name)) {
            rustix::fs::symlinkat(&target, root, name)?;
        }
    }
    rustix::fs::symlinkat("work", root, "tmp")?;
    rustix::fs::mkdirat(root, "dev", Mode::from(0o755))?;
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        rustix::fs::symlinkat(target, root, Path::new("dev").join(link))?;
    }
    rustix::fs::mkdirat(root, "proc", Mode::from(0o555))?;
    rustix::fs::mkdirat(root, "work", Mode::from(0o700))?;
    for part in parts {
        place(root, &part.tree, &part.target)?;
    }
    let here = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(root, "", CWD, "/proc", here)?;
    rustix::process::fchdir(root)?;
    move_mount(processes, "", root, "proc", here)?;
    move_mount(work, "", root, "work", here)?;
    for part in parts {
        move_mount(&part.tree, "", root, inside(&part.target), here)?;
    }
    Ok(())
}

/// A path of this machine as one below the root.
fn inside(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Makes what a part is mounted on: a folder for a folder, an empty file for anything else.
fn place(root: &OwnedFd, tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let target = inside(target);
    let mut above = PathBuf::new();
    for part in target.parent().unwrap_or(Path::new("")).components() {
        above.push(part);
        made(rustix::fs::mkdirat(root, &above, Mode::from(0o755)))?;
    }
    let found = rustix::fs::fstat(tree)?;
    if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
        return made(rustix::fs::mkdirat(root, target, Mode::from(0o755)));
    }
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(root, target, flags, Mode::from(0o444))?;
    Ok(())
}

fn made(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Err(Errno::EXIST) | Ok(()) => Ok(()),
        Err(why) => Err(why.into()),
    }
}

/// Makes the parts read-only unless a program may change them, without set-user-id and devices, with all that this machine has mounted
/// below them. Flags that the machine itself set must be kept.
fn still(parts: &[(PathBuf, Rights)]) -> io::Result<()> {
    for line in std::fs::read("/proc/self/mountinfo")?.split(|byte| *byte == b'\n') {
        let Some((place, options)) = mounted(line) else {
            continue;
        };
        let nearest = parts.iter().filter(|(part, _)| place.starts_with(part));
        let Some((_, rights)) = nearest.max_by_key(|(part, _)| part.as_os_str().len()) else {
            continue;
        };
        let is_set = |flag: &[u8]| options.split(|byte| *byte == b',').any(|one| one == flag);
        let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
        if *rights != Rights::Own || is_set(b"ro") {
            flags |= MountFlags::RDONLY;
        }
        if *rights != Rights::Run || is_set(b"noexec") {
            flags |= MountFlags::NOEXEC;
        }
        match mount_remount(&place, flags, "") {
            // What we may not come to is closed to the program as well, which is the same user.
            Ok(()) | Err(Errno::ACCESS) => {}
            Err(why) => {
                let place = place.display();
                return Err(io::Error::other(format!("{place} read-only: {why}")));
            }
        }
    }
    Ok(())
}

/// Where a line of `mountinfo` says that something is mounted, and how.
fn mounted(line: &[u8]) -> Option<(PathBuf, &[u8])> {
    let mut fields = line.split(|byte| *byte == b' ').skip(4);
    let (place, options) = (fields.next()?, fields.next()?);
    let mut bytes = Vec::new();
    let mut rest = place;
    while let Some((first, after)) = rest.split_first() {
        // Blanks and backslashes are three octal digits.
        let octal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        let (byte, after) = match first {
            b'\\' => (octal(after.get(..3)?)?, &after[3..]),
            plain => (*plain, after),
        };
        bytes.push(byte);
        rest = after;
    }
    Some((PathBuf::from(OsString::from_vec(bytes)), options))
}

/// Puts a file into the program's folder.
pub(super) fn put(work: &OwnedFd, path: &str, bytes: &[u8]) -> io::Result<()> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let mut above = PathBuf::new();
    for part in Path::new(path)
        .parent()
        .unwrap_or(Path::new(""))
        .components()
    {
        above.push(part);
        made(rustix::fs::mkdirat(work, &above, Mode::from(0o755)))?;
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(work, path, flags, Mode::from(0o644), beneath)?;
    io::Write::write_all(&mut std::fs::File::from(file), bytes)
}

/// Why a program cannot be started, in words; its whole path if it can.
///
/// # Errors
///
/// It does not exist, is no program, or would run as somebody else.
pub(super) fn program(name: &str, work: &Path) -> Result<PathBuf, String> {
    let candidates: Vec<PathBuf> = match name.contains('/') {
        true => vec![work.join(name)],
        false => ["/usr/local/bin", "/usr/bin", "/bin"]
            .iter()
            .map(|dir| Path::new(dir).join(name))
            .collect(),
    };
    let Some(path) = candidates.into_iter().find(|path| path.exists()) else {
        return Err(format!("there is no program {name:?} in the box"));
    };
    let found = path.metadata().map_err(|why| format!("{name:?}: {why}"))?;
    if !found.is_file() {
        return Err(format!("{name:?} is not a file"));
    }
    let mode = found.permissions().mode();
    if mode & 0o6000 != 0 {
        return Err(format!(
            "{name:?} would run as another user (mode {:o}, owner {})",
            mode & 0o7777,
            found.uid()
        ));
    }
    if mode & 0o111 == 0 {
        return Err(format!("{name:?} is not executable"));
    }
    Ok(path)
}

/// What the first line of a script says is to run it.
pub(super) fn interpreter(program: &Path) -> Option<PathBuf> {
    let mut first = [0; 256];
    let read = io::Read::read(&mut std::fs::File::open(program).ok()?, &mut first).ok()?;
    let mut lines = first[..read]
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n');
    let line = std::str::from_utf8(lines.next()?).ok()?;
    line.split_whitespace().next().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_with_blanks_and_backslashes_is_read_from_mountinfo() {
        let line = br"36 35 98:0 /x /a\040b\134c ro,noexec master:1 - ext3 /dev/root rw";
        let (place, options) = mounted(line).unwrap();
        assert_eq!(place, Path::new("/a b\\c"));
        assert_eq!(options, b"ro,noexec");
        assert!(mounted(b"").is_none());
    }
}
