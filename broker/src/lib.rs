//! The FEM broker.
//!
//! Read [`pipeline`] first: it is what happens to an envelope, top to bottom. Around it:
//!
//! | where | what |
//! |---|---|
//! | [`listener`] | where bytes come in: TLS, HTTP, WebSocket, health and metrics |
//! | [`compat`], [`compat_endpoint`] | older agents: what they say, and calling them |
//! | [`federation`] | other organisations' brokers: links, adverts, delegation |
//! | [`pipeline`] | parse → verify → admit → authorize → perform → answer |
//! | [`calls`], [`routing`], [`delivery`], [`transit`], [`directory`] | what is performed |
//! | [`inside`] | sessions of agents that have no connection of their own |
//! | [`registrar`] | the only code that appends durable changes |
//! | [`state`] | views in memory that the request path reads |
//! | [`journal`], [`change`] | ground truth |
//! | [`mcp`], [`kept`] | MCP clients that show a bearer token: `/mcp`, and the keys kept for them |
//! | [`upkeep`] | backup, restore, verification: what an operator does to a data directory |
//! | [`config`], [`clock`], [`voice`], [`metrics`] | what it runs with, its time, its words, its counters |

pub mod calls;
pub mod change;
pub mod clock;
pub mod compat;
pub mod compat_endpoint;
pub mod config;
pub mod conversation;
pub mod delivery;
pub mod directory;
pub mod federation;
pub mod inside;
pub mod journal;
pub mod kept;
mod keyfile;
pub mod listener;
mod locks;
pub mod mcp;
pub mod metrics;
pub mod phase;
pub mod pipeline;
pub mod registrar;
pub mod routing;
pub mod state;
pub mod telemetry;
pub mod threshold;
pub mod tls;
pub mod transit;
pub mod upkeep;
pub mod voice;

mod broker;

pub use broker::{Broker, Founding, Parts, accept_clock, found};
pub use config::Config;
