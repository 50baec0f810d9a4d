//! A server that is reached by Streamable HTTP: a request is a POST of its own, and what the server says of it
//! comes back with the answer, or before it on one stream.
//!
//! Plain HTTP goes to this machine only; everything else is TLS 1.3. A legacy server may give a session, which every
//! later request names, and say on a stream of its own what is about no request. A session that the server no
//! longer knows is a connection that is over. Nothing is resumed: a stream that breaks off before its answer leaves
//! the call lost.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::http::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use ::http::{Method, Request, Response, StatusCode, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use proto_spec::limits::ENVELOPE_BYTES;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use super::MODERN;
use super::connection::{Connection, Label, Wire, cancelled};
use super::desk::Desk;
use super::hear::{Heard, hear};
use super::sse::Events;
use crate::error::Error;
use crate::link::backoff::Backoff;
use crate::link::{Link, Protocols};
use crate::mcp::rpc::{INTERNAL_ERROR, Message, Object, RpcError};

/// Bytes of one message.
const MESSAGE_BYTES_MAX: usize = ENVELOPE_BYTES + (64 << 10);
/// Bytes of a refusal that is no message.
const REFUSAL_BYTES_MAX: usize = 4 << 10;
/// How long connecting may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long what nobody waits for may take: a notification, an answer, the end of a session.
const ASIDE_PATIENCE: Duration = Duration::from_secs(30);
/// Connections that wait to be used again, and how long.
const IDLE_MAX: usize = 16;
const IDLE_FOR: Duration = Duration::from_secs(10);
/// Messages of our own that are on their way without anybody waiting.
const ASIDE_MAX: usize = 64;

const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");
const STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");

/// Where a server is reached by HTTP, and what every request to it says.
#[derive(Clone)]
pub struct Site {
    inner: Arc<Inner>,
}

struct Inner {
    uri: Uri,
    authority: HeaderValue,
    way: Way,
    headers: Vec<(HeaderName, HeaderValue)>,
    idle: Mutex<Vec<(Instant, SendRequest<Full<Bytes>>)>>,
}

enum Way {
    Tls(Box<Link>),
    /// To this machine: its port.
    Plain(IpAddr, u16),
}

impl Site {
    /// A server at `url`, believed by `roots`, or by the system's where there are none. `headers` are said with
    /// every request, and never shown.
    ///
    /// # Errors
    ///
    /// Why it cannot be reached so: plain HTTP to another machine, no URL, no roots.
    pub fn new(
        url: &str,
        headers: Vec<(HeaderName, HeaderValue)>,
        roots: Option<Vec<CertificateDer<'static>>>,
    ) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|why| format!("{url:?}: {why}"))?;
        let authority = uri
            .authority()
            .ok_or_else(|| format!("{url:?} names no server"))?;
        if authority.as_str().contains('@') {
            return Err("a URL holds no secrets: give them with --header".into());
        }
        let way = match uri.scheme_str() {
            Some("https") => {
                let endpoint = format!("https://{authority}").parse()?;
                let roots = match roots {
                    Some(roots) => roots,
                    None => system_roots()?,
                };
                let link = Link::new(endpoint, &roots, CONNECT_PATIENCE);
                Way::Tls(Box::new(link.map_err(|why| why.to_string())?))
            }
            Some("http") => {
                let host = authority.host();
                let address = match host.trim_start_matches('[').trim_end_matches(']') {
                    "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
                    other => other.parse().ok(),
                };
                let address = address.filter(IpAddr::is_loopback).ok_or_else(|| {
                    format!("{url:?}: plain HTTP goes to this machine only; use https")
                })?;
                Way::Plain(address, authority.port_u16().unwrap_or(80))
            }
            _ => return Err(format!("{url:?} begins with neither https:// nor http://")),
        };
        let inner = Inner {
            authority: HeaderValue::from_str(authority.as_str()).map_err(|why| why.to_string())?,
            way,
            headers,
            idle: Mutex::default(),
            uri,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    pub(super) fn connect(&self, desk: Arc<Desk>) -> Connection {
        let line = Arc::new(Line {
            site: Arc::clone(&self.inner),
            desk: Arc::clone(&desk),
            greeting: Mutex::default(),
            under_way: Mutex::default(),
        });
        Connection::new(Arc::new(Http { line }), desk)
    }
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Site({})", self.inner.uri)
    }
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>, String> {
    let loaded = rustls_native_certs::load_native_certs();
    // Some of a system's may be none that rustls understands.
    let usable =
        |root: &CertificateDer<'static>| rustls::RootCertStore::empty().add(root.clone()).is_ok();
    let roots: Vec<_> = loaded.certs.into_iter().filter(usable).collect();
    match roots.is_empty() {
        true => Err("this system has no certificate authorities: name one with --ca".into()),
        false => Ok(roots),
    }
}

/// What the connection holds.
struct Http {
    line: Arc<Line>,
}

/// One connection, in the sense of MCP: over as many of TCP as it takes.
struct Line {
    site: Arc<Inner>,
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
                        line.listen();
                    }
                    Ok(())
                }
                Message::Response { .. } => line.aside(message).await,
            }
        })
    }

    fn cancel(&self, request: u64) {
        let mut under_way = self.line.under_way();
        if let Some(task) = under_way.requests.remove(&request) {
            // To a server of 2026-07-28 closing the stream is the word for it.
            task.abort();
        }
        drop(under_way);
        if self.line.greeting().is_legacy {
            self.tell(cancelled(request));
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
            if let Err(why) = line.request(id, &message, &labels).await {
                line.desk.abandon(id, &why);
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
    ) -> Result<(), String> {
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
        if kind.starts_with("text/event-stream") && status.is_success() {
            self.hear_events(response.into_body(), Some(id)).await?;
            // After its answer nobody hears this any more.
            return Err("the server's stream ended before its answer".into());
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
                    (false, _) => return Err("the server answered another request".into()),
                }
                Ok(())
            }
            Heard::Spoilt(_, why) => {
                self.desk.spoilt(id, why);
                Ok(())
            }
            _ => self.refused(id, status, &body),
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

    /// Has the desk hear each event.
    async fn hear_events(
        self: &Arc<Self>,
        mut body: Incoming,
        about: Option<u64>,
    ) -> Result<(), String> {
        let mut events = Events::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|why| format!("the server's stream broke off: {why}"))?;
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
        }
        Ok(())
    }

    /// Sends what has no answer.
    async fn aside(&self, message: Message) -> Result<(), String> {
        let mut request = self.site.request(Method::POST, message.line())?;
        self.dress(&mut request, &message, &[])?;
        let sent = async {
            let (response, sender) = self.site.send(request).await?;
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

    /// Listens to what a legacy server says about no request, where it says that.
    fn listen(self: &Arc<Self>) {
        let line = Arc::clone(self);
        self.keep(async move {
            let mut backoff = Backoff::default();
            loop {
                match line.listen_once().await {
                    Ok(true) => backoff.reset(),
                    // It has no such stream.
                    Ok(false) => return,
                    Err(why) => tracing::debug!(%why, "the MCP server's own stream broke off"),
                }
                let wait = backoff.failed(getrandom::u64().unwrap_or(u64::MAX));
                tokio::time::sleep(wait + Duration::from_millis(100)).await;
            }
        });
    }

    async fn listen_once(self: &Arc<Self>) -> Result<bool, String> {
        let mut request = self.site.request(Method::GET, String::new())?;
        self.name(&mut request);
        request.headers_mut().insert(ACCEPT, STREAM);
        let (response, _sender) = self.site.send(request).await?;
        if !response.status().is_success() {
            return Ok(false);
        }
        self.hear_events(response.into_body(), None)
            .await
            .map(|()| true)
    }

    async fn say_goodbye(&self, session: HeaderValue) -> Result<(), String> {
        let mut request = self.site.request(Method::DELETE, String::new())?;
        self.name(&mut request);
        request.headers_mut().insert(SESSION, session);
        self.site.send(request).await.map(drop)
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

impl Inner {
    fn request(&self, method: Method, body: String) -> Result<Request<Full<Bytes>>, String> {
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.authority.clone());
        let request = request.body(Full::new(Bytes::from(body)));
        let mut request = request.map_err(|why| why.to_string())?;
        for (name, value) in &self.headers {
            request.headers_mut().append(name, value.clone());
        }
        Ok(request)
    }

    /// Sends a request over a connection that is idle, or a new one.
    async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, SendRequest<Full<Bytes>>), String> {
        while let Some(mut sender) = self.idle() {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                // It was closed before any of it was written.
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(format!("the connection was lost: {}", failed.error())),
                },
            }
        }
        let mut sender = tokio::time::timeout(CONNECT_PATIENCE, self.dial())
            .await
            .unwrap_or_else(|_| Err("it cannot be reached in time".into()))?;
        let response = sender.send_request(request).await;
        let response = response.map_err(|why| format!("the connection was lost: {why}"))?;
        Ok((response, sender))
    }

    async fn dial(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        match &self.way {
            Way::Tls(link) => {
                let (stream, _) =
                    link.connect(Protocols::Http1)
                        .await
                        .map_err(|why| match why {
                            Error::Unreachable { why, .. } | Error::Tls { why, .. } => why,
                            other => other.to_string(),
                        })?;
                speak(TokioIo::new(stream)).await
            }
            Way::Plain(address, port) => {
                let stream = TcpStream::connect((*address, *port)).await;
                let stream = stream.map_err(|why| format!("it cannot be reached: {why}"))?;
                stream.set_nodelay(true).map_err(|why| why.to_string())?;
                speak(TokioIo::new(stream)).await
            }
        }
    }

    fn idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, sender)| since.elapsed() < IDLE_FOR && !sender.is_closed());
        let at = idle.iter().rposition(|(_, sender)| sender.is_ready())?;
        Some(idle.remove(at).1)
    }

    /// Keeps a connection whose answer was read.
    fn keep(&self, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && !sender.is_closed() {
            idle.push((Instant::now(), sender));
        }
    }
}

async fn speak<I>(io: I) -> Result<SendRequest<Full<Bytes>>, String>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(io).await.map_err(|why| why.to_string())?;
    // Ends by itself when its sender is dropped or the server closes.
    tokio::spawn(async move {
        if let Err(why) = connection.await {
            tracing::debug!(%why, "a connection to an MCP server ended");
        }
    });
    Ok(sender)
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
    use super::*;

    #[test]
    fn plain_http_goes_to_this_machine_only() {
        let site = |url: &str| Site::new(url, Vec::new(), Some(Vec::new()));
        for good in [
            "http://127.0.0.1:1/mcp",
            "http://localhost/mcp",
            "http://[::1]:9/",
            "https://x.example/mcp",
        ] {
            assert!(site(good).is_ok(), "{good}");
        }
        for bad in [
            "http://x.example/mcp",
            "http://10.0.0.1/",
            "ftp://localhost/",
            "/mcp",
            "https://a:b@x.example/",
        ] {
            assert!(site(bad).is_err(), "{bad}");
        }
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
