//! A gateway over a pair of streams: one client, one message a line.
//!
//! Both eras are spoken on one pair, as they come: a request that says of itself in which revision it is stands
//! for itself, `initialize` begins the one session that there is. Lines out are written by whoever else
//! may wait for them, so a client that does not read is not read either.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use futures_util::future::{AbortHandle, Abortable, BoxFuture};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::sync::mpsc;

use super::answering::{Answering, Said};
use super::era::{Client, VERSION_KEY};
use super::fault::Fault;
use super::guest::{Asked, Guest};
use super::memory::{Memory, Running};
use super::{Gateway, Scope, Shared, initialize};
use crate::mcp::rpc::{INVALID_REQUEST, Id, Message, Object};

/// Lines that wait to be written.
const WAITING_MAX: usize = 64;

impl Gateway {
    /// Serves one client until it closes its side; what is under way then may finish within
    /// [`Bounds::drain`](super::Bounds::drain). Nothing but messages is written to `output`.
    ///
    /// # Errors
    ///
    /// Where `input` cannot be read or `output` cannot be written.
    pub async fn stdio(
        &self,
        input: impl AsyncRead + Unpin + Send,
        output: impl AsyncWrite + Unpin + Send,
        upstream: Shared,
        scope: Scope,
    ) -> io::Result<()> {
        let (said, lines) = mpsc::channel(WAITING_MAX);
        let now = self.0.clock.now();
        let conversation = Conversation {
            gateway: self,
            upstream,
            scope,
            memory: Memory::new(now, now.later(self.0.bounds.session)),
            session: None,
            is_listening: false,
            under_way: FuturesUnordered::new(),
            modern: HashMap::new(),
            listening: HashSet::new(),
            said,
        };
        let (read, written) = tokio::join!(conversation.hold(input), write(output, lines));
        read.and(written)
    }
}

/// All that is under way with one client.
struct Conversation<'a> {
    gateway: &'a Gateway,
    upstream: Shared,
    scope: Scope,
    memory: Arc<Memory>,
    /// Who the client said that it is, once it began a session.
    session: Option<Client>,
    is_listening: bool,
    /// Each gives its id when it is over.
    under_way: FuturesUnordered<BoxFuture<'static, Id>>,
    /// Modern requests, which a client may cancel too.
    modern: HashMap<Id, AbortHandle>,
    /// Those among them that end only by being cancelled.
    listening: HashSet<Id>,
    said: mpsc::Sender<Message>,
}

impl Conversation<'_> {
    async fn hold(mut self, input: impl AsyncRead + Unpin + Send) -> io::Result<()> {
        let most = self.gateway.0.bounds.message_bytes;
        let mut input = BufReader::new(input);
        let mut line = Vec::new();
        loop {
            // Reading may be broken off and goes on where it was: what was read is in `line`.
            tokio::select! {
                read = next_line(&mut input, &mut line, most) => match read? {
                    Line::Whole => {
                        self.take(&line).await;
                        line.clear();
                    }
                    Line::TooLong => {
                        line.clear();
                        let why = format!("a message has {most} bytes at most");
                        self.answer(None, Fault::new(INVALID_REQUEST, why)).await;
                    }
                    Line::End => break,
                },
                Some(id) = self.under_way.next() => {
                    self.modern.remove(&id);
                    self.listening.remove(&id);
                }
                () = self.said.closed() => return Ok(()),
            }
        }
        self.drain().await;
        Ok(())
    }

    /// Has what is under way finish; whoever listens does so no longer.
    async fn drain(&mut self) {
        let clock = &self.gateway.0.clock;
        self.memory.end_listening();
        for id in self.listening.drain() {
            if let Some(abort) = self.modern.remove(&id) {
                abort.abort();
            }
        }
        let all = async { while self.under_way.next().await.is_some() {} };
        tokio::select! {
            () = all => {}
            () = clock.sleep(self.gateway.0.bounds.drain) => {}
        }
    }

    async fn answer(&mut self, id: Option<Id>, fault: Fault) {
        let _ = self
            .said
            .send(Message::Response {
                id,
                outcome: Err(fault.error),
            })
            .await;
    }

    async fn take(&mut self, line: &[u8]) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        match Message::parse(line) {
            Err(why) => self.answer(None, why.into()).await,
            Ok(Message::Response { id, outcome }) => {
                if let Some(id) = id {
                    self.memory.answered(&id, outcome);
                }
            }
            Ok(Message::Notification { method, params }) => self.heard(&method, &params),
            Ok(Message::Request { id, method, params }) => {
                let asked = Asked {
                    id: id.clone(),
                    method,
                    params,
                    headers: None,
                };
                if let Err(fault) = self.begin(asked).await {
                    self.answer(Some(id), fault).await;
                }
            }
        }
    }

    fn heard(&mut self, method: &str, params: &Object) {
        match method {
            "notifications/initialized" => self.listen(),
            "notifications/cancelled" => {
                if let Some(id) = params.read::<Id>("requestId") {
                    self.memory.cancel(&id);
                    if let Some(abort) = self.modern.remove(&id) {
                        abort.abort();
                    }
                }
            }
            _ => {}
        }
    }

    async fn begin(&mut self, asked: Asked) -> Result<(), Fault> {
        let says = asked
            .params
            .object("_meta")
            .is_some_and(|meta| meta.has(VERSION_KEY));
        if self.modern.contains_key(&asked.id) {
            return Err(Fault::new(
                INVALID_REQUEST,
                "a request with this id is under way",
            ));
        }
        match &self.session {
            _ if says => self.begin_modern(asked),
            _ if asked.method == "initialize" => self.initialize(asked).await,
            Some(client) => {
                let client = client.clone();
                self.begin_legacy(asked, client)
            }
            None => {
                // Tells a modern client what it forgot; a legacy one has to begin.
                let fault = Client::of_request(&asked.params).err();
                Err(fault.unwrap_or_else(|| Fault::no_method(&asked.method)))
            }
        }
    }

    fn begin_modern(&mut self, asked: Asked) -> Result<(), Fault> {
        let client = Client::of_request(&asked.params)?;
        let (abort, registration) = AbortHandle::new_pair();
        let listens = asked.method == "subscriptions/listen";
        let places = match listens {
            true => &self.gateway.0.streams,
            false => &self.gateway.0.requests,
        };
        let place = places.take_for(&*self.upstream)?;
        let guest = self.guest(client);
        let id = asked.id.clone();
        let answering = Answering::new(None, Some(place), |voice| async move {
            Some(guest.answer(&asked, &voice).await)
        });
        self.modern.insert(id.clone(), abort);
        if listens {
            self.listening.insert(id.clone());
        }
        let told = Abortable::new(tell(answering, id.clone(), self.said.clone()), registration);
        self.under_way.push(told.map(|_| id).boxed());
        Ok(())
    }

    async fn initialize(&mut self, asked: Asked) -> Result<(), Fault> {
        let session = initialize::session(&asked.params)?;
        let guest = self.guest(session.client.clone());
        let told = initialize::result(&guest, &session.version).await?;
        self.session = Some(session.client);
        let _ = self
            .said
            .send(Message::answer(asked.id, Ok(told.raw())))
            .await;
        Ok(())
    }

    fn begin_legacy(&mut self, asked: Asked, client: Client) -> Result<(), Fault> {
        let place = self.gateway.0.requests.take_for(&*self.upstream)?;
        let (abort, registration) = AbortHandle::new_pair();
        let running: Running = self.memory.started(&asked.id, abort)?;
        let guest = self.guest(client);
        let id = asked.id.clone();
        let memory = Arc::clone(&self.memory);
        let answering = Answering::new(Some(memory), Some(place), |voice| async move {
            Some(guest.answer(&asked, &voice).await)
        });
        let told = Abortable::new(tell(answering, id.clone(), self.said.clone()), registration);
        let told = told.map(|_| {
            drop(running);
            id
        });
        self.under_way.push(told.boxed());
        Ok(())
    }

    /// Tells a legacy client of changes from now on.
    fn listen(&mut self) {
        let Some(client) = self.session.clone().filter(|_| !self.is_listening) else {
            return;
        };
        self.is_listening = true;
        let guest = self.guest(client);
        let memory = Arc::clone(&self.memory);
        let answering = Answering::new(Some(Arc::clone(&memory)), None, |voice| async move {
            tokio::select! {
                _ = guest.hear_all(&voice, memory.watched()) => None,
                () = memory.over() => None,
            }
        });
        // It is no request and has no id: an id that no client can have sent.
        let none = Id::number(u64::MAX);
        self.under_way.push(
            tell(answering, none.clone(), self.said.clone())
                .map(|()| none)
                .boxed(),
        );
    }

    fn guest(&self, client: Client) -> Guest {
        Guest {
            upstream: Arc::clone(&self.upstream),
            scope: self.scope.clone(),
            client,
            bounds: self.gateway.0.bounds,
            clock: Arc::clone(&self.gateway.0.clock),
        }
    }
}

/// Writes all that comes of a request.
async fn tell(mut answering: Answering, id: Id, said: mpsc::Sender<Message>) {
    while let Some(next) = answering.next().await {
        let message = match next {
            Said::Message(message) => message,
            Said::Answer(answer) => {
                Message::answer(id.clone(), answer.map_err(|fault| fault.error))
            }
        };
        if said.send(message).await.is_err() {
            return;
        }
    }
}

async fn write(
    mut output: impl AsyncWrite + Unpin,
    mut lines: mpsc::Receiver<Message>,
) -> io::Result<()> {
    while let Some(message) = lines.recv().await {
        let mut line = message.line();
        line.push('\n');
        output.write_all(line.as_bytes()).await?;
        if lines.is_empty() {
            output.flush().await?;
        }
    }
    Ok(())
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// A line, without its end.
    Whole,
    /// A line that has more than it may; it was passed over.
    TooLong,
    /// There is no more. What stood there without an end is no line.
    End,
}

/// Reads on until a line is whole. It may be given up at any time, and goes on where it was: `line` keeps what
/// of a line was read, one byte more than `most` where it is too long.
async fn next_line(
    input: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
    most: usize,
) -> io::Result<Line> {
    loop {
        let read = input.fill_buf().await?;
        if read.is_empty() {
            return Ok(Line::End);
        }
        let end = read.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(read.len());
        let room = (most + 1).saturating_sub(line.len());
        line.extend(read.iter().take(taken.min(room)));
        input.consume(end.map_or(taken, |end| end + 1));
        if end.is_some() {
            return Ok(match line.len() > most {
                true => Line::TooLong,
                false => Line::Whole,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_that_never_ends_takes_no_more_room_than_a_line_may() {
        let long = [&b"x".repeat(100)[..], b"\nab\n\nc"].concat();
        let mut input = BufReader::with_capacity(7, &long[..]);
        let mut line = Vec::new();
        let mut read = Vec::new();
        loop {
            let next = next_line(&mut input, &mut line, 10).await.unwrap();
            assert!(line.capacity() < 64);
            if next == Line::End {
                break;
            }
            read.push((next, std::mem::take(&mut line).len()));
        }
        assert_eq!(
            read,
            [(Line::TooLong, 11), (Line::Whole, 2), (Line::Whole, 0)]
        );
    }
}
