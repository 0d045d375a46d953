//! Rules for single requests: `[METHOD[,METHOD]] https://HOST[:PORT]/PATH`, where a `*` at the end stands for anything.
//!
//! Paths are compared decoded, and a path that a server could read as another one is refused wherever such a rule decides:
//! dots that climb, empty segments, encoded slashes, what is encoded twice.
//!
//! Invariant: a path that matches is sent as it was compared, byte for byte.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::rule::DEFAULT_PORT;

/// Bytes of a path in a rule.
const LONGEST_PATH: usize = 1024;

/// Methods of a rule.
const MOST_METHODS: usize = 16;

/// Words that are no rule for requests.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlRuleError {
    /// The scheme.
    #[error("`{}`: a rule with a path is for https:// and one host; what is not encrypted is allowed by host and port", .0.escape_debug())]
    Scheme(String),
    /// A whole host.
    #[error("`{}` is a URL for every request: write its host alone, or name a path or a method (GET https://HOST/PATH)", .0.escape_debug())]
    Whole(String),
    /// The host.
    #[error("`{}` is no host of a rule with a path: write one name", .0.escape_debug())]
    Host(String),
    /// The port.
    #[error("`{}` is no port", .0.escape_debug())]
    Port(String),
    /// The methods.
    #[error("`{}` is no list of methods: write GET, or GET,POST, in capital letters", .0.escape_debug())]
    Methods(String),
    /// The path.
    #[error("`{}` is no path of a rule: {why}", path.escape_debug())]
    Path {
        /// The path.
        path: String,
        /// Why not.
        why: &'static str,
    },
}

/// Which requests to one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UrlRule {
    /// None: any.
    methods: Vec<String>,
    pub(crate) host: Name,
    pub(crate) port: u16,
    /// As it was written, without the `*` at its end.
    path: String,
    is_prefix: bool,
}

impl UrlRule {
    /// Whether words are meant as such a rule, and not as one for a host.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.contains("://")
    }

    /// Whether it is about requests to this host at this port.
    pub(crate) fn is_about(&self, name: &Name, port: u16) -> bool {
        self.host == *name && self.port == port
    }

    /// Whether every request of `other` is one of these.
    pub(crate) fn covers(&self, other: &UrlRule) -> bool {
        let has_methods = self.methods.is_empty()
            || !other.methods.is_empty() && other.methods.iter().all(|method| self.methods.contains(method));
        // A path that exists as a rule can be decoded.
        let [own, path] = [&self.path, &other.path].map(|path| decode(path).unwrap_or_default());
        let has_path = if self.is_prefix { path.starts_with(&own) } else { !other.is_prefix && path == own };
        self.is_about(&other.host, other.port) && has_methods && has_path
    }

    /// Whether a request is one of these; `decoded` is what [`decode`] gave.
    pub(crate) fn matches(&self, name: &Name, port: u16, method: &str, decoded: &[u8]) -> bool {
        let has_method = self.methods.is_empty() || self.methods.iter().any(|own| own == method);
        // A path that exists as a rule can be decoded.
        let own = decode(&self.path).unwrap_or_default();
        self.is_about(name, port)
            && has_method
            && if self.is_prefix { decoded.starts_with(&own) } else { decoded == own }
    }
}

impl FromStr for UrlRule {
    type Err = UrlRuleError;

    fn from_str(text: &str) -> Result<Self, UrlRuleError> {
        let (words, url) = text.split_once(' ').map_or(("", text), |(words, url)| (words, url.trim_start_matches(' ')));
        let methods: Vec<String> = words.split(',').filter(|_| !words.is_empty()).map(str::to_owned).collect();
        let is_method = |method: &String| {
            (1..=32).contains(&method.len()) && method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-')
        };
        if !methods.iter().all(is_method) || methods.len() > MOST_METHODS {
            return Err(UrlRuleError::Methods(words.to_owned()));
        }
        let rest = url.strip_prefix("https://").ok_or_else(|| UrlRuleError::Scheme(text.to_owned()))?;
        let (authority, path) = match rest.find('/') {
            Some(at) if methods.is_empty() && rest[at..] == *"/" => return Err(UrlRuleError::Whole(text.to_owned())),
            Some(at) => rest.split_at(at),
            None if methods.is_empty() => return Err(UrlRuleError::Whole(text.to_owned())),
            None => (rest, "/*"),
        };
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => {
                let digits = port.bytes().all(|byte| byte.is_ascii_digit());
                let number = port.parse().ok().filter(|number| digits && *number > 0);
                (host, number.ok_or_else(|| UrlRuleError::Port(port.to_owned()))?)
            }
            None => (authority, DEFAULT_PORT),
        };
        let host = Name::new(host).ok_or_else(|| UrlRuleError::Host(host.to_owned()))?;
        let (plain, is_prefix) = path.strip_suffix('*').map_or((path, false), |plain| (plain, true));
        let wrong = |why| UrlRuleError::Path { path: path.to_owned(), why };
        if plain.contains(['*', '?', '#']) {
            return Err(wrong("a * stands at its end only, and a query is not compared"));
        }
        if plain.len() > LONGEST_PATH {
            return Err(wrong("it is too long"));
        }
        decode(plain).map_err(wrong)?;
        Ok(UrlRule { methods, host, port, path: plain.to_owned(), is_prefix })
    }
}

/// A path, percent-decoded once.
///
/// # Errors
/// Why servers could read it in more than one way.
pub(crate) fn decode(untrusted_path: &str) -> Result<Vec<u8>, &'static str> {
    let mut decoded = Vec::with_capacity(untrusted_path.len());
    let mut bytes = untrusted_path.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let digits = (bytes.next().and_then(hex), bytes.next().and_then(hex));
            let (Some(high), Some(low)) = digits else { return Err("its path has a % that encodes nothing") };
            let byte = high << 4 | low;
            if matches!(byte, b'/' | b'\\') {
                return Err("its path has an encoded slash");
            }
            byte
        } else {
            if byte == b'\\' || !byte.is_ascii_graphic() {
                return Err("its path has an odd character");
            }
            byte
        };
        if byte.is_ascii_control() {
            return Err("its path has an odd character");
        }
        decoded.push(byte);
    }
    // Among others, slashes and dots in more bytes than they have.
    if std::str::from_utf8(&decoded).is_err() {
        return Err("its path is not UTF-8");
    }
    if decoded.first() != Some(&b'/') {
        return Err("its path does not begin with a slash");
    }
    if decoded.windows(3).any(|three| matches!(three, [b'%', high, low] if hex(*high).is_some() && hex(*low).is_some()))
    {
        return Err("its path is encoded twice");
    }
    let mut segments = decoded[1..].split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        // Some servers take what is behind a `;` for no part of the name.
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        if matches!(name, b"." | b"..") {
            return Err("its path climbs with dots");
        }
        if name.is_empty() && (segments.peek().is_some() || !segment.is_empty()) {
            return Err("its path has an empty segment");
        }
    }
    Ok(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

impl fmt::Display for UrlRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.methods.is_empty() {
            write!(f, "{} ", self.methods.join(","))?;
        }
        write!(f, "https://{}", self.host)?;
        if self.port != DEFAULT_PORT {
            write!(f, ":{}", self.port)?;
        }
        write!(f, "{}{}", self.path, if self.is_prefix { "*" } else { "" })
    }
}

impl TryFrom<String> for UrlRule {
    type Error = UrlRuleError;

    fn try_from(text: String) -> Result<Self, UrlRuleError> {
        text.parse()
    }
}

impl From<UrlRule> for String {
    fn from(rule: UrlRule) -> String {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(rule: &str, method: &str, path: &str) -> bool {
        let name = Name::new("api.test").unwrap();
        let rule: UrlRule = rule.parse().unwrap();
        decode(path).is_ok_and(|decoded| rule.matches(&name, 443, method, &decoded))
    }

    #[test]
    fn a_rule_matches_what_it_says() {
        let rule = "GET,HEAD https://api.test/repos/me/*";
        for (method, path, is_match) in [
            ("GET", "/repos/me/x", true),
            ("HEAD", "/repos/me/", true),
            ("GET", "/repos/m%65/x", true),
            ("POST", "/repos/me/x", false),
            ("get", "/repos/me/x", false),
            ("GET", "/repos/me", false),
            ("GET", "/repos/you/x", false),
            ("GET", "/repos/ME/x", false),
        ] {
            assert_eq!(matches(rule, method, path), is_match, "{method} {path}");
        }
        assert!(matches("DELETE https://api.test", "DELETE", "/x") && matches("https://api.test/a", "GET", "/a"));
        assert!(!matches("https://api.test/a", "GET", "/a/") && !matches("https://api.test:444/a", "GET", "/a"));
        assert!(!matches("https://other.test/a", "GET", "/a"));
        assert!(matches("https://api.test/a%20b", "GET", "/a%20b"));
    }

    #[test]
    fn a_path_that_can_be_read_in_two_ways_matches_nothing() {
        for path in [
            "",
            "x",
            "//",
            "/a//b",
            "/a/./b",
            "/a/../b",
            "/a/..",
            "/a/%2e%2e/b",
            "/a/%2E./b",
            "/a%2fb",
            "/a%5cb",
            "/a\\b",
            "/a/%252e%252e/b",
            "/a/..;x/b",
            "/a/.;/b",
            "/a/;/b",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%00",
            "/a%0a",
            "/a%c0%af",
            "/a b",
            "/é",
        ] {
            assert!(decode(path).is_err(), "{path:?}");
        }
        for path in ["/", "/a/", "/a/...", "/a/.b", "/a;x=y/b", "/100%25", "/@scope", "/a/b..c"] {
            assert!(decode(path).is_ok(), "{path:?}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for bad in [
            "http://api.test/x",
            "ftp://a.org/",
            "https://",
            "https://*.api.test/",
            "https://1.1.1.1/",
            "https://a.org:0/",
            "https://a.org:x/",
            "https://a.org/",
            "https://a.org",
            "https://a.org/../x",
            "https://a.org/a*b",
            "https://a.org/a?b",
            "get https://a.org/",
            "GET, https://a.org/",
            "GET POST https://a.org/",
            "GET https://a.org/x y",
            "https://u@a.org/",
        ] {
            assert!(bad.parse::<UrlRule>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_rule_that_is_printed_is_the_same_rule(text in "(GET |GET,PUT )?https://[a-c.]{1,5}(:[0-9]{1,5})?/?[a-c/%*.2e]{0,12}") {
            if let Ok(rule) = text.parse::<UrlRule>() {
                prop_assert_eq!(rule.to_string().parse::<UrlRule>(), Ok(rule));
            }
        }

        #[test]
        fn a_decoded_path_has_no_way_up(path in "/[a./%2eEfF;\\\\]{0,12}") {
            if let Ok(decoded) = decode(&path) {
                let text = String::from_utf8(decoded).unwrap();
                prop_assert!(!text.contains("//") && !text.contains("/../") && !text.ends_with("/..") && !text.contains('\\'));
            }
        }
    }
}
