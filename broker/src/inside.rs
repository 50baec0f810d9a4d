//! Sessions within this process: they stand in the place of agents that have no connection of their own.

use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use proto_spec::frame::{FRAME, Frame};
use proto_spec::{AgentId, PublicKey, Refusal};
use tokio::sync::mpsc;

use crate::calls::Place;
use crate::pipeline::Core;
use crate::state::outbox::Queued;
use crate::state::sessions::Session;

/// A session that is attached while this lives. With it go its offers and its calls, however it ends.
#[derive(Debug)]
pub struct Inside {
    core: Arc<Core>,
    session: Arc<Session>,
}

impl Inside {
    /// Attaches a session of an agent under its key on record, and gives what will be delivered to it.
    ///
    /// # Errors
    ///
    /// [`Refusal::Busy`] where the agent has as many sessions as it may, [`Refusal::UnknownAgent`] where the key
    /// is not its own any more.
    pub fn attach(
        core: &Arc<Core>,
        agent: AgentId,
        key: PublicKey,
    ) -> Result<(Self, mpsc::Receiver<Queued>), Refusal> {
        let (outbox, queue) = mpsc::channel(core.config.limits.outbox_max);
        let session = core.state.sessions.attach(agent.clone(), key, outbox)?;
        let inside = Self {
            core: Arc::clone(core),
            session,
        };
        // The key may be out since: whoever takes it out looks for sessions after that.
        match core.state.has_key(agent.name(), &key) {
            true => Ok((inside, queue)),
            false => Err(Refusal::UnknownAgent(agent)),
        }
    }
}

impl Deref for Inside {
    type Target = Arc<Session>;
    fn deref(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.core.state.sessions.detach(&self.session);
        self.session.close();
        let (core, now) = (&*self.core, self.core.clock.now());
        Place { core, now }.connection_gone(&self.session);
    }
}

/// The envelope of what was delivered: in a frame, or a word of the broker's own. This broker made the frame.
#[must_use]
pub fn delivered(message: Bytes) -> Option<Bytes> {
    match message.first() {
        Some(&FRAME) => Some(Frame::decode(message).ok()?.envelope),
        _ => Some(message),
    }
}
