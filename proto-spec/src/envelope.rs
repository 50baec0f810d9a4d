//! The signed envelope: its header, strictly read, and how one is made.
//!
//! An [`Envelope`] keeps the bytes as they came; its fields are views of them. What is stored,
//! forwarded and verified again is those bytes, never a serialisation of what was parsed.

use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::capability::{Capability, Proof};
use crate::identity::{AgentId, Audience, Name, Org, Speaker};
use crate::limits::{
    DEADLINE_MAX, DEPTH_MAX, INTEGER_MAX, NONCE_CHARS, NOTE_CHARS_MAX, TOKEN_BYTES_MAX,
};
use crate::refusal::Refusal;
use crate::signature::{Digest, Signature, SigningKey};
use crate::time::Timestamp;
use crate::wire::{self, Cut, Member, check_strict};

/// What `via` says where the broker signed for whoever showed a bearer token at `/mcp`.
pub const VIA_MCP: &str = "mcp";

/// What an envelope says: its `type`.
macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What an envelope says: its `type`. SPEC.md, *Messages*, says what each body holds.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind { $($(#[$doc])* $variant,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As it stands on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            fn parse(text: &str) -> Option<Self> {
                match text { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

kinds! {
    /// A key asks to become an agent.
    RegisterAgent = "registerAgent",
    /// An agent takes this connection as its session.
    Attach = "attach",
    /// What the session's agent offers, all of it.
    OfferTools = "offerTools",
    /// Which tools may I call?
    DiscoverTools = "discoverTools",
    /// Run this tool.
    ToolCall = "toolCall",
    /// What came of it.
    ToolResult = "toolResult",
    /// How far it is.
    ToolProgress = "toolProgress",
    /// Stop it.
    ToolCancel = "toolCancel",
    /// More input for a call in flight.
    ToolInput = "toolInput",
    /// Something happened, on a topic.
    EmitEvent = "emitEvent",
    /// Tell me what happens on these topics.
    Subscribe = "subscribe",
    /// No longer on these.
    Unsubscribe = "unsubscribe",
    /// This token block is no longer good.
    Revoke = "revoke",
    /// The old key names its successor.
    RotateKey = "rotateKey",
    /// The successor agrees; travels inside a `rotateKey`.
    AcceptKey = "acceptKey",
    /// Lists agents and pending requests.
    AdminAgentList = "admin.agent.list",
    /// Shows one agent.
    AdminAgentShow = "admin.agent.show",
    /// Approves a pending request, or replaces what an agent is approved for.
    AdminAgentApprove = "admin.agent.approve",
    /// Denies a pending request.
    AdminAgentDeny = "admin.agent.deny",
    /// Revokes an agent and its key.
    AdminAgentRevoke = "admin.agent.revoke",
    /// Revokes an agent, what flows from it, and how it came in, in one act.
    AdminAgentQuarantine = "admin.agent.quarantine",
    /// Issues a grant: kept on record, or handed out as a token.
    AdminTokenIssue = "admin.token.issue",
    /// Lists what was issued.
    AdminTokenList = "admin.token.list",
    /// Revokes what was issued: by id, or under a pattern up to a time.
    AdminTokenRevoke = "admin.token.revoke",
    /// Shows who holds what, and through whom.
    AdminTokenTree = "admin.token.tree",
    /// Issues an enrolment token.
    AdminEnrolIssue = "admin.enrol.issue",
    /// The broker keeps an agent's key, for those that can only show a bearer token.
    AdminBearerKeep = "admin.bearer.keep",
    /// Issues a bearer token for such an agent.
    AdminBearerIssue = "admin.bearer.issue",
    /// Lists acts that wait for a second admin.
    AdminProposalList = "admin.proposal.list",
    /// The second admin agrees to an act: it is done.
    AdminProposalApprove = "admin.proposal.approve",
    /// Drops an act that waits for a second admin.
    AdminProposalDeny = "admin.proposal.deny",
    /// Lists the keys that tokens are rooted in.
    AdminRootList = "admin.root.list",
    /// Makes the next root key: accepted, not yet used.
    AdminRootPrepare = "admin.root.prepare",
    /// Issues with the prepared root key from here on.
    AdminRootActivate = "admin.root.activate",
    /// Accepts nothing rooted in this key any more.
    AdminRootRetire = "admin.root.retire",
    /// Asks for this organisation's descriptor: the file that another's admin accepts.
    AdminPeerInvite = "admin.peer.invite",
    /// Takes another organisation as a peer, by its descriptor.
    AdminPeerAdd = "admin.peer.add",
    /// Lists peers, what they are granted, and how their links are.
    AdminPeerList = "admin.peer.list",
    /// Ends a peer's link until it is resumed.
    AdminPeerPause = "admin.peer.pause",
    /// Lets a paused peer's link come up again.
    AdminPeerResume = "admin.peer.resume",
    /// A peer no longer, and nothing that it was granted is good.
    AdminPeerRemove = "admin.peer.remove",
    /// Grants a peer's agents capabilities here.
    AdminPeerGrant = "admin.peer.grant",
    /// Lists the keys that the broker signs with, or did.
    AdminBrokerList = "admin.broker.list",
    /// Makes the broker's next key: told to everybody, not yet used.
    AdminBrokerPrepare = "admin.broker.prepare",
    /// The broker signs with the prepared key from here on.
    AdminBrokerActivate = "admin.broker.activate",
    /// Nobody is led from this key to the next any more.
    AdminBrokerRetire = "admin.broker.retire",
    /// States how far this organisation trusts another, for everybody to read.
    AdminTrustState = "admin.trust.state",
    /// Decides where an organisation stands, whatever is said of it.
    AdminTrustDecide = "admin.trust.decide",
    /// Lists what this organisation states, and what its admins decided.
    AdminTrustList = "admin.trust.list",
    /// Shows how far one organisation trusts another, and why.
    AdminTrustShow = "admin.trust.show",
    /// Shows what the broker runs with.
    AdminConfigRead = "admin.config.read",
    /// Broker: answer this before you attach.
    Challenge = "challenge",
    /// Broker: done.
    Ack = "ack",
    /// Broker: refused.
    Error = "error",
    /// Broker: what you could call.
    ToolsDiscovered = "toolsDiscovered",
    /// Broker: this name has this key, and may do this.
    Credential = "credential",
    /// Broker: about a topic you subscribed to.
    Event = "event",
    /// Broker: the keys that this organisation's tokens are rooted in have changed.
    Roots = "roots",
    /// Broker: who its organisation is: key, endpoints, TLS keys.
    PeerDescriptor = "peerDescriptor",
    /// Broker to broker: this connection is our link.
    LinkAttach = "linkAttach",
    /// Broker to broker: all that you are granted here, to delegate from.
    PeerTokens = "peerTokens",
    /// Broker to broker: tools that your agents may call here.
    Advert = "advert",
    /// Broker to broker: keys of my agents that are dead, and how old your view of them is.
    RevocationHead = "revocationHead",
    /// Broker: how far its organisation trusts another, for everybody to read.
    TrustStatement = "trustStatement",
    /// Broker to broker: who of my agents listens to which of your topics.
    PeerTopics = "peerTopics",
    /// Broker to broker: what an agent of mine emitted, for those of yours who may hear it.
    PeerEvent = "peerEvent",
    /// Broker to broker: statements of trust, and the keys of those whom I introduce.
    TrustNews = "trustNews",
    /// Broker: another key follows the one that signs this.
    Succession = "succession",
}

impl Kind {
    /// Whether only a broker says this.
    #[must_use]
    pub const fn is_brokers(self) -> bool {
        matches!(
            self,
            Self::Challenge
                | Self::Ack
                | Self::Error
                | Self::ToolsDiscovered
                | Self::Credential
                | Self::Event
                | Self::Roots
                | Self::PeerDescriptor
                | Self::LinkAttach
                | Self::PeerTokens
                | Self::Advert
                | Self::RevocationHead
                | Self::TrustStatement
                | Self::PeerTopics
                | Self::PeerEvent
                | Self::TrustNews
                | Self::Succession
        )
    }

    /// Whether this is an act of administration: its capability is its own name.
    #[must_use]
    pub fn is_admin(self) -> bool {
        self.as_str().starts_with("admin.")
    }

    /// Whether an agent's own words of this kind go on to another organisation.
    #[must_use]
    pub const fn travels(self) -> bool {
        matches!(self, Self::ToolCall) || self.needs_re()
    }

    /// Whether this answers or concerns another envelope, and so needs `re`.
    #[must_use]
    pub const fn needs_re(self) -> bool {
        matches!(
            self,
            Self::ToolResult | Self::ToolProgress | Self::ToolCancel | Self::ToolInput
        )
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A well-formed envelope. Nothing about it is believed yet: see [`crate::admission`].
#[derive(Debug, Clone)]
pub struct Envelope {
    bytes: Bytes,
    kind: Kind,
    speaker: Speaker,
    to: Option<Audience>,
    ts: Timestamp,
    nonce: Range<usize>,
    re: Option<Digest>,
    token: Option<Range<usize>>,
    deadline: Option<Duration>,
    via: Option<Range<usize>>,
    trace: Option<Range<usize>>,
    body: Range<usize>,
    cut: Cut,
    dialect: Dialect,
}

/// How an envelope was read.
#[derive(Debug, Clone)]
enum Dialect {
    /// As SPEC.md, *Envelope*, has it.
    Own,
    /// As SPEC.md, *Older agents*, has it; of a `toolCall` the tool's full name.
    Older(Option<Capability>),
}

/// Who says something to whom, where an older agent's header does not say it in full.
struct Parties {
    speaker: Speaker,
    to: Option<Audience>,
    dialect: Dialect,
}

impl Envelope {
    /// Reads the header strictly and checks that the body is strict JSON.
    ///
    /// # Errors
    ///
    /// Those of SPEC.md, *Envelope*: [`Refusal::TooLarge`] above `bytes_max`, and what maps to
    /// `MALFORMED`, `UNSUPPORTED_VERSION` and `UNKNOWN_TYPE`.
    pub fn parse(bytes: Bytes, bytes_max: usize) -> Result<Self, Refusal> {
        Self::read(bytes, bytes_max, |_, header, _| {
            Ok(Parties {
                speaker: header.agent.parse()?,
                to: header.to.map(str::parse).transpose()?,
                dialect: Dialect::Own,
            })
        })
    }

    /// Reads what an older agent of `org` says: its header has its bare name and no recipient. A `toolCall`
    /// is for the agent that its body names before the first `/`; what stands behind it is the tool, of which
    /// `full_name` gives the name by which it is offered. All else is for the broker.
    ///
    /// # Errors
    ///
    /// As [`Envelope::parse`]; [`Refusal::BadMember`] where there is more in the header than older agents
    /// know, [`Refusal::UnknownType`] for what they do not say here, and [`Refusal::InvalidBody`].
    pub fn parse_older(
        bytes: Bytes,
        bytes_max: usize,
        org: &Org,
        full_name: impl FnOnce(&AgentId, &str) -> Option<Capability>,
    ) -> Result<Self, Refusal> {
        Self::read(bytes, bytes_max, |kind, header, body| {
            if header.is_more_than_older() {
                return Err(Refusal::BadMember(
                    "to",
                    "absent, as is all that older agents do not know",
                ));
            }
            let (to, tool) = match kind {
                Kind::RegisterAgent | Kind::DiscoverTools => (Audience::Broker(org.clone()), None),
                Kind::ToolCall => {
                    let OlderCall { tool } = read_json(body)?;
                    let not_named = || Refusal::InvalidBody("`tool` is not AGENT/TOOL".into());
                    let (agent, tool) = tool.split_once('/').ok_or_else(not_named)?;
                    let agent: Name = agent.parse().map_err(|_| not_named())?;
                    let agent = AgentId::new(agent, org.clone());
                    let tool = full_name(&agent, tool).ok_or_else(not_named)?;
                    (Audience::Agent(agent), Some(tool))
                }
                kind => return Err(Refusal::UnknownType(kind.to_string())),
            };
            let name: Name = header.agent.parse()?;
            Ok(Parties {
                speaker: Speaker::Agent(AgentId::new(name, org.clone())),
                to: Some(to),
                dialect: Dialect::Older(tool),
            })
        })
    }

    /// Whether this could be an older agent's: its sender is named without an organisation, and nobody is
    /// named as its recipient. Nothing else about it is looked at.
    #[must_use]
    pub fn may_be_older(bytes: &[u8]) -> bool {
        let looked_at = || {
            let text = std::str::from_utf8(bytes).ok()?;
            let members = wire::members(bytes).ok()?;
            let slots = Slots::sort(text, &members).ok()?;
            let agent = slots.string("agent").ok()??;
            Some(slots.raw("to").is_none() && !agent.contains('@'))
        };
        looked_at().unwrap_or_default()
    }

    fn read(
        bytes: Bytes,
        bytes_max: usize,
        parties: impl FnOnce(Kind, &Header<'_>, &str) -> Result<Parties, Refusal>,
    ) -> Result<Self, Refusal> {
        if bytes.len() > bytes_max {
            return Err(Refusal::TooLarge(bytes.len(), bytes_max));
        }
        let text =
            std::str::from_utf8(&bytes).map_err(|_| Refusal::NotStrictJson("not UTF-8".into()))?;
        let members = wire::members(&bytes)?;
        let header = Header::read(text, &members)?;
        let cut = Cut::find(&bytes, &members)?;
        let body = &text[header.body.clone()];
        check_strict(body, DEPTH_MAX - 1)?;
        let at = |slice: &str| offset_in(text, slice);
        let kind = Kind::parse(header.kind)
            .ok_or_else(|| Refusal::UnknownType(header.kind.chars().take(64).collect()))?;
        if kind.needs_re() && header.re.is_none() {
            return Err(Refusal::MissingMember("re"));
        }
        let Parties {
            speaker,
            to,
            dialect,
        } = parties(kind, &header, body)?;
        Ok(Self {
            kind,
            speaker,
            to,
            ts: Timestamp::from_ms(header.ts),
            nonce: at(header.nonce),
            re: header.re,
            token: header.token.map(at),
            deadline: header.deadline.map(Duration::from_millis),
            via: header.via.map(at),
            trace: header.trace.map(at),
            body: header.body,
            cut,
            dialect,
            bytes,
        })
    }

    /// The bytes as received.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
    /// What it says.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }
    /// Who claims to say it.
    #[must_use]
    pub fn speaker(&self) -> &Speaker {
        &self.speaker
    }
    /// Who it is for.
    #[must_use]
    pub fn to(&self) -> Option<&Audience> {
        self.to.as_ref()
    }
    /// When it was signed, by the sender's clock.
    #[must_use]
    pub fn ts(&self) -> Timestamp {
        self.ts
    }
    /// What makes it unique under its key.
    #[must_use]
    pub fn nonce(&self) -> &str {
        self.text(&self.nonce)
    }
    /// The identity of the envelope it answers or concerns.
    #[must_use]
    pub fn re(&self) -> Option<Digest> {
        self.re
    }
    /// A delegated or attenuated token, base64url.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_ref().map(|range| self.text(range))
    }
    /// How long from its receipt an answer is wanted.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }
    /// How its sender proved who it is: at `/mcp` the broker signs for whoever shows a bearer token.
    #[must_use]
    pub fn proof(&self) -> Proof {
        match self.via() {
            Some(VIA_MCP) => Proof::Bearer,
            _ => Proof::Key,
        }
    }
    /// Through which bridge it came, when it is not the agent's own words.
    #[must_use]
    pub fn via(&self) -> Option<&str> {
        self.via.as_ref().map(|range| self.text(range))
    }
    /// The sender's trace context, opaque to the broker.
    #[must_use]
    pub fn trace(&self) -> Option<&str> {
        self.trace.as_ref().map(|range| self.text(range))
    }
    /// The body's raw JSON: an object.
    #[must_use]
    pub fn body(&self) -> &str {
        self.text(&self.body)
    }
    /// The claimed signature.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.cut.signature
    }
    /// What the signature has to cover.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        self.cut.signed_bytes(&self.bytes)
    }

    /// Whether it was read as an older agent's.
    #[must_use]
    pub fn is_older(&self) -> bool {
        matches!(self.dialect, Dialect::Older(_))
    }
    /// Of an older agent's `toolCall`: the tool's full name.
    #[must_use]
    pub fn older_tool(&self) -> Option<&Capability> {
        match &self.dialect {
            Dialect::Older(tool) => tool.as_ref(),
            Dialect::Own => None,
        }
    }

    /// The body as what its type says it holds.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidBody`] where it does not fit.
    pub fn read_body<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Refusal> {
        read_json(self.body())
    }

    fn text(&self, range: &Range<usize>) -> &str {
        // `parse` checked that the bytes are UTF-8 and that each range is a whole token of them.
        std::str::from_utf8(&self.bytes[range.clone()]).unwrap_or_default()
    }
}

/// Characters of what a sender is told about its body.
const REASON_CHARS_MAX: usize = 256;

fn read_json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Refusal> {
    // The reason quotes what it does not like, however long that is.
    serde_json::from_str(text).map_err(|error| {
        let reason = error.to_string().chars().take(REASON_CHARS_MAX).collect();
        Refusal::InvalidBody(reason)
    })
}

/// Whom an older agent's `toolCall` is for: `AGENT/TOOL`.
#[derive(Deserialize)]
struct OlderCall<'a> {
    #[serde(borrow)]
    tool: Cow<'a, str>,
}

fn offset_in(whole: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

/// The header's members as they were written.
struct Header<'a> {
    kind: &'a str,
    agent: &'a str,
    to: Option<&'a str>,
    ts: u64,
    nonce: &'a str,
    re: Option<Digest>,
    token: Option<&'a str>,
    deadline: Option<u64>,
    via: Option<&'a str>,
    trace: Option<&'a str>,
    body: Range<usize>,
}

impl<'a> Header<'a> {
    /// Whether there is a member in it that older agents do not write. `v` is not kept: it can only be 1.
    fn is_more_than_older(&self) -> bool {
        let Self {
            to,
            re,
            token,
            deadline,
            via,
            trace,
            ..
        } = self;
        let texts = [to, token, via, trace];
        re.is_some() || deadline.is_some() || texts.iter().any(|text| text.is_some())
    }

    fn read(text: &'a str, members: &[Member]) -> Result<Self, Refusal> {
        let slots = Slots::sort(text, members)?;
        let version = slots.integer("v")?.unwrap_or(1);
        if version != 1 {
            return Err(Refusal::UnsupportedVersion(version));
        }
        let nonce = slots
            .string("nonce")?
            .ok_or(Refusal::MissingMember("nonce"))?;
        if !NONCE_CHARS.contains(&nonce.len()) || !nonce.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Refusal::BadMember(
                "nonce",
                "16 to 128 visible ASCII characters",
            ));
        }
        let body = slots.raw("body").ok_or(Refusal::MissingMember("body"))?;
        if !text[body.clone()].starts_with('{') {
            return Err(Refusal::BadMember("body", "an object"));
        }
        let deadline = slots.integer("deadline")?;
        if deadline.is_some_and(|ms| ms == 0 || u128::from(ms) > DEADLINE_MAX.as_millis()) {
            return Err(Refusal::BadMember("deadline", "1 to 86400000 milliseconds"));
        }
        let re = slots.string("re")?.map(str::parse).transpose();
        Ok(Self {
            kind: slots
                .string("type")?
                .ok_or(Refusal::MissingMember("type"))?,
            agent: slots
                .string("agent")?
                .ok_or(Refusal::MissingMember("agent"))?,
            to: slots.string("to")?,
            ts: slots.integer("ts")?.ok_or(Refusal::MissingMember("ts"))?,
            nonce,
            re: re.map_err(|_| Refusal::BadMember("re", "a digest in base64url"))?,
            token: slots.bounded("token", TOKEN_BYTES_MAX.div_ceil(3) * 4)?,
            deadline,
            via: slots.bounded("via", NOTE_CHARS_MAX)?,
            trace: slots.bounded("trace", NOTE_CHARS_MAX)?,
            body,
        })
    }
}

/// The members by name, each at most once and none unknown.
struct Slots<'a> {
    text: &'a str,
    values: [Option<Range<usize>>; Slots::NAMES.len()],
}

impl<'a> Slots<'a> {
    const NAMES: [&'static str; 13] = [
        "type", "agent", "to", "ts", "nonce", "body", "sig", "v", "re", "token", "deadline", "via",
        "trace",
    ];

    fn sort(text: &'a str, members: &[Member]) -> Result<Self, Refusal> {
        let mut values = [const { None }; Self::NAMES.len()];
        for member in members {
            let name = &text[member.name.clone()];
            let slot = Self::NAMES
                .iter()
                .position(|known| *known == name)
                .ok_or_else(|| Refusal::UnknownMember(name.chars().take(64).collect()))?;
            if values[slot].replace(member.value.clone()).is_some() {
                return Err(Refusal::DuplicateMember(Self::NAMES[slot]));
            }
        }
        Ok(Self { text, values })
    }

    fn raw(&self, name: &'static str) -> Option<Range<usize>> {
        let slot = Self::NAMES.iter().position(|known| *known == name)?;
        self.values[slot].clone()
    }

    /// A string without backslashes or control characters: its bytes are its meaning.
    fn string(&self, name: &'static str) -> Result<Option<&'a str>, Refusal> {
        let Some(range) = self.raw(name) else {
            return Ok(None);
        };
        let inner = self.text[range]
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'))
            .ok_or(Refusal::BadMember(name, "a string"))?;
        let plain = |c: char| !c.is_control() && c != '\\';
        if !inner.chars().all(plain) {
            return Err(Refusal::BadMember(
                name,
                "no backslash and no control character",
            ));
        }
        Ok(Some(inner))
    }

    fn bounded(&self, name: &'static str, max: usize) -> Result<Option<&'a str>, Refusal> {
        match self.string(name)? {
            Some(text) if text.len() > max => Err(Refusal::BadMember(name, "too long")),
            found => Ok(found),
        }
    }

    /// Plain digits below 2^53, without a leading zero.
    fn integer(&self, name: &'static str) -> Result<Option<u64>, Refusal> {
        let Some(range) = self.raw(name) else {
            return Ok(None);
        };
        let digits = &self.text[range];
        let plain = !digits.is_empty()
            && digits.bytes().all(|b| b.is_ascii_digit())
            && (digits.len() == 1 || !digits.starts_with('0'));
        let value = if plain {
            digits.parse().ok().filter(|n| *n < INTEGER_MAX)
        } else {
            None
        };
        value
            .map(Some)
            .ok_or(Refusal::BadMember(name, "plain digits below 2^53"))
    }
}

/// An envelope to be signed. What is absent stays absent on the wire.
#[derive(Debug, Clone, Serialize)]
pub struct Draft<'a, B: Serialize + ?Sized> {
    /// What it says.
    #[serde(rename = "type", serialize_with = "kind_as_text")]
    pub kind: Kind,
    /// Who says it.
    pub agent: &'a Speaker,
    /// Who it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<&'a Audience>,
    /// When, by the signer's clock.
    pub ts: Timestamp,
    /// Unique under the signing key; 16 to 128 visible ASCII characters.
    pub nonce: &'a str,
    /// What it answers or concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub re: Option<Digest>,
    /// A sealed token, base64url.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<&'a str>,
    /// Milliseconds from receipt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
    /// Through which bridge it came, when it is not its agent's own words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<&'a str>,
    /// What the type says it holds.
    pub body: &'a B,
}

fn kind_as_text<S: serde::Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.as_str())
}

/// A signed envelope, ready to be sent.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// What goes on the wire.
    pub bytes: Bytes,
    /// Its identity: what an answer names in `re`.
    pub id: Digest,
}

impl<B: Serialize + ?Sized> Draft<'_, B> {
    /// Serialises once, signs exactly those bytes, and splices the signature in.
    ///
    /// # Errors
    ///
    /// Only where the body cannot be serialised as JSON.
    pub fn seal(&self, key: &SigningKey) -> Result<Sealed, serde_json::Error> {
        let signed = serde_json::to_vec(self)?;
        let sealed = wire::splice(&signed, &key.sign(&signed));
        Ok(Sealed {
            bytes: sealed.into(),
            id: wire::identity(&signed),
        })
    }
}
