//! `mcp serve`: an MCP server on standard input and output, whose tools are what this agent may call.
//!
//! Whoever starts it is its client and speaks with the agent's own key. Standard output has messages of the
//! protocol and nothing else; what there is to say to people goes to standard error.

use std::os::fd::AsFd;
use std::sync::Arc;

use agent_sdk::SystemClock;
use agent_sdk::mcp::gateway::{Allowed, Bounds, Gateway, Scope, Shared, ThroughAgent};
use proto_spec::AgentId;

use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::output::note;

/// Offers what this agent may call to the MCP client that starts it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example, as a desktop client is told about it:
  {\"command\": \"fem-cli\", \"args\": [\"mcp\", \"serve\", \"--context\", \"ada\"]}")]
pub(crate) struct Serve {
    /// Only this agent's tools, under their own names
    #[arg(long, value_name = "NAME@ORG")]
    agent: Option<AgentId>,
}

pub(crate) async fn run(args: &Serve, chosen: &Chosen) -> Outcome {
    let agent = chosen.agent()?;
    let scope = match &args.agent {
        Some(only) => Scope::One(only.clone()),
        None => Scope::All,
    };
    note(&match &args.agent {
        Some(only) => format!("Serving {only} to an MCP client, as {}.", agent.id()),
        None => format!("Serving what {} may call to an MCP client.", agent.id()),
    });
    let through = Arc::new(ThroughAgent::new(agent));
    let upstream: Shared = Arc::clone(&through) as Shared;
    // Nobody comes over HTTP and the session is this process: nothing is sealed that another has to open.
    let bounds = Bounds::default();
    let gateway = Gateway::new(
        &secret()?,
        Arc::new(SystemClock),
        Allowed::default(),
        bounds,
    );
    let (input, output) = (stream(std::io::stdin())?, stream(std::io::stdout())?);
    tokio::select! {
        served = gateway.stdio(input, output, upstream, scope.clone()) => Ok(served?),
        () = through.watch(&scope) => Ok(()),
    }
}

/// One of this process' own streams.
fn stream(own: impl AsFd) -> Outcome<tokio::fs::File> {
    Ok(std::fs::File::from(own.as_fd().try_clone_to_owned()?).into())
}

fn secret() -> Outcome<[u8; 32]> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|why| Failure::fault(format!("no randomness from the system: {why}")))?;
    Ok(secret)
}
