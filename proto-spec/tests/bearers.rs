//! What a bearer token lets the broker sign for, and what not.

#![expect(clippy::unwrap_used, reason = "a failing test panics")]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use proto_spec::admission::{Authority, Judge, KeyBook, Me, Nonces};
use proto_spec::capability::{Check, Token, issue};
use proto_spec::limits::ENVELOPE_BYTES;
use proto_spec::{
    AgentId, Audience, Capability, Code, Digest, Draft, Kind, Pattern, PublicKey, Received,
    Refusal, Speaker, Timestamp, VIA_MCP,
};
use serde_json::json;

mod fixture;
use fixture::{
    HOLDER, ISSUED, ROOT, at, key, mcp_terms, mint, org, patterns, roots, sealed, terms,
};

const NOW: u64 = ISSUED + 60_000;

/// A broker with one agent, what is on record for it, and what was shown at `/mcp`.
struct Broker {
    record: Vec<Arc<Token>>,
    bearer: Option<Token>,
    bearer_ok: Vec<Pattern>,
    dead: HashSet<Digest>,
}

impl Authority for Broker {
    fn granted(&self, _: &AgentId) -> Arc<[Arc<Token>]> {
        self.record.clone().into()
    }
    fn open(&self, _: &str) -> Result<Arc<Token>, Refusal> {
        Err(Refusal::TokenUnsealed)
    }
    fn alive(&self, token: &Token) -> Result<(), Refusal> {
        match token
            .blocks()
            .iter()
            .any(|one| self.dead.contains(&one.id().0))
        {
            true => Err(Refusal::TokenRevoked("it".into())),
            false => Ok(()),
        }
    }
    fn bearer(&self) -> Option<&Token> {
        self.bearer.as_ref()
    }
    fn is_for_bearers(&self, required: &Pattern) -> bool {
        self.bearer_ok
            .iter()
            .any(|pattern| pattern.covers(required))
    }
    fn barred(&self, _: &Token, _: &Pattern) -> bool {
        false
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

impl KeyBook for Broker {
    fn key_of(&self, _: &Speaker) -> Option<PublicKey> {
        Some(key(HOLDER).public())
    }
}

struct Any;

impl Nonces for Any {
    fn remember(&self, _: &PublicKey, _: &str, _: Timestamp, _: Timestamp) -> Result<(), Refusal> {
        Ok(())
    }
}

fn bearer(capabilities: &[&str], checks: Vec<Check>) -> Token {
    let terms = proto_spec::capability::Bearer {
        capabilities: patterns(capabilities),
        checks,
        ..mcp_terms()
    };
    let token = issue::bearer(&key(ROOT), &org(), &terms, [7; 32]).unwrap();
    Token::open(&token, &roots()).unwrap()
}

fn on_record(capabilities: &[&str], checks: Vec<Check>) -> Arc<Token> {
    let terms = proto_spec::capability::Terms {
        checks,
        ..terms(capabilities)
    };
    Arc::new(Token::open(&sealed(&mint(&terms)), &roots()).unwrap())
}

fn broker() -> Broker {
    Broker {
        record: vec![on_record(&["fs.*", "mail.send"], Vec::new())],
        bearer: Some(bearer(&["fs.read", "git.push", "mail.send"], Vec::new())),
        bearer_ok: patterns(&["fs.*", "git.*"]),
        dead: HashSet::new(),
    }
}

/// How a call of `tool` by the kept agent ends.
fn call(broker: &Broker, via: Option<&str>, tool: &str) -> Result<(), Code> {
    call_with(broker, via, tool, None)
}

fn call_with(
    broker: &Broker,
    via: Option<&str>,
    tool: &str,
    token: Option<&str>,
) -> Result<(), Code> {
    let draft = Draft {
        kind: Kind::ToolCall,
        agent: &"researcher@acme".parse().unwrap(),
        to: Some(&"fs@acme".parse().unwrap()),
        ts: at(NOW),
        nonce: "9f2c6d1e8a7b4c30",
        re: None,
        token,
        deadline: None,
        via,
        body: &json!({"tool": tool}),
    };
    let org = org();
    let judge = Judge {
        me: Me::Broker(&org),
        skew: Duration::from_secs(1),
        now: at(NOW),
    };
    let bytes = draft.seal(&key(HOLDER)).unwrap().bytes;
    Received::parse(bytes, ENVELOPE_BYTES)
        .and_then(|received| received.verify(broker))
        .and_then(|verified| verified.admit(&judge, &Any))
        .and_then(|fresh| fresh.authorize(broker, &judge))
        .map(drop)
        .map_err(|refusal| refusal.code())
}

#[test]
fn a_bearer_may_what_its_token_the_record_and_the_broker_all_permit() {
    let broker = broker();
    assert_eq!(call(&broker, Some(VIA_MCP), "fs.read"), Ok(()));
    for (tool, why) in [
        ("fs.write", "the token does not"),
        ("git.push", "the record does not"),
        ("mail.send", "the broker does not"),
    ] {
        assert_eq!(
            call(&broker, Some(VIA_MCP), tool),
            Err(Code::Denied),
            "{why}"
        );
    }
}

#[test]
fn what_says_mcp_needs_the_bearer_token_that_was_shown() {
    let shown_none = Broker {
        bearer: None,
        ..broker()
    };
    assert_eq!(call(&shown_none, None, "fs.read"), Ok(()));
    assert_eq!(
        call(&shown_none, Some(VIA_MCP), "fs.read"),
        Err(Code::NotHolder)
    );
    // Not even where the agent's own token would permit it: it would be a bearer to conditions.
    let presented = proto_spec::capability::encode_text(&sealed(&mint(&terms(&["fs.*"]))));
    let with_token = call_with(&shown_none, Some(VIA_MCP), "fs.read", Some(&presented));
    assert_eq!(with_token, Err(Code::NotHolder));
    // Another agent's, or a grant in its place.
    let terms = proto_spec::capability::Bearer {
        agent: "other@acme".parse().unwrap(),
        ..mcp_terms()
    };
    let others = issue::bearer(&key(ROOT), &org(), &terms, [7; 32]).unwrap();
    for token in [others, sealed(&mint(&fixture::terms(&["fs.*"])))] {
        let broker = Broker {
            bearer: Some(Token::open(&token, &roots()).unwrap()),
            ..broker()
        };
        assert_eq!(
            call(&broker, Some(VIA_MCP), "fs.read"),
            Err(Code::NotHolder)
        );
    }
}

#[test]
fn a_revoked_bearer_token_permits_nothing_any_more() {
    let mut broker = broker();
    let id = broker.bearer.as_ref().unwrap().blocks()[0].id();
    broker.dead.insert(id.0);
    assert_eq!(
        call(&broker, Some(VIA_MCP), "fs.read"),
        Err(Code::TokenRevoked)
    );
}

#[test]
fn proof_by_bearer_holds_exactly_for_what_says_mcp() {
    let only = |proof: &str| {
        vec![
            format!("check if proof({proof:?})")
                .parse::<Check>()
                .unwrap(),
        ]
    };
    for (proof, by_key, by_bearer) in [
        ("key", Ok(()), Err(Code::Denied)),
        ("bearer", Err(Code::Denied), Ok(())),
    ] {
        let broker = Broker {
            record: vec![on_record(&["fs.*"], only(proof))],
            ..broker()
        };
        assert_eq!(call(&broker, None, "fs.read"), by_key, "{proof}");
        // A bridge of another name is no bearer's.
        assert_eq!(call(&broker, Some("fep"), "fs.read"), by_key, "{proof}");
        assert_eq!(
            call(&broker, Some(VIA_MCP), "fs.read"),
            by_bearer,
            "{proof}"
        );
    }
}

#[test]
fn conditions_of_a_bearer_token_hold_for_what_is_signed_for_it() {
    let broker = Broker {
        bearer: Some(bearer(
            &["fs.*"],
            vec!["check if tool(\"fs.read\")".parse().unwrap()],
        )),
        ..broker()
    };
    assert_eq!(call(&broker, Some(VIA_MCP), "fs.read"), Ok(()));
    assert_eq!(call(&broker, Some(VIA_MCP), "fs.write"), Err(Code::Denied));
}
