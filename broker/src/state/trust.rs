//! How far other organisations are trusted: what was said and decided, and the scores that follow.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;
use lru::LruCache;
use proto_spec::limits::TRUST_STATEMENT_BYTES_MAX;
use proto_spec::message::{Ack, Introduced, TrustNews, TrustRecord, TrustShow, TrustStatement};
use proto_spec::message::{Trust, TrustDecided};
use proto_spec::trust::{Decision, Heard, Statement, TrustGraph};
use proto_spec::{Envelope, Org, Pattern, PublicKey, Refusal, Speaker, Timestamp};
use tokio::sync::watch;

use super::snapshot::{Sink, Source, Stored, stored, torn};
use crate::change::Change;
use crate::locks::{lock, read, write};

/// Scores that are kept until something is said: one for each organisation and what it asks for.
const SCORES: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();

/// What is known of trust, and scores that were asked for.
#[derive(Debug)]
pub struct TrustBook {
    home: Org,
    book: RwLock<Book>,
    scores: Mutex<Scores>,
    changed: watch::Sender<()>,
}

/// All that is durable of it.
#[derive(Debug, Clone)]
struct Book {
    graph: TrustGraph,
    /// The keys that stand for our peers.
    peers: BTreeMap<Org, PublicKey>,
    /// What others state, as they signed it, by who says it and of whom: to be passed on.
    texts: BTreeMap<Org, BTreeMap<Org, Arc<str>>>,
    /// Whom each peer introduced, under which key.
    introduced: BTreeMap<Org, BTreeMap<Org, PublicKey>>,
    /// The key that stood for each last: what was said under another is not its own.
    stood: BTreeMap<Org, PublicKey>,
}

/// As a snapshot holds it.
#[derive(Debug, Default)]
pub(super) struct Image {
    decisions: Vec<(Org, Decision)>,
    introduced: Vec<(Org, Vec<(Org, PublicKey)>)>,
    stood: Vec<(Org, PublicKey)>,
    statements: Vec<(Statement, Option<Arc<str>>)>,
}
stored!(Image {
    decisions,
    introduced,
    stood,
    statements,
});

/// Types of the pure crate, which knows no snapshots: as their JSON.
macro_rules! stored_as_json {
    ($($name:ty),*) => {$(
        impl Stored for $name {
            fn put(&self, to: &mut Sink) {
                // Their serialisation cannot fail; an empty text would not read back.
                serde_json::to_string(self).unwrap_or_default().put(to);
            }

            fn take(from: &mut Source) -> std::io::Result<Self> {
                serde_json::from_str(&String::take(from)?).map_err(torn)
            }
        }
    )*};
}
stored_as_json!(Decision, Statement);

/// Scores of the home organisation, each exact until `until`.
#[derive(Debug)]
struct Scores {
    known: LruCache<(Org, Pattern), Option<u8>>,
    /// What is asked as of an earlier time is not answered from here, nor kept.
    since: Timestamp,
    until: Option<Timestamp>,
}

/// What one peer may be told: what the home organisation states, whom it introduces, and what those state.
#[derive(Debug, Default)]
pub struct Tellable {
    /// What the home organisation states, or took back, by whom it is about.
    pub own: BTreeMap<Org, TrustStatement>,
    /// Its peers in whom it states trust.
    pub introduced: BTreeMap<Org, PublicKey>,
    /// What these state, as they signed it, by who says it and of whom.
    pub others: BTreeMap<(Org, Org), Arc<str>>,
}

impl TrustBook {
    /// Nothing said yet.
    #[must_use]
    pub fn new(home: Org) -> Self {
        Self {
            book: RwLock::new(Book {
                graph: TrustGraph::new(home.clone()),
                peers: BTreeMap::new(),
                texts: BTreeMap::new(),
                introduced: BTreeMap::new(),
                stood: BTreeMap::new(),
            }),
            home,
            scores: Mutex::new(Scores {
                known: LruCache::new(SCORES),
                since: Timestamp::default(),
                until: None,
            }),
            changed: watch::Sender::new(()),
        }
    }

    /// How far the home organisation trusts `org` for what `required` permits: 1 to 100, or not at all.
    #[must_use]
    pub fn score(&self, org: &Org, required: &Pattern, now: Timestamp) -> Option<u8> {
        if *org == self.home {
            return Some(Trust::FULL.percent());
        }
        // Held until the score is put in: what changes the book afterwards takes it out again.
        let book = read(&self.book);
        let slot = (org.clone(), required.clone());
        let mut scores = lock(&self.scores);
        if scores.until.is_some_and(|until| until <= now) {
            scores.known.clear();
        }
        if scores.known.is_empty() {
            scores.since = now;
            scores.until = book.graph.next_end(now);
        }
        let is_kept = now >= scores.since;
        if let Some(score) = scores.known.get(&slot).filter(|_| is_kept) {
            return *score;
        }
        drop(scores);
        let score = book.graph.score(&self.home, org, Some(required), now);
        let value = score.map(|score| score.value);
        let mut scores = lock(&self.scores);
        // Somebody may have begun anew meanwhile, at a later time.
        if now >= scores.since && scores.until.is_none_or(|until| now < until) {
            scores.known.put(slot, value);
        }
        value
    }

    /// Whether an admin decided that nothing of `org` counts: its agents call nothing here.
    #[must_use]
    pub fn is_revoked(&self, org: &Org) -> bool {
        read(&self.book).graph.is_revoked(org)
    }

    /// How far one organisation trusts another, and why.
    #[must_use]
    pub fn shown(&self, asked: TrustShow, now: Timestamp) -> Ack {
        let TrustShow {
            from,
            to,
            capability,
        } = asked;
        let graph = &read(&self.book).graph;
        let asked = capability.as_ref();
        Ack::Trust {
            level: graph.level(&to, asked, now),
            score: graph.score(&from, &to, asked, now),
            picture: graph.picture(&from, Some(&to), asked, now),
            from,
            to,
            capability,
        }
    }

    /// What the home organisation states and has not taken back, and what its admins decided.
    #[must_use]
    pub fn said(&self, now: Timestamp) -> Ack {
        let book = read(&self.book);
        let own = book.own().filter(|said| said.trust > Trust::NONE);
        let statements = own
            .filter(|said| said.expires > now)
            .map(|said| TrustRecord {
                trustee: said.trustee.clone(),
                trust: said.trust,
                capabilities: said.capabilities.clone(),
                expires: said.expires,
            });
        let decisions = book.graph.decisions().map(|(org, decision)| TrustDecided {
            org: org.clone(),
            decision,
        });
        Ack::TrustSaid {
            statements: statements.collect(),
            decisions: decisions.collect(),
        }
    }

    /// The number that the home organisation's next statement about `trustee` has.
    #[must_use]
    pub fn next_seq(&self, trustee: &Org, now: Timestamp) -> u64 {
        let book = read(&self.book);
        let last = book.graph.statement(&self.home, trustee);
        now.as_ms().max(last.map_or(0, |last| last.said().seq + 1))
    }

    /// Whether the home organisation may state this, and an admin decide it: there is room, and it is
    /// about another.
    ///
    /// # Errors
    ///
    /// Those of [`Statement::new`], [`TrustGraph::insert`] and [`TrustGraph::decide`].
    pub fn check(&self, change: &Change) -> Result<(), Refusal> {
        read(&self.book).clone().take(change, &self.home).map(drop)
    }

    /// What of some news would have an effect; nothing where none would.
    #[must_use]
    pub fn sift(&self, from: &Org, news: &TrustNews, at: Timestamp) -> Option<TrustNews> {
        let effective = read(&self.book).clone().hear(from, news, at, true);
        (effective != TrustNews::default()).then_some(effective)
    }

    /// What of some news takes trust back, or a part of it: that needs no share, for it was given before.
    #[must_use]
    pub fn lowering(&self, news: TrustNews) -> TrustNews {
        let book = read(&self.book);
        let lowers = |text: &String| {
            let bytes = Bytes::copy_from_slice(text.as_bytes());
            let envelope = Envelope::parse(bytes, TRUST_STATEMENT_BYTES_MAX).ok()?;
            let said: TrustStatement = envelope.read_body().ok()?;
            let maker = envelope.speaker().org();
            let known = book.graph.statement(maker, &said.trustee)?;
            (said.trust < known.said().trust).then_some(())
        };
        let statements = news.statements.into_iter();
        TrustNews {
            statements: statements.filter(|text| lowers(text).is_some()).collect(),
            withdrawn: news.withdrawn,
            introduced: Vec::new(),
        }
    }

    /// Whether this very text is on record.
    #[must_use]
    pub fn knows(&self, trustor: &Org, text: &str) -> bool {
        let book = read(&self.book);
        let of_maker = book.texts.get(trustor).map(BTreeMap::values);
        of_maker.into_iter().flatten().any(|known| **known == *text)
    }

    /// The key under which `by` introduced `org`.
    #[must_use]
    pub fn introduced_key(&self, by: &Org, org: &Org) -> Option<PublicKey> {
        read(&self.book).introduced.get(by)?.get(org).copied()
    }

    /// What the peer `to` may be told. A peer in whom the home organisation states no trust is not named to
    /// others.
    #[must_use]
    pub fn tellable(&self, to: &Org, now: Timestamp) -> Tellable {
        let book = read(&self.book);
        let own = book.own().map(|said| (said.trustee.clone(), said.clone()));
        let own: BTreeMap<Org, TrustStatement> = own.collect();
        let counts = |said: &&TrustStatement| said.trust > Trust::NONE && said.expires > now;
        let trusted = own.values().filter(counts);
        let introduced = trusted.filter_map(|said| {
            let key = book
                .peers
                .get(&said.trustee)
                .filter(|_| said.trustee != *to)?;
            Some((said.trustee.clone(), *key))
        });
        let introduced: BTreeMap<Org, PublicKey> = introduced.collect();
        let others = book.texts.iter().flat_map(|(trustor, texts)| {
            let texts = texts.iter();
            texts.map(|(trustee, text)| ((trustor.clone(), trustee.clone()), Arc::clone(text)))
        });
        let others = others.filter(|((trustor, _), _)| introduced.contains_key(trustor));
        Tellable {
            others: others.collect(),
            own,
            introduced,
        }
    }

    /// Says when something was said or decided.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn image(&self) -> Image {
        let book = read(&self.book);
        let introduced = book.introduced.iter();
        let text = |one: &Statement| book.texts.get(one.trustor())?.get(one.trustee()).cloned();
        let decisions = book.graph.decisions();
        Image {
            decisions: decisions.map(|(org, one)| (org.clone(), one)).collect(),
            introduced: introduced
                .map(|(by, all)| {
                    (
                        by.clone(),
                        all.iter().map(|(o, k)| (o.clone(), *k)).collect(),
                    )
                })
                .collect(),
            stood: book.stood.iter().map(|(o, k)| (o.clone(), *k)).collect(),
            statements: book
                .graph
                .statements()
                .map(|one| (one.clone(), text(one)))
                .collect(),
        }
    }

    pub(super) fn load(&self, image: Image, peers: impl Iterator<Item = (Org, PublicKey)>) {
        let Image {
            decisions,
            introduced,
            stood,
            statements,
        } = image;
        let mut book = write(&self.book);
        // What was on record was within its bounds.
        for (org, key) in peers {
            let _ = book.graph.add_peer(org.clone());
            book.peers.insert(org, key);
        }
        for (org, decision) in decisions {
            let _ = book.graph.decide(org, Some(decision));
        }
        for (by, all) in introduced {
            for (org, _) in &all {
                let _ = book.graph.introduce(&by, org.clone());
            }
            book.introduced.insert(by, all.into_iter().collect());
        }
        book.stood = stood.into_iter().collect();
        for (statement, text) in statements {
            if let Some(text) = text {
                let of_maker = book.texts.entry(statement.trustor().clone()).or_default();
                of_maker.insert(statement.trustee().clone(), text);
            }
            book.graph.put_back(statement);
        }
    }

    /// Takes a change over. What does not fit any more has no effect: it was checked when it was made.
    pub(super) fn apply(&self, change: &Change) {
        let mut book = write(&self.book);
        if book.take(change, &self.home) == Ok(false) {
            return;
        }
        lock(&self.scores).known.clear();
        drop(book);
        self.changed.send_replace(());
    }
}

impl Book {
    /// Takes a change over, and says whether it is about trust.
    ///
    /// # Errors
    ///
    /// Why it has no effect.
    fn take(&mut self, change: &Change, home: &Org) -> Result<bool, Refusal> {
        match change {
            Change::PeerAdded { org, key, .. } => {
                self.peers.insert(org.clone(), *key);
                self.stands_for(org, key);
                self.graph.add_peer(org.clone())?;
            }
            Change::PeerReissued { org, key, .. } => {
                // What it signed with its old key nobody takes any more: it says it anew.
                if self.peers.insert(org.clone(), *key) != Some(*key) {
                    self.texts.remove(org);
                }
                // It proved that this key follows: what it said is still its own.
                self.stood.insert(org.clone(), *key);
            }
            Change::PeerRemoved { org, .. } => {
                self.peers.remove(org);
                self.graph.remove_peer(org);
                self.introduced.remove(org);
                let others = self.introduced.values().find_map(|known| known.get(org));
                if let Some(key) = others.copied() {
                    self.stands_for(org, &key);
                }
            }
            Change::TrustStated {
                trustee,
                trust,
                capabilities,
                seq,
                expires,
                at,
                ..
            } => {
                let said = TrustStatement {
                    trustee: trustee.clone(),
                    trust: *trust,
                    capabilities: capabilities.clone(),
                    seq: *seq,
                    expires: *expires,
                };
                let statement = Statement::new(home.clone(), *at, said)?;
                self.graph.insert(statement, *at)?;
                self.forget(*at);
            }
            Change::TrustDecided { org, decision, .. } => {
                self.graph.decide(org.clone(), *decision)?;
            }
            Change::TrustHeard { from, news, at } => {
                self.hear(from, news, *at, false);
                self.forget(*at);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What the home organisation states or took back.
    fn own(&self) -> impl Iterator<Item = &TrustStatement> {
        let home = self.graph.home();
        let own = self.graph.statements();
        own.filter(move |one| one.trustor() == home)
            .map(Statement::said)
    }

    /// From here on `key` stands for `org`. Under another key nothing that was said before can come back.
    fn stands_for(&mut self, org: &Org, key: &PublicKey) {
        let before = self.stood.insert(org.clone(), *key);
        if before.is_some_and(|before| before != *key) {
            self.graph.forget_maker(org);
            self.texts.remove(org);
        }
    }

    /// The key under which what `maker` says is believed when `from` brings it.
    fn key_of(&self, from: &Org, maker: &Org) -> Option<PublicKey> {
        let introduced = || self.introduced.get(from)?.get(maker).copied();
        self.peers.get(maker).copied().or_else(introduced)
    }

    /// Takes news over, and gives what of them had an effect. What is on record was verified before.
    fn hear(&mut self, from: &Org, news: &TrustNews, at: Timestamp, verify: bool) -> TrustNews {
        let mut done = TrustNews::default();
        for org in &news.withdrawn {
            let known = self.introduced.get_mut(from);
            if known.is_some_and(|known| known.remove(org).is_some()) {
                self.graph.withdraw(from, org);
                done.withdrawn.push(org.clone());
            }
        }
        for one in &news.introduced {
            if self.introduce(from, one, at) {
                done.introduced.push(one.clone());
            }
        }
        for text in &news.statements {
            if self.insert(from, text, at, verify).is_some() {
                done.statements.push(text.clone());
            }
        }
        done
    }

    /// One name has one key: that of the peer who introduced it first, for as long as that one does, unless
    /// the home organisation trusts another more that says otherwise.
    fn introduce(&mut self, from: &Org, one: &Introduced, at: Timestamp) -> bool {
        let Introduced { org, key } = one;
        let others = self.introduced.iter().filter(|(by, known)| {
            let other = known.get(org);
            *by != from && other.is_some_and(|other| other != key)
        });
        let others: Vec<Org> = others.map(|(by, _)| by.clone()).collect();
        let home = self.graph.home().clone();
        let worth = |org: &Org| {
            let score = self.graph.score(&home, org, None, at);
            score.map(|score| score.value)
        };
        if others.iter().any(|other| worth(other) >= worth(from)) {
            tracing::warn!(peer = %from, %org, "introduces an organisation under another key than another peer does: not taken");
            return false;
        }
        let known = self.introduced.get(from).and_then(|known| known.get(org));
        if known == Some(key) || self.graph.introduce(from, org.clone()).is_err() {
            return false;
        }
        for other in others {
            self.graph.withdraw(&other, org);
            if let Some(known) = self.introduced.get_mut(&other) {
                known.remove(org);
            }
        }
        let of_peer = self.introduced.entry(from.clone()).or_default();
        of_peer.insert(org.clone(), *key);
        if !self.peers.contains_key(org) {
            self.stands_for(org, key);
        }
        true
    }

    /// Takes a statement over; nothing where that changes nothing, or its maker did not sign it.
    fn insert(&mut self, from: &Org, text: &str, at: Timestamp, verify: bool) -> Option<()> {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let envelope = Envelope::parse(bytes, TRUST_STATEMENT_BYTES_MAX).ok()?;
        let Speaker::Broker(trustor) = envelope.speaker() else {
            return None;
        };
        let key = self.key_of(from, trustor)?;
        let statement = match verify {
            true => Statement::open(&envelope, &key).ok()?,
            false => {
                Statement::new(trustor.clone(), envelope.ts(), envelope.read_body().ok()?).ok()?
            }
        };
        let trustee = statement.trustee().clone();
        let texts = self.texts.entry(trustor.clone()).or_default();
        match self.graph.insert(statement, at) {
            Ok(Heard::Known) if texts.contains_key(&trustee) => return None,
            Ok(Heard::Taken | Heard::Known) => drop(texts.insert(trustee, text.into())),
            Ok(Heard::Contradicted) => drop(texts.remove(&trustee)),
            _ => return None,
        }
        Some(())
    }

    fn forget(&mut self, at: Timestamp) {
        self.graph.forget(at);
        let kept: BTreeSet<(&Org, &Org)> = self
            .graph
            .statements()
            .map(|one| (one.trustor(), one.trustee()))
            .collect();
        for (trustor, texts) in &mut self.texts {
            texts.retain(|trustee, _| kept.contains(&(trustor, trustee)));
        }
        self.texts.retain(|_, texts| !texts.is_empty());
        let introduced = self.introduced.values().flat_map(BTreeMap::keys);
        let makers = self.graph.statements().map(Statement::trustor);
        let known: BTreeSet<&Org> = introduced.chain(makers).chain(self.peers.keys()).collect();
        self.stood.retain(|org, _| known.contains(org));
    }
}
