//! MCP clients call agents' tools: a server of MCP on one side, an [`Upstream`] on the other.
//!
//! A [`Gateway`] answers the requests of both eras of MCP: that of `initialize` and sessions (up to
//! 2025-11-25), and the stateless 2026-07-28. Each request comes with the [`Upstream`] in whose name its calls
//! are made, and a [`Scope`]: all that this caller may call, or one agent. What a client sees is what its caller
//! may call at that moment, and every call is decided anew by the broker.
//!
//! In the order in which a request meets them: [`Allowed`], `http` or `stdio`, `era` and `headers`, `session` and
//! `memory` for the legacy, `guest`, which answers it, with `gathered`, `catalogue`, `names`, `lists` and `listen`;
//! `definition`, `outcome`, `notes`, `uris` and `fault` are how things look to the client.

mod allowed;
mod answering;
mod bounds;
mod catalogue;
mod definition;
mod era;
mod fault;
mod gathered;
mod guest;
mod headers;
mod http;
mod initialize;
mod listen;
mod lists;
mod memory;
mod names;
mod notes;
mod outcome;
mod session;
mod stdio;
mod through_agent;
mod upstream;
mod uris;

use std::sync::Arc;

pub use allowed::Allowed;
pub use bounds::Bounds;
pub use catalogue::{Catalogue, Scope};
pub use gathered::Gathered;
pub use http::Body;
pub use through_agent::ThroughAgent;
pub use upstream::{Failure, Ongoing, Outgoing, Shared, Step, Upstream};

use tokio::sync::watch;

use crate::Clock;
use bounds::Places;
use memory::Memories;
use session::Seal;

/// What answers clients of MCP. Cheap to clone; all clones share their bounds and what they remember.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    seal: Seal,
    clock: Arc<dyn Clock>,
    allowed: Allowed,
    bounds: Bounds,
    arriving: Arc<Places>,
    requests: Arc<Places>,
    streams: Arc<Places>,
    memories: Memories,
    is_over: watch::Sender<bool>,
}

impl Gateway {
    /// A gateway. Sessions are sealed under a key made of `secret`: whoever has it can make any, and with the
    /// same one they survive a restart.
    #[must_use]
    pub fn new(secret: &[u8; 32], clock: Arc<dyn Clock>, allowed: Allowed, bounds: Bounds) -> Self {
        Self(Arc::new(Inner {
            seal: Seal::new(secret),
            clock,
            allowed,
            arriving: Places::new("messages", bounds.arriving, bounds.arriving_per_caller),
            requests: Places::new("requests", bounds.requests, bounds.requests_per_caller),
            streams: Places::new("streams", bounds.streams, bounds.streams_per_caller),
            memories: Memories::new(bounds.sessions, bounds.sessions_per_caller),
            bounds,
            is_over: watch::Sender::default(),
        }))
    }

    /// Ends all streams over HTTP, now and from now on: whoever serves them stops.
    pub fn end_streams(&self) {
        self.0.is_over.send_replace(true);
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway")
            .field("bounds", &self.0.bounds)
            .finish_non_exhaustive()
    }
}
