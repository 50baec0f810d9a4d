//! A request while it is answered: what is said before its answer, in order, and then the answer.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::bounds::Place;
use super::fault::Fault;
use super::memory::{Memory, Reply};
use crate::mcp::rpc::{Message, Object};

/// Messages that wait until the client takes them. Whoever speaks waits then.
const WAITING_MAX: usize = 16;

/// What a request comes to.
pub(super) type Outcome = Result<Box<RawValue>, Fault>;

/// The way to the client while one request of it is answered.
#[derive(Debug, Clone)]
pub(super) struct Voice {
    said: mpsc::Sender<Message>,
    /// Of a legacy client, which can be asked.
    memory: Option<Arc<Memory>>,
}

impl Voice {
    /// Says something; for nothing where the client is gone.
    pub(super) async fn notify(&self, method: &str, params: Object) {
        let method = method.to_owned();
        let _ = self
            .said
            .send(Message::Notification { method, params })
            .await;
    }

    /// Asks the client, and gives what waits for its answer: none where it is gone.
    ///
    /// # Errors
    ///
    /// Where so many questions wait already that no more are asked.
    pub(super) async fn ask(
        &self,
        method: &str,
        params: Object,
        most: usize,
    ) -> Result<Option<impl Future<Output = Option<Reply>> + use<>>, Fault> {
        let Some(memory) = &self.memory else {
            return Ok(None);
        };
        let (id, waiting) = memory.question(most)?;
        let method = method.to_owned();
        let question = Message::Request { id, method, params };
        Ok(self.said.send(question).await.is_ok().then_some(waiting))
    }

    /// Which log messages are wanted, where no request says so for itself.
    pub(super) fn level(&self) -> Option<&'static str> {
        self.memory.as_ref().map(|memory| memory.level())
    }

    /// Of what no client asked for: nobody hears it, and nobody can be asked.
    pub(super) fn mute() -> Self {
        let (said, _) = mpsc::channel(1);
        Self { said, memory: None }
    }

    pub(super) fn memory(&self) -> Option<&Arc<Memory>> {
        self.memory.as_ref()
    }
}

/// What comes next of a request.
#[derive(Debug)]
pub(super) enum Said {
    /// Before the answer.
    Message(Message),
    /// The answer. Nothing comes after it.
    Answer(Outcome),
}

/// A request under way. Dropping it ends the work, unless the work is on a task of its own.
pub(super) struct Answering {
    said: mpsc::Receiver<Message>,
    work: Option<BoxFuture<'static, Option<Outcome>>>,
    answer: Option<Outcome>,
    place: Option<Arc<Place>>,
}

impl Answering {
    /// Has `work` answer, which speaks by the voice that it is given. It has `place` as long as it lasts.
    pub(super) fn new<F>(
        memory: Option<Arc<Memory>>,
        place: Option<Arc<Place>>,
        work: impl FnOnce(Voice) -> F,
    ) -> Self
    where
        F: Future<Output = Option<Outcome>> + Send + 'static,
    {
        let (said, heard) = mpsc::channel(WAITING_MAX);
        let work = work(Voice { said, memory });
        Self {
            said: heard,
            work: Some(Box::pin(work)),
            answer: None,
            place,
        }
    }

    /// The place that it has, for whoever goes on with its answer.
    pub(super) fn place(&self) -> Option<Arc<Place>> {
        self.place.clone()
    }

    /// What comes next; none after the answer, and where there is none because the client cancelled.
    pub(super) async fn next(&mut self) -> Option<Said> {
        std::future::poll_fn(|cx| {
            if let Some(work) = &mut self.work
                && let Poll::Ready(answer) = work.as_mut().poll(cx)
            {
                self.work = None;
                self.answer = answer;
            }
            // What was said before the answer comes before it.
            match self.said.poll_recv(cx) {
                Poll::Ready(Some(message)) => Poll::Ready(Some(Said::Message(message))),
                _ if self.work.is_some() => Poll::Pending,
                _ => Poll::Ready(self.answer.take().map(Said::Answer)),
            }
        })
        .await
    }

    /// What comes next, if anything does within `patience`.
    pub(super) async fn within(
        &mut self,
        clock: &dyn crate::Clock,
        patience: Duration,
    ) -> Option<Option<Said>> {
        tokio::select! {
            biased;
            said = self.next() => Some(said),
            () = clock.sleep(patience) => None,
        }
    }
}
