//! Keeps a running program within what all its processes together may use.

use std::collections::HashSet;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Dir, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process_group, pidfd_open,
    wait, waitid,
};

use super::job::{How, Report};
use super::policy::Policy;

/// How often the processes are counted up.
const TICK: Duration = Duration::from_millis(20);
/// Clock ticks of `/proc/PID/stat` in milliseconds: `USER_HZ` is 100 on every Linux that we run on.
const CLOCK_TICK_MS: u64 = 10;

/// The most that the kernel keeps for one socket of a pair, at its default of 208 KiB, with the message
/// that goes over it.
const SOCKET_BYTES: u64 = 320 << 10;

/// Which processes are in the box.
pub(super) enum Inside {
    /// All that this file system shows, for it is that of a namespace of their own, and so are the
    /// sockets.
    Namespace(OwnedFd),
    /// The same, in everybody's network: each may have so many descriptors.
    OpenNetwork(OwnedFd, u32),
    /// All that come from this process.
    Descendants,
}

/// What the processes of a box use, together.
#[derive(Debug, Default, Clone, Copy)]
struct Usage {
    memory_bytes: u64,
    cpu_ms: u64,
}

/// Waits until the program ends, uses more than it may, or `control` is closed or spoken to.
///
/// # Errors
///
/// When the kernel does not show us the program: it is then to be killed.
pub(super) fn keep(
    program: u32,
    policy: &Policy,
    inside: &Inside,
    control: impl AsFd,
) -> std::io::Result<Report> {
    let started = Instant::now();
    let program = Pid::from_raw(program.cast_signed()).ok_or(std::io::ErrorKind::InvalidInput)?;
    let ended = pidfd_open(program, PidfdFlags::empty())?;
    let mut most = Usage::default();
    let how = loop {
        let tick = rustix::time::Timespec::try_from(TICK).map_err(std::io::Error::other)?;
        let mut waiting = [
            PollFd::new(&ended, PollFlags::IN),
            PollFd::new(&control, PollFlags::IN | PollFlags::RDHUP),
        ];
        poll(&mut waiting, Some(&tick)).or_else(interrupted)?;
        let stopped = !waiting[1].revents().is_empty();
        if let Some(how) = reap(program)? {
            break how;
        }
        if stopped {
            break How::Stopped;
        }
        // What cannot be counted is over.
        let Some(usage) = inside.usage() else {
            break How::Memory;
        };
        most.memory_bytes = most.memory_bytes.max(usage.memory_bytes);
        most.cpu_ms = most.cpu_ms.max(usage.cpu_ms);
        let wanted = policy.wanted();
        if usage.memory_bytes > wanted.memory_bytes {
            break How::Memory;
        }
        if usage.cpu_ms > wanted.cpu_ms {
            break How::Cpu;
        }
        if started.elapsed() > policy.wall() {
            break How::Deadline;
        }
    };
    most.cpu_ms = most.cpu_ms.max(inside.cpu_ms().unwrap_or(0));
    Ok(Report {
        how,
        cpu_ms: most.cpu_ms,
        memory_bytes_max: most.memory_bytes,
    })
}

fn interrupted(why: Errno) -> rustix::io::Result<usize> {
    match why {
        Errno::INTR => Ok(0),
        other => Err(other),
    }
}

/// Lets the dead go, orphans too. How the program itself ended, once it has.
fn reap(program: Pid) -> std::io::Result<Option<How>> {
    let mut how = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == program {
            how = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Some(How::Exited(code)),
                (_, Some(libc::SIGXCPU)) => Some(How::Cpu),
                (_, Some(signal)) => Some(How::Signalled(signal)),
                _ => how,
            };
        }
    }
    Ok(how)
}

/// Kills the group of `leader`, which all that come from it are in and cannot leave, and waits until
/// they are gone. A signal to a group reaches also who is being made at that moment: no chain of
/// processes that make the next and end runs away from it.
pub(super) fn end(leader: u32) {
    let Some(leader) = Pid::from_raw(leader.cast_signed()) else {
        return;
    };
    // As long as one of them is not waited for, nobody else's group can have the number.
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    while waitid(WaitId::All, look).is_ok() {
        let _ = kill_process_group(leader, Signal::KILL);
        let _ = wait(WaitOptions::empty());
    }
}

impl Inside {
    fn usage(&self) -> Option<Usage> {
        let (processes, own) = self.shown()?;
        let ids = self.ids(&processes, own)?;
        // One that is gone by now uses nothing.
        let memory = ids.iter().filter_map(|id| memory(&processes, *id));
        Some(Usage {
            memory_bytes: memory.sum::<u64>() + self.sockets(&ids) * SOCKET_BYTES,
            cpu_ms: cpu(&processes, own, &ids)?,
        })
    }

    /// The processor time alone.
    fn cpu_ms(&self) -> Option<u64> {
        let (processes, own) = self.shown()?;
        let ids = self.ids(&processes, own)?;
        cpu(&processes, own, &ids)
    }

    /// Where the processes are shown, and which of them is this one.
    fn shown(&self) -> Option<(OwnedFd, u32)> {
        match self {
            Self::Namespace(processes) | Self::OpenNetwork(processes, _) => {
                Some((processes.try_clone().ok()?, 1))
            }
            Self::Descendants => Some((open_proc().ok()?, std::process::id())),
        }
    }

    /// The sockets of the box. Without a namespace they cannot be told from those of others.
    fn sockets(&self, ids: &[u32]) -> u64 {
        match self {
            Self::Namespace(processes) => {
                let all = text(processes, "self/net/unix").unwrap_or_default();
                // The first line is the table's head.
                all.lines().skip(1).count() as u64
            }
            Self::OpenNetwork(processes, most) => held(processes, ids, *most),
            Self::Descendants => 0,
        }
    }

    fn ids(&self, processes: &OwnedFd, own: u32) -> Option<Vec<u32>> {
        match self {
            Self::Namespace(_) | Self::OpenNetwork(..) => Some(
                listed(processes)?
                    .into_iter()
                    .filter(|id| *id != own)
                    .collect(),
            ),
            Self::Descendants => Some(descendants(processes, own)),
        }
    }
}

fn open_proc() -> rustix::io::Result<OwnedFd> {
    folder(CWD, "/proc")
}

fn folder(above: impl AsFd, path: impl Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(above, path, flags, Mode::empty())
}

fn listed(folder: &OwnedFd) -> Option<Vec<u32>> {
    let entries = Dir::read_from(folder).ok()?;
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok());
    Some(numbers.collect())
}

/// The sockets that these processes have open. One that does not show its descriptors has as many as it may.
fn held(processes: &OwnedFd, ids: &[u32], most: u32) -> u64 {
    let mut sockets = HashSet::new();
    let mut unseen = 0;
    for id in ids {
        match folder(processes, format!("{id}/fd")) {
            Ok(opened) => {
                let numbers = listed(&opened).unwrap_or_default().into_iter();
                let named =
                    numbers.filter_map(|n| rustix::fs::readlinkat(&opened, n.to_string(), []).ok());
                sockets.extend(named.filter(|name| name.as_bytes().starts_with(b"socket:")));
            }
            Err(Errno::NOENT | Errno::SRCH) => {}
            Err(_) => unseen += u64::from(most),
        }
    }
    sockets.len() as u64 + unseen
}

fn descendants(processes: &OwnedFd, own: u32) -> Vec<u32> {
    let mut found: Vec<u32> = children(processes, own);
    let mut at = 0;
    while let Some(one) = found.get(at) {
        found.extend(children(processes, *one));
        at += 1;
    }
    found
}

fn children(processes: &OwnedFd, of: u32) -> Vec<u32> {
    let Ok(threads) = folder(processes, format!("{of}/task")) else {
        return Vec::new();
    };
    let own = listed(&threads).unwrap_or_default();
    let texts = own
        .iter()
        .filter_map(|thread| text(&threads, &format!("{thread}/children")));
    texts
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|id| id.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

fn text(folder: &OwnedFd, path: &str) -> Option<String> {
    let opened = rustix::fs::openat(
        folder,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    // A program names itself as it likes, also with what is no text.
    let mut text = Vec::new();
    std::fs::File::from(opened.ok()?)
        .read_to_end(&mut text)
        .ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// What a process has in memory and in swap, its page tables included.
fn memory(processes: &OwnedFd, id: u32) -> Option<u64> {
    let whole = text(processes, &format!("{id}/status"))?;
    if whole.contains("\nVmRSS:") {
        return Some(in_memory(&whole));
    }
    // Where the first thread has gone, another shows what all of them have.
    let threads = folder(processes, format!("{id}/task")).ok()?;
    let all = listed(&threads)?.into_iter();
    let shown = all.filter_map(|thread| text(&threads, &format!("{thread}/status")));
    shown.map(|status| in_memory(&status)).max()
}

fn in_memory(status: &str) -> u64 {
    let kib = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    let parts = ["VmRSS:", "VmPTE:", "VmSwap:", "HugetlbPages:"];
    parts.into_iter().map(kib).sum::<u64>() << 10
}

/// The processor time of these processes and of all that are gone, in milliseconds.
fn cpu(processes: &OwnedFd, own: u32, ids: &[u32]) -> Option<u64> {
    // Its own, and that of its children that are gone: theirs is in no other process's.
    let alive = ids
        .iter()
        .filter_map(|id| times(processes, *id, &[13, 14, 15, 16]));
    Some(times(processes, own, &[15, 16])? + alive.sum::<u64>())
}

/// Some of a process's times, as `proc(5)` counts fields from 0.
fn times(processes: &OwnedFd, id: u32, fields: &[usize]) -> Option<u64> {
    let stat = text(processes, &format!("{id}/stat"))?;
    // The name may hold anything, blanks and brackets too; what follows its last bracket is numbers.
    let rest = &stat[stat.rfind(')')? + 1..];
    let numbers: Vec<&str> = rest.split_whitespace().collect();
    let ticks: u64 = fields
        .iter()
        .filter_map(|at| numbers.get(at - 2)?.parse::<u64>().ok())
        .sum();
    Some(ticks * CLOCK_TICK_MS)
}
