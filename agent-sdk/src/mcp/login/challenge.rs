//! What a server says when it wants an authorisation: `WWW-Authenticate`. Pure.
//!
//! Source: RFC 9110 §11.6.1, RFC 6750 §3, RFC 9728 §5.1.

use ::http::HeaderMap;
use ::http::header::WWW_AUTHENTICATE;

use super::scopes::Scopes;

/// Bytes of one header that are looked at.
const HEADER_BYTES_MAX: usize = 8 << 10;

/// What a server wants to be shown in `Authorization: Bearer`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// Where it says who authorises.
    pub(crate) metadata: Option<String>,
    /// What the authorisation has to be for.
    pub(crate) scopes: Option<Scopes>,
    /// Why what was shown is not enough.
    pub(crate) error: Option<String>,
}

impl Challenge {
    /// The first of a bearer token. Nothing where none is wanted, or what is wanted cannot be read.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let lines = headers.get_all(WWW_AUTHENTICATE).iter();
        let texts = lines.filter_map(|line| line.to_str().ok());
        texts
            .filter(|text| text.len() <= HEADER_BYTES_MAX)
            .find_map(bearer)
    }

    /// Whether the token was good and its scopes were not enough.
    pub(crate) fn wants_more(&self) -> bool {
        self.error.as_deref() == Some("insufficient_scope")
    }
}

fn bearer(line: &str) -> Option<Challenge> {
    let mut reader = Reader(line);
    let mut found: Option<Challenge> = None;
    loop {
        reader.skip(|c| matches!(c, ' ' | '\t' | ','));
        if reader.0.is_empty() {
            return found;
        }
        let word = reader.word()?;
        match reader.value() {
            // A name without a value is that of the next scheme.
            None if found.is_some() => return found,
            None => {
                found = word.eq_ignore_ascii_case("bearer").then(Challenge::default);
            }
            Some(value) => {
                if let Some(challenge) = &mut found {
                    challenge.take(word, value?)?;
                }
            }
        }
    }
}

impl Challenge {
    /// Takes a parameter; nothing where it stands twice or cannot be one.
    fn take(&mut self, name: &str, value: String) -> Option<()> {
        let place = match name.to_ascii_lowercase().as_str() {
            "resource_metadata" => &mut self.metadata,
            "error" => &mut self.error,
            "scope" if self.scopes.is_none() => {
                self.scopes = Some(value.parse().ok()?);
                return Some(());
            }
            "scope" => return None,
            _ => return Some(()),
        };
        place.replace(value).is_none().then_some(())
    }
}

/// What is left of a line.
struct Reader<'a>(&'a str);

impl<'a> Reader<'a> {
    fn skip(&mut self, what: impl Fn(char) -> bool) {
        self.0 = self.0.trim_start_matches(what);
    }

    fn word(&mut self) -> Option<&'a str> {
        let is_of_word = |c: char| c.is_ascii_graphic() && !"()<>@,;:\\\"/[]?={}".contains(c);
        let end = self.0.find(|c| !is_of_word(c)).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        (!word.is_empty()).then_some(word)
    }

    /// The value behind `=`: the outer nothing where there is none, the inner where it cannot be read. What a scheme
    /// has instead of parameters (`Negotiate YII=`) reads as a value that is empty.
    fn value(&mut self) -> Option<Option<String>> {
        let rest = self.0.trim_start_matches([' ', '\t']).strip_prefix('=')?;
        self.0 = rest.trim_start_matches([' ', '\t']);
        if let Some(rest) = self.0.strip_prefix('"') {
            self.0 = rest;
            return Some(self.quoted());
        }
        let value = self.word().unwrap_or_default().to_owned();
        self.skip(|c| c == '=');
        Some(Some(value))
    }

    fn quoted(&mut self) -> Option<String> {
        let mut value = String::new();
        let mut characters = self.0.char_indices();
        while let Some((at, c)) = characters.next() {
            match c {
                '"' => {
                    self.0 = &self.0[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(characters.next()?.1),
                other => value.push(other),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use ::http::HeaderValue;

    use super::*;

    fn read(lines: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(line).unwrap());
        }
        Challenge::of(&headers)
    }

    fn challenge(metadata: Option<&str>, scopes: Option<&str>, error: Option<&str>) -> Challenge {
        Challenge {
            metadata: metadata.map(str::to_owned),
            scopes: scopes.map(|text| text.parse().unwrap()),
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn what_is_wanted_is_read_however_it_is_written() {
        let all = challenge(
            Some("https://x.example/m"),
            Some("a b"),
            Some("invalid_token"),
        );
        for line in [
            r#"Bearer resource_metadata="https://x.example/m", scope="a b", error="invalid_token""#,
            r#"bearer  error=invalid_token,SCOPE = "a b" , realm="x \"y\", Basic z" , resource_metadata="https://x.example/m""#,
            r#"Negotiate YIIx==, Basic realm="a", Bearer scope="b a", error="invalid_token", resource_metadata="https://x.example/m", Digest scope="c""#,
        ] {
            assert_eq!(read(&[line]).as_ref(), Some(&all), "{line}");
        }
        assert_eq!(read(&["Bearer"]), Some(Challenge::default()));
        assert_eq!(
            read(&["Basic realm=x", "Bearer scope=a"]),
            Some(challenge(None, Some("a"), None))
        );
        assert!(
            read(&[r#"Bearer error="insufficient_scope""#])
                .unwrap()
                .wants_more()
        );
    }

    #[test]
    fn what_cannot_be_read_wants_nothing() {
        let long = format!("Bearer scope=\"{}\"", "a ".repeat(HEADER_BYTES_MAX));
        for line in [
            "",
            "Basic realm=x",
            "DPoP scope=a",
            r#"Bearer scope="a"#,
            r#"Bearer scope="a\"#,
            "Bearer scope=a, scope=b",
            "Bearer resource_metadata=a, resource_metadata=b",
            r#"Bearer scope="\"""#,
            "Bearer ;",
            &long,
        ] {
            assert_eq!(read(&[line]), None, "{line}");
        }
    }
}
