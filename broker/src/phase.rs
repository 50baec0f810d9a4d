//! How far a stop has come: what accepts connections, and what serves them, look at this.

use tokio::sync::watch;

/// What the listeners and links do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Take connections.
    Serving,
    /// Take none; what is connected goes on.
    Draining,
    /// Close what is connected.
    Stopping,
}

/// Returns when the broker has come to `phase`.
pub async fn reached(phase: Phase, now: &mut watch::Receiver<Phase>) {
    let _ = now.wait_for(|now| *now >= phase).await;
}
