//! Where older agents may be called: what the operator lists, and which addresses that lets be connected to.
//!
//! What an agent says of itself is never where it is called. It has to be on the list, letter by letter; and
//! as a name may lead anywhere, what it leads to has to be an address of the open internet, or on the list too.

use std::net::{IpAddr, SocketAddr};

use serde::{Serialize, Serializer};

/// Entries of the list.
const ENDPOINTS_MAX: usize = 256;

/// One place: `http://host:port/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    text: String,
    host: String,
    port: u16,
    path: String,
}

impl Endpoint {
    /// # Errors
    ///
    /// What is wrong with it, for the operator.
    fn read(text: &str) -> Result<Self, String> {
        let uri: http::Uri = text.parse().map_err(|why| format!("{text:?}: {why}"))?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        // Also what a reader would pass over: a fragment, a query, a missing path, credentials.
        let plain = format!("http://{authority}{}", uri.path());
        let host = uri.host().unwrap_or_default();
        if host.is_empty() || authority.contains('@') || plain != text {
            return Err(format!(
                "{text:?} is not http://host:port/path, with nothing before the host and behind the path"
            ));
        }
        Ok(Self {
            text: text.to_owned(),
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(80),
            path: uri.path().to_owned(),
        })
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `host:port` as an HTTP request names it.
    #[must_use]
    pub fn authority(&self) -> &str {
        let rest = self.text.trim_start_matches("http://");
        rest.split('/').next().unwrap_or(rest)
    }

    /// The path of a request.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What its name leads to now: asked once, and then it is the address that counts.
    ///
    /// # Errors
    ///
    /// When it cannot be found out.
    pub async fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        match self.address() {
            Some(address) => Ok(vec![address]),
            None => {
                let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
                Ok(found.collect())
            }
        }
    }

    /// The address that it names, where its host is one.
    fn address(&self) -> Option<SocketAddr> {
        let host: IpAddr = self.host.parse().ok()?;
        Some(SocketAddr::new(host, self.port))
    }
}

/// All places where older agents may be called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints(Vec<Endpoint>);

impl Endpoints {
    /// Reads a list; what is wrong with it is told to `problem`, all of it.
    #[must_use]
    pub fn read(texts: &[String], mut problem: impl FnMut(String)) -> Self {
        if texts.len() > ENDPOINTS_MAX {
            problem(format!("more than {ENDPOINTS_MAX}"));
        }
        let read = |text: &String| Endpoint::read(text).map_err(&mut problem).ok();
        Self(texts.iter().filter_map(read).collect())
    }

    /// The entry that is exactly this text.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<&Endpoint> {
        self.0.iter().find(|one| one.text == text)
    }

    /// Whether an older agent may be called at this address, whatever led to it.
    #[must_use]
    pub fn lets(&self, address: SocketAddr) -> bool {
        let plain = |address: SocketAddr| (address.ip().to_canonical(), address.port());
        let names = |one: &Endpoint| one.address().map(plain) == Some(plain(address));
        !is_special(address.ip()) || self.0.iter().any(names)
    }
}

impl Serialize for Endpoints {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Endpoint::as_str))
    }
}

/// Whether an address is not one of the open internet: this machine, a private or local network, many at once,
/// none at all, or one that hides another.
fn is_special(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_documentation()
                || a == 0
                || a >= 224
                || (a == 100 && b & 0xc0 == 64)
                || (a == 198 && b & 0xfe == 18)
                || (a, b, c) == (192, 0, 0)
                || (a, b, c) == (192, 88, 99)
        }
        IpAddr::V6(address) => {
            let [a, b, ..] = address.segments();
            a & 0xe000 != 0x2000
                || a == 0x2002
                || (a == 0x2001 && (b < 0x0200 || b == 0x0db8))
                || (a == 0x3fff && b < 0x1000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> (Endpoints, Vec<String>) {
        let mut problems = Vec::new();
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let endpoints = Endpoints::read(&texts, |problem| problems.push(problem));
        (endpoints, problems)
    }

    #[test]
    fn an_endpoint_is_written_in_one_way() {
        for good in [
            "http://10.0.0.5:8080/mcp",
            "http://coder.example/mcp",
            "http://[2001:470::1]:8080/",
        ] {
            let (endpoints, problems) = read(&[good]);
            assert!(problems.is_empty(), "{problems:?}");
            assert!(endpoints.find(good).is_some());
            assert!(endpoints.find(&format!("{good}/")).is_none());
        }
        for bad in [
            "https://h/mcp",
            "http://h",
            "http://h/mcp?x=1",
            "http://h/mcp#x",
            "http://user@h/mcp",
            "HTTP://h/mcp",
            "/mcp",
            "h:80",
            "",
        ] {
            assert_eq!(read(&[bad]).1.len(), 1, "{bad}");
        }
        assert_eq!(read(&["http://h/"; ENDPOINTS_MAX + 1]).1.len(), 1);
    }

    #[test]
    fn a_special_address_is_connected_to_only_where_the_list_names_it() {
        let (endpoints, _) = read(&[
            "http://localhost:8080/mcp",
            "http://127.0.0.1:8081/mcp",
            "http://[::1]:8082/mcp",
        ]);
        for (address, lets) in [
            ("127.0.0.1:8080", false),
            ("127.0.0.1:8081", true),
            ("[::ffff:127.0.0.1]:8081", true),
            ("[::1]:8082", true),
            ("[::1]:8081", false),
            ("0.0.0.0:8081", false),
            ("10.1.2.3:80", false),
            ("172.16.0.1:80", false),
            ("192.168.0.1:80", false),
            ("169.254.169.254:80", false),
            ("100.64.0.1:80", false),
            ("198.18.0.1:80", false),
            ("224.0.0.1:80", false),
            ("255.255.255.255:80", false),
            ("[fe80::1]:80", false),
            ("[fd00::1]:80", false),
            ("[ff02::1]:80", false),
            ("[::]:80", false),
            ("[64:ff9b::a00:1]:80", false),
            ("[2002:a00:1::]:80", false),
            ("[2001:db8::1]:80", false),
            ("[::ffff:10.0.0.1]:80", false),
            ("8.8.8.8:80", true),
            ("100.128.0.1:80", true),
            ("[2606:4700::1]:80", true),
        ] {
            assert_eq!(endpoints.lets(address.parse().unwrap()), lets, "{address}");
        }
    }
}
