//! `config`: what the broker runs with.

use proto_spec::Kind;
use proto_spec::message::Ack;
use serde_json::{Value, json};

use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, escape_lines};
use crate::request::{self, unexpected};

/// Shows what the broker runs with
#[derive(Debug, clap::Args)]
pub(crate) struct Config {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// Shows the broker's configuration as broker.toml has it, defaults filled in, without secrets
    Show,
}

pub(crate) async fn run(args: &Config, chosen: &Chosen, output: Output) -> Outcome {
    let Act::Show = args.act;
    match request::act(&chosen.agent()?, Kind::AdminConfigRead, &json!({})).await? {
        Ack::Config { config } => {
            let text = as_toml(&config)?;
            output.give(&config, || text)
        }
        other => Err(unexpected(&other)),
    }
}

/// As `broker.toml` has it; what is not set is left out.
fn as_toml(config: &Value) -> Outcome<String> {
    let text = toml::to_string_pretty(&without_nulls(config.clone()))
        .map_err(|e| Failure::fault(format!("the broker's configuration cannot be shown: {e}")))?;
    Ok(escape_lines(&text))
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => members
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, without_nulls(value)))
            .collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_reads_as_the_file_that_it_came_from() {
        let config = json!({"approval": {"two_admins": ["shell.*"]}, "org": "acme", "unset": null});
        assert_eq!(
            as_toml(&config).unwrap(),
            "org = \"acme\"\n\n[approval]\ntwo_admins = [\"shell.*\"]"
        );
    }
}
