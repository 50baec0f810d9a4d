//! What happens in a run: people grant and revoke, agents call, adversaries say again what others said,
//! and the network and the brokers fail. In the end all heals, and everything that should work has to.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use proto_spec::SigningKey;
use serde_json::json;

use crate::house::House;
use crate::network::Index;
use crate::oracle::{Broken, Ended, Grant, WORKS, broken};
use crate::world::{Down, Event, World};

/// How far clocks are apart at most.
const APART: Duration = Duration::from_secs(240);
/// For how long things go wrong.
const TROUBLE: Duration = Duration::from_secs(120);
/// How soon after that everything has to work: a dialler waits half a minute at most.
const HEALED: Duration = Duration::from_secs(100);

fn ring(count: usize) -> Vec<(Index, Index)> {
    (0..count).map(|a| (a, (a + 1) % count)).collect()
}

/// Two brokers, one of whose clocks is four minutes behind the other's, on a network that never fails: every
/// call is answered, whenever it is made.
pub(crate) fn far_apart() -> Result<World, String> {
    let mut world = World::new(1);
    let lived = world.live_apart();
    lived.map_err(|broken| format!("{}\n{broken}", world.shown()))?;
    Ok(world)
}

/// Ten brokers in a ring, 200 ms from each other, each of which revokes the key of an agent: how long it takes
/// its neighbours to know, in milliseconds, sorted.
pub(crate) fn around_a_ring() -> Result<Vec<u64>, String> {
    let mut world = World::new(1);
    let lived = world.live_in_a_ring();
    lived.map_err(|broken| format!("{}\n{broken}", world.shown()))?;
    let mut took = world.oracle.seen.calm_ms;
    took.sort_unstable();
    Ok(took)
}

/// Runs one seed.
pub(crate) fn run(seed: u64) -> Result<World, String> {
    let mut world = World::new(seed);
    let lived = catch_unwind(AssertUnwindSafe(|| world.live()));
    match lived.unwrap_or_else(|_| Err("a panic, as it is told above".into())) {
        Ok(()) => Ok(world),
        Err(broken) => Err(format!("{}\n{broken}\nFEM_SEED={seed}", world.shown())),
    }
}

impl World {
    pub(crate) fn live(&mut self) -> Result<(), Broken> {
        self.found_any()?;
        (0..self.houses.len()).try_for_each(|house| self.settle(house))?;
        self.plan(Duration::from_secs(2), Event::Act);
        self.run_until(TROUBLE)?;
        self.heal_everything()?;
        let end = self.now + HEALED;
        let mut wrong = self.what_does_not_work();
        while wrong.is_some() && self.now < end {
            self.run_until(self.now + Duration::from_secs(1))?;
            wrong = self.what_does_not_work();
        }
        if let Some(wrong) = wrong {
            return broken(WORKS, wrong);
        }
        self.call_everything()?;
        (0..self.houses.len()).try_for_each(|house| self.check_record(house))
    }

    pub(crate) fn live_apart(&mut self) -> Result<(), Broken> {
        self.is_over = true;
        self.found(&[Duration::ZERO, APART], vec![(0, 1)])?;
        self.all_grant_all()?;
        for _ in 0..60 {
            self.run_until(self.now + Duration::from_secs(10))?;
            let calls =
                [(0, 1), (1, 0)].map(|(from, to)| self.call(from, "x", to, "fs.read", false));
            self.run_until(self.now + Duration::from_secs(2))?;
            for call in calls {
                let call = &self.oracle.calls[&call?];
                if call.ended != Some(Ended::Answered) {
                    return broken(WORKS, format!("{:?}", call.ended));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn live_in_a_ring(&mut self) -> Result<(), Broken> {
        self.is_over = true;
        self.weather.is_always_late(Duration::from_millis(200));
        let clocks = [0, 240, 120, 60, 180, 0, 240, 30, 210, 90].map(Duration::from_secs);
        self.found(&clocks, ring(clocks.len()))?;
        self.all_grant_all()?;
        let quiet = Duration::from_secs(30);
        self.run_until(quiet)?;
        if let Some(wrong) = self.what_does_not_work() {
            return broken(WORKS, wrong);
        }
        for house in 0..clocks.len() {
            let key = self.oracle.agents[&(house, "x")].key;
            self.revoke_agent(house);
            self.settle(house)?;
            self.run_until(self.now + Duration::from_secs(2))?;
            let aware = self.oracle.aware_of(&key);
            if aware != 2 {
                return broken(WORKS, format!("{aware} brokers know of a death"));
            }
        }
        Ok(())
    }

    /// Neighbours are peers, and let each other's agents and those behind them do everything.
    pub(crate) fn all_grant_all(&mut self) -> Result<(), Broken> {
        for (a, b) in self.edges.clone() {
            self.add_peer(a, b, true);
            self.add_peer(b, a, false);
        }
        for (a, b) in self.edges.clone() {
            for (owner, peer) in [(a, b), (b, a)] {
                let own =
                    json!({"org": format!("org{peer}"), "capabilities": ["fs.*"], "depth": 1});
                self.grant_one(owner, peer, &own, Grant::Own { onward: true });
                let others = self.neighbours(owner).into_iter();
                for other in others.filter(|other| *other != peer) {
                    self.let_through(owner, peer, other);
                }
            }
        }
        (0..self.houses.len()).try_for_each(|house| self.settle(house))
    }

    pub(crate) fn found_any(&mut self) -> Result<(), Broken> {
        let count = [3, 3, 3, 4, 4, 5, 5, 6, 8, 10][self.dice.below(10)];
        // A ring, a chain, or a star.
        let edges = match self.dice.below(4) {
            0 | 1 => ring(count),
            2 => (1..count).map(|a| (a - 1, a)).collect(),
            _ => (1..count).map(|a| (0, a)).collect(),
        };
        let ahead = APART.as_millis() as u64 + 1;
        let clocks: Vec<_> = (0..count).map(|_| self.dice.ms(0, ahead)).collect();
        self.found(&clocks, edges)?;
        for (a, b) in self.edges.clone() {
            // One side dials, or both.
            let dials = self.dice.below(3);
            self.add_peer(a, b, dials != 1);
            self.add_peer(b, a, dials != 0);
            self.grant(a, b);
            self.grant(b, a);
        }
        Ok(())
    }

    /// Brokers whose clocks are so far ahead, with their agents; with whom each will be a peer.
    pub(crate) fn found(
        &mut self,
        clocks: &[Duration],
        edges: Vec<(Index, Index)>,
    ) -> Result<(), Broken> {
        self.edges = edges;
        for (number, ahead) in clocks.iter().enumerate() {
            self.houses.push(House::found(number, *ahead));
        }
        for house in 0..clocks.len() {
            self.start(house)?;
            for name in ["fs", "x", "y"] {
                let key = SigningKey::from_seed(&self.dice.seed());
                self.approve(house, name, key);
                self.plan(Duration::from_millis(100), Event::Return(house, name));
            }
        }
        Ok(())
    }

    pub(crate) fn act(&mut self) -> Result<(), Broken> {
        if self.is_over {
            return Ok(());
        }
        let after = self.dice.ms(20, 700);
        self.plan(after, Event::Act);
        let house = self.dice.below(self.houses.len());
        let choice = self.dice.below(100);
        // The weather asks nobody.
        if choice < 4 {
            self.trouble();
            return Ok(());
        }
        if !self.is_up(house) {
            return Ok(());
        }
        match choice {
            4..=61 => self.call_somebody(house)?,
            62..=77 => self.attack()?,
            78..=79 => self.revoke_calling_agent(house)?,
            80 => self.revoke_grants_of_an_agent(house),
            81..=82 => self.rotate_agent(house),
            83..=84 => self.strip_peer(house),
            85..=88 => self.grant_again(house),
            89..=90 => self.pause_or_resume(house),
            91 => self.remove_or_add(house),
            92 => self.rotate_broker(house),
            _ => self.make_good(house),
        }
        self.settle(house)
    }

    pub(crate) fn trouble(&mut self) {
        let count = self.houses.len();
        let long = self.dice.ms(500, 75_000);
        let a = self.dice.below(count);
        match self.dice.below(8) {
            0..=1 => {
                // A part of all is cut off.
                let inside: BTreeSet<Index> = (0..count).filter(|_| self.dice.one_in(3)).collect();
                let all = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
                let ways: Vec<_> = all
                    .filter(|(a, b)| inside.contains(a) != inside.contains(b))
                    .collect();
                self.cut(ways, long);
            }
            2..=3 => {
                let Some(b) = self.dice.pick(&self.neighbours(a)) else {
                    return;
                };
                self.cut(vec![(a, b)], long);
            }
            4 => {
                let Some(b) = self.dice.pick(&self.neighbours(a)) else {
                    return;
                };
                self.cut(vec![(a, b), (b, a)], long);
            }
            5..=6 => {
                let how = match self.dice.one_in(3) {
                    true => Down::Gone,
                    false => Down::Killed,
                };
                let down = self.dice.ms(50, 15_000);
                self.plan(Duration::ZERO, Event::Crash(a, how));
                self.plan(down, Event::Start(a));
            }
            _ => {
                // Every broker, one after the other.
                let every = self.dice.ms(500, 4_000);
                for house in 0..count {
                    let at = every * house as u32;
                    let down = self.dice.ms(50, 1_500);
                    self.plan(at, Event::Crash(house, Down::Killed));
                    self.plan(at + down, Event::Start(house));
                }
            }
        }
    }

    pub(crate) fn cut(&mut self, ways: Vec<(Index, Index)>, long: Duration) {
        self.note(format_args!("nothing passes {ways:?}"));
        self.oracle.seen.count("cuts");
        self.weather.cut(&ways);
        self.reconsider_calm();
        self.plan(long, Event::Heal(ways));
    }

    pub(crate) fn heal_everything(&mut self) -> Result<(), Broken> {
        self.note("everything heals");
        self.is_over = true;
        for house in 0..self.houses.len() {
            self.start(house)?;
        }
        // What is cut heals when its time comes, or at once.
        let cut = self.weather.all_cut();
        for (way, times) in cut {
            self.plan(Duration::ZERO, Event::Heal(vec![way; times]));
        }
        for house in 0..self.houses.len() {
            self.make_good(house);
            for peer in self.neighbours(house) {
                if self
                    .oracle
                    .peerings
                    .get(&(house, peer))
                    .is_some_and(|one| one.is_paused)
                {
                    self.pause(house, peer, false);
                }
            }
            self.settle(house)?;
        }
        Ok(())
    }
}
