//! What the fixtures, the suite and the clients are to each other directly, they are through one broker and
//! through two: `fem-cli mcp wrap` on one side, `/mcp/AGENT` with a bearer token on the other.

use tests::mcp::clients::{Client, Tools};
use tests::mcp::front::Front;
use tests::mcp::house::{House, Wrapped};
use tests::mcp::servers::{Era, fixture_stdio, legacy_stdio};
use tests::mcp::suite::{Requirements, conformance};
use tests::mcp::toolbox;

use crate::clients::all_hear_their_echo;
use crate::direct::{passes_everything, passes_its_own_era};
use crate::or_leave_out;

/// The fixtures see nothing of where they lie in the box, so what they need is opened.
const OPEN: [&str; 1] = ["--without-box"];

fn some(names: &[String]) -> bool {
    !names.is_empty()
}

/// The organisation `acme` with a token for the fixture, which is behind the agent `fs` of `globex`.
async fn fixture_of_globex() -> (House, String, (Wrapped, House)) {
    let (acme, globex) = (House::open("acme").unwrap(), House::open("globex").unwrap());
    let wrapped = globex.wrap("fs", &OPEN, &fixture_stdio(Era::Both).unwrap());
    acme.befriend(&globex, &["fs"]).unwrap();
    let token = acme.token("peer.globex.fs.*").unwrap();
    acme.until_listed("/fs@globex", &token, some).await.unwrap();
    (acme, token, (wrapped.unwrap(), globex))
}

#[tokio::test(flavor = "multi_thread")]
async fn through_one_broker_our_fixture_passes_all_that_it_passes_directly() {
    let npm = or_leave_out!(toolbox::npm(), "the conformance suite");
    let house = House::open("acme").unwrap();
    let _wrap = house
        .wrap("fs", &OPEN, &fixture_stdio(Era::Both).unwrap())
        .unwrap();
    let token = house.token("fs.*").unwrap();
    house.until_listed("/fs", &token, some).await.unwrap();
    let front = Front::to_broker(house.line().unwrap(), "", &token)
        .await
        .unwrap();
    passes_everything(npm, &front.url("/mcp/fs")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn through_two_brokers_our_fixture_passes_all_that_it_passes_directly() {
    let npm = or_leave_out!(toolbox::npm(), "the conformance suite");
    let (acme, token, _globex) = fixture_of_globex().await;
    let front = Front::to_broker(acme.line().unwrap(), "", &token)
        .await
        .unwrap();
    passes_everything(npm, &front.url("/mcp/fs@globex")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_server_passes_its_own_era_and_is_bridged_to_the_modern_one() {
    let npm = or_leave_out!(toolbox::npm(), "the conformance suite");
    let house = House::open("acme").unwrap();
    let _wrap = house
        .wrap("fs", &OPEN, &legacy_stdio(npm).unwrap())
        .unwrap();
    let token = house.token("fs.*").unwrap();
    house.until_listed("/fs", &token, some).await.unwrap();
    let front = Front::to_broker(house.line().unwrap(), "", &token)
        .await
        .unwrap();
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
    let (acme, token, _globex) = fixture_of_globex().await;
    let at = acme.at("/fs@globex", &token);
    let none: [Client; 0] = [];
    all_hear_their_echo(tools, &at, &none).await;
}
