//! An organisation with MCP servers behind its agents, and an MCP client that shows a bearer token.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::by_hand::{ByHand, fem_cli};
use crate::mcp::clients::At;
use crate::mcp::stateless;
use crate::wire::{Line, PATIENCE};

/// One organisation, and what is put behind its agents.
#[derive(Debug)]
pub struct House(pub ByHand);

/// A program that ends with whoever has it.
#[derive(Debug)]
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server behind an agent, until it is dropped.
#[derive(Debug)]
pub struct Wrapped {
    wrap: Ends,
    /// Kept open: who writes to a closed pipe dies of it.
    _stdout: BufReader<ChildStdout>,
    /// What it says of itself when it serves.
    pub said: String,
}

impl Wrapped {
    /// The process id of what wraps it.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.wrap.0.id()
    }
}

/// One that may not serve yet.
#[derive(Debug)]
pub struct Starting(Ends);

impl Starting {
    /// Waits until it serves.
    ///
    /// # Errors
    ///
    /// When it does not; why stands in the log.
    pub fn serves(mut self) -> Result<Wrapped> {
        let mut said = String::new();
        let stdout = self.0.0.stdout.take().context("its standard output")?;
        let mut stdout = BufReader::new(stdout);
        stdout.read_line(&mut said)?;
        ensure!(said.contains("offers"), "{said:?}");
        Ok(Wrapped {
            wrap: self.0,
            _stdout: stdout,
            said,
        })
    }
}

impl House {
    /// Makes an organisation, and starts its broker.
    ///
    /// # Errors
    ///
    /// When either fails.
    pub fn open(org: &'static str) -> Result<Self> {
        ByHand::open(org).map(Self)
    }

    /// The file of the authority that its broker's certificate is from.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.0.folder().join(self.0.org).join("tls/ca.pem")
    }

    /// How its broker is reached.
    ///
    /// # Errors
    ///
    /// When the authority's file cannot be read.
    pub fn line(&self) -> Result<Line> {
        let authority = CertificateDer::from_pem_file(self.authority())?;
        Line::new(self.0.broker.address, &authority)
    }

    /// Where clients with this token find the broker's `/mcp`, or what stands behind it.
    #[must_use]
    pub fn at(&self, behind: &str, token: &str) -> At {
        let port = self.0.broker.address.port();
        At::Https {
            url: format!("https://localhost:{port}/mcp{behind}"),
            token: token.to_owned(),
            authority: self.authority(),
        }
    }

    /// Puts a server behind an agent that joins for it.
    ///
    /// # Errors
    ///
    /// When the agent is refused, or the server is not offered.
    pub fn wrap(
        &self,
        agent: &str,
        options: &[impl AsRef<OsStr>],
        server: &[String],
    ) -> Result<Wrapped> {
        self.start(agent, options, server)?.serves()
    }

    /// The same, without waiting until it serves.
    ///
    /// # Errors
    ///
    /// When the agent is refused.
    pub fn start(
        &self,
        agent: &str,
        options: &[impl AsRef<OsStr>],
        server: &[String],
    ) -> Result<Starting> {
        self.0.join(agent)?;
        let mut command = fem_cli(self.0.folder())?;
        command
            .args(["mcp", "wrap", "--context", &format!("{agent}.toml")])
            .args(options)
            .arg("--")
            .args(server);
        let child = command.stdout(Stdio::piped()).spawn()?;
        Ok(Starting(Ends(child)))
    }

    /// A bearer token for an agent that may do this.
    ///
    /// # Errors
    ///
    /// With what the admin was told.
    pub fn token(&self, capability: &str) -> Result<String> {
        for act in ["keep desk", "token desk --out desk.bearer"] {
            let line = format!("mcp {act} --capability {capability}");
            self.0.admin(&line)?;
        }
        let token = std::fs::read_to_string(self.0.folder().join("desk.bearer"))?;
        Ok(token.trim().to_owned())
    }

    /// Makes the two each other's peers, and lets the agents of this one do everything with these of the other.
    ///
    /// # Errors
    ///
    /// With what an admin was told.
    pub fn befriend(&self, other: &Self, agents: &[&str]) -> Result<()> {
        let (here, there) = (&self.0, &other.0);
        for (one, two) in [(here, there), (there, here)] {
            let file = format!("{}.peer", one.org);
            one.admin(&format!("peer invite --out {file}"))?;
            std::fs::copy(one.folder().join(&file), two.folder().join(&file))?;
        }
        for (one, two) in [(here, there), (there, here)] {
            let key = two.admin("peer key")?;
            let accept = format!("peer accept {}.peer --fingerprint {}", two.org, key.trim());
            one.admin(&accept)?;
        }
        for agent in agents {
            let grant = format!(
                "peer grant {} {agent}.* --agents {agent} --expires 7d",
                here.org
            );
            there.admin(&grant)?;
        }
        Ok(())
    }

    /// The names of the tools that a client with this token sees behind `/mcp`.
    ///
    /// # Errors
    ///
    /// When it is not answered.
    pub async fn listed(&self, behind: &str, token: &str) -> Result<Vec<String>> {
        let path = format!("/mcp{behind}");
        let request = stateless::request(&path, Some(token), "tools/list", json!({}))?;
        let mut posting = self.line()?.open().await?;
        let reply = stateless::read(&posting.ask(request).await?)?;
        let tools = reply["result"]["tools"].as_array();
        let name = |tool: &Value| tool["name"].as_str().map(str::to_owned);
        Ok(tools.into_iter().flatten().filter_map(name).collect())
    }

    /// Waits until a client with this token sees all that is expected.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub async fn until_listed(
        &self,
        behind: &str,
        token: &str,
        all: impl Fn(&[String]) -> bool,
    ) -> Result<()> {
        let listed = async {
            while !all(&self.listed(behind, token).await?) {}
            Ok(())
        };
        let listed = timeout(PATIENCE, listed).await;
        listed.with_context(|| format!("not all is listed behind /mcp{behind}"))?
    }
}
