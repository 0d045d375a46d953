//! Names of images in registries, as docker, podman and the distribution spec have them.
//!
//! Invariant: a [`Name`] is within the grammar and its lengths, so each part is safe in a URL, as a file name's part
//! and on a terminal.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// Where a name without a registry is.
const HUB: &str = "docker.io";
/// The same, as old clients wrote it.
const HUB_BEFORE: &str = "index.docker.io";
/// Where a name of one word is on the hub.
const OFFICIAL: &str = "library/";
const TAG: &str = "latest";
/// A host name of DNS, and a port.
const HOST_BYTES: usize = 253 + 6;
/// As the distribution project has it.
const REPOSITORY_BYTES: usize = 255;
const TAG_BYTES: usize = 128;

/// An image in a registry: `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Text that is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Neither `localhost` nor a name, address or port that can be one.
    #[error("its first part is not a registry's HOST or HOST:PORT")]
    Registry,
    /// Outside the grammar.
    #[error(
        "its repository is not 1 to {REPOSITORY_BYTES} lower-case letters and digits with single `.`, `_`, `__` or `-`s between them, and `/`"
    )]
    Repository,
    /// Docker means an image by its id then, not by its name.
    #[error("64 hexadecimal digits are an id, not a name")]
    Id,
    /// Outside the grammar.
    #[error("its tag is not 1 to {TAG_BYTES} letters, digits, `_`, `.` and `-`, starting with none of the last two")]
    Tag,
    /// Not a digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl Name {
    /// The registry: a host, and a port where it is not the usual one.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository, with `library/` where the hub wants it.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only where a digest stands alone.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which decides when there is a tag as well.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The name as people write it: without the hub and `library/`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix(HUB).and_then(|rest| rest.strip_prefix('/')) {
            Some(rest) => match rest.strip_prefix(OFFICIAL) {
                Some(short) if !short.contains('/') => short.to_owned(),
                _ => rest.to_owned(),
            },
            None => full,
        }
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        let (text, digest) = match text.split_once('@') {
            Some((text, digest)) => (text, Some(digest.parse()?)),
            None => (text, None),
        };
        // A colon before the last slash is a port's.
        let tag_at = text.rfind(':').filter(|at| text.rfind('/').is_none_or(|slash| slash < *at));
        let (path, tag) = match tag_at {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        let (registry, repository) = match path.split_once('/') {
            Some((host, rest)) if host == "localhost" || host.contains(['.', ':']) => (host, rest),
            _ => (HUB, path),
        };
        if !is_registry(registry) {
            return Err(NameError::Registry);
        }
        let hub = [HUB, HUB_BEFORE].contains(&registry);
        let official = if hub && !repository.contains('/') { OFFICIAL } else { "" };
        if repository.len() == 64 && repository.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NameError::Id);
        }
        let repository = format!("{official}{repository}");
        if repository.len() > REPOSITORY_BYTES || !repository.split('/').all(is_component) {
            return Err(NameError::Repository);
        }
        if !tag.is_none_or(is_tag) {
            return Err(NameError::Tag);
        }
        let tag = tag.or(digest.is_none().then_some(TAG)).map(str::to_owned);
        Ok(Name { registry: if hub { HUB } else { registry }.to_owned(), repository, tag, digest })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn is_registry(text: &str) -> bool {
    // The port is what follows the last colon, but not one of an IPv6 address.
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|part| {
            let within = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            !part.is_empty() && part.bytes().all(within) && !part.starts_with('-') && !part.ends_with('-')
        }),
    };
    let is_port =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    text.len() <= HOST_BYTES && host && port.is_none_or(is_port)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(word) && bytes.last().is_some_and(word);
    ends && bytes
        .split(word)
        .all(|between| matches!(between, b"" | b"." | b"_" | b"__") || between.iter().all(|b| *b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=TAG_BYTES).contains(&text.len())
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
        && text.bytes().next().is_some_and(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, canonical, familiar) in [
            ("debian", "docker.io/library/debian:latest", "debian:latest"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            ("library/debian", "docker.io/library/debian:latest", "debian:latest"),
            ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
            ("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest"),
            ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
            ("user/x:v1.0_2-3", "docker.io/user/x:v1.0_2-3", "user/x:v1.0_2-3"),
            ("quay.io/a/b/c:1", "quay.io/a/b/c:1", "quay.io/a/b/c:1"),
            ("quay.io/debian", "quay.io/debian:latest", "quay.io/debian:latest"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest", "127.0.0.1:5000/x:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
            ("[fe80::1]/x", "[fe80::1]/x:latest", "[fe80::1]/x:latest"),
            // No slash: no registry.
            ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
            ("host", "docker.io/library/host:latest", "host:latest"),
            ("a__b/c-----d.e_f", "docker.io/a__b/c-----d.e_f:latest", "a__b/c-----d.e_f:latest"),
            (&format!("x@{digest}"), &format!("docker.io/library/x@{digest}"), &format!("x@{digest}")),
            (&format!("q.io/x:1@{digest}"), &format!("q.io/x:1@{digest}"), &format!("q.io/x:1@{digest}")),
        ] {
            let name: Name = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((name.to_string().as_str(), name.familiar().as_str()), (canonical, familiar), "{text}");
        }
        let name: Name = format!("q.io/x:1@{digest}").parse().unwrap();
        assert_eq!((name.registry(), name.repository(), name.tag()), ("q.io", "x", Some("1")));
        assert_eq!(name.digest().unwrap().to_string(), digest);
        assert_eq!(format!("x@{digest}").parse::<Name>().unwrap().tag(), None);
    }

    #[test]
    fn what_is_outside_the_grammar_is_refused() {
        let long = |n: usize| "a".repeat(n);
        for (text, want) in [
            ("", NameError::Repository),
            ("/", NameError::Repository),
            ("a/", NameError::Repository),
            ("/a", NameError::Repository),
            ("a//b", NameError::Repository),
            ("q.io/", NameError::Repository),
            ("Debian", NameError::Repository),
            ("a/B", NameError::Repository),
            ("a..b", NameError::Repository),
            ("a___b", NameError::Repository),
            ("a._b", NameError::Repository),
            ("-a", NameError::Repository),
            ("a-", NameError::Repository),
            ("é", NameError::Repository),
            ("a b", NameError::Repository),
            ("../../etc", NameError::Registry),
            ("q.io/../x", NameError::Repository),
            ("q.io/x/%2e%2e", NameError::Repository),
            ("https://q.io/x", NameError::Registry),
            ("user:pw.q.io/x", NameError::Registry),
            ("-q.io/x", NameError::Registry),
            ("q..io/x", NameError::Registry),
            ("q.io:/x", NameError::Registry),
            ("q.io:0/x", NameError::Registry),
            ("q.io:65536/x", NameError::Registry),
            ("q.io:+1/x", NameError::Registry),
            ("[::1/x", NameError::Registry),
            ("[::g]:1/x", NameError::Registry),
            ("x:", NameError::Tag),
            ("x:.a", NameError::Tag),
            ("x:-a", NameError::Tag),
            ("x:a b", NameError::Tag),
            ("x:ä", NameError::Tag),
            (&format!("x:{}", long(129)), NameError::Tag),
            (&long(256), NameError::Repository),
            (&format!("{}.io/x", long(260)), NameError::Registry),
            (&long(64), NameError::Id),
        ] {
            assert_eq!(text.parse::<Name>(), Err(want), "{text}");
        }
        for text in ["x@", "x@sha256:abc", "x@md5:00000000000000000000000000000000", "x@a@b"] {
            assert!(matches!(text.parse::<Name>(), Err(NameError::Digest(_))), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_round_trips(
            text in "(([a-z0-9.:\\[\\]-]{1,8}|localhost)/)?[a-z0-9._/-]{1,9}(:[a-zA-Z0-9_.-]{1,5})?(@sha256:[0-9a-f]{63,64})?|\\PC*",
        ) {
            if let Ok(name) = text.parse::<Name>() {
                prop_assert_eq!(&name.to_string().parse::<Name>().unwrap(), &name);
                prop_assert_eq!(&name.familiar().parse::<Name>().unwrap(), &name);
                prop_assert!(name.tag().is_some() || name.digest().is_some());
                let url = format!("{}/{}", name.registry(), name.repository());
                prop_assert!(url.bytes().all(|b| b.is_ascii_alphanumeric() || b".:[]/_-".contains(&b)), "{}", url);
                prop_assert!(!url.split('/').any(|part| part == ".." || part == "." || part.is_empty()));
            }
        }
    }
}
