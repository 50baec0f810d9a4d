//! Getting an authorisation: who gives it is found out, a person agrees in a browser, or the client shows that it may,
//! and what comes of it is kept.
//!
//! Source: MCP 2026-07-28 *Authorization*, RFC 9728 §5.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto_spec::Timestamp;

use super::ask::{ask, renew};
use super::challenge::Challenge;
use super::client::{Client, Showing};
use super::consent::Question;
use super::exchange::Web;
use super::file::{Authorisation, Kept, Turn};
use super::loopback::Loopback;
use super::metadata::{Authority, Resource, authority_places, reachable, resource_places};
use super::scopes::Scopes;
use super::terms::{Means, Terms};
use super::token::{Denied, Given, Grant};
use crate::mcp::address::Address;
use crate::mcp::way::roots;
use crate::mcp::wrap::discovery_message;

/// The scope by which a server is asked for what renews a token, where it knows it.
const OFFLINE: &str = "offline_access";

/// Somebody logs in to an MCP server.
pub struct Login {
    file: PathBuf,
    terms: Terms,
    before: Option<Kept>,
}

/// What a person is asked to open.
#[derive(Debug)]
pub struct Invitation {
    /// In a browser.
    pub address: String,
    /// Who will ask there.
    pub issuer: Address,
    /// For what.
    pub scopes: Scopes,
}

/// What was agreed to.
#[derive(Debug)]
pub struct Agreed {
    /// The MCP server at which it is good.
    pub server: Address,
    /// Who gave it.
    pub issuer: Address,
    /// For what.
    pub scopes: Scopes,
    /// Until when the token is good, if that is known.
    pub expires: Option<Timestamp>,
    /// Whether it is renewed with nobody at hand.
    pub renews: bool,
}

/// What is known of the servers before anybody is asked.
struct Found {
    resource: Resource,
    authority: Authority,
    scopes: Scopes,
}

impl Login {
    /// On these terms, or on those that the file has from an earlier login.
    ///
    /// # Errors
    ///
    /// Where there are none, the terms cannot be, or the file is another's: of another server, or none of ours.
    pub fn new(file: PathBuf, terms: Option<Terms>) -> Result<Self, String> {
        let before = match file.exists() {
            true => Some(Kept::read(&file)?),
            false => None,
        };
        let terms = match (terms, &before) {
            (Some(terms), Some(before)) if terms.server != before.terms.server => {
                let (file, other) = (file.display(), &before.terms.server);
                return Err(format!("{file} is for {other}: name another file"));
            }
            (Some(terms), _) => terms.checked()?,
            (None, Some(before)) => before.terms.clone(),
            (None, None) => {
                let file = file.display();
                return Err(format!(
                    "{file} does not exist, so nothing says which server it is for: a first login names it with --url"
                ));
            }
        };
        Ok(Self {
            file,
            terms,
            before,
        })
    }

    /// Logs in. `show` is called where a person is asked, who then has `patience` to answer.
    ///
    /// # Errors
    ///
    /// Why there is no authorisation, or why it cannot be kept. What was there before is there still.
    pub async fn run(
        self,
        patience: Duration,
        show: impl FnOnce(&Invitation) + Send,
    ) -> Result<Agreed, String> {
        let web = Web::new(roots(self.terms.ca_file.as_deref())?);
        let found = self.find(&web).await?;
        let authorisation = match &self.terms.means {
            Means::Person { .. } => self.agreed(&web, found, patience, show).await?,
            Means::Client { client } => {
                let known = Client::known(&client.id, client.proof.as_ref(), &found.authority)?;
                self.own(&web, found, known).await?
            }
            Means::Workload { id, .. } => {
                let workload = Client {
                    id: id.clone(),
                    showing: Showing::Name,
                    secret: None,
                };
                self.own(&web, found, workload).await?
            }
        };
        self.keep(authorisation).await
    }

    /// Who gives an authorisation, and for what it has to be.
    async fn find(&self, web: &Web) -> Result<Found, String> {
        let server = &self.terms.server;
        let challenge = web.challenge(server, discovery_message()).await?;
        let is_wanted = challenge.is_some();
        let challenge = challenge.unwrap_or_default();
        let places = resource_places(server, challenge.metadata.as_deref())?;
        let document = web.first(&places).await.map_err(|why| match is_wanted {
            true => format!("{server} wants an authorisation and says not whose: {why}"),
            false => format!("{server} wants no authorisation"),
        })?;
        let resource = Resource::read(&document, server)?;
        let issuer = reachable(resource.issuer(self.terms.issuer.as_ref())?, server)?;
        let document = web.first(&authority_places(&issuer)?).await?;
        let authority = Authority::read(&document, &issuer, server)?;
        let scopes = self.scopes(&challenge, &resource, &authority)?;
        Ok(Found {
            resource,
            authority,
            scopes,
        })
    }

    /// What is asked for: what the server wants, or all that it knows where it wants nothing in particular; what the
    /// terms say; and what was asked for before, for a new token takes the old one's place.
    fn scopes(
        &self,
        challenge: &Challenge,
        resource: &Resource,
        authority: &Authority,
    ) -> Result<Scopes, String> {
        let wanted = challenge.scopes.as_ref().or(resource.scopes.as_ref());
        let mut scopes = self.terms.scopes.clone();
        scopes = scopes.with(wanted.unwrap_or(&Scopes::default()))?;
        if let Some(Kept {
            wanted,
            authorisation: before,
            ..
        }) = &self.before
            && before.issuer == authority.issuer
        {
            scopes = scopes.with(wanted)?.with(&before.asked)?;
        }
        let offline: Scopes = OFFLINE.parse()?;
        let knows = authority
            .scopes
            .as_ref()
            .is_some_and(|all| all.cover(&offline));
        match knows && matches!(self.terms.means, Means::Person { .. }) {
            true => scopes.with(&offline),
            false => Ok(scopes),
        }
    }

    /// A person agrees.
    async fn agreed(
        &self,
        web: &Web,
        found: Found,
        patience: Duration,
        show: impl FnOnce(&Invitation),
    ) -> Result<Authorisation, String> {
        let Means::Person { redirect, .. } = &self.terms.means else {
            return Err("nobody is asked".into());
        };
        let question = Arc::new(Question::new(&found.authority)?);
        let issuer = found.authority.issuer.clone();
        let endpoint = found.authority.authorize.clone();
        let endpoint = endpoint.ok_or_else(|| format!("{issuer} asks nobody"))?;
        let page = Loopback::open(redirect.as_ref()).await?;
        let redirect = page.address().clone();
        let client = self.client(web, &found, &redirect).await?;
        let address = question.address(
            &endpoint,
            client.id.as_deref().unwrap_or_default(),
            &redirect,
            &found.resource.identifier,
            &found.scopes,
        );
        show(&Invitation {
            address,
            issuer,
            scopes: found.scopes.clone(),
        });
        let code = tokio::time::timeout(patience, page.answer(&question))
            .await
            .unwrap_or_else(|_| Err("nobody answered in time".into()))?;
        let mut authorisation = found.nothing_yet(client);
        let grant = Grant::Code {
            code: &code,
            verifier: &question.verifier,
            redirect: &redirect,
        };
        let scopes = authorisation.asked.clone();
        let given = ask(web, &self.terms, &authorisation, &grant, &scopes).await;
        authorisation.take(given.map_err(|why| in_words(&authorisation, why))?);
        Ok(authorisation)
    }

    /// As which client a person is asked: one that was registered by hand, one that says of itself elsewhere what it
    /// is, or one that registers for this login.
    async fn client(&self, web: &Web, found: &Found, redirect: &Address) -> Result<Client, String> {
        let authority = &found.authority;
        let Means::Person {
            client, document, ..
        } = &self.terms.means
        else {
            return Err("nobody is asked".into());
        };
        if let Some(known) = client {
            return Client::known(&known.id, known.proof.as_ref(), authority);
        }
        if let Some(document) = document.as_ref().filter(|_| authority.reads_documents) {
            return Ok(Client {
                id: Some(document.to_string()),
                showing: Showing::Name,
                secret: None,
            });
        }
        let Some(place) = &authority.register else {
            let issuer = &authority.issuer;
            return Err(format!(
                "{issuer} lets no client register itself: register one by hand, and name it"
            ));
        };
        let (request, showing) = Client::registering(authority, redirect, &found.scopes)?;
        let registered = web.register(place, request).await?;
        Client::registered(&registered, showing)
    }

    /// The client is authorised itself.
    async fn own(&self, web: &Web, found: Found, client: Client) -> Result<Authorisation, String> {
        let mut authorisation = found.nothing_yet(client);
        let scopes = authorisation.asked.clone();
        let given: Result<Given, Denied> = renew(web, &self.terms, &authorisation, &scopes).await;
        authorisation.take(given.map_err(|why| in_words(&authorisation, why))?);
        Ok(authorisation)
    }

    async fn keep(self, authorisation: Authorisation) -> Result<Agreed, String> {
        let agreed = Agreed {
            server: self.terms.server.clone(),
            issuer: authorisation.issuer.clone(),
            scopes: authorisation.granted.clone(),
            expires: authorisation.expires_ms.map(Timestamp::from_ms),
            renews: authorisation.refresh_token.is_some()
                || !matches!(self.terms.means, Means::Person { .. }),
        };
        let kept = Kept::new(self.terms, authorisation);
        let turn = match self.before {
            Some(_) => Some(Turn::at(&self.file).await?),
            None => None,
        };
        kept.write(&self.file)?;
        drop(turn);
        Ok(agreed)
    }
}

impl Found {
    fn nothing_yet(self, client: Client) -> Authorisation {
        Authorisation {
            resource: self.resource.identifier,
            issuer: self.authority.issuer,
            token_endpoint: self.authority.token,
            algorithms: self.authority.algorithms,
            client,
            asked: self.scopes,
            granted: Scopes::default(),
            access_token: None,
            expires_ms: None,
            refresh_token: None,
        }
    }
}

fn in_words(authorisation: &Authorisation, why: Denied) -> String {
    let (Denied::Spent(why) | Denied::Other(why)) = why;
    format!("{}: {why}", authorisation.issuer)
}
