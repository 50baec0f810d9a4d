//! Where bytes come in: accept, hand-shake, and serve each connection by what was negotiated.

pub mod http;
pub mod ops;
pub mod tls;
pub mod ws;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::pipeline::Core;

/// How long a client may take from its first byte to the end of the handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long accepting rests when the system has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    address: SocketAddr,
}

impl Client {
    /// For people.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.ip().to_canonical().to_string()
    }

    /// A number for its network: a /24 of IPv4, a /64 of IPv6. Strangers of one share their bounds.
    #[must_use]
    pub fn network(&self) -> u64 {
        match self.address.ip().to_canonical() {
            IpAddr::V4(address) => u64::from(address.to_bits() >> 8) | 1 << 63,
            IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
        }
    }
}

/// Returns when the broker is told to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Accepts connections until told to stop.
pub async fn accept(
    core: Arc<Core>,
    listener: TcpListener,
    tls: TlsAcceptor,
    mut stop: watch::Receiver<bool>,
) {
    let room = Arc::new(Semaphore::new(core.config.limits.connections_max));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the client is gone again: neither may end the loop.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // At the bound a connection is closed at once: its client sees that, and backs off.
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            tracing::info!(client = %address.ip(), "closed: as many connections as there may be");
            continue;
        };
        let (core, tls, stop) = (Arc::clone(&core), tls.clone(), stop.clone());
        tokio::spawn(async move {
            serve(core, stream, tls, Client { address }, stop, place).await;
        });
    }
}

async fn serve(
    core: Arc<Core>,
    stream: TcpStream,
    tls: TlsAcceptor,
    client: Client,
    stop: watch::Receiver<bool>,
    place: tokio::sync::OwnedSemaphorePermit,
) {
    // Small frames must not wait for each other's acknowledgements.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    match tokio::time::timeout(HANDSHAKE_MAX, tls.accept(stream)).await {
        Ok(Ok(stream)) => http::serve(core, stream, client, stop, place).await,
        Ok(Err(error)) => {
            tracing::debug!(client = %client.address(), error = ?error.to_string(), "no TLS handshake");
        }
        Err(_) => tracing::debug!(client = %client.address(), "no TLS handshake in time"),
    }
}
