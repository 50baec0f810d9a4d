//! The address of an HTTP server, as far as it may be asked at all: TLS, or plain to this machine. Pure.
//!
//! Addresses are compared and passed on as they were written: who wrote one decides by its text what is meant, and a
//! normalised one is another.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use http::Uri;
use serde::{Deserialize, Serialize};

use super::words::quoted;

/// Bytes of an address.
const ADDRESS_BYTES_MAX: usize = 2 << 10;
/// Characters that are shown of what is none.
const SHOWN_CHARS_MAX: usize = 200;

/// `https://…`, or `http://…` on this machine; without secrets and fragments.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(Arc<Parsed>);

#[derive(PartialEq, Eq)]
struct Parsed {
    text: String,
    uri: Uri,
    /// Where it is on this machine, if it is plain.
    here: Option<IpAddr>,
}

/// Whom an address reaches: scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    scheme: &'static str,
    host: String,
    port: u16,
}

impl Address {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// What a request's line names: path and query.
    pub(crate) fn target(&self) -> &str {
        self.0
            .uri
            .path_and_query()
            .map_or("/", |path| path.as_str())
    }

    /// The path alone.
    pub(crate) fn path(&self) -> &str {
        self.0.uri.path()
    }

    /// Host and port as written.
    pub(crate) fn authority(&self) -> &str {
        self.0.uri.authority().map_or("", |it| it.as_str())
    }

    /// Where it is on this machine, if it is plain.
    pub(crate) fn here(&self) -> Option<IpAddr> {
        self.0.here
    }

    /// Whom it reaches.
    pub(crate) fn origin(&self) -> Origin {
        let (scheme, port) = match self.0.here {
            Some(_) => ("http", 80),
            None => ("https", 443),
        };
        Origin {
            scheme,
            host: self.0.uri.host().unwrap_or_default().to_ascii_lowercase(),
            port: self.0.uri.port_u16().unwrap_or(port),
        }
    }

    /// Another path at the same place, without a query.
    pub(crate) fn at(&self, path: &str) -> Result<Self, String> {
        let scheme = self.origin().scheme;
        format!("{scheme}://{}{path}", self.authority()).parse()
    }
}

impl Origin {
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| Err(format!("{} {why}", quoted(text, SHOWN_CHARS_MAX)));
        if text.len() > ADDRESS_BYTES_MAX {
            return bad("is too long");
        }
        // What a browser, a terminal or a log would read otherwise than we do.
        let odd = |b: u8| !b.is_ascii_graphic() || b"\"<>\\^`{|}".contains(&b);
        if text.bytes().any(odd) {
            return bad("is no URL");
        }
        if text.contains('#') {
            return bad("has a fragment, which no server sees");
        }
        let Ok(uri) = text.parse::<Uri>() else {
            return bad("is no URL");
        };
        let Some(authority) = uri.authority() else {
            return bad("names no server");
        };
        if authority.as_str().contains('@') {
            // Not shown: it may be one.
            return Err("a URL holds no secrets".into());
        }
        let here = match uri.scheme_str() {
            Some("https") => None,
            Some("http") => match loopback(authority.host()) {
                Some(here) => Some(here),
                None => {
                    return bad("is elsewhere: plain HTTP goes to this machine only; use https");
                }
            },
            _ => return bad("begins with neither https:// nor http://"),
        };
        Ok(Self(Arc::new(Parsed {
            text: text.to_owned(),
            uri,
            here,
        })))
    }
}

impl TryFrom<String> for Address {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.0.text.clone()
    }
}

fn loopback(host: &str) -> Option<IpAddr> {
    match host.trim_start_matches('[').trim_end_matches(']') {
        "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
        other => other.parse().ok().filter(IpAddr::is_loopback),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn plain_http_goes_to_this_machine_only() {
        for good in [
            "http://127.0.0.1:1/mcp",
            "http://localhost/mcp",
            "http://[::1]:9/",
            "https://x.example/mcp?a=b",
            "https://10.0.0.1/",
        ] {
            assert_eq!(address(good).as_str(), good);
        }
        for bad in [
            "http://x.example/mcp",
            "http://10.0.0.1/",
            "http://localhost.evil.example/",
            "http://127.0.0.1.evil.example/",
            "ftp://localhost/",
            "javascript:alert(1)",
            "file:///etc/passwd",
            "/mcp",
            "https:///mcp",
            "https://a:b@x.example/",
            "https://x.example/#a",
            "https://x.example/a b",
            "https://x.example\\@evil.example/",
            "https://x.example/\u{e9}",
            "https://x.example/\u{1b}[2J",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        assert!(
            format!("https://x.example/{}", "a".repeat(3_000))
                .parse::<Address>()
                .is_err()
        );
    }

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        let why = "https://ada:hunter2@x.example/"
            .parse::<Address>()
            .unwrap_err();
        assert!(!why.contains("hunter2"));
    }

    #[test]
    fn an_origin_is_scheme_host_and_port_however_they_are_written() {
        let same = |a: &str, b: &str| address(a).origin() == address(b).origin();
        assert!(same("https://X.example/a", "https://x.example:443/b?c"));
        assert!(same("http://localhost:80", "http://localhost/"));
        for other in [
            "https://x.example:444/",
            "https://x.example.evil/",
            "https://www.x.example",
        ] {
            assert!(!same("https://x.example/", other), "{other}");
        }
        assert!(!same("http://localhost:443", "https://localhost"));
        let moved = address("https://x.example:8443/a?b").at("/c").unwrap();
        assert_eq!(moved.as_str(), "https://x.example:8443/c");
    }
}
