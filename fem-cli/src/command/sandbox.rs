//! `sandbox`: what this machine enforces, and trying a policy by hand.

use std::io;
use std::path::{Path, PathBuf};

use agent_sdk::sandbox::{
    self, Ended, Finished, Folder, Held, NotRun, Policy, Profile, Sandbox, Tier, Wanted,
};
use serde_json::json;

use super::doctor::findings::Findings;
use crate::failure::{Exit, Failure, Outcome};
use crate::output::{self, Output};

/// Runs code that nobody vouches for, and shows what keeps it in
#[derive(Debug, clap::Args)]
pub(crate) struct Sandboxes {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    Doctor(Doctor),
    Show(Show),
    Run(Run),
}

/// Has hostile programs try to get out, on this machine and as this user, and says what held
#[derive(Debug, clap::Args)]
struct Doctor {
    /// Look at the weaker tier, which needs no namespaces
    #[arg(long)]
    without_namespaces: bool,
}

/// Shows a policy in plain words, with the digest that stands in every record of a call under it
#[derive(Debug, clap::Args)]
struct Show {
    #[command(flatten)]
    policy: Source,
}

/// Runs one program in the box and says how it ended
#[derive(Debug, clap::Args)]
struct Run {
    #[command(flatten)]
    policy: Source,

    /// A file of this machine for its folder; it is called the same there
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Copy what it leaves in its folder into this one of yours, which is made if it is not there
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,

    /// The program, by path in the box or by name in /usr/bin, and its arguments. There is no shell
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Source {
    /// Which box: process, or wasm
    #[arg(long, default_value = "process", value_parser = profile)]
    profile: Profile,

    /// A policy file (TOML); without one, the default
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,

    /// A value of the policy, as in `--set memory_bytes=67108864`
    #[arg(long = "set", value_name = "NAME=VALUE")]
    set: Vec<String>,
}

fn profile(text: &str) -> Result<Profile, String> {
    [Profile::Process, Profile::Wasm]
        .into_iter()
        .find(|one| one.name() == text)
        .ok_or_else(|| "process or wasm".into())
}

pub(crate) async fn run(args: Sandboxes, output: Output) -> Outcome {
    match args.act {
        Act::Doctor(args) => doctor(&args, output).await,
        Act::Show(args) => show(&args.policy.read()?, output),
        Act::Run(args) => one(&args, output).await,
    }
}

impl Source {
    fn read(&self) -> Outcome<Policy> {
        let mut text = match &self.policy {
            None => String::new(),
            Some(path) => read(path)?,
        };
        if !text.contains("profile") {
            text.insert_str(0, &format!("profile = {:?}\n", self.profile.name()));
        }
        let set = self.set.join("\n");
        let wanted = Wanted::read(&format!("{set}\n{text}"));
        let policy = wanted.and_then(Wanted::check);
        policy.map_err(|problems| {
            Failure::usage(format!(
                "the policy cannot be used:\n{}",
                problems.join("\n")
            ))
        })
    }
}

fn read(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path)
        .map_err(|why| Failure::fault(format!("{}: {why}", path.display())))
}

fn show(policy: &Policy, output: Output) -> Outcome {
    let digest = policy.digest();
    let value = json!({"policy": policy.wanted(), "words": policy.words(), "digest": digest});
    output.give(&value, || {
        format!("{}\ndigest {digest}", policy.words().join("\n"))
    })
}

async fn doctor(args: &Doctor, output: Output) -> Outcome {
    let tier = match args.without_namespaces {
        true => Tier::WithoutNamespaces,
        false => Tier::Full,
    };
    let mut findings = Findings::default();
    match sandbox::examine(tier).await {
        Ok(found) => {
            for one in found {
                add(&mut findings, tier, &one);
            }
            if tier == Tier::Full {
                findings.ok(
                    "cgroups",
                    "not used: memory is counted every 20 ms, and a burst may be that much over",
                );
            }
        }
        Err(NotRun::Unenforced { layer, why, .. }) => {
            findings.fail(
                "the box",
                format!("cannot be built: {layer}: {why}"),
                next(tier, &layer),
            );
        }
        Err(why) => return Err(Failure::fault(why.to_string())),
    }
    findings.give(output)
}

fn add(findings: &mut Findings, tier: Tier, one: &sandbox::Finding) {
    match &one.held {
        Held::Yes => findings.ok(one.what, format!("no: {}", one.layer)),
        Held::No(got) if tier == Tier::WithoutNamespaces && one.layer == "nothing" => {
            findings.warn(
                one.what,
                got,
                "the weaker tier has nothing against it: use the full one where you can",
            );
        }
        Held::No(got) => findings.fail(
            one.what,
            got,
            "do not run code that you do not trust here, and report this",
        ),
    }
}

fn next(tier: Tier, layer: &str) -> &'static str {
    match (tier, layer) {
        (_, "Landlock") => {
            "Linux 6.12 or later, with landlock in the kernel's list of security modules (lsm=)"
        }
        (Tier::WithoutNamespaces, _) => "use another machine, or another kernel",
        (_, "user namespaces" | "namespaces" | "capabilities") => {
            "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns=0; in a container, its seccomp profile), or name tier = \"without-namespaces\" in the policy"
        }
        (_, "a /proc of its own") => {
            "a container that hides parts of /proc allows no other: run it with an unmasked /proc, or name tier = \"without-namespaces\" in the policy"
        }
        _ => {
            "Linux 6.12 or later; in a container, a seccomp profile that allows mounts in user namespaces"
        }
    }
}

async fn one(args: &Run, output: Output) -> Outcome {
    let policy = args.policy.read()?;
    if policy.wanted().profile == Profile::Wasm {
        let next = "fem-coder built with the feature `wasm` does, as code.wasm";
        return Err(Failure::usage("this command runs no WebAssembly").next(next));
    }
    let (program, rest) = args
        .command
        .split_first()
        .ok_or_else(|| Failure::usage("which program?"))?;
    let mut command = sandbox::Command::new(program).args(rest);
    for path in &args.files {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Failure::usage(format!("{} has no name", path.display())))?;
        let bytes = std::fs::read(path);
        command = command.file(
            name,
            bytes.map_err(|why| Failure::fault(format!("{}: {why}", path.display())))?,
        );
    }
    let into = args.keep.as_deref().map(place_to_keep).transpose()?;
    let sandbox = Sandbox::open(policy).await.map_err(not_run)?;
    let finished = sandbox.run(command).await.map_err(not_run)?;
    let told = finished.told().await;
    if let Some(into) = &into {
        keep(&finished, into)?;
    }
    let ended = finished.ended;
    finished.clear().await;
    output.give(&told, || output::escape_lines(&told.stdout))?;
    if !output.json && !told.stderr.is_empty() {
        output::note(&output::escape_lines(&told.stderr));
    }
    match ended {
        Ended::Exited(0) => Ok(()),
        _ if output.json => Err(Failure::told(Exit::ToolFailed)),
        ended => Err(Failure::new(
            Exit::ToolFailed,
            format!("the program was stopped or failed: {ended}"),
        )),
    }
}

/// Files and folders that are kept, and the bytes of their names: what a policy may permit.
const KEPT_MAX: usize = 1 << 20;
const KEPT_NAMES_BYTES_MAX: usize = 64 << 20;

/// Before anything runs: a folder that cannot be had is told then.
fn place_to_keep(into: &Path) -> Outcome<Folder> {
    let failed = |why| {
        let next = "nothing was run; --keep names a folder of yours";
        Failure::fault(format!("{}: {why}", into.display())).next(next)
    };
    match std::fs::create_dir(into) {
        Err(why) if why.kind() != io::ErrorKind::AlreadyExists => return Err(failed(why)),
        _ => {}
    }
    Folder::open(into).map_err(failed)
}

/// Copies what it left, by descriptor: what is no plain file stays behind, and is listed so. A file that
/// cannot be read, because its maker closed it, is skipped and named.
fn keep(finished: &Finished, into: &Folder) -> Outcome {
    let left = finished.folder().list(KEPT_MAX, KEPT_NAMES_BYTES_MAX);
    if let Some(why) = left.cut {
        return Err(Failure::fault(format!("nothing was kept: {why}")));
    }
    for entry in &left.entries {
        let Some(length) = entry.bytes else { continue };
        match finished.folder().read(&entry.path, length) {
            Ok(bytes) => into
                .write(&entry.path, &bytes)
                .map_err(|why| Failure::fault(format!("{}: {why}", entry.path)))?,
            Err(why) => output::note(&format!("not kept: {}: {why}", output::escape(&entry.path))),
        }
    }
    Ok(())
}

fn not_run(why: NotRun) -> Failure {
    match why {
        NotRun::Invalid(_) => Failure::usage(why.to_string()),
        NotRun::NotStarted(_) => Failure::new(Exit::NotFound, why.to_string()),
        other => Failure::fault(other.to_string()),
    }
}
