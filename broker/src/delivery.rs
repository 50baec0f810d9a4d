//! Getting an envelope to a session: the frame, and the broker's word for who speaks.

use bytes::Bytes;
use proto_spec::admission::Permit;
use proto_spec::frame::{Frame, Relay, Vouching};
use proto_spec::limits::CREDENTIAL_VALIDITY;
use proto_spec::message::{Basis, Credential, CredentialPermit, Tool};
use proto_spec::{AgentId, Audience, Authorized, Kind, Refusal, Sealed, Timestamp};

use crate::state::State;
use crate::state::registry::grant_id;
use crate::state::sessions::{CredentialKey, Session, trim};
use crate::voice::Voice;

/// A credential is sent anew when less than this is left of it: it must still hold on arrival.
const RENEW_BEFORE: std::time::Duration = std::time::Duration::from_secs(60);

/// Queues an envelope for a session, with a credential for its sender: in full the first time on a
/// connection and when it is about to expire, else by its identity.
///
/// # Errors
///
/// [`Refusal::Busy`] when the session's queue is full; nothing was queued.
pub fn deliver(
    voice: &Voice,
    session: &Session,
    about: CredentialKey,
    permit: impl FnOnce() -> Option<CredentialPermit>,
    envelope: &Bytes,
    now: Timestamp,
) -> Result<(), Refusal> {
    // Decided and queued under one lock: a frame that names a credential never overtakes the frame
    // that carries it.
    session.with_credentials(|known| {
        if let Some((id, expires)) = known.get(&about)
            && *expires > now.later(RENEW_BEFORE)
        {
            let vouching = Vouching::Known(*id);
            return session.send(
                Frame {
                    vouching,
                    envelope: envelope.clone(),
                }
                .encode(),
            );
        }
        let sealed = vouch(
            voice,
            &session.agent().clone().into(),
            &about,
            permit(),
            now,
        );
        let vouching = Vouching::Full(sealed.bytes);
        session.send(
            Frame {
                vouching,
                envelope: envelope.clone(),
            }
            .encode(),
        )?;
        known.put(about, (sealed.id, now.later(CREDENTIAL_VALIDITY)));
        trim(known);
        Ok(())
    })
}

/// Signs the broker's word for a sender.
#[must_use]
pub fn vouch(
    voice: &Voice,
    to: &Audience,
    about: &CredentialKey,
    permit: Option<CredentialPermit>,
    now: Timestamp,
) -> Sealed {
    let credential = Credential {
        subject: about.subject.clone(),
        key: about.key,
        expires: now.later(CREDENTIAL_VALIDITY),
        permit,
    };
    voice.say(Kind::Credential, Some(to), None, &credential, now)
}

/// What a credential for a call is about.
#[must_use]
pub fn about_call(call: &Authorized, tool: &Tool) -> CredentialKey {
    let (basis, grant, trust) = match call.permit() {
        Permit::Held {
            token,
            basis,
            trust,
            ..
        } => (*basis, token.as_deref().map(grant_id), *trust),
        _ => (Basis::Record, None, None),
    };
    CredentialKey {
        subject: call.agent().clone(),
        key: *call.key(),
        call: Some((
            tool.name.clone(),
            tool.required().clone(),
            basis,
            grant,
            trust,
            call.envelope().is_older(),
        )),
    }
}

/// What a credential for anything but a call is about.
#[must_use]
pub fn about_sender(sender: &Authorized) -> CredentialKey {
    CredentialKey {
        subject: sender.agent().clone(),
        key: *sender.key(),
        call: None,
    }
}

/// What permitted a call, as its provider is told.
#[must_use]
pub fn permit_of(
    call: &Authorized,
    provider: &AgentId,
    tool: &Tool,
    state: &State,
) -> Option<CredentialPermit> {
    let Permit::Held {
        token,
        basis,
        relayed,
        trust,
        ..
    } = call.permit()
    else {
        return None;
    };
    let token = token.as_deref();
    let grant = match basis {
        Basis::Record => token.and_then(|token| state.registry.grant_text(&grant_id(token))),
        Basis::Token => None,
        Basis::Peer => relayed.clone(),
    };
    Some(CredentialPermit {
        provider: provider.clone(),
        tool: tool.name.clone(),
        capability: tool.required().clone(),
        basis: *basis,
        trust: *trust,
        grant: grant.map(|text| text.to_string()),
        sandbox: token.and_then(|token| token.sandbox().map(str::to_owned)),
        older: call.envelope().is_older(),
    })
}

/// An agent's envelope on its way to the next broker, which knows the call that it is about.
#[must_use]
pub fn relay(envelope: &Bytes) -> Bytes {
    Relay {
        envelope: envelope.clone(),
        ..Relay::default()
    }
    .encode()
}
