//! Becoming an agent, and staying one under a new key.

use std::time::Duration;

use proto_spec::message::{Ack, RegisterAgent, RotateKey};
use proto_spec::succession::accept;
use proto_spec::{Kind, Pattern, Speaker};

use super::{Agent, unexpected};
use crate::error::{Error, Result};
use crate::keyfile::Key;
use crate::link::backoff::Backoff;

/// Between two questions whether an admin has decided.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// What an agent asks for when it registers. It is a request: an admin, or the enrolment token,
/// decides what of it is granted.
#[derive(Debug, Clone, Default)]
pub struct RegisterOptions {
    /// What it would like to be granted.
    pub capabilities: Vec<Pattern>,
    /// Under which it would like to offer tools; its own name when empty.
    pub prefixes: Vec<Pattern>,
    /// An enrolment token (base64url), which decides at once.
    pub enrolment: Option<String>,
    /// For the admin who decides; at most 256 characters.
    pub note: Option<String>,
}

/// What came of registering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registration {
    /// An admin has to decide. Tell them the key's fingerprint, and ask again.
    Pending,
    /// This name and key are an agent.
    Registered {
        /// What it is granted on record.
        capabilities: Vec<Pattern>,
        /// Under which it may offer tools.
        prefixes: Vec<Pattern>,
    },
}

impl Agent {
    /// Asks to become an agent, or whether it is one: asking again changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with `DENIED` where an admin said no, and those of [`Agent::request`].
    pub async fn register(&self, options: RegisterOptions) -> Result<Registration> {
        let body = RegisterAgent {
            pubkey: self.public_key(),
            capabilities: options.capabilities,
            prefixes: options.prefixes,
            enrolment: options.enrolment,
            note: options.note,
        };
        match self
            .request(Kind::RegisterAgent, self.broker().clone(), &body)
            .await?
        {
            Ack::Pending => Ok(Registration::Pending),
            Ack::Registered {
                capabilities,
                prefixes,
            } => Ok(Registration::Registered {
                capabilities,
                prefixes,
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// Registers, and waits until an admin has decided, through lost connections too. Give it a
    /// deadline with `tokio::time::timeout` where nobody may come.
    ///
    /// # Errors
    ///
    /// What no waiting mends.
    pub async fn register_and_wait(&self, options: RegisterOptions) -> Result<Registration> {
        let clock = self.inner.core.voice.clock();
        let mut backoff = Backoff::default();
        loop {
            match self.register(options.clone()).await {
                Ok(Registration::Pending) => clock.sleep(ASK_AGAIN).await,
                // Registering twice is registering once, so a lost answer is asked for again.
                Err(why) if why.is_retryable() || matches!(why, Error::OutcomeUnknown(_)) => {
                    tracing::warn!(%why, "registering again");
                    clock
                        .sleep(backoff.failed(getrandom::u64().unwrap_or(u64::MAX)))
                        .await;
                }
                decided => return decided,
            }
        }
    }

    /// Makes `new` this agent's key: the old one signs this, the new one agrees, and from the
    /// broker's answer on only the new one is this agent. Save `new` first, and go on with an
    /// [`Agent`] that has it.
    ///
    /// # Errors
    ///
    /// Those of [`Agent::request`]. Where the outcome is unknown, `register` with either key tells.
    pub async fn rotate_key(&self, new: &Key) -> Result<()> {
        let voice = &self.inner.core.voice;
        let mut nonce = [0_u8; 16];
        getrandom::fill(&mut nonce)
            .map_err(|why| Error::Unsendable(format!("no randomness from the system: {why}")))?;
        let accept = accept(
            &Speaker::Agent(self.id().clone()),
            self.broker(),
            new.signing(),
            self.public_key(),
            &format!("{:032x}", u128::from_be_bytes(nonce)),
            voice.now(),
        )
        .map_err(|why| Error::Unsendable(why.to_string()))?;
        match self
            .request(
                Kind::RotateKey,
                self.broker().clone(),
                &RotateKey { accept },
            )
            .await?
        {
            Ack::Rotated { key } if key == new.public() => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}
