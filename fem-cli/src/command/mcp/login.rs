//! `mcp login`: an authorisation at an MCP server that demands one.

use std::path::PathBuf;
use std::time::Duration;

use agent_sdk::mcp::Address;
use agent_sdk::mcp::login::{
    Agreed, Invitation, Known, Login as Asking, Means, Place, Proof, Scopes, Terms,
};
use serde_json::json;

use super::place;
use crate::failure::{Failure, Outcome};
use crate::files::{absolute, quoted};
use crate::output::{Output, escape, note};
use crate::time;

/// Logs in to an MCP server that demands an authorisation (OAuth 2.1), for `mcp wrap --auth`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
An address is printed; whoever opens it in a browser of this machine decides. What
comes of it is kept in a file that only you can read, and renewed where the server
lets it be. Without --url it is the server of the file, on the terms of then.
As which client you ask: one that was registered by hand (--client-id), one that a
document describes (--client-metadata), or one that registers itself.
With --unattended or --assertion nobody is asked.

Examples:
  fem-cli mcp login --url https://mcp.example/mcp --auth web.auth
  fem-cli mcp login --auth web.auth
  fem-cli mcp login --url https://mcp.example/mcp --auth web.auth --unattended \\
    --issuer https://login.example --client-id fem --client-secret @fem.secret")]
pub(super) struct Login {
    /// The MCP server
    #[arg(long)]
    url: Option<Address>,
    /// Where the authorisation is kept (0600); made if it is absent
    #[arg(long, value_name = "FILE")]
    auth: PathBuf,
    /// As the client of this name, which was registered by hand
    #[arg(long, value_name = "ID", requires = "url")]
    client_id: Option<String>,
    /// The client's secret, from a file or a variable of yours
    #[arg(long, value_name = "@FILE|env:VAR", value_parser = place, requires = "client_id")]
    client_secret: Option<Place>,
    /// The client's private key, in PKCS#8 (PEM)
    #[arg(
        long,
        value_name = "FILE",
        requires = "client_id",
        conflicts_with = "client_secret"
    )]
    client_key: Option<PathBuf>,
    /// Where a document describes this client, for servers that look there
    #[arg(long, value_name = "URL", requires = "url", conflicts_with_all = ["client_id", "unattended", "assertion"])]
    client_metadata: Option<Address>,
    /// The client is authorised itself: it has a secret or a key, and nobody is asked
    #[arg(long, requires = "client_id")]
    unattended: bool,
    /// A token that this machine's platform gives, from a file or a variable: it is exchanged, and nobody is asked
    #[arg(long, value_name = "@FILE|env:VAR", value_parser = place, requires = "url", conflicts_with_all = ["client_secret", "client_key", "unattended"])]
    assertion: Option<Place>,
    /// Who has to be the one that authorises; without it nobody is given a secret
    #[arg(long, value_name = "URL", requires = "url")]
    issuer: Option<Address>,
    /// What to ask for beside what the server wants; may be repeated
    #[arg(long, value_name = "SCOPE", requires = "url")]
    scope: Vec<String>,
    /// Where the browser comes back to, if that was registered: http://127.0.0.1:PORT/PATH [default: a free port]
    #[arg(long, value_name = "URL", requires = "url")]
    redirect: Option<Address>,
    /// Whom to believe who a server is (PEM) [default: this system's certificate authorities]
    #[arg(long, value_name = "FILE", requires = "url")]
    ca: Option<PathBuf>,
    /// How long to wait for whoever decides
    #[arg(long, value_name = "TIME", value_parser = time::duration, default_value = "5m")]
    timeout: Duration,
}

pub(super) async fn run(args: Login, output: Output) -> Outcome {
    let (file, patience) = (args.auth.clone(), args.timeout);
    let terms = args.terms().map_err(Failure::usage)?;
    let asking = Asking::new(file.clone(), terms).map_err(Failure::fault)?;
    let agreed = asking.run(patience, invite).await;
    let agreed = agreed.map_err(Failure::fault)?;
    let Agreed {
        server,
        issuer,
        scopes,
        expires,
        renews,
    } = &agreed;
    let told = json!({
        "server": server, "issuer": issuer, "scopes": scopes, "file": file, "renews": renews,
        "expires": expires.map(time::show),
    });
    output.give(&told, || {
        let scopes = match scopes.is_empty() {
            true => "what the server permits".to_owned(),
            false => escape(&scopes.to_string()),
        };
        let file = quoted(&file);
        let until = match (renews, expires) {
            (true, _) => "It is renewed by itself.".to_owned(),
            (false, Some(expires)) => {
                format!("It ends {}.", time::show_from(*expires, time::now()))
            }
            (false, None) => "When it ends, log in again.".to_owned(),
        };
        format!(
            "Wrote {file}: for {scopes} at {server}, by {issuer}. {until}\n\
             Use it: fem-cli mcp wrap --name NAME --url {server} --auth {file}"
        )
    })
}

/// Asks a person.
fn invite(invitation: &Invitation) {
    let Invitation {
        address,
        issuer,
        scopes,
    } = invitation;
    let what = match scopes.is_empty() {
        true => String::new(),
        false => format!(" for {}", escape(&scopes.to_string())),
    };
    note(&format!(
        "{issuer} asks you{what}. Open this in a browser of this machine:\n\n  {}\n",
        escape(address)
    ));
}

impl Login {
    /// What the command line says anew, if it does.
    fn terms(self) -> Result<Option<Terms>, String> {
        let Some(server) = self.url else {
            return Ok(None);
        };
        let proof = match (self.client_secret, self.client_key) {
            (Some(place), _) => Some(Proof::Secret(place)),
            (None, Some(file)) => Some(Proof::Key(absolute(&file))),
            (None, None) => None,
        };
        let known = |id| Known { id, proof };
        let means = match (self.assertion, self.unattended, self.client_id) {
            (Some(assertion), _, id) => Means::Workload { id, assertion },
            (None, true, Some(id)) => Means::Client { client: known(id) },
            (None, _, id) => Means::Person {
                client: id.map(known),
                document: self.client_metadata,
                redirect: self.redirect,
            },
        };
        let scopes: Scopes = self.scope.join(" ").parse()?;
        let terms = Terms {
            server,
            means,
            issuer: self.issuer,
            scopes,
            ca_file: self.ca.as_deref().map(absolute),
        };
        terms.checked().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    fn terms(line: &str) -> Result<Option<Terms>, String> {
        let command = Login::augment_args(clap::Command::new("login").no_binary_name(true));
        let matches = command.try_get_matches_from(line.split(' '));
        let matches = matches.map_err(|why| why.to_string())?;
        let args = Login::from_arg_matches(&matches).map_err(|why| why.to_string())?;
        args.terms()
    }

    #[test]
    fn a_secret_is_never_on_the_command_line_and_goes_to_a_named_issuer() {
        let who = "--auth f --url https://x.example --client-id fem";
        for (rest, is_fine) in [
            ("", true),
            ("--client-secret @s --issuer https://a.example", true),
            (
                "--client-secret env:S --issuer https://a.example --unattended",
                true,
            ),
            (
                "--client-key k.pem --issuer https://a.example --unattended",
                true,
            ),
            ("--client-secret hunter2 --issuer https://a.example", false),
            ("--client-secret @s", false),
            ("--client-key k.pem", false),
            ("--unattended --issuer https://a.example", false),
            ("--assertion @t", false),
            ("--assertion @t --issuer https://a.example", true),
        ] {
            let line = format!("{who} {rest}");
            assert_eq!(terms(line.trim_end()).is_ok(), is_fine, "{line}");
        }
        assert_eq!(
            terms("--auth f").unwrap(),
            None,
            "the terms are those of the file"
        );
        assert!(terms("--auth f --scope a").is_err());
        assert!(terms("--auth f --url http://x.example").is_err());
    }
}
