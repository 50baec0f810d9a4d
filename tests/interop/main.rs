//! Other people's MCP clients, servers and suites, with ours and with each other.
#![expect(clippy::unwrap_used, reason = "a test that is surprised fails")]

mod brokered;
mod clients;
mod direct;
mod front;
mod hostile;
mod outbound;
mod servers;

/// What the toolbox has; where it has not, says what is left out and why, and ends the test.
macro_rules! or_leave_out {
    ($tools:expr, $what:literal) => {
        match $tools.await {
            Ok(tools) => tools,
            Err(why) => {
                eprintln!("left out: {}, because {why}", $what);
                return;
            }
        }
    };
}
pub(crate) use or_leave_out;
