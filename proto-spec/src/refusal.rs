//! Why something was refused: in full for the log ([`Refusal`]), as a code for the sender ([`Code`]).
//!
//! The codes are a closed list; SPEC.md, *Refusals*, is its prose. A stranger learns no more from a
//! code than that it is a stranger.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::identity::{AgentId, Audience, BadName, Org};
use crate::signature::BadKey;

/// What the sender is told: one of a closed list, each with one HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(
    missing_docs,
    reason = "`Code::meaning` is the documentation, and SPEC.md prints it"
)]
pub enum Code {
    Malformed,
    TooLarge,
    UnsupportedVersion,
    UnknownType,
    WrongAudience,
    NotAuthentic,
    Stale,
    Replayed,
    InvalidBody,
    BadKey,
    SessionRequired,
    Denied,
    OfferDenied,
    NoSuchCall,
    TokenMalformed,
    TokenTooCostly,
    TokenUnsealed,
    TokenInvalid,
    TokenExpired,
    TokenRevoked,
    NotHolder,
    ArgsUncheckable,
    BudgetSpent,
    TokenUndecided,
    Busy,
    Unavailable,
    Deadline,
    Cancelled,
    OutcomeUnknown,
    RevocationsStale,
    NotFound,
    Conflict,
    Clock,
    StorageFull,
    Internal,
}

impl Code {
    /// Every code, in the order of SPEC.md.
    pub const ALL: [Self; 35] = [
        Self::Malformed,
        Self::TooLarge,
        Self::UnsupportedVersion,
        Self::UnknownType,
        Self::WrongAudience,
        Self::NotAuthentic,
        Self::Stale,
        Self::Replayed,
        Self::InvalidBody,
        Self::BadKey,
        Self::SessionRequired,
        Self::Denied,
        Self::OfferDenied,
        Self::NoSuchCall,
        Self::TokenMalformed,
        Self::TokenTooCostly,
        Self::TokenUnsealed,
        Self::TokenInvalid,
        Self::TokenExpired,
        Self::TokenRevoked,
        Self::NotHolder,
        Self::ArgsUncheckable,
        Self::BudgetSpent,
        Self::TokenUndecided,
        Self::Busy,
        Self::Unavailable,
        Self::Deadline,
        Self::Cancelled,
        Self::OutcomeUnknown,
        Self::RevocationsStale,
        Self::NotFound,
        Self::Conflict,
        Self::Clock,
        Self::StorageFull,
        Self::Internal,
    ];

    /// Its name on the wire, its HTTP status, whether the same act signed anew may succeed, and what it means.
    const fn row(self) -> (&'static str, u16, bool, &'static str) {
        match self {
            Self::Malformed => (
                "MALFORMED",
                400,
                false,
                "not an envelope: not strict JSON, or a header member is wrong",
            ),
            Self::TooLarge => ("TOO_LARGE", 413, false, "more bytes than the broker takes"),
            Self::UnsupportedVersion => (
                "UNSUPPORTED_VERSION",
                400,
                false,
                "a protocol version that the broker does not speak",
            ),
            Self::UnknownType => (
                "UNKNOWN_TYPE",
                400,
                false,
                "a message type that is not in the table, or that only brokers send",
            ),
            Self::WrongAudience => (
                "WRONG_AUDIENCE",
                421,
                false,
                "meant for another broker, or for nobody",
            ),
            Self::NotAuthentic => (
                "NOT_AUTHENTIC",
                401,
                false,
                "unknown agent, wrong key or wrong signature",
            ),
            Self::Stale => (
                "STALE",
                401,
                true,
                "`ts` is outside the window: sign anew, and look at the clock",
            ),
            Self::Replayed => ("REPLAYED", 409, false, "this key has used this nonce"),
            Self::InvalidBody => ("INVALID_BODY", 422, false, "the body does not fit its type"),
            Self::BadKey => (
                "BAD_KEY",
                400,
                false,
                "a public key that is not canonical, or of small order",
            ),
            Self::SessionRequired => (
                "SESSION_REQUIRED",
                426,
                false,
                "this type needs an attached WebSocket session",
            ),
            Self::Denied => (
                "DENIED",
                403,
                false,
                "not permitted, or no such recipient: the two look the same",
            ),
            Self::OfferDenied => (
                "OFFER_DENIED",
                403,
                false,
                "a tool outside the prefixes of the agent's approval",
            ),
            Self::NoSuchCall => (
                "NO_SUCH_CALL",
                404,
                false,
                "no call in flight that this session may answer, feed or cancel",
            ),
            Self::TokenMalformed => (
                "TOKEN_MALFORMED",
                403,
                false,
                "the token gate refuses its form",
            ),
            Self::TokenTooCostly => (
                "TOKEN_TOO_COSTLY",
                403,
                false,
                "the token gate refuses what its checks could cost",
            ),
            Self::TokenUnsealed => (
                "TOKEN_UNSEALED",
                403,
                false,
                "what is presented must be sealed",
            ),
            Self::TokenInvalid => (
                "TOKEN_INVALID",
                403,
                false,
                "not signed by this organisation, or a block's signature is wrong",
            ),
            Self::TokenExpired => (
                "TOKEN_EXPIRED",
                403,
                false,
                "past its expiry, or not valid yet",
            ),
            Self::TokenRevoked => (
                "TOKEN_REVOKED",
                403,
                false,
                "a block of it, or a key in its chain, is revoked",
            ),
            Self::NotHolder => (
                "NOT_HOLDER",
                403,
                false,
                "the sender is not the token's current holder, or the chain of holders is broken",
            ),
            Self::ArgsUncheckable => (
                "ARGS_UNCHECKABLE",
                403,
                false,
                "the token constrains arguments, and these cannot be checked",
            ),
            Self::BudgetSpent => (
                "BUDGET_SPENT",
                403,
                false,
                "a budget of calls, of the grant or of a block of the token, is used up",
            ),
            Self::TokenUndecided => (
                "TOKEN_UNDECIDED",
                503,
                true,
                "the token engine ran out of its time: try again",
            ),
            Self::Busy => (
                "BUSY",
                503,
                true,
                "a bounded queue, quota or window is full",
            ),
            Self::Unavailable => (
                "UNAVAILABLE",
                503,
                true,
                "permitted, but nobody who serves it is attached",
            ),
            Self::Deadline => (
                "DEADLINE",
                504,
                true,
                "no answer in time; the provider was told to stop",
            ),
            Self::Cancelled => ("CANCELLED", 409, false, "the caller cancelled"),
            Self::OutcomeUnknown => (
                "OUTCOME_UNKNOWN",
                502,
                false,
                "the provider, or its result, was lost in mid-call: it may or may not have acted",
            ),
            Self::RevocationsStale => (
                "REVOCATIONS_STALE",
                503,
                true,
                "a peer has not said for too long which of its keys are dead",
            ),
            Self::NotFound => (
                "NOT_FOUND",
                404,
                false,
                "no such thing on record; only admins are told",
            ),
            Self::Conflict => ("CONFLICT", 409, false, "what is on record contradicts this"),
            Self::Clock => (
                "CLOCK",
                503,
                true,
                "the broker does not trust its own clock",
            ),
            Self::StorageFull => (
                "STORAGE_FULL",
                507,
                true,
                "the change could not be made durable, and was not made",
            ),
            Self::Internal => ("INTERNAL", 500, true, "the broker's own fault"),
        }
    }

    /// As it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status of a POST that gets this answer.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        self.row().1
    }

    /// Whether the same act, signed anew, may succeed without anybody changing anything.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        self.row().2
    }

    /// One sentence for whoever meets it.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        self.row().3
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Code {
    type Err = UnknownCode;
    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        Self::ALL
            .into_iter()
            .find(|code| code.as_str() == text)
            .ok_or(UnknownCode)
    }
}

/// Not one of [`Code::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a code of this protocol")]
pub struct UnknownCode;

/// Why an envelope, or what it asks, was refused. The sender's fault, or the broker's stated limit.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant is its documentation"
)]
pub enum Refusal {
    // What does not parse.
    #[error("{0} bytes, more than {1}")]
    TooLarge(usize, usize),
    #[error("not strict JSON: {0}")]
    NotStrictJson(String),
    #[error("header member {0:?} is not one of this protocol's")]
    UnknownMember(String),
    #[error("header member {0:?} stands twice")]
    DuplicateMember(&'static str),
    #[error("header member {0:?} is missing")]
    MissingMember(&'static str),
    #[error("header member {0:?} is wrong: {1}")]
    BadMember(&'static str, &'static str),
    #[error(
        "`sig` is not exactly ,\"sig\":\" with 88 characters of standard base64 and \" after another member"
    )]
    BadSigMember,
    #[error("protocol version {0}; this is 1")]
    UnsupportedVersion(u64),
    #[error("older agents are not spoken with here: `[compat] fep_go` is off")]
    OlderAgents,
    #[error("type {0:?} is not a message an agent may send")]
    UnknownType(String),
    #[error("{0}")]
    BadName(#[from] BadName),

    // Who it is from and for.
    #[error("unknown agent {0}")]
    UnknownAgent(AgentId),
    #[error("signature does not match the key on record")]
    BadSignature,
    #[error("signed by {0}, but this session is another agent's")]
    NotThisSession(AgentId),
    #[error("meant for {}", .0.as_ref().map_or("nobody".into(), ToString::to_string))]
    WrongAudience(Option<Audience>),
    #[error("{0}")]
    BadKey(#[from] BadKey),

    // Freshness.
    #[error("clocks differ by {} s, more than {} s", .0.as_secs(), .1.as_secs())]
    Stale(Duration, Duration),
    #[error("signed before the point up to which nonces are forgotten")]
    BelowFloor,
    #[error("signed further ahead of the broker's clock than is durable yet")]
    Ahead,
    #[error("nonce was used before")]
    Replayed,

    // What it says and asks.
    #[error("the body does not fit: {0}")]
    InvalidBody(String),
    #[error("{0} needs an attached session")]
    SessionRequired(&'static str),
    #[error("{0} is not permitted")]
    Denied(String),
    #[error("{0}")]
    RequestDenied(String),
    #[error("tool {0:?} may not be offered: {1}")]
    OfferDenied(String, &'static str),
    #[error("no such call for this session")]
    NoSuchCall,

    // Tokens.
    #[error("token refused by its form: {0}")]
    TokenMalformed(String),
    #[error("token could cost {0} units, more than {1}")]
    TokenTooCostly(u64, u64),
    #[error("token is not sealed")]
    TokenUnsealed,
    #[error("token is not this organisation's: {0}")]
    TokenInvalid(String),
    #[error("token has expired, or is not valid yet")]
    TokenExpired,
    #[error("token is revoked: {0}")]
    TokenRevoked(String),
    #[error("sender is not the token's holder: {0}")]
    NotHolder(&'static str),
    #[error("the token constrains arguments, and these cannot be checked: {0}")]
    ArgsUncheckable(&'static str),
    #[error("the budget of {0} calls is used up")]
    BudgetSpent(u32),
    #[error("the token engine did not finish in its time")]
    TokenUndecided,

    // What the broker cannot do now.
    #[error("{0} is full")]
    Busy(&'static str),
    #[error("nobody who serves {0} is attached")]
    Unavailable(String),
    #[error("no answer within {} ms", .0.as_millis())]
    Deadline(Duration),
    #[error("cancelled by the caller")]
    Cancelled,
    #[error("the provider was lost in mid-call, or its result found no room on the way")]
    OutcomeUnknown,
    #[error("{org} has not said for {} ms which of its keys are dead", .age.as_millis())]
    RevocationsStale { org: Org, age: Duration },
    #[error("{0} refused it: {2}")]
    ByPeer(Org, Code, String),
    #[error("no such {0}")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    #[error("the broker's clock departs from the journal or from its start: {0}")]
    Clock(String),
    #[error("the journal cannot be written: {0}")]
    StorageFull(String),
    #[error("internal fault")]
    Internal,
}

impl Refusal {
    /// The one map from why to what the sender is told.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::TooLarge(..) => Code::TooLarge,
            Self::NotStrictJson(_)
            | Self::UnknownMember(_)
            | Self::DuplicateMember(_)
            | Self::MissingMember(_)
            | Self::BadMember(..)
            | Self::BadSigMember
            | Self::BadName(_) => Code::Malformed,
            Self::UnsupportedVersion(_) | Self::OlderAgents => Code::UnsupportedVersion,
            Self::UnknownType(_) => Code::UnknownType,
            Self::UnknownAgent(_) | Self::BadSignature | Self::NotThisSession(_) => {
                Code::NotAuthentic
            }
            Self::WrongAudience(_) => Code::WrongAudience,
            Self::BadKey(_) => Code::BadKey,
            Self::Stale(..) | Self::BelowFloor => Code::Stale,
            Self::Replayed => Code::Replayed,
            Self::InvalidBody(_) => Code::InvalidBody,
            Self::SessionRequired(_) => Code::SessionRequired,
            Self::Denied(_) | Self::RequestDenied(_) => Code::Denied,
            Self::OfferDenied(..) => Code::OfferDenied,
            Self::NoSuchCall => Code::NoSuchCall,
            Self::TokenMalformed(_) => Code::TokenMalformed,
            Self::TokenTooCostly(..) => Code::TokenTooCostly,
            Self::TokenUnsealed => Code::TokenUnsealed,
            Self::TokenInvalid(_) => Code::TokenInvalid,
            Self::TokenExpired => Code::TokenExpired,
            Self::TokenRevoked(_) => Code::TokenRevoked,
            Self::NotHolder(_) => Code::NotHolder,
            Self::ArgsUncheckable(_) => Code::ArgsUncheckable,
            Self::BudgetSpent(_) => Code::BudgetSpent,
            Self::TokenUndecided => Code::TokenUndecided,
            Self::Busy(_) | Self::Ahead => Code::Busy,
            Self::Unavailable(_) => Code::Unavailable,
            Self::Deadline(_) => Code::Deadline,
            Self::Cancelled => Code::Cancelled,
            Self::OutcomeUnknown => Code::OutcomeUnknown,
            Self::RevocationsStale { .. } => Code::RevocationsStale,
            Self::ByPeer(_, code, _) => *code,
            Self::NotFound(_) => Code::NotFound,
            Self::Conflict(_) => Code::Conflict,
            Self::Clock(_) => Code::Clock,
            Self::StorageFull(_) => Code::StorageFull,
            Self::Internal => Code::Internal,
        }
    }

    /// What the sender may read: the reason itself where it is about the sender's own bytes, and
    /// only the code's meaning where the reason would tell a stranger who exists or what is held.
    #[must_use]
    pub fn message(&self) -> String {
        if let Self::RequestDenied(reason) = self {
            // An admin's words to this very key.
            return reason.clone();
        }
        match self.code() {
            Code::NotAuthentic | Code::Denied | Code::Internal => self.code().meaning().into(),
            _ => self.to_string(),
        }
    }
}

/// The body of an `error` envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// From the closed list.
    pub code: String,
    /// For people.
    pub message: String,
    /// See [`Code::is_retryable`].
    pub retryable: bool,
}

impl From<&Refusal> for ErrorBody {
    fn from(refusal: &Refusal) -> Self {
        let code = refusal.code();
        Self {
            code: code.as_str().into(),
            message: refusal.message(),
            retryable: code.is_retryable(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each variant, in the order of the enum. Every variant names the one after it, so that
    /// whoever adds one has to place it here too.
    fn after(refusal: &Refusal) -> Option<Refusal> {
        let x = || String::from("x");
        Some(match refusal {
            Refusal::TooLarge(..) => Refusal::NotStrictJson(x()),
            Refusal::NotStrictJson(_) => Refusal::UnknownMember(x()),
            Refusal::UnknownMember(_) => Refusal::DuplicateMember("x"),
            Refusal::DuplicateMember(_) => Refusal::MissingMember("x"),
            Refusal::MissingMember(_) => Refusal::BadMember("x", "y"),
            Refusal::BadMember(..) => Refusal::BadSigMember,
            Refusal::BadSigMember => Refusal::UnsupportedVersion(2),
            Refusal::UnsupportedVersion(_) => Refusal::OlderAgents,
            Refusal::OlderAgents => Refusal::UnknownType(x()),
            Refusal::UnknownType(_) => Refusal::BadName(BadName::Name),
            Refusal::BadName(_) => Refusal::UnknownAgent("bob@acme".parse().unwrap()),
            Refusal::UnknownAgent(_) => Refusal::BadSignature,
            Refusal::BadSignature => Refusal::NotThisSession("bob@acme".parse().unwrap()),
            Refusal::NotThisSession(_) => Refusal::WrongAudience(None),
            Refusal::WrongAudience(_) => Refusal::BadKey(BadKey::SmallOrder),
            Refusal::BadKey(_) => Refusal::Stale(Duration::from_secs(2), Duration::from_secs(1)),
            Refusal::Stale(..) => Refusal::BelowFloor,
            Refusal::BelowFloor => Refusal::Ahead,
            Refusal::Ahead => Refusal::Replayed,
            Refusal::Replayed => Refusal::InvalidBody(x()),
            Refusal::InvalidBody(_) => Refusal::SessionRequired("x"),
            Refusal::SessionRequired(_) => Refusal::Denied(x()),
            Refusal::Denied(_) => Refusal::RequestDenied(x()),
            Refusal::RequestDenied(_) => Refusal::OfferDenied(x(), "y"),
            Refusal::OfferDenied(..) => Refusal::NoSuchCall,
            Refusal::NoSuchCall => Refusal::TokenMalformed(x()),
            Refusal::TokenMalformed(_) => Refusal::TokenTooCostly(2, 1),
            Refusal::TokenTooCostly(..) => Refusal::TokenUnsealed,
            Refusal::TokenUnsealed => Refusal::TokenInvalid(x()),
            Refusal::TokenInvalid(_) => Refusal::TokenExpired,
            Refusal::TokenExpired => Refusal::TokenRevoked(x()),
            Refusal::TokenRevoked(_) => Refusal::NotHolder("x"),
            Refusal::NotHolder(_) => Refusal::ArgsUncheckable("x"),
            Refusal::ArgsUncheckable(_) => Refusal::BudgetSpent(1),
            Refusal::BudgetSpent(_) => Refusal::TokenUndecided,
            Refusal::TokenUndecided => Refusal::Busy("x"),
            Refusal::Busy(_) => Refusal::Unavailable(x()),
            Refusal::Unavailable(_) => Refusal::Deadline(Duration::from_secs(1)),
            Refusal::Deadline(_) => Refusal::Cancelled,
            Refusal::Cancelled => Refusal::OutcomeUnknown,
            Refusal::OutcomeUnknown => Refusal::RevocationsStale {
                org: "globex".parse().unwrap(),
                age: Duration::from_secs(11),
            },
            Refusal::RevocationsStale { .. } => {
                Refusal::ByPeer("globex".parse().unwrap(), Code::Busy, x())
            }
            Refusal::ByPeer(..) => Refusal::NotFound(x()),
            Refusal::NotFound(_) => Refusal::Conflict(x()),
            Refusal::Conflict(_) => Refusal::Clock(x()),
            Refusal::Clock(_) => Refusal::StorageFull(x()),
            Refusal::StorageFull(_) => Refusal::Internal,
            Refusal::Internal => return None,
        })
    }

    /// The name of a refusal's variant.
    fn variant(refusal: &Refusal) -> String {
        let shown = format!("{refusal:?}");
        shown
            .chars()
            .take_while(char::is_ascii_alphabetic)
            .collect()
    }

    const CODES: &str = "\
MALFORMED           400 retry=false
TOO_LARGE           413 retry=false
UNSUPPORTED_VERSION 400 retry=false
UNKNOWN_TYPE        400 retry=false
WRONG_AUDIENCE      421 retry=false
NOT_AUTHENTIC       401 retry=false
STALE               401 retry=true
REPLAYED            409 retry=false
INVALID_BODY        422 retry=false
BAD_KEY             400 retry=false
SESSION_REQUIRED    426 retry=false
DENIED              403 retry=false
OFFER_DENIED        403 retry=false
NO_SUCH_CALL        404 retry=false
TOKEN_MALFORMED     403 retry=false
TOKEN_TOO_COSTLY    403 retry=false
TOKEN_UNSEALED      403 retry=false
TOKEN_INVALID       403 retry=false
TOKEN_EXPIRED       403 retry=false
TOKEN_REVOKED       403 retry=false
NOT_HOLDER          403 retry=false
ARGS_UNCHECKABLE    403 retry=false
BUDGET_SPENT        403 retry=false
TOKEN_UNDECIDED     503 retry=true
BUSY                503 retry=true
UNAVAILABLE         503 retry=true
DEADLINE            504 retry=true
CANCELLED           409 retry=false
OUTCOME_UNKNOWN     502 retry=false
REVOCATIONS_STALE   503 retry=true
NOT_FOUND           404 retry=false
CONFLICT            409 retry=false
CLOCK               503 retry=true
STORAGE_FULL        507 retry=true
INTERNAL            500 retry=true
";

    const REFUSALS: &str = "\
TooLarge            TOO_LARGE
NotStrictJson       MALFORMED
UnknownMember       MALFORMED
DuplicateMember     MALFORMED
MissingMember       MALFORMED
BadMember           MALFORMED
BadSigMember        MALFORMED
UnsupportedVersion  UNSUPPORTED_VERSION
OlderAgents         UNSUPPORTED_VERSION
UnknownType         UNKNOWN_TYPE
BadName             MALFORMED
UnknownAgent        NOT_AUTHENTIC
BadSignature        NOT_AUTHENTIC
NotThisSession      NOT_AUTHENTIC
WrongAudience       WRONG_AUDIENCE
BadKey              BAD_KEY
Stale               STALE
BelowFloor          STALE
Ahead               BUSY
Replayed            REPLAYED
InvalidBody         INVALID_BODY
SessionRequired     SESSION_REQUIRED
Denied              DENIED
RequestDenied       DENIED
OfferDenied         OFFER_DENIED
NoSuchCall          NO_SUCH_CALL
TokenMalformed      TOKEN_MALFORMED
TokenTooCostly      TOKEN_TOO_COSTLY
TokenUnsealed       TOKEN_UNSEALED
TokenInvalid        TOKEN_INVALID
TokenExpired        TOKEN_EXPIRED
TokenRevoked        TOKEN_REVOKED
NotHolder           NOT_HOLDER
ArgsUncheckable     ARGS_UNCHECKABLE
BudgetSpent         BUDGET_SPENT
TokenUndecided      TOKEN_UNDECIDED
Busy                BUSY
Unavailable         UNAVAILABLE
Deadline            DEADLINE
Cancelled           CANCELLED
OutcomeUnknown      OUTCOME_UNKNOWN
RevocationsStale    REVOCATIONS_STALE
ByPeer              BUSY
NotFound            NOT_FOUND
Conflict            CONFLICT
Clock               CLOCK
StorageFull         STORAGE_FULL
Internal            INTERNAL
";

    #[test]
    fn wire_codes_never_change() {
        let codes: String = Code::ALL
            .iter()
            .map(|code| {
                let (status, retry) = (code.http_status(), code.is_retryable());
                format!("{:<20}{status} retry={retry}\n", code.as_str())
            })
            .collect();
        assert_eq!(codes, CODES, "the codes are:\n{codes}");
        let first = Refusal::TooLarge(2, 1);
        let refusals: String = std::iter::successors(Some(first), after)
            .map(|refusal| format!("{:<20}{}\n", variant(&refusal), refusal.code()))
            .collect();
        assert_eq!(refusals, REFUSALS, "the refusals are:\n{refusals}");
    }

    #[test]
    fn a_code_reads_back_and_travels_under_one_name() {
        for code in Code::ALL {
            assert_eq!(code.as_str().parse(), Ok(code));
            let json = serde_json::to_string(&code).unwrap();
            assert_eq!(json, format!("\"{code}\""));
        }
        assert_eq!("malformed".parse::<Code>(), Err(UnknownCode));
    }

    #[test]
    fn the_specification_prints_exactly_these_codes() {
        let rows: String = Code::ALL
            .iter()
            .map(|code| {
                let retryable = if code.is_retryable() { "yes" } else { "no" };
                let (status, meaning) = (code.http_status(), code.meaning());
                format!("| `{code}` | {status} | {retryable} | {meaning} |\n")
            })
            .collect();
        let table = format!("| code | HTTP | retryable | meaning |\n|---|---|---|---|\n{rows}");
        let spec = include_str!("../SPEC.md");
        assert!(
            spec.contains(&format!("\n\n{table}\n")),
            "SPEC.md, *Refusals*, should print:\n{table}"
        );
    }

    #[test]
    fn a_stranger_is_told_the_same_of_a_name_and_of_a_signature() {
        let unknown = Refusal::UnknownAgent("bob@acme".parse().unwrap());
        let session = Refusal::NotThisSession("bob@acme".parse().unwrap());
        let said = ErrorBody::from(&Refusal::BadSignature);
        assert_eq!(ErrorBody::from(&unknown), said);
        assert_eq!(ErrorBody::from(&session), said);
    }
}
