//! What goes to standard output: text for people, or one JSON value with `--json`.
//!
//! Names, notes, descriptions and messages were written by others. They are shown with everything
//! escaped that a terminal would obey instead of show.

use std::io::{IsTerminal as _, Write as _};

use serde::Serialize;

use crate::failure::Outcome;

/// Where a command's answer goes, and in which form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// One JSON value instead of text.
    pub(crate) json: bool,
}

impl Output {
    /// Prints lines for people, or `value` for programs.
    pub(crate) fn give(self, value: &impl Serialize, text: impl FnOnce() -> String) -> Outcome {
        if self.json {
            json(value)
        } else {
            print(&text())
        }
    }

    /// Prints a listing: a table for people, or `value` for programs.
    pub(crate) fn list(self, value: &impl Serialize, table: impl FnOnce() -> Table) -> Outcome {
        self.give(value, || table().to_string())
    }
}

/// One JSON value on one line. Control characters are escaped by JSON itself.
pub(crate) fn json(value: &impl Serialize) -> Outcome {
    print(&serde_json::to_string(value)?)
}

/// Writes one text and a line end; nothing for no text. A reader that went away (`| head`) is no
/// failure of ours.
pub(crate) fn print(text: &str) -> Outcome {
    if text.is_empty() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// For people who wait: standard error, so that what is piped on stays clean.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Shows what others wrote: whatever a terminal would obey, or that would hide or reorder text,
/// becomes `\u{…}`. Line ends become `\n`: one value stays one line.
pub(crate) fn escape(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push_str("\\t"),
            '\r' => shown.push_str("\\r"),
            c if c.is_control() || is_invisible(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// Like [`escape`], but several lines stay several lines.
pub(crate) fn escape_lines(text: &str) -> String {
    text.lines().map(escape).collect::<Vec<_>>().join("\n")
}

/// Characters that show nothing, or change how others are shown: marks of direction, joiners, tags.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// A table for people: as wide as it needs, never wider than the terminal.
pub(crate) struct Table {
    table: comfy_table::Table,
    empty: &'static str,
}

impl Table {
    /// A table with these headings, and what to say when there is nothing in it.
    pub(crate) fn new(headings: &[&str], empty: &'static str) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
        table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
        Self { table, empty }
    }

    /// Adds a row; every cell is escaped here.
    pub(crate) fn row<S: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.table
            .add_row(cells.into_iter().map(|cell| match cell.as_ref() {
                "" => "-".to_owned(),
                text => escape(text),
            }));
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.table.is_empty() {
            return f.write_str(self.empty);
        }
        for line in self.table.to_string().lines() {
            writeln!(f, "{}", line.strip_prefix(' ').unwrap_or(line).trim_end())?;
        }
        Ok(())
    }
}

/// Several values in one cell; a dash for none.
pub(crate) fn join<T: ToString>(values: &[T]) -> String {
    match values {
        [] => "-".into(),
        some => some
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" "),
    }
}

/// Colours, where they help: on a terminal, unless `NO_COLOR` asks for none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint(bool);

impl Paint {
    /// For standard output.
    pub(crate) fn stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self(wanted && std::io::stdout().is_terminal())
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.into()
        }
    }

    /// Good news.
    pub(crate) fn good(self, text: &str) -> String {
        self.with("32", text)
    }
    /// What to look at.
    pub(crate) fn warn(self, text: &str) -> String {
        self.with("33", text)
    }
    /// Bad news.
    pub(crate) fn bad(self, text: &str) -> String {
        self.with("31", text)
    }
    /// A heading.
    pub(crate) fn strong(self, text: &str) -> String {
        self.with("1", text)
    }
    /// An aside.
    pub(crate) fn faint(self, text: &str) -> String {
        self.with("2", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        let cases = [
            ("\x1b]0;owned\x07", r"\u{1b}]0;owned\u{7}"),
            ("a\nb\tc\r", r"a\nb\tc\r"),
            ("\u{9b}31m", r"\u{9b}31m"),
            ("pay\u{202e}lla", r"pay\u{202e}lla"),
            ("zero\u{200b}width", r"zero\u{200b}width"),
            ("Zoë 北京", "Zoë 北京"),
        ];
        for (text, shown) in cases {
            assert_eq!(escape(text), shown);
        }
    }

    #[test]
    fn a_cell_stays_one_line_whatever_it_holds() {
        let mut table = Table::new(&["name", "note"], "nobody");
        table.row(["files", "first\nsecond\x1b[2J"]);
        table.row(["x", ""]);
        let shown = table.to_string();
        assert_eq!(shown.lines().count(), 3, "{shown}");
        assert!(
            shown.starts_with("NAME") && shown.contains(r"first\nsecond\u{1b}[2J"),
            "{shown}"
        );
    }

    #[test]
    fn an_empty_table_says_so() {
        assert_eq!(
            Table::new(&["name"], "Nobody is registered yet.").to_string(),
            "Nobody is registered yet."
        );
    }
}
