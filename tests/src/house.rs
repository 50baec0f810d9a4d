//! An organisation at work: its files, its broker as a process, and what its admin does to make peers.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use proto_spec::message::{Ack, PeerRecord};
use proto_spec::peering::Descriptor;
use proto_spec::{Digest, Kind};
use serde_json::{Value, json};

use crate::binaries::{self, Process};
use crate::lab::Actor;
use crate::load;
use crate::site::Site;
use crate::wire::{Line, PATIENCE};

/// What a broker runs in.
#[derive(Debug, Clone, Copy)]
pub enum Surroundings {
    /// This machine as it is.
    Here,
    /// A machine whose clock is so many seconds ahead, which takes libfaketime.
    Ahead(u64),
    /// The network namespace of this process.
    Namespace(u32),
}

/// An organisation whose broker runs.
#[derive(Debug)]
pub struct House {
    /// Its files.
    pub site: Site,
    /// How its agents reach the broker.
    pub line: Line,
    surroundings: Surroundings,
    broker: Option<Process>,
}

impl House {
    /// Starts the broker of a site.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn open(site: Site) -> Result<Self> {
        Self::open_in(site, Surroundings::Here)
    }

    /// Starts the broker of a site in other surroundings.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn open_in(site: Site, surroundings: Surroundings) -> Result<Self> {
        let broker = start(&site, surroundings)?;
        let line = site.line(&broker)?;
        Ok(Self {
            site,
            line,
            surroundings,
            broker: Some(broker),
        })
    }

    /// Its admin.
    #[must_use]
    pub fn admin(&self) -> &Actor {
        &self.site.admin
    }

    /// Its broker's process.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn broker(&self) -> Result<&Process> {
        self.broker.as_ref().context("its broker does not run")
    }

    /// Stops its broker with SIGTERM, or kills it with SIGKILL, and starts another at the same place.
    ///
    /// # Errors
    ///
    /// When it does not end well or does not start.
    pub fn restart(&mut self, kill: bool) -> Result<()> {
        let broker = self.broker.take().context("its broker does not run")?;
        match kill {
            true => broker.kill()?,
            false => broker.stop()?,
        }
        self.broker = Some(start(&self.site, self.surroundings)?);
        Ok(())
    }

    /// Does something as its admin.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub async fn ask(&self, kind: Kind, body: Value) -> Result<Ack> {
        load::ask(&self.line, self.admin(), kind, &body).await
    }

    /// Registers and approves an agent.
    ///
    /// # Errors
    ///
    /// When either is refused.
    pub async fn agent(&self, name: &str, seed: u8, capabilities: &[&str]) -> Result<Actor> {
        load::agent(&self.line, self.admin(), name, seed, capabilities).await
    }

    /// Revokes an agent, and with it its key.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub async fn revoke_agent(&self, name: &str) -> Result<()> {
        let body = json!({"name": name});
        self.ask(Kind::AdminAgentRevoke, body).await.map(drop)
    }

    /// Grants a peer's agents something.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub async fn grant(&self, body: Value) -> Result<Digest> {
        match self.ask(Kind::AdminPeerGrant, body).await? {
            Ack::Issued { id, .. } => Ok(id),
            other => bail!("{other:?}"),
        }
    }

    /// Takes another organisation as a peer, to be dialled where it says that it is reached, or not at all.
    ///
    /// # Errors
    ///
    /// When either admin is refused.
    pub async fn take(&self, other: &Self, is_dialled: bool) -> Result<()> {
        let invited = other.ask(Kind::AdminPeerInvite, json!({})).await?;
        let Ack::PeerInvited { descriptor } = invited else {
            bail!("{invited:?}");
        };
        let said = Descriptor::read(&descriptor)?;
        let endpoints = match is_dialled {
            true => said.body().endpoints.clone(),
            false => Vec::new(),
        };
        let key = said.body().key;
        let body = json!({"descriptor": descriptor, "key": key, "endpoints": endpoints});
        self.ask(Kind::AdminPeerAdd, body).await.map(drop)
    }

    /// Makes both peers of each other: this one dials.
    ///
    /// # Errors
    ///
    /// When either admin is refused.
    pub async fn join(&self, other: &Self) -> Result<()> {
        other.take(self, false).await?;
        self.take(other, true).await
    }

    /// Its peers.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub async fn peers(&self) -> Result<Vec<PeerRecord>> {
        match self.ask(Kind::AdminPeerList, json!({})).await? {
            Ack::Peers { peers } => Ok(peers),
            other => bail!("{other:?}"),
        }
    }

    /// Waits until something is so of what it knows of a peer.
    ///
    /// # Errors
    ///
    /// When that does not come about.
    pub async fn until(&self, org: &str, is: impl Fn(&PeerRecord) -> bool) -> Result<()> {
        let waiting = async {
            loop {
                let peers = self.peers().await?;
                if peers
                    .iter()
                    .any(|peer| peer.org.as_str() == org && is(peer))
                {
                    return Ok(());
                }
                // Each question is a word in the replay window of a broker that has other things to do.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.with_context(|| format!("{org} is not so"))?
    }
}

fn start(site: &Site, surroundings: Surroundings) -> Result<Process> {
    let broker = binaries::path("fem-broker")?;
    let mut command = match surroundings {
        Surroundings::Namespace(process) => {
            let mut enter = Command::new("nsenter");
            enter
                .arg(format!("--net=/proc/{process}/ns/net"))
                .arg(broker);
            enter
        }
        _ => Command::new(broker),
    };
    if let Surroundings::Ahead(seconds) = surroundings {
        command
            .env(
                "LD_PRELOAD",
                binaries::faketime().context("no libfaketime")?,
            )
            .env("FAKETIME", format!("+{seconds}s"))
            // Waits are not what is tested, and condition variables do not take it.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
    Process::launch(command.arg(site.at("broker.toml")))
}
