//! The README's steps, run as they are written, in an empty directory.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tests::binaries::{path, root};

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
        .env("XDG_CONFIG_HOME", folder.join("config"))
        .env_remove("FEM_CONTEXT");
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

/// Waits until the tool is offered: the README's reader sees the provider's terminal.
fn wait_for_tool(folder: &Path) {
    let offered =
        "fem-cli agent show hello --json --context acme/admin.toml | grep -q '\"sessions\": *1'";
    for _ in 0..200 {
        if shell(offered, folder).status().unwrap().success() {
            return;
        }
        std::thread::yield_now();
    }
    panic!("hello did not attach");
}

#[test]
fn the_readmes_steps_work_as_written() {
    let folder = tempfile::tempdir().unwrap();
    // The README listens on 7443; in a test the port is whatever is free.
    let blocks = blocks(&text());
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
            "broker" | "coder" => kept.push(background(script, folder.path(), "ready")),
            "provider" => {
                kept.push(background(script, folder.path(), ""));
                wait_for_tool(folder.path());
            }
            "pending" => {
                for line in script.lines() {
                    let status = shell(line, folder.path()).output().unwrap().status;
                    assert_eq!(status.code(), Some(6), "{line}");
                }
            }
            // The reader types slower than two brokers find each other.
            "soon" => {
                for line in script.lines() {
                    let works = || {
                        shell(line, folder.path())
                            .output()
                            .unwrap()
                            .status
                            .success()
                    };
                    assert!((0..500).any(|_| works()), "{line}");
                }
            }
            "stopped" => {
                for line in script.lines() {
                    let status = shell(line, folder.path()).output().unwrap().status;
                    assert_eq!(status.code(), Some(7), "{line}");
                }
            }
            "gone" => {
                // Refused by the tool's owner, or not found any more, whichever comes first.
                let status = shell(script, folder.path()).output().unwrap().status;
                assert!(matches!(status.code(), Some(3 | 5)), "{script}: {status}");
            }
            "refused" => {
                let output = shell(script, folder.path()).output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.code(), Some(3), "{script}\n{said}");
                assert!(said.contains("DENIED"), "{said}");
            }
            _ => {
                let output = shell(script, folder.path()).output().unwrap();
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
fn the_demo_holds_every_expectation() {
    let output = Command::new(path("fem-cli").unwrap())
        .arg("demo")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("expectations held"), "{said}");
}
