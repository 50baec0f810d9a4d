//! Keeps a link up to every peer that has an endpoint: dials, and dials again with backoff and jitter.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_sdk::Backoff;
use anyhow::Context as _;
use proto_spec::Org;
use proto_spec::limits::LINK_ATTACH_BYTES_MAX;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;

use super::link::{Binding, ORG_HEADER, run};
use crate::conversation::{Ended, link_bounds};
use crate::phase::Phase;
use crate::pipeline::Core;
use crate::state::peers::Peer;
use crate::threshold::Threshold;

/// How long a peer may take to answer at all. A network that is back is found by the next attempt, not by
/// TCP's own repetitions, which come ever more rarely.
pub const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long a connection to a peer may take to be made.
pub const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Between two attempts. Longer waits would spare a peer that is down nothing, and cost one that is back.
pub const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A link of this age was a good one.
pub const LASTING: Duration = Duration::from_secs(5);

/// Dials every peer that has to be dialled, until this is dropped.
pub async fn keep(core: Arc<Core>, phase: watch::Receiver<Phase>) {
    let mut tasks = JoinSet::new();
    let mut dialling: HashMap<Org, AbortHandle> = HashMap::new();
    let mut changes = core.state.peers.changes();
    loop {
        changes.borrow_and_update();
        dialling.retain(|_, task| !task.is_finished());
        for peer in core.state.peers.all() {
            if is_dialled(&peer) && !dialling.contains_key(&peer.org) {
                let (core, phase) = (Arc::clone(&core), phase.clone());
                let task = tasks.spawn(dial(core, peer.org.clone(), phase));
                dialling.insert(peer.org.clone(), task);
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            // One that ended because its peer changed may have to begin again.
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// Whether our side is to keep a link to this peer up.
#[must_use]
pub fn is_dialled(peer: &Peer) -> bool {
    !peer.is_paused && !peer.endpoints.is_empty()
}

/// Keeps the link to one peer up for as long as it is one that is dialled.
async fn dial(core: Arc<Core>, org: Org, phase: watch::Receiver<Phase>) {
    let mut backoff = Backoff::default();
    let mut attempt = 0_usize;
    let (mut links, mut peers) = (core.state.links.changes(), core.state.peers.changes());
    loop {
        links.borrow_and_update();
        peers.borrow_and_update();
        let Some(peer) = core.state.peers.find(&org).filter(|peer| is_dialled(peer)) else {
            return;
        };
        if core.state.links.of(&org).is_some() {
            // The other side dialled.
            let _ = links.changed().await;
            continue;
        }
        let endpoint = peer.endpoints[attempt % peer.endpoints.len()].clone();
        attempt += 1;
        let begun = Instant::now();
        let ended = match connect(&core, &peer, &endpoint, phase.clone()).await {
            Ok(ended) => {
                // One that is closed as soon as it is made is a failure too.
                if begun.elapsed() > LASTING {
                    backoff.reset();
                }
                attempt -= 1;
                format!("the link ended: {}", ended.says())
            }
            Err(why) => format!("{endpoint}: {why:#}"),
        };
        if core.state.links.note_trouble(&org, &ended) {
            tracing::info!(peer = %org, why = ended, "not linked");
        }
        let mut random = [0; 8];
        // Without randomness every wait is the longest.
        let random = getrandom::fill(&mut random).map_or(u64::MAX, |()| u64::from_le_bytes(random));
        let pause = backoff.failed(random).min(PAUSE_MAX);
        tokio::select! {
            () = sleep(pause) => {}
            _ = peers.changed() => {}
        }
    }
}

async fn connect(
    core: &Arc<Core>,
    peer: &Peer,
    endpoint: &str,
    phase: watch::Receiver<Phase>,
) -> anyhow::Result<Ended> {
    let pair = core.certificates.current();
    let connecting = async {
        let tcp = timeout(ANSWER_MAX, TcpStream::connect(endpoint)).await;
        let tcp = tcp.context("nobody answers")??;
        tcp.set_nodelay(true)?;
        let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).context("not a host")?;
        let connector = TlsConnector::from(Arc::clone(&pair.client));
        let stream = connector.connect(name, tcp).await?;
        let binding = Binding::of_client(&stream, pair.channel)?;
        let mut request = format!("wss://{endpoint}/fem/link").into_client_request()?;
        let org = HeaderValue::from_str(core.state.org.as_str())?;
        request.headers_mut().insert(ORG_HEADER, org);
        let bounds = link_bounds(core.config.limits.envelope_bytes_max);
        let stream = Threshold::new(stream, LINK_ATTACH_BYTES_MAX);
        let (socket, _) = client_async_with_config(request, stream, Some(bounds))
            .await
            .context("it does not take us as its peer")?;
        anyhow::Ok((socket, binding))
    };
    let connected = timeout(CONNECT_MAX, connecting).await;
    let (socket, binding) = connected.context("it does not answer in time")??;
    run(core, socket, peer, binding, phase).await
}
