//! Where a server is reached by HTTP, and the connections over which it is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use zeroize::Zeroizing;

use crate::mcp::address::Address;
use crate::mcp::login::{Challenge, Keeper, NoToken, Secret, Verdict};
use crate::mcp::way::{Roots, Sender, Way};

/// How often a request is made, each time with another authorisation.
const SHOWN_MAX: usize = 3;
/// Connections that wait to be used again, and how long.
const IDLE_MAX: usize = 16;
const IDLE_FOR: Duration = Duration::from_secs(10);

/// Where a server is reached by HTTP, and what every request to it says.
#[derive(Clone)]
pub struct Site {
    inner: Arc<Inner>,
}

struct Inner {
    address: Address,
    authority: HeaderValue,
    way: Way,
    headers: Vec<(HeaderName, HeaderValue)>,
    keeper: Option<Keeper>,
    idle: Mutex<Vec<(Instant, Sender)>>,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsent {
    /// Somebody has to log in first: what to do.
    #[error("{0}")]
    LoginNeeded(String),
    /// It was lost on the way: why.
    #[error("{0}")]
    Lost(String),
}

impl From<String> for Unsent {
    fn from(why: String) -> Self {
        Self::Lost(why)
    }
}

impl From<NoToken> for Unsent {
    fn from(why: NoToken) -> Self {
        match why {
            NoToken::LoginNeeded(why) => Self::LoginNeeded(why),
            NoToken::Failed(why) => Self::Lost(format!("no authorisation: {why}")),
        }
    }
}

impl Site {
    /// A server at `address`, believed by `roots`. `headers` are said with every request, and never shown; so is what
    /// `keeper` keeps for it.
    ///
    /// # Errors
    ///
    /// Why it cannot be reached so: no roots, a host that no header can name, an authorisation that is another
    /// server's or stands in the headers too.
    pub fn new(
        address: Address,
        headers: Vec<(HeaderName, HeaderValue)>,
        keeper: Option<Keeper>,
        roots: &Roots,
    ) -> Result<Self, String> {
        if let Some(keeper) = &keeper {
            if keeper.server() != &address {
                return Err(format!(
                    "an authorisation for {} is not for {address}",
                    keeper.server()
                ));
            }
            if headers.iter().any(|(name, _)| name == AUTHORIZATION) {
                return Err("one authorisation at once: a kept one, or a header".into());
            }
        }
        let authority = HeaderValue::from_str(address.authority());
        let inner = Inner {
            authority: authority.map_err(|why| why.to_string())?,
            way: Way::to(&address, roots)?,
            headers,
            keeper,
            idle: Mutex::default(),
            address,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// A request to it.
    pub(super) fn request(
        &self,
        method: Method,
        body: String,
    ) -> Result<Request<Full<Bytes>>, String> {
        let request = Request::builder()
            .method(method)
            .uri(self.inner.address.target())
            .header(HOST, self.inner.authority.clone());
        let request = request.body(Full::new(Bytes::from(body)));
        let mut request = request.map_err(|why| why.to_string())?;
        for (name, value) in &self.inner.headers {
            request.headers_mut().append(name, value.clone());
        }
        Ok(request)
    }

    /// Sends a request, and what is kept for the server with it; again where the server wants another authorisation
    /// and there is one.
    ///
    /// # Errors
    ///
    /// [`Unsent`].
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Sender), Unsent> {
        let Some(keeper) = &self.inner.keeper else {
            let (response, sender) = self.carry(request).await?;
            return match self.wants_login(&response) {
                Some(why) => Err(Unsent::LoginNeeded(why)),
                None => Ok((response, sender)),
            };
        };
        let mut token = keeper.token().await?;
        let mut times = 0;
        loop {
            let mut shown = request.clone();
            shown.headers_mut().insert(AUTHORIZATION, bearer(&token)?);
            let (response, sender) = self.carry(shown).await?;
            times += 1;
            let Some(challenge) = challenge(&response).filter(|_| times < SHOWN_MAX) else {
                return Ok((response, sender));
            };
            match keeper.refused(Some(&token), challenge).await {
                Verdict::Again(other) => token = other,
                Verdict::Stands => return Ok((response, sender)),
                Verdict::No(why) => return Err(why.into()),
            }
        }
    }

    /// What to do where the server wants an authorisation and nothing was shown.
    fn wants_login(&self, response: &Response<Incoming>) -> Option<String> {
        let Inner {
            address, headers, ..
        } = &*self.inner;
        let shows = headers.iter().any(|(name, _)| name == AUTHORIZATION);
        let wants = response.status() == StatusCode::UNAUTHORIZED && !shows;
        let names = || Challenge::of(response.headers()).is_some();
        (wants && names()).then(|| {
            format!(
                "{address} wants an authorisation: fem-cli mcp login --url {address} --auth FILE, \
                 and then show it with --auth FILE"
            )
        })
    }

    /// Sends a request over a connection that is idle, or a new one.
    async fn carry(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Sender), String> {
        while let Some(mut sender) = self.idle() {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                // It was closed before any of it was written.
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(format!("the connection was lost: {}", failed.error())),
                },
            }
        }
        let mut sender = self.inner.way.dial().await?;
        let response = sender.send_request(request).await;
        let response = response.map_err(|why| format!("the connection was lost: {why}"))?;
        Ok((response, sender))
    }

    /// Keeps a connection whose answer was read.
    pub(super) fn keep(&self, sender: Sender) {
        let mut idle = self.all_idle();
        if idle.len() < IDLE_MAX && !sender.is_closed() {
            idle.push((Instant::now(), sender));
        }
    }

    fn idle(&self) -> Option<Sender> {
        let mut idle = self.all_idle();
        idle.retain(|(since, sender)| since.elapsed() < IDLE_FOR && !sender.is_closed());
        let at = idle.iter().rposition(|(_, sender)| sender.is_ready())?;
        Some(idle.remove(at).1)
    }

    fn all_idle(&self) -> std::sync::MutexGuard<'_, Vec<(Instant, Sender)>> {
        self.inner
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a server wants that was shown a token: another, or one for more.
fn challenge(response: &Response<Incoming>) -> Option<Challenge> {
    let said = Challenge::of(response.headers());
    match response.status() {
        StatusCode::UNAUTHORIZED => Some(said.unwrap_or_default()),
        StatusCode::FORBIDDEN => said.filter(Challenge::wants_more),
        _ => None,
    }
}

fn bearer(token: &Secret) -> Result<HeaderValue, String> {
    let text = Zeroizing::new(format!("Bearer {}", token.reveal()));
    let mut value = HeaderValue::from_str(&text).map_err(|why| why.to_string())?;
    value.set_sensitive(true);
    Ok(value)
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Site({})", self.inner.address)
    }
}
