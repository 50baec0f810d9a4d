//! What tokens cost: opening, deciding by table, deciding with the engine, and the worst that the gate
//! lets through. The gate's promise is that the last stays under 1 ms beyond its signatures.

#![expect(
    clippy::disallowed_methods,
    reason = "tests read files and measure; the core does neither"
)]
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use proto_spec::capability::{Arguments, Pattern, Question, Token};

#[path = "../tests/fixture/mod.rs"]
mod fixture;
use fixture::*;

/// The most facts that a call's arguments can become, all of them strings of the longest kind.
fn fullest_arguments() -> String {
    let members =
        (0..32).map(|i| format!("\"k{i:02}{}\":\"/{}\"", "p".repeat(900), "v".repeat(1_020)));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// Adds as many of `check` (with a counter for `#`) as the gate takes, and says what it was.
fn as_many(name: &str, check: &str) -> (String, Token) {
    let held: Vec<String> = (0..63).map(|i| format!("c{i}")).collect();
    let mut held: Vec<&str> = held.iter().map(String::as_str).collect();
    held.push("fs.*");
    let with = |n: usize| {
        let checks = (0..n).map(|i| format!("{};", check.replace('#', &i.to_string())));
        let token = first_party(&mint(&terms(&held)), &checks.collect::<String>());
        let bytes = sealed_by_hand(&token);
        open(&bytes).map(|token| (bytes.len(), token))
    };
    let (mut low, mut high) = (0, 2_000);
    while low + 1 < high {
        let middle = (low + high) / 2;
        if with(middle).is_ok() {
            low = middle;
        } else {
            high = middle;
        }
    }
    let (bytes, token) = with(low).unwrap();
    (
        format!(
            "{name} ×{low}, {bytes} B, {:?}",
            with(high).err().map(|r| r.code())
        ),
        token,
    )
}

/// The fastest of many runs: what it costs when nobody else uses the machine.
fn fastest(token: &Token, q: &Question<'_>) -> Duration {
    let run = |_| {
        let start = Instant::now();
        let _ = black_box(token.permits(q));
        start.elapsed()
    };
    (0..100).map(run).min().unwrap_or_default()
}

fn decisions(c: &mut Criterion) {
    let asked: Pattern = "fs.a.b.c.d.e.f.g.h.i.j.k.l.m.n".parse().unwrap();
    let arguments = fullest_arguments();
    let q = Question {
        arguments: Arguments::Json(&arguments),
        ..question(&asked)
    };
    let mut worst: Vec<(String, Token)> = vec![
        ("no check".into(), where_token("check if true")),
        ("one arg check".into(), where_token("check if arg($p, $v)")),
        as_many("true", "check if true"),
        as_many(
            "atoms and arg",
            "check if tool($a), tool($b), tool($c), tool($d), tool($e), tool($f), tool($g), caller($h), $h == \"\" or arg(\"/k\", \"\")",
        ),
        as_many(
            "failing tool and arg",
            "check if tool($t), $t == \"x\" or arg(\"/k\", \"\")",
        ),
        as_many(
            "join capability",
            "check if capability($a), tool($b), $a == $b",
        ),
        as_many("tool", "check if tool($t), $t != \"x\""),
        as_many("strings", "check if tool(\"x#\") or tool(\"fs.read_file\")"),
        as_many(
            "atoms",
            "check if tool($a), tool($b), tool($c), tool($d), tool($e), tool($f), tool($g), caller($h)",
        ),
        as_many("failing tool", "check if tool($t), $t == \"x\""),
        as_many("arg", "check if arg($p, $v), $v == \"x#\""),
        as_many(
            "arg contains",
            "check if path($p, $v), $v.contains(\"vvvvvvvvvvvvvvvvvvvvx#\")",
        ),
        as_many(
            "arg contains ×8",
            &format!(
                "check if path($p, $v), {}",
                ["$v.contains(\"vvvvvvvvvvx\")"; 8].join(" || ")
            ),
        ),
        as_many(
            "arg contains ×32",
            &format!(
                "check if path($p, $v), {}",
                ["$v.contains(\"vvvvvvvvvvx\")"; 31].join(" || ")
            ),
        ),
        as_many(
            "all prefix",
            "check all path($p, $v), $v.starts_with(\"/vvvvvvv\"), $p != \"#\"",
        ),
        as_many(
            "nested",
            "check if path($p, $v), $v == \"0\" || ($v == \"1\" || ($v == \"2\" || ($v == \"3\" || ($v == \"4\" || $v == \"5\"))))",
        ),
        as_many(
            "expressions",
            &format!("check if path($p, $v), {}", ["$v != \"x\""; 30].join(", ")),
        ),
        as_many(
            "failing last",
            &format!(
                "check if path($p, $v), {}, $v == \"\"",
                ["$v != \"x\""; 30].join(", ")
            ),
        ),
        as_many(
            "join covers",
            "check if covers($a), covers($b), $a == $b, $a == \"#\"",
        ),
        as_many(
            "join arg covers",
            "check if arg($p, $a), covers($b), $a == $b",
        ),
        as_many("join self", "check if path($p, $v), arg($p, $w), $v != $w"),
        as_many(
            "variables",
            "check if arg(\"/k\", $a), arg($b, $c), tool($d), caller($e), provider($f), time($g), trust($h), $a == $h",
        ),
        as_many(
            "path under",
            "check all path($p, $v), !($p == \"/path\" || $p.starts_with(\"/path/\")) || $v == \"/srv\" || $v.starts_with(\"/srv/\")",
        ),
    ];
    worst.sort_by_cached_key(|(_, token)| std::cmp::Reverse(fastest(token, &q)));
    for (name, token) in &worst {
        println!("{:>10.1?}  {name}", fastest(token, &q));
    }

    let mut group = c.benchmark_group("token");
    let one = sealed(&mint(&terms(&["fs.*", "net.get"])));
    let two = sealed(&delegated(
        &mint(&terms(&["fs.*"])),
        HOLDER,
        ALICE,
        &only(&["fs.a.*"]),
    ));
    group.bench_function("open, one block", |b| {
        b.iter(|| open(black_box(&one)).unwrap());
    });
    group.bench_function("open, delegated", |b| {
        b.iter(|| open(black_box(&two)).unwrap());
    });
    let standard = open(&two).unwrap();
    group.bench_function("permits, standard", |b| {
        b.iter(|| standard.permits(black_box(&q)).unwrap());
    });
    let small = Question {
        arguments: Arguments::Json("{\"path\":\"/srv/x\",\"mode\":\"r\"}"),
        ..q
    };
    let path = where_token("path under /srv");
    group.bench_function("permits, path under", |b| {
        b.iter(|| path.permits(black_box(&small)).unwrap());
    });
    let trust = where_token("check if trust($t), $t >= 50");
    group.bench_function("permits, trust", |b| {
        b.iter(|| trust.permits(black_box(&q)).unwrap());
    });
    group.finish();
}

/// The middle of what `work` takes, in µs.
fn median(work: &mut dyn FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..400)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Ratios against floors of the same run: a cached decision beside one signature, and a cold token of
/// one block beside the engine's own parsing, verifying and authorising of it.
fn ratios(_: &mut Criterion) {
    let bytes = sealed(&mint(&terms(&["fs.*", "net.get"])));
    let asked: Pattern = "fs.a.b".parse().unwrap();
    let q = question(&asked);
    let root = key(ROOT).public();
    let (signer, public) = (key(HOLDER), key(HOLDER).public());
    let message = [7_u8; 512];
    let signature = signer.sign(&message);
    let verify = median(&mut || {
        assert!(public.verifies(black_box(&message), &signature));
    });
    let token = open(&bytes).unwrap();
    let cached = median(&mut || {
        for _ in 0..100 {
            token.permits(black_box(&q)).unwrap();
        }
    }) / 100.0;
    println!(
        "cached decision {cached:.3} µs, one verify_strict {verify:.1} µs: {:.4} × (goal 0.05)",
        cached / verify
    );
    let engine_root =
        biscuit_auth::PublicKey::from_bytes(root.as_bytes(), biscuit_auth::Algorithm::Ed25519)
            .unwrap();
    let date = biscuit_auth::builder::Term::Date(q.now.as_secs());
    let time = biscuit_auth::builder::Fact::new("time".into(), vec![date]);
    let mut ours = || {
        open(black_box(&bytes)).unwrap().permits(&q).unwrap();
    };
    let mut bare = || {
        let token = biscuit_auth::Biscuit::from(black_box(&bytes), engine_root).unwrap();
        let mut authorizer = biscuit_auth::AuthorizerBuilder::new()
            .fact(time.clone())
            .unwrap();
        for covers in asked.covered_by() {
            authorizer = authorizer
                .fact(format!("covers(\"{covers}\")").as_str())
                .unwrap();
        }
        let mut authorizer = authorizer
            .policy("allow if capability($c), covers($c)")
            .unwrap()
            .build(&token)
            .unwrap();
        authorizer.authorize().unwrap();
    };
    let (ours, bare) = (median(&mut ours), median(&mut bare));
    println!(
        "cold token of one block {ours:.1} µs, biscuit-auth alone {bare:.1} µs: {:.2} × (goal 1.5)",
        ours / bare
    );
}

criterion_group!(benches, ratios, decisions);
criterion_main!(benches);
