//! What an agent links: calling other agents' tools, serving one's own, and hearing events.
//!
//! Start with [`Agent`]; `README.md` beside this crate is the tutorial. The layers below it, lowest
//! first: `config`, `keyfile` and `tool` (what an agent is), `link` (TLS, HTTP, WebSocket), `session`
//! and `line` (one living connection), `call`, `serve` and `events` (what goes over it), `agent`.
//!
//! What arrives is believed only as far as it is proven: the broker's words under the key that is
//! configured, another agent's under the key that the broker vouches for, and both only for this
//! agent, of this time, and once. A provider checks again everything that its broker checked, except
//! revocation, for which it relies on its broker: a credential lives five minutes at most.

mod agent;
mod call;
mod clock;
mod config;
mod credentials;
mod error;
mod events;
mod incoming;
mod keyfile;
mod line;
mod link;
mod post;
mod seen;
mod serve;
mod session;
mod tool;
mod voice;

pub use agent::{Agent, RegisterOptions, Registration};
pub use call::{CallHandle, CallOptions};
pub use clock::{Clock, SystemClock};
pub use config::{Builder, CALLS_AT_ONCE, CONNECT_TIMEOUT, Config, Endpoint};
pub use error::{Error, Result};
pub use events::{Emitted, Event, Missed, Subscription};
pub use incoming::{Call, Progress};
pub use keyfile::{Key, Passphrase};
pub use proto_spec;
pub use proto_spec::message::{Ack, DiscoverTools, DiscoveredTool};
pub use proto_spec::{
    AgentId, Audience, Capability, Code, Digest, Kind, Pattern, PublicKey, Timestamp,
};
pub use tool::{
    INVALID_ARGUMENTS, RESULT_TOO_LARGE, SANDBOX_REQUIRED, TOOL_FAILED, TOOL_PANICKED, Tool,
    ToolError,
};
