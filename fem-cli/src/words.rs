//! A token's conditions in plain words, where they have some; else the Datalog that they are.
//!
//! Words are shown only for a condition that compiles back to exactly the same checks, so what is read
//! is what is enforced.

use proto_spec::capability::Check;

/// Conditions as people write them after `--where`, and times and capabilities in words.
pub(crate) fn conditions(checks: &[Check]) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = checks;
    while let [first, after @ ..] = rest {
        if let Some((clause, length)) = path_clause(rest) {
            words.push(clause);
            rest = &rest[length..];
            continue;
        }
        words.push(one(first));
        rest = after;
    }
    words
}

/// The same for checks that came as text; what is no check is shown as it came.
pub(crate) fn conditions_of_text(texts: &[String]) -> Vec<String> {
    let read: Result<Vec<Check>, _> = texts.iter().map(|text| text.parse()).collect();
    read.map_or_else(|_| texts.to_vec(), |checks| conditions(&checks))
}

/// `path under /srv/reports`, where the list begins with exactly the checks that it stands for: which
/// argument and which directory stands in them, and compiling that gives them again.
fn path_clause(checks: &[Check]) -> Option<(String, usize)> {
    let [first, second, ..] = checks else {
        return None;
    };
    let pointer = literals(&first.to_string()).into_iter().next()?;
    let clause = |directory: String| {
        let again = Check::path_under(&pointer, &directory).ok()?;
        let words = format!("{} under {}", field(&pointer), value(&directory));
        checks.starts_with(&again).then_some((words, again.len()))
    };
    literals(&second.to_string()).into_iter().find_map(clause)
}

/// The quoted texts of a check, in their order.
fn literals(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('"') {
        let Some((string, after)) = leading_string(&rest[start..]) else {
            break;
        };
        found.push(string);
        rest = after;
    }
    found
}

/// A value as it is written after `--where`: bare where it can be.
fn value(text: &str) -> String {
    let bare = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b',' | b'\\');
    if text.bytes().all(bare) {
        text.into()
    } else {
        format!("{text:?}")
    }
}

fn one(check: &Check) -> String {
    let text = check.to_string();
    match check.is_time_limit().then(|| time_limit(&text)).flatten() {
        Some(words) => words,
        None => in_words(&text).unwrap_or(text),
    }
}

/// The text of a check that is a limit and nothing else: whatever its variable is called.
fn time_limit(text: &str) -> Option<String> {
    let (_, limit) = text.split_once("), $")?;
    match limit.split_once(" < ") {
        Some((_, end)) => Some(format!("before {end}")),
        None => Some(format!("from {} on", limit.split_once(" >= ")?.1)),
    }
}

fn in_words(text: &str) -> Option<String> {
    if let Some(rest) = text.strip_prefix("check if covers(") {
        let each = rest.strip_suffix(')')?.split(") or covers(");
        let patterns: Option<Vec<String>> = each.map(|p| serde_json::from_str(p).ok()).collect();
        return Some(format!("only {}", patterns?.join(", ")));
    }
    if let Some(clause) = provider_clause(text) {
        return Some(clause);
    }
    let clause = argument_clause(text)?;
    let [again] = Check::where_clause(&clause).ok()?.try_into().ok()?;
    (again.to_string() == text).then_some(clause)
}

/// `provider is files or build-*`: whose tools a peer's agents may use.
fn provider_clause(text: &str) -> Option<String> {
    let each = text.strip_prefix("check if ")?.split(" or ").map(|one| {
        let (literal, star) = match one.strip_prefix("provider($p), $p.starts_with(") {
            Some(rest) => (rest, "*"),
            None => (one.strip_prefix("provider(")?, ""),
        };
        let name: String = serde_json::from_str(literal.strip_suffix(')')?).ok()?;
        Some(format!("{name}{star}"))
    });
    Some(format!(
        "provider is {}",
        each.collect::<Option<Vec<_>>>()?.join(" or ")
    ))
}

/// `mode == "r"` and its like.
fn argument_clause(text: &str) -> Option<String> {
    let rest = text.strip_prefix("check if arg(")?;
    let (pointer, rest) = leading_string(rest)?;
    let field = field(&pointer);
    if let Some(condition) = rest.strip_prefix(", $v), $v") {
        if let Some(operation) = condition.strip_prefix('.') {
            let (method, value) = operation.strip_suffix(')')?.split_once('(')?;
            return Some(format!("{field} {} {value}", method.replace('_', " ")));
        }
        return Some(format!("{field}{condition}"));
    }
    let values = rest.strip_prefix(", ")?.strip_suffix(')')?;
    let or = format!(
        ") or arg({}, ",
        text.strip_prefix("check if arg(")?.strip_suffix(rest)?
    );
    match values.replace(&or, ", ") {
        several if several != values => Some(format!("{field} in {several}")),
        one => Some(format!("{field} == {one}")),
    }
}

/// `/options/depth` as `options.depth` where the grammar can say it so.
fn field(pointer: &str) -> String {
    let name = |n: &str| {
        !n.is_empty()
            && n.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    match pointer.strip_prefix('/') {
        Some(names) if names.split('/').all(name) => names.replace('/', "."),
        _ => pointer.into(),
    }
}

/// The quoted text that `text` begins with, and what follows it.
fn leading_string(text: &str) -> Option<(String, &str)> {
    let mut strings = serde_json::Deserializer::from_str(text).into_iter::<String>();
    let string = strings.next()?.ok()?;
    Some((string, text.get(strings.byte_offset()..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_read_as_they_were_written() {
        for clause in [
            "path under /srv/reports",
            "options.dir under /",
            "path under \"/srv/a b\"",
            "mode == \"r\"",
            "mode != \"w\"",
            "size <= 100",
            "name starts with \"a b\"",
            "name ends with \".csv\"",
            "name contains \"x\"",
            "mode in \"r\", \"a, b\", 3",
        ] {
            let checks = Check::where_clause(clause).unwrap();
            assert_eq!(conditions(&checks), [clause], "{clause}");
        }
    }

    #[test]
    fn times_and_capabilities_read_as_sentences() {
        let texts = [
            "check if time($t), $t < 2027-01-15T08:00:00Z",
            "check if covers(\"file.read.*\") or covers(\"x\")",
            "check if provider(\"files@acme\") or provider($p), $p.starts_with(\"build-\")",
        ];
        let checks: Vec<Check> = texts.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(
            conditions(&checks),
            [
                "before 2027-01-15T08:00:00Z",
                "only file.read.*, x",
                "provider is files@acme or build-*"
            ]
        );
    }

    #[test]
    fn what_is_not_exactly_the_clause_is_shown_as_datalog() {
        let mut checks = Check::where_clause("path under /srv").unwrap();
        checks.remove(2);
        let shown = conditions(&checks);
        let datalog = |line: &String| line.parse::<Check>().is_ok();
        assert!(shown.len() == 2 && shown.iter().all(datalog), "{shown:?}");
        for text in [
            "check if trust($t), $t >= 50",
            "check if time($t), $t < 2027-01-15T08:00:00Z || true",
            "check if arg(\"/mode\", \"r\") or arg(\"/other\", \"w\")",
        ] {
            assert_eq!(conditions(&[text.parse().unwrap()]), [text]);
        }
    }
}
