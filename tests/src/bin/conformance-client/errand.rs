//! What a scenario wants done, and with which papers: all that the suite says in the environment.

use std::path::Path;

use agent_sdk::DiscoveredTool;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::caller::{Caller, Fill, example};
use crate::wrapped::Wrapped;

/// A scenario, as the suite names it.
pub(crate) struct Errand {
    /// What whoever sets the client up would know: keys, secrets, calls to make.
    context: Value,
}

impl Errand {
    pub(crate) fn of_process() -> Result<Self> {
        let context = std::env::var("MCP_CONFORMANCE_CONTEXT").unwrap_or_else(|_| "{}".into());
        Ok(Self {
            context: serde_json::from_str(&context)?,
        })
    }

    /// How to log in to the server at `url`, beside where it is. Secrets are put into files.
    pub(crate) async fn login(
        &self,
        _ground: &Path,
        _url: &str,
        _name: &str,
    ) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Does what the scenario looks at: calls every tool, reads every resource and prompt, unless it says which.
    pub(crate) async fn run(&self, caller: &mut Caller, wrapped: &mut Wrapped) -> Result<()> {
        if let Some(calls) = self.context["toolCalls"].as_array() {
            for call in calls {
                let name = call["name"].as_str().context("a call without a name")?;
                let tool = format!("{}.{name}", wrapped.name());
                caller
                    .call(wrapped, &tool, &given(&call["arguments"]))
                    .await?;
            }
            return Ok(());
        }
        let tools = caller.tools().await?;
        let schema = |name: &str| {
            let is_it = |found: &&DiscoveredTool| found.tool.name.as_str().ends_with(name);
            let tool = tools.iter().find(is_it)?;
            let text = tool.tool.input_schema.as_ref()?.get();
            serde_json::from_str::<Value>(text).ok()
        };
        for found in &tools {
            let name = found.tool.name.as_str();
            let request = found.tool.mcp.as_ref().map(|mcp| mcp.method.as_str());
            match request {
                Some("tools/call") => {
                    let fits = example(&schema(name).unwrap_or_default(), Fill::Required);
                    let arguments = match name.ends_with(".json_schema_echo") {
                        true => json!({"schema": schema(".json_schema_2020_12_tool")}),
                        false => fits,
                    };
                    caller.call(wrapped, name, &arguments).await?;
                }
                Some("resources/list") => {
                    let list = caller.call(wrapped, name, &json!({})).await?;
                    let read = name.replace(".list", ".read");
                    for resource in list["resources"].as_array().into_iter().flatten() {
                        let arguments = json!({"uri": resource["uri"]});
                        caller.call(wrapped, &read, &arguments).await?;
                    }
                }
                Some("prompts/list") => {
                    let list = caller.call(wrapped, name, &json!({})).await?;
                    let get = name.replace(".list", ".get");
                    for prompt in list["prompts"].as_array().into_iter().flatten() {
                        let arguments = json!({"name": prompt["name"]});
                        caller.call(wrapped, &get, &arguments).await?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Arguments that are given: to a schema that does not name it, `null` is a value like any other, and does not fit.
fn given(arguments: &Value) -> Value {
    let given = arguments.as_object().into_iter().flatten();
    given
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
