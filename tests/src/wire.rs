//! The wire by hand: POST and WebSocket with nothing between a test and the bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use proto_spec::frame::{FRAME, Frame, Vouching};
use proto_spec::{Digest, Envelope};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as Part;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::{WebSocketStream, client_async};

/// Nothing in a test takes longer; a test that hangs fails instead.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How to reach a broker.
#[derive(Debug, Clone)]
pub struct Line {
    /// Where it listens.
    pub address: SocketAddr,
    /// TLS 1.3 with the lab's authority; no ALPN unless a test sets it.
    pub tls: Arc<ClientConfig>,
}

/// What a POST came back with.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The `FEM-Credential` header.
    pub credential: Option<String>,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// The body as an envelope.
    ///
    /// # Errors
    ///
    /// When it is not one.
    pub fn envelope(&self) -> Result<Envelope> {
        Ok(Envelope::parse(self.body.clone(), 1 << 24)?)
    }
}

impl Line {
    /// A line to `address` that trusts `authority`.
    ///
    /// # Errors
    ///
    /// When the authority is not a certificate.
    pub fn new(address: SocketAddr, authority: &CertificateDer<'static>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            address,
            tls: Arc::new(tls),
        })
    }

    /// A TLS connection.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        Ok(TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await?)
    }

    /// One POST on a connection of its own.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Result<Reply> {
        self.open().await?.post(path, body).await
    }

    /// A connection for one POST after the other.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub async fn open(&self) -> Result<Posting> {
        Posting::over(self.connect().await?).await
    }

    /// A WebSocket, with the channel that the client saw.
    ///
    /// # Errors
    ///
    /// When the upgrade is refused.
    pub async fn websocket(&self) -> Result<(Socket, Digest)> {
        let stream = self.connect().await?;
        let chain = stream
            .get_ref()
            .1
            .peer_certificates()
            .context("no certificate")?;
        let leaf = chain.first().context("no certificate")?;
        let channel = broker::tls::channel_of(leaf)?;
        let (socket, _) = client_async("wss://localhost/fem/ws", stream).await?;
        Ok((
            Socket {
                wire: Wire(socket),
                words: Vec::new(),
            },
            channel,
        ))
    }
}

/// A WebSocket's messages, whatever they are.
#[derive(Debug)]
pub struct Wire(WebSocketStream<TlsStream<TcpStream>>);

impl Wire {
    /// The messages of a connection.
    #[must_use]
    pub fn new(socket: WebSocketStream<TlsStream<TcpStream>>) -> Self {
        Self(socket)
    }

    /// Sends one message.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub async fn send(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        Ok(timeout(PATIENCE, self.0.send(Message::Binary(bytes.into()))).await??)
    }

    /// Sends the beginning of a message, and never its end.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub async fn begin(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        let part = Part::message(bytes.into(), OpCode::Data(Data::Binary), false);
        Ok(timeout(PATIENCE, self.0.send(Message::Frame(part))).await??)
    }

    /// The next message; nothing when the connection ended.
    ///
    /// # Errors
    ///
    /// When nothing comes.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let message = timeout(PATIENCE, self.0.next())
                .await
                .context("nothing was heard")?;
            match message {
                Some(Ok(message)) if message.is_ping() || message.is_pong() => {}
                Some(Ok(message)) if message.is_binary() || message.is_text() => {
                    return Ok(Some(message.into_data()));
                }
                _ => return Ok(None),
            }
        }
    }
}

/// One WebSocket connection of an agent.
#[derive(Debug)]
pub struct Socket {
    wire: Wire,
    words: Vec<(Digest, Bytes)>,
}

/// What a broker sent.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a test holds one at a time")]
pub enum Heard {
    /// Its own words.
    Said(Envelope),
    /// Another agent's, with the broker's credential for it.
    Delivered {
        /// As it was signed.
        envelope: Envelope,
        /// The broker's word for its sender.
        credential: Envelope,
    },
    /// The connection ended.
    Closed,
}

impl Heard {
    /// The broker's own words.
    ///
    /// # Errors
    ///
    /// When it was something else.
    pub fn said(self) -> Result<Envelope> {
        match self {
            Self::Said(envelope) => Ok(envelope),
            other => bail!("expected the broker's own words, heard {other:?}"),
        }
    }

    /// What another agent signed.
    ///
    /// # Errors
    ///
    /// When it was something else.
    pub fn delivered(self) -> Result<Envelope> {
        match self {
            Self::Delivered { envelope, .. } => Ok(envelope),
            other => bail!("expected a delivery, heard {other:?}"),
        }
    }
}

impl Socket {
    /// The bare WebSocket, for benches that count messages.
    #[must_use]
    pub fn into_inner(self) -> WebSocketStream<TlsStream<TcpStream>> {
        self.wire.0
    }

    /// Sends one message.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub async fn send(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        self.wire.send(bytes).await
    }

    /// Sends several messages in one go.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub async fn send_together(&mut self, messages: impl IntoIterator<Item = Bytes>) -> Result<()> {
        for message in messages {
            timeout(PATIENCE, self.wire.0.feed(Message::Binary(message))).await??;
        }
        Ok(timeout(PATIENCE, self.wire.0.flush()).await??)
    }

    /// The next thing that is delivered; the broker's own words are passed over.
    ///
    /// # Errors
    ///
    /// When nothing comes, or the connection ends.
    pub async fn delivery(&mut self) -> Result<Envelope> {
        loop {
            match self.hear().await? {
                Heard::Delivered { envelope, .. } => return Ok(envelope),
                Heard::Said(_) => {}
                Heard::Closed => bail!("the connection ended"),
            }
        }
    }

    /// The next thing that the broker says or delivers.
    ///
    /// # Errors
    ///
    /// When nothing comes, or it is not of the protocol.
    pub async fn hear(&mut self) -> Result<Heard> {
        let Some(bytes) = self.wire.next().await? else {
            return Ok(Heard::Closed);
        };
        if bytes.first() != Some(&FRAME) {
            return Ok(Heard::Said(Envelope::parse(bytes, 1 << 24)?));
        }
        let frame = Frame::decode(bytes)?;
        let word = match frame.vouching {
            Vouching::Full(word) => {
                let id = Digest::of(&Envelope::parse(word.clone(), 1 << 24)?.signed_bytes());
                self.words.push((id, word.clone()));
                word
            }
            Vouching::Known(id) => {
                let known = self.words.iter().find(|(known, _)| *known == id);
                known
                    .context("a credential this connection has not carried")?
                    .1
                    .clone()
            }
        };
        Ok(Heard::Delivered {
            envelope: Envelope::parse(frame.envelope, 1 << 24)?,
            credential: Envelope::parse(word, 1 << 24)?,
        })
    }
}

/// A connection for one POST after the other.
#[derive(Debug)]
pub struct Posting {
    client: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    driver: tokio::task::JoinHandle<()>,
}

impl Posting {
    /// A connection to who speaks plain HTTP.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub async fn plain(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Self::over(stream).await
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Self> {
        let (client, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { client, driver })
    }

    /// One POST.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> Result<Reply> {
        let request = Request::post(path)
            .header("host", "localhost")
            .body(Full::new(body.into()))?;
        let reply = self.ask(request).await?;
        let header = reply.headers().get("fem-credential");
        let credential = header
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        Ok(Reply {
            status: reply.status().as_u16(),
            credential,
            body: reply.into_body(),
        })
    }

    /// One request, and its whole answer.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub async fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>> {
        timeout(PATIENCE, self.client.ready()).await??;
        let reply = timeout(PATIENCE, self.client.send_request(request)).await??;
        let (head, body) = reply.into_parts();
        let body = timeout(PATIENCE, body.collect()).await??.to_bytes();
        Ok(Response::from_parts(head, body))
    }
}

impl Drop for Posting {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
