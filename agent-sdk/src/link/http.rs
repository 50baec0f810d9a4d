//! One envelope out, one back: `POST /fem`, over a shared HTTP/2 connection or an HTTP/1.1 one.

use std::future::Future;
use std::time::{Duration, Instant};

use ::http::header::{CONTENT_TYPE, HOST, HeaderValue};
use ::http::{Method, Request, Response, Version};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use proto_spec::limits::ENVELOPE_BYTES_MAX;
use tokio::sync::Mutex;

use super::Link;
use super::tls::Protocols;
use crate::error::{Error, Result};

/// Where a broker says about itself what anybody may know.
const WELL_KNOWN: &str = "/.well-known/fem";
/// Bytes of what it says there.
const WELL_KNOWN_BYTES_MAX: usize = 64 << 10;

/// Carries the broker's `credential` for the provider beside a provider's own answer.
pub(crate) const CREDENTIAL: &str = "fem-credential";

/// What came back.
pub(crate) struct Posted {
    /// The HTTP status; it says nothing that the envelope does not say signed.
    pub(crate) status: u16,
    /// The `FEM-Credential` header.
    pub(crate) credential: Option<String>,
    /// The body, bounded by the largest envelope.
    pub(crate) body: Bytes,
}

type Outgoing = Request<Full<Bytes>>;

/// A connection that has been idle for longer is not used again: it may be dead without anybody having
/// noticed, and what is sent over a dead connection has an unknown outcome.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// How often a broker that owes us an answer is asked for a sign of life, and how long it may take.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);

/// An HTTP/2 connection, for many requests at once.
struct Shared {
    sender: http2::SendRequest<Full<Bytes>>,
    used: Instant,
}

/// Posts envelopes, and keeps an HTTP/2 connection for the next.
#[derive(Default)]
pub(crate) struct Poster {
    shared: Mutex<Option<Shared>>,
}

impl Poster {
    /// Posts `envelope`. Dropping the future closes the request, which cancels a call.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`] and [`Error::Tls`] where nothing was sent; [`Error::OutcomeUnknown`]
    /// where something was and no answer came.
    pub(crate) async fn post(&self, link: &Link, envelope: Bytes) -> Result<Posted> {
        let response = match self.connection(link).await? {
            Connection::Shared(mut sender) => {
                let request = post(link, Version::HTTP_2, envelope)?;
                match sender.try_send_request(request).await {
                    Ok(response) => response,
                    Err(mut failed) => match failed.take_message() {
                        // The connection was gone before any of it was written: another one, once.
                        Some(request) => {
                            self.shared.lock().await.take();
                            self.once_more(link, request).await?
                        }
                        None => return Err(lost(failed.error())),
                    },
                }
            }
            Connection::Single(mut sender) => {
                let request = post(link, Version::HTTP_11, envelope)?;
                sender
                    .send_request(request)
                    .await
                    .map_err(|why| lost(&why))?
            }
        };
        read(response).await
    }

    async fn once_more(&self, link: &Link, mut request: Outgoing) -> Result<Response<Incoming>> {
        match self.connection(link).await? {
            Connection::Shared(mut sender) => sender.send_request(request).await,
            Connection::Single(mut sender) => {
                *request.version_mut() = Version::HTTP_11;
                sender.send_request(request).await
            }
        }
        .map_err(|why| lost(&why))
    }

    /// The shared connection if it lives, or a new one.
    async fn connection(&self, link: &Link) -> Result<Connection> {
        let mut shared = self.shared.lock().await;
        let fit = |it: &&mut Shared| !it.sender.is_closed() && it.used.elapsed() < IDLE_MAX;
        if let Some(shared) = shared.as_mut().filter(fit) {
            shared.used = Instant::now();
            return Ok(Connection::Shared(shared.sender.clone()));
        }
        let (stream, _) = link.connect(Protocols::Any).await?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(stream);
        if is_http2 {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(SIGN_OF_LIFE)
                .keep_alive_timeout(SIGN_OF_LIFE)
                .handshake(io)
                .await
                .map_err(|why| link.unreachable(why))?;
            drive(connection);
            *shared = Some(Shared {
                sender: sender.clone(),
                used: Instant::now(),
            });
            return Ok(Connection::Shared(sender));
        }
        let (sender, connection) = http1::handshake(io)
            .await
            .map_err(|why| link.unreachable(why))?;
        drive(connection);
        Ok(Connection::Single(sender))
    }
}

/// What the broker says about itself, over a connection of its own. Nothing in it is proven.
///
/// # Errors
///
/// Those of [`Poster::post`].
pub(crate) async fn well_known(link: &Link) -> Result<Bytes> {
    let response = match Poster::default().connection(link).await? {
        Connection::Shared(mut sender) => {
            let request = request(link, Version::HTTP_2, Method::GET, WELL_KNOWN, Bytes::new())?;
            sender.send_request(request).await
        }
        Connection::Single(mut sender) => {
            let request = request(
                link,
                Version::HTTP_11,
                Method::GET,
                WELL_KNOWN,
                Bytes::new(),
            )?;
            sender.send_request(request).await
        }
    };
    let body = response.map_err(|why| lost(&why))?.into_body();
    let body = Limited::new(body, WELL_KNOWN_BYTES_MAX).collect().await;
    Ok(body.map_err(broken_off)?.to_bytes())
}

enum Connection {
    Shared(http2::SendRequest<Full<Bytes>>),
    Single(http1::SendRequest<Full<Bytes>>),
}

/// Ends by itself when the last sender is dropped or the server closes.
fn drive(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(why) = connection.await {
            tracing::debug!(%why, "connection to the broker ended");
        }
    });
}

fn post(link: &Link, version: Version, envelope: Bytes) -> Result<Outgoing> {
    let mut request = request(link, version, Method::POST, "/fem", envelope)?;
    let json = HeaderValue::from_static("application/json");
    request.headers_mut().insert(CONTENT_TYPE, json);
    Ok(request)
}

fn request(
    link: &Link,
    version: Version,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Outgoing> {
    let authority = link.endpoint().authority();
    let uri = match version {
        Version::HTTP_2 => format!("https://{authority}{path}"),
        _ => path.to_owned(),
    };
    let mut request = Request::builder().method(method).version(version).uri(uri);
    if version != Version::HTTP_2 {
        request = request.header(HOST, authority);
    }
    request
        .body(Full::new(body))
        .map_err(|why| Error::Unsendable(why.to_string()))
}

async fn read(response: Response<Incoming>) -> Result<Posted> {
    let status = response.status().as_u16();
    let credential = response.headers().get(CREDENTIAL);
    let credential = credential
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let body = Limited::new(response.into_body(), ENVELOPE_BYTES_MAX)
        .collect()
        .await;
    let body = body.map_err(broken_off)?;
    Ok(Posted {
        status,
        credential,
        body: body.to_bytes(),
    })
}

fn broken_off(why: impl std::fmt::Display) -> Error {
    Error::OutcomeUnknown(format!("the answer broke off: {why}"))
}

fn lost(why: &hyper::Error) -> Error {
    Error::OutcomeUnknown(format!("the connection to the broker was lost ({why})"))
}
