//! A broker on loopback in this process, and agents whose keys a test holds in its hand.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail};
use broker::clock::Clock;
use broker::{Broker, Config, Founding, found};
use bytes::Bytes;
use proto_spec::message::{Ack, Attach, Challenge, OfferTools, RegisterAgent, Tool};
use proto_spec::{
    AgentId, Audience, Code, Digest, Draft, Envelope, Kind, Org, Pattern, PublicKey, Sealed,
    SigningKey, Speaker, Timestamp,
};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::certs;
use crate::wire::{Heard, Line, Reply, Socket};

/// When every lab begins: a time of its own, so that no test depends on today.
pub const START: Timestamp = Timestamp::from_ms(1_800_000_000_000);

/// The root key's seed, for tests that mint tokens themselves.
pub const ROOT_SEED: [u8; 32] = [0xa1; 32];
const BROKER_SEED: [u8; 32] = [0xb2; 32];

/// A broker of organisation `acme`, or another, with an admin called `root-admin`.
#[derive(Debug)]
pub struct Lab {
    /// The broker.
    pub broker: Broker,
    /// How to reach it.
    pub line: Line,
    /// Its first admin.
    pub admin: Actor,
    folder: TempDir,
}

/// An agent that signs by hand.
#[derive(Debug)]
pub struct Actor {
    /// Who it says it is.
    pub id: AgentId,
    /// Its key.
    pub key: SigningKey,
}

static NONCE: AtomicU64 = AtomicU64::new(0);

/// A nonce that no test has used.
pub fn nonce() -> String {
    format!("lab-nonce-{:012}", NONCE.fetch_add(1, Ordering::Relaxed))
}

/// The machine's time, for brokers that are processes of their own.
#[must_use]
pub fn wall_clock() -> Timestamp {
    Clock::machine().now()
}

/// The organisation of every lab.
///
/// # Errors
///
/// Never: it is a good name.
pub fn org() -> Result<Org> {
    Ok("acme".parse()?)
}

/// The audience of its broker.
///
/// # Errors
///
/// Never: it is a good name.
pub fn to_broker() -> Result<Audience> {
    Ok(Audience::Broker(org()?))
}

impl Actor {
    /// The agent `name@acme` with the key of a seed made of `seed`.
    ///
    /// # Errors
    ///
    /// When the name is not one.
    pub fn new(name: &str, seed: u8) -> Result<Self> {
        Self::of(&org()?, name, seed)
    }

    /// An agent of any organisation, with the key of a seed made of `seed`.
    ///
    /// # Errors
    ///
    /// When the name is not one.
    pub fn of(org: &Org, name: &str, seed: u8) -> Result<Self> {
        Ok(Self {
            id: AgentId::new(name.parse()?, org.clone()),
            key: SigningKey::from_seed(&[seed; 32]),
        })
    }

    /// The audience of its broker.
    #[must_use]
    pub fn broker(&self) -> Audience {
        Audience::Broker(self.id.org().clone())
    }

    /// Signs an envelope at the lab's time.
    ///
    /// # Errors
    ///
    /// When the body does not serialise.
    pub fn seal(
        &self,
        kind: Kind,
        to: &Audience,
        now: Timestamp,
        body: &impl Serialize,
    ) -> Result<Sealed> {
        self.seal_with(kind, to, now, body, &Extra::default())
    }

    /// Signs an envelope with more in its header.
    ///
    /// # Errors
    ///
    /// When the body does not serialise.
    pub fn seal_with(
        &self,
        kind: Kind,
        to: &Audience,
        now: Timestamp,
        body: &impl Serialize,
        extra: &Extra,
    ) -> Result<Sealed> {
        let nonce = extra.nonce.clone().unwrap_or_else(nonce);
        let draft = Draft {
            kind,
            agent: &Speaker::Agent(self.id.clone()),
            to: Some(to),
            ts: now,
            nonce: &nonce,
            re: extra.re,
            token: extra.token.as_deref(),
            deadline: extra.deadline,
            via: None,
            body,
        };
        Ok(draft.seal(&self.key)?)
    }

    /// Attaches a session at a broker whose clock says `now`.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub async fn attach(&self, line: &Line, now: Timestamp) -> Result<Socket> {
        let (mut socket, channel) = line.websocket().await?;
        let challenge: Challenge = socket.hear().await?.said()?.read_body()?;
        let body = Attach {
            challenge: challenge.challenge,
            channel,
        };
        let sealed = self.seal(Kind::Attach, &self.broker(), now, &body)?;
        socket.send(sealed.bytes).await?;
        let said = socket.hear().await?.said()?;
        if said.kind() != Kind::Ack {
            bail!("{}", said.body());
        }
        Ok(socket)
    }

    /// A signed `toolCall` to an agent of its own organisation, or to `name@org`.
    ///
    /// # Errors
    ///
    /// When the provider's name is not one.
    pub fn call(
        &self,
        provider: &str,
        tool: &str,
        arguments: &Value,
        now: Timestamp,
    ) -> Result<Sealed> {
        let to = match provider.contains('@') {
            true => provider.parse()?,
            false => AgentId::new(provider.parse()?, self.id.org().clone()).into(),
        };
        self.seal(
            Kind::ToolCall,
            &to,
            now,
            &json!({"tool": tool, "arguments": arguments}),
        )
    }
}

/// Header members that most envelopes do not have.
#[derive(Debug, Default, Clone)]
pub struct Extra {
    /// Instead of a fresh one.
    pub nonce: Option<String>,
    /// What it answers.
    pub re: Option<Digest>,
    /// A sealed token.
    pub token: Option<String>,
    /// Milliseconds.
    pub deadline: Option<u64>,
}

/// Writes an organisation's files into `folder`, and gives its configuration file's text.
///
/// # Errors
///
/// When the folder cannot be written.
pub fn organisation(folder: &Path, admin: &Actor, limits: &str) -> Result<String> {
    certs::write(folder)?;
    let org = admin.id.org();
    let (broker_seed, root_seed) = (seed_of(org, BROKER_SEED), seed_of(org, ROOT_SEED));
    let (broker, root) = (
        SigningKey::from_seed(&broker_seed),
        SigningKey::from_seed(&root_seed),
    );
    for (name, seed) in [("broker.pem", &broker_seed), ("root.pem", &root_seed)] {
        agent_sdk::Key::from_seed(seed).save(folder.join(name))?;
    }
    let founding = Founding {
        org: org.clone(),
        broker: broker.public(),
        root: root.public(),
        recovery: SigningKey::from_seed(&[0xc3; 32]).public(),
        admin: admin.id.name().clone(),
        admin_key: admin.key.public(),
    };
    // No later than today either: some brokers on these files run by the machine's clock.
    found(&folder.join("data"), &founding, START.min(wall_clock()))?;
    let text = format!(
        "org = \"{org}\"\nlisten = \"127.0.0.1:0\"\nops = \"127.0.0.1:0\"\ndata = \"data\"\n\
         [keys]\nbroker = \"broker.pem\"\nroot = \"root.pem\"\n\
         [tls]\ncertificate = \"cert.pem\"\nkey = \"key.pem\"\n\
         [limits]\nnonces_max = 65536\nnonces_per_sender_max = 65536\ndrain_ms = 0\n{limits}\n"
    );
    std::fs::write(folder.join("broker.toml"), &text)?;
    Ok(text)
}

/// The seed of one of an organisation's keys.
fn seed_of(org: &Org, acmes: [u8; 32]) -> [u8; 32] {
    match org.as_str() {
        "acme" => acmes,
        other => Digest::of(&[other.as_bytes(), &acmes].concat()).0,
    }
}

impl Lab {
    /// A lab with default bounds, save a small replay window.
    ///
    /// # Errors
    ///
    /// When the broker does not start.
    pub async fn start() -> Result<Self> {
        Self::with_limits("").await
    }

    /// A lab with these lines under `[limits]`.
    ///
    /// # Errors
    ///
    /// When the broker does not start.
    pub async fn with_limits(limits: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let admin = Actor::new("root-admin", 1)?;
        organisation(folder.path(), &admin, limits)?;
        Self::on(folder, admin, START).await
    }

    /// A lab of another organisation than `acme`.
    ///
    /// # Errors
    ///
    /// When the name is not one, or the broker does not start.
    pub async fn of(org: &str, limits: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let admin = Actor::of(&org.parse()?, "root-admin", 1)?;
        organisation(folder.path(), &admin, limits)?;
        Self::on(folder, admin, START).await
    }

    /// Whose broker it is.
    #[must_use]
    pub fn org(&self) -> &Org {
        self.admin.id.org()
    }

    async fn on(folder: TempDir, admin: Actor, now: Timestamp) -> Result<Self> {
        let config = Config::load(&folder.path().join("broker.toml"))?;
        let broker = Broker::start_at(config, Clock::manual(now)).await?;
        let authority = std::fs::read(folder.path().join("ca.pem"))?;
        let authority = {
            use rustls_pki_types::pem::PemObject as _;
            rustls_pki_types::CertificateDer::from_pem_slice(&authority)?
        };
        let line = Line::new(broker.address(), &authority)?;
        Ok(Self {
            broker,
            line,
            admin,
            folder,
        })
    }

    /// Stops the broker and starts another on the same files.
    ///
    /// # Errors
    ///
    /// When it does not start again.
    pub async fn restart(self) -> Result<Self> {
        let now = self.now();
        self.restart_at(now, false).await
    }

    /// As [`Lab::restart`], when the machine's clock says `now`; `accept` as with `--accept-clock`.
    ///
    /// # Errors
    ///
    /// When it does not start again.
    pub async fn restart_at(self, now: Timestamp, accept: bool) -> Result<Self> {
        let Self {
            broker,
            admin,
            folder,
            ..
        } = self;
        broker.stop().await;
        if accept {
            let config = Config::load(&folder.path().join("broker.toml"))?;
            broker::accept_clock(&config, now)?;
        }
        Self::on(folder, admin, now).await
    }

    /// Stops the broker, appends lines to its configuration, and starts another.
    ///
    /// # Errors
    ///
    /// When it does not start again.
    pub async fn reconfigured(self, lines: &str) -> Result<Self> {
        let file = self.folder.path().join("broker.toml");
        let text = std::fs::read_to_string(&file)?;
        std::fs::write(&file, format!("{text}{lines}\n"))?;
        self.restart().await
    }

    /// Starts its broker anew, with the address that it then has among its endpoints.
    ///
    /// # Errors
    ///
    /// When it does not start again.
    pub async fn reachable(self) -> Result<Self> {
        let address = self.broker.address();
        let file = self.folder.path().join("broker.toml");
        let text = std::fs::read_to_string(&file)?;
        let text = text.replace(
            "listen = \"127.0.0.1:0\"",
            &format!("listen = \"{address}\""),
        );
        let text = format!("{text}[federation]\nendpoints = [\"{address}\"]\n");
        std::fs::write(&file, text)?;
        self.restart().await
    }

    /// The lab's time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.broker.core().clock.now()
    }

    /// The broker's key.
    #[must_use]
    pub fn broker_key(&self) -> PublicKey {
        self.broker.core().voice.public()
    }

    /// Posts an envelope.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub async fn post(&self, bytes: impl Into<Bytes>) -> Result<Reply> {
        self.line.post("/fem", bytes).await
    }

    /// Posts an envelope to the broker and takes the acknowledgement.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub async fn ask(&self, actor: &Actor, kind: Kind, body: &impl Serialize) -> Result<Ack> {
        let sealed = actor.seal(kind, &actor.broker(), self.now(), body)?;
        let reply = self.post(sealed.bytes).await?;
        let envelope = reply.envelope()?;
        if envelope.kind() != Kind::Ack {
            bail!("{} {}", reply.status, envelope.body());
        }
        Ok(envelope.read_body()?)
    }

    /// Registers an agent and has the admin approve it with these capabilities.
    ///
    /// # Errors
    ///
    /// When either is refused.
    pub async fn agent(&self, name: &str, seed: u8, capabilities: &[&str]) -> Result<Actor> {
        let actor = Actor::of(self.org(), name, seed)?;
        self.register(&actor).await?;
        self.approve(&actor, capabilities).await?;
        Ok(actor)
    }

    /// Asks for registration.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub async fn register(&self, actor: &Actor) -> Result<Ack> {
        let body = RegisterAgent {
            pubkey: actor.key.public(),
            capabilities: Vec::new(),
            prefixes: Vec::new(),
            enrolment: None,
            note: None,
        };
        self.ask(actor, Kind::RegisterAgent, &body).await
    }

    /// Has the admin approve an agent.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub async fn approve(&self, actor: &Actor, capabilities: &[&str]) -> Result<Ack> {
        let body = json!({
            "name": actor.id.name(),
            "key": actor.key.public(),
            "capabilities": capabilities,
        });
        self.ask(&self.admin, Kind::AdminAgentApprove, &body).await
    }

    /// Attaches a session of an agent.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub async fn attach(&self, actor: &Actor) -> Result<Socket> {
        actor.attach(&self.line, self.now()).await
    }

    /// Attaches a session and offers tools of these names.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub async fn provide(&self, actor: &Actor, tools: &[&str]) -> Result<Socket> {
        let mut socket = self.attach(actor).await?;
        let said = self.offer(actor, &mut socket, tools).await?;
        if said.kind() != Kind::Ack {
            bail!("{}", said.body());
        }
        Ok(socket)
    }

    /// Offers tools of these names, and gives the broker's answer.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub async fn offer(
        &self,
        actor: &Actor,
        socket: &mut Socket,
        tools: &[&str],
    ) -> Result<Envelope> {
        let tools = tools.iter().map(|name| tool(name)).collect::<Result<_>>()?;
        let sealed = actor.seal(
            Kind::OfferTools,
            &actor.broker(),
            self.now(),
            &OfferTools { tools },
        )?;
        socket.send(sealed.bytes).await?;
        socket.hear().await?.said()
    }

    /// Answers a call that was delivered.
    ///
    /// # Errors
    ///
    /// When the call is not one.
    pub fn result(&self, provider: &Actor, call: &Envelope, result: &Value) -> Result<Sealed> {
        let caller = Audience::from(call.speaker().clone());
        let extra = Extra {
            re: Some(Digest::of(&call.signed_bytes())),
            ..Extra::default()
        };
        provider.seal_with(
            Kind::ToolResult,
            &caller,
            self.now(),
            &json!({"result": result}),
            &extra,
        )
    }
}

/// A tool with nothing but a name.
///
/// # Errors
///
/// When it is not a name.
pub fn tool(name: &str) -> Result<Tool> {
    Ok(serde_json::from_value(json!({ "name": name }))?)
}

/// The code of a broker's `error`.
///
/// # Errors
///
/// When it is not an error, or its code is not of the closed list.
pub fn code_of(envelope: &Envelope) -> Result<Code> {
    if envelope.kind() != Kind::Error {
        bail!(
            "expected an error, got {} {}",
            envelope.kind(),
            envelope.body()
        );
    }
    let body: proto_spec::refusal::ErrorBody = envelope.read_body()?;
    body.code.parse().context("a code of the closed list")
}

/// Patterns from their texts.
///
/// # Errors
///
/// When one is not a pattern.
pub fn patterns(texts: &[&str]) -> Result<Vec<Pattern>> {
    Ok(texts
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?)
}

/// The next thing heard on a connection, which has to be a refusal with this code.
///
/// # Errors
///
/// When it is something else.
pub async fn hears_refusal(socket: &mut Socket) -> Result<Code> {
    match socket.hear().await? {
        Heard::Said(envelope) => code_of(&envelope),
        other => bail!("expected a refusal, heard {other:?}"),
    }
}
