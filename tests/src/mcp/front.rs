//! Stands between those who speak plain HTTP on loopback and those who speak TLS 1.3 with a token.
//!
//! [`Front::to_broker`] is for programs that can neither bring a token nor trust a private authority, as
//! the conformance suite; [`Front::before`] is the same turned around: TLS and a token before a plain
//! server, for clients that are to show that they can. Either passes bodies piece by piece as they come,
//! both ways at once, and whoever goes on one side is gone on the other.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::certs;
use crate::wire::Line;

/// Connections at once; whoever comes then waits.
const CONNECTIONS_MAX: usize = 64;

/// Headers that are about one connection, so that they end where it ends.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

type Body = BoxBody<Bytes, hyper::Error>;

/// A listener on loopback that passes on all it hears. It ends, with all its connections, when dropped.
#[derive(Debug)]
pub struct Front {
    /// Where it listens.
    pub address: SocketAddr,
    scheme: &'static str,
    task: JoinHandle<()>,
}

/// Where it passes things on to, and what it changes on the way.
#[derive(Debug)]
struct Way {
    to: To,
    /// Comes before each path.
    prefix: String,
    token: Token,
    /// How those before us name us, and how those behind us are named.
    ours: Vec<String>,
    theirs: String,
}

#[derive(Debug)]
enum To {
    Broker(Line),
    Plain(SocketAddr),
}

/// The bearer token; what comes as one from before us ends with us either way.
#[derive(Debug)]
enum Token {
    /// Put into each request.
    Brought(HeaderValue),
    /// Asked of each request, and not passed on.
    Asked(HeaderValue),
}

impl Front {
    /// Plain HTTP for the broker at `line`: each path gets `prefix` before it, each request the token.
    ///
    /// # Errors
    ///
    /// When there is no port, or the token cannot stand in a header.
    pub async fn to_broker(line: Line, prefix: &str, token: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let way = Way {
            prefix: prefix.to_owned(),
            token: Token::Brought(bearer(token)?),
            ours: names("http", listener.local_addr()?),
            theirs: format!("https://localhost:{}", line.address.port()),
            to: To::Broker(line),
        };
        Self::open(listener, None, way)
    }

    /// TLS 1.3 before a plain server, for whoever trusts `ca.pem`, which it writes to `folder`, and brings
    /// the token; others are answered 401.
    ///
    /// # Errors
    ///
    /// When there is no port, the folder cannot be written, or the token cannot stand in a header.
    pub async fn before(server: SocketAddr, folder: &Path, token: &str) -> Result<Self> {
        certs::write(folder)?;
        let certificate = CertificateDer::from_pem_file(folder.join("cert.pem"))?;
        let key = PrivateKeyDer::from_pem_file(folder.join("key.pem"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let way = Way {
            prefix: String::new(),
            token: Token::Asked(bearer(token)?),
            ours: names("https", listener.local_addr()?),
            theirs: format!("http://{server}"),
            to: To::Plain(server),
        };
        Self::open(listener, Some(TlsAcceptor::from(Arc::new(tls))), way)
    }

    fn open(listener: TcpListener, tls: Option<TlsAcceptor>, way: Way) -> Result<Self> {
        Ok(Self {
            address: listener.local_addr()?,
            scheme: if tls.is_some() { "https" } else { "http" },
            task: tokio::spawn(accept(listener, tls, Arc::new(way))),
        })
    }

    /// The URL of a path. The name is `localhost` where there is a certificate, which says so too.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        let port = self.address.port();
        match self.scheme {
            "https" => format!("https://localhost:{port}{path}"),
            _ => format!("http://127.0.0.1:{port}{path}"),
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn bearer(token: &str) -> Result<HeaderValue> {
    HeaderValue::try_from(format!("Bearer {token}")).context("no token for a header")
}

/// What an `Origin` may call this listener.
fn names(scheme: &str, address: SocketAddr) -> Vec<String> {
    let port = address.port();
    ["127.0.0.1", "localhost"]
        .map(|host| format!("{scheme}://{host}:{port}"))
        .into()
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, way: Arc<Way>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Aborted with this task.
    let mut connections = JoinSet::new();
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        let (tls, way) = (tls.clone(), Arc::clone(&way));
        connections.spawn(async move {
            // Who fails at TLS or goes in the middle is the test's to notice.
            let _ = match tls {
                Some(tls) => match wrapped(tls, stream).await {
                    Ok(stream) => serve(stream, way).await,
                    Err(error) => Err(error),
                },
                None => match stream.set_nodelay(true) {
                    Ok(()) => serve(stream, way).await,
                    Err(error) => Err(error.into()),
                },
            };
            drop(place);
        });
    }
}

async fn wrapped(
    tls: TlsAcceptor,
    stream: TcpStream,
) -> Result<tokio_rustls::server::TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    Ok(tls.accept(stream).await?)
}

/// One connection, which has one behind us: it is opened when it is needed, and closed with this one.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, way: Arc<Way>) -> Result<()> {
    let behind = Behind {
        way,
        sender: Mutex::new(None),
        connections: Mutex::new(JoinSet::new()),
    };
    let behind = &behind;
    let service = service_fn(|request| async move {
        let response = behind.pass(request).await;
        anyhow::Ok(
            response.unwrap_or_else(|error| said(StatusCode::BAD_GATEWAY, &format!("{error:#}"))),
        )
    });
    Ok(hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await?)
}

struct Behind {
    way: Arc<Way>,
    sender: Mutex<Option<SendRequest<Incoming>>>,
    /// What drives it; aborted when this is dropped.
    connections: Mutex<JoinSet<()>>,
}

impl Behind {
    async fn pass(&self, mut request: Request<Incoming>) -> Result<Response<Body>> {
        let brought = request.headers_mut().remove(header::AUTHORIZATION);
        if matches!(&self.way.token, Token::Asked(asked) if brought.as_ref() != Some(asked)) {
            let mut refused = said(StatusCode::UNAUTHORIZED, "no token of ours");
            let how = HeaderValue::from_static("Bearer");
            refused.headers_mut().insert(header::WWW_AUTHENTICATE, how);
            return Ok(refused);
        }
        self.way.redirect(&mut request)?;
        // One request at a time comes on a connection, so nobody waits here for long.
        let mut sender = self.sender.lock().await;
        let ready = match sender.as_mut() {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !ready {
            *sender = Some(self.connect().await?);
        }
        let sender = sender.as_mut().context("connected")?;
        let mut response = sender.send_request(request).await?;
        strip(response.headers_mut());
        Ok(response.map(|body| body.boxed()))
    }

    async fn connect(&self) -> Result<SendRequest<Incoming>> {
        match &self.way.to {
            To::Broker(line) => self.over(line.connect().await?).await,
            To::Plain(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                self.over(stream).await
            }
        }
    }

    async fn over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<SendRequest<Incoming>> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut connections = self.connections.lock().await;
        while connections.try_join_next().is_some() {}
        connections.spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}

impl Way {
    /// Makes it a request to those behind us. Who names somebody else as `Host` or `Origin` than us is
    /// passed on as he is, so that those behind us can be seen to refuse him.
    fn redirect(&self, request: &mut Request<Incoming>) -> Result<()> {
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", PathAndQuery::as_str);
        let path = match path {
            "/" if !self.prefix.is_empty() => self.prefix.clone(),
            path => format!("{}{path}", self.prefix),
        };
        *request.uri_mut() = Uri::try_from(path)?;
        let headers = request.headers_mut();
        strip(headers);
        let authority = |origin: &str| origin.split("://").nth(1).unwrap_or_default().to_owned();
        let hosts: Vec<String> = self.ours.iter().map(|origin| authority(origin)).collect();
        rename(headers, header::HOST, &hosts, &authority(&self.theirs))?;
        rename(headers, header::ORIGIN, &self.ours, &self.theirs)?;
        if let Token::Brought(token) = &self.token {
            headers.insert(header::AUTHORIZATION, token.clone());
        }
        Ok(())
    }
}

/// Where the header names one of `ours`, it names `theirs` then.
fn rename(headers: &mut HeaderMap, name: HeaderName, ours: &[String], theirs: &str) -> Result<()> {
    let is_ours = |value: &HeaderValue| ours.iter().any(|one| value.as_bytes() == one.as_bytes());
    if headers.get(&name).is_some_and(is_ours) {
        headers.insert(name, HeaderValue::from_str(theirs)?);
    }
    Ok(())
}

/// Takes out what is about one connection: by RFC 9110 §7.6.1 also what `Connection` names.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let keep_alive = HeaderName::from_static("keep-alive");
    for name in named.iter().chain(&HOP_BY_HOP).chain([&keep_alive]) {
        headers.remove(name);
    }
}

fn said(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}
