//! The commands as people type them, against a broker of their own.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, and says where"
)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

/// One organisation in a directory, and its broker.
struct Org {
    dir: tempfile::TempDir,
    _broker: Process,
}

/// A process that ends when its standard input closes.
struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(dir: &Path, arguments: &[&str]) -> Self {
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

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().into()
    }

    fn order(&mut self, order: &str) -> String {
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

fn fem(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fem-cli"));
    command
        .current_dir(dir)
        .args(arguments)
        .env("XDG_CONFIG_HOME", dir.join("config"));
    for name in ["FEM_CONTEXT", "FEM_BROKER", "FEM_AGENT", "FEM_KEY_FILE"] {
        command.env_remove(name);
    }
    command
}

impl Org {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let any = "127.0.0.1:0";
        let made = fem(dir.path(), &["init", "acme", "--listen", any, "--ops", any])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", told(&made));
        let mut broker = Process::start(dir.path(), &["internal", "broker", "acme/broker.toml"]);
        let ready = broker.line();
        let address = ready.split(' ').nth(1).unwrap();
        for name in ["admin", "join"] {
            let path = dir.path().join(format!("acme/{name}.toml"));
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(path, text.replace("127.0.0.1:0", address)).unwrap();
        }
        Self {
            dir,
            _broker: broker,
        }
    }

    /// Runs one command line; words are split at spaces, `·` in a word stands for a space.
    #[track_caller]
    fn run(&self, exit: i32, line: &str) -> String {
        let words: Vec<String> = line.split(' ').map(|word| word.replace('·', " ")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let done = fem(self.dir.path(), &words).output().unwrap();
        assert_eq!(done.status.code(), Some(exit), "{line}\n{}", told(&done));
        String::from_utf8(done.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.run(0, &format!("{line} --json"))).unwrap()
    }

    /// Repeats a call until somebody serves its tool: the offer is on its way.
    fn wait_for_provider(&self, call: &str) {
        let words: Vec<&str> = call.split(' ').collect();
        let is_missing = || fem(self.dir.path(), &words).output().unwrap().status.code() == Some(5);
        assert!((0..500).any(|_| !is_missing()), "nobody serves: {call}");
    }

    /// Registers and approves an agent.
    fn join(&self, name: &str) {
        self.run(
            6,
            &format!("agent register {name} --context acme/join.toml"),
        );
        self.run(
            0,
            &format!("--context acme/admin.toml agent approve {name}"),
        );
    }

    /// An agent process that serves `files.read` and `files.delete` below a directory.
    fn serve(&self, directory: &Path) -> Process {
        self.join("files");
        let mut files = Process::start(self.dir.path(), &["internal", "agent", "files.toml"]);
        files.line();
        let order = serde_json::json!({"serve": {"directory": directory}});
        assert_eq!(files.order(&order.to_string()), r#""done""#);
        files
    }
}

fn told(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn the_demo_keeps_its_promises_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let shown = fem(dir.path(), &["demo"])
        .env("TMPDIR", dir.path())
        .output()
        .unwrap();
    let text = told(&shown);
    assert!(shown.status.success(), "{text}");
    for claim in ["NOT_AUTHENTIC", "DENIED", "Q3 revenue", "expectations held"] {
        assert!(text.contains(claim), "{claim} in {text}");
    }
    assert!(
        !text.contains('\x1b'),
        "no colour where there is no terminal"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_agent_is_approved_by_its_fingerprint_and_revoked_for_good() {
    let org = Org::new();
    let asked: Value = {
        let text = org.run(6, "agent register fs --context acme/join.toml --json");
        serde_json::from_str(&text).unwrap()
    };
    let fingerprint = asked["fingerprint"].as_str().unwrap();
    let wrong = "0000:0000:0000:0000:0000:0000:0000:0000";
    org.run(
        4,
        &format!("--context acme/admin.toml agent approve fs --fingerprint {wrong}"),
    );
    org.run(
        0,
        &format!("--context acme/admin.toml agent approve fs --fingerprint {fingerprint}"),
    );
    org.run(0, "agent register fs --context acme/join.toml");
    assert_eq!(org.json("--context fs.toml tools"), serde_json::json!([]));
    org.run(
        0,
        "--context acme/admin.toml doctor --config acme/broker.toml",
    );
    org.run(0, "--context acme/admin.toml agent revoke fs");
    org.run(3, "--context fs.toml tools");
}

#[test]
fn a_grant_on_record_permits_what_it_says_until_it_is_revoked() {
    let org = Org::new();
    let srv = org.dir.path().canonicalize().unwrap().join("srv");
    std::fs::create_dir_all(srv.join("reports")).unwrap();
    std::fs::write(srv.join("reports/a.txt"), "hello").unwrap();
    let _files = org.serve(&srv);
    org.join("researcher");
    org.run(0, "context add acme --from acme/admin.toml");
    org.run(0, "context use acme");
    let reports = srv.join("reports").display().to_string();
    let issue =
        format!("token issue researcher --capability files.read --where path·under·{reports}");
    let id = org.json(&issue)["id"].as_str().unwrap().to_owned();
    let read = |path: &str| {
        format!("--context researcher.toml call files@acme files.read --arg path={reports}/{path}")
    };
    org.wait_for_provider(&read("a.txt"));
    assert_eq!(org.run(0, &read("a.txt")), "hello\n");
    assert_eq!(org.json(&read("a.txt")), "hello");
    org.run(7, &read("missing.txt"));
    org.run(3, &read("../a.txt"));
    let listed = org.json("token list");
    assert_eq!(listed[0]["id"], id.as_str());
    assert!(
        org.run(0, "token list")
            .contains(&format!("path under {reports}"))
    );
    assert_eq!(
        org.run(0, "token list --to researcher --ids"),
        format!("{id}\n")
    );
    org.run(0, &format!("token revoke {id}"));
    assert_eq!(org.run(0, "token list --to researcher --ids"), "");
    org.run(3, &read("a.txt"));
}

#[test]
fn a_token_is_narrowed_offline_and_revoked_by_its_holder() {
    let org = Org::new();
    let _files = org.serve(org.dir.path());
    org.join("researcher");
    org.run(
        0,
        "--context acme/admin.toml token issue researcher --capability files.* --out r.token",
    );
    let root = "--root-key acme/keys/root.pub";
    org.run(
        0,
        "token attenuate r.token --only files.read --expires 1h --out n.token",
    );
    org.run(1, "token attenuate r.token --only other.read --out x.token");
    assert!(
        org.run(0, &format!("token inspect n.token {root}"))
            .contains("only files.read")
    );
    org.run(
        0,
        &format!("token verify n.token {root} --capability files.read"),
    );
    org.run(
        3,
        &format!("token verify n.token {root} --capability files.delete"),
    );
    org.run(
        3,
        "token verify n.token --root-key GZspS+HyZcZfo2JEL9vOkYmRGbQaXddQZ/D7M9jmMh8=",
    );
    let call = |token: &str| {
        format!(
            "--context researcher.toml call files@acme files.read --arg path=/none --token {token}"
        )
    };
    org.wait_for_provider(&call("n.token"));
    org.run(7, &call("n.token"));
    org.run(
        3,
        "--context files.toml call files@acme files.read --arg path=/none --token n.token",
    );
    org.run(
        0,
        &format!("--context researcher.toml token revoke --token n.token {root}"),
    );
    org.run(3, &call("n.token"));
    org.run(7, &call("r.token"));
}

#[test]
fn an_enrolment_token_registers_so_many_agents_at_once() {
    let org = Org::new();
    org.run(0, "--context acme/admin.toml enrol issue build-* --ceiling repo.* --uses 1 --expires 1d --out b.enrol");
    let register = |name: &str| {
        format!("agent register {name} --enrol b.enrol --context acme/join.toml --want repo.read")
    };
    org.run(0, &register("build-1"));
    org.run(3, &register("build-2"));
}
