//! The life of the broker's own keys: prepared, active, retiring, retired.
//!
//! Every agent's configuration names one of them. Whoever names an older one is led to the active one by
//! what each key said of the next, until the older one is retired.

use proto_spec::limits::BROKER_KEYS_MAX;
use proto_spec::message::Ack;
use proto_spec::{PublicKey, Refusal};

use super::admin::{Nothing, read};
use super::keys::Purpose;
use super::scope::By;
use super::{Decision, Desk, answer, change};
use crate::change::Change;
use crate::state::State;

impl Desk {
    pub(super) fn list_broker_keys(&self, body: &str) -> Result<Decision, Refusal> {
        let _: Nothing = read(body)?;
        Ok(answer(shown(&self.state)))
    }

    /// Makes the broker's next key, in a file beside the configured one, and has the active one name it.
    pub(super) fn prepare_broker_key(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        let _: Nothing = read(body)?;
        self.check_is_full(by)?;
        let life = self.state.broker_keys.life();
        if life.all().len() >= BROKER_KEYS_MAX {
            return Err(Refusal::Conflict(format!(
                "there are {BROKER_KEYS_MAX} keys of the broker: retire the oldest first"
            )));
        }
        if life.active() != Some(self.voice.public()) {
            return Err(Refusal::Conflict(
                "the active broker key is not loaded: restart the broker with its file in place"
                    .into(),
            ));
        }
        let next = Purpose::Broker.prepare(life, &self.config.broker_key)?;
        let at = self.clock.now();
        let prepared = Change::BrokerKeyPrepared {
            key: next.public(),
            succession: self.voice.name_successor(&next, at)?,
            by: by.first.clone(),
            at,
        };
        Ok(change(prepared, shown))
    }

    pub(super) fn activate_broker_key(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        self.check_is_full(by)?;
        let (life, file) = (self.state.broker_keys.life(), &self.config.broker_key);
        let activated = Change::BrokerKeyActivated {
            key: Purpose::Broker.to_activate(life, file, body)?,
            by: by.first.clone(),
            at: self.clock.now(),
        };
        Ok(change(activated, shown))
    }

    /// Leads nobody on any more who has this key. It signs nothing since another was activated.
    pub(super) fn retire_broker_key(&self, body: &str, by: &By) -> Result<Decision, Refusal> {
        self.check_is_full(by)?;
        let key = Purpose::Broker.to_retire(self.state.broker_keys.life(), body)?;
        self.check_is_end_of_chain(&key)?;
        let retired = Change::BrokerKeyRetired {
            key,
            by: by.first.clone(),
            at: self.clock.now(),
        };
        Ok(change(retired, shown))
    }

    /// What is taken out of the middle of a chain would lock out whoever has an older key.
    fn check_is_end_of_chain(&self, key: &PublicKey) -> Result<(), Refusal> {
        let keys = &self.state.broker_keys;
        match keys.predecessor(key) {
            Some(older) if keys.life().active() != Some(older) => Err(Refusal::Conflict(format!(
                "an older broker key leads to this one: retire {} first",
                older.fingerprint()
            ))),
            _ => Ok(()),
        }
    }

    /// Tells every session of a key before anything can be signed with it; and signs with it when it is
    /// active, this act's acknowledgement first.
    pub(super) fn take_broker_key(&self, change: &Change) {
        match change {
            Change::BrokerKeyPrepared { succession, .. } => {
                for session in self.state.sessions.all() {
                    if session.send(succession.clone().into()).is_err() {
                        // It learns it when it attaches again.
                        session.close();
                    }
                }
            }
            Change::BrokerKeyActivated { key, .. } => {
                match Purpose::Broker.load(&self.config.broker_key, key) {
                    Ok(key) => self.voice.go_on_under(key),
                    // It was there when the act was decided: the key before it goes on, and says so.
                    Err(error) => tracing::error!(%error, "the active broker key cannot be loaded"),
                }
            }
            _ => {}
        }
    }
}

fn shown(state: &State) -> Ack {
    Ack::BrokerKeys {
        keys: state.broker_keys.life().records(),
    }
}
