//! Whose resource a URI means, where one client reads those of many agents.
//!
//! A resource's URI is whatever its server says, and another server may say the same, by chance or to be
//! read in its place. So at `/mcp` every URI has its agent in front, `fem:fs@acme/file:///a.txt`: what is read
//! goes to that agent and no other, whatever else is listed, and also for what only a template or a link names.
//! Where one agent is looked at alone, URIs stay as they are.

use proto_spec::AgentId;
use serde_json::value::{RawValue, to_raw_value};

use crate::mcp::rpc::Object;

const SCHEME: &str = "fem:";

/// A URI of `agent`'s, for a client of many.
pub(super) fn outward(agent: &AgentId, uri: &str) -> String {
    format!("{SCHEME}{agent}/{uri}")
}

/// Whose it is, and how they call it.
pub(super) fn inward(uri: &str) -> Option<(AgentId, &str)> {
    let (agent, own) = uri.strip_prefix(SCHEME)?.split_once('/')?;
    Some((agent.parse().ok()?, own))
}

/// Puts `agent` in front of every URI in what it answered to `method`.
pub(super) fn name_owner(agent: &AgentId, method: &str, result: &mut Object) {
    match method {
        "resources/list" => each(result, "resources", |one| prefix(agent, one, "uri")),
        "resources/templates/list" => each(result, "resourceTemplates", |one| {
            prefix(agent, one, "uriTemplate");
        }),
        "resources/read" => each(result, "contents", |one| prefix(agent, one, "uri")),
        "tools/call" => each(result, "content", |one| in_content(agent, one)),
        "prompts/get" => each(result, "messages", |message| {
            if let Some(mut content) = message.object("content") {
                in_content(agent, &mut content);
                message.put("content", &content);
            }
        }),
        "notifications/resources/updated" => prefix(agent, result, "uri"),
        _ => {}
    }
}

fn in_content(agent: &AgentId, content: &mut Object) {
    prefix(agent, content, "uri");
    if let Some(mut resource) = content.object("resource") {
        prefix(agent, &mut resource, "uri");
        content.put("resource", &resource);
    }
}

fn prefix(agent: &AgentId, object: &mut Object, member: &str) {
    if let Some(uri) = object.read::<String>(member) {
        object.put(member, &outward(agent, &uri));
    }
}

/// Changes each object of an array; what is no object, and an array that is none, stays as it is.
fn each(object: &mut Object, member: &str, mut change: impl FnMut(&mut Object)) {
    let Some(list) = object.read::<Vec<Box<RawValue>>>(member) else {
        return;
    };
    let changed = list.into_iter().map(|raw| match Object::parse(raw.get()) {
        Ok(mut one) => {
            change(&mut one);
            one.raw()
        }
        Err(_) => raw,
    });
    let changed: Vec<Box<RawValue>> = changed.collect();
    if let Ok(raw) = to_raw_value(&changed) {
        object.set(member, raw);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_uri_comes_back_to_the_agent_that_it_came_from() {
        let agent: AgentId = "fs.x@acme".parse().unwrap();
        for uri in [
            "file:///a b?c#d",
            "",
            "fem:other@acme/x",
            "test://{id}/{+path}",
        ] {
            let shown = outward(&agent, uri);
            assert_eq!(inward(&shown), Some((agent.clone(), uri)), "{shown}");
        }
        for wrong in [
            "file:///a",
            "fem:fs/x",
            "fem:@acme/x",
            "fem:fs@acme",
            "FEM:fs@acme/x",
        ] {
            assert_eq!(inward(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn every_uri_in_an_answer_has_its_agent_in_front() {
        let agent: AgentId = "fs@acme".parse().unwrap();
        for (method, answer) in [
            (
                "resources/list",
                json!({"resources": [{"uri": "U", "x": 1}, 7]}),
            ),
            (
                "resources/templates/list",
                json!({"resourceTemplates": [{"uriTemplate": "U"}]}),
            ),
            (
                "resources/read",
                json!({"contents": [{"uri": "U", "text": "U"}]}),
            ),
            (
                "tools/call",
                json!({"content": [{"type": "resource_link", "uri": "U"}]}),
            ),
            (
                "tools/call",
                json!({"content": [{"type": "resource", "resource": {"uri": "U"}}]}),
            ),
            (
                "prompts/get",
                json!({"messages": [{"content": {"type": "resource", "resource": {"uri": "U"}}}]}),
            ),
            ("notifications/resources/updated", json!({"uri": "U"})),
        ] {
            let mut result = Object::parse(&answer.to_string()).unwrap();
            name_owner(&agent, method, &mut result);
            let shown: Value = serde_json::from_str(result.raw().get()).unwrap();
            let expected = answer
                .to_string()
                .replace(r#"uri":"U""#, r#"uri":"fem:fs@acme/U""#)
                .replace(r#"uriTemplate":"U""#, r#"uriTemplate":"fem:fs@acme/U""#);
            assert_eq!(shown.to_string(), expected, "{method}");
        }
    }
}
