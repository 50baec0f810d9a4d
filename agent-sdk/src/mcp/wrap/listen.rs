//! `subscriptions/listen` on a legacy server: what its connections say about no request, as one call.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use proto_spec::limits::SUBSCRIPTIONS_MAX;
use serde_json::value::RawValue;
use tokio::sync::broadcast::error::RecvError;

use super::connection::Unanswered;
use super::desk::{News, SUBSCRIPTION};
use super::pool::Key;
use super::relay::{lost, mcp_error, no_server, pass_on};
use super::server::Server;
use super::{ASK_PATIENCE, Inner};
use crate::incoming::Call;
use crate::mcp::rpc::{INVALID_PARAMS, Object, RpcError};
use crate::tool::{INVALID_ARGUMENTS, ToolError};

/// What can be listened to, by the capability that says so and the notification that it is.
const LISTS: [(&str, &str, &str); 3] = [
    (
        "toolsListChanged",
        "tools",
        "notifications/tools/list_changed",
    ),
    (
        "promptsListChanged",
        "prompts",
        "notifications/prompts/list_changed",
    ),
    (
        "resourcesListChanged",
        "resources",
        "notifications/resources/list_changed",
    ),
];
const UPDATED: &str = "notifications/resources/updated";

/// What one caller listens to.
#[derive(Default)]
struct Heed {
    lists: Vec<&'static str>,
    uris: Vec<String>,
}

/// Listens until the caller no longer does. What the server cannot tell is not acknowledged.
///
/// # Errors
///
/// Where it names no notifications, or more resources than one may listen to; or the server is gone.
pub(super) async fn listen(
    inner: &Inner,
    key: &Key,
    params: &Object,
    call: &mut Call,
) -> Result<Box<RawValue>, ToolError> {
    let wanted = params.object("notifications").ok_or_else(|| {
        mcp_error(&RpcError::new(
            INVALID_PARAMS,
            "`notifications` says to what",
        ))
    })?;
    let heed = Heed::of(&wanted, &inner.capabilities());
    if heed.uris.len() > SUBSCRIPTIONS_MAX {
        let why = format!("at most {SUBSCRIPTIONS_MAX} resources");
        return Err(ToolError::new(INVALID_ARGUMENTS, why));
    }
    let senders = (inner.pool.news(&key.owner), inner.pool.news(""));
    // The server as a whole is looked at on a connection that is nobody's.
    let mut own = senders.0.subscribe();
    let mut common = senders.1.subscribe();
    let _subscriptions = match heed.uris.is_empty() {
        true => Vec::new(),
        false => {
            let lease = inner.pool.take(key, false).await;
            drop(lease.map_err(|why| no_server(&why))?);
            subscribe(inner, key, &heed.uris).await?
        }
    };
    let id = call.id().to_string();
    say(
        call,
        &id,
        "notifications/subscriptions/acknowledged",
        heed.acknowledged(),
    )
    .await;
    loop {
        let news = tokio::select! {
            news = own.recv() => news,
            news = common.recv(), if !key.owner.is_empty() => {
                news.map(|news| if news.method == UPDATED { News::nothing() } else { news })
            }
        };
        match news {
            Ok(News { method, params }) if heed.is_about(&method, &params) => {
                say(call, &id, &method, params).await;
            }
            Ok(_) => {}
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(
                    missed,
                    "notifications came faster than they could go on, and were dropped"
                );
            }
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Has the owner's connections tell of these resources, while what this gives is held.
async fn subscribe(
    inner: &Inner,
    key: &Key,
    uris: &[String],
) -> Result<Vec<Subscription>, ToolError> {
    let mut all = Vec::new();
    for server in inner.pool.living(&key.owner) {
        for uri in uris {
            let subscribed = Subscription::to(&server, uri).await;
            all.push(subscribed.map_err(|why| not_told(&why))?);
        }
    }
    Ok(all)
}

/// The resources that a connection tells of, and for how many who listen to each.
pub(super) type Subscribed = HashMap<String, Listeners>;

#[derive(Default)]
pub(super) struct Listeners {
    count: usize,
    /// Whether the server said that it will tell of it.
    is_told: bool,
}

/// That a server tells of a resource. When the last of these goes, the server is told that nobody listens.
struct Subscription {
    /// Whoever listens does not keep a connection that makes room for another.
    server: Weak<Server>,
    uri: String,
}

impl Subscription {
    async fn to(server: &Arc<Server>, uri: &str) -> Result<Self, Unanswered> {
        // Held while the server is asked: to subscribe and to take it back never overtake each other.
        let mut subscribed = server.subscribed.lock().await;
        let listeners = subscribed.entry(uri.to_owned()).or_default();
        listeners.count += 1;
        // From here on whoever drops it takes it back.
        let own = Self {
            server: Arc::downgrade(server),
            uri: uri.to_owned(),
        };
        if !listeners.is_told {
            ask(server, "resources/subscribe", uri).await?;
            listeners.is_told = true;
        }
        Ok(own)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let (server, uri) = (self.server.upgrade(), std::mem::take(&mut self.uri));
        if let (Some(server), Ok(runtime)) = (server, tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { take_back(&server, &uri).await });
        }
    }
}

async fn take_back(server: &Server, uri: &str) {
    let mut subscribed = server.subscribed.lock().await;
    let Some(listeners) = subscribed.get_mut(uri) else {
        return;
    };
    listeners.count -= 1;
    if listeners.count > 0 {
        return;
    }
    subscribed.remove(uri);
    // It may have heard what it did not answer.
    if let Err(why) = ask(server, "resources/unsubscribe", uri).await {
        tracing::debug!(%why, "an MCP server was not told that nobody listens any more");
    }
}

/// The server's own refusal is its caller's; whatever else went wrong is not.
fn not_told(why: &Unanswered) -> ToolError {
    match why {
        Unanswered::Refused(error) => mcp_error(error),
        other => lost(&other.to_string()),
    }
}

async fn ask(server: &Server, method: &str, uri: &str) -> Result<(), Unanswered> {
    let mut params = Object::default();
    params.put("uri", uri);
    let asked = server.connection.ask(method, params, ASK_PATIENCE).await;
    asked.map(drop)
}

async fn say(call: &mut Call, id: &str, method: &str, mut params: Object) {
    let mut meta = params.object("_meta").unwrap_or_default();
    meta.put(SUBSCRIPTION, id);
    params.put("_meta", &meta);
    pass_on(call, method.to_owned(), params, None).await;
}

impl News {
    fn nothing() -> Self {
        Self {
            method: String::new(),
            params: Object::default(),
        }
    }
}

impl Heed {
    fn of(wanted: &Object, capabilities: &Object) -> Self {
        let can = |capability: &str, what: &str| {
            let capability = capabilities.object(capability).unwrap_or_default();
            capability.read(what).unwrap_or(false)
        };
        let lists = LISTS.iter().filter(|(name, capability, _)| {
            wanted.read(name).unwrap_or(false) && can(capability, "listChanged")
        });
        let uris: Vec<String> = wanted.read("resourceSubscriptions").unwrap_or_default();
        Self {
            lists: lists.map(|(name, _, _)| *name).collect(),
            uris: if can("resources", "subscribe") {
                uris
            } else {
                Vec::new()
            },
        }
    }

    fn acknowledged(&self) -> Object {
        let mut honoured = Object::default();
        for name in &self.lists {
            honoured.put(name, &true);
        }
        if !self.uris.is_empty() {
            honoured.put("resourceSubscriptions", &self.uris);
        }
        let mut params = Object::default();
        params.put("notifications", &honoured);
        params
    }

    fn is_about(&self, method: &str, params: &Object) -> bool {
        if method == UPDATED {
            let uri: Option<String> = params.read("uri");
            return uri.is_some_and(|uri| self.uris.contains(&uri));
        }
        LISTS
            .iter()
            .any(|(name, _, notification)| *notification == method && self.lists.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Object {
        Object::parse(text).unwrap()
    }

    #[test]
    fn only_what_the_server_can_tell_is_acknowledged_and_told() {
        let wanted = object(
            r#"{"toolsListChanged":true,"promptsListChanged":true,"resourceSubscriptions":["a:b"]}"#,
        );
        let capabilities =
            object(r#"{"tools":{"listChanged":true},"resources":{"subscribe":true}}"#);
        let heed = Heed::of(&wanted, &capabilities);
        assert_eq!(
            heed.acknowledged().raw().get(),
            r#"{"notifications":{"toolsListChanged":true,"resourceSubscriptions":["a:b"]}}"#
        );
        let about = |method: &str, params: &str| heed.is_about(method, &object(params));
        assert!(about("notifications/tools/list_changed", "{}"));
        assert!(!about("notifications/prompts/list_changed", "{}"));
        assert!(about(UPDATED, r#"{"uri":"a:b"}"#));
        assert!(!about(UPDATED, r#"{"uri":"a:c"}"#));
        assert!(!about("", "{}"));
    }
}
