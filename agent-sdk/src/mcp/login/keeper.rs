//! An authorisation in use, with nobody at hand: what is shown, when it is renewed, and when somebody has to log in.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto_spec::Timestamp;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::ask::renew;
use super::challenge::Challenge;
use super::exchange::Web;
use super::file::{Kept, Turn};
use super::scopes::Scopes;
use super::secret::Secret;
use super::terms::Means;
use super::token::Denied;
use crate::clock::{Clock as _, SystemClock};
use crate::mcp::address::Address;
use crate::mcp::way::roots;

/// A token that is good for less than this is renewed before it is shown.
const RENEWED_BEFORE: Duration = Duration::from_secs(30);
/// A token that was renewed so lately is not renewed again: a server that refuses what is new refuses all.
const NEW_FOR: Duration = Duration::from_secs(10);

/// Shows one MCP server the authorisation that a file keeps, and renews it there.
#[derive(Clone)]
pub struct Keeper {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    server: Address,
    web: Web,
    /// Held while a token is renewed: whoever asks meanwhile waits for the new one.
    state: Mutex<State>,
}

struct State {
    kept: Kept,
    renewed: Option<Instant>,
    /// Why somebody has to log in, until the file has another token.
    barred: Option<String>,
}

/// Why there is nothing to show.
#[derive(Debug)]
pub(crate) enum NoToken {
    /// Somebody has to log in: what to do.
    LoginNeeded(String),
    /// It could not be renewed this time.
    Failed(String),
}

/// What becomes of a request that was refused for want of an authorisation.
pub(crate) enum Verdict {
    /// It is made again, and shows this.
    Again(Secret),
    /// Nothing can be done about it here: the server's answer stands.
    Stands,
    /// It is not made again.
    No(NoToken),
}

/// What to do about a token that the server refused.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Another is there already.
    Other,
    /// Ask for another, for this.
    Renew(Scopes),
    /// Nobody has agreed to this yet.
    Login(Scopes),
    /// It has what it wants, and refuses all the same.
    Stands,
}

impl Keeper {
    /// The authorisation in a file, for the server at `server`.
    ///
    /// # Errors
    ///
    /// Where it is for another server, or the file is none of ours.
    pub fn open(path: &Path, server: &Address) -> Result<Self, String> {
        let kept = Kept::read(path)?;
        let web = Web::new(roots(kept.terms.ca_file.as_deref())?);
        let inner = Inner {
            path: path.to_owned(),
            server: server.clone(),
            web,
            state: Mutex::new(State {
                kept: checked(kept, path, server)?,
                renewed: None,
                barred: None,
            }),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The server that it is for.
    pub(crate) fn server(&self) -> &Address {
        &self.inner.server
    }

    /// What is shown with a request.
    ///
    /// # Errors
    ///
    /// [`NoToken`].
    pub(crate) async fn token(&self) -> Result<Secret, NoToken> {
        let now = SystemClock.now();
        let (token, is_good) = {
            let mut state = self.inner.state.lock().await;
            self.inner.look_again(&mut state);
            if let Some(why) = &state.barred {
                return Err(NoToken::LoginNeeded(why.clone()));
            }
            let own = &state.kept.authorisation;
            let expires = own.expires_ms.map(Timestamp::from_ms);
            let token = own.access_token.as_ref().map(Secret::copy);
            match token {
                Some(token) if !ends(expires, now.later(RENEWED_BEFORE)) => return Ok(token),
                Some(token) if is_new(&state) => return Ok(token),
                token => (token, !ends(expires, now)),
            }
        };
        match self.refused(token.as_ref(), Challenge::default()).await {
            Verdict::Again(token) => Ok(token),
            Verdict::No(why) => token.filter(|_| is_good).ok_or(why),
            Verdict::Stands => token.ok_or_else(|| NoToken::Failed("there is no token".into())),
        }
    }

    /// What becomes of a request that was refused although it showed `shown`.
    pub(crate) async fn refused(&self, shown: Option<&Secret>, challenge: Challenge) -> Verdict {
        let (inner, shown) = (Arc::clone(&self.inner), shown.map(Secret::copy));
        // What renews a token is often good once. Whoever waits may go away, and what it brought is kept all the same.
        let judged = tokio::spawn(async move { inner.judge(shown, challenge).await });
        judged.await.unwrap_or(Verdict::Stands)
    }
}

impl Inner {
    async fn judge(&self, shown: Option<Secret>, challenge: Challenge) -> Verdict {
        let mut state = self.state.lock().await;
        let read = async {
            let turn = Turn::at(&self.path).await?;
            let kept = checked(Kept::read(&self.path)?, &self.path, &self.server)?;
            Ok((turn, kept))
        };
        let _turn = match read.await {
            Ok((turn, kept)) => {
                state.kept = kept;
                turn
            }
            Err(why) => return Verdict::No(NoToken::Failed(why)),
        };
        match step(&state.kept, shown.as_ref(), &challenge, is_new(&state)) {
            Step::Stands => Verdict::Stands,
            Step::Other => {
                state.barred = None;
                state.again()
            }
            Step::Login(wanted) => {
                let is_dead = !challenge.wants_more();
                self.bar(&mut state, &wanted, "nobody has agreed to that", is_dead)
            }
            Step::Renew(scopes) => {
                let (terms, own) = (&state.kept.terms, &state.kept.authorisation);
                match renew(&self.web, terms, own, &scopes).await {
                    Ok(given) => {
                        state.kept.authorisation.take(given);
                        state.kept.authorisation.asked = scopes;
                        (state.renewed, state.barred) = (Some(Instant::now()), None);
                        self.write(&state.kept);
                        state.again()
                    }
                    Err(Denied::Spent(why)) => {
                        let wanted = challenge.scopes.unwrap_or_default();
                        self.bar(&mut state, &wanted, &why, true)
                    }
                    Err(Denied::Other(why)) => Verdict::No(NoToken::Failed(why)),
                }
            }
        }
    }

    /// Somebody has to log in, and is asked for what was wanted too. With a token that `is_dead` nothing is asked before
    /// that; one that is not good for this is good for the rest.
    fn bar(&self, state: &mut State, wanted: &Scopes, why: &str, is_dead: bool) -> Verdict {
        let kept = &mut state.kept;
        let is_new = !kept.authorisation.granted.cover(wanted) && !kept.wanted.cover(wanted);
        if is_new && let Ok(all) = kept.wanted.clone().with(wanted) {
            kept.wanted = all;
            self.write(kept);
        }
        let what = match wanted.is_empty() {
            true => String::new(),
            false => format!(" for {wanted}"),
        };
        let (server, path) = (&self.server, self.path.display());
        let why = format!(
            "{server} wants an authorisation{what} ({why}): fem-cli mcp login --auth {path}"
        );
        if is_new || is_dead {
            tracing::warn!("{why}");
        }
        state.barred = is_dead.then(|| why.clone());
        Verdict::No(NoToken::LoginNeeded(why))
    }

    /// While somebody has to log in: whether somebody did.
    fn look_again(&self, state: &mut State) {
        if state.barred.is_none() {
            return;
        }
        let read = Kept::read(&self.path).and_then(|kept| checked(kept, &self.path, &self.server));
        if let Ok(kept) = read
            && step(
                &kept,
                state.kept.authorisation.access_token.as_ref(),
                &Challenge::default(),
                false,
            ) == Step::Other
        {
            (state.kept, state.barred) = (kept, None);
        }
    }

    fn write(&self, kept: &Kept) {
        if let Err(why) = kept.write(&self.path) {
            tracing::error!(%why, "an authorisation is not kept: after a restart somebody has to log in");
        }
    }
}

impl State {
    fn again(&self) -> Verdict {
        match &self.kept.authorisation.access_token {
            Some(token) => Verdict::Again(token.copy()),
            None => Verdict::Stands,
        }
    }
}

/// What to do about a token that was `shown` and refused.
fn step(kept: &Kept, shown: Option<&Secret>, challenge: &Challenge, is_new: bool) -> Step {
    let own = &kept.authorisation;
    let is_other = |token: &Secret| shown.is_none_or(|shown| !token.is(shown));
    if own.access_token.as_ref().is_some_and(is_other) {
        return Step::Other;
    }
    let wanted = challenge.scopes.clone().unwrap_or_default();
    let is_person = matches!(kept.terms.means, Means::Person { .. });
    if !challenge.wants_more() {
        return match (is_new, is_person) {
            (false, _) => Step::Renew(own.asked.clone()),
            (true, true) => Step::Login(wanted),
            (true, false) => Step::Stands,
        };
    }
    match own.asked.clone().with(&wanted) {
        // It was given what it wants, or is not given it; asking again changes nothing.
        _ if own.granted.cover(&wanted) => Step::Stands,
        Ok(_) if is_person => Step::Login(wanted),
        Ok(all) if all != own.asked => Step::Renew(all),
        _ => Step::Stands,
    }
}

fn checked(kept: Kept, path: &Path, server: &Address) -> Result<Kept, String> {
    let (path, other) = (path.display(), &kept.terms.server);
    match other == server {
        true => Ok(kept),
        false => Err(format!("{path} is for {other}, and not for {server}")),
    }
}

fn ends(expires: Option<Timestamp>, by: Timestamp) -> bool {
    expires.is_some_and(|expires| expires <= by)
}

fn is_new(state: &State) -> bool {
    state
        .renewed
        .is_some_and(|renewed| renewed.elapsed() < NEW_FOR)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::mcp::login::exchange::tests::{always, answer, answering};
    use crate::mcp::login::file::tests::kept;
    use crate::mcp::login::secret::Place;
    use crate::mcp::login::terms::{Known, Proof};

    fn challenge(scopes: &str, error: &str) -> Challenge {
        Challenge {
            metadata: None,
            scopes: Some(scopes.parse().unwrap()),
            error: Some(error.into()),
        }
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text.into()).unwrap_or_else(|why| panic!("{why}"))
    }

    fn as_client() -> Kept {
        let mut kept = kept();
        let client = Known {
            id: "fem".into(),
            proof: Some(Proof::Secret(Place::Variable("S".into()))),
        };
        kept.terms.means = Means::Client { client };
        kept
    }

    fn scopes(text: &str) -> Scopes {
        text.parse().unwrap()
    }

    #[test]
    fn a_token_that_another_renewed_or_that_came_of_a_login_is_taken_first() {
        let refused = challenge("c", "insufficient_scope");
        for shown in [Some(secret("t0")), None] {
            assert_eq!(step(&kept(), shown.as_ref(), &refused, false), Step::Other);
        }
    }

    #[test]
    fn a_token_that_ended_is_renewed_once() {
        let (shown, refused) = (secret("t1"), challenge("", "invalid_token"));
        let shown = Some(&shown);
        assert_eq!(
            step(&kept(), shown, &refused, false),
            Step::Renew(scopes("a b"))
        );
        assert_eq!(
            step(&kept(), shown, &refused, true),
            Step::Login(scopes(""))
        );
        assert_eq!(step(&as_client(), shown, &refused, true), Step::Stands);
    }

    #[test]
    fn what_nobody_agreed_to_takes_a_person_where_one_did_before() {
        let shown = secret("t1");
        let step = |kept: Kept, wanted: &str| {
            step(
                &kept,
                Some(&shown),
                &challenge(wanted, "insufficient_scope"),
                false,
            )
        };
        assert_eq!(step(kept(), "c"), Step::Login(scopes("c")));
        assert_eq!(
            step(kept(), "b"),
            Step::Login(scopes("b")),
            "it was asked for, and not given"
        );
        assert_eq!(step(as_client(), "c"), Step::Renew(scopes("a b c")));
        assert_eq!(
            step(as_client(), "b"),
            Step::Stands,
            "it was asked for, and not given"
        );
        for kept in [kept(), as_client()] {
            assert_eq!(step(kept, "a"), Step::Stands, "it was given");
        }
    }

    #[tokio::test]
    async fn an_authorisation_is_shown_to_its_own_server_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.auth");
        kept().write(&path).unwrap();
        let open = |server: &str| Keeper::open(&path, &server.parse().unwrap());
        assert!(open("https://x.example/mcp").is_ok());
        for other in [
            "https://x.example/other",
            "https://evil.example/mcp",
            "https://x.example:444/mcp",
        ] {
            assert!(open(other).is_err(), "{other}");
        }
    }

    const GIVEN: &str = r#"{"access_token":"t2","token_type":"Bearer","refresh_token":"r2"}"#;

    /// What is kept for a server on this machine that also gives tokens.
    fn kept_at(origin: &str, folder: &Path) -> (PathBuf, Keeper) {
        let mut kept = kept();
        let server: Address = format!("{origin}/mcp").parse().unwrap();
        kept.terms.server = server.clone();
        kept.authorisation.token_endpoint = format!("{origin}/token").parse().unwrap();
        let path = folder.join("web.auth");
        kept.write(&path).unwrap();
        let keeper = Keeper::open(&path, &server).unwrap_or_else(|why| panic!("{why}"));
        (path, keeper)
    }

    fn access(path: &Path) -> String {
        let kept = Kept::read(path).unwrap_or_else(|why| panic!("{why}"));
        kept.authorisation.access_token.unwrap().reveal().to_owned()
    }

    #[tokio::test]
    async fn what_was_renewed_is_kept_also_when_whoever_wanted_it_has_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (go_on, when) = mpsc::channel(1);
        let answers = vec![answer("200 OK", "application/json", GIVEN)];
        let (origin, mut told) = answering(answers, when).await;
        let (path, keeper) = kept_at(&origin, folder.path());
        let shown = secret("t1");
        tokio::select! {
            asked = told.recv() => assert!(asked.unwrap().contains("refresh_token=r1")),
            _ = keeper.refused(Some(&shown), Challenge::default()) => panic!("nobody has answered"),
        }
        go_on.send(()).await.unwrap();
        let kept = async {
            while access(&path) != "t2" {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), kept)
            .await
            .unwrap();
        let Verdict::Again(token) = keeper.refused(Some(&shown), Challenge::default()).await else {
            panic!()
        };
        assert_eq!(token.reveal(), "t2");
    }

    #[tokio::test]
    async fn a_server_that_refuses_what_is_new_has_nothing_renewed_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let answers = vec![answer("200 OK", "application/json", GIVEN)];
        let (origin, mut told) = answering(answers, always()).await;
        let (_, keeper) = kept_at(&origin, folder.path());
        let Verdict::Again(token) = keeper
            .refused(Some(&secret("t1")), Challenge::default())
            .await
        else {
            panic!()
        };
        let refused = keeper.refused(Some(&token), Challenge::default()).await;
        assert!(matches!(refused, Verdict::No(NoToken::LoginNeeded(_))));
        told.recv().await.unwrap();
        assert!(told.try_recv().is_err(), "it was asked for once");
    }
}
