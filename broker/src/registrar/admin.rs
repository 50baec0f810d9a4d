//! Admin acts: one door for what an admin does alone and for what takes two.

use proto_spec::capability::Question;
use proto_spec::message::{Ack, Proposal, ProposalRecord};
use proto_spec::{AgentId, Digest, Kind, Name, Pattern, Refusal};
use serde::de::DeserializeOwned;

use super::scope::By;
use super::{Decision, Desk, answer, change};
use crate::change::Change;

/// Bytes of an act that waits for a second admin.
const PROPOSAL_BYTES_MAX: usize = 64 << 10;

/// Reads the body of an act.
pub(super) fn read<T: DeserializeOwned>(body: &str) -> Result<T, Refusal> {
    serde_json::from_str(body).map_err(|error| Refusal::InvalidBody(error.to_string()))
}

impl Desk {
    /// Decides an admin act. That `by` may do such acts was decided before; whom and what it may do
    /// them to is decided here.
    pub(super) fn administer(&self, kind: Kind, body: &str, by: &By) -> Result<Decision, Refusal> {
        match kind {
            Kind::AdminAgentList => self.list_agents(body, by),
            Kind::AdminAgentShow => self.show(body, by),
            Kind::AdminAgentApprove => self.approve(body, by),
            Kind::AdminAgentDeny => self.deny(body, by),
            Kind::AdminAgentRevoke => self.revoke_agent(body, by),
            Kind::AdminAgentQuarantine => self.quarantine(body, by),
            Kind::AdminTokenIssue => self.issue(body, by),
            Kind::AdminTokenList => self.list_tokens(body, by),
            Kind::AdminTokenRevoke => self.revoke_tokens(body, by),
            Kind::AdminTokenTree => self.tree(body, by),
            Kind::AdminEnrolIssue => self.issue_enrolment(body, by),
            Kind::AdminBearerKeep => self.keep_bearer(body, by),
            Kind::AdminBearerIssue => self.issue_bearer(body, by),
            Kind::AdminProposalList => self.list_proposals(body, by),
            Kind::AdminProposalApprove => self.second(body, by),
            Kind::AdminProposalDeny => self.drop_proposal(body, by),
            Kind::AdminRootList => self.list_roots(body),
            Kind::AdminRootPrepare => self.prepare_root(body, by),
            Kind::AdminRootActivate => self.activate_root(body, by),
            Kind::AdminRootRetire => self.retire_root(body, by),
            Kind::AdminPeerAdd => self.add_peer(body, by),
            Kind::AdminPeerList => self.list_peers(body),
            Kind::AdminPeerPause => self.pause_peer(body, by, true),
            Kind::AdminPeerResume => self.pause_peer(body, by, false),
            Kind::AdminPeerRemove => self.remove_peer(body, by),
            Kind::AdminPeerGrant => self.grant_peer(body, by),
            Kind::AdminTrustState => self.state_trust(body, by),
            Kind::AdminTrustDecide => self.decide_trust(body, by),
            Kind::AdminTrustList => self.list_trust(body),
            Kind::AdminTrustShow => self.show_trust(body),
            Kind::AdminBrokerList => self.list_broker_keys(body),
            Kind::AdminBrokerPrepare => self.prepare_broker_key(body, by),
            Kind::AdminBrokerActivate => self.activate_broker_key(body, by),
            Kind::AdminBrokerRetire => self.retire_broker_key(body, by),
            Kind::AdminConfigRead => self.read_config(body),
            kind => Err(Refusal::UnknownType(kind.to_string())),
        }
    }

    /// An act that grants `patterns`: the proposal that it becomes where one admin is not enough.
    pub(super) fn takes_two(
        &self,
        kind: Kind,
        body: &str,
        by: &By,
        patterns: &[Pattern],
    ) -> Result<Option<Decision>, Refusal> {
        let named = &self.config.approval.two_admins;
        let is_named = |pattern: &Pattern| named.iter().any(|one| one.overlap(pattern).is_some());
        if by.second.is_some() || !patterns.iter().any(is_named) {
            return Ok(None);
        }
        let at = self.clock.now();
        self.state.proposals.check_room(at)?;
        if body.len() > PROPOSAL_BYTES_MAX {
            return Err(Refusal::TooLarge(body.len(), PROPOSAL_BYTES_MAX));
        }
        let lifetime = self.config.limits.proposal_lifetime_s;
        let expires = at.later(std::time::Duration::from_secs(lifetime));
        let id = Digest::of(format!("{kind} {} {} {body}", by.first, at.as_ms()).as_bytes());
        let proposed = Change::Proposed {
            id,
            act: kind.to_string(),
            body: body.into(),
            by: by.first.clone(),
            at,
            expires,
        };
        Ok(Some(change(proposed, move |_| Ack::Proposed {
            id,
            expires,
        })))
    }

    fn list_proposals(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let _: Nothing = read(body)?;
        let is_full = self.check_is_full(by).is_ok();
        let mut waiting = self.state.proposals.waiting(self.clock.now());
        // Others' bodies say whom it is about: for those who may do everything.
        waiting.retain(|one| is_full || one.by == by.first);
        let proposals = waiting
            .into_iter()
            .map(|one| ProposalRecord {
                id: one.id,
                act: one.act,
                body: serde_json::from_str(&one.body).unwrap_or_default(),
                by: one.by,
                at: one.at,
                expires: one.expires,
            })
            .collect();
        Ok(answer(Ack::Proposals { proposals }))
    }

    /// The second admin agrees: the act is decided as it stands now, within what both may.
    fn second(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let Proposal { id } = read(body)?;
        let at = self.clock.now();
        let waiting = self.state.proposals.find(&id, at)?;
        if waiting.by == by.first {
            return Err(Refusal::Denied("agreeing to one's own proposal".into()));
        }
        let kind = Kind::ALL.iter().find(|kind| kind.as_str() == waiting.act);
        let kind = *kind.ok_or(Refusal::Internal)?;
        let both = By {
            first: waiting.by,
            second: Some(by.first.clone()),
        };
        for admin in both.all() {
            self.check_may(admin, kind)?;
        }
        let Decision::Change(changes, report) = self.administer(kind, &waiting.body, &both)? else {
            return Err(Refusal::Internal);
        };
        let closed = Change::ProposalClosed {
            id,
            agreed: true,
            by: by.first.clone(),
            at,
        };
        let changes = std::iter::once(closed).chain(changes).collect();
        Ok(Decision::Change(changes, report))
    }

    fn drop_proposal(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let Proposal { id } = read(body)?;
        let at = self.clock.now();
        if self.state.proposals.find(&id, at)?.by != by.first {
            self.check_is_full(by)?;
        }
        let closed = Change::ProposalClosed {
            id,
            agreed: false,
            by: by.first.clone(),
            at,
        };
        Ok(change(closed, |_| Ack::DeniedRequest))
    }

    /// Whether an admin's record lets it do such an act, now.
    pub(super) fn check_may(&self, admin: &Name, kind: Kind) -> Result<(), Refusal> {
        let denied = || Refusal::Denied(format!("{kind} by {admin}"));
        let agent = self.state.registry.agent(admin).ok_or_else(denied)?;
        let id = AgentId::new(admin.clone(), self.state.org.clone());
        let required: Pattern = kind.as_str().parse().map_err(|_| Refusal::Internal)?;
        let question = Question::plain(&required, &id, self.clock.now());
        let permits = self.state.granted(&agent).iter().any(|token| {
            let is_barred = self.state.revocations.is_barred(token.issued(), &required);
            !is_barred && token.permits(&question).is_ok()
        });
        if permits { Ok(()) } else { Err(denied()) }
    }
}

/// The body of an act that has nothing to say.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}
