//! What discovery finds for one caller, page by page, and as much of it as is kept in memory. Pure.

use std::collections::{HashMap, HashSet};

use proto_spec::message::DiscoveredTool;
use proto_spec::{AgentId, Capability, Org};
use serde_json::value::RawValue;

use super::catalogue::Scope;

/// Bytes of all tools of agents at home, and again of all elsewhere. Nobody (an agent at home, elsewhere an
/// organisation) has more than are left for others.
const ROOM_BYTES_MAX: usize = 8 << 20;
/// Bytes that a tool takes beside what is said of it.
const TOOL_BYTES_MORE: usize = 512;

/// The tools that were found. Beyond their room they are left out one by one, and the log says how many: the same
/// ones for as long as the same are found, for they come in the order of their names.
#[derive(Debug)]
pub struct Gathered {
    pub(super) scope: Scope,
    pub(super) home: Org,
    pub(super) tools: Vec<DiscoveredTool>,
    seen: HashSet<(AgentId, Capability)>,
    here: Room,
    elsewhere: Room,
    left_out: usize,
}

#[derive(Debug, Default)]
struct Room {
    bytes: usize,
    by: HashMap<String, usize>,
}

impl Room {
    /// Whether there is room for so much more of this holder's; then it is taken.
    fn take(&mut self, holder: String, bytes: usize) -> bool {
        let left = ROOM_BYTES_MAX.saturating_sub(self.bytes);
        let own = self.by.entry(holder).or_default();
        if own.saturating_add(bytes) > left {
            return false;
        }
        *own += bytes;
        self.bytes += bytes;
        true
    }
}

impl Gathered {
    /// Nothing yet of what an agent of `home` sees at `scope`.
    #[must_use]
    pub fn new(scope: &Scope, home: &Org) -> Self {
        Self {
            scope: scope.clone(),
            home: home.clone(),
            tools: Vec::new(),
            seen: HashSet::new(),
            here: Room::default(),
            elsewhere: Room::default(),
            left_out: 0,
        }
    }

    /// Takes a page. A tool may be found on several ways; one is enough to call it.
    pub fn take(&mut self, page: Vec<DiscoveredTool>) {
        for tool in page {
            let is_elses = self.scope.only().is_some_and(|only| *only != tool.agent);
            let name = || (tool.agent.clone(), tool.tool.name.clone());
            if is_elses || self.seen.contains(&name()) {
                continue;
            }
            let (room, holder) = match *tool.agent.org() == self.home {
                true => (&mut self.here, tool.agent.to_string()),
                false => (&mut self.elsewhere, tool.agent.org().to_string()),
            };
            if room.take(holder, bytes(&tool)) {
                self.seen.insert(name());
                self.tools.push(tool);
            } else {
                self.left_out += 1;
            }
        }
    }

    /// All that there was room for.
    pub(super) fn finish(self) -> (Scope, Org, Vec<DiscoveredTool>) {
        if self.left_out > 0 {
            tracing::warn!(
                left_out = self.left_out,
                "tools are not shown to a client of MCP: those of their agents have too many bytes"
            );
        }
        (self.scope, self.home, self.tools)
    }
}

/// How much memory a tool takes, more or less.
fn bytes(found: &DiscoveredTool) -> usize {
    let tool = &found.tool;
    let definition = tool.mcp.as_ref().and_then(|mcp| mcp.definition.as_deref());
    let parts = [
        tool.input_schema.as_deref(),
        tool.output_schema.as_deref(),
        tool.annotations.as_deref(),
        definition,
    ];
    let parts = parts
        .into_iter()
        .flatten()
        .map(|part: &RawValue| part.get().len());
    let method = tool.mcp.as_ref().map(|mcp| &mcp.method);
    let texts = found
        .checks
        .iter()
        .chain(&tool.description)
        .chain(method)
        .map(String::len);
    TOOL_BYTES_MORE + parts.chain(texts).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tool(agent: &str, n: usize, bytes: usize) -> DiscoveredTool {
        let written = json!({
            "agent": agent,
            "key": proto_spec::SigningKey::from_seed(&[7; 32]).public(),
            "name": format!("fs.t{n}"),
            "description": "x".repeat(bytes),
        });
        serde_json::from_value(written).unwrap()
    }

    fn count(gathered: &Gathered, agent: &str) -> usize {
        let own = gathered.tools.iter();
        own.filter(|tool| tool.agent.to_string() == agent).count()
    }

    const TOOL_BYTES: usize = 32 << 10;
    const MANY: usize = 2 * ROOM_BYTES_MAX / TOOL_BYTES;

    #[test]
    fn what_a_client_may_see_takes_so_many_bytes_and_nobody_has_more_than_are_left_for_others() {
        let mut gathered = Gathered::new(&Scope::All, &"acme".parse().unwrap());
        let many = |agent: &str| (0..MANY).map(|n| tool(agent, n, TOOL_BYTES)).collect();
        for agent in ["a@aaa", "b@aaa", "big@acme", "fs@acme", "z@zzz"] {
            gathered.take(many(agent));
        }
        let [greedy, next] = ["big@acme", "fs@acme"].map(|agent| count(&gathered, agent));
        assert!(
            greedy.abs_diff(MANY / 4) < 8 && next.abs_diff(MANY / 8) < 8,
            "{greedy} {next}"
        );
        // One organisation has one share, however many agents it says that it has.
        assert_eq!(count(&gathered, "a@aaa"), greedy);
        assert_eq!(count(&gathered, "b@aaa"), 0);
        assert_eq!(count(&gathered, "z@zzz"), next);
        let all: usize = gathered.tools.iter().map(bytes).sum();
        assert!(all <= 2 * ROOM_BYTES_MAX);
        assert_eq!(gathered.left_out + gathered.tools.len(), 5 * MANY);
    }

    #[test]
    fn what_is_left_out_is_always_the_same() {
        let gather = || {
            let mut gathered = Gathered::new(&Scope::All, &"acme".parse().unwrap());
            for n in 0..MANY {
                gathered.take(vec![tool("fs@acme", n, TOOL_BYTES)]);
            }
            let names = gathered.finish().2.into_iter().map(|tool| tool.tool.name);
            names.collect::<Vec<_>>()
        };
        assert_eq!(gather(), gather());
    }
}
