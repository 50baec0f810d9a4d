//! What a server offers, as tools of an agent: names that FEM can carry, schemas that can be held against
//! arguments, and nothing that was not looked at.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto_spec::limits::{SEGMENT_CHARS_MAX, TOOLS_MAX};
use proto_spec::message::McpRequest;
use proto_spec::wire::check_strict;
use proto_spec::{Digest, limits};
use serde_json::json;
use serde_json::value::RawValue;

use super::Inner;
use super::connection::Unanswered;
use super::pool::NoServer;
use super::relay::{Target, relay};
use super::schema::Schema;
use super::server::Server;
use super::tasks::TASKS;
use super::{ASK_PATIENCE, MODERN, client_info};
use crate::mcp::rpc::Object;
use crate::mcp::words::quoted;
use crate::tool::Tool;

/// Pages of a list that are read.
const PAGES_MAX: usize = 64;
/// Tools that a server may list; those that are more than an agent offers are left out by name.
const LISTED_MAX: usize = 2_048;
/// Bytes of all pages of a list: what is kept, and as much again that is left out.
const LISTED_BYTES_MAX: usize = 4 << 20;
/// Regular expressions of all schemas together, each of which may take 256 KiB.
const PATTERNS_MAX: usize = 256;
/// Characters that are told of a tool's name.
const SHOWN_CHARS_MAX: usize = 80;
/// Bytes that an offered tool has beside what its server says of it.
const TOOL_BYTES_MORE: usize = 256;
/// Bytes of one tool, with all that is said of it: a peer is told of it too.
const TOOL_BYTES_MAX: usize = limits::ADVERTISED_TOOL_BYTES_MAX - (4 << 10);
/// Bytes of all tools: what a broker takes of one agent, less what is around them.
const OFFER_BYTES_MAX: usize = (1 << 20) - (64 << 10);
/// How deep a tool's definition may nest: around it come the offer and its envelope.
const DEFINITION_DEPTH_MAX: usize = 40;
/// Characters of a cut name that are its hash.
const HASH_CHARS: usize = 6;
/// Tools left out that the log names.
const LEFT_OUT_LOGGED: usize = 32;

/// Requests other than `tools/call`, by the capability of the server that answers them. No capability: every
/// server answers.
const METHODS: [(&str, &str); 10] = [
    ("server/discover", ""),
    ("prompts/list", "prompts"),
    ("prompts/get", "prompts"),
    ("resources/list", "resources"),
    ("resources/templates/list", "resources"),
    ("resources/read", "resources"),
    ("completion/complete", "completions"),
    ("tasks/get", TASKS),
    ("tasks/update", TASKS),
    ("tasks/cancel", TASKS),
];

/// What a server offers.
#[derive(Default)]
pub(super) struct Catalogue {
    listed: Vec<(String, Listed)>,
    methods: Vec<&'static str>,
    /// What was left out, and why: a line each.
    pub(super) left_out: Vec<String>,
}

struct Listed {
    original: String,
    schema: Box<RawValue>,
    /// The same, to be held against arguments.
    ready: Arc<Schema>,
    description: Option<String>,
    output: Option<Box<RawValue>>,
    hints: Option<Box<RawValue>>,
    definition: Box<RawValue>,
}

impl Catalogue {
    /// Reads what a server offers.
    ///
    /// # Errors
    ///
    /// Why its list of tools could not be read.
    pub(super) async fn read(server: &Server) -> Result<Self, NoServer> {
        let capabilities = server.capabilities();
        let mut catalogue = Self {
            methods: methods(&capabilities),
            ..Self::default()
        };
        if capabilities.has("tools") {
            let tools = drain(server).await?;
            catalogue.sort(&tools);
        }
        for line in catalogue.left_out.iter().take(LEFT_OUT_LOGGED) {
            tracing::warn!("{line}");
        }
        let unsaid = catalogue.left_out.len().saturating_sub(LEFT_OUT_LOGGED);
        if unsaid > 0 {
            tracing::warn!(unsaid, "more tools are left out");
        }
        Ok(catalogue)
    }

    /// How many of the server's tools are offered.
    pub(super) fn count(&self) -> usize {
        self.listed.len()
    }

    /// Keeps the tools that can be offered.
    fn sort(&mut self, tools: &[Box<RawValue>]) {
        let mut by_name: BTreeMap<String, Vec<Object>> = BTreeMap::new();
        for tool in tools {
            let tool = Object::parse(tool.get()).unwrap_or_default();
            match tool.read::<String>("name") {
                Some(name) if !name.is_empty() => {
                    by_name.entry(mapped(&name)).or_default().push(tool);
                }
                _ => self
                    .left_out
                    .push("a tool without a name, or that is no object, is left out".into()),
            }
        }
        let room = TOOLS_MAX - METHODS.len() - 1;
        let (mut bytes, mut patterns) = (0, 0);
        for (name, mut alike) in by_name {
            if alike.len() > 1 {
                let names = alike
                    .iter()
                    .take(4)
                    .filter_map(|tool| tool.read::<String>("name"));
                let names: Vec<String> = names.map(|name| quoted(&name, SHOWN_CHARS_MAX)).collect();
                self.left_out.push(format!(
                    "{} tools would be named {name}, and are left out: {}",
                    alike.len(),
                    names.join(", ")
                ));
                continue;
            }
            let Some(tool) = alike.pop() else { continue };
            let size = tool.raw().get().len() + TOOL_BYTES_MORE;
            // Whether there is room is asked before its schema is made ready, which costs more.
            let listed = if self.listed.len() >= room {
                Err(format!("an agent offers {room} at most"))
            } else if bytes + size > OFFER_BYTES_MAX {
                Err(format!(
                    "all tools together have {OFFER_BYTES_MAX} bytes at most"
                ))
            } else {
                Listed::of(tool)
            };
            let listed = listed.and_then(|listed| match patterns + listed.ready.patterns {
                all if all > PATTERNS_MAX => Err(format!(
                    "all tools together have {PATTERNS_MAX} regular expressions at most"
                )),
                _ => Ok(listed),
            });
            match listed {
                Ok(listed) => {
                    bytes += size;
                    patterns += listed.ready.patterns;
                    self.listed.push((name, listed));
                }
                Err(why) => self
                    .left_out
                    .push(format!("the tool {name} is left out: {why}")),
            }
        }
    }

    /// The tools of the agent `name`.
    pub(super) fn tools(&self, name: &str, inner: &Arc<Inner>) -> Vec<Tool> {
        let listed = self.listed.iter().map(|(mapped, listed)| {
            let target = Target::Tool {
                name: listed.original.clone(),
                schema: Arc::clone(&listed.ready),
            };
            let request = McpRequest {
                method: "tools/call".into(),
                definition: Some(listed.definition.clone()),
            };
            let mut tool = made(format!("{name}.{mapped}"), inner, target, request)
                .input(listed.schema.clone());
            if let Some(description) = &listed.description {
                tool = tool.describe(description);
            }
            if let Some(output) = &listed.output {
                tool = tool.output(output.clone());
            }
            if let Some(hints) = &listed.hints {
                tool = tool.hints(hints.clone());
            }
            tool
        });
        let methods = self.methods.iter().map(|method| {
            let request = McpRequest {
                method: (*method).into(),
                definition: None,
            };
            let name = format!("{name}.mcp.{}", method.replace('/', "."));
            made(name, inner, Target::Method(method), request)
        });
        listed.chain(methods).collect()
    }
}

fn made(name: String, inner: &Arc<Inner>, target: Target, request: McpRequest) -> Tool {
    let (inner, target) = (Arc::clone(inner), Arc::new(target));
    let sandbox = inner.sandbox;
    let run = move |call, arguments| {
        let (inner, target) = (Arc::clone(&inner), Arc::clone(&target));
        async move { relay(&inner, &target, call, arguments).await }
    };
    let tool = Tool::raw(name, &json!({"type": "object"}), run).mcp(request);
    match sandbox {
        Some(sandbox) => tool.sandboxed(sandbox),
        None => tool,
    }
}

impl Listed {
    /// A tool as its server lists it, if it can be offered.
    fn of(mut tool: Object) -> Result<Self, String> {
        let bytes = tool.raw().get().len();
        if bytes > TOOL_BYTES_MAX {
            return Err(format!("it has {bytes} bytes, at most {TOOL_BYTES_MAX}"));
        }
        check_strict(tool.raw().get(), DEFINITION_DEPTH_MAX)
            .map_err(|why| format!("it cannot be carried: {why}"))?;
        let schema = tool.take("inputSchema").ok_or("it has no schema")?;
        let ready = Arc::new(Schema::read(&schema)?);
        let original = tool.read("name").unwrap_or_default();
        let text = tool.take("description");
        Ok(Self {
            original,
            schema,
            ready,
            description: text.and_then(|raw| serde_json::from_str(raw.get()).ok()),
            output: tool.take("outputSchema"),
            hints: tool.take("annotations"),
            definition: tool.raw(),
        })
    }
}

/// The requests that a server with these capabilities answers.
fn methods(capabilities: &Object) -> Vec<&'static str> {
    let extensions = capabilities.object("extensions").unwrap_or_default();
    let answers = |capability: &str| match capability {
        "" => true,
        TASKS => extensions.has(TASKS),
        other => capabilities.has(other),
    };
    let told = |capability: &str, what: &str| {
        let capability = capabilities.object(capability).unwrap_or_default();
        capability.read(what).unwrap_or(false)
    };
    let tells = ["tools", "prompts", "resources"]
        .iter()
        .any(|capability| told(capability, "listChanged"))
        || told("resources", "subscribe");
    METHODS
        .iter()
        .filter(|(_, capability)| answers(capability))
        .map(|(method, _)| *method)
        .chain(tells.then_some("subscriptions/listen"))
        .collect()
}

/// All pages of a server's tools.
async fn drain(server: &Server) -> Result<Vec<Box<RawValue>>, NoServer> {
    let mut tools = Vec::new();
    let mut bytes = 0;
    let mut cursor: Option<Box<RawValue>> = None;
    for _ in 0..PAGES_MAX {
        let mut params = Object::default();
        if let Some(cursor) = cursor.take() {
            params.set("cursor", cursor);
        }
        let page = server.list("tools/list", params).await?;
        let listed = page.get("tools").ok_or("its list of tools is none")?;
        bytes += listed.get().len();
        if bytes > LISTED_BYTES_MAX {
            let why = format!("its list of tools has more than {LISTED_BYTES_MAX} bytes");
            return Err(why.into());
        }
        let listed: Vec<Box<RawValue>> = serde_json::from_str(listed.get())
            .map_err(|why| format!("its list of tools: {why}"))?;
        tools.extend(listed);
        if tools.len() > LISTED_MAX {
            return Err(format!("it lists more than {LISTED_MAX} tools").into());
        }
        cursor = page.get("nextCursor").map(ToOwned::to_owned);
        if cursor.as_ref().is_none_or(|cursor| cursor.get() == "null") {
            return Ok(tools);
        }
    }
    Err(format!("its list of tools has more than {PAGES_MAX} pages").into())
}

impl Server {
    async fn list(&self, method: &str, mut params: Object) -> Result<Object, NoServer> {
        if self.era == super::server::Era::Modern {
            params.put("_meta", &own_meta());
        }
        let answer = self.connection.ask(method, params, ASK_PATIENCE).await;
        let answer = answer.map_err(|why| match why {
            Unanswered::Barred(_) => NoServer::from(why),
            other => format!("{method}: {other}").into(),
        })?;
        Object::parse(answer.get()).map_err(|why| format!("{method}: {why}").into())
    }
}

/// What a request of our own to a server of 2026-07-28 has.
pub(super) fn own_meta() -> Object {
    let mut meta = Object::default();
    meta.put("io.modelcontextprotocol/protocolVersion", MODERN);
    meta.set("io.modelcontextprotocol/clientInfo", client_info());
    meta.set(
        "io.modelcontextprotocol/clientCapabilities",
        super::relay::every_capability(),
    );
    meta
}

/// A name as one segment of a tool's: other characters become `_`, too long is cut with a hash of the whole.
fn mapped(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let segment: String = name
        .chars()
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    if segment.len() <= SEGMENT_CHARS_MAX {
        return segment;
    }
    let hash = Digest::of(name.as_bytes()).to_string();
    let begin = &segment[..SEGMENT_CHARS_MAX - HASH_CHARS - 1];
    format!("{begin}_{}", &hash[..HASH_CHARS])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(tools: &[&str]) -> (Vec<String>, Vec<String>) {
        let mut catalogue = Catalogue::default();
        let raw = |text: &&str| RawValue::from_string((*text).to_owned()).unwrap();
        let tools: Vec<_> = tools.iter().map(raw).collect();
        catalogue.sort(&tools);
        let names = catalogue.listed.iter().map(|(name, _)| name.clone());
        (names.collect(), catalogue.left_out)
    }

    fn tool(name: &str) -> String {
        json!({"name": name, "inputSchema": {"type": "object"}}).to_string()
    }

    #[test]
    fn a_name_becomes_one_segment_whatever_it_is() {
        assert_eq!(mapped("read_file-2"), "read_file-2");
        assert_eq!(mapped("a.b/c d\u{1b}é"), "a_b_c_d__");
        let long = "x".repeat(300);
        assert_eq!(mapped(&long).len(), SEGMENT_CHARS_MAX);
        assert_ne!(mapped(&long), mapped(&"x".repeat(301)));
        for name in ["a.b", "\n", &long, "💥"] {
            assert!(
                format!("fs.{}", mapped(name))
                    .parse::<proto_spec::Capability>()
                    .is_ok()
            );
        }
    }

    #[test]
    fn names_that_clash_are_all_left_out_and_named() {
        let (names, left_out) = sorted(&[&tool("a.b"), &tool("c"), &tool("a_b"), &tool("")]);
        assert_eq!(names, ["c"]);
        assert_eq!(left_out.len(), 2);
        assert!(
            left_out
                .iter()
                .any(|line| line.contains("a_b") && line.contains("\"a.b\""))
        );
    }

    #[test]
    fn a_tool_that_cannot_be_offered_takes_no_other_with_it() {
        let remote = r#"{"name":"r","inputSchema":{"type":"object","$ref":"https://x.example"}}"#;
        let none = r#"{"name":"n"}"#;
        let large = format!(
            r#"{{"name":"l","inputSchema":{{"type":"object"}},"description":"{}"}}"#,
            "x".repeat(TOOL_BYTES_MAX)
        );
        let deep = format!(
            r#"{{"name":"d","inputSchema":{{"type":"object"}},"new":{}{}}}"#,
            "[".repeat(50),
            "]".repeat(50)
        );
        let no_tools = [
            "null",
            "[]",
            "7",
            r#"{"name":7}"#,
            r#"{"name":"a","name":"b"}"#,
        ];
        let fine = tool("fine");
        let tools = [&[remote, &fine, none, &large, &deep][..], &no_tools].concat();
        let (names, left_out) = sorted(&tools);
        assert_eq!(names, ["fine"]);
        assert_eq!(left_out.len(), 9, "{left_out:?}");
    }

    #[test]
    fn an_agent_offers_so_many_tools_and_bytes() {
        let many: Vec<String> = (0..600).map(|n| tool(&format!("t{n}"))).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let (names, left_out) = sorted(&many);
        assert_eq!(names.len() + left_out.len(), 600);
        assert!(names.len() + METHODS.len() < TOOLS_MAX);
        let text = "x".repeat(50_000);
        let large: Vec<String> = (0..40)
            .map(|n| json!({"name": format!("t{n}"), "description": text, "inputSchema": {"type": "object"}}).to_string())
            .collect();
        let large: Vec<&str> = large.iter().map(String::as_str).collect();
        assert!(sorted(&large).0.len() * 50_000 < OFFER_BYTES_MAX);
    }

    #[test]
    fn only_requests_that_the_server_answers_are_offered() {
        let capabilities = |text: &str| methods(&Object::parse(text).unwrap());
        assert_eq!(capabilities("{}"), ["server/discover"]);
        let all = r#"{"prompts":{},"resources":{"subscribe":true},"completions":{},"extensions":{"io.modelcontextprotocol/tasks":{}}}"#;
        assert_eq!(capabilities(all).len(), METHODS.len() + 1);
    }
}
