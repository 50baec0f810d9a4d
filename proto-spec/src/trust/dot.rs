//! A picture as text for Graphviz.

use std::fmt::Write as _;

use super::{Level, Picture};

impl Picture {
    /// The picture in the DOT language.
    #[must_use]
    pub fn dot(&self) -> String {
        let mut dot = String::from("digraph trust {\n  rankdir=LR;\n  node [shape=box];\n");
        let caption = [Some(self.caption.clone()), self.note()];
        let caption = caption.into_iter().flatten().collect::<Vec<_>>().join("\n");
        line(&mut dot, &format!("label={};", quoted(&caption)));
        for node in &self.nodes {
            let name = quoted(node.org.as_str());
            let score = node
                .value
                .map_or_else(String::new, |value| format!(" {value}"));
            let label = quoted(&format!("{}\n{}{score}", node.org, node.level));
            line(
                &mut dot,
                &format!("{name} [label={label}{}];", border(node.level)),
            );
        }
        for arrow in &self.arrows {
            let (trustor, trustee) = (
                quoted(arrow.trustor.as_str()),
                quoted(arrow.trustee.as_str()),
            );
            let best = if arrow.best { ", penwidth=3" } else { "" };
            let trust = arrow.trust;
            line(
                &mut dot,
                &format!("{trustor} -> {trustee} [label=\"{trust}\"{best}];"),
            );
        }
        dot + "}\n"
    }
}

fn line(dot: &mut String, text: &str) {
    let _ = writeln!(dot, "  {text}");
}

fn border(level: Level) -> &'static str {
    match level {
        Level::System => ", peripheries=2",
        Level::Trusted | Level::Partner => "",
        Level::External => ", style=dashed",
        Level::Revoked => ", style=dotted",
    }
}

/// A string of the DOT language, in which nothing but `\n` is an escape of Graphviz's.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            c if c.is_control() => quoted.push('\u{fffd}'),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_ends_a_dot_string_before_its_end() {
        assert_eq!(
            quoted("a\"];b\\\"\u{1}\n"),
            r#""a\"];b\\\""#.to_owned() + "\u{fffd}\\n\""
        );
        assert_eq!(quoted("\\"), r#""\\""#);
    }
}
