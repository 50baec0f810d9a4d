//! An organisation with a broker of its own, and the commands as people type them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

/// One organisation in a directory, and its broker.
pub(crate) struct Org {
    pub(crate) dir: tempfile::TempDir,
    name: &'static str,
    _broker: Process,
}

/// A process that ends when its standard input closes.
pub(crate) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn start(dir: &Path, arguments: &[&str]) -> Self {
        let mut child = fem(dir, arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            input,
            output,
        }
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().into()
    }

    pub(crate) fn order(&mut self, order: &str) -> String {
        writeln!(self.input.as_mut().unwrap(), "{order}").unwrap();
        self.line()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

pub(crate) fn fem(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fem-cli"));
    command
        .current_dir(dir)
        .args(arguments)
        .env("XDG_CONFIG_HOME", dir.join("config"));
    // What stands in the environment of a test run is not for the programs that it starts.
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"FEM_") {
            command.env_remove(name);
        }
    }
    command
}

impl Org {
    pub(crate) fn new() -> Self {
        Self::of("acme")
    }

    pub(crate) fn of(name: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let any = "127.0.0.1:0";
        let made = fem(dir.path(), &["init", name, "--listen", any, "--ops", any])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", told(&made));
        let (broker, ready) = start(dir.path(), name);
        let address = ready.split(' ').nth(1).unwrap();
        for file in ["admin", "join"] {
            let path = dir.path().join(format!("{name}/{file}.toml"));
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(path, text.replace("127.0.0.1:0", address)).unwrap();
        }
        Self {
            dir,
            name,
            _broker: broker,
        }
    }

    /// Where its broker listens.
    pub(crate) fn address(&self) -> String {
        address_in(&self.dir.path().join(self.name).join("admin.toml"))
    }

    /// Runs one command line; words are split at spaces, `·` in a word stands for a space.
    #[track_caller]
    pub(crate) fn run(&self, exit: i32, line: &str) -> String {
        let words: Vec<String> = line.split(' ').map(|word| word.replace('·', " ")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let done = fem(self.dir.path(), &words).output().unwrap();
        assert_eq!(done.status.code(), Some(exit), "{line}\n{}", told(&done));
        String::from_utf8(done.stdout).unwrap()
    }

    /// With which code a command line ends.
    pub(crate) fn run_any(&self, line: &str) -> i32 {
        let words: Vec<&str> = line.split(' ').collect();
        let done = fem(self.dir.path(), &words).output().unwrap();
        done.status.code().unwrap()
    }

    #[track_caller]
    pub(crate) fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.run(0, &format!("{line} --json"))).unwrap()
    }

    /// Repeats a call until somebody serves its tool: the offer is on its way.
    pub(crate) fn wait_for_provider(&self, call: &str) {
        assert!(
            (0..500).any(|_| self.run_any(call) != 5),
            "nobody serves: {call}"
        );
    }

    /// Registers and approves an agent.
    pub(crate) fn join(&self, name: &str) {
        self.run(
            6,
            &format!("agent register {name} --context {}/join.toml", self.name),
        );
        self.admin(0, &format!("agent approve {name}"));
    }

    /// An agent process that serves `files.read` and `files.delete` below a directory.
    pub(crate) fn serve(&self, directory: &Path) -> Process {
        self.join("files");
        let mut files = Process::start(self.dir.path(), &["internal", "agent", "files.toml"]);
        files.line();
        let order = serde_json::json!({"serve": {"directory": directory}});
        assert_eq!(files.order(&order.to_string()), r#""done""#);
        files
    }
}

/// Starts an organisation's broker; with what it says when it is ready.
fn start(dir: &Path, name: &str) -> (Process, String) {
    let config = format!("{name}/broker.toml");
    let mut broker = Process::start(dir, &["internal", "broker", &config]);
    let ready = broker.line();
    (broker, ready)
}

pub(crate) fn told(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

impl Org {
    pub(crate) fn admin(&self, exit: i32, line: &str) -> String {
        self.run(exit, &format!("--context {}/admin.toml {line}", self.name))
    }

    /// What the admin's `--json` answer says.
    pub(crate) fn asked(&self, line: &str) -> Value {
        self.json(&format!("--context {}/admin.toml {line}", self.name))
    }

    /// The same organisation with more in its broker's configuration, after a restart.
    pub(crate) fn reconfigured(self, section: &str, lines: &str) -> Self {
        let address = self.address();
        let Self {
            dir,
            name,
            _broker: broker,
        } = self;
        drop(broker);
        let path = dir.path().join(name).join("broker.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text
            .replace(
                "listen = \"127.0.0.1:0\"",
                &format!("listen = \"{address}\""),
            )
            .replace(&format!("[{section}]"), &format!("[{section}]\n{lines}"));
        std::fs::write(path, text).unwrap();
        let (broker, ready) = start(dir.path(), name);
        assert!(ready.starts_with("ready"));
        Self {
            dir,
            name,
            _broker: broker,
        }
    }
}

fn address_in(context: &Path) -> String {
    let text = std::fs::read_to_string(context).unwrap();
    let after = text.split("https://").nth(1).unwrap();
    after.split('"').next().unwrap().into()
}

pub(crate) fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Runs a command in a directory that has no context and no broker.
#[track_caller]
pub(crate) fn offline(dir: &Path, exit: i32, words: &[&str], input: &str) -> String {
    let mut child = fem(dir, words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // A command that does not read it may have ended.
    let _ = pipe.write_all(input.as_bytes());
    drop(pipe);
    let done = child.wait_with_output().unwrap();
    let told = told(&done);
    assert_eq!(done.status.code(), Some(exit), "{words:?}\n{told}");
    told
}
