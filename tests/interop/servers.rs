//! The servers that people use, each with one thing to do that shows that it works: with nothing of ours
//! between, and in their boxes at another organisation.

use std::path::Path;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::mcp::clients::{At, Call, Client, Tools};
use tests::mcp::house::{House, Starting, Wrapped};
use tests::mcp::process::output;
use tests::mcp::servers::{OfNpm, OfPyPi, sqlite};
use tests::mcp::shelf::Shelf;
use tests::mcp::toolbox::{self, Npm, Python};
use tests::wire::PATIENCE;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::or_leave_out;

/// A server, and the one thing that it does.
struct Real {
    /// The agent that it is put behind.
    agent: &'static str,
    words: Vec<String>,
    /// What it needs of the box.
    opened: Vec<String>,
    tool: &'static str,
    /// As clients of the organisation `acme` see it, if the agent is of `globex`: without the digest that
    /// ends such a name, for which it is cut where it is long.
    public: &'static str,
    arguments: Value,
    /// What its answer has in it.
    says: &'static str,
    /// Who calls it from another organisation.
    client: Client,
}

impl Real {
    /// Its tool's public name among these.
    fn named<'a>(&self, names: &'a [String]) -> Option<&'a str> {
        let digest = "___xxxxxxxxxxxx".len();
        let begin = &self.public[..self.public.len().min(40 - digest)];
        let is_it = |name: &&String| {
            let rest = name.strip_prefix(begin);
            rest.is_some_and(|rest| rest.starts_with("___") && rest.len() == digest)
        };
        names.iter().find(is_it).map(String::as_str)
    }
}

/// What the servers are made of, and what they have to work with.
struct Workshop {
    shelf: Shelf,
    npm: Npm,
    python: Python,
    legacy: Python,
    /// The URL of a page.
    page: String,
}

const NOTE: &str = "to whom it may concern";
const COMMIT: &str = "what was done";
const MEMORY: &str =
    r#"{"type":"entity","name":"Ada","entityType":"person","observations":["wrote a program"]}"#;
const TABLE: &str = "import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as db:
    db.execute('create table people (name text, born int)')
    db.execute('insert into people values (?, ?)', ('Ada', 1815))";

impl Workshop {
    async fn new(tools: Tools, legacy: &Python) -> Self {
        let shelf = Shelf::new().unwrap();
        let kept = shelf.room("kept").unwrap();
        std::fs::write(kept.join("note.txt"), NOTE).unwrap();
        std::fs::write(kept.join("memory.json"), MEMORY).unwrap();
        let git = format!(
            "git init -q && git add note.txt && git -c user.name=Ada -c user.email=ada@acme.example commit -q -m '{COMMIT}'"
        );
        let mut git_of = Command::new("sh");
        git_of.args(["-c", &git]).current_dir(&kept);
        output(&mut git_of, PATIENCE).await.unwrap();
        let mut table = Command::new(legacy.program("python"));
        table.args(["-c", TABLE]).arg(kept.join("tables"));
        output(&mut table, PATIENCE).await.unwrap();
        Self {
            npm: shelf.npm("npm", tools.npm).unwrap(),
            python: shelf.python("python", tools.python).unwrap(),
            legacy: shelf.python("legacy", legacy).unwrap(),
            page: page("There is a page.").await,
            shelf,
        }
    }

    /// All of them.
    fn servers(&self) -> Vec<Real> {
        let kept = self.shelf.folder().join("kept");
        let thought = json!({"thought": "?", "nextThoughtNeeded": false, "thoughtNumber": 1, "totalThoughts": 1});
        let noon =
            json!({"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"});
        vec![
            Real {
                agent: "everything",
                words: OfNpm::Everything.stdio(&self.npm, &kept),
                opened: runs(self.npm.folder()),
                tool: "get-sum",
                public: "globex_everything__get_sum",
                arguments: json!({"a": 2, "b": 40}),
                says: "42",
                client: Client::McpAuto,
            },
            Real {
                agent: "files",
                words: OfNpm::Filesystem.stdio(&self.npm, &kept),
                opened: [runs(self.npm.folder()), opens("--read", &kept)].concat(),
                tool: "read_text_file",
                public: "globex_files__read_text_file",
                arguments: json!({"path": kept.join("note.txt")}),
                says: NOTE,
                client: Client::InspectorModern,
            },
            Real {
                agent: "memory",
                words: OfNpm::Memory.stdio(&self.npm, &kept),
                opened: [runs(self.npm.folder()), opens("--read", &kept)].concat(),
                tool: "search_nodes",
                public: "globex_memory__search_nodes",
                arguments: json!({"query": "Ada"}),
                says: "wrote a program",
                client: Client::Sdk,
            },
            Real {
                agent: "thinking",
                words: OfNpm::SequentialThinking.stdio(&self.npm, &kept),
                opened: runs(self.npm.folder()),
                tool: "sequentialthinking",
                public: "globex_thinking__sequentialthinking",
                arguments: thought,
                says: "thoughtHistoryLength",
                client: Client::ClientAuto,
            },
            Real {
                agent: "time",
                words: OfPyPi::Time.stdio(&self.python, &kept),
                opened: of_python(&self.python),
                tool: "convert_time",
                public: "globex_time__convert_time",
                arguments: noon,
                says: "T21:00:00",
                client: Client::FastmcpCli,
            },
            Real {
                agent: "git",
                words: OfPyPi::Git.stdio(&self.python, &kept),
                opened: [
                    of_python(&self.python),
                    opens("--read", &kept),
                    owned_by_another(),
                ]
                .concat(),
                tool: "git_log",
                public: "globex_git__git_log",
                arguments: json!({"repo_path": kept}),
                says: COMMIT,
                client: Client::InspectorLegacy,
            },
            Real {
                agent: "fetch",
                words: OfPyPi::Fetch.stdio(&self.python, &kept),
                opened: [of_python(&self.python), vec!["--net".to_owned()]].concat(),
                tool: "fetch",
                public: "globex_fetch__fetch",
                arguments: json!({"url": self.page}),
                says: "There is a page.",
                client: Client::McpLegacy,
            },
            Real {
                agent: "sqlite",
                words: sqlite(&self.legacy, &kept.join("tables")),
                opened: [of_python(&self.legacy), opens("--write", &kept)].concat(),
                tool: "read_query",
                public: "globex_sqlite__read_query",
                arguments: json!({"query": "SELECT name FROM people WHERE born = 1815"}),
                says: "Ada",
                client: Client::Remote,
            },
        ]
    }
}

fn opens(how: &str, folder: &Path) -> Vec<String> {
    vec![how.to_owned(), folder.display().to_string()]
}

fn runs(folder: &Path) -> Vec<String> {
    opens("--run", folder)
}

/// An interpreter that lies outside of `/usr` is opened too.
fn of_python(python: &Python) -> Vec<String> {
    let base = python.base().unwrap();
    let own = runs(python.folder());
    match base.starts_with("/usr") {
        true => own,
        false => [own, runs(&base)].concat(),
    }
}

/// Git reads no repository of somebody else's, and where root starts the box that is what it is.
fn owned_by_another() -> Vec<String> {
    let trust = [
        "GIT_CONFIG_COUNT=1",
        "GIT_CONFIG_KEY_0=safe.directory",
        "GIT_CONFIG_VALUE_0=*",
    ];
    let option = |variable: &str| ["--env".to_owned(), variable.to_owned()];
    trust.into_iter().flat_map(option).collect()
}

/// Serves a page on loopback for as long as the test runs: its URL.
async fn page(text: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 4_096];
            let _ = stream.read(&mut asked).await;
            let length = text.len();
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/plain";
            let page = format!("{head}\r\nContent-Length: {length}\r\n\r\n{text}");
            let _ = stream.write_all(page.as_bytes()).await;
        }
    });
    format!("http://{address}/")
}

#[tokio::test]
async fn every_reference_server_answers_a_client_of_another_maker() {
    let (tools, workshop) = or_leave_out!(workshop(), "the reference servers");
    for real in workshop.servers() {
        let at = At::Stdio(real.words.clone());
        let said = heard(tools, &at, &real, real.tool, Client::Sdk).await;
        said.unwrap();
    }
}

/// Everything that they are made of, or what is missing and why.
async fn workshop() -> Result<(Tools, Workshop), String> {
    let (npm, python) = (toolbox::npm().await?, toolbox::python().await?);
    let legacy = toolbox::legacy().await?;
    let tools = Tools { npm, python };
    Ok((tools, Workshop::new(tools, legacy).await))
}

/// Whether a client hears from a server, under the tool's name there, what it should.
async fn heard(
    tools: Tools,
    at: &At,
    real: &Real,
    name: &str,
    client: Client,
) -> Result<(), String> {
    let call = Call {
        tool: name,
        arguments: real.arguments.clone(),
    };
    match client.call(tools, at, &call).await {
        Ok(text) if text.contains(real.says) => Ok(()),
        Ok(text) => Err(format!("{}: {text}", real.agent)),
        Err(why) => Err(format!("{}: {why:#}", real.agent)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reference_server_works_in_its_box_for_clients_of_another_organisation() {
    let (tools, workshop) = or_leave_out!(workshop(), "the reference servers");
    let (acme, globex) = (House::open("acme").unwrap(), House::open("globex").unwrap());
    let servers = workshop.servers();
    // All start at once.
    let start = |real: &Real| globex.start(real.agent, &real.opened, &real.words).unwrap();
    let starting: Vec<Starting> = servers.iter().map(start).collect();
    let agents: Vec<&str> = servers.iter().map(|real| real.agent).collect();
    acme.befriend(&globex, &agents).unwrap();
    let token = acme.token("peer.globex.*").unwrap();
    let wrapped: Vec<Wrapped> = starting
        .into_iter()
        .map(|one| one.serves().unwrap())
        .collect();
    for wrapped in &wrapped {
        assert!(wrapped.said.contains("boxed"), "{}", wrapped.said);
    }
    acme.until_listed("", &token, |names| {
        servers.iter().all(|real| real.named(names).is_some())
    })
    .await
    .unwrap();
    let names = acme.listed("", &token).await.unwrap();
    let at = acme.at("", &token);
    let calls = servers.iter().map(|real| {
        let name = real.named(&names).unwrap();
        heard(tools, &at, real, name, real.client)
    });
    let failed: Vec<String> = join_all(calls)
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
