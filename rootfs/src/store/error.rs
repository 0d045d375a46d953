//! Why an image cannot be had, a layer cannot be unpacked, or the store cannot be used.

use std::path::Path;

use crate::digest::Digest;
use crate::printable::printable;
use crate::source::SourceError;
use crate::unpack::UnpackError;

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
    #[error("the image store `{0}` belongs to another user; set AGENTD_STORE to a directory of yours")]
    Foreign(String),
    /// A link would lead the store anywhere.
    #[error("the image store `{0}` is a symbolic link; set AGENTD_STORE to the directory it leads to")]
    Link(String),
    /// No file system to put it on.
    #[error("there is no place for the image store: {0}; set AGENTD_STORE to a directory on a local disk")]
    NoPlace(String),
    /// A store of others.
    #[error("the store `{path}` of AGENTD_EXTRA_STORES {reason}")]
    Extra {
        /// Where.
        path: String,
        /// Why not.
        reason: String,
    },
    /// A later agentd's.
    #[error("the image store `{path}` has names of schema {schema}, which a later agentd wrote; use that one")]
    Newer {
        /// Where.
        path: String,
        /// Its version.
        schema: u32,
    },
    /// A layer that is not as it was unpacked.
    #[error(
        "layer `{layer}` in the image store `{path}` has lost its attributes, as by a copy without them; remove it, and pull the image again"
    )]
    Layer {
        /// The layer's directory.
        layer: String,
        /// Where.
        path: String,
    },
}

impl StoreError {
    /// Names the operation and the store of a failed system call.
    pub(super) fn io<E: Into<std::io::Error>>(action: &'static str, path: &Path) -> impl Fn(E) -> StoreError + use<E> {
        let path = printable(path.as_os_str().as_encoded_bytes());
        move |error| StoreError::Io { action, path: path.clone(), source: error.into() }
    }
}

/// Why an image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Its source does not lead to one.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A layer of it cannot be unpacked.
    #[error("layer {digest}")]
    Layer {
        /// The layer's blob.
        digest: Digest,
        /// Why.
        source: Box<LayerError>,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Not an image of layers.
    #[error("`{0}` is a directory of this machine, not an image: there is nothing to pull")]
    NothingToPull(String),
    /// Not to be pulled.
    #[error("the image `{0}` is not in the store, and is not to be pulled; `agentd pull {0}` fetches it")]
    NotHere(String),
    /// No image in the store is called so.
    #[error("no image in the store is called `{0}`; `agentd images` lists them")]
    Unknown(String),
    /// Several digests begin so.
    #[error("`{0}` could be any of several images; give more digits, or a name")]
    Ambiguous(String),
    /// The layers it had in the store were taken away again and again.
    #[error("the layers of `{0}` are removed by others while it is pulled; try again when no `agentd prune` runs")]
    Contended(String),
    /// Asked to stop.
    #[error("interrupted; what is finished is kept, and the next pull goes on from there")]
    Interrupted,
}

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Its blob.
    #[error(transparent)]
    Blob(#[from] SourceError),
    /// Its content.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The content is not what the config says.
    #[error(
        "its content is not what the image's config says: it hashes to {actual} instead of {expected}; fetch the image again, or tell who made it"
    )]
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
