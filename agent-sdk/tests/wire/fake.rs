//! A broker for tests: real TLS, real envelopes, and as dishonest as a test wants.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_sdk::proto_spec::frame::{Frame, Vouching};
use agent_sdk::proto_spec::limits::ENVELOPE_BYTES_MAX;
use agent_sdk::proto_spec::message::{
    Attach, Basis, Challenge, Credential, CredentialPermit, OfferTools, WellKnown,
};
use agent_sdk::proto_spec::refusal::ErrorBody;
use agent_sdk::proto_spec::{Draft, Envelope, Refusal, Sealed, SigningKey, Speaker};
use agent_sdk::{
    Ack, AgentId, Audience, Builder, Code, Config, Digest, Key, Kind, PublicKey, Timestamp,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// No test waits longer than this for anything: a hang becomes a failure.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what} did not happen"),
    }
}

pub(crate) fn now() -> Timestamp {
    use agent_sdk::Clock as _;
    agent_sdk::SystemClock.now()
}

/// Somebody with a key: an agent of `acme`, or its broker.
pub(crate) struct Person {
    pub(crate) speaker: Speaker,
    pub(crate) key: SigningKey,
}

static NONCES: AtomicU64 = AtomicU64::new(0);

impl Person {
    pub(crate) fn new(name: &str, seed: u8) -> Self {
        Self {
            speaker: name.parse().unwrap(),
            key: SigningKey::from_seed(&[seed; 32]),
        }
    }

    pub(crate) fn id(&self) -> AgentId {
        self.speaker.agent().unwrap().clone()
    }

    pub(crate) fn to(&self) -> Audience {
        self.speaker.clone().into()
    }

    pub(crate) fn say(
        &self,
        kind: Kind,
        to: &Audience,
        re: Option<Digest>,
        body: &(impl Serialize + ?Sized),
    ) -> Sealed {
        self.say_at(now(), kind, Some(to), re, None, body)
    }

    /// What an older agent answered, in the words of a broker that is this one; `via` which bridge.
    pub(crate) fn bridged(&self, to: &Audience, re: Digest, via: Option<&str>) -> Sealed {
        let nonce = format!("{:032}", NONCES.fetch_add(1, Ordering::Relaxed));
        Draft {
            kind: Kind::ToolResult,
            agent: &self.speaker,
            to: Some(to),
            ts: now(),
            nonce: &nonce,
            re: Some(re),
            token: None,
            deadline: None,
            via,
            body: &json(r#"{"result":7}"#),
        }
        .seal(&self.key)
        .unwrap()
    }

    pub(crate) fn say_at(
        &self,
        ts: Timestamp,
        kind: Kind,
        to: Option<&Audience>,
        re: Option<Digest>,
        token: Option<&str>,
        body: &(impl Serialize + ?Sized),
    ) -> Sealed {
        let nonce = format!("{:032}", NONCES.fetch_add(1, Ordering::Relaxed));
        Draft {
            kind,
            agent: &self.speaker,
            to,
            ts,
            nonce: &nonce,
            re,
            token,
            deadline: None,
            via: None,
            body,
        }
        .seal(&self.key)
        .unwrap()
    }
}

/// A `toolCall` body.
pub(crate) fn asking(tool: &str, arguments: &str) -> Box<RawValue> {
    RawValue::from_string(format!(r#"{{"tool":"{tool}","arguments":{arguments}}}"#)).unwrap()
}

pub(crate) fn json(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

pub(crate) struct FakeBroker {
    pub(crate) voice: Arc<Person>,
    pub(crate) roots: Vec<PublicKey>,
    pub(crate) channel: Digest,
    ca_pem: String,
    port: u16,
    sockets: mpsc::Receiver<Socket>,
    posts: mpsc::Receiver<Post>,
    /// What its `/.well-known/fem` says.
    pub(crate) shown: Arc<Mutex<WellKnown>>,
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// A request that waits for its answer.
pub(crate) struct Post {
    pub(crate) envelope: Envelope,
    pub(crate) answer: oneshot::Sender<http::Response<Full<Bytes>>>,
}

impl Post {
    pub(crate) fn id(&self) -> Digest {
        Digest::of(&self.envelope.signed_bytes())
    }

    pub(crate) fn from(&self) -> Audience {
        self.envelope.speaker().clone().into()
    }

    pub(crate) fn answer(self, status: u16, credential: Option<&Sealed>, body: Bytes) {
        let mut response = http::Response::builder().status(status);
        if let Some(credential) = credential {
            response = response.header("FEM-Credential", URL_SAFE_NO_PAD.encode(&credential.bytes));
        }
        // An agent that no longer waits has dropped the other end.
        let _ = self.answer.send(response.body(Full::new(body)).unwrap());
    }
}

/// What the server speaks over TLS.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Alpn {
    Http2,
    Http1,
}

impl FakeBroker {
    pub(crate) async fn start() -> Self {
        Self::speaking(Alpn::Http2).await
    }

    pub(crate) async fn speaking(alpn: Alpn) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let parsed = rustls::server::ParsedCertificate::try_from(certificate.der()).unwrap();
        let channel = Digest::of(&parsed.subject_public_key_info());
        let private = PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private.into())
            .unwrap();
        if alpn == Alpn::Http2 {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (socket, sockets) = mpsc::channel(16);
        let (post, posts) = mpsc::channel(16);
        let voice = Arc::new(Person::new("broker@acme", 1));
        let shown = Arc::new(Mutex::new(WellKnown {
            org: "acme".parse().unwrap(),
            key: voice.key.public(),
            versions: vec![1],
            post: "/fem".into(),
            websocket: "/fem/ws".into(),
            envelope_bytes_max: 1 << 20,
            clock_skew_max_ms: 300_000,
            now: now(),
            successions: Vec::new(),
        }));
        let (tls, well_known) = (TlsAcceptor::from(Arc::new(config)), Arc::clone(&shown));
        tokio::spawn(accept(listener, tls, alpn, socket, post, well_known));
        Self {
            voice,
            shown,
            roots: vec![SigningKey::from_seed(&[2; 32]).public()],
            channel,
            ca_pem: certificate.pem(),
            port,
            sockets,
            posts,
        }
    }

    pub(crate) fn config(&self, agent: &str, seed: u8) -> Builder {
        Config::builder()
            .agent(agent)
            .key(Key::from_seed(&[seed; 32]))
            .broker(format!("https://127.0.0.1:{}", self.port))
            .broker_key(self.voice.key.public().to_string())
            .ca_pem(self.ca_pem.clone())
    }

    pub(crate) fn agent(&self, name: &str, seed: u8) -> agent_sdk::Agent {
        agent_sdk::Agent::new(self.config(name, seed).build().unwrap()).unwrap()
    }

    pub(crate) async fn post(&mut self) -> Post {
        soon("a POST", self.posts.recv()).await.unwrap()
    }

    pub(crate) fn has_post(&mut self) -> bool {
        self.posts.try_recv().is_ok()
    }

    pub(crate) fn has_connection(&mut self) -> bool {
        self.sockets.try_recv().is_ok()
    }

    /// The next connection, before anything was said on it.
    pub(crate) async fn connection(&mut self) -> Peer {
        let socket = soon("a connection", self.sockets.recv()).await.unwrap();
        Peer {
            socket,
            broker: Arc::clone(&self.voice),
            agent: None,
        }
    }

    /// The next connection, attached.
    pub(crate) async fn attached(&mut self) -> Peer {
        let mut peer = self.connection().await;
        let (attach, body) = peer.challenged().await;
        assert_eq!(
            body.channel, self.channel,
            "the agent names the server's own key"
        );
        peer.ack(&attach, &self.welcome()).await;
        peer
    }

    pub(crate) fn welcome(&self) -> Ack {
        Ack::Attached {
            roots: self.roots.clone(),
            envelope_bytes_max: 1 << 20,
            clock_skew_max_ms: 300_000,
            prefixes: vec![],
            successions: vec![],
        }
    }

    /// The next connection, attached, and its offer taken.
    pub(crate) async fn serving(&mut self) -> Peer {
        let mut peer = self.attached().await;
        let offer = peer.receive().await;
        assert_eq!(offer.kind(), Kind::OfferTools);
        let tools = offer.read_body::<OfferTools>().unwrap().tools.len() as u64;
        peer.ack(&offer, &Ack::Offered { tools }).await;
        peer
    }

    pub(crate) fn credential(&self, to: &Audience, credential: &Credential) -> Sealed {
        self.voice.say(Kind::Credential, to, None, credential)
    }
}

/// That `subject` speaks under its key, for five minutes.
pub(crate) fn credential_of(subject: &Person) -> Credential {
    Credential {
        subject: subject.id(),
        key: subject.key.public(),
        expires: now().later(Duration::from_secs(300)),
        permit: None,
    }
}

/// … and may call `tool` of `provider`, by what is on record.
pub(crate) fn permit_for(subject: &Person, provider: &AgentId, tool: &str) -> Credential {
    let permit = CredentialPermit {
        provider: provider.clone(),
        tool: tool.parse().unwrap(),
        capability: tool.parse().unwrap(),
        basis: Basis::Record,
        trust: None,
        grant: None,
        sandbox: None,
        older: false,
    };
    Credential {
        permit: Some(permit),
        ..credential_of(subject)
    }
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    alpn: Alpn,
    sockets: mpsc::Sender<Socket>,
    posts: mpsc::Sender<Post>,
    shown: Arc<Mutex<WellKnown>>,
) {
    loop {
        let Ok((tcp, _)) = listener.accept().await else {
            return;
        };
        let (tls, sockets, posts) = (tls.clone(), sockets.clone(), posts.clone());
        let shown = Arc::clone(&shown);
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(tcp).await else {
                return;
            };
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let take = hyper::service::service_fn(move |request| {
                answered(posts.clone(), Arc::clone(&shown), request)
            });
            if is_http2 {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), take).await;
            } else if alpn == Alpn::Http1 {
                let server = hyper::server::conn::http1::Builder::new();
                let _ = server.serve_connection(TokioIo::new(stream), take).await;
            } else if let Ok(socket) = tokio_tungstenite::accept_async(stream).await {
                let _ = sockets.send(socket).await;
            }
        });
    }
}

/// A post that the test drops unanswered breaks its connection off.
async fn answered(
    posts: mpsc::Sender<Post>,
    shown: Arc<Mutex<WellKnown>>,
    request: http::Request<hyper::body::Incoming>,
) -> Result<http::Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    if request.method() == http::Method::GET {
        assert_eq!(request.uri().path(), "/.well-known/fem");
        let body = serde_json::to_vec(&*shown.lock().unwrap())?;
        return Ok(http::Response::new(Full::new(body.into())));
    }
    assert_eq!(request.uri().path(), "/fem");
    let bytes = request.into_body().collect().await?.to_bytes();
    let envelope = Envelope::parse(bytes, ENVELOPE_BYTES_MAX).unwrap();
    let (answer, answered) = oneshot::channel();
    posts.send(Post { envelope, answer }).await?;
    Ok(answered.await?)
}

/// The broker's end of one connection.
pub(crate) struct Peer {
    socket: Socket,
    broker: Arc<Person>,
    agent: Option<Audience>,
}

impl Peer {
    pub(crate) async fn challenged(&mut self) -> (Envelope, Attach) {
        self.challenged_by(&Person::new("broker@acme", 1)).await
    }

    pub(crate) async fn challenged_by(&mut self, voice: &Person) -> (Envelope, Attach) {
        self.challenge(voice).await;
        let attach = self.receive().await;
        let body: Attach = attach.read_body().unwrap();
        assert_eq!(
            (attach.kind(), body.challenge),
            (Kind::Attach, Digest([9; 32]))
        );
        self.agent = Some(attach.speaker().clone().into());
        (attach, body)
    }

    pub(crate) async fn challenge(&mut self, voice: &Person) {
        let body = Challenge {
            challenge: Digest([9; 32]),
        };
        self.send(
            voice
                .say_at(now(), Kind::Challenge, None, None, None, &body)
                .bytes,
        )
        .await;
    }

    pub(crate) fn agent(&self) -> &Audience {
        self.agent.as_ref().unwrap()
    }

    pub(crate) async fn send(&mut self, bytes: Bytes) {
        self.socket.send(Message::Binary(bytes)).await.unwrap();
    }

    /// The agent's next envelope.
    pub(crate) async fn receive(&mut self) -> Envelope {
        soon("an envelope", self.next())
            .await
            .expect("the agent closed the connection")
    }

    /// Done when the agent has closed the connection.
    pub(crate) async fn closed(&mut self) {
        while soon("the end of the connection", self.next())
            .await
            .is_some()
        {}
    }

    async fn next(&mut self) -> Option<Envelope> {
        loop {
            match self.socket.next().await?.ok()? {
                Message::Binary(bytes) => {
                    return Some(Envelope::parse(bytes, ENVELOPE_BYTES_MAX).unwrap());
                }
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }

    pub(crate) async fn ack(&mut self, to: &Envelope, ack: &Ack) {
        self.ack_at(now(), to, ack).await;
    }

    pub(crate) async fn ack_at(&mut self, ts: Timestamp, to: &Envelope, ack: &Ack) {
        self.word(ts, Kind::Ack, to, ack).await;
    }

    pub(crate) async fn refuse(&mut self, to: &Envelope, refusal: &Refusal) {
        self.word(now(), Kind::Error, to, &ErrorBody::from(refusal))
            .await;
    }

    async fn word(
        &mut self,
        ts: Timestamp,
        kind: Kind,
        to: &Envelope,
        body: &(impl Serialize + ?Sized),
    ) {
        let re = Some(Digest::of(&to.signed_bytes()));
        let sender = to.speaker().clone().into();
        let word = self.broker.say_at(ts, kind, Some(&sender), re, None, body);
        self.send(word.bytes).await;
    }

    /// Delivers `envelope`, vouching for its sender in full.
    pub(crate) async fn deliver(&mut self, credential: &Credential, envelope: &Sealed) {
        let word = self
            .broker
            .say(Kind::Credential, self.agent(), None, credential);
        self.frame(Vouching::Full(word.bytes), envelope.bytes.clone())
            .await;
    }

    pub(crate) async fn frame(&mut self, vouching: Vouching, envelope: Bytes) {
        self.send(Frame { vouching, envelope }.encode()).await;
    }

    /// A call of `caller`, permitted; returns the call's identity.
    pub(crate) async fn calls(&mut self, caller: &Person, tool: &str, arguments: &str) -> Digest {
        let provider = match self.agent() {
            Audience::Agent(agent) => agent.clone(),
            other => panic!("{other} serves nothing"),
        };
        let call = caller.say(Kind::ToolCall, self.agent(), None, &asking(tool, arguments));
        self.deliver(&permit_for(caller, &provider, tool), &call)
            .await;
        call.id
    }
}

/// What an answer says: its result, or its error's code.
pub(crate) fn said(answer: &Envelope) -> Result<String, String> {
    assert_eq!(answer.kind(), Kind::ToolResult);
    let body: serde_json::Value = serde_json::from_str(answer.body()).unwrap();
    match body.get("error") {
        Some(error) => Err(error["code"].as_str().unwrap().to_owned()),
        None => Ok(body["result"].to_string()),
    }
}

/// The signature is the agent's, under the key of this seed.
pub(crate) fn signed_by(envelope: &Envelope, seed: u8) -> bool {
    let key = SigningKey::from_seed(&[seed; 32]).public();
    key.verifies(&envelope.signed_bytes(), envelope.signature())
}

/// Parses for its code.
pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, agent_sdk::Error>) -> Option<Code> {
    result.unwrap_err().code()
}
