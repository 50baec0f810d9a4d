//! `completions`: what a shell needs to complete this command's words.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::{Failure, Outcome};
use crate::output::print;

/// Prints a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  fem-cli completions bash > ~/.local/share/bash-completion/completions/fem-cli")]
pub(crate) struct Completions {
    /// Which shell
    shell: Shell,
}

pub(crate) fn run(args: &Completions) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "fem-cli", &mut script);
    let script = String::from_utf8(script);
    print(&script.map_err(|_| Failure::fault("the completion script is not text"))?)
}
