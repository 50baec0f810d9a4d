//! Whether what is held permits what is asked: a table for standard conditions, the engine for others.

use biscuit_auth::builder::{Fact, Term};
use biscuit_auth::datalog::RunLimits;
use biscuit_auth::{AuthorizerBuilder, Biscuit, error};

use super::arguments::{ArgumentFacts, Scalar};
use super::check::{Check, Standard};
use super::pattern::Pattern;
use crate::identity::{AgentId, Org};
use crate::limits::TOKEN_TIME_MAX;
use crate::refusal::Refusal;
use crate::time::Timestamp;

/// How the sender proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It signed with its own key.
    Key,
    /// The broker signed for it, on a bearer token shown at `/mcp`.
    Bearer,
}

/// The arguments of the call that a decision is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arguments<'a> {
    /// What is asked has none.
    None,
    /// They are sealed for the provider: nobody else can look at them.
    Sealed,
    /// The JSON text of the `arguments` object, as it was received.
    Json(&'a str),
    /// Not known yet: conditions on arguments count as satisfied. For discovery only, never for a call.
    Unknown,
}

/// What somebody wants to do, and all that conditions may ask about it.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The capability that it needs; a pattern for subscriptions.
    pub required: &'a Pattern,
    /// The tool that is called.
    pub tool: Option<&'a str>,
    /// Who asks. Nobody yet for what is advertised to a peer: conditions on the caller count as satisfied
    /// there, and fail anywhere else.
    pub caller: Option<&'a AgentId>,
    /// Of a caller that another organisation introduced: which.
    pub via: Option<&'a Org>,
    /// Who would do it.
    pub provider: Option<&'a AgentId>,
    /// The verifier's time.
    pub now: Timestamp,
    /// The caller's trust score, 0 to 100, where somebody computed one.
    pub trust: Option<u8>,
    /// How the caller proved who it is.
    pub proof: Proof,
    /// The arguments of the call.
    pub arguments: Arguments<'a>,
}

impl<'a> Question<'a> {
    /// A question that no call is part of, by an agent that signed with its own key.
    #[must_use]
    pub fn plain(required: &'a Pattern, caller: &'a AgentId, now: Timestamp) -> Self {
        Self {
            required,
            tool: None,
            caller: Some(caller),
            via: None,
            provider: None,
            now,
            trust: None,
            proof: Proof::Key,
            arguments: Arguments::None,
        }
    }
}

/// The conditions of a token or grant that a table answers, gathered from all its checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    /// The earliest expiry.
    pub expires: Option<Timestamp>,
    /// The latest beginning.
    pub not_before: Option<Timestamp>,
    only: Vec<Vec<Pattern>>,
    /// No check is of another form.
    pub is_all: bool,
}

impl Standing {
    pub(super) fn of<'a>(checks: impl Iterator<Item = &'a Check>) -> Self {
        let mut standing = Self {
            expires: None,
            not_before: None,
            only: Vec::new(),
            is_all: true,
        };
        for check in checks {
            match check.standard() {
                Some(Standard::Before(seconds)) => {
                    let at = Timestamp::from_ms(seconds * 1_000);
                    standing.expires = Some(standing.expires.map_or(at, |had| had.min(at)));
                }
                Some(Standard::NotBefore(seconds)) => {
                    let at = Timestamp::from_ms(seconds * 1_000);
                    standing.not_before = standing.not_before.max(Some(at));
                }
                Some(Standard::Only(patterns)) => standing.only.push(patterns),
                None => standing.is_all = false,
            }
        }
        standing
    }

    /// The part of a decision that needs no engine.
    pub(super) fn permits(
        &self,
        capabilities: &[Pattern],
        q: &Question<'_>,
    ) -> Result<(), Refusal> {
        // Datalog's dates are whole seconds; so is this, or the two would differ within one.
        let now = Timestamp::from_ms(q.now.as_secs() * 1_000);
        if self.expires.is_some_and(|at| now >= at) || self.not_before.is_some_and(|at| now < at) {
            return Err(Refusal::TokenExpired);
        }
        let covered = |by: &[Pattern]| by.iter().any(|pattern| pattern.covers(q.required));
        if covered(capabilities) && self.only.iter().all(|only| covered(only)) {
            Ok(())
        } else {
            Err(Refusal::Denied(q.required.to_string()))
        }
    }
}

/// Decides for a grant on record, whose capabilities and conditions are held without a token.
///
/// # Errors
///
/// As [`Token::permits`](super::Token::permits).
pub fn permits(
    capabilities: &[Pattern],
    checks: &[Check],
    q: &Question<'_>,
) -> Result<(), Refusal> {
    let standing = Standing::of(checks.iter());
    standing.permits(capabilities, q)?;
    if standing.is_all {
        return Ok(());
    }
    let mut authorizer = AuthorizerBuilder::new();
    for check in asked(checks.iter(), q) {
        authorizer = authorizer
            .check(check.to_string().as_str())
            .map_err(|e| engine(&e))?;
    }
    let facts = facts(checks.iter(), q)?;
    run(
        add(authorizer, facts)?
            .policy("allow if true")
            .map_err(|e| engine(&e))?,
        None,
        q,
    )
}

/// Decides for a token with conditions of its own.
pub(super) fn token_permits(
    biscuit: &Biscuit,
    checks: &[&Check],
    capabilities: &[Pattern],
    q: &Question<'_>,
) -> Result<(), Refusal> {
    if q.arguments == Arguments::Unknown {
        let asked: Vec<Check> = checks.iter().copied().cloned().collect();
        return permits(capabilities, &asked, q);
    }
    let facts = facts(checks.iter().copied(), q)?;
    let covers = q
        .required
        .covered_by()
        .map(|p| fact("covers", vec![text(p.as_str())]));
    let authorizer = add(AuthorizerBuilder::new(), facts)?;
    let authorizer = add(authorizer, covers.collect())?;
    let policy = "allow if capability($c), covers($c)";
    run(
        authorizer.policy(policy).map_err(|e| engine(&e))?,
        Some(biscuit),
        q,
    )
}

/// The checks that are put to the engine: all, or without those that nobody can answer yet.
fn asked<'a>(
    checks: impl Iterator<Item = &'a Check>,
    q: &Question<'_>,
) -> impl Iterator<Item = &'a Check> {
    let is_known = q.arguments != Arguments::Unknown;
    let has_caller = q.caller.is_some();
    checks.filter(move |check| {
        is_known || !(check.names_arguments() || !has_caller && check.names_caller())
    })
}

/// All facts of the authoriser but `covers`.
fn facts<'a>(
    checks: impl Iterator<Item = &'a Check> + Clone,
    q: &Question<'_>,
) -> Result<Vec<Fact>, Refusal> {
    let mut facts = vec![
        fact("time", vec![Term::Date(q.now.as_secs())]),
        fact(
            "proof",
            vec![text(match q.proof {
                Proof::Key => "key",
                Proof::Bearer => "bearer",
            })],
        ),
    ];
    facts.extend(q.caller.map(|agent| {
        let name = match q.via {
            Some(org) => format!("{agent} via {org}"),
            None => agent.to_string(),
        };
        fact("caller", vec![text(&name)])
    }));
    facts.extend(q.tool.map(|tool| fact("tool", vec![text(tool)])));
    facts.extend(
        q.provider
            .map(|agent| fact("provider", vec![text(&agent.to_string())])),
    );
    facts.extend(
        q.trust
            .map(|score| fact("trust", vec![Term::Integer(i64::from(score))])),
    );
    if checks.clone().any(Check::names_arguments) {
        facts.extend(argument_facts(checks, q.arguments)?);
    }
    Ok(facts)
}

fn argument_facts<'a>(
    mut checks: impl Iterator<Item = &'a Check>,
    arguments: Arguments<'_>,
) -> Result<Vec<Fact>, Refusal> {
    let said = match arguments {
        Arguments::None | Arguments::Unknown => ArgumentFacts::default(),
        Arguments::Sealed => return Err(Refusal::ArgsUncheckable("they are sealed")),
        Arguments::Json(json) => ArgumentFacts::of(json).map_err(Refusal::ArgsUncheckable)?,
    };
    if said.has_unseen && checks.any(Check::holds_without_argument) {
        let why = "a condition forbids values, and one of them cannot be looked at";
        return Err(Refusal::ArgsUncheckable(why));
    }
    let args = said.args.into_iter().map(|(pointer, value)| {
        let value = match value {
            Scalar::Integer(integer) => Term::Integer(integer),
            Scalar::Text(text) => Term::Str(text),
            Scalar::Bool(bool) => Term::Bool(bool),
        };
        fact("arg", vec![Term::Str(pointer), value])
    });
    let paths = said.paths.into_iter();
    let paths = paths.map(|(at, path)| fact("path", vec![Term::Str(at), Term::Str(path)]));
    let odd = said
        .odd
        .into_iter()
        .map(|at| fact("odd_arg", vec![Term::Str(at)]));
    Ok(args.chain(paths).chain(odd).collect())
}

fn fact(name: &str, terms: Vec<Term>) -> Fact {
    Fact::new(name.into(), terms)
}

fn text(text: &str) -> Term {
    Term::Str(text.into())
}

fn add(mut authorizer: AuthorizerBuilder, facts: Vec<Fact>) -> Result<AuthorizerBuilder, Refusal> {
    for fact in facts {
        authorizer = authorizer.fact(fact).map_err(|e| engine(&e))?;
    }
    Ok(authorizer)
}

fn engine(error: &error::Token) -> Refusal {
    Refusal::TokenInvalid(error.to_string())
}

/// Runs the engine. Its time limit is far above what the gate admits, so that reaching it says
/// something about this machine and nothing about the token.
fn run(
    authorizer: AuthorizerBuilder,
    biscuit: Option<&Biscuit>,
    q: &Question<'_>,
) -> Result<(), Refusal> {
    let limits = RunLimits {
        max_facts: 1_000,
        max_iterations: 100,
        max_time: TOKEN_TIME_MAX,
    };
    let authorizer = authorizer.set_limits(limits);
    let authorizer = match biscuit {
        Some(biscuit) => authorizer.build(biscuit),
        None => authorizer.build_unauthenticated(),
    };
    match authorizer.and_then(|mut authorizer| authorizer.authorize()) {
        Ok(_) => Ok(()),
        Err(error::Token::RunLimit(error::RunLimit::Timeout)) => Err(Refusal::TokenUndecided),
        Err(error @ (error::Token::FailedLogic(_) | error::Token::Execution(_))) => {
            Err(Refusal::Denied(format!("{}: {error}", q.required)))
        }
        Err(error) => Err(engine(&error)),
    }
}
