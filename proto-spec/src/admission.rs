//! How an envelope earns belief: [`Received`] → [`Verified`] → [`Fresh`] → [`Authorized`].
//!
//! Each type is made only by consuming the one before it, and only in this file. Whoever wants to
//! know what a broker believes reads this file: no other code can make an [`Authorized`], and only
//! an [`Authorized`] can be delivered.
//!
//! The order matters. The signature comes before the nonce, or a stranger could use up the nonces of
//! an agent it cannot sign for. The token comes last, because it costs most.
//!
//! A broker authorises by its own records ([`Fresh::authorize`]); a provider checks again what its
//! broker checked ([`Fresh::authorize_delivered`]), by what the broker [`Vouched`] for.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::capability::{
    Arguments, Capability, Pattern, Proof, Question, RevocationId, Token, TokenKind,
};
use crate::envelope::{Envelope, Kind};
use crate::identity::{AgentId, Audience, Caller, Org, Speaker};
use crate::limits::{
    CLOCK_SKEW_MAX, CREDENTIAL_VALIDITY, ENVELOPE_BYTES_MAX, INTRODUCTION_VALIDITY,
    TOOL_SEGMENTS_MAX,
};
use crate::message::{self, Basis, Credential};
use crate::refusal::Refusal;
use crate::signature::{Digest, PublicKey};
use crate::succession::consent;
use crate::time::Timestamp;
use crate::wire;

/// Who looks up a key. A stranger must not learn from the time taken whether a name exists, so
/// [`Received::verify`] verifies against some key in either case.
pub trait KeyBook {
    /// The key that signs for `speaker`, if there is one.
    fn key_of(&self, speaker: &Speaker) -> Option<PublicKey>;
}

/// Who remembers nonces. The check and the record are one act.
pub trait Nonces {
    /// Accepts a nonce the first time it is seen under its key.
    ///
    /// # Errors
    ///
    /// [`Refusal::Replayed`], [`Refusal::BelowFloor`], [`Refusal::Ahead`] where a ceiling has to be
    /// made durable first, and [`Refusal::Busy`] where the sender's share is full: refused rather than
    /// forgotten.
    fn remember(
        &self,
        key: &PublicKey,
        nonce: &str,
        ts: Timestamp,
        now: Timestamp,
    ) -> Result<(), Refusal>;
}

/// What a broker has on record, asked on behalf of the connection that an envelope came by.
pub trait Authority {
    /// What this agent is granted on record. Dead grants are not among them.
    fn granted(&self, agent: &AgentId) -> Arc<[Arc<Token>]>;

    /// Opens a token as presented; answers from memory where it can.
    ///
    /// # Errors
    ///
    /// Those of [`Token::open`].
    fn open(&self, text: &str) -> Result<Arc<Token>, Refusal>;

    /// Looks up, at every use, whether a block or a key of a token's chain is revoked.
    ///
    /// # Errors
    ///
    /// [`Refusal::TokenRevoked`].
    fn alive(&self, token: &Token) -> Result<(), Refusal>;

    /// Whether what was issued when `token` was no longer permits what needs `required`.
    fn barred(&self, token: &Token, required: &Pattern) -> bool;

    /// Whether a budget of calls of this grant on record is used up: for whoever counts them.
    fn is_spent(&self, _grant: &Token) -> bool {
        false
    }

    /// How far the home organisation trusts another for what `required` permits, 1 to 100; nothing where it
    /// does not. Asked only where a condition does.
    fn trust(&self, _org: &Org, _required: &Pattern) -> Option<u8> {
        None
    }

    /// The `mcp` token that was shown at this door, for which the broker signed the envelope; opened, of this
    /// agent and for this door. Without one nothing that says `via:"mcp"` is permitted.
    fn bearer(&self) -> Option<&Token> {
        None
    }

    /// Whether bearer tokens may be used for this at all.
    fn is_for_bearers(&self, _required: &Pattern) -> bool {
        false
    }

    /// The capability that calling `tool` of `provider` requires here. For a tool behind peers, one for each
    /// way that leads there, the best first: that which the peer requires, under `peer.` and its name.
    ///
    /// # Errors
    ///
    /// [`Refusal::Denied`] where no capability could be that.
    fn required_for(
        &self,
        provider: &AgentId,
        tool: &Capability,
    ) -> Result<Vec<Capability>, Refusal>;

    /// Whether `call` was delivered to this very session, by order of `caller`.
    fn was_delivered_here(&self, call: &Digest, caller: &Audience) -> bool;

    /// Whether this very session or agent made `call`, to `provider`.
    fn was_called_from_here(&self, call: &Digest, agent: &AgentId, provider: &Audience) -> bool;
}

/// Who judges, and when.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    /// In whose name.
    pub me: Me<'a>,
    /// How far a timestamp may be from `now`.
    pub skew: Duration,
    /// The judge's clock.
    pub now: Timestamp,
}

/// In whose name an envelope is judged: only what is meant for it passes.
#[derive(Debug, Clone, Copy)]
pub enum Me<'a> {
    /// The broker of an organisation: takes what is for it, its agents and its topics.
    Broker(&'a Org),
    /// An agent: takes what is for it, and topics of its organisation.
    Agent(&'a AgentId),
}

impl Me<'_> {
    fn is_meant_by(&self, kind: Kind, to: Option<&Audience>) -> bool {
        match (self, to) {
            (_, None) => false,
            // What travels is passed on; whether it may be is decided when it is authorised.
            (Self::Broker(_), Some(Audience::Agent(_))) if kind.travels() => true,
            (Self::Broker(org), Some(to)) => to.org() == *org,
            (Self::Agent(me), Some(Audience::Agent(agent))) => agent == *me,
            // Of others' topics what its own broker brings: whoever takes it asks for that one's word.
            (Self::Agent(me), Some(Audience::Topic(org, _))) => {
                org == me.org() || kind == Kind::EmitEvent
            }
            (Self::Agent(_), Some(Audience::Broker(_))) => false,
        }
    }
}

/// It parses. Nothing about it is believed.
#[derive(Debug)]
pub struct Received {
    envelope: Envelope,
}

impl Received {
    /// Reads bytes from anywhere.
    ///
    /// # Errors
    ///
    /// Those of [`Envelope::parse`].
    pub fn parse(bytes: Bytes, bytes_max: usize) -> Result<Self, Refusal> {
        Ok(Self {
            envelope: Envelope::parse(bytes, bytes_max)?,
        })
    }

    /// Reads what an older agent of `org` says. Whoever calls this knows that the key on record may say it so.
    ///
    /// # Errors
    ///
    /// Those of [`Envelope::parse_older`].
    pub fn parse_older(
        bytes: Bytes,
        bytes_max: usize,
        org: &Org,
        full_name: impl FnOnce(&AgentId, &str) -> Option<Capability>,
    ) -> Result<Self, Refusal> {
        let envelope = Envelope::parse_older(bytes, bytes_max, org, full_name)?;
        Ok(Self { envelope })
    }

    /// What it claims.
    #[must_use]
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// Checks the signature against the key on record.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownAgent`] and [`Refusal::BadSignature`], which the sender cannot tell apart:
    /// both come after one verification.
    pub fn verify(self, keys: &impl KeyBook) -> Result<Verified, Refusal> {
        let speaker = self.envelope.speaker();
        let Some(key) = keys.key_of(speaker) else {
            let _ = self.verify_with(nobodys_key());
            return Err(match speaker {
                Speaker::Agent(agent) => Refusal::UnknownAgent(agent.clone()),
                Speaker::Broker(_) => Refusal::BadSignature,
            });
        };
        let id = self.verify_with(key)?;
        Ok(Verified {
            envelope: self.envelope,
            key,
            id,
        })
    }

    /// Takes a `registerAgent` by the key that it introduces.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownType`] for any other type, [`Refusal::WrongAudience`] where it is another
    /// organisation's agent or not for the broker, [`Refusal::InvalidBody`] and
    /// [`Refusal::BadSignature`].
    pub fn introduce(self, judge: &Judge<'_>, nonces: &impl Nonces) -> Result<Newcomer, Refusal> {
        if self.envelope.kind() != Kind::RegisterAgent {
            return Err(Refusal::UnknownType(self.envelope.kind().to_string()));
        }
        let Speaker::Agent(agent) = self.envelope.speaker().clone() else {
            return Err(Refusal::BadMember(
                "agent",
                "an agent registers, not a broker",
            ));
        };
        let here = matches!(judge.me, Me::Broker(org) if agent.org() == org);
        if !here || !matches!(self.envelope.to(), Some(Audience::Broker(_))) {
            return Err(Refusal::WrongAudience(self.envelope.to().cloned()));
        }
        let (request, older) = message::RegisterAgent::of(&self.envelope)?;
        let id = self.verify_with(request.pubkey)?;
        let verified = Verified {
            envelope: self.envelope,
            key: request.pubkey,
            id,
        };
        let fresh = verified.admit(judge, nonces)?;
        Ok(Newcomer {
            agent,
            request,
            older,
            fresh,
        })
    }

    pub(crate) fn verify_with(&self, key: PublicKey) -> Result<Digest, Refusal> {
        let signed = self.envelope.signed_bytes();
        if key.verifies(&signed, self.envelope.signature()) {
            Ok(wire::identity(&signed))
        } else {
            Err(Refusal::BadSignature)
        }
    }
}

/// A key whose signatures nobody can make: what an unknown agent's envelope is verified against, so
/// that refusing it costs the same.
fn nobodys_key() -> PublicKey {
    static KEY: std::sync::OnceLock<PublicKey> = std::sync::OnceLock::new();
    *KEY.get_or_init(|| crate::signature::SigningKey::from_seed(&[0x5a; 32]).public())
}

/// Signed by the key on record for the agent that it names.
#[derive(Debug)]
pub struct Verified {
    envelope: Envelope,
    key: PublicKey,
    id: Digest,
}

impl Verified {
    /// Its identity: the SHA-256 of its signed bytes.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.id
    }

    /// What it says.
    #[must_use]
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// Takes what a peer's broker itself says to ours over its attached link, in the order in which it says
    /// it: nobody else writes there, and the link is of one connection, so no nonce is used up.
    ///
    /// # Errors
    ///
    /// [`Refusal::Denied`] where it is not that broker that speaks, [`Refusal::WrongAudience`] where it
    /// speaks to another than our broker, and [`Refusal::Stale`].
    pub fn heard_from(
        self,
        neighbour: &Neighbour<'_>,
        judge: &Judge<'_>,
    ) -> Result<Heard, Refusal> {
        let envelope = self.envelope;
        if *envelope.speaker() != Speaker::Broker(neighbour.org.clone()) {
            return Err(Refusal::Denied("another's word".into()));
        }
        match (envelope.to(), judge.me) {
            (Some(Audience::Broker(to)), Me::Broker(me)) if to == me => {}
            (to, _) => return Err(Refusal::WrongAudience(to.cloned())),
        }
        let apart = judge.now.distance(envelope.ts());
        if apart > judge.skew {
            return Err(Refusal::Stale(apart, judge.skew));
        }
        Ok(Heard { envelope })
    }

    /// Takes an event of a peer's agent on a topic of that peer, which its broker passed on over its link.
    ///
    /// # Errors
    ///
    /// [`Refusal::Denied`] where it is no event of that peer's, [`Refusal::Stale`], and those of
    /// [`Nonces::remember`].
    pub fn admit_event(
        self,
        neighbour: &Neighbour<'_>,
        judge: &Judge<'_>,
        nonces: &impl Nonces,
    ) -> Result<Authorized, Refusal> {
        let envelope = self.envelope;
        let (Kind::EmitEvent, Speaker::Agent(agent), Some(Audience::Topic(org, _))) =
            (envelope.kind(), envelope.speaker(), envelope.to())
        else {
            return Err(Refusal::Denied("what is no event".into()));
        };
        if agent.org() != neighbour.org || org != neighbour.org {
            return Err(Refusal::Denied("another organisation's event".into()));
        }
        let caller = Caller {
            agent: agent.clone(),
            via: None,
        };
        let ts = envelope.ts();
        let apart = judge.now.distance(ts);
        if apart > judge.skew {
            return Err(Refusal::Stale(apart, judge.skew));
        }
        nonces.remember(&self.key, envelope.nonce(), ts, judge.now)?;
        Ok(Authorized {
            envelope,
            key: self.key,
            id: self.id,
            caller,
            permit: Permit::Own,
        })
    }

    /// Checks that it is meant for this judge, is of this time, and has not been seen.
    ///
    /// # Errors
    ///
    /// [`Refusal::WrongAudience`], [`Refusal::Stale`], and those of [`Nonces::remember`]. What is
    /// refused here has used up no nonce.
    pub fn admit(self, judge: &Judge<'_>, nonces: &impl Nonces) -> Result<Fresh, Refusal> {
        if !judge
            .me
            .is_meant_by(self.envelope.kind(), self.envelope.to())
        {
            return Err(Refusal::WrongAudience(self.envelope.to().cloned()));
        }
        let ts = self.envelope.ts();
        let apart = judge.now.distance(ts);
        if apart > judge.skew {
            return Err(Refusal::Stale(apart, judge.skew));
        }
        nonces.remember(&self.key, self.envelope.nonce(), ts, judge.now)?;
        Ok(Fresh {
            envelope: self.envelope,
            key: self.key,
            id: self.id,
        })
    }
}

/// Seen for the first time, in its time, by the one it is for.
#[derive(Debug)]
pub struct Fresh {
    envelope: Envelope,
    key: PublicKey,
    id: Digest,
}

impl Fresh {
    /// Its identity: the SHA-256 of its signed bytes.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.id
    }

    /// What it says.
    #[must_use]
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// Checks that its sender may do what it asks: one rule for each type, the table of SPEC.md,
    /// *Authority*.
    ///
    /// # Errors
    ///
    /// [`Refusal::Denied`] where no grant permits it, [`Refusal::NoSuchCall`] for what answers or
    /// concerns no call of this session, [`Refusal::UnknownType`] for what is not an agent's to say,
    /// and all `Token…` refusals.
    pub fn authorize(
        self,
        authority: &impl Authority,
        judge: &Judge<'_>,
    ) -> Result<Authorized, Refusal> {
        self.permitted(authority, judge, None)
    }

    /// As [`Fresh::authorize`], for what came in a frame of `neighbour`'s link. A call is permitted by one of
    /// `tokens`, each opened as presented, that introduces its sender, and by nothing else: the envelope's
    /// own token and the records are for the sender's home broker.
    ///
    /// # Errors
    ///
    /// As [`Fresh::authorize`]; [`Refusal::UnknownType`] for what does not travel.
    pub fn authorize_relayed(
        self,
        neighbour: &Neighbour<'_>,
        tokens: &[Presented],
        authority: &impl Authority,
        judge: &Judge<'_>,
    ) -> Result<Authorized, Refusal> {
        self.permitted(authority, judge, Some((*neighbour, tokens)))
    }

    fn permitted(
        self,
        authority: &impl Authority,
        judge: &Judge<'_>,
        relayed: Option<(Neighbour<'_>, &[Presented])>,
    ) -> Result<Authorized, Refusal> {
        let Speaker::Agent(agent) = self.envelope.speaker().clone() else {
            return Err(Refusal::Denied("a broker's word".into()));
        };
        if relayed.is_some() && !self.envelope.kind().travels() {
            return Err(Refusal::UnknownType(self.envelope.kind().to_string()));
        }
        let permit = Asked {
            fresh: &self,
            agent: &agent,
            authority,
            now: judge.now,
            relayed,
        }
        .permit()?;
        let neighbour = relayed.map(|(neighbour, _)| neighbour.org);
        let via = neighbour.filter(|org| *org != agent.org()).cloned();
        Ok(Authorized {
            envelope: self.envelope,
            key: self.key,
            id: self.id,
            caller: Caller { agent, via },
            permit,
        })
    }

    /// The provider's own check of a call that its broker delivered, by what the broker vouched for
    /// and what the provider knows itself.
    ///
    /// `open` opens a token that is rooted in a key of the broker's organisation, as [`Token::open`] does;
    /// `required` says which capability the provider's tool of that name requires.
    ///
    /// # Errors
    ///
    /// [`Refusal::Denied`] where the broker's word does not fit the envelope, and all `Token…` refusals.
    pub fn authorize_delivered(
        self,
        vouched: &Vouched,
        open: impl Fn(&str) -> Result<Arc<Token>, Refusal>,
        required: impl Fn(&Capability) -> Option<Capability>,
        judge: &Judge<'_>,
    ) -> Result<Authorized, Refusal> {
        let (Speaker::Agent(agent), Me::Agent(me)) = (self.envelope.speaker().clone(), judge.me)
        else {
            return Err(Refusal::Denied("a broker's word".into()));
        };
        let word = &vouched.credential;
        let denied = |why: &str| Refusal::Denied(why.into());
        if word.subject != agent || word.key != self.key {
            return Err(denied("the credential is another agent's"));
        }
        if word.expires < judge.now {
            return Err(denied("the credential has expired"));
        }
        let permit = word
            .permit
            .as_ref()
            .ok_or_else(|| denied("the credential permits no call"))?;
        let call = Call::read(&self.envelope)?;
        if permit.provider != *me || permit.tool != call.tool {
            return Err(denied("the credential is for another tool"));
        }
        if required(&call.tool).as_ref() != Some(&permit.capability) {
            return Err(denied(
                "the credential names another capability than the tool requires",
            ));
        }
        let capability = Pattern::from(permit.capability.clone());
        let mut question = call.question(&capability, &agent, me, judge.now);
        question.trust = permit.trust;
        question.proof = self.envelope.proof();
        let mut via = None;
        let token = match (permit.basis, self.envelope.token(), &permit.grant) {
            (Basis::Token, Some(text), _) => {
                let token = open(text)?;
                presented_by(&token, &self.key)?;
                Some(token)
            }
            (Basis::Record, None, Some(text)) => {
                let token = open(text)?;
                presented_by(&token, &self.key)?;
                Some(token)
            }
            // The envelope's own token, if any, was for the caller's home broker.
            (Basis::Peer, _, Some(text)) => {
                let token = open(text)?;
                if token.introduced() != Some(&agent) || token.holder() != Some(&self.key) {
                    return Err(Refusal::NotHolder("it introduces another"));
                }
                let first = token.agent().map(Speaker::org);
                via = first.filter(|org| *org != agent.org()).cloned();
                Some(token)
            }
            (Basis::Record, None, None) => None,
            _ => return Err(denied("the credential does not fit the envelope")),
        };
        question.via = via.as_ref();
        if let Some(token) = &token {
            token.permits(&question)?;
        }
        let permit = Permit::Held {
            capability,
            token,
            basis: permit.basis,
            relayed: None,
            trust: permit.trust,
        };
        Ok(Authorized {
            envelope: self.envelope,
            key: self.key,
            id: self.id,
            caller: Caller { agent, via },
            permit,
        })
    }

    /// Takes an event that the broker passed on: the emitter is vouched for, the topic is the audience.
    ///
    /// # Errors
    ///
    /// [`Refusal::Denied`] where the broker's word does not fit the envelope.
    pub fn accept_event(self, vouched: &Vouched, judge: &Judge<'_>) -> Result<Authorized, Refusal> {
        let Speaker::Agent(agent) = self.envelope.speaker().clone() else {
            return Err(Refusal::Denied("a broker's word".into()));
        };
        let word = &vouched.credential;
        let fits = word.subject == agent && word.key == self.key && word.expires >= judge.now;
        if self.envelope.kind() != Kind::EmitEvent || !fits {
            return Err(Refusal::Denied("the credential is another agent's".into()));
        }
        Ok(Authorized {
            envelope: self.envelope,
            key: self.key,
            id: self.id,
            caller: Caller { agent, via: None },
            permit: Permit::Own,
        })
    }
}

/// What a `toolCall` asks.
struct Call<'a> {
    tool: Capability,
    arguments: Arguments<'a>,
}

impl<'a> Call<'a> {
    fn read(envelope: &'a Envelope) -> Result<Self, Refusal> {
        if envelope.kind() != Kind::ToolCall {
            return Err(Refusal::UnknownType(envelope.kind().to_string()));
        }
        let body = message::ToolCall::of(envelope)?;
        let tool: Capability = body
            .tool
            .parse()
            .map_err(|_| Refusal::InvalidBody("`tool` is not a tool's name".into()))?;
        if tool.is_reserved() || tool.segments() > TOOL_SEGMENTS_MAX {
            return Err(Refusal::InvalidBody("`tool` is not a tool's name".into()));
        }
        let arguments = match body.arguments {
            None => Arguments::None,
            Some(raw) if raw.get().starts_with('{') => Arguments::Json(raw.get()),
            Some(_) => return Err(Refusal::InvalidBody("`arguments` is not an object".into())),
        };
        Ok(Self { tool, arguments })
    }

    fn question<'q>(
        &'q self,
        required: &'q Pattern,
        caller: &'q AgentId,
        provider: &'q AgentId,
        now: Timestamp,
    ) -> Question<'q> {
        Question {
            tool: Some(self.tool.as_str()),
            provider: Some(provider),
            arguments: self.arguments,
            ..Question::plain(required, caller, now)
        }
    }
}

fn presented_by(token: &Token, key: &PublicKey) -> Result<(), Refusal> {
    if token.kind() != TokenKind::Grant {
        return Err(Refusal::TokenMalformed(
            "only a grant may be presented with an envelope".into(),
        ));
    }
    token.presented_by(key)
}

/// One envelope's question to the authority.
struct Asked<'a, A> {
    fresh: &'a Fresh,
    agent: &'a AgentId,
    authority: &'a A,
    now: Timestamp,
    /// For what came from a peer: who that is, and what the frame carries.
    relayed: Option<(Neighbour<'a>, &'a [Presented])>,
}

impl<A: Authority> Asked<'_, A> {
    /// The table of SPEC.md, *Authority*, row by row.
    fn permit(&self) -> Result<Permit, Refusal> {
        let envelope = &self.fresh.envelope;
        match envelope.kind() {
            Kind::Attach
            | Kind::OfferTools
            | Kind::DiscoverTools
            | Kind::Unsubscribe
            | Kind::RotateKey => self.is_for_the_broker().map(|()| Permit::Own),
            Kind::ToolCall => self.call(),
            Kind::ToolResult | Kind::ToolProgress => self.answer(),
            Kind::ToolCancel | Kind::ToolInput => self.afterthought(),
            Kind::EmitEvent => match envelope.to() {
                Some(Audience::Topic(_, topic)) if topic.as_str().starts_with("peer.") => Err(
                    Refusal::InvalidBody("a topic under `peer.` is another organisation's".into()),
                ),
                Some(Audience::Topic(_, topic)) => self.holds(
                    &Pattern::from(topic.clone())
                        .under("event.emit")
                        .map_err(too_long)?,
                ),
                _ => Err(Refusal::WrongAudience(envelope.to().cloned())),
            },
            Kind::Subscribe => {
                self.is_for_the_broker()?;
                let body: message::Topics = envelope.read_body()?;
                let mut permit = Permit::Own;
                for topic in &body.topics {
                    permit = self.holds(&topic.to_subscribe().map_err(too_long)?)?;
                }
                Ok(permit)
            }
            Kind::Revoke => self.revoke(),
            kind if kind.is_admin() => self.administer(kind.as_str()),
            kind => Err(Refusal::UnknownType(kind.to_string())),
        }
    }

    fn is_for_the_broker(&self) -> Result<(), Refusal> {
        match self.fresh.envelope.to() {
            Some(Audience::Broker(_)) => Ok(()),
            other => Err(Refusal::WrongAudience(other.cloned())),
        }
    }

    fn call(&self) -> Result<Permit, Refusal> {
        let envelope = &self.fresh.envelope;
        let Some(Audience::Agent(provider)) = envelope.to() else {
            return Err(Refusal::WrongAudience(envelope.to().cloned()));
        };
        let call = Call::read(envelope)?;
        let mut refusal = None;
        // Another way may be permitted where the best is not; why the best is not explains most.
        for required in self.authority.required_for(provider, &call.tool)? {
            let required = Pattern::from(required);
            match self.ask(&call.question(&required, self.agent, provider, self.now)) {
                Ok(permit) => return Ok(permit),
                Err(why) => drop(refusal.get_or_insert(why)),
            }
        }
        Err(refusal.unwrap_or_else(|| Refusal::Denied(call.tool.to_string())))
    }

    fn answer(&self) -> Result<Permit, Refusal> {
        let envelope = &self.fresh.envelope;
        match (envelope.re(), envelope.to()) {
            (Some(call), Some(caller)) if self.authority.was_delivered_here(&call, caller) => {
                Ok(Permit::Delivered)
            }
            _ => Err(Refusal::NoSuchCall),
        }
    }

    fn afterthought(&self) -> Result<Permit, Refusal> {
        let envelope = &self.fresh.envelope;
        match (envelope.re(), envelope.to()) {
            (Some(call), Some(provider))
                if self
                    .authority
                    .was_called_from_here(&call, self.agent, provider) =>
            {
                Ok(Permit::Delivered)
            }
            _ => Err(Refusal::NoSuchCall),
        }
    }

    /// Holding the blocks or an ancestor of them, or the admin's right.
    fn revoke(&self) -> Result<Permit, Refusal> {
        self.is_for_the_broker()?;
        let body: message::Revoke = self.fresh.envelope.read_body()?;
        let Some(text) = &body.token else {
            return self.administer("admin.token.revoke");
        };
        let token = self.authority.open(text)?;
        let key = &self.fresh.key;
        let holds = |id: &Digest| {
            token
                .holder_of(&RevocationId(*id))
                .is_some_and(|holders| holders.contains(key))
        };
        if !body.ids.is_empty() && body.ids.iter().all(holds) {
            Ok(Permit::Own)
        } else {
            Err(Refusal::Denied(
                "revoking what the sender did not hold".into(),
            ))
        }
    }

    /// Admin acts are authorised by the record alone: a token never does.
    fn administer(&self, act: &str) -> Result<Permit, Refusal> {
        self.is_for_the_broker()?;
        if self.fresh.envelope.token().is_some() {
            return Err(Refusal::Denied("an admin act by token".into()));
        }
        let required = act.parse().map_err(|_| Refusal::UnknownType(act.into()))?;
        self.holds(&required)
    }

    fn holds(&self, required: &Pattern) -> Result<Permit, Refusal> {
        self.ask(&Question::plain(required, self.agent, self.now))
    }

    /// A presented token replaces what is on record; it never adds to it.
    fn ask(&self, question: &Question<'_>) -> Result<Permit, Refusal> {
        let proof = self.fresh.envelope.proof();
        let question = &Question { proof, ..*question };
        if let Some((neighbour, tokens)) = &self.relayed {
            return self.ask_for_peer(neighbour, tokens, question);
        }
        if proof == Proof::Bearer {
            // What the bearer permits is a part of what is on record, never more.
            let bearer = self.authority.bearer();
            let bearer = bearer.ok_or(Refusal::NotHolder("it was shown no bearer token"))?;
            borne(self.authority, bearer, question)?;
        }
        let capability = question.required.clone();
        if let Some(text) = self.fresh.envelope.token() {
            let token = self.authority.open(text)?;
            presented_by(&token, &self.fresh.key)?;
            self.authority.alive(&token)?;
            if self.authority.barred(&token, question.required) {
                return Err(Refusal::TokenRevoked(format!("all of {capability}")));
            }
            let trust = permits(self.authority, &token, question)?;
            return Ok(Permit::Held {
                capability,
                token: Some(token),
                basis: Basis::Token,
                relayed: None,
                trust,
            });
        }
        let mut refusal = Refusal::Denied(capability.to_string());
        let mut spent = None;
        for token in self.authority.granted(self.agent).iter() {
            if token.holder() != Some(&self.fresh.key)
                || self.authority.barred(token, question.required)
            {
                continue;
            }
            match permits(self.authority, token, question) {
                Ok(trust) => {
                    let held = Permit::Held {
                        capability: capability.clone(),
                        token: Some(Arc::clone(token)),
                        basis: Basis::Record,
                        relayed: None,
                        trust,
                    };
                    if !self.authority.is_spent(token) {
                        return Ok(held);
                    }
                    // Another grant may pay; where none does, this one says why.
                    spent.get_or_insert(held);
                }
                // Of several grants the one that came closest explains best.
                Err(Refusal::Denied(_)) => {}
                Err(other) => refusal = other,
            }
        }
        spent.ok_or(refusal)
    }

    /// Each token is of our own root, so that nothing another organisation issues permits anything here.
    fn ask_for_peer(
        &self,
        neighbour: &Neighbour<'_>,
        tokens: &[Presented],
        question: &Question<'_>,
    ) -> Result<Permit, Refusal> {
        let mut refusal = Refusal::Denied(question.required.to_string());
        // The neighbour vouches for another organisation's broker, and that one for the agent: both show.
        let via = (self.agent.org() != neighbour.org).then_some(neighbour.org);
        let question = &Question { via, ..*question };
        for (token, text) in tokens {
            let permitted = (|| {
                let agent = token.introduces(neighbour.org, neighbour.key)?;
                if agent != self.agent || token.holder() != Some(&self.fresh.key) {
                    return Err(Refusal::NotHolder("it introduces another"));
                }
                if token.expires() > self.now.later(INTRODUCTION_VALIDITY + CLOCK_SKEW_MAX) {
                    return Err(Refusal::NotHolder("it introduces for more than 10 minutes"));
                }
                self.authority.alive(token)?;
                if self.authority.barred(token, question.required) {
                    return Err(Refusal::TokenRevoked(format!(
                        "all of {}",
                        question.required
                    )));
                }
                permits(self.authority, token, question)
            })();
            match permitted {
                Ok(trust) => {
                    return Ok(Permit::Held {
                        capability: question.required.clone(),
                        token: Some(Arc::clone(token)),
                        basis: Basis::Peer,
                        relayed: Some(Arc::clone(text)),
                        trust,
                    });
                }
                Err(Refusal::Denied(_)) => {}
                Err(other) => refusal = other,
            }
        }
        Err(refusal)
    }
}

/// Whether a token permits it, and by which trust score of the caller's organisation, if a condition of its asks
/// for one. The question's own score is not looked at.
///
/// # Errors
///
/// Those of [`Token::permits`].
pub fn permits(
    authority: &impl Authority,
    token: &Token,
    question: &Question<'_>,
) -> Result<Option<u8>, Refusal> {
    let score = |org| authority.trust(org, question.required);
    let home = || score(question.caller?.org());
    let trust = match question.via {
        _ if !token.names_trust() => None,
        // Who came through a neighbour has whatever key that one says, so it counts for no more.
        Some(neighbour) => score(neighbour).min(home()),
        None => home(),
    };
    token.permits(&Question { trust, ..*question })?;
    Ok(trust)
}

/// Whether the bearer token that was shown permits it, as far as it goes: the record has to as well.
///
/// # Errors
///
/// [`Refusal::NotHolder`] where it is another agent's or no `mcp` token, [`Refusal::TokenRevoked`], and those
/// of [`Token::permits`].
pub fn borne(
    authority: &impl Authority,
    bearer: &Token,
    question: &Question<'_>,
) -> Result<(), Refusal> {
    let is_theirs = bearer.agent().and_then(Speaker::agent) == question.caller;
    if bearer.kind() != TokenKind::Mcp || !is_theirs {
        return Err(Refusal::NotHolder("the bearer token is another agent's"));
    }
    if !authority.is_for_bearers(question.required) {
        let required = question.required;
        return Err(Refusal::Denied(format!("{required} for a bearer token")));
    }
    authority.alive(bearer)?;
    if authority.barred(bearer, question.required) {
        let all = format!("all of {}", question.required);
        return Err(Refusal::TokenRevoked(all));
    }
    permits(authority, bearer, question).map(drop)
}

fn too_long(_: crate::capability::BadPattern) -> Refusal {
    Refusal::InvalidBody("a topic has too many segments, or is of no one peer".into())
}

/// The peer at the other end of an attached link.
#[derive(Debug, Clone, Copy)]
pub struct Neighbour<'a> {
    /// Which organisation.
    pub org: &'a Org,
    /// Its broker's key.
    pub key: &'a PublicKey,
}

/// The key of its broker, and no other.
impl KeyBook for Neighbour<'_> {
    fn key_of(&self, speaker: &Speaker) -> Option<PublicKey> {
        (*speaker == Speaker::Broker(self.org.clone())).then_some(*self.key)
    }
}

/// A token that a frame carries, opened by our own roots, and its text.
pub type Presented = (Arc<Token>, Arc<str>);

/// What a peer's broker said to ours, over its own link: signed, fresh, and meant for us.
#[derive(Debug)]
pub struct Heard {
    envelope: Envelope,
}

impl Heard {
    /// What it says.
    #[must_use]
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }
}

/// What permitted it.
#[derive(Debug, Clone)]
pub enum Permit {
    /// The sender's own key is enough.
    Own,
    /// A grant on record, or the token presented.
    Held {
        /// What was needed.
        capability: Pattern,
        /// What gave it. A provider that relies on its broker's word has none.
        token: Option<Arc<Token>>,
        /// Where that came from.
        basis: Basis,
        /// Of what came over a peer's link: the token's text, base64url.
        relayed: Option<Arc<str>>,
        /// How far the caller's organisation is trusted, where a condition asked.
        trust: Option<u8>,
    },
    /// It answers or concerns a call of this session.
    Delivered,
}

/// Its sender may do what it asks. Only this may be routed and delivered.
///
/// ```compile_fail,E0308
/// # use proto_spec::{Authorized, Fresh};
/// fn deliver(_: Authorized) {}
/// fn skips_the_last_check(envelope: Fresh) {
///     deliver(envelope);
/// }
/// ```
///
/// ```compile_fail,E0451
/// # use proto_spec::{Authorized, Caller, Envelope, PublicKey, Digest};
/// # use proto_spec::admission::Permit;
/// fn forge(envelope: Envelope, key: PublicKey, id: Digest, caller: Caller) -> Authorized {
///     Authorized { envelope, key, id, caller, permit: Permit::Own }
/// }
/// ```
#[derive(Debug)]
pub struct Authorized {
    envelope: Envelope,
    key: PublicKey,
    id: Digest,
    caller: Caller,
    permit: Permit,
}

impl Authorized {
    /// What it says.
    #[must_use]
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }
    /// Its identity: the SHA-256 of its signed bytes.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.id
    }
    /// Who said it.
    #[must_use]
    pub fn agent(&self) -> &AgentId {
        &self.caller.agent
    }
    /// Who said it, and who vouches for that name.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }
    /// The key that signed it.
    #[must_use]
    pub fn key(&self) -> &PublicKey {
        &self.key
    }
    /// What permitted it.
    #[must_use]
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Of a `rotateKey`: the new key, which has signed its consent to follow this one.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidBody`] where the `acceptKey` inside is not one, names another agent or another
    /// key, or is not of this time; [`Refusal::BadSignature`] where the new key did not sign it.
    pub fn successor(&self, judge: &Judge<'_>) -> Result<PublicKey, Refusal> {
        let body: message::RotateKey = self.envelope.read_body()?;
        let broker = self.envelope.to().ok_or(Refusal::WrongAudience(None))?;
        let agent = Speaker::Agent(self.agent().clone());
        let (key, at) = consent(body.accept, &agent, broker, &self.key)?;
        if judge.now.distance(at) > judge.skew {
            return Err(Refusal::InvalidBody("`accept` is not of this time".into()));
        }
        Ok(key)
    }
}

/// A key asks to become an agent: signed by the key it introduces, and fresh. It is not an
/// [`Authorized`] and fits only the registrar.
#[derive(Debug)]
pub struct Newcomer {
    agent: AgentId,
    request: message::RegisterAgent,
    older: Option<message::Older>,
    fresh: Fresh,
}

impl Newcomer {
    /// The name it asks for.
    #[must_use]
    pub fn agent(&self) -> &AgentId {
        &self.agent
    }
    /// What it asks for.
    #[must_use]
    pub fn request(&self) -> &message::RegisterAgent {
        &self.request
    }
    /// Of an older agent: what it tells of itself.
    #[must_use]
    pub fn older(&self) -> Option<&message::Older> {
        self.older.as_ref()
    }
    /// Its identity: the SHA-256 of its signed bytes.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.fresh.id
    }
}

/// A broker's word that was checked: signed by the broker of the agent's own organisation, for this
/// agent, and not expired.
#[derive(Debug, Clone)]
pub struct Vouched {
    credential: Credential,
    id: Digest,
    by: PublicKey,
}

impl Vouched {
    /// Checks a `credential` envelope against the broker's keys, which come from the agent's own
    /// configuration, or follow from there. `expires` is the broker's time: `now` is what the agent takes that to be, and
    /// `apart` how far it may be from the truth. What is wrongly taken for alive lets a key that was
    /// revoked answer for as much longer.
    ///
    /// # Errors
    ///
    /// [`Refusal::BadSignature`], [`Refusal::WrongAudience`], [`Refusal::UnknownType`], and
    /// [`Refusal::Stale`] when it has expired.
    pub fn check(
        bytes: Bytes,
        broker: &[PublicKey],
        me: &AgentId,
        now: Timestamp,
        apart: Duration,
    ) -> Result<Self, Refusal> {
        let said = BrokerSaid::check(Received::parse(bytes, ENVELOPE_BYTES_MAX)?, broker, me)?;
        if said.envelope.kind() != Kind::Credential {
            return Err(Refusal::UnknownType(said.envelope.kind().to_string()));
        }
        if said.envelope.to().is_none() {
            return Err(Refusal::WrongAudience(None));
        }
        let credential: Credential = said.envelope.read_body()?;
        if credential.expires > now.later(CREDENTIAL_VALIDITY + CLOCK_SKEW_MAX) {
            return Err(Refusal::InvalidBody(
                "a credential that holds for longer than five minutes".into(),
            ));
        }
        let vouched = Self {
            credential,
            id: said.id,
            by: said.by,
        };
        vouched.alive(now.earlier(apart))?;
        Ok(vouched)
    }

    /// Looks at its expiry, at every use.
    ///
    /// # Errors
    ///
    /// [`Refusal::Stale`] when it has expired.
    pub fn alive(&self, now: Timestamp) -> Result<(), Refusal> {
        let expires = self.credential.expires;
        if expires < now {
            return Err(Refusal::Stale(now.distance(expires), Duration::ZERO));
        }
        Ok(())
    }

    /// What the broker says.
    #[must_use]
    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    /// By which later deliveries refer to it.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.id
    }

    /// Which of the broker's keys signed it.
    #[must_use]
    pub fn by(&self) -> &PublicKey {
        &self.by
    }
}

impl KeyBook for Vouched {
    fn key_of(&self, speaker: &Speaker) -> Option<PublicKey> {
        (speaker.agent() == Some(&self.credential.subject)).then_some(self.credential.key)
    }
}

/// Something that the broker itself said to this agent, with its signature checked.
#[derive(Debug)]
pub struct BrokerSaid {
    envelope: Envelope,
    id: Digest,
    by: PublicKey,
}

impl BrokerSaid {
    /// Checks signature, speaker and audience. One of the keys `broker` has to have signed: an agent has
    /// more than one while its broker's key is being replaced. An answer to a sender that was not verified
    /// has no audience and passes too; whoever relies on it compares `re`.
    ///
    /// # Errors
    ///
    /// [`Refusal::BadSignature`] and [`Refusal::WrongAudience`].
    pub fn check(received: Received, broker: &[PublicKey], me: &AgentId) -> Result<Self, Refusal> {
        if *received.envelope.speaker() != Speaker::Broker(me.org().clone()) {
            return Err(Refusal::BadSignature);
        }
        let signed = |key: &PublicKey| Some((received.verify_with(*key).ok()?, *key));
        let (id, by) = broker
            .iter()
            .find_map(signed)
            .ok_or(Refusal::BadSignature)?;
        match received.envelope.to() {
            Some(Audience::Agent(agent)) if agent == me => {}
            None => {}
            other => return Err(Refusal::WrongAudience(other.cloned())),
        }
        Ok(Self {
            envelope: received.envelope,
            id,
            by,
        })
    }

    /// What it says.
    #[must_use]
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// Which of the broker's keys signed it.
    #[must_use]
    pub fn by(&self) -> &PublicKey {
        &self.by
    }
}

/// A provider's answer to a call, checked by its caller.
#[derive(Debug)]
pub struct Answer {
    envelope: Envelope,
    id: Digest,
}

impl Answer {
    /// Checks that this is the answer of `provider`, under the key that was certified for it, to the
    /// call `re`, for `me`.
    ///
    /// # Errors
    ///
    /// [`Refusal::BadSignature`], [`Refusal::WrongAudience`], [`Refusal::NoSuchCall`].
    pub fn check(
        received: Received,
        vouched: &Vouched,
        provider: &AgentId,
        me: &AgentId,
        re: &Digest,
    ) -> Result<Self, Refusal> {
        let verified = received.verify(vouched)?;
        let envelope = &verified.envelope;
        if envelope.speaker().agent() != Some(provider) {
            return Err(Refusal::BadSignature);
        }
        if *envelope.to().ok_or(Refusal::WrongAudience(None))? != Audience::Agent(me.clone()) {
            return Err(Refusal::WrongAudience(envelope.to().cloned()));
        }
        let is_answer = matches!(envelope.kind(), Kind::ToolResult | Kind::ToolProgress);
        if !is_answer || envelope.re() != Some(*re) {
            return Err(Refusal::NoSuchCall);
        }
        Ok(Self {
            envelope: verified.envelope,
            id: verified.id,
        })
    }

    /// Takes the broker's word for what an older agent answered to the call `re`, which nobody signed: for
    /// a caller that said that it does.
    ///
    /// # Errors
    ///
    /// [`Refusal::WrongAudience`], and [`Refusal::NoSuchCall`] where it is anything else.
    pub fn bridged(said: BrokerSaid, re: &Digest) -> Result<Self, Refusal> {
        let envelope = &said.envelope;
        if envelope.to().is_none() {
            return Err(Refusal::WrongAudience(None));
        }
        let is_answer = envelope.kind() == Kind::ToolResult && envelope.re() == Some(*re);
        if !is_answer || envelope.via() != Some(message::VIA_FEP) {
            return Err(Refusal::NoSuchCall);
        }
        Ok(Self {
            id: said.id,
            envelope: said.envelope,
        })
    }

    /// What it says.
    #[must_use]
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.id
    }
}
