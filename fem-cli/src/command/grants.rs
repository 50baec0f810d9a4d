//! `grants`: who holds what, and through whom.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;

use proto_spec::message::TreeNode;
use proto_spec::{Digest, Name, Timestamp};

use crate::connect::Chosen;
use crate::failure::Outcome;
use crate::output::{Output, escape, join};
use crate::request;
use crate::time;
use crate::words;

/// Shows who holds what, and through whom
#[derive(Debug, clap::Args)]
pub(crate) struct Grants {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// Draws what was issued and what was passed on from it, with its holders
    #[command(after_help = "\
Delegations are made offline. A broker learns of one when it is presented, and forgets it when it
restarts or many others were presented since: what was never used here is not in the tree.
Each line ends with the id by which it is revoked, with everything below it: fem-cli token revoke ID")]
    Tree {
        /// Only what was issued to this agent
        agent: Option<Name>,
    },
}

pub(crate) async fn run(args: Grants, chosen: &Chosen, output: Output) -> Outcome {
    let Act::Tree { agent } = args.act;
    let nodes = request::tree(&chosen.agent()?, agent.as_ref()).await?;
    output.give(&nodes, || match (nodes.is_empty(), &agent) {
        (true, Some(name)) => format!("Nothing was issued to {name}."),
        (true, None) => "Nothing was issued.".into(),
        _ => format!(
            "{}\nDelegations are known only when they were presented here: others may exist.",
            draw(&nodes, Lines::of_stdout(), time::now())
        ),
    })
}

/// How the tree's branches are drawn.
#[derive(Clone, Copy)]
struct Lines {
    branch: &'static str,
    last: &'static str,
    down: &'static str,
    gap: &'static str,
}

const BOXES: Lines = Lines {
    branch: "├─ ",
    last: "└─ ",
    down: "│  ",
    gap: "   ",
};
const INDENTED: Lines = Lines {
    branch: "  ",
    last: "  ",
    down: "  ",
    gap: "  ",
};

impl Lines {
    /// Boxes on a terminal that says it shows UTF-8.
    fn of_stdout() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        let is_utf8 = locale.is_some_and(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        });
        let is_dumb = set("TERM").is_some_and(|term| term == "dumb");
        match std::io::stdout().is_terminal() && is_utf8 && !is_dumb {
            true => BOXES,
            false => INDENTED,
        }
    }
}

/// What hangs below each id; what an admin issued hangs below the name that it was issued to.
struct Tree<'a> {
    below: BTreeMap<Digest, Vec<&'a TreeNode>>,
    lines: Lines,
    now: Timestamp,
}

fn draw(nodes: &[TreeNode], lines: Lines, now: Timestamp) -> String {
    let mut issued: BTreeMap<String, Vec<&TreeNode>> = BTreeMap::new();
    let mut below: BTreeMap<Digest, Vec<&TreeNode>> = BTreeMap::new();
    for node in nodes {
        match node.parent {
            None => issued.entry(holder(node)).or_default().push(node),
            Some(parent) => below.entry(parent).or_default().push(node),
        }
    }
    let mut tree = Tree { below, lines, now };
    let mut text = String::new();
    for (name, nodes) in issued {
        text.push_str(&format!("{name}\n"));
        tree.draw(&mut text, &nodes, "");
    }
    text
}

impl Tree<'_> {
    fn draw(&mut self, text: &mut String, nodes: &[&TreeNode], margin: &str) {
        for (n, node) in nodes.iter().enumerate() {
            let is_last = n + 1 == nodes.len();
            let (own, under) = match is_last {
                true => (self.lines.last, self.lines.gap),
                false => (self.lines.branch, self.lines.down),
            };
            text.push_str(&format!("{margin}{own}{}\n", line(node, self.now)));
            // Taken out: what a broker sends twice, or in a ring, is drawn once.
            let children = self.below.remove(&node.id).unwrap_or_default();
            self.draw(text, &children, &format!("{margin}{under}"));
        }
    }
}

/// One end of the tree: who holds what, on what conditions, and by which id it is revoked.
fn line(node: &TreeNode, now: Timestamp) -> String {
    let what = match node.kind.as_str() {
        "delegation" => format!("passed on to {}", holder(node)),
        "narrowing" => format!("narrowed, held by {}", holder(node)),
        kind => format!("{}: {}", escape(kind), join(&node.capabilities)),
    };
    let mut parts = vec![what];
    let conditions = words::conditions_of_text(&node.checks);
    // The line has the end itself, with that of all that is above it.
    let conditions = conditions.iter().filter(|one| !one.starts_with("before "));
    parts.extend(conditions.map(|one| match one.starts_with("only ") {
        true => escape(one),
        false => format!("only if {}", escape(one)),
    }));
    parts.extend(node.calls_left.map(|n| format!("{n} calls left")));
    parts.push(format!("until {}", time::show(node.expires)));
    parts.extend(node.issuer.iter().map(|name| format!("by {name}")));
    let state = match (node.revoked, node.expires <= now) {
        (true, _) => "REVOKED ",
        (_, true) => "ended ",
        _ => "",
    };
    format!("{state}{}  {}", parts.join("; "), node.id)
}

fn holder(node: &TreeNode) -> String {
    match &node.agent {
        Some(name) => name.to_string(),
        None => format!("{}, no agent here", node.key.did()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8, parent: Option<u8>, kind: &str, agent: Option<&str>) -> TreeNode {
        TreeNode {
            id: Digest::of(&[n]),
            parent: parent.map(|n| Digest::of(&[n])),
            kind: kind.into(),
            agent: agent.map(|name| name.parse().unwrap()),
            key: proto_spec::SigningKey::from_seed(&[n; 32]).public(),
            capabilities: match parent {
                None => vec!["files.*".parse().unwrap()],
                Some(_) => Vec::new(),
            },
            checks: match parent {
                None => Vec::new(),
                Some(_) => vec!["check if covers(\"files.read\")".into()],
            },
            expires: Timestamp::from_ms(1_800_000_000_000),
            calls_left: (n == 2).then_some(5),
            revoked: n == 3,
            issuer: None,
        }
    }

    #[test]
    fn the_tree_shows_who_holds_what_at_each_end_and_what_is_revoked() {
        let nodes = [
            node(1, None, "grant", Some("ada")),
            node(2, Some(1), "delegation", Some("bob")),
            node(3, Some(2), "delegation", None),
            node(4, None, "approval", Some("ada")),
        ];
        let ids: Vec<String> = nodes.iter().map(|node| node.id.to_string()).collect();
        let drawn = draw(&nodes, BOXES, Timestamp::from_ms(0));
        let until = "until 2027-01-15T08:00:00Z";
        assert_eq!(
            drawn,
            format!(
                "ada\n\
                 ├─ grant: files.*; {until}  {}\n\
                 │  └─ passed on to bob; only files.read; 5 calls left; {until}  {}\n\
                 │     └─ REVOKED passed on to {}, no agent here; only files.read; {until}  {}\n\
                 └─ approval: files.*; {until}  {}\n",
                ids[0],
                ids[1],
                nodes[2].key.did(),
                ids[2],
                ids[3]
            )
        );
        let plain = draw(&nodes, INDENTED, Timestamp::from_ms(u64::MAX));
        assert!(
            plain.is_ascii() && plain.contains("\n    ended passed on to bob"),
            "{plain}"
        );
    }

    #[test]
    fn a_ring_that_a_broker_sends_is_drawn_once() {
        let ring = [
            node(1, None, "grant", Some("ada")),
            node(1, Some(1), "delegation", None),
        ];
        assert_eq!(draw(&ring, BOXES, Timestamp::from_ms(0)).lines().count(), 3);
    }
}
