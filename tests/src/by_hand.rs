//! An organisation as its admin sets it up by hand: `fem-cli` in an empty folder, and `fem-broker` on what it
//! wrote there.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::binaries::{Process, apart, path};
use crate::site::free;

/// `fem-cli` in a folder that is all it knows.
///
/// # Errors
///
/// When it cannot be built.
pub fn fem_cli(folder: &Path) -> Result<Command> {
    let mut command = Command::new(path("fem-cli")?);
    command.current_dir(folder).env("XDG_CONFIG_HOME", folder);
    apart(&mut command);
    Ok(command)
}

/// Runs `fem-cli`: its exit code, and all that it said.
///
/// # Errors
///
/// When it cannot be run, or a signal ended it.
pub fn fem(folder: &Path, words: &[impl AsRef<OsStr>]) -> Result<(i32, String)> {
    let output = fem_cli(folder)?.args(words).output()?;
    let said = String::from_utf8([output.stdout, output.stderr].concat())?;
    Ok((output.status.code().context("a signal ended it")?, said))
}

/// An organisation whose broker runs.
#[derive(Debug)]
pub struct ByHand {
    folder: TempDir,
    /// Its name, and that of the folder with its files.
    pub org: &'static str,
    /// Its broker.
    pub broker: Process,
}

impl ByHand {
    /// Makes an organisation, and starts its broker where others can reach it.
    ///
    /// # Errors
    ///
    /// When either fails.
    pub fn open(org: &'static str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (listen, ops) = (free()?, free()?);
        let init = format!("init {org} --listen {listen} --ops {ops} --endpoint {listen}");
        done(folder.path(), &init)?;
        let broker = Process::start(&folder.path().join(org).join("broker.toml"))?;
        Ok(Self {
            folder,
            org,
            broker,
        })
    }

    /// Where everything is done.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Does something; that an admin has to decide first is fine too. Words are parted by single spaces.
    ///
    /// # Errors
    ///
    /// With what it said.
    pub fn done(&self, line: &str) -> Result<String> {
        done(self.folder(), line)
    }

    /// Does something as the admin.
    ///
    /// # Errors
    ///
    /// With what it said.
    pub fn admin(&self, line: &str) -> Result<String> {
        self.done(&format!("{line} --context {}/admin.toml", self.org))
    }

    /// Registers an agent and approves it; `name` may have options of `agent approve` behind it.
    ///
    /// # Errors
    ///
    /// With what was said.
    pub fn join(&self, name: &str) -> Result<()> {
        let only = name.split(' ').next().unwrap_or(name);
        self.done(&format!(
            "agent register {only} --context {}/join.toml",
            self.org
        ))?;
        self.admin(&format!("agent approve {name}")).map(drop)
    }
}

fn done(folder: &Path, line: &str) -> Result<String> {
    let words: Vec<&str> = line.split(' ').collect();
    match fem(folder, &words)? {
        (0 | 6, said) => Ok(said),
        (code, said) => bail!("{line}: {code}: {said}"),
    }
}
