//! A thousand programs in the box leave nothing behind: no process, mount, descriptor or file.
//!
//! It has a `main` of its own, for the box begins there.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, and says where"
)]

use std::path::Path;

use agent_sdk::sandbox::{self, Command, Ended, NotRun, Sandbox, Wanted};

const CALLS: usize = 1_000;
const AT_ONCE: usize = 4;

fn main() {
    sandbox::init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(Box::pin(a_thousand_calls_leave_nothing()));
}

async fn a_thousand_calls_leave_nothing() {
    let sandbox = match Sandbox::open(Wanted::default().check().unwrap()).await {
        Err(why @ NotRun::Unenforced { .. }) => return println!("not run: {why}"),
        other => other.unwrap(),
    };
    let before = Left::now();
    let each = (0..AT_ONCE).map(|_| {
        let sandbox = sandbox.clone();
        tokio::spawn(async move {
            for n in 0..CALLS / AT_ONCE {
                // Every tenth is given up half-way.
                let command = Command::new("sh").args(["-c", "echo x > x; sleep 60 & exit 0"]);
                if n % 10 == 0 {
                    drop(sandbox.start(command).await.unwrap());
                } else {
                    assert_eq!(sandbox.run(command).await.unwrap().ended, Ended::Exited(0));
                }
            }
        })
    });
    for one in each.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    // What was given up is on its way; the kernel needs no more than a moment.
    let gone = (0..600).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        Left::now() == before
    });
    assert!(gone, "{before:?}, and afterwards {:?}", Left::now());
    println!("{CALLS} calls left nothing");
}

/// What a call could leave.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    processes: usize,
    mounts: usize,
    descriptors: usize,
    files: usize,
}

impl Left {
    fn now() -> Self {
        let count = |path: &Path, keep: &dyn Fn(&Path) -> bool| {
            let entries = std::fs::read_dir(path).unwrap().filter_map(Result::ok);
            entries.filter(|one| keep(&one.path())).count()
        };
        let own = std::process::id().to_string();
        let helper = |path: &Path| {
            // One that is a zombie, or the sleep of a box, is a child of ours or of a helper's.
            let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
            let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
            let parent = stat
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.split(' ').nth(1));
            line.starts_with(b"fem-sandbox:") || parent == Some(&own)
        };
        let ours = |path: &Path| path.to_string_lossy().contains("/fem-work-");
        Self {
            processes: count(Path::new("/proc"), &helper),
            mounts: std::fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .lines()
                .count(),
            descriptors: count(Path::new("/proc/self/fd"), &|_| true),
            files: count(&std::env::temp_dir(), &ours),
        }
    }
}
