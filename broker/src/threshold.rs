//! A connection to which nobody is attached yet: what a stranger has in memory is bounded by what it takes to
//! attach, whatever an envelope may hold.

use std::io::{Error, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A byte stream that gives so much until it is opened, and then all.
#[derive(Debug)]
pub struct Threshold<S> {
    stream: S,
    /// Nothing once it is open.
    left: Option<usize>,
}

impl<S> Threshold<S> {
    /// A stream that gives no more than `bytes_max` and one read beyond it, then an error.
    #[must_use]
    pub fn new(stream: S, bytes_max: usize) -> Self {
        Self {
            stream,
            left: Some(bytes_max),
        }
    }

    /// Somebody is attached: it gives all.
    pub fn open(&mut self) {
        self.left = None;
    }

    /// What is below it.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Threshold<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        if self.left == Some(0) {
            return Poll::Ready(Err(Error::other("too much before anybody is attached")));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        self.left = self.left.map(|left| left.saturating_sub(read));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Threshold<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn until_somebody_is_attached_a_stream_gives_so_much() {
        let all = [7; 100];
        let mut closed = Threshold::new(&all[..], 10);
        let mut part = [0; 10];
        closed.read_exact(&mut part).await.unwrap();
        assert!(closed.read(&mut part).await.is_err());
        let mut open = Threshold::new(&all[..], 10);
        open.open();
        let mut read = Vec::new();
        open.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, all);
    }
}
