//! The architecture, the documents and the README's steps, held true.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that is surprised fails"
)]

mod compose;
mod dependencies;
mod documents;
mod layers;
mod readme;
