//! Who holds a token: the walk from the authority's holder through every delegation.
//!
//! Each step reads one block's own bytes. A query would see the facts of every block that a key ever
//! signed, in whatever order, and could join a delegation from here with a condition from there.

use super::gate::{Authority, GatedBlock};
use super::token::TokenKind;
use crate::identity::{AgentId, Org, Speaker};
use crate::refusal::Refusal;
use crate::signature::PublicKey;

/// The holders of a token in order: the authority's, then each delegate. Empty for bearer tokens.
///
/// # Errors
///
/// - [`Refusal::NotHolder`]: a delegation was not signed by whoever held the token then, or goes to a key
///   that the chain has already, which would let a delegate step around its own revocation.
/// - [`Refusal::TokenMalformed`]: a delegation of a kind of token that has no holder.
pub(super) fn walk(kind: TokenKind, blocks: &[GatedBlock]) -> Result<Vec<PublicKey>, Refusal> {
    let mut holders: Vec<PublicKey> = Vec::new();
    for block in blocks {
        let Some(next) = block.holder else { continue };
        match (block.signer, holders.last()) {
            (None, None) => {}
            (Some(signer), Some(holder)) if signer == *holder => {}
            (Some(_), None) => {
                let why = format!("a delegation of a token of kind {}", kind.as_str());
                return Err(Refusal::TokenMalformed(why));
            }
            _ => {
                return Err(Refusal::NotHolder(
                    "a delegation is not signed by the holder before it",
                ));
            }
        }
        if holders.contains(&next) {
            return Err(Refusal::NotHolder(
                "a key occurs twice in the chain of holders",
            ));
        }
        holders.push(next);
    }
    Ok(holders)
}

/// The agent for whom a peer's token speaks, once its broker has introduced one: in the last block, signed
/// by the broker key of the organisation that the agent is of.
///
/// A key behind a name is vouched for by the broker before it, so a broker introduces agents of its own
/// organisation, and further organisations only as deep as the authority block allows.
///
/// # Errors
///
/// [`Refusal::NotHolder`]: an agent is introduced elsewhere than in the last block, twice, by another
/// organisation's broker, or through more organisations than the token allows.
pub(super) fn introduced(
    authority: &Authority,
    blocks: &[GatedBlock],
) -> Result<Option<AgentId>, Refusal> {
    let mut stated = blocks.iter().filter(|block| block.agent.is_some());
    let Some(introducing) = stated.next() else {
        return Ok(None);
    };
    let is_last = blocks
        .last()
        .is_some_and(|last| std::ptr::eq(last, introducing));
    if !is_last || stated.next().is_some() {
        return Err(Refusal::NotHolder(
            "an agent is introduced elsewhere than in the last block",
        ));
    }
    // Each delegation before the introduction brought in one more organisation.
    let brokers = blocks.iter().filter(|block| block.holder.is_some()).count() - 1;
    if brokers - 1 > authority.depth as usize {
        return Err(Refusal::NotHolder(
            "it came through more organisations than it may",
        ));
    }
    let first: Option<&Org> = authority.agent.as_ref().map(Speaker::org);
    let agent = introducing.agent.clone();
    let fits = agent.as_ref().is_some_and(|agent| {
        // The first holder's organisation is named by us; one that it introduced names itself, but
        // neither as us nor as the one that introduced it.
        *agent.org() != authority.org && (brokers == 1) == (Some(agent.org()) == first)
    });
    if fits {
        Ok(agent)
    } else {
        Err(Refusal::NotHolder(
            "an agent is introduced by the broker of another organisation",
        ))
    }
}
