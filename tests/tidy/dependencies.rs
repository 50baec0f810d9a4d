//! What may be linked.

use std::process::Command;

use serde_json::Value;
use tests::binaries::root;

fn cargo(args: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(args)
        .arg("--offline")
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn tree(package: &str) -> Vec<String> {
    let text = cargo(&[
        "tree", "-p", package, "-e", "normal", "--prefix", "none", "--format", "{p}",
    ]);
    text.lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_core_links_no_io_crate() {
    let linked = tree("proto-spec");
    for banned in ["tokio", "hyper", "rustls", "mio", "socket2", "redb"] {
        assert!(
            !linked.iter().any(|name| name == banned),
            "proto-spec links {banned}"
        );
    }
}

#[test]
fn no_tls_1_2_no_ring_and_no_openssl_are_linked() {
    let features = cargo(&[
        "tree",
        "--workspace",
        "--all-features",
        "-e",
        "features",
        "-i",
        "rustls",
    ]);
    assert!(!features.contains("tls12"), "{features}");
    let linked = cargo(&[
        "tree",
        "--workspace",
        "--all-features",
        "-e",
        "normal",
        "--prefix",
        "none",
    ]);
    for banned in [
        "ring v",
        "openssl-sys v",
        "native-tls v",
        "rustls-pemfile v",
    ] {
        assert!(
            !linked.lines().any(|line| line.starts_with(banned)),
            "{banned}"
        );
    }
}

#[test]
fn every_licence_is_one_that_we_may_ship() {
    let allowed = [
        "Apache-2.0",
        "MIT",
        "MIT-0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "CDLA-Permissive-2.0",
        "ISC",
        "OpenSSL",
        "Unicode-3.0",
        "Unlicense",
        "Zlib",
        "Apache-2.0 WITH LLVM-exception",
    ];
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version", "1"])).unwrap();
    for package in metadata["packages"].as_array().unwrap() {
        let licence = package["license"]
            .as_str()
            .unwrap_or_default()
            .replace('/', " OR ");
        let one_is_allowed = licence.split(" OR ").any(|choice| {
            choice
                .split(" AND ")
                .all(|part| allowed.contains(&part.trim_matches(['(', ')', ' '])))
        });
        let all = licence
            .split([' ', '(', ')'])
            .filter(|word| !matches!(*word, "" | "AND" | "OR"));
        let all_allowed = all.clone().all(|word| allowed.contains(&word));
        assert!(
            one_is_allowed || all_allowed,
            "{}: {licence:?}",
            package["name"]
        );
    }
}

#[test]
fn every_dependency_of_the_workspace_has_a_sentence() {
    let text = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, listed) = text.split_once("[workspace.dependencies]").unwrap();
    let listed = listed.split("\n[").next().unwrap();
    for group in listed.trim().split("\n\n") {
        assert!(
            group.trim_start().starts_with('#'),
            "no sentence before: {group}"
        );
    }
}
