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
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::connection::{Connection, Label, Wire, cancelled};
use super::desk::Desk;
use super::hear::{Heard, answered, hear};
use super::mailbox::Next;
use crate::mcp::rpc::{INTERNAL_ERROR, Id, Message, Object, RpcError};
use crate::mcp::words::escaped;
#[cfg(all(feature = "sandbox", target_os = "linux"))]
use crate::sandbox::{Command, Running, Sandbox};

/// Bytes of a line: what an envelope can carry, and the message around it.
const LINE_BYTES_MAX: usize = ENVELOPE_BYTES + (64 << 10);
/// Lines that wait for the child to read them.
const LINES_WAITING: usize = 16;
/// How long a child may take to show that it still hears, after a call of it was given up.
const HEARS_PATIENCE: Duration = Duration::from_secs(10);
/// How long a child that has been told to end may take, before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// Things that nobody waits for, of which a child is told when it reads: the rest it is not told.
const ASIDES_WAITING: usize = 1_024;
/// How long a child may read nothing of what it is told: one that is busy does not read.
const READ_PATIENCE: Duration = Duration::from_secs(120);
/// The most that an answer may have that is too long to be passed on, and ends its own call only.
const OVERLONG_BYTES_MAX: u64 = 64 << 20;
/// Lines of its standard error that are kept, and the characters of each.
const TAIL_LINES: usize = 16;
const TAIL_CHARS: usize = 256;
/// The last bytes that are kept of a line that is too long.
const LAST_BYTES: usize = 1 << 10;
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
        let (asides, later) = mpsc::channel(ASIDES_WAITING);
        let stop = Arc::new(Notify::new());
        let kept = keep(
            child,
            Speech { waiting, later },
            lines.clone(),
            Arc::clone(&desk),
            Arc::clone(&stop),
        );
        let pipe = Pipe {
            lines,
            asides,
            desk: Arc::clone(&desk),
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
                    stdout: Box::new(stdout),
                    stderr: Box::new(stderr),
                    life: Life::Boxed(Box::new(running)),
                })
            }
            Place::Bare => {
                let mut command = tokio::process::Command::new(program);
                // Whatever it starts is in its group, and ends with it.
                command.args(args).env_clear().process_group(0);
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
                    stdout: Box::new(stdout),
                    stderr: Box::new(stderr),
                    life: Life::Bare(Group { leader: child }),
                })
            }
        }
    }
}

struct Child {
    stdin: Box<dyn AsyncWrite + Send + Unpin>,
    stdout: Box<dyn AsyncRead + Send + Unpin>,
    stderr: Box<dyn AsyncRead + Send + Unpin>,
    life: Life,
}

/// A child's life: dropping it ends the child.
enum Life {
    #[cfg(all(feature = "sandbox", target_os = "linux"))]
    Boxed(Box<Running>),
    Bare(Group),
}

/// A child without a box, and all that it has started: dropping it kills them. What leaves its process group (a
/// daemon) outlives it; only the box keeps that.
struct Group {
    leader: tokio::process::Child,
}

impl Group {
    /// Waits a little for the child's end. Those that it leaves behind are killed: at once where it ended, and with it
    /// where it did not. How it ended.
    async fn end(mut self) -> String {
        let group = self.id();
        let ended = tokio::time::timeout(END_PATIENCE, self.leader.wait()).await;
        // At once: an empty group's number is given anew some time.
        kill(group);
        match ended {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(why)) => why.to_string(),
            Err(_) => {
                let killed = self.leader.wait().await;
                killed.map_or_else(|why| why.to_string(), |_| "killed".into())
            }
        }
    }

    /// Its number is the child's, and nobody else's while one of it is there. None once the child's end was heard.
    fn id(&self) -> Option<Pid> {
        let id = i32::try_from(self.leader.id()?).ok()?;
        Pid::from_raw(id)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        kill(self.id());
    }
}

fn kill(group: Option<Pid>) {
    if let Some(group) = group {
        // It may be empty by now.
        let _ = kill_process_group(group, Signal::KILL);
    }
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
            Self::Bare(group) => group.end().await,
        }
    }
}

/// What the connection holds of the child.
struct Pipe {
    lines: mpsc::Sender<String>,
    asides: mpsc::Sender<String>,
    desk: Arc<Desk>,
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
        self.desk.doubt();
    }

    fn let_go(&self, _: u64) {}

    fn tell(&self, message: Message) {
        // One that does not read for long is ended by whoever writes; until then nobody's cancellations
        // are a reason to.
        if self.asides.try_send(message.line()).is_err() {
            tracing::debug!("an MCP server reads too slowly to be told that nobody waits any more");
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
    speech: Speech,
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
        why = write(stdin, speech) => why,
        why = watch(&desk, &lines) => why,
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
            Ok(Line::Whole) => {}
            Ok(Line::Overlong(last)) => {
                let end = [&line[line.len() - LAST_BYTES..], &last].concat();
                let Some(id) = answered(&line, &end) else {
                    return format!("it printed a line of more than {LINE_BYTES_MAX} bytes");
                };
                let why = format!("the server's answer has more than {LINE_BYTES_MAX} bytes");
                desk.spoilt(id, RpcError::new(INTERNAL_ERROR, why));
                continue;
            }
            Ok(Line::End) => return "it closed its standard output".into(),
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

/// Asks the child whether it still hears, whenever a request was given up: it may hang in that. Comes back when it
/// does not hear, and nobody is left who waits for it.
async fn watch(desk: &Desk, lines: &mpsc::WeakSender<String>) -> String {
    loop {
        let doubt = desk.doubted().await;
        let (id, mailbox) = desk.probe();
        let ping = Message::Request {
            id: Id::number(id),
            method: "ping".into(),
            params: Object::default(),
        };
        let answered = async {
            if let Some(lines) = lines.upgrade() {
                let _ = lines.send(ping.line()).await;
            }
            // Whatever it answers, it heard.
            while let Next::Said(_) = mailbox.next().await {}
        };
        tokio::pin!(answered);
        while tokio::time::timeout(HEARS_PATIENCE, &mut answered)
            .await
            .is_err()
        {
            if desk.is_alone(id) {
                return "it does not hear any more".into();
            }
        }
        desk.settle(doubt);
    }
}

/// A line of what a child prints.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Whole,
    /// Its beginning was kept, and these were its last bytes.
    Overlong(Vec<u8>),
    /// There are no more.
    End,
}

/// Reads a line without its end into `line`.
async fn next_line(
    stream: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
) -> Result<Line, String> {
    let (mut last, mut length) = (Vec::new(), 0_u64);
    loop {
        let bytes = stream.fill_buf().await.map_err(|why| why.to_string())?;
        if bytes.is_empty() {
            return Ok(Line::End);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        length += part.len() as u64;
        if length > OVERLONG_BYTES_MAX {
            return Err(format!(
                "it printed a line of more than {OVERLONG_BYTES_MAX} bytes"
            ));
        }
        let room = LINE_BYTES_MAX - line.len();
        line.extend_from_slice(&part[..part.len().min(room)]);
        if part.len() > room {
            last.extend_from_slice(&part[room..]);
            last.drain(..last.len().saturating_sub(LAST_BYTES));
        }
        let used = part.len() + usize::from(end.is_some());
        stream.consume(used);
        if end.is_some() {
            return Ok(match length > LINE_BYTES_MAX as u64 {
                true => Line::Overlong(last),
                false => Line::Whole,
            });
        }
    }
}

/// What a child is to be told.
struct Speech {
    /// Whoever says it waits until there is room.
    waiting: mpsc::Receiver<String>,
    /// After that, so that nothing is taken back before it was said; nobody waits for it.
    later: mpsc::Receiver<String>,
}

impl Speech {
    async fn next(&mut self) -> Option<String> {
        tokio::select! {
            biased;
            line = self.waiting.recv() => line,
            Some(line) = self.later.recv() => Some(line),
        }
    }
}

/// Writes each line. Comes back when it cannot.
async fn write(mut stdin: impl AsyncWrite + Unpin, mut speech: Speech) -> String {
    while let Some(mut line) = speech.next().await {
        // In one write: the child is not woken for half a line.
        line.push('\n');
        let written = async {
            stdin.write_all(line.as_bytes()).await?;
            stdin.flush().await
        };
        match tokio::time::timeout(READ_PATIENCE, written).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => {
                // What it has said before is still read.
                tokio::time::sleep(END_PATIENCE).await;
                return format!("it reads no more: {why}");
            }
            Err(_) => return format!("it read nothing for {} s", READ_PATIENCE.as_secs()),
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
    escaped(&text, TAIL_CHARS)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::mcp::rpc::METHOD_NOT_FOUND;
    use crate::mcp::wrap::desk::{House, Wants};

    async fn lines(bytes: &[u8]) -> (Vec<usize>, Result<Line, String>) {
        let mut stream = BufReader::new(bytes);
        let mut found = Vec::new();
        loop {
            let mut line = Vec::new();
            match next_line(&mut stream, &mut line).await {
                Ok(Line::Whole) => found.push(line.len()),
                end => return (found, end),
            }
        }
    }

    #[tokio::test]
    async fn a_line_may_be_as_long_as_the_bound_and_no_longer() {
        let mut bytes = vec![b'x'; LINE_BYTES_MAX];
        bytes.push(b'\n');
        assert_eq!(lines(&bytes).await, (vec![LINE_BYTES_MAX], Ok(Line::End)));
        bytes.insert(0, b'x');
        assert_eq!(
            lines(&bytes).await,
            (vec![], Ok(Line::Overlong(vec![b'x'])))
        );
        let endless = tokio::io::repeat(b'x');
        let mut line = Vec::new();
        let read = next_line(&mut BufReader::new(endless), &mut line).await;
        assert!(read.is_err() && line.len() == LINE_BYTES_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_that_does_not_hear_is_given_up_once_nobody_else_waits_for_it() {
        let desk = Desk::new(House::default());
        let (lines, mut waiting) = mpsc::channel(1);
        let way = lines.downgrade();
        let (id, _mailbox) = desk.open(Wants::default());
        desk.doubt();
        let watched = watch(&desk, &way);
        tokio::pin!(watched);
        let long = HEARS_PATIENCE * 10;
        let early = tokio::time::timeout(long, &mut watched).await;
        assert!(early.is_err(), "another call may still be answered");
        assert!(waiting.recv().await.unwrap().contains(r#""method":"ping""#));
        desk.close(id);
        let later = tokio::time::timeout(long, &mut watched).await;
        assert!(later.unwrap().contains("does not hear"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_that_answers_that_it_knows_no_ping_hears() {
        let desk = Desk::new(House::default());
        let (lines, mut waiting) = mpsc::channel(1);
        let way = lines.downgrade();
        desk.doubt();
        let answering = async {
            waiting.recv().await.unwrap();
            let refused = Err(RpcError::new(METHOD_NOT_FOUND, "no ping here"));
            desk.heard(Message::answer(Id::number(1), refused), 1, None);
            assert!(desk.hears().await);
        };
        tokio::select! {
            why = watch(&desk, &way) => panic!("{why}"),
            () = answering => {}
        }
    }

    /// Reads what a child says, and then to the end that comes when nobody is left who could say more.
    async fn last_words(mut stdout: impl AsyncRead + Unpin) {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(END_PATIENCE * 10, stdout.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "somebody is left who keeps it open");
    }

    #[tokio::test]
    async fn without_a_box_what_a_child_has_started_ends_with_it() {
        for (script, how) in [
            ("sleep 1000 & echo; read x; exit 3", "exit status: 3"),
            ("sleep 1000 & echo; sleep 1000", "killed"),
        ] {
            for is_dropped in [false, true] {
                let words = ["sh", "-c", script].map(str::to_owned);
                let child = Program::bare(words.to_vec(), Vec::new())
                    .start()
                    .await
                    .unwrap();
                let mut stdout = BufReader::new(child.stdout);
                stdout.read_line(&mut String::new()).await.unwrap();
                drop(child.stdin);
                match is_dropped {
                    true => drop(child.life),
                    false => assert_eq!(child.life.end().await, how),
                }
                last_words(stdout).await;
            }
        }
    }

    #[test]
    fn what_is_shown_of_a_line_is_short_and_steers_no_terminal() {
        let line = b"\x1b[2J\xff".repeat(10_000);
        let shown = shown(&line);
        assert!(!shown.contains('\x1b') && shown.len() < 4_096);
    }
}
