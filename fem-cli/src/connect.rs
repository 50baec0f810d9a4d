//! From a chosen context to an agent that can speak to its broker.

use std::path::{Path, PathBuf};

use agent_sdk::{Agent, Builder, Config, Error, Key, NewBrokerKey};
use proto_spec::{Code, PublicKey};

use crate::context::{self, Context};
use crate::failure::{Exit, Failure, Outcome};
use crate::files::quoted;
use crate::output::note;

/// What the command line says about which broker, and as whom.
///
/// `--context` is the whole answer. Without it the context comes from `FEM_CONTEXT` or is the current
/// one, and what stands in the environment (`FEM_AGENT`, `FEM_BROKER`, …) takes the place of what the
/// context says, as for every agent.
#[derive(Debug)]
pub(crate) struct Chosen {
    flag: Option<String>,
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Chosen {
    pub(crate) fn new(flag: Option<String>) -> Self {
        Self { flag }
    }

    /// The context that was named on the command line.
    pub(crate) fn name(&self) -> Option<&str> {
        self.flag.as_deref()
    }

    /// The context file, if one is chosen in any way.
    pub(crate) fn file(&self) -> Outcome<PathBuf> {
        let named = self.flag.clone().or_else(|| env("FEM_CONTEXT"));
        context::find(named.as_deref())
    }

    /// The context, with nothing of the environment in it.
    pub(crate) fn context(&self) -> Outcome<Context> {
        Context::load(&self.file()?)
    }

    /// What the agent runs with.
    pub(crate) fn config(&self) -> Outcome<Config> {
        if self.flag.is_some() {
            return configure(&self.context()?);
        }
        let mut builder = match self.context() {
            Ok(context) => from_context(&context),
            // The environment may say it all.
            Err(_) if env("FEM_CONTEXT").is_none() && env("FEM_BROKER").is_some() => {
                Config::builder()
            }
            Err(failure) => return Err(failure),
        };
        let over = [
            (
                "FEM_AGENT",
                (|builder, agent| builder.agent(agent)) as fn(Builder, String) -> Builder,
            ),
            ("FEM_BROKER", |builder, url| builder.broker(url)),
            ("FEM_BROKER_KEY", |builder, key| builder.broker_key(key)),
            ("FEM_CA_FILE", |builder, file| builder.ca_file(file)),
            ("FEM_KEY_FILE", |builder, file| builder.key_file(file)),
            ("FEM_KEY_PASSPHRASE_FILE", |builder, file| {
                builder.passphrase_file(file)
            }),
        ];
        for (name, set) in over {
            if let Some(value) = env(name) {
                builder = set(builder, value);
            }
        }
        if env("FEM_AGENT_PRIVATE_KEY").is_some() {
            builder = builder.key(Key::from_env()?);
        }
        Ok(builder.build()?)
    }

    /// An agent that can speak to its broker. Its context follows the broker's key.
    pub(crate) fn agent(&self) -> Outcome<Agent> {
        Ok(Agent::new(keeping(self.config()?, self.file().ok()))?)
    }
}

/// An agent by `context` alone, which stands in `file` and follows the broker's key there.
pub(crate) fn agent_of(context: &Context, file: &Path) -> Outcome<Agent> {
    Ok(Agent::new(keeping(configure(context)?, Some(file.into())))?)
}

/// Has the context file, if there is one, name the key that followed the broker's, and says so in a line.
fn keeping(config: Config, file: Option<PathBuf>) -> Config {
    config.on_broker_key(move |NewBrokerKey { old, new }| {
        let event = "The broker goes on under another key, which the one before names";
        let by_hand = format!("{event}. Keep it yourself: broker_key = \"{new}\"");
        note(
            &match file.as_deref().map(|file| (file, follow(file, &old, &new))) {
                Some((file, Ok(true))) => {
                    format!("{event}; {} has it: {}", quoted(file), new.fingerprint())
                }
                Some((_, Err(failure))) => format!("{by_hand} ({failure})"),
                Some((_, Ok(false))) | None => by_hand,
            },
        );
    })
}

/// Puts `new` in the place of `old` in a context file; says whether it names `new` then. Where the
/// environment named the key, the file may say something else.
fn follow(file: &Path, old: &PublicKey, new: &PublicKey) -> Outcome<bool> {
    let context = Context::load(file)?;
    if context.broker_key != *old {
        return Ok(context.broker_key == *new);
    }
    let followed = Context {
        broker_key: *new,
        ..context
    };
    followed.replace(file).map(|()| true)
}

/// What an agent runs with by `context` alone.
pub(crate) fn configure(context: &Context) -> Outcome<Config> {
    Ok(from_context(context).build()?)
}

fn from_context(context: &Context) -> Builder {
    let mut builder = Config::builder()
        .broker(context.broker.clone())
        .broker_key(context.broker_key.to_string());
    if let Some(agent) = &context.agent {
        builder = builder.agent(agent.to_string());
    }
    if let Some(path) = &context.ca_file {
        builder = builder.ca_file(path);
    }
    if let Some(path) = &context.key_file {
        builder = builder.key_file(path);
    }
    if let Some(path) = &context.passphrase_file {
        builder = builder.passphrase_file(path);
    }
    builder
}

/// The SDK's messages say what to do next themselves.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let exit = match &error {
            Error::Refused { code, message, .. } => {
                let refused = Self::refused(*code, message.clone());
                return match next_after(*code) {
                    Some(next) => refused.or_next(next),
                    None => refused,
                };
            }
            Error::Unreachable { .. } | Error::Tls { .. } | Error::NotTheBroker { .. } => {
                Exit::Unreachable
            }
            Error::Tool { .. } => Exit::ToolFailed,
            Error::OutcomeUnknown(_) | Error::Deadline(_) | Error::Unproven { .. } => Exit::Unknown,
            _ => Exit::Fault,
        };
        Self::new(exit, message)
    }
}

/// What a person at a terminal can do about a refusal.
fn next_after(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::NotAuthentic => {
            "is this key registered under this name? `fem-cli agent register NAME` asks, an admin approves"
        }
        Code::Denied => {
            "ask an admin for the capability; `fem-cli tools` lists what may be called with this context"
        }
        Code::Stale => "set this machine's clock; `fem-cli doctor` compares it with the broker's",
        Code::Unavailable => "start the provider, then call again",
        Code::Busy => "try again a little later",
        Code::WrongAudience => "compare the organisation in the context with the broker's",
        Code::TokenExpired | Code::TokenRevoked => "ask whoever gave the token for a new one",
        Code::NotHolder => {
            "a token is used with the key that holds it: see `fem-cli token inspect FILE`"
        }
        Code::NotFound => {
            "look at `fem-cli agent list`, `fem-cli token list` and `fem-cli peer list`"
        }
        Code::Deadline => "give the call a longer --deadline, or look at the provider",
        Code::RevocationsStale => {
            "try again a little later; `fem-cli peer doctor ORG` says how the link is"
        }
        Code::OutcomeUnknown => "it may or may not have happened: look before you repeat it",
        // The broker's words say it all.
        _ => return None,
    })
}
