//! What the suite asks of clients, our way out passes: `fem-cli mcp wrap --url`, a broker, and a caller behind it.

use tests::mcp::ground::Ground;
use tests::mcp::suite::{Requirements, client_conformance};
use tests::mcp::toolbox;

use crate::or_leave_out;

const CLIENT: &str = env!("CARGO_BIN_EXE_conformance-client");

#[tokio::test]
async fn our_way_out_passes_what_both_revisions_ask_of_a_client_without_a_login() {
    let npm = or_leave_out!(toolbox::npm(), "the conformance suite");
    let ground = Ground::open().unwrap();
    let command = ground.command(CLIENT).unwrap();
    for requirements in [Requirements::Legacy, Requirements::Modern] {
        let report = client_conformance(npm, &command, requirements)
            .await
            .unwrap();
        let failed = report.failed();
        assert!(
            failed.iter().all(|name| name.starts_with("auth/")),
            "{report}"
        );
    }
}
