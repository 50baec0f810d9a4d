//! A server that is a child process and speaks over its standard streams, a line a message.
//!
//! The child is not trusted: its lines are bounded, what it prints on standard error is kept as a short
//! escaped tail, and what it does not read is not queued without end. It ends when the connection does.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use proto_spec::limits::ENVELOPE_BYTES;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::connection::{Connection, Label, Wire, cancelled};
use super::desk::Desk;
use super::hear::{Heard, hear};
use crate::mcp::rpc::Message;
#[cfg(all(feature = "sandbox", target_os = "linux"))]
use crate::sandbox::{Command, Running, Sandbox};

/// Bytes of a line: what an envelope can carry, and the message around it.
const LINE_BYTES_MAX: usize = ENVELOPE_BYTES + (64 << 10);
/// Lines that wait for the child to read them.
const LINES_WAITING: usize = 16;
/// How long a child that has been told to end may take, before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// Lines of its standard error that are kept, and the characters of each.
const TAIL_LINES: usize = 16;
const TAIL_CHARS: usize = 256;
/// Lines that are no messages which the log names one by one.
const JUNK_LOGGED: u32 = 8;

/// A program that is an MCP server.
#[derive(Debug, Clone)]
pub struct Program {
    words: Vec<String>,
    env: Vec<(String, String)>,
    place: Place,
}

/// Where it runs.
#[derive(Debug, Clone)]
enum Place {
    #[cfg(all(feature = "sandbox", target_os = "linux"))]
    Boxed(Sandbox),
    Bare,
}

impl Program {
    /// A program and its arguments, and its environment beside what every program gets, in the box.
    #[cfg(all(feature = "sandbox", target_os = "linux"))]
    #[must_use]
    pub fn boxed(words: Vec<String>, env: Vec<(String, String)>, sandbox: Sandbox) -> Self {
        Self {
            words,
            env,
            place: Place::Boxed(sandbox),
        }
    }

    /// The same without a box: it may do whatever this process may.
    #[must_use]
    pub fn bare(words: Vec<String>, env: Vec<(String, String)>) -> Self {
        Self {
            words,
            env,
            place: Place::Bare,
        }
    }

    /// The name of the box that it runs in, as grants demand it.
    pub(super) fn sandbox(&self) -> Option<&'static str> {
        match &self.place {
            #[cfg(all(feature = "sandbox", target_os = "linux"))]
            Place::Boxed(sandbox) => Some(sandbox.policy().sandbox()),
            Place::Bare => None,
        }
    }

    /// Starts it, and speaks with it.
    ///
    /// # Errors
    ///
    /// Why it did not start.
    pub(super) async fn connect(&self, desk: Arc<Desk>) -> Result<Connection, String> {
        let child = self.start().await?;
        let (lines, waiting) = mpsc::channel(LINES_WAITING);
        let stop = Arc::new(Notify::new());
        let kept = keep(
            child,
            waiting,
            lines.clone(),
            Arc::clone(&desk),
            Arc::clone(&stop),
        );
        let pipe = Pipe {
            lines,
            stop,
            keeper: Mutex::new(Some(tokio::spawn(kept))),
        };
        Ok(Connection::new(Arc::new(pipe), desk))
    }

    async fn start(&self) -> Result<Child, String> {
        let (program, args) = self.words.split_first().ok_or("no program is named")?;
        match &self.place {
            #[cfg(all(feature = "sandbox", target_os = "linux"))]
            Place::Boxed(sandbox) => {
                let mut command = Command::new(program).args(args).piped();
                for (name, value) in &self.env {
                    command = command.env(name, value);
                }
                let started = sandbox.start(command).await;
                let mut running = started.map_err(|why| why.to_string())?;
                let (stdin, streams) = (running.stdin(), running.streams());
                let (Some(stdin), Some((stdout, stderr))) = (stdin, streams) else {
                    return Err("its streams are not there".into());
                };
                Ok(Child {
                    stdin: Box::new(stdin),
                    stdout,
                    stderr,
                    life: Life::Boxed(Box::new(running)),
                })
            }
            Place::Bare => {
                let mut command = tokio::process::Command::new(program);
                command.args(args).env_clear().kill_on_drop(true);
                for name in ["PATH", "HOME", "LANG", "TMPDIR", "USER"] {
                    if let Some(value) = std::env::var_os(name) {
                        command.env(name, value);
                    }
                }
                let pipes = command
                    .envs(self.env.iter().cloned())
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped());
                let mut child = pipes
                    .spawn()
                    .map_err(|why| format!("{program:?} cannot be started: {why}"))?;
                let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
                let (Some(stdin), Some(stdout), Some(stderr)) = streams else {
                    return Err("its streams are not there".into());
                };
                Ok(Child {
                    stdin: Box::new(stdin),
                    stdout,
                    stderr,
                    life: Life::Bare(child),
                })
            }
        }
    }
}

struct Child {
    stdin: Box<dyn AsyncWrite + Send + Unpin>,
    stdout: ChildStdout,
    stderr: ChildStderr,
    life: Life,
}

/// A child's life: dropping it ends the child.
enum Life {
    #[cfg(all(feature = "sandbox", target_os = "linux"))]
    Boxed(Box<Running>),
    Bare(tokio::process::Child),
}

impl Life {
    /// Waits a little for its end, and kills it then. How it ended.
    async fn end(self) -> String {
        match self {
            #[cfg(all(feature = "sandbox", target_os = "linux"))]
            Self::Boxed(running) => match running.finish_within(END_PATIENCE).await {
                Ok(finished) => finished.ended.to_string(),
                Err(why) => why.to_string(),
            },
            Self::Bare(mut child) => {
                if let Ok(Ok(status)) = tokio::time::timeout(END_PATIENCE, child.wait()).await {
                    return status.to_string();
                }
                match child.kill().await {
                    Ok(()) => "killed".into(),
                    Err(why) => why.to_string(),
                }
            }
        }
    }
}

/// What the connection holds of the child.
struct Pipe {
    lines: mpsc::Sender<String>,
    stop: Arc<Notify>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Wire for Pipe {
    fn send(&self, message: Message, _: Vec<Label>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let sent = self.lines.send(message.line()).await;
            sent.map_err(|_| "the server has ended".to_owned())
        })
    }

    fn cancel(&self, request: u64) {
        self.tell(cancelled(request));
    }

    fn tell(&self, message: Message) {
        // A child that does not read is no use to anybody.
        let sent = self.lines.try_send(message.line());
        if let Err(mpsc::error::TrySendError::Full(_)) = sent {
            self.stop.notify_one();
        }
    }

    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.stop.notify_one();
            let keeper = self
                .keeper
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(keeper) = keeper {
                let _ = keeper.await;
            }
        })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

/// Keeps a child until it ends, or is told to.
async fn keep(
    child: Child,
    waiting: mpsc::Receiver<String>,
    lines: mpsc::Sender<String>,
    desk: Arc<Desk>,
    stop: Arc<Notify>,
) {
    let Child {
        stdin,
        stdout,
        stderr,
        life,
    } = child;
    // The way back of our own answers must not keep the way open.
    let lines = lines.downgrade();
    let tail = Arc::new(Mutex::new(VecDeque::new()));
    let mut complaints = tokio::spawn(listen(stderr, Arc::clone(&tail)));
    let why = tokio::select! {
        why = read(stdout, &desk, &lines) => why,
        why = write(stdin, waiting) => why,
        () = stop.notified() => "the connection was ended".to_owned(),
    };
    desk.lost(&format!("the server is gone: {why}"));
    // Its standard input is closed by now.
    let ended = life.end().await;
    // Its last words are there; somebody who outlives it does not keep us.
    let waited = tokio::time::timeout(END_PATIENCE, &mut complaints).await;
    if waited.is_err() {
        complaints.abort();
    }
    let tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    let tail: Vec<String> = tail.iter().cloned().collect();
    tracing::info!(%why, %ended, stderr = tail.join(" | "), "an MCP server ended");
}

/// Has the desk hear each line. Comes back with why there are no more.
async fn read(
    stdout: impl AsyncRead + Unpin,
    desk: &Desk,
    lines: &mpsc::WeakSender<String>,
) -> String {
    let mut stdout = BufReader::with_capacity(64 << 10, stdout);
    let mut line = Vec::new();
    let mut junk = 0_u32;
    loop {
        line.clear();
        match next_line(&mut stdout, &mut line).await {
            Ok(true) => {}
            Ok(false) => return "it closed its standard output".into(),
            Err(why) => return why,
        }
        let answer = match hear(&line) {
            Heard::Message(message) => desk.heard(message, line.len(), None),
            Heard::Spoilt(id, why) => {
                desk.spoilt(id, why);
                None
            }
            Heard::Junk(_) if line.trim_ascii().is_empty() => None,
            Heard::Junk(why) => {
                junk = junk.saturating_add(1);
                if junk <= JUNK_LOGGED {
                    tracing::warn!(line = shown(&line), %why, "an MCP server printed what is no message");
                }
                None
            }
        };
        if let (Some(answer), Some(lines)) = (answer, lines.upgrade()) {
            // Whoever asks faster than it reads is not heard meanwhile.
            let sent = tokio::time::timeout(END_PATIENCE, lines.send(answer.line())).await;
            if sent.is_err() {
                return "it asks and does not read".into();
            }
        }
    }
}

/// Reads a line without its end into `line`. Whether there was one.
async fn next_line(
    stream: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
) -> Result<bool, String> {
    loop {
        let bytes = stream.fill_buf().await.map_err(|why| why.to_string())?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        if line.len() + part.len() > LINE_BYTES_MAX {
            return Err(format!(
                "it printed a line of more than {LINE_BYTES_MAX} bytes"
            ));
        }
        line.extend_from_slice(part);
        let used = part.len() + usize::from(end.is_some());
        stream.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// Writes each line. Comes back when it cannot.
async fn write(mut stdin: impl AsyncWrite + Unpin, mut waiting: mpsc::Receiver<String>) -> String {
    while let Some(line) = waiting.recv().await {
        let written = async {
            stdin.write_all(line.as_bytes()).await?;
            stdin.write_all(b"\n").await?;
            stdin.flush().await
        };
        if let Err(why) = written.await {
            // What it has said before is still read.
            tokio::time::sleep(END_PATIENCE).await;
            return format!("it reads no more: {why}");
        }
    }
    "nobody speaks to it any more".into()
}

/// Keeps the last lines that it complains with.
async fn listen(stderr: impl AsyncRead + Unpin, tail: Arc<Mutex<VecDeque<String>>>) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        let (used, ends) = match stderr.fill_buf().await {
            Ok(bytes) if !bytes.is_empty() => {
                let end = bytes.iter().position(|byte| *byte == b'\n');
                let part = &bytes[..end.unwrap_or(bytes.len())];
                let room = (TAIL_CHARS * 4).saturating_sub(line.len());
                line.extend_from_slice(&part[..part.len().min(room)]);
                (part.len() + usize::from(end.is_some()), end.is_some())
            }
            _ => return,
        };
        stderr.consume(used);
        if ends {
            let shown = shown(&line);
            line.clear();
            tracing::debug!(line = shown, "an MCP server says");
            let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(shown);
        }
    }
}

/// The beginning of a line, with everything escaped that a terminal would obey.
fn shown(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(&line[..line.len().min(TAIL_CHARS * 4)]);
    let begin: String = text.chars().take(TAIL_CHARS).collect();
    begin.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(bytes: &[u8]) -> (Vec<usize>, Result<bool, String>) {
        let mut stream = BufReader::new(bytes);
        let mut found = Vec::new();
        loop {
            let mut line = Vec::new();
            match next_line(&mut stream, &mut line).await {
                Ok(true) => found.push(line.len()),
                end => return (found, end),
            }
        }
    }

    #[tokio::test]
    async fn a_line_may_be_as_long_as_the_bound_and_no_longer() {
        let mut bytes = vec![b'x'; LINE_BYTES_MAX];
        bytes.push(b'\n');
        assert_eq!(lines(&bytes).await, (vec![LINE_BYTES_MAX], Ok(false)));
        bytes.insert(0, b'x');
        assert!(lines(&bytes).await.1.is_err());
    }

    #[test]
    fn what_is_shown_of_a_line_is_short_and_steers_no_terminal() {
        let line = b"\x1b[2J\xff".repeat(10_000);
        let shown = shown(&line);
        assert!(!shown.contains('\x1b') && shown.len() < 4_096);
    }
}
