//! `fem-broker CONFIG`: flags → configuration → broker → wait → drain.

use std::path::PathBuf;
use std::process::ExitCode;

use broker::clock::Clock;
use broker::{Broker, Config};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// A FEM broker: routes signed tool calls between an organisation's agents.
#[derive(Debug, Parser)]
#[command(name = "fem-broker", version, about)]
struct Args {
    /// The configuration; `fem-cli init` makes one.
    #[arg(default_value = "broker.toml", env = "FEM_BROKER_CONFIG")]
    config: PathBuf,
    /// Say what is wrong with the configuration, and start nothing.
    #[arg(long)]
    check_config: bool,
    /// Start although this machine's clock is behind what is on record: say that it is right. On record.
    #[arg(long)]
    accept_clock: bool,
    /// Log in JSON, one object a line.
    #[arg(long, env = "FEM_LOG_JSON")]
    log_json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("{} cannot be used:\n{problems}", args.config.display());
            return ExitCode::from(2);
        }
    };
    if args.check_config {
        println!(
            "{} is good: {} listens on {}",
            args.config.display(),
            config.org,
            config.listen
        );
        return ExitCode::SUCCESS;
    }
    broker::telemetry::start(args.log_json);
    broker::telemetry::raise_descriptor_limit();
    match run(config, args.accept_clock) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fem-broker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(config: Config, accept_clock: bool) -> anyhow::Result<()> {
    if accept_clock && let Some(by) = broker::accept_clock(&config, Clock::machine().now())? {
        tracing::warn!(by_s = by.as_secs(), "this machine's clock was accepted");
    }
    let broker = Broker::start(config).await?;
    // For whoever started it and waits: the addresses, once they are real.
    println!("ready {} {}", broker.address(), broker.ops_address());
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    broker.stop().await;
    Ok(())
}
