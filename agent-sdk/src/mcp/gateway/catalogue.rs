//! What one caller may call now, as a client of MCP sees it: tools under their public or their original
//! names, and which agent answers which other request.

use std::collections::HashSet;
use std::sync::OnceLock;

use proto_spec::message::DiscoveredTool;
use proto_spec::{AgentId, Org};
use serde_json::value::RawValue;

use super::gathered::Gathered;
use super::{definition, names};
use crate::mcp::rpc::Object;

/// What a client sees: the tools of all agents that its caller may call, or one agent's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// `/mcp`: all that the caller may call, under public names.
    All,
    /// `/mcp/<agent>`: one agent, under its original names.
    One(AgentId),
}

impl Scope {
    /// What stands behind `/mcp` in a path, an agent of organisation `home` where it names none: nothing,
    /// `/fs` or `/fs@globex`.
    #[must_use]
    pub fn of_path(rest: &str, home: &Org) -> Option<Self> {
        let name = match rest.strip_prefix('/') {
            None if rest.is_empty() => return Some(Self::All),
            None => return None,
            Some(name) => name,
        };
        let agent = match name.contains('@') {
            true => name.parse().ok()?,
            false => AgentId::new(name.parse().ok()?, home.clone()),
        };
        Some(Self::One(agent))
    }

    /// The agent that it is limited to.
    #[must_use]
    pub fn only(&self) -> Option<&AgentId> {
        match self {
            Self::All => None,
            Self::One(agent) => Some(agent),
        }
    }
}

/// A tool with the name by which its client knows it.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) tool: DiscoveredTool,
    shown: OnceLock<Box<RawValue>>,
}

impl Listed {
    pub(super) fn new(name: String, tool: DiscoveredTool) -> Self {
        Self {
            name,
            tool,
            shown: OnceLock::new(),
        }
    }

    /// As `tools/list` shows it at `scope`, which is always the same for one tool.
    pub(super) fn shown(&self, scope: &Scope) -> &RawValue {
        self.shown.get_or_init(|| definition::of(self, scope).raw())
    }
}

/// What one caller may call at one place. Dear to make where that is much: whoever made one keeps it for the next
/// request while nothing changes.
#[derive(Debug)]
pub struct Catalogue {
    /// In the order of their names.
    tools: Vec<Listed>,
    /// Whatever is asked of an MCP server beside calls of tools.
    requests: Vec<DiscoveredTool>,
}

impl Catalogue {
    /// Of what was found.
    #[must_use]
    pub fn of(gathered: Gathered) -> Self {
        let (scope, home, mut found) = gathered.finish();
        found.sort_by(|a, b| (&a.agent, &a.tool.name).cmp(&(&b.agent, &b.tool.name)));
        let (tools, requests) = found.into_iter().partition(is_tool);
        let mut tools = match scope {
            Scope::All => publicly(&home, tools),
            Scope::One(_) => originally(tools),
        };
        tools.sort_by(|a, b| a.name.cmp(&b.name));
        Self { tools, requests }
    }

    pub(super) fn tools(&self) -> &[Listed] {
        &self.tools
    }

    /// The tool that the client knows under this name.
    pub(super) fn tool(&self, name: &str) -> Option<&Listed> {
        let at = self
            .tools
            .binary_search_by(|listed| listed.name.as_str().cmp(name))
            .ok()?;
        self.tools.get(at)
    }

    /// The agents that answer `method`, in the order of their names, each with the tool that does.
    pub(super) fn answering<'a>(
        &'a self,
        method: &'a str,
    ) -> impl Iterator<Item = &'a DiscoveredTool> {
        let mut last = None;
        self.requests
            .iter()
            .filter(move |tool| method_of(tool) == Some(method))
            .filter(move |tool| last.replace(&tool.agent) != Some(&tool.agent))
    }

    /// The tool by which `agent` answers `method`.
    pub(super) fn request(&self, agent: &AgentId, method: &str) -> Option<&DiscoveredTool> {
        self.requests
            .iter()
            .find(|tool| tool.agent == *agent && method_of(tool) == Some(method))
    }

    pub(super) fn answers(&self, method: &str) -> bool {
        self.answering(method).next().is_some()
    }

    /// What changes when the list of tools does.
    pub(super) fn fingerprint(&self) -> proto_spec::Digest {
        let mut text = String::new();
        for Listed { name, tool, .. } in &self.tools {
            text.push_str(name);
            text.push_str(&serde_json::to_string(tool).unwrap_or_default());
        }
        proto_spec::Digest::of(text.as_bytes())
    }
}

/// The request that a call of this tool is, if it is one to an MCP server.
pub(super) fn method_of(tool: &DiscoveredTool) -> Option<&str> {
    Some(tool.tool.mcp.as_ref()?.method.as_str())
}

fn is_tool(tool: &DiscoveredTool) -> bool {
    method_of(tool).is_none_or(|method| method == "tools/call")
}

fn publicly(home: &Org, tools: Vec<DiscoveredTool>) -> Vec<Listed> {
    let items: Vec<(&AgentId, &str)> = tools
        .iter()
        .map(|tool| (&tool.agent, tool.tool.name.as_str()))
        .collect();
    let names = names::public(home, &items);
    names
        .into_iter()
        .zip(tools)
        .filter_map(|(name, tool)| {
            if name.is_none() {
                tracing::warn!(agent = %tool.agent, tool = %tool.tool.name, "a tool is not shown: another has its public name");
            }
            Some(Listed::new(name?, tool))
        })
        .collect()
}

/// Under the names that the server gave them. Two tools that claim one name are shown under their FEM names,
/// which no two have; so is what claims a name that a client could not take.
fn originally(tools: Vec<DiscoveredTool>) -> Vec<Listed> {
    let claimed: Vec<Option<String>> = tools.iter().map(original).collect();
    let mut taken: HashSet<String> = HashSet::new();
    let mut twice: HashSet<String> = HashSet::new();
    let fem_names = tools.iter().map(|tool| tool.tool.name.as_str().to_owned());
    for name in claimed.iter().flatten().cloned().chain(fem_names) {
        if !taken.insert(name.clone()) {
            twice.insert(name);
        }
    }
    tools
        .into_iter()
        .zip(claimed)
        .map(|(tool, claimed)| {
            let fem_name = tool.tool.name.as_str().to_owned();
            let own = claimed.filter(|name| *name == fem_name || !twice.contains(name));
            let name = own.unwrap_or(fem_name);
            Listed::new(name, tool)
        })
        .collect()
}

/// The name that an MCP server gave its tool, where that is one that clients take.
pub(super) fn original(tool: &DiscoveredTool) -> Option<String> {
    let definition = tool.tool.mcp.as_ref()?.definition.as_deref()?;
    let name: String = Object::parse(definition.get()).ok()?.read("name")?;
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/');
    ((1..=128).contains(&name.len()) && name.bytes().all(is_plain)).then_some(name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A tool of `agent`, and what its MCP server calls it.
    pub(crate) fn tool(agent: &str, name: &str, mcp: Option<(&str, &str)>) -> DiscoveredTool {
        let mut written = json!({
            "agent": agent,
            "key": proto_spec::SigningKey::from_seed(&[7; 32]).public(),
            "name": name,
        });
        if let Some((method, original)) = mcp {
            written["mcp"] = json!({"method": method});
            if !original.is_empty() {
                written["mcp"]["definition"] = json!({"name": original});
            }
        }
        serde_json::from_value(written).unwrap()
    }

    fn catalogue(scope: &Scope, found: Vec<DiscoveredTool>) -> Catalogue {
        let mut gathered = Gathered::new(scope, &"acme".parse().unwrap());
        gathered.take(found);
        Catalogue::of(gathered)
    }

    fn names(scope: &Scope, found: Vec<DiscoveredTool>) -> Vec<String> {
        let catalogue = catalogue(scope, found);
        let listed = catalogue.tools().iter();
        listed.map(|listed| listed.name.clone()).collect()
    }

    #[test]
    fn one_agents_tools_keep_the_names_that_their_server_gave_them() {
        let scope = Scope::One("fs@acme".parse().unwrap());
        let found = vec![
            tool("fs@acme", "fs.read_file", Some(("tools/call", "read.file"))),
            tool("fs@acme", "fs.own", None),
            tool("fs@acme", "fs.mcp.prompts.list", Some(("prompts/list", ""))),
            tool("calc@acme", "calc.add", None),
        ];
        assert_eq!(names(&scope, found), ["fs.own", "read.file"]);
    }

    #[test]
    fn no_tool_takes_the_name_of_another() {
        let scope = Scope::One("fs@acme".parse().unwrap());
        let found = vec![
            tool("fs@acme", "fs.a", Some(("tools/call", "same"))),
            tool("fs@acme", "fs.b", Some(("tools/call", "same"))),
            tool("fs@acme", "fs.c", Some(("tools/call", "fs.a"))),
            tool("fs@acme", "fs.d", Some(("tools/call", "\u{1b}[2J"))),
        ];
        assert_eq!(names(&scope, found), ["fs.a", "fs.b", "fs.c", "fs.d"]);
    }

    #[test]
    fn how_a_tool_is_shown_is_written_once() {
        let found = vec![tool("fs@acme", "fs.a", None)];
        let catalogue = catalogue(&Scope::All, found);
        let listed = catalogue.tool("fs__a").unwrap();
        let (first, second) = (listed.shown(&Scope::All), listed.shown(&Scope::All));
        assert!(std::ptr::eq(first, second));
    }

    #[test]
    fn what_is_found_on_two_ways_is_one_tool() {
        let found = vec![tool("fs@acme", "fs.a", None), tool("fs@acme", "fs.a", None)];
        assert_eq!(names(&Scope::All, found), ["fs__a"]);
    }

    #[test]
    fn a_path_names_all_agents_or_one() {
        let home = "acme".parse().unwrap();
        let of = |rest| Scope::of_path(rest, &home);
        assert_eq!(of(""), Some(Scope::All));
        assert_eq!(of("/fs"), Some(Scope::One("fs@acme".parse().unwrap())));
        assert_eq!(
            of("/fs@globex"),
            Some(Scope::One("fs@globex".parse().unwrap()))
        );
        for wrong in ["/", "x", "/fs/", "/FS", "/fs@", "//fs", "/mcp.x"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
