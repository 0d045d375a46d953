//! Host names, in the one form in which they are compared.
//!
//! Invariant: a [`Name`] is lower case, has no dot at its end, and holds letters, digits, `-`, `_` and dots between labels;
//! it is never what a C library reads as an address (`127.1`, `0x7f000001`). What else a program may call a name is none:
//! it is refused, not mended, so that no two programs can read it differently (a NUL byte, `％`, an empty label).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest name in bytes (RFC 1035, without the dot at the end).
pub(crate) const MAX: usize = 253;

/// Longest label in bytes.
const MAX_LABEL: usize = 63;

/// A host name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name that `untrusted_text` is; `None` when it is none.
    #[must_use]
    pub fn new(untrusted_text: &str) -> Option<Self> {
        let text = untrusted_text.strip_suffix('.').unwrap_or(untrusted_text);
        if text.len() > MAX || !text.split('.').all(is_label) || ends_in_number(text) {
            return None;
        }
        Some(Name(text.to_ascii_lowercase()))
    }

    /// The name, lower case, without a dot at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it lies below `other`; no name lies below itself.
    pub(crate) fn is_below(&self, other: &Name) -> bool {
        self.0.strip_suffix(other.as_str()).is_some_and(|labels| labels.ends_with('.'))
    }
}

fn is_label(label: &str) -> bool {
    let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    plain && (1..=MAX_LABEL).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
}

/// What inet_aton(3) takes for an address has a number as its last part, also in hexadecimal.
fn ends_in_number(text: &str) -> bool {
    let last = text.rsplit('.').next().unwrap_or_default();
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_hexadecimal = |text: &str| {
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
        digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    is_number(last) || is_hexadecimal(last)
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Name::new(&text).ok_or(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_have_one_form() {
        for (text, name) in [
            ("Example.ORG.", "example.org"),
            ("a_b.x-1.example", "a_b.x-1.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("localhost", "localhost"),
            ("1.2.3.example", "1.2.3.example"),
        ] {
            assert_eq!(Name::new(text).unwrap().as_str(), name);
        }
        let long_label = "a".repeat(64) + ".org";
        let long = ["a"; 128].join(".");
        for bad in [
            "",
            ".",
            "a..b",
            ".a",
            "a.org..",
            "a b",
            "a\0.org",
            "a.org\0.evil.org",
            "bücher.example",
            "ａ.org",
            "a.org%00",
            "a/b",
            "a:1",
            "*.org",
            "-a.org",
            "a-.org",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0X7F.1",
            "1.0x",
            "0177.0.0.01",
            "[::1]",
            &long_label,
            &long,
        ] {
            assert_eq!(Name::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn below_is_at_a_dot() {
        let name = |text| Name::new(text).unwrap();
        assert!(name("a.example.org").is_below(&name("example.org")));
        assert!(name("a.b.example.org").is_below(&name("example.org")));
        for not in ["example.org", "aexample.org", "example.org.evil", "org"] {
            assert!(!name(not).is_below(&name("example.org")), "{not}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_name_in_its_one_form_or_none(text in "\\PC{0,80}|[a-zA-Z0-9._-]{0,300}") {
            if let Some(name) = Name::new(&text) {
                prop_assert_eq!(Name::new(name.as_str()), Some(name.clone()));
                prop_assert!(name.as_str().len() <= MAX && !name.as_str().contains(char::is_uppercase));
                prop_assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
            }
        }
    }
}
