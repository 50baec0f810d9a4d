//! A snapshot and the records after it come to what all records come to; and any other than a whole
//! one of this chain, signed by this broker, is left aside.

use std::collections::BTreeSet;

use proto_spec::message::{
    AdminScope, Introduced, Older, OlderTool, Trust, TrustNews, TrustStatement,
};
use proto_spec::trust::Decision;
use proto_spec::{Kind, Name, Org, Timestamp};

use super::*;
use crate::change::{Change, Reissued, recovery_statement};
use crate::config::Limits;
use crate::journal::Journal as _;
use crate::state::keys::Stage;
use crate::state::replay::Replay;
use crate::voice::Voice;

const HISTORIES: u64 = 12;
const RECORDS: usize = 250;
/// How many sorts of changes there are.
const SORTS: u64 = 31;

/// Choices that a seed repeats (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    fn name(&mut self) -> Name {
        format!("agent-{}", self.below(6)).parse().unwrap()
    }

    fn maybe<T>(&mut self, some: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(2) == 0).then(|| some(self))
    }
}

/// A key of its own for each record.
fn secret(n: usize) -> SigningKey {
    SigningKey::from_seed(&Digest::of(&n.to_be_bytes()).0)
}

/// The key that the broker signs with at this point of its history.
fn broker_key(live: &State) -> SigningKey {
    let active = live.broker_keys.life().active().unwrap();
    std::iter::once(signing(50))
        .chain((0..RECORDS).map(secret))
        .find(|key| key.public() == active)
        .unwrap()
}

fn signing(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n + 1; 32])
}

/// Which sort a change is of. Whoever adds one has it tried here: [`any`] makes each of them.
fn sort(change: &Change) -> u64 {
    match change {
        Change::Founded { .. } => 0,
        Change::Approved { .. } => 1,
        Change::Denied { .. } => 2,
        Change::AgentRevoked { .. } => 3,
        Change::Issued { .. } => 4,
        Change::EnrolmentIssued { .. } => 5,
        Change::Enrolled { .. } => 6,
        Change::Revoked { .. } => 7,
        Change::Recovered { .. } => 8,
        Change::Rotated { .. } => 9,
        Change::Quarantined { .. } => 10,
        Change::Barred { .. } => 11,
        Change::Reserved { .. } => 12,
        Change::Proposed { .. } => 13,
        Change::ProposalClosed { .. } => 14,
        Change::RootPrepared { .. } => 15,
        Change::RootActivated { .. } => 16,
        Change::Reissued { .. } => 17,
        Change::RootRetired { .. } => 18,
        Change::ClockAccepted { .. } => 19,
        Change::BrokerKeyPrepared { .. } => 20,
        Change::BrokerKeyActivated { .. } => 21,
        Change::BrokerKeyRetired { .. } => 22,
        Change::PeerAdded { .. } => 23,
        Change::PeerPaused { .. } => 24,
        Change::PeerRemoved { .. } => 25,
        Change::PeerReissued { .. } => 26,
        Change::PeerGranted { .. } => 27,
        Change::TrustStated { .. } => 28,
        Change::TrustDecided { .. } => 29,
        Change::TrustHeard { .. } => 30,
    }
}

/// Any change that can follow on `live`, as record `n` of its journal. `issued` are the ids that were
/// given out.
fn any(dice: &mut Dice, n: usize, live: &State, issued: &mut Vec<Digest>) -> Change {
    let mut sort = if n == 0 { 0 } else { 1 + dice.below(SORTS - 1) };
    let at = Timestamp::from_ms(1_000 + n as u64 / 3);
    let expires = Timestamp::from_ms(2_000 + dice.below(100));
    let (mut name, by) = (dice.name(), dice.name());
    let agents = live.registry.agents_after(None);
    let fresh_key = secret(n).public();
    if matches!(sort, 9 | 17) {
        match agents.len() as u64 {
            // Only an agent has grants and a key to replace.
            0 => sort = 1,
            count => name = agents[dice.below(count) as usize].name.clone(),
        }
    }
    let own = live.registry.agent(&name).map(|agent| agent.key.key());
    // One key has one name: its own, or one that nobody had.
    let key = own
        .filter(|_| sort == 9 || dice.below(2) == 0)
        .unwrap_or(fresh_key);
    let patterns = vec![
        format!("{name}.*").parse().unwrap(),
        "fs.*".parse().unwrap(),
    ];
    let reason = dice.maybe(|_| "because".to_owned());
    let known = |dice: &mut Dice, issued: &[Digest]| match issued.len() as u64 {
        0 => Digest([9; 32]),
        count => issued[dice.below(count) as usize],
    };
    let fresh = |issued: &mut Vec<Digest>, k: usize| {
        let id = Digest::of(format!("{n} {k}").as_bytes());
        issued.push(id);
        id
    };
    let peer: Org = format!("org-{}", dice.below(3)).parse().unwrap();
    let prepared = live.broker_keys.life().in_stage(Stage::Prepared);
    let own_grants = live.registry.issued_to(&name);
    let reissued = |issued: &mut Vec<Digest>| {
        let old = own_grants.iter().take(3).enumerate();
        old.map(|(k, old)| Reissued {
            old: old.id,
            new: fresh(issued, k),
            token: format!("anew {n}"),
        })
        .collect()
    };
    match sort {
        0 => Change::Founded {
            org: "acme".parse().unwrap(),
            broker: signing(50).public(),
            root: signing(51).public(),
            recovery: signing(52).public(),
            admin: name,
            admin_key: key,
            at,
        },
        1 => Change::Approved {
            grant: dice.maybe(|_| (fresh(issued, 0), format!("grant {n}"))),
            name,
            key,
            capabilities: patterns.clone(),
            expires,
            admin: dice.maybe(|_| AdminScope {
                grantable: patterns.clone(),
                names: vec!["agent-*".parse().unwrap()],
            }),
            prefixes: patterns,
            older: dice.maybe(|_| Older {
                endpoint: Some(format!("http://192.0.2.{n}:80/mcp")),
                environment: None,
                tools: vec![OlderTool {
                    name: "code.execute".into(),
                    description: Some("Runs".into()),
                    schema: None,
                }],
            }),
            by,
            at,
        },
        2 => Change::Denied {
            name,
            key,
            reason,
            by,
            at,
        },
        3 => Change::AgentRevoked {
            name,
            key,
            reason,
            by,
            at,
        },
        4 => Change::Issued {
            id: fresh(issued, 0),
            agent: name,
            capabilities: patterns,
            checks: vec!["check if true".into()],
            not_before: dice.maybe(|_| at),
            expires,
            calls: dice.maybe(|_| 7),
            record: dice.maybe(|_| format!("issued {n}")),
            by,
            at,
        },
        5 => Change::EnrolmentIssued {
            id: fresh(issued, 0),
            name: "agent-*".parse().unwrap(),
            ceiling: patterns,
            uses: 3,
            expires,
            by,
            at,
        },
        6 => Change::Enrolled {
            enrolment: known(dice, issued),
            grant: dice.maybe(|_| (fresh(issued, 0), format!("enrolled {n}"))),
            name,
            key,
            capabilities: patterns.clone(),
            expires,
            prefixes: patterns,
            at,
        },
        7 => Change::Revoked {
            ids: vec![known(dice, issued), Digest::of(&[n as u8])],
            reason,
            by,
            at,
        },
        8 => {
            let statement = recovery_statement(&live.org, &name, &key, at);
            Change::Recovered {
                admin: name,
                admin_key: key,
                proof: signing(52).sign(&statement),
                at,
            }
        }
        9 => Change::Rotated {
            name,
            from: key,
            to: fresh_key,
            grants: reissued(issued),
            at,
        },
        10 => Change::Quarantined {
            agents: vec![(name.clone(), key)],
            name,
            ids: vec![known(dice, issued)],
            reason,
            by,
            at,
        },
        11 => Change::Barred {
            under: patterns,
            before: at,
            reason,
            by,
            at,
        },
        12 => Change::Reserved {
            block: known(dice, issued),
            calls: 5,
            at,
        },
        13 => Change::Proposed {
            id: Digest::of(&[dice.below(9) as u8]),
            act: "admin.agent.approve".into(),
            body: "{}".into(),
            by,
            at,
            expires: Timestamp::from_ms(at.as_ms() + dice.below(20)),
        },
        14 => Change::ProposalClosed {
            id: Digest::of(&[dice.below(9) as u8]),
            agreed: dice.below(2) == 0,
            by,
            at,
        },
        15 => Change::RootPrepared { key, by, at },
        16 => Change::RootActivated { key, by, at },
        17 => Change::Reissued {
            name,
            grants: reissued(issued),
            at,
        },
        18 => Change::RootRetired { key, by, at },
        19 => Change::ClockAccepted { was: at, at },
        20 => {
            let (voice, next) = (Voice::new(broker_key(live), live.org.clone(), 7), secret(n));
            Change::BrokerKeyPrepared {
                key: next.public(),
                succession: voice.name_successor(&next, at).unwrap(),
                by,
                at,
            }
        }
        21 => Change::BrokerKeyActivated {
            key: prepared.unwrap_or_else(|| broker_key(live).public()),
            by,
            at,
        },
        22 => Change::BrokerKeyRetired {
            key: live
                .broker_keys
                .life()
                .in_stage(Stage::Retiring)
                .unwrap_or(fresh_key),
            by,
            at,
        },
        23 => Change::PeerAdded {
            org: peer,
            key,
            endpoints: vec!["127.0.0.1:7443".into()],
            asks: patterns,
            by,
            at,
        },
        24 => Change::PeerPaused {
            org: peer,
            paused: dice.below(2) == 0,
            by,
            at,
        },
        25 => Change::PeerRemoved {
            org: peer,
            ids: vec![known(dice, issued)],
            by,
            at,
        },
        26 => Change::PeerReissued {
            org: peer,
            key,
            ids: vec![known(dice, issued)],
            at,
        },
        27 => Change::PeerGranted {
            follows: dice.maybe(|dice| known(dice, issued)),
            id: fresh(issued, 0),
            org: peer,
            holder: key,
            capabilities: patterns,
            checks: Vec::new(),
            depth: 1,
            expires,
            token: format!("peer {n}"),
            by,
            at,
        },
        28 => Change::TrustStated {
            trustee: peer,
            trust: Trust::try_from(dice.below(101) as u8).unwrap(),
            capabilities: patterns,
            seq: n as u64 - dice.below(2),
            expires,
            by,
            at,
        },
        29 => Change::TrustDecided {
            org: peer,
            decision: [
                None,
                Some(Decision::System),
                Some(Decision::AtMost(Trust::FULL)),
                Some(Decision::Revoked),
            ][dice.below(4) as usize],
            by,
            at,
        },
        30 => {
            let maker: Org = format!("org-{}", dice.below(5)).parse().unwrap();
            let said = TrustStatement {
                trustee: "acme".parse().unwrap(),
                trust: Trust::try_from(dice.below(101) as u8).unwrap(),
                capabilities: Vec::new(),
                seq: dice.below(10),
                expires,
            };
            let voice = Voice::new(secret(n), maker.clone(), n as u64);
            let said = voice.say(Kind::TrustStatement, None, None, &said, at);
            let other = Introduced { org: maker, key };
            let news = TrustNews {
                introduced: dice.maybe(|_| other).into_iter().collect(),
                withdrawn: dice.maybe(|_| peer.clone()).into_iter().collect(),
                statements: vec![String::from_utf8(said.bytes.to_vec()).unwrap()],
            };
            Change::TrustHeard {
                from: format!("org-{}", dice.below(3)).parse().unwrap(),
                news,
                at,
            }
        }
        sort => unreachable!("no change is of sort {sort}"),
    }
}

/// A journal of its own in each history. The seed is printed where a claim fails.
fn history(seed: u64) -> Vec<Change> {
    let mut dice = Dice(seed.wrapping_mul(2) + 1);
    let (live, mut issued) = (state(), Vec::new());
    let next = |n| {
        let change = any(&mut dice, n, &live, &mut issued);
        live.apply(&change, Taking::On).unwrap();
        change
    };
    (0..RECORDS).map(next).collect()
}

fn state() -> State {
    let limits = Limits::default();
    let replay = Replay::in_memory(100_000, 1_000, limits.skew(), [9; 32]);
    State::new("acme".parse().unwrap(), &limits, replay)
}

fn apply(state: &State, changes: &[Change], taking: Taking) {
    changes
        .iter()
        .for_each(|change| state.apply(change, taking).unwrap());
}

/// All that is durable, in bytes; and what follows from it.
fn all(state: &State) -> (Vec<u8>, String) {
    let data = tempfile::tempdir().unwrap();
    write_whole(data.path(), Head::START, state).unwrap();
    let bytes = std::fs::read(data.path().join(FILE_NAME)).unwrap();
    (bytes, state.registry.everything())
}

fn write_whole(data: &Path, head: Head, state: &State) -> Result<()> {
    write(
        data,
        head,
        state.image(),
        &signing(50),
        &AtomicBool::default(),
    )
}

/// A data directory with these changes, and a snapshot after the first `count`.
fn data(changes: &[Change], count: usize) -> tempfile::TempDir {
    let data = tempfile::tempdir().unwrap();
    let mut journal = Embedded::open(data.path()).unwrap();
    let live = state();
    let (before, after) = changes.split_at(count);
    journal.append(&before.iter().collect::<Vec<_>>()).unwrap();
    apply(&live, before, Taking::On);
    write_whole(data.path(), journal.head(), &live).unwrap();
    journal.append(&after.iter().collect::<Vec<_>>()).unwrap();
    data
}

/// What a start reads back, and from which record on it read.
fn start(data: &Path) -> std::result::Result<(State, u64), Unreadable> {
    let state = state();
    read_back(data, &state, |key| *key == signing(50).public()).map(|(_, since)| (state, since))
}

/// The whole journal is read, and comes to the same.
#[track_caller]
fn check_it_is_left_aside(data: &Path, changes: &[Change]) {
    let (read, since) = start(data).unwrap();
    let whole = state();
    apply(&whole, changes, Taking::Back);
    assert_eq!(since, 0);
    assert!(all(&read) == all(&whole));
}

#[test]
fn a_snapshot_and_the_records_after_it_come_to_what_all_records_come_to() {
    let mut sorts = BTreeSet::new();
    for seed in 0..HISTORIES {
        let changes = history(seed);
        sorts.extend(changes.iter().map(sort));
        let whole = state();
        apply(&whole, &changes, Taking::Back);
        for count in [1, RECORDS / 2, RECORDS - 1, RECORDS] {
            let data = data(&changes, count);
            let (read, since) = start(data.path()).unwrap();
            assert_eq!(since, count as u64, "seed {seed}");
            let ((bytes, derived), (all_bytes, all_derived)) = (all(&read), all(&whole));
            assert!(derived == all_derived, "seed {seed}, after {count}");
            assert!(bytes == all_bytes, "seed {seed}, after {count}");
        }
    }
    assert_eq!(sorts, (0..SORTS).collect(), "every sort of change is tried");
}

#[test]
fn what_was_reserved_and_not_used_is_lost_with_the_start() {
    let block = Digest([3; 32]);
    let reserved = Change::Reserved {
        block,
        calls: 8,
        at: Timestamp::from_ms(1),
    };
    let data = data(&[reserved], 1);
    let (read, _) = start(data.path()).unwrap();
    assert_eq!(read.budgets.left(&block, 10), 2);
}

#[test]
fn a_torn_or_altered_snapshot_is_left_aside() {
    let changes = history(1);
    let data = data(&changes, RECORDS / 2);
    let path = data.path().join(FILE_NAME);
    let whole = std::fs::read(&path).unwrap();
    for at in (0..whole.len())
        .step_by(whole.len() / 40)
        .chain([whole.len() - 1])
    {
        let mut altered = whole.clone();
        altered[at] ^= 0x10;
        std::fs::write(&path, &altered).unwrap();
        check_it_is_left_aside(data.path(), &changes);
        std::fs::write(&path, &whole[..at]).unwrap();
        check_it_is_left_aside(data.path(), &changes);
    }
    std::fs::write(&path, [whole.as_slice(), b"more"].concat()).unwrap();
    check_it_is_left_aside(data.path(), &changes);
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(start(data.path()).unwrap().1, RECORDS as u64 / 2);
}

#[test]
fn a_snapshot_of_another_chain_or_of_a_later_journal_is_left_aside() {
    let (changes, others) = (history(2), history(3));
    let (mine, other) = (data(&changes, RECORDS / 2), data(&others, RECORDS / 2));
    let snapshot = |data: &Path| data.join(FILE_NAME);
    std::fs::copy(snapshot(other.path()), snapshot(mine.path())).unwrap();
    check_it_is_left_aside(mine.path(), &changes);
    // The journal of a backup that was put back by hand.
    let early = data(&changes[..RECORDS / 2], 1);
    let late = data(&changes, RECORDS);
    std::fs::copy(snapshot(late.path()), snapshot(early.path())).unwrap();
    check_it_is_left_aside(early.path(), &changes[..RECORDS / 2]);
}

#[test]
fn a_snapshot_that_another_key_signed_is_left_aside() {
    let changes = history(4);
    let data = data(&changes, RECORDS / 2);
    let lies = state();
    apply(&lies, &changes[..RECORDS / 4], Taking::On);
    let head = Found::open(data.path()).unwrap().unwrap().head;
    write(
        data.path(),
        head,
        lies.image(),
        &signing(60),
        &AtomicBool::default(),
    )
    .unwrap();
    check_it_is_left_aside(data.path(), &changes);
}

#[test]
fn a_snapshot_of_another_format_is_left_aside() {
    let changes = history(5);
    let data = data(&changes, RECORDS / 2);
    let path = data.path().join(FILE_NAME);
    let mut newer = std::fs::read(&path).unwrap();
    newer[7] += 1;
    std::fs::write(&path, newer).unwrap();
    let error = Found::open(data.path()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("another format"), "{error}");
    check_it_is_left_aside(data.path(), &changes);
}

#[test]
fn damage_in_a_record_before_the_snapshot_stops_the_start_with_its_position() {
    let changes = history(6);
    let data = data(&changes, RECORDS - 1);
    let path = data.path().join("journal.redb");
    let mut spoilt = std::fs::read(&path).unwrap();
    let at = spoilt.windows(4).position(|at| at == b"acme").unwrap();
    spoilt[at] = b'A';
    std::fs::write(&path, spoilt).unwrap();
    let stopped = start(data.path()).map(|_| ());
    assert!(
        matches!(
            stopped,
            Err(Unreadable::Journal(JournalError::Damaged { number: 0, .. }))
        ),
        "{stopped:?}"
    );
}

#[test]
fn a_crash_or_a_full_disk_while_one_is_written_leaves_the_one_before() {
    let changes = history(7);
    let data = data(&changes, RECORDS / 2);
    let path = data.path().join(FILE_NAME);
    let whole = std::fs::read(&path).unwrap();
    // Killed: what was written stays where nobody looks for it.
    std::fs::write(data.path().join(UNFINISHED), &whole[..whole.len() / 3]).unwrap();
    let (read, since) = start(data.path()).unwrap();
    assert_eq!(since, RECORDS as u64 / 2);
    // Failed: what was written is gone.
    let stop = AtomicBool::new(true);
    write(data.path(), Head::START, read.image(), &signing(50), &stop).unwrap_err();
    assert!(!data.path().join(UNFINISHED).exists());
    assert!(std::fs::read(&path).unwrap() == whole);
}

#[test]
fn a_snapshot_is_written_when_enough_records_follow_the_one_before() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join(FILE_NAME);
    let head = |next| Head {
        next,
        ..Head::START
    };
    let live = state();
    let voice = Voice::new(signing(50), live.org.clone(), 7).into();
    let mut snapshots = Snapshots::new(data.path().into(), voice, 100);
    apply(&live, &history(8), Taking::On);
    snapshots.keep(&live, head(100 + keep::RECORDS_MIN - 1));
    snapshots.wait();
    assert!(!path.exists());
    snapshots.keep(&live, head(100 + keep::RECORDS_MIN));
    snapshots.wait();
    let found = Found::open(data.path()).unwrap().unwrap();
    assert_eq!(found.head, head(100 + keep::RECORDS_MIN));
    snapshots.keep(&live, head(101 + keep::RECORDS_MIN));
    snapshots.wait();
    let same = Found::open(data.path()).unwrap().unwrap();
    assert_eq!(same.head, found.head);
}
