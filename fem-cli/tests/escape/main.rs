//! The escape table: each hostile program runs for real, in the box and out of it.
//!
//! A row says what is tried and how the box answers. Where it says so, the same program has first to
//! succeed outside the box, as an ordinary user with a victim of the same user, or the row would show
//! nothing. All of it runs as an ordinary user, and again as root where the tests are run by root.

#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed, and says where"
)]

mod site;
mod table;

use std::collections::BTreeSet;
use std::process::Stdio;

use serde_json::Value;

use crate::site::{Site, User, folders_of_work, keeper_of, processes_named, soon};
use crate::table::{Control, ROWS, Row};

/// What the box has to answer, or what keeps the program from asking.
fn answered(row: &Row, told: &Value) -> bool {
    let ended = told["ended"].as_str().unwrap_or_default();
    let said = told["stdout"].as_str().unwrap_or_default();
    row.answers.iter().any(|answer| match *answer {
        "killed" => ended.starts_with("killed"),
        answer if answer.starts_with("killed") => ended == answer,
        answer => ended == "exited 1" && said.trim() == answer,
    })
}

fn table(user: User) {
    let site = Site::new();
    let mut wrong = Vec::new();
    let mut without = BTreeSet::new();
    for row in ROWS {
        if row.control != Control::None && user == User::Ordinary {
            match (site.outside(row.attack), row.control) {
                (true, _) => {}
                (false, Control::KernelMayRefuse) => drop(without.insert(row.attack)),
                (false, _) => wrong.push(format!("{}: fails outside the box too", row.attack)),
            }
        }
        let told = site.inside(user, row.attack, row.set);
        if !answered(row, &told) {
            wrong.push(format!("{}: {told}", row.attack));
        }
    }
    assert!(site.victim_is_unharmed(), "the victim was reached");
    assert!(wrong.is_empty(), "{user:?}: {wrong:#?}");
    if !without.is_empty() {
        println!(
            "this machine refuses these to everybody, so the box had nothing to show: {without:?}"
        );
    }
}

#[test]
fn every_escape_fails_in_the_box_and_works_outside_it() {
    table(User::Ordinary);
}

#[test]
fn every_escape_fails_when_root_started_the_box() {
    if !rustix::process::geteuid().is_root() {
        println!("not run: only root can start the box as root");
        return;
    }
    table(User::Root);
}

#[test]
fn nothing_is_left_after_any_end() {
    let site = Site::new();
    for (attack, set, ended) in [
        ("daemon", "", "exited 0"),
        ("sleep", "wall_ms=300", "killed: deadline"),
        ("stubborn", "wall_ms=300", "killed: deadline"),
        ("spin", "cpu_ms=200", "killed: processor time"),
        ("flood", "output_bytes=1048576", "killed: output cut"),
        ("kill-first", "", "exited 0"),
        ("chain", "", "exited 0"),
        ("chain-of-groups", "", "exited 0"),
    ] {
        for tier in ["full", "without-namespaces"] {
            let told = site.inside(User::Ordinary, attack, &format!("tier = {tier:?}\n{set}"));
            assert_eq!(told["ended"], ended, "{tier}: {attack}: {told}");
            if attack == "flood" {
                assert_eq!(told["stdout"].as_str().unwrap().len(), 1 << 20);
            }
            assert_eq!(processes_named(&site, attack), 0, "{tier}: {attack}");
        }
    }
}

#[test]
fn a_call_ends_although_its_keeper_was_killed_and_somebody_holds_its_output() {
    let site = Site::new();
    let set = "tier=\"without-namespaces\"\nwall_ms=300000";
    let mut fem = site.fem(User::Ordinary, &["--json"], "pair", set);
    let mut fem = fem.stdout(Stdio::null()).spawn().unwrap();
    soon(|| (processes_named(&site, "pair") == 2).then_some(()));
    let keeper = soon(|| keeper_of(&fem));
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();
    soon(|| fem.try_wait().unwrap());
}

#[test]
fn descriptors_that_others_of_the_user_have_under_way_keep_no_box_from_starting() {
    let site = Site::new();
    let mut other = site.begin_outside("keep-in-flight");
    soon(|| site.has(&format!("ready-{}", other.id())).then_some(()));
    let told = site.inside(User::Ordinary, "say", "");
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(told["ended"], "exited 0", "{told}");
}

#[test]
fn with_an_open_network_a_box_answers_for_its_own_sockets_and_for_nobody_elses() {
    let site = Site::new();
    let small = "network = \"open\"\nmemory_bytes = 33554432";
    let mut other = site.begin_outside("keep-sockets");
    soon(|| site.has(&format!("ready-{}", other.id())).then_some(()));
    let idle = site.inside(User::Ordinary, "idle", small);
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(idle["ended"], "exited 0", "{idle}");
    let full = site.inside(User::Ordinary, "keep-sockets", small);
    assert_eq!(full["ended"], "killed: memory", "{full}");
}

#[test]
fn what_is_mounted_below_a_granted_folder_is_read_only_too() {
    let site = Site::new();
    for attack in ["chmod", "utime", "create", "unlink"] {
        let Some(told) = site.below_a_mount(attack) else {
            println!("not run: this machine lets users mount nothing");
            return;
        };
        assert_eq!(told["ended"], "exited 1", "{attack}: {told}");
        let said = told["stdout"].as_str().unwrap().trim();
        assert!(["EROFS", "EACCES"].contains(&said), "{attack}: {told}");
    }
}

#[test]
fn a_file_that_its_maker_closed_is_named_and_the_others_are_kept() {
    let site = Site::new();
    let kept = site.folder_for("kept");
    let words = ["--keep", kept.to_str().unwrap()];
    let mut fem = site.fem(User::Ordinary, &words, "close-one", "");
    let output = fem.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    assert!(told.contains("not kept: closed"), "{told}");
    assert_eq!(std::fs::read(kept.join("open")).unwrap().len(), 1 << 20);
}

#[test]
fn a_script_whose_interpreter_is_not_in_the_box_is_refused_with_its_name() {
    let site = Site::new();
    let script = site.folder_for("scripts").join("script");
    std::fs::write(&script, "#!/opt/no-such-interpreter -x\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let set = format!("files.run=[{script:?}]");
    for tier in ["tier=\"full\"", "tier=\"without-namespaces\""] {
        let words = ["run", "--set", tier, "--set", &set, "--"];
        let words: Vec<&str> = words.into_iter().chain(script.to_str()).collect();
        let output = site.run(User::Ordinary, &words);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            told.contains("/opt/no-such-interpreter, which is to run it"),
            "{told}"
        );
    }
}

#[test]
fn the_same_daemon_stays_where_there_is_no_box() {
    let site = Site::new();
    assert!(site.outside("daemon"));
    soon(|| (processes_named(&site, "daemon") == 1).then_some(()));
}

#[test]
fn signals_to_everybody_reach_nobody_outside() {
    let site = Site::new();
    for tier in ["full", "without-namespaces"] {
        for attack in ["kill-all", "sigio"] {
            site.inside(User::Ordinary, attack, &format!("tier = {tier:?}"));
            assert!(site.victim_is_unharmed(), "{tier}: {attack}");
        }
    }
}

#[test]
fn what_is_printed_stays_one_escaped_line() {
    let site = Site::new();
    let output = site
        .fem(User::Ordinary, &["--json"], "say", "")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let plain = site.fem(User::Ordinary, &[], "say", "").output().unwrap();
    for stream in [text.as_bytes(), &plain.stdout, &plain.stderr] {
        assert!(!stream.contains(&0x1b) && !stream.contains(&b'\r'));
    }
}

#[test]
fn planted_results_are_listed_and_never_opened() {
    let site = Site::new();
    let told = site.inside(User::Ordinary, "plant", "");
    let files = told["files"].as_array().unwrap();
    let unreadable = files.iter().filter(|one| one["bytes"].is_null()).count();
    // A FIFO, a link, and a file that its maker closed.
    assert_eq!(unreadable, 3, "{told}");
    let plain = files.iter().find(|one| one["path"] == "plain").unwrap();
    assert_eq!(plain["bytes"], 1 << 20);
}

#[test]
fn every_call_begins_with_an_empty_folder() {
    let site = Site::new();
    for _ in 0..2 {
        let told = site.inside(User::Ordinary, "kill-first", "");
        assert_eq!(told["ended"], "exited 0", "{told}");
        assert_eq!(told["files"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn what_cannot_be_run_is_said_in_words() {
    let site = Site::new();
    for (program, words) in [
        ("/usr/bin/no-such-program", "there is no program"),
        ("no-such-program", "there is no program"),
        ("/usr/share", "is not a file"),
        ("/usr/lib/os-release", "is not executable"),
        ("/usr/bin/su", "would run as another user"),
    ] {
        let output = site.run(User::Ordinary, &["run", "--", program]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(words), "{program}: {told}");
        assert_eq!(output.status.code(), Some(4), "{program}");
    }
    let longest = "x".repeat(120_000);
    let output = site.run(User::Ordinary, &["run", "--", "true", &longest]);
    assert!(output.status.success());
    let many = ["run", "--", "true"].into_iter().chain([&*longest; 9]);
    let output = site.run(User::Ordinary, &many.collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn arguments_are_data() {
    let site = Site::new();
    let output = site.run(
        User::Ordinary,
        &[
            "run",
            "--",
            "/usr/bin/printf",
            "%s|",
            "-rf",
            "$(id)",
            "a b",
            "LD_PRELOAD=x",
        ],
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "-rf|$(id)|a b|LD_PRELOAD=x|\n"
    );
}

#[test]
fn without_namespaces_nothing_starts_unless_the_policy_names_the_weaker_tier() {
    let site = Site::new();
    // No user namespace may be made below this one: such is a container that allows none.
    let run = |set: &[&str]| {
        let words = ["run", "--json"]
            .iter()
            .chain(set)
            .chain(&["--", "/usr/bin/id", "-u"]);
        site.without_namespaces(&words.copied().collect::<Vec<_>>())
    };
    let Some(refused) = run(&[]) else {
        println!("not run: this machine gives no user namespace in which to forbid others");
        return;
    };
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && told.contains("cannot be enforced"),
        "{told}"
    );
    assert!(refused.stdout.is_empty());
    let weaker = run(&["--set", "tier=\"without-namespaces\""]).unwrap();
    let told = String::from_utf8_lossy(&weaker.stdout).into_owned();
    assert!(
        weaker.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&weaker.stderr)
    );
    assert!(folders_of_work(&site).is_empty());
}

#[test]
fn the_weaker_tier_leaves_open_what_it_says_and_no_more() {
    let site = Site::new();
    let mut wrong = Vec::new();
    for row in ROWS {
        let set = format!("{}\ntier=\"without-namespaces\"", row.set);
        let told = site.inside(User::Ordinary, row.attack, &set);
        let failed = told["ended"] != "exited 0";
        if failed == row.open_without_namespaces {
            wrong.push(format!("{}: {told}", row.attack));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn folders_nested_without_end_and_closed_do_not_stay_behind_in_the_weaker_tier() {
    let site = Site::new();
    let told = site.inside(User::Ordinary, "bury", "tier=\"without-namespaces\"");
    assert_eq!(told["ended"], "exited 0", "{told}");
    assert!(folders_of_work(&site).is_empty());
}

#[test]
fn the_doctor_finds_that_all_of_it_holds() {
    let site = Site::new();
    let output = site.run(User::Ordinary, &["doctor", "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lines = told.as_array().unwrap();
    assert!(lines.len() > 12, "{told}");
    assert!(lines.iter().all(|line| line["health"] == "ok"), "{told}");
    assert!(output.status.success());
}
