//! `fem-coder`: an agent that runs other people's code in a box, and keeps a folder of files for them.
//!
//! `fem-coder --root DIR [--share] [--policies FILE] [--show]`. Who it is comes from `FEM_CONTEXT`, as for every
//! agent. What each tool may use is a table of the policies' file; [`tools`] has what stands where the
//! file says nothing.
//!
//! Code gets an empty folder of its own, and not the one that `file.read` and `file.write` guard: what
//! lets somebody run code is another capability, with other conditions, and a provider is told of a
//! caller only what permits this one call. `--share` is the operator's word that both may be one.

mod files;
mod places;
mod tools;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agent_sdk::{Agent, sandbox};

const USAGE: &str = "\
fem-coder --root DIR [--share] [--policies FILE] [--show]

Serves code.python, code.javascript, shell.run, file.read and file.write (and
code.wasm, where it is built in) as the agent that FEM_CONTEXT names.

  --root DIR       where file.read and file.write read and write
  --share          let code take files of DIR and keep files in it: whoever may
                   run code then reads and writes what the other two guard
  --policies FILE  what each tool may use (TOML): [python], [javascript], [shell], [wasm]
  --show           show the policies in plain words, and end
";

fn main() -> ExitCode {
    // Before anything else: this process may be a helper of the sandbox.
    sandbox::init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn run() -> Outcome {
    let Some(options) = options(std::env::args().skip(1))? else {
        print!("{USAGE}");
        return Ok(());
    };
    let kinds = tools::kinds(options.policies.as_deref())?;
    for kind in &kinds {
        println!("{}, {}:", kind.tool(), kind.policy.digest());
        kind.policy
            .words()
            .iter()
            .for_each(|line| println!("  {line}"));
    }
    println!(
        "the folder: {}",
        match options.share {
            true => "SHARED: code may take files of it, and keep files in it",
            false => "for file.read and file.write alone",
        }
    );
    if options.show {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(Box::pin(serve(
        &options.root.ok_or("--root is missing")?,
        options.share,
        kinds,
    )))
}

async fn serve(root: &Path, share: bool, kinds: Vec<tools::Kind>) -> Outcome {
    let root = files::Root::open(root).map_err(|why| format!("{}: {why}", root.display()))?;
    let mut all = files::tools(&root);
    all.extend(tools::tools(kinds, share.then_some(root)).await?);
    let serving = Agent::from_env()?.offer(all).await?;
    println!("ready");
    serving
        .run_until(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    Ok(())
}

#[derive(Default)]
struct Options {
    root: Option<PathBuf>,
    share: bool,
    policies: Option<PathBuf>,
    show: bool,
}

/// None where help is wanted.
fn options(mut words: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options::default();
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .map(PathBuf::from)
                .ok_or(format!("{word} needs a value"))
        };
        match word.as_str() {
            "--root" => options.root = Some(value()?),
            "--share" => options.share = true,
            "--policies" => options.policies = Some(value()?),
            "--show" => options.show = true,
            "--help" | "-h" => return Ok(None),
            other => return Err(format!("what is {other:?}?\n\n{USAGE}")),
        }
    }
    Ok(Some(options))
}
