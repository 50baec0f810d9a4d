//! What can go wrong, each with what to do about it.

use std::path::PathBuf;
use std::time::Duration;

use proto_spec::refusal::ErrorBody;
use proto_spec::{AgentId, Code, Refusal};
use serde_json::value::RawValue;

/// What went wrong. The message says what to do next.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is incomplete or contradicts itself; every problem is listed.
    #[error("the configuration cannot be used:\n{}", bullets(.0))]
    Config(Vec<String>),

    /// A key file, passphrase file or context file could not be used.
    #[error("{}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },

    /// No connection to the broker: nothing was sent.
    #[error(
        "no connection to {broker}: {why}. Nothing was sent; check that the broker runs there and that nothing is in between"
    )]
    Unreachable {
        /// Where it was looked for.
        broker: String,
        /// What happened.
        why: String,
    },

    /// The TLS handshake failed: the server is not the one whose CA is configured, or speaks no TLS 1.3.
    #[error(
        "{broker} is not the server that the configured CA vouches for, or speaks no TLS 1.3: {why}. Compare `ca_file` with the broker's own `tls/ca.pem`; nothing was sent"
    )]
    Tls {
        /// Where.
        broker: String,
        /// What rustls said.
        why: String,
    },

    /// The server signs neither with the broker key that is configured nor with one that follows from it.
    #[error(
        "the broker does not sign with the configured `broker_key` ({}), nor with one that follows from it: {why}.{} Nothing it says is believed, so what was sent to it, if anything was, may or may not have acted. If its key was changed on purpose, get the new one from an admin, compare the fingerprints, and configure it as `broker_key`; never take it from the network alone",
        configured,
        claim(configured, shown.as_deref())
    )]
    NotTheBroker {
        /// Which check failed.
        why: Refusal,
        /// The fingerprint of what is configured, or followed from there so far.
        configured: String,
        /// That of the key which the server says it has; worth nothing by itself.
        shown: Option<String>,
    },

    /// The broker refused. A refused envelope has changed nothing.
    #[error("the broker refused with {code}: {message}{}", advice(*code))]
    Refused {
        /// From the protocol's closed list.
        code: Code,
        /// The broker's words.
        message: String,
        /// Whether the same act, signed anew, may succeed without anybody changing anything.
        retryable: bool,
    },

    /// The broker attached us by a clock that is not near ours: one of the two is wrong, or lies.
    #[error(
        "the broker's clock is {} ms from this machine's, and it permits {} ms: set this machine's clock, or tell the broker's operator",
        apart.as_millis(),
        most.as_millis()
    )]
    Clocks {
        /// How far the clocks are apart.
        apart: Duration,
        /// How far they may be.
        most: Duration,
    },

    /// The tool answered with an error of its own.
    #[error("the tool answered {code}: {message}")]
    Tool {
        /// The tool's code.
        code: String,
        /// The tool's words.
        message: String,
        /// More, as the tool likes.
        data: Option<Box<RawValue>>,
    },

    /// The call was sent and its answer is lost: it may or may not have acted.
    #[error(
        "the outcome is unknown: {0}. The call may or may not have acted; look before you repeat it"
    )]
    OutcomeUnknown(String),

    /// No answer in time.
    #[error("no answer within {} ms: give the call a longer `deadline`, or look at the provider", .0.as_millis())]
    Deadline(Duration),

    /// An answer that does not prove itself: it is not believed, so the outcome is unknown.
    #[error(
        "what was said to be the answer of {from} is not proven to be: {why}. It was not believed, and the outcome is unknown; tell the broker's operator"
    )]
    Unproven {
        /// Who was to answer.
        from: String,
        /// Which check failed.
        why: Refusal,
    },

    /// The tool's answer is not of the type that was asked for.
    #[error(
        "the answer is not of the type that was asked for: {0}. Ask for `serde_json::Value` to see it"
    )]
    Answer(String),

    /// So many of this agent's questions wait for their answers that no more are asked.
    #[error("{0} questions of this agent wait for their answers already: wait for some of them")]
    Busy(usize),

    /// What was to be sent cannot be written as JSON, or is not an object where it has to be.
    #[error("this cannot be sent: {0}")]
    Unsendable(String),

    /// The agent serves already: one `serve` at a time.
    #[error("{0} serves already: offer all its tools in one `serve`, or end the first")]
    AlreadyServing(AgentId),

    /// The broker's answer is of a kind that does not answer what was asked.
    #[error(
        "the broker answered {0}, which does not answer what was asked: is it of this version?"
    )]
    Unexpected(String),
}

/// As [`std::fmt::Display`]: this is what `fn main() -> agent_sdk::Result<()>` prints, and people are to
/// read what to do next.
impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// What the SDK's functions give back.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The protocol's code, where there is one: what the broker refused with, and what a lost
    /// connection or a local deadline amounts to.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::OutcomeUnknown(_) | Self::Unproven { .. } => Some(Code::OutcomeUnknown),
            Self::Deadline(_) => Some(Code::Deadline),
            Self::Busy(_) => Some(Code::Busy),
            _ => None,
        }
    }

    /// Whether the same act may succeed later without anybody changing anything. Never true where
    /// the act may have happened already.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Clocks { .. } | Self::Busy(_) => true,
            Self::Refused { retryable, .. } => *retryable,
            _ => false,
        }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, why: impl Into<String>) -> Self {
        Self::File {
            path: path.into(),
            why: why.into(),
        }
    }

    pub(crate) fn refused(body: ErrorBody) -> Self {
        match body.code.parse() {
            Ok(Code::OutcomeUnknown) => Self::OutcomeUnknown(body.message),
            Ok(code) => Self::Refused {
                code,
                message: body.message,
                retryable: body.retryable,
            },
            Err(_) => Self::Unexpected(format!("the unknown code {:?}", body.code)),
        }
    }
}

/// What the server says of its key: another one; or this very one, and then it is another organisation's.
fn claim(configured: &str, shown: Option<&str>) -> String {
    match shown {
        None => String::new(),
        Some(same) if same == configured => {
            " It says that it has this very key: is the organisation in `agent` the broker's?"
                .into()
        }
        Some(other) => format!(" It says that its key is {other}."),
    }
}

fn bullets(problems: &[String]) -> String {
    problems
        .iter()
        .map(|problem| format!("  - {problem}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// What to do about a refusal, for those that a developer meets first.
fn advice(code: Code) -> &'static str {
    match code {
        Code::NotAuthentic => {
            ". Is this key registered under this name? `register` asks, and an admin approves; compare the fingerprints"
        }
        Code::Denied => {
            ". Ask an admin for the capability; `discover` lists what this agent may call"
        }
        Code::OfferDenied => {
            ". An agent offers tools under its own name or the prefixes of its approval: rename the tool, or ask an admin for the prefix"
        }
        Code::Stale => ". Set this machine's clock",
        Code::Unavailable => ". Start the provider",
        Code::Busy => ". Try again a little later",
        Code::TokenExpired | Code::TokenRevoked => ". Ask whoever gave the token for a new one",
        Code::SessionRequired => ". Attach first: use `call_with`, `serve` or `subscribe`",
        Code::WrongAudience => ". Compare the organisation in `agent` with the broker's",
        _ => "",
    }
}
