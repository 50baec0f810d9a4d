//! What an admin may: beyond its patterns it grants, approves and revokes nothing.

use proto_spec::message::AdminScope;
use proto_spec::{Authorized, Name, NamePattern, Pattern, PublicKey, Refusal};

use super::{Desk, check_count};
use crate::change::default_prefixes;

impl Desk {
    pub(super) fn scope(&self, act: &Authorized) -> Result<AdminScope, Refusal> {
        let admin = self
            .state
            .registry
            .agent(act.agent().name())
            .and_then(|agent| agent.admin.clone());
        admin.ok_or_else(|| Refusal::Denied("an agent without an admin's scope".into()))
    }

    /// An admin acts on the agents that its patterns name, and on no admin of a wider scope.
    pub(super) fn check_name(&self, act: &Authorized, name: &Name) -> Result<(), Refusal> {
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

    pub(super) fn check_name_pattern(
        &self,
        act: &Authorized,
        name: &NamePattern,
    ) -> Result<(), Refusal> {
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

    pub(super) fn check_grantable(
        &self,
        act: &Authorized,
        asked: &[Pattern],
    ) -> Result<(), Refusal> {
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

    /// An agent offers tools under its own name; to let it offer others' is a right to hand out.
    pub(super) fn check_prefixes_grantable(
        &self,
        act: &Authorized,
        name: &Name,
        prefixes: &[Pattern],
    ) -> Result<(), Refusal> {
        let own = default_prefixes(name);
        let others: Vec<Pattern> = prefixes
            .iter()
            .filter(|prefix| !own.contains(prefix))
            .cloned()
            .collect();
        self.check_grantable(act, &others)
    }

    pub(super) fn check_scope(&self, act: &Authorized, asked: &AdminScope) -> Result<(), Refusal> {
        self.check_grantable(act, &asked.grantable)?;
        asked
            .names
            .iter()
            .try_for_each(|name| self.check_name_pattern(act, name))
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
}

pub(super) fn is_full(scope: &AdminScope) -> bool {
    let covers = |text: &str| {
        scope
            .grantable
            .iter()
            .any(|pattern| pattern.as_str() == text)
    };
    covers("*") && covers("admin.*") && scope.names.iter().any(|name| name.as_str() == "*")
}
