//! How the demo is told: numbered steps, the command that does the same, and what was proven.

use std::cell::Cell;
use std::fmt::Display;
use std::path::Path;

use proto_spec::Code;

use super::process::Said;
use crate::failure::{Failure, Outcome};
use crate::output::{Paint, escape, join, print};
use crate::programs;

/// Tells the story, and counts what was proven.
pub(super) struct Teller {
    paint: Paint,
    step: Cell<u32>,
    proven: Cell<u32>,
}

impl Teller {
    pub(super) fn new() -> Self {
        Self {
            paint: Paint::stdout(),
            step: Cell::new(0),
            proven: Cell::new(0),
        }
    }

    pub(super) fn begin(&self, dir: &Path) -> Outcome {
        print(&format!(
            "{}\n\nEverything below happens now, on this machine: two brokers and three agents in processes\n\
             of their own, TLS between them, real files in {}.\n\
             {} marks what was checked, {} what was refused as it should be.",
            self.paint
                .strong("FEM: two organisations, three agents, and who may do what"),
            dir.display(),
            self.paint.good("✓"),
            self.paint.warn("⛔"),
        ))
    }

    /// Begins a step. `command` does the same by hand.
    pub(super) fn step(&self, title: &str, command: &str) -> Outcome {
        self.step.set(self.step.get() + 1);
        print(&format!(
            "\n{}",
            self.paint.strong(&format!("{}  {title}", self.step.get()))
        ))?;
        self.command(command)
    }

    /// What one would type.
    pub(super) fn command(&self, command: &str) -> Outcome {
        print(&format!("   {}", self.paint.faint(&format!("$ {command}"))))
    }

    pub(super) fn say(&self, text: &str) -> Outcome {
        print(&format!("   {text}"))
    }

    /// Something that has to be so.
    pub(super) fn prove(&self, holds: bool, claim: &str, seen: impl Display) -> Outcome {
        if holds {
            self.proven.set(self.proven.get() + 1);
            return print(&format!("   {} {claim}", self.paint.good("✓")));
        }
        self.broken(claim, &seen.to_string())
    }

    /// Something that has to be refused, with one of these codes.
    pub(super) fn refused(&self, said: &Said, codes: &[Code], claim: &str) -> Outcome {
        match said {
            Said::Refused { code: got, .. } if codes.iter().any(|code| code.as_str() == got) => {
                self.proven.set(self.proven.get() + 1);
                print(&format!(
                    "   {} {}  {claim}",
                    self.paint.warn("⛔"),
                    self.paint.strong(got)
                ))
            }
            other => {
                let codes = join(codes);
                self.broken(
                    &format!("{codes} was expected: {claim}"),
                    &other.to_string(),
                )
            }
        }
    }

    fn broken(&self, claim: &str, seen: &str) -> Outcome {
        print(&format!(
            "   {} {claim}\n     instead: {}",
            self.paint.bad("✗"),
            escape(seen)
        ))?;
        Err(Failure::fault(format!(
            "step {} did not go as it should: {claim}",
            self.step.get()
        ))
        .next("run it again with --keep and look at what was made; this is a bug worth reporting"))
    }

    pub(super) fn end(&self, kept: bool) -> Outcome {
        let left = match kept {
            true => "The directory is kept, the processes have ended.",
            false => "Everything is cleaned up.",
        };
        print(&format!(
            "\n{}\n\nWhat holds here holds between people who do not know each other's code:\n\
             nobody acts without a key, a key does nothing without a grant, and a grant ends when you say so.\n\n\
             Do it yourself:\n  {} init acme\n  {} acme/broker.toml",
            self.paint.good(&format!(
                "All {} expectations held. {left}",
                self.proven.get()
            )),
            programs::cli(),
            programs::broker(),
        ))
    }
}
