//! A server that was greeted: which era of MCP it speaks, and what it says that it can.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::Mutex;

use super::client_info;
use super::connection::{Connection, Unanswered};
use super::desk::{Desk, House};
use super::listen::Subscribed;
use super::pool::NoServer;
use super::site::Site;
use super::stdio::Program;
use crate::mcp::rpc::{Id, Message, Object, RpcError, UNSUPPORTED_VERSION};
use crate::mcp::{LEGACY, MODERN};

/// How long a server may take to answer the first words: a cold interpreter takes seconds.
const GREETING_PATIENCE: Duration = Duration::from_secs(30);
/// After so much silence a server is taken for one that does not know `server/discover`.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Era {
    /// Every request stands for itself: 2026-07-28.
    Modern,
    /// Connections begin with `initialize`: up to 2025-11-25.
    Legacy,
}

/// Where a server is.
#[derive(Debug, Clone)]
pub enum Source {
    /// A program of this machine.
    Program(Program),
    /// A server that is reached by HTTP.
    Site(Site),
}

impl Source {
    /// The name of the box that it runs in, as grants demand it.
    pub(super) fn sandbox(&self) -> Option<&'static str> {
        match self {
            Self::Program(program) => program.sandbox(),
            Self::Site(_) => None,
        }
    }

    async fn connect(&self, house: &House) -> Result<Connection, String> {
        let desk = Arc::new(Desk::new(house.clone()));
        match self {
            Self::Program(program) => program.connect(desk).await,
            Self::Site(site) => Ok(site.connect(desk)),
        }
    }
}

/// A server that was greeted.
pub(super) struct Server {
    pub(super) connection: Connection,
    pub(super) era: Era,
    /// What it answered to `server/discover`, or would have.
    pub(super) discovered: Object,
    /// The level of log messages that it was last told, if it is one that is told.
    level: Mutex<Option<Box<str>>>,
    /// Of which resources a legacy one tells.
    pub(super) subscribed: Mutex<Subscribed>,
}

impl Server {
    /// Finds out which era a server is of, and greets it. `capabilities` are the client's: an object.
    ///
    /// A server's first words decide for its whole life, so whoever does not know the first question gets
    /// the second one on a connection of its own.
    ///
    /// # Errors
    ///
    /// Why there is no server that can be spoken to.
    pub(super) async fn meet(
        source: &Source,
        capabilities: &RawValue,
        house: &House,
    ) -> Result<Self, NoServer> {
        let connection = source.connect(house).await?;
        match discover(&connection, PROBE_PATIENCE).await {
            Ok(discovered) => Ok(Self::modern(connection, discovered)),
            Err(why @ NoServer::LoginNeeded(_)) => Err(why),
            Err(why) => {
                tracing::debug!(%why, "no server of 2026-07-28: asking in the older way");
                connection.end().await;
                let greeted = Self::greet(source, Era::Legacy, capabilities, house).await;
                greeted.map_err(|older| match (older, why) {
                    (NoServer::Silent(older), NoServer::Silent(why)) if older != why => {
                        format!("{older}; and before: {why}").into()
                    }
                    (older, _) => older,
                })
            }
        }
    }

    /// Greets a server whose era is known.
    ///
    /// # Errors
    ///
    /// Why there is no server that can be spoken to.
    pub(super) async fn greet(
        source: &Source,
        era: Era,
        capabilities: &RawValue,
        house: &House,
    ) -> Result<Self, NoServer> {
        let connection = source.connect(house).await?;
        let greeted = match era {
            Era::Modern => discover(&connection, GREETING_PATIENCE)
                .await
                .map(|discovered| Self::modern(connection.clone(), discovered)),
            Era::Legacy => initialize(connection.clone(), capabilities).await,
        };
        match greeted {
            Ok(server) => Ok(server),
            Err(why) => {
                connection.end().await;
                Err(why)
            }
        }
    }

    fn modern(connection: Connection, discovered: Object) -> Self {
        Self {
            connection,
            era: Era::Modern,
            discovered,
            level: Mutex::default(),
            subscribed: Mutex::default(),
        }
    }

    /// What it says that it can.
    pub(super) fn capabilities(&self) -> Object {
        self.discovered.object("capabilities").unwrap_or_default()
    }

    /// Has a legacy server log from `level` on. One that does not log is not told.
    pub(super) async fn log_from(&self, level: &str, patience: Duration) {
        if self.era == Era::Modern || !self.capabilities().has("logging") {
            return;
        }
        let mut told = self.level.lock().await;
        if told.as_deref() == Some(level) {
            return;
        }
        let mut params = Object::default();
        params.put("level", level);
        let set = self.connection.ask("logging/setLevel", params, patience);
        match set.await {
            Ok(_) => *told = Some(level.into()),
            Err(why) => tracing::debug!(%why, "the level of log messages was not set"),
        }
    }
}

/// Asks what a server of 2026-07-28 can. Where it refuses the revision, and then names it among those that it
/// speaks, it is taken at its word once.
async fn discover(connection: &Connection, patience: Duration) -> Result<Object, NoServer> {
    let asked = || connection.ask("server/discover", discovery(), patience);
    let answer = match asked().await {
        Err(Unanswered::Refused(why)) if names_ours(&why) => asked().await,
        answer => answer,
    };
    let discovered = Object::parse(answer?.get()).map_err(|why| why.to_string())?;
    let versions: Vec<String> = discovered.read("supportedVersions").unwrap_or_default();
    match versions.iter().any(|version| version == MODERN) {
        true => Ok(discovered),
        false => Err(format!("it speaks {versions:?}").into()),
    }
}

/// The question by which a server is known, as one message.
pub(crate) fn discovery_message() -> String {
    let message = Message::Request {
        id: Id::number(1),
        method: "server/discover".into(),
        params: discovery(),
    };
    message.line()
}

fn discovery() -> Object {
    let mut meta = Object::default();
    meta.put("io.modelcontextprotocol/protocolVersion", MODERN);
    meta.set("io.modelcontextprotocol/clientInfo", client_info());
    meta.set(
        "io.modelcontextprotocol/clientCapabilities",
        Object::default().raw(),
    );
    let mut params = Object::default();
    params.put("_meta", &meta);
    params
}

/// Whether a refusal of the revision names it among those that are spoken.
fn names_ours(why: &RpcError) -> bool {
    let data = why
        .data
        .as_ref()
        .filter(|_| why.code == UNSUPPORTED_VERSION);
    let data = data.and_then(|raw| Object::parse(raw.get()).ok());
    let supported: Option<Vec<String>> = data.and_then(|data| data.read("supported"));
    supported.is_some_and(|all| all.iter().any(|version| version == MODERN))
}

/// The older greeting.
async fn initialize(connection: Connection, capabilities: &RawValue) -> Result<Server, NoServer> {
    let mut params = Object::default();
    params.put("protocolVersion", LEGACY[0]);
    params.set("capabilities", capabilities.to_owned());
    params.set("clientInfo", client_info());
    let answer = connection.ask("initialize", params, GREETING_PATIENCE);
    let answer = answer.await.map_err(|why| match why {
        Unanswered::Refused(error) => format!("it refuses to be greeted: {error}").into(),
        other => NoServer::from(other),
    })?;
    let mut result = Object::parse(answer.get()).map_err(|why| why.to_string())?;
    let version: String = result.read("protocolVersion").unwrap_or_default();
    if !LEGACY.contains(&version.as_str()) {
        let why = format!("it wants to speak {version:.32?}, which is no revision known here");
        return Err(why.into());
    }
    if result.object("capabilities").is_none() {
        return Err("its answer to `initialize` names no capabilities"
            .to_owned()
            .into());
    }
    connection.notify("notifications/initialized").await;
    Ok(Server {
        connection,
        era: Era::Legacy,
        discovered: as_discovered(&mut result),
        level: Mutex::default(),
        subscribed: Mutex::default(),
    })
}

/// What an `InitializeResult` would have been as the answer to `server/discover`. Tasks of 2025-11-25 are
/// not those of the extension, and are not told of.
fn as_discovered(result: &mut Object) -> Object {
    let mut capabilities = result.object("capabilities").unwrap_or_default();
    capabilities.take("tasks");
    let mut meta = result.object("_meta").unwrap_or_default();
    if let Some(info) = result.take("serverInfo") {
        meta.set("io.modelcontextprotocol/serverInfo", info);
    }
    let mut discovered = Object::default();
    discovered.put("resultType", "complete");
    discovered.put("supportedVersions", &[MODERN]);
    discovered.put("capabilities", &capabilities);
    if let Some(instructions) = result.take("instructions") {
        discovered.set("instructions", instructions);
    }
    discovered.put("ttlMs", &0);
    discovered.put("cacheScope", "private");
    discovered.put("_meta", &meta);
    discovered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_greeting_is_told_as_discovery_with_all_that_it_says() {
        let text = r#"{"protocolVersion":"2025-06-18","capabilities":{"tools":{"listChanged":true},"x":{"a":1},"tasks":{}},"serverInfo":{"name":"n","version":"1","new":[1]},"instructions":"i"}"#;
        let told = as_discovered(&mut Object::parse(text).unwrap());
        assert_eq!(
            told.raw().get(),
            r#"{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{"listChanged":true},"x":{"a":1}},"instructions":"i","ttlMs":0,"cacheScope":"private","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"n","version":"1","new":[1]}}}"#
        );
    }
}
