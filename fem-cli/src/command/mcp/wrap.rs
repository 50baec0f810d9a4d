//! `mcp wrap`: an MCP server becomes an agent.

use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};

use agent_sdk::mcp::login::Keeper;
use agent_sdk::mcp::wrap::{NoServer, Options, Program, Sharing, Site, Source, Wrapped};
use agent_sdk::mcp::{Address, roots};
use agent_sdk::sandbox::{Files, Network, NotRun, Sandbox, Tier, Wanted};
use agent_sdk::{Agent, RegisterOptions, Registration};
use http::{HeaderName, HeaderValue};
use proto_spec::Name;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::command::agent::register::{Own, pending};
use crate::connect::Chosen;
use crate::failure::{Exit, Failure, Outcome};
use crate::files::{absolute, quoted};
use crate::output::{Output, note};
use crate::token_file;

/// What a server may use unless the command line says otherwise: an interpreter with its engine, for a day.
const MEMORY_BYTES: u64 = 1 << 30;
const DAY_MS: u64 = 86_400_000;
const PROCESSES: u32 = 256;
/// An interpreter opens hundreds of modules at once.
const DESCRIPTORS: u32 = 1_024;
/// Where programs of the box are found by name.
const BOX_PATH: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];

/// What a server that does not start in the box most often misses.
const NOT_OPEN: &str = "in the box it sees /usr and what --read, --write and --run (for programs) open, \
    and starts in an empty folder: paths among its arguments are written in full. What it said itself stands above";

/// Serves an MCP server's tools as those of an agent, until it is stopped
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The server runs in a box: it sees /usr and an empty folder, reaches no network, and
gets no variable of yours. What it needs is opened by name: its program too, where it
lies elsewhere. Paths among its own arguments are written in full.
The agent's key and context are NAME.pem and NAME.toml, made where they are absent;
an admin approves the key, or an enrolment token did already.
Tool read_file becomes NAME.read_file, and so is the capability that calling it takes.

Examples:
  fem-cli mcp wrap --name fs --read /srv/reports -- mcp-server-filesystem /srv/reports
  fem-cli mcp wrap --name time --run /opt/venv -- /opt/venv/bin/mcp-server-time
  fem-cli mcp wrap --name web --url https://mcp.example/mcp --auth web.auth
  fem-cli mcp wrap --name web --url https://mcp.example/mcp --header Authorization=@token.txt")]
pub(super) struct Wrap {
    /// As which agent [default: the context's]
    #[arg(long)]
    name: Option<Name>,
    /// An enrolment token: registers at once, within its bounds
    #[arg(long, value_name = "FILE")]
    enrol: Option<PathBuf>,
    /// What the server may read; may be repeated
    #[arg(long, value_name = "DIR")]
    read: Vec<PathBuf>,
    /// What the server may read, and run programs of; may be repeated
    #[arg(long, value_name = "DIR")]
    run: Vec<PathBuf>,
    /// What the server may read and change; may be repeated. Started by root, it is user 65533
    #[arg(long, value_name = "DIR")]
    write: Vec<PathBuf>,
    /// Let the server reach whatever this machine reaches
    #[arg(long)]
    net: bool,
    /// A variable of the server's environment, or one of yours by its name; may be repeated
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// A value of the box's policy, as in `--set memory_bytes=67108864`; see `sandbox show`
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "without_box")]
    set: Vec<String>,
    /// Run it in the weaker box, which needs no namespaces
    #[arg(long, conflicts_with = "without_box")]
    without_namespaces: bool,
    /// Run it without a box: it may do whatever you may
    #[arg(long, conflicts_with_all = ["read", "run", "write", "net"])]
    without_box: bool,
    /// Let all callers share the state that the server keeps
    #[arg(long)]
    shared: bool,
    /// Give each caller a process of its own, also of a server of 2026-07-28, which is one for all otherwise
    #[arg(long, conflicts_with_all = ["shared", "url"])]
    apart: bool,
    /// Processes of the server at once, 2 to 256: one hears what it offers, the others are callers'
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(2..=256))]
    children: u16,
    /// The server's program and its arguments. There is no shell
    #[arg(last = true, required_unless_present = "url", value_name = "COMMAND")]
    command: Vec<String>,
    /// A server that is reached by HTTP, instead of a program; TLS 1.3, or plain to this machine
    #[arg(long, conflicts_with_all = ["command", "read", "run", "write", "net", "env", "set", "without_namespaces", "without_box"])]
    url: Option<Address>,
    /// What every request says, from a file or a variable of yours: secrets have no place here; may be repeated
    #[arg(long, value_name = "NAME=@FILE|NAME=env:VAR", requires = "url")]
    header: Vec<String>,
    /// An authorisation that `mcp login` keeps, shown with every request and renewed
    #[arg(long, value_name = "FILE", requires = "url")]
    auth: Option<PathBuf>,
    /// Whom to believe who the server is (PEM) [default: this system's certificate authorities]
    #[arg(long, value_name = "FILE", requires = "url")]
    ca: Option<PathBuf>,
}

pub(super) async fn run(args: Wrap, chosen: &Chosen, output: Output) -> Outcome {
    broker::telemetry::start(false);
    let source = match &args.url {
        Some(url) => Source::Site(site(&args, url)?),
        None => Source::Program(program(&args).await?),
    };
    let (agent, name) = agent(&args, chosen).await?;
    let options = Options {
        sharing: args.sharing(),
        connections: args.children.into(),
    };
    let mut stopped = pin!(stopped()?);
    let opened = tokio::select! {
        opened = Wrapped::open(name, source, &options) => opened,
        () = &mut stopped => return Ok(()),
    };
    let wrapped = opened.map_err(|why| match why {
        NoServer::LoginNeeded(_) => Failure::new(Exit::Pending, why.to_string()),
        other if args.is_boxed() => Failure::fault(other.to_string()).next(NOT_OPEN),
        other => Failure::fault(other.to_string()),
    })?;
    let served = serve(&args, &agent, &wrapped, output, stopped).await;
    wrapped.end().await;
    served
}

/// Comes back when somebody wants an end, which from now on no signal brings by itself: what was started
/// ends too.
fn stopped() -> Outcome<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

async fn serve(
    args: &Wrap,
    agent: &Agent,
    wrapped: &Wrapped,
    output: Output,
    mut stopped: Pin<&mut impl Future<Output = ()>>,
) -> Outcome {
    let serving = tokio::select! {
        offered = agent.offer(wrapped.tools()) => offered?,
        () = &mut stopped => return Ok(()),
    };
    let offered = serving.offered();
    let (id, words, place) = (agent.id(), wrapped.words(), args.place());
    let told = json!({"agent": id, "server": words, "box": place});
    output.give(&told, || format!("{id} offers {words}; {place}"))?;
    tokio::select! {
        ended = serving.run_until(stopped) => Ok(ended?),
        () = wrapped.follow(&offered) => Ok(()),
    }
}

/// The agent, registered.
async fn agent(args: &Wrap, chosen: &Chosen) -> Outcome<(Agent, Name)> {
    let own = chosen.context()?.agent;
    let name = match (&args.name, &own) {
        (Some(name), _) => name.clone(),
        (None, Some(own)) => own.name().clone(),
        (None, None) => return Err(Failure::usage("as which agent? Give --name")),
    };
    let enrolment = args.enrol.as_deref().map(token_file::presentable);
    let options = RegisterOptions {
        enrolment: enrolment.transpose()?,
        ..RegisterOptions::default()
    };
    if own.is_some_and(|own| own.name() == &name) {
        let agent = chosen.agent()?;
        if options.enrolment.is_some() {
            agent.register(options).await?;
        }
        return Ok((agent, name));
    }
    let own = Own::of(&name, None, None, chosen)?;
    if let Registration::Pending = own.agent.register(options.clone()).await? {
        // What serves needs no capability.
        note(&pending(&own.id, &own.key, ""));
        note("Waiting for an admin; end with Ctrl-C, nothing is lost.");
        own.agent.register_and_wait(options).await?;
    }
    Ok((own.agent, name))
}

/// The server's program, in the box unless the command line says in so many words that there is none.
async fn program(args: &Wrap) -> Outcome<Program> {
    let env: Outcome<Vec<_>> = args.env.iter().map(|text| variable(text)).collect();
    let (mut words, env) = (args.command.clone(), env?);
    if args.without_box {
        return Ok(Program::bare(words, env));
    }
    if let Some(first) = words.first_mut() {
        *first = found(first);
    }
    let sandbox = Sandbox::open(args.policy()?)
        .await
        .map_err(|why| match why {
            NotRun::Invalid(_) => Failure::usage(why.to_string()),
            NotRun::Unenforced { .. } => Failure::fault(why.to_string())
                .next("--without-namespaces asks for a weaker box, --without-box for none"),
            other => Failure::fault(other.to_string()),
        })?;
    Ok(Program::boxed(words, env, sandbox))
}

/// The server at a URL.
fn site(args: &Wrap, url: &Address) -> Outcome<Site> {
    let headers: Outcome<Vec<_>> = args.header.iter().map(|text| header(text)).collect();
    let keeper = args.auth.as_deref().map(|file| Keeper::open(file, url));
    let keeper = keeper.transpose().map_err(|why| {
        let (file, url) = (args.auth.clone().unwrap_or_default(), url.to_string());
        let (file, url) = (quoted(&file), quoted(url.as_ref()));
        Failure::fault(why).next(format!("fem-cli mcp login --url {url} --auth {file}"))
    })?;
    let roots = roots(args.ca.as_deref()).map_err(Failure::fault)?;
    Site::new(url.clone(), headers?, keeper, &roots).map_err(Failure::usage)
}

/// `NAME=@FILE` or `NAME=env:VAR`.
fn header(text: &str) -> Outcome<(HeaderName, HeaderValue)> {
    let shape = || Failure::usage("--header NAME=@FILE, or NAME=env:VAR");
    let (name, place) = text.split_once('=').ok_or_else(shape)?;
    let value = super::place(place).map_err(|_| shape())?;
    let value = value.text().map_err(Failure::fault)?;
    let name = HeaderName::try_from(name).map_err(|_| shape())?;
    let mut value = HeaderValue::try_from(value.trim())
        .map_err(|_| Failure::fault(format!("what {place} holds is no header's value")))?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// `NAME=VALUE`, or one of our own variables by its name.
fn variable(text: &str) -> Outcome<(String, String)> {
    match text.split_once('=') {
        Some(("", _)) => Err(Failure::usage(format!("{text:?} has no name"))),
        Some((name, value)) => Ok((name.into(), value.into())),
        None => match std::env::var(text) {
            Ok(value) => Ok((text.into(), value)),
            Err(_) => Err(Failure::usage(format!("the variable {text:?} is not set"))),
        },
    }
}

/// Where a program is that the box would not find by its name.
fn found(program: &str) -> String {
    let is_there = |folder: &Path| folder.join(program).is_file();
    if program.contains('/') {
        return absolute(Path::new(program)).display().to_string();
    }
    if BOX_PATH.iter().any(|folder| is_there(Path::new(folder))) {
        return program.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folder = std::env::split_paths(&path).find(|folder| is_there(folder));
    folder.map_or_else(
        || program.into(),
        |folder| folder.join(program).display().to_string(),
    )
}

impl Wrap {
    fn policy(&self) -> Outcome<agent_sdk::sandbox::Policy> {
        let refused = |problems: Vec<String>| {
            let problems = problems.join("\n");
            Failure::usage(format!("the box cannot be opened so:\n{problems}"))
        };
        let paths = |paths: &[PathBuf]| paths.iter().map(|path| absolute(path)).collect();
        let mut wanted = Wanted::read(&self.set.join("\n")).map_err(refused)?;
        let given = |name: &str| {
            self.set
                .iter()
                .any(|text| text.trim_start().starts_with(name))
        };
        if !given("memory_bytes") {
            wanted.memory_bytes = MEMORY_BYTES;
        }
        if !given("descriptors") {
            wanted.descriptors = DESCRIPTORS;
        }
        if !given("processes") {
            wanted.processes = PROCESSES;
        }
        for (name, value) in [
            ("wall_ms", &mut wanted.wall_ms),
            ("cpu_ms", &mut wanted.cpu_ms),
        ] {
            if !given(name) {
                *value = DAY_MS;
            }
        }
        wanted.code_at_run_time = true;
        wanted.files = Files {
            read: paths(&self.read),
            run: paths(&self.run),
            write: paths(&self.write),
        };
        if self.net {
            wanted.network = Network::Open;
        }
        if self.without_namespaces {
            wanted.tier = Tier::WithoutNamespaces;
        }
        wanted.check().map_err(refused)
    }

    fn sharing(&self) -> Sharing {
        match (self.shared, self.apart) {
            (true, _) => Sharing::Shared,
            (false, true) => Sharing::Apart,
            (false, false) => Sharing::ByEra,
        }
    }

    fn is_boxed(&self) -> bool {
        self.url.is_none() && !self.without_box
    }

    /// How it is boxed, in a few words.
    fn place(&self) -> String {
        if let Some(url) = &self.url {
            return format!("reached at {url}");
        }
        if self.without_box {
            return "WITHOUT a box: it may do whatever you may".into();
        }
        let mut words = vec![match self.without_namespaces {
            false => "boxed".to_owned(),
            true => "in the WEAKER box".to_owned(),
        }];
        for (kind, paths) in [
            ("reads", &self.read),
            ("runs", &self.run),
            ("CHANGES", &self.write),
        ] {
            for path in paths {
                words.push(format!("{kind} {:?}", absolute(path)));
            }
        }
        words.push(match self.net {
            true => "NETWORK".into(),
            false => "no network".into(),
        });
        words.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::files::{self, Readers};

    #[test]
    fn a_header_comes_from_a_file_or_a_variable_and_never_from_the_command_line() {
        assert!(header("Authorization=env:PATH").is_ok());
        for bad in [
            "Authorization=secret",
            "Authorization",
            "a b=env:PATH",
            "X=env:FEM_NOT_SET",
        ] {
            assert!(header(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_header_that_others_can_read_is_not_shown_to_a_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token.txt");
        files::create(&path, b"Bearer secret\n", Readers::Owner).unwrap();
        let asked = format!("Authorization=@{}", path.display());
        assert_eq!(header(&asked).unwrap().1, "Bearer secret");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let why = header(&asked).unwrap_err().to_string();
        assert!(
            why.contains("chmod 600") && !why.contains("secret\n"),
            "{why}"
        );
    }

    #[test]
    fn a_variable_is_given_or_taken_by_name() {
        assert_eq!(variable("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert!(variable("PATH").is_ok());
        assert!(variable("=x").is_err() && variable("FEM_NOT_SET_ANYWHERE").is_err());
    }
}
