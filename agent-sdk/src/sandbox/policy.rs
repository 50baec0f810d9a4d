//! What a program in the box may use, as data: written by somebody, checked once, shown in plain
//! words, and known by its digest.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use proto_spec::Digest;
use serde::{Deserialize, Serialize};

/// Which box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// A native program, behind namespaces, Landlock, seccomp and limits.
    Process,
    /// A WebAssembly module, in this process, with nothing but what it is handed.
    Wasm,
}

impl Profile {
    /// As a policy names it, and a grant that demands all of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Wasm => "wasm",
        }
    }
}

/// How much of the `process` profile a kernel has to enforce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// All of it. What the kernel cannot enforce is a refusal.
    Full,
    /// Landlock, seccomp and limits only, for containers that allow no user namespaces. A program may
    /// then see that a file exists, change modes and times of files that its user owns, fill the disk
    /// up to its limits many times over, run what it wrote by handing it to the dynamic linker, and
    /// keep more than its memory in sockets.
    WithoutNamespaces,
}

/// What a program may reach over the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Nothing: it cannot even make a socket.
    Closed,
    /// Whatever this machine reaches, this machine itself included, by TCP and UDP. It listens to nobody.
    Open,
}

/// What a program may see beside its own empty folder `/work`, each at its own path. `/usr` and the
/// links to it are always there; `/etc`, `/home` and the rest do not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Files {
    /// May be read.
    pub read: Vec<PathBuf>,
    /// May be read, and run.
    pub run: Vec<PathBuf>,
    /// May be read and changed: what a program does there stays, and only the disk bounds how much.
    pub write: Vec<PathBuf>,
}

/// A policy as somebody wrote it. What is left out is as in [`Wanted::default`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wanted {
    /// Which box.
    pub profile: Profile,
    /// What the kernel has to enforce.
    pub tier: Tier,
    /// What may be seen.
    pub files: Files,
    /// What may be reached.
    pub network: Network,
    /// Processor time of all processes together.
    pub cpu_ms: u64,
    /// Memory of all processes together, and address space of each. It is looked at every 20 ms.
    pub memory_bytes: u64,
    /// Processes and threads at once.
    pub processes: u32,
    /// What each process may have open at once.
    pub descriptors: u32,
    /// From start to end.
    pub wall_ms: u64,
    /// Standard output and standard error together.
    pub output_bytes: u64,
    /// What its folder may hold; it lies in memory.
    pub disk_bytes: u64,
    /// How many files and folders its folder may hold.
    pub disk_files: u64,
    /// Whether a program may make code while it runs, as JavaScript engines do.
    pub code_at_run_time: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            profile: Profile::Process,
            tier: Tier::Full,
            files: Files::default(),
            network: Network::Closed,
            cpu_ms: 30_000,
            memory_bytes: 256 << 20,
            processes: 64,
            descriptors: 128,
            wall_ms: 60_000,
            output_bytes: 1 << 20,
            disk_bytes: 64 << 20,
            disk_files: 4_096,
            code_at_run_time: false,
        }
    }
}

/// A name, what was written, the least and the most that can be meant.
type Bound = (&'static str, u64, u64, u64);

/// Paths that a policy may name, of each kind.
const PATHS_MAX: usize = 32;

impl Wanted {
    /// Reads a policy in TOML.
    ///
    /// # Errors
    ///
    /// What is wrong with it, each problem a line.
    pub fn read(text: &str) -> Result<Self, Vec<String>> {
        toml::from_str(text).map_err(|why| vec![why.to_string().trim_end().to_owned()])
    }

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// All problems at once.
    pub fn check(self) -> Result<Policy, Vec<String>> {
        let mut problems: Vec<String> = self.bounds().iter().filter_map(out_of_bounds).collect();
        for (kind, paths) in [
            ("files.read", &self.files.read),
            ("files.run", &self.files.run),
            ("files.write", &self.files.write),
        ] {
            if paths.len() > PATHS_MAX {
                problems.push(format!(
                    "{kind}: {} paths, at most {PATHS_MAX}",
                    paths.len()
                ));
            }
            problems.extend(paths.iter().filter_map(|path| no_place(kind, path)));
        }
        if self.profile == Profile::Wasm && self.tier != Tier::Full {
            problems
                .push("tier: the wasm profile asks nothing of the kernel and has no other".into());
        }
        if self.profile == Profile::Wasm && self.files != Files::default() {
            problems.push("files: the wasm profile sees no files of this machine".into());
        }
        if self.profile == Profile::Wasm && self.network != Network::Closed {
            problems.push("network: the wasm profile has nothing to make a socket with".into());
        }
        match problems.is_empty() {
            true => Ok(Policy(self)),
            false => Err(problems),
        }
    }

    const fn bounds(&self) -> [Bound; 8] {
        const GIB: u64 = 1 << 30;
        [
            ("cpu_ms", self.cpu_ms, 10, 86_400_000),
            ("memory_bytes", self.memory_bytes, 32 << 20, 64 * GIB),
            ("processes", self.processes as u64, 1, 1_024),
            ("descriptors", self.descriptors as u64, 16, 65_536),
            ("wall_ms", self.wall_ms, 10, 86_400_000),
            ("output_bytes", self.output_bytes, 0, 64 << 20),
            ("disk_bytes", self.disk_bytes, 1 << 16, 16 * GIB),
            ("disk_files", self.disk_files, 8, 1 << 20),
        ]
    }
}

fn out_of_bounds((name, value, least, most): &Bound) -> Option<String> {
    (!(least..=most).contains(&value))
        .then(|| format!("{name}: {value} is not in {least}..={most}"))
}

/// Places that the box makes itself, or that would open it.
const OWN_PLACES: [&str; 6] = ["proc", "dev", "sys", "work", "tmp", "run"];

fn no_place(kind: &str, path: &Path) -> Option<String> {
    let mut parts = path.components();
    let absolute = parts.next() == Some(Component::RootDir);
    let names: Vec<_> = parts.collect();
    let plain = names
        .iter()
        .all(|part| matches!(part, Component::Normal(_)));
    let shown = path.display();
    if !absolute || !plain || path.to_str().is_none() {
        return Some(format!(
            "{kind}: {shown:?} is not an absolute path without `..`"
        ));
    }
    let Some(Component::Normal(first)) = names.first() else {
        return Some(format!("{kind}: the whole machine is too much"));
    };
    let own = OWN_PLACES.iter().find(|own| first.to_str() == Some(own))?;
    Some(format!(
        "{kind}: {shown:?} cannot be opened: the box has a /{own} of its own. Have it elsewhere, below /srv or a home"
    ))
}

/// A policy whose every value was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy(Wanted);

impl Policy {
    /// Its values.
    #[must_use]
    pub const fn wanted(&self) -> &Wanted {
        &self.0
    }

    /// What stands in every record of a call that ran under it: the SHA-256 of its JSON.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(&self.0).unwrap_or_default())
    }

    /// What a tool that runs under it may say of itself ([`crate::Tool::sandboxed`]): the profile; of the
    /// weaker tier, and of an open network, a word of its own, which is not what a grant demands that names
    /// `process`.
    #[must_use]
    pub const fn sandbox(&self) -> &'static str {
        match (self.0.profile, self.0.tier, self.0.network) {
            (Profile::Process, Tier::WithoutNamespaces, _) => "process-without-namespaces",
            (Profile::Process, Tier::Full, Network::Open) => "process-with-network",
            (profile, ..) => profile.name(),
        }
    }

    pub(super) const fn wall(&self) -> Duration {
        Duration::from_millis(self.0.wall_ms)
    }

    /// In plain words, a line for each thing.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        match (self.0.profile, self.0.tier) {
            (Profile::Wasm, _) => self.words_of_wasm(),
            (Profile::Process, tier) => self.words_of_process(tier),
        }
    }

    fn words_of_wasm(&self) -> Vec<String> {
        let wanted = &self.0;
        vec![
            "runs WebAssembly that reaches nothing but what it is handed".into(),
            "no network: there is nothing to make a socket with".into(),
            "no files: it reads its standard input and prints".into(),
            format!(
                "{} of memory, {} of processor and {} in all, with what it takes to compile it, {} of output",
                bytes(wanted.memory_bytes),
                time(wanted.cpu_ms),
                time(wanted.wall_ms),
                bytes(wanted.output_bytes),
            ),
        ]
    }

    fn words_of_process(&self, tier: Tier) -> Vec<String> {
        let wanted = &self.0;
        let (within, folder, processes) = match tier {
            Tier::Full => (
                "runs in namespaces of its own, under Landlock and seccomp",
                format!(
                    "files: an empty folder /work for {} in {} files, gone afterwards",
                    bytes(wanted.disk_bytes),
                    wanted.disk_files
                ),
                "",
            ),
            Tier::WithoutNamespaces => (
                "WEAKER: runs under Landlock and seccomp, without namespaces; no sandbox that a grant can demand",
                format!(
                    "files: an empty folder on disk, gone afterwards; each file at most {}, and nothing bounds how many; it learns which other files exist",
                    bytes(wanted.disk_bytes)
                ),
                ", with all others of its user",
            ),
        };
        let mut lines = vec![
            within.into(),
            match wanted.network {
                Network::Closed => "no network: it cannot make a socket".into(),
                Network::Open => {
                    "NETWORK: reaches whatever this machine reaches, itself included".into()
                }
            },
            folder,
            format!("reads and runs /usr{}", listed(&wanted.files.run)),
        ];
        if !wanted.files.read.is_empty() {
            lines.push(format!("reads{}", listed(&wanted.files.read)));
        }
        if !wanted.files.write.is_empty() {
            lines.push(format!("CHANGES{}", listed(&wanted.files.write)));
        }
        lines.push(format!(
            "{} processes and threads{processes}",
            wanted.processes
        ));
        lines.push(format!(
            "{} of memory and {} of processor of all together, counted every 20 ms",
            bytes(wanted.memory_bytes),
            time(wanted.cpu_ms),
        ));
        lines.push(format!(
            "{} from start to end, {} of output",
            time(wanted.wall_ms),
            bytes(wanted.output_bytes),
        ));
        if wanted.code_at_run_time {
            lines.push("may make code while it runs".into());
        }
        lines
    }
}

fn listed(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| format!(" {:?}", path.display()))
        .collect()
}

/// In the largest unit that leaves nothing over.
fn bytes(bytes: u64) -> String {
    match bytes {
        0 => "0 bytes".into(),
        _ if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} bytes"),
    }
}

fn time(ms: u64) -> String {
    match ms.is_multiple_of(1_000) {
        true => format!("{} s", ms / 1_000),
        false => format!("{ms} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_of_a_policy_is_the_default() {
        assert_eq!(Wanted::read("").unwrap(), Wanted::default());
        assert!(Wanted::default().check().is_ok());
    }

    #[test]
    fn a_policy_is_refused_with_every_problem_at_once() {
        let text = r#"
            memory_bytes = 1
            processes = 0
            wall_ms = 99999999999
            [files]
            read = ["relative", "/srv/../etc", "/", "/proc", "/work/x"]
        "#;
        let problems = Wanted::read(text).unwrap().check().unwrap_err();
        assert_eq!(problems.len(), 8, "{problems:#?}");
    }

    #[test]
    fn a_policy_that_asks_for_what_does_not_exist_is_refused() {
        for text in [
            "netwerk = \"closed\"",
            "network = \"half\"",
            "profile = \"vm\"",
            "tier = \"weak\"",
            "cpu_ms = -1",
        ] {
            assert!(Wanted::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_policys_digest_is_of_all_that_it_says() {
        let policy = |text: &str| Wanted::read(text).unwrap().check().unwrap();
        let plain = policy("");
        assert_eq!(plain.digest(), policy("processes = 64").digest());
        assert_ne!(plain.digest(), policy("processes = 63").digest());
        assert_ne!(
            plain.digest(),
            policy("tier = \"without-namespaces\"").digest()
        );
    }

    fn policy(text: &str) -> Policy {
        Wanted::read(text).and_then(Wanted::check).unwrap()
    }

    #[test]
    fn a_policy_in_plain_words_names_the_weaker_tier() {
        let words = policy("tier = \"without-namespaces\"").words();
        assert!(words[0].contains("WEAKER"));
        let all = words.join("\n");
        assert!(
            all.contains("on disk") && !all.contains("4096 files"),
            "{all}"
        );
    }

    #[test]
    fn a_policy_in_plain_words_promises_wasm_neither_files_nor_processes() {
        let words = policy("profile = \"wasm\"").words().join("\n");
        assert!(
            !words.contains("/work") && !words.contains("processes"),
            "{words}"
        );
    }

    #[test]
    fn plain_words_round_nothing_down() {
        let words = policy("wall_ms = 1550\noutput_bytes = 1000\nmemory_bytes = 33554433").words();
        let words = words.join("\n");
        for said in ["1550 ms", "1000 bytes", "33554433 bytes"] {
            assert!(words.contains(said), "{said}: {words}");
        }
    }

    #[test]
    fn the_weaker_tier_is_no_sandbox_that_a_grant_can_demand() {
        assert_eq!(policy("").sandbox(), "process");
        assert_eq!(policy("profile = \"wasm\"").sandbox(), "wasm");
        let weak = policy("tier = \"without-namespaces\"");
        assert!(!["process", "wasm"].contains(&weak.sandbox()));
    }
}
