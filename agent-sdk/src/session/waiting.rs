//! Who waits for the answer to what: by identity, each in one place, and nobody once the session ends.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto_spec::admission::Answer;
use proto_spec::{AgentId, Digest, Envelope};
use tokio::sync::{mpsc, oneshot};

use crate::error::Result;

/// Questions and calls of one session that wait at once.
pub(super) const WAITING_MAX: usize = 1 << 16;

/// Who waits for an answer.
pub(super) enum Waiting {
    /// A question to the broker.
    Question(oneshot::Sender<Result<Envelope>>),
    /// A call.
    Call(Outgoing),
}

/// A call, from the side of the session: where its answers go.
pub(super) struct Outgoing {
    pub(super) provider: AgentId,
    pub(super) progress: mpsc::Sender<Answer>,
    pub(super) result: oneshot::Sender<Result<Answer>>,
}

/// All who wait.
pub(super) struct Everybody(Mutex<Option<HashMap<Digest, Waiting>>>);

/// Why nobody may wait any more.
#[derive(Debug, Clone, Copy)]
pub(super) enum Turned {
    /// The session has ended.
    Ended,
    /// [`WAITING_MAX`] wait already.
    Full,
}

impl Everybody {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Some(HashMap::new())))
    }

    pub(super) fn wait(&self, id: Digest, waiting: Waiting) -> Result<(), Turned> {
        match self.all().as_mut() {
            None => Err(Turned::Ended),
            Some(all) if all.len() >= WAITING_MAX => Err(Turned::Full),
            Some(all) => {
                all.insert(id, waiting);
                Ok(())
            }
        }
    }

    /// Takes whoever waits for the answer to `id`.
    pub(super) fn take(&self, id: &Digest) -> Option<Waiting> {
        self.all().as_mut()?.remove(id)
    }

    /// Who may answer the call `id`.
    pub(super) fn provider_of(&self, id: &Digest) -> Option<AgentId> {
        match self.all().as_ref()?.get(id)? {
            Waiting::Call(outgoing) => Some(outgoing.provider.clone()),
            Waiting::Question(_) => None,
        }
    }

    /// Hands progress to the caller of `id`. One that does not look loses progress, never the result.
    pub(super) fn progress(&self, id: &Digest, answer: Answer) {
        if let Some(Waiting::Call(outgoing)) = self.all().as_ref().and_then(|all| all.get(id)) {
            let _ = outgoing.progress.try_send(answer);
        }
    }

    /// Sends everybody home. From here on nobody waits; dropping what is returned tells those who did.
    pub(super) fn close(&self) -> Option<HashMap<Digest, Waiting>> {
        self.all().take()
    }

    fn all(&self) -> MutexGuard<'_, Option<HashMap<Digest, Waiting>>> {
        // Nothing that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
