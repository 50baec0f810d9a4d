//! Whoever calls what is offered, and answers what is asked on the way: an agent of its own.

use std::path::Path;

use agent_sdk::{
    Agent, CallOptions, Config, DiscoverTools, DiscoveredTool, Error, INVALID_ARGUMENTS,
};
use anyhow::{Context as _, Result, bail};
use serde_json::value::to_raw_value;
use serde_json::{Map, Value, json};
use tests::mcp::ground::HOST;

use crate::wrapped::Wrapped;

/// Rounds of questions within one call.
const ROUNDS_MAX: usize = 5;

/// An agent that may call everything.
pub(crate) struct Caller {
    agent: Agent,
    provider: String,
}

impl Caller {
    /// For the tools of the agent `name`.
    pub(crate) fn open(ground: &Path, name: &str) -> Result<Self> {
        Ok(Self {
            agent: Agent::new(Config::from_file(ground.join(HOST))?)?,
            provider: format!("{name}@acme"),
        })
    }

    /// The server's tools.
    pub(crate) async fn tools(&self) -> Result<Vec<DiscoveredTool>> {
        let wanted = DiscoverTools {
            agent: Some(self.provider.parse().map_err(anyhow::Error::msg)?),
            ..DiscoverTools::default()
        };
        Ok(self.agent.discover(wanted).await?)
    }

    /// Makes a request to its end: answers what is asked, and has somebody log in where that is what is missing.
    /// Nothing comes of arguments that do not fit: there is nothing that this caller would say to that tool.
    pub(crate) async fn call(
        &mut self,
        wrapped: &mut Wrapped,
        tool: &str,
        arguments: &Value,
    ) -> Result<Value> {
        let mut more = Map::new();
        for _ in 0..ROUNDS_MAX {
            let answer = match self.ask(tool, arguments, &more).await {
                Err(Error::Tool { code, .. }) if code == "SERVER_LOGIN_NEEDED" => {
                    wrapped.log_in().await?;
                    continue;
                }
                Err(Error::Tool { code, .. }) if code == INVALID_ARGUMENTS => {
                    return Ok(Value::Null);
                }
                other => other.with_context(|| tool.to_owned())?,
            };
            if answer["resultType"] != "input_required" {
                return Ok(answer);
            }
            more = answers(&answer);
        }
        bail!("{tool} asks without end")
    }

    async fn ask(
        &self,
        tool: &str,
        arguments: &Value,
        more: &Map<String, Value>,
    ) -> Result<Value, Error> {
        let mut mcp = json!({"_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "host", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
        }});
        for (name, value) in more {
            mcp[name] = value.clone();
        }
        let options = CallOptions {
            mcp: to_raw_value(&mcp).ok(),
            ..CallOptions::default()
        };
        let raw = self
            .agent
            .call_raw(&self.provider, tool, arguments, &options);
        Ok(serde_json::from_str(raw.await?.get()).unwrap_or_default())
    }
}

/// What the next round has beside the arguments: a yes to every question, and the server's state where it gave one.
fn answers(asked: &Value) -> Map<String, Value> {
    let questions = asked["inputRequests"].as_object();
    let answers: Map<String, Value> = questions
        .into_iter()
        .flatten()
        .map(|(key, question)| {
            let content = example(&question["params"]["requestedSchema"], Fill::Everything);
            (key.clone(), json!({"action": "accept", "content": content}))
        })
        .collect();
    let mut more = Map::from_iter([("inputResponses".to_owned(), answers.into())]);
    if let Some(state) = asked.get("requestState") {
        more.insert("requestState".into(), state.clone());
    }
    more
}

/// Which properties an example has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Those that are required.
    Required,
    /// All.
    Everything,
}

/// An object that fits a flat schema: its defaults, else the simplest value of each type.
pub(crate) fn example(schema: &Value, fill: Fill) -> Value {
    let required = schema["required"].as_array();
    let is_required = |name: &str| required.is_some_and(|all| all.iter().any(|one| one == name));
    let properties = schema["properties"].as_object();
    let chosen = properties
        .into_iter()
        .flatten()
        .filter(|(name, _)| fill == Fill::Everything || is_required(name));
    let value = |schema: &Value| match (schema.get("default"), schema["type"].as_str()) {
        (Some(default), _) => default.clone(),
        (None, Some("boolean")) => json!(true),
        (None, Some("integer" | "number")) => json!(1),
        (None, Some("array")) => json!([]),
        (None, Some("object")) => json!({}),
        (None, _) => json!("x"),
    };
    chosen
        .map(|(name, schema)| (name.clone(), value(schema)))
        .collect()
}
