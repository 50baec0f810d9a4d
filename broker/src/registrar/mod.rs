//! Register, approve, issue, rotate, revoke: the only code that appends [`Change`]s.
//!
//! One thread does one order after the other: check it against the state, make the change durable,
//! take it over into the state, answer. What was acknowledged is on disk and in force.

use std::sync::Arc;
use std::time::Duration;

use proto_spec::admission::{Judge, Me, Permit};
use proto_spec::capability::{
    BadTerms, Check, Enrolment, Terms, Token, TokenKind, encode_text, issue,
};
use proto_spec::limits::CAPABILITIES_MAX;
use proto_spec::message::{
    self, Ack, AdminScope, AgentApprove, AgentDeny, AgentRecord, AgentRevoke, AgentShow,
    EnrolIssue, PendingRecord, Revoke, TokenIssue, TokenRecord,
};
use proto_spec::{
    AgentId, Authorized, Digest, Kind, Name, NamePattern, Newcomer, Pattern, PublicKey, Refusal,
    SigningKey, Timestamp,
};
use tokio::sync::{mpsc, oneshot};

use crate::change::{Change, Reissued, default_prefixes};
use crate::clock::Clock;
use crate::config::Limits;
use crate::journal::{Journal, JournalError};
use crate::state::State;
use crate::state::registry::{Agent, grant_id};

/// Orders that may wait for the registrar.
const QUEUE: usize = 1_024;
/// How long the grant of an approval holds when the admin does not say.
const APPROVAL_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Records on one page of a list.
const PAGE: usize = 500;
/// Characters of a note or a reason.
const NOTE_CHARS_MAX: usize = 256;

/// Something that needs the registrar: it changes durable state, or reads it as one whole.
#[derive(Debug)]
pub enum Order {
    /// A key asks to become an agent; with the network address it asked from.
    Register(Box<Newcomer>, String),
    /// An authorised `revoke`, `rotateKey` or admin act.
    Act(Box<Authorized>),
}

type Job = (Order, oneshot::Sender<Result<Ack, Refusal>>);

/// The way to the registrar's thread.
#[derive(Debug, Clone)]
pub struct Registrar {
    queue: mpsc::Sender<Job>,
}

impl Registrar {
    /// Starts the thread. It ends when the last `Registrar` is dropped.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn start(
        state: Arc<State>,
        journal: Box<dyn Journal>,
        root: SigningKey,
        clock: Arc<Clock>,
        limits: Limits,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (queue, mut jobs) = mpsc::channel::<Job>(QUEUE);
        let mut desk = Desk {
            state,
            journal,
            root,
            clock,
            limits,
        };
        let thread = std::thread::Builder::new()
            .name("registrar".into())
            .spawn(move || {
                while let Some((order, answer)) = jobs.blocking_recv() {
                    // Whoever asked may be gone; what was ordered is done all the same.
                    let _ = answer.send(desk.carry_out(order));
                }
            })?;
        Ok((Self { queue }, thread))
    }

    /// Has an order carried out.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] when too many wait, and whatever refuses the order.
    pub async fn order(&self, order: Order) -> Result<Ack, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.queue
            .try_send((order, answer))
            .map_err(|_| Refusal::Busy("the registrar's queue"))?;
        answered.await.map_err(|_| Refusal::Internal)?
    }
}

struct Desk {
    state: Arc<State>,
    journal: Box<dyn Journal>,
    root: SigningKey,
    clock: Arc<Clock>,
    limits: Limits,
}

impl Desk {
    fn carry_out(&mut self, order: Order) -> Result<Ack, Refusal> {
        match order {
            Order::Register(newcomer, from) => self.register(&newcomer, &from),
            Order::Act(act) => self.act(&act),
        }
    }

    fn act(&mut self, act: &Authorized) -> Result<Ack, Refusal> {
        // Decided before it waited here: the key, and what it may, can have changed meanwhile.
        let agent = self.state.registry.agent(act.agent().name());
        if agent.is_none_or(|agent| agent.key != *act.key()) {
            return Err(Refusal::UnknownAgent(act.agent().clone()));
        }
        self.check_still_holds(act)?;
        match act.envelope().kind() {
            Kind::Revoke => self.revoke(act),
            Kind::RotateKey => self.rotate(act),
            Kind::AdminAgentList => self.list_agents(act),
            Kind::AdminAgentShow => self.show(act),
            Kind::AdminAgentApprove => self.approve(act),
            Kind::AdminAgentDeny => self.deny(act),
            Kind::AdminAgentRevoke => self.revoke_agent(act),
            Kind::AdminTokenIssue => self.issue(act),
            Kind::AdminTokenList => self.list_tokens(act),
            Kind::AdminEnrolIssue => self.issue_enrolment(act),
            kind => Err(Refusal::UnknownType(kind.to_string())),
        }
    }

    /// Asks again what permitted an act that is done by a grant on record.
    fn check_still_holds(&self, act: &Authorized) -> Result<(), Refusal> {
        let Permit::Held {
            token: Some(token), ..
        } = act.permit()
        else {
            return Ok(());
        };
        self.state
            .revocations
            .alive(token)
            .map_err(|_| Refusal::Denied(act.envelope().kind().to_string()))
    }

    /// Makes a change durable, then takes it over. In this order: what is in force is on disk.
    fn commit(&mut self, change: &Change) -> Result<(), Refusal> {
        self.journal
            .append(std::slice::from_ref(change))
            .map_err(|error| {
                tracing::error!(%error, "a change was not made");
                match error {
                    JournalError::Write(why) => Refusal::StorageFull(why),
                    _ => Refusal::Internal,
                }
            })?;
        self.state.apply(change).map_err(|error| {
            tracing::error!(%error, "a durable change was not taken over");
            Refusal::Internal
        })?;
        self.close_sessions_that_lost_their_key(change);
        Ok(())
    }

    fn close_sessions_that_lost_their_key(&self, change: &Change) {
        let (Change::AgentRevoked { name, .. }
        | Change::Approved { name, .. }
        | Change::Enrolled { name, .. }
        | Change::Rotated { name, .. }) = change
        else {
            return;
        };
        let key = self.state.registry.agent(name).map(|agent| agent.key);
        for session in self.state.sessions.of(name) {
            if Some(*session.key()) != key {
                // Out of every list first: nothing is routed to it while its connection closes.
                self.state.sessions.detach(&session);
                session.close();
            }
        }
    }

    // --- registering -----------------------------------------------------------------------------

    fn register(&mut self, newcomer: &Newcomer, from: &str) -> Result<Ack, Refusal> {
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
            return Ok(registered(&agent));
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
                Ok(Ack::Pending)
            }
        }
    }

    fn enrol(&mut self, newcomer: &Newcomer, text: &str) -> Result<Ack, Refusal> {
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
        self.commit(&Change::Enrolled {
            enrolment: id,
            name: name.clone(),
            key: request.pubkey,
            grant,
            prefixes,
            at,
        })?;
        self.state
            .registry
            .agent(name)
            .map(|agent| registered(&agent))
            .ok_or(Refusal::Internal)
    }

    fn rotate(&mut self, act: &Authorized) -> Result<Ack, Refusal> {
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
        self.commit(&Change::Rotated {
            name,
            from: *act.key(),
            to,
            grants,
            at: now,
        })?;
        Ok(Ack::Rotated { key: to })
    }

    // --- agents ----------------------------------------------------------------------------------

    fn list_agents(&self, act: &Authorized) -> Result<Ack, Refusal> {
        let body: message::List = act.envelope().read_body()?;
        let scope = self.scope(act)?;
        let visible = |name: &Name| scope.names.iter().any(|pattern| pattern.matches(name));
        let agents = self.state.registry.agents();
        let (page, next) = page(
            agents
                .iter()
                .filter(|agent| visible(&agent.name))
                .map(|agent| self.record_of(agent)),
            |record| record.name.to_string(),
            body.after,
        );
        let pending = self
            .pending(None)
            .into_iter()
            .filter(|one| visible(&one.name))
            .collect();
        Ok(Ack::Agents {
            agents: page,
            pending,
            next,
        })
    }

    fn show(&self, act: &Authorized) -> Result<Ack, Refusal> {
        let body: AgentShow = act.envelope().read_body()?;
        self.check_name(act, &body.name)?;
        let agent = self
            .state
            .registry
            .agent(&body.name)
            .map(|agent| self.record_of(&agent));
        let pending = self.pending(Some(&body.name));
        if agent.is_none() && pending.is_empty() {
            return Err(Refusal::NotFound(format!("agent or request {}", body.name)));
        }
        Ok(Ack::Agent { agent, pending })
    }

    fn approve(&mut self, act: &Authorized) -> Result<Ack, Refusal> {
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
        self.commit(&Change::Approved {
            name: body.name.clone(),
            key: body.key,
            grant,
            prefixes,
            admin,
            by: act.agent().name().clone(),
            at,
        })?;
        let agent = self
            .state
            .registry
            .agent(&body.name)
            .map(|agent| self.record_of(&agent));
        Ok(Ack::Agent {
            agent,
            pending: self.pending(Some(&body.name)),
        })
    }

    fn deny(&mut self, act: &Authorized) -> Result<Ack, Refusal> {
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
        self.commit(&Change::Denied {
            name: body.name,
            key: body.key,
            reason: body.reason,
            by: act.agent().name().clone(),
            at: self.clock.now(),
        })?;
        Ok(Ack::DeniedRequest)
    }

    fn revoke_agent(&mut self, act: &Authorized) -> Result<Ack, Refusal> {
        let body: AgentRevoke = act.envelope().read_body()?;
        bound("reason", body.reason.as_deref())?;
        self.check_name(act, &body.name)?;
        let agent = self
            .state
            .registry
            .agent(&body.name)
            .ok_or_else(|| Refusal::NotFound(format!("agent {}", body.name)))?;
        self.check_is_not_the_last_admin(&agent)?;
        self.commit(&Change::AgentRevoked {
            name: body.name,
            key: agent.key,
            reason: body.reason,
            by: act.agent().name().clone(),
            at: self.clock.now(),
        })?;
        Ok(Ack::Revoked {
            ids: agent.grants.iter().map(|token| grant_id(token)).collect(),
        })
    }

    /// The organisation keeps at least one admin who may do everything.
    fn check_is_not_the_last_admin(&self, agent: &Agent) -> Result<(), Refusal> {
        let full = |agent: &Agent| agent.admin.as_ref().is_some_and(is_full);
        let others = self.state.registry.agents();
        let remains = |other: &Arc<Agent>| other.name != agent.name && full(other);
        if full(agent) && !others.iter().any(remains) {
            return Err(Refusal::Conflict("this is the last full admin".into()));
        }
        Ok(())
    }

    // --- tokens ----------------------------------------------------------------------------------

    fn issue(&mut self, act: &Authorized) -> Result<Ack, Refusal> {
        let body: TokenIssue = act.envelope().read_body()?;
        let at = self.clock.now();
        self.check_name(act, &body.agent)?;
        self.check_grantable(act, &body.capabilities)?;
        if body.capabilities.is_empty() {
            return Err(Refusal::InvalidBody(
                "a grant needs at least one capability".into(),
            ));
        }
        let agent = self
            .state
            .registry
            .agent(&body.agent)
            .ok_or_else(|| Refusal::NotFound(format!("agent {}", body.agent)))?;
        let longest = Duration::from_secs(self.limits.token_lifetime_max_s);
        let usual = Duration::from_secs(self.limits.token_lifetime_s);
        let expires = body.expires.unwrap_or_else(|| at.later(usual));
        if expires <= at || (!body.record && expires > at.later(longest)) {
            return Err(Refusal::InvalidBody(format!(
                "`expires` lies in the past, or more than {} s ahead",
                longest.as_secs()
            )));
        }
        let checks = body
            .checks
            .iter()
            .map(|text| {
                text.parse::<Check>()
                    .map_err(|error| Refusal::InvalidBody(error.to_string()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let unsealed = self.mint(&Terms {
            agent: AgentId::new(body.agent.clone(), self.state.org.clone()),
            holder: agent.key,
            capabilities: body.capabilities.clone(),
            issued: at,
            not_before: body.not_before,
            expires,
            checks,
            sandbox: body.sandbox,
            calls: None,
        })?;
        let sealed = sealed(&unsealed)?;
        let id = self.id_of(&sealed)?;
        self.commit(&Change::Issued {
            id,
            agent: body.agent,
            capabilities: body.capabilities,
            checks: body.checks,
            expires,
            record: body.record.then(|| encode_text(&sealed)),
            by: act.agent().name().clone(),
            at,
        })?;
        Ok(Ack::Issued {
            id,
            token: (!body.record).then(|| encode_text(&unsealed)),
            expires,
        })
    }

    fn issue_enrolment(&mut self, act: &Authorized) -> Result<Ack, Refusal> {
        let body: EnrolIssue = act.envelope().read_body()?;
        let at = self.clock.now();
        self.check_name_pattern(act, &body.name)?;
        self.check_grantable(act, &body.ceiling)?;
        let forbidden = ["admin.", "broker.", "enrol."];
        if body.ceiling.iter().any(|pattern| {
            forbidden
                .iter()
                .any(|under| pattern.as_str().starts_with(under))
        }) {
            return Err(Refusal::InvalidBody(
                "no ceiling lies under admin, broker or enrol".into(),
            ));
        }
        check_prefixes(&body.prefixes)?;
        let usual = Duration::from_secs(self.limits.token_lifetime_s);
        let longest = Duration::from_secs(self.limits.token_lifetime_max_s);
        let expires = body.expires.unwrap_or_else(|| at.later(usual));
        if expires <= at || expires > at.later(longest) {
            return Err(Refusal::InvalidBody(
                "`expires` lies in the past, or too far ahead".into(),
            ));
        }
        let uses = body.uses.unwrap_or(1);
        let terms = Enrolment {
            name: body.name.clone(),
            ceiling: body.ceiling.clone(),
            prefixes: body.prefixes.clone(),
            uses,
        };
        let sealed = issue::enrolment(&self.root, &self.state.org, &terms, at, expires, entropy()?)
            .map_err(|error| bad_terms(&error))?;
        let id = self.id_of(&sealed)?;
        self.commit(&Change::EnrolmentIssued {
            id,
            name: body.name,
            ceiling: body.ceiling,
            uses,
            expires,
            by: act.agent().name().clone(),
            at,
        })?;
        Ok(Ack::Issued {
            id,
            token: Some(encode_text(&sealed)),
            expires,
        })
    }

    fn list_tokens(&self, act: &Authorized) -> Result<Ack, Refusal> {
        let body: message::List = act.envelope().read_body()?;
        let scope = self.scope(act)?;
        let visible = |record: &TokenRecord| match record.subject.parse::<Name>() {
            Ok(name) => scope.names.iter().any(|pattern| pattern.matches(&name)),
            Err(_) => is_full(&scope),
        };
        let position =
            |record: &TokenRecord| format!("{:020} {}", record.issued.as_ms(), record.id);
        let all = self.state.registry.issued();
        let (tokens, next) = page(all.into_iter().filter(visible), position, body.after);
        Ok(Ack::Tokens { tokens, next })
    }

    fn revoke(&mut self, act: &Authorized) -> Result<Ack, Refusal> {
        let body: Revoke = act.envelope().read_body()?;
        bound("reason", body.reason.as_deref())?;
        if body.ids.is_empty() || body.ids.len() > 64 {
            return Err(Refusal::InvalidBody(
                "`ids` holds 1 to 64 revocation ids".into(),
            ));
        }
        if body.token.is_none() {
            self.check_may_revoke(act, &body.ids)?;
        }
        // A grant that was issued anew to a rotated key is revoked under either id.
        let ids = self.state.registry.with_successors(&body.ids);
        self.commit(&Change::Revoked {
            ids: ids.clone(),
            reason: body.reason,
            by: act.agent().name().clone(),
            at: self.clock.now(),
        })?;
        Ok(Ack::Revoked { ids })
    }

    /// An admin revokes what was issued to the agents it may act on; only a full admin revokes ids
    /// that the broker did not issue, since nobody knows whose they are.
    fn check_may_revoke(&self, act: &Authorized, ids: &[Digest]) -> Result<(), Refusal> {
        let scope = self.scope(act)?;
        for id in ids {
            let current = self
                .state
                .registry
                .with_successors(std::slice::from_ref(id));
            let issued = current
                .iter()
                .find_map(|id| self.state.registry.issued_by_id(id));
            let name = issued.and_then(|record| record.subject.parse::<Name>().ok());
            let may = match name {
                Some(name) => scope.names.iter().any(|pattern| pattern.matches(&name)),
                None => is_full(&scope),
            };
            if !may {
                return Err(Refusal::NotFound(format!("token {id}")));
            }
        }
        Ok(())
    }

    // --- what an admin may ---------------------------------------------------------------------

    fn scope(&self, act: &Authorized) -> Result<AdminScope, Refusal> {
        let admin = self
            .state
            .registry
            .agent(act.agent().name())
            .and_then(|agent| agent.admin.clone());
        admin.ok_or_else(|| Refusal::Denied("an agent without an admin's scope".into()))
    }

    /// An admin acts on the agents that its patterns name, and on no admin of a wider scope.
    fn check_name(&self, act: &Authorized, name: &Name) -> Result<(), Refusal> {
        if let Some(scope) = self
            .state
            .registry
            .agent(name)
            .and_then(|agent| agent.admin.clone())
        {
            self.check_scope(act, &scope)?;
        }
        let may = self
            .scope(act)?
            .names
            .iter()
            .any(|pattern| pattern.matches(name));
        if may {
            Ok(())
        } else {
            Err(Refusal::Denied(format!("acting on {name}")))
        }
    }

    fn check_name_pattern(&self, act: &Authorized, name: &NamePattern) -> Result<(), Refusal> {
        let may = self
            .scope(act)?
            .names
            .iter()
            .any(|pattern| pattern.contains(name));
        if may {
            Ok(())
        } else {
            Err(Refusal::Denied(format!("acting on {name}")))
        }
    }

    fn check_grantable(&self, act: &Authorized, asked: &[Pattern]) -> Result<(), Refusal> {
        check_count(asked)?;
        let grantable = self.scope(act)?.grantable;
        match asked
            .iter()
            .find(|one| !grantable.iter().any(|pattern| pattern.covers(one)))
        {
            None => Ok(()),
            Some(beyond) => Err(Refusal::Denied(format!("granting {beyond}"))),
        }
    }

    fn check_scope(&self, act: &Authorized, asked: &AdminScope) -> Result<(), Refusal> {
        self.check_grantable(act, &asked.grantable)?;
        asked
            .names
            .iter()
            .try_for_each(|name| self.check_name_pattern(act, name))
    }

    /// One key has one name, and a dead key has none.
    fn check_key_is_free(&self, name: &Name, key: &PublicKey) -> Result<(), Refusal> {
        if self.state.revocations.is_key_revoked(key) {
            return Err(Refusal::Conflict("this key is revoked".into()));
        }
        match self.state.registry.owner(key) {
            Some(owner) if owner != *name => {
                Err(Refusal::Conflict(format!("this key is {owner}'s")))
            }
            _ => Ok(()),
        }
    }

    // --- minting ---------------------------------------------------------------------------------

    fn mint(&self, terms: &Terms) -> Result<Vec<u8>, Refusal> {
        issue::grant(&self.root, &self.state.org, terms, entropy()?)
            .map_err(|error| bad_terms(&error))
    }

    fn mint_record(
        &self,
        name: &Name,
        holder: PublicKey,
        capabilities: &[Pattern],
        issued: Timestamp,
        expires: Timestamp,
    ) -> Result<Option<String>, Refusal> {
        if capabilities.is_empty() {
            return Ok(None);
        }
        let unsealed = self.mint(&Terms {
            agent: AgentId::new(name.clone(), self.state.org.clone()),
            holder,
            capabilities: capabilities.to_vec(),
            issued,
            not_before: None,
            expires,
            checks: Vec::new(),
            sandbox: None,
            calls: None,
        })?;
        Ok(Some(encode_text(&sealed(&unsealed)?)))
    }

    fn id_of(&self, sealed: &[u8]) -> Result<Digest, Refusal> {
        Token::open(sealed, &self.state.roots).map(|token| grant_id(&token))
    }

    // --- showing -----------------------------------------------------------------------------------

    fn record_of(&self, agent: &Agent) -> AgentRecord {
        AgentRecord {
            name: agent.name.clone(),
            key: agent.key,
            fingerprint: agent.key.fingerprint(),
            capabilities: agent.capabilities(),
            prefixes: agent.prefixes.clone(),
            admin: agent.admin.clone(),
            sessions: self.state.sessions.of(&agent.name).len() as u32,
            since: agent.since,
        }
    }

    fn pending(&self, name: Option<&Name>) -> Vec<PendingRecord> {
        let mut all = self.state.pending.waiting(name);
        for one in &mut all {
            one.key_change = self.state.registry.agent(&one.name).is_some();
        }
        all
    }
}

/// Founds the first admin: everything grantable, to everyone.
pub(crate) fn first_admin(
    root: &SigningKey,
    admin: &AgentId,
    key: PublicKey,
    at: Timestamp,
) -> Result<Change, Refusal> {
    let reserved = proto_spec::identity::RESERVED
        .iter()
        .map(|segment| format!("{segment}.*"));
    let all: Vec<Pattern> = reserved
        .chain(["*".into()])
        .filter_map(|pattern| pattern.parse().ok())
        .collect();
    let everyone = "*".parse().map_err(|_| Refusal::Internal)?;
    let terms = Terms {
        agent: admin.clone(),
        holder: key,
        capabilities: all.clone(),
        issued: at,
        not_before: None,
        expires: at.later(APPROVAL_LIFETIME),
        checks: Vec::new(),
        sandbox: None,
        calls: None,
    };
    let unsealed =
        issue::grant(root, admin.org(), &terms, entropy()?).map_err(|error| bad_terms(&error))?;
    Ok(Change::Approved {
        name: admin.name().clone(),
        key,
        grant: Some(encode_text(&sealed(&unsealed)?)),
        prefixes: default_prefixes(admin.name()),
        admin: Some(AdminScope {
            grantable: all,
            names: vec![everyone],
        }),
        by: admin.name().clone(),
        at,
    })
}

fn registered(agent: &Agent) -> Ack {
    Ack::Registered {
        capabilities: agent.capabilities(),
        prefixes: agent.prefixes.clone(),
    }
}

fn is_full(scope: &AdminScope) -> bool {
    let covers = |text: &str| {
        scope
            .grantable
            .iter()
            .any(|pattern| pattern.as_str() == text)
    };
    covers("*") && covers("admin.*") && scope.names.iter().any(|name| name.as_str() == "*")
}

/// The terms of a grant on record, for another key.
fn reissue_terms(token: &Token, agent: &AgentId, holder: PublicKey) -> Result<Terms, Refusal> {
    let own = token.blocks().first().ok_or(Refusal::Internal)?;
    Ok(Terms {
        agent: agent.clone(),
        holder,
        capabilities: token.capabilities().to_vec(),
        issued: token.issued(),
        not_before: token.not_before(),
        expires: token.expires(),
        checks: own
            .checks()
            .iter()
            .filter(|check| !check.is_time_limit())
            .cloned()
            .collect(),
        sandbox: token.sandbox().map(str::to_owned),
        calls: token.calls(),
    })
}

fn sealed(unsealed: &[u8]) -> Result<Vec<u8>, Refusal> {
    issue::seal(unsealed).map_err(|error| bad_terms(&error))
}

fn bad_terms(error: &BadTerms) -> Refusal {
    Refusal::InvalidBody(error.to_string())
}

fn entropy() -> Result<[u8; 32], Refusal> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| {
        tracing::error!(%error, "the system gives no randomness");
        Refusal::Internal
    })?;
    Ok(bytes)
}

fn bound(what: &str, text: Option<&str>) -> Result<(), Refusal> {
    match text {
        Some(text) if text.chars().count() > NOTE_CHARS_MAX => Err(Refusal::InvalidBody(format!(
            "`{what}` has more than {NOTE_CHARS_MAX} characters"
        ))),
        _ => Ok(()),
    }
}

fn check_count(patterns: &[Pattern]) -> Result<(), Refusal> {
    if patterns.len() > CAPABILITIES_MAX {
        return Err(Refusal::InvalidBody(format!(
            "more than {CAPABILITIES_MAX} patterns"
        )));
    }
    Ok(())
}

/// Tool prefixes end in `.*` and lie under no reserved segment.
fn check_prefixes(prefixes: &[Pattern]) -> Result<(), Refusal> {
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

/// One page of what is sorted by `position`, beginning after `after`.
fn page<T>(
    all: impl Iterator<Item = T>,
    position: impl Fn(&T) -> String,
    after: Option<String>,
) -> (Vec<T>, Option<String>) {
    let after = after.unwrap_or_default();
    let mut rest = all
        .filter(|one| after.is_empty() || position(one) > after)
        .peekable();
    let page: Vec<T> = rest.by_ref().take(PAGE).collect();
    let next = rest.peek().and(page.last()).map(position);
    (page, next)
}
