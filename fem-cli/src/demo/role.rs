//! The processes of the demo: this program again, as a broker or as an agent.
//!
//! Each says on its standard output what came of what it was told, and ends when its standard input
//! closes.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agent_sdk::{Agent, Call, Error, RegisterOptions, Registration, Tool, ToolError};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::process::{Order, Said};
use super::stage::{ACME, FILES};
use crate::connect::configure;
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::output::{json, print};

/// What the demo starts; not for people
#[derive(Debug, clap::Args)]
pub(crate) struct Internal {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, clap::Subcommand)]
enum Role {
    /// A broker, until standard input closes
    Broker {
        file: PathBuf,
        /// Name where it listens as the endpoint at which other brokers dial it
        #[arg(long)]
        dialled: bool,
    },
    /// An agent that does what it is told by lines of JSON
    Agent { file: PathBuf },
}

pub(crate) async fn run(args: Internal) -> Outcome {
    match args.role {
        Role::Broker { file, dialled } => broker(&file, dialled).await,
        Role::Agent { file } => agent(&file).await,
    }
}

async fn broker(config: &Path, is_dialled: bool) -> Outcome {
    let mut config = broker::Config::load(config).map_err(|e| Failure::fault(e.to_string()))?;
    if is_dialled {
        // Peers are told the port, so it has to be known before the broker listens there.
        config.listen = TcpListener::bind(config.listen)?.local_addr()?;
        config.federation.endpoints = vec![config.listen.to_string()];
    }
    let broker = broker::Broker::start(config).await?;
    print(&format!(
        "ready {} {}",
        broker.address(),
        broker.ops_address()
    ))?;
    let mut lines = input_lines();
    while lines.recv().await.is_some() {}
    broker.stop().await;
    Ok(())
}

/// The lines of standard input; none when it closes. A thread of its own waits for them.
fn input_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

async fn agent(context: &Path) -> Outcome {
    let agent = Agent::new(configure(&Context::load(context)?)?)?;
    print(&agent.public_key().fingerprint())?;
    let mut orders = input_lines();
    let served = Arc::new(AtomicU64::new(0));
    let mut serving = None;
    while let Some(order) = orders.recv().await {
        let said = match serde_json::from_str(&order)? {
            Order::Serve { directory } => {
                let offered = serve(&agent, &directory, &served).await?;
                offered.map(|running| {
                    serving = Some(running);
                    Said::Done
                })
            }
            Order::Served => Ok(Said::Answer(served.load(Ordering::SeqCst).to_string())),
            order => obey(&agent, order).await,
        };
        json(&said.unwrap_or_else(|error| told(&error)))?;
    }
    drop(serving);
    Ok(())
}

async fn obey(agent: &Agent, order: Order) -> agent_sdk::Result<Said> {
    match order {
        Order::Register => Ok(match agent.register(RegisterOptions::default()).await? {
            Registration::Pending => Said::Pending,
            Registration::Registered { .. } => Said::Done,
        }),
        Order::Attach | Order::Serve { .. } | Order::Served => {
            agent.attach().await.map(|()| Said::Done)
        }
        Order::Call { tool, path } => {
            let to = format!("{FILES}@{ACME}");
            agent
                .call(to, &tool, &serde_json::json!({"path": path}))
                .await
                .map(Said::Answer)
        }
    }
}

fn told(error: &Error) -> Said {
    match error {
        Error::Refused { code, message, .. } => Said::Refused {
            code: code.to_string(),
            message: message.clone(),
        },
        other => Said::Failed(other.to_string()),
    }
}

#[derive(Deserialize, schemars::JsonSchema)]
struct File {
    /// An absolute path.
    path: PathBuf,
}

/// Serves the files below `directory`: whatever the grant says, nothing else is ever touched. Done
/// when the broker has taken the tools.
async fn serve(
    agent: &Agent,
    directory: &Path,
    served: &Arc<AtomicU64>,
) -> Outcome<agent_sdk::Result<tokio::task::JoinHandle<()>>> {
    let (root, served) = (directory.canonicalize()?, Arc::clone(served));
    let within = move |path: &Path| -> Result<PathBuf, ToolError> {
        served.fetch_add(1, Ordering::SeqCst);
        let path = path.canonicalize()?;
        match path.starts_with(&root) {
            true => Ok(path),
            false => Err(ToolError::new(
                "OUTSIDE",
                "this agent serves another directory",
            )),
        }
    };
    let (readable, deletable) = (within.clone(), within);
    let read = Tool::new("files.read", move |_: Call, file: File| {
        let path = readable(&file.path);
        async move { Ok(tokio::fs::read_to_string(path?).await?) }
    });
    let delete = Tool::new("files.delete", move |_: Call, file: File| {
        let path = deletable(&file.path);
        async move { Ok(tokio::fs::remove_file(path?).await?) }
    });
    let tools = [
        read.describe("Reads a text file").read_only(),
        delete.describe("Deletes a file"),
    ];
    Ok(agent.offer(tools).await.map(|serving| {
        tokio::spawn(async move {
            if let Err(error) = serving.run().await {
                crate::output::note(&format!("files no longer serves: {error}"));
            }
        })
    }))
}
