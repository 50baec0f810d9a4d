//! Serves `text.count`: a program that runs in the box, on a text of the caller's.

use agent_sdk::sandbox::{self, Sandbox, Wanted};
use agent_sdk::{Agent, Tool};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    sandbox::init(); // before any thread, so before #[tokio::main] too
    let policy = Wanted::read("memory_bytes = 67108864").and_then(Wanted::check);
    let policy = policy.map_err(|problems| problems.join("\n"))?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let sandbox = Sandbox::open(policy).await?; // an error names what this machine cannot enforce
        let count = Tool::command("text.count", &sandbox, ["grep", "-c", "--", "{what}"]);
        Ok(Agent::from_env()?.serve([count]).await?)
    })
}
