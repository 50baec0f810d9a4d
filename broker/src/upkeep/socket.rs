//! The socket by which an operator asks a running broker: `control.sock` in the data directory, for
//! the broker's own user only. It can do nothing that its user could not do to the files.
//!
//! One question and one answer a connection, each a line of JSON.

use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::time::timeout;

use super::backup;
use crate::journal::{JournalError, Reader, Summary};

const NAME: &str = "control.sock";
/// Bytes of a question: a path and some words.
const QUESTION_BYTES_MAX: u64 = 16 << 10;
/// Bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 16 << 10;
/// How long the asking side may take over its line.
const QUESTION_MAX: Duration = Duration::from_secs(10);
/// How long a copy of the largest journal may take.
const ANSWER_MAX: Duration = Duration::from_secs(3_600);

/// What a broker can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "camelCase")]
pub enum Question {
    /// Copy the journal to here: an absolute path.
    BackUp {
        /// Does not exist.
        target: PathBuf,
    },
    /// Walk the journal.
    Verify,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum Answer {
    /// It is done, and the journal is whole.
    Whole(Summary),
    /// This record does not fit.
    Damaged {
        /// Its position.
        number: u64,
        /// What is wrong with it.
        why: String,
    },
    /// It was not done.
    Failed {
        /// Why.
        why: String,
    },
}

impl Answer {
    fn of(done: anyhow::Result<Summary>) -> Self {
        match done {
            Ok(summary) => Self::Whole(summary),
            Err(error) => match error.downcast::<JournalError>() {
                Ok(JournalError::Damaged { number, why }) => Self::Damaged { number, why },
                Ok(error) => Self::Failed {
                    why: error.to_string(),
                },
                Err(error) => Self::Failed {
                    why: format!("{error:#}"),
                },
            },
        }
    }

    pub(super) fn into_result(self) -> Result<Summary, JournalError> {
        match self {
            Self::Whole(summary) => Ok(summary),
            Self::Damaged { number, why } => Err(JournalError::Damaged { number, why }),
            Self::Failed { why } => Err(JournalError::Refused(why)),
        }
    }
}

/// A path to the socket that is short enough for an address, whatever the folder is called.
fn address(data: &File) -> PathBuf {
    format!("/proc/self/fd/{}/{NAME}", data.as_raw_fd()).into()
}

/// Listens in `data`, whose journal this process has: a socket that is there was left by another that
/// is gone.
///
/// # Errors
///
/// When the file system holds no sockets.
pub fn listen(data: &Path) -> anyhow::Result<UnixListener> {
    let path = data.join(NAME);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", path.display()));
        }
        _ => {}
    }
    let folder = File::open(data)?;
    let listener = UnixListener::bind(address(&folder))
        .with_context(|| format!("listening on {}", path.display()))?;
    // Until then the folder's own mode, 0700, is what keeps others out.
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Answers one question after the other.
pub async fn serve(listener: UnixListener, journal: Reader) {
    let journal = Arc::new(journal);
    loop {
        let served = match listener.accept().await {
            Ok((stream, _)) => answer(stream, &journal).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = served {
            tracing::warn!(
                error = format!("{error:#}"),
                "a question on the control socket failed"
            );
        }
    }
}

async fn answer(stream: tokio::net::UnixStream, journal: &Arc<Reader>) -> anyhow::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut line = String::new();
    let mut reading = tokio::io::BufReader::new(reading.take(QUESTION_BYTES_MAX));
    timeout(QUESTION_MAX, reading.read_line(&mut line)).await??;
    let question: Question = serde_json::from_str(&line)?;
    let journal = Arc::clone(journal);
    let asked = question.clone();
    let done = tokio::task::spawn_blocking(move || match asked {
        Question::BackUp { target } => backup::copy(&journal, &target),
        Question::Verify => Ok(journal.inspect()?),
    })
    .await?;
    match &done {
        Ok(summary) => tracing::info!(?question, records = summary.records, "done"),
        Err(error) => tracing::warn!(?question, error = format!("{error:#}"), "not done"),
    }
    let mut line = serde_json::to_vec(&Answer::of(done))?;
    line.push(b'\n');
    timeout(QUESTION_MAX, writing.write_all(&line)).await??;
    Ok(())
}

/// Asks the broker that runs on `data`; gives nothing where none does.
///
/// # Errors
///
/// When it does not answer.
pub fn ask(data: &Path, question: &Question) -> anyhow::Result<Option<Answer>> {
    let Ok(folder) = File::open(data) else {
        return Ok(None);
    };
    let mut stream = match UnixStream::connect(address(&folder)) {
        Ok(stream) => stream,
        // None was ever there, or the one that listened was killed.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => {
            return Err(error)
                .with_context(|| format!("reaching the broker at {}", data.join(NAME).display()));
        }
    };
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut answer)?;
    serde_json::from_str(&answer)
        .map(Some)
        .context("the broker ended before it answered")
}
