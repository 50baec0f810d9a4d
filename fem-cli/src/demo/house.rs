//! One organisation on the stage: its files, its broker's process, and its admin.

use std::path::{Path, PathBuf};

use agent_sdk::Agent;
use proto_spec::message::{Ack, AgentApprove, AgentRecord, AgentShow, PendingRecord, Struck};
use proto_spec::{Digest, Kind, Timestamp};
use serde::Serialize;
use serde_json::json;

use super::process::Process;
use super::stage::name;
use crate::connect::configure;
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::organisation::{self, FIRST_ADMIN, Plan};
use crate::request::{self, unexpected};
use crate::time;

pub(super) struct House {
    /// What it is called.
    pub(super) org: &'static str,
    dir: PathBuf,
    /// Whether other brokers are told where to dial its own.
    is_dialled: bool,
    broker: Option<Process>,
    admin: Option<Agent>,
}

impl House {
    /// Makes the organisation in a directory of its name.
    pub(super) fn make(parent: &Path, org: &'static str, is_dialled: bool) -> Outcome<Self> {
        let any_port = "127.0.0.1:0"
            .parse()
            .map_err(|_| Failure::fault("127.0.0.1:0 is an address"))?;
        let plan = Plan {
            org: name(org)?,
            admin: name(FIRST_ADMIN)?,
            listen: any_port,
            ops: any_port,
            hosts: vec!["127.0.0.1".into()],
            broker_url: "https://127.0.0.1:0".into(),
            endpoints: Vec::new(),
            now: time::now(),
        };
        let dir = parent.join(org);
        organisation::make(&dir, &plan)?;
        Ok(Self {
            org,
            dir,
            is_dialled,
            broker: None,
            admin: None,
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
    pub(super) fn ca_file(&self) -> PathBuf {
        self.file("tls/ca.pem")
    }
    /// What agents start from.
    pub(super) fn join(&self) -> Outcome<Context> {
        Context::load(&self.file("join.toml"))
    }

    pub(super) fn secrets_are_private(&self) -> Outcome<bool> {
        let secrets = [
            "keys/root.pem",
            "keys/broker.pem",
            "keys/admin.pem",
            "recovery.pem",
            "tls/key.pem",
        ];
        let private = secrets
            .iter()
            .map(|name| files::is_private(&self.file(name)));
        Ok(private
            .collect::<std::io::Result<Vec<_>>>()?
            .into_iter()
            .all(|private| private))
    }

    /// Starts the broker process. Gives its id and its address.
    pub(super) async fn start_broker(&mut self) -> Outcome<(u32, String)> {
        let config = self.file("broker.toml");
        let mut arguments = vec!["broker".as_ref(), config.as_os_str()];
        if self.is_dialled {
            arguments.push("--dialled".as_ref());
        }
        let mut process = Process::start(&arguments)?;
        let line = process.line().await?;
        let address = line
            .strip_prefix("ready ")
            .and_then(|rest| rest.split(' ').next());
        let address =
            address.ok_or_else(|| Failure::fault(format!("the broker did not start: {line}")))?;
        let url = format!("https://{address}");
        for file in ["admin.toml", "join.toml"] {
            let path = self.file(file);
            let context = Context {
                broker: url.clone(),
                ..Context::load(&path)?
            };
            std::fs::remove_file(&path)?;
            context.save(&path)?;
        }
        let context = Context::load(&self.file("admin.toml"))?;
        self.admin = Some(Agent::new(configure(&context)?)?);
        let id = process.id();
        self.broker = Some(process);
        Ok((id, url))
    }

    pub(super) fn admin(&self) -> Outcome<&Agent> {
        self.admin
            .as_ref()
            .ok_or_else(|| Failure::fault(format!("the broker of {} does not run", self.org)))
    }

    /// One act of its admin.
    pub(super) async fn act(&self, kind: Kind, body: &impl Serialize) -> Outcome<Ack> {
        request::act(self.admin()?, kind, body).await
    }

    pub(super) async fn show(
        &self,
        agent: &str,
    ) -> Outcome<(Option<AgentRecord>, Vec<PendingRecord>)> {
        let body = AgentShow { name: name(agent)? };
        match self.act(Kind::AdminAgentShow, &body).await? {
            Ack::Agent { agent, pending } => Ok((agent, pending)),
            other => Err(unexpected(&other)),
        }
    }

    /// The admin approves the pending key of `agent` that has this fingerprint, with nothing but its
    /// place. Says whether there is one.
    pub(super) async fn approve(&self, agent: &str, fingerprint: &str) -> Outcome<bool> {
        let (_, pending) = self.show(agent).await?;
        let mut pending = pending.iter();
        let Some(pending) = pending.find(|one| one.key.fingerprint() == fingerprint) else {
            return Ok(false);
        };
        let body = AgentApprove {
            name: name(agent)?,
            key: pending.key,
            capabilities: Vec::new(),
            prefixes: None,
            overlap: false,
            expires: None,
            admin: None,
            endpoint: None,
        };
        self.act(Kind::AdminAgentApprove, &body).await?;
        Ok(true)
    }

    /// The admin grants, on record. Gives the grant's id and its end.
    pub(super) async fn grant(
        &self,
        kind: Kind,
        body: &impl Serialize,
    ) -> Outcome<(Digest, Timestamp)> {
        match self.act(kind, body).await? {
            Ack::Issued { id, expires, .. } => Ok((id, expires)),
            other => Err(unexpected(&other)),
        }
    }

    /// The admin revokes one grant. When this returns it is durable and in force.
    pub(super) async fn revoke(&self, id: Digest) -> Outcome {
        let body = json!({"ids": [id], "reason": "end of the demo"});
        match self.act(Kind::AdminTokenRevoke, &body).await? {
            Ack::Revoked(Struck { ids, .. }) if ids.len() == 1 => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends the broker's process.
    pub(super) async fn end(self) -> Outcome {
        match self.broker {
            Some(process) => process.end().await,
            None => Ok(()),
        }
    }
}
