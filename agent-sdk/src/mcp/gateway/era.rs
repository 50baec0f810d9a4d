//! Which revisions of MCP are spoken, and what a client says of itself.

use serde_json::value::RawValue;

use super::fault::Fault;
use crate::mcp::rpc::{INVALID_PARAMS, Object, RpcError, UNSUPPORTED_VERSION};
pub(super) use crate::mcp::{LEGACY, MODERN};

/// Where a request's `_meta` says in which revision it is.
pub(super) const VERSION_KEY: &str = "io.modelcontextprotocol/protocolVersion";
/// Which software the client is.
pub(super) const INFO_KEY: &str = "io.modelcontextprotocol/clientInfo";
/// What it can do.
pub(super) const CAPABILITIES_KEY: &str = "io.modelcontextprotocol/clientCapabilities";
/// Which log messages it wants; none where it is absent.
pub(super) const LEVEL_KEY: &str = "io.modelcontextprotocol/logLevel";
/// Which subscription a notification belongs to.
pub(super) const SUBSCRIPTION_KEY: &str = "io.modelcontextprotocol/subscriptionId";
/// Which software answered.
pub(super) const SERVER_KEY: &str = "io.modelcontextprotocol/serverInfo";
/// The extension for tools that go on when their call is answered.
pub(super) const TASKS: &str = "io.modelcontextprotocol/tasks";

/// Bytes of what a client may say of itself: it goes along with every question to an agent.
pub(super) const SAID_BYTES_MAX: usize = 2 << 10;

/// The newest revision first.
pub(super) fn supported() -> Vec<&'static str> {
    std::iter::once(MODERN).chain(LEGACY).collect()
}

/// How a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Era {
    /// Every request stands for itself.
    Modern,
    /// It began with `initialize`.
    Legacy,
}

/// What a client says of itself. Nothing of it is proven, and nothing is decided by it but what it can be asked.
#[derive(Debug, Clone)]
pub(super) struct Client {
    /// How it speaks.
    pub(super) era: Era,
    /// Which software it is.
    pub(super) info: Option<Box<RawValue>>,
    /// What it can be asked.
    pub(super) capabilities: Object,
}

impl Client {
    /// As a request's `_meta` says.
    ///
    /// # Errors
    ///
    /// `-32602` where it does not say in which revision it is, or what the client can do, or says more of it than
    /// [`SAID_BYTES_MAX`]; [`UNSUPPORTED_VERSION`].
    pub(super) fn of_request(params: &Object) -> Result<Self, Fault> {
        let missing = |what: &str| {
            let error = RpcError::new(INVALID_PARAMS, format!("`_meta` does not say `{what}`"));
            Fault::bad_request(error)
        };
        let meta = params.object("_meta").ok_or_else(|| missing(VERSION_KEY))?;
        let version: String = meta.read(VERSION_KEY).ok_or_else(|| missing(VERSION_KEY))?;
        if version != MODERN {
            return Err(unsupported(&version));
        }
        let capabilities = meta
            .object(CAPABILITIES_KEY)
            .ok_or_else(|| missing(CAPABILITIES_KEY))?;
        let client = Self {
            era: Era::Modern,
            info: meta.get(INFO_KEY).map(ToOwned::to_owned),
            capabilities,
        };
        client.check_size().map_err(Fault::bad_request)?;
        Ok(client)
    }

    /// # Errors
    ///
    /// `-32602` where it says more of itself than [`SAID_BYTES_MAX`].
    pub(super) fn check_size(&self) -> Result<(), RpcError> {
        let info = self.info.as_ref().map_or(0, |info| info.get().len());
        match info + self.capabilities.raw().get().len() <= SAID_BYTES_MAX {
            true => Ok(()),
            false => Err(RpcError::new(
                INVALID_PARAMS,
                format!(
                    "a client says {SAID_BYTES_MAX} bytes of itself and its capabilities at most"
                ),
            )),
        }
    }

    /// Whether it can be asked `method`.
    pub(super) fn answers(&self, method: &str) -> bool {
        let capability = match method {
            "elicitation/create" => "elicitation",
            "sampling/createMessage" => "sampling",
            "roots/list" => "roots",
            _ => return false,
        };
        self.capabilities.has(capability)
    }

    /// The `_meta` of a request to a server, which speaks as the modern do: what the client sent, and
    /// for a legacy client what it said when it began. `level` is which log messages it wants.
    pub(super) fn meta(&self, sent: Option<Object>, level: Option<&str>) -> Object {
        let mut meta = sent.unwrap_or_default();
        if self.era == Era::Modern {
            return meta;
        }
        meta.put(VERSION_KEY, MODERN);
        if let Some(info) = &self.info {
            meta.set(INFO_KEY, info.clone());
        }
        meta.put(CAPABILITIES_KEY, &self.capabilities);
        match level {
            Some(level) => meta.put(LEVEL_KEY, level),
            None => drop(meta.take(LEVEL_KEY)),
        }
        meta
    }
}

/// No revision of this name is spoken here.
pub(super) fn unsupported(version: &str) -> Fault {
    let data = serde_json::json!({"supported": supported(), "requested": version});
    RpcError::new(
        UNSUPPORTED_VERSION,
        "this revision of MCP is not spoken here",
    )
    .with(&data)
    .into()
}

/// The revision in which a session is held, where the client asks for `wanted`.
pub(super) fn negotiated(wanted: &str) -> &'static str {
    LEGACY
        .into_iter()
        .find(|version| *version == wanted)
        .unwrap_or(LEGACY[0])
}
