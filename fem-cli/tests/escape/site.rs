//! A victim, its secrets, and the two ways to run a hostile program near them.

use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde_json::Value;

/// Whom root becomes to be an ordinary user.
const NOBODY: u32 = 65_534;

/// Who starts the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    Ordinary,
    Root,
}

/// The programs, where an ordinary user can run them, built and copied once.
struct Programs {
    fem: PathBuf,
    hostile: PathBuf,
    set_user_id: PathBuf,
    _folder: tempfile::TempDir,
}

fn programs() -> &'static Programs {
    static BUILT: OnceLock<Programs> = OnceLock::new();
    BUILT.get_or_init(|| {
        // Not below /tmp, which is the box's own name for its folder.
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        open_to_all(folder.path(), 0o755);
        let hostile = folder.path().join("hostile");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/escape/hostile.c");
        let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        compiler
            .args(["-O1", "-static", "-no-pie", "-pthread", "-w", "-o"])
            .arg(&hostile)
            .arg(source);
        assert!(
            compiler.status().unwrap().success(),
            "the hostile programs do not compile"
        );
        let fem = folder.path().join("fem-cli");
        fs::copy(env!("CARGO_BIN_EXE_fem-cli"), &fem).unwrap();
        let set_user_id = folder.path().join("set-user-id");
        fs::copy(&hostile, &set_user_id).unwrap();
        open_to_all(&hostile, 0o755);
        open_to_all(&fem, 0o755);
        open_to_all(&set_user_id, 0o4755);
        Programs {
            fem,
            hostile,
            set_user_id,
            _folder: folder,
        }
    })
}

fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A folder with what an attacker wants, and a process of the same user.
pub(crate) struct Site {
    folder: tempfile::TempDir,
    victim: Child,
    /// Its process id and its ports.
    known: Vec<String>,
}

impl Site {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::create_dir(folder.path().join("cwd")).unwrap();
        for name in ["secret", "a", "b", "c", ".bashrc"] {
            fs::write(folder.path().join(name), "the secret").unwrap();
        }
        if rustix::process::geteuid().is_root() {
            for path in fs::read_dir(folder.path())
                .unwrap()
                .map(|one| one.unwrap().path())
                .chain([folder.path().to_owned()])
            {
                chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        let mut victim = Command::new(&programs().hostile);
        victim
            .arg("victim")
            .arg(folder.path())
            .env("FEM_SECRET", "x")
            .process_group(0);
        let mut victim = ordinary(&mut victim)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(victim.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let known = line.split_whitespace().map(str::to_owned).collect();
        Self {
            folder,
            victim,
            known,
        }
    }

    fn attack(&self, name: &str) -> Vec<String> {
        let words = [name.to_owned(), self.folder.path().display().to_string()];
        words
            .into_iter()
            .chain(self.known.iter().cloned())
            .collect()
    }

    /// A hostile program outside the box, which is to be killed.
    pub(crate) fn begin_outside(&self, name: &str) -> Child {
        let mut command = Command::new(&programs().hostile);
        command.args(self.attack(name)).stdout(Stdio::null());
        ordinary(&mut command).current_dir("/").spawn().unwrap()
    }

    /// An empty folder of the ordinary user's.
    pub(crate) fn folder_for(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir(&path).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        path
    }

    /// Whether there is a file of that name with the victim's.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.folder.path().join(name).exists()
    }

    /// Whether a hostile program succeeds outside the box.
    pub(crate) fn outside(&self, name: &str) -> bool {
        let mut command = self.careless(&programs().hostile);
        command.args(self.attack(name)).process_group(0);
        let cwd = self.folder.path().join("cwd");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // Not its output: what stays behind would hold on to that.
        let ended = ordinary(&mut command).current_dir(&cwd).status().unwrap();
        fs::remove_dir_all(&cwd).unwrap();
        fs::create_dir(&cwd).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(&cwd, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        for name in ["secret", "a", "b", "c"] {
            let path = self.folder.path().join(name);
            fs::write(&path, "the secret").unwrap();
            if rustix::process::geteuid().is_root() {
                chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        ended.success()
    }

    /// A program whose parent left it a secret file, a folder and a variable.
    fn careless(&self, program: &Path) -> Command {
        let mut shell = Command::new("/bin/sh");
        let script = "exec 7<\"$1/secret\" 8<\"$1\"; shift; exec \"$@\"";
        shell
            .args(["-c", script, "sh"])
            .arg(self.folder.path())
            .arg(program)
            .env("FEM_SECRET", "x")
            .env("TMPDIR", self.folder.path());
        shell
    }

    pub(crate) fn fem(&self, user: User, words: &[&str], attack: &str, set: &str) -> Command {
        let Programs {
            hostile,
            set_user_id,
            ..
        } = programs();
        let policy = self.folder.path().join("policy.toml");
        fs::write(
            &policy,
            format!("{set}\n[files]\nrun = [{hostile:?}, {set_user_id:?}]\n"),
        )
        .unwrap();
        open_to_all(&policy, 0o644);
        let mut command = self.careless(&programs().fem);
        command
            .args(["sandbox", "run"])
            .args(words)
            .arg("--policy")
            .arg(policy);
        command.arg("--").arg(hostile).args(self.attack(attack));
        self.by(user, &mut command);
        command
    }

    fn by(&self, user: User, command: &mut Command) {
        command.current_dir("/");
        if user == User::Ordinary {
            ordinary(command);
        }
    }

    /// What the box says of a hostile program.
    pub(crate) fn inside(&self, user: User, attack: &str, set: &str) -> Value {
        let output = self.fem(user, &["--json"], attack, set).output().unwrap();
        let told = serde_json::from_slice(&output.stdout);
        told.unwrap_or_else(|_| panic!("{attack}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    pub(crate) fn run(&self, user: User, words: &[&str]) -> Output {
        let mut command = Command::new(&programs().fem);
        command.arg("sandbox").args(words);
        self.by(user, &mut command);
        command.output().unwrap()
    }

    /// Runs the command where no user namespace can be made; none where that cannot be had.
    pub(crate) fn without_namespaces(&self, words: &[&str]) -> Option<Output> {
        let script = "echo 0 > /proc/sys/user/max_user_namespaces || exit 77; exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "/bin/sh", "-c", script, "sh"]);
        command
            .arg(&programs().fem)
            .arg("sandbox")
            .args(words)
            .env("TMPDIR", self.folder.path());
        self.by(User::Ordinary, &mut command);
        let output = command.output().ok()?;
        (output.status.code() != Some(77)).then_some(output)
    }

    /// What a hostile program says that is granted a folder with a file system mounted below it, in
    /// which it finds the victim's files; none where that cannot be had.
    pub(crate) fn below_a_mount(&self, attack: &str) -> Option<Value> {
        let hostile = &programs().hostile;
        let granted = self.folder.path().join("granted");
        let nested = granted.join("with a blank");
        let script = "mkdir -p \"$2\" && mount -t tmpfs x \"$2\" && echo x > \"$2/c\" || exit 77; \
                      echo \"$4\" > \"$1/policy\"; exec \"$3\" sandbox run --json --policy \"$1/policy\" \
                      -- \"$5\" \"$6\" \"$2\"";
        let policy = format!("[files]\nrun = [{hostile:?}]\nread = [{granted:?}]");
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "/bin/sh", "-c"]);
        command.args([script, "sh"]).arg(self.folder.path());
        command.arg(nested).arg(&programs().fem).arg(policy);
        command.arg(hostile).arg(attack);
        self.by(User::Ordinary, &mut command);
        let output = command.output().ok()?;
        if output.status.code() == Some(77) {
            return None;
        }
        let told = serde_json::from_slice(&output.stdout);
        Some(told.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr))))
    }

    /// No signal reached the victim, and it lives.
    pub(crate) fn victim_is_unharmed(&self) -> bool {
        let marks = fs::read_dir(self.folder.path()).unwrap();
        let marked = marks
            .filter_map(Result::ok)
            .any(|one| one.file_name().to_string_lossy().starts_with("signal-"));
        let id = i32::try_from(self.victim.id()).unwrap();
        let lives = rustix::process::test_kill_process(Pid::from_raw(id).unwrap());
        !marked && lives.is_ok()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
        // What a control left, by its id.
        for id in processes(self) {
            let _ = rustix::process::kill_process(id.0, rustix::process::Signal::KILL);
        }
    }
}

fn ordinary(command: &mut Command) -> &mut Command {
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Every hostile program of this site that runs on this machine, and its command line.
fn processes(site: &Site) -> Vec<(Pid, String)> {
    let place = site.folder.path().display().to_string();
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = entries.filter_map(|one| {
        let id = Pid::from_raw(one.file_name().to_str()?.parse().ok()?)?;
        let line = fs::read(one.path().join("cmdline")).ok()?;
        Some((id, String::from_utf8_lossy(&line).replace('\0', " ")))
    });
    let hostile = programs().hostile.display().to_string();
    lines
        .filter(|(_, line)| line.starts_with(&hostile) && line.contains(&place))
        .collect()
}

/// The keeper of the weaker tier whose box this process wants, once it has one: what the helper that
/// forks has forked.
pub(crate) fn keeper_of(fem: &Child) -> Option<Pid> {
    let forking = children(fem.id()).into_iter().find(|id| {
        let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        line.starts_with(b"fem-sandbox:keeper")
    });
    let keeper = *children(forking?).first()?;
    Pid::from_raw(keeper.try_into().ok()?)
}

fn children(of: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{of}/task"));
    let threads = threads.into_iter().flatten().filter_map(Result::ok);
    let lists = threads.filter_map(|one| fs::read_to_string(one.path().join("children")).ok());
    let all: Vec<String> = lists.collect();
    let ids = all.iter().flat_map(|text| text.split_whitespace());
    ids.filter_map(|id| id.parse().ok()).collect()
}

/// Waits for something, for half a minute at most.
pub(crate) fn soon<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "waited in vain");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How many of them run that attack.
pub(crate) fn processes_named(site: &Site, attack: &str) -> usize {
    let named = format!("hostile {attack} ");
    let all = processes(site).into_iter();
    all.filter(|(_, line)| line.contains(&named)).count()
}

/// What the weaker tier left on disk.
pub(crate) fn folders_of_work(site: &Site) -> Vec<PathBuf> {
    let all = fs::read_dir(site.folder.path())
        .unwrap()
        .filter_map(Result::ok)
        .map(|one| one.path());
    all.filter(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("fem-work-"))
    })
    .collect()
}
