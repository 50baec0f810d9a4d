//! Emitting events and listening to them.

use std::fmt::Display;

use proto_spec::message::{Ack, EmitEvent};
use proto_spec::{Audience, Capability, Kind, Pattern};
use serde::Serialize;
use serde_json::value::to_raw_value;

use super::{Agent, parsed, unexpected};
use crate::error::{Error, Result};
use crate::events::Subscription;

impl Agent {
    /// Tells whoever is subscribed that something happened.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where `topic` is none; [`Error::Refused`] without `event.emit.<topic>`.
    pub async fn emit(&self, topic: impl Display, data: &(impl Serialize + ?Sized)) -> Result<()> {
        let topic: Capability = parsed("topic", topic)?;
        let to = Audience::Topic(self.id().org().clone(), topic);
        let data = to_raw_value(data).map_err(|why| Error::Unsendable(why.to_string()))?;
        match self
            .request(Kind::EmitEvent, to, &EmitEvent { data: &data })
            .await?
        {
            Ack::Emitted => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Listens to topics: `build.done`, `build.*`. Goes on across lost sessions.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where a pattern is none; [`Error::Refused`] without
    /// `event.subscribe.<pattern>`; those of attaching.
    pub async fn subscribe(
        &self,
        topics: impl IntoIterator<Item = impl Display>,
    ) -> Result<Subscription> {
        let topics: Result<Vec<Pattern>> = topics
            .into_iter()
            .map(|topic| parsed("topic", topic))
            .collect();
        Subscription::begin(&self.inner.line, &self.inner.receivers.hearers, topics?).await
    }
}
