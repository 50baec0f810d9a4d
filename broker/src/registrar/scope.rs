//! What an admin may: beyond its patterns it grants, approves and revokes nothing.

use proto_spec::capability::Token;
use proto_spec::limits::CAPABILITIES_MAX;
use proto_spec::message::AdminScope;
use proto_spec::{Name, NamePattern, Pattern, PublicKey, Refusal};

use super::{Desk, check_count};
use crate::change::default_prefixes;
use crate::state::registry::Agent;

/// An admin whose rights end sooner does not count as one who remains.
const STAYS: std::time::Duration = std::time::Duration::from_secs(86_400);

/// Who orders an act: one admin, or two. Each must be entitled by itself.
#[derive(Debug, Clone)]
pub(super) struct By {
    pub(super) first: Name,
    pub(super) second: Option<Name>,
}

impl By {
    pub(super) fn one(name: &Name) -> Self {
        Self {
            first: name.clone(),
            second: None,
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Name> {
        std::iter::once(&self.first).chain(&self.second)
    }
}

impl Desk {
    pub(super) fn scope(&self, admin: &Name) -> Result<AdminScope, Refusal> {
        let agent = self.state.registry.agent(admin);
        let scope = agent.and_then(|agent| agent.admin.clone());
        scope.ok_or_else(|| Refusal::Denied("an agent without an admin's scope".into()))
    }

    /// An admin acts on the agents that its patterns name, and on no admin of a wider scope.
    pub(super) fn check_name(&self, by: &By, name: &Name) -> Result<(), Refusal> {
        let of_the_other = self
            .state
            .registry
            .agent(name)
            .and_then(|agent| agent.admin.clone());
        if let Some(scope) = of_the_other {
            self.check_scope(by, &scope)?;
        }
        by.all().try_for_each(|admin| {
            if acts_on(&self.scope(admin)?, name) {
                Ok(())
            } else {
                Err(Refusal::Denied(format!("acting on {name}")))
            }
        })
    }

    pub(super) fn check_name_pattern(&self, by: &By, name: &NamePattern) -> Result<(), Refusal> {
        by.all().try_for_each(|admin| {
            let names = self.scope(admin)?.names;
            if names.iter().any(|pattern| pattern.contains(name)) {
                Ok(())
            } else {
                Err(Refusal::Denied(format!("acting on {name}")))
            }
        })
    }

    pub(super) fn check_grantable(&self, by: &By, asked: &[Pattern]) -> Result<(), Refusal> {
        check_count(asked)?;
        by.all().try_for_each(|admin| {
            let grantable = self.scope(admin)?.grantable;
            let beyond = |one: &&Pattern| !grantable.iter().any(|pattern| pattern.covers(one));
            match asked.iter().find(beyond) {
                None => Ok(()),
                Some(beyond) => Err(Refusal::Denied(format!("granting {beyond}"))),
            }
        })
    }

    /// An agent offers tools under its own name; to let it offer others' is a right to hand out.
    pub(super) fn check_prefixes_grantable(
        &self,
        by: &By,
        name: &Name,
        prefixes: &[Pattern],
    ) -> Result<(), Refusal> {
        let own = default_prefixes(name);
        let others = prefixes.iter().filter(|prefix| !own.contains(prefix));
        let others: Vec<Pattern> = others.cloned().collect();
        self.check_grantable(by, &others)
    }

    pub(super) fn check_scope(&self, by: &By, asked: &AdminScope) -> Result<(), Refusal> {
        self.check_grantable(by, &asked.grantable)?;
        if asked.names.len() > CAPABILITIES_MAX {
            return Err(Refusal::InvalidBody(format!(
                "more than {CAPABILITIES_MAX} names"
            )));
        }
        asked
            .names
            .iter()
            .try_for_each(|name| self.check_name_pattern(by, name))
    }

    pub(super) fn check_is_full(&self, by: &By) -> Result<(), Refusal> {
        by.all().try_for_each(|admin| match self.scope(admin)? {
            scope if is_full(&scope) => Ok(()),
            _ => Err(Refusal::Denied("an act for full admins".into())),
        })
    }

    /// One key has one name, and a dead key has none.
    pub(super) fn check_key_is_free(&self, name: &Name, key: &PublicKey) -> Result<(), Refusal> {
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

    /// Whether an agent is an admin who may grant everything, to everyone, and holds every admin act: now,
    /// and for some time to come.
    pub(super) fn may_all(&self, agent: &Agent) -> bool {
        let now = self.clock.now();
        let holds = |token: &std::sync::Arc<Token>| {
            let acts = token.capabilities().iter();
            let mut all = acts.filter(|one| one.as_str() == "admin.*");
            all.any(|acts| !self.state.revocations.is_barred(token.issued(), acts))
                && token.is_standard()
                && token.not_before().is_none_or(|from| from <= now)
                && token.expires() > now.later(STAYS)
        };
        agent.admin.as_ref().is_some_and(is_full) && self.state.granted(agent).iter().any(holds)
    }

    /// The organisation keeps at least one admin who may do everything, whichever of `gone` leave.
    pub(super) fn check_a_full_admin_remains(&self, gone: &[Name]) -> Result<(), Refusal> {
        let was_full = |name: &Name| {
            self.state
                .registry
                .agent(name)
                .is_some_and(|a| self.may_all(&a))
        };
        if !gone.iter().any(was_full) {
            return Ok(());
        }
        let remains = |agent: &Agent| !gone.contains(&agent.name) && self.may_all(agent);
        if self.state.registry.any_agent(remains) {
            Ok(())
        } else {
            Err(Refusal::Conflict("this is the last full admin".into()))
        }
    }
}

/// Whether a scope reaches an agent.
pub(super) fn acts_on(scope: &AdminScope, name: &Name) -> bool {
    scope.names.iter().any(|pattern| pattern.matches(name))
}

/// Whether a scope has no bounds.
pub(super) fn is_full(scope: &AdminScope) -> bool {
    let covers = |text: &str| {
        scope
            .grantable
            .iter()
            .any(|pattern| pattern.as_str() == text)
    };
    covers("*") && covers("admin.*") && scope.names.iter().any(|name| name.as_str() == "*")
}
