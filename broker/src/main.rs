//! `fem-broker CONFIG`: flags → configuration → broker → wait → drain. Beside it, what an operator
//! does to a data directory.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use broker::clock::Clock;
use broker::journal::{JournalError, Summary};
use broker::{Broker, Config, upkeep};
use clap::{Args, Parser, Subcommand};
use proto_spec::Timestamp;
use tokio::signal::unix::{SignalKind, signal};

/// A FEM broker: routes signed tool calls between an organisation's agents.
#[derive(Debug, Parser)]
#[command(
    name = "fem-broker",
    version,
    about,
    args_conflicts_with_subcommands = true
)]
#[command(after_help = EXIT_CODES)]
struct Arguments {
    #[command(flatten)]
    start: Start,
    #[command(subcommand)]
    instead: Option<Instead>,
}

/// Without a subcommand, the broker runs.
#[derive(Debug, Args)]
struct Start {
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

/// What is done instead of running a broker.
#[derive(Debug, Subcommand)]
enum Instead {
    /// Copy the journal into a new directory, while the broker runs or not.
    Backup {
        /// The broker's configuration.
        config: PathBuf,
        /// Where to: must not exist. The broker writes it, so its user must be able to.
        target: PathBuf,
    },
    /// Put a backup into the empty data directory of a configuration.
    Restore {
        /// What `backup` made.
        backup: PathBuf,
        /// The broker's configuration.
        config: PathBuf,
    },
    /// Look at a journal.
    #[command(subcommand)]
    Journal(Journal),
}

#[derive(Debug, Subcommand)]
enum Journal {
    /// Walk the chain of records: how many, from when to when, and the hash that stands for all of them.
    Verify {
        /// A configuration, a data directory or a backup.
        #[arg(value_name = "CONFIG|DIR")]
        of: PathBuf,
    },
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done, or the broker was stopped by a signal
  1  it failed: a file, a key, an address, this machine
  2  the command line or the configuration makes no sense
  3  the journal or the backup is damaged; nothing was changed";

/// Damage has a code of its own, so that a nightly check can tell it from a disk that is not mounted.
const DAMAGED: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.instead {
        None => start(&arguments.start),
        Some(Instead::Backup { config, target }) => {
            load(&config).and_then(|config| back_up(&config, &target))
        }
        Some(Instead::Restore { backup, config }) => {
            load(&config).and_then(|config| restore(&backup, &config))
        }
        Some(Instead::Journal(Journal::Verify { of })) => verify(&of),
    };
    done.map_or_else(|end| end.tell(), |()| ExitCode::SUCCESS)
}

/// Why it did not come to a good end.
enum End {
    Config(PathBuf, broker::config::Problems),
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl End {
    fn tell(self) -> ExitCode {
        match self {
            Self::Config(path, problems) => {
                eprintln!("{} cannot be used:\n{problems}", path.display());
                ExitCode::from(2)
            }
            Self::Failed(error) => {
                eprintln!("fem-broker: {error:#}");
                let damaged = error
                    .chain()
                    .any(|one| matches!(one.downcast_ref(), Some(JournalError::Damaged { .. })));
                ExitCode::from(if damaged { DAMAGED } else { 1 })
            }
        }
    }
}

fn load(path: &Path) -> Result<Config, End> {
    Config::load(path).map_err(|problems| End::Config(path.into(), problems))
}

fn start(args: &Start) -> Result<(), End> {
    let config = load(&args.config)?;
    if args.check_config {
        println!(
            "{} is good: {} listens on {}",
            args.config.display(),
            config.org,
            config.listen
        );
        return Ok(());
    }
    broker::telemetry::start(args.log_json);
    broker::telemetry::raise_descriptor_limit();
    Ok(run(config, args.accept_clock)?)
}

#[tokio::main]
async fn run(config: Config, accept_clock: bool) -> anyhow::Result<()> {
    if accept_clock && let Some(by) = broker::accept_clock(&config, Clock::machine().now())? {
        tracing::warn!(by_s = by.as_secs(), "this machine's clock was accepted");
    }
    let broker = Broker::start(config).await?;
    let (mut interrupt, mut terminate, mut hangup) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    );
    // For whoever started it and waits: the addresses, once they are real.
    println!("ready {} {}", broker.address(), broker.ops_address());
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = hangup.recv() => broker.reload_certificates(),
        }
    }
    broker.stop().await;
    Ok(())
}

fn back_up(config: &Config, target: &Path) -> Result<(), End> {
    let summary = upkeep::back_up(&config.data, target)?;
    print!("{}", told(&summary));
    println!("backup   {}", target.display());
    Ok(())
}

fn restore(backup: &Path, config: &Config) -> Result<(), End> {
    let summary = upkeep::restore(backup, &config.org, &config.data)?;
    print!("{}", told(&summary));
    println!("restored {}", config.data.display());
    println!(
        "What was approved, issued or revoked after the last record is not in it: revoke again what must \
         not come back, before agents can reach the broker."
    );
    Ok(())
}

fn verify(of: &Path) -> Result<(), End> {
    let summary = if of.is_dir() {
        upkeep::verify(of)?
    } else {
        upkeep::verify(&load(of)?.data)?
    };
    print!("{}", told(&summary));
    Ok(())
}

/// One line a fact, for people and for `diff`.
fn told(summary: &Summary) -> String {
    let time = |time: Option<Timestamp>| time.map_or_else(|| "-".into(), utc);
    format!(
        "records  {}\nfirst    {}\nlast     {}\nhead     {}\n",
        summary.records,
        time(summary.first),
        time(summary.last),
        summary.head
    )
}

/// RFC 3339, in UTC, with milliseconds.
fn utc(time: Timestamp) -> String {
    let seconds = time.rfc3339();
    let seconds = seconds.trim_end_matches('Z');
    format!("{seconds}.{:03}Z", time.as_ms() % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_configuration_alone_starts_the_broker_as_ever() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' ')).unwrap();
        for line in [
            "fem-broker acme/broker.toml",
            "fem-broker --log-json acme/broker.toml",
        ] {
            let arguments = parse(line);
            assert!(arguments.instead.is_none());
            assert_eq!(arguments.start.config, Path::new("acme/broker.toml"));
        }
        assert_eq!(parse("fem-broker").start.config, Path::new("broker.toml"));
        assert!(parse("fem-broker journal verify x").instead.is_some());
    }

    #[test]
    fn times_are_told_in_utc() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_123, "2000-02-29T00:00:00.123Z"),
            (1_800_000_000_000, "2027-01-15T08:00:00.000Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
        ] {
            assert_eq!(utc(Timestamp::from_ms(ms)), text);
        }
    }
}
