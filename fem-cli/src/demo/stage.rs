//! What the demo plays with: a directory, a broker process and two agent processes.
//!
//! Nothing waits for a time to pass. Every process says on its standard output when it is ready or
//! done, and each ends when its standard input closes: none survives the demo, however that ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_sdk::Agent;
use proto_spec::message::{
    Ack, AgentApprove, AgentRecord, AgentShow, DiscoverTools, PendingRecord, Revoke, Struck,
    TokenIssue,
};
use proto_spec::{Digest, Kind, Timestamp};

use super::process::{Order, Process, Said};
use super::{REPORT, SALARIES, agent};
use crate::connect::configure;
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::organisation::{self, FIRST_ADMIN, Plan};
use crate::request::{self, unexpected};
use crate::time;

pub(super) const ORG: &str = "acme";
pub(super) const FILES: &str = "files";
pub(super) const RESEARCHER: &str = "researcher";

/// The directory, the processes and the admin.
pub(super) struct Stage {
    dir: PathBuf,
    /// Removes the directory when the demo ends, unless it is to be kept.
    _removal: Option<tempfile::TempDir>,
    broker: Option<Process>,
    agents: BTreeMap<&'static str, Process>,
    /// As each agent's process printed it.
    fingerprints: BTreeMap<&'static str, String>,
    admin: Option<Agent>,
    grant: Option<Digest>,
}

impl Stage {
    /// Makes the organisation and the files.
    pub(super) fn set(keep: bool) -> Outcome<Self> {
        let directory = tempfile::Builder::new().prefix("fem-demo-").tempdir()?;
        let (dir, removal) = match keep {
            true => (directory.keep(), None),
            false => (directory.path().to_owned(), Some(directory)),
        };
        // What the files agent resolves is compared with this, so it must not be a symbolic link.
        let dir = dir.canonicalize()?;
        let any_port = "127.0.0.1:0"
            .parse()
            .map_err(|_| Failure::fault("127.0.0.1:0 is an address"))?;
        let plan = Plan {
            org: name(ORG)?,
            admin: name(FIRST_ADMIN)?,
            listen: any_port,
            ops: any_port,
            hosts: vec!["127.0.0.1".into()],
            broker_url: "https://127.0.0.1:0".into(),
            endpoints: Vec::new(),
            now: time::now(),
        };
        organisation::make(&dir.join(ORG), &plan)?;
        let stage = Self {
            dir,
            _removal: removal,
            broker: None,
            agents: BTreeMap::new(),
            fingerprints: BTreeMap::new(),
            admin: None,
            grant: None,
        };
        for (path, text) in [(stage.report(), REPORT), (stage.salaries(), SALARIES)] {
            std::fs::create_dir_all(path.parent().unwrap_or(&stage.dir))?;
            std::fs::write(path, text)?;
        }
        Ok(stage)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
    fn org_file(&self, name: &str) -> PathBuf {
        self.dir.join(ORG).join(name)
    }
    pub(super) fn ca_file(&self) -> PathBuf {
        self.org_file("tls/ca.pem")
    }
    pub(super) fn reports(&self) -> PathBuf {
        self.dir.join("srv/reports")
    }
    pub(super) fn report(&self) -> PathBuf {
        self.reports().join("q3.txt")
    }
    pub(super) fn salaries(&self) -> PathBuf {
        self.dir.join("srv/private/salaries.txt")
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
            .map(|name| files::is_private(&self.org_file(name)));
        Ok(private
            .collect::<std::io::Result<Vec<_>>>()?
            .into_iter()
            .all(|private| private))
    }

    /// Starts the broker process. Gives its id and its address.
    pub(super) async fn start_broker(&mut self) -> Outcome<(u32, String)> {
        let config = self.org_file("broker.toml");
        let mut process = Process::start(&["broker".as_ref(), config.as_os_str()])?;
        let line = process.line().await?;
        let address = line
            .strip_prefix("ready ")
            .and_then(|rest| rest.split(' ').next());
        let address =
            address.ok_or_else(|| Failure::fault(format!("the broker did not start: {line}")))?;
        let url = format!("https://{address}");
        for file in ["admin.toml", "join.toml"] {
            let path = self.org_file(file);
            let context = Context {
                broker: url.clone(),
                ..Context::load(&path)?
            };
            std::fs::remove_file(&path)?;
            context.save(&path)?;
        }
        self.admin = Some(Agent::new(configure(&Context::load(
            &self.org_file("admin.toml"),
        )?)?)?);
        let id = process.id();
        self.broker = Some(process);
        Ok((id, url))
    }

    /// Starts an agent process with a key of its own. Gives its id and its key's fingerprint.
    pub(super) async fn start_agent(&mut self, name: &'static str) -> Outcome<(u32, String)> {
        let path = self.dir.join(format!("{name}.toml"));
        let key_file = self.dir.join(format!("{name}.pem"));
        agent_sdk::Key::generate()?.save(&key_file)?;
        let context = Context {
            agent: Some(agent(name).map_err(|e| Failure::fault(e.to_string()))?),
            org: None,
            key_file: Some(key_file),
            ..Context::load(&self.org_file("join.toml"))?
        };
        context.save(&path)?;
        let mut process = Process::start(&["agent".as_ref(), path.as_os_str()])?;
        let (id, fingerprint) = (process.id(), process.line().await?);
        self.agents.insert(name, process);
        self.fingerprints.insert(name, fingerprint.clone());
        Ok((id, fingerprint))
    }

    /// Tells an agent process what to do, and waits for what it says.
    pub(super) async fn order(&mut self, name: &str, order: &Order) -> Outcome<Said> {
        let process = self.agents.get_mut(name);
        let process = process.ok_or_else(|| Failure::fault(format!("{name} does not run")))?;
        process.say(&serde_json::to_string(order)?).await?;
        Ok(serde_json::from_str(&process.line().await?)?)
    }

    /// The researcher calls a tool of the files agent.
    pub(super) async fn call(&mut self, tool: &str, path: &Path) -> Outcome<Said> {
        let order = Order::Call {
            tool: tool.into(),
            path: path.into(),
        };
        self.order(RESEARCHER, &order).await
    }

    pub(super) async fn read(&mut self, path: &Path) -> Outcome<Said> {
        self.call("files.read", path).await
    }

    fn admin(&self) -> Outcome<&Agent> {
        self.admin
            .as_ref()
            .ok_or_else(|| Failure::fault("the broker does not run"))
    }

    async fn show(&self, agent: &str) -> Outcome<(Option<AgentRecord>, Vec<PendingRecord>)> {
        match request::act(
            self.admin()?,
            Kind::AdminAgentShow,
            &AgentShow { name: name(agent)? },
        )
        .await?
        {
            Ack::Agent { agent, pending } => Ok((agent, pending)),
            other => Err(unexpected(&other)),
        }
    }

    /// The admin approves the pending key of `agent` whose fingerprint is the one that the agent
    /// printed, with nothing but its place; the agent asks again and learns it.
    pub(super) async fn approve(&mut self, agent: &'static str) -> Outcome<bool> {
        let (_, pending) = self.show(agent).await?;
        let printed = self.fingerprints.get(agent);
        let Some(pending) = pending
            .iter()
            .find(|request| Some(&request.key.fingerprint()) == printed)
        else {
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
        };
        request::act(self.admin()?, Kind::AdminAgentApprove, &body).await?;
        Ok(self.order(agent, &Order::Register).await? == Said::Done)
    }

    /// The admin grants the researcher `files.read` within `bounds`, on record.
    pub(super) async fn grant(&mut self, bounds: &str) -> Outcome<Timestamp> {
        let checks = proto_spec::capability::Check::where_clause(bounds);
        let checks = checks.map_err(|e| Failure::fault(e.to_string()))?;
        let body = TokenIssue {
            calls: None,
            agent: name(RESEARCHER)?,
            capabilities: vec![name("files.read")?],
            expires: Some(time::now().later(Duration::from_secs(3_600))),
            not_before: None,
            checks: checks.iter().map(ToString::to_string).collect(),
            sandbox: None,
            record: true,
        };
        match request::act(self.admin()?, Kind::AdminTokenIssue, &body).await? {
            Ack::Issued { id, expires, .. } => {
                self.grant = Some(id);
                Ok(expires)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// The files agent serves. Gives the tools that the admin then finds.
    pub(super) async fn serve(&mut self) -> Outcome<Vec<String>> {
        let directory = self.dir.join("srv");
        let said = self.order(FILES, &Order::Serve { directory }).await?;
        if said != Said::Done {
            return Err(Failure::fault(format!("files does not serve: {said}")));
        }
        let tools = self.admin()?.discover(DiscoverTools::default()).await?;
        Ok(tools
            .iter()
            .map(|found| found.tool.name.to_string())
            .collect())
    }

    /// How many calls have reached a tool of the files agent.
    pub(super) async fn served(&mut self) -> Outcome<u64> {
        match self.order(FILES, &Order::Served).await? {
            Said::Answer(count) => count
                .parse()
                .map_err(|_| Failure::fault("that is no number")),
            other => Err(Failure::fault(other.to_string())),
        }
    }

    /// The admin revokes the grant. When this returns it is durable and in force.
    pub(super) async fn revoke(&mut self) -> Outcome {
        let ids = self.grant.take().into_iter().collect();
        let body = Revoke {
            ids,
            token: None,
            reason: Some("end of the demo".into()),
        };
        match request::act(self.admin()?, Kind::Revoke, &body).await? {
            Ack::Revoked(Struck { ids, .. }) if ids.len() == 1 => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// How many sessions an agent has attached.
    pub(super) async fn sessions(&self, agent: &str) -> Outcome<u32> {
        Ok(self.show(agent).await?.0.map_or(0, |agent| agent.sessions))
    }

    /// Ends all processes, and waits until they have ended.
    pub(super) async fn end(self) -> Outcome {
        for process in self.agents.into_values().chain(self.broker) {
            process.end().await?;
        }
        Ok(())
    }
}

fn name<T: std::str::FromStr>(text: &str) -> Outcome<T>
where
    T::Err: std::fmt::Display,
{
    text.parse()
        .map_err(|e: T::Err| Failure::fault(e.to_string()))
}
