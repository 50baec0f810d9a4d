//! The helper that all others come from: this program, started once for each sandbox, which forks for
//! each program that is to run. To start this program anew each time would cost more than all that the
//! kernel does for a box.
//!
//! It hears the policy once. An order then is one byte with three descriptors: the way to whoever gave
//! it, and where the program prints to. Nothing that a caller sent reaches this process, and it ends when
//! its socket closes.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use fork::{Fork, fork};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, wait};
use tokio::io::Interest;
use tokio::process::{Child, Command};

use super::job::{self, Said};
use super::policy::{Policy, Wanted};

/// What comes with an order.
const DESCRIPTORS: usize = job::DESCRIPTORS_MAX;

/// Gives the orders, and starts the process that takes them when it is needed. Dropping it ends that
/// process, and nothing that came from it.
#[derive(Debug)]
pub(super) struct ForkServer {
    name: &'static str,
    user: Option<u32>,
    policy: Arc<Policy>,
    running: Mutex<Option<Arc<Process>>>,
}

#[derive(Debug)]
struct Process {
    orders: UnixStream,
    /// The runtime waits for it once this is dropped.
    _child: Child,
}

impl ForkServer {
    /// One whose processes are helpers of that name, of this user and group where one is given.
    pub(super) const fn new(name: &'static str, user: Option<u32>, policy: Arc<Policy>) -> Self {
        Self {
            name,
            user,
            policy,
            running: Mutex::new(None),
        }
    }

    /// Has a helper forked that speaks over the first of these, and prints to the others. Should the
    /// process that forks have been killed, another one takes its place.
    ///
    /// # Errors
    ///
    /// The system starts no process.
    pub(super) async fn order(&self, with: [BorrowedFd<'_>; DESCRIPTORS]) -> io::Result<()> {
        let process = self.process(None)?;
        match process.order(with).await {
            Ok(()) => Ok(()),
            Err(_) => self.process(Some(&process))?.order(with).await,
        }
    }

    /// The one that runs, unless it is this one.
    fn process(&self, gone: Option<&Arc<Process>>) -> io::Result<Arc<Process>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(process) = &*running
            && !gone.is_some_and(|gone| Arc::ptr_eq(gone, process))
        {
            return Ok(Arc::clone(process));
        }
        let process = Arc::new(Process::start(self.name, self.user, self.policy.wanted())?);
        *running = Some(Arc::clone(&process));
        Ok(process)
    }
}

impl Process {
    fn start(name: &str, user: Option<u32>, policy: &Wanted) -> io::Result<Self> {
        let (orders, theirs) = UnixStream::pair()?;
        let mut command = std::process::Command::new("/proc/self/exe");
        command
            .arg0(name)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(user) = user {
            // Its other groups go as well: the standard library sees to that.
            command.uid(user).gid(user);
        }
        let child = Command::from(command).spawn()?;
        job::say(&orders, policy, None)?;
        orders.set_nonblocking(true)?;
        Ok(Self {
            orders,
            _child: child,
        })
    }

    async fn order(&self, with: [BorrowedFd<'_>; DESCRIPTORS]) -> io::Result<()> {
        match send(self.orders.as_fd(), with) {
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => {
                // It has more before it than the socket holds.
                let orders = tokio::net::UnixStream::from_std(self.orders.try_clone()?)?;
                orders
                    .async_io(Interest::WRITABLE, || send(orders.as_fd(), with))
                    .await
            }
            other => other,
        }
    }
}

fn send(orders: BorrowedFd<'_>, with: [BorrowedFd<'_>; DESCRIPTORS]) -> io::Result<()> {
    job::send_with(orders, &[1], &with).map(drop)
}

/// What one helper is for.
struct Order {
    control: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Forks for each order that comes in on standard input. Comes back in the forked processes only, with
/// the order's descriptors as the standard ones.
///
/// # Errors
///
/// Nobody is left to give orders, or the kernel refuses something that it never refuses.
pub(super) fn serve() -> io::Result<()> {
    let orders = io::stdin();
    let mut alive: Vec<OwnedFd> = Vec::new();
    loop {
        let mut waiting = vec![PollFd::new(&orders, PollFlags::IN)];
        waiting.extend(alive.iter().map(|one| PollFd::new(one, PollFlags::IN)));
        match poll(&mut waiting, None) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        let mut ready = waiting.iter().map(|one| !one.revents().is_empty());
        let is_order = ready.next().unwrap_or(false);
        let over: Vec<bool> = ready.collect();
        let mut over = over.into_iter();
        alive.retain(|_| !over.next().unwrap_or(false));
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        if !is_order {
            continue;
        }
        let Some(order) = next(orders.as_fd())? else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        match fork() {
            Ok(Fork::Child) => return become_of(&order),
            Ok(Fork::Parent(child)) => {
                // One that is not looked after is let go with the next one.
                alive.extend(Pid::from_raw(child).and_then(|pid| looked_after(pid).ok()));
            }
            Err(why) => {
                let said = Said::Unenforced {
                    layer: "processes".into(),
                    why: why.to_string(),
                };
                let _ = job::say(&order.control, &said, None);
            }
        }
    }
}

fn looked_after(child: Pid) -> io::Result<OwnedFd> {
    Ok(pidfd_open(child, PidfdFlags::empty())?)
}

/// The next order; none when nobody is left to give one. One whose descriptors did not come is dropped,
/// which its sender sees.
fn next(orders: BorrowedFd<'_>) -> io::Result<Option<Order>> {
    loop {
        let (read, came) = job::receive_all(orders, &mut [0])?;
        if read == 0 {
            return Ok(None);
        }
        if let Ok([control, stdout, stderr]) = <[OwnedFd; DESCRIPTORS]>::try_from(came) {
            return Ok(Some(Order {
                control,
                stdout,
                stderr,
            }));
        }
    }
}

fn become_of(order: &Order) -> io::Result<()> {
    rustix::stdio::dup2_stdin(&order.control)?;
    rustix::stdio::dup2_stdout(&order.stdout)?;
    rustix::stdio::dup2_stderr(&order.stderr)?;
    Ok(())
}
