//! docker-compose.yml says what README.md says. No container engine is needed to compare them.

use std::collections::BTreeSet;

use tests::binaries::root;

use crate::readme::{blocks, text};

/// What a shell line runs: without what decides whether it runs.
fn command(line: &str) -> Option<String> {
    let programs = ["FEM_CONTEXT=", "fem-cli ", "fem-broker "];
    let start = programs.iter().filter_map(|one| line.find(one)).min()?;
    Some(line[start..].trim().to_owned())
}

/// The commands of the compose file's scripts; `$$` is how it writes `$`.
fn composed() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("docker-compose.yml")).unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.trim().starts_with('#') && !line.contains("healthcheck:"));
    lines
        .filter_map(|line| command(&line.replace("$$", "$")))
        .collect()
}

/// The commands of README.md that are in blocks of these kinds.
fn told(part: &str, kinds: &[&str]) -> Vec<String> {
    let blocks = blocks(part).into_iter();
    blocks
        .filter(|(kind, _)| kinds.contains(&kind.as_str()))
        .flat_map(|(_, script)| script.lines().filter_map(command).collect::<Vec<_>>())
        .collect()
}

#[test]
fn the_compose_file_runs_the_readmes_commands_and_no_others() {
    let told: BTreeSet<String> = told(&text(), &["", "broker", "provider", "pending", "soon"])
        .into_iter()
        .collect();
    let composed = composed();
    let others: Vec<_> = composed.iter().filter(|one| !told.contains(*one)).collect();
    assert!(others.is_empty(), "{others:#?}");
    assert!(composed.len() > 15, "{composed:#?}");
}

#[test]
fn the_compose_file_federates_as_the_readme_does() {
    let readme = text();
    let (_, section) = readme.split_once("## Federate two organisations").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let composed = composed();
    // Looking, and taking back, is for whoever watches.
    let watched = ["peer doctor", "fem-cli tools", "trust show", "token revoke"];
    let missing: Vec<_> = told(section, &["", "broker", "soon"])
        .into_iter()
        .filter(|line| !watched.iter().any(|one| line.contains(one)))
        .filter(|line| !composed.contains(line))
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn the_compose_file_has_two_organisations_and_three_agents() {
    let composed = composed();
    let count = |start: &str| {
        let lines = composed.iter().filter(|line| line.starts_with(start));
        lines.collect::<BTreeSet<_>>().len()
    };
    assert_eq!(count("fem-cli init "), 2);
    assert_eq!(count("fem-broker "), 2);
    assert_eq!(count("fem-cli agent register "), 3);
    assert_eq!(count("fem-cli agent approve "), 3);
}
