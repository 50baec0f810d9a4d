//! The fronts pass what they should: the proving ground proves itself first.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tempfile::TempDir;
use tests::mcp::front::Front;
use tests::wire::{Line, PATIENCE};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

const TOKEN: &str = "a-token";

/// A plain server, TLS before it, and plain HTTP before that again: both fronts in one row.
struct Row {
    _folder: TempDir,
    _tls: Front,
    plain: Front,
    /// Told when a body that the server held open is no longer wanted.
    gone: Arc<Notify>,
}

impl Row {
    async fn new(token: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let gone = Arc::new(Notify::new());
        tokio::spawn(answer(listener, Arc::clone(&gone)));
        let tls = Front::before(server, folder.path(), TOKEN).await.unwrap();
        let authority = CertificateDer::from_pem_file(folder.path().join("ca.pem")).unwrap();
        let line = Line::new(tls.address, &authority).unwrap();
        let plain = Front::to_broker(line, "/mcp", token).await.unwrap();
        Self {
            _folder: folder,
            _tls: tls,
            plain,
            gone,
        }
    }

    async fn client<B>(&self) -> SendRequest<B>
    where
        B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        let stream = TcpStream::connect(self.plain.address).await.unwrap();
        let (client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        client
    }

    async fn ask(&self, request: Request<Empty<Bytes>>) -> Response<Incoming> {
        let sent = self.client().await.send_request(request).await;
        sent.unwrap()
    }

    fn request(&self) -> http::request::Builder {
        Request::builder().header(header::HOST, self.plain.address.to_string())
    }
}

async fn answer(listener: TcpListener, gone: Arc<Notify>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let gone = Arc::clone(&gone);
        let service = service_fn(move |request| {
            let answer = repeat(request, Arc::clone(&gone));
            async move { Ok::<_, Infallible>(answer) }
        });
        let connection = hyper::server::conn::http1::Builder::new();
        tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
    }
}

/// The request again, as status 207, with what it asked for in headers; or a body without an end.
fn repeat(request: Request<Incoming>, gone: Arc<Notify>) -> Response<BoxBody<Bytes, hyper::Error>> {
    let (parts, body) = request.into_parts();
    let body = if parts.uri.path().ends_with("/held") {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let event = Frame::data(Bytes::from_static(b"data: 1\n\n"));
            sender.send(Ok(event)).await.unwrap();
            sender.closed().await;
            gone.notify_one();
        });
        StreamBody::new(streamed(receiver)).boxed()
    } else {
        body.boxed()
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::MULTI_STATUS;
    let line = format!("{} {}", parts.method, parts.uri);
    let headers = response.headers_mut();
    headers.insert("x-line", HeaderValue::try_from(line).unwrap());
    for (name, value) in &parts.headers {
        headers.insert(
            http::HeaderName::try_from(format!("x-{name}")).unwrap(),
            value.clone(),
        );
    }
    response
}

fn streamed<T: Send + 'static>(
    receiver: mpsc::Receiver<T>,
) -> impl stream::Stream<Item = T> + Send {
    stream::unfold(receiver, async |mut receiver| {
        Some((receiver.recv().await?, receiver))
    })
}

fn of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

async fn data(body: &mut Incoming) -> Bytes {
    let frame = timeout(PATIENCE, body.frame()).await.unwrap();
    frame.unwrap().unwrap().into_data().unwrap()
}

#[tokio::test]
async fn bytes_pass_both_ways_while_the_request_is_still_open() {
    let row = Row::new(TOKEN).await;
    let (sender, receiver) = mpsc::channel(1);
    let body = StreamBody::new(streamed(receiver));
    let request = row.request().method("POST").uri("/").body(body).unwrap();
    let mut client = row.client().await;
    let piece =
        |text: &'static str| Ok::<_, Infallible>(Frame::data(Bytes::from_static(text.as_bytes())));
    // The answer begins while the request goes on, and each piece comes back before the next is sent.
    sender.send(piece("one")).await.unwrap();
    let response = timeout(PATIENCE, client.send_request(request))
        .await
        .unwrap();
    let mut body = response.unwrap().into_body();
    assert_eq!(data(&mut body).await, "one");
    sender.send(piece("two")).await.unwrap();
    assert_eq!(data(&mut body).await, "two");
    drop(sender);
    assert!(timeout(PATIENCE, body.frame()).await.unwrap().is_none());
}

#[tokio::test]
async fn method_path_status_and_headers_pass_and_the_token_comes_along() {
    let row = Row::new(TOKEN).await;
    let request = row
        .request()
        .method("DELETE")
        .uri("/fs?a=%20b")
        .header("Mcp-Session-Id", "s")
        .header("Connection", "close, X-Mine")
        .header("X-Mine", "1")
        .body(Empty::new())
        .unwrap();
    let response = row.ask(request).await;
    assert_eq!(response.status(), StatusCode::MULTI_STATUS);
    let headers = response.headers();
    assert_eq!(of(headers, "x-line"), Some("DELETE /mcp/fs?a=%20b"));
    assert_eq!(of(headers, "x-mcp-session-id"), Some("s"));
    assert_eq!(of(headers, "x-x-mine"), None);
    assert_eq!(
        of(headers, "x-authorization"),
        None,
        "the token is for the front"
    );
}

#[tokio::test]
async fn who_brings_no_token_that_is_asked_for_is_refused() {
    let row = Row::new("another").await;
    let response = row
        .ask(row.request().uri("/").body(Empty::new()).unwrap())
        .await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(of(response.headers(), "www-authenticate"), Some("Bearer"));
}

#[tokio::test]
async fn our_own_names_become_theirs_and_foreign_names_stay() {
    let row = Row::new(TOKEN).await;
    let ours = row.plain.address.to_string();
    for (named, seen_ours) in [(ours.as_str(), true), ("evil.example.com", false)] {
        let request = Request::builder()
            .uri("/")
            .header(header::HOST, named)
            .header(header::ORIGIN, format!("http://{named}"));
        let response = row.ask(request.body(Empty::new()).unwrap()).await;
        let host = of(response.headers(), "x-host").unwrap().to_owned();
        let origin = of(response.headers(), "x-origin").unwrap();
        assert_eq!(origin, format!("http://{host}"));
        assert_eq!(host != named, seen_ours, "{host}");
    }
}

#[tokio::test]
async fn who_goes_is_gone_on_the_other_side_too() {
    let row = Row::new(TOKEN).await;
    let request = row
        .request()
        .uri("/held")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let mut client = row.client().await;
    let mut body = client.send_request(request).await.unwrap().into_body();
    assert_eq!(data(&mut body).await, "data: 1\n\n");
    drop((client, body));
    timeout(PATIENCE, row.gone.notified()).await.unwrap();
}
