//! `mcp`: tools that speak the Model Context Protocol, on both sides of the broker.

mod bearer;
mod login;
mod serve;
mod wrap;

use agent_sdk::mcp::login::Place;

use crate::connect::Chosen;
use crate::failure::Outcome;
use crate::files::absolute;
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

/// Where a secret is, as options name it: `@FILE` or `env:VAR`.
fn place(text: &str) -> Result<Place, String> {
    match (text.strip_prefix('@'), text.strip_prefix("env:")) {
        (Some(file), _) if !file.is_empty() => Ok(Place::File(absolute(file.as_ref()))),
        (None, Some(name)) if !name.is_empty() => Ok(Place::Variable(name.into())),
        _ => Err("@FILE, or env:VAR".into()),
    }
}
