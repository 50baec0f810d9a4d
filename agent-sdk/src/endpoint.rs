//! Where a broker is: a host, a port, and the name that its certificate has to be for.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::ServerName;

/// Where a broker listens: always TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

impl Endpoint {
    /// For [`tokio::net::TcpStream::connect`].
    pub(crate) fn address(&self) -> (&str, u16) {
        (
            self.host.trim_start_matches('[').trim_end_matches(']'),
            self.port,
        )
    }

    /// As it stands in a URI and in `Host`.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// What the server's certificate has to be for.
    pub(crate) fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }
}

impl FromStr for Endpoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("`broker` is {text:?}, and has to look like https://127.0.0.1:7443");
        let uri: http::Uri = text.parse().map_err(|_| shape())?;
        let bare = uri.path() == "/" && uri.query().is_none();
        match (uri.scheme_str(), uri.host(), uri.authority()) {
            (Some("https"), Some(host), Some(authority))
                if bare && !authority.as_str().contains('@') =>
            {
                let inner = host
                    .trim_start_matches('[')
                    .trim_end_matches(']')
                    .to_owned();
                let name = ServerName::try_from(inner).map_err(|_| shape())?;
                Ok(Self {
                    host: host.to_owned(),
                    port: uri.port_u16().unwrap_or(443),
                    name,
                })
            }
            _ => Err(shape()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_reached_by_tls_or_not_at_all() {
        for bad in [
            "http://a:1",
            "a:1",
            "https://a:1/x",
            "https://u@a:1",
            "https://",
            "ws://a",
            "https://a?b",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
        for (good, address) in [
            ("https://127.0.0.1:7443", ("127.0.0.1", 7443)),
            ("https://[::1]:7443/", ("::1", 7443)),
            ("https://broker.acme.example", ("broker.acme.example", 443)),
        ] {
            assert_eq!(good.parse::<Endpoint>().unwrap().address(), address);
        }
    }
}
