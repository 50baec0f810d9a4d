//! What a person decides before there is an authorisation: at which server, as which client, by which means.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::scopes::Scopes;
use super::secret::Place;
use crate::mcp::address::Address;

/// On which terms an authorisation is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The MCP server that wants it, and to which alone it is shown.
    pub server: Address,
    /// Who is authorised.
    #[serde(flatten)]
    pub means: Means,
    /// Who has to be the one that authorises. Where a secret goes there, it has to be said: the server alone would
    /// decide otherwise who gets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<Address>,
    /// What it is asked for beside what the server wants.
    #[serde(default, skip_serializing_if = "Scopes::is_empty")]
    pub scopes: Scopes,
    /// Whom to believe who a server is (PEM); this system's authorities where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// Who is authorised, and how it shows that it may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "means", rename_all = "snake_case")]
pub enum Means {
    /// A person agrees in a browser (authorisation code with PKCE).
    Person {
        /// As which client, where one was registered by hand.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<Known>,
        /// Where others find what is said of this client, for servers that look there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        document: Option<Address>,
        /// Where the browser comes back to, on this machine; any free port where there is none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        redirect: Option<Address>,
    },
    /// The client is authorised itself (client credentials).
    Client {
        /// Which.
        client: Known,
    },
    /// The place where this runs is (RFC 7523): its platform gives it a token, and that token is exchanged.
    Workload {
        /// As which client, where the server wants to know.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        /// Where the platform puts the token, anew before it ends.
        assertion: Place,
    },
}

/// A client that was registered by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// By which the server knows it.
    pub id: String,
    /// What it proves itself with, if it can keep a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
}

/// What a client proves itself with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// What it shares with the server.
    Secret(Place),
    /// A file with a private key in PKCS#8 (PEM), whose public half the server knows.
    Key(PathBuf),
}

impl Terms {
    /// # Errors
    ///
    /// Where a secret would go to whomever the server names, a client has nothing to be authorised by, or the browser
    /// would come back to another machine.
    pub fn checked(self) -> Result<Self, String> {
        let known = match &self.means {
            Means::Person { client, .. } => client.as_ref(),
            Means::Client { client } => Some(client),
            Means::Workload { .. } => None,
        };
        let proves = known.is_some_and(|known| known.proof.is_some());
        let is_workload = matches!(self.means, Means::Workload { .. });
        if (proves || is_workload) && self.issuer.is_none() {
            return Err("who may be given a secret? Name the issuer".into());
        }
        if matches!(self.means, Means::Client { .. }) && !proves {
            return Err("a client that is authorised itself has a secret or a key".into());
        }
        if let Means::Person {
            redirect: Some(redirect),
            ..
        } = &self.means
            && (redirect.here().is_none() || redirect.target().contains('?'))
        {
            return Err(
                "the browser comes back to this machine: http://127.0.0.1:PORT/PATH".into(),
            );
        }
        if let Means::Person {
            document: Some(document),
            ..
        } = &self.means
            && document.here().is_some()
        {
            return Err("what is said of a client is read over https".into());
        }
        Ok(self)
    }

    /// What the client that was registered by hand proves itself with.
    pub(crate) fn proof(&self) -> Option<&Proof> {
        match &self.means {
            Means::Person { client, .. } => client.as_ref()?.proof.as_ref(),
            Means::Client { client } => client.proof.as_ref(),
            Means::Workload { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(proof: Option<Proof>) -> Known {
        Known {
            id: "fem".into(),
            proof,
        }
    }

    fn person(client: Option<Known>, document: Option<&str>, redirect: Option<&str>) -> Means {
        let address = |text: &str| text.parse().unwrap();
        Means::Person {
            client,
            document: document.map(address),
            redirect: redirect.map(address),
        }
    }

    fn check(means: Means, issuer: Option<&str>) -> Result<Terms, String> {
        let terms = Terms {
            server: "https://x.example/mcp".parse().unwrap(),
            means,
            issuer: issuer.map(|text| text.parse().unwrap()),
            scopes: Scopes::default(),
            ca_file: None,
        };
        terms.checked()
    }

    #[test]
    fn a_secret_goes_to_an_issuer_that_was_named_and_to_no_other() {
        let secret = || Some(Proof::Secret(Place::Variable("S".into())));
        let key = || Some(Proof::Key("key.pem".into()));
        let workload = Means::Workload {
            id: None,
            assertion: Place::Variable("T".into()),
        };
        for means in [
            person(Some(known(secret())), None, None),
            person(Some(known(key())), None, None),
            Means::Client {
                client: known(secret()),
            },
            workload,
        ] {
            assert!(check(means.clone(), None).is_err(), "{means:?}");
            assert!(check(means, Some("https://a.example")).is_ok());
        }
        assert!(check(person(Some(known(None)), None, None), None).is_ok());
        assert!(
            check(
                Means::Client {
                    client: known(None)
                },
                Some("https://a.example")
            )
            .is_err()
        );
    }

    #[test]
    fn the_browser_comes_back_to_this_machine() {
        for (redirect, is_fine) in [
            ("http://127.0.0.1:8080/cb", true),
            ("http://localhost:8080/", true),
            ("http://127.0.0.1:8080/?a=b", false),
            ("https://127.0.0.1:8080/", false),
            ("https://x.example/cb", false),
        ] {
            assert_eq!(
                check(person(None, None, Some(redirect)), None).is_ok(),
                is_fine,
                "{redirect}"
            );
        }
        assert!(check(person(None, Some("http://127.0.0.1/c"), None), None).is_err());
    }

    #[test]
    fn terms_are_kept_as_they_were_said() {
        let means = person(
            Some(known(Some(Proof::Key("k.pem".into())))),
            Some("https://f.example/c"),
            None,
        );
        let terms = check(means, Some("https://a.example")).unwrap();
        let text = serde_json::to_string(&terms).unwrap();
        assert_eq!(serde_json::from_str::<Terms>(&text).unwrap(), terms);
    }
}
