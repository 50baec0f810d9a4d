//! What was written ([`Written`]) and what may be relied on ([`Config`]).
//!
//! A `Config` is checked: nothing downstream looks at its values again. All problems of a file come
//! out at once, so that one start shows them all.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto_spec::limits;
use proto_spec::peering::check_endpoint;
use proto_spec::{Digest, Org, Pattern};
use serde::{Deserialize, Serialize};

use crate::compat_endpoint::Endpoints;

/// The commented example: every value in it is the default, and a test keeps it so.
pub const EXAMPLE: &str = include_str!("../broker.example.toml");

/// The file as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    org: String,
    listen: SocketAddr,
    ops: SocketAddr,
    data: PathBuf,
    keys: Keys,
    tls: Tls,
    #[serde(default)]
    approval: Approval,
    #[serde(default)]
    federation: Federation,
    mcp: Option<Mcp>,
    #[serde(default)]
    compat: WrittenCompat,
    #[serde(default)]
    limits: Limits,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenCompat {
    fep_go: bool,
    endpoints: Vec<String>,
}

/// Older agents: whether they are spoken with.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Compat {
    /// Whether older agents of this kind may register, call and be called.
    pub fep_go: bool,
    /// The only places where they are called.
    pub endpoints: Endpoints,
}

/// How admins decide.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Approval {
    /// Granting anything under these patterns takes two admins.
    pub two_admins: Vec<Pattern>,
}

/// How other organisations' brokers find this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Federation {
    /// `host:port`, as our descriptor names them.
    pub endpoints: Vec<String>,
    /// Calls of a peer's agents are refused when the peer has not said for so long which keys are dead.
    pub stale_after_ms: u64,
}

impl Default for Federation {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            stale_after_ms: 10_000,
        }
    }
}

impl Federation {
    /// How old the view of a peer's dead keys may be.
    #[must_use]
    pub fn stale_after(&self) -> Duration {
        Duration::from_millis(self.stale_after_ms)
    }
}

/// Where the metadata of a protected resource lies (RFC 9728, 3.1); what follows names the resource's path.
pub const METADATA: &str = "/.well-known/oauth-protected-resource";

/// How MCP clients come in that show bearer tokens; they do not where the file has no such part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mcp {
    /// The URL that clients use, as they know it: what a token is for (RFC 8707).
    pub resource: String,
    /// What bearer tokens may be used for at all.
    #[serde(default = "Mcp::all_tools")]
    pub bearer_ok: Vec<Pattern>,
    /// How long one holds at most.
    #[serde(default = "Mcp::a_day")]
    pub bearer_lifetime_max_s: u64,
    /// Origins of web pages whose scripts may call.
    #[serde(default)]
    pub origins: Vec<String>,
}

impl Mcp {
    fn all_tools() -> Vec<Pattern> {
        ["*", "peer.*"]
            .iter()
            .filter_map(|all| all.parse().ok())
            .collect()
    }

    fn a_day() -> u64 {
        86_400
    }

    /// The URL without its path.
    fn origin(&self) -> &str {
        self.resource.strip_suffix("/mcp").unwrap_or(&self.resource)
    }

    /// The names by which clients know this machine, without ports.
    #[must_use]
    pub fn hosts(&self) -> Vec<String> {
        let origin = self.origin();
        let host = origin.strip_prefix("https://").unwrap_or(origin);
        let name = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => name,
            _ => host,
        };
        // One machine that its own clients know by three names.
        const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
        match LOOPBACK.contains(&name) {
            true => LOOPBACK.map(str::to_owned).into(),
            false => vec![name.to_owned()],
        }
    }

    /// Where the resource's metadata lies (RFC 9728, 3.1).
    #[must_use]
    pub fn metadata_url(&self) -> String {
        format!("{}{}/mcp", self.origin(), METADATA)
    }

    fn problems(&self, found: &mut Vec<String>) {
        let origin = self.origin();
        let host = origin.strip_prefix("https://").unwrap_or_default();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        let is_url = self.resource.starts_with("https://") && self.resource.ends_with("/mcp");
        if !is_url || host.is_empty() || !host.chars().all(is_plain) {
            found.push(format!(
                "mcp.resource is {:?}; it must be https://HOST[:PORT]/mcp",
                self.resource
            ));
        }
        if !(60..=90 * 86_400).contains(&self.bearer_lifetime_max_s) {
            found.push(format!(
                "mcp.bearer_lifetime_max_s is {}; it must be 60 to 7776000",
                self.bearer_lifetime_max_s
            ));
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    broker: PathBuf,
    root: PathBuf,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    #[serde(default)]
    channels: Vec<String>,
}

/// The bounds of one broker. Units stand in the names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(
    missing_docs,
    reason = "broker.example.toml documents each, and a test compares the two"
)]
pub struct Limits {
    pub envelope_bytes_max: usize,
    pub clock_skew_max_ms: u64,
    pub deadline_ms: u64,
    pub connections_max: usize,
    pub connections_per_network_max: usize,
    pub sessions_per_agent_max: usize,
    pub calls_max: usize,
    pub calls_per_session_max: usize,
    /// Calls in flight to one peer, and from it.
    pub calls_per_peer_max: usize,
    pub outbox_max: usize,
    pub outbox_bytes_max: usize,
    pub bodies_bytes_max: usize,
    pub nonces_max: usize,
    pub nonces_per_sender_max: usize,
    pub nonces_per_network_max: usize,
    /// Nonces that all agents of one peer may have in the window.
    pub nonces_per_peer_max: usize,
    /// Tools that one peer may advertise.
    pub tools_per_peer_max: usize,
    pub pending_max: usize,
    pub pending_lifetime_s: u64,
    pub proposal_lifetime_s: u64,
    pub token_lifetime_max_s: u64,
    pub token_lifetime_s: u64,
    pub drain_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            envelope_bytes_max: limits::ENVELOPE_BYTES,
            clock_skew_max_ms: limits::CLOCK_SKEW_MAX.as_millis() as u64,
            deadline_ms: limits::DEADLINE_DEFAULT.as_millis() as u64,
            connections_max: 16_384,
            connections_per_network_max: 12_288,
            sessions_per_agent_max: 256,
            calls_max: 65_536,
            calls_per_session_max: 1_024,
            calls_per_peer_max: 8_192,
            outbox_max: 2_048,
            outbox_bytes_max: 16 << 20,
            bodies_bytes_max: 256 << 20,
            nonces_max: 4_000_000,
            nonces_per_sender_max: 1_000_000,
            nonces_per_network_max: 4_096,
            nonces_per_peer_max: 1_000_000,
            tools_per_peer_max: limits::ADVERTISED_TOOLS_MAX,
            pending_max: 1_024,
            pending_lifetime_s: 7 * 86_400,
            proposal_lifetime_s: 86_400,
            token_lifetime_max_s: 90 * 86_400,
            token_lifetime_s: 30 * 86_400,
            drain_ms: 5_000,
        }
    }
}

impl Limits {
    /// How far a sender's clock may be off.
    #[must_use]
    pub fn skew(&self) -> Duration {
        Duration::from_millis(self.clock_skew_max_ms)
    }

    /// How long a call may take that does not say.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }

    fn problems(&self, found: &mut Vec<String>) {
        let mut bound = |name: &str, value: u64, range: std::ops::RangeInclusive<u64>| {
            if !range.contains(&value) {
                let (low, high) = range.into_inner();
                found.push(format!(
                    "limits.{name} is {value}; it must be {low} to {high}"
                ));
            }
        };
        bound(
            "envelope_bytes_max",
            self.envelope_bytes_max as u64,
            1_024..=limits::ENVELOPE_BYTES_MAX as u64,
        );
        bound(
            "clock_skew_max_ms",
            self.clock_skew_max_ms,
            1_000..=limits::CLOCK_SKEW_MAX.as_millis() as u64,
        );
        bound(
            "deadline_ms",
            self.deadline_ms,
            1..=limits::DEADLINE_MAX.as_millis() as u64,
        );
        bound(
            "connections_max",
            self.connections_max as u64,
            1..=1_000_000,
        );
        bound(
            "connections_per_network_max",
            self.connections_per_network_max as u64,
            1..=self.connections_max as u64,
        );
        bound(
            "sessions_per_agent_max",
            self.sessions_per_agent_max as u64,
            1..=65_536,
        );
        bound("calls_max", self.calls_max as u64, 1..=10_000_000);
        bound(
            "calls_per_session_max",
            self.calls_per_session_max as u64,
            1..=self.outbox_max as u64,
        );
        bound(
            "outbox_bytes_max",
            self.outbox_bytes_max as u64,
            self.envelope_bytes_max as u64..=1 << 30,
        );
        bound(
            "bodies_bytes_max",
            self.bodies_bytes_max as u64,
            self.envelope_bytes_max as u64..=1 << 40,
        );
        bound("outbox_max", self.outbox_max as u64, 1..=65_536);
        bound("nonces_max", self.nonces_max as u64, 1_024..=1_000_000_000);
        bound(
            "nonces_per_sender_max",
            self.nonces_per_sender_max as u64,
            1..=self.nonces_max as u64,
        );
        bound(
            "nonces_per_network_max",
            self.nonces_per_network_max as u64,
            1..=self.nonces_max as u64,
        );
        bound(
            "calls_per_peer_max",
            self.calls_per_peer_max as u64,
            1..=10_000_000,
        );
        bound(
            "nonces_per_peer_max",
            self.nonces_per_peer_max as u64,
            1..=1_000_000_000,
        );
        bound(
            "tools_per_peer_max",
            self.tools_per_peer_max as u64,
            1..=1_000_000,
        );
        bound("pending_max", self.pending_max as u64, 1..=1_000_000);
        bound(
            "pending_lifetime_s",
            self.pending_lifetime_s,
            60..=365 * 86_400,
        );
        bound(
            "proposal_lifetime_s",
            self.proposal_lifetime_s,
            60..=30 * 86_400,
        );
        bound(
            "token_lifetime_max_s",
            self.token_lifetime_max_s,
            60..=10 * 365 * 86_400,
        );
        bound(
            "token_lifetime_s",
            self.token_lifetime_s,
            60..=self.token_lifetime_max_s,
        );
        bound("drain_ms", self.drain_ms, 0..=600_000);
    }
}

/// What the broker runs with. Holding one means every value in it was checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The organisation.
    pub org: Org,
    /// Where agents connect.
    pub listen: SocketAddr,
    /// Health and metrics.
    pub ops: SocketAddr,
    /// The journal and the replay window.
    pub data: PathBuf,
    /// The broker's own key file.
    pub broker_key: PathBuf,
    /// The token root key file.
    pub root_key: PathBuf,
    /// Certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub certificate_key: PathBuf,
    /// Public keys of TLS terminators in front, as SPKI digests.
    pub channels: Vec<Digest>,
    /// How admins decide.
    pub approval: Approval,
    /// How other organisations' brokers find this one.
    pub federation: Federation,
    /// How MCP clients come in, if they do.
    pub mcp: Option<Mcp>,
    /// Older agents.
    pub compat: Compat,
    /// Bounds.
    pub limits: Limits,
}

/// Everything that is wrong with a configuration.
#[derive(Debug)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Problems {}

impl Config {
    /// Reads and checks a file. Paths in it are relative to it.
    ///
    /// # Errors
    ///
    /// [`Problems`] lists everything that is wrong, each with the name of the value.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Problems(vec![format!("{}: {error}", path.display())]))?;
        Self::parse(&text, path.parent().unwrap_or(Path::new(".")))
    }

    /// Checks a text; `base` is what its paths are relative to.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn parse(text: &str, base: &Path) -> Result<Self, Problems> {
        let written: Written =
            toml::from_str(text).map_err(|error| Problems(vec![error.to_string()]))?;
        let mut found = Vec::new();
        let org = written
            .org
            .parse::<Org>()
            .map_err(|error| found.push(format!("org: {error}")));
        let mut channels = Vec::new();
        for text in &written.tls.channels {
            match text.parse() {
                Ok(digest) => channels.push(digest),
                Err(error) => found.push(format!("tls.channels: {text:?}: {error}")),
            }
        }
        if written.federation.endpoints.len() > limits::PEER_ENDPOINTS_MAX {
            found.push(format!(
                "federation.endpoints: more than {}",
                limits::PEER_ENDPOINTS_MAX
            ));
        }
        let stale_after = written.federation.stale_after_ms;
        if !(3_000..=600_000).contains(&stale_after) {
            found.push(format!(
                "federation.stale_after_ms is {stale_after}; it must be 3000 to 600000"
            ));
        }
        for text in &written.federation.endpoints {
            if let Err(error) = check_endpoint(text) {
                found.push(format!("federation.endpoints: {error}"));
            }
        }
        let endpoints = Endpoints::read(&written.compat.endpoints, |problem| {
            found.push(format!("compat.endpoints: {problem}"));
        });
        written.limits.problems(&mut found);
        if let Some(mcp) = &written.mcp {
            mcp.problems(&mut found);
        }
        let mut file = |name: &str, path: &Path| {
            let path = base.join(path);
            if let Err(error) = std::fs::metadata(&path) {
                found.push(format!("{name}: {}: {error}", path.display()));
            }
            path
        };
        let broker_key = file("keys.broker", &written.keys.broker);
        let root_key = file("keys.root", &written.keys.root);
        let certificate = file("tls.certificate", &written.tls.certificate);
        let certificate_key = file("tls.key", &written.tls.key);
        match org {
            Ok(org) if found.is_empty() => Ok(Self {
                org,
                listen: written.listen,
                ops: written.ops,
                data: base.join(&written.data),
                broker_key,
                root_key,
                certificate,
                certificate_key,
                channels,
                approval: written.approval,
                federation: written.federation,
                mcp: written.mcp,
                compat: Compat {
                    fep_go: written.compat.fep_go,
                    endpoints,
                },
                limits: written.limits,
            }),
            _ => Err(Problems(found)),
        }
    }
}

impl Config {
    /// What it runs with, for admins: defaults filled in, files by name, no secrets.
    #[must_use]
    pub fn shown(&self) -> serde_json::Value {
        serde_json::json!({
            "org": self.org,
            "listen": self.listen,
            "ops": self.ops,
            "data": self.data,
            "keys": {"broker": self.broker_key, "root": self.root_key},
            "tls": {
                "certificate": self.certificate,
                "key": self.certificate_key,
                "channels": self.channels,
            },
            "approval": self.approval,
            "federation": self.federation,
            "mcp": self.mcp,
            "compat": self.compat,
            "limits": self.limits,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_commented_value_of_the_example_is_the_default() {
        let uncommented: String = EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.contains(" = ") && !rest.contains(". ") => rest,
                _ => line,
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let written: Written = toml::from_str(&uncommented).unwrap();
        assert_eq!(written.limits, Limits::default());
        assert_eq!(written.federation, Federation::default());
        assert_eq!(written.compat, WrittenCompat::default());
        assert!(EXAMPLE.contains("# fep_go = ") && EXAMPLE.contains("# endpoints = "));
        assert!(EXAMPLE.contains("# stale_after_ms = "));
        let names = serde_json::to_value(Limits::default()).unwrap();
        for name in names.as_object().unwrap().keys() {
            assert!(
                EXAMPLE.contains(&format!("# {name} = ")),
                "{name} is not in the example"
            );
        }
    }

    #[test]
    fn the_examples_part_for_mcp_is_the_default_and_its_resource_is_a_url() {
        let part = EXAMPLE.lines().filter_map(|line| line.strip_prefix('#'));
        let part = part.filter(|line| !line.starts_with([' ', '\n']) && !line.is_empty());
        let part: String = part.map(|line| format!("{line}\n")).collect();
        #[derive(Deserialize)]
        struct Part {
            mcp: Mcp,
        }
        let Part { mcp } = toml::from_str(&part).unwrap();
        assert_eq!(mcp.bearer_ok, Mcp::all_tools());
        assert_eq!(mcp.bearer_lifetime_max_s, Mcp::a_day());
        assert!(mcp.origins.is_empty());
        let mut problems = Vec::new();
        mcp.problems(&mut problems);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(mcp.hosts(), ["broker.acme.example"]);
        let here = Mcp {
            resource: "https://127.0.0.1:7443/mcp".into(),
            ..mcp.clone()
        };
        assert_eq!(here.hosts(), ["localhost", "127.0.0.1", "[::1]"]);
        for bad in [
            "http://a/mcp",
            "https:///mcp",
            "https://a/x",
            "https://a b/mcp",
            "https://u@a/mcp",
        ] {
            let resource = bad.to_owned();
            let mcp = Mcp {
                resource,
                ..mcp.clone()
            };
            let mut problems = Vec::new();
            mcp.problems(&mut problems);
            assert_eq!(problems.len(), 1, "{bad}");
        }
    }

    #[test]
    fn all_problems_of_a_file_come_out_at_once_and_each_names_its_value() {
        let text = EXAMPLE
            .replace("org = \"acme\"", "org = \"Acme Inc\"")
            .replace("# deadline_ms = 60000", "deadline_ms = 0")
            .replace("# nonces_max = 4000000", "nonces_max = 1");
        let Problems(found) = Config::parse(&text, Path::new("/nonexistent")).unwrap_err();
        for name in [
            "org:",
            "limits.deadline_ms",
            "limits.nonces_max",
            "keys.broker",
            "tls.key",
        ] {
            assert!(
                found.iter().any(|line| line.starts_with(name)),
                "{name} in {found:?}"
            );
        }
    }
}
