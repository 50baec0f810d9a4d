//! The conformance suite: run against a server, or against a client's command, and what it found.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::mcp::process::run;
use crate::mcp::toolbox::Npm;

/// The longest that all scenarios of a revision take together.
const SUITE_MAX: Duration = Duration::from_secs(300);
/// The longest that a client takes with one scenario: all are played at once.
const CLIENT_MAX: Duration = Duration::from_secs(240);
/// A folder's name ends with when it was made: `-2026-11-22T15-58-16-307Z`.
const STAMP_CHARS: usize = 25;

/// A set of scenarios, frozen when its revision was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirements {
    /// The last revision with a handshake.
    Legacy,
    /// 2026-07-28, the first without.
    Modern,
}

impl Requirements {
    /// Its name, which is its date.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Legacy => "2025-11-25",
            Self::Modern => "2026-07-28",
        }
    }
}

/// Which side of the protocol is put to the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Server,
    Client,
}

/// How many scenarios passed, of how many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Without a failure; warnings are none.
    pub passed: usize,
    /// All.
    pub of: usize,
}

impl Tally {
    /// So many of so many.
    #[must_use]
    pub const fn new(passed: usize, of: usize) -> Self {
        Self { passed, of }
    }
}

/// A scenario that failed, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// Its name.
    pub scenario: String,
    /// Whether the revision requires it.
    pub scored: bool,
    /// Each failed check, and what was wrong.
    pub checks: Vec<String>,
}

/// What the suite found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What the revision requires.
    pub scored: Tally,
    /// What is run beside it and does not count.
    pub unscored: Tally,
    /// What failed of either.
    pub failing: Vec<Failing>,
    /// What was found wanting, and is no failure: scenario and check.
    pub warned: Vec<String>,
    /// Checks that passed, over all scenarios.
    pub checks: usize,
}

impl Report {
    /// The names of the scenarios that failed.
    #[must_use]
    pub fn failed(&self) -> Vec<&str> {
        self.failing
            .iter()
            .map(|failing| failing.scenario.as_str())
            .collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scored, unscored) = (self.scored, self.unscored);
        write!(
            f,
            "{}/{} (+{}/{}), {} checks",
            scored.passed, scored.of, unscored.passed, unscored.of, self.checks
        )?;
        for failing in &self.failing {
            let scored = if failing.scored { "" } else { " (not scored)" };
            write!(
                f,
                "\n  {}{scored}: {}",
                failing.scenario,
                failing.checks.join("; ")
            )?;
        }
        Ok(())
    }
}

/// Runs all server scenarios of a revision against the server at `url`: plain HTTP, no token.
///
/// # Errors
///
/// When the suite does not run to its end. What it found wrong is in the report.
pub async fn conformance(npm: &Npm, url: &str, requirements: Requirements) -> Result<Report> {
    judge(npm, Side::Server, &["server", "--url", url], requirements).await
}

/// Runs all client scenarios of a revision against a command, which gets the suite's URL appended and the
/// scenario's name in `MCP_CONFORMANCE_SCENARIO`. It is split at spaces, without any quoting.
///
/// # Errors
///
/// When the suite does not run to its end.
pub async fn client_conformance(
    npm: &Npm,
    command: &str,
    requirements: Requirements,
) -> Result<Report> {
    let patience = CLIENT_MAX.as_millis().to_string();
    let arguments = ["client", "--command", command, "--timeout", &patience];
    judge(npm, Side::Client, &arguments, requirements).await
}

async fn judge(
    npm: &Npm,
    side: Side,
    arguments: &[&str],
    requirements: Requirements,
) -> Result<Report> {
    let results = tempfile::tempdir()?;
    let mut suite = npm.run("@modelcontextprotocol/conformance/dist/index.js");
    suite
        .args(arguments)
        .args(["--requirements", requirements.name()]);
    suite.arg("-o").arg(results.path());
    let ended = run(&mut suite, SUITE_MAX).await?;
    let required = required(npm, side, requirements)?;
    let found = found(results.path(), side)
        .with_context(|| String::from_utf8_lossy(&ended.stderr).into_owned())?;
    Ok(report(&required, &found))
}

/// The names under `server:` or `client:` of the set's file, whose lists are flat.
fn required(npm: &Npm, side: Side, requirements: Requirements) -> Result<Vec<String>> {
    let file = format!(
        "@modelcontextprotocol/conformance/requirements/{}.yaml",
        requirements.name()
    );
    let text = fs::read_to_string(npm.file(&file))?;
    let heading = match side {
        Side::Server => "server:",
        Side::Client => "client:",
    };
    Ok(text
        .lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .map_while(|line| line.strip_prefix("  - "))
        .map(str::to_owned)
        .collect())
}

/// One thing that a scenario looked at.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    id: String,
    status: String,
    error_message: Option<String>,
}

/// The checks of each scenario, from `checks.json` in a folder of its own.
fn found(results: &Path, side: Side) -> Result<BTreeMap<String, Vec<Check>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![results.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name == "checks.json") {
                let name = folder.strip_prefix(results)?.to_string_lossy();
                let name = name
                    .get(..name.len().saturating_sub(STAMP_CHARS))
                    .context("no stamp")?;
                let name = match side {
                    Side::Server => name.strip_prefix("server-").unwrap_or(name),
                    Side::Client => name,
                };
                found.insert(name.to_owned(), serde_json::from_slice(&fs::read(&path)?)?);
            }
        }
    }
    anyhow::ensure!(!found.is_empty(), "the suite ran no scenario");
    Ok(found)
}

fn report(required: &[String], found: &BTreeMap<String, Vec<Check>>) -> Report {
    let mut report = Report::default();
    let mut count = |scenario: &str, scored: bool, failed: Vec<String>| {
        let tally = if scored {
            &mut report.scored
        } else {
            &mut report.unscored
        };
        tally.of += 1;
        if failed.is_empty() {
            tally.passed += 1;
        } else {
            report.failing.push(Failing {
                scenario: scenario.to_owned(),
                scored,
                checks: failed,
            });
        }
    };
    for (scenario, checks) in found {
        let failed = checks.iter().filter(|check| check.status == "FAILURE");
        let failed = failed.map(|check| {
            format!(
                "{}: {}",
                check.id,
                check.error_message.as_deref().unwrap_or_default()
            )
        });
        count(scenario, required.contains(scenario), failed.collect());
    }
    for scenario in required.iter().filter(|name| !found.contains_key(*name)) {
        count(scenario, true, vec!["was not run".to_owned()]);
    }
    for (scenario, checks) in found {
        let warned = checks.iter().filter(|check| check.status == "WARNING");
        let warned = warned.map(|check| format!("{scenario}: {}", check.id));
        report.warned.extend(warned);
    }
    let passed = |check: &&Check| check.status == "SUCCESS";
    report.checks = found.values().flatten().filter(passed).count();
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(id: &str, status: &str) -> Check {
        Check {
            id: id.into(),
            status: status.into(),
            error_message: None,
        }
    }

    #[test]
    fn a_required_scenario_that_did_not_run_has_failed() {
        let required = ["ping".to_owned(), "caching".to_owned()];
        let found = BTreeMap::from([
            (
                "ping".to_owned(),
                vec![check("a", "SUCCESS"), check("b", "WARNING")],
            ),
            ("tasks".to_owned(), vec![check("c", "FAILURE")]),
        ]);
        let report = report(&required, &found);
        assert_eq!(report.scored, Tally::new(1, 2));
        assert_eq!(report.unscored, Tally::new(0, 1));
        assert_eq!(report.failed(), ["tasks", "caching"]);
        assert_eq!(report.warned, ["ping: b"]);
        assert_eq!(report.checks, 1);
    }
}
