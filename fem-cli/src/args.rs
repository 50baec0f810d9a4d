//! The command line as a whole. Each noun's own arguments stand with what it does, in `command/`.

use std::ffi::OsString;

use clap::{Parser, Subcommand};
use proto_spec::Digest;

use crate::command::{
    agent, broker_key, call, completions, config, context, doctor, enrol, event, explain, grants,
    init, mcp, peer, proposal, root, sandbox, token, tools, trust,
};
use crate::demo;
use crate::failure::Exit;

/// FEM: a federated broker for AI agents
///
/// Sets up an organisation, registers agents, issues and revokes capabilities, calls tools.
#[derive(Debug, Parser)]
#[command(name = "fem-cli", version, after_help = Exit::TABLE)]
pub(crate) struct Cli {
    /// Which broker, and as whom: a context file, or the name of a stored context [env: FEM_CONTEXT]
    #[arg(long, global = true, value_name = "NAME-or-FILE")]
    pub(crate) context: Option<String>,

    /// Print one JSON value instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(demo::Demo),
    Init(init::Init),
    Agent(agent::Agent),
    Enrol(enrol::Enrol),
    Token(token::Token),
    Grants(grants::Grants),
    Peer(peer::Peer),
    Trust(trust::Trust),
    Proposal(proposal::Proposals),
    Root(root::Root),
    BrokerKey(broker_key::BrokerKey),
    Config(config::Config),
    Tools(tools::Tools),
    Call(call::Call),
    Event(event::Event),
    Context(context::Contexts),
    Explain(explain::Explain),
    Doctor(doctor::Doctor),
    Sandbox(sandbox::Sandboxes),
    Mcp(mcp::Mcp),
    Completions(completions::Completions),
    #[command(hide = true)]
    Internal(demo::role::Internal),
}

/// Put before an id that begins with a hyphen, so that it is not read as an option.
const MARK: &str = "id:";

/// An id as it was typed, or as it was marked.
pub(crate) fn id(text: &str) -> Result<Digest, String> {
    let id = text.strip_prefix(MARK).unwrap_or(text);
    id.parse()
        .map_err(|e: proto_spec::signature::BadDigest| e.to_string())
}

impl Cli {
    /// The command line of this process. One id in 64 begins with a hyphen, and nothing else looks
    /// like one.
    pub(crate) fn of_process() -> Self {
        Self::parse_from(std::env::args_os().map(marked))
    }
}

fn marked(word: OsString) -> OsString {
    match word.to_str() {
        Some(text) if text.starts_with('-') && text.parse::<Digest>().is_ok() => {
            format!("{MARK}{text}").into()
        }
        _ => word,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace().map(|word| marked(word.into())))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_readme_parses() {
        let readme = include_str!("../README.md");
        let commands = readme
            .lines()
            .filter_map(|line| line.strip_prefix("    fem-cli "));
        let mut seen = 0;
        for line in commands {
            let words = split(&format!("fem-cli {line}"));
            let shown = Cli::try_parse_from(&words);
            assert!(shown.is_ok(), "{line}: {}", shown.err().unwrap());
            seen += 1;
        }
        assert!(seen > 20, "the README shows the commands");
    }

    /// Splits as a shell does, with single quotes only; a comment ends the line.
    fn split(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for character in line
            .split(" #")
            .next()
            .unwrap_or_default()
            .trim_end()
            .chars()
        {
            match character {
                '\'' => quoted = !quoted,
                ' ' if !quoted => words.push(String::new()),
                c => words.last_mut().unwrap().push(c),
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    /// An argument may say where a secret is, which is all that such a one can say.
    #[test]
    fn secrets_have_no_place_in_argv() {
        const WHERE: &str = "@FILE|env:VAR";
        fn walk(command: &clap::Command, found: &mut Vec<String>) {
            for arg in command.get_arguments() {
                let name = arg.get_id().to_string();
                let secret = ["secret", "password", "passphrase", "seed", "private"];
                let names = arg.get_value_names().unwrap_or_default();
                let is_a_place = names.iter().any(|name| name == WHERE);
                if secret.iter().any(|word| name.contains(word)) && !is_a_place {
                    found.push(format!("{} --{name}", command.get_name()));
                }
            }
            command
                .get_subcommands()
                .for_each(|below| walk(below, found));
        }
        let mut found = Vec::new();
        walk(&Cli::command(), &mut found);
        assert!(found.is_empty(), "{found:?}");
        let login = "fem-cli mcp login --auth a --url https://x.example/mcp --client-id x";
        for (secret, is_taken) in [("@file", true), ("env:VAR", true), ("hunter2", false)] {
            let line = format!("{login} --client-secret {secret}");
            assert_eq!(parse(&line).is_ok(), is_taken, "{secret}");
        }
    }

    #[test]
    fn an_agent_is_approved_for_one_key() {
        assert!(parse("fem-cli agent approve fs --capability file.*").is_ok());
        assert!(parse("fem-cli agent approve fs --key x --fingerprint y").is_err());
        assert!(parse("fem-cli agent approve fs --capability not!a!capability").is_err());
    }

    #[test]
    fn a_wrong_time_is_told_before_anything_is_sent() {
        assert!(parse("fem-cli token issue fs --capability x --expires 7d").is_ok());
        assert!(parse("fem-cli token issue fs --capability x --expires tomorrow").is_err());
    }

    #[test]
    fn an_id_that_begins_with_a_hyphen_is_an_id() {
        for start in ["-h", "--", "-x"] {
            let id = format!("{start}{}", "A".repeat(41));
            assert!(
                parse(&format!("fem-cli token revoke {id} --reason r")).is_ok(),
                "{id}"
            );
        }
    }
}
