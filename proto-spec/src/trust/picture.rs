//! What of a graph is shown: who stands near, how they stand, and the best path.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::capability::Pattern;
use crate::identity::Org;
use crate::limits::{PICTURE_ARROWS_MAX, PICTURE_NODES_MAX, TRUST_HOPS_MAX};
use crate::message::{Arrow, Node, Picture, Score};
use crate::time::Timestamp;

use super::TrustGraph;
use super::score::Asked;

impl TrustGraph {
    /// What can be seen from `from`, for what `capability` permits: whoever is at most three statements
    /// away, the nearest first. Where `to` is given, the best path to it is in the picture in any case.
    ///
    /// Costs a score for each organisation in it.
    #[must_use]
    pub fn picture(
        &self,
        from: &Org,
        to: Option<&Org>,
        capability: Option<&Pattern>,
        now: Timestamp,
    ) -> Picture {
        let asked = Asked { capability, now };
        let path = self.best_path(from, to, asked);
        let near = self.near(from, asked);
        let mut shown: Vec<(&Org, u8)> = near.into_iter().collect();
        shown.sort_by_key(|(org, hops)| (!path.contains(*org), *hops, *org));
        let nodes_left_out = shown.len().saturating_sub(PICTURE_NODES_MAX);
        shown.truncate(PICTURE_NODES_MAX);
        shown.sort_by_key(|(org, hops)| (*hops, *org));
        let node = |(org, hops): &(&Org, u8)| self.node(from, org, *hops, asked);
        let nodes = shown.iter().map(node).collect();
        let (arrows, arrows_left_out) = self.arrows(&shown.into_iter().collect(), &path, asked);
        Picture {
            caption: caption(from, to, capability),
            nodes,
            arrows,
            nodes_left_out,
            arrows_left_out,
        }
    }

    /// Everybody on the best path, in order; `from` alone where there is none.
    fn best_path(&self, from: &Org, to: Option<&Org>, asked: Asked<'_>) -> Vec<Org> {
        let score = to.and_then(|to| self.score(from, to, asked.capability, asked.now));
        let hops = score
            .and_then(|score| score.paths.into_iter().next())
            .map(|path| path.hops);
        let reached = hops.into_iter().flatten().map(|hop| hop.trustee);
        std::iter::once(from.clone()).chain(reached).collect()
    }

    /// Who is at most three statements away, and how many.
    fn near<'g>(&'g self, from: &'g Org, asked: Asked<'g>) -> BTreeMap<&'g Org, u8> {
        let mut found = BTreeMap::from([(from, 0)]);
        let mut edge = vec![from];
        for hops in (1..).take(TRUST_HOPS_MAX) {
            let words = edge.iter().flat_map(|org| self.words_of(org));
            let words = words.filter(|word| word.counts(asked));
            let next: BTreeSet<&Org> = words.map(|word| word.trustee).collect();
            edge = next
                .into_iter()
                .filter(|org| !found.contains_key(org))
                .collect();
            found.extend(edge.iter().map(|org| (*org, hops)));
        }
        found
    }

    fn node(&self, from: &Org, org: &Org, hops: u8, asked: Asked<'_>) -> Node {
        let score = self.score(from, org, asked.capability, asked.now);
        Node {
            org: org.clone(),
            level: self.standing(org, score.as_ref()),
            value: score.map(|Score { value, .. }| value),
            hops,
        }
    }

    /// The statements between these, and how many there is no place for. First come those of the best
    /// path, then those that lead outwards: they show how everybody is reached.
    fn arrows(
        &self,
        shown: &BTreeMap<&Org, u8>,
        path: &[Org],
        asked: Asked<'_>,
    ) -> (Vec<Arrow>, usize) {
        let words = shown.keys().flat_map(|org| self.words_of(org));
        let words = words.filter(|word| word.counts(asked));
        let arrows = words
            .filter(|word| shown.contains_key(word.trustee))
            .map(|word| Arrow {
                trustor: word.trustor.clone(),
                trustee: word.trustee.clone(),
                trust: word.trust,
                best: path
                    .windows(2)
                    .any(|hop| hop[0] == *word.trustor && hop[1] == *word.trustee),
            });
        let mut arrows: Vec<Arrow> = arrows.collect();
        arrows.sort_by_cached_key(|arrow| {
            let (near, far) = (shown.get(&arrow.trustor), shown.get(&arrow.trustee));
            (
                !arrow.best,
                near >= far,
                near.copied(),
                Reverse(arrow.trust),
            )
        });
        let left_out = arrows.len().saturating_sub(PICTURE_ARROWS_MAX);
        arrows.truncate(PICTURE_ARROWS_MAX);
        (arrows, left_out)
    }
}

fn caption(from: &Org, to: Option<&Org>, capability: Option<&Pattern>) -> String {
    let whom = to.map_or_else(String::new, |to| format!(" in {to}"));
    let what = capability.map_or_else(String::new, |what| format!(" for {what}"));
    format!("Trust of {from}{whom}{what}")
}

impl Picture {
    /// What there was no place for, in words; nothing where all is shown.
    pub(super) fn note(&self) -> Option<String> {
        let (nodes, arrows) = (self.nodes_left_out, self.arrows_left_out);
        (nodes > 0 || arrows > 0)
            .then(|| format!("Not shown: {nodes} organisations, {arrows} statements."))
    }
}
