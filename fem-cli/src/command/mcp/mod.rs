//! `mcp`: tools that speak the Model Context Protocol, on both sides of the broker.

mod wrap;

use crate::connect::Chosen;
use crate::failure::Outcome;
use crate::output::Output;

/// Brings tools of the Model Context Protocol in
#[derive(Debug, clap::Args)]
pub(crate) struct Mcp {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    Wrap(wrap::Wrap),
}

pub(crate) async fn run(args: Mcp, chosen: &Chosen, output: Output) -> Outcome {
    match args.act {
        Act::Wrap(args) => wrap::run(args, chosen, output).await,
    }
}
