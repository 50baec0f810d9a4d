//! What is issued, and the minting behind it.

use std::time::Duration;

use proto_spec::capability::{
    BadCheck, BadTerms, Check, Enrolment, Terms, Token, encode_text, issue,
};
use proto_spec::message::{Ack, AdminScope, EnrolIssue, TokenIssue};
use proto_spec::{AgentId, Digest, Kind, Name, Pattern, PublicKey, Refusal, SigningKey, Timestamp};

use super::admin::read;
use super::agents::check_prefixes;
use super::scope::By;
use super::{APPROVAL_LIFETIME, Decision, Desk, change};
use crate::change::{Change, default_prefixes};
use crate::state::registry::grant_id;

impl Desk {
    pub(super) fn issue(&self, text: &str, by: &By) -> Result<Decision, Refusal> {
        let body: TokenIssue = read(text)?;
        let at = self.clock.now();
        self.check_name(by, &body.agent)?;
        self.check_grantable(by, &body.capabilities)?;
        if body.capabilities.is_empty() {
            return Err(Refusal::InvalidBody(
                "a grant needs at least one capability".into(),
            ));
        }
        let agent = self
            .state
            .registry
            .agent(&body.agent)
            .ok_or_else(|| Refusal::NotFound(format!("agent {}", body.agent)))?;
        let expires = self.end_of(body.expires, at, !body.record)?;
        let checks = parse_checks(&body.checks)?;
        let given = &body.capabilities;
        if let Some(proposed) = self.takes_two(Kind::AdminTokenIssue, text, by, given)? {
            return Ok(proposed);
        }
        let unsealed = self.mint(&Terms {
            agent: AgentId::new(body.agent.clone(), self.state.org.clone()),
            holder: agent.key.key(),
            capabilities: body.capabilities.clone(),
            issued: self.state.revocations.after_bars(at),
            not_before: body.not_before,
            expires,
            checks,
            sandbox: body.sandbox,
            calls: body.calls,
        })?;
        let sealed = sealed(&unsealed)?;
        let id = self.id_of(&sealed)?;
        let issued = Change::Issued {
            id,
            agent: body.agent,
            capabilities: body.capabilities,
            checks: body.checks,
            not_before: body.not_before,
            expires,
            calls: body.calls,
            record: body.record.then(|| encode_text(&sealed)),
            by: by.first.clone(),
            at,
        };
        let token = (!body.record).then(|| encode_text(&unsealed));
        Ok(change(issued, move |_| Ack::Issued { id, token, expires }))
    }

    /// When something that is issued now ends: as asked, or as configured. What is handed out has a
    /// longest lifetime, because its revocation is remembered for that long.
    pub(super) fn end_of(
        &self,
        asked: Option<Timestamp>,
        at: Timestamp,
        handed_out: bool,
    ) -> Result<Timestamp, Refusal> {
        let longest = Duration::from_secs(self.config.limits.token_lifetime_max_s);
        let usual = Duration::from_secs(self.config.limits.token_lifetime_s);
        let expires = asked.unwrap_or_else(|| at.later(usual));
        if expires <= at {
            return Err(Refusal::InvalidBody("`expires` lies in the past".into()));
        }
        if handed_out && expires > at.later(longest) {
            return Err(Refusal::InvalidBody(format!(
                "`expires` lies more than {} s ahead",
                longest.as_secs()
            )));
        }
        Ok(expires)
    }

    pub(super) fn issue_enrolment(&self, text: &str, by: &By) -> Result<Decision, Refusal> {
        let body: EnrolIssue = read(text)?;
        let at = self.clock.now();
        self.check_name_pattern(by, &body.name)?;
        self.check_grantable(by, &body.ceiling)?;
        let forbidden = ["admin.", "broker.", "enrol."];
        if body.ceiling.iter().any(|pattern| {
            forbidden
                .iter()
                .any(|under| pattern.as_str().starts_with(under))
        }) {
            return Err(Refusal::InvalidBody(
                "no ceiling lies under admin, broker or enrol".into(),
            ));
        }
        check_prefixes(&body.prefixes)?;
        self.check_grantable(by, &body.prefixes)?;
        let expires = self.end_of(body.expires, at, true)?;
        if let Some(proposed) = self.takes_two(Kind::AdminEnrolIssue, text, by, &body.ceiling)? {
            return Ok(proposed);
        }
        let uses = body.uses.unwrap_or(1);
        let terms = Enrolment {
            name: body.name.clone(),
            ceiling: body.ceiling.clone(),
            prefixes: body.prefixes.clone(),
            uses,
        };
        let issued = self.state.revocations.after_bars(at);
        let sealed = issue::enrolment(
            &self.root,
            &self.state.org,
            &terms,
            issued,
            expires,
            entropy()?,
        )
        .map_err(|error| bad_terms(&error))?;
        let id = self.id_of(&sealed)?;
        let issued = Change::EnrolmentIssued {
            id,
            name: body.name,
            ceiling: body.ceiling,
            uses,
            expires,
            by: by.first.clone(),
            at,
        };
        let token = Some(encode_text(&sealed));
        Ok(change(issued, move |_| Ack::Issued { id, token, expires }))
    }

    pub(super) fn mint(&self, terms: &Terms) -> Result<Vec<u8>, Refusal> {
        issue::grant(&self.root, &self.state.org, terms, entropy()?)
            .map_err(|error| bad_terms(&error))
    }

    pub(super) fn mint_record(
        &self,
        name: &Name,
        holder: PublicKey,
        capabilities: &[Pattern],
        issued: Timestamp,
        expires: Timestamp,
    ) -> Result<Option<(Digest, String)>, Refusal> {
        if capabilities.is_empty() {
            return Ok(None);
        }
        let unsealed = self.mint(&Terms {
            agent: AgentId::new(name.clone(), self.state.org.clone()),
            holder,
            capabilities: capabilities.to_vec(),
            issued: self.state.revocations.after_bars(issued),
            not_before: None,
            expires,
            checks: Vec::new(),
            sandbox: None,
            calls: None,
        })?;
        let sealed = sealed(&unsealed)?;
        Ok(Some((self.id_of(&sealed)?, encode_text(&sealed))))
    }

    /// By which a token that was just minted is listed and revoked.
    pub(super) fn id_of_unsealed(&self, token: &[u8]) -> Result<Digest, Refusal> {
        Token::open_unsealed(token, &self.state.roots.keys()).map(|token| grant_id(&token))
    }

    pub(super) fn id_of(&self, sealed: &[u8]) -> Result<Digest, Refusal> {
        Token::open(sealed, &self.state.roots.keys()).map(|token| grant_id(&token))
    }
}

/// Founds the first admin: everything grantable, to everyone.
pub(crate) fn first_admin(
    root: &SigningKey,
    admin: &AgentId,
    key: PublicKey,
    issued: Timestamp,
    at: Timestamp,
) -> Result<Change, Refusal> {
    let reserved = proto_spec::identity::RESERVED
        .iter()
        .map(|segment| format!("{segment}.*"));
    let all: Vec<Pattern> = reserved
        .chain(["*".into()])
        .filter_map(|pattern| pattern.parse().ok())
        .collect();
    let everyone = "*".parse().map_err(|_| Refusal::Internal)?;
    let terms = Terms {
        agent: admin.clone(),
        holder: key,
        capabilities: all.clone(),
        issued,
        not_before: None,
        expires: at.later(APPROVAL_LIFETIME),
        checks: Vec::new(),
        sandbox: None,
        calls: None,
    };
    let unsealed =
        issue::grant(root, admin.org(), &terms, entropy()?).map_err(|error| bad_terms(&error))?;
    let sealed = sealed(&unsealed)?;
    let id = grant_id(&Token::open(&sealed, &[root.public()])?);
    Ok(Change::Approved {
        name: admin.name().clone(),
        key,
        grant: Some((id, encode_text(&sealed))),
        capabilities: all.clone(),
        expires: terms.expires,
        prefixes: default_prefixes(admin.name()),
        admin: Some(AdminScope {
            grantable: all,
            names: vec![everyone],
        }),
        older: None,
        by: admin.name().clone(),
        at,
    })
}

/// The terms of a grant on record, for another key.
pub(super) fn reissue_terms(
    token: &Token,
    agent: &AgentId,
    holder: PublicKey,
) -> Result<Terms, Refusal> {
    let own = token.blocks().first().ok_or(Refusal::Internal)?;
    Ok(Terms {
        agent: agent.clone(),
        holder,
        capabilities: token.capabilities().to_vec(),
        issued: token.issued(),
        not_before: token.not_before(),
        expires: token.expires(),
        checks: own
            .checks()
            .iter()
            .filter(|check| !check.is_time_limit())
            .cloned()
            .collect(),
        sandbox: token.sandbox().map(str::to_owned),
        calls: token.calls(),
    })
}

pub(super) fn parse_checks(texts: &[String]) -> Result<Vec<Check>, Refusal> {
    let parse = |text: &String| {
        text.parse()
            .map_err(|error: BadCheck| Refusal::InvalidBody(error.to_string()))
    };
    texts.iter().map(parse).collect()
}

pub(super) fn sealed(unsealed: &[u8]) -> Result<Vec<u8>, Refusal> {
    issue::seal(unsealed).map_err(|error| bad_terms(&error))
}

pub(super) fn bad_terms(error: &BadTerms) -> Refusal {
    Refusal::InvalidBody(error.to_string())
}

pub(super) fn entropy() -> Result<[u8; 32], Refusal> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| {
        tracing::error!(%error, "the system gives no randomness");
        Refusal::Internal
    })?;
    Ok(bytes)
}
