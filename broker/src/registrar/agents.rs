//! Agents come and change: registering, enrolling, approving, rotating keys.

use std::sync::Arc;

use proto_spec::admission::{Judge, Me};
use proto_spec::capability::{Token, TokenKind, encode_text};
use proto_spec::message::{Ack, AgentApprove, AgentDeny, Older};
use proto_spec::{AgentId, Authorized, Kind, Name, Newcomer, Pattern, PublicKey, Refusal};

use super::admin::read;
use super::scope::{By, is_full};
use super::showing::{pending, record_of};
use super::tokens::{reissue_terms, sealed};
use super::{APPROVAL_LIFETIME, Decision, Desk, Origin, answer, bound, change, check_count};
use crate::change::{Change, Reissued, default_prefixes};
use crate::state::State;
use crate::state::registry::{Agent, grant_id};

impl Desk {
    pub(super) fn register(
        &mut self,
        newcomer: &Newcomer,
        from: &Origin,
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
            && agent.older.as_deref() == newcomer.older()
        {
            return Ok(answer(registered(&agent)));
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
            // A token that names its bearer never changes an existing agent's key. It is judged first all
            // the same, so that a worthless one does not tell which names exist.
            Some(text) if taken => {
                self.enrolment_for(newcomer, text)?;
                self.wait(newcomer, from)
            }
            Some(text) => self.enrol(newcomer, text),
            None => self.wait(newcomer, from),
        }
    }

    fn wait(&self, newcomer: &Newcomer, from: &Origin) -> Result<Decision, Refusal> {
        let (name, request) = (newcomer.agent().name(), newcomer.request());
        self.state.pending.ask(
            name,
            request,
            newcomer.older(),
            from.network,
            &from.address,
            self.clock.now(),
        )?;
        Ok(answer(Ack::Pending))
    }

    /// The enrolment token of a newcomer: this broker's, alive, for this name, and with a use left.
    fn enrolment_for(&self, newcomer: &Newcomer, text: &str) -> Result<Arc<Token>, Refusal> {
        let token = self.state.tokens.open(text, &self.state.roots)?;
        let at = self.clock.now();
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
        if !terms.name.matches(newcomer.agent().name()) {
            return Err(Refusal::Denied(
                "another name than the enrolment token's".into(),
            ));
        }
        if self
            .state
            .registry
            .uses_left(&grant_id(&token))
            .unwrap_or(0)
            == 0
        {
            return Err(Refusal::TokenRevoked("all its uses are used up".into()));
        }
        Ok(token)
    }

    pub(super) fn enrol(&mut self, newcomer: &Newcomer, text: &str) -> Result<Decision, Refusal> {
        let (name, request, at) = (
            newcomer.agent().name(),
            newcomer.request(),
            self.clock.now(),
        );
        let token = self.enrolment_for(newcomer, text)?;
        let terms = token.enrolment().ok_or(Refusal::Internal)?;
        let id = grant_id(&token);
        let is_given = |pattern: &&Pattern| {
            let is_barred = self.state.revocations.is_barred(token.issued(), pattern);
            !is_barred && terms.ceiling.iter().any(|ceiling| ceiling.covers(pattern))
        };
        let capabilities: Vec<Pattern> = request
            .capabilities
            .iter()
            .filter(is_given)
            .cloned()
            .collect();
        let own = default_prefixes(name);
        let is_allowed = |pattern: &&Pattern| {
            let allowed = own.iter().chain(&terms.prefixes);
            allowed.into_iter().any(|prefix| prefix.covers(pattern))
        };
        let prefixes = match request.prefixes.is_empty() {
            true => own.clone(),
            false => request
                .prefixes
                .iter()
                .filter(is_allowed)
                .cloned()
                .collect(),
        };
        check_prefixes(&prefixes)?;
        if let Some(other) = self.state.registry.overlap(name, &prefixes) {
            return Err(Refusal::Conflict(format!(
                "its tool prefixes overlap those of {other}"
            )));
        }
        let expires = at.later(APPROVAL_LIFETIME);
        let grant = self.mint_record(name, request.pubkey, &capabilities, at, expires)?;
        let enrolled = Change::Enrolled {
            enrolment: id,
            name: name.clone(),
            key: request.pubkey,
            grant,
            capabilities: capabilities.clone(),
            expires,
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
            skew: self.config.limits.skew(),
            now,
        };
        let to = act.successor(&judge)?;
        let name = act.agent().name().clone();
        let agent = self.state.registry.agent(&name).ok_or(Refusal::Internal)?;
        self.check_key_is_free(&name, &to)?;
        let mut grants = Vec::new();
        for token in self.state.granted(&agent).iter() {
            grants.push(self.anew(token, act.agent(), to)?);
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

    /// A grant on record, issued anew: to another key, or under another root.
    pub(super) fn anew(
        &self,
        token: &Token,
        agent: &AgentId,
        holder: PublicKey,
    ) -> Result<Reissued, Refusal> {
        let sealed = sealed(&self.mint(&reissue_terms(token, agent, holder)?)?)?;
        Ok(Reissued {
            old: grant_id(token),
            new: self.id_of(&sealed)?,
            token: encode_text(&sealed),
        })
    }

    pub(super) fn approve(&self, text: &str, by: &By) -> Result<Decision, Refusal> {
        self.admit(Kind::AdminAgentApprove, text, read(text)?, by, false)
    }

    /// Takes a key as an agent's: one that waits or is its own already, or that `is_ours`. `kind` and `text` are
    /// the act as a second admin would repeat it.
    pub(super) fn admit(
        &self,
        kind: Kind,
        text: &str,
        body: AgentApprove,
        by: &By,
        is_ours: bool,
    ) -> Result<Decision, Refusal> {
        let at = self.clock.now();
        self.check_name(by, &body.name)?;
        self.check_grantable(by, &body.capabilities)?;
        if let Some(admin) = &body.admin {
            self.check_scope(by, admin)?;
        }
        let known = self.state.registry.agent(&body.name);
        let is_agents = known.as_ref().is_some_and(|agent| agent.key == body.key);
        let asked = self.state.pending.asked(&body.name, &body.key, at);
        if !is_ours && !is_agents && asked.is_none() {
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
        self.check_prefixes_grantable(by, &body.name, &prefixes)?;
        if let (false, Some(other)) = (
            body.overlap,
            self.state.registry.overlap(&body.name, &prefixes),
        ) {
            return Err(Refusal::Conflict(format!(
                "its tool prefixes overlap those of {other}; approve with `overlap` if that is meant"
            )));
        }
        let admin = body.admin.or_else(|| {
            let same = known.as_ref().filter(|_| is_agents);
            same.and_then(|agent| agent.admin.clone())
        });
        let holds_all = body
            .capabilities
            .iter()
            .any(|one| one.as_str() == "admin.*");
        if !(holds_all && admin.as_ref().is_some_and(is_full)) {
            self.check_a_full_admin_remains(std::slice::from_ref(&body.name))?;
        }
        let kept = || {
            let same = known.as_ref().filter(|_| is_agents)?;
            same.older.as_deref().cloned()
        };
        let older = asked.unwrap_or_else(kept);
        check_endpoint(older.as_ref(), body.endpoint.as_deref(), &body.name)?;
        if older.is_some() && (admin.is_some() || body.capabilities.iter().any(is_admins)) {
            return Err(Refusal::Conflict(format!(
                "{} is an older agent, and those administer nothing",
                body.name
            )));
        }
        if let Some(other) = older
            .as_ref()
            .and_then(|one| self.called_there(one, &body.name))
        {
            return Err(Refusal::Conflict(format!(
                "{other} is called at the endpoint that it names"
            )));
        }
        let mut given = body.capabilities.clone();
        given.extend(admin.iter().flat_map(|scope| scope.grantable.clone()));
        if let Some(proposed) = self.takes_two(kind, text, by, &given)? {
            return Ok(proposed);
        }
        let expires = body.expires.unwrap_or_else(|| at.later(APPROVAL_LIFETIME));
        let grant = self.mint_record(&body.name, body.key, &body.capabilities, at, expires)?;
        let is_rekeyed = known.is_some() && !is_agents;
        let tokens = is_rekeyed.then(|| self.without_key(&body.name, by));
        let name = body.name.clone();
        let endpoints = self.config.compat.endpoints.clone();
        let approved = Change::Approved {
            name: body.name,
            key: body.key,
            grant,
            capabilities: body.capabilities,
            expires,
            prefixes,
            admin,
            older,
            by: by.first.clone(),
            at,
        };
        let report = move |state: &State| Ack::Agent {
            agent: state
                .registry
                .agent(&name)
                .map(|agent| record_of(state, &endpoints, &agent)),
            pending: pending(state, &endpoints, Some(&name), at),
        };
        Ok(Decision::Change(
            std::iter::once(approved).chain(tokens.flatten()).collect(),
            Box::new(move |state| Some(report(state))),
        ))
    }

    /// Another agent on record than `name` that is called where this one says that it is: whoever may call the
    /// one would reach the other.
    fn called_there(&self, older: &Older, name: &Name) -> Option<Name> {
        let endpoint = older.endpoint.as_ref()?;
        let is_there = |agent: &Arc<Agent>| {
            let known = agent.older.as_ref();
            agent.name != *name
                && known.is_some_and(|known| known.endpoint.as_ref() == Some(endpoint))
        };
        let agent = self.state.registry.older().into_iter().find(is_there)?;
        Some(agent.name.clone())
    }

    fn is_asked_for(&self, name: &Name, key: &PublicKey) -> bool {
        let waiting = self.state.pending.waiting(Some(name), self.clock.now());
        waiting.iter().any(|one| one.key == *key)
    }

    pub(super) fn deny(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let body: AgentDeny = read(body)?;
        bound("reason", body.reason.as_deref())?;
        self.check_name(by, &body.name)?;
        if !self.is_asked_for(&body.name, &body.key) {
            return Err(Refusal::NotFound(format!(
                "request of {} with this key",
                body.name
            )));
        }
        let denied = Change::Denied {
            name: body.name,
            key: body.key,
            reason: body.reason,
            by: by.first.clone(),
            at: self.clock.now(),
        };
        Ok(change(denied, |_| Ack::DeniedRequest))
    }
}

/// What an admin approves is what it was shown: an older agent may have asked again, with another endpoint.
fn check_endpoint(older: Option<&Older>, shown: Option<&str>, name: &Name) -> Result<(), Refusal> {
    let why = match (older.and_then(|one| one.endpoint.as_deref()), shown) {
        (asked, shown) if asked == shown => return Ok(()),
        (None, _) => "it names no endpoint",
        (_, None) => "it names an endpoint, which has to be approved with it as `endpoint`",
        _ => "it names another endpoint than the one that is approved",
    };
    Err(Refusal::Conflict(format!("{name}: {why}")))
}

fn is_admins(pattern: &Pattern) -> bool {
    pattern.as_str().split('.').next() == Some("admin")
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
