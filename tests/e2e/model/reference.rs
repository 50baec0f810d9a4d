//! What a broker should answer, as plain sets and lists: written from DESIGN.md §4 and §5 and SPEC.md
//! §10, §11 and §15, and from nothing else.
//!
//! SPEC does not say which of several refusals comes first, so the answer is a set: every code that is
//! true. A call is answered exactly where no refusal is true.

use std::collections::{BTreeMap, BTreeSet};

use proto_spec::Code;

/// A key, by the number of its seed.
pub(super) type Key = u8;
/// Milliseconds; tokens count in whole seconds.
pub(super) type Ms = u64;

/// What a call may come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Answer {
    Answered,
    Refused(Code),
}

/// Something issued by an admin, or a block appended to it by its holder.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// What it was appended to; nothing for what was issued.
    pub(super) parent: Option<usize>,
    /// Who may present and lengthen a token that ends here.
    pub(super) holder: Key,
    /// One of them has to cover what is asked; empty leaves that to the blocks above.
    pub(super) covers: Vec<String>,
    pub(super) from: Ms,
    pub(super) until: Ms,
    pub(super) budget: Option<Budget>,
    pub(super) revoked: bool,
    /// What is said only of what was issued.
    pub(super) issued: Option<Issued>,
}

#[derive(Debug, Clone)]
pub(super) struct Issued {
    pub(super) subject: &'static str,
    /// The admin; nobody for what an enrolment token gave.
    pub(super) issuer: Option<&'static str>,
    pub(super) second: u64,
    /// Kept on record, or handed out.
    pub(super) record: bool,
    /// The grant of an approval: the next approval replaces it.
    pub(super) approval: bool,
    pub(super) root: usize,
    /// Nothing under these any more.
    pub(super) barred: Vec<String>,
}

/// How many calls are left. A restart may lose one that was reserved for a call that was not made, and
/// where several budgets could pay nobody says which does; so both are bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    pub(super) at_least: u32,
    pub(super) at_most: u32,
}

/// A bearer token by which agents come in.
#[derive(Debug, Clone)]
pub(super) struct Enrolment {
    pub(super) issuer: &'static str,
    pub(super) ceiling: Vec<String>,
    pub(super) uses: u32,
    pub(super) until: Ms,
    pub(super) second: u64,
    pub(super) root: usize,
    pub(super) revoked: bool,
    pub(super) barred: Vec<String>,
}

/// Whose word an agent's approval is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Admin(&'static str),
    Enrolment(usize),
}

#[derive(Debug, Clone)]
pub(super) struct Agent {
    pub(super) key: Key,
    pub(super) by: By,
    /// The enrolment token by which this key came in, whoever approved it since.
    pub(super) came_in: Option<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) now: Ms,
    pub(super) agents: BTreeMap<&'static str, Agent>,
    pub(super) pending: BTreeSet<(&'static str, Key)>,
    pub(super) dead_keys: BTreeSet<Key>,
    pub(super) blocks: Vec<Block>,
    pub(super) enrolments: Vec<Enrolment>,
    pub(super) retired_roots: BTreeSet<usize>,
    pub(super) active_root: usize,
    pub(super) last_bar: Option<u64>,
}

/// A prefix of whole segments; `*` is all but what the protocol reserves.
pub(super) fn covers(pattern: &str, asked: &str) -> bool {
    let reserved = ["admin", "broker", "peer", "event", "enrol", "mcp"];
    match pattern.strip_suffix('*') {
        Some("") => !reserved.contains(&asked.split('.').next().unwrap_or(asked)),
        Some(prefix) => asked.starts_with(prefix),
        None => pattern == asked,
    }
}

fn any_covers(patterns: &[String], asked: &str) -> bool {
    patterns.iter().any(|one| covers(one, asked))
}

impl Model {
    /// A block and all above it.
    fn chain(&self, last: usize) -> Vec<usize> {
        std::iter::successors(Some(last), |at| self.blocks[*at].parent).collect()
    }

    pub(super) fn issued(&self, last: usize) -> &Issued {
        let first = self.chain(last).pop().unwrap_or(last);
        let issued = self.blocks[first].issued.as_ref();
        issued.expect("a chain begins with what was issued")
    }

    pub(super) fn is_agents(&self, name: &str, key: Key) -> bool {
        self.agents.get(name).is_some_and(|agent| agent.key == key)
    }

    /// The second that something issued now bears: what is issued after a bar is not struck by it.
    pub(super) fn issuing_second(&self) -> u64 {
        let after = self.last_bar.map_or(0, |bar| bar + 1);
        after.max(self.now / 1000)
    }

    // --- calls -----------------------------------------------------------------------------------

    /// Every reason to refuse a use of the token that ends with this block, save spent budgets.
    fn refusals(&self, last: usize, presenter: Key, asked: &str) -> BTreeSet<Code> {
        let chain = self.chain(last);
        let all = |is: &dyn Fn(&Block) -> bool| chain.iter().all(|at| is(&self.blocks[*at]));
        let issued = self.issued(last);
        let second = self.now / 1000;
        let mut reasons = BTreeSet::new();
        let mut unless = |holds: bool, code| {
            if !holds {
                reasons.insert(code);
            }
        };
        // What is on record is issued anew before its root key retires.
        let rooted = issued.record || !self.retired_roots.contains(&issued.root);
        unless(rooted, Code::TokenInvalid);
        unless(all(&|block| !block.revoked), Code::TokenRevoked);
        let lives = |block: &Block| !self.dead_keys.contains(&block.holder);
        unless(all(&lives), Code::TokenRevoked);
        unless(!any_covers(&issued.barred, asked), Code::TokenRevoked);
        unless(self.blocks[last].holder == presenter, Code::NotHolder);
        let holds = |block: &Block| block.from / 1000 <= second && second < block.until / 1000;
        unless(all(&holds), Code::TokenExpired);
        let permits = |block: &Block| block.covers.is_empty() || any_covers(&block.covers, asked);
        unless(all(&permits), Code::Denied);
        reasons
    }

    /// What is on record for an agent.
    fn records(&self, name: &str) -> impl Iterator<Item = usize> {
        let is_its = move |at: &usize| {
            let issued = self.blocks[*at].issued.as_ref();
            issued.is_some_and(|issued| issued.record && issued.subject == name)
        };
        (0..self.blocks.len()).filter(is_its)
    }

    /// What is on record for an agent and permits what is asked, if its budget does.
    fn on_record(&self, name: &str, key: Key, asked: &str) -> Vec<usize> {
        let permits = |at: &usize| self.refusals(*at, key, asked).is_empty();
        self.records(name).filter(permits).collect()
    }

    /// What an agent may be told whose record permits nothing of this: that some grant is past its time is
    /// true, and so is that it is not permitted.
    fn lacks(&self, name: &str, key: Key, asked: &str) -> BTreeSet<Code> {
        let mut codes = BTreeSet::from([Code::Denied]);
        let reasons = self
            .records(name)
            .flat_map(|at| self.refusals(at, key, asked));
        codes.extend(reasons.filter(|code| *code == Code::TokenExpired));
        codes
    }

    /// Whether an agent may do what needs this capability by its record.
    pub(super) fn may(&self, name: &str, key: Key, asked: &str) -> bool {
        self.is_agents(name, key) && !self.on_record(name, key, asked).is_empty()
    }

    /// The budgets that a use of each token that could carry the call would draw on.
    fn ways(&self, name: &str, key: Key, asked: &str, token: Option<usize>) -> Vec<Vec<usize>> {
        let tokens = match token {
            Some(last) => vec![last],
            None => self.on_record(name, key, asked),
        };
        let budgets = |last: usize| {
            let mut chain = self.chain(last);
            chain.retain(|at| self.blocks[*at].budget.is_some());
            chain
        };
        tokens.into_iter().map(budgets).collect()
    }

    fn budget(&self, at: usize) -> Budget {
        self.blocks[at].budget.expect("a way names budgets")
    }

    /// What a call may be answered; `reached` is what it comes to when nothing is against it.
    pub(super) fn answers(
        &self,
        (name, key): (&str, Key),
        asked: &str,
        token: Option<usize>,
        reached: Answer,
    ) -> BTreeSet<Answer> {
        if !self.is_agents(name, key) {
            return BTreeSet::from([Answer::Refused(Code::NotAuthentic)]);
        }
        let refusals = match token {
            Some(last) => self.refusals(last, key, asked),
            None if self.on_record(name, key, asked).is_empty() => self.lacks(name, key, asked),
            None => BTreeSet::new(),
        };
        if !refusals.is_empty() {
            // A budget that is used up is one more true reason.
            return refusals.into_iter().map(Answer::Refused).collect();
        }
        let ways = self.ways(name, key, asked, token);
        let some = |enough: &dyn Fn(Budget) -> bool| {
            let is_open = |way: &Vec<usize>| way.iter().all(|at| enough(self.budget(*at)));
            ways.iter().any(is_open)
        };
        let mut answers = BTreeSet::new();
        if some(&|left| left.at_most > 0) {
            answers.insert(reached);
        }
        if !some(&|left| left.at_least > 0) {
            answers.insert(Answer::Refused(Code::BudgetSpent));
            // Nobody serves it, or is too busy: which of the two is told first is left open.
            if reached != Answer::Answered {
                answers.insert(reached);
            }
        }
        answers
    }

    /// Takes note of what a call came to. Only one that was answered costs anything.
    pub(super) fn called(
        &mut self,
        name: &str,
        key: Key,
        asked: &str,
        token: Option<usize>,
        to: Answer,
    ) {
        let ways = self.ways(name, key, asked, token);
        let is_only = ways.len() == 1;
        for at in ways.into_iter().flatten() {
            let Some(left) = self.blocks[at].budget.as_mut() else {
                continue;
            };
            match to {
                Answer::Answered => {
                    left.at_least = left.at_least.saturating_sub(1);
                    left.at_most -= u32::from(is_only);
                }
                // It may have been reserved and not used, and a restart would lose it.
                Answer::Refused(Code::Busy | Code::BudgetSpent) => {
                    left.at_least = left.at_least.saturating_sub(1);
                }
                Answer::Refused(_) => {}
            }
        }
    }

    // --- agents ----------------------------------------------------------------------------------

    fn end_approval(&mut self, name: &str) {
        for block in &mut self.blocks {
            let issued = block.issued.as_ref();
            block.revoked |= issued.is_some_and(|one| one.approval && one.subject == name);
        }
    }

    /// An approval, with a key that may be another than before: then the one before is dead.
    pub(super) fn approve(&mut self, name: &'static str, key: Key, by: By) {
        let came_in = match (by, self.agents.get(name)) {
            (By::Enrolment(at), _) => Some(at),
            (By::Admin(_), Some(before)) if before.key == key => before.came_in,
            (By::Admin(_), _) => None,
        };
        self.end_approval(name);
        let before = self.agents.insert(name, Agent { key, by, came_in });
        if let Some(before) = before.filter(|before| before.key != key) {
            self.dead_keys.insert(before.key);
        }
        self.pending.remove(&(name, key));
    }

    /// Whether an enrolment token lets anybody in.
    pub(super) fn opens(&self, at: usize) -> bool {
        let one = &self.enrolments[at];
        let in_time = self.now / 1000 < one.until / 1000;
        in_time && one.uses > 0 && !one.revoked && !self.retired_roots.contains(&one.root)
    }

    /// Whether an agent that enrols gets what it asks for.
    pub(super) fn given(&self, at: usize, asked: &str) -> bool {
        let one = &self.enrolments[at];
        any_covers(&one.ceiling, asked) && !any_covers(&one.barred, asked)
    }

    /// What is on record follows the key; what was handed out or delegated dies with the old one.
    pub(super) fn rotate(&mut self, name: &'static str, to: Key) {
        let agent = self.agents.get_mut(name).expect("an agent rotates its key");
        let from = std::mem::replace(&mut agent.key, to);
        self.dead_keys.insert(from);
        for block in &mut self.blocks {
            let is_its = |one: &Issued| one.record && one.subject == name;
            if block.holder == from && block.issued.as_ref().is_some_and(is_its) {
                block.holder = to;
            }
        }
    }

    // --- revoking --------------------------------------------------------------------------------

    /// Whether a holder may revoke a block: it held the token when the block was made, or before.
    pub(super) fn held(&self, at: usize, key: Key) -> bool {
        let before = self.blocks[at].parent.unwrap_or(at);
        let chain = self.chain(before);
        chain.iter().any(|one| self.blocks[*one].holder == key)
    }

    pub(super) fn revoke_agent(&mut self, name: &str) {
        if let Some(agent) = self.agents.remove(name) {
            self.dead_keys.insert(agent.key);
        }
    }

    /// Whatever was issued up to a second, or until now, permits nothing under a pattern.
    pub(super) fn bar(&mut self, under: &str, before: Option<u64>) {
        let issued = self.blocks.iter_mut().filter_map(|one| one.issued.as_mut());
        let issued = issued.map(|one| (one.second, &mut one.barred));
        let enrolments = self.enrolments.iter_mut();
        let enrolments = enrolments.map(|one| (one.second, &mut one.barred));
        for (second, barred) in issued.chain(enrolments) {
            if before.is_none_or(|before| second <= before) {
                barred.push(under.to_owned());
            }
        }
        let until = before.unwrap_or(self.issuing_second());
        self.last_bar = self.last_bar.max(Some(until));
    }

    /// An agent, what it issued, whoever came in through that, and the token by which it came in.
    pub(super) fn quarantine(&mut self, first: &'static str) {
        let mut struck = BTreeSet::from([first]);
        let came_in = self.agents[first].came_in;
        loop {
            let is_struck = |agent: &Agent| match agent.by {
                By::Admin(admin) => struck.contains(admin),
                By::Enrolment(at) => struck.contains(self.enrolments[at].issuer),
            };
            let mut more = struck.clone();
            more.extend(
                self.agents
                    .iter()
                    .filter(|(_, one)| is_struck(one))
                    .map(|(name, _)| name),
            );
            if more == struck {
                break;
            }
            struck = more;
        }
        for block in &mut self.blocks {
            let is_its = |one: &Issued| {
                struck.contains(one.subject) || one.issuer.is_some_and(|by| struck.contains(by))
            };
            block.revoked |= block.issued.as_ref().is_some_and(is_its);
        }
        for (at, enrolment) in self.enrolments.iter_mut().enumerate() {
            enrolment.revoked |= struck.contains(enrolment.issuer) || came_in == Some(at);
        }
        struck.iter().for_each(|name| self.revoke_agent(name));
    }
}
