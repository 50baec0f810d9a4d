//! Has a program run in the box, from the outside: starts the helpers, hands them the job, takes what
//! the program prints, and says how it ended.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proto_spec::Digest;
use rustix::pipe::PipeFlags;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::time::Instant;

use super::command::{Command, Input, Own};
use super::folder::Folder;
use super::fork_server::ForkServer;
use super::job::{self, FRAME_MAX, Job, Program, Said};
use super::policy::{Network, Policy, Profile, Tier};
use super::running::{Ended, Finished, GRACE, Output, READ_BYTES, Running, hear};
use super::scratch::Scratch;
use super::stage;

/// Whether [`init`] ran.
static READY: AtomicBool = AtomicBool::new(false);
/// Who a program is when root starts it: nobody else on common systems is.
const SANDBOX_USER: u32 = 65_533;

/// Lets this program be its own sandbox helper: the first line of `main`, before any thread. In a
/// helper it does not come back.
pub fn init() {
    stage::divert();
    READY.store(true, Ordering::Release);
}

/// Why a program was not run. Nothing of it has happened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotRun {
    /// `main` does not begin with [`init`].
    #[error(
        "this program cannot start its sandbox: its `main` has to begin with `agent_sdk::sandbox::init()`, before any thread"
    )]
    NotInitialised,
    /// The kernel, or what contains us, does not give us a layer of the box.
    #[error("the {tier} profile cannot be enforced here: {layer}: {why}. {next}")]
    Unenforced {
        /// Which profile and tier.
        tier: &'static str,
        /// Which layer.
        layer: String,
        /// What the kernel said.
        why: String,
        /// What to do.
        next: &'static str,
    },
    /// The program cannot be started in the box.
    #[error("{0}")]
    NotStarted(String),
    /// What was asked makes no sense: the sender's fault.
    #[error("{0}")]
    Invalid(String),
    /// Something here failed.
    #[error("the sandbox failed: {0}")]
    Fault(#[from] io::Error),
}

/// The `process` profile under one policy.
#[derive(Debug, Clone)]
pub struct Sandbox {
    policy: Arc<Policy>,
    digest: Digest,
    helpers: Arc<ForkServer>,
}

impl Sandbox {
    /// Shows once that this machine enforces the policy: the box was built, with nothing in it.
    ///
    /// # Errors
    ///
    /// [`NotRun::Unenforced`] with the layer that is missing.
    pub async fn open(policy: Policy) -> Result<Self, NotRun> {
        let sandbox = Self::unproven(policy);
        let finished = sandbox.run(Command::nothing()).await?;
        let ended = finished.ended;
        finished.clear().await;
        match ended {
            Ended::Exited(0) => Ok(sandbox),
            other => Err(NotRun::NotStarted(format!("an empty box: {other}"))),
        }
    }

    pub(super) fn unproven(policy: Policy) -> Self {
        let policy = Arc::new(policy);
        let wanted = policy.wanted();
        let helper = match (wanted.tier, wanted.network) {
            (Tier::Full, Network::Closed) => stage::OUTER,
            (Tier::Full, Network::Open) => stage::OUTER_OPEN,
            (Tier::WithoutNamespaces, _) => stage::KEEPER,
        };
        Self {
            digest: policy.digest(),
            helpers: Arc::new(ForkServer::new(helper, another_user(), Arc::clone(&policy))),
            policy,
        }
    }

    /// The policy that everything runs under.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Runs a program to its end. Dropping the future kills it.
    ///
    /// # Errors
    ///
    /// When it did not run; however it ends, that is no error.
    pub async fn run(&self, command: Command) -> Result<Finished, NotRun> {
        let mut running = self.start(command).await?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(output) = running.output().await {
            match output {
                Output::Stdout(bytes) => stdout.extend(bytes),
                Output::Stderr(bytes) => stderr.extend(bytes),
            }
        }
        let mut finished = running.finish().await?;
        (finished.stdout, finished.stderr) = (stdout, stderr);
        Ok(finished)
    }

    /// Starts a program. Dropping what comes back kills it.
    ///
    /// # Errors
    ///
    /// When it did not start.
    pub async fn start(&self, command: Command) -> Result<Running, NotRun> {
        if !READY.load(Ordering::Acquire) {
            return Err(NotRun::NotInitialised);
        }
        command.check()?;
        if self.policy.wanted().profile != Profile::Process {
            return Err(NotRun::Invalid("the policy is of another profile".into()));
        }
        let given: usize = command.files.values().map(Vec::len).sum();
        if given as u64 > self.policy.wanted().disk_bytes {
            return Err(NotRun::Invalid(format!(
                "{given} bytes of files do not fit into its folder"
            )));
        }
        let scratch = match self.policy.wanted().tier {
            Tier::Full => None,
            Tier::WithoutNamespaces => Some(Scratch::new(another_user())?),
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let (stdout, out) = pipe()?;
        let (stderr, err) = pipe()?;
        let with = [theirs.as_fd(), out.as_fd(), err.as_fd()];
        self.helpers.order(with).await?;
        drop((theirs, out, err));
        ours.set_nonblocking(true)?;
        let mut control = UnixStream::from_std(ours)?;
        let (stdin, kept) = standard_input(&command.stdin)?;
        let job = Job {
            program: match command.own {
                Own::None => Program::Named(command.program),
                Own::Probe => Program::Probe(command.program),
                Own::Nothing => Program::Nothing,
            },
            args: command.args,
            env: command.env,
            inputs: command
                .files
                .iter()
                .map(|(path, bytes)| (path.clone(), bytes.len() as u64))
                .collect(),
            work: scratch.as_ref().and_then(|(scratch, _)| scratch.path()),
        };
        // Should the helper have given up, what it said says why, not that we could not send.
        let sent = send(&mut control, &job, stdin, command.files.into_values()).await;
        let (mut helper, mut folder) = (None, None);
        let said = loop {
            match hear::<Said>(&control).await? {
                Some((Said::Here, came)) => helper = came,
                Some((Said::Folder, came)) => folder = came,
                Some((said, _)) => break said,
                None => {
                    let why = sent.err();
                    return Err(why
                        .unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())
                        .into());
                }
            }
        };
        self.has_started(said)?;
        let (scratch, folder) = match (folder, scratch) {
            (Some(folder), _) => (None, Folder::of(folder)),
            (None, Some((scratch, folder))) => (Some(scratch), folder),
            (None, None) => return Err(NotRun::Fault(io::ErrorKind::InvalidData.into())),
        };
        let helper = helper.ok_or(NotRun::Fault(io::ErrorKind::InvalidData.into()))?;
        Ok(Running {
            stdout: Some(stdout),
            stderr: Some(stderr),
            // The one way to wait for a descriptor of any kind that needs no `unsafe`.
            helper: pipe::Receiver::from_owned_fd_unchecked(helper)?,
            control,
            stdin: kept,
            out: vec![0; READ_BYTES].into(),
            err: vec![0; READ_BYTES].into(),
            left: self.policy.wanted().output_bytes,
            cut: false,
            ends: Instant::now() + self.policy.wall() + GRACE,
            kept_no_more: false,
            policy: self.digest,
            folder,
            files_max: usize::try_from(self.policy.wanted().disk_files).unwrap_or(usize::MAX),
            scratch,
        })
    }

    fn has_started(&self, said: Said) -> Result<(), NotRun> {
        match said {
            Said::Started => Ok(()),
            Said::NotStarted(why) => Err(NotRun::NotStarted(why)),
            Said::Unenforced { layer, why } => Err(self.unenforced(layer, why)),
            Said::Here | Said::Folder | Said::Ended(_) => {
                Err(NotRun::Fault(io::ErrorKind::InvalidData.into()))
            }
        }
    }

    fn unenforced(&self, layer: String, why: String) -> NotRun {
        let (tier, next) = match self.policy.wanted().tier {
            Tier::Full => (
                "process",
                "`fem-cli sandbox doctor` shows what is there; a policy with tier = \"without-namespaces\" asks for less, and protects less",
            ),
            Tier::WithoutNamespaces => (
                "process (without namespaces)",
                "There is nothing weaker: use another machine, or another kernel",
            ),
        };
        NotRun::Unenforced {
            tier,
            layer,
            why,
            next,
        }
    }
}

/// Who programs run as, if not as this user: root's run as [`SANDBOX_USER`], but for the root of a namespace that has nobody
/// else, who is no more than an ordinary user outside.
fn another_user() -> Option<u32> {
    let maps = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mapped = maps.lines().any(|line| {
        let mut numbers = line
            .split_whitespace()
            .filter_map(|n| n.parse::<u64>().ok());
        let (first, _, many) = (numbers.next(), numbers.next(), numbers.next());
        let user = u64::from(SANDBOX_USER);
        first
            .zip(many)
            .is_some_and(|(first, many)| (first..first + many).contains(&user))
    });
    (rustix::process::geteuid().is_root() && mapped).then_some(SANDBOX_USER)
}

/// What a program prints: our end, and its own.
fn pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write))
}

/// What the program reads, and our end of it.
fn standard_input(input: &Input) -> io::Result<(OwnedFd, Option<pipe::Sender>)> {
    if let Input::Nothing = input {
        return Ok((std::fs::File::open("/dev/null")?.into(), None));
    }
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let mut sender = pipe::Sender::from_owned_fd(write)?;
    match input.clone() {
        Input::Bytes(bytes) => {
            // Ends when all is read, or when nobody is left who could.
            tokio::spawn(async move {
                let _ = sender.write_all(&bytes).await;
            });
            Ok((read, None))
        }
        _ => Ok((read, Some(sender))),
    }
}

async fn send(
    control: &mut UnixStream,
    job: &Job,
    stdin: OwnedFd,
    files: impl Iterator<Item = Vec<u8>>,
) -> io::Result<()> {
    let body = serde_json::to_vec(job)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|n| *n as usize <= FRAME_MAX);
    let length = length.ok_or(io::ErrorKind::InvalidInput)?.to_be_bytes();
    let sent = control
        .async_io(Interest::WRITABLE, || {
            job::send_with(control.as_fd(), &length, &[stdin.as_fd()])
        })
        .await?;
    drop(stdin);
    control.write_all(&length[sent..]).await?;
    control.write_all(&body).await?;
    for bytes in files {
        control.write_all(&bytes).await?;
    }
    Ok(())
}
