//! Broker CPU for one brokered call against the floor of its cryptography and its bytes:
//! two `verify_strict` and two bare TLS WebSocket echoes of the same bytes, in the same run.
//!
//! `cargo bench -p tests --bench brokered_call`. The broker is the real binary in a process of its own;
//! CPU time is what the kernel accounts to it. The echo server is this program started again, with the
//! same libraries, the same thread count and the same shape of connections.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use proto_spec::{Audience, Digest, Envelope, Kind};
use serde_json::json;
use tests::lab::{Actor, Extra, wall_clock as now};
use tests::load::{agent, call as call_all, padding, provide, serve, take};
use tests::measure::{cpu, median};
use tests::site::Site;
use tests::wire::Line;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, client_async};

const CALLS: usize = 30_000;
const ROUNDS: usize = 3;
/// So many connections of callers, with so many calls in flight on each.
const SHAPES: [(usize, usize); 2] = [(8, 16), (64, 1)];

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let runtime = tokio::runtime::Runtime::new()?;
    match (args.next().as_deref(), args.next()) {
        (Some("echo-server"), Some(folder)) => runtime.block_on(echo_server(Path::new(&folder))),
        _ => runtime.block_on(run()),
    }
}

async fn run() -> Result<()> {
    let site = Site::with_nonces("", 4_000_000, 4_000_000)?;
    let admin = &site.admin;
    let broker = site.start()?;
    let echo = Echo::start(site.folder())?;
    let line = site.line(&broker)?;
    let echo_line = Line::new(echo.address, &site.authority()?)?;
    let fs = agent(&line, admin, "fs", 2, &[]).await?;
    let caller = Arc::new(agent(&line, admin, "caller", 3, &["fs.*"]).await?);
    let to: Audience = "fs@acme".parse()?;
    let provider = provide(&line, &fs).await?;
    let (call, result) = (sample_call(&caller)?, sample_result(&fs)?);
    println!(
        "call {} bytes, result {} bytes, {CALLS} calls, {ROUNDS} rounds\n",
        call.len(),
        result.len()
    );
    let serving = tokio::spawn(async move { serve(provider, &fs, |_| {}).await });
    let verify = verify_cost(&caller, &call)?;
    println!("one verify_strict: {:.1} µs", verify * 1e6);
    for (connections, each) in SHAPES {
        let (mut ratios, mut costs, mut floors) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let outer = echoes(
                &echo_line,
                echo.child.id(),
                connections,
                each,
                &call,
                &result,
            )
            .await?;
            let inner = echoes(
                &echo_line,
                echo.child.id(),
                1,
                connections * each,
                &call,
                &result,
            )
            .await?;
            let before = (cpu(broker.id())?, Instant::now());
            call_all(&line, &caller, &to, (connections, each), CALLS).await?;
            let brokered = (cpu(broker.id())? - before.0).as_secs_f64() / CALLS as f64;
            println!(
                "  {:.0} calls a second, clients on the same two cores",
                CALLS as f64 / before.1.elapsed().as_secs_f64()
            );
            let floor = 2.0 * verify + outer + inner;
            println!(
                "  callers {connections} × {each}: broker {:.1} µs; echoes {:.1} + {:.1} µs; floor {:.1} µs; ratio {:.2}",
                brokered * 1e6,
                outer * 1e6,
                inner * 1e6,
                floor * 1e6,
                brokered / floor
            );
            ratios.push(brokered / floor);
            costs.push(brokered * 1e6);
            floors.push(floor * 1e6);
        }
        println!(
            "callers {connections} × {each} in flight: {:.1} µs of broker CPU a call, floor {:.1} µs, ratio {:.2} (median of {ROUNDS})\n",
            median(costs),
            median(floors),
            median(ratios)
        );
    }
    serving.abort();
    Ok(())
}

fn sample_call(caller: &Actor) -> Result<Bytes> {
    Ok(caller.call("fs", "fs.read", &padding(), now())?.bytes)
}

fn sample_result(fs: &Actor) -> Result<Bytes> {
    let extra = Extra {
        re: Some(Digest([1; 32])),
        ..Extra::default()
    };
    Ok(fs
        .seal_with(
            Kind::ToolResult,
            &"caller@acme".parse()?,
            now(),
            &json!({"result": padding()}),
            &extra,
        )?
        .bytes)
}

fn verify_cost(caller: &Actor, call: &Bytes) -> Result<f64> {
    let envelope = Envelope::parse(call.clone(), 1 << 20)?;
    let signed = envelope.signed_bytes();
    let key = caller.key.public();
    let me = std::process::id();
    let mut costs = Vec::new();
    for _ in 0..ROUNDS {
        let before = cpu(me)?;
        for _ in 0..20_000 {
            if !key.verifies(std::hint::black_box(&signed), envelope.signature()) {
                bail!("the sample does not verify");
            }
        }
        costs.push((cpu(me)? - before).as_secs_f64() / 20_000.0);
    }
    Ok(median(costs))
}

/// Echo server CPU seconds an echo: half of them of the call's bytes, half of the result's.
async fn echoes(
    line: &Line,
    pid: u32,
    connections: usize,
    each: usize,
    call: &Bytes,
    result: &Bytes,
) -> Result<f64> {
    let left = Arc::new(AtomicUsize::new(CALLS));
    let mut sockets = Vec::new();
    for _ in 0..connections {
        let stream = line.connect().await?;
        sockets.push(client_async("wss://localhost/", stream).await?.0);
    }
    let before = cpu(pid)?;
    let mut tasks = Vec::new();
    for mut socket in sockets {
        let (left, bytes) = (Arc::clone(&left), [call.clone(), result.clone()]);
        tasks.push(tokio::spawn(async move {
            let mut in_flight = 0;
            let mut turn = 0;
            loop {
                while in_flight < each && take(&left) {
                    turn += 1;
                    socket
                        .feed(Message::Binary(bytes[turn % 2].clone()))
                        .await?;
                    in_flight += 1;
                }
                if in_flight == 0 {
                    return Ok::<(), anyhow::Error>(());
                }
                socket.flush().await?;
                let mut next = Some(socket.next().await.context("closed")?);
                while let Some(message) = next {
                    message?;
                    in_flight -= 1;
                    next = socket.next().now_or_never().flatten();
                }
            }
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok((cpu(pid)? - before).as_secs_f64() / CALLS as f64)
}

struct Echo {
    child: Child,
    address: SocketAddr,
}

impl Echo {
    fn start(folder: &Path) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("echo-server")
            .arg(folder)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        Ok(Self {
            address: line.trim().parse()?,
            child,
        })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// TLS and WebSocket with the broker's settings, and nothing else.
async fn echo_server(folder: &Path) -> Result<()> {
    let pair = broker::tls::read(&folder.join("cert.pem"), &folder.join("key.pem"))?;
    let acceptor = tokio_rustls::TlsAcceptor::from(pair.tls);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let Ok(socket) = tokio_tungstenite::accept_async(stream).await else {
                return;
            };
            let config = WebSocketConfig::default()
                .read_buffer_size(4 << 10)
                .write_buffer_size(4 << 10);
            let stream = socket.into_inner();
            let mut socket =
                WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
            while let Some(Ok(first)) = socket.next().await {
                let mut next = Some(Ok(first));
                while let Some(Ok(message)) = next {
                    if message.is_binary() && socket.feed(message).await.is_err() {
                        return;
                    }
                    next = socket.next().now_or_never().flatten();
                }
                if tokio::time::timeout(Duration::from_secs(5), socket.flush())
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
    }
}
