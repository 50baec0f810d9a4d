//! Two brokers in network namespaces of their own, joined by a pair of virtual network cards: packets are
//! lost below TCP, with all that TCP does about it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tests::house::{House, Surroundings};
use tests::site::{Site, free};

use crate::partition::Scene;

/// Tells the test that it runs inside of namespaces.
const INSIDE: &str = "FEM_INSIDE_NAMESPACES";
/// The card over which the brokers are linked, and the one by which the test reaches the broker beyond.
const CARDS: [(&str, &str); 2] = [("fem-link", "10.77.0"), ("fem-door", "10.78.0")];
/// No card has this address: what is sent there is lost.
const NOBODY: &str = "02:00:00:00:00:99";
/// How long a namespace is kept at most.
const KEPT_S: &str = "300";

#[test]
fn brokers_in_two_namespaces_survive_packets_that_are_lost_one_way_and_both() {
    let able = Command::new("unshare")
        .args(["--map-root-user", "--net", "ip", "link"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !able.is_ok_and(|able| able.success()) {
        eprintln!("left out: packets that are lost, because there are no network namespaces here");
        return;
    }
    let ended = Command::new("unshare")
        .args(["--map-root-user", "--net"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "namespaces::inside", "--ignored", "--nocapture"])
        .env(INSIDE, "1")
        .status();
    assert!(ended.unwrap().success());
}

/// A namespace beyond this one; it ends when this is dropped.
struct Beyond(Child);

impl Drop for Beyond {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Beyond {
    fn make() -> Self {
        let mut unshare = Command::new("unshare");
        let beyond = Self(unshare.args(["--net", "sleep", KEPT_S]).spawn().unwrap());
        let namespace =
            |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
        let begun = Instant::now();
        while namespace(&beyond.id()) == namespace("self") {
            assert!(begun.elapsed() < Duration::from_secs(10), "no namespace");
            std::thread::yield_now();
        }
        ip("link set lo up");
        for (card, network) in CARDS {
            let id = beyond.id();
            ip(&format!(
                "link add {card} type veth peer name {card} netns {id}"
            ));
            ip(&format!("address add {network}.1/24 dev {card}"));
            ip(&format!("link set {card} up"));
            beyond.ip(&format!("address add {network}.2/24 dev {card}"));
            beyond.ip(&format!("link set {card} up"));
        }
        beyond.ip("link set lo up");
        beyond
    }

    fn id(&self) -> String {
        self.0.id().to_string()
    }

    /// Runs `ip` there.
    fn ip(&self, words: &str) {
        let mut enter = Command::new("nsenter");
        enter.args(["--target", &self.id(), "--net", "ip"]);
        run(enter.args(words.split(' ')));
    }
}

/// Runs `ip` here.
fn ip(words: &str) {
    run(Command::new("ip").args(words.split(' ')));
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// Which packets are lost.
#[derive(Debug, Clone, Copy)]
struct Lost {
    there: bool,
    back: bool,
}

impl Lost {
    fn begin(self, beyond: &Beyond) {
        let lose =
            |to: &str| format!("neighbour replace {to} lladdr {NOBODY} dev fem-link nud permanent");
        if self.there {
            ip(&lose("10.77.0.2"));
        }
        if self.back {
            beyond.ip(&lose("10.77.0.1"));
        }
    }

    fn end(self, beyond: &Beyond) {
        if self.there {
            ip("neighbour del 10.77.0.2 dev fem-link");
        }
        if self.back {
            beyond.ip("neighbour del 10.77.0.1 dev fem-link");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the test before it runs this one in namespaces"]
async fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let beyond = Beyond::make();
    let port = free().unwrap().port();
    let at = |host: &str| format!("{host}:{port}").parse().unwrap();
    let bound = "stale_after_ms = 3000";
    let site = Site::of("globex", "").unwrap();
    let site = site
        .reachable_by(at("0.0.0.0"), at("10.77.0.2"), bound)
        .unwrap();
    let surroundings = Surroundings::Namespace(beyond.0.id());
    let mut globex = House::open_in(site, surroundings).unwrap();
    globex.line.address = at("10.78.0.2");
    let acme = House::open(Site::of("acme", "").unwrap()).unwrap();
    let scene = Scene::of(acme, globex).await;
    for (there, back) in [(true, false), (false, true), (true, true)] {
        let packets = Lost { there, back };
        let lost = Instant::now();
        packets.begin(&beyond);
        scene.is_parted().await;
        scene.stopped_in_time(lost);
        packets.end(&beyond);
        let healed = Instant::now();
        scene.goes_on().await;
        eprintln!(
            "{packets:?}: calls come through again after {:?}",
            healed.elapsed()
        );
    }
}
