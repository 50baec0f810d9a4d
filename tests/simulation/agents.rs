//! Agents: what they sign, send, hear and believe.

use std::sync::Arc;

use broker::calls::Place;
use broker::pipeline::{Door, Step};
use broker::state::calls::Answer;
use bytes::Bytes;
use futures_util::FutureExt as _;
use proto_spec::message::{Ack, Attach};
use proto_spec::refusal::ErrorBody;
use proto_spec::{Audience, Digest, Envelope, Kind, Sealed};
use serde::Serialize;
use serde_json::{Value, json};
use tests::lab::{Actor, Extra};
use tokio::sync::{mpsc, oneshot};

use crate::house::{Agent, Heard, Line, posted};
use crate::network::Index;
use crate::oracle::{Broken, Ended};
use crate::world::{ENVELOPE_BYTES, Event, World};

impl World {
    pub(crate) fn settle_sessions(&mut self, house: Index) -> Result<bool, Broken> {
        let core = self.houses[house].core().unwrap();
        let brokers = self.houses[house].broker_keys();
        let now = self.houses[house].time(self.now);
        let mut heard = Vec::new();
        let mut lost = Vec::new();
        for (name, agent) in &mut self.houses[house].agents {
            let Some(line) = &mut agent.line else {
                continue;
            };
            while let Ok(turn) = line.queue.try_recv() {
                let session = Arc::clone(&line.session);
                for bytes in session.taken(turn) {
                    heard.push((*name, line.hear(bytes, &agent.actor.id, &brokers, now)));
                }
            }
            if line.session.closed().now_or_never().is_some() {
                lost.push(*name);
            }
        }
        let is_any = !heard.is_empty() || !lost.is_empty();
        for (name, heard) in heard {
            self.heard(house, name, heard)?;
        }
        for name in lost {
            let agent = self.houses[house].agents.get_mut(name).unwrap();
            let line = agent.line.take().unwrap();
            core.state.sessions.detach(&line.session);
            let now = core.clock.now();
            Place { core: &core, now }.connection_gone(&line.session);
            let after = self.dice.ms(20, 1_500);
            self.plan(after, Event::Return(house, name));
        }
        Ok(is_any)
    }

    pub(crate) fn heard(
        &mut self,
        house: Index,
        name: &'static str,
        heard: Heard,
    ) -> Result<(), Broken> {
        match heard {
            Heard::Call(call) => {
                let id = id_of(&call);
                self.note(format_args!("{name}@org{house} is called: {}", short(&id)));
                self.oracle.delivered(house, &id)?;
                // Some never answer.
                if self.is_over || !self.dice.one_in(12) {
                    let most = [200, 2_000, 15_000][self.dice.below(3)];
                    let most = if self.is_over { 200 } else { most };
                    let after = self.dice.ms(0, most);
                    self.plan(after, Event::Answer(house, name, Box::new(call)));
                }
            }
            Heard::Result(result) => {
                let about = result.re().unwrap();
                let id = id_of(&result);
                let is_provider = self.oracle.calls.get(&about).is_some_and(|call| {
                    let provider = &self.houses[call.owner].agents["fs"].actor.id;
                    call.home == house && result.speaker().agent() == Some(provider)
                });
                // What is not about a call of its own the agent leaves aside.
                if is_provider {
                    self.note(format_args!("{} is answered", short(&about)));
                    self.oracle.answered(&about, &id)?;
                }
            }
            Heard::Refused(about, code) => {
                self.note(format_args!("{} is refused: {code}", short(&about)));
                self.oracle.end(&about, Ended::Refused(code));
            }
            Heard::Other => {}
        }
        Ok(())
    }

    pub(crate) fn settle_posts(&mut self, house: Index) -> Result<bool, Broken> {
        let run = self.houses[house].run;
        let mut answers = Vec::new();
        self.posted.retain_mut(|(at, of, call, waiting)| {
            if *at != house || *of != run {
                return true;
            }
            match waiting.try_recv() {
                Ok(answer) => {
                    answers.push((*call, answer));
                    false
                }
                Err(oneshot::error::TryRecvError::Empty) => true,
                Err(oneshot::error::TryRecvError::Closed) => false,
            }
        });
        let is_any = !answers.is_empty();
        for (call, answer) in answers {
            let caller = self.oracle.calls[&call].caller;
            let brokers = self.houses[house].broker_keys();
            let now = self.houses[house].time(self.now);
            let me = &self.houses[house].agents[caller].actor.id;
            let heard = posted(answer, me, &brokers, now);
            self.heard(house, caller, heard)?;
        }
        Ok(is_any)
    }

    pub(crate) fn nonce(&mut self) -> String {
        self.said += 1;
        format!("simulated-{:016}", self.said)
    }

    /// Has an agent sign something.
    pub(crate) fn seal(
        &mut self,
        house: Index,
        actor: &Actor,
        kind: Kind,
        to: &Audience,
        body: &impl Serialize,
        extra: Extra,
    ) -> Sealed {
        let extra = Extra {
            nonce: Some(self.nonce()),
            ..extra
        };
        let now = self.houses[house].time(self.now);
        actor.seal_with(kind, to, now, body, &extra).unwrap()
    }

    pub(crate) fn attach(&mut self, house: Index, name: &'static str) -> Result<(), Broken> {
        let Some(core) = self.houses[house].core() else {
            return Ok(());
        };
        let standing = &self.oracle.agents[&(house, name)];
        let agent = &self.houses[house].agents[name];
        if !standing.is_registered || agent.line.is_some() {
            return Ok(());
        }
        let actor = same(&agent.actor);
        let challenge = Digest(self.dice.seed());
        let channel = core.certificates.current().channel;
        let body = Attach { challenge, channel };
        let to = actor.broker();
        let sealed = self.seal(house, &actor, Kind::Attach, &to, &body, Extra::default());
        let (outbox, queue) = mpsc::channel(core.config.limits.outbox_max);
        let attached =
            self.houses[house].finish(core.attach(sealed.bytes, challenge, channel, outbox));
        let Ok((session, _)) = attached else {
            panic!("{name}@org{house} cannot attach");
        };
        let line = Line::new(session, queue);
        self.houses[house].agents.get_mut(name).unwrap().line = Some(line);
        if name == "fs" {
            let body = json!({"tools": [{"name": "fs.read"}, {"name": "fs.write"}]});
            let offer = self.seal(
                house,
                &actor,
                Kind::OfferTools,
                &to,
                &body,
                Extra::default(),
            );
            self.speak(house, name, offer.bytes).unwrap();
        }
        self.settle(house)
    }

    /// An agent says something on its session.
    ///
    /// # Errors
    ///
    /// The code with which it is refused.
    pub(crate) fn speak(
        &mut self,
        house: Index,
        name: &'static str,
        bytes: Bytes,
    ) -> Result<(), String> {
        let line = self.houses[house].agents[name].line.as_ref();
        let Some(line) = line else {
            return Err("NO_SESSION".into());
        };
        let door = Door::Session(Arc::clone(&line.session));
        let core = self.houses[house].core().unwrap();
        let done = self.houses[house].finish(core.handle(bytes, &door));
        match done {
            Ok(_) => Ok(()),
            Err(answer) => Err(code_of(answer)),
        }
    }

    /// An envelope comes by POST.
    ///
    /// # Errors
    ///
    /// The code with which it is refused.
    pub(crate) fn post(&mut self, house: Index, sealed: &Sealed) -> Result<Option<Ack>, String> {
        let door = Door::Post {
            network: 1,
            address: "simulated".into(),
        };
        let core = self.houses[house].core().unwrap();
        let done = self.houses[house].finish(core.handle(sealed.bytes.clone(), &door));
        match done {
            Ok(Step::Say(bytes)) => Ok(ack(bytes)),
            Ok(Step::Order(order, agent, id)) => {
                let answer = self.houses[house].finish(core.settle(order, agent, id));
                match answer.status {
                    200 => Ok(ack(answer.envelope)),
                    _ => Err(code_of(answer)),
                }
            }
            Ok(Step::Wait(call, waiting)) => {
                let run = self.houses[house].run;
                self.posted.push((house, run, call, waiting));
                Ok(None)
            }
            Ok(Step::Found(_) | Step::Nothing) => Ok(None),
            Err(answer) => Err(code_of(answer)),
        }
    }

    /// An agent asks its broker for something, by POST.
    ///
    /// # Errors
    ///
    /// The code with which it is refused.
    pub(crate) fn ask(
        &mut self,
        house: Index,
        actor: &Actor,
        kind: Kind,
        body: &Value,
    ) -> Result<Ack, String> {
        let sealed = self.seal(house, actor, kind, &actor.broker(), body, Extra::default());
        let ack = self.post(house, &sealed)?;
        Ok(ack.unwrap())
    }

    pub(crate) fn answer(
        &mut self,
        house: Index,
        name: &'static str,
        call: &Envelope,
    ) -> Result<(), Broken> {
        if self.houses[house].agents[name].line.is_none() {
            return Ok(());
        }
        let actor = same(&self.houses[house].agents[name].actor);
        let caller = Audience::from(call.speaker().clone());
        let re = id_of(call);
        let body = json!({"result": {"said": self.said}});
        let result = self.seal(house, &actor, Kind::ToolResult, &caller, &body, about(re));
        self.oracle.results.insert(result.id);
        let _ = self.speak(house, name, result.bytes);
        self.settle(house)
    }

    /// A new agent, or an old one under another key.
    pub(crate) fn agent(&mut self, house: Index, name: &'static str, actor: Actor) {
        let agents = &mut self.houses[house].agents;
        agents.insert(name, Agent { actor, line: None });
    }
}

pub(crate) fn id_of(envelope: &Envelope) -> Digest {
    Digest::of(&envelope.signed_bytes())
}

pub(crate) fn short(id: &Digest) -> String {
    id.to_string().chars().take(8).collect()
}

pub(crate) fn same(actor: &Actor) -> Actor {
    Actor {
        id: actor.id.clone(),
        key: proto_spec::SigningKey::from_seed(actor.key.seed()),
    }
}

/// The header of what is said about a call.
pub(crate) fn about(re: Digest) -> Extra {
    Extra {
        re: Some(re),
        ..Extra::default()
    }
}

pub(crate) fn ack(bytes: Bytes) -> Option<Ack> {
    let envelope = Envelope::parse(bytes, ENVELOPE_BYTES).ok()?;
    envelope.read_body().ok()
}

pub(crate) fn code_of(answer: Answer) -> String {
    let envelope = Envelope::parse(answer.envelope, ENVELOPE_BYTES).unwrap();
    let body: ErrorBody = envelope.read_body().unwrap();
    body.code
}
