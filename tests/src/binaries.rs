//! The real binaries: built once for a test run, started, killed.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

/// The path of one of the project's binaries, built in the profile that this test was built in; or in
/// the folder that `FEM_BINARIES` names, where somebody built them before.
///
/// # Errors
///
/// When it cannot be built.
pub fn path(name: &str) -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("FEM_BINARIES") {
        return Ok(PathBuf::from(folder).join(name));
    }
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let packages = ["broker", "fem-cli", "agent-sdk"];
    let features = &["--features", "agent-sdk/sandbox"];
    let built = BUILT.get_or_init(|| told(build(&packages, features)));
    from(built, name)
}

/// The path of the MCP server that tests wrap, built apart: with it comes an SDK that nothing else needs.
///
/// # Errors
///
/// When it cannot be built.
pub fn mcp_fixture() -> Result<PathBuf> {
    const NAME: &str = "mcp-fixture";
    if let Some(folder) = std::env::var_os("FEM_BINARIES") {
        return Ok(PathBuf::from(folder).join(NAME));
    }
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    from(BUILT.get_or_init(|| told(build(&[NAME], &[]))), NAME)
}

fn told(built: Result<PathBuf>) -> Result<PathBuf, String> {
    built.map_err(|error| format!("{error:#}"))
}

fn from(built: &Result<PathBuf, String>, name: &str) -> Result<PathBuf> {
    match built {
        Ok(folder) => Ok(folder.join(name)),
        Err(error) => bail!("{error}"),
    }
}

fn build(packages: &[&str], arguments: &[&str]) -> Result<PathBuf> {
    // …/release/deps/e2e-0123 → …/release
    let test = std::env::current_exe()?;
    let folder = test
        .parent()
        .and_then(Path::parent)
        .context("the test binary's folder")?;
    let profile = folder
        .file_name()
        .and_then(|name| name.to_str())
        .context("the profile's folder")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--bins"]);
    cargo.args(packages.iter().flat_map(|package| ["-p", package]));
    cargo.args(arguments);
    if profile == "release" {
        cargo.arg("--release");
    }
    let built = cargo
        .current_dir(root())
        .status()
        .context("starting cargo")?;
    if !built.success() {
        bail!("cargo build failed");
    }
    Ok(folder.to_path_buf())
}

/// What stands in the environment of a test run is not for the programs that it starts: they would log
/// something else than a test reads, or speak as somebody else.
pub fn apart(command: &mut Command) -> &mut Command {
    without(command, std::env::vars_os().map(|(name, _)| name))
}

/// Takes those of these variables away that the programs would read, unless the command says one itself.
fn without(command: &mut Command, names: impl Iterator<Item = OsString>) -> &mut Command {
    let said: Vec<OsString> = command.get_envs().map(|(name, _)| name.into()).collect();
    for name in names {
        let is_ours = name.as_encoded_bytes().starts_with(b"FEM_");
        if (is_ours || name == "RUST_LOG") && !said.contains(&name) {
            command.env_remove(name);
        }
    }
    command
}

/// The workspace's folder.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Debian's libfaketime, which brings a process its own clock; or the file that `FEM_FAKETIME` names.
/// Nothing where neither is there (`apt-get install libfaketime`).
#[must_use]
pub fn faketime() -> Option<PathBuf> {
    let named = std::env::var_os("FEM_FAKETIME").map(PathBuf::from);
    let debians = || {
        let arch = std::env::consts::ARCH;
        let folder = format!("/usr/lib/{arch}-linux-gnu/faketime/libfaketime.so.1");
        PathBuf::from(folder)
    };
    Some(named.unwrap_or_else(debians)).filter(|library| library.exists())
}

/// A `fem-broker` process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Where agents connect.
    pub address: SocketAddr,
    /// Where health and metrics are.
    pub ops: SocketAddr,
}

impl Process {
    /// Starts `fem-broker` and waits until it says that it is ready.
    ///
    /// # Errors
    ///
    /// When it does not start; with what it said.
    pub fn start(config: &Path) -> Result<Self> {
        Self::launch(Command::new(path("fem-broker")?).arg(config))
    }

    /// Starts a command that becomes `fem-broker`, and waits until that says that it is ready.
    ///
    /// # Errors
    ///
    /// When it does not start; with what it said.
    pub fn launch(command: &mut Command) -> Result<Self> {
        // A test that reads the log says itself what is in it.
        if !command.get_envs().any(|(name, _)| name == "FEM_LOG") {
            let level = std::env::var("FEM_LOG").unwrap_or_else(|_| "warn".into());
            command.env("FEM_LOG", level);
        }
        let mut child = apart(command).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("its standard output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let (Some("ready"), Some(address), Some(ops)) = (words.next(), words.next(), words.next())
        else {
            let _ = child.kill();
            bail!(
                "fem-broker did not become ready: {line:?}, {:?}",
                child.wait()
            );
        };
        Ok(Self {
            address: address.parse()?,
            ops: ops.parse()?,
            child,
        })
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When the system does not let us.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops it with SIGTERM and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When it does not end well.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let ended = self.child.wait()?;
        if !ended.success() {
            bail!("fem-broker ended with {ended}");
        }
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// When the system does not let us.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id())?;
        let id = rustix::process::Pid::from_raw(id).context("its id")?;
        Ok(rustix::process::kill_process(id, signal)?)
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_hears_nothing_of_the_environment_that_a_test_does_not_say() {
        let mut command = Command::new("fem-broker");
        command.env("FEM_LOG", "debug");
        let around = ["FEM_LOG", "FEM_LOG_JSON", "FEM_AGENT", "RUST_LOG", "PATH"];
        without(&mut command, around.iter().map(OsString::from));
        let mut said: Vec<_> = command.get_envs().collect();
        said.sort();
        let debug = Some("debug".as_ref());
        let expected = [
            ("FEM_AGENT", None),
            ("FEM_LOG", debug),
            ("FEM_LOG_JSON", None),
            ("RUST_LOG", None),
        ];
        assert_eq!(said, expected.map(|(name, value)| (name.as_ref(), value)));
    }
}
