//! Calls `hello.greet` of `hello@acme`. Needs that capability: see README.md.

#[tokio::main]
async fn main() -> agent_sdk::Result<()> {
    let agent = agent_sdk::Agent::from_env()?;
    let arguments = serde_json::json!({"name": "Ada"});
    let answer: String = agent.call("hello@acme", "hello.greet", &arguments).await?;
    println!("{answer}");
    Ok(())
}
