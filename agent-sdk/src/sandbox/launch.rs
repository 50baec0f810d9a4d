//! Has a program run in the box, from the outside: starts the helpers, hands them the job, takes what
//! the program prints, and says how it ended.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proto_spec::Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStderr, ChildStdout};

use super::folder::Folder;
use super::job::{self, FRAME_MAX, How, Job, Program, Report, Said};
use super::policy::{Policy, Profile, Tier};
use super::stage;

/// Whether [`init`] ran.
static READY: AtomicBool = AtomicBool::new(false);
/// Who a program is when root starts it: nobody else on common systems is.
const SANDBOX_USER: u32 = 65_533;
/// How long after its deadline a program may take to be gone, before its helpers are killed as well.
const GRACE: Duration = Duration::from_secs(10);
/// What is read at once.
const READ_BYTES: usize = 16 << 10;
/// What one argument may hold: the kernel's own bound.
const ARGUMENT_BYTES_MAX: usize = 128 << 10;
/// All arguments and variables together.
const ARGUMENTS_BYTES_MAX: usize = 1 << 20;

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

/// A program, and what it is given.
#[derive(Debug, Clone, Default)]
pub struct Command {
    program: String,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    stdin: Input,
    files: BTreeMap<String, Vec<u8>>,
    own: Own,
}

/// Which program of ours it is, if any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Own {
    #[default]
    None,
    Probe,
    Nothing,
}

#[derive(Debug, Clone, Default)]
enum Input {
    #[default]
    Nothing,
    Bytes(Vec<u8>),
    Piped,
}

impl Command {
    /// A program by its path in the box, or by its name in `/usr/bin`. There is no shell.
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            ..Self::default()
        }
    }

    pub(super) fn probe(name: &str) -> Self {
        Self {
            own: Own::Probe,
            ..Self::new(name)
        }
    }

    /// Its arguments, each as it stands.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// A variable of its environment, which is empty but for `PATH`, `HOME`, `TMPDIR` and `LANG`.
    /// Whoever lets callers choose names lets them choose `LD_PRELOAD`.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// What it reads from standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Input::Bytes(bytes.into());
        self
    }

    /// Keeps its standard input open, for [`Running::stdin`].
    #[must_use]
    pub fn piped(mut self) -> Self {
        self.stdin = Input::Piped;
        self
    }

    /// A file that lies in its folder when it starts.
    #[must_use]
    pub fn file(mut self, path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.insert(path.into(), bytes.into());
        self
    }

    fn check(&self) -> Result<(), NotRun> {
        let env = self.env.iter().flat_map(|(name, value)| [name, value]);
        let texts = || {
            std::iter::once(&self.program)
                .chain(&self.args)
                .chain(env.clone())
        };
        if self.program.is_empty() {
            return Err(NotRun::Invalid("no program is named".into()));
        }
        if texts().any(|text| text.contains('\0')) {
            return Err(NotRun::Invalid("an argument holds a NUL".into()));
        }
        let longest = texts().map(String::len).max().unwrap_or(0);
        let all: usize = texts().map(String::len).sum();
        if longest >= ARGUMENT_BYTES_MAX || all > ARGUMENTS_BYTES_MAX {
            return Err(NotRun::Invalid(format!(
                "arguments of {all} bytes, the longest {longest}: at most {ARGUMENTS_BYTES_MAX} in all, each below {ARGUMENT_BYTES_MAX}"
            )));
        }
        Ok(())
    }
}

/// The `process` profile under one policy.
#[derive(Debug, Clone)]
pub struct Sandbox {
    policy: Arc<Policy>,
    digest: Digest,
}

impl Sandbox {
    /// Shows once that this machine enforces the policy: the box was built, with nothing in it.
    ///
    /// # Errors
    ///
    /// [`NotRun::Unenforced`] with the layer that is missing.
    pub async fn open(policy: Policy) -> Result<Self, NotRun> {
        let sandbox = Self::unproven(policy);
        let nothing = Command {
            own: Own::Nothing,
            ..Command::new("nothing")
        };
        match sandbox.run(nothing).await?.ended {
            Ended::Exited(0) => Ok(sandbox),
            other => Err(NotRun::NotStarted(format!("an empty box: {other}"))),
        }
    }

    pub(super) fn unproven(policy: Policy) -> Self {
        Self {
            digest: policy.digest(),
            policy: Arc::new(policy),
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
            Tier::WithoutNamespaces => Some(Scratch::new()?),
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let mut helper = helper(self.policy.wanted().tier, theirs.into())?;
        ours.set_nonblocking(true)?;
        let mut control = UnixStream::from_std(ours)?;
        let (stdin, kept) = standard_input(&command.stdin)?;
        let job = Job {
            policy: self.policy.wanted().clone(),
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
            work: scratch.as_ref().map(|scratch| scratch.0.clone()),
        };
        // Should the helper have given up, what it said says why, not that we could not send.
        let sent = send(&mut control, &job, stdin, command.files.into_values()).await;
        let (said, folder) = match hear::<Said>(&control).await {
            Ok(Some(said)) => said,
            Ok(None) => {
                return Err(sent
                    .err()
                    .unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())
                    .into());
            }
            Err(why) => return Err(why.into()),
        };
        self.has_started(said)?;
        let folder = match (folder, &scratch) {
            (Some(folder), _) => Folder::of(folder),
            (None, Some(scratch)) => Folder::open(&scratch.0)?,
            (None, None) => return Err(NotRun::Fault(io::ErrorKind::InvalidData.into())),
        };
        Ok(Running {
            stdout: helper.stdout.take(),
            stderr: helper.stderr.take(),
            helper,
            control,
            stdin: kept,
            out: vec![0; READ_BYTES].into(),
            err: vec![0; READ_BYTES].into(),
            left: self.policy.wanted().output_bytes,
            cut: false,
            wall: self.policy.wall(),
            policy: self.digest,
            folder,
            scratch,
        })
    }

    fn has_started(&self, said: Said) -> Result<(), NotRun> {
        match said {
            Said::Started => Ok(()),
            Said::NotStarted(why) => Err(NotRun::NotStarted(why)),
            Said::Unenforced { layer, why } => Err(self.unenforced(layer, why)),
            Said::Ended(_) => Err(NotRun::Fault(io::ErrorKind::InvalidData.into())),
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

/// Whether programs run as [`SANDBOX_USER`]: root's do, but for the root of a namespace that has nobody
/// else, who is no more than an ordinary user outside.
fn becomes_another() -> bool {
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
    rustix::process::geteuid().is_root() && mapped
}

/// The first helper, with the socket as its standard input.
fn helper(tier: Tier, control: OwnedFd) -> io::Result<Child> {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg0(match tier {
        Tier::Full => stage::OUTER,
        Tier::WithoutNamespaces => stage::KEEPER,
    });
    command
        .env_clear()
        .stdin(Stdio::from(control))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if becomes_another() {
        // Its other groups go as well: the standard library sees to that.
        command.uid(SANDBOX_USER).gid(SANDBOX_USER);
    }
    let mut command = tokio::process::Command::from(command);
    // When we are gone, the socket is closed, and the helper ends with all that it keeps.
    command.spawn()
}

/// What the program reads, and our end of it.
fn standard_input(input: &Input) -> io::Result<(OwnedFd, Option<pipe::Sender>)> {
    if let Input::Nothing = input {
        return Ok((std::fs::File::open("/dev/null")?.into(), None));
    }
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&write, true)?;
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
            job::send_with(control.as_fd(), &length, &stdin)
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

async fn hear<T: DeserializeOwned>(
    control: &UnixStream,
) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut descriptor = None;
    let mut head = [0; 4];
    if !fill(control, &mut head, &mut descriptor).await? {
        return Ok(None);
    }
    let length = u32::from_be_bytes(head) as usize;
    if length > FRAME_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    match fill(control, &mut body, &mut descriptor).await? {
        true => Ok(Some((serde_json::from_slice(&body)?, descriptor))),
        false => Ok(None),
    }
}

/// Whether there was as much.
async fn fill(
    control: &UnixStream,
    bytes: &mut [u8],
    descriptor: &mut Option<OwnedFd>,
) -> io::Result<bool> {
    let mut got = 0;
    while got < bytes.len() {
        let rest = &mut bytes[got..];
        let received = control
            .async_io(Interest::READABLE, || job::receive(control.as_fd(), rest))
            .await;
        let (read, came) = match received {
            // The helper died with what we sent still unread.
            Err(why) if why.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            other => other?,
        };
        if read == 0 {
            return Ok(false);
        }
        got += read;
        *descriptor = descriptor.take().or(came);
    }
    Ok(true)
}

/// What a program printed, as it comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// On standard output.
    Stdout(Vec<u8>),
    /// On standard error.
    Stderr(Vec<u8>),
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    helper: Child,
    control: UnixStream,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    stdin: Option<pipe::Sender>,
    out: Box<[u8]>,
    err: Box<[u8]>,
    left: u64,
    cut: bool,
    wall: Duration,
    policy: Digest,
    folder: Folder,
    scratch: Option<Scratch>,
}

impl Running {
    /// Its standard input, of a [`Command::piped`]. Once.
    pub fn stdin(&mut self) -> Option<pipe::Sender> {
        self.stdin.take()
    }

    /// What it prints next; none when it prints no more, or has printed all that it may and is being
    /// killed for it.
    pub async fn output(&mut self) -> Option<Output> {
        while !self.cut && (self.stdout.is_some() || self.stderr.is_some()) {
            let (read, is_error) = tokio::select! {
                read = some(&mut self.stdout, &mut self.out) => (read, false),
                read = some(&mut self.stderr, &mut self.err) => (read, true),
            };
            let bytes = if is_error {
                &self.err[..read]
            } else {
                &self.out[..read]
            };
            if read == 0 {
                if is_error {
                    self.stderr = None;
                } else {
                    self.stdout = None;
                }
                continue;
            }
            let kept = bytes[..usize::try_from(self.left).unwrap_or(read).min(read)].to_vec();
            self.left -= kept.len() as u64;
            if kept.len() < read {
                self.cut = true;
                self.stop();
            }
            if !kept.is_empty() {
                return Some(if is_error {
                    Output::Stderr(kept)
                } else {
                    Output::Stdout(kept)
                });
            }
        }
        None
    }

    /// Kills it, and all that came from it.
    pub fn stop(&self) {
        // The helper takes any word, and silence too, as that.
        let _ = rustix::net::shutdown(&self.control, rustix::net::Shutdown::Write);
    }

    /// Waits for its end; what it still prints is counted and thrown away.
    ///
    /// # Errors
    ///
    /// When the system does not tell us about our own helper.
    pub async fn finish(mut self) -> Result<Finished, NotRun> {
        self.stdin = None;
        let limit = self.wall + GRACE;
        let report = tokio::time::timeout(limit, async {
            while self.output().await.is_some() {}
            ended(&self.control).await
        });
        let report = report.await.ok().flatten();
        // The helpers are gone when all that was in the box is.
        self.stop();
        if tokio::time::timeout(GRACE, self.helper.wait())
            .await
            .is_err()
        {
            self.helper.kill().await?;
        }
        let ended = match report {
            _ if self.cut => Ended::OutputCut,
            Some(report) => report.how.into(),
            None => Ended::Lost,
        };
        Ok(Finished {
            ended,
            stdout: Vec::new(),
            stderr: Vec::new(),
            policy: self.policy,
            cpu: Duration::from_millis(report.map_or(0, |report| report.cpu_ms)),
            memory_bytes_max: report.map_or(0, |report| report.memory_bytes_max),
            folder: self.folder,
            _scratch: self.scratch,
        })
    }
}

async fn ended(control: &UnixStream) -> Option<Report> {
    loop {
        match hear::<Said>(control).await {
            Ok(Some((Said::Ended(report), _))) => return Some(report),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Some bytes of a stream that may be over; waits for ever for one that is.
async fn some<R: tokio::io::AsyncRead + Unpin>(stream: &mut Option<R>, bytes: &mut [u8]) -> usize {
    match stream {
        Some(stream) => stream.read(bytes).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// By itself, with this code.
    Exited(i32),
    /// By a signal that was not ours.
    Signalled(i32),
    /// It used more memory than it may.
    Memory,
    /// It used more processor time than it may.
    Cpu,
    /// It ran longer than it may.
    Deadline,
    /// It printed more than it may.
    OutputCut,
    /// Whoever started it wanted no more of it.
    Stopped,
    /// Its keeper died, and it with it.
    Lost,
}

impl From<How> for Ended {
    fn from(how: How) -> Self {
        match how {
            How::Exited(code) => Self::Exited(code),
            How::Signalled(signal) => Self::Signalled(signal),
            How::Memory => Self::Memory,
            How::Cpu => Self::Cpu,
            How::Deadline => Self::Deadline,
            How::Stopped => Self::Stopped,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited {code}"),
            Self::Signalled(signal) => write!(f, "killed: signal {signal}"),
            Self::Memory => f.write_str("killed: memory"),
            Self::Cpu => f.write_str("killed: processor time"),
            Self::Deadline => f.write_str("killed: deadline"),
            Self::OutputCut => f.write_str("killed: output cut"),
            Self::Stopped => f.write_str("killed: stopped"),
            Self::Lost => f.write_str("killed: with its keeper"),
        }
    }
}

impl Serialize for Ended {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A program that is over, with all that came from it.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub ended: Ended,
    /// What it printed: hostile bytes.
    pub stdout: Vec<u8>,
    /// What it printed on standard error: hostile bytes.
    pub stderr: Vec<u8>,
    /// The policy that it ran under.
    pub policy: Digest,
    /// Processor time of all its processes.
    pub cpu: Duration,
    /// The most memory that was seen.
    pub memory_bytes_max: u64,
    folder: Folder,
    _scratch: Option<Scratch>,
}

impl Finished {
    /// What it left in its folder, which goes when this is dropped.
    #[must_use]
    pub const fn folder(&self) -> &Folder {
        &self.folder
    }
}

/// A folder on disk, where a program cannot have one in memory.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let mut noise = [0; 8];
        getrandom::fill(&mut noise).map_err(io::Error::other)?;
        let path =
            std::env::temp_dir().join(format!("fem-work-{:016x}", u64::from_ne_bytes(noise)));
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .create(&path)?;
        let scratch = Self(path);
        if becomes_another() {
            std::os::unix::fs::chown(&scratch.0, Some(SANDBOX_USER), Some(SANDBOX_USER))?;
        }
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
