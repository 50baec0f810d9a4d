//! TLS, HTTP, WebSocket and the ops listener, from outside.

use std::sync::Arc;

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto_spec::Code;
use serde_json::json;
use tests::lab::Lab;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::refused;

/// A TLS 1.2 ClientHello by hand: no library that we link can speak it.
fn client_hello_of_tls_1_2() -> Vec<u8> {
    let mut hello = vec![0x03, 0x03];
    hello.extend([0x42; 32]);
    hello.push(0);
    hello.extend([0x00, 0x04, 0xc0, 0x2b, 0xc0, 0x2f, 0x01, 0x00]);
    let extensions: &[u8] = &[
        0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x1d, // groups: x25519
        0x00, 0x0d, 0x00, 0x06, 0x00, 0x04, 0x04, 0x03, 0x08, 0x04, // signature schemes
    ];
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    let mut message = vec![0x01, 0x00];
    message.extend((hello.len() as u16).to_be_bytes());
    message.extend(hello);
    let mut record = vec![0x16, 0x03, 0x01];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(message);
    record
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let lab = Lab::start().await.unwrap();
    let mut stream = TcpStream::connect(lab.line.address).await.unwrap();
    stream.write_all(&client_hello_of_tls_1_2()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer[0], 0x15, "an alert");
    assert_eq!(answer[6], 70, "protocol_version");
}

#[tokio::test]
async fn post_quantum_key_exchange_is_preferred() {
    let lab = Lab::start().await.unwrap();
    let stream = lab.line.connect().await.unwrap();
    let session = stream.get_ref().1;
    assert_eq!(
        session.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    let group = session.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn http_1_1_and_http_2_and_no_alpn_are_served_alike() {
    let mut lab = Lab::start().await.unwrap();
    assert_eq!(
        refused(&lab.post("x").await.unwrap()),
        Code::Malformed,
        "no ALPN"
    );
    let mut tls = (*lab.line.tls).clone();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    lab.line.tls = Arc::new(tls.clone());
    assert_eq!(
        refused(&lab.post("x").await.unwrap()),
        Code::Malformed,
        "http/1.1"
    );
    tls.alpn_protocols = vec![b"h2".to_vec()];
    lab.line.tls = Arc::new(tls);
    let stream = lab.line.connect().await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    for path in ["/fem", "/", "/fep"] {
        let body = http_body_util::Full::new(bytes::Bytes::from_static(b"x"));
        let request = hyper::Request::post(format!("https://localhost{path}"))
            .body(body)
            .unwrap();
        let reply = client.send_request(request).await.unwrap();
        assert_eq!(reply.status(), 400, "{path}");
    }
}

#[tokio::test]
async fn older_paths_take_envelopes_and_others_nothing() {
    let lab = Lab::start().await.unwrap();
    for path in ["/fem", "/", "/fep"] {
        assert_eq!(
            refused(&lab.line.post(path, "x").await.unwrap()),
            Code::Malformed,
            "{path}"
        );
    }
    assert_eq!(lab.line.post("/other", "x").await.unwrap().status, 404);
    assert_eq!(lab.line.post("/fem/ws", "x").await.unwrap().status, 405);
}

#[tokio::test]
async fn the_well_known_document_says_what_a_client_needs_to_be_set_up() {
    let lab = Lab::start().await.unwrap();
    let stream = lab.line.connect().await.unwrap();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get("/.well-known/fem").header("host", "localhost");
    let reply = client
        .send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap())
        .await
        .unwrap();
    let body = reply.into_body().collect().await.unwrap().to_bytes();
    let shown: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(shown["org"], "acme");
    assert_eq!(shown["key"], json!(lab.broker_key()));
}

#[tokio::test]
async fn the_ops_listener_has_health_and_metrics_and_nothing_else() {
    let lab = Lab::start().await.unwrap();
    lab.post("x").await.unwrap();
    let get = async |path: &str| {
        let mut stream = TcpStream::connect(lab.broker.ops_address()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get("/fem").await.starts_with("HTTP/1.1 404"));
    assert!(
        get("/metrics")
            .await
            .contains("fem_envelopes_refused_total{code=\"MALFORMED\"} 1")
    );
}
