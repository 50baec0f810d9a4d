//! What we tell a peer of trust, and what of its own news is believed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto_spec::limits::{TRUST_INTRODUCTIONS_MAX, TRUST_STATEMENT_BYTES_MAX};
use proto_spec::message::{Introduced, TrustNews, TrustStatement};
use proto_spec::trust::Statement;
use proto_spec::{Envelope, Kind, Org, PublicKey, Refusal, Speaker, Timestamp};

use super::telling::{changed, say};
use crate::conversation::Ended;
use crate::pipeline::Core;
use crate::state::State;
use crate::state::links::Link;
use crate::state::trust::Tellable;
use crate::voice::Voice;

/// Between two words: what changes meanwhile is told in the next.
const PAUSE: Duration = Duration::from_secs(1);
/// Statements in one word.
const STATEMENTS_MAX: usize = 64;
/// Statements of others that changed after the first telling, within [`WINDOW`]: a peer of ours that
/// says something else each second must not use up our share with the next.
const CHANGED_MAX: usize = 256;
const WINDOW: Duration = Duration::from_secs(3_600);

/// Tells a peer all that it may know, then what changes, until the link has to end.
pub(super) async fn tell_trust(core: &Core, link: &Link) -> Ended {
    let mut changes = core.state.trust.changes();
    let mut told = Told::new(core.clock.now());
    loop {
        changes.borrow_and_update();
        let tellable = core.state.trust.tellable(&link.org, core.clock.now());
        let word = told.next(tellable, &core.voice, core.clock.now());
        let has_more = word.is_some();
        // Behind what waits already, not on top of it.
        link.settled().await;
        if let Some(word) = word
            && let Err(ended) = say(core, link, Kind::TrustNews, &word)
        {
            return ended;
        }
        tokio::time::sleep(PAUSE).await;
        if !has_more {
            tokio::select! {
                () = changed(&mut changes) => {}
                // What had to wait for its share.
                () = tokio::time::sleep(WINDOW) => {}
            }
        }
    }
}

/// What one peer has been told on one link.
struct Told {
    own: BTreeMap<Org, TrustStatement>,
    introduced: BTreeMap<Org, PublicKey>,
    others: BTreeMap<(Org, Org), Arc<str>>,
    /// Whether it has been told all that there was.
    is_all: bool,
    begun: Timestamp,
    changed: usize,
}

impl Told {
    fn new(begun: Timestamp) -> Self {
        Self {
            own: BTreeMap::new(),
            introduced: BTreeMap::new(),
            others: BTreeMap::new(),
            is_all: false,
            begun,
            changed: 0,
        }
    }

    /// The next word that brings the peer closer to all that it may know; none where it knows it. Our own
    /// statements are signed as they are told, so they hold under the key that we have now.
    fn next(&mut self, all: Tellable, voice: &Voice, now: Timestamp) -> Option<TrustNews> {
        if now.distance(self.begun) >= WINDOW {
            (self.begun, self.changed) = (now, 0);
        }
        let mut word = TrustNews::default();
        let gone = self.introduced.keys();
        let gone = gone.filter(|org| !all.introduced.contains_key(*org));
        word.withdrawn = gone.take(TRUST_INTRODUCTIONS_MAX).cloned().collect();
        self.introduced
            .retain(|org, _| !word.withdrawn.contains(org));
        for (org, key) in all.introduced {
            if word.introduced.len() < TRUST_INTRODUCTIONS_MAX
                && self.introduced.insert(org.clone(), key) != Some(key)
            {
                word.introduced.push(Introduced { org, key });
            }
        }
        for (org, said) in all.own {
            if word.statements.len() < STATEMENTS_MAX && self.own.get(&org) != Some(&said) {
                let signed = voice.say(Kind::TrustStatement, None, None, &said, now);
                let text = String::from_utf8_lossy(&signed.bytes);
                word.statements.push(text.into_owned());
                self.own.insert(org, said);
            }
        }
        for (place, text) in all.others {
            let has_room = word.statements.len() < STATEMENTS_MAX
                && (!self.is_all || self.changed < CHANGED_MAX);
            if has_room && self.others.get(&place) != Some(&text) {
                word.statements.push(text.to_string());
                self.others.insert(place, text);
                self.changed += usize::from(self.is_all);
            }
        }
        let has_news = word != TrustNews::default();
        self.is_all |= !has_news;
        has_news.then_some(word)
    }
}

/// What of a peer's news may be true, so that rubbish costs no time of the registrar's: statements as their
/// makers signed them, by keys that we know or that the peer vouches for. Whether that is the key that counts
/// is for the book to say, which verifies what it takes. What is not is left out, since a maker may have gone on under another key.
///
/// # Errors
///
/// [`Refusal::InvalidBody`] for more than a word holds and for what is no statement at all.
pub(super) fn believed(news: TrustNews, link: &Link, state: &State) -> Result<TrustNews, Refusal> {
    let introduced = news.introduced.len().max(news.withdrawn.len());
    if introduced > TRUST_INTRODUCTIONS_MAX || news.statements.len() > STATEMENTS_MAX {
        return Err(Refusal::InvalidBody("more news than a word holds".into()));
    }
    let known = |one: &Introduced| state.trust.introduced_key(&link.org, &one.org) == Some(one.key);
    let introduced = news.introduced.into_iter();
    let withdrawn = news.withdrawn.into_iter();
    let is_introduced = |org: &Org| state.trust.introduced_key(&link.org, org).is_some();
    let mut believed = TrustNews {
        introduced: introduced.filter(|one| !known(one)).collect(),
        withdrawn: withdrawn.filter(is_introduced).collect(),
        statements: Vec::new(),
    };
    for text in news.statements {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let envelope = Envelope::parse(bytes, TRUST_STATEMENT_BYTES_MAX)?;
        let Speaker::Broker(maker) = envelope.speaker() else {
            return Err(Refusal::Denied("an agent's word of trust".into()));
        };
        if *maker == state.org || state.trust.knows(maker, &text) {
            continue;
        }
        let Some(key) = key_of(maker, &believed.introduced, link, state) else {
            continue;
        };
        match Statement::open(&envelope, &key) {
            Ok(_) => believed.statements.push(text),
            Err(why) => {
                tracing::warn!(peer = %link.org, %maker, %why, "a statement of trust is not believed");
            }
        }
    }
    Ok(believed)
}

/// The key of a maker: a peer's own, as its admin accepted it, or else as this peer vouches for it.
fn key_of(maker: &Org, introduced: &[Introduced], link: &Link, state: &State) -> Option<PublicKey> {
    if *maker == link.org {
        return Some(link.key);
    }
    if let Some(peer) = state.peers.find(maker) {
        return Some(peer.key);
    }
    let new = introduced.iter().find(|one| one.org == *maker);
    let new = new.map(|one| one.key);
    new.or_else(|| state.trust.introduced_key(&link.org, maker))
}

#[cfg(test)]
mod tests {
    use proto_spec::SigningKey;
    use proto_spec::message::Trust;

    use super::*;

    const NOW: Timestamp = Timestamp::from_ms(1_000_000);

    fn org(name: &str) -> Org {
        name.parse().unwrap()
    }

    fn said(trustee: &str, percent: u8) -> (Org, TrustStatement) {
        let said = TrustStatement {
            trustee: org(trustee),
            trust: Trust::try_from(percent).unwrap(),
            capabilities: Vec::new(),
            seq: u64::from(percent),
            expires: NOW.later(WINDOW),
        };
        (org(trustee), said)
    }

    fn others(count: usize, text: &str) -> BTreeMap<(Org, Org), Arc<str>> {
        let place = |n| (org("globex"), org(&format!("org-{n}")));
        (0..count).map(|n| (place(n), text.into())).collect()
    }

    fn voice() -> Voice {
        Voice::new(SigningKey::from_seed(&[1; 32]), org("acme"), 1)
    }

    #[test]
    fn a_peer_is_told_all_in_bounded_words_and_then_what_changes() {
        let mut told = Told::new(NOW);
        let key = SigningKey::from_seed(&[2; 32]).public();
        let all = |percent: u8| Tellable {
            own: [said("globex", percent)].into(),
            introduced: [(org("globex"), key)].into(),
            others: others(100, "a"),
        };
        let first = told.next(all(80), &voice(), NOW).unwrap();
        assert_eq!(
            (first.introduced.len(), first.statements.len()),
            (1, STATEMENTS_MAX)
        );
        let second = told.next(all(80), &voice(), NOW).unwrap();
        assert_eq!(second.statements.len(), 101 - STATEMENTS_MAX);
        assert_eq!(told.next(all(80), &voice(), NOW), None);
        let changed = told.next(all(0), &voice(), NOW).unwrap();
        assert_eq!((changed.introduced.len(), changed.statements.len()), (0, 1));
        let withdrawn = told.next(Tellable::default(), &voice(), NOW).unwrap();
        assert_eq!(withdrawn.withdrawn, [org("globex")]);
    }

    #[test]
    fn what_others_say_again_and_again_is_told_in_shares() {
        let mut told = Told::new(NOW);
        let all = |text: &str| Tellable {
            others: others(60, text),
            ..Tellable::default()
        };
        while told.next(all("first"), &voice(), NOW).is_some() {}
        let mut sent = 0;
        for round in 0..20 {
            let word = told.next(all(&round.to_string()), &voice(), NOW);
            sent += word.map_or(0, |word| word.statements.len());
        }
        assert_eq!(sent, CHANGED_MAX);
        let later = NOW.later(WINDOW);
        assert!(told.next(all("last"), &voice(), later).is_some());
    }
}
