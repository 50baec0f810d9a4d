//! Two organisations and a bad network between them, with the real binaries: nothing is executed twice,
//! nothing that was acknowledged is lost, nothing that was revoked is accepted past the bound, and all goes
//! on without anybody's help.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto_spec::message::{Ack, PeerRecord};
use proto_spec::{Audience, Code, Digest, Kind};
use serde_json::json;
use tests::binaries::faketime;
use tests::cable::{Cable, Loss, Way};
use tests::house::{House, Surroundings};
use tests::lab::{Actor, hears_refusal, wall_clock};
use tests::site::{Site, free};
use tests::witness::{Answers, Executions, Running, keep_calling, keep_serving, one, outcome};

/// `stale_after_ms` of every broker here.
const BOUND: Duration = Duration::from_secs(3);
/// What a delivery and writing it down may take on a busy machine: it counts for nobody's bound.
const NOTING: Duration = Duration::from_millis(500);
/// Answers that show that calls come through.
const SOME: usize = 5;

/// An organisation that is reached over a cable of the test's.
async fn behind_a_cable(org: &str, ahead: u64) -> (House, Cable) {
    let listen = free().unwrap();
    let cable = Cable::to(listen).await.unwrap();
    let bound = format!("stale_after_ms = {}", BOUND.as_millis());
    let site = Site::of(org, "").unwrap();
    let site = site.reachable_by(listen, cable.address(), &bound).unwrap();
    let surroundings = match ahead {
        0 => Surroundings::Here,
        seconds => Surroundings::Ahead(seconds),
    };
    (House::open_in(site, surroundings).unwrap(), cable)
}

/// acme, whose `x` calls what globex' `fs` serves, all the time; acme dials.
pub(crate) struct Scene {
    pub(crate) acme: House,
    pub(crate) globex: House,
    pub(crate) caller: Arc<Actor>,
    pub(crate) executions: Executions,
    pub(crate) answers: Answers,
    _running: [Running; 2],
}

fn fs() -> Audience {
    "fs@globex".parse().unwrap()
}

/// With a cable that is `There` towards globex.
async fn begin() -> (Scene, Cable) {
    with_clocks([0, 0]).await
}

/// With clocks that are so many seconds ahead.
async fn with_clocks(ahead: [u64; 2]) -> (Scene, Cable) {
    let (acme, _) = behind_a_cable("acme", ahead[0]).await;
    let (globex, cable) = behind_a_cable("globex", ahead[1]).await;
    (Scene::of(acme, globex).await, cable)
}

impl Scene {
    /// Has both become peers, and waits until calls come through.
    pub(crate) async fn of(acme: House, globex: House) -> Self {
        acme.join(&globex).await.unwrap();
        let granted = globex.grant(json!({"org": "acme", "capabilities": ["fs.*"]}));
        granted.await.unwrap();
        let provider = globex.agent("fs", 2, &[]).await.unwrap();
        let caller = Arc::new(caller(&acme, "x", 3).await);
        let (executions, answers) = (Executions::default(), Answers::default());
        let serving = keep_serving(globex.line.clone(), provider, executions.clone());
        acme.until("globex", |peer| peer.tools > 0).await.unwrap();
        let line = acme.line.clone();
        let calling = keep_calling(line, Arc::clone(&caller), fs(), answers.clone());
        let scene = Self {
            acme,
            globex,
            caller,
            executions,
            answers,
            _running: [serving, calling],
        };
        scene.goes_on().await;
        scene
    }

    /// That calls come through again by themselves, and each did once at most.
    pub(crate) async fn goes_on(&self) {
        self.answers.until(SOME, None).await.unwrap();
        self.executions.check_none_twice().unwrap();
    }

    /// Waits until both brokers have noticed that they have no link.
    pub(crate) async fn is_parted(&self) {
        let is_down = |peer: &PeerRecord| peer.link == "down";
        self.acme.until("globex", is_down).await.unwrap();
        self.globex.until("acme", is_down).await.unwrap();
    }

    /// That nothing was executed when nobody can have known any more who is revoked.
    pub(crate) fn stopped_in_time(&self, lost: Instant) {
        let last = self.executions.last_of(&self.caller.id).unwrap();
        let late = last.saturating_duration_since(lost);
        assert!(late < BOUND + NOTING, "executed after {late:?}");
    }
}

/// An agent of acme's that may call globex' `fs`.
async fn caller(acme: &House, name: &str, seed: u8) -> Actor {
    let may = ["peer.globex.fs.*"];
    acme.agent(name, seed, &may).await.unwrap()
}

/// Waits on the clock that the brokers go by.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_loses_nothing_that_was_acknowledged_and_heals_without_help() {
    let (scene, cable) = begin().await;
    let (acme, globex) = (&scene.acme, &scene.globex);
    let y = caller(acme, "y", 4).await;
    let other = globex.grant(json!({"org": "acme", "capabilities": ["db.*"]}));
    let other = other.await.unwrap();
    cable.part(Loss::Forever);
    // Either side does what it likes, and is told that it is done.
    acme.revoke_agent("y").await.unwrap();
    let body = json!({"ids": [other]});
    globex.ask(Kind::AdminTokenRevoke, body).await.unwrap();
    let granted = globex.grant(json!({"org": "acme", "capabilities": ["mail.*"]}));
    let granted = granted.await.unwrap();
    // Both notice by themselves, and say so to whoever calls.
    scene.is_parted().await;
    scene
        .answers
        .until(SOME, Some(Code::Unavailable))
        .await
        .unwrap();
    cable.heal();
    scene.goes_on().await;
    let has = |id: Digest| move |peer: &PeerRecord| peer.grants.iter().any(|grant| grant.id == id);
    globex.until("acme", has(granted)).await.unwrap();
    globex
        .until("acme", |peer| !has(other)(peer))
        .await
        .unwrap();
    assert!(y.attach(&acme.line, wall_clock()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_network_held_back_past_the_bound_is_refused_as_stale_and_not_executed() {
    let (scene, cable) = begin().await;
    let z = caller(&scene.acme, "z", 4).await;
    // The link itself is given up after five seconds: on a machine that stands still for one of them
    // callers learn of that instead.
    for round in 0..5 {
        let name = format!("y{round}");
        let y = caller(&scene.acme, &name, 10 + round).await;
        let mut sessions = Vec::new();
        for agent in [&y, &z] {
            sessions.push(agent.attach(&scene.acme.line, wall_clock()).await.unwrap());
        }
        cable.lose(Way::There, Loss::Late);
        let calls = [&y, &z].map(|agent| one(agent, &fs()).unwrap());
        for (session, call) in sessions.iter_mut().zip(&calls) {
            session.send(call.bytes.clone()).await.unwrap();
        }
        scene.acme.revoke_agent(&name).await.unwrap();
        pass(BOUND + Duration::from_secs(1)).await;
        cable.heal();
        let told = hears_refusal(&mut sessions[1]).await.unwrap();
        scene.goes_on().await;
        for call in &calls {
            assert!(!scene.executions.has(&call.id));
        }
        if told == Code::RevocationsStale {
            return;
        }
        assert_eq!(told, Code::OutcomeUnknown);
    }
    panic!("nobody was told that it is stale");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_lost_one_way_stops_calls_at_the_bound_and_heals_without_help() {
    let (scene, cable) = begin().await;
    for way in [Way::There, Way::Back] {
        for loss in [Loss::Late, Loss::Forever] {
            let lost = Instant::now();
            cable.lose(way, loss);
            scene.is_parted().await;
            scene.stopped_in_time(lost);
            cable.heal();
            scene.goes_on().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_of_200_ms_carries_calls_and_revocations_and_its_links_stay_up() {
    let (scene, cable) = begin().await;
    cable.delay(Duration::from_millis(200));
    let begun = Instant::now();
    let y = caller(&scene.acme, "y", 4).await;
    let mut calling = y.attach(&scene.acme.line, wall_clock()).await.unwrap();
    let first = one(&y, &fs()).unwrap();
    assert_eq!(outcome(&mut calling, &first).await, Some(None));
    // In flight, or not even there yet, when its key dies.
    let last = one(&y, &fs()).unwrap();
    calling.send(last.bytes.clone()).await.unwrap();
    scene.acme.revoke_agent("y").await.unwrap();
    let revoked = Instant::now();
    scene.answers.until(SOME, None).await.unwrap();
    let executed = scene.executions.last_of(&y.id).unwrap();
    assert!(executed < revoked + BOUND + NOTING);
    let lost = scene.answers.count(begun, Some(Code::OutcomeUnknown));
    assert_eq!(lost, 0, "no link was lost");
    // One that has to be made anew is made over the same network.
    cable.cut();
    scene.goes_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_whose_clocks_are_four_minutes_apart_serve_each_other_and_believe_nothing_revoked()
{
    if faketime().is_none() {
        eprintln!("left out: clocks that are apart, because there is no libfaketime");
        return;
    }
    for ahead in [[240, 0], [0, 240]] {
        let (scene, cable) = with_clocks(ahead).await;
        let y = caller(&scene.acme, "y", 4).await;
        // An agent's clock may be its own broker's, or any between.
        let mut calling = y.attach(&scene.acme.line, wall_clock()).await.unwrap();
        for at in ahead {
            let now = wall_clock().later(Duration::from_secs(at));
            let call = y.call("fs@globex", "fs.read", &json!({}), now).unwrap();
            assert_eq!(outcome(&mut calling, &call).await, Some(None));
        }
        // The call was let through at home; its key dies while the network holds it.
        cable.part(Loss::Late);
        let held = one(&y, &fs()).unwrap();
        calling.send(held.bytes.clone()).await.unwrap();
        scene.acme.revoke_agent("y").await.unwrap();
        let revoked = Instant::now();
        scene.is_parted().await;
        cable.heal();
        scene.goes_on().await;
        let last = scene.executions.last_of(&y.id).unwrap();
        assert!(last < revoked + BOUND + NOTING, "{ahead:?}");
        assert!(!scene.executions.has(&held.id), "{ahead:?}");
    }
}

/// acme, globex and initech, each linked with the next; acme's callers call one and two hops away.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_every_broker_loses_no_act_and_executes_no_call_twice() {
    let names = ["acme", "globex", "initech"];
    let mut houses = Vec::new();
    let mut cables = Vec::new();
    for name in names {
        let (house, cable) = behind_a_cable(name, 0).await;
        houses.push(house);
        cables.push(cable);
    }
    houses[0].join(&houses[1]).await.unwrap();
    houses[1].join(&houses[2]).await.unwrap();
    let grant = async |house: &House, body| house.grant(body).await.unwrap();
    let tools = ["fs.*", "peer.initech.fs.*"];
    grant(&houses[1], json!({"org": "acme", "capabilities": tools})).await;
    grant(
        &houses[2],
        json!({"org": "globex", "capabilities": ["fs.*"], "depth": 1}),
    )
    .await;
    let executions = Executions::default();
    let mut running = Vec::new();
    for house in &houses[1..] {
        let provider = house.agent("fs", 2, &[]).await.unwrap();
        let line = house.line.clone();
        running.push(keep_serving(line, provider, executions.clone()));
    }
    let may = ["peer.globex.fs.*", "peer.globex.peer.initech.fs.*"];
    let caller = Arc::new(houses[0].agent("x", 3, &may).await.unwrap());
    houses[0]
        .until("globex", |peer| peer.tools == 2)
        .await
        .unwrap();
    let mut answers = Vec::new();
    for to in ["fs@globex", "fs@initech"] {
        let told = Answers::default();
        let (line, to) = (houses[0].line.clone(), to.parse().unwrap());
        running.push(keep_calling(line, Arc::clone(&caller), to, told.clone()));
        answers.push(told);
    }
    let mut acts = Vec::new();
    let (mut kept, mut gone) = (Vec::new(), Vec::new());
    for round in 0..2 {
        for restarted in 0..houses.len() {
            for told in &answers {
                told.until(SOME, None).await.unwrap();
            }
            // Acts of every broker, acknowledged right before one of them goes.
            for (at, house) in houses.iter().enumerate() {
                let name = format!("kept-{round}-{restarted}");
                let gone = format!("gone-{round}-{restarted}");
                let seed = 100 + 10 * round + restarted as u8;
                house.agent(&name, seed, &[]).await.unwrap();
                let actor = house.agent(&gone, seed + 50, &[]).await.unwrap();
                house.revoke_agent(&gone).await.unwrap();
                acts.push((at, name, actor));
            }
            for (ids, word) in [(&mut kept, "db"), (&mut gone, "mail")] {
                let what = format!("{word}.round-{round}.{restarted}");
                let body = json!({"org": "acme", "capabilities": [what]});
                ids.push(grant(&houses[1], body).await);
            }
            let body = json!({"ids": gone});
            let revoked = houses[1].ask(Kind::AdminTokenRevoke, body).await;
            revoked.unwrap();
            houses[restarted].restart(round == 1).unwrap();
        }
    }
    for told in &answers {
        told.until(SOME, None).await.unwrap();
    }
    executions.check_none_twice().unwrap();
    let peers = houses[1].peers().await.unwrap();
    let acme = peers.iter().find(|peer| peer.org.as_str() == "acme");
    let held: Vec<Digest> = acme.unwrap().grants.iter().map(|one| one.id).collect();
    assert!(kept.iter().all(|id| held.contains(id)));
    assert!(gone.iter().all(|id| !held.contains(id)));
    for (at, kept, gone) in acts {
        let house = &houses[at];
        let Ack::Agents { agents, .. } = house.ask(Kind::AdminAgentList, json!({})).await.unwrap()
        else {
            panic!("no list");
        };
        assert!(
            agents.iter().any(|agent| agent.name.as_str() == kept),
            "{kept}"
        );
        assert!(gone.attach(&house.line, wall_clock()).await.is_err());
    }
}
