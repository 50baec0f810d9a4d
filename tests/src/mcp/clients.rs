//! The MCP clients that people use, each made to call one tool once.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::process::Command;

use crate::mcp::process::output;
use crate::mcp::servers::words;
use crate::mcp::toolbox::{Npm, Python};

/// The longest that one call takes, with the start of Node.js or Python on a busy machine.
const CALL_MAX: Duration = Duration::from_secs(90);

/// A client, and which era it prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// Python's SDK, which tries the modern era first.
    McpAuto,
    /// Python's SDK, told to shake hands.
    McpLegacy,
    /// `fastmcp` as a library, which tries the modern era first.
    FastmcpAuto,
    /// `fastmcp` as a library, told to shake hands.
    FastmcpLegacy,
    /// `fastmcp` on the command line.
    FastmcpCli,
    /// The TypeScript SDK 1.x, which knows nothing but handshakes.
    Sdk,
    /// The TypeScript client 2.x, which shakes hands unless told otherwise.
    ClientLegacy,
    /// The TypeScript client 2.x, told to try the modern era first.
    ClientAuto,
    /// The Inspector on the command line, told to shake hands.
    InspectorLegacy,
    /// The Inspector on the command line, told to be modern.
    InspectorModern,
    /// `mcp-remote`, by which clients reach HTTP that know only standard input and output.
    Remote,
}

/// Where a server is.
#[derive(Debug, Clone)]
pub enum At {
    /// Behind TLS with a private authority, for who brings a token.
    Https {
        /// Its URL.
        url: String,
        /// What it wants to see.
        token: String,
        /// The authority's certificate.
        authority: PathBuf,
    },
    /// A command and its arguments, over standard input and output.
    Stdio(Vec<String>),
}

/// What is called.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// The tool, by the name that clients see.
    pub tool: &'a str,
    /// An object.
    pub arguments: Value,
}

impl Call<'_> {
    /// As the scripts want it.
    fn words(&self) -> [String; 2] {
        [self.tool.to_owned(), self.arguments.to_string()]
    }
}

/// What the clients are made of.
#[derive(Debug, Clone, Copy)]
pub struct Tools {
    /// npm's.
    pub npm: &'static Npm,
    /// PyPI's.
    pub python: &'static Python,
}

impl Client {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::McpAuto,
        Self::McpLegacy,
        Self::FastmcpAuto,
        Self::FastmcpLegacy,
        Self::FastmcpCli,
        Self::Sdk,
        Self::ClientLegacy,
        Self::ClientAuto,
        Self::InspectorLegacy,
        Self::InspectorModern,
        Self::Remote,
    ];

    /// Calls a tool with arguments that are texts, and gives the first text of its answer.
    ///
    /// # Errors
    ///
    /// When the client fails, takes longer than a minute and a half, or prints no answer; with what it said.
    pub async fn call(self, tools: Tools, at: &At, what: &Call<'_>) -> Result<String> {
        let mut command = self.command(tools, at, what)?;
        if let At::Https {
            token, authority, ..
        } = at
        {
            command.env("SSL_CERT_FILE", authority);
            command.env("NODE_EXTRA_CA_CERTS", authority);
            command.env("TOKEN", token);
        }
        // mcp-remote keeps files there, and none of them keeps any of ours.
        let home = tempfile::tempdir()?;
        command.env("HOME", home.path());
        let said = output(&mut command, CALL_MAX)
            .await
            .with_context(|| format!("{self:?}"))?;
        text_of(&said).with_context(|| format!("{self:?} printed no answer: {said}"))
    }

    fn command(self, tools: Tools, at: &At, what: &Call<'_>) -> Result<Command> {
        let python = |words: [&str; 2]| {
            let mut command = tools.python.script("client.py");
            command.args(words).args(what.words()).args(at.words());
            Ok(command)
        };
        match self {
            Self::McpAuto => python(["mcp", "auto"]),
            Self::McpLegacy => python(["mcp", "legacy"]),
            Self::FastmcpAuto => python(["fastmcp", "auto"]),
            Self::FastmcpLegacy => python(["fastmcp", "legacy"]),
            Self::FastmcpCli => Ok(fastmcp(tools, at, what)),
            Self::Sdk => node(tools, ["sdk", "legacy"], &at.words(), what),
            Self::ClientLegacy => node(tools, ["client", "legacy"], &at.words(), what),
            Self::ClientAuto => node(tools, ["client", "auto"], &at.words(), what),
            Self::InspectorLegacy => Ok(inspector(tools, "legacy", at, what)),
            Self::InspectorModern => Ok(inspector(tools, "modern", at, what)),
            Self::Remote => node(tools, ["sdk", "legacy"], &remote(tools, at), what),
        }
    }
}

impl At {
    /// As the scripts want it.
    fn words(&self) -> Vec<String> {
        match self {
            Self::Https { url, .. } => vec![url.clone()],
            Self::Stdio(words) => std::iter::once("--".to_owned())
                .chain(words.clone())
                .collect(),
        }
    }
}

fn node(tools: Tools, how: [&str; 2], at: &[String], what: &Call<'_>) -> Result<Command> {
    let mut command = tools.npm.script("client.mjs")?;
    command.args(how).args(what.words()).args(at);
    Ok(command)
}

fn fastmcp(tools: Tools, at: &At, what: &Call<'_>) -> Command {
    let mut command = tools.python.run("fastmcp");
    command.arg("call");
    match at {
        At::Https { url, token, .. } => command.args([url, what.tool, "--auth", token]),
        At::Stdio(words) => command.args(["--command", &words.join(" "), "--target", what.tool]),
    };
    command.args(["--input-json", &what.arguments.to_string(), "--json"]);
    command
}

fn inspector(tools: Tools, era: &str, at: &At, what: &Call<'_>) -> Command {
    let mut command = tools
        .npm
        .run("@modelcontextprotocol/inspector/clients/launcher/build/index.js");
    command.args(["--cli", "-q", "--format", "json"]);
    match at {
        At::Https { url, token, .. } => {
            let header = format!("Authorization: Bearer {token}");
            command.args([url, "--transport", "http", "--header", &header])
        }
        At::Stdio(words) => command.args(words),
    };
    command.args([
        "--protocol-era",
        era,
        "--method",
        "tools/call",
        "--tool-name",
        what.tool,
    ]);
    for (name, argument) in what.arguments.as_object().into_iter().flatten() {
        let argument = argument.as_str().unwrap_or_default();
        command.args(["--tool-arg", &format!("{name}={argument}")]);
    }
    command
}

/// `mcp-remote` as a command of its own; what is one already is left as it is.
fn remote(tools: Tools, at: &At) -> Vec<String> {
    let At::Https { url, token, .. } = at else {
        return at.words();
    };
    let mut command = tools.npm.run("mcp-remote/dist/proxy.js");
    command.args([url, "--header", &format!("Authorization: Bearer {token}")]);
    command.args(["--transport", "http-only"]);
    At::Stdio(words(&command)).words()
}

/// The text that was answered: of our scripts' line, or of a result as the command lines print it.
fn text_of(said: &str) -> Option<String> {
    let json: Value = serde_json::from_str(said.trim()).ok()?;
    let content = json
        .get("content")
        .or_else(|| json.pointer("/result/content"));
    let text = content.map_or(json.get("text"), |content| content.pointer("/0/text"));
    text?.as_str().map(str::to_owned)
}
