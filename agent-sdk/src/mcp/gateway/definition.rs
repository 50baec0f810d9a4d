//! A tool as MCP defines it, out of a tool as FEM offers it.

use serde_json::value::RawValue;

use super::catalogue::{Catalogue, Listed, Scope, original};
use super::lists::ANSWER_BYTES_MAX;
use crate::mcp::rpc::Object;

/// Where a tool says whose it is, at `/mcp`.
const AGENT_KEY: &str = "fem/agent";
/// Where it says how it is called there.
const TOOL_KEY: &str = "fem/tool";

/// As `tools/list` shows it: all that its server said of it, under the name by which this client knows it.
pub(super) fn of(listed: &Listed, scope: &Scope) -> Object {
    let offered = &listed.tool.tool;
    let definition = offered.mcp.as_ref().map(|request| {
        let said = request.definition.as_deref().map(RawValue::get);
        said.and_then(|said| Object::parse(said).ok())
            .unwrap_or_default()
    });
    let is_native = definition.is_none();
    let mut tool = definition.unwrap_or_default();
    tool.put("name", &listed.name);
    if let Some(description) = &offered.description {
        tool.put("description", description);
    }
    match &offered.input_schema {
        Some(schema) if !is_native => tool.set("inputSchema", schema.clone()),
        schema => tool.set("inputSchema", of_object(schema.as_deref())),
    }
    if let Some(schema) = &offered.output_schema
        && (!is_native || is_of_object(schema))
    {
        tool.set("outputSchema", schema.clone());
    }
    if let Some(annotations) = &offered.annotations {
        tool.set("annotations", annotations.clone());
    }
    if *scope == Scope::All {
        say_whose(&mut tool, listed);
    }
    tool
}

/// Its public name says little, so the original one is its title, unless it has one.
fn say_whose(tool: &mut Object, listed: &Listed) {
    let has_title = tool.has("title")
        || tool
            .object("annotations")
            .is_some_and(|annotations| annotations.has("title"));
    let fem_name = listed.tool.tool.name.as_str();
    if !has_title {
        let own = original(&listed.tool);
        tool.put("title", own.as_deref().unwrap_or(fem_name));
    }
    let mut meta = tool.object("_meta").unwrap_or_default();
    meta.put(AGENT_KEY, &listed.tool.agent);
    meta.put(TOOL_KEY, fem_name);
    tool.put("_meta", &meta);
}

fn is_of_object(schema: &RawValue) -> bool {
    let kind = Object::parse(schema.get())
        .ok()
        .and_then(|schema| schema.read::<String>("type"));
    kind.as_deref() == Some("object")
}

/// MCP's clients take only schemas that say `object`, and every argument list is one. A schema of FEM's own
/// tools that says nothing is given the word; one that says otherwise describes no arguments.
fn of_object(schema: Option<&RawValue>) -> Box<RawValue> {
    let schema = schema.and_then(|schema| Object::parse(schema.get()).ok());
    let mut schema = schema
        .filter(|schema| {
            !schema.has("type") || schema.read::<String>("type").as_deref() == Some("object")
        })
        .unwrap_or_default();
    schema.put("type", "object");
    schema.raw()
}

/// One page of `tools/list`: the tools behind the one called `after`, at most `most` of them and
/// [`ANSWER_BYTES_MAX`] of bytes but for the first, and the name of the last where there are more.
pub(super) fn page<'a>(
    catalogue: &'a Catalogue,
    scope: &Scope,
    after: Option<&str>,
    most: usize,
) -> (Vec<&'a RawValue>, Option<String>) {
    let tools = catalogue.tools();
    let from =
        tools.partition_point(|listed| after.is_some_and(|after| listed.name.as_str() <= after));
    let rest = tools.get(from..).unwrap_or_default();
    let mut bytes = 0;
    let fits = |shown: &&RawValue| {
        let is_first = bytes == 0;
        bytes += shown.get().len();
        is_first || bytes <= ANSWER_BYTES_MAX
    };
    let shown = rest.iter().map(|listed| listed.shown(scope));
    let shown: Vec<&RawValue> = shown.take(most.max(1)).take_while(fits).collect();
    let more = shown.len() < rest.len();
    let last = shown.len().checked_sub(1).filter(|_| more);
    let next = last.and_then(|last| rest.get(last));
    (shown, next.map(|last| last.name.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::mcp::gateway::Gathered;

    fn shown(offered: &Value, scope: &Scope) -> Value {
        let mut written = json!({
            "agent": "fs@globex",
            "key": proto_spec::SigningKey::from_seed(&[7; 32]).public(),
        });
        written
            .as_object_mut()
            .unwrap()
            .extend(offered.as_object().unwrap().clone());
        let tool = serde_json::from_value(written).unwrap();
        let listed = Listed::new("shown".into(), tool);
        serde_json::from_str(listed.shown(scope).get()).unwrap()
    }

    #[test]
    fn nothing_that_a_server_said_of_its_tool_is_lost() {
        let definition = json!({
            "name": "read", "icons": [{"src": "x"}], "execution": {"taskSupport": "optional"},
            "new": 18446744073709551615_u64, "_meta": {"a/b": 1},
        });
        let said = json!({
            "name": "fs.read", "description": "d",
            "inputSchema": {"type": "object", "$defs": {"a": {}}, "allOf": [true]},
            "outputSchema": {"type": "array"}, "annotations": {"readOnlyHint": true},
            "mcp": {"method": "tools/call", "definition": &definition},
        });
        let one = Scope::One("fs@globex".parse().unwrap());
        let mut expected = definition;
        for member in ["description", "inputSchema", "outputSchema", "annotations"] {
            expected[member] = said[member].clone();
        }
        expected["name"] = json!("shown");
        assert_eq!(shown(&said, &one), expected);
        expected["title"] = json!("read");
        expected["_meta"] = json!({"a/b": 1, "fem/agent": "fs@globex", "fem/tool": "fs.read"});
        assert_eq!(shown(&said, &Scope::All), expected);
    }

    #[test]
    fn a_title_of_its_own_stays() {
        for title in [
            json!({"title": "T"}),
            json!({"annotations": {"title": "T"}}),
        ] {
            let mut definition = json!({"name": "read"});
            definition
                .as_object_mut()
                .unwrap()
                .extend(title.as_object().unwrap().clone());
            let said = json!({"name": "fs.read", "mcp": {"method": "tools/call", "definition": definition}});
            let told = shown(&said, &Scope::All);
            assert!(told["title"] == "T" || told["title"].is_null(), "{told}");
        }
    }

    #[test]
    fn every_tool_of_fem_has_schemas_that_clients_take() {
        for (schema, shown_as) in [
            (json!(null), json!({"type": "object"})),
            (json!(true), json!({"type": "object"})),
            (json!({"type": "null"}), json!({"type": "object"})),
            (
                json!({"properties": {}}),
                json!({"properties": {}, "type": "object"}),
            ),
            (
                json!({"type": "object", "title": "A"}),
                json!({"type": "object", "title": "A"}),
            ),
        ] {
            let said = json!({"name": "fs.read", "inputSchema": schema, "outputSchema": {"type": "integer"}});
            let told = shown(&said, &Scope::All);
            assert_eq!(told["inputSchema"], shown_as);
            assert!(told.get("outputSchema").is_none());
        }
        let said = json!({"name": "fs.read", "outputSchema": {"type": "object"}});
        assert_eq!(
            shown(&said, &Scope::All)["outputSchema"],
            json!({"type": "object"})
        );
    }

    #[test]
    fn a_page_of_tools_has_so_many_bytes_and_pages_have_all_of_them() {
        let found = (0..400).map(|n| {
            let written = json!({
                "agent": (if n % 2 == 0 { "fs@acme" } else { "web@acme" }),
                "key": proto_spec::SigningKey::from_seed(&[7; 32]).public(),
                "name": format!("fs.t{n}"),
                "description": "x".repeat(20_000 + n),
            });
            serde_json::from_value(written).unwrap()
        });
        let mut gathered = Gathered::new(&Scope::All, &"acme".parse().unwrap());
        gathered.take(found.collect());
        let catalogue = Catalogue::of(gathered);
        let (mut seen, mut pages, mut after) = (0, 0, None);
        loop {
            let (shown, next) = page(&catalogue, &Scope::All, after.as_deref(), 1_000);
            let bytes: usize = shown.iter().map(|tool| tool.get().len()).sum();
            assert!(bytes <= ANSWER_BYTES_MAX && !shown.is_empty());
            (seen, pages, after) = (seen + shown.len(), pages + 1, next);
            if after.is_none() {
                break;
            }
        }
        assert_eq!((seen, pages > 1), (catalogue.tools().len(), true));
        let (first, _) = page(&catalogue, &Scope::All, None, 0);
        assert_eq!(first.len(), 1);
    }
}
