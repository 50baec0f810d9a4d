//! What the demo plays with: a directory, two organisations and three agent processes.
//!
//! Nothing waits for a time to pass. Every process says on its standard output when it is ready or
//! done, and each ends when its standard input closes: none survives the demo, however that ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto_spec::capability::Check;
use proto_spec::message::{DiscoverTools, TokenIssue};
use proto_spec::{Digest, Kind, Timestamp};

use super::house::House;
use super::process::{Order, Process, Said};
use super::{REPORT, SALARIES, peering};
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::time;

/// Whose the files are.
pub(super) const ACME: &str = "acme";
pub(super) const GLOBEX: &str = "globex";
pub(super) const FILES: &str = "files";
pub(super) const RESEARCHER: &str = "researcher";
/// Of globex; the other two are of acme.
pub(super) const ANALYST: &str = "analyst";

/// The directory, the organisations and the processes.
pub(super) struct Stage {
    dir: PathBuf,
    /// Removes the directory when the demo ends, unless it is to be kept.
    _removal: Option<tempfile::TempDir>,
    acme: House,
    globex: House,
    agents: BTreeMap<&'static str, Process>,
    /// As each agent's process printed it.
    fingerprints: BTreeMap<&'static str, String>,
    /// acme's grants, by to whom.
    grants: BTreeMap<&'static str, Digest>,
}

impl Stage {
    /// Makes the organisations and the files.
    pub(super) fn set(keep: bool) -> Outcome<Self> {
        let directory = tempfile::Builder::new().prefix("fem-demo-").tempdir()?;
        let (dir, removal) = match keep {
            true => (directory.keep(), None),
            false => (directory.path().to_owned(), Some(directory)),
        };
        // What the files agent resolves is compared with this, so it must not be a symbolic link.
        let dir = dir.canonicalize()?;
        let stage = Self {
            acme: House::make(&dir, ACME, false)?,
            globex: House::make(&dir, GLOBEX, true)?,
            dir,
            _removal: removal,
            agents: BTreeMap::new(),
            fingerprints: BTreeMap::new(),
            grants: BTreeMap::new(),
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
    pub(super) fn reports(&self) -> PathBuf {
        self.dir.join("srv/reports")
    }
    /// Where the report may be read, and nothing else.
    pub(super) fn bounds(&self) -> String {
        format!("path under {}", self.reports().display())
    }
    pub(super) fn report(&self) -> PathBuf {
        self.reports().join("q3.txt")
    }
    pub(super) fn salaries(&self) -> PathBuf {
        self.dir.join("srv/private/salaries.txt")
    }

    /// Whose agent that is.
    pub(super) fn house_of(&self, agent: &str) -> &House {
        match agent {
            ANALYST => &self.globex,
            _ => &self.acme,
        }
    }

    /// Both organisations.
    pub(super) fn houses(&mut self) -> [&mut House; 2] {
        [&mut self.acme, &mut self.globex]
    }

    /// Starts an agent process with a key of its own. Gives its id and its key's fingerprint.
    pub(super) async fn start_agent(&mut self, name: &'static str) -> Outcome<(u32, String)> {
        let path = self.dir.join(format!("{name}.toml"));
        let key_file = self.dir.join(format!("{name}.pem"));
        agent_sdk::Key::generate()?.save(&key_file)?;
        let house = self.house_of(name);
        let context = Context {
            agent: Some(self::name(&format!("{name}@{}", house.org))?),
            org: None,
            key_file: Some(key_file),
            ..house.join()?
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

    /// An agent calls a tool of the files agent.
    pub(super) async fn call(&mut self, who: &str, tool: &str, path: &Path) -> Outcome<Said> {
        let order = Order::Call {
            tool: tool.into(),
            path: path.into(),
        };
        self.order(who, &order).await
    }

    /// The researcher reads a file.
    pub(super) async fn read(&mut self, path: &Path) -> Outcome<Said> {
        self.call(RESEARCHER, "files.read", path).await
    }

    /// Its admin approves the pending key of `agent` whose fingerprint is the one that the agent
    /// printed; the agent asks again and learns it.
    pub(super) async fn approve(&mut self, agent: &'static str) -> Outcome<bool> {
        let printed = self.fingerprints.get(agent).cloned().unwrap_or_default();
        Ok(self.house_of(agent).approve(agent, &printed).await?
            && self.order(agent, &Order::Register).await? == Said::Done)
    }

    /// acme's admin grants the researcher `files.read` within `bounds`, on record.
    pub(super) async fn grant(&mut self, bounds: &str) -> Outcome<Timestamp> {
        let body = TokenIssue {
            calls: None,
            agent: name(RESEARCHER)?,
            capabilities: vec![name("files.read")?],
            expires: Some(time::now().later(Duration::from_secs(3_600))),
            not_before: None,
            checks: conditions(bounds)?,
            sandbox: None,
            record: true,
        };
        let (id, expires) = self.acme.grant(Kind::AdminTokenIssue, &body).await?;
        self.grants.insert(RESEARCHER, id);
        Ok(expires)
    }

    /// The files agent serves. Gives the tools that the admin then finds.
    pub(super) async fn serve(&mut self) -> Outcome<Vec<String>> {
        let directory = self.dir.join("srv");
        let said = self.order(FILES, &Order::Serve { directory }).await?;
        if said != Said::Done {
            return Err(Failure::fault(format!("files does not serve: {said}")));
        }
        let tools = self
            .acme
            .admin()?
            .discover(DiscoverTools::default())
            .await?;
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

    /// acme's admin revokes what it granted. When this returns it is durable and in force.
    pub(super) async fn revoke(&mut self, from: &str) -> Outcome {
        match self.grants.remove(from) {
            Some(id) => self.acme.revoke(id).await,
            None => Err(Failure::fault(format!("nothing was granted to {from}"))),
        }
    }

    /// Both admins accept each other's file; acme's broker dials. Says whether each file's key is the one
    /// that the other admin names.
    pub(super) async fn peer(&self) -> Outcome<bool> {
        let ours = peering::invite(&self.acme).await?;
        let theirs = peering::invite(&self.globex).await?;
        if ours.body().key != self.acme.join()?.broker_key
            || theirs.body().key != self.globex.join()?.broker_key
        {
            return Ok(false);
        }
        peering::accept(&self.globex, &ours, false).await?;
        peering::accept(&self.acme, &theirs, true).await?;
        for house in [&self.acme, &self.globex] {
            peering::until(house, |peer| peer.link == "up").await?;
        }
        Ok(true)
    }

    /// acme lets globex's agents read within `bounds`, and globex lets the analyst.
    pub(super) async fn grant_across(&mut self, bounds: &str) -> Outcome {
        let id = peering::grant(&self.acme, &self.globex, bounds).await?;
        self.grants.insert(GLOBEX, id);
        peering::permit(&self.globex, &self.acme).await?;
        peering::until(&self.globex, |peer| peer.tools > 0).await
    }

    /// How many sessions an agent has attached.
    pub(super) async fn sessions(&self, agent: &str) -> Outcome<u32> {
        let (shown, _) = self.house_of(agent).show(agent).await?;
        Ok(shown.map_or(0, |agent| agent.sessions))
    }

    /// Ends all processes, and waits until they have ended.
    pub(super) async fn end(self) -> Outcome {
        for process in self.agents.into_values() {
            process.end().await?;
        }
        self.acme.end().await?;
        self.globex.end().await
    }
}

/// The checks that a `--where` stands for.
pub(super) fn conditions(clause: &str) -> Outcome<Vec<String>> {
    let checks = Check::where_clause(clause).map_err(|e| Failure::fault(e.to_string()))?;
    Ok(checks.iter().map(ToString::to_string).collect())
}

pub(super) fn name<T: std::str::FromStr>(text: &str) -> Outcome<T>
where
    T::Err: std::fmt::Display,
{
    text.parse()
        .map_err(|e: T::Err| Failure::fault(e.to_string()))
}
