//! Tools that are programs in the box.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;
use serde_json::value::to_raw_value;

use super::command::Command;
use super::launch::{NotRun, Sandbox};
use super::running::{Finished, Output};
use crate::incoming::{Call, Progress};
use crate::tool::{INVALID_ARGUMENTS, Tool, ToolError};

/// The machine cannot enforce the policy, or the box failed: nothing ran.
pub const SANDBOX_FAILED: &str = "SANDBOX_FAILED";

impl Tool {
    /// A tool that is a program in the box. `words` are the program and its arguments, each as it
    /// stands; one that is `{name}` as a whole is the caller's text of that name. There is no shell,
    /// and what a caller gives stays one argument. It cannot begin with a hyphen unless the word `--`
    /// comes before. The caller's `stdin` is what the program reads.
    ///
    /// The answer is [`super::Told`], whichever way the program ended.
    ///
    /// ```no_run
    /// use agent_sdk::Tool;
    /// use agent_sdk::sandbox::{Sandbox, Wanted};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let policy = Wanted::default().check().map_err(|problems| problems.join("\n"))?;
    /// let sandbox = Sandbox::open(policy).await?;
    /// let count = Tool::command("text.count", &sandbox, ["wc", "-w"]);
    /// # Ok(()) }
    /// ```
    pub fn command<S: Into<String>>(
        name: impl Into<String>,
        sandbox: &Sandbox,
        words: impl IntoIterator<Item = S>,
    ) -> Self {
        let words: Vec<String> = words.into_iter().map(Into::into).collect();
        let runs_in = sandbox.policy().sandbox();
        let schema = schema(&words);
        let sandbox = sandbox.clone();
        let run = move |mut call: Call, arguments: Box<serde_json::value::RawValue>| {
            let (sandbox, words) = (sandbox.clone(), words.clone());
            async move {
                let given: BTreeMap<String, String> = serde_json::from_str(arguments.get())
                    .map_err(|why| ToolError::new(INVALID_ARGUMENTS, why.to_string()))?;
                let command = filled(&words, &given)?;
                let finished = sandbox.run_for(&mut call, command).await?;
                Ok(to_raw_value(&finished.told().await)?)
            }
        };
        Self::raw(name, &schema, run).sandboxed(runs_in)
    }
}

impl Sandbox {
    /// Runs a program for a caller, who is shown what it prints while it runs, if they want to know: every
    /// 100 ms, or 16 KiB.
    /// What ran, how it ended and under which policy is logged with the call.
    ///
    /// # Errors
    ///
    /// [`SANDBOX_FAILED`], or [`INVALID_ARGUMENTS`] where what the caller gave cannot be run.
    pub async fn run_for(&self, call: &mut Call, command: Command) -> Result<Finished, ToolError> {
        let mut running = self.start(command).await.map_err(refused)?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut untold = Untold::default();
        loop {
            let wait = untold.wait(Instant::now());
            if wait == Some(Duration::ZERO) {
                call.progress(untold.take(Instant::now())).await;
                continue;
            }
            let output = tokio::select! {
                output = running.output() => output,
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => continue,
            };
            let Some(output) = output else { break };
            untold.add(&output);
            match output {
                Output::Stdout(bytes) => stdout.extend(bytes),
                Output::Stderr(bytes) => stderr.extend(bytes),
            }
        }
        // The rest is in the answer, for those who put the pieces together as well.
        if untold.bytes() > 0 {
            call.progress(untold.take(Instant::now())).await;
        }
        let mut finished = running.finish().await.map_err(refused)?;
        (finished.stdout, finished.stderr) = (stdout, stderr);
        tracing::info!(
            call = %call.id(), caller = %call.caller(), tool = %call.tool(),
            ended = %finished.ended, policy = %finished.policy, "ran in the sandbox"
        );
        Ok(finished)
    }
}

/// How often a caller is told what a program prints, unless so many bytes wait. A program that prints
/// byte by byte costs a signature each tenth of a second, not one for each byte.
const TELL_EVERY: Duration = Duration::from_millis(100);
const TELL_BYTES: usize = 16 << 10;

/// What a program printed and its caller was not told yet.
#[derive(Default)]
struct Untold {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    told_at: Option<Instant>,
}

impl Untold {
    fn add(&mut self, output: &Output) {
        match output {
            Output::Stdout(bytes) => self.stdout.extend_from_slice(bytes),
            Output::Stderr(bytes) => self.stderr.extend_from_slice(bytes),
        }
    }

    const fn bytes(&self) -> usize {
        self.stdout.len() + self.stderr.len()
    }

    /// How long until it is to be told; none where there is nothing.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let since = self.told_at.map(|at| now.saturating_duration_since(at));
        match self.bytes() {
            0 => None,
            TELL_BYTES.. => Some(Duration::ZERO),
            _ => Some(since.map_or(Duration::ZERO, |since| TELL_EVERY.saturating_sub(since))),
        }
    }

    fn take(&mut self, now: Instant) -> Progress {
        self.told_at = Some(now);
        let mut shown = serde_json::Map::new();
        for (name, bytes) in [("stdout", &mut self.stdout), ("stderr", &mut self.stderr)] {
            if !bytes.is_empty() {
                shown.insert(name.into(), String::from_utf8_lossy(bytes).into());
                bytes.clear();
            }
        }
        Progress::default().with(&shown)
    }
}

fn refused(why: NotRun) -> ToolError {
    match why {
        NotRun::Invalid(_) | NotRun::NotStarted(_) => {
            ToolError::new(INVALID_ARGUMENTS, why.to_string())
        }
        other => ToolError::new(SANDBOX_FAILED, other.to_string()),
    }
}

/// The name in `{name}`.
fn gap(word: &str) -> Option<&str> {
    let name = word.strip_prefix('{')?.strip_suffix('}')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!name.is_empty() && name.chars().all(plain)).then_some(name)
}

fn schema(words: &[String]) -> serde_json::Value {
    let names: Vec<&str> = words.iter().filter_map(|word| gap(word)).collect();
    let mut properties: serde_json::Map<_, _> = names
        .iter()
        .map(|name| ((*name).to_owned(), json!({"type": "string"})))
        .collect();
    let stdin = json!({"type": "string", "description": "What the program reads"});
    properties.entry("stdin").or_insert(stdin);
    json!({"type": "object", "properties": properties, "required": names, "additionalProperties": false})
}

fn filled(words: &[String], given: &BTreeMap<String, String>) -> Result<Command, ToolError> {
    let wrong = |why: String| ToolError::new(INVALID_ARGUMENTS, why);
    let names: Vec<&str> = words.iter().filter_map(|word| gap(word)).collect();
    if let Some(other) = given
        .keys()
        .find(|name| *name != "stdin" && !names.contains(&name.as_str()))
    {
        return Err(wrong(format!("there is no argument {other:?}")));
    }
    let mut ready = Vec::new();
    for word in words {
        let Some(name) = gap(word) else {
            ready.push(word.clone());
            continue;
        };
        let value = given
            .get(name)
            .ok_or_else(|| wrong(format!("the argument {name:?} is missing")))?;
        if value.starts_with('-') && !ready.iter().any(|before| before == "--") {
            return Err(wrong(format!(
                "the argument {name:?} may not begin with a hyphen"
            )));
        }
        ready.push(value.clone());
    }
    let mut ready = ready.into_iter();
    let command = Command::new(ready.next().unwrap_or_default()).args(ready);
    Ok(match given.get("stdin") {
        Some(text) if !names.contains(&"stdin") => command.stdin(text.as_bytes()),
        _ => command,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_prints_byte_by_byte_is_told_of_ten_times_a_second() {
        let (mut untold, mut now, mut told) = (Untold::default(), Instant::now(), 0);
        for _ in 0..100_000 {
            untold.add(&Output::Stdout(b"x".to_vec()));
            if untold.wait(now) == Some(Duration::ZERO) {
                untold.take(now);
                told += 1;
            }
            now += Duration::from_micros(10);
        }
        assert!((8..=20).contains(&told), "{told} messages of one second");
    }

    #[test]
    fn what_is_told_is_all_that_was_printed_in_bounded_pieces() {
        let (mut untold, now, mut pieces) = (Untold::default(), Instant::now(), Vec::new());
        for _ in 0..100 {
            untold.add(&Output::Stderr(vec![b'x'; 1_000]));
            if untold.wait(now) == Some(Duration::ZERO) {
                pieces.push(untold.take(now));
            }
        }
        pieces.push(untold.take(now));
        assert!(pieces.len() <= 8, "{} messages", pieces.len());
        let printed: usize = pieces
            .iter()
            .map(|piece| piece.data.as_ref().unwrap().get().matches('x').count())
            .sum();
        assert_eq!(printed, 100_000);
    }

    fn fill(words: &[&str], given: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let given = given
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        let command = filled(&words, &given).map_err(|why| why.message)?;
        Ok([vec![command.program], command.args].concat())
    }

    #[test]
    fn what_a_caller_gives_stays_one_argument() {
        let filled = fill(
            &["grep", "--", "{what}", "{}"],
            &[("what", "-r / ; id $(id)")],
        );
        assert_eq!(filled.unwrap(), ["grep", "--", "-r / ; id $(id)", "{}"]);
    }

    #[test]
    fn a_caller_cannot_give_an_option_or_what_is_not_asked_for() {
        assert!(fill(&["grep", "{what}"], &[("what", "-r")]).is_err());
        assert!(fill(&["grep", "{what}"], &[]).is_err());
        assert!(fill(&["grep", "x"], &[("LD_PRELOAD", "x")]).is_err());
    }
}
