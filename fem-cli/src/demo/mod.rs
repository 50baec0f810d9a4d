//! `demo`: the whole of FEM in one minute, for real.
//!
//! Two organisations, their brokers and three agents, each in a process of its own, in a directory that
//! is gone afterwards. Every line with a mark is an expectation that was checked: one that fails ends the
//! demo with an exit code of its own.

mod house;
mod peering;
mod process;
pub(crate) mod role;
mod stage;
mod tell;

use proto_spec::Code;

use crate::failure::Outcome;
use crate::probe::{self, Trust};
use crate::time;
use process::{Order, Said};
use stage::{ANALYST, FILES, GLOBEX, RESEARCHER, Stage};
use tell::Teller;

/// Shows what FEM does, for real: two organisations, calls allowed and refused, revocations
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
    organisations(teller, &mut stage)?;
    brokers(teller, &mut stage).await?;
    asking(teller, &mut stage).await?;
    deciding(teller, &mut stage).await?;
    calling(teller, &mut stage).await?;
    not_granted(teller, &mut stage).await?;
    revoking(teller, &mut stage).await?;
    peering(teller, &mut stage).await?;
    calling_across(teller, &mut stage).await?;
    revoking_across(teller, &mut stage).await?;
    stage.end().await
}

fn organisations(teller: &Teller, stage: &mut Stage) -> Outcome {
    teller.step(
        "Two organisations",
        "fem-cli init acme; fem-cli init globex",
    )?;
    teller.say(
        "Made for each: a root key that signs capabilities, a key for the broker, a recovery",
    )?;
    teller.say("key to be kept offline, a first admin, certificates, and an empty journal.")?;
    let mut private = true;
    for house in stage.houses() {
        private &= house.secrets_are_private()?;
    }
    teller.prove(
        private,
        "every secret file is readable by its owner alone",
        "",
    )
}

async fn brokers(teller: &Teller, stage: &mut Stage) -> Outcome {
    teller.step("Their brokers", "fem-broker acme/broker.toml")?;
    let mut shown = Vec::new();
    for house in stage.houses() {
        let (process, url) = house.start_broker().await?;
        teller.say(&format!(
            "{:<6}  process {process} listens at {url}",
            house.org
        ))?;
        shown.push(
            match probe::look(&url, Trust::Authority(&house.ca_file())).await {
                Ok(seen) => format!("{} {}", seen.tls, seen.exchange),
                Err(_) => "no connection".into(),
            },
        );
    }
    teller.prove(
        shown.iter().all(|one| one == "TLSv1_3 X25519MLKEM768"),
        "both speak TLS 1.3 with post-quantum key exchange (X25519MLKEM768)",
        shown.join(", "),
    )
}

async fn asking(teller: &Teller, stage: &mut Stage) -> Outcome {
    teller.step("Three agents ask to join", "fem-cli agent register NAME")?;
    for name in [FILES, RESEARCHER, ANALYST] {
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
        &[Code::NotAuthentic],
        "a call from an agent that nobody approved",
    )
}

async fn deciding(teller: &Teller, stage: &mut Stage) -> Outcome {
    let bounds = stage.bounds();
    teller.step(
        "Each admin decides",
        "fem-cli agent approve NAME --fingerprint …",
    )?;
    for name in [FILES, RESEARCHER, ANALYST] {
        let approved = stage.approve(name).await?;
        teller.prove(
            approved,
            &format!(
                "{name} is approved by {}: the fingerprint is the one that it printed",
                stage.house_of(name).org
            ),
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
    let attached = stage.order(RESEARCHER, &Order::Attach).await?;
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
        "What was not granted",
        "fem-cli call files@acme files.delete --arg path=…/reports/q3.txt",
    )?;
    let said = stage
        .call(RESEARCHER, "files.delete", &stage.report())
        .await?;
    teller.refused(
        &said,
        &[Code::Denied],
        "another tool: researcher holds files.read and nothing else",
    )?;
    let said = stage.read(&stage.salaries()).await?;
    teller.refused(
        &said,
        &[Code::Denied],
        "the same tool, another directory: private/salaries.txt",
    )?;
    let sideways = stage.reports().join("../private/salaries.txt");
    let said = stage.read(&sideways).await?;
    teller.refused(
        &said,
        &[Code::Denied],
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
    stage.revoke(RESEARCHER).await?;
    let said = stage.read(&stage.report()).await?;
    teller.refused(
        &said,
        &[Code::Denied],
        "the very next call, on the connection that was open all along",
    )?;
    let sessions = stage.sessions(RESEARCHER).await?;
    teller.prove(
        sessions == 1,
        "that connection is still open: what ended is the right, not the session",
        format!("{sessions} sessions"),
    )
}

async fn peering(teller: &Teller, stage: &mut Stage) -> Outcome {
    teller.step(
        "The two accept each other",
        "fem-cli peer accept globex.peer --fingerprint …",
    )?;
    teller.say("Each admin takes the other organisation's signed file, having compared its")?;
    teller.say("fingerprint. Neither broker takes the other's word for what may be done.")?;
    let compared = stage.peer().await?;
    teller.prove(
        compared,
        "each file's key is the one that the other admin names; the brokers are connected",
        "",
    )?;
    let said = stage.call(ANALYST, "files.read", &stage.report()).await?;
    teller.refused(
        &said,
        &[Code::Denied],
        "analyst@globex calls files@acme: being peers permits nothing",
    )
}

async fn calling_across(teller: &Teller, stage: &mut Stage) -> Outcome {
    teller.step(
        "A call across",
        "fem-cli peer grant globex files.read --agents files --where 'path under …'",
    )?;
    teller.command("fem-cli token issue analyst --capability peer.acme.files.read")?;
    teller.say("Two yeses: acme's, who owns the tool, and globex's, whose agent calls it.")?;
    let bounds = stage.bounds();
    stage.grant_across(&bounds).await?;
    let said = stage.call(ANALYST, "files.read", &stage.report()).await?;
    teller.prove(
        said == Said::Answer(REPORT.into()),
        &format!("analyst got the file: “{REPORT}”"),
        &said,
    )?;
    let said = stage.call(ANALYST, "files.read", &stage.salaries()).await?;
    teller.refused(
        &said,
        &[Code::Denied],
        "acme's bounds hold for globex: private/salaries.txt",
    )
}

async fn revoking_across(teller: &Teller, stage: &mut Stage) -> Outcome {
    teller.step("A revocation across", "fem-cli token revoke ID")?;
    stage.revoke(GLOBEX).await?;
    teller.say("acme took its grant to globex back, and asked nobody.")?;
    let said = stage.call(ANALYST, "files.read", &stage.report()).await?;
    // Refused by acme, or by globex, where acme's word is quicker than the call.
    teller.refused(
        &said,
        &[Code::TokenRevoked, Code::Denied, Code::Unavailable],
        "the very next call of analyst",
    )
}
