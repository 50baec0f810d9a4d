//! What is tried, and how the box answers.

/// Whether the same program succeeds outside the box, as an ordinary user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// It does.
    Works,
    /// It does where the kernel's own settings let users do it.
    KernelMayRefuse,
    /// Only root could, or the box alone gives the answer.
    None,
}

/// One hostile program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) attack: &'static str,
    pub(crate) control: Control,
    /// Any of these: an error of the kernel, `ABSENT` for what is not there, or how it is killed.
    pub(crate) answers: &'static [&'static str],
    /// Values of the policy, where the default would take too long to reach.
    pub(crate) set: &'static str,
    pub(crate) open_without_namespaces: bool,
}

use Control::{KernelMayRefuse, None, Works};

const fn row(attack: &'static str, control: Control, answers: &'static [&'static str]) -> Row {
    Row {
        attack,
        control,
        answers,
        set: "",
        open_without_namespaces: false,
    }
}

const fn under(set: &'static str, row: Row) -> Row {
    Row { set, ..row }
}

/// The weaker tier cannot keep it from working.
const fn open(row: Row) -> Row {
    Row {
        open_without_namespaces: true,
        ..row
    }
}

const GONE: &[&str] = &["ENOENT"];
const NOT_HERE: &[&str] = &["ENOENT", "EROFS", "EACCES"];
const REFUSED: &[&str] = &["EPERM"];

pub(crate) const ROWS: &[Row] = &[
    row("read", Works, GONE),
    row("read-dots", Works, GONE),
    row("read-symlink", Works, GONE),
    row("hardlink", Works, GONE),
    row("passwd", Works, GONE),
    row("create", Works, NOT_HERE),
    row("rename", Works, NOT_HERE),
    row("unlink", Works, NOT_HERE),
    row("truncate", Works, NOT_HERE),
    open(row("chmod", Works, GONE)),
    open(row("utime", Works, GONE)),
    row("xattr", KernelMayRefuse, &["EPERM"]),
    open(row("stat", Works, GONE)),
    row("inotify", Works, REFUSED),
    row("bashrc", Works, GONE),
    row("run-script", Works, &["EACCES"]),
    open(row("map-own-code", Works, &["EPERM"])),
    row("memfd", Works, REFUSED),
    row("set-user-id", KernelMayRefuse, &["USER"]),
    row("handle", None, REFUSED),
    row("mknod", None, REFUSED),
    row("devices", None, NOT_HERE),
    row("kernel-files", None, NOT_HERE),
    row("chroot", None, REFUSED),
    row("inherited", Works, &["EBADF"]),
    row("inherited-dir", Works, &["EBADF"]),
    row("inherited-chdir", Works, &["EBADF"]),
    row("environment", Works, &["ABSENT"]),
    row("proc-environ", Works, GONE),
    row("proc-root", Works, GONE),
    row("proc-fd", Works, GONE),
    row("proc-mem", KernelMayRefuse, GONE),
    row("proc-cmdline", Works, GONE),
    row("proc-list", Works, &["ABSENT"]),
    row("proc-oom", Works, GONE),
    row("kill", Works, &["ESRCH"]),
    row("pidfd-kill", Works, &["ESRCH", "EINVAL", "EPERM"]),
    row("ptrace", KernelMayRefuse, REFUSED),
    row("vm-read", KernelMayRefuse, REFUSED),
    row(
        "pidfd-getfd",
        KernelMayRefuse,
        &["EPERM", "ESRCH", "EINVAL"],
    ),
    row("kcmp", KernelMayRefuse, REFUSED),
    row("prlimit", Works, REFUSED),
    row("setpriority", Works, REFUSED),
    row("affinity", Works, REFUSED),
    row("tiocsti", None, &["ENOENT", "EPERM"]),
    row("forks", Works, &["EAGAIN"]),
    row("threads", Works, &["EAGAIN"]),
    row("memory", Works, &["ENOMEM", "killed: memory"]),
    row("memory-five", Works, &["ENOMEM", "killed: memory"]),
    row("memory-unnamed", Works, &["ENOMEM", "killed: memory"]),
    row("memory-leaderless", Works, &["ENOMEM", "killed: memory"]),
    open(row("memory-in-sockets", Works, &["killed: memory"])),
    row("shm-fill", Works, GONE),
    open(row("disk", Works, &["ENOSPC"])),
    open(row("inodes", Works, &["ENOSPC"])),
    row("descriptors", None, &["EMFILE"]),
    row("timers", Works, &["EAGAIN"]),
    row("pipes", None, &["EMFILE", "EPERM"]),
    under("cpu_ms=200", row("spin", None, &["killed: processor time"])),
    under("wall_ms=300", row("sleep", None, &["killed: deadline"])),
    under("wall_ms=300", row("stubborn", None, &["killed: deadline"])),
    row("flood", None, &["killed: output cut"]),
    row("tcp4", Works, REFUSED),
    row("tcp6", KernelMayRefuse, REFUSED),
    row("listen", Works, REFUSED),
    row("udp", Works, REFUSED),
    row("mptcp", KernelMayRefuse, REFUSED),
    row("raw", None, REFUSED),
    row("netlink", Works, REFUSED),
    row("vsock", KernelMayRefuse, REFUSED),
    row("abstract-stream", Works, REFUSED),
    row("abstract-dgram", Works, REFUSED),
    row("unix-path", Works, REFUSED),
    row("unix-datagrams", Works, REFUSED),
    row("in-flight", Works, REFUSED),
    row("sysv-shm", Works, REFUSED),
    row("posix-shm", Works, GONE),
    row("mqueue", KernelMayRefuse, REFUSED),
    row("io-uring", KernelMayRefuse, REFUSED),
    row("unshare", KernelMayRefuse, REFUSED),
    row("clone3", KernelMayRefuse, &["ENOSYS"]),
    row("mount", None, REFUSED),
    row("remount", None, REFUSED),
    row("setns", None, &["EPERM", "EACCES", "ENOENT"]),
    row("perf", KernelMayRefuse, REFUSED),
    row("userfaultfd", KernelMayRefuse, REFUSED),
    row("keyctl", KernelMayRefuse, REFUSED),
    row("bpf", None, REFUSED),
    row("dmesg", None, REFUSED),
    row("personality", Works, REFUSED),
    #[cfg(target_arch = "x86_64")]
    row("int80", KernelMayRefuse, &["killed: signal 31"]),
    #[cfg(target_arch = "x86_64")]
    row("x32", None, &["EPERM", "ENOSYS"]),
    row("write-execute", Works, &["EPERM"]),
    row("hostname", None, REFUSED),
    row("clock", None, REFUSED),
    row("mountinfo", None, &["ABSENT"]),
];
