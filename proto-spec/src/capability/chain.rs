//! Who holds a token: the walk from the authority's holder through every delegation.
//!
//! Each step reads one block's own bytes. A query would see the facts of every block that a key ever
//! signed, in whatever order, and could join a delegation from here with a condition from there.

use super::gate::GatedBlock;
use super::token::TokenKind;
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
