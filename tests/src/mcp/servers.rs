//! The MCP servers that tests put behind a broker, or face directly.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

use crate::binaries::{self, root};
use crate::mcp::process::Server;
use crate::mcp::toolbox::{Npm, Python};

/// The longest that a server takes to listen: Node.js and Python load a lot, on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);

/// Which revisions a fixture speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Era {
    /// Those with a handshake.
    Legacy,
    /// Those without.
    Modern,
    /// All.
    Both,
}

/// A fixture that listens on loopback.
#[derive(Debug)]
pub struct Listening {
    /// Where it answers, as the suite wants it.
    pub url: String,
    /// Where it listens.
    pub address: SocketAddr,
    server: Server,
}

impl Listening {
    /// Its process id, until it has ended.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.server.id()
    }

    async fn start(command: &mut Command) -> Result<Self> {
        let server = Server::start(command, START_MAX).await?;
        let url = server.said.clone();
        let rest = url.strip_prefix("http://").context("a plain URL")?;
        let (address, _) = rest.split_once('/').context("a path")?;
        Ok(Self {
            address: address.parse()?,
            url,
            server,
        })
    }
}

/// The command of the fixture made with MCP's Rust SDK.
///
/// # Errors
///
/// When it cannot be built.
fn fixture(transport: &str, era: Era, more: usize) -> Result<Vec<String>> {
    let program = binaries::mcp_fixture()?;
    let mut words = vec![program.display().to_string(), transport.to_owned()];
    match era {
        Era::Legacy => words.push("legacy".to_owned()),
        Era::Modern => words.push("modern".to_owned()),
        Era::Both => {}
    }
    words.push(more.to_string());
    Ok(words)
}

/// The fixture made with MCP's Rust SDK, over HTTP.
///
/// # Errors
///
/// When it cannot be built or started.
pub async fn fixture_http(era: Era) -> Result<Listening> {
    large_http(era, 0).await
}

/// The same with so many tools more than the others have.
///
/// # Errors
///
/// When it cannot be built or started.
pub async fn large_http(era: Era, more: usize) -> Result<Listening> {
    let words = fixture("http", era, more)?;
    Listening::start(&mut command(&words)?).await
}

/// The command and arguments of the fixture made with MCP's Rust SDK, over standard input and output:
/// what stands after `fem-cli mcp wrap … --`.
///
/// # Errors
///
/// When it cannot be built.
pub fn fixture_stdio(era: Era) -> Result<Vec<String>> {
    large_stdio(era, 0)
}

/// The same with so many tools more than the others have.
///
/// # Errors
///
/// When it cannot be built.
pub fn large_stdio(era: Era, more: usize) -> Result<Vec<String>> {
    fixture("stdio", era, more)
}

/// The fixture made with MCP's TypeScript SDK, which knows no modern era, over HTTP.
///
/// # Errors
///
/// When it cannot be started.
pub async fn legacy_http(npm: &Npm) -> Result<Listening> {
    Listening::start(npm.script("legacy.mjs")?.arg("http").arg(offer())).await
}

/// The command and arguments of the fixture made with MCP's TypeScript SDK, over standard input and output.
///
/// # Errors
///
/// When its script cannot be laid beside its packages.
pub fn legacy_stdio(npm: &Npm) -> Result<Vec<String>> {
    Ok(words(npm.script("legacy.mjs")?.arg("stdio").arg(offer())))
}

/// What both fixtures offer.
fn offer() -> PathBuf {
    root().join("tests/mcp/offer.json")
}

/// The command and arguments of a hostile server: `tests/mcp/hostile.py` says what it can do.
#[must_use]
pub fn hostile(habit: &str) -> Vec<String> {
    // A sandbox need not see where the tests are.
    const SCRIPT: &str = include_str!("../../mcp/hostile.py");
    ["python3", "-I", "-c", SCRIPT, habit]
        .map(str::to_owned)
        .into()
}

/// A reference server of npm's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfNpm {
    /// A little of everything the protocol knows.
    Everything,
    /// Files below a folder.
    Filesystem,
    /// A graph of what was said.
    Memory,
    /// One tool that thinks aloud.
    SequentialThinking,
}

impl OfNpm {
    /// Its command and arguments; `folder` is all that it may use.
    #[must_use]
    pub fn stdio(self, npm: &Npm, folder: &Path) -> Vec<String> {
        let run = |name: &str, arguments: &[&str]| {
            let file = format!("@modelcontextprotocol/server-{name}/dist/index.js");
            words(npm.run(&file).args(arguments))
        };
        match self {
            Self::Everything => run("everything", &["stdio"]),
            Self::Filesystem => run("filesystem", &[&folder.display().to_string()]),
            Self::Memory => {
                let file = format!("MEMORY_FILE_PATH={}", folder.join("memory.json").display());
                [vec!["env".to_owned(), file], run("memory", &[])].concat()
            }
            Self::SequentialThinking => run("sequential-thinking", &[]),
        }
    }
}

/// A reference server of PyPI's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfPyPi {
    /// What time it is.
    Time,
    /// One repository.
    Git,
    /// Pages of the web.
    Fetch,
}

impl OfPyPi {
    /// Its command and arguments; `folder` is a git repository.
    #[must_use]
    pub fn stdio(self, python: &Python, folder: &Path) -> Vec<String> {
        let folder = folder.display().to_string();
        match self {
            Self::Time => words(
                python
                    .run("mcp-server-time")
                    .args(["--local-timezone", "UTC"]),
            ),
            Self::Git => words(python.run("mcp-server-git").args(["--repository", &folder])),
            Self::Fetch => {
                let own = ["--ignore-robots-txt", "--allow-private-ips"];
                words(python.run("mcp-server-fetch").args(own))
            }
        }
    }
}

/// The command and arguments of a server of tables, which runs with the SDK before the modern era only.
#[must_use]
pub fn sqlite(legacy: &Python, file: &Path) -> Vec<String> {
    words(legacy.run("mcp-server-sqlite").arg("--db-path").arg(file))
}

/// A command as words, for who starts it himself.
#[must_use]
pub fn words(command: &Command) -> Vec<String> {
    let command = command.as_std();
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

/// Words as a command.
///
/// # Errors
///
/// When there is none.
pub fn command(words: &[String]) -> Result<Command> {
    let [program, arguments @ ..] = words else {
        bail!("no program");
    };
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}
