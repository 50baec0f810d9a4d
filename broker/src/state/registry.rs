//! Who is registered, with which key and which grants; and what was issued.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use dashmap::DashMap;
use proto_spec::capability::Token;
use proto_spec::message::{AdminScope, TokenRecord};
use proto_spec::{Digest, Name, Pattern, PublicKey, Timestamp};

use super::Misfit;
use crate::change::{Change, Reissued};

/// An approved agent. Replaced as a whole when anything about it changes.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its name.
    pub name: Name,
    /// The key that signs for it.
    pub key: PublicKey,
    /// Under which it may offer tools.
    pub prefixes: Vec<Pattern>,
    /// Beyond which it grants nothing, if it is an admin.
    pub admin: Option<AdminScope>,
    /// The grant of its approval, if that gave any.
    pub approval: Option<Digest>,
    /// Every grant on record, its approval's first.
    pub grants: Arc<[Arc<Token>]>,
    /// Since when.
    pub since: Timestamp,
    /// The enrolment token by which it came in.
    pub enrolment: Option<Digest>,
}

impl Agent {
    /// Everything that its grants on record cover, sorted.
    #[must_use]
    pub fn capabilities(&self) -> Vec<Pattern> {
        let mut all: Vec<Pattern> = self
            .grants
            .iter()
            .flat_map(|token| token.capabilities().iter().cloned())
            .collect();
        all.sort();
        all.dedup();
        all
    }
}

/// Agents by name, and what was issued by time.
#[derive(Debug, Default)]
pub struct Registry {
    agents: DashMap<Name, Arc<Agent>>,
    issued: RwLock<BTreeMap<(Timestamp, Digest), TokenRecord>>,
    /// Sealed grants on record that have conditions of their own: their providers check them again.
    texts: DashMap<Digest, Arc<str>>,
    /// Of grants that were issued anew to a rotated key: the id before, and the one after.
    successors: DashMap<Digest, Digest>,
}

/// The revocation id of a token's authority block: what a grant is listed and revoked by.
#[must_use]
pub fn grant_id(token: &Token) -> Digest {
    token
        .blocks()
        .first()
        .map_or(Digest([0; 32]), |block| block.id().0)
}

impl Registry {
    /// The agent of this name.
    #[must_use]
    pub fn agent(&self, name: &Name) -> Option<Arc<Agent>> {
        self.agents.get(name).map(|entry| Arc::clone(&entry))
    }

    /// All agents, by name.
    #[must_use]
    pub fn agents(&self) -> Vec<Arc<Agent>> {
        let mut all: Vec<_> = self.agents.iter().map(|entry| Arc::clone(&entry)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The sealed text of a grant on record that has conditions of its own.
    #[must_use]
    pub fn grant_text(&self, id: &Digest) -> Option<Arc<str>> {
        self.texts.get(id).map(|text| Arc::clone(&text))
    }

    /// These ids, and those under which they were issued anew to rotated keys.
    #[must_use]
    pub fn with_successors(&self, ids: &[Digest]) -> Vec<Digest> {
        let mut all = ids.to_vec();
        let mut at = 0;
        while let Some(id) = all.get(at).copied() {
            let next = self.successors.get(&id).map(|next| *next);
            all.extend(next.filter(|next| !all.contains(next)));
            at += 1;
        }
        all
    }

    /// The agent that this key belongs to.
    #[must_use]
    pub fn owner(&self, key: &PublicKey) -> Option<Name> {
        self.agents
            .iter()
            .find(|entry| entry.key == *key)
            .map(|entry| entry.name.clone())
    }

    /// Whether another agent's prefixes overlap one of `prefixes`.
    #[must_use]
    pub fn overlap(&self, name: &Name, prefixes: &[Pattern]) -> Option<Name> {
        let overlaps = |a: &Pattern| prefixes.iter().any(|b| a.covers(b) || b.covers(a));
        self.agents
            .iter()
            .find(|entry| entry.name != *name && entry.prefixes.iter().any(overlaps))
            .map(|entry| entry.name.clone())
    }

    /// What was issued, in order of time.
    #[must_use]
    pub fn issued(&self) -> Vec<TokenRecord> {
        self.issued
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// One thing that was issued.
    #[must_use]
    pub fn issued_by_id(&self, id: &Digest) -> Option<TokenRecord> {
        let issued = self.issued.read().unwrap_or_else(PoisonError::into_inner);
        issued.values().find(|record| record.id == *id).cloned()
    }

    pub(super) fn remove(&self, name: &Name) {
        self.agents.remove(name);
    }

    /// Takes revoked grants off the record, so that no lookup has to ask again.
    pub(super) fn drop_grants(&self, ids: &[Digest]) {
        let dead = |token: &Arc<Token>| ids.contains(&grant_id(token));
        for mut entry in self.agents.iter_mut() {
            if entry.grants.iter().any(dead) {
                let mut agent = Agent::clone(&entry);
                agent.grants = agent
                    .grants
                    .iter()
                    .filter(|token| !dead(token))
                    .cloned()
                    .collect();
                *entry = Arc::new(agent);
            }
        }
        let mut issued = self.issued.write().unwrap_or_else(PoisonError::into_inner);
        for record in issued
            .values_mut()
            .filter(|record| ids.contains(&record.id))
        {
            record.revoked = true;
        }
    }

    pub(super) fn apply(
        &self,
        change: &Change,
        open: impl Fn(&str) -> Result<Arc<Token>, Misfit>,
    ) -> Result<(), Misfit> {
        let open = |text: &str| {
            let token = open(text)?;
            if !token.is_standard() {
                self.texts.insert(grant_id(&token), text.into());
            }
            Ok(token)
        };
        let open_all = |grant: &Option<String>| grant.as_deref().map(open).transpose();
        match change {
            Change::Approved {
                name,
                key,
                grant,
                prefixes,
                admin,
                at,
                ..
            } => {
                self.put(
                    name,
                    *key,
                    open_all(grant)?,
                    prefixes,
                    admin.clone(),
                    None,
                    *at,
                );
            }
            Change::Enrolled {
                enrolment,
                name,
                key,
                grant,
                prefixes,
                at,
            } => {
                self.put(
                    name,
                    *key,
                    open_all(grant)?,
                    prefixes,
                    None,
                    Some(*enrolment),
                    *at,
                );
                self.count_use(enrolment);
            }
            Change::Issued {
                id,
                agent,
                capabilities,
                checks,
                expires,
                record,
                by,
                at,
            } => {
                if let Some(token) = open_all(record)? {
                    self.add_grant(agent, token);
                }
                self.list(
                    *at,
                    TokenRecord {
                        id: *id,
                        kind: "grant".into(),
                        subject: agent.to_string(),
                        capabilities: capabilities.clone(),
                        checks: checks.clone(),
                        issued: *at,
                        expires: *expires,
                        issuer: by.clone(),
                        record: record.is_some(),
                        revoked: false,
                        uses_left: None,
                    },
                );
            }
            Change::EnrolmentIssued {
                id,
                name,
                ceiling,
                uses,
                expires,
                by,
                at,
            } => {
                self.list(
                    *at,
                    TokenRecord {
                        id: *id,
                        kind: "enrol".into(),
                        subject: name.to_string(),
                        capabilities: ceiling.clone(),
                        checks: Vec::new(),
                        issued: *at,
                        expires: *expires,
                        issuer: by.clone(),
                        record: false,
                        revoked: false,
                        uses_left: Some(*uses),
                    },
                );
            }
            Change::Rotated {
                name, to, grants, ..
            } => self.rotate(name, *to, grants, open)?,
            _ => {}
        }
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of one journal record"
    )]
    fn put(
        &self,
        name: &Name,
        key: PublicKey,
        grant: Option<Arc<Token>>,
        prefixes: &[Pattern],
        admin: Option<AdminScope>,
        enrolment: Option<Digest>,
        at: Timestamp,
    ) {
        let approval = grant.as_deref().map(grant_id);
        let before = self.agent(name);
        // Grants that were issued apart stay; the approval's own is replaced. Another key starts anew.
        let kept = before
            .filter(|agent| agent.key == key)
            .map_or_else(Vec::new, |agent| {
                let old = agent.approval;
                agent
                    .grants
                    .iter()
                    .filter(|token| Some(grant_id(token)) != old)
                    .cloned()
                    .collect()
            });
        let agent = Agent {
            name: name.clone(),
            key,
            prefixes: prefixes.to_vec(),
            admin,
            approval,
            grants: grant.into_iter().chain(kept).collect(),
            since: at,
            enrolment,
        };
        self.agents.insert(name.clone(), Arc::new(agent));
    }

    fn add_grant(&self, name: &Name, token: Arc<Token>) {
        if let Some(mut entry) = self.agents.get_mut(name) {
            let mut agent = Agent::clone(&entry);
            agent.grants = agent.grants.iter().cloned().chain([token]).collect();
            *entry = Arc::new(agent);
        }
    }

    fn rotate(
        &self,
        name: &Name,
        to: PublicKey,
        reissued: &[Reissued],
        open: impl Fn(&str) -> Result<Arc<Token>, Misfit>,
    ) -> Result<(), Misfit> {
        let grants: Vec<_> = reissued
            .iter()
            .map(|one| open(&one.token))
            .collect::<Result<_, _>>()?;
        if let Some(mut entry) = self.agents.get_mut(name) {
            let mut agent = Agent::clone(&entry);
            agent.key = to;
            agent.grants = grants.into();
            let now = |old: Digest| {
                reissued
                    .iter()
                    .find(|one| one.old == old)
                    .map(|one| one.new)
            };
            agent.approval = agent.approval.and_then(now);
            *entry = Arc::new(agent);
        }
        let mut issued = self.issued.write().unwrap_or_else(PoisonError::into_inner);
        for one in reissued {
            self.successors.insert(one.old, one.new);
            for record in issued.values_mut().filter(|record| record.id == one.old) {
                record.id = one.new;
            }
        }
        Ok(())
    }

    fn list(&self, at: Timestamp, record: TokenRecord) {
        let mut issued = self.issued.write().unwrap_or_else(PoisonError::into_inner);
        issued.insert((at, record.id), record);
    }

    fn count_use(&self, enrolment: &Digest) {
        let mut issued = self.issued.write().unwrap_or_else(PoisonError::into_inner);
        for record in issued.values_mut().filter(|record| record.id == *enrolment) {
            record.uses_left = record.uses_left.map(|left| left.saturating_sub(1));
        }
    }
}
