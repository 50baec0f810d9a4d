//! A program, and what it is given: what can be checked before anything starts.

use std::collections::BTreeMap;

use super::launch::NotRun;

/// What one argument may hold: the kernel's own bound.
const ARGUMENT_BYTES_MAX: usize = 128 << 10;
/// All arguments and variables together.
const ARGUMENTS_BYTES_MAX: usize = 1 << 20;

/// A program, and what it is given.
#[derive(Debug, Clone, Default)]
pub struct Command {
    pub(super) program: String,
    pub(super) args: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) stdin: Input,
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) own: Own,
}

/// Which program of ours it is, if any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Own {
    #[default]
    None,
    Probe,
    Nothing,
}

#[derive(Debug, Clone, Default)]
pub(super) enum Input {
    #[default]
    Nothing,
    Bytes(Vec<u8>),
    Piped,
}

impl Command {
    /// A program by its path in the box, or by its name in `/usr/bin`. There is no shell.
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            ..Self::default()
        }
    }

    pub(super) fn probe(name: &str) -> Self {
        Self {
            own: Own::Probe,
            ..Self::new(name)
        }
    }

    /// No program: whether the box stands is all that is asked.
    pub(super) fn nothing() -> Self {
        Self {
            own: Own::Nothing,
            ..Self::new("nothing")
        }
    }

    /// Its arguments, each as it stands.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// A variable of its environment, which is empty but for `PATH`, `HOME`, `TMPDIR` and `LANG`.
    /// Whoever lets callers choose names lets them choose `LD_PRELOAD`.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// What it reads from standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Input::Bytes(bytes.into());
        self
    }

    /// Keeps its standard input open, for [`Running::stdin`](super::Running::stdin).
    #[must_use]
    pub fn piped(mut self) -> Self {
        self.stdin = Input::Piped;
        self
    }

    /// A file that lies in its folder when it starts.
    #[must_use]
    pub fn file(mut self, path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.insert(path.into(), bytes.into());
        self
    }

    pub(super) fn check(&self) -> Result<(), NotRun> {
        let env = self.env.iter().flat_map(|(name, value)| [name, value]);
        let texts = || {
            std::iter::once(&self.program)
                .chain(&self.args)
                .chain(env.clone())
        };
        if self.program.is_empty() {
            return Err(NotRun::Invalid("no program is named".into()));
        }
        if texts().any(|text| text.contains('\0')) {
            return Err(NotRun::Invalid("an argument holds a NUL".into()));
        }
        let longest = texts().map(String::len).max().unwrap_or(0);
        let all: usize = texts().map(String::len).sum();
        if longest >= ARGUMENT_BYTES_MAX || all > ARGUMENTS_BYTES_MAX {
            return Err(NotRun::Invalid(format!(
                "arguments of {all} bytes, the longest {longest}: at most {ARGUMENTS_BYTES_MAX} in all, each below {ARGUMENT_BYTES_MAX}"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_no_program_could_get_are_refused_before_anything_starts() {
        let long = "x".repeat(ARGUMENT_BYTES_MAX);
        let half = "x".repeat(ARGUMENT_BYTES_MAX / 2);
        for command in [
            Command::new(""),
            Command::new("a\0b"),
            Command::new("true").args(["a\0b"]),
            Command::new("true").env("a\0b", "c"),
            Command::new("true").args([long]),
            Command::new("true").args(std::iter::repeat_n(half, 17)),
        ] {
            assert!(matches!(command.check(), Err(NotRun::Invalid(_))));
        }
        assert!(
            Command::new("-rf")
                .args(["", "-x", "a b\n$(id)"])
                .check()
                .is_ok()
        );
    }
}
