//! The clients that people use, with the fixtures directly: what they can do when nothing of ours is between.

use serde_json::json;
use tests::mcp::clients::{At, Call, Client, Tools};
use tests::mcp::front::Front;
use tests::mcp::servers::{Era, fixture_http, fixture_stdio, legacy_http, legacy_stdio};
use tests::mcp::toolbox;

use crate::or_leave_out;

const TOKEN: &str = "a-token";

/// Each client calls `echo` there, unless it is one of `but`; all who fail are named.
pub(crate) async fn all_hear_their_echo(tools: Tools, at: &At, but: &[Client]) {
    let message = "is anybody there?";
    let call = Call {
        tool: "echo",
        arguments: json!({"message": message}),
    };
    let mut failed = Vec::new();
    for client in Client::ALL
        .into_iter()
        .filter(|client| !but.contains(client))
    {
        match client.call(tools, at, &call).await {
            Ok(text) if text == message => {}
            Ok(text) => failed.push(format!("{client:?} heard {text:?}")),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[tokio::test]
async fn every_client_calls_either_fixture_through_tls_with_a_token() {
    let npm = or_leave_out!(toolbox::npm(), "clients of npm's");
    let python = or_leave_out!(toolbox::python(), "clients of PyPI's");
    let tools = Tools { npm, python };
    let (ours, legacy) = (
        fixture_http(Era::Both).await.unwrap(),
        legacy_http(npm).await.unwrap(),
    );
    for (server, but) in [(&ours, vec![]), (&legacy, vec![Client::InspectorModern])] {
        let folder = tempfile::tempdir().unwrap();
        let front = Front::before(server.address, folder.path(), TOKEN)
            .await
            .unwrap();
        let at = At::Https {
            url: front.url("/mcp"),
            token: TOKEN.to_owned(),
            authority: folder.path().join("ca.pem"),
        };
        all_hear_their_echo(tools, &at, &but).await;
    }
}

#[tokio::test]
async fn every_client_calls_either_fixture_over_its_standard_streams() {
    let npm = or_leave_out!(toolbox::npm(), "clients of npm's");
    let python = or_leave_out!(toolbox::python(), "clients of PyPI's");
    let tools = Tools { npm, python };
    let ours = At::Stdio(fixture_stdio(Era::Both).unwrap());
    all_hear_their_echo(tools, &ours, &[Client::Remote]).await;
    let legacy = At::Stdio(legacy_stdio(npm).unwrap());
    all_hear_their_echo(tools, &legacy, &[Client::Remote, Client::InspectorModern]).await;
}
