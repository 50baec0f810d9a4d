//! Older agents: their habits are known here, and nowhere else in the broker. Off unless configured.
//!
//! What they say ([`door`]) comes to the base URL, names no recipient, and is answered in plain JSON; between
//! reading and answering it passes the same gate as everything else. Where they are called ([`bridge`]), the
//! broker holds a session in their place: calls reach it like any other session's, go on as JSON-RPC to an
//! endpoint that the operator listed ([`endpoint`]), and the answer comes back in the broker's own words, for
//! an older agent signs none. SPEC.md, *Older agents*.

pub mod bridge;
pub mod door;
pub mod endpoint;

pub use bridge::keep;
pub use door::{answer, is_older};
