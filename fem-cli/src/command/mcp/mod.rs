//! `mcp`: servers and clients of the Model Context Protocol.

mod bearer;

use crate::command::wait_for;
use crate::connect::Chosen;
use crate::failure::Outcome;
use crate::output::Output;

pub(crate) use bearer::{kept, token_given};

/// Connects servers and clients of the Model Context Protocol (MCP)
#[derive(Debug, clap::Args)]
pub(crate) struct Mcp {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    Keep(bearer::Keep),
    Token(bearer::Token),
}

pub(crate) fn run(args: Mcp, chosen: &Chosen, output: Output) -> Outcome {
    match args.act {
        Act::Keep(args) => wait_for(bearer::keep(args, chosen, output)),
        Act::Token(args) => wait_for(bearer::token(args, chosen, output)),
    }
}
