//! What waits to be written to a connection, and how many calls hang on it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use proto_spec::Refusal;
use tokio::sync::{Notify, mpsc};

/// Tells every outbox of this run from every other.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A bounded queue towards one connection.
#[derive(Debug)]
pub struct Outbox {
    id: u64,
    queue: mpsc::Sender<Bytes>,
    queued_bytes: AtomicUsize,
    queued_bytes_max: usize,
    outstanding: AtomicUsize,
    made: AtomicUsize,
    closed: Notify,
    is_closed: AtomicBool,
}

impl Outbox {
    /// The outbox in front of `queue`, for so many bytes.
    #[must_use]
    pub fn new(queue: mpsc::Sender<Bytes>, queued_bytes_max: usize) -> Self {
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            queue,
            queued_bytes: AtomicUsize::new(0),
            queued_bytes_max,
            outstanding: AtomicUsize::new(0),
            made: AtomicUsize::new(0),
            closed: Notify::new(),
            is_closed: AtomicBool::new(false),
        }
    }

    /// Told apart from every other of this broker's run.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Calls delivered to its connection and not answered.
    #[must_use]
    pub fn outstanding(&self) -> &AtomicUsize {
        &self.outstanding
    }

    /// Calls made by its connection and not answered.
    #[must_use]
    pub fn made(&self) -> &AtomicUsize {
        &self.made
    }

    /// Queues a message.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] when the queue is full, by messages or by bytes, or the connection is closing.
    pub fn send(&self, message: Bytes) -> Result<(), Refusal> {
        let busy = || Refusal::Busy("the recipient's queue");
        let bytes = message.len();
        let before = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        // One message always fits, whatever its size: an empty queue is never full.
        let fits = before == 0 || before + bytes <= self.queued_bytes_max;
        if !fits || self.queue.try_send(message).is_err() {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(busy());
        }
        Ok(())
    }

    /// Notes that a message was taken out of the queue.
    pub fn taken(&self, message: &Bytes) {
        self.queued_bytes
            .fetch_sub(message.len(), Ordering::Relaxed);
    }

    /// Ends it: its connection closes.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.closed.notify_one();
    }

    /// Whether [`Outbox::close`] was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Returns when [`Outbox::close`] was called.
    pub async fn closed(&self) {
        self.closed.notified().await;
    }
}
