//! What admins see: agents, requests, what was issued and who holds it, the configuration.

use std::collections::BTreeMap;

use proto_spec::capability::Token;
use proto_spec::message::{
    Ack, AgentRecord, AgentShow, List, Older, OlderRecord, PendingRecord, TokenRecord, TokenTree,
    TreeNode,
};
use proto_spec::{Digest, Name, PublicKey, Refusal, Timestamp};

use super::admin::{Nothing, read};
use super::scope::{By, acts_on, is_full};
use super::{Decision, Desk, answer};
use crate::compat_endpoint::Endpoints;
use crate::state::State;
use crate::state::registry::{Agent, Position, Record, Subject};

/// Records on one page of a list.
const PAGE: usize = 500;
/// Delegations that one page of the tree shows at most, beside what was issued.
const DELEGATIONS_MAX: usize = 4_096;

impl Desk {
    pub(super) fn list_agents(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let List { after } = read(body)?;
        let scope = self.scope(&by.first)?;
        let visible = |name: &Name| acts_on(&scope, name);
        let after = after.map(|text| text.parse::<Name>()).transpose();
        let after = after.map_err(|_| no_such_page())?;
        let mut agents = self.state.registry.agents_after(after.as_ref());
        agents.retain(|agent| visible(&agent.name));
        let next = (agents.len() > PAGE).then(|| agents[PAGE - 1].name.to_string());
        agents.truncate(PAGE);
        // Requests come with the first page.
        let mut waiting = match after {
            None => pending(&self.state, self.endpoints(), None, self.clock.now()),
            Some(_) => Vec::new(),
        };
        waiting.retain(|one| visible(&one.name));
        waiting.truncate(PAGE);
        Ok(answer(Ack::Agents {
            agents: agents
                .iter()
                .map(|agent| record_of(&self.state, self.endpoints(), agent))
                .collect(),
            pending: waiting,
            next,
        }))
    }

    pub(super) fn show(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let body: AgentShow = read(body)?;
        self.check_name(by, &body.name)?;
        let agent = self.state.registry.agent(&body.name);
        let agent = agent.map(|agent| record_of(&self.state, self.endpoints(), &agent));
        let now = self.clock.now();
        let pending = pending(&self.state, self.endpoints(), Some(&body.name), now);
        if agent.is_none() && pending.is_empty() {
            return Err(Refusal::NotFound(format!("agent or request {}", body.name)));
        }
        Ok(answer(Ack::Agent { agent, pending }))
    }

    /// Where older agents may be called.
    fn endpoints(&self) -> &Endpoints {
        &self.config.compat.endpoints
    }

    pub(super) fn list_tokens(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let List { after } = read(body)?;
        let (mut tokens, mut next) = (Vec::new(), None);
        let visible = self.visible(by)?;
        let after = after.as_deref().map(position).transpose()?;
        self.state.registry.each_issued(after, |record| {
            if visible(record) {
                if tokens.len() == PAGE {
                    next = tokens
                        .last()
                        .map(|last: &TokenRecord| place(last.issued, &last.id));
                    return false;
                }
                tokens.push(token_record(&self.state, record));
            }
            true
        });
        Ok(answer(Ack::Tokens { tokens, next }))
    }

    /// An admin sees what was issued to the agents it may act on; only a full admin sees the rest.
    fn visible(&self, by: &By) -> Result<impl Fn(&Record) -> bool + use<>, Refusal> {
        let scope = self.scope(&by.first)?;
        Ok(move |record: &Record| match record.subject.agent() {
            Some(name) => acts_on(&scope, name),
            None => is_full(&scope),
        })
    }

    /// What was issued, and below it the delegations that this broker has seen presented lately: they are
    /// made offline, and a broker learns of one when it is used.
    pub(super) fn tree(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let body: TokenTree = read(body)?;
        let visible = self.visible(by)?;
        let after = body.after.as_deref().map(position).transpose()?;
        let mut below = self.delegations();
        let (mut nodes, mut roots, mut next) = (Vec::new(), 0, None);
        let mut last: Option<Position> = None;
        self.state.registry.each_issued(after, |record| {
            let Some(name) = record.subject.agent() else {
                return true;
            };
            if !visible(record) || body.agent.as_ref().is_some_and(|only| only != name) {
                return true;
            }
            if roots == PAGE {
                next = last.map(|(at, id)| place(at, &id));
                return false;
            }
            roots += 1;
            last = Some((record.issued, record.id));
            let is_dead = self.state.is_dead(record);
            nodes.push(self.issued_node(record, name, is_dead));
            append(&mut nodes, &mut below, record.id, is_dead);
            true
        });
        Ok(answer(Ack::Tree { nodes, next }))
    }

    fn issued_node(&self, record: &Record, name: &Name, is_dead: bool) -> TreeNode {
        TreeNode {
            id: record.id,
            parent: None,
            kind: kind_of(record).into(),
            agent: Some(name.clone()),
            key: record
                .holder
                .map_or_else(|| self.root.public(), |holder| holder.key()),
            capabilities: record.capabilities.clone(),
            checks: record.checks.clone(),
            expires: record.expires,
            calls_left: record
                .calls
                .map(|limit| self.state.budgets.left(&record.id, limit)),
            revoked: is_dead,
            issuer: record.issuer.clone(),
        }
    }

    /// Delegations and narrowings of the tokens that were presented lately, by what they hang below.
    fn delegations(&self) -> BTreeMap<Digest, Vec<TreeNode>> {
        let mut below: BTreeMap<Digest, Vec<TreeNode>> = BTreeMap::new();
        let mut seen = std::collections::BTreeSet::new();
        self.state.tokens.each(|token: &Token| {
            let mut holder = token.holders().first().copied();
            let mut above = None;
            for block in token.blocks() {
                let id = block.id().0;
                holder = block.holder().copied().or(holder);
                if let (Some(parent), Some(key)) = (above, holder)
                    && seen.len() < DELEGATIONS_MAX
                    && seen.insert(id)
                {
                    below.entry(parent).or_default().push(TreeNode {
                        id,
                        parent: Some(parent),
                        kind: if block.signer().is_some() {
                            "delegation"
                        } else {
                            "narrowing"
                        }
                        .into(),
                        agent: self.state.registry.owner(&key),
                        key,
                        capabilities: Vec::new(),
                        checks: block.checks().iter().map(ToString::to_string).collect(),
                        expires: token.expires(),
                        calls_left: block
                            .calls()
                            .map(|limit| self.state.budgets.left(&id, limit)),
                        revoked: self.is_dead(&id, &key),
                        issuer: None,
                    });
                }
                above = Some(id);
            }
        });
        below
    }

    fn is_dead(&self, id: &Digest, key: &PublicKey) -> bool {
        let dead = &self.state.revocations;
        dead.is_revoked(id) || dead.is_key_revoked(key)
    }

    pub(super) fn read_config(&self, body: &str) -> Result<Decision, Refusal> {
        let _: Nothing = read(body)?;
        let config = self.config.shown();
        Ok(answer(Ack::Config { config }))
    }
}

/// Puts what hangs below `parent` behind it, depth first.
fn append(
    nodes: &mut Vec<TreeNode>,
    below: &mut BTreeMap<Digest, Vec<TreeNode>>,
    parent: Digest,
    is_dead: bool,
) {
    // As deep as a token has blocks.
    for mut node in below.remove(&parent).unwrap_or_default() {
        node.revoked |= is_dead;
        let (id, is_dead) = (node.id, node.revoked);
        nodes.push(node);
        append(nodes, below, id, is_dead);
    }
}

pub(super) fn record_of(state: &State, endpoints: &Endpoints, agent: &Agent) -> AgentRecord {
    AgentRecord {
        name: agent.name.clone(),
        key: agent.key.key(),
        fingerprint: agent.key.key().fingerprint(),
        capabilities: agent.capabilities(),
        prefixes: agent.prefixes.clone(),
        admin: agent.admin.clone(),
        sessions: state.sessions.of(&agent.name).len() as u32,
        since: agent.since,
        older: agent
            .older
            .as_deref()
            .map(|older| older_record(endpoints, older)),
    }
}

fn older_record(endpoints: &Endpoints, older: &Older) -> Box<OlderRecord> {
    let endpoint = older.endpoint.as_deref();
    Box::new(OlderRecord {
        endpoint: older.endpoint.clone(),
        allowed: endpoint.is_some_and(|text| endpoints.find(text).is_some()),
        tools: older.tools.iter().map(|tool| tool.name.clone()).collect(),
    })
}

pub(super) fn pending(
    state: &State,
    endpoints: &Endpoints,
    name: Option<&Name>,
    now: Timestamp,
) -> Vec<PendingRecord> {
    let mut all = state.pending.waiting(name, now);
    for one in &mut all {
        let agent = state.registry.agent(&one.name);
        one.key_change = agent.is_some_and(|agent| agent.key != one.key);
        let asked = state.pending.asked(&one.name, &one.key, now).flatten();
        one.older = asked.map(|older| older_record(endpoints, &older));
    }
    all
}

fn kind_of(record: &Record) -> &'static str {
    match record.subject {
        Subject::Approval(_) => "approval",
        Subject::Grant(_) => "grant",
        Subject::Enrol(_) => "enrol",
        Subject::Peer(_) => "peer",
    }
}

pub(super) fn token_record(state: &State, record: &Record) -> TokenRecord {
    TokenRecord {
        id: record.id,
        kind: kind_of(record).into(),
        subject: match &record.subject {
            Subject::Approval(name) | Subject::Grant(name) => name.to_string(),
            Subject::Enrol(names) => names.to_string(),
            Subject::Peer(org) => org.to_string(),
        },
        capabilities: record.capabilities.clone(),
        checks: record.checks.clone(),
        issued: record.issued,
        expires: record.expires,
        issuer: record.issuer.clone(),
        record: record.text.is_some(),
        revoked: state.is_dead(record),
        uses_left: state.registry.uses_left(&record.id),
        not_before: record.not_before,
        calls_left: record
            .calls
            .map(|limit| state.budgets.left(&record.id, limit)),
    }
}

fn place(at: Timestamp, id: &Digest) -> String {
    format!("{:020} {id}", at.as_ms())
}

fn position(text: &str) -> Result<Position, Refusal> {
    let read = || {
        let (at, id) = text.split_once(' ')?;
        Some((Timestamp::from_ms(at.parse().ok()?), id.parse().ok()?))
    };
    read().ok_or_else(no_such_page)
}

fn no_such_page() -> Refusal {
    Refusal::InvalidBody("`after` is not what a page before ended with".into())
}
