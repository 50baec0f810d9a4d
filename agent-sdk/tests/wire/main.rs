//! What an agent believes and does on the wire, against a broker that may lie.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod calling;
mod clock;
mod clocks;
mod fake;
mod listening;
mod posting;
mod serving;
mod sessions;
mod suspicion;
