//! The network between two sites, in a test's hand: slow, lossy one way or both, cut, and well again.
//!
//! A [`Cable`] is a TCP proxy in this process that a peer's endpoint points at. What it loses it does not
//! drop but holds, because TCP under a broker drops nothing either: it repeats, for as long as anybody
//! waits. What TCP would do when the network is back it can do in two ways, see [`Loss`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// Connections at once; whoever comes then waits.
const CONNECTIONS_MAX: usize = 256;
/// Bytes of one piece, and pieces that are under way in one direction of one connection: what comes then
/// waits in the sender's own buffers.
const PIECE_BYTES: usize = 16 << 10;
const PIECES_MAX: usize = 256;

/// Which way, seen from whoever dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the one that dialled to the one that listens.
    There,
    /// From the one that listens to the one that dialled.
    Back,
}

/// What comes of what was lost once the network is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Its sender repeats it at once: it comes late.
    Late,
    /// Its sender has come to wait so long between two attempts that it does not matter: that direction of
    /// the connection stays mute, and only new connections carry anything.
    Forever,
}

/// What the network does now.
#[derive(Debug, Clone, Copy)]
struct Weather {
    delay: Duration,
    /// By direction.
    lost: [Option<Loss>; 2],
    /// How often everything was cut.
    cuts: u64,
}

/// A network between two sites. It ends, with all its connections, when it is dropped.
#[derive(Debug)]
pub struct Cable {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    task: JoinHandle<()>,
}

impl Cable {
    /// A good network, at a port of its own, to who listens at `to`, now or later.
    ///
    /// # Errors
    ///
    /// When there is no port.
    pub async fn to(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let weather = watch::Sender::new(Weather {
            delay: Duration::ZERO,
            lost: [None; 2],
            cuts: 0,
        });
        let task = tokio::spawn(carry(listener, to, weather.subscribe()));
        Ok(Self {
            address,
            weather,
            task,
        })
    }

    /// Where to dial.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What is sent from now on comes so much later, either way.
    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Carries nothing this way from now on, and makes no connection.
    pub fn lose(&self, way: Way, loss: Loss) {
        self.weather
            .send_modify(|weather| weather.lost[way as usize] = Some(loss));
    }

    /// Carries nothing either way from now on.
    pub fn part(&self, loss: Loss) {
        self.weather
            .send_modify(|weather| weather.lost = [Some(loss); 2]);
    }

    /// Carries everything again.
    pub fn heal(&self) {
        self.weather.send_modify(|weather| weather.lost = [None; 2]);
    }

    /// Ends every connection, as a router does that was started anew.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(listener: TcpListener, to: SocketAddr, weather: watch::Receiver<Weather>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let Ok((near, _)) = listener.accept().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        let weather = weather.clone();
        connections.spawn(async move {
            let cut = cut(weather.clone());
            tokio::select! {
                () = cut => {}
                _ = connection(near, to, weather) => {}
            }
            drop(place);
        });
    }
}

/// Returns when everything is cut.
async fn cut(mut weather: watch::Receiver<Weather>) {
    let before = weather.borrow().cuts;
    let _ = weather.wait_for(|weather| weather.cuts != before).await;
}

/// One connection. The system took it already; the network makes it only where both directions are open.
async fn connection(
    near: TcpStream,
    to: SocketAddr,
    mut weather: watch::Receiver<Weather>,
) -> Result<()> {
    weather.wait_for(|now| now.lost == [None; 2]).await?;
    let far = TcpStream::connect(to).await?;
    for end in [&near, &far] {
        end.set_nodelay(true)?;
    }
    let (near, far) = (near.into_split(), far.into_split());
    let (mut near_end, mut far_end) = (near.1, far.1);
    let back = weather.clone();
    // Both ends stay open until both directions are done: a direction that is mute says no end either.
    tokio::join!(
        direction(near.0, &mut far_end, Way::There, weather),
        direction(far.0, &mut near_end, Way::Back, back),
    );
    Ok(())
}

/// Carries one direction until its sender is done with it.
async fn direction(
    mut from: OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    way: Way,
    mut weather: watch::Receiver<Weather>,
) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Bytes)>(PIECES_MAX);
    let delays = weather.clone();
    let reading = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE_BYTES);
            // An end, or an error, is a piece of no bytes: it takes its time and can be lost like any other.
            let count = from.read_buf(&mut buffer).await.unwrap_or(0);
            let at = Instant::now() + delays.borrow().delay;
            let piece = buffer.split().freeze();
            if sender.send((at, piece)).await.is_err() || count == 0 {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((at, piece)) = pieces.recv().await {
            sleep_until(at).await;
            if weather.borrow().lost[way as usize] == Some(Loss::Forever) {
                while pieces.recv().await.is_some() {}
                return;
            }
            let open = weather.wait_for(|now| now.lost[way as usize].is_none());
            if open.await.is_err() || to.write_all(&piece).await.is_err() {
                return;
            }
            if piece.is_empty() {
                let _ = to.shutdown().await;
            }
        }
    };
    tokio::join!(reading, writing);
}
