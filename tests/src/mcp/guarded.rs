//! An MCP server of 2026-07-28 that demands an authorisation, and who gives it: one listener on loopback, whose
//! habits a test changes while it listens.
//!
//! It plays by the book where it is not told otherwise: codes are bound (PKCE), and what renews a token is good once;
//! whoever shows it twice loses everything.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proto_spec::Digest;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// The scope that every token is asked for, and the one that the tool `deep` takes beside.
pub const SCOPE: &str = "see";
/// What the tool `deep` takes.
pub const DEEP: &str = "dive";
/// The client that the server knows, and its secret.
pub const CLIENT: (&str, &str) = ("fem", "hunter2");

/// What the server does, and what it saw.
#[derive(Debug, Default)]
pub struct Played {
    /// Tokens that are good, and for what.
    pub good: HashMap<String, String>,
    /// How long a token is good, in seconds, as the server says.
    pub expires_in: Option<u64>,
    /// Whether tokens come with what renews them.
    pub renews: bool,
    /// Where `/mcp` and what is said of the server send whoever comes (307).
    pub leads_to: Option<String>,
    /// The server does not answer where tokens are given.
    pub is_down: bool,
    /// `Authorization` of each request at `/mcp`.
    pub shown: Vec<Option<String>>,
    /// The form of each request for a token.
    pub asked: Vec<HashMap<String, String>>,
    /// Other requests, by method and path.
    pub visits: Vec<String>,
    renewal: Option<String>,
    code: Option<(String, String)>,
    given: usize,
}

/// The server, on a thread of its own: tests wait for programs that talk to it. It ends when dropped.
#[derive(Debug)]
pub struct Guarded {
    address: SocketAddr,
    played: Arc<Mutex<Played>>,
    _ends: oneshot::Sender<()>,
}

impl Guarded {
    /// Listens. Tokens come with what renews them, and end when a test says so.
    ///
    /// # Errors
    ///
    /// When there is no port.
    pub fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let played = Arc::new(Mutex::new(Played {
            renews: true,
            ..Played::default()
        }));
        let (ends, ended) = oneshot::channel::<()>();
        let listening = listen(listener, address, Arc::clone(&played));
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = listening => {}
                    _ = ended => {}
                }
            });
        });
        Ok(Self {
            address,
            played,
            _ends: ends,
        })
    }

    /// The MCP server.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}/mcp", self.issuer())
    }

    /// Who gives authorisations.
    #[must_use]
    pub fn issuer(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it does and saw; not for long, for it waits meanwhile.
    pub fn played(&self) -> MutexGuard<'_, Played> {
        lock(&self.played)
    }

    /// No token is good any more; what renews them is.
    pub fn forget_tokens(&self) {
        self.played().good.clear();
    }

    /// Requests for a token that had this grant.
    #[must_use]
    pub fn asked_by(&self, grant: &str) -> usize {
        let played = self.played();
        let of_it = played
            .asked
            .iter()
            .filter(|form| form["grant_type"] == grant);
        of_it.count()
    }
}

fn lock(played: &Mutex<Played>) -> MutexGuard<'_, Played> {
    played.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn listen(listener: std::net::TcpListener, address: SocketAddr, played: Arc<Mutex<Played>>) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    while let Ok((stream, _)) = listener.accept().await {
        let played = Arc::clone(&played);
        let service = service_fn(move |request: Request<Incoming>| {
            let played = Arc::clone(&played);
            async move {
                let answered = answer(request, address, &played).await;
                Ok::<_, Infallible>(
                    answered.unwrap_or_else(|why| plain(StatusCode::BAD_REQUEST, &why.to_string())),
                )
            }
        });
        let serving = hyper::server::conn::http1::Builder::new();
        tokio::spawn(serving.serve_connection(TokioIo::new(stream), service));
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(
    request: Request<Incoming>,
    address: SocketAddr,
    played: &Mutex<Played>,
) -> Result<Answer> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let here = format!("http://{address}");
    let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
    let leads_to = lock(played).leads_to.clone();
    if path == "/mcp" {
        let shown = head.headers.get(AUTHORIZATION);
        let shown = shown
            .and_then(|shown| shown.to_str().ok())
            .map(str::to_owned);
        lock(played).shown.push(shown.clone());
        return match leads_to {
            Some(other) => led(&other),
            None => serve(&here, shown.as_deref(), &body, &lock(played)),
        };
    }
    let mut played = lock(played);
    played.visits.push(format!("{} {path}", head.method));
    if let Some(other) = leads_to {
        return led(&other);
    }
    match (&head.method, path) {
        (&Method::GET, "/.well-known/oauth-protected-resource/mcp") => Ok(said(&json!({
            "resource": format!("{here}/mcp"),
            "authorization_servers": [here],
        }))),
        (&Method::GET, "/.well-known/oauth-authorization-server") => Ok(said(&json!({
            "issuer": here,
            "authorization_endpoint": format!("{here}/authorize"),
            "token_endpoint": format!("{here}/token"),
            "registration_endpoint": format!("{here}/register"),
            "token_endpoint_auth_methods_supported": ["none", "client_secret_post"],
            "code_challenge_methods_supported": ["S256"],
        }))),
        (&Method::POST, "/register") => Ok(said(&json!({"client_id": "registered"}))),
        (&Method::GET, "/authorize") => played.agree(query),
        (&Method::POST, "/token") => played.token(&form(std::str::from_utf8(&body)?)?),
        _ => Ok(plain(StatusCode::NOT_FOUND, "nothing")),
    }
}

/// What the MCP server answers.
fn serve(here: &str, shown: Option<&str>, body: &[u8], played: &Played) -> Result<Answer> {
    let metadata = format!("{here}/.well-known/oauth-protected-resource/mcp");
    let wants = |status, rest: &str| {
        let wanted = format!("Bearer resource_metadata=\"{metadata}\", {rest}");
        let mut answer = plain(status, "not so");
        answer
            .headers_mut()
            .insert(WWW_AUTHENTICATE, wanted.parse()?);
        Ok(answer)
    };
    let token = shown.and_then(|shown| shown.strip_prefix("Bearer "));
    let Some(scopes) = token.and_then(|token| played.good.get(token)) else {
        return wants(StatusCode::UNAUTHORIZED, &format!("scope=\"{SCOPE}\""));
    };
    let message: Value = serde_json::from_slice(body)?;
    let tool = |name| json!({"name": name, "inputSchema": {"type": "object"}});
    let result = match (
        message["method"].as_str(),
        message["params"]["name"].as_str(),
    ) {
        (Some("server/discover"), _) => json!({
            "supportedVersions": ["2026-07-28"],
            "capabilities": {"tools": {}},
        }),
        (Some("tools/list"), _) => json!({"tools": [tool("flat"), tool("deep")]}),
        (Some("tools/call"), Some("deep")) if !scopes.split(' ').any(|scope| scope == DEEP) => {
            let rest = format!("scope=\"{DEEP}\", error=\"insufficient_scope\"");
            return wants(StatusCode::FORBIDDEN, &rest);
        }
        (Some("tools/call"), _) => json!({"content": [{"type": "text", "text": "done"}]}),
        _ => json!({}),
    };
    let mut result = result;
    result["resultType"] = json!("complete");
    Ok(said(
        &json!({"jsonrpc": "2.0", "id": message["id"], "result": result}),
    ))
}

impl Played {
    /// Whoever is asked says yes.
    fn agree(&mut self, query: &str) -> Result<Answer> {
        let asked = form(query)?;
        let get = |name: &str| asked.get(name).context("not said");
        self.code = Some((get("code_challenge")?.clone(), get("scope")?.clone()));
        led(&format!(
            "{}?code=the-code&state={}",
            get("redirect_uri")?,
            get("state")?
        ))
    }

    fn token(&mut self, asked: &HashMap<String, String>) -> Result<Answer> {
        self.asked.push(asked.clone());
        if self.is_down {
            return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "later"));
        }
        let get = |name: &str| asked.get(name).map(String::as_str);
        let scopes = match get("grant_type") {
            Some("authorization_code") => {
                let verifier = get("code_verifier").unwrap_or_default();
                let challenge = Digest::of(verifier.as_bytes()).to_string();
                let code = self.code.take().filter(|(asked, _)| *asked == challenge);
                code.map(|(_, scopes)| scopes)
            }
            Some("refresh_token") if get("refresh_token") == self.renewal.as_deref() => {
                Some(SCOPE.to_owned())
            }
            Some("refresh_token") => {
                // It was shown before: whoever shows it now, or did then, is a thief.
                self.renewal = None;
                self.good.clear();
                None
            }
            Some("client_credentials") => {
                let is_it =
                    get("client_id") == Some(CLIENT.0) && get("client_secret") == Some(CLIENT.1);
                is_it.then(|| get("scope").unwrap_or_default().to_owned())
            }
            _ => None,
        };
        let Some(scopes) = scopes else {
            let mut answer = said(&json!({"error": "invalid_grant"}));
            *answer.status_mut() = StatusCode::BAD_REQUEST;
            return Ok(answer);
        };
        self.given += 1;
        let token = format!("token-{}", self.given);
        self.good.insert(token.clone(), scopes.clone());
        self.renewal = self.renews.then(|| format!("renewal-{}", self.given));
        let mut given = json!({"access_token": token, "token_type": "Bearer", "scope": scopes});
        if let Some(renewal) = &self.renewal {
            given["refresh_token"] = json!(renewal);
        }
        if let Some(seconds) = self.expires_in {
            given["expires_in"] = json!(seconds);
        }
        Ok(said(&given))
    }
}

/// The pairs of a form or a query.
fn form(text: &str) -> Result<HashMap<String, String>> {
    text.split('&')
        .map(|pair| {
            let (name, value) = pair.split_once('=').context("no pair")?;
            Ok((plain_text(name)?, plain_text(value)?))
        })
        .collect()
}

fn plain_text(encoded: &str) -> Result<String> {
    let spaced = encoded.replace('+', " ");
    let mut parts = spaced.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).context("half a byte")?;
        bytes.push(u8::from_str_radix(digits, 16)?);
        bytes.extend(rest.as_bytes());
    }
    Ok(String::from_utf8(bytes)?)
}

fn said(value: &Value) -> Answer {
    let mut answer = plain(StatusCode::OK, &value.to_string());
    let json = http::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    answer
}

fn led(place: &str) -> Result<Answer> {
    let mut answer = plain(StatusCode::TEMPORARY_REDIRECT, "there");
    answer.headers_mut().insert(LOCATION, place.parse()?);
    Ok(answer)
}

fn plain(status: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text.to_owned())));
    *answer.status_mut() = status;
    answer
}
