//! Who waits for the answer to what: by identity, each in one place, and nobody once the session ends.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto_spec::admission::Answer;
use proto_spec::{AgentId, Digest, Envelope};
use tokio::sync::{mpsc, oneshot};

use crate::call::Answerer;
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
    pub(super) answerer: Answerer,
    pub(super) progress: mpsc::Sender<Answer>,
    pub(super) result: oneshot::Sender<Result<Answer>>,
}

/// All who wait.
pub(super) struct Everybody(Mutex<Option<HashMap<Digest, Waiting>>>);

/// The place of one who waits. Dropping it gives it up.
pub(super) struct Place<'a> {
    everybody: &'a Everybody,
    id: Option<Digest>,
}

impl Place<'_> {
    /// Waits on, until the answer comes or somebody else gives the place up.
    pub(super) fn stay(mut self) {
        self.id = None;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            drop(self.everybody.take(&id));
        }
    }
}

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

    /// Waits for the answer to `id`, for as long as the place is kept.
    pub(super) fn wait(&self, id: Digest, waiting: Waiting) -> Result<Place<'_>, Turned> {
        match self.all().as_mut() {
            None => Err(Turned::Ended),
            Some(all) if all.len() >= WAITING_MAX => Err(Turned::Full),
            Some(all) => {
                all.insert(id, waiting);
                Ok(Place {
                    everybody: self,
                    id: Some(id),
                })
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
            Waiting::Call(outgoing) => Some(outgoing.answerer.provider.clone()),
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

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::channel;

    use super::*;

    fn id(n: u32) -> Digest {
        Digest::of(&n.to_le_bytes())
    }

    fn question() -> Waiting {
        Waiting::Question(channel().0)
    }

    #[test]
    fn who_gives_up_waiting_takes_no_place() {
        let everybody = Everybody::new();
        drop(everybody.wait(id(1), question()).ok());
        assert!(everybody.take(&id(1)).is_none());
        everybody.wait(id(1), question()).ok().unwrap().stay();
        assert!(everybody.take(&id(1)).is_some());
    }

    #[test]
    fn more_than_may_wait_are_turned_away_and_nobody_waits_after_the_end() {
        let everybody = Everybody::new();
        for n in 0..WAITING_MAX as u32 {
            everybody.wait(id(n), question()).ok().unwrap().stay();
        }
        let turned = |n| everybody.wait(id(n), question()).err();
        assert!(matches!(turned(WAITING_MAX as u32), Some(Turned::Full)));
        assert_eq!(everybody.close().map(|all| all.len()), Some(WAITING_MAX));
        assert!(matches!(turned(1), Some(Turned::Ended)));
    }
}
