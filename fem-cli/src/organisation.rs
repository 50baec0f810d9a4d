//! An organisation on disk: what `init` makes and `demo` starts from.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use agent_sdk::Key;
use proto_spec::identity::AgentId;
use proto_spec::{Name, Org, PublicKey, Timestamp};
use serde::Serialize;

use crate::certificate;
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::files::{self, Readers, quoted};

/// What the first admin is called. `admin` itself belongs to the protocol.
pub(crate) const FIRST_ADMIN: &str = "administrator";

/// What is to be made.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) org: Org,
    pub(crate) admin: Name,
    pub(crate) listen: SocketAddr,
    pub(crate) ops: SocketAddr,
    /// Names and addresses in the broker's certificate.
    pub(crate) hosts: Vec<String>,
    /// How agents reach the broker.
    pub(crate) broker_url: String,
    /// How other organisations' brokers reach it.
    pub(crate) endpoints: Vec<String>,
    pub(crate) now: Timestamp,
}

/// What was made.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Made {
    pub(crate) directory: PathBuf,
    pub(crate) admin: AgentId,
    pub(crate) broker_key: PublicKey,
    pub(crate) root_key: PublicKey,
    pub(crate) admin_key: PublicKey,
    pub(crate) recovery_key: PublicKey,
}

/// Makes everything in a directory beside `dir` and then moves it there: there is never half an
/// organisation, and never one in place of another.
pub(crate) fn make(dir: &Path, plan: &Plan) -> Outcome<Made> {
    if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(
            Failure::fault(format!("{} exists and is not empty", dir.display()))
                .next("an organisation is never overwritten: name another directory with --dir"),
        );
    }
    let parent = match dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let unfinished = tempfile::Builder::new()
        .prefix(".fem-init-")
        .tempdir_in(parent)
        .map_err(|e| Failure::fault(format!("{} cannot be written: {e}", parent.display())))?;
    let made = fill(unfinished.path(), plan)?;
    let unfinished = unfinished.keep();
    std::fs::rename(&unfinished, dir).map_err(|error| {
        let _ = std::fs::remove_dir_all(&unfinished);
        Failure::fault(format!("{} cannot be made: {error}", dir.display()))
            .next(format!("is {} something else already?", quoted(dir)))
    })?;
    Ok(Made {
        directory: files::absolute(dir),
        ..made
    })
}

fn fill(dir: &Path, plan: &Plan) -> Outcome<Made> {
    for below in ["keys", "tls", "data"] {
        files::private_directory(&dir.join(below))?;
    }
    let broker_key = new_key(&dir.join("keys/broker.pem"))?;
    let root_key = new_key(&dir.join("keys/root.pem"))?;
    let admin_key = new_key(&dir.join("keys/admin.pem"))?;
    let recovery_key = new_key(&dir.join("recovery.pem"))?;
    files::create(
        &dir.join("keys/root.pub"),
        format!("{root_key}\n").as_bytes(),
        Readers::All,
    )?;
    certificates(&dir.join("tls"), plan)?;
    files::create(
        &dir.join("broker.toml"),
        configuration(plan).as_bytes(),
        Readers::All,
    )?;
    let join = Context {
        agent: None,
        org: Some(plan.org.clone()),
        broker: plan.broker_url.clone(),
        broker_key,
        ca_file: Some(dir.join("tls/ca.pem")),
        key_file: None,
        passphrase_file: None,
    };
    let admin = AgentId::new(plan.admin.clone(), plan.org.clone());
    let context = Context {
        agent: Some(admin.clone()),
        org: None,
        key_file: Some(dir.join("keys/admin.pem")),
        ..join.clone()
    };
    context.save(&dir.join("admin.toml"))?;
    join.save(&dir.join("join.toml"))?;
    let founding = broker::Founding {
        org: plan.org.clone(),
        broker: broker_key,
        root: root_key,
        recovery: recovery_key,
        admin: plan.admin.clone(),
        admin_key,
    };
    broker::found(&dir.join("data"), &founding, plan.now)?;
    Ok(Made {
        directory: dir.into(),
        admin,
        broker_key,
        root_key,
        admin_key,
        recovery_key,
    })
}

fn new_key(path: &Path) -> Outcome<PublicKey> {
    let key = Key::generate()?;
    key.save(path)?;
    Ok(key.public())
}

fn certificates(dir: &Path, plan: &Plan) -> Outcome {
    let ms = i64::try_from(plan.now.as_ms()).unwrap_or(i64::MAX);
    let today = jiff::Timestamp::from_millisecond(ms)
        .map_err(|e| Failure::fault(format!("this machine's clock cannot be right: {e}")))?;
    let made = certificate::development(plan.org.as_str(), &plan.hosts, today)?;
    let all = [
        ("ca.pem", &made.ca, Readers::All),
        ("ca.key.pem", &made.ca_key, Readers::Owner),
        ("cert.pem", &made.certificate, Readers::All),
        ("key.pem", &made.key, Readers::Owner),
    ];
    all.iter().try_for_each(|(name, pem, readers)| {
        files::create(&dir.join(name), pem.as_bytes(), *readers)
    })
}

/// The broker's example configuration with this organisation's values.
fn configuration(plan: &Plan) -> String {
    broker::config::EXAMPLE
        .replace("org = \"acme\"", &format!("org = \"{}\"", plan.org))
        .replace("name@acme", &format!("name@{}", plan.org))
        .replace(
            "listen = \"127.0.0.1:7443\"",
            &format!("listen = \"{}\"", plan.listen),
        )
        .replace(
            "ops = \"127.0.0.1:7480\"",
            &format!("ops = \"{}\"", plan.ops),
        )
        .replacen("# endpoints = []", &endpoints(&plan.endpoints), 1)
        .replace("#[mcp]", "[mcp]")
        .replace(
            "#resource = \"https://broker.acme.example:7443/mcp\"",
            &format!("resource = \"{}/mcp\"", plan.broker_url),
        )
}

/// Left as the comment that it is where there are none.
fn endpoints(all: &[String]) -> String {
    match all {
        [] => "# endpoints = []".into(),
        some => format!("endpoints = {some:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn plan() -> Plan {
        Plan {
            org: "globex".parse().unwrap(),
            admin: FIRST_ADMIN.parse().unwrap(),
            listen: "127.0.0.1:8443".parse().unwrap(),
            ops: "127.0.0.1:8480".parse().unwrap(),
            hosts: vec!["localhost".into()],
            broker_url: "https://127.0.0.1:8443".into(),
            endpoints: vec!["broker.globex.example:8443".into()],
            now: crate::time::now(),
        }
    }

    #[test]
    fn what_init_makes_the_broker_takes() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("globex");
        make(&dir, &plan()).unwrap();
        let config = broker::Config::load(&dir.join("broker.toml")).unwrap();
        assert_eq!(config.org.as_str(), "globex");
        assert_eq!(config.listen, plan().listen);
        assert_eq!(config.ops, plan().ops);
        assert_eq!(config.federation.endpoints, plan().endpoints);
        let context = Context::load(&dir.join("admin.toml")).unwrap();
        assert_eq!(context.agent.unwrap().to_string(), "administrator@globex");
    }

    #[test]
    fn an_organisation_is_never_overwritten_and_a_failed_init_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("globex");
        make(&dir, &plan()).unwrap();
        let before = std::fs::read(dir.join("keys/root.pem")).unwrap();
        assert!(make(&dir, &plan()).is_err());
        assert_eq!(std::fs::read(dir.join("keys/root.pem")).unwrap(), before);
        let bad = Plan {
            hosts: vec!["höst".into()],
            ..plan()
        };
        assert!(make(&parent.path().join("other"), &bad).is_err());
        let left: Vec<_> = std::fs::read_dir(parent.path())
            .unwrap()
            .flatten()
            .collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn only_their_owner_reads_what_is_secret() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("globex");
        make(&dir, &plan()).unwrap();
        for secret in [
            "keys/broker.pem",
            "keys/root.pem",
            "keys/admin.pem",
            "recovery.pem",
            "tls/key.pem",
            "tls/ca.key.pem",
        ] {
            assert!(files::is_private(&dir.join(secret)).unwrap(), "{secret}");
        }
    }
}
