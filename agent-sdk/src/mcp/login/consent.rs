//! Asking a person in a browser, and what the browser brings back. Pure but for the dice.
//!
//! Source: RFC 6749 §4.1, RFC 7636 (PKCE, S256 alone), RFC 8252 (loopback redirects), RFC 8707, RFC 9207.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use form_urlencoded::Serializer;
use proto_spec::Digest;

use super::metadata::Authority;
use super::scopes::Scopes;
use super::secret::Secret;
use super::token::shown;
use crate::mcp::address::Address;

/// A question that one browser answers once.
pub(crate) struct Question {
    /// By which its answer is told from another's.
    state: Secret,
    /// What whoever brings the code has to know as well.
    pub(crate) verifier: Secret,
    issuer: Address,
    says_iss: bool,
}

/// What a browser brought.
pub(crate) enum Brought {
    /// The answer to another question.
    NotOurs,
    /// A no, or an answer that is not to be believed: why.
    Refused(String),
    /// A yes: with this a token is asked for.
    Code(Secret),
}

impl Question {
    /// # Errors
    ///
    /// Where the system gives no randomness, or who authorises does not bind codes to those who asked.
    pub(crate) fn new(authority: &Authority) -> Result<Self, String> {
        if !authority.binds_codes {
            let issuer = &authority.issuer;
            return Err(format!(
                "{issuer} does not bind codes to those who asked (PKCE, S256)"
            ));
        }
        Ok(Self {
            state: dice()?,
            verifier: dice()?,
            issuer: authority.issuer.clone(),
            says_iss: authority.says_iss,
        })
    }

    /// Where a person answers it.
    pub(crate) fn address(
        &self,
        endpoint: &Address,
        client: &str,
        redirect: &Address,
        resource: &Address,
        scopes: &Scopes,
    ) -> String {
        // S256 is SHA-256 in base64url, which is how a digest is written here.
        let challenge = Digest::of(self.verifier.reveal().as_bytes()).to_string();
        let mut query = Serializer::new(String::new());
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", client)
            .append_pair("redirect_uri", redirect.as_str())
            .append_pair("state", self.state.reveal())
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256")
            .append_pair("resource", resource.as_str());
        if !scopes.is_empty() {
            query.append_pair("scope", &scopes.to_string());
        }
        let joint = if endpoint.as_str().contains('?') {
            '&'
        } else {
            '?'
        };
        format!("{endpoint}{joint}{}", query.finish())
    }

    /// Reads the query with which a browser came back.
    pub(crate) fn answer(&self, query: &str) -> Brought {
        let all: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
        let get = |name: &str| {
            let mut found = all.iter().filter(|(key, _)| key == name);
            match (found.next(), found.next()) {
                (one, None) => Ok(one.map(|(_, value)| &**value)),
                (_, Some(_)) => Err(Brought::Refused(format!("the answer says {name} twice"))),
            }
        };
        match get("state") {
            Ok(Some(state)) if state == self.state.reveal() => {}
            _ => return Brought::NotOurs,
        }
        let read = || {
            let (iss, error) = (get("iss")?, get("error")?);
            let (words, code) = (get("error_description")?, get("code")?);
            Ok((iss, error, words, code))
        };
        let (iss, error, words, code) = match read() {
            Ok(read) => read,
            Err(refused) => return refused,
        };
        let is_theirs = match iss {
            Some(iss) => iss == self.issuer.as_str(),
            None => !self.says_iss,
        };
        if !is_theirs {
            let who = iss.map_or_else(|| "nobody says who".to_owned(), shown);
            return Brought::Refused(format!("{} was asked, and answered has {who}", self.issuer));
        }
        if let Some(error) = error {
            let why = format!("{error} {}", words.unwrap_or_default());
            return Brought::Refused(format!("{} says no: {}", self.issuer, shown(&why)));
        }
        match code.map(|code| Secret::new(code.to_owned())) {
            Some(Ok(code)) => Brought::Code(code),
            _ => Brought::Refused(format!("{} answers neither yes nor no", self.issuer)),
        }
    }
}

/// 256 bits that nobody guesses, as one word.
fn dice() -> Result<Secret, String> {
    let mut noise = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(&mut *noise).map_err(|why| format!("no randomness from the system: {why}"))?;
    Secret::new(URL_SAFE_NO_PAD.encode(*noise))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn question(says_iss: bool) -> Question {
        Question::new(&authority(says_iss, &["S256"])).unwrap_or_else(|why| panic!("{why}"))
    }

    fn authority(says_iss: bool, methods: &[&str]) -> Authority {
        let document = json!({
            "issuer": "https://a.example",
            "token_endpoint": "https://a.example/t",
            "code_challenge_methods_supported": methods,
            "authorization_response_iss_parameter_supported": says_iss,
        });
        let issuer = "https://a.example".parse().unwrap();
        Authority::read(document.to_string().as_bytes(), &issuer, &issuer).unwrap()
    }

    fn outcome(question: &Question, rest: &str) -> Result<String, Option<String>> {
        match question.answer(&format!("state={}{rest}", question.state.reveal())) {
            Brought::NotOurs => Err(None),
            Brought::Refused(why) => Err(Some(why)),
            Brought::Code(code) => Ok(code.reveal().to_owned()),
        }
    }

    #[test]
    fn a_person_is_asked_for_one_client_one_resource_and_who_asked_alone() {
        let question = question(false);
        let address = |text: &str| text.parse().unwrap();
        let asked = |endpoint: &str, scopes: &str| {
            question.address(
                &address(endpoint),
                "c d",
                &address("http://127.0.0.1:1/callback"),
                &address("https://x.example/mcp"),
                &scopes.parse().unwrap(),
            )
        };
        let asked_for = asked("https://a.example/authorize?x=y", "s1 s2");
        let (endpoint, query) = asked_for.split_once("?x=y&").unwrap();
        assert_eq!(endpoint, "https://a.example/authorize");
        let get = |name: &str| {
            let mut all = form_urlencoded::parse(query.as_bytes());
            all.find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        let challenge = get("code_challenge").unwrap();
        let verifier = question.verifier.reveal();
        assert_eq!(challenge, Digest::of(verifier.as_bytes()).to_string());
        assert!(verifier.len() >= 43 && !asked_for.contains(verifier));
        assert_eq!(get("code_challenge_method").unwrap(), "S256");
        assert_eq!(get("resource").unwrap(), "https://x.example/mcp");
        assert_eq!(get("scope").unwrap(), "s1 s2");
        assert!(!asked("https://a.example/authorize", "").contains("scope"));
    }

    /// RFC 7636, appendix B.
    #[test]
    fn a_challenge_is_what_the_standard_computes() {
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
        assert_eq!(Digest::of(verifier.as_bytes()).to_string(), challenge);
    }

    #[test]
    fn who_does_not_bind_codes_is_not_asked() {
        for methods in [&[][..], &["plain"]] {
            assert!(Question::new(&authority(false, methods)).is_err());
        }
    }

    #[test]
    fn an_answer_is_believed_of_who_was_asked_and_of_nobody_else() {
        let iss = "&iss=https%3A%2F%2Fa.example";
        for (says_iss, rest, is_yes) in [
            (true, format!("&code=c{iss}"), true),
            (false, "&code=c".into(), true),
            (false, format!("&code=c{iss}"), true),
            (true, "&code=c".into(), false),
            (true, "&code=c&iss=https%3A%2F%2Fevil.example".into(), false),
            (
                false,
                "&code=c&iss=https%3A%2F%2Fevil.example".into(),
                false,
            ),
            (true, "&code=c&iss=https%3A%2F%2Fa.example%2F".into(), false),
            (true, "&code=c&iss=https%3A%2F%2FA.example".into(), false),
            (true, format!("&code=c{iss}{iss}"), false),
            (false, "&code=c&code=d".into(), false),
            (false, "&code=".into(), false),
            (false, "&code=a%0ab".into(), false),
            (false, String::new(), false),
            (false, "&error=access_denied&code=c".into(), false),
        ] {
            assert_eq!(
                outcome(&question(says_iss), &rest).is_ok(),
                is_yes,
                "{says_iss} {rest}"
            );
        }
        let why = outcome(&question(false), "&error=no&error_description=%1b[2J").unwrap_err();
        assert!(!why.unwrap().contains('\u{1b}'));
    }

    #[test]
    fn what_another_question_was_answered_is_not_ours() {
        let question = question(false);
        for query in [
            "",
            "code=c",
            "state=x&code=c",
            "state=&code=c",
            "state=a&state=b&code=c",
        ] {
            assert!(
                matches!(question.answer(query), Brought::NotOurs),
                "{query}"
            );
        }
        let twice = format!("state={0}&state={0}&code=c", question.state.reveal());
        assert!(matches!(question.answer(&twice), Brought::NotOurs));
    }
}
