//! A WebSocket to the broker: messages both ways, every buffer bounded, several answers in one flush.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use proto_spec::Digest;
use proto_spec::limits::ENVELOPE_BYTES_MAX;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::Link;
use super::tls::{Protocols, TlsStream};
use crate::error::Result;

/// What is read and written at once. Most agents are idle; thousands of them share a machine.
const BUFFER_BYTES: usize = 4 << 10;
/// The largest message: an envelope, a credential, and the frame around them.
const MESSAGE_BYTES_MAX: usize = ENVELOPE_BYTES_MAX + (64 << 10);
/// A write that does not finish in this time is a connection that is gone.
const WRITE_MAX: Duration = Duration::from_secs(30);
/// Messages that wait to be written. Whoever has one more waits with it.
const OUT_MESSAGES: usize = 64;
/// How long a broker may say nothing before it is asked for a sign of life.
const SILENCE: Duration = Duration::from_secs(20);
/// How often it is asked before the connection is taken for dead.
const PINGS_UNANSWERED: u32 = 3;

/// Opens the WebSocket; returns its halves and the channel of its connection.
///
/// # Errors
///
/// [`crate::Error::Unreachable`] and [`crate::Error::Tls`].
pub(crate) async fn open(link: &Link) -> Result<(Source, Sink, Digest)> {
    let (stream, channel) = link.connect(Protocols::Http1).await?;
    let url = format!("wss://{}/fem/ws", link.endpoint().authority());
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_write_buffer_size(MESSAGE_BYTES_MAX + BUFFER_BYTES)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let upgrade = tokio_tungstenite::client_async_with_config(url, stream, Some(config));
    let upgraded = tokio::time::timeout(link.timeout(), upgrade).await;
    let (socket, _) = match upgraded {
        Ok(upgraded) => upgraded.map_err(|why| link.unreachable(why))?,
        Err(_) => return Err(link.unreachable("the WebSocket upgrade was not answered")),
    };
    let (sink, source) = socket.split();
    Ok((Source(source), Sink(sink), channel))
}

/// What comes from the broker.
pub(crate) struct Source(SplitStream<WebSocketStream<TlsStream>>);

impl Source {
    /// The next message; none when the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Heard::Message(bytes) = self.hear().await? {
                return Some(bytes);
            }
        }
    }

    /// Like [`Source::next`], but asks a broker that has long said nothing for a sign of life, and
    /// takes the connection for ended when there is none, or when nothing can be written any more.
    pub(crate) async fn next_or_dead(&mut self, queue: &Queue) -> Option<Bytes> {
        let mut unanswered = 0;
        while unanswered < PINGS_UNANSWERED {
            tokio::select! {
                heard = tokio::time::timeout(SILENCE, self.hear()) => match heard {
                    Ok(None) => return None,
                    Ok(Some(Heard::Message(bytes))) => return Some(bytes),
                    Ok(Some(Heard::Life)) => unanswered = 0,
                    Err(_) => {
                        unanswered += 1;
                        queue.ping();
                    }
                },
                () = queue.0.closed() => return None,
            }
        }
        tracing::debug!("the broker does not answer pings");
        None
    }

    /// Pings are answered by the WebSocket itself.
    async fn hear(&mut self) -> Option<Heard> {
        match self.0.next().await? {
            Ok(Message::Binary(bytes)) => Some(Heard::Message(bytes)),
            Ok(Message::Text(text)) => Some(Heard::Message(text.into())),
            Ok(Message::Close(_)) => None,
            Ok(_) => Some(Heard::Life),
            Err(why) => {
                tracing::debug!(%why, "session ended");
                None
            }
        }
    }
}

enum Heard {
    Message(Bytes),
    /// A ping or a pong.
    Life,
}

/// What goes to the broker.
pub(crate) struct Sink(SplitSink<WebSocketStream<TlsStream>, Message>);

impl Sink {
    /// Writes and flushes one message.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Unreachable`] where the connection has ended.
    pub(crate) async fn send(&mut self, link: &Link, bytes: Bytes) -> Result<()> {
        let sent = tokio::time::timeout(link.timeout(), self.0.send(Message::Binary(bytes))).await;
        match sent {
            Ok(sent) => sent.map_err(|why| link.unreachable(why)),
            Err(_) => Err(link.unreachable("the connection takes nothing")),
        }
    }

    /// Hands the sink to a task that writes what the queue is given, and that closes the connection
    /// when nobody holds the queue any more.
    pub(crate) fn into_queue(mut self) -> Queue {
        let (queue, mut messages) = mpsc::channel(OUT_MESSAGES);
        tokio::spawn(async move {
            while let Some(first) = messages.recv().await {
                match tokio::time::timeout(WRITE_MAX, self.write_all(first, &mut messages)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(why)) => return tracing::debug!(%why, "writing to the broker failed"),
                    Err(_) => return tracing::debug!("the broker takes nothing"),
                }
            }
            let _ = tokio::time::timeout(WRITE_MAX, self.0.close()).await;
        });
        Queue(queue)
    }

    /// Writes `first` and all that waits behind it, and flushes once.
    async fn write_all(
        &mut self,
        first: Message,
        messages: &mut mpsc::Receiver<Message>,
    ) -> Result<(), WsError> {
        self.0.feed(first).await?;
        while let Ok(next) = messages.try_recv() {
            self.0.feed(next).await?;
        }
        self.0.flush().await
    }
}

/// Messages on their way to the broker.
#[derive(Clone)]
pub(crate) struct Queue(mpsc::Sender<Message>);

/// The connection has ended: what was to be sent was not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended;

impl Queue {
    /// Waits for a place in the queue.
    pub(crate) async fn send(&self, bytes: Bytes) -> Result<(), Ended> {
        self.0.send(Message::Binary(bytes)).await.map_err(|_| Ended)
    }

    /// Takes a place if there is one: for those who must not wait.
    pub(crate) fn try_send(&self, bytes: Bytes) -> Result<(), Ended> {
        self.0.try_send(Message::Binary(bytes)).map_err(|_| Ended)
    }

    /// A full queue is being written: then no ping is needed to find out whether that still works.
    fn ping(&self) {
        let _ = self.0.try_send(Message::Ping(Bytes::new()));
    }
}
