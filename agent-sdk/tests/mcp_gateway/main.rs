//! What a client of MCP meets at a gateway, before agents that say what each test wants.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that is surprised fails"
)]

mod fake;
mod hostile;
mod legacy;
mod modern;
mod stdio;
