//! `tools`: which tools could be called with this context.

use proto_spec::identity::AgentId;
use proto_spec::message::{DiscoverTools, DiscoveredTool, Unsigned, VIA_FEP};
use proto_spec::{Org, Pattern};

use crate::connect::Chosen;
use crate::failure::Outcome;
use crate::output::{Output, Table};

/// Lists the tools that may be called with this context
#[derive(Debug, clap::Args)]
pub(crate) struct Tools {
    /// Only tools that this covers: files.*
    pattern: Option<Pattern>,
    /// Only this agent's
    #[arg(long, value_name = "NAME@ORG")]
    agent: Option<AgentId>,
}

pub(crate) async fn run(args: Tools, chosen: &Chosen, output: Output) -> Outcome {
    let question = DiscoverTools {
        tools: args.pattern,
        agent: args.agent,
        ..DiscoverTools::default()
    };
    let agent = chosen.agent()?;
    let tools = agent.discover(question).await?;
    output.list(&tools, || {
        let mut table = Table::new(
            &["tool", "agent", "from", "what it does", "only if"],
            "No tool that may be called. Ask an admin for a capability: fem-cli token issue NAME --capability PATTERN",
        );
        for found in &tools {
            let tool = &found.tool;
            table.row([
                tool.name.as_str(),
                &found.agent.to_string(),
                &origin(agent.id().org(), &found.via),
                &beginning(tool.description.as_deref().unwrap_or_default()),
                &only_if(found),
            ]);
        }
        table
    })
}

/// Characters of a description in the table; `--json` has all of it.
const SHOWN_CHARS_MAX: usize = 80;

/// How a description begins: some are pages long, written for models.
fn beginning(description: &str) -> String {
    let line = description.lines().next().unwrap_or_default();
    match line.char_indices().nth(SHOWN_CHARS_MAX) {
        None if line.len() == description.len() => line.to_owned(),
        None => format!("{line} …"),
        Some((end, _)) => format!("{}…", &line[..end]),
    }
}

/// What a call has to satisfy.
fn only_if(found: &DiscoveredTool) -> String {
    let mut all = found.checks.clone();
    if let Some(Unsigned::Fep) = found.unsigned {
        all.push(format!(
            "called with --accept-unsigned {VIA_FEP}: an older agent"
        ));
    }
    all.join("; ")
}

/// Whose tool it is; where the call goes through other organisations, in their order, the owner last.
fn origin(own: &Org, via: &[Org]) -> String {
    match via {
        [] => own.to_string(),
        some => some.iter().map(Org::as_str).collect::<Vec<_>>().join(" > "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_shown_as_far_as_a_table_has_room() {
        for (text, shown) in [
            ("", String::new()),
            ("Greets", "Greets".into()),
            ("Greets\n\nNot by night.", "Greets …".into()),
            (&"é".repeat(80), "é".repeat(80)),
            (&"é".repeat(81), "é".repeat(80) + "…"),
        ] {
            assert_eq!(beginning(text), shown);
        }
    }
}
