//! Who asks, in the authorisation server's eyes: how a client becomes known to it, and shows who it is. Pure.
//!
//! Source: RFC 6749 §2.3, RFC 7591 (dynamic registration), RFC 7523 §2.2, OAuth Client ID Metadata Documents.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::metadata::Authority;
use super::scopes::Scopes;
use super::secret::{Secret, revealed};
use super::terms::Proof;
use crate::mcp::address::Address;

/// How a client shows who it is where tokens are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Showing {
    /// By its name alone: it keeps no secret.
    #[serde(rename = "none")]
    Name,
    /// By a secret in a header.
    #[serde(rename = "client_secret_basic")]
    SecretInHeader,
    /// By a secret in the form.
    #[serde(rename = "client_secret_post")]
    SecretInForm,
    /// By a statement that it signs.
    #[serde(rename = "private_key_jwt")]
    Signature,
}

/// A client that one authorisation server knows, and no other.
#[derive(Serialize, Deserialize)]
pub(crate) struct Client {
    /// Its name there; a workload may have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    pub(crate) showing: Showing,
    /// What it was given when it registered.
    #[serde(default, with = "revealed", skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Secret>,
}

impl Client {
    /// One that was registered by hand.
    ///
    /// # Errors
    ///
    /// Where the server knows no way for it to prove itself.
    pub(crate) fn known(
        id: &str,
        proof: Option<&Proof>,
        authority: &Authority,
    ) -> Result<Self, String> {
        let showing = match proof {
            None => Showing::Name,
            Some(Proof::Secret(_)) => {
                first(authority, &[Showing::SecretInHeader, Showing::SecretInForm])?
            }
            Some(Proof::Key(_)) => first(authority, &[Showing::Signature])?,
        };
        Ok(Self {
            id: Some(id.to_owned()),
            showing,
            secret: None,
        })
    }

    /// One that registers: what it says of itself, and how it will show that it is the one.
    ///
    /// # Errors
    ///
    /// Where the server knows no way that a program on somebody's machine can.
    pub(crate) fn registering(
        authority: &Authority,
        redirect: &Address,
        scopes: &Scopes,
    ) -> Result<(String, Showing), String> {
        let showing = first(
            authority,
            &[
                Showing::Name,
                Showing::SecretInHeader,
                Showing::SecretInForm,
            ],
        )?;
        let mut request = json!({
            "client_name": "FEM",
            "application_type": "native",
            "redirect_uris": [redirect],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": showing,
        });
        if !scopes.is_empty() {
            request["scope"] = json!(scopes);
        }
        Ok((request.to_string(), showing))
    }

    /// What came of registering.
    ///
    /// # Errors
    ///
    /// Where it is no registration.
    pub(crate) fn registered(bytes: &[u8], asked: Showing) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Written {
            client_id: String,
            #[serde(default, with = "revealed")]
            client_secret: Option<Secret>,
            token_endpoint_auth_method: Option<Showing>,
        }
        let written: Written = serde_json::from_slice(bytes)
            .map_err(|why| format!("the registration cannot be read: {why}"))?;
        let showing = written.token_endpoint_auth_method.unwrap_or(asked);
        let keeps = matches!(showing, Showing::SecretInHeader | Showing::SecretInForm);
        if showing == Showing::Signature || (keeps && written.client_secret.is_none()) {
            return Err("the registration is one that this client cannot use".into());
        }
        Ok(Self {
            id: Some(written.client_id),
            showing,
            secret: written.client_secret.filter(|_| keeps),
        })
    }
}

/// The first of these ways that the server knows.
fn first(authority: &Authority, ways: &[Showing]) -> Result<Showing, String> {
    let known = |way: &&Showing| {
        let name = json!(way);
        authority
            .methods
            .iter()
            .any(|method| name == method.as_str())
    };
    ways.iter().find(known).copied().ok_or_else(|| {
        let issuer = &authority.issuer;
        format!("{issuer} has clients show who they are in no way that is known here")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::login::secret::Place;

    fn authority(methods: &[&str]) -> Authority {
        let document = json!({
            "issuer": "https://a.example",
            "token_endpoint": "https://a.example/t",
            "token_endpoint_auth_methods_supported": methods,
        });
        let issuer = "https://a.example".parse().unwrap();
        Authority::read(document.to_string().as_bytes(), &issuer, &issuer).unwrap()
    }

    #[test]
    fn a_client_shows_who_it_is_in_a_way_that_the_server_knows() {
        let secret = Proof::Secret(Place::Variable("S".into()));
        let key = Proof::Key("key.pem".into());
        let showing = |proof: Option<&Proof>, methods: &[&str]| {
            let client = Client::known("fem", proof, &authority(methods));
            client.map(|client| client.showing).ok()
        };
        let all = [
            "private_key_jwt",
            "client_secret_post",
            "client_secret_basic",
            "none",
        ];
        assert_eq!(showing(None, &all), Some(Showing::Name));
        assert_eq!(showing(Some(&secret), &all), Some(Showing::SecretInHeader));
        assert_eq!(
            showing(Some(&secret), &["client_secret_post"]),
            Some(Showing::SecretInForm)
        );
        assert_eq!(
            showing(Some(&secret), &["none"]),
            None,
            "a secret is not left out"
        );
        assert_eq!(showing(Some(&key), &all), Some(Showing::Signature));
        assert_eq!(showing(Some(&key), &["client_secret_basic"]), None);
    }

    #[test]
    fn a_registration_is_taken_as_the_server_gives_it() {
        let redirect = "http://127.0.0.1:1/callback".parse().unwrap();
        let scopes = "a b".parse().unwrap();
        let (request, asked) =
            Client::registering(&authority(&["client_secret_post"]), &redirect, &scopes).unwrap();
        let request: serde_json::Value = serde_json::from_str(&request).unwrap();
        assert_eq!(request["token_endpoint_auth_method"], "client_secret_post");
        assert_eq!(request["application_type"], "native");
        assert_eq!(request["redirect_uris"][0], "http://127.0.0.1:1/callback");
        assert_eq!(request["scope"], "a b");
        assert_eq!(asked, Showing::SecretInForm);
        let read = |text: &str| Client::registered(text.as_bytes(), asked);
        let basic = read(r#"{"client_id":"c","client_secret":"s","token_endpoint_auth_method":"client_secret_basic"}"#).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(basic.showing, Showing::SecretInHeader);
        let none =
            read(r#"{"client_id":"c","client_secret":"s","token_endpoint_auth_method":"none"}"#)
                .unwrap_or_else(|why| panic!("{why}"));
        assert!(none.secret.is_none(), "what is never shown is not kept");
        for bad in [
            "{}",
            r#"{"client_id":"c"}"#,
            r#"{"client_id":"c","token_endpoint_auth_method":"private_key_jwt"}"#,
            "[]",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(Client::registering(&authority(&["tls_client_auth"]), &redirect, &scopes).is_err());
    }
}
