//! What an operator relies on: backup, restore and verification of the journal, a full disk, the way
//! back in, new certificates. With the real binaries.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use proto_spec::message::{Attach, Challenge};
use proto_spec::{Code, Digest, Envelope, Kind};
use rustix::process::Signal;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tests::binaries::{Process, apart, path};
use tests::certs;
use tests::lab::{Actor, Extra, code_of, to_broker, wall_clock as now};
use tests::site::Site;
use tests::wire::{Line, PATIENCE, Reply, Socket};

/// Another configuration of the same organisation, with its data elsewhere.
fn with_data(site: &Site, data: &str) -> PathBuf {
    let text = std::fs::read_to_string(site.at("broker.toml")).unwrap();
    let text = text.replace("data = \"data\"", &format!("data = \"{data}\""));
    let path = site.at("other.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// The admin approves an agent, which is one record.
async fn approve(site: &Site, line: &Line, agent: &Actor) -> Reply {
    let body =
        json!({"name": agent.id.name(), "key": agent.key.public(), "capabilities": ["fs.read"]});
    ask(line, &site.admin, Kind::AdminAgentApprove, &body).await
}

async fn ask(line: &Line, actor: &Actor, kind: Kind, body: &Value) -> Reply {
    let sealed = actor
        .seal(kind, &to_broker().unwrap(), now(), body)
        .unwrap();
    line.post("/fem", sealed.bytes).await.unwrap()
}

async fn register(line: &Line, agent: &Actor) -> String {
    let body = json!({"pubkey": agent.key.public()});
    let reply = ask(line, agent, Kind::RegisterAgent, &body).await;
    String::from_utf8_lossy(&reply.body).into_owned()
}

fn code(reply: &Reply) -> Code {
    code_of(&reply.envelope().unwrap()).unwrap()
}

/// Runs one of the programs.
fn run(program: &str, words: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    let mut command = Command::new(path(program).unwrap());
    apart(&mut command);
    for word in words {
        command.arg(word.as_ref());
    }
    command.output().unwrap()
}

/// What a program said, which ended with this code.
#[track_caller]
fn ends(output: &Output, code: i32) -> String {
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

fn fact<'a>(said: &'a str, name: &str) -> &'a str {
    let line = said
        .lines()
        .find(|line| line.starts_with(name))
        .expect(said);
    line.split_whitespace().nth(1).expect(said)
}

/// Tries again until it is so.
#[track_caller]
fn until(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "it never came to be");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_backup_of_a_running_broker_holds_what_was_acknowledged_and_starts_one() {
    let site = Site::new("clock_skew_max_ms = 1000").unwrap();
    let (config, backup) = (site.at("broker.toml"), site.at("backup"));
    let broker = site.start().unwrap();
    let line = site.line(&broker).unwrap();
    let agent = Actor::new("fs", 2).unwrap();
    register(&line, &agent).await;
    assert_eq!(approve(&site, &line, &agent).await.status, 200);
    let socket = std::fs::metadata(site.at("data/control.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);

    let made = ends(&run("fem-broker", &[&"backup", &config, &backup]), 0);
    assert_eq!(fact(&made, "records"), "3");
    let again = ends(&run("fem-broker", &[&"backup", &config, &backup]), 1);
    assert!(again.contains("never overwritten"), "{again}");
    let running = ends(&run("fem-broker", &[&"journal", &"verify", &config]), 0);
    let copied = ends(&run("fem-broker", &[&"journal", &"verify", &backup]), 0);
    assert_eq!(running, copied);
    let before = site
        .admin
        .seal(
            Kind::AdminAgentList,
            &to_broker().unwrap(),
            now(),
            &json!({}),
        )
        .unwrap();
    broker.kill().unwrap();

    let other = with_data(&site, "data-2");
    ends(&run("fem-broker", &[&"restore", &backup, &other]), 0);
    let full = ends(&run("fem-broker", &[&"restore", &backup, &other]), 1);
    assert!(full.contains("not empty"), "{full}");
    let broker = Process::start(&other).unwrap();
    let line = site.line(&broker).unwrap();
    let reply = line.post("/fem", before.bytes).await.unwrap();
    assert_eq!(code(&reply), Code::Stale, "signed before the restore");
    let begun = Instant::now();
    // What is signed anew is taken as soon as the window has passed.
    while ask(&line, &site.admin, Kind::AdminAgentList, &json!({}))
        .await
        .status
        != 200
    {
        assert!(begun.elapsed() < PATIENCE);
    }
    assert!(register(&line, &agent).await.contains("registered"));
}

#[tokio::test]
async fn a_backup_is_made_without_a_broker_too_and_a_broker_starts_from_it_as_it_is() {
    let site = Site::new("").unwrap();
    let broker = site.start().unwrap();
    broker.stop().unwrap();
    ends(
        &run(
            "fem-broker",
            &[&"backup", &site.at("broker.toml"), &site.at("copy")],
        ),
        0,
    );
    let broker = Process::start(&with_data(&site, "copy")).unwrap();
    let line = site.line(&broker).unwrap();
    let reply = ask(&line, &site.admin, Kind::AdminAgentList, &json!({})).await;
    assert_eq!(
        code(&reply),
        Code::Stale,
        "nothing is known of the nonces before"
    );
}

#[tokio::test]
async fn a_damaged_journal_stops_the_start_with_its_position_and_a_code_of_its_own() {
    let site = Site::new("").unwrap();
    let broker = site.start().unwrap();
    let line = site.line(&broker).unwrap();
    let agent = Actor::new("fs", 2).unwrap();
    register(&line, &agent).await;
    approve(&site, &line, &agent).await;
    broker.kill().unwrap();
    let (config, journal) = (site.at("broker.toml"), site.at("data/journal.redb"));
    let verified = ends(&run("fem-broker", &[&"journal", &"verify", &config]), 0);
    assert_eq!(fact(&verified, "records"), "3");
    let whole = std::fs::read(&journal).unwrap();
    // In the copy of the record that is in use: an earlier page may hold another.
    let mut spoilt = whole.clone();
    for at in 0..whole.len() - 10 {
        if whole[at..].starts_with(b"\"name\":\"fs\"") {
            spoilt[at + 8] = b'x';
        }
    }
    assert!(spoilt != whole);
    std::fs::write(&journal, &spoilt).unwrap();
    for words in [
        &[
            &"journal" as &dyn AsRef<std::ffi::OsStr>,
            &"verify",
            &config,
        ][..],
        &[&config],
        &[&"backup", &config, &site.at("backup")],
    ] {
        let said = ends(&run("fem-broker", words), 3);
        assert!(
            said.contains("record 2 of the journal is damaged"),
            "{said}"
        );
        assert!(said.contains("fem-broker restore"), "{said}");
    }
    assert!(
        std::fs::read(&journal).unwrap() == spoilt,
        "nothing was changed"
    );
    std::fs::write(&journal, &whole[..whole.len() / 2]).unwrap();
    let said = ends(&run("fem-broker", &[&config]), 1);
    assert!(said.contains("journal"), "{said}");
    std::fs::write(&journal, &whole).unwrap();
    drop(site.start().unwrap());
}

/// A broker whose data directory is on a small file system of its own. Gives nothing where the system
/// does not let us mount one.
fn on_a_small_disk(site: &Site) -> Option<(Process, PathBuf)> {
    let allowed = Command::new("unshare")
        .args(["-rm", "mount", "-t", "tmpfs", "tmpfs", "/tmp"])
        .output()
        .is_ok_and(|tried| tried.status.success());
    if !allowed {
        return None;
    }
    std::fs::create_dir(site.at("disk")).unwrap();
    let script = "mount -t tmpfs -o size=12m tmpfs \"$1/disk\" && cp -a \"$1/data\" \"$1/disk/data\" \
                  && exec \"$2\" \"$3\"";
    let broker = Process::launch(
        Command::new("unshare")
            .args(["-rm", "sh", "-c", script, "sh"])
            .args([site.folder(), &path("fem-broker").unwrap()])
            .arg(with_data(site, "disk/data")),
    )
    .unwrap();
    let seen = site.folder().strip_prefix("/").unwrap();
    let disk = Path::new("/proc")
        .join(broker.id().to_string())
        .join("root")
        .join(seen)
        .join("disk");
    Some((broker, disk))
}

/// Writes until there is no room, and gives the file.
fn fill(disk: &Path) -> PathBuf {
    use std::io::Write as _;
    let path = disk.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    for size in [1 << 20, 4_096] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
    path
}

#[tokio::test]
async fn a_full_disk_refuses_admin_acts_whole_and_calls_go_on() {
    let site = Site::new("").unwrap();
    let Some((broker, disk)) = on_a_small_disk(&site) else {
        println!("left out: this system lets nobody mount a small disk (unshare -rm)");
        return;
    };
    let line = site.line(&broker).unwrap();
    let (provider, caller) = (Actor::new("fs", 2).unwrap(), Actor::new("ada", 3).unwrap());
    for agent in [&provider, &caller] {
        register(&line, agent).await;
        assert_eq!(approve(&site, &line, agent).await.status, 200);
    }
    let mut session = provider.attach(&line, now()).await.unwrap();
    let offer = json!({"tools": [{"name": "fs.read"}]});
    let sealed = provider
        .seal(Kind::OfferTools, &to_broker().unwrap(), now(), &offer)
        .unwrap();
    session.send(sealed.bytes).await.unwrap();
    assert_eq!(
        session.hear().await.unwrap().said().unwrap().kind(),
        Kind::Ack
    );

    let filler = fill(&disk);
    // The founding, the first admin, and two approvals.
    let mut acknowledged = 4;
    // The journal may have some pages to spare.
    loop {
        let reply = approve(&site, &line, &provider).await;
        if reply.status != 200 {
            assert_eq!(code(&reply), Code::StorageFull);
            break;
        }
        acknowledged += 1;
    }
    for _ in 0..5 {
        assert_eq!(
            code(&approve(&site, &line, &caller).await),
            Code::StorageFull
        );
        call_works(&line, &caller, &provider, &mut session).await;
    }
    let listed = ask(&line, &site.admin, Kind::AdminAgentList, &json!({})).await;
    assert_eq!(listed.status, 200, "what reads goes on as well");

    std::fs::remove_file(filler).unwrap();
    for _ in 0..3 {
        assert_eq!(
            approve(&site, &line, &caller).await.status,
            200,
            "there is room again"
        );
        acknowledged += 1;
    }
    call_works(&line, &caller, &provider, &mut session).await;
    let data = disk.join("data");
    let verified = ends(&run("fem-broker", &[&"journal", &"verify", &data]), 0);
    assert_eq!(fact(&verified, "records"), acknowledged.to_string());
}

async fn call_works(line: &Line, caller: &Actor, provider: &Actor, session: &mut Socket) {
    let call = caller.call("fs", "fs.read", &json!({}), now()).unwrap();
    let answered = async {
        let call: Envelope = session.hear().await.unwrap().delivered().unwrap();
        let extra = Extra {
            re: Some(Digest::of(&call.signed_bytes())),
            ..Extra::default()
        };
        let to = call.speaker().clone().into();
        let body = json!({"result": 1});
        let result = provider
            .seal_with(Kind::ToolResult, &to, now(), &body, &extra)
            .unwrap();
        session.send(result.bytes).await.unwrap();
    };
    let (reply, ()) = tokio::join!(line.post("/fem", call.bytes), answered);
    let reply = reply.unwrap();
    assert_eq!(reply.envelope().unwrap().kind(), Kind::ToolResult);
}

/// Starts the broker of an organisation that `init` made, with its log in a file, and writes its
/// address into the contexts.
fn start_made(dir: &Path, log: &Path) -> Process {
    let broker = Process::launch(
        Command::new(path("fem-broker").unwrap())
            .arg(dir.join("broker.toml"))
            .env("FEM_LOG", "warn")
            .stderr(std::fs::File::create(log).unwrap()),
    )
    .unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines = text
            .lines()
            .map(|line| match line.starts_with("broker = \"https") {
                true => format!("broker = \"https://{}\"\n", broker.address),
                false => format!("{line}\n"),
            });
        if text.contains("broker_key = ") {
            std::fs::write(&path, lines.collect::<String>()).unwrap();
        }
    }
    broker
}

#[tokio::test]
async fn the_recovery_key_names_an_admin_when_the_broker_is_stopped_and_the_journal_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, log) = (folder.path().join("acme"), folder.path().join("log"));
    let any = "127.0.0.1:0";
    let words: [&dyn AsRef<std::ffi::OsStr>; 8] = [
        &"init",
        &"acme",
        &"--dir",
        &dir,
        &"--listen",
        &any,
        &"--ops",
        &any,
    ];
    ends(&run("fem-cli", &words), 0);
    let recover = |key: &str| {
        run(
            "fem-cli",
            &[
                &"init",
                &"acme",
                &"--dir",
                &dir,
                &"--recover",
                &"--recovery-key",
                &dir.join(key),
            ],
        )
    };
    let list = |context: &str| {
        run(
            "fem-cli",
            &[&"agent", &"list", &"--context", &dir.join(context)],
        )
    };
    let broker = start_made(&dir, &log);
    ends(&list("admin.toml"), 0);
    let said = ends(&recover("recovery.pem"), 1);
    assert!(said.contains("is the broker running?"), "{said}");
    // No envelope takes the recovery key or the root key, under whatever name.
    let authority = CertificateDer::from_pem_file(dir.join("tls/ca.pem")).unwrap();
    let line = Line::new(broker.address, &authority).unwrap();
    for key in ["recovery.pem", "keys/root.pem"] {
        let key = agent_sdk::Key::load(dir.join(key)).unwrap();
        let mut actor = Actor::new("administrator", 1).unwrap();
        actor.key = proto_spec::SigningKey::from_seed(key.signing().seed());
        let reply = ask(&line, &actor, Kind::AdminAgentList, &json!({})).await;
        assert_eq!(code(&reply), Code::NotAuthentic);
    }
    broker.stop().unwrap();

    let said = ends(&recover("keys/root.pem"), 1);
    assert!(said.contains("not the recovery key"), "{said}");
    assert!(!dir.join("admin-2.toml").exists(), "nothing was made");
    ends(&recover("recovery.pem"), 0);
    let broker = start_made(&dir, &log);
    assert!(std::fs::read_to_string(&log).unwrap().contains("RECOVERY"));
    ends(&list("admin-2.toml"), 0);
    ends(&list("admin.toml"), 3);
    broker.stop().unwrap();
    let broker = start_made(&dir, &log);
    assert!(!std::fs::read_to_string(&log).unwrap().contains("RECOVERY"));
    ends(&list("admin-2.toml"), 0);
    let verified = ends(
        &run(
            "fem-broker",
            &[&"journal", &"verify", &dir.join("broker.toml")],
        ),
        0,
    );
    assert_eq!(
        fact(&verified, "records"),
        "4",
        "founded, approved, recovered, approved"
    );
    drop(broker);
}

async fn challenge(line: &Line) -> (Socket, Digest, Digest) {
    let (mut socket, channel) = line.websocket().await.unwrap();
    let said: Challenge = socket
        .hear()
        .await
        .unwrap()
        .said()
        .unwrap()
        .read_body()
        .unwrap();
    (socket, said.challenge, channel)
}

async fn attach(actor: &Actor, socket: &mut Socket, challenge: Digest, channel: Digest) -> Kind {
    let body = Attach { challenge, channel };
    let sealed = actor
        .seal(Kind::Attach, &to_broker().unwrap(), now(), &body)
        .unwrap();
    socket.send(sealed.bytes).await.unwrap();
    socket.hear().await.unwrap().said().unwrap().kind()
}

#[tokio::test]
async fn new_connections_see_a_new_certificate_and_open_ones_stay() {
    let site = Site::new("").unwrap();
    let log = site.at("log");
    let broker = Process::launch(
        Command::new(path("fem-broker").unwrap())
            .arg(site.at("broker.toml"))
            .env("FEM_LOG", "warn")
            .stderr(std::fs::File::create(&log).unwrap()),
    )
    .unwrap();
    let old_line = site.line(&broker).unwrap();
    let mut attached = site.admin.attach(&old_line, now()).await.unwrap();
    let (mut opened, old_challenge, old_channel) = challenge(&old_line).await;
    certs::write(site.folder()).unwrap();
    broker.signal(Signal::HUP).unwrap();
    let line = site.line(&broker).unwrap();
    let begun = Instant::now();
    while line.connect().await.is_err() {
        assert!(begun.elapsed() < PATIENCE);
    }
    assert!(old_line.connect().await.is_err());
    // Open connections stay, and one that began before attaches with what it saw.
    let kind = attach(&site.admin, &mut opened, old_challenge, old_channel).await;
    assert_eq!(kind, Kind::Ack);
    site.admin.attach(&line, now()).await.unwrap();
    let (mut relayed, new_challenge, new_channel) = challenge(&line).await;
    assert_ne!(new_channel, old_channel);
    // Whoever has the old certificate's key, and stands in between, is not let in by it.
    let kind = attach(&site.admin, &mut relayed, new_challenge, old_channel).await;
    assert_eq!(kind, Kind::Error);

    std::fs::write(site.at("key.pem"), "no key").unwrap();
    broker.signal(Signal::HUP).unwrap();
    let told = "the one before stays in force";
    until(|| std::fs::read_to_string(&log).unwrap().contains(told));
    line.connect().await.unwrap();
    let list = site
        .admin
        .seal(
            Kind::AdminAgentList,
            &to_broker().unwrap(),
            now(),
            &json!({}),
        )
        .unwrap();
    attached.send(list.bytes).await.unwrap();
    let said = attached.hear().await.unwrap().said().unwrap();
    assert_eq!(
        said.kind(),
        Kind::Ack,
        "the first connection was never dropped"
    );
    assert_eq!(
        std::fs::read_to_string(&log).unwrap().matches(told).count(),
        1
    );
}
