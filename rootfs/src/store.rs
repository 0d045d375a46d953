//! The layer store: one unpacked directory a DiffID, shared by all jobs and images of one user.
//!
//! ```text
//! STORE/                      0700: layers hold real setuid files
//!   layers/KEY/fs             one layer as overlayfs wants it; KEY = ALGORITHM-DIFFID-IDMODE
//!   tmp/KEY, tmp/KEY.lock     a layer being unpacked (see `lock`)
//! ```
//! Invariant: `layers/KEY` appears by one rename, after the blob's size and digest and the DiffID were verified and the
//! bytes are on the disk. Keyed by anything unverified, one image could poison another's layer.

use std::fs::DirBuilder;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};

use rustix::fs::{Mode, OFlags, XattrFlags, fsetxattr, fstat, mkdirat, openat, renameat, syncfs};
use rustix::io::Errno;

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::layout::{Layer, Layout, LayoutError, check_digest};
use crate::limits::Limits;
use crate::lock::{Lock, sweep};
use crate::printable::printable;
use crate::reference::Selector;
use crate::removal::remove_all;
use crate::stream::{LayerStream, Source, StreamError};
use crate::unpack::{Report, TarError, TreeError, UnpackError, unpack};

/// Owners are squashed to the store's owner. Part of the key: another mode would need other layers.
const ID_MODE: &str = "squash";
/// On `layers/KEY`: the layer hides everything below it. Not on `fs`, whose mode is the image's and may deny reading.
const OPAQUE_ROOT: &str = "user.agentd.opaque";
/// A progress event for so many bytes.
const PROGRESS_STEP: u64 = 1 << 20;

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
        let layout = Layout::open(layout)?;
        let manifest = layout.manifest(select, limits)?;
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
            self.pull(&layout, missing, limits, progress)?;
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

    fn pull(
        &self,
        layout: &Layout,
        mut missing: Vec<&Layer>,
        limits: &Limits,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), ImageError> {
        sweep(&self.tmp).map_err(self.io("clean up"))?;
        // All locks before any work, in one order everywhere: two pulls that share layers cannot wait for each other.
        missing.sort_by_key(|layer| Store::key(layer));
        let mut held = Vec::new();
        for layer in missing {
            let lock = Lock::acquire(self.tmp.as_fd(), &Store::key(layer)).map_err(self.io("lock a layer in"))?;
            if self.presence(layer)? == Presence::Missing {
                held.push((layer, lock));
            }
        }
        // The largest first: it decides how long the whole takes.
        held.sort_by_key(|(layer, _)| std::cmp::Reverse(layer.size));
        let jobs: Vec<&Layer> = held.iter().map(|(layer, _)| *layer).collect();
        let (unpacked, failed) = self.unpack_all(layout, &jobs, limits, progress);
        let published = self.publish(&unpacked);
        for layer in jobs {
            let name = Store::key(layer);
            if let Ok(name) = std::ffi::CString::new(name) {
                // Published ones are no longer here. What cannot be removed now is swept by the next pull.
                remove_all(self.tmp.as_fd(), &name).ok();
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(published?),
        }
    }

    /// Unpacks `jobs` in order on as many threads as there are cores. Returns what is complete, and the first failure.
    fn unpack_all<'l>(
        &self,
        layout: &Layout,
        jobs: &[&'l Layer],
        limits: &Limits,
        progress: &mut dyn FnMut(Progress),
    ) -> (Vec<&'l Layer>, Option<ImageError>) {
        let next = Mutex::new(jobs.iter());
        let cancel = AtomicBool::new(false);
        let outcome = Mutex::new((Vec::new(), None));
        let (sender, receiver) = mpsc::channel::<Progress>();
        let work = |sender: Sender<Progress>| {
            loop {
                let job = next.lock().ok().and_then(|mut jobs| jobs.next().copied());
                let Some(layer) = job.filter(|_| !cancel.load(Ordering::Relaxed)) else { return };
                let result = self.unpack_one(layout, layer, limits, &cancel, &sender);
                let Ok(mut outcome) = outcome.lock() else { return };
                match result {
                    Ok(()) => outcome.0.push(layer),
                    // The first failure is the cause; later ones may only be the others being told to stop.
                    Err(source) if outcome.1.is_none() => {
                        cancel.store(true, Ordering::Relaxed);
                        outcome.1 = Some(ImageError::Layer { digest: layer.digest.clone(), source });
                    }
                    Err(_) => {}
                }
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..cores.min(jobs.len()) {
                let sender = sender.clone();
                scope.spawn(|| work(sender));
            }
            drop(sender);
            for event in receiver {
                progress(event);
            }
        });
        // Nothing panics while holding the lock; a poisoned one would only mean fewer layers.
        outcome.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Unpacks and verifies one layer into `tmp/KEY`.
    fn unpack_one(
        &self,
        layout: &Layout,
        layer: &Layer,
        limits: &Limits,
        cancel: &AtomicBool,
        sender: &Sender<Progress>,
    ) -> Result<(), LayerError> {
        let blob = layout.open_blob(&layer.digest, layer.size)?;
        let (dir, root) = self.make_tmp(&Store::key(layer)).map_err(self.io("make a directory in"))?;
        let tell = |bytes_done: u64, done: Option<Report>| {
            let Report { skipped_devices, dropped_xattrs } = done.unwrap_or_default();
            let (digest, bytes_total) = (layer.digest.to_string(), layer.size);
            let done = done.is_some();
            // Nobody listening is no reason to stop.
            sender.send(Progress { digest, bytes_done, bytes_total, done, skipped_devices, dropped_xattrs }).ok();
        };
        tell(0, None);
        let told = AtomicU64::new(0);
        let on_read = |read: u64| {
            if read >= told.load(Ordering::Relaxed) + PROGRESS_STEP {
                told.store(read, Ordering::Relaxed);
                tell(read, None);
            }
        };
        let source = Source {
            blob: Box::new(blob),
            compression: layer.compression,
            digest: &layer.digest,
            diff_id: &layer.diff_id,
            on_read: &on_read,
            cancel,
        };
        let result = LayerStream::new(source, limits)
            .map_err(|e| UnpackError::Archive(e.into()))
            .and_then(|stream| unpack(stream, root, limits));
        let unpacked = match result {
            Ok(unpacked) => unpacked,
            Err(error) => {
                // Damaged bytes fail in many ways; that they are damaged is the better answer.
                let content = !matches!(&error, UnpackError::Archive(TarError::Stream(StreamError::Cancelled)));
                if content {
                    verify_blob(layout, layer)?;
                }
                return Err(error.into());
            }
        };
        check_digest(&layer.digest, unpacked.digest)?;
        if unpacked.diff_id != layer.diff_id {
            return Err(LayerError::DiffId { expected: layer.diff_id.clone(), actual: unpacked.diff_id });
        }
        if unpacked.opaque_root {
            fsetxattr(&dir, OPAQUE_ROOT, b"y", XattrFlags::empty()).map_err(self.io("set an attribute in"))?;
        }
        tell(layer.size, Some(unpacked.report));
        Ok(())
    }

    /// A fresh `tmp/KEY` with `fs` in it; what a dead process left there goes.
    fn make_tmp(&self, key: &str) -> rustix::io::Result<(OwnedFd, OwnedFd)> {
        let name = std::ffi::CString::new(key).map_err(|_nul| Errno::INVAL)?;
        remove_all(self.tmp.as_fd(), &name)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        mkdirat(&self.tmp, &name, Mode::RWXU)?;
        let dir = openat(&self.tmp, &name, flags, Mode::empty())?;
        mkdirat(&dir, c"fs", Mode::RWXU)?;
        let root = openat(&dir, c"fs", flags, Mode::empty())?;
        Ok((dir, root))
    }

    fn publish(&self, unpacked: &[&Layer]) -> Result<(), StoreError> {
        if unpacked.is_empty() {
            return Ok(());
        }
        // Once a pull, before any rename: else a host crash could leave a published layer of empty files.
        syncfs(&self.tmp).map_err(self.io("write back"))?;
        for layer in unpacked {
            let key = Store::key(layer);
            renameat(&self.tmp, &key, &self.layers, &key).map_err(self.io("publish a layer in"))?;
        }
        Ok(())
    }
}

fn verify_blob(layout: &Layout, layer: &Layer) -> Result<(), LayoutError> {
    let mut blob = layout.open_blob(&layer.digest, layer.size)?;
    let mut hasher = layer.digest.hasher();
    let mut buffer = vec![0; 128 << 10];
    loop {
        let n = std::io::Read::read(&mut blob, &mut buffer)
            .map_err(|source| LayoutError::Io { object: format!("blob {}", layer.digest), source })?;
        if n == 0 {
            return check_digest(&layer.digest, hasher.finish());
        }
        hasher.update(&buffer[..n]);
    }
}

#[cfg(test)]
mod tests;
