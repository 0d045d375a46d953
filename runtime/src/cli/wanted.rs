//! Which image is wanted and how: what `run`, `pull` and the verbs on images have in common.

use std::error::Error;
use std::path::{Path, PathBuf};

use agentd_rootfs::{
    ImageError, ImageRef, Limit, Limits, Listed, Name, Places, Pull, ReferenceError, RegistryConfig, Store,
};
use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;

use super::printable;

/// `--pull`, in podman's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Policy {
    /// When the store does not have it.
    Missing,
    /// Each time, to see whether the name leads to another image now.
    Always,
    /// Not at all.
    Never,
}

impl From<Policy> for Pull {
    fn from(policy: Policy) -> Pull {
        match policy {
            Policy::Missing => Pull::Missing,
            Policy::Always => Pull::Always,
            Policy::Never => Pull::Never,
        }
    }
}

/// How an image is wanted.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) pull: Pull,
    pub(super) limits: Limits,
    pub(super) registries: RegistryConfig,
}

impl Wanted {
    pub(super) fn new(pull: Pull, registries: RegistryConfig, asked: &[String]) -> Result<Self> {
        let mut limits = Limits::default();
        for limit in asked {
            let (name, value) =
                limit.split_once('=').with_context(|| format!("--image-limit {limit} is no NAME=VALUE"))?;
            limits.set(name, value)?;
        }
        Ok(Wanted { pull, limits, registries })
    }
}

/// A reference as typed. A bare word that is a path here is not guessed about: meant as one, it would be fetched from
/// whoever has that name in the registry.
pub(super) fn reference(text: &str) -> Result<ImageRef, String> {
    let said = |error: ReferenceError| match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    let reference: ImageRef = text.parse().map_err(said)?;
    let is_bare = matches!(reference, ImageRef::Registry(_)) && !text.starts_with("docker://");
    if is_bare && std::fs::symlink_metadata(text).is_ok() {
        return Err(said(ReferenceError::PathOrName(printable(text).into_owned())));
    }
    Ok(reference)
}

/// Digits that make a word an image's id rather than a name: those that `images` prints.
const ID_DIGITS: usize = 12;
/// Digits of a whole one, which is no name at all.
const WHOLE_ID: usize = 64;

/// An image to run or to pull, as typed.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// `None`: it can only be the id of an image in the store.
    reference: Option<ImageRef>,
    text: String,
}

impl Asked {
    pub(super) fn parse(text: &str) -> Result<Asked, String> {
        let is_whole = id(text).is_some_and(|digits| digits.len() == WHOLE_ID || digits.len() < text.len());
        let reference = if is_whole { None } else { Some(reference(text)?) };
        Ok(Asked { reference, text: text.to_owned() })
    }

    /// Whether it is a path that begins at the working directory.
    pub(super) fn is_relative(&self) -> bool {
        match &self.reference {
            Some(ImageRef::Dir(path) | ImageRef::Oci { layout: path, .. }) => path.is_relative(),
            Some(ImageRef::OciArchive { file, .. } | ImageRef::DockerArchive { file, .. }) => file.is_relative(),
            Some(ImageRef::Host | ImageRef::Registry(_)) | None => false,
        }
    }

    /// The image, and when to fetch it. Of a name without a registry the one that was committed here comes first, then the
    /// image in the store whose id begins so, unless it is to be pulled.
    pub(super) fn find(self, places: &Places, pull: Pull) -> Result<(ImageRef, Pull)> {
        let reference = match self.reference {
            Some(reference) if pull == Pull::Always || !matches!(reference, ImageRef::Registry(_)) => {
                return Ok((reference, pull));
            }
            reference => reference,
        };
        let (local, id) = (local(&self.text), id(&self.text));
        let store = if local.is_some() || id.is_some() { Store::existing(places)? } else { None };
        let knows = |name: &dyn std::fmt::Display| {
            store.as_ref().map_or(Ok(false), |store| store.knows(&name.to_string())).map_err(anyhow::Error::from)
        };
        if let Some(local) = local
            && reference.is_some()
            && knows(&local)?
        {
            return Ok((ImageRef::Registry(local), pull));
        }
        let (Some(id), Some(store)) = (id, &store) else {
            return Ok((reference.ok_or(ImageError::Unknown(self.text))?, pull));
        };
        if let Some(reference) = &reference
            && knows(reference)?
        {
            return Ok((reference.clone(), pull));
        }
        let found = match (store.resolve(id, None), reference) {
            (Err(ImageError::Unknown(_)), Some(reference)) => return Ok((reference, pull)),
            (found, _) => found?,
        };
        // As it is in the store: what its name leads to may be another image by now.
        let image = found.first().ok_or(ImageError::Unknown(self.text))?;
        Ok((image.reference.parse()?, Pull::Never))
    }

    /// What podman's aliases might lead elsewhere: a name without a registry, and without its tag.
    pub(super) fn short_name(&self) -> Option<String> {
        let is_short = matches!(self.reference, Some(ImageRef::Registry(_))) && !says_where(&self.text);
        let name = self.text.split('@').next().filter(|name| is_short && !name.contains("://"))?;
        Some(name.split(':').next().unwrap_or(name).to_owned())
    }

    /// What was asked for, to be fetched.
    pub(super) fn into_reference(self) -> Result<ImageRef> {
        self.reference.with_context(|| format!("{} is an image's id: what is to be fetched has a name", self.text))
    }
}

/// The digits of what may be an image's id, or the beginning of one.
fn id(text: &str) -> Option<&str> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let is_id = digits.len() >= ID_DIGITS && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    is_id.then_some(digits)
}

/// What `agentd commit` calls an image whose name has no registry: as with podman it is nobody else's name.
pub(super) fn local(text: &str) -> Option<Name> {
    let name: Name = text.parse().ok()?;
    if says_where(text) || name.digest().is_some() { None } else { format!("localhost/{text}").parse().ok() }
}

/// Whether a name begins with a registry.
fn says_where(text: &str) -> bool {
    text.split_once('/').is_some_and(|(host, _)| host == "localhost" || host.contains(['.', ':']))
}

/// Images of the store by a name, or the beginning of a digest.
pub(super) fn stored(store: &Store, text: &str) -> Result<Vec<Listed>, ImageError> {
    let local = local(text).map(|name| name.to_string());
    match local {
        Some(local) if store.knows(&local)? => store.resolve(text, Some(&local)),
        _ => store.resolve(text, canonical(text).as_deref()),
    }
}

/// The help of `--image-limit`.
pub(super) fn limits_help() -> String {
    let each = Limit::all().iter().map(|limit| format!("{} ({}, {})", limit.name, limit.meaning, limit.default()));
    format!("Set a limit on what an image may hold: {}", each.collect::<Vec<_>>().join("; "))
}

/// The reference with absolute paths without links, so that one place has one name. What is not to be pulled need not be
/// there any more.
pub(super) fn located(reference: ImageRef, pull: Pull) -> Result<ImageRef> {
    let absolute = |path: &Path, what| match super::run::absolute(path, what) {
        Err(_gone) if pull == Pull::Never => Ok(std::path::absolute(path)?),
        absolute => absolute,
    };
    let file = |path: PathBuf| absolute(&path, "image archive");
    Ok(match reference {
        ImageRef::Dir(path) => match super::run::absolute(&path, "image directory")? {
            root if root == Path::new("/") => bail!("dir:/ is this machine's own root: use --image host"),
            path => ImageRef::Dir(path),
        },
        ImageRef::Oci { layout, select } => {
            let hint = |error| anyhow!("{error}; or make one with `skopeo copy docker://… oci:{}`", layout.display());
            ImageRef::Oci { layout: absolute(&layout, "image layout").map_err(hint)?, select }
        }
        ImageRef::OciArchive { file: path, select } => ImageRef::OciArchive { file: file(path)?, select },
        ImageRef::DockerArchive { file: path, name } => ImageRef::DockerArchive { file: file(path)?, name },
        ImageRef::Host | ImageRef::Registry(_) => reference,
    })
}

/// The canonical form of a reference to an image in the store, whose source may be gone; `None` where it is none.
pub(super) fn canonical(text: &str) -> Option<String> {
    let reference = text.parse::<ImageRef>().ok()?;
    Some(located(reference, Pull::Never).ok()?.to_string())
}
