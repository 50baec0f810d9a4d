//! `mcp keep` and `mcp token`: clients that can only show a bearer token.

use std::path::{Path, PathBuf};

use proto_spec::capability::{Claims, decode_text};
use proto_spec::message::{Ack, BearerIssue, BearerKeep};
use proto_spec::{Kind, Name, Pattern};
use serde_json::json;

use crate::command::token::issue::{Conditions, condition, written};
use crate::connect::Chosen;
use crate::failure::{Failure, Outcome};
use crate::files::quoted;
use crate::output::{Output, join};
use crate::request::{self, unexpected};
use crate::time::{self, When};
use crate::token_file;

/// Registers an agent whose key the broker keeps, for a client that can only show a bearer token
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A client that can run a program needs none of this: let it run `fem-cli mcp serve`, which has a key
of its own.

Example:
  fem-cli mcp keep desk --capability 'fs.*'")]
pub(crate) struct Keep {
    /// Its name
    name: Name,
    /// What it may do at most, whatever a token says: fs.read_file, fs.*; may be repeated
    #[arg(long = "capability", value_name = "PATTERN", required = true)]
    capabilities: Vec<Pattern>,
    /// Until when: 2026-12-31T18:00:00Z, or from now: 7d [default: the broker's]
    #[arg(long, value_name = "TIME")]
    expires: Option<When>,
}

/// Issues a bearer token for such an agent; whoever has the file can use it, so hand it over as a secret
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It is good at the broker's /mcp and nowhere else, for a day at most unless broker.toml says otherwise.

Example:
  fem-cli mcp token desk --capability fs.read_file --expires 8h --out desk.bearer")]
pub(crate) struct Token {
    /// For which agent, as `mcp keep` named it
    name: Name,
    /// What it permits, as far as the agent may do it: fs.read_file, fs.*; may be repeated
    #[arg(long = "capability", value_name = "PATTERN", required = true)]
    capabilities: Vec<Pattern>,
    /// A condition on the call's arguments, as `token issue` takes it; may be repeated
    #[arg(long = "where", value_name = "CONDITION", value_parser = condition)]
    conditions: Vec<Conditions>,
    /// Until when: 2026-12-31T18:00:00Z, or from now: 8h [default: the broker's longest]
    #[arg(long, value_name = "TIME")]
    expires: Option<When>,
    /// Where to write it (0600)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) async fn keep(args: Keep, chosen: &Chosen, output: Output) -> Outcome {
    let body = BearerKeep {
        name: args.name,
        capabilities: args.capabilities,
        expires: args.expires.map(|when| when.from(time::now())),
    };
    let (admin, kind) = (chosen.agent()?, Kind::AdminBearerKeep);
    let ack = request::grant(&admin, output, kind, &body, None).await?;
    kept(&ack, &body, output)
}

/// Says whom the broker keeps, by one admin or with a second.
pub(crate) fn kept(ack: &Ack, body: &BearerKeep, output: Output) -> Outcome {
    let Ack::Agent {
        agent: Some(agent), ..
    } = ack
    else {
        return Err(unexpected(ack));
    };
    let name = &body.name;
    output.give(&json!({"name": name, "key": agent.key}), || {
        format!(
            "{name} may do {}, by whoever shows a bearer token for it.\n\
             Make one: fem-cli mcp token {name} --capability PATTERN --out {name}.bearer\n\
             Take all back: fem-cli agent revoke {name}",
            join(&body.capabilities),
        )
    })
}

pub(super) async fn token(args: Token, chosen: &Chosen, output: Output) -> Outcome {
    token_file::check_is_new(&args.out)?;
    let body = BearerIssue {
        agent: args.name,
        capabilities: args.capabilities,
        expires: args.expires.map(|when| when.from(time::now())),
        checks: written(args.conditions),
    };
    let (admin, kind) = (chosen.agent()?, Kind::AdminBearerIssue);
    let ack = request::grant(&admin, output, kind, &body, Some(&args.out)).await?;
    token_given(ack, &body, &args.out, output)
}

/// Writes what was issued, by one admin or with a second, and says how it is used.
pub(crate) fn token_given(ack: Ack, body: &BearerIssue, out: &Path, output: Output) -> Outcome {
    let Ack::Issued { id, token, expires } = ack else {
        return Err(unexpected(&ack));
    };
    let token = token
        .ok_or_else(|| Failure::fault("the broker issued the token but did not hand it out"))?;
    token_file::write(out, &token)?;
    let url = resource(&token).unwrap_or_else(|| "the broker's /mcp".into());
    let value = json!({"id": id, "expires": time::show(expires), "file": out, "url": url});
    output.give(&value, || {
        format!(
            "Wrote {file}: lets its bearer do {what} as {name}, until {until}.\nid  {id}\n\
             Use it: at {url}, with what is in {file} in the header `Authorization: Bearer …`\n\
             Take it back: fem-cli token revoke {id}",
            file = quoted(out),
            what = join(&body.capabilities),
            name = body.agent,
            until = time::show_from(expires, time::now()),
        )
    })
}

/// The one URL where a bearer token is good, as its broker wrote it there.
fn resource(token: &str) -> Option<String> {
    let claims = Claims::read(&decode_text(token).ok()?).ok()?;
    claims.audience().map(str::to_owned)
}
