//! Entry points for the fuzz targets in `fuzz/`: what reads bytes that a box or a name server chose.

use std::net::Ipv4Addr;

use crate::broker::Key;
use crate::credential::Credential;
use crate::dns::{self, Found};
use crate::hello::{self, Hello};
use crate::name::Name;
use crate::proxy::{self, Asked};
use crate::request::{self, Head};
use crate::rule::Rule;
use crate::told::Told;
use crate::url::{self, UrlRule};

/// A message to the name service: the answer is not much longer than the question.
pub fn question(untrusted: &[u8]) {
    let found = dns::answer(untrusted, |_| Found::At(Ipv4Addr::LOCALHOST, None));
    assert!(found.is_none_or(|(answer, _)| answer.len() <= untrusted.len() + 16));
}

/// The first words of a client.
pub fn first_words(untrusted: &[u8]) {
    if let Hello::Asks(name) = hello::read(untrusted) {
        assert!(name.len() <= untrusted.len());
    }
    if let Head::Asks { head, .. } = request::read(untrusted) {
        assert!(matches!(request::read(&head), Head::Asks { length, .. } if length == head.len()));
    }
}

/// A rule for requests, a path that it decides on, and what a key is for.
pub fn requests(untrusted: &[u8]) {
    let text = String::from_utf8_lossy(untrusted);
    if let Ok(decoded) = url::decode(&text) {
        let text = String::from_utf8_lossy(&decoded);
        assert!(text.starts_with('/') && !text.contains("//") && !text.contains('\\'));
        assert!(text.split('/').all(|segment| !matches!(segment, "." | "..")));
    }
    if let Ok(rule) = text.parse::<UrlRule>() {
        assert_eq!(rule.to_string().parse::<UrlRule>(), Ok(rule));
    }
    if let Ok(credential) = Credential::bound("T", &text) {
        assert!(credential.how.header().bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'));
    }
    if let Some(key) = Key::decode(untrusted) {
        assert_eq!(Key::decode(&key.encode()).map(|key| key.value), Some(key.value));
    }
}

/// What a client says to the proxy of a box.
pub fn proxied(untrusted: &[u8]) {
    let _read_or_refused = (proxy::socks(untrusted), proxy::socks_greeting(untrusted));
    if let Asked::Request(_, _, passed) = proxy::http(untrusted) {
        assert!(matches!(request::read(&passed), Head::Asks { .. }));
    }
}

/// A rule, and a message of the broker.
pub fn words(untrusted: &[u8]) {
    let _read_or_refused = Told::decode(untrusted);
    let text = String::from_utf8_lossy(untrusted);
    if let Some(name) = Name::new(&text) {
        assert_eq!(Name::new(name.as_str()), Some(name));
    }
    if let Ok(rule) = text.parse::<Rule>() {
        assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
    }
}
