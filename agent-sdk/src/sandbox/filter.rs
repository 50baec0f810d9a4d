//! Which system calls a program may make: those listed here and no other.
//!
//! What is missing is refused with `EPERM`, so a program sees an error and not a mystery. There is no
//! way to make a socket, a namespace, a mount, an executable memory file, or an `io_uring`, which
//! would pass by this filter; and none to touch what another process is.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::policy::{Network, Tier, Wanted};

/// Allowed whatever their arguments.
#[rustfmt::skip]
const PLAIN: &[c_long] = &[
    // Files: what they reach is for mounts and Landlock to say.
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_close, libc::SYS_close_range, libc::SYS_read,
    libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64,
    libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_lseek,
    libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_faccessat,
    libc::SYS_faccessat2, libc::SYS_readlinkat, libc::SYS_getdents64, libc::SYS_getcwd,
    libc::SYS_chdir, libc::SYS_fchdir, libc::SYS_mkdirat, libc::SYS_unlinkat, libc::SYS_linkat,
    libc::SYS_symlinkat, libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_ftruncate,
    libc::SYS_truncate, libc::SYS_fallocate, libc::SYS_fchmod, libc::SYS_fchmodat,
    libc::SYS_utimensat, libc::SYS_umask, libc::SYS_dup, libc::SYS_dup3, libc::SYS_pipe2,
    libc::SYS_flock, libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync_file_range,
    libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_fadvise64, libc::SYS_readahead,
    libc::SYS_copy_file_range, libc::SYS_sendfile, libc::SYS_splice, libc::SYS_tee,
    libc::SYS_getxattr, libc::SYS_lgetxattr, libc::SYS_fgetxattr, libc::SYS_listxattr,
    // Memory. `mmap` and `mprotect` are below.
    libc::SYS_munmap, libc::SYS_mremap, libc::SYS_brk, libc::SYS_madvise, libc::SYS_mincore,
    libc::SYS_msync, libc::SYS_membarrier, libc::SYS_get_mempolicy,
    // Processes and threads; `clone` is below. Who they reach is for the namespace to say.
    libc::SYS_execve, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_wait4, libc::SYS_waitid,
    libc::SYS_kill, libc::SYS_tkill, libc::SYS_tgkill, libc::SYS_pidfd_open, libc::SYS_getpid,
    libc::SYS_getppid, libc::SYS_gettid, libc::SYS_getpgid, libc::SYS_setpgid, libc::SYS_getsid,
    libc::SYS_setsid, libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid,
    libc::SYS_getresuid, libc::SYS_getresgid, libc::SYS_getgroups, libc::SYS_capget,
    libc::SYS_set_tid_address, libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_rseq,
    libc::SYS_futex, libc::SYS_futex_waitv, libc::SYS_sched_yield, libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam, libc::SYS_sched_getscheduler, libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min, libc::SYS_getpriority, libc::SYS_getcpu,
    libc::SYS_restart_syscall,
    // Signals of its own.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending, libc::SYS_rt_sigtimedwait, libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack, libc::SYS_signalfd4,
    // Waiting and time.
    libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep, libc::SYS_clock_gettime, libc::SYS_clock_getres,
    libc::SYS_gettimeofday, libc::SYS_getitimer, libc::SYS_setitimer, libc::SYS_timer_create,
    libc::SYS_timer_settime, libc::SYS_timer_gettime, libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun, libc::SYS_timerfd_create, libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime, libc::SYS_times,
    // Talking over pipes and socket pairs that are there already; sending no descriptors, of which all
    // boxes of a user could have only so many under way.
    libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_recvmmsg, libc::SYS_shutdown, libc::SYS_getsockopt, libc::SYS_getsockname,
    libc::SYS_getpeername,
    // What there is.
    libc::SYS_uname, libc::SYS_sysinfo, libc::SYS_getrandom, libc::SYS_getrlimit,
    libc::SYS_setrlimit, libc::SYS_getrusage,
];

/// Calls that newer architectures never had.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLD: &[c_long] = &[
    libc::SYS_open, libc::SYS_creat, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access,
    libc::SYS_readlink, libc::SYS_getdents, libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_unlink,
    libc::SYS_link, libc::SYS_symlink, libc::SYS_rename, libc::SYS_chmod, libc::SYS_utime,
    libc::SYS_utimes, libc::SYS_futimesat, libc::SYS_dup2, libc::SYS_pipe, libc::SYS_fork,
    libc::SYS_vfork, libc::SYS_getpgrp, libc::SYS_pause, libc::SYS_alarm, libc::SYS_time,
    libc::SYS_poll, libc::SYS_select, libc::SYS_epoll_create, libc::SYS_epoll_wait,
    libc::SYS_epoll_ctl_old, libc::SYS_eventfd, libc::SYS_signalfd, libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[c_long] = &[];

/// Asked for first by C libraries, which fall back to what a filter can look into.
const ABSENT: [c_long; 1] = [libc::SYS_clone3];

/// Questions to a descriptor that change nothing outside: is it a terminal, how much can be read.
#[rustfmt::skip]
const IOCTLS: [u64; 9] = [
    libc::TCGETS, libc::TIOCGWINSZ, libc::TIOCGPGRP, libc::FIONREAD, libc::FIONBIO, libc::FIOCLEX,
    libc::FIONCLEX, libc::TCGETS2,
    // FICLONE: what `cp` asks first.
    0x4004_9409,
];

#[rustfmt::skip]
const PRCTLS: [u64; 13] = [
    libc::PR_SET_NAME as u64, libc::PR_GET_NAME as u64, libc::PR_SET_PDEATHSIG as u64,
    libc::PR_GET_PDEATHSIG as u64, libc::PR_GET_DUMPABLE as u64, libc::PR_SET_DUMPABLE as u64,
    libc::PR_SET_NO_NEW_PRIVS as u64, libc::PR_GET_NO_NEW_PRIVS as u64,
    libc::PR_CAPBSET_READ as u64, libc::PR_GET_SECCOMP as u64, libc::PR_SET_VMA as u64,
    libc::PR_SET_THP_DISABLE as u64, libc::PR_SET_TIMERSLACK as u64,
];

const NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u64
    | 0x80; // CLONE_NEWTIME

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// What a program that may reach others needs beside making a socket: it calls, and is not called.
/// Sending descriptors comes with `sendmsg`: boxes with an open network may crowd each other out.
const TALKING: [c_long; 5] = [
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_setsockopt,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
];

/// Ways out of a process group: without a namespace, it is by its group that a program is ended.
const LEAVING: [c_long; 2] = [libc::SYS_setsid, libc::SYS_setpgid];

/// The filter of a program. The kernel asks it once about every call that there is, before it begins, so
/// it is a tree and not a list; only calls whose arguments matter go on to what [`seccompiler`] makes.
///
/// # Errors
///
/// When this is an architecture whose calls we do not know.
pub(super) fn program(wanted: &Wanted) -> io::Result<BpfProgram> {
    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(io::Error::other)?;
    let mut rules = listed(wanted)?;
    let mut program = tree(&verdicts(&rules)?)?;
    rules.retain(|_, arguments| !arguments.is_empty());
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let looking = SeccompFilter::new(rules, refused, SeccompAction::Allow, arch)
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)?;
    program.extend(looking);
    Ok(program)
}

fn verdicts(rules: &Rules) -> io::Result<BTreeMap<u32, Verdict>> {
    let listed = rules.iter().map(|(call, arguments)| {
        let verdict = match arguments.is_empty() {
            true => Verdict::Allow,
            false => Verdict::LookInto,
        };
        (*call, verdict)
    });
    let absent = ABSENT.map(|call| (call, Verdict::Refuse(libc::ENOSYS)));
    let number = |(call, verdict)| Ok((u32::try_from(call).map_err(io::Error::other)?, verdict));
    listed.chain(absent).map(number).collect()
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Refuse(i32),
    /// Its arguments decide.
    LookInto,
}

/// Sends calls to their verdicts, all others to `EPERM`, and those to be looked into, and of another
/// architecture, to what follows.
fn tree(verdicts: &BTreeMap<u32, Verdict>) -> io::Result<BpfProgram> {
    let mut ranges = vec![(0, Verdict::Refuse(libc::EPERM))];
    for (call, verdict) in verdicts {
        ranges.push((*call, *verdict));
        ranges.push((*call + 1, Verdict::Refuse(libc::EPERM)));
    }
    // Of two that begin at one call the later one holds; of neighbours that agree, the first.
    ranges.reverse();
    ranges.dedup_by_key(|(first, _)| *first);
    ranges.reverse();
    ranges.dedup_by_key(|(_, verdict)| *verdict);
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let mut program = vec![
        instruction(load, 4, (0, 0)),
        instruction(equal, AUDIT_ARCH, (1, 0)),
        FURTHER,
        instruction(load, 0, (0, 0)),
    ];
    branches(&ranges, &mut program)?;
    let length = program.len();
    for (at, one) in program.iter_mut().enumerate() {
        if *one == FURTHER {
            one.k = u32::try_from(length - at - 1).map_err(io::Error::other)?;
        }
    }
    Ok(program)
}

/// A jump past the tree; how far is known when it is whole.
const FURTHER: sock_filter = instruction((libc::BPF_JMP | libc::BPF_JA) as u16, 0, (0, 0));

/// As the kernel names this architecture to filters.
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

fn branches(ranges: &[(u32, Verdict)], program: &mut BpfProgram) -> io::Result<()> {
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let Some((middle, _)) = upper.first().filter(|_| !lower.is_empty()) else {
        program.extend(ranges.iter().map(|(_, verdict)| match verdict {
            Verdict::Allow => instruction(libc::BPF_RET as u16, libc::SECCOMP_RET_ALLOW, (0, 0)),
            Verdict::Refuse(errno) => {
                let refused = libc::SECCOMP_RET_ERRNO | errno.unsigned_abs();
                instruction(libc::BPF_RET as u16, refused, (0, 0))
            }
            Verdict::LookInto => FURTHER,
        }));
        return Ok(());
    };
    let at = program.len();
    program.push(FURTHER);
    branches(lower, program)?;
    let over = u8::try_from(program.len() - at - 1).map_err(io::Error::other)?;
    let not_below = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    program[at] = instruction(not_below, *middle, (over, 0));
    branches(upper, program)
}

const fn instruction(code: u16, k: u32, (jt, jf): (u8, u8)) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn listed(wanted: &Wanted) -> io::Result<Rules> {
    let plain = [PLAIN, OLD].concat();
    let mut rules: Rules = plain.into_iter().map(|call| (call, vec![])).collect();
    let mut only = |call: c_long, allowed: Vec<Vec<SeccompCondition>>| -> io::Result<()> {
        let allowed: Result<_, _> = allowed.into_iter().map(SeccompRule::new).collect();
        rules.insert(call, allowed.map_err(io::Error::other)?);
        Ok(())
    };
    only(libc::SYS_clone, vec![vec![without(0, NAMESPACES)?]])?;
    // A pair of datagrams could send to any socket that has a path.
    let pair = |kind: i32| -> io::Result<Vec<SeccompCondition>> {
        let unix = is(0, libc::AF_UNIX as u64)?;
        let of_kind = condition(1, SeccompCmpOp::MaskedEq(0xf), kind as u64)?;
        Ok(vec![unix, of_kind])
    };
    let pairs = vec![pair(libc::SOCK_STREAM)?, pair(libc::SOCK_SEQPACKET)?];
    only(libc::SYS_socketpair, pairs)?;
    // Its own limits, lower or looked at; never those of another process.
    only(libc::SYS_prlimit64, vec![vec![is(0, 0)?]])?;
    for call in [libc::SYS_sched_setaffinity, libc::SYS_sched_setscheduler] {
        only(call, vec![vec![is(0, 0)?]])?;
    }
    only(libc::SYS_ioctl, each(1, &IOCTLS)?)?;
    only(libc::SYS_prctl, each(0, &PRCTLS)?)?;
    // A pipe keeps its 64 KiB: what lies in pipes counts as nobody's memory.
    let resize = condition(1, SeccompCmpOp::Ne, libc::F_SETPIPE_SZ as u64)?;
    only(libc::SYS_fcntl, vec![vec![resize]])?;
    let fifo = || {
        condition(
            2,
            SeccompCmpOp::MaskedEq(u64::from(libc::S_IFMT)),
            u64::from(libc::S_IFIFO),
        )
    };
    only(libc::SYS_mknodat, vec![vec![fifo()?]])?;
    let write = libc::PROT_WRITE as u64;
    let execute = libc::PROT_EXEC as u64;
    let still = || Ok::<_, io::Error>(vec![vec![without(2, write)?], vec![without(2, execute)?]]);
    let fixed = || Ok::<_, io::Error>(vec![vec![without(2, execute)?]]);
    match wanted.code_at_run_time {
        true => {
            for call in [
                libc::SYS_mmap,
                libc::SYS_mprotect,
                libc::SYS_pkey_mprotect,
                libc::SYS_pkey_alloc,
                libc::SYS_pkey_free,
            ] {
                only(call, vec![])?;
            }
        }
        false => {
            only(libc::SYS_mmap, still()?)?;
            only(libc::SYS_mprotect, fixed()?)?;
        }
    }
    #[cfg(target_arch = "x86_64")]
    {
        let fifo = condition(
            1,
            SeccompCmpOp::MaskedEq(u64::from(libc::S_IFMT)),
            u64::from(libc::S_IFIFO),
        )?;
        only(libc::SYS_mknod, vec![vec![fifo]])?;
    }
    if wanted.network == Network::Open {
        let of = |domain: i32| Ok::<_, io::Error>(vec![is(0, domain as u64)?]);
        only(
            libc::SYS_socket,
            vec![of(libc::AF_INET)?, of(libc::AF_INET6)?],
        )?;
        for call in TALKING {
            only(call, vec![])?;
        }
    }
    if wanted.tier == Tier::WithoutNamespaces {
        rules.retain(|call, _| !LEAVING.contains(call));
    }
    Ok(rules)
}

fn condition(argument: u8, op: SeccompCmpOp, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value).map_err(io::Error::other)
}

fn is(argument: u8, value: u64) -> io::Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::Eq, value)
}

fn without(argument: u8, bits: u64) -> io::Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::MaskedEq(bits), 0)
}

fn each(argument: u8, values: &[u64]) -> io::Result<Vec<Vec<SeccompCondition>>> {
    values
        .iter()
        .map(|value| Ok(vec![is(argument, *value)?]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_that_opens_the_box_is_listed() {
        let rules = listed(&Wanted {
            code_at_run_time: true,
            ..Wanted::default()
        })
        .unwrap();
        #[rustfmt::skip]
        let opening = [
            libc::SYS_socket, libc::SYS_connect, libc::SYS_bind, libc::SYS_io_uring_setup, libc::SYS_ptrace,
            libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_pidfd_getfd,
            libc::SYS_pidfd_send_signal, libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_userfaultfd,
            libc::SYS_keyctl, libc::SYS_mount, libc::SYS_move_mount, libc::SYS_setns, libc::SYS_unshare,
            libc::SYS_execveat, libc::SYS_memfd_create, libc::SYS_kcmp, libc::SYS_open_by_handle_at,
            libc::SYS_personality, libc::SYS_chroot, libc::SYS_shmget, libc::SYS_mq_open,
            libc::SYS_setpriority, libc::SYS_inotify_init1, libc::SYS_fchownat, libc::SYS_sendmsg,
            libc::SYS_sendmmsg,
        ];
        for call in opening {
            assert!(!rules.contains_key(&call), "{call}");
        }
        let open = listed(&Wanted {
            network: Network::Open,
            ..Wanted::default()
        });
        let open = open.unwrap();
        for call in [libc::SYS_listen, libc::SYS_accept, libc::SYS_accept4] {
            assert!(
                !open.contains_key(&call),
                "an open network calls and is not called"
            );
        }
        assert_eq!(
            open[&libc::SYS_socket].len(),
            2,
            "two kinds of sockets and no more"
        );
    }

    #[test]
    fn in_the_weaker_tier_no_call_leaves_the_process_group() {
        let weaker = Wanted {
            tier: Tier::WithoutNamespaces,
            ..Wanted::default()
        };
        let rules = listed(&weaker).unwrap();
        assert!(LEAVING.iter().all(|call| !rules.contains_key(call)));
    }

    /// What the tree says of a call; nothing where it goes on to what follows.
    fn said(tree: &BpfProgram, arch: u32, call: u32) -> Option<u32> {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let one = tree.get(at)?;
            at += 1;
            match u32::from(one.code) {
                0x20 => loaded = if one.k == 4 { arch } else { call },
                0x15 if loaded == one.k => at += usize::from(one.jt),
                0x15 => at += usize::from(one.jf),
                0x35 if loaded >= one.k => at += usize::from(one.jt),
                0x35 => at += usize::from(one.jf),
                0x05 => at += one.k as usize,
                0x06 => return Some(one.k),
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn the_tree_says_of_every_call_what_the_list_says() {
        let refused = |errno: i32| Some(libc::SECCOMP_RET_ERRNO | errno.unsigned_abs());
        for code_at_run_time in [true, false] {
            let wanted = Wanted {
                code_at_run_time,
                ..Wanted::default()
            };
            let rules = listed(&wanted).unwrap();
            let tree = tree(&verdicts(&rules).unwrap()).unwrap();
            for call in (0..1_000).chain([1 << 30, u32::MAX]) {
                let expected = match rules.get(&c_long::from(call)) {
                    _ if c_long::from(call) == libc::SYS_clone3 => refused(libc::ENOSYS),
                    None => refused(libc::EPERM),
                    Some(arguments) if arguments.is_empty() => Some(libc::SECCOMP_RET_ALLOW),
                    Some(_) => None,
                };
                assert_eq!(said(&tree, AUDIT_ARCH, call), expected, "{call}");
                assert_eq!(said(&tree, 0x4000_0003, call), None);
            }
        }
    }
}
