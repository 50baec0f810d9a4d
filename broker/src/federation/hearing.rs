//! What a peer's broker says: its agents' envelopes in frames, and its own words.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use proto_spec::admission::Heard;
use proto_spec::capability::{Claims, TokenKind, decode_text};
use proto_spec::frame::{RELAY, Relay};
use proto_spec::limits::{PEER_GRANTS_MAX, WORD_BYTES_MAX};
use proto_spec::message::{Advert, PeerEvent, PeerTokens, PeerTopics, RevocationHead, TrustNews};
use proto_spec::refusal::ErrorBody;
use proto_spec::{Code, Kind, Received, Refusal, Speaker};

use super::events::{hear_event, introduced};
use super::trust::believed;
use crate::calls::Place;
use crate::conversation::Hears;
use crate::pipeline::Core;
use crate::state::links::{Held, Link};
use crate::state::outbox::Outbox;

/// Characters of a peer's message that its caller is shown.
const MESSAGE_CHARS_MAX: usize = 512;

/// An attached link, as the one who hears it.
#[derive(Debug)]
pub struct Attached<'a> {
    /// Who hears.
    pub core: &'a Core,
    /// Over which link.
    pub link: Arc<Link>,
    /// Whether anything came since somebody asked last.
    pub heard: AtomicBool,
}

impl Hears for Attached<'_> {
    fn outbox(&self) -> &Outbox {
        &self.link
    }

    async fn hear(&self, message: Bytes) -> Option<Bytes> {
        self.heard.store(true, Ordering::Relaxed);
        if message.first() == Some(&RELAY) {
            return self.relayed(message).await;
        }
        if let Err(refusal) = self.word(message).await {
            let code = refusal.code();
            self.core.metrics.refused(code);
            tracing::warn!(peer = %self.link.org, code = code.as_str(), reason = ?refusal.to_string(), "a peer's word is not believed");
            // It may be the word that what comes after it depends on.
            self.link.close();
        }
        None
    }
}

impl Attached<'_> {
    async fn relayed(&self, message: Bytes) -> Option<Bytes> {
        let answer = match Relay::decode(message) {
            Ok(relay) => self.core.handle_relayed(relay, &self.link).await,
            Err(refusal) => {
                tracing::warn!(peer = %self.link.org, code = refusal.code().as_str(), "a peer's frame does not parse");
                self.link.close();
                return None;
            }
        };
        match answer {
            Ok(_) => None,
            Err(answer) => Some(answer.envelope),
        }
    }

    async fn word(&self, message: Bytes) -> Result<(), Refusal> {
        let core = self.core;
        let now = core.clock.now();
        let judge = core.judge(now);
        let received = Received::parse(message, WORD_BYTES_MAX)?;
        let neighbour = self.link.neighbour();
        let heard = received
            .verify(&neighbour)?
            .heard_from(&neighbour, &judge)?;
        match heard.envelope().kind() {
            Kind::PeerTokens => self.tokens(&heard),
            Kind::Advert => {
                let advert: Advert = heard.envelope().read_body()?;
                let tools_max = core.config.limits.tools_per_peer_max;
                let tools = advert.tools.iter().map(|one| &one.tool);
                let keys: HashMap<_, _> =
                    tools.map(|tool| (tool.agent.clone(), tool.key)).collect();
                let is_news = self.link.learn(&core.state.org, advert, tools_max, now)?;
                for (agent, key) in keys {
                    core.state.links.note_key(&self.link.org, &agent, &key);
                }
                if is_news {
                    // What lies behind us may be advertised to others.
                    core.state.sessions.offers_changed();
                }
                Ok(())
            }
            Kind::RevocationHead => {
                let head: RevocationHead = heard.envelope().read_body()?;
                let dead = self.link.see(head, now)?;
                if !dead.is_empty() {
                    // Those that went on from here are cancelled there.
                    Place { core, now }.end_calls_of(&self.link, &dead);
                }
                Ok(())
            }
            Kind::PeerTopics => {
                let topics: PeerTopics = heard.envelope().read_body()?;
                self.link
                    .set_listeners(introduced(topics, &self.link, core)?);
                Ok(())
            }
            Kind::PeerEvent => {
                let event: PeerEvent = heard.envelope().read_body()?;
                // Nothing depends on it: events are at most once.
                if let Err(refusal) = hear_event(event, &self.link, core, now) {
                    let code = refusal.code();
                    core.metrics.refused(code);
                    tracing::warn!(peer = %self.link.org, code = code.as_str(), reason = ?refusal.to_string(), "a peer's event is not taken");
                }
                Ok(())
            }
            Kind::TrustNews => {
                let news: TrustNews = heard.envelope().read_body()?;
                let news = believed(news, &self.link, &core.state)?;
                match news == TrustNews::default() {
                    true => Ok(()),
                    false => core.registrar.hear(&self.link.org, news).await,
                }
            }
            Kind::Error => self.ended(&heard, Some(&self.refusal(&heard)?)),
            Kind::ToolCancel => self.ended(&heard, None),
            kind => Err(Refusal::UnknownType(kind.to_string())),
        }
    }

    /// What our agents may do there, and behind it: tokens of its root, and of others' that were granted to
    /// it, all of them for our broker's key.
    fn tokens(&self, heard: &Heard) -> Result<(), Refusal> {
        let PeerTokens { tokens, onward } = heard.envelope().read_body()?;
        if tokens.len().max(onward.len()) > PEER_GRANTS_MAX {
            return Err(Refusal::InvalidBody(format!(
                "more than {PEER_GRANTS_MAX} tokens"
            )));
        }
        let me = &self.core.state.org;
        let peer = &self.link.org;
        let own = tokens.iter().map(|text| {
            self.held(text, |said| {
                said.org() == peer && said.agent() == Some(&Speaker::Broker(me.clone()))
            })
        });
        let others = onward.iter().map(|text| {
            self.held(text, |said| {
                said.org() != peer
                    && said.org() != me
                    && said.agent() == Some(&Speaker::Broker(peer.clone()))
            })
        });
        let held = own.chain(others).collect::<Result<_, Refusal>>()?;
        self.link.hold(held);
        Ok(())
    }

    /// An unsealed peer token whose holder is our broker's key and which `is` what it should be.
    fn held(&self, text: &str, is: impl Fn(&Claims) -> bool) -> Result<Held, Refusal> {
        let token = decode_text(text)?;
        let said = Claims::read(&token)?;
        let is_ours = said.kind() == TokenKind::Peer
            && said.holder() == Some(&self.core.voice.public())
            && said.introduced().is_none()
            && !said.is_sealed();
        let id = said.blocks().first().map(|block| block.id().0);
        match id {
            Some(id) if is_ours && is(&said) => Ok(Held {
                id,
                depth: (said.depth() as usize + 1).saturating_sub(said.holders().len()),
                token,
            }),
            _ => Err(Refusal::InvalidBody("a token that is not for us".into())),
        }
    }

    fn refusal(&self, heard: &Heard) -> Result<Refusal, Refusal> {
        let body: ErrorBody = heard.envelope().read_body()?;
        let unknown = |_| Refusal::InvalidBody("a code that is not in the list".into());
        let code = match body.code.parse().map_err(unknown)? {
            // Of its home broker a caller knows that what is stale was delivered to nobody, and says it anew.
            Code::Stale => Code::Unavailable,
            code => code,
        };
        let message = body.message.chars().take(MESSAGE_CHARS_MAX).collect();
        Ok(Refusal::ByPeer(self.link.org.clone(), code, message))
    }

    /// A call ended at the peer. One that has ended here meanwhile is no fault of anybody's.
    fn ended(&self, heard: &Heard, why: Option<&Refusal>) -> Result<(), Refusal> {
        let id = heard.envelope().re();
        let id = id.ok_or(Refusal::MissingMember("re"))?;
        let place = Place {
            core: self.core,
            now: self.core.clock.now(),
        };
        match place.ended_by_peer(&self.link, &id, why) {
            Err(Refusal::NoSuchCall) => Ok(()),
            ended => ended,
        }
    }
}
