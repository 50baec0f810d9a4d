//! `fem-coder`: other people's code runs in the box, for those who may call it and for nobody else.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tests::binaries::{apart, path};
use tests::by_hand::{ByHand, fem};

/// An organisation with `coder`, and `ada`, who may call it.
struct Site {
    acme: ByHand,
    coder: Child,
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.coder.kill();
        let _ = self.coder.wait();
    }
}

impl Site {
    fn new(policies: &str) -> Self {
        Self::with(&[], policies)
    }

    /// Where code takes files of the folder and keeps files in it.
    fn sharing(policies: &str) -> Self {
        Self::with(&["--share"], policies)
    }

    fn with(options: &[&str], policies: &str) -> Self {
        let acme = ByHand::open("acme").unwrap();
        let at = acme.folder();
        acme.join("coder --prefix code.* --prefix shell.* --prefix file.*")
            .unwrap();
        acme.join("ada --capability code.* --capability file.*")
            .unwrap();
        acme.admin("token issue ada --capability shell.run --sandbox process")
            .unwrap();
        std::fs::create_dir(at.join("files")).unwrap();
        std::fs::write(at.join("policies.toml"), policies).unwrap();
        let mut coder = Command::new(path("fem-coder").unwrap());
        coder
            .args(["--root", "files", "--policies", "policies.toml"])
            .args(options)
            .current_dir(at)
            .env("FEM_CONTEXT", "coder.toml")
            .stdout(Stdio::piped());
        let mut coder = apart(&mut coder).spawn().unwrap();
        let mut lines = BufReader::new(coder.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap() == "ready"),
            "it ended before it was ready"
        );
        Self { acme, coder }
    }

    fn call(&self, tool: &str, arguments: &Value) -> Result<Value, String> {
        let arguments = arguments.to_string();
        let call = [
            "--json",
            "--context",
            "ada.toml",
            "call",
            "coder@acme",
            tool,
        ];
        let words = [&call[..], &["--args-json", &arguments]].concat();
        let (code, said) = fem(self.acme.folder(), &words).unwrap();
        match code {
            0 => Ok(serde_json::from_str(&said).unwrap()),
            _ => Err(said),
        }
    }
}

#[test]
fn code_runs_in_the_box_and_its_results_come_back() {
    let site = Site::sharing("");
    for (tool, code) in [
        ("code.python", "print(6 * 7)"),
        ("code.javascript", "console.log(6 * 7)"),
        ("shell.run", "echo $((6 * 7))"),
    ] {
        let told = site.call(tool, &json!({"code": code})).unwrap();
        assert_eq!(told["stdout"], "42\n", "{tool}: {told}");
        assert_eq!(told["ended"], "exited 0");
        assert_eq!(told["policy"].as_str().unwrap().len(), 43);
    }
    site.call("file.write", &json!({"path": "in/six.txt", "text": "6"}))
        .unwrap();
    let doubled = json!({
        "code": "n = int(open('in/six.txt').read()); open('out.txt', 'w').write(str(n * 7))",
        "files": ["in/six.txt"],
        "keep": ["out.txt", "nothing.txt"],
    });
    let told = site.call("code.python", &doubled).unwrap();
    assert!(
        told["kept"]["out.txt"].is_null() && told["kept"]["nothing.txt"].is_string(),
        "{told}"
    );
    let read = site.call("file.read", &json!({"path": "out.txt"})).unwrap();
    assert_eq!(read["text"], "42");
}

#[test]
fn hostile_calls_have_a_clear_end_and_the_next_call_is_unharmed() {
    let policy = "cpu_ms = 1500\nwall_ms = 10000\nmemory_bytes = 134217728\noutput_bytes = 65536\ndisk_bytes = 8388608\n";
    let site = Site::sharing(&format!("[python]\n{policy}[shell]\n{policy}"));
    for (tool, code, ended) in [
        ("shell.run", "exec sleep 1000", "killed: deadline"),
        (
            "shell.run",
            "trap '' TERM INT XCPU; while :; do :; done",
            "killed: processor time",
        ),
        ("shell.run", "yes", "killed: output cut"),
        (
            "code.python",
            "import mmap\nm = [mmap.mmap(-1, 1 << 26) for _ in range(4)]\nfor one in m: one.write(b'x' * (1 << 26))",
            "exited 1",
        ),
        (
            "shell.run",
            // What comes after needs no process, of which there may be none left.
            "f() { f | f & }; f; i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done; echo still here",
            "exited 0",
        ),
        ("shell.run", "(sleep 1000 & ) ; exit 3", "exited 3"),
        (
            "code.python",
            "open('x', 'wb').write(b'x' * (1 << 26))",
            "exited 1",
        ),
        (
            "shell.run",
            "ln -s /etc/passwd link; mkfifo pipe; truncate -s 4M sparse",
            "exited 0",
        ),
    ] {
        let asked = json!({"code": code, "keep": ["link", "pipe", "sparse"]});
        let told = site.call(tool, &asked).unwrap();
        assert_eq!(told["ended"], ended, "{code}: {told}");
        assert!(
            told["kept"]
                .as_object()
                .unwrap()
                .values()
                .all(Value::is_string),
            "{told}"
        );
        let next = site
            .call("shell.run", &json!({"code": "ls -A; echo fine"}))
            .unwrap();
        assert_eq!(next["stdout"], "main.sh\nfine\n", "after {code}");
    }
    assert_eq!(
        std::fs::read_dir(site.acme.folder().join("files"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_grant_that_demands_another_sandbox_is_not_served() {
    let site = Site::new("");
    let issue = "token issue ada --capability code.python --sandbox wasm --out wasm.token";
    site.acme.admin(issue).unwrap();
    let call = "call coder@acme code.python --arg code=1 --token wasm.token --context ada.toml";
    let words: Vec<&str> = call.split(' ').collect();
    let (code, said) = fem(site.acme.folder(), &words).unwrap();
    assert!(
        code != 0 && said.contains("SANDBOX_REQUIRED"),
        "{code}: {said}"
    );
}

#[test]
fn the_weaker_tier_is_not_the_sandbox_that_a_grant_demands() {
    let site = Site::new("[shell]\ntier = \"without-namespaces\"\n");
    let refused = site.call("shell.run", &json!({"code": "echo ran"}));
    let refused = refused.unwrap_err();
    assert!(
        refused.contains("SANDBOX_REQUIRED") && refused.contains("process-without-namespaces"),
        "{refused}"
    );
}

#[test]
fn who_may_run_code_reaches_none_of_the_files_that_another_capability_guards() {
    let site = Site::new("");
    let files = site.acme.folder().join("files");
    std::fs::write(files.join("secret.txt"), "secret").unwrap();
    for asked in [
        json!({"code": "print(open('secret.txt').read())", "files": ["secret.txt"]}),
        json!({"code": "open('secret.txt', 'w').write('x')", "keep": ["secret.txt"]}),
    ] {
        let refused = site.call("code.python", &asked).unwrap_err();
        assert!(refused.contains("NOT_SHARED"), "{refused}");
    }
    let looked = json!({"code": "import os; print(sorted(os.listdir('.')))"});
    let told = site.call("code.python", &looked).unwrap();
    assert_eq!(told["stdout"], "['main.py']\n");
    let secret = std::fs::read_to_string(files.join("secret.txt"));
    assert_eq!(secret.unwrap(), "secret");
}

#[test]
fn a_list_of_files_that_is_cut_says_so() {
    let site = Site::new("");
    let many = json!({"code": "for n in range(2000): open(f'{n}', 'w').close()"});
    let told = site.call("code.python", &many).unwrap();
    assert_eq!(told["files"].as_array().unwrap().len(), 1_000);
    let cut = told["files_cut"].as_str().unwrap();
    assert!(cut.contains("more than 1000"), "{cut}");
    let few = json!({"code": "open('one', 'w').close()"});
    let told = site.call("code.python", &few).unwrap();
    assert_eq!(told["files"].as_array().unwrap().len(), 2);
    assert!(told["files_cut"].is_null());
}

#[test]
fn a_path_that_is_too_long_is_told_so_and_makes_nothing() {
    let site = Site::new("");
    for path in [vec!["d"; 17].join("/"), "n".repeat(256), "n/".repeat(1_000)] {
        let written = site.call("file.write", &json!({"path": path, "text": "x"}));
        assert!(written.unwrap_err().contains("PATH_TOO_LONG"));
    }
    let long = site.acme.folder().join("files/long");
    std::fs::File::create(&long)
        .unwrap()
        .set_len(2 << 20)
        .unwrap();
    let read = site.call("file.read", &json!({"path": "long"}));
    assert!(read.unwrap_err().contains("FILE_TOO_LARGE"));
    std::fs::remove_file(long).unwrap();
    let left = std::fs::read_dir(site.acme.folder().join("files"));
    assert_eq!(left.unwrap().count(), 0);
}

#[test]
fn no_name_leads_out_of_the_coders_folder() {
    let site = Site::sharing("");
    let folder = site.acme.folder().join("files");
    std::os::unix::fs::symlink(site.acme.folder(), folder.join("up")).unwrap();
    for path in [
        "../coder.pem",
        "up/coder.pem",
        "/etc/passwd",
        "",
        "a/../../coder.pem",
        "nul\0",
    ] {
        let read = site.call("file.read", &json!({"path": path}));
        assert!(read.unwrap_err().contains("NO_SUCH_FILE"), "{path:?}");
        let written = site.call("file.write", &json!({"path": path, "text": "x"}));
        assert!(written.is_err(), "{path:?}");
        let taken = site.call("code.python", &json!({"code": "1", "files": [path]}));
        assert!(taken.is_err(), "{path:?}");
    }
}

#[test]
fn policies_that_cannot_be_are_told_all_at_once_before_anything_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("policies.toml");
    std::fs::write(
        &policies,
        "[python]\nmemory_bytes = 1\nprocesses = 0\n[perl]\n[shell]\nnetwork = \"open\"\n",
    )
    .unwrap();
    let mut coder = Command::new(path("fem-coder").unwrap());
    let output = coder
        .args(["--root", "/", "--show", "--policies"])
        .arg(&policies)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    for problem in [
        "[python] memory_bytes",
        "[python] processes",
        "[perl]",
        "[shell]",
    ] {
        assert!(said.contains(problem), "{problem}: {said}");
    }
}
