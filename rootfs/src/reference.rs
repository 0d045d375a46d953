//! Image references as the user writes them.
//!
//! Parsing does no I/O: whether the directory is there and holds an image is found out by who opens it.

mod name;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::digest::{Digest, DigestError};
use crate::printable::printable;

pub use name::{Name, NameError};

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
    /// `oci-archive:FILE`, `oci-archive:FILE:TAG`, `oci-archive:FILE@DIGEST`: the same in one tar file.
    OciArchive {
        /// The tar file.
        file: PathBuf,
        /// Which of its images.
        select: Selector,
    },
    /// `docker-archive:FILE`, `docker-archive:FILE:NAME:TAG`: what `docker save` and `podman save` write.
    DockerArchive {
        /// The tar file.
        file: PathBuf,
        /// Which of its images; the only one where this is `None`.
        name: Option<Name>,
    },
    /// `NAME`, `docker://NAME`: an image in a registry.
    Registry(Name),
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

const WORKS: &str = "what works: host, dir:PATH, oci:DIR[:TAG], oci-archive:FILE[:TAG], \
     docker-archive:FILE[:NAME:TAG], and [docker://]NAME[:TAG][@DIGEST] in a registry";

/// Text that is not a reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing at all.
    #[error("the image reference is empty; {WORKS}")]
    Empty,
    /// A kind of place without a path, or a colon without a tag.
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
    /// A digest of a manifest, which such an archive does not have.
    #[error("image reference `{0}` has a digest; images of a docker-archive have names only")]
    NoDigests(String),
    /// An archive that could be read only once, from its beginning.
    #[error("image reference `{0}`: an archive is read in many places at once; write it to a file first")]
    Pipe(String),
    /// A path without a transport.
    #[error(
        "image reference `{0}` is a path; write dir:{0} for a root directory, oci:{0} for an OCI image layout, \
         oci-archive:{0} or docker-archive:{0} for an archive"
    )]
    BarePath(String),
    /// A name in a registry that is a path as well.
    #[error(
        "image reference `{0}` is a path here and could be a name in a registry; write docker://{0} for the registry's \
         image, or dir:{0}, oci:{0}, oci-archive:{0} or docker-archive:{0} for what is here"
    )]
    PathOrName(String),
    /// A store of another tool.
    #[error("image reference `{reference}`: agentd does not read the store of {tool}; {remedy}")]
    OtherStore {
        /// The reference.
        reference: String,
        /// Whose.
        tool: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Not the name of an image in a registry.
    #[error("image reference `{reference}` is no name that an image in a registry can have")]
    Name {
        /// The reference.
        reference: String,
        /// Why it is none.
        source: NameError,
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
            let (layout, select) = parse_oci(rest, "directory", shown)?;
            return Ok(ImageRef::Oci { layout, select });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (file, select) = parse_oci(rest, "file", shown)?;
            refuse_pipe(&file, shown)?;
            return Ok(ImageRef::OciArchive { file, select });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            return parse_docker_archive(rest, shown);
        }
        for (transport, tool, remedy) in [
            ("docker-daemon:", "docker", "write it to a file with `docker save`, and use docker-archive:FILE"),
            ("containers-storage:", "podman", "write it to a file with `podman save`, and use docker-archive:FILE"),
        ] {
            if text.starts_with(transport) {
                return Err(ReferenceError::OtherStore { reference: shown(), tool, remedy });
            }
        }
        if text.starts_with(['/', '.', '~']) {
            return Err(ReferenceError::BarePath(shown()));
        }
        let name = text.strip_prefix("docker://").unwrap_or(text).parse();
        name.map(ImageRef::Registry).map_err(|source| ReferenceError::Name { reference: shown(), source })
    }
}

fn parse_oci(
    rest: &str,
    place: &'static str,
    shown: impl Fn() -> String,
) -> Result<(PathBuf, Selector), ReferenceError> {
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
        return Err(ReferenceError::Incomplete { reference: shown(), missing: place });
    }
    Ok((path.into(), select))
}

/// What tools mean by standard input, and what a shell passes for `<(…)`.
fn refuse_pipe(file: &Path, shown: impl Fn() -> String) -> Result<(), ReferenceError> {
    let is_pipe = file == Path::new("-") || file == Path::new("/dev/stdin") || file.starts_with("/dev/fd");
    if is_pipe { Err(ReferenceError::Pipe(shown())) } else { Ok(()) }
}

fn parse_docker_archive(rest: &str, shown: impl Fn() -> String) -> Result<ImageRef, ReferenceError> {
    // As above: the first colon ends the path, and names have colons of their own.
    let (path, name) = match rest.split_once(':') {
        Some((_, "")) => {
            return Err(ReferenceError::Incomplete { reference: shown(), missing: "name after the colon" });
        }
        Some((path, name)) => (path, Some(name)),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(ReferenceError::Incomplete { reference: shown(), missing: "file" });
    }
    refuse_pipe(Path::new(path), &shown)?;
    let name: Option<Name> =
        name.map(str::parse).transpose().map_err(|source| ReferenceError::Name { reference: shown(), source })?;
    if name.as_ref().is_some_and(|name| name.digest().is_some()) {
        return Err(ReferenceError::NoDigests(shown()));
    }
    Ok(ImageRef::DockerArchive { file: path.into(), name })
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageRef::Host => f.write_str("host"),
            ImageRef::Dir(path) => write!(f, "dir:{}", path.display()),
            ImageRef::Oci { layout, select } => write!(f, "oci:{}{select}", layout.display()),
            ImageRef::OciArchive { file, select } => write!(f, "oci-archive:{}{select}", file.display()),
            ImageRef::DockerArchive { file, name: None } => write!(f, "docker-archive:{}", file.display()),
            ImageRef::DockerArchive { file, name: Some(name) } => {
                write!(f, "docker-archive:{}:{name}", file.display())
            }
            ImageRef::Registry(name) => name.fmt(f),
        }
    }
}

/// What follows the path.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Default => Ok(()),
            Selector::Tag(tag) => write!(f, ":{tag}"),
            Selector::Digest(digest) => write!(f, "@{digest}"),
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

    fn oci_archive(file: &str, select: Selector) -> ImageRef {
        ImageRef::OciArchive { file: file.into(), select }
    }

    fn registry(name: &str) -> ImageRef {
        ImageRef::Registry(name.parse().unwrap())
    }

    #[test]
    fn names_in_registries_may_be_short() {
        for (text, want) in [
            ("debian", "docker.io/library/debian:latest"),
            ("docker://debian", "docker.io/library/debian:latest"),
            ("docker:dind", "docker.io/library/docker:dind"),
            ("docker://host", "docker.io/library/host:latest"),
        ] {
            assert_eq!(text.parse(), Ok(registry(want)), "{text}");
        }
        let archive: ImageRef = "docker-archive:x.tar:debian".parse().unwrap();
        assert_eq!(archive.to_string(), "docker-archive:x.tar:docker.io/library/debian:latest");
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
            ("oci-archive:x.tar".into(), oci_archive("x.tar", Selector::Default)),
            ("oci-archive:/x.tar:a:b".into(), oci_archive("/x.tar", Selector::Tag("a:b".into()))),
            (format!("oci-archive:x.tar@{digest}"), oci_archive("x.tar", Selector::Digest(digest.parse().unwrap()))),
            ("docker-archive:x.tar".into(), ImageRef::DockerArchive { file: "x.tar".into(), name: None }),
            (
                "docker-archive:/x.tar:docker.io/library/debian:12".into(),
                ImageRef::DockerArchive { file: "/x.tar".into(), name: Some("debian:12".parse().unwrap()) },
            ),
            ("docker.io/library/debian:12".into(), ImageRef::Registry("debian:12".parse().unwrap())),
            (format!("localhost:5000/x:1@{digest}"), registry(&format!("localhost:5000/x:1@{digest}"))),
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
            ("oci-archive:", "has no file"),
            ("oci-archive::x", "has no file"),
            ("docker-archive:", "has no file"),
            ("docker-archive::x", "has no file"),
            ("docker-archive:-", "write it to a file first"),
            ("docker-archive:/dev/fd/63:x:1", "write it to a file first"),
            ("oci-archive:/dev/stdin", "write it to a file first"),
            ("docker-archive:x:", "has no name after the colon"),
            ("docker-archive:x:Y", "its repository is not"),
            (&format!("docker-archive:x:y@sha256:{}", "a".repeat(64)), "names only"),
            ("docker-daemon:x:1", "`docker save`"),
            ("containers-storage:x", "`podman save`"),
            ("~/x.tar", "docker-archive:~/x.tar for an archive"),
            ("docker://", "its repository is not"),
            ("https://q.io/x", "a registry's HOST"),
            ("HOST", "its repository is not 1 to 255 lower-case"),
        ] {
            let error = text.parse::<ImageRef>().unwrap_err();
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            let message = format!("{error}: {cause}");
            assert!(message.contains(want), "{text}: {message}");
            assert!(!message.chars().any(char::is_control));
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_round_trips(text in "(oci:|dir:|oci-archive:|docker-archive:|docker://|)[a-z/:@.]{0,12}(@sha256:[0-9a-f]{62,66})?|\\PC*") {
            if let Ok(parsed) = text.parse::<ImageRef>() {
                prop_assert_eq!(&parsed.to_string().parse::<ImageRef>().unwrap(), &parsed);
            }
        }
    }
}
