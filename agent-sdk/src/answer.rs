//! The provider's answer to one call: its result, its error, or why it was refused.

use std::sync::Arc;

use proto_spec::message::{self, ToolResult};
use proto_spec::{Audience, Digest, Envelope, Kind, Sealed};
use serde_json::value::RawValue;

use crate::error::Result;
use crate::session::Session;
use crate::tool::{RESULT_TOO_LARGE, ToolError};
use crate::voice::Header;

/// Who is to be answered, about what.
pub(crate) struct Asker {
    pub(crate) call: Digest,
    pub(crate) caller: Audience,
}

impl Asker {
    pub(crate) fn of(call: Digest, envelope: &Envelope) -> Self {
        Self {
            call,
            caller: envelope.speaker().clone().into(),
        }
    }

    pub(crate) async fn answer(
        &self,
        session: &Session,
        outcome: Result<Box<RawValue>, ToolError>,
    ) {
        let body = body_of(&outcome);
        let most = session.terms().envelope_bytes_max;
        let mut said = self.say(session, &body);
        if said
            .as_ref()
            .is_ok_and(|envelope| envelope.bytes.len() > most)
        {
            let error = ToolError::new(RESULT_TOO_LARGE, format!("the broker takes {most} bytes"));
            said = self.say(session, &body_of(&Err(error)));
        }
        match said {
            Ok(envelope) => {
                let _ = session.tell(envelope).await;
            }
            Err(why) => tracing::error!(call = %self.call, %why, "no answer could be made"),
        }
    }

    /// From the task that reads, which must not wait for the one that writes.
    pub(crate) fn answer_at_once(&self, session: &Arc<Session>, error: &ToolError) {
        let said = self.say(session, &body_of(&Err(error.clone())));
        if let Err(why) = said.and_then(|envelope| session.tell_soon(envelope)) {
            tracing::warn!(call = %self.call, %why, "a refusal could not be sent");
        }
    }

    fn say(&self, session: &Session, body: &ToolResult<'_>) -> Result<Sealed> {
        session.voice().say(
            Kind::ToolResult,
            &self.caller,
            Header::about(self.call),
            body,
        )
    }
}

fn body_of(outcome: &Result<Box<RawValue>, ToolError>) -> ToolResult<'_> {
    match outcome {
        Ok(result) => ToolResult {
            result: Some(result),
            error: None,
        },
        Err(error) => ToolResult {
            result: None,
            error: Some(message::ToolError {
                code: error.code.as_str().into(),
                message: error.message.as_str().into(),
                data: error.data.as_deref(),
            }),
        },
    }
}
