//! Questions out: a call is signed, sent once, and answered by nobody but the agent that was called.
//!
//! A call is never repeated behind its caller's back: when its connection is lost, its outcome is
//! unknown, and says so. The one exception changes nothing: what the broker itself refused as stale
//! was delivered to nobody, and is signed anew, once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto_spec::admission::{Answer, BrokerSaid};
use proto_spec::limits::{DEADLINE_DEFAULT, DEADLINE_MAX};
use proto_spec::message::{ToolCall, ToolCancel, ToolInput, ToolProgress, ToolResult, Unsigned};
use proto_spec::{AgentId, Audience, Code, Digest, Kind, Refusal, Sealed};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};

use crate::error::{Error, Result};
use crate::incoming::Progress;
use crate::line::Line;
use crate::session::{Sent, Session, refusal_in};
use crate::voice::{Header, Voice};

/// How much longer than the deadline we wait for the broker to say that it has passed.
const GRACE: Duration = Duration::from_secs(5);

/// How a call is to be made.
#[derive(Debug, Clone, Default)]
pub struct CallOptions {
    /// How long to wait for the answer; 60 s when absent, and 24 h at most.
    pub deadline: Option<Duration>,
    /// A sealed token (base64url) to call with, in place of what is granted on record.
    pub token: Option<String>,
    /// Whether the provider is to report progress.
    pub progress: bool,
    /// Of a request to an MCP server: an object, its parameters beside the arguments.
    pub mcp: Option<Box<RawValue>>,
    /// Whose answer to take although its provider did not sign it. Without it a call of an older agent is
    /// refused before anything is done. With it the broker alone vouches for what was answered.
    pub accept_unsigned: Option<Unsigned>,
}

impl CallOptions {
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline.unwrap_or(DEADLINE_DEFAULT)
    }

    /// After this we stop waiting for the broker too.
    pub(crate) fn patience(&self) -> Duration {
        self.deadline() + GRACE
    }
}

/// Who may answer a call: its provider; and the broker in its place, where the caller takes that.
pub(crate) struct Answerer {
    pub(crate) provider: AgentId,
    pub(crate) unsigned: Option<Unsigned>,
}

impl Answerer {
    /// The broker's own word about the call `id`: its refusal, or what an older agent answered.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::Unproven`] for an answer that the caller does not take unsigned, and
    /// [`Error::Unexpected`].
    pub(crate) fn word(&self, said: BrokerSaid, id: &Digest) -> Result<Answer> {
        if let Some(refused) = refusal_in(said.envelope()) {
            return Err(refused);
        }
        let kind = said.envelope().kind();
        let answer = match (kind, self.unsigned) {
            (Kind::ToolResult, Some(Unsigned::Fep)) => Answer::bridged(said, id),
            (Kind::ToolResult, None) => Err(Refusal::BadSignature),
            _ => return Err(Error::Unexpected(format!("`{kind}`"))),
        };
        answer.map_err(|why| Error::Unproven {
            from: self.provider.to_string(),
            why,
        })
    }
}

/// Which tool of whom, with which arguments.
pub(crate) struct Question {
    pub(crate) provider: AgentId,
    to: Audience,
    tool: String,
    arguments: Option<Box<RawValue>>,
}

impl Question {
    pub(crate) fn new(
        provider: AgentId,
        tool: &str,
        arguments: &(impl Serialize + ?Sized),
    ) -> Result<Self> {
        let raw = to_raw_value(arguments).map_err(|why| Error::Unsendable(why.to_string()))?;
        let arguments = match raw.get().as_bytes().first() {
            Some(b'{') => Some(raw),
            _ if raw.get() == "null" => None,
            _ => {
                return Err(Error::Unsendable(
                    "arguments are a JSON object: give a struct, a map or `json!({…})`".into(),
                ));
            }
        };
        Ok(Self {
            to: provider.clone().into(),
            provider,
            tool: tool.to_owned(),
            arguments,
        })
    }

    pub(crate) fn sign(&self, voice: &Voice, options: &CallOptions) -> Result<Sealed> {
        if options.deadline() > DEADLINE_MAX {
            return Err(Error::Unsendable(
                "a call's deadline is 24 hours at most".into(),
            ));
        }
        let body = ToolCall {
            tool: self.tool.as_str().into(),
            arguments: self.arguments.as_deref(),
            progress: options.progress,
            mcp: options.mcp.as_deref(),
            unsigned: options.accept_unsigned,
        };
        let header = Header {
            re: None,
            token: options.token.as_deref(),
            deadline: Some(options.deadline()),
        };
        voice.say(Kind::ToolCall, &self.to, header, &body)
    }

    /// Who may answer.
    pub(crate) fn answerer(&self, options: &CallOptions) -> Answerer {
        Answerer {
            provider: self.provider.clone(),
            unsigned: options.accept_unsigned,
        }
    }

    /// Calls over a session.
    pub(crate) async fn ask(
        &self,
        line: &Arc<Line>,
        session: &Arc<Session>,
        options: &CallOptions,
    ) -> Result<CallHandle> {
        let call = self.sign(session.voice(), options)?;
        let answerer = self.answerer(options);
        let sent = session.call(call, answerer).await?;
        Ok(CallHandle {
            to: self.to.clone(),
            patience: options.patience(),
            since: Instant::now(),
            seq: 0,
            over: false,
            sent,
            session: Arc::clone(session),
            _line: Arc::clone(line),
        })
    }
}

/// A call under way. Dropping it cancels the call.
pub struct CallHandle {
    to: Audience,
    patience: Duration,
    since: Instant,
    seq: u64,
    over: bool,
    sent: Sent,
    session: Arc<Session>,
    /// The agent's session lives as long as its calls.
    _line: Arc<Line>,
}

impl CallHandle {
    /// The identity of the call: the same in every log.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.sent.id
    }

    /// The next progress, in order; none when the answer is there, or when it is late. Progress that
    /// comes faster than it is looked at is dropped.
    pub async fn progress(&mut self) -> Option<Progress> {
        let session = Arc::clone(&self.session);
        let mut patience = session.voice().clock().sleep(self.patience_left());
        loop {
            let answer = tokio::select! {
                biased;
                answer = self.sent.progress.recv() => answer?,
                () = &mut patience => return None,
            };
            let Ok(body) = answer.envelope().read_body::<ToolProgress<'_>>() else {
                continue;
            };
            // What comes a second time, or late, is not progress.
            if body.seq > self.seq {
                self.seq = body.seq;
                return Some(Progress {
                    done: body.progress,
                    total: body.total,
                    message: body.message.map(Into::into),
                    data: body.data.map(ToOwned::to_owned),
                });
            }
        }
    }

    /// Gives the running tool more input.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`] where the session has ended, [`Error::Unsendable`].
    pub async fn input(&self, input: &(impl Serialize + ?Sized)) -> Result<()> {
        let raw = to_raw_value(input).map_err(|why| Error::Unsendable(why.to_string()))?;
        let body = ToolInput { input: &raw };
        self.session.tell(self.about(Kind::ToolInput, &body)?).await
    }

    /// Asks broker and provider to stop. The answer is then a refusal with `CANCELLED`, unless the
    /// provider was faster.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`] where the session has ended.
    pub async fn cancel(&self, reason: Option<&str>) -> Result<()> {
        let body = ToolCancel {
            reason: reason.map(ToOwned::to_owned),
        };
        self.session
            .tell(self.about(Kind::ToolCancel, &body)?)
            .await
    }

    /// The tool's answer.
    ///
    /// # Errors
    ///
    /// [`Error::Tool`] where the tool says why not, [`Error::Refused`] where the broker does,
    /// [`Error::Deadline`], [`Error::OutcomeUnknown`] where the session was lost, and
    /// [`Error::Answer`] where it is not a `T`.
    pub async fn result<T: DeserializeOwned>(self) -> Result<T> {
        typed(&self.raw().await?)
    }

    /// The tool's answer as JSON.
    ///
    /// # Errors
    ///
    /// Those of [`CallHandle::result`], without the last.
    pub async fn raw(mut self) -> Result<Box<RawValue>> {
        let session = Arc::clone(&self.session);
        let patience = session.voice().clock().sleep(self.patience_left());
        tokio::select! {
            answered = &mut self.sent.result => {
                self.over = true;
                let lost = |_| Error::OutcomeUnknown("the session with the broker was lost".into());
                raw_result(&answered.map_err(lost)??)
            }
            () = patience => Err(Error::Deadline(self.patience)),
        }
    }

    fn patience_left(&self) -> Duration {
        self.patience.saturating_sub(self.since.elapsed())
    }

    fn about<B: Serialize>(&self, kind: Kind, body: &B) -> Result<Sealed> {
        self.session
            .voice()
            .say(kind, &self.to, Header::about(self.sent.id), body)
    }
}

impl Drop for CallHandle {
    fn drop(&mut self) {
        if self.over || self.session.has_ended() {
            return;
        }
        self.session.forget(&self.sent.id);
        let reason = Some("the caller no longer waits".to_owned());
        if let Ok(cancel) = self.about(Kind::ToolCancel, &ToolCancel { reason }) {
            // Where the queue is full the call ends by its deadline.
            let _ = self.session.try_tell(cancel);
        }
    }
}

impl std::fmt::Debug for CallHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CallHandle({} to {})", self.sent.id, self.to)
    }
}

/// What an answer holds: a result, or the tool's own error.
pub(crate) fn raw_result(answer: &Answer) -> Result<Box<RawValue>> {
    let body: ToolResult<'_> = answer
        .envelope()
        .read_body()
        .map_err(|why| Error::Unexpected(format!("a `toolResult` that does not fit ({why})")))?;
    match (body.result, body.error) {
        (Some(result), None) => Ok(result.to_owned()),
        (None, Some(error)) => Err(Error::Tool {
            code: error.code.into(),
            message: error.message.into(),
            data: error.data.map(ToOwned::to_owned),
        }),
        _ => Err(Error::Unexpected(
            "a `toolResult` that is not one of result and error".into(),
        )),
    }
}

pub(crate) fn typed<T: DeserializeOwned>(raw: &RawValue) -> Result<T> {
    serde_json::from_str(raw.get()).map_err(|why| Error::Answer(why.to_string()))
}

/// Whether to sign anew, once: the broker refused it as stale, so it was delivered to nobody.
pub(crate) fn is_stale<T>(outcome: &Result<T>) -> bool {
    matches!(
        outcome,
        Err(Error::Refused {
            code: Code::Stale,
            ..
        })
    )
}
