//! `file.read` and `file.write`: one folder, and nothing that any name in it leads to.

use std::io;
use std::path::Path;
use std::sync::Arc;

use agent_sdk::sandbox::Folder;
use agent_sdk::{Call, Tool, ToolError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

/// The longest file that goes in or out by a call.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 20;

/// The path leads nowhere, or out of the folder, or to no plain file.
const NO_SUCH_FILE: &str = "NO_SUCH_FILE";
/// The path has too many names, or too long ones.
const PATH_TOO_LONG: &str = "PATH_TOO_LONG";
/// Longer than [`FILE_BYTES_MAX`].
const FILE_TOO_LARGE: &str = "FILE_TOO_LARGE";
/// The machine has no more room.
const DISK_FULL: &str = "DISK_FULL";

/// What is done in the folder at once; the rest waits. What is at work is not stopped by a caller who
/// gives up, so it holds its turn until it is done.
const AT_ONCE: usize = 8;

/// The folder. Cloning it gives another hold of the same one.
#[derive(Clone)]
pub(crate) struct Root {
    folder: Arc<Folder>,
    turns: Arc<Semaphore>,
}

impl Root {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            folder: Arc::new(Folder::open(path)?),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        })
    }

    /// Does something that waits for the disk, where nothing else waits for it.
    pub(crate) async fn with<T: Send + 'static>(
        &self,
        path: &str,
        act: impl FnOnce(&Folder) -> io::Result<T> + Send + 'static,
    ) -> Result<T, ToolError> {
        let folder = Arc::clone(&self.folder);
        let turn = Arc::clone(&self.turns).acquire_owned().await?;
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            act(&folder)
        });
        let done = done.await?;
        done.map_err(|why| ToolError::new(code(&why), format!("{path:?}: {why}")))
    }
}

fn code(why: &io::Error) -> &'static str {
    match why.kind() {
        io::ErrorKind::InvalidFilename => PATH_TOO_LONG,
        io::ErrorKind::FileTooLarge => FILE_TOO_LARGE,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DISK_FULL,
        _ => NO_SUCH_FILE,
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Read {
    /// Below the folder: names and `/`.
    path: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Write {
    /// Below the folder: at most 16 names and `/`, 1,024 bytes. Folders on the way are made.
    path: String,
    /// All of it.
    text: String,
}

#[derive(Serialize, JsonSchema)]
struct Written {
    path: String,
    bytes: usize,
}

#[derive(Serialize, JsonSchema)]
struct Contents {
    path: String,
    bytes: usize,
    /// With everything replaced that is not UTF-8.
    text: String,
}

pub(crate) fn tools(root: &Root) -> Vec<Tool> {
    vec![read(root.clone()), write(root.clone())]
}

fn read(root: Root) -> Tool {
    let run = move |_: Call, args: Read| {
        let root = root.clone();
        async move {
            let path = args.path.clone();
            let bytes = root
                .with(&args.path, move |folder| folder.read(&path, FILE_BYTES_MAX))
                .await?;
            Ok(Contents {
                path: args.path,
                bytes: bytes.len(),
                text: String::from_utf8_lossy(&bytes).into_owned(),
            })
        }
    };
    Tool::new("file.read", run)
        .describe("Reads a file of at most 1 MiB")
        .returns::<Contents>()
        .read_only()
}

fn write(root: Root) -> Tool {
    let run = move |_: Call, args: Write| {
        let root = root.clone();
        async move {
            if args.text.len() as u64 > FILE_BYTES_MAX {
                return Err(ToolError::new(
                    FILE_TOO_LARGE,
                    format!("longer than {FILE_BYTES_MAX} bytes"),
                ));
            }
            let (path, bytes) = (args.path.clone(), args.text.len());
            let written = move |folder: &Folder| folder.write(&path, args.text.as_bytes());
            root.with(&args.path, written).await?;
            Ok(Written {
                path: args.path,
                bytes,
            })
        }
    };
    Tool::new("file.write", run)
        .describe("Writes a file of at most 1 MiB, whole or not at all")
        .returns::<Written>()
}
