//! The README's steps, run as they are written, in an empty directory.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tests::binaries::{apart, path, root};
use tests::mcp::shelf::Shelf;
use tests::mcp::toolbox;

/// The README.
pub(crate) fn text() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

/// The fenced shell blocks of a part of the README, in order, with the word behind `sh`.
pub(crate) fn blocks(part: &str) -> Vec<(String, String)> {
    part.split("```sh")
        .skip(1)
        .map(|rest| {
            let (head, rest) = rest.split_once('\n').unwrap();
            (
                head.trim().to_owned(),
                rest.split("```").next().unwrap().to_owned(),
            )
        })
        .collect()
}

fn shell(script: &str, folder: &Path) -> Command {
    let binaries = path("fem-cli").unwrap().parent().unwrap().to_owned();
    let search = format!(
        "{}:{}:{}",
        binaries.display(),
        binaries.join("examples").display(),
        std::env::var("PATH").unwrap()
    );
    let mut shell = Command::new("bash");
    shell
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(folder)
        .env("PATH", search)
        .env("HOME", folder)
        .env_remove("XDG_CONFIG_HOME");
    apart(&mut shell);
    shell
}

struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts what the README runs in a terminal of its own, and waits for its first line with `word`.
fn background(script: &str, folder: &Path, word: &str) -> Background {
    // `exec`, so that ending the shell ends the program.
    let script = format!(
        "exec {}",
        script.trim().replace("FEM_CONTEXT=", "env FEM_CONTEXT=")
    );
    let mut child = shell(&script, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let background = Background(child);
    if !word.is_empty() {
        let line = stdout
            .lines()
            .find(|line| line.as_ref().is_ok_and(|line| line.contains(word)));
        assert!(line.is_some(), "it ended before it said {word:?}");
    }
    background
}

/// The tool is offered: the README's reader sees the provider's terminal.
const OFFERED: &str =
    "fem-cli agent show hello --json --context acme/admin.toml | grep -q '\"sessions\": *1'";
/// The server's agent waits for the admin, as its terminal says.
const WAITS: &str = "fem-cli agent list --context acme/admin.toml | grep -q '^fs '";

fn wait_until(holds: &str, folder: &Path) {
    let holds = || shell(holds, folder).status().unwrap().success();
    assert!(
        (0..200).any(|_| holds()),
        "what the README starts does not get there"
    );
}

/// The heading of what takes other people's programs.
const MCP: &str = "## Bring your MCP servers";

/// Puts what the README installs where it installs it, as far as it is here already.
///
/// # Errors
///
/// What is missing.
async fn install(shelf: &Shelf) -> Result<(), String> {
    let (npm, python) = (toolbox::npm().await?, toolbox::python().await?);
    let is_seen = |place: &&str| Path::new(place).exists();
    if !["/usr/bin/node", "/usr/local/bin/node"].iter().any(is_seen) {
        return Err("no Node.js is where the box sees it".into());
    }
    shelf.npm("mcp", npm).unwrap();
    shelf.python("client", python).unwrap();
    Ok(())
}

/// The README without the part under this heading.
fn without(text: &str, heading: &str) -> String {
    let (before, part) = text.split_once(heading).unwrap();
    let (_, after) = part.split_once("\n## ").unwrap();
    format!("{before}\n## {after}")
}

#[tokio::test]
async fn the_readmes_steps_work_as_written() {
    let shelf = Shelf::new().unwrap();
    let folder = shelf.folder();
    let mut text = text();
    if let Err(why) = install(&shelf).await {
        eprintln!("left out: the README's MCP servers and clients, because {why}");
        text = without(&text, MCP);
    }
    let blocks = blocks(&text);
    let mut kept = Vec::new();
    assert!(
        blocks
            .iter()
            .any(|(_, script)| script.contains("cargo run --release -p fem-cli -- demo"))
    );
    assert!(
        blocks
            .iter()
            .any(|(_, script)| script.contains("cargo test --release --workspace"))
    );
    for (kind, script) in blocks
        .iter()
        .filter(|(_, script)| !script.contains("cargo "))
    {
        match kind.as_str() {
            "broker" | "coder" => kept.push(background(script, folder, "ready")),
            "provider" => {
                kept.push(background(script, folder, ""));
                wait_until(OFFERED, folder);
            }
            "wrap" => {
                kept.push(background(script, folder, ""));
                wait_until(WAITS, folder);
            }
            // It is there: see `install`.
            "install" => {}
            "fails" => {
                let output = shell(script, folder).output().unwrap();
                assert!(!output.status.success(), "{script}");
            }
            "pending" => {
                for line in script.lines() {
                    let status = shell(line, folder).output().unwrap().status;
                    assert_eq!(status.code(), Some(6), "{line}");
                }
            }
            // The reader types slower than two brokers find each other.
            "soon" => {
                for line in script.lines() {
                    let works = || shell(line, folder).output().unwrap().status.success();
                    assert!((0..500).any(|_| works()), "{line}");
                }
            }
            "stopped" => {
                for line in script.lines() {
                    let status = shell(line, folder).output().unwrap().status;
                    assert_eq!(status.code(), Some(7), "{line}");
                }
            }
            "gone" => {
                // Refused by the tool's owner, or not found any more, whichever comes first.
                let status = shell(script, folder).output().unwrap().status;
                assert!(matches!(status.code(), Some(3 | 5)), "{script}: {status}");
            }
            "refused" => {
                let output = shell(script, folder).output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.code(), Some(3), "{script}\n{said}");
                assert!(said.contains("DENIED"), "{said}");
            }
            _ => {
                let output = shell(script, folder).output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(
                    output.status.success(),
                    "{script}\n{}{said}",
                    String::from_utf8_lossy(&output.stdout)
                );
            }
        }
    }
}

#[test]
fn the_readme_administers_with_every_act() {
    let scripts: String = blocks(&text())
        .into_iter()
        .map(|(_, script)| script)
        .collect();
    for act in [
        "enrol issue",
        "agent approve",
        "token issue",
        "token delegate",
        "grants tree",
        "token revoke --under",
        "agent revoke",
        "agent quarantine",
        "agent rotate-key",
        "root prepare",
        "root activate",
        "root retire",
    ] {
        assert!(scripts.contains(&format!("fem-cli {act}")), "{act}");
    }
}

#[test]
fn the_readme_federates_with_a_yes_of_each_side() {
    let scripts: String = blocks(&text())
        .into_iter()
        .map(|(_, script)| script)
        .collect();
    for act in ["peer invite", "peer accept", "peer grant", "peer doctor"] {
        assert!(scripts.contains(&format!("fem-cli {act}")), "{act}");
    }
}

#[test]
fn the_readme_runs_code_that_nobody_vouches_for() {
    let scripts: String = blocks(&text())
        .into_iter()
        .map(|(_, script)| script)
        .collect();
    for act in [
        "sandbox doctor",
        "sandbox run",
        "token issue ada --capability code.python --sandbox",
    ] {
        assert!(scripts.contains(&format!("fem-cli {act}")), "{act}");
    }
}

#[test]
fn the_readme_brings_in_mcp_servers_and_both_kinds_of_clients() {
    let text = text();
    let (_, part) = text.split_once(MCP).unwrap();
    for act in ["wrap", "serve", "keep", "token"] {
        assert!(
            part.contains(&format!("mcp {act}")) || part.contains(&format!("\"mcp\", \"{act}\"")),
            "{act}"
        );
    }
}

#[test]
fn the_readme_installs_what_the_tests_do() {
    let locked = |file: &str| std::fs::read_to_string(root().join("tests/mcp").join(file)).unwrap();
    let (npm, python) = (locked("package.json"), locked("python.in"));
    let installs = blocks(&text())
        .into_iter()
        .filter(|(kind, _)| kind == "install");
    let mut found = 0;
    for (_, script) in installs {
        for word in script.split_whitespace() {
            if let Some((name, version)) =
                word.rsplit_once('@').filter(|(name, _)| !name.is_empty())
            {
                assert!(
                    npm.contains(&format!("\"{name}\": \"{version}\"")),
                    "{word}"
                );
                found += 1;
            } else if word.contains("==") {
                assert!(python.lines().any(|line| line == word), "{word}");
                found += 1;
            }
        }
    }
    assert_eq!(found, 2);
}

#[test]
fn the_demo_holds_every_expectation() {
    let output = Command::new(path("fem-cli").unwrap())
        .arg("demo")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("expectations held"), "{said}");
}
