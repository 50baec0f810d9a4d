//! MCP clients call agents' tools: a server of MCP on one side, an [`Upstream`] on the other.

mod upstream;

pub use upstream::{Failure, Ongoing, Outgoing, Shared, Step, Upstream};
