//! Other people's programs: run to their end within a bound, or kept until nobody needs them.

use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// Characters of what a program said that an error repeats: its end.
const SAID_MAX: usize = 4_000;

/// What the program wrote to its standard output, once it has ended well.
///
/// # Errors
///
/// When it does not start, has not ended after `patience`, or ends badly; with what it said.
pub async fn output(command: &mut Command, patience: Duration) -> Result<String> {
    let output = run(command, patience).await?;
    if !output.status.success() {
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        bail!("{}: {}", output.status, end_of(&said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs the program to its end, whatever that is.
///
/// # Errors
///
/// When it does not start or has not ended after `patience`; it and all that it started are killed then.
pub async fn run(command: &mut Command, patience: Duration) -> Result<Output> {
    let program = command.as_std().get_program().to_owned();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let group = Group::of(&child)?;
    let output = timeout(patience, child.wait_with_output())
        .await
        .with_context(|| format!("{} was not done in {patience:?}", program.display()))??;
    drop(group);
    Ok(output)
}

/// The last of what was said.
fn end_of(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let from = said.len().saturating_sub(SAID_MAX);
    let from = (from..said.len()).find(|at| said.is_char_boundary(*at));
    said[from.unwrap_or(0)..].trim().to_owned()
}

/// A program that serves until it is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    _group: Group,
    /// Kept open: who writes to a closed pipe dies of it.
    _stdout: BufReader<ChildStdout>,
    /// What it said after `ready`.
    pub said: String,
}

impl Server {
    /// Starts a program and waits for its line `ready …`.
    ///
    /// # Errors
    ///
    /// When it ends before, or has not said it after `patience`.
    pub async fn start(command: &mut Command, patience: Duration) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", command.as_std().get_program().display()))?;
        let group = Group::of(&child)?;
        let mut stdout = BufReader::new(child.stdout.take().context("its standard output")?);
        let mut line = String::new();
        timeout(patience, stdout.read_line(&mut line))
            .await
            .context("it is not ready")??;
        let Some(said) = line.trim().strip_prefix("ready ") else {
            bail!("it did not become ready: {line:?}");
        };
        Ok(Self {
            said: said.to_owned(),
            child,
            _group: group,
            _stdout: stdout,
        })
    }

    /// Its process id, until it has ended.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }
}

/// A process group of ours, killed when dropped: npm's and Python's programs start others.
#[derive(Debug)]
struct Group(Pid);

impl Group {
    fn of(child: &Child) -> Result<Self> {
        let id = child.id().context("it has ended")?;
        let id = Pid::from_raw(i32::try_from(id)?).context("its id")?;
        Ok(Self(id))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Nobody may be left.
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}
