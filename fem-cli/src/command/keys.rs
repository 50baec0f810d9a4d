//! What `root` and `broker-key` have in common: keys that are prepared, activated and retired.

use proto_spec::message::{Ack, KeyAct, KeyRecord};
use proto_spec::{Kind, PublicKey};
use serde_json::json;

use crate::failure::{Failure, Outcome};
use crate::output::{Output, Table};
use crate::request::{self, unexpected};
use crate::time;

/// Keys of one purpose.
#[derive(Debug, Clone, Copy)]
pub(super) struct Purpose {
    /// As people call it: `root key`.
    pub(super) what: &'static str,
    /// The command that is about it.
    pub(super) command: &'static str,
    /// What the names of its files begin with.
    pub(super) file: &'static str,
    /// The act that lists them.
    pub(super) list: Kind,
}

#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// The key, or its fingerprint [default: the only one that can be meant]
    key: Option<String>,
}

/// Has the broker do something with keys; gives all as they are then.
pub(in crate::command) async fn act(
    admin: &agent_sdk::Agent,
    kind: Kind,
    key: Option<PublicKey>,
) -> Outcome<Vec<KeyRecord>> {
    let ack = match key {
        Some(key) => request::act(admin, kind, &KeyAct { key }).await?,
        None => request::act(admin, kind, &json!({})).await?,
    };
    match ack {
        Ack::Roots { roots: keys } | Ack::BrokerKeys { keys } => Ok(keys),
        other => Err(unexpected(&other)),
    }
}

impl Purpose {
    /// The key that is meant: the one that was named, else the only one in this state.
    pub(super) async fn find(
        self,
        admin: &agent_sdk::Agent,
        which: &Which,
        state: &str,
    ) -> Outcome<PublicKey> {
        let keys = act(admin, self.list, None).await?;
        self.meant(&keys, which.key.as_deref(), state)
    }

    fn meant(self, keys: &[KeyRecord], named: Option<&str>, state: &str) -> Outcome<PublicKey> {
        let Self { what, command, .. } = self;
        let plain = |text: &str| text.replace(':', "").to_ascii_lowercase();
        let is_meant = |held: &&KeyRecord| match named {
            Some(text) => match text.parse::<PublicKey>() {
                Ok(key) => key == held.key,
                Err(_) => plain(text) == plain(&held.key.fingerprint()),
            },
            None => held.state == state,
        };
        let found: Vec<_> = keys.iter().filter(is_meant).collect();
        match (found.as_slice(), named) {
            ([one], _) => Ok(one.key),
            ([], Some(text)) => Err(Failure::not_found(format!("{text} is no {what} here"))
                .next(format!("see `fem-cli {command} list`"))),
            ([], None) => Err(Failure::not_found(format!("no {what} is {state}")).next(format!(
                "see `fem-cli {command} list`, and `fem-cli {command} --help` for the order of the steps"
            ))),
            _ => Err(Failure::usage(format!("several {what}s are {state}"))
                .next(format!("name one: see `fem-cli {command} list`"))),
        }
    }

    /// Lists them.
    pub(super) async fn list(self, admin: &agent_sdk::Agent, output: Output) -> Outcome {
        let keys = act(admin, self.list, None).await?;
        output.list(&keys, || Self::table(&keys))
    }

    /// Shows all, and what comes next.
    pub(super) fn give(
        self,
        output: Output,
        keys: &[KeyRecord],
        next: impl FnOnce(&[KeyRecord]) -> String,
    ) -> Outcome {
        output.give(&keys, || format!("{}\n{}", Self::table(keys), next(keys)))
    }

    fn table(keys: &[KeyRecord]) -> Table {
        let mut table = Table::new(&["state", "key", "fingerprint", "since"], "No keys.");
        for held in keys {
            table.row([
                held.state.as_str(),
                &held.key.to_string(),
                &held.key.fingerprint(),
                &time::show(held.since),
            ]);
        }
        table
    }

    /// The file in which the broker keeps a key that it made.
    pub(super) fn file_of(self, key: &PublicKey) -> String {
        let fingerprint = key.fingerprint().replace(':', "");
        format!("{}-{fingerprint}.pem", self.file)
    }
}

/// The first key in this state.
pub(super) fn in_state<'a>(keys: &'a [KeyRecord], state: &str) -> Option<&'a PublicKey> {
    let found = keys.iter().find(|held| held.state == state);
    found.map(|held| &held.key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Purpose = Purpose {
        what: "root key",
        command: "root",
        file: "root",
        list: Kind::AdminRootList,
    };

    #[test]
    fn a_key_is_picked_only_where_no_other_can_be_meant() {
        let root = |seed: u8, state: &str| KeyRecord {
            key: proto_spec::SigningKey::from_seed(&[seed; 32]).public(),
            state: state.into(),
            since: proto_spec::Timestamp::from_ms(0),
        };
        let all = [root(1, "active"), root(2, "retiring"), root(3, "retiring")];
        assert_eq!(ROOT.meant(&all[..2], None, "retiring").unwrap(), all[1].key);
        assert!(ROOT.meant(&all, None, "retiring").is_err());
        assert!(ROOT.meant(&all, None, "prepared").is_err());
        for named in [all[2].key.to_string(), all[2].key.fingerprint()] {
            assert_eq!(
                ROOT.meant(&all, Some(&named), "retiring").unwrap(),
                all[2].key
            );
        }
        assert!(ROOT.meant(&all, Some("00"), "retiring").is_err());
    }
}
