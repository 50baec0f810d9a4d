//! Somebody who recorded what others said, and signs with keys of its own.

use bytes::Bytes;
use proto_spec::frame::Relay;
use proto_spec::{Envelope, Kind, SigningKey};
use serde_json::json;
use tests::lab::Actor;

use crate::agents::{about, id_of, same, short};
use crate::oracle::Broken;
use crate::world::World;

impl World {
    pub(crate) fn attack(&mut self) -> Result<(), Broken> {
        let all: Vec<_> = self.recorded.iter().cloned().collect();
        let Some((from, to, frame)) = self.dice.pick(&all) else {
            return Ok(());
        };
        match self.dice.below(6) {
            // The same again where it went before.
            0 | 1 => self.inject(from, to, frame),
            // On another link.
            2 => {
                let (a, b) = self.dice.pick(&self.edges.clone()).unwrap();
                let (from, to) = match self.dice.one_in(2) {
                    true => (a, b),
                    false => (b, a),
                };
                self.inject(from, to, frame);
            }
            // Where no link is needed, or as the agent's own.
            3 | 4 => return self.say_again(&frame),
            _ => self.forge_answer()?,
        }
        Ok(())
    }

    pub(crate) fn say_again(&mut self, frame: &Bytes) -> Result<(), Broken> {
        let Ok(relay) = Relay::decode(frame.clone()) else {
            return Ok(());
        };
        let envelope = Envelope::parse(relay.envelope, 1 << 20).unwrap();
        let id = id_of(&envelope);
        let Some(call) = self.oracle.calls.get(&id).cloned() else {
            return Ok(());
        };
        let at = match self.dice.one_in(2) {
            true => call.home,
            false => self.dice.below(self.houses.len()),
        };
        if !self.is_up(at) {
            return Ok(());
        }
        self.oracle.seen.count("envelopes by an adversary");
        let bytes = envelope.bytes().clone();
        let said = match self.dice.one_in(2) {
            true => self.post(at, &proto_spec::Sealed { bytes, id }).map(drop),
            false => self.speak(at, call.caller, bytes),
        };
        if said.is_ok() {
            // What was never delivered may be now, once; the book knows.
            self.note(format_args!("org{at} takes {} again", short(&id)));
            self.oracle.taken(at, &id, None, self.now)?;
        }
        self.settle(at)
    }

    /// Somebody who is not the provider answers a call.
    pub(crate) fn forge_answer(&mut self) -> Result<(), Broken> {
        let mut open: Vec<_> = self
            .oracle
            .calls
            .iter()
            .filter(|(_, call)| call.ended.is_none() && call.deliveries > 0)
            .map(|(id, call)| (*id, call.clone()))
            .collect();
        open.sort_by_key(|(id, _)| *id);
        let Some((id, call)) = self.dice.pick(&open) else {
            return Ok(());
        };
        let owner = call.owner;
        let provider = self.houses[owner].agents["fs"].actor.id.clone();
        let to = self.houses[call.home].agents[call.caller].actor.id.clone();
        let is_own_key = self.dice.one_in(2);
        let liar = match is_own_key {
            // Another agent in its own name, or in the provider's.
            true => same(&self.houses[owner].agents["y"].actor),
            false => Actor {
                id: provider,
                key: SigningKey::from_seed(&self.dice.seed()),
            },
        };
        let body = json!({"result": "forged"});
        let forged = self.seal(owner, &liar, Kind::ToolResult, &to.into(), &body, about(id));
        self.oracle.seen.count("forged answers");
        if self.is_up(owner) {
            let _ = self.speak(owner, "y", forged.bytes.clone());
            self.settle(owner)?;
        }
        let frame = Relay {
            envelope: forged.bytes,
            ..Relay::default()
        };
        let near = self.neighbours(call.home);
        if let Some(from) = self.dice.pick(&near) {
            self.inject(from, call.home, frame.encode());
        }
        Ok(())
    }
}
