//! What the fixtures, the suite and the clients are to each other directly, they are through one broker and
//! through two: `fem-cli mcp wrap` on one side, `/mcp/AGENT` with a bearer token on the other.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;
use tests::by_hand::{ByHand, fem_cli};
use tests::mcp::clients::{At, Client, Tools};
use tests::mcp::front::Front;
use tests::mcp::servers::{Era, fixture_stdio, legacy_stdio};
use tests::mcp::stateless;
use tests::mcp::suite::{Requirements, conformance};
use tests::mcp::toolbox;
use tests::wire::{Line, PATIENCE};
use tokio::time::timeout;

use crate::clients::all_hear_their_echo;
use crate::direct::{passes_everything, passes_its_own_era};
use crate::or_leave_out;

/// One organisation, and what is put behind its agents.
struct House(ByHand);

/// A program that ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl House {
    fn open(org: &'static str) -> Self {
        Self(ByHand::open(org).unwrap())
    }

    fn authority(&self) -> PathBuf {
        self.0.folder().join(self.0.org).join("tls/ca.pem")
    }

    fn line(&self) -> Line {
        let authority = CertificateDer::from_pem_file(self.authority()).unwrap();
        Line::new(self.0.broker.address, &authority).unwrap()
    }

    /// Puts a server behind the agent `fs`.
    fn wrap(&self, options: &[&str], server: &[String]) -> Ends {
        self.0.join("fs").unwrap();
        let mut child = fem_cli(self.0.folder())
            .unwrap()
            .args(["mcp", "wrap", "--context", "fs.toml"])
            .args(options)
            .arg("--")
            .args(server)
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
        for act in ["keep desk", "token desk --out desk.bearer"] {
            let line = format!("mcp {act} --capability {capability}");
            self.0.admin(&line).unwrap();
        }
        let token = std::fs::read_to_string(self.0.folder().join("desk.bearer")).unwrap();
        token.trim().to_owned()
    }

    /// Makes the two each other's peers, and lets the agents of this one do everything with `fs` of the other.
    fn befriend(&self, other: &Self) {
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
        let grant = format!("peer grant {} fs.* --agents fs --expires 7d", here.org);
        there.admin(&grant).unwrap();
    }
}

/// Waits until the gateway lists the agent's tools.
async fn until_listed(house: &House, agent: &str, token: &str) {
    let path = format!("/mcp/{agent}");
    let has_tools = async {
        loop {
            let request = stateless::request(&path, Some(token), "tools/list", json!({})).unwrap();
            let mut posting = house.line().open().await.unwrap();
            let reply = stateless::read(&posting.ask(request).await.unwrap()).unwrap();
            let tools = reply["result"]["tools"].as_array();
            if tools.is_some_and(|tools| !tools.is_empty()) {
                return;
            }
        }
    };
    let listed = timeout(PATIENCE, has_tools).await;
    assert!(listed.is_ok(), "{agent} is not listed");
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
            acme.0.broker.address.port()
        ),
        token,
        authority: acme.authority(),
    };
    let none: [Client; 0] = [];
    all_hear_their_echo(tools, &at, &none).await;
}
