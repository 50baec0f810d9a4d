//! Trust: what this organisation states of others, what its admins decide, and what peers tell.

use proto_spec::limits::TRUST_VALIDITY_MAX;
use proto_spec::message::{TrustDecide, TrustNews, TrustShow, TrustState};
use proto_spec::{Name, Org, Refusal, Timestamp};

use super::admin::{Nothing, read};
use super::scope::By;
use super::{Decision, Desk, answer, change};
use crate::change::Change;

impl Desk {
    pub(super) fn state_trust(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let body: TrustState = read(body)?;
        self.check_is_full(by)?;
        let at = self.clock.now();
        self.say_of_trust(
            Change::TrustStated {
                seq: self.state.trust.next_seq(&body.trustee, at),
                trustee: body.trustee,
                trust: body.trust,
                capabilities: body.capabilities,
                expires: body.expires.unwrap_or(at.later(TRUST_VALIDITY_MAX)),
                by: by.first.clone(),
                at,
            },
            at,
        )
    }

    pub(super) fn decide_trust(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let TrustDecide { org, decision } = read(body)?;
        self.check_is_full(by)?;
        let at = self.clock.now();
        let by: Name = by.first.clone();
        let decided = Change::TrustDecided {
            org,
            decision,
            by,
            at,
        };
        self.say_of_trust(decided, at)
    }

    fn say_of_trust(&self, said: Change, at: Timestamp) -> Result<Decision, Refusal> {
        self.state.trust.check(&said)?;
        Ok(change(said, move |state| state.trust.said(at)))
    }

    pub(super) fn list_trust(&self, body: &str) -> Result<Decision, Refusal> {
        let _: Nothing = read(body)?;
        Ok(answer(self.state.trust.said(self.clock.now())))
    }

    pub(super) fn show_trust(&self, body: &str) -> Result<Decision, Refusal> {
        let asked: TrustShow = read(body)?;
        Ok(answer(self.state.trust.shown(asked, self.clock.now())))
    }

    /// Puts on record what of a peer's news has an effect: statements as the book verifies them.
    pub(super) fn hear_trust(&mut self, from: Org, news: &TrustNews) -> Result<Decision, Refusal> {
        let at = self.clock.now();
        if self.state.peers.find(&from).is_none() {
            return Ok(Decision::Nothing);
        }
        // Looking at them is not for nothing either; but what is taken back is taken back.
        let has_share = self.news.take(&from, 1, at);
        let sifted = match has_share {
            true => self.state.trust.sift(&from, news, at),
            false => self.lowering(&from, news, at),
        };
        let Some(mut news) = sifted else {
            return Ok(Decision::Nothing);
        };
        let parts = news.introduced.len() + news.withdrawn.len() + news.statements.len();
        if has_share && !self.news.take(&from, parts, at) {
            match self.lowering(&from, &news, at) {
                Some(less) => news = less,
                None => return Ok(Decision::Nothing),
            }
        }
        let heard = Change::TrustHeard { from, news, at };
        Ok(Decision::Change(vec![heard], Box::new(|_| None)))
    }

    /// What is left of a peer's news beyond its share: the rest is said again on its next link.
    fn lowering(&self, from: &Org, news: &TrustNews, at: Timestamp) -> Option<TrustNews> {
        tracing::warn!(peer = %from, "says more of trust than its share: only what it takes back is taken");
        let less = self.state.trust.lowering(news.clone());
        self.state.trust.sift(from, &less, at)
    }
}
