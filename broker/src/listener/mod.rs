//! Where bytes come in: accept, hand-shake, and serve each connection by what was negotiated.

pub mod http;
pub mod ops;
mod reading;
pub mod ws;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto_spec::Digest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::conversation::WRITE_MAX;
use crate::locks::lock;
use crate::mcp::Mcp;
use crate::phase::{Phase, reached};
use crate::pipeline::Core;
use crate::tls::Certificates;
use reading::Paced;

/// How long a client may take from its first byte to the end of the handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long accepting rests when the system has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A connection whose client reads what it is sent.
type Stream = TlsStream<Paced<TcpStream>>;

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    address: SocketAddr,
    channel: Digest,
}

impl Client {
    /// For people.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.ip().to_canonical().to_string()
    }

    /// The SHA-256 of the public key of the certificate that it saw.
    #[must_use]
    pub fn channel(&self) -> Digest {
        self.channel
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

/// The places for connections: so many in all, and so many of one network.
#[derive(Debug)]
pub struct Room {
    places: Arc<Semaphore>,
    max: usize,
    per_network_max: usize,
    by_network: Mutex<HashMap<u64, usize>>,
}

/// A connection's place among those that there may be. A session keeps it beyond the HTTP exchange.
#[derive(Debug)]
pub struct Seat {
    room: Arc<Room>,
    network: u64,
    _place: OwnedSemaphorePermit,
}

impl Room {
    /// Room for `max` connections, of which one network has at most `per_network_max`.
    #[must_use]
    pub fn new(max: usize, per_network_max: usize) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(max)),
            max,
            per_network_max,
            by_network: Mutex::default(),
        })
    }

    /// A place, unless all or the network's share are taken.
    fn take(self: &Arc<Self>, network: u64) -> Option<Seat> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let mut counts = lock(&self.by_network);
        let count = counts.entry(network).or_default();
        if *count >= self.per_network_max {
            return None;
        }
        *count += 1;
        Some(Seat {
            room: Arc::clone(self),
            network,
            _place: place,
        })
    }

    /// Returns when every connection has ended.
    pub async fn empty(&self) {
        let all = u32::try_from(self.max).unwrap_or(u32::MAX);
        let _ = self.places.acquire_many(all).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = lock(&self.room.by_network);
        if let Some(count) = counts.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.network);
            }
        }
    }
}

/// Accepts connections until told to drain.
pub async fn accept(
    core: Arc<Core>,
    mcp: Option<Arc<Mcp>>,
    listener: TcpListener,
    certificates: Arc<Certificates>,
    room: Arc<Room>,
    mut phase: watch::Receiver<Phase>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = reached(Phase::Draining, &mut phase) => return,
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
        let pair = certificates.current();
        let client = Client {
            address,
            channel: pair.channel,
        };
        let Some(seat) = room.take(client.network()) else {
            tracing::info!(client = %address.ip(), "closed: as many connections as there may be");
            continue;
        };
        let tls = TlsAcceptor::from(Arc::clone(&pair.tls));
        let (core, mcp, phase) = (Arc::clone(&core), mcp.clone(), phase.clone());
        tokio::spawn(async move {
            serve(core, mcp, stream, tls, client, phase, seat).await;
        });
    }
}

async fn serve(
    core: Arc<Core>,
    mcp: Option<Arc<Mcp>>,
    stream: TcpStream,
    tls: TlsAcceptor,
    client: Client,
    mut phase: watch::Receiver<Phase>,
    seat: Seat,
) {
    // Small frames must not wait for each other's acknowledgements.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let accepting = tls.accept(Paced::new(stream, WRITE_MAX));
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(HANDSHAKE_MAX, accepting) => accepted,
        () = reached(Phase::Stopping, &mut phase) => return,
    };
    match accepted {
        Ok(Ok(stream)) => http::serve(core, mcp, stream, client, phase, seat).await,
        Ok(Err(error)) => {
            tracing::debug!(client = %client.address(), error = ?error.to_string(), "no TLS handshake");
        }
        Err(_) => tracing::debug!(client = %client.address(), "no TLS handshake in time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_cannot_take_every_place() {
        let room = Room::new(4, 3);
        let taken: Vec<_> = (0..3).map(|_| room.take(1).unwrap()).collect();
        assert!(room.take(1).is_none());
        let other = room.take(2).unwrap();
        assert!(room.take(3).is_none(), "all places are taken");
        drop(other);
        drop(taken);
        assert!(lock(&room.by_network).is_empty());
        assert!((0..3).map(|_| room.take(1)).all(|seat| seat.is_some()));
    }

    #[tokio::test]
    async fn a_room_is_empty_when_the_last_seat_is_given_back() {
        let room = Room::new(4, 4);
        let seat = room.take(1).unwrap();
        let waiting = tokio::spawn({
            let room = Arc::clone(&room);
            async move { room.empty().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(seat);
        waiting.await.unwrap();
    }
}
