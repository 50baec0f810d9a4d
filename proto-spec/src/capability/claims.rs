//! What a token says, before anybody has looked at who signed it.
//!
//! Enough to show a token to a person, and to find what it is revoked by. Nothing is decided with it: only
//! a [`Token`](super::Token) permits anything, and none is made without a root's signature.

use std::fmt;

use super::chain;
use super::check::Check;
use super::decision::Standing;
use super::gate::{self, Authority, Gated};
use super::pattern::Pattern;
use super::token::{Enrolment, RevocationId, TokenKind};
use crate::identity::{AgentId, Org, Speaker};
use crate::refusal::Refusal;
use crate::signature::PublicKey;
use crate::time::Timestamp;

/// What a token says: its form is admitted and its chain of holders walked, but no signature is verified.
///
/// Anybody can write this down, so it permits nothing and nobody presents it:
///
/// ```compile_fail,E0599
/// # use proto_spec::capability::{Claims, Question};
/// fn decide(said: &Claims, question: &Question<'_>) -> bool {
///     said.permits(question).is_ok()
/// }
/// ```
///
/// ```compile_fail,E0308
/// # use proto_spec::capability::{Claims, Token};
/// fn route(_: &Token) {}
/// fn skips_the_signatures(said: &Claims) {
///     route(said);
/// }
/// ```
#[derive(Clone)]
pub struct Claims {
    authority: Authority,
    blocks: Vec<Block>,
    holders: Vec<PublicKey>,
    introduced: Option<AgentId>,
    pub(super) standing: Standing,
    is_sealed: bool,
}

/// Which token it is, and nothing of what it permits: logs are read by others.
impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Claims");
        shown.field("kind", &self.kind()).field("org", self.org());
        let ids: Vec<_> = self.blocks.iter().map(Block::id).collect();
        shown.field("blocks", &ids).finish_non_exhaustive()
    }
}

impl Claims {
    /// Reads what a token says, sealed or not.
    ///
    /// # Errors
    ///
    /// - [`Refusal::TokenMalformed`], [`Refusal::TokenTooCostly`]: the gate refuses it.
    /// - [`Refusal::NotHolder`]: a delegation does not name the holder before it as its signer.
    pub fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        Self::of(gate::admit(bytes)?)
    }

    /// What an admitted token says. Fails as [`Claims::read`] where the chain of holders is broken.
    pub(super) fn of(gated: Gated) -> Result<Self, Refusal> {
        let Gated {
            is_sealed,
            authority,
            blocks: gated,
        } = gated;
        let holders = chain::walk(authority.kind, &gated)?;
        let introduced = chain::introduced(&authority, &gated)?;
        let standing = Standing::of(gated.iter().flat_map(|block| &block.checks));
        let mut blocks = Vec::with_capacity(gated.len());
        let mut holders_before = 0;
        for block in gated {
            holders_before += usize::from(block.holder.is_some());
            blocks.push(Block {
                id: block.id,
                signer: block.signer,
                holder: block.holder,
                calls: block.calls,
                checks: block.checks,
                holders_before: holders_before - usize::from(block.signer.is_some()),
            });
        }
        Ok(Self {
            authority,
            blocks,
            holders,
            introduced,
            standing,
            is_sealed,
        })
    }

    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> TokenKind {
        self.authority.kind
    }

    /// Who issued it.
    #[must_use]
    pub fn org(&self) -> &Org {
        &self.authority.org
    }

    /// Whom it was issued to: an agent, or for a peer token the other organisation's broker. Whoever it was
    /// delegated to is known by key only.
    #[must_use]
    pub fn agent(&self) -> Option<&Speaker> {
        self.authority.agent.as_ref()
    }

    /// Every key of its chain: the first holder, then each delegate. One of them revoked kills it.
    #[must_use]
    pub fn holders(&self) -> &[PublicKey] {
        &self.holders
    }

    /// Who may present it. Bearer tokens have none.
    #[must_use]
    pub fn holder(&self) -> Option<&PublicKey> {
        self.holders.last()
    }

    /// Of a peer token: the agent that its broker introduced as the last holder.
    #[must_use]
    pub fn introduced(&self) -> Option<&AgentId> {
        self.introduced.as_ref()
    }

    /// Of a peer token: through how many further organisations it may be passed on.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.authority.depth
    }

    /// Its blocks, the authority block first.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// What it grants before any condition. Empty for an enrolment token.
    #[must_use]
    pub fn capabilities(&self) -> &[Pattern] {
        &self.authority.capabilities
    }

    /// When it was issued, as it says itself.
    #[must_use]
    pub fn issued(&self) -> Timestamp {
        self.authority.issued
    }

    /// When it ends: the earliest expiry of its blocks.
    #[must_use]
    pub fn expires(&self) -> Timestamp {
        self.standing.expires.unwrap_or_default()
    }

    /// When it begins to hold: the latest beginning that its blocks name.
    #[must_use]
    pub fn not_before(&self) -> Option<Timestamp> {
        self.standing.not_before
    }

    /// The sandbox that calls with it must run in.
    #[must_use]
    pub fn sandbox(&self) -> Option<&str> {
        self.authority.sandbox.as_deref()
    }

    /// How many calls its authority block allows; [`Token::budgets`](super::Token::budgets) has all of them.
    #[must_use]
    pub fn calls(&self) -> Option<u32> {
        self.authority.calls
    }

    /// The resource that an `mcp` token is for.
    #[must_use]
    pub fn audience(&self) -> Option<&str> {
        self.authority.audience.as_deref()
    }

    /// What an enrolment token allows.
    #[must_use]
    pub fn enrolment(&self) -> Option<&Enrolment> {
        self.authority.enrolment.as_ref()
    }

    /// Whether nothing can be appended to it.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.is_sealed
    }

    /// All conditions of all blocks.
    pub fn checks(&self) -> impl Iterator<Item = &Check> {
        self.blocks.iter().flat_map(Block::checks)
    }
}

/// One block of a token.
#[derive(Debug, Clone)]
pub struct Block {
    id: RevocationId,
    signer: Option<PublicKey>,
    holder: Option<PublicKey>,
    calls: Option<u32>,
    checks: Vec<Check>,
    /// How many of the token's holders precede this block.
    pub(super) holders_before: usize,
}

impl Block {
    /// What it is revoked by; what its budget is counted under.
    #[must_use]
    pub fn id(&self) -> RevocationId {
        self.id
    }

    /// Who delegated with it; nothing for the authority block and for blocks that only restrict.
    #[must_use]
    pub fn signer(&self) -> Option<&PublicKey> {
        self.signer.as_ref()
    }

    /// Whom it makes the holder.
    #[must_use]
    pub fn holder(&self) -> Option<&PublicKey> {
        self.holder.as_ref()
    }

    /// How many calls it allows in all.
    #[must_use]
    pub fn calls(&self) -> Option<u32> {
        self.calls
    }

    /// Its conditions; shown as Datalog.
    #[must_use]
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }
}
