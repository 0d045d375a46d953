//! Which image is wanted and how: what `run`, `pull` and the verbs on images have in common.

use std::error::Error;
use std::path::{Path, PathBuf};

use agentd_rootfs::{
    ImageError, ImageRef, Limit, Limits, Listed, Name, Places, Pull, ReferenceError, RegistryConfig, Store,
};
use anyhow::{Context, Result, bail};
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
        return Err(said(ReferenceError::PathOrName(printable(text))));
    }
    Ok(reference)
}

/// An image to run, as typed.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    reference: ImageRef,
    text: String,
}

impl Asked {
    pub(super) fn parse(text: &str) -> Result<Asked, String> {
        Ok(Asked { reference: reference(text)?, text: text.to_owned() })
    }

    /// Whether it is a path that begins at the working directory.
    pub(super) fn is_relative(&self) -> bool {
        match &self.reference {
            ImageRef::Dir(path) | ImageRef::Oci { layout: path, .. } => path.is_relative(),
            ImageRef::OciArchive { file, .. } | ImageRef::DockerArchive { file, .. } => file.is_relative(),
            ImageRef::Host | ImageRef::Registry(_) => false,
        }
    }

    /// The image: of a name without a registry the one that was committed here comes first, unless it is to be pulled.
    pub(super) fn find(self, places: &Places, pull: Pull) -> Result<ImageRef> {
        let is_named = matches!(self.reference, ImageRef::Registry(_)) && pull != Pull::Always;
        let Some(local) = local(&self.text).filter(|_| is_named) else { return Ok(self.reference) };
        let known = match Store::existing(places)? {
            Some(store) => store.knows(&local.to_string())?,
            None => false,
        };
        Ok(if known { ImageRef::Registry(local) } else { self.reference })
    }
}

/// What `agentd commit` calls an image whose name has no registry: as with podman it is nobody else's name.
pub(super) fn local(text: &str) -> Option<Name> {
    let name: Name = text.parse().ok()?;
    let says_where = text.split_once('/').is_some_and(|(host, _)| host == "localhost" || host.contains(['.', ':']));
    if says_where || name.digest().is_some() { None } else { format!("localhost/{text}").parse().ok() }
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
            let hint = || format!("make one with `skopeo copy docker://… oci:{}`", layout.display());
            ImageRef::Oci { layout: absolute(&layout, "image layout").with_context(hint)?, select }
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
