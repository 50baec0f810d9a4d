//! Asking for a token, and what is answered. Pure.
//!
//! Source: RFC 6749 §4.1.3, §4.4, §5 and §6; RFC 7523; RFC 7636 (PKCE); RFC 8707 (resource indicators).

use std::time::Duration;

use ::http::HeaderValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use form_urlencoded::{Serializer, byte_serialize};
use proto_spec::Timestamp;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::client::Showing;
use super::scopes::Scopes;
use super::secret::{Secret, revealed};
use crate::mcp::address::Address;
use crate::mcp::words::escaped;

/// What a server says of an error, as far as it is shown.
const SHOWN_CHARS: usize = 200;
/// A token that is good for longer than a year is good for a year.
const GOOD_FOR_MAX: Duration = Duration::from_secs(365 * 86_400);

/// What a token is asked for with.
pub(crate) enum Grant<'a> {
    /// What a browser brought, and the other half of what was asked with.
    Code {
        code: &'a Secret,
        verifier: &'a Secret,
        redirect: &'a Address,
    },
    /// What came with an earlier token.
    Refresh(&'a Secret),
    /// Nothing: it is the client's own.
    Client,
    /// What a platform gave.
    Assertion(&'a Secret),
}

/// Who asks, and with what it shows that.
pub(crate) struct Asking<'a> {
    pub(crate) id: Option<&'a str>,
    pub(crate) showing: Showing,
    /// Its secret, or its statement.
    pub(crate) proof: Option<&'a Secret>,
}

/// A request for a token: a form, and a header where the client shows itself in one.
pub(crate) struct Request {
    pub(crate) form: Zeroizing<String>,
    pub(crate) authorization: Option<HeaderValue>,
}

/// A request for a token that is good at `resource`.
///
/// # Errors
///
/// Where the client has nothing to show of what it shows itself with.
pub(crate) fn request(
    grant: &Grant<'_>,
    asking: &Asking<'_>,
    resource: &Address,
    scopes: &Scopes,
) -> Result<Request, String> {
    let mut form = Serializer::new(String::new());
    match grant {
        Grant::Code {
            code,
            verifier,
            redirect,
        } => {
            form.append_pair("grant_type", "authorization_code")
                .append_pair("code", code.reveal())
                .append_pair("code_verifier", verifier.reveal())
                .append_pair("redirect_uri", redirect.as_str());
        }
        Grant::Refresh(token) => {
            form.append_pair("grant_type", "refresh_token")
                .append_pair("refresh_token", token.reveal());
        }
        Grant::Client => {
            form.append_pair("grant_type", "client_credentials");
        }
        Grant::Assertion(assertion) => {
            form.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")
                .append_pair("assertion", assertion.reveal());
        }
    }
    form.append_pair("resource", resource.as_str());
    // What a code, or what came with a token, is good for was decided before.
    if matches!(grant, Grant::Client | Grant::Assertion(_)) && !scopes.is_empty() {
        form.append_pair("scope", &scopes.to_string());
    }
    let mut authorization = None;
    let proof = || {
        asking
            .proof
            .ok_or("the client has nothing to show itself with")
    };
    match asking.showing {
        Showing::SecretInHeader => {
            authorization = Some(basic(asking.id.unwrap_or_default(), proof()?)?);
        }
        Showing::Name | Showing::SecretInForm | Showing::Signature => {
            if let Some(id) = asking.id {
                form.append_pair("client_id", id);
            }
        }
    }
    match asking.showing {
        Showing::SecretInForm => {
            form.append_pair("client_secret", proof()?.reveal());
        }
        Showing::Signature => {
            let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
            form.append_pair("client_assertion_type", kind)
                .append_pair("client_assertion", proof()?.reveal());
        }
        Showing::Name | Showing::SecretInHeader => {}
    }
    Ok(Request {
        form: Zeroizing::new(form.finish()),
        authorization,
    })
}

/// RFC 6749 §2.3.1: both halves are encoded as in a form before they are joined.
fn basic(id: &str, secret: &Secret) -> Result<HeaderValue, String> {
    let half = |text: &str| Zeroizing::new(byte_serialize(text.as_bytes()).collect::<String>());
    let both = Zeroizing::new(format!("{}:{}", *half(id), *half(secret.reveal())));
    let header = Zeroizing::new(format!("Basic {}", STANDARD.encode(both.as_bytes())));
    let mut header = HeaderValue::from_str(&header).map_err(|why| why.to_string())?;
    header.set_sensitive(true);
    Ok(header)
}

/// A token that was given.
pub(crate) struct Given {
    pub(crate) access: Secret,
    /// Until when, if that is known.
    pub(crate) expires: Option<Timestamp>,
    /// With what the next one is asked for.
    pub(crate) refresh: Option<Secret>,
    /// For what.
    pub(crate) scopes: Scopes,
}

/// Why no token was given.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// What it was asked for with is good no more, or the client is none: asking again in the same way is in vain.
    Spent(String),
    /// For another reason.
    Other(String),
}

#[derive(Deserialize)]
struct Written {
    #[serde(default, with = "revealed")]
    access_token: Option<Secret>,
    token_type: Option<String>,
    /// A number, or one as text, which some servers write.
    expires_in: Option<serde_json::Value>,
    #[serde(default, with = "revealed")]
    refresh_token: Option<Secret>,
    scope: Option<String>,
}

#[derive(Deserialize)]
struct WrittenError {
    error: String,
    #[serde(default)]
    error_description: String,
}

/// What is answered to a request of [`request`]. Where the answer does not say for what the token is, it is for what
/// was `asked`.
///
/// # Errors
///
/// [`Denied`].
pub(crate) fn read(
    is_success: bool,
    bytes: &[u8],
    asked: &Scopes,
    now: Timestamp,
) -> Result<Given, Denied> {
    if !is_success {
        return Err(denied(bytes));
    }
    let bad = |why: String| Denied::Other(format!("the answer holds no token: {why}"));
    let written: Written =
        serde_json::from_slice(bytes).map_err(|why| bad(shown(&why.to_string())))?;
    let kind = written.token_type.unwrap_or_default();
    if !kind.eq_ignore_ascii_case("bearer") {
        return Err(bad(format!("it is of the type {}", shown(&kind))));
    }
    let scopes = written.scope.map_or(Ok(asked.clone()), |text| text.parse());
    let access = written.access_token.ok_or_else(|| bad("none".into()))?;
    let seconds = written.expires_in.and_then(|value| match value {
        serde_json::Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    });
    let length = seconds.map(|seconds| Duration::from_secs(seconds).min(GOOD_FOR_MAX));
    Ok(Given {
        access,
        expires: length.map(|length| now.later(length)),
        refresh: written.refresh_token,
        scopes: scopes.map_err(bad)?,
    })
}

fn denied(bytes: &[u8]) -> Denied {
    let Ok(written) = serde_json::from_slice::<WrittenError>(bytes) else {
        return Denied::Other("it gives no token, and says not why".into());
    };
    let WrittenError {
        error,
        error_description: words,
    } = written;
    let why = format!("it gives no token: {}", shown(&format!("{error} {words}")));
    match error.as_str() {
        "invalid_grant" | "invalid_client" | "unauthorized_client" | "invalid_scope" => {
            Denied::Spent(why)
        }
        _ => Denied::Other(why),
    }
}

/// What a server wrote, short and obeyed by no terminal.
pub(crate) fn shown(text: &str) -> String {
    escaped(text.trim(), SHOWN_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.into()).unwrap_or_else(|why| panic!("{why}"))
    }

    fn asked(
        grant: &Grant<'_>,
        showing: Showing,
        proof: Option<&Secret>,
    ) -> (String, Option<String>) {
        let asking = Asking {
            id: Some("a b:c"),
            showing,
            proof,
        };
        let resource = "https://x.example/mcp".parse().unwrap();
        let request = request(grant, &asking, &resource, &"s1 s2".parse().unwrap());
        let request = request.unwrap_or_else(|why| panic!("{why}"));
        let header = request
            .authorization
            .map(|header| header.to_str().unwrap().to_owned());
        (request.form.to_string(), header)
    }

    #[test]
    fn a_code_comes_with_its_verifier_and_is_for_one_resource() {
        let redirect = "http://127.0.0.1:1/callback".parse().unwrap();
        let (code, verifier) = (secret("c&d"), secret("v"));
        let grant = Grant::Code {
            code: &code,
            verifier: &verifier,
            redirect: &redirect,
        };
        let (form, header) = asked(&grant, Showing::Name, None);
        assert_eq!(
            form,
            "grant_type=authorization_code&code=c%26d&code_verifier=v\
             &redirect_uri=http%3A%2F%2F127.0.0.1%3A1%2Fcallback\
             &resource=https%3A%2F%2Fx.example%2Fmcp&client_id=a+b%3Ac"
        );
        assert_eq!(header, None);
    }

    #[test]
    fn a_client_shows_itself_in_exactly_one_way() {
        let proof = secret("p%s");
        let (form, header) = asked(&Grant::Client, Showing::SecretInHeader, Some(&proof));
        assert_eq!(
            form,
            "grant_type=client_credentials&resource=https%3A%2F%2Fx.example%2Fmcp&scope=s1+s2"
        );
        assert_eq!(
            header.unwrap(),
            format!("Basic {}", STANDARD.encode("a+b%3Ac:p%25s"))
        );
        let (form, header) = asked(&Grant::Client, Showing::SecretInForm, Some(&proof));
        assert!(
            form.ends_with("&client_id=a+b%3Ac&client_secret=p%25s") && header.is_none(),
            "{form}"
        );
        let (form, header) = asked(&Grant::Client, Showing::Signature, Some(&proof));
        assert!(
            form.contains("client-assertion-type%3Ajwt-bearer&client_assertion=p%25s")
                && header.is_none()
        );
        let none = Asking {
            id: None,
            showing: Showing::SecretInForm,
            proof: None,
        };
        assert!(
            request(
                &Grant::Client,
                &none,
                &"https://x.example".parse().unwrap(),
                &Scopes::default()
            )
            .is_err()
        );
    }

    fn answer(is_success: bool, text: &str) -> Result<Given, Denied> {
        read(
            is_success,
            text.as_bytes(),
            &"asked".parse().unwrap(),
            Timestamp::from_ms(1_000),
        )
    }

    #[test]
    fn an_answer_is_a_bearer_token_or_none() {
        let given = answer(
            true,
            r#"{"access_token":"t","token_type":"bearer","expires_in":"60","refresh_token":"r","scope":"a"}"#,
        );
        let given = given.unwrap_or_else(|why| panic!("{why:?}"));
        assert_eq!(
            (given.access.reveal(), given.expires),
            ("t", Some(Timestamp::from_ms(61_000)))
        );
        assert_eq!(given.scopes.to_string(), "a");
        let given = answer(true, r#"{"access_token":"t","token_type":"Bearer"}"#)
            .unwrap_or_else(|why| panic!("{why:?}"));
        assert_eq!(
            (given.expires, given.scopes.to_string()),
            (None, "asked".to_owned())
        );
        assert!(given.refresh.is_none());
        for bad in [
            "",
            "{}",
            r#"{"access_token":"t"}"#,
            r#"{"access_token":"t","token_type":"DPoP"}"#,
            r#"{"access_token":"","token_type":"Bearer"}"#,
            r#"{"access_token":"a\r\nb","token_type":"Bearer"}"#,
            r#"{"access_token":"t","access_token":"u","token_type":"Bearer"}"#,
        ] {
            assert!(matches!(answer(true, bad), Err(Denied::Other(_))), "{bad}");
        }
    }

    #[test]
    fn an_error_says_whether_asking_again_can_help_and_steers_no_terminal() {
        let Err(Denied::Spent(why)) = answer(
            false,
            r#"{"error":"invalid_grant","error_description":"\u001b[2Jgone"}"#,
        ) else {
            panic!()
        };
        assert!(
            why.contains("invalid_grant") && !why.contains('\u{1b}'),
            "{why}"
        );
        for other in [
            r#"{"error":"temporarily_unavailable"}"#,
            "<html>",
            r#"{"access_token":"t","token_type":"Bearer"}"#,
        ] {
            assert!(
                matches!(answer(false, other), Err(Denied::Other(_))),
                "{other}"
            );
        }
    }
}
