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
    SeccompRule, TargetArch,
};

use super::policy::{Tier, Wanted};

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

/// Ways out of a process group: without a namespace, it is by its group that a program is ended.
const LEAVING: [c_long; 2] = [libc::SYS_setsid, libc::SYS_setpgid];

/// The two filters of a program, to be applied in this order.
///
/// # Errors
///
/// When this is an architecture whose calls we do not know.
pub(super) fn programs(wanted: &Wanted) -> io::Result<[BpfProgram; 2]> {
    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(io::Error::other)?;
    let absent = ABSENT.iter().map(|call| (*call, vec![])).collect();
    let absent = compiled(absent, SeccompAction::Allow, refusal(libc::ENOSYS), arch)?;
    let listed = compiled(
        listed(wanted)?,
        refusal(libc::EPERM),
        SeccompAction::Allow,
        arch,
    )?;
    Ok([absent, listed])
}

const fn refusal(errno: i32) -> SeccompAction {
    SeccompAction::Errno(errno as u32)
}

fn compiled(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
    arch: TargetArch,
) -> io::Result<BpfProgram> {
    let filter = SeccompFilter::new(rules, otherwise, matched, arch).map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
}

fn listed(wanted: &Wanted) -> io::Result<Rules> {
    let plain = [PLAIN, OLD, &ABSENT].concat();
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
}
