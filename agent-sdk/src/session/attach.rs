//! Taking a connection as this agent's session: challenge, `attach`, `ack`.

use std::time::Duration;

use bytes::Bytes;
use proto_spec::admission::BrokerSaid;
use proto_spec::limits::CLOCK_SKEW_MAX;
use proto_spec::message::{Ack, Attach, Challenge};
use proto_spec::{Digest, Kind, PublicKey, Timestamp};

use super::{Core, expect, refusal_in};
use crate::clock::Offset;
use crate::error::{Error, Result};
use crate::link::ws::{Sink, Source};
use crate::voice::Header;

/// What the broker said when it attached us.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// The organisation's token roots.
    pub(crate) roots: Vec<PublicKey>,
    /// Bytes of one envelope.
    pub(crate) envelope_bytes_max: usize,
    /// How far clocks may differ; never more than the protocol's own bound.
    pub(crate) skew: Duration,
    /// The broker's clock, as its `ack` showed it.
    pub(crate) broker_clock: Offset,
}

/// Challenge, `attach`, `ack`. The challenge is verified before we sign anything for this connection.
pub(super) async fn shake_hands(
    core: &Core,
    source: &mut Source,
    sink: &mut Sink,
    channel: Digest,
) -> Result<Terms> {
    let voice = &core.voice;
    let closed = || core.closed("the broker closed the connection before it was attached");
    let said = word(core, source.next().await.ok_or_else(closed)?).await?;
    let challenge: Challenge = expect(said.envelope(), Kind::Challenge)?;
    let body = Attach {
        challenge: challenge.challenge,
        channel,
    };
    let asked = voice.now();
    let attach = voice.say(Kind::Attach, voice.broker(), Header::default(), &body)?;
    sink.send(&core.link, attach.bytes).await?;
    let said = word(core, source.next().await.ok_or_else(closed)?).await?;
    let answered = voice.now();
    if said.envelope().re() != Some(attach.id) || said.envelope().to().is_none() {
        return Err(Error::Unexpected("something else than our `attach`".into()));
    }
    match expect(said.envelope(), Kind::Ack)? {
        Ack::Attached {
            roots,
            envelope_bytes_max,
            clock_skew_max_ms,
            successions,
            ..
        } => {
            core.broker.learn(&successions);
            let skew = Duration::from_millis(clock_skew_max_ms).min(CLOCK_SKEW_MAX);
            Ok(Terms {
                roots,
                envelope_bytes_max: usize::try_from(envelope_bytes_max).unwrap_or(usize::MAX),
                skew,
                broker_clock: broker_clock(said.envelope().ts(), asked, answered, skew)?,
            })
        }
        _ => Err(Error::Unexpected(
            "an `ack` of another kind to our `attach`".into(),
        )),
    }
}

/// The broker's clock, which it read between our question and its answer.
///
/// A broker whose clock is further from ours than it permits would have refused us. One that does not
/// lies about the time: then everything that it withheld so far would be of this time.
fn broker_clock(
    told: Timestamp,
    asked: Timestamp,
    answered: Timestamp,
    skew: Duration,
) -> Result<Offset> {
    let earliest = asked.min(answered).earlier(skew);
    let latest = answered.max(asked).later(skew);
    if (earliest..=latest).contains(&told) {
        Ok(Offset::of(told, answered))
    } else {
        let apart = told.distance(answered);
        Err(Error::Clocks { apart, most: skew })
    }
}

/// The broker's own word, where it is not a refusal.
async fn word(core: &Core, bytes: Bytes) -> Result<BrokerSaid> {
    let said = core.believe(bytes).await?;
    match refusal_in(said.envelope()) {
        Some(refused) => Err(refused),
        None => Ok(said),
    }
}
