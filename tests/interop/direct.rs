//! The fixtures themselves, with nothing of ours between: what they reach alone is what they must reach
//! through a broker.

use tests::mcp::servers::{Era, fixture_http, legacy_http};
use tests::mcp::suite::{Requirements, Tally, conformance};
use tests::mcp::toolbox;

use crate::or_leave_out;

#[tokio::test]
async fn our_fixture_passes_all_that_both_revisions_ask_of_a_server() {
    let npm = or_leave_out!(toolbox::npm(), "the conformance suite");
    let fixture = fixture_http(Era::Both).await.unwrap();
    let expected = [
        (Requirements::Modern, Tally::new(37, 37), Tally::new(13, 13)),
        (Requirements::Legacy, Tally::new(30, 30), Tally::new(3, 3)),
    ];
    for (requirements, scored, unscored) in expected {
        let report = conformance(npm, &fixture.url, requirements).await.unwrap();
        assert_eq!(
            (report.scored, report.unscored),
            (scored, unscored),
            "{report}"
        );
    }
}

#[tokio::test]
async fn the_legacy_fixture_passes_all_that_its_revision_asks_of_a_server() {
    let npm = or_leave_out!(toolbox::npm(), "the conformance suite");
    let fixture = legacy_http(npm).await.unwrap();
    let report = conformance(npm, &fixture.url, Requirements::Legacy)
        .await
        .unwrap();
    assert_eq!(report.scored, Tally::new(30, 30), "{report}");
}
