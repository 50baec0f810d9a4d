//! The log: one line an outcome, to standard error.

use tracing_subscriber::EnvFilter;

/// Starts logging at `info`, or as `FEM_LOG` says (`debug`, `broker=debug,warn`, …). Tokens, keys and
/// contents of messages are never logged.
pub fn start(json: bool) {
    let filter = EnvFilter::try_from_env("FEM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    // A second start in one process, as tests do, keeps the first.
    let _ = if json {
        log.json().try_init()
    } else {
        log.with_ansi(false).try_init()
    };
}

/// Every session is a descriptor: takes as many as the system gives.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
