//! The log: one line an outcome, to standard error.
//!
//! What others said may stand in any field: a peer's reason, an MCP server's words, an error that quotes what
//! it read. `Lines` is where all of it passes, so that nobody has to think of it where an event is written.

use std::io::{self, Write};

use serde_json::Value;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Characters of a line; more than the longest that has only words of ours.
const LINE_CHARS_MAX: usize = 4_096;
/// Characters of one text in a JSON line that would be longer.
const TEXT_CHARS_MAX: usize = 256;

/// Starts logging at `info`, or as `FEM_LOG` says (`debug`, `broker=debug,warn`, …). Tokens, keys and
/// contents of messages are never logged. One event is one line, which a terminal shows and does not obey.
pub fn start(json: bool) {
    let filter = EnvFilter::try_from_env("FEM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Lines(io::stderr))
        .with_target(false);
    // A second start in one process, as tests do, keeps the first.
    let _ = if json {
        log.json().try_init()
    } else {
        log.with_ansi(false).try_init()
    };
}

/// Writers of events, each of which is one line whatever stands in it.
struct Lines<M>(M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Lines<M> {
    type Writer = Line<M::Writer>;
    fn make_writer(&'a self) -> Self::Writer {
        Line(self.0.make_writer())
    }
}

/// Writes one event: it comes whole, with one line end behind it.
struct Line<W>(W);

impl<W: Write> Write for Line<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let mut line = shown(text.strip_suffix('\n').unwrap_or(&text));
        line.push('\n');
        self.0.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// An event with everything escaped that a terminal would obey, or that would hide or reorder text; and cut.
/// Escapes are JSON's, so that a line of JSON stays one.
fn shown(event: &str) -> String {
    let line = escaped(event);
    match line.char_indices().nth(LINE_CHARS_MAX) {
        None => line,
        Some((end, _)) => match serde_json::from_str(&line) {
            Ok(Value::Object(mut fields)) => {
                fields.values_mut().for_each(shorten);
                // What was read has its escapes no more.
                escaped(&Value::Object(fields).to_string())
            }
            _ => format!("{}…", &line[..end]),
        },
    }
}

fn escaped(event: &str) -> String {
    let mut line = String::with_capacity(event.len());
    for c in event.chars() {
        match c {
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            // What only Rust would escape.
            '"' | '\'' | '\\' => line.push(c),
            c if c.escape_debug().len() > 1 => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    line.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => line.push(c),
        }
    }
    line
}

/// Cuts every text in a value.
fn shorten(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some((end, _)) = text.char_indices().nth(TEXT_CHARS_MAX) {
                text.truncate(end);
                text.push('…');
            }
        }
        Value::Object(fields) => fields.values_mut().for_each(shorten),
        Value::Array(list) => list.iter_mut().for_each(shorten),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Every session is a descriptor: takes as many as the system gives.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Where a test's log goes.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What stands in the log, in the one form or the other, after `event`.
    fn logged(json: bool, event: impl FnOnce()) -> String {
        let sink = Sink::default();
        let to = sink.clone();
        let log = tracing_subscriber::fmt()
            .with_writer(Lines(move || to.clone()))
            .with_target(false);
        if json {
            tracing::subscriber::with_default(log.json().finish(), event);
        } else {
            tracing::subscriber::with_default(log.with_ansi(false).finish(), event);
        }
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    /// Words that forge a line, clear a screen in two ways, set a title, reorder and hide.
    const HOSTILE: &str =
        "no\n2026 ERROR forged\r\x1b[2J\u{9b}2J\x1b]0;owned\x07 pay\u{202e}lla\u{200b}\u{e0041}";

    #[test]
    fn whatever_others_said_a_line_of_the_log_is_one_line_that_a_terminal_only_shows() {
        let long = HOSTILE.to_owned() + &"x".repeat(LINE_CHARS_MAX);
        for (json, also) in [(false, ""), (true, ""), (false, &*long), (true, &*long)] {
            let said = logged(json, || {
                tracing::warn!(why = %HOSTILE, reason = ?HOSTILE, text = HOSTILE, also, "{HOSTILE}");
            });
            let line = said.strip_suffix('\n').unwrap();
            let obeyed = |c: char| c.is_control() || "\u{202e}\u{200b}\u{e0041}".contains(c);
            assert!(!line.contains(obeyed), "{line:?}");
            assert!(line.contains("forged") && line.contains("owned"), "{line}");
        }
    }

    #[test]
    fn what_was_said_is_read_again_from_a_line_of_json() {
        let said = logged(true, || {
            tracing::warn!(text = HOSTILE, "Zoë's \"北京\" \\ C:");
        });
        let line: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(line["fields"]["text"], HOSTILE);
        assert_eq!(line["fields"]["message"], "Zoë's \"北京\" \\ C:");
    }

    #[test]
    fn however_much_others_said_a_line_of_the_log_is_short_and_json_where_it_was() {
        let much = "\x1b".repeat(1 << 16);
        let write = || tracing::warn!(why = %much, peer = "globex", "no link");
        let line = logged(false, write);
        assert!(line.chars().count() <= LINE_CHARS_MAX + 2, "{}", line.len());
        let line: Value = serde_json::from_str(&logged(true, write)).unwrap();
        let why = line["fields"]["why"].as_str().unwrap();
        assert!(why.chars().count() == TEXT_CHARS_MAX + 1 && why.ends_with('…'));
        assert_eq!(line["fields"]["peer"], "globex");
    }
}
