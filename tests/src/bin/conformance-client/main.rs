//! What the conformance suite starts as a client: a server is wrapped as its operator wraps it, logged in to as
//! a person does, and called by another agent through a broker.
//!
//! Nothing of MCP or OAuth is spoken here: `wrapped` runs `fem-cli mcp wrap` and `fem-cli mcp login`, and `caller`
//! calls what is offered and answers what is asked. Which scenario is played counts in `errand` alone.
//!
//! `FEM_GROUND` names a folder in which `acme`'s broker runs and others may register; see
//! [`tests::mcp::ground`].

mod caller;
mod errand;
mod wrapped;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tests::mcp::ground::GROUND;

use self::caller::Caller;
use self::errand::Errand;
use self::wrapped::Wrapped;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let url = std::env::args().next_back().context("no URL")?;
    let ground = PathBuf::from(std::env::var_os(GROUND).context("no ground")?);
    let errand = Errand::of_process()?;
    let mut wrapped = Wrapped::start(&ground, &url, &errand).await?;
    let mut caller = Caller::open(&ground, wrapped.name())?;
    let ran = errand.run(&mut caller, &mut wrapped).await;
    wrapped.stop().await?;
    ran
}
