//! What a revocation strikes, in words: the blast radius.

use proto_spec::message::Struck;

use crate::output::join;

/// Ids and names that a line spells out; `--json` has them all.
const SPELT_OUT: usize = 8;

/// One line each: agents, grants, sessions, calls.
pub(crate) fn in_words(struck: &Struck) -> String {
    format!(
        "agents    {}\ngrants    {}\nsessions  {}\ncalls     {}",
        counted(struck.agents.len() as u64, &struck.agents),
        counted(struck.tokens, &struck.ids),
        struck.sessions,
        struck.calls,
    )
}

/// `2: build-1 build-2`, with as many as fit a line.
fn counted<T: ToString>(count: u64, some: &[T]) -> String {
    let shown = &some[..some.len().min(SPELT_OUT)];
    let more = count.saturating_sub(shown.len() as u64);
    match (shown, more) {
        ([], _) => count.to_string(),
        (_, 0) => format!("{count}: {}", join(shown)),
        _ => format!("{count}: {} and {more} more", join(shown)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_blast_is_counted_and_spelt_out_in_part() {
        let names = |n: usize| (0..n).map(|n| format!("a{n}").parse().unwrap()).collect();
        let struck = |n: usize| Struck {
            agents: names(n),
            sessions: 2,
            ..Struck::default()
        };
        let two = in_words(&struck(2));
        assert!(two.starts_with("agents    2: a0 a1\ngrants    0\nsessions  2\n"));
        assert!(in_words(&struck(30)).contains("a7 and 22 more"));
    }
}
