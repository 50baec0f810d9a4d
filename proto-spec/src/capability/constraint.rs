//! `--where 'path under /srv/reports'`: conditions on arguments as people write them.
//!
//! ```text
//! clause  = datalog | field "under" directory | field operator value | field "in" value *("," value)
//! datalog = a text that begins with "check if", "check all" or "reject if"
//! field   = pointer | name *("." name)        ; options.depth is /options/depth
//! pointer = an RFC 6901 pointer, beginning with "/"
//! name    = 1*( A-Z a-z 0-9 "_" "-" )
//! operator = "==" | "!=" | "<" | "<=" | ">" | ">=" | "starts with" | "ends with" | "contains"
//! value   = integer | "true" | "false" | quoted | bare
//! quoted  = DQUOTE text DQUOTE                 ; \" and \\ stand for " and \
//! bare    = any text without space, comma and quotes
//! ```
//!
//! Every clause fails where the argument is missing. A clause that no call could satisfy is an error.

use super::arguments::is_plain_path;
use super::check::{BadCheck, Check, Value, can_hold, is_pointer};
use crate::limits::ARGUMENT_STRING_MAX;

impl Check {
    /// The three checks of *the argument at `pointer` lies under `directory`*, whether the argument is one
    /// path or a list of them: some path is there; no path at or below the pointer is neither the directory
    /// nor in it; nothing at or below the pointer is not a path.
    ///
    /// It is only as good as the provider's own resolution: a symbolic link under the directory is
    /// still under it.
    ///
    /// # Errors
    ///
    /// [`BadCheck`]: no JSON pointer, or a directory that no path can lie under.
    pub fn path_under(pointer: &str, directory: &str) -> Result<[Self; 3], BadCheck> {
        if !is_pointer(pointer) {
            return Err(BadCheck(format!(
                "{pointer:?} is not a JSON pointer below the arguments"
            )));
        }
        let directory = match directory.strip_suffix('/') {
            Some("") | None => directory,
            Some(directory) => directory,
        };
        if !is_plain_path(directory) || directory.len() >= ARGUMENT_STRING_MAX {
            return Err(BadCheck(format!(
                "nothing lies under {directory:?}: give an absolute path without empty, . or .. segments"
            )));
        }
        let inside = if directory == "/" {
            "/".into()
        } else {
            format!("{directory}/")
        };
        let (at, below) = (text(pointer), text(&format!("{pointer}/")));
        let (directory, inside) = (text(directory), text(&inside));
        let here = format!("$p == {at} || $p.starts_with({below})");
        Ok([
            format!("check if path({at}, $v) or path($p, $v), $p.starts_with({below})").parse()?,
            format!("reject if path($p, $v), {here}, $v != {directory}, !$v.starts_with({inside})")
                .parse()?,
            format!("reject if odd_arg($p), {here}").parse()?,
        ])
    }

    /// Reads one clause of the grammar above: the checks that it stands for.
    ///
    /// # Errors
    ///
    /// [`BadCheck`]: it is not a clause, or no call could ever satisfy it.
    pub fn where_clause(clause: &str) -> Result<Vec<Self>, BadCheck> {
        let checks = Self::read_clause(clause.trim())?;
        can_hold(&[], &checks)?;
        Ok(checks)
    }

    fn read_clause(clause: &str) -> Result<Vec<Self>, BadCheck> {
        let is_datalog = ["check if", "check all", "reject if"]
            .iter()
            .any(|k| clause.starts_with(k));
        if is_datalog {
            return Ok(vec![clause.parse()?]);
        }
        let (field, rest) = clause
            .split_once(char::is_whitespace)
            .ok_or_else(|| BadCheck(format!("{clause:?} is not: argument, operator, value")))?;
        let pointer = pointer(field)?;
        let rest = rest.trim();
        if let Some(directory) = word(rest, "under") {
            let directory = literal(directory)?;
            return Ok(Self::path_under(&pointer, &directory.0)?.into());
        }
        if let Some(values) = word(rest, "in") {
            return Ok(vec![one_of(&pointer, values)?]);
        }
        Ok(vec![comparison(&pointer, rest)?])
    }
}

/// `text` as a Datalog string.
fn text(text: &str) -> String {
    Value::Text(text.into()).to_string()
}

fn word<'a>(rest: &'a str, word: &str) -> Option<&'a str> {
    let rest = rest.strip_prefix(word)?;
    rest.starts_with(char::is_whitespace).then(|| rest.trim())
}

/// The pointer that a field's name stands for.
fn pointer(field: &str) -> Result<String, BadCheck> {
    if field.starts_with('/') && is_pointer(field) {
        return Ok(field.into());
    }
    let name = |n: &str| {
        !n.is_empty()
            && n.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    let pointer = format!("/{}", field.replace('.', "/"));
    if field.split('.').all(name) && is_pointer(&pointer) {
        Ok(pointer)
    } else {
        Err(BadCheck(format!(
            "{field:?} is not the name of an argument: write name, name.member or a JSON pointer /name"
        )))
    }
}

/// One value and what kind of Datalog constant it is.
fn literal(value: &str) -> Result<(String, Value), BadCheck> {
    let (read, rest) = split_literal(value)?;
    if rest.is_empty() {
        Ok(read)
    } else {
        Err(BadCheck(format!(
            "{rest:?} is left over; put a value with spaces in double quotes"
        )))
    }
}

/// The value that `text` begins with, and what follows it.
fn split_literal(text: &str) -> Result<((String, Value), &str), BadCheck> {
    if let Some(quoted) = text.strip_prefix('"') {
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    let rest = quoted[at + 1..].trim_start();
                    return Ok(((value.clone(), Value::Text(value)), rest));
                }
                '\\' => match characters.next() {
                    Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                    _ => return Err(BadCheck("after a backslash stands \" or \\".into())),
                },
                other => value.push(other),
            }
        }
        return Err(BadCheck("a quote that is not closed".into()));
    }
    let end = text
        .find(|c: char| c.is_whitespace() || c == ',')
        .unwrap_or(text.len());
    let (bare, rest) = text.split_at(end);
    if bare.is_empty() || bare.contains('"') {
        return Err(BadCheck(format!("a value is missing in {text:?}")));
    }
    let value = match (bare, bare.parse::<i64>()) {
        (_, Ok(integer)) => Value::Integer(integer),
        ("true", _) => Value::Bool(true),
        ("false", _) => Value::Bool(false),
        _ => Value::Text(bare.into()),
    };
    Ok(((bare.into(), value), rest.trim_start()))
}

fn one_of(pointer: &str, mut values: &str) -> Result<Check, BadCheck> {
    let mut queries = Vec::new();
    loop {
        let ((_, value), rest) = split_literal(values)?;
        queries.push(format!("arg({}, {})", text(pointer), possible(&value)?));
        match rest.strip_prefix(',') {
            Some(more) => values = more.trim_start(),
            None if rest.is_empty() => break,
            None => return Err(BadCheck(format!("a comma is missing before {rest:?}"))),
        }
    }
    format!("check if {}", queries.join(" or ")).parse()
}

/// A value that an argument can have: longer strings never become facts.
fn possible(value: &Value) -> Result<&Value, BadCheck> {
    match value {
        Value::Text(text) if text.len() > ARGUMENT_STRING_MAX => Err(BadCheck(format!(
            "no argument is compared with a text of more than {ARGUMENT_STRING_MAX} bytes"
        ))),
        value => Ok(value),
    }
}

fn comparison(pointer: &str, rest: &str) -> Result<Check, BadCheck> {
    let operators = [
        "==",
        "!=",
        "<=",
        ">=",
        "<",
        ">",
        "starts with",
        "ends with",
        "contains",
    ];
    let found = operators
        .iter()
        .find_map(|o| Some((*o, rest.strip_prefix(o)?)));
    let Some((operator, value)) = found else {
        return Err(BadCheck(format!(
            "{rest:?} begins with no operator: use under, in, {}",
            operators.join(", ")
        )));
    };
    let (_, value) = literal(value.trim())?;
    let value = possible(&value)?;
    let pointer = text(pointer);
    let condition = match (operator, value) {
        ("==", value) => return format!("check if arg({pointer}, {value})").parse(),
        ("!=", value) => format!("$v != {value}"),
        ("<", Value::Integer(i64::MIN)) | (">", Value::Integer(i64::MAX)) => {
            return Err(BadCheck("no integer is beyond the last".into()));
        }
        ("<" | "<=" | ">" | ">=", Value::Integer(integer)) => format!("$v {operator} {integer}"),
        ("<" | "<=" | ">" | ">=", _) => {
            return Err(BadCheck(format!(
                "{operator} compares with an integer, not with {value}"
            )));
        }
        (_, Value::Text(part)) if part.is_empty() => {
            return Err(BadCheck(format!("every text {operator} the empty text")));
        }
        ("starts with", part @ Value::Text(_)) => format!("$v.starts_with({part})"),
        ("ends with", part @ Value::Text(_)) => format!("$v.ends_with({part})"),
        ("contains", part @ Value::Text(_)) => format!("$v.contains({part})"),
        _ => {
            return Err(BadCheck(format!(
                "{operator} compares texts: put {value} in double quotes if it is one"
            )));
        }
    };
    format!("check if arg({pointer}, $v), {condition}").parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(clause: &str) -> Result<Vec<String>, String> {
        let checks = Check::where_clause(clause).map_err(|e| e.0)?;
        Ok(checks.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_clause_stands_for_checks() {
        for (clause, checks) in [
            ("mode == \"r\"", "check if arg(\"/mode\", \"r\")"),
            ("mode == r", "check if arg(\"/mode\", \"r\")"),
            ("mode != w", "check if arg(\"/mode\", $v), $v != \"w\""),
            ("size <= 100", "check if arg(\"/size\", $v), $v <= 100"),
            ("size>=-1", ""),
            (
                "options.depth < 3",
                "check if arg(\"/options/depth\", $v), $v < 3",
            ),
            ("/a~1b == true", "check if arg(\"/a~1b\", true)"),
            (
                "url starts with \"https://a b/\"",
                "check if arg(\"/url\", $v), $v.starts_with(\"https://a b/\")",
            ),
            (
                "mode in r, \"a,b\", 3",
                "check if arg(\"/mode\", \"r\") or arg(\"/mode\", \"a,b\") or arg(\"/mode\", 3)",
            ),
            (
                "check if trust($t), $t >= 50",
                "check if trust($t), $t >= 50",
            ),
        ] {
            match compiled(clause) {
                Ok(found) => assert_eq!(found, [checks], "{clause}"),
                Err(error) => assert!(checks.is_empty(), "{clause}: {error}"),
            }
        }
        let here = "$p == \"/path\" || $p.starts_with(\"/path/\")";
        assert_eq!(
            compiled("path under /srv/reports/").unwrap(),
            [
                "check if path(\"/path\", $v) or path($p, $v), $p.starts_with(\"/path/\")"
                    .to_owned(),
                format!(
                    "reject if path($p, $v), {here}, $v != \"/srv/reports\", !$v.starts_with(\"/srv/reports/\")"
                ),
                format!("reject if odd_arg($p), {here}"),
            ]
        );
    }

    #[test]
    fn a_clause_that_no_call_could_satisfy_is_an_error_when_it_is_written() {
        let long = format!("mode == {}", "x".repeat(ARGUMENT_STRING_MAX + 1));
        for clause in [
            "",
            "path",
            "path under",
            "path under srv",
            "path under /srv/../etc",
            "path under //srv",
            "path under /a b",
            "pa th under /srv",
            "path below /srv",
            "size < \"100\"",
            "size < big",
            "mode starts with \"\"",
            "mode starts with 3",
            "mode in",
            "mode in a b",
            "mode in a,",
            "mode == \"r",
            "mode == \"r\\n\"",
            "a..b == 1",
            "/a~2 == 1",
            "size > 9223372036854775807",
            "check if arg(\"mode\", \"r\")",
            "path under ../srv",
            "path under \"\"",
            "path under /srv/./a",
            "check if trust($s), $s > 100",
            "check if path(\"/path\", \"/srv/../etc\")",
            "check if arg(\"/n\", $v), $v < 3, $v > 5",
            &long,
        ] {
            assert!(Check::where_clause(clause).is_err(), "{clause:?}");
        }
    }
}
