//! What the broker counts. Every metric's name stands in [`Metrics::render`], once.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use proto_spec::{Code, Kind};

use crate::clock::Clock;
use crate::state::State;

/// Counters since the start. Gauges are read from the state when they are asked for.
#[derive(Debug)]
pub struct Metrics {
    accepted: Vec<AtomicU64>,
    refused: Vec<AtomicU64>,
    call_ms: Histogram,
}

/// Upper bounds of the latency buckets, in milliseconds.
const BUCKETS_MS: [u64; 10] = [1, 2, 5, 10, 50, 100, 500, 1_000, 10_000, 60_000];

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS_MS.len()],
    count: AtomicU64,
    sum: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        let zeros = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self {
            accepted: zeros(Kind::ALL.len()),
            refused: zeros(Code::ALL.len()),
            call_ms: Histogram::default(),
        }
    }
}

impl Metrics {
    /// An envelope passed admission.
    pub fn accepted(&self, kind: Kind) {
        if let Some(counter) = self.accepted.get(kind as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Something was refused.
    pub fn refused(&self, code: Code) {
        if let Some(counter) = self.refused.get(code as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A call was answered by its provider.
    pub fn answered(&self, ms: u64) {
        for (bucket, bound) in self.call_ms.buckets.iter().zip(BUCKETS_MS) {
            if ms <= bound {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.call_ms.count.fetch_add(1, Ordering::Relaxed);
        self.call_ms.sum.fetch_add(ms, Ordering::Relaxed);
    }

    /// Prometheus text exposition, version 0.0.4.
    #[must_use]
    pub fn render(&self, state: &State, clock: &Clock) -> String {
        let mut out = String::new();
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        head(
            &mut out,
            "fem_envelopes_accepted_total",
            "counter",
            "Envelopes that passed admission, by type.",
        );
        for (kind, count) in Kind::ALL.iter().zip(&self.accepted) {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "fem_envelopes_accepted_total{{type=\"{kind}\"}} {count}"
            );
        }
        head(
            &mut out,
            "fem_envelopes_refused_total",
            "counter",
            "Envelopes and calls that were refused, by code.",
        );
        for (code, count) in Code::ALL.iter().zip(&self.refused) {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "fem_envelopes_refused_total{{code=\"{code}\"}} {count}"
            );
        }
        head(
            &mut out,
            "fem_call_duration_ms",
            "histogram",
            "From a call's receipt to its result, in milliseconds.",
        );
        for (bucket, bound) in self.call_ms.buckets.iter().zip(BUCKETS_MS) {
            let count = bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "fem_call_duration_ms_bucket{{le=\"{bound}\"}} {count}");
        }
        let count = self.call_ms.count.load(Ordering::Relaxed);
        let sum = self.call_ms.sum.load(Ordering::Relaxed);
        let _ = writeln!(out, "fem_call_duration_ms_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(
            out,
            "fem_call_duration_ms_sum {sum}\nfem_call_duration_ms_count {count}"
        );
        for (name, help, value) in [
            ("fem_sessions", "Attached sessions.", state.sessions.len()),
            (
                "fem_calls_in_flight",
                "Calls delivered and not answered.",
                state.calls.len(),
            ),
            (
                "fem_nonces_remembered",
                "Nonces in the replay window.",
                state.replay.len(),
            ),
            (
                "fem_requests_pending",
                "Registrations that wait for an admin.",
                state.pending.len(),
            ),
            (
                "fem_clock_alarm",
                "1 while CLOCK is raised: the machine's clock is behind the records, or was set.",
                usize::from(clock.alarm().is_some()),
            ),
            (
                "fem_clock_departure_ms",
                "How far the machine's clock is from the broker's time, in milliseconds.",
                clock.departure().as_millis() as usize,
            ),
        ] {
            head(&mut out, name, "gauge", help);
            let _ = writeln!(out, "{name} {value}");
        }
        let name = "fem_peer_revocation_age_ms";
        let help = "How old the view of a linked peer's dead keys is, in milliseconds.";
        head(&mut out, name, "gauge", help);
        for link in state.links.all() {
            let age = link.age(clock.now()).as_millis();
            let _ = writeln!(out, "{name}{{peer=\"{}\"}} {age}", link.org);
        }
        out
    }
}
