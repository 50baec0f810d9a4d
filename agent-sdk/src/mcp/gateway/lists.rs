//! Lists over many agents, and the opaque words with which a client asks for their next page.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt as _, stream};
use proto_spec::message::DiscoveredTool;
use proto_spec::{AgentId, Digest};
use serde::Serialize;

use super::answering::Voice;
use super::catalogue::Catalogue;
use super::fault::{Fault, shown};
use super::guest::{Guest, is_no_method, required};
use super::names;
use crate::mcp::rpc::{INVALID_PARAMS, Object};

/// Agents that are asked for their lists at once.
const ASKED_AT_ONCE: usize = 8;
/// Pages that one agent's list may have.
const PAGES_MAX: usize = 64;
/// Bytes of one agent's list, and of one page of a list here, which has one entry at least.
const LIST_BYTES_MAX: usize = 1 << 20;
pub(super) const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Bytes of all agents' prompts together: they have to be known before a name is.
const PROMPTS_BYTES_MAX: usize = 16 << 20;

/// Behind what a list goes on, as [`page`] told the client.
///
/// # Errors
///
/// `-32602` where it is nothing that was told.
pub(super) fn cursor(params: &Object) -> Result<Option<String>, Fault> {
    let Some(raw) = params.get("cursor") else {
        return Ok(None);
    };
    let text = serde_json::from_str::<String>(raw.get()).ok();
    let bytes = text.and_then(|text| BASE64.decode(text).ok());
    let after = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let unknown = || {
        Fault::new(
            INVALID_PARAMS,
            "`cursor` is none that a list here ended with",
        )
    };
    after.map(Some).ok_or_else(unknown)
}

/// A page of a list.
pub(super) fn page(member: &str, entries: &[impl Serialize], next: Option<&str>) -> Object {
    let mut result = Object::default();
    result.put(member, entries);
    if let Some(next) = next {
        result.put("nextCursor", &BASE64.encode(next));
    }
    result
}

impl Guest {
    /// The entries of all agents' lists: agent by agent, each with all of its own. An agent that does not
    /// answer is left out, and the list is the others'.
    pub(super) async fn list(
        &self,
        catalogue: &Catalogue,
        method: &str,
        member: &str,
        params: &Object,
    ) -> Result<Object, Fault> {
        let after = cursor(params)?;
        let behind = |tool: &&DiscoveredTool| {
            after
                .as_ref()
                .is_none_or(|after| tool.agent.to_string() > *after)
        };
        let mut asked: Vec<&DiscoveredTool> = catalogue
            .answering(method)
            .take(self.bounds.agents)
            .collect();
        asked.sort_by_key(|tool| tool.agent.to_string());
        let asked = asked.iter().copied().filter(behind);
        let mut answers = self.whole_lists(asked, method, member);
        let (mut entries, mut bytes, mut last) = (Vec::new(), 0, None);
        while let Some((tool, own)) = answers.next().await {
            bytes += own.bytes;
            let is_over =
                entries.len() + own.entries.len() > self.bounds.page || bytes > ANSWER_BYTES_MAX;
            if !entries.is_empty() && is_over {
                return Ok(page(member, &entries, last.as_deref()));
            }
            entries.extend(own.entries);
            last = Some(tool.agent.to_string());
        }
        Ok(page(member, &entries, None))
    }

    /// All prompts under their public names.
    pub(super) async fn list_prompts(
        &self,
        catalogue: &Catalogue,
        params: &Object,
    ) -> Result<Object, Fault> {
        let after = cursor(params)?;
        let mut prompts = self.prompts(catalogue).await;
        prompts.sort_by(|a, b| a.public.cmp(&b.public));
        let behind = |prompt: &Prompt| after.as_ref().is_none_or(|after| prompt.public > *after);
        let rest: Vec<Prompt> = prompts.into_iter().filter(behind).collect();
        let mut bytes = 0;
        let fits = |prompt: &&Prompt| {
            bytes += prompt.said.raw().get().len();
            bytes <= ANSWER_BYTES_MAX
        };
        let fitting = rest.iter().take(self.bounds.page).take_while(fits).count();
        let shown = fitting.max(1).min(rest.len());
        let next = rest.get(shown).and_then(|_| rest.get(shown - 1));
        let next = next.map(|last| last.public.clone());
        let shown: Vec<Object> = rest.into_iter().take(shown).map(Prompt::shown).collect();
        Ok(page("prompts", &shown, next.as_deref()))
    }

    /// Whose the prompt is that `member` of `params` names by its public name; their own takes its place.
    pub(super) async fn whose_prompt(
        &self,
        catalogue: &Catalogue,
        params: &mut Object,
        member: &str,
    ) -> Result<AgentId, Fault> {
        let name: String = required(params, member)?;
        let mut prompts = self.prompts(catalogue).await.into_iter();
        let prompt = prompts
            .find(|prompt| prompt.public == name)
            .ok_or_else(|| {
                Fault::new(INVALID_PARAMS, format!("there is no prompt {name:.128?}"))
            })?;
        params.put(member, &prompt.own);
        Ok(prompt.agent)
    }

    async fn prompts(&self, catalogue: &Catalogue) -> Vec<Prompt> {
        let asked = catalogue.answering("prompts/list").take(self.bounds.agents);
        let mut answers = self.whole_lists(asked, "prompts/list", "prompts");
        let mut found: Vec<(AgentId, String, Object)> = Vec::new();
        let mut bytes = 0;
        while let Some((tool, own)) = answers.next().await {
            bytes += own.bytes;
            if bytes > PROMPTS_BYTES_MAX {
                tracing::warn!(agent = %tool.agent, "prompts are left out: there are too many");
                break;
            }
            for prompt in own.entries {
                let name: Option<String> = prompt.read("name");
                let is_known = |name: &String| {
                    found
                        .iter()
                        .any(|(agent, own, _)| *agent == tool.agent && own == name)
                };
                // A name that one agent says twice means its first.
                if let Some(name) = name.filter(|name| !is_known(name)) {
                    found.push((tool.agent.clone(), name, prompt));
                }
            }
        }
        // Prompts are named as tools are: by their agent's name and their own.
        let whole: Vec<String> = found
            .iter()
            .map(|(agent, own, _)| format!("{}.{own}", agent.name()))
            .collect();
        let agents = found.iter().map(|(agent, ..)| agent);
        let items: Vec<(&AgentId, &str)> = agents.zip(whole.iter().map(String::as_str)).collect();
        let names = names::public(self.upstream.agent().org(), &items);
        found
            .into_iter()
            .zip(names)
            .filter_map(|((agent, own, said), public)| {
                let public = public?;
                Some(Prompt {
                    public,
                    agent,
                    own,
                    said,
                })
            })
            .collect()
    }

    /// The lists of several agents, in their order.
    fn whole_lists<'a>(
        &'a self,
        asked: impl Iterator<Item = &'a DiscoveredTool>,
        method: &'a str,
        member: &'a str,
    ) -> impl Stream<Item = (&'a DiscoveredTool, Own)> + Send + Unpin {
        let list = |tool: &'a DiscoveredTool| -> BoxFuture<'a, _> {
            Box::pin(async move { (tool, self.whole_list(tool, method, member).await) })
        };
        let lists: Vec<_> = asked.map(list).collect();
        stream::iter(lists).buffered(ASKED_AT_ONCE)
    }

    /// All that one agent lists, within bounds; what it did not say in time, or nothing where it does not
    /// answer, is left out.
    async fn whole_list(&self, tool: &DiscoveredTool, method: &str, member: &str) -> Own {
        let mut own = Own::default();
        let all = self.collect(tool, method, member, &mut own);
        let left_out = tokio::select! {
            read = all => read.err().filter(|why| !is_no_method(why)).map(|why| shown(&why.error)),
            () = self.clock.sleep(self.bounds.lookup) => Some("it takes too long".into()),
        };
        if let Some(why) = left_out {
            tracing::warn!(agent = %tool.agent, method, ?why, "a list is left out");
        }
        own.entries.truncate(self.bounds.page);
        own
    }

    /// Reads page after page, as long as one brings something new.
    async fn collect(
        &self,
        tool: &DiscoveredTool,
        method: &str,
        member: &str,
        own: &mut Own,
    ) -> Result<(), Fault> {
        let voice = Voice::mute();
        let mut seen: HashSet<Digest> = HashSet::new();
        let mut params = Object::default();
        params.put("_meta", &self.meta_of_own(&voice));
        for _ in 0..PAGES_MAX {
            let asked = self.ask(tool, params.clone(), self.bounds.lookup, &voice);
            let mut answer = self.of_server(tool, method, &asked.await?)?;
            let entries: Vec<Object> = answer.read(member).unwrap_or_default();
            let before = own.entries.len();
            for entry in entries {
                let raw = entry.raw();
                if own.bytes + raw.get().len() > LIST_BYTES_MAX {
                    return Err(Fault::busy("bytes in its list"));
                }
                if seen.insert(Digest::of(raw.get().as_bytes())) {
                    own.bytes += raw.get().len();
                    own.entries.push(entry);
                }
            }
            let next = answer.take("nextCursor");
            match next.filter(|next| next.get() != "null") {
                Some(next) if (before + 1..self.bounds.page).contains(&own.entries.len()) => {
                    params.set("cursor", next);
                }
                _ => break,
            }
        }
        Ok(())
    }
}

/// What one agent lists.
#[derive(Default)]
struct Own {
    entries: Vec<Object>,
    bytes: usize,
}

/// A prompt of an agent, among those of many.
struct Prompt {
    public: String,
    agent: AgentId,
    own: String,
    said: Object,
}

impl Prompt {
    fn shown(self) -> Object {
        let mut prompt = self.said;
        prompt.put("name", &self.public);
        if !prompt.has("title") {
            prompt.put("title", &self.own);
        }
        let mut meta = prompt.object("_meta").unwrap_or_default();
        meta.put("fem/agent", &self.agent);
        prompt.put("_meta", &meta);
        prompt
    }
}
