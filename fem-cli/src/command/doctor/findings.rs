//! What `doctor` finds: one line for each thing it looked at.

use serde::Serialize;

use crate::failure::{Failure, Outcome};
use crate::output::{Output, Paint, escape};

/// How a look at one thing went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Health {
    Ok,
    Warn,
    Fail,
}

/// One line.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    pub(super) health: Health,
    what: &'static str,
    seen: String,
    /// What to do; empty where nothing is.
    next: String,
}

/// All lines so far.
#[derive(Default)]
pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Findings {
    pub(crate) fn ok(&mut self, what: &'static str, seen: impl Into<String>) {
        self.add(Health::Ok, what, seen, "");
    }
    pub(crate) fn warn(
        &mut self,
        what: &'static str,
        seen: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.add(Health::Warn, what, seen, next);
    }
    pub(crate) fn fail(
        &mut self,
        what: &'static str,
        seen: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.add(Health::Fail, what, seen, next);
    }
    /// What a command would have failed with, and its next step.
    pub(super) fn failed(&mut self, what: &'static str, failure: Failure) {
        let (seen, next) = failure.apart();
        self.fail(what, seen, next.unwrap_or_default());
    }
    /// Shows all lines. A failed one makes the command fail.
    pub(crate) fn give(&self, output: Output) -> Outcome {
        output.give(&self.0, || told(&self.0))?;
        let failed = self.0.iter().filter(|line| line.health == Health::Fail);
        match failed.count() {
            0 => Ok(()),
            n => Err(Failure::fault(format!(
                "{n} of {} checks failed",
                self.0.len()
            ))),
        }
    }

    fn add(
        &mut self,
        health: Health,
        what: &'static str,
        seen: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.0.push(Finding {
            health,
            what,
            seen: seen.into(),
            next: next.into(),
        });
    }
}

/// The lines as people read them.
pub(crate) fn told(lines: &[Finding]) -> String {
    let paint = Paint::stdout();
    let mut text = String::new();
    for line in lines {
        let mark = match line.health {
            Health::Ok => paint.good("ok  "),
            Health::Warn => paint.warn("warn"),
            Health::Fail => paint.bad("fail"),
        };
        text.push_str(&format!(
            "{mark}  {:<15}  {}\n",
            line.what,
            escape(&line.seen)
        ));
        if !line.next.is_empty() {
            text.push_str(&format!("      {:<15}  → {}\n", "", escape(&line.next)));
        }
    }
    text
}
