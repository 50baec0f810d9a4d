//! The server behind an agent: `fem-cli mcp wrap`, and `fem-cli mcp login` where it says that somebody has to.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tests::by_hand::fem_cli;
use tests::mcp::browser;
use tests::mcp::ground::{ENROLMENT, JOIN};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::errand::Errand;

/// The longest that anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often somebody logs in before giving up.
const LOGINS_MAX: usize = 4;
/// The exit code of what somebody else has to decide first.
const PENDING: i32 = 6;

/// An agent behind which the suite's server is; killed when dropped.
pub(crate) struct Wrapped {
    ground: PathBuf,
    name: String,
    url: String,
    /// How to log in, beside `--url` and `--auth`.
    login: Vec<String>,
    logins: usize,
    child: Child,
}

impl Wrapped {
    /// Wraps the server at `url`, logging in as often as that is asked for.
    pub(crate) async fn start(ground: &Path, url: &str, errand: &Errand) -> Result<Self> {
        let name = format!("s{}", std::process::id());
        let login = errand.login(ground, url, &name).await?;
        let mut logins = 0;
        loop {
            let mut command: Command = fem_cli(ground)?.into();
            command
                .args(["mcp", "wrap", "--context", JOIN, "--enrol", ENROLMENT])
                .args(["--name", &name, "--url", url]);
            if logins > 0 {
                command.args(["--auth", &format!("{name}.auth")]);
            }
            let mut child = command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            let mut said = String::new();
            let mut stdout = BufReader::new(child.stdout.take().context("its output")?);
            timeout(PATIENCE, stdout.read_line(&mut said)).await??;
            // Whoever writes to a closed pipe dies of it; what it has to tell is for people.
            tokio::spawn(async move { stdout.read_to_end(&mut Vec::new()).await });
            let log = child.stderr.take().context("its log")?;
            let mut log = BufReader::new(log).lines();
            let mut wrapped = Self {
                ground: ground.to_owned(),
                name: name.clone(),
                url: url.to_owned(),
                login: login.clone(),
                logins,
                child,
            };
            if said.contains("offers") {
                tokio::spawn(async move {
                    while let Ok(Some(line)) = log.next_line().await {
                        eprintln!("{line}");
                    }
                });
                return Ok(wrapped);
            }
            let mut why = Vec::new();
            while let Some(line) = timeout(PATIENCE, log.next_line()).await?? {
                why.push(line);
            }
            let why = why.join("\n");
            let ended = timeout(PATIENCE, wrapped.child.wait()).await??;
            if ended.code() != Some(PENDING) {
                bail!("not wrapped, {ended}: {why}");
            }
            eprintln!("{why}");
            wrapped.log_in().await?;
            logins = wrapped.logins;
        }
    }

    /// The agent's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Logs in: says yes to everything in the browser.
    pub(crate) async fn log_in(&mut self) -> Result<()> {
        self.logins += 1;
        if self.logins > LOGINS_MAX {
            bail!("logging in does not help");
        }
        let mut command: Command = fem_cli(&self.ground)?.into();
        let mut child = command
            .args(["mcp", "login", "--url", &self.url])
            .args(["--auth", &format!("{}.auth", self.name)])
            .args(&self.login)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut words = BufReader::new(child.stderr.take().context("its words")?).lines();
        let mut said = String::new();
        let logging_in = async {
            while let Some(line) = words.next_line().await? {
                if let Some(address) = line.split(' ').find(|word| word.starts_with("http://"))
                    && address.contains("response_type=")
                {
                    browser::open(address).await?;
                }
                said.push_str(&line);
                said.push('\n');
            }
            child.wait().await.context("it does not end")
        };
        let ended = timeout(PATIENCE, logging_in).await??;
        eprintln!("{said}");
        match ended.success() {
            true => Ok(()),
            false => bail!("not logged in, {ended}: {said}"),
        }
    }

    /// Has it end as an operator does.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let id = self.child.id().context("it has ended")?;
        let id = Pid::from_raw(i32::try_from(id)?).context("its id")?;
        kill_process(id, Signal::TERM)?;
        timeout(PATIENCE, self.child.wait()).await??;
        Ok(())
    }
}
