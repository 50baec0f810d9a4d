//! `call`: calls a tool and prints what it answers.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_sdk::{CallOptions, Progress};
use proto_spec::Capability;
use proto_spec::identity::AgentId;
use proto_spec::message::Unsigned;
use serde_json::{Map, Value};

use crate::connect::Chosen;
use crate::failure::{Exit, Failure, Outcome};
use crate::files;
use crate::output::{self, Output, escape, escape_lines, note};
use crate::time;
use crate::token_file;

/// Calls a tool of an agent
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fem-cli call files@acme files.read --arg path=/srv/reports/q3.csv
  fem-cli call build@acme build.run --arg jobs:=4 --progress --deadline 10m
  generate | fem-cli call index@acme index.add --args-json -")]
pub(crate) struct Call {
    /// Whose tool: name@org
    agent: AgentId,
    /// Which tool
    tool: Capability,
    /// One argument: name=text, or name:=JSON; may be repeated
    #[arg(long = "arg", value_name = "NAME=VALUE", value_parser = argument)]
    args: Vec<(String, Value)>,
    /// All arguments: a JSON object, @FILE, or - for standard input
    #[arg(long, value_name = "JSON|@FILE|-")]
    args_json: Option<String>,
    /// How long an answer may take: 30s, 10m
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    deadline: Option<Duration>,
    /// Call by this token alone, instead of what is granted on record
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// Take an answer that its provider did not sign, in the broker's words: `fep`, an older agent's
    #[arg(long, value_name = "KIND")]
    accept_unsigned: Option<Unsigned>,
    /// Show the tool's progress on standard error
    #[arg(long)]
    progress: bool,
}

/// `name=text` or `name:=JSON`.
fn argument(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("write name=text, or name:=JSON")?;
    let (name, value) = match name.strip_suffix(':') {
        Some(name) => (
            name,
            serde_json::from_str(value).map_err(|e| format!("after := stands JSON: {e}"))?,
        ),
        None => (name, Value::String(value.into())),
    };
    if name.is_empty() {
        return Err("the argument has no name".into());
    }
    Ok((name.into(), value))
}

/// The arguments object: the JSON first, then single arguments, none of them twice.
fn arguments(json: Option<&str>, single: Vec<(String, Value)>) -> Outcome<Value> {
    let mut all = match json {
        None => Map::new(),
        Some(text) => {
            let text = match text.strip_prefix('@') {
                Some(path) => files::read_text(Path::new(path))?,
                None if text == "-" => files::read_text(Path::new("-"))?,
                None => text.to_owned(),
            };
            serde_json::from_str(&text)
                .map_err(|e| Failure::usage(format!("--args-json is not a JSON object: {e}")))?
        }
    };
    for (name, value) in single {
        if all.insert(name.clone(), value).is_some() {
            return Err(Failure::usage(format!(
                "the argument {name:?} is given twice"
            )));
        }
    }
    Ok(Value::Object(all))
}

pub(crate) async fn run(args: Call, chosen: &Chosen, output: Output) -> Outcome {
    let arguments = arguments(args.args_json.as_deref(), args.args)?;
    let token = args
        .token
        .as_deref()
        .map(token_file::presentable)
        .transpose()?;
    let agent = chosen.agent()?;
    let options = CallOptions {
        deadline: args.deadline,
        token,
        progress: args.progress,
        accept_unsigned: args.accept_unsigned,
        mcp: None,
    };
    let (to, tool) = (&args.agent, args.tool.as_str());
    // Progress needs a session; without it one request is enough.
    let result = if args.progress {
        let mut call = agent.call_with(to, tool, &arguments, options).await?;
        while let Some(step) = call.progress().await {
            note(&shown(&step));
        }
        call.raw().await?
    } else {
        agent.call_raw(to, tool, &arguments, &options).await?
    };
    let result: Value = serde_json::from_str(result.get())?;
    if output.json {
        output::json(&result)?;
    } else {
        output::print(&for_people(&result, std::io::stdout().is_terminal()))?;
    }
    match is_failed(&result) {
        // The result has said it.
        true => Err(Failure::told(Exit::ToolFailed)),
        false => Ok(()),
    }
}

/// Whether it is the result of an MCP server's tool that failed: MCP says so in the result itself.
fn is_failed(result: &Value) -> bool {
    result["isError"] == true && result["content"].is_array()
}

fn shown(step: &Progress) -> String {
    let done = match (step.done, step.total) {
        (Some(done), Some(total)) => format!("{done}/{total} "),
        (Some(done), None) => format!("{done} "),
        _ => String::new(),
    };
    format!(
        "… {done}{}",
        escape(step.message.as_deref().unwrap_or_default())
    )
}

/// A text is itself; anything else is JSON. A terminal gets nothing that it would obey.
fn for_people(result: &Value, terminal: bool) -> String {
    let text = match result {
        Value::String(text) => text.clone(),
        other => format!("{other:#}"),
    };
    if terminal { escape_lines(&text) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_is_text_unless_it_says_json() {
        for (text, name, value) in [
            ("path=/srv/a", "path", Value::from("/srv/a")),
            ("jobs=4", "jobs", Value::from("4")),
            ("jobs:=4", "jobs", Value::from(4)),
            ("q=a=b", "q", Value::from("a=b")),
            ("empty=", "empty", Value::from("")),
            ("list:=[1,\"=\"]", "list", serde_json::json!([1, "="])),
        ] {
            assert_eq!(argument(text).unwrap(), (name.into(), value), "{text}");
        }
        for text in ["path", "=x", ":=1", "jobs:=four"] {
            assert!(argument(text).is_err(), "{text}");
        }
    }

    #[test]
    fn arguments_come_together_and_none_twice() {
        let one = |name: &str| vec![(name.to_owned(), Value::from(1))];
        let both = arguments(Some(r#"{"a":0}"#), one("b")).unwrap();
        assert_eq!(both, serde_json::json!({"a": 0, "b": 1}));
        assert_eq!(arguments(None, Vec::new()).unwrap(), serde_json::json!({}));
        assert!(arguments(Some(r#"{"a":0}"#), one("a")).is_err());
        assert!(arguments(Some("[1]"), Vec::new()).is_err());
    }

    #[test]
    fn a_failed_tool_of_an_mcp_server_says_so_in_its_result_and_any_other_result_is_one() {
        use serde_json::json;
        assert!(is_failed(&json!({"content": [], "isError": true})));
        for result in [
            json!({"content": [], "isError": false}),
            json!({"content": []}),
            json!({"isError": true}),
            json!("isError"),
            json!(null),
        ] {
            assert!(!is_failed(&result), "{result}");
        }
    }

    #[test]
    fn a_result_on_a_terminal_cannot_steer_it() {
        let result = Value::from("total\n\x1b[2J42");
        assert_eq!(for_people(&result, true), "total\n\\u{1b}[2J42");
        assert_eq!(for_people(&result, false), "total\n\x1b[2J42");
    }
}
