//! Calls that grants and delegations allow in all. What may be spent is on disk before it is spent: a
//! crash loses what was reserved and not used, and adds none.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use proto_spec::capability::Token;
use proto_spec::{Digest, Refusal};

use crate::change::Reissued;
use crate::locks::lock;

/// At most so many calls are reserved at once: what a crash can lose of one budget.
const BLOCK_MAX: u32 = 64;

#[derive(Debug, Clone, Copy, Default)]
struct Budget {
    /// On disk.
    reserved: u32,
    used: u32,
}

/// What was reserved and used, by the revocation id of the block that states the budget.
#[derive(Debug, Default)]
pub struct Budgets {
    known: Mutex<HashMap<Digest, Budget>>,
}

/// What has to be on disk before a call can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Whose budget.
    pub block: Digest,
    /// All that it allows.
    pub limit: u32,
}

/// How spending went.
#[derive(Debug, PartialEq, Eq)]
pub enum Spent {
    /// One call of every budget of the token is used.
    Yes,
    /// Nothing is used: more has to be reserved first.
    Reserve(Need),
}

impl Budgets {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Budget>> {
        lock(&self.known)
    }

    /// Uses one call of every budget that a token states, or of none.
    ///
    /// # Errors
    ///
    /// [`Refusal::BudgetSpent`].
    pub fn spend(&self, token: &Token) -> Result<Spent, Refusal> {
        let mut known = self.lock();
        for (id, limit) in token.budgets() {
            let budget = known.get(&id.0).copied().unwrap_or_default();
            if budget.used >= limit {
                return Err(Refusal::BudgetSpent(limit));
            }
            if budget.used >= budget.reserved {
                return Ok(Spent::Reserve(Need { block: id.0, limit }));
            }
        }
        for (id, _) in token.budgets() {
            known.entry(id.0).or_default().used += 1;
        }
        Ok(Spent::Yes)
    }

    /// Gives back what [`Budgets::spend`] took, for a call that was not delivered.
    pub fn give_back(&self, token: &Token) {
        let mut known = self.lock();
        for (id, _) in token.budgets() {
            if let Some(budget) = known.get_mut(&id.0) {
                budget.used = budget.used.saturating_sub(1);
            }
        }
    }

    /// How many calls to reserve now; nothing where some are reserved and unused.
    ///
    /// # Errors
    ///
    /// [`Refusal::BudgetSpent`].
    pub fn to_reserve(&self, need: Need) -> Result<Option<u32>, Refusal> {
        let budget = self.lock().get(&need.block).copied().unwrap_or_default();
        if budget.used < budget.reserved {
            return Ok(None);
        }
        match need.limit.saturating_sub(budget.reserved) {
            0 => Err(Refusal::BudgetSpent(need.limit)),
            left => Ok(Some(left.min((need.limit / 8).clamp(1, BLOCK_MAX)))),
        }
    }

    /// Whether one of the budgets that a token states is used up.
    #[must_use]
    pub fn is_spent(&self, token: &Token) -> bool {
        let mut budgets = token.budgets();
        budgets.any(|(id, limit)| self.left(&id.0, limit) == 0)
    }

    /// Calls left of a budget of `limit`.
    #[must_use]
    pub fn left(&self, block: &Digest, limit: u32) -> u32 {
        let used = self.lock().get(block).map_or(0, |budget| budget.used);
        limit.saturating_sub(used)
    }

    /// What is on disk of each.
    pub(super) fn image(&self) -> Vec<(Digest, u32)> {
        let reserved = |(id, budget): (&Digest, &Budget)| {
            // How many were used is known to this run alone.
            let Budget { reserved, used: _ } = budget;
            (*id, *reserved)
        };
        let Self { known } = self;
        lock(known).iter().map(reserved).collect()
    }

    pub(super) fn load(&self, reserved: Vec<(Digest, u32)>) {
        for (block, calls) in reserved {
            self.reserve(block, calls, true);
        }
    }

    pub(super) fn reserve(&self, block: Digest, calls: u32, is_start: bool) {
        let mut known = self.lock();
        let budget = known.entry(block).or_default();
        budget.reserved = budget.reserved.saturating_add(calls);
        if is_start {
            // How many of these were used before the start nobody knows: all of them.
            budget.used = budget.reserved;
        }
    }

    pub(super) fn reissued(&self, grants: &[Reissued]) {
        let mut known = self.lock();
        for one in grants {
            if let Some(budget) = known.remove(&one.old) {
                known.insert(one.new, budget);
            }
        }
    }
}
