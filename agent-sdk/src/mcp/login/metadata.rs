//! What servers say of themselves: who authorises for a resource, and how an authorisation server is asked. Pure.
//!
//! Source: RFC 9728 (protected resources), RFC 8414 and OpenID Connect Discovery 1.0 (authorisation servers), MCP
//! 2026-07-28 *Authorization*.

use serde::Deserialize;

use super::scopes::Scopes;
use crate::mcp::address::Address;
use crate::mcp::words::quoted;

/// Authorisation servers that a resource may name.
const ISSUERS_MAX: usize = 16;
/// What of a document's text an error shows.
const SHOWN_CHARS: usize = 120;

/// A resource that wants authorisations.
#[derive(Debug)]
pub(crate) struct Resource {
    /// Its identifier, as it writes it: what tokens are asked for.
    pub(crate) identifier: Address,
    /// Who authorises for it.
    pub(crate) issuers: Vec<String>,
    /// All that can be asked for.
    pub(crate) scopes: Option<Scopes>,
}

#[derive(Deserialize)]
struct WrittenResource {
    resource: String,
    #[serde(default)]
    authorization_servers: Vec<String>,
    scopes_supported: Option<Vec<String>>,
}

impl Resource {
    /// Reads what is said of the resource `server`.
    ///
    /// # Errors
    ///
    /// Where it is no such document, says it of another resource, or names nobody who authorises. A resource that
    /// is a part of another (`https://x.example/mcp` of `https://x.example`) is that one: what is asked for is good
    /// there too, and shown to `server` alone.
    pub(crate) fn read(bytes: &[u8], server: &Address) -> Result<Self, String> {
        let written: WrittenResource = serde_json::from_slice(bytes)
            .map_err(|why| format!("what is said of the resource cannot be read: {why}"))?;
        let other = || {
            let other = shown(&written.resource);
            format!("what is said is of the resource {other}, and not of {server}")
        };
        let identifier: Address = written.resource.parse().map_err(|_| other())?;
        if !is_part(server, &identifier) {
            return Err(other());
        }
        let issuers = written.authorization_servers;
        if issuers.is_empty() || issuers.len() > ISSUERS_MAX {
            return Err(format!(
                "{server} names {} servers that authorise",
                issuers.len()
            ));
        }
        Ok(Self {
            identifier,
            issuers,
            scopes: all(written.scopes_supported)?,
        })
    }

    /// Who is asked: whom the user expects, or the first. Its address is the one of the document about it.
    ///
    /// # Errors
    ///
    /// Where whom the user expects is not among them.
    pub(crate) fn issuer(&self, expected: Option<&Address>) -> Result<Address, String> {
        let Some(expected) = expected else {
            let first = self.issuers.first().map_or("", String::as_str);
            return first.parse();
        };
        let is_there = self.issuers.iter().any(|one| one == expected.as_str());
        let named = || {
            self.issuers
                .iter()
                .map(|one| shown(one))
                .collect::<Vec<_>>()
        };
        match is_there {
            true => Ok(expected.clone()),
            false => Err(format!(
                "{} is authorised for by {}, and not by {expected}",
                self.identifier,
                named().join(", ")
            )),
        }
    }
}

/// Whether `part` lies at or below `whole`.
fn is_part(part: &Address, whole: &Address) -> bool {
    let (below, above) = (part.path(), whole.path().trim_end_matches('/'));
    let rest = below.strip_prefix(above);
    part.origin() == whole.origin()
        && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        && (!whole.target().contains('?') || part.target() == whole.target())
}

/// Where the document about a resource can be, in the order in which it is looked for: where the server `named` it,
/// and nowhere else; or below its own path, and at its root.
///
/// # Errors
///
/// Where the place that it named is not its own.
pub(crate) fn resource_places(
    server: &Address,
    named: Option<&str>,
) -> Result<Vec<Address>, String> {
    const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";
    if let Some(named) = named {
        let place: Address = named.parse()?;
        return match place.origin() == server.origin() {
            true => Ok(vec![place]),
            false => Err(format!(
                "{server} says that {place} knows who authorises, which is another server"
            )),
        };
    }
    let mut places = Vec::new();
    if server.target() != "/" {
        places.push(server.at(&format!("{WELL_KNOWN}{}", server.target()))?);
    }
    places.push(server.at(WELL_KNOWN)?);
    Ok(places)
}

/// An authorisation server.
#[derive(Debug)]
pub(crate) struct Authority {
    /// Its name, as it writes it.
    pub(crate) issuer: Address,
    /// Where people agree.
    pub(crate) authorize: Option<Address>,
    /// Where tokens are given.
    pub(crate) token: Address,
    /// Where clients make themselves known.
    pub(crate) register: Option<Address>,
    /// All that can be asked for.
    pub(crate) scopes: Option<Scopes>,
    /// How clients may show who they are, by their registered names.
    pub(crate) methods: Vec<String>,
    /// With which algorithms they may sign.
    pub(crate) algorithms: Option<Vec<String>>,
    /// It says in every answer who it is (RFC 9207).
    pub(crate) says_iss: bool,
    /// A client may be the address of what is said of it.
    pub(crate) reads_documents: bool,
    /// Who stole a code cannot use it (PKCE).
    pub(crate) binds_codes: bool,
}

#[derive(Deserialize)]
struct WrittenAuthority {
    issuer: String,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    registration_endpoint: Option<String>,
    scopes_supported: Option<Vec<String>>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    token_endpoint_auth_signing_alg_values_supported: Option<Vec<String>>,
    #[serde(default)]
    code_challenge_methods_supported: Vec<String>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
    #[serde(default)]
    client_id_metadata_document_supported: bool,
}

impl Authority {
    /// Reads what is said of `issuer`, for somebody who wants to reach `server`.
    ///
    /// # Errors
    ///
    /// Where it is no such document, says it of another, names no place for tokens, or a place that may not be asked:
    /// plain HTTP is for this machine, and a server that is elsewhere names none here.
    pub(crate) fn read(bytes: &[u8], issuer: &Address, server: &Address) -> Result<Self, String> {
        let written: WrittenAuthority = serde_json::from_slice(bytes)
            .map_err(|why| format!("what is said of {issuer} cannot be read: {why}"))?;
        if written.issuer != issuer.as_str() {
            let other = shown(&written.issuer);
            return Err(format!("what is said of {issuer} is of {other}"));
        }
        let place = |text: Option<String>| {
            let place: Option<Address> = text.map(|text| text.parse()).transpose()?;
            place.map(|place| reachable(place, server)).transpose()
        };
        let token = place(written.token_endpoint)?;
        let basic = || vec!["client_secret_basic".to_owned()];
        Ok(Self {
            issuer: issuer.clone(),
            authorize: place(written.authorization_endpoint)?,
            token: token.ok_or_else(|| format!("{issuer} gives no tokens"))?,
            register: place(written.registration_endpoint)?,
            scopes: all(written.scopes_supported)?,
            methods: written
                .token_endpoint_auth_methods_supported
                .unwrap_or_else(basic),
            algorithms: written.token_endpoint_auth_signing_alg_values_supported,
            says_iss: written.authorization_response_iss_parameter_supported,
            reads_documents: written.client_id_metadata_document_supported,
            binds_codes: written
                .code_challenge_methods_supported
                .iter()
                .any(|method| method == "S256"),
        })
    }
}

/// A place that somebody who wants to reach `server` may be sent to: on this machine only where `server` is.
///
/// # Errors
///
/// Where it is not.
pub(crate) fn reachable(place: Address, server: &Address) -> Result<Address, String> {
    match place.here().is_none() || server.here().is_some() {
        true => Ok(place),
        false => Err(format!(
            "{server} leads to {place}, which is on this machine"
        )),
    }
}

/// Where the document about an issuer can be, in the order in which it is looked for.
///
/// # Errors
///
/// Where no address can be made of it.
pub(crate) fn authority_places(issuer: &Address) -> Result<Vec<Address>, String> {
    const OAUTH: &str = "/.well-known/oauth-authorization-server";
    const OPENID: &str = "/.well-known/openid-configuration";
    let path = issuer.path().trim_end_matches('/');
    let mut paths = vec![format!("{OAUTH}{path}"), format!("{OPENID}{path}")];
    if !path.is_empty() {
        paths.push(format!("{path}{OPENID}"));
    }
    paths.iter().map(|path| issuer.at(path)).collect()
}

fn all(scopes: Option<Vec<String>>) -> Result<Option<Scopes>, String> {
    scopes.map(|all| all.join(" ").parse()).transpose()
}

fn shown(text: &str) -> String {
    quoted(text, SHOWN_CHARS)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    fn resource(server: &str, identifier: &str) -> Result<Resource, String> {
        let document =
            json!({"resource": identifier, "authorization_servers": ["https://a.example"]});
        Resource::read(document.to_string().as_bytes(), &address(server))
    }

    #[test]
    fn what_is_said_of_another_resource_is_not_believed() {
        let server = "https://x.example/a/mcp";
        for own in [
            server,
            "https://x.example/a",
            "https://X.example:443/a/",
            "https://x.example",
            "https://x.example/",
        ] {
            let read = resource(server, own).unwrap();
            assert_eq!(read.identifier.as_str(), own, "as it is written");
        }
        for other in [
            "https://evil.example/a/mcp",
            "https://x.example/a/mc",
            "https://x.example/a/mcp/b",
            "https://x.example/b",
            "https://x.example/a?b=c",
            "http://x.example/a/mcp",
            "x.example",
            "",
        ] {
            assert!(resource(server, other).is_err(), "{other}");
        }
    }

    #[test]
    fn a_resource_is_looked_for_at_its_own_server_only() {
        let places = |server: &str, named| {
            let places = resource_places(&address(server), named)?;
            Ok(places.iter().map(|one| one.as_str().to_owned()).collect())
        };
        let found: Result<Vec<String>, String> = places("https://x.example/mcp", None);
        assert_eq!(
            found.unwrap(),
            [
                "https://x.example/.well-known/oauth-protected-resource/mcp",
                "https://x.example/.well-known/oauth-protected-resource"
            ]
        );
        let root = "https://x.example/.well-known/oauth-protected-resource";
        assert_eq!(places("https://x.example", None).unwrap(), [root]);
        let named = "https://x.example/m.json";
        assert_eq!(
            places("https://x.example/mcp", Some(named)).unwrap(),
            [named]
        );
        for other in [
            "https://evil.example/m",
            "http://127.0.0.1/m",
            "https://x.example:444/m",
            "m",
        ] {
            assert!(
                places("https://x.example/mcp", Some(other)).is_err(),
                "{other}"
            );
        }
    }

    #[test]
    fn whom_the_user_expects_is_asked_or_nobody() {
        let document = json!({"resource": "https://x.example", "authorization_servers": ["https://a.example", "https://b.example"]});
        let read = Resource::read(
            document.to_string().as_bytes(),
            &address("https://x.example"),
        )
        .unwrap();
        assert_eq!(read.issuer(None).unwrap().as_str(), "https://a.example");
        let b = address("https://b.example");
        assert_eq!(read.issuer(Some(&b)).unwrap(), b);
        for other in ["https://c.example", "https://b.example/"] {
            assert!(read.issuer(Some(&address(other))).is_err());
        }
        for none in [
            json!([]),
            json!(vec!["https://a.example"; ISSUERS_MAX + 1]),
            json!("https://a.example"),
        ] {
            let document = json!({"resource": "https://x.example", "authorization_servers": none});
            assert!(
                Resource::read(
                    document.to_string().as_bytes(),
                    &address("https://x.example")
                )
                .is_err()
            );
        }
    }

    #[test]
    fn an_issuer_is_looked_for_where_both_standards_say() {
        let places = |issuer: &str| -> Vec<String> {
            let places = authority_places(&address(issuer)).unwrap();
            places.iter().map(|one| one.as_str().to_owned()).collect()
        };
        assert_eq!(
            places("https://a.example/"),
            [
                "https://a.example/.well-known/oauth-authorization-server",
                "https://a.example/.well-known/openid-configuration"
            ]
        );
        assert_eq!(
            places("https://a.example/t/"),
            [
                "https://a.example/.well-known/oauth-authorization-server/t",
                "https://a.example/.well-known/openid-configuration/t",
                "https://a.example/t/.well-known/openid-configuration"
            ]
        );
    }

    fn authority(change: &[(&str, serde_json::Value)], server: &str) -> Result<Authority, String> {
        let mut document = json!({
            "issuer": "https://a.example/t",
            "authorization_endpoint": "https://a.example/authorize",
            "token_endpoint": "https://tokens.example/token",
            "code_challenge_methods_supported": ["plain", "S256"],
        });
        for (name, value) in change {
            document[name] = value.clone();
        }
        let issuer = address("https://a.example/t");
        Authority::read(document.to_string().as_bytes(), &issuer, &address(server))
    }

    #[test]
    fn what_is_said_of_another_issuer_is_not_believed() {
        let server = "https://x.example";
        let read = authority(&[], server).unwrap();
        assert!(read.binds_codes && !read.says_iss && !read.reads_documents);
        assert_eq!(read.methods, ["client_secret_basic"]);
        for other in [
            "https://evil.example",
            "https://a.example/t/",
            "https://A.example/t",
            "",
        ] {
            assert!(
                authority(&[("issuer", other.into())], server).is_err(),
                "{other}"
            );
        }
    }

    #[test]
    fn a_server_elsewhere_leads_nobody_to_this_machine() {
        for name in [
            "token_endpoint",
            "authorization_endpoint",
            "registration_endpoint",
        ] {
            for place in [
                "http://127.0.0.1:9/",
                "http://localhost/",
                "http://a.example/",
                "javascript:alert(1)",
                "file:///x",
            ] {
                let change = [(name, place.into())];
                assert!(
                    authority(&change, "https://x.example").is_err(),
                    "{name} {place}"
                );
            }
            let here = [(name, "http://127.0.0.1:9/".into())];
            assert!(authority(&here, "http://localhost:8/mcp").is_ok(), "{name}");
        }
        assert!(
            authority(
                &[("token_endpoint", serde_json::Value::Null)],
                "https://x.example"
            )
            .is_err()
        );
    }
}
