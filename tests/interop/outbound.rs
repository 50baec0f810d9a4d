//! What the suite asks of clients, our way out passes: `fem-cli mcp wrap --url`, `fem-cli mcp login` where a server
//! demands an authorisation, a broker, and a caller behind it.

use tests::mcp::ground::Ground;
use tests::mcp::suite::{Requirements, Tally, client_conformance};
use tests::mcp::toolbox;

use crate::or_leave_out;

const CLIENT: &str = env!("CARGO_BIN_EXE_conformance-client");
/// Extensions that the suite runs beside what it scores, and that we do not have: tokens that only their holder's key
/// shows, and an employer that authorises in its people's name.
const NOT_OURS: [&str; 3] = [
    "auth/dpop",
    "auth/dpop-nonce",
    "auth/enterprise-managed-authorization",
];

async fn passes(requirements: Requirements, scored: usize) {
    let npm = or_leave_out!(toolbox::npm(), "the conformance suite");
    let ground = Ground::open().unwrap();
    let command = ground.command(CLIENT).unwrap();
    let report = client_conformance(npm, &command, requirements)
        .await
        .unwrap();
    println!("{}: {report}", requirements.name());
    assert_eq!(report.scored, Tally::new(scored, scored), "{report}");
    assert_eq!(report.unscored, Tally::new(4, 7), "{report}");
    assert_eq!(report.failed(), NOT_OURS);
    assert_eq!(report.warned, [""; 0]);
}

#[tokio::test]
async fn our_way_out_passes_all_that_2025_11_25_asks_of_a_client() {
    passes(Requirements::Legacy, 18).await;
}

#[tokio::test]
async fn our_way_out_passes_all_that_2026_07_28_asks_of_a_client() {
    passes(Requirements::Modern, 32).await;
}
