//! Results as a client of MCP expects them: of tools that speak no MCP, and in the manner of its revision.

use serde_json::json;
use serde_json::value::RawValue;

use super::era::Era;
use super::fault::Fault;
use super::upstream::Failure;
use crate::mcp::rpc::{INTERNAL_ERROR, Object};

/// Where the result of a failed tool says its code.
const ERROR_KEY: &str = "fem/error";
/// What a result is that needs the client's answers first.
pub(super) const INPUT_REQUIRED: &str = "input_required";

/// Requests whose results say for how long they hold.
const CACHEABLE: [&str; 6] = [
    "server/discover",
    "tools/list",
    "prompts/list",
    "resources/list",
    "resources/templates/list",
    "resources/read",
];

/// The result of a tool that speaks no MCP: as text, and where it is an object as what it is.
pub(super) fn of_tool(result: &RawValue) -> Object {
    // A text is itself; models read it better without quotes.
    let text = serde_json::from_str::<String>(result.get());
    let text = text.unwrap_or_else(|_| result.get().to_owned());
    let mut told = Object::default();
    told.put("content", &[json!({"type": "text", "text": text})]);
    if Object::parse(result.get()).is_ok() {
        told.set("structuredContent", result.to_owned());
    }
    told
}

/// A tool that was reached and said no. That is a result, not an error of the protocol: a model reads
/// results, and can do better next time; errors most clients keep to themselves.
pub(super) fn of_failed_tool(failure: &Failure) -> Object {
    let mut told = Object::default();
    let text = format!("{}: {}", failure.code, failure.message);
    told.put("content", &[json!({"type": "text", "text": text})]);
    told.put("isError", &true);
    let error = json!({"code": failure.code, "data": failure.data});
    told.put("_meta", &json!({ERROR_KEY: error}));
    told
}

/// A result in the manner of `era`.
///
/// # Errors
///
/// Where a legacy client would take it for what it is not.
pub(super) fn shaped(era: Era, method: &str, mut result: Object) -> Result<Object, Fault> {
    match era {
        Era::Modern => {
            if !result.has("resultType") {
                result.put("resultType", "complete");
            }
            if CACHEABLE.contains(&method) && is_complete(&result) {
                // What one caller may see is nobody else's.
                result.put("cacheScope", "private");
                if result.read::<u64>("ttlMs").is_none() {
                    result.put("ttlMs", &0);
                }
            }
        }
        Era::Legacy => {
            if !is_complete(&result) {
                let why = "the answer is of a kind that this revision of MCP does not know";
                return Err(Fault::new(INTERNAL_ERROR, why));
            }
            for member in ["resultType", "ttlMs", "cacheScope"] {
                result.take(member);
            }
        }
    }
    Ok(result)
}

/// Whether it is the end of its request.
pub(super) fn is_complete(result: &Object) -> bool {
    let kind = result.read::<String>("resultType");
    kind.is_none_or(|kind| kind == "complete")
}

/// Whether it asks the client first.
pub(super) fn is_question(result: &Object) -> bool {
    result.read::<String>("resultType").as_deref() == Some(INPUT_REQUIRED)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::value::to_raw_value;

    use super::*;

    fn value(object: &Object) -> Value {
        serde_json::from_str(object.raw().get()).unwrap()
    }

    fn of(result: &Value) -> Value {
        value(&of_tool(&to_raw_value(result).unwrap()))
    }

    #[test]
    fn what_a_tool_of_fem_answers_is_text_and_an_object_also_itself() {
        assert_eq!(
            of(&json!("hi")),
            json!({"content": [{"type": "text", "text": "hi"}]})
        );
        assert_eq!(
            of(&json!([1])),
            json!({"content": [{"type": "text", "text": "[1]"}]})
        );
        let both = of(&json!({"a": 1}));
        assert_eq!(both["content"][0]["text"], r#"{"a":1}"#);
        assert_eq!(both["structuredContent"], json!({"a": 1}));
    }

    #[test]
    fn a_modern_result_says_what_it_is_and_lists_are_their_callers_own() {
        let shaped = |method, result: &Value| {
            let result = Object::parse(&result.to_string()).unwrap();
            value(&shaped(Era::Modern, method, result).unwrap())
        };
        assert_eq!(
            shaped("tools/call", &json!({})),
            json!({"resultType": "complete"})
        );
        assert_eq!(
            shaped(
                "tools/list",
                &json!({"tools": [], "cacheScope": "public", "ttlMs": 5})
            ),
            json!({"tools": [], "cacheScope": "private", "ttlMs": 5, "resultType": "complete"})
        );
        assert_eq!(
            shaped("resources/read", &json!({"resultType": "input_required"})),
            json!({"resultType": "input_required"})
        );
    }

    #[test]
    fn a_legacy_result_has_nothing_of_the_modern() {
        let result = r#"{"resultType":"complete","ttlMs":1,"cacheScope":"private","x":1}"#;
        let result = shaped(Era::Legacy, "tools/list", Object::parse(result).unwrap());
        assert_eq!(value(&result.unwrap()), json!({"x": 1}));
        let task = Object::parse(r#"{"resultType":"task"}"#).unwrap();
        assert!(shaped(Era::Legacy, "tools/call", task).is_err());
    }
}
