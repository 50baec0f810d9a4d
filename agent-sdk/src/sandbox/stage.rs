//! The helpers: this program, started again under another name, in place of `main`, and forked for each
//! program that is to run.
//!
//! [`OUTER`] leaves the machine's namespaces and forks the first process of the new ones. That one
//! builds the room, gives everything up, starts the program, and keeps it within its limits. When it ends, the kernel kills whatever is left. It polls the socket on which it got
//! its job: when whoever wanted the program is gone, so is the program.
//!
//! Without namespaces [`KEEPER`] watches from outside, and [`CONFINED`] gives everything up and then
//! becomes the program.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use fork::{Fork, fork};
use rustix::io::FdFlags;
use rustix::process::{
    DumpableBehavior, PidfdFlags, Signal, WaitOptions, getgid, getpid, getuid, pidfd_open,
    set_child_subreaper, set_dumpable_behavior, set_parent_process_death_signal, setsid,
};
use rustix::thread::UnshareFlags;

use super::confine::{self, Calls, Place, Rights};
use super::fork_server;
use super::job::{self, How, Job, Program, Report, Said};
use super::policy::{Network, Policy, Wanted};
use super::probe;
use super::room::{self, FILES, Missing, of};
use super::watch::{self, Inside};

/// Leaves the namespaces.
pub(super) const OUTER: &str = "fem-sandbox:outer";
/// The same, but for that of the network.
pub(super) const OUTER_OPEN: &str = "fem-sandbox:outer:open";
/// Watches what has no namespaces.
pub(super) const KEEPER: &str = "fem-sandbox:keeper";
const CONFINED: &str = "fem-sandbox:confined";
/// Tries from within what should not work.
pub(super) const PROBE: &str = "fem-sandbox:probe";

/// Runs as a helper if this process was started as one; comes back in every other process.
pub(super) fn divert() {
    let mut words = std::env::args();
    let ended = match words.next().as_deref() {
        Some(OUTER) => told(forked().and_then(|rules| outer(UnshareFlags::NEWNET, rules))),
        Some(OUTER_OPEN) => told(forked().and_then(|rules| outer(UnshareFlags::empty(), rules))),
        Some(KEEPER) => told(forked().and_then(|rules| keeper(&rules.policy))),
        Some(CONFINED) => told(confined()),
        Some(PROBE) => probe::run(&words.next().unwrap_or_default()),
        _ => return,
    };
    std::process::exit(i32::from(ended != ExitCode::SUCCESS));
}

/// What keeps a helper from its end.
enum Stopped {
    Missing(Missing),
    NotStarted(String),
    /// Whoever wanted the program is gone; there is nobody to tell.
    Alone,
}

impl From<Missing> for Stopped {
    fn from(missing: Missing) -> Self {
        Self::Missing(missing)
    }
}

impl Stopped {
    fn said(self) -> Option<Said> {
        match self {
            Self::Alone => None,
            Self::NotStarted(why) => Some(Said::NotStarted(why)),
            Self::Missing(Missing(FILES, why)) => Some(Said::NotStarted(format!(
                "the box's user cannot open {why}"
            ))),
            Self::Missing(Missing(layer, why)) => Some(Said::Unenforced {
                layer: layer.into(),
                why: why.to_string(),
            }),
        }
    }
}

/// Says over the socket why it went no further.
fn told(done: Result<(), Stopped>) -> ExitCode {
    let Err(stopped) = done else {
        return ExitCode::SUCCESS;
    };
    if let Some(said) = stopped.said() {
        let _ = job::say(io::stdin(), &said, None);
    }
    ExitCode::FAILURE
}

/// Nothing but the three standard descriptors goes further, and no terminal.
fn cut_off() {
    close_fds::set_fds_cloexec(3, &[]);
    // Fails only where there is nothing to leave.
    let _ = setsid();
}

/// What holds for all programs of a sandbox, made ready once.
struct Rules {
    policy: Policy,
    calls: Result<Calls, Missing>,
}

/// Hears the policy, and forks for each program that is to run; comes back in what was forked.
fn forked() -> Result<Rules, Stopped> {
    cut_off();
    let heard = job::hear::<Wanted>(io::stdin()).map_err(|_| Stopped::Alone)?;
    let (wanted, _) = heard.ok_or(Stopped::Alone)?;
    let calls = Calls::of(&wanted);
    let policy = wanted.check().map_err(|_| Stopped::Alone)?;
    fork_server::serve().map_err(|_| Stopped::Alone)?;
    let own = pidfd_open(getpid(), PidfdFlags::empty()).map_err(of("processes"))?;
    job::say(io::stdin(), &Said::Here, Some(&own)).map_err(|_| Stopped::Alone)?;
    Ok(Rules { policy, calls })
}

fn outer(network: UnshareFlags, rules: Rules) -> Result<(), Stopped> {
    let (user, group) = (getuid().as_raw(), getgid().as_raw());
    unshare(UnshareFlags::NEWUSER).map_err(of("user namespaces"))?;
    let mapped = |file: &str, text: String| {
        std::fs::write(Path::new("/proc/self").join(file), text).map_err(of("user namespaces"))
    };
    mapped("setgroups", "deny".into())?;
    mapped("uid_map", format!("{NOBODY} {user} 1"))?;
    mapped("gid_map", format!("{NOBODY} {group} 1"))?;
    let others = UnshareFlags::NEWPID
        | network
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    unshare(others).map_err(of("namespaces"))?;
    // With a second thread the first unshare would have failed, so nothing is lost in the copy.
    match fork().map_err(of("processes"))? {
        Fork::Child => inner(rules),
        Fork::Parent(_) => {
            rustix::process::wait(WaitOptions::empty()).map_err(of("processes"))?;
            Ok(())
        }
    }
}

/// Who a program is in its own eyes.
const NOBODY: u32 = 65_534;

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    #[expect(
        deprecated,
        reason = "what makes it unsafe is sharing no descriptors any more, which is never among the flags"
    )]
    Ok(rustix::thread::unshare(flags)?)
}

/// This program, as the helper of that name. It inherits the three standard descriptors.
fn again(name: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).env_clear();
    command
}

/// A job as it came, and what belongs to it.
struct Work {
    job: Job,
    stdin: OwnedFd,
    inputs: Vec<(String, Vec<u8>)>,
}

fn work(wanted: &Wanted) -> Result<Work, Stopped> {
    let control = io::stdin();
    let heard = job::hear::<Job>(&control).map_err(|_| Stopped::Alone)?;
    let Some((job, Some(stdin))) = heard else {
        return Err(Stopped::Alone);
    };
    let mut inputs = Vec::new();
    for (path, length) in &job.inputs {
        let room = usize::try_from(*length)
            .ok()
            .filter(|n| *n as u64 <= wanted.disk_bytes);
        let mut bytes = vec![0; room.ok_or(Stopped::Alone)?];
        job::hear_all(&control, &mut bytes).map_err(|_| Stopped::Alone)?;
        inputs.push((path.clone(), bytes));
    }
    Ok(Work { job, stdin, inputs })
}

fn inner(Rules { policy, calls }: Rules) -> Result<(), Stopped> {
    // The outer helper has one thread, so its death is the process's.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(of("processes"))?;
    let wanted = policy.wanted();
    let Work { job, stdin, inputs } = work(wanted)?;
    unshare(UnshareFlags::NEWNS).map_err(of("mounts"))?;
    let own = own_program(&job)?;
    let room = room::build(wanted)?;
    put_all(&room.work, inputs)?;
    // Before the limits: the kernel holds what all boxes of a user have under way against them.
    job::say(io::stdin(), &Said::Folder, Some(&room.work)).map_err(|_| Stopped::Alone)?;
    drop(room.work);
    confine::limits(wanted, u64::from(wanted.processes) + 1)?;
    confine::privileges()?;
    let mut places = room.places;
    places.extend(own);
    places.push(confine::place(Path::new(room::WORK), Rights::Own)?);
    places.push(confine::place(Path::new("/proc"), Rights::Read)?);
    let watched = room.processes.try_clone().map_err(of("processes"))?;
    places.push(Place(watched, Rights::Read));
    confine::landlock(wanted, places)?;
    // Its own memory is nobody's to read: it is what keeps the program.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(of("processes"))?;
    calls?.leave()?;
    if let Program::Nothing = job.program {
        let _ = job::say(io::stdin(), &Said::Started, None);
        return finish(Ok(Report {
            how: How::Exited(0),
            cpu_ms: 0,
            memory_bytes_max: 0,
        }));
    }
    let mut command = command(&job)?;
    // A group of its own: a signal to all of its group is none to us.
    let program = command.stdin(Stdio::from(stdin)).process_group(0).spawn();
    let program =
        program.map_err(|why| Stopped::NotStarted(cannot(&job.program, &command, &why)))?;
    drop(command);
    job::say(io::stdin(), &Said::Started, None).map_err(|_| Stopped::Alone)?;
    let inside = match wanted.network {
        Network::Closed => Inside::Namespace(room.processes),
        Network::Open => Inside::OpenNetwork(room.processes, wanted.descriptors),
    };
    finish(watch::keep(program.id(), &policy, &inside, io::stdin()))
}

fn keeper(policy: &Policy) -> Result<(), Stopped> {
    set_child_subreaper(Some(getpid())).map_err(of("processes"))?;
    let Work { job, stdin, inputs } = work(policy.wanted())?;
    let folder = job.work.clone().ok_or(Stopped::Alone)?;
    let opened = confine::place(&folder, Rights::Own)?.0;
    put_all(&opened, inputs)?;
    // The next helper's standard input is the program's own, so it finds its job, and the way to say
    // why it went no further, by their numbers.
    let (read_job, write_job) = pipe()?;
    let (read_said, write_said) = pipe()?;
    for kept in [&write_job, &read_said] {
        rustix::io::fcntl_setfd(kept, FdFlags::CLOEXEC).map_err(of("processes"))?;
    }
    let mut next = again(CONFINED);
    next.args([&read_job, &write_said].map(|one| one.as_raw_fd().to_string()));
    let program = next
        .stdin(Stdio::from(stdin))
        .spawn()
        .map_err(of("processes"))?;
    drop((next, read_job, write_said));
    serde_json::to_writer(File::from(write_job), &(policy.wanted(), &job))
        .map_err(|why| Missing("processes", why.into()))?;
    if let Ok(said) = serde_json::from_reader::<_, Said>(File::from(read_said)) {
        let _ = job::say(io::stdin(), &said, None);
        return Err(Stopped::Alone);
    }
    // Nothing was said, and its end is closed: it has become the program.
    let report = job::say(io::stdin(), &Said::Started, None)
        .and_then(|()| watch::keep(program.id(), policy, &Inside::Descendants, io::stdin()));
    watch::end(program.id());
    finish(report)
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Missing> {
    rustix::pipe::pipe().map_err(of("processes"))
}

fn confined() -> Result<(), Stopped> {
    let mut numbers = std::env::args().skip(1);
    let mut inherited = |options: &mut OpenOptions| {
        let path = Path::new("/proc/self/fd").join(numbers.next().unwrap_or_default());
        options.open(path).map_err(|_| Stopped::Alone)
    };
    let job = inherited(OpenOptions::new().read(true))?;
    let said = inherited(OpenOptions::new().write(true))?;
    close_fds::set_fds_cloexec(3, &[]);
    let (wanted, job) = serde_json::from_reader(job).map_err(|_| Stopped::Alone)?;
    if let Err(why) = become_program(&wanted, &job)
        && let Some(why) = why.said()
    {
        let _ = serde_json::to_writer(said, &why);
    }
    Err(Stopped::Alone)
}

fn become_program(wanted: &Wanted, job: &Job) -> Result<(), Stopped> {
    let folder = job.work.as_deref().ok_or(Stopped::Alone)?;
    rustix::process::chdir(folder).map_err(of("its folder"))?;
    // It leads a group that nobody leaves, by which the keeper ends it. Should the keeper be killed, so
    // is the program.
    setsid().map_err(of("processes"))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(of("processes"))?;
    // The user's other processes count as well here.
    let others = user_threads().map_err(of("limits"))?;
    let mut places = own_places(wanted, folder)?;
    places.extend(own_program(job)?);
    let mut command = command(job)?;
    confine::limits(wanted, u64::from(wanted.processes) + others)?;
    confine::privileges()?;
    confine::landlock(wanted, places)?;
    Calls::of(wanted)?.leave()?;
    let why = command.exec();
    Err(Stopped::NotStarted(cannot(&job.program, &command, &why)))
}

fn user_threads() -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let own = getuid().as_raw();
    let processes = std::fs::read_dir("/proc")?.filter_map(Result::ok);
    let own = processes.filter(|one| one.metadata().is_ok_and(|found| found.uid() == own));
    Ok(own
        .map(|one| {
            std::fs::read_dir(one.path().join("task")).map_or(0, |tasks| tasks.count() as u64)
        })
        .sum())
}

/// This program's own file, which a probe runs and nothing else may.
fn own_program(job: &Job) -> Result<Option<Place<OwnedFd>>, Missing> {
    match job.program {
        Program::Probe(_) => Ok(Some(confine::place(
            Path::new("/proc/self/exe"),
            Rights::Run,
        )?)),
        _ => Ok(None),
    }
}

fn put_all(work: &OwnedFd, inputs: Vec<(String, Vec<u8>)>) -> Result<(), Stopped> {
    for (path, bytes) in inputs {
        let put = room::put(work, &path, &bytes);
        put.map_err(|why| {
            Stopped::NotStarted(format!(
                "the file {path:?} cannot be put into its folder: {why}"
            ))
        })?;
    }
    Ok(())
}

fn own_places(wanted: &Wanted, work: &Path) -> Result<Vec<Place<OwnedFd>>, Missing> {
    let mut places = vec![confine::place(work, Rights::Own)?];
    let mut add = |path: &Path, rights| -> Result<(), Missing> {
        if path.exists() {
            places.push(confine::place(path, rights)?);
        }
        Ok(())
    };
    for path in room::shared_paths() {
        add(&path.0, path.1)?;
    }
    for path in &wanted.files.run {
        add(path, Rights::Run)?;
    }
    for path in &wanted.files.read {
        add(path, Rights::Read)?;
    }
    for path in &wanted.files.write {
        add(path, Rights::Own)?;
    }
    for path in room::network_paths(wanted) {
        add(path, Rights::Read)?;
    }
    Ok(places)
}

/// The program with its own environment, and nothing of ours.
fn command(job: &Job) -> Result<Command, Stopped> {
    let home = job
        .work
        .clone()
        .unwrap_or_else(|| PathBuf::from(room::WORK));
    let mut command = match &job.program {
        Program::Probe(name) => {
            let mut probe = again(PROBE);
            probe.arg(name);
            probe
        }
        Program::Nothing => Command::new("true"),
        Program::Named(name) => {
            Command::new(room::program(name, &home).map_err(Stopped::NotStarted)?)
        }
    };
    command.args(&job.args).env_clear();
    command
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LANG", "C.UTF-8");
    command
        .env("HOME", &home)
        .env("TMPDIR", &home)
        .envs(&job.env);
    Ok(command)
}

fn cannot(program: &Program, command: &Command, why: &io::Error) -> String {
    let first = room::interpreter(Path::new(command.get_program()));
    match (program, first.filter(|first| !first.exists())) {
        (Program::Named(name), Some(first)) => {
            let first = first.display();
            format!("{name:?} cannot be started: {first}, which is to run it, is not in the box")
        }
        (Program::Named(name), None) => format!("{name:?} cannot be started: {why}"),
        (other, _) => format!("{other:?} cannot be started: {why}"),
    }
}

fn finish(report: io::Result<Report>) -> Result<(), Stopped> {
    let report = report.map_err(of("processes"))?;
    job::say(io::stdin().as_fd(), &Said::Ended(report), None).map_err(|_| Stopped::Alone)
}
