//! The tools that run code, each under a policy of its own.

use std::collections::BTreeMap;
use std::path::Path;

#[cfg(feature = "wasm")]
use agent_sdk::INVALID_ARGUMENTS;
#[cfg(feature = "wasm")]
use agent_sdk::sandbox::WasmSandbox;
use agent_sdk::sandbox::{
    Command, Finished, Folder, NotRun, Policy, Profile, Sandbox, Told, Wanted,
};
use agent_sdk::{Call, Tool, ToolError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::files::{FILE_BYTES_MAX, Root};
use crate::places::{Place, Places};

/// Files that go into a program's folder by one call, and out of it.
const FILES_MAX: usize = 32;

/// The operator did not open the folder to code.
const NOT_SHARED: &str = "NOT_SHARED";

/// A way to run code.
pub(crate) struct Kind {
    way: &'static Way,
    pub(crate) policy: Policy,
}

impl Kind {
    pub(crate) const fn tool(&self) -> &'static str {
        self.way.tool
    }
}

struct Way {
    /// Its table in the policies' file.
    table: &'static str,
    tool: &'static str,
    describe: &'static str,
    runs: Runs,
}

/// What runs the code.
enum Runs {
    /// A program, with its arguments, and what the code's file is called.
    Program(&'static [&'static str], &'static str),
    /// This one.
    #[cfg(feature = "wasm")]
    Module,
}

const WAYS: &[Way] = &[
    Way {
        table: "python",
        tool: "code.python",
        describe: "Runs a Python program",
        runs: Runs::Program(&["python3", "-B"], "main.py"),
    },
    Way {
        table: "javascript",
        tool: "code.javascript",
        describe: "Runs a JavaScript program in Node.js",
        runs: Runs::Program(&["node"], "main.js"),
    },
    Way {
        table: "shell",
        tool: "shell.run",
        describe: "Runs a shell script",
        runs: Runs::Program(&["sh"], "main.sh"),
    },
    #[cfg(feature = "wasm")]
    Way {
        table: "wasm",
        tool: "code.wasm",
        describe: "Runs a WebAssembly module (WASI preview 1) that reads its standard input and prints",
        runs: Runs::Module,
    },
];

impl Way {
    /// What stands where the policies' file says nothing. An answer goes into one envelope, so less is
    /// printed than a program may by default.
    fn default(&self) -> Wanted {
        let plain = Wanted {
            output_bytes: 256 << 10,
            ..Wanted::default()
        };
        match self.table {
            "javascript" => Wanted {
                code_at_run_time: true,
                memory_bytes: 512 << 20,
                ..plain
            },
            "wasm" => Wanted {
                profile: Profile::Wasm,
                ..plain
            },
            _ => plain,
        }
    }
}

/// Every way to run code, under the policies of the file.
///
/// # Errors
///
/// Every problem of every table.
pub(crate) fn kinds(policies: Option<&Path>) -> Result<Vec<Kind>, String> {
    let text = policies.map_or(Ok(String::new()), std::fs::read_to_string);
    let named = policies.unwrap_or(Path::new("")).display();
    let text = text.map_err(|why| format!("{named}: {why}"))?;
    let tables: Result<toml::Table, _> = text.parse();
    let mut tables = tables.map_err(|why| format!("the policies: {why}"))?;
    let mut problems = Vec::new();
    let mut kinds = Vec::new();
    for way in WAYS {
        let default = way.default();
        let read = over(&default, tables.remove(way.table)).and_then(Wanted::check);
        match read {
            Ok(policy) if policy.wanted().profile != default.profile => {
                problems.push(format!("[{}] profile: cannot be another", way.table));
            }
            // What strangers have run here reaches nobody; a server that its operator chose may (`mcp wrap`).
            Ok(policy) if policy.wanted().network != default.network => {
                problems.push(format!("[{}] network: cannot be open", way.table));
            }
            Ok(policy) => kinds.push(Kind { way, policy }),
            Err(found) => {
                let found = found
                    .into_iter()
                    .map(|one| format!("[{}] {one}", way.table));
                problems.extend(found);
            }
        }
    }
    let unknown = tables.keys();
    problems.extend(unknown.map(|name| format!("[{name}]: there is no such tool here")));
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

/// Opens every box, so that what this machine cannot enforce is known before anybody calls. `shared` is
/// the folder that code takes files from and keeps files in, if any.
///
/// # Errors
///
/// What it cannot enforce.
pub(crate) async fn tools(kinds: Vec<Kind>, shared: Option<Root>) -> Result<Vec<Tool>, String> {
    let places = Places::default();
    let mut tools = Vec::new();
    for Kind { way, policy } in kinds {
        let unusable = |why: NotRun| format!("[{}] {why}", way.table);
        match way.runs {
            Runs::Program(program, file) => {
                let sandbox = Sandbox::open(policy).await.map_err(unusable)?;
                // A machine without the language serves the others.
                let asks = Command::new(program[0]).args(["--version"]);
                if let Err(NotRun::NotStarted(why)) = sandbox.run(asks).await {
                    println!("{} is not served: {why}", way.tool);
                    continue;
                }
                let language = Language {
                    program,
                    file,
                    sandbox,
                    shared: shared.clone(),
                    places: places.clone(),
                };
                tools.push(language.tool(way));
            }
            #[cfg(feature = "wasm")]
            Runs::Module => {
                let sandbox = WasmSandbox::open(policy).map_err(unusable)?;
                tools.push(modules(way, sandbox, places.clone()));
            }
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
    /// Files of file.write that lie in its folder when it starts. Only where the folder is shared.
    #[serde(default)]
    files: Vec<String>,
    /// Files of its folder that file.read finds afterwards. What is no plain file is not kept. Only where
    /// the folder is shared.
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

/// A language, and all that a call needs to run it.
#[derive(Clone)]
struct Language {
    program: &'static [&'static str],
    file: &'static str,
    sandbox: Sandbox,
    shared: Option<Root>,
    places: Places,
}

impl Language {
    fn tool(self, way: &Way) -> Tool {
        let folder = match self.shared {
            Some(_) => "It may take and keep files of the folder of file.read and file.write",
            None => "Its folder is empty, and gone afterwards",
        };
        let describe = format!("{}. {folder}", way.describe);
        let runs_in = self.sandbox.policy().sandbox();
        let run = move |call: Call, args: Run| self.clone().run(call, args);
        Tool::new(way.tool, run)
            .describe(describe)
            .sandboxed(runs_in)
    }

    async fn run(self, mut call: Call, args: Run) -> Result<Ran, ToolError> {
        let place = self.places.take(call.caller())?;
        let command = self.command(&args).await?;
        let finished = Box::pin(self.sandbox.run_for(&mut call, command)).await?;
        let told = finished.told().await;
        let kept = match self.shared {
            Some(root) => kept(finished, args.keep, &root, place).await?,
            None => BTreeMap::new(),
        };
        Ok(Ran { told, kept })
    }

    async fn command(&self, args: &Run) -> Result<Command, ToolError> {
        if args.files.len() > FILES_MAX || args.keep.len() > FILES_MAX {
            let why = format!("at most {FILES_MAX} files each way");
            return Err(ToolError::new("TOO_MANY_FILES", why));
        }
        if self.shared.is_none() && !(args.files.is_empty() && args.keep.is_empty()) {
            let why = "code here takes and keeps no files: give it what it needs as `stdin`, and print what it finds. Whoever runs this agent can share its folder (fem-coder --share)";
            return Err(ToolError::new(NOT_SHARED, why));
        }
        let mut command = Command::new(self.program[0])
            .args(self.program[1..].iter().copied())
            .args([self.file]);
        for path in &args.files {
            let Some(root) = &self.shared else { break };
            let named = path.clone();
            let read = move |folder: &Folder| folder.read(&named, FILE_BYTES_MAX);
            command = command.file(path, root.with(path, read).await?);
        }
        Ok(command
            .file(self.file, args.code.as_bytes())
            .stdin(args.stdin.as_bytes()))
    }
}

#[cfg(feature = "wasm")]
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Module {
    /// The module, in base64. Its function `_start` is run.
    module: String,
    /// What it reads from standard input.
    #[serde(default)]
    stdin: String,
}

#[cfg(feature = "wasm")]
fn modules(way: &Way, sandbox: WasmSandbox, places: Places) -> Tool {
    use base64::Engine as _;
    let runs_in = sandbox.policy().sandbox();
    let run = move |call: Call, args: Module| {
        let (sandbox, places) = (sandbox.clone(), places.clone());
        async move {
            let place = places.take(call.caller())?;
            let bytes = base64::prelude::BASE64_STANDARD.decode(&args.module);
            let bytes = bytes.map_err(|why| ToolError::new(INVALID_ARGUMENTS, why.to_string()))?;
            sandbox
                .run_for(&call, bytes, args.stdin.into(), place)
                .await
        }
    };
    Tool::new(way.tool, run)
        .describe(way.describe)
        .sandboxed(runs_in)
}

/// Copies what is to be kept, from descriptor to descriptor. The call's place is held until that is done,
/// also where the call is given up.
async fn kept(
    finished: Finished,
    names: Vec<String>,
    root: &Root,
    place: Place,
) -> Result<BTreeMap<String, Option<String>>, ToolError> {
    let copied = move |folder: &Folder| {
        let _place = place;
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
