//! What one broker and two add to an MCP `tools/call` and `tools/list`, in both of the protocol's eras.
//!
//! `cargo bench -p tests --bench mcp_call`. The same request is made of the same server directly, over HTTP and over
//! its standard streams, and through `/mcp` of one broker and of two, one after the other on a connection that is
//! kept for a turn; the ways take turns. Where as many ask as there are in a crowd, a program does not begin each call
//! with cold caches, and what it costs is what it does. Everything is a process of its own, and CPU time is what the kernel accounts
//! to each. Through brokers there is TLS, a bearer token and signatures, and a process that wraps the server, which it
//! speaks to over its standard streams. The server is built without optimisation, so that what it costs directly is
//! more than it need be: what brokers add is in their own columns.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::try_join_all;
use proto_spec::SigningKey;
use serde_json::{Value, json};
use tests::mcp::handshake::{self, Session};
use tests::mcp::house::{House, Wrapped};
use tests::mcp::servers::{self, Listening, command, large_http, large_stdio};
use tests::mcp::stateless;
use tests::measure::{children, cpu, median, percentile};
use tests::wire::{Line, Posting};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};

/// Longer than brokers remember what may be called.
const PAUSE: Duration = Duration::from_millis(1_100);
/// With fewer calls the ticks in which the kernel accounts are too coarse.
const ACCOUNTED: usize = 200;
/// Tools that the second server has more.
const MORE: usize = 200;

const ECHO: &str = "hello";

/// In which manner a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Era {
    /// 2025-11-25: in a session.
    Legacy,
    /// 2026-07-28: every request stands for itself.
    Modern,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// `tools/call` of `echo`, under the name that it has there.
    Call(&'static str),
    /// `tools/list`.
    List,
}

/// How each way has its turns.
#[derive(Debug, Clone, Copy)]
struct Rhythm {
    turns: usize,
    each: usize,
    pause: Duration,
    crowd: usize,
}

/// A client.
enum Client {
    Http(Http),
    Stdio(Era, Streams),
}

/// A client on a connection that it keeps.
struct Http {
    to: To,
    posting: Posting,
    path: String,
    token: Option<String>,
    /// Of a client of the legacy era.
    session: Option<Session>,
}

enum To {
    Plain(SocketAddr),
    Broker(Line),
}

/// A server of this process's own, over its standard streams.
struct Streams {
    child: Child,
    write: ChildStdin,
    read: BufReader<ChildStdout>,
}

/// A way to a server.
struct Way {
    name: &'static str,
    /// They ask at once.
    clients: Vec<Client>,
    ask: Ask,
    /// The broker that is asked, the one behind it, what wraps the server, and the server.
    processes: [Option<u32>; 4],
    took: Vec<Duration>,
    spent: [Duration; 4],
}

/// A server with so many tools more, wherever it can be asked.
struct Place {
    http: Listening,
    words: Vec<String>,
    wrapped: Wrapped,
    agent: &'static str,
}

/// Two organisations: what is wrapped is the second one's.
struct World {
    acme: House,
    globex: House,
    near: String,
    far: String,
}

fn main() -> Result<()> {
    // One thread, so that a client costs as little as it can.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run())
}

async fn run() -> Result<()> {
    let world = World::open()?;
    let small = world.place("fs", 0).await?;
    let large = world.place("many", MORE).await?;
    println!("load {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    for era in [Era::Legacy, Era::Modern] {
        let call = Ask::Call("echo");
        for (title, place, ask, rhythm) in [
            ("tools/call", &small, call, Rhythm::steady(10, 200)),
            (
                "tools/call of a crowd",
                &small,
                call,
                Rhythm::crowd(10, 400),
            ),
            (
                "tools/call among 200 tools more",
                &large,
                call,
                Rhythm::steady(5, 100),
            ),
            (
                "tools/call among 200 tools more, after a pause",
                &large,
                call,
                Rhythm::slow(12),
            ),
            (
                "tools/list of 200 tools more",
                &large,
                Ask::List,
                Rhythm::steady(5, 40),
            ),
        ] {
            let mut ways = world.ways(place, era, ask, rhythm.crowd).await?;
            compare(&mut ways, rhythm).await?;
            println!(
                "\n{title}, {era:?}: {} × {}, {} at once",
                rhythm.turns, rhythm.each, rhythm.crowd
            );
            show(&ways, rhythm);
        }
    }
    signatures();
    println!("load {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    Ok(())
}

/// What a message's signature costs on this machine at its best, which is again and again: to compare with what
/// brokers add.
fn signatures() {
    const TIMES: u32 = 2_000;
    let (key, message) = (SigningKey::from_seed(&[1; 32]), [7; 512]);
    let public = key.public();
    let begun = Instant::now();
    let made: Vec<_> = (0..TIMES).map(|_| key.sign(&message)).collect();
    let making = begun.elapsed() / TIMES;
    let begun = Instant::now();
    let good = made.iter().filter(|one| public.verifies(&message, one));
    let good = good.count();
    let checking = begun.elapsed() / TIMES;
    println!("\n{good} signatures: {making:.0?} to make, {checking:.0?} to check, each");
}

impl World {
    fn open() -> Result<Self> {
        let (acme, globex) = (House::open("acme")?, House::open("globex")?);
        acme.befriend(&globex, &["fs", "many"])?;
        Ok(Self {
            near: globex.token("*")?,
            far: acme.token("peer.globex.*")?,
            acme,
            globex,
        })
    }

    async fn place(&self, agent: &'static str, more: usize) -> Result<Place> {
        let words = large_stdio(servers::Era::Both, more)?;
        let place = Place {
            http: large_http(servers::Era::Both, more).await?,
            wrapped: self.globex.wrap(agent, &["--without-box"], &words)?,
            words,
            agent,
        };
        let [one, two] = place.behind();
        let some = |names: &[String]| !names.is_empty();
        self.globex.until_listed(one, &self.near, some).await?;
        self.acme.until_listed(two, &self.far, some).await?;
        Ok(place)
    }

    async fn ways(&self, place: &Place, era: Era, ask: Ask, crowd: usize) -> Result<Vec<Way>> {
        let (near, far) = (&self.globex, &self.acme);
        let wraps = place.wrapped.id();
        let [server] = children(wraps)?[..] else {
            bail!("the wrapped server is not one process");
        };
        let streams = Streams::open(&place.words, era).await?;
        let own = streams.child.id();
        let plain = || Ok(To::Plain(place.http.address));
        let directly = Http::crowd(crowd, plain, "/mcp", None, era).await?;
        let brokered = async |asked: &House, behind: &str, token: &str| {
            let line = || asked.line().map(To::Broker);
            Http::crowd(crowd, line, &format!("/mcp{behind}"), Some(token), era).await
        };
        let [one, two] = place.behind();
        let agents = brokered(near, one, &self.near).await?;
        let all = brokered(near, "", &self.near).await?;
        let others = brokered(far, two, &self.far).await?;
        let streams = vec![Client::Stdio(era, streams)];
        let alone = |server| [None, None, None, server];
        let through = |broker: &House, second: Option<&House>| {
            let second = second.map(|house| house.0.broker.id());
            [
                Some(broker.0.broker.id()),
                second,
                Some(wraps),
                Some(server),
            ]
        };
        Ok(vec![
            Way::new("directly over HTTP", directly, ask, alone(place.http.id())),
            Way::new("directly over stdio", streams, ask, alone(own)),
            Way::new("one broker, /mcp/AGENT", agents, ask, through(near, None)),
            Way::new(
                "one broker, /mcp",
                all,
                ask.among_all(place),
                through(near, None),
            ),
            Way::new("two brokers", others, ask, through(far, Some(near))),
        ])
    }
}

impl Rhythm {
    /// One call after the other.
    fn steady(turns: usize, each: usize) -> Self {
        Self {
            turns,
            each,
            pause: Duration::ZERO,
            crowd: 1,
        }
    }

    /// Eight at once, each one call after the other.
    fn crowd(turns: usize, each: usize) -> Self {
        Self {
            crowd: 8,
            ..Self::steady(turns, each)
        }
    }

    /// As people and models call: something else is done before.
    fn slow(turns: usize) -> Self {
        Self {
            turns,
            each: 1,
            pause: PAUSE,
            crowd: 1,
        }
    }
}

impl Ask {
    /// As it is asked where all agents are.
    fn among_all(self, place: &Place) -> Self {
        match self {
            Self::Call(_) if place.agent == "fs" => Self::Call("fs__echo"),
            Self::Call(_) => Self::Call("many__echo"),
            Self::List => Self::List,
        }
    }

    /// Has a client ask it: how long that took. What it says is looked at.
    async fn of(self, client: &mut Client) -> Result<Duration> {
        let (method, params) = match self {
            Self::Call(name) => (
                "tools/call",
                json!({"name": name, "arguments": {"message": ECHO}}),
            ),
            Self::List => ("tools/list", json!({})),
        };
        let (time, reply) = client.ask(method, params).await?;
        let result = &reply["result"];
        let is_whole = match self {
            Self::Call(_) => result["content"][0]["text"] == ECHO,
            Self::List => result["tools"]
                .as_array()
                .is_some_and(|tools| tools.len() > MORE),
        };
        ensure!(is_whole, "{reply:.400}");
        Ok(time)
    }
}

impl Place {
    /// What stands for it behind `/mcp`: at its own broker, and at the other.
    fn behind(&self) -> [&'static str; 2] {
        match self.agent {
            "fs" => ["/fs", "/fs@globex"],
            _ => ["/many", "/many@globex"],
        }
    }
}

impl Client {
    /// Asks once: how long it took, and the answer.
    async fn ask(&mut self, method: &str, params: Value) -> Result<(Duration, Value)> {
        match self {
            Self::Http(http) => {
                let request = match &http.session {
                    Some(session) => session.request(method, &params)?,
                    None => stateless::request(&http.path, http.token.as_deref(), method, params)?,
                };
                let begun = Instant::now();
                let reply = http.posting.ask(request).await?;
                Ok((begun.elapsed(), stateless::read(&reply)?))
            }
            Self::Stdio(era, streams) => {
                let message = match era {
                    Era::Modern => stateless::message(method, params),
                    Era::Legacy => handshake::message(method, &params),
                };
                let line = format!("{message}\n");
                let begun = Instant::now();
                let reply = streams.ask(&line).await?;
                Ok((begun.elapsed(), serde_json::from_str(&reply)?))
            }
        }
    }
}

impl Http {
    async fn crowd(
        many: usize,
        to: impl Fn() -> Result<To>,
        path: &str,
        token: Option<&str>,
        era: Era,
    ) -> Result<Vec<Client>> {
        let all = (0..many).map(async |_| Self::open(to()?, path.to_owned(), token, era).await);
        try_join_all(all).await
    }

    async fn open(to: To, path: String, token: Option<&str>, era: Era) -> Result<Client> {
        let mut posting = to.open().await?;
        let session = match era {
            Era::Legacy => Some(Session::begin(&mut posting, &path, token).await?),
            Era::Modern => None,
        };
        Ok(Client::Http(Self {
            to,
            posting,
            path,
            token: token.map(str::to_owned),
            session,
        }))
    }
}

impl To {
    async fn open(&self) -> Result<Posting> {
        match self {
            Self::Plain(address) => Posting::plain(*address).await,
            Self::Broker(line) => line.open().await,
        }
    }
}

impl Streams {
    async fn open(words: &[String], era: Era) -> Result<Self> {
        let mut child = command(words)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut streams = Self {
            write: child.stdin.take().context("its standard input")?,
            read: BufReader::new(child.stdout.take().context("its standard output")?),
            child,
        };
        if era == Era::Legacy {
            streams.ask(&format!("{}\n", handshake::hello())).await?;
            let ready = format!("{}\n", handshake::ready());
            streams.write.write_all(ready.as_bytes()).await?;
        }
        Ok(streams)
    }

    async fn ask(&mut self, line: &str) -> Result<String> {
        self.write.write_all(line.as_bytes()).await?;
        let mut reply = String::new();
        self.read.read_line(&mut reply).await?;
        Ok(reply)
    }
}

impl Way {
    fn new(
        name: &'static str,
        clients: Vec<Client>,
        ask: Ask,
        processes: [Option<u32>; 4],
    ) -> Self {
        Self {
            name,
            clients,
            ask,
            processes,
            took: Vec::new(),
            spent: [Duration::ZERO; 4],
        }
    }

    /// Asks so many times, and looks at every answer.
    async fn turn(&mut self, times: usize) -> Result<Vec<Duration>> {
        let (name, ask) = (self.name, self.ask);
        let each = times.div_ceil(self.clients.len());
        let all = self.clients.iter_mut().map(|client| async move {
            let mut took = Vec::with_capacity(each);
            for _ in 0..each {
                took.push(ask.of(client).await.context(name)?);
            }
            anyhow::Ok(took)
        });
        Ok(try_join_all(all).await?.concat())
    }

    /// Opens its connections anew, and uses each once: one that waits for its turn may be too idle to be kept.
    async fn reopen(&mut self) -> Result<()> {
        for client in &mut self.clients {
            if let Client::Http(http) = client {
                http.posting = http.to.open().await?;
            }
        }
        self.turn(self.clients.len()).await.map(drop)
    }

    /// What its processes have spent since they began.
    fn account(&self) -> Result<[Duration; 4]> {
        let mut spent = [Duration::ZERO; 4];
        for (spent, process) in spent.iter_mut().zip(self.processes) {
            *spent = process.map_or(Ok(Duration::ZERO), cpu)?;
        }
        Ok(spent)
    }
}

/// Has every way its turns, one after the other, and a first one that does not count.
async fn compare(ways: &mut [Way], rhythm: Rhythm) -> Result<()> {
    for way in &mut *ways {
        way.reopen().await?;
        way.turn(rhythm.each / 4).await?;
    }
    for _ in 0..rhythm.turns {
        for way in &mut *ways {
            way.reopen().await?;
        }
        tokio::time::sleep(rhythm.pause).await;
        for way in &mut *ways {
            let before = way.account()?;
            let took = way.turn(rhythm.each).await?;
            let after = way.account()?;
            way.took.extend(took);
            for (at, spent) in way.spent.iter_mut().enumerate() {
                *spent += after[at].saturating_sub(before[at]);
            }
        }
    }
    Ok(())
}

/// Times in microseconds, of one call.
fn show(ways: &[Way], rhythm: Rhythm) {
    let calls = rhythm.turns * rhythm.each;
    print!("{:<24}{:>9}{:>9}{:>7}", "", "median", "p99", "×");
    match calls >= ACCOUNTED {
        true => println!(
            "   {:>8}{:>8}{:>8}{:>8}{:>8}{:>7}",
            "broker", "2nd", "wrap", "server", "all", "×"
        ),
        false => println!(),
    }
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let mut floor = None;
    for way in ways {
        let middle = median(way.took.iter().copied().map(us).collect());
        let late = us(percentile(&mut way.took.clone(), 99));
        let spent = way.spent.map(|spent| us(spent) / calls as f64);
        let [broker, second, wrap, server] = spent;
        let all: f64 = spent.iter().sum();
        let (least, cheapest) = *floor.get_or_insert((middle, all));
        print!(
            "{:<24}{middle:>9.0}{late:>9.0}{:>7.2}",
            way.name,
            middle / least
        );
        match calls >= ACCOUNTED {
            true => println!(
                "   {broker:>8.0}{second:>8.0}{wrap:>8.0}{server:>8.0}{all:>8.0}{:>7.2}",
                all / cheapest
            ),
            false => println!(),
        }
    }
}
