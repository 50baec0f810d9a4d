//! What a token may look like before any work is spent on it.
//!
//! The engine looks at its run limits only between iterations: a token of 674 bytes that any holder can
//! make offline burns seconds inside one. So everything that could cost is bounded here, on the raw
//! protobuf, before a signature is verified or a rule is run. Each block's statements are read from that
//! block's own bytes with that block's own symbols, never by a query, which would join what different
//! blocks and different tokens said.

use biscuit_auth::datalog::SymbolTable;
use biscuit_auth::format::{convert, schema};
use prost::Message as _;

use super::check::{Check, Counts, Value};
use super::pattern::Pattern;
use super::token::{Enrolment, RevocationId, TokenKind};
use crate::identity::{AgentId, NamePattern, Org, Speaker};
use crate::limits::{
    ARGUMENT_STRING_MAX, CAPABILITIES_MAX, TOKEN_BLOCKS_MAX, TOKEN_BYTES_MAX, TOKEN_COST_MAX,
    TOKEN_SYMBOLS_MAX, TOKEN_TEXT_MAX,
};
use crate::refusal::Refusal;
use crate::signature::{Digest, PublicKey};
use crate::time::{DATE_MAX, Timestamp};

/// A token whose form was admitted. Nothing is verified yet.
#[derive(Debug)]
pub(super) struct Gated {
    pub is_sealed: bool,
    pub authority: Authority,
    /// The authority block's, then each further block's.
    pub blocks: Vec<GatedBlock>,
}

/// What the authority block states.
#[derive(Debug, Clone)]
pub(super) struct Authority {
    pub kind: TokenKind,
    pub org: Org,
    pub issued: Timestamp,
    pub agent: Option<Speaker>,
    pub holder: Option<PublicKey>,
    pub capabilities: Vec<Pattern>,
    pub sandbox: Option<String>,
    pub calls: Option<u32>,
    pub audience: Option<String>,
    pub enrolment: Option<Enrolment>,
    pub depth: u32,
}

/// What one block says, as it was signed.
#[derive(Debug, Clone)]
pub(super) struct GatedBlock {
    pub id: RevocationId,
    /// The key of a third-party block's external signature.
    pub signer: Option<PublicKey>,
    /// The holder that a third-party block names; the authority's, for the first.
    pub holder: Option<PublicKey>,
    /// The agent that a block of a peer's token introduces.
    pub agent: Option<AgentId>,
    pub calls: Option<u32>,
    pub checks: Vec<Check>,
}

fn malformed<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::TokenMalformed(why.into()))
}

/// Admits a token's form, or says what is wrong with it.
///
/// # Errors
///
/// - [`Refusal::TokenMalformed`]: not what a token of this protocol looks like.
/// - [`Refusal::TokenTooCostly`]: its checks could cost more than [`TOKEN_COST_MAX`] units.
pub(super) fn admit(bytes: &[u8]) -> Result<Gated, Refusal> {
    let token = container(bytes)?;
    let is_sealed = seal(&token.proof)?;
    let mut symbols = Symbols::default();
    let authority_block = payload(&token.authority.block)?;
    let table = symbols.of_first_party(&authority_block)?;
    let (authority, counts) = authority(&authority_block, &table)?;
    let checks = checks(&authority_block, &table)?;
    let mut cost = cost(&checks, &counts);
    let mut blocks = vec![GatedBlock {
        id: RevocationId(Digest::of(&token.authority.signature)),
        signer: None,
        holder: authority.holder,
        agent: None,
        calls: authority.calls,
        checks,
    }];
    if !blocks.iter().flat_map(|block| &block.checks).any(is_expiry) {
        return malformed("the authority block has no expiry");
    }
    for signed in &token.blocks {
        let block = later_block(authority.kind, signed, &mut symbols)?;
        let mut seen = counts.clone();
        for stated in ["holder", "calls"] {
            *seen.entry(stated.into()).or_default() += 1;
        }
        cost = cost.saturating_add(self::cost(&block.checks, &seen));
        blocks.push(block);
    }
    let checks = blocks.iter().flat_map(|block| &block.checks);
    if checks.map(Check::text_bytes).sum::<usize>() > TOKEN_TEXT_MAX {
        return malformed(format!(
            "checks that spell out to more than {TOKEN_TEXT_MAX} bytes"
        ));
    }
    if cost > TOKEN_COST_MAX {
        return Err(Refusal::TokenTooCostly(cost, TOKEN_COST_MAX));
    }
    Ok(Gated {
        is_sealed,
        authority,
        blocks,
    })
}

fn is_expiry(check: &Check) -> bool {
    matches!(check.standard(), Some(super::check::Standard::Before(_)))
}

fn cost(checks: &[Check], counts: &Counts) -> u64 {
    let each = checks.iter().map(|check| check.cost(counts));
    each.fold(0, u64::saturating_add)
}

// ------------------------------------------------------------------------------------------------
// The container.

fn container(bytes: &[u8]) -> Result<schema::Biscuit, Refusal> {
    if bytes.len() > TOKEN_BYTES_MAX {
        return malformed(format!("more than {TOKEN_BYTES_MAX} bytes"));
    }
    let Ok(token) = schema::Biscuit::decode(bytes) else {
        return malformed("not a Biscuit");
    };
    if token.encode_to_vec() != bytes {
        return malformed("its bytes are not the one encoding of what they say");
    }
    if token.root_key_id.is_some() {
        return malformed("a root key id, which nothing signs");
    }
    if token.blocks.len() >= TOKEN_BLOCKS_MAX {
        return malformed(format!("more than {TOKEN_BLOCKS_MAX} blocks"));
    }
    if token.authority.external_signature.is_some() {
        return malformed("an authority block signed by a third party");
    }
    for block in std::iter::once(&token.authority).chain(&token.blocks) {
        key_bytes(&block.next_key)?;
        signature_bytes(&block.signature)?;
        if !matches!(block.version, None | Some(1)) {
            return malformed("a block signature of no known version");
        }
    }
    Ok(token)
}

fn seal(proof: &schema::Proof) -> Result<bool, Refusal> {
    use schema::proof::Content;
    match &proof.content {
        Some(Content::FinalSignature(signature)) => signature_bytes(signature).map(|()| true),
        Some(Content::NextSecret(secret)) if secret.len() == 32 => Ok(false),
        _ => malformed("no proof that it ends here"),
    }
}

fn key_bytes(key: &schema::PublicKey) -> Result<[u8; 32], Refusal> {
    match (key.algorithm, <[u8; 32]>::try_from(key.key.as_slice())) {
        (0, Ok(bytes)) => Ok(bytes),
        _ => malformed("a key that is not Ed25519"),
    }
}

fn signature_bytes(signature: &[u8]) -> Result<(), Refusal> {
    match signature.len() {
        64 => Ok(()),
        _ => malformed("a signature that is not Ed25519"),
    }
}

// ------------------------------------------------------------------------------------------------
// Blocks.

/// A block's payload: facts and checks, and nothing else that a block could carry.
fn payload(bytes: &[u8]) -> Result<schema::Block, Refusal> {
    let Ok(block) = schema::Block::decode(bytes) else {
        return malformed("a block that does not decode");
    };
    if block.encode_to_vec() != bytes {
        return malformed("a block's bytes are not the one encoding of what they say");
    }
    if !block.rules.is_empty() {
        return malformed("a block with rules");
    }
    if !block.scope.is_empty() || !block.public_keys.is_empty() {
        return malformed("a block with scopes");
    }
    if block.context.is_some() {
        return malformed("a block with a context");
    }
    // The engine's own reading, so that what its format refuses is refused here and not at the call.
    convert::proto_block_to_token_block(&block, None)
        .map_err(|e| Refusal::TokenMalformed(format!("a block of another version: {e}")))?;
    Ok(block)
}

/// A block after the authority block: checks, and for a third party its delegation.
fn later_block(
    kind: TokenKind,
    signed: &schema::SignedBlock,
    symbols: &mut Symbols,
) -> Result<GatedBlock, Refusal> {
    let block = payload(&signed.block)?;
    let Some(external) = &signed.external_signature else {
        if !block.facts.is_empty() {
            return malformed("a later block with facts that nobody signed for");
        }
        let table = symbols.of_first_party(&block)?;
        return Ok(GatedBlock {
            id: RevocationId(Digest::of(&signed.signature)),
            signer: None,
            holder: None,
            agent: None,
            calls: None,
            checks: checks(&block, &table)?,
        });
    };
    signature_bytes(&external.signature)?;
    if signed.version != Some(1) || block.version.unwrap_or_default() < 5 {
        return malformed("a third party's block in an older format");
    }
    let signer = PublicKey::from_bytes(&key_bytes(&external.public_key)?);
    let signer = signer.map_err(|e| Refusal::TokenMalformed(e.to_string()))?;
    let table = symbols.of_third_party(&block)?;
    let mut stated = Statements::read(&block, &table)?;
    let delegation = GatedBlock {
        id: RevocationId(Digest::of(&external.signature)),
        signer: Some(signer),
        holder: Some(stated.key("holder")?),
        agent: match kind {
            TokenKind::Peer => stated.optional("agent", Statements::parsed)?,
            _ => None,
        },
        // A peer's broker could state a new one with every call, each to be kept for ever by the owner.
        calls: match kind {
            TokenKind::Peer => None,
            _ => stated.optional("calls", Statements::count)?,
        },
        checks: checks(&block, &table)?,
    };
    stated.nothing_else("a delegation")?;
    Ok(delegation)
}

fn checks(block: &schema::Block, symbols: &SymbolTable) -> Result<Vec<Check>, Refusal> {
    let read = |check| Check::decode(check, symbols).map_err(|e| Refusal::TokenMalformed(e.0));
    block.checks.iter().map(read).collect()
}

/// The symbol tables of a token. First-party blocks share one that grows from block to block; a
/// third party's block has only its own, so that its signature covers what its bytes mean.
#[derive(Default)]
struct Symbols {
    shared: SymbolTable,
    strings: usize,
}

impl Symbols {
    fn of_first_party(&mut self, block: &schema::Block) -> Result<SymbolTable, Refusal> {
        let own = self.own(block)?;
        if self.shared.extend(&own).is_err() {
            return malformed("a symbol that an earlier block has");
        }
        Ok(self.shared.clone())
    }

    fn of_third_party(&mut self, block: &schema::Block) -> Result<SymbolTable, Refusal> {
        self.own(block)
    }

    fn own(&mut self, block: &schema::Block) -> Result<SymbolTable, Refusal> {
        let Ok(table) = SymbolTable::from(block.symbols.clone()) else {
            return malformed("a symbol that every table has");
        };
        let distinct: std::collections::BTreeSet<_> = block.symbols.iter().collect();
        if distinct.len() != block.symbols.len() {
            return malformed("a symbol twice in a block");
        }
        if block
            .symbols
            .iter()
            .any(|symbol| symbol.len() > ARGUMENT_STRING_MAX)
        {
            return malformed(format!("a string of more than {ARGUMENT_STRING_MAX} bytes"));
        }
        self.strings += block.symbols.len();
        if self.strings > TOKEN_SYMBOLS_MAX {
            return malformed(format!("more than {TOKEN_SYMBOLS_MAX} strings"));
        }
        Ok(table)
    }
}

// ------------------------------------------------------------------------------------------------
// What a block states.

/// The facts of one block, taken out one by one: what is left over is refused.
struct Statements(Vec<(String, Value)>);

impl Statements {
    fn read(block: &schema::Block, symbols: &SymbolTable) -> Result<Self, Refusal> {
        let read = |fact: &schema::Fact| {
            let predicate = &fact.predicate;
            let (Some(name), [term]) = (symbols.get_symbol(predicate.name), &predicate.terms[..])
            else {
                return malformed("a fact that does not state one thing");
            };
            let value = Value::decode(term, symbols);
            let value = value.map_err(|e| Refusal::TokenMalformed(e.0))?;
            Ok((name.to_owned(), value))
        };
        block
            .facts
            .iter()
            .map(read)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::new();
        for (name, _) in &self.0 {
            *counts.entry(name.clone()).or_default() += 1;
        }
        counts
    }

    /// All that is stated under `name`; stating the same twice is refused.
    fn all<T>(&mut self, name: &str, read: fn(&Value) -> Option<T>) -> Result<Vec<T>, Refusal> {
        let (mine, rest): (Vec<_>, _) = self.0.drain(..).partition(|(stated, _)| stated == name);
        self.0 = rest;
        for (index, (_, value)) in mine.iter().enumerate() {
            if mine[..index].iter().any(|(_, earlier)| earlier == value) {
                return malformed(format!("{name} is stated twice alike"));
            }
        }
        let values = mine
            .iter()
            .map(|(_, value)| read(value))
            .collect::<Option<_>>();
        values.ok_or_else(|| Refusal::TokenMalformed(format!("{name} is not what it should be")))
    }

    fn optional<T>(
        &mut self,
        name: &str,
        read: fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let mut values = self.all(name, read)?;
        match values.len() {
            0 | 1 => Ok(values.pop()),
            _ => malformed(format!("{name} is stated more than once")),
        }
    }

    fn one<T>(&mut self, name: &str, read: fn(&Value) -> Option<T>) -> Result<T, Refusal> {
        self.optional(name, read)?
            .ok_or_else(|| Refusal::TokenMalformed(format!("{name} is missing")))
    }

    fn some<T>(&mut self, name: &str, read: fn(&Value) -> Option<T>) -> Result<Vec<T>, Refusal> {
        let values = self.all(name, read)?;
        match values.len() {
            0 => malformed(format!("{name} is missing")),
            1..=CAPABILITIES_MAX => Ok(values),
            _ => malformed(format!("more than {CAPABILITIES_MAX} of {name}")),
        }
    }

    fn key(&mut self, name: &str) -> Result<PublicKey, Refusal> {
        self.one(name, |value| match value {
            Value::Bytes(bytes) => {
                let bytes = <[u8; 32]>::try_from(bytes.as_slice()).ok()?;
                PublicKey::from_bytes(&bytes).ok()
            }
            _ => None,
        })
    }

    fn nothing_else(&self, of: &str) -> Result<(), Refusal> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => malformed(format!("{of} does not state {name:?}")),
        }
    }

    fn text(value: &Value) -> Option<String> {
        match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    fn parsed<T: std::str::FromStr>(value: &Value) -> Option<T> {
        Self::text(value)?.parse().ok()
    }

    fn count(value: &Value) -> Option<u32> {
        match value {
            Value::Integer(count) => u32::try_from(*count).ok().filter(|count| *count > 0),
            _ => None,
        }
    }

    fn date(value: &Value) -> Option<Timestamp> {
        match value {
            Value::Date(seconds) if *seconds <= DATE_MAX => {
                Some(Timestamp::from_ms(seconds * 1_000))
            }
            _ => None,
        }
    }
}

/// Reads the authority block strictly: exactly the statements of its kind.
fn authority(block: &schema::Block, symbols: &SymbolTable) -> Result<(Authority, Counts), Refusal> {
    let mut stated = Statements::read(block, symbols)?;
    let counts = stated.counts();
    let kind = stated.one("kind", Statements::parsed::<TokenKind>)?;
    let mut authority = Authority {
        kind,
        org: stated.one("org", Statements::parsed)?,
        issued: stated.one("issued", Statements::date)?,
        agent: None,
        holder: None,
        capabilities: Vec::new(),
        sandbox: None,
        calls: None,
        audience: None,
        enrolment: None,
        depth: 0,
    };
    match kind {
        TokenKind::Grant => {
            authority.agent = Some(stated.one("agent", Statements::parsed)?);
            authority.holder = Some(stated.key("holder")?);
            authority.capabilities = stated.some("capability", Statements::parsed)?;
            authority.sandbox = stated.optional("sandbox", Statements::text)?;
            authority.calls = stated.optional("calls", Statements::count)?;
        }
        TokenKind::Peer => {
            authority.agent = Some(stated.one("agent", Statements::parsed)?);
            authority.holder = Some(stated.key("holder")?);
            authority.capabilities = stated.some("capability", Statements::parsed)?;
            authority.depth = stated.optional("depth", Statements::count)?.unwrap_or(0);
        }
        TokenKind::Mcp => {
            authority.agent = Some(stated.one("agent", Statements::parsed)?);
            authority.audience = Some(stated.one("aud", Statements::text)?);
            authority.capabilities = stated.some("capability", Statements::parsed)?;
        }
        TokenKind::Enrol => {
            authority.enrolment = Some(Enrolment {
                name: stated.one("name", Statements::parsed::<NamePattern>)?,
                ceiling: stated.some("ceiling", Statements::parsed)?,
                prefixes: stated.all("prefix", Statements::parsed)?,
                uses: stated.one("uses", Statements::count)?,
            });
        }
    }
    stated.nothing_else(kind.as_str())?;
    authority.check_names()?;
    Ok((authority, counts))
}

impl Authority {
    /// Who it may name, and what it may never grant.
    fn check_names(&self) -> Result<(), Refusal> {
        match (self.kind, &self.agent) {
            (TokenKind::Grant | TokenKind::Mcp, Some(Speaker::Agent(agent)))
                if *agent.org() == self.org => {}
            (TokenKind::Peer, Some(Speaker::Broker(org))) if *org != self.org => {}
            (TokenKind::Enrol, None) => {}
            _ => return malformed("it names an agent that this kind of token is not for"),
        }
        if !matches!(self.sandbox.as_deref(), None | Some("wasm" | "process")) {
            return malformed("a sandbox that is neither wasm nor process");
        }
        let prefixes = self
            .enrolment
            .iter()
            .flat_map(|enrolment| &enrolment.prefixes);
        if prefixes.into_iter().any(Pattern::is_reserved) {
            return malformed("no tool lies under a reserved segment");
        }
        let reach = match (&self.enrolment, self.kind) {
            (Some(enrolment), _) => &enrolment.ceiling,
            (None, TokenKind::Peer) => &self.capabilities,
            (None, _) => return Ok(()),
        };
        for inner in ["admin", "broker", "enrol"] {
            let is_under = |p: &Pattern| p.as_str().split('.').next() == Some(inner);
            if reach.iter().any(is_under) {
                return malformed(format!("{inner} is never granted by this kind of token"));
            }
        }
        Ok(())
    }
}
