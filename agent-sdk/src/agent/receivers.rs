//! Who in this agent hears what the session brings.

use std::sync::{Arc, PoisonError, RwLock};

use proto_spec::admission::{BrokerSaid, Vouched};
use proto_spec::{Kind, Received, message};

use crate::events::{Hearers, Missed};
use crate::seen::Seen;
use crate::serve::Provider;
use crate::session::{Receiver, Session};

/// Who in this agent hears what the session brings.
pub(super) struct Receivers {
    pub(super) provider: RwLock<Option<Arc<Provider>>>,
    pub(super) hearers: Arc<Hearers>,
    /// Calls, and what concerns them.
    pub(super) seen: Arc<Seen>,
    /// Events, apart from calls: whoever may emit must not be able to crowd calls out.
    heard: Seen,
}

impl Receivers {
    pub(super) fn new(seen: Seen, heard: Seen) -> Self {
        Self {
            provider: RwLock::new(None),
            hearers: Arc::default(),
            seen: Arc::new(seen),
            heard,
        }
    }

    fn provider(&self) -> Option<Arc<Provider>> {
        self.provider
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Receiver for Receivers {
    fn delivered(&self, session: &Arc<Session>, vouched: &Arc<Vouched>, received: Received) {
        if received.envelope().kind() == Kind::EmitEvent {
            let heard = self
                .hearers
                .delivered(session, vouched, received, &self.heard);
            if let Err(why) = heard {
                tracing::warn!(emitter = %vouched.credential().subject, code = %why.code(), %why, "event refused");
            }
            return;
        }
        match self.provider() {
            Some(provider) => provider.delivered(session, vouched, received),
            None => {
                tracing::warn!(kind = %received.envelope().kind(), "delivery to an agent that does not serve");
            }
        }
    }

    fn said(&self, said: &BrokerSaid) {
        let envelope = said.envelope();
        if envelope.kind() == Kind::Event {
            if let Ok(event) = envelope.read_body::<message::Event>() {
                self.hearers.missed(Missed {
                    count: event.missed,
                    reconnected: false,
                });
            }
        } else if let Some(provider) = self.provider() {
            provider.said(said);
        }
    }

    fn ended(&self) {
        if let Some(provider) = self.provider() {
            provider.stop(None);
        }
    }
}
