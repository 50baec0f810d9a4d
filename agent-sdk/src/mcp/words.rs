//! Others' words, as far as people are shown them.

/// How a text begins, with everything escaped that a terminal would obey.
pub(super) fn escaped(text: &str, chars_max: usize) -> String {
    beginning(text, chars_max).escape_debug().to_string()
}

/// The same in quotation marks.
pub(super) fn quoted(text: &str, chars_max: usize) -> String {
    format!("{:?}", beginning(text, chars_max))
}

/// How a text begins, to be written with `?`: it may hold anything.
pub(super) fn beginning(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).collect()
}
