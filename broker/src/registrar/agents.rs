//! Agents come, change and go: registering, approving, rotating keys, revoking.

use std::sync::Arc;

use proto_spec::admission::{Judge, Me};
use proto_spec::capability::{TokenKind, encode_text};
use proto_spec::message::{
    self, Ack, AgentApprove, AgentDeny, AgentRecord, AgentRevoke, AgentShow, PendingRecord,
};
use proto_spec::{Authorized, Name, Newcomer, Pattern, Refusal};

use super::scope::is_full;
use super::tokens::{reissue_terms, sealed};
use super::{APPROVAL_LIFETIME, Decision, Desk, bound, change, check_count, page};
use crate::change::{Change, Reissued, default_prefixes};
use crate::state::State;
use crate::state::registry::{Agent, grant_id};

impl Desk {
    pub(super) fn register(
        &mut self,
        newcomer: &Newcomer,
        from: &str,
    ) -> Result<Decision, Refusal> {
        let request = newcomer.request();
        let name = newcomer.agent().name();
        bound("note", request.note.as_deref())?;
        check_count(&request.capabilities)?;
        check_count(&request.prefixes)?;
        let denied = |reason: Option<String>| {
            let why = reason.map_or_else(
                || "the request was denied".into(),
                |reason| format!("the request was denied: {reason}"),
            );
            Refusal::RequestDenied(why)
        };
        if let Some(agent) = self.state.registry.agent(name)
            && agent.key == request.pubkey
        {
            return Ok(Decision::Answer(registered(&agent)));
        }
        if let Some(reason) = self.state.pending.denied(name, &request.pubkey) {
            return Err(denied(reason));
        }
        if self.state.revocations.is_key_revoked(&request.pubkey) {
            return Err(denied(Some("this key is revoked".into())));
        }
        let taken = self.state.registry.agent(name).is_some()
            || self.state.registry.owner(&request.pubkey).is_some();
        match &request.enrolment {
            // A token that names its bearer never changes an existing agent's key.
            Some(text) if !taken => self.enrol(newcomer, text),
            _ => {
                self.state
                    .pending
                    .ask(name, request, from, self.clock.now())?;
                Ok(Decision::Answer(Ack::Pending))
            }
        }
    }

    pub(super) fn enrol(&mut self, newcomer: &Newcomer, text: &str) -> Result<Decision, Refusal> {
        let (name, request, at) = (
            newcomer.agent().name(),
            newcomer.request(),
            self.clock.now(),
        );
        let token = self.state.tokens.open(text, &self.state.roots)?;
        let terms = match (token.kind(), token.enrolment()) {
            (TokenKind::Enrol, Some(terms)) => terms,
            _ => {
                return Err(Refusal::TokenMalformed(
                    "this is not an enrolment token".into(),
                ));
            }
        };
        self.state.revocations.alive(&token)?;
        if token.expires() <= at || token.not_before().is_some_and(|from| from > at) {
            return Err(Refusal::TokenExpired);
        }
        if !terms.name.matches(name) {
            return Err(Refusal::Denied(
                "another name than the enrolment token's".into(),
            ));
        }
        let id = grant_id(&token);
        let left = self
            .state
            .registry
            .issued_by_id(&id)
            .and_then(|record| record.uses_left);
        if left.unwrap_or(0) == 0 {
            return Err(Refusal::TokenRevoked("all its uses are used up".into()));
        }
        let within =
            |pattern: &&Pattern| terms.ceiling.iter().any(|ceiling| ceiling.covers(pattern));
        let capabilities: Vec<Pattern> = request
            .capabilities
            .iter()
            .filter(within)
            .cloned()
            .collect();
        let allowed = &terms.prefixes;
        let within = |pattern: &&Pattern| allowed.iter().any(|prefix| prefix.covers(pattern));
        let asked: Vec<Pattern> = request.prefixes.iter().filter(within).cloned().collect();
        let prefixes = if request.prefixes.is_empty() {
            default_prefixes(name)
        } else {
            asked
        };
        if let Some(other) = self.state.registry.overlap(name, &prefixes) {
            return Err(Refusal::Conflict(format!(
                "its tool prefixes overlap those of {other}"
            )));
        }
        let grant = self.mint_record(
            name,
            request.pubkey,
            &capabilities,
            at,
            at.later(APPROVAL_LIFETIME),
        )?;
        let enrolled = Change::Enrolled {
            enrolment: id,
            name: name.clone(),
            key: request.pubkey,
            grant,
            prefixes: prefixes.clone(),
            at,
        };
        Ok(change(enrolled, |_| Ack::Registered {
            capabilities,
            prefixes,
        }))
    }

    pub(super) fn rotate(&mut self, act: &Authorized) -> Result<Decision, Refusal> {
        self.count_own_act(act.agent().name())?;
        let now = self.clock.now();
        let judge = Judge {
            me: Me::Broker(&self.state.org),
            skew: self.limits.skew(),
            now,
        };
        let to = act.successor(&judge)?;
        let name = act.agent().name().clone();
        let agent = self.state.registry.agent(&name).ok_or(Refusal::Internal)?;
        self.check_key_is_free(&name, &to)?;
        let mut grants = Vec::new();
        for token in agent.grants.iter() {
            let text = self.mint(&reissue_terms(token, act.agent(), to)?)?;
            let sealed = sealed(&text)?;
            let new = self.id_of(&sealed)?;
            grants.push(Reissued {
                old: grant_id(token),
                new,
                token: encode_text(&sealed),
            });
        }
        let rotated = Change::Rotated {
            name,
            from: *act.key(),
            to,
            grants,
            at: now,
        };
        Ok(change(rotated, move |_| Ack::Rotated { key: to }))
    }

    pub(super) fn list_agents(&self, act: &Authorized) -> Result<Decision, Refusal> {
        let body: message::List = act.envelope().read_body()?;
        let scope = self.scope(act)?;
        let visible = |name: &Name| scope.names.iter().any(|pattern| pattern.matches(name));
        let agents = self.state.registry.agents();
        let (page, next) = page(
            agents
                .iter()
                .filter(|agent| visible(&agent.name))
                .map(|agent| record_of(&self.state, agent)),
            |record| record.name.to_string(),
            body.after,
        );
        let pending = pending(&self.state, None)
            .into_iter()
            .filter(|one| visible(&one.name))
            .collect();
        Ok(Decision::Answer(Ack::Agents {
            agents: page,
            pending,
            next,
        }))
    }

    pub(super) fn show(&self, act: &Authorized) -> Result<Decision, Refusal> {
        let body: AgentShow = act.envelope().read_body()?;
        self.check_name(act, &body.name)?;
        let agent = self
            .state
            .registry
            .agent(&body.name)
            .map(|agent| record_of(&self.state, &agent));
        let pending = pending(&self.state, Some(&body.name));
        if agent.is_none() && pending.is_empty() {
            return Err(Refusal::NotFound(format!("agent or request {}", body.name)));
        }
        Ok(Decision::Answer(Ack::Agent { agent, pending }))
    }

    pub(super) fn approve(&mut self, act: &Authorized) -> Result<Decision, Refusal> {
        let body: AgentApprove = act.envelope().read_body()?;
        let at = self.clock.now();
        self.check_name(act, &body.name)?;
        self.check_grantable(act, &body.capabilities)?;
        if let Some(admin) = &body.admin {
            self.check_scope(act, admin)?;
        }
        let known = self.state.registry.agent(&body.name);
        let is_agents = known.as_ref().is_some_and(|agent| agent.key == body.key);
        let asked = self
            .state
            .pending
            .waiting(Some(&body.name))
            .iter()
            .any(|one| one.key == body.key);
        if !is_agents && !asked {
            return Err(Refusal::NotFound(format!(
                "request of {} with this key",
                body.name
            )));
        }
        self.check_key_is_free(&body.name, &body.key)?;
        let kept = || known.as_ref().map(|agent| agent.prefixes.clone());
        let prefixes = body
            .prefixes
            .or_else(kept)
            .unwrap_or_else(|| default_prefixes(&body.name));
        check_prefixes(&prefixes)?;
        self.check_prefixes_grantable(act, &body.name, &prefixes)?;
        if let (false, Some(other)) = (
            body.overlap,
            self.state.registry.overlap(&body.name, &prefixes),
        ) {
            return Err(Refusal::Conflict(format!(
                "its tool prefixes overlap those of {other}; approve with `overlap` if that is meant"
            )));
        }
        let expires = body.expires.unwrap_or_else(|| at.later(APPROVAL_LIFETIME));
        let grant = self.mint_record(&body.name, body.key, &body.capabilities, at, expires)?;
        let admin = body.admin.or_else(|| {
            known
                .filter(|_| is_agents)
                .and_then(|agent| agent.admin.clone())
        });
        let stays_full = admin.as_ref().is_some_and(is_full)
            && body
                .capabilities
                .iter()
                .any(|one| one.as_str() == "admin.*");
        if let (false, Some(before)) = (stays_full, self.state.registry.agent(&body.name)) {
            self.check_is_not_the_last_admin(&before)?;
        }
        let name = body.name.clone();
        let approved = Change::Approved {
            name: body.name,
            key: body.key,
            grant,
            prefixes,
            admin,
            by: act.agent().name().clone(),
            at,
        };
        Ok(change(approved, move |state| Ack::Agent {
            agent: state
                .registry
                .agent(&name)
                .map(|agent| record_of(state, &agent)),
            pending: pending(state, Some(&name)),
        }))
    }

    pub(super) fn deny(&mut self, act: &Authorized) -> Result<Decision, Refusal> {
        let body: AgentDeny = act.envelope().read_body()?;
        bound("reason", body.reason.as_deref())?;
        self.check_name(act, &body.name)?;
        if !self
            .state
            .pending
            .waiting(Some(&body.name))
            .iter()
            .any(|one| one.key == body.key)
        {
            return Err(Refusal::NotFound(format!(
                "request of {} with this key",
                body.name
            )));
        }
        let denied = Change::Denied {
            name: body.name,
            key: body.key,
            reason: body.reason,
            by: act.agent().name().clone(),
            at: self.clock.now(),
        };
        Ok(change(denied, |_| Ack::DeniedRequest))
    }

    pub(super) fn revoke_agent(&mut self, act: &Authorized) -> Result<Decision, Refusal> {
        let body: AgentRevoke = act.envelope().read_body()?;
        bound("reason", body.reason.as_deref())?;
        self.check_name(act, &body.name)?;
        let agent = self
            .state
            .registry
            .agent(&body.name)
            .ok_or_else(|| Refusal::NotFound(format!("agent {}", body.name)))?;
        self.check_is_not_the_last_admin(&agent)?;
        let revoked = Change::AgentRevoked {
            name: body.name,
            key: agent.key,
            reason: body.reason,
            by: act.agent().name().clone(),
            at: self.clock.now(),
        };
        Ok(change(revoked, move |_| Ack::Revoked {
            ids: agent.grants.iter().map(|token| grant_id(token)).collect(),
        }))
    }

    /// The organisation keeps at least one admin who may do everything.
    pub(super) fn check_is_not_the_last_admin(&self, agent: &Agent) -> Result<(), Refusal> {
        let full = |agent: &Agent| agent.admin.as_ref().is_some_and(is_full);
        let others = self.state.registry.agents();
        let remains = |other: &Arc<Agent>| other.name != agent.name && full(other);
        if full(agent) && !others.iter().any(remains) {
            return Err(Refusal::Conflict("this is the last full admin".into()));
        }
        Ok(())
    }
}

fn record_of(state: &State, agent: &Agent) -> AgentRecord {
    AgentRecord {
        name: agent.name.clone(),
        key: agent.key,
        fingerprint: agent.key.fingerprint(),
        capabilities: agent.capabilities(),
        prefixes: agent.prefixes.clone(),
        admin: agent.admin.clone(),
        sessions: state.sessions.of(&agent.name).len() as u32,
        since: agent.since,
    }
}

fn pending(state: &State, name: Option<&Name>) -> Vec<PendingRecord> {
    let mut all = state.pending.waiting(name);
    for one in &mut all {
        one.key_change = state.registry.agent(&one.name).is_some();
    }
    all
}

fn registered(agent: &Agent) -> Ack {
    Ack::Registered {
        capabilities: agent.capabilities(),
        prefixes: agent.prefixes.clone(),
    }
}

/// Tool prefixes end in `.*` and lie under no reserved segment.
pub(super) fn check_prefixes(prefixes: &[Pattern]) -> Result<(), Refusal> {
    check_count(prefixes)?;
    match prefixes
        .iter()
        .find(|one| one.is_reserved() || !one.as_str().ends_with(".*"))
    {
        None => Ok(()),
        Some(bad) => Err(Refusal::InvalidBody(format!(
            "{bad} is not a tool prefix: one ends in .* and begins with no reserved segment"
        ))),
    }
}
