//! `mcp`: tools that speak the Model Context Protocol, on both sides of the broker.

mod bearer;
mod login;
mod serve;
mod wrap;

use crate::connect::Chosen;
use crate::failure::Outcome;
use crate::output::Output;

pub(crate) use bearer::{kept, token_given};

/// Brings in servers and clients of the Model Context Protocol (MCP)
#[derive(Debug, clap::Args)]
pub(crate) struct Mcp {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    Wrap(wrap::Wrap),
    Login(login::Login),
    Serve(serve::Serve),
    Keep(bearer::Keep),
    Token(bearer::Token),
}

pub(crate) async fn run(args: Mcp, chosen: &Chosen, output: Output) -> Outcome {
    match args.act {
        Act::Wrap(args) => wrap::run(args, chosen, output).await,
        Act::Login(args) => login::run(args, output).await,
        Act::Serve(args) => serve::run(&args, chosen).await,
        Act::Keep(args) => bearer::keep(args, chosen, output).await,
        Act::Token(args) => bearer::token(args, chosen, output).await,
    }
}
