//! The agent's one living session: attached when somebody needs it, attached anew when it is lost.
//!
//! `serve` and `subscribe` hold the line: while anybody does, a lost session is attached again, with
//! growing random waits. What must be said on each new session (offers, subscriptions) its owner says
//! itself. Calls that were in flight are not repeated: their outcome is unknown.
//!
//! There is never a second keeper. The state itself is the place: whoever makes `Over` into
//! `Attaching` starts one, and only a keeper makes it `Over` again, once, as the last thing it does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::{Error, Result};
use crate::link::backoff::{self, Backoff};
use crate::session::{Core, Receiver, Session};

/// The agent's session, whether it lives or not.
pub(crate) struct Line {
    keeper: Arc<Keeper>,
    keeping: Mutex<Option<JoinHandle<()>>>,
}

/// What a keeper works with, and where it says how it stands.
struct Keeper {
    core: Arc<Core>,
    receiver: Arc<dyn Receiver>,
    state: watch::Sender<State>,
    held: AtomicUsize,
}

#[derive(Clone)]
enum State {
    /// The first attempt is under way.
    Attaching,
    Up(Arc<Session>),
    /// The last attempt failed; another follows if somebody holds the line.
    Down(Error),
    /// Nobody keeps the session until somebody asks again.
    Over(Error),
}

impl Line {
    pub(crate) fn new(core: Arc<Core>, receiver: Arc<dyn Receiver>) -> Self {
        let idle = core.closed("not attached");
        let state = watch::Sender::new(State::Over(idle));
        let keeper = Keeper {
            core,
            receiver,
            state,
            held: AtomicUsize::new(0),
        };
        Self {
            keeper: Arc::new(keeper),
            keeping: Mutex::new(None),
        }
    }

    /// The session, if it lives at this moment.
    pub(crate) fn living(&self) -> Option<Arc<Session>> {
        match &*self.keeper.state.borrow() {
            State::Up(session) if !session.has_ended() => Some(Arc::clone(session)),
            _ => None,
        }
    }

    /// The session; attaches if there is none, and gives up when that fails once.
    ///
    /// # Errors
    ///
    /// Those of [`Session::attach`].
    pub(crate) async fn session(&self) -> Result<Arc<Session>> {
        let mut state = self.start();
        loop {
            match &*state.borrow_and_update() {
                State::Up(session) if !session.has_ended() => return Ok(Arc::clone(session)),
                State::Down(why) | State::Over(why) => return Err(why.clone()),
                State::Attaching | State::Up(_) => {}
            }
            self.changed(&mut state).await?;
        }
    }

    /// Keeps the session alive until the hold is dropped.
    pub(crate) fn hold(self: &Arc<Self>) -> Hold {
        self.keeper.held.fetch_add(1, Ordering::SeqCst);
        Hold {
            line: Arc::clone(self),
        }
    }

    /// Starts a keeper unless there is one.
    fn start(&self) -> watch::Receiver<State> {
        // Held until the task stands here, so that dropping the line ends this keeper and no other. A
        // runtime that shuts down drops the task at once: a place that is dropped takes no lock.
        let mut keeping = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = Place::take(&self.keeper) {
            *keeping = Some(tokio::spawn(place.keep()));
        }
        self.keeper.state.subscribe()
    }

    async fn changed(&self, state: &mut watch::Receiver<State>) -> Result<()> {
        let gone = |_| self.keeper.core.closed("the agent was dropped");
        state.changed().await.map_err(gone)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(keeping) = self
            .keeping
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            keeping.abort();
        }
    }
}

/// Somebody needs the session to live.
pub(crate) struct Hold {
    line: Arc<Line>,
}

impl Hold {
    /// The session, waiting through every failure that may pass.
    ///
    /// # Errors
    ///
    /// What no waiting mends: those of [`Session::attach`] that are not retryable.
    pub(crate) async fn session(&self) -> Result<Arc<Session>> {
        let mut state = self.line.start();
        loop {
            let over = match &*state.borrow_and_update() {
                State::Up(session) if !session.has_ended() => return Ok(Arc::clone(session)),
                State::Over(why) => Some(why.clone()),
                State::Attaching | State::Up(_) | State::Down(_) => None,
            };
            match over {
                // Given up at the moment when we took hold.
                Some(why) if why.is_retryable() => {
                    // A runtime that shuts down ends every keeper at once: it must find us waiting.
                    tokio::task::yield_now().await;
                    state = self.line.start();
                }
                Some(why) => return Err(why),
                None => self.line.changed(&mut state).await?,
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.line.keeper.held.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The one place of a keeper. Dropping it, whichever way that comes about, tells that it is free:
/// nobody may wait for somebody who is gone.
struct Place {
    keeper: Arc<Keeper>,
    end: Error,
}

impl Place {
    /// Takes the place if it is free.
    fn take(keeper: &Arc<Keeper>) -> Option<Self> {
        let is_free = keeper.state.send_if_modified(|state| {
            let is_free = matches!(state, State::Over(_));
            if is_free {
                *state = State::Attaching;
            }
            is_free
        });
        is_free.then(|| Self {
            keeper: Arc::clone(keeper),
            end: keeper.core.closed("the session is no longer kept"),
        })
    }

    async fn keep(mut self) {
        self.end = self.keeper.keep().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.keeper
            .state
            .send_replace(State::Over(self.end.clone()));
    }
}

impl Keeper {
    /// Attaches, reads until the session ends, and begins again while somebody holds the line. Gives
    /// why it ends.
    async fn keep(&self) -> Error {
        let clock = self.core.voice.clock();
        let mut backoff = Backoff::default();
        let mut was_up = false;
        loop {
            let since = clock.now();
            let why = match Session::attach(&self.core).await {
                Ok((session, source)) => {
                    tracing::info!(agent = %self.core.voice.id(), "attached");
                    was_up = true;
                    self.state.send_replace(State::Up(Arc::clone(&session)));
                    session.read(source, &*self.receiver).await;
                    // A broker that attaches us and hangs up at once is not to be hurried.
                    if clock.now().distance(since) >= backoff::LONGEST {
                        backoff.reset();
                    }
                    self.core.closed("the session has ended")
                }
                Err(why) => why,
            };
            if !self.is_held() || !passes(&why, was_up) {
                return why;
            }
            // Whoever lets go meanwhile is not attached again.
            let wait = backoff.failed(getrandom::u64().unwrap_or(u64::MAX));
            let wait = wait.max(Duration::from_millis(1));
            tracing::warn!(agent = %self.core.voice.id(), %why, wait_ms = wait.as_millis() as u64, "attaching again");
            self.state.send_replace(State::Down(why.clone()));
            clock.sleep(wait).await;
            if !self.is_held() {
                return why;
            }
        }
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst) > 0
    }
}

/// Whether a failure to attach may pass by itself. A server that was the right one before may be
/// between two certificates; at the start a wrong CA or key is a mistake in the configuration.
fn passes(why: &Error, was_up: bool) -> bool {
    match why {
        Error::Tls { .. } | Error::NotTheBroker { .. } | Error::Unexpected(_) => was_up,
        other => other.is_retryable(),
    }
}
