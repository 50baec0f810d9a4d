//! Making tokens: mint, attenuate, delegate, seal.
//!
//! Randomness comes in as an argument, so that vectors are reproducible. `entropy` becomes the secret
//! that the next block is signed with: fresh for every call, and as secret as the unsealed token.

use std::borrow::Cow;

use biscuit_auth::builder::{Algorithm, BiscuitBuilder, BlockBuilder, Fact, Term};
use biscuit_auth::datalog::SymbolTable;
use biscuit_auth::{KeyPair, PrivateKey, UnverifiedBiscuit, error};

use super::chain;
use super::check::{BadCheck, Check, Standard, can_hold};
use super::decision::Standing;
use super::gate::{self, Gated};
use super::pattern::Pattern;
use super::token::{Enrolment, TokenKind};
use crate::identity::{AgentId, Org, Speaker};
use crate::limits::TOKEN_BLOCKS_MAX;
use crate::refusal::Refusal;
use crate::signature::{PublicKey, SigningKey};
use crate::time::{DATE_MAX, Timestamp};

/// Why a token cannot be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadTerms {
    /// What it should say is wrong.
    #[error("{0}")]
    Terms(Cow<'static, str>),
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

fn bad<T>(why: impl Into<Cow<'static, str>>) -> Result<T, BadTerms> {
    Err(BadTerms::Terms(why.into()))
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

/// What another organisation is granted.
#[derive(Debug, Clone)]
pub struct PeerTerms {
    /// Whom.
    pub peer: Org,
    /// Its broker's key, which introduces that organisation's agents.
    pub holder: PublicKey,
    /// What its agents may do.
    pub capabilities: Vec<Pattern>,
    /// When it is issued.
    pub issued: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
    /// Conditions on every use.
    pub checks: Vec<Check>,
    /// Through how many further organisations it may be passed on; 0 for the peer's own agents only.
    pub depth: u32,
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
    /// The agent whose key the next one is. Only a delegation of a peer token can say this, as its last.
    pub agent: Option<AgentId>,
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
    let mut times = vec![before(terms.expires)];
    if let Some(at) = terms.not_before {
        check_end(terms.expires, terms.issued, Some(at))?;
        block = block.check(not_before(at).as_str())?;
        times.push(not_before(at));
    }
    can_be_met(&terms.capabilities, &terms.checks, &times)?;
    mint(root, conditions(block, &terms.checks)?, entropy)
}

/// Mints a peer's token, unsealed: it is handed to that organisation's broker, over their link.
///
/// # Errors
///
/// [`BadTerms`] names what is wrong with the terms.
pub fn peer(
    root: &SigningKey,
    org: &Org,
    terms: &PeerTerms,
    entropy: [u8; 32],
) -> Result<Vec<u8>, BadTerms> {
    let mut block = authority(TokenKind::Peer, org, terms.issued, terms.expires)?;
    let peer = Speaker::Broker(terms.peer.clone());
    block = fact(block, "agent", Term::Str(peer.to_string()))?;
    block = fact(
        block,
        "holder",
        Term::Bytes(terms.holder.as_bytes().to_vec()),
    )?;
    for capability in &terms.capabilities {
        block = fact(block, "capability", Term::Str(capability.to_string()))?;
    }
    if terms.depth > 0 {
        block = fact(block, "depth", Term::Integer(i64::from(terms.depth)))?;
    }
    can_be_met(&terms.capabilities, &terms.checks, &[before(terms.expires)])?;
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
    can_be_met(&terms.capabilities, &terms.checks, &[before(terms.expires)])?;
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
    let gated = appendable(token)?;
    if narrowing.calls.is_some() || narrowing.agent.is_some() {
        return bad("only a delegation can carry a budget of calls, or introduce an agent");
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
    let gated = appendable(token)?;
    let holders = chain::walk(gated.authority.kind, &gated.blocks).map_err(BadTerms::Gate)?;
    let Some(last) = holders.last() else {
        return bad("no key holds this kind of token, so nobody can delegate it");
    };
    if *last != holder.public() {
        return bad(format!(
            "the key {} holds the token, and only it can delegate it; the key to sign with is {}",
            last.fingerprint(),
            holder.public().fingerprint(),
        ));
    }
    if holders.contains(next) {
        return bad(format!(
            "the key {} holds the token, or has held it: delegate to a key that is new to it",
            next.fingerprint(),
        ));
    }
    let mut block = narrowed(&gated, narrowing)?;
    block = block.fact(statement("holder", Term::Bytes(next.as_bytes().to_vec())))?;
    if let Some(agent) = &narrowing.agent {
        block = block.fact(statement("agent", Term::Str(agent.to_string())))?;
    }
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
    format!("check if time($t), $t < {}", at.rfc3339())
}

fn not_before(at: Timestamp) -> String {
    format!("check if time($t), $t >= {}", at.rfc3339())
}

fn authority(
    kind: TokenKind,
    org: &Org,
    issued: Timestamp,
    expires: Timestamp,
) -> Result<BiscuitBuilder, BadTerms> {
    check_end(expires, issued, None)?;
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
    let gated = gate::admit(&token).map_err(BadTerms::Gate)?;
    chain::introduced(&gated.authority, &gated.blocks).map_err(BadTerms::Gate)?;
    Ok(token)
}

fn unsealed(token: &[u8]) -> Result<Gated, BadTerms> {
    let gated = gate::admit(token).map_err(BadTerms::Gate)?;
    if gated.is_sealed {
        return bad(
            "the token is sealed, and nothing can be appended: take the unsealed one that its holder was handed",
        );
    }
    Ok(gated)
}

/// An unsealed token with room for one block more.
fn appendable(token: &[u8]) -> Result<Gated, BadTerms> {
    let gated = unsealed(token)?;
    if gated.blocks.len() >= TOKEN_BLOCKS_MAX {
        return bad(format!(
            "the token has {TOKEN_BLOCKS_MAX} blocks, and no verifier takes more: start from an earlier one of its chain, or ask for a new one"
        ));
    }
    Ok(gated)
}

/// The checks of a narrowing, refusing one that would leave nothing.
fn narrowed(gated: &Gated, narrowing: &Narrowing) -> Result<BlockBuilder, BadTerms> {
    let held: Vec<&Check> = gated
        .blocks
        .iter()
        .flat_map(|block| &block.checks)
        .collect();
    let held_capabilities = gated.authority.capabilities.clone();
    let left = left_of(held_capabilities, held.iter().copied())?;
    let mut checks = Vec::new();
    for only in &narrowing.only {
        if !left.iter().any(|own| own.overlap(only).is_some()) {
            return bad(format!(
                "{only} overlaps nothing that the token permits: keep some of {}",
                list(&left)
            ));
        }
    }
    if !narrowing.only.is_empty() {
        let each = narrowing.only.iter().map(|p| format!("covers(\"{p}\")"));
        let only = format!("check if {}", each.collect::<Vec<_>>().join(" or "));
        checks.push(only.parse()?);
    }
    if let Some(at) = narrowing.expires {
        let standing = Standing::of(held.iter().copied());
        check_end(at, gated.authority.issued, standing.not_before)?;
        checks.push(before(at).parse()?);
    }
    checks.extend_from_slice(&narrowing.checks);
    left_of(left, &checks)?;
    can_hold(&held, &checks)?;
    let mut block = BlockBuilder::new();
    for check in &checks {
        block = block.check(check.to_string().as_str())?;
    }
    Ok(block)
}

/// Refuses conditions on a new token that no call could meet, besides the times that it states.
fn can_be_met(
    capabilities: &[Pattern],
    checks: &[Check],
    times: &[String],
) -> Result<(), BadTerms> {
    let times: Vec<Check> = times
        .iter()
        .map(|time| time.parse())
        .collect::<Result<_, _>>()?;
    left_of(capabilities.to_vec(), checks)?;
    Ok(can_hold(&times.iter().collect::<Vec<_>>(), checks)?)
}

/// What the lists of capabilities in `checks` leave of `capabilities`. Each is among those that were there,
/// and none stands there twice, so that a token cannot make this long.
fn left_of<'a>(
    mut capabilities: Vec<Pattern>,
    checks: impl IntoIterator<Item = &'a Check>,
) -> Result<Vec<Pattern>, BadTerms> {
    for check in checks {
        let Some(Standard::Only(only)) = check.standard() else {
            continue;
        };
        let mut next: Vec<Pattern> = Vec::new();
        for held in &capabilities {
            for both in only.iter().filter_map(|kept| kept.overlap(held)) {
                if !next.iter().any(|had| had.covers(both)) {
                    next.push(both.clone());
                }
            }
        }
        if next.is_empty() && !capabilities.is_empty() {
            return bad(format!(
                "keeping only {} would leave nothing: what there is to keep is {}",
                list(&only),
                list(&capabilities)
            ));
        }
        capabilities = next;
    }
    Ok(capabilities)
}

fn list(patterns: &[Pattern]) -> String {
    let texts: Vec<&str> = patterns.iter().map(Pattern::as_str).collect();
    texts.join(", ")
}

/// Refuses an end that comes before there is anything to end.
fn check_end(end: Timestamp, issued: Timestamp, begins: Option<Timestamp>) -> Result<(), BadTerms> {
    let end = end.as_secs();
    if end <= issued.as_secs() {
        return bad("it would end before it is issued: give a later end");
    }
    if begins.is_some_and(|at| end <= at.as_secs()) {
        return bad("it would end before it begins: give a later end, or an earlier beginning");
    }
    if end > DATE_MAX {
        return bad("it would end after the year 9999: give an earlier end");
    }
    Ok(())
}
