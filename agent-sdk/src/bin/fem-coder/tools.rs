//! The tools that run code, each under a policy of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use agent_sdk::sandbox::{Command, Finished, Policy, Sandbox, Told, Wanted};
use agent_sdk::{Call, Tool, ToolError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::files::{FILE_BYTES_MAX, Root};

/// Programs that run at once; a caller beyond is told to try again.
const AT_ONCE: usize = 8;
/// Files that go into a program's folder by one call, and out of it.
const FILES_MAX: usize = 32;

/// All places are taken.
const BUSY: &str = "BUSY";

/// A way to run code.
pub(crate) struct Kind {
    /// Its table in the policies' file.
    table: &'static str,
    pub(crate) tool: &'static str,
    describe: &'static str,
    /// The program, and its arguments before the file with the code.
    program: &'static [&'static str],
    /// What the code's file is called.
    file: &'static str,
    pub(crate) policy: Policy,
}

/// What stands where the policies' file says nothing. An answer goes into one envelope, so less is
/// printed than a program may by default.
fn defaults() -> Wanted {
    Wanted {
        output_bytes: 256 << 10,
        ..Wanted::default()
    }
}

/// Every way to run code, under the policies of the file.
///
/// # Errors
///
/// Every problem of every table.
pub(crate) fn kinds(policies: Option<&Path>) -> Result<Vec<Kind>, String> {
    let text = policies.map_or(Ok(String::new()), std::fs::read_to_string);
    let text =
        text.map_err(|why| format!("{}: {why}", policies.unwrap_or(Path::new("")).display()))?;
    let mut tables: toml::Table = text.parse().map_err(|why| format!("the policies: {why}"))?;
    let mut problems = Vec::new();
    let mut kinds = Vec::new();
    let engine = Wanted {
        code_at_run_time: true,
        memory_bytes: 512 << 20,
        ..defaults()
    };
    for (table, tool, describe, program, file, default) in [
        (
            "python",
            "code.python",
            "Runs a Python program",
            &["python3", "-B"][..],
            "main.py",
            defaults(),
        ),
        (
            "javascript",
            "code.javascript",
            "Runs a JavaScript program in Node.js",
            &["node"][..],
            "main.js",
            engine,
        ),
        (
            "shell",
            "shell.run",
            "Runs a shell script",
            &["sh"][..],
            "main.sh",
            defaults(),
        ),
    ] {
        let read = over(&default, tables.remove(table)).and_then(Wanted::check);
        match read {
            Ok(policy) => kinds.push(Kind {
                table,
                tool,
                describe,
                program,
                file,
                policy,
            }),
            Err(found) => problems.extend(found.into_iter().map(|one| format!("[{table}] {one}"))),
        }
    }
    problems.extend(
        tables
            .keys()
            .map(|name| format!("[{name}]: there is no such tool")),
    );
    match problems.is_empty() {
        true => Ok(kinds),
        false => Err(format!(
            "the policies cannot be used:\n{}",
            problems.join("\n")
        )),
    }
}

/// A policy with what a table says in place of what it has.
fn over(default: &Wanted, table: Option<toml::Value>) -> Result<Wanted, Vec<String>> {
    let failed = |why: String| vec![why];
    let mut all = toml::Table::try_from(default).map_err(|why| failed(why.to_string()))?;
    match table {
        None => {}
        Some(toml::Value::Table(table)) => all.extend(table),
        Some(_) => return Err(failed("is not a table".into())),
    }
    Wanted::read(&all.to_string())
}

/// Opens every box, so that what this machine cannot enforce is known before anybody calls.
///
/// # Errors
///
/// What it cannot enforce.
pub(crate) async fn tools(kinds: Vec<Kind>, root: &Root) -> Result<Vec<Tool>, String> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut tools = Vec::new();
    for kind in kinds {
        let sandbox = Sandbox::open(kind.policy.clone()).await;
        let sandbox = sandbox.map_err(|why| format!("[{}] {why}", kind.table))?;
        // A machine without the language serves the others.
        let asks = Command::new(kind.program[0]).args(["--version"]);
        match sandbox.run(asks).await {
            Err(agent_sdk::sandbox::NotRun::NotStarted(why)) => {
                println!("{} is not served: {why}", kind.tool);
            }
            _ => tools.push(tool(&kind, sandbox, root.clone(), Arc::clone(&places))),
        }
    }
    Ok(tools)
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Run {
    /// The program.
    code: String,
    /// What it reads from standard input.
    #[serde(default)]
    stdin: String,
    /// Files of file.write that lie in its folder when it starts.
    #[serde(default)]
    files: Vec<String>,
    /// Files of its folder that file.read finds afterwards. What is no plain file is not kept.
    #[serde(default)]
    keep: Vec<String>,
}

#[derive(Serialize)]
struct Ran {
    #[serde(flatten)]
    told: Told,
    /// What became of each file to keep: null, or why it was not kept.
    kept: BTreeMap<String, Option<String>>,
}

fn tool(kind: &Kind, sandbox: Sandbox, root: Root, places: Arc<Semaphore>) -> Tool {
    let (program, file) = (kind.program, kind.file);
    let run = move |mut call: Call, args: Run| {
        let (sandbox, root, places) = (sandbox.clone(), root.clone(), Arc::clone(&places));
        async move {
            let _place = places
                .try_acquire()
                .map_err(|_| ToolError::new(BUSY, "all places are taken: try again"))?;
            let command = command(program, file, &args, &root).await?;
            let finished = Box::pin(sandbox.run_for(&mut call, command)).await?;
            let told = finished.told();
            let kept = kept(finished, args.keep, &root).await?;
            Ok(Ran { told, kept })
        }
    };
    Tool::new(kind.tool, run)
        .describe(kind.describe)
        .sandboxed("process")
}

async fn command(
    program: &[&str],
    file: &str,
    args: &Run,
    root: &Root,
) -> Result<Command, ToolError> {
    if args.files.len() > FILES_MAX || args.keep.len() > FILES_MAX {
        return Err(ToolError::new(
            "TOO_MANY_FILES",
            format!("at most {FILES_MAX} files each way"),
        ));
    }
    let mut command = Command::new(program[0])
        .args(program[1..].iter().copied())
        .args([file]);
    for path in &args.files {
        let named = path.clone();
        let bytes = root
            .with(path, move |folder| folder.read(&named, FILE_BYTES_MAX))
            .await?;
        command = command.file(path, bytes);
    }
    Ok(command
        .file(file, args.code.as_bytes())
        .stdin(args.stdin.as_bytes()))
}

/// Copies what is to be kept, from descriptor to descriptor.
async fn kept(
    finished: Finished,
    names: Vec<String>,
    root: &Root,
) -> Result<BTreeMap<String, Option<String>>, ToolError> {
    let copied = move |folder: &agent_sdk::sandbox::Folder| {
        let copy = |name: &str| {
            let bytes = finished.folder().read(name, FILE_BYTES_MAX)?;
            folder.write(name, &bytes)
        };
        Ok(names
            .into_iter()
            .map(|name| (name.clone(), copy(&name).err().map(|why| why.to_string())))
            .collect())
    };
    root.with("keep", copied).await
}
