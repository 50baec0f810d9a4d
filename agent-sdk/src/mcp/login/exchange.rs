//! Asking the servers that are named while somebody logs in: one connection a request, bounded in time and bytes,
//! and nothing is followed to anywhere else.

use std::time::Duration;

use ::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use ::http::{Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};

use super::challenge::Challenge;
use super::scopes::Scopes;
use super::token::{self, Denied, Given};
use crate::clock::{Clock as _, SystemClock};
use crate::mcp::address::Address;
use crate::mcp::way::{Roots, Way};

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// How long one answer may take, connecting included.
const PATIENCE: Duration = Duration::from_secs(30);

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
const BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");

/// Whoever asks.
pub(super) struct Web {
    roots: Roots,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Web {
    /// Believes who servers are by `roots`.
    pub(super) fn new(roots: Roots) -> Self {
        Self { roots }
    }

    /// The first document that is at one of these places.
    ///
    /// # Errors
    ///
    /// Where there is none, or one of those before it does not answer.
    pub(super) async fn first(&self, places: &[Address]) -> Result<Bytes, String> {
        for place in places {
            let request = Request::builder().header(ACCEPT, JSON);
            let answer = self.ask(place, request, Bytes::new()).await?;
            match answer.status {
                status if status.is_success() && is_of(&answer.headers, "json") => {
                    return Ok(answer.body);
                }
                // Some servers answer whatever they are asked with the same page.
                status if status.is_success() || status.is_client_error() => {}
                status => return Err(format!("{place} answers {status}, and is not followed")),
            }
        }
        let places: Vec<&str> = places.iter().map(Address::as_str).collect();
        Err(format!("nothing is said at {}", places.join(" or ")))
    }

    /// Registers a client: what is answered.
    ///
    /// # Errors
    ///
    /// Where it is refused.
    pub(super) async fn register(&self, place: &Address, client: String) -> Result<Bytes, String> {
        let request = Request::builder()
            .method(Method::POST)
            .header(CONTENT_TYPE, JSON)
            .header(ACCEPT, JSON);
        let answer = self.ask(place, request, client.into()).await?;
        match answer.status.is_success() {
            true => Ok(answer.body),
            false => {
                let why = token::shown(&String::from_utf8_lossy(&answer.body));
                Err(format!(
                    "{place} registers no client: {} {why}",
                    answer.status
                ))
            }
        }
    }

    /// Asks for a token.
    ///
    /// # Errors
    ///
    /// [`Denied`].
    pub(super) async fn token(
        &self,
        place: &Address,
        asked: token::Request,
        scopes: &Scopes,
    ) -> Result<Given, Denied> {
        let mut request = Request::builder()
            .method(Method::POST)
            .header(CONTENT_TYPE, FORM)
            .header(ACCEPT, JSON);
        if let Some(shown) = asked.authorization {
            request = request.header(AUTHORIZATION, shown);
        }
        let form = Bytes::copy_from_slice(asked.form.as_bytes());
        let answer = self.ask(place, request, form).await;
        let answer = answer.map_err(Denied::Other)?;
        if answer.status.is_server_error() || answer.status.is_redirection() {
            let why = format!("{place} answers {}", answer.status);
            return Err(Denied::Other(why));
        }
        let is_success = answer.status.is_success();
        token::read(is_success, &answer.body, scopes, SystemClock.now())
    }

    /// What an MCP server wants of somebody who shows nothing. Nothing where it says nothing of that.
    ///
    /// # Errors
    ///
    /// Where it does not answer.
    pub(super) async fn challenge(
        &self,
        server: &Address,
        question: String,
    ) -> Result<Option<Challenge>, String> {
        let request = Request::builder()
            .method(Method::POST)
            .header(CONTENT_TYPE, JSON)
            .header(ACCEPT, BOTH)
            .header("mcp-protocol-version", crate::mcp::MODERN)
            .header("mcp-method", "server/discover");
        let answer = self.ask(server, request, question.into()).await?;
        let wants = answer.status == StatusCode::UNAUTHORIZED;
        Ok(wants.then(|| Challenge::of(&answer.headers).unwrap_or_default()))
    }

    async fn ask(
        &self,
        place: &Address,
        request: ::http::request::Builder,
        body: Bytes,
    ) -> Result<Answer, String> {
        let failed = |why: String| format!("{place}: {why}");
        let asked = async {
            let mut sender = Way::to(place, &self.roots)?.dial().await?;
            let request = request
                .uri(place.target())
                .header(HOST, place.authority())
                .body(Full::new(body))
                .map_err(|why| why.to_string())?;
            let answer = sender.send_request(request).await;
            let (head, body) = answer.map_err(|why| why.to_string())?.into_parts();
            // A stream says nothing here, and need not end.
            let body = match is_of(&head.headers, "event-stream") {
                true => Bytes::new(),
                false => Limited::new(body, ANSWER_BYTES_MAX)
                    .collect()
                    .await
                    .map_err(|why| why.to_string())?
                    .to_bytes(),
            };
            Ok(Answer {
                status: head.status,
                headers: head.headers,
                body,
            })
        };
        tokio::time::timeout(PATIENCE, asked)
            .await
            .unwrap_or_else(|_| Err("no answer in time".into()))
            .map_err(failed)
    }
}

/// Whether what comes is of a kind.
fn is_of(headers: &HeaderMap, kind: &str) -> bool {
    let said = headers
        .get(CONTENT_TYPE)
        .and_then(|said| said.to_str().ok());
    let said = said.and_then(|said| said.split(';').next());
    said.is_some_and(|said| said.trim_end().ends_with(kind))
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;

    /// A server that answers each request with the next of these, when it is told to: its origin, and what it was
    /// asked.
    pub(in crate::mcp::login) async fn answering(
        answers: Vec<String>,
        mut when: mpsc::Receiver<()>,
    ) -> (String, mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let (tell, told) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = vec![0; 4_096];
                let read = stream.read(&mut asked).await.unwrap();
                let _ = tell.send(String::from_utf8_lossy(&asked[..read]).into_owned());
                when.recv().await;
                // Who was answered too much may have gone.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (origin, told)
    }

    pub(in crate::mcp::login) fn answer(status: &str, kind: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
    }

    /// At once.
    pub(in crate::mcp::login) fn always() -> mpsc::Receiver<()> {
        mpsc::channel(1).1
    }

    async fn first(answers: &[String]) -> Result<Bytes, String> {
        let (origin, _told) = answering(answers.to_vec(), always()).await;
        let places: Vec<Address> = (0..answers.len())
            .map(|n| format!("{origin}/{n}").parse().unwrap())
            .collect();
        Web::new(None).first(&places).await
    }

    #[tokio::test]
    async fn the_first_document_counts_and_a_page_for_people_is_none() {
        let missing = answer("404 Not Found", "text/plain", "no");
        let page = answer("200 OK", "text/html", "<p>Hello");
        let document = answer("200 OK", "application/json; charset=utf-8", "{}");
        let found = first(&[missing.clone(), page.clone(), document]).await;
        assert_eq!(found.unwrap(), "{}");
        assert!(first(&[missing, page]).await.is_err());
    }

    #[tokio::test]
    async fn nothing_is_followed_and_nothing_is_read_without_end() {
        let document = answer("200 OK", "application/json", "{}");
        let led =
            "HTTP/1.1 302 Found\r\nlocation: /1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let Err(why) = first(&[led.to_owned(), document.clone()]).await else {
            panic!()
        };
        assert!(why.contains("not followed"), "{why}");
        let broken = answer("503 Service Unavailable", "text/plain", "");
        assert!(
            first(&[broken, document]).await.is_err(),
            "what is not said now may be another thing"
        );
        let long = answer(
            "200 OK",
            "application/json",
            &" ".repeat(ANSWER_BYTES_MAX + 1),
        );
        assert!(first(&[long]).await.is_err());
    }

    #[tokio::test]
    async fn a_server_that_answers_with_a_stream_is_heard_by_its_head() {
        let stream = "HTTP/1.1 401 Unauthorized\r\ncontent-type: text/event-stream\r\nwww-authenticate: Bearer scope=a\r\n\r\n";
        let (origin, _told) = answering(vec![stream.to_owned()], always()).await;
        let server = format!("{origin}/mcp").parse().unwrap();
        let challenge = Web::new(None).challenge(&server, "{}".into()).await;
        assert_eq!(challenge.unwrap().unwrap().scopes.unwrap().to_string(), "a");
    }
}
