//! `doctor`: looks at everything that a working set-up needs, and says what to do about the rest.

pub(super) mod findings;

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_sdk::Agent;
use proto_spec::message::{DiscoverTools, WellKnown};
use proto_spec::succession::successors;
use proto_spec::{Timestamp, limits};

use self::findings::Findings;
use crate::certificate;
use crate::connect::{Chosen, configure};
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::files::{self, quoted};
use crate::output::Output;
use crate::probe::{self, Seen, Trouble, Trust};
use crate::programs;
use crate::time;

/// Looks for what is wrong: files, clock, TLS, the broker's key, this agent's own standing
#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// Also look at a broker's configuration on this machine
    #[arg(long, value_name = "broker.toml")]
    config: Option<PathBuf>,
}

/// A certificate that ends sooner is worth a warning.
const SOON: Duration = Duration::from_secs(30 * 86_400);
/// A clock that is off by more is worth a warning.
const OFF: Duration = Duration::from_secs(30);

pub(crate) async fn run(args: &Doctor, chosen: &Chosen, output: Output) -> Outcome {
    let mut found = Findings::default();
    if let Some(config) = &args.config {
        configuration(&mut found, config);
    }
    match chosen.context() {
        Ok(context) => outside(&mut found, &context).await,
        Err(_) if args.config.is_some() => {}
        Err(failure) => found.failed("context", failure),
    }
    found.give(output)
}

/// What lies on the broker's own machine.
fn configuration(found: &mut Findings, path: &Path) {
    let config = match broker::Config::load(path) {
        Ok(config) => config,
        Err(problems) => {
            for problem in problems.0 {
                // A parser draws what it means in several lines; here one thing is one line.
                let words: Vec<&str> = problem.split_whitespace().collect();
                found.fail("config", words.join(" "), format!("edit {}", quoted(path)));
            }
            return;
        }
    };
    found.ok("config", path.display().to_string());
    for (what, file) in [
        ("broker key file", &config.broker_key),
        ("root key file", &config.root_key),
        ("TLS key file", &config.certificate_key),
    ] {
        secret(found, what, file);
    }
    let recovery = path.parent().unwrap_or(Path::new("")).join("recovery.pem");
    if recovery.exists() {
        found.warn(
            "recovery key",
            recovery.display().to_string(),
            "move it to where this machine cannot read it",
        );
    }
}

fn secret(found: &mut Findings, what: &'static str, file: &Path) {
    let shown = file.display().to_string();
    match files::is_private(file) {
        Ok(true) => found.ok(what, shown),
        Ok(false) => {
            let next = format!(
                "chmod 600 {}; make a new one if the machine is shared",
                quoted(file)
            );
            found.fail(what, format!("{shown}: others can read or write it"), next);
        }
        Err(error) => found.fail(
            what,
            format!("{shown}: {error}"),
            "see the file that names it",
        ),
    }
}

/// What the context promises, and what the broker shows.
async fn outside(found: &mut Findings, context: &Context) {
    found.ok(
        "context",
        match &context.agent {
            Some(agent) => format!("{agent} at {}", context.broker),
            None => format!("{} (names no agent)", context.broker),
        },
    );
    if let Some(key) = &context.key_file {
        secret(found, "agent key file", key);
    }
    let Some(ca_file) = &context.ca_file else {
        return found.fail(
            "TLS",
            "the context names no ca_file",
            "add ca_file: the authority of the broker's certificate",
        );
    };
    match probe::look(&context.broker, Trust::Authority(ca_file)).await {
        Ok(seen) => {
            connection(found, &seen);
            identity(found, context, &seen);
            standing(found, context).await;
        }
        Err(Trouble::Address(why)) => found.fail("broker", why, "correct `broker` in the context"),
        Err(Trouble::Reach(why)) => found.fail(
            "reachable",
            format!("{}: {why}", context.broker),
            format!("start it: {} ORG/broker.toml; then look at firewalls in between", programs::broker()),
        ),
        Err(Trouble::Tls(why)) => found.fail(
            "TLS",
            format!("{}: {why}", context.broker),
            "compare ca_file with the broker's tls/ca.pem; is another server listening there, or one in between?",
        ),
    }
}

fn connection(found: &mut Findings, seen: &Seen) {
    found.ok("reachable", "the broker answers");
    let shown = format!(
        "{}, {}",
        seen.tls.replace('_', ".").replace("TLSv", "TLS "),
        seen.exchange
    );
    if seen.exchange.contains("MLKEM") {
        found.ok("TLS", shown);
    } else {
        found.warn(
            "TLS",
            shown,
            "no post-quantum key exchange: is a TLS terminator in between?",
        );
    }
    let now = time::now();
    match certificate::good_until(&seen.certificate) {
        Some(until) if until > now.later(SOON) => found.ok(
            "certificate",
            format!("good until {}", time::show_from(until, now)),
        ),
        Some(until) => found.warn(
            "certificate",
            format!("good until {}", time::show_from(until, now)),
            "replace it: certs/README.md",
        ),
        None => found.warn(
            "certificate",
            "its end cannot be read",
            "look at it with openssl x509",
        ),
    }
}

fn identity(found: &mut Findings, context: &Context, seen: &Seen) {
    let said = match &seen.well_known {
        Ok(said) => said,
        Err(why) => {
            return found.fail(
                "broker",
                format!("no /.well-known/fem: {why}"),
                "is this a FEM broker?",
            );
        }
    };
    match context.org() {
        Ok(org) if *org == said.org => found.ok("organisation", org.to_string()),
        Ok(org) => found.fail(
            "organisation",
            format!("the broker is {}'s, the context {org}'s", said.org),
            "correct `agent` or `broker` in the context",
        ),
        Err(failure) => found.failed("organisation", failure),
    }
    if said.key == context.broker_key {
        found.ok("broker key", said.key.fingerprint());
    } else if leads_on(context, said) {
        found.warn(
            "broker key",
            format!(
                "now {}, as the one in the context says",
                said.key.fingerprint()
            ),
            "nothing to do: the next command that speaks to the broker writes it down",
        );
    } else {
        let next = "ask an admin, over another channel, which is right; never take it from the network alone";
        found.fail(
            "broker key",
            format!(
                "the context has {}, the broker says {}",
                context.broker_key.fingerprint(),
                said.key.fingerprint()
            ),
            next,
        );
    }
    clock(
        found,
        time::now(),
        said.now,
        Duration::from_millis(said.clock_skew_max_ms),
    );
}

/// Whether the context's key names, by way of others if need be, the one that the broker says it has.
fn leads_on(context: &Context, said: &WellKnown) -> bool {
    let found = successors(&context.broker_key, &said.successions, &said.org);
    found.iter().any(|next| *next.to() == said.key)
}

pub(super) fn clock(found: &mut Findings, ours: Timestamp, theirs: Timestamp, most: Duration) {
    let apart = ours.distance(theirs);
    let shown = format!(
        "{} from the broker's, of {} allowed",
        time::rough(apart),
        time::rough(most)
    );
    if apart > most.min(limits::CLOCK_SKEW_MAX) {
        found.fail(
            "clock",
            shown,
            "set this machine's clock, or the broker's: everything else is refused as STALE",
        );
    } else if apart > OFF {
        found.warn("clock", shown, "set this machine's clock, or the broker's");
    } else {
        found.ok("clock", shown);
    }
}

/// Whether the broker takes this agent's word.
async fn standing(found: &mut Findings, context: &Context) {
    let Some(id) = &context.agent else {
        return found.warn(
            "agent",
            "the context names no agent",
            "register one: fem-cli agent register NAME",
        );
    };
    let agent = configure(context).and_then(|config| Ok(Agent::new(config)?));
    let agent = match agent {
        Ok(agent) => agent,
        Err(failure) => return found.failed("agent", failure),
    };
    let question = DiscoverTools {
        limit: Some(1),
        ..DiscoverTools::default()
    };
    match agent.discover(question).await {
        Ok(_) => found.ok("agent", format!("the broker knows {id} by this key")),
        Err(error) => {
            let failure = Failure::from(error);
            return found.failed("agent", failure);
        }
    }
    match agent.attach().await {
        Ok(()) => found.ok("attach", "a session can be attached"),
        Err(error) => found.fail(
            "attach",
            Failure::from(error).to_string(),
            "is something in between that changes TLS?",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::findings::{Health, told};
    use super::*;

    #[test]
    fn a_clock_is_fine_then_worth_a_word_then_wrong() {
        let at = |seconds| Timestamp::from_ms(1_000_000).later(Duration::from_secs(seconds));
        let most = Duration::from_secs(300);
        for (seconds, health) in [(1, Health::Ok), (31, Health::Warn), (301, Health::Fail)] {
            let mut found = Findings::default();
            clock(&mut found, at(seconds), at(0), most);
            clock(&mut found, at(0), at(seconds), most);
            assert!(
                found.0.iter().all(|line| line.health == health),
                "{seconds}: {:?}",
                found.0
            );
        }
    }

    #[test]
    fn a_finding_that_is_not_ok_says_what_to_do() {
        let mut found = Findings::default();
        secret(&mut found, "agent key", Path::new("/nonexistent/key.pem"));
        assert_eq!(found.0[0].health, Health::Fail);
        assert!(told(&found.0).contains('→'));
    }
}
