//! `init --recover`: a new admin for an organisation that has none left, by its recovery key.

use std::path::{Path, PathBuf};

use agent_sdk::Key;
use broker::Config;
use broker::upkeep::Recovery;
use proto_spec::identity::AgentId;
use proto_spec::{Name, Org, PublicKey, SigningKey};
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::files::quoted;
use crate::output::Output;
use crate::{programs, time};

/// What was made.
#[derive(Debug, Serialize)]
struct Recovered {
    admin: AgentId,
    admin_key: PublicKey,
    key_file: PathBuf,
    context: PathBuf,
}

/// Names `admin` in the journal of the organisation in `dir`, whose broker is stopped, with a key of
/// its own.
pub(crate) fn run(
    dir: &Path,
    org: &Org,
    admin: &Name,
    recovery_key: &Path,
    output: Output,
) -> Outcome {
    let config = Config::load(&dir.join("broker.toml"))
        .map_err(|problems| Failure::fault(problems.to_string()))?;
    if config.org != *org {
        let message = format!("{} is {}'s, not {org}'s", dir.display(), config.org);
        return Err(Failure::usage(message));
    }
    let recovery_key = Key::load(recovery_key)?;
    // Everything is checked, and the journal is held, before anything is made.
    let signing = SigningKey::from_seed(recovery_key.signing().seed());
    let recovery = Recovery::begin(&config.data, &signing).map_err(|error| {
        Failure::from(error).next(
            "nothing was changed. Stop the broker, and name the recovery key that `init` made",
        )
    })?;
    let join = Context::load(&dir.join("join.toml"))?;
    let (key_file, context_file) = free_names(dir);
    let key = Key::generate()?;
    recovery.check(admin, &key.public())?;
    key.save(&key_file)?;
    let id = AgentId::new(admin.clone(), org.clone());
    let context = Context {
        agent: Some(id.clone()),
        org: None,
        key_file: Some(key_file.clone()),
        ..join
    };
    context.save(&context_file)?;
    recovery.admit(admin, key.public(), time::now())?;
    let made = Recovered {
        admin: id,
        admin_key: key.public(),
        key_file,
        context: context_file,
    };
    output.give(&made, || told(dir, &made))
}

/// Names that no earlier admin's files have.
fn free_names(dir: &Path) -> (PathBuf, PathBuf) {
    let names = |number: u32| {
        (
            dir.join(format!("keys/admin-{number}.pem")),
            dir.join(format!("admin-{number}.toml")),
        )
    };
    (2..)
        .map(names)
        .find(|(key, context)| !key.exists() && !context.exists())
        .unwrap_or_else(|| names(1))
}

fn told(dir: &Path, made: &Recovered) -> String {
    format!(
        "\
{admin} is on record as an admin, with a new key {fingerprint}.
At its next start the broker gives it everything and says RECOVERY in its log; whoever had that name
before loses its key. The journal keeps that this happened.

  {key}   the admin's key
  {context}   its context

Take the recovery key offline again. Then start the broker:
  {broker} {config}

Other admins that should not be any more stay until they are revoked:
  {cli} --context {context} agent list",
        admin = made.admin,
        fingerprint = made.admin_key.fingerprint(),
        key = quoted(&made.key_file),
        context = quoted(&made.context),
        broker = programs::broker(),
        config = quoted(&dir.join("broker.toml")),
        cli = programs::cli(),
    )
}
