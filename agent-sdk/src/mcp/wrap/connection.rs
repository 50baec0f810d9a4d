//! A connection to one server, whatever it goes over: a request, what the server says of it in order, and one
//! outcome.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::value::RawValue;

use super::desk::{Desk, Wants};
use super::mailbox::{Mailbox, Next, Outcome, Question, Said};
use crate::mcp::rpc::{INTERNAL_ERROR, Id, Message, Object, RpcError};

/// What the way to a server is told of a call's arguments, where its tool says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) name: String,
    pub(super) value: String,
}

/// What a connection goes over.
pub(super) trait Wire: Send + Sync + 'static {
    /// Sends a message. What comes of it is heard by the desk.
    ///
    /// # Errors
    ///
    /// Why it was not sent: then the connection is over.
    fn send(&self, message: Message, labels: Vec<Label>) -> BoxFuture<'_, Result<(), String>>;

    /// Sends a message that nobody answers, without waiting.
    fn tell(&self, message: Message);

    /// Nobody waits for this request any more: says so to the server, without waiting.
    fn cancel(&self, request: u64);

    /// This request has its outcome: lets go what is still open for it, without waiting.
    fn let_go(&self, request: u64);

    /// Ends the connection, and waits until it has ended.
    fn end(&self) -> BoxFuture<'_, ()>;
}

/// A connection to one server.
#[derive(Clone)]
pub(super) struct Connection {
    wire: Arc<dyn Wire>,
    desk: Arc<Desk>,
}

impl Connection {
    pub(super) fn new(wire: Arc<dyn Wire>, desk: Arc<Desk>) -> Self {
        Self { wire, desk }
    }

    /// Makes a request. `params` are given the number that the request has, which its progress token may be.
    pub(super) async fn request(
        &self,
        method: &str,
        wants: Wants,
        labels: Vec<Label>,
        params: impl FnOnce(u64) -> Object,
    ) -> Exchange {
        let (id, mailbox) = self.desk.open(wants);
        // From here on whoever drops it takes it back.
        let exchange = Exchange {
            connection: self.clone(),
            id,
            mailbox,
            open: Mutex::default(),
        };
        let message = Message::Request {
            id: Id::number(id),
            method: method.to_owned(),
            params: params(id),
        };
        if let Err(why) = self.wire.send(message, labels).await {
            self.desk.lost(&why);
        }
        exchange
    }

    /// A request of our own, whose answer is all that matters.
    ///
    /// # Errors
    ///
    /// [`Unanswered`].
    pub(super) async fn ask(
        &self,
        method: &str,
        params: Object,
        patience: Duration,
    ) -> Result<Box<RawValue>, Unanswered> {
        let asked = async {
            let exchange = self
                .request(method, Wants::default(), Vec::new(), |_| params)
                .await;
            loop {
                match exchange.next().await {
                    Next::Said(_) => {}
                    Next::Over(Outcome::Answered(answer)) => {
                        return answer.map_err(Unanswered::Refused);
                    }
                    Next::Over(Outcome::Lost(why)) => return Err(Unanswered::Lost(why)),
                    Next::Over(Outcome::Barred(why)) => return Err(Unanswered::Barred(why)),
                }
            }
        };
        let answered = tokio::time::timeout(patience, asked).await;
        answered.unwrap_or(Err(Unanswered::Silent(patience)))
    }

    /// Says something that nobody answers.
    pub(super) async fn notify(&self, method: &str) {
        let message = Message::Notification {
            method: method.to_owned(),
            params: Object::default(),
        };
        if let Err(why) = self.wire.send(message, Vec::new()).await {
            self.desk.lost(&why);
        }
    }

    /// Whether nothing comes over it any more.
    pub(super) fn is_over(&self) -> bool {
        self.desk.is_over()
    }

    /// Waits while it is in doubt whether the server hears. Whether it does.
    pub(super) async fn hears(&self) -> bool {
        self.desk.hears().await
    }

    /// Done when nothing comes over it any more.
    pub(super) async fn ended(&self) {
        self.desk.ended().await;
    }

    /// Ends it, and waits until it has ended.
    pub(super) async fn end(&self) {
        self.wire.end().await;
    }
}

/// What a server is told of a request that nobody waits for any more.
pub(super) fn cancelled(request: u64) -> Message {
    let mut params = Object::default();
    params.put("requestId", &request);
    params.put("reason", "the caller no longer waits");
    Message::Notification {
        method: "notifications/cancelled".into(),
        params,
    }
}

/// Why a request of our own has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    /// The server said so.
    #[error("the server refuses: {0}")]
    Refused(RpcError),
    /// It did not answer in time.
    #[error("the server said nothing for {} s", .0.as_secs())]
    Silent(Duration),
    /// It is gone.
    #[error("{0}")]
    Lost(String),
    /// Somebody has to log in first: what to do.
    #[error("{0}")]
    Barred(String),
}

/// A request that was made. Dropping it before its outcome cancels it.
pub(super) struct Exchange {
    connection: Connection,
    id: u64,
    mailbox: Arc<Mailbox>,
    /// What the server asked and nobody has answered yet.
    open: Mutex<Vec<Id>>,
}

impl Exchange {
    /// What comes next, in order; the outcome is the last.
    pub(super) async fn next(&self) -> Next {
        self.noted(self.mailbox.next().await)
    }

    /// What has come already.
    pub(super) fn now(&self) -> Option<Next> {
        self.mailbox.now().map(|next| self.noted(next))
    }

    fn noted(&self, next: Next) -> Next {
        if let Next::Said(Said::Question(question)) = &next {
            self.open().push(question.id.clone());
        }
        next
    }

    fn open(&self) -> MutexGuard<'_, Vec<Id>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers what the server asked.
    pub(super) async fn answer(
        &self,
        question: &Question,
        answer: Result<Box<RawValue>, RpcError>,
    ) {
        self.open().retain(|open| *open != question.id);
        let message = Message::answer(question.id.clone(), answer);
        if let Err(why) = self.connection.wire.send(message, Vec::new()).await {
            self.connection.desk.lost(&why);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        match self.connection.desk.close(self.id) {
            true => self.connection.wire.cancel(self.id),
            false => self.connection.wire.let_go(self.id),
        }
        for id in std::mem::take(&mut *self.open()) {
            let nobody = RpcError::new(INTERNAL_ERROR, "nobody answers this any more");
            self.connection.wire.tell(Message::answer(id, Err(nobody)));
        }
        let dropped = self.mailbox.dropped();
        if dropped > 0 {
            tracing::warn!(
                dropped,
                "notifications came faster than they could go on, and were dropped"
            );
        }
    }
}
