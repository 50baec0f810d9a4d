//! Agents whose key the broker keeps, and the bearer tokens that stand for them at `/mcp`.

use std::time::Duration;

use proto_spec::capability::{Bearer, encode_text, issue};
use proto_spec::message::{Ack, AgentApprove, BearerIssue, BearerKeep};
use proto_spec::{AgentId, Kind, Refusal};

use super::admin::read;
use super::scope::By;
use super::tokens::{bad_terms, entropy, parse_checks};
use super::{Decision, Desk, change};
use crate::change::Change;
use crate::config::Mcp;
use crate::kept::KeptKeys;

impl Desk {
    /// Approves an agent under a key of ours. It offers no tools: nothing of it is ever attached.
    pub(super) fn keep_bearer(&self, text: &str, by: &By) -> Result<Decision, Refusal> {
        let body: BearerKeep = read(text)?;
        let (keys, _) = self.bearers()?;
        let known = self.state.registry.agent(&body.name);
        let key = match known {
            Some(agent) => keys
                .find(&body.name, &agent.key.key())
                .ok_or_else(|| Refusal::Conflict(format!("{} has a key of its own", body.name)))?,
            None => {
                let is_dead = |key: &_| self.state.revocations.is_key_revoked(key);
                let key = keys.next(&body.name, is_dead);
                key.ok_or_else(|| Refusal::Conflict("every key of this name is dead".into()))?
            }
        };
        let approve = AgentApprove {
            name: body.name,
            key: key.public(),
            capabilities: body.capabilities,
            prefixes: Some(Vec::new()),
            overlap: false,
            expires: body.expires,
            admin: None,
            endpoint: None,
        };
        self.admit(Kind::AdminBearerKeep, text, approve, by, true)
    }

    pub(super) fn issue_bearer(&self, text: &str, by: &By) -> Result<Decision, Refusal> {
        let body: BearerIssue = read(text)?;
        let (keys, config) = self.bearers()?;
        let at = self.clock.now();
        self.check_name(by, &body.agent)?;
        self.check_grantable(by, &body.capabilities)?;
        if body.capabilities.is_empty() {
            return Err(Refusal::InvalidBody(
                "a bearer token needs at least one capability".into(),
            ));
        }
        let agent = self.state.registry.agent(&body.agent);
        let agent = agent.ok_or_else(|| Refusal::NotFound(format!("agent {}", body.agent)))?;
        if keys.find(&body.agent, &agent.key.key()).is_none() {
            let why = format!(
                "{} has a key of its own, and needs no bearer token",
                body.agent
            );
            return Err(Refusal::Conflict(why));
        }
        let longest = at.later(Duration::from_secs(config.bearer_lifetime_max_s));
        let expires = match body.expires {
            Some(asked) if asked > longest => {
                return Err(Refusal::InvalidBody(format!(
                    "`expires` lies more than {} s ahead",
                    config.bearer_lifetime_max_s
                )));
            }
            asked => self.end_of(Some(asked.unwrap_or(longest)), at, true)?,
        };
        let checks = parse_checks(&body.checks)?;
        let given = &body.capabilities;
        if let Some(proposed) = self.takes_two(Kind::AdminBearerIssue, text, by, given)? {
            return Ok(proposed);
        }
        let terms = Bearer {
            agent: AgentId::new(body.agent.clone(), self.state.org.clone()),
            audience: config.resource.clone(),
            capabilities: body.capabilities.clone(),
            issued: self.state.revocations.after_bars(at),
            expires,
            checks,
        };
        let sealed = issue::bearer(&self.root, &self.state.org, &terms, entropy()?)
            .map_err(|error| bad_terms(&error))?;
        let id = self.id_of(&sealed)?;
        let issued = Change::Issued {
            id,
            agent: body.agent,
            capabilities: body.capabilities,
            checks: body.checks,
            not_before: None,
            expires,
            calls: None,
            record: None,
            by: by.first.clone(),
            at,
        };
        let token = Some(encode_text(&sealed));
        Ok(change(issued, move |_| Ack::Issued { id, token, expires }))
    }

    fn bearers(&self) -> Result<(&KeptKeys, &Mcp), Refusal> {
        let found = self.kept.as_deref().zip(self.config.mcp.as_ref());
        let missing = || Refusal::Unavailable("`/mcp`, which broker.toml does not open,".into());
        found.ok_or_else(missing)
    }
}
