//! What the FEM wire protocol means, as pure functions: no clock, no socket, no dice.
//!
//! `SPEC.md` beside this crate is the same thing in prose. Reading order: [`admission`] says how an
//! envelope earns belief; [`envelope`], [`message`] and [`wire`] say what it looks like;
//! [`capability`] says who may do what; [`trust`] says how far organisations trust each other;
//! [`refusal`] says what a sender is told; [`frame`] says how it is delivered, and [`peering`] how two
//! brokers come to know each other.

pub mod admission;
pub mod capability;
pub mod envelope;
pub mod frame;
pub mod identity;
pub mod limits;
pub mod message;
pub mod peering;
pub mod refusal;
pub mod replay;
pub mod signature;
pub mod succession;
pub mod time;
pub mod trust;
pub mod wire;

pub use admission::{Authorized, Fresh, Newcomer, Received, Verified};
pub use capability::{Capability, Pattern};
pub use envelope::{Draft, Envelope, Kind, Sealed, VIA_MCP};
pub use identity::{AgentId, Audience, Caller, Name, NamePattern, Org, Speaker};
pub use refusal::{Code, Refusal};
pub use signature::{Digest, PublicKey, Signature, SigningKey};
pub use time::Timestamp;
