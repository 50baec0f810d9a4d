//! A token as a verifier holds it: admitted by the gate, signed by a root, its chain of holders walked.
//!
//! What changes with time or with the sender is not decided here: whether a block or a key is revoked,
//! and who presents it, is looked up at every use. [`Token::permits`] is told the time.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use biscuit_auth::{Algorithm, Biscuit, UnverifiedBiscuit};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::check::Check;
use super::claims::{Block, Claims};
use super::decision::{Question, token_permits};
use super::gate::{self, Gated};
use super::pattern::Pattern;
use crate::identity::{AgentId, NamePattern, Org, Speaker, serde_as_text};
use crate::limits::TOKEN_BYTES_MAX;
use crate::refusal::Refusal;
use crate::signature::{BadDigest, Digest, PublicKey};

/// What a token is for. Each door takes exactly one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// An agent's capabilities, tied to its key.
    Grant,
    /// Another organisation's capabilities, tied to its broker's key.
    Peer,
    /// Leave to register, for whoever has the file.
    Enrol,
    /// An agent's capabilities at `/mcp`, for whoever has the text.
    Mcp,
}

impl TokenKind {
    /// As the authority block states it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grant => "grant",
            Self::Peer => "peer",
            Self::Enrol => "enrol",
            Self::Mcp => "mcp",
        }
    }
}

/// Not a kind of token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token is a grant, peer, enrol or mcp token")]
pub struct UnknownKind;

impl FromStr for TokenKind {
    type Err = UnknownKind;
    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let all = [Self::Grant, Self::Peer, Self::Enrol, Self::Mcp];
        let found = all.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or(UnknownKind)
    }
}

/// What one block of a token is revoked by: base64url without padding of 32 bytes.
///
/// The SHA-256 of a third-party block's *external* signature, and of any other block's signature. Who
/// passes an unsealed token on can make a block's own signature anew, but not its delegator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RevocationId(pub Digest);

impl fmt::Display for RevocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RevocationId {
    type Err = BadDigest;
    fn from_str(text: &str) -> Result<Self, BadDigest> {
        text.parse().map(Self)
    }
}

serde_as_text!(RevocationId);

/// What an enrolment token lets its bearer register as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// Which names.
    pub name: NamePattern,
    /// The agent gets what it asks for within these.
    pub ceiling: Vec<Pattern>,
    /// Under which prefixes it may offer tools, as `fs.*`; none means under its own name.
    pub prefixes: Vec<Pattern>,
    /// How many registrations.
    pub uses: u32,
}

/// A token of this organisation whose form, signatures and chain of holders are right.
///
/// What it says is read as of any [`Claims`]; here a root stands for it.
///
/// It has no `Display` and its `Debug` shows no bytes: who can read a log must not get a token from it.
#[derive(Clone)]
pub struct Token {
    claims: Claims,
    root: PublicKey,
    /// For the engine. Only kept where there are conditions that a table cannot answer.
    biscuit: Option<Biscuit>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Token").field(&self.claims).finish()
    }
}

/// Only in this direction: what is verified may be read as if it were not.
impl Deref for Token {
    type Target = Claims;
    fn deref(&self) -> &Claims {
        &self.claims
    }
}

impl Token {
    /// Opens a token as it is presented: sealed, and signed by one of `roots`.
    ///
    /// # Errors
    ///
    /// - [`Refusal::TokenMalformed`], [`Refusal::TokenTooCostly`]: the gate refuses it, before anything
    ///   is verified.
    /// - [`Refusal::TokenUnsealed`]: unsealed, whoever sees it could cut its last block off and append
    ///   another.
    /// - [`Refusal::TokenInvalid`]: a signature is wrong, or none of `roots` made the first.
    /// - [`Refusal::NotHolder`]: a delegation was not made by the holder before it.
    pub fn open(bytes: &[u8], roots: &[PublicKey]) -> Result<Self, Refusal> {
        let gated = gate::admit(bytes)?;
        if !gated.is_sealed {
            return Err(Refusal::TokenUnsealed);
        }
        Self::verify(bytes, gated, roots)
    }

    /// Opens a token for its holder, who may hold it unsealed. Never use this for what was presented.
    ///
    /// # Errors
    ///
    /// As [`Token::open`], but for [`Refusal::TokenUnsealed`].
    pub fn open_unsealed(bytes: &[u8], roots: &[PublicKey]) -> Result<Self, Refusal> {
        Self::verify(bytes, gate::admit(bytes)?, roots)
    }

    fn verify(bytes: &[u8], gated: Gated, roots: &[PublicKey]) -> Result<Self, Refusal> {
        let (root, biscuit) = verified(bytes, roots)?;
        let claims = Claims::of(gated)?;
        Ok(Self {
            root,
            biscuit: (!claims.standing.is_all).then_some(biscuit),
            claims,
        })
    }

    /// The root key that it is rooted in.
    #[must_use]
    pub fn root(&self) -> &PublicKey {
        &self.root
    }

    /// Whether `key`, which signed the envelope, may present it there.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotHolder`]: it is another's, a token that no key presents, or a peer's, which counts only
    /// inside that peer's own link.
    pub fn presented_by(&self, key: &PublicKey) -> Result<(), Refusal> {
        match self.holder() {
            _ if self.kind() == TokenKind::Peer => {
                Err(Refusal::NotHolder("a peer's token is not for this door"))
            }
            Some(holder) if holder == key => Ok(()),
            Some(_) => Err(Refusal::NotHolder("another key holds it")),
            None => Err(Refusal::NotHolder(
                "it is tied to no key, and not for this door",
            )),
        }
    }

    /// Of a token that came in a frame of `neighbour`'s link: the agent that it speaks for, whose key is its
    /// [holder](Claims::holder).
    ///
    /// # Errors
    ///
    /// [`Refusal::NotHolder`]: it is not a peer token of that neighbour and its key, or introduces nobody.
    pub fn introduces(&self, neighbour: &Org, key: &PublicKey) -> Result<&AgentId, Refusal> {
        let is_theirs = matches!(self.agent(), Some(Speaker::Broker(org)) if org == neighbour);
        if self.kind() != TokenKind::Peer || !is_theirs || self.holders().first() != Some(key) {
            return Err(Refusal::NotHolder("it is not this peer's"));
        }
        self.introduced()
            .ok_or(Refusal::NotHolder("it introduces no agent"))
    }

    /// Every budget of calls that a call with it draws on, by the block that states it.
    pub fn budgets(&self) -> impl Iterator<Item = (RevocationId, u32)> + '_ {
        let stated = |block: &Block| block.calls().map(|calls| (block.id(), calls));
        self.blocks().iter().filter_map(stated)
    }

    /// Whether it has no conditions but times and lists of capabilities, so that a table answers for it.
    #[must_use]
    pub fn is_standard(&self) -> bool {
        self.biscuit.is_none()
    }

    /// Whether a condition of it asks how far the caller's organisation is trusted.
    #[must_use]
    pub fn names_trust(&self) -> bool {
        !self.is_standard() && self.checks().any(Check::names_trust)
    }

    /// Whether it permits what is asked, now. Revocation and presenter are the caller's to look up.
    ///
    /// # Errors
    ///
    /// - [`Refusal::TokenExpired`]: past its end, or before its beginning.
    /// - [`Refusal::Denied`]: no capability of it covers what is required, or a condition does not hold.
    /// - [`Refusal::ArgsUncheckable`]: it constrains arguments, and these are sealed or beyond the bounds.
    /// - [`Refusal::TokenUndecided`]: the engine did not finish, which says nothing about the token.
    /// - [`Refusal::TokenInvalid`]: the engine does not take it.
    pub fn permits(&self, q: &Question<'_>) -> Result<(), Refusal> {
        self.standing.permits(self.capabilities(), q)?;
        match &self.biscuit {
            None => Ok(()),
            Some(biscuit) => {
                let checks: Vec<&Check> = self.checks().collect();
                token_permits(biscuit, &checks, self.capabilities(), q)
            }
        }
    }

    /// Which keys may revoke the block `id` with everything below it: whoever held the token when the block
    /// was made, and those who held it before. Nothing when the token has no such block.
    #[must_use]
    pub fn holder_of(&self, id: &RevocationId) -> Option<&[PublicKey]> {
        let block = self.blocks().iter().find(|block| block.id() == *id)?;
        self.holders().get(..block.holders_before)
    }
}

/// The engine's token, once one root's signature fits, and that root.
fn verified(bytes: &[u8], roots: &[PublicKey]) -> Result<(PublicKey, Biscuit), Refusal> {
    let invalid = |e: biscuit_auth::error::Token| Refusal::TokenInvalid(e.to_string());
    let token = UnverifiedBiscuit::from(bytes).map_err(invalid)?;
    let mut refusal = Refusal::TokenInvalid("there is no root key".into());
    for root in roots {
        let key = biscuit_auth::PublicKey::from_bytes(root.as_bytes(), Algorithm::Ed25519);
        let verified = key.and_then(|key| token.clone().verify(key));
        match verified {
            Ok(biscuit) => return Ok((*root, biscuit)),
            Err(error) => refusal = Refusal::TokenInvalid(error.to_string()),
        }
    }
    Err(refusal)
}

/// Characters of a token on the wire.
const TEXT_MAX: usize = TOKEN_BYTES_MAX.div_ceil(3) * 4;

/// Reads a token from its text on the wire: base64url without padding.
///
/// # Errors
///
/// [`Refusal::TokenMalformed`]: too long, which is looked at first, or not base64url.
pub fn decode_text(text: &str) -> Result<Vec<u8>, Refusal> {
    if text.len() > TEXT_MAX {
        return Err(Refusal::TokenMalformed(format!(
            "more than {TEXT_MAX} characters"
        )));
    }
    let bytes = URL_SAFE_NO_PAD.decode(text);
    bytes.map_err(|_| Refusal::TokenMalformed("not base64url without padding".into()))
}

/// A token as its text on the wire.
#[must_use]
pub fn encode_text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
