//! Asking for the token of an authorisation: the next one, or the first of a client that is authorised itself.

use super::assertion::statement;
use super::client::{Client, Showing};
use super::exchange::Web;
use super::file::Authorisation;
use super::scopes::Scopes;
use super::secret::Secret;
use super::terms::{Means, Proof, Terms};
use super::token::{Asking, Denied, Given, Grant, request};
use crate::clock::{Clock as _, SystemClock};

/// Asks for a token with a grant.
///
/// # Errors
///
/// [`Denied`]; and where the client's secret or key cannot be read.
pub(super) async fn ask(
    web: &Web,
    terms: &Terms,
    authorisation: &Authorisation,
    grant: &Grant<'_>,
    scopes: &Scopes,
) -> Result<Given, Denied> {
    let proof = proof(terms, authorisation).map_err(Denied::Other)?;
    let Client {
        id,
        showing,
        secret,
    } = &authorisation.client;
    let asking = Asking {
        id: id.as_deref(),
        showing: *showing,
        proof: proof.as_ref().or(secret.as_ref()),
    };
    let asked = request(grant, &asking, &authorisation.resource, scopes).map_err(Denied::Other)?;
    web.token(&authorisation.token_endpoint, asked, scopes)
        .await
}

/// Asks for a token without anybody at hand: with what came with the last one, or with what the client has.
///
/// # Errors
///
/// [`Denied::Spent`] too where there is nothing to ask with.
pub(super) async fn renew(
    web: &Web,
    terms: &Terms,
    authorisation: &Authorisation,
    scopes: &Scopes,
) -> Result<Given, Denied> {
    let assertion;
    let grant = match &terms.means {
        Means::Person { .. } => {
            let token = authorisation.refresh_token.as_ref();
            let token = token.ok_or_else(|| Denied::Spent("nothing renews it".into()))?;
            let grant = Grant::Refresh(token);
            // It is for what the last one was for, whatever was asked.
            return ask(web, terms, authorisation, &grant, &authorisation.granted).await;
        }
        Means::Client { .. } => Grant::Client,
        Means::Workload {
            assertion: place, ..
        } => {
            assertion = place.read().map_err(Denied::Other)?;
            Grant::Assertion(&assertion)
        }
    };
    ask(web, terms, authorisation, &grant, scopes).await
}

/// What the client shows of what it was not given when it registered.
fn proof(terms: &Terms, authorisation: &Authorisation) -> Result<Option<Secret>, String> {
    match (authorisation.client.showing, terms.proof()) {
        (Showing::SecretInHeader | Showing::SecretInForm, Some(Proof::Secret(place))) => {
            place.read().map(Some)
        }
        (Showing::Signature, Some(Proof::Key(file))) => {
            let id = authorisation.client.id.as_deref().unwrap_or_default();
            let algorithms = authorisation.algorithms.as_deref();
            let now = SystemClock.now();
            statement(file, algorithms, id, &authorisation.issuer, now).map(Some)
        }
        _ => Ok(None),
    }
}
