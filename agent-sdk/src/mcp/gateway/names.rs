//! Public names: what an agent's tool is called where one client sees the tools of many agents.
//!
//! Clients put a prefix of their own in front and take few characters, so a name has at most
//! [`NAME_CHARS_MAX`] of `[A-Za-z0-9_]`: `<agent>__<tool>` in one's own organisation, and
//! `<org>_<agent>__<tool>` in every other. What would be longer, or the same for two, is cut and ends with a
//! part of its digest. Which names are given depends on what the caller may call, so a name is looked up in the
//! caller's own table and never taken apart.

use std::collections::HashMap;

use proto_spec::{AgentId, Digest, Org};

/// Characters of a public name.
pub(super) const NAME_CHARS_MAX: usize = 40;
/// Characters of the digest at the end of a name that was cut.
const DIGEST_CHARS: usize = 6;

/// The public names of `items`, each a tool or prompt of an agent, in their order. No two are the same; none
/// is given to what would still be called as something else is, which takes somebody who tried for it.
pub(super) fn public(home: &Org, items: &[(&AgentId, &str)]) -> Vec<Option<String>> {
    let mut names: Vec<String> = items.iter().map(|item| plain(home, *item)).collect();
    let mut cut: Vec<bool> = names
        .iter()
        .map(|name| name.len() > NAME_CHARS_MAX)
        .collect();
    for (name, item) in names.iter_mut().zip(items) {
        if name.len() > NAME_CHARS_MAX {
            *name = shortened(name, *item);
        }
    }
    // What was cut may be called as something plain is, which is cut then too. Every round cuts one at least.
    loop {
        let again: Vec<usize> = {
            let count = counted(&names);
            let is_shared = |at: &usize| !cut[*at] && count[names[*at].as_str()] > 1;
            (0..names.len()).filter(is_shared).collect()
        };
        if again.is_empty() {
            break;
        }
        for at in again {
            cut[at] = true;
            names[at] = shortened(&names[at], items[at]);
        }
    }
    let count = counted(&names);
    names
        .iter()
        .map(|name| (count[name.as_str()] == 1).then(|| name.clone()))
        .collect()
}

fn counted(names: &[String]) -> HashMap<&str, usize> {
    let mut count = HashMap::new();
    for name in names {
        *count.entry(name.as_str()).or_insert(0) += 1;
    }
    count
}

/// Before it is known whether it is too long, or another's too.
fn plain(home: &Org, (agent, item): (&AgentId, &str)) -> String {
    let own = item
        .strip_prefix(agent.name().as_str())
        .and_then(|rest| rest.strip_prefix('.'));
    let named = format!("{}__{}", agent.name(), own.unwrap_or(item));
    let whole = match agent.org() == home {
        true => named,
        false => format!("{}_{named}", agent.org()),
    };
    let safe = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    whole.chars().map(safe).collect()
}

fn shortened(plain: &str, (agent, item): (&AgentId, &str)) -> String {
    let kept = NAME_CHARS_MAX - DIGEST_CHARS - 1;
    // All of it is ASCII, and no name has a line end in it.
    let cut = plain.get(..kept.min(plain.len())).unwrap_or(plain);
    let identity = format!("{}\n{}\n{item}", agent.org(), agent.name());
    format!("{cut}_{}", base32(&Digest::of(identity.as_bytes())))
}

fn base32(digest: &Digest) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let [a, b, c, d, ..] = digest.0;
    let bits = u32::from_be_bytes([a, b, c, d]);
    (1..=DIGEST_CHARS)
        .map(|at| char::from(ALPHABET[(bits >> (32 - 5 * at) & 31) as usize]))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(items: &[(&str, &str)]) -> Vec<Option<String>> {
        let agents: Vec<AgentId> = items
            .iter()
            .map(|(agent, _)| agent.parse().unwrap())
            .collect();
        let items: Vec<(&AgentId, &str)> = agents
            .iter()
            .zip(items)
            .map(|(agent, (_, item))| (agent, *item))
            .collect();
        public(&"acme".parse().unwrap(), &items)
    }

    #[track_caller]
    fn check(items: &[(&str, &str)], names: &[&str]) {
        let given: Vec<String> = named(items).into_iter().flatten().collect();
        assert_eq!(given, names);
    }

    #[test]
    fn a_name_says_agent_and_tool_and_of_others_the_organisation() {
        check(
            &[
                ("fs@acme", "fs.read_file"),
                ("fs@globex", "fs.read_file"),
                ("calc.v2@acme", "calc.v2.add"),
                ("calc@acme", "math.add-up"),
            ],
            &[
                "fs__read_file",
                "globex_fs__read_file",
                "calc_v2__add",
                "calc__math_add_up",
            ],
        );
    }

    #[test]
    fn of_two_that_would_be_called_the_same_neither_keeps_the_name() {
        check(
            &[("a-b@acme", "t"), ("a.b@acme", "t"), ("c@acme", "t")],
            &["a_b__t_id7jwp", "a_b__t_ahojdq", "c__t"],
        );
    }

    #[test]
    fn what_is_too_long_is_cut_and_ends_with_its_digest() {
        let long = "x".repeat(60);
        let names = named(&[("fs@acme", &long)]);
        let name = names[0].as_deref().unwrap();
        assert_eq!(name.len(), NAME_CHARS_MAX);
        assert!(name.starts_with("fs__xxxx"), "{name}");
    }

    #[test]
    fn nobody_takes_a_name_that_another_got_by_its_digest() {
        let plain = [("a-b@acme", "t"), ("a.b@acme", "t")];
        let theirs = named(&plain)[0].clone().unwrap();
        let (_, squatted) = theirs.split_once("__").unwrap();
        let squatter = ("a.b@acme", squatted);
        let names = named(&[plain[0], plain[1], squatter]);
        assert_eq!(names[0].as_deref(), Some(theirs.as_str()));
        assert_ne!(names[2], names[0]);
    }

    proptest! {
        #[test]
        fn names_are_short_plain_and_of_one_tool_only(
            items in prop::collection::btree_set(
                ("[a-z][a-z0-9._-]{0,8}[a-z0-9]@(acme|globex|x)", "[a-zA-Z0-9._ \u{e9}-]{0,60}"), 0..40
            )
        ) {
            let items: Vec<(String, String)> = items
                .into_iter()
                .filter(|(agent, _)| agent.parse::<AgentId>().is_ok())
                .collect();
            let borrowed: Vec<(&str, &str)> =
                items.iter().map(|(agent, item)| (agent.as_str(), item.as_str())).collect();
            let names = named(&borrowed);
            let given: Vec<&String> = names.iter().flatten().collect();
            let different: std::collections::BTreeSet<_> = given.iter().collect();
            prop_assert_eq!(different.len(), given.len());
            for name in given {
                prop_assert!(name.len() <= NAME_CHARS_MAX);
                prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
            }
            // Order of the table changes nothing.
            let mut turned = borrowed.clone();
            turned.reverse();
            let mut back = named(&turned);
            back.reverse();
            prop_assert_eq!(back, names);
        }
    }
}
