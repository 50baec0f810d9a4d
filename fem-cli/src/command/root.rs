//! `root`: the keys that tokens are rooted in, and how the next one takes over.

use proto_spec::message::{Ack, RootAct, RootRecord};
use proto_spec::{Kind, PublicKey};
use serde_json::json;

use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::named_key::is_fingerprint;
use crate::output::{Output, Table, escape};
use crate::request::{self, unexpected};
use crate::time;

/// Lists root keys, and replaces the one that tokens are rooted in
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A new root key takes over in three steps, with as much time between them as you need:
  fem-cli root prepare     the broker makes it; verifiers learn it, nothing is rooted in it yet
  fem-cli root activate    from here on tokens are rooted in it; the old one is still accepted
  fem-cli root retire      the old one is worth nothing; what was handed out under it is dead")]
pub(crate) struct Root {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// Lists the keys that tokens may be rooted in
    List,
    /// Makes the next root key: accepted, not used yet
    Prepare,
    /// Roots tokens in the prepared key from here on; the old one is still accepted
    Activate(Which),
    /// Accepts nothing any more that is rooted in a key; tokens handed out under it are dead
    Retire(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The key, or its fingerprint [default: the only one that can be meant]
    key: Option<String>,
}

pub(crate) async fn run(args: Root, chosen: &Chosen, output: Output) -> Outcome {
    let admin = chosen.agent()?;
    match args.act {
        Act::List => {
            let roots = roots(&admin, Kind::AdminRootList, None).await?;
            output.list(&roots, || table(&roots))
        }
        Act::Prepare => {
            let roots = roots(&admin, Kind::AdminRootPrepare, None).await?;
            give(output, &roots, after_prepare)
        }
        Act::Activate(which) => {
            let key = find(&admin, &which, "prepared").await?;
            let roots = roots(&admin, Kind::AdminRootActivate, Some(key)).await?;
            give(output, &roots, after_activate)
        }
        Act::Retire(which) => {
            let key = find(&admin, &which, "retiring").await?;
            let roots = roots(&admin, Kind::AdminRootRetire, Some(key)).await?;
            give(output, &roots, |roots| after_retire(&key, roots))
        }
    }
}

async fn roots(
    admin: &agent_sdk::Agent,
    kind: Kind,
    key: Option<PublicKey>,
) -> Outcome<Vec<RootRecord>> {
    let ack = match key {
        Some(key) => request::act(admin, kind, &RootAct { key }).await?,
        None => request::act(admin, kind, &json!({})).await?,
    };
    match ack {
        Ack::Roots { roots } => Ok(roots),
        other => Err(unexpected(&other)),
    }
}

/// The key that is meant: the one that was named, else the only one in this state.
async fn find(admin: &agent_sdk::Agent, which: &Which, state: &str) -> Outcome<PublicKey> {
    let roots = roots(admin, Kind::AdminRootList, None).await?;
    meant(&roots, which.key.as_deref(), state)
}

fn meant(roots: &[RootRecord], named: Option<&str>, state: &str) -> Outcome<PublicKey> {
    let is_meant = |root: &&RootRecord| match named {
        Some(text) => match text.parse::<PublicKey>() {
            Ok(key) => key == root.key,
            Err(_) => is_fingerprint(text, &root.key),
        },
        None => root.state == state,
    };
    let found: Vec<_> = roots.iter().filter(is_meant).collect();
    match (found.as_slice(), named) {
        ([one], _) => Ok(one.key),
        ([], Some(text)) => Err(Failure::not_found(format!("{text} is no root key here"))
            .next("see `fem-cli root list`")),
        ([], None) => Err(Failure::not_found(format!("no root key is {state}"))
            .next("see `fem-cli root list`, and `fem-cli root --help` for the order of the steps")),
        _ => Err(Failure::usage(format!("several root keys are {state}"))
            .next("name one: see `fem-cli root list`")),
    }
}

fn give(
    output: Output,
    roots: &[RootRecord],
    next: impl FnOnce(&[RootRecord]) -> String,
) -> Outcome {
    output.give(&roots, || format!("{}\n{}", table(roots), next(roots)))
}

fn table(roots: &[RootRecord]) -> Table {
    let mut table = Table::new(&["state", "key", "fingerprint", "since"], "No root keys.");
    for root in roots {
        table.row([
            root.state.as_str(),
            &root.key.to_string(),
            &root.key.fingerprint(),
            &time::show(root.since),
        ]);
    }
    table
}

fn in_state<'a>(roots: &'a [RootRecord], state: &str) -> Option<&'a PublicKey> {
    let found = roots.iter().find(|root| root.state == state);
    found.map(|root| &root.key)
}

/// The file in which the broker keeps a key that it made.
fn file_of(key: &PublicKey) -> String {
    format!("root-{}.pem", key.fingerprint().replace(':', ""))
}

fn after_prepare(roots: &[RootRecord]) -> String {
    let Some(key) = in_state(roots, "prepared") else {
        return escape("The broker does not say which key it prepared.");
    };
    format!(
        "The broker made {}, beside its configured root key. Back it up, and leave it there.\n\
         Agents that are attached know the key; the others learn it when they attach. Whoever verifies\n\
         offline (`token verify --root-key`) needs it from you.\n\
         Next: fem-cli root activate",
        file_of(key),
    )
}

fn after_activate(roots: &[RootRecord]) -> String {
    let made = in_state(roots, "active").map(file_of).unwrap_or_default();
    format!(
        "From here on tokens are rooted in the active key. The broker needs {made} at every start:\n\
         keep it beside the configured one.\n\
         The old key is still accepted. Tokens and enrolment tokens that are handed out already die with\n\
         it: see `fem-cli token list`, and hand out anew what is to live on.\n\
         Next: fem-cli root retire"
    )
}

fn after_retire(key: &PublicKey, roots: &[RootRecord]) -> String {
    let made = in_state(roots, "active").map(file_of).unwrap_or_default();
    format!(
        "Retired {}. What was handed out under it is dead; what is on record was issued anew.\n\
         Its key file can go. If broker.toml names it as [keys] root, let that name {made} first.",
        key.fingerprint()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_key_is_picked_only_where_no_other_can_be_meant() {
        let root = |seed: u8, state: &str| RootRecord {
            key: proto_spec::SigningKey::from_seed(&[seed; 32]).public(),
            state: state.into(),
            since: proto_spec::Timestamp::from_ms(0),
        };
        let all = [root(1, "active"), root(2, "retiring"), root(3, "retiring")];
        assert_eq!(meant(&all[..2], None, "retiring").unwrap(), all[1].key);
        assert!(meant(&all, None, "retiring").is_err());
        assert!(meant(&all, None, "prepared").is_err());
        for named in [all[2].key.to_string(), all[2].key.fingerprint()] {
            assert_eq!(meant(&all, Some(&named), "retiring").unwrap(), all[2].key);
        }
        assert!(meant(&all, Some("00"), "retiring").is_err());
    }
}
