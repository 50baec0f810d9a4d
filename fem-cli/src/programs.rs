//! How to call FEM's programs from where this one was called.

use std::path::{Path, PathBuf};

use crate::files::quoted;

fn called() -> PathBuf {
    std::env::args_os()
        .next()
        .map_or_else(|| "fem-cli".into(), PathBuf::from)
}

/// This program.
pub(crate) fn cli() -> String {
    quoted(&called())
}

/// The broker.
pub(crate) fn broker() -> String {
    beside(&called())
}

/// `fem-broker` beside a program that was called by its path; from a source tree, what builds it.
fn beside(program: &Path) -> String {
    let broker = program.with_file_name("fem-broker");
    let by_path = program.components().count() > 1;
    if by_path && broker.is_file() {
        return quoted(&broker);
    }
    if program
        .parent()
        .is_some_and(|folder| folder.ends_with("target/release"))
    {
        return "cargo run --release -p broker --".into();
    }
    "fem-broker".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_is_called_as_it_can_be_called_from_here() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("target/release/fem-cli");
        assert_eq!(beside(&program), "cargo run --release -p broker --");
        assert_eq!(beside(Path::new("fem-cli")), "fem-broker");
        std::fs::create_dir_all(program.parent().unwrap()).unwrap();
        std::fs::write(program.with_file_name("fem-broker"), "").unwrap();
        assert!(beside(&program).ends_with("target/release/fem-broker"));
    }
}
