//! Serves one tool, `hello.greet`. Run as an agent named `hello`: see README.md.

use agent_sdk::{Agent, Call, Tool};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Greet {
    name: String,
}

#[tokio::main]
async fn main() -> agent_sdk::Result<()> {
    let greet = Tool::new("hello.greet", |_call: Call, args: Greet| async move {
        Ok(format!("Hello {}", args.name))
    });
    Agent::from_env()?.serve([greet]).await
}
