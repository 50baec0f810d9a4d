//! `broker-key`: the keys that the broker signs with, and how the next one takes over.

use proto_spec::message::KeyRecord;
use proto_spec::{Kind, PublicKey};

use super::keys::{Purpose, Which, act, in_state};
use crate::connect::Chosen;
use crate::failure::Outcome;
use crate::output::{Output, escape};

const BROKER: Purpose = Purpose {
    what: "broker key",
    command: "broker-key",
    file: "broker",
    list: Kind::AdminBrokerList,
};

/// Lists the broker's keys, and replaces the one that it signs with
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every agent's context names the broker's key. Another takes over in three steps, with as much time between
them as your agents need to come by once:
  fem-cli broker-key prepare     the broker makes it, and the old key names it as its successor
  fem-cli broker-key activate    from here on the broker signs with it; whoever has the old key is led to it
  fem-cli broker-key retire      nobody is led on any more: who still has the old key needs the new one by hand")]
pub(crate) struct BrokerKey {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// Lists the keys that the broker signs with, or did
    List,
    /// Makes the broker's next key: told to every agent, not used yet
    Prepare,
    /// Has the broker sign with the prepared key from here on; whoever has the old one is led to it
    Activate(Which),
    /// Leads nobody on any more who has a key
    Retire(Which),
}

pub(crate) async fn run(args: BrokerKey, chosen: &Chosen, output: Output) -> Outcome {
    let admin = chosen.agent()?;
    match args.act {
        Act::List => BROKER.list(&admin, output).await,
        Act::Prepare => {
            let keys = act(&admin, Kind::AdminBrokerPrepare, None).await?;
            BROKER.give(output, &keys, after_prepare)
        }
        Act::Activate(which) => {
            let key = BROKER.find(&admin, &which, "prepared").await?;
            let keys = act(&admin, Kind::AdminBrokerActivate, Some(key)).await?;
            BROKER.give(output, &keys, after_activate)
        }
        Act::Retire(which) => {
            let key = BROKER.find(&admin, &which, "retiring").await?;
            let keys = act(&admin, Kind::AdminBrokerRetire, Some(key)).await?;
            BROKER.give(output, &keys, |keys| after_retire(&key, keys))
        }
    }
}

fn after_prepare(keys: &[KeyRecord]) -> String {
    let Some(key) = in_state(keys, "prepared") else {
        return escape("The broker does not say which key it prepared.");
    };
    format!(
        "The broker made {}, beside its configured key. Back it up, and leave it there.\n\
         Nothing is signed with it yet: contexts go on naming the active key.\n\
         Next: fem-cli broker-key activate",
        BROKER.file_of(key),
    )
}

fn after_activate(keys: &[KeyRecord]) -> String {
    let Some(key) = in_state(keys, "active") else {
        return escape("The broker does not say which key is active.");
    };
    format!(
        "From here on the broker signs with the active key. It needs {} at every start: keep it beside\n\
         the configured one. Contexts that you hand out (join.toml) name it from now on:\n  \
         broker_key = \"{key}\"\n\
         Whoever has the old key is led to it, and fem-cli writes it down. Let every agent come by once.\n\
         Next: fem-cli broker-key retire",
        BROKER.file_of(key),
    )
}

fn after_retire(key: &PublicKey, keys: &[KeyRecord]) -> String {
    let active = in_state(keys, "active");
    let made = active.map(|key| BROKER.file_of(key)).unwrap_or_default();
    let active = active.map(ToString::to_string).unwrap_or_default();
    format!(
        "Retired {}. Nobody is led from it to the active key any more: an agent that still has it is told so,\n\
         and needs from you, by hand:\n  \
         broker_key = \"{active}\"\n\
         Its key file can go. If broker.toml names it as [keys] broker, let that name {made} first.",
        key.fingerprint()
    )
}
