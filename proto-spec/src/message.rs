//! What each type's body holds. SPEC.md, *Messages*, is the same in prose.
//!
//! Bodies are closed: an unknown member is `INVALID_BODY`. What belongs to a tool (arguments, results,
//! schemas) stays the raw JSON that was sent.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::capability::{Capability, Pattern};
use crate::identity::{AgentId, Name, NamePattern, Org};
use crate::signature::{Digest, PublicKey};
use crate::time::Timestamp;

mod older;
mod trust;

pub use older::{Older, OlderQuery, OlderRecord, OlderTool, Unsigned, VIA_FEP, full_names};
pub use trust::{
    Arrow, BadTrust, Decision, Hop, Introduced, Level, Node, Path, Picture, Score, Trust,
    TrustDecide, TrustDecided, TrustNews, TrustRecord, TrustShow, TrustState, TrustStatement,
};

/// `registerAgent`: what the agent asks for is a request, never a grant.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterAgent {
    /// The key that signs this very envelope.
    pub pubkey: PublicKey,
    /// What it would like to be granted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Pattern>,
    /// Under which prefixes it would like to offer tools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<Pattern>,
    /// An enrolment token, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolment: Option<String>,
    /// For the admin who decides; at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// `attach`: takes a connection as the agent's session.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The challenge of this very connection.
    pub challenge: Digest,
    /// SHA-256 of the DER SubjectPublicKeyInfo of the server certificate that the client saw.
    pub channel: Digest,
}

/// `challenge`: what a connection has to answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Challenge {
    /// 32 random bytes, for this connection only.
    pub challenge: Digest,
}

/// A tool as its provider offers it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Tool {
    /// Its name, by which it is called: `fs.read_file`.
    pub name: Capability,
    /// The capability that calling it requires; its own name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<Capability>,
    /// For people and models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON Schema of its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_schema: Option<Box<RawValue>>,
    /// JSON Schema of its result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Box<RawValue>>,
    /// Hints such as `readOnlyHint`, as MCP has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Box<RawValue>>,
    /// Where calling it is a request to an MCP server: which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp: Option<McpRequest>,
}

/// The request to an MCP server that a call becomes. The call's result is that request's result.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct McpRequest {
    /// `tools/call`, `prompts/get`, `resources/read` …
    pub method: String,
    /// Of `tools/call`: the tool as its server defines it, without the members that [`Tool`] says already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Box<RawValue>>,
}

impl Tool {
    /// What a caller must be granted.
    #[must_use]
    pub fn required(&self) -> &Capability {
        self.capability.as_ref().unwrap_or(&self.name)
    }
}

/// `offerTools`: all that this session offers; replaces what it offered before.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferTools {
    /// At most 512.
    pub tools: Vec<Tool>,
}

/// `discoverTools`: which tools could the sender call?
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscoverTools {
    /// Only tools that this pattern covers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Pattern>,
    /// Only this provider's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// At most so many; 1,000 when absent, and at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u16>,
    /// Where the page before ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// One tool as discovery shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "WrittenTool<PublicKey>")]
pub struct DiscoveredTool {
    /// Who serves it: the call's `to`.
    pub agent: AgentId,
    /// The provider's key: its results are signed with it.
    pub key: PublicKey,
    /// The tool.
    #[serde(flatten)]
    pub tool: Tool,
    /// Argument checks that a call has to satisfy, as Datalog.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<String>,
    /// Of a tool behind a peer: the organisations that a call goes through, its owner's last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<Org>,
    /// Of an older agent's tool: what a caller has to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsigned: Option<Unsigned>,
}

/// How a [`DiscoveredTool`] is read: member by member, because raw JSON does not come through serde's
/// flattening.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenTool<K> {
    agent: AgentId,
    key: K,
    name: Capability,
    capability: Option<Capability>,
    description: Option<String>,
    input_schema: Option<Box<RawValue>>,
    output_schema: Option<Box<RawValue>>,
    annotations: Option<Box<RawValue>>,
    mcp: Option<McpRequest>,
    #[serde(default)]
    checks: Vec<String>,
    #[serde(default)]
    via: Vec<Org>,
    unsigned: Option<Unsigned>,
}

impl<K> WrittenTool<K> {
    fn with(self, key: PublicKey) -> DiscoveredTool {
        DiscoveredTool {
            agent: self.agent,
            key,
            tool: Tool {
                name: self.name,
                capability: self.capability,
                description: self.description,
                input_schema: self.input_schema,
                output_schema: self.output_schema,
                annotations: self.annotations,
                mcp: self.mcp,
            },
            checks: self.checks,
            via: self.via,
            unsigned: self.unsigned,
        }
    }
}

impl From<WrittenTool<PublicKey>> for DiscoveredTool {
    fn from(written: WrittenTool<PublicKey>) -> Self {
        let key = written.key;
        written.with(key)
    }
}

/// Reads a list, in which many tools have one key: each is checked once, for that is dear.
fn listed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<DiscoveredTool>, D::Error> {
    let mut keys: HashMap<String, PublicKey> = HashMap::new();
    let mut tools = Vec::new();
    for written in Vec::<WrittenTool<String>>::deserialize(deserializer)? {
        let key = match keys.get(&written.key) {
            Some(key) => *key,
            None => {
                let key = written.key.parse().map_err(D::Error::custom)?;
                keys.insert(written.key.clone(), key);
                key
            }
        };
        tools.push(written.with(key));
    }
    Ok(tools)
}

/// `toolsDiscovered`, sorted by tool and agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ToolsDiscovered {
    /// One page.
    #[serde(deserialize_with = "listed")]
    pub tools: Vec<DiscoveredTool>,
    /// Ask again with this as `after`; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `toolCall`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCall<'a> {
    /// Which tool of the agent in `to`.
    #[serde(borrow)]
    pub tool: Cow<'a, str>,
    /// An object; empty when absent.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<&'a RawValue>,
    /// Whether the caller wants `toolProgress`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub progress: bool,
    /// Of a request to an MCP server: an object, its parameters beside the arguments (`_meta`,
    /// `inputResponses`, `requestState` …). Other tools do not look at it.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub mcp: Option<&'a RawValue>,
    /// Whose unsigned answer the caller takes, in the broker's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsigned: Option<Unsigned>,
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// `toolResult`: exactly one of the two.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolResult<'a> {
    /// What the tool answered; JSON's `null` is an answer too.
    #[serde(
        borrow,
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub result: Option<&'a RawValue>,
    /// Why it could not.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ToolError<'a>>,
}

/// What is there is there, `null` or not: serde's own reading takes `null` for nothing.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(from: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// A tool's own error, the provider's words.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolError<'a> {
    /// The tool's code; not one of the broker's.
    #[serde(borrow)]
    pub code: Cow<'a, str>,
    /// For people.
    #[serde(borrow)]
    pub message: Cow<'a, str>,
    /// More, as the tool likes.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub data: Option<&'a RawValue>,
}

/// `toolProgress`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolProgress<'a> {
    /// 1, 2, 3 … within one call.
    pub seq: u64,
    /// How much is done, in the tool's own unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<f64>,
    /// How much there is to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<f64>,
    /// For people.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Cow<'a, str>>,
    /// A part of the result, ahead of it.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub data: Option<&'a RawValue>,
}

/// `toolCancel`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCancel {
    /// For people; at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `toolInput`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolInput<'a> {
    /// What the tool is to get.
    #[serde(borrow)]
    pub input: &'a RawValue,
}

/// `emitEvent`: the topic is the envelope's `to`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmitEvent<'a> {
    /// What happened.
    #[serde(borrow)]
    pub data: &'a RawValue,
}

/// `subscribe` and `unsubscribe`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topics {
    /// `build.done`, `build.*`.
    pub topics: Vec<Pattern>,
}

/// `event`: what the broker says about a subscription.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// How many events this session was too slow to take, since the last such notice.
    pub missed: u64,
}

/// `revoke`: names blocks by revocation id; the presented token shows that the sender held them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    /// At most 64.
    pub ids: Vec<Digest>,
    /// The sealed token in which they occur, base64url. An admin needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// For the record; at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `rotateKey`, signed by the old key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateKey {
    /// A whole `acceptKey` envelope of the new key, as text.
    pub accept: String,
}

/// `acceptKey`, signed by the new key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptKey {
    /// The new key.
    pub pubkey: PublicKey,
    /// The key that it follows.
    pub follows: PublicKey,
}

/// `succession`, signed by a key of the broker: another follows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Succession {
    /// A whole `acceptKey` envelope of the next key, as text.
    pub accept: String,
}

/// `admin.agent.list` and `admin.token.list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// Where the page before ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// `admin.agent.show`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentShow {
    /// Whom.
    pub name: Name,
}

/// `admin.agent.approve`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentApprove {
    /// Whom.
    pub name: Name,
    /// Which key: the admin has compared its fingerprint.
    pub key: PublicKey,
    /// What it is granted, of the admin's choosing; all that its approval grants from here on.
    #[serde(default)]
    pub capabilities: Vec<Pattern>,
    /// Under which it may offer tools; `<its name>.*` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefixes: Option<Vec<Pattern>>,
    /// Approve prefixes even where they overlap another agent's.
    #[serde(default)]
    pub overlap: bool,
    /// Until when the grant holds; the configured longest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// What the agent may hand on as an admin; for admins only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<AdminScope>,
    /// Where an older agent is called, exactly as the admin was shown it; absent where it names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// Beyond which an admin grants, approves and issues nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminScope {
    /// What it may grant.
    pub grantable: Vec<Pattern>,
    /// To and about whom.
    pub names: Vec<NamePattern>,
}

/// `admin.agent.deny`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentDeny {
    /// Whom.
    pub name: Name,
    /// Which key.
    pub key: PublicKey,
    /// What the agent is told; at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `admin.agent.revoke` and `admin.agent.quarantine`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentRevoke {
    /// Whom.
    pub name: Name,
    /// For the record; at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Only say what it would strike.
    #[serde(default, skip_serializing_if = "is_false")]
    pub dry_run: bool,
}

/// `admin.token.issue`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenIssue {
    /// To whom.
    pub agent: Name,
    /// What.
    pub capabilities: Vec<Pattern>,
    /// Until when; the configured longest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// From when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Further conditions, as Datalog checks within the token gate.
    #[serde(default)]
    pub checks: Vec<String>,
    /// In which sandbox the tool has to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// How many calls, in all; the broker counts them. No bound when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u32>,
    /// Kept on record at the broker (`true`), or handed out as a token (`false`).
    pub record: bool,
}

/// `admin.token.revoke`: exactly one of `ids` and `under`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRevoke {
    /// These blocks; at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<Digest>,
    /// Whatever was issued up to `before` no longer permits anything under these patterns; the rest of
    /// what it permits stays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub under: Vec<Pattern>,
    /// With `under`: up to when, in whole seconds; now when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Timestamp>,
    /// For the record; at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Only say what it would strike.
    #[serde(default, skip_serializing_if = "is_false")]
    pub dry_run: bool,
}

/// `admin.token.tree`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenTree {
    /// Only what was issued to this agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Name>,
    /// Where the page before ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// `admin.proposal.approve` and `admin.proposal.deny`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// Which.
    pub id: Digest,
}

/// `activate` and `retire` of `admin.root` and `admin.broker`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyAct {
    /// Which key.
    pub key: PublicKey,
}

/// `roots`: what the broker says when root keys change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Roots {
    /// All that tokens may be rooted in, active first.
    pub roots: Vec<PublicKey>,
}

/// `peerDescriptor`: an organisation's broker in its own words, signed by the key that it names. As a
/// file it is what `peer invite` writes and `peer accept` reads; whoever accepts it has compared the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerDescriptor {
    /// Whose broker.
    pub org: Org,
    /// Its key.
    pub key: PublicKey,
    /// `host:port`, at most 8: where its link is dialled, once an admin accepted them.
    pub endpoints: Vec<String>,
    /// Public keys of its TLS certificates, present and next, as SPKI digests; at most 8.
    pub channels: Vec<Digest>,
    /// What it would like to be granted: a proposal to the other side's admin; at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<Pattern>,
    /// Until when it may be accepted.
    pub expires: Timestamp,
}

/// `linkAttach`: both brokers say it, the one that listens first.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkAttach {
    /// Which end of the connection speaks.
    pub role: LinkRole,
    /// The TLS exporter value of this very connection (RFC 8446, 7.5; label `EXPORTER-fem-link-v1`).
    pub exporter: Digest,
    /// The speaker's present `peerDescriptor` envelope: its TLS keys rotate with it.
    pub descriptor: String,
    /// `succession` envelopes, oldest first: how the speaker's key follows from the one that was accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub successions: Vec<String>,
    /// Bytes of an envelope that the speaker takes of agents. Its reader passes on none that is larger.
    #[serde(rename = "envelopeBytesMax")]
    pub envelope_bytes_max: u64,
}

/// One end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkRole {
    /// It opened the connection.
    Dials,
    /// It took the connection.
    Listens,
}

impl LinkRole {
    /// The role of the other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Dials => Self::Listens,
            Self::Listens => Self::Dials,
        }
    }
}

/// `peerTokens`: replaces what was said before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerTokens {
    /// Unsealed peer tokens of the speaker's own root whose holder is the recipient, base64url; at most 64.
    pub tokens: Vec<String>,
    /// Unsealed peer tokens that others granted the speaker, passed on to the recipient: for what lies
    /// behind the speaker; at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub onward: Vec<String>,
}

/// `advert`: the tools that the recipient's agents may call here. The first of a link has `seq` 1 and says
/// all; each later one says what changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advert {
    /// 1, 2, 3 … on one link; what does not follow is refused, and ends the link.
    pub seq: u64,
    /// New, or as they are now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<AdvertisedTool>,
    /// No longer: provider and tool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<(AgentId, Capability)>,
    /// All of it holds until then, unless another comes.
    pub expires: Timestamp,
}

/// `revocationHead`: said every second, and at once when a key dies.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevocationHead {
    /// 1, 2, 3 … on one link; what does not follow is refused, and ends the link.
    pub seq: u64,
    /// Keys that died since the one before it. The first says all that some delegation could still be to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dead: Vec<PublicKey>,
    /// The speaker's time.
    pub tick: Timestamp,
    /// The newest `tick` that the speaker has of the recipient: how old the recipient's view is, it then
    /// measures on its own clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<Timestamp>,
}

/// A tool as its owner advertises it to one peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AdvertisedTool {
    /// The tool, and its provider's certified key. A member of its own: raw JSON, as a tool's schema is, does
    /// not come through serde's flattening.
    pub tool: DiscoveredTool,
    /// Ids of the recipient's grants that permit it, best first; at most 4.
    pub grants: Vec<Digest>,
    /// Of a tool behind the speaker: ids of the tokens that permit it at its owner; at most 4.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub onward: Vec<Digest>,
}

/// `admin.peer.invite`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerInvite {
    /// What the other side is asked to grant.
    #[serde(default)]
    pub asks: Vec<Pattern>,
    /// Until when the descriptor may be accepted; 7 days when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// `admin.peer.add`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerAdd {
    /// The other's `peerDescriptor` envelope, as text.
    pub descriptor: String,
    /// Its key: the admin has compared its fingerprint.
    pub key: PublicKey,
    /// Which of its endpoints may be dialled; none means that it dials us.
    #[serde(default)]
    pub endpoints: Vec<String>,
}

/// `admin.peer.pause`, `admin.peer.resume` and `admin.peer.remove`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerName {
    /// Which peer.
    pub org: Org,
}

/// `admin.peer.grant`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerGrant {
    /// To which peer.
    pub org: Org,
    /// What its agents may do here.
    pub capabilities: Vec<Pattern>,
    /// Only with these agents' tools; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<NamePattern>,
    /// Further conditions, as Datalog checks within the token gate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<String>,
    /// Through how many further organisations; none when absent.
    #[serde(default)]
    pub depth: u32,
    /// Until when; the configured longest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// `admin.bearer.keep`: an agent of this name is approved whose key the broker keeps.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BearerKeep {
    /// Whom.
    pub name: Name,
    /// What it is granted on record: no bearer token permits more.
    pub capabilities: Vec<Pattern>,
    /// Until when the grant holds; the configured longest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// `admin.bearer.issue`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BearerIssue {
    /// An agent whose key the broker keeps.
    pub agent: Name,
    /// What the token permits, as far as the agent's record does too.
    pub capabilities: Vec<Pattern>,
    /// Until when; the configured longest when absent, and at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Further conditions, as Datalog checks within the token gate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<String>,
}

/// `admin.enrol.issue`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolIssue {
    /// Which names may register with it.
    pub name: NamePattern,
    /// An agent gets what it asks for within this.
    pub ceiling: Vec<Pattern>,
    /// Tool prefixes that it may ask for.
    #[serde(default)]
    pub prefixes: Vec<Pattern>,
    /// How often; once when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// Until when; the configured longest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// `ack`: the broker did it. One shape for each act, told apart by `status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "camelCase")]
pub enum Ack {
    /// To `registerAgent`: an admin has to decide, or decided already and the answer is the same.
    Pending,
    /// To `registerAgent`: this name and key are an agent.
    Registered {
        /// What it is granted on record.
        capabilities: Vec<Pattern>,
        /// Under which it may offer tools.
        prefixes: Vec<Pattern>,
    },
    /// To `attach`.
    Attached {
        /// The organisation's token root keys, active first.
        roots: Vec<PublicKey>,
        /// Bytes of one envelope that this broker takes.
        envelope_bytes_max: u64,
        /// How far clocks may differ, in milliseconds.
        clock_skew_max_ms: u64,
        /// Under which the agent may offer tools.
        prefixes: Vec<Pattern>,
        /// How the broker's keys follow one another, as in [`WellKnown`]; also from the active key to the
        /// prepared one.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        successions: Vec<String>,
    },
    /// To `offerTools`.
    Offered {
        /// How many.
        tools: u64,
    },
    /// To `emitEvent`: accepted for whoever is subscribed.
    Emitted,
    /// To `subscribe` and `unsubscribe`: all that the session is subscribed to.
    Subscribed {
        /// Sorted.
        topics: Vec<Pattern>,
    },
    /// To `revoke` and all acts that revoke: durable, and in force for the next envelope.
    Revoked(Struck),
    /// To an act that revokes, with `dry_run`: nothing was done.
    WouldRevoke(Struck),
    /// To an act that needs two admins: it waits for the second.
    Proposed {
        /// By which the second admin names it.
        id: Digest,
        /// Until when it waits.
        expires: Timestamp,
    },
    /// To `admin.proposal.list`.
    Proposals {
        /// Oldest first.
        proposals: Vec<ProposalRecord>,
    },
    /// To `admin.token.tree`.
    Tree {
        /// Each after the one that it hangs below.
        nodes: Vec<TreeNode>,
        /// Ask again with this as `after`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<String>,
    },
    /// To the acts on root keys.
    Roots {
        /// Active first, then prepared, then those that only verify.
        roots: Vec<KeyRecord>,
    },
    /// To the acts on the broker's keys.
    BrokerKeys {
        /// Active first, then prepared, then those that signed before.
        keys: Vec<KeyRecord>,
    },
    /// To `admin.peer.invite`.
    PeerInvited {
        /// The `peerDescriptor` envelope.
        descriptor: String,
    },
    /// To the other acts on peers.
    Peers {
        /// Sorted by organisation; the one that the act was about, where it was about one.
        peers: Vec<PeerRecord>,
    },
    /// To `admin.trust.state`, `admin.trust.decide` and `admin.trust.list`.
    TrustSaid {
        /// What this organisation states and has not taken back, by whom it is about.
        statements: Vec<TrustRecord>,
        /// What admins decided.
        decisions: Vec<TrustDecided>,
    },
    /// To `admin.trust.show`.
    Trust {
        /// Who trusts.
        from: Org,
        /// Whom.
        to: Org,
        /// For what; in general without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        capability: Option<Pattern>,
        /// Where that one stands: by that score, and by what was decided here.
        level: Level,
        /// How far, and why; not at all where there is none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        score: Option<Score>,
        /// What surrounds them.
        picture: Picture,
    },
    /// To `admin.config.read`.
    Config {
        /// As `broker.toml` has it, defaults filled in; no secrets.
        config: serde_json::Value,
    },
    /// To `rotateKey`.
    Rotated {
        /// The new key.
        key: PublicKey,
    },
    /// To `admin.agent.list`.
    Agents {
        /// Sorted by name.
        agents: Vec<AgentRecord>,
        /// Requests that wait for a decision.
        pending: Vec<PendingRecord>,
        /// Ask again with this as `after`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<String>,
    },
    /// To `admin.agent.show` and `admin.agent.approve`.
    Agent {
        /// The agent, if it is one.
        agent: Option<AgentRecord>,
        /// Requests under this name that wait for a decision.
        pending: Vec<PendingRecord>,
    },
    /// To `admin.agent.deny` and `admin.proposal.deny`.
    DeniedRequest,
    /// To `admin.token.issue`, `admin.enrol.issue` and `admin.bearer.issue`.
    Issued {
        /// By which it is listed and revoked.
        id: Digest,
        /// The unsealed token, base64url, when it was not kept on record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<String>,
        /// Until when.
        expires: Timestamp,
    },
    /// To `admin.token.list`.
    Tokens {
        /// Sorted by time of issue.
        tokens: Vec<TokenRecord>,
        /// Ask again with this as `after`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<String>,
    },
}

/// What a revocation strikes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Struck {
    /// Grants, enrolment tokens and blocks that die; the first 512 of them.
    pub ids: Vec<Digest>,
    /// Agents whose key dies; the first 512 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<Name>,
    /// Grants and tokens on record that are struck wholly or, by a pattern, in part.
    #[serde(default)]
    pub tokens: u64,
    /// Calls in flight that are cancelled.
    #[serde(default)]
    pub calls: u64,
    /// Sessions that are closed.
    #[serde(default)]
    pub sessions: u64,
}

/// An act that waits for a second admin.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProposalRecord {
    /// By which it is approved or denied.
    pub id: Digest,
    /// The act.
    pub act: String,
    /// Its body, as its admin sent it.
    pub body: serde_json::Value,
    /// The admin.
    pub by: Name,
    /// When.
    pub at: Timestamp,
    /// Until when it waits.
    pub expires: Timestamp,
}

/// A grant or a delegation, and whose it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TreeNode {
    /// By which it is revoked, with everything below it.
    pub id: Digest,
    /// What it hangs below; nothing for what an admin issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
    /// `approval`, `grant`, `delegation` or `narrowing`.
    pub kind: String,
    /// Who holds it, where the key is an agent's of this organisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Name>,
    /// Who holds it.
    pub key: PublicKey,
    /// What was issued; empty below that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Pattern>,
    /// Its own conditions, as Datalog.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<String>,
    /// Its end, with all that is above it.
    pub expires: Timestamp,
    /// Calls left of its own budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_left: Option<u32>,
    /// Whether it, or what is above it, is revoked.
    pub revoked: bool,
    /// The admin who issued it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<Name>,
}

/// A root key or a key of the broker, and what it is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The key.
    pub key: PublicKey,
    /// `active`: signs. `prepared`: made known, signs when it is activated. `retiring`: signed before.
    pub state: String,
    /// Since when.
    pub since: Timestamp,
}

/// A peer, as admins see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerRecord {
    /// Which organisation.
    pub org: Org,
    /// Its broker's key.
    pub key: PublicKey,
    /// For people to compare.
    pub fingerprint: String,
    /// Where it is dialled.
    pub endpoints: Vec<String>,
    /// `up`, `down` or `paused`.
    pub link: String,
    /// Why it is down, the last time that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// How old our view of its dead keys is, in milliseconds, while its link is up and a head has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocations_age_ms: Option<u64>,
    /// From which age on its agents' calls are refused.
    #[serde(default)]
    pub revocations_age_max_ms: u64,
    /// The TLS keys that it says are its own, on the link that is up: more than one while it changes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<Digest>,
    /// Tools of it that it advertises to us.
    pub tools: u64,
    /// What its agents are granted here: ids of grants, and what.
    pub grants: Vec<TokenRecord>,
    /// What it asked for when it was added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<Pattern>,
    /// When it was added.
    pub since: Timestamp,
}

/// An approved agent, as admins see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Its name.
    pub name: Name,
    /// Its key.
    pub key: PublicKey,
    /// For people to compare.
    pub fingerprint: String,
    /// What its approval and its recorded grants give it.
    pub capabilities: Vec<Pattern>,
    /// Under which it may offer tools.
    pub prefixes: Vec<Pattern>,
    /// What it may hand on, if it is an admin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<AdminScope>,
    /// Sessions attached now.
    pub sessions: u32,
    /// When it was approved.
    pub since: Timestamp,
    /// Of an older agent: how it is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older: Option<Box<OlderRecord>>,
}

/// A request that waits for a decision.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PendingRecord {
    /// The name it asks for.
    pub name: Name,
    /// Its key.
    pub key: PublicKey,
    /// For people to compare.
    pub fingerprint: String,
    /// What it asks for.
    pub capabilities: Vec<Pattern>,
    /// Tool prefixes it asks for.
    pub prefixes: Vec<Pattern>,
    /// Its own words, shown escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The network address it asked from.
    pub from: String,
    /// When it asked last.
    pub at: Timestamp,
    /// The name is an agent's with another key: approving changes that agent's key.
    pub key_change: bool,
    /// It is an older agent that asks: how it would be called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older: Option<Box<OlderRecord>>,
}

/// A grant that was issued, as admins see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenRecord {
    /// By which it is revoked.
    pub id: Digest,
    /// `approval`, `grant` or `enrol`.
    pub kind: String,
    /// To whom, or for which names.
    pub subject: String,
    /// What.
    pub capabilities: Vec<Pattern>,
    /// Further conditions.
    pub checks: Vec<String>,
    /// When.
    pub issued: Timestamp,
    /// Until when.
    pub expires: Timestamp,
    /// By which admin; nobody for what an enrolment token gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<Name>,
    /// Kept on record at the broker, or handed out.
    pub record: bool,
    /// Whether it is revoked.
    pub revoked: bool,
    /// Uses left, of an enrolment token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses_left: Option<u32>,
    /// From when, if not at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Calls left, of a grant with a budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_left: Option<u32>,
}

/// `credential`: the broker's word for who speaks, and for what it permitted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Credential {
    /// Who.
    pub subject: AgentId,
    /// Under which key.
    pub key: PublicKey,
    /// Until when this may be relied on: at most five minutes.
    pub expires: Timestamp,
    /// For a call: what permitted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<CredentialPermit>,
}

/// What permitted a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialPermit {
    /// Whose tool.
    pub provider: AgentId,
    /// Which tool.
    pub tool: Capability,
    /// The one capability used.
    pub capability: Capability,
    /// `record`: a grant on record. `token`: the one in the caller's envelope, which the provider checks itself.
    pub basis: Basis,
    /// The trust score of the caller's organisation by which it was permitted, where a condition asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<u8>,
    /// The sealed token that is the grant on record or came over a peer's link, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
    /// In which sandbox the tool has to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The caller is an older agent, and its envelope to be read as one's.
    #[serde(default, skip_serializing_if = "is_false")]
    pub older: bool,
}

/// Where a permission came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// What the agent is granted on record.
    Record,
    /// The token in the envelope.
    Token,
    /// A peer's token, delegated to the sender by its own broker.
    Peer,
}

/// `peerTopics`: all of a peer's agents that listen to topics here. Replaces what was said before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerTopics {
    /// At most 1,024.
    pub listeners: Vec<Listener>,
}

/// An agent that listens to another organisation's topics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Which.
    pub agent: AgentId,
    /// As they are called there; at most 256.
    pub topics: Vec<Pattern>,
    /// Sealed tokens in which its broker introduces it, base64url; at most 4.
    pub tokens: Vec<String>,
}

/// `peerEvent`: an event on its way to another organisation's agents.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerEvent {
    /// Who of the reader's agents may hear it.
    #[serde(rename = "for")]
    pub listeners: Vec<AgentId>,
    /// The key of its emitter.
    pub key: PublicKey,
    /// The `emitEvent` envelope as text: as its emitter signed it.
    pub event: String,
    /// How many events for this organisation were lost before it, since the last that was not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missed: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// `/.well-known/fem`: for people and for set-up; nothing in it is to be trusted by itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WellKnown {
    /// Whose broker this is.
    pub org: Org,
    /// Its key. Compare it with what the organisation told you.
    pub key: PublicKey,
    /// Protocol versions.
    pub versions: Vec<u32>,
    /// Where envelopes are posted.
    pub post: String,
    /// Where sessions are attached.
    pub websocket: String,
    /// Bytes of one envelope.
    pub envelope_bytes_max: u64,
    /// How far clocks may differ, in milliseconds.
    pub clock_skew_max_ms: u64,
    /// The broker's time.
    pub now: Timestamp,
    /// How its keys followed one another: `succession` envelopes as text, oldest first. Each is worth
    /// what the key is worth that signed it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub successions: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::SigningKey;

    fn discovered() -> DiscoveredTool {
        let raw = |text: &str| RawValue::from_string(text.into()).ok();
        DiscoveredTool {
            agent: "fs@acme".parse().unwrap(),
            key: SigningKey::from_seed(&[1; 32]).public(),
            tool: Tool {
                name: "fs.read".parse().unwrap(),
                capability: Some("file.read".parse().unwrap()),
                description: Some("Reads".into()),
                input_schema: raw(r#"{"type":"object"}"#),
                output_schema: raw(r#"{"type":"string"}"#),
                annotations: raw(r#"{"readOnlyHint":true}"#),
                mcp: Some(McpRequest {
                    method: "tools/call".into(),
                    definition: raw(r#"{"name":"read","icons":[]}"#),
                }),
            },
            checks: vec!["check if true".into()],
            via: vec!["globex".parse().unwrap()],
            unsigned: Some(Unsigned::Fep),
        }
    }

    fn is_read_as_it_was_written<T: Serialize + serde::de::DeserializeOwned>(value: &T) {
        let written = serde_json::to_string(value).unwrap();
        let read: T = serde_json::from_str(&written).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), written);
    }

    #[test]
    fn a_discovered_tool_is_read_as_it_was_written() {
        is_read_as_it_was_written(&discovered());
    }

    #[test]
    fn a_list_of_tools_is_read_as_it_was_written_with_every_key_its_own() {
        let other = DiscoveredTool {
            agent: "calc@acme".parse().unwrap(),
            key: SigningKey::from_seed(&[2; 32]).public(),
            ..discovered()
        };
        let list = ToolsDiscovered {
            tools: vec![discovered(), other.clone(), discovered(), other],
            next: Some("calc.add calc@acme".into()),
        };
        is_read_as_it_was_written(&list);
        // The identity: one signature under it would fit every message.
        let mut bad = serde_json::to_value(&list).unwrap();
        bad["tools"][3]["key"] = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".into();
        assert!(serde_json::from_value::<ToolsDiscovered>(bad).is_err());
    }

    #[test]
    fn an_advertised_tool_is_read_as_it_was_written() {
        is_read_as_it_was_written(&AdvertisedTool {
            tool: discovered(),
            grants: vec![Digest::of(b"grant")],
            onward: Vec::new(),
        });
    }
}
