//! What older agents say to the broker, and what they are told: plain JSON, with status 200 exactly where it
//! was done.

use std::collections::BTreeMap;

use proto_spec::limits::ENVELOPE_BYTES_MAX;
use proto_spec::message::{DiscoveredTool, OlderQuery, ToolResult, ToolsDiscovered};
use proto_spec::refusal::ErrorBody;
use proto_spec::{Envelope, Kind, Name, Refusal};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::pipeline::Core;
use crate::state::calls::Answer;

/// Whether a request could be an older agent's. Where they are not spoken with it is told so in its own way.
#[must_use]
pub fn is_older(bytes: &[u8]) -> bool {
    Envelope::may_be_older(bytes)
}

/// What of an older agent's envelope its answer repeats or is cut by.
#[derive(Deserialize)]
struct Asked<'a> {
    #[serde(borrow)]
    body: Option<AskedBody<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AskedBody<'a> {
    #[serde(borrow)]
    request_id: Option<&'a RawValue>,
    query: Option<OlderQuery>,
}

/// An answer of the broker's as an older agent reads it; `asked` is the whole of what it said.
#[must_use]
pub fn answer(core: &Core, asked: &[u8], answer: &Answer) -> Answer {
    let asked = serde_json::from_slice::<Asked<'_>>(asked).ok();
    let asked = asked.and_then(|asked| asked.body);
    let told = retold(core, asked, answer).unwrap_or_else(|| {
        let refusal = ErrorBody::from(&Refusal::Internal);
        (Refusal::Internal.code().http_status(), refused(&refusal))
    });
    Answer {
        envelope: told.1.to_string().into(),
        credential: None,
        status: told.0,
    }
}

fn retold(core: &Core, asked: Option<AskedBody<'_>>, answer: &Answer) -> Option<(u16, Value)> {
    let said = Envelope::parse(answer.envelope.clone(), 2 * ENVELOPE_BYTES_MAX).ok()?;
    let (request_id, query) = asked.map_or((None, None), |body| (body.request_id, body.query));
    let mut told = match said.kind() {
        Kind::Error => return Some((answer.status, refused(&said.read_body().ok()?))),
        Kind::Ack => {
            let ack: Value = said.read_body().ok()?;
            json!({"status": ack.get("status")?})
        }
        Kind::ToolResult => result(&said.read_body().ok()?)?,
        Kind::ToolsDiscovered => {
            discovered(core, &said.read_body().ok()?, &query.unwrap_or_default())
        }
        _ => return None,
    };
    if let Some(id) = request_id.and_then(|raw| serde_json::from_str(raw.get()).ok()) {
        told.as_object_mut()?.insert("requestId".into(), id);
    }
    Some((answer.status, told))
}

fn refused(error: &ErrorBody) -> Value {
    json!({
        "status": "error",
        "code": error.code,
        "error": error.message,
        "retryable": error.retryable,
    })
}

/// They take a result where they expect to hear that the call is under way.
fn result(said: &ToolResult<'_>) -> Option<Value> {
    let value = |raw: Option<&RawValue>| match raw {
        Some(raw) => serde_json::from_str::<Value>(raw.get()).ok(),
        None => Some(Value::Null),
    };
    Some(match &said.error {
        None => json!({"status": "processing", "success": true, "result": value(said.result)?}),
        Some(error) => json!({
            "status": "processing",
            "success": false,
            "error": error.message,
            "code": error.code,
            "data": value(error.data)?,
        }),
    })
}

/// The tools of our own organisation by their agents, as far as they are asked for. Where an agent is called is
/// told to nobody: whoever calls it asks the broker.
fn discovered(core: &Core, found: &ToolsDiscovered, query: &OlderQuery) -> Value {
    let wanted = query.capabilities.as_deref().unwrap_or_default();
    let mut agents: BTreeMap<&Name, Vec<&DiscoveredTool>> = BTreeMap::new();
    for tool in &found.tools {
        let is_wanted = wanted.is_empty() || wanted.iter().any(|one| covers(one, tool));
        if *tool.agent.org() == core.state.org && is_wanted {
            agents.entry(tool.agent.name()).or_default().push(tool);
        }
    }
    let environment_of = |name: &Name| {
        let older = core.state.registry.agent(name)?.older.clone()?;
        older.environment.clone()
    };
    let now = core.clock.now().as_ms();
    let mut told = Vec::new();
    for (name, tools) in agents {
        let environment = environment_of(name).unwrap_or_default();
        let only = query.environment_type.as_deref().unwrap_or_default();
        if only.is_empty() || only == environment {
            told.push(agent(name, &tools, &environment, now));
        }
    }
    let total = told.len();
    let most = query.max_results.filter(|most| *most > 0);
    told.truncate(most.map_or(total, |most| most as usize));
    json!({
        "hasMore": told.len() < total || found.next.is_some(),
        "totalResults": total,
        "tools": told,
    })
}

fn agent(name: &Name, tools: &[&DiscoveredTool], environment: &str, now: u64) -> Value {
    let required: Vec<&str> = tools
        .iter()
        .map(|found| found.tool.required().as_str())
        .collect();
    let tools: Vec<Value> = tools
        .iter()
        .map(|found| {
            json!({
                "name": found.tool.name,
                "description": found.tool.description.as_deref().unwrap_or_default(),
                "inputSchema": found.tool.input_schema,
            })
        })
        .collect();
    json!({
        "agentId": name,
        "mcpEndpoint": "",
        "capabilities": required,
        "environmentType": environment,
        "mcpTools": tools,
        "metadata": {"lastSeen": now, "averageResponseTime": 0, "trustScore": 1.0},
    })
}

/// Whether an older agent's pattern covers a tool, by its full name or by its name at its agent.
fn covers(pattern: &str, tool: &DiscoveredTool) -> bool {
    let full = tool.tool.name.as_str();
    let own = format!("{}.", tool.agent.name());
    let stem = pattern.strip_suffix('*');
    let is_covered = |name: &str| match stem {
        Some(stem) => (stem.is_empty() || stem.ends_with('.')) && name.starts_with(stem),
        None => name == pattern,
    };
    is_covered(full) || full.strip_prefix(&own).is_some_and(is_covered)
}
