//! A picture as SVG: one document that runs nothing and fetches nothing.

use std::fmt::Write as _;

use super::layout::{BEND, End, Layout, Line, MARGIN, NODE_WIDTH, Place, Side};
use super::{Level, Picture};

/// Characters of a name that fit into a node.
const NAME_CHARS: usize = 22;

impl Picture {
    /// The picture as an SVG document. It is the same for the same picture, whoever draws it.
    #[must_use]
    pub fn svg(&self) -> String {
        let layout = Layout::of(self);
        let mut svg = String::new();
        open(&mut svg, self, &layout);
        let (best, others): (Vec<_>, Vec<_>) =
            layout.lines.iter().partition(|line| line.arrow.best);
        for line in others.into_iter().chain(best) {
            draw_line(&mut svg, line);
        }
        for place in &layout.nodes {
            draw_node(&mut svg, place);
        }
        svg + "</svg>\n"
    }
}

fn open(svg: &mut String, picture: &Picture, layout: &Layout<'_>) {
    let Layout { width, height, .. } = layout;
    let caption = escaped(&picture.caption);
    let note = escaped(&picture.note().unwrap_or_default());
    let foot = height - MARGIN / 2;
    let _ = writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif" font-size="11">
<title>{caption}</title>
<rect width="{width}" height="{height}" fill="#ffffff"/>
<text x="{MARGIN}" y="30" font-size="16" font-weight="bold">{caption}</text>
<text x="{MARGIN}" y="{foot}" fill="#555555">{note}</text>"##
    );
}

fn draw_line(svg: &mut String, line: &Line<'_>) {
    let [from, to] = line.ends;
    let (colour, stroke, weight) = if line.arrow.best {
        ("#0b4fb3", 3, "bold")
    } else {
        ("#8a8f98", 1, "normal")
    };
    let is_forward = from.side == Side::Right && to.side == Side::Left;
    let dashes = if is_forward {
        ""
    } else {
        r#" stroke-dasharray="5 3""#
    };
    let (away, anchor) = match to.side {
        Side::Left => (-1, "end"),
        Side::Right => (1, "start"),
    };
    // The head is a triangle of its own: not every viewer colours markers.
    let (neck, label) = (to.x + 8 * away, to.x + 12 * away);
    let (trustor, trustee) = (line.arrow.trustor.as_str(), line.arrow.trustee.as_str());
    let _ = writeln!(
        svg,
        r##"<g><title>{trustor} trusts {trustee}: {trust}</title><path d="M{x} {y}C{bent} {y} {arriving} {to_y} {neck} {to_y}" fill="none" stroke="{colour}" stroke-width="{stroke}"{dashes}/><path d="M{to_x} {to_y}L{neck} {above}L{neck} {below}z" fill="{colour}"/><text x="{label}" y="{below}" text-anchor="{anchor}" font-weight="{weight}" fill="#222222" stroke="#ffffff" stroke-width="3" paint-order="stroke">{trust}</text></g>"##,
        trustor = escaped(trustor),
        trustee = escaped(trustee),
        trust = line.arrow.trust,
        x = from.x,
        y = from.y,
        to_x = to.x,
        to_y = to.y,
        above = to.y - 4,
        below = to.y + 4,
        bent = bent(from),
        arriving = bent(to),
    );
}

fn bent(end: End) -> i32 {
    match end.side {
        Side::Left => end.x - BEND,
        Side::Right => end.x + BEND,
    }
}

fn draw_node(svg: &mut String, place: &Place<'_>) {
    let Place { node, x, y, height } = place;
    let (fill, border, dashes) = look(node.level);
    let score = node
        .value
        .map_or_else(String::new, |value| format!(" · {value}"));
    let (centre, middle) = (x + NODE_WIDTH / 2, place.middle());
    let _ = writeln!(
        svg,
        r##"<g><title>{name}: {level}{score}</title><rect x="{x}" y="{y}" width="{NODE_WIDTH}" height="{height}" rx="6" fill="{fill}" stroke="{border}" stroke-width="1.5"{dashes}/><text x="{centre}" y="{upper}" text-anchor="middle" font-size="13" font-weight="bold">{short}</text><text x="{centre}" y="{lower}" text-anchor="middle" fill="#333333">{level}{score}</text></g>"##,
        name = escaped(node.org.as_str()),
        short = escaped(&shortened(node.org.as_str())),
        level = node.level,
        upper = middle - 3,
        lower = middle + 13,
    );
}

/// Fill, border and dashes: no level is told by its colour alone.
fn look(level: Level) -> (&'static str, &'static str, &'static str) {
    match level {
        Level::System => ("#dbe7ff", "#0b4fb3", ""),
        Level::Trusted => ("#d9f2e0", "#1b7f3b", ""),
        Level::Partner => ("#fff3cf", "#a06a00", ""),
        Level::External => ("#f3f4f6", "#6b7280", r#" stroke-dasharray="5 3""#),
        Level::Revoked => ("#fde2e1", "#b3261e", r#" stroke-dasharray="2 3""#),
    }
}

/// As much of a name as fits; all of it stands in the tooltip.
fn shortened(name: &str) -> String {
    if name.chars().count() <= NAME_CHARS {
        return name.into();
    }
    name.chars().take(NAME_CHARS - 1).chain(['…']).collect()
}

/// Text that is nothing but text, inside an element or a quoted attribute.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML has no place for these, escaped or not.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_becomes_markup() {
        assert_eq!(
            escaped("<script x=\"'&\u{0}\">"),
            "&lt;script x=&quot;&#39;&amp;\u{fffd}&quot;&gt;"
        );
    }

    #[test]
    fn a_long_name_is_cut_where_a_node_ends() {
        assert_eq!(shortened(&"a".repeat(22)), "a".repeat(22));
        assert_eq!(shortened(&"a".repeat(23)), "a".repeat(21) + "…");
    }
}
