//! The commands as people type them, against a broker of their own.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, and says where"
)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use agent_sdk::Key;
use proto_spec::capability::{Check, Claims, Narrowing, Terms, decode_text, encode_text, issue};
use proto_spec::limits::TOKEN_BLOCKS_MAX;
use proto_spec::{SigningKey, Timestamp};
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
    org.run(2, "token attenuate r.token --out n.token");
    org.run(1, "token attenuate r.token --expires 9999d --out n.token");
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
    org.run(0, "--context researcher.toml token revoke --token n.token");
    org.run(3, &call("n.token"));
    org.run(7, &call("r.token"));
}

/// A token of `files.*` for the key numbered 11, passed on to the key numbered 12: as text.
fn delegated_token(issued: Timestamp) -> (String, String) {
    let key = |seed: u8| SigningKey::from_seed(&[seed; 32]);
    let terms = Terms {
        agent: "researcher@acme".parse().unwrap(),
        holder: key(11).public(),
        capabilities: vec!["files.*".parse().unwrap()],
        issued,
        not_before: Some(issued),
        expires: issued.later(Duration::from_secs(86_400)),
        checks: Check::where_clause("path under /srv").unwrap(),
        sandbox: None,
        calls: Some(9),
    };
    let org = "acme".parse().unwrap();
    let own = issue::grant(&key(1), &org, &terms, [2; 32]).unwrap();
    let narrowing = Narrowing {
        only: vec!["files.read".parse().unwrap()],
        checks: vec!["check if trust($t), $t >= 50".parse().unwrap()],
        calls: Some(5),
        ..Narrowing::default()
    };
    let theirs = issue::delegate(&own, &key(11), &key(12).public(), &narrowing, [3; 32]).unwrap();
    (encode_text(&own), encode_text(&theirs))
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap())
}

/// Runs a command in a directory that has no context and no broker.
#[track_caller]
fn offline(dir: &Path, exit: i32, words: &[&str], input: &str) -> String {
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

#[test]
fn a_token_is_read_without_a_context_or_a_root_key() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (_, token) = delegated_token(now());
    std::fs::write(dir.join("t.token"), format!("{token}\n")).unwrap();
    let shown = offline(dir, 0, &["token", "inspect", "t.token"], "");
    let (alice, bob) = (
        SigningKey::from_seed(&[11; 32]).public(),
        SigningKey::from_seed(&[12; 32]).public(),
    );
    for said in [
        "kind grant, of acme, issued to researcher@acme",
        &format!("signed by {} ({})", alice.did(), alice.fingerprint()),
        &format!("holder    {} ({})", bob.did(), bob.fingerprint()),
        "grants    files.*",
        "only if   path under /srv",
        "only if   only files.read",
        "only if   check if trust($t), $t >= 50",
        "calls     at most 9",
        "calls     at most 5",
        "root signature: not checked, no root key given",
        "revocation: not asked, needs a broker",
    ] {
        assert!(shown.contains(said), "{said} in {shown}");
    }
    for (words, input) in [
        (&["token", "inspect", "-"][..], token.as_str()),
        (&["token", "inspect", &token], ""),
    ] {
        assert_eq!(offline(dir, 0, words, input), shown);
    }
    let root = SigningKey::from_seed(&[1; 32]).public().to_string();
    let wrong = alice.to_string();
    let genuine = offline(
        dir,
        0,
        &["token", "inspect", "t.token", "--root-key", &root],
        "",
    );
    assert!(
        genuine.contains("root signature: every one fits"),
        "{genuine}"
    );
    let forged = offline(
        dir,
        3,
        &["token", "inspect", "t.token", "--root-key", &wrong],
        "",
    );
    assert!(forged.starts_with("NOT GENUINE"), "{forged}");
    let json = offline(dir, 0, &["token", "inspect", "t.token", "--json"], "");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["blocks"][1]["signer"]["did"], alice.did());
    assert_eq!(json["blocks"][1]["calls"], 5);
    assert_eq!(json["checks"][2]["check"], "root signature");
    assert_eq!(json["checks"][2]["made"], false);
    offline(dir, 4, &["token", "inspect", "missing.token"], "");
    offline(dir, 3, &["token", "inspect", "-"], "AAAA");
}

#[test]
fn a_delegation_that_cannot_be_made_is_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (own, theirs) = delegated_token(now());
    let sealed = encode_text(&issue::seal(&decode_text(&own).unwrap()).unwrap());
    let (old, _) = delegated_token(Timestamp::from_ms(1_700_000_000_000));
    for (name, text) in [
        ("own", &own),
        ("theirs", &theirs),
        ("sealed", &sealed),
        ("old", &old),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
    for (name, seed) in [("alice.pem", 11), ("bob.pem", 12)] {
        Key::from_seed(&[seed; 32]).save(dir.join(name)).unwrap();
    }
    let did = |seed: u8| SigningKey::from_seed(&[seed; 32]).public().did();
    let delegate = |exit: i32, token: &str, to: u8, more: &[&str]| {
        let to = did(to);
        let words = [
            &["token", "delegate", token, "--to", &to, "--out", "-"],
            more,
        ]
        .concat();
        offline(dir, exit, &words, "")
    };
    let alice: &[&str] = &["--key", "alice.pem"];
    for (told, why) in [
        (delegate(2, "own", 13, &[]), "give --key FILE"),
        (
            delegate(1, "own", 13, &["--key", "bob.pem"]),
            "only it can delegate it",
        ),
        (delegate(1, "theirs", 13, alice), "only it can delegate it"),
        (delegate(1, "own", 11, alice), "new to it"),
        (
            delegate(1, "theirs", 11, &["--key", "bob.pem"]),
            "new to it",
        ),
        (delegate(1, "sealed", 13, alice), "is sealed"),
        (delegate(1, "old", 13, alice), "has ended"),
        (
            delegate(1, "own", 13, &[alice, &["--for", "2d"]].concat()),
            "after the token's own end",
        ),
        (
            delegate(1, "own", 13, &[alice, &["--only", "net.*"]].concat()),
            "keep some of files.*",
        ),
        (
            delegate(
                1,
                "own",
                13,
                &[alice, &["--where", "path under /etc"]].concat(),
            ),
            "besides what holds already",
        ),
        (
            delegate(
                2,
                "own",
                13,
                &[alice, &["--where", "path under srv/.."]].concat(),
            ),
            "absolute path",
        ),
        (
            delegate(2, "own", 13, &[alice, &["--calls", "0"]].concat()),
            "--calls",
        ),
    ] {
        assert!(told.contains(why), "{why} in {told}");
    }
    let mut longest = decode_text(&own).unwrap();
    let narrowing = Narrowing {
        only: vec!["files.*".parse().unwrap()],
        ..Narrowing::default()
    };
    for _ in 1..TOKEN_BLOCKS_MAX {
        longest = issue::attenuate(&longest, &narrowing, [4; 32]).unwrap();
    }
    std::fs::write(dir.join("longest"), encode_text(&longest)).unwrap();
    assert!(delegate(1, "longest", 13, alice).contains("has 8 blocks"));
    let made = delegate(
        0,
        "own",
        13,
        &[alice, &["--for", "1h", "--calls", "5"]].concat(),
    );
    let said = Claims::read(&decode_text(made.trim()).unwrap()).unwrap();
    assert_eq!(said.holder().unwrap().did(), did(13));
    assert!(!said.is_sealed());
}

#[test]
fn a_delegated_token_is_used_by_its_new_holder_and_taken_back_by_the_one_before() {
    let org = Org::new();
    let _files = org.serve(org.dir.path());
    org.join("researcher");
    org.join("helper");
    org.run(
        0,
        "--context acme/admin.toml token issue researcher --capability files.* --out r.token",
    );
    let helper = org.json("--context helper.toml context show helper.toml");
    let key = Key::load(org.dir.path().join(helper["key_file"].as_str().unwrap())).unwrap();
    let did = key.public().did();
    org.run(
        0,
        &format!("--context researcher.toml token delegate r.token --to {did} --only files.read --for 1h --calls 5 --out h.token"),
    );
    let call = |who: &str, tool: &str| {
        format!("--context {who}.toml call files@acme {tool} --arg path=/none --token h.token")
    };
    org.wait_for_provider(&call("helper", "files.read"));
    org.run(7, &call("helper", "files.read"));
    org.run(3, &call("helper", "files.delete"));
    org.run(3, &call("researcher", "files.read"));
    org.run(0, "--context researcher.toml token revoke --token h.token");
    org.run(3, &call("helper", "files.read"));
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

impl Org {
    fn admin(&self, exit: i32, line: &str) -> String {
        self.run(exit, &format!("--context acme/admin.toml {line}"))
    }

    /// What the admin's `--json` answer says.
    fn asked(&self, line: &str) -> Value {
        self.json(&format!("--context acme/admin.toml {line}"))
    }

    /// The same organisation with more in its broker's configuration, after a restart.
    fn reconfigured(self, section: &str, lines: &str) -> Self {
        let Self { dir, _broker } = self;
        let address = address_in(&dir.path().join("acme/admin.toml"));
        drop(_broker);
        let path = dir.path().join("acme/broker.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text
            .replace(
                "listen = \"127.0.0.1:0\"",
                &format!("listen = \"{address}\""),
            )
            .replace(&format!("[{section}]"), &format!("[{section}]\n{lines}"));
        std::fs::write(path, text).unwrap();
        let mut broker = Process::start(dir.path(), &["internal", "broker", "acme/broker.toml"]);
        assert!(broker.line().starts_with("ready"));
        Self {
            dir,
            _broker: broker,
        }
    }
}

fn address_in(context: &Path) -> String {
    let text = std::fs::read_to_string(context).unwrap();
    let after = text.split("https://").nth(1).unwrap();
    after.split('"').next().unwrap().into()
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_dry_run_says_what_revoking_or_quarantine_strikes_and_does_nothing() {
    let org = Org::new();
    org.join("ada");
    org.admin(
        0,
        "enrol issue build-* --ceiling repo.* --uses 2 --out b.enrol",
    );
    for name in ["build-1", "build-2"] {
        org.run(
            0,
            &format!(
                "agent register {name} --enrol b.enrol --context acme/join.toml --want repo.read"
            ),
        );
    }
    let would = org.admin(0, "agent revoke ada --dry-run");
    assert!(
        would.contains("Nothing was done") && would.contains("agents    1: ada"),
        "{would}"
    );
    org.run(0, "--context ada.toml tools");
    let would = org.asked("agent quarantine build-1 --dry-run");
    assert_eq!(would["struck"]["agents"], serde_json::json!(["build-1"]));
    org.run(0, "--context build-1.toml tools");
    let done = org.admin(0, "agent quarantine build-1 --reason stolen");
    assert!(
        done.contains("agents    1: build-1") && done.contains("grants    2: "),
        "{done}"
    );
    org.run(3, "--context build-1.toml tools");
    org.run(0, "--context build-2.toml tools");
    org.run(
        3,
        "agent register build-3 --enrol b.enrol --context acme/join.toml --want repo.read",
    );
    org.admin(3, "agent quarantine administrator");
}

#[test]
fn what_was_issued_up_to_a_time_is_revoked_by_pattern_and_admin_acts_stay() {
    let org = Org::new();
    org.join("ada");
    let id =
        org.asked("token issue ada --capability files.read --capability report.add")["id"].clone();
    org.admin(2, "token revoke --dry-run");
    org.admin(
        2,
        &format!("token revoke {} --under files.*", id.as_str().unwrap()),
    );
    org.admin(2, "token revoke --before soon");
    let would = org.asked("token revoke --under files.* --dry-run");
    assert_eq!(would["would_revoke"], serde_json::json!([id]));
    let past = org.asked("token revoke --under files.* --before 1h --dry-run");
    assert_eq!(past["struck"]["tokens"], 0);
    org.admin(0, "token revoke --under files.*");
    org.admin(0, "token revoke --before 1s");
    let would = org.asked(&format!("token revoke {} --dry-run", id.as_str().unwrap()));
    assert_eq!(would["would_revoke"][0], id);
    org.admin(0, "agent list");
}

#[test]
fn a_listing_says_what_is_left_of_a_grant_from_when_it_holds_and_who_issued_it() {
    let org = Org::new();
    org.join("ada");
    org.admin(
        0,
        "token issue ada --capability files.read --calls 3 --not-before 2099-01-01T00:00:00Z --expires 2099-02-01T00:00:00Z",
    );
    org.admin(2, "token issue ada --capability files.read --calls 0");
    let listed = org.admin(0, "token list");
    for said in [
        "approval",
        "on record, 3 calls left",
        "from 2099-01-01T00:00:00Z on",
        "administrator",
    ] {
        assert!(listed.contains(said), "{said} in {listed}");
    }
}

#[test]
fn the_tree_shows_a_delegation_once_it_was_presented_and_marks_what_is_revoked() {
    let org = Org::new();
    let _files = org.serve(org.dir.path());
    org.join("ada");
    org.join("helper");
    org.admin(
        0,
        "token issue ada --capability files.* --calls 9 --out a.token",
    );
    let did = Key::load(org.dir.path().join("helper.pem"))
        .unwrap()
        .public()
        .did();
    org.run(
        0,
        &format!("--context ada.toml token delegate a.token --to {did} --only files.read --calls 2 --out h.token"),
    );
    let before = org.admin(0, "grants tree ada");
    assert!(
        before.contains("9 calls left") && !before.contains("helper"),
        "{before}"
    );
    assert!(
        before.contains("known only when they were presented here"),
        "{before}"
    );
    let call = "--context helper.toml call files@acme files.read --arg path=/none --token h.token";
    org.wait_for_provider(call);
    org.run(7, call);
    let drawn = org.admin(0, "grants tree ada");
    assert!(
        drawn.contains("passed on to helper; only files.read;"),
        "{drawn}"
    );
    org.run(0, "--context ada.toml token revoke --token h.token");
    let drawn = org.admin(0, "grants tree");
    assert!(drawn.contains("REVOKED passed on to helper"), "{drawn}");
    assert!(org.asked("grants tree ada").as_array().unwrap().len() >= 2);
    assert_eq!(
        org.admin(0, "grants tree nobody"),
        "Nothing was issued to nobody.\n"
    );
}

#[test]
fn an_enrolment_token_is_its_owners_alone_and_good_for_one_agent_if_nothing_else_is_said() {
    let org = Org::new();
    let wrote = org.admin(
        0,
        "enrol issue build-* --ceiling repo.* --expires 1d --out b.enrol",
    );
    assert!(wrote.contains("once"), "{wrote}");
    assert_eq!(mode(&org.dir.path().join("b.enrol")), 0o600);
    org.admin(1, "enrol issue build-* --ceiling repo.* --out b.enrol");
    org.admin(
        2,
        "enrol issue build-* --ceiling repo.* --uses 0 --out c.enrol",
    );
    let register =
        |name: &str| format!("agent register {name} --enrol b.enrol --context acme/join.toml");
    org.run(3, &register("other"));
    org.run(0, &register("build-1"));
    org.run(3, &register("build-2"));
}

#[test]
fn what_takes_two_admins_says_what_the_second_one_types() {
    let org = Org::new();
    org.join("runner");
    org.run(6, "agent register second --context acme/join.toml");
    org.admin(0, "agent approve second --full-admin");
    let org = org.reconfigured("approval", "two_admins = [\"shell.*\"]");
    let second = |exit: i32, line: &str| org.run(exit, &format!("--context second.toml {line}"));
    let told = org.admin(
        6,
        "token issue runner --capability shell.run --calls 5 --out r.token",
    );
    let order = told
        .lines()
        .find(|line| line.contains("proposal approve"))
        .unwrap();
    let order = order.trim().strip_prefix("fem-cli ").unwrap();
    assert!(order.ends_with(" --out r.token"), "{told}");
    assert!(!org.dir.path().join("r.token").exists());
    let listed = second(0, "proposal list");
    for said in [
        "administrator",
        "runner may do shell.run, handed out",
        "5 calls at most",
    ] {
        assert!(listed.contains(said), "{said} in {listed}");
    }
    org.admin(3, order);
    second(2, order.strip_suffix(" --out r.token").unwrap());
    second(0, order);
    assert_eq!(mode(&org.dir.path().join("r.token")), 0o600);
    second(4, &order.replace("r.token", "s.token"));
    let proposed = org.admin(6, "token issue runner --capability shell.run --json");
    let proposed: Value = serde_json::from_str(&proposed).unwrap();
    let id = proposed["id"].as_str().unwrap();
    second(2, &format!("proposal approve {id} --out x.token"));
    second(0, &format!("proposal deny {id}"));
    assert!(second(0, "proposal list").contains("Nothing waits"));
    org.run(6, "agent register shell --context acme/join.toml");
    org.admin(6, "agent approve shell --capability shell.*");
    let id = second(0, "proposal list --json");
    let id: Value = serde_json::from_str(&id).unwrap();
    let done = second(
        0,
        &format!("proposal approve {}", id[0]["id"].as_str().unwrap()),
    );
    assert!(done.contains("Approved shell."), "{done}");
    org.admin(6, "enrol issue sh-* --ceiling shell.* --out e.enrol");
    let id: Value = serde_json::from_str(&second(0, "proposal list --json")).unwrap();
    second(
        0,
        &format!(
            "proposal approve {} --out e.enrol",
            id[0]["id"].as_str().unwrap()
        ),
    );
    assert_eq!(mode(&org.dir.path().join("e.enrol")), 0o600);
}

#[test]
fn an_admin_with_bounds_grants_within_them() {
    let org = Org::new();
    org.join("build-1");
    org.run(6, "agent register ops --context acme/join.toml");
    org.admin(2, "agent approve ops --over build-*");
    org.admin(
        0,
        "agent approve ops --capability admin.* --may-grant repo.* --over build-*",
    );
    org.run(
        0,
        "--context ops.toml token issue build-1 --capability repo.read",
    );
    org.run(
        3,
        "--context ops.toml token issue build-1 --capability files.read",
    );
    org.run(
        3,
        "--context ops.toml token issue ops --capability repo.read",
    );
}

#[test]
fn a_root_key_is_followed_by_the_next_and_its_tokens_die_when_it_retires() {
    let org = Org::new();
    let _files = org.serve(org.dir.path());
    org.join("ada");
    org.admin(0, "token issue ada --capability files.* --out old.token");
    org.admin(4, "root activate");
    org.admin(4, "root retire");
    let told = org.admin(0, "root prepare");
    let file = told
        .split_whitespace()
        .find(|word| word.starts_with("root-"))
        .unwrap();
    let file = org
        .dir
        .path()
        .join("acme/keys")
        .join(file.trim_end_matches(','));
    assert_eq!(mode(&file), 0o600, "{told}");
    org.admin(3, "root prepare");
    org.admin(0, "root activate");
    let roots = org.asked("root list");
    assert_eq!(
        (roots[0]["state"].as_str(), roots[1]["state"].as_str()),
        (Some("active"), Some("retiring"))
    );
    org.admin(0, "token issue ada --capability files.* --out new.token");
    let call = |token: &str| {
        format!("--context ada.toml call files@acme files.read --arg path=/none --token {token}")
    };
    org.wait_for_provider(&call("old.token"));
    org.run(7, &call("old.token"));
    org.run(7, &call("new.token"));
    let old = roots[1]["key"].as_str().unwrap();
    org.admin(0, &format!("root retire {old}"));
    org.run(3, &call("old.token"));
    org.run(7, &call("new.token"));
    let org = org.reconfigured("limits", "");
    assert_eq!(org.asked("root list").as_array().unwrap().len(), 1);
}

#[test]
fn an_admin_reads_the_configuration_as_it_is_written() {
    let org = Org::new();
    let shown = org.admin(0, "config show");
    for line in [
        "org = \"acme\"",
        "[limits]",
        "deadline_ms = 60000",
        "two_admins = []",
    ] {
        assert!(
            shown.lines().any(|shown| shown == line),
            "{line} in {shown}"
        );
    }
    assert_eq!(org.asked("config show")["limits"]["deadline_ms"], 60_000);
    org.join("ada");
    org.run(3, "--context ada.toml config show");
}

#[test]
fn an_agent_goes_on_under_a_new_key_wherever_the_change_was_interrupted() {
    let org = Org::new();
    org.join("ada");
    let at = |name: &str| org.dir.path().join(name);
    let original = std::fs::read(at("ada.toml")).unwrap();
    org.run(0, "--context ada.toml agent rotate-key");
    assert_eq!(mode(&at("ada.key2.pem")), 0o600);
    org.run(0, "--context ada.toml tools");
    // Stopped after the broker took the key, before the context named it.
    std::fs::write(at("ada.toml"), &original).unwrap();
    org.run(3, "--context ada.toml tools");
    org.run(0, "--context ada.toml agent rotate-key");
    org.run(0, "--context ada.toml tools");
    // Stopped after the new key was written, before the broker heard of it.
    Key::generate().unwrap().save(at("ada.key3.pem")).unwrap();
    org.run(0, "--context ada.toml agent rotate-key");
    assert!(
        std::fs::read_to_string(at("ada.toml"))
            .unwrap()
            .contains("ada.key3.pem")
    );
    org.run(0, "--context ada.toml tools");
}

#[test]
fn completions_know_the_nouns() {
    let dir = tempfile::tempdir().unwrap();
    let script = offline(dir.path(), 0, &["completions", "bash"], "");
    for noun in [
        "grants",
        "proposal",
        "root",
        "config",
        "quarantine",
        "rotate-key",
    ] {
        assert!(script.contains(noun), "{noun}");
    }
}
