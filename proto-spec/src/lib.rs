//! What the FEM wire protocol means, as pure functions: no clock, no socket, no dice.
//!
//! `SPEC.md` beside this crate is the same thing in prose. Reading order: `admission` says how an
//! envelope earns belief; `envelope` and `wire` say what it looks like; [`capability`] says
//! who may do what; [`refusal`] says what a sender is told.

pub mod capability;
pub mod identity;
pub mod limits;
pub mod refusal;
pub mod signature;
pub mod time;

pub use identity::{AgentId, Audience, Name, NamePattern, Org, Speaker};
pub use refusal::{Code, Refusal};
pub use signature::{Digest, PublicKey, Signature, SigningKey};
pub use time::Timestamp;
