//! `init`: makes an organisation: its keys, its first admin, development certificates, the broker's
//! configuration and its founded journal.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use proto_spec::peering::check_endpoint;
use proto_spec::{Name, Org};

use crate::certificate;
use crate::command::recover;
use crate::failure::Outcome;
use crate::files::quoted;
use crate::organisation::{self, Plan};
use crate::output::Output;
use crate::programs;
use crate::time;

/// Makes an organisation in a new directory
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  fem-cli init acme --host broker.acme.example --listen 0.0.0.0:7443
  fem-cli init acme --recover --recovery-key /media/offline/recovery.pem
Nothing is ever overwritten: the directory must not exist, or be empty.
With --recover it exists: the recovery key names a new admin, while the broker is stopped.")]
pub(crate) struct Init {
    /// The organisation: agents will be called name@ORG
    org: Org,
    /// Where to make it [default: ./ORG]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where agents connect
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7443")]
    listen: SocketAddr,
    /// Where health and metrics are served, plain HTTP
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7480")]
    ops: SocketAddr,
    /// A name or address by which agents reach the broker, besides localhost; may be repeated
    #[arg(long, value_name = "HOST")]
    host: Vec<String>,
    /// Where other organisations' brokers reach this one; may be repeated
    #[arg(long = "endpoint", value_name = "HOST:PORT", value_parser = endpoint)]
    endpoints: Vec<String>,
    /// What the first admin is called
    #[arg(long, value_name = "NAME", default_value = organisation::FIRST_ADMIN)]
    admin: Name,
    /// Find the way back in when no admin is left: makes a new admin of an organisation that exists
    #[arg(long, requires = "recovery_key", conflicts_with_all = ["listen", "ops", "host", "endpoints"])]
    recover: bool,
    /// The organisation's recovery key, which is kept offline
    #[arg(long, value_name = "FILE", requires = "recover")]
    recovery_key: Option<PathBuf>,
}

fn endpoint(text: &str) -> Result<String, String> {
    let checked = check_endpoint(text).map_err(|why| why.to_string());
    checked.map(|()| text.into())
}

pub(crate) fn run(args: &Init, output: Output) -> Outcome {
    let dir = args.dir.clone().unwrap_or_else(|| args.org.as_str().into());
    if let Some(recovery_key) = &args.recovery_key {
        return recover::run(&dir, &args.org, &args.admin, recovery_key, output);
    }
    let plan = Plan {
        org: args.org.clone(),
        admin: args.admin.clone(),
        listen: args.listen,
        ops: args.ops,
        hosts: hosts(&args.host, args.listen),
        broker_url: url(&args.host, args.listen),
        endpoints: args.endpoints.clone(),
        now: time::now(),
    };
    let made = organisation::make(&dir, &plan)?;
    output.give(&made, || told(&dir, &plan, &made))
}

/// What the broker's certificate is good for.
fn hosts(named: &[String], listen: SocketAddr) -> Vec<String> {
    let mut hosts = ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec();
    if !listen.ip().is_unspecified() {
        hosts.push(listen.ip().to_string());
    }
    hosts.extend(named.iter().cloned());
    let mut seen = std::collections::BTreeSet::new();
    hosts.retain(|host| seen.insert(host.clone()));
    hosts
}

/// How agents reach it: by the first name given, else by the address it listens on.
fn url(named: &[String], listen: SocketAddr) -> String {
    let port = listen.port();
    match named.first() {
        Some(host) if host.contains(':') => format!("https://[{host}]:{port}"),
        Some(host) => format!("https://{host}:{port}"),
        None if listen.ip().is_unspecified() => format!("https://localhost:{port}"),
        None => format!("https://{listen}"),
    }
}

fn told(dir: &Path, plan: &Plan, made: &organisation::Made) -> String {
    let at = |name: &str| quoted(&dir.join(name));
    let (org, admin) = (&plan.org, &made.admin);
    let days = certificate::VALID_DAYS;
    format!(
        "\
Made {dir}: the organisation {org}, with {admin} as its first admin.

  broker.toml          the broker's configuration; every default stands in it as a comment
  keys/broker.pem      signs what the broker says    {broker}
  keys/root.pem        signs capabilities            {root}
  keys/admin.pem       the first admin's key         {admin_key}
  admin.toml           context of that admin: the broker, and where the key is
  join.toml            context for agents to start from; hand it out with tls/ca.pem
  tls/                 development certificates for {hosts}, good for {days} days
  data/                the journal
  recovery.pem         names a new admin if none is left {recovery}

Keep offline: move {recovery_file} to where this machine cannot read it, now.
  Whoever has it can take the organisation over; nobody can recover it without.

Next, start the broker:
  {fem_broker} {config}

Then, from another terminal:
  {fem_cli} --context {context} doctor",
        fem_broker = programs::broker(),
        fem_cli = programs::cli(),
        dir = quoted(dir),
        broker = made.broker_key.fingerprint(),
        root = made.root_key.fingerprint(),
        admin_key = made.admin_key.fingerprint(),
        recovery = made.recovery_key.fingerprint(),
        hosts = plan.hosts.join(", "),
        recovery_file = at("recovery.pem"),
        config = at("broker.toml"),
        context = at("admin.toml"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_told_the_first_host_or_the_address_itself() {
        let any: SocketAddr = "0.0.0.0:7443".parse().unwrap();
        let one: SocketAddr = "127.0.0.1:7443".parse().unwrap();
        assert_eq!(url(&[], any), "https://localhost:7443");
        assert_eq!(url(&[], one), "https://127.0.0.1:7443");
        assert_eq!(
            url(&["broker.example".into()], any),
            "https://broker.example:7443"
        );
        assert_eq!(
            url(&["2001:db8::1".into()], any),
            "https://[2001:db8::1]:7443"
        );
    }

    #[test]
    fn a_host_stands_in_the_certificate_once() {
        let listen: SocketAddr = "127.0.0.1:1".parse().unwrap();
        assert_eq!(
            hosts(&["localhost".into()], listen),
            ["localhost", "127.0.0.1", "::1"]
        );
    }
}
