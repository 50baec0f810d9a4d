//! What a scenario wants done, and with which papers: all that the suite says in the environment.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use agent_sdk::DiscoveredTool;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::mcp::browser;

use crate::caller::{Caller, Fill, example};
use crate::wrapped::Wrapped;

/// Where whoever runs the client describes it, by the suite's word.
const DOCUMENT: &str = "https://conformance-test.local/client-metadata.json";

/// A scenario, as the suite names it.
pub(crate) struct Errand {
    scenario: String,
    /// What whoever sets the client up would know: keys, secrets, calls to make.
    context: Value,
}

impl Errand {
    pub(crate) fn of_process() -> Result<Self> {
        let context = std::env::var("MCP_CONFORMANCE_CONTEXT").unwrap_or_else(|_| "{}".into());
        Ok(Self {
            scenario: std::env::var("MCP_CONFORMANCE_SCENARIO").context("no scenario")?,
            context: serde_json::from_str(&context)?,
        })
    }

    /// How to log in to the server at `url`, beside where it is. Secrets are put into files of `ground`.
    pub(crate) async fn login(&self, ground: &Path, url: &str, name: &str) -> Result<Vec<String>> {
        let said = |name: &str| self.context[name].as_str();
        let mut login = Vec::new();
        let mut file = |option: &str, ending: &str, secret: &str| -> Result<()> {
            let path = ground.join(format!("{name}.{ending}"));
            let mut file = OpenOptions::new();
            let mut file = file.write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(secret.as_bytes())?;
            let at = if option == "--client-key" { "" } else { "@" };
            login.extend([option.to_owned(), format!("{at}{}", path.display())]);
            Ok(())
        };
        match (
            said("client_secret"),
            said("private_key_pem"),
            said("valid_jwt"),
        ) {
            (Some(secret), _, _) => file("--client-secret", "secret", secret)?,
            (_, Some(key), _) => file("--client-key", "client.pem", key)?,
            (_, _, Some(token)) => file("--assertion", "jwt", token)?,
            _ => return Ok(vec!["--client-metadata".into(), DOCUMENT.into()]),
        }
        if let Some(id) = said("client_id") {
            login.extend(["--client-id".into(), id.into()]);
        }
        if self.scenario.contains("client-credentials") {
            login.push("--unattended".into());
        }
        let issuer = match said("issuer") {
            Some(issuer) => issuer.to_owned(),
            None => issuer(url).await?,
        };
        login.extend(["--issuer".into(), issuer]);
        Ok(login)
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

/// Who authorises at a server: whoever is given a secret for it is told that too, and the suite does not always say.
async fn issuer(url: &str) -> Result<String> {
    let place = url.replace("/mcp", "/.well-known/oauth-protected-resource/mcp");
    let page = browser::get(&place).await?;
    let (_, document) = page.split_once("\r\n\r\n").context("no document")?;
    let document: Value = serde_json::from_str(document)?;
    let issuer = document["authorization_servers"][0].as_str();
    Ok(issuer.context("nobody authorises")?.to_owned())
}

/// Arguments that are given: to a schema that does not name it, `null` is a value like any other, and does not fit.
fn given(arguments: &Value) -> Value {
    let given = arguments.as_object().into_iter().flatten();
    given
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
