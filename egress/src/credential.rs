//! Credentials that the broker adds to requests: which secret, for which host, in which header. No value is in here.
//!
//! Invariant: a credential names one host and one header. It is for requests to that host over TLS and for no other, and a
//! header that says where a request goes or where it ends is never its place.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::rule::DEFAULT_PORT;

/// Bytes of a key: what a header carries.
pub const MAX_KEY: usize = 4096;

/// Bytes of the name of a header, or of a user.
const LONGEST_WORD: usize = 64;

/// Words that make no credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The host.
    #[error("`{}` is no host that a key can be for: write one name, as in TOKEN@api.example.org", .0.escape_debug())]
    Host(String),
    /// The port.
    #[error("`{}` is no port", .0.escape_debug())]
    Port(String),
    /// The header.
    #[error("`{}` is no way to send a key: write bearer, basic:USER or header:NAME", .0.escape_debug())]
    How(String),
    /// A header that is not a credential's.
    #[error("a key cannot be sent as header `{0}`, which is about the request itself")]
    Header(String),
}

/// How a key is written into a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// `Authorization: Bearer KEY` (RFC 6750).
    Bearer,
    /// `Authorization: Basic …`, the key being the user's password (RFC 7617).
    Basic {
        /// The user.
        user: String,
    },
    /// A header of its own, with the key as its value.
    Header {
        /// Its name, in lower case.
        name: String,
    },
}

impl How {
    /// The header that it writes, in lower case.
    #[must_use]
    pub fn header(&self) -> &str {
        match self {
            How::Bearer | How::Basic { .. } => "authorization",
            How::Header { name } => name,
        }
    }
}

/// A secret and where it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// The secret's name.
    pub secret: String,
    /// The only host that it is sent to.
    pub host: Name,
    /// The port of that host, which speaks TLS.
    pub port: u16,
    /// How.
    pub how: How,
}

/// Headers that are about a request and not about who sends it.
const OF_THE_REQUEST: [&str; 11] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Credential {
    /// What secrets of this name are for; nothing for a name that does not say.
    #[must_use]
    pub fn known(secret: &str) -> Vec<Self> {
        let basic = || How::Basic { user: "x-access-token".into() };
        let hosts: Vec<(&str, How)> = match secret {
            "ANTHROPIC_API_KEY" => vec![("api.anthropic.com", How::Header { name: "x-api-key".into() })],
            "ANTHROPIC_AUTH_TOKEN" | "CLAUDE_CODE_OAUTH_TOKEN" => vec![("api.anthropic.com", How::Bearer)],
            // git asks with a password, the REST API wants a token.
            "GITHUB_TOKEN" | "GH_TOKEN" => vec![("github.com", basic()), ("api.github.com", How::Bearer)],
            _ => return Vec::new(),
        };
        let named = hosts.into_iter().filter_map(|(host, how)| Some((Name::new(host)?, how)));
        named.map(|(host, how)| Credential { secret: secret.to_owned(), host, port: DEFAULT_PORT, how }).collect()
    }

    /// `HOST[:PORT][:bearer|:basic:USER|:header:NAME]`; without the last, as the secret's name says, else bearer.
    ///
    /// # Errors
    /// [`CredentialError`].
    pub fn bound(secret: &str, text: &str) -> Result<Self, CredentialError> {
        let (host, rest) = text.split_once(':').unwrap_or((text, ""));
        let host = Name::new(host).ok_or_else(|| CredentialError::Host(host.to_owned()))?;
        let (first, after) = rest.split_once(':').unwrap_or((rest, ""));
        let (port, how) = if first.starts_with(|c: char| c.is_ascii_digit()) {
            let port = first.parse().ok().filter(|port| *port > 0 && first.bytes().all(|byte| byte.is_ascii_digit()));
            (port.ok_or_else(|| CredentialError::Port(first.to_owned()))?, after)
        } else {
            (DEFAULT_PORT, rest)
        };
        let how = match how.split_once(':').unwrap_or((how, "")) {
            ("", "") => Self::known(secret).into_iter().next().map_or(How::Bearer, |known| known.how),
            ("bearer", "") => How::Bearer,
            ("basic", user) if is_word(user) && !user.contains(':') => How::Basic { user: user.to_owned() },
            ("header", name) if is_word(name) && name.bytes().all(is_of_a_name) => header(name)?,
            _ => return Err(CredentialError::How(how.to_owned())),
        };
        Ok(Credential { secret: secret.to_owned(), host, port, how })
    }

    /// Whether both would write the same header of the same requests.
    #[must_use]
    pub fn is_in_the_way_of(&self, other: &Self) -> bool {
        (&self.host, self.port, self.how.header()) == (&other.host, other.port, other.how.header())
    }
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.host)?;
        if self.port == DEFAULT_PORT { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

fn header(name: &str) -> Result<How, CredentialError> {
    let name = name.to_ascii_lowercase();
    if OF_THE_REQUEST.contains(&name.as_str()) || name.starts_with("proxy-") {
        return Err(CredentialError::Header(name));
    }
    Ok(How::Header { name })
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.len() <= LONGEST_WORD && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_of_a_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_".contains(&byte)
}

/// A key as it stands in a header: without the newlines that files have at their end.
///
/// # Errors
/// What is wrong with it, for a sentence that begins with "its value".
pub fn key(value: &[u8]) -> Result<&[u8], &'static str> {
    let end = value.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
    let key = &value[..end];
    if key.is_empty() {
        return Err("is empty");
    }
    if key.len() > MAX_KEY {
        return Err("is longer than the 4 KiB that a header carries");
    }
    if !key.iter().all(u8::is_ascii_graphic) {
        return Err("is no key: a header carries letters, digits and signs, on one line and without spaces");
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bound(secret: &str, text: &str) -> (String, How) {
        let credential = Credential::bound(secret, text).unwrap();
        (credential.to_string(), credential.how)
    }

    #[test]
    fn a_secret_is_for_what_its_name_or_its_words_say() {
        let api_key = || How::Header { name: "x-api-key".into() };
        let known = Credential::known("ANTHROPIC_API_KEY");
        assert_eq!((known.len(), known[0].to_string().as_str(), &known[0].how), (1, "api.anthropic.com", &api_key()));
        let known = |secret: &str| -> Vec<(String, How)> {
            Credential::known(secret).into_iter().map(|known| (known.to_string(), known.how)).collect()
        };
        for secret in ["ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"] {
            assert_eq!(known(secret), [("api.anthropic.com".to_owned(), How::Bearer)], "{secret}");
        }
        let git = How::Basic { user: "x-access-token".into() };
        for secret in ["GITHUB_TOKEN", "GH_TOKEN"] {
            let hosts = [("github.com".to_owned(), git.clone()), ("api.github.com".to_owned(), How::Bearer)];
            assert_eq!(known(secret), hosts, "{secret}");
        }
        assert!(Credential::known("TOKEN").is_empty() && Credential::known("github_token").is_empty());
        assert_eq!(bound("TOKEN", "Api.Example.org"), ("api.example.org".into(), How::Bearer));
        assert_eq!(bound("ANTHROPIC_API_KEY", "gateway.test:8443"), ("gateway.test:8443".into(), api_key()));
        assert_eq!(bound("T", "a.org:basic:oauth2"), ("a.org".into(), How::Basic { user: "oauth2".into() }));
        let private = How::Header { name: "private-token".into() };
        assert_eq!(bound("T", "a.org:8443:header:Private-Token"), ("a.org:8443".into(), private));
    }

    #[test]
    fn what_is_no_credential_is_refused() {
        for text in [
            "",
            "*.a.org",
            "1.1.1.1",
            "a.org:0",
            "a.org:99999",
            "a.org:4x3",
            "a.org:none",
            "a.org:basic",
            "a.org:basic:a:b",
            "a.org:header:",
            "a.org:header:a b",
            "a.org:header:a\r\nb",
            "a.org:header:a:b",
            "a.org:bearer:x",
            "a.org:443:443",
            "a.org:header:Host",
            "a.org:header:Content-Length",
            "a.org:header:transfer-encoding",
            "a.org:header:Proxy-Authorization",
        ] {
            assert!(Credential::bound("T", text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_key_is_one_word() {
        assert_eq!(key(b"sk-1\n\n"), Ok(&b"sk-1"[..]));
        for bad in [&b""[..], b"\n", b"a b", b"a\r\nX: y", b"a\0", "é".as_bytes(), &[b'x'; MAX_KEY + 1]] {
            assert!(key(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_words_are_a_credential_or_refused(text in "[a-z.:*\\PC]{0,40}") {
            if let Ok(credential) = Credential::bound("T", &text) {
                prop_assert!(!OF_THE_REQUEST.contains(&credential.how.header()));
                prop_assert!(credential.how.header().bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'));
            }
        }
    }
}
