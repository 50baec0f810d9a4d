//! The hostile server does what it says: a habit that breaks down itself would prove nothing.

use std::process::Stdio;
use std::time::Duration;

use tests::mcp::process::output;
use tests::mcp::servers::{command, hostile};
use tests::wire::PATIENCE;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// What a habit is given that does not end with its input, and what is read of one that says more and more.
const HEARING: Duration = Duration::from_secs(1);
const HEARD_MAX: u64 = 1 << 20;

const DIALOGUE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}
{"jsonrpc":"2.0","method":"notifications/initialized"}
{"jsonrpc":"2.0","id":2,"method":"tools/list"}
{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"echo","arguments":{"message":"heard"}}}
{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"misbehave"}}
"#;

/// What a server with this habit says, up to a bound, and what it says to standard error.
async fn said(habit: &str) -> (String, String) {
    let mut command = command(&hostile(habit)).unwrap();
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Who ends at once does not read it.
    let _ = stdin.write_all(DIALOGUE.as_bytes()).await;
    drop(stdin);
    let (mut heard, mut complained) = (vec![0], Vec::new());
    let mut stdout = child.stdout.take().unwrap().take(HEARD_MAX);
    let mut stderr = child.stderr.take().unwrap().take(HEARD_MAX);
    // Python may take its time to start; from the first byte on, it is the habit that does.
    let begun = timeout(PATIENCE, stdout.read(&mut heard)).await;
    heard.truncate(begun.map_or(0, Result::unwrap));
    let _ = timeout(HEARING, stdout.read_to_end(&mut heard)).await;
    child.start_kill().unwrap();
    let _ = timeout(HEARING, stderr.read_to_end(&mut complained)).await;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(heard), text(complained))
}

#[tokio::test]
async fn every_habit_is_shown_and_none_breaks_down_over_it() {
    let Ok(habits) = output(&mut command(&hostile("habits")).unwrap(), PATIENCE).await else {
        eprintln!("left out: hostile servers, because there is no Python");
        return;
    };
    let silent = ["mute", "dies-at-start", "dies-at-hello"];
    for line in habits.lines() {
        let (habit, _) = line.split_once(": ").unwrap();
        let (heard, complained) = said(habit).await;
        assert!(!complained.contains("Traceback"), "{habit}: {complained}");
        assert_eq!(
            heard.is_empty(),
            silent.contains(&habit),
            "{habit}: {heard}"
        );
    }
}
