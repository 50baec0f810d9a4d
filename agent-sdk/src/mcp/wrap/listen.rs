//! `subscriptions/listen` on a legacy server: what its connections say about no request, as one call.

use proto_spec::limits::SUBSCRIPTIONS_MAX;
use serde_json::value::RawValue;
use tokio::sync::broadcast::error::RecvError;

use super::Inner;
use super::desk::{News, SUBSCRIPTION};
use super::pool::Key;
use super::relay::{mcp_error, no_server, pass_on};
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
    if !heed.uris.is_empty() {
        drop(
            inner
                .pool
                .take(key, false)
                .await
                .map_err(|why| no_server(&why))?,
        );
        subscribe(inner, key, &heed.uris).await?;
    }
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

/// Has the owner's connections tell of these resources.
async fn subscribe(inner: &Inner, key: &Key, uris: &[String]) -> Result<(), ToolError> {
    for server in inner.pool.living(&key.owner) {
        for uri in uris {
            let mut params = Object::default();
            params.put("uri", uri);
            let asked = server
                .connection
                .ask("resources/subscribe", params, super::ASK_PATIENCE);
            asked
                .await
                .map_err(|why| ToolError::new(super::SERVER_LOST, why.to_string()))?;
        }
    }
    Ok(())
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
