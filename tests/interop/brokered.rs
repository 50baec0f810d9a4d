//! What the fixtures, the suite and the clients are to each other directly, they are through one broker and
//! through two: `fem-cli mcp wrap` on one side, `/mcp/AGENT` with a bearer token on the other.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tests::binaries::{Process, path};
use tests::mcp::clients::{At, Client, Tools};
use tests::mcp::front::Front;
use tests::mcp::servers::{Era, fixture_stdio, legacy_stdio};
use tests::mcp::suite::{Requirements, conformance};
use tests::mcp::toolbox;
use tests::site::free;
use tests::wire::Line;

use crate::clients::all_hear_their_echo;
use crate::direct::{passes_everything, passes_its_own_era};
use crate::or_leave_out;

/// How often something is looked for that comes in its own time.
const LOOKS: usize = 200;

/// One organisation's broker, set up by hand as the README does.
struct House {
    folder: tempfile::TempDir,
    org: &'static str,
    broker: Process,
}

/// A program that ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn fem(folder: &Path, words: &[&str]) -> (i32, String) {
    let output = Command::new(path("fem-cli").unwrap())
        .args(words)
        .current_dir(folder)
        .env("XDG_CONFIG_HOME", folder)
        .env_remove("FEM_CONTEXT")
        .output()
        .unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), said)
}

impl House {
    fn open(org: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free().unwrap().to_string();
        let ops = free().unwrap().to_string();
        let listens = ["--listen", &address, "--ops", &ops, "--endpoint", &address];
        let (code, said) = fem(folder.path(), &[&["init", org], &listens[..]].concat());
        assert_eq!(code, 0, "{said}");
        let config = folder.path().join(org).join("broker.toml");
        let broker = Process::start(&config).unwrap();
        Self {
            folder,
            org,
            broker,
        }
    }

    fn run(&self, line: &str) -> (i32, String) {
        fem(self.folder.path(), &line.split(' ').collect::<Vec<_>>())
    }

    fn done(&self, line: &str) -> String {
        let (code, said) = self.run(line);
        assert!(matches!(code, 0 | 6), "{line}: {code}: {said}");
        said
    }

    fn admin(&self, line: &str) -> String {
        self.done(&format!("{line} --context {}/admin.toml", self.org))
    }

    fn line(&self) -> Line {
        let authority = self.authority();
        let authority = CertificateDer::from_pem_file(authority).unwrap();
        Line::new(self.broker.address, &authority).unwrap()
    }

    fn authority(&self) -> std::path::PathBuf {
        self.folder.path().join(self.org).join("tls/ca.pem")
    }

    /// Puts a server behind the agent `fs`.
    fn wrap(&self, options: &[&str], server: &[String]) -> Ends {
        self.done(&format!(
            "agent register fs --context {}/join.toml",
            self.org
        ));
        self.admin("agent approve fs");
        let mut child = Command::new(path("fem-cli").unwrap())
            .args(["mcp", "wrap", "--context", "fs.toml"])
            .args(options)
            .arg("--")
            .args(server)
            .current_dir(self.folder.path())
            .env("XDG_CONFIG_HOME", self.folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut said).unwrap();
        assert!(said.contains("offers"), "{said:?}");
        Ends(child)
    }

    /// A bearer token for an agent that may do this.
    fn token(&self, capability: &str) -> String {
        self.admin(&format!("mcp keep desk --capability {capability}"));
        self.admin(&format!(
            "mcp token desk --capability {capability} --out desk.bearer"
        ));
        let token = std::fs::read_to_string(self.folder.path().join("desk.bearer")).unwrap();
        token.trim().to_owned()
    }

    /// Makes the two each other's peers, and lets the agents of this one do everything with `fs` of the other.
    fn befriend(&self, other: &Self) {
        for (one, two) in [(self, other), (other, self)] {
            one.admin(&format!("peer invite --out {}.peer", one.org));
            let file = format!("{}.peer", one.org);
            std::fs::copy(one.folder.path().join(&file), two.folder.path().join(&file)).unwrap();
        }
        for (one, two) in [(self, other), (other, self)] {
            let key = two.admin("peer key");
            let accept = format!("peer accept {}.peer --fingerprint {}", two.org, key.trim());
            one.admin(&accept);
        }
        other.admin(&format!(
            "peer grant {} fs.* --agents fs --expires 7d",
            self.org
        ));
    }
}

/// Waits until the gateway lists the agent's tools.
async fn until_listed(house: &House, agent: &str, token: &str) {
    let mut last = String::new();
    for _ in 0..LOOKS {
        let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"t","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}"#;
        let request = hyper::Request::post(format!("/mcp/{agent}"))
            .header("host", "localhost")
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", "tools/list")
            .header("authorization", format!("Bearer {token}"))
            .body(http_body_util::Full::new(body.into()))
            .unwrap();
        let mut posting = house.line().open().await.unwrap();
        let reply = posting.ask(request).await.unwrap();
        last = String::from_utf8_lossy(reply.body()).into_owned();
        if last.contains("\"inputSchema\"") {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(last, "its tools", "{agent} is not listed");
}

/// The fixtures see nothing of where they lie in the box, so what they need is opened.
const OPEN: [&str; 1] = ["--without-box"];

#[tokio::test(flavor = "multi_thread")]
async fn through_one_broker_our_fixture_passes_all_that_it_passes_directly() {
    let npm = or_leave_out!(toolbox::npm(), "the conformance suite");
    let house = House::open("acme");
    let _wrap = house.wrap(&OPEN, &fixture_stdio(Era::Both).unwrap());
    let token = house.token("fs.*");
    until_listed(&house, "fs", &token).await;
    let front = Front::to_broker(house.line(), "", &token).await.unwrap();
    passes_everything(npm, &front.url("/mcp/fs")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn through_two_brokers_our_fixture_passes_all_that_it_passes_directly() {
    let npm = or_leave_out!(toolbox::npm(), "the conformance suite");
    let (acme, globex) = (House::open("acme"), House::open("globex"));
    let _wrap = globex.wrap(&OPEN, &fixture_stdio(Era::Both).unwrap());
    acme.befriend(&globex);
    let token = acme.token("peer.globex.fs.*");
    until_listed(&acme, "fs@globex", &token).await;
    let front = Front::to_broker(acme.line(), "", &token).await.unwrap();
    passes_everything(npm, &front.url("/mcp/fs@globex")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_server_passes_its_own_era_and_is_bridged_to_the_modern_one() {
    let npm = or_leave_out!(toolbox::npm(), "the conformance suite");
    let house = House::open("acme");
    let _wrap = house.wrap(&OPEN, &legacy_stdio(npm).unwrap());
    let token = house.token("fs.*");
    until_listed(&house, "fs", &token).await;
    let front = Front::to_broker(house.line(), "", &token).await.unwrap();
    let url = front.url("/mcp/fs");
    passes_its_own_era(npm, &url).await;
    let bridged = conformance(npm, &url, Requirements::Modern).await.unwrap();
    assert!(bridged.scored.passed >= 26, "{bridged}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_calls_a_tool_of_another_organisation_through_two_brokers() {
    let npm = or_leave_out!(toolbox::npm(), "clients of npm's");
    let python = or_leave_out!(toolbox::python(), "clients of PyPI's");
    let tools = Tools { npm, python };
    let (acme, globex) = (House::open("acme"), House::open("globex"));
    let _wrap = globex.wrap(&OPEN, &fixture_stdio(Era::Both).unwrap());
    acme.befriend(&globex);
    let token = acme.token("peer.globex.fs.*");
    until_listed(&acme, "fs@globex", &token).await;
    let at = At::Https {
        url: format!(
            "https://localhost:{}/mcp/fs@globex",
            acme.broker.address.port()
        ),
        token,
        authority: acme.authority(),
    };
    let none: [Client; 0] = [];
    all_hear_their_echo(tools, &at, &none).await;
}
