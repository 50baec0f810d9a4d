//! `demo`: the whole of FEM in one minute, for real.
//!
//! One organisation, its broker and two agents, each in a process of its own, in a directory that is
//! gone afterwards. Every line with a mark is an expectation that was checked: one that fails ends the
//! demo with an exit code of its own.

mod process;
pub(crate) mod role;
mod stage;
mod tell;

use proto_spec::Code;
use proto_spec::identity::AgentId;

use crate::failure::Outcome;
use crate::probe;
use crate::time;
use process::{Order, Said};
use stage::Stage;
use tell::Teller;

/// Shows what FEM does, for real: a broker, two agents, calls allowed and refused, a revocation
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// Keep the directory, to look at what was made
    #[arg(long)]
    keep: bool,
}

/// What the files agent serves, and the researcher may read a part of.
const REPORT: &str = "Q3 revenue: 4.2 M, up 11 %";
const SALARIES: &str = "nobody but payroll reads this";

pub(crate) async fn run(args: &Demo) -> Outcome {
    let teller = Teller::new();
    let told = tokio::select! {
        told = story(&teller, args.keep) => told,
        _ = tokio::signal::ctrl_c() => Err(crate::failure::Failure::fault("stopped; everything is cleaned up")),
    };
    told?;
    teller.end(args.keep)
}

async fn story(teller: &Teller, keep: bool) -> Outcome {
    let mut stage = Stage::set(keep)?;
    teller.begin(stage.dir())?;
    organisation(teller, &stage)?;
    broker(teller, &mut stage).await?;
    asking(teller, &mut stage).await?;
    deciding(teller, &mut stage).await?;
    calling(teller, &mut stage).await?;
    not_granted(teller, &mut stage).await?;
    out_of_bounds(teller, &mut stage).await?;
    revoking(teller, &mut stage).await?;
    stage.end().await
}

fn organisation(teller: &Teller, stage: &Stage) -> Outcome {
    teller.step("An organisation", "fem-cli init acme")?;
    teller.say(
        "Made: a root key that signs capabilities, a key for the broker, a recovery key to be",
    )?;
    teller.say("kept offline, a first admin, certificates, and an empty journal.")?;
    teller.prove(
        stage.secrets_are_private()?,
        "every secret file is readable by its owner alone",
        "",
    )
}

async fn broker(teller: &Teller, stage: &mut Stage) -> Outcome {
    teller.step("Its broker", "fem-broker acme/broker.toml")?;
    let (process, url) = stage.start_broker().await?;
    teller.say(&format!("Process {process} listens at {url}."))?;
    let seen = probe::look(&url, probe::Trust::Authority(&stage.ca_file())).await;
    let (tls, exchange) = match &seen {
        Ok(seen) => (seen.tls.as_str(), seen.exchange.as_str()),
        Err(_) => ("no connection", ""),
    };
    let hybrid = tls == "TLSv1_3" && exchange == "X25519MLKEM768";
    teller.prove(
        hybrid,
        "it speaks TLS 1.3 with post-quantum key exchange (X25519MLKEM768)",
        format!("{tls} {exchange}"),
    )
}

async fn asking(teller: &Teller, stage: &mut Stage) -> Outcome {
    teller.step("Two agents ask to join", "fem-cli agent register NAME")?;
    for name in [stage::FILES, stage::RESEARCHER] {
        let (process, fingerprint) = stage.start_agent(name).await?;
        teller.say(&format!("{name:<10}  process {process}, key {fingerprint}"))?;
        let said = stage.order(name, &Order::Register).await?;
        teller.prove(
            said == Said::Pending,
            &format!("{name} proved that it has its key, and waits: asking grants nothing"),
            &said,
        )?;
    }
    let said = stage.read(&stage.report()).await?;
    teller.refused(
        &said,
        Code::NotAuthentic,
        "a call from an agent that nobody approved",
    )
}

async fn deciding(teller: &Teller, stage: &mut Stage) -> Outcome {
    let bounds = format!("path under {}", stage.reports().display());
    teller.step(
        "An admin decides",
        "fem-cli agent approve NAME --fingerprint …",
    )?;
    for name in [stage::FILES, stage::RESEARCHER] {
        let approved = stage.approve(name).await?;
        teller.prove(
            approved,
            &format!("{name} is approved: the fingerprint is the one that it printed"),
            "",
        )?;
    }
    teller
        .command("fem-cli token issue researcher --capability files.read --where 'path under …'")?;
    let until = stage.grant(&bounds).await?;
    teller.say(&format!(
        "researcher may use files.read until {}, but only where",
        time::show(until)
    ))?;
    teller.say(&bounds)?;
    let offered = stage.serve().await?;
    teller.prove(
        offered == ["files.delete", "files.read"],
        "files serves two tools: files.read and files.delete",
        offered.join(" "),
    )
}

async fn calling(teller: &Teller, stage: &mut Stage) -> Outcome {
    teller.step(
        "A call",
        "fem-cli call files@acme files.read --arg path=…/reports/q3.txt",
    )?;
    let attached = stage.order(stage::RESEARCHER, &Order::Attach).await?;
    teller.prove(
        attached == Said::Done,
        "researcher has an attached session: one connection that stays open",
        &attached,
    )?;
    let said = stage.read(&stage.report()).await?;
    teller.prove(
        said == Said::Answer(REPORT.into()),
        &format!("researcher got the file: “{REPORT}”"),
        &said,
    )?;
    teller
        .say("The broker checked signature, freshness and capability; files checked them again;")?;
    teller.say("the answer is signed by files itself, and researcher checked that.")
}

async fn not_granted(teller: &Teller, stage: &mut Stage) -> Outcome {
    teller.step(
        "A tool that was not granted",
        "fem-cli call files@acme files.delete --arg path=…/reports/q3.txt",
    )?;
    let said = stage.call("files.delete", &stage.report()).await?;
    teller.refused(
        &said,
        Code::Denied,
        "files.delete: researcher holds files.read and nothing else",
    )?;
    let there = std::fs::read_to_string(stage.report()).is_ok_and(|text| text == REPORT);
    teller.prove(there, "the file is still there", "")
}

async fn out_of_bounds(teller: &Teller, stage: &mut Stage) -> Outcome {
    teller.step(
        "Arguments outside the grant",
        "fem-cli call files@acme files.read --arg path=…/private/salaries.txt",
    )?;
    let said = stage.read(&stage.salaries()).await?;
    teller.refused(
        &said,
        Code::Denied,
        "the same tool, another directory: private/salaries.txt",
    )?;
    let sideways = stage.reports().join("../private/salaries.txt");
    let said = stage.read(&sideways).await?;
    teller.refused(
        &said,
        Code::Denied,
        "the long way round: reports/../private/salaries.txt",
    )?;
    let served = stage.served().await?;
    teller.prove(
        served == 1,
        "files ran one tool so far, for the one call that was allowed",
        served,
    )
}

async fn revoking(teller: &Teller, stage: &mut Stage) -> Outcome {
    teller.step("A revocation", "fem-cli token revoke ID")?;
    let said = stage.read(&stage.report()).await?;
    teller.prove(
        said == Said::Answer(REPORT.into()),
        "just before, researcher reads the report once more",
        &said,
    )?;
    stage.revoke().await?;
    let said = stage.read(&stage.report()).await?;
    teller.refused(
        &said,
        Code::Denied,
        "the very next call, on the connection that was open all along",
    )?;
    let sessions = stage.sessions(stage::RESEARCHER).await?;
    teller.prove(
        sessions == 1,
        "that connection is still open: what ended is the right, not the session",
        format!("{sessions} sessions"),
    )
}

/// `name@acme`.
fn agent(name: &str) -> Result<AgentId, proto_spec::identity::BadName> {
    format!("{name}@{}", stage::ORG).parse()
}
