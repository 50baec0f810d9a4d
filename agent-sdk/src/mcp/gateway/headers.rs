//! What the headers of a modern request have to say: the same as its body, so that nobody on the way who
//! looks at headers is told something else than who answers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderMap;
use serde_json::value::RawValue;
use serde_json::{Number, Value};

use super::era::VERSION_KEY;
use super::fault::{Fault, HEADER_MISMATCH};
use crate::mcp::rpc::Object;

/// The revision that a request is in.
pub(super) const VERSION_HEADER: &str = "mcp-protocol-version";
const METHOD_HEADER: &str = "mcp-method";
const NAME_HEADER: &str = "mcp-name";
/// In front of the name of a parameter that is in a header too.
const PARAM_PREFIX: &str = "mcp-param-";
/// How deep a schema is searched for such parameters, and how many there may be.
const SEARCHED_MAX: (usize, usize) = (8, 64);
/// Below it two numbers with few digits are two doubles.
const DOUBLE_MAX: f64 = 9_007_199_254_740_992.0;

fn mismatch(why: String) -> Fault {
    Fault::new(HEADER_MISMATCH, why)
}

/// The value of a header that is there once, without spaces around it.
///
/// # Errors
///
/// Where it is there twice, or no ASCII.
pub(super) fn value<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Fault> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    let text =
        text.ok_or_else(|| mismatch(format!("`{name}` is not one value of visible ASCII")))?;
    Ok(Some(text.trim()))
}

/// The value as its sender meant it: what would not do in a header is in Base64.
fn decoded(name: &str, value: &str) -> Result<String, Fault> {
    let Some(encoded) = value
        .strip_prefix("=?base64?")
        .and_then(|rest| rest.strip_suffix("?="))
    else {
        return Ok(value.to_owned());
    };
    let bytes = BASE64.decode(encoded).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| mismatch(format!("`{name}` is not Base64 of a text")))
}

/// Compares the headers that every modern request has with its body, beside the revision
/// ([`check_version`]).
///
/// # Errors
///
/// [`HEADER_MISMATCH`] where one is missing, or says something else.
pub(super) fn check(headers: &HeaderMap, method: &str, params: &Object) -> Result<(), Fault> {
    same(headers, METHOD_HEADER, Some(method))?;
    let named_by = match method {
        "tools/call" | "prompts/get" => "name",
        "resources/read" => "uri",
        "tasks/get" | "tasks/update" | "tasks/cancel" => "taskId",
        _ => return Ok(()),
    };
    // A name that is none is for whoever reads the parameters.
    match params.read::<String>(named_by) {
        Some(name) => same(headers, NAME_HEADER, Some(&name)),
        None => Ok(()),
    }
}

/// Compares the revision alone: what else has to be there is that revision's to say.
///
/// # Errors
///
/// [`HEADER_MISMATCH`].
pub(super) fn check_version(headers: &HeaderMap, params: &Object) -> Result<(), Fault> {
    let version = params
        .object("_meta")
        .and_then(|meta| meta.read::<String>(VERSION_KEY));
    same(headers, VERSION_HEADER, version.as_deref())
}

fn same(headers: &HeaderMap, header: &str, body: Option<&str>) -> Result<(), Fault> {
    let said = value(headers, header)?;
    let said = said.ok_or_else(|| mismatch(format!("`{header}` is missing")))?;
    let said = match header {
        NAME_HEADER => decoded(header, said)?,
        _ => said.to_owned(),
    };
    match Some(said.as_str()) == body {
        true => Ok(()),
        false => Err(mismatch(format!(
            "`{header}` says something else than the body"
        ))),
    }
}

/// Compares the headers that a tool's schema wants for some of its parameters with its arguments.
///
/// # Errors
///
/// [`HEADER_MISMATCH`].
pub(super) fn check_params(
    headers: &HeaderMap,
    schema: Option<&RawValue>,
    arguments: Option<&RawValue>,
) -> Result<(), Fault> {
    // Most schemas want none, and are not read.
    let Some(schema) = schema.filter(|schema| schema.get().contains("x-mcp-header")) else {
        return Ok(());
    };
    let unreadable = |_| mismatch("the arguments cannot be compared with headers".into());
    let schema: Value = serde_json::from_str(schema.get()).map_err(unreadable)?;
    let arguments = arguments.map_or("null", RawValue::get);
    let arguments: Value = serde_json::from_str(arguments).map_err(unreadable)?;
    let mut wanted = Vec::new();
    search(&schema, &arguments, 0, &mut wanted)?;
    for (name, argument) in wanted {
        let header = format!("{PARAM_PREFIX}{}", name.to_ascii_lowercase());
        let said = value(headers, &header)?;
        let said = said.map(|said| decoded(&header, said)).transpose()?;
        let is_same = match (&said, &argument) {
            (None, Value::Null) => true,
            (Some(said), Value::String(text)) => said == text,
            (Some(said), Value::Bool(bool)) => *said == bool.to_string(),
            (Some(said), Value::Number(number)) => is_same_number(said, number),
            _ => false,
        };
        if !is_same {
            return Err(mismatch(format!(
                "`{header}` says something else than the argument"
            )));
        }
    }
    Ok(())
}

/// Whether a header says this number. Whole ones are compared digit by digit, for not all of them are a double;
/// what is none and too large for one is compared with nothing.
fn is_same_number(said: &str, number: &Number) -> bool {
    if !number.is_f64() {
        let whole = said
            .split_once('.')
            .filter(|(_, zeros)| !zeros.is_empty() && zeros.bytes().all(|b| b == b'0'));
        return whole.map_or(said, |(whole, _)| whole) == number.to_string();
    }
    let is_exact = |number: &f64| number.abs() < DOUBLE_MAX;
    let number = number.as_f64().filter(is_exact);
    number.is_some() && said.parse().ok() == number
}

/// Each parameter below `schema` that wants to be in a header, with its argument.
///
/// # Errors
///
/// [`HEADER_MISMATCH`] where there are more or deeper ones than are compared.
fn search(
    schema: &Value,
    arguments: &Value,
    depth: usize,
    wanted: &mut Vec<(String, Value)>,
) -> Result<(), Fault> {
    let (depth_max, wanted_max) = SEARCHED_MAX;
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return Ok(());
    };
    for (name, schema) in properties {
        let argument = arguments.get(name).cloned().unwrap_or_default();
        if let Some(Value::String(header)) = schema.get("x-mcp-header") {
            if depth > depth_max || wanted.len() == wanted_max {
                let why = "the tool wants more parameters in headers than are compared";
                return Err(mismatch(why.into()));
            }
            wanted.push((header.clone(), argument.clone()));
        }
        search(schema, &argument, depth + 1, wanted)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::json;
    use serde_json::value::to_raw_value;

    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter()
            .map(|(name, value)| {
                let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                (name.parse().unwrap(), value)
            })
            .collect()
    }

    fn call(name: &str, headers: &HeaderMap) -> bool {
        let params = json!({"name": name, "_meta": {VERSION_KEY: "2026-07-28"}}).to_string();
        let params = Object::parse(&params).unwrap();
        check_version(headers, &params).is_ok() && check(headers, "tools/call", &params).is_ok()
    }

    const VERSION: (&str, &str) = (VERSION_HEADER, "2026-07-28");
    const METHOD: (&str, &str) = (METHOD_HEADER, "tools/call");

    #[test]
    fn headers_say_what_the_body_says() {
        for (name, said, is_same) in [
            ("read", "read", true),
            ("read", "  read\t", true),
            ("read", "Read", false),
            ("r\u{e9}ad", "=?base64?csOpYWQ=?=", true),
            ("r\u{e9}ad", "=?base64?csOpYWQ?=", false),
            ("r\u{e9}ad", "=?base64?cs!pYWQ=?=", false),
            ("r\u{e9}ad", "r\u{e9}ad", false),
            ("=?base64?cmVhZA==", "=?base64?cmVhZA==", true),
            ("cmVhZA==?=", "cmVhZA==?=", true),
        ] {
            let headers = headers(&[VERSION, METHOD, (NAME_HEADER, said)]);
            assert_eq!(call(name, &headers), is_same, "{name} as {said}");
        }
    }

    #[test]
    fn a_missing_or_repeated_header_says_nothing() {
        let name = (NAME_HEADER, "read");
        assert!(!call("read", &headers(&[METHOD, name])));
        assert!(!call("read", &headers(&[VERSION, name])));
        assert!(!call("read", &headers(&[VERSION, METHOD])));
        assert!(!call(
            "read",
            &headers(&[VERSION, (METHOD_HEADER, "TOOLS/CALL"), name])
        ));
        let mut twice = headers(&[VERSION, METHOD, name]);
        twice.append(NAME_HEADER, HeaderValue::from_static("write"));
        assert!(!call("read", &twice));
    }

    #[test]
    fn a_parameter_that_is_in_a_header_says_the_same_in_both() {
        let schema = to_raw_value(&json!({"properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "deep": {"properties": {"n": {"type": "integer", "x-mcp-header": "N"}}},
        }}))
        .unwrap();
        for (said, arguments, is_same) in [
            (
                vec![("mcp-param-region", "eu")],
                json!({"region": "eu"}),
                true,
            ),
            (
                vec![("mcp-param-region", "us")],
                json!({"region": "eu"}),
                false,
            ),
            (vec![], json!({"region": "eu"}), false),
            (vec![], json!({"region": null}), true),
            (vec![], json!({}), true),
            (vec![("mcp-param-region", "eu")], json!({}), false),
            (
                vec![("mcp-param-region", "=?base64?w6k=?=")],
                json!({"region": "\u{e9}"}),
                true,
            ),
            (
                vec![("mcp-param-n", "42.0")],
                json!({"deep": {"n": 42}}),
                true,
            ),
            (
                vec![("mcp-param-n", "43")],
                json!({"deep": {"n": 42}}),
                false,
            ),
        ] {
            let arguments = to_raw_value(&arguments).unwrap();
            let checked = check_params(&headers(&said), Some(&schema), Some(&arguments));
            assert_eq!(checked.is_ok(), is_same, "{said:?} {arguments}");
        }
    }

    #[test]
    fn numbers_that_are_one_as_doubles_are_two() {
        let schema = r#"{"properties": {"n": {"x-mcp-header": "N"}}}"#;
        let schema = RawValue::from_string(schema.into()).unwrap();
        for (said, argument, is_same) in [
            ("9007199254740993", "9007199254740993", true),
            ("9007199254740992", "9007199254740993", false),
            ("18446744073709551615", "18446744073709551615", true),
            ("-7", "-7", true),
            ("7.0", "7", true),
            ("7.01", "7", false),
            ("0.5", "0.5", true),
            ("36893488147419103232", "36893488147419103233", false),
            ("36893488147419103232", "36893488147419103232", false),
            ("0", "1e999", false),
        ] {
            let arguments = RawValue::from_string(format!(r#"{{"n": {argument}}}"#)).unwrap();
            let said = headers(&[("mcp-param-n", said)]);
            let checked = check_params(&said, Some(&schema), Some(&arguments));
            assert_eq!(checked.is_ok(), is_same, "{said:?} {argument}");
        }
    }

    #[test]
    fn what_wants_more_headers_than_are_compared_is_refused() {
        let leaf = json!({"x-mcp-header": "N"});
        let many: Vec<(String, Value)> = (0..=SEARCHED_MAX.1)
            .map(|n| (n.to_string(), leaf.clone()))
            .collect();
        let many =
            json!({"properties": {"a": {"properties": Value::Object(many.into_iter().collect())}}});
        let deep =
            (0..=SEARCHED_MAX.0 + 1).fold(leaf, |inner, _| json!({"properties": {"a": inner}}));
        for schema in [many, deep] {
            let schema = to_raw_value(&schema).unwrap();
            assert!(check_params(&headers(&[]), Some(&schema), None).is_err());
        }
    }
}
