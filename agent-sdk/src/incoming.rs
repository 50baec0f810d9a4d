//! A call from its provider's side: who calls, and the way back to them while it runs.

use std::sync::Arc;
use std::time::Duration;

use proto_spec::message::ToolProgress;
use proto_spec::{Audience, Caller, Capability, Digest, Kind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::mpsc;

use crate::session::Session;
use crate::voice::Header;

/// A call that was checked and is being served. What it says is proven: the caller signed it, and the
/// capability was granted.
pub struct Call {
    pub(crate) id: Digest,
    pub(crate) caller: Caller,
    pub(crate) tool: Capability,
    pub(crate) capability: String,
    pub(crate) deadline: Option<Duration>,
    pub(crate) sandbox: Option<String>,
    pub(crate) mcp: Option<Box<RawValue>>,
    pub(crate) inputs: mpsc::Receiver<Box<RawValue>>,
    pub(crate) reporter: Reporter,
}

impl Call {
    /// The identity of the caller's envelope: unique, and the same in every log.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.id
    }

    /// Who calls, and through which organisation, if that is another than its own: whoever decides by the
    /// name decides by both.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Which tool was called.
    #[must_use]
    pub fn tool(&self) -> &Capability {
        &self.tool
    }

    /// The capability that permitted it.
    #[must_use]
    pub fn capability(&self) -> &str {
        &self.capability
    }

    /// How long the caller waits, counted from the broker's receipt; none when it did not say.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// The sandbox that the grant demands, in which this tool said that it runs.
    #[must_use]
    pub fn sandbox(&self) -> Option<&str> {
        self.sandbox.as_deref()
    }

    /// Of a request to an MCP server: an object, its parameters beside the arguments. None where the caller
    /// speaks no MCP.
    #[must_use]
    pub fn mcp(&self) -> Option<&RawValue> {
        self.mcp.as_deref()
    }

    /// Whether the caller wants to know how far it is.
    #[must_use]
    pub fn wants_progress(&self) -> bool {
        self.reporter.to.is_some()
    }

    /// Tells the caller how far it is, if the caller wants to know. Waits while the connection is busy;
    /// what cannot be sent any more is dropped, for then the call is over.
    pub async fn progress(&mut self, progress: Progress) {
        self.reporter.report(self.id, progress).await;
    }

    /// What the caller sends while the call runs ([`crate::CallHandle::input`]); none when nothing
    /// more can come.
    ///
    /// # Errors
    ///
    /// A [`crate::ToolError`] where it does not fit `T`.
    pub async fn input<T: DeserializeOwned>(&mut self) -> Result<Option<T>, crate::ToolError> {
        match self.inputs.recv().await {
            None => Ok(None),
            Some(raw) => serde_json::from_str(raw.get()).map(Some).map_err(|why| {
                crate::ToolError::new(crate::tool::INVALID_ARGUMENTS, why.to_string())
            }),
        }
    }
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Call({} of {} by {})", self.id, self.tool, self.caller)
    }
}

/// How far a call is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// How much is done, in the tool's own unit.
    pub done: Option<f64>,
    /// How much there is to do.
    pub total: Option<f64>,
    /// For people.
    pub message: Option<String>,
    /// A part of the result, ahead of it.
    pub data: Option<Box<RawValue>>,
}

impl Progress {
    /// `done` of `total`.
    #[must_use]
    pub fn of(done: f64, total: f64) -> Self {
        Self {
            done: Some(done),
            total: Some(total),
            ..Self::default()
        }
    }

    /// Words only.
    #[must_use]
    pub fn saying(message: impl Into<String>) -> Self {
        Self {
            message: Some(message.into()),
            ..Self::default()
        }
    }

    /// Adds a part of the result. What cannot be written as JSON is left out.
    #[must_use]
    pub fn with(mut self, data: &impl Serialize) -> Self {
        self.data = to_raw_value(data).ok();
        self
    }
}

/// The way back to the caller. `None` where the caller does not want progress.
pub(crate) struct Reporter {
    pub(crate) to: Option<(Arc<Session>, Audience)>,
    pub(crate) seq: u64,
}

impl Reporter {
    async fn report(&mut self, call: Digest, progress: Progress) {
        let Some((session, caller)) = &self.to else {
            return;
        };
        self.seq += 1;
        let body = ToolProgress {
            seq: self.seq,
            progress: progress.done,
            total: progress.total,
            message: progress.message.map(Into::into),
            data: progress.data.as_deref(),
        };
        let said = session
            .voice()
            .say(Kind::ToolProgress, caller, Header::about(call), &body);
        match said {
            Ok(envelope) if envelope.bytes.len() <= session.terms().envelope_bytes_max => {
                let _ = session.tell(envelope).await;
            }
            Ok(_) => {
                tracing::warn!(%call, "progress is longer than the broker takes, and was not sent");
            }
            Err(why) => tracing::warn!(%call, %why, "progress was not sent"),
        }
    }
}
