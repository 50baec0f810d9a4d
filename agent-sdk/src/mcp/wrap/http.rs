//! A server that is reached by Streamable HTTP: a request is a POST of its own, and what the server says of it
//! comes back with the answer, or before it on one stream.
//!
//! Plain HTTP goes to this machine only; everything else is TLS 1.3. A legacy server may give a session, which every
//! later request names, and say on a stream of its own what is about no request. A session that the server no
//! longer knows is a connection that is over. A legacy server's stream that breaks off before its answer goes on where the
//! server said how (`id`); elsewhere the call is lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use ::http::{Method, Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use proto_spec::limits::ENVELOPE_BYTES;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::connection::{Connection, Label, Wire, cancelled};
use super::desk::Desk;
use super::hear::{Heard, hear};
use super::site::{Site, Unsent};
use super::sse::Events;
use crate::link::backoff::Backoff;
use crate::mcp::MODERN;
use crate::mcp::rpc::{INTERNAL_ERROR, Message, Object, RpcError};

/// Bytes of one message.
const MESSAGE_BYTES_MAX: usize = ENVELOPE_BYTES + (64 << 10);
/// Bytes of a refusal that is no message.
const REFUSAL_BYTES_MAX: usize = 4 << 10;
/// How long what nobody waits for may take: a notification, an answer, the end of a session.
const ASIDE_PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing else is asked of a legacy server that has not answered whether it has a stream of its own.
const LISTEN_PATIENCE: Duration = Duration::from_secs(2);
/// How often in a row a stream that broke off is asked for without an event that comes of it.
const RESUMED_MAX: usize = 5;
/// No stream is asked for again sooner.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Messages of our own that are on their way without anybody waiting.
const ASIDE_MAX: usize = 64;

const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");
const LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");
const EVENTS: &str = "text/event-stream";
const STREAM: HeaderValue = HeaderValue::from_static(EVENTS);

impl Site {
    pub(super) fn connect(&self, desk: Arc<Desk>) -> Connection {
        let line = Arc::new(Line {
            site: self.clone(),
            desk: Arc::clone(&desk),
            greeting: Mutex::default(),
            under_way: Mutex::default(),
        });
        Connection::new(Arc::new(Http { line }), desk)
    }
}

/// What the connection holds.
struct Http {
    line: Arc<Line>,
}

/// One connection, in the sense of MCP: over as many of TCP as it takes.
struct Line {
    site: Site,
    desk: Arc<Desk>,
    greeting: Mutex<Greeting>,
    under_way: Mutex<UnderWay>,
}

/// How a legacy server was greeted.
#[derive(Default)]
struct Greeting {
    is_legacy: bool,
    version: Option<HeaderValue>,
    session: Option<HeaderValue>,
}

#[derive(Default)]
struct UnderWay {
    requests: HashMap<u64, AbortHandle>,
    aside: Vec<AbortHandle>,
    over: bool,
}

/// How asking for a stream went.
enum Went {
    /// It was heard until it ended: how.
    Heard(String),
    /// There was no connection: why.
    Unreachable(String),
    /// The server has no such stream.
    Nowhere,
}

impl Wire for Http {
    fn send(&self, message: Message, labels: Vec<Label>) -> BoxFuture<'_, Result<(), String>> {
        let line = Arc::clone(&self.line);
        Box::pin(async move {
            match &message {
                Message::Request { id, method, .. } => {
                    let id: u64 = id
                        .as_json()
                        .parse()
                        .map_err(|_| "an id of ours is a number")?;
                    if method == "initialize" {
                        line.greeting().is_legacy = true;
                    }
                    line.begin(id, message, labels);
                    Ok(())
                }
                Message::Notification { method, .. } => {
                    let is_greeted = method == "notifications/initialized";
                    line.aside(message).await?;
                    if is_greeted {
                        let heard = line.listen();
                        // What it asks before somebody listens there is lost.
                        let _ = tokio::time::timeout(LISTEN_PATIENCE, heard).await;
                    }
                    Ok(())
                }
                Message::Response { .. } => line.aside(message).await,
            }
        })
    }

    fn cancel(&self, request: u64) {
        // To a server of 2026-07-28 closing the stream is the word for it.
        self.let_go(request);
        if self.line.greeting().is_legacy {
            self.tell(cancelled(request));
        }
    }

    fn let_go(&self, request: u64) {
        // An answer may come on another stream than the request's own, which the server may keep open without end.
        if let Some(task) = self.line.under_way().requests.remove(&request) {
            task.abort();
        }
    }

    fn tell(&self, message: Message) {
        self.line.tell(message);
    }

    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.line.close("the connection was ended");
            let session = self.line.greeting().session.take();
            if let Some(session) = session {
                let said = self.line.say_goodbye(session);
                let _ = tokio::time::timeout(super::ASK_PATIENCE, said).await;
            }
        })
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.line.close("the connection was ended");
        let session = self.line.greeting().session.take();
        let (line, runtime) = (
            Arc::clone(&self.line),
            tokio::runtime::Handle::try_current(),
        );
        if let (Some(session), Ok(runtime)) = (session, runtime) {
            runtime.spawn(async move {
                let said = line.say_goodbye(session);
                let _ = tokio::time::timeout(ASIDE_PATIENCE, said).await;
            });
        }
    }
}

impl Line {
    /// Makes a request in a task of its own, which has the desk hear what comes of it.
    fn begin(self: &Arc<Self>, id: u64, message: Message, labels: Vec<Label>) {
        let mut under_way = self.under_way();
        if under_way.over {
            return;
        }
        let line = Arc::clone(self);
        let task = tokio::spawn(async move {
            match line.request(id, &message, &labels).await {
                Ok(()) => {}
                Err(Unsent::LoginNeeded(why)) => line.desk.bar(id, &why),
                Err(Unsent::Lost(why)) => line.desk.abandon(id, &why),
            }
            line.under_way().requests.remove(&id);
        });
        under_way.requests.insert(id, task.abort_handle());
    }

    /// Sends what has no answer, without anybody waiting.
    fn tell(self: &Arc<Self>, message: Message) {
        let line = Arc::clone(self);
        self.keep(async move {
            if let Err(why) = line.aside(message).await {
                tracing::debug!(%why, "an MCP server was not told something");
            }
        });
    }

    /// Runs a task that nobody waits for, if there are not too many.
    fn keep(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut under_way = self.under_way();
        under_way.aside.retain(|task| !task.is_finished());
        if !under_way.over && under_way.aside.len() < ASIDE_MAX {
            under_way.aside.push(tokio::spawn(task).abort_handle());
        }
    }

    fn close(&self, why: &str) {
        let mut under_way = self.under_way();
        under_way.over = true;
        for (_, task) in under_way.requests.drain() {
            task.abort();
        }
        for task in under_way.aside.drain(..) {
            task.abort();
        }
        drop(under_way);
        self.desk.lost(why);
    }

    /// Makes a request, and has the desk hear what comes of it, to its answer.
    async fn request(
        self: &Arc<Self>,
        id: u64,
        message: &Message,
        labels: &[Label],
    ) -> Result<(), Unsent> {
        let mut request = self.site.request(Method::POST, message.line())?;
        self.dress(&mut request, message, labels)?;
        let (response, sender) = self.site.send(request).await?;
        let status = response.status();
        let kind = response.headers().get(CONTENT_TYPE).cloned();
        let kind = kind
            .as_ref()
            .and_then(|kind| kind.to_str().ok())
            .unwrap_or_default();
        if let Message::Request { method, .. } = message
            && method == "initialize"
        {
            self.greeting().session = response.headers().get(SESSION).cloned();
        }
        if kind.starts_with(EVENTS) && status.is_success() {
            let heard = self.hear_to_the_answer(response.into_body(), id);
            return Ok(heard.await?);
        }
        let most = if status.is_success() {
            MESSAGE_BYTES_MAX
        } else {
            MESSAGE_BYTES_MAX.min(1 << 20)
        };
        let body = Limited::new(response.into_body(), most).collect().await;
        let body = body
            .map_err(|why| format!("the server's answer broke off: {why}"))?
            .to_bytes();
        self.site.keep(sender);
        match hear(&body) {
            Heard::Message(answer @ Message::Response { .. }) => {
                let is_its = matches!(&answer, Message::Response { id: Some(own), .. } if own.as_json() == id.to_string());
                match (is_its, answer) {
                    (true, answer) => {
                        self.hear(answer, body.len(), Some(id));
                    }
                    // An error may be about what could not be read.
                    (
                        false,
                        Message::Response {
                            outcome: Err(why), ..
                        },
                    ) => self.desk.spoilt(id, why),
                    (false, _) => {
                        return Err("the server answered another request".to_owned().into());
                    }
                }
                Ok(())
            }
            Heard::Spoilt(_, why) => {
                self.desk.spoilt(id, why);
                Ok(())
            }
            _ => Ok(self.refused(id, status, &body)?),
        }
    }

    /// What a status says that comes without a message.
    fn refused(&self, id: u64, status: StatusCode, body: &[u8]) -> Result<(), String> {
        if status == StatusCode::NOT_FOUND && self.greeting().session.is_some() {
            self.close("the server no longer knows the session");
            return Ok(());
        }
        let shown: String = String::from_utf8_lossy(&body[..body.len().min(REFUSAL_BYTES_MAX)])
            .chars()
            .take(200)
            .collect();
        let why = format!("the server answered {status}: {}", shown.escape_debug());
        self.desk.spoilt(id, RpcError::new(INTERNAL_ERROR, why));
        Ok(())
    }

    /// Has the desk hear a message; of a legacy server's greeting, which revision it speaks.
    fn hear(&self, message: Message, bytes: usize, about: Option<u64>) -> Option<Message> {
        let mut greeting = self.greeting();
        if greeting.is_legacy
            && greeting.version.is_none()
            && let Message::Response {
                outcome: Ok(result),
                ..
            } = &message
            && let Ok(result) = Object::parse(result.get())
            && let Some(version) = result.read::<String>("protocolVersion")
        {
            greeting.version = HeaderValue::from_str(&version).ok();
        }
        drop(greeting);
        self.desk.heard(message, bytes, about)
    }

    /// Has the desk hear a request's stream to its answer, over as many connections as that takes.
    async fn hear_to_the_answer(self: &Arc<Self>, body: Incoming, id: u64) -> Result<(), String> {
        let mut events = Events::default();
        let mut why = self.hear_events(body, &mut events, Some(id)).await?;
        let (mut in_vain, mut backoff) = (0, Backoff::default());
        while self.desk.waits_for(id) {
            let goes_on = self.greeting().is_legacy && in_vain < RESUMED_MAX;
            let Some(last) = events.last().filter(|_| goes_on).cloned() else {
                return Err(why);
            };
            pause(&events, &mut backoff).await;
            match self.hear_on(&mut events, Some(id), None).await? {
                Went::Heard(ended) | Went::Unreachable(ended) => why = ended,
                Went::Nowhere => return Err(why),
            }
            in_vain += 1;
            if events.last() != Some(&last) {
                (in_vain, backoff) = (0, Backoff::default());
            }
        }
        Ok(())
    }

    /// Has the desk hear what a legacy server says on a stream of its own, or where one goes on that broke off: how
    /// that went. `open` is dropped when it is heard, or is not there.
    async fn hear_on(
        self: &Arc<Self>,
        events: &mut Events,
        about: Option<u64>,
        open: Option<oneshot::Sender<()>>,
    ) -> Result<Went, String> {
        let mut request = self.site.request(Method::GET, String::new())?;
        self.name(&mut request);
        request.headers_mut().insert(ACCEPT, STREAM);
        events.begin_again();
        if let Some(last) = events.last() {
            request.headers_mut().insert(LAST_EVENT, last.clone());
        }
        let (response, _sender) = match self.site.send(request).await {
            Ok(answered) => answered,
            Err(why) => return Ok(Went::Unreachable(why.to_string())),
        };
        drop(open);
        if !response.status().is_success() {
            return Ok(Went::Nowhere);
        }
        let ended = self.hear_events(response.into_body(), events, about);
        ended.await.map(Went::Heard)
    }

    /// Has the desk hear each event, to the answer if it is `about` a request: how the stream ended.
    ///
    /// # Errors
    ///
    /// Where what comes is too much.
    async fn hear_events(
        self: &Arc<Self>,
        mut body: Incoming,
        events: &mut Events,
        about: Option<u64>,
    ) -> Result<String, String> {
        while let Some(frame) = body.frame().await {
            let frame = match frame {
                Ok(frame) => frame,
                Err(why) => return Ok(format!("the server's stream broke off: {why}")),
            };
            let Some(bytes) = frame.data_ref() else {
                continue;
            };
            for event in events.take(bytes, MESSAGE_BYTES_MAX)? {
                let answer = match hear(&event) {
                    Heard::Message(message) => self.hear(message, event.len(), about),
                    Heard::Spoilt(id, why) => {
                        self.desk.spoilt(id, why);
                        None
                    }
                    Heard::Junk(_) => None,
                };
                if let Some(answer) = answer {
                    self.tell(answer);
                }
            }
            if about.is_some_and(|id| !self.desk.waits_for(id)) {
                break;
            }
        }
        Ok("the server's stream ended before its answer".into())
    }

    /// Sends what has no answer.
    async fn aside(&self, message: Message) -> Result<(), String> {
        let mut request = self.site.request(Method::POST, message.line())?;
        self.dress(&mut request, &message, &[])?;
        let sent = async {
            let sent = self.site.send(request).await;
            let (response, sender) = sent.map_err(|why| why.to_string())?;
            let status = response.status();
            let body = Limited::new(response.into_body(), 1 << 20).collect().await;
            if body.is_ok() {
                self.site.keep(sender);
            }
            match status == StatusCode::NOT_FOUND && self.greeting().session.is_some() {
                true => Err("the server no longer knows the session".to_owned()),
                false => Ok(()),
            }
        };
        let sent = tokio::time::timeout(ASIDE_PATIENCE, sent).await;
        sent.unwrap_or_else(|_| Err("the server takes no messages".into()))
    }

    /// Listens to what a legacy server says about no request, where it says that. Done when somebody does, or
    /// nobody can.
    fn listen(self: &Arc<Self>) -> impl Future<Output = ()> + use<> {
        let line = Arc::clone(self);
        let (listening, heard) = oneshot::channel();
        let mut listening = Some(listening);
        self.keep(async move {
            let (mut events, mut backoff) = (Events::default(), Backoff::default());
            loop {
                let why = match line.hear_on(&mut events, None, listening.take()).await {
                    Ok(Went::Heard(why)) => {
                        backoff.reset();
                        why
                    }
                    Ok(Went::Unreachable(why)) => why,
                    Ok(Went::Nowhere) => return,
                    Err(why) => {
                        tracing::warn!(%why, "the MCP server's own stream is no longer heard");
                        return;
                    }
                };
                tracing::debug!(%why, "the MCP server's own stream broke off");
                pause(&events, &mut backoff).await;
            }
        });
        heard.map(drop)
    }

    async fn say_goodbye(&self, session: HeaderValue) -> Result<(), String> {
        let mut request = self.site.request(Method::DELETE, String::new())?;
        self.name(&mut request);
        request.headers_mut().insert(SESSION, session);
        let sent = self.site.send(request).await;
        sent.map(drop).map_err(|why| why.to_string())
    }

    /// Says in headers what a message is.
    fn dress(
        &self,
        request: &mut Request<Full<Bytes>>,
        message: &Message,
        labels: &[Label],
    ) -> Result<(), String> {
        self.name(request);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(ACCEPT, BOTH);
        if self.greeting().is_legacy {
            return Ok(());
        }
        let (Message::Request { method, params, .. } | Message::Notification { method, params }) =
            message
        else {
            return Ok(());
        };
        headers.insert("mcp-method", header(method)?);
        let named = match method.as_str() {
            "tools/call" | "prompts/get" => "name",
            "resources/read" => "uri",
            "tasks/get" | "tasks/update" | "tasks/cancel" => "taskId",
            _ => "",
        };
        if let Some(name) = params.read::<String>(named) {
            headers.insert("mcp-name", header(&name)?);
        }
        for Label { name, value } in labels {
            let name = HeaderName::try_from(format!("mcp-param-{name}"));
            headers.insert(name.map_err(|why| why.to_string())?, header(value)?);
        }
        Ok(())
    }

    /// Names the revision and the session.
    fn name(&self, request: &mut Request<Full<Bytes>>) {
        let greeting = self.greeting();
        let headers = request.headers_mut();
        match (&greeting.version, greeting.is_legacy) {
            (Some(version), _) => {
                headers.insert(VERSION, version.clone());
            }
            (None, false) => {
                headers.insert(VERSION, HeaderValue::from_static(MODERN));
            }
            (None, true) => {}
        }
        if let Some(session) = &greeting.session {
            headers.insert(SESSION, session.clone());
        }
    }

    fn greeting(&self) -> MutexGuard<'_, Greeting> {
        // Nothing that can panic runs under these locks.
        self.greeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Before a stream goes on: at least as long as the server wants, and longer with every attempt in vain.
async fn pause(events: &Events, backoff: &mut Backoff) {
    let own = backoff.failed(getrandom::u64().unwrap_or(u64::MAX));
    tokio::time::sleep(events.retry() + own + PAUSE_MIN).await;
}

/// A text as a header's value: as it is where that can be, else in base64 with the marks that MCP has for it.
fn header(text: &str) -> Result<HeaderValue, String> {
    let is_plain = text.bytes().all(|b| (0x20..=0x7e).contains(&b))
        && text.trim_matches([' ', '\t']) == text
        && !(text.starts_with("=?base64?") && text.ends_with("?="));
    let value = match is_plain {
        true => text.to_owned(),
        false => format!("=?base64?{}?=", STANDARD.encode(text)),
    };
    HeaderValue::try_from(value).map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::mcp::wrap::desk::{House, Wants};
    use crate::mcp::wrap::mailbox::{Next, Outcome};

    /// A server's side of a request, whose answer is a stream that says `events` and stays open.
    async fn stream(server: &TcpListener, events: &str) -> TcpStream {
        let (mut tcp, _) = server.accept().await.unwrap();
        let mut read = vec![0; 16 << 10];
        // The body comes with the head or after it, and is there before the answer is.
        while !read.windows(9).any(|part| part == b"\"jsonrpc\"") {
            let at = read.iter().position(|byte| *byte == 0).unwrap();
            assert_ne!(tcp.read(&mut read[at..]).await.unwrap(), 0);
        }
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-type: {EVENTS}\r\n\r\n{events}");
        tcp.write_all(answer.as_bytes()).await.unwrap();
        tcp
    }

    async fn is_closed(mut tcp: TcpStream) {
        let mut rest = Vec::new();
        let closed = tcp.read_to_end(&mut rest);
        let closed = tokio::time::timeout(Duration::from_secs(30), closed).await;
        assert!(closed.is_ok(), "it is kept open");
    }

    #[tokio::test]
    async fn a_stream_that_stays_open_after_its_answer_came_is_let_go() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/mcp", server.local_addr().unwrap());
        let roots = crate::mcp::roots(None).unwrap();
        let site = Site::new(address.parse().unwrap(), Vec::new(), None, &roots).unwrap();
        let connection = site.connect(Arc::new(Desk::new(House::default())));
        let ask = async || {
            let asked =
                connection.request("x", Wants::default(), Vec::new(), |_| Object::default());
            asked.await
        };
        let first = ask().await;
        let silent = stream(&server, ": no answer here\n\n").await;
        let second = ask().await;
        let both = r#"data: {"jsonrpc":"2.0","id":1,"result":{}}

data: {"jsonrpc":"2.0","id":2,"result":{}}

"#;
        let both = stream(&server, both).await;
        for exchange in [first, second] {
            let next = exchange.next().await;
            assert!(
                matches!(next, Next::Over(Outcome::Answered(Ok(_)))),
                "{next:?}"
            );
        }
        is_closed(both).await;
        is_closed(silent).await;
    }

    #[test]
    fn what_no_header_can_say_is_said_in_base64() {
        for (text, expected) in [
            ("read_file", "read_file"),
            ("a b", "a b"),
            (" a", "=?base64?IGE=?="),
            ("é", "=?base64?w6k=?="),
            ("a\r\nx: y", "=?base64?YQ0KeDogeQ==?="),
            ("=?base64?x?=", "=?base64?PT9iYXNlNjQ/eD89?="),
        ] {
            assert_eq!(header(text).unwrap(), expected, "{text:?}");
        }
    }
}
