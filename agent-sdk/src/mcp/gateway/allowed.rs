//! By which names this place may be addressed, and from which web pages. A page elsewhere that has its own name
//! point here would otherwise have a browser speak for it, with all that the browser's owner may do.

use http::header::{HOST, ORIGIN};
use http::request::Parts;

/// What may stand in `Host` and `Origin`. By itself nothing may.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    /// Names by which this place is addressed, without ports: `mcp.acme.example`, `127.0.0.1`, `[::1]`.
    pub hosts: Vec<String>,
    /// Web pages' origins that may call, beside those of the very host and port that is addressed:
    /// `https://app.acme.example`.
    pub origins: Vec<String>,
}

/// Whether a request was addressed here, and by nobody's page or one that may.
pub(super) fn permits(allowed: &Allowed, head: &Parts) -> bool {
    let one = |name| {
        let mut values = head.headers.get_all(name).iter();
        let value = values.next();
        (value, values.next().is_none())
    };
    let (host, is_one) = one(HOST);
    let authority = match (head.uri.authority(), host) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) if is_one => host.to_str().unwrap_or_default(),
        _ => return false,
    };
    let name = name_of(authority);
    if !allowed
        .hosts
        .iter()
        .any(|host| host.eq_ignore_ascii_case(name))
    {
        return false;
    }
    match one(ORIGIN) {
        (None, _) => true,
        (Some(origin), true) => origin.to_str().is_ok_and(|origin| {
            let (_, of) = origin.split_once("://").unwrap_or_default();
            of.eq_ignore_ascii_case(authority) || allowed.origins.iter().any(|page| page == origin)
        }),
        (Some(_), false) => false,
    }
}

/// An authority without its port.
fn name_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[track_caller]
    fn check(host: &str, origin: Option<&str>, expected: bool) {
        let allowed = Allowed {
            hosts: vec![
                "mcp.acme.example".into(),
                "127.0.0.1".into(),
                "[::1]".into(),
            ],
            origins: vec!["https://app.acme.example".into()],
        };
        let mut request = Request::builder().uri("/mcp").header(HOST, host);
        if let Some(origin) = origin {
            request = request.header(ORIGIN, origin);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(permits(&allowed, &head), expected, "{host} {origin:?}");
    }

    #[test]
    fn only_its_own_names_and_pages_reach_this_place() {
        check("mcp.acme.example", None, true);
        check("MCP.acme.example:8443", None, true);
        check("[::1]:3000", None, true);
        check("127.0.0.1:9", Some("http://127.0.0.1:9"), true);
        check("127.0.0.1:9", Some("https://app.acme.example"), true);
        check("127.0.0.1:9", Some("http://127.0.0.1:10"), false);
        check("127.0.0.1:9", Some("http://evil.example.com"), false);
        check("127.0.0.1:9", Some("null"), false);
        check("evil.example.com", None, false);
        check("evil.example.com", Some("http://evil.example.com"), false);
        check("mcp.acme.example.evil.com", None, false);
        check("", None, false);
    }

    #[test]
    fn whoever_allows_nothing_is_reached_by_nobody() {
        let request = Request::builder()
            .header(HOST, "127.0.0.1")
            .body(())
            .unwrap();
        assert!(!permits(&Allowed::default(), &request.into_parts().0));
    }
}
