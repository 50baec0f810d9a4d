//! Laws of patterns, against what they mean: sets of capabilities.

#![expect(clippy::unwrap_used, reason = "a failing test panics")]

use std::collections::BTreeSet;
use std::sync::LazyLock;

use proptest::prelude::*;
use proto_spec::{Capability, Pattern};

mod fixture;
use fixture::laws;

const SEGMENTS: [&str; 4] = ["a", "b", "ab", "admin"];
/// Segments of a pattern before its star at most: every pattern then has capabilities of one segment more.
const DEPTH: usize = 3;

fn pattern() -> impl Strategy<Value = Pattern> {
    let segments =
        proptest::collection::vec(proptest::sample::select(SEGMENTS.to_vec()), 1..=DEPTH);
    let named = (segments, any::<bool>()).prop_map(|(segments, is_prefix)| {
        let star = if is_prefix { ".*" } else { "" };
        format!("{}{star}", segments.join(".")).parse().unwrap()
    });
    prop_oneof![9 => named, 1 => Just("*".parse::<Pattern>().unwrap())]
}

/// Every capability of at most one segment more than a pattern has.
static CAPABILITIES: LazyLock<Vec<Pattern>> = LazyLock::new(|| {
    let mut all: Vec<String> = Vec::new();
    let mut longest = vec![String::new()];
    for _ in 0..=DEPTH {
        let longer = |text: &String| SEGMENTS.map(|segment| format!("{text}.{segment}"));
        longest = longest.iter().flat_map(longer).collect();
        all.extend_from_slice(&longest);
    }
    let read = |text: &String| text[1..].parse::<Capability>().unwrap().into();
    all.iter().map(read).collect()
});

/// What a pattern means, told without the code under test: segment by segment.
fn meant(pattern: &Pattern) -> BTreeSet<&'static Pattern> {
    let wanted: Vec<&str> = pattern.as_str().split('.').collect();
    let means = |capability: &&Pattern| {
        let given: Vec<&str> = capability.as_str().split('.').collect();
        match wanted.as_slice() {
            ["*"] => given[0] != "admin",
            [prefix @ .., "*"] => given.len() > prefix.len() && given.starts_with(prefix),
            exactly => given == exactly,
        }
    };
    CAPABILITIES.iter().filter(means).collect()
}

proptest! {
    #![proptest_config(laws(1_024))]

    #[test]
    fn covers_is_a_partial_order(a in pattern(), b in pattern(), c in pattern()) {
        prop_assert!(a.covers(&a));
        prop_assert!(!(a.covers(&b) && b.covers(&a)) || a == b, "{a} {b}");
        prop_assert!(!(a.covers(&b) && b.covers(&c)) || a.covers(&c), "{a} {b} {c}");
    }

    #[test]
    fn covers_is_what_the_sets_of_capabilities_say(a in pattern(), b in pattern()) {
        prop_assert_eq!(a.covers(&b), meant(&a).is_superset(&meant(&b)), "{} {}", a, b);
    }

    #[test]
    fn covers_agrees_with_the_facts_that_a_policy_joins_with(a in pattern(), b in pattern()) {
        let facts: Vec<Pattern> = b.covered_by().collect();
        prop_assert_eq!(a.covers(&b), facts.contains(&a), "{} {}", a, b);
        prop_assert!(facts.iter().all(|fact| fact.covers(&b)));
        prop_assert_eq!(facts.iter().collect::<BTreeSet<_>>().len(), facts.len());
        prop_assert_eq!(facts.first(), Some(&b));
    }

    #[test]
    fn what_two_patterns_have_in_common_is_the_narrower_of_them(a in pattern(), b in pattern()) {
        prop_assert_eq!(a.overlap(&b), b.overlap(&a));
        prop_assert_eq!(a.overlap(&a), Some(&a));
        let both: BTreeSet<_> = meant(&a).intersection(&meant(&b)).copied().collect();
        prop_assert_eq!(a.overlap(&b).map(meant).unwrap_or_default(), both, "{} {}", a, b);
    }

    #[test]
    fn a_pattern_reads_back_as_itself(a in pattern()) {
        prop_assert_eq!(a.to_string().parse::<Pattern>(), Ok(a));
    }
}
