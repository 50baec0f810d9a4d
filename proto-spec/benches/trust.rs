//! What a score costs on as many statements as a graph may hold, beside one signature of the same run: in
//! a plain graph, and in those that an attacker would send.

#![expect(
    clippy::disallowed_methods,
    reason = "a bench measures; the core reads no clock"
)]
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use proto_spec::limits::{
    TRUST_CONDITIONS_MAX, TRUST_STATEMENTS_MAX, TRUST_STATEMENTS_PER_MAKER_MAX,
};
use proto_spec::message::{Trust, TrustStatement};
use proto_spec::trust::{Decision, Statement, TrustGraph};
use proto_spec::{Org, Pattern, SigningKey, Timestamp};

const NOW: Timestamp = Timestamp::from_ms(1_750_000_000_000);
/// A whole graph among so many has the most paths of three hops that fit.
const DENSE: usize = 100;

fn org(i: usize) -> Org {
    format!("organisation-{i:03}").parse().unwrap()
}

fn home() -> Org {
    "acme".parse().unwrap()
}

fn statement(trustor: Org, trustee: usize, percent: usize, conditions: &[Pattern]) -> Statement {
    let said = TrustStatement {
        trustee: org(trustee),
        trust: Trust::try_from(u8::try_from(percent).unwrap()).unwrap(),
        capabilities: conditions.to_vec(),
        seq: 1,
        expires: NOW.later(Duration::from_secs(60)),
    };
    Statement::new(trustor, NOW, said).unwrap()
}

/// Everybody is a peer and speaks of as many as it may, each as `trust(trustor, trustee)` says.
fn graph(orgs: usize, conditions: &[Pattern], trust: fn(usize, usize) -> usize) -> TrustGraph {
    let mut graph = TrustGraph::new(home());
    let say = |graph: &mut TrustGraph, trustor: Org, trustee: usize, percent: usize| {
        graph.insert(statement(trustor, trustee, percent, conditions), NOW)
    };
    for i in 0..orgs {
        graph.add_peer(org(i)).unwrap();
        say(&mut graph, home(), i, trust(orgs, i)).unwrap();
    }
    let mut steps = (1..).take(TRUST_STATEMENTS_PER_MAKER_MAX.min(orgs - 1));
    while let Some(step) = steps.next()
        && (0..orgs).all(|i| say(&mut graph, org(i), (i + step) % orgs, trust(i, step)).is_ok())
    {
    }
    graph
}

/// 45 speak fully of each of the others, and these of one: thousands of paths of three hops, no two of
/// which can be told apart by what they are worth.
fn alike(first_conditions: &[Pattern], conditions: &[Pattern]) -> TrustGraph {
    let mut graph = TrustGraph::new(home());
    let say = |graph: &mut TrustGraph, trustor: Org, trustee: usize, conditions: &[Pattern]| {
        let statement = statement(trustor, trustee, 100, conditions);
        graph.insert(statement, NOW).unwrap();
    };
    for i in 0..256 {
        graph.add_peer(org(i)).unwrap();
    }
    for middle in (0..256).filter(|i| !(50..96).contains(i)) {
        say(&mut graph, org(middle), 50, conditions);
    }
    for first in 51..96 {
        say(&mut graph, home(), first, &[]);
        for middle in (0..256).filter(|i| !(50..96).contains(i)) {
            say(&mut graph, org(first), middle, first_conditions);
        }
    }
    graph
}

/// The fastest of many runs, in µs: what it costs when nobody else uses the machine.
fn fastest(work: &mut dyn FnMut()) -> f64 {
    let run = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    let fastest = (0..100).map(run).min().unwrap_or_default();
    fastest.as_secs_f64() * 1e6
}

fn ratios(_: &mut Criterion) {
    let key = SigningKey::from_seed(&[1; 32]);
    let message = [7_u8; 512];
    let (public, signature) = (key.public(), key.sign(&message));
    let verify = fastest(&mut || assert!(public.verifies(black_box(&message), &signature)));
    println!("one verify_strict {verify:.1} µs");

    let asked: Pattern = "fs.read.a.b.c".parse().unwrap();
    // All but the last differ from what is asked at the very end.
    let mut conditions: Vec<Pattern> = (1..TRUST_CONDITIONS_MAX)
        .map(|i| format!("fs.read.a.b.c{i}").parse().unwrap())
        .collect();
    let misses = conditions.clone();
    conditions.push(asked.clone());
    // Names are visited in order, so what rises with them is never cut short.
    let rising = |trustor: usize, trustee: usize| 50 + (trustor + trustee) % 50;
    let mut decided = graph(DENSE, &conditions, |_, _| 100);
    for i in 0..DENSE {
        let decision = Some(Decision::AtMost(Trust::FULL));
        decided.decide(org(i), decision).unwrap();
    }
    let graphs = [
        ("every path alike", alike(&conditions, &conditions)),
        ("every path alike, none counts", alike(&misses, &conditions)),
        ("39 peers, all they may say", graph(256, &[], rising)),
        ("dense, all full", graph(DENSE, &[], |_, _| 100)),
        ("dense, mixed", graph(DENSE, &[], rising)),
        (
            "dense, 16 conditions each",
            graph(DENSE, &conditions, rising),
        ),
        ("dense, conditions, all decided", decided),
    ];
    for (name, graph) in &graphs {
        let score = fastest(&mut || {
            black_box(graph.score(&home(), &org(50), Some(&asked), NOW));
        });
        let statements = graph.statements().count();
        assert!(statements > TRUST_STATEMENTS_MAX - 300, "{statements}");
        println!(
            "{name}: {statements} statements, a score {score:.0} µs, {:.1} × (goal 100)",
            score / verify
        );
    }
    let graph = &graphs[3].1;
    let picture = fastest(&mut || {
        black_box(
            graph
                .picture(&home(), Some(&org(50)), Some(&asked), NOW)
                .svg(),
        );
    });
    println!("a picture of it {picture:.0} µs, {:.0} ×", picture / verify);
}

criterion_group!(benches, ratios);
criterion_main!(benches);
