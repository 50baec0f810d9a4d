//! The servers that people use, with nothing of ours between: each starts, and does one thing.

use serde_json::{Value, json};
use tests::mcp::clients::{At, Call, Client, Tools};
use tests::mcp::process::output;
use tests::mcp::servers::{OfNpm, OfPyPi, sqlite};
use tests::mcp::toolbox;
use tests::wire::PATIENCE;
use tokio::process::Command;

use crate::or_leave_out;

/// A server, what is asked of it, and what its answer has in it.
pub(crate) struct Real {
    pub(crate) words: Vec<String>,
    pub(crate) tool: &'static str,
    pub(crate) arguments: Value,
    pub(crate) says: String,
}

/// All of them; `folder` is theirs and becomes a git repository.
pub(crate) async fn all(
    tools: Tools,
    legacy: &toolbox::Python,
    folder: &std::path::Path,
) -> Vec<Real> {
    let mut git = Command::new("git");
    output(git.args(["init", "--quiet"]).arg(folder), PATIENCE)
        .await
        .unwrap();
    let here = folder.display().to_string();
    let thought =
        json!({"thought": "?", "nextThoughtNeeded": false, "thoughtNumber": 1, "totalThoughts": 1});
    let (npm, python) = (tools.npm, tools.python);
    let real = |words, tool, arguments, says: &str| Real {
        words,
        tool,
        arguments,
        says: says.to_owned(),
    };
    vec![
        real(
            OfNpm::Everything.stdio(npm, folder),
            "echo",
            json!({"message": "hi"}),
            "hi",
        ),
        real(
            OfNpm::Filesystem.stdio(npm, folder),
            "list_allowed_directories",
            json!({}),
            &here,
        ),
        real(
            OfNpm::Memory.stdio(npm, folder),
            "read_graph",
            json!({}),
            "entities",
        ),
        real(
            OfNpm::SequentialThinking.stdio(npm, folder),
            "sequentialthinking",
            thought,
            "thoughtNumber",
        ),
        real(
            OfPyPi::Time.stdio(python, folder),
            "get_current_time",
            json!({"timezone": "UTC"}),
            "UTC",
        ),
        real(
            OfPyPi::Git.stdio(python, folder),
            "git_status",
            json!({"repo_path": here}),
            "status",
        ),
        real(
            OfPyPi::Fetch.stdio(python, folder),
            "fetch",
            json!({"url": "http://127.0.0.1:9/"}),
            "",
        ),
        real(
            sqlite(legacy, &folder.join("tables")),
            "list_tables",
            json!({}),
            "[]",
        ),
    ]
}

#[tokio::test]
async fn every_reference_server_answers_a_client_of_another_maker() {
    let npm = or_leave_out!(toolbox::npm(), "servers of npm's");
    let python = or_leave_out!(toolbox::python(), "servers of PyPI's");
    let legacy = or_leave_out!(
        toolbox::legacy(),
        "a server of PyPI's that needs an older SDK"
    );
    let tools = Tools { npm, python };
    let folder = tempfile::tempdir().unwrap();
    for real in all(tools, legacy, folder.path()).await {
        let call = Call {
            tool: real.tool,
            arguments: real.arguments,
        };
        let at = At::Stdio(real.words);
        let text = Client::Sdk.call(tools, &at, &call).await.unwrap();
        assert!(text.contains(&real.says), "{}: {text}", real.tool);
    }
}
