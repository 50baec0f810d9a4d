//! `root`: the keys that tokens are rooted in, and how the next one takes over.

use proto_spec::message::KeyRecord;
use proto_spec::{Kind, PublicKey};

use super::keys::{Purpose, Which, act, in_state};
use crate::connect::Chosen;
use crate::failure::Outcome;
use crate::output::{Output, escape};

const ROOT: Purpose = Purpose {
    what: "root key",
    command: "root",
    file: "root",
    list: Kind::AdminRootList,
};

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

pub(crate) async fn run(args: Root, chosen: &Chosen, output: Output) -> Outcome {
    let admin = chosen.agent()?;
    match args.act {
        Act::List => ROOT.list(&admin, output).await,
        Act::Prepare => {
            let roots = act(&admin, Kind::AdminRootPrepare, None).await?;
            ROOT.give(output, &roots, after_prepare)
        }
        Act::Activate(which) => {
            let key = ROOT.find(&admin, &which, "prepared").await?;
            let roots = act(&admin, Kind::AdminRootActivate, Some(key)).await?;
            ROOT.give(output, &roots, after_activate)
        }
        Act::Retire(which) => {
            let key = ROOT.find(&admin, &which, "retiring").await?;
            let roots = act(&admin, Kind::AdminRootRetire, Some(key)).await?;
            ROOT.give(output, &roots, |roots| after_retire(&key, roots))
        }
    }
}

fn after_prepare(roots: &[KeyRecord]) -> String {
    let Some(key) = in_state(roots, "prepared") else {
        return escape("The broker does not say which key it prepared.");
    };
    format!(
        "The broker made {}, beside its configured root key. Back it up, and leave it there.\n\
         Agents that are attached know the key; the others learn it when they attach. Whoever verifies\n\
         offline (`token verify --root-key`) needs it from you.\n\
         Next: fem-cli root activate",
        ROOT.file_of(key),
    )
}

fn after_activate(roots: &[KeyRecord]) -> String {
    let made = in_state(roots, "active")
        .map(|key| ROOT.file_of(key))
        .unwrap_or_default();
    format!(
        "From here on tokens are rooted in the active key. The broker needs {made} at every start:\n\
         keep it beside the configured one.\n\
         The old key is still accepted. Tokens and enrolment tokens that are handed out already die with\n\
         it: see `fem-cli token list`, and hand out anew what is to live on.\n\
         Next: fem-cli root retire"
    )
}

fn after_retire(key: &PublicKey, roots: &[KeyRecord]) -> String {
    let made = in_state(roots, "active")
        .map(|key| ROOT.file_of(key))
        .unwrap_or_default();
    format!(
        "Retired {}. What was handed out under it is dead; what is on record was issued anew.\n\
         Its key file can go. If broker.toml names it as [keys] root, let that name {made} first.",
        key.fingerprint()
    )
}
