//! What follows from what is said: the best path, and those beside it that explain it.
//!
//! A path is worth the product of its statements, and four fifths of that for every hop after the first.
//! This is the discounting of opinions along a chain of recommendations (Jøsang, Hayward and Pope,
//! *Trust Network Analysis with Subjective Logic*, 2006) with a price for length, and the best path
//! is a shortest path over the semiring (max, ×) of Theodorakopoulos and Baras, *Trust Evaluation in Ad-Hoc
//! Networks*, 2004. Three hops at most make the search exact and short: every statement is tried once at
//! most as the first or the middle of a path, and the last is looked up.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::capability::Pattern;
use crate::identity::Org;
use crate::limits::{TRUST_HOPS_MAX, TRUST_PATHS_MAX};
use crate::message::{Hop, Path, Score, Trust};
use crate::time::Timestamp;

use super::{Decision, Statement, TrustGraph};

/// What is left of a recommendation at the next hop, in percent.
const HOP_PERCENT: u64 = 80;

/// One percent. Two hops after the first divide by ten thousand each, so no path of three is ever rounded:
/// only what is shown is, downwards.
const UNIT: u64 = 100_000_000;

impl TrustGraph {
    /// How far `from` trusts `to` for what `capability` permits, or in general; nothing where no path is
    /// worth 1. An organisation trusts itself fully.
    ///
    /// Only statements that count at `now` are looked at. A path visits nobody twice, has at most
    /// [`TRUST_HOPS_MAX`] hops, and reaches whoever is no peer only by way of somebody who introduced them.
    /// What an admin decided holds for whoever asks.
    ///
    /// The work is bounded by the statements on record: no more paths are tried than there are of them.
    #[must_use]
    pub fn score(
        &self,
        from: &Org,
        to: &Org,
        capability: Option<&Pattern>,
        now: Timestamp,
    ) -> Option<Score> {
        if self.cap(from) == 0 {
            return None;
        }
        if from == to {
            return Some(Score {
                value: Trust::FULL.percent(),
                confidence: Trust::FULL.percent(),
                paths: Vec::new(),
            });
        }
        let asked = Asked { capability, now };
        let mut search = Search {
            graph: self,
            asked,
            to,
            last: self.words_about(to, asked),
            best: Vec::new(),
        };
        search.extend(&Trail::new(from));
        let paths: Vec<Path> = search.best.iter().map(Trail::explained).collect();
        let best = paths.first()?;
        Some(Score {
            value: best.value,
            confidence: best.confidence,
            paths,
        })
    }

    /// What `trustor` says, whether it counts or not: nothing of whom an admin revoked.
    pub(super) fn words_of<'g>(&'g self, trustor: &'g Org) -> impl Iterator<Item = Word<'g>> {
        let is_heard = self.cap(trustor) > 0;
        let said = is_heard.then(|| self.said.get(trustor)).flatten();
        let words = said
            .into_iter()
            .flatten()
            .filter_map(|(_, said)| self.word(said));
        let is_home = *trustor == self.home;
        let decided = is_home.then_some(&self.decisions).into_iter().flatten();
        words.chain(decided.filter_map(|(trustee, _)| self.decided(trustee)))
    }

    /// Whatever counts of what is said about `trustee`, by who says it.
    fn words_about<'g>(
        &'g self,
        trustee: &'g Org,
        asked: Asked<'_>,
    ) -> BTreeMap<&'g Org, Word<'g>> {
        let said = self.said.values().filter_map(|said| said.get(trustee));
        let words = said.filter_map(|statement| self.word(statement));
        let words = words
            .chain(self.decided(trustee))
            .filter(|word| word.counts(asked));
        words.map(|word| (word.trustor, word)).collect()
    }

    /// A statement, unless a decision stands in its place.
    fn word<'g>(&'g self, statement: &'g Statement) -> Option<Word<'g>> {
        let (trustor, trustee) = (statement.trustor(), statement.trustee());
        let is_replaced = *trustor == self.home && self.decided(trustee).is_some();
        (!is_replaced).then(|| Word {
            trustor,
            trustee,
            trust: statement.said().trust,
            statement: Some(statement),
        })
    }

    /// What an admin's decision says in place of a statement of the home organisation.
    fn decided<'g>(&'g self, trustee: &'g Org) -> Option<Word<'g>> {
        let is_system = self.decisions.get(trustee) == Some(&Decision::System);
        is_system.then_some(Word {
            trustor: &self.home,
            trustee,
            trust: Trust::FULL,
            statement: None,
        })
    }

    /// What a path may be worth when it reaches `org`, in percent.
    fn cap(&self, org: &Org) -> u64 {
        match self.decisions.get(org) {
            Some(Decision::Revoked) => 0,
            Some(Decision::AtMost(trust)) => u64::from(trust.percent()),
            Some(Decision::System) | None => 100,
        }
    }

    /// Whether somebody before it on a path answers for the key of `org`, or an admin does.
    fn is_known(&self, org: &Org, before: &[&Org]) -> bool {
        let introduced = |by: &&Org| self.peers.get(*by).is_some_and(|whom| whom.contains(org));
        *org == self.home || self.peers.contains_key(org) || before.iter().any(introduced)
    }
}

/// For what, and when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) capability: Option<&'a Pattern>,
    pub(super) now: Timestamp,
}

/// One thing that somebody says of another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word<'g> {
    pub(super) trustor: &'g Org,
    pub(super) trustee: &'g Org,
    pub(super) trust: Trust,
    /// Nothing where an admin decided it.
    pub(super) statement: Option<&'g Statement>,
}

impl Word<'_> {
    pub(super) fn counts(&self, asked: Asked<'_>) -> bool {
        let counts = |said: &Statement| said.counts(asked.capability, asked.now);
        self.statement.is_none_or(counts)
    }

    fn explained(&self) -> Hop {
        let said = self.statement.map(Statement::said);
        Hop {
            trustor: self.trustor.clone(),
            trustee: self.trustee.clone(),
            trust: self.trust,
            capabilities: said.map_or_else(Vec::new, |said| said.capabilities.clone()),
            expires: said.map(|said| said.expires),
        }
    }
}

/// A search for the best paths to one organisation.
struct Search<'g> {
    graph: &'g TrustGraph,
    asked: Asked<'g>,
    to: &'g Org,
    /// What is said about `to`, by who says it: so that the last hop is looked up.
    last: BTreeMap<&'g Org, Word<'g>>,
    /// Best first, never more than [`TRUST_PATHS_MAX`].
    best: Vec<Trail<'g>>,
}

impl<'g> Search<'g> {
    /// Offers every path that goes on from here.
    fn extend(&mut self, trail: &Trail<'g>) {
        if let Some(last) = self.last.get(trail.end) {
            self.offer(self.step(trail, *last));
        }
        if trail.hops + 1 >= TRUST_HOPS_MAX || !self.stands(trail) {
            return;
        }
        let mut words: Vec<Word<'g>> = self.graph.words_of(trail.end).collect();
        words.sort_by_key(|word| Reverse(word.trust));
        for word in words {
            // The strongest come first. Numbers are compared here, and conditions and introductions, which
            // cost more, where a path would be among the best.
            if self.is_hopeless(carry(trail.said(word.trust))) {
                break;
            }
            if word.trustee != self.to && !trail.visited().any(|org| org == word.trustee) {
                self.extend(&self.step(trail, word));
            }
        }
    }

    /// The path with one hop more.
    fn step(&self, trail: &Trail<'g>, word: Word<'g>) -> Trail<'g> {
        let cap = self.graph.cap(word.trustee) * UNIT;
        trail.and(word, trail.said(word.trust).min(cap))
    }

    fn offer(&mut self, path: Trail<'g>) {
        let worst = self.best.get(TRUST_PATHS_MAX - 1);
        let is_good = worst.is_none_or(|worst| path.rank() < worst.rank());
        if path.value < UNIT || !is_good || !self.stands(&path) {
            return;
        }
        let place = self
            .best
            .partition_point(|better| better.rank() < path.rank());
        self.best.insert(place, path);
        self.best.truncate(TRUST_PATHS_MAX);
    }

    /// Whether nothing that is worth so much at most is worth anything, or among the best.
    fn is_hopeless(&self, value: u64) -> bool {
        let worst = self.best.get(TRUST_PATHS_MAX - 1);
        value < worst.map_or(UNIT, |worst| worst.value)
    }

    /// Whether everything said on the way counts, and somebody answers for everyone it reaches.
    fn stands(&self, trail: &Trail<'_>) -> bool {
        let mut before = Vec::with_capacity(TRUST_HOPS_MAX);
        trail.words.iter().flatten().all(|word| {
            before.push(word.trustor);
            word.counts(self.asked) && self.graph.is_known(word.trustee, &before)
        })
    }
}

/// A path as it is walked. Values are in [`UNIT`]s.
#[derive(Debug, Clone, Copy)]
struct Trail<'g> {
    end: &'g Org,
    words: [Option<Word<'g>>; TRUST_HOPS_MAX],
    hops: usize,
    /// What it is worth.
    value: u64,
    /// What a full statement of whoever stands at its end would be worth.
    carried: u64,
    /// What was carried before the last statement.
    confidence: u64,
}

impl<'g> Trail<'g> {
    fn new(from: &'g Org) -> Self {
        Self {
            end: from,
            words: [None; TRUST_HOPS_MAX],
            hops: 0,
            value: 0,
            carried: 100 * UNIT,
            confidence: 0,
        }
    }

    fn and(&self, word: Word<'g>, value: u64) -> Self {
        let mut words = self.words;
        words[self.hops] = Some(word);
        Self {
            end: word.trustee,
            words,
            hops: self.hops + 1,
            value,
            carried: carry(value),
            confidence: self.carried,
        }
    }

    /// What it would be worth if whoever stands at its end said so much of another.
    fn said(&self, trust: Trust) -> u64 {
        self.carried * u64::from(trust.percent()) / 100
    }

    /// Everybody on it, its end last.
    fn visited(&self) -> impl Iterator<Item = &'g Org> {
        let trustors = self.words.iter().flatten().map(|word| word.trustor);
        trustors.chain(std::iter::once(self.end))
    }

    /// Less is better.
    fn rank(&self) -> impl Ord {
        let names = self.words.map(|word| word.map(|word| word.trustee));
        (
            Reverse(self.value),
            Reverse(self.confidence),
            self.hops,
            names,
        )
    }

    fn explained(&self) -> Path {
        Path {
            hops: self.words.iter().flatten().map(Word::explained).collect(),
            value: percent(self.value),
            confidence: percent(self.confidence),
        }
    }
}

/// What is left of a value at the next hop.
fn carry(value: u64) -> u64 {
    value * HOP_PERCENT / 100
}

/// Rounded down.
fn percent(value: u64) -> u8 {
    u8::try_from(value / UNIT).unwrap_or(Trust::FULL.percent())
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(first) = self.hops.first() {
            first.trustor.fmt(f)?;
        }
        for hop in &self.hops {
            write!(f, " -{}-> {}", hop.trust, hop.trustee)?;
        }
        write!(f, " = {}", self.value)
    }
}
