//! Health and metrics, plain HTTP/1.1 on an address of their own.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use super::http::plain;
use crate::clock::Alarm;
use crate::phase::{Phase, reached};
use crate::pipeline::Core;

/// Connections at once; monitoring needs few.
const CONNECTIONS_MAX: usize = 64;

/// Serves `/healthz` (the process answers), `/readyz` (it takes calls) and `/metrics` until told to stop.
pub async fn accept(core: Arc<Core>, listener: TcpListener, phase: watch::Receiver<Phase>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut ended = phase.clone();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a monitoring connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = reached(Phase::Stopping, &mut ended) => return,
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            continue;
        };
        let (core, phase) = (Arc::clone(&core), phase.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let reply = answer(&core, &request, *phase.borrow());
                async move { Ok::<_, Infallible>(reply) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(place);
        });
    }
}

fn answer(core: &Core, request: &Request<Incoming>, phase: Phase) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" if phase != Phase::Serving => {
            plain(StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
        }
        "/readyz" => match core.clock.alarm() {
            None => plain(StatusCode::OK, "ready\n"),
            // Calls go on by the broker's own time.
            Some(alarm @ Alarm::Departed { .. }) => {
                plain(StatusCode::OK, format!("ready, but CLOCK: {alarm}\n"))
            }
            Some(alarm @ Alarm::Behind { .. }) => {
                plain(StatusCode::SERVICE_UNAVAILABLE, format!("CLOCK: {alarm}\n"))
            }
        },
        "/metrics" => {
            let mut reply = Response::new(Full::new(
                core.metrics.render(&core.state, &core.clock).into(),
            ));
            let version = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            reply.headers_mut().insert(CONTENT_TYPE, version);
            reply
        }
        _ => plain(
            StatusCode::NOT_FOUND,
            "/healthz, /readyz and /metrics are here\n",
        ),
    }
}
