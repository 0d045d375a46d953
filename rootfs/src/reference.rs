//! Image references as the user writes them.
//!
//! Parsing does no I/O: whether the directory is there and holds an image is found out by who opens it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::digest::{Digest, DigestError};
use crate::printable::printable;

/// Where a job's root comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRef {
    /// `host`: this machine's own root.
    Host,
    /// `dir:PATH`: a directory that holds a root.
    Dir(PathBuf),
    /// `oci:DIR`, `oci:DIR:TAG`, `oci:DIR@DIGEST`: an OCI image layout.
    Oci {
        /// The layout's directory.
        layout: PathBuf,
        /// Which of its images.
        select: Selector,
    },
}

/// Which image of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The only one, or the one tagged `latest`.
    Default,
    /// The one whose `org.opencontainers.image.ref.name` this is.
    Tag(String),
    /// The one listed with this manifest digest.
    Digest(Digest),
}

const WORKS: &str = "what works: host, dir:PATH, oci:DIR, oci:DIR:TAG, oci:DIR@sha256:…";

/// Text that is not a reference, or not one that works yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing at all.
    #[error("the image reference is empty; {WORKS}")]
    Empty,
    /// `dir:` or `oci:` without a path, or `oci:DIR:` without a tag.
    #[error("image reference `{reference}` has no {missing}; {WORKS}")]
    Incomplete {
        /// The reference.
        reference: String,
        /// What is missing.
        missing: &'static str,
    },
    /// Control characters in it.
    #[error("image reference `{0}` holds a control character")]
    Control(String),
    /// `@` with something that is not a digest.
    #[error("image reference `{reference}`")]
    Digest {
        /// The reference.
        reference: String,
        /// Why it is not one.
        source: DigestError,
    },
    /// A tag and a digest at once.
    #[error("image reference `{0}` has a tag and a digest; give one of the two")]
    TagAndDigest(String),
    /// A path without a transport.
    #[error("image reference `{0}` is a path; write dir:{0} for a root directory or oci:{0} for an OCI image layout")]
    BarePath(String),
    /// An archive file.
    #[error("image reference `{0}`: archives cannot be read yet; unpack it with `skopeo copy {0} oci:DIR`; {WORKS}")]
    Archive(String),
    /// A registry.
    #[error(
        "image reference `{reference}`: images cannot be fetched from a registry yet; \
         fetch it with `skopeo copy {transport}{reference} oci:DIR`; {WORKS}"
    )]
    Registry {
        /// The reference.
        reference: String,
        /// What skopeo wants before it.
        transport: &'static str,
    },
}

impl FromStr for ImageRef {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<ImageRef, ReferenceError> {
        let shown = || printable(text.as_bytes());
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.chars().any(char::is_control) {
            return Err(ReferenceError::Control(shown()));
        }
        if text == "host" {
            return Ok(ImageRef::Host);
        }
        if let Some(path) = text.strip_prefix("dir:") {
            if path.is_empty() {
                return Err(ReferenceError::Incomplete { reference: shown(), missing: "path" });
            }
            return Ok(ImageRef::Dir(path.into()));
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            return parse_oci(rest, shown);
        }
        if text.starts_with("oci-archive:") || text.starts_with("docker-archive:") {
            return Err(ReferenceError::Archive(shown()));
        }
        if text.starts_with(['/', '.', '~']) {
            return Err(ReferenceError::BarePath(shown()));
        }
        let transport = if text.starts_with("docker://") { "" } else { "docker://" };
        Err(ReferenceError::Registry { reference: shown(), transport })
    }
}

fn parse_oci(rest: &str, shown: impl Fn() -> String) -> Result<ImageRef, ReferenceError> {
    // The first colon ends the directory, as in skopeo and podman: tags there may be whole image names
    // ("oci:/x:docker.io/library/debian:12"). A digest has a colon of its own, so it is looked for first.
    let digest = rest.rfind("@sha").filter(|at| rest.get(at + 1..).is_some_and(|tail| tail.contains(':')));
    let (path, select) = match (digest, rest.split_once(':')) {
        (Some(at), _) => {
            let (path, tail) = rest.split_at(at);
            if path.contains(':') {
                return Err(ReferenceError::TagAndDigest(shown()));
            }
            let digest = tail[1..].parse().map_err(|source| ReferenceError::Digest { reference: shown(), source })?;
            (path, Selector::Digest(digest))
        }
        (None, Some((_, ""))) => {
            return Err(ReferenceError::Incomplete { reference: shown(), missing: "tag after the colon" });
        }
        (None, Some((path, tag))) => (path, Selector::Tag(tag.to_owned())),
        (None, None) => (rest, Selector::Default),
    };
    if path.is_empty() {
        return Err(ReferenceError::Incomplete { reference: shown(), missing: "directory" });
    }
    Ok(ImageRef::Oci { layout: path.into(), select })
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageRef::Host => f.write_str("host"),
            ImageRef::Dir(path) => write!(f, "dir:{}", path.display()),
            ImageRef::Oci { layout, select } => {
                write!(f, "oci:{}", layout.display())?;
                match select {
                    Selector::Default => Ok(()),
                    Selector::Tag(tag) => write!(f, ":{tag}"),
                    Selector::Digest(digest) => write!(f, "@{digest}"),
                }
            }
        }
    }
}

impl Serialize for ImageRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn oci(layout: &str, select: Selector) -> ImageRef {
        ImageRef::Oci { layout: layout.into(), select }
    }

    #[test]
    fn what_works() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, want) in [
            ("host".to_owned(), ImageRef::Host),
            ("dir:/srv/root".into(), ImageRef::Dir("/srv/root".into())),
            ("dir:a:b".into(), ImageRef::Dir("a:b".into())),
            ("oci:./x".into(), oci("./x", Selector::Default)),
            ("oci:/x:v1".into(), oci("/x", Selector::Tag("v1".into()))),
            (
                "oci:/x:docker.io/library/debian:12".into(),
                oci("/x", Selector::Tag("docker.io/library/debian:12".into())),
            ),
            ("oci:/a@b".into(), oci("/a@b", Selector::Default)),
            ("oci:/x:a@b".into(), oci("/x", Selector::Tag("a@b".into()))),
            (format!("oci:/x@{digest}"), oci("/x", Selector::Digest(digest.parse().unwrap()))),
        ] {
            let parsed: ImageRef = text.parse().unwrap();
            assert_eq!(parsed, want);
            assert_eq!(parsed.to_string(), text);
            assert_eq!(serde_json::to_value(&parsed).unwrap(), serde_json::Value::from(text));
        }
    }

    #[test]
    fn what_does_not_says_why() {
        let tag_and_digest = format!("oci:/x:v1@sha256:{}", "a".repeat(64));
        for (text, want) in [
            ("", "is empty; what works: host, dir:PATH"),
            ("dir:", "has no path"),
            ("oci:", "has no directory"),
            ("oci::x", "has no directory"),
            ("oci:/x:", "has no tag"),
            ("oci:/x@sha256:abc", "image reference `oci:/x@sha256:abc`"),
            (&tag_and_digest, "give one of the two"),
            ("a\u{1b}[2J", "control character"),
            ("./x", "write dir:./x"),
            ("/x", "oci:/x for an OCI"),
            ("oci-archive:x.tar", "archives cannot be read yet"),
            ("docker-archive:x.tar", "archives cannot be read yet"),
            ("docker://debian:12", "`skopeo copy docker://debian:12 oci:DIR`"),
            ("debian:12", "`skopeo copy docker://debian:12 oci:DIR`"),
            ("HOST", "registry"),
        ] {
            let message = text.parse::<ImageRef>().unwrap_err().to_string();
            assert!(message.contains(want), "{text}: {message}");
            assert!(!message.chars().any(char::is_control));
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_round_trips(text in "(oci:|dir:|)[a-z/:@.]{0,12}(@sha256:[0-9a-f]{62,66})?|\\PC*") {
            if let Ok(parsed) = text.parse::<ImageRef>() {
                prop_assert_eq!(parsed.to_string(), text);
            }
        }
    }
}
