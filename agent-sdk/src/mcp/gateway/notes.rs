//! What a tool says before it answers, as its client is told it.

use proto_spec::AgentId;
use proto_spec::message::DiscoveredTool;
use serde_json::value::RawValue;

use super::catalogue::Scope;
use super::era::LEVEL_KEY;
use super::uris;
use crate::Progress;
use crate::mcp::rpc::Object;

const PROGRESS: &str = "notifications/progress";
const LOG: &str = "notifications/message";

/// What a server may not say in mid-call: these are about requests and streams that are not its own.
const NOT_ITS_OWN: [&str; 3] = [
    "notifications/cancelled",
    "notifications/initialized",
    "notifications/subscriptions/acknowledged",
];

/// The notifications of one call.
pub(super) struct Notes {
    /// By which the client knows its progress, as it wrote it.
    token: Option<Box<RawValue>>,
    wants_log: bool,
    is_native: bool,
    /// Whose URIs need their name in front.
    owner: Option<AgentId>,
    done: f64,
}

impl Notes {
    /// Of a call of `tool` with this `_meta`.
    pub(super) fn of(tool: &DiscoveredTool, meta: &Object, scope: &Scope) -> Self {
        Self {
            token: meta.get("progressToken").map(ToOwned::to_owned),
            wants_log: meta.has(LEVEL_KEY),
            is_native: tool.tool.mcp.is_none(),
            owner: (*scope == Scope::All).then(|| tool.agent.clone()),
            done: 0.0,
        }
    }

    /// Whether the client wants to hear anything before the answer.
    pub(super) fn are_wanted(&self) -> bool {
        self.token.is_some() || (self.wants_log && !self.is_native)
    }

    /// What the client is told, if anything.
    pub(super) fn note(&mut self, progress: Progress) -> Option<(String, Object)> {
        match self.is_native {
            true => self.native(progress),
            false => self.relayed(progress),
        }
    }

    fn native(&mut self, progress: Progress) -> Option<(String, Object)> {
        let mut params = Object::default();
        params.set("progressToken", self.token.clone()?);
        // It has to grow, whatever the tool says.
        self.done = progress
            .done
            .filter(|done| *done > self.done)
            .unwrap_or(self.done + 1.0);
        params.put("progress", &self.done);
        if let Some(total) = progress.total {
            params.put("total", &total);
        }
        if let Some(message) = progress.message {
            params.put("message", &message);
        }
        Some((PROGRESS.to_owned(), params))
    }

    fn relayed(&self, progress: Progress) -> Option<(String, Object)> {
        let said = Object::parse(progress.data?.get()).ok()?;
        let method: String = said.read("method")?;
        let mut params = said.object("params").unwrap_or_default();
        match method.as_str() {
            // A token is the caller's own: no server speaks of another request.
            PROGRESS => params.set("progressToken", self.token.clone()?),
            LOG if !self.wants_log => return None,
            other if !other.starts_with("notifications/") => return None,
            other if NOT_ITS_OWN.contains(&other) => return None,
            _ => {}
        }
        if let Some(owner) = &self.owner {
            uris::name_owner(owner, &method, &mut params);
        }
        Some((method, params))
    }
}
