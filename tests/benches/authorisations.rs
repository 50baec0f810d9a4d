//! One million honest authorisations with 8 threads: none may be refused.
//!
//! `cargo bench -p tests --bench authorisations`. Half are decided by table lookup, half by the engine
//! (a path constraint on the call's arguments).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use proto_spec::capability::{Arguments, Check, Pattern, Proof, Question, Terms, Token, issue};
use proto_spec::{AgentId, SigningKey, Timestamp};

const AUTHORISATIONS: usize = 1_000_000;
const THREADS: usize = 8;

fn main() -> Result<()> {
    let now = Timestamp::from_ms(1_800_000_000_000);
    let (root, holder) = (
        SigningKey::from_seed(&[1; 32]),
        SigningKey::from_seed(&[2; 32]),
    );
    let caller: AgentId = "caller@acme".parse()?;
    let provider: AgentId = "fs@acme".parse()?;
    let token = |checks: Vec<Check>| -> Result<Token> {
        let terms = Terms {
            agent: caller.clone(),
            holder: holder.public(),
            capabilities: vec!["fs.*".parse()?],
            issued: now,
            not_before: None,
            expires: now.later(Duration::from_secs(3_600)),
            checks,
            sandbox: None,
            calls: None,
        };
        let unsealed = issue::grant(&root, &"acme".parse()?, &terms, [3; 32])?;
        Ok(Token::open(&issue::seal(&unsealed)?, &[root.public()])?)
    };
    let kinds = [
        ("table", token(Vec::new())?),
        (
            "engine",
            token(Check::where_clause("path under /srv/reports")?)?,
        ),
    ];
    let required: Pattern = "fs.read".parse()?;
    let question = Question {
        required: &required,
        tool: Some("fs.read"),
        caller: Some(&caller),
        via: None,
        provider: Some(&provider),
        now,
        trust: None,
        proof: Proof::Key,
        arguments: Arguments::Json(r#"{"path":"/srv/reports/q3.txt","limit":100}"#),
    };
    for (kind, token) in &kinds {
        let refused = AtomicUsize::new(0);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..AUTHORISATIONS / kinds.len() / THREADS {
                        if token.permits(&question).is_err() {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let each = begun.elapsed().as_secs_f64() * 1e6 / (AUTHORISATIONS / kinds.len()) as f64;
        println!(
            "{kind}: {} authorisations, {THREADS} threads, {} refused, {each:.2} µs of wall time each",
            AUTHORISATIONS / kinds.len(),
            refused.load(Ordering::Relaxed),
        );
    }
    Ok(())
}
