//! Making tokens: mint, attenuate, delegate, seal.
//!
//! Randomness comes in as an argument, so that vectors are reproducible. `entropy` becomes the secret
//! that the next block is signed with: fresh for every call, and as secret as the unsealed token.

use biscuit_auth::builder::{Algorithm, BiscuitBuilder, BlockBuilder, Fact, Term};
use biscuit_auth::datalog::SymbolTable;
use biscuit_auth::{KeyPair, PrivateKey, UnverifiedBiscuit, error};

use super::chain;
use super::check::{BadCheck, Check, rfc3339};
use super::gate::{self, Gated};
use super::pattern::Pattern;
use super::token::{Enrolment, TokenKind};
use crate::identity::{AgentId, Org};
use crate::refusal::Refusal;
use crate::signature::{PublicKey, SigningKey};
use crate::time::Timestamp;

/// Why a token cannot be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadTerms {
    /// What it should say is wrong.
    #[error("{0}")]
    Terms(&'static str),
    /// A condition is wrong.
    #[error("{0}")]
    Check(#[from] BadCheck),
    /// Every verifier would refuse it.
    #[error("{0}")]
    Gate(Refusal),
    /// The token it should be made from cannot be used for that.
    #[error("{0}")]
    Engine(String),
}

impl From<error::Token> for BadTerms {
    fn from(error: error::Token) -> Self {
        Self::Engine(error.to_string())
    }
}

impl From<error::Format> for BadTerms {
    fn from(error: error::Format) -> Self {
        Self::Engine(error.to_string())
    }
}

/// What a grant says.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Whom it is issued to.
    pub agent: AgentId,
    /// The only key that may present or delegate it.
    pub holder: PublicKey,
    /// What it grants.
    pub capabilities: Vec<Pattern>,
    /// When it is issued. Times count in whole seconds, rounded down.
    pub issued: Timestamp,
    /// When it begins to hold, if not at once.
    pub not_before: Option<Timestamp>,
    /// When it ends.
    pub expires: Timestamp,
    /// Conditions on every use.
    pub checks: Vec<Check>,
    /// The sandbox that calls must run in.
    pub sandbox: Option<String>,
    /// How many calls, in all.
    pub calls: Option<u32>,
}

/// What an `mcp` bearer token says.
#[derive(Debug, Clone)]
pub struct Bearer {
    /// The agent it speaks as, whose key the broker keeps.
    pub agent: AgentId,
    /// The resource it is for.
    pub audience: String,
    /// What it grants.
    pub capabilities: Vec<Pattern>,
    /// When it is issued.
    pub issued: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
    /// Conditions on every use.
    pub checks: Vec<Check>,
}

/// How a token is narrowed. Everything here can only take away.
#[derive(Debug, Clone, Default)]
pub struct Narrowing {
    /// Only what one of these covers; empty leaves the capabilities as they are.
    pub only: Vec<Pattern>,
    /// An earlier end.
    pub expires: Option<Timestamp>,
    /// Further conditions.
    pub checks: Vec<Check>,
    /// How many calls the delegate may make in all. Only a delegation can say this.
    pub calls: Option<u32>,
}

/// Mints a grant, signed by the organisation's root. It is unsealed: hand it to its holder and no one else.
///
/// # Errors
///
/// [`BadTerms`] names what is wrong with the terms.
pub fn grant(
    root: &SigningKey,
    org: &Org,
    terms: &Terms,
    entropy: [u8; 32],
) -> Result<Vec<u8>, BadTerms> {
    let mut block = authority(TokenKind::Grant, org, terms.issued, terms.expires)?;
    block = fact(block, "agent", Term::Str(terms.agent.to_string()))?;
    block = fact(
        block,
        "holder",
        Term::Bytes(terms.holder.as_bytes().to_vec()),
    )?;
    for capability in &terms.capabilities {
        block = fact(block, "capability", Term::Str(capability.to_string()))?;
    }
    if let Some(sandbox) = &terms.sandbox {
        block = fact(block, "sandbox", Term::Str(sandbox.clone()))?;
    }
    if let Some(calls) = terms.calls {
        block = fact(block, "calls", Term::Integer(i64::from(calls)))?;
    }
    if let Some(at) = terms.not_before {
        if at.as_secs() >= terms.expires.as_secs() {
            return Err(BadTerms::Terms("it would end before it begins"));
        }
        block = block.check(not_before(at).as_str())?;
    }
    mint(root, conditions(block, &terms.checks)?, entropy)
}

/// Mints an enrolment token: a bearer secret, sealed, because nobody delegates it.
///
/// # Errors
///
/// [`BadTerms`] names what is wrong with the terms.
pub fn enrolment(
    root: &SigningKey,
    org: &Org,
    enrolment: &Enrolment,
    issued: Timestamp,
    expires: Timestamp,
    entropy: [u8; 32],
) -> Result<Vec<u8>, BadTerms> {
    let mut block = authority(TokenKind::Enrol, org, issued, expires)?;
    block = fact(block, "name", Term::Str(enrolment.name.to_string()))?;
    for pattern in &enrolment.ceiling {
        block = fact(block, "ceiling", Term::Str(pattern.to_string()))?;
    }
    for prefix in &enrolment.prefixes {
        block = fact(block, "prefix", Term::Str(prefix.to_string()))?;
    }
    block = fact(block, "uses", Term::Integer(i64::from(enrolment.uses)))?;
    seal(&mint(root, block, entropy)?)
}

/// Mints an `mcp` bearer token, sealed.
///
/// # Errors
///
/// [`BadTerms`] names what is wrong with the terms.
pub fn bearer(
    root: &SigningKey,
    org: &Org,
    terms: &Bearer,
    entropy: [u8; 32],
) -> Result<Vec<u8>, BadTerms> {
    let mut block = authority(TokenKind::Mcp, org, terms.issued, terms.expires)?;
    block = fact(block, "agent", Term::Str(terms.agent.to_string()))?;
    block = fact(block, "aud", Term::Str(terms.audience.clone()))?;
    for capability in &terms.capabilities {
        block = fact(block, "capability", Term::Str(capability.to_string()))?;
    }
    seal(&mint(root, conditions(block, &terms.checks)?, entropy)?)
}

/// Narrows an unsealed token without passing it on. Needs no key: anyone may give up rights.
///
/// # Errors
///
/// [`BadTerms`]: the token is sealed or not one, or the narrowing is wrong.
pub fn attenuate(
    token: &[u8],
    narrowing: &Narrowing,
    entropy: [u8; 32],
) -> Result<Vec<u8>, BadTerms> {
    let gated = unsealed(token)?;
    if narrowing.calls.is_some() {
        return Err(BadTerms::Terms(
            "only a delegation can carry a budget of calls",
        ));
    }
    let block = narrowed(&gated, narrowing)?;
    let token = UnverifiedBiscuit::from(token)?;
    let longer = token.append_with_keypair(&ephemeral(entropy)?, block)?;
    admitted(longer.to_vec()?)
}

/// Passes an unsealed token on to `next`, which alone may present what comes out. `holder` must be the key
/// that holds it.
///
/// # Errors
///
/// [`BadTerms`]: the token is sealed or not one, `holder` does not hold it, `next` has held it, or the
/// narrowing is wrong.
pub fn delegate(
    token: &[u8],
    holder: &SigningKey,
    next: &PublicKey,
    narrowing: &Narrowing,
    entropy: [u8; 32],
) -> Result<Vec<u8>, BadTerms> {
    let gated = unsealed(token)?;
    let holders = chain::walk(gated.authority.kind, &gated.blocks).map_err(BadTerms::Gate)?;
    if holders.last() != Some(&holder.public()) {
        return Err(BadTerms::Terms(
            "only the token's current holder can delegate it",
        ));
    }
    if holders.contains(next) {
        return Err(BadTerms::Terms("this key holds the token, or has held it"));
    }
    let mut block = narrowed(&gated, narrowing)?;
    block = block.fact(statement("holder", Term::Bytes(next.as_bytes().to_vec())))?;
    if let Some(calls) = narrowing.calls {
        block = block.fact(statement("calls", Term::Integer(i64::from(calls))))?;
    }
    let token = UnverifiedBiscuit::from(token)?;
    let key = PrivateKey::from_bytes(holder.seed(), Algorithm::Ed25519)?;
    let signed = token
        .third_party_request()?
        .create_block(&key, block)?
        .serialize()?;
    let longer = token.append_third_party_with_keypair(&signed, ephemeral(entropy)?)?;
    admitted(longer.to_vec()?)
}

/// Seals a token: this is what is presented. Nothing can be appended any more.
///
/// # Errors
///
/// [`BadTerms`]: it is sealed already, or not a token.
pub fn seal(token: &[u8]) -> Result<Vec<u8>, BadTerms> {
    unsealed(token)?;
    admitted(UnverifiedBiscuit::from(token)?.seal()?.to_vec()?)
}

// ------------------------------------------------------------------------------------------------

fn statement(name: &str, value: Term) -> Fact {
    Fact::new(name.into(), vec![value])
}

fn fact(block: BiscuitBuilder, name: &str, value: Term) -> Result<BiscuitBuilder, BadTerms> {
    Ok(block.fact(statement(name, value))?)
}

fn before(at: Timestamp) -> String {
    format!("check if time($t), $t < {}", rfc3339(at.as_secs()))
}

fn not_before(at: Timestamp) -> String {
    format!("check if time($t), $t >= {}", rfc3339(at.as_secs()))
}

fn authority(
    kind: TokenKind,
    org: &Org,
    issued: Timestamp,
    expires: Timestamp,
) -> Result<BiscuitBuilder, BadTerms> {
    if expires.as_secs() <= issued.as_secs() {
        return Err(BadTerms::Terms("it would end before it is issued"));
    }
    if expires.as_secs() > super::check::DATE_MAX {
        return Err(BadTerms::Terms("it would end after the year 9999"));
    }
    let mut block = BiscuitBuilder::new();
    block = fact(block, "kind", Term::Str(kind.as_str().into()))?;
    block = fact(block, "org", Term::Str(org.to_string()))?;
    block = fact(block, "issued", Term::Date(issued.as_secs()))?;
    Ok(block.check(before(expires).as_str())?)
}

fn conditions(mut block: BiscuitBuilder, checks: &[Check]) -> Result<BiscuitBuilder, BadTerms> {
    for check in checks {
        block = block.check(check.to_string().as_str())?;
    }
    Ok(block)
}

fn ephemeral(entropy: [u8; 32]) -> Result<KeyPair, BadTerms> {
    Ok(KeyPair::from(&PrivateKey::from_bytes(
        &entropy,
        Algorithm::Ed25519,
    )?))
}

fn mint(root: &SigningKey, block: BiscuitBuilder, entropy: [u8; 32]) -> Result<Vec<u8>, BadTerms> {
    let root = KeyPair::from(&PrivateKey::from_bytes(root.seed(), Algorithm::Ed25519)?);
    let token = block.build_with_key_pair(&root, SymbolTable::new(), &ephemeral(entropy)?)?;
    admitted(token.to_vec()?)
}

/// What no verifier would take is never handed out.
fn admitted(token: Vec<u8>) -> Result<Vec<u8>, BadTerms> {
    gate::admit(&token).map_err(BadTerms::Gate)?;
    Ok(token)
}

fn unsealed(token: &[u8]) -> Result<Gated, BadTerms> {
    let gated = gate::admit(token).map_err(BadTerms::Gate)?;
    if gated.is_sealed {
        return Err(BadTerms::Terms(
            "the token is sealed: nothing can be appended",
        ));
    }
    Ok(gated)
}

/// The checks of a narrowing, refusing one that would leave nothing.
fn narrowed(gated: &Gated, narrowing: &Narrowing) -> Result<BlockBuilder, BadTerms> {
    let held = &gated.authority.capabilities;
    let overlaps = |p: &Pattern| held.iter().any(|own| own.covers(p) || p.covers(own));
    if !narrowing.only.iter().all(overlaps) {
        return Err(BadTerms::Terms(
            "a capability to keep is not one that the token has",
        ));
    }
    let mut block = BlockBuilder::new();
    if !narrowing.only.is_empty() {
        let each = narrowing.only.iter().map(|p| format!("covers(\"{p}\")"));
        let only = format!("check if {}", each.collect::<Vec<_>>().join(" or "));
        block = block.check(only.as_str())?;
    }
    if let Some(at) = narrowing.expires {
        if at.as_secs() <= gated.authority.issued.as_secs() {
            return Err(BadTerms::Terms("it would end before it is issued"));
        }
        block = block.check(before(at).as_str())?;
    }
    for check in &narrowing.checks {
        block = block.check(check.to_string().as_str())?;
    }
    Ok(block)
}
