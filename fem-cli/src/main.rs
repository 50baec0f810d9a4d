//! The `fem-cli` command.
//!
//! Reading order: [`args`] is the command line; [`command`] does it, one file a noun; [`failure`] says
//! how it ends; [`demo`] is the whole of FEM in one minute.

mod args;
mod certificate;
mod command;
mod connect;
mod context;
mod demo;
mod failure;
mod files;
mod named_key;
mod organisation;
mod output;
mod probe;
mod programs;
mod request;
mod struck;
mod time;
mod token_file;
mod words;

use std::process::ExitCode;

use crate::args::Cli;
use crate::failure::{Exit, Failure};

fn main() -> ExitCode {
    // Before anything else: this process may be a helper of the sandbox.
    agent_sdk::sandbox::init();
    let cli = Cli::of_process();
    let json = cli.json;
    match command::run(cli) {
        Ok(()) => ExitCode::from(Exit::Done as u8),
        Err(failure) => {
            report(&failure, json);
            ExitCode::from(failure.exit() as u8)
        }
    }
}

/// To standard error. What others wrote in it is escaped here.
fn report(failure: &Failure, json: bool) {
    if failure.is_told() {
        return;
    }
    if json {
        output::note(&failure.to_json().to_string());
    } else {
        output::note(&format!(
            "error: {}",
            output::escape_lines(&failure.to_string())
        ));
    }
}
