//! `trust`: how far organisations trust each other, and why.

use std::fmt::Write as _;
use std::path::PathBuf;

use proto_spec::message::{
    Ack, Trust as Percent, TrustDecide, TrustDecided, TrustRecord, TrustShow, TrustState,
};
use proto_spec::trust::{Decision, Level, Path, Picture, Score};
use proto_spec::{Kind, Org, Pattern};
use serde::Serialize;
use serde_json::json;

use crate::connect::Chosen;
use crate::failure::Outcome;
use crate::files::{self, Readers, quoted};
use crate::output::{Output, Table, join, note, print};
use crate::request::{self, unexpected};
use crate::time::{self, When};

/// How far organisations trust each other: states it, decides, and shows what follows
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What you state is signed by your broker and told to all your peers, who pass it on to theirs. It permits
nothing by itself: a grant that says so asks for a score,
  fem-cli peer grant globex 'fs.*' --where 'check if trust($s), $s >= 60'
A score is that of the best path of statements, at most three long; it falls with every step.
From 75 on an organisation is trusted, from 40 a partner, below it external.")]
pub(crate) struct Trust {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    State(State),
    /// Takes back what was stated of an organisation
    Withdraw(Which),
    Decide(Decide),
    /// Lists what this organisation states, and what was decided
    List,
    Show(Show),
}

/// States how far this organisation trusts another, for everybody to read
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fem-cli trust state globex 80
  fem-cli trust state globex 90 --for 'fs.*' --expires 30d")]
struct State {
    /// Of which organisation
    org: Org,
    /// How far: 0, not at all, to 100, as yourself
    #[arg(value_parser = percent)]
    trust: Percent,
    /// Only for what this pattern covers: fs.read, 'fs.*'; may be repeated
    #[arg(long = "for", value_name = "PATTERN")]
    capabilities: Vec<Pattern>,
    /// Until when: 2026-12-31T18:00:00Z, or from now: 30d [default: 90d, which is the longest]
    #[arg(long, value_name = "TIME")]
    expires: Option<When>,
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Of which organisation
    org: Org,
}

/// Decides where an organisation stands here, whatever is said of it; nobody is told
#[derive(Debug, clap::Args)]
#[command(after_help = "\
  revoked     nothing of it counts, nothing leads through it, and its agents call nothing here
  system      as this organisation itself: 100
  0 to 100    at most so far
  undecided   as its score says

Examples:
  fem-cli trust decide initech revoked
  fem-cli trust decide initech 50")]
struct Decide {
    /// About which organisation
    org: Org,
    /// What
    #[arg(value_name = "revoked|system|0..100|undecided", value_parser = decision)]
    decision: Decided,
}

/// What an admin decides, or that nothing is decided any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Decided(Option<Decision>);

/// Shows how far one organisation trusts another, by which paths, and where that one stands here
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fem-cli trust show acme initech
  fem-cli trust show acme initech --for fs.read --format svg --out trust.svg
  fem-cli trust show acme initech --format dot | dot -Tpng -o trust.png")]
struct Show {
    /// Who trusts
    from: Org,
    /// Whom
    to: Org,
    /// For what: fs.read, 'fs.*' [default: what is stated without a condition]
    #[arg(long = "for", value_name = "PATTERN")]
    capability: Option<Pattern>,
    /// As text, or as a picture of all that surrounds it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Writes it to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// The score and its paths
    Text,
    /// A picture
    Svg,
    /// A graph in the language of Graphviz
    Dot,
}

fn percent(text: &str) -> Result<Percent, String> {
    let number: u8 = text.parse().map_err(|_| BAD_PERCENT.to_owned())?;
    Percent::try_from(number).map_err(|_| BAD_PERCENT.into())
}

const BAD_PERCENT: &str = "trust is a whole number from 0 to 100";

fn decision(text: &str) -> Result<Decided, String> {
    Ok(Decided(match text {
        "undecided" => None,
        "revoked" => Some(Decision::Revoked),
        "system" => Some(Decision::System),
        number => Some(Decision::AtMost(percent(number).map_err(
            |_| "it is revoked, system, undecided, or a number from 0 to 100",
        )?)),
    }))
}

pub(crate) async fn run(args: Trust, chosen: &Chosen, output: Output) -> Outcome {
    match args.act {
        Act::State(args) => {
            let body = TrustState {
                trustee: args.org,
                trust: args.trust,
                capabilities: args.capabilities,
                expires: args.expires.map(|when| when.from(time::now())),
            };
            said(chosen, output, Kind::AdminTrustState, &body).await
        }
        Act::Withdraw(which) => {
            let body = TrustState {
                trustee: which.org,
                trust: Percent::NONE,
                capabilities: Vec::new(),
                expires: None,
            };
            said(chosen, output, Kind::AdminTrustState, &body).await
        }
        Act::Decide(args) => {
            let body = TrustDecide {
                org: args.org,
                decision: args.decision.0,
            };
            said(chosen, output, Kind::AdminTrustDecide, &body).await
        }
        Act::List => said(chosen, output, Kind::AdminTrustList, &json!({})).await,
        Act::Show(args) => show(args, chosen, output).await,
    }
}

/// Does an act, and lists what is stated and decided from then on.
async fn said(chosen: &Chosen, output: Output, kind: Kind, body: &impl Serialize) -> Outcome {
    let ack = request::act(&chosen.agent()?, kind, body).await?;
    let Ack::TrustSaid {
        statements,
        decisions,
    } = &ack
    else {
        return Err(unexpected(&ack));
    };
    let value = json!({"statements": statements, "decisions": decisions});
    output.list(&value, || table(statements, decisions))
}

fn table(statements: &[TrustRecord], decisions: &[TrustDecided]) -> Table {
    let mut table = Table::new(
        &["organisation", "stated", "for", "until", "decided"],
        "Nothing is stated of anybody, and nothing decided: fem-cli trust state ORG 0..100",
    );
    let decided = |org: &Org| decisions.iter().find(|one| one.org == *org);
    for one in statements {
        table.row([
            one.trustee.as_str(),
            &one.trust.to_string(),
            &join(&one.capabilities),
            &time::show_from(one.expires, time::now()),
            &decided(&one.trustee).map_or(String::new(), in_words),
        ]);
    }
    let is_stated = |org: &Org| statements.iter().any(|said| said.trustee == *org);
    for one in decisions.iter().filter(|one| !is_stated(&one.org)) {
        table.row([one.org.as_str(), "", "", "", &in_words(one)]);
    }
    table
}

fn in_words(decided: &TrustDecided) -> String {
    match decided.decision {
        Decision::System => "system".into(),
        Decision::Revoked => "revoked".into(),
        Decision::AtMost(most) => format!("at most {most}"),
    }
}

async fn show(args: Show, chosen: &Chosen, output: Output) -> Outcome {
    let body = TrustShow {
        from: args.from,
        to: args.to,
        capability: args.capability,
    };
    let ack = request::act(&chosen.agent()?, Kind::AdminTrustShow, &body).await?;
    let Ack::Trust {
        level,
        score,
        picture,
        ..
    } = &ack
    else {
        return Err(unexpected(&ack));
    };
    let shown = match args.format {
        Format::Text if output.json => serde_json::to_string(&ack)?,
        Format::Text => explained(&body, *level, score.as_ref()),
        format => drawn(picture, format),
    };
    match &args.out {
        None => print(&shown),
        Some(file) => {
            files::create(file, shown.as_bytes(), Readers::All)?;
            note(&format!("Wrote {}.", quoted(file)));
            Ok(())
        }
    }
}

fn drawn(picture: &Picture, format: Format) -> String {
    match format {
        Format::Dot => picture.dot(),
        _ => picture.svg(),
    }
}

fn explained(asked: &TrustShow, level: Level, score: Option<&Score>) -> String {
    let TrustShow {
        from,
        to,
        capability,
    } = asked;
    let what = capability
        .as_ref()
        .map_or(String::new(), |what| format!(" for {what}"));
    let Some(score) = score else {
        return format!(
            "{from} does not know how far to trust {to}{what}: no path of statements leads there.\n\
             {to} is {level} here."
        );
    };
    let mut shown = format!(
        "{from} trusts {to} {} of 100{what}, with confidence {}. {to} is {level} here.\n",
        score.value, score.confidence
    );
    for path in &score.paths {
        let _ = writeln!(shown, "  {:>3}  {}", path.value, in_steps(path));
    }
    shown
}

/// `acme 90 → globex 80 → initech`.
fn in_steps(path: &Path) -> String {
    let mut steps = String::new();
    for hop in &path.hops {
        let _ = write!(steps, "{} {} → ", hop.trustor, hop.trust);
    }
    let last = path.hops.last().map(|hop| hop.trustee.to_string());
    steps + &last.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_read_as_it_is_shown() {
        let read = |text: &str| decision(text).map(|one| one.0);
        assert_eq!(read("undecided"), Ok(None));
        assert_eq!(read("revoked"), Ok(Some(Decision::Revoked)));
        let most = Percent::try_from(50).unwrap();
        assert_eq!(read("50"), Ok(Some(Decision::AtMost(most))));
        for wrong in ["101", "-1", "maybe", ""] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_score_is_shown_with_the_paths_that_made_it() {
        let hop = |trustor: &str, trustee: &str, percent| proto_spec::trust::Hop {
            trustor: trustor.parse().unwrap(),
            trustee: trustee.parse().unwrap(),
            trust: Percent::try_from(percent).unwrap(),
            capabilities: Vec::new(),
            expires: None,
        };
        let path = Path {
            hops: vec![hop("acme", "globex", 90), hop("globex", "initech", 80)],
            value: 57,
            confidence: 72,
        };
        let score = Score {
            value: 57,
            confidence: 72,
            paths: vec![path],
        };
        let asked = TrustShow {
            from: "acme".parse().unwrap(),
            to: "initech".parse().unwrap(),
            capability: None,
        };
        let shown = explained(&asked, Level::Partner, Some(&score));
        assert!(shown.contains("acme trusts initech 57 of 100"), "{shown}");
        assert!(
            shown.contains(" 57  acme 90 → globex 80 → initech"),
            "{shown}"
        );
        let none = explained(&asked, Level::Revoked, None);
        assert!(none.contains("initech is revoked here"), "{none}");
    }
}
