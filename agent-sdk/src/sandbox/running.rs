//! A program that runs: what it prints, and how it ended.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use proto_spec::Digest;
use rustix::process::{Signal, pidfd_send_signal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::time::Instant;

use super::folder::{Entry, Folder, Listing};
use super::job::{self, FRAME_MAX, How, Report, Said};
use super::launch::NotRun;
use super::scratch::Scratch;

/// How long after its deadline a program may take to be gone, before its helpers are killed as well.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// Files and folders that an answer looks at, and the bytes of their names.
const FILES_TOLD_MAX: usize = 1_000;
const NAMES_TOLD_BYTES_MAX: usize = 64 << 10;
/// What is read at once.
pub(super) const READ_BYTES: usize = 16 << 10;

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
    /// The helper that the box comes from: when it is gone, so is all that was in the box.
    /// Readable then; nothing is read from it.
    pub(super) helper: pipe::Receiver,
    pub(super) control: UnixStream,
    pub(super) stdout: Option<pipe::Receiver>,
    pub(super) stderr: Option<pipe::Receiver>,
    pub(super) stdin: Option<pipe::Sender>,
    pub(super) out: Box<[u8]>,
    pub(super) err: Box<[u8]>,
    pub(super) left: u64,
    pub(super) cut: bool,
    /// When all of it is over, whatever its helpers say.
    pub(super) ends: Instant,
    /// Whether its helper is gone.
    pub(super) kept_no_more: bool,
    pub(super) policy: Digest,
    pub(super) folder: Folder,
    pub(super) files_max: usize,
    pub(super) scratch: Option<Scratch>,
}

impl Running {
    /// Its standard input, of a [`Command::piped`](super::Command::piped). Once.
    pub fn stdin(&mut self) -> Option<pipe::Sender> {
        self.stdin.take()
    }

    /// Its standard output and standard error, for whoever bounds what it prints. Once; what it prints is
    /// then counted no more.
    pub fn streams(&mut self) -> Option<(pipe::Receiver, pipe::Receiver)> {
        self.stdout.take().zip(self.stderr.take())
    }

    /// What it prints next; none when it prints no more, has printed all that it may and is being
    /// killed for it, or should have been gone for ten seconds.
    pub async fn output(&mut self) -> Option<Output> {
        while !self.cut && (self.stdout.is_some() || self.stderr.is_some()) {
            let next = async {
                tokio::select! {
                    read = some(&mut self.stdout, &mut self.out) => Some((read, false)),
                    read = some(&mut self.stderr, &mut self.err) => Some((read, true)),
                    _ = self.helper.readable(), if !self.kept_no_more => None,
                }
            };
            let (read, is_error) = match tokio::time::timeout_at(self.ends, next).await {
                Ok(Some(read)) => read,
                Ok(None) => {
                    self.kept_no_more = true;
                    self.ends = self.ends.min(Instant::now() + GRACE);
                    continue;
                }
                // Whoever outlives its keeper may hold on to our pipes for ever.
                Err(_) => {
                    (self.stdout, self.stderr) = (None, None);
                    self.stop();
                    break;
                }
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

    /// Like [`Running::finish`], and kills it when it has not ended by itself within `limit`.
    ///
    /// # Errors
    ///
    /// Those of [`Running::finish`].
    pub async fn finish_within(mut self, limit: Duration) -> Result<Finished, NotRun> {
        self.ends = self.ends.min(Instant::now() + limit);
        self.finish().await
    }

    /// Waits for its end; what it still prints is counted and thrown away.
    ///
    /// # Errors
    ///
    /// When the system does not tell us about our own helper.
    pub async fn finish(mut self) -> Result<Finished, NotRun> {
        self.stdin = None;
        let report = tokio::time::timeout_at(self.ends, async {
            while self.output().await.is_some() {}
            ended(&self.control).await
        });
        let report = report.await.ok().flatten();
        // The helpers are gone when all that was in the box is.
        self.stop();
        if tokio::time::timeout(GRACE, self.helper.readable())
            .await
            .is_err()
        {
            pidfd_send_signal(&self.helper, Signal::KILL).map_err(io::Error::from)?;
            self.helper.readable().await?;
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
            files_max: self.files_max,
            scratch: self.scratch,
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
    /// It did what cannot be done: WebAssembly only.
    Trapped,
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
            Self::Trapped => f.write_str("killed: trap"),
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
    files_max: usize,
    scratch: Option<Scratch>,
}

/// All that callers are told of a program that ran. What it printed is shown with everything replaced
/// that is not UTF-8; as JSON it is one line, whatever it holds.
#[derive(Debug, Serialize)]
pub struct Told {
    /// How it ended: `exited 0`, `killed: memory` ….
    pub ended: Ended,
    /// On standard output.
    pub stdout: String,
    /// On standard error.
    pub stderr: String,
    /// What it left in its folder: at most 1,000 files and folders, with 64 KiB of names.
    pub files: Vec<Entry>,
    /// Why files are missing from the list, where some are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files_cut: Option<String>,
    /// Processor time of all its processes; of WebAssembly, of its thread, from compiling on.
    pub cpu_ms: u64,
    /// The most memory that was seen, every 20 ms; of WebAssembly, the most that it had.
    pub memory_bytes_max: u64,
    /// The policy that it ran under.
    pub policy: Digest,
}

impl Finished {
    /// All that callers are told. Its folder is looked at on a thread that may wait.
    pub async fn told(&self) -> Told {
        let most = self.files_max.min(FILES_TOLD_MAX);
        let files = match self.folder.again() {
            Ok(folder) => {
                let list = move || folder.list(most, NAMES_TOLD_BYTES_MAX);
                let listed = tokio::task::spawn_blocking(list).await;
                listed.unwrap_or_else(|why| Listing::unknown(&why))
            }
            Err(why) => Listing::unknown(&why),
        };
        Told {
            ended: self.ended,
            stdout: String::from_utf8_lossy(&self.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&self.stderr).into_owned(),
            files: files.entries,
            files_cut: files.cut,
            cpu_ms: u64::try_from(self.cpu.as_millis()).unwrap_or(u64::MAX),
            memory_bytes_max: self.memory_bytes_max,
            policy: self.policy,
        }
    }

    /// What it left in its folder, which goes when this is dropped.
    #[must_use]
    pub const fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Waits until what it left is gone. Dropping this removes it too, but after the drop: a program
    /// that then ends at once leaves the weaker tier's folder on disk.
    pub async fn clear(self) {
        if let Some(scratch) = self.scratch {
            scratch.remove().await;
        }
    }
}

pub(super) async fn hear<T: DeserializeOwned>(
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
