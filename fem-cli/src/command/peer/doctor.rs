//! `peer doctor`: what is wrong between here and a peer, and what to do about it.

use std::time::Duration;

use proto_spec::Org;
use proto_spec::message::{PeerRecord, WellKnown};
use rustls_pki_types::CertificateDer;

use super::{find, granted};
use crate::command::doctor::clock;
use crate::command::doctor::findings::Findings;
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
        found.ok("TLS key", channel.to_string());
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

/// What it says about itself. Anybody can say it; the link alone proves it.
fn says(found: &mut Findings, peer: &PeerRecord, said: &WellKnown) {
    let shown = format!("{}, {}", said.org, said.key.fingerprint());
    if said.org == peer.org && said.key == peer.key {
        found.ok("broker key", shown);
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
