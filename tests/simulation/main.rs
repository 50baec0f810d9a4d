//! Federations of three to ten brokers on one thread, in virtual time: the parts that `fem-broker` is made
//! of, with real keys, tokens, journals and replay windows, and a network that is late, partial and cut.
//!
//! `FEM_SEED` and `FEM_SEEDS` say with which seed to begin and how many to run (200 unless set). One seed
//! is one run, always. A failure prints its seed and the end of what happened.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that is surprised fails"
)]

mod adversary;
mod agents;
mod checks;
mod days;
mod dialling;
mod dice;
mod house;
mod links;
mod network;
mod oracle;
mod people;
mod world;

use oracle::Seen;

/// Does something in a runtime in which nothing runs: brokers ask it for timers, which never go off.
fn timeless<T>(does: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    does()
}

fn run(seed: u64) -> Result<world::World, String> {
    timeless(|| days::run(seed))
}

/// What many runs together have to have shown.
const SHOWN: [&str; 12] = [
    "answered in the end",
    "refused in the end",
    "at a peer: REPLAYED",
    "at a peer: REVOCATIONS_STALE",
    "at a peer: NOT_AUTHENTIC",
    "a dead key's call within the bound",
    "broker keys rotated",
    "calls held back",
    "forged answers",
    "frames by an adversary",
    "grants of peers revoked",
    "refused: OUTCOME_UNKNOWN",
];

fn number(name: &str, usual: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(usual, |text| text.parse().unwrap())
}

#[test]
fn every_invariant_of_federation_holds_in_every_run() {
    let (first, many) = (number("FEM_SEED", 1), number("FEM_SEEDS", 200));
    println!("FEM_SEED={first} FEM_SEEDS={many}");
    let next = std::sync::atomic::AtomicU64::new(first);
    let all = std::sync::Mutex::new((Seen::default(), Vec::new()));
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    // Each run is on one thread; several runs may be on several.
    std::thread::scope(|scope| {
        for _ in 0..cores.min(4) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= first + many {
                        return;
                    }
                    let ended = run(seed);
                    let mut all = all.lock().unwrap();
                    match ended {
                        Ok(world) => all.0.add(&world.oracle.seen),
                        Err(why) => {
                            println!("{why}\n");
                            all.1.push(seed);
                        }
                    }
                }
            });
        }
    });
    let (seen, failed) = all.into_inner().unwrap();
    println!("{}", seen.told());
    assert_eq!(
        failed,
        Vec::<u64>::new(),
        "of {many} seeds; each is printed above"
    );
    // A run that shows nothing proves nothing: of many, some have shown each of these.
    for what in SHOWN.iter().filter(|_| many >= 100) {
        assert!(seen.counts.contains_key(*what), "never seen: {what}");
    }
}

#[test]
fn one_seed_is_one_run() {
    for seed in [1, 2, 3] {
        let [one, other] = [run(seed), run(seed)].map(|world| world.unwrap().trace);
        let differs = one.iter().zip(&other).find(|(a, b)| a != b);
        assert_eq!(differs, None, "FEM_SEED={seed}");
        assert_eq!(one.len(), other.len(), "FEM_SEED={seed}");
    }
}

#[test]
fn brokers_whose_clocks_are_four_minutes_apart_answer_each_other_at_any_time() {
    if let Err(why) = timeless(days::far_apart) {
        panic!("{why}");
    }
}

#[test]
fn in_a_ring_of_ten_brokers_a_revocation_is_known_to_both_neighbours_within_a_second() {
    let took = timeless(days::around_a_ring).unwrap_or_else(|why| panic!("{why}"));
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    println!("known after {median} ms (median), {longest} ms (longest)");
    assert!(took.len() == 20 && longest < 1_000, "{took:?}");
}
