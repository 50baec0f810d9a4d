//! `mcp`: tools that speak the Model Context Protocol, on both sides of the broker.

mod serve;

use crate::connect::Chosen;
use crate::failure::Outcome;
use crate::output::Output;

/// Brings clients of the Model Context Protocol to agents' tools
#[derive(Debug, clap::Args)]
pub(crate) struct Mcp {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    Serve(serve::Serve),
}

pub(crate) async fn run(args: Mcp, chosen: &Chosen, _output: Output) -> Outcome {
    match args.act {
        Act::Serve(args) => serve::run(&args, chosen).await,
    }
}
