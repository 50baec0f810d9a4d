//! What this machine enforces, as this user, found out by trying.

use std::io;
use std::path::Path;

use serde::Serialize;

use super::command::Command;
use super::launch::{NotRun, Sandbox};
use super::policy::{Policy, Tier, Wanted};
use super::running::{Ended, Finished};

/// Whether a thing is enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Held {
    /// A hostile program tried and failed.
    Yes,
    /// It got what it should not have, or could not even be tried.
    No(String),
}

/// One thing that was tried.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What should not work.
    pub what: &'static str,
    /// What keeps it from working.
    pub layer: &'static str,
    /// Whether it did.
    pub held: Held,
}

/// A question to the box: its name, what should not work, by which layer, and in the weaker tier.
struct Question {
    probe: &'static str,
    what: &'static str,
    layer: &'static str,
    weaker: &'static str,
}

const NOTHING: &str = "nothing";

const QUESTIONS: [Question; 15] = [
    ask(
        "network",
        "makes a socket",
        "seccomp, network namespace",
        "seccomp, Landlock",
    ),
    ask(
        "secret",
        "reads a file of yours",
        "mount namespace, Landlock",
        "Landlock",
    ),
    ask(
        "writing",
        "writes outside its folder",
        "mount namespace, Landlock",
        "Landlock",
    ),
    ask(
        "others",
        "sees or signals your processes",
        "pid namespace, Landlock",
        "Landlock",
    ),
    ask(
        "environment",
        "has your variables or descriptors",
        "helper",
        "helper",
    ),
    ask(
        "privileges",
        "has a capability",
        "user namespace, no_new_privs",
        "no_new_privs",
    ),
    ask("namespaces", "makes a namespace", "seccomp", "seccomp"),
    ask(
        "own-programs",
        "runs what it wrote",
        "noexec, Landlock",
        "Landlock, but for what the dynamic linker runs",
    ),
    ask(
        "processes",
        "starts processes without end",
        "RLIMIT_NPROC",
        "RLIMIT_NPROC",
    ),
    ask("memory", "fills the memory", "watch", "watch"),
    ask("disk", "fills the disk", "tmpfs size", NOTHING),
    ask("files", "makes files without end", "tmpfs inodes", NOTHING),
    ask(
        "daemon",
        "leaves a process behind",
        "pid namespace",
        "watch",
    ),
    ask("output", "prints without end", "reader", "reader"),
    ask("sleep", "runs for ever", "watch", "watch"),
];

const fn ask(
    probe: &'static str,
    what: &'static str,
    layer: &'static str,
    weaker: &'static str,
) -> Question {
    Question {
        probe,
        what,
        layer,
        weaker,
    }
}

/// Has hostile programs run under small limits in `tier`, and says what they could not do.
///
/// # Errors
///
/// [`NotRun::Unenforced`] where the box cannot be built at all.
pub async fn examine(tier: Tier) -> Result<Vec<Finding>, NotRun> {
    let wanted = Wanted {
        tier,
        memory_bytes: 64 << 20,
        disk_bytes: 4 << 20,
        disk_files: 64,
        processes: 16,
        wall_ms: 3_000,
        output_bytes: 64 << 10,
        ..Wanted::default()
    };
    let policy = wanted
        .check()
        .map_err(|problems| NotRun::Invalid(problems.join("; ")))?;
    Sandbox::open(policy.clone()).await?;
    let secret = Secret::new()?;
    let mut findings = Vec::new();
    for question in QUESTIONS {
        let layer = match tier {
            Tier::Full => question.layer,
            Tier::WithoutNamespaces => question.weaker,
        };
        let held = tried(question.probe, &policy, &secret).await?;
        findings.push(Finding {
            what: question.what,
            layer,
            held,
        });
    }
    Ok(findings)
}

async fn tried(probe: &str, policy: &Policy, secret: &Secret) -> Result<Held, NotRun> {
    let wanted = policy.wanted();
    let argument = match probe {
        "secret" => secret.path(),
        "writing" => secret.path(),
        "others" => std::process::id().to_string(),
        "processes" => wanted.processes.to_string(),
        "disk" => wanted.disk_bytes.to_string(),
        "files" => wanted.disk_files.to_string(),
        "memory" => wanted.memory_bytes.to_string(),
        _ => String::new(),
    };
    let under = match probe {
        // What never ends is given little time.
        "sleep" => Wanted {
            wall_ms: 200,
            ..wanted.clone()
        }
        .check()
        .unwrap_or_else(|_| policy.clone()),
        _ => policy.clone(),
    };
    let finished = Sandbox::unproven(under)
        .run(Command::probe(probe).args([argument]))
        .await?;
    let held = judged(probe, &finished);
    finished.clear().await;
    Ok(held)
}

fn judged(probe: &str, finished: &Finished) -> Held {
    let said = String::from_utf8_lossy(&finished.stdout);
    match (probe, finished.ended) {
        ("memory", Ended::Memory) | ("sleep", Ended::Deadline) | ("output", Ended::OutputCut) => {
            Held::Yes
        }
        (_, Ended::Exited(0)) if said.trim() == "held" => Held::Yes,
        (_, Ended::Exited(0)) => Held::No(said.trim().to_owned()),
        (_, ended) => Held::No(format!("it {ended}")),
    }
}

/// A file that this user can read and a program in the box must not.
struct Secret(std::path::PathBuf);

impl Secret {
    fn new() -> io::Result<Self> {
        let name = format!("fem-doctor-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let options = &mut std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).open(&path)?;
        io::Write::write_all(&mut file, b"secret")?;
        Ok(Self(path))
    }

    fn path(&self) -> String {
        Path::new(&self.0).display().to_string()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
