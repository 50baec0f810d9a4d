//! Who is registered, with which key and which grants; and what was issued.
//!
//! A grant on record is kept as its sealed text and opened at its first use: a start has no signatures
//! to verify, and a million grants that sleep cost no engine.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound;
use std::sync::{Arc, OnceLock, RwLock};

use dashmap::DashMap;
use proto_spec::capability::{Token, decode_text};
use proto_spec::message::{AdminScope, Older};
use proto_spec::{Digest, Name, NamePattern, Org, Pattern, PublicKey, Timestamp};

use super::key::{KeyId, Sleeping};
use super::snapshot::{Sink, Source, Stored, put_named, stored, take_named, torn};
use crate::change::{Change, Reissued};
use crate::locks::{read, write};

/// Whom something was issued to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The grant of an agent's approval.
    Approval(Name),
    /// A grant that was issued apart.
    Grant(Name),
    /// An enrolment token, for agents of these names.
    Enrol(NamePattern),
    /// A grant of a peer's agents.
    Peer(Org),
}

impl Subject {
    /// The agent of ours, if it is for one.
    #[must_use]
    pub fn agent(&self) -> Option<&Name> {
        match self {
            Self::Approval(name) | Self::Grant(name) => Some(name),
            Self::Enrol(_) | Self::Peer(_) => None,
        }
    }
}

impl Stored for Subject {
    fn put(&self, to: &mut Sink) {
        match self {
            Self::Approval(name) => {
                0_u8.put(to);
                name.put(to);
            }
            Self::Grant(name) => {
                1_u8.put(to);
                name.put(to);
            }
            Self::Enrol(names) => {
                2_u8.put(to);
                names.put(to);
            }
            Self::Peer(org) => {
                3_u8.put(to);
                org.put(to);
            }
        }
    }

    fn take(from: &mut Source) -> std::io::Result<Self> {
        match u8::take(from)? {
            0 => Stored::take(from).map(Self::Approval),
            1 => Stored::take(from).map(Self::Grant),
            2 => Stored::take(from).map(Self::Enrol),
            3 => Stored::take(from).map(Self::Peer),
            _ => Err(torn("something was issued to nobody")),
        }
    }
}

/// One thing that was issued.
#[derive(Debug, Clone)]
pub struct Record {
    /// By which it is listed and revoked.
    pub id: Digest,
    /// To whom.
    pub subject: Subject,
    /// What.
    pub capabilities: Vec<Pattern>,
    /// Conditions of its own.
    pub checks: Vec<String>,
    /// When.
    pub issued: Timestamp,
    /// From when.
    pub not_before: Option<Timestamp>,
    /// Until when.
    pub expires: Timestamp,
    /// How many calls, in all.
    pub calls: Option<u32>,
    /// By which admin; nobody for what an enrolment token gave.
    pub issuer: Option<Name>,
    /// The key that it was issued to; nothing for an enrolment token.
    pub holder: Option<KeyId>,
    /// The key that it is rooted in.
    pub root: Option<KeyId>,
    /// The sealed grant, where it is kept on record.
    pub text: Option<Arc<str>>,
}
stored!(Record {
    id,
    subject,
    capabilities,
    checks,
    issued,
    not_before,
    expires,
    calls,
    issuer,
    holder,
    root,
    text,
});

/// The grants on record of one agent.
#[derive(Debug, Default)]
pub struct Grants {
    records: Vec<Arc<Record>>,
    opened: OnceLock<Arc<[Arc<Token>]>>,
}

impl Grants {
    fn of(records: Vec<Arc<Record>>) -> Arc<Self> {
        Arc::new(Self {
            records,
            opened: OnceLock::new(),
        })
    }

    /// What was issued, its approval's first.
    #[must_use]
    pub fn records(&self) -> &[Arc<Record>] {
        &self.records
    }

    /// The tokens, opened when they are first asked for. One that does not open grants nothing.
    #[must_use]
    pub fn tokens(&self, roots: &[PublicKey]) -> Arc<[Arc<Token>]> {
        let open = |record: &Arc<Record>| {
            let text = record.text.as_deref()?;
            let opened = decode_text(text).and_then(|bytes| Token::open(&bytes, roots));
            match opened {
                Ok(token) => Some(Arc::new(token)),
                Err(why) => {
                    tracing::error!(id = %record.id, %why, "a grant on record cannot be used");
                    None
                }
            }
        };
        let opened = self
            .opened
            .get_or_init(|| self.records.iter().filter_map(open).collect());
        Arc::clone(opened)
    }
}

impl Stored for Arc<Grants> {
    fn put(&self, to: &mut Sink) {
        let Grants { records, opened: _ } = &**self;
        put_named(records, to);
    }

    fn take(from: &mut Source) -> std::io::Result<Self> {
        take_named(from).map(Grants::of)
    }
}

/// An approved agent. Replaced as a whole when anything about it changes.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its name.
    pub name: Name,
    /// The key that signs for it.
    pub key: Sleeping,
    /// Under which it may offer tools.
    pub prefixes: Vec<Pattern>,
    /// Beyond which it grants nothing, if it is an admin.
    pub admin: Option<AdminScope>,
    /// The grant of its approval, if that gave any.
    pub approval: Option<Digest>,
    /// Every grant on record.
    pub grants: Arc<Grants>,
    /// Since when.
    pub since: Timestamp,
    /// The enrolment token by which its key came in, whoever approved it since.
    pub enrolment: Option<Digest>,
    /// The admin who approved it last; nobody while it has what its enrolment token gave.
    pub by: Option<Name>,
    /// Of an older agent: what it told of itself. Its key is good for what such agents say and nothing else.
    pub older: Option<Arc<Older>>,
}
stored!(Agent {
    name,
    key,
    prefixes,
    admin,
    approval,
    grants,
    since,
    enrolment,
    by,
    older,
});

/// As the journal has it: there are few.
impl Stored for Arc<Older> {
    fn put(&self, to: &mut Sink) {
        let text: Arc<str> = serde_json::to_string(&**self).unwrap_or_default().into();
        text.put(to);
    }

    fn take(from: &mut Source) -> std::io::Result<Self> {
        let text: Arc<str> = Stored::take(from)?;
        serde_json::from_str(&text).map(Self::new).map_err(torn)
    }
}

impl Stored for Arc<Agent> {
    fn put(&self, to: &mut Sink) {
        Agent::put(self, to);
    }

    fn take(from: &mut Source) -> std::io::Result<Self> {
        Agent::take(from).map(Self::new)
    }
}

impl Agent {
    /// Everything that its grants on record cover, sorted.
    #[must_use]
    pub fn capabilities(&self) -> Vec<Pattern> {
        let all = self.grants.records().iter();
        let all: BTreeSet<_> = all
            .flat_map(|record| record.capabilities.iter().cloned())
            .collect();
        all.into_iter().collect()
    }

    /// Whether this grant is on record for it.
    #[must_use]
    pub fn has_grant(&self, id: &Digest) -> bool {
        self.grants.records().iter().any(|record| record.id == *id)
    }
}

/// Where something that was issued stands in the list: by time, then by id.
pub type Position = (Timestamp, Digest);

/// Agents by name, and what was issued by time.
#[derive(Debug, Default)]
pub struct Registry {
    agents: DashMap<Name, Arc<Agent>>,
    by_key: DashMap<KeyId, Name>,
    names: RwLock<BTreeSet<Name>>,
    /// Of these, the older agents.
    older: RwLock<BTreeSet<Name>>,
    /// Tool prefixes, each with its final dot, and whose they are.
    prefixes: RwLock<BTreeMap<String, BTreeSet<Name>>>,
    issued: RwLock<BTreeMap<Position, Arc<Record>>>,
    by_id: DashMap<Digest, Arc<Record>>,
    /// What was issued to each agent.
    by_agent: DashMap<Name, Vec<Digest>>,
    uses_left: DashMap<Digest, u32>,
    /// Of grants that were issued anew: the id before, and the one after.
    successors: DashMap<Digest, Digest>,
}

/// What a [`Registry`] holds, without what follows from it.
#[derive(Debug, Default)]
pub struct Image {
    /// Before the agents that hold them.
    issued: Vec<Arc<Record>>,
    agents: Vec<Arc<Agent>>,
    uses_left: Vec<(Digest, u32)>,
    successors: Vec<(Digest, Digest)>,
}
stored!(Image {
    issued,
    agents,
    uses_left,
    successors,
});

impl Image {
    pub(super) fn sort(&mut self) {
        self.agents.sort_by(|a, b| a.name.cmp(&b.name));
        self.uses_left.sort_unstable();
        self.successors.sort_unstable();
    }
}

/// The revocation id of a token's authority block: what a grant is listed and revoked by.
#[must_use]
pub fn grant_id(token: &Token) -> Digest {
    token
        .blocks()
        .first()
        .map_or(Digest([0; 32]), |block| block.id().0)
}

/// The grant of an approval, as no admin gave it.
fn approval(
    (id, text): &(Digest, String),
    name: &Name,
    key: PublicKey,
    capabilities: &[Pattern],
    expires: Timestamp,
    root: Option<KeyId>,
    at: Timestamp,
) -> Record {
    Record {
        id: *id,
        subject: Subject::Approval(name.clone()),
        capabilities: capabilities.to_vec(),
        checks: Vec::new(),
        issued: at,
        not_before: None,
        expires,
        calls: None,
        issuer: None,
        holder: Some(KeyId::from(&key)),
        root,
        text: Some(text.as_str().into()),
    }
}

/// `fs.*` as `fs.`, so that what begins with it lies below it.
fn stem(prefix: &Pattern) -> &str {
    prefix.as_str().trim_end_matches('*')
}

impl Registry {
    /// The agent of this name.
    #[must_use]
    pub fn agent(&self, name: &Name) -> Option<Arc<Agent>> {
        self.agents.get(name).map(|entry| Arc::clone(&entry))
    }

    /// Agents by name, from after `after`.
    pub fn agents_after(&self, after: Option<&Name>) -> Vec<Arc<Agent>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let names = read(&self.names);
        names
            .range::<Name, _>((from, Bound::Unbounded))
            .filter_map(|name| self.agent(name))
            .collect()
    }

    /// Whether some agent `is`.
    #[must_use]
    pub fn any_agent(&self, is: impl Fn(&Agent) -> bool) -> bool {
        self.agents.iter().any(|entry| is(&entry))
    }

    /// All agents, in no order.
    pub fn each_agent(&self, mut visit: impl FnMut(&Arc<Agent>)) {
        self.agents.iter().for_each(|entry| visit(&entry));
    }

    /// The sealed text of a grant on record that has conditions of its own.
    #[must_use]
    pub fn grant_text(&self, id: &Digest) -> Option<Arc<str>> {
        let record = self.by_id.get(id)?;
        record.text.clone().filter(|_| !record.checks.is_empty())
    }

    /// These ids, and those under which they were issued anew.
    #[must_use]
    pub fn with_successors(&self, ids: &[Digest]) -> Vec<Digest> {
        let mut seen = HashSet::new();
        let mut all: Vec<Digest> = ids.iter().filter(|id| seen.insert(**id)).copied().collect();
        let mut at = 0;
        while let Some(id) = all.get(at).copied() {
            let next = self.successors.get(&id).map(|next| *next);
            all.extend(next.filter(|next| seen.insert(*next)));
            at += 1;
        }
        all
    }

    /// The agent that this key belongs to.
    #[must_use]
    pub fn owner(&self, key: &PublicKey) -> Option<Name> {
        let found = self.by_key.get(&KeyId::from(key));
        found.map(|entry| entry.clone())
    }

    /// Another agent whose prefixes overlap one of `prefixes`.
    #[must_use]
    pub fn overlap(&self, name: &Name, prefixes: &[Pattern]) -> Option<Name> {
        let known = read(&self.prefixes);
        let other = |owners: &BTreeSet<Name>| owners.iter().find(|one| *one != name).cloned();
        prefixes.iter().find_map(|prefix| {
            let stem = stem(prefix);
            let mut below = known
                .range::<str, _>((Bound::Included(stem), Bound::Unbounded))
                .take_while(|(one, _)| one.starts_with(stem));
            let mut above = stem
                .match_indices('.')
                .filter_map(|(dot, _)| known.get(&stem[..=dot]));
            below
                .find_map(|(_, owners)| other(owners))
                .or_else(|| above.find_map(other))
        })
    }

    /// What was issued, in order of time, from after `after`, as long as `visit` wants more.
    pub fn each_issued(
        &self,
        after: Option<Position>,
        mut visit: impl FnMut(&Arc<Record>) -> bool,
    ) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        for (_, record) in read(&self.issued).range((from, Bound::Unbounded)) {
            if !visit(record) {
                return;
            }
        }
    }

    /// One thing that was issued.
    #[must_use]
    pub fn issued_by_id(&self, id: &Digest) -> Option<Arc<Record>> {
        self.by_id.get(id).map(|record| Arc::clone(&record))
    }

    /// All that was issued to an agent and was not issued anew since, in order of time.
    #[must_use]
    pub fn issued_to(&self, name: &Name) -> Vec<Arc<Record>> {
        let ids = self.by_agent.get(name).map(|ids| ids.clone());
        let ids = ids.unwrap_or_default();
        let records = ids.iter().filter_map(|id| self.issued_by_id(id));
        let mut records: Vec<_> = records.collect();
        records.sort_by_key(|record| (record.issued, record.id));
        records
    }

    /// The older agents, by name.
    #[must_use]
    pub fn older(&self) -> Vec<Arc<Agent>> {
        let names = read(&self.older);
        names.iter().filter_map(|name| self.agent(name)).collect()
    }

    /// How many agents there are, and things that were issued.
    #[must_use]
    pub fn len(&self) -> usize {
        self.agents.len() + read(&self.issued).len()
    }

    /// Whether there is none of either.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it holds, each thing shared with it.
    pub(super) fn image(&self) -> Image {
        let Self {
            agents,
            issued,
            uses_left,
            successors,
            // These follow from the agents,
            by_key: _,
            names: _,
            older: _,
            prefixes: _,
            // and these from what was issued.
            by_id: _,
            by_agent: _,
        } = self;
        Image {
            issued: read(issued).values().cloned().collect(),
            agents: agents.iter().map(|entry| Arc::clone(&entry)).collect(),
            uses_left: uses_left
                .iter()
                .map(|entry| (*entry.key(), *entry.value()))
                .collect(),
            successors: successors
                .iter()
                .map(|entry| (*entry.key(), *entry.value()))
                .collect(),
        }
    }

    /// Fills an empty registry.
    pub(super) fn load(&self, image: Image) {
        let Image {
            issued,
            agents,
            uses_left,
            successors,
        } = image;
        std::thread::scope(|scope| {
            // Agents and what was issued are held apart: each is half of the work.
            scope.spawn(|| agents.into_iter().for_each(|agent| self.enter(agent, &[])));
            issued.iter().for_each(|record| self.index(record));
            // Sorted already: built at once, where a million inserts would look for their places.
            let placed = issued.into_iter().map(|one| ((one.issued, one.id), one));
            *write(&self.issued) = placed.collect();
        });
        for (id, left) in uses_left {
            self.uses_left.insert(id, left);
        }
        for (id, next) in successors {
            self.successors.insert(id, next);
        }
    }

    /// Registrations that are left of an enrolment token.
    #[must_use]
    pub fn uses_left(&self, enrolment: &Digest) -> Option<u32> {
        self.uses_left.get(enrolment).map(|left| *left)
    }

    /// All of it in one order, with what follows from what.
    #[cfg(test)]
    pub(super) fn everything(&self) -> String {
        fn sorted<K: Ord + Clone + std::hash::Hash, V: Clone>(map: &DashMap<K, V>) -> Vec<(K, V)> {
            let all: BTreeMap<K, V> = map.clone().into_iter().collect();
            all.into_iter().collect()
        }
        let Self {
            agents,
            by_key,
            names,
            older,
            prefixes,
            issued,
            by_id,
            by_agent,
            uses_left,
            successors,
        } = self;
        let by_agent: Vec<(Name, BTreeSet<Digest>)> = sorted(by_agent)
            .into_iter()
            .map(|(name, ids)| (name, ids.into_iter().collect()))
            .collect();
        format!(
            "{:#?}",
            (
                (sorted(agents), sorted(by_key), names, older, prefixes),
                (issued, sorted(by_id), by_agent),
                (sorted(uses_left), sorted(successors)),
            )
        )
    }

    // --- written by `State::apply` ---------------------------------------------------------------

    pub(super) fn remove(&self, name: &Name) {
        if let Some((_, agent)) = self.agents.remove(name) {
            self.by_key.remove(&agent.key.id());
            self.index_prefixes(name, &agent.prefixes, &[]);
            write(&self.names).remove(name);
            write(&self.older).remove(name);
        }
    }

    /// Takes revoked grants off the record, so that no lookup has to ask again.
    pub(super) fn drop_grants(&self, ids: &[Digest]) {
        for id in ids {
            let subject = self
                .issued_by_id(id)
                .and_then(|record| record.subject.agent().cloned());
            if let Some(name) = subject {
                self.change_grants(&name, |records| records.retain(|record| record.id != *id));
            }
        }
    }

    /// Takes a change over, made while tokens are rooted in `root`.
    pub(super) fn apply(&self, change: &Change, root: Option<PublicKey>) {
        let root = root.as_ref().map(KeyId::from);
        match change {
            Change::Approved {
                name,
                key,
                grant,
                capabilities,
                expires,
                prefixes,
                admin,
                older,
                by,
                at,
            } => {
                let record = grant.as_ref().map(|grant| Record {
                    issuer: Some(by.clone()),
                    ..approval(grant, name, *key, capabilities, *expires, root, *at)
                });
                self.put(
                    name,
                    *key,
                    record,
                    prefixes,
                    admin.clone(),
                    older.clone(),
                    None,
                    Some(by),
                    *at,
                );
            }
            Change::Enrolled {
                enrolment,
                name,
                key,
                grant,
                capabilities,
                expires,
                prefixes,
                at,
            } => {
                let record = grant
                    .as_ref()
                    .map(|grant| approval(grant, name, *key, capabilities, *expires, root, *at));
                self.put(
                    name,
                    *key,
                    record,
                    prefixes,
                    None,
                    None,
                    Some(*enrolment),
                    None,
                    *at,
                );
                if let Some(mut left) = self.uses_left.get_mut(enrolment) {
                    *left = left.saturating_sub(1);
                }
            }
            Change::Issued {
                id,
                agent,
                capabilities,
                checks,
                not_before,
                expires,
                calls,
                record,
                by,
                at,
            } => {
                let holder = self.agent(agent);
                let record = Arc::new(Record {
                    id: *id,
                    subject: Subject::Grant(agent.clone()),
                    capabilities: capabilities.clone(),
                    checks: checks.clone(),
                    issued: *at,
                    not_before: *not_before,
                    expires: *expires,
                    calls: *calls,
                    issuer: Some(by.clone()),
                    holder: holder.map(|agent| agent.key.id()),
                    root,
                    text: record.as_deref().map(Arc::from),
                });
                self.list(Arc::clone(&record));
                if record.text.is_some() {
                    self.change_grants(agent, |records| records.push(record));
                }
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
                self.list(Arc::new(Record {
                    id: *id,
                    subject: Subject::Enrol(name.clone()),
                    capabilities: ceiling.clone(),
                    checks: Vec::new(),
                    issued: *at,
                    not_before: None,
                    expires: *expires,
                    calls: None,
                    issuer: Some(by.clone()),
                    holder: None,
                    root,
                    text: None,
                }));
                self.uses_left.insert(*id, *uses);
            }
            Change::PeerGranted {
                id,
                follows,
                org,
                holder,
                capabilities,
                checks,
                expires,
                by,
                at,
                ..
            } => {
                if let Some(before) = follows {
                    self.successors.insert(*before, *id);
                }
                self.list(Arc::new(Record {
                    id: *id,
                    subject: Subject::Peer(org.clone()),
                    capabilities: capabilities.clone(),
                    checks: checks.clone(),
                    issued: *at,
                    not_before: None,
                    expires: *expires,
                    calls: None,
                    issuer: Some(by.clone()),
                    holder: Some(holder.into()),
                    root,
                    text: None,
                }));
            }
            Change::Rotated {
                name,
                from,
                to,
                grants,
                ..
            } => {
                self.by_key.remove(&KeyId::from(from));
                self.by_key.insert(to.into(), name.clone());
                self.reissue(name, grants, Some(*to), root);
            }
            Change::Reissued { name, grants, .. } => self.reissue(name, grants, None, root),
            _ => {}
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of one journal record"
    )]
    fn put(
        &self,
        name: &Name,
        key: PublicKey,
        grant: Option<Record>,
        prefixes: &[Pattern],
        admin: Option<AdminScope>,
        older: Option<Older>,
        enrolment: Option<Digest>,
        by: Option<&Name>,
        at: Timestamp,
    ) {
        let approval = grant.as_ref().map(|record| record.id);
        let grant = grant.map(Arc::new);
        if let Some(grant) = &grant {
            self.list(Arc::clone(grant));
        }
        let before = self.agent(name);
        // Grants that were issued apart stay; the approval's own is replaced. Another key starts anew.
        let kept: Vec<_> = match &before {
            Some(agent) if agent.key == key => {
                let records = agent.grants.records().iter();
                records
                    .filter(|record| Some(record.id) != agent.approval)
                    .cloned()
                    .collect()
            }
            Some(agent) => {
                self.by_key.remove(&agent.key.id());
                Vec::new()
            }
            None => Vec::new(),
        };
        // Whoever approves it since: a quarantine strikes the token by which this key came in.
        let same = before.as_ref().filter(|agent| agent.key == key);
        let enrolment = enrolment.or_else(|| same.and_then(|agent| agent.enrolment));
        let agent = Agent {
            name: name.clone(),
            key: (&key).into(),
            prefixes: prefixes.to_vec(),
            admin,
            approval,
            grants: Grants::of(grant.into_iter().chain(kept).collect()),
            since: at,
            enrolment,
            by: by.cloned(),
            older: older.map(Arc::new),
        };
        let old_prefixes = before.as_ref().map_or(&[][..], |agent| &agent.prefixes);
        self.enter(Arc::new(agent), old_prefixes);
    }

    /// Puts an agent in place of the one of its name, whose prefixes were `before`.
    fn enter(&self, agent: Arc<Agent>, before: &[Pattern]) {
        self.index_prefixes(&agent.name, before, &agent.prefixes);
        self.by_key.insert(agent.key.id(), agent.name.clone());
        write(&self.names).insert(agent.name.clone());
        if agent.older.is_some() {
            write(&self.older).insert(agent.name.clone());
        } else if !read(&self.older).is_empty() {
            write(&self.older).remove(&agent.name);
        }
        self.agents.insert(agent.name.clone(), agent);
    }

    fn index_prefixes(&self, name: &Name, before: &[Pattern], after: &[Pattern]) {
        let mut known = write(&self.prefixes);
        for prefix in before {
            if let Some(owners) = known.get_mut(stem(prefix)) {
                owners.remove(name);
                if owners.is_empty() {
                    known.remove(stem(prefix));
                }
            }
        }
        for prefix in after {
            known
                .entry(stem(prefix).into())
                .or_default()
                .insert(name.clone());
        }
    }

    fn change_grants(&self, name: &Name, change: impl FnOnce(&mut Vec<Arc<Record>>)) {
        if let Some(mut entry) = self.agents.get_mut(name) {
            let mut agent = Agent::clone(&entry);
            let mut records = agent.grants.records().to_vec();
            change(&mut records);
            agent.grants = Grants::of(records);
            *entry = Arc::new(agent);
        }
    }

    fn reissue(
        &self,
        name: &Name,
        reissued: &[Reissued],
        to: Option<PublicKey>,
        root: Option<KeyId>,
    ) {
        let mut anew = BTreeMap::new();
        for one in reissued {
            self.successors.insert(one.old, one.new);
            let Some((_, record)) = self.by_id.remove(&one.old) else {
                continue;
            };
            write(&self.issued).remove(&(record.issued, record.id));
            if let Some(mut all) = self.by_agent.get_mut(name) {
                all.retain(|id| *id != one.old);
            }
            let mut record = Record::clone(&record);
            record.id = one.new;
            record.text = Some(one.token.as_str().into());
            record.holder = to.as_ref().map(KeyId::from).or(record.holder);
            record.root = root;
            let record = Arc::new(record);
            self.list(Arc::clone(&record));
            anew.insert(one.old, record);
        }
        if let Some(mut entry) = self.agents.get_mut(name) {
            let mut agent = Agent::clone(&entry);
            if let Some(to) = &to {
                agent.key = to.into();
            }
            let records = agent.grants.records().iter();
            let records = records.map(|record| anew.get(&record.id).unwrap_or(record).clone());
            agent.grants = Grants::of(records.collect());
            agent.approval = agent
                .approval
                .map(|id| anew.get(&id).map_or(id, |record| record.id));
            *entry = Arc::new(agent);
        }
    }

    fn list(&self, record: Arc<Record>) {
        self.index(&record);
        write(&self.issued).insert((record.issued, record.id), record);
    }

    fn index(&self, record: &Arc<Record>) {
        if let Some(name) = record.subject.agent() {
            let mut all = self.by_agent.entry(name.clone()).or_default();
            all.push(record.id);
        }
        self.by_id.insert(record.id, Arc::clone(record));
    }
}
