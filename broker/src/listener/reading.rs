//! Answers while their clients read them. Whoever stops reading loses the connection: what waits for it is in
//! memory, and counts among what is under way.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{Error, ErrorKind, Result};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use agent_sdk::mcp::gateway::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::http::Open;
use crate::locks::lock;

/// Bytes of an answer that are given away at once. Only when they were taken there are more.
const PART_BYTES: usize = 64 << 10;

/// A connection that fails where nothing of what is written to it is taken for so long.
#[derive(Debug)]
pub(super) struct Paced<S> {
    stream: S,
    patience: Duration,
    late: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    /// A stream of which something is taken within every `patience`.
    pub(super) fn new(stream: S, patience: Duration) -> Self {
        Self {
            stream,
            patience,
            late: None,
        }
    }

    fn in_time<T>(&mut self, cx: &mut Context<'_>, written: Poll<Result<T>>) -> Poll<Result<T>> {
        if written.is_ready() {
            self.late = None;
            return written;
        }
        let patience = self.patience;
        let late = self.late.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(late.as_mut().poll(cx));
        Poll::Ready(Err(Error::new(
            ErrorKind::TimedOut,
            "the client does not read",
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.in_time(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.in_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.in_time(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.in_time(cx, closed)
    }
}

/// The answers of one connection of which a part waits to be taken, and since when. HTTP/2 has a window for
/// each: a connection that is alive may read none of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Unread(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

impl Unread {
    /// Has an answer wait in parts, for which its request is open until it was read.
    pub(super) fn answer(&self, body: Body, open: Open) -> Body {
        let mut waiting = lock(&self.0);
        waiting.next += 1;
        let id = waiting.next;
        drop(waiting);
        let answer = Answer {
            body,
            rest: Bytes::new(),
            id,
            unread: self.clone(),
            _open: open,
        };
        http_body_util::BodyExt::boxed_unsync(answer)
    }

    /// Returns when a part of an answer was not taken for a whole `patience`.
    pub(super) async fn stuck(&self, patience: Duration) {
        loop {
            let first = lock(&self.0).since.values().min().copied();
            match first {
                Some(since) if since.elapsed() >= patience => return,
                Some(since) => sleep_until(since + patience).await,
                None => sleep(patience).await,
            }
        }
    }

    fn taken(&self, id: u64) {
        lock(&self.0).since.remove(&id);
    }
}

struct Answer {
    body: Body,
    rest: Bytes,
    id: u64,
    unread: Unread,
    _open: Open,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        self.unread.taken(self.id);
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let part = self.rest.len().min(PART_BYTES);
        let part = self.rest.split_to(part);
        lock(&self.unread.0).since.insert(self.id, Instant::now());
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.body.size_hint().exact() {
            Some(bytes) => SizeHint::with_exact(bytes + self.rest.len() as u64),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.unread.taken(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http_body_util::{BodyExt as _, Full};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn a_connection_fails_when_nothing_written_to_it_is_taken() {
        let (ours, _theirs) = tokio::io::duplex(8);
        let mut paced = Paced::new(ours, Duration::ZERO);
        paced.write_all(b"12345678").await.unwrap();
        let failed = paced.write_all(b"9").await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn an_answer_of_which_a_part_is_not_taken_is_stuck() {
        let unread = Unread::default();
        let body = Full::new(Bytes::from(vec![7; 2 * PART_BYTES])).boxed_unsync();
        let mut answer = unread.answer(body, Open::default());
        let is_stuck = || {
            let mut cx = Context::from_waker(Waker::noop());
            let stuck = std::pin::pin!(unread.stuck(Duration::ZERO));
            stuck.poll(&mut cx).is_ready()
        };
        assert!(!is_stuck(), "nothing was given yet");
        let part = answer.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(part.len(), PART_BYTES);
        assert!(is_stuck());
        let rest = answer.collect().await.unwrap().to_bytes();
        assert_eq!(rest.len(), PART_BYTES);
        assert!(!is_stuck());
    }
}
