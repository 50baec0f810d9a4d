//! A WebSocket connection that was attached: messages both ways. One task owns it; what is ready to be
//! written goes out in one write.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use proto_spec::limits::WORD_BYTES_MAX;

use crate::phase::{Phase, reached};
use crate::state::outbox::{Outbox, Queued};

/// An idle connection is pinged so often, and closed when it has said nothing for two of these.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long the other end may take to read what is written to it.
pub(crate) const WRITE_MAX: Duration = Duration::from_secs(30);
/// How long the last word may take to one that is not known to read.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// Messages read, and messages written, before the other side has its turn.
const BATCH: usize = 64;
/// And bytes written: what is written slowly must not keep the other end's heads from being heard.
const BATCH_BYTES: usize = 256 << 10;
/// Ten thousand idle sessions are cheap: buffers begin small.
const BUFFER_BYTES: usize = 4 << 10;
/// What an envelope is wrapped in at most: a credential or tokens, and the frame around them.
const AROUND_BYTES: usize = 256 << 10;

/// A byte stream below a WebSocket.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// What is done with what comes.
pub trait Hears: Sync {
    /// What waits for the other end.
    fn outbox(&self) -> &Outbox;
    /// Takes one message, and gives what is to be said at once.
    fn hear(&self, message: Bytes) -> impl Future<Output = Option<Bytes>> + Send;
}

/// Bounds of a connection that takes messages of `message_bytes_max` and writes envelopes of
/// `envelope_bytes_max`.
#[must_use]
pub fn bounds(message_bytes_max: usize, envelope_bytes_max: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        // What a slow reader leaves is bounded.
        .max_write_buffer_size(2 * envelope_bytes_max + AROUND_BYTES)
        .max_message_size(Some(message_bytes_max))
        .max_frame_size(Some(message_bytes_max))
}

/// As [`bounds`], for a link between brokers: both ways carry frames, and words whatever agents may say.
#[must_use]
pub fn link_bounds(envelope_bytes_max: usize) -> WebSocketConfig {
    let message_bytes_max = envelope_bytes_max.max(WORD_BYTES_MAX) + AROUND_BYTES;
    bounds(message_bytes_max, message_bytes_max)
}

/// The next message that is not a ping; nothing when the connection has ended.
pub async fn next<S: Stream>(socket: &mut WebSocketStream<S>) -> Option<Bytes> {
    loop {
        match socket.next().await {
            Some(Ok(message)) if message.is_ping() || message.is_pong() => {}
            Some(Ok(message)) if message.is_text() || message.is_binary() => {
                return Some(message.into_data());
            }
            _ => return None,
        }
    }
}

/// Why a conversation ended.
#[derive(Debug, Clone, Copy)]
pub enum Ended {
    /// The other end closed it, or the network did.
    ByClient,
    /// Nothing came, not even an answer to a ping.
    Silent,
    /// It does not read.
    TooSlow,
    /// It sent more than it may at once.
    TooLarge,
    /// We closed it.
    Closed,
    /// The broker stops.
    Stopping,
}

impl Ended {
    /// For the log.
    #[must_use]
    pub fn says(self) -> &'static str {
        match self {
            Self::ByClient => "the client closed",
            Self::Silent => "it was silent",
            Self::TooSlow => "it did not read",
            Self::TooLarge => "it sent more than an envelope may hold",
            Self::Closed => "its key is no longer good, or its queue was full",
            Self::Stopping => "the broker stops",
        }
    }

    fn frame(self) -> Option<CloseFrame> {
        let code = match self {
            Self::ByClient => return None,
            Self::Silent | Self::Closed | Self::TooSlow => CloseCode::Policy,
            Self::TooLarge => CloseCode::Size,
            Self::Stopping => CloseCode::Restart,
        };
        Some(close_frame(code, self.says()))
    }
}

fn close_frame(code: CloseCode, reason: &'static str) -> CloseFrame {
    CloseFrame {
        code,
        reason: reason.into(),
    }
}

/// Closes a connection that was not attached.
pub async fn turn_away<S: Stream>(socket: &mut WebSocketStream<S>) {
    let frame = close_frame(CloseCode::Policy, "not attached");
    let _ = timeout(WRITE_MAX, socket.close(Some(frame))).await;
}

/// Closes a connection, and says why.
pub async fn close<S: Stream>(socket: &mut WebSocketStream<S>, why: Ended) {
    let patience = match why {
        Ended::Silent | Ended::TooSlow => FAREWELL_MAX,
        _ => WRITE_MAX,
    };
    let _ = timeout(patience, socket.close(why.frame())).await;
}

/// Writes one message.
///
/// # Errors
///
/// Why the conversation ended.
pub async fn send<S: Stream>(socket: &mut WebSocketStream<S>, bytes: Bytes) -> Result<(), Ended> {
    in_time(socket.send(Message::Binary(bytes))).await
}

/// Serves an attached connection until it ends.
pub async fn converse<S: Stream, H: Hears>(
    socket: &mut WebSocketStream<S>,
    hears: &H,
    mut queue: mpsc::Receiver<Queued>,
    mut phase: watch::Receiver<Phase>,
) -> Ended {
    let mut ping = interval(PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ping.reset();
    let mut heard = true;
    let mut socket = Both::of(socket);
    loop {
        let ended = tokio::select! {
            message = socket.next() => {
                heard = true;
                read(&mut socket, hears, message).await
            }
            Some(first) = queue.recv() => {
                feed(&mut socket, hears.outbox(), first, &mut queue).await
            }
            _ = ping.tick() => {
                if !std::mem::take(&mut heard) {
                    return Ended::Silent;
                }
                // One that is idle answers this; one that is not has been heard.
                socket.feed(Message::Ping(Bytes::new())).await
            }
            () = hears.outbox().closed() => return Ended::Closed,
            () = reached(Phase::Stopping, &mut phase) => return Ended::Stopping,
        };
        if let Err(ended) = ended {
            return ended;
        }
        if let Err(ended) = socket.flush().await {
            return ended;
        }
    }
}

type Read = Option<Result<Message, Error>>;

/// A connection that is read while it is written to: two ends that write at once and wait for each other to
/// read would wait for ever.
struct Both<'a, S> {
    socket: &'a mut WebSocketStream<S>,
    /// What came while something was written: a turn of the other end at most, and its last message.
    early: VecDeque<Read>,
    early_bytes: usize,
}

impl<'a, S: Stream> Both<'a, S> {
    fn of(socket: &'a mut WebSocketStream<S>) -> Self {
        Self {
            socket,
            early: VecDeque::new(),
            early_bytes: 0,
        }
    }

    /// The next message. Nothing is lost when this is dropped.
    async fn next(&mut self) -> Read {
        match self.taken_early() {
            Some(read) => read,
            None => self.socket.next().await,
        }
    }

    fn taken_early(&mut self) -> Option<Read> {
        let read = self.early.pop_front()?;
        self.early_bytes -= size(&read);
        Some(read)
    }

    /// Reads what is there, as far as there is room.
    fn read_early(&mut self, context: &mut Context<'_>) {
        while self.early.len() < BATCH && self.early_bytes < BATCH_BYTES {
            // After its end nothing comes.
            if matches!(self.early.back(), Some(None | Some(Err(_)))) {
                return;
            }
            match self.socket.poll_next_unpin(context) {
                Poll::Ready(read) => {
                    self.early_bytes += size(&read);
                    self.early.push_back(read);
                }
                Poll::Pending => return,
            }
        }
    }

    async fn feed(&mut self, message: Message) -> Result<(), Ended> {
        let ready = poll_fn(|context| {
            let ready = self.socket.poll_ready_unpin(context);
            if ready.is_pending() {
                self.read_early(context);
            }
            ready
        });
        in_time(ready).await?;
        self.socket
            .start_send_unpin(message)
            .map_err(|_| Ended::ByClient)
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        in_time(poll_fn(|context| {
            let flushed = self.socket.poll_flush_unpin(context);
            if flushed.is_pending() {
                self.read_early(context);
            }
            flushed
        }))
        .await
    }
}

fn size(read: &Read) -> usize {
    match read {
        Some(Ok(message)) => message.len(),
        _ => 0,
    }
}

async fn in_time(written: impl Future<Output = Result<(), Error>>) -> Result<(), Ended> {
    match timeout(WRITE_MAX, written).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Ended::ByClient),
        Err(_) => Err(Ended::TooSlow),
    }
}

/// Handles a message and those that are ready behind it; answers are fed, not flushed.
async fn read<S: Stream, H: Hears>(
    socket: &mut Both<'_, S>,
    hears: &H,
    first: Read,
) -> Result<(), Ended> {
    let mut message = first;
    let mut handled = 0;
    loop {
        let bytes = match message {
            Some(Ok(message)) if message.is_text() || message.is_binary() => message.into_data(),
            Some(Ok(message)) if message.is_close() => return Err(Ended::ByClient),
            Some(Ok(_)) => Bytes::new(),
            Some(Err(Error::Capacity(_))) => return Err(Ended::TooLarge),
            Some(Err(_)) | None => return Err(Ended::ByClient),
        };
        if !bytes.is_empty()
            && let Some(answer) = hears.hear(bytes).await
        {
            socket.feed(Message::Binary(answer)).await?;
        }
        // What is taken off the socket is handled: at the end of a batch nothing more is taken.
        handled += 1;
        if handled == BATCH {
            return Ok(());
        }
        match socket.next().now_or_never() {
            Some(next) => message = next,
            None => return Ok(()),
        }
    }
}

/// Feeds what waits for the other end, as much as is ready.
async fn feed<S: Stream>(
    socket: &mut Both<'_, S>,
    outbox: &Outbox,
    first: Queued,
    queue: &mut mpsc::Receiver<Queued>,
) -> Result<(), Ended> {
    let (mut next, mut fed, mut bytes) = (Some(first), 0, 0);
    while let Some(turn) = next {
        for message in outbox.taken(turn) {
            bytes += message.len();
            socket.feed(Message::Binary(message)).await?;
        }
        fed += 1;
        // At the end of a batch nothing more is taken off the queue.
        next = if fed < BATCH && bytes < BATCH_BYTES {
            queue.try_recv().ok()
        } else {
            None
        };
    }
    Ok(())
}
