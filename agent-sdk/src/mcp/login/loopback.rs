//! Where a browser comes back to: a page on this machine that waits for one answer.
//!
//! Every other program of this machine can come there too, and every page that a browser shows can send it there. So
//! what does not bear the question's `state` changes nothing, and is only answered.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use ::http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::consent::{Brought, Question};
use super::secret::Secret;
use crate::mcp::address::Address;

/// Browsers, or whatever they are, that are there at once.
const VISITORS_MAX: usize = 16;
/// How long one may take to say what it wants.
const VISIT_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of what it says before that.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// A page that waits.
pub(super) struct Loopback {
    listener: TcpListener,
    address: Address,
}

impl Loopback {
    /// Opens it, at an address of this machine that was decided before, or at any port that is free.
    ///
    /// # Errors
    ///
    /// Where it cannot be opened.
    pub(super) async fn open(redirect: Option<&Address>) -> Result<Self, String> {
        let (here, port) = match redirect {
            Some(redirect) => (redirect.here(), redirect.origin().port()),
            None => (None, 0),
        };
        let here = here.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let listener = TcpListener::bind(SocketAddr::new(here, port)).await;
        let listener = listener.map_err(|why| format!("no page at {here}, port {port}: {why}"))?;
        let address = match redirect {
            Some(redirect) => redirect.clone(),
            None => {
                let place = listener.local_addr().map_err(|why| why.to_string())?;
                format!("http://{place}/callback").parse()?
            }
        };
        Ok(Self { listener, address })
    }

    /// Where it is.
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for the answer to a question: the code that comes with a yes.
    ///
    /// # Errors
    ///
    /// Where it is a no, or is not to be believed.
    pub(super) async fn answer(self, question: &Arc<Question>) -> Result<Secret, String> {
        let (told, mut answers) = mpsc::channel(1);
        let mut visitors = JoinSet::new();
        loop {
            tokio::select! {
                Some(answer) = answers.recv() => {
                    // Whoever brought it still reads that it arrived.
                    let last = async { while visitors.join_next().await.is_some() {} };
                    let _ = tokio::time::timeout(Duration::from_secs(1), last).await;
                    return answer;
                }
                Some(_) = visitors.join_next() => {}
                visitor = self.listener.accept(), if visitors.len() < VISITORS_MAX => {
                    let Ok((stream, _)) = visitor else { continue };
                    let page = Page {
                        path: self.address.path().to_owned(),
                        question: Arc::clone(question),
                        told: told.clone(),
                    };
                    visitors.spawn(page.show(stream));
                }
            }
        }
    }
}

/// What one visitor sees.
#[derive(Clone)]
struct Page {
    path: String,
    question: Arc<Question>,
    told: mpsc::Sender<Result<Secret, String>>,
}

impl Page {
    async fn show(self, stream: TcpStream) {
        let service = service_fn(|request: Request<Incoming>| {
            let shown = self.answer(&request);
            async { Ok::<_, Infallible>(shown) }
        });
        let shown = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(VISIT_PATIENCE)
            .max_buf_size(HEAD_BYTES_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        // Who goes away without a word is nobody.
        let _ = tokio::time::timeout(VISIT_PATIENCE, shown).await;
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let is_here = request.uri().path() == self.path && request.method() == Method::GET;
        if !is_here {
            return page(StatusCode::NOT_FOUND, "There is nothing here.");
        }
        let answer = match self
            .question
            .answer(request.uri().query().unwrap_or_default())
        {
            Brought::NotOurs => {
                return page(StatusCode::BAD_REQUEST, "Nobody here asked that.");
            }
            Brought::Refused(why) => Err(why),
            Brought::Code(code) => Ok(code),
        };
        // The first counts.
        let _ = self.told.try_send(answer);
        page(
            StatusCode::OK,
            "The answer has arrived. You can close this page.",
        )
    }
}

fn page(status: StatusCode, words: &'static str) -> Response<Full<Bytes>> {
    let mut page = Response::new(Full::new(Bytes::from_static(words.as_bytes())));
    *page.status_mut() = status;
    let headers = page.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, "text/plain; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    page
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::mcp::login::metadata::Authority;
    use crate::mcp::login::scopes::Scopes;

    fn question() -> Arc<Question> {
        let document = json!({
            "issuer": "https://a.example",
            "token_endpoint": "https://a.example/t",
            "code_challenge_methods_supported": ["S256"],
        });
        let issuer = "https://a.example".parse().unwrap();
        let authority = Authority::read(document.to_string().as_bytes(), &issuer, &issuer);
        Arc::new(Question::new(&authority.unwrap()).unwrap_or_else(|why| panic!("{why}")))
    }

    /// The part of what a person is asked that the answer has to bear.
    fn state(question: &Question, redirect: &Address) -> String {
        let endpoint = "https://a.example/authorize".parse().unwrap();
        let asked = question.address(&endpoint, "c", redirect, &endpoint, &Scopes::default());
        let (_, state) = asked.split_once("&state=").unwrap();
        state.split('&').next().unwrap().to_owned()
    }

    async fn visit(page: &Address, words: &str) -> String {
        let mut stream = TcpStream::connect(page.authority()).await.unwrap();
        stream.write_all(words.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn whoever_else_comes_changes_nothing() {
        let (page, question) = (Loopback::open(None).await.unwrap(), question());
        let address = page.address().clone();
        let state = state(&question, &address);
        let waiting = tokio::spawn(async move { page.answer(&question).await });
        // Who says nothing is in nobody's way.
        let silent = TcpStream::connect(address.authority()).await.unwrap();
        let long = "x".repeat(HEAD_BYTES_MAX);
        for (words, expected) in [
            (
                format!("GET /callback?code=c&state=x{state} HTTP/1.1\r\nhost: a\r\n\r\n"),
                "400",
            ),
            (
                "GET /callback?error=access_denied HTTP/1.1\r\nhost: a\r\n\r\n".into(),
                "400",
            ),
            (
                format!("GET /other?code=c&state={state} HTTP/1.1\r\nhost: a\r\n\r\n"),
                "404",
            ),
            (
                format!("POST /callback?code=c&state={state} HTTP/1.1\r\nhost: a\r\n\r\n"),
                "404",
            ),
            (
                format!("GET /callback?{long} HTTP/1.1\r\nhost: a\r\n\r\n"),
                "4",
            ),
            ("\r\n\r\n\u{1}".into(), "4"),
        ] {
            let answer = visit(&address, &words).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {expected}")),
                "{words:.80}: {answer}"
            );
            assert!(!waiting.is_finished());
        }
        let yes = format!("GET /callback?code=the-code&state={state} HTTP/1.1\r\nhost: a\r\n\r\n");
        assert!(visit(&address, &yes).await.contains("has arrived"));
        let code = waiting.await.unwrap().unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(code.reveal(), "the-code");
        drop(silent);
        assert!(
            TcpStream::connect(address.authority()).await.is_err(),
            "nobody listens there any more"
        );
    }

    #[tokio::test]
    async fn a_no_ends_the_wait() {
        let (page, question) = (Loopback::open(None).await.unwrap(), question());
        let address = page.address().clone();
        let state = state(&question, &address);
        let waiting = tokio::spawn(async move { page.answer(&question).await });
        let no =
            format!("GET /callback?error=access_denied&state={state} HTTP/1.1\r\nhost: a\r\n\r\n");
        visit(&address, &no).await;
        let Err(why) = waiting.await.unwrap() else {
            panic!()
        };
        assert!(why.contains("access_denied"), "{why}");
    }

    #[tokio::test]
    async fn a_page_is_where_it_was_decided_or_nowhere() {
        let first = Loopback::open(None).await.unwrap();
        let Err(why) = Loopback::open(Some(first.address())).await else {
            panic!()
        };
        assert!(why.contains("port"), "{why}");
        let address = first.address().clone();
        drop(first);
        let again = Loopback::open(Some(&address)).await.unwrap();
        assert_eq!(again.address(), &address);
    }
}
