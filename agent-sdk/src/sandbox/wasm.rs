//! The `wasm` profile: WebAssembly that reaches nothing but what it is handed.
//!
//! A module gets its standard input, two streams to print to, the time, random bytes, and its own
//! memory. It has no files, no variables and no sockets: those functions of WASI preview 1 that would
//! give them say that there is no such descriptor, and the rest do not exist. Nothing is asked of the
//! kernel, so there is no weaker tier.
//!
//! A module that runs is stopped within some [`TICK`]s. A compiler cannot be stopped, so `module`
//! bounds what it is given, and [`WasmSandbox::run_for`] does not wait for it beyond the policy's time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto_spec::Digest;
use rustix::time::{ClockId, clock_gettime};
use wasmtime::{
    Caller, Config, Engine, Extern, InstancePre, Linker, Memory, Module, ResourceLimiter, Store,
    Trap, UpdateDeadline,
};

use super::launch::NotRun;
use super::module;
use super::policy::{Policy, Profile};
use super::running::{Ended, Told};
use crate::incoming::Call;
use crate::tool::{INVALID_ARGUMENTS, ToolError};

/// How often a module that runs is looked at.
const TICK: Duration = Duration::from_millis(5);
/// How long after its deadline a module may take to say what it printed, before nobody waits for it.
const GRACE: Duration = Duration::from_secs(1);
/// Pieces of one read or write; a module that names more goes on from where it was.
const PIECES_MAX: usize = 1_024;
/// Function references of a module.
const TABLE_MAX: usize = 100_000;

/// The `wasm` profile under one policy.
#[derive(Clone)]
pub struct WasmSandbox {
    policy: Arc<Policy>,
    digest: Digest,
    engine: Engine,
    linker: Arc<Linker<State>>,
}

/// A module that was checked and compiled, and runs as often as it is called.
#[derive(Clone)]
pub struct Prepared(InstancePre<State>);

impl WasmSandbox {
    /// # Errors
    ///
    /// The policy is of another profile, or this processor has no compiler.
    pub fn open(policy: Policy) -> Result<Self, NotRun> {
        if policy.wanted().profile != Profile::Wasm {
            return Err(NotRun::Invalid("the policy is of another profile".into()));
        }
        let mut config = Config::new();
        config.epoch_interruption(true);
        let engine = Engine::new(&config).map_err(|why| failed(&why))?;
        let ticking = engine.weak();
        // Ends when the last engine does.
        std::thread::Builder::new()
            .name("fem-epoch".into())
            .spawn(move || {
                while let Some(engine) = ticking.upgrade() {
                    engine.increment_epoch();
                    drop(engine);
                    std::thread::sleep(TICK);
                }
            })?;
        let linker = linker(&engine).map_err(|why| failed(&why))?;
        Ok(Self {
            digest: policy.digest(),
            policy: Arc::new(policy),
            engine,
            linker: Arc::new(linker),
        })
    }

    /// The policy that everything runs under.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Compiles a module. It takes a while, and a thread; nothing stops it.
    ///
    /// # Errors
    ///
    /// It is too long, or no module, or wants what nobody hands it.
    pub fn prepare(&self, module: &[u8]) -> Result<Prepared, NotRun> {
        let cannot = |why: String| NotRun::Invalid(format!("the module cannot be run: {why}"));
        let wrong = |why: wasmtime::Error| cannot(format!("{why:#}"));
        module::measure(module).map_err(cannot)?;
        // All of it, before the first function is compiled.
        Module::validate(&self.engine, module).map_err(wrong)?;
        let module = Module::from_binary(&self.engine, module).map_err(wrong)?;
        if module
            .get_export("_start")
            .is_none_or(|start| start.func().is_none())
        {
            return Err(NotRun::Invalid(
                "the module has no function `_start`".into(),
            ));
        }
        Ok(Prepared(
            self.linker.instantiate_pre(&module).map_err(wrong)?,
        ))
    }

    /// Runs a module to its end, on this thread.
    #[must_use]
    pub fn run(&self, prepared: &Prepared, stdin: &[u8]) -> Told {
        self.run_under(
            prepared,
            stdin,
            &Watch::begin(&self.policy, Stop::default()),
        )
    }

    fn run_under(&self, prepared: &Prepared, stdin: &[u8], watch: &Watch) -> Told {
        let wanted = self.policy.wanted();
        let state = State {
            stdin: stdin.to_vec(),
            left: wanted.output_bytes,
            memory_bytes_max: usize::try_from(wanted.memory_bytes).unwrap_or(usize::MAX),
            over: watch.over(),
            ..State::default()
        };
        if let Some(ended) = state.over {
            return self.told(&state, ended, watch.cpu(), "");
        }
        let mut store = Store::new(&self.engine, state);
        store.limiter(|state| state);
        store.set_epoch_deadline(1);
        let looking = watch.clone();
        store.epoch_deadline_callback(move |mut here| {
            here.data_mut().over = looking.over();
            Ok(match here.data().over {
                Some(_) => UpdateDeadline::Interrupt,
                None => UpdateDeadline::Continue(1),
            })
        });
        let done = prepared.0.instantiate(&mut store).and_then(|instance| {
            let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
            start.call(&mut store, ())
        });
        let state = store.into_data();
        let (ended, why) = state.ended(done);
        self.told(&state, ended, watch.cpu(), &why)
    }

    fn told(&self, state: &State, ended: Ended, cpu: Duration, why: &str) -> Told {
        Told {
            ended,
            stdout: String::from_utf8_lossy(&state.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&state.stderr).into_owned() + why,
            files: Vec::new(),
            files_cut: None,
            cpu_ms: u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX),
            memory_bytes_max: state.memory_bytes as u64,
            policy: self.digest,
        }
    }
}

impl WasmSandbox {
    /// Compiles a module and runs it for a caller, on a thread that may wait. Both together take no
    /// longer than the policy says: a module that still compiles then is answered as one that was
    /// killed at its deadline, and is not run. Dropping the future stops a module that runs, within
    /// milliseconds. How it ended and under which policy is logged with the call.
    ///
    /// `place` is dropped when the thread is done, which is later where the compiler was at work:
    /// whoever bounds how many run at once hands in what stands for one.
    ///
    /// # Errors
    ///
    /// [`INVALID_ARGUMENTS`] where it is no module that can be run.
    pub async fn run_for(
        &self,
        call: &Call,
        module: Vec<u8>,
        stdin: Vec<u8>,
        place: impl Send + 'static,
    ) -> Result<Told, ToolError> {
        let told = self.run_in_time(module, stdin, place).await?;
        let told = told.map_err(|why| ToolError::new(INVALID_ARGUMENTS, why.to_string()))?;
        tracing::info!(
            call = %call.id(), caller = %call.caller(), tool = %call.tool(),
            ended = %told.ended, policy = %told.policy, "ran in the sandbox"
        );
        Ok(told)
    }

    async fn run_in_time(
        &self,
        module: Vec<u8>,
        stdin: Vec<u8>,
        place: impl Send + 'static,
    ) -> Result<Result<Told, NotRun>, tokio::task::JoinError> {
        let stop = Stop::default();
        let _given_up = StopOnDrop(stop.clone());
        let sandbox = self.clone();
        let running = tokio::task::spawn_blocking(move || {
            let _place = place;
            let watch = Watch::begin(&sandbox.policy, stop);
            let prepared = sandbox.prepare(&module)?;
            Ok(sandbox.run_under(&prepared, &stdin, &watch))
        });
        let limit = self.policy.wall() + GRACE;
        match tokio::time::timeout(limit, running).await {
            Ok(told) => told,
            Err(_) => Ok(Ok(self.told(&State::default(), Ended::Deadline, limit, ""))),
        }
    }
}

/// Set by whoever wants no more of a module.
#[derive(Clone, Default)]
struct Stop(Arc<AtomicBool>);

struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Why a module that runs has to end, if it has to. It counts the time of the thread that began it.
#[derive(Clone)]
struct Watch {
    begun: Instant,
    cpu_begun: Duration,
    wall: Duration,
    cpu: Duration,
    stop: Stop,
}

impl Watch {
    fn begin(policy: &Policy, stop: Stop) -> Self {
        Self {
            begun: Instant::now(),
            cpu_begun: cpu_of_thread(),
            wall: policy.wall(),
            cpu: Duration::from_millis(policy.wanted().cpu_ms),
            stop,
        }
    }

    fn cpu(&self) -> Duration {
        cpu_of_thread().saturating_sub(self.cpu_begun)
    }

    fn over(&self) -> Option<Ended> {
        if self.stop.0.load(Ordering::Relaxed) {
            Some(Ended::Stopped)
        } else if self.cpu() > self.cpu {
            Some(Ended::Cpu)
        } else if self.begun.elapsed() > self.wall {
            Some(Ended::Deadline)
        } else {
            None
        }
    }
}

fn cpu_of_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

impl std::fmt::Debug for WasmSandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WasmSandbox({})", self.digest)
    }
}

fn failed(why: &wasmtime::Error) -> NotRun {
    NotRun::Fault(io::Error::other(format!("{why:#}")))
}

/// What a module is handed, and what it has used.
#[derive(Default)]
struct State {
    stdin: Vec<u8>,
    read: usize,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    left: u64,
    cut: bool,
    exit: Option<i32>,
    memory_bytes: usize,
    memory_bytes_max: usize,
    wanted_more: bool,
    over: Option<Ended>,
}

impl State {
    fn ended(&self, done: wasmtime::Result<()>) -> (Ended, String) {
        match (done, self.exit) {
            (_, Some(code)) => (Ended::Exited(code), String::new()),
            (Ok(()), _) => (Ended::Exited(0), String::new()),
            (Err(_), _) if self.cut => (Ended::OutputCut, String::new()),
            (Err(why), _) => match why.downcast_ref::<Trap>() {
                Some(Trap::Interrupt) => (self.over.unwrap_or(Ended::Lost), String::new()),
                _ if self.wanted_more => (Ended::Memory, String::new()),
                Some(trap) => (Ended::Trapped, trap.to_string()),
                None => (Ended::Trapped, why.to_string()),
            },
        }
    }

    fn print(&mut self, is_error: bool, bytes: &[u8]) -> wasmtime::Result<()> {
        let kept = usize::try_from(self.left)
            .unwrap_or(bytes.len())
            .min(bytes.len());
        self.left -= kept as u64;
        let stream = if is_error {
            &mut self.stderr
        } else {
            &mut self.stdout
        };
        stream.extend_from_slice(&bytes[..kept]);
        if kept < bytes.len() {
            self.cut = true;
            return Err(wasmtime::Error::msg("output cut"));
        }
        Ok(())
    }
}

impl ResourceLimiter for State {
    fn memory_growing(
        &mut self,
        _: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let fits = desired <= self.memory_bytes_max;
        self.wanted_more |= !fits;
        self.memory_bytes = if fits {
            self.memory_bytes.max(desired)
        } else {
            self.memory_bytes
        };
        Ok(fits)
    }

    fn table_growing(
        &mut self,
        _: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_MAX)
    }

    fn instances(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        8
    }

    fn memories(&self) -> usize {
        1
    }
}

/// WASI's words for: done, no such descriptor, that address is not yours.
const DONE: i32 = 0;
const BADF: i32 = 8;
const FAULT: i32 = 21;

type Here<'a> = Caller<'a, State>;

fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    const WASI: &str = "wasi_snapshot_preview1";
    let mut linker = Linker::new(engine);
    linker.func_wrap(
        WASI,
        "fd_write",
        |mut here: Here<'_>, fd: i32, at: i32, many: i32, told: i32| -> wasmtime::Result<i32> {
            let (true, Some(memory)) = (matches!(fd, 1 | 2), memory(&mut here)) else {
                return Ok(BADF);
            };
            let mut written = 0;
            for (from, length) in slices(&memory, &here, at, many) {
                let (data, state) = memory.data_and_store_mut(&mut here);
                let Some(bytes) = data.get(from..from.saturating_add(length)) else {
                    return Ok(FAULT);
                };
                state.print(fd == 2, bytes)?;
                written += length;
            }
            Ok(put(
                &memory,
                &mut here,
                told,
                &(written as u32).to_le_bytes(),
            ))
        },
    )?;
    linker.func_wrap(
        WASI,
        "fd_read",
        |mut here: Here<'_>, fd: i32, at: i32, many: i32, told: i32| {
            let (0, Some(memory)) = (fd, memory(&mut here)) else {
                return BADF;
            };
            let mut got = 0;
            for (to, length) in slices(&memory, &here, at, many) {
                let (data, state) = memory.data_and_store_mut(&mut here);
                let rest = &state.stdin[state.read..];
                let most = rest.len().min(length);
                let Some(room) = data.get_mut(to..to.saturating_add(most)) else {
                    return FAULT;
                };
                room.copy_from_slice(&rest[..most]);
                state.read += most;
                got += most;
            }
            put(&memory, &mut here, told, &(got as u32).to_le_bytes())
        },
    )?;
    linker.func_wrap(
        WASI,
        "proc_exit",
        |mut here: Here<'_>, code: i32| -> wasmtime::Result<()> {
            here.data_mut().exit = Some(code);
            Err(wasmtime::Error::msg("it ended"))
        },
    )?;
    linker.func_wrap(
        WASI,
        "random_get",
        |mut here: Here<'_>, at: i32, many: i32| {
            let Some(memory) = memory(&mut here) else {
                return FAULT;
            };
            let (from, many) = (at as u32 as usize, many as u32 as usize);
            let room = memory
                .data_mut(&mut here)
                .get_mut(from..from.saturating_add(many));
            room.map_or(FAULT, |room| getrandom::fill(room).map_or(FAULT, |()| DONE))
        },
    )?;
    linker.func_wrap(
        WASI,
        "clock_time_get",
        |mut here: Here<'_>, _: i32, _: i64, told: i32| {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let now = since.map_or(0, |since| since.as_nanos() as u64);
            memory(&mut here).map_or(FAULT, |memory| {
                put(&memory, &mut here, told, &now.to_le_bytes())
            })
        },
    )?;
    // No arguments and no variables: none of either, of no length.
    for name in ["args_sizes_get", "environ_sizes_get"] {
        linker.func_wrap(WASI, name, |mut here: Here<'_>, many: i32, length: i32| {
            let Some(memory) = memory(&mut here) else {
                return FAULT;
            };
            put(&memory, &mut here, many, &[0; 4]).max(put(&memory, &mut here, length, &[0; 4]))
        })?;
    }
    for name in ["args_get", "environ_get"] {
        linker.func_wrap(WASI, name, |_: i32, _: i32| DONE)?;
    }
    linker.func_wrap(WASI, "sched_yield", || DONE)?;
    // Nothing is open but the three streams, and those can neither be moved nor asked about.
    linker.func_wrap(WASI, "fd_close", |_: i32| BADF)?;
    linker.func_wrap(WASI, "fd_seek", |_: i32, _: i64, _: i32, _: i32| BADF)?;
    linker.func_wrap(WASI, "fd_fdstat_get", |_: i32, _: i32| BADF)?;
    linker.func_wrap(WASI, "fd_prestat_get", |_: i32, _: i32| BADF)?;
    linker.func_wrap(WASI, "fd_prestat_dir_name", |_: i32, _: i32, _: i32| BADF)?;
    Ok(linker)
}

fn memory(here: &mut Here<'_>) -> Option<Memory> {
    here.get_export("memory").and_then(Extern::into_memory)
}

/// The pieces that a list of slices in the module's memory names; none that lie outside of it.
fn slices(memory: &Memory, here: &Here<'_>, at: i32, many: i32) -> Vec<(usize, usize)> {
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes) as usize;
    let (at, many) = (at as u32 as usize, many as u32 as usize);
    let listed = memory
        .data(here)
        .get(at..at.saturating_add(many.saturating_mul(8)));
    let pieces = listed.unwrap_or_default().chunks_exact(8).take(PIECES_MAX);
    pieces
        .map(|one| (number(&one[..4]), number(&one[4..])))
        .collect()
}

fn put(memory: &Memory, here: &mut Here<'_>, at: i32, bytes: &[u8]) -> i32 {
    memory
        .write(here, at as u32 as usize, bytes)
        .map_or(FAULT, |()| DONE)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::policy::Wanted;
    use super::*;

    /// `(module (import …)* (memory …) (data (i32.const 0) …) (func (export "_start") …))`, by hand: each
    /// import takes and gives `i32`s, so many.
    fn module(imports: &[(&str, usize)], pages: u8, data: &[u8], body: &[u8]) -> Vec<u8> {
        let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        let section = |id: u8, many: usize, body: Vec<u8>| {
            let body = [vec![many as u8], body].concat();
            // Lengths of up to 14 bits, in two bytes.
            let length = [(body.len() & 0x7f) as u8 | 0x80, (body.len() >> 7) as u8];
            [&[id], &length[..], &body].concat()
        };
        let types = imports
            .iter()
            .map(|(_, many)| [&[0x60, *many as u8], &vec![0x7f; *many][..], &[1, 0x7f]].concat());
        let types: Vec<u8> = types.chain([vec![0x60, 0, 0]]).flatten().collect();
        let named = imports.iter().enumerate().flat_map(|(n, (name, _))| {
            [text("wasi_snapshot_preview1"), text(name), vec![0, n as u8]].concat()
        });
        let start = imports.len() as u8;
        let exports = [text("_start"), vec![0, start], text("memory"), vec![2, 0]].concat();
        let code = [vec![0], body.to_vec(), vec![0x0b]].concat();
        let code = [
            vec![(code.len() & 0x7f) as u8 | 0x80, (code.len() >> 7) as u8],
            code,
        ]
        .concat();
        let data = [vec![0, 0x41, 0, 0x0b, data.len() as u8], data.to_vec()].concat();
        [
            b"\0asm\x01\0\0\0".to_vec(),
            section(1, imports.len() + 1, types),
            section(2, imports.len(), named.collect()),
            section(3, 1, vec![start]),
            section(5, 1, vec![0, pages]),
            section(7, 2, exports),
            section(10, 1, code),
            section(11, 1, data),
        ]
        .concat()
    }

    fn sandbox_with(wall_ms: u64, cpu_ms: u64) -> WasmSandbox {
        let wanted = Wanted {
            profile: Profile::Wasm,
            wall_ms,
            cpu_ms,
            memory_bytes: 32 << 20,
            output_bytes: 1_000,
            ..Wanted::default()
        };
        WasmSandbox::open(wanted.check().unwrap()).unwrap()
    }

    fn sandbox() -> WasmSandbox {
        sandbox_with(200, 30_000)
    }

    /// Much longer than a test may take.
    const LONG_MS: u64 = 3_600_000;

    fn endless() -> Vec<u8> {
        module(&[], 1, b"", &[0x03, 0x40, 0x0c, 0, 0x0b])
    }

    /// Says on which thread it was dropped.
    struct Place(std::sync::mpsc::Sender<std::thread::ThreadId>);

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = self.0.send(std::thread::current().id());
        }
    }

    fn ran(module: &[u8]) -> Told {
        let sandbox = sandbox();
        sandbox.run(&sandbox.prepare(module).unwrap(), b"in")
    }

    /// Prints the six bytes at 16, over the slice at 0.
    const PRINT: &[u8] = &[0x41, 1, 0x41, 0, 0x41, 1, 0x41, 8, 0x10, 0, 0x1a];
    const HELLO: &[u8] = b"\x10\0\0\0\x06\0\0\0\0\0\0\0\0\0\0\0hello\n";
    const WRITE: &[(&str, usize)] = &[("fd_write", 4)];

    #[test]
    fn a_module_prints_and_ends() {
        let told = ran(&module(WRITE, 1, HELLO, PRINT));
        assert_eq!(
            (told.ended, &*told.stdout),
            (Ended::Exited(0), "hello\n"),
            "{told:?}"
        );
    }

    #[test]
    fn a_module_without_end_is_killed_at_its_deadline() {
        let begun = Instant::now();
        let told = ran(&endless());
        assert_eq!(told.ended, Ended::Deadline);
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_module_is_killed_when_it_has_used_its_processor_time() {
        let sandbox = sandbox_with(LONG_MS, 20);
        let told = sandbox.run(&sandbox.prepare(&endless()).unwrap(), b"");
        assert_eq!(told.ended, Ended::Cpu);
        assert!(told.cpu_ms >= 20);
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_stops_its_module_and_holds_its_place_until_then() {
        let sandbox = sandbox_with(LONG_MS, LONG_MS);
        let (place, dropped) = std::sync::mpsc::channel();
        let mut running = Box::pin(sandbox.run_in_time(endless(), Vec::new(), Place(place)));
        assert!((&mut running).now_or_never().is_none());
        assert!(dropped.try_recv().is_err(), "it runs");
        drop(running);
        let by = dropped.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_ne!(by, std::thread::current().id());
    }

    #[tokio::test]
    async fn a_module_that_compiles_beyond_its_time_is_answered_and_never_run() {
        let sandbox = sandbox_with(10, LONG_MS);
        let (place, dropped) = std::sync::mpsc::channel();
        let slow = module::tests::slowest(8);
        let told = sandbox.run_in_time(slow, Vec::new(), Place(place)).await;
        let told = told.unwrap().unwrap();
        assert_eq!((told.ended, &*told.stdout), (Ended::Deadline, ""));
        assert!(dropped.recv_timeout(Duration::from_secs(60)).is_ok());
    }

    #[test]
    fn a_module_that_prints_without_end_is_cut() {
        let body = [&[0x03, 0x40], PRINT, &[0x0c, 0, 0x0b]].concat();
        let told = ran(&module(WRITE, 1, HELLO, &body));
        assert_eq!((told.ended, told.stdout.len()), (Ended::OutputCut, 1_000));
    }

    #[test]
    fn a_module_that_fills_memory_is_killed_for_it() {
        // Grows by a page until it gets none, and then by all means.
        let body = [
            0x03, 0x40, 0x41, 1, 0x40, 0, 0x41, 0, 0x4e, 0x0d, 0, 0x0b, 0x00,
        ];
        let told = ran(&module(&[], 1, b"", &body));
        assert_eq!(told.ended, Ended::Memory, "{told:?}");
        assert!(told.memory_bytes_max <= 32 << 20);
    }

    #[test]
    fn a_module_that_recurses_without_end_is_killed_alone() {
        let told = ran(&module(&[], 1, b"", &[0x10, 0]));
        assert_eq!(told.ended, Ended::Trapped, "{told:?}");
    }

    #[test]
    fn a_module_that_lies_about_addresses_reads_nothing_of_ours() {
        // A slice far beyond its memory, and a list of slices that is itself.
        for data in [
            &b"\xff\xff\xff\xff\xff\xff\xff\x7f"[..],
            &b"\0\0\0\0\xff\xff\xff\xff"[..],
        ] {
            let told = ran(&module(WRITE, 1, data, PRINT));
            assert_eq!(
                (told.ended, &*told.stdout),
                (Ended::Exited(0), ""),
                "{told:?}"
            );
        }
    }

    #[test]
    fn a_module_that_wants_files_or_sockets_is_refused() {
        for (name, many) in [
            ("path_open", 9),
            ("sock_recv", 6),
            ("sock_accept", 3),
            ("fd_readdir", 5),
        ] {
            assert!(
                sandbox()
                    .prepare(&module(&[(name, many)], 1, b"", &[]))
                    .is_err(),
                "{name}"
            );
        }
        assert!(sandbox().prepare(b"\0asm").is_err());
    }

    #[test]
    fn every_call_begins_with_new_memory() {
        // Prints, and writes over what it printed.
        let body = [PRINT, &[0x41, 16, 0x41, 0, 0x36, 2, 0]].concat();
        let sandbox = sandbox();
        let prepared = sandbox.prepare(&module(WRITE, 1, HELLO, &body)).unwrap();
        for _ in 0..2 {
            assert_eq!(sandbox.run(&prepared, b"").stdout, "hello\n");
        }
    }
}
