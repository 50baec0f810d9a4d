//! What older agents say, and what is known of them: SPEC.md, *Older agents*.
//!
//! Their bodies are not closed: other implementations wrote them, and what is not read here has no effect.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{DiscoverTools, RegisterAgent, ToolCall};
use crate::capability::Capability;
use crate::envelope::Envelope;
use crate::identity::{AgentId, Name};
use crate::limits::{
    OLDER_ENDPOINT_CHARS_MAX, OLDER_TOOL_CHARS_MAX, OLDER_TOOLS_MAX, SEGMENT_CHARS_MAX,
    TOOL_SEGMENTS_MAX,
};
use crate::refusal::Refusal;
use crate::signature::{Digest, PublicKey};

/// The `via` of what a broker says in an older agent's place.
pub const VIA_FEP: &str = "fep";

/// Whose answers a caller takes although their provider does not sign them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unsigned {
    /// Older agents': the broker passes on what they said.
    Fep,
}

impl std::str::FromStr for Unsigned {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            VIA_FEP => Ok(Self::Fep),
            _ => Err(format!("`{VIA_FEP}`, the older agents', is the only kind")),
        }
    }
}

/// The names by which a tool that is called `bare` at an agent may be offered, the first one preferred: its
/// own, where that is a tool's name, and its own behind the agent's. There foreign characters become `_`, and
/// what is too long is cut, with some of its digest behind it.
pub fn full_names(agent: &Name, bare: &str) -> impl Iterator<Item = Capability> {
    let segments: Vec<String> = bare.split('.').map(segment).collect();
    let behind = format!("{agent}.{}", segments.join("."));
    let is_tool = |name: &Capability| {
        !bare.is_empty() && !name.is_reserved() && name.segments() <= TOOL_SEGMENTS_MAX
    };
    let parse = |text: &str| text.parse().ok().filter(is_tool);
    [parse(bare), parse(&behind)].into_iter().flatten()
}

/// One segment of a foreign name.
fn segment(foreign: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let mut text: String = foreign
        .chars()
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    if text.is_empty() {
        text.push('_');
    }
    if text.len() > SEGMENT_CHARS_MAX {
        let digest = Digest::of(foreign.as_bytes()).0;
        let hex: String = digest[..6].iter().map(|b| format!("{b:02x}")).collect();
        text.truncate(SEGMENT_CHARS_MAX - hex.len() - 1);
        text = format!("{text}_{hex}");
    }
    text
}

/// What an older agent told of itself when it asked to be registered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Older {
    /// Where it says that it is called; a URL, believed by nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The kind of surroundings that it says it runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// What it says that it can do.
    pub tools: Vec<OlderTool>,
}

/// A tool as an older agent names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OlderTool {
    /// Its bare name, by which the agent is called.
    pub name: String,
    /// For people and models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON Schema of its arguments, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
}

/// An older agent, or one that asks to be, as admins see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OlderRecord {
    /// Where it says that it is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Whether the broker's configuration allows that.
    pub allowed: bool,
    /// Its tools, by their bare names.
    pub tools: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Registration {
    pubkey: PublicKey,
    #[serde(default)]
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    mcp_endpoint: Option<String>,
    #[serde(default)]
    body_definition: Option<BodyDefinition>,
    #[serde(default)]
    environment_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BodyDefinition {
    #[serde(default)]
    mcp_tools: Option<Vec<McpTool>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct McpTool {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    input_schema: Option<Box<RawValue>>,
}

impl From<McpTool> for OlderTool {
    fn from(tool: McpTool) -> Self {
        Self {
            name: tool.name,
            description: tool.description.filter(|text| !text.is_empty()),
            schema: tool.input_schema.map(|raw| raw.get().to_owned()),
        }
    }
}

impl Older {
    /// What its capabilities name besides its tools are tools without a description.
    fn of(said: Registration, agent: Option<&Name>) -> Result<Self, Refusal> {
        let definition = said.body_definition.and_then(|body| body.mcp_tools);
        let mut tools: Vec<OlderTool> = Vec::new();
        let bare = |name| OlderTool {
            name,
            description: None,
            schema: None,
        };
        let described = definition.into_iter().flatten().map(OlderTool::from);
        for tool in described.chain(said.capabilities.into_iter().flatten().map(bare)) {
            if tool.name.is_empty() || tool.name.chars().count() > OLDER_TOOL_CHARS_MAX {
                return Err(Refusal::InvalidBody(format!(
                    "a tool's name has 1 to {OLDER_TOOL_CHARS_MAX} characters"
                )));
            }
            if !tools.iter().any(|known| known.name == tool.name) {
                tools.push(tool);
            }
        }
        if tools.len() > OLDER_TOOLS_MAX {
            return Err(Refusal::InvalidBody(format!(
                "more than {OLDER_TOOLS_MAX} tools"
            )));
        }
        let full = |tool: &OlderTool| agent.and_then(|agent| full_names(agent, &tool.name).last());
        let mut names: Vec<Capability> = tools.iter().filter_map(full).collect();
        names.sort();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Refusal::InvalidBody(format!(
                "two tools would be called {}",
                pair[0]
            )));
        }
        let text = |name: &str, text: Option<String>| match text {
            Some(text) if text.chars().count() > OLDER_ENDPOINT_CHARS_MAX => {
                Err(Refusal::InvalidBody(format!(
                    "`{name}` has more than {OLDER_ENDPOINT_CHARS_MAX} characters"
                )))
            }
            text => Ok(text.filter(|text| !text.is_empty())),
        };
        Ok(Self {
            endpoint: text("mcpEndpoint", said.mcp_endpoint)?,
            environment: text("environmentType", said.environment_type)?,
            tools,
        })
    }
}

impl RegisterAgent {
    /// What a `registerAgent` says; of an older agent's also what it tells of itself. The capabilities that
    /// one lists are what it can do, not what it asks to be granted.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidBody`].
    pub fn of(envelope: &Envelope) -> Result<(Self, Option<Older>), Refusal> {
        if !envelope.is_older() {
            return Ok((envelope.read_body()?, None));
        }
        let said: Registration = envelope.read_body()?;
        let request = Self {
            pubkey: said.pubkey,
            capabilities: Vec::new(),
            prefixes: Vec::new(),
            enrolment: None,
            note: None,
        };
        let agent = envelope.speaker().agent().map(AgentId::name);
        Ok((request, Some(Older::of(said, agent)?)))
    }
}

/// An older agent's `toolCall`; whom it names stands in the envelope's audience.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Call<'a> {
    #[serde(borrow, default)]
    parameters: Option<&'a RawValue>,
}

impl<'a> ToolCall<'a> {
    /// What a `toolCall` asks. An older agent cannot say that it takes unsigned answers; it takes nothing else.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidBody`].
    pub fn of(envelope: &'a Envelope) -> Result<Self, Refusal> {
        let Some(tool) = envelope.older_tool() else {
            return envelope.read_body();
        };
        let said: Call<'a> = envelope.read_body()?;
        Ok(Self {
            tool: Cow::Borrowed(tool.as_str()),
            arguments: said.parameters.filter(|raw| raw.get() != "null"),
            progress: false,
            unsigned: Some(Unsigned::Fep),
            mcp: None,
        })
    }
}

/// What an older agent's `discoverTools` asks for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OlderQuery {
    /// Only tools that one of these covers; all, where there is none.
    #[serde(default)]
    pub capabilities: Option<Vec<String>>,
    /// Only agents that said this of themselves.
    #[serde(default)]
    pub environment_type: Option<String>,
    /// Agents at most; as many as there are when 0.
    #[serde(default)]
    pub max_results: Option<u32>,
}

impl DiscoverTools {
    /// What a `discoverTools` asks. All that an older agent could call is looked at, and its own question
    /// is put to what was found.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidBody`].
    pub fn of(envelope: &Envelope) -> Result<Self, Refusal> {
        match envelope.is_older() {
            true => Ok(Self::default()),
            false => envelope.read_body(),
        }
    }
}
