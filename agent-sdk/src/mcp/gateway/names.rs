//! Public names: what an agent's tool is called where one client sees the tools of many agents.
//!
//! Clients put a prefix of their own in front and take few characters, so a name has at most
//! [`NAME_CHARS_MAX`] of `[A-Za-z0-9_]`. It depends on the tool alone, never on what else is there: nobody
//! gets a name that another had by waiting until that one is away. `<agent>__<tool>` is the name of what
//! `agent` of one's own organisation calls `<agent>.<tool>`, where that says it whole: nothing had to be replaced
//! or cut, and `__` is in it once. All else has a digest at its end, behind [`MARK`], which no plain name has
//! in it. A name is looked up in the caller's own table and never taken apart.

use std::collections::HashMap;

use proto_spec::{AgentId, Digest, Org};

/// Characters of a public name.
pub(super) const NAME_CHARS_MAX: usize = 40;
/// Between agent and tool.
const JOINT: &str = "__";
/// In front of a digest.
const MARK: &str = "___";
/// Characters of a digest, of 5 bits each. To be called as a certain other tool is, somebody has to try 2^60
/// names.
const DIGEST_CHARS: usize = 12;

/// The public names of `items`, each a tool or prompt of an agent by its whole name, in their order. No two are
/// the same: of those whose digests would make it so, which takes somebody who tried for it, none gets its.
pub(super) fn public(home: &Org, items: &[(&AgentId, &str)]) -> Vec<Option<String>> {
    let names: Vec<String> = items.iter().map(|item| of(home, *item)).collect();
    let mut count: HashMap<&str, usize> = HashMap::new();
    for name in &names {
        *count.entry(name).or_default() += 1;
    }
    names
        .iter()
        .map(|name| (count[name.as_str()] == 1).then(|| name.clone()))
        .collect()
}

fn of(home: &Org, (agent, item): (&AgentId, &str)) -> String {
    let own = item
        .strip_prefix(agent.name().as_str())
        .and_then(|rest| rest.strip_prefix('.'));
    let is_home = agent.org() == home;
    let named = format!("{}{JOINT}{}", agent.name(), own.unwrap_or(item));
    if is_home && own.is_some() && says_all(&named) {
        return named;
    }
    let whole = match is_home {
        true => named,
        false => format!("{}_{named}", agent.org()),
    };
    let safe = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let kept = NAME_CHARS_MAX - MARK.len() - DIGEST_CHARS;
    let cut: String = whole.chars().map(safe).take(kept).collect();
    let identity = format!("{}\n{}\n{item}", agent.org(), agent.name());
    format!("{cut}{MARK}{}", base32(&Digest::of(identity.as_bytes())))
}

/// Whether it can be a public name, and only one agent and tool make it.
fn says_all(named: &str) -> bool {
    let is_safe = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    named.len() <= NAME_CHARS_MAX
        && named.bytes().all(is_safe)
        && named.matches(JOINT).count() == 1
        && !named.contains(MARK)
}

fn base32(digest: &Digest) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let [a, b, c, d, e, f, g, h, ..] = digest.0;
    let bits = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    (1..=DIGEST_CHARS)
        .map(|at| char::from(ALPHABET[(bits >> (64 - 5 * at) & 31) as usize]))
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
        let digests = |name: String| match name.split_once(MARK) {
            Some((cut, digest)) if digest.len() == DIGEST_CHARS => format!("{cut}{MARK}DIGEST"),
            _ => name,
        };
        let given = named(items).into_iter().flatten();
        let given: Vec<String> = given.map(digests).collect();
        assert_eq!(given, names);
    }

    #[test]
    fn a_name_says_agent_and_tool_and_where_that_is_not_all_has_a_digest() {
        check(
            &[
                ("fs@acme", "fs.read_file"),
                ("fs@globex", "fs.read_file"),
                ("calc.v2@acme", "calc.v2.add"),
                ("calc@acme", "math.add-up"),
                ("fs@acme", "read_file"),
            ],
            &[
                "fs__read_file",
                "globex_fs__read_file___DIGEST",
                "calc_v2__add___DIGEST",
                "calc__math_add_up___DIGEST",
                "fs__read_file___DIGEST",
            ],
        );
    }

    #[test]
    fn a_name_never_depends_on_who_else_is_there() {
        // Each of these looks to a client like one of the others where it stands alone.
        let alike = [
            ("corp-db@acme", "corp-db.query"),
            ("corp_db@acme", "corp_db.query"),
            ("db@corp", "db.query"),
            ("corp@acme", "corp.db__query"),
            ("corp__db@acme", "corp__db.query"),
            ("corp_db@acme", "query"),
        ];
        let together = named(&alike);
        for (alone, name) in alike.iter().zip(&together) {
            assert_eq!(named(&[*alone])[0], *name);
        }
        assert_eq!(together[1].as_deref(), Some("corp_db__query"));
        let different: std::collections::BTreeSet<_> = together.iter().flatten().collect();
        assert_eq!(different.len(), alike.len());
    }

    #[test]
    fn what_is_too_long_is_cut_and_ends_with_its_digest() {
        let long = format!("fs.{}", "x".repeat(60));
        let names = named(&[("fs@acme", &long)]);
        let name = names[0].as_deref().unwrap();
        assert_eq!(name.len(), NAME_CHARS_MAX);
        assert!(name.starts_with("fs__xxxx"), "{name}");
    }

    #[test]
    fn nobody_takes_a_name_that_another_has_by_its_digest() {
        let theirs = named(&[("a-b@acme", "a-b.t")])[0].clone().unwrap();
        let (agent, rest) = theirs.split_once("__").unwrap();
        for squatted in [format!("{agent}.{rest}"), rest.to_owned()] {
            let squatter = (format!("{agent}@acme"), squatted);
            let name = named(&[(&squatter.0, &squatter.1)])[0].clone();
            assert_ne!(name.unwrap(), theirs);
        }
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
