//! What an agent links: calling other agents' tools, serving one's own, and hearing events.
//!
//! Start with [`Agent`]; `README.md` beside this crate is the tutorial. The layers below it, lowest
//! first: `config`, `keyfile` and `tool` (what an agent is), `link` (TLS, HTTP, WebSocket), `session`
//! and `line` (one living connection), `call`, `serve` and `events` (what goes over it), `agent`. Beside
//! them stands `sandbox` (a feature): running code that nobody vouches for.
//!
//! What arrives is believed only as far as it is proven: the broker's words under the key that is
//! configured or follows from it, another agent's under the key that the broker vouches for, and both only for this
//! agent, of this time, and once. A provider checks again everything that its broker checked, except
//! revocation, for which it relies on its broker: a credential lives five minutes at most.

mod agent;
mod answer;
mod broker_keys;
mod call;
mod clock;
mod config;
mod credentials;
mod endpoint;
mod error;
mod events;
mod incoming;
mod keyfile;
mod line;
mod link;
#[cfg(feature = "mcp")]
pub mod mcp;
mod post;
#[cfg(all(feature = "sandbox", target_os = "linux"))]
pub mod sandbox;
mod seen;
mod serve;
mod session;
mod tokens;
mod tool;
mod voice;

pub use agent::{Agent, Offered, RegisterOptions, Registration, Serving};
pub use broker_keys::NewBrokerKey;
pub use call::{CallHandle, CallOptions};
pub use clock::{Clock, SystemClock};
pub use config::{Builder, CALLS_AT_ONCE, CONNECT_TIMEOUT, Config};
pub use endpoint::Endpoint;
pub use error::{Error, Result};
pub use events::{Emitted, Event, Missed, Subscription};
pub use incoming::{Call, Progress};
pub use keyfile::{Key, Passphrase};
pub use link::backoff::Backoff;
pub use proto_spec;
pub use proto_spec::message::{Ack, DiscoverTools, DiscoveredTool, McpRequest, Unsigned};
pub use proto_spec::{
    AgentId, Audience, Caller, Capability, Code, Digest, Kind, Pattern, PublicKey, Timestamp,
};
pub use tool::{
    INVALID_ARGUMENTS, RESULT_TOO_LARGE, SANDBOX_REQUIRED, TOOL_FAILED, TOOL_PANICKED,
    TOOL_STOPPED, Tool, ToolError,
};

/// The tutorial's programs compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    fn lines(program: &str) -> usize {
        program
            .lines()
            .filter(|line| !line.trim().is_empty() && !line.starts_with("//!"))
            .count()
    }

    #[test]
    fn a_provider_is_under_15_lines_and_a_caller_under_10() {
        assert!(lines(include_str!("../examples/hello.rs")) < 15);
        assert!(lines(include_str!("../examples/call.rs")) < 10);
    }

    #[test]
    fn the_readme_shows_the_sandboxed_tool_as_it_is_compiled() {
        let example = include_str!("../examples/sandboxed_tool.rs");
        let (_, program) = example.split_once("\n\n").unwrap();
        assert!(include_str!("../README.md").contains(program));
    }
}
