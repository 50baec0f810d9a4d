//! Taking back: blocks, agents, whole capabilities, an agent with all that flows from it.
//!
//! What would be struck is computed first, in one place, so that a dry run and the act cannot differ.

use std::collections::BTreeSet;

use proto_spec::message::{Ack, AgentRevoke, Revoke, Struck, TokenRevoke};
use proto_spec::{Authorized, Digest, Name, Pattern, PublicKey, Refusal, Timestamp};

use super::admin::read;
use super::scope::{By, is_full};
use super::{Decision, Desk, answer, bound, change};
use crate::change::Change;
use crate::state::calls::Blow;
use crate::state::registry::{Record, Subject};

/// Revocation ids in one act.
const IDS_MAX: usize = 64;
/// Ids and names that an answer spells out.
const SHOWN: usize = 512;

impl Desk {
    /// `revoke`: by whoever held the block, or by an admin.
    pub(super) fn revoke(&mut self, act: &Authorized) -> Result<Decision, Refusal> {
        let body: Revoke = act.envelope().read_body()?;
        bound("reason", body.reason.as_deref())?;
        let by = By::one(act.agent().name());
        match &body.token {
            None => self.check_may_revoke(&by, &body.ids)?,
            Some(_) => self.count_own_act(act.agent().name())?,
        }
        self.revoke_ids(&body.ids, body.reason, &by, false)
    }

    /// `admin.token.revoke`.
    pub(super) fn revoke_tokens(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let body: TokenRevoke = read(body)?;
        bound("reason", body.reason.as_deref())?;
        match (body.ids.is_empty(), body.under.is_empty()) {
            (false, true) => {
                self.check_may_revoke(by, &body.ids)?;
                self.revoke_ids(&body.ids, body.reason, by, body.dry_run)
            }
            (true, false) => self.bar(body, by),
            _ => Err(Refusal::InvalidBody(
                "exactly one of `ids` and `under`".into(),
            )),
        }
    }

    fn revoke_ids(
        &self,
        ids: &[Digest],
        reason: Option<String>,
        by: &By,
        dry_run: bool,
    ) -> Result<Decision, Refusal> {
        if ids.is_empty() || ids.len() > IDS_MAX {
            return Err(Refusal::InvalidBody(format!(
                "`ids` holds 1 to {IDS_MAX} revocation ids"
            )));
        }
        // A grant that was issued anew is revoked under either id.
        let ids = self.state.registry.with_successors(ids);
        let admins = |id: &Digest| {
            let record = self.state.registry.issued_by_id(id)?;
            let agent = self.state.registry.agent(record.subject.agent()?)?;
            let is_its_right = agent.has_grant(id) && record.capabilities.iter().any(is_admins);
            is_its_right.then(|| agent.name.clone())
        };
        let disarmed: Vec<Name> = ids.iter().filter_map(admins).collect();
        self.check_a_full_admin_remains(&disarmed)?;
        let struck = Struck {
            tokens: ids.len() as u64,
            ids: ids.iter().take(SHOWN).copied().collect(),
            ..self.in_flight(&Blow::ids(&ids))
        };
        if dry_run {
            return Ok(answer(Ack::WouldRevoke(struck)));
        }
        if ids.iter().all(|id| self.state.revocations.is_revoked(id)) {
            return Ok(answer(Ack::Revoked(struck)));
        }
        let revoked = Change::Revoked {
            ids,
            reason,
            by: by.first.clone(),
            at: self.clock.now(),
        };
        Ok(change(revoked, |_| Ack::Revoked(struck)))
    }

    /// An admin revokes what was issued to the agents it may act on; only a full admin revokes ids
    /// that the broker did not issue, since nobody knows whose they are.
    fn check_may_revoke(&self, by: &By, ids: &[Digest]) -> Result<(), Refusal> {
        let scope = self.scope(&by.first)?;
        for id in ids {
            let current = self
                .state
                .registry
                .with_successors(std::slice::from_ref(id));
            let record = current
                .iter()
                .find_map(|id| self.state.registry.issued_by_id(id));
            let may = match record.as_ref().and_then(|record| record.subject.agent()) {
                // Also on no admin of a wider scope.
                Some(name) => self.check_name(by, name).is_ok(),
                None => is_full(&scope),
            };
            if !may {
                return Err(Refusal::NotFound(format!("token {id}")));
            }
        }
        Ok(())
    }

    /// Whatever was issued up to a time permits nothing under some patterns any more.
    fn bar(&self, body: TokenRevoke, by: &By) -> Result<Decision, Refusal> {
        self.check_is_full(by)?;
        self.check_grantable(by, &body.under)?;
        let at = self.clock.now();
        if body.before.is_some_and(|before| before > at) {
            return Err(Refusal::InvalidBody("`before` lies ahead".into()));
        }
        // What was issued since another bar in this second bears the next one, and is struck too.
        let newest = self.state.revocations.after_bars(at);
        let before = body.before.unwrap_or(newest);
        if !self.state.revocations.has_room(body.under.len()) {
            return Err(Refusal::Busy("the list of barred patterns"));
        }
        self.check_an_admin_outlives(&body.under, before)?;
        let mut struck = self.in_flight(&Blow::bar(&body.under, before));
        self.state.registry.each_issued(None, |record| {
            let is_struck = record.issued.as_secs() <= before.as_secs()
                && !self.state.revocations.is_revoked(&record.id)
                && record
                    .capabilities
                    .iter()
                    .any(|one| body.under.iter().any(|bar| bar.overlap(one).is_some()));
            if is_struck {
                struck.tokens += 1;
                if struck.ids.len() < SHOWN {
                    struck.ids.push(record.id);
                }
            }
            true
        });
        if body.dry_run {
            return Ok(answer(Ack::WouldRevoke(struck)));
        }
        let barred = Change::Barred {
            under: body.under,
            before,
            reason: body.reason,
            by: by.first.clone(),
            at,
        };
        Ok(change(barred, |_| Ack::Revoked(struck)))
    }

    /// A bar on admin acts leaves a full admin whose approval is younger.
    fn check_an_admin_outlives(&self, under: &[Pattern], before: Timestamp) -> Result<(), Refusal> {
        if !under.iter().any(is_admins) {
            return Ok(());
        }
        let mut outlives = false;
        self.state.registry.each_agent(|agent| {
            let is_young = |record: &std::sync::Arc<Record>| {
                let acts = &record.capabilities;
                record.issued.as_secs() > before.as_secs()
                    && acts.iter().any(|one| one.as_str() == "admin.*")
            };
            outlives |= self.may_all(agent) && agent.grants.records().iter().any(is_young);
        });
        if outlives {
            Ok(())
        } else {
            Err(Refusal::Conflict(
                "this would leave no full admin: approve one anew first".into(),
            ))
        }
    }

    pub(super) fn revoke_agent(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let body: AgentRevoke = read(body)?;
        bound("reason", body.reason.as_deref())?;
        self.check_name(by, &body.name)?;
        let found = self.state.registry.agent(&body.name);
        let agent = found.ok_or_else(|| Refusal::NotFound(format!("agent {}", body.name)))?;
        self.check_a_full_admin_remains(std::slice::from_ref(&body.name))?;
        let issued = self.state.registry.issued_to(&body.name);
        let live = issued.iter().filter(|record| !self.state.is_dead(record));
        let ids: Vec<Digest> = live.map(|record| record.id).collect();
        let struck = Struck {
            agents: vec![body.name.clone()],
            tokens: ids.len() as u64,
            ids: ids.iter().take(SHOWN).copied().collect(),
            ..self.in_flight(&Blow::keys([agent.key.key()]))
        };
        if body.dry_run {
            return Ok(answer(Ack::WouldRevoke(struck)));
        }
        let revoked = Change::AgentRevoked {
            name: body.name,
            key: agent.key.key(),
            reason: body.reason,
            by: by.first.clone(),
            at: self.clock.now(),
        };
        let tokens = self.without_key(&agent.name, by);
        Ok(Decision::Change(
            std::iter::once(revoked).chain(tokens).collect(),
            Box::new(|_| Some(Ack::Revoked(struck))),
        ))
    }

    /// The end of all tokens that were handed out for an agent, for when its key goes: bearer tokens hang on no
    /// key, and would be good again when the broker keeps one for that name again.
    pub(super) fn without_key(&self, name: &Name, by: &By) -> Option<Change> {
        let at = self.clock.now();
        let issued = self.state.registry.issued_to(name);
        let ids = issued.iter().filter(|record| {
            record.text.is_none()
                && record.expires > at
                && !self.state.revocations.is_revoked(&record.id)
        });
        let ids: Vec<Digest> = ids.map(|record| record.id).collect();
        (!ids.is_empty()).then(|| Change::Revoked {
            ids,
            reason: None,
            by: by.first.clone(),
            at,
        })
    }

    /// The kill switch: the agent, what it issued as an admin, whoever came in through that, and the
    /// enrolment token by which it came in itself. What it delegated dies with its key.
    pub(super) fn quarantine(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let body: AgentRevoke = read(body)?;
        bound("reason", body.reason.as_deref())?;
        let (agents, ids) = self.descendants(&body.name)?;
        let names: Vec<Name> = agents.iter().map(|(name, _)| name.clone()).collect();
        if by.all().any(|admin| names.contains(admin)) {
            return Err(Refusal::Conflict(
                "the admin who orders this would be struck itself".into(),
            ));
        }
        names
            .iter()
            .try_for_each(|name| self.check_name(by, name))?;
        let disarmed = ids.iter().filter_map(|id| {
            let record = self.state.registry.issued_by_id(id)?;
            record.subject.agent().cloned()
        });
        let gone: Vec<Name> = names.iter().cloned().chain(disarmed).collect();
        self.check_a_full_admin_remains(&gone)?;
        let blow = Blow::keys(agents.iter().map(|(_, key)| *key)).with_ids(&ids);
        let struck = Struck {
            ids: ids.iter().take(SHOWN).copied().collect(),
            agents: names.iter().take(SHOWN).cloned().collect(),
            tokens: ids.len() as u64,
            ..self.in_flight(&blow)
        };
        if body.dry_run {
            return Ok(answer(Ack::WouldRevoke(struck)));
        }
        let quarantined = Change::Quarantined {
            name: body.name,
            agents,
            ids,
            reason: body.reason,
            by: by.first.clone(),
            at: self.clock.now(),
        };
        Ok(change(quarantined, |_| Ack::Revoked(struck)))
    }

    /// An agent and whoever has its authority from it, with everything that they were issued or issued.
    #[expect(clippy::type_complexity, reason = "agents with their keys, and ids")]
    fn descendants(&self, name: &Name) -> Result<(Vec<(Name, PublicKey)>, Vec<Digest>), Refusal> {
        // It may be revoked already: what flows from it is not.
        let found = self.state.registry.agent(name);
        let enrolment = found.as_ref().and_then(|agent| agent.enrolment);
        let mut names = BTreeSet::from([name.clone()]);
        let mut ids: BTreeSet<Digest> = enrolment.into_iter().collect();
        loop {
            let before = (names.len(), ids.len());
            let mut approved = BTreeSet::new();
            self.state.registry.each_issued(None, |record| {
                let is_from = |names: &BTreeSet<Name>, name: Option<&Name>| {
                    name.is_some_and(|name| names.contains(name))
                };
                // What an admin issued to itself at the founding has itself as its issuer.
                if is_from(&names, record.issuer.as_ref())
                    || is_from(&names, record.subject.agent())
                {
                    ids.insert(record.id);
                }
                // Whom it approved and who is gone since may have passed its authority on.
                if let (Subject::Approval(name), true) =
                    (&record.subject, is_from(&names, record.issuer.as_ref()))
                    && self.state.registry.agent(name).is_none()
                {
                    approved.insert(name.clone());
                }
                true
            });
            names.append(&mut approved);
            self.state.registry.each_agent(|agent| {
                let came_by =
                    agent.by.is_none() && agent.enrolment.is_some_and(|id| ids.contains(&id));
                let was_approved = agent.by.as_ref().is_some_and(|by| names.contains(by));
                // The enrolment token of the first agent dies; its other bearers have nothing from it.
                let is_siblings = agent.enrolment == enrolment && agent.name != *name;
                if was_approved || (came_by && !is_siblings) {
                    names.insert(agent.name.clone());
                }
            });
            if before == (names.len(), ids.len()) {
                break;
            }
        }
        if found.is_none() && ids.is_empty() && names.len() == 1 {
            return Err(Refusal::NotFound(format!("agent {name}")));
        }
        let agents = names.into_iter().filter_map(|name| {
            let agent = self.state.registry.agent(&name)?;
            Some((name, agent.key.key()))
        });
        let is_live = |id: &Digest| {
            let record = self.state.registry.issued_by_id(id);
            record.is_none_or(|record| !self.state.is_dead(&record))
        };
        Ok((agents.collect(), ids.into_iter().filter(is_live).collect()))
    }

    /// What a blow strikes of what is under way: calls, and sessions.
    fn in_flight(&self, blow: &Blow) -> Struck {
        let calls = self.state.calls.which(|call| blow.strikes(call)).len();
        let sessions = self.state.sessions.all();
        let sessions = sessions.iter().filter(|one| blow.strikes_key(one.key()));
        Struck {
            calls: calls as u64,
            sessions: sessions.count() as u64,
            ..Struck::default()
        }
    }
}

fn is_admins(pattern: &Pattern) -> bool {
    pattern.as_str() == "admin" || pattern.as_str().starts_with("admin.")
}
