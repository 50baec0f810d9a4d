//! What a peer's token promises: whom it speaks for, and how far it may be passed on. What our own issuer
//! would not make is made with the engine's builder.

#![expect(clippy::unwrap_used, reason = "a failing test panics")]

use std::sync::Arc;
use std::time::Duration;

use proto_spec::admission::{Authority, Judge, KeyBook, Me, Neighbour, Nonces};
use proto_spec::capability::issue::{delegate, peer, seal};
use proto_spec::capability::{Check, Narrowing, Pattern, PeerTerms, Token};
use proto_spec::limits::{ENVELOPE_BYTES, INTRODUCTION_VALIDITY};
use proto_spec::{
    AgentId, Audience, Capability, Code, Digest, Draft, Kind, Org, PublicKey, Received, Refusal,
    Speaker, Timestamp,
};
use serde_json::json;

mod fixture;
use fixture::*;

/// The key of globex's broker, of initech's, and of an agent.
const GLOBEX: [u8; 32] = HOLDER;
const INITECH: [u8; 32] = ALICE;
const AGENT: [u8; 32] = BOB;

fn granted(depth: u32) -> Vec<u8> {
    let terms = PeerTerms {
        peer: globex(),
        holder: key(GLOBEX).public(),
        capabilities: patterns(&["fs.*"]),
        issued: at(ISSUED),
        expires: at(EXPIRES),
        checks: Vec::new(),
        depth,
    };
    peer(&key(ROOT), &org(), &terms, [3; 32]).unwrap()
}

fn globex() -> Org {
    "globex".parse().unwrap()
}

/// A delegation by hand from one key to another, with whatever else.
fn passed(token: &[u8], from: [u8; 32], to: [u8; 32], more: &str) -> Vec<u8> {
    third_party(token, from, &format!("{} {more}", holder_fact(to)))
}

fn introduced(token: &[u8]) -> Result<Option<AgentId>, Code> {
    let token = open(&sealed_by_hand(token)).map_err(|refusal| refusal.code())?;
    let agent = token.introduces(&globex(), &key(GLOBEX).public());
    agent
        .map(|agent| Some(agent.clone()))
        .or_else(|refusal| match token.introduced() {
            None => Ok(None),
            Some(_) => Err(refusal.code()),
        })
}

#[test]
fn a_peers_broker_introduces_agents_of_its_own_organisation() {
    let agent: AgentId = "x@globex".parse().unwrap();
    let narrowing = Narrowing {
        agent: Some(agent.clone()),
        ..Narrowing::default()
    };
    let next = key(AGENT).public();
    let made = delegate(&granted(0), &key(GLOBEX), &next, &narrowing, [4; 32]).unwrap();
    let token = open(&seal(&made).unwrap()).unwrap();
    assert_eq!(token.introduced(), Some(&agent));
    assert_eq!(token.holder(), Some(&next));
    // Another peer's link is another door, and so is the same peer under another key.
    let initech: Org = "initech".parse().unwrap();
    for (org, seed) in [(&initech, GLOBEX), (&globex(), INITECH)] {
        let refused = token.introduces(org, &key(seed).public());
        assert_eq!(refused.expect_err("another's").code(), Code::NotHolder);
    }
}

#[test]
fn an_agent_is_introduced_once_in_the_last_block_and_by_its_own_organisations_broker() {
    let grant = granted(0);
    for agent in ["x@acme", "x@initech"] {
        let forged = passed(&grant, GLOBEX, AGENT, &format!("agent(\"{agent}\");"));
        assert_eq!(introduced(&forged), Err(Code::NotHolder), "{agent}");
    }
    let broker = passed(&grant, GLOBEX, AGENT, "agent(\"broker@globex\");");
    assert_eq!(introduced(&broker), Err(Code::TokenMalformed));
    let two = passed(
        &grant,
        GLOBEX,
        AGENT,
        "agent(\"x@globex\"); agent(\"y@globex\");",
    );
    assert_eq!(introduced(&two), Err(Code::TokenMalformed));
    let named = passed(&grant, GLOBEX, AGENT, "agent(\"x@globex\");");
    assert_eq!(introduced(&named), Ok("x@globex".parse().ok()));
    // The agent passes it on, or something is appended behind it.
    for longer in [
        passed(&named, AGENT, INITECH, "agent(\"y@globex\");"),
        passed(&named, AGENT, INITECH, ""),
        first_party(&named, "check if true;"),
    ] {
        assert_eq!(introduced(&longer), Err(Code::NotHolder));
    }
    assert_eq!(introduced(&grant), Ok(None));
}

#[test]
fn a_peers_token_goes_through_no_more_organisations_than_its_owner_allows() {
    for (depth, comes_through) in [(0, false), (1, true)] {
        let through = passed(&granted(depth), GLOBEX, INITECH, "");
        let named = passed(&through, INITECH, AGENT, "agent(\"x@initech\");");
        assert_eq!(introduced(&named).is_ok(), comes_through, "{depth}");
    }
    // The one between does not name its own neighbour's agents, nor the owner's.
    let through = passed(&granted(1), GLOBEX, INITECH, "");
    for agent in ["x@globex", "x@acme"] {
        let forged = passed(&through, INITECH, AGENT, &format!("agent(\"{agent}\");"));
        assert_eq!(introduced(&forged), Err(Code::NotHolder), "{agent}");
    }
    let further = passed(&through, INITECH, [14; 32], "");
    let named = passed(&further, [14; 32], AGENT, "agent(\"x@hooli\");");
    assert_eq!(introduced(&named), Err(Code::NotHolder));
}

/// Its owner would have to remember each such budget, and its peer could state a new one with each call.
#[test]
fn no_budget_is_stated_in_what_a_peer_delegates() {
    let stated = passed(&granted(0), GLOBEX, AGENT, "agent(\"x@globex\"); calls(1);");
    let refused = open(&sealed_by_hand(&stated)).unwrap_err();
    assert_eq!(refused.code(), Code::TokenMalformed);
}

#[test]
fn no_agent_is_introduced_by_any_other_kind_of_token() {
    let grant = mint(&terms(&["fs.*"]));
    let forged = passed(&grant, HOLDER, AGENT, "agent(\"x@acme\");");
    assert_eq!(introduced(&forged), Err(Code::TokenMalformed));
}

/// An owner that trusts its neighbour and the caller's home by these scores, and grants nothing on record.
struct Owner {
    globex: u8,
    initech: u8,
}

impl Authority for Owner {
    fn granted(&self, _: &AgentId) -> Arc<[Arc<Token>]> {
        Arc::default()
    }
    fn open(&self, _: &str) -> Result<Arc<Token>, Refusal> {
        Err(Refusal::Internal)
    }
    fn alive(&self, _: &Token) -> Result<(), Refusal> {
        Ok(())
    }
    fn barred(&self, _: &Token, _: &Pattern) -> bool {
        false
    }
    fn trust(&self, org: &Org, _: &Pattern) -> Option<u8> {
        match org.as_str() {
            "globex" => Some(self.globex),
            "initech" => Some(self.initech),
            _ => None,
        }
    }
    fn required_for(&self, _: &AgentId, tool: &Capability) -> Result<Vec<Capability>, Refusal> {
        Ok(vec![tool.clone()])
    }
    fn was_delivered_here(&self, _: &Digest, _: &Audience) -> bool {
        false
    }
    fn was_called_from_here(&self, _: &Digest, _: &AgentId, _: &Audience) -> bool {
        false
    }
}

impl KeyBook for Owner {
    fn key_of(&self, _: &Speaker) -> Option<PublicKey> {
        Some(key(AGENT).public())
    }
}

impl Nonces for Owner {
    fn remember(&self, _: &PublicKey, _: &str, _: Timestamp, _: Timestamp) -> Result<(), Refusal> {
        Ok(())
    }
}

#[test]
fn who_came_through_a_neighbour_counts_for_no_more_than_the_neighbour() {
    let terms = PeerTerms {
        peer: globex(),
        holder: key(GLOBEX).public(),
        capabilities: patterns(&["fs.*"]),
        issued: at(ISSUED),
        expires: at(EXPIRES),
        checks: Check::where_clause("check if trust($s), $s >= 60").unwrap(),
        depth: 1,
    };
    let grant = peer(&key(ROOT), &org(), &terms, [3; 32]).unwrap();
    let caller: AgentId = "x@initech".parse().unwrap();
    let onward = delegate(
        &grant,
        &key(GLOBEX),
        &key(INITECH).public(),
        &Narrowing::default(),
        [4; 32],
    );
    let narrowing = Narrowing {
        agent: Some(caller.clone()),
        expires: Some(at(ISSUED).later(INTRODUCTION_VALIDITY)),
        ..Narrowing::default()
    };
    let next = key(AGENT).public();
    let made = delegate(&onward.unwrap(), &key(INITECH), &next, &narrowing, [5; 32]).unwrap();
    let token = Arc::new(open(&seal(&made).unwrap()).unwrap());
    for (globex_has, initech_has, is_permitted) in [
        (60, 60, true),
        (100, 60, true),
        (59, 100, false),
        (100, 59, false),
    ] {
        let owner = Owner {
            globex: globex_has,
            initech: initech_has,
        };
        let call = Draft {
            kind: Kind::ToolCall,
            agent: &Speaker::Agent(caller.clone()),
            to: Some(&"fs@acme".parse().unwrap()),
            ts: at(ISSUED),
            nonce: "0123456789abcdef",
            re: None,
            token: None,
            deadline: None,
            via: None,
            body: &json!({"tool": "fs.read", "arguments": {}}),
        };
        let call = call.seal(&key(AGENT)).unwrap().bytes;
        let (me, peer) = (org(), globex());
        let judge = Judge {
            me: Me::Broker(&me),
            skew: Duration::from_secs(300),
            now: at(ISSUED),
        };
        let neighbour = Neighbour {
            org: &peer,
            key: &key(GLOBEX).public(),
        };
        let presented = [(Arc::clone(&token), Arc::from(""))];
        let decided = Received::parse(call, ENVELOPE_BYTES)
            .unwrap()
            .verify(&owner)
            .unwrap()
            .admit(&judge, &owner)
            .unwrap()
            .authorize_relayed(&neighbour, &presented, &owner, &judge);
        assert_eq!(decided.is_ok(), is_permitted, "{globex_has} {initech_has}");
        if let Ok(call) = decided {
            assert_eq!(call.caller().to_string(), "x@initech via globex");
        }
    }
}
