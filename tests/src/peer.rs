//! A peer's broker by hand: it holds its organisation's key and says what no broker would.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use broker::tls::{Pair, channel_of, read};
use bytes::Bytes;
use proto_spec::capability::{Narrowing, decode_text, encode_text, issue};
use proto_spec::frame::{RELAY, Relay};
use proto_spec::message::{LinkAttach, LinkRole, PeerDescriptor, PeerTokens, RevocationHead};
use proto_spec::peering::EXPORTER_LABEL;
use proto_spec::{
    Audience, Digest, Draft, Envelope, Kind, Org, Sealed, SigningKey, Speaker, Timestamp,
};
use rustls_pki_types::ServerName;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::certs;
use crate::lab::{Actor, Lab, nonce};
use crate::wire::Wire;

/// An organisation that is nothing but keys in a test's hand.
#[derive(Debug)]
pub struct Hand {
    /// Its name.
    pub org: Org,
    /// Its broker's key.
    pub key: SigningKey,
    /// Its TLS certificate.
    pub tls: Pair,
    /// Bytes of an envelope that it says to take.
    pub envelope_bytes_max: u64,
}

/// An attached link, as the far end holds it.
#[derive(Debug)]
pub struct Linked {
    wire: Wire,
    me: Speaker,
    key: SigningKey,
    to: Audience,
    now: Timestamp,
}

impl Hand {
    /// An organisation of this name, with a certificate of its own.
    ///
    /// # Errors
    ///
    /// When the name is not one.
    pub fn new(org: &str, seed: u8) -> Result<Self> {
        Ok(Self {
            org: org.parse()?,
            key: SigningKey::from_seed(&[seed; 32]),
            tls: certificate()?,
            envelope_bytes_max: 4 << 20,
        })
    }

    /// What it says about itself.
    ///
    /// # Errors
    ///
    /// Never: it serialises.
    pub fn descriptor(&self, now: Timestamp) -> Result<String> {
        let body = PeerDescriptor {
            org: self.org.clone(),
            key: self.key.public(),
            endpoints: Vec::new(),
            channels: vec![self.tls.channel],
            asks: Vec::new(),
            expires: now.later(std::time::Duration::from_secs(60)),
        };
        let sealed = self.say(Kind::PeerDescriptor, None, None, &body, now)?;
        Ok(String::from_utf8(sealed.bytes.to_vec())?)
    }

    /// An envelope of its broker.
    ///
    /// # Errors
    ///
    /// When the body does not serialise.
    pub fn say(
        &self,
        kind: Kind,
        to: Option<&Audience>,
        re: Option<Digest>,
        body: &impl Serialize,
        now: Timestamp,
    ) -> Result<Sealed> {
        say(
            &Speaker::Broker(self.org.clone()),
            &self.key,
            kind,
            to,
            re,
            body,
            now,
        )
    }

    /// Opens a connection to a lab's `/fem/link`, up to where the lab says who it is, with this certificate.
    ///
    /// # Errors
    ///
    /// When the lab does not take it.
    pub async fn knock(&self, lab: &Lab, tls: &Pair) -> Result<(Wire, Digest)> {
        let tcp = TcpStream::connect(lab.line.address).await?;
        let connector = TlsConnector::from(Arc::clone(&tls.client));
        let stream = connector
            .connect(ServerName::try_from("localhost")?, tcp)
            .await?;
        let session = stream.get_ref().1;
        let exporter = session.export_keying_material([0; 32], EXPORTER_LABEL, None)?;
        let chain = session.peer_certificates().context("no certificate")?;
        channel_of(chain.first().context("no certificate")?)?;
        let mut request = "wss://localhost/fem/link".into_client_request()?;
        let org = self.org.as_str().parse()?;
        request.headers_mut().insert("fem-org", org);
        let (socket, _) = client_async(request, stream).await?;
        let mut wire = Wire::new(socket);
        let word = wire.next().await?.context("it closed")?;
        if Envelope::parse(word, 1 << 24)?.kind() != Kind::LinkAttach {
            bail!("it does not say who it is");
        }
        Ok((wire, Digest(exporter)))
    }

    /// What it says to attach a connection of this exporter value.
    ///
    /// # Errors
    ///
    /// Never: it serialises.
    pub fn attach(&self, lab: &Lab, exporter: Digest) -> Result<Bytes> {
        self.attach_after(lab, exporter, Vec::new())
    }

    /// As [`Hand::attach`], and how its key followed from another.
    ///
    /// # Errors
    ///
    /// Never: it serialises.
    pub fn attach_after(
        &self,
        lab: &Lab,
        exporter: Digest,
        successions: Vec<String>,
    ) -> Result<Bytes> {
        let body = LinkAttach {
            role: LinkRole::Dials,
            exporter,
            descriptor: self.descriptor(lab.now())?,
            successions,
            envelope_bytes_max: self.envelope_bytes_max,
        };
        let to = lab.admin.broker();
        Ok(self
            .say(Kind::LinkAttach, Some(&to), None, &body, lab.now())?
            .bytes)
    }

    /// Attaches as the lab's peer.
    ///
    /// # Errors
    ///
    /// When the lab does not take it.
    pub async fn link(&self, lab: &Lab) -> Result<Linked> {
        let (mut wire, exporter) = self.knock(lab, &self.tls).await?;
        wire.send(self.attach(lab, exporter)?).await?;
        Ok(Linked {
            wire,
            me: Speaker::Broker(self.org.clone()),
            key: SigningKey::from_seed(self.key.seed()),
            to: lab.admin.broker(),
            now: lab.now(),
        })
    }

    /// As [`Hand::link`], and says its first head, before which no call is taken.
    ///
    /// # Errors
    ///
    /// When the lab does not take it.
    pub async fn linked(&self, lab: &Lab) -> Result<Linked> {
        let mut link = self.link(lab).await?;
        link.say(Kind::RevocationHead, None, &link.head()).await?;
        Ok(link)
    }

    /// Delegates what it was granted to an agent of its own, or of whatever organisation.
    ///
    /// # Errors
    ///
    /// When the token cannot be delegated from.
    pub fn introduce(&self, grant: &str, agent: &Actor, now: Timestamp) -> Result<Bytes> {
        let narrowing = Narrowing {
            agent: Some(agent.id.clone()),
            expires: Some(now.later(std::time::Duration::from_secs(600))),
            ..Narrowing::default()
        };
        let key = agent.key.public();
        let grant = decode_text(grant)?;
        let made = issue::delegate(&grant, &self.key, &key, &narrowing, [9; 32])?;
        Ok(encode_text(&issue::seal(&made)?).into())
    }

    /// Passes what it was granted on to another organisation's broker.
    ///
    /// # Errors
    ///
    /// When the token cannot be delegated from.
    pub fn pass_on(&self, grant: &str, to: &Self) -> Result<String> {
        let grant = decode_text(grant)?;
        let key = to.key.public();
        let made = issue::delegate(&grant, &self.key, &key, &Narrowing::default(), [8; 32])?;
        Ok(encode_text(&made))
    }
}

/// A certificate that nobody signed but itself's authority.
///
/// # Errors
///
/// When none can be made.
pub fn certificate() -> Result<Pair> {
    let folder = tempfile::tempdir()?;
    certs::write(folder.path())?;
    read(
        &folder.path().join("cert.pem"),
        &folder.path().join("key.pem"),
    )
}

fn say(
    speaker: &Speaker,
    key: &SigningKey,
    kind: Kind,
    to: Option<&Audience>,
    re: Option<Digest>,
    body: &impl Serialize,
    now: Timestamp,
) -> Result<Sealed> {
    let draft = Draft {
        kind,
        agent: speaker,
        to,
        ts: now,
        nonce: &nonce(),
        re,
        token: None,
        deadline: None,
        via: None,
        body,
    };
    Ok(draft.seal(key)?)
}

impl Linked {
    /// Says something as its broker.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub async fn say(
        &mut self,
        kind: Kind,
        re: Option<Digest>,
        body: &impl Serialize,
    ) -> Result<()> {
        let said = say(
            &self.me,
            &self.key,
            kind,
            Some(&self.to),
            re,
            body,
            self.now,
        )?;
        self.wire.send(said.bytes).await
    }

    /// The first head of this link, which tells of no death.
    #[must_use]
    pub fn head(&self) -> RevocationHead {
        RevocationHead {
            seq: 1,
            dead: Vec::new(),
            tick: self.now,
            echo: None,
        }
    }

    /// Sends whatever bytes.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub async fn send(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        self.wire.send(bytes).await
    }

    /// Sends the beginning of a message, and never its end.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub async fn begin(&mut self, bytes: &'static [u8]) -> Result<()> {
        self.wire.begin(bytes).await
    }

    /// Passes an envelope on, with tokens.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub async fn relay(&mut self, envelope: &Bytes, tokens: Vec<Bytes>) -> Result<()> {
        let relay = Relay {
            tokens,
            visited: vec![self.me.org().clone()],
            envelope: envelope.clone(),
            ..Relay::default()
        };
        self.pass(&relay).await
    }

    /// Sends a frame.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub async fn pass(&mut self, relay: &Relay) -> Result<()> {
        self.wire.send(relay.encode()).await
    }

    /// The next word of this kind; others are passed over. Nothing when the connection ends first.
    ///
    /// # Errors
    ///
    /// When nothing comes.
    pub async fn word(&mut self, kind: Kind) -> Result<Option<Envelope>> {
        while let Some(bytes) = self.wire.next().await? {
            if bytes.first() != Some(&RELAY) {
                let word = Envelope::parse(bytes, 1 << 24)?;
                if word.kind() == kind {
                    return Ok(Some(word));
                }
            }
        }
        Ok(None)
    }

    /// The next message, whatever it is. Nothing when the connection ends first.
    ///
    /// # Errors
    ///
    /// When nothing comes.
    pub async fn bytes(&mut self) -> Result<Option<Bytes>> {
        self.wire.next().await
    }

    /// The next envelope: the broker's own, or in a frame. Nothing when the connection ends first.
    ///
    /// # Errors
    ///
    /// When nothing comes.
    pub async fn heard(&mut self) -> Result<Option<Envelope>> {
        let Some(bytes) = self.bytes().await? else {
            return Ok(None);
        };
        let bytes = match bytes.first() {
            Some(&RELAY) => Relay::decode(bytes)?.envelope,
            _ => bytes,
        };
        Ok(Some(Envelope::parse(bytes, 1 << 24)?))
    }

    /// The next frame. Nothing when the connection ends first.
    ///
    /// # Errors
    ///
    /// When nothing comes.
    pub async fn frame(&mut self) -> Result<Option<Relay>> {
        while let Some(bytes) = self.wire.next().await? {
            if bytes.first() == Some(&RELAY) {
                return Ok(Some(Relay::decode(bytes)?));
            }
        }
        Ok(None)
    }

    /// What the other side grants it, once it grants so many.
    ///
    /// # Errors
    ///
    /// When it does not come.
    pub async fn granted(&mut self, count: usize) -> Result<Vec<String>> {
        let said = self.tokens(|said| said.tokens.len() == count).await?;
        Ok(said.tokens)
    }

    /// The tokens that it holds from the other side, once they are as they should be.
    ///
    /// # Errors
    ///
    /// When they do not come.
    pub async fn tokens(&mut self, is: impl Fn(&PeerTokens) -> bool) -> Result<PeerTokens> {
        loop {
            let word = self.word(Kind::PeerTokens).await?.context("it closed")?;
            let said: PeerTokens = word.read_body()?;
            if is(&said) {
                return Ok(said);
            }
        }
    }

    /// Whether the other side closes the connection, whatever it says before.
    ///
    /// # Errors
    ///
    /// When it does neither close nor say anything.
    pub async fn closes(&mut self) -> Result<()> {
        while self.wire.next().await?.is_some() {}
        Ok(())
    }
}
