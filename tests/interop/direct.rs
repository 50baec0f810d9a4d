//! The fixtures themselves, with nothing of ours between: what they reach alone is what they must reach
//! through a broker.

use tests::mcp::servers::{Era, fixture_http, legacy_http};
use tests::mcp::suite::{Requirements, Tally, client_conformance, conformance};
use tests::mcp::toolbox::{self, Npm};

use crate::or_leave_out;

/// The fixture of both eras passes everything there, scored or not.
pub(crate) async fn passes_everything(npm: &Npm, url: &str) {
    let expected = [
        (Requirements::Modern, Tally::new(37, 37), Tally::new(13, 13)),
        (Requirements::Legacy, Tally::new(30, 30), Tally::new(3, 3)),
    ];
    for (requirements, scored, unscored) in expected {
        let report = conformance(npm, url, requirements).await.unwrap();
        assert_eq!(
            (report.scored, report.unscored),
            (scored, unscored),
            "{report}"
        );
    }
}

/// The fixture of the legacy era passes everything there that its revision asks.
pub(crate) async fn passes_its_own_era(npm: &Npm, url: &str) {
    let report = conformance(npm, url, Requirements::Legacy).await.unwrap();
    assert_eq!(report.scored, Tally::new(30, 30), "{report}");
}

#[tokio::test]
async fn our_fixture_passes_all_that_both_revisions_ask_of_a_server() {
    let npm = or_leave_out!(toolbox::npm(), "the conformance suite");
    let fixture = fixture_http(Era::Both).await.unwrap();
    passes_everything(npm, &fixture.url).await;
}

#[tokio::test]
async fn the_legacy_fixture_passes_all_that_its_revision_asks_of_a_server() {
    let npm = or_leave_out!(toolbox::npm(), "the conformance suite");
    let fixture = legacy_http(npm).await.unwrap();
    passes_its_own_era(npm, &fixture.url).await;
}

/// What a client's command reaches is read from what the suite writes for clients, which it lays out apart.
#[tokio::test]
async fn a_client_that_says_nothing_conforms_to_no_revision() {
    let npm = or_leave_out!(toolbox::npm(), "the conformance suite");
    for (requirements, of) in [(Requirements::Legacy, 18), (Requirements::Modern, 32)] {
        let report = client_conformance(npm, "true", requirements).await.unwrap();
        assert_eq!((report.scored.of, report.unscored.of), (of, 7), "{report}");
        assert!(report.scored.passed < of, "{report}");
    }
}
