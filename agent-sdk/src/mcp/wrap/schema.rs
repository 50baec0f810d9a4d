//! Whether arguments fit a tool's schema, which its server wrote: the schema is read once, within bounds, and
//! never makes anybody ask the network.

use std::fmt;

use jsonschema::{PatternOptions, Retrieve, Uri, Validator};
use proto_spec::wire::check_strict;
use serde_json::Value;
use serde_json::value::RawValue;

use super::connection::Label;

/// Bytes of a tool's schema.
const SCHEMA_BYTES_MAX: usize = 48 << 10;
/// How deep it may nest.
const SCHEMA_DEPTH_MAX: usize = 32;
/// Bytes of a regular expression's automaton.
const PATTERN_BYTES_MAX: usize = 256 << 10;
/// Regular expressions of a schema.
const PATTERNS_MAX: usize = 32;
/// Work of holding arguments against a schema: what the arguments consist of, times the schemas that each
/// part may meet. Some seconds at most.
const WORK_MAX: usize = 200_000_000;
/// Beyond this much the places where they do not fit are not told: all would be collected before the first
/// is.
const WORK_TOLD_MAX: usize = 100_000;
/// Places where arguments do not fit that are told at once.
const PROBLEMS_MAX: usize = 8;
/// Characters of each.
const PROBLEM_CHARS_MAX: usize = 200;
/// Arguments of which the way to the server is told, and the characters of each one's name.
const LABELS_MAX: usize = 32;
const LABEL_CHARS_MAX: usize = 64;

/// A tool's schema, ready to be held against arguments.
pub(super) struct Schema {
    validator: Validator,
    effort: Effort,
    /// Its regular expressions.
    pub(super) patterns: usize,
    /// Arguments of which the way is told, by pointer, and under which name.
    labelled: Vec<(String, String)>,
}

/// Looks nowhere.
struct Nowhere;

impl Retrieve for Nowhere {
    fn retrieve(
        &self,
        uri: &Uri<String>,
    ) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        Err(format!("{uri} is not in the schema itself, and nothing is looked up").into())
    }
}

impl Schema {
    /// Reads a schema.
    ///
    /// # Errors
    ///
    /// Why it cannot be held against anything: too large, too deep, too much work, no object, no schema, or it
    /// refers to what is elsewhere; or marks arguments for headers that cannot say them.
    pub(super) fn read(raw: &RawValue) -> Result<Self, String> {
        let text = raw.get();
        if text.len() > SCHEMA_BYTES_MAX {
            return Err(format!(
                "its schema has {} bytes, at most {SCHEMA_BYTES_MAX}",
                text.len()
            ));
        }
        check_strict(text, SCHEMA_DEPTH_MAX)
            .map_err(|why| format!("its schema cannot be carried: {why}"))?;
        let value: Value = serde_json::from_str(text).map_err(|why| why.to_string())?;
        if value.get("type").and_then(Value::as_str) != Some("object") {
            return Err("its schema is not one of an object".into());
        }
        let effort = Effort::of(&value)?;
        let patterns = patterns(&value);
        if patterns > PATTERNS_MAX {
            return Err(format!(
                "its schema has {patterns} regular expressions, at most {PATTERNS_MAX}"
            ));
        }
        let bounded = PatternOptions::regex()
            .size_limit(PATTERN_BYTES_MAX)
            .dfa_size_limit(PATTERN_BYTES_MAX);
        let validator = jsonschema::options()
            .with_pattern_options(bounded)
            .with_retriever(Nowhere)
            .build(&value)
            .map_err(|why| format!("its schema is none: {}", cut(&why)))?;
        let mut labelled = Vec::new();
        label(&value, "", &mut labelled)?;
        Ok(Self {
            validator,
            effort,
            patterns,
            labelled,
        })
    }

    /// What the way to the server is told of arguments, as the schema's `x-mcp-header` say.
    pub(super) fn labels(&self, arguments: Option<&RawValue>) -> Vec<Label> {
        let Some(arguments) = arguments.filter(|_| !self.labelled.is_empty()) else {
            return Vec::new();
        };
        let value: Value = serde_json::from_str(arguments.get()).unwrap_or_default();
        let told = self.labelled.iter().filter_map(|(pointer, name)| {
            let value = match value.pointer(pointer)? {
                Value::String(text) => text.clone(),
                other @ (Value::Bool(_) | Value::Number(_)) => other.to_string(),
                _ => return None,
            };
            let name = name.clone();
            Some(Label { name, value })
        });
        told.collect()
    }

    /// Holds arguments against it.
    ///
    /// # Errors
    ///
    /// Where they do not fit, by JSON pointer, and why; at most eight places.
    pub(super) fn check(&self, arguments: &RawValue) -> Result<(), Vec<Problem>> {
        let whole = |message: String| {
            vec![Problem {
                pointer: String::new(),
                message,
            }]
        };
        let value: Value =
            serde_json::from_str(arguments.get()).map_err(|why| whole(why.to_string()))?;
        if depth(&value) > self.effort.depth_max {
            let most = self.effort.depth_max;
            return Err(whole(format!(
                "nests deeper than {most}, which is too much work for a schema that refers to itself"
            )));
        }
        let work = parts(&value).saturating_mul(self.effort.steps);
        if work > WORK_MAX {
            return Err(whole("are too much work for this schema".into()));
        }
        if self.validator.is_valid(&value) {
            return Ok(());
        }
        if work > WORK_TOLD_MAX {
            return Err(whole("do not fit the schema".into()));
        }
        let problems: Vec<Problem> = self
            .validator
            .iter_errors(&value)
            .take(PROBLEMS_MAX)
            .map(|error| Problem {
                pointer: error.instance_path().to_string(),
                message: cut(&error),
            })
            .collect();
        Err(problems)
    }
}

/// A place where arguments do not fit.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct Problem {
    /// Which: a JSON pointer.
    pub(super) pointer: String,
    /// Why, in short.
    pub(super) message: String,
}

/// The properties that have an `x-mcp-header`: a name that a header can have and no other property has, of a text,
/// an integer or a truth value. MCP has its clients over HTTP leave out a tool of which that is not so.
///
/// # Errors
///
/// Where one is not so, or there are too many.
fn label(
    schema: &Value,
    pointer: &str,
    labelled: &mut Vec<(String, String)>,
) -> Result<(), String> {
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, inner) in properties.into_iter().flatten() {
        let escaped = name.replace('~', "~0").replace('/', "~1");
        let pointer = format!("{pointer}/{escaped}");
        if let Some(header) = inner.get("x-mcp-header") {
            let kind = inner.get("type").and_then(Value::as_str);
            let header = header_name(header)
                .filter(|_| matches!(kind, Some("string" | "integer" | "boolean")))
                .filter(|header| {
                    labelled
                        .iter()
                        .all(|(_, one)| !one.eq_ignore_ascii_case(header))
                })
                .ok_or_else(|| format!("no header can say its argument {}", cut(&pointer)))?;
            if labelled.len() == LABELS_MAX {
                return Err(format!("headers say {LABELS_MAX} of its arguments at most"));
            }
            labelled.push((pointer.clone(), header.to_owned()));
        }
        label(inner, &pointer, labelled)?;
    }
    Ok(())
}

/// What can be the rest of a header's name: RFC 9110, a token.
fn header_name(name: &Value) -> Option<&str> {
    let is_of_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    name.as_str()
        .filter(|name| (1..=LABEL_CHARS_MAX).contains(&name.len()) && name.bytes().all(is_of_token))
}

/// How much work a schema can make.
struct Effort {
    /// Schemas that one part of the arguments may meet.
    steps: usize,
    /// Arguments that nest deeper are not held against it.
    depth_max: usize,
}

/// Schemas that are looked at for one level of arguments, every reference followed.
const STEPS_MAX: usize = 20_000;
/// The same for arguments of any depth.
const STEPS_IN_ALL_MAX: f64 = 2e6;

impl Effort {
    /// Follows every reference, each cycle once. A schema that comes back to itself by several ways multiplies
    /// its work with every level of the arguments, so those may be the less deep.
    ///
    /// # Errors
    ///
    /// Where it refers to what is elsewhere, or is too much work at any depth.
    fn of(schema: &Value) -> Result<Self, String> {
        let mut walk = Walk {
            root: schema,
            steps: 0,
            returns: 0,
            path: Vec::new(),
        };
        walk.follow(schema)?;
        let depth_max = match walk.returns {
            0 | 1 => usize::MAX,
            ways => {
                let levels = (STEPS_IN_ALL_MAX / walk.steps as f64).ln() / (ways as f64).ln();
                levels.max(1.0) as usize
            }
        };
        Ok(Self {
            steps: walk.steps,
            depth_max,
        })
    }
}

struct Walk<'a> {
    root: &'a Value,
    steps: usize,
    /// How often it came back to what it was in.
    returns: usize,
    path: Vec<*const Value>,
}

impl<'a> Walk<'a> {
    fn follow(&mut self, value: &'a Value) -> Result<(), String> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err("its schema's references make it too much work".into());
        }
        match value {
            Value::Object(members) => {
                for (name, inner) in members {
                    match (name.as_str(), inner.as_str()) {
                        // References within it would lead elsewhere than they are followed here.
                        ("$id" | "$schema", Some(_)) if !std::ptr::eq(value, self.root) => {
                            return Err(format!("its schema has a part with a {name} of its own"));
                        }
                        ("$ref" | "$dynamicRef" | "$recursiveRef", Some(target)) => {
                            self.refer(target)?;
                        }
                        _ => self.follow(inner)?,
                    }
                }
                Ok(())
            }
            Value::Array(items) => items.iter().try_for_each(|item| self.follow(item)),
            _ => Ok(()),
        }
    }

    fn refer(&mut self, target: &str) -> Result<(), String> {
        let Some(fragment) = target.strip_prefix('#') else {
            // A name that the schema gives itself is found by the validator, or nowhere.
            return Err(format!("its schema refers to {}", cut(&target)));
        };
        let found = match fragment.is_empty() || fragment.starts_with('/') {
            true => self.root.pointer(&unescaped(fragment)),
            false => anchored(self.root, fragment),
        };
        let Some(found) = found else {
            return Err(format!(
                "its schema refers to {}, which is not in it",
                cut(&target)
            ));
        };
        let place = std::ptr::from_ref(found);
        if self.path.contains(&place) {
            self.returns += 1;
            return Ok(());
        }
        self.path.push(place);
        let followed = self.follow(found);
        self.path.pop();
        followed
    }
}

/// A pointer in a URI's fragment, as a pointer.
fn unescaped(fragment: &str) -> String {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = (*first == b'%').then(|| after.get(..2)).flatten();
        let byte = escaped
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn anchored<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(members) => {
            let is_it = ["$anchor", "$dynamicAnchor"]
                .iter()
                .any(|key| members.get(*key).and_then(Value::as_str) == Some(name));
            if is_it {
                return Some(value);
            }
            members.values().find_map(|inner| anchored(inner, name))
        }
        Value::Array(items) => items.iter().find_map(|inner| anchored(inner, name)),
        _ => None,
    }
}

/// How many values a value consists of.
fn parts(value: &Value) -> usize {
    1 + match value {
        Value::Object(members) => members.values().map(parts).sum(),
        Value::Array(items) => items.iter().map(parts).sum(),
        _ => 0,
    }
}

fn patterns(schema: &Value) -> usize {
    match schema {
        Value::Object(members) => {
            let own = members.iter().map(|(name, inner)| match (&**name, inner) {
                ("pattern", Value::String(_)) => 1,
                ("patternProperties", Value::Object(all)) => all.len() + patterns(inner),
                _ => patterns(inner),
            });
            own.sum()
        }
        Value::Array(items) => items.iter().map(patterns).sum(),
        _ => 0,
    }
}

fn depth(value: &Value) -> usize {
    let inner = match value {
        Value::Object(members) => members.values().map(depth).max(),
        Value::Array(items) => items.iter().map(depth).max(),
        _ => return 0,
    };
    1 + inner.unwrap_or(0)
}

fn cut(what: &impl fmt::Display) -> String {
    let text = what.to_string();
    match text.char_indices().nth(PROBLEM_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.into()).unwrap()
    }

    fn read(text: &str) -> Result<Schema, String> {
        Schema::read(&raw(text))
    }

    fn refused(text: &str) -> String {
        match read(text) {
            Ok(_) => panic!("{text}"),
            Err(why) => why,
        }
    }

    #[test]
    fn arguments_that_do_not_fit_are_told_by_their_pointers() {
        let schema = read(
            r#"{"type":"object","properties":{"path":{"type":"string"},"n":{"type":"array","items":{"type":"integer"}}},"required":["path"],"additionalProperties":false}"#,
        )
        .unwrap();
        assert!(schema.check(&raw(r#"{"path":"a","n":[1,2]}"#)).is_ok());
        let told = schema.check(&raw(r#"{"path":1,"n":[1,"x"],"z":0}"#));
        let mut pointers: Vec<_> = told
            .unwrap_err()
            .into_iter()
            .map(|one| one.pointer)
            .collect();
        pointers.sort();
        assert_eq!(pointers, ["", "/n/1", "/path"]);
        assert_eq!(schema.check(&raw("{}")).unwrap_err().len(), 1);
    }

    #[test]
    fn a_schema_that_is_too_much_is_refused_with_the_reason() {
        let deep = format!(
            r#"{{"type":"object","x":{}{}}}"#,
            "[".repeat(64),
            "]".repeat(64)
        );
        let large = format!(
            r#"{{"type":"object","description":"{}"}}"#,
            "x".repeat(1 << 16)
        );
        let mut bomb =
            String::from(r##"{"type":"object","allOf":[{"$ref":"#/$defs/d0"}],"$defs":{"##);
        for i in 0..40 {
            let next = i + 1;
            bomb += &format!(
                r##""d{i}":{{"anyOf":[{{"$ref":"#/$defs/d{next}"}},{{"$ref":"#/$defs/d{next}"}}]}},"##
            );
        }
        bomb += r#""d40":{}}}"#;
        // Within a part that names itself `#` is that part, and not the whole.
        let elsewhere = r##"{"type":"object","allOf":[{"$id":"x","$ref":"#/$defs/d","$defs":{"d":{"not":{}}}}],"$defs":{"d":{}}}"##;
        let patterned: Vec<String> = (0..=PATTERNS_MAX)
            .map(|n| format!(r#""p{n}":{{"pattern":"{n}"}}"#))
            .collect();
        let patterned = format!(
            r#"{{"type":"object","properties":{{{}}}}}"#,
            patterned.join(",")
        );
        for (text, why) in [
            (deep.as_str(), "deep"),
            (&large, "bytes"),
            (&bomb, "too much work"),
            (r#"{"type":"array"}"#, "object"),
            ("true", "object"),
            ("{}", "object"),
            (
                r#"{"type":"object","$ref":"https://evil.example/x"}"#,
                "refers",
            ),
            (
                r#"{"type":"object","properties":{"a":{"$ref":"file:///etc/passwd"}}}"#,
                "refers",
            ),
            (
                r##"{"type":"object","properties":{"a":{"$ref":"#/nowhere"}}}"##,
                "not in it",
            ),
            (r#"{"type":"object","required":7}"#, "none"),
            (
                r#"{"type":"object","properties":{"a":{"pattern":"("}}}"#,
                "none",
            ),
            (
                r#"{"type":"object","properties":{"a":{"pattern":"(a{1000}){1000}"}}}"#,
                "none",
            ),
            (r#"{"type":"object","a":1,"a":2}"#, "carried"),
            (elsewhere, "of its own"),
            (&patterned, "regular expressions"),
        ] {
            assert!(refused(text).contains(why), "{why}: {}", refused(text));
        }
    }

    #[test]
    fn many_parts_that_do_not_fit_cost_no_memory_and_too_many_no_work() {
        let text = r#"{"type":"object","properties":{"a":{"items":{"anyOf":[{"type":"string"},{"type":"null"}]}}}}"#;
        let zeros = |n: usize| raw(&format!(r#"{{"a":[{}0]}}"#, "0,".repeat(n)));
        let schema = read(text).unwrap();
        let told = schema.check(&zeros(1_000_000)).unwrap_err();
        assert_eq!(told.len(), 1, "the places are not collected");
        let told = schema.check(&zeros(10)).unwrap_err();
        assert_eq!(told[0].pointer, "/a/0");
        let much: Vec<String> = (0..300).map(|n| format!(r#""p{n}":{{}}"#)).collect();
        let much = format!(r#"{{"type":"object","properties":{{{}}}}}"#, much.join(","));
        let told = read(&much).unwrap().check(&zeros(1_000_000)).unwrap_err();
        assert!(told[0].message.contains("too much work"), "{told:?}");
    }

    #[test]
    fn a_hostile_regular_expression_costs_linear_time() {
        let schema = read(r#"{"type":"object","properties":{"a":{"pattern":"^(a+)+$"}}}"#).unwrap();
        let hostile = format!(r#"{{"a":"{}!"}}"#, "a".repeat(100_000));
        let began = std::time::Instant::now();
        assert!(schema.check(&raw(&hostile)).is_err());
        assert!(began.elapsed().as_secs() < 5);
    }

    #[test]
    fn a_schema_that_refers_to_itself_by_many_ways_takes_shallow_arguments_only() {
        let text = r##"{"type":"object","anyOf":[{"properties":{"a":{"$ref":"#"}},"required":["x"]},{"properties":{"a":{"$ref":"#"}},"required":["x"]}]}"##;
        let schema = read(text).unwrap();
        let nested = |n: usize| raw(&format!("{}{{}}{}", r#"{"a":"#.repeat(n), "}".repeat(n)));
        let began = std::time::Instant::now();
        assert!(schema.check(&nested(10)).is_err());
        let told = schema.check(&nested(50)).unwrap_err();
        assert!(told[0].message.contains("deeper"), "{told:?}");
        assert!(began.elapsed().as_secs() < 5);
    }

    #[test]
    fn the_way_is_told_of_the_arguments_that_the_schema_marks() {
        let schema = read(
            r#"{"type":"object","properties":{"a/b":{"type":"string","x-mcp-header":"Region"},"o":{"properties":{"n":{"type":"integer","x-mcp-header":"N"}}},"b":{"type":"boolean","x-mcp-header":"B"}}}"#,
        )
        .unwrap();
        let arguments = raw(r#"{"a/b":"eu","o":{"n":7},"b":null}"#);
        let labels = schema.labels(Some(&arguments));
        let told: Vec<_> = labels.iter().map(|one| (&*one.name, &*one.value)).collect();
        assert_eq!(told, [("Region", "eu"), ("N", "7")]);
        assert!(schema.labels(Some(&raw(r#"{"a/b":["eu"]}"#))).is_empty());
    }

    #[test]
    fn a_schema_that_marks_arguments_for_headers_that_cannot_say_them_is_refused() {
        let marked = |kind: &str, header: &str| {
            format!(
                r#"{{"type":"object","properties":{{"a":{{"type":"{kind}","x-mcp-header":{header}}}}}}}"#
            )
        };
        assert!(read(&marked("string", r#""Region-1""#)).is_ok());
        let long = format!(r#""{}""#, "x".repeat(LABEL_CHARS_MAX + 1));
        for header in [
            r#""""#,
            r#""a b""#,
            r#""a:b""#,
            r#""é""#,
            r#""a\tb""#,
            "7",
            "null",
            &long,
        ] {
            assert!(
                refused(&marked("string", header)).contains("header"),
                "{header}"
            );
        }
        for kind in ["object", "array", "null", "number"] {
            assert!(
                refused(&marked(kind, r#""A""#)).contains("header"),
                "{kind}"
            );
        }
        let twice = r#"{"type":"object","properties":{"a":{"type":"string","x-mcp-header":"Re"},"o":{"properties":{"b":{"type":"string","x-mcp-header":"rE"}}}}}"#;
        assert!(refused(twice).contains("/o/b"));
        let many: Vec<String> = (0..=LABELS_MAX)
            .map(|n| format!(r#""p{n}":{{"type":"string","x-mcp-header":"P{n}"}}"#))
            .collect();
        let many = format!(r#"{{"type":"object","properties":{{{}}}}}"#, many.join(","));
        assert!(refused(&many).contains("at most"));
    }

    #[test]
    fn a_tree_may_be_as_deep_as_an_envelope() {
        let text = r##"{"type":"object","properties":{"next":{"$ref":"#"}}}"##;
        let nested = format!("{}{{}}{}", r#"{"next":"#.repeat(50), "}".repeat(50));
        assert!(read(text).unwrap().check(&raw(&nested)).is_ok());
    }

    #[test]
    fn schemas_of_2020_12_are_understood() {
        let text = r##"{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","$defs":{"n":{"$anchor":"num","type":"integer"}},"properties":{"a":{"$ref":"#num"}},"if":{"required":["b"]},"then":{"required":["c"]},"unevaluatedProperties":false}"##;
        let schema = read(text).unwrap();
        assert!(schema.check(&raw(r#"{"a":1}"#)).is_ok());
        assert!(schema.check(&raw(r#"{"a":"1"}"#)).is_err());
    }
}
