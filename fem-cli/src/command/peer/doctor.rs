//! `peer doctor`: what is wrong between here and a peer, and what to do about it.

use std::time::Duration;

use proto_spec::message::{PeerRecord, WellKnown};
use proto_spec::succession::successors;
use proto_spec::{Digest, Kind, Org};
use rustls_pki_types::CertificateDer;

use super::{find, granted};
use crate::command::doctor::clock;
use crate::command::doctor::findings::Findings;
use crate::command::keys;
use crate::connect::Chosen;
use crate::failure::Outcome;
use crate::output::{Output, join};
use crate::probe::{self, Seen, Trouble, Trust};
use crate::request;
use crate::time;

/// The protocol version that this command speaks.
const VERSION: u32 = 1;

pub(super) async fn run(chosen: &Chosen, output: Output, org: &Org) -> Outcome {
    let admin = chosen.agent()?;
    let peer = find(&admin, org).await?;
    let mut found = Findings::default();
    for endpoint in &peer.endpoints {
        match probe::look(&format!("https://{endpoint}"), Trust::AnyKey).await {
            Ok(seen) => answers(&mut found, &peer, endpoint, &seen),
            Err(trouble) => silent(&mut found, org, endpoint, &trouble),
        }
    }
    link(&mut found, &peer);
    lag(&mut found, &peer);
    rotation(&mut found, &admin).await?;
    here(&mut found, &peer);
    there(&mut found, &peer, admin.id().org());
    callers(&mut found, &peer, &admin).await?;
    found.give(output)
}

fn silent(found: &mut Findings, org: &Org, endpoint: &str, trouble: &Trouble) {
    let (Trouble::Address(why) | Trouble::Reach(why) | Trouble::Tls(why)) = trouble;
    found.fail(
        "endpoint",
        format!("{endpoint}: {why}"),
        format!(
            "ask {org}'s admin whether its broker runs there; then look at firewalls in between"
        ),
    );
}

/// What a broker shows that answers at an endpoint.
fn answers(found: &mut Findings, peer: &PeerRecord, endpoint: &str, seen: &Seen) {
    found.ok("endpoint", format!("{endpoint} answers"));
    let certificate = CertificateDer::from(seen.certificate.as_slice());
    if let Ok(channel) = broker::tls::channel_of(&certificate) {
        tls_key(found, peer, &channel);
    }
    match &seen.well_known {
        Ok(said) => says(found, peer, said),
        Err(why) => found.fail(
            "broker",
            format!("no /.well-known/fem: {why}"),
            format!("ask {}'s admin: this is no FEM broker", peer.org),
        ),
    }
}

/// Whether the peer says over its link that this TLS key is its own. While it changes them it names several.
fn tls_key(found: &mut Findings, peer: &PeerRecord, channel: &Digest) {
    match &peer.channels[..] {
        // Nobody has said anything: there is no link.
        [] => found.ok("TLS key", channel.to_string()),
        named if named.contains(channel) => found.ok(
            "TLS key",
            match named.len() {
                1 => channel.to_string(),
                several => format!("{channel}, one of {several} that it names"),
            },
        ),
        _ => found.warn(
            "TLS key",
            format!("{channel} is none that the peer names on its link"),
            "did it just change its certificate? then the next link names it; else who answers there?",
        ),
    }
}

/// What it says about itself. Anybody can say it; the link alone proves it.
fn says(found: &mut Findings, peer: &PeerRecord, said: &WellKnown) {
    let shown = format!("{}, {}", said.org, said.key.fingerprint());
    if said.org == peer.org && said.key == peer.key {
        found.ok("broker key", shown);
    } else if said.org == peer.org && follows(peer, said) {
        found.warn(
            "broker key",
            format!(
                "it goes on under {}, which follows from the key that was accepted",
                said.key.fingerprint()
            ),
            "nothing to do: the next link brings it; see `fem-cli peer show`",
        );
    } else {
        found.fail(
            "broker key",
            format!(
                "it says {shown}; accepted was {}, {}",
                peer.org, peer.fingerprint
            ),
            "ask its admin over another channel; a new key is accepted anew, after `fem-cli peer remove`",
        );
    }
    let versions = join(&said.versions);
    if said.versions.contains(&VERSION) {
        found.ok("protocol", format!("version {versions}"));
    } else {
        found.fail(
            "protocol",
            format!("it speaks {versions}, and here it is {VERSION}"),
            "bring the older of the two brokers up to date",
        );
    }
    let most = Duration::from_millis(said.clock_skew_max_ms);
    clock(found, time::now(), said.now, most);
}

/// Whether its key follows from the accepted one.
fn follows(peer: &PeerRecord, said: &WellKnown) -> bool {
    let chain = successors(&peer.key, &said.successions, &peer.org);
    chain.last().is_some_and(|last| *last.to() == said.key)
}

/// How far its word about its dead keys lags behind: its agents are refused when it lags too far.
fn lag(found: &mut Findings, peer: &PeerRecord) {
    let most = peer.revocations_age_max_ms;
    match peer.revocations_age_ms {
        None => {}
        Some(age) if age <= most => {
            found.ok("revocations", format!("known as of {} s ago", tenths(age)));
        }
        Some(age) => found.fail(
            "revocations",
            format!(
                "known as of {} s ago only; beyond {} s its agents are refused",
                tenths(age),
                tenths(most)
            ),
            "the connection is slow or stalls: look at the network in between",
        ),
    }
}

fn tenths(ms: u64) -> String {
    format!("{}.{}", ms / 1_000, ms % 1_000 / 100)
}

/// Our own keys that are being replaced: peers follow by themselves, while both are good.
async fn rotation(found: &mut Findings, admin: &agent_sdk::Agent) -> Outcome {
    let keys = keys::act(admin, Kind::AdminBrokerList, None).await?;
    let waiting = keys.iter().filter(|held| held.state != "active");
    let waiting: Vec<String> = waiting
        .map(|held| format!("{} is {}", held.key.fingerprint(), held.state))
        .collect();
    match waiting.is_empty() {
        true => found.ok("our broker key", "one, active"),
        false => found.warn(
            "our broker key",
            waiting.join("; "),
            "peers follow at their next link; retire the old one when all have: `fem-cli broker-key list`",
        ),
    }
    Ok(())
}

fn link(found: &mut Findings, peer: &PeerRecord) {
    let org = &peer.org;
    let why = peer.trouble.as_deref().unwrap_or("no reason is known");
    match peer.link.as_str() {
        "up" => found.ok("link", "up"),
        "paused" => found.warn(
            "link",
            "paused: no call crosses",
            format!("fem-cli peer resume {org}"),
        ),
        _ if peer.endpoints.is_empty() => found.fail(
            "link",
            "down; no endpoint was accepted, so it has to dial us",
            format!("does {org} have us as a peer, with an endpoint of ours that it can reach?"),
        ),
        state => found.fail(
            "link",
            format!("{state}: {why}"),
            format!("has {org}'s admin accepted our file, and not paused us? (`fem-cli peer list` there)"),
        ),
    }
}

/// What the peer's agents may do here.
fn here(found: &mut Findings, peer: &PeerRecord) {
    match granted(peer).as_str() {
        "-" => found.warn(
            "granted here",
            "nothing: its agents may call no tool here",
            format!("fem-cli peer grant {} PATTERN", peer.org),
        ),
        patterns => found.ok("granted here", patterns),
    }
}

/// What our agents may do there, as far as the peer tells: not known while there is no link.
fn there(found: &mut Findings, peer: &PeerRecord, own: &Org) {
    match (peer.link.as_str(), peer.tools) {
        ("up", 0) => found.warn(
            "granted there",
            "it tells of no tool that our agents may call",
            format!("its admin grants: fem-cli peer grant {own} PATTERN; does anybody there serve a tool?"),
        ),
        ("up", tools) => found.ok("granted there", format!("{tools} tools")),
        _ => {}
    }
}

/// Which of our agents may use it by what is on record.
async fn callers(found: &mut Findings, peer: &PeerRecord, admin: &agent_sdk::Agent) -> Outcome {
    let under = format!("peer.{}.", peer.org);
    let (agents, _) = request::agents(admin).await?;
    let may = agents.iter().filter(|agent| {
        let mut capabilities = agent.capabilities.iter();
        capabilities.any(|one| one.as_str() == "peer.*" || one.as_str().starts_with(&under))
    });
    let names: Vec<_> = may.map(|agent| &agent.name).collect();
    match names.is_empty() {
        true => found.warn(
            "our callers",
            "no agent here may call a tool there",
            format!("fem-cli token issue NAME --capability '{under}PATTERN'"),
        ),
        false => found.ok("our callers", join(&names)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proto_spec::{SigningKey, Timestamp};

    use super::*;
    use crate::command::doctor::findings::told;

    fn peer(link: &str) -> PeerRecord {
        let key = SigningKey::from_seed(&[1; 32]).public();
        PeerRecord {
            org: "globex".parse().unwrap(),
            key,
            fingerprint: key.fingerprint(),
            endpoints: vec!["broker.globex.example:7443".into()],
            link: link.into(),
            trouble: Some("refused".into()),
            revocations_age_ms: None,
            revocations_age_max_ms: 10_000,
            channels: Vec::new(),
            tools: 0,
            grants: Vec::new(),
            asks: Vec::new(),
            since: Timestamp::from_ms(0),
        }
    }

    fn well_known(org: &str, seed: u8, version: u32) -> WellKnown {
        WellKnown {
            org: org.parse().unwrap(),
            key: SigningKey::from_seed(&[seed; 32]).public(),
            versions: vec![version],
            post: "/fem".into(),
            websocket: "/fem/ws".into(),
            envelope_bytes_max: 1,
            clock_skew_max_ms: 300_000,
            now: time::now(),
            successions: Vec::new(),
        }
    }

    #[test]
    fn who_answers_at_an_endpoint_is_compared_with_whom_the_admin_accepted() {
        for (said, wrong) in [
            (well_known("globex", 1, VERSION), None),
            (well_known("globex", 2, VERSION), Some("fail  broker key")),
            (well_known("initech", 1, VERSION), Some("fail  broker key")),
            (well_known("globex", 1, VERSION + 1), Some("fail  protocol")),
        ] {
            let mut found = Findings::default();
            says(&mut found, &peer("up"), &said);
            let shown = told(&found.0);
            assert_eq!(shown.contains("fail"), wrong.is_some(), "{shown}");
            assert!(wrong.is_none_or(|line| shown.contains(line)), "{shown}");
        }
    }

    #[test]
    fn a_lag_is_told_in_seconds_and_fails_where_agents_are_refused() {
        let shown = |age| {
            let mut found = Findings::default();
            let record = PeerRecord {
                revocations_age_ms: age,
                ..peer("up")
            };
            lag(&mut found, &record);
            told(&found.0)
        };
        assert_eq!(shown(None), "");
        assert!(shown(Some(1_250)).contains("known as of 1.2 s ago"));
        assert!(shown(Some(10_001)).contains("fail  revocations"));
    }

    #[test]
    fn a_tls_key_that_the_peer_does_not_name_is_doubtful() {
        let (named, other) = (Digest([1; 32]), Digest([2; 32]));
        let shown = |channels: Vec<Digest>, seen| {
            let mut found = Findings::default();
            let record = PeerRecord {
                channels,
                ..peer("up")
            };
            tls_key(&mut found, &record, &seen);
            told(&found.0)
        };
        assert!(shown(vec![named], named).contains("ok"));
        assert!(shown(vec![other, named], named).contains("one of 2"));
        assert!(shown(vec![named], other).contains("warn  TLS key"));
        assert!(shown(Vec::new(), other).contains("ok"));
    }

    #[test]
    fn what_a_peer_grants_is_said_only_while_it_can_be_known() {
        let shown = |state: &str| {
            let mut found = Findings::default();
            link(&mut found, &peer(state));
            there(&mut found, &peer(state), &"acme".parse().unwrap());
            told(&found.0)
        };
        assert!(shown("up").contains("fem-cli peer grant acme PATTERN"));
        assert!(shown("down").contains("down: refused"));
        for state in ["down", "paused"] {
            assert!(!shown(state).contains("granted there"), "{state}");
        }
    }
}
