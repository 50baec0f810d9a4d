//! What a stranger reads when something is wrong: what it is, and what to do next.

use crate::org::{Org, offline};

/// Runs a command line that fails with `exit`, and gives what it said.
#[track_caller]
fn fails(org: &Org, exit: i32, line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    offline(org.dir.path(), exit, &words, "")
}

#[test]
fn what_is_wrong_is_said_in_lines_that_say_what_to_do_next() {
    let org = Org::new();
    org.join("ada");
    let write = |name: &str, text: &str| std::fs::write(org.dir.path().join(name), text).unwrap();
    let ada = std::fs::read_to_string(org.dir.path().join("ada.toml")).unwrap();
    write("ada-elsewhere.toml", &ada.replace("ada@acme", "ada@globex"));
    write("broken.toml", "x = 1\n");
    for (exit, line, says) in [
        // An admin's act in another's name.
        (
            3,
            "--context ada.toml agent list",
            "choose the context of an admin",
        ),
        (
            3,
            "--context ada.toml enrol issue b-* --ceiling x.* --out b.enrol",
            "choose the context of an admin",
        ),
        // The broker is another organisation's.
        (
            5,
            "--context ada-elsewhere.toml tools",
            "is the organisation in `agent` the broker's?",
        ),
        (
            2,
            "--context acme/admin.toml token revoke 12",
            "an id, or another digest, is 43 characters",
        ),
        (
            1,
            "mcp login --auth new.auth",
            "a first login names it with --url",
        ),
        // What doctor finds is one line, and its next step another.
        (1, "doctor", "→ give --context FILE"),
        (1, "doctor --config broken.toml", "unknown field `x`"),
    ] {
        let said = fails(&org, exit, line);
        assert!(said.contains(says), "{line}\n{said}");
        assert!(!said.contains("\\n"), "{line}\n{said}");
    }
}

#[test]
fn a_next_step_is_not_what_was_said_already() {
    let org = Org::new();
    let past =
        "--context acme/admin.toml token issue ada --capability x.y --expires 2020-01-01T00:00:00Z";
    org.join("ada");
    let said = fails(&org, 3, past);
    assert!(
        said.contains("lies in the past") && !said.contains("next:"),
        "{said}"
    );
    let away = "mcp wrap --context ada.toml --url http://127.0.0.1:1/mcp";
    let said = fails(&org, 1, away);
    assert_eq!(said.matches("cannot be reached").count(), 1, "{said}");
}
