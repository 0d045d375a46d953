//! The layer store: one unpacked directory a DiffID, shared by all jobs and images of one user.
//!
//! ```text
//! STORE/                      0700: layers hold real setuid files
//!   layers/KEY/fs             one layer as overlayfs wants it; KEY = ALGORITHM-DIFFID-IDMODE
//!   tmp/KEY, tmp/KEY.lock     a layer being unpacked (see `lock`)
//! ```
//! Invariant: `layers/KEY` appears by one rename, after the blob's size and digest and the DiffID were verified and the
//! bytes are on the disk. Keyed by anything unverified, one image could poison another's layer.

mod pull;
#[cfg(test)]
mod tests;

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstat, mkdirat, openat};
use rustix::io::Errno;

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::limits::Limits;
use crate::printable::printable;
use crate::reference::Selector;
use crate::source::{Layer, Layout, LayoutError, Source};
use crate::stream::StreamError;
use crate::unpack::{TarError, TreeError, UnpackError};

/// Owners are squashed to the store's owner. Part of the key: another mode would need other layers.
const ID_MODE: &str = "squash";
/// On `layers/KEY`: the layer hides everything below it. Not on `fs`, whose mode is the image's and may deny reading.
const OPAQUE_ROOT: &str = "user.agentd.opaque";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call.
    #[error("cannot {action} the image store `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Others may enter.
    #[error("the image store `{0}` is open to other users, and layers hold setuid files; run `chmod 700 {0}`")]
    Open(String),
    /// Somebody else's.
    #[error("the image store `{0}` belongs to another user")]
    Foreign(String),
}

/// Why an image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The layout does not lead to one.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A layer of it cannot be unpacked.
    #[error("layer {digest}")]
    Layer {
        /// The layer's blob.
        digest: Digest,
        /// Why.
        source: LayerError,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Its blob.
    #[error(transparent)]
    Blob(#[from] LayoutError),
    /// Its content.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The content is not what the config says.
    #[error("its content is not what the image's config says: it hashes to {actual} instead of {expected}")]
    DiffId {
        /// What the config says.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What kind of failure an [`ImageError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The layout, image or blob is not there.
    NotFound,
    /// The image breaks the specification, or holds what cannot be unpacked.
    Invalid,
    /// Bytes do not match their size or digest.
    Corrupt,
    /// The image is valid, but not supported here.
    Unsupported,
    /// The image goes over a limit.
    Limit,
    /// The operating system refused.
    System,
}

impl ImageError {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ImageError::Store(_) | ImageError::Layer { source: LayerError::Store(_), .. } => ErrorKind::System,
            ImageError::Layout(e) | ImageError::Layer { source: LayerError::Blob(e), .. } => match e {
                LayoutError::Missing { .. }
                | LayoutError::NotALayout { .. }
                | LayoutError::NoBlob { .. }
                | LayoutError::NoImage { .. }
                | LayoutError::SeveralImages { .. } => ErrorKind::NotFound,
                LayoutError::Size { .. } | LayoutError::Corrupt { .. } => ErrorKind::Corrupt,
                LayoutError::Platform { .. } | LayoutError::Unsupported { .. } | LayoutError::Version { .. } => {
                    ErrorKind::Unsupported
                }
                LayoutError::Limit { .. } => ErrorKind::Limit,
                LayoutError::Malformed { .. } | LayoutError::Digest { .. } => ErrorKind::Invalid,
                LayoutError::Io { .. } => ErrorKind::System,
            },
            ImageError::Layer { source: LayerError::DiffId { .. }, .. } => ErrorKind::Corrupt,
            ImageError::Layer { source: LayerError::Unpack(e), .. } => match e {
                UnpackError::Archive(e) | UnpackError::Data { source: e, .. } => match e {
                    TarError::Limit(_) | TarError::Stream(StreamError::Limit(_)) => ErrorKind::Limit,
                    TarError::Stream(StreamError::Read(_) | StreamError::Cancelled) => ErrorKind::System,
                    _ => ErrorKind::Invalid,
                },
                UnpackError::Entry { source: TreeError::Limit(_), .. } => ErrorKind::Limit,
                UnpackError::Entry { source: TreeError::Path(_), .. } => ErrorKind::Invalid,
                UnpackError::Entry { source: TreeError::Call { .. }, .. } => ErrorKind::System,
            },
        }
    }
}

/// How far one layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The layer's blob.
    pub digest: String,
    /// Bytes of the blob read.
    pub bytes_done: u64,
    /// Bytes of the blob.
    pub bytes_total: u64,
    /// Whether the layer is unpacked and verified.
    pub done: bool,
    /// Device nodes left out, once done: an ordinary user cannot make them, and a job has a /dev of its own.
    pub skipped_devices: u64,
    /// Extended attributes left out, once done: all but the user's own, such as file capabilities.
    pub dropped_xattrs: u64,
}

/// An image whose layers are all unpacked.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the image's manifest.
    pub manifest_digest: String,
    /// Absolute host paths of the unpacked layers, lowest first. No path is there twice: overlayfs refuses that.
    pub layers: Vec<PathBuf>,
    /// What the image says about running it.
    pub config: ImageConfig,
}

/// An opened layer store.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    layers: OwnedFd,
    tmp: OwnedFd,
}

/// Whether a layer is in the store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Missing,
    Present { opaque_root: bool },
}

impl Store {
    /// Opens the store at `dir`, making it (0700) where it is missing.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        let shown = || printable(dir.as_os_str().as_encoded_bytes());
        let io = |action| move |source: std::io::Error| StoreError::Io { action, path: shown(), source };
        let path = std::path::absolute(dir).map_err(io("locate"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(io("create"))?;
                rustix::fs::open(&path, flags, Mode::empty())
            }
            other => other,
        };
        let root = root.map_err(|e| io("open")(e.into()))?;
        let stat = fstat(&root).map_err(|e| io("examine")(e.into()))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(StoreError::Foreign(shown()));
        }
        if stat.st_mode & 0o077 != 0 {
            return Err(StoreError::Open(shown()));
        }
        let sub = |name: &str| match openat(&root, name, flags | OFlags::NOFOLLOW, Mode::empty()) {
            Err(Errno::NOENT) => {
                match mkdirat(&root, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(e),
                }
                openat(&root, name, flags | OFlags::NOFOLLOW, Mode::empty())
            }
            other => other,
        };
        let layers = sub("layers").map_err(|e| io("open")(e.into()))?;
        let tmp = sub("tmp").map_err(|e| io("open")(e.into()))?;
        Ok(Store { path, layers, tmp })
    }

    /// The image that `select` names in the OCI image layout `layout`, its missing layers unpacked in parallel.
    ///
    /// When all layers are here already this reads three small documents and looks at each layer once.
    pub fn image(
        &self,
        layout: &Path,
        select: &Selector,
        limits: &Limits,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Image, ImageError> {
        let source = Layout::open(layout, select)?;
        let manifest = source.manifest(limits)?;
        let look = || manifest.layers.iter().map(|layer| self.presence(layer)).collect::<Result<Vec<_>, _>>();
        let mut presence = look()?;
        let mut missing: Vec<&Layer> = Vec::new();
        for (layer, presence) in manifest.layers.iter().zip(&presence) {
            let known = missing.iter().any(|known| known.diff_id == layer.diff_id);
            if *presence == Presence::Missing && !known {
                missing.push(layer);
            }
        }
        if !missing.is_empty() {
            self.pull(&source, missing, limits, progress)?;
            presence = look()?;
        }
        let mut layers: Vec<PathBuf> = Vec::with_capacity(manifest.layers.len());
        for (layer, presence) in manifest.layers.iter().zip(presence).rev() {
            let path = self.layer_path(layer).join("fs");
            // Of equal layers the topmost decides: it repeats whatever the lower one did.
            if !layers.contains(&path) {
                layers.push(path);
            }
            if presence == (Presence::Present { opaque_root: true }) {
                break;
            }
        }
        layers.reverse();
        Ok(Image { manifest_digest: manifest.digest.to_string(), layers, config: manifest.config })
    }

    fn key(layer: &Layer) -> String {
        format!("{}-{}-{ID_MODE}", layer.diff_id.algorithm(), layer.diff_id.hex())
    }

    fn layer_path(&self, layer: &Layer) -> PathBuf {
        self.path.join("layers").join(Store::key(layer))
    }

    fn io(&self, action: &'static str) -> impl Fn(Errno) -> StoreError + use<> {
        let path = printable(self.path.as_os_str().as_encoded_bytes());
        move |errno| StoreError::Io { action, path: path.clone(), source: errno.into() }
    }

    /// Looks at one layer, with one system call.
    fn presence(&self, layer: &Layer) -> Result<Presence, StoreError> {
        let mut value = [0u8; 1];
        match rustix::fs::lgetxattr(self.layer_path(layer), OPAQUE_ROOT, &mut value) {
            Ok(_) => Ok(Presence::Present { opaque_root: true }),
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(Presence::Present { opaque_root: false }),
            Err(Errno::NOENT) => Ok(Presence::Missing),
            Err(e) => Err(self.io("look into")(e)),
        }
    }
}
