//! One question and its answer by POST: whose words came back, and whether they prove it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use proto_spec::admission::{Answer, BrokerSaid};
use proto_spec::limits::ENVELOPE_BYTES_MAX;
use proto_spec::{Envelope, Kind, Received, Refusal, Sealed, Speaker};

use crate::call::Answerer;
use crate::error::{Error, Result};
use crate::link::http::{Posted, Poster};
use crate::session::{Core, refusal_in};

/// What a POST brought.
pub(crate) enum Reply {
    /// The broker's own word; not an `error`.
    Word(Envelope),
    /// The provider's answer to a call.
    Answer(Answer),
}

/// Posts `envelope`; `answerer` is who may answer a call.
///
/// # Errors
///
/// [`Error::Refused`], those of [`Poster::post`], and [`Error::NotTheBroker`] or [`Error::Unproven`]
/// for an answer that does not prove itself.
pub(crate) async fn exchange(
    core: &Core,
    poster: &Poster,
    envelope: Sealed,
    answerer: Option<&Answerer>,
) -> Result<Reply> {
    let posted = poster.post(&core.link, envelope.bytes.clone()).await?;
    read(core, posted, &envelope, answerer).await
}

async fn read(
    core: &Core,
    posted: Posted,
    asked: &Sealed,
    answerer: Option<&Answerer>,
) -> Result<Reply> {
    let no_envelope = |why: Refusal| {
        Error::OutcomeUnknown(format!("HTTP {} and no envelope ({why})", posted.status))
    };
    let received = Received::parse(posted.body.clone(), ENVELOPE_BYTES_MAX).map_err(no_envelope)?;
    match (received.envelope().speaker(), answerer) {
        (Speaker::Agent(_), Some(Answerer { provider, .. })) => {
            let unproven = |why| Error::Unproven {
                from: provider.to_string(),
                why,
            };
            let vouched = match credential(posted.credential) {
                Ok(credential) => core.vouched(credential).await?,
                Err(why) => Err(why),
            };
            vouched
                .and_then(|vouched| {
                    Answer::check(received, &vouched, provider, core.voice.id(), &asked.id)
                })
                .map(Reply::Answer)
                .map_err(unproven)
        }
        (_, Some(answerer)) => {
            let said = word(core, posted.body, asked).await?;
            answerer.word(said, &asked.id).map(Reply::Answer)
        }
        _ => {
            let said = word(core, posted.body, asked).await?;
            Ok(Reply::Word(said.envelope().clone()))
        }
    }
}

async fn word(core: &Core, body: Bytes, asked: &Sealed) -> Result<BrokerSaid> {
    let said = core.believe(body).await?;
    let envelope = said.envelope();
    // A broker that could not verify us answers nobody in particular, and only with a refusal.
    let stranger = envelope.kind() == Kind::Error && envelope.to().is_none();
    if !stranger && (envelope.re() != Some(asked.id) || envelope.to().is_none()) {
        let why = Refusal::NoSuchCall;
        return Err(Error::Unproven {
            from: core.voice.broker().to_string(),
            why,
        });
    }
    match refusal_in(envelope) {
        Some(refused) => Err(refused),
        None => Ok(said),
    }
}

/// The broker's word for the provider, as the header carries it.
fn credential(header: Option<String>) -> Result<Bytes, Refusal> {
    let text = header.ok_or(Refusal::MissingMember("FEM-Credential"))?;
    let bytes = URL_SAFE_NO_PAD.decode(text);
    bytes
        .map(Bytes::from)
        .map_err(|_| Refusal::BadMember("FEM-Credential", "base64url"))
}
