//! An organisation with MCP servers behind its agents, and an MCP client that shows a bearer token.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tests::by_hand::{ByHand, fem_cli};
use tests::mcp::clients::At;
use tests::mcp::stateless;
use tests::wire::{Line, PATIENCE};
use tokio::time::timeout;

/// One organisation, and what is put behind its agents.
pub(crate) struct House(pub(crate) ByHand);

/// A program that ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server behind an agent, until it is dropped.
pub(crate) struct Wrapped {
    _wrap: Ends,
    /// What it says of itself when it serves.
    pub(crate) said: String,
}

/// One that may not serve yet.
pub(crate) struct Starting(Ends);

impl Starting {
    /// Waits until it serves.
    pub(crate) fn serves(mut self) -> Wrapped {
        let mut said = String::new();
        let mut stdout = BufReader::new(self.0.0.stdout.take().unwrap());
        stdout.read_line(&mut said).unwrap();
        assert!(said.contains("offers"), "{said:?}");
        Wrapped {
            _wrap: self.0,
            said,
        }
    }
}

impl House {
    pub(crate) fn open(org: &'static str) -> Self {
        Self(ByHand::open(org).unwrap())
    }

    pub(crate) fn authority(&self) -> PathBuf {
        self.0.folder().join(self.0.org).join("tls/ca.pem")
    }

    pub(crate) fn line(&self) -> Line {
        let authority = CertificateDer::from_pem_file(self.authority()).unwrap();
        Line::new(self.0.broker.address, &authority).unwrap()
    }

    /// Where clients with this token find the broker's `/mcp`, or what stands behind it.
    pub(crate) fn at(&self, behind: &str, token: &str) -> At {
        let port = self.0.broker.address.port();
        At::Https {
            url: format!("https://localhost:{port}/mcp{behind}"),
            token: token.to_owned(),
            authority: self.authority(),
        }
    }

    /// Puts a server behind an agent that joins for it.
    pub(crate) fn wrap(
        &self,
        agent: &str,
        options: &[impl AsRef<OsStr>],
        server: &[String],
    ) -> Wrapped {
        self.start(agent, options, server).serves()
    }

    /// The same, without waiting until it serves.
    pub(crate) fn start(
        &self,
        agent: &str,
        options: &[impl AsRef<OsStr>],
        server: &[String],
    ) -> Starting {
        self.0.join(agent).unwrap();
        let mut command = fem_cli(self.0.folder()).unwrap();
        command
            .args(["mcp", "wrap", "--context", &format!("{agent}.toml")])
            .args(options)
            .arg("--")
            .args(server);
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        Starting(Ends(child))
    }

    /// A bearer token for an agent that may do this.
    pub(crate) fn token(&self, capability: &str) -> String {
        for act in ["keep desk", "token desk --out desk.bearer"] {
            let line = format!("mcp {act} --capability {capability}");
            self.0.admin(&line).unwrap();
        }
        let token = std::fs::read_to_string(self.0.folder().join("desk.bearer")).unwrap();
        token.trim().to_owned()
    }

    /// Makes the two each other's peers, and lets the agents of this one do everything with these of the other.
    pub(crate) fn befriend(&self, other: &Self, agents: &[&str]) {
        let (here, there) = (&self.0, &other.0);
        for (one, two) in [(here, there), (there, here)] {
            let file = format!("{}.peer", one.org);
            one.admin(&format!("peer invite --out {file}")).unwrap();
            std::fs::copy(one.folder().join(&file), two.folder().join(&file)).unwrap();
        }
        for (one, two) in [(here, there), (there, here)] {
            let key = two.admin("peer key").unwrap();
            let accept = format!("peer accept {}.peer --fingerprint {}", two.org, key.trim());
            one.admin(&accept).unwrap();
        }
        for agent in agents {
            let grant = format!(
                "peer grant {} {agent}.* --agents {agent} --expires 7d",
                here.org
            );
            there.admin(&grant).unwrap();
        }
    }

    /// The names of the tools that a client with this token sees behind `/mcp`.
    pub(crate) async fn listed(&self, behind: &str, token: &str) -> Vec<String> {
        let path = format!("/mcp{behind}");
        let request = stateless::request(&path, Some(token), "tools/list", json!({})).unwrap();
        let mut posting = self.line().open().await.unwrap();
        let reply = stateless::read(&posting.ask(request).await.unwrap()).unwrap();
        let tools = reply["result"]["tools"].as_array();
        let name = |tool: &Value| tool["name"].as_str().unwrap().to_owned();
        tools.into_iter().flatten().map(name).collect()
    }

    /// Waits until a client with this token sees all that is expected.
    pub(crate) async fn until_listed(
        &self,
        behind: &str,
        token: &str,
        all: impl Fn(&[String]) -> bool,
    ) {
        let listed = async { while !all(&self.listed(behind, token).await) {} };
        let listed = timeout(PATIENCE, listed).await;
        assert!(listed.is_ok(), "not all is listed behind /mcp{behind}");
    }
}
