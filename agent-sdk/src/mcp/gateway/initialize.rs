//! How a legacy session begins.

use super::era::{Client, Era, SERVER_KEY, negotiated};
use super::fault::Fault;
use super::guest::{Guest, required};
use super::session::Session;
use crate::mcp::rpc::Object;

/// The session that these parameters of `initialize` ask for.
///
/// # Errors
///
/// `-32602` where they do not say a revision.
pub(super) fn session(params: &Object) -> Result<Session, Fault> {
    let wanted: String = required(params, "protocolVersion")?;
    Ok(Session {
        version: negotiated(&wanted).to_owned(),
        client: Client {
            era: Era::Legacy,
            info: params.get("clientInfo").map(ToOwned::to_owned),
            capabilities: params.object("capabilities").unwrap_or_default(),
        },
    })
}

/// What `initialize` is answered with: what `server/discover` says, in the words of its time.
///
/// # Errors
///
/// Where it cannot be found out what the caller may call.
pub(super) async fn result(guest: &Guest, version: &str) -> Result<Object, Fault> {
    let mut told = guest.discover().await?;
    let mut meta = told.object("_meta").unwrap_or_default();
    let server = meta.take(SERVER_KEY).unwrap_or_else(|| {
        let mut unnamed = Object::default();
        unnamed.put("name", "fem");
        unnamed.put("version", env!("CARGO_PKG_VERSION"));
        unnamed.raw()
    });
    let mut result = Object::default();
    result.put("protocolVersion", version);
    if let Some(capabilities) = told.take("capabilities") {
        result.set("capabilities", capabilities);
    }
    result.set("serverInfo", server);
    if let Some(instructions) = told.take("instructions") {
        result.set("instructions", instructions);
    }
    if !meta.is_empty() {
        result.put("_meta", &meta);
    }
    Ok(result)
}
