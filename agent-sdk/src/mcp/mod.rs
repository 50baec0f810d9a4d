//! The Model Context Protocol on both sides of a broker: a server of it becomes an agent (`wrap`), and a
//! client of it calls agents' tools (`gateway`). Where a server demands an authorisation, `login` gets and shows it.
//!
//! Between the two, MCP travels as FEM calls, in the manner of its revision 2026-07-28 whichever the ends
//! speak: every request stands for itself. A call's `arguments` are what conditions on arguments look at, its
//! `mcp` member is the rest of the request's parameters ([`rpc::Object`]), and its result is the request's result.
//! What a server wants to know from the client in mid-call is such a result (`resultType: input_required`), and the
//! next call brings the answers. Nothing is lost on the way: what was sent is relayed as the JSON that it was.
//!
//! | MCP request | FEM tool of agent `fs` | `arguments` |
//! |---|---|---|
//! | `tools/call` of `read_file` | `fs.read_file` | the request's `arguments` |
//! | any other, say `resources/read` | `fs.mcp.resources.read` | the request's parameters |
//!
//! A server's error is a tool error with the code [`MCP_ERROR`], whose data is the JSON-RPC error object.

mod address;
pub mod gateway;
pub mod login;
pub mod rpc;
mod way;
mod words;
pub mod wrap;

pub use self::address::Address;
pub use self::way::{Roots, roots};

/// The revision in which every request stands for itself, and in whose manner calls travel.
const MODERN: &str = "2026-07-28";
/// The revisions whose connections begin with `initialize`, newest first.
const LEGACY: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

/// Parameters of a request other than `tools/call` that are not among the arguments of the call that it is:
/// they say how it is asked, and not for what.
const BESIDE: [&str; 4] = ["_meta", "inputResponses", "requestState", "task"];

/// The code of a tool error whose data is a JSON-RPC error object, as the MCP server sent it.
pub const MCP_ERROR: &str = "MCP_ERROR";
