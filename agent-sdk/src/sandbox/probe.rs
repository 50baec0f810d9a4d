//! What should not work, tried from within: the box's own word on whether it holds.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::process::{Pid, test_kill_process};
use rustix::thread::UnshareFlags;

/// Tries what `name` says and prints `held`, or what it got.
pub(super) fn run(name: &str) -> ExitCode {
    let words: Vec<String> = std::env::args().skip(2).collect();
    let word = |at: usize| words.get(at).map_or("", String::as_str);
    let tried = match name {
        "network" => network(),
        "secret" => secret(word(0)),
        "writing" => writing(word(0)),
        "others" => others(word(0)),
        "environment" => environment(),
        "privileges" => privileges(),
        "namespaces" => namespaces(),
        "own-programs" => own_programs(),
        "processes" => processes(word(0).parse().unwrap_or(0)),
        "disk" => disk(word(0).parse().unwrap_or(0)),
        "files" => files(word(0).parse().unwrap_or(0)),
        "memory" => memory(word(0).parse().unwrap_or(0)),
        "memory-part" => memory_part(word(0).parse().unwrap_or(0)),
        "daemon" => daemon(),
        "output" => output(),
        "sleep" => loop {
            std::thread::park();
        },
        _ => Err(format!("there is no probe {name:?}")),
    };
    let said = tried.map_or_else(|got| format!("open: {got}"), |()| "held".into());
    let _ = writeln!(std::io::stdout(), "{said}");
    ExitCode::SUCCESS
}

/// Nothing, or what the program got that it should not.
type Tried = Result<(), String>;

fn unless<T, E>(got: Result<T, E>, what: impl FnOnce(T) -> String) -> Tried {
    got.map_or(Ok(()), |value| Err(what(value)))
}

fn network() -> Tried {
    unless(TcpListener::bind(("127.0.0.1", 0)), |_| {
        "a TCP socket".into()
    })?;
    unless(TcpListener::bind(("::1", 0)), |_| {
        "a TCP socket (IPv6)".into()
    })?;
    unless(UdpSocket::bind(("127.0.0.1", 0)), |_| "a UDP socket".into())?;
    unless(std::os::unix::net::UnixDatagram::unbound(), |_| {
        "a Unix socket".into()
    })
}

fn secret(path: &str) -> Tried {
    unless(std::fs::read(path), |_| format!("the contents of {path}"))
}

fn writing(path: &str) -> Tried {
    let write = |path: &str| OpenOptions::new().append(true).open(path);
    unless(write(path), |_| format!("{path}, to write"))?;
    unless(std::fs::write("/usr/fem-was-here", ""), |()| {
        "a file in /usr".into()
    })
}

fn others(id: &str) -> Tried {
    let id = id
        .parse()
        .ok()
        .and_then(Pid::from_raw)
        .ok_or("no process to look for")?;
    unless(test_kill_process(id), |()| {
        "a signal to a process outside".into()
    })?;
    let shown = std::fs::read_dir("/proc").map_or(0, |entries| {
        entries
            .filter_map(Result::ok)
            .filter(|one| one.file_name().to_string_lossy().parse::<u32>().is_ok())
            .count()
    });
    match shown {
        0..=4 => Ok(()),
        n => Err(format!("{n} processes in /proc")),
    }
}

fn environment() -> Tried {
    let known = ["PATH", "HOME", "TMPDIR", "LANG"];
    let other = std::env::vars_os().find(|(name, _)| !known.iter().any(|known| name == known));
    if let Some((name, _)) = other {
        return Err(format!("the variable {}", name.display()));
    }
    let open = (3..64).find(|n| Path::new(&format!("/dev/fd/{n}")).exists());
    unless(open.ok_or(()), |n| format!("descriptor {n}"))
}

fn privileges() -> Tried {
    let able = rustix::thread::capabilities(None).map_err(|why| why.to_string())?;
    match able.permitted.is_empty() && rustix::thread::no_new_privs().unwrap_or(false) {
        true => Ok(()),
        false => Err(format!("capabilities {:?}", able.permitted)),
    }
}

fn namespaces() -> Tried {
    #[expect(deprecated, reason = "never among the flags that make it unsafe")]
    let left = rustix::thread::unshare(UnshareFlags::NEWUSER);
    unless(left, |()| "a user namespace".into())
}

fn own_programs() -> Tried {
    let failed = |why: std::io::Error| why.to_string();
    std::fs::write("own", "#!/bin/sh\nexit 0\n").map_err(failed)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions("own", mode).map_err(failed)?;
    unless(Command::new("./own").status(), |_| {
        "a program that it wrote itself".into()
    })
}

fn processes(most: usize) -> Tried {
    let mut all = Vec::new();
    let got = loop {
        match Command::new("/usr/bin/sleep")
            .arg("60")
            .stdin(Stdio::null())
            .spawn()
        {
            Ok(_) if all.len() > most => break Err(format!("more than {most} processes")),
            Ok(one) => all.push(one),
            Err(_) => break Ok(()),
        }
    };
    for mut one in all {
        let _ = one.kill();
        let _ = one.wait();
    }
    got
}

fn disk(most: u64) -> Tried {
    let block = vec![1; 1 << 20];
    for n in 0..=most >> 20 {
        let written = std::fs::write(format!("block{n}"), &block);
        if written.is_err() {
            return Ok(());
        }
    }
    Err(format!("more than {most} bytes of disk"))
}

fn files(most: u64) -> Tried {
    for n in 0..=most {
        if std::fs::write(format!("f{n}"), "").is_err() {
            return Ok(());
        }
    }
    Err(format!("more than {most} files"))
}

/// Three processes, none of which has more than one may, with more than all may together.
fn memory(most: usize) -> Tried {
    let part = || {
        let mut again = Command::new("/proc/self/exe");
        std::os::unix::process::CommandExt::arg0(&mut again, super::stage::PROBE);
        again.args(["memory-part", &(most / 2).to_string()]).spawn()
    };
    let parts: Vec<_> = (0..3).map(|_| part()).collect();
    for one in parts {
        let ended = one.and_then(|mut one| one.wait());
        ended.map_err(|why| format!("nothing, for it was not tried: {why}"))?;
    }
    Err(format!("more than {most} bytes of memory"))
}

fn memory_part(bytes: usize) -> Tried {
    let block = std::hint::black_box(vec![1_u8; bytes]);
    // Whoever counts has until now to see it.
    std::thread::sleep(std::time::Duration::from_millis(500));
    drop(block);
    Ok(())
}

/// Leaves a child behind that holds on to our output. It is to be dead before we are told of our end.
fn daemon() -> Tried {
    let child = Command::new("/usr/bin/sleep")
        .arg("600")
        .stdin(Stdio::null())
        .spawn();
    child.map(|_| ()).map_err(|why| why.to_string())
}

fn output() -> Tried {
    let mut zeros = std::io::repeat(b'x').take(u64::MAX);
    std::io::copy(&mut zeros, &mut std::io::stdout())
        .map(|_| ())
        .map_err(|why| why.to_string())
}
