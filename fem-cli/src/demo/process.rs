//! A process of the demo, and what is said to it and by it: lines of JSON through its pipes.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::failure::{Failure, Outcome};

/// How long a process may take to say something. Only a broken one takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an agent process is told to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Order {
    /// Ask to become an agent.
    Register,
    /// Attach a session and keep it.
    Attach,
    /// Serve the files below a directory.
    Serve { directory: PathBuf },
    /// Call a tool of the files agent.
    Call { tool: String, path: PathBuf },
    /// Say how many calls reached a tool.
    Served,
}

/// What it says came of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Said {
    /// An admin has to decide.
    Pending,
    /// It is done.
    Done,
    /// What the tool answered.
    Answer(String),
    /// The broker's code.
    Refused { code: String, message: String },
    /// Anything else.
    Failed(String),
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pending => f.write_str("pending"),
            Self::Done => f.write_str("done"),
            Self::Answer(text) => write!(f, "an answer: {text}"),
            Self::Refused { code, message } => write!(f, "{code}: {message}"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// One process of ours, talked to by lines.
pub(super) struct Process {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// This very program in another role.
    pub(super) fn start(arguments: &[&std::ffi::OsStr]) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("internal")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the demo, which ends its processes itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::fault("a process without its pipes"));
        };
        Ok(Self {
            child,
            input,
            lines: BufReader::new(output).lines(),
        })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    pub(super) async fn say(&mut self, line: &str) -> Outcome {
        self.input.write_all(line.as_bytes()).await?;
        self.input.write_all(b"\n").await?;
        Ok(self.input.flush().await?)
    }

    pub(super) async fn line(&mut self) -> Outcome<String> {
        match tokio::time::timeout(PATIENCE, self.lines.next_line()).await {
            Ok(Ok(Some(line))) => Ok(line),
            Ok(Ok(None)) => Err(Failure::fault(
                "a process of the demo ended; what it said stands above",
            )),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Failure::fault("a process of the demo does not answer")),
        }
    }

    /// Closes its input, which ends it.
    pub(super) async fn end(mut self) -> Outcome {
        drop(self.input);
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(Failure::fault(format!(
                "a process of the demo ended with {status}"
            ))),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Failure::fault("a process of the demo does not end")),
        }
    }
}
