//! `fem-cli mcp login` and `mcp wrap --auth`: a server that demands an authorisation is wrapped, with somebody at hand
//! once; what is a secret goes where it belongs and nowhere else.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::json;
use tests::by_hand::{fem, fem_cli};
use tests::mcp::browser;
use tests::mcp::guarded::{CLIENT, DEEP, Guarded, SCOPE};

use crate::mcp_wrap::{Site, Wrap, call, code, text};

/// How a command ended, and what it said.
type Ended = (i32, String);

impl Site {
    fn auth(&self) -> PathBuf {
        self.acme.folder().join("fs.auth")
    }

    /// Logs in with a browser in which everything is agreed to.
    async fn log_in(&self, options: &str) -> Ended {
        let mut child = fem_cli(self.acme.folder())
            .unwrap()
            .args(["mcp", "login", "--auth", "fs.auth"])
            .args(options.split_whitespace())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut words = BufReader::new(child.stderr.take().unwrap()).lines();
        let (told, mut lines) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            while let Some(Ok(line)) = words.next() {
                let _ = told.send(line);
            }
        });
        let mut said = String::new();
        while let Some(line) = lines.recv().await {
            if line.contains("response_type=code") {
                browser::open(line.trim()).await.unwrap();
            }
            said.push_str(&line);
            said.push('\n');
        }
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        (child.wait().unwrap().code().unwrap(), said)
    }

    fn show(&self, guarded: &Guarded) -> Wrap {
        let mut command = fem_cli(self.acme.folder()).unwrap();
        command
            .args(["mcp", "wrap", "--context", "fs.toml", "--auth", "fs.auth"])
            .args(["--url", &guarded.url()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Wrap::start(command)
    }

    fn refused(&self, line: &str) -> Ended {
        let words: Vec<&str> = line.split(' ').collect();
        fem(self.acme.folder(), &words).unwrap()
    }
}

#[tokio::test]
async fn a_person_logs_in_once_and_the_servers_tools_are_called() {
    let (site, guarded) = (Site::new(), Guarded::start().unwrap());
    let url = guarded.url();
    let (code, said) = site.refused(&format!("mcp wrap --context fs.toml --url {url}"));
    assert_eq!(code, 6, "{said}");
    assert!(
        said.contains(&format!("fem-cli mcp login --url {url}")),
        "{said}"
    );
    let (code, said) = site.log_in(&format!("--url {url}")).await;
    assert_eq!(code, 0, "{said}");
    let mode = site.auth().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let wrap = site.show(&guarded);
    let done = call(&site.agent("ada"), "fs.flat", json!({}))
        .await
        .unwrap();
    assert_eq!(text(&done), "done");
    for said in [&said, &wrap.said] {
        assert!(
            !said.contains("token-") && !said.contains("renewal-"),
            "{said}"
        );
    }
    let played = guarded.played();
    assert_eq!(played.asked[0]["resource"], url);
    assert!(played.asked.len() == 1 && played.asked[0]["client_id"] == "registered");
}

#[tokio::test]
async fn a_token_that_ended_is_renewed_once_however_many_want_it() {
    let (site, guarded) = (Site::new(), Guarded::start().unwrap());
    site.log_in(&format!("--url {}", guarded.url())).await;
    let ada = site.agent("ada");
    let first = site.show(&guarded);
    guarded.forget_tokens();
    let calls = (0..8).map(|_| {
        let ada = ada.clone();
        async move { call(&ada, "fs.flat", json!({})).await.unwrap() }
    });
    for done in futures_util::future::join_all(calls).await {
        assert_eq!(text(&done), "done");
    }
    assert_eq!(guarded.asked_by("refresh_token"), 1);
    // Another program has read what renewed the token then, and what it wrote is read here.
    drop(first);
    let wrap = site.show(&guarded);
    assert_eq!(
        site.log_in("--timeout 1m").await.0,
        0,
        "another writes the file"
    );
    guarded.forget_tokens();
    let done = call(&ada, "fs.flat", json!({})).await.unwrap();
    assert_eq!(text(&done), "done");
    assert_eq!(guarded.asked_by("refresh_token"), 2);
    assert_eq!(wrap.stop(), 0);
}

#[tokio::test]
async fn a_token_that_will_end_is_renewed_before_it_is_shown() {
    let (site, guarded) = (Site::new(), Guarded::start().unwrap());
    guarded.played().expires_in = Some(20);
    site.log_in(&format!("--url {}", guarded.url())).await;
    guarded.played().expires_in = Some(3_600);
    let _wrap = site.show(&guarded);
    assert_eq!(guarded.asked_by("refresh_token"), 1);
    let played = guarded.played();
    // The first came of logging in, which shows nothing.
    assert!(
        played.shown[1..]
            .iter()
            .all(|shown| shown.as_deref() == Some("Bearer token-2")),
        "{:?}",
        played.shown
    );
}

#[tokio::test]
async fn what_nobody_can_renew_bars_calls_until_somebody_logs_in_and_the_log_names_the_command() {
    let (site, guarded) = (Site::new(), Guarded::start().unwrap());
    let ada = site.agent("ada");
    guarded.played().renews = false;
    site.log_in(&format!("--url {}", guarded.url())).await;
    let wrap = site.show(&guarded);
    guarded.forget_tokens();
    for _ in 0..2 {
        assert_eq!(
            code(call(&ada, "fs.flat", json!({})).await),
            "SERVER_LOGIN_NEEDED"
        );
    }
    wrap.logs(&["fem-cli mcp login --auth fs.auth"]);
    let before = guarded.played().shown.len();
    assert_eq!(
        code(call(&ada, "fs.flat", json!({})).await),
        "SERVER_LOGIN_NEEDED"
    );
    assert_eq!(
        guarded.played().shown.len(),
        before,
        "what is dead is not shown again"
    );
    let (ended, said) = site.log_in("").await;
    assert_eq!(ended, 0, "{said}");
    let done = call(&ada, "fs.flat", json!({})).await.unwrap();
    assert_eq!(text(&done), "done");
}

#[tokio::test]
async fn who_gives_tokens_being_away_for_a_while_bars_nobody() {
    let (site, guarded) = (Site::new(), Guarded::start().unwrap());
    let ada = site.agent("ada");
    site.log_in(&format!("--url {}", guarded.url())).await;
    let _wrap = site.show(&guarded);
    guarded.forget_tokens();
    guarded.played().is_down = true;
    assert_eq!(code(call(&ada, "fs.flat", json!({})).await), "SERVER_LOST");
    guarded.played().is_down = false;
    assert!(call(&ada, "fs.flat", json!({})).await.is_ok());
}

#[tokio::test]
async fn a_call_that_takes_more_is_told_so_and_others_go_on_until_somebody_agrees() {
    let (site, guarded) = (Site::new(), Guarded::start().unwrap());
    let ada = site.agent("ada");
    site.log_in(&format!("--url {}", guarded.url())).await;
    let wrap = site.show(&guarded);
    assert_eq!(
        code(call(&ada, "fs.deep", json!({})).await),
        "SERVER_LOGIN_NEEDED"
    );
    wrap.logs(&[DEEP, "fem-cli mcp login --auth fs.auth"]);
    assert!(call(&ada, "fs.flat", json!({})).await.is_ok());
    let (_, said) = site.log_in("").await;
    assert!(
        said.contains(&format!("{DEEP} {SCOPE}")),
        "both are asked for: {said}"
    );
    assert!(call(&ada, "fs.deep", json!({})).await.is_ok());
}

#[tokio::test]
async fn a_client_is_authorised_itself_with_nobody_at_hand_and_asks_for_more_itself() {
    let (site, guarded) = (Site::new(), Guarded::start().unwrap());
    let ada = site.agent("ada");
    let secret = site.acme.folder().join("fem.secret");
    std::fs::write(&secret, CLIENT.1).unwrap();
    let options = format!(
        "--url {} --client-id {} --client-secret @fem.secret --unattended --issuer {}",
        guarded.url(),
        CLIENT.0,
        guarded.issuer()
    );
    let (code, said) = site.log_in(&options).await;
    assert!(
        code == 1 && said.contains("chmod 600"),
        "others can read the secret: {said}"
    );
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(site.log_in(&options).await.0, 0);
    let kept = std::fs::read_to_string(site.auth()).unwrap();
    assert!(!kept.contains(CLIENT.1), "the secret stays where it is");
    let _wrap = site.show(&guarded);
    guarded.forget_tokens();
    for tool in ["fs.flat", "fs.deep"] {
        assert!(call(&ada, tool, json!({})).await.is_ok(), "{tool}");
    }
    assert_eq!(guarded.asked_by("client_credentials"), 3);
}

#[tokio::test]
async fn a_secret_is_not_given_to_an_issuer_that_nobody_named() {
    let (site, guarded) = (Site::new(), Guarded::start().unwrap());
    let secret = site.acme.folder().join("fem.secret");
    std::fs::write(&secret, CLIENT.1).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let options = format!(
        "--url {} --client-id fem --client-secret @fem.secret --unattended",
        guarded.url()
    );
    assert_eq!(site.log_in(&options).await.0, 2);
    let other = format!("{options} --issuer https://login.example");
    let (code, said) = site.log_in(&other).await;
    assert!(code == 1 && said.contains("login.example"), "{said}");
    assert!(guarded.played().asked.is_empty());
    assert!(!site.auth().exists());
}

#[tokio::test]
async fn a_token_is_shown_to_its_own_server_and_follows_nobody_elsewhere() {
    let (site, guarded) = (Site::new(), Guarded::start().unwrap());
    let other = Guarded::start().unwrap();
    let ada = site.agent("ada");
    site.log_in(&format!("--url {}", guarded.url())).await;
    let (code_of_other, said) = site.refused(&format!(
        "mcp wrap --context fs.toml --auth fs.auth --url {}",
        other.url()
    ));
    assert!(
        code_of_other == 1 && said.contains(&guarded.url()),
        "{said}"
    );
    let _wrap = site.show(&guarded);
    guarded.played().leads_to = Some(other.url());
    assert_eq!(code(call(&ada, "fs.flat", json!({})).await), "MCP_ERROR");
    let (ended, said) = site.log_in("").await;
    assert_ne!(
        ended, 0,
        "what is said of the server leads elsewhere too: {said}"
    );
    let played = other.played();
    assert!(
        played.shown.is_empty() && played.visits.is_empty(),
        "{played:?}"
    );
}

#[tokio::test]
async fn a_login_that_fails_leaves_what_was_there() {
    let (site, guarded) = (Site::new(), Guarded::start().unwrap());
    site.log_in(&format!("--url {}", guarded.url())).await;
    let before = std::fs::read(site.auth()).unwrap();
    guarded.played().is_down = true;
    assert_eq!(site.log_in("").await.0, 1);
    let other = Guarded::start().unwrap();
    let (code, said) = site.log_in(&format!("--url {}", other.url())).await;
    assert!(code == 1 && said.contains("name another file"), "{said}");
    assert_eq!(std::fs::read(site.auth()).unwrap(), before);
    let folder = std::fs::read_dir(site.acme.folder()).unwrap();
    let left = folder.filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains(".auth.")
    });
    assert_eq!(left.count(), 0, "nothing lies beside it");
}
