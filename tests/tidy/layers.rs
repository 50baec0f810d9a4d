//! Who may import whom: a module uses modules of lower layers only, or of its own.

use std::collections::BTreeMap;
use std::path::Path;

use tests::binaries::root;

/// Lowest first. `identity` parses topics with the grammar of capabilities, hence its place.
const PROTO_SPEC: &[&[&str]] = &[
    &["limits", "time"],
    &[
        "identity",
        "signature",
        "refusal",
        "wire",
        "capability",
        "frame",
    ],
    &["envelope", "replay"],
    &["message"],
    &["admission", "succession", "trust"],
    &["peering"],
];

/// Lowest first.
const BROKER: &[&[&str]] = &[
    &[
        "clock",
        "compat_endpoint",
        "config",
        "keyfile",
        "locks",
        "phase",
        "telemetry",
        "threshold",
        "tls",
    ],
    &["change", "kept"],
    &["journal", "voice"],
    &["state"],
    &["metrics", "routing", "registrar", "upkeep", "conversation"],
    &["delivery"],
    &["pipeline", "calls", "directory", "transit"],
    &["inside"],
    &["compat", "federation", "mcp"],
    &["listener"],
    &["broker"],
];

#[test]
fn proto_spec_imports_point_downwards() {
    check("proto-spec", PROTO_SPEC);
}

#[test]
fn broker_imports_point_downwards() {
    check("broker", BROKER);
}

fn check(package: &str, layers: &[&[&str]]) {
    let source = root().join(package).join("src");
    let layer_of: BTreeMap<&str, usize> = layers
        .iter()
        .enumerate()
        .flat_map(|(layer, modules)| modules.iter().map(move |module| (*module, layer)))
        .collect();
    let mut wrong = Vec::new();
    let mut seen = 0;
    each_file(&source, &mut |path| {
        let relative = path.strip_prefix(&source).unwrap();
        let module = relative
            .iter()
            .next()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs");
        if matches!(module, "lib" | "main") {
            return;
        }
        let layer = *layer_of
            .get(module)
            .unwrap_or_else(|| panic!("{package}: {module} has no layer"));
        seen += 1;
        for used in uses(&std::fs::read_to_string(path).unwrap()) {
            if let Some(other) = layer_of.get(used.as_str())
                && *other > layer
            {
                wrong.push(format!("{} uses {used}", relative.display()));
            }
        }
    });
    assert!(
        seen >= layer_of.len(),
        "{package}: every layered module exists"
    );
    assert!(
        wrong.is_empty(),
        "{package}: imports that point upwards: {wrong:#?}"
    );
}

/// The top-level modules that a file names by `crate::…`, its tests left out.
fn uses(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.collect::<Vec<_>>().join("\n");
    code.split("crate::")
        .skip(1)
        .map(|rest| {
            rest.chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                .collect()
        })
        .collect()
}

fn each_file(folder: &Path, each: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            each_file(&path, each);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            each(&path);
        }
    }
}
