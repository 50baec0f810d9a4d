//! How a command ends: with an exit code that scripts can rely on, and words that say what to do next.

use std::fmt;

use proto_spec::Code;

/// What a command's end means. The numbers never change; README.md and `--help` list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It is done.
    Done = 0,
    /// Something here failed: a file, a key, this machine.
    Fault = 1,
    /// The command line makes no sense. The same number as clap's own.
    Usage = 2,
    /// The broker or the provider refused; nothing was changed.
    Refused = 3,
    /// What was named does not exist.
    NotFound = 4,
    /// The broker cannot be reached, or nobody who serves the tool is attached.
    Unreachable = 5,
    /// An admin, a second admin, or whoever logs in has to decide first.
    Pending = 6,
    /// The call arrived, and the tool itself answered with an error.
    ToolFailed = 7,
    /// No answer: it may or may not have happened.
    Unknown = 8,
    /// Refused for now; the same command may succeed later.
    TryAgain = 9,
}

impl Exit {
    /// The table as `--help` prints it; README.md has the same.
    pub(crate) const TABLE: &str = "\
Exit codes:
  0  done
  1  something here failed (a file, a key, this machine), or a check found a problem
  2  the command line makes no sense
  3  refused by the broker or the provider; nothing was changed
  4  what was named does not exist
  5  the broker cannot be reached, or nobody who serves the tool is attached
  6  pending: an admin, a second admin, or whoever logs in has to decide first
  7  the tool itself answered with an error
  8  no answer: it may or may not have happened
  9  refused for now: the same command may succeed later";

    /// What a broker's refusal means for a script.
    pub(crate) const fn of(code: Code) -> Self {
        match code {
            Code::NotFound => Self::NotFound,
            Code::Unavailable => Self::Unreachable,
            Code::Deadline | Code::OutcomeUnknown => Self::Unknown,
            Code::Busy | Code::TokenUndecided | Code::Clock | Code::StorageFull => Self::TryAgain,
            Code::Stale | Code::RevocationsStale | Code::Internal => Self::TryAgain,
            _ => Self::Refused,
        }
    }
}

/// Why a command did not do what it was told.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    /// The wire code, where a broker refused.
    code: Option<String>,
    message: String,
    next: Option<String>,
}

/// What every command gives.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure with its meaning.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            code: None,
            message: message.into(),
            next: None,
        }
    }

    /// The command line makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Something here failed.
    pub(crate) fn fault(message: impl Into<String>) -> Self {
        Self::new(Exit::Fault, message)
    }

    /// What was named does not exist.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, message)
    }

    /// The broker or the provider refused, with its code.
    pub(crate) fn refused(code: Code, message: impl Into<String>) -> Self {
        Self {
            code: Some(code.to_string()),
            ..Self::new(Exit::of(code), message)
        }
    }

    /// No failure, but not done either: the command has said all there is to say.
    pub(crate) fn told(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// Whether the command has said all there is to say.
    pub(crate) fn is_told(&self) -> bool {
        self.message.is_empty()
    }

    /// Says what to do next.
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Says what to do next, unless somebody who knew better said so.
    pub(crate) fn or_next(mut self, next: impl Into<String>) -> Self {
        self.next.get_or_insert_with(|| next.into());
        self
    }

    /// Its meaning to scripts.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// What went wrong, and what to do next.
    pub(crate) fn apart(mut self) -> (String, Option<String>) {
        let next = self.next.take();
        (self.to_string(), next)
    }

    /// For `--json`.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({"error": {
            "exit": self.exit as u8,
            "code": self.code,
            "message": self.message,
            "next": self.next,
        }})
    }
}

/// What people read; whatever others wrote in it is escaped by whoever prints it.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) => write!(f, "{code}: {}", self.message)?,
            None => f.write_str(&self.message)?,
        }
        match &self.next {
            Some(next) => write!(f, "\n  next: {next}"),
            None => Ok(()),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::fault(format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::fault(error.to_string())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::fault(format!("not the JSON that was expected: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_exit_code_with_its_number() {
        let all = [
            Exit::Done,
            Exit::Fault,
            Exit::Usage,
            Exit::Refused,
            Exit::NotFound,
            Exit::Unreachable,
            Exit::Pending,
            Exit::ToolFailed,
            Exit::Unknown,
            Exit::TryAgain,
        ];
        let lines: Vec<&str> = Exit::TABLE.lines().skip(1).collect();
        assert_eq!(lines.len(), all.len());
        for (line, exit) in lines.iter().zip(all) {
            assert!(line.starts_with(&format!("  {}  ", exit as u8)), "{line}");
        }
    }

    #[test]
    fn the_readme_lists_the_same_exit_codes_as_help() {
        let readme = include_str!("../README.md");
        for line in Exit::TABLE.lines().skip(1) {
            let (number, meaning) = line.trim().split_once("  ").unwrap();
            assert!(
                readme.contains(&format!("| {number} | {meaning} |")),
                "{line}"
            );
        }
    }

    #[test]
    fn every_retryable_code_says_so_in_its_exit() {
        for code in Code::ALL {
            let later = matches!(
                Exit::of(code),
                Exit::TryAgain | Exit::Unreachable | Exit::Unknown
            );
            assert!(later || !code.is_retryable(), "{code}");
        }
    }
}
