//! Where a server is reached by HTTP, and the connections over which it is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue};
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;

use crate::mcp::address::Address;
use crate::mcp::way::{Roots, Sender, Way};

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
    idle: Mutex<Vec<(Instant, Sender)>>,
}

impl Site {
    /// A server at `address`, believed by `roots`. `headers` are said with every request, and never shown.
    ///
    /// # Errors
    ///
    /// Why it cannot be reached so: no roots, a host that no header can name.
    pub fn new(
        address: Address,
        headers: Vec<(HeaderName, HeaderValue)>,
        roots: &Roots,
    ) -> Result<Self, String> {
        let authority = HeaderValue::from_str(address.authority());
        let inner = Inner {
            authority: authority.map_err(|why| why.to_string())?,
            way: Way::to(&address, roots)?,
            headers,
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

    /// Sends a request over a connection that is idle, or a new one.
    pub(super) async fn send(
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

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Site({})", self.inner.address)
    }
}
