//! What each command does: one file a noun.

pub(crate) mod agent;
pub(crate) mod broker_key;
pub(crate) mod call;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod context;
pub(crate) mod doctor;
pub(crate) mod enrol;
pub(crate) mod event;
pub(crate) mod explain;
pub(crate) mod grants;
pub(crate) mod init;
mod keys;
pub(crate) mod mcp;
pub(crate) mod peer;
pub(crate) mod proposal;
pub(crate) mod recover;
pub(crate) mod root;
pub(crate) mod sandbox;
pub(crate) mod token;
pub(crate) mod tools;
pub(crate) mod trust;

use std::time::Duration;

use crate::args::{Cli, Command};
use crate::connect::Chosen;
use crate::demo;
use crate::failure::{Failure, Outcome};
use crate::output::Output;

/// How long what a command has left behind may take to be let go.
const LET_GO_MAX: Duration = Duration::from_secs(1);

/// Does what the command line says.
pub(crate) fn run(cli: Cli) -> Outcome {
    let output = Output { json: cli.json };
    let chosen = Chosen::new(cli.context);
    match cli.command {
        Command::Demo(args) => wait_for(demo::run(&args)),
        Command::Init(args) => init::run(&args, output),
        Command::Agent(args) => wait_for(agent::run(args, &chosen, output)),
        Command::Enrol(args) => wait_for(enrol::run(args, &chosen, output)),
        Command::Token(args) => token::run(args, &chosen, output),
        Command::Grants(args) => wait_for(grants::run(args, &chosen, output)),
        Command::Peer(args) => wait_for(peer::run(args, &chosen, output)),
        Command::Trust(args) => wait_for(trust::run(args, &chosen, output)),
        Command::Proposal(args) => wait_for(proposal::run(args, &chosen, output)),
        Command::Root(args) => wait_for(root::run(args, &chosen, output)),
        Command::BrokerKey(args) => wait_for(broker_key::run(args, &chosen, output)),
        Command::Config(args) => wait_for(config::run(&args, &chosen, output)),
        Command::Tools(args) => wait_for(tools::run(args, &chosen, output)),
        Command::Call(args) => wait_for(call::run(args, &chosen, output)),
        Command::Event(args) => wait_for(event::run(args, &chosen, output)),
        Command::Context(args) => context::run(args, &chosen, output),
        Command::Explain(args) => explain::run(&args, &chosen, output),
        Command::Doctor(args) => wait_for(doctor::run(&args, &chosen, output)),
        Command::Sandbox(args) => wait_for(sandbox::run(args, output)),
        Command::Mcp(args) => wait_for(mcp::run(args, &chosen, output)),
        Command::Completions(args) => completions::run(&args),
        Command::Internal(args) => wait_for(demo::role::run(args)),
    }
}

/// Runs what waits for the network.
pub(crate) fn wait_for(work: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| Failure::fault(format!("the runtime cannot start: {e}")))?;
    // On the heap: a command's state is large, and a main thread's stack is not.
    let ended = runtime.block_on(Box::pin(work));
    // What is left is let go before the process ends, for it may have to be ended itself: another program, say.
    // Bounded, since a read of standard input ends when somebody types.
    runtime.shutdown_timeout(LET_GO_MAX);
    ended
}
